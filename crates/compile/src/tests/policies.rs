use super::{HTTP, World, attachments, compiled, conditions, diagnostics, gateway, resource, route, service};
use crate::input::{CatalogInstance, CatalogPort, CatalogService, Health, Transport};
use meshwork_base::{InstanceId, QualifiedName, SpiffeId};
use meshwork_messages::v1;
use std::collections::BTreeMap;

fn policy(kind: &str, name: &str, created: u32, spec: &str) -> String {
    format!(
        "---\napiVersion: meshwork.dev/v1alpha1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-01-0{created}T00:00:00Z'}}\nspec: {spec}\n"
    )
}

fn shop() -> String {
    let named = "{parentRefs: [{name: web}], rules: [{name: cart}]}";
    [gateway(HTTP), service("shop", "reviews"), route("shop", "r", named)].concat()
}

#[test]
fn targets_are_found_or_told() {
    let gateway_group = "group: gateway.networking.k8s.io";
    let cases = [
        ("group: '', kind: Service, name: reviews".to_owned(), "True Accepted", "Service shop/reviews "),
        ("group: '', kind: Service, name: reviws".to_owned(), "False TargetNotFound", ""),
        ("group: '', kind: Service, name: reviews, sectionName: grpc".to_owned(), "False TargetNotFound", ""),
        ("group: '', kind: Namespace, name: shop".to_owned(), "True Accepted", "Namespace shop "),
        (format!("{gateway_group}, kind: Gateway, name: web"), "True Accepted", "Gateway shop/web "),
        (
            format!("{gateway_group}, kind: Gateway, name: web, sectionName: http"),
            "True Accepted",
            "Gateway shop/web http",
        ),
        (format!("{gateway_group}, kind: Gateway, name: web, sectionName: htp"), "False TargetNotFound", ""),
        (
            format!("{gateway_group}, kind: HTTPRoute, name: r, sectionName: cart"),
            "True Accepted",
            "HTTPRoute shop/r cart",
        ),
        (format!("{gateway_group}, kind: HTTPRoute, name: r, sectionName: card"), "False TargetNotFound", ""),
    ];
    for (target, expected, compiled_target) in cases {
        let spec = format!("{{targetRefs: [{{{target}}}], timeouts: {{request: 2s}}}}");
        let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, &spec)].concat());
        let told = conditions(&output, "TrafficPolicy shop/p");
        assert!(told[0].ends_with(&format!("Accepted={expected}")), "{target}: {told:?}");
        let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p");
        let targets = message.iter().flat_map(|policy| &policy.targets);
        let targets: Vec<_> = targets.map(|t| format!("{} {} {}", t.kind, t.name, t.section)).collect();
        assert_eq!(targets.concat(), compiled_target, "{target}");
        let codes = if compiled_target.is_empty() { vec!["MW2016"] } else { vec![] };
        let found: Vec<_> =
            diagnostics(&output).iter().map(|d| d.split(' ').nth(1).unwrap().to_owned()).collect();
        assert_eq!(found, codes, "{target}");
    }
}

#[test]
fn of_two_policies_that_say_the_same_the_older_wins() {
    let at = "targetRefs: [{group: '', kind: Service, name: reviews}]";
    let timeouts = format!("{{{at}, timeouts: {{request: 2s}}}}");
    let limits = format!("{{{at}, limits: {{maxRequests: 10}}}}");
    let output = compiled(
        &[
            shop(),
            policy("TrafficPolicy", "a-young", 2, &timeouts),
            policy("TrafficPolicy", "z-old", 1, &timeouts),
            policy("TrafficPolicy", "other-part", 3, &limits),
        ]
        .concat(),
    );
    let accepted = |name: &str| conditions(&output, &format!("TrafficPolicy shop/{name}")).concat();
    assert_eq!(accepted("z-old"), "reviews Accepted=True Accepted");
    assert_eq!(accepted("a-young"), "reviews Accepted=False Conflicted");
    assert_eq!(accepted("other-part"), "reviews Accepted=True Accepted", "different parts are merged");
    assert!(resource::<v1::Policy>(&output, "TrafficPolicy/shop/a-young").is_none());

    let deny = format!("{{{at}, action: Deny, rules: [{{to: [{{methods: [DELETE]}}]}}]}}");
    let both = ["a", "b"].map(|name| policy("AuthorizationPolicy", name, 1, &deny)).concat();
    let output = compiled(&[shop(), both].concat());
    for name in ["a", "b"] {
        let told = conditions(&output, &format!("AuthorizationPolicy shop/{name}"));
        assert_eq!(told, ["reviews Accepted=True Accepted"], "authorization adds up");
    }
    assert_eq!(attachments(&output, "HTTPRoute/shop/r"), ["shop/web/http"]);
}

