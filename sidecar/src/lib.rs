//! The sidecar: the proxy beside one running copy of an application. What the application calls goes out through it,
//! what calls the application comes in through it, both by mTLS; it registers the application when it accepts
//! connections and takes it out again before it stops it.
//!
//! ```text
//!                 ┌────────────────── sidecar ──────────────────┐
//!   peers ──mTLS──▶ inbound 15006 ──▶ authorize ──▶ PORT        │──▶ application
//!   peers ◀─mTLS──┤ attempt ◀── route ◀── outbound 15001 ◀──────│◀── MESHWORK_OUTBOUND, HTTP_PROXY
//!                 └───▲──────────────────▲──────────────────▲───┘
//!           discovery │ (on demand)      │ SVID             │ register, renew, deregister
//!                control plane 15012 ────┘               registry
//! ```
//!
//! The order is the point. Start: identity, configuration (from the cache when the control plane is away), outbound
//! side, application, its port accepts, inbound side, registration. Stop: deregistration, inbound side (what is in flight
//! finishes, and may call others for that), application, outbound side, end, with the application's exit code.

mod app;
mod args;
mod discovery;
mod leaving;
mod signals;
mod troubles;

use std::collections::BTreeMap;
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use meshwork_api::identity::REGISTRY;
use meshwork_api::registry::{METRICS_PORT, Port, Registration, sidecar};
use meshwork_api::{ClientError, RegistryClient};
use meshwork_base::{Clock, ThreadRng};
use meshwork_decision::Snapshot;
use meshwork_identity::Identity;
use meshwork_messages::{type_url, v1};
use meshwork_process::{
    AdminError, AdminServer, AdminState, CommonArgs, Condition, Drain, Drained, Readiness, TraceArgsError,
};
use meshwork_proxy::{
    Ending, Engine, Follower, Learnt, ListenError, Listening, MemoryLevel, Mesh, Observer, Settings, Shared,
    Side, TlsConfigs,
};
use meshwork_telemetry::{
    AccessLogError, AccessLogSink, LogHandle, MetricsRegistry, RequestLabels, TraceResource, Tracer,
    inventory,
};
use meshwork_xds::ResourceKey;
use meshwork_xds::cache::{Cache, CacheError};
use meshwork_xds::client::{self, Handle};
use meshwork_xds::join::{JoinError, Joining, Standing, Tokens, role_client};
use meshwork_xds::registration::{LEASE_SECONDS, Registrar, incarnation};
use tokio::task::JoinHandle;

pub use app::{App, AppError, Exit, Spec, assign_port};
use args::Places;
pub use args::{Door, DoorError, Label, LabelError, SidecarArgs};
use discovery::Discovery;
use leaving::Leaving;
use signals::{Received, Signals};
use troubles::Troubles;

/// The condition that the control plane has said what the instance serves. Without, everything that comes in is refused.
const WORKLOAD: &str = "workload told by the control plane";
/// The condition that it can prove who it is. Without, nothing goes out and nothing comes in.
const IDENTITY: &str = "SVID in force";
/// The condition that no other copy has its name in the registry: nobody is sent to it then, and whoever counts it as one that
/// serves would stop the one that does. A registry that is away is no reason.
const REGISTRATION: &str = "registration";
/// How long an instance waits for its own workload before it says so.
const SOON: Duration = Duration::from_secs(5);
/// How long an application has at least to end, where what called it has taken all the time there was.
const LEAST: Duration = Duration::from_secs(5);
/// How long the last spans may take, and last words to callers.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the sidecar is started with.
pub struct Parts {
    /// Every process's flags; the data directory is this instance's own.
    pub common: CommonArgs,
    /// The sidecar's own.
    pub args: SidecarArgs,
    /// Where join tokens come from.
    pub tokens: Tokens,
    /// The name of this instance.
    pub instance: String,
    /// Its own address.
    pub address: IpAddr,
    /// The process log.
    pub log: Option<LogHandle>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// The process's numbers.
    pub metrics: MetricsRegistry,
}

