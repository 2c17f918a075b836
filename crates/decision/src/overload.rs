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
//! there. Where no instance of a service has a sidecar it stands before the cluster, in each proxy that calls it. A request
//! counts until the application begins to answer, so that streams and slow callers do not hold its place.

mod answers;
mod average;
mod change;
mod gate;
mod gradient;
mod limiter;
mod line;
mod priority;
mod purse;

use std::sync::Arc;

use crate::origin::Origin;
pub use change::GateChange;
pub use gate::{Entered, Gate, Pass, Waiting};
pub use gradient::AdaptiveConcurrency;
pub(crate) use limiter::{Called, Entry, Limiter};
pub use limiter::{GateView, Tally};
pub use line::Queue;
pub use priority::Priority;
pub(crate) use priority::PriorityRule;

use crate::cluster::Cluster;
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
        priority_of(&self.priorities, request)
    }

    /// The same, by which nobody has to wait.
    fn without_limit(&self) -> Self {
        let concurrency =
            AdaptiveConcurrency { min_concurrency: u32::MAX, max_concurrency: u32::MAX, ..self.concurrency };
        Self { origin: Arc::clone(&self.origin), concurrency, queue: self.queue, priorities: Box::default() }
    }
}

/// How much a request matters: the first rule that matches says it.
pub(crate) fn priority_of(rules: &[PriorityRule], request: &impl RequestView) -> Priority {
    let rule = rules.iter().find(|rule| rule.matches(request));
    rule.map_or(Priority::Default, |rule| rule.priority)
}

/// What stands before a service, and by which policy.
pub type Guard<'a> = (&'a Arc<Gate>, &'a Arc<Overload>);

impl Cluster {
    /// What keeps its endpoints from more than they can do: a policy's gate here, unless the sidecars beside them have one
    /// each, which know better.
    #[must_use]
    #[inline]
    pub fn guard(&self) -> Option<Guard<'_>> {
        self.overload.as_ref().and_then(|overload| self.guarded(overload))
    }

    fn guarded<'a>(&'a self, overload: &'a Arc<Overload>) -> Option<Guard<'a>> {
        (!self.is_in_mesh()).then(|| (self.shared.gate.get_or_init(Arc::default), overload))
    }

    /// Whether other proxies of the mesh stand before its endpoints: all of them are spoken to alike.
    #[must_use]
    pub fn is_in_mesh(&self) -> bool {
        self.endpoints().all().first().is_some_and(|endpoint| endpoint.spiffe_id().is_some())
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
