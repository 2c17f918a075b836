//! Whether retries help, learnt from how they end.
//!
//! *Why.* A budget bounds what one hop adds. Where applications pass on nothing by which hops know of each other, each of
//! three hops adds its own to what the hop before has added, and `minPerSecond` adds more than that where little comes. When
//! every endpoint fails, all of it is for nothing.
//!
//! *How.* After [`ROW`] retries in a row that ended badly, nothing speaks for the next one. From then on each is paid for:
//! by [`SUCCESSES`] attempts that ended well, retries or not, since a service that answers may be worth asking again; or by
//! [`REFUSALS`] retries that were refused, so that now and then one is tried even where no first attempt ends well. The
//! first retry that helps brings the whole budget back at once. To be wrong is cheap, therefore: where a fair part of the
//! attempts ends well, a retry is soon made, and soon helps.
//!
//! *Counts, no times.* What holds at two thousand requests a second holds at one a minute. And only what has ended counts: a
//! crowd that comes at the start, and finds one of three endpoints dead, has its whole budget.
//!
//! *Cost.* One word for all workers. As long as retries help, or there are none, an attempt that ends well reads it, and
//! nobody writes to it but retries.

use std::sync::atomic::{AtomicU32, Ordering};

use super::budget::Refused;
use crate::invariants;

/// So many in a row that ended badly say that retries do not help.
pub(crate) const ROW: u32 = 5;
/// So many attempts that ended well pay for one.
pub(crate) const SUCCESSES: u32 = 3;
/// So do so many retries that were refused.
pub(crate) const REFUSALS: u32 = 50;
/// What one costs: an attempt that ended well pays one part of [`SUCCESSES`], a refusal one of [`REFUSALS`].
pub(crate) const PRICE: u32 = SUCCESSES * REFUSALS;
/// No more is saved up than what a row of retries costs.
pub(crate) const SAVINGS: u32 = ROW * PRICE;

/// What is known of a service's retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// They help, or nobody knows better.
    Helping {
        /// So many in a row have not.
        row: u32,
    },
    /// They do not.
    InVain {
        /// What was paid for the next one.
        saved: u32,
    },
}

/// In the word: they do not help, and the other bits are what was paid; without it they are the row.
const IN_VAIN: u32 = 1 << 31;

impl Standing {
    const fn of(word: u32) -> Self {
        if word & IN_VAIN == 0 {
            Self::Helping { row: word }
        } else {
            Self::InVain { saved: word & !IN_VAIN }
        }
    }

    const fn word(self) -> u32 {
        match self {
            Self::Helping { row } => row,
            Self::InVain { saved } => IN_VAIN | saved,
        }
    }

    /// Whether there may be a retry.
    const fn gives(self) -> bool {
        match self {
            Self::Helping { .. } => true,
            Self::InVain { saved } => saved >= PRICE,
        }
    }

    /// One is wanted: it is taken, or its refusal pays for a later one.
    const fn asked(self) -> Self {
        match self {
            Self::Helping { .. } => self,
            Self::InVain { saved } if saved >= PRICE => Self::InVain { saved: saved - PRICE },
            Self::InVain { saved } => Self::InVain { saved: saved + PRICE / REFUSALS },
        }
    }

    /// One that was taken has ended.
    const fn ended(self, well: bool) -> Self {
        match self {
            _ if well => Self::Helping { row: 0 },
            Self::Helping { row } if row + 1 < ROW => Self::Helping { row: row + 1 },
            Self::Helping { .. } => Self::InVain { saved: 0 },
            // It was paid for.
            Self::InVain { .. } => self,
        }
    }

    /// An attempt has ended well, whatever it was.
    fn succeeded(self) -> Self {
        match self {
            Self::Helping { .. } => self,
            Self::InVain { saved } => Self::InVain { saved: (saved + PRICE / SUCCESSES).min(SAVINGS) },
        }
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Worth(AtomicU32);

impl Worth {
    #[cfg(test)]
    fn standing(&self) -> Standing {
        Standing::of(self.0.load(Ordering::Relaxed))
    }

    /// # Errors
    /// Retries do not help, and this one is not paid for.
    pub(crate) fn ask(&self) -> Result<(), Refused> {
        if self.step(Standing::asked).gives() { Ok(()) } else { Err(Refused::InVain) }
    }

    pub(crate) fn ended(&self, well: bool) {
        self.step(|standing| standing.ended(well));
    }

    pub(crate) fn succeeded(&self) {
        self.step(Standing::succeeded);
    }

    /// What was before. Nothing is written where nothing changes.
    fn step(&self, next: impl Fn(Standing) -> Standing) -> Standing {
        let change = |word| {
            let (before, after) = (Standing::of(word), next(Standing::of(word)));
            debug_assert_eq!(invariants::worth_of_retries(after), Ok(()));
            (before != after).then(|| after.word())
        };
        let (Ok(before) | Err(before)) = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        Standing::of(before)
    }
}

#[cfg(test)]
mod tests;
