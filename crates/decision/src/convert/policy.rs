//! Policies and what they are attached to.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use meshwork_messages::v1;

use super::admission::admission;
use super::overload::overload;
use super::{ConvertError, Result, health_check, load_balancer, timeouts, unknown, value};
use crate::authorization::{
    Action, AuthorizationPolicy, AuthorizationRule, HostRule, Operation, Peers, TextRule,
};
use crate::breaker::{BreakerMode, CircuitBreaker, WindowSize};
use crate::cluster::Algorithm;
use crate::hostname::HostPattern;
use crate::inbound::Mtls;
use crate::limits::Limits;
use crate::origin::Origin;
use crate::outlier::{FailurePercentage, OutlierDetection, SuccessRate};
use crate::policy::{PolicySpec, RequestPolicy, Said, TargetKey, TargetKind, Traffic, TrafficSpec, Words};
use crate::proxy_protocol::{ProxyProtocol, ProxyVersion};
use crate::verdicts::SharedEjection;

/// The calls of this time are looked at where nobody says which.
const BREAKER_WINDOW: std::time::Duration = std::time::Duration::from_secs(10);

/// A policy that cannot be taken.
pub(crate) struct Refused {
    pub(crate) error: ConvertError,
    /// When it may be about authorization: what closes its targets instead.
    pub(crate) closed: Option<PolicySpec>,
}

/// What stands for a policy that this binary lacks a feature for; none where it is not about authorization.
pub(crate) fn closed_policy(name: &Arc<str>, message: &v1::Policy) -> Option<PolicySpec> {
    if !protects(message) {
        return None;
    }
    let origin = Arc::new(Origin::from_message(message.source.as_ref()));
    let targets = message.targets.iter().filter_map(|message| target(message).ok()).collect();
    Some(closed(name, &origin, targets))
}

/// Only what is attached as an authorization policy protects something; an unknown kind of policy may be one.
fn protects(message: &v1::Policy) -> bool {
    !matches!(
        message.spec,
        Some(v1::policy::Spec::Traffic(_) | v1::policy::Spec::Inbound(_) | v1::policy::Spec::Listener(_))
    )
}

fn closed(name: &Arc<str>, origin: &Arc<Origin>, targets: Box<[TargetKey]>) -> PolicySpec {
    let said = Said::Authorization(Arc::new(AuthorizationPolicy::closed(Arc::clone(origin))));
    PolicySpec { name: Arc::clone(name), origin: Arc::clone(origin), targets, said }
}

/// Converts a policy.
pub(crate) fn policy(name: &Arc<str>, message: &v1::Policy) -> std::result::Result<PolicySpec, Box<Refused>> {
    let origin = Arc::new(Origin::from_message(message.source.as_ref()));
    let targets: Vec<_> = message.targets.iter().map(target).collect();
    let known: Box<[TargetKey]> = targets.iter().filter_map(|t| t.as_ref().ok().cloned()).collect();
    let convert = || -> Result<PolicySpec> {
        let targets = targets.into_iter().collect::<Result<_>>()?;
        let said = said(&origin, message.spec.as_ref().ok_or_else(|| unknown("spec"))?)?;
        Ok(PolicySpec { name: Arc::clone(name), origin: Arc::clone(&origin), targets, said })
    };
    convert().map_err(|error| {
        let closed = protects(message).then(|| closed(name, &origin, known));
        Box::new(Refused { error, closed })
    })
}

fn target(message: &v1::policy::Target) -> Result<TargetKey> {
    let kind = match message.kind.as_str() {
        "Namespace" => TargetKind::Namespace,
        "Gateway" => TargetKind::Gateway,
        "Service" => TargetKind::Service,
        "HTTPRoute" => TargetKind::HttpRoute,
        other => return value("targets.kind", other, "write Namespace, Gateway, Service or HTTPRoute"),
    };
    Ok(TargetKey { kind, name: message.name.as_str().into(), section: message.section.as_str().into() })
}

