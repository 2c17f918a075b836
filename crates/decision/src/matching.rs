//! One match of a rule: path, method, fields, query (Gateway API, `HTTPRouteMatch`). All of its parts must hold.

use std::borrow::Cow;
use std::fmt;

use regex::{Regex, RegexBuilder};
use smallvec::SmallVec;

use crate::request::RequestView;

/// A regular expression that must match the whole value.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
}

/// The compiled size that one expression may have, and the size of its lazily built automaton.
const REGEX_BYTES: usize = 256 * 1024;

impl Pattern {
    /// Compiles an expression in RE2's syntax.
    ///
    /// # Errors
    /// When it does not parse or compiles to more than 256 KiB.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let build = |pattern: &str| {
            RegexBuilder::new(pattern).size_limit(REGEX_BYTES).dfa_size_limit(REGEX_BYTES).build()
        };
        // The bare text is parsed first: `a)|(b` must not become valid by being put in parentheses.
        build(text)
            .and_then(|_| build(&format!("^(?:{text})$")))
            .map(|regex| Self { text: text.into(), regex })
            .map_err(|error| PatternError { text: text.to_owned(), error: Box::new(error) })
    }

    /// The expression as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_match(&self, value: &str) -> bool {
        self.regex.is_match(value)
    }
}

/// Why an expression is refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "regular expression `{text}` is refused: {error}; write RE2 syntax without look-around or back-references"
)]
pub struct PatternError {
    text: String,
    error: Box<regex::Error>,
}

/// How a path must look.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(Box<str>),
    /// Whole segments from the start; kept without a final `/`, so that `/` is empty.
    Prefix(Box<str>),
    /// The whole path fits an expression.
    Regex(Pattern),
}

impl PathMatch {
    /// A prefix by whole segments; a final `/` makes no difference.
    #[must_use]
    pub fn prefix(text: &str) -> Self {
        Self::Prefix(text.trim_end_matches('/').into())
    }

    /// What the index must agree with, and explanations ask.
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => **text == *path,
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(pattern) => pattern.is_match(path),
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "path exactly `{text}`"),
            Self::Prefix(text) if text.is_empty() => f.write_str("any path"),
            Self::Prefix(text) => write!(f, "path below `{text}`"),
            Self::Regex(pattern) => write!(f, "path like `{}`", pattern.as_str()),
        }
    }
}

/// How a value must look.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// The whole value.
    Exact(Box<str>),
    /// The whole value fits an expression.
    Regex(Pattern),
}

impl ValueMatch {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Regex(pattern) => std::str::from_utf8(value).is_ok_and(|v| pattern.is_match(v)),
        }
    }
}

/// A field or a query parameter, and how its value must look.
#[derive(Clone, Debug)]
pub struct FieldMatch {
    /// Header names in lower case; query parameters as they are.
    pub name: Box<str>,
    /// The value.
    pub value: ValueMatch,
}

/// One match of a rule.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// The path.
    pub path: PathMatch,
    /// The method; absent: any.
    pub method: Option<Box<str>>,
    /// All of these fields.
    pub headers: Box<[FieldMatch]>,
    /// All of these query parameters.
    pub query: Box<[FieldMatch]>,
}

/// Which part of a match a request does not meet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mismatch<'m> {
    Method(&'m str),
    Header(&'m FieldMatch),
    Query(&'m FieldMatch),
}

impl RouteMatch {
    /// Whether something other than the path must hold.
    pub(crate) fn is_constrained(&self) -> bool {
        self.method.is_some() || !self.headers.is_empty() || !self.query.is_empty()
    }

    /// Whether everything but the path holds.
    pub(crate) fn check_rest(&self, request: &impl RequestView) -> Result<(), Mismatch<'_>> {
        if let Some(method) = &self.method
            && **method != *request.method()
        {
            return Err(Mismatch::Method(method));
        }
        if let Some(field) = self.headers.iter().find(|f| !header_matches(f, request)) {
            return Err(Mismatch::Header(field));
        }
        match self.query.iter().find(|f| !query_matches(f, request.query())) {
            Some(field) => Err(Mismatch::Query(field)),
            None => Ok(()),
        }
    }
}

/// A field that comes several times is matched as one list (RFC 9110, 5.3).
fn header_matches(field: &FieldMatch, request: &impl RequestView) -> bool {
    let mut values = request.header(&field.name);
    let Some(first) = values.next() else { return false };
    let Some(second) = values.next() else { return field.value.matches(first) };
    let mut joined: SmallVec<[u8; 256]> = SmallVec::from_slice(first);
    for value in std::iter::once(second).chain(values) {
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(value);
    }
    field.value.matches(&joined)
}

/// Only the first of several parameters of a name counts, as Gateway API recommends.
fn query_matches(field: &FieldMatch, query: Option<&str>) -> bool {
    query_value(query, &field.name).is_some_and(|value| field.value.matches(&value))
}

/// The value of the first parameter of this name, decoded.
pub(crate) fn query_value<'q>(query: Option<&'q str>, name: &str) -> Option<Cow<'q, [u8]>> {
    query
        .into_iter()
        .flat_map(|q| q.split('&'))
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(written, _)| *form_decode(written) == *name.as_bytes())
        .map(|(_, value)| form_decode(value))
}

