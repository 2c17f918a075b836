//! Meshwork's policies: what they are attached to, which of two wins, and their messages.

mod admission_control;
mod combined;
mod effect;
mod health_check;
mod hedge;
mod load_balancer;
mod overload;
mod siblings;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use meshwork_base::{Code, QualifiedName};
use meshwork_messages::v1;
use meshwork_messages::v1::authorization_policy::Action;
use meshwork_messages::v1::authorization_rule::{Operation, Peer};
use meshwork_messages::v1::circuit_breaker::{Mode as WireMode, Window};
use meshwork_messages::v1::inbound_policy::Mtls;
use meshwork_messages::v1::policy::{Spec, Target};
use meshwork_messages::v1::retry::On;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_messages::v1::timeouts::CallerDeadline as WireCallerDeadline;
use meshwork_messages::v1::traffic_policy::{Algorithm, ProxyProtocol as WireProxyProtocol};
use meshwork_resources::{
    AuthorizationAction, AuthorizationFrom, AuthorizationPolicy, AuthorizationTo, BreakerMode, BreakerScope,
    CallerDeadline, CircuitBreaker, EndpointLimits, HTTPRoute, InboundMtls, InboundPolicy, Kind,
    ListenerPolicy, LoadBalancerAlgorithm, Object, ObjectKey, ObjectKind, OutlierDetection, PolicyTarget,
    ProxyProtocolVersion, RetryOn, Severity, Spanned, TrafficLimits, TrafficPolicy, TrafficRetry,
};

use crate::Cx;
use crate::codes;
use crate::gateway::Gateways;
use crate::index::{Name, qualified, source, why_first};
use crate::output::{ByKey, ResourceKey, ResourceType};
use crate::rule::{millis, said_ms, timeout_ms};
use crate::service::{in_mesh, port_protocol, ports_of};
use crate::shaping;
use crate::status::{AncestorStatus, ParentReference, Status};

/// Compiles every policy, in order of precedence; `known` are the resources that policies act on.
pub(crate) fn policies(cx: &mut Cx<'_>, gateways: &Gateways<'_>, known: &ByKey) {
    let mut taken = HashMap::new();
    let mut drafts = Vec::new();
    for object in cx.index.policies.iter().copied() {
        let (targets, spec) = match &object.kind {
            Kind::TrafficPolicy(policy) => (&policy.target_refs, Spec::Traffic(traffic(policy))),
            Kind::AuthorizationPolicy(policy) => {
                (&policy.target_refs, Spec::Authorization(authorization(policy)))
            }
            Kind::InboundPolicy(policy) => (&policy.target_refs, Spec::Inbound(inbound(policy))),
            Kind::ListenerPolicy(policy) => (&policy.target_refs, Spec::Listener(listener(policy))),
            _ => continue,
        };
        drafts.push(draft(cx, (gateways, known), object, targets, spec, &mut taken));
    }
    // Once each has claimed what it names itself.
    drafts.iter_mut().for_each(|draft| siblings::add(cx, draft, &mut taken));
    let mut disagreeing: HashMap<usize, Vec<(usize, String)>> = HashMap::new();
    for found in combined::contradictions(cx, &drafts, known) {
        let of = drafts.iter().position(|draft| std::ptr::eq(draft.object, found.object));
        let Some(of) = of else { continue };
        let at = drafts[of].accepted.iter().position(|target| target == found.target);
        disagreeing.entry(of).or_default().extend(at.map(|at| (at, found.message)));
    }
    for (number, draft) in drafts.into_iter().enumerate() {
        let told = disagreeing.get(&number).map_or(&[][..], Vec::as_slice);
        finish(cx, draft, told);
    }
}

/// What a policy has claimed: kind, target kind, target name, section, part → who claimed it.
type Taken<'a> = HashMap<(ObjectKind, (String, String, String), &'static str), &'a Object>;

/// A policy as far as it is understood by itself and beside those of the same targets.
struct Drafted<'a> {
    object: &'a Object,
    targets: &'a [Spanned<PolicyTarget>],
    spec: Spec,
    accepted: Vec<Target>,
    parents: Vec<ResourceKey>,
    ancestors: Vec<Ancestor>,
}

struct Ancestor {
    status: AncestorStatus,
    /// Which of the accepted targets it is; none where it is not accepted.
    accepted: Option<usize>,
}

