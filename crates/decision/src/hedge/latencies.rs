//! What a service's answers of the last five to ten seconds took: counts by size, of which any percentile can be asked.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use crate::sizes::{SIZES, longest, size};

/// Two of these are looked at: the present one, and the one before.
const PERIOD: Duration = Duration::from_secs(5);
const COUNT: u64 = (1 << 40) - 1;
const PERIOD_SHIFT: u32 = 40;
/// At least so many answers must be known.
const ENOUGH: u64 = 20;
/// How long a percentile that was worked out is good for.
const REMEMBERED: Duration = Duration::from_millis(50);

/// Of each size a word `period:24 count:40`, so that a count and the period it belongs to change together.
type Period = [AtomicU64; SIZES];

/// See the module's text.
#[derive(Debug)]
pub(super) struct Latencies {
    periods: [Box<Period>; 2],
    /// `percent:8 moment:24 size:32` of the last percentile that was asked for.
    last: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        let period = || Box::new(array::from_fn(|_| AtomicU64::new(0)));
        Self { periods: [period(), period()], last: AtomicU64::new(0) }
    }
}

impl Latencies {
    fn period(now: Tick) -> u64 {
        // From 1, so that a word of zeros belongs to none.
        (now.as_nanos() / PERIOD.as_nanos() as u64 + 1) & 0xff_ffff
    }

    /// An answer took so long.
    pub(super) fn add(&self, took: Duration, now: Tick) {
        let period = Self::period(now);
        let count = &self.periods[usize::from(period % 2 == 1)][size(took)];
        let step = |word: u64| {
            let before = if word >> PERIOD_SHIFT == period { word & COUNT } else { 0 };
            Some(period << PERIOD_SHIFT | (before + 1).min(COUNT))
        };
        // The closure always gives a value, so the update cannot fail.
        let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    /// What so many percent of the answers of late took at most; at most an eighth more than that. `None`: too few are
    /// known to tell, at least two beyond it.
    pub(super) fn percentile(&self, percent: u32, now: Tick) -> Option<Duration> {
        debug_assert!((1..100).contains(&percent), "a percentile");
        let moment = (now.as_nanos() / REMEMBERED.as_nanos() as u64 + 1) & 0xff_ffff;
        let asked = u64::from(percent) << 56 | moment << 32;
        let last = self.last.load(Ordering::Relaxed);
        if last >> 32 == asked >> 32 {
            return Some(longest(usize::try_from(last & 0xffff_ffff).expect("a size")));
        }
        // That too little is known may change with the next answer: it is not remembered.
        let size = self.find(percent, now)?;
        self.last.store(asked | size as u64, Ordering::Relaxed);
        Some(longest(size))
    }

    fn find(&self, percent: u32, now: Tick) -> Option<usize> {
        let period = Self::period(now);
        let count = |at: usize| -> u64 {
            let words = self.periods.iter().map(|counts| counts[at].load(Ordering::Relaxed));
            let of_late = words.filter(|word| *word != 0 && period.wrapping_sub(word >> PERIOD_SHIFT) <= 1);
            of_late.map(|word| word & COUNT).sum()
        };
        let counts: [u64; SIZES] = array::from_fn(count);
        let all: u64 = counts.iter().sum();
        if all < ENOUGH.max(200 / u64::from(100 - percent)) {
            return None;
        }
        let wanted = (all * u64::from(percent)).div_ceil(100);
        let mut so_far = 0;
        counts.iter().position(|count| {
            so_far += count;
            so_far >= wanted
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(millis))
    }

    #[test]
    fn too_few_answers_say_nothing() {
        let latencies = Latencies::default();
        for taken in 1..40 {
            latencies.add(Duration::from_millis(taken), at(taken));
            let known = Latencies::find(&latencies, 95, at(taken)).is_some();
            assert_eq!(known, taken >= 40, "{taken}");
        }
        let early = Latencies::default();
        assert_eq!(early.percentile(50, at(0)), None);
        (0..19).for_each(|_| early.add(Duration::from_millis(1), at(0)));
        assert_eq!(early.percentile(50, at(0)), None, "nineteen are not");
        early.add(Duration::from_millis(1), at(0));
        assert!(early.percentile(50, at(0)).is_some(), "twenty are enough for the median, at once");
        assert_eq!(latencies.percentile(99, at(39)), None);
    }

    #[test]
    fn what_was_before_the_last_ten_seconds_is_forgotten() {
        let latencies = Latencies::default();
        (0..100).for_each(|_| latencies.add(Duration::from_secs(1), at(4_000)));
        assert!(latencies.percentile(90, at(9_900)).is_some());
        (0..100).for_each(|_| latencies.add(Duration::from_millis(2), at(9_900)));
        assert!(latencies.percentile(90, at(9_990)).unwrap() >= Duration::from_secs(1), "both periods count");
        assert!(latencies.percentile(90, at(10_100)).unwrap() < Duration::from_millis(3));
        assert_eq!(latencies.percentile(90, at(15_000)), None);
    }

    #[test]
    fn what_comes_again_after_ten_seconds_does_not_bring_back_what_was() {
        let latencies = Latencies::default();
        (0..100).for_each(|_| latencies.add(Duration::from_secs(1), at(4_000)));
        latencies.add(Duration::from_secs(1), at(14_000));
        (0..100).for_each(|_| latencies.add(Duration::from_millis(2), at(14_000)));
        assert!(latencies.percentile(90, at(14_000)).unwrap() < Duration::from_millis(3));
    }

    #[test]
    fn each_percentile_is_remembered_by_itself() {
        let latencies = Latencies::default();
        (0..60).for_each(|_| latencies.add(Duration::from_millis(1), at(0)));
        (0..40).for_each(|_| latencies.add(Duration::from_millis(100), at(0)));
        assert!(latencies.percentile(50, at(1)).unwrap() < Duration::from_millis(2));
        assert!(latencies.percentile(90, at(1)).unwrap() >= Duration::from_millis(100));
        assert!(latencies.percentile(50, at(1)).unwrap() < Duration::from_millis(2));
    }

    proptest! {
        /// So many percent took no longer, and of all times of which that is true it is nearly the least.
        #[test]
        fn a_percentile_is_that_of_what_was_added(
            micros in prop::collection::vec(64u64..100_000_000, 200..400),
            percent in 50u32..100,
        ) {
            let latencies = Latencies::default();
            micros.iter().for_each(|micros| latencies.add(Duration::from_micros(*micros), at(1)));
            let found = latencies.percentile(percent, at(2)).unwrap();
            let mut sorted = micros;
            sorted.sort_unstable();
            let place = (sorted.len() * percent as usize).div_ceil(100) - 1;
            let exact = Duration::from_micros(sorted[place]);
            prop_assert!(found > exact, "{found:?} of {exact:?}");
            prop_assert!(found <= exact.mul_f64(1.125) + Duration::from_micros(1), "{found:?} of {exact:?}");
            prop_assert_eq!(latencies.percentile(percent, at(3)), Some(found), "remembered or not");
        }
    }
}
