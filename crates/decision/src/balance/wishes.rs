//! Who asks to be left alone for a while (`Retry-After`, push-back), and how far that is heeded.
//!
//! *A bound.* What one is spared others carry, and they have not been asked. So those who ask are passed by as long as at least half of
//! what may be called is left, by weight. Where more ask, all are called, and who asks for half of its weight only, while somebody has
//! not asked. Either way nobody has more than twice its share since others ask: neither the last of ten, nor all that is left when one
//! caller's limit is met everywhere.
//!
//! *Who asks for itself.* 503 is said of the endpoint. 429 is said of a limit, which may be that of one caller: once the endpoint has
//! answered anybody well it is heeded as a wish for less. See [`Load::is_unwell`](crate::load::Load::is_unwell).
//!
//! *Repeats* heed everybody who asks: they are few by their budget, and better not made where nobody wants them.
//!
//! *Of this moment.* How many ask is found out by looking at all, and holds for [`FRESH`]: else most picks among a thousand endpoints of
//! which some ask would look at the thousand.
//!
//! Within a tier. To another one first attempts go by what fails, and not by what is asked for: the next tier may be a small one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use crate::invariants;

/// How long what was found out is taken for true.
const FRESH: Duration = Duration::from_millis(10);

/// Whose wishes a request heeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Heeds {
    /// Nobody's.
    Nobody,
    /// As many as others can do the work of.
    #[default]
    Bounded,
    /// Everybody's, as long as somebody is left.
    Everybody,
}

/// What becomes of those who ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// Who asks for itself is passed by.
    pub(crate) heeded: bool,
    /// Who asks, and is not passed by, has half of its weight.
    pub(crate) halved: bool,
}

impl Wishes {
    /// Given what all have that may be called, and of these whoever asks for itself, and whoever asks at all.
    pub(crate) fn of(all: u64, unwell: u64, asking: u64) -> Self {
        let heeded = unwell <= all - unwell;
        let left = all - if heeded { unwell } else { 0 };
        let less = asking - if heeded { unwell } else { 0 };
        // Where all that are left ask they are alike.
        let halved = (1..left).contains(&less) && 2 * left - less >= all;
        let wishes = Self { heeded, halved };
        debug_assert_eq!(invariants::wishes(all, (unwell, asking), wishes), Ok(()));
        wishes
    }
}

/// What was found out about the endpoints of a set, and until when that holds: in one word, so that both change together. Workers that
/// find it out at the same time come to the same.
#[derive(Debug, Default)]
pub(crate) struct Kept(AtomicU64);

impl Kept {
    /// What was found out, as long as it holds; else it is found out anew.
    pub(crate) fn at(&self, now: Tick, finds_out: impl FnOnce() -> Wishes) -> Wishes {
        let kept = self.0.load(Ordering::Relaxed);
        if kept >> 2 > now.as_nanos() {
            return Wishes { heeded: kept & 2 != 0, halved: kept & 1 != 0 };
        }
        let found = finds_out();
        let until = now.after(FRESH).as_nanos();
        let word = until << 2 | u64::from(found.heeded) << 1 | u64::from(found.halved);
        self.0.store(word, Ordering::Relaxed);
        found
    }
}

#[cfg(test)]
mod tests;
