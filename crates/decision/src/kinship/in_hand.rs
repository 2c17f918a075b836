//! How long the requests have that an application has in hand, for what it calls for their sake.
//!
//! *Why.* An application passes on how long it was told that a request has, and takes its own time before it does: what it says
//! is more than what is left. The proxy that has told it knows when the request is over.
//!
//! *How.* By the families of both. Several requests in hand may be of one, as where a caller asks twice for one request of its own, and
//! nobody says for which of them a call is made. So it is for one that was told just what the call says, as an application does that
//! passes it on, and of those for the one that is over last: nobody's time is cut by what somebody else has. An application that
//! says anything else has a reason of its own, and is believed.
//!
//! *Bounds.* An entry for each family of each request with a deadline, as long as the application has it in hand. What is over has
//! none, nor have requests without a deadline: for those nothing is done here.

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::FixedState;
use meshwork_base::Tick;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Family;
use crate::invariants;

/// Few families meet at one lock, whose holders do next to nothing.
const SHARDS: usize = 64;
/// A shard that is empty keeps room for so many.
const KEPT: usize = 64;

/// The time of a request that an application has in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allotted {
    /// What the application was told.
    pub told: Duration,
    /// When it is over.
    pub end: Tick,
}

type Shard = Mutex<HashMap<Family, SmallVec<[Allotted; 1]>, FixedState>>;

/// See the module's text.
#[derive(Debug)]
pub(super) struct InHand([Shard; SHARDS]);

impl Default for InHand {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Shard::default()))
    }
}

impl InHand {
    fn shard(&self, family: Family) -> &Shard {
        // The map goes by the other end.
        &self.0[usize::try_from(family.number() >> 32).unwrap_or(0) % SHARDS]
    }

    pub(super) fn begin(&self, family: Family, allotted: Allotted) {
        self.shard(family).lock().entry(family).or_default().push(allotted);
    }

    pub(super) fn end(&self, family: Family, allotted: Allotted) {
        let mut shard = self.shard(family).lock();
        let Some(all) = shard.get_mut(&family) else { return };
        if let Some(at) = all.iter().position(|one| *one == allotted) {
            all.swap_remove(at);
        }
        if all.is_empty() {
            shard.remove(&family);
        }
        if shard.is_empty() && shard.capacity() > 2 * KEPT {
            shard.shrink_to(KEPT);
        }
    }

    pub(super) fn left(&self, family: Family, said: Duration, now: Tick) -> Option<Duration> {
        let shard = self.shard(family).lock();
        let all = shard.get(&family)?;
        let left = all.iter().filter(|one| one.told == said).map(|one| one.end.since(now)).max();
        debug_assert_eq!(invariants::in_hand(all, said, left, now), Ok(()));
        left
    }

    #[cfg(test)]
    fn families(&self) -> usize {
        self.0.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(ms(millis))
    }

    /// A request that came at this time and has so long.
    fn coming(millis: u64, has: u64) -> Allotted {
        Allotted { told: ms(has), end: at(millis + has) }
    }

    #[test]
    fn what_an_application_took_itself_is_not_left() {
        let (in_hand, ours) = (InHand::default(), Family::of("a"));
        let request = coming(0, 2_000);
        in_hand.begin(ours, request);
        assert_eq!(in_hand.left(ours, ms(2_000), at(300)), Some(ms(1_700)));
        assert_eq!(
            in_hand.left(ours, ms(500), at(300)),
            None,
            "it says less itself, for a request without a time perhaps"
        );
        assert_eq!(in_hand.left(ours, ms(2_000), at(3_000)), Some(Duration::ZERO));
        assert_eq!(
            in_hand.left(ours, ms(2_001), at(300)),
            None,
            "it was told less, and has a reason of its own"
        );
        assert_eq!(in_hand.left(Family::of("b"), ms(2_000), at(300)), None);
        in_hand.end(ours, request);
        assert_eq!(in_hand.left(ours, ms(2_000), at(300)), None, "what it calls now nobody waits for");
    }

    #[test]
    fn of_several_requests_of_one_family_none_takes_time_from_what_is_called_for_another() {
        let (in_hand, ours) = (InHand::default(), Family::of("a"));
        let (short, long, early) = (coming(0, 1_000), coming(0, 5_000), coming(300, 1_000));
        [short, long, early].into_iter().for_each(|one| in_hand.begin(ours, one));
        assert_eq!(
            in_hand.left(ours, ms(5_000), at(400)),
            Some(ms(4_600)),
            "the only one that was told so much"
        );
        assert_eq!(in_hand.left(ours, ms(1_000), at(400)), Some(ms(900)), "the one that is over last");
        in_hand.end(ours, long);
        assert_eq!(in_hand.left(ours, ms(1_000), at(400)), Some(ms(900)));
        in_hand.end(ours, early);
        assert_eq!(in_hand.left(ours, ms(1_000), at(400)), Some(ms(600)));
    }

    #[test]
    fn of_requests_that_are_alike_each_ends_alone_and_nothing_stays() {
        let (in_hand, request) = (InHand::default(), coming(0, 1_000));
        let many: Vec<Family> = (0..50_000).map(Family::of).collect();
        for family in many.iter().flat_map(|&family| [family, family]) {
            in_hand.begin(family, request);
        }
        many.iter().for_each(|&family| in_hand.end(family, request));
        assert!(many.iter().all(|&family| in_hand.left(family, ms(1_000), at(0)).is_some()), "one of each");
        many.iter().for_each(|&family| in_hand.end(family, request));
        assert_eq!(in_hand.families(), 0);
        let room: usize = in_hand.0.iter().map(|shard| shard.lock().capacity()).sum();
        assert!(room <= 4 * KEPT * SHARDS, "nor does the memory of a crowd: {room}");
    }

    proptest! {
        /// Whatever begins and ends: what is left is what somebody in hand has who was told so, and of those the most.
        #[test]
        fn nobody_s_time_is_another_one_s(
            steps in prop::collection::vec((0u64..400, 0u64..3, 1u64..4, any::<usize>(), 0u8..3), 1..60),
        ) {
            let in_hand = InHand::default();
            let mut now = 0;
            let mut begun: Vec<(u64, Allotted)> = Vec::new();
            for (later, family, has, which, step) in steps {
                now += later;
                if step > 0 {
                    begun.push((family, coming(now, has * 500)));
                    in_hand.begin(Family::of(family), coming(now, has * 500));
                } else if !begun.is_empty() {
                    let (family, gone) = begun.swap_remove(which % begun.len());
                    in_hand.end(Family::of(family), gone);
                }
                for (family, said) in (0..3).flat_map(|family| [500, 1_000, 1_500, 501].map(|said| (family, ms(said)))) {
                    let all: Vec<_> = begun.iter().filter(|(of, _)| *of == family).map(|(_, one)| *one).collect();
                    let left = in_hand.left(Family::of(family), said, at(now));
                    prop_assert_eq!(invariants::in_hand(&all, said, left, at(now)), Ok(()));
                }
                let families: HashSet<u64> = begun.iter().map(|(family, _)| *family).collect();
                prop_assert_eq!(in_hand.families(), families.len(), "who is done with has no entry");
            }
        }
    }
}
