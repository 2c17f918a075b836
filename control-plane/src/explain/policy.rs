//! What applies on the way to a cluster, with who said it.

use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_decision::{
    Abort, AuthorizationPolicy, BreakerMode, Cause, CircuitBreaker, Cluster, FaultInjection, ForcedBy,
    HealthProbe, HedgeDelay, InboundPort, Matched, Overload, OwnedRequest, RateLimit, RetryBudget,
    RetryPolicy, Share, Sources, is_idempotent,
};
use meshwork_resources::RetryOn;

use super::answer::{
    Admission, Breaker, EndpointLimits, Limits, Part, Retry, Said, Source, Story, Timeouts, Verdict,
};
use super::words;

/// The times of a request to this cluster.
pub(super) fn timeouts(
    matched: &Matched<'_>,
    cluster: &Cluster,
    sources: &Sources,
    story: &mut Story,
) -> Timeouts {
    let said = matched.policy().timeouts(Some(cluster));
    let per_try = matched.policy().retry(cluster).and_then(|retry| retry.per_try_timeout);
    let mut one = |name: &str, value: Option<Duration>, path: &str| {
        let (value, origin) = (format!("{:?}", value?), sources.of(path));
        story.tell("timeouts", name, "noted", format!("{value}{}", words::by(sources, path)));
        Some(Said { value, source: origin.and_then(|origin| Source::of(origin)), sources: BTreeMap::new() })
    };
    let timeouts = Timeouts {
        request: one("request", said.request, "timeouts.request_ms"),
        backend_request: one("backendRequest", said.backend_request, "timeouts.backend_request_ms"),
        backend_request_ends_attempts: said
            .backend_request
            .is_some_and(|time| per_try.is_none_or(|per_try| time < per_try)),
        connect: one("connect", said.connect, "timeouts.connect_ms"),
        idle: one("idle", said.idle, "timeouts.idle_ms"),
        stream_idle: one("streamIdle", said.stream_idle, "timeouts.stream_idle_ms"),
        max_stream_duration: one("maxStreamDuration", said.max_stream, "timeouts.max_stream_ms"),
        caller_deadline: sources.of("timeouts.caller_deadline").map(|origin| Said {
            value: if said.believes_callers { "Accept" } else { "Ignore" }.to_owned(),
            source: Source::of(origin),
            sources: BTreeMap::new(),
        }),
    };
    if said == meshwork_decision::Timeouts::default() {
        story.tell("timeouts", cluster.key.to_string(), "noted", "nothing is said: no limit on the request");
    }
    timeouts
}

/// How failed attempts are repeated.
pub(super) fn retry(
    matched: &Matched<'_>,
    cluster: &Cluster,
    sources: &Sources,
    method: &str,
    story: &mut Story,
) -> Option<Retry> {
    let Some(policy) = matched.policy().retry(cluster) else {
        story.tell(
            "retry",
            cluster.key.to_string(),
            "noted",
            "no policy: what no endpoint has seen is tried elsewhere, what may be done twice once more after a reset",
        );
        return None;
    };
    let on = on(policy);
    let why = format!(
        "up to {} more attempts on {}{}{}{}",
        policy.attempts,
        called_for(policy).join(", "),
        bounds(policy),
        unless_idempotent(policy, method),
        words::by(sources, "retry")
    );
    story.tell("retry", cluster.key.to_string(), "noted", why);
    Some(Retry {
        attempts: policy.attempts,
        status_codes: policy.status_codes.to_vec(),
        grpc_codes: policy.grpc_codes.to_vec(),
        on,
        per_try_timeout: policy.per_try_timeout.map(|time| format!("{time:?}")),
        backoff_base: format!("{:?}", policy.backoff_base),
        backoff_max: format!("{:?}", policy.backoff_max),
        budget_percent: Some(policy.budget.percent),
        source: words::narrowest(sources, "retry"),
        sources: words::by_field(sources, "retry"),
    })
}

/// How long an attempt is waited for, and how many there may be beside requests.
fn bounds(policy: &RetryPolicy) -> String {
    let time = policy.per_try_timeout.map(|time| format!(", each of at most {time:?}")).unwrap_or_default();
    let RetryBudget { percent, min_per_second } = policy.budget;
    let least = match min_per_second {
        0 => String::new(),
        some => format!(", and {some} a second in any case"),
    };
    format!("{time}; {percent} % of the requests may be retries{least}")
}

