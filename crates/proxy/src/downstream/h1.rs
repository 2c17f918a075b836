//! HTTP/1.1 towards the caller: one connection, requests one after the other, answered in order.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use meshwork_http1::{
    BodyDecoder, BodyLength, ConnectionOption, Decoded, Fields, HeadScan, Limits, ParseError, Parsed,
    RequestHead, RequestKind, ResponseHead, Version, parse_request, write_last_chunk, write_response_head,
};

use crate::http::stream::{self, Frame, StreamError};
use crate::wire::Wire;

/// Of a request's body that nobody wanted, so much is read to keep the connection.
const DRAIN_BYTES: u64 = 64 * 1024;

/// So much of a body that nobody takes yet is read, to find its caller's hanging up behind it.
const READ_AHEAD: usize = 32 * 1024;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct H1Server {
    pub(crate) wire: Wire,
    limits: Limits,
    scan: HeadScan,
    body: BodyDecoder,
    /// Somebody has begun to take the body.
    is_taken: bool,
    kind: RequestKind,
    version: Version,
    /// Whether the connection goes on after the present exchange.
    pub(crate) keep_alive: bool,
    asked_to_keep: bool,
    /// The caller waits for leave to send its body, and may never send it.
    expects_leave: bool,
    head_sent: bool,
    framing: BodyLength,
    /// Bytes of a body of known length that were not queued yet.
    owed: u64,
    ended: bool,
    aborted: bool,
    /// A head was refused that may not have come whole.
    refused: bool,
    /// Bytes that have come behind its caller's last word.
    behind: usize,
}

impl H1Server {
    pub(crate) fn new(wire: Wire, limits: Limits) -> Self {
        Self {
            wire,
            limits,
            scan: HeadScan::default(),
            body: BodyDecoder::new(BodyLength::None),
            is_taken: false,
            kind: RequestKind::Other,
            version: Version::Http11,
            keep_alive: true,
            asked_to_keep: false,
            expects_leave: false,
            head_sent: false,
            framing: BodyLength::None,
            owed: 0,
            ended: false,
            aborted: false,
            refused: false,
            behind: 0,
        }
    }

