//! The scenario's file: what is not known in it is an error, what is absent has the default that is said here.

mod breaking;
mod overload;

use std::fmt;
use std::time::Duration;

use meshwork_decision::simulator::{Arrivals, Burst, Instance, Phase, Policies, Scenario, Spread, State};
use meshwork_decision::{
    Algorithm, HedgeDelay, HedgePolicy, OutlierDetection, RetryBudget, RetryPolicy, SlowStart,
};
use meshwork_process::parse_duration;
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use self::breaking::{Breaker, Holding};
use self::overload::Guarding;

/// Instances and clients of one scenario, at most: each client knows every instance.
const INSTANCES: usize = 10_000;
const CLIENTS: usize = 1_000;
/// Requests of one seed, at most: each measured one is remembered until the seed is over.
const REQUESTS: f64 = 10_000_000.0;
/// As policies have it.
const MOST_ATTEMPTS: u32 = 100;
const HEAVIEST: u32 = 1_000_000;

/// A time with its unit: as elsewhere, and `us`.
#[derive(Clone, Copy, Debug)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        let micros = text.strip_suffix("us").and_then(|number| number.parse().ok());
        let time = micros.map(Duration::from_micros).map_or_else(|| parse_duration(&text), Ok);
        time.map(Self).map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    name: String,
    duration: Time,
    #[serde(default)]
    warm_up: Option<Time>,
    #[serde(default = "one")]
    clients: usize,
    arrivals: Coming,
    #[serde(default)]
    network: Option<Time>,
    /// Zones over which the proxies are spread evenly.
    #[serde(default)]
    zones: usize,
    instances: Vec<Group>,
    #[serde(default)]
    policies: Said,
}

