//! Larger windows are in force for `h2` from when its peer may go by them. A peer may use a larger window as soon as it has heard of
//! it, before it says so (RFC 9113 section 6.5.3): Jetty does that always, others by a race. `h2` goes by the old one until it reads
//! the acknowledgement, and resets the stream. So it is handed one in front of the next frame that comes once SETTINGS have gone, and
//! the peer's own is taken out when that comes. A window that is larger for one side too early harms nobody; nothing else changes in
//! the middle of a connection.
//!
//! ```text
//! ours:  SETTINGS ──────────▶ peer
//! peer:  DATA, DATA, ACK ──▶ Agreed ──▶ ACK, DATA, DATA ──▶ h2
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use super::frames::{Head, Heads, Kind, Piece};
use super::received::Received;

/// SETTINGS that acknowledge (RFC 9113 section 6.5).
const ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
/// Bytes that are looked at together.
const CHUNK: usize = 16 * 1024;

/// Whether a peer has agreed to what it was last told, on the way in. Costs nothing where nothing was told since the beginning.
#[derive(Debug)]
pub(crate) struct Agreed {
    received: Rc<Received>,
    /// The first SETTINGS have gone. What they say holds from the beginning, and the answer to them is the peer's.
    has_begun: bool,
    under_way: Option<Box<UnderWay>>,
}

impl Agreed {
    pub(crate) const fn new(received: Rc<Received>) -> Self {
        Self { received, has_begun: false, under_way: None }
    }

    /// A frame of ours goes. `incoming`: where we are in what has come and `h2` has read.
    #[inline]
    pub(crate) fn goes(&mut self, head: Head, incoming: &Heads) {
        if head.kind == Kind::Settings && !head.acknowledges() {
            self.tells(incoming);
        }
    }

    #[cold]
    fn tells(&mut self, incoming: &Heads) {
        if !std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        // More is told only when the peer has agreed to this (`Windows`).
        self.received.set_agreed(false);
        self.under_way = Some(Box::new(UnderWay::new(incoming.clone())));
    }

    /// Reads what `h2` is to get.
    #[inline]
    pub(crate) fn poll_read(
        &mut self,
        io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.under_way.is_some() { self.poll_slowly(io, cx, buf) } else { io.poll_read(cx, buf) }
    }

    #[cold]
    fn poll_slowly(
        &mut self,
        io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(under_way) = &mut self.under_way else { return io.poll_read(cx, buf) };
        ready!(under_way.poll_read(io, cx, buf))?;
        if under_way.is_over() {
            self.under_way = None;
            self.received.set_agreed(true);
        }
        Poll::Ready(Ok(()))
    }
}

/// SETTINGS have gone, and the peer's acknowledgement has not come.
#[derive(Debug)]
struct UnderWay {
    incoming: Heads,
    /// So many bytes of a head had been read before.
    begun: usize,
    /// `h2` has to be told.
    tells: bool,
    /// The peer has to say so.
    waits: bool,
    /// What `h2` gets next.
    out: BytesMut,
}

impl UnderWay {
    fn new(incoming: Heads) -> Self {
        let begun = incoming.part().len();
        Self { incoming, begun, tells: true, waits: true, out: BytesMut::new() }
    }

    fn is_over(&self) -> bool {
        !self.waits && self.out.is_empty()
    }

    fn poll_read(
        &mut self,
        mut io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.out.is_empty() {
            let mut chunk = [MaybeUninit::uninit(); CHUNK];
            let mut chunk = ReadBuf::uninit(&mut chunk);
            ready!(io.as_mut().poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.comes(chunk.filled());
        }
        let count = self.out.len().min(buf.remaining());
        buf.put_slice(&self.out.split_to(count));
        Poll::Ready(Ok(()))
    }

    fn comes(&mut self, mut bytes: &[u8]) {
        while self.waits
            && let Some(piece) = self.incoming.next(&mut bytes)
        {
            match piece {
                Piece::Head(head) => self.head(head),
                Piece::Payload(payload) => self.out.extend_from_slice(payload),
            }
        }
        if !self.waits {
            self.out.extend_from_slice(bytes);
        }
    }

    fn head(&mut self, head: Head) {
        let begun = std::mem::take(&mut self.begun);
        if begun == 0 {
            // Nothing may come between the frames of a block (RFC 9113 section 4.3).
            if head.kind != Kind::Continuation && std::mem::take(&mut self.tells) {
                self.out.extend_from_slice(&ACK);
            }
            if head.kind == Kind::Settings && head.acknowledges() && head.len == 0 {
                self.waits = false;
                return;
            }
        }
        self.out.extend_from_slice(&self.incoming.last()[begun..]);
    }
}

#[cfg(test)]
mod tests;
