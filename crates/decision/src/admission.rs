//! Admission by success rate: of the calls to a service of which too few succeed, the caller refuses a part itself (client
//! side throttling; Beyer et al., "Site Reliability Engineering", chapter 21). What is sent is what the service can do, or
//! little more, and what would have failed anyhow costs it nothing.
//!
//! ```text
//!                  sent − succeeded / threshold   1 / aggression
//!   probability = (────────────────────────────)                , from 0 to the policy's most
//!                            sent + 1
//! ```
//!
//! *What is counted.* The attempts that were sent and ended within the window, in tenths of it. What was refused here is not
//! among them (it is so in Envoy, whose names these are): so a service of which half of the calls fail whatever is sent, loses
//! about half of its calls and not all. Failures are those of the breaker, and besides what the service refuses since it has
//! too much to do (429, `RESOURCE_EXHAUSTED`): that is what this is there for.
//!
//! *Not below.* Where fewer calls come per second than the policy says, sent or refused, nobody is refused: a few failures of
//! a few calls say nothing about load.
//!
//! *Who matters.* Requests of a high or critical priority are never refused. They count like all others.
//!
//! *Cost.* While enough succeed, a call begins by reading one word, and nobody waits for anybody when it ends: a worker that
//! finds another one counting leaves its call uncounted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::{Rng, Tick};
use parking_lot::Mutex;

use crate::breaker::{Tally, Window, WindowSize};
use crate::cause::Cause;
use crate::cluster::Cluster;
use crate::invariants;
use crate::outlier::AttemptOutcome;
use crate::overload::{Priority, PriorityRule, priority_of};
use crate::reasons::{Outcome, Phase, Reason, Reasons};
use crate::request::RequestView;

/// How much is refused when too few calls succeed.
#[derive(Debug, PartialEq, Eq)]
pub struct AdmissionControl {
    /// Calls of so long ago count.
    pub sampling_window: Duration,
    /// Percent of calls that succeed, 1 to 100: nobody is refused where it is reached.
    pub success_rate_threshold: u32,
    /// How fast the probability grows at first, in thousandths; at least 1,000, which is evenly.
    pub aggression: u32,
    /// With fewer calls per second nobody is refused.
    pub rps_threshold: u32,
    /// Percent of calls that are refused at most, up to 100.
    pub max_rejection_probability: u32,
    /// Who matters: the first rule that matches says it.
    pub(crate) priorities: Box<[PriorityRule]>,
}

impl Default for AdmissionControl {
    /// What a policy has that says no more; as in Envoy.
    fn default() -> Self {
        Self {
            sampling_window: Duration::from_secs(30),
            success_rate_threshold: 95,
            aggression: 1_000,
            rps_threshold: 0,
            max_rejection_probability: 80,
            priorities: Box::default(),
        }
    }
}

impl AdmissionControl {
    /// The probability with which a call is refused, after these; `refused`: how many were refused in the same time.
    pub(crate) fn probability(&self, sent: Tally, refused: u32) -> f64 {
        let offered = f64::from(sent.calls) + f64::from(refused);
        if offered < f64::from(self.rps_threshold) * self.sampling_window.as_secs_f64() {
            return 0.0;
        }
        let (calls, succeeded) = (i64::from(sent.calls), i64::from(sent.calls - sent.failed));
        let threshold = i64::from(self.success_rate_threshold.clamp(1, 100));
        // In whole numbers: what is next to nothing would grow to much where the policy is aggressive.
        let excess = calls * threshold - succeeded * 100;
        if excess <= 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "32 bits times a hundred")]
        let excess = excess as f64 / (threshold * (calls + 1)) as f64;
        let grown = excess.powf(1000.0 / f64::from(self.aggression.max(1000)));
        let probability = grown.min(f64::from(self.max_rejection_probability.min(100)) / 100.0);
        debug_assert_eq!(invariants::rejection(self, sent, probability), Ok(()));
        probability
    }

    /// Whether a request matters so much that it is never refused.
    #[must_use]
    pub fn exempts(&self, request: &impl RequestView) -> bool {
        !self.priorities.is_empty() && priority_of(&self.priorities, request) >= Priority::High
    }
}

/// The calls of a window; all workers share it.
#[derive(Debug)]
struct Counted {
    sent: Window,
    refused: Window,
}

impl Counted {
    fn new(size: WindowSize) -> Self {
        Self { sent: Window::new(size), refused: Window::new(size) }
    }

    fn probability(&self, policy: &AdmissionControl, now: Tick) -> f64 {
        policy.probability(self.sent.tally(now), self.refused.tally(now).calls)
    }
}

