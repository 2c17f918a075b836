//! An application behind a proxy gets what it can work on; the rest waits or is sent away, by priority.

mod callers;
mod slow;
#[path = "../support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::SystemClock;
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::overload::{AdaptiveConcurrency, Priority, PriorityRule, Queue};
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Ending, Mesh, Settings, Side};
use support::mesh::{Pair, TestMesh, policy, serving, two};
use support::{Harness, exchange, rule};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// An application that notes who comes, and answers as often as it is let.
struct App {
    address: SocketAddr,
    came: Arc<parking_lot::Mutex<Vec<String>>>,
    lets: Arc<Semaphore>,
}

/// The paths of the requests are names. `work`: what it does before it answers, holding a permit.
async fn app(permits: usize, work: Duration) -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let (came, lets): (Arc<parking_lot::Mutex<Vec<String>>>, _) =
        (Arc::default(), Arc::new(Semaphore::new(permits)));
    let (notes, permits) = (Arc::clone(&came), Arc::clone(&lets));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(answer(tcp, Arc::clone(&notes), Arc::clone(&permits), work));
        }
    });
    App { address, came, lets }
}

async fn answer(
    mut tcp: TcpStream,
    came: Arc<parking_lot::Mutex<Vec<String>>>,
    lets: Arc<Semaphore>,
    work: Duration,
) -> std::io::Result<()> {
    let (mut held, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let count = tcp.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        held.extend_from_slice(&chunk[..count]);
        if !held.ends_with(b"\r\n\r\n") {
            continue;
        }
        let head = String::from_utf8_lossy(&held).into_owned();
        held.clear();
        came.lock().push(head.split(' ').nth(1).unwrap_or_default().to_owned());
        let permit = lets.acquire().await.expect("it is never closed");
        if work.is_zero() {
            permit.forget();
        } else {
            tokio::time::sleep(work).await;
            drop(permit);
        }
        tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
    }
}

fn header(value: &str, priority: Priority) -> PriorityRule {
    let field = v1::Field { name: "X-Priority".into(), value: value.into() };
    PriorityRule { priority: priority.into(), headers: vec![field], from: vec![], to: vec![] }
}

fn overload(adaptive: AdaptiveConcurrency, queue: Queue) -> Change {
    policy("gate", "reviews", spec(adaptive, queue))
}

fn spec(adaptive: AdaptiveConcurrency, queue: Queue) -> v1::policy::Spec {
    let priorities = [("critical", Priority::Critical), ("high", Priority::High), ("low", Priority::Low)];
    let overload = v1::Overload {
        adaptive_concurrency: Some(adaptive),
        queue: Some(queue),
        priorities: priorities.map(|(value, priority)| header(value, priority)).into(),
    };
    v1::policy::Spec::Traffic(v1::TrafficPolicy { overload: Some(overload), ..Default::default() })
}

const LEARNS: AdaptiveConcurrency = AdaptiveConcurrency {
    min_concurrency: 3,
    max_concurrency: 1_000,
    update_interval_ms: 100,
    buffer_percent: Some(50),
    min_rtt_interval_ms: 15_000,
    jitter_percent: Some(15),
};
const LINE: Queue = Queue { max_requests: Some(256), max_wait_ms: 500, target_ms: 0, interval_ms: 0 };

fn one() -> AdaptiveConcurrency {
    AdaptiveConcurrency { min_concurrency: 1, max_concurrency: 1, ..LEARNS }
}

/// Sends a request with this name as its path; what comes back is the status line's code, and the rest.
fn call(proxy: SocketAddr, name: &str, priority: &str) -> JoinHandle<String> {
    let request = format!(
        "GET /{name} HTTP/1.1\r\nHost: reviews\r\nX-Priority: {priority}\r\nConnection: close\r\n\r\n"
    );
    tokio::spawn(async move { exchange(proxy, request.as_bytes()).await })
}

const SERVICE: &str = "service=\"shop/reviews\",port=\"80\"";

async fn queued(pair: &Pair, count: u64) {
    pair.inbound.wait_metric("meshwork_overload_requests_queued", &[SERVICE], count).await;
}

