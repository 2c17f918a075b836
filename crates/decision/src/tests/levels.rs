//! Of many levels that say the same field the narrowest holds, and is told; without it, the next one.

use std::time::Duration;

use super::policies::{target, traffic};
use super::*;
use crate::origin::Origin;

/// What a policy hangs on: kind, name, section.
type Level = (&'static str, &'static str, &'static str);

const RULE: Level = ("HTTPRoute", "app/r", "one");
const ROUTE: Level = ("HTTPRoute", "app/r", "");
const PORT: Level = ("Service", "shop/s", "http");
const SERVICE: Level = ("Service", "shop/s", "");
const OF_ROUTE: Level = ("Namespace", "app", "");
const OF_SERVICE: Level = ("Namespace", "shop", "");

/// On a gateway, from narrow to wide.
const GATEWAY: [Level; 9] = [
    RULE,
    ROUTE,
    PORT,
    SERVICE,
    ("Gateway", "infra/gw", "web"),
    ("Gateway", "infra/gw", ""),
    OF_ROUTE,
    ("Namespace", "infra", ""),
    OF_SERVICE,
];

/// In the mesh, on the way to a service by the route of another.
const MESH: [Level; 9] = [
    RULE,
    ROUTE,
    PORT,
    SERVICE,
    ("Service", "front/f", "http"),
    ("Service", "front/f", ""),
    OF_ROUTE,
    ("Namespace", "front", ""),
    OF_SERVICE,
];

/// Everything that is asked for, by this number.
fn all_of(number: u32) -> v1::TrafficPolicy {
    v1::TrafficPolicy {
        timeouts: Some(v1::Timeouts {
            request_ms: number,
            connect_ms: number,
            idle_ms: number,
            stream_idle_ms: number,
            max_stream_ms: number,
            caller_deadline: (1 + number % 2).try_into().unwrap(),
        }),
        retry: Some(v1::Retry { attempts: Some(number), ..Default::default() }),
        hedge: Some(v1::Hedge {
            delay: Some(v1::hedge::Delay::FixedMs(number)),
            budget_percent: number,
            ..Default::default()
        }),
        fault_injection: Some(v1::FaultInjection {
            delay: Some(v1::fault_injection::Delay { time_ms: number, share: None }),
            ..Default::default()
        }),
        rate_limit: Some(v1::RateLimit { requests: number, ..Default::default() }),
        circuit_breaker: Some(v1::CircuitBreaker { trials: number, ..Default::default() }),
        overload: Some(v1::Overload {
            adaptive_concurrency: Some(v1::overload::AdaptiveConcurrency {
                min_concurrency: number,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Route `app/r` of gateway `infra/gw` and of service `front/f` leads to `shop/s`. The number of a level is its place
/// among these, from 1; those before `first` say nothing.
fn world(levels: &[Level], first: usize, own: bool) -> SnapshotBuilder {
    let mut rule = v1::Rule {
        name: "one".into(),
        backends: vec![backend("shop/s", 80, 1)],
        ..rule(vec![path(prefix("/"))])
    };
    if own {
        rule.request_timeout_ms = 100;
        rule.backend_request_timeout_ms = 101;
        rule.retry = Some(v1::Retry { attempts: Some(100), ..Default::default() });
    }
    let at = vec![at_listener("infra/gw/web", &[]), at_service("front/f", 80)];
    let served = v1::workload::Served {
        service: "shop/s".into(),
        service_port: 80,
        app_port: 8080,
        ..Default::default()
    };
    let workload = v1::Workload {
        spiffe_id: "spiffe://m/ns/shop/sa/s".into(),
        services: vec![served],
        ..Default::default()
    };
    let mut changes = vec![
        listener("infra/gw/web", 80, ""),
        Change::upsert("HTTPRoute/app/r", "1", &route_message("app/r", 1, at, vec![rule])),
        service_change(&service("shop/s", &[("http", 80)])),
        service_change(&v1::Service { hostnames: vec!["f".into()], ..service("front/f", &[("http", 80)]) }),
        Change::upsert("shop/s-1", "1", &workload),
    ];
    for (place, (kind, name, section)) in levels.iter().enumerate().skip(first) {
        let number = place + 1;
        let said = all_of(u32::try_from(number).unwrap());
        changes.push(traffic(&format!("p/{number}"), target(kind, name, section), said));
    }
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, changes);
    builder
}

/// The number of who is told as the author of a field.
fn whose(sources: &Sources, path: &str) -> Option<usize> {
    let number = |origin: &Arc<Origin>| origin.name().parse().unwrap_or(100);
    sources.of(path).map(number)
}

/// The number of the first of these that is not before `first`.
fn first_of(of: &[usize], first: usize) -> Option<usize> {
    of.iter().copied().find(|number| *number > first)
}

/// `limits`: those whose rate limits hold where the rule is decided.
fn look(levels: &[Level], limits: &[usize], is_mesh: bool) {
    for (first, own) in (0..=levels.len()).flat_map(|first| [(first, false), (first, true)]) {
        let mut builder = world(levels, first, own);
        let snapshot = builder.build();
        let (request, at) = (OwnedRequest::get("f", "/"), format!("from {first}, {own}"));
        let parent = is_mesh.then(|| Arc::clone(snapshot.cluster(&key("front/f", 80)).unwrap()));
        let routed = match is_mesh {
            true => snapshot
                .outbound(&request.host)
                .unwrap()
                .port(request.port)
                .unwrap()
                .route(&request, &mut NoReasons),
            false => snapshot.bindings()[0].route(&request, None, &mut NoReasons),
        };
        let Routed::Matched(m) = routed else { panic!("it has a rule") };
        let to = m.rule().backends[0].cluster().unwrap();
        let sources = builder.sources(&m, parent.as_deref(), to);

        // What is said of requests.
        let narrowest = first_of(&[1, 2, 3, 4, 5, 6, 7, 8, 9], first);
        let or_own = if own { Some(100) } else { narrowest };
        let times = m.policy().timeouts(Some(to));
        let number = |time: Option<Duration>| time.map(|time| usize::try_from(time.as_millis()).unwrap());
        assert_eq!((number(times.request), whose(&sources, "timeouts.request_ms")), (or_own, or_own), "{at}");
        assert_eq!(
            (number(times.backend_request), whose(&sources, "timeouts.backend_request_ms")),
            match own {
                true => (Some(101), Some(100)),
                false => (None, None),
            }
        );
        for (time, path) in [
            (times.connect, "timeouts.connect_ms"),
            (times.idle, "timeouts.idle_ms"),
            (times.stream_idle, "timeouts.stream_idle_ms"),
            (times.max_stream, "timeouts.max_stream_ms"),
        ] {
            assert_eq!((number(time), whose(&sources, path)), (narrowest, narrowest), "{path} {at}");
        }
        assert_eq!(times.believes_callers, narrowest.is_some_and(|number| number % 2 == 1), "{at}");
        let attempts = m.policy().retry(to).map(|retry| retry.attempts as usize);
        assert_eq!((attempts, whose(&sources, "retry.attempts")), (or_own, or_own), "{at}");
        let budget = m.policy().hedge(to).map(|hedge| hedge.budget_percent as usize);
        assert_eq!((budget, whose(&sources, "hedge.budget_percent")), (narrowest, narrowest), "{at}");
        let delay = m.policy().fault(to).and_then(|fault| number(Some(fault.delay.as_ref()?.what)));
        assert_eq!((delay, whose(&sources, "fault_injection.delay.time_ms")), (narrowest, narrowest), "{at}");

        // What is said of a service.
        let of_service = first_of(&[3, 4, 9], first);
        let trials = to.circuit_breaker.map(|breaker| breaker.trials as usize);
        assert_eq!((trials, whose(&sources, "circuit_breaker.trials")), (of_service, of_service), "{at}");
        assert_eq!(whose(&sources, "rate_limit.requests"), None, "{at}");

        // And of a rule, whatever its backend is.
        let sources = builder.sources_of_rule(&m, parent.as_deref());
        let limit = m.policy().rate_limit().map(|limit| limit.spec.requests as usize);
        let narrowest = first_of(limits, first);
        assert_eq!((limit, whose(&sources, "rate_limit.requests")), (narrowest, narrowest), "{at}");
        let of_route = first_of(&[1, 2], first);
        let trials = m.policy().breaker().map(|breaker| breaker.policy.trials as usize);
        assert_eq!((trials, whose(&sources, "circuit_breaker.trials")), (of_route, of_route), "{at}");
        assert_eq!(whose(&sources, "retry.attempts"), None, "{at}");

        look_where_the_service_is(&builder, &snapshot, first);
    }
}

/// What is kept beside the service, by levels that are the same on every way.
fn look_where_the_service_is(builder: &SnapshotBuilder, snapshot: &Snapshot, first: usize) {
    let port = &snapshot.inbound().unwrap().ports[0];
    let sources = builder.sources_of_inbound(&port.key);
    let least = port.overload.as_ref().map(|overload| overload.concurrency.min_concurrency as usize);
    let path = "overload.adaptive_concurrency.min_concurrency";
    let wanted = first_of(&[3, 4, 9], first);
    assert_eq!((least, whose(&sources, path)), (wanted, wanted), "from {first}");
    let limit = port.rate_limit.as_ref().map(|limit| limit.spec.requests as usize);
    let wanted = first_of(&[3, 4], first);
    assert_eq!((limit, whose(&sources, "rate_limit.requests")), (wanted, wanted), "from {first}");
}

#[test]
fn on_a_gateway_the_narrowest_level_holds_and_is_told() {
    look(&GATEWAY, &[1, 2, 5, 6, 7, 8], false);
}

#[test]
fn in_the_mesh_the_narrowest_level_holds_and_is_told() {
    look(&MESH, &[1, 2], true);
}

#[test]
fn authors_are_told_the_narrowest_first_and_each_once() {
    let mut builder = world(&GATEWAY, 8, false);
    let retry = |said| v1::TrafficPolicy { retry: Some(said), ..Default::default() };
    // The narrower one's field comes last in the order of names.
    let narrow =
        v1::Retry { per_try_timeout_ms: 9, on: Some(v1::retry::On::default()), ..Default::default() };
    let wide = v1::Retry { attempts: Some(3), backoff_base_ms: Some(1), ..Default::default() };
    let snapshot = build(
        &mut builder,
        [
            traffic("p/narrow", target("HTTPRoute", "app/r", ""), retry(narrow)),
            traffic("p/wide", target("Gateway", "infra/gw", ""), retry(wide)),
        ],
    );
    let Routed::Matched(m) = snapshot.bindings()[0].route(&OwnedRequest::get("f", "/"), None, &mut NoReasons)
    else {
        panic!("it has a rule");
    };
    let sources = builder.sources(&m, None, m.rule().backends[0].cluster().unwrap());
    let authors: Vec<_> = sources.authors("retry").iter().map(|origin| origin.name()).collect();
    assert_eq!(authors, ["narrow", "wide"], "and not who has no word left in it");
    assert_eq!(sources.authors("retr"), Vec::<&Origin>::new());
}

#[test]
fn that_a_part_is_there_is_somebody_s_word_where_nothing_is_said_in_it() {
    let outlier = |rate| v1::TrafficPolicy {
        outlier_detection: Some(v1::OutlierDetection { success_rate: Some(rate), ..Default::default() }),
        ..Default::default()
    };
    let bare = v1::outlier_detection::SuccessRate::default();
    let mut builder = world(&GATEWAY, 9, false);
    let mut path = "outlier_detection.success_rate".to_owned();
    for (rate, below) in
        [(bare, ""), (v1::outlier_detection::SuccessRate { minimum_hosts: 3, ..bare }, ".minimum_hosts")]
    {
        let snapshot = build(&mut builder, [traffic("p/s", target("Service", "shop/s", ""), outlier(rate))]);
        let Routed::Matched(m) =
            snapshot.bindings()[0].route(&OwnedRequest::get("f", "/"), None, &mut NoReasons)
        else {
            panic!("it has a rule");
        };
        let sources = builder.sources(&m, None, m.rule().backends[0].cluster().unwrap());
        path += below;
        let told: Vec<_> =
            sources.part("outlier_detection").map(|(path, origin)| (path, origin.name())).collect();
        assert_eq!(told, [(&*path, "s")]);
    }
}

#[test]
fn what_another_s_word_excludes_is_nobody_s() {
    let hedge = |delay| v1::TrafficPolicy {
        hedge: Some(v1::Hedge { delay: Some(delay), ..Default::default() }),
        algorithm: v1::traffic_policy::Algorithm::Random.into(),
        ..Default::default()
    };
    let mut builder = world(&GATEWAY, 9, false);
    let snapshot = build(
        &mut builder,
        [
            traffic("p/s", target("Service", "shop/s", ""), hedge(v1::hedge::Delay::Percentile(95))),
            traffic("p/g", target("Gateway", "infra/gw", ""), hedge(v1::hedge::Delay::FixedMs(3))),
        ],
    );
    let Routed::Matched(m) = snapshot.bindings()[0].route(&OwnedRequest::get("f", "/"), None, &mut NoReasons)
    else {
        panic!("it has a rule");
    };
    let sources = builder.sources(&m, None, m.rule().backends[0].cluster().unwrap());
    let told: Vec<_> = sources.part("hedge").map(|(path, origin)| (path, origin.name())).collect();
    assert_eq!(told, [("hedge.percentile", "s")]);
    assert_eq!(sources.authors("algorithm").len(), 1, "a part of one word");
}

#[test]
fn a_route_s_breaker_adds_to_that_of_its_rule() {
    use v1::circuit_breaker::Mode;
    let forced = |of_rule: Mode, of_route: Mode| {
        let breaker = |mode: Mode, per_endpoint| v1::TrafficPolicy {
            circuit_breaker: Some(v1::CircuitBreaker {
                mode: mode.into(),
                per_endpoint,
                trials: 1,
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut builder = world(&GATEWAY, 9, false);
        let snapshot = build(
            &mut builder,
            [
                traffic("p/rule", target("HTTPRoute", "app/r", "one"), breaker(of_rule, None)),
                traffic("p/route", target("HTTPRoute", "app/r", ""), breaker(of_route, None)),
            ],
        );
        let Routed::Matched(m) =
            snapshot.bindings()[0].route(&OwnedRequest::get("f", "/"), None, &mut NoReasons)
        else {
            panic!("it has a rule");
        };
        m.policy().breaker().unwrap().forced_open(meshwork_base::Tick::ZERO).is_some()
    };
    assert!(forced(Mode::Unspecified, Mode::ForcedOpen), "what the rule does not say its route does");
    assert!(!forced(Mode::Enforce, Mode::ForcedOpen));
    assert!(forced(Mode::ForcedOpen, Mode::Enforce));
}

/// The breakers of `app/r`, by the names of its rules, with these policies.
fn breakers(policies: Vec<Change>) -> [Option<Arc<crate::RouteBreaker>>; 2] {
    let snapshot = snapshot(super::policies::world().into_iter().chain(policies));
    ["/one", "/two"].map(|path| {
        let routed = snapshot.bindings()[0].route(&OwnedRequest::get("h", path), None, &mut NoReasons);
        let Routed::Matched(m) = routed else { panic!("it has a rule") };
        m.policy().breaker().cloned()
    })
}

#[test]
fn a_rule_has_a_breaker_of_its_own_only_where_something_is_said_of_one_there() {
    let breaker = |per_endpoint| v1::TrafficPolicy {
        circuit_breaker: Some(v1::CircuitBreaker { per_endpoint, ..Default::default() }),
        ..Default::default()
    };
    let of_rule = |said| traffic("p/rule", target("HTTPRoute", "app/r", "one"), said);
    let of_route = |said| traffic("p/route", target("HTTPRoute", "app/r", ""), said);
    let retries = v1::TrafficPolicy { retry: all_of(1).retry, ..Default::default() };
    let [one, two] = breakers(vec![of_rule(retries), of_route(breaker(None))]).map(Option::unwrap);
    assert!(Arc::ptr_eq(&one, &two), "they count together");
    let [one, two] = breakers(vec![of_rule(breaker(None)), of_route(breaker(None))]).map(Option::unwrap);
    assert!(!Arc::ptr_eq(&one, &two));
    assert_eq!(breakers(vec![of_route(breaker(Some(true)))]), [None, None], "a route has no endpoints");
}

#[test]
fn what_a_route_says_of_something_else_is_nothing_to_its_breaker() {
    let rule = v1::TrafficPolicy {
        circuit_breaker: Some(v1::CircuitBreaker::default()),
        load_balancer: Some(v1::LoadBalancer { hash_balance_factor: 50, ..Default::default() }),
        ..Default::default()
    };
    let kind = Some(v1::hash_rule::Kind::SourceAddress(true));
    let hash_policy = vec![v1::HashRule { kind, terminal: false }];
    let route = v1::TrafficPolicy {
        load_balancer: Some(v1::LoadBalancer { hash_policy, ..Default::default() }),
        ..Default::default()
    };
    let [one, _] = breakers(vec![
        traffic("p/rule", target("HTTPRoute", "app/r", "one"), rule),
        traffic("p/route", target("HTTPRoute", "app/r", ""), route),
    ]);
    assert!(one.is_some());
}

#[test]
fn a_rule_s_own_retries_need_nobody_beside_them() {
    let with = |service: Option<v1::TrafficPolicy>| {
        let mut builder = world(&GATEWAY, 9, true);
        let said = service.map(|said| traffic("p/s", target("Service", "shop/s", ""), said));
        let snapshot = build(&mut builder, said);
        let Routed::Matched(m) =
            snapshot.bindings()[0].route(&OwnedRequest::get("f", "/"), None, &mut NoReasons)
        else {
            panic!("it has a rule");
        };
        let to = m.rule().backends[0].cluster().unwrap();
        let retry = m.policy().retry(to).map(|retry| (retry.attempts, retry.budget.percent));
        (retry, m.policy().hedge(to).is_some(), m.policy().fault(to).is_some())
    };
    assert_eq!(with(None), (Some((100, 20)), false, false));
    let budget = Some(v1::RetryBudget { percent: Some(7), ..Default::default() });
    let retry = v1::Retry { budget, ..Default::default() };
    assert_eq!(with(Some(v1::TrafficPolicy { retry: Some(retry), ..Default::default() })).0, Some((100, 7)));
    let said = all_of(1);
    let hedge = v1::TrafficPolicy { hedge: said.hedge, ..Default::default() };
    assert_eq!(with(Some(hedge)), (Some((100, 20)), true, false), "of a service that says only this");
    let fault = v1::TrafficPolicy { fault_injection: said.fault_injection, ..Default::default() };
    assert_eq!(with(Some(fault)), (Some((100, 20)), false, true));
}

#[test]
fn each_backend_of_a_rule_has_what_its_service_says() {
    let backends = vec![backend("shop/s", 80, 1), backend("shop/t", 80, 1), backend("shop/u", 80, 1)];
    let rules = vec![v1::Rule { backends, ..rule(vec![path(prefix("/"))]) }];
    let at = vec![at_listener("infra/gw/web", &[])];
    let retry = |attempts| v1::TrafficPolicy {
        retry: Some(v1::Retry { attempts: Some(attempts), ..Default::default() }),
        ..Default::default()
    };
    let hedge = v1::TrafficPolicy { hedge: all_of(9).hedge, ..Default::default() };
    let snapshot = snapshot([
        listener("infra/gw/web", 80, ""),
        Change::upsert("HTTPRoute/app/r", "1", &route_message("app/r", 1, at, rules)),
        service_change(&service("shop/s", &[("http", 80)])),
        service_change(&service("shop/t", &[("http", 80)])),
        service_change(&service("shop/u", &[("http", 80)])),
        traffic("p/g", target("Gateway", "infra/gw", ""), hedge),
        traffic("p/s", target("Service", "shop/s", ""), retry(3)),
        traffic("p/t", target("Service", "shop/t", ""), retry(4)),
    ]);
    let Routed::Matched(m) = snapshot.bindings()[0].route(&OwnedRequest::get("f", "/"), None, &mut NoReasons)
    else {
        panic!("it has a rule");
    };
    let of = |backend: &crate::Backend| {
        let to = backend.cluster().unwrap();
        (
            m.policy().retry(to).map(|retry| retry.attempts),
            m.policy().hedge(to).map(|hedge| hedge.budget_percent),
        )
    };
    let is: Vec<_> = m.rule().backends.iter().map(of).collect();
    assert_eq!(is, [(Some(3), Some(9)), (Some(4), Some(9)), (None, Some(9))]);
}
