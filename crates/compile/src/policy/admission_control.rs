//! How many calls are held back when too few succeed.

use meshwork_messages::v1;
use meshwork_resources::AdmissionControl;

use super::overload::priorities;
use crate::rule::said_ms;

pub(super) fn message(spec: &AdmissionControl) -> v1::AdmissionControl {
    v1::AdmissionControl {
        sampling_window_ms: said_ms(spec.sampling_window.as_deref()),
        success_rate_threshold: spec.success_rate_threshold.unwrap_or_default(),
        aggression_thousandths: spec.aggression.as_ref().map_or(0, |is| is.thousandths()),
        rps_threshold: spec.rps_threshold,
        max_rejection_percent: spec.max_rejection_probability,
        priorities: priorities(&spec.priorities),
    }
}
