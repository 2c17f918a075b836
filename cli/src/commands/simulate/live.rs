//! `meshwork simulate FILE --live`: the same scenario in real time. Its proxies are `meshwork gateway` processes, its
//! instances listen on sockets of this machine and fail as it says, requests arrive as they do in the simulator.
//!
//! ```text
//! arrivals ─▶ load ──HTTP/1.1──▶ gateway, one per client ──HTTP/1.1──▶ instances: queue, work, faults by time
//!               │                   │ access log: attempts                │
//!               ▼                   ▼ metrics: ejections, refusals        ▼
//!            latencies ─────────▶ Outline, as of a seed ◀────────── requests of each
//! ```
//!
//! Where the scenario says `overload`, another gateway stands before each instance as its sidecar would, and keeps it.

mod instance;
mod load;
mod proxies;
mod told;

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use meshwork_base::{Clock, SeededRng, SystemClock};
use meshwork_decision::simulator::Scenario;
use thiserror::Error;

use self::instance::Instance;
use self::load::Counted;
use self::proxies::Proxies;
use super::{Outline, QUANTILES, millis, ratio};

/// A run could not be made.
#[derive(Debug, Error)]
pub(super) enum LiveError {
    /// Something of this machine.
    #[error("{what}: {source}; look whether this machine has sockets, processes and space left")]
    Io {
        /// What was tried.
        what: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// What an `EndpointSlice` cannot say.
    #[error(
        "instances[{0}].weight: endpoints in files have no weight; leave it out, or run without `--live`"
    )]
    Weight(usize),
    /// What the folder of the proxies is not changed for.
    #[error(
        "instances[{0}].joins: real proxies hear of all instances from the beginning; leave it out, or run without `--live`"
    )]
    Joins(usize),
    /// What the simulator can do and a `TrafficPolicy` cannot say.
    #[error(
        "proxies would refuse the scenario: {0}; keep to what a TrafficPolicy takes, or run without `--live`"
    )]
    Refused(String),
    /// A proxy never became ready.
    #[error("a proxy did not become ready within {within:?}; its log: {log}")]
    NotReady {
        /// How long was waited.
        within: Duration,
        /// Where it says why.
        log: PathBuf,
    },
    /// A proxy could not be asked, or said what nobody understands.
    #[error("a proxy's {0}; run it again, and report it if that happens again")]
    Proxy(String),
}

impl LiveError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// One run, which takes as long as the scenario says.
pub(super) fn run(scenario: &Scenario, seed: u64) -> Result<Outline, LiveError> {
    let first = scenario.instances.first().map_or(1, |instance| instance.weight);
    if let Some(other) = scenario.instances.iter().position(|instance| instance.weight != first) {
        return Err(LiveError::Weight(other));
    }
    if let Some(late) = scenario.instances.iter().position(|instance| !instance.joins.is_zero()) {
        return Err(LiveError::Joins(late));
    }
    // One thread: instances and load share the machine with proxies that have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LiveError::io("a runtime"))?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, once(scenario, seed))
}

async fn once(scenario: &Scenario, seed: u64) -> Result<Outline, LiveError> {
    let clock: Rc<dyn Clock> = Rc::new(SystemClock::new());
    let world = Rc::new(RefCell::new(SeededRng::new(seed)));
    let instances = scenario
        .instances
        .iter()
        .map(|plan| Instance::open(plan.clone(), scenario.network, Rc::clone(&world)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(LiveError::io("an instance's socket"))?;
    let ports: Vec<u16> = instances.iter().map(|instance| instance.port()).collect();
    let proxies = Proxies::start(scenario, &ports).await?;
    let began = clock.now();
    for instance in &instances {
        instance.live(Rc::clone(&clock), began);
    }
    let counted = load::run(scenario, &proxies.addresses(), &world, &clock, began).await;
    let told = proxies.finish().await?;
    Ok(outline(scenario, seed, &counted, &told, &instances))
}

fn outline(
    scenario: &Scenario,
    seed: u64,
    counted: &Counted,
    told: &proxies::Told,
    instances: &[Rc<Instance>],
) -> Outline {
    let requests = counted.arrived;
    let quantile = |share: f64| millis(counted.quantile(share));
    let unended =
        (counted.unended > 0).then(|| format!("{} of {requests} requests never ended", counted.unended));
    Outline {
        seed,
        requests,
        latencies: QUANTILES.map(quantile),
        failed: 100.0 * counted.failed(),
        failed_by_priority: (scenario.arrivals.high > 0)
            .then(|| counted.failed_by_priority().map(|failed| 100.0 * failed)),
        attempts_per_request: ratio(told.attempts, requests),
        retries: told.attempts.saturating_sub(told.requests),
        held_back: told.held_back,
        refused: told.refused,
        ejections: told.ejections,
        loads: instances.iter().map(|instance| instance.taken()).collect(),
        broken: unended,
    }
}