/// What a policy on a service comes to.
fn traffic(spec: &str) -> v1::TrafficPolicy {
    let spec = format!("{{targetRefs: [{{group: '', kind: Service, name: reviews}}], {spec}}}");
    let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, &spec)].concat());
    let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
    let Some(v1::policy::Spec::Traffic(traffic)) = message.spec else { panic!("a traffic policy") };
    traffic
}

#[test]
fn balancer_and_breaker_say_what_is_written_and_no_default() {
    use v1::circuit_breaker::{Mode, Window};
    use v1::traffic_policy::Algorithm;
    for (name, wire) in [
        ("PeakEwma", Algorithm::PeakEwma),
        ("LeastRequest", Algorithm::LeastRequest),
        ("RoundRobin", Algorithm::RoundRobin),
        ("Random", Algorithm::Random),
    ] {
        assert_eq!(traffic(&format!("loadBalancer: {{algorithm: {name}}}")).algorithm(), wire);
    }
    assert_eq!(traffic("loadBalancer: {algorithm: Random}").load_balancer, None);
    assert_eq!(traffic("circuitBreaker: {}").circuit_breaker, Some(v1::CircuitBreaker::default()));
    let of_few = traffic("circuitBreaker: {window: {calls: 10}, maxOpenTime: 1s}").circuit_breaker.unwrap();
    let said = v1::CircuitBreaker {
        window: Some(Window::WindowCalls(10)),
        max_open_ms: 1_000,
        ..v1::CircuitBreaker::default()
    };
    assert_eq!(of_few, said);
    assert_eq!(traffic("circuitBreaker: {per: Endpoint}").circuit_breaker.unwrap().per_endpoint, Some(true));
    assert_eq!(traffic("circuitBreaker: {per: Service}").circuit_breaker.unwrap().per_endpoint, Some(false));
    let of_rule = "{targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: cart}], \
                   circuitBreaker: {per: Route}}";
    let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, of_rule)].concat());
    let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
    let of_service = v1::policy::Spec::Traffic(traffic("circuitBreaker: {per: Service}"));
    assert_eq!(message.spec, Some(of_service), "the target says it");
    let long = "circuitBreaker: {mode: ForcedOpen, window: {time: 1s}, minimumCalls: 3, failurePercent: 4, \
                slowCalls: {after: 2s, percent: 5}, openTime: 2m, trials: 6}";
    let said = v1::CircuitBreaker {
        mode: Mode::ForcedOpen.into(),
        window: Some(Window::WindowMs(1_000)),
        minimum_calls: 3,
        failure_percent: 4,
        slow_percent: 5,
        slow_after_ms: 2_000,
        open_ms: 120_000,
        max_open_ms: 0,
        trials: 6,
        per_endpoint: None,
    };
    assert_eq!(traffic(long).circuit_breaker, Some(said));
}

#[test]
fn admission_and_limits_of_endpoints_say_what_is_written() {
    assert_eq!(traffic("admissionControl: {}").admission_control, Some(v1::AdmissionControl::default()));
    let long = "admissionControl: {samplingWindow: 5s, aggression: 2.5, rpsThreshold: 0, maxRejectionProbability: 0, \
                priorities: [{priority: High, headers: [{name: a, value: b}]}]}";
    let long = traffic(long).admission_control.unwrap();
    assert_eq!((long.sampling_window_ms, long.aggression_thousandths), (5_000, 2_500));
    assert_eq!((long.rps_threshold, long.max_rejection_percent), (Some(0), Some(0)), "none is a word too");
    assert_eq!((long.success_rate_threshold, long.priorities.len()), (0, 1));
    let each = traffic("limits: {perEndpoint: {maxRequests: 7}}").limits.unwrap();
    assert_eq!((each.max_requests_per_endpoint, each.max_connections_per_endpoint), (7, 0));
    let each = traffic("limits: {perEndpoint: {maxRetries: 7}}").limits.unwrap();
    assert_eq!((each.max_retries_per_endpoint, each.max_retries), (7, 0));
    let each = traffic("limits: {perEndpoint: {maxPendingRequests: 7}}").limits.unwrap();
    assert_eq!((each.max_requests_per_endpoint, each.max_pending_requests_per_endpoint), (0, 7));
}