fn draft<'a>(
    cx: &mut Cx<'a>,
    there: (&Gateways<'_>, &ByKey),
    object: &'a Object,
    targets: &'a [Spanned<PolicyTarget>],
    spec: Spec,
    taken: &mut Taken<'a>,
) -> Drafted<'a> {
    let namespace = object.meta.namespace.as_str();
    let (mut accepted, mut parents, mut ancestors) = (Vec::new(), Vec::new(), Vec::new());
    for target in targets {
        let found = find(cx, there, namespace, target)
            .and_then(|found| announceable(cx, namespace, target, &spec).map(|()| found))
            .and_then(|found| effect::effective(cx, namespace, target, &spec).map(|()| found))
            .and_then(|found| claim(object, &spec, &found.0, taken).map(|()| found));
        let (place, condition) = match found {
            Ok((target, found_parents)) => {
                accepted.push(target);
                parents.extend(found_parents);
                let condition = cx.condition(object, "Accepted", true, "Accepted", "The policy is attached.");
                (Some(accepted.len() - 1), condition)
            }
            Err(Unattached::NotOurs) => continue,
            Err(Unattached::Because { code, reason, message }) => {
                cx.report.tell(object, target.span, Severity::Error, code, message.clone());
                (None, cx.condition(object, "Accepted", false, reason, message))
            }
        };
        let status = AncestorStatus {
            ancestor_ref: ParentReference {
                group: target.group.to_string(),
                kind: target.kind.to_string(),
                name: target.name.to_string(),
                section_name: target.section_name.as_ref().map(ToString::to_string),
                ..ParentReference::default()
            },
            controller_name: cx.input.settings.controller_name.clone(),
            conditions: vec![condition],
        };
        ancestors.push(Ancestor { status, accepted: place });
    }
    Drafted { object, targets, spec, accepted, parents, ancestors }
}

/// `disagreeing`: what does not fit together with wider policies, by accepted target.
fn finish(cx: &mut Cx<'_>, draft: Drafted<'_>, disagreeing: &[(usize, String)]) {
    let Drafted { object, spec, accepted, parents, ancestors, .. } = draft;
    let ancestors: Vec<AncestorStatus> = ancestors
        .into_iter()
        .map(|Ancestor { mut status, accepted }| {
            let here = disagreeing.iter().filter(|(at, _)| Some(*at) == accepted);
            let told: Vec<&str> = here.map(|(_, message)| message.as_str()).collect();
            if !told.is_empty() {
                let (kind, reason, message) = ("meshwork.dev/Conflicted", "Contradiction", told.join("; "));
                status.conditions.push(cx.condition(object, kind, true, reason, message));
            }
            status
        })
        .collect();
    if !ancestors.is_empty() {
        cx.set_status(object, Status::Policy { ancestors });
    }
    if !accepted.is_empty() {
        let name = qualified((object.meta.namespace.as_str(), object.meta.name.as_str()));
        let message = v1::Policy { source: Some(source(object)), targets: accepted, spec: Some(spec) };
        cx.resources.add(format!("{}/{name}", object.kind.name()), message, parents, vec![]);
    }
}

enum Unattached {
    /// A gateway of another controller.
    NotOurs,
    Because {
        code: Code,
        reason: &'static str,
        message: String,
    },
}

fn not_found(message: String) -> Unattached {
    Unattached::Because { code: codes::TARGET_NOT_FOUND, reason: "TargetNotFound", message }
}

