//! When a request is sent a second time beside the first.

use std::time::Duration;

use meshwork_messages::v1;

use super::policy::or;
use super::{Result, unknown, value};
use crate::hedge::{HedgeDelay, HedgePolicy};

/// The shortest time by a percentile where nobody says it: below it a second attempt gains nothing.
const LEAST_MS: u32 = 10;
/// Of a hundred requests, where nobody says it.
const BUDGET_PERCENT: u32 = 10;

pub(crate) fn hedge(message: &v1::Hedge) -> Result<HedgePolicy> {
    use v1::hedge::Delay;
    let millis = |ms: u32| Duration::from_millis(ms.into());
    let delay = match message.delay {
        Some(Delay::FixedMs(0)) => return value("hedge.fixed_ms", 0, "write at least 1"),
        Some(Delay::FixedMs(ms)) => HedgeDelay::Fixed(millis(ms)),
        Some(Delay::Percentile(percent @ 50..=99)) => {
            HedgeDelay::Percentile { percent, least: millis(message.least_ms.unwrap_or(LEAST_MS)) }
        }
        Some(Delay::Percentile(percent)) => return value("hedge.percentile", percent, "write 50 to 99"),
        None => return Err(unknown("hedge.delay")),
    };
    match or(message.budget_percent, BUDGET_PERCENT) {
        budget_percent @ 1..=100 => Ok(HedgePolicy { delay, budget_percent }),
        percent => value("hedge.budget_percent", percent, "write 1 to 100"),
    }
}
