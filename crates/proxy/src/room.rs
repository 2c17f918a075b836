//! Makes room where memory is near its limit: by what callers have begun and not finished, which costs them little and us
//! much. Who has sent a request before is kept for longer than who never has. Where descriptors have run out, by what
//! only waits.
//!
//! ```text
//! tight: less time; when it still grows, as much as it has grown by is ended, the oldest first
//! full:  newcomers are closed at once but for a few, what is unfinished is ended, requests are sent away
//! ```
//!
//! Looking at a clock would be too late: a few thousand connections begin in a moment. So whoever makes a worker take
//! memory for something unfinished says so, and after a part of the limit it is looked again.

use meshwork_decision::Cause;
use meshwork_telemetry::inventory;

use crate::connections::{Entry, Phase};
use crate::error::Failure;
use crate::pressure::Pressure;
use crate::worker::Worker;

/// Bytes that a connection costs before it has sent anything: a task, a socket, in most cases a handshake.
const CONNECTION: usize = 16 * 1024;
/// Bytes that a head over HTTP/2 holds in the library, about, where nobody counts them: so many are free without one. It may hold
/// [`crate::http::convert::longest_list`], and that is looked out for.
pub(crate) const HTTP2_HEAD: usize = 32 * 1024;
/// So many newcomers a worker has at once when memory is full: they learn why they are sent away.
const NEWCOMERS: usize = 16;

impl Worker {
    /// Looks how near the limit is, and makes room where it must.
    pub(crate) fn look_at_memory(&self) {
        let grown = self.memory.take_growth();
        if self.memory.look(&self.shared.memory) {
            self.pressure_changed(self.memory.pressure());
        }
        match self.memory.pressure() {
            Pressure::Calm => {}
            // Memory that was free before, and is used again, is no reason.
            Pressure::Tight => self.make_room(grown.min(self.memory.rise())),
            Pressure::Full => self.make_room(u64::MAX),
        }
    }

    /// A caller has made this worker take so many bytes, beside those of buffers. Not for what each request does.
    pub(crate) fn grew(&self, bytes: usize) {
        if self.memory.has_grown(bytes as u64) {
            self.look_at_memory();
        }
    }

    /// Whether a new connection is taken.
    pub(crate) fn takes_newcomer(&self) -> bool {
        let newcomers = || self.all_connections().into_iter().map(|some| some.newcomers()).sum::<usize>();
        if self.memory.is_full() && newcomers() >= NEWCOMERS {
            self.closed_for_memory("new");
            return false;
        }
        self.grew(CONNECTION);
        true
    }

    /// Descriptors are scarce: whether something that only waits gives its own to a newcomer, who has asked for nothing
    /// yet: a caller soon, or a connection onwards at once.
    #[cold]
    pub(crate) fn has_descriptors_to_give(&self) -> bool {
        let now = self.now();
        let idle = self.all_connections().into_iter().filter_map(|some| some.first_idle(now));
        match idle.min_by_key(|entry| entry.turn()) {
            Some(entry) => {
                entry.give_up_place();
                true
            }
            None => self.pools.end_longest_idle(now),
        }
    }

    /// Counts a caller that is closed at once, by what there is not enough of.
    #[cold]
    pub(crate) fn no_place(&self, lacks: &'static str) {
        self.shared.metrics.counter(&inventory::DOWNSTREAM_OVERFLOW, &[lacks]).increment();
    }

    /// Ends what is unfinished until so many bytes are free.
    fn make_room(&self, bytes: u64) {
        let full = self.memory.is_full();
        if bytes == 0 {
            return;
        }
        let (now, mut found) = (self.now(), Vec::new());
        for connections in self.all_connections() {
            connections.in_the_way(now, full, &mut found);
        }
        found.sort_by_key(|entry| entry.turn());
        let mut left = bytes;
        for entry in found {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(entry.weight());
            entry.shed();
        }
    }

    /// Whether there is memory for a connection of layer 4, or a tunnel.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn check_memory(&self) -> Result<(), Failure> {
        if self.memory.is_full() { Err(self.refused_for_memory()) } else { Ok(()) }
    }

    /// Counts what is sent away, and says why.
    #[cold]
    pub(crate) fn refused_for_memory(&self) -> Failure {
        self.shared.metrics.counter(&inventory::OVERLOAD_MEMORY, &[]).increment();
        self.no_room()
    }

    /// Counts a connection that ends, where that is to make room. Whoever is told to may have begun to move meanwhile.
    #[cold]
    pub(crate) fn ends(&self, entry: &Entry) {
        if let Some(what) = entry.made_room() {
            self.closed_for_memory(what);
        }
    }

    /// Counts a connection that was closed to make room.
    #[cold]
    pub(crate) fn closed_for_memory(&self, what: &'static str) {
        self.shared.metrics.counter(&inventory::OVERLOAD_MEMORY_CLOSED, &[what]).increment();
    }

    /// Why there is no room.
    #[cold]
    pub(crate) fn no_room(&self) -> Failure {
        let limit = self.memory.limit().unwrap_or_default();
        Failure::local(Cause::Overload)
            .because(format!("memory (limit of {limit} bytes, setting --max-memory-bytes)"))
    }

    /// A caller has taken longer than it may, now.
    #[cold]
    pub(crate) fn late(&self, cause: Cause, phase: Phase) -> Failure {
        let usual = &self.shared.settings.timeouts;
        Failure::late(cause, phase, usual, &self.memory.timeouts(usual))
    }
}
