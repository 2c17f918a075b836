//! Copies of requests: what reaches the other service, and that the caller never notices.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Settings, Side};
use parking_lot::Mutex;
use support::h2::{
    H2Upstream, answer, collect, collect_body, fetch, get, h2_client, h2_upstream, h2_upstream_with,
};
use support::mesh::{Pair, TestMesh, plain_at, policy, service_at, serving};
use support::mirrors::{
    Edge, GET, OK, OUTCOMES, Recorder, edge, edge_at, edge_of, mirror, mirrored, on_copy, until,
};
use support::{Harness, exchange, free_port, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

#[tokio::test]
async fn a_copy_is_the_request_as_it_is_sent_and_says_that_it_is_one() {
    let copy = Recorder::answering(b"HTTP/1.1 500 Wrong\r\ncontent-length: 4\r\n\r\ncopy").await;
    let edits = v1::FieldEdits {
        set: vec![v1::Field { name: "x-set".into(), value: "by the rule".into() }],
        ..Default::default()
    };
    let filter = v1::Filter { kind: Some(v1::filter::Kind::RequestHeaders(edits)) };
    // Outside of the mesh nobody is told how long there is time.
    let rule =
        v1::Rule { filters: vec![filter], request_timeout_ms: 60_000, ..mirrored(vec![mirror("copy", 100)]) };
    let edge = edge(copy.upstream.address, rule).await;
    let post =
        b"POST /a?b=c HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    let response = exchange(edge.address, post).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("original"), "{response}");
    let original = edge.web.has(1).await.remove(0);
    let got = copy.has(1).await.remove(0);
    assert!(got.starts_with("POST /a?b=c HTTP/1.1\r\n") && got.ends_with("\r\n\r\nhello"), "{got}");
    assert!(got.contains("x-meshwork-mirror: 1\r\n"), "{got}");
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_ascii_lowercase).collect();
        lines.retain(|line| !line.starts_with("x-meshwork-mirror"));
        lines.sort();
        lines
    };
    assert_eq!(sorted(&got), sorted(&original), "but for the mark it is the same");
    assert!(original.contains("x-set: by the rule") && !original.contains("x-meshwork-mirror"));
    edge.ended("failed", 1).await;
    let line = edge.harness.lines(1).await.remove(0);
    assert!(line.contains("\"mirrors\":1") && line.contains("\"response_code\":200"), "{line}");
    assert!(line.contains("\"attempts\":1") && line.contains("default/web"), "{line}");
}

/// Who could would keep its requests from the other service, and the application would take them for copies.
#[tokio::test]
async fn nobody_outside_says_of_a_request_that_it_is_a_copy() {
    let copy = Recorder::answering(OK).await;
    let edge = edge(copy.upstream.address, mirrored(vec![mirror("copy", 100)])).await;
    let call = b"GET / HTTP/1.1\r\nHost: shop\r\nX-Meshwork-Mirror: 1\r\nConnection: close\r\n\r\n";
    assert!(exchange(edge.address, call).await.ends_with("original"));
    edge.ended("answered", 1).await;
    assert!(!edge.web.has(1).await[0].to_lowercase().contains("x-meshwork-mirror"));
    assert!(!edge.harness.lines(1).await[0].contains("\"mirrored\""));
}

#[tokio::test]
async fn bodies_without_a_length_are_copied_in_both_versions() {
    let (bytes, got) = (vec![b'x'; 100 * 1024], Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&got);
    let copy = h2_upstream(usize::MAX, move |_, request, mut respond| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            let (body, trailers) = collect_body(body).await.unwrap();
            let host = head.uri.authority().unwrap().to_string();
            seen.lock().push((host, body, trailers.is_some_and(|t| t["x-sum"] == "1")));
            respond.send_response(Response::new(()), true).unwrap();
        }
    })
    .await;
    let edge = edge_of(AppProtocol::Http2, copy.address, mirrored(vec![mirror("copy", 100)])).await;
    let mut client = h2_client(edge.address).await;
    let request = Request::post("http://shop/").body(()).unwrap();
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data(Bytes::from(bytes.clone()), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    body.send_trailers(trailers).unwrap();
    assert_eq!(collect(response.await.unwrap()).await.0, 200);
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        bytes.len(),
        String::from_utf8_lossy(&bytes)
    );
    assert!(exchange(edge.address, chunked.as_bytes()).await.starts_with("HTTP/1.1 200"));
    edge.ended("answered", 2).await;
    let got = got.lock();
    assert!(got.iter().all(|(host, body, _)| host == "shop" && body[..] == bytes[..]));
    assert_eq!(got.iter().filter(|(.., trailers)| *trailers).count(), 1, "those of HTTP/2");
}

