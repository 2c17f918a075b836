//! Traffic policies at work: retries, limits, ejection, times.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::ManualClock;
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Mesh, Settings};
use parking_lot::Mutex;
use support::h2::{H2Upstream, h2_client, h2_upstream};
use support::{Harness, Upstream, exchange, is_head, read_until, rule, upstream, with_a_full_queue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn traffic(policy: v1::TrafficPolicy) -> Change {
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/web".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    Change::upsert("default/p", "1", &v1::Policy { source: None, targets: vec![target], spec })
}

async fn gateway(upstreams: &[SocketAddr], policy: Option<v1::TrafficPolicy>) -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, upstreams).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change(policy.map(traffic)).await;
    (harness, address)
}

fn retry(attempts: u32, status_codes: &[u32]) -> v1::TrafficPolicy {
    let retry = v1::Retry {
        attempts,
        status_codes: status_codes.to_vec(),
        on_reset: true,
        on_connect_failure: true,
        ..Default::default()
    };
    v1::TrafficPolicy { retry: Some(retry), ..Default::default() }
}

/// Answers with `first` so often, then 200; notes the attempt numbers it was told.
async fn recovering(first: &'static [u8], times: usize) -> (Upstream, Arc<Mutex<Vec<Option<String>>>>) {
    let counts = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&counts);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            let text = String::from_utf8_lossy(got).to_lowercase();
            let count =
                text.lines().find_map(|l| l.strip_prefix("x-envoy-attempt-count: ").map(str::to_owned));
            noted.lock().push(count);
            if noted.lock().len() <= times { first.to_vec() } else { OK.to_vec() }
        })
    })
    .await;
    (up, counts)
}

#[tokio::test]
async fn a_status_that_the_policy_names_is_tried_again_and_says_so() {
    let (up, counts) = recovering(BUSY, 2).await;
    let (harness, address) = gateway(&[up.address], Some(retry(2, &[503]))).await;
    let forged = b"GET / HTTP/1.1\r\nHost: a\r\nX-Envoy-Attempt-Count: 9\r\nConnection: close\r\n\r\n";
    let response = exchange(address, forged).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("hello"), "{response}");
    assert_eq!(
        *counts.lock(),
        [None, Some("2".to_owned()), Some("3".to_owned())],
        "nobody outside is believed"
    );
    assert!(harness.lines(1).await[0].contains("\"attempts\":3"));
}

#[tokio::test]
async fn when_attempts_are_used_up_the_last_response_is_passed_on_with_a_flag() {
    let (up, counts) = recovering(BUSY, usize::MAX).await;
    let (harness, address) = gateway(&[up.address], Some(retry(1, &[503]))).await;
    let response = exchange(address, GET).await;
    assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("busy"), "{response}");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"URX\"") && line.contains("retries_exhausted"), "{line}");
    assert_eq!(counts.lock().len(), 2);
    // A POST that was answered may have done its work.
    assert!(exchange(address, POST).await.ends_with("busy"));
    assert_eq!(counts.lock().len(), 3);
    assert!(harness.lines(2).await[1].contains("\"attempts\":1"));
}

