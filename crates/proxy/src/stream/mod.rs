//! A connection of layer 4, from its first byte to its last. [`serve`] is the driver: it calls the phases in order and
//! contains no policy.
//!
//! ```text
//! hello     server name of a TLS client, looked at and left where it is  hello.rs, client_hello.rs
//! route     decision: listener, route; who may; which backend             route.rs
//! tls       ended here, where the listener says so                        downstream/handshake.rs
//! attempt   endpoint, connection, another endpoint?                       attempt.rs
//! transfer  bytes both ways, by splice where both sides are plain TCP     transfer.rs, splice.rs
//! record    one Record, whatever happened                                 journey.rs
//! ```

mod attempt;
mod hello;
mod journey;
mod reject;
mod route;
pub(crate) mod splice;
mod transfer;

use std::rc::Rc;
use std::sync::Arc;

use meshwork_decision::{Binding, Protocol};
use tokio::net::TcpStream;

use crate::connections::{Phase, Registration};
use crate::downstream::handshake::{self, unless_ordered};
use crate::downstream::proxied::Ends;
use crate::error::Failure;
use crate::gauges::OpenDownstream;
use crate::io::Io;
use crate::mesh::Place;
use crate::worker::{View, Worker};
use journey::Journey;

/// What all phases of a connection work with.
pub(crate) struct Caller {
    pub(crate) worker: Rc<Worker>,
    pub(crate) place: Place,
    pub(crate) ends: Ends,
    pub(crate) entry: Registration,
    pub(crate) _open: OpenDownstream,
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
                journey.failed(&failure);
                return reject::reset(&tcp);
            }
        }
        journey.named(name.as_deref());
    }
    entry.enter(Phase::Exchange, worker.now());
    if let Err(failure) = run(&caller, &view, &binding, tcp, name.as_deref(), &mut journey).await {
        journey.failed(&failure);
    }
}

async fn run(
    caller: &Caller,
    view: &View,
    binding: &Binding,
    tcp: TcpStream,
    name: Option<&str>,
    journey: &mut Journey,
) -> Result<(), Failure> {
    let worker = &caller.worker;
    let way = match route::find(worker, binding, name, journey) {
        Ok(way) => way,
        Err(failure) => {
            reject::unrecognized(&tcp, binding.protocol);
            return Err(failure);
        }
    };
    let listener = way.matched.listener.filter(|_| binding.protocol == Protocol::Tls);
    let mut down = match listener.filter(|listener| !listener.passthrough) {
        Some(listener) => Box::pin(end_tls(caller, listener, tcp)).await?,
        None => Io::Tcp(tcp),
    };
    let idle = way.timeouts.idle;
    let connected = Box::pin(attempt::connect(caller, view, &way, journey)).await;
    let mut up = match connected {
        Ok(up) => up,
        Err(failure) => {
            reject::reset(down.tcp());
            return Err(failure);
        }
    };
    caller.entry.be_patient(Some(idle.unwrap_or(transfer::IDLE_TIMEOUT)));
    caller.entry.progress(worker.now());
    let moved = transfer::run(caller, &mut down, &mut up.io, journey).await;
    if moved.is_err() {
        // Whoever waits for more must not take what it has for everything.
        reject::reset(down.tcp());
        reject::reset(up.io.tcp());
    }
    moved
}

/// Ends TLS with the listener's certificate; what is in it is anybody's business but ours.
async fn end_tls(
    caller: &Caller,
    listener: &Arc<meshwork_decision::Listener>,
    tcp: TcpStream,
) -> Result<Io, Failure> {
    use meshwork_decision::Cause;
    let Caller { worker, entry, place, .. } = caller;
    let config = worker.tls.for_any_protocol(listener);
    entry.enter(Phase::Handshake, worker.now());
    let accepting = tokio_rustls::TlsAcceptor::from(config).accept(tcp);
    let refused = |refused: handshake::Refused| {
        worker.handshake_failed(*place, refused.cause);
        Failure::downstream(Cause::DownstreamProtocolError).because(refused.why)
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
