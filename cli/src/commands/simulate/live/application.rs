//! The application of an instance, a process beside a sidecar: works on some requests at once, queues others, fails as it is
//! told. `meshwork simulate FILE --application N`, which [`super::process`] starts.
//!
//! Its stdin and stdout are pipes of the run. In the one it hears its state, a line each; in the other it says what it has
//! taken, a byte for each request. So it ends with the run, however that ends. It speaks as much HTTP/1.1 as a sidecar of
//! ours asks of it: requests without a body, one after the other.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::SeededRng;
use meshwork_decision::simulator::{Instance as Plan, Scenario, State};
use meshwork_process::descriptors::raise_open_files;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use super::{LiveError, runtime};

/// Connections that the system may hold before they are taken.
const BACKLOG: u32 = 4_096;
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// How a state is told; none of those in which there is nobody who could be told.
pub(super) fn told(state: State) -> Option<String> {
    match state {
        State::Serving(slower) => Some(format!("serving {slower}\n")),
        State::Failing(after) => Some(format!("failing {}\n", after.as_nanos())),
        State::Hanging => Some("hanging\n".to_owned()),
        State::Away | State::Lost => None,
    }
}

fn heard(line: &str) -> Option<State> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("serving", slower) => slower.parse().ok().map(State::Serving),
        ("failing", after) => after.parse().ok().map(|nanos| State::Failing(Duration::from_nanos(nanos))),
        ("hanging", "") => Some(State::Hanging),
        _ => None,
    }
}

/// Serves as this instance until its stdin ends.
pub(in super::super) fn run(scenario: &Scenario, number: usize, seed: u64) -> Result<(), LiveError> {
    let plan = scenario.instances.get(number).ok_or(LiveError::Alone)?;
    let (host, port) = (said("HOST")?, said("PORT")?);
    let host: IpAddr = host.parse().map_err(|_| LiveError::Alone)?;
    let address = SocketAddr::new(host, port.parse().map_err(|_| LiveError::Alone)?);
    raise_open_files();
    let (state, states) = watch::channel(State::Serving(1.0));
    // A read of stdin cannot be given up: a thread does it, and ends with what it reads.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            state.send_replace(heard(&line).unwrap_or(State::Hanging));
        }
    });
    let world = SeededRng::new(seed.wrapping_add(1).wrapping_add(number as u64));
    let app = Rc::new(Application {
        working: Arc::new(Semaphore::new(plan.concurrency as usize)),
        queued: Cell::new(0),
        world: RefCell::new(world),
        network: scenario.network,
        plan: plan.clone(),
        states,
    });
    LocalSet::new().block_on(&runtime()?, app.listen(address))
}

fn said(name: &str) -> Result<String, LiveError> {
    std::env::var(name).map_err(|_| LiveError::Alone)
}

/// See the module's text.
struct Application {
    plan: Plan,
    network: Duration,
    world: RefCell<SeededRng>,
    states: watch::Receiver<State>,
    working: Arc<Semaphore>,
    queued: Cell<usize>,
}

/// Who waits in the queue, as long as it does.
struct Queued<'a>(&'a Cell<usize>);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Application {
    async fn listen(self: Rc<Self>, address: SocketAddr) -> Result<(), LiveError> {
        let listener = listener(address).map_err(LiveError::io(format!("an application at {address}")))?;
        let mut states = self.states.clone();
        let over = async { drop(states.wait_for(|_| false).await) };
        let accepting = async {
            loop {
                if let Ok((tcp, _)) = listener.accept().await {
                    spawn_local(Rc::clone(&self).serve(tcp));
                }
            }
        };
        tokio::select! {
            () = over => Ok(()),
            () = accepting => unreachable!("it accepts for ever"),
        }
    }

    /// What a request is answered; nothing when it is cut off.
    async fn answer(self: &Rc<Self>) -> Option<&'static [u8]> {
        // Nobody reads it any more when the run has ended, and this process is about to.
        let _ = rustix::io::write(std::io::stdout(), b".");
        let mut states = self.states.clone();
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

    async fn serve(self: Rc<Self>, mut tcp: TcpStream) {
        let mut held = Vec::new();
        while next_request(&mut tcp, &mut held).await {
            let answer = tokio::select! {
                biased;
                answer = self.answer() => answer,
                () = left(&tcp) => return,
            };
            // A few bytes always fit the socket's buffer: nobody is waited for.
            match answer {
                Some(answer) if tcp.write_all(answer).await.is_ok() => {}
                _ => break,
            }
        }
        drop(tcp.set_zero_linger());
    }
}

fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// It does no work any more; what it does instead.
async fn stops(states: &mut watch::Receiver<State>) -> State {
    match states.wait_for(|state| !matches!(state, State::Serving(_))).await {
        Ok(state) => *state,
        // The run is over, and the process ends.
        Err(_) => std::future::pending().await,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_hears_what_it_is_told() {
        for state in [State::Serving(0.25), State::Failing(Duration::from_nanos(1_500)), State::Hanging] {
            let line = told(state).expect("it is there");
            assert_eq!(heard(line.trim_end()), Some(state));
        }
        assert_eq!((told(State::Away), told(State::Lost), heard("else")), (None, None, None));
    }
}