fn said(origin: &Arc<Origin>, spec: &v1::policy::Spec) -> Result<Said> {
    use v1::policy::Spec;
    Ok(match spec {
        Spec::Traffic(traffic) => Said::Traffic(Box::new(traffic_policy(origin, traffic)?)),
        Spec::Authorization(policy) => Said::Authorization(Arc::new(authorization(origin, policy)?)),
        Spec::Inbound(inbound) => Said::Inbound(match v1::inbound_policy::Mtls::try_from(inbound.mtls) {
            Ok(v1::inbound_policy::Mtls::Strict) => Mtls::Strict,
            Ok(v1::inbound_policy::Mtls::Permissive) => Mtls::Permissive,
            Ok(v1::inbound_policy::Mtls::Unspecified) | Err(_) => return Err(unknown("inbound.mtls")),
        }),
        Spec::Listener(listener) => Said::Listener(Arc::new(proxy_protocol(listener)?)),
    })
}

fn traffic_policy(origin: &Arc<Origin>, message: &v1::TrafficPolicy) -> Result<Traffic> {
    let requests = RequestPolicy {
        retry: message.retry.clone().map(|said| Words::new(origin, said)).transpose()?,
        hedge: message.hedge.map(|said| Words::new(origin, said)).transpose()?,
        rate_limit: message.rate_limit.map(|said| Words::new(origin, said)).transpose()?,
        fault: message.fault_injection.clone().map(|said| Words::new(origin, said)).transpose()?,
        ..timeouts(message.timeouts.as_ref())?
    };
    Ok(Traffic { alone: traffic_spec(origin, message)?, requests, message: message.clone() })
}

/// What is said, with defaults for the rest. `guards`: whose word `overload` is.
pub(crate) fn traffic_spec(guards: &Arc<Origin>, message: &v1::TrafficPolicy) -> Result<TrafficSpec> {
    use v1::traffic_policy::Algorithm as Wire;
    let algorithm = match Wire::try_from(message.algorithm) {
        Ok(Wire::Unspecified) => None,
        Ok(Wire::LeastRequest) => Some(Algorithm::LeastRequest),
        Ok(Wire::RoundRobin) => Some(Algorithm::RoundRobin),
        Ok(Wire::PeakEwma) => Some(Algorithm::PeakEwma),
        Ok(Wire::Random) => Some(Algorithm::Random),
        Ok(Wire::RingHash) => Some(Algorithm::RingHash),
        Ok(Wire::Maglev) => Some(Algorithm::Maglev),
        Err(_) => return Err(unknown("algorithm")),
    };
    let proxy_protocol = match v1::traffic_policy::ProxyProtocol::try_from(message.proxy_protocol) {
        Ok(v1::traffic_policy::ProxyProtocol::Unspecified) => None,
        Ok(v1::traffic_policy::ProxyProtocol::V1) => Some(ProxyVersion::V1),
        Ok(v1::traffic_policy::ProxyProtocol::V2) => Some(ProxyVersion::V2),
        Err(_) => return Err(unknown("proxy_protocol")),
    };
    let breaker = message.circuit_breaker.as_ref();
    let balancer = load_balancer::balancer(algorithm, message.load_balancer.as_ref())?;
    Ok(TrafficSpec {
        algorithm,
        hashing: balancer.hashing,
        preference: balancer.preference,
        slow_start: balancer.slow_start,
        subset_size: balancer.subset_size,
        limits: limits(message.limits.as_ref()),
        outlier: message.outlier_detection.as_ref().map(outlier).transpose()?,
        health_check: message
            .health_check
            .as_ref()
            .map(health_check::health_check)
            .transpose()?
            .map(Arc::new),
        circuit_breaker: breaker.map(circuit_breaker).transpose()?,
        admission: message.admission_control.as_ref().map(admission).transpose()?.map(Arc::new),
        breaks_endpoints: breaker.and_then(|breaker| breaker.per_endpoint).unwrap_or_default(),
        proxy_protocol,
        overload: message.overload.as_ref().map(|m| overload(guards, m)).transpose()?.map(Arc::new),
    })
}

fn limits(message: Option<&v1::Limits>) -> Limits {
    let limit = |field: fn(&v1::Limits) -> u32| message.map(field).filter(|&n| n > 0);
    Limits {
        max_connections: limit(|l| l.max_connections),
        max_pending_requests: limit(|l| l.max_pending_requests),
        max_requests: limit(|l| l.max_requests),
        max_retries: limit(|l| l.max_retries),
        max_connections_per_endpoint: limit(|l| l.max_connections_per_endpoint),
        max_pending_requests_per_endpoint: limit(|l| l.max_pending_requests_per_endpoint),
        max_requests_per_endpoint: limit(|l| l.max_requests_per_endpoint),
        max_retries_per_endpoint: limit(|l| l.max_retries_per_endpoint),
    }
}

