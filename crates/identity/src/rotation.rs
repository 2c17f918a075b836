//! When to renew an SVID: a state machine over given times and chance.

use std::time::Duration;

use meshwork_base::Rng;

use crate::authority::BACKDATE;

/// First pause after a failed renewal.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause between renewals that fail.
const LONGEST_RETRY: Duration = Duration::from_mins(5);

/// The same while the SVID is not in force: nothing is carried until the next one is there.
const LONGEST_RETRY_OUT_OF_FORCE: Duration = Duration::from_secs(30);

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing before this time (since the Unix epoch).
    Wait {
        /// When to ask again.
        until: Duration,
    },
    /// Ask the authority for a new SVID; report with [`Rotation::renewed`] or [`Rotation::failed`].
    Renew,
}

/// Decides when an SVID is renewed.
///
/// The first attempt falls somewhere in the last fifth before a third of the lifetime is over, so that instances that
/// began together do not ask together, and two thirds of the lifetime (48 of 72 hours) remain for any outage. After a
/// failure it asks again with growing, jittered pauses and never gives up: an expired SVID may be renewed too, for
/// as long as the authority takes it for that, but [`Rotation::is_expired`] says that nothing is to be carried with it.
///
/// A clock that ran ahead and is corrected leaves an SVID whose time comes only later. It is renewed at once, since nobody whose
/// clock is right takes it until then.
#[derive(Clone, Debug)]
pub struct Rotation {
    not_before: Duration,
    not_after: Duration,
    next: Duration,
    failures: u32,
}

impl Rotation {
    /// Begins with an SVID valid between these times (since the Unix epoch).
    pub fn new(not_before: Duration, not_after: Duration, rng: &mut impl Rng) -> Self {
        let third = not_after.saturating_sub(not_before) / 3;
        let early = (third / 5).mul_f64(rng.unit());
        Self { not_before, not_after, next: not_before + third - early, failures: 0 }
    }

    /// What to do at this time.
    #[must_use]
    pub fn action(&self, now: Duration) -> Action {
        let is_due = now >= self.next
            || if self.failures == 0 {
                self.is_early(now)
            } else {
                // The clock was set back since the last failure: no pause is that long.
                self.next > now + LONGEST_RETRY
            };
        if is_due { Action::Renew } else { Action::Wait { until: self.next } }
    }

    /// Whether the SVID's time has not come, by more than certificates are dated back: no clock that is right says so.
    fn is_early(&self, now: Duration) -> bool {
        now + BACKDATE < self.not_before
    }

    /// Whether the SVID's time is over: fail closed.
    #[must_use]
    pub fn is_expired(&self, now: Duration) -> bool {
        now > self.not_after
    }

    /// How many renewals failed in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// The renewal failed: try again after a pause between half and the whole of 1 s, 2 s, 4 s, … 5 min, or 30 s while
    /// the SVID is not in force.
    pub fn failed(&mut self, now: Duration, rng: &mut impl Rng) {
        let longest = if self.is_expired(now) || self.is_early(now) {
            LONGEST_RETRY_OUT_OF_FORCE
        } else {
            LONGEST_RETRY
        };
        let pause = FIRST_RETRY.saturating_mul(2u32.saturating_pow(self.failures)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.next = now + pause.mul_f64(0.5 + rng.unit() / 2.0);
        debug_assert!(self.next > now && self.next <= now + LONGEST_RETRY, "a renewal is retried, and soon");
    }

    /// The renewal gave an SVID valid between these times.
    pub fn renewed(&mut self, not_before: Duration, not_after: Duration, rng: &mut impl Rng) {
        *self = Self::new(not_before, not_after, rng);
    }
}

#[cfg(test)]
mod tests {
    use meshwork_base::SeededRng;
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    proptest! {
        #[test]
        fn renewal_leaves_two_thirds_of_the_lifetime(seed: u64, start in 0u64..1 << 40, hours in 1u32..1000) {
            let (from, life) = (Duration::from_secs(start), HOUR * hours);
            let rotation = Rotation::new(from, from + life, &mut SeededRng::new(seed));
            let Action::Wait { until } = rotation.action(from) else { panic!("not at once") };
            prop_assert!(until <= from + life / 3 && until >= from + life * 4 / 15);
            prop_assert_eq!(rotation.action(until), Action::Renew);
        }

        #[test]
        fn pauses_grow_stay_bounded_and_never_end(seed: u64, failures in 1u32..200) {
            let mut rng = SeededRng::new(seed);
            let mut rotation = Rotation::new(Duration::ZERO, HOUR * 72, &mut rng);
            let mut now = HOUR * 24;
            for nth in 0..failures {
                prop_assert_eq!(rotation.action(now), Action::Renew);
                rotation.failed(now, &mut rng);
                let Action::Wait { until } = rotation.action(now) else { panic!("a pause follows a failure") };
                let whole = Duration::from_secs(1 << nth.min(30)).min(LONGEST_RETRY);
                prop_assert!(until - now >= whole / 2 && until - now <= whole, "{:?}", until - now);
                now = until;
            }
            prop_assert_eq!(rotation.failures(), failures);
        }
    }

