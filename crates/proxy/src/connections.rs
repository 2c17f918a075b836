//! The downstream connections of one worker, and the streams of those that carry several requests: what each waits
//! for, since when, and how to end it.
//!
//! A timer per wait would cost every request; instead each notes in a cell what it waits for and since when, and a
//! sweep of the worker, twice a second, wakes those that have waited too long. They then find their order to close.
//! Drain, expired and revoked identities use the same way.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::Cause;
use meshwork_identity::Peer;
use tokio::sync::Notify;

use crate::downstream::connection::Link;
use crate::mesh::{Place, retires_at};

/// How much longer than it means to something may stand still before it is taken for stuck.
const SLACK: Duration = Duration::from_secs(10);
/// A connection that has been idle so long rests.
const REST: Duration = Duration::from_millis(500);
/// What has begun less long ago than this is on its way, and is not ended to make room.
const YOUNG: Duration = Duration::from_millis(100);
/// The same of whoever has sent a request before.
const YOUNG_OF_KNOWN: Duration = Duration::from_secs(1);
/// While the process drains, whoever has sent nothing for so long is not waited for, unless its drain is short. Who calls more often sends its next request before it
/// hears of an end: it gets its answer, and hears of it there. A connection that has idled for longer is as unlikely to be closed
/// under a request as with any idle time.
const GRACE: Duration = Duration::from_secs(5);
/// While the process drains, who was answered before its request was whole is not waited for longer than this.
const ANSWERED: Duration = Duration::from_secs(1);
/// Bytes that something unfinished holds at least: a task, a socket, what a handshake needs.
const LEAST_HELD: u32 = 8 * 1024;

/// What a connection waits for; each has a time limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A handshake (TLS, HTTP/2 preface).
    Handshake,
    /// The next request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// Bytes of a request's or response's body, or the upstream.
    Exchange,
    /// The next bytes of a request's body, while the upstream would take them. Beside [`Self::Exchange`], never entered.
    Body,
    /// The rest of a request that has its answer, or that its caller gives it up.
    Answered,
}

/// What a caller has shown of itself: whoever has shown more is kept for longer where there is no room for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Nothing yet.
    New,
    /// A whole request, or a connection of layer 4.
    First,
    /// More than one.
    Known,
}

/// Why a connection is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The process drains, or the way in is taken away: finish what runs, take nothing new.
    Drain,
    /// The phase has taken longer than its limit.
    TimedOut(Phase),
    /// There is no room for what it has begun and not finished.
    Shed,
    /// End at once, for this reason.
    Close(Cause),
}

/// How long a downstream connection may stay in each phase.
#[derive(Clone, Copy, Debug)]
pub struct DownstreamTimeouts {
    /// TLS handshake or HTTP/2 preface.
    pub handshake: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// From the first byte of a head to its end.
    pub head: Duration,
    /// For each next kibibyte of a request's body that we wait for.
    pub body: Duration,
    /// Without any progress of a running exchange.
    pub stream_idle: Duration,
    /// The first two while the process drains.
    pub drain: Duration,
}

impl Default for DownstreamTimeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            head: Duration::from_secs(10),
            body: Duration::from_secs(60),
            stream_idle: Duration::from_secs(300),
            drain: GRACE,
        }
    }
}

impl DownstreamTimeouts {
    /// How long the phase may take.
    pub(crate) fn of(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Handshake => self.handshake,
            Phase::Idle => self.idle,
            Phase::Head | Phase::Answered => self.head,
            Phase::Body => self.body,
            Phase::Exchange => self.stream_idle,
        }
    }
}

impl Phase {
    /// The flag that moves the phase's limit.
    pub(crate) fn setting(self) -> &'static str {
        match self {
            Self::Handshake => "--handshake-timeout",
            Self::Idle => "--idle-timeout",
            Self::Head | Self::Answered => "--request-header-timeout",
            Self::Body => "--request-body-timeout",
            Self::Exchange => "--stream-idle-timeout",
        }
    }
}

