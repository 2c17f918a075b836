//! A state that an operator has put a breaker into, until a time.
//!
//! It stands above policy and rates, holds without a policy too, and ends by itself: whoever forced it may be away by
//! then. What the rates would have done stands still meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

use meshwork_base::Tick;

use super::BreakerState;

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

/// What is forced, in one word: until when, in nanoseconds of the clock's [`Tick`], and 1 in the lowest bit for open; 0:
/// nothing. The end of time comes half as early for it.
#[derive(Debug, Default)]
pub(crate) struct Forced(AtomicU64);

impl Forced {
    /// Forces a state until a time; a time that is over forces nothing.
    pub(crate) fn set(&self, state: ForcedState, until: Tick) {
        let open = u64::from(state == ForcedState::Open);
        self.0.store(until.as_nanos().min(u64::MAX >> 1) << 1 | open, Ordering::Relaxed);
    }

    /// What is forced now, and until when.
    pub(crate) fn get(&self, now: Tick) -> Option<(ForcedState, Tick)> {
        let word = self.0.load(Ordering::Relaxed);
        let until = Tick::from_nanos(word >> 1);
        let state = if word & 1 == 1 { ForcedState::Open } else { ForcedState::Closed };
        (until > now).then_some((state, until))
    }

    /// Nothing is forced any more.
    pub(crate) fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
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
            forced.set(ForcedState::Open, Tick::from_nanos(u64::MAX));
            let state = if open { ForcedState::Open } else { ForcedState::Closed };
            forced.set(state, Tick::from_nanos(until));
            let held = forced.get(Tick::from_nanos(now));
            prop_assert_eq!(held, (now < until).then_some((state, Tick::from_nanos(until))));
        }
    }

    #[test]
    fn nothing_is_forced_at_first_and_after_it_was_taken_back() {
        let forced = Forced::default();
        assert_eq!(forced.get(Tick::ZERO), None);
        forced.set(ForcedState::Closed, Tick::ZERO.after(Duration::from_secs(1)));
        assert!(forced.get(Tick::ZERO).is_some());
        forced.clear();
        assert_eq!(forced.get(Tick::ZERO), None);
    }
}