    /// Reads a request's head. `Ready(false)`: the caller closed between two requests.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut RequestHead,
    ) -> Poll<Result<bool, StreamError>> {
        loop {
            if !self.wire.read.is_empty() {
                match parse_request(&self.wire.read, &self.limits, &mut self.scan, head)? {
                    Parsed::Done { consumed } => {
                        self.wire.read.advance(consumed);
                        self.begin(head);
                        return Poll::Ready(Ok(true));
                    }
                    Parsed::Incomplete => {}
                }
            }
            if self.wire.eof {
                let clean = self.wire.read.is_empty();
                return Poll::Ready(if clean { Ok(false) } else { Err(StreamError::Closed) });
            }
            ready!(self.wire.poll_fill(cx))?;
        }
    }

    fn begin(&mut self, head: &RequestHead) {
        if head.body.is_empty() {
            // Its upstream's answer is read into the same memory.
            self.wire.release_read();
        }
        self.scan = HeadScan::default();
        self.body = BodyDecoder::new(head.body);
        self.is_taken = false;
        self.kind = RequestKind::from(&head.method);
        self.version = head.version;
        // What follows CONNECT is meant for the other end of a tunnel, also when there is none.
        self.keep_alive = head.keep_alive && self.kind != RequestKind::Connect;
        self.asked_to_keep = head.keep_alive && head.version == Version::Http10;
        self.expects_leave = head.expect_continue;
        self.head_sent = false;
        self.ended = false;
        self.framing = BodyLength::None;
    }

    /// Whether bytes of a head have arrived, but not all.
    pub(crate) fn has_partial_head(&self) -> bool {
        !self.wire.read.is_empty()
    }

    /// A head was refused: its answer is the last on this connection.
    pub(crate) fn refuse(&mut self) {
        self.scan = HeadScan::default();
        self.kind = RequestKind::Other;
        self.version = Version::Http11;
        self.keep_alive = false;
        self.head_sent = false;
        self.ended = false;
        self.refused = true;
    }

    /// What has come is not wanted, and costs nothing any more.
    pub(crate) fn forget_input(&mut self) {
        self.wire.read.clear();
        self.wire.release_read();
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        self.is_taken = true;
        loop {
            match self.body.decode(&mut self.wire.read, &self.limits)? {
                Decoded::Data(data) => {
                    self.expects_leave = false;
                    return Poll::Ready(Ok(Frame::Data(data)));
                }
                Decoded::End { trailers } => return Poll::Ready(Ok(stream::end(trailers)?)),
                Decoded::NeedMore => {}
            }
            if self.wire.eof || ready!(self.wire.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(StreamError::Closed));
            }
        }
    }

    /// While the upstream works, the caller's hanging up shows as the end of its stream, over TLS as that of the connection below: see
    /// [`Io::poll_left`](crate::io::Io::poll_left). Bytes of a pipelined request
    /// are read once and then left alone, so that a caller cannot fill our memory by not waiting. A body that is not
    /// taken yet, since its request waits for its turn, is read ahead for the same reason, as far as that goes: what nobody
    /// waits for any more shall not be done.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let ahead = match self.body.is_done() {
            true => 0,
            false if self.is_taken => return Poll::Pending,
            false => READ_AHEAD,
        };
        if self.has_all() {
            return Poll::Pending;
        }
        while self.wire.read.len() < ahead.max(1) {
            self.wire.read_little();
            if !self.wire.eof {
                match ready!(self.wire.poll_fill(cx)) {
                    Ok(1..) => continue,
                    Ok(0) => self.wire.release_read(),
                    Err(error) => return Poll::Ready(error.into()),
                }
            }
            // What will not become whole nobody waits for.
            if self.body.remaining().is_none_or(|left| left <= self.wire.read.len() as u64) {
                ready!(self.wire.io.poll_left(cx, &mut self.behind));
            }
            return Poll::Ready(StreamError::Closed);
        }
        Poll::Pending
    }

    /// The caller has the whole response, and may leave, although its upstream has not ended it yet.
    fn has_all(&self) -> bool {
        matches!(self.framing, BodyLength::Known(_))
            && self.head_sent
            && self.owed == 0
            && !self.wire.has_output()
    }

    /// See [`super::Down::awaits_leave`].
    pub(crate) fn awaits_leave(&self) -> bool {
        self.expects_leave
    }

    pub(crate) fn send_interim(&mut self, head: &ResponseHead) {
        if self.version == Version::Http11 {
            self.expects_leave &= head.status != 100;
            let (status, reason) = (head.status, &head.reason);
            write_response_head(
                self.wire.out(),
                status,
                reason,
                &head.fields,
                BodyLength::None,
                ConnectionOption::None,
            );
        }
    }

    pub(crate) fn send_head(&mut self, head: &ResponseHead, end: bool) {
        self.framing = self.framing_of(head, end);
        self.owed = if let BodyLength::Known(length) = self.framing { length } else { 0 };
        let is_last = self.wire.eof && self.wire.read.is_empty();
        if is_last || self.framing == BodyLength::UntilClose || (!self.body.is_done() && !self.may_drain()) {
            self.keep_alive = false;
        }
        let connection = match (head.tunnel, self.keep_alive) {
            (true, _) => ConnectionOption::Upgrade,
            (false, false) => ConnectionOption::Close,
            (false, true) if self.asked_to_keep => ConnectionOption::KeepAlive,
            (false, true) => ConnectionOption::None,
        };
        write_response_head(
            self.wire.out_for(&head.fields, self.framing),
            head.status,
            &head.reason,
            &head.fields,
            self.framing,
            connection,
        );
        self.head_sent = true;
        self.ended = self.framing.is_empty();
        if head.tunnel {
            // What follows ends with the connection, and is broken off with it.
            self.framing = BodyLength::UntilClose;
            self.keep_alive = false;
        }
    }

    /// What tells the caller where the body ends (RFC 9112 section 6.3).
    fn framing_of(&self, head: &ResponseHead, end: bool) -> BodyLength {
        let bodiless =
            self.kind == RequestKind::Head || head.status / 100 == 1 || matches!(head.status, 204 | 304);
        match head.body {
            _ if bodiless || head.tunnel => BodyLength::None,
            BodyLength::Known(length) => BodyLength::Known(length),
            _ if end => BodyLength::Known(0),
            BodyLength::None => BodyLength::Known(0),
            BodyLength::Chunked | BodyLength::UntilClose if self.version == Version::Http11 => {
                BodyLength::Chunked
            }
            BodyLength::Chunked | BodyLength::UntilClose => BodyLength::UntilClose,
        }
    }

    pub(crate) fn head_sent(&self) -> bool {
        self.head_sent
    }

    pub(crate) fn queue(&mut self, data: Bytes) {
        match self.framing {
            BodyLength::Chunked => self.wire.queue_chunk(data),
            // A body behind HEAD or 304 was never asked for.
            BodyLength::None => {}
            BodyLength::Known(_) | BodyLength::UntilClose => {
                self.owed = self.owed.saturating_sub(data.len() as u64);
                self.wire.queue(data);
            }
        }
    }

    /// Whether the caller has been told how long the response's body is.
    pub(crate) fn is_of_known_length(&self) -> bool {
        matches!(self.framing, BodyLength::Known(_))
    }

    /// So many bytes of the response's body have left without being queued.
    pub(crate) fn has_passed(&mut self, count: usize) {
        debug_assert!(count as u64 <= self.owed, "a body of known length is not longer");
        self.owed = self.owed.saturating_sub(count as u64);
        self.wire.bytes_out += count as u64;
    }

    pub(crate) fn end(&mut self, trailers: Option<&Fields>) {
        if self.framing == BodyLength::Chunked && !self.ended {
            write_last_chunk(self.wire.out(), trailers);
        }
        self.ended = true;
    }

    pub(crate) fn abort(&mut self) {
        self.aborted = true;
        self.keep_alive = false;
        if self.head_sent && self.framing == BodyLength::UntilClose {
            // Only a reset tells this caller that the body is not whole: a plain close would say that it is.
            let socket = socket2::SockRef::from(self.wire.io.tcp());
            if let Err(error) = socket.set_linger(Some(std::time::Duration::ZERO)) {
                tracing::debug!(%error, "cannot reset a downstream connection");
            }
        }
    }

    pub(crate) fn was_aborted(&self) -> bool {
        self.aborted
    }

    fn may_drain(&self) -> bool {
        !self.expects_leave && self.body.remaining().is_some_and(|bytes| bytes <= DRAIN_BYTES)
    }

    /// Reads the rest of a body that nobody wanted, so that the next request can be found behind it.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while !self.body.is_done() {
            ready!(self.poll_frame(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and drops what still arrives, up to a bound, so that closing does not reset the connection before the
    /// caller has read the last response (RFC 9112 section 9.6).
    pub(crate) fn poll_linger(&mut self, cx: &mut Context<'_>, left: &mut u64) -> Poll<()> {
        loop {
            self.forget_input();
            let read = self.wire.poll_fill(cx);
            if read.is_pending() {
                // TLS has taken a block for what may come.
                self.forget_input();
            }
            match ready!(read) {
                Ok(count @ 1..) if (count as u64) < *left => *left -= count as u64,
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Whether the caller may still be sending.
    pub(crate) fn has_unread_input(&self) -> bool {
        self.refused || !self.body.is_done() || !self.wire.read.is_empty()
    }
}

/// The refusal of a head, if that is what ended the reading.
pub(crate) fn refusal(error: &StreamError) -> Option<ParseError> {
    match error {
        StreamError::Http1(error) => Some(*error),
        _ => None,
    }
}
