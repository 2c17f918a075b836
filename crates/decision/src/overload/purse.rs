//! What those who are sent away pay for: requests that find out whether endpoints which rest are well again, see
//! `load/probes.rs`.
//!
//! One purse for all of them: whoever rests, no more requests are risked than so many sent away are worth. What is not spent is not
//! saved up either, so that nobody is risked for what was long ago. Without anything in it a pick costs two loads, however many
//! endpoints there are.

use std::sync::atomic::{AtomicU64, Ordering};

use meshwork_base::Tick;

/// So many are sent away for one that finds out: it may fail like those that made an endpoint rest.
const PRICE: u64 = 20;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Purse {
    /// How many were sent away so far.
    sent_away: AtomicU64,
    /// How many had been, when something was paid last.
    spent: AtomicU64,
    /// Whoever rests is not to be asked before, in nanoseconds of the clock.
    not_before: AtomicU64,
}

/// What one request costs, while nobody else has taken it.
#[derive(Debug)]
pub(crate) struct Payment<'p> {
    purse: &'p Purse,
    spent: u64,
    sent_away: u64,
}

impl Purse {
    /// So many were sent away so far.
    pub(super) fn holds(&self, sent_away: u64) {
        self.sent_away.store(sent_away, Ordering::Relaxed);
    }

    /// What one request costs, where that is there, and is not waited with.
    pub(crate) fn opens(&self, now: Tick) -> Option<Payment<'_>> {
        let (sent_away, spent) = (self.sent_away.load(Ordering::Relaxed), self.spent.load(Ordering::Relaxed));
        let is_enough = sent_away >= spent.saturating_add(PRICE);
        (is_enough && self.not_before.load(Ordering::Relaxed) <= now.as_nanos()).then_some(Payment {
            purse: self,
            spent,
            sent_away,
        })
    }
}

impl Payment<'_> {
    /// It is spent, and whatever was there beside it is gone. False: somebody else was quicker.
    pub(crate) fn pays(self) -> bool {
        let Self { purse, spent, sent_away } = self;
        purse.spent.compare_exchange(spent, sent_away, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// It is kept for one that may be asked then. Who begins to rest meanwhile waits for as long.
    pub(crate) fn waits(self, until: Tick) {
        self.purse.not_before.store(until.as_nanos(), Ordering::Relaxed);
    }
}
