//! A downstream connection of HTTP/2: what it may hold, what ends it, and a task per request.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, Reason};
use meshwork_decision::Cause;
use meshwork_http1::Limits;
use meshwork_telemetry::Protocol;

use super::Down;
use super::connection::{Conn, LINGER_BYTES, Link};
use super::guard::Guarded;
use super::h2::H2Stream;
use super::handshake;
use super::watch::{Fault, Watch};
use crate::connections::{Entry, Order, Phase, Registration};
use crate::error::Failure;
use crate::gather::{Flusher, Gathered};
use crate::http::convert;
use crate::http::estimate::SMALLEST;
use crate::http::flow::UNBOUNDED;
use crate::http::payload::{Backlog, Payload};
use crate::http::received::Received;
use crate::http::unread::Unread;
use crate::http::windows::{Bounds, Windows};
use crate::mesh::Place;
use crate::poll_time::timed_by_poll;
use crate::replay::Replayed;
use crate::request;
use crate::room::HTTP2_HEAD;
use crate::stream;
use crate::upstream::behind::unsent;
use crate::workspace::{Lent, Workspace};

/// Bytes of the bodies of one caller's connection that may be on the way to us unread, as long as none needs more than the
/// smallest window.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Between proxies a connection carries requests of many callers: those that the application does not read must not take
/// the window of those beside them.
const MESH_WINDOW: u32 = SMALLEST * MAX_STREAMS;
/// By so many streams' larger windows the connection's grows when theirs do.
const LARGER: u32 = 2;
/// Requests of one connection at the same time.
const MAX_STREAMS: u32 = 128;
/// The same of the application beside us: directly it would have as many calls under way as the service takes (gRPC's libraries set no
/// bound, Envoy 1,024), and whatever is beyond waits for ever and without a sign.
const OWN_STREAMS: u32 = 4096;
/// Bytes of one response's body that wait for the connection; all of them together are bounded by the backlog.
const SEND_BUFFER: usize = 32 * 1024;
/// Streams reset by us that are remembered, because frames of theirs may still be on the way; and for how long. Such a frame
/// provokes a further reset where its stream is forgotten.
const REMEMBERED_RESETS: usize = 64;
/// The same of a proxy of the mesh, whose connection carries what many callers still send.
const MESH_REMEMBERED_RESETS: usize = 1024;
const REMEMBERED_FOR: Duration = Duration::from_secs(1);
/// What small frames of requests that nobody has taken yet may cost, as `h2` counts: 256 less their length, each. They are joined long
/// before so many are there, so it is for what slips through.
const SMALL_FRAMES: usize = 2 * 1024 * 1024;
/// The same between proxies, whose tunnels' bytes are not joined, and may have large windows. One application that does not read must
/// not end the connection of all its callers: some 60 MiB at worst.
const HBONE_SMALL_FRAMES: usize = 64 * 1024 * 1024;
/// Requests taken back before we had a look at them: as many as there may be at all, so that one gust of cancellations
/// is no attack. Beyond it `h2` says GOAWAY.
const UNSEEN_RESETS: usize = 128;
/// The same of a proxy of the mesh: what many callers have taken back while we did not read.
const MESH_UNSEEN_RESETS: usize = 16 * 1024;
/// Resets that a caller may provoke by its own errors in a connection's life (CVE-2025-8671). A client that begins more
/// streams than it may, before it has read how many that are, spends some too.
const PROVOKED_RESETS: usize = 1024;
/// The same of a proxy of the mesh: what its callers do provokes few, and each waits in our memory while the peer does not read
/// (RUSTSEC-2024-0003).
const MESH_PROVOKED_RESETS: usize = 64 * 1024;
/// A request that its caller takes back sooner than this is suspicious: it costs us, and the caller nothing
/// (CVE-2023-44487).
const PREMATURE: Duration = Duration::from_secs(1);
/// So many of them, and more than half of all, end a connection. Envoy's rule. It is about strangers: a proxy of the mesh passes on what
/// its callers take back, on the connection of all of them, and who did nothing would lose their streams for it. There, and for the
/// application beside us, it is counted alone.
const PREMATURE_RESETS: u32 = 500;

/// How a connection's requests ended.
#[derive(Default)]
pub(crate) struct Resets {
    streams: Cell<u32>,
    premature: Cell<u32>,
}

