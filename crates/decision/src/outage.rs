//! A service of which no endpoint can be reached for a moment.
//!
//! *Waiting is not repeating.* A request that no endpoint has seen is still on its way: it costs no endpoint anything, so
//! neither attempts nor budget of a retry policy count it. It waits, and looks for an endpoint again after pauses that
//! grow and spread, within its deadline and the service's limit of pending requests.
//!
//! *Not for ever.* Requests wait for [`PATIENCE`] from the moment at which the first one found nobody. After that they
//! fail at once, as they come, until one is answered: a service that is gone must not keep its callers waiting, and what
//! waits is memory. (Linkerd calls it fail-fast, with the same three seconds.)
//!
//! *Only what has been there comes back.* A service that never answered is not waited for: it is more likely
//! misconfigured than restarting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::{Rng, Tick};

use crate::invariants;

/// How long the requests of a service that has become unreachable wait, all together.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest first pause.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest of all: so late, at most, a request notices that somebody is there again.
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// Never answered.
const UNKNOWN: u64 = 0;
/// Answered last time.
const SERVING: u64 = u64::MAX;

/// Whether a service is out of reach, and since when. One word, shared by all workers.
#[derive(Debug)]
pub(crate) struct Outage(AtomicU64);

impl Default for Outage {
    fn default() -> Self {
        Self(AtomicU64::new(UNKNOWN))
    }
}

impl Outage {
    /// An endpoint has answered. Writes nothing as long as nothing has changed.
    pub(crate) fn served(&self) {
        if self.0.load(Ordering::Relaxed) != SERVING {
            self.0.store(SERVING, Ordering::Relaxed);
        }
    }

    /// Whether an endpoint has ever answered.
    pub(crate) fn has_served(&self) -> bool {
        self.0.load(Ordering::Relaxed) != UNKNOWN
    }

    /// A request has found nobody: whether it may wait.
    pub(crate) fn may_wait(&self, now: Tick) -> bool {
        let noticed = now.as_nanos().clamp(UNKNOWN + 1, SERVING - 1);
        match self.0.compare_exchange(SERVING, noticed, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(UNKNOWN) => false,
            Err(since) => now < Tick::from_nanos(since).after(PATIENCE),
        }
    }
}

/// The pause before a request that waits looks again, after so many pauses: between half and the whole of a time that
/// doubles.
pub(crate) fn pause(pauses: u32, rng: &mut impl Rng) -> Duration {
    spread(doubled(FIRST_PAUSE, pauses, LONGEST_PAUSE), rng)
}

/// A time that has doubled so often, up to a longest one.
pub(crate) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(longest)
}

/// Between half and the whole of a time, so that those who wait do not come back together.
pub(crate) fn spread(whole: Duration, rng: &mut impl Rng) -> Duration {
    let chosen = whole.div_f64(2.0) + whole.div_f64(2.0).mul_f64(rng.unit());
    debug_assert_eq!(invariants::spread(whole, chosen), Ok(()));
    chosen
}

#[cfg(test)]
mod tests {
    use meshwork_base::SeededRng;
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn requests_wait_for_a_while_from_the_first_that_found_nobody() {
        let outage = Outage::default();
        assert!(!outage.may_wait(at(1)) && !outage.has_served(), "it was never there");
        outage.served();
        assert!(outage.has_served());
        assert!(outage.may_wait(at(10)) && outage.may_wait(at(12)));
        assert!(!outage.may_wait(at(13)) && !outage.may_wait(at(1000)), "it stays away");
        assert!(outage.has_served(), "before that it was there");
        outage.served();
        assert!(outage.may_wait(at(1000)), "it was there again");
    }

    #[test]
    fn an_outage_may_begin_with_the_clock() {
        let outage = Outage::default();
        outage.served();
        assert!(outage.may_wait(at(0)) && outage.may_wait(at(1)) && !outage.may_wait(at(4)));
    }

    #[test]
    fn pauses_grow_to_their_bound_and_spread() {
        let mut rng = SeededRng::new(1);
        for pauses in 0..70 {
            let whole = FIRST_PAUSE.saturating_mul(1 << pauses.min(10)).min(LONGEST_PAUSE);
            let chosen = pause(pauses, &mut rng);
            assert!(chosen >= whole / 2 && chosen <= whole, "{pauses}: {chosen:?}");
        }
    }

    #[test]
    fn those_who_wait_do_not_come_back_together() {
        let mut rng = SeededRng::new(1);
        let pauses: Vec<_> = (0..100).map(|_| pause(9, &mut rng)).collect();
        let between = |from, to| pauses.iter().filter(|one| (from..to).contains(&one.as_millis())).count();
        assert!(between(80, 120) > 30 && between(120, 160) > 30, "{pauses:?}");
    }

    proptest! {
        /// Of whatever time up to a day, however often it has doubled.
        #[test]
        fn a_pause_is_between_half_of_a_time_and_the_whole(
            first in 0u64..1 << 46, times in 0u32..80, longest in 0u64..1 << 46, shift in 0u32..46, seed: u64,
        ) {
            let (first, longest) = (Duration::from_nanos(first >> shift), Duration::from_nanos(longest >> shift));
            let whole = doubled(first, times, longest);
            prop_assert!(whole <= longest && (whole >= first || whole == longest));
            let chosen = spread(whole, &mut SeededRng::new(seed));
            prop_assert_eq!(invariants::spread(whole, chosen), Ok(()));
        }
    }
}
