//! The windows of one HTTP/2 connection: how much of each stream may be on its way to us unread. A stream moves no more than
//! its window in each round trip, so over a distance it has to be larger; and what its reader does not read of it is our memory.
//! So windows are small, grow on connections whose streams are seen to need it ([`super::estimate`]), and are small again soon.
//!
//! What streams may hold beyond their small windows comes out of what the whole process has for it, and the window of the
//! connection grows by as much: those beside them keep theirs. Where it begins to be held by streams that are not read, or memory
//! is short, the windows are taken back. Small messages that are not read cost more than their bytes, and `h2` ends a connection for
//! too many of them: one whose streams carry such grows less.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;

use h2::{FlowControl, RecvStream};
use meshwork_base::Tick;
use tokio::time::{Instant, Sleep, sleep};

use super::estimate::{Estimate, Next, SMALLEST};

/// What all connections of a process may have grown by, and the part of its memory where that has a limit.
const ALL: u64 = 64 * 1024 * 1024;
const PART: u64 = 8;
/// So many streams may be found to be read no more, each with all of its window.
const STALLED: u32 = 2;
/// It is looked again after so many bytes, and while windows are large also after this time.
const STEP: u64 = 16 * 1024;
const PERIOD: Duration = Duration::from_secs(1);
/// Streams hold more than they should for so long, also while what came at once is being passed on: they are not read.
const PATIENCE: Duration = Duration::from_millis(200);
/// `h2` counts a frame as so many bytes, if it carries less; of what that may come to, this part is for one stream.
const FRAME: u64 = 256;
const SHARE: u64 = 4;
/// Streams that are remembered before it is looked which of them have ended.
const REMEMBERED: usize = 16;

/// What the connections of a process may have grown by.
#[derive(Debug)]
pub(crate) struct Budget {
    most: AtomicU64,
    taken: AtomicU64,
    /// Memory is short.
    tight: AtomicBool,
}

impl Default for Budget {
    fn default() -> Self {
        Self { most: AtomicU64::new(ALL), taken: AtomicU64::new(0), tight: AtomicBool::new(false) }
    }
}

impl Budget {
    /// The process may have so much memory.
    pub(crate) fn bound(&self, limit: u64) {
        self.most.store((limit / PART).min(ALL), Ordering::Relaxed);
    }

    pub(crate) fn set_tight(&self, tight: bool) {
        self.tight.store(tight, Ordering::Relaxed);
    }

    fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        let more = |taken: u64| taken.checked_add(bytes).filter(|&sum| sum <= most);
        !self.is_tight() && self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What the streams of one connection have given on.
#[derive(Debug, Default)]
pub(crate) struct Received {
    round: Cell<u32>,
    /// By the one that has given on most in this round.
    most: Cell<u32>,
    streams: RefCell<Vec<Weak<Open>>>,
    remembers: Cell<usize>,
}

/// A stream of which more is to come.
#[derive(Debug)]
struct Open {
    flow: FlowControl,
    /// What it has given on: bytes, in so many frames.
    bytes: Cell<u64>,
    frames: Cell<u64>,
    /// The same of one round.
    round: Cell<(u32, u32)>,
}

/// What such a stream holds that has come and was not taken, and how much its frames carry.
#[derive(Clone, Copy, Debug)]
struct Held {
    bytes: u64,
    frame: u64,
    /// What it has given on in this round.
    given: u64,
}

impl Held {
    /// What so many bytes of its frames cost as `h2` counts, beside what they are.
    const fn cost(self, bytes: u64) -> u64 {
        bytes.saturating_mul(FRAME.saturating_sub(self.frame)) / self.frame
    }
}

/// One stream's part in it.
#[derive(Debug, Default)]
pub(crate) struct Part {
    round: u32,
    bytes: u32,
    stream: Option<Rc<Open>>,
}

impl Received {
    /// So much was taken of a stream by whoever has room for it. `first`: nothing was before.
    pub(crate) fn gives(&self, part: &mut Part, bytes: usize, first: bool, stream: &mut RecvStream) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if part.round != self.round.get() {
            (part.round, part.bytes) = (self.round.get(), 0);
        }
        part.bytes = part.bytes.saturating_add(bytes);
        self.most.set(self.most.get().max(part.bytes));
        // What is whole already holds nothing for long.
        if first && !stream.is_end_stream() {
            let flow = stream.flow_control().clone();
            let stream =
                Rc::new(Open { flow, bytes: Cell::new(0), frames: Cell::new(0), round: Cell::default() });
            self.remember(&stream);
            part.stream = Some(stream);
        }
        if let Some(stream) = &part.stream {
            stream.bytes.set(stream.bytes.get() + u64::from(bytes));
            stream.frames.set(stream.frames.get() + 1);
            stream.round.set((part.round, part.bytes));
        }
    }

