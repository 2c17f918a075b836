//! The windows of one HTTP/2 connection: how much of each stream may be on its way to us unread. A stream moves no more than
//! its window in each round trip, so over a distance it has to be larger; and what its reader does not read of it is our memory.
//! So windows begin small, and grow on connections one of whose streams is seen to need it ([`super::estimate`]). From then on each of its
//! streams may have as much that is read as it comes ([`super::flow`] tells the peer), until the connection ends.
//!
//! The window of the connection grows as well, and again whenever half of it lies here unread, so that streams that are not read
//! leave those beside them room. What it has grown by comes out of what the whole process has for it, of which what
//! lies unread has half at most, and streams three quarters. Nothing grows while memory is
//! short, nor beside streams of messages so small that a large window full of them would make `h2` end the connection.
//!
//! Where little of that is left, a connection that was widened and has been read since takes no more streams, and gives its part back
//! with its end.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use meshwork_base::Tick;
use tokio::time::Instant;

use super::estimate::{Estimate, Given, LARGEST, SMALLEST};
use super::received::Received;

/// What all connections of a process may have grown by; where its memory has a limit it is this part of that.
const ALL: u64 = 256 * 1024 * 1024;
const PART: u64 = 8;
/// Of four parts of it so many are for streams' larger windows, and so many for what lies unread: callers choose what they do not read.
const STREAMS: u64 = 3;
const UNREAD: u64 = 2;
/// The same for all connections of strangers, whatever they take it for, and for what of theirs lies unread.
const STRANGERS: u64 = 2;
const STRANGERS_UNREAD: u64 = 1;
/// No connection's window is larger: it can be full of frames that are small.
pub(super) const WIDEST: u32 = 48 * 1024 * 1024;

/// What the connections of a process may have grown by.
#[derive(Debug)]
pub(crate) struct Budget {
    most: AtomicU64,
    taken: AtomicU64,
    /// For what lies unread.
    unread: AtomicU64,
    /// By strangers, and of that for what lies unread.
    strangers: AtomicU64,
    strangers_unread: AtomicU64,
    /// How often it was asked for in vain.
    refused: AtomicU64,
    /// Memory is short.
    tight: AtomicBool,
}

impl Default for Budget {
    fn default() -> Self {
        let (taken, unread, strangers, strangers_unread, refused, tight) = Default::default();
        Self { most: AtomicU64::new(ALL), taken, unread, strangers, strangers_unread, refused, tight }
    }
}

/// What a connection grows for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Streams,
    Unread,
}