/// One connection's entry, or one stream's.
#[derive(Debug)]
pub(crate) struct Entry {
    slot: usize,
    is_stream: bool,
    phase: Cell<Phase>,
    since: Cell<Tick>,
    /// How long its exchange may stand still, where a policy says so.
    patience: Cell<Option<Duration>>,
    /// Since when the caller owes bytes of its request's body.
    owing: Cell<Option<Tick>>,
    order: Cell<Option<Order>>,
    /// It was told to drain. What it is told about one phase does not take that back.
    drains: Cell<bool>,
    /// It does so with all others, of whose callers none knows yet.
    lingers: Cell<bool>,
    /// It has had nothing to do for a while.
    rests: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Somebody asks what it carries.
    asked: Cell<bool>,
    standing: Cell<Standing>,
    /// Bytes of a head that is not whole.
    held: Cell<u32>,
    /// Streams run on it.
    carries: Cell<bool>,
    /// Whom the connection is with; it lives no longer than that SVID.
    svid: OnceCell<Rc<Peer>>,
    /// The way in of a connection that carries requests.
    link: OnceCell<Rc<Link>>,
}

impl Entry {
    /// Enters a phase. That the one before took too long, or too much, does not matter any more.
    pub(crate) fn enter(&self, phase: Phase, now: Tick) {
        if matches!(self.order.get(), Some(Order::TimedOut(_) | Order::Shed)) {
            self.stays();
        }
        self.phase.set(phase);
        self.since.set(now);
        self.rests.set(false);
        self.patience.set(None);
    }

    /// Whether a connection that waits for its next request has done so for a while: what it needs for one can be given
    /// back. Its task is woken once to find that.
    pub(crate) fn may_rest(&self) -> bool {
        self.rests.get()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Something moved: the time of the phase starts again. An exchange that was to end in this very turn, since nothing had moved for too
    /// long, goes on.
    pub(crate) fn progress(&self, now: Tick) {
        if self.order.get() == Some(Order::TimedOut(Phase::Exchange)) {
            self.stays();
        }
        self.since.set(now);
    }

    /// How long an exchange may stand still; absent: as long as settings say.
    pub(crate) fn be_patient(&self, patience: Option<Duration>) {
        self.patience.set(patience);
    }

    /// The exchange stands still on purpose, for so long.
    pub(crate) fn pause(&self, time: Duration, now: Tick) {
        self.patience.set(Some(time.saturating_add(SLACK)));
        self.since.set(now);
    }

    /// It goes on. Nothing of the pause is charged to what comes.
    pub(crate) fn go_on(&self, now: Tick) {
        self.patience.set(None);
        self.since.set(now);
    }

    /// So many bytes are held for a head that is not whole.
    pub(crate) fn holds(&self, bytes: usize) {
        self.held.set(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Whether streams run on it: nothing of them would be left if it were ended.
    pub(crate) fn carries(&self, streams: bool) {
        self.carries.set(streams);
    }

    /// Bytes that would be free without it, about.
    pub(crate) fn weight(&self) -> u64 {
        self.held.get().max(LEAST_HELD).into()
    }

    /// Whose turn it is where room must be made: who has shown least, then who has been at it for longest.
    pub(crate) fn turn(&self) -> (Standing, Tick) {
        (self.standing.get(), self.since.get())
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing.get()
    }

    /// Whether it has begun something for so long that it may be ended to make room; `full`: there is none.
    fn is_in_the_way(&self, now: Tick, full: bool) -> bool {
        let has_order = !matches!(self.order.get(), None | Some(Order::Drain));
        if self.is_stream || self.carries.get() || has_order {
            return false;
        }
        let is_new = self.standing.get() == Standing::New;
        let young = if is_new { YOUNG } else { YOUNG_OF_KNOWN };
        let begun = match self.phase.get() {
            Phase::Handshake | Phase::Head | Phase::Answered => true,
            Phase::Idle => full && is_new,
            Phase::Exchange | Phase::Body => false,
        };
        begun && now.since(self.since.get()) >= young
    }

    /// Between two requests, or before the first for so long that it is on nobody's way, and not told to end yet.
    fn is_idle(&self, now: Tick) -> bool {
        let is_young = self.standing.get() == Standing::New && now.since(self.since.get()) < YOUNG;
        let is_alone = !self.is_stream && !self.carries.get();
        self.phase.get() == Phase::Idle && is_alone && !self.leaves() && !is_young
    }

    /// Whoever needs it more gets its place: it ends as in a drain, as it would have later.
    pub(crate) fn give_up_place(&self) {
        self.lingers.set(false);
        self.give(Order::Drain);
    }

    /// There is no room for it.
    pub(crate) fn shed(&self) {
        self.give(Order::Shed);
    }

    /// What was begun on a connection that ends to make room; `None`: it does not, or what it has begun was whole after all.
    pub(crate) fn made_room(&self) -> Option<&'static str> {
        (self.order.get() == Some(Order::Shed)).then(|| match self.phase.get() {
            Phase::Handshake => "handshake",
            Phase::Idle => "idle",
            Phase::Head | Phase::Exchange | Phase::Body | Phase::Answered => "head",
        })
    }

    /// What runs is finished, and then it ends.
    pub(crate) fn finish(&self) {
        self.drains.set(true);
        self.lingers.set(false);
        if self.order.get().is_none() {
            self.stays();
        }
    }

    /// Since when the caller owes bytes of its request's body, if it does.
    pub(crate) fn owes(&self, since: Option<Tick>) {
        self.owing.set(since);
    }

    /// Whether the caller owes bytes of its request's body.
    pub(crate) fn is_owing(&self) -> bool {
        self.owing.get().is_some()
    }

    /// The connection turned out to be with this peer.
    pub(crate) fn is_with(&self, peer: &Rc<Peer>) {
        // A handshake happens once per connection.
        let _ = self.svid.set(Rc::clone(peer));
    }

    /// The connection carries requests that came in this way, and no longer than that is there. False: it is gone already.
    pub(crate) fn came_by(&self, link: &Rc<Link>) -> bool {
        // That happens once per connection.
        let _ = self.link.set(Rc::clone(link));
        !link.is_left_behind()
    }

    /// It is not ended now after all. What it has begun has no more time for that.
    pub(crate) fn stays(&self) {
        self.order.set(self.drains.get().then_some(Order::Drain));
    }

    /// How long it has been in its phase without progress.
    pub(crate) fn waited(&self, now: Tick) -> Duration {
        now.since(self.since.get())
    }

    /// An order that does not apply any more: what it was about began to move again.
    pub(crate) fn disregard(&self, now: Tick) {
        self.stays();
        self.since.set(now);
    }

    /// What the connection was asked to do.
    pub(crate) fn order(&self) -> Option<Order> {
        self.order.get()
    }

    /// Whether a connection on which nothing runs ends now. Where all are drained it has a last time for what its caller sends before it
    /// can know; but an application that is beside us has ended before.
    pub(crate) fn leaves(&self) -> bool {
        match self.order.get() {
            Some(Order::Drain) => !self.lingers(),
            order => order.is_some(),
        }
    }

    /// Whether it was told to drain, whatever it is told besides.
    pub(crate) fn drains(&self) -> bool {
        self.drains.get()
    }

    fn lingers(&self) -> bool {
        self.lingers.get() && !self.link.get().is_some_and(|link| matches!(link.place, Place::Outbound(_)))
    }

    /// Somebody asks what it carries, if it carries a request now: its task is woken to tell.
    fn ask(&self) {
        if self.phase.get() == Phase::Exchange {
            self.asked.set(true);
            self.wake();
        }
    }

    /// Whether somebody asks what it carries.
    #[inline]
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.get()
    }

    /// It was told.
    pub(crate) fn has_told(&self) {
        self.asked.set(false);
    }

    /// Has the task woken when an order comes. Call before returning `Pending`.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &*waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
    }

