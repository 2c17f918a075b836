//! Where a connection goes: the decision's answer for its port and server name.

use std::sync::Arc;

use meshwork_base::SpiffeId;
use meshwork_decision::{
    Authorization, Binding, Cluster, Listener, NoReasons, Routed, RulePolicy, Stream, Timeouts,
};
use meshwork_telemetry::Phase;

use super::journey::Journey;
use crate::error::Failure;
use crate::worker::Worker;

/// What takes a connection.
pub(super) struct Way<'v> {
    pub(super) policy: &'v Arc<RulePolicy>,
    pub(super) cluster: &'v Arc<Cluster>,
    pub(super) timeouts: Timeouts,
}

impl<'v> Way<'v> {
    pub(super) fn new(policy: &'v Arc<RulePolicy>, cluster: &'v Arc<Cluster>) -> Self {
        Self { policy, cluster, timeouts: policy.timeouts(Some(cluster)) }
    }
}

/// Finds the route of a connection, and the backend that gets it.
///
/// # Errors
/// No listener or route takes it, a policy refuses it, or its backend leads nowhere.
pub(super) fn find<'v>(
    worker: &Worker,
    binding: &'v Binding,
    server_name: Option<&str>,
    journey: &mut Journey,
) -> Result<(&'v Arc<Listener>, Way<'v>), Failure> {
    let stream = Stream { server_name, peer: None };
    let matched = match binding.route_stream(&stream, &mut NoReasons) {
        Routed::Matched(matched) => matched,
        Routed::NotFound { cause, listener } => {
            journey.record.listener = listener.map(|listener| Arc::clone(&listener.name));
            let failure = Failure::local(cause);
            return Err(match server_name {
                Some(name) => failure.because(name),
                None => failure,
            });
        }
    };
    journey.matched(&matched);
    journey.enter(Phase::Authorize);
    authorize(&matched.policy().authorization, None)?;
    journey.enter(Phase::Backend);
    let chosen = matched.rule().choose_backend(&mut *worker.rng.borrow_mut(), &mut NoReasons);
    let (_, cluster) =
        chosen.map_err(|cause| Failure::local(cause).because(Arc::clone(&matched.route().name)))?;
    journey.cluster(cluster);
    let listener = matched.listener.expect("a binding's routes hang on its listeners");
    Ok((listener, Way::new(matched.policy(), cluster)))
}

/// Whether a connection that nobody looks into may pass.
///
/// # Errors
/// A policy refuses it; the failure names the policy.
pub(super) fn authorize(authorization: &Authorization, peer: Option<&SpiffeId>) -> Result<(), Failure> {
    if authorization.is_empty() {
        return Ok(());
    }
    let caller = peer.map_or("an unproven peer", SpiffeId::as_str);
    for policy in authorization.audits_opaque(peer) {
        tracing::info!(policy = %policy.origin, peer = caller, "audited");
    }
    authorization.check_opaque(peer, &mut NoReasons).map_err(|denied| {
        Failure::downstream(denied.cause).because(format!("{} for {caller}", denied.policy.origin))
    })
}