#[tokio::test]
async fn a_service_that_cannot_be_reached_or_breaks_is_nobodys_concern() {
    let edge = edge(([127, 0, 0, 1], free_port()).into(), mirrored(vec![mirror("copy", 100)])).await;
    assert!(exchange(edge.address, GET).await.ends_with("original"));
    edge.ended("failed", 1).await;
    let failures = ("meshwork_upstream_connect_failures_total", ["connect_failure"]);
    assert_eq!(edge.harness.metric(failures.0, &failures.1), 1);
    let copy = upstream(|got| is_head(got).then(Vec::new)).await;
    let mut broken = self::edge(copy.address, mirrored(vec![mirror("copy", 100)])).await;
    // What the rule says of retries is said of originals.
    let retry = v1::Retry {
        attempts: Some(3),
        on: Some(v1::retry::On { reset: true, ..Default::default() }),
        ..crate::support::bare_retry()
    };
    let rule = v1::Rule { retry: Some(retry), ..mirrored(vec![mirror("copy", 100)]) };
    broken.address = broken.harness.route(vec![rule]).await;
    assert!(exchange(broken.address, GET).await.ends_with("original"));
    broken.ended("failed", 1).await;
    assert_eq!(copy.connections.load(Ordering::SeqCst), 1, "a copy is sent once");
    let line = broken.harness.lines(1).await.remove(0);
    assert!(line.contains("\"response_flags\":\"-\""), "{line}");
}

#[tokio::test]
async fn nobody_waits_for_a_copy_and_its_time_is_that_of_the_request() {
    let silent = upstream(|_| None).await;
    let rule = v1::Rule { request_timeout_ms: 700, ..mirrored(vec![mirror("copy", 100)]) };
    let edge = edge(silent.address, rule).await;
    let began = tokio::time::Instant::now();
    assert!(exchange(edge.address, GET).await.ends_with("original"));
    assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
    assert_eq!(edge.harness.metric(OUTCOMES, &["default/copy"]), 0, "the copy goes on");
    edge.ended("timed_out", 1).await;
    assert!(began.elapsed() >= Duration::from_millis(650), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_copy_that_is_read_more_slowly_than_the_original_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stuck = listener.local_addr().unwrap();
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        counted.store(1, Ordering::SeqCst);
        // It reads on only when it is over.
        until(|| counted.load(Ordering::SeqCst) == 2).await;
        let _ = tcp.read_to_end(&mut Vec::new()).await;
        counted.store(3, Ordering::SeqCst);
    });
    let edge = edge(stuck, mirrored(vec![mirror("copy", 100)])).await;
    let size = 48 * 1024 * 1024;
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n");
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    tcp.write_all(head.as_bytes()).await.unwrap();
    until(|| open.load(Ordering::SeqCst) == 1).await;
    tcp.write_all(&vec![b'x'; size]).await.unwrap();
    let mut response = String::new();
    tcp.read_to_string(&mut response).await.unwrap();
    assert!(response.ends_with("original"), "{response}");
    edge.ended("given_up", 1).await;
    open.store(2, Ordering::SeqCst);
    until(|| open.load(Ordering::SeqCst) == 3).await;
    let got = edge.web.has(1).await.remove(0);
    assert!(got.ends_with(&"x".repeat(1024)) && got.len() > size, "the original has all of it");
}

