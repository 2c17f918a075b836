//! The registry as a source: who is where becomes the catalog that is compiled, and one `Workload` for each instance
//! that has a sidecar.
//!
//! What the registry said last stays while it is away: nothing vanishes by silence. It stays for a lease also where the
//! registry comes back with another store. A control plane that has begun anew together with it knows nothing itself, and
//! tells nothing for as long: proxies go on with what they have, and who is alive registers again.

use std::borrow::Cow;
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
use meshwork_xds::registration::LEASE_SECONDS;
use meshwork_xds::server::Speaker;
use prost::Message as _;
use tokio::time::Instant;

use crate::trust::{Followed, surely};
use crate::{ControlPlane, Ended, Feed};
use kept::Kept;
use ports::Ports;

mod kept;
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
/// How long what was registered stays when its registry has lost its store: in that time whoever is alive has told it again.
const LEASE: Duration = Duration::from_secs(LEASE_SECONDS);
/// How often the registry is asked meanwhile: that somebody is gone whom it never had is no change of its catalog.
const LOOK: Duration = Duration::from_secs(1);

/// Sentences about registrations that are not what they are meant to be.
type Doubts = BTreeSet<String>;

/// By namespace and name.
type Services = BTreeMap<(String, String), Service>;

type Messages = BTreeMap<ResourceKey, Arc<Resource>>;

/// Follows a registry for as long as it is polled and the control plane lives.
pub async fn follow(plane: ControlPlane, registry: RegistryClient, mut rng: impl Rng) {
    let [Some(catalog), Some(workloads)] = FEEDS.map(|name| plane.feed(name)) else { return };
    let (services, hub) = (Arc::clone(&plane.services), plane.hub().clone());
    let followed = plane.trust().map(crate::Trust::followed);
    // The plane ends with its last holder, and must not be kept by who feeds it.
    drop(plane);
    let mut source = Source::new(registry, epoch_before(followed.as_ref(), &mut rng).await);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match source.step().await {
            Ok(changed) => {
                backoff.reset();
                let now = Instant::now();
                if changed || source.next_end().is_some_and(|end| end <= now) {
                    source.forget(now);
                    hub.expect(proxies(source.all().values()));
                    services.store(Arc::new(called(&source.all()).cloned().collect()));
                    if source.hold.is_none() && source.tell(now, &catalog, &workloads).await.is_err() {
                        return;
                    }
                    remember(followed.as_ref(), &mut source).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the registry is not followed; what it said last stays");
                tokio::time::sleep(backoff.next(&mut rng)).await;
            }
        }
    }
}

/// Which store was followed by whoever had this control plane's data before.
async fn epoch_before(followed: Option<&Followed>, rng: &mut impl Rng) -> Option<String> {
    let followed = followed?;
    surely(FEEDS[0], rng, || followed.epoch(FEEDS[0])).await
}

/// The store is the one that is followed as soon as nothing is kept of another one.
async fn remember(followed: Option<&Followed>, source: &mut Source) {
    let Some((followed, since)) = followed.zip(source.since.as_ref()) else { return };
    let is_settled = source.hold.is_none() && source.kept.is_none();
    if is_settled && source.before.as_ref() != Some(&since.epoch) {
        source.before = Some(since.epoch.clone());
        followed.keep(FEEDS[0], &since.epoch).await;
    }
}

struct Source {
    registry: RegistryClient,
    since: Option<Since>,
    /// What the registry says; also services of the platform, which nobody calls.
    services: Services,
    /// Of another store, which it has lost.
    kept: Option<Kept>,
    /// The epoch that was followed before this process, or is followed now.
    before: Option<String>,
    /// Until when nothing is told: what proxies have was made of another store, of which we know nothing.
    hold: Option<Instant>,
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
    fn new(registry: RegistryClient, before: Option<String>) -> Self {
        Self {
            registry,
            since: None,
            services: Services::new(),
            kept: None,
            before,
            hold: None,
            empty: Empty::default(),
            workloads: Workloads::default(),
            doubts: Doubts::new(),
        }
    }

