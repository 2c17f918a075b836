//! What an endpoint's answers say about sending it more: how long they take, and whether it wants to be left alone.
//!
//! *Latency.* The time from sending a request to the head of its response, averaged with a weight that decays over time
//! and not over requests, so that a busy and a quiet endpoint forget alike. Something slower than the average counts
//! over [`RISE`], something faster over [`FALL`]: trouble is noticed sooner than recovery is believed. The average is that
//! of the logarithms: one request of a kind that takes a minute says less about its endpoint than ten that take twice as
//! long as elsewhere. Below [`UNNOTICED`] no difference is made. What has not been heard of for a while is forgotten bit by bit, so that an endpoint that was slow
//! is asked again.
//!
//! *Looks.* Where few call, each request that only finds out that an endpoint is as slow as ever counts. So one that was
//! [far slower](FAR_SLOWER) than another is asked again not by what was forgotten, but now and then, and has its share again
//! when it was found quick a few times in a row, see `load/looks.rs`.
//!
//! *Only answers count.* A failure is often faster than the work it refuses to do, and a time-out says how patient we
//! are. Failures say nothing about latency; they make an endpoint rest.
//!
//! *Rest.* After a failure an endpoint is passed by for a time that doubles with each failure in a row, beginning at
//! [`FIRST_REST`], but not shorter than what the failure itself took times [`REST_PER_LOSS`], and not longer than
//! [`LONGEST_REST`]. So a fast failure that happens to every endpoint now and then costs nearly nothing, and an endpoint
//! that only fails is asked a handful of times in all. Failures that come in during the rest were sent before it and
//! do not make it longer. How much of what it gets fails is counted beside that, see `load/failing.rs`.
//!
//! *Wishes.* An endpoint that says itself when to come again (`Retry-After`, `grpc-retry-pushback-ms`) is taken at its word, up to
//! [`LONGEST_PUSH_BACK`]: by whoever is repeated, and as far as others can do its work by all, see `balance/wishes.rs`. Of a limit
//! (429, `RESOURCE_EXHAUSTED`) that may be one caller's, so others leave it alone for that only until it has answered one of them well.
//!
//! *Trial.* After its rest, and until it answers well, an endpoint gets one request at a time: the next one when that has
//! ended, or after [`TRIAL`] if nobody has heard of its end. What has been under way for long, as streams are, does not
//! stand in its way; nor does a stream of events that has begun.
//!
//! *Probes.* Where requests are sent away since the others have too much to do, one that rests is asked now and then, see
//! `load/probes.rs`.
//!
//! These are each proxy's own impressions, kept from the first moment and without a policy; they only say whom to
//! prefer. To take an endpoint out is outlier detection's business.

mod failing;
mod looks;
mod probes;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use self::failing::Failing;
#[cfg(test)]
pub(crate) use self::looks::LOSSES;
use self::looks::{Found, Looks};
use self::probes::Probes;
use crate::invariants;
use crate::outage::doubled;
use crate::outlier::AttemptOutcome;

/// Latencies of which one is less than twice the other count as equal: logarithms differ by less than ln 2.
pub(crate) const ALIKE: f32 = std::f32::consts::LN_2;
/// Answers as quick as this are alike. What a first connection or a busy machine adds is no reason to leave an endpoint
/// alone, and an idle one that was left alone would be for long.
const UNNOTICED: Duration = Duration::from_millis(10);
/// How long a slower answer takes to change the average.
const RISE: Duration = Duration::from_secs(2);
/// How long a faster one takes.
const FALL: Duration = Duration::from_secs(10);
/// How long it takes until what is not heard of is remembered as 1/e of what it was.
const FORGET: Duration = Duration::from_secs(10);
/// Latencies of which one is four times the other or more: a request that finds this out is one of those who wait longest.
pub(crate) const FAR_SLOWER: f32 = 2.0 * ALIKE;
/// The rest after the first failure.
pub(crate) const FIRST_REST: Duration = Duration::from_millis(50);
/// The longest rest that failures lead to.
pub(crate) const LONGEST_REST: Duration = Duration::from_secs(10);
/// A failure that took long makes an endpoint rest so many times as long.
const REST_PER_LOSS: u32 = 4;
/// How long a trial without an end keeps others away.
const TRIAL: Duration = Duration::from_secs(2);
/// The status of a limit, that of gRPC's `RESOURCE_EXHAUSTED` too.
const LIMITED: u16 = 429;
/// The longest that an endpoint is taken at its word.
const LONGEST_PUSH_BACK: Duration = Duration::from_secs(60);

