//! How far a breaker is from opening.

use super::{BreakerMode, BreakerState, CircuitBreaker, Tally};
use crate::invariants;

impl CircuitBreaker {
    /// How many percent more of the calls may fail, or be slow, until it opens: of its two signals the nearer one, rounded up.
    /// All that may be, where fewer calls have come than it decides by. Absent: the rates decide nothing.
    #[must_use]
    pub(crate) fn headroom(&self, state: BreakerState, tally: Tally) -> Option<u32> {
        if matches!(self.mode, BreakerMode::ForcedOpen | BreakerMode::ForcedClosed) {
            return None;
        }
        if state != BreakerState::Closed {
            return Some(0);
        }
        let counted = if tally.calls < self.minimum_calls.max(1) { Tally::default() } else { tally };
        let left = |count: u32, percent: u32| {
            let is = u64::from(count) * 100 / u64::from(counted.calls.max(1));
            percent.max(1).saturating_sub(u32::try_from(is).unwrap_or(u32::MAX))
        };
        let failing = self.failure_percent.map(|percent| left(counted.failed, percent));
        let slow = self.slow_calls.map(|(_, percent)| left(counted.slow, percent));
        let headroom = failing.into_iter().chain(slow).min();
        debug_assert_eq!(invariants::headroom(self, tally, headroom), Ok(()));
        headroom
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::breaker::WindowSize;

    const POLICY: CircuitBreaker = CircuitBreaker {
        mode: BreakerMode::Enforce,
        window: WindowSize::Calls(1_000),
        minimum_calls: 10,
        failure_percent: Some(50),
        slow_calls: Some((Duration::from_millis(100), 80)),
        open_time: Duration::from_secs(1),
        max_open_time: Duration::from_secs(8),
        trials: 3,
    };

    fn of(policy: &CircuitBreaker, calls: u32, failed: u32, slow: u32) -> Option<u32> {
        policy.headroom(BreakerState::Closed, Tally { calls, failed, slow })
    }

    #[test]
    fn the_nearer_signal_says_how_far_it_is() {
        assert_eq!(of(&POLICY, 0, 0, 0), Some(50));
        assert_eq!(of(&POLICY, 9, 9, 9), Some(50), "so few decide nothing");
        assert_eq!(of(&POLICY, 10, 4, 0), Some(10));
        assert_eq!(of(&POLICY, 10, 0, 7), Some(10));
        assert_eq!(of(&POLICY, 1_000, 499, 0), Some(1), "what is left is rounded up");
        assert_eq!(of(&POLICY, 10, 6, 0), Some(0), "calls that went well may have left a window of time");
    }

    #[test]
    fn one_that_is_not_closed_has_none_and_one_that_no_rate_moves_says_nothing() {
        let tally = Tally { calls: 10, failed: 1, slow: 0 };
        assert_eq!(POLICY.headroom(BreakerState::Open, tally), Some(0));
        assert_eq!(POLICY.headroom(BreakerState::HalfOpen, tally), Some(0));
        for (mode, headroom) in [
            (BreakerMode::Observe, Some(40)),
            (BreakerMode::ForcedOpen, None),
            (BreakerMode::ForcedClosed, None),
        ] {
            assert_eq!(of(&CircuitBreaker { mode, ..POLICY }, 10, 1, 0), headroom, "{mode:?}");
        }
        let nothing = CircuitBreaker { failure_percent: None, slow_calls: None, ..POLICY };
        assert_eq!(of(&nothing, 10, 1, 0), None);
    }

    proptest! {
        /// None is left exactly where the next look opens it.
        #[test]
        fn none_is_left_where_it_would_open(
            calls in 0_u32..2_000,
            failed in 0_u32..2_000,
            slow in 0_u32..2_000,
            percents in (0_u32..=100, 0_u32..=100),
            minimum_calls in 0_u32..30,
        ) {
            let some = |percent: u32| (percent > 0).then_some(percent);
            let slow_calls = some(percents.1).map(|percent| (Duration::from_millis(100), percent));
            let policy = CircuitBreaker { failure_percent: some(percents.0), slow_calls, minimum_calls, ..POLICY };
            let tally = Tally { calls, failed: failed.min(calls), slow: slow.min(calls) };
            let headroom = policy.headroom(BreakerState::Closed, tally);
            prop_assert_eq!(invariants::headroom(&policy, tally, headroom), Ok(()));
        }
    }
}