#[tokio::test]
async fn a_copy_that_nobody_reads_is_given_up_though_it_has_kept_up_until_then() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // It is never accepted: the kernel takes what it has room for.
    let listener = socket.listen(8).unwrap();
    let edge = edge(listener.local_addr().unwrap(), mirrored(vec![mirror("copy", 100)])).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
    tcp.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b'x'; 64 * 1024];
    let sending = async {
        while edge.harness.metric(OUTCOMES, &["default/copy", "\"given_up\""]) == 0 {
            tcp.write_all(&piece).await.unwrap();
            // Slowly enough for a copy that is read.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), sending).await.expect("it is given up");
}

#[tokio::test]
async fn a_copy_says_for_whom_it_is_made_on_a_connection_of_its_own() {
    let copy = Recorder::answering(OK).await;
    let mut edge = edge(copy.upstream.address, mirrored(vec![mirror("copy", 100)])).await;
    let proxy_protocol = v1::traffic_policy::ProxyProtocol::V1.into();
    edge.harness.change([on_copy(v1::TrafficPolicy { proxy_protocol, ..Default::default() })]).await;
    for count in 1..=2 {
        assert!(exchange(edge.address, GET).await.ends_with("original"));
        edge.ended("answered", count).await;
    }
    let got = copy.has(2).await;
    assert!(got.iter().all(|got| got.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 ")), "{got:?}");
    assert_eq!(copy.upstream.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn copies_that_are_alike_go_to_one_endpoint_where_the_other_service_wants_that() {
    let mut copies = Vec::new();
    for _ in 0..4 {
        copies.push(Recorder::answering(OK).await);
    }
    let mut edge = edge(copies[0].upstream.address, mirrored(vec![mirror("copy", 100)])).await;
    let addresses: Vec<_> = copies.iter().map(|copy| copy.upstream.address).collect();
    edge.harness.service("copy", AppProtocol::Http1, &addresses).await;
    let by_user = v1::HashRule { kind: Some(v1::hash_rule::Kind::Header("x-user".into())), terminal: true };
    let policy = v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::Maglev.into(),
        load_balancer: Some(v1::LoadBalancer { hash_policy: vec![by_user], ..Default::default() }),
        ..Default::default()
    };
    edge.harness.change([on_copy(policy)]).await;
    for count in 1..=12 {
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nX-User: anna\r\nConnection: close\r\n\r\n";
        assert!(exchange(edge.address, request).await.ends_with("original"));
        edge.ended("answered", count).await;
    }
    let counts: Vec<usize> = copies.iter().map(|copy| copy.got.lock().len()).collect();
    assert!(counts.contains(&12), "{counts:?}");
}

#[tokio::test]
async fn what_offers_to_change_the_protocol_is_not_copied() {
    let copy = Recorder::answering(OK).await;
    let edge = edge(copy.upstream.address, mirrored(vec![mirror("copy", 100)])).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    tcp.write_all(upgrade).await.unwrap();
    assert!(read_until(&mut tcp, "original").await.starts_with("HTTP/1.1 200"), "it was declined");
    tcp.write_all(GET).await.unwrap();
    read_until(&mut tcp, "original").await;
    let lines = edge.harness.lines(2).await;
    assert!(!lines[0].contains("\"mirrors\"") && lines[1].contains("\"mirrors\":1"), "{lines:?}");
    assert!(
        edge.web.has(2).await[0].to_lowercase().contains("upgrade: websocket\r\n"),
        "the offer was sent on"
    );
}

#[tokio::test]
async fn a_caller_who_leaves_in_the_middle_of_a_body_cuts_its_copy_off() {
    let copy = Recorder::answering(OK).await;
    let edge = edge(copy.upstream.address, mirrored(vec![mirror("copy", 100)])).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
    until(|| copy.upstream.connections.load(Ordering::SeqCst) == 1).await;
    drop(tcp);
    edge.ended("cut_off", 1).await;
    assert!(copy.got.lock().is_empty(), "half a request is none");
}

#[tokio::test]
async fn so_many_of_all_are_copied_as_the_share_says() {
    let copy = Recorder::answering(OK).await;
    let mirrors = vec![mirror("copy", 0), mirror("copy", 30)];
    let edge = edge(copy.upstream.address, mirrored(mirrors)).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    for _ in 0..300 {
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut tcp, "original").await;
    }
    let lines = edge.harness.lines(300).await;
    let copied = lines.iter().filter(|line| line.contains("\"mirrors\":1")).count();
    assert!((50..140).contains(&copied), "{copied} of 300");
    edge.ended("answered", u64::try_from(copied).unwrap()).await;
}

#[tokio::test]
async fn a_rule_may_have_several_and_a_backend_its_own() {
    let (one, two) = (Recorder::answering(OK).await, Recorder::answering(OK).await);
    let mut edge = edge(one.upstream.address, mirrored(vec![])).await;
    edge.harness.service("two", AppProtocol::Http1, &[two.upstream.address]).await;
    let mut both = v1::Rule {
        mirrors: vec![mirror("copy", 100), mirror("two", 100), mirror("unknown", 100)],
        ..rule(&[("web", 1), ("copy", 0)], vec![])
    };
    both.backends[0].mirrors = vec![mirror("two", 100)];
    both.backends[1].mirrors = vec![mirror("copy", 100)];
    let address = edge.harness.route(vec![both]).await;
    assert!(exchange(address, GET).await.ends_with("original"));
    edge.harness.wait_metric(OUTCOMES, &["default/two", "answered"], 2).await;
    edge.ended("answered", 1).await;
    assert!(edge.harness.lines(1).await[0].contains("\"mirrors\":3"), "nobody has delivered `unknown`");
}

#[tokio::test]
async fn a_worker_has_so_many_copies_under_way_and_no_more() {
    let silent = upstream(|_| None).await;
    let edge = edge(silent.address, mirrored(vec![mirror("copy", 100)])).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    for _ in 0..130 {
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut tcp, "original").await;
    }
    edge.ended("refused", 2).await;
}

#[tokio::test]
async fn the_other_services_own_limit_counts_its_copies() {
    let silent = upstream(|_| None).await;
    let mut edge = edge(silent.address, mirrored(vec![mirror("copy", 100)])).await;
    let spec = v1::TrafficPolicy {
        limits: Some(v1::Limits { max_requests: 1, ..Default::default() }),
        ..Default::default()
    };
    edge.harness.change([on_copy(spec)]).await;
    for _ in 0..3 {
        assert!(exchange(edge.address, GET).await.ends_with("original"));
    }
    edge.ended("refused", 2).await;
}

#[tokio::test]
async fn copies_are_held_back_where_too_few_calls_succeed() {
    let busy =
        upstream(|got| is_head(got).then(|| b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_vec()))
            .await;
    let mut edge = edge(busy.address, mirrored(vec![mirror("copy", 100)])).await;
    // So aggressive that one failure holds back nearly all.
    let admission_control = Some(v1::AdmissionControl {
        sampling_window_ms: 30_000,
        success_rate_threshold: 95,
        aggression_thousandths: 1_000_000,
        rps_threshold: Some(0),
        max_rejection_percent: Some(100),
        priorities: vec![],
    });
    edge.harness.change([on_copy(v1::TrafficPolicy { admission_control, ..Default::default() })]).await;
    assert!(exchange(edge.address, GET).await.ends_with("original"));
    edge.ended("failed", 1).await;
    for _ in 0..20 {
        assert!(exchange(edge.address, GET).await.ends_with("original"));
    }
    edge.harness.wait_metric("meshwork_mirrored_requests_total", &[], 21).await;
    let refused = edge.harness.metric("meshwork_mirrored_requests_total", &["refused"]);
    assert!(refused >= 15, "{refused} of 20");
}

/// The application passes on what it was told.
#[tokio::test]
async fn a_copy_is_not_copied_again() {
    let (app, copy) = (Recorder::answering(OK).await, Recorder::answering(OK).await);
    let mut pair = Pair::start(app.upstream.address, AppProtocol::Http1).await;
    let services = plain_at("ratings", copy.upstream.address);
    pair.outbound.change(services.into_iter().chain([route_of("reviews", "ratings")])).await;
    for marked in ["X-Meshwork-Mirror: 1\r\n", ""] {
        let call = format!("GET / HTTP/1.1\r\nHost: reviews\r\n{marked}Connection: close\r\n\r\n");
        assert!(exchange(pair.proxy, call.as_bytes()).await.ends_with("original"));
    }
    pair.outbound.wait_metric(OUTCOMES, &["shop/ratings", "answered"], 1).await;
    let lines = pair.outbound.lines(2).await;
    assert!(!lines[0].contains("\"mirrors\"") && lines[1].contains("\"mirrors\":1"), "{lines:?}");
}

#[tokio::test]
async fn a_copy_has_a_span_of_its_own_in_the_trace_of_its_request() {
    let copy = Recorder::answering(OK).await;
    let rule = mirrored(vec![mirror("copy", 100)]);
    let edge =
        edge_at(Harness::traced(Settings::default()), AppProtocol::Http1, copy.upstream.address, rule).await;
    assert!(exchange(edge.address, GET).await.ends_with("original"));
    let parent = |got: &str| -> Vec<String> {
        let line = got.lines().find_map(|line| line.strip_prefix("traceparent: ")).expect("a trace");
        line.split('-').map(str::to_owned).collect()
    };
    let (original, copy) = (parent(&edge.web.has(1).await[0]), parent(&copy.has(1).await[0]));
    assert_eq!(original[1], copy[1]);
    assert_ne!(original[2], copy[2]);
}

#[tokio::test]
async fn who_looks_at_a_request_does_not_find_its_copy() {
    let copy = Recorder::answering(OK).await;
    let edge = edge(copy.upstream.address, mirrored(vec![mirror("copy", 100)])).await;
    let looked_at = b"GET / HTTP/1.1\r\nHost: a\r\nX-Meshwork-Probe: 1f\r\nConnection: close\r\n\r\n";
    assert!(exchange(edge.address, looked_at).await.ends_with("original"));
    let is_marked = |got: &str| got.to_lowercase().contains("x-meshwork-probe: 1f\r\n");
    assert!(is_marked(&edge.web.has(1).await[0]));
    assert!(!is_marked(&copy.has(1).await[0]));
}

#[tokio::test]
async fn grpc_s_own_status_says_what_became_of_a_copy() {
    let copy = h2_upstream(usize::MAX, |_, request, mut respond| async move {
        collect_body(request.into_body()).await.unwrap();
        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut send = respond.send_response(response, false).unwrap();
        send.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "14".parse().unwrap());
        send.send_trailers(trailers).unwrap();
    })
    .await;
    let edge = edge_of(AppProtocol::Grpc, copy.address, mirrored(vec![mirror("copy", 100)])).await;
    let mut client = h2_client(edge.address).await;
    let call = Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
    assert_eq!(fetch(&mut client, call.body(()).unwrap()).await.0, 200);
    edge.ended("failed", 1).await;
    assert_eq!(fetch(&mut client, get("/")).await.0, 200);
    edge.ended("answered", 1).await;
}

/// HTTP/2 shares connections, and a header of that kind speaks of one caller.
#[tokio::test]
async fn a_copy_does_not_leave_out_the_header_that_its_service_asks_for() {
    let copy = h2_upstream(usize::MAX, |_, _, respond| async move { answer(respond, b"") }).await;
    let mut edge = edge_of(AppProtocol::Http2, copy.address, mirrored(vec![mirror("copy", 100)])).await;
    let proxy_protocol = v1::traffic_policy::ProxyProtocol::V2.into();
    edge.harness.change([on_copy(v1::TrafficPolicy { proxy_protocol, ..Default::default() })]).await;
    exchange(edge.address, GET).await;
    edge.ended("failed", 1).await;
    assert_eq!(copy.connections.load(Ordering::SeqCst), 0);
}

/// Copies of calls of gRPC whose endpoint answers with this status, of which three failures open the breaker.
async fn grpc_copies(status: &'static str) -> (Edge, H2Upstream) {
    let copy = h2_upstream(usize::MAX, move |_, request, mut respond| async move {
        collect_body(request.into_body()).await.expect("a whole body");
        let response = Response::builder().header("content-type", "application/grpc");
        let response = response.header("grpc-status", status).body(()).expect("a response");
        respond.send_response(response, true).expect("it is waited for");
    })
    .await;
    let mut edge = edge_of(AppProtocol::Grpc, copy.address, mirrored(vec![mirror("copy", 100)])).await;
    edge.harness.change([on_copy(opening())]).await;
    (edge, copy)
}

/// Opens when three of ten calls fail.
fn opening() -> v1::TrafficPolicy {
    let breaker = v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 3,
        failure_percent: 30,
        open_ms: 60_000,
        max_open_ms: 60_000,
        trials: 1,
        ..Default::default()
    };
    v1::TrafficPolicy { circuit_breaker: Some(breaker), ..Default::default() }
}

