//! When a request is sent a second time beside the first.

use crate::codes;
use crate::decode::Cx;
use crate::decode::duration::GatewayDuration;
use crate::decode::overlay::layered;
use crate::span::Spanned;

layered! {
    /// A request that takes longer than this is sent to a second endpoint too, and the first good answer counts: `delay`
    /// or `delayPercentile`. Only what may be repeated. Not on layer 4.
    pub struct Hedge {
        /// So long.
        pub delay: Option<GatewayDuration>,
        /// So long as this many percent of the service's answers of the last five to ten seconds took at most.
        pub delay_percentile: Option<u32> as "delayPercentile" [50..=99],
        /// But no shorter than this; 10 ms when absent. With `delayPercentile` only.
        pub min_delay: Option<GatewayDuration> as "minDelay",
        /// So many of a hundred requests of the last ten seconds at most; 10 when absent. Hedges take from the budget of
        /// `retry` besides.
        pub budget_percent: Option<u32> as "budgetPercent" [1..=100],
    }
    one_of { [delay] [delay_percentile, min_delay] }
}

pub(super) fn validate(hedge: &Spanned<Hedge>, cx: &mut Cx) {
    let wrong = match (hedge.delay, hedge.delay_percentile) {
        (None, None) => Some(("says not when", "write `delayPercentile: 95` or `delay: 50ms`")),
        (Some(_), Some(_)) => Some(("has both a `delay` and a `delayPercentile`", "remove one of the two")),
        (Some(delay), None) if delay.is_zero() => {
            Some(("has a `delay` of 0s: every request would be sent twice", "write a time longer than none"))
        }
        (Some(_), None) if hedge.min_delay.is_some() => {
            Some(("has a `minDelay` beside a `delay`", "remove it; it belongs to `delayPercentile`"))
        }
        _ => None,
    };
    if let Some((what, help)) = wrong {
        cx.error(hedge.span, codes::CONFLICTING_FIELDS, format!("`hedge` {what}")).help =
            Some(help.to_owned());
    }
}
