//! The windows of one connection's streams over HTTP/2, as its peer is told of them. `h2` has one size for all of them, and a peer hears
//! of another by SETTINGS, of which streams that stand still take no notice at some peers, and which others follow before they say so
//! (RFC 9113 section 6.9.2). So `h2` is given the largest window that there is, and what is told is said here, below it: SETTINGS say
//! [`SMALLEST`], for good, and each stream hears by WINDOW_UPDATE of the room that it has, which is a matter of each stream alone.
//!
//! ```text
//! reader ──has given on──▶ Told ──owes──▶ Flow ──WINDOW_UPDATE, between two frames──┐
//!                                          ▲ what comes of each stream              ▼
//! h2 ────────────────────frames──────────▶ Writes ─────────────────────────────▶ Gathered
//! ```

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::{Context, Waker};

use tokio::time::Instant;

use super::estimate::SMALLEST;

/// What `h2` takes for the window of a stream (RFC 9113 section 6.9.1: the largest).
pub(crate) const UNBOUNDED: u32 = (1 << 31) - 1;
/// So much has a stream to have given on at least before `h2` tells it of room in that.
const FAR: u64 = 1 << 29;
/// So much has a stream given on when it is known whether its frames are tiny.
const JUDGED: u64 = 8 * 1024;
/// So many times what it has given on may be on the way of a stream: it has the largest window after three round trips.
const EARNED: u64 = 8;
/// Streams that are known. More are open only at peers who begin what they may not.
const STREAMS: usize = 8 * 1024;
/// What has come of padding before its peer is told that there is room for it again.
const PADDING: u32 = SMALLEST / 4;

const WINDOW_UPDATE: u8 = 8;

/// A stream that its peer has not ended.
#[derive(Debug)]
struct Open {
    stream: u32,
    /// What the peer may send on it.
    left: u32,
    /// What of that was padding, and was not told to be free again.
    padding: u32,
}

/// How what has come on a stream stands to what its peer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comes {
    Within,
    /// The peer was never told of room for that.
    Beyond,
    /// Nothing is known of that stream.
    Unknown,
}

/// See the module's text. Shared between whoever looks at the frames of a connection, its task, and those who read its streams.
#[derive(Debug)]
pub(crate) struct Flow {
    /// Of each stream that is read as it comes.
    window: Cell<u32>,
    /// `h2` goes by our SETTINGS ([`super::agreed`]). Until then it would take what comes by more room for too much.
    agreed: Cell<bool>,
    /// A stream has moved so much that `h2` may tell of room in it.
    far: Cell<bool>,
    /// What `h2` has written ends with a frame, and no block of fields goes on behind it.
    between: Cell<bool>,
    owes: Cell<bool>,
    owed: RefCell<Vec<(u32, u32)>>,
    /// Ascending.
    open: RefCell<VecDeque<Open>>,
    /// Padding of all of them that `h2` has released by itself, as it has what was given on.
    padding: Cell<u64>,
    /// The youngest stream.
    last: Cell<u32>,
    task: RefCell<Option<Waker>>,
}

impl Default for Flow {
    fn default() -> Self {
        let (agreed, far, between, owes) = Default::default();
        let (owed, open, padding, last, task) = Default::default();
        Self { window: Cell::new(SMALLEST), agreed, far, between, owes, owed, open, padding, last, task }
    }
}

fn find(open: &VecDeque<Open>, stream: u32) -> Result<usize, usize> {
    open.binary_search_by_key(&stream, |open| open.stream)
}

impl Flow {
    #[cfg(test)]
    pub(super) fn window(&self) -> u32 {
        self.window.get()
    }

    /// How much larger streams' windows have become.
    pub(crate) fn grown(&self) -> u32 {
        self.window.get() - SMALLEST
    }

    /// Streams may have so much on the way from now on.
    pub(super) fn widens(&self, window: u32) {
        self.window.set(window);
    }

    /// `h2` reads that our SETTINGS are acknowledged, which is before it hears of any stream.
    pub(crate) fn agrees(&self) {
        self.agreed.set(true);
    }

    /// The head of a stream, or what follows its body.
    pub(crate) fn begins(&self, stream: u32) {
        if stream <= self.last.get() {
            return;
        }
        self.last.set(stream);
        let mut open = self.open.borrow_mut();
        if open.len() == STREAMS {
            open.drain(..STREAMS / 2);
        }
        open.push_back(Open { stream, left: SMALLEST, padding: 0 });
    }

    /// A frame of its body has come, of this length.
    pub(crate) fn comes(&self, stream: u32, len: u32) -> Comes {
        let mut open = self.open.borrow_mut();
        let Ok(at) = find(&open, stream) else { return Comes::Unknown };
        let is_within = open[at].left >= len;
        open[at].left = open[at].left.saturating_sub(len);
        if is_within { Comes::Within } else { Comes::Beyond }
    }

    /// So much of that was padding: nobody gives it on.
    pub(crate) fn pads(&self, stream: u32, bytes: u32) {
        self.padding.set(self.padding.get() + u64::from(bytes));
        if self.padding.get() >= FAR / 4 {
            self.far.set(true);
        }
        let mut open = self.open.borrow_mut();
        let Ok(at) = find(&open, stream) else { return };
        open[at].padding += bytes;
        if open[at].padding >= PADDING {
            let padding = std::mem::take(&mut open[at].padding);
            self.owe(stream, padding);
        }
    }

