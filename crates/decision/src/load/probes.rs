//! Who rests and is asked all the same, since the others have too much to do: it may be well again, and what is sent away
//! meanwhile is what it could do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

/// One that rests is asked no more often.
const SELDOM: Duration = Duration::from_secs(1);
/// So many are sent away for one that finds out: it may fail like those that made it rest.
const PRICE: u64 = 20;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// When it was asked last, in nanoseconds of the clock; 0: not in this rest.
    asked: AtomicU64,
    /// How many had been sent away by then.
    sent_away: AtomicU64,
}

impl Probes {
    /// Of so many that were sent away so far one more may find out; who is told so asks.
    pub(super) fn begins(&self, sent_away: u64, now: Tick) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        let is_paid = sent_away >= self.sent_away.load(Ordering::Relaxed).saturating_add(PRICE);
        let may = is_paid && (asked == 0 || now.since(Tick::from_nanos(asked)) >= SELDOM);
        let begins = may
            && self
                .asked
                .compare_exchange(asked, now.as_nanos().max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if begins {
            self.sent_away.store(sent_away, Ordering::Relaxed);
        }
        begins
    }

    /// Whether what was sent then was sent to find out, or after that.
    pub(super) fn covers(&self, sent: Tick) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        asked != 0 && asked <= sent.as_nanos()
    }

    /// Another rest begins, or nothing is known of it any more.
    pub(super) fn forget(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }
}
