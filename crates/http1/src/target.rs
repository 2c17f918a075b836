//! The request target in its four forms (RFC 9112 section 3.2), and authorities.

use std::fmt;

use http::Method;

use crate::chars::{is_path_byte, is_query_byte, is_reg_name_byte};
use crate::error::ParseError;

/// The form of a request target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TargetForm {
    /// `/path?query`.
    #[default]
    Origin,
    /// `http://authority/path?query`, as a client sends to a proxy.
    Absolute,
    /// `host:port`, with CONNECT only.
    Authority,
    /// `*`, with OPTIONS only.
    Asterisk,
}

/// A request target, checked, taken apart, in memory that the next request uses again.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Target {
    text: String,
    form: TargetForm,
    scheme_len: u32,
    authority_len: u32,
    path_len: u32,
    /// OPTIONS on an absolute target without a path: asks about the server, as `*` does.
    server_wide: bool,
}

impl Target {
    /// The form it came in.
    #[must_use]
    pub const fn form(&self) -> TargetForm {
        self.form
    }

    /// The whole target; an absolute one without a path has got its `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn authority_start(&self) -> usize {
        if self.form == TargetForm::Absolute { self.scheme_len as usize + "://".len() } else { 0 }
    }

    fn path_start(&self) -> usize {
        self.authority_start() + self.authority_len as usize
    }

    /// `http` or `https` of an absolute target, in the case it came in.
    #[must_use]
    pub fn scheme(&self) -> Option<&str> {
        (self.form == TargetForm::Absolute).then(|| &self.text[..self.scheme_len as usize])
    }

    /// `host[:port]` of an absolute or authority target.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        matches!(self.form, TargetForm::Absolute | TargetForm::Authority)
            .then(|| &self.text[self.authority_start()..self.path_start()])
    }

    /// The path, beginning with `/`; `*` of an asterisk target, empty with CONNECT.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text[self.path_start()..self.path_start() + self.path_len as usize]
    }

    /// What follows the `?`, if there is one.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.text[self.path_start() + self.path_len as usize..].strip_prefix('?')
    }

    /// Path and query, as an origin server is asked: `/a?b`, or `*`; empty with CONNECT.
    #[must_use]
    pub fn path_and_query(&self) -> &str {
        if self.server_wide { "*" } else { &self.text[self.path_start()..] }
    }

    pub(crate) fn held(&self) -> usize {
        self.text.capacity()
    }

    pub(crate) fn clear(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        *self = Self { text, ..Self::default() };
    }

    /// Reads a target, in the memory of the one before.
    ///
    /// # Errors
    /// [`ParseError::BadTarget`], [`ParseError::BadHost`], or [`ParseError::TargetForm`] when the form does not go
    /// with the method. The target is empty then.
    pub fn set(&mut self, method: &Method, target: &[u8]) -> Result<(), ParseError> {
        self.clear();
        let parsed = self.read(method, target);
        if parsed.is_err() {
            self.clear();
        }
        parsed
    }

    fn read(&mut self, method: &Method, target: &[u8]) -> Result<(), ParseError> {
        if *method == Method::CONNECT {
            return self.read_authority_form(target);
        }
        match target {
            [b'/', ..] => self.read_path(target),
            b"*" if *method == Method::OPTIONS => {
                self.form = TargetForm::Asterisk;
                self.path_len = 1;
                self.push(target)
            }
            b"*" => Err(ParseError::TargetForm),
            _ => self.read_absolute(method, target),
        }
    }

    fn read_authority_form(&mut self, target: &[u8]) -> Result<(), ParseError> {
        if matches!(target, [b'/', ..] | b"*") || target.windows(3).any(|w| w == b"://") {
            return Err(ParseError::TargetForm);
        }
        // CONNECT has no default port (RFC 9110 section 9.3.6).
        Authority::parse(target)?.port.ok_or(ParseError::BadHost)?;
        self.form = TargetForm::Authority;
        self.authority_len = offset(target.len())?;
        self.push(target)
    }

    fn read_absolute(&mut self, method: &Method, target: &[u8]) -> Result<(), ParseError> {
        let scheme = target.iter().position(|&b| b == b':').map(|at| &target[..at]).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return Err(ParseError::BadTarget);
        }
        let rest = target[scheme.len()..].strip_prefix(b"://").ok_or(ParseError::BadTarget)?;
        let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = read_authority(authority)?;
        self.form = TargetForm::Absolute;
        self.scheme_len = offset(scheme.len())?;
        self.authority_len = offset(authority.len())?;
        self.push(&target[..scheme.len() + "://".len() + authority.len()])?;
        self.server_wide = path.is_empty() && *method == Method::OPTIONS;
        if !path.starts_with(b"/") {
            self.text.push('/');
            self.path_len = 1;
        }
        self.read_path(path)
    }

    fn read_path(&mut self, bytes: &[u8]) -> Result<(), ParseError> {
        let path_len = bytes.iter().position(|&b| !is_path_byte(b)).unwrap_or(bytes.len());
        let (path, rest) = bytes.split_at(path_len);
        match rest {
            [] => {}
            [b'?', query @ ..] if query.iter().all(|&b| is_query_byte(b)) => {}
            [b'\r', ..] => return Err(ParseError::BareCr),
            _ => return Err(ParseError::BadTarget),
        }
        // A broken escape is read in several ways. In queries browsers send them, and nothing is routed by them.
        if path.contains(&b'%') && !escapes_are_whole(path) {
            return Err(ParseError::BadTarget);
        }
        self.path_len += offset(path_len)?;
        self.push(bytes)
    }

    fn push(&mut self, checked: &[u8]) -> Result<(), ParseError> {
        self.text.push_str(std::str::from_utf8(checked).map_err(|_| ParseError::BadTarget)?);
        Ok(())
    }
}

