//! The registry as a source: who is where becomes the catalog that is compiled, and one `Workload` for each instance
//! that has a sidecar.
//!
//! What the registry said last stays while it is away: nothing vanishes by silence.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_api::registry::{Changes, Health, Instance, PROXY, ROLE, Service, ServiceRef, Since, sidecar};
use meshwork_api::{ClientError, RegistryClient};
use meshwork_base::{ContentHash, InstanceId, QualifiedName, Rng, SpiffeId};
use meshwork_compile::Catalog;
use meshwork_compile::input::{self as compile, AppProtocol, CatalogInstance, CatalogService, Transport};
use meshwork_messages::v1::{self, Resource, service_port};
use meshwork_xds::ResourceKey;
use meshwork_xds::client::Backoff;
use prost::Message as _;
use tokio::time::Instant;

use crate::{ControlPlane, Ended, Feed};
use ports::Ports;

mod ports;

/// The names of the feeds, to be declared in [`crate::Settings::feeds`]. Both have spoken before anything is published:
/// a catalog without workloads would take every sidecar its own.
pub const FEEDS: [&str; 2] = ["registry", "workloads"];

/// How long one question waits for a change.
const WAIT: Duration = Duration::from_secs(60);
/// How long the answer may take beyond that.
const GRACE: Duration = Duration::from_secs(10);
/// How long an instance that was deregistered still knows what it serves: callers that have not heard of it yet may
/// call it until it has drained. And how long a service is known after its last instance has gone: one that restarts its
/// only instance has nobody for a moment, and is not unknown.
const LINGER: Duration = Duration::from_secs(60);

/// Sentences about registrations that are not what they are meant to be.
type Doubts = BTreeSet<String>;

type Messages = BTreeMap<ResourceKey, Arc<Resource>>;

/// Follows a registry for as long as it is polled and the control plane lives.
pub async fn follow(plane: ControlPlane, registry: RegistryClient, mut rng: impl Rng) {
    let [Some(catalog), Some(workloads)] = FEEDS.map(|name| plane.feed(name)) else { return };
    let (services, hub) = (Arc::clone(&plane.services), plane.hub().clone());
    // The plane ends with its last holder, and must not be kept by who feeds it.
    drop(plane);
    let mut source = Source {
        registry,
        since: None,
        services: BTreeMap::new(),
        empty: Empty::default(),
        workloads: Workloads::default(),
        doubts: Doubts::new(),
    };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match source.step().await {
            Ok(changed) => {
                backoff.reset();
                let now = Instant::now();
                if changed || source.next_end().is_some_and(|end| end <= now) {
                    source.empty.forget(now);
                    hub.expect(proxies(source.services.values()));
                    services.store(Arc::new(source.called().cloned().collect()));
                    let registered = workload_messages(source.called());
                    source.workloads.take(registered, now);
                    if source.tell(&catalog, &workloads).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the registry is not followed; what it said last stays");
                tokio::time::sleep(backoff.next(&mut rng)).await;
            }
        }
    }
}

struct Source {
    registry: RegistryClient,
    since: Option<Since>,
    /// Also those of the platform, which nobody calls.
    services: BTreeMap<(String, String), Service>,
    empty: Empty,
    workloads: Workloads,
    /// What was said of them already.
    doubts: Doubts,
}

/// Services whose last instance has gone a short while ago, as they were.
#[derive(Default)]
struct Empty(BTreeMap<(String, String), (Service, Instant)>);

impl Empty {
    fn take(&mut self, service: Option<Service>, now: Instant) {
        let Some(service) = service.filter(|service| !is_platform(service)) else { return };
        self.0.insert((service.namespace.clone(), service.name.clone()), (service, now + LINGER));
    }

    fn forget(&mut self, now: Instant) {
        self.0.retain(|_, (_, end)| *end > now);
    }

    fn next_end(&self) -> Option<Instant> {
        self.0.values().map(|(_, end)| *end).min()
    }

    /// Adds them to a catalog, without instances.
    fn add_to(&self, catalog: &mut Catalog) {
        let (was, _) = catalog_of(self.0.values().map(|(service, _)| service));
        let empty = was
            .services
            .into_iter()
            .map(|(name, service)| (name, CatalogService { instances: Vec::new(), ..service }));
        for (name, service) in empty {
            catalog.services.entry(name).or_insert(service);
        }
    }
}

/// What instances serve: those that are registered, and for a while those that were.
#[derive(Default)]
struct Workloads {
    registered: Messages,
    gone: BTreeMap<ResourceKey, (Arc<Resource>, Instant)>,
}

impl Workloads {
    fn take(&mut self, registered: Messages, now: Instant) {
        let before = std::mem::replace(&mut self.registered, registered);
        self.gone.extend(before.into_iter().map(|(key, workload)| (key, (workload, now + LINGER))));
        let registered = &self.registered;
        self.gone.retain(|key, (_, end)| *end > now && !registered.contains_key(key));
    }

