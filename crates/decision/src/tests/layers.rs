//! Traffic policies laid over each other: what each says holds field by field, and defaults fill what none says.

use std::time::Duration;

use meshwork_base::Tick;

use super::policies::{retries, target, traffic, world};
use super::*;
use crate::verdicts::SharedEjection;

/// The cluster of `app/s:80` with these words of its namespace, of the service and of its port.
fn service_with(policies: [v1::TrafficPolicy; 3]) -> Arc<Cluster> {
    let [namespace, service, port] = policies;
    let policies = [
        traffic("p/n", target("Namespace", "app", ""), namespace),
        traffic("p/s", target("Service", "app/s", ""), service),
        traffic("p/p", target("Service", "app/s", "http"), port),
    ];
    Arc::clone(snapshot(world().into_iter().chain(policies)).cluster(&key("app/s", 80)).unwrap())
}

fn nothing() -> v1::TrafficPolicy {
    v1::TrafficPolicy::default()
}

#[test]
fn what_a_service_says_of_a_breaker_leaves_the_rest_to_its_namespace() {
    use v1::circuit_breaker::{Mode, Window};
    let breaker = |said| v1::TrafficPolicy { circuit_breaker: Some(said), ..nothing() };
    let wide = breaker(v1::CircuitBreaker {
        mode: Mode::ForcedOpen.into(),
        window: Some(Window::WindowCalls(10)),
        slow_after_ms: 100,
        ..Default::default()
    });
    let narrow = breaker(v1::CircuitBreaker { trials: 2, slow_percent: 30, ..Default::default() });
    let is = service_with([wide.clone(), narrow.clone(), nothing()]).circuit_breaker.unwrap();
    assert_eq!((is.mode, is.trials, is.window), (BreakerMode::ForcedOpen, 2, WindowSize::Calls(10)));
    assert_eq!(is.slow_calls, Some((Duration::from_millis(100), 30)), "also within a part of the part");
    assert_eq!(is.minimum_calls, 10, "a default goes by the merged window");
    let of_port = breaker(v1::CircuitBreaker {
        mode: Mode::Enforce.into(),
        window: Some(Window::WindowMs(7)),
        ..Default::default()
    });
    let is = service_with([wide, narrow, of_port]).circuit_breaker.unwrap();
    let window = WindowSize::Time(Duration::from_millis(7));
    assert_eq!((is.mode, is.trials, is.window), (BreakerMode::Enforce, 2, window), "one window, not both");
}

#[test]
fn of_ejection_overload_and_checks_too_each_field_is_its_own() {
    use v1::health_check::{Grpc, Http, Probe};
    let wide = v1::TrafficPolicy {
        outlier_detection: Some(v1::OutlierDetection {
            consecutive_5xx: Some(1),
            success_rate: Some(v1::outlier_detection::SuccessRate { stdev_factor: 7, ..Default::default() }),
            ..Default::default()
        }),
        overload: Some(v1::Overload {
            adaptive_concurrency: Some(v1::overload::AdaptiveConcurrency {
                min_concurrency: 9,
                ..Default::default()
            }),
            queue: Some(v1::overload::Queue { max_requests: Some(0), max_wait_ms: 70, ..Default::default() }),
            ..Default::default()
        }),
        health_check: Some(v1::HealthCheck {
            probe: Some(Probe::Http(Http { path: "/well".into(), host: "a".into(), ..Default::default() })),
            interval_ms: 500,
            ..Default::default()
        }),
        ..nothing()
    };
    let narrow = |probe| v1::TrafficPolicy {
        outlier_detection: Some(v1::OutlierDetection {
            base_ejection_time_ms: 1_000,
            success_rate: Some(v1::outlier_detection::SuccessRate { minimum_hosts: 2, ..Default::default() }),
            ..Default::default()
        }),
        overload: Some(v1::Overload {
            adaptive_concurrency: Some(v1::overload::AdaptiveConcurrency::default()),
            queue: Some(v1::overload::Queue { max_wait_ms: 90, ..Default::default() }),
            ..Default::default()
        }),
        health_check: Some(v1::HealthCheck { probe: Some(probe), timeout_ms: 20, ..Default::default() }),
        ..nothing()
    };
    let other = Probe::Http(Http { path: "/else".into(), ..Default::default() });
    let cluster = service_with([wide.clone(), narrow(other), nothing()]);
    let outlier = cluster.outlier_detection.unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.base_ejection_time), (1, Duration::from_secs(1)));
    let rate = outlier.success_rate.unwrap();
    assert_eq!((rate.stdev_factor, rate.minimum_hosts, rate.request_volume), (7, 2, 100));
    let overload = cluster.overload.as_ref().unwrap();
    assert_eq!(overload.concurrency.min_concurrency, 9);
    assert_eq!((overload.queue.max_requests, overload.queue.max_wait), (0, Duration::from_millis(90)));
    let check = cluster.health_check.as_ref().unwrap();
    assert_eq!((check.interval, check.timeout), (Duration::from_millis(500), Duration::from_millis(20)));
    let HealthProbe::Http { path, host, .. } = &check.probe else { panic!("by HTTP") };
    assert_eq!((&**path, host.as_deref()), ("/else", Some("a")));
    let cluster = service_with([wide, narrow(Probe::Grpc(Grpc::default())), nothing()]);
    let probe = &cluster.health_check.as_ref().unwrap().probe;
    assert!(
        matches!(probe, HealthProbe::Grpc { service } if service.is_empty()),
        "one kind, not two: {probe:?}"
    );
}

