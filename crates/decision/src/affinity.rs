//! What tells requests apart for consistent hashing, and cookies that keep callers together with an endpoint.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Rng;

use crate::balance::{stir, xxh64};
use crate::matching::query_value;
use crate::request::RequestView;

/// What tells requests apart (Envoy's `hash_policy`), and how uneven load may become by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashing {
    /// In order; all that say something count, up to a terminal one that does.
    pub rules: Box<[HashRule]>,
    /// Percent of an even load that an endpoint may have; absent: as much as comes.
    pub balance_factor: Option<u32>,
}

/// One thing that tells requests apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashRule {
    /// The thing.
    pub source: HashSource,
    /// Where it says something, nothing after it counts.
    pub terminal: bool,
}

/// Where a hash comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashSource {
    /// All values of this header, whose name is in lower case.
    Header(Arc<str>),
    /// A cookie.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// How long one lives that we make where there is none: zero until the browser ends, absent: none is made.
        ttl: Option<Duration>,
        /// The path of such a one; may be empty.
        path: Arc<str>,
    },
    /// The first value of this query parameter.
    QueryParameter(Arc<str>),
    /// The caller's IP address.
    SourceAddress,
}

/// What a request's hash is, and what must be answered so that the next one has the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashKey {
    /// None where no rule says anything.
    pub hash: Option<u64>,
    /// A cookie that the caller shall send from now on.
    pub cookie: Option<NewCookie>,
}

/// A cookie to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCookie {
    /// Its name.
    pub name: Arc<str>,
    /// Its value: needs no quoting.
    pub value: String,
    /// How long it lives; zero until the browser ends.
    pub max_age: Duration,
    /// Where it belongs; may be empty.
    pub path: Arc<str>,
    /// Whether browsers keep it from requests that other sites cause.
    pub strict: bool,
}

impl NewCookie {
    /// The value of `Set-Cookie` (RFC 6265 section 4.1). Scripts have no business with it, and where the caller came by
    /// TLS it does not go elsewhere.
    #[must_use]
    pub fn to_field(&self, https: bool) -> String {
        let mut field = format!("{}={}", self.name, self.value);
        if !self.max_age.is_zero() {
            let _ = write!(field, "; Max-Age={}", self.max_age.as_millis().div_ceil(1_000));
        }
        if !self.path.is_empty() {
            let _ = write!(field, "; Path={}", self.path);
        }
        field.push_str("; HttpOnly");
        if https {
            field.push_str("; Secure");
        }
        if self.strict {
            field.push_str("; SameSite=Strict");
        }
        field
    }
}

impl Hashing {
    /// What tells this request apart. An absent source is one that nobody knows, as when a request is only thought of.
    pub fn key(&self, request: &impl RequestView, source: Option<IpAddr>, rng: &mut impl Rng) -> HashKey {
        let mut key = HashKey::default();
        // One cookie is answered: were a second one made for the next request, that would lead elsewhere.
        let mut makes = true;
        for rule in &self.rules {
            let hash = match &rule.source {
                HashSource::Header(name) => of_values(request.header(name)),
                HashSource::QueryParameter(name) => {
                    query_value(request.query(), name).map(|value| xxh64(&value, 0))
                }
                HashSource::SourceAddress => source.map(of_address),
                HashSource::Cookie { name, ttl, path } => match (cookie(request, name), ttl) {
                    (Some(value), _) => Some(xxh64(value, 0)),
                    (None, Some(ttl)) if makes => {
                        let value = format!("{:016x}", rng.next_u64());
                        let hash = xxh64(value.as_bytes(), 0);
                        let (name, path) = (Arc::clone(name), Arc::clone(path));
                        key.cookie = Some(NewCookie { name, value, max_age: *ttl, path, strict: false });
                        Some(hash)
                    }
                    (None, _) => None,
                },
            };
            makes &= !matches!(&rule.source, HashSource::Cookie { ttl: Some(_), .. });
            key.hash = joined(key.hash, hash);
            if rule.terminal && hash.is_some() {
                break;
            }
        }
        key
    }

    /// The same for a connection into which nobody looks.
    #[must_use]
    pub fn of_connection(&self, source: IpAddr) -> Option<u64> {
        let told = self.rules.iter().any(|rule| rule.source == HashSource::SourceAddress);
        told.then(|| of_address(source))
    }
}

fn joined(before: Option<u64>, hash: Option<u64>) -> Option<u64> {
    match (before, hash) {
        (Some(before), Some(hash)) => Some(stir(before.rotate_left(1) ^ hash)),
        (before, hash) => before.or(hash),
    }
}

/// An IPv4 address is the same however it is written.
fn of_address(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => xxh64(&v4.octets(), 0),
        IpAddr::V6(v6) => xxh64(&v6.octets(), 0),
    }
}

fn of_values<'v>(values: impl Iterator<Item = &'v [u8]>) -> Option<u64> {
    values.map(|value| xxh64(value, 0)).fold(None, |before, hash| joined(before, Some(hash)))
}

/// The value of the first cookie of this name, see [`cookies`].
pub(crate) fn cookie<'r>(request: &'r impl RequestView, name: &'r str) -> Option<&'r [u8]> {
    cookies(request, name).next()
}

/// The values of the cookies of this name (RFC 6265 section 4.2), without quotes around them.
pub(crate) fn cookies<'r>(request: &'r impl RequestView, name: &'r str) -> impl Iterator<Item = &'r [u8]> {
    let pairs = request.header("cookie").flat_map(|field| field.split(|&byte| byte == b';'));
    pairs.map(<[u8]>::trim_ascii).filter_map(move |pair| {
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some(bare.unwrap_or(value))
    })
}

#[cfg(test)]
mod tests;
