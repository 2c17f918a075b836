//! Writes of one turn of an HTTP/2 connection, put together.
//!
//! `h2` writes and flushes each DATA frame of more than 256 bytes by itself. With eight responses ready that is eight
//! system calls, eight TLS records and eight segments, where one of each would do. So what it writes is kept here, its
//! flushes do nothing, and the connection's task flushes once, when `h2` has nothing more to do in this turn.
//!
//! ```text
//! h2 ──write──▶ Gathered ─ ─ ─ ▶ TLS, socket
//!                  ▲ flush, once a turn
//!            the connection's task
//! ```
//!
//! Whoever asks whether a connection still leads anywhere sees here what has moved on it, and can break it off.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::outq;
use crate::replay::Replayed;

/// As much as one TLS record holds is put together; what would go beyond is written through, uncopied.
const GATHER: usize = 16 * 1024;
/// Slices of one write that `h2` makes: a frame's head and its payload. More are left for the next write.
const SLICES: usize = 8;

struct Shared {
    io: Replayed,
    out: BytesMut,
    /// Somebody flushes. Before that, during the handshake, each flush is one.
    gathers: bool,
    moved: Moved,
    /// Why nothing is read and written any more.
    broken: Option<&'static str>,
}

/// What has moved on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Bytes that have come.
    pub(crate) heard: u64,
    /// Bytes that the socket has taken.
    pub(crate) told: u64,
}

impl Shared {
    fn check(&self) -> io::Result<()> {
        self.broken.map_or(Ok(()), |why| Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }

    /// Keeps the bytes if they fit in.
    fn keep(&mut self, bufs: &[IoSlice<'_>]) -> Option<usize> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.out.len() + len > GATHER {
            return None;
        }
        self.out.reserve(len);
        bufs.iter().for_each(|buf| self.out.extend_from_slice(buf));
        Some(len)
    }

    /// Writes what was kept, and the bytes behind it; gives how many of those have gone.
    fn poll_through(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            slices[0] = IoSlice::new(&self.out);
            let behind = slices[1..].iter_mut().zip(bufs).map(|(slice, buf)| *slice = IoSlice::new(buf));
            let used = 1 + behind.count();
            let from = usize::from(self.out.is_empty());
            let count = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[from..used]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.moved.told += count as u64;
            let kept = count.min(self.out.len());
            self.out.advance(kept);
            if count > kept || (bufs.is_empty() && self.out.is_empty()) {
                return Poll::Ready(Ok(count - kept));
            }
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.out.is_empty() {
            ready!(self.poll_through(cx, &[]))?;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

/// A connection whose writes wait for [`Flusher::poll_flush`].
pub(crate) struct Gathered(Rc<RefCell<Shared>>);

/// The task's hand on a connection that `h2` owns.
#[derive(Clone)]
pub(crate) struct Flusher(Rc<RefCell<Shared>>);

impl Gathered {
    pub(crate) fn new(io: Replayed) -> (Self, Flusher) {
        let (out, moved) = (BytesMut::new(), Moved::default());
        let shared = Rc::new(RefCell::new(Shared { io, out, gathers: false, moved, broken: None }));
        (Self(Rc::clone(&shared)), Flusher(shared))
    }
}

impl Flusher {
    /// Writes what was put together. To be called whenever `h2` has been polled and waits. `idle`: nothing will follow
    /// soon, and the buffer is given back.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>, idle: bool) -> Poll<io::Result<()>> {
        let mut shared = self.0.borrow_mut();
        shared.gathers = true;
        shared.check()?;
        ready!(shared.poll_drain(cx))?;
        if idle {
            shared.out = BytesMut::new();
        } else {
            // What was taken from the front becomes room again.
            shared.out.clear();
        }
        Poll::Ready(Ok(()))
    }
}

impl Flusher {
    /// What has moved so far.
    pub(crate) fn moved(&self) -> Moved {
        self.0.borrow().moved
    }

    /// Whole frames, to be written behind what was put together. To be called between two frames of `h2`.
    pub(crate) fn put(&self, frames: &[u8]) {
        self.0.borrow_mut().out.extend_from_slice(frames);
    }

    /// Bytes that the socket has taken and the peer's has not, where the kernel tells.
    pub(crate) fn on_the_way(&self) -> u64 {
        outq::unacknowledged(self.0.borrow().io.tcp()).unwrap_or_default()
    }

    /// From now on reading and writing fail, for this reason; the task finds it at its next turn.
    pub(crate) fn break_off(&self, why: &'static str) {
        self.0.borrow_mut().broken = Some(why);
    }

    /// The socket below.
    pub(crate) fn peer(&self) -> io::Result<SocketAddr> {
        self.0.borrow().io.tcp().peer_addr()
    }
}

impl Gathered {
    /// Keeps whole frames, however much is there already.
    pub(crate) fn put(&mut self, frames: &[u8]) {
        self.0.borrow_mut().out.extend_from_slice(frames);
    }
}

impl AsyncRead for Gathered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.borrow_mut();
        shared.check()?;
        let before = buf.filled().len();
        let read = Pin::new(&mut shared.io).poll_read(cx, buf);
        shared.moved.heard += (buf.filled().len() - before) as u64;
        read
    }
}

/// What of these so many bytes are that were written.
pub(crate) fn written<'b>(bufs: &'b [IoSlice<'b>], count: usize) -> impl Iterator<Item = &'b [u8]> {
    bufs.iter().scan(count, |left, slice| {
        let part = (*left).min(slice.len());
        *left -= part;
        Some(&slice[..part])
    })
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.0.borrow_mut();
        shared.check()?;
        if let Some(kept) = shared.keep(bufs) {
            return Poll::Ready(Ok(kept));
        }
        shared.poll_through(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.borrow_mut();
        if shared.gathers { Poll::Ready(Ok(())) } else { shared.poll_drain(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.borrow_mut();
        ready!(shared.poll_drain(cx))?;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