async fn in_flight(pair: &Pair, count: u64) {
    pair.inbound.wait_metric("meshwork_overload_requests_in_flight", &[SERVICE], count).await;
}

async fn answered(call: JoinHandle<String>, start: &str) -> String {
    let response = tokio::time::timeout(Duration::from_secs(10), call)
        .await
        .expect("in time")
        .expect("it is not aborted");
    assert!(response.starts_with(start), "{response}");
    response
}

#[tokio::test]
async fn what_is_too_much_waits_and_the_highest_priority_goes_first() {
    let app = app(0, Duration::ZERO).await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    pair.inbound
        .change([overload(one(), Queue { max_requests: Some(2), max_wait_ms: 60_000, ..LINE })])
        .await;
    let first = call(pair.proxy, "first", "low");
    in_flight(&pair, 1).await;
    let low = call(pair.proxy, "low", "low");
    queued(&pair, 1).await;
    let high = call(pair.proxy, "high", "high");
    queued(&pair, 2).await;
    let refused = answered(call(pair.proxy, "more", "low"), "HTTP/1.1 503").await;
    assert!(refused.ends_with("overload\n"), "{refused}");
    let line = pair.inbound.lines(1).await.remove(0);
    let said = ["\"OM\"", "\"overload\"", "shop/gate (queue_full, priority low)"];
    assert!(said.iter().all(|word| line.contains(word)), "{line}");
    let critical = call(pair.proxy, "critical", "critical");
    answered(low, "HTTP/1.1 503").await;
    app.lets.add_permits(3);
    for call in [first, critical, high] {
        answered(call, "HTTP/1.1 200").await;
    }
    assert_eq!(*app.came.lock(), ["/first", "/critical", "/high"]);
    in_flight(&pair, 0).await;
    let shed = "meshwork_overload_shed_requests_total";
    assert_eq!(pair.inbound.metric(shed, &[SERVICE, "low", "queue_full"]), 1);
    assert_eq!(pair.inbound.metric(shed, &[SERVICE, "low", "preempted"]), 1);
    assert_eq!(pair.inbound.metric("meshwork_overload_passed_requests_total", &[SERVICE, "high"]), 1);
    let changes = |of: &[&str]| pair.inbound.metric("meshwork_overload_changes_total", of);
    assert_eq!(changes(&[SERVICE, "\"shedding\"", "\"queue_full\""]), 1);
    assert_eq!(changes(&[]), 1, "that it begins is told once");
}

#[tokio::test]
async fn patience_ends_and_who_left_has_no_place() {
    let app = app(0, Duration::ZERO).await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    pair.inbound.change([overload(one(), Queue { max_wait_ms: 50, ..LINE })]).await;
    let first = call(pair.proxy, "first", "");
    in_flight(&pair, 1).await;
    answered(call(pair.proxy, "second", ""), "HTTP/1.1 503").await;
    let shed = "meshwork_overload_shed_requests_total";
    assert_eq!(pair.inbound.metric(shed, &[SERVICE, "default", "queue_time"]), 1);
    first.abort();
    in_flight(&pair, 0).await;
    app.lets.add_permits(2);
    answered(call(pair.proxy, "third", ""), "HTTP/1.1 200").await;
    assert_eq!(*app.came.lock(), ["/first", "/third"]);
}