/// What one attempt says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What became of it.
    pub outcome: AttemptOutcome,
    /// The status of the response, or the one that its gRPC status stands for; 0 without a response.
    pub status: u16,
    /// How long it took to the head of the response, or to the failure.
    pub took: Duration,
    /// The endpoint's own word on when to come again.
    pub push_back: Option<Duration>,
    /// The retry policy names it, whatever it says of the endpoint: no retry is paid for by it.
    pub to_repeat: bool,
}

impl Answer {
    /// What an attempt without a whole response says, and nothing on when to come again.
    #[must_use]
    pub const fn new(outcome: AttemptOutcome, took: Duration) -> Self {
        Self { outcome, status: 0, took, push_back: None, to_repeat: false }
    }
}

/// The impressions of one address, across workers and updates.
#[derive(Debug, Default)]
pub(crate) struct Load {
    latency: Latency,
    /// Nanoseconds of the clock's [`Tick`]; 0 means never.
    resting_until: AtomicU64,
    /// The same of what it has asked for itself.
    asked_until: AtomicU64,
    /// The same where it was not a limit that asked.
    unwell_until: AtomicU64,
    /// The same of the trial under way; it counts only while the last word was a failure.
    trial_until: AtomicU64,
    failures_in_a_row: AtomicU32,
    failing: Failing,
    looks: Looks,
    probes: Probes,
}

/// What is known of an endpoint's latency: the natural logarithm of nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// When it was last heard of.
    pub(crate) then: f32,
    /// What is left of it by now.
    pub(crate) now: f32,
}

impl Load {
    /// The average latency; `None` when nothing is known.
    pub(crate) fn latency(&self, now: Tick) -> Option<Known> {
        let (then, age) = unpack(self.latency.0.load(Ordering::Relaxed), now)?;
        Some(Known { then, now: then - age.as_secs_f32() / FORGET.as_secs_f32() })
    }

    /// The same as far as it is remembered.
    pub(crate) fn ln_latency(&self, now: Tick) -> Option<f32> {
        self.latency(now).map(|known| known.now)
    }

    /// It has lost to an endpoint of this latency, as it was when it was last heard of, than which it was far slower. Whether it is
    /// time to find out if it still is: who is told so asks it.
    pub(crate) fn looks(&self, other: f32, now: Tick) -> bool {
        unpack(self.latency.0.load(Ordering::Relaxed), now)
            .is_none_or(|(_, age)| self.looks.begins(other, age, now))
    }

    /// Whether it rests after a failure.
    pub(crate) fn is_resting(&self, now: Tick) -> bool {
        self.resting_until.load(Ordering::Relaxed) > now.as_nanos()
    }

    /// When it may be asked though it rests, where the others have too much to do.
    pub(crate) fn probed_from(&self) -> Tick {
        self.probes.due()
    }

    /// It is asked though it rests.
    pub(crate) fn probes(&self, now: Tick) {
        self.probes.begins(now);
    }

    /// Whether it has asked to be left alone for so long.
    pub(crate) fn wants_rest(&self, now: Tick) -> bool {
        self.asked_until.load(Ordering::Relaxed) > now.as_nanos()
    }

    /// Whether that concerns those as well to whom it has not said so.
    pub(crate) fn is_unwell(&self, now: Tick) -> bool {
        self.wants_rest(now)
            && (self.has_failed() || self.unwell_until.load(Ordering::Relaxed) > now.as_nanos())
    }

    /// Whether its last word was a failure, and somebody is finding out about it.
    pub(crate) fn is_tried(&self, now: Tick) -> bool {
        self.has_failed() && self.trial_until.load(Ordering::Relaxed) > now.as_nanos()
    }

    /// Whether it is passed by, for either reason.
    pub(crate) fn is_passed_by(&self, now: Tick) -> bool {
        self.is_resting(now) || self.is_tried(now)
    }

    /// Whether it failed more than once in a row, and is passed by for it.
    pub(crate) fn fails(&self, now: Tick) -> bool {
        self.has_failed_again() && self.is_passed_by(now)
    }

    /// Whether its last words were failures, more than one.
    pub(crate) fn has_failed_again(&self) -> bool {
        self.failures_in_a_row.load(Ordering::Relaxed) > 1
    }

