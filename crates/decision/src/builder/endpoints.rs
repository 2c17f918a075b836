//! Endpoint sets: all slices of a service merged per port, with identities and counts kept by address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Held;
use crate::cluster::Cluster;
use crate::convert::{EndpointSpec, ServiceSpec};
use crate::endpoint::{Endpoint, EndpointSet, Exclusion, Health, Sight, Transport};
use crate::preference::Locality;
use crate::subsetting::Subsetting;

/// What is at one address of an application: one endpoint, seldom more.
type Places<T> = SmallVec<[T; 1]>;

/// Whether two endpoints with one address of the application are one. Behind sidecars that listen elsewhere are two
/// instances, each of which reaches its own application by that address (`127.0.0.1`, say).
fn same_place(one: &Transport, other: &Transport) -> bool {
    match (one, other) {
        (Transport::Mesh { http: one, .. }, Transport::Mesh { http: other, .. }) => one == other,
        _ => true,
    }
}

/// Hands out ids of endpoints, and knows from where they are seen.
#[derive(Debug, Default)]
pub(super) struct EndpointIds {
    last: u64,
    /// Where this proxy runs.
    pub(super) place: Locality,
    /// What tells this proxy apart from others.
    pub(super) seed: u64,
}

impl EndpointIds {
    /// Brings a cluster's endpoints up to date.
    pub(super) fn update(&mut self, held: &Held, cluster: &Cluster) {
        let Some(service) = held.services.get(&cluster.key.service) else { return };
        let before = cluster.endpoints();
        if cluster.slow_start.is_some() {
            before.begun_long_ago();
        }
        let mut known: HashMap<SocketAddr, Places<&Arc<Endpoint>>> = HashMap::new();
        for endpoint in before.all() {
            known.entry(endpoint.address()).or_default().push(endpoint);
        }
        let may = May { service, leaving: is_left_to_those_leaving(held, service, &cluster.port_name) };
        let mut places: HashMap<SocketAddr, Places<usize>> = HashMap::with_capacity(known.len());
        let mut all: Vec<Arc<Endpoint>> = Vec::with_capacity(known.len());
        for slice in held.slices_of(&service.name) {
            let Some((_, port)) = slice.ports.iter().find(|(name, _)| *name == cluster.port_name) else {
                continue;
            };
            for spec in &slice.endpoints {
                let address = SocketAddr::new(spec.addresses[0], *port);
                let here = known.get(&address).into_iter().flatten();
                let known = here.copied().find(|known| same_place(&known.transport, &spec.transport));
                let taken = places.entry(address).or_default();
                match taken.iter().find(|&&at| same_place(&all[at].transport, &spec.transport)) {
                    None => {
                        taken.push(all.len());
                        all.push(self.endpoint(may, spec, (*port, &cluster.port_name), known));
                    }
                    // An instance that moves between slices is in both for a moment: what serves counts.
                    Some(&at) => {
                        if all[at].excluded.is_some() && may.exclusion(spec).is_none() {
                            all[at] = self.endpoint(may, spec, (*port, &cluster.port_name), known);
                        }
                    }
                }
            }
        }
        if let Some(subset) = &cluster.subset {
            all = subset.of(all);
        }
        let sight = Sight {
            place: &self.place,
            preference: &cluster.preference,
            shape: cluster.algorithm.shape(),
            slow_start: cluster.slow_start,
            subsetting: cluster.subset_size.map(|size| Subsetting { size, seed: self.seed }),
        };
        let set = EndpointSet::seen(all, &sight);
        cluster.shared.endpoints.store(Arc::new(set));
    }

