//! Circuit breakers of services, routes and endpoints, and calls that are held back since too few succeed.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::{Clock, ManualClock, Tick};
use meshwork_decision::{Change, ForcedState};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::h2::{H2Upstream, h2_client, h2_upstream};
use support::policy::{BUSY, GET, OK, POST, gateway, limits, pair, recovering, retry, traffic};
use support::{Harness, exchange, rule};
use tokio::task::JoinSet;

/// A breaker that opens when half of at least three calls fail, for five seconds, and then tries one.
fn opening_after_three() -> v1::TrafficPolicy {
    let circuit_breaker = Some(v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
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
    let mut harness = Harness::at(&clock);
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
async fn one_that_only_observes_refuses_nobody_and_counts_whom_it_would_have_refused() {
    let (up, counts) = recovering(BUSY, 100).await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut policy = opening_after_three();
    let observes = v1::circuit_breaker::Mode::Observe.into();
    policy.circuit_breaker.iter_mut().for_each(|breaker| breaker.mode = observes);
    let of_route = v1::Policy {
        source: None,
        targets: vec![v1::policy::Target {
            kind: "HTTPRoute".into(),
            name: "default/r".into(),
            section: String::new(),
        }],
        spec: Some(v1::policy::Spec::Traffic(policy.clone())),
    };
    harness.change([traffic(policy), Change::upsert("default/of-route", "1", &of_route)]).await;
    for _ in 0..7 {
        assert!(exchange(address, GET).await.ends_with("busy"), "nobody is refused");
    }
    assert_eq!(counts.lock().len(), 7);
    let of = |name, whose: &str| harness.metric(name, &[whose]);
    assert_eq!(of("meshwork_circuit_breaker_would_reject_total", "default/web"), 4, "after the third");
    assert_eq!(of("meshwork_route_circuit_breaker_would_reject_total", "default/r"), 4);
    assert_eq!(of("meshwork_circuit_breaker_rejected_total", "default/web"), 0);
    assert_eq!(harness.metric("meshwork_circuit_breaker_state", &["default/web", "\"closed\""]), 1);
}

#[tokio::test]
async fn a_rule_by_which_most_calls_fail_is_closed_and_other_ways_to_the_service_are_not() {
    let clock = ManualClock::new();
    let (up, counts) = recovering(BUSY, 4).await;
    let mut harness = Harness::at(&clock);
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

/// A policy by which nobody is called.
fn forced_open(per_endpoint: bool) -> v1::TrafficPolicy {
    let mode = v1::circuit_breaker::Mode::ForcedOpen.into();
    let breaker = opening_after_three().circuit_breaker.unwrap();
    let circuit_breaker = Some(v1::CircuitBreaker { mode, per_endpoint: Some(per_endpoint), ..breaker });
    v1::TrafficPolicy { circuit_breaker, ..Default::default() }
}

#[tokio::test]
async fn a_breaker_that_is_forced_open_says_by_whom_and_until_when() {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1_800_000_000));
    let (up, _) = recovering(OK, 0).await;
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let by_policy = "\"cause_detail\":\"default/web: forced open by its policy\"";
    for (number, per_endpoint) in [(1, false), (2, true)] {
        harness.change([traffic(forced_open(per_endpoint))]).await;
        assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"));
        let line = harness.lines(number).await.remove(number - 1);
        assert!(line.contains(by_policy), "{line}");
    }
    harness.change([Change::remove::<v1::Policy>("default/p")]).await;
    let forces = |until| Some((ForcedState::Open, until));
    let end = clock.now().after(Duration::from_secs(5));
    harness.builder.build().clusters().for_each(|cluster| cluster.force_breaker(forces(end)));
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"));
    let line = harness.lines(3).await.remove(2);
    let by_operator = "default/web: forced open by an operator until 2027-01-15T08:00:05.000Z\"";
    assert!(line.contains(by_operator), "{line}");
    clock.advance(Duration::from_secs(5));
    assert!(exchange(address, GET).await.ends_with("hello"));

    let target =
        v1::policy::Target { kind: "HTTPRoute".into(), name: "default/r".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(forced_open(false)));
    let of_route = v1::Policy { source: None, targets: vec![target], spec };
    harness.change([Change::upsert("default/of-route", "1", &of_route)]).await;
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"));
    let line = harness.lines(5).await.remove(4);
    assert!(line.contains("\"HTTPRoute default/r: forced open by its policy\""), "{line}");
}

#[tokio::test]
async fn a_repeat_that_a_forced_breaker_refuses_says_so_beside_the_answer_that_stays() {
    let forcing = Arc::new(parking_lot::Mutex::new(None::<Arc<meshwork_decision::Snapshot>>));
    let of_operator = Arc::clone(&forcing);
    let end = Tick::from_nanos(u64::MAX >> 2);
    // It is forced while the first attempt is under way.
    let up = support::upstream(move |got| {
        support::is_head(got).then(|| {
            let forced = || Some((ForcedState::Open, end));
            of_operator.lock().iter().for_each(|snapshot| {
                snapshot.clusters().for_each(|cluster| cluster.force_breaker(forced()));
            });
            BUSY.to_vec()
        })
    })
    .await;
    let (mut harness, address) = gateway(&[up.address], Some(retry(2, &[503]))).await;
    *forcing.lock() = Some(harness.builder.build());
    assert!(exchange(address, GET).await.ends_with("busy"));
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"circuit_breaker\"") && line.contains("\"attempts\":1,"), "{line}");
    let detail = "\"cause_detail\":\"default/web: forced open by an operator until ";
    assert!(line.contains(detail) && line.contains("Z; status 503\""), "{line}");
}