/// What calls for another attempt, in the words of a policy.
fn called_for(policy: &RetryPolicy) -> Vec<String> {
    let all = (500..600).all(|status| policy.status_codes.contains(&status));
    let statuses = policy.status_codes.iter().filter(|status| !all || **status < 500);
    let any = all.then(|| "5xx".to_owned());
    let names = on(policy).into_iter().map(str::to_owned);
    names.chain(any).chain(statuses.map(ToString::to_string)).chain(grpc_names(policy)).collect()
}

fn grpc_names(policy: &RetryPolicy) -> impl Iterator<Item = String> {
    let known = |code: &u16| u8::try_from(*code).ok();
    policy.grpc_codes.iter().filter_map(known).map(|code| RetryOn::Grpc(code).to_string())
}

/// What of that does not hold for a request that may not be done twice.
fn unless_idempotent(policy: &RetryPolicy, method: &str) -> String {
    if is_idempotent(method) {
        return String::new();
    }
    let names: Vec<String> = grpc_names(policy).collect();
    let or = if names.is_empty() { String::new() } else { format!(", or by gRPC's {}", names.join(", ")) };
    format!("; a {method} that was sent only where no endpoint has processed it{or}")
}

/// Whether what takes long is sent a second time beside the first.
pub(super) fn hedge(matched: &Matched<'_>, cluster: &Cluster, sources: &Sources, story: &mut Story) {
    let Some(policy) = matched.policy().hedge(cluster) else { return };
    let after = match policy.delay {
        HedgeDelay::Fixed(delay) => format!("after {delay:?}"),
        HedgeDelay::Percentile { percent, least } => {
            format!("after as long as {percent} % of the answers took, and no less than {least:?}")
        }
    };
    let budget = policy.budget_percent;
    let by = words::by(sources, "hedge");
    let why = format!("a second attempt {after}, of {budget} % of the requests{by}");
    story.tell("hedge", cluster.key.to_string(), "noted", why);
}

fn on(policy: &RetryPolicy) -> Vec<&'static str> {
    let names = [
        (policy.on_reset, "reset"),
        (policy.on_connect_failure, "connect-failure"),
        (policy.on_refused, "refused-stream"),
    ];
    names.into_iter().filter_map(|(is_on, name)| is_on.then_some(name)).collect()
}

/// How much may be under way; none where nothing is limited.
pub(super) fn limits(cluster: &Cluster, sources: &Sources, story: &mut Story) -> Option<Limits> {
    let limits = cluster.limits;
    let each = [
        ("connections", limits.max_connections, limits.max_connections_per_endpoint),
        ("requests that wait", limits.max_pending_requests, limits.max_pending_requests_per_endpoint),
        ("requests", limits.max_requests, limits.max_requests_per_endpoint),
        ("retries", limits.max_retries, limits.max_retries_per_endpoint),
    ];
    let told = each.iter().flat_map(|(what, all, one)| {
        let all = all.map(|all| format!("{all} {what}"));
        let one = one.map(|one| format!("{one} {what} to one endpoint"));
        all.into_iter().chain(one)
    });
    let told: Vec<String> = told.collect();
    if !told.is_empty() {
        let why = format!("at most {}{}", told.join(", "), words::by(sources, "limits"));
        story.tell("limits", cluster.key.to_string(), "noted", why);
    }
    (limits != meshwork_decision::Limits::default()).then(|| Limits {
        max_connections: limits.max_connections,
        max_pending_requests: limits.max_pending_requests,
        max_requests: limits.max_requests,
        max_retries: limits.max_retries,
        per_endpoint: EndpointLimits {
            max_connections: limits.max_connections_per_endpoint,
            max_pending_requests: limits.max_pending_requests_per_endpoint,
            max_requests: limits.max_requests_per_endpoint,
            max_retries: limits.max_retries_per_endpoint,
        },
        sources: words::by_field(sources, "limits"),
    })
}

