//! `TrafficPolicy`: how calls to a target behave.

mod admission_control;
mod circuit_breaker;
mod health_check;
mod hedge;
mod load_balancer;
mod overload;
mod slow_start;

use std::fmt;

use super::listener_policy::ProxyProtocolVersion;
use super::shaping::{FaultInjection, RateLimit};
use super::target::{self, PolicyTarget};
use crate::codes;
use crate::decode::duration::GatewayDuration;
use crate::decode::fields::{list, nearest, shorten};
use crate::decode::node::{Node, Value};
use crate::decode::overlay::{Overlay, layered, words};
use crate::decode::{Cx, Decode, choice};
use crate::diagnostic::Diagnostic;
use crate::kinds::{Body, in_spec};
use crate::object::{Object, ObjectKind, ObjectMeta};
use crate::span::{Span, Spanned};

pub use admission_control::AdmissionControl;
pub use circuit_breaker::{BreakerMode, BreakerScope, BreakerWindow, CircuitBreaker, SlowCalls};
pub use health_check::{GrpcHealthCheck, HealthCheck, HttpHealthCheck, StatusRange, TcpHealthCheck};
pub use hedge::Hedge;
pub(super) use load_balancer::TOKEN;
pub use load_balancer::{
    Failover, FailoverPreference, FailoverPriority, HashRule, HashRuleType, LoadBalancer,
    LoadBalancerAlgorithm, Subsetting,
};
pub use overload::{AdaptiveConcurrency, Overload, OverloadPriority, OverloadQueue, PriorityRule};
pub use slow_start::{Aggression, SlowStart};

layered! {
    /// How calls to a target behave. What is absent is said by a policy of a less specific target, or by the default.
    pub struct TrafficPolicy {
        /// What it is attached to.
        pub target_refs: Vec<Spanned<PolicyTarget>> as "targetRefs" [1..=16],
        /// Which endpoint is called. For services and namespaces only.
        pub load_balancer: Option<Spanned<LoadBalancer>> as "loadBalancer",
        /// How much may be under way. For services and namespaces only.
        pub limits: Option<Spanned<TrafficLimits>>,
        /// When an endpoint is left out for a while. For services and namespaces only.
        pub outlier_detection: Option<OutlierDetection> as "outlierDetection",
        /// Whether endpoints answer when nobody calls them. For services and namespaces only.
        pub health_check: Option<Spanned<HealthCheck>> as "healthCheck",
        /// When nothing is called for a while. Not for gateways.
        pub circuit_breaker: Option<Spanned<CircuitBreaker>> as "circuitBreaker",
        /// Whether a failed attempt is repeated.
        pub retry: Option<Spanned<TrafficRetry>>,
        /// Whether what takes long is sent a second time beside the first.
        pub hedge: Option<Spanned<Hedge>>,
        /// How long things may take.
        pub timeouts: Option<Spanned<TrafficTimeouts>>,
        /// Each connection begins by saying for whom it is made, by HAProxy's PROXY protocol of this version. For
        /// services only.
        pub proxy_protocol: Option<Spanned<ProxyProtocolVersion>> as "proxyProtocol",
        /// How many requests are taken. A service's are counted where it is, those of a route or gateway where the rule is
        /// decided. Not for namespaces, nor for services without sidecars, nor on layer 4.
        pub rate_limit: Option<Spanned<RateLimit>> as "rateLimit",
        /// What is done to some requests, to see what becomes of them. Where they are sent, not where they arrive. Not for
        /// namespaces, nor on layer 4.
        pub fault_injection: Option<Spanned<FaultInjection>> as "faultInjection",
        /// How many calls are held back when too few succeed. For services and namespaces only, and not on layer 4.
        pub admission_control: Option<Spanned<AdmissionControl>> as "admissionControl",
        /// What keeps an application from more than it can do. For services and namespaces only, and not on layer 4.
        pub overload: Option<Spanned<Overload>>,
    }
}

layered! {
    /// How much may be under way to a service, in each proxy.
    pub struct TrafficLimits {
        /// Connections.
        pub max_connections: Option<u32> as "maxConnections" [1..=u32::MAX.into()],
        /// Requests that wait for a connection; 4,096 when nobody says it. Nothing else is limited then.
        pub max_pending_requests: Option<u32> as "maxPendingRequests" [1..=u32::MAX.into()],
        /// Requests; on layer 4 there are none.
        pub max_requests: Option<u32> as "maxRequests" [1..=u32::MAX.into()],
        /// Retries.
        pub max_retries: Option<u32> as "maxRetries" [1..=u32::MAX.into()],
        /// How much of it to any one endpoint.
        pub per_endpoint: Option<Spanned<EndpointLimits>> as "perEndpoint",
    }
}

