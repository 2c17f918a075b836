//! HTTP/2 towards an endpoint: a connection that many requests share, and one request's stream on it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::client::{ResponseFuture, SendRequest};
use http::Method;
use meshwork_base::{Clock, Tick};
use meshwork_decision::Cause;
use meshwork_http1::{Fields, Limits, ResponseHead};
use meshwork_identity::Peer;
use tokio::task::AbortHandle;

use super::Head;
use super::alive::{ANSWER, Alive, Next, Seen};
use super::counted::Counted;
use super::mesh::Validity;
use super::pings::Pings;
use super::pool::{Opened, Room};
use super::task::Task;
use crate::error::{Failure, Retry};
use crate::gather::{Flusher, Gathered};
use crate::http::convert;
use crate::http::estimate::SMALLEST;
use crate::http::flow::UNBOUNDED;
use crate::http::h2_body::{H2Sink, H2Source};
use crate::http::payload::{Backlog, Payload};
use crate::http::received::Received;
use crate::http::stream::{Frame, Interim, StreamError, told};
use crate::http::tunnel::Tunnel;
use crate::http::upgrade;
use crate::http::windows::{Bounds, Budget, Windows};
use crate::replay::Replayed;
use crate::timers::timeout;

/// Requests of one connection at the same time, however many the peer would take.
const MAX_STREAMS: usize = 128;
/// So long a new connection's peer has at least to say how many it takes, before others count on it to take them: `h2` holds them back
/// until it has said so. What is waited for longer is the endpoint, and what the time is held against.
const SETTINGS: Duration = Duration::from_millis(100);
/// The same at most, however long the way there seemed: a connection takes as long to make where an endpoint that takes none off its
/// queue lets the first packets be lost, and whoever waits for that one's word waits for nothing.
const FAR: Duration = Duration::from_secs(1);
/// Bytes of all responses of one connection that may be on the way to us unread, as long as none needs more than the smallest
/// window: callers that do not read must not take the window of those beside them.
const CONNECTION_WINDOW: u32 = SMALLEST * MAX_STREAMS as u32;
/// Bytes of one request's body that wait here for the connection.
const SEND_BUFFER: usize = 64 * 1024;
/// Responses that we gave up and whose frames may still be on the way: so many are remembered, and for how long. A caller
/// who leaves must cost those beside him nothing, and an endpoint may be slow to hear of it.
const REMEMBERED_RESETS: usize = 1024;
const REMEMBERED_FOR: Duration = Duration::from_secs(30);
/// Resets that an endpoint may provoke in a connection's life, by frames of streams that are forgotten or by broken ones: each waits
/// in our memory while it does not read (RUSTSEC-2024-0003).
const PROVOKED_RESETS: usize = 64 * 1024;
/// After so many responses that we gave up another connection is made in its place, for its life may be days, and what still comes
/// of each provokes some of those resets.
const GIVEN_UP: u32 = 4 * 1024;
/// What small frames that nobody has read yet may cost, as `h2` counts: 256 less their length, each. Beyond it the
/// connection ends with all requests on it, so callers who do not read must not get there: this is many streams' windows
/// full of small messages, and at worst some 130 MiB of our memory.
const SMALL_FRAMES: usize = 128 * 1024 * 1024;

/// By so many streams' larger windows that of the connection, which has the most already, grows when theirs do.
const LARGER: u32 = 2;

/// How long the peer of a new connection has to say how many streams it takes, by how long it takes there and back.
pub(super) fn patience(round_trip: Duration) -> Duration {
    // One that is far away has said so, and we have not heard it yet.
    round_trip.saturating_mul(3).clamp(SETTINGS, FAR)
}

/// So long before an SVID of its handshake expires a connection may end by that: its peer looks when it does, and by its own clock.
const SKEW: Duration = Duration::from_secs(2);

/// Why a connection that leads nowhere has ended.
const SILENT: &str = "no answer to a PING within 5 s: the connection leads nowhere";

fn builder(limits: &Limits) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(UNBOUNDED)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Until the peer has said how many it takes: what is more it may refuse, and some take one.
        .initial_max_send_streams(1)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(convert::longest_list(limits))
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .reset_stream_duration(REMEMBERED_FOR)
        .max_local_error_reset_streams(Some(PROVOKED_RESETS))
        .data_frame_budget(SMALL_FRAMES)
        .enable_push(false);
    builder
}

