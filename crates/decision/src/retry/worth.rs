//! Whether retries help, learnt from how they end.
//!
//! *Why.* A budget bounds what one hop adds. Where applications pass on nothing by which hops know of each other, each of
//! three hops adds its own to what the hop before has added, and `minPerSecond` adds more than that where little comes. When
//! every endpoint fails, all of it is for nothing.
//!
//! *How.* Each retry that ends badly is owed for, and attempts that end well pay for it, retries or not: [`SUCCESSES`] for
//! one, since a service that answers may be worth asking again. When [`ROW`] of them are owed for, nothing speaks for the
//! next one. From then on each is paid for before it is made: so as before; or by [`REFUSALS`] retries that were refused,
//! so that now and then one is tried even where no attempt ends well. The first retry that helps brings the whole
//! budget back at once, and so do attempts that end well and have paid for a row.
//!
//! *Who is meant.* One that mostly fails. An address that always fails owes little in a service that mostly answers, and
//! is paid for by what goes on beside it: it takes no retries from a crowd whose instance dies. So where attempts have
//! ended well before, a row counts requests: of one that is repeated five times in vain, the first retry tells and the
//! others say the same again. Where none ever has, nothing speaks for the service, and each retry counts when it is made, not
//! when it has ended: a crowd that comes upon a service of which nobody has an answer gets no more than whoever comes one
//! by one. The first that ends well, a retry or not, ends this, as long as no more than a row was wanted; once one more was, they
//! are in vain, which the first retry that helps ends, or what pays for a row. A row holds all
//! retries where less than three attempts end well for each request that is repeated in vain: more than a quarter of what
//! there is, which is beyond the ordinary budget.
//!
//! *Counts, no times.* What holds at two thousand requests a second holds at one a minute. And once something has ended
//! well, only what has ended counts: a crowd that finds one of three endpoints dead has its whole budget.
//!
//! *Cost.* One word for all workers. As long as nothing is owed, an attempt that ends well reads it, and nobody writes to it
//! but retries, and the first attempt that ends well. After a retry in vain, the next [`SUCCESSES`] that do write, too.

use std::sync::atomic::{AtomicU32, Ordering};

use super::budget::Refused;
use crate::invariants;

/// So many that ended badly, and were not paid for, say that retries do not help.
pub(crate) const ROW: u32 = 5;
/// So many attempts that ended well pay for one.
pub(crate) const SUCCESSES: u32 = 3;
/// So do so many retries that were refused.
pub(crate) const REFUSALS: u32 = 50;
/// What one costs: an attempt that ended well pays one part of [`SUCCESSES`], a refusal one of [`REFUSALS`].
pub(crate) const PRICE: u32 = SUCCESSES * REFUSALS;
/// What a row of retries costs: whoever owes it is in vain, and whoever has saved it is not any more.
pub(crate) const ROW_PRICE: u32 = ROW * PRICE;

/// What is known of a service's retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing has ended well so far.
    Unknown {
        /// Retries that were made.
        made: u32,
    },
    /// They help, or nobody knows better.
    Helping {
        /// What is to be paid for those that have not.
        owed: u32,
    },
    /// They do not.
    InVain {
        /// What was paid for the next one.
        saved: u32,
    },
}

/// In the word: they do not help, and the other bits are what was paid.
const IN_VAIN: u32 = 1 << 31;
/// They help, and the other bits are what is owed. With neither they are how many were made.
const HELPING: u32 = 1 << 30;

impl Standing {
    const fn of(word: u32) -> Self {
        if word & IN_VAIN != 0 {
            Self::InVain { saved: word & !IN_VAIN }
        } else if word & HELPING != 0 {
            Self::Helping { owed: word & !HELPING }
        } else {
            Self::Unknown { made: word }
        }
    }

    const fn word(self) -> u32 {
        match self {
            Self::Unknown { made } => made,
            Self::Helping { owed } => HELPING | owed,
            Self::InVain { saved } => IN_VAIN | saved,
        }
    }

    /// Whether there may be a retry.
    const fn gives(self) -> bool {
        match self {
            Self::Unknown { made } => made < ROW,
            Self::Helping { .. } => true,
            Self::InVain { saved } => saved >= PRICE,
        }
    }

    /// One is wanted: it is taken, or its refusal pays for a later one.
    const fn asked(self) -> Self {
        match self {
            Self::Unknown { made } if made < ROW => Self::Unknown { made: made + 1 },
            Self::Unknown { .. } => Self::InVain { saved: PRICE / REFUSALS },
            Self::Helping { .. } => self,
            Self::InVain { saved } if saved >= PRICE => Self::InVain { saved: saved - PRICE },
            Self::InVain { saved } => Self::InVain { saved: saved + PRICE / REFUSALS },
        }
    }

    /// One that was taken, and counted or paid for, is not made after all.
    fn given_back(self) -> Self {
        match self {
            Self::Unknown { made } => Self::Unknown { made: made.saturating_sub(1) },
            Self::Helping { .. } => self,
            Self::InVain { saved } => Self::InVain { saved: (saved + PRICE).min(ROW_PRICE - 1) },
        }
    }

    /// One that was taken has ended.
    const fn ended(self, end: End) -> Self {
        match (self, end) {
            (_, End::Well) => Self::Helping { owed: 0 },
            (Self::Helping { owed }, End::Badly) if owed + PRICE < ROW_PRICE => {
                Self::Helping { owed: owed + PRICE }
            }
            (Self::Helping { .. }, End::Badly) => Self::InVain { saved: 0 },
            // It has been said; or it was counted when it was made, or paid for.
            (Self::Helping { .. }, End::BadlyAgain) | (Self::Unknown { .. } | Self::InVain { .. }, _) => self,
        }
    }

    /// An attempt has ended well, whatever it was.
    fn succeeded(self) -> Self {
        match self {
            Self::Unknown { .. } => Self::Helping { owed: 0 },
            Self::Helping { owed } => Self::Helping { owed: owed.saturating_sub(PRICE / SUCCESSES) },
            Self::InVain { saved } if saved + PRICE / SUCCESSES < ROW_PRICE => {
                Self::InVain { saved: saved + PRICE / SUCCESSES }
            }
            Self::InVain { .. } => Self::Helping { owed: 0 },
        }
    }
}

/// How a retry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It has helped.
    Well,
    /// It has not, the first one of its request to say so.
    Badly,
    /// Nor has it, and a retry of the same request has said so before.
    BadlyAgain,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Worth(AtomicU32);

impl Worth {
    #[cfg(test)]
    fn standing(&self) -> Standing {
        Standing::of(self.0.load(Ordering::Relaxed))
    }

    /// Whether there may be a retry, and whether it was counted, or paid for.
    ///
    /// # Errors
    /// Retries do not help, and this one is not paid for.
    pub(crate) fn ask(&self) -> Result<bool, Refused> {
        let before = self.step(Standing::asked);
        let counted = !matches!(before, Standing::Helping { .. });
        if before.gives() { Ok(counted) } else { Err(Refused::InVain) }
    }

    /// One that was counted, or paid for, is not made after all.
    pub(crate) fn give_back(&self) {
        self.step(Standing::given_back);
    }

    pub(crate) fn ended(&self, end: End) {
        self.step(|standing| standing.ended(end));
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
