//! Where a connection goes: the decision's answer for its port and server name.

use std::sync::Arc;

use meshwork_base::SpiffeId;
use meshwork_decision::{Authorization, Binding, Cluster, Matched, NoReasons, Routed, Stream, Timeouts};

use super::journey::Journey;
use crate::error::Failure;
use crate::worker::Worker;

/// What takes a connection.
pub(super) struct Way<'v> {
    pub(super) matched: Matched<'v>,
    pub(super) cluster: &'v Arc<Cluster>,
    pub(super) timeouts: Timeouts,
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
) -> Result<Way<'v>, Failure> {
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
    authorize(&matched.policy().authorization, None)?;
    let chosen = matched.rule().choose_backend(&mut *worker.rng.borrow_mut(), &mut NoReasons);
    let (_, cluster) =
        chosen.map_err(|cause| Failure::local(cause).because(Arc::clone(&matched.route().name)))?;
    journey.cluster(cluster);
    Ok(Way { matched, cluster, timeouts: matched.policy().timeouts(Some(cluster)) })
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
