//! Which calls of an application belong to which call to it, as far as retries and mirrors must know.
//!
//! *Why.* Between two services stands an application. It makes new requests, and drops the header that says that what it
//! does is a retry; and when a call of its own has failed in spite of retries, it answers with an error of its own, which
//! looks like any other. If every service of a chain repeated on its own, the last would get the product of all.
//!
//! *How.* An application that is traced passes on `traceparent` or `x-request-id`. By these a proxy knows that a call
//! out belongs to a call in. It remembers two things of a request's family, each for [`LIFE`] at most: that what
//! called the application is a retry (then calls out are not repeated), and that a call out has failed for good (then
//! the failure that the application answers with says that it is not to be repeated). And a third, for mirrors: that
//! what called the application is a copy (then calls out are copies too, of which no copies are made).
//!
//! *Bounds.* A table of fixed size, made when it is first needed, in which the newer takes the place of the older: what
//! is forgotten costs a retry within the budget, nothing else. Requests that go well never touch it.
//!
//! Beside that, how long the requests have that the application has in hand: see [`in_hand`].

mod in_hand;

use std::array;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::FixedState;
use meshwork_base::Tick;

pub use self::in_hand::Allotted;
use self::in_hand::InHand;

/// How long something is remembered.
pub(crate) const LIFE: Duration = Duration::from_secs(10);
/// A family has a place in one set, beside others.
const SETS: usize = 2048;
const WAYS: usize = 4;
const TAG: u64 = !((1 << 32) - 1);
/// The lower half of a word: milliseconds, which wrap after six days, and three bits of what is remembered.
const TIME_SHIFT: u32 = 3;
const TIME: u64 = (1 << 29) - 1;
const WHAT: u64 = (1 << TIME_SHIFT) - 1;

/// The family of a request: by the id that its application passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Family(u64);

impl Family {
    /// The family of those that carry this id.
    #[must_use]
    pub fn of(id: impl Hash) -> Self {
        Self(FixedState::default().hash_one(id))
    }

    /// A number that is most likely its alone.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// What is remembered of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kin {
    /// What called the application is a retry of the hop before.
    Retried = 1,
    /// A call of the application has failed, and was repeated as far as it may be.
    Failed = 2,
    /// What called the application is a copy of a request.
    Mirrored = 4,
}

type Set = [AtomicU64; WAYS];

/// See the module's text.
#[derive(Debug, Default)]
pub struct Kinship {
    table: OnceLock<Box<[Set; SETS]>>,
    /// When something was remembered last: after that nobody needs to look.
    last: AtomicU64,
    in_hand: InHand,
}

/// What was told of families, without bounds: by this the simulator and tests judge what a table knows.
#[derive(Debug, Default)]
pub(crate) struct Told(HashMap<Family, Vec<(Kin, Tick)>>);

impl Told {
    /// It is told of a family, which keeps what else is still remembered of it.
    pub(crate) fn remember(&mut self, family: Family, what: Kin, now: Tick) {
        let all = self.0.entry(family).or_default();
        all.retain(|(kin, last)| *kin != what && now.since(*last) < LIFE);
        all.push((what, now));
        all.iter_mut().for_each(|(_, last)| *last = now);
    }

    /// It is over.
    pub(crate) fn forget(&mut self, family: Family, what: Kin) {
        self.0.entry(family).or_default().retain(|(kin, _)| *kin != what);
    }

    /// How long ago that was kept for the last time.
    pub(crate) fn ago(&self, family: Family, what: Kin, now: Tick) -> Option<Duration> {
        self.0.get(&family)?.iter().find(|(kin, _)| *kin == what).map(|(_, last)| now.since(*last))
    }
}

