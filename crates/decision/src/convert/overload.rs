//! What keeps an application from more than it can do.

use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;
use meshwork_messages::v1::overload::Priority as Wire;

use super::policy::{operation, peers};
use super::{Result, unknown, value};
use crate::authorization::AuthorizationRule;
use crate::origin::Origin;
use crate::overload::{AdaptiveConcurrency, Overload, Priority, PriorityRule, Queue};

pub(super) fn overload(origin: &Arc<Origin>, message: &v1::Overload) -> Result<Overload> {
    let millis = |millis: u32| Duration::from_millis(millis.into());
    let concurrency =
        message.adaptive_concurrency.as_ref().ok_or_else(|| unknown("overload.adaptive_concurrency"))?;
    let queue = message.queue.as_ref().ok_or_else(|| unknown("overload.queue"))?;
    if concurrency.min_concurrency == 0 {
        return value("overload.adaptive_concurrency.min_concurrency", 0, "write at least 1");
    }
    Ok(Overload {
        origin: Arc::clone(origin),
        concurrency: AdaptiveConcurrency {
            min_concurrency: concurrency.min_concurrency,
            max_concurrency: concurrency.max_concurrency.max(concurrency.min_concurrency),
            update_interval: millis(concurrency.update_interval_ms),
            buffer: concurrency.buffer_percent,
            min_rtt_interval: millis(concurrency.min_rtt_interval_ms),
            jitter: concurrency.jitter_percent,
        },
        queue: Queue {
            max_requests: queue.max_requests,
            max_wait: millis(queue.max_wait_ms),
            target: queue.target_ms.map(millis),
            interval: queue.interval_ms.map(millis),
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
