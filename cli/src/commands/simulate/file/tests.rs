use meshwork_decision::simulator::Breaking;
use meshwork_decision::{
    AdaptiveConcurrency, AdmissionControl, BreakerMode, CircuitBreaker, Queue, WindowSize,
};

use super::*;

const LEAST: &str = "name: x\nduration: 1s\narrivals: {perSecond: 10}\ninstances: [{service: {mean: 1ms}}]\n";

#[test]
fn what_is_absent_has_its_default() {
    let (name, scenario) = read(LEAST).unwrap();
    let [instance] = &scenario.instances[..] else { panic!("one instance") };
    assert_eq!((&*name, scenario.clients, instance.weight, instance.concurrency), ("x", 1, 1, 1));
    assert_eq!(scenario.policies.retry.attempts, Policies::default().retry.attempts);
    assert!(scenario.policies.outlier_detection.is_none());
}

#[test]
fn what_is_said_counts() {
    let more = "network: 250us\npolicies:\n  loadBalancer: {algorithm: Random}\n  \
                outlierDetection: {consecutive5xx: 3}\n  \
                retry: {attempts: 1, perTryTimeout: 20ms, backoff: {base: 1ms, max: 2ms}, budget: {percent: 5}}\n  \
                hedge: {delayPercentile: 90}\n  \
                timeouts: {request: 7s}\n";
    let (_, scenario) = read(&[LEAST, more].concat()).unwrap();
    let policies = scenario.policies;
    assert_eq!(scenario.network, Duration::from_micros(250));
    assert_eq!((policies.algorithm, policies.timeout), (Algorithm::Random, Duration::from_secs(7)));
    assert_eq!(policies.outlier_detection.unwrap().consecutive_5xx, 3);
    let least = Duration::from_millis(10);
    let delay = HedgeDelay::Percentile { percent: 90, least };
    assert_eq!(policies.hedge, Some(HedgePolicy { delay, budget_percent: 10 }));
    let retry = policies.retry;
    assert_eq!((retry.attempts, retry.per_try_timeout), (1, Some(Duration::from_millis(20))));
    assert_eq!((retry.backoff_base, retry.backoff_max), (Duration::from_millis(1), Duration::from_millis(2)));
    assert_eq!(retry.budget, RetryBudget { percent: 5, min_per_second: 0 });
}

#[test]
fn times_of_zero_are_no_limits_as_in_a_policy() {
    let of = |said: &str| read(&format!("{LEAST}policies:\n  {said}\n"));
    let (_, scenario) = of("retry: {perTryTimeout: 0s}").unwrap();
    assert_eq!(scenario.policies.retry.per_try_timeout, None);
    let Wrong(why) = of("timeouts: {request: 0s}").unwrap_err();
    assert!(why.contains("line 6: policies.timeouts.request: above 0s, which is no limit"), "{why}");
    let Wrong(why) = of("retry: {perTryTimeout: 6s}").unwrap_err();
    assert!(why.contains("line 6: policies.retry.perTryTimeout: at most `timeouts.request`"), "{why}");
    let (_, scenario) = of("{retry: {perTryTimeout: 6s}, timeouts: {request: 6s}}").unwrap();
    assert_eq!(scenario.policies.retry.per_try_timeout, Some(Duration::from_secs(6)));
}

