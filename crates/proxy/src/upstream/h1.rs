//! HTTP/1.1 towards an endpoint: one connection, one exchange at a time.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::Method;
use meshwork_base::Tick;
use meshwork_decision::Cause;
use meshwork_http1::{
    BodyDecoder, BodyLength, ConnectionOption, Decoded, Fields, HeadScan, Limits, Parsed, RequestKind,
    ResponseHead, parse_response, write_last_chunk, write_request_head,
};

use super::Head;
use super::pool::Opened;
use crate::error::Failure;
use crate::http::stream::{self, Frame, Interim, StreamError};
use crate::io::Io;
use crate::wire::Wire;

/// See the module's text.
pub(crate) struct H1Client {
    pub(crate) wire: Wire,
    scan: HeadScan,
    kind: RequestKind,
    response: BodyDecoder,
    limits: Limits,
    request: BodyLength,
    request_done: bool,
    head_done: bool,
    interim: Interim,
    keep_alive: bool,
    carried: u64,
    /// It says at its beginning for whom it is made, so nobody else's request may follow.
    alone: bool,
    open: Opened,
}

impl H1Client {
    pub(crate) fn new(io: Io, open: Opened) -> Self {
        Self {
            wire: Wire::new(io),
            scan: HeadScan::default(),
            kind: RequestKind::Other,
            response: BodyDecoder::new(BodyLength::None),
            limits: Limits::default(),
            request: BodyLength::None,
            request_done: true,
            head_done: true,
            interim: Interim::default(),
            keep_alive: true,
            carried: 0,
            alone: false,
            open,
        }
    }

    /// It is made for one request.
    pub(crate) fn for_one(mut self) -> Self {
        self.alone = true;
        self
    }

    /// When it was made.
    pub(crate) fn born(&self) -> Tick {
        self.open.since
    }

    /// How long it takes there and back.
    pub(crate) fn round_trip(&self) -> Duration {
        self.open.round_trip
    }

    /// Whether somebody elsewhere waits for it to end.
    pub(crate) fn is_wanted(&self) -> bool {
        self.open.is_wanted()
    }

    /// Whether there are more than a limit allows, which has fallen.
    #[inline]
    pub(crate) fn is_beyond(&self) -> bool {
        self.open.beyond() > 0
    }

    /// Whether it has carried a request before the present one.
    pub(crate) fn is_reused(&self) -> bool {
        self.carried > 1
    }

    /// Whether a part of a head has come.
    pub(crate) fn has_begun(&self) -> bool {
        !self.wire.read.is_empty()
    }

    /// Whether the peer has neither closed it nor sent anything unasked. Costs no system call while the socket is
    /// quiet: the runtime's own readiness answers.
    pub(crate) fn is_usable(&self) -> bool {
        let mut byte = [0];
        matches!(self.wire.io.tcp().try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Gives its buffers back until the next request.
    pub(crate) fn rest(&mut self) {
        self.wire.release_buffers();
    }

    /// Queues a request's head.
    ///
    /// # Errors
    /// A filter made a target that cannot be sent.
    pub(crate) fn send(&mut self, head: &Head<'_>, limits: &Limits) -> Result<(), Failure> {
        self.scan = HeadScan::default();
        self.kind = RequestKind::from(head.method);
        self.limits = *limits;
        let body = match head.body {
            // Servers that expect content answer 411 where nothing says that there is none (RFC 9110 section 8.6).
            BodyLength::None if matches!(*head.method, Method::POST | Method::PUT | Method::PATCH) => {
                BodyLength::Known(0)
            }
            body => body,
        };
        self.request = body;
        self.request_done = body.is_empty();
        self.head_done = false;
        self.interim = Interim::default();
        self.keep_alive = true;
        self.carried += 1;
        let connection = match head.upgrade {
            Some(_) => ConnectionOption::Upgrade,
            None if self.alone => ConnectionOption::Close,
            None => ConnectionOption::None,
        };
        write_request_head(
            self.wire.out_for(head.fields, body),
            head.method,
            head.path,
            head.fields,
            body,
            connection,
        )
        .map_err(|error| Failure::local(Cause::Internal).because(format!("`{}`: {error}", head.path)))
    }

    pub(crate) fn queue(&mut self, data: Bytes) {
        match self.request {
            BodyLength::Chunked => self.wire.queue_chunk(data),
            _ => self.wire.queue(data),
        }
    }

    pub(crate) fn end(&mut self, trailers: Option<&Fields>) {
        if self.request == BodyLength::Chunked {
            write_last_chunk(self.wire.out(), trailers);
        }
        self.request_done = true;
    }

    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        limits: &Limits,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), StreamError>> {
        loop {
            if !self.wire.read.is_empty() {
                match parse_response(&self.wire.read, limits, self.kind, &mut self.scan, head)? {
                    Parsed::Done { consumed } => {
                        self.wire.read.advance(consumed);
                        break;
                    }
                    Parsed::Incomplete => {}
                }
            }
            if ready!(self.wire.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(if self.has_begun() {
                    StreamError::Closed
                } else {
                    StreamError::ClosedBefore
                }));
            }
        }
        if head.is_informational() {
            self.interim.add(head, limits)?;
        } else {
            self.head_done = true;
            self.keep_alive = head.keep_alive;
            self.response = BodyDecoder::new(head.body);
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn is_end(&self) -> bool {
        self.response.is_done()
    }

    /// Bytes of the response's body that are still to come, where its head says how many; else none.
    pub(crate) fn to_come(&self) -> u64 {
        self.response.remaining().unwrap_or(0)
    }

    /// So many bytes of the response's body have been taken from the socket without being read.
    pub(crate) fn has_passed(&mut self, count: usize) {
        self.response.pass(count as u64);
        self.wire.bytes_in += count as u64;
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        loop {
            match self.response.decode(&mut self.wire.read, &self.limits)? {
                Decoded::Data(data) => return Poll::Ready(Ok(Frame::Data(data))),
                Decoded::End { trailers } => return Poll::Ready(Ok(stream::end(trailers)?)),
                Decoded::NeedMore => {}
            }
            if ready!(self.wire.poll_fill(cx))? == 0 {
                self.keep_alive = false;
                self.response.finish_eof().map_err(|_| StreamError::Closed)?;
            }
        }
    }

    /// Both directions are done and both sides want to go on.
    pub(crate) fn may_be_kept(&self) -> bool {
        !self.alone
            && self.keep_alive
            && self.request_done
            && self.head_done
            && self.response.is_done()
            && !self.wire.has_output()
            && self.wire.read.is_empty()
            && !self.wire.eof
    }
}
