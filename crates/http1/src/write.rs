//! Writing heads and chunks. The framing of what is written is the caller's, never a copy of what was received.

use bytes::BufMut;
use http::{Method, StatusCode};

use crate::chars::is_field_value;
use crate::error::ParseError;
use crate::fields::Fields;
use crate::framing::BodyLength;
use crate::name::KnownName;

/// What to write into Connection; hop-by-hop fields of the received message are no part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionOption {
    /// Nothing: an HTTP/1.1 connection goes on.
    #[default]
    None,
    /// `close`: this is the last message.
    Close,
    /// `keep-alive`: what an HTTP/1.0 peer asked for.
    KeepAlive,
    /// `upgrade`: the fields have an Upgrade.
    Upgrade,
}

impl ConnectionOption {
    const fn line(self) -> &'static [u8] {
        match self {
            Self::None => b"",
            Self::Close => b"connection: close\r\n",
            Self::KeepAlive => b"connection: keep-alive\r\n",
            Self::Upgrade => b"connection: upgrade\r\n",
        }
    }
}

/// Writes a request head. Content-Length and Transfer-Encoding come from `body`, Connection from `connection`; such
/// fields in `fields` are left out.
///
/// # Errors
/// [`ParseError::BadTarget`] when the target holds a space or a control character; nothing is written then.
pub fn write_request_head(
    out: &mut impl BufMut,
    method: &Method,
    target: &str,
    fields: &Fields,
    body: BodyLength,
    connection: ConnectionOption,
) -> Result<(), ParseError> {
    let bad = target.bytes().fold(false, |bad, b| bad | (b <= b' ') | (b >= 0x7f));
    if target.is_empty() || bad {
        return Err(ParseError::BadTarget);
    }
    out.put_slice(method.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    put_fields(out, fields, false);
    put_framing(out, body);
    out.put_slice(connection.line());
    out.put_slice(b"\r\n");
    Ok(())
}

/// Writes a response head. Content-Length and Transfer-Encoding come from `body`, Connection from `connection`; such
/// fields in `fields` are left out, except that with [`BodyLength::None`] the Content-Length of a response to HEAD or
/// of a 304 stays: it speaks of the body that GET would have. The Upgrade of a 426 is named in a Connection of its own (RFC
/// 9110 section 7.8).
///
/// A `reason` that is empty or malformed is replaced by the registered one.
pub fn write_response_head(
    out: &mut impl BufMut,
    status: u16,
    reason: &[u8],
    fields: &Fields,
    body: BodyLength,
    connection: ConnectionOption,
) {
    if status == 200 && (reason.is_empty() || reason == b"OK") {
        out.put_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        let digit = |n: u16| b'0' + u8::try_from(n % 10).expect("a digit");
        out.put_slice(&[
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            b'1',
            b' ',
            digit(status / 100),
            digit(status / 10),
            digit(status),
            b' ',
        ]);
        let known = || StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
        if reason.is_empty() || !is_field_value(reason) {
            out.put_slice(known().unwrap_or_default().as_bytes());
        } else {
            out.put_slice(reason);
        }
        out.put_slice(b"\r\n");
    }
    let bodiless = status / 100 == 1 || status == 204;
    put_fields(out, fields, body == BodyLength::None && !bodiless);
    put_framing(out, body);
    out.put_slice(connection.line());
    // Here Upgrade is told whether or not the connection goes on, and belongs to it all the same.
    if status == 426 && connection != ConnectionOption::Upgrade && fields.known(KnownName::Upgrade).is_some()
    {
        out.put_slice(ConnectionOption::Upgrade.line());
    }
    out.put_slice(b"\r\n");
}

fn put_framing(out: &mut impl BufMut, body: BodyLength) {
    match body {
        BodyLength::None | BodyLength::UntilClose => {}
        BodyLength::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        BodyLength::Known(mut length) => {
            out.put_slice(b"content-length: ");
            let mut digits = [0u8; 20];
            let mut at = digits.len();
            loop {
                at -= 1;
                digits[at] = b'0' + u8::try_from(length % 10).expect("a digit");
                length /= 10;
                if length == 0 {
                    break;
                }
            }
            out.put_slice(&digits[at..]);
            out.put_slice(b"\r\n");
        }
    }
}

/// Writes the fields, neighbours that stand in the text as they should on the wire in one copy.
fn put_fields(out: &mut impl BufMut, fields: &Fields, keep_length: bool) {
    let text = fields.text.as_slice();
    let mut run = 0..0;
    for entry in &fields.entries {
        let left_out = match entry.known {
            Some(KnownName::ContentLength) => !keep_length,
            Some(KnownName::TransferEncoding | KnownName::Connection) => true,
            _ => false,
        };
        if left_out {
            continue;
        }
        let start = entry.name as usize;
        let name_end = start + usize::from(entry.name_len);
        let value_end = entry.value as usize + entry.value_len as usize;
        let verbatim = entry.value as usize == name_end + 2 && text.get(value_end) == Some(&b'\r');
        if verbatim && run.end == start {
            run.end = value_end + 2;
            continue;
        }
        out.put_slice(&text[run]);
        run = 0..0;
        if verbatim {
            run = start..value_end + 2;
        } else {
            out.put_slice(&text[start..name_end]);
            out.put_slice(b": ");
            out.put_slice(entry.value(text));
            out.put_slice(b"\r\n");
        }
    }
    out.put_slice(&text[run]);
}

/// The line before a chunk's data, on the stack, for vectored writes.
#[derive(Clone, Copy, Debug)]
pub struct ChunkHeader {
    bytes: [u8; 18],
    start: u8,
}

impl ChunkHeader {
    /// The line for a chunk of that many bytes. A chunk of 0 bytes would end the body: write nothing instead.
    #[must_use]
    pub fn new(mut len: usize) -> Self {
        debug_assert!(len > 0, "an empty chunk ends the body");
        let mut bytes = *b"0000000000000000\r\n";
        let mut start = 16;
        while len > 0 {
            start -= 1;
            bytes[usize::from(start)] = b"0123456789abcdef"[len & 15];
            len >>= 4;
        }
        Self { bytes, start }
    }

    /// The line.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start.into()..]
    }
}

impl AsRef<[u8]> for ChunkHeader {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// Writes one chunk; nothing when there is no data.
pub fn write_chunk(out: &mut impl BufMut, data: &[u8]) {
    if !data.is_empty() {
        out.put_slice(ChunkHeader::new(data.len()).as_bytes());
        out.put_slice(data);
        out.put_slice(b"\r\n");
    }
}

/// Writes the end of a chunked body, with its trailers. Framing fields among them are left out.
pub fn write_last_chunk(out: &mut impl BufMut, trailers: Option<&Fields>) {
    out.put_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        put_fields(out, trailers, false);
    }
    out.put_slice(b"\r\n");
}
