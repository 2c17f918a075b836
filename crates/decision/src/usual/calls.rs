//! How long an application has waited for calls of its own while it worked on a request.
//!
//! Its sidecar sees both: the request that comes in, and the calls that go out with the same trace or request id, if the
//! application passes that on. Calls at the same time count once, as far as each ends after the one before has begun;
//! of one that lasts longer than several others one after the other only what came after them counts.
//!
//! *Bounds.* A table of fixed size, made when it is first needed, in which the newer takes the place of the older: whose
//! calls are forgotten seems to have worked longer itself. A time is known to 16 microseconds and up to four minutes.

use std::array;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use crate::kinship::Family;

const SETS: usize = 2048;
const WAYS: usize = 4;
/// Times are told in 2^14 nanoseconds.
const UNIT_SHIFT: u32 = 14;
/// A word is `tag:16 waited:24 end:24`: how long calls have taken, and when the last one ended.
const TIME_BITS: u32 = 24;
const TIME: u64 = (1 << TIME_BITS) - 1;
const TAG: u64 = !((1 << (2 * TIME_BITS)) - 1);
/// Two workers seldom meet at one word, and then one call more or less is not told.
const TRIES: usize = 3;

type Set = [AtomicU64; WAYS];

/// See the module's text.
#[derive(Debug, Default)]
pub struct AppCalls(OnceLock<Box<[Set; SETS]>>);

impl AppCalls {
    /// A call that the application has made for this family is over.
    pub fn ended(&self, family: Family, started: Tick, now: Tick) {
        let table = self.0.get_or_init(|| Box::new(array::from_fn(|_| Set::default())));
        let set = &table[index(family)];
        let took = units(now.since(started));
        for _ in 0..TRIES {
            let words = set.iter().map(|place| (place, place.load(Ordering::Relaxed)));
            // Its own place, else that of whoever was heard of longest ago.
            let standing = |word: u64| match word {
                0 => (1, TIME + 1),
                word if word & TAG == tag(family) => (2, 0),
                word => (0, age(word, now)),
            };
            let (place, old) = words.max_by_key(|(_, word)| standing(*word)).expect("a set has places");
            let (waited, more) = match standing(old) {
                (2, _) => (old >> TIME_BITS & TIME, took.min(age(old, now))),
                _ => (0, took),
            };
            let new = tag(family) | (waited + more).min(TIME) << TIME_BITS | moment(now);
            if place.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    /// How long the application has waited since then; whoever asks is done with it.
    pub fn take(&self, family: Family, since: Tick, now: Tick) -> Duration {
        let Some(table) = self.0.get() else { return Duration::ZERO };
        let places = table[index(family)].iter().map(|place| (place, place.load(Ordering::Relaxed)));
        let mut own = places.filter(|(_, word)| *word != 0 && word & TAG == tag(family));
        let Some((place, word)) = own.next() else { return Duration::ZERO };
        place.store(0, Ordering::Relaxed);
        let lasted = now.since(since);
        // What ended before the request began was for another one.
        if age(word, now) > units(lasted) {
            return Duration::ZERO;
        }
        Duration::from_nanos((word >> TIME_BITS & TIME) << UNIT_SHIFT).min(lasted)
    }
}

fn index(family: Family) -> usize {
    usize::try_from(family.number() & (SETS as u64 - 1)).expect("eleven bits")
}

fn tag(family: Family) -> u64 {
    family.number() & TAG
}

fn units(time: Duration) -> u64 {
    (u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) >> UNIT_SHIFT).min(TIME)
}

fn moment(now: Tick) -> u64 {
    now.as_nanos() >> UNIT_SHIFT & TIME
}

/// For how long a word has not changed; it wraps.
fn age(word: u64, now: Tick) -> u64 {
    moment(now).wrapping_sub(word) & TIME
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(millis))
    }

    fn millis(time: Duration) -> u64 {
        (time + Duration::from_micros(500)).as_millis().try_into().unwrap()
    }

    #[test]
    fn calls_of_one_request_add_up_and_are_taken_once() {
        let calls = AppCalls::default();
        let (ours, other) = (Family::of("a"), Family::of("b"));
        assert_eq!(calls.take(ours, at(0), at(9)), Duration::ZERO, "nobody has called anybody");
        calls.ended(ours, at(1_010), at(1_030));
        calls.ended(other, at(1_000), at(1_040));
        calls.ended(ours, at(1_050), at(1_055));
        assert_eq!(millis(calls.take(ours, at(1_000), at(1_060))), 25);
        assert_eq!(calls.take(ours, at(1_000), at(1_060)), Duration::ZERO, "it is told once");
        assert_eq!(millis(calls.take(other, at(1_000), at(1_060))), 40);
    }

    #[test]
    fn calls_at_the_same_time_count_once() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        calls.ended(ours, at(10), at(30));
        calls.ended(ours, at(12), at(40));
        calls.ended(ours, at(11), at(40));
        assert_eq!(millis(calls.take(ours, at(5), at(50))), 30);
    }

    #[test]
    fn what_ended_before_a_request_began_is_not_its() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        calls.ended(ours, at(10), at(30));
        assert_eq!(calls.take(ours, at(40), at(90)), Duration::ZERO);
    }

    #[test]
    fn it_never_waited_longer_than_the_request_lasted() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        calls.ended(ours, at(0), at(300_000));
        calls.ended(ours, at(300_000), at(300_010));
        assert_eq!(calls.take(ours, at(300_000), at(300_020)), Duration::from_millis(20));
    }

    /// Half a thousand requests at a time find room.
    #[test]
    fn the_oldest_makes_room() {
        let calls = AppCalls::default();
        let mut lost = 0;
        for n in 0..20_000_u64 {
            calls.ended(Family::of(n), at(n), at(n + 1));
            let Some(before) = n.checked_sub(500) else { continue };
            lost += u32::from(calls.take(Family::of(before), at(before), at(n + 1)).is_zero());
        }
        assert!(lost < 20, "of 20,000, half a thousand requests later: {lost}");
    }

    proptest! {
        /// One after the other is told exactly; at the same time is never told as more than the sum, nor as more than
        /// from the first one's start to the last one's end.
        #[test]
        fn the_time_is_that_of_the_calls(calls in prop::collection::vec((0u64..50, 1u64..50), 1..20), at_once: bool) {
            let table = AppCalls::default();
            let ours = Family::of("a");
            let (mut now, mut sum) = (1_000, 0);
            for (pause, took) in calls {
                now += if at_once { took.min(7) } else { pause + took };
                table.ended(ours, at(now - took), at(now));
                sum += took;
            }
            let found = millis(table.take(ours, at(0), at(now)));
            if at_once {
                prop_assert!(found <= sum && found <= now - 950, "{found} of {sum}");
            } else {
                prop_assert!(found.abs_diff(sum) <= 1, "{found} of {sum}");
            }
        }
    }
}
