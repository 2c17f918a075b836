//! What is repeated, where, when, and what is not.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "retries/bounds.rs"]
mod bounds;
#[path = "retries/spared.rs"]
mod spared;
#[path = "retries/stale.rs"]
mod stale;
mod support;
#[path = "retries/worth.rs"]
mod worth;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use meshwork_decision::{Change, read_grpc_timeout};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::h2::{H2Upstream, fetch, h2_client, h2_upstream};
use support::{Harness, Upstream, exchange, is_head, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

fn traffic(policy: v1::TrafficPolicy) -> Change {
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/web".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    Change::upsert("default/p", "1", &v1::Policy { source: None, targets: vec![target], spec })
}

fn retry(attempts: u32) -> v1::TrafficPolicy {
    let retry = v1::Retry {
        attempts: Some(attempts),
        on: Some(v1::retry::On { status_codes: vec![503], grpc_codes: vec![14], ..Default::default() }),
        ..crate::support::bare_retry()
    };
    v1::TrafficPolicy { retry: Some(retry), ..Default::default() }
}

async fn gateway(
    protocol: AppProtocol,
    upstreams: &[SocketAddr],
    policy: v1::TrafficPolicy,
) -> (Harness, SocketAddr) {
    serving(Harness::start(Settings::default()), protocol, upstreams, policy).await
}

async fn serving(
    mut harness: Harness,
    protocol: AppProtocol,
    upstreams: &[SocketAddr],
    policy: v1::TrafficPolicy,
) -> (Harness, SocketAddr) {
    harness.service("web", protocol, upstreams).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(policy)]).await;
    (harness, address)
}

/// Answers so at first, and well from then on; counts.
async fn recovering(first: &'static [u8]) -> (Upstream, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            let first_time = counted.fetch_add(1, Ordering::SeqCst) == 0;
            if first_time { first.to_vec() } else { OK.to_vec() }
        })
    })
    .await;
    (up, asked)
}

/// Answers always so; counts.
async fn saying(word: &'static str) -> (Upstream, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            format!("HTTP/1.1 {word}\r\ncontent-length: 0\r\n\r\n").into_bytes()
        })
    })
    .await;
    (up, asked)
}

/// One failure holds back nearly everything.
fn holding_back() -> Option<v1::AdmissionControl> {
    Some(v1::AdmissionControl {
        sampling_window_ms: 30_000,
        success_rate_threshold: 95,
        aggression_thousandths: 1_000_000,
        max_rejection_percent: Some(100),
        ..Default::default()
    })
}

