//! Who asks, and how many: a table of fixed size, shared by all workers without a lock. Callers whose names fall onto one
//! place share it; with many more callers than places shares become those of groups.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Bucket;

const PLACES: usize = 256;
/// Callers are counted anew this often in the limit's time.
pub(crate) const COUNTS: u32 = 8;

/// Bytes of an IPv6 address that say which network it is in (RFC 4291 section 2.5.1): a host chooses the others.
const NETWORK: usize = 8;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'c> {
    /// By its SPIFFE ID, or another name that it does not choose freely.
    Name(&'c str),
    /// By where it comes from; of IPv6 its network of 64 bits counts.
    Address(IpAddr),
}

impl<'c> From<&'c str> for Caller<'c> {
    fn from(name: &'c str) -> Self {
        Self::Name(name)
    }
}

impl From<IpAddr> for Caller<'_> {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

/// That of one caller.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) bucket: Bucket,
    /// When somebody last asked here, in nanoseconds; 0: never.
    asked: AtomicU64,
    /// When it was last refused for being beyond its share; 0: never.
    beyond: AtomicU64,
}

impl Place {
    /// It is refused for being beyond its share.
    pub(super) fn is_beyond(&self, now: u64) {
        self.beyond.store(now.max(1), Ordering::Relaxed);
    }

    /// Whether it was, within the limit's time.
    pub(super) fn was_beyond(&self, per: Duration, now: u64) -> bool {
        is_within(self.beyond.load(Ordering::Relaxed), nanos(per), now)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether something has happened, not longer ago than this.
fn is_within(happened: u64, time: u64, now: u64) -> bool {
    happened > 0 && now.saturating_sub(happened) <= time
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Callers {
    places: Box<[Place]>,
    asking: AtomicU32,
    counted: AtomicU64,
}

impl Default for Callers {
    fn default() -> Self {
        let place =
            || Place { bucket: Bucket::default(), asked: AtomicU64::new(0), beyond: AtomicU64::new(0) };
        let places = std::iter::repeat_with(place).take(PLACES).collect();
        Self { places, asking: AtomicU32::new(0), counted: AtomicU64::new(0) }
    }
}

impl Callers {
    /// The caller's own place, and among how many the limit is divided now, itself included.
    pub(super) fn of(&self, caller: Caller<'_>, per: Duration, now: u64) -> (&Place, u32) {
        let per = nanos(per);
        let place = &self.places[place(caller)];
        let before = place.asked.swap(now.max(1), Ordering::Relaxed);
        let is_new = !is_within(before, per, now);
        let counted = self.counted.load(Ordering::Relaxed);
        let due = is_new || now.saturating_sub(counted) >= per / u64::from(COUNTS);
        // One counts; what others see meanwhile is at most one count old.
        if due && self.counted.compare_exchange(counted, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let asks = |place: &&Place| is_within(place.asked.load(Ordering::Relaxed), per, now);
            let count = self.places.iter().filter(asks).count();
            self.asking.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        (place, self.asking.load(Ordering::Relaxed).max(1))
    }
}

/// FNV-1a without a secret. Who is told apart by its SPIFFE ID does not choose it freely. Who has many IPv4 addresses, or
/// many networks of IPv6, has many places, and chooses among them with whom it shares one.
fn place(caller: Caller<'_>) -> usize {
    const fn one(hash: u64, byte: u8) -> u64 {
        (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3)
    }
    let all = |bytes: &[u8]| bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| one(hash, byte));
    let hash = match caller {
        Caller::Name(name) => all(name.as_bytes()),
        Caller::Address(address) => match address.to_canonical() {
            IpAddr::V4(v4) => all(&v4.octets()),
            IpAddr::V6(v6) => all(&v6.octets()[..NETWORK]),
        },
    };
    usize::try_from((hash ^ hash >> 32) % PLACES as u64).expect("less than the places")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::invariants;

    fn at(address: &str) -> usize {
        place(address.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn who_has_not_asked_for_a_while_has_no_part() {
        let callers = Callers::default();
        let asking = |name: &str, nanos| callers.of(Caller::Name(name), Duration::from_secs(1), nanos).1;
        assert_eq!((asking("one", 1), asking("other", 2)), (1, 2));
        assert_eq!(asking("one", 2_000_000_000), 1, "the other has been away");
        assert_eq!(asking("other", 2_000_000_001), 2, "and is back, though all were counted a moment ago");
    }

    #[test]
    fn who_stays_away_has_no_part_though_nobody_new_comes() {
        let callers = Callers::default();
        let asking = |name: &str, millis: u64| {
            callers.of(Caller::Name(name), Duration::from_secs(1), millis * 1_000_000).1
        };
        asking("gone", 1);
        let here: Vec<_> = (0..15).map(|n| asking("here", 1 + 100 * n)).collect();
        assert_eq!((here[0], here[9], here[14]), (2, 2, 1), "{here:?}");
    }

    #[test]
    fn what_a_host_chooses_of_its_address_does_not_tell_it_apart() {
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:a:b:c:d"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"), "one caller, however its address is written");
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    proptest! {
        /// Whoever asks, and when: the limit is divided by those who asked of late.
        #[test]
        fn as_many_have_a_part_as_asked_of_late(steps in prop::collection::vec((0u64..400, 0u8..6), 1..200)) {
            let (callers, per) = (Callers::default(), Duration::from_secs(1));
            let (mut now, mut asked) = (Duration::ZERO, HashMap::new());
            for (pause, who) in steps {
                now += Duration::from_millis(pause);
                let name = who.to_string();
                let caller = Caller::Name(&name);
                let (_, told) = callers.of(caller, per, nanos(now));
                asked.insert(place(caller), now);
                let ages: Vec<_> = asked.values().map(|then| now - *then).collect();
                prop_assert_eq!(invariants::asking(&ages, per, told), Ok(()));
            }
        }
    }
}
