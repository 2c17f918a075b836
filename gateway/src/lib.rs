//! The gateway: the proxy at the edge. It joins a control plane, keeps a snapshot of what it is told, listens as its
//! `Gateway`s say, and reports what is in effect.
//!
//! ```text
//! control plane ──xds──▶ batch ──decision──▶ snapshot ──▶ proxy engine (workers) ──▶ effective, bound ──▶ control plane
//! ```
//!
//! Where the control plane is (another process, or this one with a folder) is the caller's business: it comes in as a
//! [`Connector`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use meshwork_api::RegistryClient;
use meshwork_api::registry::PROXY;
use meshwork_base::{Clock, SpiffeId, ThreadRng};
use meshwork_decision::Snapshot;
use meshwork_identity::Identity;
use meshwork_messages::{OBSERVE, OPERATE, RECORD, UNDER_WAY, type_url, v1};
use meshwork_process::{
    AdminArgs, AdminError, AdminServer, AdminState, CommonArgs, Condition, Drain, Drained, ListenArgs,
    Readiness, TraceArgs, TraceArgsError,
};
use meshwork_proxy::{
    Engine, Follower, Learnt, MemoryLevel, Mesh, Observer, Settings, Shared, TlsConfigs, TrafficArgs,
};
use meshwork_telemetry::{
    AccessLogError, AccessLogSink, LogHandle, MetricsRegistry, RequestLabels, TraceResource, Tracer,
    inventory,
};
use meshwork_xds::cache::{Cache, CacheError};
use meshwork_xds::client::{self, Handle};
use meshwork_xds::join::{Joining, Standing};
use meshwork_xds::registration::{Registrar, reached_at};
use meshwork_xds::transport::Connector;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long the last spans may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// The condition that a gateway of a mesh can prove who it is. Without, it reaches nobody there.
const IDENTITY: &str = "SVID in force";

/// What users set.
#[derive(Clone, Debug)]
pub struct Flags {
    /// Every process's flags.
    pub common: CommonArgs,
    /// Where it listens, unless a `Gateway` or a flag says it.
    pub listen: ListenArgs,
    /// Whether spans are exported, and where to.
    pub traces: TraceArgs,
    /// Bounds on what callers may make it hold.
    pub traffic: TrafficArgs,
}

/// What the gateway is started with.
pub struct Parts {
    /// What users set.
    pub flags: Flags,
    /// Its admin ports, open already.
    pub admin: Admin,
    /// How to reach the control plane.
    pub connector: Connector,
    /// Who we are in the mesh; without it, services that ask for mTLS cannot be reached.
    pub identity: Option<Arc<Identity>>,
    /// How that is kept.
    pub joining: Option<Joining>,
    /// Where the last good resources are kept, to start from them while the control plane is away. Without, nothing is
    /// kept: the control plane is in this process.
    pub cache: Option<PathBuf>,
    /// Where it is entered, so that who scrapes metrics finds it.
    pub registry: Option<Entry>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// The process's numbers.
    pub metrics: MetricsRegistry,
}

/// The admin ports, which are open before the gateway has joined anything: it is alive then, and not ready.
#[derive(Debug)]
pub struct Admin {
    server: AdminServer,
    configured: Condition,
    serving: Condition,
    listeners: Condition,
    readiness: Readiness,
}

impl Admin {
    /// Opens them, with these routes beside the process's own.
    ///
    /// # Errors
    /// [`GatewayError::Admin`].
    pub fn open(
        listen: &ListenArgs,
        addresses: &AdminArgs,
        metrics: &MetricsRegistry,
        log: LogHandle,
        routes: axum::Router,
    ) -> Result<Self, GatewayError> {
        metrics.set_info(&inventory::BUILD_INFO, &[env!("CARGO_PKG_VERSION"), "gateway"]);
        let readiness = Readiness::new();
        let [configured, serving, listeners] =
            ["configuration", "serving", "listeners"].map(|name| readiness.condition(name));
        let state = AdminState { readiness: readiness.clone(), metrics: metrics.clone(), log: Some(log) };
        let server = AdminServer::start(addresses.addresses(listen.listen_address), state, routes)?;
        Ok(Self { server, configured, serving, listeners, readiness })
    }

    /// One more condition of readiness, not true yet.
    #[must_use]
    pub fn condition(&self, name: &'static str) -> Condition {
        self.readiness.condition(name)
    }
}

/// A registry, and its address as `HOST:PORT`.
pub struct Entry {
    /// Whom to tell.
    pub client: RegistryClient,
    /// Where that is.
    pub address: String,
}

impl Entry {
    /// The gateway is entered by a name of its own, its workload's, for as long as it does not leave.
    fn enter(self, metrics: SocketAddr, id: &SpiffeId, node: &v1::Node) -> Entered {
        let name = (id.namespace(), id.workload());
        let metrics = reached_at(metrics, &self.address);
        let mut registrar = Registrar::of_process(self.client, name, "gateway", metrics);
        registrar.registration.metadata.insert(PROXY.to_owned(), node.id.clone());
        let usable = || std::future::ready(());
        // Whoever is at its address has its place, so nobody else's copy is in the way.
        let keeping = tokio::spawn(registrar.clone().keep(usable, |_| {}, ThreadRng::new()));
        Entered { registrar, keeping }
    }
}