    fn all(&self) -> Messages {
        let gone = self.gone.iter().map(|(key, (workload, _))| (key.clone(), Arc::clone(workload)));
        gone.chain(self.registered.clone()).collect()
    }

    /// When the first of those that are gone is to be forgotten.
    fn next_end(&self) -> Option<Instant> {
        self.gone.values().map(|(_, end)| *end).min()
    }
}

impl Source {
    /// Asks once; says whether there is something new.
    async fn step(&mut self) -> Result<bool, ClientError> {
        let end = self.next_end().map(|end| end.saturating_duration_since(Instant::now()));
        let wait = end.map_or(WAIT, |end| end.min(WAIT));
        let asked = self.registry.changes(self.since.as_ref(), wait);
        let answered = tokio::time::timeout(WAIT + GRACE, asked).await;
        let Changes { epoch, revision, reset, services, removed } = answered.unwrap_or_else(|_| {
            let server = self.registry.0.server().to_owned();
            Err(ClientError::Unreachable { server, cause: "it does not answer".to_owned() })
        })?;
        let changed = reset || !services.is_empty() || !removed.is_empty();
        self.since = Some(Since { epoch, revision });
        let now = Instant::now();
        if reset {
            std::mem::take(&mut self.services).into_values().for_each(|was| self.empty.take(Some(was), now));
        }
        for ServiceRef { namespace, name } in removed {
            self.empty.take(self.services.remove(&(namespace, name)), now);
        }
        for service in services {
            let key = (service.namespace.clone(), service.name.clone());
            self.empty.0.remove(&key);
            self.services.insert(key, service);
        }
        Ok(changed)
    }

    /// The services that are the mesh's.
    fn called(&self) -> impl Iterator<Item = &Service> {
        self.services.values().filter(|service| !is_platform(service))
    }

    /// When the first of what is gone is to be forgotten.
    fn next_end(&self) -> Option<Instant> {
        self.workloads.next_end().into_iter().chain(self.empty.next_end()).min()
    }

    /// Workloads first: an instance knows what it serves before others call it.
    async fn tell(&mut self, catalog: &Feed, workloads: &Feed) -> Result<(), Ended> {
        workloads.messages(self.workloads.all()).await?;
        let (mut known, doubts) = catalog_of(self.called());
        doubts.difference(&self.doubts).for_each(|doubt| tracing::warn!("{doubt}"));
        self.doubts = doubts;
        self.empty.add_to(&mut known);
        catalog.catalog(known).await
    }
}

/// Processes of the platform itself are registered to be found by who scrapes them; nobody calls them.
fn is_platform(service: &Service) -> bool {
    !service.instances.is_empty() && service.instances.iter().all(|one| one.metadata.contains_key(ROLE))
}

/// The proxies that hold a lease, by the ids under which they join: whether they are connected or not, they carry traffic.
fn proxies<'a>(services: impl Iterator<Item = &'a Service>) -> BTreeSet<String> {
    let of = |service: &'a Service| service.instances.iter().filter_map(|one| proxy(&service.namespace, one));
    services.flat_map(of).collect()
}

fn proxy(namespace: &str, instance: &Instance) -> Option<String> {
    // The lease of a suspect has ended.
    if instance.lease_expires.is_none() || instance.health == Health::Suspect {
        return None;
    }
    if mesh(instance).is_some() {
        return Some(format!("{namespace}/{}", instance.id));
    }
    let named = instance.metadata.get(PROXY)?;
    let id = SpiffeId::parse(instance.identity.as_deref()?).ok()?;
    // Nobody makes others wait for proxies that are not its own.
    let own = format!("gateway/{}/{}/", id.namespace(), id.workload());
    named.starts_with(&own).then(|| named.clone())
}

/// What an instance's sidecar has proven: who it is, and where it takes mTLS.
fn mesh(instance: &Instance) -> Option<(SpiffeId, u16)> {
    let id = SpiffeId::parse(instance.identity.as_deref()?).ok()?;
    let port = instance.metadata.get(sidecar::MESH_PORT)?.parse().ok()?;
    Some((id, port))
}

/// The services that can be called, and what is to be said of them.
fn catalog_of<'a>(services: impl Iterator<Item = &'a Service>) -> (Catalog, Doubts) {
    let (mut catalog, mut doubts) = (Catalog::default(), Doubts::new());
    for service in services {
        match QualifiedName::new(&service.namespace, &service.name) {
            Ok(name) => drop(catalog.services.insert(name, catalog_service(service, &mut doubts))),
            Err(error) => {
                doubts.insert(format!("a registered service cannot be called, its name is none: {error}"));
            }
        }
    }
    (catalog, doubts)
}

