//! What a body is made of, and how it can break, whatever the version of HTTP.

use bytes::Bytes;
use meshwork_http1::{Fields, KnownName, Limits, ParseError, ResponseHead};

use crate::io;

/// A piece of a body.
#[derive(Debug)]
pub(crate) enum Frame {
    /// Bytes.
    Data(Bytes),
    /// The clean end, with trailers if there were any.
    End(Option<Box<Fields>>),
}

/// How a message broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The socket failed.
    #[error("the connection failed: {}", io::told(.0))]
    Io(#[from] std::io::Error),
    /// The peer closed before the message was complete.
    #[error("the connection was closed in the middle of a message")]
    Closed,
    /// The peer closed without a byte of this message.
    #[error("the connection was closed before a message began")]
    ClosedBefore,
    /// The message violates HTTP/1.1.
    #[error("malformed HTTP/1.1: {0}")]
    Http1(#[from] ParseError),
    /// One response has more heads before its final one than anybody keeps for a caller who does not read.
    #[error("its informational responses are more than {max} bytes together, see --max-header-bytes")]
    InterimTooLarge {
        /// The limit, in bytes.
        max: u32,
    },
    /// The HTTP/2 stream or its connection failed.
    #[error("HTTP/2: {}", told(.0))]
    Http2(h2::Error),
}

/// Who has ended what, and with which code. `h2`'s own words are those of RFC 9113 about codes in general, and of a stream
/// that its peer has reset they say that the protocol was broken.
pub(crate) fn told(error: &h2::Error) -> String {
    if let Some(error) = error.get_io() {
        return io::told(error);
    }
    let text = error.to_string();
    let Some(reason) = error.reason() else {
        // Else it is a mistake of ours.
        return if text.ends_with("inactive stream") { "the stream has ended".to_owned() } else { text };
    };
    let who = match (error.is_remote(), error.is_library()) {
        (true, _) => " by the peer",
        (_, true) => " by us, since the peer breaks HTTP/2",
        // Of what is found while sending it is not known.
        _ if !error.is_reset() && !error.is_go_away() => "",
        _ => " by us",
    };
    let what = if error.is_go_away() { "the connection was ended" } else { "the stream was reset" };
    // What a peer adds to its farewell is in the text alone.
    let added = text.find(" (b\"").map_or("", |at| &text[at..]);
    format!("{what}{who}: {reason:?}{added}")
}

/// The clean end of a body, with what of its trailers may be passed on.
///
/// # Errors
/// One of them frames or routes the message.
pub(crate) fn end(trailers: Option<Fields>) -> Result<Frame, ParseError> {
    let Some(mut fields) = trailers else { return Ok(Frame::End(None)) };
    if fields.iter_known().any(|(known, ..)| known.is_some_and(KnownName::frames_or_routes)) {
        return Err(ParseError::ForbiddenTrailer);
    }
    fields.retain(|known, name, _| match known {
        Some(known) => !known.is_of_heads_only(),
        None => !KnownName::is_mistaken_for_proxies_word(name),
    });
    Ok(Frame::End((!fields.is_empty()).then(|| Box::new(fields))))
}

/// What the informational responses of one exchange have taken of the limit on a head's bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Interim(u32);

/// A status line, at least.
const STATUS_LINE: u32 = 16;

impl Interim {
    /// # Errors
    /// With this one they are too many.
    pub(crate) fn add(&mut self, head: &ResponseHead, limits: &Limits) -> Result<(), StreamError> {
        let fields = u32::try_from(head.fields.text_len()).unwrap_or(u32::MAX);
        self.0 = self.0.saturating_add(fields).saturating_add(STATUS_LINE);
        let max = limits.header_bytes;
        if self.0 > max { Err(StreamError::InterimTooLarge { max }) } else { Ok(()) }
    }
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        Self::Http2(error)
    }
}

impl StreamError {
    /// The peer says that it has processed nothing of this stream (RFC 9113 section 8.7).
    pub(crate) fn refused(&self) -> bool {
        let Self::Http2(error) = self else { return false };
        error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
    }

    /// The peer has reset the stream, and says that nothing has broken.
    pub(crate) fn is_cancelled(&self) -> bool {
        let Self::Http2(error) = self else { return false };
        error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::CANCEL)
    }

    /// The peer spoke, and it was no HTTP.
    pub(crate) fn is_protocol(&self) -> bool {
        match self {
            Self::Http1(_) | Self::InterimTooLarge { .. } => true,
            Self::Http2(error) => error.is_library(),
            Self::Io(_) | Self::Closed | Self::ClosedBefore => false,
        }
    }
}
