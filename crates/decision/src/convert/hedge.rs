//! When a request is sent a second time beside the first.

use std::time::Duration;

use meshwork_messages::v1;

use super::{Result, unknown, value};
use crate::hedge::{HedgeDelay, HedgePolicy};

pub(super) fn hedge(message: &v1::Hedge) -> Result<HedgePolicy> {
    use v1::hedge::Delay;
    let millis = |ms: u32| Duration::from_millis(ms.into());
    let delay = match message.delay {
        Some(Delay::FixedMs(0)) => return value("hedge.fixed_ms", 0, "write at least 1"),
        Some(Delay::FixedMs(ms)) => HedgeDelay::Fixed(millis(ms)),
        Some(Delay::Percentile(percent @ 50..=99)) => {
            HedgeDelay::Percentile { percent, least: millis(message.least_ms) }
        }
        Some(Delay::Percentile(percent)) => return value("hedge.percentile", percent, "write 50 to 99"),
        None => return Err(unknown("hedge.delay")),
    };
    match message.budget_percent {
        budget_percent @ 1..=100 => Ok(HedgePolicy { delay, budget_percent }),
        percent => value("hedge.budget_percent", percent, "write 1 to 100"),
    }
}
