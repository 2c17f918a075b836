//! The filters of an `HTTPRoute`.

use serde::Serialize;
use serde::ser::SerializeMap;

use super::http_match::{path_fault, refuse_repeated};
use super::mirror::HTTPRequestMirrorFilter;
use crate::codes;
use crate::decode::node::Node;
use crate::decode::text::{HeaderName, HeaderValue, PreciseHostname};
use crate::decode::{Cx, Decode, Fields, choice, record, scalars};
use crate::span::{Span, Spanned};

/// What is done to a request or its response.
#[derive(Clone, Debug, PartialEq)]
pub enum HTTPRouteFilter {
    /// Changes the request's header.
    RequestHeaderModifier(HTTPHeaderFilter),
    /// Changes the response's header.
    ResponseHeaderModifier(HTTPHeaderFilter),
    /// Answers with a redirect.
    RequestRedirect(HTTPRequestRedirectFilter),
    /// Changes the request's host or path.
    URLRewrite(HTTPURLRewriteFilter),
    /// Sends a copy elsewhere; may stand several times.
    RequestMirror(HTTPRequestMirrorFilter),
}

/// The standard's filter types, those that are built first, each with the field that configures it.
const TYPES: [&str; 8] = [
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestRedirect",
    "URLRewrite",
    "RequestMirror",
    "CORS",
    "ExternalAuth",
    "ExtensionRef",
];
const FIELDS: [&str; 8] = [
    "requestHeaderModifier",
    "responseHeaderModifier",
    "requestRedirect",
    "urlRewrite",
    "requestMirror",
    "cors",
    "externalAuth",
    "extensionRef",
];

const MIRROR: usize = 4;

impl HTTPRouteFilter {
    /// Its type, as written.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        TYPES[self.index()]
    }

    const fn index(&self) -> usize {
        match self {
            Self::RequestHeaderModifier(_) => 0,
            Self::ResponseHeaderModifier(_) => 1,
            Self::RequestRedirect(_) => 2,
            Self::URLRewrite(_) => 3,
            Self::RequestMirror(_) => MIRROR,
        }
    }

    /// The change it makes to the path, if it makes one.
    #[must_use]
    pub const fn path_modifier(&self) -> Option<&HTTPPathModifier> {
        match self {
            Self::RequestRedirect(redirect) => redirect.path.as_ref(),
            Self::URLRewrite(rewrite) => rewrite.path.as_ref(),
            Self::RequestHeaderModifier(_) | Self::ResponseHeaderModifier(_) | Self::RequestMirror(_) => None,
        }
    }

    /// The copy it sends, if it sends one.
    #[must_use]
    pub const fn mirror(&self) -> Option<&HTTPRequestMirrorFilter> {
        match self {
            Self::RequestMirror(mirror) => Some(mirror),
            Self::RequestHeaderModifier(_)
            | Self::ResponseHeaderModifier(_)
            | Self::RequestRedirect(_)
            | Self::URLRewrite(_) => None,
        }
    }
}

impl Decode for HTTPRouteFilter {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let mut fields = Fields::open(node, cx)?;
        let Some(type_node) = fields.take("type") else {
            return fields.missing(cx, "type");
        };
        let index = cx.in_field("type", |cx| scalars::word(type_node, cx, &TYPES))?;
        for (other, field) in FIELDS.into_iter().enumerate().filter(|(other, _)| *other != index) {
            if let Some(stray) = fields.take(field) {
                let message = format!("a filter of type `{}` has no `{field}`", TYPES[index]);
                cx.error(stray.span, codes::CONFLICTING_FIELDS, message).help =
                    Some(format!("write `type: {}`, or remove `{field}`", TYPES[other]));
            }
        }
        let read = match index {
            0 => read_config(&mut fields, cx, index).map(Self::RequestHeaderModifier),
            1 => read_config(&mut fields, cx, index).map(Self::ResponseHeaderModifier),
            2 => read_config(&mut fields, cx, index).map(Self::RequestRedirect),
            3 => read_config(&mut fields, cx, index).map(Self::URLRewrite),
            MIRROR => read_config(&mut fields, cx, index).map(Self::RequestMirror),
            _ => {
                let message =
                    format!("filter `{}` is not implemented by this version of Meshwork", TYPES[index]);
                cx.error(type_node.span, codes::NOT_IMPLEMENTED, message).help =
                    Some("remove the filter, if the rule is right without it".to_owned());
                fields.take(FIELDS[index]);
                None
            }
        };
        fields.close(cx).and(read)
    }
}

fn read_config<T: Decode>(fields: &mut Fields<'_>, cx: &mut Cx, index: usize) -> Option<T> {
    let Some(config) = fields.take(FIELDS[index]) else {
        let message = format!("a filter of type `{}` needs `{}`", TYPES[index], FIELDS[index]);
        cx.error(fields.span(), codes::CONFLICTING_FIELDS, message);
        return None;
    };
    cx.in_field(FIELDS[index], |cx| T::decode(config, cx))
}

