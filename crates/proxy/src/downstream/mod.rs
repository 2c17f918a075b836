//! One request's stream towards its caller, whatever version of HTTP the caller speaks.
//!
//! ```text
//! (head was read) ──▶ poll_frame … End ──▶ send_interim* ──▶ send_head ──▶ queue/end/flush body
//! ```

pub(crate) mod connection;
pub(crate) mod detect;
pub(crate) mod guard;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod handshake;
pub(crate) mod proxied;
pub(crate) mod streams;
pub(crate) mod watch;

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use meshwork_http1::{Fields, ResponseHead};

use tokio::task::yield_now;

use crate::http::stream::{Frame, StreamError};
use crate::timers::Timer;
use h1::H1Server;
use h2::H2Stream;

/// See the module's text.
pub(crate) enum Down<'a> {
    /// The connection itself carries one request at a time.
    H1(&'a mut H1Server),
    /// One of many streams.
    H2(Box<H2Stream>),
}

impl Down<'_> {
    /// The next frame of the request's body.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        match self {
            Self::H1(server) => server.poll_frame(cx),
            Self::H2(stream) => stream.source.poll_frame(cx),
        }
    }

    /// Ready when the caller is gone and nobody waits for a response any more.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match self {
            Self::H1(server) => server.poll_gone(cx),
            Self::H2(stream) => stream.poll_gone(cx),
        }
    }

    /// Passes on an informational response; where the caller cannot take one, nothing happens.
    pub(crate) fn send_interim(&mut self, head: &ResponseHead) -> Result<(), StreamError> {
        match self {
            Self::H1(server) => {
                server.send_interim(head);
                Ok(())
            }
            Self::H2(stream) => stream.send_interim(head),
        }
    }

    /// Whether the caller has sent nothing of its request's body since it waits for leave to.
    pub(crate) fn awaits_leave(&self) -> bool {
        matches!(self, Self::H1(server) if server.awaits_leave())
    }

    /// The connection takes no request behind this one, and its response says so (RFC 9112 section 9.6).
    pub(crate) fn is_last(&mut self) {
        if let Self::H1(server) = self {
            server.keep_alive = false;
        }
    }

    /// Queues the final head. `end`: no body follows.
    pub(crate) fn send_head(&mut self, head: &ResponseHead, end: bool) -> Result<(), StreamError> {
        match self {
            Self::H1(server) => {
                server.send_head(head, end);
                Ok(())
            }
            Self::H2(stream) => stream.send_head(head, end),
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        match self {
            Self::H1(server) => server.wire.has_room(),
            Self::H2(stream) => stream.sink().is_none_or(|sink| sink.has_room()),
        }
    }

    pub(crate) fn queue(&mut self, data: Bytes) {
        match self {
            Self::H1(server) => server.queue(data),
            Self::H2(stream) => stream.sink_mut().queue(data),
        }
    }

    pub(crate) fn end(&mut self, trailers: Option<Box<Fields>>) {
        match self {
            Self::H1(server) => server.end(trailers.as_deref()),
            Self::H2(stream) => stream.sink_mut().end(trailers),
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self {
            Self::H1(server) => server.wire.poll_flush(cx).map_err(StreamError::from),
            Self::H2(stream) => stream.poll_flush(cx),
        }
    }

    /// The same, once the caller has had what came before, as far as it takes it at once: a reset throws away what `h2` holds of
    /// the stream, and a response that was never seen would be taken for none.
    pub(crate) async fn break_off(&mut self) {
        self.let_leave().await;
        self.abort();
    }

    /// The same where it is a rule of ours that ends the response: a caller in the mesh takes CANCEL for that, and holds it against nobody.
    pub(crate) async fn cancel(&mut self) {
        self.let_leave().await;
        match self {
            Self::H1(server) => server.abort(),
            Self::H2(stream) => stream.reset(::h2::Reason::CANCEL),
        }
    }

    async fn let_leave(&mut self) {
        if let Self::H2(stream) = self
            && stream.has_begun()
        {
            // What the window does not allow now stays behind.
            _ = poll_fn(|cx| Poll::Ready(stream.poll_flush(cx))).await;
            // The connection has its turn before this goes on.
            yield_now().await;
        }
    }

    /// Ends a response that has begun with these trailers, where its protocol has such that say what became of it; what the
    /// caller does not take at once stays behind. False where it cannot be ended so.
    pub(crate) async fn end_early(&mut self, trailers: &Fields) -> bool {
        self.let_leave().await;
        match self {
            Self::H1(_) => false,
            Self::H2(stream) => stream.has_begun() && stream.sink_mut().end_early(trailers).is_ok(),
        }
    }

    /// The same for a caller of gRPC whose own time is over, by its own clock too: it knows, or is about to, and has the first word as long as `grace`
    /// lasts.
    pub(crate) async fn run_out(&mut self, grace: &mut Timer) {
        self.let_leave().await;
        match self {
            Self::H1(server) => server.abort(),
            Self::H2(stream) => stream.run_out(|cx| grace.poll(cx)).await,
        }
    }

    /// Breaks a response off in the middle, so that the caller never takes it for complete.
    pub(crate) fn abort(&mut self) {
        match self {
            Self::H1(server) => server.abort(),
            Self::H2(stream) => stream.reset(::h2::Reason::INTERNAL_ERROR),
        }
    }

    /// Tells a caller that understands it that its request broke off before there was an answer. False where its
    /// protocol cannot say so, or the answer has begun.
    pub(crate) fn reset(&mut self) -> bool {
        if self.head_sent() || matches!(self, Self::H1(_)) {
            return false;
        }
        self.abort();
        true
    }

    /// Tells a caller that understands it that nothing was done with its request: it may be sent elsewhere (RFC 9113
    /// section 8.7). False where the caller's protocol cannot say so.
    pub(crate) fn refuse(&mut self) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(stream) => {
                stream.reset(::h2::Reason::REFUSED_STREAM);
                true
            }
        }
    }

    /// Says that a request is none (RFC 9113 section 8.1.1). False where the caller's protocol has no way to but a
    /// response.
    pub(crate) fn reject(&mut self) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(stream) => {
                stream.reset(::h2::Reason::PROTOCOL_ERROR);
                true
            }
        }
    }

    /// Whether the final head has left.
    pub(crate) fn head_sent(&self) -> bool {
        match self {
            Self::H1(server) => server.head_sent(),
            Self::H2(stream) => stream.sink().is_some(),
        }
    }
}
