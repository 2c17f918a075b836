//! What has come on one HTTP/2 connection, as the heads of its frames tell, and what its streams have given on of that. Whoever sets
//! the windows of the connection goes by it ([`super::windows`]), as do those of its streams ([`super::flow`]), and whoever looks for one
//! that takes another stream.

use std::cell::Cell;
use std::rc::Rc;

use tokio::time::Instant;

use super::estimate::Given;
use super::flow::{Flow, Told};
use super::frames::{Head, Kind};
use super::windows::WIDEST;

/// The window that a connection begins with (RFC 9113 section 6.9.2).
const FIRST: u64 = 65_535;
/// `h2` counts a frame as so many bytes, if it carries less, and ends a connection for too much of what nobody has read.
const FRAME: u64 = 256;
/// Frames after which it is judged how much those of a stream carry.
const BATCH: u32 = 64;

/// What has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Came {
    /// Frames by which a peer says something: HEADERS and DATA.
    pub(crate) frames: u64,
    /// What was used of the connection's window.
    pub(crate) data: u64,
}

impl Came {
    /// A frame.
    pub(crate) const fn add(&mut self, head: Head) {
        match head.kind {
            Kind::Data => {
                self.frames += 1;
                self.data += head.len as u64;
            }
            Kind::Headers => self.frames += 1,
            _ => {}
        }
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Received {
    came: Cell<Came>,
    /// What the peer was told that the connection's window is larger by, or open again.
    opened: Cell<u64>,
    /// Half of its window lies here unread, and it cannot grow.
    crowded: Cell<bool>,
    /// What its window has grown by is wanted elsewhere.
    spent: Cell<bool>,
    /// Counted anew with each.
    round: Cell<u32>,
    /// What the stream has given on that has given on most.
    most: Cell<u32>,
    /// The same of all together.
    all: Cell<u64>,
    /// A stream whose frames carry less than this in the middle is one of tiny ones.
    least: u64,
    /// What small frames that nobody has read may cost together.
    small_frames: u64,
    /// What a byte of those streams costs, all together.
    tiny: Cell<u64>,
    flow: Flow,
}

impl Received {
    /// `small_frames`: what small frames of the connection that nobody has read may cost, as `h2` counts.
    pub(crate) fn new(small_frames: usize) -> Self {
        // The widest window full of larger ones costs no more.
        let widest = u64::from(WIDEST);
        let small_frames = small_frames as u64;
        let least = (FRAME * widest).div_ceil(small_frames + widest);
        Self { least, small_frames, ..Self::default() }
    }

    /// More has come.
    pub(crate) fn comes(&self, more: Came) {
        let Came { frames, data } = self.came.get();
        self.came.set(Came { frames: frames + more.frames, data: data + more.data });
    }

    /// All that has come.
    pub(crate) fn came(&self) -> Came {
        self.came.get()
    }

    /// Windows of its streams.
    pub(crate) const fn flow(&self) -> &Flow {
        &self.flow
    }

    /// `h2` has told of so much room, in a stream or (0) in all.
    pub(super) fn was_told(&self, stream: u32, bytes: u32) {
        match stream {
            0 => self.opens(bytes),
            _ => self.flow.has_told(stream, bytes),
        }
    }

    /// The peer is told that it may send so much more on the connection.
    pub(super) fn opens(&self, bytes: u32) {
        self.opened.set(self.opened.get() + u64::from(bytes));
    }

    /// All that the peer was told of.
    pub(super) fn opened(&self) -> u64 {
        self.opened.get()
    }

    pub(crate) fn set_crowded(&self, is_crowded: bool) {
        self.crowded.set(is_crowded);
    }

    /// The most that one stream has given on since it is counted.
    pub(super) fn most(&self) -> u64 {
        self.most.get().into()
    }

    /// What was given on since it is counted, where streams have such a window, and all together this one.
    pub(super) fn given(&self, window: u32, of_connection: u32) -> Given {
        let (one, all) = (self.most(), self.all.get());
        let shared = all.saturating_mul(window.into()) / u64::from(of_connection);
        Given { one, all, shared }
    }

    /// It is counted anew.
    pub(super) fn anew(&self) {
        self.round.set(self.round.get().wrapping_add(1));
        self.most.set(0);
        self.all.set(0);
    }

    /// Whether some of its streams carry frames so small that windows of this size full of them would cost half of what they may.
    pub(super) fn has_tiny(&self, window: u32) -> bool {
        self.tiny.get().saturating_mul(window.into()) > self.small_frames / 2
    }

    /// Whether more than half of the connection's window lies here unread; at two thirds it is told for certain, since `h2` keeps
    /// up to a third from the peer until there is more to give.
    pub(super) fn is_half_unread(&self, window: u32) -> bool {
        let (data, third) = (self.came.get().data, u64::from(window) / 3);
        data >= third && (FIRST + self.opened.get()).saturating_sub(data) < third
    }

    pub(super) fn set_spent(&self, is_spent: bool) {
        self.spent.set(is_spent);
    }

    /// Whether new streams should go to another connection, and this one end when those that it has have ended.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent.get()
    }

    /// Whether it is better that new streams go to another connection: what few do not read takes all of this one's window.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.get()
    }
}

/// One stream's part in it.
#[derive(Debug)]
pub(crate) struct Part {
    received: Rc<Received>,
    told: Told,
    round: u32,
    /// What it has given on in that round.
    bytes: u32,
    /// Frames that were not judged yet, and what they carried.
    frames: u32,
    carried: u32,
    /// What one of its bytes costs, if its frames are tiny.
    tiny: u64,
}

impl Part {
    pub(crate) fn new(received: &Rc<Received>, stream: u32) -> Self {
        let (received, told) = (Rc::clone(received), Told::new(stream, &received.flow));
        Self { received, told, round: 0, bytes: 0, frames: 0, carried: 0, tiny: 0 }
    }

    /// There is nothing to give on.
    pub(crate) const fn waits(&mut self) {
        self.told.waits();
    }

    /// A frame that carries so much was taken by whoever has room for it.
    pub(crate) fn gives(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let round = self.received.round.get();
        if self.round != round {
            (self.round, self.bytes) = (round, 0);
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.received.most.set(self.received.most.get().max(self.bytes));
        self.received.all.set(self.received.all.get() + u64::from(bytes));
        self.frames += 1;
        self.carried = self.carried.saturating_add(bytes);
        if self.frames == BATCH {
            self.judge();
        }
        self.told.gives(bytes, self.tiny > 0, &self.received.flow, Instant::now);
    }

    fn judge(&mut self) {
        let carried = u64::from(std::mem::take(&mut self.carried)).max(1);
        self.frames = 0;
        let is_tiny = carried < self.received.least * u64::from(BATCH);
        self.costs(if is_tiny { (FRAME * u64::from(BATCH)).div_ceil(carried) } else { 0 });
    }

    fn costs(&mut self, tiny: u64) {
        let before = std::mem::replace(&mut self.tiny, tiny);
        self.received.tiny.set(self.received.tiny.get() - before + tiny);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.costs(0);
    }
}

#[cfg(test)]
mod tests;
