//! Those who wait for a connection that a limit does not allow yet.
//!
//! Connections are a worker's, limits are the process's: what ends at one worker makes room for whoever waits at another,
//! and, where it is the service that is full, at another endpoint. So each connection that ends calls one who waits, first of
//! those who wait for its endpoint's limit, then of those who wait for its service's. Nobody else pays for it: where nobody
//! waits, one word is read.
//!
//! A limit that is raised, or gone, calls all who wait: what they look at is the limit of that moment, whatever was in force when
//! they came.
//!
//! Whoever joins the line looks for room once more after that: a connection that ended before has called nobody.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

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
    waiting: BTreeMap<u64, Call>,
}

/// Numbers whoever comes, for all lines: so one that moves from one line to another keeps its age.
static COME: AtomicU64 = AtomicU64::new(0);

impl Room {
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    fn join(&self, number: u64, call: Call) {
        let mut line = self.line.lock();
        let before = line.waiting.insert(number, call);
        debug_assert!(before.is_none(), "whoever waits does so once");
        self.waiting.store(line.waiting.len(), Ordering::Release);
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

    /// Calls all who wait, since the limit is another one. Whoever was refused by the one before and has not joined yet takes
    /// the lock after this, and looks once more.
    fn call_all(&self) {
        let mut line = self.line.lock();
        let called = mem::take(&mut line.waiting);
        self.waiting.store(0, Ordering::Release);
        drop(line);
        called.into_values().for_each(|call| call());
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

/// A limit has been raised: all who wait look by themselves.
pub(crate) fn is_raised(service: &ClusterShared) {
    for endpoint in service.endpoints.load().all() {
        endpoint.stats.room.call_all();
    }
    service.room.call_all();
}

/// One who waits for a connection. Dropping it gives its place up; if it was called and has no use for it, the next one is
/// called.
#[derive(Debug)]
pub struct AwaitedRoom {
    service: Arc<ClusterShared>,
    endpoint: Arc<EndpointStats>,
    limit: ConnectionLimit,
    number: u64,
    /// It has what it was called for, or has passed it on.
    used: bool,
}

impl AwaitedRoom {
    /// The limit that stands in the way.
    #[must_use]
    pub const fn limit(&self) -> ConnectionLimit {
        self.limit
    }

    /// It was called and has made a connection: nobody else is called.
    pub fn used(mut self) {
        self.used = true;
    }

    /// It was called, and found this limit in the way: it waits again, as long as it has waited. Where it is the same limit,
    /// somebody else was quicker, and nobody is called in its place; where it is the other one, there is room for those who are
    /// not kept by that. To be looked for once more after this.
    pub fn again(&mut self, limit: ConnectionLimit, call: impl FnOnce() + Send + 'static) {
        if !self.room().leave(self.number) && self.limit != limit && !self.used {
            self.pass_on();
        }
        (self.limit, self.used) = (limit, false);
        self.room().join(self.number, Box::new(call));
    }

    /// It was called, and something else than a limit stands in the way: the next one is called in its place. It waits for no
    /// limit until [`Self::again`], and then as long as it has waited.
    pub fn pass(&mut self) {
        if !self.room().leave(self.number) && !mem::replace(&mut self.used, true) {
            self.pass_on();
        }
    }

    fn room(&self) -> &Room {
        match self.limit {
            ConnectionLimit::Service => &self.service.room,
            ConnectionLimit::Endpoint => &self.endpoint.room,
        }
    }

    fn pass_on(&self) {
        match self.limit {
            ConnectionLimit::Service => drop(self.service.room.call_one()),
            ConnectionLimit::Endpoint => is_free(&self.service, &self.endpoint),
        }
    }
}

impl Drop for AwaitedRoom {
    fn drop(&mut self) {
        if !self.room().leave(self.number) && !self.used {
            self.pass_on();
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
        let number = COME.fetch_add(1, Ordering::Relaxed);
        let awaited = AwaitedRoom { service, endpoint, limit, number, used: false };
        awaited.room().join(number, Box::new(call));
        awaited
    }
}

#[cfg(test)]
mod tests;