/// Why the sidecar cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The identity.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The application.
    #[error(transparent)]
    App(#[from] AppError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
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
    /// An address of the control plane or the registry.
    #[error(transparent)]
    Address(#[from] ClientError),
    /// Doors to single services.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// The instance's labels.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The system gave no threads or no signals.
    #[error("the sidecar cannot start its workers: {0}; raise the limits of threads and open files")]
    Start(#[from] std::io::Error),
}

/// Runs a sidecar and its application until the application ends or a signal asks for the end; gives what the process
/// is to exit with. It must be polled by the thread that lives as long as the process (`block_on` of `main`): see
/// [`App::start`].
///
/// # Errors
/// [`SidecarError`].
pub async fn run(parts: Parts) -> Result<u8, SidecarError> {
    let mut signals = Signals::new()?;
    let joining = parts.args.joining(&parts.common.data_dir, parts.tokens.clone());
    let mut rng = ThreadRng::new();
    let identity = tokio::select! {
        identity = joining.identity(Arc::clone(&parts.clock), &mut rng) => identity?,
        // No log is open yet.
        () = signals.end(|| ()) => return Ok(0),
    };
    let mut running = Running::start(parts, &joining, &identity).await?;
    let result = running.serve(&mut signals).await;
    running.finish(&mut signals).await;
    result
}

/// A sidecar that carries bytes.
struct Running {
    parts: Parts,
    drain: Drain,
    readiness: Readiness,
    access_log: AccessLogSink,
    tracer: Option<Tracer>,
    listening: Listening,
    outbound: SocketAddr,
    app_address: SocketAddr,
    registrar: Registrar,
    troubles: Troubles,
    follower: Option<JoinHandle<Engine>>,
    tasks: Vec<JoinHandle<()>>,
    _admin: AdminServer,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Running {
    async fn start(parts: Parts, joining: &Joining, identity: &Arc<Identity>) -> Result<Self, SidecarError> {
        let Parts { common, args, clock, metrics, .. } = &parts;
        let places = Places::new(args, parts.address);
        let app_address = assign_port(&common.data_dir, places.app_host, args.port)?;
        let access_log = AccessLogSink::open(&common.access_log, metrics)?;
        let tracer = args.traces.tracer(resource(&parts, identity), metrics)?;
        metrics.set_info(&inventory::BUILD_INFO, &[env!("CARGO_PKG_VERSION"), "sidecar"]);
        let readiness = Readiness::new();
        let configured = readiness.condition("configuration");
        let _ = ["application", "serving", REGISTRATION].map(|name| readiness.condition(name));
        let workload = readiness.condition(WORKLOAD);
        let state =
            AdminState { readiness: readiness.clone(), metrics: metrics.clone(), log: parts.log.clone() };
        let admin = AdminServer::start(places.admin, state, axum::Router::new())?;
        let mut node = args.node(&parts.instance, common.worker_count());
        node.address = admin.admin_address().to_string();
        node.incarnation = incarnation(&common.data_dir, &mut ThreadRng::new());
        let registrar = registrar(&parts, &places, identity, (app_address, &node.incarnation))?;
        let connector = joining.connector(identity, Arc::clone(clock));
        let cached = Some(Cache::of_proxy(&common.data_dir)?);
        let settings = discovery_settings(node, args, &parts.instance);
        let (handle, updates, driver) =
            client::start(settings, cached, connector, Arc::clone(clock), ThreadRng::new());
        let mut tasks = vec![tokio::spawn(driver)];
        let troubles = Troubles::new(handle.clone());
        let keeping = keep(joining, identity, clock, troubles.clone(), readiness.condition(IDENTITY));
        tasks.push(tokio::spawn(keeping));
        let joins = Joins { app: app_address, doors: args.doors(places.outbound.ip())? };
        let mut engine =
            Engine::start(shared(&parts, identity, &handle, (&access_log, tracer.as_ref()), &joins))?;
        let outbound = engine.listen(Side::Outbound, places.outbound).await?;
        for door in joins.doors.into_keys() {
            engine.listen(Side::Outbound, door).await?;
        }
        let drain = Drain::new(common.drain_timeout);
        let follower =
            Follower::new(engine, handle, metrics.clone(), configured).beside_an_instance(workload);
        let listening = follower.listening();
        let stop = drain.draining().clone();
        let follower = Some(tokio::spawn(async move { follower.run(updates, &stop).await }));
        Ok(Self {
            drain,
            readiness,
            access_log,
            tracer,
            listening,
            outbound,
            app_address,
            registrar,
            troubles,
            follower,
            tasks,
            _admin: admin,
            parts,
        })
    }

    /// From the first configuration to the end of the application.
    async fn serve(&mut self, signals: &mut Signals) -> Result<u8, SidecarError> {
        let configured = self.readiness.clone();
        tokio::select! {
            () = configured.wait_for("configuration") => {}
            () = signals.end(|| self.access_log.reopen()) => return Ok(0),
        }
        let spec = Spec {
            command: self.parts.args.command.clone(),
            address: self.app_address,
            outbound: self.outbound,
        };
        let mut app = App::start(&spec)?;
        let pid = app.pid();
        tracing::info!(pid, address = %spec.address, "application started");
        self.note_pid(pid);
        let accepted = tokio::select! {
            accepted = app.accepts() => accepted?,
            () = signals.end(|| self.access_log.reopen()) => return self.stop(app, signals).await,
        };
        if let Some(exit) = accepted {
            tracing::error!(%exit, "the application ended before it accepted connections");
            return Ok(exit.code());
        }
        self.readiness.condition("application").set(true);
        let Places { inbound, hbone, .. } = Places::new(&self.parts.args, self.parts.address);
        self.listening.open(Side::Inbound, inbound).await.transpose()?;
        self.listening.open(Side::Hbone, hbone).await.transpose()?;
        let registrar = self.registrar.clone();
        let keeping = tokio::spawn(registrar.keep(self.workload_told(), self.taken_told(), ThreadRng::new()));
        let telling = tokio::spawn(tell_of_workload(self.readiness.clone()));
        self.readiness.condition("serving").set(true);
        let exit = self.watch(&mut app, signals, pending()).await;
        self.readiness.condition("serving").set(false);
        let exit = match exit {
            Ok(None) => self.noticed(&mut app, signals).await,
            ended => ended,
        };
        keeping.abort();
        // Who leaves loses it, which is as it should be.
        telling.abort();
        let registrar = self.registrar.clone();
        let most = signals.left(self.parts.common.drain_timeout);
        let leaving = Leaving::begin(async move { registrar.deregister().await }, most).await;
        let ended = match exit {
            Ok(Some(exit)) => {
                tracing::error!(%exit, "the application ended by itself");
                Ok(exit.code())
            }
            Ok(None) => self.stop(app, signals).await,
            Err(error) => Err(error.into()),
        };
        leaving.end(signals.second(|| self.access_log.reopen())).await;
        ended
    }

    /// Waits for the application's end, for a signal to end it, or until this is over.
    async fn watch(
        &self,
        app: &mut App,
        signals: &mut Signals,
        over: impl Future<Output = ()>,
    ) -> Result<Option<Exit>, AppError> {
        let mut over = pin!(over);
        loop {
            tokio::select! {
                exit = app.wait() => return exit.map(Some),
                () = &mut over => return Ok(None),
                received = signals.next() => match received {
                    Received::End => return Ok(None),
                    Received::HangUp => self.hang_up(app),
                },
            }
        }
    }

    fn hang_up(&self, app: &App) {
        self.access_log.reopen();
        app.signal(Signals::HANG_UP);
    }

    /// Waits for the second signal that asks for the end.
    async fn told_twice(&self, app: &App, signals: &mut Signals) {
        while !signals.told_twice() {
            if signals.next().await == Received::HangUp {
                self.hang_up(app);
            }
        }
    }

    /// Gives load balancers that go by readiness their time to see that it is gone, unless the application ends or a second signal
    /// comes. The time of the drain begins behind it.
    async fn noticed(&self, app: &mut App, signals: &mut Signals) -> Result<Option<Exit>, AppError> {
        let delay = self.parts.args.traffic.drain_delay;
        if delay.is_zero() {
            return Ok(None);
        }
        tracing::info!(
            delay_seconds = delay.as_secs(),
            "not ready any more; all goes on until the drain begins"
        );
        let exit = self.watch(app, signals, tokio::time::sleep(delay)).await?;
        signals.put_off();
        Ok(exit)
    }

    /// Lets what is in flight finish, then ends the application. What it calls goes out until it has ended. The time is one
    /// for both; whatever is left of it, the application has a little to say its own goodbyes.
    async fn stop(&mut self, mut app: App, signals: &mut Signals) -> Result<u8, SidecarError> {
        let most = self.parts.common.drain_timeout;
        let finished = tokio::select! {
            _ = self.listening.drain_inbound(Ending::Finished) => true,
            () = tokio::time::sleep(signals.left(most)) => false,
            () = self.told_twice(&app, signals) => false,
        };
        if !finished {
            // Callers hear that it is not whole; the end of the application would look like its last word.
            let cut = self.listening.drain_inbound(Ending::AtOnce);
            // Of what does not end even so nobody knows how much there is.
            if tokio::time::timeout(FAREWELL, cut).await != Ok(0) {
                tell_cut_off("calls of the application", signals);
            }
        }
        let signal = signals.first();
        let timeout = signals.left(most).max(most.min(LEAST));
        let patience = async {
            tokio::select! {
                () = signals.second(|| self.access_log.reopen()) => {}
                () = tokio::time::sleep(timeout) => {}
            }
        };
        Ok(app.stop(signal, patience).await?.code())
    }

    /// Closes the listeners and waits for what is in flight; a second time it does nothing.
    async fn finish(&mut self, signals: &mut Signals) {
        self.drain.begin();
        let Some(follower) = self.follower.take() else { return };
        let Ok(engine) = follower.await else { return };
        let left = signals.left(self.parts.common.drain_timeout).max(FAREWELL);
        let enough = async {
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = signals.second(|| self.access_log.reopen()) => {}
            }
        };
        if let Drained::CutOff { left } = engine.drain_until(enough).await {
            tell_cut_off(&format!("requests and connections in flight ({left})"), signals);
        }
        self.access_log.flush();
        if let Some(tracer) = &self.tracer {
            tracer.flush(FAREWELL).await;
        }
    }

    /// Writes down the application's process, and when it started, because numbers are used again.
    fn note_pid(&self, pid: u32) {
        let path = self.parts.common.data_dir.join("app.pid");
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Field 22, behind the name in parentheses, which may hold anything.
        let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19));
        let Some(started) = started else { return };
        if let Err(error) = std::fs::write(&path, format!("{pid} {started}\n")) {
            tracing::warn!(path = %path.display(), %error, "the application's process id was not written down");
        }
    }

    /// Waits, whenever it is asked, until the inbound side knows what this instance serves.
    fn workload_told(&self) -> impl Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + use<> {
        let readiness = self.readiness.clone();
        move || {
            let readiness = readiness.clone();
            Box::pin(async move { readiness.wait_for(WORKLOAD).await })
        }
    }

    /// Tells readiness and the control plane whether another copy has the name.
    fn taken_told(&self) -> impl Fn(Option<&str>) + Send + use<> {
        let (condition, troubles) = (self.readiness.condition(REGISTRATION), self.troubles.clone());
        move |taken| {
            match taken {
                Some(why) => condition.lacks(why),
                None => condition.set(true),
            }
            troubles.name(taken.map(str::to_owned));
        }
    }
}

