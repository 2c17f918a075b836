//! `meshwork server`: registry and control plane in one process; each is a command of its own too.
//!
//! The parts are put together here and know each other by their APIs alone, whether over a socket or not.

mod control_plane;
mod registry;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use meshwork_api::{Client, RegistryClient};
use meshwork_base::{Clock, SystemClock, ThreadRng};
use meshwork_process::{CommonArgs, Drain};
use meshwork_telemetry::{LogHandle, MetricsRegistry, init_logging};

use super::Outcome;
use crate::private;
use crate::server::ApiArgs;
use control_plane::PlaneArgs;
use registry::RegistryArgs;

/// Run registry and control plane in one process
#[derive(clap::Args, Debug)]
pub(crate) struct ServerArguments {
    #[command(flatten)]
    plane: PlaneArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Run the registry alone
#[derive(clap::Args, Debug)]
pub(crate) struct RegistryArguments {
    /// Where the control plane takes proxies: the registry joins its mesh, so that instances reach it by mTLS
    #[arg(long, value_name = "HOST:PORT", env = "MESHWORK_CONTROL_PLANE", default_value = "127.0.0.1:15012")]
    control_plane: String,
    /// File with a join token for workload `registry` of namespace `meshwork`; needed at the first start only
    #[arg(long, value_name = "FILE", env = "MESHWORK_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Run the control plane alone
#[derive(clap::Args, Debug)]
pub(crate) struct ControlPlaneArguments {
    /// The registry whose catalog is followed, as http://127.0.0.1:8500; without, services are those of the folders
    #[arg(long, value_name = "URL", env = "MESHWORK_REGISTRY_URL")]
    registry: Option<String>,
    #[command(flatten)]
    plane: PlaneArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// What every role gets.
#[derive(Clone)]
struct Process {
    common: CommonArgs,
    log: LogHandle,
    clock: Arc<dyn Clock>,
    metrics: MetricsRegistry,
    drain: Drain,
}

impl Process {
    fn new(common: CommonArgs) -> Result<Self, Box<dyn std::error::Error>> {
        let log = init_logging(common.log_format, &common.log)?;
        let drain = Drain::new(common.drain_timeout);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        Ok(Self { common, log, clock, metrics: MetricsRegistry::default(), drain })
    }

    /// A role's own folder.
    fn folder(&self, role: &str) -> Result<PathBuf, private::PrivateError> {
        let folder = self.common.data_dir.join(role);
        private::folder(&folder)?;
        Ok(folder)
    }

    /// Where what is not protected listens: never beyond this machine.
    const fn plain_address(&self) -> IpAddr {
        let listen = self.common.listen_address;
        if listen.is_loopback() { listen } else { IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) }
    }

    /// Runs until a signal asks for the end.
    async fn until_told(&self) -> std::io::Result<()> {
        tokio::select! {
            () = self.drain.draining().cancelled() => Ok(()),
            result = self.drain.on_signals(|| {}) => result,
        }
    }
}

fn run(
    common: CommonArgs,
    serve: impl AsyncFnOnce(Process) -> Result<(), Box<dyn std::error::Error>>,
) -> Outcome {
    let process = Process::new(common)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(process))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn server(arguments: ServerArguments) -> Outcome {
    let ServerArguments { plane, registry, common } = arguments;
    run(common, async move |process| {
        let store = registry::start(&process).await?;
        // Within one process the control plane follows the registry without a socket.
        let followed = RegistryClient(Client::in_memory("the registry", registry::as_local(store.router())));
        let plane = control_plane::start(&process, plane, Some(followed)).await?;
        let member = registry::Member::inside(&process, &plane).await?;
        let _served = registry.serve(&process, &store, member).await?;
        plane.synced().await;
        process.until_told().await?;
        Ok(())
    })
}

pub(crate) fn registry(arguments: RegistryArguments) -> Outcome {
    let RegistryArguments { control_plane, token_file, api, registry, common } = arguments;
    run(common, async move |process| {
        let store = registry::start(&process).await?;
        let member = registry::Member { control_plane, token_file };
        let member = member.with_token(&process, &api).await?;
        let _served = registry.serve(&process, &store, member).await?;
        process.until_told().await?;
        Ok(())
    })
}

pub(crate) fn control_plane(arguments: ControlPlaneArguments) -> Outcome {
    let ControlPlaneArguments { registry, plane, common } = arguments;
    run(common, async move |process| {
        let registry = registry.map(|url| Client::http(&url).map(RegistryClient)).transpose()?;
        let _plane = control_plane::start(&process, plane, registry).await?;
        process.until_told().await?;
        Ok(())
    })
}

/// Follows a registry beside the caller's work.
fn follow(plane: &meshwork_control_plane::ControlPlane, registry: RegistryClient) {
    let following = meshwork_control_plane::registry::follow(plane.clone(), registry, ThreadRng::new());
    tokio::spawn(following);
}
