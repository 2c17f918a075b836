//! HTTP/2 towards the caller: one stream of a connection.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use h2::server::SendResponse;
use meshwork_http1::{Limits, ResponseHead};

use crate::http::convert;
use crate::http::h2_body::{H2Sink, H2Source};
use crate::http::payload::{Backlog, Payload};
use crate::http::stream::StreamError;
use crate::http::upgrade;

/// See the module's text.
pub(crate) struct H2Stream {
    pub(crate) source: H2Source,
    respond: SendResponse<Payload>,
    backlog: Rc<Backlog>,
    sink: Option<H2Sink>,
    head_request: bool,
    /// It asked for a tunnel.
    extended: bool,
}

impl H2Stream {
    pub(crate) fn new(
        request: http::Request<h2::RecvStream>,
        respond: SendResponse<Payload>,
        backlog: Rc<Backlog>,
        limits: &Limits,
    ) -> Self {
        let head_request = *request.method() == http::Method::HEAD;
        let extended = request.extensions().get::<h2::ext::Protocol>().is_some();
        Self {
            source: H2Source::new(request.into_body(), limits),
            respond,
            backlog,
            sink: None,
            head_request,
            extended,
        }
    }

    /// Both directions, behind the head of a response.
    pub(crate) fn halves(&mut self) -> (&mut H2Source, &mut H2Sink) {
        (&mut self.source, self.sink.as_mut().expect("a tunnel follows its head"))
    }

    /// Whether the head of a response has been handed to the connection.
    pub(crate) fn has_begun(&self) -> bool {
        self.sink.is_some()
    }

    pub(crate) fn sink(&self) -> Option<&H2Sink> {
        self.sink.as_ref()
    }

    pub(crate) fn sink_mut(&mut self) -> &mut H2Sink {
        self.sink.as_mut().expect("a body follows its head")
    }

    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        if let Some(sink) = &mut self.sink {
            return sink.poll_reset(cx);
        }
        match ready!(self.respond.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(StreamError::Http2(reason.into())),
            Err(error) => Poll::Ready(error.into()),
        }
    }

    pub(crate) fn send_interim(&mut self, head: &ResponseHead) -> Result<(), StreamError> {
        Ok(self.respond.send_informational(convert::response(head))?)
    }

    pub(crate) fn send_head(&mut self, head: &ResponseHead, end: bool) -> Result<(), StreamError> {
        let end = end || self.head_request || matches!(head.status, 204 | 304);
        let mut response = convert::response(head);
        if self.extended && !head.tunnel {
            upgrade::refuse(&mut response);
        }
        let send = self.respond.send_response(response, end)?;
        self.sink = Some(H2Sink::new(send, &self.backlog, end));
        Ok(())
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match &mut self.sink {
            Some(sink) => match sink.poll_room(cx) {
                // Nothing can be sent on it any more: its caller has said why.
                Poll::Ready(Err(StreamError::Closed)) => {
                    let why = sink.poll_reset(cx);
                    Poll::Ready(Err(if let Poll::Ready(why) = why { why } else { StreamError::Closed }))
                }
                done => done,
            },
            None => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        match &mut self.sink {
            Some(sink) => sink.reset(reason),
            None => self.respond.send_reset(reason),
        }
    }
}
