//! One worker's connections to endpoints, kept for the next request.
//!
//! HTTP/1 connections wait in a stack: the one used last is warmest and is taken first, so that the others age and
//! go; where a limit makes others wait for the place that it takes up, it does not wait at all. No task watches an idle connection; that the peer closed it shows when it is taken, and a sweep of the worker
//! lets go of the old ones. HTTP/2 connections are shared: streams are counted here, a connection takes as many as its
//! peer allows, and one dial serves all who wait for it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::{Rc, Weak};
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Cause, ConnectionPermit};
use meshwork_identity::Peer;
use tokio::sync::Notify;

use super::behind::Behind;
use super::h1::H1Client;
use super::h2::{H2Connection, patience};
use super::line::Line;
use super::open::is_app;
use crate::error::Failure;
use crate::gauges::OpenUpstream;

/// How long a connection may wait for its next request.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// HTTP/1 connections to one endpoint that one worker makes at the same time. Whoever comes beyond that waits in line: a
/// thousand requests at once must not overrun the queue of connections that an application has not taken yet.
const MAX_DIALS: u32 = 128;
/// Idle HTTP/1 connections kept per endpoint and worker.
const MAX_IDLE: usize = 512;
/// So many shared connections to one endpoint in doubt are not all at fault.
const MOST_DOUBTED: usize = 2;

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
    open: Cell<usize>,
    dialing: Cell<bool>,
    dialed: Notify,
    /// How the last dial that others waited for failed, and how many dials there have been.
    failed: RefCell<Option<(u64, Failure)>>,
    dials: Cell<u64>,
    /// The one that came to nothing, so that whoever waited for it goes on with a connection that is crowded.
    crowds: Cell<Option<u64>>,
    /// HTTP/1 connections that are being made.
    making: Cell<u32>,
    /// Who waits for an HTTP/1 connection.
    line: Line,
    /// Who waits for room on a shared connection.
    streams: Line,
    /// How long a connection may idle, where a policy says so.
    idle_timeout: Cell<Option<Duration>>,
}

/// A connection's place among those that are open, as long as it lives.
pub(crate) struct Opened {
    /// When it was opened.
    pub(crate) since: Tick,
    /// How long what we send takes to the peer, and its answer to us, as it was when the connection was made.
    pub(crate) round_trip: Duration,
    /// How long its peer has to say how many streams it takes.
    pub(super) patience: Duration,
    pool: Weak<EndpointPool>,
    permit: Option<ConnectionPermit>,
    _gauge: OpenUpstream,
}

impl Opened {
    /// Of a connection that was asked for, and stood, at these times.
    pub(crate) fn new(
        pool: &Rc<EndpointPool>,
        permit: Option<ConnectionPermit>,
        gauge: OpenUpstream,
        (asked, since): (Tick, Tick),
    ) -> Self {
        pool.open.set(pool.open.get() + 1);
        let round_trip = since.since(asked);
        let patience = patience(round_trip);
        Self { since, round_trip, patience, pool: Rc::downgrade(pool), permit, _gauge: gauge }
    }

    /// Who is told that it takes more streams.
    pub(crate) fn room(&self) -> Room {
        Room(Weak::clone(&self.pool))
    }

    /// How many there are beyond a limit that has fallen; one that no limit counts is never beyond it.
    #[inline]
    pub(crate) fn beyond(&self) -> usize {
        self.permit.as_ref().map_or(0, |permit| permit.beyond() as usize)
    }

    /// Whether somebody on another worker, or who calls another endpoint of the service, waits for it to end.
    pub(crate) fn is_wanted(&self) -> bool {
        self.permit.as_ref().is_some_and(ConnectionPermit::is_wanted)
    }
}

/// Those who wait for room on a shared connection, as long as it is one of their pool's.
pub(crate) struct Room(Weak<EndpointPool>);

impl Room {
    /// A stream has ended on it, or it takes more of them than before.
    pub(crate) fn call(&self) {
        if let Some(pool) = self.0.upgrade() {
            pool.streams.call_one();
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.open.set(pool.open.get() - 1);
            pool.wake_one();
            pool.streams.call_one();
        }
    }
}

impl Pools {
    pub(crate) fn of(&self, endpoint: u64) -> Rc<EndpointPool> {
        Rc::clone(self.endpoints.borrow_mut().entry(endpoint).or_default())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.endpoints.borrow().is_empty()
    }

