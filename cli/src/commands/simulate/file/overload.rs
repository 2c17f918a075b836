//! `policies.overload`: what each instance's own proxy keeps from it, by the names and with the defaults of a `TrafficPolicy`.
//! Who has high priority is said by `arrivals.highPercent`.

use std::time::Duration;

use meshwork_decision::{AdaptiveConcurrency, Queue};
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Time, Wrong, wrong_at};

/// As many as a `TrafficPolicy` takes.
const MOST: u32 = 1_000_000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Guarding {
    adaptive_concurrency: AtOnce,
    #[serde(default)]
    queue: Option<Line>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AtOnce {
    #[serde(default)]
    min_concurrency: Option<Spanned<u32>>,
    #[serde(default)]
    max_concurrency: Option<Spanned<u32>>,
    #[serde(default)]
    update_interval: Option<Spanned<Time>>,
    #[serde(default)]
    buffer: Option<Spanned<u32>>,
    #[serde(default)]
    min_rtt_interval: Option<Spanned<Time>>,
    #[serde(default)]
    jitter: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    #[serde(default)]
    max_requests: Option<Spanned<u32>>,
    #[serde(default)]
    max_wait: Option<Spanned<Time>>,
    #[serde(default)]
    target: Option<Spanned<Time>>,
    #[serde(default)]
    interval: Option<Spanned<Time>>,
}

/// A number within these bounds; absent: the default.
pub(super) fn number(
    name: &str,
    said: Option<&Spanned<u32>>,
    least: u32,
    most: u32,
    default: u32,
) -> Result<u32, Wrong> {
    match said {
        Some(said) if !(least..=most).contains(&said.value) => {
            wrong_at(said, format!("policies.{name}: {least} to {most}"))
        }
        said => Ok(said.map_or(default, |said| said.value)),
    }
}

/// The longest time: messages have milliseconds in 32 bits.
const LONGEST: Duration = Duration::from_hours(49 * 24);

/// A time above none, as whole milliseconds as messages have it.
pub(super) fn time(name: &str, said: Option<&Spanned<Time>>) -> Result<Option<Duration>, Wrong> {
    let Some(at) = said else { return Ok(None) };
    let Time(time) = at.value;
    let is_whole = time.subsec_nanos().is_multiple_of(1_000_000);
    if !(Duration::from_millis(1)..=LONGEST).contains(&time) || !is_whole {
        let why = "at least 1ms, at most 49 days (1176h), in whole milliseconds";
        return wrong_at(at, format!("policies.{name}: {why}"));
    }
    Ok(Some(time))
}

pub(super) fn overload(said: &Guarding) -> Result<(AdaptiveConcurrency, Queue), Wrong> {
    let (at_once, line) = (&said.adaptive_concurrency, said.queue.as_ref());
    let default = AdaptiveConcurrency::DEFAULT;
    let name = |field: &str| format!("overload.adaptiveConcurrency.{field}");
    let least =
        number(&name("minConcurrency"), at_once.min_concurrency.as_ref(), 1, MOST, default.min_concurrency)?;
    let most = number(
        &name("maxConcurrency"),
        at_once.max_concurrency.as_ref(),
        least,
        MOST,
        default.max_concurrency.max(least),
    )?;
    let update = time(&name("updateInterval"), at_once.update_interval.as_ref())?;
    let measured = time(&name("minRttInterval"), at_once.min_rtt_interval.as_ref())?;
    let concurrency = AdaptiveConcurrency {
        min_concurrency: least,
        max_concurrency: most,
        update_interval: update.unwrap_or(default.update_interval),
        buffer: number(&name("buffer"), at_once.buffer.as_ref(), 0, 1_000, default.buffer)?,
        min_rtt_interval: measured.unwrap_or(default.min_rtt_interval),
        jitter: number(&name("jitter"), at_once.jitter.as_ref(), 0, 100, default.jitter)?,
    };
    let default = Queue::DEFAULT;
    let requests = line.and_then(|line| line.max_requests.as_ref());
    let max_wait = time("overload.queue.maxWait", line.and_then(|line| line.max_wait.as_ref()))?;
    let target = line.and_then(|line| line.target.as_ref());
    let queue = Queue {
        max_requests: number("overload.queue.maxRequests", requests, 0, MOST, default.max_requests)?,
        max_wait: max_wait.unwrap_or(default.max_wait),
        target: time("overload.queue.target", target)?,
        interval: time("overload.queue.interval", line.and_then(|line| line.interval.as_ref()))?,
    };
    // As in a policy: a default `maxWait` bounds what is longer by itself.
    match target {
        Some(said) if max_wait.is_some_and(|most| said.value.0 > most) => {
            wrong_at(said, "policies.overload.queue.target: at most `maxWait`")
        }
        _ => Ok((concurrency, queue)),
    }
}
