//! What stands before a call: admission by success rate, the circuit breakers of service and endpoint, the balancer. In the
//! order in which a proxy asks them, and with what must hold of each.

use std::sync::Arc;

use meshwork_base::{Rng, Tick};

use crate::breaker::{BreakerMode, BreakerState, Call, Ticket};
use crate::cause::Cause;
use crate::cluster::{Cluster, Wanted};
use crate::endpoint::Endpoint;
use crate::hedge::Hedged;
use crate::invariants;
use crate::limits::Limited;
use crate::load::Answer;
use crate::outlier::{AttemptOutcome, Picked};
use crate::reasons::NoReasons;

/// Whose call it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// It matters too much to be held back.
    pub(super) is_exempt: bool,
    /// It has been asked about already, while the answer before was still there.
    pub(super) is_let_through: bool,
}

/// What the breakers wait for.
#[derive(Debug, Default)]
pub(super) struct Tickets([Option<Ticket>; 2]);

impl Tickets {
    /// A second attempt has one, as in a proxy.
    pub(super) fn of_hedge(hedged: &mut Hedged) -> Self {
        Self([hedged.ticket.take(), None])
    }

    /// The attempt has ended. Where it has ended without a word, these are dropped.
    pub(super) fn ended(self, answer: &Answer, now: Tick, rng: &mut impl Rng) {
        let call = Call { failed: answer.outcome == AttemptOutcome::Failure, took: answer.took };
        for ticket in self.0.into_iter().flatten() {
            ticket.ended(call, now, rng);
        }
    }
}

/// To whom a call goes.
///
/// # Errors
/// It is held back, or a breaker is open.
pub(super) fn begin(
    cluster: &Arc<Cluster>,
    caller: Caller,
    wanted: &Wanted<'_>,
    now: Tick,
    rng: &mut impl Rng,
) -> Result<(Picked, Tickets), Cause> {
    if !caller.is_let_through {
        cluster.admit_by_success(caller.is_exempt, now, rng, &mut NoReasons)?;
    }
    let of_service = cluster.try_call(now, &mut NoReasons)?;
    let (picked, of_endpoint) = cluster.call(now, rng, wanted, &mut NoReasons)?;
    Ok((picked, Tickets([of_service, of_endpoint])))
}

/// Whether what was answered is given up for another call.
///
/// # Errors
/// It is not: that one would be held back, or a breaker is open.
pub(super) fn may_repeat(
    cluster: &Cluster,
    is_exempt: bool,
    now: Tick,
    rng: &mut impl Rng,
) -> Result<(), Cause> {
    cluster.admit_by_success(is_exempt, now, rng, &mut NoReasons)?;
    cluster.may_call_again(None, now, &mut NoReasons)
}

/// What must hold of a refusal.
///
/// # Errors
/// What does not.
pub(super) fn check_refusal(
    cluster: &Cluster,
    cause: Cause,
    caller: Caller,
    now: Tick,
) -> Result<(), String> {
    match cause {
        Cause::AdmissionControl if caller.is_exempt => Err("what matters was held back".to_owned()),
        Cause::AdmissionControl => {
            let (policy, view) =
                cluster.admission.as_ref().zip(cluster.admissions(now)).expect("somebody held it back");
            let most = policy.max_rejection_probability;
            if view.failed == 0 || view.rejection_percent > most {
                return Err(format!("held back, {most} % at most, with {view:?}"));
            }
            Ok(())
        }
        Cause::CircuitBreaker => {
            let is_closed = |policy: &_, breaker: &crate::breaker::Breaker| {
                breaker.view(Some(policy), now).in_effect() == BreakerState::Closed
            };
            let service = cluster.circuit_breaker.as_ref();
            let service_lets = service.is_none_or(|policy| is_closed(policy, &cluster.shared.breaker));
            let endpoint_lets = cluster.endpoint_breaker.as_ref().is_none_or(|policy| {
                cluster.endpoints().pickable().iter().any(|of| is_closed(policy, &of.stats.breaker))
            });
            if service_lets && endpoint_lets {
                return Err("a circuit breaker refused a call though it is closed".to_owned());
            }
            Ok(())
        }
        other => Err(format!("refused for {other}: nothing here has such a limit")),
    }
}