/// One failure opens it.
fn opening_at_once() -> v1::CircuitBreaker {
    v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 1,
        failure_percent: 50,
        open_ms: 600_000,
        max_open_ms: 600_000,
        trials: 1,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_repeat_that_is_held_back_leaves_the_answer_that_is_there() {
    let policy = v1::TrafficPolicy { admission_control: holding_back(), ..retry(3) };
    let broken = v1::TrafficPolicy { circuit_breaker: Some(opening_at_once()), ..retry(3) };
    let per_endpoint = v1::CircuitBreaker { per_endpoint: Some(true), ..opening_at_once() };
    let of_endpoint = v1::TrafficPolicy { circuit_breaker: Some(per_endpoint), ..retry(3) };
    for (policy, cause) in
        [(policy, "admission_control"), (broken, "circuit_breaker"), (of_endpoint, "circuit_breaker")]
    {
        let (up, asked) = recovering(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy").await;
        let (harness, address) = gateway(AppProtocol::Http1, &[up.address], policy).await;
        let answer = exchange(address, GET).await;
        assert!(answer.starts_with("HTTP/1.1 503 Busy") && answer.ends_with("\r\n\r\nbusy"), "{answer}");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "{cause}");
        let line = harness.lines(1).await.remove(0);
        assert!(line.contains(cause) && line.contains("status 503"), "{line}");
    }
}

#[tokio::test]
async fn of_a_body_64_kibibytes_are_kept_for_a_repeat_and_a_longer_one_is_sent_once() {
    for (length, attempts) in [(64 * 1024, 2), (64 * 1024 + 1, 1)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let up = upstream(move |got| {
            let whole = got
                .windows(4)
                .position(|end| end == b"\r\n\r\n")
                .is_some_and(|head| got.len() == head + 4 + length);
            // At first it leaves without a word.
            whole.then(|| if counted.fetch_add(1, Ordering::SeqCst) == 0 { Vec::new() } else { OK.to_vec() })
        })
        .await;
        let policy = support::policy::retry(1, &[]);
        let (harness, address) = gateway(AppProtocol::Http1, &[up.address], policy).await;
        let head = "PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: it\r\n";
        let put = format!("{head}Content-Length: {length}\r\n\r\n{}", "x".repeat(length));
        let answer = exchange(address, put.as_bytes()).await;
        assert_eq!(answer.starts_with("HTTP/1.1 200"), attempts == 2, "{length}: {answer}");
        assert_eq!(asked.load(Ordering::SeqCst), attempts);
        harness.lines(1).await;
        let recall = v1::Recall { request_id: "it".to_owned(), ..Default::default() };
        let kept = harness.engine.recall(0, &recall).await.await;
        let sent: Vec<_> = kept[0].attempts.iter().map(|attempt| attempt.bytes_sent).collect();
        assert_eq!(sent[0], length as u64, "{sent:?}");
    }
}

#[tokio::test]
async fn a_repeat_that_its_route_s_breaker_refuses_leaves_the_answer_that_is_there() {
    let (up, asked) = recovering(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy").await;
    let (mut harness, address) = gateway(AppProtocol::Http1, &[up.address], retry(3)).await;
    let target =
        v1::policy::Target { kind: "HTTPRoute".into(), name: "default/r".into(), section: String::new() };
    let breaker = v1::TrafficPolicy { circuit_breaker: Some(opening_at_once()), ..Default::default() };
    let spec = Some(v1::policy::Spec::Traffic(breaker));
    let policy = v1::Policy { source: None, targets: vec![target], spec };
    harness.change([Change::upsert("default/of-route", "1", &policy)]).await;
    let answer = exchange(address, GET).await;
    assert!(answer.ends_with("\r\n\r\nbusy"), "{answer}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let answer = exchange(address, GET).await;
    assert!(answer.ends_with("circuit_breaker\n"), "the next request meets it: {answer}");
}

#[tokio::test]
async fn a_repeat_for_which_no_endpoint_has_a_place_leaves_the_answer_that_is_there() {
    const HOLDS: &[u8] = b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n";
    let busy =
        |got: &[u8]| is_head(got).then(|| b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy".to_vec());
    let bad = upstream(busy).await;
    let held = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&held);
    let full = upstream(move |got| {
        counted.fetch_add(usize::from(is_head(got)), Ordering::SeqCst);
        None
    })
    .await;
    // Its first failure ejects the one; the other has as many requests as it may.
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(1),
        base_ejection_time_ms: 600_000,
        max_ejection_percent: 50,
        ..crate::support::rows_off()
    };
    let policy = v1::TrafficPolicy {
        limits: Some(v1::Limits { max_requests_per_endpoint: 1, ..Default::default() }),
        outlier_detection: Some(outlier),
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        ..retry(3)
    };
    let (harness, address) = gateway(AppProtocol::Http1, &[full.address, bad.address], policy).await;
    let mut holding = TcpStream::connect(address).await.unwrap();
    holding.write_all(HOLDS).await.unwrap();
    while held.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let answer = exchange(address, GET).await;
    assert!(answer.ends_with("\r\n\r\nbusy"), "{answer}");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("max_requests") && line.contains("status 503"), "{line}");
}

#[tokio::test]
async fn a_repeat_takes_the_place_of_the_attempt_that_it_repeats() {
    let (up, asked) = recovering(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy").await;
    let limits = Some(v1::Limits { max_requests_per_endpoint: 1, ..Default::default() });
    let policy = v1::TrafficPolicy { limits, ..retry(1) };
    let (_harness, address) = gateway(AppProtocol::Http1, &[up.address], policy).await;
    let answer = exchange(address, GET).await;
    assert!(answer.ends_with("hello"), "the only endpoint takes one at a time: {answer}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_repeat_that_is_refused_leaves_the_failure_that_was_there() {
    let retry = v1::Retry {
        attempts: Some(3),
        on: Some(v1::retry::On { reset: true, ..Default::default() }),
        ..crate::support::bare_retry()
    };
    let retry = v1::TrafficPolicy { retry: Some(retry), ..Default::default() };
    let held = v1::TrafficPolicy { admission_control: holding_back(), ..retry.clone() };
    let broken = v1::TrafficPolicy { circuit_breaker: Some(opening_at_once()), ..retry.clone() };
    let per_endpoint = v1::CircuitBreaker { per_endpoint: Some(true), ..opening_at_once() };
    let of_endpoint = v1::TrafficPolicy { circuit_breaker: Some(per_endpoint), ..retry };
    for (policy, cause) in
        [(held, "admission_control"), (broken, "circuit_breaker"), (of_endpoint, "circuit_breaker")]
    {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let up = upstream(move |got| {
            is_head(got).then(|| {
                counted.fetch_add(1, Ordering::SeqCst);
                Vec::new()
            })
        })
        .await;
        let (harness, address) = gateway(AppProtocol::Http1, &[up.address], policy).await;
        let answer = exchange(address, GET).await;
        assert!(answer.ends_with("upstream_closed\n"), "{cause}: {answer}");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "{cause}");
        let line = harness.lines(1).await.remove(0);
        assert!(line.contains(&format!("a repeat was refused: {cause}")), "{line}");
    }
}

async fn request(tcp: &mut TcpStream) {
    let mut got = Vec::new();
    while !is_head(&got) {
        assert_ne!(tcp.read_buf(&mut got).await.unwrap(), 0, "a request was to come");
    }
}

#[tokio::test]
async fn a_repeat_that_was_let_through_is_not_asked_again_behind_its_back_off() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        is_head(got).then(|| match (got.starts_with(b"GET /fails"), counted.fetch_add(1, Ordering::SeqCst)) {
            (true, _) => b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec(),
            (false, 1) => b"HTTP/1.1 503 Later\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n".to_vec(),
            (false, _) => OK.to_vec(),
        })
    })
    .await;
    // One of two may fail, and of three not two.
    let half = holding_back().map(|said| v1::AdmissionControl { success_rate_threshold: 50, ..said });
    let policy = v1::TrafficPolicy { admission_control: half, ..retry(1) };
    let (harness, address) = gateway(AppProtocol::Http1, &[up.address], policy).await;
    assert!(exchange(address, GET).await.ends_with("hello"));
    let waiting = tokio::spawn(async move { exchange(address, GET).await });
    harness.wait_metric("meshwork_admission_control_headroom_percent", &["default/web"], 0).await;
    let fails = b"GET /fails HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(exchange(address, fails).await.starts_with("HTTP/1.1 500"));
    assert!(exchange(address, GET).await.ends_with("admission_control\n"), "from now on calls are held back");
    let answer = waiting.await.unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn no_endpoint_is_asked_twice_while_there_is_another() {
    let counts: Arc<[AtomicUsize; 3]> = Arc::default();
    let mut addresses = Vec::new();
    let mut kept = Vec::new();
    for at in 0..3 {
        let counts = Arc::clone(&counts);
        let up = upstream(move |got| {
            is_head(got).then(|| {
                counts[at].fetch_add(1, Ordering::SeqCst);
                b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy".to_vec()
            })
        })
        .await;
        addresses.push(up.address);
        kept.push(up);
    }
    let (_harness, address) = gateway(AppProtocol::Http1, &addresses, retry(2)).await;
    // Two rounds: after five retries in vain there are no more.
    for round in 1..=2 {
        assert!(exchange(address, GET).await.ends_with("busy"));
        let counts: Vec<_> = counts.iter().map(|count| count.load(Ordering::SeqCst)).collect();
        assert_eq!(counts, [round; 3], "each once for each request");
    }
}