/// What takes single endpoints out of the balancer.
pub(super) fn ejection(cluster: &Cluster, sources: &Sources, story: &mut Story) {
    if let Some(policy) = &cluster.outlier_detection {
        let rows = [
            (policy.consecutive_5xx, "failures in a row"),
            (policy.consecutive_gateway_failure, "gateway errors in a row"),
            (
                if policy.split_external_local_origin_errors {
                    policy.consecutive_local_origin_failure
                } else {
                    0
                },
                "failures of local origin in a row",
            ),
        ];
        let rows = rows.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let rates = [
            policy.success_rate.is_some().then(|| "a success rate below the others'".to_owned()),
            policy.failure_percentage.as_ref().map(|is| format!("{} % failures", is.threshold)),
        ];
        let told: Vec<String> = rows.chain(rates.into_iter().flatten()).collect();
        let (time, most) = (policy.base_ejection_time, policy.max_ejection_percent);
        let by = words::by(sources, "outlier_detection");
        let why = if told.is_empty() {
            format!("none for calls that fail: no row of them and no rate is set{by}")
        } else {
            let told = told.join(" or ");
            format!("for {time:?} at first after {told}, of at most {most} % of the endpoints{by}")
        };
        story.tell("ejection", cluster.key.to_string(), "noted", why);
    }
    if let Some(check) = &cluster.health_check {
        let what = match check.probe {
            HealthProbe::Http { .. } => "by HTTP",
            HealthProbe::Tcp { .. } => "by TCP",
            HealthProbe::Grpc { .. } => "by gRPC",
        };
        let by = words::by(sources, "health_check");
        let why = format!("each endpoint is asked {what} every {:?}{by}", check.interval);
        story.tell("checks", cluster.key.to_string(), "noted", why);
    }
}

/// What stands before the application: its sidecar keeps that.
pub(super) fn before_application(
    port: &InboundPort,
    sources: &Sources,
    story: &mut Story,
) -> (Option<Said>, Option<Said>) {
    let mut tell = |phase: &'static str, part: &str, said: Said| {
        let why = format!("{}{}", said.value, words::by(sources, part));
        story.tell(phase, &*port.sni, "noted", why);
        said
    };
    let rate_limit = port.rate_limit.as_deref().map(|limit| rate_limit(limit, sources));
    let rate_limit = rate_limit.map(|said| tell("rate limit", "rate_limit", said));
    let overload = port.overload.as_deref().map(|overload| gate(overload, sources));
    (rate_limit, overload.map(|said| tell("overload", "overload", said)))
}

/// What the caller keeps from a service that has no sidecars.
pub(super) fn overload(cluster: &Cluster, sources: &Sources, story: &mut Story) -> Option<Said> {
    let (_, policy) = cluster.guard()?;
    let said = gate(policy, sources);
    let why = format!("{}{}", said.value, words::by(sources, "overload"));
    story.tell("overload", cluster.key.to_string(), "noted", why);
    Some(said)
}

/// How much an application gets at once, and how many wait.
pub(super) fn gate(policy: &Overload, sources: &Sources) -> Said {
    let (at_once, queue) = (&policy.concurrency, &policy.queue);
    let (least, most) = (at_once.min_concurrency, at_once.max_concurrency);
    let many = if least == most { most.to_string() } else { format!("{least} to {most}") };
    let value = format!("{many} at once, {} wait for {:?} at most", queue.max_requests, queue.max_wait);
    said_by(value, sources, "overload")
}

/// How many requests the rule takes; none where that is not limited.
pub(super) fn of_route(matched: &Matched<'_>, sources: &Sources, story: &mut Story) -> Option<Said> {
    let limit = matched.policy().rate_limit()?;
    let said = rate_limit(limit, sources);
    let why = format!("{}{}", said.value, words::by(sources, "rate_limit"));
    story.tell("rate limit", matched.route().origin.to_string(), "noted", why);
    Some(said)
}

/// How many requests are taken.
pub(super) fn rate_limit(limit: &RateLimit, sources: &Sources) -> Said {
    let spec = limit.spec;
    let shares = if spec.fair_share { ", of which every caller has a share" } else { "" };
    let shadow = if spec.shadow { ", and more are only counted" } else { "" };
    let value = format!("{} requests in {:?}{shares}{shadow}", spec.requests, spec.per);
    said_by(value, sources, "rate_limit")
}

fn said_by(value: String, sources: &Sources, part: &str) -> Said {
    let (source, sources) = (words::narrowest(sources, part), words::by_field(sources, part));
    Said { value, source, sources }
}