const fn one() -> usize {
    1
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Coming {
    per_second: f64,
    #[serde(default)]
    burst: Option<More>,
    #[serde(default)]
    loads: Vec<Spanned<Load>>,
    #[serde(default)]
    high_percent: Option<Spanned<u32>>,
}

/// From a time on so many times as much comes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    at: Time,
    times: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct More {
    every: Time,
    lasts: Time,
    times: f64,
}

/// Instances that are alike.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    /// The number of its zone.
    #[serde(default)]
    zone: usize,
    #[serde(default = "one")]
    count: usize,
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default)]
    concurrency: Option<u32>,
    #[serde(default)]
    queue: Option<usize>,
    service: Work,
    /// When the proxies hear of it.
    #[serde(default)]
    joins: Option<Time>,
    #[serde(default)]
    phases: Vec<Then>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Work {
    mean: Time,
    #[serde(default)]
    spread: Option<Kind>,
    /// Of `LogNormal`: the standard deviation of the logarithm.
    #[serde(default)]
    sigma: Option<f64>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Kind {
    Constant,
    Exponential,
    LogNormal,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Then {
    at: Time,
    state: Being,
    /// Of `Serving`: so many times slower than usual.
    #[serde(default)]
    slower: Option<f64>,
    /// Of `Failing`: how long it takes.
    #[serde(default)]
    after: Option<Time>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Being {
    Serving,
    Failing,
    Hanging,
    Away,
    Lost,
}

/// The parts of a `TrafficPolicy` that are simulated, by their names there.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Said {
    #[serde(default)]
    load_balancer: Option<Balancer>,
    #[serde(default)]
    outlier_detection: Option<Ejecting>,
    #[serde(default)]
    retry: Option<Retrying>,
    #[serde(default)]
    hedge: Option<Hedging>,
    #[serde(default)]
    timeouts: Option<Times>,
    #[serde(default)]
    circuit_breaker: Option<Breaker>,
    #[serde(default)]
    admission_control: Option<Holding>,
    #[serde(default)]
    overload: Option<Guarding>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Balancer {
    #[serde(default)]
    algorithm: Choice,
    #[serde(default)]
    slow_start: Option<Beginning>,
    #[serde(default)]
    subsetting: Option<Part>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    size: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Beginning {
    window: Spanned<Time>,
    #[serde(default)]
    aggression: Option<f64>,
    #[serde(default)]
    min_weight_percent: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum Choice {
    #[default]
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ejecting {
    #[serde(default, rename = "consecutive5xx")]
    consecutive_5xx: Option<u32>,
    #[serde(default)]
    base_ejection_time: Option<Spanned<Time>>,
    #[serde(default)]
    max_ejection_percent: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Retrying {
    #[serde(default)]
    attempts: Option<Spanned<u32>>,
    #[serde(default)]
    per_try_timeout: Option<Spanned<Time>>,
    #[serde(default)]
    backoff: Option<Pause>,
    #[serde(default)]
    budget: Option<Budget>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    base: Time,
    max: Time,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Budget {
    percent: u32,
    #[serde(default)]
    min_per_second: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hedging {
    #[serde(default)]
    delay: Option<Time>,
    #[serde(default)]
    delay_percentile: Option<u32>,
    #[serde(default)]
    min_delay: Option<Time>,
    #[serde(default)]
    budget_percent: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Times {
    request: Spanned<Time>,
}

/// What is wrong with a file.
#[derive(Debug)]
pub(super) struct Wrong(String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn wrong<T>(why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(why.into()))
}

/// The same, with the line of the value.
fn wrong_at<T, V>(at: &Spanned<V>, why: impl fmt::Display) -> Result<T, Wrong> {
    wrong(format!("line {}: {why}", at.referenced.line()))
}

/// Reads a scenario and its name.
pub(super) fn read(text: &str) -> Result<(String, Scenario), Wrong> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| Wrong(error.to_string()))?;
    let warm_up = file.warm_up.map_or(Duration::ZERO, |time| time.0);
    if warm_up >= file.duration.0 {
        return wrong("warmUp: less than `duration`, or nothing is measured");
    }
    if !(1..=CLIENTS).contains(&file.clients) {
        return wrong(format!("clients: 1 to {CLIENTS}"));
    }
    let positive = |name: &str, number: f64| {
        // What is less comes not once in a run, and what is more is no time that a clock could tell.
        let range = 0.001..=1e9;
        if range.contains(&number) { Ok(number) } else { wrong(format!("{name}: above 0, 0.001 to 1e9")) }
    };
    let burst = match &file.arrivals.burst {
        Some(More { every, lasts, .. }) if every.0.is_zero() || lasts.0.is_zero() || lasts.0 > every.0 => {
            return wrong("arrivals.burst: `every` and `lasts` above 0, and `lasts` at most `every`");
        }
        Some(More { every, lasts, times }) => {
            Some(Burst { every: every.0, lasts: lasts.0, times: positive("burst.times", *times)? })
        }
        None => None,
    };
    let per_second = positive("arrivals.perSecond", file.arrivals.per_second)?;
    let (loads, high) = (loads(&file.arrivals, file.duration.0)?, high(&file)?);
    let peak = loads.iter().fold(1.0_f64, |most, (_, times)| most.max(*times));
    let most = per_second
        * burst.as_ref().map_or(1.0, |burst| burst.times.max(1.0))
        * peak
        * file.duration.0.as_secs_f64();
    if most > REQUESTS {
        return wrong(format!("duration and arrivals: at most {REQUESTS} requests of a seed, not {most:.0}"));
    }
    let mut instances = Vec::new();
    for (at, group) in file.instances.iter().enumerate() {
        let one = instance(group).map_err(|Wrong(why)| Wrong(format!("instances[{at}].{why}")))?;
        if group.zone >= file.zones.max(1) {
            return wrong(format!("instances[{at}].zone: below `zones`, which is {}", file.zones));
        }
        let count = group.count;
        if count == 0 || instances.len() + count > INSTANCES {
            return wrong(format!("instances[{at}].count: 1 to {INSTANCES} in all"));
        }
        instances.extend(std::iter::repeat_n(one, count));
    }
    if instances.iter().all(|instance: &Instance| !instance.joins.is_zero()) {
        return wrong("instances: at least one that is there from the beginning");
    }
    let scenario = Scenario {
        name: "of a file",
        duration: file.duration.0,
        warm_up,
        clients: file.clients,
        arrivals: Arrivals { per_second, burst, loads, high },
        instances,
        network: file.network.map_or(Duration::ZERO, |time| time.0),
        zones: file.zones,
        policies: policies(&file.policies)?,
    };
    Ok((file.name, scenario))
}

fn loads(said: &Coming, duration: Duration) -> Result<Vec<(Duration, f64)>, Wrong> {
    let mut loads: Vec<(Duration, f64)> = Vec::new();
    for load in &said.loads {
        let Load { at, times } = &load.value;
        // What is less comes not once in a run.
        if !(0.001..=1e6).contains(times) {
            return wrong_at(load, "arrivals.loads.times: above 0, 0.001 to 1e6");
        }
        if loads.last().is_some_and(|(before, _)| at.0 <= *before) {
            return wrong_at(load, "arrivals.loads: in the order of time");
        }
        if at.0 >= duration {
            return wrong_at(load, "arrivals.loads.at: before the end, which is `duration`");
        }
        loads.push((at.0, *times));
    }
    Ok(loads)
}

/// Percent of the requests that go first.
fn high(file: &File) -> Result<u32, Wrong> {
    match &file.arrivals.high_percent {
        Some(said) if !(1..=100).contains(&said.value) => wrong_at(said, "arrivals.highPercent: 1 to 100"),
        said => Ok(said.as_ref().map_or(0, |said| said.value)),
    }
}

fn instance(group: &Group) -> Result<Instance, Wrong> {
    let Work { mean, spread, sigma } = &group.service;
    let spread = match (spread.unwrap_or(Kind::Exponential), *sigma) {
        (Kind::Constant, None) => Spread::Constant,
        (Kind::Exponential, None) => Spread::Exponential,
        (Kind::LogNormal, Some(sigma)) if sigma > 0.0 && sigma <= 10.0 => Spread::LogNormal(sigma),
        (Kind::LogNormal, _) => return wrong("service.sigma: above 0, 10 at most, with LogNormal"),
        (_, Some(_)) => return wrong("service.sigma: only with LogNormal"),
    };
    let least_one = |name: &str, number: Option<u32>, default| match number {
        Some(0) => wrong(format!("{name}: at least 1")),
        number => Ok(number.unwrap_or(default)),
    };
    let phases = group.phases.iter().map(phase).collect::<Result<Vec<_>, _>>()?;
    if phases.windows(2).any(|two| two[0].at >= two[1].at) {
        return wrong("phases: in the order of time");
    }
    Ok(Instance {
        weight: match least_one("weight", group.weight, 1)? {
            weight if weight > HEAVIEST => return wrong(format!("weight: {HEAVIEST} at most")),
            weight => weight,
        },
        zone: group.zone,
        concurrency: least_one("concurrency", group.concurrency, 1)?,
        is_deaf: false,
        queue: group.queue.unwrap_or(1_000),
        service: mean.0,
        spread,
        joins: group.joins.map_or(Duration::ZERO, |time| time.0),
        phases,
    })
}

fn phase(then: &Then) -> Result<Phase, Wrong> {
    let state = match (then.state, then.slower, then.after) {
        (Being::Serving, slower, None) => {
            let slower = slower.unwrap_or(1.0);
            if slower <= 0.0 || slower > 1e6 || slower.is_nan() {
                return wrong("phases.slower: above 0, 1e6 at most");
            }
            State::Serving(slower)
        }
        (Being::Failing, None, after) => State::Failing(after.map_or(Duration::ZERO, |time| time.0)),
        (Being::Hanging, None, None) => State::Hanging,
        (Being::Away, None, None) => State::Away,
        (Being::Lost, None, None) => State::Lost,
        (_, Some(_), _) => return wrong("phases.slower: only of Serving"),
        (_, _, Some(_)) => return wrong("phases.after: only of Failing"),
    };
    Ok(Phase { at: then.at.0, state })
}

fn slow_start_of(said: &Beginning) -> Result<SlowStart, Wrong> {
    let aggression = said.aggression.unwrap_or(1.0);
    if !(0.001..=1e3).contains(&aggression) {
        return wrong("policies.loadBalancer.slowStart.aggression: above 0, and at most 1000");
    }
    let min_weight_percent = said.min_weight_percent.unwrap_or(10);
    if !(1..=100).contains(&min_weight_percent) {
        return wrong("policies.loadBalancer.slowStart.minWeightPercent: 1 to 100");
    }
    let window = overload::time("loadBalancer.slowStart.window", Some(&said.window))?.unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and a million")]
    let aggression = (aggression * 1e3).round() as u32;
    Ok(SlowStart { window, aggression, min_weight_percent })
}

fn ejecting(said: &Ejecting) -> Result<OutlierDetection, Wrong> {
    let default = OutlierDetection::DEFAULT;
    let base = overload::time("outlierDetection.baseEjectionTime", said.base_ejection_time.as_ref())?;
    let max_ejection_percent = match &said.max_ejection_percent {
        Some(at) if at.value > 100 => {
            return wrong_at(at, "policies.outlierDetection.maxEjectionPercent: 0 to 100");
        }
        said => said.as_ref().map_or(default.max_ejection_percent, |at| at.value),
    };
    Ok(OutlierDetection {
        consecutive_5xx: said.consecutive_5xx.unwrap_or(default.consecutive_5xx),
        base_ejection_time: base.unwrap_or(default.base_ejection_time),
        max_ejection_percent,
        ..default
    })
}

/// With the defaults of a `TrafficPolicy`.
fn hedge(said: &Hedging) -> Result<HedgePolicy, Wrong> {
    let delay = match (said.delay, said.delay_percentile, said.min_delay) {
        (Some(delay), None, None) if !delay.0.is_zero() => HedgeDelay::Fixed(delay.0),
        (None, Some(percent @ 50..=99), least) => {
            let least = least.map_or(Duration::from_millis(10), |least| least.0);
            HedgeDelay::Percentile { percent, least }
        }
        _ => {
            return wrong(
                "policies.hedge: `delay` above 0, or `delayPercentile` of 50 to 99 and perhaps `minDelay`",
            );
        }
    };
    match said.budget_percent.unwrap_or(10) {
        budget_percent @ 1..=100 => Ok(HedgePolicy { delay, budget_percent }),
        _ => wrong("policies.hedge.budgetPercent: 1 to 100"),
    }
}

/// How long a request may take. Of a policy `0s` is no limit; here a request that hangs would never be counted.
fn timeout(said: Option<&Times>, default: Duration) -> Result<Duration, Wrong> {
    match said.map(|times| &times.request) {
        None => Ok(default),
        Some(time) if time.value.0.is_zero() => wrong_at(
            time,
            "policies.timeouts.request: above 0s, which is no limit in a TrafficPolicy; a scenario needs one, so give \
             it a time after which its callers would have left",
        ),
        Some(time) => Ok(time.value.0),
    }
}

/// How long one attempt may take; `0s`: as long as the request, as of a policy.
fn per_try(
    said: Option<&Spanned<Time>>,
    default: Option<Duration>,
    request: Duration,
) -> Result<Option<Duration>, Wrong> {
    match said {
        None => Ok(default),
        Some(time) if time.value.0 > request => {
            wrong_at(time, "policies.retry.perTryTimeout: at most `timeouts.request`")
        }
        Some(time) => Ok(Some(time.value.0).filter(|time| !time.is_zero())),
    }
}

fn policies(said: &Said) -> Result<Policies, Wrong> {
    let default = Policies::default();
    let slow_start = said.load_balancer.as_ref().and_then(|balancer| balancer.slow_start.as_ref());
    let subset_size = said.load_balancer.as_ref().and_then(|balancer| balancer.subsetting.as_ref());
    if subset_size.is_some_and(|part| part.size == 0) {
        return wrong("policies.loadBalancer.subsetting.size: at least 1");
    }
    let algorithm = said.load_balancer.as_ref().map(|balancer| match balancer.algorithm {
        Choice::PeakEwma => Algorithm::PeakEwma,
        Choice::LeastRequest => Algorithm::LeastRequest,
        Choice::RoundRobin => Algorithm::RoundRobin,
        Choice::Random => Algorithm::Random,
    });
    let timeout = timeout(said.timeouts.as_ref(), default.timeout)?;
    let retry = match &said.retry {
        None => default.retry,
        Some(said) => {
            let default = default.retry;
            let (base, max) = said
                .backoff
                .as_ref()
                .map_or((default.backoff_base, default.backoff_max), |pause| (pause.base.0, pause.max.0));
            if said.budget.as_ref().is_some_and(|budget| budget.percent > 100) {
                return wrong("policies.retry.budget.percent: 0 to 100");
            }
            if let Some(attempts) = said.attempts.as_ref().filter(|said| said.value > MOST_ATTEMPTS) {
                return wrong_at(attempts, format!("policies.retry.attempts: 0 to {MOST_ATTEMPTS}"));
            }
            if base.is_zero() || base > max {
                return wrong("policies.retry.backoff: `base` above 0 and at most `max`");
            }
            RetryPolicy {
                attempts: said.attempts.as_ref().map_or(default.attempts, |said| said.value),
                per_try_timeout: per_try(said.per_try_timeout.as_ref(), default.per_try_timeout, timeout)?,
                backoff_base: base,
                backoff_max: max,
                budget: said.budget.as_ref().map_or(default.budget, |budget| RetryBudget {
                    percent: budget.percent,
                    min_per_second: budget.min_per_second,
                }),
                ..default
            }
        }
    };
    Ok(Policies {
        algorithm: algorithm.unwrap_or(default.algorithm),
        slow_start: slow_start.map(slow_start_of).transpose()?,
        subset_size: subset_size.map(|part| part.size),
        outlier_detection: said.outlier_detection.as_ref().map(ejecting).transpose()?,
        retry,
        hedge: said.hedge.as_ref().map(hedge).transpose()?,
        circuit_breaker: said.circuit_breaker.as_ref().map(breaking::breaker).transpose()?,
        admission: said.admission_control.as_ref().map(breaking::admission).transpose()?,
        timeout,
        overload: said.overload.as_ref().map(overload::overload).transpose()?,
    })
}

#[cfg(test)]
mod tests;
