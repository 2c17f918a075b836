//! Opaque connections of the application beside us. Without interception they come by the door that clients of an HTTP
//! proxy use anyway: `CONNECT HOST:PORT`; or, for clients that know of no proxy, by a door that leads to one service.
//! What then comes is what the service's port declares; where it declares nothing, the first bytes tell, or that none
//! come: a server that speaks first is no HTTP server. In which version of HTTP a caller speaks they tell in any case.

mod silent;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use meshwork_decision::{AppProtocol, Cause, OutboundPort, split_authority};
use meshwork_http1::RequestHead;
use meshwork_telemetry::Phase as Stage;
use tokio::time::sleep;

use super::attempt;
use super::end::End;
use super::journey::Journey;
use super::route::Way;
use super::{Carried, transfer};
use crate::connections::Phase;
use crate::downstream::Down;
use crate::downstream::connection::{Conn, serve_detected};
use crate::downstream::h1::H1Server;
use crate::error::Failure;
use crate::io::{Io, told};
use crate::request::discover;
use crate::wire::Wire;
use crate::worker::View;

/// How long a connection whose port declares nothing may be silent before it is taken for opaque.
const DETECTION: Duration = Duration::from_millis(50);

/// Why an opaque connection is not carried though its tunnel could be made.
const ROUTED: &str = "HTTP routes are attached to the service, and the connection shows no HTTP";

/// What a connection turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inside {
    Http1,
    Http2,
    Opaque,
}

/// What a connection has shown of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Whether it is HTTP/2; absent: its first bytes are to tell.
    Http(Option<bool>),
    Opaque,
    /// Nothing that tells, for a while.
    Silence,
}

/// By which door a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// A CONNECT, which wants an answer.
    Connect,
    /// One that leads to a single service, for opaque connections only.
    Own,
}

/// Serves a CONNECT, and everything behind it.
pub(crate) async fn serve(conn: Conn, server: H1Server, head: RequestHead) {
    let authority = head.authority().unwrap_or_default().to_owned();
    enter(conn, server, &authority, Door::Connect).await;
}

/// Serves a connection that came by the door of one service.
pub(crate) async fn serve_door(conn: Conn, io: Io, authority: &str) {
    conn.entry.enter(Phase::Exchange, conn.worker.now());
    conn.entry.arrives();
    let server = H1Server::new(Wire::new(io), conn.worker.shared.settings.limits);
    enter(conn, server, authority, Door::Own).await;
}

async fn enter(conn: Conn, mut server: H1Server, authority: &str, door: Door) {
    let mut view = conn.worker.view();
    let mut journey = Journey::begin_outbound(&conn, &view);
    journey.named(Some(authority));
    if let Err(failure) = conn.worker.check_memory() {
        journey.enter(Stage::Overload);
        return refuse(server.wire, journey, &failure, door).await;
    }
    if let Some(missing) = discover::missing(&conn, &view, Some(authority)) {
        journey.enter(Stage::Discover);
        match Box::pin(discover::wait(&conn, &mut Down::H1(&mut server), missing)).await {
            Ok(newer) => view = newer,
            Err(failure) => return refuse(server.wire, journey, &failure, door).await,
        }
    }
    journey.enter(Stage::Route);
    let mut wire = server.wire;
    let port = match port(&conn, &view, authority) {
        Ok(port) => port,
        Err(failure) => return refuse(wire, journey, &failure, door).await,
    };
    let declared = declared(port.cluster.protocol);
    if let Some(Inside::Opaque) = declared {
        return Box::pin(carry(&conn, port, wire, journey, door == Door::Connect)).await;
    }
    if door == Door::Connect
        && let Err(error) = answer(&mut wire, "200 OK").await
    {
        return journey.failed(&unanswered(&error));
    }
    let shown = match declared {
        // Which version its caller speaks is the caller's own.
        Some(_) => Some(Shown::Http(None)),
        // Where routes hang nothing can be opaque, and a caller that is silent may take its time.
        None if door == Door::Connect && port.has_routes() => speaks(&conn, &mut wire, None).await,
        None => detect(&conn, &mut wire, Some(DETECTION)).await,
    };
    match shown {
        // Whoever leaves without a word wanted nothing.
        None => journey.discard(),
        Some(Shown::Http(http2)) if door == Door::Connect => requests(conn, wire, journey, http2).await,
        Some(Shown::Silence) if door == Door::Connect => {
            if let Some(speaks) = Box::pin(silent::carry(&conn, port, authority, wire, journey)).await {
                requests(conn, speaks.wire, speaks.journey, Some(speaks.http2)).await;
            }
        }
        Some(shown) => {
            // Opaque, it would pass the rules by.
            let why = match (shown, port.has_routes()) {
                (Shown::Http(_), _) => {
                    "this is HTTP, and the door of one service is for opaque connections: call it by HTTP_PROXY"
                }
                (_, true) => ROUTED,
                (_, false) => return Box::pin(carry(&conn, port, wire, journey, false)).await,
            };
            journey.failed(&Failure::downstream(Cause::DownstreamProtocolError).because(why));
            super::reject::reset(wire.io.tcp());
        }
    }
}

