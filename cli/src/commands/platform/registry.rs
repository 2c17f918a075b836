//! The registry as a process has it: in plaintext for this machine (8500, Consul's port), by mTLS for the mesh (8501,
//! Consul's port for HTTPS).

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, Uri, header};
use meshwork_api::identity::{REGISTRY, TokenRequest};
use meshwork_api::{Client, IdentityClient};
use meshwork_base::{Namespace, ObjectName, ThreadRng};
use meshwork_identity::{ClientAuth, Loaded, SvidStore};
use meshwork_process::Problem;
use meshwork_registry::{Caller, Options, Registry};
use meshwork_store::embedded;
use meshwork_xds::join::Joining;
use meshwork_xds::transport::mtls::{self, Connections, Endpoints};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tonic::service::Routes;

use super::Process;
use super::control_plane::Plane;
use crate::private;
use crate::server::ApiArgs;
use crate::token::token_file;

/// Flags of the registry.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RegistryArgs {
    /// Where Consul's API and the registry's own are served to this machine [default: port 8500 of the listen address if that is loopback, else of 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", env = "MESHWORK_REGISTRY_ADDRESS")]
    pub(crate) registry_address: Option<SocketAddr>,

    /// Where they are served to the mesh, by mTLS [default: port 8501 of the listen address]
    #[arg(long, value_name = "ADDRESS", env = "MESHWORK_REGISTRY_MESH_ADDRESS")]
    pub(crate) registry_mesh_address: Option<SocketAddr>,
}

/// Opens the store and starts to keep the catalog.
pub(super) async fn start(process: &Process) -> Result<Registry, Box<dyn Error>> {
    let path = process.folder("registry")?.join("store.redb");
    let options = embedded::Options::new(Arc::clone(&process.clock), Box::new(ThreadRng::new()));
    let store = embedded::open(&path, options)?;
    let rng = Box::new(ThreadRng::new());
    let options = Options { address: process.common.listen_address, ..Options::default() };
    Ok(Registry::start(store, Arc::clone(&process.clock), rng, options).await?)
}

/// The API as this machine's operator calls it.
pub(super) fn as_local(router: Router) -> Router {
    router.layer(middleware::from_fn(|mut request: Request, next: Next| async move {
        request.extensions_mut().insert(Caller::Local);
        next.run(request).await
    }))
}

/// The API as this machine's operator calls it over a socket: a page in a browser, led here by a name that its site's
/// DNS points at this machine, is not the operator.
fn at_local_port(router: Router) -> Router {
    as_local(router).layer(middleware::from_fn(|request: Request, next: Next| async move {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let host =
            host.and_then(|host| host.parse::<Uri>().ok()).and_then(|uri| uri.host().map(str::to_owned));
        let is_ours = host.is_some_and(|host| {
            host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
        });
        if is_ours {
            return next.run(request).await;
        }
        let why = "this port is called by an IP address or as localhost; correct the Host header";
        Problem::new(StatusCode::FORBIDDEN, "not for this caller").detail(why).into_response()
    }))
}

/// The API as workloads call it: each by its SPIFFE ID.
fn as_workload(router: Router) -> Router {
    router.layer(middleware::from_fn(|mut request: Request, next: Next| async move {
        // Without a peer nothing is inserted, and the registry refuses.
        if let Some(mtls::Caller(Some(peer))) = request.extensions().get::<mtls::Caller>().cloned() {
            request.extensions_mut().insert(Caller::Spiffe(peer.id));
        }
        let response: Response = next.run(request).await;
        response
    }))
}

/// How the registry joins the mesh that it serves.
pub(super) struct Member {
    pub(super) control_plane: String,
    pub(super) token_file: Option<PathBuf>,
}

impl Member {
    /// Beside the control plane it makes its own token.
    pub(super) async fn inside(process: &Process, plane: &Plane) -> Result<Self, Box<dyn Error>> {
        let folder = process.folder("registry")?;
        let control_plane = plane.proxy_address.to_string();
        if matches!(SvidStore::new(&folder).load(process.clock.wall())?, Loaded::Valid(..)) {
            return Ok(Self { control_plane, token_file: None });
        }
        let (namespace, workload) = REGISTRY;
        let request = TokenRequest {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            uses: 1,
            ttl_seconds: 60,
        };
        let api = IdentityClient(Client::in_memory("the control plane", plane.plane.router()));
        let path = folder.join("token");
        private::write(&path, &api.create_token(&request).await?.token)?;
        Ok(Self { control_plane, token_file: Some(path) })
    }

    /// In a process of its own it asks the control plane's API for a token, unless it was given one.
    pub(super) async fn with_token(self, process: &Process, api: &ApiArgs) -> Result<Self, Box<dyn Error>> {
        let folder = process.folder("registry")?;
        let places = (process.common.data_dir.as_path(), folder.as_path());
        let token_file = token_file(api, places, self.token_file, REGISTRY, process.clock.wall()).await?;
        Ok(Self { token_file, ..self })
    }
}

/// What serves; dropping it ends that.
pub(super) struct Served(Vec<AbortHandle>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl RegistryArgs {
    pub(super) async fn serve(
        &self,
        process: &Process,
        registry: &Registry,
        member: Member,
    ) -> Result<Served, Box<dyn Error>> {
        let plain = self.registry_address.unwrap_or_else(|| SocketAddr::new(process.plain_address(), 8500));
        if !plain.ip().is_loopback() {
            let why = format!(
                "{plain} can be reached from other machines, and this port knows no callers; choose a loopback address: the mesh has --registry-mesh-address"
            );
            return Err(why.into());
        }
        let local = bind("--registry-address", plain).await?;
        let mesh = self
            .registry_mesh_address
            .unwrap_or_else(|| SocketAddr::new(process.common.listen_address, 8501));
        let mesh = bind("--registry-mesh-address", mesh).await?;
        let routes = at_local_port(registry.router());
        let mut tasks =
            vec![tokio::spawn(async move { drop(axum::serve(local, routes).await) }).abort_handle()];
        let joining = Joining {
            control_plane: member.control_plane,
            data_dir: process.folder("registry")?,
            token_file: member.token_file,
            expected: Some((Namespace::new(REGISTRY.0)?, ObjectName::new(REGISTRY.1)?)),
        };
        let clock = Arc::clone(&process.clock);
        let identity = joining.identity(Arc::clone(&clock), &mut ThreadRng::new()).await?;
        let endpoints = Endpoints {
            identity: Arc::clone(&identity),
            client_auth: ClientAuth::Required,
            routes: Routes::from(as_workload(registry.router())),
            connections: Connections::default(),
            clock: Arc::clone(&clock),
        };
        tasks.push(tokio::spawn(joining.keep(identity, clock, ThreadRng::new())).abort_handle());
        let stop = process.drain.draining().clone().cancelled_owned();
        let serving = async move {
            if let Err(error) = mtls::serve(mesh, endpoints, stop).await {
                tracing::error!(%error, "the registry does not serve the mesh any more");
            }
        };
        tasks.push(tokio::spawn(serving).abort_handle());
        tracing::info!(%plain, "registry started");
        Ok(Served(tasks))
    }
}

async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("the registry cannot listen on {address}: {error}; choose another {flag} or stop what listens there"))
}