    /// Asks once; says whether there is something new.
    async fn step(&mut self) -> Result<bool, ClientError> {
        let end = self.next_end().map(|end| end.saturating_duration_since(Instant::now()));
        let longest = if self.kept.is_some() { LOOK } else { WAIT };
        let wait = end.map_or(longest, |end| end.min(longest));
        let asked = self.registry.changes(self.since.as_ref(), wait);
        let answered = tokio::time::timeout(WAIT + GRACE, asked).await;
        let changes = answered.unwrap_or_else(|_| {
            let server = self.registry.0.server().to_owned();
            Err(ClientError::Unreachable { server, cause: "it does not answer".to_owned() })
        })?;
        Ok(self.take(changes, Instant::now()))
    }

    /// Takes what the registry says; says whether something is new.
    fn take(&mut self, changes: Changes, now: Instant) -> bool {
        self.beware(&changes, now);
        let Changes { epoch, revision, reset, services, removed, departed, .. } = changes;
        let changed = reset || !services.is_empty() || !removed.is_empty();
        self.since = Some(Since { epoch, revision });
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
        let kept = self.kept.as_mut();
        kept.is_some_and(|kept| kept.look(&self.services, &departed)) || changed
    }

    /// Sees whether the registry's store is another one than before, and who is in it may not be all who are there.
    fn beware(&mut self, changes: &Changes, now: Instant) {
        // Who is alive has told it by then.
        let runs = changes.runs_ms.map(Duration::from_millis);
        let left = LEASE.saturating_sub(runs.unwrap_or_default());
        if left.is_zero() {
            return;
        }
        let (seconds, end) = (left.as_secs_f32(), now + left);
        if runs.is_some() {
            self.extend(end, now);
        }
        if !changes.reset {
            return;
        }
        match &self.since {
            // An older copy of the same store has forgotten too.
            Some(since) if since.epoch != changes.epoch || since.revision > changes.revision => {
                tracing::warn!(
                    seconds,
                    "the registry's store is another one than before; what was registered stays for a lease unless it is deregistered"
                );
                let all = self.all().into_owned();
                self.kept = Some(Kept::new(&all, end));
                // Of what was told before this process began nothing is known now either.
                self.hold = self.hold.map(|_| end);
            }
            None if self.before.as_ref().is_some_and(|before| *before != changes.epoch) => {
                tracing::warn!(
                    seconds,
                    "the registry's store is another one than was followed before; proxies keep what they have for a lease, and are told nothing until then"
                );
                self.hold = Some(end);
            }
            _ => {}
        }
    }

    /// While nobody can reach the registry, since it is down again or waits for the control plane, nobody can register: such
    /// time does not count.
    fn extend(&mut self, end: Instant, now: Instant) {
        let ends = self.kept.as_mut().map(|kept| &mut kept.end).into_iter().chain(&mut self.hold);
        for before in ends.filter(|before| **before < end) {
            if *before <= now {
                tracing::warn!(
                    "instances have not been able to register again: what there was before the registry's store was lost stays for another lease"
                );
            }
            *before = end;
        }
    }

