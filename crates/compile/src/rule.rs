//! Rules of routes as messages: every default written out, but for those of `retry`, which policies go before.

use meshwork_base::ContentHash;
use meshwork_messages::v1;
use meshwork_messages::v1::retry::On;
use meshwork_messages::v1::{filter, path_edit, string_match};
use meshwork_resources::{
    GatewayDuration, HTTPHeader, HTTPHeaderFilter, HTTPPathModifier, HTTPRouteFilter, HTTPRouteMatch,
    HTTPRouteRetry, HTTPRouteRule, LongDuration, PathMatchType, SessionPersistence, SessionPersistenceType,
    Spanned, ValueMatchType,
};

/// A rule without its backends. `place` names it where nobody did.
pub(crate) fn rule(spec: &HTTPRouteRule, place: impl Fn() -> String) -> v1::Rule {
    let timeouts = spec.timeouts.as_ref();
    v1::Rule {
        name: spec.name.as_ref().map(|name| name.to_string()).unwrap_or_default(),
        matches: spec.matches.iter().map(|found| r#match(found)).collect(),
        filters: filters(&spec.filters),
        backends: Vec::new(),
        mirrors: Vec::new(),
        request_timeout_ms: timeouts.and_then(|t| t.request).map_or(0, long_timeout_ms),
        backend_request_timeout_ms: timeouts.and_then(|t| t.backend_request).map_or(0, long_timeout_ms),
        retry: spec.retry.as_ref().map(|found| retry(found)),
        session: spec.session_persistence.as_ref().map(|found| session(found, place)),
    }
}

/// A cookie or header that nobody named has the name of its rule, as a fingerprint.
fn session(spec: &SessionPersistence, place: impl Fn() -> String) -> v1::SessionPersistence {
    use v1::session_persistence::Carrier;
    let carrier = match spec.persistence_type {
        SessionPersistenceType::Header => Carrier::Header,
        SessionPersistenceType::Cookie if spec.is_permanent() => Carrier::PermanentCookie,
        SessionPersistenceType::Cookie => Carrier::SessionCookie,
    };
    let mut name = match &spec.session_name {
        Some(name) => name.inner.clone(),
        None => format!("session-{}", &ContentHash::of(place().as_bytes()).to_string()[24..]),
    };
    if carrier == Carrier::Header {
        name.make_ascii_lowercase();
    }
    // A cookie may live for years.
    let whole = |timeout: LongDuration| u64::try_from(timeout.get().as_millis()).unwrap_or(u64::MAX);
    let millis = |timeout: &Option<Spanned<LongDuration>>| timeout.as_ref().map_or(0, |t| whole(t.inner));
    v1::SessionPersistence {
        name,
        carrier: carrier.into(),
        absolute_timeout_ms: millis(&spec.absolute_timeout),
        idle_timeout_ms: millis(&spec.idle_timeout),
    }
}

/// Milliseconds of a timeout that someone wrote. A written zero switches the timeout off, also where a policy sets one,
/// and so becomes the longest time; the message's 0 means that nobody said anything.
pub(crate) fn timeout_ms(duration: GatewayDuration) -> u32 {
    if duration.is_zero() { u32::MAX } else { millis(duration) }
}

fn long_timeout_ms(duration: LongDuration) -> u32 {
    timeout_ms(duration.into())
}

/// Milliseconds. Of a route of Gateway API, where they may be more than fit (up to 99,999 h), they become 49 days.
pub(crate) fn millis(duration: GatewayDuration) -> u32 {
    u32::try_from(duration.get().as_millis()).unwrap_or(u32::MAX)
}

/// Milliseconds of a time that someone may have written, longer than none; 0 where nobody has.
pub(crate) fn said_ms(duration: Option<&GatewayDuration>) -> u32 {
    duration.map_or(0, |duration| millis(*duration))
}

/// What an `HTTPRoute` says of retries; the rest policies may say. Connection errors are retried whenever there is a
/// `retry`: beside the codes that are said, and where none are because that is the default.
fn retry(spec: &HTTPRouteRetry) -> v1::Retry {
    let codes = || spec.codes.iter().map(|code| u32::from(code.inner)).collect();
    v1::Retry {
        attempts: spec.attempts,
        on: (!spec.codes.is_empty()).then(|| On {
            status_codes: codes(),
            grpc_codes: Vec::new(),
            reset: true,
            connect_failure: true,
            refused: true,
        }),
        backoff_base_ms: spec.backoff.map(|backoff| millis(backoff.into())),
        ..v1::Retry::default()
    }
}

fn r#match(spec: &HTTPRouteMatch) -> v1::Match {
    let path = spec.path.value.clone();
    let path = match spec.path.match_type {
        PathMatchType::Exact => string_match::Kind::Exact(path),
        PathMatchType::PathPrefix => string_match::Kind::Prefix(path),
        PathMatchType::RegularExpression => string_match::Kind::Regex(path),
    };
    let headers = spec.headers.iter().map(|h| field(h.name.to_ascii_lowercase(), h.match_type, &h.value));
    let query = spec.query_params.iter().map(|q| field(q.name.to_string(), q.match_type, &q.value));
    v1::Match {
        path: Some(v1::StringMatch { kind: Some(path) }),
        headers: headers.collect(),
        query: query.collect(),
        method: spec.method.map(|method| method.to_string()).unwrap_or_default(),
    }
}

