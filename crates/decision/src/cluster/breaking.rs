//! The circuit breaker of a service.

use std::sync::Arc;

use meshwork_base::Tick;

use super::Cluster;
use crate::breaker::{Breaker, BreakerView, ForcedState, Ticket};
use crate::cause::Cause;
use crate::reasons::{Outcome, Phase, Reason, Reasons};

impl Cluster {
    /// Asks the circuit breaker whether a call may begin. The ticket says how it ended; there is none where nobody wants
    /// to know.
    ///
    /// # Errors
    /// It may not.
    pub fn try_call(
        self: &Arc<Self>,
        now: Tick,
        reasons: &mut impl Reasons,
    ) -> Result<Option<Ticket>, Cause> {
        let admitted = Breaker::admit(self, now);
        reasons.notes(|| {
            let view = self.breaker(now);
            let is_there = view.is_in_use();
            is_there.then(|| Reason {
                phase: Phase::Breaker,
                subject: self.key.to_string(),
                outcome: if admitted.is_ok() { Outcome::Noted } else { Outcome::Refused },
                why: view.told(now),
            })
        });
        admitted
    }

    /// The circuit breaker at this moment.
    #[must_use]
    pub fn breaker(&self, now: Tick) -> BreakerView {
        self.shared.breaker.view(self.circuit_breaker.as_ref(), now)
    }

    /// Calls that the circuit breaker has refused.
    #[must_use]
    pub fn refused_by_breaker(&self) -> u64 {
        self.shared.breaker.refused()
    }

    /// An operator forces states of the circuit breaker, each until its time, whatever policy and rates say: what goes first
    /// is first; none: no longer.
    pub fn force_breaker(&self, forced: impl IntoIterator<Item = (ForcedState, Tick)>) {
        self.shared.breaker.forced.set(forced);
    }

    /// A policy has gone that broke the service, or its endpoints: when one comes back, what was before says nothing.
    pub(crate) fn forget_breakers(&self, of_service: bool, of_endpoints: bool) {
        if of_service && self.circuit_breaker.is_some() {
            self.shared.breaker.forget();
        }
        if of_endpoints && self.endpoint_breaker.is_some() {
            self.endpoints().all().iter().for_each(|endpoint| endpoint.stats.breaker.forget());
        }
    }
}