/// What must hold of a call that begins: where a breaker was open it is one of its trials.
///
/// # Errors
/// What does not.
pub(super) fn check_call(cluster: &Cluster, picked: &Endpoint, now: Tick) -> Result<(), String> {
    let is_open = |policy: &crate::breaker::CircuitBreaker, breaker: &crate::breaker::Breaker| {
        policy.mode == BreakerMode::Enforce && breaker.view(Some(policy), now).state == BreakerState::Open
    };
    let of_service = cluster.circuit_breaker.as_ref();
    if of_service.is_some_and(|policy| is_open(policy, &cluster.shared.breaker)) {
        return Err("called while the circuit breaker is open".to_owned());
    }
    let of_endpoint = cluster.endpoint_breaker.as_ref();
    if of_endpoint.is_some_and(|policy| is_open(policy, &picked.stats.breaker)) {
        return Err(format!("{} was called while its circuit breaker is open", picked.address()));
    }
    Ok(())
}

/// What must hold of who is called: it is not ejected while somebody else could be. Who refuses by its own breaker could not.
///
/// # Errors
/// What does not.
pub(super) fn check_ejection(cluster: &Cluster, picked: &Picked, now: Tick) -> Result<(), String> {
    let Picked { endpoint: picked, trial } = picked;
    if trial.is_some() || !picked.stats.is_out() {
        return Ok(());
    }
    let refuses = |other: &Endpoint| {
        cluster.endpoint_breaker.as_ref().is_some_and(|policy| other.stats.breaker.refuses(policy, now))
    };
    if cluster.endpoints().pickable().iter().any(|other| !other.is_ejected(now) && !refuses(other)) {
        return Err(format!("{} is ejected and was picked at {now:?}", picked.address()));
    }
    Ok(())
}

/// What must hold of what is known of answers, now that there is one more.
///
/// # Errors
/// What does not.
pub(super) fn check_fastest(cluster: &Cluster, answer: &Answer, now: Tick) -> Result<(), String> {
    match answer.outcome {
        AttemptOutcome::Success => invariants::fastest(cluster.fastest(now), answer.took),
        AttemptOutcome::Overloaded | AttemptOutcome::Failure => Ok(()),
    }
}

/// Nothing is counted where nothing is under way.
///
/// # Errors
/// What is.
pub(super) fn check_nothing_left(cluster: &Cluster) -> Result<(), String> {
    for what in Limited::ALL {
        invariants::limit(cluster.limits.in_force(what), cluster.in_use(what), 0)?;
    }
    for endpoint in cluster.endpoints().all() {
        let of_each = cluster.limits.max_retries_per_endpoint;
        invariants::limit(of_each, endpoint.stats.retries(), 0)
            .and_then(|()| invariants::limit(None, endpoint.stats.in_flight(), 0))
            .map_err(|why| format!("{}: {why}", endpoint.address()))?;
    }
    Ok(())
}

/// What the proxies have counted is what was refused.
///
/// # Errors
/// It is not.
pub(super) fn check_counts<'c>(
    clusters: impl Iterator<Item = &'c Arc<Cluster>>,
    held_back: u64,
    refused: u64,
    now: Tick,
) -> Result<(), String> {
    let counted = clusters.fold((0, 0), |(held, broken), cluster| {
        let of_cluster = cluster.admissions(now).map_or(0, |view| view.refused);
        (held + of_cluster, broken + cluster.refused_by_breaker())
    });
    if counted != (held_back, refused) {
        return Err(format!("{held_back} held back and {refused} refused, and counted are {counted:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