#[test]
fn what_belongs_to_another_algorithm_goes_with_it() {
    use v1::traffic_policy::Algorithm as Wire;
    let hashing = v1::TrafficPolicy {
        algorithm: Wire::Maglev.into(),
        load_balancer: Some(v1::LoadBalancer {
            hash_policy: vec![v1::HashRule {
                kind: Some(v1::hash_rule::Kind::SourceAddress(true)),
                terminal: false,
            }],
            ..Default::default()
        }),
        ..nothing()
    };
    let slowly = v1::LoadBalancer {
        slow_start: Some(v1::SlowStart { window_ms: 1_000, ..Default::default() }),
        ..Default::default()
    };
    let round = v1::TrafficPolicy { algorithm: Wire::RoundRobin.into(), ..nothing() };
    let cluster = service_with([hashing.clone(), round, nothing()]);
    assert_eq!((cluster.algorithm, cluster.hashing.is_some()), (Algorithm::RoundRobin, false));
    let beginning = v1::TrafficPolicy { load_balancer: Some(slowly), ..nothing() };
    let cluster = service_with([hashing, beginning, nothing()]);
    assert_eq!((cluster.algorithm, cluster.hashing.is_some()), (Algorithm::Maglev, true));
    assert_eq!(cluster.slow_start, None);
}

/// What holds for `/one` of the world with these policies.
fn on_the_way(policies: Vec<Change>) -> (Arc<RetryPolicy>, Arc<Snapshot>) {
    let snapshot = snapshot(world().into_iter().chain(policies));
    let request = OwnedRequest::get("h", "/one");
    let Routed::Matched(m) = snapshot.bindings()[0].route(&request, None, &mut NoReasons) else {
        panic!("it has a rule");
    };
    let retry = m.policy().retry(m.rule().backends[0].cluster().unwrap()).cloned();
    (retry.expect("somebody says it"), Arc::clone(&snapshot))
}