/// The gateway's entry in a registry.
struct Entered {
    registrar: Registrar,
    keeping: JoinHandle<()>,
}

impl Entered {
    async fn leave(self) {
        self.keeping.abort();
        self.registrar.deregister().await;
    }
}

/// Why the gateway cannot run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The admin ports.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Traces.
    #[error(transparent)]
    Trace(#[from] TraceArgsError),
    /// The access log.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// The cache of last good resources.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The system gave no threads or no signals.
    #[error("the gateway cannot start its workers: {0}; raise the limits of threads and open files")]
    Start(#[from] std::io::Error),
    /// A second signal asked for it, while so much was in flight.
    #[error("stopped at once by a second signal; requests and connections in flight were cut off: {0}")]
    ToldTwice(usize),
}

/// The types a gateway is told about.
fn types() -> [String; 7] {
    [
        type_url::<v1::Listener>(),
        type_url::<v1::Secret>(),
        type_url::<v1::Route>(),
        type_url::<v1::Service>(),
        type_url::<v1::EndpointSlice>(),
        type_url::<v1::Policy>(),
        type_url::<v1::Bundle>(),
    ]
}

/// Runs a gateway until it is told to stop and has drained.
///
/// # Errors
/// [`GatewayError`].
pub async fn run(parts: Parts) -> Result<(), GatewayError> {
    let Parts { flags, admin, connector, identity, joining, cache, registry, clock, metrics } = parts;
    let Admin { server, configured, serving, listeners, readiness } = admin;
    let common = &flags.common;
    let cache = cache.map(|directory| Cache::of_proxy(&directory)).transpose()?;
    let id = identity.as_deref().map(Identity::id);
    let access_log = AccessLogSink::open(&common.access_log, &metrics)?;
    let tracer = flags.traces.tracer(resource(id.as_ref()), &metrics)?;
    let member = joining.zip(identity.clone());
    let engine = Engine::start(shared(&flags, &clock, &metrics, (&access_log, tracer.as_ref()), identity))?;
    serving.set(true);
    tracing::info!(admin = %server.admin_address(), workers = common.worker_count(), "gateway started");

    let node = node(common, server.admin_address(), id.as_ref());
    let entered = registry
        .zip(server.metrics_address().zip(id.as_ref()))
        .map(|(entry, (metrics, id))| entry.enter(metrics, id, &node));

    let settings = client::Settings::new(node).all_of(types());
    let (handle, updates, driver) =
        client::start(settings, cache, connector, Arc::clone(&clock), ThreadRng::new());
    let driver = tokio::spawn(driver);
    let keeping = member.map(|member| keep(member, clock, handle.clone(), readiness.condition(IDENTITY)));
    let drain = Drain::new(common.drain_timeout);
    let signals = drain.clone();
    let reopened = access_log.clone();
    let signals = tokio::spawn(async move { signals.on_signals(|| reopened.reopen()).await });

    let follower = Follower::new(engine, handle, metrics, configured).at_the_edge(listeners);
    let delay = flags.traffic.drain_delay;
    let stop = CancellationToken::new();
    let leaving = async {
        drain.draining().cancelled().await;
        serving.set(false);
        noticed(&drain, delay).await;
        stop.cancel();
    };
    let (engine, ()) = tokio::join!(follower.run(updates, &stop), leaving);
    let ended = end(engine, &drain, common.drain_timeout, entered).await;
    driver.abort();
    signals.abort();
    keeping.inspect(JoinHandle::abort);
    access_log.flush();
    if let Some(tracer) = tracer {
        tracer.flush(FAREWELL).await;
    }
    drop(server);
    ended
}

/// Keeps the SVID renewed, and tells readiness and the control plane how it stands.
fn keep(
    (joining, identity): (Joining, Arc<Identity>),
    clock: Arc<dyn Clock>,
    handle: Handle,
    in_force: Condition,
) -> JoinHandle<()> {
    let told = move |standing: &Standing| {
        in_force.set(standing.in_force);
        handle.troubled(standing.trouble.clone());
    };
    tokio::spawn(joining.keep(identity, clock, ThreadRng::new(), told))
}

fn shared(
    flags: &Flags,
    clock: &Arc<dyn Clock>,
    metrics: &MetricsRegistry,
    (access_log, tracer): (&AccessLogSink, Option<&Tracer>),
    identity: Option<Arc<Identity>>,
) -> Arc<Shared> {
    Arc::new(Shared {
        snapshot: ArcSwap::from_pointee(Snapshot::default()),
        clock: Arc::clone(clock),
        settings: Settings {
            workers: flags.common.worker_count(),
            listen_address: flags.listen.listen_address,
            identity: replica(&flags.common, identity.as_deref().map(Identity::id).as_ref()),
            ..flags.traffic.settings().drained_in(flags.common.drain_timeout)
        },
        metrics: metrics.clone(),
        access_log: access_log.clone(),
        tracer: tracer.cloned(),
        labels: labels(identity.as_deref()),
        mesh: Mesh { identity, ..Mesh::default() },
        observer: Observer::default(),
        memory: MemoryLevel::default(),
        learnt: Learnt::default(),
        tls: TlsConfigs::default(),
    })
}

/// Gives load balancers that go by readiness so much time to see that it is gone, unless it is told not to.
async fn noticed(drain: &Drain, delay: Duration) {
    if delay.is_zero() {
        return;
    }
    tracing::info!(delay_seconds = delay.as_secs(), "not ready any more; all goes on until the drain begins");
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = drain.cut_off().cancelled() => {}
    }
}

