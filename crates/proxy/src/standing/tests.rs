use meshwork_base::SeededRng;
use meshwork_decision::{
    Call, Change, ClusterKey, Entered, NoReasons, Pass, Priority, Snapshot, SnapshotBuilder, Wanted,
};
use meshwork_messages::v1::overload::{AdaptiveConcurrency, Queue};
use meshwork_telemetry::MetricsRegistry;

use super::*;
use crate::stats;

/// The application beside us serves `shop/reviews`, one request at a time, while one waits.
fn beside_reviews() -> Arc<Snapshot> {
    let served = v1::workload::Served {
        service: "shop/reviews".into(),
        service_port: 80,
        app_port: 8080,
        ..Default::default()
    };
    let workload = v1::Workload {
        spiffe_id: "spiffe://mesh.local/ns/shop/sa/reviews".into(),
        services: vec![served],
        ..Default::default()
    };
    let overload = v1::Overload {
        adaptive_concurrency: Some(AdaptiveConcurrency {
            min_concurrency: 1,
            max_concurrency: 1,
            update_interval_ms: 100,
            ..Default::default()
        }),
        queue: Some(Queue { max_requests: Some(1), max_wait_ms: 1_000, ..Default::default() }),
        priorities: Vec::new(),
    };
    let traffic = v1::TrafficPolicy { overload: Some(overload), ..Default::default() };
    let policy = v1::Policy {
        source: Some(v1::Source {
            kind: "TrafficPolicy".into(),
            name: "gate".into(),
            namespace: "shop".into(),
            ..Default::default()
        }),
        targets: vec![v1::policy::Target {
            kind: "Service".into(),
            name: "shop/reviews".into(),
            section: String::new(),
        }],
        spec: Some(v1::policy::Spec::Traffic(traffic)),
    };
    let mut builder = SnapshotBuilder::new();
    let rejected = builder
        .apply([Change::upsert("shop/reviews-1", "1", &workload), Change::upsert("shop/gate", "1", &policy)]);
    assert!(rejected.is_empty(), "{rejected:?}");
    builder.build()
}

#[test]
fn what_the_application_beside_us_gets_at_once_is_told_once_somebody_asked() {
    let snapshot = beside_reviews();
    let port = snapshot.inbounds().flat_map(|inbound| &inbound.ports).next().expect("one port");
    let of_app = |port| of_app(port, Tick::ZERO);
    assert!(of_app(port).expect("a policy says it").limits.is_empty(), "nothing is known yet");
    let (gate, overload) = port.guard().expect("a policy says it");
    let enter = || gate.enter(overload, Priority::Default, Tick::ZERO, || |_: Result<Pass, Shed>| ());
    let held = [enter(), enter()];
    assert!(matches!(held, [Ok(Entered::Passed(_)), Ok(Entered::Waits(_))]), "{held:?}");
    assert_eq!(enter().expect_err("only one may wait"), Shed::QueueFull);
    let told = of_app(port).expect("a policy says it");
    assert_eq!((&*told.service, told.port), ("shop/reviews", 80));
    assert_eq!(told.limits[0].shedding, "queue_full");
    let limits: Vec<_> = told.limits.iter().map(|l| (&*l.limit, l.in_use, l.allowed, l.rejected)).collect();
    assert_eq!(limits, [("overload.adaptiveConcurrency", 1, 1, 1), ("overload.queue.maxRequests", 1, 1, 1)]);
    let [state] = &stats::of(&MetricsRegistry::default(), &snapshot, Tick::ZERO).overloads[..] else {
        panic!("one service")
    };
    assert_eq!((&*state.service, state.port), ("shop/reviews", 80));
    assert_eq!((state.in_flight, state.limit, state.queued, state.shed), (1, 1, 1, 1));
}

