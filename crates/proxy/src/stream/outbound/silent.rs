//! A caller that has said nothing for a while. Its server may be one that speaks first, so it gets its tunnel. Or it is slow, has
//! opened its connection ahead, and speaks HTTP yet: as long as nothing has gone either way it is served as if it had said so at
//! once.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use meshwork_decision::{Cause, OutboundPort};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::time::{sleep, timeout};

use super::{DETECTION, ROUTED, Shown, port, shown, speaks};
use crate::connections::Phase;
use crate::downstream::connection::Conn;
use crate::error::{Failure, Fault};
use crate::stream::attempt::{self, Upstream};
use crate::stream::end::End;
use crate::stream::journey::Journey;
use crate::stream::route::Way;
use crate::stream::transfer::{self, Broken};
use crate::stream::{Carried, reject};
use crate::wire::Wire;

/// How long a caller that gets no tunnel may still turn out to speak HTTP.
const REFUSED: Duration = Duration::from_secs(1);
/// How long the other end of a tunnel that nobody needs has to end it too.
const LEAVES: Duration = Duration::from_secs(1);
/// How much of what a server says first is taken before the tunnel begins.
const FIRST: usize = 1024;

/// A caller that speaks HTTP after all.
pub(super) struct Late {
    pub(super) wire: Wire,
    pub(super) journey: Journey,
    pub(super) http2: bool,
}

/// Carries it to its end, unless it turns out to be HTTP before anything has gone either way.
pub(super) async fn carry(
    conn: &Conn,
    port: &OutboundPort,
    authority: &str,
    mut wire: Wire,
    mut journey: Journey,
) -> Option<Late> {
    let cx = Carried::of(conn);
    journey.cluster(&port.cluster);
    let way = Way::new(port.direct().policy(), &port.cluster);
    let mut is_first = true;
    let (mut up, said) = loop {
        let mut up = match Box::pin(attempt::connect_ahead(&cx, &way, &mut journey)).await {
            Ok(up) => up,
            Err(failure) => return without(conn, wire, journey, &failure).await,
        };
        up.is_ahead();
        conn.entry.enter(Phase::Exchange, conn.worker.now());
        conn.entry.be_patient(Some(way.timeouts.idle.unwrap_or(transfer::IDLE_TIMEOUT)));
        let failure = match first(conn, &mut wire, &mut up.end).await {
            Ok(First::Http2(http2)) => {
                leave(up);
                return Some(Late { wire, journey, http2 });
            }
            Ok(First::Opaque(said)) => match opaque(conn, authority) {
                Ok(()) => break (up, said),
                Err(failure) => failure,
            },
            // Nothing has gone either way yet. If the application has said in HTTP that it will not wait, the proxy there knows it now.
            Err(failure) if failure.fault == Fault::Upstream && std::mem::take(&mut is_first) => continue,
            Err(failure) => failure,
        };
        journey.failed(&failure);
        reject::reset(wire.io.tcp());
        up.end.reset();
        return None;
    };
    up.is_used(&cx, &way);
    let ahead = (wire.read.split().freeze(), said);
    let mut down = End::Socket(wire.io);
    let ends = (&mut down, &mut up.end);
    if let Err(failure) = transfer::run(&cx, way.timeouts.idle, ends, ahead, &mut journey).await {
        journey.failed(&failure);
    }
    None
}

/// Waits for the caller where there is no tunnel for it. Where the proxy there knows its application for HTTP it is that, and else may be:
/// what stands in a tunnel's way need not stand in a request's, and is told in HTTP.
async fn without(conn: &Conn, mut wire: Wire, mut journey: Journey, failure: &Failure) -> Option<Late> {
    let patience = (failure.cause != Cause::DownstreamProtocolError).then_some(REFUSED);
    match speaks(conn, &mut wire, patience).await {
        Some(Shown::Http(Some(http2))) => return Some(Late { wire, journey, http2 }),
        None if patience.is_none() => {
            journey.discard();
            return None;
        }
        _ => {}
    }
    journey.failed(failure);
    reject::reset(wire.io.tcp());
    None
}

/// # Errors
/// Rules have come meanwhile that it would pass by.
fn opaque(conn: &Conn, authority: &str) -> Result<(), Failure> {
    let view = conn.worker.view();
    match port(conn, &view, authority) {
        Ok(port) if port.has_routes() => {
            Err(Failure::downstream(Cause::DownstreamProtocolError).because(ROUTED))
        }
        _ => Ok(()),
    }
}

/// Ends a tunnel through which nothing has gone, as whoever is done with it does: the other side is to see no failure in it.
fn leave(mut up: Upstream) {
    tokio::task::spawn_local(async move {
        let ends = async {
            if up.end.shutdown().await.is_ok() {
                // Whatever is said there now, nobody waits for it.
                _ = up.end.read(&mut [0; FIRST]).await;
            }
        };
        // It is ended in any case.
        _ = timeout(LEAVES, ends).await;
    });
}

/// What came first.
enum First {
    /// The caller speaks HTTP; whether of version 2.
    Http2(bool),
    /// Neither does it, or the server has spoken, and said this.
    Opaque(Bytes),
}

/// # Errors
/// A side broke, nothing came for too long, or the process stops.
async fn first(conn: &Conn, wire: &mut Wire, up: &mut End) -> Result<First, Failure> {
    let mut undecided = None;
    poll_fn(|cx| {
        loop {
            match shown(&wire.read) {
                Some(Shown::Http(Some(http2))) => return Poll::Ready(Ok(First::Http2(http2))),
                Some(_) => return Poll::Ready(Ok(First::Opaque(Bytes::new()))),
                None if wire.eof => return Poll::Ready(Ok(First::Opaque(Bytes::new()))),
                None => {}
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(transfer::failure(Broken::From(error), true)));
                }
                Poll::Pending => break,
            }
        }
        if let Some(failure) = transfer::over(&conn.entry) {
            return Poll::Ready(Err(failure));
        }
        // What may yet become a method goes on like anything else that waits for an answer.
        if !wire.read.is_empty() {
            let undecided = undecided.get_or_insert_with(|| Box::pin(sleep(DETECTION)));
            if undecided.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(First::Opaque(Bytes::new())));
            }
        }
        conn.entry.watch(cx);
        let mut space = [0; FIRST];
        let mut said = ReadBuf::new(&mut space);
        let read = ready!(Pin::new(&mut *up).poll_read(cx, &mut said));
        Poll::Ready(match read {
            Ok(()) => Ok(First::Opaque(Bytes::copy_from_slice(said.filled()))),
            Err(error) => Err(transfer::failure(Broken::From(error), false)),
        })
    })
    .await
}
