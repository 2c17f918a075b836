//! Policies by what they hang on: the narrower wins field by field, and only what they speak of is rebuilt.

use std::time::Duration;

use super::*;

pub(super) fn target(kind: &str, name: &str, section: &str) -> v1::policy::Target {
    v1::policy::Target { kind: kind.into(), name: name.into(), section: section.into() }
}

pub(crate) fn traffic(name: &str, at: v1::policy::Target, traffic: v1::TrafficPolicy) -> Change {
    let message = v1::Policy {
        source: source("TrafficPolicy", name, 0),
        targets: vec![at],
        spec: Some(v1::policy::Spec::Traffic(traffic)),
    };
    Change::upsert(&format!("TrafficPolicy/{name}"), "1", &message)
}

fn times(request_ms: u32, connect_ms: u32, idle_ms: u32) -> v1::TrafficPolicy {
    let timeouts = Some(v1::Timeouts { request_ms, connect_ms, idle_ms, ..Default::default() });
    v1::TrafficPolicy { timeouts, ..Default::default() }
}

pub(super) fn retries(attempts: u32) -> v1::TrafficPolicy {
    let retry = Some(v1::Retry { attempts: Some(attempts), ..crate::tests::bare_retry() });
    v1::TrafficPolicy { retry, ..Default::default() }
}

/// One route `app/r` with two rules to `app/s:80`, on listener `infra/gw/web`.
pub(super) fn world() -> Vec<Change> {
    let named = |name: &str, at: &str| v1::Rule {
        name: name.into(),
        backends: vec![backend("app/s", 80, 1)],
        ..rule(vec![path(prefix(at))])
    };
    let own = v1::Rule { request_timeout_ms: 77, ..named("own", "/own") };
    let rules = vec![named("one", "/one"), named("two", "/two"), own];
    let message = route_message("app/r", 1, vec![at_listener("infra/gw/web", &[])], rules);
    vec![
        listener("infra/gw/web", 80, ""),
        Change::upsert("HTTPRoute/app/r", "1", &message),
        service_change(&service("app/s", &[("http", 80)])),
    ]
}

/// Request, connect and idle time in milliseconds, and retries, for a path.
fn effective(snapshot: &Snapshot, target: &str) -> [Option<u128>; 4] {
    let request = OwnedRequest::get("h", target);
    let Routed::Matched(m) = snapshot.bindings()[0].route(&request, None, &mut NoReasons) else {
        panic!("{target} has a rule");
    };
    let cluster = m.rule().backends[0].cluster().unwrap();
    let timeouts = m.policy().timeouts(Some(cluster));
    let ms = |d: Option<Duration>| d.map(|d| d.as_millis());
    let retries = m.policy().retry(cluster).map(|r| r.attempts.into());
    [ms(timeouts.request), ms(timeouts.connect), ms(timeouts.idle), retries]
}

