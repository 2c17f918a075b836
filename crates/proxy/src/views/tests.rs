use meshwork_decision::{Answer, AttemptOutcome, Change, ClusterKey, SnapshotBuilder};

use super::*;

fn at(seconds: u64) -> Tick {
    Tick::ZERO.after(Duration::from_secs(seconds))
}

/// The endpoints of `shop/a`.
fn four() -> v1::EndpointSlice {
    let endpoint = |number: u8| v1::Endpoint {
        addresses: vec![format!("10.0.0.{number}")],
        health: v1::endpoint::Health::Healthy.into(),
        weight: 1,
        instance: format!("a-{number}"),
        ..Default::default()
    };
    v1::EndpointSlice {
        service: "shop/a".into(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: 9000 }],
        endpoints: (1..=4).map(endpoint).collect(),
        ..Default::default()
    }
}

/// `shop/a`, of whose endpoints two failures in a row eject one, for everybody when others say so too.
fn changes(slice: &v1::EndpointSlice) -> [Change; 3] {
    let service = v1::Service {
        ports: vec![v1::ServicePort { name: "http".into(), port: 80, ..Default::default() }],
        ..Default::default()
    };
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: Some(2),
        base_ejection_time_ms: 30_000,
        max_ejection_time_ms: 300_000,
        max_ejection_percent: 50,
        interval_ms: 10_000,
        shared: Some(v1::outlier_detection::Shared { observers: 2, percent: Some(50) }),
        ..v1::OutlierDetection::default()
    });
    let target = v1::policy::Target { kind: "Service".into(), name: "shop/a".into(), section: String::new() };
    let spec = v1::policy::Spec::Traffic(v1::TrafficPolicy { outlier_detection, ..Default::default() });
    let policy = v1::Policy { source: None, targets: vec![target], spec: Some(spec) };
    [
        Change::upsert("shop/a", "1", &service),
        Change::upsert("shop/a-1", "1", slice),
        Change::upsert("TrafficPolicy/shop/p", "1", &policy),
    ]
}

/// All of them.
fn snapshot() -> Arc<Snapshot> {
    let mut builder = SnapshotBuilder::new();
    assert_eq!(builder.apply(changes(&four())), []);
    builder.build()
}

/// One request to the endpoint with this number.
fn calls(snapshot: &Snapshot, number: usize, outcome: AttemptOutcome, now: Tick) {
    let cluster = snapshot.cluster(&ClusterKey::whole("shop/a".into(), 80)).unwrap();
    cluster.count_request(now);
    let status = if outcome == AttemptOutcome::Success { 200 } else { 500 };
    let answer = Answer { status, ..Answer::new(outcome, Duration::from_millis(1)) };
    cluster.record(&cluster.endpoints().all()[number - 1], &answer, now);
}

/// What is told: the numbers of endpoints that were called, and of those that are ejected.
fn told(told: &mut Told, snapshot: &Snapshot, now: Tick) -> Option<(Vec<usize>, Vec<usize>)> {
    let views = told.next(snapshot, now)?;
    let cluster = snapshot.cluster(&ClusterKey::whole("shop/a".into(), 80)).unwrap();
    let set = cluster.endpoints();
    let numbers = |fits: &dyn Fn(&Endpoint) -> bool| -> Vec<usize> {
        (1..=4).filter(|number| fits(&set.all()[number - 1])).collect()
    };
    let [view] = &views.services[..] else { return Some((vec![], vec![])) };
    assert_eq!((&*view.service, view.port), ("shop/a", 80));
    let called = numbers(&|endpoint| view.called.contains(&endpoint.fingerprint));
    let is_out = |endpoint: &Endpoint| view.ejected.iter().any(|out| *out.instance == *endpoint.instance);
    Some((called, numbers(&is_out)))
}

#[test]
fn who_was_called_is_told_with_what_is_told_anyway() {
    let (snapshot, mut last) = (snapshot(), Told::default());
    assert_eq!(told(&mut last, &snapshot, at(1)), None, "nobody calls it");
    let (well, badly) = (AttemptOutcome::Success, AttemptOutcome::Failure);
    calls(&snapshot, 1, well, at(1));
    calls(&snapshot, 2, badly, at(1));
    assert_eq!(told(&mut last, &snapshot, at(1)), Some((vec![1, 2], vec![])));
    calls(&snapshot, 3, well, at(2));
    assert_eq!(told(&mut last, &snapshot, at(2)), None, "that is no news");
    assert_eq!(told(&mut last, &snapshot, at(6)), Some((vec![1, 2, 3], vec![])), "it is said again");
    calls(&snapshot, 2, badly, at(7));
    assert_eq!(told(&mut last, &snapshot, at(7)), Some((vec![1, 2, 3], vec![2])), "that is");
    calls(&snapshot, 4, well, at(70));
    assert_eq!(told(&mut last, &snapshot, at(70)), Some((vec![4], vec![])), "of the others it knows no more");
    assert_eq!(
        told(&mut last, &snapshot, at(90)),
        Some((vec![4], vec![])),
        "its opinion counts for a minute"
    );
    assert_eq!(told(&mut last, &snapshot, at(131)), Some((vec![], vec![])), "nobody calls it any more");
}

#[test]
fn what_others_said_while_the_control_plane_was_there_is_nothing_that_this_proxy_has_seen() {
    let mut endpoints = four();
    endpoints.endpoints[1].ejected = [("http".to_owned(), 2)].into();
    let mut builder = SnapshotBuilder::new();
    assert_eq!(builder.apply(changes(&endpoints)), []);
    let snapshot = builder.build();
    calls(&snapshot, 1, AttemptOutcome::Success, at(400));
    let cluster = snapshot.cluster(&ClusterKey::whole("shop/a".into(), 80)).unwrap();
    assert_eq!(cluster.unheard(Some(Duration::from_secs(300)), at(400)).len(), 1, "one is to be tried");
    assert!(cluster.endpoints().all()[1].stats.is_out());
    assert_eq!(told(&mut Told::default(), &snapshot, at(400)), Some((vec![1], vec![])));
}