    /// Whether so many of its last answers were failures that this is not what it fails now and then.
    pub(crate) fn fails_much(&self) -> bool {
        self.failing.is_much()
    }

    /// [`Self::ln_latency`], where it is so long that half of it would make a difference.
    pub(crate) fn noticeable(&self, now: Tick) -> Option<f32> {
        let least = (2.0 * UNNOTICED.as_secs_f32() * 1e9).ln();
        self.ln_latency(now).filter(|ln| *ln > least)
    }

    /// Whether it has answered within this time, well or badly.
    pub(crate) fn has_answered(&self, within: Duration, now: Tick) -> bool {
        let known = unpack(self.latency.0.load(Ordering::Relaxed), now);
        let rested = || Tick::from_nanos(self.resting_until.load(Ordering::Relaxed));
        known.is_some_and(|(_, age)| age <= within) || (self.has_failed() && now <= rested().after(within))
    }

    fn has_failed(&self) -> bool {
        self.failures_in_a_row.load(Ordering::Relaxed) > 0
    }

    /// A request is sent to it.
    pub(crate) fn picked(&self, now: Tick) {
        if self.has_failed() {
            self.trial_until.store(now.after(TRIAL).as_nanos(), Ordering::Relaxed);
        }
    }

    /// Nobody waits for the end of the trial under way: its answer has begun well, and may be silent for as long as it likes. A failure
    /// still counts in its row.
    pub(crate) fn lets_next(&self) {
        self.trial_until.store(0, Ordering::Relaxed);
    }

    /// The instance behind the address is another one.
    pub(crate) fn forget(&self) {
        self.latency.0.store(0, Ordering::Relaxed);
        self.looks.forget();
        self.probes.forget();
        self.resting_until.store(0, Ordering::Relaxed);
        self.asked_until.store(0, Ordering::Relaxed);
        self.unwell_until.store(0, Ordering::Relaxed);
        self.failing.forget();
        self.failures_in_a_row.store(0, Ordering::Relaxed);
    }

    /// An attempt has ended. A healthy endpoint costs one shared write.
    pub(crate) fn record(&self, answer: &Answer, now: Tick) {
        if answer.outcome == AttemptOutcome::Success {
            self.answered(answer.took, now);
        }
        self.ended(answer, now);
    }

    /// The same where its latency is known since its head.
    pub(crate) fn ended(&self, answer: &Answer, now: Tick) {
        match answer.outcome {
            // Who has a row of failures has failed lately.
            AttemptOutcome::Success if self.failing.is_any() => {
                self.failing.answered();
                self.failures_in_a_row.store(0, Ordering::Relaxed);
            }
            AttemptOutcome::Success => {}
            AttemptOutcome::Overloaded | AttemptOutcome::Failure => self.failed(answer, now),
        }
        if let Some(push_back) = answer.push_back.filter(|time| !time.is_zero()) {
            let until = now.after(push_back.min(LONGEST_PUSH_BACK)).as_nanos();
            self.asked_until.fetch_max(until, Ordering::Relaxed);
            if answer.status != LIMITED {
                self.unwell_until.fetch_max(until, Ordering::Relaxed);
            }
        }
    }

    /// An attempt was given up after this time, since another one had answered: it would have taken longer. That says
    /// something of an endpoint that is believed to be quicker, and of no other.
    pub(crate) fn outlasted(&self, waited: Duration, now: Tick) {
        let sample = sample(waited);
        self.looks.outlasted(sample);
        if self.latency(now).is_none_or(|known| sample > known.then) {
            self.latency.observe(waited, now);
        } else {
            self.latency.outlasts(sample, now);
        }
    }