    /// Lets go of what has idled too long, of what may not be used at `wall` any more, of what leads nowhere, of what is beyond
    /// a limit, and of all idle connections to endpoints that are gone. `late`: the worker has stood still before.
    pub(crate) fn sweep(&self, (now, late): (Tick, bool), wall: Duration, is_current: impl Fn(u64) -> bool) {
        self.endpoints.borrow_mut().retain(|&id, pool| {
            let keep =
                if is_current(id) { pool.idle_timeout.get().unwrap_or(IDLE_TIMEOUT) } else { Duration::ZERO };
            drop(pool.take_idle_since(now, keep));
            while let Some(unwelcome) = pool.take_unwelcome() {
                drop(unwelcome);
            }
            pool.shared.borrow_mut().retain(|connection| {
                connection.judge(wall);
                // What is beside us on this machine cannot vanish, and may be stopped, in a debugger or elsewhere.
                if !is_app(id) {
                    connection.look(now, late);
                }
                let idle = connection.idle_for(now);
                let may_idle = idle < keep && connection.beyond() == 0;
                !connection.is_over() && (connection.is_busy() || may_idle)
            });
            // What a limit has room for meanwhile, since a connection elsewhere has ended or it was raised, nobody else says.
            pool.streams.call_again();
            Rc::strong_count(pool) > 1 || !pool.is_empty() || keep > Duration::ZERO && pool.dialing.get()
        });
    }

    /// Ends connections to peers that are not trusted any more.
    pub(crate) fn close_denied(&self, is_denied: impl Fn(&Peer) -> bool) {
        for pool in self.endpoints.borrow().values() {
            let shared = pool.shared.borrow();
            shared
                .iter()
                .filter(|c| c.peer().is_some_and(&is_denied))
                .for_each(|connection| connection.cut());
        }
    }

    /// Lets go of the connection that has been idle for longest, whomever it leads to; whether there was one.
    pub(crate) fn end_longest_idle(&self, now: Tick) -> bool {
        let longest = {
            let endpoints = self.endpoints.borrow();
            endpoints.values().max_by_key(|pool| pool.idle_for(now)).map(Rc::clone)
        };
        longest.is_some_and(|pool| pool.end_longest_idle(now))
    }

    /// Lets go of one idle connection, if there is one, to make room for another.
    pub(crate) fn evict_idle(&self, endpoint: u64) -> bool {
        let pool = self.endpoints.borrow().get(&endpoint).map(Rc::clone);
        pool.is_some_and(|pool| {
            // Dropping it tells the pool, so it must not be borrowed then.
            let oldest = {
                let mut idle = pool.idle.borrow_mut();
                (!idle.is_empty()).then(|| idle.remove(0))
            };
            oldest.is_some()
        })
    }

    /// Lets go of every idle connection; whether there was one.
    pub(crate) fn clear(&self) -> bool {
        let mut is_any = false;
        for pool in self.endpoints.borrow().values() {
            is_any |= !pool.take_idle_since(Tick::ZERO, Duration::ZERO).is_empty();
            pool.shared.borrow_mut().retain(|connection| {
                is_any |= !connection.is_busy();
                connection.is_busy()
            });
        }
        is_any
    }
}