impl Kinship {
    /// Remembers something of a family.
    pub fn remember(&self, family: Family, what: Kin, now: Tick) {
        let table = self.table.get_or_init(|| Box::new(array::from_fn(|_| Set::default())));
        let set = &table[Self::set(family)];
        let words = set.iter().map(|place| (place, place.load(Ordering::Relaxed)));
        // Its own place, else that of whoever was remembered longest ago.
        let age = |word: u64| if word == 0 { u64::MAX } else { Self::age(word, now) };
        let standing = |word: u64| if word & TAG == family.0 & TAG { (1, 0) } else { (0, age(word)) };
        let (place, old) = words.max_by_key(|(_, word)| standing(*word)).expect("a set has places");
        let kept = if Self::speaks_of(old, family, now) { old & WHAT } else { 0 };
        let word = family.0 & TAG | Self::millis(now) << TIME_SHIFT | kept | what as u64;
        place.store(word, Ordering::Relaxed);
        self.last.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    /// Whether anything is remembered.
    #[must_use]
    pub fn is_awake(&self, now: Tick) -> bool {
        self.table.get().is_some() && now < Tick::from_nanos(self.last.load(Ordering::Relaxed)).after(LIFE)
    }

    /// Whether that is remembered of a family.
    #[must_use]
    pub fn knows(&self, family: Family, what: Kin, now: Tick) -> bool {
        self.word(family)
            .is_some_and(|(_, word)| Self::speaks_of(word, family, now) && word & what as u64 != 0)
    }

    /// It is over.
    pub fn forget(&self, family: Family, what: Kin) {
        if let Some((place, word)) = self.word(family) {
            place.store(word & !(what as u64), Ordering::Relaxed);
        }
    }

    /// The application has a request of this family in hand that has so long.
    pub fn begin(&self, family: Family, allotted: Allotted) {
        self.in_hand.begin(family, allotted);
    }

    /// It has not any more.
    pub fn end(&self, family: Family, allotted: Allotted) {
        self.in_hand.end(family, allotted);
    }

    /// What is left for a call of this family of which the application says that it has so long; absent: it is for no request
    /// in hand that is known.
    #[must_use]
    pub fn left(&self, family: Family, said: Duration, now: Tick) -> Option<Duration> {
        self.in_hand.left(family, said, now)
    }

    fn word(&self, family: Family) -> Option<(&AtomicU64, u64)> {
        let set = &self.table.get()?[Self::set(family)];
        set.iter()
            .map(|place| (place, place.load(Ordering::Relaxed)))
            .find(|(_, word)| word & TAG == family.0 & TAG)
    }

    fn set(family: Family) -> usize {
        usize::try_from(family.0 & (SETS as u64 - 1)).expect("eleven bits")
    }

    fn millis(now: Tick) -> u64 {
        (now.as_nanos() / 1_000_000) & TIME
    }

    fn age(word: u64, now: Tick) -> u64 {
        Self::millis(now).wrapping_sub(word >> TIME_SHIFT) & TIME
    }

    fn speaks_of(word: u64, family: Family, now: Tick) -> bool {
        word & TAG == family.0 & TAG && Duration::from_millis(Self::age(word, now)) < LIFE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::invariants;

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn what_is_remembered_is_of_one_family_and_for_a_while() {
        let kinship = Kinship::default();
        let (ours, other) = (Family::of("a"), Family::of("b"));
        kinship.forget(ours, Kin::Failed);
        assert!(!kinship.knows(ours, Kin::Retried, at(0)), "nothing is known at first");
        kinship.remember(ours, Kin::Retried, at(1));
        assert!(kinship.knows(ours, Kin::Retried, at(1)) && !kinship.knows(ours, Kin::Failed, at(1)));
        assert!(!kinship.knows(other, Kin::Retried, at(1)));
        kinship.remember(ours, Kin::Failed, at(10));
        assert!(kinship.knows(ours, Kin::Retried, at(19)), "the one keeps the other");
        assert!(kinship.is_awake(at(19)) && !kinship.is_awake(at(20)));
        assert!(!kinship.knows(ours, Kin::Failed, at(20)), "ten seconds are over");
        kinship.remember(ours, Kin::Failed, at(60));
        assert!(!kinship.knows(ours, Kin::Retried, at(60)), "what had been forgotten does not come back");
        kinship.remember(ours, Kin::Retried, at(61));
        kinship.remember(ours, Kin::Mirrored, at(61));
        kinship.forget(ours, Kin::Retried);
        assert!(kinship.knows(ours, Kin::Failed, at(61)) && !kinship.knows(ours, Kin::Retried, at(61)));
        assert!(kinship.knows(ours, Kin::Mirrored, at(61)), "of three each is remembered by itself");
    }

    #[test]
    fn one_that_remembers_by_an_older_clock_sends_nobody_to_sleep() {
        let kinship = Kinship::default();
        kinship.remember(Family::of("a"), Kin::Failed, at(20));
        kinship.remember(Family::of("b"), Kin::Failed, at(15));
        assert!(kinship.is_awake(at(29)) && kinship.knows(Family::of("a"), Kin::Failed, at(29)));
    }

    /// So many families that share a set.
    fn alike(count: usize) -> Vec<Family> {
        let set = Kinship::set(Family::of(0));
        (0..).map(Family::of).filter(|family| Kinship::set(*family) == set).take(count).collect()
    }

    #[test]
    fn of_families_that_share_a_set_each_is_remembered_and_forgotten_by_itself() {
        let (kinship, families) = (Kinship::default(), alike(WAYS));
        families.iter().for_each(|&family| kinship.remember(family, Kin::Failed, at(1)));
        for &gone in &families {
            assert!(kinship.knows(gone, Kin::Failed, at(1)));
            kinship.forget(gone, Kin::Failed);
            assert!(!kinship.knows(gone, Kin::Failed, at(1)));
        }
    }

    #[test]
    fn who_takes_the_place_of_another_family_is_not_known_by_what_that_was() {
        let (kinship, families) = (Kinship::default(), alike(WAYS + 1));
        families[..WAYS].iter().for_each(|&family| kinship.remember(family, Kin::Failed, at(1)));
        kinship.remember(families[WAYS], Kin::Retried, at(2));
        assert!(kinship.knows(families[WAYS], Kin::Retried, at(2)));
        assert!(!kinship.knows(families[WAYS], Kin::Failed, at(2)));
    }

    #[test]
    fn a_place_that_nobody_has_is_taken_first_also_when_time_has_wrapped() {
        let (kinship, families) = (Kinship::default(), alike(2));
        let wrap = at(0).after(Duration::from_millis(TIME + 1));
        let before = Tick::from_nanos(wrap.as_nanos() - 1_000_000_000);
        kinship.remember(families[0], Kin::Failed, before);
        kinship.remember(families[1], Kin::Failed, wrap);
        assert!(families.iter().all(|&family| kinship.knows(family, Kin::Failed, wrap)));
    }

    /// A crowd of families that fail at the same time finds room: what is read soon after is still there.
    #[test]
    fn the_oldest_makes_room() {
        let kinship = Kinship::default();
        let later = |n: u64| Tick::from_nanos(n * 1_000_000);
        let mut lost = 0;
        for n in 0..20_000u64 {
            kinship.remember(Family::of(n), Kin::Failed, later(n));
            let before = n.saturating_sub(500);
            lost += u32::from(!kinship.knows(Family::of(before), Kin::Failed, later(n)));
        }
        assert!(lost < 20, "of 20,000, half a thousand requests later: {lost}");
    }

    proptest! {
        /// It may forget, but never says of a family what was not remembered of it within its life.
        #[test]
        fn nothing_is_invented(steps in prop::collection::vec((0u32..6, 0usize..3, 0u64..20, 0u8..4), 0..100)) {
            const ALL: [Kin; 3] = [Kin::Failed, Kin::Retried, Kin::Mirrored];
            let (kinship, mut told) = (Kinship::default(), Told::default());
            let mut now = 0;
            for (id, what, later, step) in steps {
                now += later;
                let (family, what) = (Family::of(id), ALL[what]);
                if step == 0 {
                    kinship.forget(family, what);
                    told.forget(family, what);
                } else {
                    kinship.remember(family, what, at(now));
                    told.remember(family, what, at(now));
                }
                prop_assert_eq!(kinship.knows(family, what, at(now)), step > 0);
                for (family, what) in (0..6).flat_map(|id| ALL.map(|what| (Family::of(id), what))) {
                    let (knows, ago) = (kinship.knows(family, what, at(now)), told.ago(family, what, at(now)));
                    prop_assert_eq!(invariants::kinship(knows, ago), Ok(()));
                    prop_assert_eq!(knows, ago.is_some_and(|ago| ago < LIFE), "so few find room");
                    prop_assert!(kinship.is_awake(at(now)) || !knows);
                }
            }
        }
    }
}