#[test]
fn what_a_rate_limit_a_fault_and_a_hedge_leave_out_is_not_said() {
    use v1::fault_injection::abort::With;
    let traffic = |spec: &str| {
        let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";
        let spec = format!("{{targetRefs: [{route}], {spec}}}");
        let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, &spec)].concat());
        let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
        let Some(v1::policy::Spec::Traffic(traffic)) = message.spec else { panic!("a traffic policy") };
        traffic
    };
    use v1::hedge::Delay;
    let hedge = |spec: &str| traffic(spec).hedge.unwrap();
    let fixed = v1::Hedge { delay: Some(Delay::FixedMs(50)), least_ms: None, budget_percent: 0 };
    assert_eq!(hedge("hedge: {delay: 50ms}"), fixed);
    let learnt = v1::Hedge { delay: Some(Delay::Percentile(95)), least_ms: Some(2), budget_percent: 5 };
    assert_eq!(hedge("hedge: {delayPercentile: 95, minDelay: 2ms, budgetPercent: 5}"), learnt);
    let limit = |spec: &str| traffic(spec).rate_limit.unwrap();
    let short = v1::RateLimit { requests: 10, ..v1::RateLimit::default() };
    assert_eq!(limit("rateLimit: {requests: 10}"), short);
    let (fair_share, shadow) = (Some(true), Some(true));
    let long = v1::RateLimit { requests: 10, per_ms: 60_000, burst: 3, fair_share, shadow };
    assert_eq!(limit("rateLimit: {requests: 10, per: 1m, burst: 3, fairShare: true, mode: Shadow}"), long);
    let fault = "faultInjection: {headers: [{name: X-Test, value: 'on'}], delay: {percent: 5, time: 2s},
      abort: {fraction: {numerator: 1, denominator: 1000}, grpcStatus: unavailable}, bandwidth: {kibPerSecond: 8}}";
    let fault = traffic(fault).fault_injection.unwrap();
    let share = |numerator, denominator| Some(v1::Share { numerator, denominator });
    let (delay, abort, slow) = (fault.delay.unwrap(), fault.abort.unwrap(), fault.bandwidth.unwrap());
    assert_eq!((delay.share, delay.time_ms), (share(5, 100), 2_000));
    assert_eq!((abort.share, abort.with), (share(1, 1_000), Some(With::GrpcStatus(14))));
    assert_eq!((slow.share, slow.bytes_per_second), (None, 8_192), "how many is not said");
    assert_eq!(fault.headers[0].name.to_lowercase(), "x-test");
}

#[test]
fn what_a_retry_leaves_out_is_not_said() {
    let said = traffic(
        "retry: {on: [gateway-error, 500, unavailable]}, outlierDetection: {}, timeouts: {request: 0s}",
    );
    let on = v1::retry::On {
        status_codes: vec![500, 502, 503, 504],
        grpc_codes: vec![14],
        reset: true,
        connect_failure: true,
        refused: true,
    };
    let retry = v1::Retry { on: Some(on), ..v1::Retry::default() };
    assert_eq!(said.retry, Some(retry), "no answer is a gateway error");
    assert_eq!(said.outlier_detection, Some(v1::OutlierDetection::default()));
    let timeouts = said.timeouts.unwrap();
    assert_eq!(
        (timeouts.request_ms, timeouts.connect_ms),
        (u32::MAX, 0),
        "zero switches off, absent says nothing"
    );
    let never = traffic("retry: {attempts: 0, backoff: {base: 0s}, budget: {percent: 0}}").retry.unwrap();
    assert_eq!((never.attempts, never.on, never.backoff_base_ms), (Some(0), None, Some(0)));
    let budget = v1::RetryBudget { percent: Some(0), min_per_second: None };
    assert_eq!((never.backoff_max_ms, never.budget), (None, Some(budget)));
}

