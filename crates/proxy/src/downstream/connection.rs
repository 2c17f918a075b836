//! A downstream connection's life: handshake, which version, requests, end.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use meshwork_base::{SpiffeId, Tick};
use meshwork_decision::{Cause, Protocol};
use tokio::net::TcpStream;

use super::Down;
use super::detect::{Detected, detect};
use super::h1::{self, H1Server};
use super::handshake::{self, Caller, Opened, Refused};
use super::proxied::{self, Ends};
use super::streams;
use crate::connections::{Entry, Order, Phase, Registration};
use crate::error::Failure;
use crate::gauges::OpenDownstream;
use crate::http::stream::StreamError;
use crate::io::Io;
use crate::mesh::Place;
use crate::replay::Replayed;
use crate::request;
use crate::series::LastSeries;
use crate::stream;
use crate::wire::Wire;
use crate::worker::Worker;
use crate::workspace::{Lent, Workspace};

/// Of a caller that will not stop sending, so much is read before the connection is closed.
pub(super) const LINGER_BYTES: u64 = 1024 * 1024;

/// What a caller of HTTP is told where TLS is spoken.
const PLAIN_HTTP: &str =
    "plain_http: this port speaks HTTPS, and this is a request of plain HTTP; use https://";

/// What all requests of a connection have in common.
pub(crate) struct Link {
    pub(crate) worker: Rc<Worker>,
    pub(crate) place: Place,
    pub(crate) peer: SocketAddr,
    /// Its address as upstreams are told it.
    pub(crate) peer_text: Box<str>,
    /// Which address was called.
    pub(crate) local: SocketAddr,
    /// The server name of the TLS handshake.
    pub(crate) sni: Option<Arc<str>>,
    /// TLS ended here, as callers at the edge see it.
    pub(crate) https: bool,
    /// Who called, where that was proven.
    pub(crate) caller: Option<Caller>,
    pub(crate) series: RefCell<Option<LastSeries>>,
    /// It came by a CONNECT, behind which there is no other.
    pub(crate) is_inside: Cell<bool>,
    _open: OpenDownstream,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("place", &self.place).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Link {
    /// Whether the listener that it came in by is gone. Over TLS that is the one that the handshake chose; in plaintext each
    /// request finds its own on the port.
    pub(crate) fn is_left_behind(&self) -> bool {
        if !matches!(self.place, Place::Gateway(_)) {
            return false;
        }
        let view = self.worker.view();
        view.binding(self.place).is_none_or(|binding| match binding.protocol {
            Protocol::Http => self.https,
            Protocol::Https => !self.https || binding.certificates_for(self.sni.as_deref()).is_none(),
            Protocol::Tls | Protocol::Tcp => true,
        })
    }

    /// Who called, where that was proven.
    pub(crate) fn peer_id(&self) -> Option<&SpiffeId> {
        self.caller.as_ref().map(|caller| &caller.peer.id)
    }
}

/// What carries one request at a time: a connection of HTTP/1, a stream of HTTP/2.
pub(crate) struct Conn {
    pub(crate) link: Rc<Link>,
    pub(crate) entry: Registration,
}

impl std::ops::Deref for Conn {
    type Target = Link;
    fn deref(&self) -> &Link {
        &self.link
    }
}

impl Conn {
    /// Whether the connection ends behind the request that is under way.
    fn takes_no_more(&self) -> bool {
        self.entry.is_draining() || self.entry.order().is_some()
    }