layered! {
    /// How much may be under way to one endpoint of a service, in each proxy.
    pub struct EndpointLimits {
        /// Connections.
        pub max_connections: Option<u32> as "maxConnections" [1..=u32::MAX.into()],
        /// Requests that wait for a connection. One that is at it is passed by while another is not; where all are, requests
        /// that would have to wait are refused.
        pub max_pending_requests: Option<u32> as "maxPendingRequests" [1..=u32::MAX.into()],
        /// Requests. One that is at it is passed by while another is not; where all are, requests are refused.
        pub max_requests: Option<u32> as "maxRequests" [1..=u32::MAX.into()],
        /// Retries. One that is at it is passed by while another is not; where all are, there is none.
        pub max_retries: Option<u32> as "maxRetries" [1..=u32::MAX.into()],
    }
}

layered! {
    /// When an endpoint is left out for a while, until one request has tried it. The names are Envoy's.
    pub struct OutlierDetection {
        /// After so many failures in a row; 5 when absent, 0: never by these.
        pub consecutive_5xx: Option<u32> as "consecutive5xx" [0..=u32::MAX.into()],
        /// After so many times 502, 503 or 504 in a row; never by these when absent or 0.
        pub consecutive_gateway_failure: Option<u32> as "consecutiveGatewayFailure" [0..=u32::MAX.into()],
        /// Whether attempts without a response (refused, reset, timed out) are told apart from statuses; they count as
        /// 5xx and as gateway errors when absent.
        pub split_external_local_origin_errors: Option<bool> as "splitExternalLocalOriginErrors",
        /// After so many attempts without a response in a row, where they are told apart; 5 when absent, 0: never by
        /// these.
        pub consecutive_local_origin_failure: Option<Spanned<u32>> as "consecutiveLocalOriginFailure" [0..=u32::MAX.into()],
        /// How often rates (`successRate`, `failurePercentage`) are looked at; 10 s when absent.
        pub interval: Option<Spanned<GatewayDuration>>,
        /// When it succeeds less often than the fleet does; never by this when absent.
        pub success_rate: Option<OutlierSuccessRate> as "successRate",
        /// When it fails too often, whatever the fleet does; never by this when absent.
        pub failure_percentage: Option<OutlierFailurePercentage> as "failurePercentage",
        /// For so long, multiplied by how often it happened; 30 s when absent.
        pub base_ejection_time: Option<Spanned<GatewayDuration>> as "baseEjectionTime",
        /// The longest time; 300 s, or one base time where that is longer, when absent.
        pub max_ejection_time: Option<Spanned<GatewayDuration>> as "maxEjectionTime",
        /// Never more than this share of the endpoints; 10 when absent.
        pub max_ejection_percent: Option<u32> as "maxEjectionPercent" [1..=100],
        /// When it is left out by every proxy, also by those that have not seen it fail; each goes by what it sees itself
        /// when absent.
        pub shared: Option<SharedEjection>,
    }
}

layered! {
    /// When ejections count for everybody: when both hold.
    pub struct SharedEjection {
        /// So many have ejected the endpoint; 2 when absent. One alone never suffices.
        pub observers: Option<u32> [2..=100_000],
        /// So many percent of those who have called it of late have; 50 when absent.
        pub percent: Option<u32> [0..=100],
    }
}

layered! {
    /// When an endpoint succeeds less often than the fleet does.
    pub struct OutlierSuccessRate {
        /// So many endpoints must have been asked enough; 5 when absent.
        pub minimum_hosts: Option<u32> as "minimumHosts" [1..=100_000],
        /// So many attempts in an interval are enough; 100 when absent.
        pub request_volume: Option<u32> as "requestVolume" [1..=u32::MAX.into()],
        /// So many standard deviations below the mean, in thousandths; 1900 when absent.
        pub stdev_factor: Option<u32> as "stdevFactor" [1..=1_000_000],
    }
}

