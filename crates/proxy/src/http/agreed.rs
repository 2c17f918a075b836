//! Our SETTINGS are in force for `h2` before its peer may go by them. A peer may use a larger window as soon as it has heard of it, before
//! it says so (RFC 9113 section 6.5.3): Jetty does that always, others by a race. `h2` goes by the one that all streams begin with until it
//! reads the acknowledgement, and resets the stream. So it is handed one behind the first frame of its peer, which is SETTINGS as well,
//! and the peer's own is taken out when that comes. A window that is larger for one side too early harms nobody.
//!
//! ```text
//! ours:  SETTINGS ────────────────────▶ peer
//! peer:  SETTINGS, HEADERS, DATA, ACK ─▶ Agreed ──▶ SETTINGS, ACK, HEADERS, DATA ──▶ h2
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use super::frames::{Head, Heads, Piece};

/// SETTINGS that acknowledge (RFC 9113 section 6.5).
const ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
/// Bytes that are looked at together.
const CHUNK: usize = 16 * 1024;

/// What comes on a connection, on its way to `h2`. Costs nothing once the peer has acknowledged.
#[derive(Debug)]
pub(crate) struct Agreed(Option<Box<UnderWay>>);

impl Agreed {
    /// `preface`: what comes before the first frame.
    pub(crate) fn new(preface: u32) -> Self {
        let incoming = Heads::after(preface);
        Self(Some(Box::new(UnderWay { incoming, frames: 0, waits: true, out: BytesMut::new() })))
    }

    /// Reads what `h2` is to get.
    #[inline]
    pub(crate) fn poll_read(
        &mut self,
        io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_some() { self.poll_slowly(io, cx, buf) } else { io.poll_read(cx, buf) }
    }

    #[cold]
    fn poll_slowly(
        &mut self,
        io: Pin<&mut impl AsyncRead>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(under_way) = &mut self.0 else { return io.poll_read(cx, buf) };
        let polled = under_way.poll_read(io, cx, buf);
        if under_way.is_over() {
            self.0 = None;
        }
        polled
    }
}

/// The peer's acknowledgement has not come.
#[derive(Debug)]
struct UnderWay {
    incoming: Heads,
    /// That have begun, as far as it matters.
    frames: u8,
    waits: bool,
    /// What `h2` gets next.
    out: BytesMut,
}

impl UnderWay {
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
        self.frames = self.frames.saturating_add(1);
        if self.frames == 1 && head.is_agreed() {
            // It says so first of all, and is heard.
            self.waits = false;
        }
        // A block that the peer begins with is an error, which is for `h2` to say.
        if self.frames == 2 {
            self.out.extend_from_slice(&ACK);
        }
        if self.frames > 1 && head.is_agreed() && head.len == 0 && head.stream == 0 {
            self.waits = false;
            return;
        }
        self.out.extend_from_slice(self.incoming.last());
    }
}

#[cfg(test)]
mod tests;
