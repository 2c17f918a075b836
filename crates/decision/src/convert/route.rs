//! Routes: rules, matches, filters, backends, retries.

use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;

use super::shaping::share;
use super::{ConvertError, Interner, Result, hostname, port, unknown, value};
use crate::cluster::ClusterKey;
use crate::filter::{Filter, HeaderEdits, PathEdit, Redirect, Rewrite};
use crate::hostname::HostPattern;
use crate::matching::{FieldMatch, PathMatch, Pattern, RouteMatch, ValueMatch};
use crate::mirror::MirrorSpec;
use crate::origin::Origin;
use crate::policy::{RequestPolicy, Words};
use crate::request::Scheme;
use crate::retry::{RetryBudget, RetryPolicy};
use crate::route::{Attachment, BackendSpec, Parent, RouteSpec, RuleSpec};
use crate::session::{Carrier, SessionPersistence};

pub(crate) fn route(name: &Arc<str>, message: &v1::Route, strings: &mut Interner) -> Result<RouteSpec> {
    if message.rules.len() > usize::from(u16::MAX) {
        return value("rules", message.rules.len(), "write at most 65,535 rules");
    }
    let origin = Arc::new(Origin::from_message(message.source.as_ref()).interned(strings));
    Ok(RouteSpec {
        name: Arc::clone(name),
        attachments: each("attachments", &message.attachments, |at, a| attachment(at, a, strings))?,
        rules: each("rules", &message.rules, |at, r| rule(at, r, (name, &origin), strings).map(Arc::new))?,
        origin,
    })
}

/// Converts every element, telling each its place.
fn each<T, U>(at: &str, list: &[T], mut convert: impl FnMut(&str, &T) -> Result<U>) -> Result<Box<[U]>> {
    list.iter().enumerate().map(|(i, x)| convert(&format!("{at}[{i}]"), x)).collect()
}

fn attachment(at: &str, message: &v1::route::Attachment, strings: &mut Interner) -> Result<Attachment> {
    use v1::route::attachment::Parent as Wire;
    let parent = match message.parent.as_ref().ok_or_else(|| unknown(format!("{at}.parent")))? {
        Wire::Listener(name) => Parent::Listener(strings.text(name)),
        Wire::Service(name) => Parent::Service(strings.text(name)),
    };
    let port = match message.service_port {
        0 => 0,
        number => port(&format!("{at}.service_port"), number)?,
    };
    let mut hostnames = each(&format!("{at}.hostnames"), &message.hostnames, |at, h| hostname(at, h))?;
    if hostnames.is_empty() {
        hostnames = Box::new([HostPattern::Any]);
    }
    Ok(Attachment { parent, port, hostnames })
}

fn rule(
    at: &str,
    message: &v1::Rule,
    (route, origin): (&str, &Arc<Origin>),
    strings: &mut Interner,
) -> Result<RuleSpec> {
    if message.matches.len() > usize::from(u16::MAX) {
        return value(format!("{at}.matches"), message.matches.len(), "write at most 65,535 matches");
    }
    let matches = each(&format!("{at}.matches"), &message.matches, route_match)?;
    let prefixes_only = matches.iter().all(|m| matches!(m.path, PathMatch::Prefix(_)));
    let filters = |at: &str, list: &[v1::Filter]| {
        each(&format!("{at}.filters"), list, |at, f| {
            let filter = filter(at, f)?;
            if replaces_prefix(&filter) && !prefixes_only {
                return value(at, "ReplacePrefixMatch", "every match of the rule must be a PathPrefix");
            }
            Ok(filter)
        })
    };
    Ok(RuleSpec {
        name: strings.text(&message.name),
        filters: filters(at, &message.filters)?,
        backends: each(&format!("{at}.backends"), &message.backends, |at, b| {
            let backend = backend(at, b, strings)?;
            Ok(match &b.filters[..] {
                [] => backend,
                some => BackendSpec { filters: filters(at, some)?.into(), ..backend },
            })
        })?,
        matches,
        request_timeout: millis(message.request_timeout_ms),
        backend_request_timeout: millis(message.backend_request_timeout_ms),
        retry: message.retry.clone().map(|said| own_retry(at, origin, said)).transpose()?,
        session: message.session.as_ref().map(|said| session(at, said, route, &message.name)).transpose()?,
        mirrors: mirrors(at, &message.mirrors, strings)?,
    })
}