layered! {
    /// When an endpoint fails too often.
    pub struct OutlierFailurePercentage {
        /// Percent of attempts; 85 when absent.
        pub threshold: Option<u32> [1..=100],
        /// So many endpoints must have been asked enough; 5 when absent.
        pub minimum_hosts: Option<u32> as "minimumHosts" [1..=100_000],
        /// So many attempts in an interval are enough; 50 when absent.
        pub request_volume: Option<u32> as "requestVolume" [1..=u32::MAX.into()],
    }
}

layered! {
    /// Whether a failed attempt is repeated.
    pub struct TrafficRetry {
        /// How often after the first attempt.
        pub attempts: Option<u32> [0..=100],
        /// After which failures; `reset`, `connect-failure` and `refused-stream` when empty. On layer 4 only connections
        /// are made again.
        pub on: Vec<Spanned<RetryOn>> [0..=64],
        /// How long one attempt may take. Not on layer 4.
        pub per_try_timeout: Option<GatewayDuration> as "perTryTimeout",
        /// How long to wait between attempts.
        pub backoff: Option<Spanned<Backoff>>,
        /// How many retries there may be in relation to requests.
        pub budget: Option<RetryBudget>,
    }
}

layered! {
    /// How long to wait between attempts: a random time that grows from `base` to `max`.
    pub struct Backoff {
        /// Before the first retry.
        pub base: Option<GatewayDuration>,
        /// Before any retry.
        pub max: Option<GatewayDuration>,
    }
}

layered! {
    /// How many retries there may be in relation to requests: the larger of the two. As long as retries do not help, there
    /// are few whatever it says: after five in a row that ended badly, one for three attempts that ended well and one for
    /// fifty retries that were refused, until one helps.
    pub struct RetryBudget {
        /// Of the requests of the last ten seconds; 20 when absent.
        pub percent: Option<u32> [0..=100],
        /// Ten times as many are always allowed in ten seconds, be it at once; 3 when absent.
        pub min_per_second: Option<u32> as "minPerSecond",
    }
}

layered! {
    /// How long things may take.
    pub struct TrafficTimeouts {
        /// A request, all attempts included. Not on layer 4.
        pub request: Option<GatewayDuration>,
        /// Making a connection.
        pub connect: Option<GatewayDuration>,
        /// A connection to an endpoint without a request, 60 s when absent; on layer 4 one without a byte.
        pub idle: Option<GatewayDuration>,
        /// A request or response of which nothing moves; the proxy's `--stream-idle-timeout` when absent. Not on layer 4,
        /// where `idle` says it.
        pub stream_idle: Option<GatewayDuration> as "streamIdle",
        /// A request with its response, or a tunnel, whatever moves; no limit when absent. Not on layer 4.
        pub max_stream_duration: Option<GatewayDuration> as "maxStreamDuration",
        /// Whether a gateway goes by what callers from outside of the mesh say of how long a request has (`grpc-timeout`,
        /// `x-envoy-expected-rq-timeout-ms`); `Ignore` when absent. Callers in the mesh are always believed. Not on layer 4.
        pub caller_deadline: Option<CallerDeadline> as "callerDeadline",
    }
}

choice! {
    /// Whether a caller from outside of the mesh may say how long a request has.
    pub enum CallerDeadline {
        /// It may not.
        Ignore = "Ignore",
        /// It may.
        Accept = "Accept",
    }
}

words!(CallerDeadline, ProxyProtocolVersion);

/// A failure after which an attempt may be repeated. The words are Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryOn {
    /// `5xx`: any status from 500, and no answer at all.
    ServerError,
    /// `gateway-error`: 502, 503, 504, and no answer at all.
    GatewayError,
    /// `reset`: the connection broke before the response began, or the attempt's time was over.
    Reset,
    /// `connect-failure`: there was no connection.
    ConnectFailure,
    /// `refused-stream`: the peer said that it processed nothing.
    RefusedStream,
    /// A status, 400 to 599.
    Status(u16),
    /// A gRPC status by its name (`unavailable`, …): its number.
    Grpc(u8),
}

