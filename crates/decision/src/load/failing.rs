//! How many of an endpoint's last answers were failures: who rests after one may answer nearly everything well.
//!
//! A failure makes an endpoint rest, and no good answer ends that. So that all of a zone rest at one moment says little where each
//! fails now and then, and does so for long. That most of what they get fails says more.

use std::sync::atomic::{AtomicU32, Ordering};

/// All of them.
const WHOLE: u32 = 1_000;
/// Each answer changes so large a part of what is remembered.
const STEP: u32 = 8;
/// From here on it fails much: three failures of five, or every other answer for a while.
const MUCH: u32 = WHOLE / 4;

/// See the module's text. In thousandths; what two workers add at one moment counts for both.
#[derive(Debug, Default)]
pub(super) struct Failing(AtomicU32);

impl Failing {
    pub(super) fn failed(&self) {
        self.moves(|part| part + (WHOLE - part) / STEP);
    }

    /// Rounded up, so that what is long ago is forgotten.
    pub(super) fn answered(&self) {
        self.moves(|part| part - part.div_ceil(STEP));
    }

    /// Whether it has failed lately at all.
    pub(super) fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    pub(super) fn is_much(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= MUCH
    }

    /// Nothing is known of it.
    pub(super) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn moves(&self, step: impl Fn(u32) -> u32) {
        let moved = |part: u32| {
            let next = step(part);
            debug_assert!(next <= WHOLE, "a share of all");
            Some(next)
        };
        // The closure always gives a value, so the update cannot fail.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
    }
}
