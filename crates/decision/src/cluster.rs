//! A cluster: one port of one service, with what must be known to send a request there.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::{ArcSwap, Guard};
use meshwork_base::{Rng, Tick};

use crate::balance;
use crate::endpoint::{Endpoint, EndpointSet};
use crate::policy::RequestPolicy;

/// A service's name: `NAMESPACE/NAME`, and its port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterKey {
    /// `NAMESPACE/NAME`.
    pub service: Arc<str>,
    /// The service's port.
    pub port: u16,
}

/// What the application speaks on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Not declared.
    #[default]
    Detect,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// gRPC, which is HTTP/2.
    Grpc,
    /// Opaque TCP.
    Tcp,
    /// Opaque TLS.
    Tls,
    /// HTTP/1.1 that upgrades.
    WebSocket,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// The less loaded of two random ones.
    #[default]
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
}

/// One port of one service. Configuration is immutable; what counts and changes is shared with the cluster of the
/// same key in the snapshots before and after.
#[derive(Debug)]
pub struct Cluster {
    /// Service and port.
    pub key: ClusterKey,
    /// The port's name, may be empty.
    pub port_name: Arc<str>,
    /// What the application speaks.
    pub protocol: AppProtocol,
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// What policies attached to the service say about its requests; asked through [`crate::RulePolicy`].
    pub(crate) requests: RequestPolicy,
    pub(crate) shared: Arc<ClusterShared>,
}

/// What outlives a snapshot.
#[derive(Debug, Default)]
pub(crate) struct ClusterShared {
    pub(crate) endpoints: ArcSwap<EndpointSet>,
    /// Where round robin stands, for all workers together.
    pub(crate) cursor: AtomicUsize,
}

impl Cluster {
    /// The endpoints of this moment. Endpoint changes take effect here without a new snapshot.
    #[must_use]
    pub fn endpoints(&self) -> Guard<Arc<EndpointSet>> {
        self.shared.endpoints.load()
    }

    /// Picks an endpoint, preferring ones whose id is not in `tried`; `None` when there is nothing to pick from
    /// (cause `no_healthy_upstream`).
    pub fn pick(&self, now: Tick, rng: &mut impl Rng, tried: &[u64]) -> Option<Arc<Endpoint>> {
        let set = self.endpoints();
        let picked = match self.algorithm {
            Algorithm::LeastRequest => balance::least_request(&set, now, rng, tried),
            Algorithm::RoundRobin => balance::round_robin(&set, now, &self.shared.cursor, tried),
        };
        picked.cloned()
    }
}
