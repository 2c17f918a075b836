//! A stream of HTTP/2 as a connection: what a CONNECT opened (RFC 9113, section 8.5).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::h2_body::{H2Sink, H2Source};
use super::stream::{Frame, StreamError};
use crate::upstream::h2::Stream;

/// Bytes that one write takes at most: what waits for the peer's window.
const CHUNK: usize = 32 * 1024;

/// See the module's text.
pub(crate) struct Tunnel {
    source: H2Source,
    sink: H2Sink,
    /// Of the last frame, what has not been read.
    held: Bytes,
    read_ended: bool,
    write_ended: bool,
    /// Counts it among the streams of a connection that we opened.
    stream: Option<Stream>,
}

impl Tunnel {
    pub(crate) fn new(source: H2Source, sink: H2Sink, stream: Option<Stream>) -> Self {
        let held = Bytes::new();
        Self { source, sink, held, read_ended: false, write_ended: false, stream }
    }

    /// Breaks it off, so that the peer takes it for no regular end.
    pub(crate) fn reset(&mut self) {
        // What TCP's RST is in a tunnel (RFC 9113, section 8.5).
        self.sink.reset(h2::Reason::CONNECT_ERROR);
    }
}

fn broken(error: &StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error.to_string())
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.held.is_empty() && !self.read_ended {
            match ready!(self.source.poll_frame(cx)).map_err(|error| broken(&error))? {
                Frame::Data(data) => self.held = data,
                Frame::End(_) => {
                    self.read_ended = true;
                    if let Some(stream) = &self.stream {
                        stream.is_whole();
                    }
                }
            }
        }
        let count = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.sink.poll_room(cx)).map_err(|error| broken(&error))?;
        let count = buf.len().min(CHUNK);
        self.sink.queue(Bytes::copy_from_slice(&buf[..count]));
        // As far as the window allows; the rest leaves before the next is taken.
        match self.sink.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(broken(&error))),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sink.poll_flush(cx).map_err(|error| broken(&error))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.write_ended, true) {
            self.sink.end(None);
        }
        self.sink.poll_flush(cx).map_err(|error| broken(&error))
    }
}
