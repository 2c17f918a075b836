//! How large the window of one stream has to be so that it never waits for its next update: as much as it gives on within one
//! round trip. Bytes and times go in, a window comes out.
//!
//! ```text
//! a round:   first DATA ──▶ one stream has given on 2/3 of its window: PING ──▶ answer: that much in this time
//! ```
//!
//! What counts is what was given on, not what came: whoever does not read makes no window grow. Where an answer comes late because it
//! stands behind DATA, more DATA on the way would only make it later still, so what fits into the *shortest* round trip is taken.

use std::time::Duration;

use meshwork_base::Tick;

/// Bytes of one stream that may be on the way to us unread, as long as it needs no more.
pub(crate) const SMALLEST: u32 = 128 * 1024;
/// The same at most: 80 MB/s at 50 ms.
pub(crate) const LARGEST: u32 = 4 * 1024 * 1024;
/// So soon after the last PING of this kind another one is sent; where they have led to nothing, later and later.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(160);
/// A round that has not got so far by then begins anew.
const ROUND: Duration = Duration::from_secs(1);
/// A window that nothing has needed for so long is small again; and so long it stays so where it was taken back.
const KEPT: Duration = Duration::from_secs(5);

/// Two thirds of a window.
const fn most_of(window: u32) -> u64 {
    window as u64 * 2 / 3
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Estimate {
    window: u32,
    /// When the first bytes of the round came.
    began: Option<Tick>,
    /// A PING is on its way since then.
    asked: Option<Tick>,
    /// None is sent before.
    not_before: Tick,
    pause: Duration,
    shortest: Option<Duration>,
    /// When more than half of the window was last needed.
    needed: Tick,
}

/// What a look leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    /// What was given on is counted anew.
    Anew,
    /// Send a PING.
    Ask,
}

impl Estimate {
    pub(crate) const fn new() -> Self {
        Self {
            window: SMALLEST,
            began: None,
            asked: None,
            not_before: Tick::ZERO,
            pause: PAUSE,
            shortest: None,
            needed: Tick::ZERO,
        }
    }

    pub(crate) const fn window(&self) -> u32 {
        self.window
    }

    pub(crate) const fn is_grown(&self) -> bool {
        self.window > SMALLEST
    }

    /// Whether it is worth a look that one stream has given on so much in this round.
    pub(crate) const fn is_enough(&self, given: u64) -> bool {
        self.asked.is_none() && given >= most_of(self.window)
    }

    /// Looks. `given`: the most that one stream has given on in this round.
    pub(crate) fn look(&mut self, given: u64, now: Tick) -> Next {
        if self.asked.is_some() {
            return Next::Nothing;
        }
        let began = match self.began {
            Some(began) if given > 0 => began,
            _ => *self.began.insert(now),
        };
        if !self.is_enough(given) {
            if now.since(began) < ROUND || given == 0 {
                return Next::Nothing;
            }
            self.began = None;
            return Next::Anew;
        }
        if now < self.not_before { Next::Nothing } else { Next::Ask }
    }

    /// The PING is being sent.
    pub(crate) fn asks(&mut self, now: Tick) {
        self.asked = Some(now);
    }

    /// It has been answered: the round is over. Gives the window that would be right, where that is a larger one.
    pub(crate) fn answered(&mut self, given: u64, now: Tick) -> Option<u32> {
        let asked = self.asked.take()?;
        let began = self.began.take().unwrap_or(asked);
        let round_trip = now.since(asked);
        let shortest = self.shortest.map_or(round_trip, |shortest| shortest.min(round_trip));
        self.shortest = Some(shortest);
        let within = u128::from(given) * shortest.as_nanos() / now.since(began).as_nanos().max(1);
        if within >= u128::from(most_of(self.window / 2)) {
            self.needed = now;
        }
        let grows = within >= u128::from(most_of(self.window)) && self.window < LARGEST;
        self.pause = if grows { PAUSE } else { (self.pause * 2).min(LONGEST_PAUSE) };
        self.not_before = now.after(self.pause);
        grows.then(|| (self.window * 2).min(LARGEST))
    }

    /// The window is this one from now on.
    pub(crate) const fn grows(&mut self, window: u32) {
        self.window = window;
    }

    /// Whether something has needed it of late.
    pub(crate) fn is_needed(&self, now: Tick) -> bool {
        now.since(self.needed) < KEPT
    }

    /// It is this one from now on. `taken_back`: it does not grow for a while.
    pub(crate) fn shrinks(&mut self, window: u32, taken_back: bool, now: Tick) {
        self.window = window;
        // The way may have become another.
        self.shortest = None;
        self.pause = PAUSE;
        if taken_back {
            self.not_before = now.after(KEPT);
        }
    }
}

#[cfg(test)]
mod tests;