#[test]
fn outlier_detection_is_passed_on_as_written() {
    let spec = "{targetRefs: [{group: '', kind: Service, name: reviews}], outlierDetection: {consecutive5xx: 0,
  consecutiveGatewayFailure: 2, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailure: 3, interval: 1s,
  successRate: {stdevFactor: 1500}, failurePercentage: {requestVolume: 7}, baseEjectionTime: 400s,
  shared: {percent: 30}}}";
    let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, spec)].concat());
    let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
    let Some(v1::policy::Spec::Traffic(traffic)) = message.spec else { panic!("a traffic policy") };
    let expected = v1::OutlierDetection {
        consecutive_5xx: Some(0),
        consecutive_gateway_failure: Some(2),
        split_external_local_origin_errors: Some(true),
        consecutive_local_origin_failure: Some(3),
        interval_ms: 1_000,
        success_rate: Some(v1::outlier_detection::SuccessRate { stdev_factor: 1_500, ..Default::default() }),
        failure_percentage: Some(v1::outlier_detection::FailurePercentage {
            request_volume: 7,
            ..Default::default()
        }),
        base_ejection_time_ms: 400_000,
        max_ejection_time_ms: 0,
        max_ejection_percent: 0,
        shared: Some(v1::outlier_detection::Shared { observers: 0, percent: Some(30) }),
    };
    assert_eq!(traffic.outlier_detection, Some(expected));
}

#[test]
fn what_a_health_check_leaves_out_is_not_said() {
    use v1::health_check::{Grpc, Http, Probe, StatusRange, Tcp};
    let check = |said: &str| {
        let at = "targetRefs: [{group: '', kind: Service, name: reviews}]";
        let spec = format!("{{{at}, healthCheck: {said}}}");
        let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, &spec)].concat());
        let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
        let Some(v1::policy::Spec::Traffic(traffic)) = message.spec else { panic!("a traffic policy") };
        traffic.health_check.unwrap()
    };
    let http = Http { path: "/healthz".into(), ..Http::default() };
    let short = v1::HealthCheck { probe: Some(Probe::Http(http.clone())), ..v1::HealthCheck::default() };
    assert_eq!(check("{http: {path: /healthz}}"), short);
    let long = "{http: {path: /healthz, host: a.example.com, method: HEAD, expectedStatuses: [{start: 200, end: 300}]},
  interval: 5s, intervalJitter: 0s, timeout: 2s, noTrafficInterval: 1m, unhealthyThreshold: 4, healthyThreshold: 2}";
    let http = Http {
        method: "HEAD".into(),
        host: "a.example.com".into(),
        expected: vec![StatusRange { start: 200, end: 300 }],
        ..http
    };
    let said = v1::HealthCheck {
        probe: Some(Probe::Http(http)),
        interval_ms: 5_000,
        interval_jitter_ms: Some(0),
        timeout_ms: 2_000,
        no_traffic_interval_ms: 60_000,
        unhealthy_threshold: 4,
        healthy_threshold: 2,
    };
    assert_eq!(check(long), said);
    let tcp = Tcp { send: "PING".into(), receive: "PONG".into() };
    assert_eq!(check("{tcp: {send: PING, receive: PONG}}").probe, Some(Probe::Tcp(tcp)));
    assert_eq!(check("{tcp: {}}").probe, Some(Probe::Tcp(Tcp::default())));
    let grpc = Grpc { service: "shop.Reviews".into() };
    assert_eq!(check("{grpc: {service: shop.Reviews}}").probe, Some(Probe::Grpc(grpc)));
}

#[test]
fn what_tells_requests_apart_is_written_out() {
    use v1::hash_rule::Kind;
    let spec = "{targetRefs: [{group: '', kind: Service, name: reviews}], loadBalancer: {algorithm: Maglev, hashBalanceFactor: 150, hashPolicy: [
  {type: Header, name: X-User, terminal: true}, {type: Cookie, name: Sid, ttl: 1500ms, path: /cart}, {type: Cookie, name: own},
  {type: QueryParameter, name: User}, {type: SourceAddress}]}}";
    let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, spec)].concat());
    let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
    let Some(v1::policy::Spec::Traffic(traffic)) = message.spec else { panic!("a traffic policy") };
    assert_eq!(traffic.algorithm(), v1::traffic_policy::Algorithm::Maglev);
    let cookie = |name: &str, ttl_seconds, path: &str| {
        Kind::Cookie(v1::HashCookie { name: name.to_owned(), ttl_seconds, path: path.to_owned() })
    };
    let rule = |kind, terminal| v1::HashRule { kind: Some(kind), terminal };
    let hash_policy = vec![
        rule(Kind::Header("x-user".to_owned()), true),
        rule(cookie("Sid", Some(2), "/cart"), false),
        rule(cookie("own", None, ""), false),
        rule(Kind::QueryParameter("User".to_owned()), false),
        rule(Kind::SourceAddress(true), false),
    ];
    assert_eq!(
        traffic.load_balancer,
        Some(v1::LoadBalancer { hash_policy, hash_balance_factor: 150, ..Default::default() })
    );
}

