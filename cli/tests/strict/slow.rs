//! Hundreds of callers that take their time: each is ended by the limit that it meets, none costs much memory, and nobody
//! beside them notices.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshwork_base::{Clock as _, SystemClock};

use crate::raw;
use crate::recorder::Recorder;
use crate::support::process::HTTP;
use crate::support::{Gateway, PATIENCE, Upstream, get};

/// Callers of each kind.
pub const CALLERS: usize = 300;

pub const TIMES: [&str; 6] =
    ["--request-header-timeout", "2s", "--request-body-timeout", "2s", "--stream-idle-timeout", "3s"];

/// One who drips: what it has said, and what came back.
pub struct Dripping {
    tcp: TcpStream,
    drop: Vec<u8>,
    pub answer: Vec<u8>,
    pub ended: bool,
}

impl Dripping {
    /// Says the one, and then the other again and again.
    pub fn start(address: SocketAddr, begin: &[u8], drop: &[u8]) -> Self {
        let mut tcp = raw::tcp(address);
        tcp.write_all(begin).unwrap();
        tcp.set_nonblocking(true).unwrap();
        Self { tcp, drop: drop.to_vec(), answer: Vec::new(), ended: false }
    }

    /// A drop out, unless this is an answer, and whatever there is in.
    pub fn drip(&mut self, is_answer: fn(&[u8]) -> bool) {
        if self.ended {
            return;
        }
        let mut chunk = [0; 1024];
        // Whoever was answered says no more: a byte into a closed connection would reset it under the answer.
        if !is_answer(&self.answer) {
            drop(self.tcp.write(&self.drop));
        }
        loop {
            match self.tcp.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.answer.extend_from_slice(&chunk[..count]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.ended = true,
            }
            return;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a slow caller is slow")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Drips until all are ended; gives the most that the gateway held meanwhile.
pub fn drip(gateway: &Gateway, callers: &mut [Dripping], is_answer: fn(&[u8]) -> bool) -> u64 {
    drip_until(|caller| caller.ended, gateway, callers, is_answer)
}

/// The same until each has got what it wants.
pub fn drip_until(
    is_done: impl Fn(&Dripping) -> bool,
    gateway: &Gateway,
    callers: &mut [Dripping],
    is_answer: fn(&[u8]) -> bool,
) -> u64 {
    let clock = SystemClock::new();
    let begin = clock.now();
    let mut most = 0;
    while callers.iter().any(|caller| !is_done(caller)) {
        let open = callers.iter().filter(|caller| !is_done(caller));
        assert!(
            clock.now().since(begin) < PATIENCE,
            "{} of {} are never ended: {:?}",
            open.clone().count(),
            callers.len(),
            open.map(|caller| (
                caller.tcp.local_addr(),
                caller.ended,
                caller.answer.escape_ascii().to_string()
            ))
            .next()
        );
        callers.iter_mut().for_each(|caller| caller.drip(is_answer));
        most = most.max(gateway.resident());
        pause(Duration::from_millis(50));
    }
    most
}

/// Calls again and again beside the slow ones; each call must be answered.
pub struct Beside {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<usize>,
}

impl Beside {
    pub fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(Ordering::SeqCst) {
                assert_eq!(get(address, "/fast"), Some((200, "/fast".to_owned())), "call {count}");
                count += 1;
            }
            count
        });
        Self { stop, thread }
    }

    pub fn finish(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("every call was answered")
    }
}

pub fn causes(gateway: &Gateway, cause: &str) -> usize {
    gateway.log(0).iter().filter(|line| line["cause"] == cause).count()
}

/// Resident memory may not grow by more than this for each caller.
pub fn assert_share(what: &str, before: u64, most: u64, callers: usize, allowed: u64) {
    let each = most.saturating_sub(before) / callers as u64;
    assert!(
        each <= allowed,
        "{what}: {each} bytes for each of {callers} callers ({before} -> {most}), {allowed} are allowed"
    );
}

