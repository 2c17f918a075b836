//! `meshwork simulate FILE --live`: the same scenario in real time, in a mesh as users have it. The platform is what
//! `meshwork up --no-shop` starts; clients and instances are programs beside sidecars, as `meshwork run` starts them;
//! policies are a `TrafficPolicy` in force; requests arrive as they do in the simulator.
//!
//! ```text
//!                        platform: registry ◀── register ─────────────┐
//!                        control plane, TrafficPolicy                 │
//!                             │ discovery           │ what it serves  │
//!                             ▼                     ▼                 │
//! arrivals ─▶ load ─▶ sidecar of a client ──mTLS──▶ sidecar of an instance ─▶ application: queue, work
//!               │         │ access log: attempts          ▲               ▲  │
//!               │         ▼ metrics: ejections, refusals  │ kill, stop,   │  ▼
//!            latencies ─▶ Outline, as of a seed ◀─────────┴ start again   │ requests taken
//!                                                             how it is ──┘
//! ```

mod application;
mod clients;
mod instance;
mod load;
mod mesh;
mod process;
mod told;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshwork_api::ClientError;
use meshwork_base::{Clock, SeededRng, SystemClock};
use meshwork_decision::simulator::Scenario;
use meshwork_process::descriptors::raise_open_files;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};

pub(super) use self::application::run as serve;
use self::clients::{Client, Told};
use self::instance::Instance;
use self::load::Counted;
use self::mesh::Mesh;
use super::{Outline, QUANTILES, millis, ratio};
use crate::up::UpError;

/// So many sidecars begin at once: more would only wait for each other.
const AT_ONCE: usize = 8;

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
    /// More sidecars than addresses.
    #[error(
        "clients and instances: {0} sidecars, and a live run has addresses for {most}; take fewer, or run without `--live`",
        most = mesh::MOST
    )]
    TooMany(usize),
    /// What no process can do.
    #[error(
        "instances[{number}].phases: at {at:?} it would be Lost, but has crashed or not joined: only what runs can fall silent; let it serve before, or run without `--live`"
    )]
    Lost {
        /// Which instance.
        number: usize,
        /// When.
        at: Duration,
    },
    /// What the simulator can do and a `TrafficPolicy` cannot say.
    #[error(
        "proxies would refuse the scenario: {0}; keep to what a TrafficPolicy takes, or run without `--live`"
    )]
    Refused(String),
    /// The platform does not begin.
    #[error(transparent)]
    Platform(#[from] UpError),
    /// Its API does not answer.
    #[error(transparent)]
    Api(#[from] ClientError),
    /// A sidecar never became ready.
    #[error("{name} did not become ready within {within:?}; its log: {log}")]
    NotReady {
        /// The instance's name.
        name: String,
        /// How long was waited.
        within: Duration,
        /// Where it says why.
        log: PathBuf,
    },
    /// Instances are ready and nobody may call them.
    #[error(
        "the control plane did not have {count} instances in use within {within:?}; the logs: {folder}/*/log"
    )]
    Unused {
        /// How many.
        count: usize,
        /// How long was waited.
        within: Duration,
        /// Where everybody's state is.
        folder: PathBuf,
    },
    /// A process ended by itself.
    #[error("{name} ended by itself with {how}; its log: {log}")]
    Ended {
        /// The instance's name.
        name: String,
        /// Its status.
        how: String,
        /// Where it says why.
        log: PathBuf,
    },
    /// A proxy could not be asked, or said what nobody understands.
    #[error("a proxy's {0}; run it again, and report it if that happens again")]
    Proxy(String),
    /// Somebody had enough.
    #[error("the run was ended by a signal; nothing of it is left")]
    Told,
    /// An application without a sidecar.
    #[error("`--application` is what `--live` starts beside a sidecar; run `meshwork simulate FILE --live`")]
    Alone,
}

impl LiveError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether it is told where to look.
    const fn names_a_log(&self) -> bool {
        matches!(self, Self::Platform(_) | Self::NotReady { .. } | Self::Unused { .. } | Self::Ended { .. })
    }
}

/// One run of this text's scenario, which takes as long as that says, and the time to begin.
pub(super) fn run(scenario: &Scenario, text: &str, seed: u64) -> Result<Outline, LiveError> {
    let sidecars = scenario.clients + scenario.instances.len();
    if sidecars > mesh::MOST {
        return Err(LiveError::TooMany(sidecars));
    }
    for (number, plan) in scenario.instances.iter().enumerate() {
        if let Some(at) = instance::cannot(plan) {
            return Err(LiveError::Lost { number, at });
        }
    }
    raise_open_files();
    // One thread: this process shares the machine with many that have threads of their own.
    let tasks = LocalSet::new();
    tasks.block_on(&runtime()?, async {
        let told = end().map_err(LiveError::io("signals"))?;
        tokio::select! {
            outline = Box::pin(once(scenario, text, seed)) => outline,
            () = told => Err(LiveError::Told),
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, LiveError> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().map_err(LiveError::io("a runtime"))
}

/// Waits for a signal that asks for the end.
fn end() -> std::io::Result<impl Future<Output = ()>> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [interrupt, terminate, hang_up] = kinds.map(signal);
    let (mut interrupt, mut terminate, mut hang_up) = (interrupt?, terminate?, hang_up?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}

async fn once(scenario: &Scenario, text: &str, seed: u64) -> Result<Outline, LiveError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut mesh = Mesh::start(scenario, text, seed, &clock).await?;
    let outline = Box::pin(measured(&mesh, scenario, seed, &clock)).await;
    mesh.keeping_logs(outline)
}

async fn measured(
    mesh: &Mesh,
    scenario: &Scenario,
    seed: u64,
    clock: &Arc<dyn Clock>,
) -> Result<Outline, LiveError> {
    let mut clients = Vec::new();
    for number in 0..scenario.clients {
        if let Some(before) = number.checked_sub(AT_ONCE) {
            let before: &mut Client = &mut clients[before];
            before.ready().await?;
        }
        clients.push(Client::start(mesh, scenario, number)?);
    }
    let mut instances = Vec::new();
    for number in 0..scenario.instances.len() {
        if let Some(before) = number.checked_sub(AT_ONCE) {
            let before: &mut Instance = &mut instances[before];
            before.ready().await?;
        }
        instances.push(Instance::start(mesh, scenario, number)?);
    }
    for client in &mut clients {
        client.ready().await?;
    }
    for instance in &mut instances {
        instance.ready().await?;
    }
    mesh.uses(scenario.instances.iter().filter(|plan| plan.joins.is_zero()).count()).await?;
    let taken: Vec<_> = instances.iter().map(Instance::taken).collect();
    let world = Rc::new(RefCell::new(SeededRng::new(seed)));
    let outbound: Vec<_> = clients.iter().map(Client::outbound).collect();
    let began = clock.now();
    let mut living = JoinSet::new();
    for instance in instances {
        living.spawn_local(instance.live(Arc::clone(clock), began));
    }
    let counted = tokio::select! {
        counted = load::run(scenario, &outbound, &world, clock, began) => counted,
        Some(broken) = living.join_next() => return Err(broken.expect("it neither panics nor is aborted")),
    };
    let told = clients::finish(&mut clients).await?;
    Ok(outline(scenario, seed, &counted, &told, &taken))
}

fn outline(
    scenario: &Scenario,
    seed: u64,
    counted: &Counted,
    told: &Told,
    taken: &[Rc<Cell<u64>>],
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
        loads: taken.iter().map(|taken| taken.get()).collect(),
        broken: unended,
    }
}
