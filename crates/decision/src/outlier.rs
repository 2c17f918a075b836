//! Outlier detection: an endpoint that fails again and again is left alone for a while.
//!
//! *Signal.* A response of status 5xx or with a gRPC status of that kind in its head, or an attempt without a response
//! (refused, reset, timed out), is a failure; any other response is a success and ends the row. Failures of our own (limits, no route) are no signal.
//!
//! *Ejection.* A row of `consecutive_5xx` failures ejects for `base_ejection_time` × the number of ejections so far, at
//! most five minutes or one base time. The row starts anew. Requests already under way may still fail; while an
//! endpoint is ejected they change nothing.
//!
//! *Return.* By time: the endpoint is picked again when its time is over. At once, and with nothing held against it, when
//! the registry had taken its instance out and says that it serves again: then it is another process. Each base time without ejection after
//! that takes one ejection off the count, noticed at the next success.
//!
//! *Bounds.* At most `max_ejection_percent` of the pickable endpoints are ejected, but one always may be, and never the
//! last: with all of them ejected, a failing service would become an absent one. Workers decide one at a time; a worker
//! that finds another deciding leaves the row as it is, and the next failure decides.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use crate::endpoint::{Endpoint, EndpointSet, EndpointStats};
use crate::invariants;

/// When an endpoint is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failures in a row; 0: never eject.
    pub consecutive_5xx: u32,
    /// The first ejection's time; the n-th takes n times as long.
    pub base_ejection_time: Duration,
    /// How many percent of the endpoints may be ejected at once.
    pub max_ejection_percent: u32,
}

/// The longest ejection, unless the base time is longer.
const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

/// An ejection that has just begun, for log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// When it ends.
    pub until: Tick,
    /// The how many-th it is.
    pub count: u32,
}

/// What one attempt says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A response below 500.
    Success,
    /// The endpoint does not want so much: 429, gRPC's `RESOURCE_EXHAUSTED`. No failure to outlier detection.
    Overloaded,
    /// A response of 500 or above, or none.
    Failure,
}

impl AttemptOutcome {
    /// The outcome of a response.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            429 => Self::Overloaded,
            500.. => Self::Failure,
            _ => Self::Success,
        }
    }

    /// The outcome of a gRPC status: `RESOURCE_EXHAUSTED` is what 429 is; `UNKNOWN`, `DEADLINE_EXCEEDED`, `INTERNAL`,
    /// `UNAVAILABLE` and `DATA_LOSS` are failures.
    #[must_use]
    pub const fn of_grpc(code: u16) -> Self {
        match code {
            8 => Self::Overloaded,
            2 | 4 | 13 | 14 | 15 => Self::Failure,
            _ => Self::Success,
        }
    }
}

impl OutlierDetection {
    /// How long the `count`-th ejection lasts.
    #[must_use]
    pub fn ejection_time(&self, count: u32) -> Duration {
        self.base_ejection_time.saturating_mul(count).min(MAX_EJECTION_TIME.max(self.base_ejection_time))
    }

    /// Whether one more of `total` endpoints may be ejected when `ejected` are.
    #[must_use]
    pub fn may_eject(&self, ejected: usize, total: usize) -> bool {
        let within = (ejected + 1) * 100 <= self.max_ejection_percent as usize * total;
        ejected + 1 < total && (ejected == 0 || within)
    }

    pub(crate) fn record(
        &self,
        set: &EndpointSet,
        deciding: &AtomicBool,
        endpoint: &Endpoint,
        outcome: AttemptOutcome,
        now: Tick,
    ) -> Option<Ejection> {
        if self.consecutive_5xx == 0 {
            return None;
        }
        let stats = &endpoint.stats;
        if outcome != AttemptOutcome::Failure {
            self.forgive(stats, now);
            return None;
        }
        if stats.is_ejected(now) {
            return None;
        }
        let row = stats.consecutive_5xx.fetch_add(1, Ordering::Relaxed) + 1;
        if row < self.consecutive_5xx || deciding.swap(true, Ordering::Acquire) {
            return None;
        }
        let ejection = self.eject(set, stats, now);
        deciding.store(false, Ordering::Release);
        ejection
    }

    /// Called by one worker at a time.
    fn eject(&self, set: &EndpointSet, stats: &EndpointStats, now: Tick) -> Option<Ejection> {
        // Another worker may have ejected it between our failure and our turn.
        let ejected = set.pickable().iter().filter(|e| e.is_ejected(now)).count();
        if stats.is_ejected(now) || !self.may_eject(ejected, set.pickable().len()) {
            return None;
        }
        let count = stats.ejections.load(Ordering::Relaxed).saturating_add(1);
        let until = now.after(self.ejection_time(count));
        stats.consecutive_5xx.store(0, Ordering::Relaxed);
        stats.ejections.store(count, Ordering::Relaxed);
        stats.ejected_until.store(until.as_nanos(), Ordering::Relaxed);
        debug_assert_eq!(invariants::ejection(self, set, now), Ok(()));
        Some(Ejection { until, count })
    }

    /// A success ends the row, and good behaviour takes ejections off the count. Nothing is written when there is
    /// nothing to forgive, so that healthy endpoints cost no shared write.
    fn forgive(&self, stats: &EndpointStats, now: Tick) {
        if stats.consecutive_5xx.load(Ordering::Relaxed) != 0 {
            stats.consecutive_5xx.store(0, Ordering::Relaxed);
        }
        if stats.ejections.load(Ordering::Relaxed) == 0 || self.base_ejection_time.is_zero() {
            return;
        }
        let marker = stats.ejected_until();
        let next = marker.after(self.base_ejection_time);
        let (old, new) = (marker.as_nanos(), next.as_nanos());
        // The end of the last ejection is the marker; moving it forward, but not beyond now, counts time once.
        let moved = next <= now
            && stats.ejected_until.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if moved {
            let less = |count: u32| Some(count.saturating_sub(1));
            // The closure always gives a value, so the update cannot fail.
            let _ = stats.ejections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }
}

#[cfg(test)]
mod tests;
