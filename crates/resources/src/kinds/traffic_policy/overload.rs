//! What keeps an application from more than it can do.

use crate::codes;
use crate::decode::duration::GatewayDuration;
use crate::decode::overlay::layered;
use crate::decode::{Cx, choice, record};
use crate::kinds::authorization_policy::{AuthorizationFrom, AuthorizationTo};
use crate::kinds::http_filter::HTTPHeader;
use crate::span::{Span, Spanned};

layered! {
    /// What keeps an application from more than it can do. It is decided by the sidecar beside each instance, and by each
    /// proxy that calls a service without sidecars.
    pub struct Overload {
        /// How many requests an instance (of a service without sidecars: all of them, by one caller) gets at once, as its
        /// answers tell.
        pub adaptive_concurrency: Option<Spanned<AdaptiveConcurrency>> as "adaptiveConcurrency",
        /// How those wait that come beyond it.
        pub queue: Option<Spanned<OverloadQueue>>,
        /// Who goes first: the first rule that matches a request says its priority, which is `Default` where none does.
        pub priorities: Vec<Spanned<PriorityRule>> [0..=64],
    }
}

layered! {
    /// How many requests an instance gets at once. The names are Envoy's where it has them.
    pub struct AdaptiveConcurrency {
        /// Never less; 3 when absent.
        pub min_concurrency: Option<u32> as "minConcurrency" [1..=1_000_000],
        /// Never more; 1,000 when absent. The same as `minConcurrency`: a limit that stays.
        pub max_concurrency: Option<Spanned<u32>> as "maxConcurrency" [1..=1_000_000],
        /// How often the limit changes at most; 100 ms when absent.
        pub update_interval: Option<Spanned<GatewayDuration>> as "updateInterval",
        /// Percent by which answers may take longer than without a queue before the limit falls; 50 when absent.
        pub buffer: Option<u32> [0..=1_000],
        /// How often the time of an answer without a queue is measured while the load hides it; 15 s when absent.
        pub min_rtt_interval: Option<Spanned<GatewayDuration>> as "minRttInterval",
        /// Percent of that by which it is longer at random; 15 when absent.
        pub jitter: Option<u32> [0..=100],
    }
}

layered! {
    /// How requests wait that come beyond what an instance gets at once.
    pub struct OverloadQueue {
        /// So many at most; 256 when absent, 0: nobody waits.
        pub max_requests: Option<u32> as "maxRequests" [0..=1_000_000],
        /// So long at most; 500 ms when absent.
        pub max_wait: Option<Spanned<GatewayDuration>> as "maxWait",
        /// So long where the queue stands; what an answer takes, but 5 ms at least, when absent.
        pub target: Option<Spanned<GatewayDuration>>,
        /// A queue whose oldest has waited for longer than `target` during so long stands; four times what an answer takes, but
        /// 100 ms at least, when absent.
        pub interval: Option<Spanned<GatewayDuration>>,
    }
}

record! {
    /// Which requests have a priority: those to which everything that is said here applies.
    pub struct PriorityRule {
        /// The priority.
        pub priority: OverloadPriority,
        /// They have all of these header fields.
        pub headers: Vec<Spanned<HTTPHeader>> [0..=16],
        /// They come from one of these callers.
        pub from: Vec<Spanned<AuthorizationFrom>> [0..=64],
        /// They are one of these operations.
        pub to: Vec<Spanned<AuthorizationTo>> [0..=64],
    }
}

choice! {
    /// How much a request matters.
    pub enum OverloadPriority {
        /// Before all others.
        Critical = "Critical",
        /// Before those that no rule names.
        High = "High",
        /// What no rule names.
        Default = "Default",
        /// The first to be sent away.
        Low = "Low",
    }
}

pub(super) fn validate(overload: &Spanned<Overload>, cx: &mut Cx) {
    let Some(concurrency) = &overload.adaptive_concurrency else {
        let why = if overload.queue.is_some() || !overload.priorities.is_empty() {
            "`overload` says who waits and not for what: without `adaptiveConcurrency` nobody does"
        } else {
            "`overload` says nothing"
        };
        return refuse(overload.span, why, "add `adaptiveConcurrency: {}`, or remove it", cx);
    };
    if let Some(most) = &concurrency.max_concurrency
        && most.inner < concurrency.min_concurrency.unwrap_or(3)
    {
        let why = "`overload.adaptiveConcurrency.maxConcurrency` is less than `minConcurrency`, which is 3 when absent";
        refuse(most.span, why, "write the lesser one as `minConcurrency`", cx);
    }
    let queue = overload.queue.as_ref();
    let times = [
        ("adaptiveConcurrency.updateInterval", &concurrency.update_interval),
        ("adaptiveConcurrency.minRttInterval", &concurrency.min_rtt_interval),
        ("queue.maxWait", queue.map_or(&None, |queue| &queue.max_wait)),
        ("queue.target", queue.map_or(&None, |queue| &queue.target)),
        ("queue.interval", queue.map_or(&None, |queue| &queue.interval)),
    ];
    for (field, time) in times {
        if let Some(time) = time.as_ref().filter(|time| time.is_zero()) {
            let help =
                "write a time longer than none, or leave it out; `queue: {maxRequests: 0}` lets nobody wait";
            refuse(time.span, &format!("`overload.{field}` is 0s"), help, cx);
        }
    }
    if let Some(queue) = queue
        && let (Some(target), Some(most)) = (&queue.target, queue.max_wait.as_ref().map(|most| most.inner))
        && target.inner > most
    {
        let why = format!("`overload.queue.target` ({}) is longer than `maxWait` ({most})", target.inner);
        refuse(target.span, &why, "write the shorter one as `target`", cx);
    }
    validate_priorities("overload", &overload.priorities, cx);
}

/// Each rule, and each of its entries, says what it is about.
pub(super) fn validate_priorities(part: &str, rules: &[Spanned<PriorityRule>], cx: &mut Cx) {
    for rule in rules {
        if rule.headers.is_empty() && rule.from.is_empty() && rule.to.is_empty() {
            let why =
                format!("a rule of `{part}.priorities` says nothing and would match everything after it");
            refuse(rule.span, &why, "add `headers`, `from` or `to`", cx);
        }
        let froms = rule.from.iter().filter(|from| from.spiffe_ids.is_empty() && from.namespaces.is_empty());
        let froms = froms.map(|from| from.span);
        let tos =
            rule.to.iter().filter(|to| to.hosts.is_empty() && to.methods.is_empty() && to.paths.is_empty());
        for span in froms.chain(tos.map(|to| to.span)) {
            let why = format!("an entry of `{part}.priorities` says nothing and would match everything");
            refuse(span, &why, "write what it is about, or remove it", cx);
        }
    }
}

fn refuse(span: Span, message: &str, help: &str, cx: &mut Cx) {
    cx.error(span, codes::CONFLICTING_FIELDS, message.to_owned()).help = Some(help.to_owned());
}