fn mirrors(at: &str, list: &[v1::Mirror], strings: &mut Interner) -> Result<Box<[MirrorSpec]>> {
    each(&format!("{at}.mirrors"), list, |at, mirror| {
        if mirror.service.is_empty() {
            return value(format!("{at}.service"), "", "write the NAMESPACE/NAME of a service");
        }
        let port = port(&format!("{at}.port"), mirror.port)?;
        let key =
            ClusterKey { service: strings.text(&mirror.service), port, subset: strings.text(&mirror.subset) };
        Ok(MirrorSpec { key, share: share(at, mirror.share.as_ref())? })
    })
}

/// A rule without a name is known by its place.
fn session(
    at: &str,
    message: &v1::SessionPersistence,
    route: &str,
    rule: &str,
) -> Result<Arc<SessionPersistence>> {
    use v1::session_persistence::Carrier as Wire;
    let carrier = match Wire::try_from(message.carrier) {
        Ok(Wire::SessionCookie) => Carrier::SessionCookie,
        Ok(Wire::PermanentCookie) => Carrier::PermanentCookie,
        Ok(Wire::Header) => Carrier::Header,
        Err(_) => return Err(unknown(format!("{at}.session.carrier"))),
    };
    if message.name.is_empty() {
        return value(format!("{at}.session.name"), "", "write the name of a cookie or header");
    }
    let said = |timeout: u64| (timeout > 0).then(|| Duration::from_millis(timeout));
    let (absolute_timeout, idle_timeout) = (said(message.absolute_timeout_ms), said(message.idle_timeout_ms));
    if carrier == Carrier::PermanentCookie && absolute_timeout.is_none() {
        return value(format!("{at}.session.absolute_timeout_ms"), 0, "write how long the cookie lives");
    }
    let salt = SessionPersistence::salt(route, if rule.is_empty() { at } else { rule });
    let name = message.name.as_str().into();
    Ok(Arc::new(SessionPersistence { name, carrier, absolute_timeout, idle_timeout, salt }))
}

pub(super) fn millis(ms: u32) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms.into()))
}

fn replaces_prefix(filter: &Filter) -> bool {
    match filter {
        Filter::Redirect(Redirect { path, .. }) | Filter::Rewrite(Rewrite { path, .. }) => {
            matches!(path, Some(PathEdit::Prefix(_)))
        }
        Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) => false,
    }
}

fn backend(at: &str, message: &v1::Backend, strings: &mut Interner) -> Result<BackendSpec> {
    let invalid = (!message.invalid.is_empty()).then(|| message.invalid.as_str().into());
    if message.service.is_empty() && invalid.is_none() {
        return value(
            format!("{at}.service"),
            "",
            "write the NAMESPACE/NAME of a service, or why it is invalid",
        );
    }
    let number = match (message.port, &invalid) {
        (0, Some(_)) => 0,
        (number, _) => port(&format!("{at}.port"), number)?,
    };
    Ok(BackendSpec {
        key: ClusterKey {
            service: strings.text(&message.service),
            port: number,
            subset: strings.text(&message.subset),
        },
        weight: message.weight,
        filters: Arc::default(),
        invalid,
        mirrors: mirrors(at, &message.mirrors, strings)?,
    })
}

fn pattern(at: &str, text: &str) -> Result<Pattern> {
    Pattern::new(text).map_err(|error| ConvertError::Pattern { at: at.to_owned(), error })
}