/// A connection to one endpoint.
pub(crate) struct H2Connection {
    send: RefCell<SendRequest<Payload>>,
    backlog: Rc<Backlog>,
    received: Rc<Received>,
    streams: Cell<usize>,
    /// When it was last known to carry a stream.
    used: Cell<Tick>,
    carried: Cell<u64>,
    /// Responses that were given up before their end.
    given_up: Cell<u32>,
    /// Its task has ended.
    ended: Rc<Cell<bool>>,
    /// Nobody will use it any more.
    left: Rc<Cell<bool>>,
    /// It takes no more requests.
    retired: Cell<bool>,
    /// Its peer was waited for, and has not said in time how many streams it takes.
    silent: Cell<bool>,
    pings: Rc<Pings>,
    alive: Rc<Alive>,
    /// What moves on it.
    moving: Flusher,
    svid: Option<Validity>,
    /// Carries its frames.
    task: AbortHandle,
    /// Who is told when a stream has ended.
    room: Room,
    open: Opened,
}

impl H2Connection {
    /// Speaks HTTP/2 over `io` and leaves a task behind that carries its frames.
    ///
    /// # Errors
    /// The preface could not be exchanged; nothing of a request was sent.
    pub(crate) async fn start(
        io: Replayed,
        limits: &Limits,
        open: Opened,
        now: Tick,
        svid: Option<Validity>,
        budget: &Arc<Budget>,
        may_be_far: bool,
    ) -> Result<Rc<Self>, Failure> {
        let (gathered, flusher) = Gathered::new(io);
        let received = Rc::new(Received::new(SMALL_FRAMES));
        let counted = Counted::new(gathered, Rc::clone(&received));
        let (send, connection) = builder(limits).handshake(counted).await.map_err(|error| {
            Failure::upstream(Cause::ConnectFailure, Retry::NothingSent).because(told(&error))
        })?;
        let (ended, left) = (Rc::<Cell<bool>>::default(), Rc::<Cell<bool>>::default());
        let (pings, alive) = (Rc::<Pings>::default(), Rc::new(Alive::new(now, svid.is_some())));

        let bounds = Bounds {
            window: CONNECTION_WINDOW,
            streams: LARGER,
            grows: may_be_far,
            is_stranger: svid.is_none(),
        };
        let task = Task {
            windows: Box::new(Windows::new(Rc::clone(&received), Arc::clone(budget), bounds)),
            received: Rc::clone(&received),
            flusher: flusher.clone(),
            pings: Rc::clone(&pings),
            alive: Rc::clone(&alive),
            ended: Rc::clone(&ended),
            left: Rc::clone(&left),
            room: open.room(),
        };
        let task = tokio::task::spawn_local(task.carry(connection));
        Ok(Rc::new(Self {
            send: RefCell::new(send),
            backlog: Rc::default(),
            received,
            streams: Cell::new(0),
            used: Cell::new(now),
            carried: Cell::new(0),
            given_up: Cell::new(0),
            ended,
            left,
            retired: Cell::new(false),
            silent: Cell::new(false),
            pings,
            alive,
            moving: flusher,
            svid,
            task: task.abort_handle(),
            room: open.room(),
            open,
        }))
    }

    /// It takes no more requests.
    pub(crate) fn is_closed(&self) -> bool {
        self.ended.get() || self.retired.get()
    }

    /// Looks at the time (since the Unix epoch): shortly before an SVID of its handshake expires it takes no more
    /// requests, and with it, it ends.
    pub(crate) fn judge(&self, wall: Duration) {
        let Some(svid) = &self.svid else { return };
        if wall >= svid.ends {
            self.cut();
        } else if wall >= svid.retires && !self.retired.replace(true) {
            self.room.call();
        }
    }

    /// Looks whether it still leads anywhere, as the worker's sweep does. `late`: the worker has stood still before.
    pub(crate) fn look(&self, now: Tick, late: bool) {
        if self.is_over() {
            return;
        }
        let seen = Seen {
            now,
            moved: self.moving.moved(),
            carried: self.carried.get(),
            is_busy: self.is_busy(),
            is_asked: self.pings.is_under_way(),
            late,
        };
        self.follow(self.alive.look(&seen, || self.moving.on_the_way()));
    }

    fn follow(&self, next: Next) {
        match next {
            Next::Nothing => {}
            Next::Trust => self.room.call(),
            Next::Ask => self.pings.ask(),
            Next::GiveUp => self.give_up(),
        }
    }

