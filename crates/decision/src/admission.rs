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
//! *Changes.* That calls begin to be held back, and that this is over, is told once each, with its cause; see `change.rs`.
//!
//! *Cost.* While enough succeed, a call begins by reading one word, and nobody waits for anybody when it ends: a worker that
//! finds another one counting leaves its call uncounted.

mod change;

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
use change::Changes;
pub use change::{AdmissionCause, AdmissionChange, AdmissionState};

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
        let excess = self.excess(sent.calls, sent.failed);
        if excess <= 0 || !self.are_enough(sent.calls, refused) {
            return 0.0;
        }
        let (calls, threshold) = (i64::from(sent.calls), self.threshold());
        #[expect(clippy::cast_precision_loss, reason = "32 bits times a hundred")]
        let excess = excess as f64 / (threshold * (calls + 1)) as f64;
        let grown = excess.powf(1000.0 / f64::from(self.aggression.max(1000)));
        let probability = grown.min(f64::from(self.max_rejection_probability.min(100)) / 100.0);
        debug_assert_eq!(invariants::rejection(self, sent, probability), Ok(()));
        probability
    }

    fn threshold(&self) -> i64 {
        i64::from(self.success_rate_threshold.clamp(1, 100))
    }

    /// Hundred times the threshold's times of what was sent beyond what has succeeded. In whole numbers: what is next to nothing
    /// would grow to much where the policy is aggressive.
    fn excess(&self, calls: u32, failed: u32) -> i64 {
        i64::from(calls) * self.threshold() - i64::from(calls - failed) * 100
    }

    /// Whether as many succeed as should.
    fn is_reached(&self, calls: u32, failed: u32) -> bool {
        self.excess(calls, failed) <= 0
    }

    /// Whether so many calls come that anything is decided by them.
    fn are_enough(&self, sent: u32, refused: u32) -> bool {
        let offered = f64::from(sent) + f64::from(refused);
        offered >= f64::from(self.rps_threshold) * self.sampling_window.as_secs_f64()
    }

    /// Percent of calls that may fail beyond those that do, until some are refused, rounded up. All that may, where fewer come
    /// than it decides by. Absent: it refuses nobody.
    pub(crate) fn headroom(&self, sent: Tally, refused: u32) -> Option<u32> {
        if self.max_rejection_probability == 0 {
            return None;
        }
        let counted = if self.are_enough(sent.calls, refused) { sent } else { Tally::default() };
        let failed = u64::from(counted.failed) * 100 / u64::from(counted.calls.max(1));
        let may = 100 - self.success_rate_threshold.clamp(1, 100);
        let headroom = Some(may.saturating_sub(u32::try_from(failed).unwrap_or(u32::MAX)));
        debug_assert_eq!(invariants::admission_headroom(self, sent, refused, headroom), Ok(()));
        headroom
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
    changes: Changes,
}

impl Counted {
    fn new(size: WindowSize) -> Self {
        Self { sent: Window::new(size), refused: Window::new(size), changes: Changes::default() }
    }

    fn probability(&self, policy: &AdmissionControl, now: Tick) -> f64 {
        policy.probability(self.sent.tally(now), self.refused.tally(now).calls)
    }

    /// `refused`: calls refused since it was made.
    fn view(&self, policy: &AdmissionControl, refused: u64, now: Tick) -> AdmissionView {
        let (sent, held_back) = (self.sent.tally(now), self.refused.tally(now).calls);
        let probability = policy.probability(sent, held_back);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
        let rejection_percent = (probability * 100.0).round() as u32;
        AdmissionView {
            holds_back: probability > 0.0,
            rejection_percent,
            calls: sent.calls,
            failed: sent.failed,
            headroom: policy.headroom(sent, held_back),
            state: self.changes.state(policy, now),
            cause: self.changes.cause(),
            ..AdmissionView::new(policy, refused)
        }
    }
}

/// What a service's callers here know of it.
#[derive(Debug, Default)]
pub(crate) struct Admissions {
    counted: Mutex<Option<Box<Counted>>>,
    /// Some may be refused: somebody must look.
    holds_back: AtomicBool,
    /// There is something to tell.
    has_changed: AtomicBool,
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
    /// Percent of calls that may fail beyond those that do, until some are refused, rounded up; absent: its policy refuses nobody.
    pub headroom: Option<u32>,
    /// Some would be refused at this moment.
    pub holds_back: bool,
    /// What was told last, or that its time is over.
    pub state: AdmissionState,
    /// Why that was told; absent: nothing ever was.
    pub cause: Option<AdmissionCause>,
}

impl AdmissionView {
    /// Before the first call has ended.
    fn new(policy: &AdmissionControl, refused: u64) -> Self {
        Self {
            rejection_percent: 0,
            calls: 0,
            failed: 0,
            refused,
            threshold: policy.success_rate_threshold,
            headroom: policy.headroom(Tally::default(), 0),
            holds_back: false,
            state: AdmissionState::Admitting,
            cause: None,
        }
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
            let changes = std::mem::take(&mut counted.changes);
            **counted = Counted { changes, ..Counted::new(size) };
        }
        counted.sent.add(outcome != AttemptOutcome::Success, false, now);
        let view = counted.view(policy, self.refused.load(Ordering::Relaxed), now);
        self.holds_back.store(view.holds_back, Ordering::Relaxed);
        if counted.changes.look(policy, view, now) {
            self.has_changed.store(true, Ordering::Relaxed);
        }
    }

    /// What has changed since somebody asked, the oldest first.
    #[inline]
    fn changes(&self) -> Option<impl Iterator<Item = AdmissionChange> + use<>> {
        self.has_changed.load(Ordering::Relaxed).then(|| self.take_changes())
    }

    #[cold]
    fn take_changes(&self) -> impl Iterator<Item = AdmissionChange> + use<> {
        let mut counted = self.counted.lock();
        self.has_changed.store(false, Ordering::Relaxed);
        counted.as_mut().map(|counted| counted.changes.take()).into_iter().flatten()
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
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        // Where nearly all are refused, hours may go by until one is sent and ends: this one tells, too.
        if !counted.changes.goes_on(policy, now) {
            let view = counted.view(policy, refused, now);
            if counted.changes.refuses(policy, view, now) {
                self.has_changed.store(true, Ordering::Relaxed);
            }
        }
        false
    }

    fn view(&self, policy: &AdmissionControl, now: Tick) -> AdmissionView {
        let refused = self.refused.load(Ordering::Relaxed);
        let counted = self.counted.lock();
        let view = counted.as_ref().map(|counted| counted.view(policy, refused, now));
        view.unwrap_or_else(|| AdmissionView::new(policy, refused))
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

    /// That calls begin to be held back, or that this is over, for log and metric: what has come of attempts since somebody
    /// asked. Nothing is looked at where no policy holds any back.
    #[inline]
    pub fn admission_changes(&self) -> impl Iterator<Item = AdmissionChange> + use<> {
        self.admission.as_ref().and_then(|_| self.shared.admissions.changes()).into_iter().flatten()
    }

    /// How admission by success rate stands; absent: there is none.
    #[must_use]
    pub fn admissions(&self, now: Tick) -> Option<AdmissionView> {
        self.admission.as_ref().map(|policy| self.shared.admissions.view(policy, now))
    }
}

#[cfg(test)]
mod tests;