/// Looks up a target and its section; gives the resources that the policy hangs on too.
fn find(
    cx: &Cx<'_>,
    (gateways, known): (&Gateways<'_>, &ByKey),
    namespace: &str,
    target: &PolicyTarget,
) -> Result<(Target, Vec<ResourceKey>), Unattached> {
    let name = (namespace, target.name.as_str());
    let full = qualified(name);
    let section = target.section_name.as_ref().map(|section| section.as_str());
    let absent = || not_found(format!("There is no {} {full}.", target.kind));
    let has_section = |known: Vec<&str>| section.is_none_or(|section| known.contains(&section));
    let (found, parents) = match target.object_kind() {
        Some(ObjectKind::Namespace) => (true, within(known, namespace)),
        Some(ObjectKind::Gateway) => {
            let Some(gateway) = gateways.get(&name) else {
                let known = cx.index.gateways.contains_key(&name);
                return Err(if known { Unattached::NotOurs } else { absent() });
            };
            let names = gateway.listeners.iter().map(|l| l.spec.name.as_str()).collect();
            let open =
                gateway.open_listeners().filter(|l| section.is_none_or(|section| *l.spec.name == *section));
            let parents = open.map(|l| ResourceKey::new(ResourceType::Listener, Arc::clone(&l.name)));
            (has_section(names), parents.collect())
        }
        Some(ObjectKind::Service) => {
            let ports = ports_of(cx, name).ok_or_else(absent)?;
            (
                has_section(ports.into_values().collect()),
                vec![ResourceKey::new(ResourceType::Service, full.clone())],
            )
        }
        Some(ObjectKind::HTTPRoute) => {
            let route = http_route(cx, name).ok_or_else(absent)?;
            let names = route.rules.iter().filter_map(|rule| Some(rule.name.as_ref()?.as_str()));
            (
                has_section(names.collect()),
                vec![ResourceKey::new(ResourceType::Route, format!("HTTPRoute/{full}"))],
            )
        }
        _ => return Err(not_found(format!("Policies are not attached to a {}.", target.kind))),
    };
    if !found {
        let section = section.unwrap_or_default();
        return Err(not_found(format!("{} {full} has no section `{section}`.", target.kind)));
    }
    let name =
        if target.object_kind() == Some(ObjectKind::Namespace) { target.name.to_string() } else { full };
    let section = section.unwrap_or_default().to_owned();
    Ok((Target { kind: target.kind.to_string(), name, section }, parents))
}

/// Whether connections to a service can begin with a PROXY header: each must be one caller's alone, and nobody may stand
/// between who does not know of it.
fn announceable(cx: &Cx<'_>, namespace: &str, target: &PolicyTarget, spec: &Spec) -> Result<(), Unattached> {
    let announces = matches!(spec, Spec::Traffic(policy) if policy.proxy_protocol != 0);
    if !announces || target.object_kind() != Some(ObjectKind::Service) {
        return Ok(());
    }
    let name = (namespace, target.name.as_str());
    let refuse = |why: &str| {
        let message = format!("`proxyProtocol` cannot be sent to Service {}: {why}.", qualified(name));
        Err(Unattached::Because { code: codes::PROXY_PROTOCOL_UNFIT, reason: "Invalid", message })
    };
    if in_mesh(cx, name) {
        return refuse("its instances are in the mesh, where callers prove who they are");
    }
    let wanted = |port: &str| target.section_name.as_ref().is_none_or(|section| **section == *port);
    let ports = ports_of(cx, name).unwrap_or_default();
    let shared = ports.iter().filter(|(_, port)| wanted(port)).any(|(number, _)| {
        matches!(port_protocol(cx, name, *number), Ok(AppProtocol::Http2 | AppProtocol::Grpc))
    });
    if shared {
        return refuse("it speaks HTTP/2, whose connections many callers share");
    }
    Ok(())
}

/// Every resource of a namespace that policies act on.
fn within(known: &ByKey, namespace: &str) -> Vec<ResourceKey> {
    let of = |key: &&ResourceKey| match key.kind {
        ResourceType::Service | ResourceType::Listener => key.name.split('/').next() == Some(namespace),
        ResourceType::Route => key.name.split('/').nth(1) == Some(namespace),
        ResourceType::Secret | ResourceType::EndpointSlice | ResourceType::Policy => false,
    };
    known.keys().filter(of).cloned().collect()
}

fn http_route<'a>(cx: &Cx<'a>, (namespace, name): Name<'_>) -> Option<&'a HTTPRoute> {
    let name = QualifiedName::new(namespace, name).ok()?;
    let key = ObjectKey { kind: ObjectKind::HTTPRoute, namespace: Some(name.namespace), name: name.name };
    match &cx.input.objects.get(&key)?.kind {
        Kind::HTTPRoute(route) => Some(route),
        _ => None,
    }
}

/// Claims the parts that a policy sets at a target; an older policy may hold one. Authorization adds up.
fn claim<'a>(
    object: &'a Object,
    spec: &Spec,
    target: &Target,
    taken: &mut Taken<'a>,
) -> Result<(), Unattached> {
    let parts: Vec<&'static str> = match spec {
        Spec::Authorization(_) => return Ok(()),
        Spec::Inbound(_) => vec!["mtls"],
        Spec::Listener(_) => vec!["proxyProtocol"],
        Spec::Traffic(policy) => [
            ("loadBalancer", policy.algorithm != 0 || policy.load_balancer.is_some()),
            ("limits", policy.limits.is_some()),
            ("outlierDetection", policy.outlier_detection.is_some()),
            ("healthCheck", policy.health_check.is_some()),
            ("circuitBreaker", policy.circuit_breaker.is_some()),
            ("retry", policy.retry.is_some()),
            ("hedge", policy.hedge.is_some()),
            ("timeouts", policy.timeouts.is_some()),
            ("proxyProtocol", policy.proxy_protocol != 0),
            ("rateLimit", policy.rate_limit.is_some()),
            ("faultInjection", policy.fault_injection.is_some()),
            ("admissionControl", policy.admission_control.is_some()),
            ("overload", policy.overload.is_some()),
        ]
        .into_iter()
        .filter_map(|(part, set)| set.then_some(part))
        .collect(),
    };
    let kind = object.kind.name();
    let key =
        |part: &'static str| (kind, (target.kind.clone(), target.name.clone(), target.section.clone()), part);
    for part in &parts {
        if let Some(holder) = taken.get(&key(part)) {
            let name = qualified((holder.meta.namespace.as_str(), holder.meta.name.as_str()));
            let why = why_first(holder, object);
            let message =
                format!("{kind} {name} {why} and sets `{part}` of {} {} too.", target.kind, target.name);
            return Err(Unattached::Because { code: codes::POLICY_CONFLICT, reason: "Conflicted", message });
        }
    }
    taken.extend(parts.into_iter().map(|part| (key(part), object)));
    Ok(())
}

