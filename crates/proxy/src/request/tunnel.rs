//! After a change of protocol: bytes both ways, until both sides are done. Each side is a connection of HTTP/1 or a
//! stream of HTTP/2; the end of one direction goes on as the end of that direction (FIN, END_STREAM), a break as a break
//! (RST, RST_STREAM; RFC 8441 section 5). What one side does not take, the other is not asked for.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use meshwork_decision::Cause;
use meshwork_http1::ResponseHead;
use tokio::io::AsyncWrite;

use super::body::RequestBody;
use super::deadline::Deadlines;
use super::journey::Journey;
use crate::connections::{Order, Phase};
use crate::downstream::Down;
use crate::error::{Failure, Retry};
use crate::http::h2_body::{H2Sink, H2Source};
use crate::http::stream::{Frame, StreamError};
use crate::http::upgrade;
use crate::recorder::Moves;
use crate::upstream::{Exchange, Head};
use crate::wire::Wire;

/// One end of a tunnel.
enum End<'a> {
    Wire { wire: &'a mut Wire, finish: Finish },
    Stream { source: &'a mut H2Source, sink: &'a mut H2Sink },
}

/// How far the writing side of a connection is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finish {
    Open,
    Wanted,
    Done,
}

impl<'a> End<'a> {
    fn of_wire(wire: &'a mut Wire) -> Self {
        Self::Wire { wire, finish: Finish::Open }
    }

    /// What has arrived; `None`: nothing more will.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        match self {
            Self::Wire { wire, .. } => loop {
                if !wire.read.is_empty() {
                    return Poll::Ready(Ok(Some(wire.read.split().freeze())));
                }
                if wire.eof {
                    return Poll::Ready(Ok(None));
                }
                ready!(wire.poll_fill(cx))?;
            },
            Self::Stream { source, .. } => Poll::Ready(Ok(match ready!(source.poll_frame(cx))? {
                Frame::Data(data) => Some(data),
                Frame::End(_) => None,
            })),
        }
    }

    fn has_room(&self) -> bool {
        match self {
            Self::Wire { wire, .. } => wire.has_room(),
            Self::Stream { sink, .. } => sink.has_room(),
        }
    }

    fn queue(&mut self, data: Bytes) {
        match self {
            Self::Wire { wire, .. } => wire.queue(data),
            Self::Stream { sink, .. } => sink.queue(data),
        }
    }

    /// Nothing more will be queued.
    fn finish(&mut self) {
        match self {
            Self::Wire { finish, .. } => *finish = Finish::Wanted,
            Self::Stream { sink, .. } => sink.end(None),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self {
            Self::Wire { wire, finish } => {
                ready!(wire.poll_flush(cx))?;
                if *finish == Finish::Wanted {
                    ready!(Pin::new(&mut wire.io).poll_shutdown(cx))?;
                    *finish = Finish::Done;
                }
                Poll::Ready(Ok(()))
            }
            Self::Stream { sink, .. } => sink.poll_room(cx),
        }
    }

    /// A stream can be broken by its peer also when it has said its last word; of a connection writing tells.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match self {
            Self::Wire { .. } => Poll::Pending,
            Self::Stream { sink, .. } => sink.poll_reset(cx),
        }
    }

    /// A tunnel that is silent holds no buffer.
    fn rest(&mut self) {
        if let Self::Wire { wire, .. } = self {
            wire.release_buffers();
        }
    }

    /// Breaks it, so that nobody takes it for ended.
    fn cut(&mut self) {
        match self {
            Self::Wire { wire, .. } => {
                let socket = socket2::SockRef::from(wire.io.tcp());
                if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
                    tracing::debug!(%error, "cannot reset a connection");
                }
            }
            Self::Stream { sink, .. } => sink.reset(h2::Reason::CANCEL),
        }
    }
}

/// One direction.
#[derive(Default)]
struct Flow {
    bytes: u64,
    /// The sender has said its last word.
    ended: bool,
    /// And the receiver has got it.
    done: bool,
}

/// Which end broke.
enum Broken {
    From(StreamError),
    To(StreamError),
}

impl Flow {
    /// Moves what there is, as far as there is room.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut End<'_>,
        to: &mut End<'_>,
    ) -> Result<(), Broken> {
        loop {
            let mut dry = false;
            while !self.ended && to.has_room() {
                match from.poll_data(cx) {
                    Poll::Ready(Ok(Some(data))) => {
                        self.bytes += data.len() as u64;
                        to.queue(data);
                    }
                    Poll::Ready(Ok(None)) => {
                        self.ended = true;
                        to.finish();
                    }
                    Poll::Ready(Err(error)) => return Err(Broken::From(error)),
                    Poll::Pending => {
                        dry = true;
                        break;
                    }
                }
            }
            match to.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.done = self.ended,
                Poll::Ready(Err(error)) => return Err(Broken::To(error)),
                Poll::Pending => return Ok(()),
            }
            // Where there was no room, there is some now.
            if self.ended || dry {
                return Ok(());
            }
        }
    }
}