#[tokio::test]
async fn a_caller_s_proxy_knows_that_it_was_the_load_and_ejects_nobody() {
    let app = app(0, Duration::ZERO).await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    pair.inbound.change([overload(one(), Queue { max_requests: Some(0), ..LINE })]).await;
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(1),
        base_ejection_time_ms: 60_000,
        max_ejection_percent: 100,
        max_ejection_time_ms: 60_000,
        ..crate::support::rows_off()
    };
    let breaker = v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(2)),
        minimum_calls: 2,
        failure_percent: 50,
        open_ms: 60_000,
        max_open_ms: 60_000,
        trials: 1,
        ..Default::default()
    };
    let watched = v1::TrafficPolicy {
        outlier_detection: Some(outlier),
        circuit_breaker: Some(breaker),
        ..Default::default()
    };
    pair.outbound.change([policy("watched", "reviews", v1::policy::Spec::Traffic(watched))]).await;
    let first = call(pair.proxy, "first", "");
    in_flight(&pair, 1).await;
    for _ in 0..5 {
        let refused = answered(call(pair.proxy, "more", ""), "HTTP/1.1 503").await;
        assert!(refused.contains("x-envoy-local-overloaded: true\r\n"), "{refused}");
    }
    app.lets.add_permits(2);
    answered(first, "HTTP/1.1 200").await;
    in_flight(&pair, 0).await;
    answered(call(pair.proxy, "next", ""), "HTTP/1.1 200").await;
    assert_eq!(pair.outbound.metric("meshwork_circuit_breaker_rejected_total", &["shop/reviews", "80"]), 0);
}

#[tokio::test]
async fn grpc_callers_are_told_in_their_terms() {
    let app = app(0, Duration::ZERO).await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    pair.inbound.change([overload(one(), Queue { max_requests: Some(0), ..LINE })]).await;
    let _first = call(pair.proxy, "first", "");
    in_flight(&pair, 1).await;
    let grpc = "POST / HTTP/1.1\r\nHost: reviews\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\
                Connection: close\r\n\r\n";
    let refused = exchange(pair.proxy, grpc.as_bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 200") && refused.contains("grpc-status: 14\r\n"), "{refused}");
    assert!(refused.contains("x-envoy-local-overloaded: true\r\n"), "{refused}");
}

#[tokio::test]
async fn what_one_instance_has_sent_away_another_takes_though_it_may_not_be_repeated() {
    let (held, free) = (app(0, Duration::ZERO).await, app(100, Duration::ZERO).await);
    let mut pair = Pair::start(held.address, AppProtocol::Http1).await;
    pair.inbound.change([overload(one(), Queue { max_requests: Some(0), ..LINE })]).await;
    let first = call(pair.proxy, "first", "");
    in_flight(&pair, 1).await;
    let id = pair.reviews.id();
    let mut second = pair.mesh.proxy(&pair.reviews, None, Settings::default());
    second
        .change([pair.mesh.bundle(1, &[]), serving(&id, "reviews", free.address, AppProtocol::Http1)])
        .await;
    let other = second.engine.listen(Side::Inbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let endpoint = |mesh: SocketAddr, instance: &str| v1::Endpoint {
        addresses: vec![mesh.ip().to_string()],
        weight: 1,
        instance: instance.into(),
        workload: id.workload().to_owned(),
        transport: v1::endpoint::Transport::Mesh.into(),
        mesh_port: mesh.port().into(),
        spiffe_id: id.as_str().to_owned(),
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: "shop/reviews".into(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: 80 }],
        endpoints: vec![endpoint(pair.peer, "reviews-1"), endpoint(other, "reviews-2")],
        ..Default::default()
    };
    let turns = v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        ..Default::default()
    };
    let turns = policy("turns", "reviews", v1::policy::Spec::Traffic(turns));
    pair.outbound.change([turns, Change::upsert("shop/reviews-1", "2", &slice)]).await;
    let shed = "meshwork_overload_shed_requests_total";
    let shed = |pair: &Pair| pair.inbound.metric(shed, &[SERVICE, "default", "concurrency"]);
    // What is sent away of gRPC has status 200.
    for kind in ["", "Content-Type: application/grpc\r\n"] {
        let before = shed(&pair);
        for _ in 0..2 {
            let post = format!(
                "POST /x HTTP/1.1\r\nHost: reviews\r\n{kind}Content-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let response = exchange(pair.proxy, post.as_bytes()).await;
            assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("\r\n\r\nok"), "{response}");
        }
        assert!(shed(&pair) > before, "where turns are taken one of two comes to the first");
    }
    held.lets.add_permits(1);
    answered(first, "HTTP/1.1 200").await;
}