fn route_match(at: &str, message: &v1::Match) -> Result<RouteMatch> {
    use v1::string_match::Kind;
    let here = format!("{at}.path");
    let path = message.path.as_ref().and_then(|p| p.kind.as_ref()).ok_or_else(|| unknown(&here))?;
    let path = match path {
        Kind::Exact(text) | Kind::Prefix(text) if !text.starts_with('/') => {
            return value(here, text, "a path begins with `/`");
        }
        Kind::Exact(text) => PathMatch::Exact(text.as_str().into()),
        Kind::Prefix(text) => PathMatch::prefix(text),
        Kind::Regex(text) => PathMatch::Regex(pattern(&here, text)?),
    };
    let method = (!message.method.is_empty()).then(|| message.method.as_str().into());
    Ok(RouteMatch {
        path,
        method,
        headers: each(&format!("{at}.headers"), &message.headers, |at, f| {
            let mut field = field_match(at, f)?;
            field.name = field.name.to_ascii_lowercase().into();
            Ok(field)
        })?,
        query: each(&format!("{at}.query"), &message.query, field_match)?,
    })
}

fn field_match(at: &str, message: &v1::FieldMatch) -> Result<FieldMatch> {
    use v1::string_match::Kind;
    let value = match message.value.as_ref().and_then(|v| v.kind.as_ref()) {
        Some(Kind::Exact(text)) => ValueMatch::Exact(text.as_str().into()),
        Some(Kind::Regex(text)) => ValueMatch::Regex(pattern(at, text)?),
        Some(Kind::Prefix(_)) | None => return Err(unknown(format!("{at}.value"))),
    };
    Ok(FieldMatch { name: message.name.as_str().into(), value })
}

fn filter(at: &str, message: &v1::Filter) -> Result<Filter> {
    use v1::filter::Kind;
    Ok(match message.kind.as_ref().ok_or_else(|| unknown(at))? {
        Kind::RequestHeaders(edits) => Filter::RequestHeaders(header_edits(at, edits)?),
        Kind::ResponseHeaders(edits) => Filter::ResponseHeaders(header_edits(at, edits)?),
        Kind::Redirect(r) => Filter::Redirect(redirect(at, r)?),
        Kind::Rewrite(r) => Filter::Rewrite(Rewrite {
            hostname: host(at, &r.hostname)?,
            path: path_edit(at, r.path.as_ref())?,
        }),
    })
}

fn redirect(at: &str, message: &v1::Redirect) -> Result<Redirect> {
    let scheme = match message.scheme.as_str() {
        "" => None,
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        other => return value(format!("{at}.scheme"), other, "write http or https"),
    };
    let status = match message.status {
        301 | 302 | 303 | 307 | 308 => u16::try_from(message.status).expect("one of five numbers"),
        other => return value(format!("{at}.status"), other, "write 301, 302, 303, 307 or 308"),
    };
    let port = match message.port {
        0 => None,
        number => Some(port(&format!("{at}.port"), number)?),
    };
    let hostname = host(at, &message.hostname)?;
    Ok(Redirect { scheme, hostname, path: path_edit(at, message.path.as_ref())?, port, status })
}

/// A host that goes into a message: a name without wildcard.
fn host(at: &str, text: &str) -> Result<Option<Box<str>>> {
    if text.is_empty() {
        return Ok(None);
    }
    match hostname(&format!("{at}.hostname"), text)? {
        HostPattern::Exact(name) => Ok(Some((*name).into())),
        HostPattern::Wildcard(_) | HostPattern::Any => {
            value(format!("{at}.hostname"), text, "write a name without a wildcard")
        }
    }
}

fn path_edit(at: &str, message: Option<&v1::PathEdit>) -> Result<Option<PathEdit>> {
    use v1::path_edit::Kind;
    let Some(message) = message else { return Ok(None) };
    let (text, edit): (_, fn(Box<str>) -> PathEdit) = match message.kind.as_ref() {
        Some(Kind::Full(text)) => (text, PathEdit::Full),
        Some(Kind::Prefix(text)) => (text, PathEdit::Prefix),
        None => return Err(unknown(format!("{at}.path"))),
    };
    let fits = text.is_empty() || text.starts_with('/');
    if !fits || text.bytes().any(|b| b <= b' ' || matches!(b, 0x7f | b'?' | b'#')) {
        return value(
            format!("{at}.path"),
            text,
            "write a path that begins with `/`, without spaces or query",
        );
    }
    let text = if text.is_empty() && matches!(message.kind, Some(Kind::Full(_))) { "/" } else { text };
    Ok(Some(edit(text.into())))
}