#[test]
fn slow_heads_and_bodies_are_ended_in_time_and_cost_little() {
    let recorder = Recorder::start();
    let gateway = crate::gateway(recorder.address, &TIMES);
    let address = gateway.at(HTTP);
    assert_eq!(get(address, "/warm").unwrap().0, 200);
    for (what, begin, cause, setting) in [
        (
            "heads",
            "GET /slow HTTP/1.1\r\nHost: a\r\nX: ",
            "request_header_timeout",
            "--request-header-timeout",
        ),
        (
            "bodies",
            "POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
            "request_body_timeout",
            "--request-body-timeout",
        ),
    ] {
        let before = gateway.resident();
        let mut callers: Vec<_> =
            (0..CALLERS).map(|_| Dripping::start(address, begin.as_bytes(), b"a")).collect();
        let beside = Beside::start(address);
        let most = drip(&gateway, &mut callers, |answer| !answer.is_empty());
        assert!(beside.finish() > 0);
        for caller in callers {
            let answer = String::from_utf8_lossy(&caller.answer).into_owned();
            assert_eq!(raw::status(&answer), 408, "{answer}");
            assert!(
                answer.contains(cause) && answer.contains(&format!("2s (setting {setting})")),
                "{answer}"
            );
        }
        gateway.log(CALLERS);
        crate::support::until("each has its line", || (causes(&gateway, cause) == CALLERS).then_some(()));
        assert_share(what, before, most, CALLERS, 96 * 1024);
    }
}

/// Asks for more than anybody would keep, and reads nothing.
fn ask(address: SocketAddr) -> TcpStream {
    let mut tcp = raw::tcp(address);
    // What the kernel would hold for a reader is not what is tested.
    rustix::net::sockopt::set_socket_recv_buffer_size(&tcp, 4096).unwrap();
    tcp.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\nx-mebibytes: 64\r\n\r\n").unwrap();
    tcp
}

#[test]
fn whoever_does_not_read_costs_little() {
    let upstream = Upstream::start("web");
    let gateway = crate::gateway(upstream.address, &[]);
    let address = gateway.at(HTTP);
    assert_eq!(get(address, "/warm").unwrap().0, 200);
    let before = gateway.resident();
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let hits = upstream.hits();
        callers.push(ask(address));
        crate::support::until("the request is with the upstream", || (upstream.hits() > hits).then_some(()));
    }
    let mut most = 0;
    for _ in 0..50 {
        assert_eq!(get(address, "/fast").unwrap().0, 200);
        most = most.max(gateway.resident());
    }
    assert_share("readers", before, most, callers.len(), 256 * 1024);
}

#[test]
fn whoever_does_not_read_is_ended_in_time() {
    let upstream = Upstream::start("web");
    let gateway = crate::gateway(upstream.address, &TIMES);
    let callers: Vec<_> = (0..20).map(|_| ask(gateway.at(HTTP))).collect();
    crate::support::until("each is ended", || {
        (causes(&gateway, "stream_idle_timeout") == callers.len()).then_some(())
    });
}

#[test]
fn an_upstream_that_says_nothing_is_waited_for_no_longer_than_allowed() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = crate::gateway(silent.local_addr().unwrap(), &TIMES);
    let address = gateway.at(HTTP);
    let mut callers: Vec<_> = (0..CALLERS / 3)
        .map(|_| {
            let mut tcp = raw::tcp(address);
            tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            tcp
        })
        .collect();
    for caller in &mut callers {
        let answer = raw::rest(caller);
        assert_eq!(raw::status(&answer), 504, "{answer}");
        assert!(answer.ends_with("stream_idle_timeout\n"), "{answer}");
    }
}

#[test]
fn ten_thousand_connections_between_two_requests_hold_little_and_nobody_beside_them_notices() {
    const IDLE: usize = 10_000;
    more_files(IDLE + 1000);
    let recorder = Recorder::start();
    let gateway = crate::gateway(recorder.address, &[]);
    let address = gateway.at(HTTP);
    let open = |count| -> Vec<TcpStream> {
        let ask = |mut tcp: TcpStream| {
            tcp.write_all(b"GET /once HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            assert_eq!(raw::response(&mut tcp).1, "/once");
            tcp
        };
        (0..count).map(|_| ask(raw::tcp(address))).collect()
    };
    // What the first ones make the process hold is not theirs alone.
    let first = open(200);
    let before = gateway.resident();
    let beside = Beside::start(address);
    let mut idle = open(IDLE);
    let allowed = before + IDLE as u64 * 4 * 1024;
    crate::support::until("an idle connection holds less than 4 KiB", || {
        (gateway.resident() < allowed).then_some(())
    });
    assert!(beside.finish() > 0);
    // Each of them wakes up again.
    for tcp in idle.iter_mut().step_by(100) {
        tcp.write_all(b"GET /again HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(raw::response(tcp).1, "/again");
    }
    drop(first);
}

/// Lets this process, and those that it starts, open so many files.
fn more_files(count: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = count as u64;
    if current.is_some_and(|current| current < wanted) {
        assert!(
            maximum.is_none_or(|maximum| maximum >= wanted),
            "{wanted} open files must be allowed: ulimit -n"
        );
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).unwrap();
    }
}