    /// Nobody is there: what runs on it fails, and may go another way.
    #[cold]
    fn give_up(&self) {
        let to = self.moving.peer().map(|peer| peer.to_string()).unwrap_or_default();
        let (streams, seconds) = (self.streams.get(), ANSWER.as_secs());
        tracing::info!(to, streams, seconds, "upstream HTTP/2 connection given up: no answer to a PING");
        self.retired.set(true);
        self.moving.break_off(SILENT);
        self.pings.wake();
        self.room.call();
    }

    /// It takes new streams only where no other does: it may lead nowhere.
    pub(crate) fn is_doubted(&self) -> bool {
        self.alive.is_doubted()
    }

    /// New streams go to another where one can be made: what few do not read takes all of its window.
    pub(crate) fn is_crowded(&self) -> bool {
        self.received.is_crowded()
    }

    #[cfg(test)]
    pub(crate) fn crowds(&self) {
        self.received.set_crowded(true);
    }

    /// The same, while what its windows have grown by is wanted elsewhere.
    pub(crate) fn is_spent(&self) -> bool {
        self.received.is_spent()
    }

    /// The same as of one in doubt, since so much was given up on it. A limit may allow no other beside what runs on it.
    pub(crate) fn is_worn(&self) -> bool {
        self.given_up.get() >= GIVEN_UP
    }

    /// How many connections there are beyond a limit that has fallen.
    #[inline]
    pub(crate) fn beyond(&self) -> usize {
        self.open.beyond()
    }