/// Percent-decoding of `application/x-www-form-urlencoded`; copies only what is encoded. A `%` that begins no
/// escape stands for itself.
fn form_decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => out.push(b' '),
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                out.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = after;
            }
            (byte, _) => out.push(*byte),
        }
    }
    Cow::Owned(out)
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |v: &ValueMatch| match v {
            ValueMatch::Exact(text) => format!("`{text}`"),
            ValueMatch::Regex(pattern) => format!("like `{}`", pattern.as_str()),
        };
        match self {
            Self::Method(method) => write!(f, "the method is not {method}"),
            Self::Header(field) => write!(f, "header {} is not {}", field.name, value(&field.value)),
            Self::Query(field) => write!(f, "query parameter {} is not {}", field.name, value(&field.value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::OwnedRequest;

    fn field(name: &str, value: ValueMatch) -> FieldMatch {
        FieldMatch { name: name.into(), value }
    }

    #[test]
    fn prefixes_match_whole_segments() {
        for (prefix, path, want) in [
            ("/foo", "/foo", true),
            ("/foo", "/foo/", true),
            ("/foo", "/foo/bar", true),
            ("/foo", "/foobar", false),
            ("/foo/", "/foo", true),
            ("/foo/", "/foo/bar", true),
            ("/foo", "/Foo", false),
            ("/", "/anything", true),
            ("/", "*", false),
        ] {
            assert_eq!(PathMatch::prefix(prefix).matches(path), want, "{prefix} {path}");
        }
    }

    #[test]
    fn expressions_match_the_whole_value_and_cannot_break_out() {
        let pattern = Pattern::new("/v[0-9]+|/x").unwrap();
        assert!(pattern.is_match("/v12") && pattern.is_match("/x"));
        assert!(!pattern.is_match("/v12/") && !pattern.is_match("a/x") && !pattern.is_match("/x\n"));
        assert!(Pattern::new("a)|(?:b").is_err());
        assert!(Pattern::new("(a{1000}){1000}").is_err(), "too big");
    }

    #[test]
    fn repeated_headers_are_one_list() {
        let request = OwnedRequest::get("h", "/").with_header("X-A", "1").with_header("x-a", "2");
        assert!(header_matches(&field("x-a", ValueMatch::Exact("1, 2".into())), &request));
        assert!(!header_matches(&field("x-a", ValueMatch::Exact("1".into())), &request));
        assert!(!header_matches(&field("x-b", ValueMatch::Regex(Pattern::new(".*").unwrap())), &request));
    }

    #[test]
    fn the_first_query_parameter_counts_decoded() {
        let exact = |name: &str, value: &str| field(name, ValueMatch::Exact(value.into()));
        let query = Some("a=1&a=2&sp%61ce=x+y%2Fz&flag&bad=%zz%4");
        assert!(query_matches(&exact("a", "1"), query));
        assert!(!query_matches(&exact("a", "2"), query));
        assert!(query_matches(&exact("space", "x y/z"), query));
        assert!(query_matches(&exact("flag", ""), query));
        assert!(query_matches(&exact("bad", "%zz%4"), query));
        assert!(!query_matches(&exact("none", ""), query) && !query_matches(&exact("a", "1"), None));
    }
}