#[test]
fn how_an_endpoint_begins_is_passed_on_as_written() {
    let slow_start = |said: &str| {
        let spec = format!(
            "{{targetRefs: [{{group: '', kind: Service, name: reviews}}], loadBalancer: {{slowStart: {said}}}}}"
        );
        let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, &spec)].concat());
        let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
        let Some(v1::policy::Spec::Traffic(traffic)) = message.spec else { panic!("a traffic policy") };
        traffic.load_balancer.unwrap().slow_start.unwrap()
    };
    let short = v1::SlowStart { window_ms: 60_000, ..v1::SlowStart::default() };
    assert_eq!(slow_start("{window: 1m}"), short);
    let said = v1::SlowStart { window_ms: 250, aggression: 1_500, min_weight_percent: 1 };
    assert_eq!(slow_start("{window: 250ms, aggression: 1.5, minWeightPercent: 1}"), said);
    let spec =
        "{targetRefs: [{group: '', kind: Service, name: reviews}], loadBalancer: {subsetting: {size: 20}}}";
    let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, spec)].concat());
    let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
    let Some(v1::policy::Spec::Traffic(traffic)) = message.spec else { panic!("a traffic policy") };
    assert_eq!(traffic.load_balancer.unwrap().subset_size, 20);
}

#[test]
fn who_goes_first_is_passed_on_as_written() {
    let failover = |said: &str| {
        let spec = format!(
            "{{targetRefs: [{{group: '', kind: Service, name: registered}}], loadBalancer: {{failover: {said}}}}}"
        );
        let output = with_registered(vec![]).compile(&policy("TrafficPolicy", "p", 1, &spec));
        let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
        let Some(v1::policy::Spec::Traffic(traffic)) = message.spec else { panic!("a traffic policy") };
        assert_eq!(traffic.algorithm, 0, "no algorithm is said");
        traffic.load_balancer.unwrap().failover.unwrap()
    };
    assert_eq!(failover("{}"), v1::Failover::default());
    let said = failover(
        "{prefer: None, priorities: [{matchLabels: {tier: main}}], overprovisioningFactor: 100, healthyPanicThreshold: 0}",
    );
    let labels = v1::Labels { labels: [("tier".to_owned(), "main".to_owned())].into() };
    let expected = v1::Failover {
        prefer: v1::failover::Prefer::Nothing.into(),
        priorities: vec![labels],
        overprovisioning_factor: 100,
        panic_threshold: Some(0),
    };
    assert_eq!(said, expected);
}

/// Service `shop/registered` of the registry, with instances that are reached in these ways.
pub(super) fn with_registered(transports: Vec<Transport>) -> World {
    let mut world = World::default();
    let instances = (0..).zip(transports).map(|(n, transport)| CatalogInstance {
        id: InstanceId::new(&format!("registered-{n}")).unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        ports: BTreeMap::new(),
        health: Health::Healthy,
        weight: 1,
        workload: String::new(),
        version: String::new(),
        zone: String::new(),
        region: String::new(),
        transport,
        labels: BTreeMap::new(),
    });
    let ports = vec![CatalogPort { port: 80, ..CatalogPort::default() }];
    let known = CatalogService { ports, instances: instances.collect(), ..CatalogService::default() };
    world.catalog.services.insert(QualifiedName::new("shop", "registered").unwrap(), known);
    world
}

