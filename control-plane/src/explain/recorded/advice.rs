//! What could be changed, by cause: the field of the policy that decided, with its value and who wrote it, read from what
//! is published now. Nothing is guessed: where no policy had a part, it says where to look.

use meshwork_decision::{Cause, ForcedBy, StopReason, UNTOLD};
use meshwork_messages::v1::{RequestRecord, request_record::Side};
use meshwork_xds::server::Observed;
use serde::Serialize;

use super::blame::Blame;
use super::decided::{Decided, decided};
use super::side::{MEMORY, is_of_memory};
use crate::explain::Explainer;
use crate::explain::answer::Source;
use crate::explain::live::record;

/// Where it was the proxy that had too much: the flag, which the detail then names, and what to do.
const OF_MEMORY: (Field, &str) = (
    Field::Flag(MEMORY),
    "the proxy came near the memory that it may have ({detail}): give it more, or lower what reaches it",
);

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Advice {
    cause: String,
    text: String,
    /// The field of a policy, of a route's rule, or the proxy's flag.
    field: Option<String>,
    /// What it says now; none: nothing is said.
    value: Option<String>,
    source: Option<Source>,
}

/// Which field decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    None,
    Request,
    Attempt,
    BackendRequest,
    Connect,
    StreamIdle,
    MaxStream,
    CallerDeadline,
    Retry,
    MaxConnections,
    MaxPending,
    MaxRequests,
    MaxRetries,
    ConnectionsPerEndpoint,
    PendingPerEndpoint,
    RequestsPerEndpoint,
    RetriesPerEndpoint,
    Breaker,
    Overload,
    Admission,
    RateLimit,
    Abort,
    /// Of an `AuthorizationPolicy`.
    Authorization,
    Flag(&'static str),
}

impl Field {
    fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::None => return None,
            Self::Request => "timeouts.request",
            Self::Attempt => "retry.perTryTimeout",
            Self::BackendRequest => "timeouts.backendRequest",
            Self::Connect => "timeouts.connect",
            Self::StreamIdle => "timeouts.streamIdle",
            Self::MaxStream => "timeouts.maxStreamDuration",
            Self::CallerDeadline => "timeouts.callerDeadline",
            Self::Retry => "retry",
            Self::MaxConnections => "limits.maxConnections",
            Self::MaxPending => "limits.maxPendingRequests",
            Self::MaxRequests => "limits.maxRequests",
            Self::MaxRetries => "limits.maxRetries",
            Self::ConnectionsPerEndpoint => "limits.perEndpoint.maxConnections",
            Self::PendingPerEndpoint => "limits.perEndpoint.maxPendingRequests",
            Self::RequestsPerEndpoint => "limits.perEndpoint.maxRequests",
            Self::RetriesPerEndpoint => "limits.perEndpoint.maxRetries",
            Self::Breaker => "circuitBreaker",
            Self::Overload => "overload",
            Self::Admission => "admissionControl",
            Self::RateLimit => "rateLimit",
            Self::Abort => "faultInjection.abort",
            Self::Authorization => "action",
            Self::Flag(flag) => flag,
        })
    }
}

/// What to do about a request: of the hop at fault, and of the one that the client heard of.
pub(super) fn of(explainer: &Explainer, hops: &[Observed], fault: Option<&Blame>) -> Vec<Advice> {
    let Some(fault) = fault else { return Vec::new() };
    let first = hops.iter().min_by_key(|hop| record(hop).start_unix_ns);
    let mut all: Vec<Advice> = Vec::new();
    for hop in [hops.get(fault.at), first].into_iter().flatten() {
        let is = record(hop);
        let Some(cause) = Cause::ALL.iter().find(|cause| cause.as_str() == is.cause) else { continue };
        let advice = one(*cause, is, decided(explainer, hop).as_ref());
        if !all.iter().any(|known| known.cause == advice.cause) {
            all.push(advice);
        }
    }
    all
}

/// Which of the two circuit breakers it was, the detail tells.
const BREAKER_OF_ROUTE: &str = "the circuit breaker of {whose} is open since most calls by it failed or were slow: mend {service}; it closes by itself when trial calls succeed";

