//! Series that nobody counts under any more: where there is no room for others, they give it up. Names come and go as
//! services are renamed, and a process that has lived through enough of that would know none of those that it serves now.

use std::time::Duration;

use tokio::time::Instant;

use super::Families;

/// Nothing was counted for so long. A scraper takes a series for gone five minutes after it has last seen it.
pub(super) const LONG: Duration = Duration::from_secs(15 * 60);

/// When a number that only grows was last seen to grow.
#[derive(Debug)]
pub(super) struct LastCounted {
    sum: u64,
    /// Absent: it was not looked at yet.
    at: Option<Instant>,
}

impl LastCounted {
    pub(super) const fn new() -> Self {
        Self { sum: 0, at: None }
    }

    pub(super) fn look(&mut self, sum: u64, now: Instant) {
        if self.at.is_none() || self.sum != sum {
            *self = Self { sum, at: Some(now) };
        }
    }

    pub(super) fn is_long_ago(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| now.duration_since(at) >= LONG)
    }
}

impl Families {
    /// Looks at what was counted under since the last scrape, and lets go of what was not for long if others had no room.
    /// Whether it did: who counts has to ask for its cells anew then.
    pub(super) fn make_room(&mut self, now: Instant) -> bool {
        self.requests.look(now);
        self.streams.look(now);
        if !self.requests.is_short() {
            return false;
        }
        let of_streams = self.streams.let_go(now);
        self.requests.free(of_streams);
        let any = self.requests.let_go(now) || of_streams > 0;
        if any {
            self.requests.has_room();
        }
        any
    }
}