fn grpc_call() -> http::request::Builder {
    Request::post("http://shop/a.B/C").header("content-type", "application/grpc")
}

const OPENED: [&str; 2] = ["default/copy", "\"open\""];

/// A caller who is not believed gives little time, and the copy's endpoint hears that too.
#[tokio::test]
async fn a_deadline_that_is_not_believed_is_held_against_no_copy_s_endpoint() {
    let (edge, _copy) = grpc_copies("4").await;
    let mut client = h2_client(edge.address).await;
    for number in 1..=6 {
        fetch(&mut client, grpc_call().header("grpc-timeout", "1m").body(()).unwrap()).await;
        edge.ended("failed", number).await;
    }
    assert_eq!(edge.harness.metric("meshwork_circuit_breaker_changes_total", &OPENED), 0);
    for number in 7..=9 {
        fetch(&mut client, grpc_call().body(()).unwrap()).await;
        edge.ended("failed", number).await;
    }
    edge.harness.wait_metric("meshwork_circuit_breaker_changes_total", &OPENED, 1).await;
}

#[tokio::test]
async fn what_a_deadline_does_not_explain_is_held_against_a_copy_s_endpoint() {
    let (edge, _copy) = grpc_copies("13").await;
    let mut client = h2_client(edge.address).await;
    for number in 1..=3 {
        fetch(&mut client, grpc_call().header("grpc-timeout", "1m").body(()).unwrap()).await;
        edge.ended("failed", number).await;
    }
    edge.harness.wait_metric("meshwork_circuit_breaker_changes_total", &OPENED, 1).await;
}