#[test]
fn the_narrower_target_wins_field_by_field() {
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, world());
    let mut step = |change| {
        let snapshot = build(&mut builder, [change]);
        (effective(&snapshot, "/one"), effective(&snapshot, "/two"), effective(&snapshot, "/own"))
    };
    // From wide to narrow; each adds what it says and leaves the rest.
    let gateway_ns = target("Namespace", "infra", "");
    let (one, _, own) = step(traffic("p/1", gateway_ns, times(1, 1, 1)));
    assert_eq!(one, [Some(1), Some(1), Some(1), None]);
    assert_eq!(own[0], Some(77), "the route's own word is the last");
    let (one, ..) = step(traffic("p/2", target("Namespace", "app", ""), retries(2)));
    assert_eq!(one, [Some(1), Some(1), Some(1), Some(2)]);
    let (one, ..) = step(traffic("p/3", target("Gateway", "infra/gw", ""), times(3, 3, 0)));
    assert_eq!(one, [Some(3), Some(3), Some(1), Some(2)]);
    let (one, ..) = step(traffic("p/4", target("Gateway", "infra/gw", "web"), times(4, 0, 0)));
    assert_eq!(one, [Some(4), Some(3), Some(1), Some(2)]);
    let (one, ..) = step(traffic("p/5", target("Service", "app/s", ""), retries(5)));
    assert_eq!(one, [Some(4), Some(3), Some(1), Some(5)]);
    let (one, ..) = step(traffic("p/6", target("Service", "app/s", "http"), times(6, 6, 0)));
    assert_eq!(one, [Some(6), Some(6), Some(1), Some(5)]);
    let (one, ..) = step(traffic("p/5", target("Service", "app/s", ""), times(5, 5, 0)));
    assert_eq!(one, [Some(6), Some(6), Some(1), Some(2)], "the port's word before the service's");
    step(traffic("p/5", target("Service", "app/s", ""), retries(5)));
    let (one, ..) = step(traffic("p/7", target("HTTPRoute", "app/r", ""), times(7, 0, 0)));
    assert_eq!(one, [Some(7), Some(6), Some(1), Some(5)]);
    let (one, two, own) = step(traffic("p/8", target("HTTPRoute", "app/r", "one"), retries(8)));
    assert_eq!(one, [Some(7), Some(6), Some(1), Some(8)]);
    assert_eq!(two, [Some(7), Some(6), Some(1), Some(5)], "another rule");
    assert_eq!(own, [Some(77), Some(6), Some(1), Some(5)]);
    let (one, ..) = step(Change::remove::<v1::Policy>("TrafficPolicy/p/7"));
    assert_eq!(one, [Some(6), Some(6), Some(1), Some(8)], "what is removed no longer speaks");
}

#[test]
fn at_one_level_the_older_policy_wins() {
    let of = |name: &str, created, ms| {
        let message = v1::Policy {
            source: source("TrafficPolicy", name, created),
            targets: vec![target("Gateway", "infra/gw", "")],
            spec: Some(v1::policy::Spec::Traffic(times(ms, 0, 0))),
        };
        Change::upsert(&format!("TrafficPolicy/{name}"), "1", &message)
    };
    let snapshot = snapshot(world().into_iter().chain([of("a/young", 2, 10), of("z/old", 1, 20)]));
    assert_eq!(effective(&snapshot, "/one")[0], Some(20));
}

#[test]
fn limits_and_algorithm_reach_the_cluster_and_its_counts_survive() {
    let mut builder = SnapshotBuilder::new();
    let before = build(&mut builder, world());
    let cluster = |s: &Snapshot| Arc::clone(s.cluster(&key("app/s", 80)).unwrap());
    let held = cluster(&before).admit(Limited::Request).unwrap();
    let limits = v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        limits: Some(v1::Limits { max_requests: 1, ..Default::default() }),
        ..Default::default()
    };
    let wide = v1::TrafficPolicy {
        limits: Some(v1::Limits { max_requests: 9, max_retries: 3, ..Default::default() }),
        ..Default::default()
    };
    let after = build(
        &mut builder,
        [
            traffic("p/s", target("Service", "app/s", ""), limits),
            traffic("p/n", target("Namespace", "app", ""), wide),
        ],
    );
    let now = cluster(&after);
    assert_eq!(
        (now.algorithm, now.limits.max_requests, now.limits.max_retries),
        (Algorithm::RoundRobin, Some(1), Some(3))
    );
    assert_eq!(now.admit(Limited::Request).unwrap_err(), Cause::MaxRequests, "what began before counts");
    drop(held);
    assert!(now.admit(Limited::Request).is_ok());
    let Routed::Matched(m) = after.bindings()[0].route(&OwnedRequest::get("h", "/one"), None, &mut NoReasons)
    else {
        panic!("a rule takes it");
    };
    assert!(Arc::ptr_eq(m.rule().backends[0].cluster().unwrap(), &now), "routes lead to the new cluster");
}

