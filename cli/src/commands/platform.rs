//! `meshwork server`: registry, config service and control plane in one process; each is a command of its own too.
//!
//! The parts are put together here and know each other by their APIs alone, whether over a socket or not.

mod config;
mod control_plane;
mod entry;
mod registry;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use meshwork_api::identity::REGISTRY;
use meshwork_api::{Client, ConfigClient, RegistryClient};
use meshwork_base::{Clock, SystemClock};
use meshwork_process::ports::{self, Bounds};
use meshwork_process::{AdminState, Caller, CommonArgs, Drain, ListenArgs, Observed, Readiness, by_address};
use meshwork_telemetry::{LogHandle, MetricsRegistry, init_logging, inventory};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::Outcome;
use crate::private;
use crate::server::ApiArgs;
use crate::token::tokens;
use config::ConfigArgs;
use control_plane::{Followed, PlaneArgs};
use registry::RegistryArgs;

/// Run registry, config service and control plane in one process
#[derive(clap::Args, Debug)]
pub(crate) struct ServerArguments {
    #[command(flatten)]
    plane: PlaneArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    common: RoleArgs,
}

/// Run the config service alone
#[derive(clap::Args, Debug)]
pub(crate) struct ConfigArguments {
    /// The registry in which it is entered, so that Prometheus finds it, as http://127.0.0.1:8500
    #[arg(long, value_name = "URL", env = "MESHWORK_REGISTRY_URL")]
    registry_url: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    common: RoleArgs,
}

/// Run the registry alone
#[derive(clap::Args, Debug)]
pub(crate) struct RegistryArguments {
    /// Where the control plane takes proxies: the registry joins its mesh, so that instances reach it by mTLS
    #[arg(long, value_name = "HOST:PORT", env = "MESHWORK_CONTROL_PLANE", default_value = "127.0.0.1:15012")]
    control_plane: String,
    /// File with a join token for workload `registry` of namespace `meshwork`; needed at the first start, or after weeks of absence, and not where the control plane's API is this machine's
    #[arg(long, value_name = "FILE", env = "MESHWORK_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    common: RoleArgs,
}

/// Run the control plane alone
#[derive(clap::Args, Debug)]
pub(crate) struct ControlPlaneArguments {
    /// The registry whose catalog is followed, as http://127.0.0.1:8500; without, services are those of the folders
    #[arg(long, value_name = "URL", env = "MESHWORK_REGISTRY_URL")]
    registry_url: Option<String>,
    /// The config service whose documents are followed, and into which `apply` writes, as http://127.0.0.1:8888
    #[arg(long, value_name = "URL", env = "MESHWORK_CONFIG_URL")]
    config_url: Option<String>,
    #[command(flatten)]
    plane: PlaneArgs,
    #[command(flatten)]
    common: RoleArgs,
}

/// The flags of every role's process.
#[derive(clap::Args, Clone, Debug)]
struct RoleArgs {
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// What every role gets.
#[derive(Clone)]
struct Process {
    role: &'static str,
    common: CommonArgs,
    listen_address: IpAddr,
    log: LogHandle,
    clock: Arc<dyn Clock>,
    metrics: MetricsRegistry,
    drain: Drain,
}

impl Process {
    fn new(flags: RoleArgs, role: &'static str) -> Result<Self, Box<dyn std::error::Error>> {
        let RoleArgs { listen: ListenArgs { listen_address }, common } = flags;
        let metrics = MetricsRegistry::new(common.max_metric_series);
        let log = init_logging(common.log_format, &common.log, &metrics)?;
        let drain = Drain::new(common.drain_timeout);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        metrics.set_info(&inventory::BUILD_INFO, &[env!("CARGO_PKG_VERSION"), role]);
        Ok(Self { common, listen_address, role, log, clock, metrics, drain })
    }

    /// What every process shows of itself.
    fn admin(&self, readiness: Readiness) -> AdminState {
        AdminState { readiness, metrics: self.metrics.clone(), log: Some(self.log.clone()) }
    }

    /// The routes of an API, counted.
    fn observed(&self, api: &'static str, router: Router) -> Router {
        Observed::new(api, &self.metrics, Arc::clone(&self.clock)).routes(router)
    }

    /// A role's own folder.
    fn folder(&self, role: &str) -> Result<PathBuf, private::PrivateError> {
        let folder = self.common.data_dir.join(role);
        private::folder(&folder)?;
        Ok(folder)
    }

