//! How long things may take: each limit with its cause, and what the next hop hears of it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "deadlines/strangers.rs"]
mod strangers;
mod support;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use meshwork_base::ManualClock;
use meshwork_decision::{Change, read_grpc_timeout};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_messages::v1::timeouts::CallerDeadline;
use meshwork_proxy::{Mesh, Settings};
use parking_lot::Mutex;
use support::h2::{H2Upstream, answer, fetch, h2_client, h2_upstream};
use support::mesh::Pair;
use support::policy::{breaker, retry};
use support::raw::{
    ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RESET, Raw, SETTINGS, WINDOW_UPDATE, frame,
};
use support::{Harness, Upstream, exchange, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const GET: &str = "GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";

fn traffic(timeouts: v1::Timeouts) -> Change {
    on_web(v1::TrafficPolicy { timeouts: Some(timeouts), ..Default::default() })
}

fn on_web(policy: v1::TrafficPolicy) -> Change {
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/web".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    Change::upsert("default/p", "1", &v1::Policy { source: None, targets: vec![target], spec })
}

async fn gateway(
    protocol: AppProtocol,
    upstream: SocketAddr,
    timeouts: v1::Timeouts,
) -> (Harness, SocketAddr) {
    gateway_of(Harness::start(Settings::default()), protocol, upstream, timeouts).await
}

async fn gateway_of(
    mut harness: Harness,
    protocol: AppProtocol,
    upstream: SocketAddr,
    timeouts: v1::Timeouts,
) -> (Harness, SocketAddr) {
    harness.service("web", protocol, &[upstream]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(timeouts)]).await;
    (harness, address)
}

/// Takes requests and answers none; notes the last head.
async fn silent() -> (Upstream, Arc<Mutex<String>>) {
    let seen = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&seen);
    let up = upstream(move |got| {
        *noted.lock() = String::from_utf8_lossy(got).to_lowercase();
        None
    })
    .await;
    (up, seen)
}

/// Answers at once; notes the last head.
async fn quick() -> (Upstream, Arc<Mutex<String>>) {
    let seen = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&seen);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            *noted.lock() = String::from_utf8_lossy(got).to_lowercase();
            OK.to_vec()
        })
    })
    .await;
    (up, seen)
}

fn field(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned)
}

#[tokio::test]
async fn a_deadline_travels_through_the_mesh_and_shrinks() {
    let (app, seen) = quick().await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    let asked = format!("{GET}{EXPECTED}: 5000\r\n\r\n");
    // The clock of this mesh stands still: all that could be spent is what the sidecars round off.
    assert!(exchange(pair.proxy, asked.as_bytes()).await.ends_with("hello"));
    assert_eq!(field(&seen.lock(), EXPECTED).as_deref(), Some("5000"));
    let untold = format!("{GET}\r\n");
    assert!(exchange(pair.proxy, untold.as_bytes()).await.ends_with("hello"));
    assert_eq!(field(&seen.lock(), EXPECTED), None, "who has no deadline tells none");
}

#[tokio::test]
async fn what_has_been_spent_is_taken_off_and_no_hop_raises_it() {
    let (app, seen) = quick().await;
    let timeouts = v1::Timeouts { request_ms: 8_000, ..Default::default() };
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    let policy = v1::TrafficPolicy { timeouts: Some(timeouts), ..Default::default() };
    pair.outbound.change([support::mesh::policy("p", "reviews", v1::policy::Spec::Traffic(policy))]).await;
    for (given, told) in [("20000", "8000"), ("3000", "3000")] {
        let asked = format!("{GET}{EXPECTED}: {given}\r\n\r\n");
        assert!(exchange(pair.proxy, asked.as_bytes()).await.ends_with("hello"));
        assert_eq!(field(&seen.lock(), EXPECTED).as_deref(), Some(told), "the shorter of both");
    }
}

