//! Endpoint sets: all slices of a service merged per port, with identities and counts kept by address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Held;
use crate::cluster::Cluster;
use crate::convert::{EndpointSpec, ServiceSpec};
use crate::endpoint::{Endpoint, EndpointSet, Exclusion, Health, Transport};

/// Hands out ids of endpoints.
#[derive(Debug, Default)]
pub(super) struct EndpointIds {
    last: u64,
}

impl EndpointIds {
    /// Brings a cluster's endpoints up to date.
    pub(super) fn update(&mut self, held: &Held, cluster: &Cluster) {
        let Some(service) = held.services.get(&cluster.key.service) else { return };
        let before = cluster.endpoints();
        let known: HashMap<SocketAddr, &Arc<Endpoint>> =
            before.all().iter().map(|e| (e.address(), e)).collect();
        let mut places: HashMap<SocketAddr, usize> = HashMap::with_capacity(known.len());
        let mut all: Vec<Arc<Endpoint>> = Vec::with_capacity(known.len());
        for slice in held.slices_of(&service.name) {
            let Some((_, port)) = slice.ports.iter().find(|(name, _)| *name == cluster.port_name) else {
                continue;
            };
            for spec in &slice.endpoints {
                let address = SocketAddr::new(spec.addresses[0], *port);
                match places.entry(address) {
                    Entry::Vacant(free) => {
                        free.insert(all.len());
                        all.push(self.endpoint(service, spec, *port, known.get(&address).copied()));
                    }
                    // An instance that moves between slices is in both for a moment: what serves counts.
                    Entry::Occupied(taken) => {
                        let there = &mut all[*taken.get()];
                        if there.excluded.is_some() && exclusion(service, spec).is_none() {
                            *there = self.endpoint(service, spec, *port, known.get(&address).copied());
                        }
                    }
                }
            }
        }
        cluster.shared.endpoints.store(Arc::new(EndpointSet::new(all)));
    }

    fn endpoint(
        &mut self,
        service: &ServiceSpec,
        spec: &EndpointSpec,
        port: u16,
        known: Option<&Arc<Endpoint>>,
    ) -> Arc<Endpoint> {
        let addresses: SmallVec<[SocketAddr; 1]> =
            spec.addresses.iter().map(|&ip| SocketAddr::new(ip, port)).collect();
        let excluded = exclusion(service, spec);
        // Connections may be kept only where they would be made alike today.
        let same = known.filter(|k| k.addresses == addresses && k.transport == spec.transport);
        if let Some(same) = same
            && says_the_same(same, spec, excluded)
        {
            return Arc::clone(same);
        }
        if let Some(known) = known
            && known.excluded.is_some()
            && excluded.is_none()
        {
            known.stats.forgive();
        }
        let id = same.map(|k| k.id).unwrap_or_else(|| {
            self.last += 1;
            self.last
        });
        Arc::new(Endpoint {
            id,
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
            stats: known.map(|k| Arc::clone(&k.stats)).unwrap_or_default(),
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
        && endpoint.region == spec.region
        && endpoint.labels == spec.labels
}

fn exclusion(service: &ServiceSpec, spec: &EndpointSpec) -> Option<Exclusion> {
    let identity = match &spec.transport {
        Transport::Plaintext => None,
        Transport::Mesh { spiffe_id, .. } => Some(spiffe_id),
    };
    if !service.spiffe_ids.is_empty() && !identity.is_some_and(|id| service.spiffe_ids.contains(id)) {
        return Some(Exclusion::WrongIdentity);
    }
    match spec.health {
        Health::Healthy | Health::Suspect => None,
        Health::Unhealthy => Some(Exclusion::Unhealthy),
        Health::Draining => Some(Exclusion::Draining),
    }
}