/// What is written and nothing else: what is not said, a policy of a less specific target may say, and proxies know the
/// defaults.
pub(crate) fn traffic(spec: &TrafficPolicy) -> v1::TrafficPolicy {
    let algorithm = match spec.load_balancer.as_ref().and_then(|balancer| balancer.algorithm) {
        None => Algorithm::Unspecified,
        Some(LoadBalancerAlgorithm::LeastRequest) => Algorithm::LeastRequest,
        Some(LoadBalancerAlgorithm::RoundRobin) => Algorithm::RoundRobin,
        Some(LoadBalancerAlgorithm::PeakEwma) => Algorithm::PeakEwma,
        Some(LoadBalancerAlgorithm::Random) => Algorithm::Random,
        Some(LoadBalancerAlgorithm::RingHash) => Algorithm::RingHash,
        Some(LoadBalancerAlgorithm::Maglev) => Algorithm::Maglev,
    };
    v1::TrafficPolicy {
        algorithm: algorithm.into(),
        load_balancer: spec.load_balancer.as_ref().and_then(|said| load_balancer::message(said)),
        limits: spec.limits.as_ref().map(|found| limits(found)),
        outlier_detection: spec.outlier_detection.as_ref().map(outlier_detection),
        health_check: spec.health_check.as_ref().map(|check| health_check::message(check)),
        circuit_breaker: spec.circuit_breaker.as_ref().map(|breaker| circuit_breaker(breaker)),
        admission_control: spec.admission_control.as_ref().map(|found| admission_control::message(found)),
        retry: spec.retry.as_ref().map(|found| retry(found)),
        hedge: spec.hedge.as_ref().map(|found| hedge::hedge(found)),
        timeouts: spec.timeouts.as_ref().map(|timeouts| v1::Timeouts {
            request_ms: timeouts.request.map_or(0, timeout_ms),
            connect_ms: timeouts.connect.map_or(0, timeout_ms),
            idle_ms: timeouts.idle.map_or(0, timeout_ms),
            stream_idle_ms: timeouts.stream_idle.map_or(0, timeout_ms),
            max_stream_ms: timeouts.max_stream_duration.map_or(0, timeout_ms),
            caller_deadline: match timeouts.caller_deadline {
                None => WireCallerDeadline::Unspecified,
                Some(CallerDeadline::Ignore) => WireCallerDeadline::Ignore,
                Some(CallerDeadline::Accept) => WireCallerDeadline::Accept,
            }
            .into(),
        }),
        proxy_protocol: match spec.proxy_protocol.as_ref().map(|version| version.inner) {
            None => WireProxyProtocol::Unspecified,
            Some(ProxyProtocolVersion::V1) => WireProxyProtocol::V1,
            Some(ProxyProtocolVersion::V2) => WireProxyProtocol::V2,
        }
        .into(),
        rate_limit: spec.rate_limit.as_ref().map(|limit| shaping::rate_limit(limit)),
        fault_injection: spec.fault_injection.as_ref().map(|fault| shaping::fault(fault)),
        overload: spec.overload.as_ref().map(|overload| overload::message(overload)),
    }
}