const FAILURES: [(&str, RetryOn); 10] = [
    ("5xx", RetryOn::ServerError),
    ("gateway-error", RetryOn::GatewayError),
    ("reset", RetryOn::Reset),
    ("connect-failure", RetryOn::ConnectFailure),
    ("refused-stream", RetryOn::RefusedStream),
    ("cancelled", RetryOn::Grpc(1)),
    ("deadline-exceeded", RetryOn::Grpc(4)),
    ("resource-exhausted", RetryOn::Grpc(8)),
    ("internal", RetryOn::Grpc(13)),
    ("unavailable", RetryOn::Grpc(14)),
];

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, FAILURES.iter().find(|(_, failure)| failure == self)) {
            (Self::Status(status), _) => write!(f, "{status}"),
            (_, Some((name, _))) => f.write_str(name),
            (Self::Grpc(code), None) => write!(f, "gRPC status {code}"),
            (_, None) => unreachable!("every failure but a status has a name"),
        }
    }
}

impl serde::Serialize for RetryOn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Status(status) => serializer.serialize_u16(*status),
            other => serializer.collect_str(other),
        }
    }
}

impl Decode for RetryOn {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let written = match &node.value {
            Value::Int(number) => number.to_string(),
            Value::Text(text) => text.clone(),
            _ => return cx.wrong_type(node, "a failure's name or a status"),
        };
        if let Some((_, failure)) = FAILURES.iter().find(|(name, _)| *name == written) {
            return Some(*failure);
        }
        if let Some(status) = written.parse().ok().filter(|status| (400..=599).contains(status)) {
            return Some(Self::Status(status));
        }
        let names = FAILURES.map(|(name, _)| name);
        let message = format!(
            "`{}` cannot be `{}`; it is a status from 400 to 599 or one of {}",
            cx.path(),
            shorten(&written),
            list(&names)
        );
        cx.error(node.span, codes::UNKNOWN_VALUE, message).help =
            nearest(&written, &names).map(|name| format!("did you mean `{name}`?"));
        None
    }
}

impl TrafficLimits {
    fn is_empty(&self) -> bool {
        let Self { max_connections, max_pending_requests, max_requests, max_retries, per_endpoint } = self;
        let own = [max_connections, max_pending_requests, max_requests, max_retries];
        own.into_iter().all(Option::is_none) && per_endpoint.is_none()
    }
}

impl EndpointLimits {
    fn is_empty(&self) -> bool {
        let Self { max_connections, max_pending_requests, max_requests, max_retries } = self;
        let all = [max_connections, max_pending_requests, max_requests, max_retries];
        all.into_iter().all(Option::is_none)
    }
}

impl TrafficTimeouts {
    fn is_empty(&self) -> bool {
        let Self { request, connect, idle, stream_idle, max_stream_duration, caller_deadline } = self;
        let times = [request, connect, idle, stream_idle, max_stream_duration];
        times.into_iter().all(Option::is_none) && caller_deadline.is_none()
    }
}

/// Tells the paths of all that a policy can say.
#[cfg(test)]
pub(crate) fn traffic_fields(tell: &mut dyn FnMut(&str)) {
    <TrafficPolicy as Overlay>::fields("", tell);
}

/// Where traffic policies can be attached.
const TARGETS: [ObjectKind; 4] =
    [ObjectKind::Service, ObjectKind::HTTPRoute, ObjectKind::Gateway, ObjectKind::Namespace];

impl Body for TrafficPolicy {
    in_spec!();

    fn validate(&self, meta: &ObjectMeta, cx: &mut Cx) {
        target::validate(&self.target_refs, &TARGETS, meta, cx);
        self.validate_proxy_protocol(cx);
        self.validate_scope(cx);
        if let Some(breaker) = &self.circuit_breaker {
            circuit_breaker::validate_scope(breaker, &self.target_refs, cx);
        }
        self.validate_shaping_scope(cx);
        self.agree(cx);
    }
}

impl TrafficPolicy {
    /// This policy with what a wider one says of what this does not say. What that one says beside an algorithm that is
    /// another one here has no meaning any more; so it is with what goes by failures that are not told apart here.
    #[must_use]
    pub fn over(&self, wider: &Self) -> Self {
        let mut wider = wider.clone();
        let own = self.load_balancer.as_ref().and_then(|balancer| balancer.algorithm);
        if let (Some(algorithm), Some(balancer)) = (own, &mut wider.load_balancer) {
            balancer.inner.keep_what_fits(algorithm);
        }
        let own = self.outlier_detection.as_ref();
        if let Some(outlier) = &mut wider.outlier_detection
            && own.is_some_and(|own| own.split_external_local_origin_errors == Some(false))
        {
            outlier.consecutive_local_origin_failure = None;
        }
        Overlay::over(self, &wider)
    }

