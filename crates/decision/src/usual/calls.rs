//! How long an application has waited for calls of its own while it worked on a request.
//!
//! Its sidecar sees both: the request that comes in, and the calls that go out with the same trace or request id, if the
//! application passes that on. Calls at the same time count once, as far as each ends after the one before has begun;
//! of one that lasts longer than several others one after the other only what came after them counts. While two requests
//! of one trace or id are under way, nobody knows for which of them a call is: of both nothing is said.
//!
//! *Bounds.* A table of fixed size, made when the application first calls somebody, in which the newer takes the place of the
//! older: of a request whose place is taken nothing is said. A time is known to 33 microseconds and up to four minutes.

use std::array;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use crate::invariants;
use crate::kinship::Family;

const SETS: usize = 2048;
const WAYS: usize = 4;
/// Times are told in 2^15 nanoseconds.
const UNIT_SHIFT: u32 = 15;
/// A word is `tag:14 mixed:1 open:3 waited:23 end:23`: whether several requests were under way at a time, how many are, how
/// long calls have taken, and when the last one ended.
const TIME_BITS: u32 = 23;
const TIME: u64 = (1 << TIME_BITS) - 1;
const OPEN_ONE: u64 = 1 << (2 * TIME_BITS);
const OPEN: u64 = 7 * OPEN_ONE;
const MIXED: u64 = 8 * OPEN_ONE;
const TAG: u64 = !(MIXED | (MIXED - 1));
/// Two workers seldom meet at one word, and then one call more or less is not told.
const TRIES: usize = 3;

type Set = [AtomicU64; WAYS];

/// See the module's text.
#[derive(Debug, Default)]
pub struct AppCalls(OnceLock<Box<[Set; SETS]>>);

impl AppCalls {
    /// Whether the application has called anybody so far.
    #[must_use]
    pub fn are_made(&self) -> bool {
        self.0.get().is_some()
    }

    /// A request of this family is let in. Gives whether that is noted: not before the application has called anybody.
    pub fn begun(&self, family: Family, now: Tick) -> bool {
        let Some(table) = self.0.get() else { return false };
        Self::change(table, family, now, |old| match old {
            Some(word) if word & OPEN == OPEN => word | MIXED,
            Some(word) if word & OPEN != 0 => (word | MIXED) + OPEN_ONE,
            // What was heard before is of another one.
            _ => tag(family) | OPEN_ONE | moment(now),
        })
    }

    /// A call that the application has made for this family is over.
    pub fn ended(&self, family: Family, started: Tick, now: Tick) {
        let table = self.0.get_or_init(|| Box::new(array::from_fn(|_| Set::default())));
        let took = units(now.since(started));
        Self::change(table, family, now, |old| {
            let (kept, before, passed) = match old {
                Some(word) => (word & !(OPEN_ONE - 1), word >> TIME_BITS & TIME, age(word, now)),
                None => (tag(family), 0, took),
            };
            let waited = (before + took.min(passed)).min(TIME);
            debug_assert_eq!(invariants::waited(before, passed, waited), Ok(()));
            kept | waited << TIME_BITS | moment(now)
        });
    }