    /// What is to end at once stays so, whatever it is told besides; and who is not trusted any more is told no last words.
    fn give(&self, order: Order) {
        self.drains.set(self.drains.get() || order == Order::Drain);
        let stays = match self.order.get() {
            Some(Order::Close(Cause::Draining)) => !matches!(order, Order::Close(_)),
            Some(Order::Close(_)) => true,
            _ => false,
        };
        if !stays {
            self.order.set(Some(order));
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn is_closing(&self) -> bool {
        matches!(self.order.get(), Some(Order::Close(_)))
    }

    /// A gap between two requests is no rest: whoever calls again soon pays for nothing twice.
    fn judge_rest(&self, now: Tick) {
        if self.phase.get() == Phase::Idle && !self.rests.get() && now.since(self.since.get()) >= REST {
            self.rests.set(true);
            self.wake();
        }
    }

    /// `drains`: all are told to end, but streams that begin on a connection that is.
    fn judge_time(&self, now: Tick, timeouts: &DownstreamTimeouts, drains: bool) {
        if matches!(self.order(), Some(Order::TimedOut(_) | Order::Shed)) {
            return;
        }
        let phase = self.phase.get();
        let limit = match phase {
            Phase::Exchange => self.patience.get().unwrap_or(timeouts.stream_idle),
            Phase::Idle | Phase::Handshake if self.lingers() => timeouts.of(phase).min(timeouts.drain),
            Phase::Answered if drains || self.drains.get() => timeouts.of(phase).min(ANSWERED),
            other => timeouts.of(other),
        };
        let owing = self.owing.get().filter(|_| phase == Phase::Exchange);
        if owing.is_some_and(|since| now.since(since) >= timeouts.body) {
            self.give(Order::TimedOut(Phase::Body));
        } else if now.since(self.since.get()) >= limit {
            self.give(Order::TimedOut(phase));
        }
    }

    /// A peer's connection takes nothing new shortly before its SVID expires, and ends with it.
    fn judge_svid(&self, wall: Duration) {
        let Some(peer) = self.svid.get() else { return };
        if wall >= peer.not_after {
            self.give(Order::Close(Cause::PeerUnauthenticated));
        } else if wall >= retires_at(peer) && self.order().is_none() {
            self.give(Order::Drain);
        }
    }
}

/// Downstream connections of a worker that begin and end to drain together, and their streams.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    entries: RefCell<Vec<Option<Rc<Entry>>>>,
    free: RefCell<Vec<usize>>,
    connections: Cell<usize>,
    streams: Cell<usize>,
    /// Connections that have shown nothing yet.
    newcomers: Cell<usize>,
    /// What all were told who were here when they began to end.
    ending: Cell<Option<Order>>,
    /// Those who drain have a last time for what is on its way to them.
    lingering: Cell<bool>,
    /// Told when the last one of a list that drains is gone.
    done: Notify,
}

impl Connections {
    /// Notes a new connection; the guard forgets it on drop.
    pub(crate) fn register(self: &Rc<Self>, now: Tick) -> Registration {
        self.connections.set(self.connections.get() + 1);
        self.newcomers.set(self.newcomers.get() + 1);
        self.add(now, false)
    }