    /// Call before the head of a response is sent.
    pub(crate) fn say_whether_last(&self, down: &mut Down<'_>) {
        if self.takes_no_more() {
            down.is_last();
        }
    }
}

/// Serves a connection until it ends. A drain waits for it from the call on, not from the first poll.
pub(crate) fn serve(
    worker: Rc<Worker>,
    place: Place,
    tcp: TcpStream,
    peer: SocketAddr,
) -> impl Future<Output = ()> {
    let entry = worker.connections(place).register(worker.now());
    go_on(Box::pin(begin(worker, (place, entry), tcp, peer)))
}

/// The future is what an idle connection costs: a handshake and requests have boxes of their own, which are gone while nothing comes.
async fn go_on(begun: impl Future<Output = Option<Begun>>) {
    let Some(begun) = begun.await else { return };
    let Begun { mut conn, mut io, http2 } = begun;
    if http2 == Some(true) {
        return Box::pin(streams::serve(conn.link, conn.entry, Replayed::new(BytesMut::new(), io))).await;
    }
    let mut is_http1 = http2.is_some();
    // TLS may have read ahead of its handshake what the socket then does not show any more.
    let mut awake = !matches!(io, Io::Tcp(_));
    while awake || rest(&conn, &io).await {
        match Box::pin(serve_awake(conn, Wire::new(io), is_http1)).await {
            Some(rested) => Rested { conn, io, is_http1 } = rested,
            None => return,
        }
        awake = false;
    }
}

/// A connection that is ready for its first request.
struct Begun {
    conn: Conn,
    io: Io,
    /// What the handshake agreed on; absent: the first bytes tell.
    http2: Option<bool>,
}

/// A connection that has had nothing to do for a while.
struct Rested {
    conn: Conn,
    io: Io,
    is_http1: bool,
}

/// Waits for the next bytes with nothing but the socket; false when the connection is told to end.
async fn rest(conn: &Conn, io: &Io) -> bool {
    poll_fn(|cx| {
        if io.tcp().poll_read_ready(cx).is_ready() {
            // What failed is found by whoever reads.
            return Poll::Ready(true);
        }
        if conn.entry.leaves() {
            conn.worker.ends(&conn.entry);
            return Poll::Ready(false);
        }
        conn.entry.watch(cx);
        Poll::Pending
    })
    .await
}

/// Serves until the connection ends or has been idle for a while. It is boxed once for each such time, never per request.
async fn serve_awake(conn: Conn, mut wire: Wire, is_http1: bool) -> Option<Rested> {
    if !is_http1 {
        match detect(&mut wire, &conn.entry, || conn.worker.now()).await {
            Ok(Detected::Http1) => {}
            Ok(Detected::Http2) => {
                // Its state would make the future of HTTP/1.1 half as large again.
                Box::pin(streams::serve(conn.link, conn.entry, replayed(wire))).await;
                return None;
            }
            Ok(Detected::Nothing) => {
                conn.worker.ends(&conn.entry);
                return None;
            }
            Ok(Detected::Idle) => return Some(Rested { conn, io: wire.io, is_http1 }),
            Err(error) => {
                tracing::debug!(peer = %conn.peer, %error, "a connection broke before its first request");
                return None;
            }
        }
    }
    let (conn, io) = serve_h1(conn, wire).await?;
    Some(Rested { conn, io, is_http1: true })
}

/// Which address was called. `None`: the connection has ended.
fn prepare(tcp: &TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
    match tcp.set_nodelay(true).and_then(|()| tcp.local_addr()) {
        Ok(local) => Some(local),
        Err(error) => {
            tracing::debug!(%peer, %error, "a connection ended before it began");
            None
        }
    }
}

/// What comes before the first byte of HTTP. `None`: the connection has ended, or was served in another way.
async fn begin(
    worker: Rc<Worker>,
    (place, entry): (Place, Registration),
    mut tcp: TcpStream,
    peer: SocketAddr,
) -> Option<Begun> {
    let open = worker.accepted(place);
    let local = prepare(&tcp, peer)?;
    let mut ends = Ends { peer, local };
    let binding = worker.view().binding(place).map(Arc::clone);
    if let Some(policy) = binding.as_ref().and_then(|binding| binding.proxy_protocol.as_deref()) {
        match Box::pin(proxied::read(policy, &entry, &mut tcp, ends)).await {
            Ok(told) => ends = told?,
            Err(refused) => {
                refuse(&worker, &entry, (place, peer), &refused);
                return None;
            }
        }
    }
    // A handshake's state is large; it is gone when the requests come.
    let opened = match (place, binding) {
        (Place::Outbound(_), _) => Ok(Some(Opened::plain(tcp))),
        (Place::Inbound(_), _) => Box::pin(handshake::mesh(&worker, &entry, tcp)).await,
        (Place::Hbone(_), _) => Box::pin(handshake::hbone(&worker, &entry, tcp)).await,
        (Place::Gateway(_), None) => return None,
        (Place::Gateway(_), Some(binding)) => match binding.protocol {
            Protocol::Http => Ok(Some(Opened::plain(tcp))),
            Protocol::Https => Box::pin(handshake::edge(&worker, place, &entry, tcp)).await,
            Protocol::Tls | Protocol::Tcp => {
                let caller = stream::Caller { worker, place, ends, entry, _open: open };
                Box::pin(stream::serve(caller, binding, tcp)).await;
                return None;
            }
        },
    };
    let Opened { io, sni, http2, https, caller, is_astray } = match opened {
        Ok(opened) => opened?,
        Err(refused) => {
            refuse(&worker, &entry, (place, peer), &refused);
            return None;
        }
    };
    let Ends { peer, local } = ends;
    let (series, is_inside, _open) = (RefCell::default(), Cell::default(), open);
    let peer_text = peer.ip().to_canonical().to_string().into();
    let link =
        Rc::new(Link { worker, place, peer, peer_text, local, sni, https, caller, series, is_inside, _open });
    let conn = Conn { link, entry };
    if is_astray {
        Box::pin(send_away(conn, io)).await;
        return None;
    }
    for_requests(conn, io, http2).await
}

/// A connection is ready for requests, unless it came by the door of one service.
async fn for_requests(conn: Conn, io: Io, http2: Option<bool>) -> Option<Begun> {
    conn.entry.came_by(&conn.link).then_some(())?;
    conn.entry.enter(Phase::Idle, conn.worker.now());
    if let Place::Outbound(at) = conn.place
        && let Some(authority) = conn.worker.shared.mesh.doors.get(&at).map(Arc::clone)
    {
        Box::pin(stream::outbound::serve_door(conn, io, &authority)).await;
        return None;
    }
    Some(Begun { conn, io, http2 })
}

/// Answers a caller of HTTP where TLS is spoken as it understands it. What else it may have to say is none of our business.
async fn send_away(conn: Conn, io: Io) {
    conn.worker.handshake_failed(conn.place, "plain_http");
    let mut server = H1Server::new(Wire::new(io), conn.worker.shared.settings.limits);
    let mut space = None;
    let (failure, started) = match next_head(&conn, &mut server, &mut space).await {
        Next::Request(started) => {
            (Failure::downstream(Cause::DownstreamProtocolError).because(PLAIN_HTTP), started)
        }
        Next::Refuse(failure, started) => {
            server.refuse();
            (failure, started)
        }
        Next::Rest | Next::Close => return,
    };
    send_last(&conn, &mut server, space, &failure, started).await;
}

fn replayed(mut wire: Wire) -> Replayed {
    Replayed::new(std::mem::take(&mut wire.read), wire.io)
}

fn refuse(
    worker: &Worker,
    entry: &Entry,
    (place, peer): (Place, SocketAddr),
    Refused { cause, why }: &Refused,
) {
    worker.ends(entry);
    worker.handshake_failed(place, cause);
    tracing::debug!(%peer, listener = %place, cause, why, "connection refused");
}

/// Serves the requests of a connection that turned out later to be HTTP. `http2`: absent, its first bytes tell.
pub(crate) async fn serve_detected(conn: Conn, wire: Wire, http2: Option<bool>) {
    if http2 == Some(true) {
        return streams::serve(conn.link, conn.entry, replayed(wire)).await;
    }
    if http2.is_none() {
        conn.entry.enter(Phase::Idle, conn.worker.now());
    }
    let mut rested = serve_awake(conn, wire, http2.is_some()).await;
    while let Some(Rested { conn, io, is_http1 }) = rested {
        if !rest(&conn, &io).await {
            return;
        }
        rested = Box::pin(serve_awake(conn, Wire::new(io), is_http1)).await;
    }
}

/// `None`: it has ended. Otherwise it has been idle for a while.
///
/// The parts that move in are made before the future: those of an `async fn` would be in it twice.
fn serve_h1(conn: Conn, wire: Wire) -> impl Future<Output = Option<(Conn, Io)>> {
    let mut server = H1Server::new(wire, conn.worker.shared.settings.limits);
    async move {
        let mut space = None;
        loop {
            let next = next_head(&conn, &mut server, &mut space).await;
            let lent = || Lent::new(&conn.worker, meshwork_telemetry::Protocol::Http11);
            let Workspace { head, scratch } = &mut **space.get_or_insert_with(lent);
            let started = match next {
                Next::Request(started) => started,
                Next::Close => {
                    server.wire.say_last().await;
                    return None;
                }
                Next::Rest => return Some((conn, server.wire.io)),
                Next::Refuse(failure, started) => {
                    server.refuse();
                    Box::pin(send_last(&conn, &mut server, space, &failure, started)).await;
                    return None;
                }
            };
            conn.entry.enter(Phase::Exchange, started);
            conn.entry.arrives();
            let is_connect = head.method == http::Method::CONNECT && !conn.is_inside.get();
            if is_connect && matches!(conn.place, Place::Outbound(_)) {
                let head = std::mem::take(head);
                drop(space.take());
                Box::pin(stream::outbound::serve(conn, server, head)).await;
                return None;
            }
            request::serve(&conn, head, &mut Down::H1(&mut server), scratch, started).await;
            if server.was_aborted() {
                // Who has left by its last word alone waits for ours.
                if !server.wire.io.ends_by_halves() {
                    server.wire.say_last().await;
                }
                return None;
            }
            // Who was not told that this was the last one sends another.
            if !server.keep_alive || conn.entry.leaves() {
                linger(&conn, &mut server).await;
                return None;
            }
            if !drained(&conn, &mut server).await {
                // There was little time for the rest: who still sends it may not have read what it was answered.
                if conn.entry.drains() {
                    conn.entry.enter(Phase::Answered, conn.worker.now());
                    linger(&conn, &mut server).await;
                }
                return None;
            }
        }
    }
}

/// Answers what came instead of a request, and closes behind that.
async fn send_last(
    conn: &Conn,
    server: &mut H1Server,
    mut space: Option<Lent>,
    failure: &Failure,
    started: Tick,
) {
    let lent = || Lent::new(&conn.worker, meshwork_telemetry::Protocol::Http11);
    let Workspace { head, scratch } = &mut **space.get_or_insert_with(lent);
    server.keep_alive = false;
    if failure.cause == Cause::Overload {
        server.forget_input();
    }
    request::refuse(conn, head, &mut Down::H1(server), scratch, failure, started).await;
    drop(space);
    linger(conn, server).await;
}

/// What came instead of, or as, the next request.
enum Next {
    Request(Tick),
    Refuse(Failure, Tick),
    /// Nothing, for a while.
    Rest,
    Close,
}

/// Waits for the next head. While nothing has come, no memory is held for it.
async fn next_head(conn: &Conn, server: &mut H1Server, space: &mut Option<Lent>) -> Next {
    let mut started = conn.worker.now();
    // Waking up is no request: the time of one who only rested goes on.
    let phase = if server.has_partial_head() { Phase::Head } else { Phase::Idle };
    if phase == Phase::Head || conn.entry.phase() != Phase::Idle {
        conn.entry.enter(phase, started);
    }
    poll_fn(|cx| {
        let lent = || Lent::new(&conn.worker, meshwork_telemetry::Protocol::Http11);
        let read = server.poll_head(cx, &mut space.get_or_insert_with(lent).head);
        if conn.entry.phase() == Phase::Idle && (read.is_ready() || server.has_partial_head()) {
            started = conn.worker.now();
            conn.entry.enter(Phase::Head, started);
        }
        match read {
            Poll::Ready(Ok(true)) => return Poll::Ready(Next::Request(started)),
            Poll::Ready(Ok(false) | Err(StreamError::Io(_) | StreamError::Closed)) => {
                return Poll::Ready(Next::Close);
            }
            Poll::Ready(Err(error)) => {
                let Some(refusal) = h1::refusal(&error) else { return Poll::Ready(Next::Close) };
                return Poll::Ready(Next::Refuse(Failure::refused(refusal), started));
            }
            Poll::Pending => {}
        }
        match conn.entry.order() {
            Some(Order::TimedOut(Phase::Head)) => {
                let failure = conn.worker.late(Cause::RequestHeaderTimeout, Phase::Head);
                return Poll::Ready(Next::Refuse(failure, started));
            }
            Some(Order::Shed) if server.has_partial_head() => {
                conn.worker.ends(&conn.entry);
                return Poll::Ready(Next::Refuse(conn.worker.no_room(), started));
            }
            // A head that is on its way, or may be, still gets its answer while we drain.
            Some(Order::Drain) if server.has_partial_head() || !conn.entry.leaves() => {}
            Some(_) => {
                conn.worker.ends(&conn.entry);
                return Poll::Ready(Next::Close);
            }
            None => {}
        }
        if server.has_partial_head() && !has_room(conn, server) {
            return Poll::Ready(Next::Refuse(conn.worker.no_room(), started));
        }
        if conn.entry.phase() == Phase::Idle {
            if conn.entry.may_rest() {
                return Poll::Ready(Next::Rest);
            }
            server.wire.release_buffers();
            *space = None;
        }
        conn.entry.watch(cx);
        Poll::Pending
    })
    .await
}

/// Whether a head that is not whole may be held. Where requests are sent away nobody waits for the rest of one.
#[cold]
fn has_room(conn: &Conn, server: &H1Server) -> bool {
    conn.entry.holds(server.wire.read.capacity());
    conn.worker.grew(0);
    let has_room = !conn.worker.memory.is_full();
    if !has_room {
        conn.worker.closed_for_memory("head");
    }
    has_room
}

/// Reads what is left of a body that nobody wanted; false when it breaks or does not come in time.
async fn drained(conn: &Conn, server: &mut H1Server) -> bool {
    conn.entry.enter(Phase::Answered, conn.worker.now());
    poll_fn(|cx| {
        if let Poll::Ready(done) = server.poll_drain(cx) {
            return Poll::Ready(done.is_ok());
        }
        if conn.entry.leaves() {
            conn.worker.ends(&conn.entry);
            return Poll::Ready(false);
        }
        conn.entry.watch(cx);
        Poll::Pending
    })
    .await
}

/// Closes without losing the last response: the caller may still be sending, and a close with unread bytes would reset
/// the connection under the response.
async fn linger(conn: &Conn, server: &mut H1Server) {
    use tokio::io::AsyncWrite as _;

    let is_over = || conn.entry.order().is_some_and(|order| order != Order::Drain);
    // Over TLS it is said, to a caller who may not read it.
    let said = poll_fn(|cx| {
        conn.entry.watch(cx);
        match Pin::new(&mut server.wire.io).poll_shutdown(cx) {
            Poll::Ready(said) => Poll::Ready(said.is_ok()),
            Poll::Pending if is_over() => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    });
    if !said.await || !server.has_unread_input() {
        return;
    }
    conn.entry.enter(Phase::Answered, conn.worker.now());
    conn.entry.holds(0);
    let mut left = LINGER_BYTES;
    poll_fn(|cx| {
        if server.poll_linger(cx, &mut left).is_ready() || is_over() {
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

    fn size<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn size_awake<A, B, C, F: Future>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// What an idle connection holds, and one with a request.
    #[test]
    fn futures_stay_small() {
        assert!(size(serve) <= 320, "an idle connection's future is {} bytes", size(serve));
        let awake = size_awake(serve_awake);
        assert!(awake <= 3584, "the future of a connection with a request is {awake} bytes");
    }
}