/// What is injected into such calls of the cluster. Gives what they are answered with, if that is injected.
pub(super) fn faults(
    matched: &Matched<'_>,
    cluster: &Cluster,
    sources: &Sources,
    request: &OwnedRequest,
    story: &mut Story,
) -> Option<Said> {
    let fault = matched.policy().fault(cluster)?;
    let abort = abort(fault, sources);
    let by = words::by(sources, "fault_injection");
    if !fault.is_about(request) {
        let fields: Vec<String> =
            fault.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let why = format!("it is about requests with {}{by}", fields.join(", "));
        story.tell("fault", cluster.key.to_string(), "skipped", why);
        return abort;
    }
    let delay = fault.delay.as_ref();
    let delay = delay.map(|is| format!("{} are delayed by {:?}", percent(is.share), is.what));
    let abort_told = abort.as_ref().map(|abort| format!("{} are injected", abort.value));
    let slow = fault.bandwidth.as_ref();
    let slow = slow.map(|is| format!("{} are answered with {} bytes per second", percent(is.share), is.what));
    let told: Vec<String> = [delay, abort_told, slow].into_iter().flatten().collect();
    let outcome = if fault.certain_abort().is_some() { "refused" } else { "noted" };
    story.tell("fault", cluster.key.to_string(), outcome, format!("{}{by}", told.join(", ")));
    abort
}

/// What becomes of every such request before an endpoint of the cluster is picked; in the order of the request's way.
pub(super) fn stopped(
    matched: &Matched<'_>,
    cluster: &Cluster,
    of_rule: &Sources,
    sources: &Sources,
    request: &OwnedRequest,
) -> Option<Verdict> {
    if let Some(fault) = matched.policy().fault(cluster).filter(|fault| fault.is_about(request))
        && let Some(abort) = fault.certain_abort()
    {
        let policy = fault.abort.as_ref().map(|abort| abort.origin.to_string());
        let status = Some(abort.status());
        return Some(Verdict { status, policy, ..Verdict::failed(Cause::FaultAbort) });
    }
    let of_route = matched.policy().breaker().map(|breaker| (&breaker.policy, of_rule));
    let of_cluster = breaker_of(cluster).map(|policy| (policy, sources));
    let mut breakers = of_route.into_iter().chain(of_cluster);
    let (_, sources) = breakers.find(|(policy, _)| policy.is_forced_open())?;
    let policy = sources.of("circuit_breaker.mode").map(ToString::to_string);
    Some(Verdict { policy, ..Verdict::failed(Cause::CircuitBreaker) })
}

/// How many of such requests are answered instead of the cluster.
pub(super) fn aborted(matched: &Matched<'_>, cluster: &Cluster, request: &OwnedRequest) -> Part {
    let fault = matched.policy().fault(cluster).filter(|fault| fault.is_about(request));
    let share = fault.and_then(|fault| fault.abort.as_ref()).map(|abort| abort.share);
    share.map_or_else(Part::default, |share| {
        Part::of([(share.numerator.into(), Part::ALL)], share.denominator.into())
    })
}

fn abort(fault: &FaultInjection, sources: &Sources) -> Option<Said> {
    let abort = fault.abort.as_ref()?;
    let with = match abort.what {
        Abort::Status(status) => format!("status {status}"),
        Abort::Grpc(status) => format!("gRPC status {status}"),
    };
    let value = format!("{with} to {}", percent(abort.share));
    Some(said_by(value, sources, "fault_injection.abort"))
}

fn percent(share: Share) -> String {
    format!("{} % of the requests", f64::from(share.numerator) * 100.0 / f64::from(share.denominator))
}

/// What an authorization policy does, by the name with which refusals are written down.
pub(super) fn action(policy: &AuthorizationPolicy) -> (String, Said) {
    let name = format!("{} {}", policy.origin.kind, policy.origin.qualified);
    let (value, source) = (format!("{:?}", policy.action), Source::of(&policy.origin));
    (name, Said { value, source, sources: BTreeMap::new() })
}

/// When the cluster, or each of its endpoints, is not called for a while; none where it always is.
pub(super) fn breaker(cluster: &Cluster, sources: &Sources, story: &mut Story) -> Option<Breaker> {
    let policy = breaker_of(cluster)?;
    let whose = if cluster.circuit_breaker.is_none() { "each endpoint's " } else { "" };
    let (outcome, why) = opens(policy);
    let by = words::by(sources, "circuit_breaker");
    story.tell("breaker", cluster.key.to_string(), outcome, format!("{whose}{why}{by}"));
    Some(told(policy, sources))
}

