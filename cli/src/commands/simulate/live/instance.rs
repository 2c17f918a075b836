//! An instance on a socket: works on some requests at once, queues others, fails as the scenario says.
//!
//! It speaks as much HTTP/1.1 as a proxy of ours asks of it: requests without a body, one after the other.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, SeededRng, Tick};
use meshwork_decision::simulator::{Instance as Plan, State};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::sleep;

/// Connections that the system may hold before they are taken.
const BACKLOG: u32 = 4_096;
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// See the module's text.
pub(super) struct Instance {
    plan: Plan,
    network: Duration,
    world: Rc<RefCell<SeededRng>>,
    address: SocketAddr,
    state: watch::Sender<State>,
    working: Arc<Semaphore>,
    queued: Cell<usize>,
    taken: Cell<u64>,
    listener: Cell<Option<TcpListener>>,
}

/// Who waits in the queue, as long as it does.
struct Queued<'a>(&'a Cell<usize>);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Instance {
    /// An instance that listens, and answers nobody before [`Self::live`].
    pub(super) fn open(plan: Plan, network: Duration, world: Rc<RefCell<SeededRng>>) -> io::Result<Rc<Self>> {
        let listener = bound((Ipv4Addr::LOCALHOST, 0).into())?.listen(BACKLOG)?;
        Ok(Rc::new(Self {
            address: listener.local_addr()?,
            working: Arc::new(Semaphore::new(plan.concurrency as usize)),
            listener: Cell::new(Some(listener)),
            state: watch::Sender::new(State::Serving(1.0)),
            queued: Cell::new(0),
            taken: Cell::new(0),
            plan,
            network,
            world,
        }))
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many requests have come in.
    pub(super) fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// Goes through its states from now on.
    pub(super) fn live(self: &Rc<Self>, clock: Rc<dyn Clock>, began: Tick) {
        spawn_local(Rc::clone(self).listen());
        let this = Rc::clone(self);
        spawn_local(async move {
            for phase in &this.plan.phases {
                sleep((began.after(phase.at)).since(clock.now())).await;
                this.state.send_replace(phase.state);
            }
        });
    }

    /// Takes connections while there is somebody; else the port stays ours.
    async fn listen(self: Rc<Self>) {
        let mut listener = self.listener.take();
        let mut states = self.state.subscribe();
        loop {
            let state = *states.borrow_and_update();
            match state {
                State::Away => {
                    drop(listener.take());
                    // Bound and not listening: whoever connects is refused.
                    let held = bound(self.address);
                    let changed = states.changed().await;
                    drop(held);
                    if changed.is_err() {
                        return;
                    }
                }
                State::Lost => {
                    drop(listener.take());
                    let silent = self.silent();
                    let changed = states.changed().await;
                    drop(silent);
                    if changed.is_err() {
                        return;
                    }
                }
                State::Serving(_) | State::Failing(_) | State::Hanging => {
                    if listener.is_none() {
                        listener = bound(self.address).and_then(|socket| socket.listen(BACKLOG)).ok();
                    }
                    let Some(open) = &listener else {
                        tracing::error!(address = %self.address, "an instance's port was taken while it was away");
                        return;
                    };
                    tokio::select! {
                        changed = states.changed() => if changed.is_err() { return },
                        accepted = open.accept() => if let Ok((tcp, _)) = accepted {
                            spawn_local(Rc::clone(&self).serve(tcp));
                        },
                    }
                }
            }
        }
    }

    /// What a request is answered; nothing when it is cut off.
    async fn answer(self: &Rc<Self>) -> Option<&'static [u8]> {
        self.taken.set(self.taken.get() + 1);
        let mut states = self.state.subscribe();
        let state = *states.borrow_and_update();
        let answer = match state {
            State::Failing(after) => {
                sleep(after).await;
                UNAVAILABLE
            }
            State::Serving(slower) => tokio::select! {
                biased;
                state = stops(&mut states) => match state {
                    State::Failing(_) => return None,
                    _ => std::future::pending().await,
                },
                answer = self.work(slower) => answer,
            },
            State::Hanging | State::Away | State::Lost => std::future::pending().await,
        };
        sleep(2 * self.network).await;
        Some(answer)
    }

