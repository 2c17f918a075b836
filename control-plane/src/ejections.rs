//! Ejections that count for everybody: what proxies report, who of them counts as an observer, and how the endpoints that
//! are out reach all proxies.
//!
//! ```text
//! stream ──Views, with the proven identity──▶ Ejections ──judge──▶ EndpointSlices, some endpoints marked ──▶ every proxy
//! ```
//!
//! The rules themselves are `decision`'s (`verdicts.rs`). Nothing is stored: what stands here stands because proxies say
//! it again and again, so a control plane that was restarted knows it some seconds after they are back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_compile::output::{ByKey, ResourceKey as CompiledKey, ResourceType};
use meshwork_decision::verdicts::{Rules, Sights, Suspect, Turn, Verdicts};
use meshwork_decision::{Change, ClusterKey, SnapshotBuilder};
use meshwork_messages::type_url;
use meshwork_messages::v1::{self, Resource};
use meshwork_xds::ResourceKey;
use meshwork_xds::server::{Publication, Viewer};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::model::resource;
use crate::trust::is_published_gateway;

/// Judgements follow each other no faster, whatever proxies send.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

static SERVICE: LazyLock<Arc<str>> = LazyLock::new(|| type_url::<v1::Service>().into());
static SLICE: LazyLock<Arc<str>> = LazyLock::new(|| type_url::<v1::EndpointSlice>().into());
static POLICY: LazyLock<Arc<str>> = LazyLock::new(|| type_url::<v1::Policy>().into());
static WORKLOAD: LazyLock<Arc<str>> = LazyLock::new(|| type_url::<v1::Workload>().into());

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Ejections {
    verdicts: Verdicts,
    /// By what was judged, at which revision.
    rules: (u64, BTreeMap<ClusterKey, Option<Arc<Rules>>>),
    /// Slices of which some endpoints are marked in what is published.
    marked: BTreeSet<ResourceKey>,
}

impl Ejections {
    /// A proxy has said what it sees.
    pub(crate) fn hear(&mut self, viewer: &Viewer, views: &v1::Views, world: &Publication, now: Tick) {
        let Some(observer) = observer(viewer, world) else { return };
        let mut sights = Sights::new();
        for view in &views.services {
            let Ok(port) = u16::try_from(view.port) else { continue };
            let suspect = |said: &v1::EjectedView| {
                let address: SocketAddr = said.address.parse().ok()?;
                Some(Suspect { address, instance: said.instance.as_str().into() })
            };
            // Subsets are of one service, whose endpoints are out or not.
            let seen = sights.entry(ClusterKey::whole(view.service.as_str().into(), port)).or_default();
            seen.ejected.extend(view.ejected.iter().filter_map(suspect));
            seen.called.extend(&view.called);
        }
        self.verdicts.hear(&observer, sights, now);
    }

    /// Judges by what is heard; true when somebody is out for everybody now, or no longer.
    pub(crate) fn judge(&mut self, world: &Publication, now: Tick) -> bool {
        // Views come by the thousand where something fails; what they are judged by changes with the configuration only.
        if self.rules.0 != world.revision {
            self.rules = (world.revision, BTreeMap::new());
        }
        let known = &mut self.rules.1;
        let turns = self.verdicts.judge(now, |service| {
            known.entry(service.clone()).or_insert_with(|| rules(world, service).map(Arc::new)).clone()
        });
        for Turn { service, suspect, sentence } in &turns {
            let (service, instance, address) = (service.to_string(), &*suspect.instance, suspect.address);
            match sentence {
                Some(sentence) => {
                    let (observers, callers) = (sentence.observers, sentence.callers);
                    tracing::info!(service, instance, %address, observers, callers, "endpoint ejected for everybody");
                }
                None => tracing::info!(service, instance, %address, "endpoint returned for everybody"),
            }
        }
        !turns.is_empty()
    }

    /// When there is something to judge, if nobody says anything until then.
    pub(crate) fn next_change(&self, now: Tick) -> Option<Tick> {
        self.verdicts.next_change(now)
    }

    /// How many endpoints are out for everybody, by service.
    pub(crate) fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for service in self.verdicts.services() {
            *counts.entry(service.service.to_string()).or_default() += self.verdicts.of(service).count();
        }
        counts
    }

    /// Marks the endpoints that are out in what is about to be published, and no others.
    pub(crate) fn mark(&mut self, publication: &mut Publication, compiled: &ByKey) {
        let mut wanted: BTreeMap<ResourceKey, Vec<Mark>> = BTreeMap::new();
        for service in self.verdicts.services() {
            let Some(port) = port_name(publication, service) else { continue };
            let marks = self.verdicts.of(service).map(|(suspect, sentence)| Mark {
                port: port.clone(),
                suspect: suspect.clone(),
                observers: sentence.observers,
            });
            let marks: Vec<Mark> = marks.collect();
            for slice in children(publication, &service.service, &SLICE) {
                wanted.entry(slice.clone()).or_default().extend(marks.iter().cloned());
            }
        }
        let before = std::mem::take(&mut self.marked);
        for slice in before.iter().filter(|slice| !wanted.contains_key(*slice)) {
            if let Some(resource) = base(compiled, slice) {
                publication.resources.insert(slice.clone(), Arc::new(resource));
            }
        }
        for (slice, marks) in wanted {
            let Some(resource) = base(compiled, &slice) else { continue };
            publication.resources.insert(slice.clone(), Arc::new(marked(resource, &marks)));
            self.marked.insert(slice);
        }
    }
}