/// The service `shop/reviews` with three endpoints, of which each has a breaker.
pub(crate) fn each_with_a_breaker(mode: v1::circuit_breaker::Mode) -> Arc<Snapshot> {
    let service = v1::Service {
        ports: vec![v1::ServicePort { name: "http".into(), port: 80, ..Default::default() }],
        ..Default::default()
    };
    let endpoint = |number: u8| v1::Endpoint {
        addresses: vec![format!("10.0.0.{number}")],
        health: v1::endpoint::Health::Healthy.into(),
        weight: 1,
        instance: format!("reviews-{number}"),
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: "shop/reviews".into(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: 9000 }],
        endpoints: (1..=3).map(endpoint).collect(),
        ..Default::default()
    };
    let circuit_breaker = Some(v1::CircuitBreaker {
        mode: mode.into(),
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 4,
        failure_percent: 50,
        open_ms: 60_000,
        max_open_ms: 60_000,
        trials: 1,
        per_endpoint: Some(true),
        ..Default::default()
    });
    let target =
        v1::policy::Target { kind: "Service".into(), name: "shop/reviews".into(), section: String::new() };
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    let traffic = v1::TrafficPolicy { circuit_breaker, algorithm, ..Default::default() };
    let spec = Some(v1::policy::Spec::Traffic(traffic));
    let changes = [
        Change::upsert("shop/reviews", "1", &service),
        Change::upsert("shop/reviews-1", "1", &slice),
        Change::upsert(
            "TrafficPolicy/shop/p",
            "1",
            &v1::Policy { source: None, targets: vec![target], spec },
        ),
    ];
    let mut builder = SnapshotBuilder::new();
    assert_eq!(builder.apply(changes), []);
    builder.build()
}

pub(crate) fn reviews(snapshot: &Snapshot) -> &Arc<Cluster> {
    snapshot.cluster(&ClusterKey::whole("shop/reviews".into(), 80)).expect("it is there")
}

/// So many calls by turns to each endpoint, of which the last so many fail.
fn calls(cluster: &Arc<Cluster>, each: u32, failing: [u32; 3]) {
    let (mut left, mut rng) = ([each; 3], SeededRng::new(1));
    for _ in 0..3 * each {
        let called = cluster.call(Tick::ZERO, &mut rng, &Wanted::default(), &mut NoReasons);
        let (picked, ticket) = called.expect("somebody is there");
        let at = cluster
            .endpoints()
            .all()
            .iter()
            .position(|of| of.id == picked.endpoint.id)
            .expect("one of three");
        let failed = (1..=failing[at]).contains(&left[at]);
        left[at] = left[at].saturating_sub(1);
        drop(ticket.expect("it has a breaker").ended(
            Call { failed, took: Duration::ZERO },
            Tick::ZERO,
            &mut rng,
        ));
    }
}

#[test]
fn of_endpoints_those_that_are_not_closed_are_told_and_of_the_others_the_nearest_to_it() {
    let snapshot = each_with_a_breaker(v1::circuit_breaker::Mode::Enforce);
    let cluster = reviews(&snapshot);
    calls(cluster, 10, [1, 3, 2]);
    let told = endpoint_breakers(cluster, Tick::ZERO);
    let nearest = told.nearest.expect("all are closed");
    assert_eq!((&*nearest.0.instance, nearest.1.headroom), ("reviews-2", Some(20)));
    assert_eq!((told.counts, told.tripped.len()), ([3, 0, 0], 0));
    calls(cluster, 2, [0, 2, 0]);
    let told = endpoint_breakers(cluster, Tick::ZERO);
    let nearest = told.nearest.expect("two are closed");
    assert_eq!((&*nearest.0.instance, nearest.1.headroom), ("reviews-3", Some(30)));
    let tripped: Vec<_> = told.tripped.iter().map(|(endpoint, _)| &*endpoint.instance).collect();
    assert_eq!((told.counts, tripped), ([2, 1, 0], vec!["reviews-2"]));
}

#[test]
fn what_a_policy_forces_of_endpoints_is_told_of_each() {
    use v1::circuit_breaker::Mode;
    let states = |mode| {
        let snapshot = each_with_a_breaker(mode);
        let told = endpoint_breakers(reviews(&snapshot), Tick::ZERO);
        let stats = stats::of(&MetricsRegistry::default(), &snapshot, Tick::ZERO);
        let open = stats.breakers.iter().filter(|breaker| breaker.state == "open").count();
        (told.counts, told.tripped.len(), open)
    };
    assert_eq!(states(Mode::ForcedOpen), ([0, 3, 0], 3, 3));
    assert_eq!(states(Mode::ForcedClosed), ([3, 0, 0], 0, 0));
    let snapshot = each_with_a_breaker(Mode::Observe);
    calls(reviews(&snapshot), 4, [0, 4, 0]);
    let told = endpoint_breakers(reviews(&snapshot), Tick::ZERO);
    assert_eq!((told.counts, told.tripped.len()), ([3, 0, 0], 1), "it would be open, and refuses nobody");
    let stats = stats::of(&MetricsRegistry::default(), &snapshot, Tick::ZERO);
    let observed: Vec<_> = stats.breakers.iter().map(|is| (&*is.state, &*is.observed)).collect();
    assert_eq!(observed, [("closed", "open"), ("closed", "")], "and the nearest of the others");
}