#[tokio::test]
async fn a_limit_of_the_outbound_s_own_is_over_there_first() {
    const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";
    let clock = Arc::new(std::sync::OnceLock::<meshwork_base::ManualClock>::new());
    let time = Arc::clone(&clock);
    let app = upstream(move |got| {
        let is_first = !String::from_utf8_lossy(got).to_lowercase().contains("x-envoy-attempt-count: 2");
        (is_head(got) && is_first).then(|| {
            // The second attempt is told so much less than there is, as by rounding.
            time.get().unwrap().advance(Duration::from_millis(9));
            BUSY.to_vec()
        })
    })
    .await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    clock.set(pair.mesh.clock.clone()).unwrap();
    let retry = v1::Retry {
        attempts: Some(1),
        on: Some(v1::retry::On { status_codes: vec![503], ..Default::default() }),
        backoff_base_ms: Some(1),
        backoff_max_ms: Some(1),
        ..crate::support::bare_retry()
    };
    // Enough for both attempts to be sent.
    let timeouts = v1::Timeouts { request_ms: 2_000, ..Default::default() };
    let policy = v1::TrafficPolicy { retry: Some(retry), timeouts: Some(timeouts), ..Default::default() };
    let policy = v1::policy::Spec::Traffic(policy);
    pair.outbound.change([support::mesh::policy("p", "reviews", policy)]).await;
    let answer = exchange(pair.proxy, format!("{GET}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.ends_with("request_timeout\n"), "{answer}");
    let line = pair.outbound.lines(1).await.remove(0);
    assert!(line.contains(r#""request_timeout""#) && line.contains(r#""attempts":2"#), "{line}");
}

/// A call of gRPC in HTTP/1.1, with this deadline.
fn grpc_call(timeout: &str) -> String {
    format!(
        "POST / HTTP/1.1\r\nHost: reviews\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\
         Grpc-Timeout: {timeout}\r\nConnection: close\r\n\r\n"
    )
}

/// Callers need not be in the mesh.
fn permissive() -> Change {
    let open = v1::InboundPolicy { mtls: v1::inbound_policy::Mtls::Permissive.into() };
    support::mesh::policy("open", "reviews", v1::policy::Spec::Inbound(open))
}

#[tokio::test]
async fn an_application_is_told_what_is_left_however_its_caller_said_it() {
    let (app, seen) = quick().await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    pair.inbound.change([permissive()]).await;
    assert!(exchange(pair.peer, grpc_call("5S").as_bytes()).await.ends_with("hello"));
    assert_eq!(field(&seen.lock(), EXPECTED).as_deref(), Some("5000"));
}

#[tokio::test]
async fn what_only_grpc_s_library_says_counts_only_for_calls_of_grpc() {
    let (up, _) = quick().await;
    let accept = v1::Timeouts { caller_deadline: CallerDeadline::Accept.into(), ..Default::default() };
    let (_harness, address) = gateway(AppProtocol::Http1, up.address, accept).await;
    let answer = exchange(address, format!("{GET}Grpc-Timeout: 0n\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    let answer = exchange(address, grpc_call("0n").as_bytes()).await;
    assert!(answer.contains("grpc-status: 4\r\n"), "{answer}");
}

#[tokio::test]
async fn what_nobody_believes_is_not_passed_on() {
    let (up, seen) = quick().await;
    let (_harness, address) = gateway(AppProtocol::Http1, up.address, v1::Timeouts::default()).await;
    assert!(exchange(address, format!("{GET}{EXPECTED}: 5000\r\n\r\n").as_bytes()).await.ends_with("hello"));
    assert_eq!(field(&seen.lock(), EXPECTED), None);
}

#[tokio::test]
async fn what_a_request_has_taken_before_it_is_sent_is_gone() {
    let (up, seen) = quick().await;
    let (mut harness, address) = gateway(AppProtocol::Http1, up.address, v1::Timeouts::default()).await;
    let accept = v1::Timeouts { caller_deadline: CallerDeadline::Accept.into(), ..Default::default() };
    let share = Some(v1::Share { numerator: 1, denominator: 1 });
    let delay = Some(v1::fault_injection::Delay { share, time_ms: 50 });
    let fault_injection = Some(v1::FaultInjection { delay, ..Default::default() });
    let policy = v1::TrafficPolicy { timeouts: Some(accept), fault_injection, ..Default::default() };
    harness.change([on_web(policy)]).await;
    assert!(exchange(address, format!("{GET}{EXPECTED}: 60000\r\n\r\n").as_bytes()).await.ends_with("hello"));
    let told: u64 = field(&seen.lock(), EXPECTED).expect("it has one").parse().unwrap();
    assert!(told <= 60_000 - 50, "{told}");
}

#[tokio::test]
async fn the_caller_s_deadline_ends_the_request_with_a_cause_of_its_own() {
    let (app, _) = silent().await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    let asked = format!("{GET}{EXPECTED}: 60\r\n\r\n");
    let answer = exchange(pair.proxy, asked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.ends_with("deadline_exceeded\n"), "{answer}");
    let line = pair.outbound.lines(1).await.remove(0);
    assert!(line.contains("\"UT\"") && line.contains("deadline_exceeded"), "{line}");
}

#[tokio::test]
async fn grpc_hears_what_is_left_and_gets_deadline_exceeded() {
    let seen = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&seen);
    let up = h2_upstream(usize::MAX, move |number, request, respond| {
        *noted.lock() = request.headers().get("grpc-timeout").map(|value| value.to_str().unwrap().to_owned());
        async move {
            if number < 3 {
                answer(respond, b"");
            } else {
                std::future::pending::<()>().await;
            }
        }
    })
    .await;
    let accept = v1::Timeouts { caller_deadline: CallerDeadline::Accept.into(), ..Default::default() };
    let call = |timeout: &str| {
        let request = Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
        request.header("grpc-timeout", timeout).body(()).unwrap()
    };
    let ignore = v1::Timeouts { request_ms: 10_000, ..Default::default() };
    let (_harness, address) = gateway(AppProtocol::Grpc, up.address, ignore).await;
    fetch(&mut h2_client(address).await, call("1n")).await;
    assert_eq!(seen.lock().take().as_deref(), Some("1n"), "no hop raises it");
    fetch(&mut h2_client(address).await, call("60S")).await;
    let told = seen.lock().take().unwrap();
    let left = read_grpc_timeout(told.as_bytes()).unwrap();
    assert!(
        (Duration::from_secs(5)..=Duration::from_secs(10)).contains(&left),
        "nobody outside is believed, our own limit is told: {told}"
    );
    let (harness, address) = gateway(AppProtocol::Grpc, up.address, accept).await;
    fetch(&mut h2_client(address).await, call("5S")).await;
    let told = seen.lock().take().unwrap();
    let left = read_grpc_timeout(told.as_bytes()).unwrap();
    assert!((Duration::from_secs(1)..=Duration::from_secs(5)).contains(&left), "{told}");
    let mut client = h2_client(address).await;
    let (response, _) = client.send_request(call("50m"), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
    assert_eq!(response.headers()["grpc-message"], "deadline_exceeded");
    harness.lines(2).await;
}

const BREAKER_CHANGES: &str = "meshwork_circuit_breaker_changes_total";
const OPENED: [&str; 2] = ["default/web", "\"open\""];

#[tokio::test]
async fn a_call_that_still_comes_when_its_time_is_over_has_not_stood_still() {
    for (comes, opened) in [(true, 0), (false, 1)] {
        let clock = ManualClock::new();
        let (go_on, goes_on) = tokio::sync::watch::channel(false);
        let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
            let mut goes_on = goes_on.clone();
            async move {
                let message = || Bytes::from_static(b"\0\0\0\0\x01a");
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data(message(), false).unwrap();
                goes_on.wait_for(|goes_on| *goes_on).await.unwrap();
                send.send_data(message(), false).unwrap();
                poll_fn(|cx| send.poll_reset(cx)).await.ok();
            }
        })
        .await;
        let mut harness = Harness::at(&clock);
        harness.service("web", AppProtocol::Grpc, &[up.address]).await;
        let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
        let accept = v1::Timeouts { caller_deadline: CallerDeadline::Accept.into(), ..Default::default() };
        let circuit_breaker = Some(breaker());
        let policy = v1::TrafficPolicy { timeouts: Some(accept), circuit_breaker, ..Default::default() };
        harness.change([on_web(policy)]).await;
        let mut client = h2_client(address).await;
        let mut bodies = Vec::new();
        for _ in 0..3 {
            let call = Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
            let call = call.header("grpc-timeout", "3S").body(()).unwrap();
            let (response, _) = client.send_request(call, true).unwrap();
            let mut body = response.await.unwrap().into_body();
            body.data().await.unwrap().unwrap();
            bodies.push(body);
        }
        if comes {
            clock.advance(Duration::from_secs(2));
            go_on.send(true).unwrap();
            for body in &mut bodies {
                body.data().await.unwrap().unwrap();
            }
        }
        let lines = harness.lines(3).await;
        assert!(lines.iter().all(|line| line.contains("deadline_exceeded")), "{lines:?}");
        assert_eq!(harness.metric(BREAKER_CHANGES, &OPENED), opened, "{comes}");
    }
}

#[tokio::test]
async fn what_cannot_be_done_in_time_is_not_begun() {
    let clock = ManualClock::new();
    let time = clock.clone();
    let up = upstream(move |got| {
        is_head(got).then(|| {
            time.advance(Duration::from_millis(30));
            OK.to_vec()
        })
    })
    .await;
    let accept = v1::Timeouts { caller_deadline: CallerDeadline::Accept.into(), ..Default::default() };
    let (harness, address) = gateway_of(Harness::at(&clock), AppProtocol::Http1, up.address, accept).await;
    let ask = |millis: u32| format!("{GET}{EXPECTED}: {millis}\r\n\r\n");
    for _ in 0..20 {
        assert!(exchange(address, ask(60_000).as_bytes()).await.ends_with("hello"));
    }
    let connections = up.connections.load(Ordering::SeqCst);
    let answer = exchange(address, ask(29).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.ends_with("deadline_unreachable\n"), "{answer}");
    assert!(!answer.contains("x-meshwork"), "proxies of the mesh say more to each other: {answer}");
    let line = harness.lines(21).await.remove(20);
    assert!(line.contains("\"DU\"") && line.contains("\"attempts\":0"), "{line}");
    assert_eq!(up.connections.load(Ordering::SeqCst), connections);
    assert!(exchange(address, ask(60_000).as_bytes()).await.ends_with("hello"), "others go on");
}

#[tokio::test]
async fn what_the_application_cannot_do_in_time_does_not_reach_it() {
    let clock = Arc::new(std::sync::OnceLock::<meshwork_base::ManualClock>::new());
    let (time, asked) = (Arc::clone(&clock), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&asked);
    let app = upstream(move |got| {
        is_head(got).then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            time.get().unwrap().advance(Duration::from_millis(30));
            OK.to_vec()
        })
    })
    .await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    clock.set(pair.mesh.clock.clone()).unwrap();
    pair.inbound.change([permissive()]).await;
    for _ in 0..20 {
        assert!(exchange(pair.peer, format!("{GET}\r\n").as_bytes()).await.ends_with("hello"));
    }
    let answer = exchange(pair.peer, format!("{GET}{EXPECTED}: 29\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.ends_with("deadline_unreachable\n"), "{answer}");
    assert_eq!(asked.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn a_request_s_time_is_over_with_its_cause() {
    let (up, _) = silent().await;
    let timeouts = v1::Timeouts { request_ms: 50, ..Default::default() };
    let (harness, address) = gateway(AppProtocol::Http1, up.address, timeouts).await;
    let answer = exchange(address, format!("{GET}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.ends_with("request_timeout\n"), "{answer}");
    assert!(harness.lines(1).await[0].contains("\"UT\""));
}

#[tokio::test]
async fn an_attempt_has_the_time_that_its_rule_gives_it_also_behind_its_response_s_head() {
    let begins = upstream(|got| {
        let begun = is_head(got) && got.starts_with(b"GET /begun ");
        begun.then(|| b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel".to_vec())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[begins.address]).await;
    let rule = |ms| v1::Rule { backend_request_timeout_ms: ms, ..rule(&[("web", 1)], vec![]) };
    let begun = v1::StringMatch { kind: Some(v1::string_match::Kind::Exact("/begun".into())) };
    // The one that begins has time enough for that.
    let begun =
        v1::Rule { matches: vec![v1::Match { path: Some(begun), ..Default::default() }], ..rule(1_500) };
    let address = harness.route(vec![begun, rule(50)]).await;
    let ask = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n");
        let asked = exchange(address, request.as_bytes());
        tokio::time::timeout(Duration::from_secs(30), asked).await.expect("nobody waits for ever")
    };
    let answer = ask("/").await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.ends_with("per_try_timeout\n"), "{answer}");
    assert!(ask("/begun").await.ends_with("\r\n\r\nhel"), "it is broken off");
}

#[tokio::test]
async fn a_connection_that_nobody_accepts_is_given_up() {
    // A full backlog: the kernel answers no more SYN.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let full = socket.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(tcp)) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(full)).await {
        held.push(tcp);
    }
    let timeouts = v1::Timeouts { connect_ms: 60, ..Default::default() };
    let (harness, address) = gateway(AppProtocol::Http1, full, timeouts).await;
    let answer = exchange(address, format!("{GET}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("connect_timeout\n"), "{answer}");
    assert!(harness.lines(1).await[0].contains("\"UF\""));
}

#[tokio::test]
async fn a_stream_that_never_ends_ends_after_the_longest_time_and_is_no_whole_response() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let up = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_until(&mut tcp, "\r\n\r\n").await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        while tcp.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    // In its time it begins.
    let timeouts = v1::Timeouts { max_stream_ms: 1_500, ..Default::default() };
    let (harness, address) = gateway(AppProtocol::Http1, up, timeouts).await;
    let answer = exchange(address, format!("{GET}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"DT\"") && line.contains("max_stream_duration"), "{line}");
}

#[tokio::test]
async fn a_tunnel_too_ends_after_the_longest_time() {
    let up = upstream(|got| {
        is_head(got).then(|| {
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n".to_vec()
        })
    })
    .await;
    let timeouts = v1::Timeouts { max_stream_ms: 2_000, request_ms: 1_500, ..Default::default() };
    let (harness, address) = gateway(AppProtocol::Http1, up.address, timeouts).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
        .await
        .unwrap();
    assert!(read_until(&mut tcp, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    let line = harness.lines(1).await.remove(0);
    assert!(
        line.contains("max_stream_duration"),
        "not the request's time, which is over with its head: {line}"
    );
}

#[tokio::test]
async fn a_tunnel_s_time_began_with_its_request() {
    let clock = meshwork_base::ManualClock::new();
    let time = clock.clone();
    let up = upstream(move |got| {
        is_head(got).then(|| {
            time.advance(Duration::from_secs(100));
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n".to_vec()
        })
    })
    .await;
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(v1::Timeouts { max_stream_ms: 100_000, ..Default::default() })]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let asks = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n";
    tcp.write_all(asks).await.unwrap();
    // Its time is over when it begins: whether its caller hears of that it began is left open.
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("max_stream_duration"), "{line}");
}

#[tokio::test]
async fn a_connection_to_an_endpoint_idles_as_long_as_the_policy_says() {
    let (up, _) = quick().await;
    let timeouts = v1::Timeouts { idle_ms: 300, ..Default::default() };
    let (_harness, address) = gateway(AppProtocol::Http1, up.address, timeouts).await;
    let ask = format!("{GET}\r\n");
    exchange(address, ask.as_bytes()).await;
    exchange(address, ask.as_bytes()).await;
    assert_eq!(up.connections.load(Ordering::SeqCst), 1, "it is kept");
    // The sweep closes it; a new one shows that. There is no event for a connection that is gone.
    let until = Instant::now() + Duration::from_secs(10);
    while up.connections.load(Ordering::SeqCst) == 1 {
        assert!(Instant::now() < until, "it is still kept");
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        exchange(address, ask.as_bytes()).await;
    }
}

/// A gateway before an application that does what a test says; its time moves when told to.
struct Slow {
    harness: Harness,
    clock: ManualClock,
    address: SocketAddr,
    app: TcpListener,
}

/// How long a test waits for what is to come at once.
const SOON: Duration = Duration::from_secs(10);
/// The time that a caller has for the next kibibyte of a body.
const BODY: Duration = Duration::from_secs(60);

impl Slow {
    async fn before(protocol: AppProtocol, policy: v1::TrafficPolicy) -> Self {
        let clock = ManualClock::new();
        let mut settings = Settings { workers: 1, ..Settings::default() };
        settings.timeouts.idle = Duration::from_secs(1);
        assert_eq!(settings.timeouts.body, BODY);
        let mut harness = Harness::join(settings, Mesh::default(), Arc::new(clock.clone()), "gateway");
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        harness.service("web", protocol, &[app.local_addr().unwrap()]).await;
        let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
        harness.change([on_web(policy)]).await;
        Self { harness, clock, address, app }
    }

    /// So much time goes by, and the only worker has looked at all who wait for something: it lets go of one that idles.
    async fn passes(&self, time: Duration) {
        let came = || self.harness.metric("meshwork_downstream_connections_total", &[]);
        let before = came();
        let mut idle = TcpStream::connect(self.address).await.unwrap();
        self.harness.wait_metric("meshwork_downstream_connections_total", &[], before + 1).await;
        self.clock.advance(time);
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
    }

    /// A request whose body of this length does not come yet.
    async fn asks(&self, method: &str, length: usize, more: &str) -> TcpStream {
        let mut caller = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n");
        caller.write_all(head.as_bytes()).await.unwrap();
        caller
    }

    /// The application has a request's head.
    async fn is_asked(&self) -> TcpStream {
        let (mut app, _) = self.app.accept().await.unwrap();
        let head = read_until(&mut app, "\r\n\r\n").await;
        assert!(head.ends_with("\r\n\r\n"), "no body has come: {head}");
        app
    }
}

/// So much of a body gets from the caller to the application.
async fn moves(caller: &mut TcpStream, app: &mut TcpStream, bytes: usize) {
    caller.write_all(&vec![b'x'; bytes]).await.unwrap();
    app.read_exact(&mut vec![0; bytes]).await.unwrap();
}

/// The application answers, and that reaches the caller.
async fn is_answered(caller: &mut TcpStream, app: &mut TcpStream) {
    app.write_all(OK).await.unwrap();
    let answer = read_until(caller, "hello").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_caller_has_its_time_for_each_kibibyte_of_a_body_and_not_for_each_byte() {
    let slow = Slow::before(AppProtocol::Http1, v1::TrafficPolicy::default()).await;
    let mut caller = slow.asks("POST", 3 * 1024, "").await;
    let mut app = slow.is_asked().await;
    for _ in 0..3 {
        slow.passes(BODY * 2 / 3).await;
        moves(&mut caller, &mut app, 1024).await;
    }
    is_answered(&mut caller, &mut app).await;
    // On the same connection to the application.
    let mut caller = slow.asks("POST", 3 * 1024, "").await;
    read_until(&mut app, "\r\n\r\n").await;
    moves(&mut caller, &mut app, 1).await;
    slow.passes(BODY * 2 / 3).await;
    moves(&mut caller, &mut app, 1).await;
    slow.passes(BODY * 2 / 3).await;
    let told = read_until(&mut caller, "request_body_timeout");
    let answer = tokio::time::timeout(SOON, told).await.expect("single bytes are no body that moves");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_call_of_grpc_may_pause_between_its_messages() {
    let slow = Slow::before(AppProtocol::Http1, v1::TrafficPolicy::default()).await;
    let mut caller = slow.asks("POST", 4, "Content-Type: application/grpc\r\n").await;
    let mut app = slow.is_asked().await;
    slow.passes(BODY * 2).await;
    moves(&mut caller, &mut app, 4).await;
    is_answered(&mut caller, &mut app).await;
}

#[tokio::test]
async fn who_has_sent_all_of_a_body_owes_nothing_however_long_the_answer_takes() {
    let slow = Slow::before(AppProtocol::Http1, v1::TrafficPolicy::default()).await;
    let mut caller = slow.asks("POST", 4, "").await;
    let mut app = slow.is_asked().await;
    moves(&mut caller, &mut app, 4).await;
    slow.passes(BODY * 2).await;
    is_answered(&mut caller, &mut app).await;
}

#[tokio::test]
async fn while_the_application_takes_no_more_of_a_body_its_caller_owes_nothing() {
    let slow = Slow::before(AppProtocol::Http2, v1::TrafficPolicy::default()).await;
    let mut caller = slow.asks("POST", 32 * 1024, "").await;
    let (mut app, _) = slow.app.accept().await.unwrap();
    app.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
    let mut app = Raw(app);
    // A window for nothing.
    app.send(&[frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]), frame(SETTINGS, ACK, 0, &[])].concat()).await;
    while !matches!(app.next().await.unwrap(), (HEADERS, ..)) {}
    assert!(app.settle().await, "it knows that there is none");
    caller.write_all(&[b'x'; 32 * 1024]).await.unwrap();
    for _ in 0..2 {
        // The only worker has read by then what came before.
        assert!(exchange(slow.address, b"GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    }
    slow.passes(BODY * 2).await;
    app.send(&frame(WINDOW_UPDATE, 0, 1, &[0, 1, 0, 0])).await;
    let mut taken = 0;
    while taken < 32 * 1024 {
        match app.next().await.unwrap() {
            (DATA, _, _, data) => taken += data.len(),
            (RESET, ..) => panic!("its caller is not waited for"),
            _ => {}
        }
    }
    app.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x88])).await;
    let answer = read_until(&mut caller, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_caller_has_its_time_for_a_body_with_each_attempt() {
    let slow = Slow::before(AppProtocol::Http1, retry(1, &[])).await;
    let mut caller = slow.asks("PUT", 4, "").await;
    let first = slow.is_asked().await;
    slow.passes(BODY * 2 / 3).await;
    drop(first);
    let mut app = slow.is_asked().await;
    slow.passes(BODY * 2 / 3).await;
    moves(&mut caller, &mut app, 4).await;
    is_answered(&mut caller, &mut app).await;
}

#[tokio::test]
async fn what_was_owed_of_one_request_is_not_held_against_the_next() {
    let limits = Some(v1::Limits { max_connections: 1, ..Default::default() });
    let slow = Slow::before(AppProtocol::Http1, v1::TrafficPolicy { limits, ..Default::default() }).await;
    let mut caller = slow.asks("POST", 4, "").await;
    let mut app = slow.is_asked().await;
    // It is answered before it has come.
    is_answered(&mut caller, &mut app).await;
    let mut other = slow.asks("POST", 0, "").await;
    let mut app = slow.is_asked().await;
    caller.write_all(b"xxxxPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await.unwrap();
    slow.harness.wait_metric("meshwork_limit_waited_total", &["maxConnections"], 1).await;
    slow.passes(BODY * 2).await;
    app.write_all(OK).await.unwrap();
    assert!(read_until(&mut other, "hello").await.starts_with("HTTP/1.1 200"));
    let asked = tokio::time::timeout(SOON, read_until(&mut app, "\r\n\r\n"));
    asked.await.expect("it has waited for its turn");
    moves(&mut caller, &mut app, 4).await;
    is_answered(&mut caller, &mut app).await;
}
