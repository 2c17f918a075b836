//! What becomes of callers of a gateway that is told to drain, and do not know it yet.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshwork_base::{Clock, ManualClock, Tick};
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_process::Drained;
use meshwork_proxy::{Engine, Mesh, Settings};
use parking_lot::{Condvar, Mutex};
use support::raw::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, Raw, SETTINGS, frame, literal,
    request,
};
use support::{Harness, Upstream, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
/// What is said to uploads.
const LARGE: &[u8] = b"HTTP/1.1 413 No\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlarge";
/// As in `connections.rs`.
const GRACE: Duration = Duration::from_secs(5);

async fn serve(mut harness: Harness, app: SocketAddr) -> (Harness, SocketAddr) {
    harness.service("web", AppProtocol::Http1, &[app]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

/// A gateway whose time moves when told to, before an application that answers at once.
async fn gateway(clock: &ManualClock) -> (Upstream, Harness, SocketAddr) {
    let up = upstream(|got| is_head(got).then(|| OK.to_vec())).await;
    let (harness, address) = serve(Harness::at(clock), up.address).await;
    (up, harness, address)
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// A connection that has had its first answer.
async fn known(address: SocketAddr) -> TcpStream {
    let mut tcp = connect(address).await;
    ask(&mut tcp).await;
    tcp
}

async fn ask(tcp: &mut TcpStream) {
    tcp.write_all(GET).await.unwrap();
    read_until(tcp, "hello").await;
}

/// What comes until the proxy closes.
async fn rest(tcp: &mut TcpStream) -> String {
    let mut rest = String::new();
    let read = tcp.read_to_string(&mut rest);
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("it is let go").unwrap();
    rest
}

fn assert_last(told: &str) {
    assert!(told.starts_with("HTTP/1.1 200") && told.ends_with("hello"), "{told:?}");
    assert!(told.to_lowercase().contains("\r\nconnection: close\r\n"), "{told}");
}

/// A connection of HTTP/2, which is told goodbye as soon as connections hear of the drain.
async fn witness(address: SocketAddr) -> Raw {
    let mut raw = Raw::open(address).await;
    assert!(raw.settle().await);
    raw
}

/// Which stream the next GOAWAY names as the last one.
async fn goodbye(raw: &mut Raw) -> u32 {
    loop {
        let (kind, _, _, payload) = raw.next().await.unwrap();
        if kind == GOAWAY {
            return u32::from_be_bytes(payload[..4].try_into().unwrap());
        }
    }
}

fn drain(engine: Engine) -> JoinHandle<Drained> {
    tokio::spawn(engine.drain_until(std::future::pending()))
}

#[tokio::test]
async fn whoever_sends_its_next_request_before_it_knows_is_answered_and_told_there() {
    let (_up, harness, address) = gateway(&ManualClock::new()).await;
    let (mut idle, mut raw) = (known(address).await, witness(address).await);
    let drained = drain(harness.engine);
    goodbye(&mut raw).await;
    idle.write_all(GET).await.unwrap();
    assert_last(&rest(&mut idle).await);
    drop(raw);
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

#[tokio::test]
async fn whoever_was_let_in_and_has_said_nothing_is_answered_in_either_version() {
    let (_up, harness, address) = gateway(&ManualClock::new()).await;
    let mut raw = witness(address).await;
    // Some of them wait to be accepted.
    let silent: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    let drained = drain(harness.engine);
    goodbye(&mut raw).await;
    drop(raw);
    for (index, tcp) in silent.into_iter().enumerate() {
        tcp.set_nonblocking(true).unwrap();
        let mut tcp = TcpStream::from_std(tcp).unwrap();
        if index % 2 == 0 {
            tcp.write_all(GET).await.unwrap();
            assert_last(&rest(&mut tcp).await);
            continue;
        }
        let mut raw = Raw(tcp);
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &request(1, "/")].concat()).await;
        while raw.next().await.unwrap().0 != DATA {}
    }
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

#[tokio::test]
async fn whoever_is_not_told_in_its_answer_may_send_another_request() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (harness, address) = serve(Harness::at(&ManualClock::new()), app.local_addr().unwrap()).await;
    let (mut tcp, mut raw) = (connect(address).await, witness(address).await);
    tcp.write_all(GET).await.unwrap();
    let (mut up, _) = app.accept().await.unwrap();
    read_until(&mut up, "\r\n\r\n").await;
    // The next one comes by a connection of its own.
    let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhell";
    up.write_all(answer).await.unwrap();
    read_until(&mut tcp, "hell").await;
    let drained = drain(harness.engine);
    goodbye(&mut raw).await;
    drop(raw);
    up.write_all(b"o").await.unwrap();
    read_until(&mut tcp, "o").await;
    tcp.write_all(GET).await.unwrap();
    let again = tokio::time::timeout(Duration::from_secs(20), app.accept());
    let (mut up, _) = again.await.expect("it is asked again").unwrap();
    read_until(&mut up, "\r\n\r\n").await;
    up.write_all(OK).await.unwrap();
    assert_last(&rest(&mut tcp).await);
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

#[tokio::test]
async fn whoever_idles_is_waited_for_a_while_from_its_last_request_on() {
    let clock = ManualClock::new();
    let (_up, harness, address) = gateway(&clock).await;
    let mut old = known(address).await;
    clock.advance(GRACE);
    let (mut asks, mut idles, mut silent) =
        (known(address).await, known(address).await, connect(address).await);
    let mut raw = witness(address).await;
    let drained = drain(harness.engine);
    goodbye(&mut raw).await;
    drop(raw);
    assert_eq!(rest(&mut old).await, "", "it has had its while");
    clock.advance(GRACE - Duration::from_millis(1));
    asks.write_all(GET).await.unwrap();
    assert_last(&rest(&mut asks).await);
    assert!(!drained.is_finished());
    clock.advance(Duration::from_millis(1));
    assert_eq!((rest(&mut idles).await, rest(&mut silent).await), (String::new(), String::new()));
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

#[tokio::test]
async fn nobody_who_idles_outlasts_the_time_of_the_drain_or_counts_as_cut_off() {
    let (_up, harness, address) = gateway(&ManualClock::new()).await;
    let mut idle = known(address).await;
    assert_eq!(harness.engine.drain_until(std::future::ready(())).await, Drained::Clean);
    assert_eq!(rest(&mut idle).await, "");
}

/// An application that answers uploads by their heads, and two callers, of HTTP/2 and HTTP/1, who have read that and go on.
async fn answered_early(clock: &ManualClock) -> (Upstream, Harness, Raw, TcpStream) {
    let up = upstream(|got| got.windows(4).any(|end| end == b"\r\n\r\n").then(|| LARGE.to_vec())).await;
    let (harness, address) = serve(Harness::at(clock), up.address).await;
    let mut raw = Raw::open(address).await;
    let head = [vec![0x83, 0x86], literal(4, "/up"), literal(1, "shop")].concat();
    raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    while !matches!(raw.next().await.expect("an answer"), (DATA, END_STREAM, 1, _)) {}
    let mut tcp = connect(address).await;
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 10000000\r\n\r\nbegun").await.unwrap();
    read_until(&mut tcp, "large").await;
    harness.lines(2).await;
    (up, harness, raw, tcp)
}

#[tokio::test]
async fn who_goes_on_with_a_request_that_was_answered_is_not_waited_for_and_not_cut_off() {
    let clock = ManualClock::new();
    let (_up, harness, mut raw, _tcp) = answered_early(&clock).await;
    let drained = drain(harness.engine);
    goodbye(&mut raw).await;
    clock.advance(Duration::from_secs(1));
    let leaves = async {
        while let Ok((kind, flags, _, payload)) = raw.next().await {
            if (kind, flags) == (PING, 0) {
                raw.send(&frame(PING, ACK, 0, &payload)).await;
            }
        }
        drained.await.unwrap()
    };
    let drained = tokio::time::timeout(Duration::from_secs(20), leaves).await.expect("it ends");
    assert_eq!(drained, Drained::Clean);

    let (_up, harness, _raw, _tcp) = answered_early(&clock).await;
    assert_eq!(harness.engine.drain_until(std::future::ready(())).await, Drained::Clean);
}

#[tokio::test]
async fn who_still_sends_what_was_answered_is_not_reset_before_it_has_read_that() {
    let clock = ManualClock::new();
    let up = upstream(|got| got.windows(4).any(|end| end == b"\r\n\r\n").then(|| LARGE.to_vec())).await;
    let (harness, address) = serve(Harness::at(&clock), up.address).await;
    let mut raw = witness(address).await;
    let mut tcp = connect(address).await;
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 60000\r\n\r\nbegun").await.unwrap();
    let told = read_until(&mut tcp, "large").await.to_lowercase();
    assert!(!told.contains("connection: close"), "the connection was to go on: {told}");
    harness.lines(1).await;
    let drained = drain(harness.engine);
    goodbye(&mut raw).await;
    drop(raw);
    clock.advance(Duration::from_secs(1));
    assert_eq!(rest(&mut tcp).await, "");
    // Here a reset comes as the answer of the system to the first of these.
    for _ in 0..8 {
        tcp.write_all(b"more").await.expect("it may send the rest");
        tokio::task::yield_now().await;
    }
    clock.advance(Duration::from_secs(1));
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

#[tokio::test]
async fn who_does_not_answer_a_goodbye_is_told_which_of_its_requests_were_taken() {
    let clock = ManualClock::new();
    let (_up, harness, address) = gateway(&clock).await;
    let mut raw = witness(address).await;
    raw.send(&request(1, "/")).await;
    while raw.next().await.unwrap().0 != DATA {}
    let drained = drain(harness.engine);
    assert_eq!(goodbye(&mut raw).await, 0x7fff_ffff);
    clock.advance(GRACE);
    assert_eq!(goodbye(&mut raw).await, 1);
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

#[tokio::test]
async fn an_idle_connection_of_http2_takes_what_is_on_the_way_between_two_goodbyes() {
    let clock = ManualClock::new();
    let (_up, harness, address) = gateway(&clock).await;
    let (mut idle, mut raw) = (known(address).await, witness(address).await);
    clock.advance(GRACE - Duration::from_millis(1));
    let drained = drain(harness.engine);
    assert_eq!(goodbye(&mut raw).await, 0x7fff_ffff);
    // Its caller has the time from there on; one who cannot be told so has had it.
    clock.advance(Duration::from_millis(1));
    assert_eq!(rest(&mut idle).await, "");
    let ping = loop {
        match raw.next().await.unwrap() {
            (PING, 0, _, payload) => break payload,
            (kind, ..) => assert_ne!(kind, GOAWAY, "the answer comes first"),
        }
    };
    raw.send(&[request(1, "/"), frame(PING, ACK, 0, &ping)].concat()).await;
    let mut goodbyes = Vec::new();
    let mut body = Vec::new();
    while let Ok((kind, _, _, payload)) = raw.next().await {
        match kind {
            GOAWAY => goodbyes.push(u32::from_be_bytes(payload[..4].try_into().unwrap())),
            DATA => body.extend(payload),
            _ => {}
        }
    }
    assert_eq!((&*body, &*goodbyes), (&b"hello"[..], &[1][..]));
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

/// Whoever asks the time on the second worker's thread waits while it is held.
struct Held {
    clock: ManualClock,
    gate: Mutex<bool>,
    opened: Condvar,
    waits: AtomicBool,
}

impl Held {
    /// Returns when the worker stands still.
    async fn holds(&self) {
        self.hold(true);
        while !self.waits.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    }

    fn hold(&self, holds: bool) {
        *self.gate.lock() = holds;
        self.opened.notify_all();
    }
}

impl Clock for Held {
    fn now(&self) -> Tick {
        if std::thread::current().name() == Some("worker-1") {
            let mut held = self.gate.lock();
            while *held {
                self.waits.store(true, Ordering::SeqCst);
                self.opened.wait(&mut held);
            }
        }
        self.clock.now()
    }

    fn wall(&self) -> Duration {
        self.clock.wall()
    }
}

/// A gateway of two workers, the second of which can be held.
async fn held() -> (Upstream, Harness, SocketAddr, Arc<Held>) {
    let clock = Arc::new(Held {
        clock: ManualClock::new(),
        gate: Mutex::default(),
        opened: Condvar::new(),
        waits: AtomicBool::new(false),
    });
    let up = upstream(|got| is_head(got).then(|| OK.to_vec())).await;
    let settings = Settings { workers: 2, ..Settings::default() };
    let told = Arc::clone(&clock) as Arc<dyn Clock>;
    let harness = Harness::join(settings, Mesh::default(), told, "gateway");
    let (harness, address) = serve(harness, up.address).await;
    (up, harness, address, clock)
}

#[tokio::test]
async fn nobody_is_told_to_leave_before_every_worker_has_taken_who_waits_and_takes_no_more() {
    let (_up, harness, address, clock) = held().await;
    let mut watches = Vec::new();
    for _ in 0..16 {
        let mut raw = witness(address).await;
        watches.push(tokio::spawn(async move {
            goodbye(&mut raw).await;
            std::net::TcpStream::connect(address).is_err()
        }));
    }
    clock.holds().await;
    let waiting: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
    let drained = drain(harness.engine);
    // Whatever the other worker does meanwhile it does too early.
    tokio::time::sleep(Duration::from_millis(300)).await;
    clock.hold(false);
    for watch in watches {
        assert!(watch.await.unwrap(), "one could still connect");
    }
    for tcp in waiting {
        tcp.set_nonblocking(true).unwrap();
        let mut tcp = TcpStream::from_std(tcp).unwrap();
        tcp.write_all(GET).await.unwrap();
        assert_last(&rest(&mut tcp).await);
    }
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

#[tokio::test]
async fn a_worker_that_stands_still_does_not_keep_the_process_from_its_end() {
    let (_up, harness, _, clock) = held().await;
    clock.holds().await;
    let ends = harness.engine.drain_until(std::future::ready(()));
    let drained = tokio::time::timeout(Duration::from_secs(60), ends).await;
    clock.hold(false);
    assert_eq!(drained.expect("it is not waited for"), Drained::CutOff { left: 1 });
}

#[tokio::test]
async fn a_response_says_that_it_is_the_last_of_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[listener.local_addr().unwrap()]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    tcp.write_all(get).await.unwrap();
    let (mut up, _) = listener.accept().await.unwrap();
    read_until(&mut up, "\r\n\r\n").await;
    up.write_all(OK).await.unwrap();
    assert!(!read_until(&mut tcp, "hello").await.contains("connection: close"), "nobody drains yet");
    tcp.write_all(get).await.unwrap();
    read_until(&mut up, "\r\n\r\n").await;
    let draining = tokio::spawn(harness.engine.drain(Duration::from_secs(30)));
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // All sockets close before connections are told.
    loop {
        up.write_all(OK).await.unwrap();
        if read_until(&mut tcp, "hello").await.to_lowercase().contains("\r\nconnection: close\r\n") {
            break;
        }
        tcp.write_all(get).await.unwrap();
        // What idles is closed by then, to the endpoint too.
        if up.read(&mut [0; 1024]).await.unwrap_or_default() == 0 {
            (up, _) = listener.accept().await.unwrap();
            read_until(&mut up, "\r\n\r\n").await;
        }
    }
    assert_eq!(draining.await.unwrap(), Drained::Clean);
}

#[tokio::test]
async fn what_a_drain_leaves_unfinished_is_no_regular_end() {
    let head = b"HTTP/1.1 200 OK\r\n\r\nhalf".to_vec();
    let up = upstream(move |got| is_head(got).then(|| head.clone())).await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut tcp, "half").await;
    let drained = harness.engine.drain(Duration::from_millis(1)).await;
    assert_eq!(drained, Drained::CutOff { left: 1 }, "its upstream goes on");
    let rest = tokio::io::AsyncReadExt::read_to_end(&mut tcp, &mut Vec::new()).await;
    assert_eq!(rest.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn drain_finishes_what_runs_and_closes_what_idles() {
    let up = upstream(|got| is_head(got).then(|| OK.to_vec())).await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    read_until(&mut idle, "hello").await;
    assert_eq!(harness.engine.drain(Duration::from_secs(5)).await, Drained::Clean);
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut idle, &mut rest).await.unwrap();
    assert!(rest.is_empty());
    assert!(TcpStream::connect(address).await.is_err(), "nobody accepts any more");
}