/// A number that is said where it is above 0, or else the default.
pub(super) const fn or(said: u32, default: u32) -> u32 {
    if said > 0 { said } else { default }
}

fn proxy_protocol(message: &v1::ListenerPolicy) -> Result<ProxyProtocol> {
    let said = message.proxy_protocol.as_ref().ok_or_else(|| unknown("listener.proxy_protocol"))?;
    let range = |text: &String| {
        let range = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        range.or_else(|_| value("listener.trusted_sources", text, "write an address, or ADDRESS/LENGTH"))
    };
    if said.trusted_sources.is_empty() || !(said.v1 || said.v2) {
        return value("listener.trusted_sources", "", "write a version, and who is believed");
    }
    let trusted = said.trusted_sources.iter().map(range).collect::<Result<_>>()?;
    Ok(ProxyProtocol { v1: said.v1, v2: said.v2, required: said.required, trusted })
}

/// What two authors say may not fit together: then the lesser of two bounds holds.
fn circuit_breaker(message: &v1::CircuitBreaker) -> Result<CircuitBreaker> {
    use v1::circuit_breaker::{Mode as Wire, Window};
    let mode = match Wire::try_from(message.mode) {
        Ok(Wire::Unspecified | Wire::Enforce) => BreakerMode::Enforce,
        Ok(Wire::Observe) => BreakerMode::Observe,
        Ok(Wire::ForcedOpen) => BreakerMode::ForcedOpen,
        Ok(Wire::ForcedClosed) => BreakerMode::ForcedClosed,
        Err(_) => return Err(unknown("circuit_breaker.mode")),
    };
    let millis = |millis: u32| std::time::Duration::from_millis(millis.into());
    let (window, most_calls) = match message.window {
        None => (WindowSize::Time(BREAKER_WINDOW), u32::MAX),
        Some(Window::WindowCalls(0) | Window::WindowMs(0)) => {
            return value("circuit_breaker.window", 0, "write how many calls it looks at, or a time");
        }
        Some(Window::WindowMs(time)) => (WindowSize::Time(millis(time)), u32::MAX),
        Some(Window::WindowCalls(calls)) => (WindowSize::Calls(calls), calls),
    };
    for (at, percent) in [
        ("circuit_breaker.failure_percent", message.failure_percent),
        ("circuit_breaker.slow_percent", message.slow_percent),
    ] {
        if percent > 100 {
            return value(at, percent, "write 1 to 100");
        }
    }
    let longest = (message.max_open_ms > 0).then_some(message.max_open_ms);
    let open_ms = or(message.open_ms, 5_000).min(longest.unwrap_or(u32::MAX));
    let slow = || (millis(message.slow_after_ms), or(message.slow_percent, 100));
    Ok(CircuitBreaker {
        mode,
        window,
        minimum_calls: or(message.minimum_calls, 20).min(most_calls),
        failure_percent: Some(or(message.failure_percent, 50)),
        slow_calls: (message.slow_after_ms > 0).then(slow),
        open_time: millis(open_ms),
        max_open_time: millis(longest.unwrap_or(open_ms.max(60_000))),
        trials: or(message.trials, 5),
    })
}

