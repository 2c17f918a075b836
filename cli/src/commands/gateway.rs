//! `meshwork gateway`: the proxy at the edge, from a folder of its own, or in the mesh of a control plane.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use meshwork_api::RegistryClient;
use meshwork_api::identity::{GATEWAY, REGISTRY};
use meshwork_base::{Clock, Namespace, ObjectName, SystemClock, ThreadRng};
use meshwork_control_plane::{ControlPlane, Settings};
use meshwork_gateway::{Admin, Entry, Flags, Parts};
use meshwork_identity::Identity;
use meshwork_process::{AdminArgs, CommonArgs, ListenArgs, TraceArgs};
use meshwork_proxy::TrafficArgs;
use meshwork_telemetry::{MetricsRegistry, init_logging};
use meshwork_xds::join::{Joining, role_client};
use meshwork_xds::transport::Connector;

use super::Outcome;
use crate::private;
use crate::server::ApiArgs;
use crate::token::tokens;

/// Run the proxy at the edge
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Folder of resources (YAML or JSON, subfolders included); edits take effect at once. Nothing else is needed
    #[arg(
        long,
        value_name = "DIR",
        env = "MESHWORK_RESOURCES",
        conflicts_with = "control_plane",
        required_unless_present = "control_plane"
    )]
    resources: Option<PathBuf>,
    /// Serve also while something in the folder is refused of which no good version is known, without it: an `AuthorizationPolicy` too
    #[arg(long, env = "MESHWORK_START_ANYWAY", requires = "resources")]
    start_anyway: bool,
    /// Where the control plane takes proxies, as 127.0.0.1:15012: resources come from there, and services are called by mTLS
    #[arg(long, value_name = "HOST:PORT", env = "MESHWORK_CONTROL_PLANE")]
    control_plane: Option<String>,
    /// File with a join token; needed at the first start, or after weeks of absence, and not where the control plane's API is this machine's
    #[arg(long, value_name = "FILE", env = "MESHWORK_TOKEN_FILE", requires = "control_plane")]
    token_file: Option<PathBuf>,
    /// Where the registry takes instances, by mTLS: it is entered there, so that Prometheus finds it [default: port 8501 of the control plane's host]
    #[arg(long, value_name = "HOST:PORT", env = "MESHWORK_REGISTRY", requires = "control_plane")]
    registry: Option<String>,
    /// Whose identity it has, as NAMESPACE/NAME: that of the one `Gateway` it serves, or of the platform's, which serves all
    #[arg(
        long,
        value_name = "NAME",
        env = "MESHWORK_WORKLOAD",
        requires = "control_plane",
        default_value = "meshwork/gateway"
    )]
    workload: String,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    addresses: AdminArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    common: CommonArgs,
}

pub(crate) fn run(arguments: Arguments) -> Outcome {
    let metrics = MetricsRegistry::new(arguments.common.max_metric_series);
    let log = init_logging(arguments.common.log_format, &arguments.common.log, &metrics)?;
    arguments.traffic.warn_of_few_descriptors(arguments.common.worker_count());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    // Traffic has threads of its own: this runtime reads files and compiles.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let Arguments {
            resources,
            start_anyway,
            control_plane,
            token_file,
            registry,
            workload,
            api,
            addresses,
            traces,
            traffic,
            listen,
            common,
        } = arguments;
        let flags = Flags { common, listen, traces, traffic };
        let open = |routes| Admin::open(&flags.listen, &addresses, &metrics, log, routes);
        let parts = match (control_plane, resources) {
            (Some(control_plane), _) => {
                let admin = open(axum::Router::new())?;
                let registry = registry.unwrap_or_else(|| beside(&control_plane, 8501));
                let member = Member { control_plane, token_file, registry, workload, api };
                let membership = member.join(&flags.common.data_dir, &clock).await?;
                membership.parts(flags, admin, clock, metrics)
            }
            (None, Some(folder)) => {
                let settings = Settings {
                    metrics: metrics.clone(),
                    kept: Some(flags.common.data_dir.join("gateway/last-good")),
                    start_anyway,
                    ..Settings::folder(folder)
                };
                let plane = ControlPlane::start(settings, Arc::clone(&clock))?;
                let (admin, connector) = (open(plane.router())?, plane.connector());
                let resources = admin.condition("resources");
                tokio::spawn(async move { plane.tell_synced(resources).await });
                let (identity, joining, cache, registry) = (None, None, None, None);
                Parts { flags, admin, connector, identity, joining, cache, registry, clock, metrics }
            }
            (None, None) => unreachable!("clap wants one of the two"),
        };
        Box::pin(meshwork_gateway::run(parts)).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Another port of the same host.
fn beside(address: &str, port: u16) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    format!("{host}:{port}")
}

/// A gateway in a mesh.
struct Member {
    control_plane: String,
    token_file: Option<PathBuf>,
    registry: String,
    workload: String,
    api: ApiArgs,
}

impl Member {
    async fn join(
        self,
        platform: &Path,
        clock: &Arc<dyn Clock>,
    ) -> Result<Membership, Box<dyn std::error::Error>> {
        let (namespace, name) = self.workload.split_once('/').unwrap_or(GATEWAY);
        let expected = (Namespace::new(namespace)?, ObjectName::new(name)?);
        let data_dir = platform.join("gateway");
        private::folder(&data_dir)?;
        let tokens = tokens(&self.api, platform, self.token_file, (namespace, name));
        let joining = Joining {
            control_plane: self.control_plane,
            data_dir: data_dir.clone(),
            tokens,
            expected: Some(expected),
        };
        let identity = joining.identity(Arc::clone(clock), &mut ThreadRng::new()).await?;
        let connector = joining.connector(&identity, Arc::clone(clock));
        let client = RegistryClient(role_client(&self.registry, &identity, REGISTRY)?);
        let registry = Entry { client, address: self.registry };
        Ok(Membership { connector, identity, joining, cache: data_dir, registry })
    }
}

/// What a member of a mesh has.
struct Membership {
    connector: Connector,
    identity: Arc<Identity>,
    joining: Joining,
    cache: PathBuf,
    registry: Entry,
}

impl Membership {
    fn parts(self, flags: Flags, admin: Admin, clock: Arc<dyn Clock>, metrics: MetricsRegistry) -> Parts {
        let Self { connector, identity, joining, cache, registry } = self;
        let (identity, joining) = (Some(identity), Some(joining));
        let (cache, registry) = (Some(cache), Some(registry));
        Parts { flags, admin, connector, identity, joining, cache, registry, clock, metrics }
    }
}
