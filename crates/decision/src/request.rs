//! What a decision may look at: one request, seen through a trait so that nothing is copied to be decided on.

use meshwork_base::SpiffeId;

/// The scheme a request came with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plaintext.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The well-known port.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A request as routing, authorization and filters see it. Implementations borrow; nothing here allocates.
pub trait RequestView {
    /// The method, as sent (methods are case-sensitive).
    fn method(&self) -> &str;
    /// The scheme.
    fn scheme(&self) -> Scheme;
    /// The host of the authority without its port, in any case; IPv6 literals keep their brackets.
    fn host(&self) -> &str;
    /// The port that the authority names, if it names one.
    fn port(&self) -> Option<u16>;
    /// The path of the target, beginning with `/` (or `*`), without the query.
    fn path(&self) -> &str;
    /// What follows the first `?`, if there is one.
    fn query(&self) -> Option<&str>;
    /// All values of a field, in order; `name` is in lower case.
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a;
    /// Who the peer proved to be.
    fn peer(&self) -> Option<&SpiffeId>;
}

/// A request that owns its parts: for `explain`, `plan` and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedRequest {
    /// See [`RequestView::method`].
    pub method: String,
    /// See [`RequestView::scheme`].
    pub scheme: Scheme,
    /// See [`RequestView::host`].
    pub host: String,
    /// See [`RequestView::port`].
    pub port: Option<u16>,
    /// See [`RequestView::path`].
    pub path: String,
    /// See [`RequestView::query`].
    pub query: Option<String>,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// See [`RequestView::peer`].
    pub peer: Option<SpiffeId>,
}

impl OwnedRequest {
    /// A plaintext `GET` of `target` (path with optional query) at `authority` (host with optional port).
    #[must_use]
    pub fn get(authority: &str, target: &str) -> Self {
        let (host, port) = split_authority(authority);
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        Self {
            method: "GET".to_owned(),
            host: host.to_owned(),
            port,
            path: path.to_owned(),
            query,
            ..Self::default()
        }
    }

    /// With another method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    /// With one more field.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    /// From this peer.
    #[must_use]
    pub fn from_peer(mut self, peer: SpiffeId) -> Self {
        self.peer = Some(peer);
        self
    }
}

impl RequestView for OwnedRequest {
    fn method(&self) -> &str {
        &self.method
    }
    fn scheme(&self) -> Scheme {
        self.scheme
    }
    fn host(&self) -> &str {
        &self.host
    }
    fn port(&self) -> Option<u16> {
        self.port
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.headers.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_bytes())
    }
    fn peer(&self) -> Option<&SpiffeId> {
        self.peer.as_ref()
    }
}

/// Host and port of an authority: `example.com:8080`, `[::1]:80`, `example.com`. What follows the last colon
/// outside brackets counts as a port only when it is one.
#[must_use]
pub fn split_authority(authority: &str) -> (&str, Option<u16>) {
    let Some((host, port)) = authority.rsplit_once(':') else { return (authority, None) };
    if host.contains(':') && !host.ends_with(']') {
        return (authority, None);
    }
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match (digits, port.parse()) {
        (true, Ok(number)) => (host, Some(number)),
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_authorities_apart() {
        for (text, want) in [
            ("example.com", ("example.com", None)),
            ("example.com:8080", ("example.com", Some(8080))),
            ("[::1]:80", ("[::1]", Some(80))),
            ("[::1]", ("[::1]", None)),
            ("127.0.0.1:1", ("127.0.0.1", Some(1))),
            ("a:99999", ("a:99999", None)),
            ("a:+1", ("a:+1", None)),
        ] {
            assert_eq!(split_authority(text), want, "{text}");
        }
    }
}
