//! What a policy says: which bounds it has, that none is a word too, and what two policies come to that do not fit together.

use std::time::Duration;

use super::policies::{target, traffic, world};
use super::*;

fn nothing() -> v1::TrafficPolicy {
    v1::TrafficPolicy::default()
}

/// The cluster of `app/s:80` where its service says this.
fn with(said: v1::TrafficPolicy) -> Arc<Cluster> {
    let policy = traffic("p/s", target("Service", "app/s", ""), said);
    Arc::clone(snapshot(world().into_iter().chain([policy])).cluster(&key("app/s", 80)).unwrap())
}

/// The first of these is within its bound, and the second is not.
fn bound<T: Copy>(at: &str, [good, bad]: [T; 2], policy: impl Fn(T) -> v1::TrafficPolicy) {
    let says = |number| {
        let policy = traffic("p/s", target("Service", "app/s", ""), policy(number));
        let rejections = SnapshotBuilder::new().apply([policy]);
        rejections.first().map(|rejection| rejection.message.clone())
    };
    assert_eq!(says(good), None, "{at}");
    assert!(says(bad).is_some_and(|why| why.contains(at)), "{at}: {:?}", says(bad));
}

#[test]
fn numbers_beyond_the_bounds_of_balancing_and_admission_are_refused() {
    let admission = |said| v1::TrafficPolicy { admission_control: Some(said), ..nothing() };
    bound("success_rate_threshold", [100, 101], |n| {
        admission(v1::AdmissionControl { success_rate_threshold: n, ..Default::default() })
    });
    bound("max_rejection_percent", [100, 101], |n| {
        admission(v1::AdmissionControl { max_rejection_percent: Some(n), ..Default::default() })
    });
    bound("aggression_thousandths", [1_000, 999], |n| {
        admission(v1::AdmissionControl { aggression_thousandths: n, ..Default::default() })
    });
    let balancer = |said| v1::TrafficPolicy { load_balancer: Some(said), ..nothing() };
    bound("hash_balance_factor", [100, 99], |n| {
        let kind = Some(v1::hash_rule::Kind::SourceAddress(true));
        let hash_policy = vec![v1::HashRule { kind, terminal: false }];
        balancer(v1::LoadBalancer { hash_policy, hash_balance_factor: n, ..Default::default() })
    });
    let failover = |said| balancer(v1::LoadBalancer { failover: Some(said), ..Default::default() });
    bound("overprovisioning_factor", [100, 99], |n| {
        failover(v1::Failover { overprovisioning_factor: n, ..Default::default() })
    });
    bound("panic_threshold", [100, 101], |n| {
        failover(v1::Failover { panic_threshold: Some(n), ..Default::default() })
    });
    let slowly = |said| balancer(v1::LoadBalancer { slow_start: Some(said), ..Default::default() });
    bound("min_weight_percent", [100, 101], |n| {
        slowly(v1::SlowStart { window_ms: 1, min_weight_percent: n, ..Default::default() })
    });
    bound("slow_start.window_ms", [1, 0], |n| slowly(v1::SlowStart { window_ms: n, ..Default::default() }));
}

#[test]
fn numbers_beyond_the_bounds_of_breakers_and_ejection_are_refused() {
    let breaker = |said| v1::TrafficPolicy { circuit_breaker: Some(said), ..nothing() };
    bound("failure_percent", [100, 101], |n| {
        breaker(v1::CircuitBreaker { failure_percent: n, ..Default::default() })
    });
    bound("slow_percent", [100, 101], |n| {
        breaker(v1::CircuitBreaker { slow_percent: n, ..Default::default() })
    });
    let outlier = |said| v1::TrafficPolicy { outlier_detection: Some(said), ..nothing() };
    bound("max_ejection_percent", [100, 101], |n| {
        outlier(v1::OutlierDetection { max_ejection_percent: n, ..Default::default() })
    });
    bound("failure_percentage.threshold", [100, 101], |n| {
        let failures = v1::outlier_detection::FailurePercentage { threshold: n, ..Default::default() };
        outlier(v1::OutlierDetection { failure_percentage: Some(failures), ..Default::default() })
    });
    let shared = |said| outlier(v1::OutlierDetection { shared: Some(said), ..Default::default() });
    bound("shared.observers", [2, 1], |n| {
        shared(v1::outlier_detection::Shared { observers: n, ..Default::default() })
    });
    bound("shared.percent", [100, 101], |n| {
        shared(v1::outlier_detection::Shared { percent: Some(n), ..Default::default() })
    });
}

