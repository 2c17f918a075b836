//! What keeps an application from more than it can do.

use meshwork_messages::v1;
use meshwork_messages::v1::overload::{AdaptiveConcurrency, Priority, PriorityRule, Queue};
use meshwork_resources::{Overload, OverloadPriority, PriorityRule as ResourcePriorityRule, Spanned};

use super::{operations, peers};
use crate::rule::millis;
use crate::shaping::field;

/// The defaults are those that the resource's documentation says.
pub(super) fn message(spec: &Overload) -> Option<v1::Overload> {
    let concurrency = spec.adaptive_concurrency.as_ref()?;
    let min = concurrency.min_concurrency.unwrap_or(3);
    let queue = spec.queue.as_ref();
    Some(v1::Overload {
        adaptive_concurrency: Some(AdaptiveConcurrency {
            min_concurrency: min,
            max_concurrency: concurrency.max_concurrency.as_ref().map_or(min.max(1_000), |most| most.inner),
            update_interval_ms: concurrency.update_interval.as_ref().map_or(100, |t| millis(t.inner).max(1)),
            buffer_percent: concurrency.buffer.unwrap_or(50),
            min_rtt_interval_ms: concurrency
                .min_rtt_interval
                .as_ref()
                .map_or(15_000, |t| millis(t.inner).max(1)),
            jitter_percent: concurrency.jitter.unwrap_or(15),
        }),
        queue: Some(Queue {
            max_requests: queue.and_then(|queue| queue.max_requests).unwrap_or(256),
            max_wait_ms: queue
                .and_then(|queue| queue.max_wait.as_ref())
                .map_or(500, |t| millis(t.inner).max(1)),
            target_ms: queue.and_then(|queue| queue.target.as_ref()).map(|t| millis(t.inner).max(1)),
            interval_ms: queue.and_then(|queue| queue.interval.as_ref()).map(|t| millis(t.inner).max(1)),
        }),
        priorities: priorities(&spec.priorities),
    })
}

pub(super) fn priorities(rules: &[Spanned<ResourcePriorityRule>]) -> Vec<PriorityRule> {
    let rule = |rule: &Spanned<ResourcePriorityRule>| {
        let priority = match rule.priority {
            OverloadPriority::Critical => Priority::Critical,
            OverloadPriority::High => Priority::High,
            OverloadPriority::Default => Priority::Default,
            OverloadPriority::Low => Priority::Low,
        };
        PriorityRule {
            priority: priority.into(),
            headers: rule.headers.iter().map(|header| field(header)).collect(),
            from: peers(&rule.from),
            to: operations(&rule.to),
        }
    };
    rules.iter().map(rule).collect()
}