impl Resets {
    fn ended(&self, premature: bool) {
        self.streams.set(self.streams.get().saturating_add(1));
        self.premature.set(self.premature.get().saturating_add(u32::from(premature)));
    }

    /// Found once; counting then begins anew.
    fn fault(&self) -> Option<Fault> {
        let (premature, streams) = (self.premature.get(), self.streams.get());
        (premature >= PREMATURE_RESETS && premature > streams / 2).then(|| {
            self.streams.set(0);
            self.premature.set(0);
            Fault::new(Reason::ENHANCE_YOUR_CALM, "rapid_reset")
        })
    }
}

/// What the streams of a connection have in common.
struct Common {
    /// The connection's own entry.
    entry: Rc<Entry>,
    resets: Resets,
    backlog: Rc<Backlog>,
    received: Rc<Received>,
    unread: Unread,
}

/// Whether a connection's resets are those of a stranger.
fn is_stranger(link: &Link) -> bool {
    link.caller.is_none() && !matches!(link.place, Place::Outbound(_))
}

/// What may be on the way on all streams of a connection together.
fn bounds(link: &Link) -> Bounds {
    let is_mesh = matches!(link.place, Place::Inbound(_) | Place::Hbone(_));
    let window = if is_mesh { MESH_WINDOW } else { CONNECTION_WINDOW };
    let is_beside_us = matches!(link.place, Place::Outbound(_));
    Bounds { window, streams: LARGER, grows: !is_beside_us, is_stranger: is_stranger(link) }
}

fn builder(limits: &Limits, link: &Link) -> Builder {
    let (unseen, provoked, remembered) = match is_stranger(link) {
        true => (UNSEEN_RESETS, PROVOKED_RESETS, REMEMBERED_RESETS),
        false => (MESH_UNSEEN_RESETS, MESH_PROVOKED_RESETS, MESH_REMEMBERED_RESETS),
    };
    let small_frames = match link.place {
        Place::Hbone(_) => HBONE_SMALL_FRAMES,
        Place::Gateway(_) | Place::Outbound(_) | Place::Inbound(_) => SMALL_FRAMES,
    };
    let streams = match link.place {
        Place::Outbound(_) => OWN_STREAMS,
        Place::Gateway(_) | Place::Inbound(_) | Place::Hbone(_) => MAX_STREAMS,
    };
    let mut builder = Builder::new();
    builder
        .initial_window_size(UNBOUNDED)
        .initial_connection_window_size(bounds(link).window)
        .max_concurrent_streams(streams)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(convert::longest_list(limits))
        .max_concurrent_reset_streams(remembered)
        .reset_stream_duration(REMEMBERED_FOR)
        .max_pending_accept_reset_streams(unseen)
        .max_local_error_reset_streams(Some(provoked))
        .data_frame_budget(small_frames)
        .enable_connect_protocol();
    builder
}

/// Serves a connection until it ends.
pub(crate) async fn serve(link: Rc<Link>, entry: Registration, io: Replayed) {
    let worker = &link.worker;
    let (gathered, flusher) = Gathered::new(io);
    let received = Rc::new(Received::new(HBONE_SMALL_FRAMES));
    let (guarded, watch) = Guarded::new(gathered, Rc::clone(worker), Rc::clone(&received));
    let builder = builder(&worker.shared.settings.limits, &link);
    entry.enter(Phase::Handshake, worker.now());
    let shaken = handshake::unless_ordered(&entry, builder.handshake::<_, Payload>(guarded)).await;
    let connection = match shaken {
        Ok(Some(Ok(connection))) => connection,
        Ok(Some(Err(error))) => return ended(&link, &error),
        Ok(None) | Err(_) => return worker.ends(&entry),
    };
    entry.enter(Phase::Idle, worker.now());
    let budget = Arc::clone(worker.shared.memory.windows());
    let windows = Box::new(Windows::new(Rc::clone(&received), budget, bounds(&link)));
    let (resets, backlog) = (Resets::default(), Rc::default());
    let common =
        Rc::new(Common { entry: entry.entry(), resets, backlog, received, unread: Unread::default() });
    let mut serving = Serving {
        link: &link,
        common: &common,
        connection,
        flusher,
        watch,
        windows,
        pings: None,
        is_asked: false,
        going_away: false,
        ending: false,
    };
    let peer = link.caller.as_ref().map(|caller| &caller.peer);
    while let Some(accepted) = poll_fn(|cx| serving.poll_next(cx)).await {
        let (request, respond) = match accepted {
            Ok(request) => request,
            Err(error) => return ended(&link, &error),
        };
        entry.progress(worker.now());
        entry.arrives();
        let own = worker.connections(link.place).register_stream(worker.now(), peer);
        let conn = Conn { link: Rc::clone(&link), entry: own };
        let serving = serve_stream(conn, Rc::clone(&common), request, respond);
        tokio::task::spawn_local(timed_by_poll(Rc::clone(worker), serving));
    }
}

