//! What keeps an application from more than it can do.

use meshwork_messages::v1;
use meshwork_messages::v1::overload::{AdaptiveConcurrency, Priority, PriorityRule, Queue};
use meshwork_resources::{Overload, OverloadPriority, PriorityRule as ResourcePriorityRule, Spanned};

use super::{operations, peers};
use crate::rule::said_ms;
use crate::shaping::field;

pub(super) fn message(spec: &Overload) -> v1::Overload {
    v1::Overload {
        adaptive_concurrency: spec.adaptive_concurrency.as_ref().map(|concurrency| AdaptiveConcurrency {
            min_concurrency: concurrency.min_concurrency.unwrap_or_default(),
            max_concurrency: concurrency.max_concurrency.as_ref().map_or(0, |most| most.inner),
            update_interval_ms: said_ms(concurrency.update_interval.as_deref()),
            buffer_percent: concurrency.buffer,
            min_rtt_interval_ms: said_ms(concurrency.min_rtt_interval.as_deref()),
            jitter_percent: concurrency.jitter,
        }),
        queue: spec.queue.as_ref().map(|queue| Queue {
            max_requests: queue.max_requests,
            max_wait_ms: said_ms(queue.max_wait.as_deref()),
            target_ms: said_ms(queue.target.as_deref()),
            interval_ms: said_ms(queue.interval.as_deref()),
        }),
        priorities: priorities(&spec.priorities),
    }
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
