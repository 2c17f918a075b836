//! The two halves of an HTTP/2 stream as a source and a sink of body frames; both sides of the proxy use them.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use meshwork_http1::{Fields, Limit, Limits, ParseError};

use super::convert;
use super::payload::{Backlog, Payload};
use super::received::{Part, Received};
use super::stream::{self, Frame, StreamError};
use super::unread::{Incoming, Unread};

/// Frames that arrive.
#[derive(Debug)]
pub(crate) struct H2Source {
    incoming: Incoming,
    /// Of what the streams of this connection have given on.
    part: Part,
    data_ended: bool,
    /// Most trailers, and most of their bytes.
    trailers: (u32, u32),
}

impl H2Source {
    pub(crate) fn new(recv: RecvStream, received: &Rc<Received>, limits: &Limits) -> Self {
        Self::of(Incoming::Own(recv), received, limits)
    }

    /// Those of a caller, of whose connection these are the bodies that nobody has taken.
    pub(crate) fn among(unread: &Unread, recv: RecvStream, received: &Rc<Received>, limits: &Limits) -> Self {
        Self::of(Incoming::among(unread, recv), received, limits)
    }

    fn of(incoming: Incoming, received: &Rc<Received>, limits: &Limits) -> Self {
        let trailers = (limits.header_count, limits.trailer_bytes);
        let part = Part::new(received, incoming.stream());
        Self { incoming, part, data_ended: false, trailers }
    }

    /// No frame will follow.
    pub(crate) fn is_end(&self) -> bool {
        self.incoming.is_end()
    }

    /// The next frame. The window is opened again as soon as a frame is taken: whoever takes it has room for it, and
    /// takes no further one before that is sent on.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        while !self.data_ended {
            match self.incoming.poll_data(cx) {
                Poll::Ready(Some(data)) => {
                    let data = data?;
                    self.part.gives(data.len());
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Frame::Data(data)));
                    }
                }
                Poll::Ready(None) => self.data_ended = true,
                Poll::Pending => {
                    self.part.waits();
                    return Poll::Pending;
                }
            }
        }
        let trailers = ready!(self.incoming.poll_trailers(cx))?;
        if let Some(map) = &trailers {
            self.bound(map)?;
        }
        Poll::Ready(Ok(stream::end(trailers.as_ref().map(convert::fields_of).transpose()?)?))
    }

    /// The same bounds as on trailers of HTTP/1.1, as they would be written there.
    fn bound(&self, trailers: &HeaderMap) -> Result<(), ParseError> {
        let (count, bytes) = self.trailers;
        convert::check_bound(Limit::HeaderCount, count, trailers.len())?;
        let written =
            |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + convert::AROUND;
        convert::check_bound(Limit::TrailerBytes, bytes, trailers.iter().map(written).sum())
    }
}

/// Below this much, what comes next leaves in the same frame: many small frames cost both ends, and a peer counts them.
const GATHER: usize = 4 * 1024;

/// Frames that leave. One chunk at most, or a few small ones, wait for the window: so much does a slow reader cost.
pub(crate) struct H2Sink {
    send: SendStream<Payload>,
    /// What the streams of this connection have handed to it.
    backlog: Rc<Backlog>,
    waiting: Bytes,
    /// Follows `waiting` in its frame.
    gathered: BytesMut,
    end: Option<Option<Box<Fields>>>,
    ended: bool,
}

impl H2Sink {
    /// `ended`: the head carried END_STREAM already.
    pub(crate) fn new(send: SendStream<Payload>, backlog: &Rc<Backlog>, ended: bool) -> Self {
        let backlog = Rc::clone(backlog);
        Self { send, backlog, waiting: Bytes::new(), gathered: BytesMut::new(), end: None, ended }
    }

    /// Nothing more will be said on it.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    fn queued(&self) -> usize {
        self.waiting.len() + self.gathered.len()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.queued() < GATHER && self.backlog.has_room()
    }

    pub(crate) fn queue(&mut self, data: Bytes) {
        debug_assert!(self.has_room(), "a source is asked only while the sink has room");
        if self.queued() == 0 {
            self.waiting = data;
        } else {
            self.gathered.extend_from_slice(&data);
        }
        self.send.reserve_capacity(self.queued());
    }

    fn join(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let mut joined = BytesMut::with_capacity(self.queued());
        joined.extend_from_slice(&self.waiting);
        joined.extend_from_slice(&self.gathered);
        self.gathered.clear();
        self.waiting = joined.freeze();
    }

    pub(crate) fn end(&mut self, trailers: Option<Box<Fields>>) {
        self.end = Some(trailers);
    }

    /// Ends the stream with these trailers, in place of whatever waits for the window.
    pub(crate) fn end_early(&mut self, trailers: &Fields) -> Result<(), StreamError> {
        if std::mem::replace(&mut self.ended, true) {
            return Err(StreamError::Closed);
        }
        (self.waiting, self.end) = (Bytes::new(), None);
        self.gathered.clear();
        Ok(self.send.send_trailers(convert::map_of(trailers))?)
    }

    /// Hands what is queued to the connection, as far as the window allows.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        self.join();
        while !self.waiting.is_empty() {
            let mut capacity = self.send.capacity();
            if capacity == 0 {
                capacity = match ready!(self.send.poll_capacity(cx)) {
                    Some(capacity) => capacity?,
                    None => return Poll::Ready(Err(StreamError::Closed)),
                };
            }
            let chunk = self.waiting.split_to(capacity.min(self.waiting.len()));
            let last = self.waiting.is_empty() && matches!(self.end, Some(None));
            self.send.send_data(Payload::new(chunk, &self.backlog), last)?;
            self.ended = last;
        }
        if let Some(trailers) = self.end.take()
            && !self.ended
        {
            match trailers {
                Some(trailers) => self.send.send_trailers(convert::map_of(&trailers))?,
                None => self.send.send_data(Payload::new(Bytes::new(), &self.backlog), true)?,
            }
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }

    /// The same, and where more will come, waits until some of that can leave: what the peer does not take is not taken of
    /// the source.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        ready!(self.poll_flush(cx))?;
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        if !self.backlog.has_room() {
            self.backlog.watch(cx);
            return Poll::Pending;
        }
        // A byte tells whether the window is open. More than that would be kept from the other streams of the connection.
        self.send.reserve_capacity(1);
        if self.send.capacity() == 0 {
            ready!(self.send.poll_capacity(cx)).ok_or(StreamError::Closed)??;
        }
        Poll::Ready(Ok(()))
    }

    /// Breaks the stream off, so that the peer never takes it for complete.
    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        self.send.send_reset(reason);
        self.ended = true;
    }

    /// Ready when the peer has reset the stream.
    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(StreamError::Http2(reason.into())),
            Err(error) => Poll::Ready(StreamError::Http2(error)),
        }
    }
}
