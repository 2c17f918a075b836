//! What becomes of attempts, and whom that concerns.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Rng, Tick};

use super::Cluster;
use crate::endpoint::Endpoint;
use crate::health_check::Checked;
use crate::load::Answer;
use crate::outage;
use crate::outlier::{AttemptOutcome, Shift, Trial};

impl Cluster {
    /// An endpoint has answered, whatever it said.
    pub fn served(&self) {
        self.shared.outage.served();
    }

    /// A request that no endpoint has seen found nobody, after so many pauses: how long it pauses before it looks again.
    /// `None` when it is not to wait: its deadline would be over, or the service has been away for too long.
    pub fn pause(
        &self,
        pauses: u32,
        deadline: Option<Tick>,
        now: Tick,
        rng: &mut impl Rng,
    ) -> Option<Duration> {
        let pause = outage::pause(pauses, rng);
        let in_time = deadline.is_none_or(|deadline| now.after(pause) < deadline);
        (in_time && self.shared.outage.may_wait(now)).then_some(pause)
    }

    /// The fastest answer of late, if enough are known.
    #[must_use]
    pub fn fastest(&self, now: Tick) -> Option<Duration> {
        self.shared.fastest.of_late(now)
    }

    /// Tells the balancer and outlier detection what became of an attempt; ejections that this causes are returned for
    /// log and metric.
    pub fn record(&self, endpoint: &Arc<Endpoint>, answer: &Answer, now: Tick) -> Vec<Shift> {
        endpoint.stats.load.record(answer, now);
        if answer.outcome == AttemptOutcome::Success {
            self.is_answered(answer, now);
        }
        self.judge(endpoint, answer, now)
    }

    /// The head of an attempt's answer is there, and is good: how long it took is known, and that the endpoint is there.
    /// Whether the answer is, its end says: see [`Self::ended`]. `may_be_silent`: that may be long in coming, and nothing before it.
    pub fn begun(&self, endpoint: &Endpoint, answer: &Answer, may_be_silent: bool, now: Tick) {
        endpoint.stats.load.answered(answer.took, now);
        if may_be_silent {
            endpoint.stats.load.lets_next();
        }
        self.is_answered(answer, now);
    }

    /// What became of an answer that had [`begun`](Self::begun) well; ejections that this causes are returned for log and
    /// metric.
    pub fn ended(&self, endpoint: &Arc<Endpoint>, answer: &Answer, now: Tick) -> Vec<Shift> {
        endpoint.stats.load.ended(answer, now);
        self.judge(endpoint, answer, now)
    }

    fn is_answered(&self, answer: &Answer, now: Tick) {
        self.shared.fastest.answered(answer.took, now);
        if !answer.to_repeat {
            self.shared.budget.succeeded();
        }
    }

    /// Tells admission control and outlier detection.
    fn judge(&self, endpoint: &Arc<Endpoint>, answer: &Answer, now: Tick) -> Vec<Shift> {
        if let Some(policy) = &self.admission {
            self.shared.admissions.ended(policy, answer.outcome, now);
        }
        let Some(config) = &self.outlier_detection else { return Vec::new() };
        let shifts = config.record(&self.endpoints(), &self.shared.fleet, endpoint, answer, now);
        if !shifts.is_empty() {
            self.regroup();
        }
        shifts
    }

    /// An attempt was given up after this time, since another one of its request had answered. It was neither well nor
    /// badly; that it took so long the balancer learns.
    pub fn outlasted(&self, endpoint: &Endpoint, waited: Duration, now: Tick) {
        endpoint.stats.load.outlasted(waited, now);
    }

    /// The trial of an ejected endpoint has ended; what that changes is returned for log and metric. To be told before
    /// the attempt is recorded, which then counts where the endpoint is in again.
    pub fn tried(&self, trial: Trial, answer: &Answer, now: Tick) -> Option<Shift> {
        let shift = trial.ended(self.outlier_detection.as_ref(), answer, now)?;
        if shift.ejection.is_none() {
            self.endpoints().begins(&shift.endpoint, now);
            self.regroup();
        }
        Some(shift)
    }

    /// Checks have changed their mind about an endpoint that they knew.
    pub fn checked(&self, endpoint: &Endpoint, says: Checked, now: Tick) {
        if says == Checked::Healthy {
            self.endpoints().begins(endpoint, now);
        }
        self.regroup();
    }

    /// Somebody is out, or in again: where this proxy calls a part of the endpoints, another takes the place, or leaves it.
    pub(crate) fn regroup(&self) {
        if self.calls_a_part() {
            self.shared.endpoints.rcu(|set| set.again().map_or_else(|| Arc::clone(set), Arc::new));
        }
    }
}