#[tokio::test]
async fn what_nobody_has_seen_goes_elsewhere_unless_no_retries_are_wanted() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let only = |attempts| {
        let retry = v1::Retry { attempts, status_codes: vec![500], ..Default::default() };
        v1::TrafficPolicy { retry: Some(retry), ..Default::default() }
    };
    for (policy, repeated) in [(None, true), (Some(only(1)), true), (Some(only(0)), false)] {
        let (up, _) = recovering(OK, 0).await;
        let (harness, address) = gateway(&[closed, up.address], policy).await;
        let mut failed = 0;
        for _ in 0..20 {
            failed += usize::from(!exchange(address, POST).await.starts_with("HTTP/1.1 200"));
        }
        let lines = harness.lines(20).await;
        assert_eq!(
            lines.iter().any(|line| line.contains("\"attempts\":2")),
            repeated,
            "some began at the closed one"
        );
        assert_eq!(failed == 0, repeated);
        assert!(
            harness.metric("meshwork_upstream_connect_failures_total", &["cause=\"connect_failure\""]) > 0
        );
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_given_up() {
    let first = Arc::new(AtomicUsize::new(0));
    let up = upstream(move |got| {
        let silent = is_head(got) && first.fetch_add(1, Ordering::SeqCst) == 0;
        (is_head(got) && !silent).then(|| OK.to_vec())
    })
    .await;
    let mut policy = retry(1, &[]);
    policy.retry.as_mut().unwrap().per_try_timeout_ms = 50;
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
    assert!(harness.lines(1).await[0].contains("\"attempts\":2"));
}

#[tokio::test]
async fn the_pause_between_attempts_is_not_of_an_attempt_s_time() {
    // Two that do not answer, one that is busy at once: whatever the failure was, the pauses are longer than an attempt may be.
    let asked = Arc::new(AtomicUsize::new(0));
    let up = upstream(move |got| {
        let answers = [None, Some(BUSY), None, Some(OK)];
        is_head(got).then(|| answers[asked.fetch_add(1, Ordering::SeqCst)])?.map(<[u8]>::to_vec)
    })
    .await;
    let mut policy = retry(3, &[503]);
    let of = policy.retry.as_mut().unwrap();
    (of.per_try_timeout_ms, of.backoff_base_ms, of.backoff_max_ms) = (50, 400, 400);
    of.budget = Some(v1::RetryBudget { percent: 100, min_per_second: 100 });
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
    assert!(harness.lines(1).await[0].contains("\"attempts\":4"));
}

#[tokio::test]
async fn a_failing_endpoint_is_left_alone_for_a_while() {
    let (bad, seen) = recovering(BUSY, usize::MAX).await;
    let (good, _) = recovering(OK, 0).await;
    let outlier = v1::OutlierDetection {
        consecutive_5xx: 3,
        base_ejection_time_ms: 60_000,
        max_ejection_percent: 50,
        ..Default::default()
    };
    // The default balancer would take its time to give it a third chance.
    let algorithm = v1::traffic_policy::Algorithm::LeastRequest.into();
    let policy = v1::TrafficPolicy { outlier_detection: Some(outlier), algorithm, ..Default::default() };
    let (harness, address) = gateway(&[bad.address, good.address], Some(policy)).await;
    let mut busy = 0;
    for _ in 0..60 {
        busy += usize::from(exchange(address, GET).await.ends_with("busy"));
    }
    assert_eq!((busy, seen.lock().len()), (3, 3), "three in a row eject it");
    let labels = &["service=\"default/web\"", "cause=\"consecutive_5xx\""];
    harness.wait_metric("meshwork_endpoint_ejections_total", labels, 1).await;
    harness.wait_metric("meshwork_endpoints_ejected", &["service=\"default/web\""], 1).await;
}

#[tokio::test]
async fn one_request_tries_an_ejected_endpoint_and_its_success_takes_it_in_again() {
    // It fails its row, and the first trial.
    let (bad, seen) = recovering(BUSY, 3).await;
    let (good, _) = recovering(OK, 0).await;
    let outlier = v1::OutlierDetection {
        consecutive_5xx: 2,
        base_ejection_time_ms: 300,
        max_ejection_percent: 50,
        ..Default::default()
    };
    let algorithm = v1::traffic_policy::Algorithm::LeastRequest.into();
    let policy = v1::TrafficPolicy { outlier_detection: Some(outlier), algorithm, ..Default::default() };
    let (harness, address) = gateway(&[bad.address, good.address], Some(policy)).await;
    let returned = |harness: &Harness| harness.metric("meshwork_endpoint_returns_total", &[]);
    let mut busy = 0;
    while returned(&harness) == 0 {
        busy += usize::from(exchange(address, GET).await.ends_with("busy"));
        assert!(busy <= 3, "its row of two, and one trial: nobody else is sent to it");
    }
    assert_eq!((busy, seen.lock().len()), (3, 4), "the second trial went well");
    let labels = &["cause=\"trial_failed\""];
    assert_eq!(harness.metric("meshwork_endpoint_ejections_total", labels), 1);
    assert_eq!(harness.metric("meshwork_endpoints_ejected", &[]), 0);
}

/// An upstream that answers only once it is told to, and how many requests it holds.
async fn holding() -> (Upstream, Arc<AtomicUsize>, Arc<std::sync::atomic::AtomicBool>) {
    let (held, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let (counted, opened) = (Arc::clone(&held), Arc::clone(&open));
    let up = upstream(move |got| {
        if !is_head(got) && !got.ends_with(b"more") {
            return None;
        }
        if opened.load(Ordering::SeqCst) || got.ends_with(b"more") {
            return Some(OK.to_vec());
        }
        counted.fetch_add(1, Ordering::SeqCst);
        None
    })
    .await;
    (up, held, open)
}

fn limits(limits: v1::Limits) -> v1::TrafficPolicy {
    v1::TrafficPolicy { limits: Some(limits), ..Default::default() }
}

/// Sends a request whose body comes later, and waits until the upstream holds it.
async fn hold(address: SocketAddr, held: &AtomicUsize) -> TcpStream {
    let before = held.load(Ordering::SeqCst);
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await.unwrap();
    while held.load(Ordering::SeqCst) == before {
        tokio::task::yield_now().await;
    }
    tcp
}

#[tokio::test]
async fn more_requests_than_the_limit_are_refused_at_once() {
    let (up, held, _) = holding().await;
    let policy = limits(v1::Limits { max_requests: 1, ..Default::default() });
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    let mut first = hold(address, &held).await;
    let response = exchange(address, GET).await;
    assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("max_requests\n"), "{response}");
    assert!(harness.lines(1).await[0].contains("\"UO\""));
    first.write_all(b"more").await.unwrap();
    assert!(read_until(&mut first, "hello").await.starts_with("HTTP/1.1 200"));
    let next = hold(address, &held).await;
    drop(next);
}

#[tokio::test]
async fn a_request_waits_for_a_connection_within_the_limit_but_not_in_a_crowd() {
    let (up, held, open) = holding().await;
    let policy = limits(v1::Limits { max_connections: 1, max_pending_requests: 1, ..Default::default() });
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    let mut first = hold(address, &held).await;
    let waiting = [0, 1].map(|_| tokio::spawn(async move { exchange(address, GET).await }));
    // Of two that want to wait, one may.
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("max_pending_requests"), "{line}");
    open.store(true, Ordering::SeqCst);
    first.write_all(b"more").await.unwrap();
    read_until(&mut first, "hello").await;
    let mut answers = Vec::new();
    for waiting in waiting {
        answers.push(waiting.await.unwrap());
    }
    answers.sort();
    assert!(answers[0].starts_with("HTTP/1.1 200") && answers[1].starts_with("HTTP/1.1 503"), "{answers:?}");
    assert_eq!(up.connections.load(Ordering::SeqCst), 1, "the limit held");
}