    /// The same policy as far as it is about requests: what is said of them by whatever is on their way.
    #[must_use]
    pub fn of_requests(&self) -> Self {
        Self {
            load_balancer: None,
            limits: None,
            outlier_detection: None,
            health_check: None,
            circuit_breaker: None,
            proxy_protocol: None,
            admission_control: None,
            overload: None,
            ..self.clone()
        }
    }

    /// What does not fit together in this policy laid over wider ones, the narrowest first: each of them is good by
    /// itself. `object`: the one that says this, where it is told.
    #[must_use]
    pub fn contradictions(&self, object: &Object, wider: &[&Self]) -> Vec<Diagnostic> {
        let start = Span { line: object.source.line, column: object.source.column, len: 0 };
        let mut wider = wider.iter();
        let Some(first) = wider.next().map(|first| (*first).clone()) else { return Vec::new() };
        let merged = wider.fold(first, |merged, wider| merged.over(wider));
        let mut cx = Cx::new(&object.source.file, start);
        self.over(&merged.placed(start)).agree(&mut cx);
        cx.found
    }

    /// What is said fits together, whatever it is said of.
    fn agree(&self, cx: &mut Cx) {
        self.validate_outlier_detection(cx);
        if let Some(balancer) = &self.load_balancer {
            load_balancer::validate(balancer, cx);
        }
        if let Some(check) = &self.health_check {
            health_check::validate(check, cx);
        }
        if let Some(breaker) = &self.circuit_breaker {
            circuit_breaker::validate(breaker, cx);
        }
        if let Some(admission) = &self.admission_control {
            admission_control::validate(admission, cx);
        }
        if let Some(overload) = &self.overload {
            overload::validate(overload, cx);
        }
        self.rate_limit.iter().for_each(|limit| limit.validate(limit.span, cx));
        self.fault_injection.iter().for_each(|fault| fault.validate(fault.span, cx));
        self.validate_says_something(cx);
        self.hedge.iter().for_each(|hedge| hedge::validate(hedge, cx));
        let Some(retry) = &self.retry else { return };
        let request = self.timeouts.as_ref().and_then(|timeouts| timeouts.request);
        if let (Some(attempt), Some(request)) = (retry.per_try_timeout, request)
            && !request.is_zero()
            && attempt > request
        {
            let message =
                format!("`retry.perTryTimeout` ({attempt}) is longer than `timeouts.request` ({request})");
            cx.error(retry.span, codes::CONFLICTING_FIELDS, message).help =
                Some("shorten `perTryTimeout`, or give the request more time".to_owned());
        }
        if let Some(backoff) = &retry.backoff
            && let (Some(base), Some(max)) = (backoff.base, backoff.max)
            && base > max
        {
            let message = format!("`retry.backoff.base` ({base}) is longer than `max` ({max})");
            cx.error(backoff.span, codes::CONFLICTING_FIELDS, message).help =
                Some("write the shorter one as `base`".to_owned());
        }
    }
}

impl TrafficPolicy {
    /// What is counted for a service, whoever calls it, cannot be said by one of the ways to it.
    fn validate_scope(&self, cx: &mut Cx) {
        let fits = |kind| matches!(kind, Some(ObjectKind::Service | ObjectKind::Namespace));
        let Some(other) = self.target_refs.iter().find(|target| !fits(target.object_kind())) else { return };
        let of_services = [
            ("loadBalancer", self.load_balancer.is_some()),
            ("limits", self.limits.is_some()),
            ("outlierDetection", self.outlier_detection.is_some()),
            ("healthCheck", self.health_check.is_some()),
            ("admissionControl", self.admission_control.is_some()),
            ("overload", self.overload.is_some()),
        ];
        for (field, _) in of_services.into_iter().filter(|(_, is_there)| *is_there) {
            let message = format!(
                "`{field}` is for services and namespaces; the policy is attached to a {} too",
                other.kind
            );
            cx.error(other.span, codes::CONFLICTING_FIELDS, message).help =
                Some("write a policy of its own for the services that are called".to_owned());
        }
    }

    /// A namespace has many services, and none of them alone has such a limit or such a fault.
    fn validate_shaping_scope(&self, cx: &mut Cx) {
        let Some(namespace) =
            self.target_refs.iter().find(|target| target.object_kind() == Some(ObjectKind::Namespace))
        else {
            return;
        };
        let shaping =
            [("rateLimit", self.rate_limit.is_some()), ("faultInjection", self.fault_injection.is_some())];
        for (field, _) in shaping.into_iter().filter(|(_, is_there)| *is_there) {
            let message = format!(
                "`{field}` is for services, routes and gateways; the policy is attached to a Namespace too"
            );
            cx.error(namespace.span, codes::CONFLICTING_FIELDS, message).help =
                Some("write a policy of its own for what is called".to_owned());
        }
    }

