//! `policies.circuitBreaker` and `policies.admissionControl`: what a proxy refuses itself, by the names and with the defaults
//! of a `TrafficPolicy`. Who has high priority, and is never held back, is said by `arrivals.highPercent`.

use std::sync::Arc;
use std::time::Duration;

use meshwork_decision::simulator::Breaking;
use meshwork_decision::{AdmissionControl, BreakerMode, CircuitBreaker, WindowSize};
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::overload::{number, time};
use super::{Time, Wrong, wrong_at};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Breaker {
    #[serde(default)]
    per: Scope,
    #[serde(default)]
    window: Option<Spanned<Window>>,
    #[serde(default)]
    minimum_calls: Option<Spanned<u32>>,
    #[serde(default)]
    failure_percent: Option<Spanned<u32>>,
    #[serde(default)]
    slow_calls: Option<Slow>,
    #[serde(default)]
    open_time: Option<Spanned<Time>>,
    #[serde(default)]
    max_open_time: Option<Spanned<Time>>,
    #[serde(default)]
    trials: Option<Spanned<u32>>,
}

/// A simulated fleet has no routes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
enum Scope {
    #[default]
    Service,
    Endpoint,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    #[serde(default)]
    calls: Option<Spanned<u32>>,
    #[serde(default)]
    time: Option<Spanned<Time>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slow {
    after: Spanned<Time>,
    #[serde(default)]
    percent: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Holding {
    #[serde(default)]
    sampling_window: Option<Spanned<Time>>,
    #[serde(default)]
    success_rate_threshold: Option<Spanned<u32>>,
    #[serde(default)]
    aggression: Option<Spanned<f64>>,
    #[serde(default)]
    rps_threshold: Option<Spanned<u32>>,
    #[serde(default)]
    max_rejection_probability: Option<Spanned<u32>>,
}

fn window(said: Option<&Spanned<Window>>) -> Result<WindowSize, Wrong> {
    let Some(said) = said else { return Ok(WindowSize::Time(Duration::from_secs(10))) };
    let Window { calls, time: of } = &said.value;
    match (calls, time("circuitBreaker.window.time", of.as_ref())?) {
        (Some(calls), None) => {
            let calls = number("circuitBreaker.window.calls", Some(calls), 1, 100_000, 1)?;
            Ok(WindowSize::Calls(calls))
        }
        (None, Some(time)) => Ok(WindowSize::Time(time)),
        _ => wrong_at(said, "policies.circuitBreaker.window: `calls` or `time`"),
    }
}

pub(super) fn breaker(said: &Breaker) -> Result<Breaking, Wrong> {
    let name = |field: &str| format!("circuitBreaker.{field}");
    let window = window(said.window.as_ref())?;
    let most = match window {
        WindowSize::Calls(calls) => calls,
        WindowSize::Time(_) => 1_000_000,
    };
    let percent =
        |field: &str, said: Option<&Spanned<u32>>, default| number(&name(field), said, 1, 100, default);
    let slow_calls = match &said.slow_calls {
        None => None,
        Some(Slow { after, percent: of }) => {
            let after = time(&name("slowCalls.after"), Some(after))?.unwrap_or_default();
            Some((after, percent("slowCalls.percent", of.as_ref(), 100)?))
        }
    };
    let longest = time(&name("maxOpenTime"), said.max_open_time.as_ref())?;
    let first = time(&name("openTime"), said.open_time.as_ref())?;
    if let (Some(at), Some(first), Some(longest)) = (&said.max_open_time, first, longest)
        && first > longest
    {
        return wrong_at(at, "policies.circuitBreaker.maxOpenTime: at least `openTime`");
    }
    let usual = Duration::from_secs(5);
    let open_time = first.unwrap_or_else(|| longest.map_or(usual, |longest| longest.min(usual)));
    let policy = CircuitBreaker {
        mode: BreakerMode::Enforce,
        window,
        minimum_calls: number(&name("minimumCalls"), said.minimum_calls.as_ref(), 1, most, most.min(20))?,
        failure_percent: Some(percent("failurePercent", said.failure_percent.as_ref(), 50)?),
        slow_calls,
        open_time,
        max_open_time: longest.unwrap_or_else(|| open_time.max(Duration::from_secs(60))),
        trials: number(&name("trials"), said.trials.as_ref(), 1, 1_000, 5)?,
    };
    Ok(Breaking { policy, per_endpoint: said.per == Scope::Endpoint })
}

pub(super) fn admission(said: &Holding) -> Result<Arc<AdmissionControl>, Wrong> {
    let name = |field: &str| format!("admissionControl.{field}");
    let mut policy = AdmissionControl::default();
    if let Some(window) = time(&name("samplingWindow"), said.sampling_window.as_ref())? {
        policy.sampling_window = window;
    }
    if let Some(said) = &said.aggression {
        if !(1.0..=1e3).contains(&said.value) {
            return wrong_at(said, "policies.admissionControl.aggression: 1 to 1000");
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a million at most")]
        let thousandths = (said.value * 1e3).round() as u32;
        policy.aggression = thousandths;
    }
    let threshold = said.success_rate_threshold.as_ref();
    policy.success_rate_threshold =
        number(&name("successRateThreshold"), threshold, 1, 100, policy.success_rate_threshold)?;
    let rps = said.rps_threshold.as_ref();
    policy.rps_threshold = number(&name("rpsThreshold"), rps, 0, 1_000_000, policy.rps_threshold)?;
    let most = said.max_rejection_probability.as_ref();
    policy.max_rejection_probability =
        number(&name("maxRejectionProbability"), most, 0, 100, policy.max_rejection_probability)?;
    Ok(Arc::new(policy))
}