#[test]
fn of_retries_each_level_on_the_way_says_its_own_part() {
    let retry = |said| v1::TrafficPolicy { retry: Some(said), ..nothing() };
    let on = |codes: &[u32]| Some(v1::retry::On { status_codes: codes.to_vec(), ..Default::default() });
    let budget = |percent, min_per_second| Some(v1::RetryBudget { percent, min_per_second });
    let wide = retry(v1::Retry {
        attempts: Some(5),
        on: on(&[500, 502]),
        budget: budget(Some(7), None),
        ..Default::default()
    });
    let gateway =
        retry(v1::Retry { backoff_max_ms: Some(70), budget: budget(None, Some(9)), ..Default::default() });
    let service = retry(v1::Retry { on: on(&[503]), ..Default::default() });
    let route =
        retry(v1::Retry { backoff_base_ms: Some(500), budget: budget(Some(0), None), ..Default::default() });
    let all = vec![
        traffic("p/n", target("Namespace", "app", ""), wide),
        traffic("p/g", target("Gateway", "infra/gw", ""), gateway),
        traffic("p/s", target("Service", "app/s", ""), service),
        traffic("p/r", target("HTTPRoute", "app/r", ""), route),
    ];
    let (is, _snapshot) = on_the_way(all.clone());
    assert_eq!((is.attempts, &*is.status_codes), (5, &[503][..]), "a list is one word");
    let not_named = (is.on_reset, is.on_connect_failure, is.on_refused);
    assert_eq!(not_named, (false, false, false), "and what it does not name is not named");
    assert_eq!((is.budget.percent, is.budget.min_per_second), (0, 9), "also where it is none");
    let longest = Duration::from_millis(70);
    assert_eq!((is.backoff_base, is.backoff_max), (longest, longest), "what does not fit is bounded");

    let (is, _snapshot) = on_the_way(all[..1].to_vec());
    assert_eq!((is.attempts, is.budget.percent, is.budget.min_per_second), (5, 7, 3));
    assert_eq!((is.backoff_base, is.backoff_max), (Duration::from_millis(25), Duration::from_millis(250)));
}

#[test]
fn a_merged_rate_limit_counts_on_while_its_policy_and_its_numbers_stay() {
    let limit = |said| v1::TrafficPolicy { rate_limit: Some(said), ..nothing() };
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, world());
    let narrow = limit(v1::RateLimit { requests: 2, ..Default::default() });
    build(&mut builder, [traffic("p/r", target("HTTPRoute", "app/r", ""), narrow)]);
    let wide = |burst, attempts| v1::TrafficPolicy {
        retry: retries(attempts).retry,
        ..limit(v1::RateLimit {
            requests: 100,
            per_ms: 60_000,
            burst,
            shadow: Some(true),
            ..Default::default()
        })
    };
    let mut step = |burst, attempts| {
        let gateway = traffic("p/g", target("Gateway", "infra/gw", ""), wide(burst, attempts));
        let snapshot = build(&mut builder, [gateway]);
        let request = OwnedRequest::get("h", "/one");
        let Routed::Matched(m) = snapshot.bindings()[0].route(&request, None, &mut NoReasons) else {
            panic!("it has a rule");
        };
        let limit = m.policy().rate_limit().unwrap();
        (limit.spec, limit.ask("caller", Tick::ZERO).remaining, limit.origin.to_string())
    };
    let (spec, left, whose) = step(3, 0);
    assert_eq!((spec.requests, spec.per, spec.burst, spec.shadow), (2, Duration::from_mins(1), 3, true));
    assert_eq!((left, &*whose), (2, "TrafficPolicy p/r"));
    assert_eq!(step(3, 1).1, 1, "another word of the wider policy changes nothing");
    assert_eq!(step(4, 1).1, 3, "other numbers begin anew");
}

#[test]
fn a_rate_limit_counts_on_while_something_else_of_its_policy_is_edited() {
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, world());
    let mut version = 0;
    let mut step = |per_ms, attempts, target: Option<v1::policy::Target>| {
        let spec = v1::TrafficPolicy {
            rate_limit: Some(v1::RateLimit {
                requests: 5,
                per_ms,
                burst: 5,
                fair_share: Some(true),
                ..Default::default()
            }),
            ..retries(attempts)
        };
        version += 1;
        let source = source("TrafficPolicy", "p/r", 0);
        let message = v1::Policy {
            source: source.map(|source| v1::Source {
                generation: version,
                line: 7,
                file: "f".into(),
                ..source
            }),
            targets: target.into_iter().collect(),
            spec: Some(v1::policy::Spec::Traffic(spec)),
        };
        let change = match message.targets.is_empty() {
            true => Change::remove::<v1::Policy>("TrafficPolicy/p/r"),
            false => Change::upsert("TrafficPolicy/p/r", &version.to_string(), &message),
        };
        let snapshot = build(&mut builder, [change]);
        let request = OwnedRequest::get("h", "/one");
        let Routed::Matched(m) = snapshot.bindings()[0].route(&request, None, &mut NoReasons) else {
            panic!("it has a rule");
        };
        let limit = m.policy().rate_limit()?;
        assert_eq!(limit.origin.generation, version, "who reads of it is told where it says so now");
        Some(limit.ask("caller", Tick::ZERO).remaining)
    };
    let route = || Some(target("HTTPRoute", "app/r", ""));
    assert_eq!(step(60_000, 0, route()), Some(4));
    assert_eq!(step(60_000, 1, route()), Some(3), "another part of it");
    assert_eq!(step(60_000, 1, Some(target("Gateway", "infra/gw", ""))), Some(2), "where it is attached");
    assert_eq!(step(70_000, 1, route()), Some(4), "other numbers");
    assert_eq!(step(70_000, 2, route()), Some(3));
    assert_eq!(step(70_000, 2, None), None);
    assert_eq!(step(70_000, 2, route()), Some(4), "one that was gone is new");
}