fn outlier_detection(spec: &OutlierDetection) -> v1::OutlierDetection {
    v1::OutlierDetection {
        consecutive_5xx: spec.consecutive_5xx,
        consecutive_gateway_failure: spec.consecutive_gateway_failure,
        consecutive_local_origin_failure: spec.consecutive_local_origin_failure.as_ref().map(|row| row.inner),
        split_external_local_origin_errors: spec.split_external_local_origin_errors,
        interval_ms: said_ms(spec.interval.as_deref()),
        success_rate: spec.success_rate.as_ref().map(|rate| v1::outlier_detection::SuccessRate {
            minimum_hosts: rate.minimum_hosts.unwrap_or_default(),
            request_volume: rate.request_volume.unwrap_or_default(),
            stdev_factor: rate.stdev_factor.unwrap_or_default(),
        }),
        failure_percentage: spec.failure_percentage.as_ref().map(|failures| {
            v1::outlier_detection::FailurePercentage {
                threshold: failures.threshold.unwrap_or_default(),
                minimum_hosts: failures.minimum_hosts.unwrap_or_default(),
                request_volume: failures.request_volume.unwrap_or_default(),
            }
        }),
        base_ejection_time_ms: said_ms(spec.base_ejection_time.as_deref()),
        max_ejection_time_ms: said_ms(spec.max_ejection_time.as_deref()),
        max_ejection_percent: spec.max_ejection_percent.unwrap_or_default(),
        shared: spec.shared.as_ref().map(|shared| v1::outlier_detection::Shared {
            observers: shared.observers.unwrap_or_default(),
            percent: shared.percent,
        }),
    }
}

fn limits(spec: &TrafficLimits) -> v1::Limits {
    let each = |field: fn(&EndpointLimits) -> Option<u32>| {
        spec.per_endpoint.as_ref().and_then(|each| field(each)).unwrap_or_default()
    };
    v1::Limits {
        max_connections: spec.max_connections.unwrap_or_default(),
        max_pending_requests: spec.max_pending_requests.unwrap_or_default(),
        max_requests: spec.max_requests.unwrap_or_default(),
        max_retries: spec.max_retries.unwrap_or_default(),
        max_connections_per_endpoint: each(|each| each.max_connections),
        max_pending_requests_per_endpoint: each(|each| each.max_pending_requests),
        max_requests_per_endpoint: each(|each| each.max_requests),
        max_retries_per_endpoint: each(|each| each.max_retries),
    }
}

fn circuit_breaker(spec: &CircuitBreaker) -> v1::CircuitBreaker {
    let mode = match spec.mode {
        None => WireMode::Unspecified,
        Some(BreakerMode::Enforce) => WireMode::Enforce,
        Some(BreakerMode::Observe) => WireMode::Observe,
        Some(BreakerMode::ForcedOpen) => WireMode::ForcedOpen,
        Some(BreakerMode::ForcedClosed) => WireMode::ForcedClosed,
    };
    let window = spec.window.as_ref().and_then(|window| match (window.calls, window.time) {
        (Some(calls), _) => Some(Window::WindowCalls(calls)),
        (None, Some(time)) => Some(Window::WindowMs(millis(time))),
        (None, None) => None,
    });
    let slow = spec.slow_calls.as_ref();
    v1::CircuitBreaker {
        mode: mode.into(),
        window,
        minimum_calls: spec.minimum_calls.as_ref().map_or(0, |minimum| minimum.inner),
        failure_percent: spec.failure_percent.unwrap_or_default(),
        slow_percent: slow.and_then(|slow| slow.percent).unwrap_or_default(),
        slow_after_ms: slow.map_or(0, |slow| millis(slow.after.inner)),
        open_ms: said_ms(spec.open_time.as_ref()),
        max_open_ms: said_ms(spec.max_open_time.as_ref()),
        trials: spec.trials.unwrap_or_default(),
        per_endpoint: spec.per.as_ref().map(|per| per.inner == BreakerScope::Endpoint),
    }
}