#[test]
fn what_is_said_of_a_name_holds_for_each_port_that_instances_call_so() {
    let mut world = with_registered(vec![]);
    let port = |name: &str, said: &str, port| CatalogPort {
        name: name.to_owned(),
        said: said.to_owned(),
        port,
        ..CatalogPort::default()
    };
    let service = world.catalog.services.values_mut().next().unwrap();
    service.ports = vec![port("http", "", 80), port("http-8080", "http", 8080), port("other", "", 81)];
    let at = |section: &str, rest: &str| {
        format!(
            "{{targetRefs: [{{group: '', kind: Service, name: registered, sectionName: {section}}}], {rest}}}"
        )
    };
    let (deny, strict) = ("action: Deny, rules: [{}]", "mtls: Strict");
    let limit = |most: u32| format!("limits: {{maxRequests: {most}}}, timeouts: {{request: 1s}}");
    let policies = [
        policy("AuthorizationPolicy", "deny", 1, &at("http", deny)),
        policy("AuthorizationPolicy", "elsewhere", 1, &at("other", deny)),
        policy("InboundPolicy", "strict", 1, &at("http", strict)),
        policy("TrafficPolicy", "name", 1, &at("http", &limit(10))),
        policy("TrafficPolicy", "port", 2, &at("http-8080", "limits: {maxRequests: 20}")),
    ];
    let output = world.compile(&policies.concat());
    assert_eq!(diagnostics(&output), [""; 0]);
    let sections = |policy: &str| {
        let message = resource::<v1::Policy>(&output, policy).unwrap();
        message.targets.into_iter().map(|target| target.section).collect::<Vec<_>>()
    };
    assert_eq!(sections("AuthorizationPolicy/shop/deny"), ["http", "http-8080"]);
    assert_eq!(sections("AuthorizationPolicy/shop/elsewhere"), ["other"]);
    assert_eq!(sections("InboundPolicy/shop/strict"), ["http", "http-8080"]);
    assert_eq!(sections("TrafficPolicy/shop/name"), ["http"], "who names the port goes first");
    assert_eq!(sections("TrafficPolicy/shop/port"), ["http-8080"]);
    assert_eq!(conditions(&output, "AuthorizationPolicy shop/deny").len(), 1, "it has been written once");
}

/// What a traffic policy that says this is told at a service.
fn told_at(world: &World, service: &str, objects: &str, said: &str) -> String {
    let spec = format!("{{targetRefs: [{{group: '', kind: Service, name: {service}}}], {said}}}");
    let output = world.compile(&[objects, &policy("TrafficPolicy", "p", 1, &spec)].concat());
    let refused = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").is_none();
    let codes = diagnostics(&output).concat();
    assert_eq!(refused, codes.contains("MW2023"), "{said}: {codes}");
    conditions(&output, "TrafficPolicy shop/p").concat()
}

#[test]
fn what_an_overload_policy_leaves_out_is_not_said() {
    use v1::overload::{AdaptiveConcurrency, Priority, Queue};
    let overload = |spec: &str| {
        let spec = format!("{{targetRefs: [{{group: '', kind: Namespace, name: shop}}], overload: {spec}}}");
        let output = compiled(&[shop(), policy("TrafficPolicy", "p", 1, &spec)].concat());
        let message = resource::<v1::Policy>(&output, "TrafficPolicy/shop/p").unwrap();
        let Some(v1::policy::Spec::Traffic(traffic)) = message.spec else { panic!("a traffic policy") };
        traffic.overload.unwrap()
    };
    let short = overload("{adaptiveConcurrency: {}}");
    assert_eq!(short.adaptive_concurrency, Some(AdaptiveConcurrency::default()));
    assert_eq!((short.queue, short.priorities.len()), (None, 0));
    let long = overload(
        "{adaptiveConcurrency: {minConcurrency: 2000}, queue: {maxRequests: 0, maxWait: 1s, target: 10ms, interval: 1s},
         priorities: [{priority: Low, headers: [{name: X-Kind, value: batch}], from: [{namespaces: [batch]}], to: [{paths: [/a*]}]}]}",
    );
    let adaptive = long.adaptive_concurrency.unwrap();
    assert_eq!((adaptive.min_concurrency, adaptive.max_concurrency), (2_000, 0));
    let line = Queue { max_requests: Some(0), max_wait_ms: 1_000, target_ms: 10, interval_ms: 1_000 };
    assert_eq!(long.queue, Some(line));
    let rule = &long.priorities[0];
    assert_eq!((rule.priority(), &*rule.headers[0].value), (Priority::Low, "batch"));
    assert_eq!((&*rule.from[0].namespaces[0], &*rule.to[0].paths[0]), ("batch", "/a*"));
}

