//! The connections of ports: what each of them does, for how long it may, and which goes when one has to.

use std::collections::{BTreeMap, btree_map};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::IDLE;

/// How long a connection is not taken for idle that has asked for nothing yet: whoever has just called is about to ask.
pub(super) const YOUNG: Duration = Duration::from_secs(1);

/// Those of one port or of several, by the order in which they came.
#[derive(Debug)]
pub(super) struct Open {
    /// How many there may be, at whichever port.
    most: usize,
    entries: Mutex<BTreeMap<u64, Entry>>,
    /// The next number that nothing has yet.
    next: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    port: u64,
    work: Arc<watch::Sender<Work>>,
    closed: CancellationToken,
}

impl Open {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, entries: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// For a port or a connection.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn insert(&self, port: u64, work: Arc<watch::Sender<Work>>, closed: CancellationToken) -> u64 {
        let number = self.number();
        self.entries.lock().insert(number, Entry { port, work, closed });
        number
    }

    pub(super) fn remove(&self, number: u64) {
        self.entries.lock().remove(&number);
    }

    /// Whether one more may be open at this port, which may have so many, and where requests may be `short`: another one
    /// has ended for it where there was no room.
    pub(super) fn makes_room(&self, port: u64, connections: usize, short: bool) -> bool {
        let (own, all) = {
            let entries = self.entries.lock();
            (entries.values().filter(|entry| entry.port == port).count(), entries.len())
        };
        let among = if own >= connections {
            Some(port)
        } else if all >= self.most {
            None
        } else {
            return true;
        };
        self.close_idle(among) || self.close_oldest(among, short)
    }

    /// Ends the one that has been idle longest, of this port or of all; says whether there was one.
    pub(super) fn close_idle(&self, port: Option<u64>) -> bool {
        self.close(port, Work::idle_since)
    }

    /// Ends the one that has asked for nothing yet, or, where requests are `short`, has one under way, for longer than
    /// any other. Whoever comes thus has his time here however many come, until that many have come after him.
    fn close_oldest(&self, port: Option<u64>, short: bool) -> bool {
        self.close(port, |work| match work.state() {
            State::Busy(since) | State::Answered(since) => short.then_some(since),
            State::New(since) | State::Idle(since) => Some(since),
        })
    }

    /// Ends that which has been `since` the longest ago.
    fn close(&self, port: Option<u64>, since: impl Fn(&Work) -> Option<Instant>) -> bool {
        let mut entries = self.entries.lock();
        let among = entries.iter().filter(|(_, entry)| port.is_none_or(|port| port == entry.port));
        let those = among.filter_map(|(number, entry)| Some((since(&entry.work.borrow())?, *number)));
        let longest = those.min().and_then(|(_, number)| entries.remove(&number));
        longest.map(|entry| entry.closed.cancel()).is_some()
    }
}

/// What a connection does.
#[derive(Debug)]
pub(super) struct Work {
    /// When each request began that has no whole answer yet, in the order of their numbers.
    under_way: BTreeMap<u64, Instant>,
    /// When the oldest began of those whose answer is whole, and waits for a caller who reads slowly. Whoever reads nothing
    /// can ask on: nothing is kept of each.
    answered: Option<Instant>,
    /// What is not written yet of each answer, though it is out of its body. They may be under way for as long as that lies, and
    /// something else beside them for ever.
    lying: BTreeMap<u64, Lying>,
    /// The number of the next one.
    next: u64,
    /// Since when it has had none, while it has none; of those that are answered, when something of that went last.
    since: Instant,
}

#[derive(Debug)]
struct Lying {
    parts: usize,
    /// When one went last, or the first of them came. What else is written says nothing of it: in HTTP/2 that has a way of its own.
    moved: Instant,
}

#[derive(Clone, Copy)]
enum State {
    /// It has not asked for anything yet.
    New(Instant),
    /// Its oldest request that is under way began then.
    Busy(Instant),
    /// All are answered, but not all of that has gone. The oldest began then.
    Answered(Instant),
    /// It has asked, and the last of the last answer went then.
    Idle(Instant),
}

impl Work {
    /// Of a connection that has just begun.
    pub(super) fn none() -> Arc<watch::Sender<Self>> {
        let since = Instant::now();
        Arc::new(watch::Sender::new(Self {
            under_way: BTreeMap::new(),
            answered: None,
            lying: BTreeMap::new(),
            next: 0,
            since,
        }))
    }

    fn state(&self) -> State {
        match (self.under_way.first_key_value(), self.answered) {
            (Some((_, began)), _) => State::Busy(*began),
            (None, Some(began)) => State::Answered(began),
            (None, None) if self.next == 0 => State::New(self.since),
            (None, None) => State::Idle(self.since),
        }
    }

    /// Something that was written has gone; says whether that matters.
    pub(super) fn has_sent_some(&mut self) -> bool {
        let is_answered = self.answered.is_some();
        if is_answered {
            self.since = Instant::now();
        }
        is_answered
    }