/// Says what was not finished, and by whose word.
fn tell_cut_off(what: &str, signals: &Signals) {
    if signals.told_twice() {
        tracing::warn!("{what} were cut off, as a second signal asked");
    } else {
        tracing::warn!("{what} were cut off; raise --drain-timeout if they may take longer");
    }
}

/// Says once each time that nothing can be served, and when that is over. The instance stays registered: what took its
/// workload away may give it back, and only what is registered has one.
async fn tell_of_workload(readiness: Readiness) {
    let mut missed = tokio::time::timeout(SOON, readiness.wait_for(WORKLOAD)).await.is_err();
    if missed {
        tracing::warn!(
            "the control plane has not said what this instance serves; it is not ready and not taken into use until it does"
        );
    }
    loop {
        readiness.wait_for(WORKLOAD).await;
        if std::mem::replace(&mut missed, true) {
            tracing::info!("the control plane has said what this instance serves");
        }
        readiness.wait_for_loss(WORKLOAD).await;
        tracing::warn!(
            "the control plane has taken away what this instance serves; requests are refused (unknown_app_port), and it is \
             not ready until it is given back"
        );
    }
}

/// Keeps the SVID renewed, and tells readiness and the control plane how it stands.
fn keep(
    joining: &Joining,
    identity: &Arc<Identity>,
    clock: &Arc<dyn Clock>,
    troubles: Troubles,
    in_force: Condition,
) -> impl Future<Output = ()> + Send + use<> {
    let told = move |standing: &Standing| {
        in_force.set(standing.in_force);
        troubles.identity(standing.trouble.clone());
    };
    joining.clone().keep(Arc::clone(identity), Arc::clone(clock), ThreadRng::new(), told)
}