    /// Nothing more will come of it; whether it was open.
    pub(crate) fn ends(&self, stream: u32) -> bool {
        let mut open = self.open.borrow_mut();
        let found = find(&open, stream);
        found.map(|at| open.remove(at)).is_ok()
    }

    /// Between two frames others may be written.
    pub(super) fn set_between(&self, is_between: bool) {
        self.between.set(is_between);
    }

    #[cfg(test)]
    pub(super) fn goes_far(&self) {
        self.far.set(true);
    }

    /// `h2` may tell of room that was told already.
    pub(super) fn is_far(&self) -> bool {
        self.far.get()
    }

    /// `h2` itself has told of room in a stream.
    pub(super) fn has_told(&self, stream: u32, bytes: u32) {
        let mut open = self.open.borrow_mut();
        if let Ok(at) = find(&open, stream) {
            open[at].left = open[at].left.saturating_add(bytes);
        }
    }

    /// How many streams are open.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// What the peer of this stream may send.
    #[cfg(test)]
    pub(super) fn left(&self, stream: u32) -> Option<u32> {
        let open = self.open.borrow();
        find(&open, stream).ok().map(|at| open[at].left)
    }

    #[cold]
    fn owe(&self, stream: u32, bytes: u32) {
        self.owed.borrow_mut().push((stream, bytes));
        if !self.owes.replace(true)
            && let Some(task) = self.task.borrow_mut().take()
        {
            task.wake();
        }
    }

    /// The connection's task wants to hear when something is to be told.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        let mut task = self.task.borrow_mut();
        if task.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
    }

    /// What is to be told, where it can be told now: to be written before anything else is.
    pub(crate) fn updates(&self) -> Option<Vec<u8>> {
        let may_be = self.owes.get() && self.agreed.get() && self.between.get();
        may_be.then(|| self.take()).filter(|frames| !frames.is_empty())
    }

    #[cold]
    fn take(&self) -> Vec<u8> {
        self.owes.set(false);
        let mut open = self.open.borrow_mut();
        let mut frames = Vec::new();
        for (stream, bytes) in self.owed.borrow_mut().drain(..) {
            // A peer that has ended it long ago may take that for an error (RFC 9113 section 5.1).
            let Ok(at) = find(&open, stream) else { continue };
            let bytes = bytes.min(UNBOUNDED - open[at].left.min(UNBOUNDED));
            if bytes > 0 {
                open[at].left += bytes;
                frames.extend([0, 0, 4, WINDOW_UPDATE, 0]);
                frames.extend(stream.to_be_bytes());
                frames.extend(bytes.to_be_bytes());
            }
        }
        frames
    }
}

/// What the peer of one stream was told, for whoever reads it.
#[derive(Debug)]
pub(crate) struct Told {
    stream: u32,
    given: u64,
    told: u64,
    /// When so much has been given on it is looked at.
    next: u64,
    /// All that has come was read.
    waits: bool,
    /// When that was so last.
    drained: Option<Instant>,
}

/// How much of a window its peer may have left when it is told of more: what it moves in a round trip is no less, and shows that it fills the
/// window ([`super::estimate`]).
const fn most_of(window: u32) -> u64 {
    window as u64 * 3 / 4
}

impl Told {
    pub(super) fn new(stream: u32, flow: &Flow) -> Self {
        let told = u64::from(SMALLEST);
        // Where windows have grown the way is long, and it is told of more at once.
        let next = if flow.window.get() > SMALLEST { JUDGED } else { told - most_of(SMALLEST) };
        Self { stream, given: 0, told, next, waits: false, drained: None }
    }

    /// There is nothing to read.
    pub(super) const fn waits(&mut self) {
        self.waits = true;
    }

    /// So much more was given on. `are_tiny`: in frames of which a large window would hold too many.
    pub(super) fn gives(&mut self, bytes: u32, are_tiny: bool, flow: &Flow, now: impl FnOnce() -> Instant) {
        self.given += u64::from(bytes);
        // It was until now.
        let drained = std::mem::take(&mut self.waits);
        if self.given >= self.next {
            let now = now();
            self.drained = if drained { Some(now) } else { self.drained };
            self.look(now, if are_tiny { SMALLEST } else { flow.window.get() }, flow);
        } else if drained && self.drained.is_some() {
            self.drained = Some(now());
        }
    }

    #[cold]
    fn look(&mut self, now: Instant, most: u32, flow: &Flow) {
        let drained = *self.drained.get_or_insert(now);
        // A reader that has not read all for seconds is slower than the way here, and needs no large window.
        let slow = u32::try_from(now.saturating_duration_since(drained).as_secs()).unwrap_or(u32::MAX);
        // One that begins has no large window before it has shown that it moves as much.
        let shown = self.given.max(u64::from(SMALLEST) / 2);
        let earned = u32::try_from(shown.saturating_mul(EARNED)).unwrap_or(u32::MAX);
        let window = most.checked_shr(slow).unwrap_or_default().min(earned).max(SMALLEST);
        if self.given >= FAR {
            flow.far.set(true);
        }
        let told = self.given + u64::from(window);
        if told > self.told {
            flow.owe(self.stream, u32::try_from(told - self.told).unwrap_or(UNBOUNDED));
            self.told = told;
        }
        self.next = self.told - most_of(window);
    }
}

#[cfg(test)]
mod tests;
