//! What comes on a connection to an endpoint, and what its window is opened by, counted by the heads of the frames below `h2`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gather::{Gathered, written};
use crate::http::frames::{Heads, Increment, PREFACE_LEN, Piece};
use crate::http::received::{Came, Received};

/// See the module's text.
pub(super) struct Counted {
    io: Gathered,
    received: Rc<Received>,
    incoming: Heads,
    outgoing: Heads,
    /// While an update of the connection's window passes.
    increment: Option<Increment>,
}

impl Counted {
    pub(super) const fn new(io: Gathered, received: Rc<Received>) -> Self {
        let (incoming, outgoing) = (Heads::after(0), Heads::after(PREFACE_LEN));
        Self { io, received, incoming, outgoing, increment: None }
    }

    fn comes(&mut self, mut bytes: &[u8]) {
        let mut came = Came::default();
        while let Some(piece) = self.incoming.next(&mut bytes) {
            if let Piece::Head(head) = piece {
                came.add(head);
            }
        }
        self.received.comes(came);
    }

    fn goes(&mut self, mut bytes: &[u8]) {
        while let Some(piece) = self.outgoing.next(&mut bytes) {
            match piece {
                Piece::Head(head) => self.increment = Increment::of_connection(head),
                Piece::Payload(payload) => {
                    if let Some(bytes) = self.increment.as_mut().and_then(|read| read.read(payload)) {
                        self.received.opens(bytes);
                    }
                }
            }
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        this.comes(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        written(bufs, count).for_each(|part| this.goes(part));
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