/// Requests are written down one by one. `http2`: absent, the first bytes tell.
async fn requests(conn: Conn, wire: Wire, journey: Journey, http2: Option<bool>) {
    journey.discard();
    conn.is_inside.set(true);
    Box::pin(serve_detected(conn, wire, http2)).await;
}

/// What a port says; none: that is to be found out.
pub(super) fn declared(protocol: AppProtocol) -> Option<Inside> {
    match protocol {
        AppProtocol::Detect => None,
        AppProtocol::Http1 | AppProtocol::WebSocket => Some(Inside::Http1),
        AppProtocol::Http2 | AppProtocol::Grpc => Some(Inside::Http2),
        AppProtocol::Tcp | AppProtocol::Tls => Some(Inside::Opaque),
    }
}

fn port<'v>(conn: &Conn, view: &'v Rc<View>, authority: &str) -> Result<&'v OutboundPort, Failure> {
    let (host, number) = split_authority(authority);
    let unknown = || Failure::local(Cause::UnknownService).because(host);
    let service = view.snapshot.outbound(host).ok_or_else(unknown)?;
    conn.worker.uses(&service.name);
    service.port(number).map_err(|cause| {
        Failure::local(cause).because(format!("{} has no port {}", service.name, number.unwrap_or(80)))
    })
}

async fn carry(conn: &Conn, port: &OutboundPort, mut wire: Wire, mut journey: Journey, unanswered: bool) {
    let cx = Carried::of(conn);
    let cluster = &port.cluster;
    journey.cluster(cluster);
    let way = Way::new(port.direct().policy(), cluster);
    let mut up = match Box::pin(attempt::connect(&cx, &way, &mut journey)).await {
        Ok(up) => up,
        Err(failure) if unanswered => return refuse(wire, journey, &failure, Door::Connect).await,
        Err(failure) => {
            journey.failed(&failure);
            return super::reject::reset(wire.io.tcp());
        }
    };
    if unanswered && let Err(error) = answer(&mut wire, "200 OK").await {
        return journey.failed(&self::unanswered(&error));
    }
    // A client need not wait for the answer.
    let ahead = wire.read.split().freeze();
    let mut down = End::Socket(wire.io);
    let ends = (&mut down, &mut up.end);
    if let Err(failure) =
        transfer::run(&cx, way.timeouts.idle, ends, (ahead, Bytes::new()), &mut journey).await
    {
        journey.failed(&failure);
    }
}

fn unanswered(error: &std::io::Error) -> Failure {
    Failure::downstream(Cause::DownstreamClosed).because(format!("answering the caller: {}", told(error)))
}

async fn answer(wire: &mut Wire, status: &str) -> std::io::Result<()> {
    wire.out().extend_from_slice(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes());
    poll_fn(|cx| wire.poll_flush(cx)).await
}

