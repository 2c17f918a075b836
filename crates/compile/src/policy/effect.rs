//! Parts of a traffic policy that would do nothing at a service: they are refused there, rather than believed in.

use meshwork_messages::v1;
use meshwork_messages::v1::failover::Prefer;
use meshwork_messages::v1::hash_rule::Kind;
use meshwork_messages::v1::policy::Spec;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_resources::{ObjectKind, PolicyTarget};

use super::Unattached;
use crate::Cx;
use crate::codes;
use crate::index::{Name, qualified};
use crate::labels::VERSION;
use crate::service::{counts_nowhere, in_mesh, is_http, port_protocol, ports_of};

/// Whether each part of a policy does something at its target.
pub(super) fn effective(
    cx: &Cx<'_>,
    namespace: &str,
    target: &PolicyTarget,
    spec: &Spec,
) -> Result<(), Unattached> {
    let (Spec::Traffic(policy), Some(ObjectKind::Service)) = (spec, target.object_kind()) else {
        return Ok(());
    };
    let name = (namespace, target.name.as_str());
    let section = target.section_name.as_ref().map(|section| section.as_str());
    let found = if is_stream(cx, name, section) { on_layer_4(policy) } else { None };
    let found = found.or_else(|| {
        let asked_behind = is_stream(cx, name, section) && in_mesh(cx, name) && asks_by_requests(policy);
        asked_behind.then_some((
            "healthCheck",
            "its instances are behind sidecars that take opaque connections for it; write `tcp`",
        ))
    });
    let found = found.or_else(|| if counts_nowhere(cx, name) { by_sidecars(policy) } else { None });
    let found =
        found.or_else(|| if cx.index.services.contains_key(&name) { of_slices(policy) } else { None });
    let Some((part, why)) = found else { return Ok(()) };
    let message = format!("`{part}` does nothing at Service {}: {why}.", qualified(name));
    Err(Unattached::Because { code: codes::PART_WITHOUT_EFFECT, reason: "Invalid", message })
}

/// Whether nobody looks into the connections to a service, or to this port of it.
fn is_stream(cx: &Cx<'_>, name: Name<'_>, section: Option<&str>) -> bool {
    let ports = ports_of(cx, name).unwrap_or_default();
    let wanted = ports.iter().filter(|(_, port)| section.is_none_or(|section| **port == section));
    // What is not TCP is carried by nobody.
    let spoken: Vec<AppProtocol> =
        wanted.filter_map(|(number, _)| port_protocol(cx, name, *number).ok()).collect();
    !spoken.is_empty() && spoken.into_iter().all(|protocol| !is_http(protocol))
}

/// Whether endpoints are asked by requests.
fn asks_by_requests(policy: &v1::TrafficPolicy) -> bool {
    use v1::health_check::Probe;
    let probe = policy.health_check.as_ref().and_then(|check| check.probe.as_ref());
    matches!(probe, Some(Probe::Http(_) | Probe::Grpc(_)))
}

/// What the sidecar beside an instance does.
fn by_sidecars(policy: &v1::TrafficPolicy) -> Option<(&'static str, &'static str)> {
    let why =
        "no instance of it is in the mesh, where it would be counted; attach it to the HTTPRoute or Gateway";
    policy.rate_limit.is_some().then_some(("rateLimit", why))
}

/// What is about requests, and why it is nothing on layer 4.
fn on_layer_4(policy: &v1::TrafficPolicy) -> Option<(&'static str, &'static str)> {
    const WHY: &str = "nobody looks into its connections, and it is about requests; remove it, or say with \
                       `appProtocol` that the port speaks HTTP";
    let limits = policy.limits.unwrap_or_default();
    let timeouts = policy.timeouts.unwrap_or_default();
    let per_try = policy.retry.as_ref().is_some_and(|retry| retry.per_try_timeout_ms != 0);
    let parts = [
        (policy.rate_limit.is_some(), "rateLimit"),
        (policy.fault_injection.is_some(), "faultInjection"),
        (policy.admission_control.is_some(), "admissionControl"),
        (policy.overload.is_some(), "overload"),
        (policy.hedge.is_some(), "hedge"),
        (timeouts.request_ms != 0, "timeouts.request"),
        (timeouts.stream_idle_ms != 0, "timeouts.streamIdle"),
        (timeouts.max_stream_ms != 0, "timeouts.maxStreamDuration"),
        (timeouts.caller_deadline != 0, "timeouts.callerDeadline"),
        (per_try, "retry.perTryTimeout"),
        (limits.max_requests != 0, "limits.maxRequests"),
        (limits.max_pending_requests != 0, "limits.maxPendingRequests"),
        (limits.max_pending_requests_per_endpoint != 0, "limits.perEndpoint.maxPendingRequests"),
    ];
    if let Some((_, part)) = parts.into_iter().find(|(is_there, _)| *is_there) {
        return Some((part, WHY));
    }
    // Who asks for no retries at all names none.
    let on =
        policy.retry.as_ref().filter(|retry| retry.attempts != Some(0)).and_then(|retry| retry.on.as_ref());
    if on.is_some_and(|on| !on.connect_failure) {
        return Some((
            "retry.on",
            "into its connections nobody looks, so that only making one is repeated; add `connect-failure`",
        ));
    }
    let rules = policy.load_balancer.as_ref().map_or(&[][..], |balancer| &balancer.hash_policy);
    let by_address = rules.iter().any(|rule| matches!(rule.kind, Some(Kind::SourceAddress(_))));
    (!rules.is_empty() && !by_address).then_some((
        "loadBalancer.hashPolicy",
        "of a connection into which nobody looks only the caller's address is known; add `{type: SourceAddress}`",
    ))
}

/// Endpoints of an `EndpointSlice` have zones and a version, and neither regions nor other labels.
fn of_slices(policy: &v1::TrafficPolicy) -> Option<(&'static str, &'static str)> {
    let failover = policy.load_balancer.as_ref()?.failover.as_ref()?;
    if failover.priorities.iter().any(|priority| priority.labels.keys().any(|label| label != VERSION)) {
        let why = "of the endpoints of an EndpointSlice only the version is known, by the slice's label \
                   `app.kubernetes.io/version`; go by `version`, or put them into services of their own";
        return Some(("loadBalancer.failover.priorities", why));
    }
    (failover.prefer() == Prefer::Region).then_some((
        "loadBalancer.failover.prefer: Region",
        "the endpoints of an EndpointSlice have zones and no region; write `Zone` or `None`",
    ))
}