#[tokio::test]
async fn whose_instance_is_stopped_while_it_waits_at_the_gate_was_not_seen() {
    let app = app(0, Duration::ZERO).await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    let patient = Queue { max_wait_ms: 60_000, target_ms: 60_000, ..LINE };
    pair.inbound.change([overload(one(), patient)]).await;
    let retry = Some(support::bare_retry());
    let once = v1::TrafficPolicy { retry, ..Default::default() };
    pair.outbound.change([policy("once", "reviews", v1::policy::Spec::Traffic(once))]).await;
    let first = call(pair.proxy, "first", "");
    in_flight(&pair, 1).await;
    let second = call(pair.proxy, "second", "");
    queued(&pair, 1).await;
    app.lets.add_permits(1);
    answered(first, "HTTP/1.1 200").await;
    pair.inbound.lines(1).await;
    queued(&pair, 0).await;
    // It has the place of the first one among the streams too: it hears of the end before the one that it waits for.
    let third = call(pair.proxy, "third", "");
    queued(&pair, 1).await;
    pair.inbound.engine.drain_inbound(Ending::AtOnce).await.await;
    let seen = answered(second, "HTTP/1.1 503").await;
    assert!(seen.ends_with("upstream_reset\n"), "{seen}");
    let unseen = answered(third, "HTTP/1.1 503").await;
    assert!(unseen.ends_with("upstream_refused\n"), "{unseen}");
}

/// Answers everything so, and says that a proxy has sent it away; how often it was asked.
async fn pretends(status: &'static str) -> (support::Upstream, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let app = support::upstream(move |request| {
        support::is_head(request).then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            let said = "x-envoy-local-overloaded: true\r\ncontent-length: 0\r\n\r\n";
            format!("HTTP/1.1 {status}\r\n{said}").into_bytes()
        })
    })
    .await;
    (app, asked)
}

#[tokio::test]
async fn that_a_proxy_has_sent_its_requests_away_an_application_cannot_say() {
    for (kind, status) in [
        ("", "503 Busy"),
        ("", "500 Broken"),
        ("Content-Type: application/grpc\r\n", "200 OK\r\ngrpc-status: 14"),
    ] {
        let (app, _) = pretends(status).await;
        let pair = Pair::start(app.address, AppProtocol::Http1).await;
        let request = format!("GET / HTTP/1.1\r\nHost: reviews\r\n{kind}Connection: close\r\n\r\n");
        let response = exchange(pair.proxy, request.as_bytes()).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {}", &status[..3])), "{response}");
        assert!(!response.contains("x-envoy-local-overloaded"), "{response}");
    }
}

/// Only a failure is one that another instance may take, and without gRPC its status is a field as any other.
#[tokio::test]
async fn an_answer_that_is_no_failure_was_not_sent_away_whatever_it_says() {
    for status in ["429 Slowly", "200 OK\r\ngrpc-status: 14"] {
        let (one, other) = (pretends(status).await, pretends(status).await);
        let two = two([one.0.address, other.0.address], []).await;
        let post = b"POST /x HTTP/1.1\r\nHost: reviews\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let response = exchange(two.proxy, post).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {}", &status[..3])), "{response}");
        assert_eq!(one.1.load(Ordering::SeqCst) + other.1.load(Ordering::SeqCst), 1, "{status}");
    }
}

#[tokio::test]
async fn without_memory_for_more_requests_are_sent_away_and_told_when_to_come_again() {
    let settings = Settings { max_memory: Some(1), ..Settings::default() };
    let mut full = Harness::start(settings);
    let app = app(1, Duration::ZERO).await;
    full.service("web", AppProtocol::Http1, &[app.address]).await;
    let address = full.route(vec![rule(&[("web", 1)], vec![])]).await;
    let refused = answered(call(address, "x", ""), "HTTP/1.1 503").await;
    assert!(refused.contains("retry-after: 1\r\n") && refused.ends_with("overload\n"), "{refused}");
    let line = full.lines(1).await.remove(0);
    let said = ["\"OM\"", "\"overload\"", "--max-memory-bytes"];
    assert!(said.iter().all(|word| line.contains(word)), "{line}");
    assert!(app.came.lock().is_empty());
    full.wait_metric("meshwork_overload_memory_refused_requests_total", &[], 1).await;
}