#[test]
fn what_a_check_cannot_ask_or_expect_is_refused() {
    let http = |probe| {
        let probe = Some(v1::health_check::Probe::Http(probe));
        v1::TrafficPolicy { health_check: Some(v1::HealthCheck { probe, ..Default::default() }), ..nothing() }
    };
    let expected = |start, end| {
        let expected = vec![v1::health_check::StatusRange { start, end }];
        http(v1::health_check::Http { path: "/".into(), expected, ..Default::default() })
    };
    bound("http.expected", [(599, 600), (600, 601)], |(start, end)| expected(start, end));
    bound("http.expected", [(100, 101), (99, 101)], |(start, end)| expected(start, end));
    bound("http.expected", [(200, 201), (200, 200)], |(start, end)| expected(start, end));
    bound("http.path", ["/", "x"], |path| {
        http(v1::health_check::Http { path: path.into(), ..Default::default() })
    });
    bound("http.method", ["POST", "CONNECT"], |method| {
        http(v1::health_check::Http { path: "/".into(), method: method.into(), ..Default::default() })
    });
}

#[test]
fn numbers_beyond_the_bounds_of_requests_are_refused() {
    use v1::fault_injection::{Abort, Bandwidth, abort::With};
    bound("rate_limit.requests", [1, 0], |n| v1::TrafficPolicy {
        rate_limit: Some(v1::RateLimit { requests: n, ..Default::default() }),
        ..nothing()
    });
    let fault = |said| v1::TrafficPolicy { fault_injection: Some(said), ..nothing() };
    let abort = |with| {
        fault(v1::FaultInjection {
            abort: Some(Abort { with: Some(with), share: None }),
            ..Default::default()
        })
    };
    bound("abort.status", [200, 199], |n| abort(With::Status(n)));
    bound("abort.status", [599, 600], |n| abort(With::Status(n)));
    bound("abort.grpc_status", [16, 17], |n| abort(With::GrpcStatus(n)));
    bound("bandwidth.bytes_per_second", [1, 0], |n| {
        let bandwidth = Some(Bandwidth { bytes_per_second: n, share: None });
        fault(v1::FaultInjection { bandwidth, ..Default::default() })
    });
    let on = v1::retry::On { status_codes: vec![70_000], ..Default::default() };
    let retry = Some(v1::Retry { on: Some(on), ..Default::default() });
    let rules = vec![v1::Rule { retry, ..rule(vec![path(prefix("/"))]) }];
    let rejections = SnapshotBuilder::new().apply([route("ns/r", 1, &[], rules)]);
    assert!(rejections[0].message.contains("rules[0].retry"), "its place: {}", rejections[0].message);
}