fn authorization(
    name: &str,
    at: v1::policy::Target,
    action: i32,
    rules: Vec<v1::AuthorizationRule>,
) -> v1::Policy {
    let spec = v1::AuthorizationPolicy { action, rules };
    v1::Policy {
        source: source("AuthorizationPolicy", name, 0),
        targets: vec![at],
        spec: Some(v1::policy::Spec::Authorization(spec)),
    }
}

#[test]
fn authorization_reaches_rules_of_the_gateway_and_ports_of_the_instance() {
    let deny = v1::authorization_policy::Action::Deny.into();
    let all = || vec![v1::AuthorizationRule::default()];
    let at = |name: &str, kind, of, section| {
        let message = authorization(name, target(kind, of, section), deny, all());
        Change::upsert(&format!("AuthorizationPolicy/{name}"), "1", &message)
    };
    let served = v1::workload::Served {
        service: "app/s".into(),
        service_port: 80,
        app_port: 8080,
        ..Default::default()
    };
    let workload = v1::Workload {
        spiffe_id: "spiffe://m/ns/app/sa/s".into(),
        services: vec![served],
        ..Default::default()
    };
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, world().into_iter().chain([Change::upsert("app/s-1", "1", &workload)]));
    let mut denied = |change| {
        let snapshot = build(&mut builder, [change]);
        let rule = |target: &str| {
            let request = OwnedRequest::get("h", target);
            match snapshot.bindings()[0].route(&request, None, &mut NoReasons) {
                Routed::Matched(m) => m.policy().authorization.check(&request, &mut NoReasons).is_err(),
                Routed::NotFound { .. } => panic!("a rule takes it"),
            }
        };
        let port = &snapshot.inbound().unwrap().ports[0];
        let inbound = port.authorization.check(&OwnedRequest::get("s", "/"), &mut NoReasons).is_err();
        [rule("/one"), rule("/two"), inbound]
    };
    assert_eq!(denied(at("p/a", "HTTPRoute", "app/r", "one")), [true, false, false]);
    assert_eq!(denied(at("p/a", "HTTPRoute", "app/other", "")), [false, false, false]);
    assert_eq!(denied(at("p/a", "Gateway", "infra/gw", "")), [true, true, false]);
    assert_eq!(denied(at("p/a", "Gateway", "infra/gw", "other")), [false, false, false]);
    assert_eq!(denied(at("p/a", "Namespace", "infra", "")), [true, true, false]);
    assert_eq!(denied(at("p/a", "Namespace", "app", "")), [false, false, true]);
    assert_eq!(denied(at("p/a", "Service", "app/s", "http")), [false, false, true]);
    assert_eq!(denied(at("p/a", "Service", "app/s", "")), [false, false, true]);
}

#[test]
fn authorization_that_is_not_understood_closes_what_it_protects() {
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, world());
    let unknown_action = authorization("p/a", target("Gateway", "infra/gw", ""), 99, vec![]);
    let good = authorization(
        "p/a",
        target("Gateway", "infra/gw", ""),
        v1::authorization_policy::Action::Audit.into(),
        vec![],
    );
    let verdict = |snapshot: &Snapshot| {
        let request = OwnedRequest::get("h", "/one");
        match snapshot.bindings()[0].route(&request, None, &mut NoReasons) {
            Routed::Matched(m) => {
                m.policy().authorization.check(&request, &mut NoReasons).map_err(|d| d.cause)
            }
            Routed::NotFound { cause, .. } => Err(cause),
        }
    };
    let name = "AuthorizationPolicy/p/a";
    let rejections = builder.apply([Change::upsert(name, "1", &unknown_action)]);
    assert_eq!(rejections[0].severity, Severity::Closed);
    assert_eq!(verdict(&builder.build()), Err(Cause::AuthorizationUnknown));

    assert_eq!(verdict(&build(&mut builder, [Change::upsert(name, "2", &good)])), Ok(()));
    let rejections = builder.apply([Change::upsert(name, "3", &unknown_action)]);
    assert_eq!(rejections[0].severity, Severity::Error);
    assert_eq!(verdict(&builder.build()), Ok(()), "the previous version stays in force");
    let lacking = |name: &str, message: &v1::Policy| Change::Unsupported {
        type_url: meshwork_messages::type_url::<v1::Policy>().into(),
        name: name.into(),
        body: prost::Message::encode_to_vec(message).into(),
    };
    builder.apply([lacking(name, &good)]);
    assert_eq!(verdict(&builder.build()), Ok(()), "the previous version protects");
    assert_eq!(verdict(&build(&mut builder, [Change::remove::<v1::Policy>(name)])), Ok(()));
    builder.apply([lacking(name, &good)]);
    assert_eq!(
        verdict(&builder.build()),
        Err(Cause::AuthorizationUnknown),
        "nobody knows what it would refuse"
    );
    assert_eq!(verdict(&build(&mut builder, [Change::remove::<v1::Policy>(name)])), Ok(()));
    let unknown_kind = v1::Policy { targets: vec![target("Gateway", "infra/gw", "")], ..Default::default() };
    let rejections = builder.apply([Change::upsert("FuturePolicy/p/b", "1", &unknown_kind)]);
    assert_eq!(rejections[0].severity, Severity::Closed, "a kind from the future may be an authorization");
    assert_eq!(verdict(&builder.build()), Err(Cause::AuthorizationUnknown));
}

