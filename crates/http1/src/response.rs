//! Response heads (RFC 9112 section 4).

use crate::chars::is_field_value;
use crate::error::ParseError;
use crate::fields::Fields;
use crate::framing::{BodyLength, Survey, Version};
use crate::limits::{Limit, Limits};
use crate::request::parse_version;
use crate::scan::{HeadScan, Parsed, Phase};

/// What the request was, as far as the end of its response depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestKind {
    /// HEAD: the response has no body, whatever its fields say.
    Head,
    /// CONNECT: a 2xx turns the connection into a tunnel.
    Connect,
    /// Every other method.
    #[default]
    Other,
}

impl From<&http::Method> for RequestKind {
    fn from(method: &http::Method) -> Self {
        match *method {
            http::Method::HEAD => Self::Head,
            http::Method::CONNECT => Self::Connect,
            _ => Self::Other,
        }
    }
}

/// The head of a response, in memory that the next response of the connection uses again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100 to 999; 1xx other than 101 precede the response proper.
    pub status: u16,
    /// The reason phrase; may be empty.
    pub reason: Vec<u8>,
    /// The version the server spoke.
    pub version: Version,
    /// The header fields as received, framing and hop-by-hop ones included.
    pub fields: Fields,
    /// How long the body is.
    pub body: BodyLength,
    /// Whether the connection may carry another request after this response's body.
    pub keep_alive: bool,
    /// Whether the connection is no longer HTTP behind this head: 101, or 2xx to CONNECT.
    pub tunnel: bool,
}

impl ResponseHead {
    /// An empty head, which holds no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the head and keeps its memory.
    pub fn clear(&mut self) {
        self.status = 0;
        self.reason.clear();
        self.version = Version::Http11;
        self.fields.clear();
        self.body = BodyLength::None;
        self.keep_alive = false;
        self.tunnel = false;
    }

    /// Bytes of memory that it holds for the next response.
    #[must_use]
    pub fn held(&self) -> usize {
        self.reason.capacity() + self.fields.held()
    }

    /// Whether another head follows this one for the same request (100, 102, 103).
    #[must_use]
    pub const fn is_informational(&self) -> bool {
        self.status / 100 == 1 && self.status != 101
    }
}

/// Reads a response head from the beginning of `buf`.
///
/// # Errors
/// [`ParseError`]: the response is the upstream's fault; close its connection. `out` holds what was read before.
pub fn parse_response(
    buf: &[u8],
    limits: &Limits,
    kind: RequestKind,
    scan: &mut HeadScan,
    out: &mut ResponseHead,
) -> Result<Parsed, ParseError> {
    if scan.phase == Phase::Fresh {
        out.clear();
        scan.phase = Phase::StartLine;
    }
    if scan.phase != Phase::Fields {
        let Some(line) = scan.line(buf, Limit::RequestLine, limits.request_line)? else {
            return Ok(Parsed::Incomplete);
        };
        status_line(line, out)?;
        scan.begin_fields();
    }
    let section = (Limit::HeaderBytes, limits.header_bytes);
    let Some(consumed) = scan.fields(buf, limits, section, &mut out.fields)? else {
        return Ok(Parsed::Incomplete);
    };
    finish(kind, out)?;
    Ok(Parsed::Done { consumed })
}

fn status_line(line: &[u8], out: &mut ResponseHead) -> Result<(), ParseError> {
    let malformed = if line.contains(&b'\r') { ParseError::BareCr } else { ParseError::BadStatusLine };
    let (version, rest) = line.split_at_checked(8).ok_or(malformed)?;
    out.version = parse_version(version)?;
    let [b' ', code @ ..] = rest else { return Err(malformed) };
    let (code, reason) = code.split_at_checked(3).ok_or(malformed)?;
    if !code.iter().all(u8::is_ascii_digit) || code[0] == b'0' {
        return Err(malformed);
    }
    // The space before an empty reason is often left out; nothing can be misread by that.
    let reason = match reason {
        [] => reason,
        [b' ', reason @ ..] if is_field_value(reason) => reason,
        _ => return Err(malformed),
    };
    out.status = code.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    out.reason.extend_from_slice(reason);
    Ok(())
}

/// What can be judged only when all fields are known.
fn finish(kind: RequestKind, out: &mut ResponseHead) -> Result<(), ParseError> {
    let survey = Survey::of(&out.fields);
    let mut keep_alive = survey.persists(out.version);
    let success = out.status / 100 == 2;
    let tunnel = out.status == 101 || kind == RequestKind::Connect && success;
    let body = if kind == RequestKind::Connect && success {
        // Content-Length and Transfer-Encoding mean nothing here (RFC 9112 section 6.3, item 2).
        BodyLength::None
    } else {
        let declared = survey.framing(out.version)?;
        if out.status / 100 == 1 || out.status == 204 {
            if declared == Some(BodyLength::Chunked) {
                return Err(ParseError::CodingNotAllowed);
            }
            // A server that declares bytes here may send them: they must not become the next response.
            keep_alive &= declared.is_none_or(BodyLength::is_empty);
            BodyLength::None
        } else if kind == RequestKind::Head || out.status == 304 {
            BodyLength::None
        } else {
            declared.unwrap_or(BodyLength::UntilClose)
        }
    };
    out.body = body;
    out.keep_alive = keep_alive && body != BodyLength::UntilClose && !tunnel;
    out.tunnel = tunnel;
    Ok(())
}
