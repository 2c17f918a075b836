use meshwork_base::ManualClock;
use meshwork_decision::{BreakerState, Change, SnapshotBuilder};

use super::*;

/// Service `ns/a` with port 80, and a route with a rule `pay`, of which each has a breaker.
fn snapshot() -> std::sync::Arc<Snapshot> {
    let service = v1::Service {
        ports: vec![v1::ServicePort { name: "http".into(), port: 80, protocol: 0 }],
        ..Default::default()
    };
    let source = |kind: &str, name: &str| {
        Some(v1::Source {
            kind: kind.into(),
            namespace: "ns".into(),
            name: name.into(),
            ..Default::default()
        })
    };
    let parent = v1::route::attachment::Parent::Service("ns/a".into());
    let any = v1::StringMatch { kind: Some(v1::string_match::Kind::Prefix("/".into())) };
    let rule = v1::Rule {
        name: "pay".into(),
        matches: vec![v1::Match { path: Some(any), ..Default::default() }],
        ..Default::default()
    };
    let route = v1::Route {
        source: source("HTTPRoute", "r"),
        attachments: vec![v1::route::Attachment { parent: Some(parent), ..Default::default() }],
        rules: vec![rule],
    };
    let target = v1::policy::Target { kind: "HTTPRoute".into(), name: "ns/r".into(), section: "pay".into() };
    let breaker = v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 10,
        failure_percent: 50,
        open_ms: 1_000,
        max_open_ms: 1_000,
        trials: 1,
        ..Default::default()
    };
    let traffic = v1::TrafficPolicy { circuit_breaker: Some(breaker), ..Default::default() };
    let spec = Some(v1::policy::Spec::Traffic(traffic));
    let policy = v1::Policy { source: None, targets: vec![target], spec };
    let mut builder = SnapshotBuilder::new();
    let rejected = builder.apply([
        Change::upsert("ns/a", "1", &service),
        Change::upsert("HTTPRoute/ns/r", "1", &route),
        Change::upsert("ns/p", "1", &policy),
    ]);
    assert!(rejected.is_empty(), "{rejected:?}");
    builder.build()
}

fn of_service(port: u32, state: State, until_unix_ms: u64) -> v1::BreakerForce {
    v1::BreakerForce {
        service: "ns/a".into(),
        port,
        state: state.into(),
        until_unix_ms,
        ..Default::default()
    }
}

fn of_route(route: &str, state: State, until_unix_ms: u64) -> v1::BreakerForce {
    v1::BreakerForce { route: route.into(), state: state.into(), until_unix_ms, ..Default::default() }
}

#[test]
fn what_is_forced_of_more_holds_from_the_moment_at_which_what_is_forced_of_less_ends() {
    let (clock, snapshot, metrics) = (ManualClock::new(), snapshot(), MetricsRegistry::default());
    let begins = u64::try_from(clock.wall().as_millis()).expect("milliseconds of this century");
    let mut forces = Forces::default();
    let said = [
        of_service(0, State::Open, begins + 10_000),
        of_service(80, State::Closed, begins + 2_000),
        of_route("ns/r", State::Open, begins + 10_000),
        of_route("ns/r/pay", State::Closed, begins + 2_000),
    ];
    forces.take(&said, &snapshot, &clock, &metrics);
    let cluster = snapshot.clusters().next().expect("one service");
    let [of_rule] = snapshot.route_breakers() else { panic!("one breaker: {:?}", snapshot.route_breakers()) };
    let met = || [cluster.breaker(clock.now()), of_rule.view(clock.now())].map(|view| view.in_effect());
    assert_eq!(met(), [BreakerState::Closed; 2]);
    clock.advance(Duration::from_secs(2));
    assert_eq!(met(), [BreakerState::Open; 2], "at once, before anybody tidies up");
    forces.tidy(clock.now(), &metrics);
    assert_eq!(met(), [BreakerState::Open; 2]);
    forces.take(
        &[of_service(0, State::None, 0), of_route("ns/r", State::None, 0)],
        &snapshot,
        &clock,
        &metrics,
    );
    assert_eq!(met(), [BreakerState::Closed; 2], "nothing is forced any more");
}

#[test]
fn what_is_forced_of_a_subset_holds_before_what_is_forced_of_its_service() {
    let held = |said: &[(&str, u32)]| {
        let force = |(service, port): &(&str, u32)| Of::Service((*service).into(), *port);
        let mut held: Vec<_> = said.iter().map(force).collect();
        held.sort_by_key(|of| std::cmp::Reverse(of.width()));
        held
    };
    let narrowest = Of::Service("ns/a/v2".into(), 0);
    assert_eq!(held(&[("ns/a", 0), ("ns/a/v2", 0)])[0], narrowest, "whichever was said first");
    assert_eq!(held(&[("ns/a/v2", 0), ("ns/a", 0)])[0], narrowest);
    assert_eq!(
        held(&[("ns/a", 80), ("ns/a/v2", 0)])[0],
        narrowest,
        "a port of all of it is more than all ports of a part"
    );
    assert_eq!(held(&[("ns/a/v2", 0), ("ns/a/v2", 80)])[0], Of::Service("ns/a/v2".into(), 80));
}