/// Lets what runs finish, unless it is told not to. A registry that is away does not hold it up.
async fn end(
    engine: Engine,
    drain: &Drain,
    timeout: Duration,
    entered: Option<Entered>,
) -> Result<(), GatewayError> {
    let leave = async {
        if let Some(entered) = entered {
            entered.leave().await;
        }
    };
    let enough = async {
        tokio::select! {
            () = tokio::time::sleep(timeout) => {}
            () = drain.cut_off().cancelled() => {}
        }
    };
    let drained = async {
        match engine.drain_until(enough).await {
            Drained::CutOff { left } if drain.cut_off().is_cancelled() => Err(GatewayError::ToldTwice(left)),
            // It was asked to end, and has taken the time that it was given: that is no failure of the process.
            Drained::CutOff { left } => {
                tracing::warn!(
                    cut_off = left,
                    "the drain time ended: requests and connections in flight were cut off; raise --drain-timeout if they may take longer"
                );
                Ok(())
            }
            Drained::Clean => Ok(()),
        }
    };
    let (ended, ()) = tokio::join!(drained, leave);
    ended
}

/// Who we are to a collector of traces.
fn resource(id: Option<&SpiffeId>) -> TraceResource {
    TraceResource {
        service: "meshwork-gateway".to_owned(),
        namespace: id.map(SpiffeId::namespace).unwrap_or_default().to_owned(),
        instance: format!("{}/{}", id.map_or("gateway", SpiffeId::workload), std::process::id()),
        role: "gateway",
        ..TraceResource::default()
    }
}

/// What tells this gateway apart from its replicas, and stays over a restart: who it is, on which host, by its data.
fn replica(common: &CommonArgs, identity: Option<&SpiffeId>) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let who = identity.map_or("gateway", SpiffeId::as_str);
    format!("{who}@{}{}", host.trim(), common.data_dir.display())
}

fn labels(identity: Option<&Identity>) -> RequestLabels {
    let labels = RequestLabels { reporter: "source", request_protocol: "http", ..RequestLabels::default() };
    let Some(id) = identity.map(Identity::id) else { return labels };
    RequestLabels {
        source_workload: id.workload().into(),
        source_workload_namespace: id.namespace().into(),
        source_principal: id.as_str().into(),
        ..labels
    }
}

/// In a mesh the id begins with who we are: the control plane takes no other one.
fn node(common: &CommonArgs, admin: SocketAddr, identity: Option<&SpiffeId>) -> v1::Node {
    let pid = std::process::id();
    let who = identity.map(|id| format!("{}/{}/", id.namespace(), id.workload())).unwrap_or_default();
    v1::Node {
        id: format!("gateway/{who}{}/{pid}", admin.ip()),
        role: "gateway".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: [OBSERVE, RECORD, UNDER_WAY, OPERATE].map(str::to_owned).into(),
        workers: u32::try_from(common.worker_count()).unwrap_or(u32::MAX),
        pid,
        address: admin.to_string(),
        // It stands beside no service, and its id is of this process alone.
        ..v1::Node::default()
    }
}

#[cfg(test)]
mod tests {
    use meshwork_base::ManualClock;
    use meshwork_telemetry::AccessLogTarget;

    use super::*;

    #[tokio::test]
    async fn a_second_signal_waits_until_the_workers_have_had_their_last_words() {
        let metrics = MetricsRegistry::default();
        let access_log = AccessLogSink::open(&AccessLogTarget::Off, &metrics).unwrap();
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            clock: Arc::new(ManualClock::new()),
            settings: Settings { workers: 4, ..Settings::default() },
            metrics,
            access_log,
            tracer: None,
            labels: labels(None),
            mesh: Mesh::default(),
            observer: Observer::default(),
            memory: MemoryLevel::default(),
            learnt: Learnt::default(),
            tls: TlsConfigs::default(),
        });
        let engine = Engine::start(Arc::clone(&shared)).unwrap();
        let hour = Duration::from_secs(3600);
        let drain = Drain::new(hour);
        drain.begin();
        drain.begin();
        let ended = end(engine, &drain, hour, None).await;
        assert!(ended.is_ok(), "nothing was in flight: {ended:?}");
        assert_eq!(Arc::strong_count(&shared), 1, "each of them holds one");
    }
}
