//! How many calls are held back when too few succeed.

use std::time::Duration;

use meshwork_messages::v1;

use super::overload::rule;
use super::{Result, value};
use crate::admission::AdmissionControl;

pub(super) fn admission(message: &v1::AdmissionControl) -> Result<AdmissionControl> {
    if message.sampling_window_ms == 0 {
        return value("admission_control.sampling_window_ms", 0, "write at least 1");
    }
    if !(1..=100).contains(&message.success_rate_threshold) {
        let threshold = message.success_rate_threshold;
        return value("admission_control.success_rate_threshold", threshold, "write 1 to 100");
    }
    if message.max_rejection_percent > 100 {
        let most = message.max_rejection_percent;
        return value("admission_control.max_rejection_percent", most, "write 0 to 100");
    }
    if message.aggression_thousandths < 1_000 {
        let aggression = message.aggression_thousandths;
        return value("admission_control.aggression_thousandths", aggression, "write at least 1000");
    }
    Ok(AdmissionControl {
        sampling_window: Duration::from_millis(message.sampling_window_ms.into()),
        success_rate_threshold: message.success_rate_threshold,
        aggression: message.aggression_thousandths,
        rps_threshold: message.rps_threshold,
        max_rejection_probability: message.max_rejection_percent,
        priorities: message.priorities.iter().map(rule).collect::<Result<_>>()?,
    })
}
