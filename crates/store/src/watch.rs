//! Who waits for which prefix. A commit wakes the watchers of the prefixes it touched and no other: the work per
//! changed key is one look-up per distinct prefix *length*, however many watchers there are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A watcher's bell. Bounded by construction: it remembers only the first revision that concerns it.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// First revision not yet looked at; 0: none.
    first: AtomicU64,
    bell: Notify,
    rung: AtomicU64,
}

impl Slot {
    /// Takes the first revision that concerns the watcher, if one does.
    pub(crate) fn take(&self) -> Option<u64> {
        Some(self.first.swap(0, Ordering::AcqRel)).filter(|&first| first != 0)
    }

    /// Says that changes from this revision on are to be looked at.
    pub(crate) fn ring(&self, revision: u64) {
        // Revisions are announced in order, so what is already there is older.
        _ = self.first.compare_exchange(0, revision, Ordering::AcqRel, Ordering::Acquire);
        self.rung.fetch_add(1, Ordering::Relaxed);
        self.bell.notify_one();
    }

    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }
}

#[derive(Debug, Default)]
struct Waiters {
    by_prefix: HashMap<String, Vec<Arc<Slot>>>,
    /// How many prefixes of each length there are.
    lengths: BTreeMap<usize, usize>,
}

/// All watchers of a store.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    waiters: Mutex<Waiters>,
}

impl Hub {
    /// Enters a watcher; `first` is the first revision it wants to see.
    pub(crate) fn enter(self: &Arc<Self>, prefix: &str, first: u64) -> Seat {
        let slot = Arc::new(Slot::default());
        slot.ring(first);
        let mut waiters = self.waiters.lock();
        if !waiters.by_prefix.contains_key(prefix) {
            *waiters.lengths.entry(prefix.len()).or_default() += 1;
        }
        waiters.by_prefix.entry(prefix.to_owned()).or_default().push(Arc::clone(&slot));
        Seat { hub: Arc::clone(self), prefix: prefix.to_owned(), slot }
    }

    /// Wakes those whose prefix covers a changed key.
    pub(crate) fn announce<'a>(&self, changed: impl Iterator<Item = (&'a str, u64)>) {
        let waiters = self.waiters.lock();
        if waiters.by_prefix.is_empty() {
            return;
        }
        for (key, revision) in changed {
            for &length in waiters.lengths.range(..=key.len()).map(|(length, _)| length) {
                let slots = key.get(..length).and_then(|prefix| waiters.by_prefix.get(prefix));
                for slot in slots.into_iter().flatten() {
                    slot.ring(revision);
                }
            }
        }
    }

    /// Wakes everyone: the store was restored, reopened or closed.
    pub(crate) fn announce_all(&self, revision: u64) {
        for slot in self.waiters.lock().by_prefix.values().flatten() {
            slot.ring(revision);
        }
    }
}

/// A watcher's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    hub: Arc<Hub>,
    prefix: String,
    pub(crate) slot: Arc<Slot>,
}

impl Seat {
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut waiters = self.hub.waiters.lock();
        let Some(slots) = waiters.by_prefix.get_mut(&self.prefix) else { return };
        slots.retain(|slot| !Arc::ptr_eq(slot, &self.slot));
        if slots.is_empty() {
            waiters.by_prefix.remove(&self.prefix);
            if let Some(count) = waiters.lengths.get_mut(&self.prefix.len()) {
                *count -= 1;
                if *count == 0 {
                    waiters.lengths.remove(&self.prefix.len());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_watchers_of_the_prefix_are_woken() {
        let hub = Arc::new(Hub::default());
        let seats: Vec<Seat> = ["", "a/", "a/b", "ä", "b/"].iter().map(|p| hub.enter(p, 1)).collect();
        let before: Vec<u64> = seats.iter().map(|s| s.slot.rung.load(Ordering::Relaxed)).collect();
        for n in 0..10_000u64 {
            hub.announce([("a/c", n), ("é", n)].into_iter());
        }
        let woken: Vec<u64> =
            seats.iter().zip(before).map(|(s, b)| s.slot.rung.load(Ordering::Relaxed) - b).collect();
        assert_eq!(woken, [20_000, 10_000, 0, 0, 0]);
        drop(seats);
        let waiters = hub.waiters.lock();
        assert!(waiters.by_prefix.is_empty() && waiters.lengths.is_empty());
    }

    #[test]
    fn the_first_unseen_revision_is_kept_until_taken() {
        let slot = Slot::default();
        slot.ring(5);
        slot.ring(9);
        assert_eq!(slot.take(), Some(5));
        assert_eq!(slot.take(), None);
        slot.ring(10);
        assert_eq!(slot.take(), Some(10));
    }
}