#[test]
fn what_is_said_of_overload_counts() {
    let more = "policies:\n  overload:\n    adaptiveConcurrency: {minConcurrency: 2, maxConcurrency: 9, buffer: 20, jitter: 0}\n    \
                queue: {maxRequests: 7, maxWait: 300ms, target: 20ms}\n";
    let text = [LEAST, more].concat().replace(
        "perSecond: 10",
        "perSecond: 10, highPercent: 20, loads: [{at: 0s, times: 0.5}, {at: 500ms, times: 3}]",
    );
    let (_, scenario) = read(&text).unwrap();
    let (concurrency, queue) = scenario.policies.overload.unwrap();
    assert_eq!(
        concurrency,
        AdaptiveConcurrency {
            min_concurrency: 2,
            max_concurrency: 9,
            buffer: 20,
            jitter: 0,
            ..AdaptiveConcurrency::DEFAULT
        }
    );
    let (wait, target) = (Duration::from_millis(300), Some(Duration::from_millis(20)));
    assert_eq!(queue, Queue { max_requests: 7, max_wait: wait, target, ..Queue::DEFAULT });
    let loads = vec![(Duration::ZERO, 0.5), (Duration::from_millis(500), 3.0)];
    assert_eq!((scenario.arrivals.loads, scenario.arrivals.high), (loads, 20));
    let short = [LEAST, "policies: {overload: {adaptiveConcurrency: {}}}\n"].concat();
    let defaults = Some((AdaptiveConcurrency::DEFAULT, Queue::DEFAULT));
    assert_eq!(read(&short).unwrap().1.policies.overload, defaults);
}

#[test]
fn what_is_wrong_about_overload_is_told_with_its_line() {
    for (said, says) in [
        (
            "adaptiveConcurrency: {minConcurrency: 0}",
            "line 7: policies.overload.adaptiveConcurrency.minConcurrency: 1 to",
        ),
        (
            "adaptiveConcurrency: {maxConcurrency: 2}",
            "line 7: policies.overload.adaptiveConcurrency.maxConcurrency: 3 to",
        ),
        (
            "adaptiveConcurrency: {updateInterval: 0s}",
            "line 7: policies.overload.adaptiveConcurrency.updateInterval: at least 1ms",
        ),
        (
            "adaptiveConcurrency: {buffer: 1001}",
            "line 7: policies.overload.adaptiveConcurrency.buffer: 0 to 1000",
        ),
        (
            "adaptiveConcurrency: {}\n    queue: {maxWait: 5ms, target: 6ms}",
            "line 8: policies.overload.queue.target: at most",
        ),
        ("adaptiveConcurrency: {}\n    priorities: []", "priorities"),
        ("queue: {}", "adaptiveConcurrency"),
    ] {
        let text = format!("{LEAST}policies:\n  overload:\n    {said}\n");
        let Wrong(why) = read(&text).unwrap_err();
        assert!(why.contains(says), "{said}: {why}");
    }
    for (said, says) in [
        ("highPercent: 101", "line 3: arrivals.highPercent: 1 to 100"),
        ("loads: [{at: 0s, times: 0}]", "line 3: arrivals.loads.times: above 0"),
        ("loads: [{at: 1s, times: 1}]", "line 3: arrivals.loads.at: before the end"),
        ("loads: [{at: 0s, times: 1}, {at: 0s, times: 2}]", "line 3: arrivals.loads: in the order of time"),
    ] {
        let Wrong(why) =
            read(&LEAST.replace("perSecond: 10", &format!("perSecond: 10, {said}"))).unwrap_err();
        assert!(why.contains(says), "{said}: {why}");
    }
}