impl Serialize for HTTPRouteFilter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("type", self.type_name())?;
        let field = FIELDS[self.index()];
        match self {
            Self::RequestHeaderModifier(config) | Self::ResponseHeaderModifier(config) => {
                map.serialize_entry(field, config)?;
            }
            Self::RequestRedirect(config) => map.serialize_entry(field, config)?,
            Self::URLRewrite(config) => map.serialize_entry(field, config)?,
            Self::RequestMirror(config) => map.serialize_entry(field, config)?,
        }
        map.end()
    }
}

record! {
    /// Changes to a header, in this order: set, add, remove.
    pub struct HTTPHeaderFilter {
        /// Fields that replace those of their name.
        pub set: Vec<Spanned<HTTPHeader>> [0..=16],
        /// Fields that are added to those of their name.
        pub add: Vec<Spanned<HTTPHeader>> [0..=16],
        /// Names of fields that are removed; case does not matter.
        pub remove: Vec<Spanned<HeaderName>> [0..=16],
    }
}

record! {
    /// A header field.
    pub struct HTTPHeader {
        /// Its name; case does not matter.
        pub name: HeaderName,
        /// Its value.
        pub value: HeaderValue,
    }
}

record! {
    /// A redirect; what is absent is the request's.
    pub struct HTTPRequestRedirectFilter {
        /// The scheme of the new location.
        pub scheme: Option<RedirectScheme>,
        /// Its host.
        pub hostname: Option<PreciseHostname>,
        /// The change of the path.
        pub path: Option<HTTPPathModifier>,
        /// Its port; when absent, that of the scheme if one is given, else the listener's.
        pub port: Option<u16> [1..=65_535],
        /// The status.
        pub status_code: RedirectStatus as "statusCode" = RedirectStatus::default(),
    }
}

choice! {
    /// The scheme of a redirect.
    pub enum RedirectScheme {
        /// `http`
        Http = "http",
        /// `https`
        Https = "https",
    }
}

/// The status of a redirect: 301, 302, 303, 307 or 308.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct RedirectStatus(u16);

impl RedirectStatus {
    const ALLOWED: [u16; 5] = [301, 302, 303, 307, 308];

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for RedirectStatus {
    fn default() -> Self {
        Self(302)
    }
}

impl Decode for RedirectStatus {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let status = u16::decode(node, cx)?;
        if Self::ALLOWED.contains(&status) {
            return Some(Self(status));
        }
        let message = format!("`{}` cannot be {status}; it is one of 301, 302, 303, 307, 308", cx.path());
        cx.error(node.span, codes::UNKNOWN_VALUE, message);
        None
    }
}

record! {
    /// A change of where a request goes; what is absent stays.
    pub struct HTTPURLRewriteFilter {
        /// The new host.
        pub hostname: Option<PreciseHostname>,
        /// The change of the path.
        pub path: Option<HTTPPathModifier>,
    }
}

/// A change of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type")]
pub enum HTTPPathModifier {
    /// The path becomes this.
    ReplaceFullPath {
        /// The new path.
        #[serde(rename = "replaceFullPath")]
        path: String,
    },
    /// The prefix that matched becomes this.
    ReplacePrefixMatch {
        /// The new prefix.
        #[serde(rename = "replacePrefixMatch")]
        prefix: String,
    },
}

impl Decode for HTTPPathModifier {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        const TYPES: [&str; 2] = ["ReplaceFullPath", "ReplacePrefixMatch"];
        const FIELDS: [&str; 2] = ["replaceFullPath", "replacePrefixMatch"];
        let mut fields = Fields::open(node, cx)?;
        let Some(type_node) = fields.take("type") else {
            return fields.missing(cx, "type");
        };
        let index = cx.in_field("type", |cx| scalars::word(type_node, cx, &TYPES))?;
        for field in FIELDS {
            fields.bound(cx, field, 0..=1024);
        }
        let (own, stray) = (FIELDS[index], FIELDS[1 - index]);
        if let Some(stray_node) = fields.take(stray) {
            let message = format!("a path modifier of type `{}` has no `{stray}`", TYPES[index]);
            cx.error(stray_node.span, codes::CONFLICTING_FIELDS, message).help =
                Some(format!("write `type: {}`, or remove `{stray}`", TYPES[1 - index]));
        }
        let path: Option<String> = match fields.take(own) {
            Some(value) => cx.in_field(own, |cx| replacement(value, cx)),
            None => {
                let message = format!("a path modifier of type `{}` needs `{own}`", TYPES[index]);
                cx.error(fields.span(), codes::CONFLICTING_FIELDS, message);
                None
            }
        };
        fields.close(cx)?;
        let path = path?;
        Some(if index == 0 {
            Self::ReplaceFullPath { path }
        } else {
            Self::ReplacePrefixMatch { prefix: path }
        })
    }
}