impl EndpointPool {
    fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty()
    }

    /// How long its connection that has been idle for longest has been so; absent: none is.
    fn idle_for(&self, now: Tick) -> Option<Duration> {
        let oldest = self.idle.borrow().first().map(|(since, _)| now.since(*since));
        oldest.max(self.longest_shared(now).map(|(_, time)| time))
    }

    fn longest_shared(&self, now: Tick) -> Option<(usize, Duration)> {
        let shared = self.shared.borrow();
        let idle = shared.iter().enumerate().filter(|(_, connection)| !connection.is_busy());
        idle.map(|(at, connection)| (at, connection.idle_for(now))).max_by_key(|(_, time)| *time)
    }

    /// Dropping a connection tells the pool, so it must not be borrowed then.
    fn end_longest_idle(&self, now: Tick) -> bool {
        let oldest = self.idle.borrow().first().map(|(since, _)| now.since(*since));
        match self.longest_shared(now) {
            Some((at, time)) if oldest.is_none_or(|oldest| oldest < time) => {
                let ended = self.shared.borrow_mut().remove(at);
                drop(ended);
                true
            }
            _ => {
                let ended = oldest.map(|_| self.idle.borrow_mut().remove(0));
                ended.is_some()
            }
        }
    }

    /// Takes those out that have waited for so long. Dropping them tells the pool, so it must not be borrowed then.
    fn take_idle_since(&self, now: Tick, keep: Duration) -> Vec<(Tick, Box<H1Client>)> {
        self.idle.borrow_mut().extract_if(.., |(since, _)| now.since(*since) >= keep).collect()
    }

    /// The oldest of those that wait and whose place somebody has more use for, or that are beyond a limit.
    fn take_unwelcome(&self) -> Option<Box<H1Client>> {
        let mut idle = self.idle.borrow_mut();
        let is_unwelcome = |client: &H1Client| client.is_wanted() || client.is_beyond();
        let unwelcome = idle.iter().position(|(_, client)| is_unwelcome(client))?;
        Some(idle.remove(unwelcome).1)
    }

    /// Whether it ends, since there are more than a limit allows. The last one stays: another might be made in its place,
    /// whatever the limit.
    #[inline]
    fn ends(&self, client: &H1Client) -> bool {
        client.is_beyond() && self.open() > 1
    }

    /// How many milliseconds a connection may idle; 0: [`IDLE_TIMEOUT`].
    pub(crate) fn may_idle(&self, millis: u32) {
        self.idle_timeout.set((millis > 0).then(|| Duration::from_millis(millis.into())));
    }

    /// How many connections are open, idle or not.
    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    /// A place among the HTTP/1 connections that are being made, if there is one.
    pub(crate) fn make(self: &Rc<Self>) -> Option<Making> {
        (self.making.get() < MAX_DIALS).then(|| {
            self.making.set(self.making.get() + 1);
            Making(Rc::clone(self))
        })
    }

    /// Whether no HTTP/1 connection is open or being made.
    pub(crate) fn has_none(&self) -> bool {
        self.open.get() == 0 && self.making.get() == 0
    }

    pub(super) fn has_idle(&self) -> bool {
        !self.idle.borrow().is_empty()
    }

    /// Whether others wait in line; who comes later is served later.
    pub(crate) fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    pub(super) const fn line(&self) -> &Line {
        &self.line
    }

    /// Those who wait for room on a shared connection.
    pub(super) const fn streams(&self) -> &Line {
        &self.streams
    }

    /// Something became free, perhaps.
    pub(crate) fn wake_one(&self) {
        self.line.call_one();
    }

    /// The warmest idle connection that its peer has not closed and that is within the limits.
    pub(crate) fn take_idle(&self) -> Option<Box<H1Client>> {
        loop {
            let (_, client) = self.idle.borrow_mut().pop()?;
            if !self.ends(&client) && client.is_usable() {
                return Some(client);
            }
        }
    }

    /// Lets go of those that have been idle since before this moment.
    #[cold]
    pub(crate) fn doubt_idle(&self, before: Tick) {
        let doubted: Vec<_> = self.idle.borrow_mut().extract_if(.., |(since, _)| *since < before).collect();
        // Dropping them tells the pool.
        drop(doubted);
    }

    /// Keeps a connection whose exchange is completely done on both sides; or lets it go, where there are more than a limit
    /// allows, or nobody waits for it here and somebody does elsewhere: on another worker, or to call another endpoint of the
    /// service.
    pub(crate) fn give_back(&self, mut client: Box<H1Client>, now: Tick) {
        if self.ends(&client) || client.is_wanted() && !self.has_line() {
            return;
        }
        client.rest();
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push((now, client));
        }
        drop(idle);
        self.wake_one();
    }

    /// A shared connection with room for one more stream; `dial` is called by one caller at a time, the others wait
    /// for its result and for the word how many streams it takes, so that a hundred waiters start one dial and not a hundred. `wall` is since the Unix epoch.
    ///
    /// # Errors
    /// The failure of the dial.
    pub(crate) async fn share<F>(
        &self,
        wall: Duration,
        behind: Behind<'_>,
        dial: impl Fn() -> F,
    ) -> Result<Rc<H2Connection>, Failure>
    where
        F: Future<Output = Result<Rc<H2Connection>, Failure>>,
    {
        loop {
            if let Some(connection) = self.with_room(wall) {
                return Ok(connection);
            }
            if self.dialing.get() {
                let awaited = self.dials.get();
                let made = behind.follows();
                self.dialed.notified().await;
                behind.in_time()?;
                made();
                match &*self.failed.borrow() {
                    Some((dial, failure)) if *dial == awaited => return Err(failure.clone()),
                    _ => {}
                }
                // Who dialed has gone on with one that is crowded, and each of us would dial after the other.
                if self.crowds.get() == Some(awaited)
                    && let Some(connection) = self.with_room(wall).or_else(|| self.crowded_with_room())
                {
                    return Ok(connection);
                }
                continue;
            }
            if let Some(new) = self.new_one() {
                let made = behind.follows();
                new.settles(&made).await;
                behind.in_time()?;
                made();
                continue;
            }
            let mut dialing = Dialing::begin(self);
            let dialed = dial().await;
            match dialed {
                Ok(connection) => {
                    self.shared.borrow_mut().push(Rc::clone(&connection));
                    drop(dialing);
                    return Ok(connection);
                }
                Err(failure) => {
                    // Where there can be no other, one in doubt, or worn, is better than none, and one that is crowded than any failure.
                    let is_limit = failure.cause == Cause::MaxConnections;
                    let other = if is_limit { self.reluctant_with_room() } else { self.crowded_with_room() };
                    if let Some(other) = other {
                        self.crowds.set((!is_limit).then(|| self.dials.get()));
                        return Ok(other);
                    }
                    // What stands in its way stands in theirs, and it may be before them.
                    dialing.calls = !is_limit;
                    *self.failed.borrow_mut() = Some((self.dials.get(), failure.clone()));
                    return Err(failure);
                }
            }
        }
    }

    /// Lets go of shared connections that are over, which the sweep would; whether there were any. Dropping them tells the
    /// pool, so it must not be borrowed then.
    pub(crate) fn let_go_of_ended(&self) -> bool {
        let ended: Vec<_> =
            self.shared.borrow_mut().extract_if(.., |connection| connection.is_over()).collect();
        !ended.is_empty()
    }

    /// Whether a shared connection is being made, or how much it takes is not known yet.
    pub(crate) fn is_dialing(&self) -> bool {
        self.dialing.get() || self.new_one().is_some()
    }

    /// A shared connection that may take more streams than one as soon as its peer has said so. One that takes another at once is
    /// not waited for: where it is passed over, that is for a limit.
    fn new_one(&self) -> Option<Rc<H2Connection>> {
        let shared = self.shared.borrow();
        let is_waited_for = |one: &H2Connection| one.is_new() && is_sound(one) && !one.has_room();
        shared.iter().find(|connection| is_waited_for(connection)).cloned()
    }

    /// A shared connection that takes another stream. One in doubt takes none, unless the one that was made in its place is no
    /// better: it is the endpoint, then, that does not answer, and not the way there. Nor does one that is worn, crowded or spent.
    pub(crate) fn with_room(&self, wall: Duration) -> Option<Rc<H2Connection>> {
        let shared = self.shared.borrow();
        let mut doubted = 0;
        let found = shared
            .iter()
            .inspect(|connection| connection.judge(wall))
            .filter(|connection| connection.has_room())
            .inspect(|connection| doubted += usize::from(connection.is_doubted()))
            .find(|connection| is_sound(connection));
        match found {
            Some(connection) if connection.beyond() > 0 => within_limits(&shared)
                .find(|connection| connection.has_room() && is_sound(connection))
                .cloned(),
            Some(connection) => Some(Rc::clone(connection)),
            None if doubted >= MOST_DOUBTED => self.reluctant_with_room(),
            None => None,
        }
    }

    /// One that would take another stream but for what lies unread on it, or did.
    #[cold]
    fn crowded_with_room(&self) -> Option<Rc<H2Connection>> {
        let shared = self.shared.borrow();
        within_limits(&shared).find(|one| one.has_room() && is_well(one)).cloned()
    }

    /// Of those that take another stream only where no other does, the youngest.
    #[cold]
    pub(super) fn reluctant_with_room(&self) -> Option<Rc<H2Connection>> {
        let shared = self.shared.borrow();
        within_limits(&shared).filter(|connection| connection.has_room()).last().cloned()
    }
}