    #[test]
    fn a_new_svid_ends_the_failures() {
        let mut rng = SeededRng::new(1);
        let mut rotation = Rotation::new(Duration::ZERO, HOUR * 72, &mut rng);
        rotation.failed(HOUR * 24, &mut rng);
        assert!(!rotation.is_expired(HOUR * 72));
        assert!(rotation.is_expired(HOUR * 73), "fail closed");
        assert_eq!(rotation.action(HOUR * 73), Action::Renew, "and go on trying");
        rotation.renewed(HOUR * 73, HOUR * 145, &mut rng);
        assert_eq!(rotation.failures(), 0);
        assert!(!rotation.is_expired(HOUR * 80));
        assert!(matches!(rotation.action(HOUR * 73), Action::Wait { until } if until > HOUR * 90));
    }

    #[test]
    fn an_expired_svid_is_asked_for_more_often() {
        let mut rng = SeededRng::new(1);
        let mut rotation = Rotation::new(Duration::ZERO, HOUR * 72, &mut rng);
        for _ in 0..20 {
            rotation.failed(HOUR * 71, &mut rng);
        }
        rotation.failed(HOUR * 73, &mut rng);
        let Action::Wait { until } = rotation.action(HOUR * 73) else { panic!("a pause follows a failure") };
        assert!(until <= HOUR * 73 + Duration::from_secs(30), "{until:?}");
    }

    #[test]
    fn one_whose_time_comes_only_later_is_renewed_at_once() {
        let mut rng = SeededRng::new(1);
        let (made, lived) = (HOUR * 100, HOUR * 72);
        let mut rotation = Rotation::new(made, made + lived, &mut rng);
        let back = made - HOUR * 25;
        assert_eq!(rotation.action(back), Action::Renew, "the clock ran ahead when it was made");
        assert!(matches!(rotation.action(made - BACKDATE), Action::Wait { .. }), "clocks differ by so much");
        rotation.failed(back, &mut rng);
        let Action::Wait { until } = rotation.action(back) else { panic!("a pause follows a failure") };
        assert!(until <= back + FIRST_RETRY);
        assert_eq!(rotation.action(until), Action::Renew);
        rotation.renewed(back, back + lived, &mut rng);
        assert!(matches!(rotation.action(back), Action::Wait { until } if until > back + HOUR * 19));
    }

    #[test]
    fn a_pause_does_not_outlast_a_clock_that_is_set_back() {
        let mut rng = SeededRng::new(1);
        let mut rotation = Rotation::new(Duration::ZERO, HOUR * 72, &mut rng);
        rotation.failed(HOUR * 40, &mut rng);
        assert_eq!(rotation.action(HOUR * 30), Action::Renew);
    }

    #[test]
    fn instances_that_began_together_do_not_renew_together() {
        let mut times: Vec<_> = (0..100)
            .map(|seed| Rotation::new(Duration::ZERO, HOUR * 72, &mut SeededRng::new(seed)).next)
            .collect();
        times.sort_unstable();
        times.dedup();
        assert_eq!(times.len(), 100);
        assert!(times[99] - times[0] > HOUR * 3, "spread over most of the 4.8 hours");
    }
}