    /// The head of a good answer is there. Of one that was sent in its rest, to find out, that ends the rest: what was sent
    /// before it says nothing.
    pub(crate) fn answered(&self, took: Duration, now: Tick) {
        let sent = Tick::from_nanos(
            now.as_nanos().saturating_sub(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)),
        );
        if self.probes.covers(sent) {
            self.probes.forget();
            self.resting_until.fetch_min(now.as_nanos(), Ordering::Relaxed);
        }
        let found = self.looks.is_under_way().then(|| self.looks.answered(sample(took)));
        match found.unwrap_or(Found::AsSlow) {
            Found::AsSlow => self.latency.observe(took, now),
            Found::Luck => self.latency.hears(now),
            Found::Recovered(latency) => self.latency.0.store(pack(latency, now), Ordering::Relaxed),
        }
    }

    fn failed(&self, answer: &Answer, now: Tick) {
        self.looks.failed();
        self.rests(answer, now);
        // Behind its row: a good answer ends that only where this says that there may be one.
        self.failing.failed();
    }

    /// Another rest begins, unless one is under way.
    fn rests(&self, answer: &Answer, now: Tick) {
        let resting_until = self.resting_until.load(Ordering::Relaxed);
        if resting_until > now.as_nanos() {
            return;
        }
        let row = self.failures_in_a_row.load(Ordering::Relaxed).saturating_add(1);
        let until = now.after(rest(row, answer.took)).as_nanos();
        // Of workers that hear of failures at the same time one counts.
        let begun =
            self.resting_until.compare_exchange(resting_until, until, Ordering::Relaxed, Ordering::Relaxed);
        if begun.is_ok() {
            self.probes.forget();
            self.trial_until.store(0, Ordering::Relaxed);
            self.failures_in_a_row.store(row, Ordering::Relaxed);
        }
    }
}

/// How long an endpoint rests after so many failures in a row, the last of which took so long.
pub(crate) fn rest(row: u32, took: Duration) -> Duration {
    let chosen =
        doubled(FIRST_REST.max(took.saturating_mul(REST_PER_LOSS)), row.saturating_sub(1), LONGEST_REST);
    debug_assert_eq!(invariants::rest(chosen), Ok(()));
    chosen
}

/// A moving average in one word, so that value and time change together: the upper half is the natural logarithm of the
/// average in nanoseconds as a float, the lower half the time of the last answer in microseconds, which wraps after 71
/// minutes. An endpoint that is idle for just so long is believed to have answered a moment ago; that is its one error.
#[derive(Debug, Default)]
struct Latency(AtomicU64);

impl Latency {
    fn observe(&self, took: Duration, now: Tick) {
        let sample = sample(took);
        let step = |word: u64| {
            let Some((average, age)) = unpack(word, now) else { return Some(pack(sample, now)) };
            let over = if sample > average { RISE } else { FALL };
            let weight = age.as_secs_f32() / (age + over).as_secs_f32();
            let next = average + (sample - average) * weight;
            debug_assert_eq!(invariants::latency(average, sample, next), Ok(()));
            Some(pack(next, now))
        };
        // The closure always gives a value, so the update cannot fail.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    /// It takes longer than this: of what is known at least as much is remembered, as if it had not been unheard of for so long.
    /// An average with what was known would be less than that.
    fn outlasts(&self, sample: f32, now: Tick) {
        let step = |word: u64| {
            let (average, age) = unpack(word, now)?;
            let remembered = FORGET.mul_f32((average - sample).max(0.0));
            let heard =
                now.as_nanos().saturating_sub(u64::try_from(remembered.as_nanos()).unwrap_or(u64::MAX));
            (remembered < age).then(|| pack(average, Tick::from_nanos(heard)))
        };
        // Nothing to change: it is remembered well enough.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    /// It was heard of, and what is known of it is as it was.
    fn hears(&self, now: Tick) {
        let step = |word: u64| unpack(word, now).map(|(average, _)| pack(average, now));
        // What nobody has written stays so.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }
}

/// The logarithm that stands for a time.
fn sample(took: Duration) -> f32 {
    (took.max(UNNOTICED).as_secs_f32() * 1e9).ln()
}

/// Average, and time since it was written; `None` for a word that nobody has written.
fn unpack(word: u64, now: Tick) -> Option<(f32, Duration)> {
    #[expect(clippy::cast_possible_truncation, reason = "each half is taken apart")]
    let (average, written) = ((word >> 32) as u32, word as u32);
    let age = Duration::from_micros(micros(now).wrapping_sub(written).into());
    // No written average is 0: a sample is at least [`UNNOTICED`].
    (average != 0).then(|| (f32::from_bits(average), age))
}

fn pack(average: f32, now: Tick) -> u64 {
    u64::from(average.to_bits()) << 32 | u64::from(micros(now))
}

fn micros(now: Tick) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "it wraps, as said")]
    let micros = (now.as_nanos() / 1_000) as u32;
    micros
}

#[cfg(test)]
mod tests;
