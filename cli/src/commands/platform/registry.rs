//! The registry as a process has it: in plaintext for this machine (8500, Consul's port), by mTLS for the mesh (8501,
//! Consul's port for HTTPS).

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use meshwork_api::Client;
use meshwork_api::identity::REGISTRY;
use meshwork_base::{Namespace, ObjectName, ThreadRng};
use meshwork_identity::{ClientAuth, Identity, Shown};
use meshwork_process::Readiness;
use meshwork_process::admin::process_routes;
use meshwork_registry::{Caller, Options, Registry};
use meshwork_store::embedded;
use meshwork_telemetry::inventory;
use meshwork_xds::join::{Joining, Standing, Tokens};
use meshwork_xds::transport::mtls::{self, Connections, Endpoints};
use tonic::service::Routes;

use super::control_plane::Plane;
use super::{Process, Served, bind, serve_local};

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
    let options = Options { address: process.listen_address, opens_later: true, ..Options::default() };
    Ok(Registry::start(store, Arc::clone(&process.clock), rng, options).await?)
}

/// The API as workloads call it: each by its SPIFFE ID.
fn as_workload(router: Router) -> Router {
    router.layer(middleware::from_fn(|mut request: Request, next: Next| async move {
        // Without a peer nothing is inserted, and the registry refuses.
        if let Some(mtls::Caller(Shown::InForce(peer))) = request.extensions().get::<mtls::Caller>().cloned()
        {
            request.extensions_mut().insert(Caller::Spiffe(peer.id));
        }
        let response: Response = next.run(request).await;
        response
    }))
}

/// How the registry joins the mesh that it serves.
pub(super) struct Member {
    pub(super) control_plane: String,
    pub(super) tokens: Tokens,
}

impl Member {
    /// Beside the control plane it makes its own tokens.
    pub(super) fn inside(plane: &Plane) -> Self {
        let (control_plane, plane) = (plane.proxy_address.to_string(), plane.plane.clone());
        let api = move || Ok(Client::in_memory("the control plane", plane.router()));
        Self { control_plane, tokens: Tokens::made(REGISTRY, api) }
    }

    /// Joins, for as long as it takes.
    async fn join(self, process: &Process) -> Result<(Joining, Arc<Identity>), Box<dyn Error>> {
        let joining = Joining {
            control_plane: self.control_plane,
            data_dir: process.folder("registry")?,
            tokens: self.tokens,
            expected: Some((Namespace::new(REGISTRY.0)?, ObjectName::new(REGISTRY.1)?)),
        };
        let identity = joining.identity(Arc::clone(&process.clock), &mut ThreadRng::new()).await?;
        Ok((joining, identity))
    }
}

impl RegistryArgs {
    /// Serves this machine at once, and the mesh as soon as it has joined it; returns then, or when a signal asks for
    /// the end.
    pub(super) async fn serve(
        &self,
        process: &Process,
        registry: &Registry,
        member: Member,
    ) -> Result<Served, Box<dyn Error>> {
        let readiness = Readiness::new();
        let joined = readiness.condition("mesh");
        tokio::spawn(readiness.condition("store").follow(registry.failing()));
        registry.export(&process.metrics);
        let routes = process.observed("registry", registry.router());
        let plain = self.address(process);
        let local = routes.clone().merge(process_routes(process.admin(readiness)));
        let local = serve_local("registry", "--registry-address", plain, local).await?;
        let mesh =
            self.registry_mesh_address.unwrap_or_else(|| SocketAddr::new(process.listen_address, 8501));
        let mesh = bind("registry", "--registry-mesh-address", mesh).await?;
        let mut served = Served(vec![local]);
        tracing::info!(%plain, mesh = %mesh.local_addr()?, "registry started");
        let (joining, identity) = tokio::select! {
            joined = member.join(process) => joined?,
            () = process.until_told() => return Ok(served),
        };
        let clock = Arc::clone(&process.clock);
        let endpoints = Endpoints {
            identity: Arc::clone(&identity),
            client_auth: ClientAuth::Required,
            routes: Routes::from(as_workload(routes)),
            connections: Connections::default(),
            clock: Arc::clone(&clock),
        };
        let (of_mesh, told) = (Arc::downgrade(&identity), joined.clone());
        process.metrics.ask(move |samples| {
            if let Some(identity) = of_mesh.upgrade() {
                let remaining = identity.remaining().as_secs();
                samples.tell(&inventory::SVID_REMAINING, &[identity.id().as_str()], remaining);
            }
        });
        let told = move |standing: &Standing| told.set(standing.in_force);
        served.0.push(tokio::spawn(joining.keep(identity, clock, ThreadRng::new(), told)).abort_handle());
        let stop = process.drain.draining().clone().cancelled_owned();
        registry.open();
        let serving = async move {
            if let Err(error) = mtls::serve(mesh, endpoints, stop).await {
                tracing::error!(%error, "the registry does not serve the mesh any more");
            }
        };
        served.0.push(tokio::spawn(serving).abort_handle());
        Ok(served)
    }

    /// Where it listens for this machine.
    pub(super) fn address(&self, process: &Process) -> SocketAddr {
        self.registry_address.unwrap_or_else(|| SocketAddr::new(process.plain_address(), 8500))
    }
}
