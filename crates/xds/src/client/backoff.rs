//! How long to wait before the next attempt to connect.

use std::time::Duration;

use meshwork_base::Rng;

/// Exponential backoff with jitter: half of the bound is certain, half is chance, so that a fleet which lost its control
/// plane at one moment does not return at one moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits that begin at `base` and grow to `max`.
    #[must_use]
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0 }
    }

    /// The wait before the next attempt.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let bound = self.base.saturating_mul(2_u32.saturating_pow(self.failures)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        bound.div_f64(2.0) + bound.div_f64(2.0).mul_f64(rng.unit())
    }

    /// An attempt was good.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_base::SeededRng;

    #[test]
    fn grows_to_its_bound_and_spreads() {
        let (base, max) = (Duration::from_millis(100), Duration::from_secs(10));
        let mut backoff = Backoff::new(base, max);
        let mut rng = SeededRng::new(1);
        for failures in 0..20 {
            let bound = base.saturating_mul(2_u32.saturating_pow(failures)).min(max);
            let wait = backoff.next(&mut rng);
            assert!(wait >= bound / 2 && wait <= bound, "{failures}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= base);
    }
}
