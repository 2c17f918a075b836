use std::time::Duration;

use meshwork_base::SeededRng;
use meshwork_messages::v1;

use super::*;
use crate::breaker::{BreakerCause, Call};
use crate::tests::policies::traffic;
use crate::tests::{
    at_listener, at_service, backend, build, key, listener, path, prefix, route_message, rule, service,
    service_change, slice, wire_endpoint,
};
use crate::{Change, Explanation, NoReasons, OwnedRequest, Routed, Snapshot, SnapshotBuilder};

const OK: Call = Call { failed: false, took: Duration::from_millis(1) };
const FAILED: Call = Call { failed: true, ..OK };
const NOW: Tick = Tick::from_nanos(1_000_000_000);

fn breaking(minimum_calls: u32) -> v1::TrafficPolicy {
    let breaker = v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls,
        failure_percent: 50,
        open_ms: 1_000,
        max_open_ms: 60_000,
        trials: 1,
        ..Default::default()
    };
    v1::TrafficPolicy { circuit_breaker: Some(breaker), ..Default::default() }
}

fn at(kind: &str, name: &str, section: &str) -> v1::policy::Target {
    v1::policy::Target { kind: kind.into(), name: name.into(), section: section.into() }
}

/// Routes `app/r` with rules `one` and `two`, and `app/other`, to `app/s:80`.
fn world() -> Vec<Change> {
    let named = |name: &str, at: &str| v1::Rule {
        name: name.into(),
        backends: vec![backend("app/s", 80, 1)],
        ..rule(vec![path(prefix(at))])
    };
    let of = |name: &str, rules| {
        let message = route_message(name, 1, vec![at_listener("infra/gw/web", &[])], rules);
        Change::upsert(&format!("HTTPRoute/{name}"), "1", &message)
    };
    vec![
        listener("infra/gw/web", 80, ""),
        of("app/r", vec![named("one", "/one"), named("two", "/two")]),
        of("app/other", vec![named("one", "/other")]),
        service_change(&service("app/s", &[("http", 80)])),
        slice("app/s-1", "app/s", ("http", 8080), vec![wire_endpoint("10.0.0.1")]),
    ]
}

/// The breaker that calls of a path go by.
fn of(snapshot: &Snapshot, target: &str) -> Option<Arc<RouteBreaker>> {
    let request = OwnedRequest::get("h", target);
    match snapshot.bindings()[0].route(&request, None, &mut NoReasons) {
        Routed::Matched(matched) => matched.policy().breaker().cloned(),
        Routed::NotFound { cause, .. } => panic!("{target}: {cause}"),
    }
}

fn call(breaker: &Arc<RouteBreaker>, call: Call, now: Tick) -> Result<Option<BreakerCause>, Cause> {
    let ticket = breaker.try_call(now, &mut NoReasons)?.expect("it wants to know");
    Ok(ticket.ended(call, now, &mut SeededRng::new(1)).map(|(_, change)| change.cause))
}

fn opened(breaker: &Arc<RouteBreaker>) -> Option<BreakerCause> {
    (0..20).find_map(|_| call(breaker, FAILED, NOW).unwrap())
}

#[test]
fn a_route_s_breaker_counts_its_rules_together_and_a_rule_s_takes_its_place() {
    let mut builder = SnapshotBuilder::new();
    let wide = traffic("p/wide", at("HTTPRoute", "app/r", ""), breaking(4));
    let snapshot = build(&mut builder, world().into_iter().chain([wide]));
    let (one, two) = (of(&snapshot, "/one").unwrap(), of(&snapshot, "/two").unwrap());
    assert_eq!((&*one.name, one.to_string()), ("app/r", "HTTPRoute app/r".to_owned()));
    assert!(Arc::ptr_eq(&one, &two), "they are one");
    assert_eq!(of(&snapshot, "/other"), None, "another route");
    for (breaker, opens) in
        [(&one, None), (&two, None), (&one, None), (&two, Some(BreakerCause::FailureRate))]
    {
        assert_eq!(call(breaker, FAILED, NOW), Ok(opens));
    }
    assert_eq!(call(&one, OK, NOW), Err(Cause::CircuitBreaker));
    assert_eq!(one.view(NOW).refused, 1);

    let narrow = traffic("p/narrow", at("HTTPRoute", "app/r", "one"), breaking(4));
    let snapshot = build(&mut builder, [narrow]);
    let one = of(&snapshot, "/one").unwrap();
    assert_eq!(&*one.name, "app/r/one");
    assert_eq!(call(&one, OK, NOW), Ok(None), "it has counted nothing yet");
    let two = of(&snapshot, "/two").unwrap();
    assert_eq!(call(&two, OK, NOW), Err(Cause::CircuitBreaker), "the route's is open still");
    let names: Vec<_> = snapshot.route_breakers().iter().map(|breaker| &*breaker.name).collect();
    assert_eq!(names, ["app/r", "app/r/one"]);
    let snapshot = build(&mut builder, [Change::remove::<v1::Policy>("TrafficPolicy/p/narrow")]);
    assert_eq!(&*of(&snapshot, "/one").unwrap().name, "app/r");
    assert_eq!(snapshot.route_breakers().len(), 1);
}

