//! Host names and the order in which patterns of them apply: exact, then the longest wildcard, then any.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::FixedState;
use smallvec::SmallVec;

/// A pattern for hosts, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// `shop.example.com`
    Exact(Arc<str>),
    /// `*.example.com`, kept as `.example.com`: one or more labels before it.
    Wildcard(Arc<str>),
    /// Every host.
    Any,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no host name; write a DNS name, optionally with `*.` before it")]
pub struct HostPatternError(String);

impl HostPattern {
    /// Reads a pattern; empty or `*` is [`HostPattern::Any`].
    ///
    /// # Errors
    /// When the text is no DNS name with an optional leading `*.`.
    pub fn parse(text: &str) -> Result<Self, HostPatternError> {
        if text.is_empty() || text == "*" {
            return Ok(Self::Any);
        }
        let lower = text.to_ascii_lowercase();
        let (name, wild) = match lower.strip_prefix('*') {
            Some(rest) => (rest.strip_prefix('.').ok_or_else(|| HostPatternError(text.to_owned()))?, true),
            None => (lower.as_str(), false),
        };
        let label = |l: &str| {
            !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let literal = name.starts_with('[') && name.ends_with(']');
        if name.len() > 253 || !(literal || name.split('.').all(label)) {
            return Err(HostPatternError(text.to_owned()));
        }
        Ok(if wild { Self::Wildcard(lower[1..].into()) } else { Self::Exact(lower.into()) })
    }

    /// Sorts before all others.
    pub(crate) fn lowest() -> Self {
        Self::Exact("".into())
    }

    /// Whether a normalized host fits.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Wildcard(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
            Self::Any => true,
        }
    }

    /// Higher is more specific: exact, then the longer wildcard, then any.
    #[must_use]
    pub fn specificity(&self) -> (u8, usize) {
        match self {
            Self::Exact(name) => (2, name.len()),
            Self::Wildcard(suffix) => (1, suffix.len()),
            Self::Any => (0, 0),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// A host as patterns see it: lower case, without a final dot. Only hosts that need it are copied.
pub(crate) struct Host<'r> {
    borrowed: &'r str,
    copy: SmallVec<[u8; 128]>,
}

impl<'r> Host<'r> {
    pub(crate) fn new(host: &'r str) -> Self {
        let borrowed = host.strip_suffix('.').unwrap_or(host);
        let mut copy = SmallVec::new();
        if borrowed.bytes().any(|b| b.is_ascii_uppercase()) {
            copy.extend(borrowed.bytes().map(|b| b.to_ascii_lowercase()));
        }
        Self { borrowed, copy }
    }

    pub(crate) fn as_str(&self) -> &str {
        if self.copy.is_empty() {
            return self.borrowed;
        }
        std::str::from_utf8(&self.copy).expect("changing the case of ASCII keeps UTF-8")
    }
}

/// Values by host pattern, found in the order of specificity.
#[derive(Clone, Debug)]
pub(crate) struct HostMap<T> {
    exact: HashMap<Arc<str>, T, FixedState>,
    wildcard: HashMap<Arc<str>, T, FixedState>,
    any: Option<T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: HashMap::default(), wildcard: HashMap::default(), any: None }
    }
}

impl<T> HostMap<T> {
    pub(crate) fn insert(&mut self, pattern: &HostPattern, value: T) {
        match pattern {
            HostPattern::Exact(name) => drop(self.exact.insert(Arc::clone(name), value)),
            HostPattern::Wildcard(suffix) => drop(self.wildcard.insert(Arc::clone(suffix), value)),
            HostPattern::Any => self.any = Some(value),
        }
    }

    pub(crate) fn remove(&mut self, pattern: &HostPattern) {
        match pattern {
            HostPattern::Exact(name) => drop(self.exact.remove(name)),
            HostPattern::Wildcard(suffix) => drop(self.wildcard.remove(suffix)),
            HostPattern::Any => self.any = None,
        }
    }

    pub(crate) fn get(&self, pattern: &HostPattern) -> Option<&T> {
        match pattern {
            HostPattern::Exact(name) => self.exact.get(name),
            HostPattern::Wildcard(suffix) => self.wildcard.get(suffix),
            HostPattern::Any => self.any.as_ref(),
        }
    }

    /// All values that fit a normalized host, the most specific first.
    pub(crate) fn matching(&self, host: &str) -> impl Iterator<Item = &T> {
        let exact = if self.exact.is_empty() { None } else { self.exact.get(host) };
        let wild = (!self.wildcard.is_empty())
            .then(|| host.match_indices('.').filter(|&(at, _)| at > 0))
            .into_iter()
            .flatten()
            .filter_map(move |(at, _)| self.wildcard.get(&host[at..]));
        exact.into_iter().chain(wild).chain(self.any.as_ref())
    }

    /// All patterns, in their order.
    pub(crate) fn patterns(&self) -> Vec<HostPattern> {
        let exact = self.exact.keys().map(|name| HostPattern::Exact(Arc::clone(name)));
        let wildcard = self.wildcard.keys().map(|suffix| HostPattern::Wildcard(Arc::clone(suffix)));
        let any = self.any.is_some().then_some(HostPattern::Any);
        let mut all: Vec<_> = exact.chain(wildcard).chain(any).collect();
        all.sort();
        all
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.any.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_need_a_label_of_their_own() {
        let wild = HostPattern::parse("*.Example.com").unwrap();
        assert!(wild.matches("a.example.com") && wild.matches("a.b.example.com"));
        assert!(
            !wild.matches("example.com") && !wild.matches(".example.com") && !wild.matches("badexample.com")
        );
        assert_eq!(wild.to_string(), "*.example.com");
    }

    #[test]
    fn refuses_what_is_no_host() {
        for bad in ["*example.com", "a..b", "a b", "*.", "a/b", "*.*.com", "a:80"] {
            assert!(HostPattern::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(HostPattern::parse("*").unwrap(), HostPattern::Any);
    }

    #[test]
    fn finds_the_most_specific_first() {
        let mut map = HostMap::default();
        for text in ["", "*.com", "*.example.com", "a.example.com"] {
            map.insert(&HostPattern::parse(text).unwrap(), text);
        }
        let all = |host: &str| map.matching(Host::new(host).as_str()).copied().collect::<Vec<_>>();
        assert_eq!(all("A.Example.COM."), ["a.example.com", "*.example.com", "*.com", ""]);
        assert_eq!(all("example.com"), ["*.com", ""]);
        assert_eq!(all("org"), [""]);
        assert_eq!(all(".example.com"), ["*.com", ""], "an empty first label is no label");
    }
}
