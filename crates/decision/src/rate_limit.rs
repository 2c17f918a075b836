//! Local rate limit: so many requests per time in each proxy, whoever its workers are.
//!
//! GCRA, the leaky bucket in one number: the *theoretical arrival time* (TAT), when the next request would be due if
//! requests came evenly. Each admitted request moves it on by `per / requests`; one that would move it further than a
//! burst beyond now is refused. One compare-and-swap per request, and none for requests that no limit is about.
//!
//! *Fair share.* Callers are told apart, and each has a TAT of its own at the rate of all divided by those who ask. Who is
//! within its share is admitted as long as all together are within the limit; who is beyond it may have what the others
//! leave: it is admitted while half of the burst is there, and one is left then for who is within its share (of a burst of
//! one nothing can be left: it is admitted when nobody else has taken it). So a caller that asks ten times as much as the
//! others gets what they do not use, and none of theirs.
//!
//! *Newcomers.* Shares of those who ask are all there is, and who comes next finds nothing where somebody takes every request the
//! moment that it is there. So whoever was refused of late for being beyond its share leaves one of the burst also when it is
//! within it again. That costs it one request, once.

pub(crate) mod callers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use crate::invariants;
use crate::origin::Origin;
pub use callers::Caller;
use callers::Callers;

/// What a policy limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateSpec {
    /// So many requests, at least 1.
    pub requests: u32,
    /// In this time, longer than none.
    pub per: Duration,
    /// So many at once after a pause, at least 1.
    pub burst: u32,
    /// Every caller has a share of its own.
    pub fair_share: bool,
    /// Nobody is refused; metrics tell who would be.
    pub shadow: bool,
}

/// A limit with its state, which lives as long as the policy is there and its numbers stay as they are.
#[derive(Debug)]
pub struct RateLimit {
    /// The policy that says it.
    pub origin: Arc<Origin>,
    /// What it says.
    pub spec: RateSpec,
    /// What callers are told of it; see [`LimitText`].
    pub text: Arc<LimitText>,
    counts: Arc<Counts>,
}

/// What has been asked for so far.
#[derive(Debug, Default)]
struct Counts {
    all: Bucket,
    callers: Option<Callers>,
}

/// Two limits are the same only if they count together; and if the same author is told.
impl PartialEq for RateLimit {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.counts, &other.counts) && self.origin == other.origin
    }
}

impl Eq for RateLimit {}

/// A limit as callers are told of it (draft-ietf-httpapi-ratelimit-headers-10): the same for each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitText {
    /// Its name as an item of a structured field: the policy's, in quotes.
    pub name: Box<str>,
    /// The value of `RateLimit-Policy`.
    pub policy: Box<str>,
}

impl LimitText {
    fn new(origin: &Origin, spec: &RateSpec) -> Self {
        let name = format!("\"{}\"", origin.qualified);
        let window = whole_seconds(spec.per);
        // How many may pass in this window, which is told in whole seconds.
        let whole = Duration::from_secs(window).as_nanos();
        let quota = u128::from(spec.requests) * whole / spec.per.as_nanos().max(1);
        Self { policy: format!("{name};q={quota};w={window}").into(), name: name.into() }
    }
}

/// Whole seconds, rounded up: who comes then is not too early.
#[must_use]
pub const fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + (time.subsec_nanos() > 0) as u64
}

/// What a request was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// It may pass. In shadow mode it passes even so.
    pub admitted: bool,
    /// So many could follow at once.
    pub remaining: u32,
    /// Until the whole burst is there again.
    pub reset: Duration,
    /// Until the next one may pass; zero when it may at once.
    pub retry_after: Duration,
}

/// The theoretical arrival time of the next request, in nanoseconds of the clock.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

/// The rate of a bucket.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Nanoseconds from one request to the next.
    interval: u64,
    /// Nanoseconds that the TAT may be ahead of now.
    tolerance: u64,
}

impl Rate {
    /// That of `parts` equal parts of the limit.
    fn of(spec: &RateSpec, parts: u32) -> Self {
        let per = u64::try_from(spec.per.as_nanos()).unwrap_or(u64::MAX);
        let interval = (per / u64::from(spec.requests.max(1))).saturating_mul(u64::from(parts.max(1))).max(1);
        let burst = u64::from((spec.burst / parts.max(1)).max(1));
        Self { interval, tolerance: interval.saturating_mul(burst) }
    }

