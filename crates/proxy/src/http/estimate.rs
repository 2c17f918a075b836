//! How large the window of one stream has to be so that it never waits for its next update: as much as it gives on within one
//! round trip. Bytes and times go in, a window comes out.
//!
//! ```text
//! one stream has given on 2/3 of its window ──▶ PING ──▶ answer: it has given on as much again, and faster than ever ──▶ twice the window
//! ```
//!
//! What counts is what was given on, not what came: whoever does not read makes no window grow. Where a larger window moved no
//! more, more DATA on the way would only stand in a queue and make each answer later, so there it is large enough.
//!
//! A window never becomes smaller again: what a peer was told of it may send. That of a stream whose reader is slow is not told of again
//! ([`super::flow`]).

use std::time::Duration;

use meshwork_base::Tick;

/// Bytes of one stream that may be on the way to us unread, as long as it needs no more.
pub(crate) const SMALLEST: u32 = 128 * 1024;
/// The same at most: 80 MB/s at 50 ms.
pub(crate) const LARGEST: u32 = 4 * 1024 * 1024;
/// Bytes per second of one stream for which a window is large enough, however near its peer is.
const FAST: u64 = 250_000_000;
/// So soon after an answer that has led to nothing the next PING is sent, and later and later.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(640);

/// Two thirds of a window.
const fn most_of(window: u32) -> u64 {
    window as u64 * 2 / 3
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Estimate {
    window: u32,
    /// A PING is on its way since then.
    asked: Option<Tick>,
    /// None is sent before.
    not_before: Tick,
    pause: Duration,
    /// Bytes per second of the fastest stream when the window grew last.
    rate: u64,
    /// The same at the last answer.
    seen: u64,
}

impl Estimate {
    pub(crate) const fn new() -> Self {
        Self { window: SMALLEST, asked: None, not_before: Tick::ZERO, pause: PAUSE, rate: 0, seen: 0 }
    }

    pub(super) const fn window(&self) -> u32 {
        self.window
    }

    /// Whether one stream has given on so much that the window may be too small for it.
    pub(crate) const fn is_enough(&self, given: u64) -> bool {
        self.asked.is_none() && self.window < LARGEST && given >= most_of(self.window)
    }

    /// Whether it is time for a PING.
    pub(crate) fn may_ask(&self, now: Tick) -> bool {
        now >= self.not_before
    }

    /// The PING is being sent; what is given on is counted anew.
    pub(crate) fn asks(&mut self, now: Tick) {
        self.asked = Some(now);
    }

    /// It has been answered. `given`: the most that one stream has given on since. Gives the window that would be right, where that is a
    /// larger one; the next PING has time, unless the window [grows](Self::grows).
    pub(crate) fn answered(&mut self, given: u64, now: Tick) -> Option<u32> {
        let asked = self.asked.take()?;
        self.not_before = now.after(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if given < most_of(self.window) {
            return None;
        }
        let round_trip = now.since(asked).as_nanos().max(1);
        // What had come before and lay here is no more than a window either.
        let bytes = given.min(self.window.into());
        let rate = u128::from(bytes) * Duration::from_secs(1).as_nanos() / round_trip;
        self.seen = u64::try_from(rate).unwrap_or(u64::MAX);
        let is_faster = self.seen >= self.rate.saturating_add(self.rate / 4);
        (is_faster && self.seen < FAST && self.window < LARGEST).then(|| (self.window * 2).min(LARGEST))
    }

    /// The window is this one from now on.
    pub(crate) const fn grows(&mut self, window: u32) {
        self.window = window;
        self.rate = self.seen;
        self.pause = PAUSE;
        self.not_before = Tick::ZERO;
    }
}

#[cfg(test)]
mod tests;