#[test]
fn a_fault_of_two_policies_is_told_by_who_says_each_kind_of_it() {
    use v1::fault_injection::{Abort, Delay, abort::With};
    let fault = |said| v1::TrafficPolicy { fault_injection: Some(said), ..nothing() };
    let share = |numerator| Some(v1::Share { numerator, denominator: 100 });
    let wide = fault(v1::FaultInjection {
        delay: Some(Delay { share: share(50), time_ms: 10 }),
        abort: Some(Abort { share: share(7), with: Some(With::Status(503)) }),
        ..Default::default()
    });
    let narrow = fault(v1::FaultInjection {
        abort: Some(Abort { share: share(0), with: Some(With::GrpcStatus(14)) }),
        ..Default::default()
    });
    let (gateway, route) = (target("Gateway", "infra/gw", ""), target("HTTPRoute", "app/r", ""));
    let snapshot =
        snapshot(world().into_iter().chain([traffic("p/g", gateway, wide), traffic("p/r", route, narrow)]));
    let Routed::Matched(m) =
        snapshot.bindings()[0].route(&OwnedRequest::get("h", "/one"), None, &mut NoReasons)
    else {
        panic!("it has a rule");
    };
    let fault = m.policy().fault(m.rule().backends[0].cluster().unwrap()).unwrap();
    let (delay, abort) = (fault.delay.as_ref().unwrap(), fault.abort.as_ref().unwrap());
    assert_eq!((delay.origin.to_string().as_str(), delay.share.numerator), ("TrafficPolicy p/g", 50));
    assert_eq!((abort.origin.to_string().as_str(), abort.share.numerator), ("TrafficPolicy p/r", 0));
    assert_eq!(abort.what, crate::Abort::Grpc(14));
}

/// Every part, with nothing in it that could be left out.
fn bare_parts() -> v1::TrafficPolicy {
    use v1::health_check::{Http, Probe};
    v1::TrafficPolicy {
        circuit_breaker: Some(v1::CircuitBreaker { slow_after_ms: 1, ..Default::default() }),
        outlier_detection: Some(v1::OutlierDetection {
            success_rate: Some(v1::outlier_detection::SuccessRate::default()),
            failure_percentage: Some(v1::outlier_detection::FailurePercentage::default()),
            shared: Some(v1::outlier_detection::Shared::default()),
            ..Default::default()
        }),
        admission_control: Some(v1::AdmissionControl::default()),
        overload: Some(v1::Overload {
            adaptive_concurrency: Some(v1::overload::AdaptiveConcurrency::default()),
            ..Default::default()
        }),
        health_check: Some(v1::HealthCheck {
            probe: Some(Probe::Http(Http { path: "/".into(), ..Default::default() })),
            ..Default::default()
        }),
        load_balancer: Some(v1::LoadBalancer {
            failover: Some(v1::Failover::default()),
            slow_start: Some(v1::SlowStart { window_ms: 1, ..Default::default() }),
            ..Default::default()
        }),
        ..nothing()
    }
}