    /// Whom it is with, where that was proven.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.svid.as_ref().map(|svid| &svid.peer)
    }

    /// Ends it, and what runs on it.
    pub(crate) fn cut(&self) {
        // Whoever is called looks at it again, and would be called for it again.
        if self.ended.replace(true) {
            return;
        }
        self.task.abort();
        self.pings.over();
        self.room.call();
    }

    /// Whether it has ended, if it has, with an SVID of its handshake: here or at its peer, and by no fault of whoever it led to.
    fn has_run_out(&self, wall: Duration) -> bool {
        self.svid.as_ref().is_some_and(|svid| wall.saturating_add(SKEW) >= svid.ends)
    }

    /// The key of the handshake that becomes an extended CONNECT here; `None`: the request does not ask for a change
    /// of protocol that the peer takes, and goes without. To know that belongs to making the connection, and has its time.
    ///
    /// # Errors
    /// The peer does not say in time what it takes.
    async fn extended<'h>(&self, head: &Head<'h>, time: Duration) -> Result<Option<&'h [u8]>, Failure> {
        let websocket = head.upgrade.is_some_and(upgrade::is_websocket) && *head.method == Method::GET;
        let Some(key) = upgrade::key(head.fields).filter(|_| websocket) else { return Ok(None) };
        let taken = || self.send.borrow().is_extended_connect_protocol_enabled();
        if !taken() {
            // Whoever asks for a WebSocket pays for the wait alone.
            let settled = Box::pin(timeout(time, self.pings.settled(taken))).await;
            settled.map_err(|_| self.says_nothing(time))?;
        }
        Ok(taken().then_some(key))
    }

    #[cold]
    fn says_nothing(&self, time: Duration) -> Failure {
        let to = self.moving.peer().map(|peer| peer.to_string()).unwrap_or_default();
        let why = format!(
            "{to}: neither its settings nor the answer to a PING have said within {time:?} whether it takes a WebSocket"
        );
        Failure::upstream(Cause::ConnectTimeout, Retry::NothingSent).because(why)
    }

    /// It can be let go: what runs on it, if anything, has ended with it.
    pub(crate) fn is_over(&self) -> bool {
        let takes_none = self.retired.get() || self.is_worn() || self.is_spent();
        self.ended.get() || self.task.is_finished() || (takes_none && !self.is_busy())
    }

    /// Its peer has not said yet how many streams it takes; whoever comes waits for that instead of making another.
    pub(crate) fn is_new(&self) -> bool {
        !self.is_closed() && !self.silent.get() && self.has_heard_nothing()
    }

    fn has_heard_nothing(&self) -> bool {
        self.moving.moved().heard == 0
    }

    fn most_streams(&self) -> usize {
        let said = self.send.borrow().current_max_send_streams();
        if said == 1 && self.silent.get() && self.has_heard_nothing() {
            MAX_STREAMS
        } else {
            said.min(MAX_STREAMS)
        }
    }

    /// Waits until it is [new](Self::is_new) no more, or takes another stream, or none since it may lead nowhere. `late` is called when
    /// what is waited for is the endpoint.
    pub(super) async fn settles(&self, late: impl FnOnce()) {
        if self.says_within(SETTINGS).await {
            return;
        }
        late();
        let left = self.open.patience.saturating_sub(SETTINGS);
        if left.is_zero() || !self.says_within(left).await {
            self.silent.set(true);
            // Who waits beside us waits for the same.
            self.pings.moved();
        }
    }

    async fn says_within(&self, time: Duration) -> bool {
        // What comes first are the peer's settings (RFC 9113 section 3.4).
        let says = self.pings.heard(|| !self.is_new() || self.has_room() || self.is_doubted());
        timeout(time, says).await.is_ok()
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.is_closed() && self.streams.get() < self.most_streams()
    }

    /// Whether it has carried a request before.
    pub(crate) fn is_reused(&self) -> bool {
        self.carried.get() > 0
    }

    /// Whether a stream is open.
    pub(crate) fn is_busy(&self) -> bool {
        self.streams.get() > 0
    }

    /// Since its last stream was opened, or was still there when this was asked.
    pub(crate) fn idle_for(&self, now: Tick) -> Duration {
        if self.is_busy() {
            self.used.set(now);
        }
        now.since(self.used.get())
    }

    /// Sends a request's head, where there is [room](Self::has_room) for it. `end`: it has no body. `time`: how long a
    /// connection may take to be made.
    ///
    /// # Errors
    /// The connection takes no more streams, or does not say in time whether it takes this one; nothing was sent.
    pub(crate) async fn send(
        self: &Rc<Self>,
        head: &Head<'_>,
        end: bool,
        clock: &dyn Clock,
        time: Duration,
    ) -> Result<H2Exchange, Failure> {
        let stream = Stream::open(self, clock);
        let key = match self.extended(head, time).await {
            Ok(key) => key,
            Err(failure) => {
                stream.ran_out(clock.now());
                return Err(failure);
            }
        };
        let request = convert::request(head, key.is_some())
            .map_err(|why| Failure::local(Cause::Internal).because(why))?;
        let end = end && key.is_none();
        self.send_request(stream, request, end, key.map(Into::into)).await
    }

    /// Asks for a tunnel to this authority (RFC 9113, section 8.5).
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) async fn connect(
        self: &Rc<Self>,
        authority: http::uri::Authority,
        clock: &dyn Clock,
    ) -> Result<H2Exchange, Failure> {
        let stream = Stream::open(self, clock);
        let mut request = http::Request::new(());
        *request.method_mut() = http::Method::CONNECT;
        *request.uri_mut() = authority.into();
        self.send_request(stream, request, false, None).await
    }

    async fn send_request(
        &self,
        stream: Stream,
        request: http::Request<()>,
        end: bool,
        key: Option<Box<[u8]>>,
    ) -> Result<H2Exchange, Failure> {
        let nothing_sent = |error: h2::Error| {
            Failure::upstream(Cause::UpstreamReset, Retry::NothingSent).because(told(&error))
        };
        let handle = self.send.borrow().clone();
        let mut send = match handle.ready().await {
            Ok(send) => send,
            Err(error) => {
                self.retired.set(true);
                self.room.call();
                return Err(nothing_sent(error));
            }
        };
        let reused = self.is_reused();
        // From here on it is `h2`'s, and counts as sent.
        let (response, sink) = send.send_request(request, end).map_err(nothing_sent)?;
        self.carried.set(self.carried.get() + 1);
        Ok(H2Exchange {
            response: Some(response),
            sink: H2Sink::new(sink, &self.backlog, end),
            source: None,
            reused,
            key,
            stream,
            interim: Interim::default(),
        })
    }
}

impl Drop for H2Connection {
    /// What still leaves is the goodbye, for which its task waits no longer than it must.
    fn drop(&mut self) {
        self.left.set(true);
        self.pings.wake();
    }
}

/// Counts a stream as long as it lives.
pub(crate) struct Stream {
    connection: Rc<H2Connection>,
    opened: Tick,
    /// What its connection had heard then.
    heard: u64,
    /// All of its response has come.
    is_whole: Cell<bool>,
}

impl Stream {
    fn open(connection: &Rc<H2Connection>, clock: &dyn Clock) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        let heard = connection.moving.moved().heard;
        Self { connection: Rc::clone(connection), opened: clock.now(), heard, is_whole: Cell::new(false) }
    }

    /// Nothing more of it will come.
    pub(crate) fn is_whole(&self) {
        self.is_whole.set(true);
    }

    /// Its time was over. Where nothing at all has come since it was opened, the connection has to prove that it lives.
    fn ran_out(&self, now: Tick) {
        let H2Connection { moving, alive, .. } = &*self.connection;
        let moved = moving.moved();
        if moved.heard == self.heard {
            self.connection.follow(alive.doubt(moved, now, || moving.on_the_way()));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.streams.set(self.connection.streams.get() - 1);
        if !self.is_whole.get() {
            self.connection.given_up.set(self.connection.given_up.get().saturating_add(1));
        }
        self.connection.room.call();
        self.connection.pings.moved();
        self.connection.used.set(self.connection.used.get().max(self.opened));
    }
}