#[test]
fn what_is_said_of_breakers_and_of_holding_back_counts() {
    let of =
        |said: &str| read(&format!("{LEAST}policies:\n  {said}\n")).map(|(_, scenario)| scenario.policies);
    let is = of("circuitBreaker: {}").unwrap().circuit_breaker.unwrap();
    let usual = CircuitBreaker {
        mode: BreakerMode::Enforce,
        window: WindowSize::Time(Duration::from_secs(10)),
        minimum_calls: 20,
        failure_percent: Some(50),
        slow_calls: None,
        open_time: Duration::from_secs(5),
        max_open_time: Duration::from_secs(60),
        trials: 5,
    };
    assert_eq!(is, Breaking { policy: usual, per_endpoint: false });
    let said = "circuitBreaker: {per: Endpoint, window: {calls: 10}, failurePercent: 30, slowCalls: {after: 50ms}, \
                openTime: 1s, maxOpenTime: 2s, trials: 3}";
    let policy = CircuitBreaker {
        window: WindowSize::Calls(10),
        minimum_calls: 10,
        failure_percent: Some(30),
        slow_calls: Some((Duration::from_millis(50), 100)),
        open_time: Duration::from_secs(1),
        max_open_time: Duration::from_secs(2),
        trials: 3,
        ..usual
    };
    assert_eq!(of(said).unwrap().circuit_breaker, Some(Breaking { policy, per_endpoint: true }));
    let usual = of("admissionControl: {}").unwrap().admission.unwrap();
    assert_eq!(*usual, AdmissionControl::default());
    let said = "admissionControl: {samplingWindow: 5s, successRateThreshold: 90, aggression: 1.5, rpsThreshold: 7, \
                maxRejectionProbability: 60}";
    let is = of(said).unwrap().admission.unwrap();
    assert_eq!((is.sampling_window, is.success_rate_threshold), (Duration::from_secs(5), 90));
    assert_eq!((is.aggression, is.rps_threshold, is.max_rejection_probability), (1_500, 7, 60));
    for (said, says) in [
        ("circuitBreaker: {per: Route}", "Route"),
        ("circuitBreaker: {window: {}}", "line 6: policies.circuitBreaker.window: `calls` or `time`"),
        (
            "circuitBreaker: {window: {calls: 9}, minimumCalls: 10}",
            "line 6: policies.circuitBreaker.minimumCalls: 1 to 9",
        ),
        (
            "circuitBreaker: {openTime: 2s, maxOpenTime: 1s}",
            "line 6: policies.circuitBreaker.maxOpenTime: at least",
        ),
        ("admissionControl: {aggression: 0.5}", "line 6: policies.admissionControl.aggression: 1 to 1000"),
        (
            "admissionControl: {successRateThreshold: 0}",
            "line 6: policies.admissionControl.successRateThreshold: 1 to 100",
        ),
        (
            "admissionControl: {samplingWindow: 0s}",
            "line 6: policies.admissionControl.samplingWindow: at least 1ms",
        ),
        ("admissionControl: {priorities: []}", "priorities"),
    ] {
        let Wrong(why) = of(said).unwrap_err();
        assert!(why.contains(says), "{said}: {why}");
    }
}

/// Simulated proxies hear of their policies by messages, which have milliseconds in 32 bits.
#[test]
fn times_that_no_message_can_tell_are_wrong() {
    for (field, said) in [
        ("circuitBreaker.openTime", "circuitBreaker: {openTime: TIME}"),
        ("circuitBreaker.maxOpenTime", "circuitBreaker: {maxOpenTime: TIME}"),
        ("circuitBreaker.window.time", "circuitBreaker: {window: {time: TIME}}"),
        ("circuitBreaker.slowCalls.after", "circuitBreaker: {slowCalls: {after: TIME}}"),
        ("admissionControl.samplingWindow", "admissionControl: {samplingWindow: TIME}"),
        ("outlierDetection.baseEjectionTime", "outlierDetection: {baseEjectionTime: TIME}"),
        ("loadBalancer.slowStart.window", "loadBalancer: {slowStart: {window: TIME}}"),
    ] {
        let of = |time: &str| read(&format!("{LEAST}policies:\n  {}\n", said.replace("TIME", time)));
        for wrong in ["1177h", "2000h", "500us", "1500us", "0s"] {
            let Wrong(why) = of(wrong).unwrap_err();
            let says = format!("line 6: policies.{field}: at least 1ms, at most 49 days");
            assert!(why.contains(&says), "{wrong}: {why}");
        }
        let (_, scenario) = of("1176h").unwrap_or_else(|why| panic!("{field}: {why}"));
        let report = meshwork_decision::simulator::run(&scenario, 1);
        assert_eq!(report.broken, None, "{field}");
    }
}

