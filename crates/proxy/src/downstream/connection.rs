//! A downstream connection's life: handshake, which version, requests, end.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use meshwork_base::Tick;
use meshwork_http1::RequestHead;
use meshwork_telemetry::Protocol;
use tokio::net::TcpStream;

use super::Down;
use super::detect::{Detected, detect};
use super::h1::{self, H1Server};
use super::h2::H2Stream;
use crate::connections::{Order, Phase, Registration};
use crate::error::Failure;
use crate::gauges::OpenDownstream;
use crate::http::convert;
use crate::http::stream::StreamError;
use crate::io::Io;
use crate::mesh::Place;
use crate::replay::Replayed;
use crate::request::{self, Scratch};
use crate::wire::Wire;
use crate::worker::Worker;

/// Bytes of one request's body that may be on the way to us unread.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all requests of one connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Requests of one connection at the same time.
const MAX_STREAMS: u32 = 128;
/// Bytes of one response's body that wait for the connection.
const SEND_BUFFER: usize = 64 * 1024;
/// Of a caller that will not stop sending, so much is read before the connection is closed.
const LINGER_BYTES: u64 = 1024 * 1024;

/// What all requests of a connection have in common.
pub(crate) struct Conn {
    pub(crate) worker: Rc<Worker>,
    pub(crate) place: Place,
    pub(crate) peer: SocketAddr,
    /// The server name of the TLS handshake.
    pub(crate) sni: Option<Arc<str>>,
    pub(crate) https: bool,
    pub(crate) entry: Registration,
    _open: OpenDownstream,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(worker: Rc<Worker>, place: Place, tcp: TcpStream, peer: SocketAddr) {
    let open = worker.accepted(place);
    let entry = worker.connections.register(worker.now());
    let mut conn = Conn { worker, place, peer, sni: None, https: false, entry, _open: open };
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%peer, %error, "a connection ended before it began");
        return;
    }
    let view = conn.worker.view();
    let Some(binding) = view.binding(place) else { return };
    let https = binding.protocol == meshwork_decision::Protocol::Https;
    drop(view);
    if https {
        conn.https = true;
        // A handshake's state is large; it is gone when the requests come.
        match Box::pin(handshake(&mut conn, tcp)).await {
            Ok(Some((io, true))) => serve_h2(Rc::new(conn), Replayed::new(BytesMut::new(), io)).await,
            Ok(Some((io, false))) => serve_h1(conn, Wire::new(io)).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(%peer, listener = %place, %error, "TLS handshake failed"),
        }
        return;
    }
    let mut wire = Wire::new(Io::Tcp(tcp));
    conn.entry.enter(Phase::Idle, conn.worker.now());
    match detect(&mut wire, &conn.entry).await {
        Ok(Detected::Http1) => serve_h1(conn, wire).await,
        Ok(Detected::Http2) => {
            let read = std::mem::take(&mut wire.read);
            serve_h2(Rc::new(conn), Replayed::new(read, wire.io)).await;
        }
        Ok(Detected::Nothing) => {}
        Err(error) => tracing::debug!(%peer, %error, "a connection broke before its first request"),
    }
}

/// Ends TLS; the second part says whether HTTP/2 was agreed on. `None`: told to close meanwhile.
async fn handshake(conn: &mut Conn, tcp: TcpStream) -> std::io::Result<Option<(Io, bool)>> {
    let acceptor = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
    let Some(hello) = unless_ordered(conn, acceptor).await else { return Ok(None) };
    let hello = hello?;
    let sni: Option<Arc<str>> = hello.client_hello().server_name().map(Into::into);
    let view = conn.worker.view();
    let binding = view.binding(conn.place);
    let listener = binding.and_then(|binding| binding.certificates_for(sni.as_deref()));
    let config = conn.worker.tls.of(listener);
    drop(view);
    conn.sni = sni;
    let Some(stream) = unless_ordered(conn, hello.into_stream(config)).await else { return Ok(None) };
    let stream = stream?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Some((Io::TlsServer(Box::new(stream)), http2)))
}