fn offset(at: usize) -> Result<u32, ParseError> {
    u32::try_from(at).map_err(|_| ParseError::BadTarget)
}

fn escapes_are_whole(path: &[u8]) -> bool {
    path.split(|&b| b == b'%')
        .skip(1)
        .all(|after| after.len() >= 2 && after[..2].iter().all(u8::is_ascii_hexdigit))
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Reads `host[:port]` as a Host field has it, for whoever takes it from elsewhere. A colon without a port is left out: it says
/// nothing (RFC 3986 section 6.2.3), and not everybody who compares authorities knows that.
///
/// # Errors
/// [`ParseError::BadHost`]: it is something else (RFC 9110 section 7.2), or holds user information.
pub fn read_authority(authority: &[u8]) -> Result<&[u8], ParseError> {
    Authority::parse(authority)?;
    Ok(authority.strip_suffix(b":").unwrap_or(authority))
}

/// Whether a Host field names the authority that its request is for. A missing port is that of the scheme (RFC 9110 section
/// 4.2.3); of a CONNECT, which has none, clients leave the port out of Host, and the target alone says where it goes.
///
/// # Errors
/// [`ParseError::BadHost`]: one of them is no authority.
pub fn is_same_authority(scheme: Option<&str>, authority: &[u8], host: &[u8]) -> Result<bool, ParseError> {
    let (authority, host) = (Authority::parse(authority)?, Authority::parse(host)?);
    let default = match scheme {
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => Some(443),
        Some(_) => Some(80),
        None => authority.port,
    };
    Ok(authority.same(&host, default))
}

/// `host[:port]`, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Authority<'a> {
    pub(crate) host: &'a [u8],
    pub(crate) port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Reads a name, an IPv4 address or an IPv6 address in brackets, with an optional port, which may be empty. User
    /// information is refused, as RFC 9110 section 4.2.4 advises.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let end = if bytes.first() == Some(&b'[') {
            let end = bytes.iter().position(|&b| b == b']').ok_or(ParseError::BadHost)?;
            let inner = std::str::from_utf8(&bytes[1..end]).map_err(|_| ParseError::BadHost)?;
            inner.parse::<std::net::Ipv6Addr>().map_err(|_| ParseError::BadHost)?;
            end + 1
        } else {
            bytes.iter().position(|&b| !is_reg_name_byte(b)).unwrap_or(bytes.len())
        };
        let (host, rest) = bytes.split_at(end);
        let port = match rest {
            [] | [b':'] => None,
            [b':', digits @ ..] => Some(port(digits)?),
            _ => return Err(ParseError::BadHost),
        };
        if host.is_empty() { Err(ParseError::BadHost) } else { Ok(Self { host, port }) }
    }

    /// Whether both mean the same server, a missing port being `default`.
    pub(crate) fn same(&self, other: &Self, default: Option<u16>) -> bool {
        self.host.eq_ignore_ascii_case(other.host) && self.port.or(default) == other.port.or(default)
    }
}

fn port(digits: &[u8]) -> Result<u16, ParseError> {
    if digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(ParseError::BadHost);
    }
    let number = digits.iter().fold(0u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    u16::try_from(number).map_err(|_| ParseError::BadHost)
}
