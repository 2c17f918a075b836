//! How many calls are held back when too few succeed.

use meshwork_messages::v1;
use meshwork_resources::AdmissionControl;

use super::overload::priorities;
use crate::rule::millis;

/// The defaults are Envoy's, as the resource's documentation says.
pub(super) fn message(spec: &AdmissionControl) -> v1::AdmissionControl {
    v1::AdmissionControl {
        sampling_window_ms: spec.sampling_window.as_ref().map_or(30_000, |t| millis(t.inner).max(1)),
        success_rate_threshold: spec.success_rate_threshold.unwrap_or(95),
        aggression_thousandths: spec.aggression.as_ref().map_or(1_000, |is| is.thousandths()),
        rps_threshold: spec.rps_threshold.unwrap_or_default(),
        max_rejection_percent: spec.max_rejection_probability.unwrap_or(80),
        priorities: priorities(&spec.priorities),
    }
}
