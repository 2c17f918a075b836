//! HTTP/2 towards the caller: one stream of a connection.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use h2::server::SendResponse;
use meshwork_http1::{Limits, ResponseHead};

use crate::http::convert;
use crate::http::h2_body::{H2Sink, H2Source};
use crate::http::payload::{Backlog, Payload};
use crate::http::received::Received;
use crate::http::stream::{Frame, StreamError};
use crate::http::unread::Unread;
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
        (received, unread): (&Rc<Received>, &Unread),
        limits: &Limits,
    ) -> Self {
        let head_request = *request.method() == http::Method::HEAD;
        let extended = request.extensions().get::<h2::ext::Protocol>().is_some();
        Self {
            source: H2Source::among(unread, request.into_body(), received, limits),
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

    /// Why nothing can be sent on it: its caller has said why nothing is wanted, where it has; `h2` speaks of our mistake.
    #[cold]
    fn why(&mut self, error: h2::Error) -> StreamError {
        match self.poll_gone(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(why) => why,
            Poll::Pending => error.into(),
        }
    }

    pub(crate) fn send_head(&mut self, head: &ResponseHead, end: bool) -> Result<(), StreamError> {
        let end = end || self.head_request || matches!(head.status, 204 | 304);
        let mut response = convert::response(head);
        if self.extended && !head.tunnel {
            upgrade::refuse(&mut response);
        }
        let send = self.respond.send_response(response, end).map_err(|error| self.why(error))?;
        self.sink = Some(H2Sink::new(send, &self.backlog, end));
        Ok(())
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match &mut self.sink {
            Some(sink) => match sink.poll_room(cx) {
                // Nothing can be sent on it any more: its caller has said why.
                Poll::Ready(Err(error @ (StreamError::Closed | StreamError::Http2(_)))) => {
                    let why = sink.poll_reset(cx);
                    Poll::Ready(Err(if let Poll::Ready(why) = why { why } else { error }))
                }
                done => done,
            },
            None => Poll::Ready(Ok(())),
        }
    }

    /// Whether its response has ended, and its request has not.
    pub(crate) fn is_answered_early(&self) -> bool {
        self.sink.as_ref().is_some_and(H2Sink::has_ended) && !self.source.is_end()
    }

    /// Takes and drops what still comes of the request, up to a bound.
    pub(crate) fn poll_linger(&mut self, cx: &mut Context<'_>, left: &mut u64) -> Poll<()> {
        loop {
            match ready!(self.source.poll_frame(cx)) {
                Ok(Frame::Data(data)) if (data.len() as u64) < *left => *left -= data.len() as u64,
                _ => return Poll::Ready(()),
            }
        }
    }

    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        match &mut self.sink {
            Some(sink) => sink.reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    /// Resets the stream unless its caller does so before `grace` is over. By CANCEL: no reset says that a deadline is over, and
    /// that is the one of which gRPC's libraries make `DEADLINE_EXCEEDED` when by their own clock it is, and `CANCELLED` otherwise.
    pub(crate) async fn run_out(&mut self, mut grace: impl FnMut(&mut Context<'_>) -> Poll<()>) {
        let left = |cx: &mut Context<'_>| match self.poll_gone(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => grace(cx),
        };
        poll_fn(left).await;
        self.reset(h2::Reason::CANCEL);
    }
}

#[cfg(test)]
mod tests {
    use meshwork_decision::Cause;

    use super::*;
    use crate::error::Failure;

    /// A request whose caller has reset it, as far as the connection knows.
    async fn taken_back(began: bool) -> H2Stream {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (mut client, connection) = h2::client::handshake(theirs).await.unwrap();
        tokio::spawn(connection);
        let (_response, mut send) = client.send_request(http::Request::new(()), false).unwrap();
        let mut server = h2::server::Builder::new().handshake::<_, Payload>(ours).await.unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        let mut stream = H2Stream::new(
            request,
            respond,
            Rc::default(),
            (&Rc::default(), &Unread::default()),
            &Limits::default(),
        );
        if began {
            stream.send_head(&ResponseHead { status: 200, ..ResponseHead::new() }, false).unwrap();
        }
        send.send_reset(h2::Reason::CANCEL);
        poll_fn(|cx| {
            _ = server.poll_accept(cx);
            stream.poll_gone(cx)
        })
        .await;
        stream
    }

    fn told(error: &StreamError) -> (Cause, String) {
        let failure = Failure::of_downstream(error);
        (failure.cause, failure.detail.unwrap().to_string())
    }

    #[tokio::test]
    async fn what_a_caller_does_not_want_any_more_fails_by_its_own_word() {
        let cancelled = (Cause::DownstreamReset, "HTTP/2: the stream was reset: CANCEL".to_owned());
        let head = ResponseHead { status: 200, ..ResponseHead::new() };
        let error = taken_back(false).await.send_head(&head, true).unwrap_err();
        assert_eq!(told(&error), cancelled);
        let mut stream = taken_back(true).await;
        stream.sink_mut().end(None);
        let flushed = poll_fn(|cx| Poll::Ready(stream.poll_flush(cx))).await;
        let Poll::Ready(Err(error)) = flushed else { panic!("nothing can be sent: {flushed:?}") };
        assert_eq!(told(&error), cancelled);
    }

    #[tokio::test]
    async fn whose_time_is_over_has_the_first_word_as_long_as_it_is_given() {
        for leaves in [true, false] {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let (mut client, connection) = h2::client::handshake(theirs).await.unwrap();
            tokio::spawn(connection);
            let (response, mut send) = client.send_request(http::Request::new(()), false).unwrap();
            let mut server = h2::server::Builder::new().handshake::<_, Payload>(ours).await.unwrap();
            let (request, respond) = server.accept().await.unwrap().unwrap();
            let mut stream = H2Stream::new(
                request,
                respond,
                Rc::default(),
                (&Rc::default(), &Unread::default()),
                &Limits::default(),
            );
            stream.send_head(&ResponseHead { status: 200, ..ResponseHead::new() }, false).unwrap();
            let mut body = tokio::select! {
                response = response => response.unwrap().into_body(),
                _ = poll_fn(|cx| server.poll_closed(cx)) => panic!("the connection stays"),
            };
            if leaves {
                send.send_reset(h2::Reason::CANCEL);
            }
            // Whoever leaves has so many turns for it, which is more than it takes.
            let turns = if leaves { 10_000 } else { 1 };
            let mut asked = 0;
            let grace = |cx: &mut Context<'_>| {
                asked += 1;
                cx.waker().wake_by_ref();
                if asked < turns { Poll::Pending } else { Poll::Ready(()) }
            };
            tokio::select! {
                () = stream.run_out(grace) => {}
                _ = poll_fn(|cx| server.poll_closed(cx)) => panic!("the connection stays"),
            }
            if leaves {
                assert!(asked < turns, "it was not waited for longer than until it left");
                continue;
            }
            assert_eq!(asked, 1);
            let error = tokio::select! {
                data = body.data() => data.unwrap().unwrap_err(),
                _ = poll_fn(|cx| server.poll_closed(cx)) => panic!("the connection stays"),
            };
            assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
        }
    }
}
