//! Times by their size, so that counts of a few hundred sizes tell any percentile to within an eighth.

use std::time::Duration;

/// Sizes between a time and its double.
const STEPS: usize = 8;
/// What is quicker is alike: 2^6 microseconds.
const FIRST_OCTAVE: u32 = 6;
/// Up to 2^27 microseconds, two minutes; what is slower is alike.
const OCTAVES: usize = 21;
/// How many there are.
pub(crate) const SIZES: usize = STEPS * OCTAVES;

/// The size of a time.
pub(crate) fn size(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1 << FIRST_OCTAVE);
    let octave = micros.ilog2();
    let step = (micros >> (octave - 3)) as usize & (STEPS - 1);
    ((octave - FIRST_OCTAVE) as usize * STEPS + step).min(SIZES - 1)
}

/// What times of a size are all shorter than.
pub(crate) fn longest(size: usize) -> Duration {
    let (octave, step) = (size / STEPS, size % STEPS);
    let shift = octave as u32 + FIRST_OCTAVE - 3;
    Duration::from_micros(((STEPS + step + 1) as u64) << shift)
}

/// The middle of a size: no time of it is further away than a sixteenth of its own length.
pub(crate) fn middle(size: usize) -> Duration {
    let shortest = size.checked_sub(1).map(longest).unwrap_or_default();
    (shortest + longest(size)) / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_beyond_the_ends_are_of_the_outermost_sizes() {
        assert_eq!((size(Duration::ZERO), size(Duration::from_micros(71))), (0, 0));
        assert_eq!(size(Duration::from_micros(72)), 1);
        assert_eq!(size(Duration::MAX), SIZES - 1);
        assert!(longest(SIZES - 1) > Duration::from_secs(120));
    }

    proptest! {
        #[test]
        fn each_time_is_within_its_size(micros in 64u64..120_000_000) {
            let took = Duration::from_micros(micros);
            let of = size(took);
            prop_assert!(took < longest(of) && (of == 0 || took >= longest(of - 1)));
            prop_assert!(of == 0 || middle(of).abs_diff(took) <= took / 16 + Duration::from_micros(1));
        }
    }
}