#[test]
fn what_is_no_scenario_is_told_where_it_is_not() {
    for (from, to, says) in [
        ("name: x", "nmae: x", "nmae"),
        ("1s", "soon", "soon"),
        ("perSecond: 10", "perSecond: 1e-20", "arrivals.perSecond: above 0, 0.001 to 1e9"),
        (
            "[{service",
            "[{phases: [{at: 1s, state: Serving, slower: 1e300}], service",
            "phases.slower: above 0, 1e6",
        ),
        ("{mean: 1ms}", "{mean: 1ms, spread: LogNormal, sigma: 1e9}", "service.sigma: above 0, 10"),
        ("perSecond: 10", "perSecond: 0", "arrivals.perSecond: above 0"),
        ("[{service", "[{count: 0, service", "instances[0].count"),
        ("[{service: {mean: 1ms}}]", "[]", "instances: at least one"),
        (
            "name: x",
            "name: x\npolicies: {loadBalancer: {subsetting: {size: 0}}}",
            "subsetting.size: at least 1",
        ),
        ("[{service", "[{joins: 1s, service", "instances: at least one that is there from the beginning"),
        (
            "name: x",
            "name: x\npolicies: {loadBalancer: {slowStart: {window: 1s, aggression: 0}}}",
            "slowStart.aggression: above 0",
        ),
        (
            "name: x",
            "name: x\npolicies: {loadBalancer: {slowStart: {window: 1s, minWeightPercent: 0}}}",
            "minWeightPercent: 1 to 100",
        ),
        ("{mean: 1ms}", "{mean: 1ms, sigma: 2}", "instances[0].service.sigma: only with LogNormal"),
        ("{mean: 1ms}", "{mean: 1ms, spread: LogNormal}", "service.sigma: above 0"),
        ("[{service", "[{weight: 0, service", "instances[0].weight: at least 1"),
        ("[{service", "[{phases: [{at: 1s, state: Lost, slower: 2}], service", "slower: only of Serving"),
        (
            "[{service",
            "[{phases: [{at: 1s, state: Lost}, {at: 1s, state: Away}], service",
            "in the order of time",
        ),
        ("duration: 1s", "duration: 1s\nwarmUp: 1s", "warmUp"),
        ("duration: 1s", "duration: 1s\nclients: 0", "clients: 1 to 1000"),
        ("perSecond: 10", "perSecond: 10, burst: {every: 0s, lasts: 0s, times: 2}", "above 0"),
        ("perSecond: 10", "perSecond: 10, burst: {every: 1s, lasts: 2s, times: 2}", "at most `every`"),
        ("perSecond: 10", "perSecond: 100000000", "at most 10000000 requests"),
        ("[{service", "[{zone: 1, service", "instances[0].zone: below `zones`, which is 0"),
        ("name: x", "name: x\npolicies: {retry: {budget: {percent: 101}}}", "percent: 0 to 100"),
        (
            "name: x",
            "name: x\npolicies: {outlierDetection: {maxEjectionPercent: 101}}",
            "line 2: policies.outlierDetection.maxEjectionPercent: 0 to 100",
        ),
        ("name: x", "name: x\npolicies: {hedge: {}}", "policies.hedge: `delay` above 0"),
        ("name: x", "name: x\npolicies: {hedge: {delay: 1s, budgetPercent: 0}}", "budgetPercent: 1 to 100"),
    ] {
        let Wrong(why) = read(&LEAST.replace(from, to)).unwrap_err();
        assert!(why.contains(says), "{to}: {why}");
    }
}

#[test]
fn what_is_more_than_policies_take_is_refused() {
    let told = |from: &str, to: &str| read(&LEAST.replace(from, to)).unwrap_err().0;
    let weight = told("[{service", "[{weight: 1000001, service");
    assert_eq!(weight, "instances[0].weight: 1000000 at most");
    let attempts = told("name: x", "name: x\npolicies: {retry: {attempts: 101}}");
    assert_eq!(attempts, "line 2: policies.retry.attempts: 0 to 100");
}
