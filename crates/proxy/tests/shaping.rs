//! Traffic policies that shape: local rate limits, injected faults.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshwork_base::ManualClock;
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::fault_injection::abort::With;
use meshwork_messages::v1::fault_injection::{Abort, Bandwidth, Delay};
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use serde_json::json;
use support::mesh::Pair;
use support::{Harness, Upstream, exchange, is_head, read_until, rule, upstream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const GRPC: &[u8] =
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn on(kind: &str, name: &str, policy: v1::TrafficPolicy) -> Change {
    let target = v1::policy::Target { kind: kind.into(), name: name.into(), section: String::new() };
    let source = v1::Source {
        kind: "TrafficPolicy".into(),
        namespace: "default".into(),
        name: "p".into(),
        ..Default::default()
    };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    Change::upsert("default/p", "1", &v1::Policy { source: Some(source), targets: vec![target], spec })
}

async fn hello(body: usize) -> Upstream {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {body}\r\n\r\n{}", "x".repeat(body));
    upstream(move |got| is_head(got).then(|| answer.clone().into_bytes())).await
}

struct Edge {
    harness: Harness,
    clock: ManualClock,
    address: SocketAddr,
    app: Upstream,
}

/// A gateway whose only route has this policy.
async fn edge(body: usize, policy: v1::TrafficPolicy) -> Edge {
    let app = hello(body).await;
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1_800_000_000));
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &[app.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change([on("HTTPRoute", "default/r", policy)]).await;
    Edge { harness, clock, address, app }
}

fn limit(requests: u32, shadow: bool) -> v1::TrafficPolicy {
    let limit = v1::RateLimit {
        requests,
        per_ms: 1_000,
        burst: requests,
        fair_share: Some(false),
        shadow: Some(shadow),
    };
    v1::TrafficPolicy { rate_limit: Some(limit), ..Default::default() }
}

fn fault(fault: v1::FaultInjection) -> v1::TrafficPolicy {
    v1::TrafficPolicy { fault_injection: Some(fault), ..Default::default() }
}

const ALWAYS: Option<v1::Share> = Some(v1::Share { numerator: 100, denominator: 100 });

