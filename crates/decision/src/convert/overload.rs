//! What keeps an application from more than it can do.

use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;
use meshwork_messages::v1::overload::Priority as Wire;

use super::policy::{operation, or, peers};
use super::{Result, unknown};
use crate::authorization::AuthorizationRule;
use crate::origin::Origin;
use crate::overload::{AdaptiveConcurrency, Overload, Priority, PriorityRule, Queue};

/// The defaults are those that the resource's documentation says.
pub(super) fn overload(origin: &Arc<Origin>, message: &v1::Overload) -> Result<Overload> {
    let millis = |millis: u32| Duration::from_millis(millis.into());
    let concurrency =
        message.adaptive_concurrency.as_ref().ok_or_else(|| unknown("overload.adaptive_concurrency"))?;
    let queue = message.queue.unwrap_or_default();
    let least = or(concurrency.min_concurrency, 3);
    let max_wait = or(queue.max_wait_ms, 500);
    Ok(Overload {
        origin: Arc::clone(origin),
        concurrency: AdaptiveConcurrency {
            min_concurrency: least,
            max_concurrency: or(concurrency.max_concurrency, 1_000).max(least),
            update_interval: millis(or(concurrency.update_interval_ms, 100)),
            buffer: concurrency.buffer_percent.unwrap_or(50),
            min_rtt_interval: millis(or(concurrency.min_rtt_interval_ms, 15_000)),
            jitter: concurrency.jitter_percent.unwrap_or(15),
        },
        queue: Queue {
            max_requests: queue.max_requests.unwrap_or(256),
            max_wait: millis(max_wait),
            // Another author may have said that nobody waits for so long.
            target: (queue.target_ms > 0).then(|| millis(queue.target_ms.min(max_wait))),
            interval: (queue.interval_ms > 0).then(|| millis(queue.interval_ms)),
        },
        priorities: message.priorities.iter().map(rule).collect::<Result<_>>()?,
    })
}

pub(super) fn rule(message: &v1::overload::PriorityRule) -> Result<PriorityRule> {
    let priority = match Wire::try_from(message.priority) {
        Ok(Wire::Low) => Priority::Low,
        Ok(Wire::Default) => Priority::Default,
        Ok(Wire::High) => Priority::High,
        Ok(Wire::Critical) => Priority::Critical,
        Err(_) => return Err(unknown("overload.priorities.priority")),
    };
    let field = |field: &v1::Field| (field.name.to_ascii_lowercase().into(), field.value.as_str().into());
    Ok(PriorityRule {
        priority,
        headers: message.headers.iter().map(field).collect(),
        who: AuthorizationRule {
            from: message.from.iter().map(peers).collect::<Result<_>>()?,
            to: message.to.iter().map(operation).collect::<Result<_>>()?,
        },
    })
}
