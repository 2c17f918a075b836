//! Where a message ends (RFC 9112 section 6.3), and what its fields say about the connection.

use crate::chars::list;
use crate::error::ParseError;
use crate::fields::Fields;
use crate::name::KnownName;

/// The version of a message; 1.2 to 1.9 are read as 1.1 (RFC 9110 section 2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// How long the body of a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BodyLength {
    /// There is none, and no field speaks of one that follows.
    #[default]
    None,
    /// So many bytes, as Content-Length says; may be 0.
    Known(u64),
    /// Chunks, until the last one.
    Chunked,
    /// Until the connection closes; responses only.
    UntilClose,
}

impl BodyLength {
    /// Whether no byte of a body follows the head.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Known(0))
    }
}

/// What one pass over the fields finds out for framing and connection.
#[derive(Default)]
pub(crate) struct Survey<'a> {
    length: Option<&'a [u8]>,
    lengths: u32,
    coding: Option<&'a [u8]>,
    codings: u32,
    pub(crate) host: Option<&'a [u8]>,
    pub(crate) hosts: u32,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    connection_upgrade: bool,
    upgrade: bool,
    websocket: bool,
    pub(crate) expect_continue: bool,
}

impl<'a> Survey<'a> {
    pub(crate) fn of(fields: &'a Fields) -> Self {
        let mut this = Self::default();
        for entry in &fields.entries {
            let Some(known) = entry.known else { continue };
            let value = || entry.value(&fields.text);
            match known {
                KnownName::ContentLength => {
                    this.length = Some(value());
                    this.lengths += 1;
                }
                KnownName::TransferEncoding => {
                    this.coding = Some(value());
                    this.codings += 1;
                }
                KnownName::Host => {
                    this.host = Some(value());
                    this.hosts += 1;
                }
                KnownName::Connection => this.connection(value()),
                KnownName::Upgrade => {
                    this.upgrade = true;
                    this.websocket |= list(value()).any(|offer| offer.eq_ignore_ascii_case(b"websocket"));
                }
                KnownName::Expect => this.expect_continue |= value().eq_ignore_ascii_case(b"100-continue"),
                _ => {}
            }
        }
        this
    }

    fn connection(&mut self, value: &[u8]) {
        for option in list(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            self.connection_upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
    }

    /// Whether the sender wants the connection to go on after this message.
    pub(crate) fn persists(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Whether the sender asks for, or agrees to, another protocol; HTTP/1.0 cannot (RFC 9110 section 7.8).
    pub(crate) fn upgrades(&self, version: Version) -> bool {
        version == Version::Http11 && self.connection_upgrade && self.upgrade
    }

    /// Whether the protocols that [`Self::upgrades`] is about include WebSocket.
    pub(crate) fn offers_websocket(&self) -> bool {
        self.websocket
    }

    /// The framing that the fields declare; `None` when they declare none.
    pub(crate) fn framing(&self, version: Version) -> Result<Option<BodyLength>, ParseError> {
        if self.codings > 0 {
            return self.transfer_coding(version).map(Some);
        }
        match (self.lengths, self.length) {
            (0, _) => Ok(None),
            (1, Some(value)) => content_length(value).map(BodyLength::Known).map(Some),
            _ => Err(ParseError::RepeatedLength),
        }
    }

    fn transfer_coding(&self, version: Version) -> Result<BodyLength, ParseError> {
        if version == Version::Http10 {
            return Err(ParseError::CodingInHttp10);
        }
        if self.lengths > 0 {
            return Err(ParseError::ConflictingLength);
        }
        let value = self.coding.unwrap_or_default();
        let chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        if !list(value).all(chunked) || value.is_empty() {
            return Err(ParseError::UnknownCoding);
        }
        // `chunked,` is one member by the list rule, but not every reader applies that rule here.
        if self.codings > 1 || !chunked(value) {
            return Err(ParseError::RepeatedCoding);
        }
        Ok(BodyLength::Chunked)
    }
}

/// Digits of a length or a chunk's size, leading zeros among them. Nobody writes more, and whoever drips zeros has to end.
pub(crate) const DIGITS: usize = 32;

/// Reads a Content-Length.
///
/// # Errors
/// [`ParseError::RepeatedLength`] for a list; [`ParseError::BadLength`] for what is no plain number, or one of more than 32
/// digits or from 10^18 on.
pub fn content_length(value: &[u8]) -> Result<u64, ParseError> {
    if value.contains(&b',') {
        return Err(ParseError::RepeatedLength);
    }
    if value.is_empty() || value.len() > DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return Err(ParseError::BadLength);
    }
    // It stays below 2^63, so no sum overflows and no signed reader sees a negative length.
    let add = |sum: u64, digit: &u8| {
        let sum = sum * 10 + u64::from(digit - b'0');
        (sum < 10u64.pow(18)).then_some(sum)
    };
    value.iter().try_fold(0, add).ok_or(ParseError::BadLength)
}
