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
use crate::support::{Gateway, PATIENCE, get};

/// Callers of each kind.
const CALLERS: usize = 300;

const TIMES: [&str; 6] =
    ["--request-header-timeout", "2s", "--request-body-timeout", "2s", "--stream-idle-timeout", "3s"];

/// One who drips: what it has said, and what came back.
struct Dripping {
    tcp: TcpStream,
    answer: Vec<u8>,
    ended: bool,
}

impl Dripping {
    fn start(address: SocketAddr, begin: &str) -> Self {
        let mut tcp = raw::tcp(address);
        tcp.write_all(begin.as_bytes()).unwrap();
        tcp.set_nonblocking(true).unwrap();
        Self { tcp, answer: Vec::new(), ended: false }
    }

    /// One byte out, and whatever there is in.
    fn drip(&mut self) {
        if self.ended {
            return;
        }
        let mut chunk = [0; 1024];
        // Whoever was answered says no more: a byte into a closed connection would reset it under the answer.
        if self.answer.is_empty() {
            drop(self.tcp.write(b"a"));
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
fn drip(gateway: &Gateway, callers: &mut [Dripping]) -> u64 {
    let clock = SystemClock::new();
    let begin = clock.now();
    let mut most = 0;
    while callers.iter().any(|caller| !caller.ended) {
        assert!(clock.now().since(begin) < PATIENCE, "some are never ended");
        callers.iter_mut().for_each(Dripping::drip);
        most = most.max(gateway.resident());
        pause(Duration::from_millis(50));
    }
    most
}

/// Calls again and again beside the slow ones; each call must be answered.
struct Beside {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<usize>,
}

impl Beside {
    fn start(address: SocketAddr) -> Self {
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

    fn finish(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("every call was answered")
    }
}

fn causes(gateway: &Gateway, cause: &str) -> usize {
    gateway.log(0).iter().filter(|line| line["cause"] == cause).count()
}

/// Resident memory may not grow by more than this for each caller.
fn assert_share(what: &str, before: u64, most: u64, callers: usize, allowed: u64) {
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
        let mut callers: Vec<_> = (0..CALLERS).map(|_| Dripping::start(address, begin)).collect();
        let beside = Beside::start(address);
        let most = drip(&gateway, &mut callers);
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

#[test]
fn whoever_does_not_read_is_ended_in_time_and_costs_little() {
    let large = vec![b'x'; 16 * 1024 * 1024];
    let recorder = Recorder::answering(move |message| {
        (message.target == "/large").then(|| {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", large.len());
            [head.as_bytes(), &large].concat()
        })
    });
    let gateway = crate::gateway(recorder.address, &TIMES);
    let address = gateway.at(HTTP);
    assert_eq!(get(address, "/warm").unwrap().0, 200);
    let before = gateway.resident();
    let callers: Vec<_> = (0..CALLERS / 3)
        .map(|_| {
            let mut tcp = raw::tcp(address);
            // What the kernel would hold for a reader is not what is tested.
            rustix::net::sockopt::set_socket_recv_buffer_size(&tcp, 4096).unwrap();
            tcp.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            tcp
        })
        .collect();
    let beside = Beside::start(address);
    let mut most = 0;
    crate::support::until("each is ended", || {
        most = most.max(gateway.resident());
        (causes(&gateway, "stream_idle_timeout") == callers.len()).then_some(())
    });
    assert!(beside.finish() > 0);
    assert_share("readers", before, most, callers.len(), 256 * 1024);
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
fn a_connection_between_two_requests_holds_no_buffers() {
    const IDLE: usize = 2000;
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
    let idle = open(IDLE);
    let after = gateway.resident();
    assert_share("idle", before, after, IDLE, 8 * 1024);
    drop((first, idle));
}