    /// Where what is not protected listens: never beyond this machine.
    const fn plain_address(&self) -> IpAddr {
        let listen = self.listen_address;
        if listen.is_loopback() { listen } else { IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) }
    }

    /// Returns when a signal asks for the end.
    async fn until_told(&self) {
        self.drain.draining().cancelled().await;
    }
}

fn run(
    role: &'static str,
    flags: RoleArgs,
    serve: impl AsyncFnOnce(Process) -> Result<(), Box<dyn std::error::Error>>,
) -> Outcome {
    let process = Process::new(flags, role)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let drain = process.drain.clone();
    runtime.block_on(async {
        tokio::select! {
            ended = serve(process) => ended,
            // From the first moment on: a role that waits for another one is told to end like one that serves.
            Err(error) = drain.on_signals(|| {}) => Err(error.into()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn server(arguments: ServerArguments) -> Outcome {
    let ServerArguments { plane, registry, config, common } = arguments;
    run("server", common, async move |process| {
        let catalog = registry::start(&process).await?;
        let documents = config::start(&process).await?;
        // Within one process the control plane follows the others without a socket.
        let inside = |name: &str, router| Client::in_memory(name, as_local(router));
        let itself = RegistryClient(inside("the registry", catalog.router()));
        let followed = Followed {
            registry: Some(itself.clone()),
            config: Some(ConfigClient(inside("the config service", documents.router()))),
        };
        let plane = control_plane::start(&process, plane, followed).await?;
        let _documents = config.serve(&process, &documents).await?;
        let member = registry::Member::inside(&plane);
        let _catalog = registry.serve(&process, &catalog, member).await?;
        entry::until_told(&process, Some(itself), plane.api_address).await
    })
}

pub(crate) fn registry(arguments: RegistryArguments) -> Outcome {
    let RegistryArguments { control_plane, token_file, api, registry, common } = arguments;
    run("registry", common, async move |process| {
        let catalog = registry::start(&process).await?;
        let itself = RegistryClient(Client::in_memory("the registry", as_local(catalog.router())));
        let tokens = tokens(&api, &process.common.data_dir, token_file, REGISTRY);
        let member = registry::Member { control_plane, tokens };
        let _served = registry.serve(&process, &catalog, member).await?;
        entry::until_told(&process, Some(itself), registry.address(&process)).await
    })
}

pub(crate) fn config(arguments: ConfigArguments) -> Outcome {
    let ConfigArguments { registry_url, config, common } = arguments;
    run("config", common, async move |process| {
        let registry = registry_url.map(|url| Client::http(&url).map(RegistryClient)).transpose()?;
        let documents = config::start(&process).await?;
        let _served = config.serve(&process, &documents).await?;
        entry::until_told(&process, registry, config.address(&process)).await
    })
}

pub(crate) fn control_plane(arguments: ControlPlaneArguments) -> Outcome {
    let ControlPlaneArguments { registry_url, config_url, plane, common } = arguments;
    run("control-plane", common, async move |process| {
        let registry = registry_url.map(|url| Client::http(&url).map(RegistryClient)).transpose()?;
        let followed = Followed {
            registry: registry.clone(),
            config: config_url.map(|url| Client::http(&url).map(ConfigClient)).transpose()?,
        };
        let plane = control_plane::start(&process, plane, followed).await?;
        entry::until_told(&process, registry, plane.api_address).await
    })
}

/// What serves; dropping it ends that.
struct Served(Vec<AbortHandle>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Serves a role's API in plaintext to this machine.
async fn serve_local(
    role: &str,
    flag: &str,
    address: SocketAddr,
    router: Router,
) -> Result<AbortHandle, String> {
    if !address.ip().is_loopback() {
        return Err(format!(
            "the {role} would listen in plaintext on {address}, where others than this machine can reach it; choose a loopback address with {flag}"
        ));
    }
    let listener = bind(role, flag, address).await?;
    let routes = by_address(as_local(router));
    Ok(tokio::spawn(ports::serve(listener, routes, Bounds::api())).abort_handle())
}

async fn bind(role: &str, flag: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        format!(
            "the {role} cannot listen on {address}: {error}; choose another {flag} or stop what listens there"
        )
    })
}

/// The API as this machine's operator calls it.
fn as_local(router: Router) -> Router {
    router.layer(middleware::from_fn(|mut request: Request, next: Next| async move {
        request.extensions_mut().insert(Caller::Local);
        next.run(request).await
    }))
}