fn field(name: String, kind: ValueMatchType, value: &str) -> v1::FieldMatch {
    let kind = match kind {
        ValueMatchType::Exact => string_match::Kind::Exact(value.to_owned()),
        ValueMatchType::RegularExpression => string_match::Kind::Regex(value.to_owned()),
    };
    v1::FieldMatch { name, value: Some(v1::StringMatch { kind: Some(kind) }) }
}

/// The filters of a rule or a backend; where copies go is resolved apart.
pub(crate) fn filters(specs: &[Spanned<HTTPRouteFilter>]) -> Vec<v1::Filter> {
    specs.iter().filter_map(|spec| filter(spec)).collect()
}

fn filter(spec: &HTTPRouteFilter) -> Option<v1::Filter> {
    let kind = match spec {
        HTTPRouteFilter::RequestMirror(_) => return None,
        HTTPRouteFilter::RequestHeaderModifier(edits) => filter::Kind::RequestHeaders(header_edits(edits)),
        HTTPRouteFilter::ResponseHeaderModifier(edits) => filter::Kind::ResponseHeaders(header_edits(edits)),
        HTTPRouteFilter::RequestRedirect(redirect) => filter::Kind::Redirect(v1::Redirect {
            scheme: redirect.scheme.map(|scheme| scheme.to_string()).unwrap_or_default(),
            hostname: redirect.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
            path: redirect.path.as_ref().map(path_edit),
            port: redirect.port.unwrap_or_default().into(),
            status: redirect.status_code.get().into(),
        }),
        HTTPRouteFilter::URLRewrite(rewrite) => filter::Kind::Rewrite(v1::Rewrite {
            hostname: rewrite.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
            path: rewrite.path.as_ref().map(path_edit),
        }),
    };
    Some(v1::Filter { kind: Some(kind) })
}

fn header_edits(spec: &HTTPHeaderFilter) -> v1::FieldEdits {
    let fields = |headers: &[Spanned<HTTPHeader>]| {
        headers
            .iter()
            .map(|header| v1::Field {
                name: header.name.to_ascii_lowercase(),
                value: header.value.to_string(),
            })
            .collect()
    };
    v1::FieldEdits {
        set: fields(&spec.set),
        add: fields(&spec.add),
        remove: spec.remove.iter().map(|name| name.to_ascii_lowercase()).collect(),
    }
}

fn path_edit(spec: &HTTPPathModifier) -> v1::PathEdit {
    let kind = match spec {
        HTTPPathModifier::ReplaceFullPath { path } => path_edit::Kind::Full(path.clone()),
        HTTPPathModifier::ReplacePrefixMatch { prefix } => path_edit::Kind::Prefix(prefix.clone()),
    };
    v1::PathEdit { kind: Some(kind) }
}
