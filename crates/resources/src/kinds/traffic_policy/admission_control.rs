//! `TrafficPolicy.admissionControl`: how many calls are held back when too few succeed.

use super::overload::{PriorityRule, validate_priorities};
use super::slow_start::Aggression;
use crate::codes;
use crate::decode::Cx;
use crate::decode::duration::GatewayDuration;
use crate::decode::overlay::layered;
use crate::span::Spanned;

layered! {
    /// How many calls to a service each caller refuses itself when too few of them succeed. The names and the defaults are
    /// Envoy's.
    pub struct AdmissionControl {
        /// Calls of so long ago count; 30 s when absent.
        pub sampling_window: Option<Spanned<GatewayDuration>> as "samplingWindow",
        /// Percent of calls that succeed: nobody is refused where it is reached; 95 when absent.
        pub success_rate_threshold: Option<u32> as "successRateThreshold" [1..=100],
        /// How fast the part that is refused grows: evenly with 1, which holds when absent; above, fast at first.
        pub aggression: Option<Spanned<Aggression>>,
        /// With fewer calls per second nobody is refused; 0 when absent.
        pub rps_threshold: Option<u32> as "rpsThreshold" [0..=1_000_000],
        /// Percent of calls that are refused at most; 80 when absent.
        pub max_rejection_probability: Option<u32> as "maxRejectionProbability" [0..=100],
        /// Who matters: the first rule that matches a request says its priority. From `High` on nobody is refused.
        pub priorities: Vec<Spanned<PriorityRule>> [0..=64],
    }
}

pub(super) fn validate(admission: &Spanned<AdmissionControl>, cx: &mut Cx) {
    if let Some(window) = admission.sampling_window.as_ref().filter(|window| window.is_zero()) {
        let message = "`admissionControl.samplingWindow` is 0s; in no time there are no calls";
        cx.error(window.span, codes::CONFLICTING_FIELDS, message).help =
            Some("write a time longer than none, or leave it out for 30s".to_owned());
    }
    if let Some(aggression) = admission.aggression.as_ref().filter(|is| is.thousandths() < 1_000) {
        let message = "`admissionControl.aggression` is below 1, which is evenly";
        cx.error(aggression.span, codes::CONFLICTING_FIELDS, message).help = Some(
            "write 1 or more; to refuse less, lower `successRateThreshold` or `maxRejectionProbability`"
                .to_owned(),
        );
    }
    validate_priorities("admissionControl", &admission.priorities, cx);
}
