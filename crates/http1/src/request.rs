//! Request heads (RFC 9112 section 3).

use http::Method;

use crate::error::ParseError;
use crate::fields::Fields;
use crate::framing::{BodyLength, Survey, Version};
use crate::limits::{Limit, Limits};
use crate::name::KnownName;
use crate::scan::{HeadScan, Parsed, Phase};
use crate::target::{Target, is_same_authority, read_authority};

/// The head of a request, in memory that the next request of the connection uses again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// The method; those that nobody registered pass too.
    pub method: Method,
    /// The target.
    pub target: Target,
    /// The version the client spoke.
    pub version: Version,
    /// The header fields as received, framing and hop-by-hop ones included.
    pub fields: Fields,
    /// How long the body is.
    pub body: BodyLength,
    /// Whether the client wants to send another request afterwards.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// Whether the client offers to change the protocol (Upgrade nominated by Connection).
    pub upgrade: bool,
}

impl RequestHead {
    /// An empty head, which holds no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empties the head and keeps its memory.
    pub fn clear(&mut self) {
        self.method = Method::GET;
        self.target.clear();
        self.version = Version::Http11;
        self.fields.clear();
        self.body = BodyLength::None;
        self.keep_alive = false;
        self.expect_continue = false;
        self.upgrade = false;
    }

    /// Bytes of memory that it holds for the next request.
    #[must_use]
    pub fn held(&self) -> usize {
        self.target.held() + self.fields.held()
    }

    /// `host[:port]` that the request is for: the target's if it has one, else Host's. `None` only for HTTP/1.0
    /// without Host.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        self.target.authority().or_else(|| std::str::from_utf8(self.fields.known(KnownName::Host)?).ok())
    }

    /// The host that the request is for, without port; IPv6 addresses keep their brackets.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        let authority = self.authority()?;
        let colon = authority.rfind(':').filter(|at| authority.as_bytes().get(at - 1).is_some());
        match colon {
            Some(at) if !authority[at..].contains(']') => Some(&authority[..at]),
            _ => Some(authority),
        }
    }
}

/// Reads a request head from the beginning of `buf`.
///
/// # Errors
/// [`ParseError`]: answer with its status and close. `out` holds what was read before the fault, for the log.
pub fn parse_request(
    buf: &[u8],
    limits: &Limits,
    scan: &mut HeadScan,
    out: &mut RequestHead,
) -> Result<Parsed, ParseError> {
    if scan.phase == Phase::Fresh {
        out.clear();
        scan.phase = Phase::StartLine;
    }
    while scan.phase != Phase::Fields {
        let Some(line) = scan.line(buf, Limit::RequestLine, limits.request_line)? else {
            return Ok(Parsed::Incomplete);
        };
        if !line.is_empty() {
            request_line(line, out)?;
            scan.begin_fields();
        } else if scan.phase == Phase::StartLine {
            scan.phase = Phase::AfterEmptyLine;
        } else {
            return Err(ParseError::EmptyLines);
        }
    }
    let section = (Limit::HeaderBytes, limits.header_bytes);
    let Some(consumed) = scan.fields(buf, limits, section, &mut out.fields)? else {
        return Ok(Parsed::Incomplete);
    };
    finish(out)?;
    Ok(Parsed::Done { consumed })
}

fn request_line(line: &[u8], out: &mut RequestHead) -> Result<(), ParseError> {
    let malformed = || {
        if line.contains(&b'\r') { ParseError::BareCr } else { ParseError::BadRequestLine }
    };
    let space = memchr::memchr(b' ', line).ok_or_else(malformed)?;
    let (method, rest) = (&line[..space], &line[space + 1..]);
    let space = memchr::memrchr(b' ', rest).ok_or_else(malformed)?;
    let (target, version) = (&rest[..space], &rest[space + 1..]);
    if method.is_empty() || target.is_empty() || target.contains(&b' ') {
        return Err(malformed());
    }
    out.method = Method::from_bytes(method).map_err(|_| ParseError::BadMethod)?;
    out.version = parse_version(version)?;
    out.target.set(&out.method, target)
}

pub(crate) fn parse_version(bytes: &[u8]) -> Result<Version, ParseError> {
    match bytes {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => Ok(Version::Http11),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(ParseError::UnsupportedVersion),
        _ if bytes.contains(&b'\r') => Err(ParseError::BareCr),
        _ => Err(ParseError::BadVersion),
    }
}

/// What can be judged only when all fields are known.
fn finish(out: &mut RequestHead) -> Result<(), ParseError> {
    let survey = Survey::of(&out.fields);
    check_host(&survey, out)?;
    let body = survey.framing(out.version)?.unwrap_or(BodyLength::None);
    let expect_continue = survey.expect_continue && out.version == Version::Http11 && !body.is_empty();
    let without_port = survey.host.and_then(|host| host.strip_suffix(b":")).map(<[u8]>::to_vec);
    let (keep_alive, upgrade) = (survey.persists(out.version), survey.upgrades(out.version));
    if upgrade && survey.offers_websocket() && out.method == Method::GET {
        check_handshake(&out.fields, body)?;
    }
    out.body = body;
    out.expect_continue = expect_continue;
    out.keep_alive = keep_alive;
    out.upgrade = upgrade;
    // The colon of an empty port: see `read_authority`.
    match without_port {
        Some(host) => out.fields.set_known(KnownName::Host, host).map_err(|_| ParseError::BadHost),
        None => Ok(()),
    }
}

fn check_handshake(fields: &Fields, body: BodyLength) -> Result<(), ParseError> {
    if !body.is_empty() {
        return Err(ParseError::HandshakeWithContent);
    }
    // The answer proves one of them, and which one that is depends on who reads.
    match fields.get_all(b"sec-websocket-key").nth(1) {
        Some(_) => Err(ParseError::RepeatedKey),
        None => Ok(()),
    }
}

fn check_host(survey: &Survey<'_>, out: &RequestHead) -> Result<(), ParseError> {
    let Some(host) = survey.host else {
        let missing = out.version == Version::Http11;
        return if missing { Err(ParseError::MissingHost) } else { Ok(()) };
    };
    if survey.hosts > 1 {
        return Err(ParseError::RepeatedHost);
    }
    let Some(authority) = out.target.authority() else { return read_authority(host).map(drop) };
    let same = is_same_authority(out.target.scheme(), authority.as_bytes(), host)?;
    if same { Ok(()) } else { Err(ParseError::HostMismatch) }
}