#[test]
fn what_nobody_says_of_failures_is_the_default() {
    let is = service_with([nothing(), bare_parts(), nothing()]);
    let breaker = CircuitBreaker {
        mode: BreakerMode::Enforce,
        window: WindowSize::Time(Duration::from_secs(10)),
        minimum_calls: 20,
        failure_percent: Some(50),
        slow_calls: Some((Duration::from_millis(1), 100)),
        open_time: Duration::from_secs(5),
        max_open_time: Duration::from_mins(1),
        trials: 5,
    };
    assert_eq!((is.circuit_breaker, is.endpoint_breaker), (Some(breaker), None));
    let outlier = OutlierDetection {
        consecutive_5xx: 5,
        consecutive_gateway_failure: 0,
        consecutive_local_origin_failure: 5,
        split_external_local_origin_errors: false,
        interval: Duration::from_secs(10),
        success_rate: Some(SuccessRate { minimum_hosts: 5, request_volume: 100, stdev_factor: 1_900 }),
        failure_percentage: Some(FailurePercentage { threshold: 85, minimum_hosts: 5, request_volume: 50 }),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_mins(5),
        max_ejection_percent: 10,
        shared: Some(SharedEjection { observers: 2, percent: 50 }),
    };
    assert_eq!(is.outlier_detection, Some(outlier));
}

#[test]
fn what_nobody_says_of_load_and_checks_is_the_default() {
    let millis = Duration::from_millis;
    let is = service_with([nothing(), bare_parts(), nothing()]);
    assert_eq!(is.admission.as_deref(), Some(&AdmissionControl::default()));
    let overload = is.overload.as_ref().unwrap();
    let concurrency = AdaptiveConcurrency {
        min_concurrency: 3,
        max_concurrency: 1_000,
        update_interval: millis(100),
        buffer: 50,
        min_rtt_interval: Duration::from_secs(15),
        jitter: 15,
    };
    let queue = Queue { max_requests: 256, max_wait: millis(500), target: None, interval: None };
    assert_eq!((overload.concurrency, overload.queue), (concurrency, queue));
    let check = is.health_check.as_ref().unwrap();
    let HealthProbe::Http { method, host: None, expected, .. } = &check.probe else { panic!("by HTTP") };
    assert_eq!((&**method, expected[0].clone(), expected.len()), ("GET", 200..201, 1));
    let times = (check.interval, check.interval_jitter, check.timeout, check.no_traffic_interval);
    assert_eq!(times, (millis(3_000), millis(300), millis(1_000), millis(3_000)));
    assert_eq!((check.unhealthy_threshold, check.healthy_threshold), (3, 1));
    assert_eq!((is.preference.overprovisioning_factor, is.preference.panic_threshold), (140, 50));
    let slow_start = is.slow_start.unwrap();
    assert_eq!((slow_start.aggression, slow_start.min_weight_percent), (1_000, 10));
}

#[test]
fn a_default_goes_by_what_is_said_beside_it() {
    let breaker = |said| {
        service_with([nothing(), v1::TrafficPolicy { circuit_breaker: Some(said), ..nothing() }, nothing()])
    };
    let is = breaker(v1::CircuitBreaker { open_ms: 120_000, ..Default::default() }).circuit_breaker.unwrap();
    assert_eq!(is.max_open_time, Duration::from_secs(120), "the longest is no shorter than the first");
    let is =
        breaker(v1::CircuitBreaker { max_open_ms: 1_000, ..Default::default() }).circuit_breaker.unwrap();
    assert_eq!(is.open_time, Duration::from_secs(1), "nor is it open longer than the longest");
    let long = v1::OutlierDetection { base_ejection_time_ms: 400_000, ..Default::default() };
    let is = service_with([
        nothing(),
        v1::TrafficPolicy { outlier_detection: Some(long), ..nothing() },
        nothing(),
    ]);
    assert_eq!(is.outlier_detection.unwrap().max_ejection_time, Duration::from_secs(400));
    let many = v1::overload::AdaptiveConcurrency { min_concurrency: 2_000, ..Default::default() };
    let many = v1::Overload { adaptive_concurrency: Some(many), ..Default::default() };
    let is = service_with([nothing(), v1::TrafficPolicy { overload: Some(many), ..nothing() }, nothing()]);
    let overload = is.overload.as_ref().unwrap();
    assert_eq!(overload.concurrency.max_concurrency, 2_000, "the most is no less than the least");
}