    fn endpoint(
        &mut self,
        may: May<'_>,
        spec: &EndpointSpec,
        (port, port_name): (u16, &str),
        known: Option<&Arc<Endpoint>>,
    ) -> Arc<Endpoint> {
        let addresses: SmallVec<[SocketAddr; 1]> =
            spec.addresses.iter().map(|&ip| SocketAddr::new(ip, port)).collect();
        let excluded = may.exclusion(spec);
        let ejected_by = spec.ejected.iter().find(|(port, _)| **port == *port_name).map_or(0, |(_, by)| *by);
        // Connections may be kept only where they would be made alike today.
        let same = known.filter(|k| k.addresses == addresses && k.transport == spec.transport);
        if let Some(same) = same
            && says_the_same(same, spec, excluded)
            && same.ejected_by == ejected_by
        {
            return Arc::clone(same);
        }
        if let Some(known) = known
            && known.excluded.is_some()
            && excluded.is_none()
        {
            known.stats.forgive();
        }
        if let Some(known) = known
            && (known.instance != spec.instance || (known.ejected_by > 0 && ejected_by == 0))
        {
            known.stats.begun.anew();
        }
        let id = same.map(|k| k.id).unwrap_or_else(|| {
            self.last += 1;
            self.last
        });
        let fingerprint = Endpoint::fingerprint(&spec.instance, addresses[0]);
        let stats = known.map(|k| Arc::clone(&k.stats)).unwrap_or_default();
        stats.standing.ejected_for_all(ejected_by > 0);
        Arc::new(Endpoint {
            id,
            fingerprint,
            ejected_by,
            for_zones: spec.for_zones.clone(),
            addresses,
            transport: spec.transport.clone(),
            health: spec.health,
            excluded,
            weight: spec.weight,
            instance: Arc::clone(&spec.instance),
            workload: Arc::clone(&spec.workload),
            version: Arc::clone(&spec.version),
            zone: Arc::clone(&spec.zone),
            region: Arc::clone(&spec.region),
            labels: Arc::clone(&spec.labels),
            stats,
        })
    }
}

fn says_the_same(endpoint: &Endpoint, spec: &EndpointSpec, excluded: Option<Exclusion>) -> bool {
    endpoint.health == spec.health
        && endpoint.excluded == excluded
        && endpoint.weight == spec.weight
        && endpoint.instance == spec.instance
        && endpoint.workload == spec.workload
        && endpoint.version == spec.version
        && endpoint.zone == spec.zone
        && endpoint.for_zones == spec.for_zones
        && endpoint.region == spec.region
        && endpoint.labels == spec.labels
}

/// Who of a service's endpoints may be picked.
#[derive(Clone, Copy)]
struct May<'a> {
    service: &'a ServiceSpec,
    /// Those who are leaving, since there is nobody else.
    leaving: bool,
}

impl May<'_> {
    fn exclusion(self, spec: &EndpointSpec) -> Option<Exclusion> {
        let identity = match &spec.transport {
            Transport::Plaintext => None,
            Transport::Mesh { spiffe_id, .. } => Some(spiffe_id),
        };
        let wanted = &self.service.spiffe_ids;
        if !wanted.is_empty() && !identity.is_some_and(|id| wanted.contains(id)) {
            return Some(Exclusion::WrongIdentity);
        }
        match spec.health {
            Health::Healthy | Health::Suspect => None,
            Health::Draining if self.leaving && identity.is_none() => None,
            Health::Unhealthy => Some(Exclusion::Unhealthy),
            Health::Draining => Some(Exclusion::Draining),
        }
    }
}

/// Whether nobody is there but who is leaving. As kube-proxy does, those are called then: they say that they still serve.
/// (A sidecar that is leaving takes nothing new, and its callers wait for the next instance.)
fn is_left_to_those_leaving(held: &Held, service: &ServiceSpec, port_name: &str) -> bool {
    let may = May { service, leaving: false };
    let of_port = held
        .slices_of(&service.name)
        .filter(|slice| slice.ports.iter().any(|(name, _)| **name == *port_name));
    !of_port.flat_map(|slice| &slice.endpoints).any(|spec| may.exclusion(spec).is_none())
}
