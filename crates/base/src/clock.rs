//! Time, given rather than taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in monotonic time, in nanoseconds since an origin that the clock chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(u64);

impl Tick {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);

    /// A tick so many nanoseconds after the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This tick moved forward; saturates at the end of time (584 years after the origin).
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Where time comes from. Cheap to call, safe to share.
pub trait Clock: Send + Sync {
    /// Monotonic time, for durations and deadlines.
    fn now(&self) -> Tick;
    /// Civil time since the Unix epoch, for logs and certificates only.
    fn wall(&self) -> Duration;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Tick {
        (**self).now()
    }
    fn wall(&self) -> Duration {
        (**self).wall()
    }
}

/// The machine's clock. Made once in `main` and handed down.
#[derive(Clone, Debug)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl SystemClock {
    /// A clock whose origin is this moment.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place where the machine's time enters")]
    pub fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Tick {
        Tick::ZERO.after(self.origin.elapsed())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place where the machine's time enters")]
    fn wall(&self) -> Duration {
        // A machine whose clock is before 1970 logs the epoch itself.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// A clock that moves only when told to; shared by cloning.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    nanos: Arc<AtomicU64>,
    /// How far civil time was set back.
    back: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock at its origin, which is also the Unix epoch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves time forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(by, Ordering::SeqCst);
    }

    /// Sets civil time back, as when a clock that ran ahead is corrected; monotonic time stays.
    pub fn set_back(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.back.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Tick {
        Tick(self.nanos.load(Ordering::SeqCst))
    }
    fn wall(&self) -> Duration {
        let (nanos, back) = (self.nanos.load(Ordering::SeqCst), self.back.load(Ordering::SeqCst));
        Duration::from_nanos(nanos.saturating_sub(back))
    }
}

/// Renders time since the Unix epoch as RFC 3339 in UTC with milliseconds, as logs and objects carry it.
#[must_use]
pub fn rfc3339_millis(wall: Duration) -> String {
    let secs = wall.as_secs();
    let (year, month, day) = civil_from_days(i64::try_from(secs / 86_400).unwrap_or(i64::MAX / 2));
    let of_day = secs % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        wall.subsec_millis()
    )
}

/// Days since 1970-01-01 to the proleptic Gregorian date (Hinnant's `civil_from_days`).
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = u32::try_from(doy - (153 * mp + 2) / 5 + 1).expect("day of month is 1..=31");
    let month = u32::try_from(if mp < 10 { mp + 3 } else { mp - 9 }).expect("month is 1..=12");
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_when_told() {
        let clock = ManualClock::new();
        let start = clock.now();
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_millis(5));
        assert_eq!(clock.now().since(start), Duration::from_millis(5));
        assert_eq!(start.since(clock.now()), Duration::ZERO, "time never runs backwards");
        clock.set_back(Duration::from_millis(2));
        assert_eq!(clock.now().since(start), Duration::from_millis(5), "nor when civil time does");
        assert_eq!(clock.wall(), Duration::from_millis(3));
    }

    #[test]
    fn renders_leap_days_and_ends_of_years() {
        assert_eq!(rfc3339_millis(Duration::ZERO), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339_millis(Duration::from_millis(951_782_400_123)), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339_millis(Duration::from_secs(1_735_689_599)), "2024-12-31T23:59:59.000Z");
    }
}
