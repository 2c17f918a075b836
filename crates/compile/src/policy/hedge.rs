//! When a request is sent a second time beside the first.

use meshwork_messages::v1;
use meshwork_messages::v1::hedge::Delay;
use meshwork_resources::Hedge;

use crate::rule::millis;

pub(super) fn hedge(spec: &Hedge) -> v1::Hedge {
    let fixed = spec.delay.map(|delay| Delay::FixedMs(millis(delay).max(1)));
    v1::Hedge {
        delay: fixed.or_else(|| spec.delay_percentile.map(Delay::Percentile)),
        least_ms: spec.min_delay.map(millis),
        budget_percent: spec.budget_percent.unwrap_or_default(),
    }
}
