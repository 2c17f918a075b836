//! A state that an operator has put a breaker into, until a time.
//!
//! It stands above policy and rates, holds without a policy too, and ends by itself: whoever forced it may be away by
//! then. What the rates would have done stands still meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

use meshwork_base::Tick;

use super::{BreakerState, CircuitBreaker};
use crate::cluster::Cluster;

/// What an operator can force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForcedState {
    /// Everybody is refused.
    Open,
    /// Nobody is refused.
    Closed,
}

impl ForcedState {
    /// The state that calls meet.
    #[must_use]
    pub const fn state(self) -> BreakerState {
        match self {
            Self::Open => BreakerState::Open,
            Self::Closed => BreakerState::Closed,
        }
    }
}

/// Who keeps a breaker open, whatever its calls were like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForcedBy {
    /// Its policy, as long as that says so.
    Policy,
    /// An operator, until then.
    Operator(Tick),
}

impl ForcedBy {
    /// So a refusal's detail says it of a policy.
    pub const POLICY: &str = "forced open by its policy";
    /// And of an operator; its end follows.
    pub const OPERATOR: &str = "forced open by an operator";
}

impl Cluster {
    /// Who keeps its circuit breaker open now, or those of its endpoints, if it is not the rates that do.
    #[must_use]
    pub fn forced_open(&self, now: Tick) -> Option<ForcedBy> {
        let of_service = self.shared.breaker.forced_open(self.circuit_breaker.as_ref(), now);
        let of_endpoints = self.endpoint_breaker.as_ref().is_some_and(CircuitBreaker::is_forced_open);
        of_service.or(of_endpoints.then_some(ForcedBy::Policy))
    }
}

/// As many states as can be forced at once: of a service's port and of all its ports, each for a subset and for the whole; of
/// a rule and of its route.
const LAYERS: usize = 4;

/// What is forced: what goes before the rest first, so that what was said of more holds at once when what was said of less
/// ends. Each is one word: until when, in nanoseconds of the clock's [`Tick`], and 1 in the lowest bit for open; 0: nothing.
/// The end of time comes half as early for it.
#[derive(Debug, Default)]
pub(crate) struct Forced([AtomicU64; LAYERS]);

impl Forced {
    /// Forces states, each until its time, and nothing else; a time that is over forces nothing.
    pub(crate) fn set(&self, forced: impl IntoIterator<Item = (ForcedState, Tick)>) {
        let mut forced = forced.into_iter();
        for word in &self.0 {
            let forced = forced.next().map_or(0, |(state, until)| {
                until.as_nanos().min(u64::MAX >> 1) << 1 | u64::from(state == ForcedState::Open)
            });
            word.store(forced, Ordering::Relaxed);
        }
        debug_assert!(forced.next().is_none(), "more is forced than can be said of one breaker");
    }

    /// What is forced now, and until when.
    pub(crate) fn get(&self, now: Tick) -> Option<(ForcedState, Tick)> {
        let words = self.0.iter().map(|word| word.load(Ordering::Relaxed)).take_while(|word| *word != 0);
        words.map(of_word).find(|(_, until)| *until > now)
    }
}

fn of_word(word: u64) -> (ForcedState, Tick) {
    let state = if word & 1 == 1 { ForcedState::Open } else { ForcedState::Closed };
    (state, Tick::from_nanos(word >> 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        /// It holds up to its end and not a nanosecond longer, whatever was forced before.
        #[test]
        fn it_holds_until_its_end(until in 0u64..1 << 62, now in 0u64..1 << 62, open: bool) {
            let forced = Forced::default();
            forced.set(Some((ForcedState::Open, Tick::from_nanos(u64::MAX))));
            let state = if open { ForcedState::Open } else { ForcedState::Closed };
            forced.set(Some((state, Tick::from_nanos(until))));
            let held = forced.get(Tick::from_nanos(now));
            prop_assert_eq!(held, (now < until).then_some((state, Tick::from_nanos(until))));
        }
    }

    #[test]
    fn nothing_is_forced_at_first_and_after_it_was_taken_back() {
        let forced = Forced::default();
        assert_eq!(forced.get(Tick::ZERO), None);
        forced.set(Some((ForcedState::Closed, Tick::ZERO.after(Duration::from_secs(1)))));
        assert!(forced.get(Tick::ZERO).is_some());
        forced.set(None);
        assert_eq!(forced.get(Tick::ZERO), None);
    }

    #[test]
    fn what_was_forced_of_more_holds_when_what_was_forced_of_less_has_ended() {
        let forced = Forced::default();
        let at = |secs| Tick::ZERO.after(Duration::from_secs(secs));
        forced.set([(ForcedState::Closed, at(2)), (ForcedState::Open, at(1)), (ForcedState::Open, at(5))]);
        let held =
            |secs| forced.get(at(secs)).map(|(state, until)| (state, until.as_nanos() / 1_000_000_000));
        assert_eq!(held(1), Some((ForcedState::Closed, 2)));
        assert_eq!(held(2), Some((ForcedState::Open, 5)));
        assert_eq!(held(5), None);
        forced.set([(ForcedState::Open, at(9))]);
        assert_eq!((held(8), held(9)), (Some((ForcedState::Open, 9)), None), "nothing is left of before");
    }
}