/// One endpoint that is out at one port of its service.
#[derive(Clone, Debug)]
struct Mark {
    port: String,
    suspect: Suspect,
    observers: u32,
}

/// Under which name a proxy is heard, if at all. One voice is an instance of which the registry says that it has the
/// identity that the stream has proven; of a gateway's replicas, whose names nobody can prove, all together are one.
fn observer(viewer: &Viewer, world: &Publication) -> Option<Arc<str>> {
    let id = &viewer.node.id;
    let Some(identity) = &viewer.identity else { return Some(format!("process/{id}").into()) };
    if viewer.node.role == "gateway" {
        // Whoever has a service's identity could say that it is a gateway too, and have a second voice.
        return is_published_gateway(identity, &world.resources).then(|| identity.as_str().into());
    }
    let key = ResourceKey::new(Arc::clone(&WORKLOAD), id.as_str());
    let said = v1::Workload::decode(world.resources.get(&key)?.body.clone()).ok()?;
    (said.spiffe_id == identity.as_str()).then(|| format!("{identity}/{id}").into())
}

/// What hangs on a service, of one type.
fn children<'w>(
    world: &'w Publication,
    service: &str,
    type_url: &'static Arc<str>,
) -> impl Iterator<Item = &'w ResourceKey> {
    let key = ResourceKey::new(Arc::clone(&SERVICE), service);
    let children = world.links.get(&key).into_iter().flatten();
    children.filter(move |child| child.type_url == *type_url)
}

/// What applies to a service, by the words that its callers go by: the same snapshot decides, made of what they are told
/// of it.
fn rules(world: &Publication, of: &ClusterKey) -> Option<Rules> {
    let service = ResourceKey::new(Arc::clone(&SERVICE), Arc::clone(&of.service));
    let policies = children(world, &of.service, &POLICY);
    let keys = [&service].into_iter().chain(policies).chain(children(world, &of.service, &SLICE));
    let changes = keys.filter_map(|key| {
        let resource = world.resources.get(key)?;
        Some(Change::Upsert {
            type_url: Arc::clone(&key.type_url),
            name: Arc::clone(&key.name),
            version: resource.version.as_str().into(),
            body: resource.body.clone(),
        })
    });
    let mut builder = SnapshotBuilder::new();
    // What proxies refuse is told where they do; here it is as if it were not said.
    builder.apply(changes);
    let snapshot = builder.build();
    let cluster = snapshot.cluster(of)?;
    let outlier = cluster.outlier_detection.as_ref()?;
    let endpoints = cluster.endpoints();
    // All that anybody may call: which part of a large fleet a proxy calls is its own.
    let callable = endpoints.all().iter().filter(|endpoint| endpoint.excluded.is_none());
    let suspects = callable
        .map(|endpoint| Suspect { address: endpoint.address(), instance: Arc::clone(&endpoint.instance) });
    Some(Rules {
        shared: outlier.shared?,
        max_ejection_percent: outlier.max_ejection_percent,
        endpoints: suspects.collect(),
    })
}

fn port_name(world: &Publication, of: &ClusterKey) -> Option<String> {
    let key = ResourceKey::new(Arc::clone(&SERVICE), Arc::clone(&of.service));
    let service = v1::Service::decode(world.resources.get(&key)?.body.clone()).ok()?;
    service.ports.into_iter().find(|port| port.port == u32::from(of.port)).map(|port| port.name)
}

/// A slice as it was compiled.
fn base(compiled: &ByKey, slice: &ResourceKey) -> Option<Resource> {
    let key = CompiledKey::new(ResourceType::EndpointSlice, Arc::clone(&slice.name));
    compiled.get(&key).map(|compiled| resource(&slice.name, compiled))
}

/// The slice with the marks that concern it. Its version says so: equal marks, equal version.
fn marked(mut of: Resource, marks: &[Mark]) -> Resource {
    let Ok(mut slice) = v1::EndpointSlice::decode(of.body.clone()) else { return of };
    let ports: BTreeMap<String, u32> =
        slice.ports.iter().map(|port| (port.name.clone(), port.port)).collect();
    let mut digest = Sha256::new();
    for endpoint in &mut slice.endpoints {
        let is_at = |mark: &&Mark| {
            *endpoint.instance == *mark.suspect.instance
                && ports.get(&mark.port) == Some(&u32::from(mark.suspect.address.port()))
                && endpoint.addresses.first().is_some_and(|ip| ip.parse() == Ok(mark.suspect.address.ip()))
        };
        let out: BTreeMap<String, u32> =
            marks.iter().filter(is_at).map(|mark| (mark.port.clone(), mark.observers)).collect();
        for (port, observers) in &out {
            digest.update(format!("{:?}{}{port}{observers}", endpoint.addresses, endpoint.instance));
        }
        endpoint.ejected = out;
    }
    if slice.endpoints.iter().any(|endpoint| !endpoint.ejected.is_empty()) {
        let digest = digest.finalize();
        of.version =
            format!("{}-{:02x}{:02x}{:02x}{:02x}", of.version, digest[0], digest[1], digest[2], digest[3]);
        of.body = slice.encode_to_vec().into();
    }
    of
}

#[cfg(test)]
mod tests;