    /// Works on a request when its turn comes. What nobody waits for any more loses its place in the queue, but what is
    /// worked on is worked on to its end.
    async fn work(self: &Rc<Self>, slower: f64) -> &'static [u8] {
        let time = self.plan.service.mul_f64(self.plan.spread.draw(&mut *self.world.borrow_mut()) * slower);
        let permit = match Arc::clone(&self.working).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) if self.queued.get() >= self.plan.queue => return UNAVAILABLE,
            Err(_) => {
                self.queued.set(self.queued.get() + 1);
                let _queued = Queued(&self.queued);
                Arc::clone(&self.working).acquire_owned().await.expect("it is never closed")
            }
        };
        let work = spawn_local(async move {
            sleep(time).await;
            drop(permit);
        });
        work.await.expect("it neither panics nor is aborted");
        OK
    }

    /// A port at which nobody answers: the one connection for which it has room is our own, so the system drops what
    /// else wants to connect.
    fn silent(&self) -> Option<(TcpListener, JoinSet<()>)> {
        let listener = bound(self.address).and_then(|socket| socket.listen(0)).ok()?;
        let address = self.address;
        let mut fillers = JoinSet::new();
        for _ in 0..2 {
            fillers.spawn_local(async move {
                let _held = TcpStream::connect(address).await;
                std::future::pending::<()>().await;
            });
        }
        Some((listener, fillers))
    }

    async fn serve(self: Rc<Self>, mut tcp: TcpStream) {
        let mut states = self.state.subscribe();
        let mut held = Vec::new();
        loop {
            let asked = tokio::select! {
                biased;
                () = gone(&mut states) => break,
                asked = next_request(&mut tcp, &mut held) => asked,
            };
            if !asked {
                return;
            }
            let answer = tokio::select! {
                biased;
                () = gone(&mut states) => break,
                answer = self.answer() => answer,
                () = left(&tcp) => return,
            };
            // A few bytes always fit the socket's buffer: nobody is waited for.
            match answer {
                Some(answer) if tcp.write_all(answer).await.is_ok() => {}
                _ => break,
            }
        }
        // A lost host is silent until it is back; then it knows nothing of its connections. A crash resets them.
        while matches!(*states.borrow_and_update(), State::Lost) {
            if states.changed().await.is_err() {
                return;
            }
        }
        drop(tcp.set_zero_linger());
    }
}

/// A socket that has the address and does not listen yet.
fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Its process or its host is gone.
async fn gone(states: &mut watch::Receiver<State>) {
    // The sender lives as long as the instance.
    drop(states.wait_for(|state| matches!(state, State::Away | State::Lost)).await);
}

/// It does no work any more; what it does instead.
async fn stops(states: &mut watch::Receiver<State>) -> State {
    let stopped = states.wait_for(|state| !matches!(state, State::Serving(_))).await;
    *stopped.expect("the sender lives as long as the instance")
}

/// Whoever asked does not wait any more.
async fn left(tcp: &TcpStream) {
    let mut byte = [0];
    // More that is asked before the answer is there waits for it.
    if tcp.peek(&mut byte).await.is_ok_and(|count| count > 0) {
        std::future::pending::<()>().await;
    }
}

/// Reads a request's head; false at the end of the connection.
async fn next_request(tcp: &mut TcpStream, held: &mut Vec<u8>) -> bool {
    loop {
        if let Some(end) = held.windows(4).position(|window| window == b"\r\n\r\n") {
            held.drain(..end + 4);
            return true;
        }
        match tcp.read_buf(held).await {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}
