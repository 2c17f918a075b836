//! A connection whose descriptor goes to the port that had it, and which tells what of its answers has gone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::Accept;
use super::open::Work;
use crate::descriptors::Spare;

/// However it ends: where the port has no descriptor laid aside then, this connection's is, before anybody else in the
/// process could have it.
pub(super) struct Held<L: Accept> {
    io: Option<L::Io>,
    spare: Arc<Mutex<Spare>>,
    work: Arc<watch::Sender<Work>>,
}

impl<L: Accept> Held<L> {
    pub(super) fn new(io: L::Io, spare: &Arc<Mutex<Spare>>) -> Self {
        Self { io: Some(io), spare: Arc::clone(spare), work: Work::none() }
    }

    /// What it does.
    pub(super) const fn work(&self) -> &Arc<watch::Sender<Work>> {
        &self.work
    }

    fn io(self: Pin<&mut Self>) -> Pin<&mut L::Io> {
        Pin::new(self.get_mut().io.as_mut().expect("it is there until this ends"))
    }

    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.work.send_if_modified(Work::has_sent_some);
        }
    }
}

// Nothing here is pinned in its place: what is held is `Unpin`.
impl<L: Accept> Unpin for Held<L> {}

impl<L: Accept> Drop for Held<L> {
    fn drop(&mut self) {
        let mut spare = self.spare.lock();
        if spare.is_gone()
            && let Some(descriptor) = self.io.take().and_then(L::descriptor)
        {
            spare.keep_of(descriptor);
        }
    }
}

impl<L: Accept> AsyncRead for Held<L> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl<L: Accept> AsyncWrite for Held<L> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.as_mut().io().poll_write(cx, buf);
        self.wrote(&written);
        written
    }
    /// Who writes here asks for this once all that it had is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().io().poll_flush(cx))?;
        self.work.send_if_modified(Work::has_sent_all);
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.as_mut().io().poll_write_vectored(cx, bufs);
        self.wrote(&written);
        written
    }
    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}
