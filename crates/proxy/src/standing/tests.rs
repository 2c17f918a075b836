use meshwork_decision::{Change, Entered, Pass, Priority, Snapshot, SnapshotBuilder};
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
        queue: Some(Queue { max_requests: 1, max_wait_ms: 1_000, ..Default::default() }),
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
    assert!(of_app(port).expect("a policy says it").limits.is_empty(), "nothing is known yet");
    let (gate, overload) = port.guard().expect("a policy says it");
    let enter = || gate.enter(overload, Priority::Default, Tick::ZERO, || |_: Result<Pass, Shed>| ());
    let held = [enter(), enter()];
    assert!(matches!(held, [Ok(Entered::Passed(_)), Ok(Entered::Waits(_))]), "{held:?}");
    assert_eq!(enter().expect_err("only one may wait"), Shed::QueueFull);
    let told = of_app(port).expect("a policy says it");
    assert_eq!((&*told.service, told.port), ("shop/reviews", 80));
    let limits: Vec<_> = told.limits.iter().map(|l| (&*l.limit, l.in_use, l.allowed, l.rejected)).collect();
    assert_eq!(limits, [("overload.adaptiveConcurrency", 1, 1, 1), ("overload.queue.maxRequests", 1, 1, 1)]);
    let [state] = &stats::of(&MetricsRegistry::default(), &snapshot, Tick::ZERO).overloads[..] else {
        panic!("one service")
    };
    assert_eq!((&*state.service, state.port), ("shop/reviews", 80));
    assert_eq!((state.in_flight, state.limit, state.queued, state.shed), (1, 1, 1, 1));
}
