//! What a service's answers of the last five to ten seconds took: counts by size, of which any percentile can be asked.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use crate::invariants;
use crate::sizes::{SIZES, longest, size};

/// Two of these are looked at: the present one, and the one before.
const PERIOD: Duration = Duration::from_secs(5);
const COUNT: u64 = (1 << 40) - 1;
const PERIOD_SHIFT: u32 = 40;
/// At least so many answers must be known.
pub(crate) const ENOUGH: u64 = 20;
/// At least so many of them beyond a percentile.
pub(crate) const BEYOND: u64 = 2;
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
        (now.as_nanos() / PERIOD.as_nanos() as u64) & 0xff_ffff
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
        let size = Self::find(&self.counts(now), percent)?;
        self.last.store(asked | size as u64, Ordering::Relaxed);
        Some(longest(size))
    }

    /// What must hold whenever nobody is at it.
    pub(super) fn holds(&self, percent: u32, now: Tick) -> Result<(), String> {
        let counts = self.counts(now);
        invariants::latencies(&counts, percent, Self::find(&counts, percent))
    }

    /// How many answers of late were of each size.
    fn counts(&self, now: Tick) -> [u64; SIZES] {
        let period = Self::period(now);
        let count = |at: usize| -> u64 {
            let words = self.periods.iter().map(|counts| counts[at].load(Ordering::Relaxed));
            let of_late = words.filter(|word| period.wrapping_sub(word >> PERIOD_SHIFT) <= 1);
            of_late.map(|word| word & COUNT).sum()
        };
        array::from_fn(count)
    }

    fn find(counts: &[u64; SIZES], percent: u32) -> Option<usize> {
        let all: u64 = counts.iter().sum();
        let is_enough = all >= ENOUGH.max((100 * BEYOND).div_ceil(u64::from(100 - percent)));
        let wanted = (all * u64::from(percent)).div_ceil(100);
        let mut so_far = 0;
        let reaches = |count: &u64| {
            so_far += count;
            so_far >= wanted
        };
        let found = is_enough.then(|| counts.iter().position(reaches)).flatten();
        debug_assert_eq!(invariants::latencies(counts, percent, found), Ok(()));
        found
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
            let known = Latencies::find(&latencies.counts(at(taken)), 95).is_some();
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
    fn two_answers_are_known_beyond_a_percentile_before_it_is_told() {
        for (percent, enough) in
            [(50, 20), (90, 20), (91, 23), (93, 29), (94, 34), (95, 40), (97, 67), (99, 200)]
        {
            let latencies = Latencies::default();
            for number in 1..=enough {
                assert_eq!(
                    latencies.percentile(percent, at(0)),
                    None,
                    "{percent}: the {number}th is to come"
                );
                latencies.add(Duration::from_millis(number), at(0));
            }
            assert!(latencies.percentile(percent, at(0)).is_some(), "{percent}: {enough} are enough");
        }
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

        /// Answers come whenever they come: what is told of those of late is their percentile, and not before two are beyond it.
        #[test]
        fn a_percentile_is_told_when_two_are_beyond_it(
            steps in prop::collection::vec((0u64..3_000, 1u64..200_000, 1u64..30), 1..60),
            percent in 50u32..100,
        ) {
            let latencies = Latencies::default();
            let (mut now, mut told) = (0, Vec::new());
            for (pause, took, times) in steps {
                now += pause;
                (0..times).for_each(|_| latencies.add(Duration::from_millis(took), at(now)));
                told.push((now, times));
                prop_assert_eq!(latencies.holds(percent, at(now)), Ok(()));
                let period = |at: u64| at / 5_000;
                let of_late = told.iter().filter(|(then, _)| period(*then) + 1 >= period(now));
                let all: u64 = of_late.map(|(_, times)| times).sum();
                let beyond = all * (100 - u64::from(percent)) / 100;
                let known = Latencies::find(&latencies.counts(at(now)), percent).is_some();
                prop_assert_eq!(known, all >= 20 && beyond >= 2, "{} answers, {} beyond", all, beyond);
            }
        }
    }
}
