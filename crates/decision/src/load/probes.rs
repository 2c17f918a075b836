//! Who rests and is asked all the same, since the others have too much to do: it may be well again, and what is sent away
//! meanwhile is what it could do. That is paid by those who are sent away, see `overload/purse.rs`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

/// One that rests is asked no more often.
const SELDOM: Duration = Duration::from_secs(1);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// When it was asked last, in nanoseconds of the clock; 0: not in this rest.
    asked: AtomicU64,
}

impl Probes {
    /// When it may be asked.
    pub(super) fn due(&self) -> Tick {
        match self.asked.load(Ordering::Relaxed) {
            0 => Tick::ZERO,
            asked => Tick::from_nanos(asked).after(SELDOM),
        }
    }

    /// It is asked.
    pub(super) fn begins(&self, now: Tick) {
        self.asked.store(now.as_nanos().max(1), Ordering::Relaxed);
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