    fn remember(&self, stream: &Rc<Open>) {
        let mut streams = self.streams.borrow_mut();
        if streams.len() >= self.remembers.get().max(REMEMBERED) {
            streams.retain(|stream| stream.strong_count() > 0);
            self.remembers.set(streams.len() * 2);
        }
        streams.push(Rc::downgrade(stream));
    }

    fn held(&self) -> Vec<Held> {
        let given = |(round, bytes): (u32, u32)| if round == self.round.get() { bytes.into() } else { 0 };
        let held = |stream: Rc<Open>| Held {
            given: given(stream.round.get()),
            bytes: stream.flow.used_capacity() as u64,
            frame: (stream.bytes.get() / stream.frames.get().max(1)).max(1),
        };
        self.streams.borrow().iter().filter_map(Weak::upgrade).map(held).collect()
    }

    fn anew(&self) {
        self.round.set(self.round.get().wrapping_add(1));
        self.most.set(0);
    }
}

/// A connection whose windows can be set.
pub(crate) trait Connection {
    /// Of each stream; false: the last one has not been agreed to yet.
    fn set_stream_window(&mut self, window: u32) -> bool;
    /// Of all together.
    fn set_window(&mut self, window: u32);
}

impl<T, B> Connection for h2::client::Connection<T, B>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: bytes::Buf,
{
    fn set_stream_window(&mut self, window: u32) -> bool {
        self.set_initial_window_size(window).is_ok()
    }

    fn set_window(&mut self, window: u32) {
        self.set_target_window_size(window);
    }
}

impl<T, B> Connection for h2::server::Connection<T, B>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: bytes::Buf,
{
    fn set_stream_window(&mut self, window: u32) -> bool {
        self.set_initial_window_size(window).is_ok()
    }

    fn set_window(&mut self, window: u32) {
        self.set_target_window_size(window);
    }
}

/// What a turn knows of the connection.
pub(crate) struct Seen {
    /// Bytes that have come on it so far.
    pub(crate) heard: u64,
    /// A PING has been answered.
    pub(crate) answered: bool,
    /// None is on its way.
    pub(crate) may_ask: bool,
}

/// What a connection was made with.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// The window of all of its streams together.
    pub(crate) window: u32,
    /// What small frames that nobody has read yet may cost.
    pub(crate) small_frames: usize,
}