    /// The TAT after one more request, and whether it may pass.
    fn next(self, tat: u64, now: u64) -> (u64, bool) {
        let next = tat.max(now).saturating_add(self.interval);
        (next, next - now <= self.tolerance)
    }
}

impl Bucket {
    fn tat(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes one request if `may` says so of the TAT that it would leave; gives the TAT then, or the one that stays.
    fn take(&self, rate: Rate, now: u64, may: impl Fn(u64) -> bool) -> Result<u64, u64> {
        let mut tat = self.tat();
        loop {
            let (next, conforms) = rate.next(tat, now);
            if !conforms || !may(next) {
                return Err(tat);
            }
            match self.0.compare_exchange_weak(tat, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(next),
                Err(other) => tat = other,
            }
        }
    }
}

impl RateLimit {
    pub(crate) fn new(origin: Arc<Origin>, spec: RateSpec) -> Self {
        let callers = spec.fair_share.then(Callers::default);
        let text = Arc::new(LimitText::new(&origin, &spec));
        Self { origin, spec, text, counts: Arc::new(Counts { callers, ..Counts::default() }) }
    }

    /// The same limit, said by another version of its policy: counting goes on.
    pub(crate) fn said_by(&self, origin: &Arc<Origin>) -> Self {
        let text = Arc::new(LimitText::new(origin, &self.spec));
        Self { origin: Arc::clone(origin), spec: self.spec, text, counts: Arc::clone(&self.counts) }
    }

    /// A request comes. `caller`: who asks, as far as that is known; all unknown ones are one.
    pub fn ask<'c>(&self, caller: impl Into<Caller<'c>>, now: Tick) -> Allowance {
        let now = now.as_nanos();
        let rate = Rate::of(&self.spec, 1);
        let (taken, leaves) = match &self.counts.callers {
            None => (self.counts.all.take(rate, now, |_| true), 0),
            Some(callers) => self.ask_fairly(callers, caller.into(), rate, now),
        };
        let allowance = told(rate, taken, leaves, now);
        debug_assert_eq!(invariants::allowance(&self.spec, &allowance), Ok(()));
        allowance
    }

    /// What becomes of the request; and what its caller leaves for others, in nanoseconds.
    fn ask_fairly(
        &self,
        callers: &Callers,
        caller: Caller<'_>,
        rate: Rate,
        now: u64,
    ) -> (Result<u64, u64>, u64) {
        let (place, asking) = callers.of(caller, self.spec.per, now);
        let own = &place.bucket;
        let share = Rate::of(&self.spec, asking);
        // Beyond its share it may have what half of the burst leaves, but not the last one.
        let most = (rate.tolerance / 2).min(rate.tolerance.saturating_sub(2 * rate.interval));
        let lent = |next: u64| next - rate.interval - now <= most;
        let within = share.next(own.tat(), now).1;
        let one = rate.interval.min(rate.tolerance - rate.interval);
        let leaves = if place.was_beyond(self.spec.per, now) { one } else { 0 };
        let all = &self.counts.all;
        let taken =
            all.take(rate, now, |next| lent(next) || (within && next - now <= rate.tolerance - leaves));
        match (&taken, within) {
            // Another worker may have used up the share meanwhile; all together are within the limit even so.
            (Ok(_), true) => _ = own.take(share, now, |_| true),
            // Who asks on while it has to leave one has not had enough either.
            (Err(_), within) if !within || leaves > 0 => {
                place.is_beyond(now);
                return (taken, one);
            }
            _ => {}
        }
        (taken, leaves)
    }
}

fn told(rate: Rate, taken: Result<u64, u64>, leaves: u64, now: u64) -> Allowance {
    let tat = match taken {
        Ok(tat) | Err(tat) => tat,
    };
    let ahead = tat.saturating_sub(now);
    let room = rate.tolerance.saturating_sub(ahead);
    let remaining = u32::try_from(room.saturating_sub(leaves) / rate.interval).unwrap_or(u32::MAX);
    // Who was refused for its share alone waits as long as one request takes.
    let needed = rate.interval + leaves;
    let wait = if room >= needed { rate.interval } else { needed - room };
    let retry_after = if taken.is_ok() { 0 } else { wait };
    Allowance {
        admitted: taken.is_ok(),
        remaining: if taken.is_ok() { remaining } else { 0 },
        reset: Duration::from_nanos(ahead),
        retry_after: Duration::from_nanos(retry_after),
    }
}

#[cfg(test)]
mod tests;