/// What `h2` found wrong by itself.
fn ended(link: &Link, error: &h2::Error) {
    tracing::debug!(peer = %link.peer, %error, "HTTP/2 connection ended");
    if error.is_library() {
        let cause = match error.reason() {
            Some(Reason::ENHANCE_YOUR_CALM) => "flood",
            Some(Reason::FLOW_CONTROL_ERROR) => "flow_control",
            Some(Reason::FRAME_SIZE_ERROR) => "frame_size",
            Some(Reason::COMPRESSION_ERROR) => "compression",
            _ => "protocol_error",
        };
        link.worker.http2_fault(link.place, cause);
    }
}

struct Serving<'l> {
    link: &'l Rc<Link>,
    common: &'l Common,
    connection: Connection<Guarded, Payload>,
    flusher: Flusher,
    watch: Rc<Watch>,
    windows: Box<Windows>,
    /// Taken when the first one is sent: most connections send none.
    pings: Option<PingPong>,
    /// A PING of ours is on its way.
    is_asked: bool,
    going_away: bool,
    /// It was told why it ends.
    ending: bool,
}

type Accepted = (http::Request<h2::RecvStream>, SendResponse<Payload>);

impl Serving<'_> {
    /// The next request; `None` when there will be none.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Accepted, h2::Error>>> {
        if !self.obey() {
            return Poll::Ready(None);
        }
        if let Some(fault) = self.common.resets.fault() {
            if is_stranger(self.link) { self.end_for(fault) } else { self.count(&fault) }
        }
        self.turn_windows(cx);
        let mut accepted = self.connection.poll_accept(cx);
        if accepted.is_pending() && self.looked_at() {
            accepted = self.connection.poll_accept(cx);
        }
        self.windows.make_room(&mut self.connection);
        self.common.received.flow().watch(cx);
        if self.common.received.is_spent() && !self.going_away {
            // It is told so in the next turn.
            cx.waker().wake_by_ref();
        }
        if accepted.is_pending() {
            if self.watch.take_many_small() {
                self.common.unread.join();
            }
            let carries = self.connection.has_streams();
            self.common.entry.carries(carries);
            self.common.entry.watch(cx);
            if let Some(updates) = self.common.received.flow().updates() {
                self.flusher.put(&updates);
            }
            if let Poll::Ready(Err(error)) = self.flusher.poll_flush(cx, !carries) {
                tracing::debug!(peer = %self.link.peer, %error, "HTTP/2 connection broken");
                return Poll::Ready(None);
            }
        }
        accepted
    }

    /// Whether windows are as large as they have to be.
    fn turn_windows(&mut self, cx: &mut Context<'_>) {
        let pong = |pings: &mut PingPong| matches!(pings.poll_pong(cx), Poll::Ready(Ok(_)));
        let answered = self.is_asked && self.pings.as_mut().is_some_and(pong);
        self.is_asked &= !answered;
        if self.windows.turn(answered, !self.is_asked, &mut self.connection) {
            self.ask(cx);
        }
        if self.common.received.is_spent() {
            self.go_away();
        }
    }

    #[cold]
    fn ask(&mut self, cx: &mut Context<'_>) {
        let Some(pings) = self.pings.take().or_else(|| self.connection.ping_pong()) else { return };
        let pings = self.pings.insert(pings);
        self.is_asked = pings.send_ping(Ping::opaque()).is_ok();
        if self.is_asked && pings.poll_pong(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    /// Follows what was found in what has just been read; true: there is something to be said.
    fn looked_at(&mut self) -> bool {
        if let Some(fault) = self.watch.take_fault() {
            self.end_for(fault);
            return true;
        }
        // A head that has begun has its time, in however many frames it comes.
        let phase = if self.watch.reads_head() { Phase::Head } else { Phase::Idle };
        if self.common.entry.phase() != phase {
            self.common.entry.enter(phase, self.link.worker.now());
            if phase == Phase::Head {
                self.common.entry.holds(HTTP2_HEAD);
                let limits = &self.link.worker.shared.settings.limits;
                self.link.worker.grew(convert::longest_list(limits) as usize);
            }
        }
        if phase == Phase::Head && !self.has_room() {
            self.give_up();
            return true;
        }
        let done = self.watch.said_goodbye() && !self.ending && !self.connection.has_streams();
        if done {
            self.farewell();
        }
        done
    }

    /// Whether a head that is not whole may be held; what the connection carries besides is not ended for it.
    #[cold]
    fn has_room(&self) -> bool {
        let worker = &self.link.worker;
        let has_room = self.ending || !worker.memory.is_full() || self.connection.has_streams();
        if !has_room {
            worker.closed_for_memory("head");
        }
        has_room
    }

    /// There is no room for what it has begun.
    fn give_up(&mut self) {
        self.ending = true;
        self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    }

    /// Says that nothing is left, and ends with that.
    fn farewell(&mut self) {
        if !std::mem::replace(&mut self.ending, true) {
            self.connection.abrupt_shutdown(Reason::NO_ERROR);
        }
    }

    /// Does what the connection was told to do; false: it ends here.
    fn obey(&mut self) -> bool {
        let idle = !self.connection.has_streams();
        let (entry, worker) = (&self.common.entry, &self.link.worker);
        let is_late = || entry.waited(worker.now()) >= worker.shared.settings.timeouts.head;
        match entry.order() {
            // Only what idles can have idled too long.
            Some(Order::TimedOut(Phase::Idle)) if !idle => entry.disregard(worker.now()),
            // A caller that does not answer the goodbye is not waited for twice, but told which of its requests were taken.
            Some(Order::TimedOut(Phase::Idle)) if self.ending => return false,
            Some(Order::TimedOut(Phase::Idle)) if self.going_away => {
                entry.disregard(worker.now());
                self.farewell();
            }
            Some(Order::TimedOut(Phase::Idle)) => {
                entry.disregard(worker.now());
                self.go_away();
            }
            // Nor one who does not read why its connection ends.
            Some(Order::TimedOut(Phase::Head) | Order::Shed) if self.ending => return false,
            // Where memory is short, what runs on a connection does not end for what has begun on it.
            Some(Order::TimedOut(Phase::Head)) if !idle && !is_late() => entry.stays(),
            Some(Order::Shed) if !idle => entry.stays(),
            Some(Order::TimedOut(Phase::Head)) => {
                entry.disregard(worker.now());
                self.end_for(Fault::new(Reason::ENHANCE_YOUR_CALM, Cause::RequestHeaderTimeout.as_str()));
            }
            Some(Order::Shed) => {
                worker.ends(entry);
                entry.disregard(worker.now());
                self.give_up();
            }
            Some(Order::Drain) => self.go_away(),
            // Its streams are told the same: each says by itself that it is not whole, and then it is over.
            Some(Order::Close(Cause::Draining)) if !idle => self.go_away(),
            Some(Order::Close(Cause::Draining)) => self.farewell(),
            Some(Order::Close(_) | Order::TimedOut(Phase::Handshake)) => return false,
            Some(Order::TimedOut(Phase::Exchange | Phase::Body | Phase::Answered)) | None => {}
        }
        true
    }

    /// Says goodbye in two steps (RFC 9113 section 6.8): what is on the way is still taken.
    fn go_away(&mut self) {
        if !std::mem::replace(&mut self.going_away, true) {
            // The caller has its time to answer from here on.
            self.common.entry.progress(self.link.worker.now());
            self.connection.graceful_shutdown();
        }
    }

    fn count(&self, fault: &Fault) {
        let Link { worker, place, peer, .. } = &**self.link;
        worker.http2_fault(*place, fault.cause);
        tracing::debug!(%peer, listener = %place, cause = fault.cause, "fault of an HTTP/2 connection");
    }

    fn end_for(&mut self, fault: Fault) {
        self.count(&fault);
        self.ending = true;
        self.connection.abrupt_shutdown(fault.reason);
    }
}

/// A stream that its peer has begun before it heard that all is over is not worth the while of whoever would get it.
fn in_time(order: Option<Order>, in_mesh: bool) -> Result<(), Failure> {
    match order {
        Some(Order::Close(cause)) => Err(unsent(Failure::closed(cause, in_mesh))),
        _ => Ok(()),
    }
}

async fn serve_stream(
    conn: Conn,
    common: Rc<Common>,
    request: http::Request<h2::RecvStream>,
    respond: SendResponse<Payload>,
) {
    if matches!(conn.place, Place::Hbone(_)) {
        let now = conn.worker.now();
        Box::pin(stream::hbone::serve(conn, request, respond, &common.backlog, &common.received)).await;
        return common.entry.progress(now);
    }
    let started = conn.worker.now();
    let mut space = Lent::new(&conn.worker, Protocol::Http2);
    let Workspace { head, scratch } = &mut *space;
    let limits = &conn.worker.shared.settings.limits;
    let read = match conn.place {
        Place::Inbound(_) => convert::request_into(&request, &convert::with_fields_of_proxies(*limits), head),
        _ => convert::request_into(&request, limits, head),
    };
    let Common { backlog, received, unread, .. } = &*common;
    let stream = H2Stream::new(request, respond, Rc::clone(backlog), (received, unread), limits);
    let mut down = Down::H2(Box::new(stream));
    match read.and_then(|()| in_time(conn.entry.order(), conn.caller.is_some())) {
        Ok(()) => request::serve(&conn, head, &mut down, scratch, started).await,
        Err(failure) => request::refuse(&conn, head, &mut down, scratch, &failure, started).await,
    }
    let lasted = conn.worker.now().since(started);
    common.resets.ended(scratch.was_taken_back() && lasted < PREMATURE);
    drop(space);
    if let Down::H2(stream) = &mut down
        && stream.is_answered_early()
    {
        linger(&conn, stream, common.received.flow().grown()).await;
    }
    common.entry.progress(conn.worker.now());
}

/// Waits for a caller that was answered before its request was whole to end that, or to take it back. RST_STREAM right behind the
/// response would be allowed (RFC 9113 section 8.1), but who has not read the response by then, as curl, knows of its failed upload alone.
///
/// `more`: so much larger has its window become, and may be on its way.
async fn linger(conn: &Conn, stream: &mut H2Stream, more: u32) {
    conn.entry.enter(Phase::Answered, conn.worker.now());
    // It is told of room as it is taken.
    let mut left = LINGER_BYTES + u64::from(more + more / 4);
    poll_fn(|cx| {
        let is_over = conn.entry.order().is_some_and(|order| order != Order::Drain);
        if is_over || stream.poll_linger(cx, &mut left).is_ready() {
            return Poll::Ready(());
        }
        conn.entry.watch(cx);
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Retry;

    fn size<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_stream_s_future_stays_small() {
        assert!(size(serve_stream) <= 3136, "a stream's future is {} bytes", size(serve_stream));
    }

    #[test]
    fn a_stream_that_comes_when_all_is_over_is_refused_so_that_it_may_go_elsewhere() {
        let late = |in_mesh| in_time(Some(Order::Close(Cause::Draining)), in_mesh).unwrap_err();
        assert_eq!((late(true).cause, late(true).retry), (Cause::Draining, Retry::NothingSent));
        assert_eq!(late(false).retry, Retry::No, "that caller is answered");
        assert!(in_time(Some(Order::Drain), true).is_ok() && in_time(None, true).is_ok());
    }

    #[test]
    fn cancellations_among_other_requests_are_no_attack() {
        let resets = Resets::default();
        for number in 0..3 * PREMATURE_RESETS {
            resets.ended(number % 2 == 1);
            assert_eq!(resets.fault(), None, "half of them");
        }
        for _ in 0..PREMATURE_RESETS {
            resets.ended(true);
        }
        assert_eq!(resets.fault().map(|fault| fault.cause), Some("rapid_reset"));
    }
}