#[tokio::test]
async fn a_stream_on_which_nothing_moves_ends_after_the_policy_s_time() {
    let (up, _held, _) = holding().await;
    let timeouts = v1::Timeouts { stream_idle_ms: 100, ..Default::default() };
    let policy = v1::TrafficPolicy { timeouts: Some(timeouts), ..Default::default() };
    let (_harness, address) = gateway(&[up.address], Some(policy)).await;
    let response = exchange(address, GET).await;
    assert!(
        response.starts_with("HTTP/1.1 504") && response.ends_with("stream_idle_timeout\n"),
        "{response}"
    );
}

/// Answers one request at this address, and is gone.
async fn once(listener: tokio::net::TcpListener) {
    let (mut tcp, _) = listener.accept().await.unwrap();
    drop(listener);
    read_until(&mut tcp, "\r\n\r\n").await;
    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello").await.unwrap();
}

#[tokio::test]
async fn what_nobody_has_seen_waits_for_a_service_that_was_there_until_it_is_back() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let (harness, address) = gateway(&[upstream], Some(retry(1, &[]))).await;
    let first = tokio::spawn(once(listener));
    assert!(exchange(address, POST).await.starts_with("HTTP/1.1 200"));
    first.await.unwrap();
    let waiting = tokio::spawn(async move { exchange(address, POST).await });
    // More attempts than the policy has: they cost nobody anything.
    let failures = || harness.metric("meshwork_upstream_connect_failures_total", &["connect_failure"]);
    while failures() < 4 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    let back = tokio::spawn(once(tokio::net::TcpListener::bind(upstream).await.unwrap()));
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200"));
    back.await.unwrap();
}