    /// A part without a word would hold its place against a policy that says something.
    fn validate_says_something(&self, cx: &mut Cx) {
        let limits = self.limits.as_ref();
        let each = limits.and_then(|limits| limits.per_endpoint.as_ref());
        let timeouts = self.timeouts.as_ref();
        let empty = [
            (limits.filter(|limits| limits.is_empty()).map(|limits| limits.span), "limits", "maxRequests"),
            (
                each.filter(|each| each.is_empty()).map(|each| each.span),
                "limits.perEndpoint",
                "maxConnections",
            ),
            (timeouts.filter(|times| times.is_empty()).map(|times| times.span), "timeouts", "request"),
        ];
        for (span, field, example) in empty {
            let Some(span) = span else { continue };
            cx.error(span, codes::MISSING_FIELD, format!("`{field}` says nothing")).help =
                Some(format!("write what it is about (`{example}`, …), or remove it"));
        }
    }

    fn validate_outlier_detection(&self, cx: &mut Cx) {
        let Some(outlier) = &self.outlier_detection else { return };
        if let Some(row) = &outlier.consecutive_local_origin_failure
            && outlier.split_external_local_origin_errors != Some(true)
        {
            let message = "`outlierDetection.consecutiveLocalOriginFailure` counts nothing unless \
                           `splitExternalLocalOriginErrors` is true"
                .to_owned();
            cx.error(row.span, codes::CONFLICTING_FIELDS, message).help =
                Some("add `splitExternalLocalOriginErrors: true`, or remove it".to_owned());
        }
        let has_rates = outlier.success_rate.is_some() || outlier.failure_percentage.is_some();
        if let Some(interval) = outlier.interval.as_ref().filter(|interval| interval.is_zero()) {
            let message = "`outlierDetection.interval` is 0s; rates of no time are none";
            cx.error(interval.span, codes::CONFLICTING_FIELDS, message).help =
                Some("write a time longer than none, or leave it out for 10s".to_owned());
        } else if let Some(interval) = outlier.interval.as_ref().filter(|_| !has_rates) {
            let message = "`outlierDetection.interval` does nothing without `successRate` and `failurePercentage`: \
                           failures in a row are counted as they come";
            cx.error(interval.span, codes::CONFLICTING_FIELDS, message).help =
                Some("add one of them (`failurePercentage: {}`), or remove it".to_owned());
        }
        let times = [
            ("baseEjectionTime", &outlier.base_ejection_time, "30s"),
            ("maxEjectionTime", &outlier.max_ejection_time, "300s"),
        ];
        for (field, time, default) in times {
            let Some(time) = time.as_ref().filter(|time| time.is_zero()) else { continue };
            let message = format!("`outlierDetection.{field}` is 0s: nothing would be left out for any time");
            cx.error(time.span, codes::CONFLICTING_FIELDS, message).help =
                Some(format!("write a time longer than none, or leave it out for {default}"));
        }
        if let (Some(base), Some(longest)) = (&outlier.base_ejection_time, &outlier.max_ejection_time)
            && base.inner > longest.inner
        {
            let base = base.inner;
            let message = format!(
                "`outlierDetection.baseEjectionTime` ({base}) is longer than `maxEjectionTime` ({})",
                longest.inner
            );
            cx.error(longest.span, codes::CONFLICTING_FIELDS, message).help =
                Some("write the shorter one as `baseEjectionTime`".to_owned());
        }
    }

    /// A service says of itself that it takes the header; nobody else can.
    fn validate_proxy_protocol(&self, cx: &mut Cx) {
        let Some(version) = &self.proxy_protocol else { return };
        let other = self.target_refs.iter().find(|t| t.object_kind() != Some(ObjectKind::Service));
        if let Some(other) = other {
            let message =
                format!("`proxyProtocol` is for services; the policy is attached to a {} too", other.kind);
            cx.error(version.span, codes::CONFLICTING_FIELDS, message).help =
                Some("write a policy of its own for the services that take it".to_owned());
        }
    }
}
