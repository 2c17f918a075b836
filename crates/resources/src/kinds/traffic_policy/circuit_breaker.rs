//! `TrafficPolicy.circuitBreaker`: when nothing is called for a while.

use crate::codes;
use crate::decode::duration::GatewayDuration;
use crate::decode::overlay::{layered, words};
use crate::decode::{Cx, choice};
use crate::kinds::target::PolicyTarget;
use crate::object::ObjectKind;
use crate::span::Spanned;

layered! {
    /// When a service, or by a route, is not called for a while, since it mostly fails or has become too slow.
    pub struct CircuitBreaker {
        /// What each breaker is about; when absent `Service` for services and namespaces, and `Route` for routes.
        pub per: Option<Spanned<BreakerScope>>,
        /// Who decides; `Enforce` when absent.
        pub mode: Option<BreakerMode>,
        /// The calls that are looked at; those of the last ten seconds when absent.
        pub window: Option<Spanned<BreakerWindow>>,
        /// Below this number of calls nothing is decided; 20 when absent, or as many as `window.calls` if those are fewer.
        pub minimum_calls: Option<Spanned<u32>> as "minimumCalls" [1..=1_000_000],
        /// Percent of calls that fail; 50 when absent.
        pub failure_percent: Option<u32> as "failurePercent" [1..=100],
        /// Calls that take too long.
        pub slow_calls: Option<SlowCalls> as "slowCalls",
        /// How long nothing is called, the first time; 5 s when absent, or `maxOpenTime` if that is less. It doubles as long as trials fail.
        pub open_time: Option<GatewayDuration> as "openTime",
        /// The longest time; 60 s when absent, or `openTime` if that is more.
        pub max_open_time: Option<GatewayDuration> as "maxOpenTime",
        /// How many calls are tried then; 5 when absent.
        pub trials: Option<u32> [1..=1_000],
    }
}

choice! {
    /// What a circuit breaker is about.
    pub enum BreakerScope {
        /// Each port of a service: while it is open nobody calls it.
        Service = "Service",
        /// Each endpoint: while it is open others are called.
        Endpoint = "Endpoint",
        /// The calls by a route, or by the rule that the policy names, to all of its backends: while it is open nobody is
        /// called by it.
        Route = "Route",
    }
}

choice! {
    /// Who decides.
    pub enum BreakerMode {
        /// The rates.
        Enforce = "Enforce",
        /// The rates, but nobody is refused: metrics tell what would be.
        Observe = "Observe",
        /// Nothing is called.
        ForcedOpen = "ForcedOpen",
        /// Nobody is refused.
        ForcedClosed = "ForcedClosed",
    }
}

layered! {
    /// The calls that a circuit breaker looks at: one of the two.
    pub struct BreakerWindow {
        /// The last so many.
        pub calls: Option<u32> [1..=100_000],
        /// Those of this time.
        pub time: Option<GatewayDuration>,
    }
    one_of { [calls] [time] }
}

layered! {
    /// Calls that take too long.
    pub struct SlowCalls {
        /// Longer than this to the head of the response.
        pub after: Spanned<GatewayDuration>,
        /// So many percent of all; 100 when absent.
        pub percent: Option<u32> [1..=100],
    }
}

words!(BreakerScope, BreakerMode);

pub(super) fn validate(breaker: &Spanned<CircuitBreaker>, cx: &mut Cx) {
    if let Some(window) = &breaker.window {
        let wrong = match (window.calls, window.time) {
            (Some(_), Some(_)) => Some(("has both `calls` and `time`", "remove one of the two")),
            (None, None) => Some(("says nothing", "write `calls: 100` or `time: 10s`, or remove it")),
            (_, Some(time)) if time.is_zero() => {
                Some(("has a `time` of 0s", "write a time longer than none, or leave it out for 10s"))
            }
            _ => None,
        };
        if let Some((what, help)) = wrong {
            let message = format!("`circuitBreaker.window` {what}");
            cx.error(window.span, codes::CONFLICTING_FIELDS, message).help = Some(help.to_owned());
        }
    }
    if let Some(after) = breaker.slow_calls.as_ref().map(|slow| &slow.after).filter(|after| after.is_zero()) {
        let message = "`circuitBreaker.slowCalls.after` is 0s: every call would be slow";
        cx.error(after.span, codes::CONFLICTING_FIELDS, message).help =
            Some("write a time longer than none, or remove `slowCalls`".to_owned());
    }
    validate_minimum(breaker, cx);
    let (open, longest) = (breaker.open_time, breaker.max_open_time);
    let is_zero = |time: Option<GatewayDuration>| time.is_some_and(GatewayDuration::is_zero);
    if is_zero(open) || is_zero(longest) {
        let which = if is_zero(open) { "openTime" } else { "maxOpenTime" };
        let message = format!("`circuitBreaker.{which}` is 0s: it would never be open");
        cx.error(breaker.span, codes::CONFLICTING_FIELDS, message).help =
            Some("write a time longer than none, or `mode: Observe` to refuse nobody".to_owned());
    } else if let Some((open, longest)) = open.zip(longest).filter(|(open, longest)| open > longest) {
        let message = format!("`circuitBreaker.openTime` ({open}) is longer than `maxOpenTime` ({longest})");
        cx.error(breaker.span, codes::CONFLICTING_FIELDS, message).help =
            Some("write the shorter one as `openTime`".to_owned());
    }
}

/// A window that never holds as many calls as are wanted decides nothing.
fn validate_minimum(breaker: &CircuitBreaker, cx: &mut Cx) {
    let calls = breaker.window.as_ref().and_then(|window| window.calls);
    if let Some((minimum, calls)) = breaker.minimum_calls.as_ref().zip(calls)
        && minimum.inner > calls
    {
        let message = format!(
            "`circuitBreaker.minimumCalls` is {}; the window has the last {calls} calls: it would never open",
            minimum.inner
        );
        cx.error(minimum.span, codes::CONFLICTING_FIELDS, message).help =
            Some(format!("write at most {calls}, or more as `window.calls`"));
    }
}

/// What it is about must be what the policy is attached to.
pub(super) fn validate_scope(breaker: &CircuitBreaker, targets: &[Spanned<PolicyTarget>], cx: &mut Cx) {
    for target in targets {
        let fits: &[BreakerScope] = match target.object_kind() {
            Some(ObjectKind::Service | ObjectKind::Namespace) => {
                &[BreakerScope::Service, BreakerScope::Endpoint]
            }
            Some(ObjectKind::HTTPRoute) => &[BreakerScope::Route],
            // What is no target at all is said elsewhere.
            Some(ObjectKind::Gateway) => {
                let message =
                    "`circuitBreaker` is for services, namespaces and routes; the policy is attached to a \
                               Gateway too"
                        .to_owned();
                cx.error(target.span, codes::CONFLICTING_FIELDS, message).help =
                    Some("write a policy of its own for what is called".to_owned());
                return;
            }
            _ => continue,
        };
        if let Some(per) = breaker.per.as_ref().filter(|per| !fits.contains(&per.inner)) {
            let (scope, kind) = (per.inner.as_str(), &target.kind);
            let message = format!("`circuitBreaker.per` is {scope}; the policy is attached to a {kind}");
            let fits: Vec<&str> = fits.iter().map(|scope| scope.as_str()).collect();
            cx.error(per.span, codes::CONFLICTING_FIELDS, message).help =
                Some(format!("write {} there, or attach it elsewhere", fits.join(" or ")));
            return;
        }
    }
}
