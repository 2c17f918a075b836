//! How long a request has, as it is said from hop to hop, and whether that can be enough.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use crate::invariants;

/// The longest time that is written as a `grpc-timeout`.
pub(crate) const LONGEST_TOLD: Duration = Duration::from_secs(99_999_999);

/// Reads `grpc-timeout` (gRPC over HTTP2, "Timeout"): up to eight digits and a unit.
#[must_use]
pub fn read_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Writes `grpc-timeout`: in the finest unit that has room, never more than there is.
#[must_use]
pub fn write_grpc_timeout(rest: Duration) -> String {
    const ROOM: u128 = 99_999_999;
    let units = [(rest.as_nanos(), 'n'), (rest.as_micros(), 'u'), (rest.as_millis(), 'm')];
    let text = match units.into_iter().find(|(number, _)| *number <= ROOM) {
        Some((number, unit)) => format!("{number}{unit}"),
        None => format!("{}S", rest.min(LONGEST_TOLD).as_secs()),
    };
    debug_assert_eq!(invariants::deadline(rest, read_grpc_timeout(text.as_bytes())), Ok(()));
    text
}

/// Reads milliseconds (`x-envoy-expected-rq-timeout-ms`). None at all is no limit, as in Envoy.
#[must_use]
pub fn read_millis(value: &[u8]) -> Option<Duration> {
    let number: u64 = std::str::from_utf8(value).ok()?.trim().parse().ok()?;
    (number > 0).then(|| Duration::from_millis(number))
}

/// Answers of one period of it count, and those of the period before.
const PERIOD: Duration = Duration::from_secs(5);
/// So few answers say nothing.
const ENOUGH: u64 = 20;
const COUNT: u64 = 0xff;
const MICROS_SHIFT: u32 = 8;
const MICROS: u64 = 0xffff_ffff;
const PERIOD_SHIFT: u32 = 40;

/// The fastest answer of late. A request that has less time than that cannot be answered in time. It is no average: where
/// some requests take a millisecond and others a second, one that has ten may well be of the first kind.
///
/// When everything is refused nothing is measured, and after ten seconds nothing is known: then some are let through.
///
/// Two words, of this period and the one before: `period:24 microseconds:32 count:8`. Mostly they are only read.
#[derive(Debug, Default)]
pub(crate) struct Fastest([AtomicU64; 2]);

impl Fastest {
    fn period(now: Tick) -> u64 {
        // From 1, so that a word of zeros belongs to none.
        (now.as_nanos() / PERIOD.as_nanos() as u64 + 1) & 0xff_ffff
    }

