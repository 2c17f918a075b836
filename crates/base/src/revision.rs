//! Revisions of stored documents and hashes of content.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a change in a store: it grows by one with each committed transaction and is never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A hash of a resource's content: equal content has an equal version on every replica, so a reconnect sends nothing.
/// 128 bits of FNV-1a; it tells versions apart and is no defence against a forger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(u128);

impl ContentHash {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;

    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(
            bytes
                .iter()
                .fold(Self::OFFSET, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(Self::PRIME)),
        )
    }

    /// A hash over several hashes that does not depend on their order.
    #[must_use]
    pub fn combine(hashes: impl IntoIterator<Item = Self>) -> Self {
        Self(hashes.into_iter().fold(0, |sum, hash| sum.wrapping_add(hash.0)))
    }

    /// This combined hash with one more hash in it.
    #[must_use]
    pub fn with(self, hash: Self) -> Self {
        Self(self.0.wrapping_add(hash.0))
    }

    /// This combined hash with one hash taken out again.
    #[must_use]
    pub fn without(self, hash: Self) -> Self {
        Self(self.0.wrapping_sub(hash.0))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_the_published_fnv1a_128() {
        assert_eq!(ContentHash::of(b"").to_string(), "6c62272e07bb014262b821756295c58d");
        assert_eq!(ContentHash::of(b"a").to_string(), "d228cb696f1a8caf78912b704e4a8964");
    }

    #[test]
    fn combined_hash_ignores_order() {
        let [a, b] = [ContentHash::of(b"a"), ContentHash::of(b"b")];
        assert_eq!(ContentHash::combine([a, b]), ContentHash::combine([b, a]));
        assert_ne!(ContentHash::combine([a]), ContentHash::combine([a, b]));
        assert_eq!(ContentHash::default().with(a).with(b), ContentHash::combine([a, b]));
        assert_eq!(ContentHash::combine([a, b]).without(b), ContentHash::combine([a]));
    }
}