#[tokio::test]
async fn a_code_of_grpc_is_nothing_where_no_grpc_is_spoken() {
    const LOOKS_SO: &[u8] = b"HTTP/1.1 200 OK\r\ngrpc-status: 14\r\ncontent-length: 4\r\n\r\nonce";
    let (up, asked) = recovering(LOOKS_SO).await;
    let (_harness, address) = gateway(AppProtocol::Http1, &[up.address], retry(1)).await;
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(exchange(address, post).await.ends_with("once"));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_endpoint_that_says_when_to_come_again_is_asked_then() {
    for (later, at_least) in [
        (&b"HTTP/1.1 503 Later\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"[..], 1000),
        (&b"HTTP/1.1 503 Later\r\ngrpc-retry-pushback-ms: 150\r\ncontent-length: 0\r\n\r\n"[..], 150),
    ] {
        let (up, asked) = recovering(later).await;
        let (_harness, address) = gateway(AppProtocol::Http1, &[up.address], retry(1)).await;
        let began = Instant::now();
        assert!(exchange(address, GET).await.ends_with("hello"));
        assert!(began.elapsed() >= Duration::from_millis(at_least), "{:?}", began.elapsed());
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn the_time_until_an_answer_begins_is_nobody_s_deadline() {
    let (told, mut tells) = tokio::sync::mpsc::channel(2);
    let up = h2_upstream(usize::MAX, move |_, request, mut respond| {
        let timeout = request.headers().get("grpc-timeout").map(|time| time.to_str().unwrap().to_owned());
        told.try_send(timeout).unwrap();
        async move {
            let head = Response::builder().header("grpc-status", "0").body(()).unwrap();
            respond.send_response(head, true).unwrap();
        }
    })
    .await;
    for (request_ms, bound) in [(0, None), (60_000, Some(30))] {
        let mut policy = retry(1);
        policy.retry.as_mut().unwrap().per_try_timeout_ms = 20_000;
        policy.timeouts = Some(v1::Timeouts { request_ms, ..Default::default() });
        let (_harness, address) = gateway(AppProtocol::Grpc, &[up.address], policy).await;
        let call = Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
        fetch(&mut h2_client(address).await, call.body(()).unwrap()).await;
        let told = tells.recv().await.unwrap();
        let left = told.as_deref().map(|told| read_grpc_timeout(told.as_bytes()).unwrap().as_secs());
        assert!(
            left >= bound && left.is_some() == bound.is_some(),
            "a stream that has begun goes on: {told:?}"
        );
    }
}

#[tokio::test]
async fn who_asks_to_be_left_alone_keeps_no_retry_from_the_others() {
    for word in ["503 Leaving\r\nretry-after: 120", "429 Slow down\r\nretry-after: 120"] {
        let (leaving, asked) = saying(word).await;
        let (well, _) = saying("200 OK").await;
        let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
        let mut policy = v1::TrafficPolicy { algorithm, ..retry(1) };
        let on = policy.retry.as_mut().and_then(|retry| retry.on.as_mut()).unwrap();
        on.status_codes.push(429);
        let addresses = [leaving.address, well.address];
        let (_harness, address) = gateway(AppProtocol::Http1, &addresses, policy).await;
        for _ in 0..10 {
            assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"), "{word}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1, "what it answered was asked again elsewhere: {word}");
    }
}

#[tokio::test]
async fn where_all_want_to_be_left_alone_the_last_of_them_has_the_last_word() {
    let (one, of_one) = saying("503 Leaving\r\nretry-after: 120").await;
    let (other, of_other) = saying("503 Leaving\r\nretry-after: 120").await;
    let (_harness, address) = gateway(AppProtocol::Http1, &[one.address, other.address], retry(5)).await;
    let asked = || of_one.load(Ordering::SeqCst) + of_other.load(Ordering::SeqCst);
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 503"));
    assert_eq!(asked(), 2, "each has said so");
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 503"));
    assert_eq!(asked(), 3, "the other has said so before");
}

#[tokio::test]
async fn who_wants_no_retry_or_one_too_late_has_the_last_word() {
    for word in [
        "retry-after: 60",
        "retry-after: 99999999999999999999",
        "retry-after: 1",
        "grpc-retry-pushback-ms: -1",
        "x-envoy-overloaded: true",
    ] {
        let answer = format!("HTTP/1.1 503 No\r\n{word}\r\ncontent-length: 0\r\n\r\n").leak().as_bytes();
        let (up, asked) = recovering(answer).await;
        let timeouts = v1::Timeouts { request_ms: 1000, ..Default::default() };
        let policy = v1::TrafficPolicy { timeouts: Some(timeouts), ..retry(1) };
        let (harness, address) = gateway(AppProtocol::Http1, &[up.address], policy).await;
        assert!(exchange(address, GET).await.starts_with("HTTP/1.1 503"), "{word}");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "{word}");
        let line = harness.lines(1).await.remove(0);
        let detail = "the endpoint asked not to be asked again, or not for long: status 503";
        for told in ["\"URX\"", "\"retries_exhausted\"", detail] {
            assert!(line.contains(told), "it was answered in time, and nothing is repeated: {line}");
        }
        let labels = ["default/web", "retries_exhausted"];
        assert_eq!(harness.metric("meshwork_failed_requests_total", &labels), 1, "{word}");
    }
}

#[tokio::test]
async fn who_wants_no_other_retry_after_a_first_one_has_the_last_word_too() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        let word = |word| format!("HTTP/1.1 503 No\r\n{word}content-length: 0\r\n\r\n").into_bytes();
        is_head(got).then(|| match counted.fetch_add(1, Ordering::SeqCst) {
            0 => word(""),
            _ => word("x-envoy-overloaded: true\r\n"),
        })
    })
    .await;
    let (harness, address) = gateway(AppProtocol::Http1, &[up.address], retry(3)).await;
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 503"));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("retries_exhausted") && line.contains("asked not to be asked again"), "{line}");
}

