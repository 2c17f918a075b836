//! Chance, given rather than taken.

/// A source of random numbers. Not for secrets: keys come from `aws-lc-rs`.
pub trait Rng {
    /// The next 64 uniformly distributed bits.
    fn next_u64(&mut self) -> u64;

    /// A number in `0..bound`, without modulo bias (Lemire's multiply-shift); 0 when `bound` is 0.
    fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(bound);
            #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
            let low = wide as u64;
            if low >= bound.wrapping_neg() % bound {
                return u64::try_from(wide >> 64).expect("the high half of 128 bits fits 64");
            }
        }
    }

    /// A number in `0.0..1.0`.
    fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
        let mantissa = (self.next_u64() >> 11) as f64;
        mantissa / (1u64 << 53) as f64
    }
}

impl<R: Rng + ?Sized> Rng for &mut R {
    fn next_u64(&mut self) -> u64 {
        (**self).next_u64()
    }
}

/// A reproducible source (`splitmix64`): the same seed gives the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct SeededRng {
    state: u64,
}

impl SeededRng {
    /// A source for this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }
}

impl Rng for SeededRng {
    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// A source seeded by the operating system, one per worker.
#[derive(Clone, Debug)]
pub struct ThreadRng(SeededRng);

impl ThreadRng {
    /// A source with a seed of its own: the standard library draws hash keys from the system.
    #[must_use]
    pub fn new() -> Self {
        use std::hash::{BuildHasher, Hasher};
        Self(SeededRng::new(std::collections::hash_map::RandomState::new().build_hasher().finish()))
    }
}

impl Default for ThreadRng {
    fn default() -> Self {
        Self::new()
    }
}

impl Rng for ThreadRng {
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prop_assert, proptest};

    proptest! {
        #[test]
        fn below_stays_below(seed: u64, bound in 1u64..) {
            prop_assert!(SeededRng::new(seed).below(bound) < bound);
        }

        #[test]
        fn unit_stays_in_the_unit_interval(seed: u64) {
            let x = SeededRng::new(seed).unit();
            prop_assert!((0.0..1.0).contains(&x));
        }
    }

    #[test]
    fn same_seed_same_numbers() {
        let take = |seed| {
            let mut r = SeededRng::new(seed);
            [r.next_u64(), r.next_u64()]
        };
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
    }
}
