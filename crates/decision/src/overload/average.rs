//! Averages of times, as logarithms of nanoseconds: one request of a kind that takes a minute says less than ten that take
//! twice as long as usual.

use std::time::Duration;

/// What answers sooner says no more.
const QUICKEST: Duration = Duration::from_micros(100);

/// The logarithm of a time in nanoseconds.
pub(super) fn ln(time: Duration) -> f64 {
    (time.max(QUICKEST).as_secs_f64() * 1e9).ln()
}

/// The time of a logarithm of nanoseconds.
pub(super) fn time(ln: f64) -> Duration {
    Duration::from_secs_f64(ln.exp() / 1e9)
}

/// Logarithms, and how many.
#[derive(Debug, Default)]
pub(super) struct Average {
    pub(super) count: u32,
    sum: f64,
}

impl Average {
    pub(super) fn add(&mut self, ln: f64) {
        self.count += 1;
        self.sum += ln;
    }

    /// There is one at least.
    pub(super) fn of_all(&self) -> f64 {
        debug_assert!(self.count > 0, "of none there is no average");
        self.sum / f64::from(self.count)
    }
}
