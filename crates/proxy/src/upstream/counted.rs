//! What comes on a connection to an endpoint, counted by the heads of the frames below `h2`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gather::Gathered;
use crate::http::agreed::Agreed;
use crate::http::frames::{Head, Heads, Kind, PREFACE_LEN, Piece};
use crate::http::received::{Came, Received};
use crate::http::writes::Writes;

/// See the module's text.
pub(super) struct Counted {
    writes: Writes,
    agreed: Agreed,
    received: Rc<Received>,
    incoming: Heads,
    /// Of the stream that the frame is of which passes, if part of that is padding.
    padded: Option<u32>,
}

impl Counted {
    pub(super) fn new(io: Gathered, received: Rc<Received>) -> Self {
        let writes = Writes::new(io, Rc::clone(&received), PREFACE_LEN);
        Self { writes, agreed: Agreed::new(0), received, incoming: Heads::after(0), padded: None }
    }

    fn comes(&mut self, mut bytes: &[u8]) {
        let mut came = Came::default();
        while let Some(piece) = self.incoming.next(&mut bytes) {
            match piece {
                Piece::Head(head) => {
                    came.add(head);
                    self.begins(head);
                }
                Piece::Payload(payload) => {
                    if let Some(stream) = self.padded.take() {
                        self.received.flow().pads(stream, 1 + u32::from(payload[0]));
                    }
                }
            }
        }
        self.received.comes(came);
    }

    fn begins(&mut self, head: Head) {
        let flow = self.received.flow();
        self.padded = head.is_padded().then_some(head.stream);
        match head.kind {
            Kind::Data => {
                // An endpoint that takes more room than it was told of takes it from its own other streams; that of all is `h2`'s.
                flow.comes(head.stream, head.len);
                if head.ends_stream() {
                    flow.ends(head.stream);
                }
            }
            Kind::Headers if head.ends_stream() => _ = flow.ends(head.stream),
            Kind::Reset => _ = flow.ends(head.stream),
            Kind::Settings if head.is_agreed() => flow.agrees(),
            _ => {}
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(this.agreed.poll_read(Pin::new(this.writes.io()), cx, buf))?;
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
        let Self { writes, received, .. } = self.get_mut();
        writes.poll_write_vectored(cx, bufs, |piece| {
            if let Piece::Head(head) = piece
                && head.kind == Kind::Headers
            {
                received.flow().begins(head.stream);
            }
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().writes.io()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writes.poll_shutdown(cx)
    }
}