fn header_edits(at: &str, message: &v1::FieldEdits) -> Result<HeaderEdits> {
    let pairs = |list: &[v1::Field]| {
        each(at, list, |at, f| {
            if f.value.bytes().any(|b| (b < b' ' && b != b'\t') || b == 0x7f) {
                return value(at, f.value.escape_debug(), "a field's value has no control characters");
            }
            Ok((field_name(at, &f.name)?, f.value.trim().into()))
        })
    };
    Ok(HeaderEdits {
        remove: each(at, &message.remove, |at, n| field_name(at, n))?,
        set: pairs(&message.set)?,
        add: pairs(&message.add)?,
    })
}

/// A token (RFC 9110, 5.6.2), in lower case. Fields that frame messages are not the user's to edit.
fn field_name(at: &str, name: &str) -> Result<Box<str>> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return value(at, name.escape_debug(), "write a field name of letters, digits and `-`");
    }
    let lower = name.to_ascii_lowercase();
    if matches!(lower.as_str(), "content-length" | "transfer-encoding" | "connection" | "upgrade" | "te") {
        return value(at, name, "this field frames the message and is set by the proxy; choose another");
    }
    Ok(lower.into())
}

/// What a rule says itself, which policies may add to.
fn own_retry(at: &str, origin: &Arc<Origin>, message: v1::Retry) -> Result<Arc<Words<v1::Retry>>> {
    retry(&format!("{at}.retry"), &message)?;
    Words::new(origin, message)
}

/// Attempts after the first where nobody says how many.
const ATTEMPTS: u32 = 2;
/// The wait before the first retry where nobody says it (Envoy's), in milliseconds. The longest is ten times the first.
const BACKOFF_BASE_MS: u32 = 25;

pub(crate) fn retry(at: &str, message: &v1::Retry) -> Result<RetryPolicy> {
    let code = |want| move |at: &str, &c: &u32| u16::try_from(c).or_else(|_| value(at, c, want));
    let default = v1::retry::On { reset: true, connect_failure: true, refused: true, ..Default::default() };
    let on = message.on.as_ref().unwrap_or(&default);
    let budget = message.budget.unwrap_or_default();
    let base = message.backoff_base_ms.unwrap_or(BACKOFF_BASE_MS);
    let longest = message.backoff_max_ms.unwrap_or(base.saturating_mul(10));
    Ok(RetryPolicy {
        attempts: message.attempts.unwrap_or(ATTEMPTS),
        status_codes: each(at, &on.status_codes, code("write statuses from 400 to 599"))?,
        grpc_codes: each(at, &on.grpc_codes, code("write gRPC codes from 1 to 16"))?,
        on_reset: on.reset,
        on_connect_failure: on.connect_failure,
        on_refused: on.refused,
        per_try_timeout: millis(message.per_try_timeout_ms),
        // A wait of at most `max` begins with no more than that.
        backoff_base: Duration::from_millis(base.min(longest).into()),
        backoff_max: Duration::from_millis(longest.into()),
        budget: RetryBudget {
            percent: budget.percent.unwrap_or(RetryBudget::DEFAULT.percent),
            min_per_second: budget.min_per_second.unwrap_or(RetryBudget::DEFAULT.min_per_second),
        },
    })
}

/// What a traffic policy says of times.
pub(crate) fn timeouts(said: Option<&v1::Timeouts>) -> Result<RequestPolicy> {
    use v1::timeouts::CallerDeadline as Callers;
    let time = |field: fn(&v1::Timeouts) -> u32| said.map(field).and_then(millis);
    Ok(RequestPolicy {
        request_timeout: time(|t| t.request_ms),
        idle_timeout: time(|t| t.idle_ms),
        connect_timeout: time(|t| t.connect_ms),
        stream_idle_timeout: time(|t| t.stream_idle_ms),
        max_stream_duration: time(|t| t.max_stream_ms),
        believes_callers: match said.map(|t| Callers::try_from(t.caller_deadline)) {
            None | Some(Ok(Callers::Unspecified)) => None,
            Some(Ok(Callers::Ignore)) => Some(false),
            Some(Ok(Callers::Accept)) => Some(true),
            Some(Err(_)) => return Err(unknown("timeouts.caller_deadline")),
        },
        ..RequestPolicy::default()
    })
}