#[tokio::test]
async fn a_service_that_never_answered_is_not_waited_for() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (harness, address) = gateway(&[closed], None).await;
    assert!(exchange(address, GET).await.ends_with("connect_failure\n"));
    assert!(
        harness.metric("meshwork_upstream_connect_failures_total", &["connect_failure"]) <= 3,
        "the first attempt and two more"
    );
}

/// Two upstreams that count what they get: the first answers as told, the second well.
async fn pair(
    first: impl Fn() -> &'static [u8] + Send + Sync + 'static,
    second: impl Fn() -> &'static [u8] + Send + Sync + 'static,
) -> ([SocketAddr; 2], Arc<[AtomicUsize; 2]>) {
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let (of_first, of_second) = (Arc::clone(&counts), Arc::clone(&counts));
    let one = upstream(move |got| {
        is_head(got).then(|| {
            of_first[0].fetch_add(1, Ordering::SeqCst);
            first().to_vec()
        })
    });
    let other = upstream(move |got| {
        is_head(got).then(|| {
            of_second[1].fetch_add(1, Ordering::SeqCst);
            second().to_vec()
        })
    });
    ([one.await.address, other.await.address], counts)
}

fn balanced(algorithm: v1::traffic_policy::Algorithm) -> v1::TrafficPolicy {
    v1::TrafficPolicy { algorithm: algorithm.into(), ..Default::default() }
}

#[tokio::test]
async fn an_endpoint_that_asks_to_be_left_alone_is_unless_it_is_its_turn() {
    use v1::traffic_policy::Algorithm;
    const LATER: &[u8] = b"HTTP/1.1 429 Later\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n";
    for (policy, most) in [
        (None, 1),
        (Some(balanced(Algorithm::PeakEwma)), 1),
        (Some(balanced(Algorithm::RoundRobin)), 20),
        (Some(balanced(Algorithm::Random)), 35),
        (Some(balanced(Algorithm::LeastRequest)), 35),
    ] {
        let (addresses, counts) = pair(|| LATER, || OK).await;
        let (_harness, address) = gateway(&addresses, policy.clone()).await;
        for _ in 0..40 {
            exchange(address, GET).await;
        }
        let asked = counts[0].load(Ordering::SeqCst);
        assert!(asked <= most && (asked > 1 || most == 1), "{asked} of 40 with {policy:?}");
        assert_eq!(asked + counts[1].load(Ordering::SeqCst), 40);
    }
}

#[tokio::test]
async fn a_slow_endpoint_is_asked_less_by_default() {
    let clock = ManualClock::new();
    let takes = |millis| {
        let clock = clock.clone();
        move || {
            clock.advance(Duration::from_millis(millis));
            OK
        }
    };
    let (addresses, counts) = pair(takes(100), takes(1)).await;
    let mut harness = Harness::join(Settings::default(), Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Http1, &addresses).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    for _ in 0..60 {
        exchange(address, GET).await;
    }
    let [slow, fast] = [0, 1].map(|at: usize| counts[at].load(Ordering::SeqCst));
    // Until both have answered once chance decides.
    assert!(slow < 12 && fast > 48, "{slow} and {fast}");
}

/// A breaker that opens when half of at least three calls fail, for five seconds, and then tries one.
fn opening_after_three() -> v1::TrafficPolicy {
    let circuit_breaker = Some(v1::CircuitBreaker {
        window_calls: 10,
        minimum_calls: 3,
        failure_percent: 50,
        open_ms: 5_000,
        max_open_ms: 60_000,
        trials: 1,
        ..Default::default()
    });
    v1::TrafficPolicy { circuit_breaker, ..Default::default() }
}