/// Envoy's defaults for what is not said; rates are looked at where somebody writes them.
fn outlier(message: &v1::OutlierDetection) -> Result<OutlierDetection> {
    if message.max_ejection_percent > 100 {
        return value(
            "outlier_detection.max_ejection_percent",
            message.max_ejection_percent,
            "write 0 to 100",
        );
    }
    if let Some(failures) = message.failure_percentage
        && failures.threshold > 100
    {
        return value("outlier_detection.failure_percentage.threshold", failures.threshold, "write 1 to 100");
    }
    let millis = |millis: u32| std::time::Duration::from_millis(millis.into());
    let longest = (message.max_ejection_time_ms > 0).then_some(message.max_ejection_time_ms);
    let base = or(message.base_ejection_time_ms, 30_000).min(longest.unwrap_or(u32::MAX));
    Ok(OutlierDetection {
        consecutive_5xx: message.consecutive_5xx.unwrap_or(5),
        consecutive_gateway_failure: message.consecutive_gateway_failure.unwrap_or_default(),
        consecutive_local_origin_failure: message.consecutive_local_origin_failure.unwrap_or(5),
        split_external_local_origin_errors: message.split_external_local_origin_errors.unwrap_or_default(),
        interval: millis(or(message.interval_ms, 10_000)),
        success_rate: message.success_rate.map(|rate| SuccessRate {
            minimum_hosts: or(rate.minimum_hosts, 5),
            request_volume: or(rate.request_volume, 100),
            stdev_factor: or(rate.stdev_factor, 1_900),
        }),
        failure_percentage: message.failure_percentage.map(|failures| FailurePercentage {
            threshold: or(failures.threshold, 85),
            minimum_hosts: or(failures.minimum_hosts, 5),
            request_volume: or(failures.request_volume, 50),
        }),
        base_ejection_time: millis(base),
        max_ejection_time: millis(longest.unwrap_or(base.max(300_000))),
        max_ejection_percent: or(message.max_ejection_percent, 10),
        shared: message.shared.as_ref().map(shared).transpose()?,
    })
}

fn shared(message: &v1::outlier_detection::Shared) -> Result<SharedEjection> {
    let (observers, percent) = (or(message.observers, 2), message.percent.unwrap_or(50));
    if observers < 2 {
        return value("outlier_detection.shared.observers", observers, "write at least 2");
    }
    if percent > 100 {
        return value("outlier_detection.shared.percent", percent, "write 0 to 100");
    }
    Ok(SharedEjection { observers, percent })
}

fn authorization(origin: &Arc<Origin>, message: &v1::AuthorizationPolicy) -> Result<AuthorizationPolicy> {
    use v1::authorization_policy::Action as Wire;
    let action = match Wire::try_from(message.action) {
        Ok(Wire::Allow) => Action::Allow,
        Ok(Wire::Deny) => Action::Deny,
        Ok(Wire::Audit) => Action::Audit,
        Ok(Wire::Unspecified) | Err(_) => return Err(unknown("authorization.action")),
    };
    let rules = message
        .rules
        .iter()
        .map(|r| {
            Ok(AuthorizationRule {
                from: r.from.iter().map(peers).collect::<Result<_>>()?,
                to: r.to.iter().map(operation).collect::<Result<_>>()?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(AuthorizationPolicy { origin: Arc::clone(origin), action, rules, understood: true })
}

pub(super) fn peers(message: &v1::authorization_rule::Peer) -> Result<Peers> {
    let id = |text: &String| match text.starts_with("spiffe://") || text == "*" {
        true => text_rule("from.spiffe_ids", text),
        false => value("from.spiffe_ids", text, "write spiffe://…, exact or with a `*` at the end"),
    };
    Ok(Peers {
        spiffe_ids: message.spiffe_ids.iter().map(id).collect::<Result<_>>()?,
        namespaces: message.namespaces.iter().map(|n| n.as_str().into()).collect(),
    })
}

pub(super) fn operation(message: &v1::authorization_rule::Operation) -> Result<Operation> {
    let host = |text: &String| match super::hostname("to.hosts", text)? {
        HostPattern::Any => value("to.hosts", text, "write a host, or leave hosts away for every host"),
        pattern => Ok(HostRule(pattern)),
    };
    Ok(Operation {
        hosts: message.hosts.iter().map(host).collect::<Result<_>>()?,
        methods: message.methods.iter().map(|m| m.as_str().into()).collect(),
        paths: message.paths.iter().map(|p| text_rule("to.paths", p)).collect::<Result<_>>()?,
    })
}

fn text_rule(at: &str, text: &str) -> Result<TextRule> {
    match text.strip_suffix('*') {
        _ if text.is_empty() => value(at, text, "write a value"),
        Some(start) if start.contains('*') => value(at, text, "only one `*`, at the end, is understood"),
        Some(start) => Ok(TextRule::Prefix(start.into())),
        None if text.contains('*') => value(at, text, "only one `*`, at the end, is understood"),
        None => Ok(TextRule::Exact(text.into())),
    }
}