/// What became of the requests of one kind.
#[derive(Debug, Default)]
struct Came {
    sent: usize,
    good: usize,
}

/// Sends requests at an even pace, whatever becomes of those before, for so long. One in `nth` is of high priority.
async fn load(proxy: SocketAddr, per_second: u32, lasts: Duration, nth: usize) -> [Came; 2] {
    let begin = Instant::now();
    let mut calls = Vec::new();
    let gap = Duration::from_secs(1) / per_second;
    for n in 0.. {
        let due = begin + gap * n;
        if due >= begin + lasts {
            break;
        }
        sleep_until(due).await;
        let high = (n as usize).is_multiple_of(nth);
        calls.push((high, call(proxy, "x", if high { "high" } else { "low" })));
    }
    let mut came = [Came::default(), Came::default()];
    for (high, call) in calls {
        let response = call.await.expect("it is not aborted");
        let came = &mut came[usize::from(high)];
        came.sent += 1;
        came.good += usize::from(response.starts_with("HTTP/1.1 200"));
    }
    came
}

/// An application of so many workers, each so long at a request, behind a proxy with the policy's defaults.
async fn alone(workers: usize, work: Duration) -> (Harness, SocketAddr) {
    let app = app(workers, work).await;
    let mesh = TestMesh::new();
    let clock = Arc::new(SystemClock::new());
    let mut inbound = Harness::join(Settings::default(), Mesh::default(), clock, "reviews");
    let permissive =
        v1::policy::Spec::Inbound(v1::InboundPolicy { mtls: v1::inbound_policy::Mtls::Permissive.into() });
    let id = mesh.identity("reviews").id();
    inbound
        .change([
            serving(&id, "reviews", app.address, AppProtocol::Http1),
            policy("open", "reviews", permissive),
            overload(LEARNS, LINE),
        ])
        .await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let proxy = inbound.engine.listen(Side::Inbound, any).await.expect("a port");
    (inbound, proxy)
}

/// Four workers of 40 ms can do 100 a second. The bounds leave room for machines that are busy otherwise.
#[tokio::test]
async fn at_three_times_of_what_it_can_do_an_application_does_what_it_can_and_what_matters_first() {
    let (_inbound, proxy) = alone(4, Duration::from_millis(40)).await;
    load(proxy, 50, Duration::from_secs(1), 10).await;
    let [low, high] = load(proxy, 300, Duration::from_secs(4), 10).await;
    assert!(low.good + high.good >= 4 * 100 * 8 / 10, "low {low:?}, high {high:?}");
    assert!(high.good * 100 >= high.sent * 95, "{high:?}");
    let [low, high] = load(proxy, 50, Duration::from_secs(1), 10).await;
    assert!(low.good + high.good >= 49, "low {low:?}, high {high:?}: it is over");
}

/// The whole of it: a minute at three times of what eight workers of 40 ms can do, 200 a second, and then half of that.
#[tokio::test]
#[ignore = "more than a minute, on a machine that has time: see docs/guides/overload.md"]
async fn a_minute_at_three_times_of_what_it_can_do() {
    const LASTS: Duration = Duration::from_secs(60);
    let (_inbound, proxy) = alone(8, Duration::from_millis(40)).await;
    load(proxy, 100, Duration::from_secs(5), 5).await;
    let [low, high] = load(proxy, 600, LASTS, 5).await;
    let per_second = (low.good + high.good) as f64 / LASTS.as_secs_f64();
    println!("goodput {per_second:.1} of 200 a second; low {low:?}, high {high:?}");
    let mut recovered = None;
    for tenth in 0..100 {
        let [low, high] = load(proxy, 100, Duration::from_millis(100), 5).await;
        match low.good + high.good == low.sent + high.sent {
            true => recovered = recovered.or(Some(tenth)),
            false => recovered = None,
        }
    }
    println!("nothing fails from {recovered:?} tenths of a second on");
    assert!(per_second >= 180.0, "{per_second} of 200");
    assert!(high.good * 100 >= high.sent * 99, "{high:?}");
    assert!(recovered.is_some_and(|tenths| tenths < 50), "{recovered:?}");
}