    pub(crate) fn answered(&self, took: Duration, now: Tick) {
        let period = Self::period(now);
        let micros = u64::try_from(took.as_micros()).unwrap_or(MICROS);
        let step = |word: u64| {
            let (count, least) = match word >> PERIOD_SHIFT == period {
                true => (word & COUNT, word >> MICROS_SHIFT & MICROS),
                false => (0, MICROS),
            };
            let fastest = least.min(micros);
            debug_assert_eq!(invariants::fastest(Some(Duration::from_micros(fastest)), took), Ok(()));
            let new = period << PERIOD_SHIFT | fastest << MICROS_SHIFT | (count + 1).min(ENOUGH);
            (new != word).then_some(new)
        };
        // Nothing to be written is no failure.
        let _ = self.0[usize::from(period % 2 == 1)].fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    /// The fastest answer of the last five to ten seconds, if there were enough.
    pub(crate) fn of_late(&self, now: Tick) -> Option<Duration> {
        let period = Self::period(now);
        let words = self.0.iter().map(|word| word.load(Ordering::Relaxed));
        let (count, least) = words
            .filter(|word| *word != 0 && period.wrapping_sub(word >> PERIOD_SHIFT) <= 1)
            .fold((0, MICROS), |(count, least), word| {
                (count + (word & COUNT), least.min(word >> MICROS_SHIFT & MICROS))
            });
        (count >= ENOUGH).then(|| Duration::from_micros(least))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_says() {
        for (text, millis) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3_000), ("4m", 4), ("5000u", 5)] {
            assert_eq!(read_grpc_timeout(text.as_bytes()), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(read_grpc_timeout(b"7n"), Some(Duration::from_nanos(7)));
        assert_eq!(read_grpc_timeout(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for broken in ["", "m", "1", "1s", "-1m", "1.5S", "123456789m", " 1m", "1 m", "+1m"] {
            assert_eq!(read_grpc_timeout(broken.as_bytes()), None, "{broken}");
        }
        assert_eq!(read_millis(b"250"), Some(Duration::from_millis(250)));
        assert_eq!((read_millis(b"0"), read_millis(b"-1"), read_millis(b"1s")), (None, None, None));
    }

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(millis))
    }

    #[test]
    fn the_fastest_is_known_after_enough_answers_and_for_a_while() {
        let fastest = Fastest::default();
        for n in 0..20 {
            assert_eq!(fastest.of_late(at(n)), None, "{n} are not enough");
            fastest.answered(Duration::from_millis(100 - n), at(n));
        }
        assert_eq!(fastest.of_late(at(20)), Some(Duration::from_millis(81)), "in the first period of all");
        assert_eq!(fastest.of_late(at(9_999)), Some(Duration::from_millis(81)));
        assert_eq!(fastest.of_late(at(10_000)), None, "nothing was heard since");
        for _ in 0..20 {
            fastest.answered(Duration::from_millis(300), at(6_000));
        }
        assert_eq!(fastest.of_late(at(6_000)), Some(Duration::from_millis(81)), "both periods count");
        assert_eq!(fastest.of_late(at(10_000)), Some(Duration::from_millis(300)));
    }

    #[test]
    fn many_answers_and_long_ones_do_not_run_over() {
        let fastest = Fastest::default();
        (0..1_000).for_each(|_| fastest.answered(Duration::from_secs(10_000), at(0)));
        assert_eq!(fastest.of_late(at(0)), Some(Duration::from_micros(MICROS)));
        for _ in 0..1_000 {
            fastest.answered(Duration::from_millis(100), at(0));
            assert_eq!(fastest.of_late(at(0)), Some(Duration::from_millis(100)));
        }
    }

    #[test]
    fn a_number_of_eight_digits_has_room_in_its_unit_and_more_is_the_most() {
        assert_eq!(write_grpc_timeout(Duration::from_nanos(99_999_999)), "99999999n");
        assert_eq!(write_grpc_timeout(Duration::from_nanos(100_000_000)), "100000u");
        assert_eq!(write_grpc_timeout(Duration::MAX), "99999999S");
    }

    proptest! {
        /// What is written is never more than there is, and less only by its unit's rounding.
        #[test]
        fn a_deadline_is_never_raised(nanos in 0u64..u64::MAX, shift in 0u32..64) {
            let rest = Duration::from_nanos(nanos >> shift);
            let text = write_grpc_timeout(rest);
            prop_assert!(text.len() <= 9, "{text}");
            prop_assert_eq!(invariants::deadline(rest, read_grpc_timeout(text.as_bytes())), Ok(()));
        }

        /// It is one of the answers, and none of the last five seconds was faster.
        #[test]
        fn nobody_of_late_was_faster(steps in prop::collection::vec((0u64..600, 1u64..500), 20..80)) {
            let fastest = Fastest::default();
            let mut now = 0;
            let mut told = Vec::new();
            for (pause, took) in steps {
                now += pause;
                fastest.answered(Duration::from_millis(took), at(now));
                told.push((now, took));
                let of_late = told.iter().filter(|(when, _)| when / 5_000 + 1 >= now / 5_000).count();
                prop_assert_eq!(fastest.of_late(at(now)).is_some(), of_late >= 20, "of {}", of_late);
                if let Some(known) = fastest.of_late(at(now)) {
                    prop_assert!(told.iter().any(|(when, took)| now - when < 10_000 && Duration::from_millis(*took) == known));
                }
                for (_, took) in told.iter().filter(|(when, _)| now - when < 5_000) {
                    let known = fastest.of_late(at(now));
                    prop_assert_eq!(invariants::fastest(known, Duration::from_millis(*took)), Ok(()));
                }
            }
        }
    }
}