#[test]
fn that_something_is_none_is_a_word_and_no_default() {
    let admission = v1::AdmissionControl { max_rejection_percent: Some(0), ..Default::default() };
    let is = with(v1::TrafficPolicy { admission_control: Some(admission), ..nothing() });
    assert_eq!(is.admission.as_ref().unwrap().max_rejection_probability, 0);
    let probe = v1::health_check::Http { path: "/".into(), ..Default::default() };
    let check = v1::HealthCheck {
        probe: Some(v1::health_check::Probe::Http(probe)),
        interval_jitter_ms: Some(0),
        ..Default::default()
    };
    let is = with(v1::TrafficPolicy { health_check: Some(check), ..nothing() });
    assert_eq!(is.health_check.as_ref().unwrap().interval_jitter, Duration::ZERO);
    let failover =
        v1::Failover { panic_threshold: Some(0), overprovisioning_factor: 150, ..Default::default() };
    let balancer = v1::LoadBalancer { failover: Some(failover), ..Default::default() };
    let is = with(v1::TrafficPolicy { load_balancer: Some(balancer), ..nothing() });
    assert_eq!((is.preference.panic_threshold, is.preference.overprovisioning_factor), (0, 150));
    let concurrency = v1::overload::AdaptiveConcurrency {
        buffer_percent: Some(0),
        jitter_percent: Some(0),
        ..Default::default()
    };
    let overload = v1::Overload { adaptive_concurrency: Some(concurrency), ..Default::default() };
    let is = with(v1::TrafficPolicy { overload: Some(overload), ..nothing() });
    let concurrency = is.overload.as_ref().unwrap().concurrency;
    assert_eq!((concurrency.buffer, concurrency.jitter), (0, 0));
    let shared = v1::outlier_detection::Shared { percent: Some(0), ..Default::default() };
    let rows = v1::OutlierDetection { shared: Some(shared), ..rows_off() };
    let is =
        with(v1::TrafficPolicy { outlier_detection: Some(rows), ..nothing() }).outlier_detection.unwrap();
    assert_eq!((is.consecutive_5xx, is.consecutive_local_origin_failure), (0, 0));
    assert_eq!(is.shared.unwrap().percent, 0);
    let delay = Some(v1::hedge::Delay::Percentile(95));
    let hedge = v1::Hedge { delay, least_ms: Some(0), ..Default::default() };
    let is = with(v1::TrafficPolicy { hedge: Some(hedge), ..nothing() });
    let least = Duration::ZERO;
    let delay = crate::HedgeDelay::Percentile { percent: 95, least };
    assert_eq!(is.words.alone.hedge.as_ref().unwrap().delay, delay);
    let budget = v1::RetryBudget { percent: None, min_per_second: Some(0) };
    let retry = v1::Retry { attempts: Some(0), budget: Some(budget), ..Default::default() };
    let is = with(v1::TrafficPolicy { retry: Some(retry), ..nothing() });
    let retry = is.words.alone.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.budget.min_per_second), (0, 0));
}

#[test]
fn what_is_not_said_goes_by_what_is_said_beside_it() {
    let probe = v1::health_check::Http { path: "/".into(), ..Default::default() };
    let check = v1::HealthCheck {
        probe: Some(v1::health_check::Probe::Http(probe)),
        interval_ms: 500,
        ..Default::default()
    };
    let is = with(v1::TrafficPolicy { health_check: Some(check), ..nothing() });
    let check = is.health_check.as_ref().unwrap();
    let millis = Duration::from_millis;
    assert_eq!((check.interval_jitter, check.no_traffic_interval), (millis(50), millis(500)));
    let outlier = v1::OutlierDetection {
        base_ejection_time_ms: 9_000,
        max_ejection_time_ms: 5_000,
        ..Default::default()
    };
    let is = with(v1::TrafficPolicy { outlier_detection: Some(outlier), ..nothing() });
    assert_eq!(is.outlier_detection.unwrap().base_ejection_time, millis(5_000));
    let overload = v1::Overload {
        adaptive_concurrency: Some(v1::overload::AdaptiveConcurrency::default()),
        queue: Some(v1::overload::Queue { target_ms: 900, ..Default::default() }),
        ..Default::default()
    };
    let is = with(v1::TrafficPolicy { overload: Some(overload), ..nothing() });
    assert_eq!(is.overload.as_ref().unwrap().queue.target, Some(millis(500)), "nobody waits for longer");
    let is = with(v1::TrafficPolicy { circuit_breaker: Some(v1::CircuitBreaker::default()), ..nothing() });
    assert_eq!(is.circuit_breaker.unwrap().slow_calls, None);
    let retry = v1::Retry { backoff_base_ms: Some(100), ..Default::default() };
    let is = with(v1::TrafficPolicy { retry: Some(retry), ..nothing() });
    let retry = is.words.alone.retry.as_ref().unwrap();
    assert_eq!((retry.backoff_base, retry.backoff_max), (millis(100), millis(1_000)));
    assert_eq!([retry.on_reset, retry.on_connect_failure, retry.on_refused], [true; 3]);
    let limit = v1::RateLimit { requests: 9, ..Default::default() };
    let is = with(v1::TrafficPolicy { rate_limit: Some(limit), ..nothing() });
    let limit = is.words.own.rate_limit.as_ref().unwrap().made;
    assert_eq!((limit.per, limit.burst), (Duration::from_secs(1), 9));
    let delay = v1::fault_injection::Delay { time_ms: 1, share: None };
    let fault = v1::FaultInjection { delay: Some(delay), ..Default::default() };
    let is = with(v1::TrafficPolicy { fault_injection: Some(fault), ..nothing() });
    assert_eq!(is.words.alone.fault.as_ref().unwrap().delay.as_ref().unwrap().share, Share::ALL);
}