#[test]
fn a_service_whose_requests_nobody_counts_has_no_rate_limit() {
    let external = Transport::Plaintext;
    let in_mesh = Transport::Mesh {
        mesh_port: 15_006,
        hbone_port: 0,
        spiffe_id: SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/registered").unwrap(),
    };
    // Its callers keep it from overload.
    for (said, without) in [
        ("rateLimit: {requests: 10}", "False Invalid"),
        ("overload: {adaptiveConcurrency: {}}", "True Accepted"),
    ] {
        for (transports, expected) in [
            (vec![], "True Accepted"),
            (vec![external.clone()], without),
            (vec![external.clone(), in_mesh.clone()], "True Accepted"),
        ] {
            let world = with_registered(transports);
            assert_eq!(told_at(&world, "registered", "", said), format!("registered Accepted={expected}"));
        }
        let told = told_at(&World::default(), "reviews", &shop(), said);
        assert_eq!(told, format!("reviews Accepted={without}"), "a service of the files");
    }
}

#[test]
fn what_is_about_requests_is_refused_where_nobody_sees_them() {
    let ports = |spoken: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: shop}}\nspec: {{ports: [{spoken}]}}\n"
        )
    };
    let sql = ports("{name: sql, port: 5432, appProtocol: postgresql}");
    let both = ports("{name: sql, port: 5432, appProtocol: postgresql}, {name: http, port: 80}");
    let world = World::default();
    let header = "loadBalancer: {algorithm: Maglev, hashPolicy: [{type: Header, name: x-user}]}";
    let address = "loadBalancer: {algorithm: Maglev, hashPolicy: [{type: Header, name: x-user}, {type: SourceAddress}]}";
    let overload = "overload: {adaptiveConcurrency: {}}";
    assert!(told_at(&world, "s", &sql, overload).contains("False Invalid"));
    let parts = [
        "faultInjection: {delay: {time: 1s}}",
        "timeouts: {maxStreamDuration: 1m}",
        "timeouts: {connect: 1s, request: 1s}",
        "timeouts: {streamIdle: 1m}",
        "timeouts: {callerDeadline: Accept}",
        "limits: {maxConnections: 5, maxRequests: 5}",
        "retry: {attempts: 2, perTryTimeout: 1s}",
        "retry: {attempts: 2, on: [503]}",
        "retry: {attempts: 2, on: [reset, unavailable]}",
        "hedge: {delay: 1s}",
        "limits: {maxConnections: 5, maxPendingRequests: 5}",
        "limits: {perEndpoint: {maxConnections: 5, maxPendingRequests: 5}}",
        header,
    ];
    for said in parts {
        assert_eq!(told_at(&world, "s", &sql, said), "s Accepted=False Invalid", "{said}");
        assert_eq!(told_at(&world, "s", &both, said), "s Accepted=True Accepted", "{said}");
        let narrowed = told_at(&world, "s, sectionName: sql", &both, said);
        assert_eq!(narrowed, "s Accepted=False Invalid", "{said}");
    }
    let in_force = [
        address,
        "timeouts: {connect: 1s, idle: 1m}",
        "limits: {maxRetries: 2, perEndpoint: {maxConnections: 5, maxRequests: 5}}",
        "retry: {attempts: 2}",
        "retry: {attempts: 2, on: [5xx]}",
        "retry: {attempts: 2, on: [503, connect-failure]}",
        "retry: {attempts: 0, on: [503]}",
        // A connection that is slow to come is a slow call.
        "circuitBreaker: {slowCalls: {after: 1s}}",
    ];
    for said in in_force {
        assert_eq!(told_at(&world, "s", &sql, said), "s Accepted=True Accepted", "{said}");
    }
}

#[test]
fn endpoints_of_the_files_have_a_version_and_neither_other_labels_nor_regions() {
    for (said, expected) in [
        ("{priorities: [{matchLabels: {tier: main}}]}", "False Invalid"),
        ("{priorities: [{matchLabels: {version: v1}}]}", "True Accepted"),
        ("{prefer: Region}", "False Invalid"),
        ("{prefer: Zone}", "True Accepted"),
        ("{prefer: None, overprovisioningFactor: 100}", "True Accepted"),
    ] {
        let said = format!("loadBalancer: {{failover: {said}}}");
        let told = told_at(&World::default(), "reviews", &shop(), &said);
        assert_eq!(told, format!("reviews Accepted={expected}"), "{said}");
        let told = told_at(&with_registered(vec![]), "registered", "", &said);
        assert_eq!(told, "registered Accepted=True Accepted", "{said}");
    }
}
