//! The matches of an `HTTPRoute`.

use std::collections::HashSet;

use crate::codes;
use crate::decode::text::HeaderName;
use crate::decode::{Cx, choice, record};
use crate::span::{Span, Spanned};

record! {
    /// What a request must be like: all that is said here must hold.
    pub struct HTTPRouteMatch {
        /// Its path.
        pub path: Spanned<HTTPPathMatch> = Spanned::unwritten(HTTPPathMatch::default()),
        /// Its header fields, all of them.
        pub headers: Vec<Spanned<HTTPHeaderMatch>> [0..=16],
        /// Its query parameters, all of them.
        pub query_params: Vec<Spanned<HTTPQueryParamMatch>> as "queryParams" [0..=16],
        /// Its method; any when absent.
        pub method: Option<HTTPMethod>,
    }
}

impl Default for HTTPRouteMatch {
    /// Every request.
    fn default() -> Self {
        Self {
            path: Spanned::unwritten(HTTPPathMatch::default()),
            headers: Vec::new(),
            query_params: Vec::new(),
            method: None,
        }
    }
}

record! {
    /// How a path must be.
    pub struct HTTPPathMatch {
        /// How it is compared.
        pub match_type: PathMatchType as "type" = PathMatchType::PathPrefix,
        /// With what.
        pub value: String [0..=1024] = "/".to_owned(),
    }
}

impl Default for HTTPPathMatch {
    /// Every path.
    fn default() -> Self {
        Self { match_type: PathMatchType::PathPrefix, value: "/".to_owned() }
    }
}

choice! {
    /// How a path is compared.
    pub enum PathMatchType {
        /// The whole path, case and all.
        Exact = "Exact",
        /// Its first segments: `/a` matches `/a` and `/a/b`, not `/ab`.
        PathPrefix = "PathPrefix",
        /// The whole path by a regular expression (RE2 syntax).
        RegularExpression = "RegularExpression",
    }
}

record! {
    /// How a header field must be.
    pub struct HTTPHeaderMatch {
        /// How it is compared.
        pub match_type: ValueMatchType as "type" = ValueMatchType::Exact,
        /// Its name; case does not matter.
        pub name: HeaderName,
        /// Its value.
        pub value: String [1..=4096],
    }
}

record! {
    /// How a query parameter must be.
    pub struct HTTPQueryParamMatch {
        /// How it is compared.
        pub match_type: ValueMatchType as "type" = ValueMatchType::Exact,
        /// Its name; case matters.
        pub name: HeaderName,
        /// Its value.
        pub value: String [1..=1024],
    }
}

choice! {
    /// How a value is compared.
    pub enum ValueMatchType {
        /// The whole value.
        Exact = "Exact",
        /// The whole value by a regular expression (RE2 syntax).
        RegularExpression = "RegularExpression",
    }
}

choice! {
    /// A method.
    pub enum HTTPMethod {
        /// GET
        Get = "GET",
        /// HEAD
        Head = "HEAD",
        /// POST
        Post = "POST",
        /// PUT
        Put = "PUT",
        /// DELETE
        Delete = "DELETE",
        /// CONNECT
        Connect = "CONNECT",
        /// OPTIONS
        Options = "OPTIONS",
        /// TRACE
        Trace = "TRACE",
        /// PATCH
        Patch = "PATCH",
    }
}

impl HTTPRouteMatch {
    pub(super) fn validate(&self, cx: &mut Cx) {
        cx.in_field("path", |cx| self.path.validate(self.path.span, cx));
        for header in &self.headers {
            if header.match_type == ValueMatchType::RegularExpression {
                check_regex(&header.value, header.span, cx);
            }
        }
        for param in &self.query_params {
            if param.match_type == ValueMatchType::RegularExpression {
                check_regex(&param.value, param.span, cx);
            }
        }
        let headers = self.headers.iter().map(|header| (&header.name, header.span));
        refuse_repeated(headers, |name| name.to_ascii_lowercase(), "header", cx);
        let params = self.query_params.iter().map(|param| (&param.name, param.span));
        refuse_repeated(params, |name| name.to_string(), "query parameter", cx);
    }
}

/// Reports each name that equals an earlier one: of two, only the first would count.
pub(super) fn refuse_repeated<'n>(
    names: impl Iterator<Item = (&'n HeaderName, Span)>,
    measure: impl Fn(&HeaderName) -> String,
    what: &str,
    cx: &mut Cx,
) {
    let mut seen = HashSet::new();
    for (name, span) in names {
        if !seen.insert(measure(name)) {
            let message = format!("`{}` names {what} `{name}` twice", cx.path());
            cx.error(span, codes::DUPLICATE_ENTRY, message).help = Some("keep one of them".to_owned());
        }
    }
}

impl HTTPPathMatch {
    fn validate(&self, span: Span, cx: &mut Cx) {
        if self.match_type == PathMatchType::RegularExpression {
            return check_regex(&self.value, span, cx);
        }
        if let Some(why) = path_fault(&self.value) {
            let message =
                format!("`{}` of type {} cannot be `{}`: {why}", cx.path(), self.match_type, self.value);
            cx.error(span, codes::INVALID_VALUE, message);
        }
    }
}

/// What is wrong with a path that is compared as text: one that a normalised request can never have.
pub(super) fn path_fault(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some("it must begin with `/`".to_owned());
    }
    if let Some(found) = ["//", "/./", "/../", "%2f", "%2F", "#"].into_iter().find(|part| path.contains(part))
    {
        return Some(format!("it must not contain `{found}`"));
    }
    if let Some(found) = ["/..", "/."].into_iter().find(|end| path.ends_with(end)) {
        return Some(format!("it must not end with `{found}`"));
    }
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let escaped = byte == b'%'
            && [bytes.next(), bytes.next()].iter().all(|b| b.is_some_and(|b| b.is_ascii_hexdigit()));
        if !(escaped || byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte)) {
            return Some(
                "characters other than `A-Za-z0-9-/._~!$&'()*+,;=:@` must be percent-encoded".to_owned(),
            );
        }
    }
    None
}

/// Bytes that a compiled expression may take; a larger one is a mistake or an attack.
const REGEX_BYTES: usize = 1 << 20;

fn check_regex(pattern: &str, span: Span, cx: &mut Cx) {
    let built = regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(REGEX_BYTES).build();
    let Err(error) = built else { return };
    let why = match &error {
        regex::Error::CompiledTooBig(limit) => format!("it needs more than {limit} bytes when compiled"),
        // The last line says what is wrong; those before draw the pattern, which our wrapping shifts.
        other => {
            other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    };
    let message = format!("`{}` is no regular expression: {why}", super::shown(pattern));
    cx.error(span, codes::INVALID_REGEX, message).help =
        Some("write RE2 syntax; look-around and back-references do not exist in it".to_owned());
}