/// What several causes have in common is told apart by the detail.
fn rule_of(cause: Cause, detail: &str, by_route: bool) -> (Field, &'static str) {
    let begins = |stop: StopReason| detail.starts_with(stop.why());
    match cause {
        Cause::Overload if is_of_memory(detail) => OF_MEMORY,
        Cause::CircuitBreaker if detail.contains(ForcedBy::OPERATOR) => (
            Field::None,
            "the circuit breaker of {whose} is {what}: it ends then by itself, or at once by `meshwork breaker release`",
        ),
        Cause::CircuitBreaker if detail.contains(ForcedBy::POLICY) => (
            Field::Breaker,
            "the circuit breaker of {whose} is {what}: nobody is called as long as that says `mode: ForcedOpen`",
        ),
        Cause::UnknownAppPort if detail == UNTOLD => (
            Field::None,
            "its sidecar is not ready, as it has no workload: `meshwork services` says whether the instance is registered, and its log when the workload was taken away",
        ),
        Cause::CircuitBreaker if by_route => (Field::Breaker, BREAKER_OF_ROUTE),
        Cause::RetriesExhausted if begins(StopReason::PushBack) => (
            Field::Retry,
            "{service} wants no other attempt, or not for long ({what}): a `Retry-After` is waited for up to 10 s, and within the request's time; see above what became of it there",
        ),
        Cause::RetriesExhausted if begins(StopReason::Deadline) => (
            Field::Retry,
            "no time was left for another attempt ({what}): mend {service}, or give the request more time than the back-off takes",
        ),
        cause => rule(cause),
    }
}

pub(super) fn one(cause: Cause, is: &RequestRecord, decided: Option<&Decided>) -> Advice {
    let detail = &*is.cause_detail;
    let by_route = cause == Cause::CircuitBreaker && detail.starts_with("HTTPRoute ");
    let (field, text) = rule_of(cause, detail, by_route);
    // Within the mesh callers are always believed.
    let field = match field {
        Field::CallerDeadline if is.side() != Side::Gateway => Field::None,
        field => decided.map_or(field, |decided| decided.deciding(field, is)),
    };
    let (value, source) = match decided {
        Some(decided) if by_route && field == Field::Breaker => decided.of_route_breaker(),
        Some(decided) => decided.said(field, is),
        None => (None, None),
    };
    let service = if is.service.is_empty() { &is.host } else { &is.service };
    let (whose, what) = detail.split_once(": ").unwrap_or((detail, detail));
    let before_more = |text: &str| text.split("; ").next().unwrap_or_default().to_owned();
    let text = text
        .replace("{whose}", &if by_route { before_more(whose) } else { service.clone() })
        .replace("{what}", &before_more(what))
        .replace("{service}", service)
        .replace("{host}", &is.host)
        .replace("{endpoint}", if is.endpoint.is_empty() { "its endpoint" } else { &is.endpoint })
        .replace("{detail}", if detail.is_empty() { "no name" } else { detail });
    Advice { cause: is.cause.clone(), text, field: field.name().map(str::to_owned), value, source }
}