#[tokio::test]
async fn a_copy_that_gets_no_stream_does_not_wait_for_ever() {
    let serve = |_, _: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>| async move {
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        // The first one goes on for longer than the second one waits for its stream.
        while send.send_data(Bytes::from_static(b"."), false).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let copy = h2_upstream_with(|server| server.max_concurrent_streams(1), usize::MAX, serve).await;
    let mut edge = edge_of(AppProtocol::Http2, copy.address, mirrored(vec![mirror("copy", 100)])).await;
    let limits = Some(v1::Limits { max_connections: 1, ..Default::default() });
    let timeouts = Some(v1::Timeouts { stream_idle_ms: 200, ..Default::default() });
    edge.harness.change([on_copy(v1::TrafficPolicy { limits, timeouts, ..Default::default() })]).await;
    exchange(edge.address, GET).await;
    // Its endpoint's limit of streams is known from here on.
    until(|| copy.connections.load(Ordering::SeqCst) == 1).await;
    exchange(edge.address, GET).await;
    edge.ended("refused", 1).await;
}

#[tokio::test]
async fn a_copy_whose_time_is_over_behind_a_limit_says_nothing_of_an_endpoint_that_never_had_it() {
    let began = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&began);
    let serve = move |_, _: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
        let counted = Arc::clone(&counted);
        async move {
            let _held = respond.send_response(Response::new(()), false).unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
    };
    let copy = h2_upstream_with(|server| server.max_concurrent_streams(1), usize::MAX, serve).await;
    let mut edge = edge_of(AppProtocol::Http2, copy.address, mirrored(vec![mirror("copy", 100)])).await;
    let limits = Some(v1::Limits { max_connections: 1, ..Default::default() });
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: Some(1),
        base_ejection_time_ms: 60_000,
        max_ejection_time_ms: 60_000,
        max_ejection_percent: 100,
        ..crate::support::rows_off()
    });
    let spec = v1::TrafficPolicy { limits, outlier_detection, ..Default::default() };
    edge.harness.change([on_copy(spec)]).await;
    exchange(edge.address, GET).await;
    until(|| began.load(Ordering::SeqCst) == 1).await;
    let hurried = v1::Rule { request_timeout_ms: 200, ..mirrored(vec![mirror("copy", 100)]) };
    edge.address = edge.harness.route(vec![hurried]).await;
    assert!(exchange(edge.address, GET).await.ends_with("original"));
    edge.harness.wait_metric(OUTCOMES, &["default/copy"], 1).await;
    edge.ended("refused", 1).await;
    assert_eq!(edge.harness.metric("meshwork_endpoint_ejections_total", &["default/copy"]), 0);
}