fn retry(spec: &TrafficRetry) -> v1::Retry {
    let backoff = spec.backoff.as_ref();
    v1::Retry {
        attempts: spec.attempts,
        on: (!spec.on.is_empty()).then(|| named(&spec.on)),
        per_try_timeout_ms: spec.per_try_timeout.map_or(0, timeout_ms),
        backoff_base_ms: backoff.and_then(|backoff| backoff.base).map(millis),
        backoff_max_ms: backoff.and_then(|backoff| backoff.max).map(millis),
        budget: spec
            .budget
            .as_ref()
            .map(|budget| v1::RetryBudget { percent: budget.percent, min_per_second: budget.min_per_second }),
    }
}

fn named(failures: &[Spanned<RetryOn>]) -> On {
    let mut named = On::default();
    for failure in failures {
        match failure.inner {
            RetryOn::ServerError => answers(&mut named, 500..=599),
            RetryOn::GatewayError => answers(&mut named, 502..=504),
            RetryOn::Reset => named.reset = true,
            RetryOn::ConnectFailure => named.connect_failure = true,
            RetryOn::RefusedStream => named.refused = true,
            RetryOn::Status(status) => named.status_codes.push(u32::from(status)),
            RetryOn::Grpc(code) => named.grpc_codes.push(u32::from(code)),
        }
    }
    named.status_codes.sort_unstable();
    named.status_codes.dedup();
    named
}

/// These answers, and what would become one of them here: no answer at all (so it is in Envoy).
fn answers(named: &mut On, statuses: RangeInclusive<u32>) {
    named.status_codes.extend(statuses);
    (named.reset, named.connect_failure, named.refused) = (true, true, true);
}

fn authorization(spec: &AuthorizationPolicy) -> v1::AuthorizationPolicy {
    let action = match spec.action.inner {
        AuthorizationAction::Allow => Action::Allow,
        AuthorizationAction::Deny => Action::Deny,
        AuthorizationAction::Audit => Action::Audit,
    };
    let rules = spec
        .rules
        .iter()
        .map(|rule| v1::AuthorizationRule { from: peers(&rule.from), to: operations(&rule.to) });
    v1::AuthorizationPolicy { action: action.into(), rules: rules.collect() }
}

fn peers(from: &[Spanned<AuthorizationFrom>]) -> Vec<Peer> {
    let peer = |from: &AuthorizationFrom| Peer {
        spiffe_ids: texts(&from.spiffe_ids),
        namespaces: texts(&from.namespaces),
    };
    from.iter().map(|from| peer(from)).collect()
}

fn operations(to: &[Spanned<AuthorizationTo>]) -> Vec<Operation> {
    let operation = |to: &AuthorizationTo| Operation {
        hosts: texts(&to.hosts),
        methods: texts(&to.methods),
        paths: texts(&to.paths),
    };
    to.iter().map(|to| operation(to)).collect()
}

fn texts<T: ToString>(values: &[Spanned<T>]) -> Vec<String> {
    values.iter().map(|value| value.inner.to_string()).collect()
}

fn inbound(spec: &InboundPolicy) -> v1::InboundPolicy {
    let mtls = match spec.mtls {
        InboundMtls::Strict => Mtls::Strict,
        InboundMtls::Permissive => Mtls::Permissive,
    };
    v1::InboundPolicy { mtls: mtls.into() }
}

fn listener(spec: &ListenerPolicy) -> v1::ListenerPolicy {
    let said = &spec.proxy_protocol;
    let takes = |version| said.versions.iter().any(|written| written.inner == version);
    let proxy_protocol = v1::listener_policy::ProxyProtocol {
        v1: takes(ProxyProtocolVersion::V1),
        v2: takes(ProxyProtocolVersion::V2),
        required: said.required,
        trusted_sources: texts(&said.trusted_sources),
    };
    v1::ListenerPolicy { proxy_protocol: Some(proxy_protocol) }
}
