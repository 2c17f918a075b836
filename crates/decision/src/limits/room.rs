//! Those who wait for a connection that a limit does not allow yet.
//!
//! Connections are a worker's, limits are the process's: what ends at one worker makes room for whoever waits at another,
//! and, where it is the service that is full, at another endpoint. So each connection that ends calls one who waits, first of
//! those who wait for its endpoint's limit, then of those who wait for its service's. Nobody else pays for it: where nobody
//! waits, one word is read.
//!
//! Whoever joins the line looks for room once more after that: a connection that ended before has called nobody.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::ConnectionLimit;
use crate::cluster::{Cluster, ClusterShared};
use crate::endpoint::{Endpoint, EndpointStats};

/// Called once, on whatever thread that turns out.
type Call = Box<dyn FnOnce() + Send>;

/// The line before one limit.
#[derive(Default)]
pub(crate) struct Room {
    /// How many wait: whoever counts a connection down with [`Ordering::AcqRel`] sees everybody who was refused before that.
    waiting: AtomicUsize,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    /// Of the last who came.
    number: u64,
    waiting: BTreeMap<u64, Call>,
}

impl Room {
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    fn join(&self, call: Call) -> u64 {
        let mut line = self.line.lock();
        line.number += 1;
        let number = line.number;
        line.waiting.insert(number, call);
        self.waiting.store(line.waiting.len(), Ordering::Release);
        number
    }

    /// Whoever waits no longer; false: it was called.
    fn leave(&self, number: u64) -> bool {
        let mut line = self.line.lock();
        let call = line.waiting.remove(&number);
        self.waiting.store(line.waiting.len(), Ordering::Release);
        drop(line);
        // What it carries is dropped here, and not under the lock.
        call.is_some()
    }

    /// Calls the one who has waited longest; false: nobody waits.
    pub(super) fn call_one(&self) -> bool {
        if !self.is_awaited() {
            return false;
        }
        let mut line = self.line.lock();
        let called = line.waiting.pop_first();
        self.waiting.store(line.waiting.len(), Ordering::Release);
        drop(line);
        called.map(|(_, call)| call()).is_some()
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Room").field(&self.waiting).finish()
    }
}

/// A connection has ended: one who waits is called.
pub(super) fn is_free(service: &ClusterShared, endpoint: &EndpointStats) {
    if !endpoint.room.call_one() {
        service.room.call_one();
    }
}

/// One who waits for a connection. Dropping it gives its place up; if it was called and has no use for it, the next one is
/// called.
#[derive(Debug)]
pub struct AwaitedRoom {
    service: Arc<ClusterShared>,
    endpoint: Arc<EndpointStats>,
    limit: ConnectionLimit,
    number: u64,
    /// It was called and found no room: there is none for others either.
    in_vain: bool,
}

impl AwaitedRoom {
    /// The limit that stands in the way.
    #[must_use]
    pub const fn limit(&self) -> ConnectionLimit {
        self.limit
    }

    /// It was called, and somebody else was quicker: nobody is called in its place.
    pub fn in_vain(mut self) {
        self.in_vain = true;
    }

    fn room(&self) -> &Room {
        match self.limit {
            ConnectionLimit::Service => &self.service.room,
            ConnectionLimit::Endpoint => &self.endpoint.room,
        }
    }
}

impl Drop for AwaitedRoom {
    fn drop(&mut self) {
        if self.room().leave(self.number) || self.in_vain {
            return;
        }
        match self.limit {
            ConnectionLimit::Service => drop(self.service.room.call_one()),
            ConnectionLimit::Endpoint => is_free(&self.service, &self.endpoint),
        }
    }
}

impl Cluster {
    /// Waits for a connection to this endpoint that a limit does not allow: `call` is called once when one has ended.
    /// Whoever comes looks for room once more after this.
    pub fn await_room(
        &self,
        endpoint: &Endpoint,
        limit: ConnectionLimit,
        call: impl FnOnce() + Send + 'static,
    ) -> AwaitedRoom {
        let (service, endpoint) = (Arc::clone(&self.shared), Arc::clone(&endpoint.stats));
        let mut awaited = AwaitedRoom { service, endpoint, limit, number: 0, in_vain: false };
        awaited.number = awaited.room().join(Box::new(call));
        awaited
    }
}

#[cfg(test)]
mod tests;