    /// What is registered, and what is kept.
    fn all(&self) -> Cow<'_, Services> {
        match &self.kept {
            None => Cow::Borrowed(&self.services),
            Some(kept) => Cow::Owned(kept.over(&self.services)),
        }
    }

    /// Forgets what is over.
    fn forget(&mut self, now: Instant) {
        self.empty.forget(now);
        self.hold = self.hold.filter(|end| *end > now);
        if let Some(kept) = self.kept.take_if(|kept| kept.end <= now) {
            let missing = kept.missing();
            let (count, instances) = (missing.len(), missing.join(", "));
            tracing::info!(count, instances, "what has not registered again in the registry's store is gone");
        }
    }

    /// When the first of what stays for a while is to be forgotten.
    fn next_end(&self) -> Option<Instant> {
        let kept = self.kept.as_ref().map(|kept| kept.end);
        let ends = [kept, self.hold, self.workloads.next_end(), self.empty.next_end()];
        ends.into_iter().flatten().min()
    }

    /// Workloads first: an instance knows what it serves before others call it.
    async fn tell(&mut self, now: Instant, catalog: &Feed, workloads: &Feed) -> Result<(), Ended> {
        let registered = workload_messages(called(&self.all()));
        self.workloads.take(registered, now);
        workloads.messages(self.workloads.all()).await?;
        let (mut known, doubts) = catalog_of(called(&self.all()));
        doubts.difference(&self.doubts).for_each(|doubt| tracing::warn!("{doubt}"));
        self.doubts = doubts;
        self.empty.add_to(&mut known);
        catalog.catalog(known).await
    }
}

/// The services that are the mesh's.
fn called(services: &Services) -> impl Iterator<Item = &Service> {
    services.values().filter(|service| !is_platform(service))
}

/// Processes of the platform itself are registered to be found by who scrapes them; nobody calls them.
fn is_platform(service: &Service) -> bool {
    !service.instances.is_empty() && service.instances.iter().all(|one| one.metadata.contains_key(ROLE))
}

/// The proxies that hold a lease, or did until the registry heard no more of most of their service, by the ids under which
/// they join: whether they are connected or not, they carry traffic.
fn proxies<'a>(services: impl Iterator<Item = &'a Service>) -> BTreeMap<String, Speaker> {
    let of = |service: &'a Service| service.instances.iter().filter_map(|one| proxy(&service.namespace, one));
    services.flat_map(of).collect()
}

fn proxy(namespace: &str, instance: &Instance) -> Option<(String, Speaker)> {
    // That a suspect is silent is no proof that it is gone: it is called as before. An earlier registry tells it by its health.
    let is_suspect = instance.suspect || instance.health == Health::Suspect;
    if instance.lease_expires.is_none() && !is_suspect {
        return None;
    }
    let id = SpiffeId::parse(instance.identity.as_deref()?).ok()?;
    let incarnation = instance.incarnation.clone().unwrap_or_default();
    let speaker = Speaker { identity: Some(id.clone()), incarnation };
    if mesh(instance).is_some() {
        return Some((format!("{namespace}/{}", instance.id), speaker));
    }
    let named = instance.metadata.get(PROXY)?;
    // Nobody makes others wait for proxies that are not its own.
    let own = format!("gateway/{}/{}/", id.namespace(), id.workload());
    named.starts_with(&own).then(|| (named.clone(), speaker))
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
    let somebody = used.iter().any(|instance| match instance.health {
        Health::Passing | Health::Suspect => true,
        Health::Warning => weight(instance) > 0,
        Health::Critical | Health::Maintenance => false,
    });
    CatalogService {
        ports: ports.catalog(),
        spiffe_ids: spiffe_ids.into_iter().collect(),
        addresses: Vec::new(),
        instances: used
            .into_iter()
            .filter_map(|instance| catalog_instance(instance, (&ports, somebody), doubts))
            .collect(),
    }
}

/// Its weight in the health that it has.
fn weight(instance: &Instance) -> u32 {
    instance.warning_weight.filter(|_| instance.health == Health::Warning).unwrap_or(instance.weight)
}

/// `somebody`: of its service somebody wants to be called.
fn catalog_instance(
    instance: &Instance,
    (ports, somebody): (&Ports<'_>, bool),
    doubts: &mut Doubts,
) -> Option<CatalogInstance> {
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
            Health::Warning if somebody && weight(instance) == 0 => compile::Health::Unhealthy,
            Health::Passing | Health::Warning => compile::Health::Healthy,
            Health::Suspect => compile::Health::Suspect,
            Health::Critical | Health::Maintenance => compile::Health::Unhealthy,
        },
        weight: weight(instance),
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