/// A path that becomes part of a request or of a `Location`: it must not smuggle a line break or a query.
fn replacement(node: &Node, cx: &mut Cx) -> Option<String> {
    let path = String::decode(node, cx)?;
    // An empty replacement of a prefix is allowed and means `/`; a relative one is made absolute.
    let absolute = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
    if path.is_empty() || path_fault(&absolute).is_none() {
        return Some(path);
    }
    let why = path_fault(&absolute).unwrap_or_default();
    let message = format!("`{}` cannot be `{}`: {why}", cx.path(), super::shown(&path));
    cx.error(node.span, codes::INVALID_VALUE, message);
    None
}

/// The rules of a list of filters, be it a rule's or a backend's.
pub(super) fn validate(filters: &[Spanned<HTTPRouteFilter>], cx: &mut Cx) {
    let mut seen: Vec<usize> = Vec::new();
    for (index, filter) in filters.iter().enumerate() {
        if filter.index() != MIRROR && seen.contains(&filter.index()) {
            let message = format!("filter `{}` stands in `{}` twice", filter.type_name(), cx.path());
            cx.error(filter.span, codes::DUPLICATE_ENTRY, message).help =
                Some("join the two into one".to_owned());
        }
        seen.push(filter.index());
        if let HTTPRouteFilter::RequestHeaderModifier(edits)
        | HTTPRouteFilter::ResponseHeaderModifier(edits) = &filter.inner
        {
            cx.in_item(index, |cx| cx.in_field(FIELDS[filter.index()], |cx| edits.validate(cx)));
        }
        if let HTTPRouteFilter::RequestMirror(mirror) = &filter.inner {
            cx.in_item(index, |cx| cx.in_field(FIELDS[MIRROR], |cx| mirror.validate(cx)));
        }
    }
    let find = |wanted: fn(&HTTPRouteFilter) -> bool| filters.iter().find(|filter| wanted(filter));
    let redirect = find(|filter| matches!(filter, HTTPRouteFilter::RequestRedirect(_)));
    let rewrite = find(|filter| matches!(filter, HTTPRouteFilter::URLRewrite(_)));
    if let (Some(redirect), Some(rewrite)) = (redirect, rewrite) {
        let later: Span = redirect.span.max(rewrite.span);
        let message = format!("`{}` has both `RequestRedirect` and `URLRewrite`", cx.path());
        cx.error(later, codes::CONFLICTING_FIELDS, message).help =
            Some("a redirect changes host and path itself: keep one of them".to_owned());
    }
    let mirror = find(|filter| matches!(filter, HTTPRouteFilter::RequestMirror(_)));
    if let (Some(redirect), Some(mirror)) = (redirect, mirror) {
        let later: Span = redirect.span.max(mirror.span);
        let message = format!("`{}` has both `RequestRedirect` and `RequestMirror`", cx.path());
        cx.error(later, codes::CONFLICTING_FIELDS, message).help = Some(
            "a redirect is answered here and nothing is sent on that could be copied: keep one of them"
                .to_owned(),
        );
    }
}

/// Fields that frame a message or belong to a connection: each hop writes its own (RFC 9110 section 7.6.1), and proxies
/// refuse a filter on them.
const FRAMING: [&str; 5] = ["connection", "content-length", "te", "transfer-encoding", "upgrade"];

fn refuse_framing(name: &HeaderName, span: Span, cx: &mut Cx) {
    if FRAMING.iter().any(|framing| name.eq_ignore_ascii_case(framing)) {
        let message =
            format!("`{}` is `{name}`, which frames the message and is set by the proxy", cx.path());
        cx.error(span, codes::INVALID_VALUE, message).help = Some("choose another header".to_owned());
    }
}

impl HTTPHeaderFilter {
    fn validate(&self, cx: &mut Cx) {
        let lower = |name: &HeaderName| name.to_ascii_lowercase();
        for (field, headers) in [("set", &self.set), ("add", &self.add)] {
            let names = headers.iter().map(|header| (&header.name, header.span));
            cx.in_field(field, |cx| refuse_repeated(names, lower, "header", cx));
        }
        let names = self.remove.iter().map(|name| (&name.inner, name.span));
        cx.in_field("remove", |cx| refuse_repeated(names, lower, "header", cx));
        for (field, headers) in [("set", &self.set), ("add", &self.add)] {
            cx.in_field(field, |cx| {
                for (index, header) in headers.iter().enumerate() {
                    cx.in_item(index, |cx| refuse_framing(&header.name, header.span, cx));
                }
            });
        }
        cx.in_field("remove", |cx| {
            for (index, name) in self.remove.iter().enumerate() {
                cx.in_item(index, |cx| refuse_framing(&name.inner, name.span, cx));
            }
        });
    }
}
