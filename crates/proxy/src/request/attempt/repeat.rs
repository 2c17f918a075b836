//! Whether what may be repeated by its policy is: a service, or a route, of which too many calls fail may not want another
//! one. It is asked while the answer is still there, so that the answer is what the caller gets where the repeat is refused.

use std::sync::Arc;

use meshwork_base::Tick;
use meshwork_decision::{Cause, Cluster};

use super::Attempts;
use crate::error::Failure;
use crate::request::journey::{Journey, decide};
use crate::request::route::Target;

impl Attempts<'_> {
    /// Whether an answer is given up for another attempt. Where it is not, the record says why.
    pub(super) fn may_repeat(&mut self, status: u16, journey: &mut Journey<'_>) -> bool {
        let Target::Service { cluster, policy, .. } = self.target else { return true };
        let now = self.conn.worker.now();
        let may = self
            .held_back(cluster, now, journey)
            .and_then(|()| {
                let breaker = policy.breaker();
                breaker.map_or(Ok(()), |breaker| decide!(journey, |reasons| breaker.may_repeat(now, reasons)))
            })
            .and_then(|()| decide!(journey, |reasons| cluster.may_call_again(now, reasons)));
        match may {
            Ok(()) => self.is_let_through = true,
            Err(cause) => journey.failed(&Failure::local(cause).because(format!("status {status}"))),
        }
        may.is_ok()
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
        let rng = &mut *self.conn.worker.rng.borrow_mut();
        decide!(journey, |reasons| cluster.admit_by_success(self.matters, now, rng, reasons))
    }
}