#[tokio::test]
async fn who_is_over_a_rate_limit_is_told_so_and_when_to_come_again() {
    let Edge { harness, clock, address, app } = edge(5, limit(2, false)).await;
    let first = exchange(address, GET).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    assert!(first.contains("ratelimit-policy: \"default/p\";q=2;w=1\r\n"), "{first}");
    assert!(first.contains("ratelimit: \"default/p\";r=1;t=1\r\n"), "{first}");
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
    let refused = exchange(address, GET).await;
    assert!(refused.starts_with("HTTP/1.1 429") && refused.ends_with("rate_limited\n"), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n") && refused.contains(";r=0;t=1\r\n"), "{refused}");
    let line = harness.lines(3).await.remove(2);
    let said = ["\"RL\"", "\"rate_limited\"", "\"rate_limit\"", "default/p"];
    assert!(said.iter().all(|word| line.contains(word)), "{line}");
    let grpc = exchange(address, GRPC).await;
    assert!(grpc.starts_with("HTTP/1.1 200") && grpc.contains("grpc-status: 8\r\n"), "{grpc}");
    harness.wait_metric("meshwork_rate_limited_requests_total", &["default/p", "enforce"], 2).await;
    assert_eq!(app.connections.load(Ordering::SeqCst), 1, "the upstream has heard of two");
    clock.advance(Duration::from_secs(1));
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_limit_in_parts_of_a_second_is_told_by_what_passes_in_whole_ones() {
    for (per_ms, told) in
        [(500, "q=4;w=1"), (1_500, "q=2;w=2"), (2_000, "q=2;w=2"), (3_000_000, "q=2;w=3000")]
    {
        let limit = v1::RateLimit { requests: 2, per_ms, burst: 2, ..Default::default() };
        let Edge { harness: _harness, address, .. } =
            edge(5, v1::TrafficPolicy { rate_limit: Some(limit), ..Default::default() }).await;
        let response = exchange(address, GET).await;
        assert!(response.contains(&format!("ratelimit-policy: \"default/p\";{told}\r\n")), "{response}");
    }
}

#[tokio::test]
async fn both_headers_of_a_refusal_name_the_moment_when_the_next_one_may_pass() {
    let limit = v1::RateLimit { requests: 2, per_ms: 60_000, burst: 2, ..Default::default() };
    let Edge { harness: _harness, address, .. } =
        edge(5, v1::TrafficPolicy { rate_limit: Some(limit), ..Default::default() }).await;
    for left in [1, 0] {
        let answer = exchange(address, GET).await;
        assert!(answer.contains(&format!("ratelimit: \"default/p\";r={left};t=")), "{answer}");
    }
    let refused = exchange(address, GET).await;
    assert!(refused.contains("retry-after: 30\r\n") && refused.contains(";r=0;t=30\r\n"), "{refused}");
}

#[tokio::test]
async fn a_redirect_tells_of_the_limit_too() {
    let mut harness = Harness::start(Settings::default());
    let redirect = v1::Redirect { hostname: "b".into(), status: 302, ..Default::default() };
    let filter = v1::Filter { kind: Some(v1::filter::Kind::Redirect(redirect)) };
    let address = harness.route(vec![rule(&[], vec![filter])]).await;
    harness.change([on("HTTPRoute", "default/r", limit(2, false))]).await;
    let answer = exchange(address, GET).await;
    assert!(answer.starts_with("HTTP/1.1 302") && answer.contains("location: http://b"), "{answer}");
    assert!(answer.contains("ratelimit: \"default/p\";r=1;t=1\r\n"), "{answer}");
}

#[tokio::test]
async fn who_is_refused_before_a_backend_is_chosen_is_asked_for_by_an_id_and_by_its_service() {
    let Edge { mut harness, address, .. } = edge(5, limit(1, false)).await;
    exchange(address, GET).await;
    exchange(address, GET).await;
    let address = harness.route(vec![rule(&[("web", 1), ("other", 1)], vec![])]).await;
    exchange(address, GET).await;
    exchange(address, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    let lines = harness.lines(4).await;
    let lines: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wanted = [
        (200, json!("default/web:80")),
        (429, json!("default/web:80")),
        (429, json!(null)),
        (400, json!(null)),
    ];
    for (line, (status, service)) in lines.iter().zip(wanted) {
        assert_eq!((&line["response_code"], &line["upstream_cluster"]), (&json!(status), &service), "{line}");
    }
    let id = |line: usize| lines[line]["request_id"].as_str().unwrap().to_owned();
    assert_ne!(id(1), id(2));
    assert_eq!(id(3).len(), 36, "a UUID");
    for (line, service) in [(1, "default/web:80"), (2, "")] {
        let kept =
            harness.engine.recall(0, &v1::Recall { request_id: id(line), ..Default::default() }).await.await;
        let record = kept[0].record.as_ref().unwrap();
        assert_eq!((&*record.cause, &*record.service), ("rate_limited", service), "{kept:?}");
    }
    let named = ["destination_service_name=\"web\"", "response_flags=\"RL\""];
    harness.wait_metric("istio_requests_total", &named, 1).await;
}

#[tokio::test]
async fn in_shadow_mode_nobody_is_refused_and_nobody_told() {
    let Edge { harness, address, .. } = edge(5, limit(1, true)).await;
    for _ in 0..3 {
        let response = exchange(address, GET).await;
        assert!(response.starts_with("HTTP/1.1 200") && !response.contains("ratelimit"), "{response}");
    }
    harness.wait_metric("meshwork_rate_limited_requests_total", &["default/p", "shadow"], 2).await;
}

#[tokio::test]
async fn a_service_s_limit_is_kept_where_it_is_and_not_by_its_callers() {
    let app = hello(5).await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    let call = b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";
    pair.outbound.change([on("Service", "shop/reviews", limit(1, false))]).await;
    for _ in 0..3 {
        assert!(
            exchange(pair.proxy, call).await.starts_with("HTTP/1.1 200"),
            "the caller's side counts nothing"
        );
    }
    pair.inbound.change([on("Service", "shop/reviews", limit(1, false))]).await;
    assert!(exchange(pair.proxy, call).await.starts_with("HTTP/1.1 200"));
    let refused = exchange(pair.proxy, call).await;
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("retry-after: 1\r\n"), "{refused}");
}

#[tokio::test]
async fn an_abort_is_answered_as_the_policy_says_and_reaches_nobody() {
    for (with, http, grpc) in [
        (With::Status(418), "HTTP/1.1 418", "grpc-status: 2\r\n"),
        (With::GrpcStatus(8), "HTTP/1.1 429", "grpc-status: 8\r\n"),
    ] {
        let abort = Some(Abort { share: ALWAYS, with: Some(with) });
        let policy = fault(v1::FaultInjection { abort, ..Default::default() });
        let Edge { harness, address, app, .. } = edge(5, policy).await;
        let response = exchange(address, GET).await;
        assert!(response.starts_with(http) && response.ends_with("fault_abort\n"), "{response}");
        let response = exchange(address, GRPC).await;
        assert!(response.starts_with("HTTP/1.1 200") && response.contains(grpc), "{response}");
        let line = harness.lines(1).await.remove(0);
        let said = ["\"FI\"", "\"fault_abort\"", "\"fault\"", "default/p"];
        assert!(said.iter().all(|word| line.contains(word)), "{line}");
        assert_eq!(app.connections.load(Ordering::SeqCst), 0);
        harness.wait_metric("meshwork_faults_injected_total", &["default/p", "abort"], 2).await;
    }
}

#[tokio::test]
async fn only_requests_with_the_fields_of_the_policy_meet_its_fault() {
    let headers = vec![v1::Field { name: "X-Trial".into(), value: "on".into() }];
    let abort = Some(Abort { share: ALWAYS, with: Some(With::Status(503)) });
    let Edge { harness: _harness, address, .. } =
        edge(5, fault(v1::FaultInjection { headers, abort, ..Default::default() })).await;
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
    let trial = b"GET / HTTP/1.1\r\nHost: a\r\nX-Trial: on\r\nConnection: close\r\n\r\n";
    assert!(exchange(address, trial).await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn a_delayed_request_waits_and_is_then_sent_on() {
    let delay = Some(Delay { share: ALWAYS, time_ms: 200 });
    let Edge { harness, address, app, .. } =
        edge(5, fault(v1::FaultInjection { delay, ..Default::default() })).await;
    let waiting = tokio::spawn(async move { exchange(address, GET).await });
    harness.wait_metric("meshwork_faults_injected_total", &["default/p", "delay"], 1).await;
    assert!(!waiting.is_finished() && app.connections.load(Ordering::SeqCst) == 0, "it has not been sent");
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn who_asks_later_why_a_request_was_slow_hears_of_its_delay_and_by_which_policy_it_was() {
    let delay = Some(Delay { share: ALWAYS, time_ms: 20 });
    let abort = Some(Abort { share: ALWAYS, with: Some(With::Status(503)) });
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[hello(5).await.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let policy = fault(v1::FaultInjection { delay, abort, ..Default::default() });
    harness.change([on("HTTPRoute", "default/r", policy)]).await;
    let call = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: slow\r\nConnection: close\r\n\r\n";
    assert!(exchange(address, call).await.starts_with("HTTP/1.1 503"));
    harness.lines(1).await;
    let recall = v1::Recall { request_id: "slow".into(), ..Default::default() };
    let kept = harness.engine.recall(0, &recall).await.await;
    let [held] = &kept[0].record.as_ref().unwrap().held[..] else { panic!("it has waited once: {kept:?}") };
    assert_eq!((&*held.phase, &*held.by), ("fault", "TrafficPolicy default/p"));
    assert!(held.ns >= 20_000_000, "{held:?}");
}

#[tokio::test]
async fn a_caller_who_leaves_a_delayed_request_is_noticed() {
    let delay = Some(Delay { share: ALWAYS, time_ms: 3_600_000 });
    let Edge { harness, address, .. } =
        edge(5, fault(v1::FaultInjection { delay, ..Default::default() })).await;
    let waiting = tokio::spawn(async move { exchange(address, GET).await });
    harness.wait_metric("meshwork_faults_injected_total", &["default/p", "delay"], 1).await;
    waiting.abort();
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"downstream_closed\"") && line.contains("\"DC\""), "{line}");
}

/// Also where it comes from the upstream in one read.
#[tokio::test]
async fn a_slowed_response_comes_whole_and_not_faster_than_the_policy_says() {
    for (body, bytes_per_second, least) in
        [(80 * 1024, 256 * 1024, 210), (3_000, 10_000, 200), (400 * 1024, 1024 * 1024, 290)]
    {
        let bandwidth = Some(Bandwidth { share: ALWAYS, bytes_per_second });
        let policy = fault(v1::FaultInjection { bandwidth, ..Default::default() });
        let Edge { harness: _harness, address, .. } = edge(body, policy).await;
        let began = tokio::time::Instant::now();
        let response = exchange(address, GET).await;
        assert!(response.starts_with("HTTP/1.1 200") && response.ends_with(&"x".repeat(body)));
        // At least its own time, but for the last piece: a tenth of a second.
        assert!(began.elapsed() >= Duration::from_millis(least), "{body}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_bandwidth_is_counted_where_a_body_meets_it() {
    for (body, counted) in [(0, 0), (5, 1)] {
        let bandwidth = Some(Bandwidth { share: ALWAYS, bytes_per_second: 1_000 });
        let policy = fault(v1::FaultInjection { bandwidth, ..Default::default() });
        let Edge { harness, address, .. } = edge(body, policy).await;
        assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
        let injected = harness.metric("meshwork_faults_injected_total", &["default/p", "bandwidth"]);
        assert_eq!(injected, counted, "{body} bytes");
    }
}

#[tokio::test]
async fn what_is_slow_on_purpose_is_not_taken_for_stuck() {
    let app = hello(1_200).await;
    let idle = Duration::from_millis(400);
    let mut settings = Settings::default();
    settings.timeouts.stream_idle = idle;
    let mut harness = Harness::start(settings);
    harness.service("web", AppProtocol::Http1, &[app.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let slow = v1::FaultInjection {
        headers: vec![v1::Field { name: "X-Trial".into(), value: "on".into() }],
        delay: Some(Delay { share: ALWAYS, time_ms: 1_200 }),
        bandwidth: Some(Bandwidth { share: ALWAYS, bytes_per_second: 1_000 }),
        ..Default::default()
    };
    let stream_idle_ms = idle.as_millis().try_into().unwrap();
    let timeouts = Some(v1::Timeouts { stream_idle_ms, ..Default::default() });
    harness.change([on("HTTPRoute", "default/r", v1::TrafficPolicy { timeouts, ..fault(slow) })]).await;
    // The policy's time for the first request is none of the second, which is on the same connection.
    let mut tcp = TcpStream::connect(address).await.unwrap();
    for fields in ["", "X-Trial: on\r\n"] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let response = read_until(&mut tcp, &"x".repeat(1_200)).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{fields}: {response}");
    }
}