#[tokio::test]
async fn a_service_that_mostly_fails_is_not_called_for_a_while_and_then_tried() {
    let clock = ManualClock::new();
    let (up, counts) = recovering(BUSY, 4).await;
    let mut harness = Harness::join(Settings::default(), Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(opening_after_three())]).await;
    let changes = |state| harness.metric("meshwork_circuit_breaker_changes_total", &["default/web", state]);
    for _ in 0..3 {
        assert!(exchange(address, GET).await.ends_with("busy"));
    }
    assert_eq!(changes("\"open\""), 1);
    let refused = exchange(address, GET).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.ends_with("circuit_breaker\n"), "{refused}");
    let line = harness.lines(4).await.remove(3);
    assert!(line.contains("\"UO\"") && line.contains("circuit_breaker"), "{line}");
    assert_eq!(counts.lock().len(), 3, "the upstream has not heard of it");

    clock.advance(Duration::from_secs(5));
    assert!(exchange(address, GET).await.ends_with("busy"), "one is tried");
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"), "and was no good");
    clock.advance(Duration::from_secs(10));
    for _ in 0..5 {
        assert!(exchange(address, GET).await.ends_with("hello"), "the next trial was");
    }
    assert_eq!((changes("\"open\""), changes("\"closed\"")), (2, 1));
}

#[tokio::test]
async fn a_rule_by_which_most_calls_fail_is_closed_and_other_ways_to_the_service_are_not() {
    let clock = ManualClock::new();
    let (up, counts) = recovering(BUSY, 4).await;
    let mut harness = Harness::join(Settings::default(), Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let pay = v1::StringMatch { kind: Some(v1::string_match::Kind::Prefix("/pay".into())) };
    let pay = v1::Rule {
        name: "pay".into(),
        matches: vec![v1::Match { path: Some(pay), ..Default::default() }],
        ..rule(&[("web", 1)], vec![])
    };
    let address = harness.route(vec![pay, rule(&[("web", 1)], vec![])]).await;
    let target =
        v1::policy::Target { kind: "HTTPRoute".into(), name: "default/r".into(), section: "pay".into() };
    let spec = Some(v1::policy::Spec::Traffic(opening_after_three()));
    let policy = v1::Policy { source: None, targets: vec![target], spec };
    harness.change([Change::upsert("default/p", "1", &policy)]).await;
    let paid = || exchange(address, b"GET /pay HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    for _ in 0..3 {
        assert!(paid().await.ends_with("busy"));
    }
    let refused = paid().await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.ends_with("circuit_breaker\n"), "{refused}");
    let line = harness.lines(4).await.remove(3);
    assert!(line.contains("\"UO\"") && line.contains("HTTPRoute default/r/pay"), "{line}");
    assert!(exchange(address, GET).await.ends_with("busy"), "another rule goes on");
    assert_eq!(counts.lock().len(), 4);
    let of = |name, more: &str| harness.metric(name, &["default/r/pay", more]);
    assert_eq!(of("meshwork_route_circuit_breaker_changes_total", "failure_rate"), 1);
    assert_eq!(of("meshwork_route_circuit_breaker_state", "\"open\""), 1);
    assert_eq!(of("meshwork_route_circuit_breaker_rejected_total", ""), 1);
    assert_eq!(harness.metric("meshwork_circuit_breaker", &[]), 0, "the service has none");

    clock.advance(Duration::from_secs(5));
    assert!(paid().await.ends_with("hello"), "one is tried");
    assert_eq!(of("meshwork_route_circuit_breaker_changes_total", "trials_succeeded"), 1);
    assert!(paid().await.ends_with("hello"));
}

