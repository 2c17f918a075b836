//! A downstream connection's life: handshake, which version, requests, end.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use meshwork_base::{SpiffeId, Tick};
use meshwork_decision::{Cause, Protocol};
use meshwork_http1::RequestHead;
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
use crate::mesh::Place;
use crate::replay::Replayed;
use crate::request::{self, Scratch};
use crate::series::LastSeries;
use crate::stream;
use crate::wire::Wire;
use crate::worker::Worker;

/// Of a caller that will not stop sending, so much is read before the connection is closed.
const LINGER_BYTES: u64 = 1024 * 1024;

/// What all requests of a connection have in common.
pub(crate) struct Link {
    pub(crate) worker: Rc<Worker>,
    pub(crate) place: Place,
    pub(crate) peer: SocketAddr,
    /// Which address was called.
    pub(crate) local: SocketAddr,
    /// The server name of the TLS handshake.
    pub(crate) sni: Option<Arc<str>>,
    /// TLS ended here, as callers at the edge see it.
    pub(crate) https: bool,
    /// Who called, where that was proven.
    pub(crate) caller: Option<Caller>,
    pub(crate) series: RefCell<Option<LastSeries>>,
    _open: OpenDownstream,
}

impl Link {
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

/// Serves a connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, place: Place, mut tcp: TcpStream, peer: SocketAddr) {
    let open = worker.accepted(place);
    let entry = worker.connections(place).register(worker.now());
    let local = match tcp.set_nodelay(true).and_then(|()| tcp.local_addr()) {
        Ok(local) => local,
        Err(error) => {
            tracing::debug!(%peer, %error, "a connection ended before it began");
            return;
        }
    };
    let mut ends = Ends { peer, local };
    let binding = worker.view().binding(place).map(Arc::clone);
    if let Some(policy) = binding.as_ref().and_then(|binding| binding.proxy_protocol.as_deref()) {
        match Box::pin(proxied::read(policy, &entry, &mut tcp, ends)).await {
            Ok(Some(told)) => ends = told,
            Ok(None) => return,
            Err(refused) => return refuse(&worker, place, peer, &refused),
        }
    }
    // A handshake's state is large; it is gone when the requests come.
    let opened = match (place, binding) {
        (Place::Outbound(_), _) => Ok(Some(Opened::plain(tcp))),
        (Place::Inbound(_), _) => Box::pin(handshake::mesh(&worker, &entry, tcp)).await,
        (Place::Hbone(_), _) => Box::pin(handshake::hbone(&worker, &entry, tcp)).await,
        (Place::Gateway(_), None) => return,
        (Place::Gateway(_), Some(binding)) => match binding.protocol {
            Protocol::Http => Ok(Some(Opened::plain(tcp))),
            Protocol::Https => Box::pin(handshake::edge(&worker, place, &entry, tcp)).await,
            Protocol::Tls | Protocol::Tcp => {
                let caller = stream::Caller { worker, place, ends, entry, _open: open };
                return Box::pin(stream::serve(caller, binding, tcp)).await;
            }
        },
    };
    let Opened { io, sni, http2, https, caller } = match opened {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(refused) => return refuse(&worker, place, peer, &refused),
    };
    let Ends { peer, local } = ends;
    let series = RefCell::default();
    let link = Rc::new(Link { worker, place, peer, local, sni, https, caller, series, _open: open });
    let mut wire = Wire::new(io);
    let http2 = match http2 {
        Some(agreed) => agreed,
        None => match detected(&link, &entry, &mut wire).await {
            Some(Detected::Http1) => false,
            Some(Detected::Http2) => true,
            Some(Detected::Nothing) | None => return,
        },
    };
    if http2 {
        // Its state would make every connection's future half as large again.
        Box::pin(streams::serve(link, entry, replayed(wire))).await;
    } else {
        serve_h1(Conn { link, entry }, wire).await;
    }
}

/// Serves the requests of a connection whose version turned out later.
pub(crate) async fn serve_detected(conn: Conn, wire: Wire, http2: bool) {
    if http2 {
        let Conn { link, entry } = conn;
        streams::serve(link, entry, replayed(wire)).await;
    } else {
        serve_h1(conn, wire).await;
    }
}

fn replayed(mut wire: Wire) -> Replayed {
    Replayed::new(std::mem::take(&mut wire.read), wire.io)
}

