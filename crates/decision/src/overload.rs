//! Overload: an application gets as much at once as it can work on, the rest waits for a moment or is sent away, and who
//! matters most goes first.
//!
//! ```text
//!             Priority ─▶ Gate::enter ─▶ Pass ─▶ the application ─▶ Pass::ended ─▶ Gradient: how many at once
//!                            │  ▲                                      │
//!                            ▼  └──────────── who goes next ◀──────────┘
//!                           Line ─▶ Shed: full, for too long, or for somebody of a higher priority
//! ```
//!
//! The gate stands before an application's port, on the side of the sidecar beside it, and counts what all workers send
//! there. A request counts until the application begins to answer, so that streams and slow callers do not hold its place.

mod gate;
mod gradient;
mod limiter;
mod line;
mod priority;

use std::sync::Arc;

use crate::origin::Origin;
pub use gate::{Entered, Gate, Pass, Waiting};
pub use gradient::AdaptiveConcurrency;
pub(crate) use limiter::{Called, Entry, Limiter};
pub use limiter::{GateView, Tally};
pub use line::Queue;
pub use priority::Priority;
pub(crate) use priority::PriorityRule;

use crate::request::RequestView;

/// What keeps an application from more than it can do.
#[derive(Debug, PartialEq, Eq)]
pub struct Overload {
    /// The policy that says it.
    pub origin: Arc<Origin>,
    /// How much it gets at once.
    pub concurrency: AdaptiveConcurrency,
    /// How the others wait.
    pub queue: Queue,
    /// Who goes first: the first rule that matches says it.
    pub(crate) priorities: Box<[PriorityRule]>,
}

impl Overload {
    /// How much a request matters.
    #[must_use]
    pub fn priority(&self, request: &impl RequestView) -> Priority {
        let rule = self.priorities.iter().find(|rule| rule.matches(request));
        rule.map_or(Priority::Default, |rule| rule.priority)
    }
}

/// Why a request was sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shed {
    /// As much as may be was under way, and nobody may wait.
    Concurrency,
    /// As many as may wait did.
    QueueFull,
    /// It has waited for too long.
    QueueTime,
    /// Somebody of a higher priority came.
    Preempted,
}

impl Shed {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Concurrency, Self::QueueFull, Self::QueueTime, Self::Preempted];

    /// Its name in metrics and reasons.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::QueueFull => "queue_full",
            Self::QueueTime => "queue_time",
            Self::Preempted => "preempted",
        }
    }
}

#[cfg(test)]
mod tests;
