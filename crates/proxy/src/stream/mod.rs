//! A connection of layer 4, from its first byte to its last. [`serve`] is the driver: it calls the phases in order and
//! contains no policy.
//!
//! ```text
//! hello     server name of a TLS client, looked at and left where it is  hello.rs, client_hello.rs
//! route     decision: listener, route; who may; which backend             route.rs
//! tls       ended here, where the listener says so                        downstream/handshake.rs
//! attempt   endpoint, connection, another endpoint?                       attempt.rs
//! transfer  bytes both ways, by splice where both sides are plain TCP     transfer.rs, ../splice.rs
//! record    one Record, whatever happened                                 journey.rs
//! ```
//!
//! In a mesh the application's connections come by `outbound.rs`, those of other proxies by `hbone.rs`; both then go the
//! same way. What comes from other proxies breaks where `first_line.rs` finds HTTP in it.

mod attempt;
mod end;
mod first_line;
pub(crate) mod hbone;
mod hello;
mod journey;
pub(crate) mod outbound;
pub(crate) mod reject;
mod route;
mod transfer;
mod watch;

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use meshwork_decision::{Binding, Cause, Protocol};
use meshwork_telemetry::Phase as Stage;
use tokio::net::TcpStream;

use crate::connections::{Entry, Order, Phase, Registration};
use crate::downstream::connection::Conn;
use crate::downstream::handshake::{self, unless_ordered};
use crate::downstream::proxied::Ends;
use crate::error::Failure;
use crate::gauges::OpenDownstream;
use crate::io::Io;
use crate::mesh::Place;
use crate::worker::Worker;
use end::End;
use journey::Journey;

/// What all phases of a connection work with.
pub(crate) struct Caller {
    pub(crate) worker: Rc<Worker>,
    pub(crate) place: Place,
    pub(crate) ends: Ends,
    pub(crate) entry: Registration,
    pub(crate) _open: OpenDownstream,
}

/// A connection as the later phases see it, wherever it came in.
#[derive(Clone, Copy)]
pub(crate) struct Carried<'a> {
    worker: &'a Rc<Worker>,
    ends: Ends,
    entry: &'a Entry,
}

impl<'a> Carried<'a> {
    fn of(conn: &'a Conn) -> Self {
        let ends = Ends { peer: conn.peer, local: conn.local };
        Self { worker: &conn.worker, ends, entry: &conn.entry }
    }

    /// Waits, unless the connection is told to end.
    async fn unless_ended<T>(
        &self,
        mut step: Pin<Box<impl Future<Output = Result<T, Failure>>>>,
    ) -> Result<T, Failure> {
        poll_fn(|cx| {
            if let Poll::Ready(done) = step.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            if let Some(Order::Close(cause)) = self.entry.order() {
                return Poll::Ready(Err(Failure::local(cause)));
            }
            self.entry.watch(cx);
            Poll::Pending
        })
        .await
    }
}

/// Carries a connection, and writes it down.
pub(crate) async fn serve(caller: Caller, binding: Arc<Binding>, tcp: TcpStream) {
    let Caller { worker, entry, ends, .. } = &caller;
    let view = worker.view();
    let mut journey = Journey::begin(worker, ends, &view);
    let mut name = None;
    if binding.protocol == Protocol::Tls {
        match Box::pin(hello::read(entry, &tcp)).await {
            Ok(hello) => name = hello,
            Err(failure) => {
                worker.ends(entry);
                journey.failed(&failure);
                return reject::reset(&tcp);
            }
        }
        journey.named(name.as_deref());
    }
    entry.enter(Phase::Exchange, worker.now());
    entry.arrives();
    if let Err(failure) = run(&caller, &binding, tcp, name.as_deref(), &mut journey).await {
        journey.failed(&failure);
    }
}

async fn run(
    caller: &Caller,
    binding: &Binding,
    tcp: TcpStream,
    name: Option<&str>,
    journey: &mut Journey,
) -> Result<(), Failure> {
    let worker = &caller.worker;
    journey.enter(Stage::Overload);
    worker.check_memory()?;
    journey.enter(Stage::Route);
    let (listener, way) = match route::find(worker, binding, name, journey) {
        Ok(way) => way,
        Err(failure) => {
            reject::unrecognized(&tcp, binding.protocol);
            return Err(failure);
        }
    };
    let ends_here = binding.protocol == Protocol::Tls && !listener.passthrough;
    let mut down = match ends_here {
        true => {
            journey.enter(Stage::Head);
            End::Socket(Box::pin(end_tls(caller, listener, tcp)).await?)
        }
        false => End::Socket(Io::Tcp(tcp)),
    };
    let cx = Carried { worker, ends: caller.ends, entry: &caller.entry };
    let moved = match Box::pin(attempt::connect(&cx, &way, journey)).await {
        Ok(mut up) => {
            transfer::run(
                &cx,
                way.timeouts.idle,
                (&mut down, &mut up.end),
                (Bytes::new(), Bytes::new()),
                journey,
            )
            .await
        }
        Err(failure) => Err(failure),
    };
    if moved.is_err() {
        down.reset();
    }
    moved
}

/// Ends TLS with the listener's certificate; what is in it is anybody's business but ours.
async fn end_tls(
    caller: &Caller,
    listener: &Arc<meshwork_decision::Listener>,
    tcp: TcpStream,
) -> Result<Io, Failure> {
    let Caller { worker, entry, place, .. } = caller;
    let config = worker.shared.tls.for_any_protocol(listener);
    entry.enter(Phase::Handshake, worker.now());
    let accepting = tokio_rustls::TlsAcceptor::from(config).accept(tcp);
    let refused = |refused: handshake::Refused| {
        worker.ends(entry);
        worker.handshake_failed(*place, refused.cause);
        refused.of_stream()
    };
    let accepted = unless_ordered(entry, accepting).await.map_err(refused)?;
    let Some(accepted) = accepted else { return Err(Failure::local(Cause::Draining)) };
    let stream = accepted.map_err(|error| refused(error.into()))?;
    entry.enter(Phase::Exchange, worker.now());
    Ok(Io::TlsServer(Box::new(stream)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F: Future>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// What each connection costs while it is carried.
    #[test]
    fn the_future_stays_small() {
        assert!(size(serve) <= 2048, "a connection's future is {} bytes", size(serve));
    }
}
