//! What the sidecars are told by the control plane: the scenario's policies as a resource.

use std::ffi::OsString;
use std::time::Duration;

use meshwork_decision::simulator::{Breaking, Scenario};
use meshwork_decision::{AdaptiveConcurrency, AdmissionControl, HedgeDelay, Queue, WindowSize};
use serde_json::{Value, json};

use super::LiveError;
use super::load::{HIGH, LOW, PRIORITY};
use crate::up::plan::words;

/// The service that is called.
pub(super) const FLEET: &str = "fleet";
/// The service that a client is of.
pub(super) const CLIENT: &str = "client";

/// What a sidecar is told of its zone.
pub(super) fn in_zone(zone: Option<usize>) -> Vec<OsString> {
    zone.map_or_else(Vec::new, |zone| words(&["--zone", &format!("zone-{zone}")]))
}

/// The folder's only file.
pub(super) fn resources(scenario: &Scenario) -> Result<String, LiveError> {
    let text = format!("{}\n", policy(scenario));
    loads(&text)?;
    Ok(text)
}

fn overload((concurrency, queue): &(AdaptiveConcurrency, Queue)) -> Value {
    let mut line = json!({"maxRequests": queue.max_requests, "maxWait": time(queue.max_wait)});
    for (field, said) in [("target", queue.target), ("interval", queue.interval)] {
        if let Some(said) = said {
            line[field] = time(said).into();
        }
    }
    json!({
        "adaptiveConcurrency": {
            "minConcurrency": concurrency.min_concurrency,
            "maxConcurrency": concurrency.max_concurrency,
            "updateInterval": time(concurrency.update_interval),
            "buffer": concurrency.buffer,
            "minRttInterval": time(concurrency.min_rtt_interval),
            "jitter": concurrency.jitter,
        },
        "queue": line,
        "priorities": priorities(),
    })
}

/// A request says its own.
fn priorities() -> Value {
    let said =
        |priority, value| json!({"priority": priority, "headers": [{"name": PRIORITY, "value": value}]});
    json!([said("High", HIGH), said("Low", LOW)])
}

/// The scenario's policies: what callers' sidecars do, and what those of the instances keep from them.
fn policy(scenario: &Scenario) -> Value {
    let policies = &scenario.policies;
    let retry = &policies.retry;
    let mut balancer = json!({"algorithm": format!("{:?}", policies.algorithm)});
    if let Some(slow_start) = &policies.slow_start {
        balancer["slowStart"] = json!({
            "window": time(slow_start.window),
            "aggression": f64::from(slow_start.aggression) / 1e3,
            "minWeightPercent": slow_start.min_weight_percent,
        });
    }
    if let Some(size) = policies.subset_size {
        balancer["subsetting"] = json!({"size": size});
    }
    let mut spec = json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": FLEET}],
        "loadBalancer": balancer,
        "retry": {
            "attempts": retry.attempts,
            "on": [503, "reset", "connect-failure", "refused-stream"],
            "backoff": {"base": time(retry.backoff_base), "max": time(retry.backoff_max)},
            "budget": {"percent": retry.budget.percent, "minPerSecond": retry.budget.min_per_second},
        },
        "timeouts": {"request": time(policies.timeout)},
    });
    if let Some(each) = retry.per_try_timeout {
        spec["retry"]["perTryTimeout"] = time(each).into();
    }
    if let Some(hedge) = &policies.hedge {
        spec["hedge"] = match hedge.delay {
            HedgeDelay::Fixed(delay) => json!({"delay": time(delay)}),
            HedgeDelay::Percentile { percent, least } => {
                json!({"delayPercentile": percent, "minDelay": time(least)})
            }
        };
        spec["hedge"]["budgetPercent"] = hedge.budget_percent.into();
    }
    if let Some(breaker) = &policies.circuit_breaker {
        spec["circuitBreaker"] = breaking(breaker);
    }
    if let Some(admission) = &policies.admission {
        spec["admissionControl"] = holding_back(admission, scenario.arrivals.high > 0);
    }
    if let Some(outlier) = &policies.outlier_detection {
        spec["outlierDetection"] = json!({
            "consecutive5xx": outlier.consecutive_5xx,
            "baseEjectionTime": time(outlier.base_ejection_time),
            "maxEjectionPercent": outlier.max_ejection_percent,
        });
    }
    if let Some(gate) = &policies.overload {
        spec["overload"] = overload(gate);
    }
    json!({
        "apiVersion": "meshwork.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": FLEET, "namespace": "default"},
        "spec": spec,
    })
}

fn holding_back(admission: &AdmissionControl, some_matter: bool) -> Value {
    let mut said = json!({
        "samplingWindow": time(admission.sampling_window),
        "successRateThreshold": admission.success_rate_threshold,
        "aggression": f64::from(admission.aggression) / 1e3,
        "rpsThreshold": admission.rps_threshold,
        "maxRejectionProbability": admission.max_rejection_probability,
    });
    if some_matter {
        said["priorities"] = priorities();
    }
    said
}