/// A policy that goes by keys, which nothing bounds.
fn by_keys() -> v1::TrafficPolicy {
    let kind = Some(v1::hash_rule::Kind::SourceAddress(true));
    let hash_policy = vec![v1::HashRule { kind, terminal: false }];
    v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::Maglev.into(),
        load_balancer: Some(v1::LoadBalancer { hash_policy, subset_size: 3, ..Default::default() }),
        ..nothing()
    }
}

#[test]
fn where_keys_choose_all_are_called_and_any_load_is_theirs() {
    let is = with(by_keys());
    assert_eq!((is.subset_size, is.hashing.as_ref().unwrap().balance_factor), (None, None));
}

#[test]
fn two_policies_that_cannot_be_understood_together_come_to_the_narrower_one() {
    let balancer = Some(v1::LoadBalancer { hash_balance_factor: 50, ..Default::default() });
    let limits = Some(v1::Limits { max_requests: 7, ..Default::default() });
    let narrow = v1::TrafficPolicy { load_balancer: balancer, limits, ..nothing() };
    let snapshot = snapshot(world().into_iter().chain([
        traffic("p/s", target("Service", "app/s", ""), narrow),
        traffic("p/n", target("Namespace", "app", ""), by_keys()),
    ]));
    let is = snapshot.cluster(&key("app/s", 80)).unwrap();
    assert_eq!((is.limits.max_requests, is.hashing.is_none()), (Some(7), true));
}

