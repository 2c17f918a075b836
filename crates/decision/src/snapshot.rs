//! The snapshot: everything a proxy decides by, immutable, at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::binding::{Binding, Listener};
use crate::cluster::{Cluster, ClusterKey};
use crate::route::Route;

/// Everything a proxy decides by. A request takes the pointer once and keeps to it.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub(crate) revision: u64,
    pub(crate) bindings: Box<[Arc<Binding>]>,
    pub(crate) unbound: Box<[(Arc<Listener>, String)]>,
    pub(crate) clusters: BTreeMap<ClusterKey, Arc<Cluster>>,
    pub(crate) routes: BTreeMap<Arc<str>, Arc<Route>>,
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
}