/// Takes it where the sum stays within the bound.
fn add(sum: &AtomicU64, bytes: u64, most: u64) -> bool {
    let more = |sum: u64| sum.checked_add(bytes).filter(|&sum| sum <= most);
    sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

impl Budget {
    /// The process may have so much memory.
    pub(crate) fn bound(&self, limit: u64) {
        self.most.store(limit / PART, Ordering::Relaxed);
    }

    pub(crate) fn set_tight(&self, tight: bool) {
        self.tight.store(tight, Ordering::Relaxed);
    }

    /// What connections may have grown by, all together.
    pub(crate) fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// What they have grown by.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// How often one should have, and could not.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// What there is for streams' larger windows.
    fn for_streams(&self) -> u64 {
        self.most() / 4 * STREAMS
    }

    fn take(&self, bytes: u32, why: For, is_stranger: bool) -> bool {
        let (bytes, is_unread) = (u64::from(bytes), why == For::Unread);
        let part = |parts: u64| self.most() / 4 * parts;
        let sums = [
            (is_unread, &self.unread, part(UNREAD)),
            (is_stranger, &self.strangers, part(STRANGERS)),
            (is_stranger && is_unread, &self.strangers_unread, part(STRANGERS_UNREAD)),
            (true, &self.taken, if is_unread { self.most() } else { self.for_streams() }),
        ];
        if self.tight.load(Ordering::Relaxed) {
            return false;
        }
        let counting = || sums.iter().filter(|(counts, ..)| *counts);
        let taken = counting().take_while(|(_, sum, most)| add(sum, bytes, *most)).count();
        let takes = taken == counting().count();
        if !takes {
            counting().take(taken).for_each(|(_, sum, _)| _ = sum.fetch_sub(bytes, Ordering::Relaxed));
        }
        takes
    }

    fn refuses(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// So much of it was for what lay unread.
    fn give_back(&self, bytes: u32, unread: u32, is_stranger: bool) {
        self.taken.fetch_sub(bytes.into(), Ordering::Relaxed);
        if is_stranger {
            self.strangers.fetch_sub(bytes.into(), Ordering::Relaxed);
            self.strangers_unread.fetch_sub(unread.into(), Ordering::Relaxed);
        }
        self.unread.fetch_sub(unread.into(), Ordering::Relaxed);
    }

    /// Too little is left for streams' larger windows.
    fn is_short(&self) -> bool {
        let step = u64::from(LARGEST).min(self.for_streams() / 2);
        self.taken() + step > self.for_streams()
    }
}

/// A connection whose window can be set.
pub(crate) trait Connection {
    /// Of all of its streams together.
    fn set_window(&mut self, window: u32);
}

impl<T, B> Connection for h2::client::Connection<T, B>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: bytes::Buf,
{
    fn set_window(&mut self, window: u32) {
        self.set_target_window_size(window);
    }
}

impl<T, B> Connection for h2::server::Connection<T, B>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: bytes::Buf,
{
    fn set_window(&mut self, window: u32) {
        self.set_target_window_size(window);
    }
}

/// What a connection is made with, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// The window of all of its streams together.
    pub(crate) window: u32,
    /// By so many streams' larger windows it grows when theirs do.
    pub(crate) streams: u32,
    /// They grow: it is not with the application beside us.
    pub(crate) grows: bool,
    /// Its peer has proven no identity, and all of those have a part of what windows may grow by.
    pub(crate) is_stranger: bool,
}

/// See the module's text.
pub(crate) struct Windows {
    received: Rc<Received>,
    budget: Arc<Budget>,
    estimate: Estimate,
    bounds: Bounds,
    /// What the connection's own window has grown by.
    grown: u32,
    /// So much of that was for what lay here unread.
    widened: u32,
    /// The peer has heard of the last time that it was widened when so much has been opened.
    told_at: u64,
    /// What DATA had come when a PING was last answered. More has been written by a peer that had seen the PING, and so forgets it:
    /// servers of gRPC count those between which they have said nothing.
    data: u64,
    since: Instant,
}

impl Windows {
    pub(crate) fn new(received: Rc<Received>, budget: Arc<Budget>, bounds: Bounds) -> Self {
        let (estimate, since) = (Estimate::new(), Instant::now());
        Self { received, budget, estimate, bounds, grown: 0, widened: 0, told_at: 0, data: 0, since }
    }

    /// The connection's task has a turn, and polls the connection behind it. `answered`: a PING of whoever has been. True: one is to be sent.
    pub(crate) fn turn(&mut self, answered: bool, may_ask: bool, connection: &mut impl Connection) -> bool {
        if !self.bounds.grows {
            return false;
        }
        let is_due = may_ask && self.estimate.is_enough(self.given());
        (answered || is_due) && self.look(answered, Tick::ZERO.after(self.since.elapsed()), connection)
    }

    /// The same at this time, where there is something to do.
    #[cold]
    fn look(&mut self, answered: bool, now: Tick, connection: &mut impl Connection) -> bool {
        let data = self.received.came().data;
        if answered {
            self.data = data;
            if let Some(wanted) = self.estimate.answered(self.given(), now) {
                self.grow(wanted, connection);
            }
            self.received.anew();
            return false;
        }
        let asks = data > self.data && self.estimate.may_ask(now);
        if asks {
            self.estimate.asks(now);
            self.received.anew();
        }
        asks
    }

    fn window(&self) -> u32 {
        self.bounds.window + self.grown
    }

    fn given(&self) -> Given {
        self.received.given(self.estimate.window(), self.window())
    }

    fn grow(&mut self, wanted: u32, connection: &mut impl Connection) {
        let more = (self.bounds.streams * (wanted - SMALLEST)).saturating_sub(self.grown);
        if self.received.is_half_unread(self.window()) || self.received.has_tiny(wanted) {
            return;
        }
        // Of one that was widened nothing more may be wanted.
        if more > 0 && !self.budget.take(more, For::Streams, self.bounds.is_stranger) {
            return self.budget.refuses();
        }
        self.received.flow().widens(wanted);
        self.grown += more;
        connection.set_window(self.window());
        self.estimate.grows(wanted);
        tracing::debug!(window = wanted, "HTTP/2 streams need a larger window");
    }

    /// The connection has been polled. What lies here of streams that are not read takes no room from those beside them.
    pub(crate) fn make_room(&mut self, connection: &mut impl Connection) {
        if self.grown == 0 {
            return;
        }
        let is_half_unread = self.received.is_half_unread(self.window());
        // While our socket takes nothing the peer cannot hear of room that it has already; where that is all that there will be, it
        // is too little.
        let is_told = self.received.opened() >= self.told_at || self.window() == WIDEST;
        let is_crowded = is_told && is_half_unread && !self.widen(connection);
        self.received.set_crowded(is_crowded);
        // Its life may be days. While there is too little for others it takes no more streams.
        self.received.set_spent(self.widened > 0 && !is_half_unread && self.budget.is_short());
    }

    #[cold]
    fn widen(&mut self, connection: &mut impl Connection) -> bool {
        let more = (self.window() / 2).min(WIDEST.saturating_sub(self.window()));
        if more == 0 || self.received.has_tiny(self.estimate.window()) {
            return false;
        }
        if !self.budget.take(more, For::Unread, self.bounds.is_stranger) {
            // Asked for with each poll, it is one refusal.
            if !self.received.is_crowded() {
                self.budget.refuses();
            }
            return false;
        }
        self.grown += more;
        self.widened += more;
        self.told_at = self.received.opened() + u64::from(more);
        connection.set_window(self.window());
        true
    }
}

impl Drop for Windows {
    /// Before that the peer may send as much at any time, whatever it was told since.
    fn drop(&mut self) {
        self.budget.give_back(self.grown, self.widened, self.bounds.is_stranger);
    }
}

#[cfg(test)]
mod tests;