    /// All that was written has gone; says whether that matters. In HTTP/2 it may be all that the caller takes at present.
    pub(super) fn has_sent_all(&mut self) -> bool {
        if !self.lying.is_empty() {
            return false;
        }
        let matters = self.has_sent_some();
        self.answered = None;
        matters
    }

    fn idle_since(&self) -> Option<Instant> {
        match self.state() {
            State::New(since) => (since.elapsed() >= YOUNG).then_some(since),
            State::Busy(_) | State::Answered(_) => None,
            State::Idle(since) => Some(since),
        }
    }
}

/// Ends when a connection has had no request for too long, or one for too long, whatever else came beside that, or where
/// nothing of what is answered, or of what there is of an answer so far, has been read for too long.
pub(super) async fn given_up(mut work: watch::Receiver<Work>, request: Option<Duration>) {
    loop {
        let until = {
            let work = work.borrow_and_update();
            let asks = match work.state() {
                State::Busy(since) => request.map(|request| since + request),
                State::New(_) | State::Answered(_) | State::Idle(_) => Some(work.since + IDLE),
            };
            let reads = work.lying.values().map(|lying| lying.moved + IDLE).min();
            asks.into_iter().chain(reads).min()
        };
        let over = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => pending().await,
            }
        };
        tokio::select! {
            Ok(()) = work.changed() => {}
            () = over => return,
        }
    }
}

/// A request from its head to the last byte of its answer. That is not the last one that goes: what is written lies here for as
/// long as its reader takes nothing.
pub(super) struct UnderWay {
    work: Arc<watch::Sender<Work>>,
    number: u64,
}

impl UnderWay {
    pub(super) fn begin(work: &Arc<watch::Sender<Work>>) -> Self {
        let mut number = 0;
        work.send_modify(|work| {
            number = work.next;
            work.next += 1;
            work.under_way.insert(number, Instant::now());
        });
        Self { work: Arc::clone(work), number }
    }

    /// What its answer comes in.
    pub(super) fn parts(&self) -> Parts {
        Parts { number: self.number, work: Arc::clone(&self.work) }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.work.send_modify(|work| {
            let began = work.under_way.remove(&self.number);
            // Another answer is no sign that anything of those before is read.
            if work.answered.is_none() {
                work.since = Instant::now();
            }
            work.answered = began.into_iter().chain(work.answered).min();
        });
    }
}

/// What an answer comes in, of which the last may lie when the request is no longer under way.
pub(super) struct Parts {
    number: u64,
    work: Arc<watch::Sender<Work>>,
}

impl Parts {
    /// A part of its answer, which is told from what is written for as long as it lies anywhere: HTTP/2 takes it out of the
    /// body whole, before the caller has room for it.
    pub(super) fn part(&self, bytes: Bytes) -> Bytes {
        self.work.send_if_modified(|work| {
            let lying = work.lying.entry(self.number);
            let lying = lying.or_insert_with(|| Lying { parts: 0, moved: Instant::now() });
            lying.parts += 1;
            lying.parts == 1
        });
        Bytes::from_owner(Part { bytes, number: self.number, work: Arc::clone(&self.work) })
    }
}

struct Part {
    bytes: Bytes,
    number: u64,
    work: Arc<watch::Sender<Work>>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.work.send_modify(|work| {
            let btree_map::Entry::Occupied(mut lying) = work.lying.entry(self.number) else { return };
            lying.get_mut().parts -= 1;
            lying.get_mut().moved = Instant::now();
            if lying.get().parts == 0 {
                lying.remove();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_comes_beside_a_request_gives_it_no_more_time() {
        let limit = Duration::from_secs(30);
        let work = Work::none();
        let began = Instant::now();
        let oldest = UnderWay::begin(&work);
        let others = async {
            loop {
                let _other = UnderWay::begin(&work);
                tokio::time::sleep(limit / 4).await;
            }
        };
        tokio::select! {
            () = given_up(work.subscribe(), Some(limit)) => {}
            () = others => {}
            () = tokio::time::sleep(limit * 2) => {}
        }
        assert!(began.elapsed() < limit + limit / 8, "{:?}", began.elapsed());
        drop(oldest);
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_oldest_request_has_ended_the_next_one_has_its_own_time() {
        let limit = Duration::from_secs(30);
        let work = Work::none();
        let began = Instant::now();
        let first = UnderWay::begin(&work);
        tokio::time::sleep(limit / 2).await;
        let second = UnderWay::begin(&work);
        drop(first);
        given_up(work.subscribe(), Some(limit)).await;
        assert!(began.elapsed() >= limit + limit / 2, "{:?}", began.elapsed());
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_on_and_reads_nothing_is_given_up() {
        let work = Work::none();
        let began = Instant::now();
        let asks_on = async {
            loop {
                drop(UnderWay::begin(&work));
                tokio::time::sleep(IDLE / 8).await;
            }
        };
        tokio::select! {
            () = given_up(work.subscribe(), None) => {}
            () = asks_on => {}
            () = tokio::time::sleep(IDLE * 4) => {}
        }
        assert!(began.elapsed() < IDLE + IDLE / 4, "{:?}", began.elapsed());
    }
}
