//! What `h2` writes on a connection, on its way to the socket: SETTINGS that say of streams' windows what is true ([`super::flow`]), and
//! between two of its frames what their peer is told of those windows besides.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::estimate::SMALLEST;
use super::frames::{Head, Heads, Increment, Kind, Piece};
use super::received::Received;
use crate::gather::{Gathered, written};

/// SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 section 6.5.2), and how long a setting is.
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
const SETTING: usize = 6;

/// Where in a frame bytes are that others take the place of.
#[derive(Clone, Copy, Debug, Default)]
struct Altering {
    head: Option<Head>,
    at: usize,
    setting: [u8; 2],
}

impl Altering {
    /// What stands in the place of the next byte of the frame's payload.
    fn next(&mut self, byte: u8) -> u8 {
        let at = self.at;
        self.at += 1;
        match self.head {
            Some(head) if head.kind == Kind::Settings => match (at % SETTING).checked_sub(self.setting.len())
            {
                None => {
                    self.setting[at % SETTING] = byte;
                    byte
                }
                Some(at) if self.setting == INITIAL_WINDOW_SIZE => SMALLEST.to_be_bytes()[at],
                Some(_) => byte,
            },
            // It was told before, and none of nothing would be an error (RFC 9113 section 6.9).
            Some(head) if head.is_of_stream() => 1u32.to_be_bytes()[at.min(3)],
            _ => byte,
        }
    }
}

/// See the module's text.
pub(crate) struct Writes {
    io: Gathered,
    received: Rc<Received>,
    heads: Heads,
    in_block: bool,
    /// While an update of a window passes.
    update: Option<(u32, Increment)>,
    altering: Altering,
    /// Our SETTINGS have begun to pass, and have passed.
    settles: bool,
    settled: bool,
}

impl Writes {
    /// `preface`: what passes before the first frame.
    pub(crate) fn new(io: Gathered, received: Rc<Received>, preface: u32) -> Self {
        let (heads, altering) = (Heads::after(preface), Altering::default());
        let (in_block, settles, settled) = Default::default();
        Self { io, received, heads, in_block, update: None, altering, settles, settled }
    }

    /// What there is to read.
    pub(crate) const fn io(&mut self) -> &mut Gathered {
        &mut self.io
    }

    /// Nothing is said any more.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.received.flow().set_between(false);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Writes; whoever wants to hears of what has gone.
    pub(crate) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
        mut sees: impl FnMut(&Piece<'_>),
    ) -> Poll<io::Result<usize>> {
        if let Some(updates) = self.received.flow().updates() {
            self.io.put(&updates);
        }
        if !self.settled || (self.received.flow().is_far() && self.tells_of_streams(bufs)) {
            return Poll::Ready(Ok(self.alter(bufs, sees)));
        }
        let count = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        written(bufs, count).for_each(|part| self.goes(part, &mut sees));
        Poll::Ready(Ok(count))
    }

    fn goes(&mut self, mut bytes: &[u8], sees: &mut impl FnMut(&Piece<'_>)) {
        while let Some(piece) = self.heads.next(&mut bytes) {
            sees(&piece);
            match piece {
                Piece::Head(head) => self.begins(head),
                Piece::Payload(payload) => {
                    if let Some((stream, update)) = &mut self.update
                        && let Some(bytes) = update.read(payload)
                    {
                        self.received.was_told(*stream, bytes);
                    }
                }
            }
        }
        self.received.flow().set_between(self.heads.is_between() && !self.in_block);
    }

    fn begins(&mut self, head: Head) {
        self.in_block = head.leaves_block_open(self.in_block);
        self.update = (head.kind == Kind::WindowUpdate).then(|| (head.stream, Increment::default()));
        self.settles |= head.kind == Kind::Settings;
        if head.kind == Kind::Reset {
            self.received.flow().ends(head.stream);
        }
    }

    /// Whether `h2` says that there is room in a stream.
    #[cold]
    fn tells_of_streams(&self, bufs: &[IoSlice<'_>]) -> bool {
        let mut heads = self.heads.clone();
        bufs.iter().any(|buf| {
            let mut bytes = &buf[..];
            std::iter::from_fn(|| heads.next(&mut bytes))
                .any(|piece| matches!(piece, Piece::Head(head) if head.is_of_stream()))
        })
    }

    /// Writes all of it, and what is to stand there in place of what is not true.
    #[cold]
    fn alter(&mut self, bufs: &[IoSlice<'_>], mut sees: impl FnMut(&Piece<'_>)) -> usize {
        if self.settled {
            // What has begun before passes as it is.
            self.altering = Altering::default();
        }
        let mut bytes = bufs.iter().flat_map(|buf| buf.iter().copied()).collect::<Vec<_>>();
        let mut heads = self.heads.clone();
        let mut at = 0;
        while at < bytes.len() {
            let mut rest = &bytes[at..];
            let (head, is_payload) = match heads.next(&mut rest) {
                Some(Piece::Head(head)) => (Some(head), false),
                Some(Piece::Payload(_)) => (None, true),
                None => (None, false),
            };
            let end = bytes.len() - rest.len();
            if head.is_some() {
                self.altering = Altering { head, ..Altering::default() };
            }
            if is_payload {
                bytes[at..end].iter_mut().for_each(|byte| *byte = self.altering.next(*byte));
            }
            at = end;
        }
        self.io.put(&bytes);
        self.goes(&bytes, &mut sees);
        self.settled |= self.settles && self.heads.is_between();
        bytes.len()
    }
}

#[cfg(test)]
mod tests;