    /// Notes a new stream of a connection with this peer.
    pub(crate) fn register_stream(self: &Rc<Self>, now: Tick, peer: Option<&Rc<Peer>>) -> Registration {
        self.streams.set(self.streams.get() + 1);
        let registration = self.add(now, true);
        registration.enter(Phase::Exchange, now);
        if let Some(peer) = peer {
            registration.is_with(peer);
        }
        registration
    }

    fn add(self: &Rc<Self>, now: Tick, is_stream: bool) -> Registration {
        let mut entries = self.entries.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            entries.push(None);
            entries.len() - 1
        });
        // Accepted just before. What a connection has begun goes on while others of it do.
        let order = self.ending.get().filter(|order| !is_stream || *order != Order::Drain);
        let entry = Rc::new(Entry {
            slot,
            is_stream,
            phase: Cell::new(Phase::Handshake),
            since: Cell::new(now),
            patience: Cell::new(None),
            owing: Cell::new(None),
            order: Cell::new(order),
            drains: Cell::new(order == Some(Order::Drain)),
            lingers: Cell::new(self.lingering.get()),
            rests: Cell::new(false),
            waker: RefCell::new(None),
            asked: Cell::new(false),
            standing: Cell::new(Standing::New),
            held: Cell::new(0),
            carries: Cell::new(false),
            svid: OnceCell::new(),
            link: OnceCell::new(),
        });
        entries[slot] = Some(Rc::clone(&entry));
        Registration { entry, connections: Rc::clone(self) }
    }

    /// How many connections are open.
    pub(crate) fn len(&self) -> usize {
        self.connections.get()
    }

    /// How many connections have shown nothing yet.
    pub(crate) fn newcomers(&self) -> usize {
        self.newcomers.get()
    }

    /// Adds the connections that may be ended to make room; `full`: there is none.
    pub(crate) fn in_the_way(&self, now: Tick, full: bool, found: &mut Vec<Rc<Entry>>) {
        let entries = self.entries.borrow();
        found.extend(entries.iter().flatten().filter(|entry| entry.is_in_the_way(now, full)).map(Rc::clone));
    }

    /// Of those between two requests the one whose turn it is where room must be made.
    pub(crate) fn first_idle(&self, now: Tick) -> Option<Rc<Entry>> {
        let entries = self.entries.borrow();
        let idle = entries.iter().flatten().filter(|entry| entry.is_idle(now));
        idle.min_by_key(|entry| entry.turn()).map(Rc::clone)
    }

    /// Neither connections nor streams are left.
    pub(crate) fn is_done(&self) -> bool {
        self.connections.get() == 0 && self.streams.get() == 0
    }

    /// How much is under way: streams, and connections that carry one thing alone. What was answered is not.
    pub(crate) fn busy(&self) -> usize {
        let entries = self.entries.borrow();
        entries.iter().flatten().filter(|entry| entry.phase.get() == Phase::Exchange).count()
    }

    /// Lets every connection finish what runs, and what its caller sends before it can know. See [`Entry::leaves`].
    pub(crate) fn drain(&self) {
        self.end(Order::Drain, true);
    }

    /// Lets every connection finish what runs, and take nothing new.
    pub(crate) fn drain_at_once(&self) {
        self.end(Order::Drain, false);
    }

    /// Ends every connection and stream now, and whatever their peers have begun before they hear of it.
    pub(crate) fn cut_off(&self) {
        self.end(Order::Close(Cause::Draining), false);
    }

    fn end(&self, order: Order, lingering: bool) {
        self.lingering.set(lingering);
        if !matches!(self.ending.get(), Some(Order::Close(_))) {
            self.ending.set(Some(order));
        }
        self.each(|entry| {
            entry.lingers.set(lingering);
            entry.give(order);
        });
        if self.is_done() {
            self.done.notify_waiters();
        }
    }

    fn is_draining(&self) -> bool {
        self.ending.get().is_some()
    }

    /// Waits until all are gone that were told to finish.
    pub(crate) async fn drained(&self) {
        while !(self.is_draining() && self.is_done()) {
            self.done.notified().await;
        }
    }

    /// Lets those finish what runs, and take nothing new, whose way in is gone.
    pub(crate) fn drain_left_behind(&self) {
        self.each(|entry| {
            if entry.link.get().is_some_and(|link| link.is_left_behind()) {
                entry.give(Order::Drain);
            }
        });
    }

    /// Asks all what they carry.
    pub(crate) fn ask(&self) {
        self.each(Entry::ask);
    }

    /// Ends the connections whose peer is not trusted any more.
    pub(crate) fn close_denied(&self, is_denied: impl Fn(&Peer) -> bool) {
        self.each(|entry| {
            if entry.svid.get().is_some_and(|peer| is_denied(peer)) {
                entry.give(Order::Close(Cause::PeerRevoked));
            }
        });
    }

    /// Ends what has waited too long, and what is with a peer whose SVID has expired at `wall`.
    pub(crate) fn sweep(&self, now: Tick, wall: Duration, timeouts: &DownstreamTimeouts) {
        let drains = self.is_draining();
        self.each(|entry| {
            if !entry.is_closing() {
                entry.judge_rest(now);
                entry.judge_time(now, timeouts, drains);
                entry.judge_svid(wall);
            }
        });
    }

    fn each(&self, act: impl Fn(&Entry)) {
        self.entries.borrow().iter().flatten().for_each(|entry| act(entry));
    }
}