/// Runs a step of the handshake unless its time is over or the process stops.
async fn unless_ordered<F: Future>(conn: &Conn, step: F) -> Option<F::Output> {
    let mut step = std::pin::pin!(step);
    poll_fn(|cx| {
        if let Poll::Ready(done) = step.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        if conn.entry.order().is_some() {
            return Poll::Ready(None);
        }
        conn.entry.watch(cx);
        Poll::Pending
    })
    .await
}

async fn serve_h1(conn: Conn, wire: Wire) {
    let mut server = H1Server::new(wire, conn.worker.shared.settings.limits);
    let mut head = RequestHead::new();
    let mut scratch = Scratch::new(Protocol::Http11);
    loop {
        let started = match next_head(&conn, &mut server, &mut head, &mut scratch).await {
            Next::Request(started) => started,
            Next::Close => return,
            Next::Refuse(failure, started) => {
                server.refuse();
                request::refuse(&conn, &head, &mut Down::H1(&mut server), &mut scratch, &failure, started)
                    .await;
                linger(&conn, &mut server).await;
                return;
            }
        };
        conn.entry.enter(Phase::Exchange, started);
        request::serve(&conn, &mut head, &mut Down::H1(&mut server), &mut scratch, started).await;
        if server.was_aborted() {
            return;
        }
        let stop = conn.worker.draining.get() || conn.entry.order().is_some();
        if !server.keep_alive || stop {
            linger(&conn, &mut server).await;
            return;
        }
        if poll_fn(|cx| server.poll_drain(cx)).await.is_err() {
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
                let cause = meshwork_decision::Cause::RequestHeaderTimeout;
                return Poll::Ready(Next::Refuse(Failure::downstream(cause), started));
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

async fn serve_h2(conn: Rc<Conn>, io: Replayed) {
    let mut builder = ::h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(conn.worker.shared.settings.limits.header_bytes);
    conn.entry.enter(Phase::Handshake, conn.worker.now());
    let Some(Ok(mut connection)) = unless_ordered(&conn, builder.handshake::<_, bytes::Bytes>(io)).await
    else {
        return;
    };
    conn.entry.enter(Phase::Idle, conn.worker.now());
    let mut going_away = false;
    loop {
        let accepted = poll_fn(|cx| {
            match conn.entry.order() {
                Some(Order::Drain) if !going_away => {
                    going_away = true;
                    connection.graceful_shutdown();
                }
                Some(Order::TimedOut(Phase::Idle)) if !connection.has_streams() && !going_away => {
                    going_away = true;
                    connection.graceful_shutdown();
                }
                Some(Order::Stop | Order::TimedOut(Phase::Handshake | Phase::Head)) => {
                    return Poll::Ready(None);
                }
                _ => {}
            }
            let accepted = connection.poll_accept(cx);
            if accepted.is_pending() {
                conn.entry.watch(cx);
            }
            accepted
        })
        .await;
        match accepted {
            Some(Ok((request, respond))) => {
                conn.entry.progress(conn.worker.now());
                tokio::task::spawn_local(serve_stream(Rc::clone(&conn), request, respond));
            }
            Some(Err(error)) => {
                tracing::debug!(peer = %conn.peer, %error, "HTTP/2 connection ended");
                return;
            }
            None => return,
        }
    }
}

async fn serve_stream(
    conn: Rc<Conn>,
    request: http::Request<::h2::RecvStream>,
    respond: ::h2::server::SendResponse<bytes::Bytes>,
) {
    let started = conn.worker.now();
    let mut head = RequestHead::new();
    let mut scratch = Scratch::new(Protocol::Http2);
    let read = convert::request_into(&request, &mut head);
    let is_head = *request.method() == http::Method::HEAD;
    let mut down = Down::H2(Box::new(H2Stream::new(request.into_body(), respond, is_head)));
    match read {
        Ok(()) => request::serve(&conn, &mut head, &mut down, &mut scratch, started).await,
        Err(error) => {
            let failure = Failure::refused(error);
            request::refuse(&conn, &head, &mut down, &mut scratch, &failure, started).await;
        }
    }
    conn.entry.progress(conn.worker.now());
}
