//! To whom an attempt goes, and whether it may.

use std::sync::Arc;

use meshwork_base::Tick;
use meshwork_decision::{Picked, RouteBreaker, Ticket, Wanted};

use super::Attempts;
use crate::error::Failure;
use crate::forces;
use crate::request::journey::{Journey, decide};
use crate::request::route::Target;

impl Attempts<'_> {
    pub(super) fn pick(&mut self, journey: &mut Journey<'_>) -> Result<(), Failure> {
        let worker = &self.conn.worker;
        let Target::Service { cluster, policy, .. } = self.target else {
            // It is there. What the request has waited for its turn is none of its time.
            self.began = worker.now();
            return Ok(());
        };
        let now = worker.now();
        (self.began, self.heard) = (now, now);
        self.endpoint = None;
        self.behind.set(None);
        // What came before has ended, though perhaps without a word.
        self.let_go();
        if !std::mem::take(&mut self.is_let_through) {
            self.held_back(cluster, now, journey)
                .map_err(|cause| Failure::local(cause).because(Arc::clone(&cluster.key.service)))?;
        }
        if let Some(breaker) = policy.breaker() {
            self.by_route = self.admitted_by(breaker, now, journey)?;
        }
        self.ticket = decide!(journey, |reasons| cluster.try_call(now, reasons))
            .map_err(|cause| forces::refusal(cluster, cause, now, &*worker.shared.clock))?;
        if let Some(ticket) = &self.ticket {
            worker.breaker_begins(ticket);
        }
        let rng = &mut *worker.rng.borrow_mut();
        let tried = &self.tried;
        let wanted = self.affinity.map_or(Wanted { tried, ..Wanted::default() }, |found| found.wanted(tried));
        let wanted = wanted.of_retry(self.permit.as_ref());
        let called = decide!(journey, |reasons| cluster.call(now, rng, &wanted, reasons));
        let (mut picked, mut ticket) =
            called.map_err(|cause| forces::refusal(cluster, cause, now, &*worker.shared.clock))?;
        let unreached = self.repeats.unreached();
        if unreached.contains(&picked.endpoint.id)
            && let Some(endpoint) = cluster.pick_beside(rng, unreached)
        {
            (picked, ticket) = (Picked { endpoint, trial: None }, None);
        }
        let Picked { endpoint, trial } = picked;
        self.trial = trial;
        if let Some(ticket) = ticket {
            worker.breaker_begins(&ticket);
            self.ticket = Some(ticket);
        }
        if let Some(permit) = &mut self.permit {
            permit.goes_to(&endpoint);
        }
        self.tried.push(endpoint.id);
        self.endpoint = Some(endpoint);
        Ok(())
    }

    /// Whether the breaker of its route lets an attempt through.
    fn admitted_by(
        &self,
        breaker: &Arc<RouteBreaker>,
        now: Tick,
        journey: &mut Journey<'_>,
    ) -> Result<Option<Box<Ticket>>, Failure> {
        let admitted = decide!(journey, |reasons| breaker.try_call(now, reasons));
        let clock = &*self.conn.worker.shared.clock;
        let ticket =
            admitted.map_err(|cause| Failure::local(cause).because(forces::of_route(breaker, now, clock)))?;
        if let Some(ticket) = &ticket {
            self.conn.worker.breaker_begins(ticket);
        }
        Ok(ticket.map(Box::new))
    }
}
