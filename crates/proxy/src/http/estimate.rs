//! How large the window of one stream has to be so that it never waits for its next update: as much as it gives on within one
//! round trip. Bytes and times go in, a window comes out.
//!
//! ```text
//! 2/3 of a window was given on, by one stream or all ──▶ PING ──▶ answer: as much again, and faster than when it grew last ──▶ twice the window
//! ```
//!
//! What counts is what was given on, not what came: whoever does not read makes no window grow. Where a larger window moved no
//! more, more DATA on the way would only stand in a queue and make each answer later, so there it is large enough.
//!
//! A window never becomes smaller again: what a peer was told of it may send. Of a stream whose reader is slow it is told of less
//! than that ([`super::flow`]).

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

/// What was given on in a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    /// By the stream that has given on most.
    pub(crate) one: u64,
    /// By all together.
    pub(crate) all: u64,
    /// What would be one stream's part of that, if the connection's window were its own: where many share that, none fills its window.
    pub(crate) shared: u64,
}

impl From<u64> for Given {
    /// By one alone.
    fn from(one: u64) -> Self {
        Self { one, all: one, shared: 0 }
    }
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
    /// The same of all streams together.
    rate_of_all: u64,
    /// The same at the last answer, of one and of all.
    seen: [u64; 2],
}

impl Estimate {
    pub(crate) const fn new() -> Self {
        Self {
            window: SMALLEST,
            asked: None,
            not_before: Tick::ZERO,
            pause: PAUSE,
            rate: 0,
            rate_of_all: 0,
            seen: [0; 2],
        }
    }

    pub(super) const fn window(&self) -> u32 {
        self.window
    }

    /// Whether one stream, or all together, have given on so much that the window may be too small for it.
    pub(crate) fn is_enough(&self, given: impl Into<Given>) -> bool {
        let given = given.into();
        self.asked.is_none() && self.window < LARGEST && given.one.max(given.shared) >= most_of(self.window)
    }

    /// Whether it is time for a PING.
    pub(crate) fn may_ask(&self, now: Tick) -> bool {
        now >= self.not_before
    }

    /// The PING is being sent; what is given on is counted anew.
    pub(crate) fn asks(&mut self, now: Tick) {
        self.asked = Some(now);
    }

    /// It has been answered. `given`: since then. Gives the window that would be right, where that is a larger one; the next PING has time,
    /// unless the window [grows](Self::grows).
    pub(crate) fn answered(&mut self, given: impl Into<Given>, now: Tick) -> Option<u32> {
        let (asked, given) = (self.asked.take()?, given.into());
        self.not_before = now.after(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let round_trip = now.since(asked).as_nanos().max(1);
        let per_second = |bytes: u64| {
            let rate = u128::from(bytes) * Duration::from_secs(1).as_nanos() / round_trip;
            u64::try_from(rate).unwrap_or(u64::MAX)
        };
        // What had come before and lay here is no more than a window either.
        self.seen = [per_second(given.one.min(self.window.into())), per_second(given.all)];
        let [of_one, of_all] = self.seen;
        let is_faster = if given.one >= most_of(self.window) {
            of_one >= self.rate.saturating_add(self.rate / 4) && of_one < FAST
        } else {
            // A step makes the connection's window larger by less than that of a stream.
            let before = self.rate_of_all;
            given.shared >= most_of(self.window)
                && of_all >= before.saturating_add(before / 8)
                && of_all < FAST
        };
        (is_faster && self.window < LARGEST).then(|| (self.window * 2).min(LARGEST))
    }

    /// The window is this one from now on.
    pub(crate) const fn grows(&mut self, window: u32) {
        self.window = window;
        [self.rate, self.rate_of_all] = self.seen;
        self.pause = PAUSE;
        self.not_before = Tick::ZERO;
    }
}

#[cfg(test)]
mod tests;