/// One request and its response.
pub(crate) struct H2Exchange {
    response: Option<ResponseFuture>,
    pub(crate) sink: H2Sink,
    source: Option<H2Source>,
    pub(crate) reused: bool,
    /// Of a change of protocol that was asked for and is not decided yet, or was agreed to.
    key: Option<Box<[u8]>>,
    stream: Stream,
    interim: Interim,
}

impl H2Exchange {
    /// When the connection was made.
    pub(crate) fn born(&self) -> Tick {
        self.stream.connection.open.since
    }

    /// How long it takes there and back.
    pub(crate) fn round_trip(&self) -> Duration {
        self.stream.connection.open.round_trip
    }

    /// Who it is with has proven to be of the mesh.
    pub(crate) fn is_in_mesh(&self) -> bool {
        self.stream.connection.svid.is_some()
    }

    /// See [`H2Connection::has_run_out`].
    pub(crate) fn has_run_out(&self, wall: Duration) -> bool {
        self.stream.connection.has_run_out(wall)
    }

    /// See [`super::Exchange::ran_out`].
    pub(crate) fn ran_out(&self, now: Tick) {
        self.stream.ran_out(now);
    }

    /// The next head of the response: informational ones first, then the final one.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        limits: &Limits,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), StreamError>> {
        let response = self.response.as_mut().expect("asked for no head after the final one");
        if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            let interim = interim?;
            // RFC 9113 section 8.6: HTTP/2 has no such status, and nothing would follow it as a response.
            if interim.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                return Poll::Ready(Err(h2::Error::from(h2::Reason::PROTOCOL_ERROR).into()));
            }
            convert::response_into(&interim, true, head)?;
            return Poll::Ready(self.interim.add(head, limits));
        }
        let (parts, recv) = ready!(Pin::new(response).poll(cx))?.into_parts();
        let is_end = recv.is_end_stream();
        if is_end {
            self.stream.is_whole();
        }
        convert::response_into(&http::Response::from_parts(parts, ()), is_end, head)?;
        convert::check_bounds(&head.fields, &convert::with_fields_of_proxies(*limits))?;
        self.source = Some(H2Source::new(recv, &self.stream.connection.received, limits));
        self.response = None;
        match self.key.take() {
            Some(key) if head.status / 100 == 2 => {
                upgrade::switched(head, &key).expect("constants and base64 are field values");
                self.key = Some(key);
            }
            Some(_) => {
                // Refused, in a response like any other: nothing will be sent to it.
                upgrade::refused(head);
                self.sink.end(None);
                if let Poll::Ready(Err(error)) = self.sink.poll_flush(cx) {
                    // The peer has closed its side of the stream already, which is as good.
                    tracing::trace!(%error, "a refused change of protocol");
                }
            }
            None => {}
        }
        Poll::Ready(Ok(()))
    }

    /// The request's body is complete. What was to become a tunnel has none, and stays open.
    pub(crate) fn end(&mut self, trailers: Option<Box<Fields>>) {
        if self.key.is_none() {
            self.sink.end(trailers);
        }
    }

    /// Both directions, once the peer agreed to a tunnel.
    pub(crate) fn halves(&mut self) -> Option<(&mut H2Source, &mut H2Sink)> {
        self.key.as_ref()?;
        Some((self.source.as_mut()?, &mut self.sink))
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        let frame = self.source.as_mut().expect("a body follows its head").poll_frame(cx);
        if matches!(frame, Poll::Ready(Ok(Frame::End(_)))) {
            self.stream.is_whole();
        }
        frame
    }

    /// What a CONNECT has opened, once its response is there.
    pub(crate) fn into_tunnel(self) -> Tunnel {
        let source = self.source.expect("a tunnel follows its head");
        Tunnel::new(source, self.sink, Some(self.stream))
    }

    pub(crate) fn is_end(&self) -> bool {
        let is_end = self.source.as_ref().is_some_and(H2Source::is_end);
        if is_end {
            self.stream.is_whole();
        }
        is_end
    }
}

#[cfg(test)]
mod tests;