/// Answers every call with a message and then this status; counts.
async fn late(status: &'static str) -> (H2Upstream, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            send.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            send.send_trailers(trailers).unwrap();
        }
    })
    .await;
    (up, asked)
}

#[tokio::test]
async fn a_grpc_status_that_comes_late_is_a_failure_all_the_same() {
    let ((bad, asked), (good, _)) = (late("14").await, late("0").await);
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(3),
        base_ejection_time_ms: 60_000,
        max_ejection_percent: 50,
        ..crate::support::rows_off()
    };
    let algorithm = v1::traffic_policy::Algorithm::LeastRequest.into();
    let policy = v1::TrafficPolicy { outlier_detection: Some(outlier), algorithm, ..retry(1) };
    let (harness, address) = gateway(AppProtocol::Grpc, &[bad.address, good.address], policy).await;
    let mut client = h2_client(address).await;
    let mut failed = 0;
    for _ in 0..40 {
        let request =
            Request::post("http://shop/a.B/C").header("content-type", "application/grpc").body(()).unwrap();
        let (_, _, trailers) = fetch(&mut client, request).await;
        failed += usize::from(trailers.unwrap()["grpc-status"] == "14");
    }
    assert_eq!((failed, asked.load(Ordering::SeqCst)), (3, 3), "no retry is possible, and three eject");
    harness.wait_metric("meshwork_endpoint_ejections_total", &["service=\"default/web\""], 1).await;
}