/// See the module's text.
pub(crate) struct Windows {
    received: Rc<Received>,
    budget: Arc<Budget>,
    estimate: Estimate,
    bounds: Bounds,
    /// What the connection's own window has grown by.
    grown: u32,
    /// Since when streams have been found to hold too much.
    holds: Option<Tick>,
    looked: u64,
    since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Windows {
    pub(crate) fn new(received: Rc<Received>, budget: Arc<Budget>, bounds: Bounds) -> Self {
        let (estimate, since) = (Estimate::new(), Instant::now());
        Self { received, budget, estimate, bounds, grown: 0, holds: None, looked: 0, since, timer: None }
    }

    fn now(&self) -> Tick {
        Tick::ZERO.after(self.since.elapsed())
    }

    /// The connection's task has a turn; true: a PING is to be sent. To be called when the connection has been polled; what is
    /// changed wants another poll.
    pub(crate) fn turn(
        &mut self,
        cx: &mut Context<'_>,
        seen: &Seen,
        connection: &mut impl Connection,
    ) -> bool {
        let given = u64::from(self.received.most.get());
        let far = seen.heard - self.looked >= STEP;
        let rang = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
        if !far && !rang && !seen.answered && !self.estimate.is_enough(given) {
            return false;
        }
        let now = self.now();
        let asks = self.look(seen, rang, now, connection);
        self.wait(cx, rang);
        asks
    }

    /// Looks; true: a PING is to be sent. `rang`: it is time to.
    fn look(&mut self, seen: &Seen, rang: bool, now: Tick, connection: &mut impl Connection) -> bool {
        let far = seen.heard - self.looked >= STEP;
        if far {
            self.looked = seen.heard;
        }
        if seen.answered {
            if let Some(wanted) = self.estimate.answered(self.received.most.get().into(), now) {
                self.grow(wanted, connection);
            }
            self.received.anew();
        }
        if self.grown > 0 && (far || rang) {
            self.reconsider(now, connection);
        }
        match self.estimate.look(self.received.most.get().into(), now) {
            Next::Ask if seen.may_ask => {
                self.estimate.asks(now);
                true
            }
            Next::Anew => {
                self.received.anew();
                false
            }
            Next::Nothing | Next::Ask => false,
        }
    }

    fn grow(&mut self, wanted: u32, connection: &mut impl Connection) {
        let half = u64::from(self.estimate.window() / 2);
        let held = self.received.held();
        let stalled = held.iter().filter(|held| held.bytes >= half && held.given < half).count();
        let cost = held.iter().map(|held| held.cost(wanted.into())).max().unwrap_or_default();
        let grown = STALLED * (wanted - SMALLEST);
        let more = grown.saturating_sub(self.grown);
        if stalled >= STALLED as usize
            || cost > self.share_of_small_frames()
            || !self.budget.take(more.into())
        {
            return;
        }
        if !connection.set_stream_window(wanted) {
            return self.budget.give_back(more.into());
        }
        self.grown += more;
        connection.set_window(self.bounds.window + self.grown);
        self.estimate.grows(wanted);
        tracing::debug!(window = wanted, "HTTP/2 streams need a larger window");
    }

    /// Whether windows are still to be so large, and what they have held is given back.
    fn reconsider(&mut self, now: Tick, connection: &mut impl Connection) {
        let held = self.received.held();
        let beyond: u64 = held.iter().map(|held| held.bytes.saturating_sub(SMALLEST.into())).sum();
        let small: u64 = held.iter().map(|held| held.cost(held.bytes.saturating_sub(SMALLEST.into()))).sum();
        if beyond <= u64::from(self.grown / STALLED) {
            self.holds = None;
        } else if self.holds.is_none() {
            self.holds = Some(now);
        }
        let too_much = self.holds.is_some_and(|since| now.since(since) >= PATIENCE);
        let costs = small > self.share_of_small_frames() || self.budget.is_tight();
        let to = match self.estimate.window() {
            // Readers may be no more than slow, and need some of it.
            window if too_much && !costs => (window / 2).max(SMALLEST),
            _ => SMALLEST,
        };
        let ends = too_much || costs || !self.estimate.is_needed(now);
        if self.estimate.is_grown() && ends && connection.set_stream_window(to) {
            tracing::debug!(beyond, window = to, "HTTP/2 streams get a smaller window");
            self.holds = None;
            self.estimate.shrinks(to, too_much || costs, now);
        } else if !self.estimate.is_grown() && beyond == 0 {
            connection.set_window(self.bounds.window);
            self.budget.give_back(std::mem::take(&mut self.grown).into());
        }
    }

    const fn share_of_small_frames(&self) -> u64 {
        self.bounds.small_frames as u64 / SHARE
    }

    /// Has the task woken again as long as something has grown.
    fn wait(&mut self, cx: &mut Context<'_>, rang: bool) {
        if self.grown == 0 {
            self.timer = None;
        } else if rang || self.timer.is_none() {
            let timer = self.timer.insert(Box::pin(sleep(PERIOD)));
            if timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.budget.give_back(self.grown.into());
    }
}

#[cfg(test)]
mod tests;