/// The field that a cause turns on, and what to do.
#[expect(clippy::too_many_lines, reason = "a table: one line per cause")]
const fn rule(cause: Cause) -> (Field, &'static str) {
    match cause {
        Cause::NoListener | Cause::NoHost => (
            Field::None,
            "nothing takes host `{host}` there: add it to the listener's or the route's hostnames",
        ),
        Cause::NoRule => (
            Field::None,
            "no rule takes this method, path and fields: `meshwork explain --host {host}` says why each does not",
        ),
        Cause::MisdirectedRequest => (
            Field::None,
            "the connection was made for another listener: the client must connect anew for `{host}`",
        ),
        Cause::UnknownService => {
            (Field::None, "no service is known as `{host}`: register it, or call it by its name")
        }
        Cause::NoBackends | Cause::ZeroWeight => (
            Field::None,
            "the rule has no backend that may be called: give one of its backendRefs a weight above 0",
        ),
        Cause::InvalidBackend => {
            (Field::None, "the rule's backend does not resolve: the route's condition ResolvedRefs names it")
        }
        Cause::ClusterNotFound => (
            Field::None,
            "the service was not delivered to this proxy: `meshwork proxies` says whether it is behind",
        ),
        Cause::DiscoveryUnavailable => (
            Field::None,
            "the control plane did not answer when {service} was called for the first time: see that it runs and that the proxy reaches port 15012",
        ),
        Cause::NoHealthyUpstream => (
            Field::None,
            "no endpoint of {service} may be called: `meshwork services` says which are there and what their checks say",
        ),
        Cause::ConnectFailure => (
            Field::None,
            "nothing accepts connections for {service} at {endpoint}: see that the instance runs and listens on the port that it registered",
        ),
        Cause::ConnectTimeout => (
            Field::Connect,
            "{endpoint} did not answer in time: see that it is reached from here; if it needs longer, raise the time",
        ),
        Cause::UpstreamTlsFailure => (
            Field::None,
            "the TLS handshake with {endpoint} failed ({detail}): see that its SVID is valid and that both trust the same roots",
        ),
        Cause::UpstreamIdentityMismatch => (
            Field::None,
            "{endpoint} proved another identity than {service} has ({detail}): another instance has its address, or it was registered under another workload",
        ),
        Cause::SvidExpired => (
            Field::None,
            "the proxy's own SVID has expired: see that it reaches the control plane, which renews it",
        ),
        Cause::UpstreamReset => (
            Field::Retry,
            "{endpoint} broke the connection before it answered: see its log at that time; what may be done twice can be repeated by `retry.on: [reset]`",
        ),
        Cause::UpstreamRefused => (
            Field::Retry,
            "{endpoint} refused the request before it began it: it is stopping or has too much to do; `retry.on: [refused-stream]` sends it elsewhere",
        ),
        Cause::UpstreamClosed => (
            Field::Retry,
            "{endpoint} closed the connection before its response was complete: see its log at that time; after the response began nothing can be repeated",
        ),
        Cause::UpstreamProtocolError => (
            Field::None,
            "what {endpoint} answered is no valid HTTP ({detail}): see that the port's protocol is the one that it speaks",
        ),
        Cause::UpstreamHeadersTooLarge => (
            Field::Flag("--max-header-bytes"),
            "the head of the response of {endpoint} is larger than the proxy takes: make it smaller, or raise the limit",
        ),
        Cause::MaxConnections => (
            Field::MaxConnections,
            "{service} has as many connections as its policy allows: raise the limit, or add instances",
        ),
        Cause::MaxPendingRequests => (
            Field::MaxPending,
            "as many requests wait for a connection to {service} as its policy allows: raise the limit, or maxConnections, or add instances",
        ),
        Cause::MaxRequests => (
            Field::MaxRequests,
            "{service} has as many requests under way as its policy allows: raise the limit, or add instances",
        ),
        Cause::CircuitBreaker => (
            Field::Breaker,
            "the circuit breaker of {service} is open since most calls failed or were slow: mend {service}; it closes by itself when trial calls succeed",
        ),
        Cause::AdmissionControl => (
            Field::Admission,
            "too few calls to {service} succeed, so that a part of them is not sent: mend {service}, or add instances; what matters can be let through by `priorities`",
        ),
        Cause::MaxRetries => (
            Field::MaxRetries,
            "as many retries to {service} are under way as its policy allows: it fails for more than one caller; mend it before the limit is raised",
        ),
        Cause::RetriesExhausted => (
            Field::Retry,
            "every attempt that the policy allows has failed: the attempts above say why each did",
        ),
        Cause::RetryBudget => (
            Field::Retry,
            "the budget has no more retries, or few since they do not help ({detail}): {service} fails for many callers; mend it before the budget is raised",
        ),
        Cause::DeadlineExceeded => (
            Field::CallerDeadline,
            "the caller gave this request less time than {service} took: see what was slow; the deadline is the caller's own, by `grpc-timeout` or `x-envoy-expected-rq-timeout-ms`",
        ),
        Cause::DeadlineUnreachable => (
            Field::CallerDeadline,
            "the caller gave this request less time than any answer takes ({detail}): it came too late, or its caller must wait longer",
        ),
        Cause::MaxStreamDuration => {
            (Field::MaxStream, "the stream lasted as long as it may: raise the time if it is to last longer")
        }
        Cause::RequestTimeout => (
            Field::Request,
            "the request's time was over before {service} had answered: raise the time, or see above where it was spent",
        ),
        Cause::PerTryTimeout => (
            Field::Attempt,
            "the attempt's time was over before {service} had answered: raise the time, or let it be repeated elsewhere by `retry`",
        ),
        Cause::StreamIdleTimeout => (
            Field::StreamIdle,
            "nothing moved between client and {service} for so long: raise the time for streams that are silent by design",
        ),
        Cause::RequestHeaderTimeout => (
            Field::Flag("--request-header-timeout"),
            "the client was too slow to send its request's head: it is the client's to mend",
        ),
        Cause::RequestBodyTimeout => (
            Field::Flag("--request-body-timeout"),
            "the client was too slow to send its request's body: it is the client's to mend",
        ),
        Cause::DownstreamClosed | Cause::DownstreamReset => (
            Field::None,
            "the client left before the response was complete: compare its time limit with how long {service} takes",
        ),
        Cause::DownstreamProtocolError | Cause::UnsupportedVersion => {
            (Field::None, "the request breaks HTTP ({detail}): it is the client's to mend")
        }
        Cause::UriTooLong => {
            (Field::Flag("--max-request-line-bytes"), "the request line is longer than the proxy takes")
        }
        Cause::RequestHeadersTooLarge => (
            Field::Flag("--max-header-bytes"),
            "the request's head is larger than the proxy takes ({detail})",
        ),
        Cause::NotImplemented => (Field::None, "the proxy does not carry this method or upgrade ({detail})"),
        Cause::AuthorizationDenied => (
            Field::Authorization,
            "a policy refuses it: {detail}; allow the caller there, or call as somebody whom it allows",
        ),
        Cause::AuthorizationUnknown => (
            Field::None,
            "the proxy is too old for a policy and fails closed ({detail}): bring it to the control plane's version",
        ),
        Cause::PeerUnauthenticated => (
            Field::None,
            "the service takes callers of the mesh alone ({detail}): call it through a sidecar or a gateway",
        ),
        Cause::PeerRevoked => (
            Field::None,
            "the caller's identity is denied: `GET /v1/identity/deny` of the control plane's API lists the entries",
        ),
        Cause::RateLimited => {
            (Field::RateLimit, "a rate limit was reached ({detail}): call less often, or raise it")
        }
        Cause::FaultAbort => (
            Field::Abort,
            "a policy injects this answer ({detail}): remove its `faultInjection`, or lower its part, when the trial is over",
        ),
        Cause::Overload => (
            Field::Overload,
            "more came than could be done ({detail}): add instances, lower what reaches it, or give what matters a \
             priority in the policy's `overload`",
        ),
        Cause::Draining => (
            Field::None,
            "the proxy was stopping: nothing is to be done unless it is stopped too fast for its requests",
        ),
        Cause::UnknownAppPort => (
            Field::None,
            "the application has no such port ({detail}): see the ports that its service declares",
        ),
        Cause::Internal => {
            (Field::None, "filters made something that cannot be sent ({detail}): see the rule's filters")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_memory_was_short_is_told_of_memory() {
        let is = |detail: &str| RequestRecord {
            cause: "overload".to_owned(),
            cause_detail: detail.to_owned(),
            ..RequestRecord::default()
        };
        let advice = one(Cause::Overload, &is("memory (limit of 9 bytes, setting --max-memory-bytes)"), None);
        assert_eq!(advice.field.as_deref(), Some("--max-memory-bytes"));
        assert!(advice.text.contains("give it more"), "{}", advice.text);
        let advice = one(Cause::Overload, &is("TrafficPolicy shop/gate (queue_full, priority low)"), None);
        assert_eq!(advice.field.as_deref(), Some("overload"));
    }

    #[test]
    fn every_cause_has_its_advice_and_names_nothing_that_is_not_there() {
        for cause in Cause::ALL {
            let is = RequestRecord {
                cause: cause.as_str().to_owned(),
                service: "shop/web:80".to_owned(),
                host: "shop.example".to_owned(),
                ..RequestRecord::default()
            };
            let advice = one(*cause, &is, None);
            assert!(!advice.text.contains(['{', '}']), "{cause}: {}", advice.text);
            assert_eq!((advice.value, advice.source), (None, None), "{cause}: nothing is known");
        }
    }

    #[test]
    fn an_instance_that_was_not_told_what_it_serves_is_not_sought_among_the_ports() {
        let text = |detail: &str| {
            let is = RequestRecord {
                cause: "unknown_app_port".to_owned(),
                cause_detail: detail.to_owned(),
                ..RequestRecord::default()
            };
            one(Cause::UnknownAppPort, &is, None).text
        };
        assert!(text(UNTOLD).contains("it has no workload"), "{}", text(UNTOLD));
        assert!(text("web:81").contains("the ports that its service declares"), "{}", text("web:81"));
    }

    #[test]
    fn a_breaker_of_a_route_is_told_from_that_of_the_service() {
        let is = |detail: &str| RequestRecord {
            cause: "circuit_breaker".to_owned(),
            cause_detail: detail.to_owned(),
            service: "shop/web:80".to_owned(),
            ..RequestRecord::default()
        };
        let text = |detail| one(Cause::CircuitBreaker, &is(detail), None).text;
        assert!(
            text("HTTPRoute shop/edge/pay")
                .starts_with("the circuit breaker of HTTPRoute shop/edge/pay is open")
        );
        let again = "HTTPRoute shop/edge/pay; status 503";
        assert!(text(again).starts_with("the circuit breaker of HTTPRoute shop/edge/pay is open since"));
        assert!(text("shop/web").starts_with("the circuit breaker of shop/web:80 is open since most calls"));
    }

    #[test]
    fn a_breaker_that_is_forced_open_is_not_said_to_close_by_itself() {
        let told = |detail: &str| {
            let is = RequestRecord {
                cause: "circuit_breaker".to_owned(),
                cause_detail: detail.to_owned(),
                service: "shop/web:80".to_owned(),
                ..RequestRecord::default()
            };
            let advice = one(Cause::CircuitBreaker, &is, None);
            assert!(!advice.text.contains("failed or were slow"), "{}", advice.text);
            (advice.text, advice.field)
        };
        let operator = "forced open by an operator until 2026-11-27T10:05:00.000Z";
        let ends = "it ends then by itself, or at once by `meshwork breaker release`";
        for (detail, whose) in [
            (format!("shop/web: {operator}"), "shop/web:80"),
            (format!("shop/web: {operator}; status 503"), "shop/web:80"),
            (format!("HTTPRoute shop/edge/pay: {operator}"), "HTTPRoute shop/edge/pay"),
        ] {
            let text = format!("the circuit breaker of {whose} is {operator}: {ends}");
            assert_eq!(told(&detail), (text, None));
        }
        for (detail, whose) in [
            ("shop/web: forced open by its policy", "shop/web:80"),
            ("HTTPRoute shop/edge: forced open by its policy; status 503", "HTTPRoute shop/edge"),
        ] {
            let (text, field) = told(detail);
            let begins =
                format!("the circuit breaker of {whose} is forced open by its policy: nobody is called");
            assert!(text.starts_with(&begins), "{text}");
            assert_eq!(field.as_deref(), Some("circuitBreaker"));
        }
    }

    #[test]
    fn an_answer_that_was_not_repeated_is_told_from_attempts_that_are_used_up() {
        let text = |detail: &str| {
            let is = RequestRecord {
                cause: "retries_exhausted".to_owned(),
                cause_detail: detail.to_owned(),
                service: "shop/web:80".to_owned(),
                ..RequestRecord::default()
            };
            one(Cause::RetriesExhausted, &is, None).text
        };
        assert!(text("status 503").starts_with("every attempt that the policy allows has failed"));
        let wants_none = text(&format!("{}: status 503", StopReason::PushBack.why()));
        assert!(
            wants_none.starts_with("shop/web:80 wants no other attempt, or not for long"),
            "{wants_none}"
        );
        assert!(wants_none.contains("(status 503)"), "{wants_none}");
        let late = text(&format!("{}: grpc-status 14 (UNAVAILABLE)", StopReason::Deadline.why()));
        assert!(late.starts_with("no time was left for another attempt"), "{late}");
    }
}