    /// How long the application has waited since then; whoever asks is done with it. Absent: that is not known.
    pub fn take(&self, family: Family, since: Tick, now: Tick, is_noted: bool) -> Option<Duration> {
        let unheard = (!is_noted).then_some(Duration::ZERO);
        let Some(table) = self.0.get() else { return unheard };
        let is_its = |place: &&AtomicU64| is_of(place.load(Ordering::Relaxed), family);
        let Some(place) = table[index(family)].iter().find(is_its) else { return unheard };
        let lasted = now.since(since);
        // What ended before the request began was for another one.
        let is_older = |word: u64| word & OPEN == 0 && age(word, now) > units(lasted);
        let left = |word: u64| match word & OPEN {
            _ if !is_of(word, family) || !is_noted && is_older(word) => None,
            0 => Some(0),
            _ if !is_noted => Some(word | MIXED),
            OPEN_ONE => Some(0),
            _ => Some(word - OPEN_ONE),
        };
        let Ok(word) = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left) else {
            return unheard;
        };
        let is_alone = word & (MIXED | OPEN) == if is_noted { OPEN_ONE } else { 0 };
        is_alone.then(|| Duration::from_nanos((word >> TIME_BITS & TIME) << UNIT_SHIFT).min(lasted))
    }

    /// Changes a family's word, if need be in the place of another one; whether it came to that.
    fn change(table: &[Set; SETS], family: Family, now: Tick, new: impl Fn(Option<u64>) -> u64) -> bool {
        let set = &table[index(family)];
        (0..TRIES).any(|_| {
            let words = set.iter().map(|place| (place, place.load(Ordering::Relaxed)));
            // Its own place, else that of whoever was heard of longest ago: of calls that nobody may ask for, if there are.
            let standing = |word: u64| match word {
                0 => (2, 0),
                word if is_of(word, family) => (3, 0),
                word => (u8::from(word & OPEN == 0), age(word, now)),
            };
            let (place, old) = words.max_by_key(|(_, word)| standing(*word)).expect("a set has places");
            let new = new(is_of(old, family).then_some(old));
            place.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }
}

fn is_of(word: u64, family: Family) -> bool {
    word != 0 && word & TAG == tag(family)
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

    /// What is known of a request that was not noted.
    fn taken(calls: &AppCalls, family: Family, since: Tick, now: Tick) -> Duration {
        calls.take(family, since, now, false).unwrap()
    }

    fn millis(time: Duration) -> u64 {
        (time + Duration::from_micros(500)).as_millis().try_into().unwrap()
    }

    #[test]
    fn calls_of_one_request_add_up_and_are_taken_once() {
        let calls = AppCalls::default();
        let (ours, other) = (Family::of("a"), Family::of("b"));
        assert_eq!(taken(&calls, ours, at(0), at(9)), Duration::ZERO, "nobody has called anybody");
        calls.ended(ours, at(1_010), at(1_030));
        calls.ended(other, at(1_000), at(1_040));
        calls.ended(ours, at(1_050), at(1_055));
        assert_eq!(millis(taken(&calls, ours, at(1_000), at(1_060))), 25);
        assert_eq!(taken(&calls, ours, at(1_000), at(1_060)), Duration::ZERO, "it is told once");
        assert_eq!(millis(taken(&calls, other, at(1_000), at(1_060))), 40);
    }

    #[test]
    fn calls_at_the_same_time_count_once() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        calls.ended(ours, at(10), at(30));
        calls.ended(ours, at(12), at(40));
        calls.ended(ours, at(11), at(40));
        assert_eq!(millis(taken(&calls, ours, at(5), at(50))), 30);
    }

    #[test]
    fn what_ended_before_a_request_began_is_not_its() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        calls.ended(ours, at(10), at(30));
        assert_eq!(taken(&calls, ours, at(40), at(90)), Duration::ZERO);
    }

    #[test]
    fn it_never_waited_longer_than_the_request_lasted() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        calls.ended(ours, at(0), at(300_000));
        calls.ended(ours, at(300_000), at(300_010));
        assert_eq!(taken(&calls, ours, at(300_000), at(300_020)), Duration::from_millis(20));
    }

    /// Half a thousand requests at a time find room.
    #[test]
    fn the_oldest_makes_room() {
        let calls = AppCalls::default();
        let mut lost = 0;
        for n in 0..20_000_u64 {
            calls.ended(Family::of(n), at(n), at(n + 1));
            let Some(before) = n.checked_sub(500) else { continue };
            lost += u32::from(taken(&calls, Family::of(before), at(before), at(n + 1)).is_zero());
        }
        assert!(lost < 20, "of 20,000, half a thousand requests later: {lost}");
    }

    #[test]
    fn of_two_requests_at_a_time_nothing_is_said() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        assert!(!calls.begun(ours, at(0)), "the application has called nobody");
        calls.ended(Family::of("b"), at(0), at(1));
        assert!(calls.begun(ours, at(1_000)) && calls.begun(ours, at(1_001)));
        calls.ended(ours, at(1_002), at(1_182));
        calls.ended(ours, at(1_003), at(1_183));
        assert_eq!(calls.take(ours, at(1_001), at(1_184), true), None, "the first to end");
        assert_eq!(calls.take(ours, at(1_000), at(1_185), true), None, "and the other one");
        assert!(calls.begun(ours, at(1_200)));
        calls.ended(ours, at(1_210), at(1_220));
        assert_eq!(calls.take(ours, at(1_200), at(1_230), true).map(millis), Some(10), "alone again");
    }

    #[test]
    fn while_another_request_is_under_way_nothing_is_said_of_one_that_comes_then() {
        for is_noted in [true, false] {
            let calls = AppCalls::default();
            let ours = Family::of("a");
            calls.ended(Family::of("b"), at(0), at(1));
            assert!(calls.begun(ours, at(10)));
            if is_noted {
                assert!(calls.begun(ours, at(11)));
            }
            assert_eq!(calls.take(ours, at(5), at(12), is_noted), None, "one of two has ended");
            assert!(calls.begun(ours, at(13)));
            calls.ended(ours, at(14), at(20));
            assert_eq!(calls.take(ours, at(13), at(30), true), None, "whose call was it? {is_noted}");
        }
    }

    #[test]
    fn what_was_under_way_when_a_request_came_counts_from_then_on() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        calls.ended(Family::of("b"), at(0), at(1));
        assert!(calls.begun(ours, at(100)));
        calls.ended(ours, at(50), at(120));
        assert_eq!(calls.take(ours, at(100), at(300), true).map(millis), Some(20));
    }

    #[test]
    fn a_family_whose_tag_looks_like_an_empty_place_has_its_own() {
        let calls = AppCalls::default();
        let ours = (0..).map(Family::of).find(|family| tag(*family) == 0).unwrap();
        calls.ended(ours, at(10), at(30));
        assert_eq!(millis(taken(&calls, ours, at(5), at(40))), 20);
    }

    /// The application calls somebody who calls it again.
    #[test]
    fn the_inner_one_does_not_take_what_the_outer_one_has_waited() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        calls.ended(ours, at(0), at(10));
        assert_eq!(taken(&calls, ours, at(20), at(25)), Duration::ZERO);
        assert_eq!(millis(taken(&calls, ours, at(0), at(30))), 10);
    }

    #[test]
    fn whoever_was_not_noted_meets_one_that_was() {
        let calls = AppCalls::default();
        let ours = Family::of("a");
        calls.ended(Family::of("b"), at(0), at(1));
        assert!(calls.begun(ours, at(10)));
        calls.ended(ours, at(20), at(30));
        assert_eq!(calls.take(ours, at(5), at(40), false), None);
        assert_eq!(calls.take(ours, at(10), at(50), true), None);
        assert_eq!(calls.take(ours, at(10), at(50), true), None, "its place is gone");
    }

    #[test]
    fn what_was_heard_before_a_request_came_is_of_another_one() {
        let calls = AppCalls::default();
        let ours = Family::of("ours");
        calls.ended(ours, at(0), at(5));
        assert!(calls.begun(ours, at(10)));
        calls.ended(ours, at(20), at(30));
        assert_eq!(calls.take(ours, at(10), at(40), true).map(millis), Some(10));
        assert_eq!(
            calls.take(ours, at(0), at(50), false).map(millis),
            Some(0),
            "and the last takes all with it"
        );
    }

    #[test]
    fn of_more_than_can_be_counted_nothing_is_said() {
        let calls = AppCalls::default();
        let ours = Family::of("ours");
        calls.ended(Family::of("b"), at(0), at(1));
        (0..9).for_each(|n| assert!(calls.begun(ours, at(10 + n))));
        calls.ended(ours, at(40), at(50));
        (0..7).for_each(|_| assert_eq!(calls.take(ours, at(10), at(60), true), None));
    }

    /// A crowd of families finds room: what is asked for soon after is still there.
    #[test]
    fn of_a_crowd_of_families_the_oldest_makes_room() {
        let calls = AppCalls::default();
        (0..20_000u64).for_each(|n| calls.ended(Family::of(n), at(n), at(n + 1)));
        let told = |n: &u64| taken(&calls, Family::of(*n), at(*n), at(20_001));
        let lost = (19_500..20_000).filter(|n| told(n).is_zero()).count();
        assert!(lost < 20, "of the last five hundred of 20,000: {lost}");
    }

    /// Words of calls that nobody will ask for make room for those of requests under way.
    #[test]
    fn calls_of_nobody_do_not_push_out_a_request() {
        let calls = AppCalls::default();
        let ours = Family::of("ours");
        calls.ended(Family::of("b"), at(0), at(1));
        assert!(calls.begun(ours, at(10)));
        calls.ended(ours, at(20), at(30));
        (0..50_000_u64).for_each(|n| calls.ended(Family::of(n), at(30), at(31 + n / 1_000)));
        assert_eq!(calls.take(ours, at(10), at(100), true).map(millis), Some(10));
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
            let found = millis(taken(&table, ours, at(0), at(now)));
            if at_once {
                prop_assert!(found <= sum && found <= now - 950, "{found} of {sum}");
            } else {
                prop_assert!(found.abs_diff(sum) <= 1, "{found} of {sum}");
            }
        }

        /// Whatever is under way beside whatever: no more is told than there was a call, and all of it where each has begun after
        /// those that ended before it.
        #[test]
        fn the_time_is_that_in_which_there_was_a_call(calls in prop::collection::vec((1u64..200, 1u64..50), 1..20)) {
            let table = AppCalls::default();
            let ours = Family::of("a");
            let mut calls: Vec<_> = calls.into_iter().map(|(start, took)| (start, start + took)).collect();
            calls.sort_unstable_by_key(|(_, end)| *end);
            calls.iter().for_each(|(start, end)| table.ended(ours, at(*start), at(*end)));
            let found = millis(taken(&table, ours, at(0), at(300)));
            let busy = (0..300).filter(|now| calls.iter().any(|(start, end)| (start..end).contains(&now))).count() as u64;
            // Times are told in steps, of which each call has lost two at most.
            prop_assert!(found <= busy + 2, "{found} of {busy}");
            if calls.is_sorted_by_key(|(start, _)| *start) {
                prop_assert!(found + 2 >= busy, "{found} of {busy}");
            }
        }
    }
}