fn catalog_service(service: &Service, doubts: &mut Doubts) -> CatalogService {
    let is_mesh = service.instances.iter().any(|instance| mesh(instance).is_some());
    // Who is proven and who is not are never mixed: otherwise anybody could step in for a workload of the mesh.
    let (used, left): (Vec<_>, Vec<_>) =
        service.instances.iter().partition(|instance| !is_mesh || mesh(instance).is_some());
    let name = format!("{}/{}", service.namespace, service.name);
    for instance in left {
        let id = &instance.id;
        doubts.insert(format!(
            "instance {id} of {name} is not called: it has no identity, and others of its service have one"
        ));
    }
    let ports = Ports::of(&used);
    doubts.extend(ports.doubts(&name));
    let spiffe_ids: BTreeSet<SpiffeId> = used.iter().filter_map(|i| Some(mesh(i)?.0)).collect();
    CatalogService {
        ports: ports.catalog(),
        spiffe_ids: spiffe_ids.into_iter().collect(),
        addresses: Vec::new(),
        instances: used
            .into_iter()
            .filter_map(|instance| catalog_instance(instance, &ports, doubts))
            .collect(),
    }
}

fn catalog_instance(instance: &Instance, ports: &Ports<'_>, doubts: &mut Doubts) -> Option<CatalogInstance> {
    let (Ok(id), Ok(address)) = (InstanceId::new(&instance.id), instance.address.parse::<IpAddr>()) else {
        let Instance { id, address, .. } = instance;
        doubts.insert(format!(
            "instance {id} at {address} is not called: its id is no name, or its address no IP address"
        ));
        return None;
    };
    let transport = mesh(instance).map_or(Transport::Plaintext, |(spiffe_id, mesh_port)| Transport::Mesh {
        mesh_port,
        hbone_port: instance
            .metadata
            .get(sidecar::HBONE_PORT)
            .and_then(|port| port.parse().ok())
            .unwrap_or(0),
        spiffe_id,
    });
    Some(CatalogInstance {
        id,
        addresses: vec![address],
        ports: ports::said(instance).map(|said| (ports.name(&said), said.app)).collect(),
        health: match instance.health {
            Health::Passing | Health::Warning => compile::Health::Healthy,
            Health::Suspect => compile::Health::Suspect,
            Health::Critical | Health::Maintenance => compile::Health::Unhealthy,
        },
        weight: instance.weight,
        workload: instance.workload.clone().unwrap_or_default(),
        version: instance.version.clone().unwrap_or_default(),
        zone: instance.zone.clone().unwrap_or_default(),
        region: instance.metadata.get(sidecar::REGION).cloned().unwrap_or_default(),
        transport,
        labels: labels(instance),
    })
}

/// Its metadata, less what is ours.
fn labels(instance: &Instance) -> BTreeMap<String, String> {
    let theirs = instance.metadata.iter().filter(|(name, _)| !name.starts_with("meshwork.dev/"));
    theirs.map(|(name, value)| (name.clone(), value.clone())).collect()
}

const fn served_protocol(protocol: AppProtocol) -> service_port::AppProtocol {
    match protocol {
        AppProtocol::Detect => service_port::AppProtocol::Unspecified,
        AppProtocol::Http1 => service_port::AppProtocol::Http1,
        AppProtocol::Http2 => service_port::AppProtocol::Http2,
        AppProtocol::Grpc => service_port::AppProtocol::Grpc,
        AppProtocol::Tcp => service_port::AppProtocol::Tcp,
        AppProtocol::Tls => service_port::AppProtocol::Tls,
        AppProtocol::WebSocket => service_port::AppProtocol::Websocket,
    }
}

fn workload_messages<'a>(services: impl Iterator<Item = &'a Service>) -> Messages {
    let mut workloads: BTreeMap<String, v1::Workload> = BTreeMap::new();
    for service in services {
        for instance in &service.instances {
            let Some((id, _)) = mesh(instance) else { continue };
            let name = format!("{}/{}", service.namespace, instance.id);
            let workload = workloads.entry(name).or_insert_with(|| v1::Workload {
                source: Some(v1::Source {
                    kind: "Instance".to_owned(),
                    namespace: service.namespace.clone(),
                    name: instance.id.clone(),
                    file: "registry".to_owned(),
                    ..v1::Source::default()
                }),
                spiffe_id: id.to_string(),
                services: Vec::new(),
            });
            let served = |said: ports::Said<'_>| v1::workload::Served {
                service: format!("{}/{}", service.namespace, service.name),
                service_port: said.number().into(),
                app_port: said.app.into(),
                protocol: served_protocol(said.protocol()).into(),
            };
            workload.services.extend(ports::said(instance).map(served));
        }
    }
    let resource = |(name, workload): (String, v1::Workload)| {
        let body = workload.encode_to_vec();
        let version = ContentHash::of(&body).to_string();
        let key = ResourceKey::of::<v1::Workload>(name.as_str());
        (key, Arc::new(Resource { name, version, body: body.into(), requires: Vec::new() }))
    };
    workloads.into_iter().map(resource).collect()
}

#[cfg(test)]
mod tests;