#[tokio::test]
async fn that_copies_are_held_back_again_is_told_with_the_first_that_is() {
    let busy =
        upstream(|got| is_head(got).then(|| b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_vec()))
            .await;
    let clock = meshwork_base::ManualClock::new();
    let settings = Settings { workers: 1, ..Settings::default() };
    let time = Arc::new(clock.clone());
    let harness = Harness::join(settings, meshwork_proxy::Mesh::default(), time, "gateway");
    let mut edge =
        edge_at(harness, AppProtocol::Http1, busy.address, mirrored(vec![mirror("copy", 100)])).await;
    let admission_control = Some(v1::AdmissionControl {
        sampling_window_ms: 30_000,
        success_rate_threshold: 95,
        aggression_thousandths: 1_000_000,
        rps_threshold: Some(0),
        max_rejection_percent: Some(100),
        priorities: vec![],
    });
    edge.harness.change([on_copy(v1::TrafficPolicy { admission_control, ..Default::default() })]).await;
    let mut sent = 0;
    let mut is_held_back = async || {
        let refused = || edge.harness.metric(OUTCOMES, &["refused"]);
        let before = refused();
        assert!(exchange(edge.address, GET).await.ends_with("original"));
        sent += 1;
        edge.harness.wait_metric(OUTCOMES, &[], sent).await;
        refused() > before
    };
    let changes = || edge.harness.metric("meshwork_admission_control_changes_total", &["default/copy"]);
    loop {
        while !is_held_back().await {}
        let before = changes();
        // Longer than it lasts, and not so long that failures are forgotten.
        clock.advance(Duration::from_secs(15));
        if is_held_back().await {
            assert_eq!(changes(), before + 2, "that it was over, and that it begins");
            return;
        }
        clock.advance(Duration::from_secs(60));
    }
}

