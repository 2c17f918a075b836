//! What becomes of connections where memory is near its limit: who has begun something and does not finish it makes room for
//! others. How much is used is told, and time moves when told to.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::{Clock, ManualClock};
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_process::MemoryMeter;
use meshwork_proxy::{Mesh, Settings};
use meshwork_telemetry::Format;
use support::raw::{
    CALM, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Raw, frame, head, literal,
};
use support::{Harness, Upstream, free_port, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMIT: u64 = 64 << 20;
const CLOSED: &str = "meshwork_overload_memory_closed_connections_total";
const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
/// Newcomers that a worker has at once where there is no memory.
const NEWCOMERS: usize = 16;

/// A gateway that is told how much memory it uses, in percent of the limit.
struct Gateway {
    harness: Harness,
    address: SocketAddr,
    clock: ManualClock,
    used: Arc<AtomicU64>,
    /// How often a worker has looked how much.
    looks: Arc<AtomicU64>,
    app: Upstream,
}

impl Gateway {
    async fn using(percent: u64) -> Self {
        let (clock, used) = (ManualClock::new(), Arc::new(AtomicU64::new(0)));
        let looks = Arc::<AtomicU64>::default();
        let (told, looked) = (Arc::clone(&used), Arc::clone(&looks));
        let settings = Settings {
            max_memory: Some(LIMIT),
            memory: MemoryMeter::told_by(move || {
                looked.fetch_add(1, Ordering::SeqCst);
                Some(told.load(Ordering::SeqCst))
            }),
            ..Settings::default()
        };
        let given: Arc<dyn Clock> = Arc::new(clock.clone());
        let mut harness = Harness::join(settings, Mesh::default(), given, "gateway");
        let app = upstream(|got| {
            let begun = got.starts_with(b"POST") && !got.ends_with(b"done");
            let whole = !begun && (is_head(got) || got.starts_with(b"POST"));
            whole.then(|| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())
        });
        let app = app.await;
        harness.service("web", AppProtocol::Http1, &[app.address]).await;
        let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
        let gateway = Self { harness, address, clock, used, looks, app };
        gateway.uses(percent).await;
        gateway
    }

    /// So much is used from now on, and the worker has seen it.
    async fn uses(&self, percent: u64) {
        self.used.store(LIMIT / 100 * percent, Ordering::SeqCst);
        let level = match percent {
            0..80 => "level=\"calm\"",
            80..95 => "level=\"tight\"",
            95.. => "level=\"full\"",
        };
        self.harness.wait_metric("meshwork_overload_memory_pressure", &[level], 1).await;
    }

    async fn open(&self, bytes: &[u8]) -> TcpStream {
        let mut tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        tcp
    }

    /// Waits until a request has been answered: whatever came before it has been read.
    async fn caught_up(&self) {
        let answer = read_until(&mut self.open(GET).await, "ok").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    async fn closed(&self, what: &str, count: u64) {
        self.harness.wait_metric(CLOSED, &[&format!("what=\"{what}\"")], count).await;
    }

    /// Waits until so many connections are accepted that are still open.
    async fn has(&self, connections: u64) {
        self.harness.wait_metric("meshwork_downstream_connections_active", &[], connections).await;
    }
}

/// What still comes until the peer closes.
async fn rest(tcp: &mut TcpStream) -> String {
    let mut out = Vec::new();
    let read = async {
        // A reset is an end as well.
        _ = tcp.read_to_end(&mut out).await;
    };
    timeout(Duration::from_secs(20), read).await.expect("it is closed");
    String::from_utf8_lossy(&out).into_owned()
}

/// A head of 48 KB whose end does not come.
fn unfinished() -> Vec<u8> {
    let (a, b) = ("a".repeat(28_000), "b".repeat(20_000));
    format!("GET /x HTTP/1.1\r\nHost: a\r\nX-A: {a}\r\nX-B: {b}").into_bytes()
}

#[tokio::test]
async fn where_there_is_no_memory_a_head_that_is_not_whole_is_answered_at_once() {
    let gateway = Gateway::using(96).await;
    let answer = rest(&mut gateway.open(b"GET /x HTTP/1.1\r\nHost: a\r\nX-A: b").await).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let said = ["connection: close\r\n", "retry-after: 1\r\n", "x-envoy-local-overloaded: true\r\n"];
    assert!(said.iter().all(|field| answer.contains(field)), "{answer}");
    let line = gateway.harness.lines(1).await.remove(0);
    assert!(line.contains("\"OM\"") && line.contains("--max-memory-bytes"), "{line}");
    gateway.closed("head", 1).await;
}

#[tokio::test]
async fn what_is_unfinished_when_memory_runs_out_is_ended_and_what_runs_goes_on() {
    let gateway = Gateway::using(50).await;
    let mut head = gateway.open(&unfinished()).await;
    let mut handshake = gateway.open(b"PRI * HTTP/2.0\r\n").await;
    let mut silent = gateway.open(b"").await;
    gateway.has(3).await;
    let mut running = gateway.open(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await;
    until_sent(&gateway, 1).await;
    gateway.clock.advance(Duration::from_millis(500));
    gateway.uses(96).await;
    let answer = rest(&mut head).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    drop(head);
    assert_eq!((rest(&mut handshake).await, rest(&mut silent).await), (String::new(), String::new()));
    for what in ["head", "handshake", "idle"] {
        gateway.closed(what, 1).await;
    }
    gateway.has(1).await;
    running.write_all(b"done").await.unwrap();
    assert!(read_until(&mut running, "ok").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn where_there_is_no_memory_few_newcomers_are_let_in_and_who_is_known_stays() {
    let gateway = Gateway::using(50).await;
    let mut known = gateway.open(GET).await;
    for _ in 0..2 {
        read_until(&mut known, "ok").await;
        known.write_all(GET).await.unwrap();
    }
    read_until(&mut known, "ok").await;
    gateway.uses(96).await;
    let mut waiting = Vec::new();
    for opened in 1..=NEWCOMERS {
        waiting.push(gateway.open(b"").await);
        gateway.has(1 + opened as u64).await;
    }
    assert_eq!(rest(&mut gateway.open(b"").await).await, "", "one too many");
    gateway.closed("new", 1).await;
    // Who is let in is told why it is sent away, and then goes.
    let mut first = waiting.pop().unwrap();
    first.write_all(GET).await.unwrap();
    let answer = rest(&mut first).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("connection: close"), "{answer}");
    known.write_all(GET).await.unwrap();
    let answer = read_until(&mut known, "overload\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && !answer.contains("connection: close"), "{answer}");
    // When it is over, all are welcome again.
    gateway.uses(50).await;
    let mut back = gateway.open(GET).await;
    assert!(read_until(&mut back, "ok").await.starts_with("HTTP/1.1 200"));
    known.write_all(GET).await.unwrap();
    assert!(read_until(&mut known, "ok").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn near_the_limit_a_head_and_a_body_have_less_time_and_the_answer_says_so() {
    let gateway = Gateway::using(86).await;
    let mut head = gateway.open(b"GET /x HTTP/1.1\r\nHost: a\r\nX-A: b").await;
    let mut handshake = gateway.open(b"PRI * HTTP/2.0\r\n").await;
    gateway.has(2).await;
    let mut body = gateway.open(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await;
    until_sent(&gateway, 1).await;
    gateway.clock.advance(Duration::from_secs(2));
    assert!(rest(&mut head).await.starts_with("HTTP/1.1 408"));
    // It is a request line, too.
    assert!(rest(&mut handshake).await.starts_with("HTTP/1.1 505"));
    gateway.clock.advance(Duration::from_secs(3));
    assert!(rest(&mut body).await.starts_with("HTTP/1.1 408"));
    let lines = gateway.harness.lines(3).await.join("\n");
    for limit in ["over 2s, the limit while memory is short", "over 5s, the limit while memory is short"] {
        assert!(lines.contains(limit), "{lines}");
    }
}

/// Waits until so many requests have reached the application: whatever came before them has been read.
async fn until_sent(gateway: &Gateway, requests: usize) {
    let sent = async {
        while gateway.app.connections.load(Ordering::SeqCst) < requests {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), sent).await.expect("it is sent");
}

#[tokio::test]
async fn when_memory_grows_near_the_limit_the_oldest_heads_make_room_and_known_callers_keep_theirs() {
    let gateway = Gateway::using(86).await;
    let mut known = gateway.open(GET).await;
    read_until(&mut known, "ok").await;
    known.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\nX-A: b").await.unwrap();
    let mut heads = Vec::new();
    // Each holds some 64 KB, and so much more is used.
    for opened in 0..80_u64 {
        gateway.clock.advance(Duration::from_millis(5));
        gateway.used.fetch_add(32 << 10, Ordering::SeqCst);
        heads.push(gateway.open(&unfinished()).await);
        gateway.harness.wait_metric("meshwork_downstream_connections_total", &[], 2 + opened).await;
    }
    let closed = || gateway.harness.metric(CLOSED, &["what=\"head\""]);
    let made_room = async {
        while closed() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), made_room).await.expect("room is made");
    let answer = rest(&mut heads[0]).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "the oldest: {answer}");
    assert!(closed() < 70, "no more than it grew");
    let mut last = heads.pop().unwrap();
    for tcp in [&mut last, &mut known] {
        tcp.write_all(b"\r\n\r\n").await.unwrap();
        assert!(read_until(tcp, "ok").await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_block_of_fields_over_http2_that_is_not_whole_is_not_held_where_there_is_no_memory() {
    let gateway = Gateway::using(96).await;
    let mut raw = Raw::open(gateway.address).await;
    assert!(raw.settle().await);
    raw.send(&frame(HEADERS, 1, 1, &head("/"))).await;
    raw.send(&frame(CONTINUATION, 0, 1, &[0x00, 1, b'x', 1, b'y'])).await;
    let code = async {
        loop {
            let (kind, _, _, payload) = raw.next().await.unwrap();
            if kind == GOAWAY {
                return payload[4..8].to_vec();
            }
        }
    };
    let code = timeout(Duration::from_secs(20), code).await.expect("it is ended");
    assert_eq!(code, CALM.to_be_bytes());
    gateway.closed("head", 1).await;
}

/// Each may hold 126 KB, and nobody knows how much it does: after a 32nd of the limit it is looked.
#[tokio::test]
async fn blocks_of_fields_over_http2_that_are_not_whole_are_looked_at_for_as_much_as_they_may_hold() {
    const HEADS: u64 = 200;
    let gateway = Gateway::using(50).await;
    let before = gateway.looks.load(Ordering::SeqCst);
    let mut raws = Vec::new();
    for _ in 0..HEADS {
        let mut raw = Raw::open(gateway.address).await;
        raw.send(&frame(HEADERS, END_STREAM, 1, &head("/"))).await;
        raws.push(raw);
    }
    gateway.caught_up().await;
    let looks = gateway.looks.load(Ordering::SeqCst) - before;
    assert!(looks >= HEADS * (126 << 10) / (LIMIT / 32) - 1, "{looks}");
}

#[tokio::test]
async fn what_runs_on_a_connection_of_http2_does_not_end_for_a_block_of_fields_that_is_not_whole() {
    let gateway = Gateway::using(50).await;
    let mut raw = Raw::open(gateway.address).await;
    // POST with a body of four bytes.
    let post = [vec![0x83, 0x86], literal(4, "/x"), literal(1, "shop"), vec![0x0f, 0x0d, 1, b'4']].concat();
    raw.send(&[1, 3].map(|stream| frame(HEADERS, END_HEADERS, stream, &post)).concat()).await;
    until_sent(&gateway, 2).await;
    raw.send(&frame(HEADERS, END_STREAM, 5, &head("/y"))).await;
    // Who came later makes room, and is late, before it is judged whether the other one must.
    let mut sheds = gateway.open(&unfinished()).await;
    gateway.caught_up().await;
    gateway.clock.advance(Duration::from_millis(1_500));
    gateway.uses(96).await;
    assert!(rest(&mut sheds).await.starts_with("HTTP/1.1 503"));
    drop(sheds);
    gateway.uses(86).await;
    let mut late = gateway.open(b"GET /x HTTP/1.1\r\nHost: a\r\nX-A: b").await;
    gateway.caught_up().await;
    gateway.clock.advance(Duration::from_secs(2));
    assert!(rest(&mut late).await.starts_with("HTTP/1.1 408"));
    gateway.closed("head", 1).await;
    raw.send(&frame(CONTINUATION, END_HEADERS, 5, &[])).await;
    raw.send(&[1, 3].map(|stream| frame(DATA, END_STREAM, stream, b"done")).concat()).await;
    let mut answered = Vec::new();
    while answered.len() < 3 {
        let (kind, _, stream, payload) = timeout(Duration::from_secs(20), raw.next()).await.unwrap().unwrap();
        assert_ne!(kind, GOAWAY);
        if kind == HEADERS {
            assert_eq!(payload[0], 0x88, "200");
            answered.push(stream);
        }
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 3, 5]);
}

#[tokio::test]
async fn who_still_sends_the_head_that_makes_room_is_not_cut_off_from_the_answer() {
    let gateway = Gateway::using(96).await;
    let mut tcp = gateway.open(b"GET /x HTTP/1.1\r\nHost: a\r\nX-A: b").await;
    let answer = rest(&mut tcp).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    // It has not looked yet, and goes on.
    for _ in 0..200 {
        tcp.write_all(&[b'b'; 200]).await.unwrap();
        tokio::task::yield_now().await;
    }
    gateway.has(1).await;
    tcp.shutdown().await.unwrap();
    gateway.has(0).await;
    assert_eq!(tcp.read(&mut [0]).await.unwrap(), 0, "no reset");
}

#[tokio::test]
async fn who_makes_room_and_still_sends_is_counted_once() {
    let gateway = Gateway::using(96).await;
    let mut tcp = gateway.open(b"GET /x HTTP/1.1\r\nHost: a\r\nX-A: b").await;
    assert!(rest(&mut tcp).await.starts_with("HTTP/1.1 503"));
    gateway.has(1).await;
    gateway.clock.advance(Duration::from_millis(100));
    gateway.has(0).await;
    gateway.closed("head", 1).await;
}

#[tokio::test]
async fn that_there_is_no_memory_is_no_fault_of_a_caller_of_layer_4() {
    let mut gateway = Gateway::using(50).await;
    let port = free_port();
    let listener = v1::Listener {
        source: Some(v1::Source {
            kind: "Gateway".into(),
            name: "gw".into(),
            namespace: "default".into(),
            ..Default::default()
        }),
        port: port.into(),
        protocol: v1::listener::Protocol::Tls.into(),
        tls: Some(v1::TlsTermination { passthrough: true, secrets: vec![] }),
        ..Default::default()
    };
    gateway.harness.change([Change::upsert("default/gw/tls", "1", &listener)]).await;
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    // A record whose ClientHello does not come.
    tcp.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    gateway.caught_up().await;
    // The line of that is the first.
    gateway.harness.lines(1).await;
    gateway.clock.advance(Duration::from_millis(100));
    gateway.uses(96).await;
    assert_eq!(rest(&mut tcp).await, "");
    gateway.closed("handshake", 1).await;
    let line = gateway.harness.lines(2).await.remove(1);
    let said = ["\"OM\"", "\"overload\"", "--max-memory-bytes"];
    assert!(said.iter().all(|word| line.contains(word)), "{line}");
}

#[tokio::test]
async fn what_is_used_is_not_told_where_nobody_knows_it() {
    let settings =
        Settings { max_memory: Some(LIMIT), memory: MemoryMeter::told_by(|| None), ..Settings::default() };
    let told = Harness::start(settings).metrics.render(Format::OpenMetrics);
    let has = |name: &str| told.lines().any(|line| line.starts_with(name));
    assert!(has("meshwork_overload_memory_limit_bytes ") && !has("meshwork_overload_memory_used_bytes "));
}
