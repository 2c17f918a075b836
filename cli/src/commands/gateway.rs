//! `meshwork gateway`: the proxy at the edge, from a folder of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use meshwork_base::{Clock, SystemClock};
use meshwork_control_plane::{ControlPlane, Settings};
use meshwork_gateway::{GatewayArgs, Parts};
use meshwork_process::CommonArgs;
use meshwork_telemetry::{MetricsRegistry, init_logging};

use super::Outcome;

/// Run the proxy at the edge
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Folder of resources (YAML or JSON, subfolders included); edits take effect at once
    #[arg(long, value_name = "DIR", env = "MESHWORK_RESOURCES")]
    resources: PathBuf,
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    common: CommonArgs,
}

pub(crate) fn run(arguments: Arguments) -> Outcome {
    let log = init_logging(arguments.common.log_format, &arguments.common.log)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    // Traffic has threads of its own: this runtime reads files and compiles.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let plane = ControlPlane::start(Settings::folder(arguments.resources), Arc::clone(&clock))?;
        let parts = Parts {
            common: arguments.common,
            args: arguments.gateway,
            connector: plane.connector(),
            admin: plane.router(),
            log: Some(log),
            clock,
            metrics: MetricsRegistry::default(),
        };
        meshwork_gateway::run(parts).await?;
        Ok(ExitCode::SUCCESS)
    })
}
