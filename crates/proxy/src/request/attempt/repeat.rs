//! Whether what may be repeated by its policy is: a service, or a route, of which too many calls fail may not want another
//! one. It is asked while the answer is still there, so that the answer is what the caller gets where the repeat is refused.

use std::sync::Arc;

use meshwork_base::Tick;
use meshwork_decision::{Cause, Cluster};
use meshwork_http1::ResponseHead;

use super::Attempts;
use crate::error::{Failure, Fault, Retry};
use crate::forces;
use crate::request::answer;
use crate::request::journey::{Journey, decide};
use crate::request::retry::{Again, Of};
use crate::request::route::Target;
use crate::upstream::behind::Ahead;

impl Attempts<'_> {
    /// The attempt that follows an answer, if one does. Whether it may be made is asked before anything is taken for it: what
    /// is never sent costs no budget.
    pub(super) fn after_response(
        &mut self,
        (response, more): (&ResponseHead, bool),
        of: &Of<'_, '_>,
        journey: &mut Journey<'_>,
    ) -> Option<Again> {
        let called = self.repeats.after_response((response, more), of, &self.tried, journey)?;
        if !self.may_repeat(response, journey) {
            self.repeats.renounce(of);
            return None;
        }
        // A retry that is repeated makes room for the next one.
        self.permit = None;
        self.repeats.granted(&called, response, of, &self.tried, journey)
    }

    /// Whether an answer is given up for another attempt. Where it is not, the record says why.
    fn may_repeat(&mut self, response: &ResponseHead, journey: &mut Journey<'_>) -> bool {
        let Target::Service { cluster, policy, .. } = self.target else { return true };
        let now = self.conn.worker.now();
        let own = self.endpoint.as_ref().map(|endpoint| (endpoint.id, self.permit.is_some()));
        let (breaker, clock) = (policy.breaker(), &*self.conn.worker.shared.clock);
        // Whose breaker it was is said where nobody would guess it: that of a route, or one that somebody forces.
        let may = self
            .held_back(cluster, now, journey)
            .map_err(|cause| (cause, None))
            .and_then(|()| match breaker {
                None => Ok(()),
                Some(breaker) => decide!(journey, |reasons| breaker.may_repeat(now, reasons))
                    .map_err(|cause| (cause, Some(forces::of_route(breaker, now, clock)))),
            })
            .and_then(|()| {
                decide!(journey, |reasons| cluster.may_call_again(own, now, reasons)).map_err(|cause| {
                    let is_breaker = cause == Cause::CircuitBreaker;
                    (cause, if is_breaker { forces::of_service(cluster, now, clock) } else { None })
                })
            });
        match &may {
            Ok(()) => self.is_let_through = true,
            Err((cause, whose)) => {
                let whose = whose.as_ref().map(|whose| format!("{whose}; ")).unwrap_or_default();
                let detail = whose + &answer::told(response, journey.is_grpc());
                journey.failed(&Failure::local(*cause).because(detail));
            }
        }
        may.is_ok()
    }

    /// What follows a failure. Where a repeat is refused here, nobody has seen it, and it costs nothing: the failure that it
    /// was to repeat is what the caller is told.
    ///
    /// # Errors
    /// Nothing: it is final.
    pub(super) fn after_failure(
        &mut self,
        failure: Failure,
        of: &Of<'_, '_>,
        journey: &mut Journey<'_>,
    ) -> Result<Again, Failure> {
        if failure.is_before_any()
            || (failure.fault != Fault::Upstream && Ahead::is_waited_for(self.behind.get()))
        {
            journey.unasked();
        }
        let before = self.before.take();
        // What waited for as long as an attempt may is one, and may be followed by another.
        if is_refusal(failure.cause) && failure.retry == Retry::No {
            self.repeats.refused(of.head.fields);
            if let Some(before) = before {
                return Err(not_repeated(*before, failure.cause));
            }
            return Err(failure);
        }
        // The same attempt goes on over a new connection; any other makes room for the next one.
        if failure.retry != Retry::Reused {
            self.permit = None;
        }
        let kept = failure.clone();
        let repeat = self.repeats.after_failure(failure, of, &self.tried, journey)?;
        self.before = match repeat {
            Again::Elsewhere { .. } => Some(Box::new(kept)),
            // A kept connection that was stale says nothing of the endpoint: the same is repeated as before.
            Again::SameEndpoint => before,
            // Nor does it say anything that nobody could be reached.
            Again::Anywhere { .. } => None,
        };
        Ok(repeat)
    }

    /// Whether an attempt is one of those that are held back, since too few succeed.
    ///
    /// # Errors
    /// It is.
    pub(super) fn held_back(
        &self,
        cluster: &Arc<Cluster>,
        now: Tick,
        journey: &mut Journey<'_>,
    ) -> Result<(), Cause> {
        if cluster.admission.is_none() {
            return Ok(());
        }
        let worker = &self.conn.worker;
        let may = {
            let rng = &mut *worker.rng.borrow_mut();
            decide!(journey, |reasons| cluster.admit_by_success(self.matters, now, rng, reasons))
        };
        // Where nearly all are refused, it may be long until an attempt ends that would tell.
        may.inspect_err(|_| worker.look_at_admission(cluster))
    }
}

/// Whether a limit or a breaker has sent an attempt away before anybody saw it.
const fn is_refusal(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::AdmissionControl
            | Cause::CircuitBreaker
            | Cause::MaxConnections
            | Cause::MaxPendingRequests
            | Cause::MaxRequests
            | Cause::MaxRetries
    )
}

fn not_repeated(failure: Failure, cause: Cause) -> Failure {
    let detail = failure.detail.as_deref().unwrap_or_default();
    let detail =
        format!("{detail}{}a repeat was refused: {cause}", if detail.is_empty() { "" } else { "; " });
    failure.because(detail)
}