fn breaking(breaker: &Breaking) -> Value {
    let policy = &breaker.policy;
    let mut said = json!({
        "per": if breaker.per_endpoint { "Endpoint" } else { "Service" },
        "mode": format!("{:?}", policy.mode),
        "window": match policy.window {
            WindowSize::Calls(calls) => json!({"calls": calls}),
            WindowSize::Time(of) => json!({"time": time(of)}),
        },
        "minimumCalls": policy.minimum_calls,
        "failurePercent": policy.failure_percent,
        "openTime": time(policy.open_time),
        "maxOpenTime": time(policy.max_open_time),
        "trials": policy.trials,
    });
    if let Some((after, percent)) = policy.slow_calls {
        said["slowCalls"] = json!({"after": time(after), "percent": percent});
    }
    said
}

/// Proxies would take what is good of it, and go without what is not.
fn loads(text: &str) -> Result<(), LiveError> {
    let found = meshwork_resources::load([("fleet.yaml", text)]).diagnostics;
    let said: Vec<&str> = found.iter().map(|found| &*found.message).collect();
    if said.is_empty() { Ok(()) } else { Err(LiveError::Refused(said.join("; "))) }
}

/// As resources write times: to the millisecond, never 0, and with at most five digits of each unit.
fn time(time: Duration) -> String {
    let millis = time.as_millis().max(1);
    let (seconds, millis) = (millis / 1_000, millis % 1_000);
    format!("{}h{}m{}s{millis}ms", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meshwork_decision::simulator::{Policies, fleets};
    use meshwork_decision::{BreakerMode, CircuitBreaker, HedgePolicy, OutlierDetection};

    use super::*;

    fn with(policies: Policies) -> Scenario {
        Scenario { policies, ..fleets::overloaded() }
    }

    #[test]
    fn what_instances_keep_from_themselves_is_told_with_what_callers_do() {
        let queue = Queue { target: Some(Duration::from_millis(7)), ..Queue::DEFAULT };
        let concurrency = AdaptiveConcurrency { max_concurrency: 9, ..AdaptiveConcurrency::DEFAULT };
        let scenario = with(Policies { overload: Some((concurrency, queue)), ..Policies::default() });
        resources(&scenario).expect("proxies take it");
        let spec = &policy(&scenario)["spec"];
        let kept = &spec["overload"];
        assert_eq!(kept["adaptiveConcurrency"]["maxConcurrency"], 9);
        assert_eq!(
            kept["queue"],
            json!({"maxRequests": 256, "maxWait": "0h0m0s500ms", "target": "0h0m0s7ms"})
        );
        assert_eq!(
            (&spec["retry"]["attempts"], &spec["overload"]["priorities"][1]["priority"]),
            (&json!(2), &json!("Low"))
        );
        assert_eq!(policy(&with(Policies::default()))["spec"]["overload"], Value::Null);
    }

    #[test]
    fn the_proxies_are_told_every_policy_of_the_scenario() {
        let delay = HedgeDelay::Percentile { percent: 95, least: Duration::from_millis(20) };
        let breaker = CircuitBreaker {
            mode: BreakerMode::Enforce,
            window: WindowSize::Calls(9),
            minimum_calls: 5,
            failure_percent: Some(50),
            slow_calls: Some((Duration::from_millis(20), 70)),
            open_time: Duration::from_secs(1),
            max_open_time: Duration::from_secs(1),
            trials: 2,
        };
        let policies = Policies {
            outlier_detection: Some(OutlierDetection::DEFAULT),
            hedge: Some(HedgePolicy { delay, budget_percent: 5 }),
            subset_size: Some(3),
            circuit_breaker: Some(Breaking { policy: breaker, per_endpoint: true }),
            admission: Some(Arc::default()),
            ..Policies::default()
        };
        let scenario = with(policies);
        resources(&scenario).expect("proxies take it");
        let spec = &policy(&scenario)["spec"];
        assert_eq!(
            (&spec["circuitBreaker"]["per"], &spec["circuitBreaker"]["window"]),
            (&json!("Endpoint"), &json!({"calls": 9}))
        );
        assert_eq!(spec["circuitBreaker"]["slowCalls"], json!({"after": "0h0m0s20ms", "percent": 70}));
        assert_eq!(spec["admissionControl"]["successRateThreshold"], 95);
        assert_eq!(spec["admissionControl"]["priorities"][0]["priority"], "High");
        assert_eq!(
            spec["hedge"],
            json!({"delayPercentile": 95, "minDelay": "0h0m0s20ms", "budgetPercent": 5})
        );
        assert_eq!(spec["loadBalancer"], json!({"algorithm": "PeakEwma", "subsetting": {"size": 3}}));
        assert_eq!(spec["retry"]["perTryTimeout"], "0h0m1s0ms");
        assert_eq!(spec["outlierDetection"]["consecutive5xx"], 5);
        assert_eq!(spec["timeouts"], json!({"request": "0h0m5s0ms"}));
    }

    #[test]
    fn what_proxies_would_refuse_is_an_error_and_long_times_are_none() {
        let mut policies = Policies { timeout: Duration::from_secs(123_456), ..Policies::default() };
        resources(&with(policies.clone())).expect("it is a time");
        policies.retry.attempts = 1_000;
        let refused = resources(&with(policies)).expect_err("too many").to_string();
        assert!(refused.contains("attempts") && refused.contains("--live"), "{refused}");
    }
}
