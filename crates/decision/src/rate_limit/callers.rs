//! Who asks, and how many: a table of fixed size, shared by all workers without a lock. Callers whose names fall onto one
//! place share it; with many more callers than places shares become those of groups.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Bucket;

const PLACES: usize = 256;
/// Callers are counted anew this often in the limit's time.
const COUNTS: u32 = 8;

#[derive(Debug)]
struct Place {
    bucket: Bucket,
    /// When somebody last asked here, in nanoseconds; 0: never.
    asked: AtomicU64,
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
        let place = || Place { bucket: Bucket::default(), asked: AtomicU64::new(0) };
        let places = std::iter::repeat_with(place).take(PLACES).collect();
        Self { places, asking: AtomicU32::new(0), counted: AtomicU64::new(0) }
    }
}

impl Callers {
    /// The caller's own bucket, and among how many the limit is divided now, itself included.
    pub(super) fn of(&self, caller: &str, per: Duration, now: u64) -> (&Bucket, u32) {
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let place = &self.places[place(caller)];
        let before = place.asked.swap(now.max(1), Ordering::Relaxed);
        let is_new = before == 0 || now.saturating_sub(before) > per;
        let counted = self.counted.load(Ordering::Relaxed);
        let due = is_new || now.saturating_sub(counted) >= per / u64::from(COUNTS);
        // One counts; what others see meanwhile is at most one count old.
        if due && self.counted.compare_exchange(counted, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let asks = |place: &&Place| {
                let asked = place.asked.load(Ordering::Relaxed);
                asked > 0 && now.saturating_sub(asked) <= per
            };
            let count = self.places.iter().filter(asks).count();
            self.asking.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        (&place.bucket, self.asking.load(Ordering::Relaxed).max(1))
    }
}

/// FNV-1a; nobody outside sees it, and who chooses its SPIFFE ID does not choose it freely.
fn place(caller: &str) -> usize {
    let hash = caller.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from((hash ^ hash >> 32) % PLACES as u64).expect("less than the places")
}