/// What a service's callers here know of it.
#[derive(Debug, Default)]
pub(crate) struct Admissions {
    counted: Mutex<Option<Box<Counted>>>,
    /// Some may be refused: somebody must look.
    holds_back: AtomicBool,
    refused: AtomicU64,
}

/// How it stands at one moment, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionView {
    /// Percent of calls that are refused now.
    pub rejection_percent: u32,
    /// Calls that ended in the window.
    pub calls: u32,
    /// Those of them that did not succeed.
    pub failed: u32,
    /// Calls refused since it was made.
    pub refused: u64,
    /// Percent of calls that succeed: where it is reached nobody is refused.
    pub threshold: u32,
}

impl AdmissionView {
    /// Percent of calls that may fail beyond those that do, until some are refused, rounded up.
    #[must_use]
    pub fn headroom(&self) -> u32 {
        let failed = u64::from(self.failed) * 100 / u64::from(self.calls.max(1));
        (100 - self.threshold.min(100)).saturating_sub(u32::try_from(failed).unwrap_or(u32::MAX))
    }
}

impl Admissions {
    /// An attempt has ended.
    pub(crate) fn ended(&self, policy: &AdmissionControl, outcome: AttemptOutcome, now: Tick) {
        let Some(mut counted) = self.counted.try_lock() else { return };
        let size = WindowSize::Time(policy.sampling_window);
        let counted = counted.get_or_insert_with(|| Box::new(Counted::new(size)));
        // A policy that looks at another time than before begins with none.
        if counted.sent.size() != size {
            **counted = Counted::new(size);
        }
        counted.sent.add(outcome != AttemptOutcome::Success, false, now);
        self.holds_back.store(counted.probability(policy, now) > 0.0, Ordering::Relaxed);
    }

    /// Whether a call may begin.
    fn lets_through(&self, policy: &AdmissionControl, now: Tick, rng: &mut impl Rng) -> bool {
        if !self.holds_back.load(Ordering::Relaxed) {
            return true;
        }
        let mut counted = self.counted.lock();
        let Some(counted) = counted.as_mut() else { return true };
        let probability = counted.probability(policy, now);
        self.holds_back.store(probability > 0.0, Ordering::Relaxed);
        if rng.unit() >= probability {
            return true;
        }
        counted.refused.add(false, false, now);
        self.refused.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn view(&self, policy: &AdmissionControl, now: Tick) -> AdmissionView {
        let counted = self.counted.lock();
        let probability = counted.as_ref().map_or(0.0, |counted| counted.probability(policy, now));
        let sent = counted.as_ref().map_or(Tally::default(), |counted| counted.sent.tally(now));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
        let rejection_percent = (probability * 100.0).round() as u32;
        let refused = self.refused.load(Ordering::Relaxed);
        let threshold = policy.success_rate_threshold;
        AdmissionView { rejection_percent, calls: sent.calls, failed: sent.failed, refused, threshold }
    }
}

impl Cluster {
    /// Whether a call may be sent, though too few of those of late succeeded; `is_exempt`: it matters so much that it
    /// always may.
    ///
    /// # Errors
    /// It may not.
    pub fn admit_by_success(
        &self,
        is_exempt: bool,
        now: Tick,
        rng: &mut impl Rng,
        reasons: &mut impl Reasons,
    ) -> Result<(), Cause> {
        let Some(policy) = &self.admission else { return Ok(()) };
        let may = is_exempt || self.shared.admissions.lets_through(policy, now, rng);
        reasons.note(|| {
            let AdmissionView { rejection_percent, calls, failed, .. } =
                self.shared.admissions.view(policy, now);
            let why = format!("of {calls} calls {failed} did not succeed: {rejection_percent} % are refused");
            let (outcome, why) = match (may, is_exempt) {
                (false, _) => (Outcome::Refused, why),
                (true, true) => (Outcome::Noted, format!("{why}; this one matters too much")),
                (true, false) => (Outcome::Noted, why),
            };
            Reason { phase: Phase::Admission, subject: self.key.to_string(), outcome, why }
        });
        if may { Ok(()) } else { Err(Cause::AdmissionControl) }
    }

    /// Whether some of its calls are refused since too few succeed.
    #[must_use]
    pub fn holds_back(&self) -> bool {
        self.admission.is_some() && self.shared.admissions.holds_back.load(Ordering::Relaxed)
    }

    /// How admission by success rate stands; absent: there is none.
    #[must_use]
    pub fn admissions(&self, now: Tick) -> Option<AdmissionView> {
        self.admission.as_ref().map(|policy| self.shared.admissions.view(policy, now))
    }
}

#[cfg(test)]
mod tests;