#[tokio::test]
async fn who_waits_for_anybody_to_be_there_does_not_hold_the_trial_of_its_route() {
    let clock = ManualClock::new();
    let (up, _) = recovering(BUSY, 3).await;
    let mut harness = Harness::join(Settings::default(), Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let target =
        v1::policy::Target { kind: "HTTPRoute".into(), name: "default/r".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(opening_after_three()));
    let of_route = v1::Policy { source: None, targets: vec![target], spec };
    let limit = v1::Limits { max_pending_requests: 10, ..Default::default() };
    harness.change([Change::upsert("default/of-route", "1", &of_route), traffic(limits(limit))]).await;
    for _ in 0..3 {
        assert!(exchange(address, GET).await.ends_with("busy"));
    }
    clock.advance(Duration::from_secs(5));
    harness.change([Change::remove::<v1::EndpointSlice>("default/web-0")]).await;
    let mut waiting = JoinSet::new();
    for left in [9, 8] {
        waiting.spawn(async move { exchange(address, GET).await });
        harness.wait_metric("meshwork_limit_headroom", &["maxPendingRequests"], left).await;
    }
    assert!(waiting.try_join_next().is_none(), "the second was not refused");
}

#[tokio::test]
async fn of_calls_that_do_not_succeed_most_are_held_back_but_not_those_that_matter() {
    const MATTERS: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nx-priority: high\r\nConnection: close\r\n\r\n";
    let clock = ManualClock::new();
    let (up, counts) = recovering(BUSY, 10).await;
    let mut harness = Harness::join(Settings::default(), Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let high = v1::overload::PriorityRule {
        priority: v1::overload::Priority::High.into(),
        headers: vec![v1::Field { name: "x-priority".into(), value: "high".into() }],
        ..Default::default()
    };
    // So aggressive that one failure holds back nearly all.
    let admission_control = Some(v1::AdmissionControl {
        sampling_window_ms: 30_000,
        success_rate_threshold: 95,
        aggression_thousandths: 1_000_000,
        rps_threshold: 0,
        max_rejection_percent: 100,
        priorities: vec![high],
    });
    harness.change([traffic(v1::TrafficPolicy { admission_control, ..Default::default() })]).await;
    assert!(exchange(address, GET).await.ends_with("busy"), "nothing is known yet");
    let mut refused = 0;
    for _ in 0..50 {
        let answer = exchange(address, GET).await;
        refused += usize::from(answer.ends_with("admission_control\n"));
    }
    assert!(refused >= 45, "{refused} of 50");
    let sent = 51 - refused;
    assert_eq!(counts.lock().len(), sent, "the upstream has not heard of them");
    let lines = harness.lines(51).await;
    let told = lines.iter().filter(|line| line.contains("\"AC\"") && line.contains("admission_control"));
    assert_eq!(told.count(), refused);
    let labels = ["default/web", "\"80\""];
    assert_eq!(harness.metric("meshwork_admission_control_rejected_total", &labels), refused as u64);
    assert!(harness.metric("meshwork_admission_control_rejection_percent", &labels) > 90);
    for _ in sent..10 {
        assert!(exchange(address, MATTERS).await.ends_with("busy"), "it matters");
    }
    clock.advance(Duration::from_secs(40));
    for _ in 0..5 {
        assert!(exchange(address, GET).await.ends_with("hello"), "what failed is long ago");
    }
}

#[tokio::test]
async fn an_endpoint_whose_breaker_is_open_is_passed_by_and_its_service_goes_on() {
    const FAILS: &[u8] = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n";
    let (addresses, counts) = pair(|| FAILS, || OK).await;
    let circuit_breaker = Some(v1::CircuitBreaker {
        window_calls: 10,
        minimum_calls: 3,
        failure_percent: 50,
        open_ms: 600_000,
        max_open_ms: 600_000,
        trials: 1,
        per_endpoint: true,
        ..Default::default()
    });
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    let policy = v1::TrafficPolicy { circuit_breaker, algorithm, ..Default::default() };
    let (harness, address) = gateway(&addresses, Some(policy)).await;
    for _ in 0..40 {
        exchange(address, GET).await;
    }
    assert_eq!([0, 1].map(|at: usize| counts[at].load(Ordering::SeqCst)), [3, 37]);
    let of = |name, state| harness.metric(name, &["default/web", state]);
    assert_eq!(of("meshwork_endpoint_circuit_breaker_changes_total", "\"open\""), 1);
    assert_eq!(of("meshwork_endpoint_circuit_breakers", "\"open\""), 1);
    assert_eq!(of("meshwork_endpoint_circuit_breakers", "\"closed\""), 1);
    assert_eq!(of("meshwork_circuit_breaker_changes_total", ""), 0, "the service has none");
}

#[tokio::test]
async fn a_response_that_nothing_replaces_in_the_end_has_one_outcome() {
    let (up, _) = recovering(BUSY, usize::MAX).await;
    let circuit_breaker = Some(v1::CircuitBreaker {
        window_calls: 10,
        minimum_calls: 1,
        failure_percent: 50,
        open_ms: 60_000,
        max_open_ms: 60_000,
        trials: 1,
        per_endpoint: true,
        ..Default::default()
    });
    let policy = v1::TrafficPolicy { circuit_breaker, ..retry(2, &[503]) };
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    let response = exchange(address, GET).await;
    assert!(
        response.ends_with("circuit_breaker\n"),
        "its first attempt has opened that of the only endpoint: {response}"
    );
    let line: serde_json::Value = serde_json::from_str(&harness.lines(1).await[0]).unwrap();
    let request_id = line["request_id"].as_str().unwrap().to_owned();
    let kept = harness.engine.recall(0, &v1::Recall { request_id, trace_id: String::new() }).await.await;
    let [attempt] = &kept[0].attempts[..] else { panic!("one attempt: {kept:?}") };
    assert_eq!((attempt.status, &*attempt.cause), (503, ""), "{kept:?}");
}

/// Fails so many calls of gRPC; those that follow are streams that begin well and do not end.
async fn streaming(failures: usize) -> (H2Upstream, Arc<AtomicUsize>) {
    let streams = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&streams);
    let up = h2_upstream(usize::MAX, move |number, _, mut respond| {
        let counted = Arc::clone(&counted);
        async move {
            if number < failures {
                let failed = http::Response::builder().header("grpc-status", "14").body(()).unwrap();
                respond.send_response(failed, true).unwrap();
                return;
            }
            let _send = respond.send_response(http::Response::new(()), false).unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
    })
    .await;
    (up, streams)
}

/// Calls, and gives the response as soon as it begins.
async fn call(client: &mut h2::client::SendRequest<bytes::Bytes>) -> http::Response<h2::RecvStream> {
    let request = http::Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
    let (response, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
    response.await.unwrap()
}

#[tokio::test]
async fn a_breaker_s_trial_is_over_when_its_stream_begins() {
    let clock = ManualClock::new();
    let (up, _) = streaming(3).await;
    let mut harness = Harness::join(Settings::default(), Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Grpc, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(opening_after_three())]).await;
    let mut client = h2_client(address).await;
    for _ in 0..3 {
        assert_eq!(call(&mut client).await.headers()["grpc-status"], "14");
    }
    assert_eq!(call(&mut client).await.headers()["grpc-message"], "circuit_breaker");
    clock.advance(Duration::from_secs(5));
    let trial = call(&mut client).await;
    assert!(trial.headers().get("grpc-status").is_none(), "it runs");
    let other = call(&mut client).await;
    assert!(other.headers().get("grpc-status").is_none(), "so does the next: {:?}", other.headers());
}

#[tokio::test]
async fn an_endpoint_s_trial_is_over_when_its_stream_begins() {
    let clock = ManualClock::new();
    let (bad, tried) = streaming(2).await;
    let (good, _) = streaming(0).await;
    let mut harness = Harness::join(Settings::default(), Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Grpc, &[bad.address, good.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: 2,
        base_ejection_time_ms: 5_000,
        max_ejection_percent: 50,
        ..Default::default()
    });
    let algorithm = v1::traffic_policy::Algorithm::LeastRequest.into();
    harness.change([traffic(v1::TrafficPolicy { outlier_detection, algorithm, ..Default::default() })]).await;
    let mut client = h2_client(address).await;
    let ejections = |harness: &Harness| harness.metric("meshwork_endpoint_ejections_total", &[]);
    while ejections(&harness) == 0 {
        call(&mut client).await;
    }
    clock.advance(Duration::from_secs(5));
    let mut streams = Vec::new();
    while tried.load(Ordering::SeqCst) == 0 {
        streams.push(call(&mut client).await);
    }
    harness.wait_metric("meshwork_endpoint_returns_total", &[], 1).await;
}

/// Sockets of this machine that are being connected to a port.
fn connecting_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    let is_syn_sent = |line: &str| {
        let mut columns = line.split_whitespace().skip(2);
        columns.next().is_some_and(|to| to.ends_with(&remote)) && columns.next() == Some("02")
    };
    table.lines().skip(1).filter(|line| is_syn_sent(line)).count()
}

#[tokio::test]
async fn a_crowd_waits_in_line_and_does_not_overrun_the_queue_of_an_application() {
    const CROWD: u32 = 300;
    let (socket, upstream, queued) = with_a_full_queue();
    let limit = v1::Limits { max_pending_requests: 1_000, ..Default::default() };
    let (harness, address) = gateway(&[upstream], Some(limits(limit))).await;
    let crowd: Vec<_> =
        (0..CROWD).map(|_| tokio::spawn(async move { exchange(address, GET).await })).collect();
    let pending = &["maxPendingRequests"];
    harness.wait_metric("meshwork_limit_headroom", pending, u64::from(1_000 - CROWD)).await;
    assert_eq!(connecting_to(upstream.port()), 128, "of all that wait");

    drop(queued);
    socket.listen(1_024).unwrap();
    let busy: std::net::TcpListener = socket.into();
    busy.set_nonblocking(true).unwrap();
    let busy = tokio::net::TcpListener::from_std(busy).unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (mut tcp, _) = busy.accept().await.unwrap();
            tokio::spawn(async move {
                loop {
                    let mut got = Vec::new();
                    while !is_head(&got) {
                        if tcp.read_buf(&mut got).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    tcp.write_all(OK).await.unwrap();
                }
            });
        }
    });
    for one in crowd {
        let answer = one.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    serving.abort();
    harness.wait_metric("meshwork_limit_headroom", pending, 1_000).await;
}