#[test]
fn it_says_nothing_of_the_service_and_the_service_s_nothing_of_it() {
    let of_route = traffic("p/r", at("HTTPRoute", "app/r", ""), breaking(1));
    let of_service = traffic("p/s", at("Service", "app/s", ""), breaking(2));
    let mut builder = SnapshotBuilder::new();
    let snapshot = build(&mut builder, world().into_iter().chain([of_route, of_service]));
    let cluster = Arc::clone(snapshot.cluster(&key("app/s", 80)).unwrap());
    let breaker = of(&snapshot, "/one").unwrap();
    assert_eq!(opened(&breaker), Some(BreakerCause::FailureRate));
    assert_eq!(cluster.breaker(NOW).calls, 0);
    assert!(cluster.try_call(NOW, &mut NoReasons).is_ok(), "other routes go on");
    cluster.force_breaker(Some((ForcedState::Open, NOW.after(Duration::from_secs(9)))));
    assert!(breaker.view(NOW).forced.is_none());
    assert_eq!(of(&snapshot, "/other"), None);
}

#[test]
fn what_it_counts_outlives_a_change_of_its_policy_and_of_others() {
    let mut builder = SnapshotBuilder::new();
    let wide = |minimum| traffic("p/wide", at("HTTPRoute", "app/r", ""), breaking(minimum));
    let snapshot = build(&mut builder, world().into_iter().chain([wide(4)]));
    let before = of(&snapshot, "/one").unwrap();
    assert!(opened(&before).is_some());
    let other = traffic("p/other", at("HTTPRoute", "app/other", ""), breaking(1));
    let snapshot = build(&mut builder, [other]);
    assert!(Arc::ptr_eq(&before, &of(&snapshot, "/one").unwrap()), "nothing has changed for it");
    assert_eq!(&*of(&snapshot, "/other").unwrap().name, "app/other");
    let snapshot = build(&mut builder, [wide(8)]);
    let after = of(&snapshot, "/one").unwrap();
    assert_eq!(after.policy.minimum_calls, 8);
    assert_eq!(call(&after, OK, NOW), Err(Cause::CircuitBreaker), "it is open still");
    // Who has begun under the old policy ends under it, and counts.
    let later = NOW.after(Duration::from_secs(2));
    let trial = before.try_call(later, &mut NoReasons).unwrap().unwrap();
    assert_eq!(call(&after, OK, later), Err(Cause::CircuitBreaker), "one trial is under way");
    drop(trial);
    assert_eq!(call(&after, OK, later), Ok(Some(BreakerCause::TrialsSucceeded)), "its place was given back");
}

#[test]
fn an_operator_s_word_stands_above_it_and_a_refusal_says_why() {
    let mut builder = SnapshotBuilder::new();
    let wide = traffic("p/wide", at("HTTPRoute", "app/r", ""), breaking(4));
    let breaker = of(&build(&mut builder, world().into_iter().chain([wide])), "/one").unwrap();
    let end = NOW.after(Duration::from_secs(60));
    breaker.force(Some((ForcedState::Open, end)));
    let mut told = Explanation::default();
    assert_eq!(breaker.try_call(NOW, &mut told).unwrap_err(), Cause::CircuitBreaker);
    let [reason] = &told.0[..] else { panic!("{told:?}") };
    assert_eq!(
        (reason.phase, reason.outcome, &*reason.subject),
        (Phase::Breaker, Outcome::Refused, "HTTPRoute app/r")
    );
    assert_eq!(reason.why, "an operator has forced it open for 60.0 s more");
    assert!(!breaker.is_closed(NOW) && breaker.is_closed(end), "it ends by itself");
    breaker.force(None);
    assert_eq!(call(&breaker, OK, NOW), Ok(None));
}

#[test]
fn a_route_of_a_service_has_one_too() {
    let rules = vec![v1::Rule { backends: vec![backend("app/s", 80, 1)], ..rule(vec![path(prefix("/"))]) }];
    let message = route_message("app/mesh", 1, vec![at_service("app/s", 0)], rules);
    let changes = world().into_iter().chain([
        Change::upsert("HTTPRoute/app/mesh", "1", &message),
        traffic("p/mesh", at("HTTPRoute", "app/mesh", ""), breaking(4)),
    ]);
    let snapshot = build(&mut SnapshotBuilder::new(), changes);
    let port = snapshot.service("app/s").unwrap().port(Some(80)).unwrap();
    let Routed::Matched(matched) = port.route(&OwnedRequest::get("s", "/"), &mut NoReasons) else {
        panic!("a rule takes it");
    };
    assert_eq!(matched.policy().breaker().map(|breaker| &*breaker.name), Some("app/mesh"));
}

#[test]
fn one_that_is_about_endpoints_is_none_of_a_route() {
    let mut said = breaking(1);
    said.circuit_breaker.as_mut().unwrap().per_endpoint = Some(true);
    let wide = traffic("p/wide", at("HTTPRoute", "app/r", ""), said);
    let snapshot = build(&mut SnapshotBuilder::new(), world().into_iter().chain([wide]));
    assert_eq!(of(&snapshot, "/one"), None);
}