fn route_of(service: &str, to: &str) -> Change {
    let parent = v1::route::attachment::Parent::Service(format!("shop/{service}"));
    let backends =
        vec![v1::Backend { service: format!("shop/{service}"), port: 80, weight: 1, ..Default::default() }];
    let share = Some(v1::Share { numerator: 1, denominator: 1 });
    let mirrors = vec![v1::Mirror { service: format!("shop/{to}"), port: 80, share, subset: String::new() }];
    let route = v1::Route {
        attachments: vec![v1::route::Attachment { parent: Some(parent), ..Default::default() }],
        rules: vec![v1::Rule { backends, mirrors, request_timeout_ms: 60_000, ..rule(&[], vec![]) }],
        ..Default::default()
    };
    Change::upsert(&format!("HTTPRoute/shop/{service}"), "1", &route)
}

/// `web` calls `reviews`, copies go to `ratings`; each beside its own sidecar.
#[tokio::test]
async fn sidecars_send_copies_over_mutual_tls() {
    let (app, other) = (Recorder::answering(OK).await, Recorder::answering(OK).await);
    let mut pair = Pair::start(app.upstream.address, AppProtocol::Http1).await;
    let ratings = pair.mesh.identity("ratings");
    let mut beside = pair.mesh.proxy(&ratings, None, Settings::default());
    let serves = serving(&ratings.id(), "ratings", other.upstream.address, AppProtocol::Http1);
    beside.change([pair.mesh.bundle(1, &[]), serves]).await;
    let peer = beside.engine.listen(Side::Inbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let services = service_at("ratings", &ratings.id(), peer);
    pair.outbound.change(services.into_iter().chain([route_of("reviews", "ratings")])).await;
    let call = b"POST /x HTTP/1.1\r\nHost: reviews\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    let response = exchange(pair.proxy, call).await;
    assert!(response.ends_with("original"), "{response}");
    let got = other.has(1).await.remove(0);
    assert!(got.contains("x-meshwork-mirror: 1") && got.contains("host: reviews"), "{got}");
    assert!(got.contains("x-forwarded-client-cert: "), "its caller has proven who it is: {got}");
    assert!(got.contains("x-envoy-expected-rq-timeout-ms: "), "it has as long as the request: {got}");
    pair.outbound.wait_metric(OUTCOMES, &["shop/ratings", "answered"], 1).await;
    // Of a call that leaves the mesh and is told nothing of it, the copy that stays within is.
    let plain = Recorder::answering(OK).await;
    let services = plain_at("plain", plain.upstream.address);
    pair.outbound.change(services.into_iter().chain([route_of("plain", "ratings")])).await;
    let call = b"GET / HTTP/1.1\r\nHost: plain\r\nConnection: close\r\n\r\n";
    assert!(exchange(pair.proxy, call).await.ends_with("original"));
    let is_told = |got: &str| got.contains("x-envoy-expected-rq-timeout-ms: ");
    assert_eq!((is_told(&plain.has(1).await[0]), is_told(&other.has(2).await[1])), (false, true));
    let line = beside.lines(1).await.remove(0);
    assert!(line.contains("\"mirrored\":true"), "{line}");
    assert!(!pair.inbound.lines(1).await[0].contains("\"mirrored\""));
}

/// Nor need a copy of a call of gRPC be answered soon: that its endpoint's proxy tires of it says nothing.
#[tokio::test]
async fn a_copy_that_its_endpoint_s_proxy_tires_of_is_held_against_nobody() {
    let (came, mut comes) = tokio::sync::mpsc::channel(3);
    let silent = h2_upstream(usize::MAX, move |_, _, mut respond| {
        let came = came.clone();
        async move {
            came.send(()).await.unwrap();
            _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
    })
    .await;
    let plain = Recorder::answering(OK).await;
    let [mut patient, mut tiring] = [Settings::default(), Settings::default()];
    patient.timeouts.stream_idle = Duration::from_hours(1_000);
    tiring.timeouts.stream_idle = Duration::from_secs(60);
    let mut pair = Pair::with(silent.address, AppProtocol::Grpc, [patient, tiring]).await;
    let breaking = policy("p", "reviews", v1::policy::Spec::Traffic(opening()));
    let services = plain_at("plain", plain.upstream.address);
    pair.outbound.change(services.into_iter().chain([route_of("plain", "reviews"), breaking])).await;
    let call =
        b"GET / HTTP/1.1\r\nHost: plain\r\nContent-Type: application/grpc\r\nConnection: close\r\n\r\n";
    for _ in 0..3 {
        assert!(exchange(pair.proxy, call).await.ends_with("original"));
        comes.recv().await.unwrap();
    }
    let time_goes_on = async {
        loop {
            pair.mesh.clock.advance(Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = pair.outbound.wait_metric(OUTCOMES, &["shop/reviews", "failed"], 3) => {}
        () = time_goes_on => unreachable!("time has no end"),
    }
    assert!(pair.inbound.lines(3).await.iter().all(|line| line.contains("stream_idle_timeout")));
    assert_eq!(pair.outbound.metric("meshwork_circuit_breaker_changes_total", &["\"open\""]), 0);
}

/// Two services of which each copies its calls to the other, by an application that knows nothing of it.
#[tokio::test]
async fn a_ring_of_mirrors_turns_once() {
    let mesh = TestMesh::new();
    let out: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let (asked, own) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&out));
    let counted = Arc::clone(&asked);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (own, counted) = (Arc::clone(&own), Arc::clone(&counted));
            tokio::spawn(async move {
                let got = read_until(&mut tcp, "\r\n\r\n").await;
                // Whatever it is asked, it asks `reviews` for the sake of it; as a traced application, and no more.
                if counted.fetch_add(1, Ordering::SeqCst) < 20 {
                    let id =
                        got.lines().find(|line| line.to_lowercase().starts_with("x-request-id:")).unwrap();
                    let call =
                        format!("GET / HTTP/1.1\r\nHost: reviews\r\n{id}\r\nConnection: close\r\n\r\n");
                    let proxy = own.lock().unwrap();
                    exchange(proxy, call.as_bytes()).await;
                }
                let _ = tcp.write_all(OK).await;
            });
        }
    });
    let ratings = mesh.identity("ratings");
    let mut beside = mesh.proxy(&ratings, None, Settings::default());
    let serves = serving(&ratings.id(), "ratings", app, AppProtocol::Http1);
    beside.change([mesh.bundle(1, &[]), serves]).await;
    let peer = beside.engine.listen(Side::Inbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let outbound = beside.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    *out.lock() = Some(outbound);
    let reviews = Recorder::answering(OK).await;
    let identity = mesh.identity("reviews");
    let mut inbound = mesh.proxy(&identity, None, Settings::default());
    let serves = serving(&identity.id(), "reviews", reviews.upstream.address, AppProtocol::Http1);
    inbound.change([mesh.bundle(1, &[]), serves]).await;
    let to = inbound.engine.listen(Side::Inbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let services = service_at("ratings", &ratings.id(), peer).into_iter().chain(service_at(
        "reviews",
        &identity.id(),
        to,
    ));
    beside.change(services.chain([route_of("reviews", "ratings")])).await;
    let call = b"GET / HTTP/1.1\r\nHost: reviews\r\nX-Request-Id: one\r\nConnection: close\r\n\r\n";
    assert!(exchange(outbound, call).await.ends_with("original"));
    let got = reviews.has(2).await;
    beside.wait_metric(OUTCOMES, &["shop/ratings", "answered"], 1).await;
    assert_eq!((got.len(), asked.load(Ordering::SeqCst)), (2, 1), "the call for a copy's sake is not copied");
    // Which of the two comes first is left open.
    let marked = got.iter().filter(|got| got.contains("x-meshwork-mirror: 1")).count();
    assert_eq!(marked, 1, "{got:?}");
}