fn workload(args: &SidecarArgs, instance: &str) -> ResourceKey {
    ResourceKey::of::<v1::Workload>(format!("{}/{instance}", args.namespace))
}

/// What a sidecar is always told: whom to trust, who it is, and its own service, because who may call that hangs on it.
/// Other services come on demand.
fn discovery_settings(node: v1::Node, args: &SidecarArgs, instance: &str) -> client::Settings {
    let mut settings = client::Settings::new(node).all_of([type_url::<v1::Bundle>()]);
    settings.subscriptions.push(workload(args, instance));
    let own = format!("{}/{}", args.namespace, args.service);
    settings.subscriptions.push(ResourceKey::of::<v1::Service>(own));
    settings.on_demand.insert(type_url::<v1::Service>().into());
    settings
}

/// What the engine stands beside.
struct Joins {
    /// Where the application listens.
    app: SocketAddr,
    /// Which service each door leads to.
    doors: BTreeMap<SocketAddr, Arc<str>>,
}

fn shared(
    parts: &Parts,
    identity: &Arc<Identity>,
    handle: &Handle,
    (access_log, tracer): (&AccessLogSink, Option<&Tracer>),
    joins: &Joins,
) -> Arc<Shared> {
    let (id, namespace) = (identity.id(), parts.args.namespace.clone());
    let discovery = Discovery { handle: handle.clone(), namespace };
    Arc::new(Shared {
        snapshot: ArcSwap::from_pointee(Snapshot::default()),
        clock: Arc::clone(&parts.clock),
        settings: Settings {
            workers: parts.common.worker_count(),
            listen_address: parts.address,
            app_address: joins.app.ip(),
            identity: format!("{}/{}", parts.args.namespace, parts.instance),
            ..parts.args.traffic.settings().drained_in(parts.common.drain_timeout)
        },
        metrics: parts.metrics.clone(),
        access_log: access_log.clone(),
        tracer: tracer.cloned(),
        labels: RequestLabels {
            reporter: "source",
            source_workload: id.workload().into(),
            source_workload_namespace: id.namespace().into(),
            source_principal: id.as_str().into(),
            request_protocol: "http",
            ..RequestLabels::default()
        },
        mesh: Mesh {
            identity: Some(Arc::clone(identity)),
            on_demand: Some(Arc::new(discovery)),
            doors: joins.doors.clone(),
            ..Mesh::default()
        },
        observer: Observer::default(),
        memory: MemoryLevel::default(),
        learnt: Learnt::default(),
        tls: TlsConfigs::default(),
    })
}

