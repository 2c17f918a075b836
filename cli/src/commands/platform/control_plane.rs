//! The control plane as a process has it.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use meshwork_api::{ConfigClient, RegistryClient};
use meshwork_base::{ThreadRng, TrustDomain};
use meshwork_control_plane::{ApiServer, ControlPlane, RootFiles, Secure, Settings, config, registry};
use meshwork_process::{Readiness, parse_duration};
use meshwork_xds::server::Open;

use super::Process;
use crate::up::endpoints::SOCKET;

/// Flags of the control plane.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct PlaneArgs {
    /// Folder of resources (YAML or JSON, subfolders included); may be repeated, edits take effect at once
    #[arg(long, value_name = "DIR", env = "MESHWORK_RESOURCES")]
    pub(crate) resources: Vec<PathBuf>,

    /// Publish also while something in a folder is refused of which no good version is known, or the config service has lost what was in it: without it, an `AuthorizationPolicy` too
    #[arg(long, env = "MESHWORK_START_ANYWAY")]
    pub(crate) start_anyway: bool,

    /// Where proxies join and are told what to do, by mTLS [default: port 15012 of the listen address]
    #[arg(long, value_name = "ADDRESS", env = "MESHWORK_PROXY_ADDRESS")]
    pub(crate) proxy_address: Option<SocketAddr>,

    /// Where the API, metrics and readiness are served [default: port 15014 of the listen address if that is loopback, else of 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", env = "MESHWORK_API_ADDRESS")]
    pub(crate) api_address: Option<SocketAddr>,

    /// A token that callers of the API must bring; needed where the API is not on loopback
    #[arg(long, value_name = "TOKEN", env = "MESHWORK_API_TOKEN", hide_env_values = true)]
    pub(crate) api_token: Option<String>,

    /// For whom identities are issued
    #[arg(long, value_name = "DOMAIN", env = "MESHWORK_TRUST_DOMAIN", default_value = "mesh.local", value_parser = trust_domain)]
    pub(crate) trust_domain: TrustDomain,

    /// Certificate (PEM) of a root of your own, under which identities are issued [default: one is made at the first start]
    #[arg(long, value_name = "FILE", env = "MESHWORK_CA_CERT", requires = "ca_key")]
    pub(crate) ca_cert: Option<PathBuf>,

    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", env = "MESHWORK_CA_KEY", requires = "ca_cert")]
    pub(crate) ca_key: Option<PathBuf>,

    /// How long after its end an identity is still renewed for who has its key, so that a mesh comes back by itself after an outage of the control plane; 0s: never
    #[arg(long, value_name = "TIME", env = "MESHWORK_SVID_GRACE", default_value = "720h", value_parser = parse_duration)]
    pub(crate) svid_grace: Duration,
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|error| error.to_string())
}

/// Services that are followed beside the folders.
pub(super) struct Followed {
    pub(super) registry: Option<RegistryClient>,
    pub(super) config: Option<ConfigClient>,
}

impl Followed {
    fn feeds(&self) -> Vec<String> {
        let registry = self.registry.iter().flat_map(|_| registry::FEEDS);
        registry.chain(self.config.iter().map(|_| config::FEED)).map(str::to_owned).collect()
    }

    fn follow(self, plane: &ControlPlane) {
        if let Some(client) = self.registry {
            tokio::spawn(registry::follow(plane.clone(), client, ThreadRng::new()));
        }
        if let Some(client) = self.config {
            tokio::spawn(config::follow(plane, client, ThreadRng::new()));
        }
    }
}

/// A running control plane with its API; it ends when it is dropped.
pub(super) struct Plane {
    pub(super) plane: ControlPlane,
    pub(super) proxy_address: SocketAddr,
    pub(super) api_address: SocketAddr,
    _api: ApiServer,
}

pub(super) async fn start(
    process: &Process,
    args: PlaneArgs,
    followed: Followed,
) -> Result<Plane, Box<dyn Error>> {
    let proxy_address = args.proxy_address.unwrap_or_else(|| SocketAddr::new(process.listen_address, 15012));
    let secure = Secure {
        trust_domain: args.trust_domain,
        root: args.ca_cert.zip(args.ca_key).map(|(certificate, key)| RootFiles { certificate, key }),
        listen: proxy_address,
        svid_grace: args.svid_grace,
        ..Secure::new(process.folder("control-plane")?)
    };
    let kept = Some(process.folder("control-plane")?.join("last-good"));
    let feeds = followed.feeds();
    let settings = Settings {
        folders: args.resources,
        feeds,
        compile: meshwork_compile::Settings::folder(),
        access: Arc::new(Open),
        metrics: process.metrics.clone(),
        kept,
        start_anyway: args.start_anyway,
    };
    let plane = ControlPlane::start_secure(settings, secure, Arc::clone(&process.clock)).await?;
    followed.follow(&plane);
    let readiness = Readiness::new();
    let synced = readiness.condition("synced");
    let waited = plane.clone();
    tokio::spawn(async move { waited.tell_synced(synced).await });
    let api_address = args.api_address.unwrap_or_else(|| SocketAddr::new(process.plain_address(), 15014));
    let state = process.admin(readiness);
    let api = ApiServer::start(&plane, state.clone(), api_address, args.api_token.as_deref()).await?;
    let api = api.with_socket(&plane, state, &process.common.data_dir.join(SOCKET));
    tracing::info!(api = %api.address(), proxies = %proxy_address, "control plane started");
    let api_address = api.address();
    Ok(Plane { plane, proxy_address, api_address, _api: api })
}