async fn refuse(mut wire: Wire, mut journey: Journey, failure: &Failure, door: Door) {
    use tokio::io::AsyncWriteExt;
    journey.failed(failure);
    if door == Door::Own {
        return super::reject::reset(wire.io.tcp());
    }
    let status = failure.cause.status().and_then(|status| http::StatusCode::from_u16(status).ok());
    let status = status.unwrap_or(http::StatusCode::SERVICE_UNAVAILABLE);
    let body = format!("{}\n", failure.cause);
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        body.len()
    );
    wire.out().extend_from_slice(head.as_bytes());
    if poll_fn(|cx| wire.poll_flush(cx)).await.is_ok() {
        // The peer may be gone; then it needs no end.
        let _ = wire.io.shutdown().await;
    }
}

/// Reads until the bytes tell, for so long, or as long as a connection may idle.
async fn speaks(conn: &Conn, wire: &mut Wire, patience: Option<Duration>) -> Option<Shown> {
    conn.entry.enter(Phase::Idle, conn.worker.now());
    detect(conn, wire, patience).await
}

/// Reads until the bytes tell, or there are none for so long. `None`: the application has closed.
async fn detect(conn: &Conn, wire: &mut Wire, patience: Option<Duration>) -> Option<Shown> {
    let mut patience = patience.map(|patience| Box::pin(sleep(patience)));
    poll_fn(|cx| {
        loop {
            if let Some(shown) = shown(&wire.read) {
                return Poll::Ready(Some(shown));
            }
            if wire.eof || conn.entry.order().is_some() {
                if wire.read.is_empty() {
                    conn.worker.ends(&conn.entry);
                }
                return Poll::Ready((!wire.read.is_empty()).then_some(Shown::Opaque));
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        if patience.as_mut().is_some_and(|patience| patience.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Some(Shown::Silence));
        }
        conn.entry.watch(cx);
        Poll::Pending
    })
    .await
}

fn shown(bytes: &[u8]) -> Option<Shown> {
    judge(bytes).map(|inside| match inside {
        Inside::Http1 => Shown::Http(Some(false)),
        Inside::Http2 => Shown::Http(Some(true)),
        Inside::Opaque => Shown::Opaque,
    })
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest method that is waited for.
const METHOD: usize = 20;

/// What begins with a method in capital letters and a target is HTTP/1.
pub(crate) fn judge(bytes: &[u8]) -> Option<Inside> {
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return (common == PREFACE.len()).then_some(Inside::Http2);
    }
    let method = bytes.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-').count();
    match &bytes[method..] {
        [] if method <= METHOD => None,
        [b' '] if (1..=METHOD).contains(&method) => None,
        [b' ', b'/' | b'*' | b'h' | b'H', ..] if (1..=METHOD).contains(&method) => Some(Inside::Http1),
        _ => Some(Inside::Opaque),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_what_is_inside() {
        assert_eq!(judge(b""), None);
        for (bytes, inside) in [
            (&b"GET / HTTP/1.1\r\n"[..], Inside::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Inside::Http1),
            (b"GET http://a/ HTTP/1.1\r\n", Inside::Http1),
            (PREFACE, Inside::Http2),
            (b"\x16\x03\x01\x00\xa5\x01", Inside::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Inside::Opaque),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Inside::Opaque),
            (b"EHLO example.com\r\n", Inside::Opaque),
            (b"QUIT\r\n", Inside::Opaque),
            (b" GET / HTTP/1.1", Inside::Opaque),
            (b"TWENTYONECAPITALSHERE / HTTP/1.1", Inside::Opaque),
        ] {
            assert_eq!(judge(bytes), Some(inside), "{bytes:?}");
            let mut told = (0..bytes.len()).map(|end| judge(&bytes[..end])).skip_while(Option::is_none);
            assert!(told.all(|told| told == Some(inside)), "{bytes:?} is never taken for something else");
        }
    }
}