/// Neither in doubt nor worn nor crowded, nor is its room wanted elsewhere.
fn is_sound(connection: &H2Connection) -> bool {
    is_well(connection) && !connection.is_crowded() && !connection.is_spent()
}

/// Neither in doubt nor worn.
fn is_well(connection: &H2Connection) -> bool {
    !connection.is_doubted() && !connection.is_worn()
}

/// Those that may take another stream: all of them, unless a limit has fallen. Then those that are sound go first, and what is beyond it
/// is taken for this worker's, which other workers do as well, until enough have ended; but one is left, since another might be made
/// in its place whatever the limit.
#[cold]
fn within_limits(shared: &[Rc<H2Connection>]) -> impl Iterator<Item = &Rc<H2Connection>> {
    let open = |sound: bool| shared.iter().filter(move |one| !one.is_closed() && is_sound(one) == sound);
    let all = move || open(true).chain(open(false));
    let beyond = all().map(|one| one.beyond()).max().unwrap_or(0);
    all().take(all().count().saturating_sub(beyond).max(1))
}

/// An HTTP/1 connection that is being made; when it is made, or cannot be, the next in line may make one.
pub(crate) struct Making(Rc<EndpointPool>);

impl Drop for Making {
    fn drop(&mut self) {
        self.0.making.set(self.0.making.get() - 1);
        self.0.wake_one();
    }
}

/// Wakes those who wait when a dial ends, for it or in line, also when its caller is cancelled.
struct Dialing<'a> {
    pool: &'a EndpointPool,
    /// Those in line are called when it ends.
    calls: bool,
}

impl<'a> Dialing<'a> {
    fn begin(pool: &'a EndpointPool) -> Self {
        pool.dialing.set(true);
        pool.dials.set(pool.dials.get() + 1);
        Self { pool, calls: true }
    }
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.pool.dialing.set(false);
        // Those who have waited for this one came before those who wait for any.
        self.pool.dialed.notify_waiters();
        if self.calls {
            self.pool.streams.call_one();
        }
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
#[derive(Default)]
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
