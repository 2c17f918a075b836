//! One worker's connections to endpoints, kept for the next request.
//!
//! HTTP/1 connections wait in a stack: the one used last is warmest and is taken first, so that the others age and
//! go. No task watches an idle connection; that the peer closed it shows when it is taken, and a sweep of the worker
//! lets go of the old ones. HTTP/2 connections are shared: streams are counted here, a connection takes as many as its
//! peer allows, and one dial serves all who wait for it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use meshwork_base::Tick;
use tokio::sync::Notify;

use super::h1::H1Client;
use super::h2::H2Connection;
use crate::error::Failure;

/// How long a connection may wait for its next request.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Idle HTTP/1 connections kept per endpoint and worker.
const MAX_IDLE: usize = 512;

/// One worker's pools, by [`meshwork_decision::Endpoint::id`].
#[derive(Default)]
pub(crate) struct Pools {
    endpoints: RefCell<HashMap<u64, Rc<EndpointPool>, BuildId>>,
}

/// The connections to one endpoint.
#[derive(Default)]
pub(crate) struct EndpointPool {
    idle: RefCell<Vec<(Tick, Box<H1Client>)>>,
    shared: RefCell<Vec<Rc<H2Connection>>>,
    dialing: Cell<bool>,
    dialed: Notify,
}

impl Pools {
    pub(crate) fn of(&self, endpoint: u64) -> Rc<EndpointPool> {
        Rc::clone(self.endpoints.borrow_mut().entry(endpoint).or_default())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.endpoints.borrow().is_empty()
    }

    /// Lets go of what has idled too long, and of all idle connections to endpoints that are gone.
    pub(crate) fn sweep(&self, now: Tick, is_current: impl Fn(u64) -> bool) {
        self.endpoints.borrow_mut().retain(|&id, pool| {
            let keep = if is_current(id) { IDLE_TIMEOUT } else { Duration::ZERO };
            pool.idle.borrow_mut().retain(|(since, _)| now.since(*since) < keep);
            pool.shared.borrow_mut().retain(|c| !c.is_closed() && c.idle_for(now) < keep);
            Rc::strong_count(pool) > 1 || !pool.is_empty() || keep > Duration::ZERO && pool.dialing.get()
        });
    }

    /// Lets go of every idle connection: the worker drains.
    pub(crate) fn clear(&self) {
        self.endpoints.borrow_mut().clear();
    }
}

impl EndpointPool {
    fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty()
    }

    /// The warmest idle connection that its peer has not closed.
    pub(crate) fn take_idle(&self) -> Option<Box<H1Client>> {
        loop {
            let (_, client) = self.idle.borrow_mut().pop()?;
            if client.is_usable() {
                return Some(client);
            }
        }
    }

    /// Keeps a connection whose exchange is completely done on both sides.
    pub(crate) fn give_back(&self, mut client: Box<H1Client>, now: Tick) {
        client.rest();
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push((now, client));
        }
    }

    /// A shared connection with room for one more stream; `dial` is called by one caller at a time, the others wait
    /// for its result and then look again, so that a hundred waiters start one dial and not a hundred.
    ///
    /// # Errors
    /// The failure of this caller's own dial.
    pub(crate) async fn share<F>(&self, dial: impl Fn() -> F) -> Result<Rc<H2Connection>, Failure>
    where
        F: Future<Output = Result<Rc<H2Connection>, Failure>>,
    {
        loop {
            self.shared.borrow_mut().retain(|connection| !connection.is_closed());
            if let Some(connection) = self.shared.borrow().iter().find(|c| c.has_room()) {
                return Ok(Rc::clone(connection));
            }
            if self.dialing.get() {
                self.dialed.notified().await;
                continue;
            }
            let _dialing = Dialing::begin(self);
            let connection = dial().await?;
            self.shared.borrow_mut().push(Rc::clone(&connection));
            return Ok(connection);
        }
    }
}

/// Wakes the waiters when a dial ends, also when its caller is cancelled.
struct Dialing<'a>(&'a EndpointPool);

impl<'a> Dialing<'a> {
    fn begin(pool: &'a EndpointPool) -> Self {
        pool.dialing.set(true);
        Self(pool)
    }
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.dialing.set(false);
        self.0.dialed.notify_waiters();
    }
}

/// Endpoint ids are unique numbers already; one multiplication spreads them.
#[derive(Clone, Copy, Default)]
pub(crate) struct BuildId;

impl std::hash::BuildHasher for BuildId {
    type Hasher = IdHasher;
    fn build_hasher(&self) -> IdHasher {
        IdHasher(0)
    }
}

/// See [`BuildId`].
pub(crate) struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
