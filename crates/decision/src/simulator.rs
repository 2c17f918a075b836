//! The simulator: fleets of endpoints, proxies that call them, and time that jumps from event to event.
//!
//! ```text
//! Scenario, seed ─▶ run ─▶ Report: latencies, load per endpoint, failures, retries, what did not hold
//!                    │
//!    arrivals ─▶ client: Retry::begin ─▶ Cluster::call ─▶ server: queue, service, failure ─▶ Cluster::record
//!                    ▲                                                                          │
//!                    └────────────── Retry::after: again, after a back-off ◀────────────────────┘
//! ```
//!
//! Each client is a proxy of its own: it has its own [`crate::Cluster`], made from messages like any proxy's, and knows of
//! the fleet only what its own requests tell it. Decisions are those of this crate and not copies. The same scenario and
//! seed give the same report on every machine; what arrives when, and how much work it is, does not depend on what is
//! decided, so that algorithms are compared on the same traffic.

mod calls;
mod chain;
mod client;
mod engine;
mod events;
pub mod fleets;
mod hedged;
mod report;
mod scenario;
mod server;

pub use chain::{Chain, Reached, run_chain};
pub use report::{Answered, Report, median};
pub use scenario::{Arrivals, Breaking, Burst, Instance, Phase, Policies, Scenario, Spread, State};

use std::sync::Arc;

use crate::overload::Overload;

/// Runs a scenario to its end: until everything that arrived has been answered or has failed.
#[must_use]
pub fn run(scenario: &Scenario, seed: u64) -> Report {
    let overload = scenario.policies.overload.map(|(concurrency, queue)| Overload {
        origin: Arc::default(),
        concurrency,
        queue,
        priorities: Box::default(),
    });
    engine::Engine::new(scenario, overload.as_ref(), seed).run()
}

#[cfg(test)]
mod tests;
