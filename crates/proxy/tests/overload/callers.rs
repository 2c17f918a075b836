//! A service that has no sidecars is kept from overload by whoever calls it.

use std::net::SocketAddr;
use std::time::Duration;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::overload::{AdaptiveConcurrency, Priority, PriorityRule, Queue};
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Settings, Side};

use crate::support::mesh::{Pair, TestMesh, policy};
use crate::support::{Harness, rule};
use crate::{LEARNS, LINE, SERVICE, answered, app, call, load, one, overload, spec};

const SHED: &str = "meshwork_overload_shed_requests_total";
const IN_FLIGHT: &str = "meshwork_overload_requests_in_flight";
const QUEUED: &str = "meshwork_overload_requests_queued";

/// `shop/reviews`, whose only endpoint is this application itself.
pub(crate) fn alone_at(app: SocketAddr) -> [Change; 2] {
    let service = v1::Service {
        ports: vec![v1::ServicePort { name: "http".into(), port: 80, protocol: AppProtocol::Http1.into() }],
        hostnames: vec!["reviews".to_owned()],
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: "shop/reviews".into(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: app.port().into() }],
        endpoints: vec![v1::Endpoint {
            addresses: vec![app.ip().to_string()],
            health: v1::endpoint::Health::Healthy.into(),
            weight: 1,
            instance: "reviews-1".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    [Change::upsert("shop/reviews", "1", &service), Change::upsert("shop/reviews-1", "1", &slice)]
}

/// Another policy of the same name: who calls says the priority.
fn by_caller(spiffe_id: &str, priority: Priority, max_requests: u32) -> Change {
    let from = v1::authorization_rule::Peer { spiffe_ids: vec![spiffe_id.to_owned()], ..Default::default() };
    let rule = PriorityRule { priority: priority.into(), from: vec![from], ..Default::default() };
    let spec = v1::Overload {
        adaptive_concurrency: Some(one()),
        queue: Some(Queue { max_requests: Some(max_requests), ..LINE }),
        priorities: vec![rule],
    };
    let traffic = v1::TrafficPolicy { overload: Some(spec), ..Default::default() };
    policy("gate", "reviews", v1::policy::Spec::Traffic(traffic))
}

#[tokio::test]
async fn a_gateway_keeps_it_from_a_service_that_has_no_sidecars() {
    let app = app(0, Duration::ZERO).await;
    let mut gateway = Harness::start(Settings::default());
    let [service, endpoints] = alone_at(app.address);
    let guarded = overload(one(), Queue { max_requests: Some(2), max_wait_ms: 60_000, ..LINE });
    gateway.change([service, endpoints, guarded]).await;
    let mut to_reviews = rule(&[("reviews", 1)], vec![]);
    to_reviews.backends[0].service = "shop/reviews".into();
    let address = gateway.route(vec![to_reviews]).await;
    let first = call(address, "first", "low");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    let low = call(address, "low", "low");
    gateway.wait_metric(QUEUED, &[SERVICE], 1).await;
    let high = call(address, "high", "high");
    gateway.wait_metric(QUEUED, &[SERVICE], 2).await;
    let refused = answered(call(address, "more", "low"), "HTTP/1.1 503").await;
    assert!(
        refused.ends_with("overload\n") && refused.contains("x-envoy-local-overloaded: true\r\n"),
        "{refused}"
    );
    let line = gateway.lines(1).await.remove(0);
    let said = ["\"OM\"", "\"overload\"", "shop/gate (queue_full, priority low)", "\"shop/reviews:80\""];
    assert!(said.iter().all(|word| line.contains(word)), "{line}");
    let critical = call(address, "critical", "critical");
    answered(low, "HTTP/1.1 503").await;
    app.lets.add_permits(3);
    for call in [first, critical, high] {
        answered(call, "HTTP/1.1 200").await;
    }
    assert_eq!(*app.came.lock(), ["/first", "/critical", "/high"]);
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
    assert_eq!(gateway.metric(SHED, &[SERVICE, "low", "queue_full"]), 1);
    assert_eq!(gateway.metric(SHED, &[SERVICE, "low", "preempted"]), 1);
    // What changes about a policy counts at once.
    gateway.change([overload(one(), Queue { max_requests: Some(0), ..LINE })]).await;
    let held = call(address, "held", "");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    answered(call(address, "more", ""), "HTTP/1.1 503").await;
    assert_eq!(gateway.metric(SHED, &[SERVICE, "default", "concurrency"]), 1);
    app.lets.add_permits(1);
    answered(held, "HTTP/1.1 200").await;
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
}

#[tokio::test]
async fn who_leaves_or_is_never_answered_has_no_place_at_a_gateway_either() {
    let app = app(0, Duration::ZERO).await;
    let mut gateway = Harness::start(Settings::default());
    let [service, endpoints] = alone_at(app.address);
    gateway.change([service, endpoints, overload(one(), Queue { max_wait_ms: 50, ..LINE })]).await;
    let mut to_reviews = rule(&[("reviews", 1)], vec![]);
    to_reviews.backends[0].service = "shop/reviews".into();
    let address = gateway.route(vec![to_reviews]).await;
    let first = call(address, "first", "");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    answered(call(address, "second", ""), "HTTP/1.1 503").await;
    assert_eq!(gateway.metric(SHED, &[SERVICE, "default", "queue_time"]), 1);
    first.abort();
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
    // A connection that cannot be made ends the request and its place.
    let nobody =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a port");
    gateway.change(alone_at(nobody)).await;
    answered(call(address, "third", ""), "HTTP/1.1 503").await;
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
}

/// Whoever works on what nobody waits for says nothing when it is done, and nobody else comes who would notice.
#[tokio::test]
async fn who_waits_while_nobody_comes_is_called_when_what_was_given_up_must_be_over() {
    let app = app(10, Duration::from_millis(300)).await;
    let mut gateway = Harness::start(Settings::default());
    let [service, endpoints] = alone_at(app.address);
    let ten = AdaptiveConcurrency { min_concurrency: 10, max_concurrency: 10, ..one() };
    let patient = || Queue { max_wait_ms: 60_000, ..LINE };
    gateway.change([service, endpoints, overload(ten, patient())]).await;
    let mut to_reviews = rule(&[("reviews", 1)], vec![]);
    to_reviews.backends[0].service = "shop/reviews".into();
    let address = gateway.route(vec![to_reviews]).await;
    let known: Vec<_> = (0..10).map(|_| call(address, "known", "")).collect();
    for call in known {
        answered(call, "HTTP/1.1 200").await;
    }
    gateway.change([overload(one(), patient())]).await;
    let first = call(address, "first", "");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    first.abort();
    answered(call(address, "second", ""), "HTTP/1.1 200").await;
    // Who has come before that as well.
    let third = call(address, "third", "");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    let fourth = call(address, "fourth", "");
    gateway.wait_metric(QUEUED, &[SERVICE], 1).await;
    third.abort();
    answered(fourth, "HTTP/1.1 200").await;
}

#[tokio::test]
async fn on_the_outbound_side_the_own_workload_is_the_caller() {
    let app = app(0, Duration::ZERO).await;
    let mesh = TestMesh::new();
    let web = mesh.identity("web");
    let mut outbound = mesh.proxy(&web, None, Settings::default());
    let [service, endpoints] = alone_at(app.address);
    let guarded = by_caller(web.id().as_str(), Priority::High, 0);
    outbound.change([mesh.bundle(1, &[]), service, endpoints, guarded]).await;
    let proxy = outbound.engine.listen(Side::Outbound, "127.0.0.1:0".parse().expect("an address")).await;
    let proxy = proxy.expect("a port");
    let first = call(proxy, "first", "");
    outbound.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    answered(call(proxy, "more", ""), "HTTP/1.1 503").await;
    assert_eq!(outbound.metric(SHED, &[SERVICE, "high", "concurrency"]), 1);
    app.lets.add_permits(1);
    answered(first, "HTTP/1.1 200").await;
}

#[tokio::test]
async fn where_there_are_sidecars_callers_leave_it_to_them() {
    let app = app(0, Duration::ZERO).await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    pair.outbound.change([overload(one(), Queue { max_requests: Some(0), ..LINE })]).await;
    let calls = ["a", "b", "c"].map(|name| call(pair.proxy, name, ""));
    let all = async {
        while app.came.lock().len() < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all).await.expect("all come at once");
    app.lets.add_permits(3);
    for call in calls {
        answered(call, "HTTP/1.1 200").await;
    }
    let passed = "meshwork_overload_passed_requests_total";
    assert_eq!(pair.outbound.metric(passed, &[SERVICE]), 0);
}

#[tokio::test]
async fn a_copy_goes_where_there_is_room_and_waits_for_none() {
    let (main, copies) = (app(100, Duration::ZERO).await, app(0, Duration::ZERO).await);
    let mut gateway = Harness::start(Settings::default());
    gateway.service("main", AppProtocol::Http1, &[main.address]).await;
    let [service, endpoints] = alone_at(copies.address);
    gateway.change([service, endpoints, overload(one(), LINE)]).await;
    let mut mirrored = rule(&[("main", 1)], vec![]);
    mirrored.backends[0].mirrors = vec![v1::Mirror {
        service: "shop/reviews".into(),
        port: 80,
        share: Some(v1::Share { numerator: 1, denominator: 1 }),
        subset: String::new(),
    }];
    let address = gateway.route(vec![mirrored]).await;
    let outcomes = "meshwork_mirrored_requests_total";
    answered(call(address, "a", ""), "HTTP/1.1 200").await;
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    answered(call(address, "b", ""), "HTTP/1.1 200").await;
    gateway.wait_metric(outcomes, &["refused"], 1).await;
    assert_eq!(gateway.metric(SHED, &[SERVICE, "low", "concurrency"]), 1);
    copies.lets.add_permits(2);
    gateway.wait_metric(outcomes, &["answered"], 1).await;
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
    answered(call(address, "c", ""), "HTTP/1.1 200").await;
    gateway.wait_metric(outcomes, &["answered"], 2).await;
    assert_eq!(*copies.came.lock(), ["/a", "/c"]);
}

/// A gateway before the service at `app`, which has no sidecar, with these policies.
pub(crate) async fn gateway_before(app: SocketAddr, policies: Vec<Change>) -> (Harness, SocketAddr) {
    gateway_of(Harness::start(Settings::default()), app, policies).await
}

pub(crate) async fn gateway_of(
    mut gateway: Harness,
    app: SocketAddr,
    policies: Vec<Change>,
) -> (Harness, SocketAddr) {
    gateway.change(alone_at(app).into_iter().chain(policies)).await;
    let mut to_reviews = rule(&[("reviews", 1)], vec![]);
    to_reviews.backends[0].service = "shop/reviews".into();
    let address = gateway.route(vec![to_reviews]).await;
    (gateway, address)
}

/// Thirty at once, each with half a second, before an application that does three at once, each for 300 ms.
#[tokio::test]
async fn who_is_called_too_late_for_an_answer_is_sent_away_and_the_next_one_is_called() {
    let app = app(3, Duration::from_millis(300)).await;
    let three = AdaptiveConcurrency { min_concurrency: 3, max_concurrency: 3, ..LEARNS };
    let patient = Queue { max_requests: Some(100), max_wait_ms: 5_000, target_ms: 5_000, ..LINE };
    let guarded = |request_ms| {
        let v1::policy::Spec::Traffic(mut traffic) = spec(three, patient) else { unreachable!() };
        traffic.timeouts = Some(v1::Timeouts { request_ms, ..Default::default() });
        policy("gate", "reviews", v1::policy::Spec::Traffic(traffic))
    };
    let (mut gateway, address) = gateway_before(app.address, vec![guarded(0)]).await;
    let calls = |count| (0..count).map(|_| call(address, "a", "high")).collect::<Vec<_>>();
    // So many answers say how long they take.
    for one in calls(20) {
        answered(one, "HTTP/1.1 200").await;
    }
    gateway.change([guarded(500)]).await;
    app.came.lock().clear();
    let (mut sent_away, mut late) = (0, String::new());
    for one in calls(30) {
        let response = one.await.expect("it is not aborted");
        if response.ends_with("overload\n") {
            (sent_away, late) = (sent_away + 1, response);
        }
    }
    assert_eq!((app.came.lock().len(), sent_away), (3, 27));
    assert!(late.starts_with("HTTP/1.1 503"), "{late}");
    assert_eq!(gateway.metric(SHED, &[SERVICE, "reason=\"queue_time\""]), 27);
    let passed = gateway.metric("meshwork_overload_passed_requests_total", &[SERVICE]);
    assert_eq!(passed, 20 + 3, "what has come to the application");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
    let lines = gateway.lines(50).await;
    let told = lines.iter().filter(|line| {
        line.contains("(queue_time, priority high): ") && line.contains("the fastest answer of late took 3")
    });
    assert_eq!(told.count(), 27, "{lines:?}");
    answered(call(address, "b", "high"), "HTTP/1.1 200").await;
}

/// Four workers of 40 ms can do 100 a second. The bounds leave room for machines that are busy otherwise.
#[tokio::test]
async fn two_callers_that_know_nothing_of_each_other_leave_a_service_what_it_can_do() {
    let app = app(4, Duration::from_millis(40)).await;
    let with_defaults = || vec![overload(LEARNS, LINE)];
    let ((_a, a), (_b, b)) = tokio::join!(
        gateway_before(app.address, with_defaults()),
        gateway_before(app.address, with_defaults())
    );
    let second = Duration::from_secs(1);
    tokio::join!(load(a, 25, second, 10), load(b, 25, second, 10));
    let both = tokio::join!(load(a, 150, 4 * second, 10), load(b, 150, 4 * second, 10));
    let ([low_a, high_a], [low_b, high_b]) = both;
    let good = [&low_a, &high_a, &low_b, &high_b].into_iter().map(|came| came.good).sum::<usize>();
    let all = format!("low {low_a:?} {low_b:?}, high {high_a:?} {high_b:?}");
    assert!(good >= 4 * 100 * 7 / 10, "{all}");
    let high = (high_a.good + high_b.good, high_a.sent + high_b.sent);
    assert!(high.0 * 100 >= high.1 * 90, "{all}");
    println!("{all}");
}
