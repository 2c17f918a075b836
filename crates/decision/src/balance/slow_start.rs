//! Slow start: an endpoint that has just begun gets a share that grows, so that its caches fill and its code warms up
//! before it has to keep up with the others. Numbers and names are Envoy's.
//!
//! *Share.* For a window its weight counts `(time since it began / window) ^ (1 / aggression)`, but never less than a
//! least part. What counts is the share beside the others: where all began together nobody is slowed, and where the
//! oldest began a moment ago the others are measured by that one.
//!
//! *Beginning.* An endpoint begins with the first request that could have gone to it. So no clock is asked when
//! endpoints come, and a proxy that starts finds a fleet that began together. It begins again when a trial has ended its
//! ejection or closed its breaker, when its checks pass again, when it is no longer ejected for everybody, when the registry
//! takes it in again, and when another instance is behind its address.
//!
//! Where slow start is asked for later, those that are there by then began long ago.
//!
//! *Where it counts.* A draw that meets an endpoint takes it with the chance of its share, else draws again; where draws
//! find nobody, one is drawn by share among all that fit. So each comes up in proportion to weight and share. What it
//! has under way weighs accordingly more. Who is unwell is passed by first: one that has just begun is better than one
//! that is ejected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use super::tiers::WHOLE;
use crate::endpoint::Endpoint;
use crate::invariants;

/// How an endpoint begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// How long it has less than its share.
    pub window: Duration,
    /// In thousandths: above 1,000 it grows fast at first, below it grows late.
    pub aggression: u32,
    /// Percent of its weight that it has at least, 1 to 100.
    pub min_weight_percent: u32,
}

impl SlowStart {
    /// Thousandths of its weight that an endpoint has so long after it began.
    #[must_use]
    pub fn share(&self, age: Duration) -> u32 {
        if age >= self.window {
            return WHOLE;
        }
        let part = age.as_secs_f64() / self.window.as_secs_f64();
        let grown = match self.aggression {
            1_000 => part,
            other => part.powf(1e3 / f64::from(other.max(1))),
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and a thousand"
        )]
        let share = (grown * f64::from(WHOLE)) as u32;
        let share = share.clamp(self.least(), WHOLE);
        debug_assert_eq!(invariants::slow_start(self, age, share), Ok(()));
        share
    }

    /// The least share, in thousandths; never nothing.
    pub(crate) fn least(&self) -> u32 {
        (self.min_weight_percent * (WHOLE / 100)).clamp(1, WHOLE)
    }
}

/// When an endpoint began, in nanoseconds of the clock's [`Tick`]; 0: nothing could have gone to it yet.
#[derive(Debug, Default)]
pub(crate) struct Begun(AtomicU64);

impl Begun {
    /// When it began; it begins now, unless it has.
    fn or_now(&self, now: Tick) -> u64 {
        let now = now.as_nanos().max(1);
        self.0
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
            .map_or_else(|begun| begun, |_| now)
    }

    fn at(&self, now: Tick) {
        self.0.store(now.as_nanos().max(1), Ordering::Relaxed);
    }

    /// It began before anything that is counted, unless it is known when.
    pub(crate) fn long_ago(&self) {
        _ = self.0.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// It begins with the first request that could go to it from now on.
    pub(crate) fn anew(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn age(&self, now: Tick) -> Duration {
        now.since(Tick::from_nanos(self.0.load(Ordering::Relaxed)))
    }
}

/// What an endpoint set knows of its beginners.
#[derive(Debug)]
pub(crate) struct Beginners {
    policy: SlowStart,
    /// Until when somebody has less than its weight, in nanoseconds; 0: nobody has looked yet. Only grows.
    until: AtomicU64,
    /// When the oldest began.
    oldest: AtomicU64,
}

impl Beginners {
    pub(crate) fn new(policy: SlowStart) -> Self {
        Self { policy, until: AtomicU64::new(0), oldest: AtomicU64::new(0) }
    }

    /// How shares are at this moment; `None`: all have their whole weight.
    pub(crate) fn at(&self, endpoints: &[Arc<Endpoint>], now: Tick) -> Option<Shares> {
        let mut until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            until = self.look(endpoints, now);
        }
        if until <= now.as_nanos() {
            return None;
        }
        let oldest = Tick::from_nanos(self.oldest.load(Ordering::Relaxed));
        Some(Shares { policy: self.policy, now, most: self.policy.share(now.since(oldest)) })
    }

    fn look(&self, endpoints: &[Arc<Endpoint>], now: Tick) -> u64 {
        let (mut oldest, mut youngest) = (u64::MAX, 0);
        for endpoint in endpoints {
            let begun = endpoint.stats.begun.or_now(now);
            (oldest, youngest) = (oldest.min(begun), youngest.max(begun));
        }
        self.oldest.store(oldest, Ordering::Relaxed);
        // Nobody is slowed beside somebody of the same age.
        let until = if oldest < youngest { self.over(Tick::from_nanos(youngest)) } else { 1 };
        self.until.fetch_max(until, Ordering::Relaxed).max(until)
    }

    fn over(&self, begun: Tick) -> u64 {
        begun.after(self.policy.window).as_nanos()
    }

    /// One of the endpoints begins again.
    pub(crate) fn begins(&self, endpoint: &Endpoint, now: Tick) {
        endpoint.stats.begun.at(now);
        self.until.fetch_max(self.over(now), Ordering::Relaxed);
    }
}

/// Who has how much of its weight at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    policy: SlowStart,
    now: Tick,
    /// The share of the oldest: by it the others are measured.
    most: u32,
}

impl Shares {
    /// Thousandths of the weight; at least 1.
    pub(crate) fn of(&self, endpoint: &Endpoint) -> u32 {
        let own = self.policy.share(endpoint.stats.begun.age(self.now));
        (own * WHOLE / self.most).clamp(1, WHOLE)
    }
}

#[cfg(test)]
mod tests;