/// Passes the change of protocol on and carries what follows.
///
/// # Errors
/// Either side broke, or the time of a stream is over.
pub(crate) async fn run(
    mut exchange: Exchange,
    down: &mut Down<'_>,
    response: &ResponseHead,
    journey: &mut Journey<'_>,
    deadlines: &mut Deadlines,
) -> Result<(), Failure> {
    down.send_head(response, false).map_err(|error| Failure::of_downstream(&error))?;
    let mut caller = match down {
        Down::H1(server) => End::of_wire(&mut server.wire),
        Down::H2(stream) => {
            let (source, sink) = stream.halves();
            End::Stream { source, sink }
        }
    };
    let mut endpoint = match &mut exchange {
        Exchange::H1 { client, .. } => End::of_wire(&mut client.wire),
        Exchange::H2(exchange) => {
            let (source, sink) = exchange.halves().expect("a stream becomes a tunnel when it was asked to");
            End::Stream { source, sink }
        }
    };
    let (mut up, mut back) = (Flow::default(), Flow::default());
    let carried = carry(journey, &mut caller, &mut endpoint, (&mut up, &mut back), deadlines).await;
    journey.record.bytes_received += up.bytes;
    journey.record.bytes_sent += back.bytes;
    if let Err(failure) = carried {
        caller.cut();
        endpoint.cut();
        return Err(failure);
    }
    journey.finish();
    Ok(())
}

async fn carry(
    journey: &Journey<'_>,
    caller: &mut End<'_>,
    endpoint: &mut End<'_>,
    (up, back): (&mut Flow, &mut Flow),
    deadlines: &mut Deadlines,
) -> Result<(), Failure> {
    let conn = journey.conn();
    let of_caller = |error| Failure::of_downstream(&error);
    let of_endpoint = |error| Failure::of_upstream(&error, true, false);
    poll_fn(|cx| {
        let before = up.bytes + back.bytes;
        up.poll_move(cx, caller, endpoint).map_err(|broken| match broken {
            Broken::From(error) => of_caller(error),
            Broken::To(error) => of_endpoint(error),
        })?;
        back.poll_move(cx, endpoint, caller).map_err(|broken| match broken {
            Broken::From(error) => of_endpoint(error),
            Broken::To(error) => of_caller(error),
        })?;
        if up.done && back.done {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(error) = caller.poll_broken(cx) {
            return Poll::Ready(Err(of_caller(error)));
        }
        if let Poll::Ready(error) = endpoint.poll_broken(cx) {
            return Poll::Ready(Err(of_endpoint(error)));
        }
        if before != up.bytes + back.bytes {
            conn.entry.progress(conn.worker.now());
        }
        if let Poll::Ready(cause) = deadlines.poll(cx, &conn.worker.timers) {
            return Poll::Ready(Err(Failure::local(cause)));
        }
        match conn.entry.order() {
            Some(Order::TimedOut(Phase::Exchange)) => {
                return Poll::Ready(Err(Failure::local(Cause::StreamIdleTimeout)));
            }
            Some(Order::Close(cause)) => return Poll::Ready(Err(Failure::local(cause))),
            Some(Order::Drain | Order::TimedOut(_) | Order::Shed) | None => {}
        }
        caller.rest();
        endpoint.rest();
        if conn.entry.is_asked() {
            let is = Moves::of(journey.record);
            let (received, answered) = (is.received + up.bytes, is.answered + back.bytes);
            journey.tell_under_way(&Moves { received, passed: received, answered, ..is });
        }
        conn.entry.watch(cx);
        Poll::Pending
    })
    .await
}

/// Whether the endpoint changed to what it was asked for, and proves it to a caller who has no key to see for itself.
///
/// # Errors
/// It did not, or does not.
pub(crate) fn check(
    down: &Down<'_>,
    sent: &Head<'_>,
    body: &RequestBody<'_>,
    response: &ResponseHead,
) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::upstream(Cause::UpstreamProtocolError, Retry::No).because(why));
    let Some(offer) = sent.upgrade.filter(|offer| upgrade::agrees(&response.fields, offer)) else {
        return refuse("a change of protocol that was not asked for");
    };
    // A stream that stays open behind an empty body waits for room before it counts as written.
    if !body.is_passed_on() {
        return refuse("a change of protocol before the whole request was sent");
    }
    if matches!(down, Down::H2(_)) && upgrade::is_websocket(offer) {
        let accepted =
            upgrade::key(sent.fields).is_some_and(|key| upgrade::is_accepted(&response.fields, key));
        if !accepted {
            return refuse("a WebSocket handshake with a wrong Sec-WebSocket-Accept");
        }
    }
    Ok(())
}