fn breaker_of(cluster: &Cluster) -> Option<&CircuitBreaker> {
    cluster.circuit_breaker.as_ref().or(cluster.endpoint_breaker.as_ref())
}

/// When it refuses.
fn opens(policy: &CircuitBreaker) -> (&'static str, String) {
    let rates = || {
        let (least, time) = (policy.minimum_calls, policy.open_time);
        let failed =
            policy.failure_percent.map(|percent| format!("{percent} % of at least {least} calls fail"));
        let slow = policy.slow_calls.map(|(after, percent)| match &failed {
            Some(_) => format!("{percent} % take longer than {after:?}"),
            None => format!("{percent} % of at least {least} calls take longer than {after:?}"),
        });
        let rates: Vec<String> = [failed, slow].into_iter().flatten().collect();
        format!("for {time:?} when {}", rates.join(", or "))
    };
    match policy.mode {
        BreakerMode::Enforce => ("noted", format!("opens {}", rates())),
        BreakerMode::Observe => ("noted", format!("would open {}: it only observes", rates())),
        BreakerMode::ForcedOpen => ("refused", format!("{}: nobody is called", ForcedBy::POLICY)),
        BreakerMode::ForcedClosed => ("noted", "forced closed by its policy: it refuses nobody".to_owned()),
    }
}

/// How many calls of the cluster are held back; none where nobody holds back.
pub(super) fn admission(cluster: &Cluster, sources: &Sources, story: &mut Story) -> Option<Admission> {
    let policy = cluster.admission.as_ref()?;
    let (threshold, most) = (policy.success_rate_threshold, policy.max_rejection_probability);
    let by = words::by(sources, "admission_control");
    let why = format!("up to {most} % are held back when less than {threshold} % succeed{by}");
    story.tell("admission", cluster.key.to_string(), "noted", why);
    Some(Admission {
        sampling_window: format!("{:?}", policy.sampling_window),
        success_rate_threshold: threshold,
        max_rejection_probability: most,
        source: words::narrowest(sources, "admission_control"),
        sources: words::by_field(sources, "admission_control"),
    })
}

/// When nobody is called by the rule for a while; none where it may always be.
pub(super) fn route_breaker(matched: &Matched<'_>, sources: &Sources, story: &mut Story) -> Option<Breaker> {
    let breaker = matched.policy().breaker()?;
    let (outcome, why) = opens(&breaker.policy);
    let why = format!("{why}; all calls by it count together{}", words::by(sources, "circuit_breaker"));
    story.tell("breaker", breaker.to_string(), outcome, why);
    Some(told(&breaker.policy, sources))
}

fn told(policy: &CircuitBreaker, sources: &Sources) -> Breaker {
    Breaker {
        mode: format!("{:?}", policy.mode),
        minimum_calls: policy.minimum_calls,
        failure_percent: policy.failure_percent,
        slow_percent: policy.slow_calls.map(|(_, percent)| percent),
        open_time: format!("{:?}", policy.open_time),
        source: words::narrowest(sources, "circuit_breaker"),
        sources: words::by_field(sources, "circuit_breaker"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_is_told_in_the_words_of_a_policy_and_as_far_as_it_holds_for_the_method() {
        let policy = RetryPolicy {
            attempts: 2,
            status_codes: (429..430).chain(500..600).collect(),
            grpc_codes: [8, 14].into(),
            on_reset: true,
            on_connect_failure: false,
            on_refused: false,
            per_try_timeout: None,
            backoff_base: Duration::ZERO,
            backoff_max: Duration::ZERO,
            budget: RetryBudget::DEFAULT,
        };
        let told = ["reset", "5xx", "429", "resource-exhausted", "unavailable"];
        assert_eq!(called_for(&policy), told);
        assert_eq!(unless_idempotent(&policy, "GET"), "");
        let only = "; a POST that was sent only where no endpoint has processed it";
        assert_eq!(
            unless_idempotent(&policy, "POST"),
            format!("{only}, or by gRPC's resource-exhausted, unavailable")
        );
        let some = RetryPolicy { status_codes: [502, 503].into(), grpc_codes: [].into(), ..policy };
        assert_eq!(called_for(&some), ["reset", "502", "503"]);
        assert_eq!(unless_idempotent(&some, "POST"), only);
    }
}