#[tokio::test]
async fn of_those_who_wait_for_an_endpoint_there_are_as_many_as_may_be() {
    let (up, held, open) = holding().await;
    let limit = v1::Limits {
        max_connections_per_endpoint: 1,
        max_pending_requests_per_endpoint: 1,
        ..Default::default()
    };
    let (harness, address) = gateway(&[up.address], Some(limits(limit))).await;
    let mut first = hold(address, &held).await;
    let second = tokio::spawn(async move { exchange(address, GET).await });
    harness.wait_metric("meshwork_limit_rejected_total", &["default/web", "maxConnections"], 1).await;
    let third = exchange(address, GET).await;
    assert!(third.starts_with("HTTP/1.1 503") && third.ends_with("max_pending_requests\n"), "{third}");
    let refused = ["default/web", "maxPendingRequests"];
    assert_eq!(harness.metric("meshwork_limit_rejected_total", &refused), 1);
    open.store(true, Ordering::SeqCst);
    first.write_all(b"more").await.unwrap();
    assert!(read_until(&mut first, "hello").await.starts_with("HTTP/1.1 200"));
    assert!(second.await.unwrap().starts_with("HTTP/1.1 200"), "who waits is served");
}

#[tokio::test]
async fn whoever_waits_for_a_shared_connection_that_another_one_makes_waits_for_a_connection() {
    let (_socket, upstream, _queued) = with_a_full_queue();
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http2, &[upstream]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let limit = v1::Limits { max_pending_requests: 2, ..Default::default() };
    harness.change([traffic(limits(limit))]).await;
    let mut waiting = JoinSet::new();
    for _ in 0..3 {
        waiting.spawn(async move { exchange(address, GET).await });
    }
    let refused = waiting.join_next().await.unwrap().unwrap();
    assert!(
        refused.ends_with("max_pending_requests\n"),
        "one connection is made, and two may wait: {refused}"
    );
    harness.wait_metric("meshwork_limit_headroom", &["maxPendingRequests"], 0).await;
}

#[tokio::test]
async fn a_request_waits_for_a_connection_to_its_endpoint_and_takes_the_one_that_is_given_back() {
    let (up, held, _) = holding().await;
    let limit =
        v1::Limits { max_connections_per_endpoint: 1, max_pending_requests: 10, ..Default::default() };
    let (harness, address) = gateway(&[up.address], Some(limits(limit))).await;
    let mut first = hold(address, &held).await;
    let second = tokio::spawn(async move {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nmore").await.unwrap();
        read_until(&mut tcp, "hello").await
    });
    let waiting = &["maxPendingRequests"];
    harness.wait_metric("meshwork_limit_headroom", waiting, 9).await;
    assert!(!second.is_finished(), "one connection carries one request");
    first.write_all(b"more").await.unwrap();
    assert!(read_until(&mut first, "hello").await.starts_with("HTTP/1.1 200"));
    assert!(second.await.unwrap().starts_with("HTTP/1.1 200"));
    let refused = ["default/web", "maxConnections"];
    assert_eq!(harness.metric("meshwork_limit_rejected_total", &refused), 1, "one was made to wait");
}