#[tokio::test]
async fn who_waits_for_anybody_to_be_there_does_not_hold_the_trial_of_its_route() {
    let clock = ManualClock::new();
    let (up, _) = recovering(BUSY, 3).await;
    let mut harness = Harness::at(&clock);
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
    let mut harness = Harness::at(&clock);
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
        rps_threshold: Some(0),
        max_rejection_percent: Some(100),
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
    let changes = |state, cause| {
        harness.metric(
            "meshwork_admission_control_changes_total",
            &["\"default/web\"", "port=\"80\"", state, cause],
        )
    };
    assert_eq!(changes("\"holding_back\"", "\"success_rate\""), 1, "that it begins is told once");
    clock.advance(Duration::from_secs(40));
    for _ in 0..5 {
        assert!(exchange(address, GET).await.ends_with("hello"), "what failed is long ago");
    }
    assert_eq!(changes("\"admitting\"", "\"success_rate_reached\""), 1, "and so is that it is over");
    assert_eq!(changes("", ""), 2);
}

#[tokio::test]
async fn an_endpoint_whose_breaker_is_open_is_passed_by_and_its_service_goes_on() {
    const FAILS: &[u8] = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n";
    let (addresses, counts) = pair(|| FAILS, || OK).await;
    let circuit_breaker = Some(v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 3,
        failure_percent: 50,
        open_ms: 600_000,
        max_open_ms: 600_000,
        trials: 1,
        per_endpoint: Some(true),
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
    const LATER: &[u8] = b"HTTP/1.1 503 Later\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\nbusy";
    let (up, _) = recovering(LATER, usize::MAX).await;
    let circuit_breaker = Some(v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 2,
        failure_percent: 50,
        open_ms: 60_000,
        max_open_ms: 60_000,
        trials: 1,
        ..Default::default()
    });
    let limits = Some(v1::Limits { max_retries: 10, ..Default::default() });
    let policy = v1::TrafficPolicy { circuit_breaker, limits, ..retry(2, &[503]) };
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    let waits = tokio::spawn(async move { exchange(address, GET).await });
    harness.wait_metric("meshwork_limit_headroom", &["maxRetries"], 9).await;
    assert!(exchange(address, POST).await.ends_with("busy"), "it is not repeated, and opens the breaker");
    let response = waits.await.unwrap();
    assert!(response.ends_with("circuit_breaker\n"), "it opened after the answer was given up: {response}");
    let lines = harness.lines(2).await;
    let line = lines.iter().find(|line| line.contains("circuit_breaker")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let request_id = line["request_id"].as_str().unwrap().to_owned();
    let kept = harness.engine.recall(0, &v1::Recall { request_id, ..v1::Recall::default() }).await.await;
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
    let mut harness = Harness::at(&clock);
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
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Grpc, &[bad.address, good.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: Some(2),
        base_ejection_time_ms: 5_000,
        max_ejection_percent: 50,
        ..crate::support::rows_off()
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

#[tokio::test]
async fn that_calls_are_held_back_again_is_told_with_the_first_that_is() {
    use meshwork_messages::v1::overload::{Priority, PriorityRule};
    const FAILS: &[u8] = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n";
    const MATTERS: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nX-Matters: 1\r\nConnection: close\r\n\r\n";
    let up = support::upstream(|got| support::is_head(got).then(|| FAILS.to_vec())).await;
    let clock = meshwork_base::ManualClock::new();
    let settings = meshwork_proxy::Settings { workers: 1, ..meshwork_proxy::Settings::default() };
    let time = std::sync::Arc::new(clock.clone());
    let mut harness = support::Harness::join(settings, meshwork_proxy::Mesh::default(), time, "gateway");
    harness.service("web", v1::service_port::AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![support::rule(&[("web", 1)], vec![])]).await;
    let matters = PriorityRule {
        priority: Priority::High.into(),
        headers: vec![v1::Field { name: "X-Matters".into(), value: "1".into() }],
        from: vec![],
        to: vec![],
    };
    let admission_control = Some(v1::AdmissionControl {
        sampling_window_ms: 30_000,
        success_rate_threshold: 95,
        aggression_thousandths: 1_000,
        rps_threshold: Some(0),
        max_rejection_percent: Some(100),
        priorities: vec![matters],
    });
    let policy = v1::TrafficPolicy { admission_control, ..Default::default() };
    harness.change([support::policy::traffic(policy)]).await;
    let changes = || harness.metric("meshwork_admission_control_changes_total", &["default/web"]);
    loop {
        for _ in 0..100 {
            let answer = support::exchange(address, MATTERS).await;
            assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
        }
        // Longer than it lasts, and not so long that failures are forgotten.
        clock.advance(std::time::Duration::from_secs(15));
        let before = changes();
        let answer = support::exchange(address, support::policy::GET).await;
        if answer.ends_with("admission_control\n") {
            assert_eq!(changes(), before + 2, "that it was over, and that it begins");
            return;
        }
        // One in a hundred goes through.
        clock.advance(std::time::Duration::from_secs(60));
    }
}
