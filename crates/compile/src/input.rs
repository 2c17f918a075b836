//! What a compilation takes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{InstanceId, QualifiedName, SpiffeId};
use meshwork_resources::{Object, ObjectKey};

use crate::output::Output;

/// Everything a compilation looks at. Nothing else enters: no clock, no file, no network.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// What users wrote.
    pub objects: &'a Arc<Objects>,
    /// Who is where, from the registry.
    pub catalog: &'a Arc<Catalog>,
    /// Who compiles, and for whom.
    pub settings: &'a Settings,
    /// What proxies say of the listeners.
    pub proxies: &'a ProxyReports,
    /// The last output: transition times and unchanged resources are taken over from it. A [`crate::Compiler`] that has
    /// compiled before knows its own.
    pub previous: Option<&'a Output>,
    /// Civil time since the Unix epoch (`Clock::wall`), for transition times.
    pub now: Duration,
}

/// Objects by what tells them apart. Those that are as they were are the same pointers from one compilation to the next:
/// what has another one is looked at.
pub type Objects = BTreeMap<ObjectKey, Arc<Object>>;

/// Objects in any order (`resources::Loaded::objects`), by key. Of two with one key the one that stands first, by file
/// and line, counts; that there are two was told when they were read.
#[must_use]
pub fn by_key(objects: impl IntoIterator<Item = Arc<Object>>) -> Objects {
    let place = |o: &Object| (Arc::clone(&o.source.file), o.source.line, o.source.column);
    let mut all = Objects::new();
    for object in objects {
        match all.entry(object.key()) {
            Entry::Vacant(entry) => drop(entry.insert(object)),
            Entry::Occupied(mut first) => {
                if place(&object) < place(first.get()) {
                    first.insert(object);
                }
            }
        }
    }
    all
}

/// Who compiles, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Written into every status, and what a `GatewayClass` names to be ours.
    pub controller_name: String,
    /// A class that is ours although no `GatewayClass` object says so; none on Kubernetes.
    pub implicit_class: Option<String>,
    /// No other controller reads these objects: a parent that is not there is told in the route's status. On
    /// Kubernetes that would be a claim on another controller's object.
    pub sole_controller: bool,
    /// One process serves every gateway, so that they share its addresses and ports.
    pub gateways_share_addresses: bool,
    /// The suffix of Kubernetes' service names.
    pub cluster_domain: String,
}

impl Settings {
    /// The controller name of Meshwork.
    pub const CONTROLLER_NAME: &'static str = "meshwork.dev/gateway-controller";

    /// For a folder of files, read by nobody else.
    #[must_use]
    pub fn folder() -> Self {
        Self {
            controller_name: Self::CONTROLLER_NAME.to_owned(),
            implicit_class: Some("meshwork".to_owned()),
            sole_controller: true,
            gateways_share_addresses: true,
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::folder()
    }
}

/// What proxies say of the listeners, by the listeners' resource names (`NAMESPACE/GATEWAY/LISTENER`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyReports {
    /// The proxies on which a listener accepts connections, and the addresses on which it does.
    pub bound: BTreeMap<String, BTreeMap<String, BTreeSet<IpAddr>>>,
    /// Why a proxy refused a listener.
    pub refused: BTreeMap<String, String>,
    /// Why a proxy could not have a listener's port.
    pub unbound: BTreeMap<String, String>,
}

/// Who is where: the registry's services, in the form that compilation needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The services by name.
    pub services: BTreeMap<QualifiedName, CatalogService>,
}

/// A service of the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogService {
    /// Its ports.
    pub ports: Vec<CatalogPort>,
    /// Whose instances may serve it; none where its transport is plaintext.
    pub spiffe_ids: Vec<SpiffeId>,
    /// Virtual addresses, for interception.
    pub addresses: Vec<IpAddr>,
    /// Its running copies.
    pub instances: Vec<CatalogInstance>,
}

/// A port of a service of the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogPort {
    /// Its name; empty where the service has one port only.
    pub name: String,
    /// What its instances call it, where another port has that name; empty otherwise.
    pub said: String,
    /// The number that callers use.
    pub port: u16,
    /// What is spoken there.
    pub protocol: AppProtocol,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Not said: the proxy detects it.
    #[default]
    Detect,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in clear by prior knowledge.
    Http2,
    /// gRPC over HTTP/2 in clear.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// TLS that the application speaks itself.
    Tls,
    /// WebSocket over HTTP/1.1.
    WebSocket,
}

/// One running copy in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogInstance {
    /// Unique in the service's namespace.
    pub id: InstanceId,
    /// Its addresses, the preferred one first.
    pub addresses: Vec<IpAddr>,
    /// Where it serves a port of the service: the port's name → the number.
    pub ports: BTreeMap<String, u16>,
    /// Whether it should be called.
    pub health: Health,
    /// Its share; 0 counts as 1.
    pub weight: u32,
    /// Its workload.
    pub workload: String,
    /// The workload's version.
    pub version: String,
    /// Where it runs.
    pub zone: String,
    /// Where its zone lies.
    pub region: String,
    /// How it is spoken to.
    pub transport: Transport,
    /// Further labels, for subsets.
    pub labels: BTreeMap<String, String>,
}

/// Whether an instance should be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// Yes.
    #[default]
    Healthy,
    /// No.
    Unhealthy,
    /// It ends: nothing new.
    Draining,
    /// The registry lost sight of it and keeps it.
    Suspect,
}

/// How an instance is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// As its port's protocol says, in clear.
    #[default]
    Plaintext,
    /// Through the sidecar beside it.
    Mesh {
        /// Where the sidecar takes mTLS HTTP/2.
        mesh_port: u16,
        /// Where the sidecar takes HBONE.
        hbone_port: u16,
        /// Who must answer.
        spiffe_id: SpiffeId,
    },
}