/// Who we are to a collector of traces: the workload, whose side of calls the sidecar is.
fn resource(parts: &Parts, identity: &Identity) -> TraceResource {
    let id = identity.id();
    TraceResource {
        service: id.workload().to_owned(),
        namespace: id.namespace().to_owned(),
        instance: parts.instance.clone(),
        role: "sidecar",
        ..TraceResource::default()
    }
}

fn registrar(
    parts: &Parts,
    places: &Places,
    identity: &Arc<Identity>,
    (app, incarnation): (SocketAddr, &str),
) -> Result<Registrar, SidecarError> {
    let args = &parts.args;
    let mut ports =
        BTreeMap::from([("http".to_owned(), Port { port: app.port(), protocol: args.protocol.clone() })]);
    if let Some(metrics) = places.admin.metrics {
        let port = Port { port: metrics.port(), protocol: Some("http".to_owned()) };
        ports.insert(METRICS_PORT.to_owned(), port);
    }
    let metadata = [
        (sidecar::MESH_PORT.to_owned(), places.inbound.port().to_string()),
        (sidecar::HBONE_PORT.to_owned(), places.hbone.port().to_string()),
        (sidecar::SERVICE_PORT.to_owned(), args.service_port.to_string()),
    ];
    let region = args.traffic.region.clone().map(|region| (sidecar::REGION.to_owned(), region));
    Ok(Registrar {
        registry: RegistryClient(role_client(&args.registry, identity, REGISTRY)?),
        namespace: args.namespace.to_string(),
        service: args.service.to_string(),
        instance: parts.instance.clone(),
        registration: Registration {
            address: parts.address.to_string(),
            ports,
            workload: Some(identity.id().workload().to_owned()),
            version: args.app_version.clone(),
            zone: args.traffic.zone.clone(),
            weight: Some(args.weight),
            metadata: args.labels()?.into_iter().chain(metadata).chain(region).collect(),
            lease_seconds: Some(LEASE_SECONDS),
            maintenance: Some("its sidecar is starting".to_owned()),
            incarnation: Some(incarnation.to_owned()),
            ..Registration::default()
        },
    })
}