fn refuse(worker: &Worker, place: Place, peer: SocketAddr, Refused { cause, why }: &Refused) {
    worker.handshake_failed(place, cause);
    tracing::debug!(%peer, listener = %place, cause, why, "connection refused");
}

async fn detected(link: &Link, entry: &Entry, wire: &mut Wire) -> Option<Detected> {
    entry.enter(Phase::Idle, link.worker.now());
    match detect(wire, entry).await {
        Ok(found) => Some(found),
        Err(error) => {
            tracing::debug!(peer = %link.peer, %error, "a connection broke before its first request");
            None
        }
    }
}

async fn serve_h1(conn: Conn, wire: Wire) {
    let mut server = H1Server::new(wire, conn.worker.shared.settings.limits);
    let mut head = RequestHead::new();
    let mut scratch = Scratch::new(meshwork_telemetry::Protocol::Http11);
    loop {
        let started = match next_head(&conn, &mut server, &mut head, &mut scratch).await {
            Next::Request(started) => started,
            Next::Close => return,
            Next::Refuse(failure, started) => {
                server.refuse();
                request::refuse(
                    &conn,
                    &mut head,
                    &mut Down::H1(&mut server),
                    &mut scratch,
                    &failure,
                    started,
                )
                .await;
                linger(&conn, &mut server).await;
                return;
            }
        };
        conn.entry.enter(Phase::Exchange, started);
        if head.method == http::Method::CONNECT && matches!(conn.place, Place::Outbound(_)) {
            return Box::pin(stream::outbound::serve(conn, server, head)).await;
        }
        request::serve(&conn, &mut head, &mut Down::H1(&mut server), &mut scratch, started).await;
        if server.was_aborted() {
            return;
        }
        let stop = conn.entry.is_draining() || conn.entry.order().is_some();
        if !server.keep_alive || stop {
            linger(&conn, &mut server).await;
            return;
        }
        if !drained(&conn, &mut server).await {
            return;
        }
    }
}

/// What came instead of, or as, the next request.
enum Next {
    Request(Tick),
    Refuse(Failure, Tick),
    Close,
}

/// Waits for the next head. While nothing has come, no buffer is held.
async fn next_head(
    conn: &Conn,
    server: &mut H1Server,
    head: &mut RequestHead,
    scratch: &mut Scratch,
) -> Next {
    let mut started = conn.worker.now();
    conn.entry.enter(if server.has_partial_head() { Phase::Head } else { Phase::Idle }, started);
    poll_fn(|cx| {
        let read = server.poll_head(cx, head);
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
                let timeouts = &conn.worker.shared.settings.timeouts;
                let failure = Failure::late(Cause::RequestHeaderTimeout, Phase::Head, timeouts);
                return Poll::Ready(Next::Refuse(failure, started));
            }
            // A head that is on its way still gets its answer while we drain.
            Some(Order::Drain) if server.has_partial_head() => {}
            Some(_) => return Poll::Ready(Next::Close),
            None => {}
        }
        if conn.entry.phase() == Phase::Idle {
            server.wire.release_buffers();
            head.release();
            scratch.release();
        }
        conn.entry.watch(cx);
        Poll::Pending
    })
    .await
}

/// Reads what is left of a body that nobody wanted; false when it breaks or does not come in time.
async fn drained(conn: &Conn, server: &mut H1Server) -> bool {
    conn.entry.enter(Phase::Head, conn.worker.now());
    poll_fn(|cx| {
        if let Poll::Ready(done) = server.poll_drain(cx) {
            return Poll::Ready(done.is_ok());
        }
        if conn.entry.order().is_some() {
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
    use tokio::io::AsyncWriteExt;
    if server.wire.io.shutdown().await.is_err() || !server.has_unread_input() {
        return;
    }
    conn.entry.enter(Phase::Head, conn.worker.now());
    let mut left = LINGER_BYTES;
    poll_fn(|cx| {
        if server.poll_linger(cx, &mut left).is_ready()
            || conn.entry.order().is_some_and(|o| o != Order::Drain)
        {
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

    /// What an idle connection holds.
    #[test]
    fn futures_stay_small() {
        assert!(size(serve) <= 3584, "a connection's future is {} bytes", size(serve));
    }
}