#[test]
fn an_overload_is_of_the_narrowest_who_says_one() {
    let overload = |least| v1::TrafficPolicy {
        overload: Some(v1::Overload {
            adaptive_concurrency: Some(v1::overload::AdaptiveConcurrency {
                min_concurrency: least,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..nothing()
    };
    let limits = Some(v1::Limits { max_requests: 7, ..Default::default() });
    let snapshot = snapshot(world().into_iter().chain([
        traffic("p/p", target("Service", "app/s", "http"), v1::TrafficPolicy { limits, ..nothing() }),
        traffic("p/s", target("Service", "app/s", ""), overload(2)),
        traffic("p/n", target("Namespace", "app", ""), overload(3)),
    ]));
    let is = snapshot.cluster(&key("app/s", 80)).unwrap().overload.clone().unwrap();
    assert_eq!((is.origin.name(), is.concurrency.min_concurrency), ("s", 2));
}

#[test]
fn what_a_service_says_goes_before_its_namespace_where_nobody_else_says_anything() {
    let retry = |attempts, percent| v1::TrafficPolicy {
        retry: Some(v1::Retry {
            attempts,
            budget: Some(v1::RetryBudget { percent: Some(percent), ..Default::default() }),
            ..Default::default()
        }),
        ..nothing()
    };
    let snapshot = snapshot([
        service_change(&service("shop/s", &[("http", 80)])),
        traffic("p/s", target("Service", "shop/s", ""), retry(None, 4)),
        traffic("p/n", target("Namespace", "shop", ""), retry(Some(3), 9)),
    ]);
    let is = snapshot.cluster(&key("shop/s", 80)).unwrap().words.alone.retry.clone().unwrap();
    assert_eq!((is.attempts, is.budget.percent), (3, 4));
}

#[test]
fn policies_that_come_to_the_same_alone_are_told_apart_where_another_adds_to_them() {
    let retry = |said| v1::TrafficPolicy { retry: Some(said), ..nothing() };
    // Both are defaults: alone each comes to the same.
    let attempts = || retry(v1::Retry { attempts: Some(2), ..Default::default() });
    let percent = Some(v1::RetryBudget { percent: Some(20), ..Default::default() });
    let budget = || retry(v1::Retry { budget: percent, ..Default::default() });
    let wide = retry(v1::Retry {
        attempts: Some(5),
        budget: Some(v1::RetryBudget { percent: Some(50), ..Default::default() }),
        ..Default::default()
    });
    let backends = ["a", "b", "c"].map(|name| backend(&format!("app/{name}"), 80, 1)).into();
    let rules = vec![v1::Rule { backends, ..rule(vec![path(prefix("/"))]) }];
    let at = vec![at_listener("infra/gw/web", &[])];
    let services =
        ["a", "b", "c"].map(|name| service_change(&service(&format!("app/{name}"), &[("http", 80)])));
    let route = Change::upsert("HTTPRoute/app/r", "1", &route_message("app/r", 1, at, rules));
    let snapshot = snapshot(services.into_iter().chain([
        listener("infra/gw/web", 80, ""),
        route,
        traffic("p/a", target("Service", "app/a", "http"), attempts()),
        traffic("p/b", target("Service", "app/b", "http"), budget()),
        traffic("p/c1", target("Service", "app/c", "http"), attempts()),
        traffic("p/c2", target("Service", "app/c", ""), budget()),
        traffic("p/g", target("Gateway", "infra/gw", ""), wide),
    ]));
    let Routed::Matched(m) = snapshot.bindings()[0].route(&OwnedRequest::get("h", "/"), None, &mut NoReasons)
    else {
        panic!("it has a rule");
    };
    let retries = m.rule().backends.iter().map(|backend| {
        let retry = m.policy().retry(backend.cluster().unwrap()).unwrap();
        (retry.attempts, retry.budget.percent)
    });
    assert_eq!(retries.collect::<Vec<_>>(), [(2, 50), (5, 20), (2, 20)]);
}

#[test]
fn two_who_say_the_same_fault_are_told_apart() {
    let fault = || v1::TrafficPolicy {
        fault_injection: Some(v1::FaultInjection {
            bandwidth: Some(v1::fault_injection::Bandwidth { bytes_per_second: 9, share: None }),
            ..Default::default()
        }),
        ..nothing()
    };
    let snapshot = snapshot(world().into_iter().chain([
        traffic("p/one", target("HTTPRoute", "app/r", "one"), fault()),
        traffic("p/two", target("HTTPRoute", "app/r", "two"), fault()),
    ]));
    for name in ["one", "two"] {
        let request = OwnedRequest::get("h", &format!("/{name}"));
        let Routed::Matched(m) = snapshot.bindings()[0].route(&request, None, &mut NoReasons) else {
            panic!("it has a rule");
        };
        let fault = m.policy().fault(m.rule().backends[0].cluster().unwrap()).unwrap();
        assert_eq!(fault.bandwidth.as_ref().unwrap().origin.name(), name);
    }
}