/// A connection's place in the list, as long as it lives.
#[derive(Debug)]
pub(crate) struct Registration {
    entry: Rc<Entry>,
    connections: Rc<Connections>,
}

impl Registration {
    /// Nothing new is taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.connections.is_draining()
    }

    /// A whole request has come, or what else the connection is for.
    #[inline]
    pub(crate) fn arrives(&self) {
        let standing = match self.entry.standing.get() {
            Standing::Known => return,
            Standing::First => Standing::Known,
            Standing::New => {
                self.connections.newcomers.set(self.connections.newcomers.get() - 1);
                Standing::First
            }
        };
        self.entry.standing.set(standing);
    }

    /// The entry, for those who may outlive the connection.
    pub(crate) fn entry(&self) -> Rc<Entry> {
        Rc::clone(&self.entry)
    }
}

impl std::ops::Deref for Registration {
    type Target = Entry;
    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let count =
            if self.entry.is_stream { &self.connections.streams } else { &self.connections.connections };
        count.set(count.get() - 1);
        if !self.entry.is_stream && self.entry.standing.get() == Standing::New {
            self.connections.newcomers.set(self.connections.newcomers.get() - 1);
        }
        self.connections.entries.borrow_mut()[self.entry.slot] = None;
        self.connections.free.borrow_mut().push(self.entry.slot);
        if self.connections.is_draining() && self.connections.is_done() {
            self.connections.done.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
