//! The snapshot: everything a proxy decides by, immutable, at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::binding::{Binding, Listener};
use crate::breaker::RouteBreaker;
use crate::cluster::{Cluster, ClusterKey};
use crate::hostname::{Host, HostMap};
use crate::inbound::{Inbound, Shown};
use crate::outbound::OutboundService;
use crate::route::Route;
use crate::trust::Bundle;

/// Everything a proxy decides by. A request takes the pointer once and keeps to it.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub(crate) revision: u64,
    pub(crate) bindings: Box<[Arc<Binding>]>,
    pub(crate) unbound: Box<[(Arc<Listener>, String)]>,
    pub(crate) clusters: BTreeMap<ClusterKey, Arc<Cluster>>,
    pub(crate) routes: BTreeMap<Arc<str>, Arc<Route>>,
    pub(crate) outbound: HostMap<Arc<OutboundService>>,
    pub(crate) services: BTreeMap<Arc<str>, Arc<OutboundService>>,
    pub(crate) inbound: BTreeMap<Arc<str>, Arc<Inbound>>,
    pub(crate) shown: Shown,
    pub(crate) bundles: BTreeMap<Arc<str>, Arc<Bundle>>,
    pub(crate) breakers: Box<[Arc<RouteBreaker>]>,
}

impl Snapshot {
    /// The revision of the last commit that is in it; 0 before the first.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What to listen on, by address and port. A binding in which nothing changed is the same `Arc` as before.
    #[must_use]
    pub fn bindings(&self) -> &[Arc<Binding>] {
        &self.bindings
    }

    /// Listeners that cannot be served because an older one holds their port with another protocol, and why.
    #[must_use]
    pub fn unbound(&self) -> &[(Arc<Listener>, String)] {
        &self.unbound
    }

    /// A cluster by service and port.
    #[must_use]
    pub fn cluster(&self, key: &ClusterKey) -> Option<&Arc<Cluster>> {
        self.clusters.get(key)
    }

    /// All clusters, ordered.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    /// All routes, by resource name.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values()
    }

    /// The circuit breakers of routes and rules, by name.
    #[must_use]
    pub fn route_breakers(&self) -> &[Arc<RouteBreaker>] {
        &self.breakers
    }

    /// The clusters of one service, by port.
    pub fn clusters_of<'s>(&'s self, service: &'s str) -> impl Iterator<Item = &'s Arc<Cluster>> {
        let first = ClusterKey::whole(service.into(), 0);
        self.clusters
            .range(first..)
            .map(|(_, cluster)| cluster)
            .take_while(move |c| *c.key.service == *service)
    }

    /// The service that callers in the mesh know by this host (without port, in any case).
    #[must_use]
    pub fn outbound(&self, host: &str) -> Option<&Arc<OutboundService>> {
        self.outbound.matching(Host::new(host).as_str()).next()
    }

    /// A service by its resource's name, `NAMESPACE/NAME`.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Arc<OutboundService>> {
        self.services.get(name)
    }

    /// What the instance beside a sidecar serves; the first by name where several were delivered.
    #[must_use]
    pub fn inbound(&self) -> Option<&Arc<Inbound>> {
        self.inbound.values().next()
    }

    /// What all delivered instances serve, by name; a control plane holds all of them.
    pub fn inbounds(&self) -> impl Iterator<Item = &Arc<Inbound>> {
        self.inbound.values()
    }

    /// Roots and deny entries of a trust domain.
    #[must_use]
    pub fn bundle(&self, trust_domain: &str) -> Option<&Arc<Bundle>> {
        self.bundles.get(trust_domain)
    }

    /// All trust domains.
    pub fn bundles(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.bundles.values()
    }
}
