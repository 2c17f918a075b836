//! Taking connections from a listening socket, until that is closed. Whoever waits at it then was let in by the system already: a close
//! would reset it, so it is taken first.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use meshwork_base::Clock as _;
use meshwork_process::descriptors::{Spare, are_scarce, is_out_of_descriptors};
use meshwork_telemetry::Seldom;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::downstream;
use crate::listen;
use crate::mesh::Place;
use crate::poll_time::timed_by_poll;
use crate::worker::Worker;

/// So many of those who wait at a socket that closes are let in before others have their turn.
const TURN: i32 = 32;

/// See the module's text.
pub(crate) struct Accepting {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Accepting {
    /// `None`: the runtime does not take the socket.
    pub(crate) fn start(worker: &Rc<Worker>, place: Place, socket: std::net::TcpListener) -> Option<Self> {
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%place, %error, "cannot register a listening socket");
                return None;
            }
        };
        let door = Door { worker: Rc::clone(worker), place, full: Seldom::default() };
        let (stop, told) = oneshot::channel();
        Some(Self { stop, task: tokio::task::spawn_local(door.accept(listener, told)) })
    }

    /// Closes the socket as it is; who waits there has nobody to be served by.
    pub(crate) fn abort(self) {
        self.task.abort();
    }

    /// Takes who waits at the socket, and closes it. What does so is given.
    pub(crate) fn stop(self) -> JoinHandle<()> {
        // A task that is gone has closed its socket.
        let _ = self.stop.send(());
        self.task
    }
}

/// Lets callers in, as long as there is room for them.
struct Door {
    worker: Rc<Worker>,
    place: Place,
    full: Seldom,
}

impl Door {
    async fn accept(self, listener: TcpListener, told: oneshot::Receiver<()>) {
        tokio::select! {
            never = self.take_all(&listener) => match never {},
            _ = told => {}
        }
        let taken = match listener.into_std() {
            Ok(listener) => self.take_who_waits(&listener).await,
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            tracing::warn!(place = %self.place, %error, "cannot accept who waits at a socket that closes");
        }
    }

    async fn take_all(&self, listener: &TcpListener) -> Infallible {
        let (worker, place) = (&self.worker, self.place);
        let failed = Seldom::default();
        let mut spare = Spare::default();
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    spare.keep();
                    self.admit(tcp, peer);
                }
                // The caller went away before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // Whoever is left waiting learns nothing, and tries nowhere else.
                Err(error) if is_out_of_descriptors(&error) && spare.release() => {
                    if let Some(Ok((tcp, peer))) = listener.accept().now_or_never() {
                        // Others want its number as well, and without a spare one the next caller would hang.
                        match tcp.into_std() {
                            Ok(tcp) => spare.keep_of(tcp.into()),
                            Err(error) => tracing::debug!(%error, "a caller without a place"),
                        }
                        self.has_no_descriptor_for(peer);
                    }
                    spare.keep();
                    // For the next one.
                    worker.has_descriptors_to_give();
                }
                Err(error) => {
                    if is_out_of_descriptors(&error) && !spare.keep() {
                        // What ends now gives the spare one back.
                        worker.has_descriptors_to_give();
                    }
                    // Out of memory, or others were faster where the last descriptor was: they must end first.
                    failed.happened(worker.shared.clock.now(), move |times| {
                        tracing::warn!(%place, %error, times, "cannot accept");
                    });
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// The system is asked itself: the runtime may not have heard yet of who came last. No more than can wait at once, for callers may
    /// come faster than they are turned away; and few of them in one turn, for nothing else of this worker runs meanwhile.
    async fn take_who_waits(&self, listener: &std::net::TcpListener) -> io::Result<()> {
        let mut failed = Ok(());
        for taken in 1..=listen::BACKLOG {
            match taken_of(listener) {
                Ok((tcp, peer)) => self.admit(tcp, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                // Of one caller perhaps: others wait behind it.
                Err(error) => failed = Err(error),
            }
            if taken % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        failed
    }

    fn admit(&self, tcp: TcpStream, peer: SocketAddr) {
        let worker = &self.worker;
        if worker.open() >= worker.shared.settings.max_connections {
            self.refuse("connections", "maximum of connections reached", peer);
        } else if are_scarce(&tcp) && !worker.has_descriptors_to_give() {
            self.has_no_descriptor_for(peer);
        } else if worker.takes_newcomer() {
            let serving = downstream::connection::serve(Rc::clone(worker), self.place, tcp, peer);
            tokio::task::spawn_local(timed_by_poll(Rc::clone(worker), serving));
        }
    }

    fn has_no_descriptor_for(&self, peer: SocketAddr) {
        self.refuse("descriptors", "too few files may be open for one more (ulimit -n)", peer);
    }

    fn refuse(&self, lacks: &'static str, said: &'static str, peer: SocketAddr) {
        let place = self.place;
        self.worker.no_place(lacks);
        self.full.happened(self.worker.shared.clock.now(), move |times| {
            tracing::warn!(%place, %peer, times, "{said}: closed");
        });
    }
}

/// Who waits longest at a socket.
fn taken_of(listener: &std::net::TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (tcp, peer) = listener.accept()?;
    tcp.set_nonblocking(true)?;
    Ok((TcpStream::from_std(tcp)?, peer))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::engine::Settings;
    use crate::worker::tests::idle;

    #[tokio::test]
    async fn who_waits_at_a_socket_that_closes_is_let_in_a_few_at_a_time() {
        const WAIT: i32 = 4 * TURN + 1;
        let socket = listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        let address = socket.local_addr().unwrap();
        let waiting: Vec<_> = (0..WAIT).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        // Whoever is let in finds no place.
        let worker = idle(Settings { max_connections: 0, ..Settings::default() });
        let door = Door { worker, place: Place::Outbound(address), full: Seldom::default() };
        let mut taking = pin!(door.take_who_waits(&socket));
        let mut turns = 1;
        while taking.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            turns += 1;
        }
        assert_eq!(turns, WAIT / TURN + 1);
        for mut tcp in waiting {
            let closed = io::Read::read(&mut tcp, &mut [0]);
            assert!(matches!(closed, Ok(0)), "somebody was not let in: {closed:?}");
        }
    }
}
