//! How many calls are held back when too few succeed.

use std::time::Duration;

use meshwork_messages::v1;

use super::overload::rule;
use super::policy::or;
use super::{Result, value};
use crate::admission::AdmissionControl;

pub(super) fn admission(message: &v1::AdmissionControl) -> Result<AdmissionControl> {
    let usual = AdmissionControl::default();
    let threshold = or(message.success_rate_threshold, usual.success_rate_threshold);
    if threshold > 100 {
        return value("admission_control.success_rate_threshold", threshold, "write 1 to 100");
    }
    let most = message.max_rejection_percent.unwrap_or(usual.max_rejection_probability);
    if most > 100 {
        return value("admission_control.max_rejection_percent", most, "write 0 to 100");
    }
    let aggression = or(message.aggression_thousandths, usual.aggression);
    if aggression < 1_000 {
        return value("admission_control.aggression_thousandths", aggression, "write at least 1000");
    }
    let window = Some(message.sampling_window_ms).filter(|&window| window > 0);
    Ok(AdmissionControl {
        sampling_window: window.map_or(usual.sampling_window, |window| Duration::from_millis(window.into())),
        success_rate_threshold: threshold,
        aggression,
        rps_threshold: message.rps_threshold.unwrap_or(usual.rps_threshold),
        max_rejection_probability: most,
        priorities: message.priorities.iter().map(rule).collect::<Result<_>>()?,
    })
}
