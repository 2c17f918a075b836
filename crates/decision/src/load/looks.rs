//! Whether an endpoint that was far slower than another still is.
//!
//! *Few.* Whoever finds out that it is as slow as ever waits longest, and where few call each such request counts. So it is one
//! of [`LOSSES`] that would have gone by latency alone, and where many call one each [`PAUSE`]; or one when nothing was
//! heard of it for [`LONGEST_UNHEARD`].
//!
//! *Luck.* Also one that is ten times slower answers quickly now and then, and whoever believed it would send it a whole share
//! until that shows. So an answer that comes as soon as the other's would changes nothing by itself: the next looks come after
//! [`LOSSES_IN_LUCK`], and when [`BELIEVED`] in a row have found it so it is as quick as the other.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use super::ALIKE;

/// Of so many times that an endpoint loses by its latency, it is asked once. Of three endpoints of which one is slow, two thirds
/// of all picks compare it with another: one in 300 requests finds out.
pub(crate) const LOSSES: u32 = 200;
/// The same while it may have recovered.
const LOSSES_IN_LUCK: u32 = 10;
/// It is let alone so long after it was heard of.
const PAUSE: Duration = Duration::from_secs(3);
/// It is asked again after this time, however few call.
const LONGEST_UNHEARD: Duration = Duration::from_secs(300);
/// So many looks in a row that were answered quickly are no luck.
const BELIEVED: u32 = 3;

/// See the module's text. Workers share it; what two of them do at one moment may count once.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// How often it has lost since the last look.
    lost: AtomicU32,
    /// When the look began that has not been answered, in nanoseconds of the clock's [`Tick`]; 0: there is none.
    since: AtomicU64,
    /// The other's latency, when that look began: the bits of its logarithm.
    other: AtomicU32,
    /// How many looks in a row were answered as soon as the other would have.
    lucky: AtomicU32,
}

/// What the answer to a look says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Found {
    /// It counts like any other answer.
    AsSlow,
    /// It is as soon as another's would be, which may be luck.
    Luck,
    /// So have been others before: its latency is this logarithm.
    Recovered(f32),
}

impl Looks {
    /// It has lost once more, to an endpoint of this latency; the last answer is so old. Whether it is asked all the same.
    pub(super) fn begins(&self, other: f32, age: Duration, now: Tick) -> bool {
        let lost = self.lost.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let since = self.since.load(Ordering::Relaxed);
        let unheard = if since == 0 { age } else { age.min(now.since(Tick::from_nanos(since))) };
        let is_enough = match since == 0 && self.lucky.load(Ordering::Relaxed) > 0 {
            true => lost >= LOSSES_IN_LUCK,
            false => lost >= LOSSES && unheard >= PAUSE,
        };
        if !is_enough && unheard < LONGEST_UNHEARD {
            return false;
        }
        let begun = now.as_nanos().max(1);
        let is_first = self.since.compare_exchange(since, begun, Ordering::Relaxed, Ordering::Relaxed);
        if is_first.is_ok() {
            self.lost.store(0, Ordering::Relaxed);
            self.other.store(other.to_bits(), Ordering::Relaxed);
        }
        is_first.is_ok()
    }

    /// Whether an answer would be one to a look.
    pub(super) fn is_under_way(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    /// The look under way was answered within this time, as its logarithm.
    pub(super) fn answered(&self, took: f32) -> Found {
        let other = f32::from_bits(self.other.load(Ordering::Relaxed));
        if took - other >= ALIKE {
            self.failed();
            return Found::AsSlow;
        }
        self.since.store(0, Ordering::Relaxed);
        if self.lucky.fetch_add(1, Ordering::Relaxed) + 1 < BELIEVED {
            return Found::Luck;
        }
        self.lucky.store(0, Ordering::Relaxed);
        Found::Recovered(other)
    }

    /// An attempt was given up after this time, as its logarithm: if it was the look, it was not answered so soon.
    pub(super) fn outlasted(&self, waited: f32) {
        let other = f32::from_bits(self.other.load(Ordering::Relaxed));
        if self.is_under_way() && waited - other >= ALIKE {
            self.failed();
        }
    }

    /// The look under way, if there is one, was not answered well, or not soon.
    pub(super) fn failed(&self) {
        self.since.store(0, Ordering::Relaxed);
        self.lucky.store(0, Ordering::Relaxed);
    }

    /// Nothing is known of it.
    pub(super) fn forget(&self) {
        self.lost.store(0, Ordering::Relaxed);
        self.failed();
    }
}