fn hedges(delay: v1::hedge::Delay, budget_percent: u32) -> v1::TrafficPolicy {
    let hedge = Some(v1::Hedge { delay: Some(delay), least_ms: Some(3), budget_percent });
    v1::TrafficPolicy { hedge, ..Default::default() }
}

#[test]
fn of_hedges_too_the_narrower_word_counts() {
    use crate::{HedgeDelay, HedgePolicy};
    use v1::hedge::Delay::{FixedMs, Percentile};
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, world());
    let mut step = |change| {
        let snapshot = build(&mut builder, [change]);
        let request = OwnedRequest::get("h", "/one");
        let Routed::Matched(m) = snapshot.bindings()[0].route(&request, None, &mut NoReasons) else {
            panic!("it has a rule");
        };
        m.policy().hedge(m.rule().backends[0].cluster().unwrap()).copied()
    };
    let fixed = |ms| HedgePolicy { delay: HedgeDelay::Fixed(Duration::from_millis(ms)), budget_percent: 10 };
    let wide = step(traffic("p/1", target("Namespace", "app", ""), hedges(FixedMs(1), 10)));
    assert_eq!(wide, Some(fixed(1)));
    let gateway = step(traffic("p/2", target("Gateway", "infra/gw", ""), hedges(FixedMs(2), 10)));
    assert_eq!(gateway, Some(fixed(2)));
    let service = step(traffic("p/3", target("Service", "app/s", ""), hedges(Percentile(95), 7)));
    let least = Duration::from_millis(3);
    let learnt = HedgePolicy { delay: HedgeDelay::Percentile { percent: 95, least }, budget_percent: 7 };
    assert_eq!(service, Some(learnt));
    let route = step(traffic("p/4", target("HTTPRoute", "app/r", "one"), hedges(FixedMs(4), 10)));
    assert_eq!(route, Some(fixed(4)));
    let other = step(traffic("p/4", target("HTTPRoute", "app/r", "one"), retries(1)));
    assert_eq!(other, Some(learnt), "who says nothing of it stands in nobody's way");
}

#[test]
fn a_hedge_that_cannot_be_is_refused() {
    use v1::hedge::Delay::{FixedMs, Percentile};
    for (delay, budget, place) in [
        (FixedMs(0), 10, "hedge.fixed_ms"),
        (Percentile(100), 10, "hedge.percentile"),
        (Percentile(10), 10, "hedge.percentile"),
        (FixedMs(1), 101, "hedge.budget_percent"),
    ] {
        let policy = traffic("p/1", target("Service", "app/s", ""), hedges(delay, budget));
        let rejections = SnapshotBuilder::new().apply([policy]);
        assert!(rejections.len() == 1 && rejections[0].message.contains(place), "{place}: {rejections:?}");
    }
}
