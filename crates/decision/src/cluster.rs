//! A cluster: one port of one service, with what must be known to send a request there.

mod again;
mod breaking;
#[cfg(test)]
mod call_tests;
mod counts;
mod heard;
mod key;
mod pick;
#[cfg(test)]
mod tests;
mod told;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, Guard};
use meshwork_base::Tick;

pub use self::key::{AppProtocol, ClusterKey};
pub use self::pick::{Algorithm, Wanted};
use crate::admission::{AdmissionControl, Admissions};
use crate::affinity::Hashing;
use crate::balance::{SlowStart, TierState};
use crate::breaker::{Breaker, CircuitBreaker};
use crate::deadline::Fastest;
use crate::endpoint::EndpointSet;
use crate::health_check::HealthCheck;
use crate::hedge::Hedges;
use crate::limits::{InForce, Limits, Room, Usage};
use crate::outage::Outage;
use crate::outlier::{Fleet, OutlierDetection};
use crate::overload::{Gate, Overload};
use crate::policy::ServiceWords;
use crate::preference::Preference;
use crate::proxy_protocol::ProxyVersion;
use crate::retry::Budget;
use crate::subset::Subset;

/// One port of one service. Configuration is immutable; what counts and changes is shared with the cluster of the
/// same key in the snapshots before and after.
#[derive(Debug)]
pub struct Cluster {
    /// Service and port.
    pub key: ClusterKey,
    /// The key as text, for records.
    pub label: Arc<str>,
    /// The service, and the subset if it is one, as metrics and operators call it.
    pub name: Arc<str>,
    /// Which endpoints it has, where it is a subset.
    pub(crate) subset: Option<Arc<Subset>>,
    /// The port's name, may be empty.
    pub port_name: Arc<str>,
    /// What the application speaks.
    pub protocol: AppProtocol,
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// What tells requests apart, where the algorithm asks for it.
    pub hashing: Option<Arc<Hashing>>,
    /// Who goes first, and when others help.
    pub preference: Arc<Preference>,
    /// How an endpoint begins; absent: with its whole weight.
    pub slow_start: Option<SlowStart>,
    /// How many of the endpoints each proxy calls; absent: all.
    pub subset_size: Option<u32>,
    /// How much may be under way at once.
    pub limits: Limits,
    /// When an endpoint is left alone for a while; absent: never.
    pub outlier_detection: Option<OutlierDetection>,
    /// How endpoints are asked whether they serve; absent: not at all.
    pub health_check: Option<Arc<HealthCheck>>,
    /// When the service is not called for a while; absent: always.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// When one of its endpoints is not; absent: never by a breaker.
    pub endpoint_breaker: Option<CircuitBreaker>,
    /// What keeps its endpoints from more than they can do, where no sidecar stands before them.
    pub overload: Option<Arc<Overload>>,
    /// How many calls are held back when too few succeed; absent: none.
    pub admission: Option<Arc<AdmissionControl>>,
    /// What each plaintext connection begins with, to say for whom it is made.
    pub proxy_protocol: Option<ProxyVersion>,
    /// What policies attached to the service and its namespace say about its requests; asked through
    /// [`crate::RulePolicy`].
    pub(crate) words: Arc<ServiceWords>,
    pub(crate) shared: Arc<ClusterShared>,
}

/// What outlives a snapshot.
#[derive(Debug, Default)]
pub(crate) struct ClusterShared {
    pub(crate) endpoints: ArcSwap<EndpointSet>,
    /// Where round robin stands, for all workers together.
    pub(crate) cursor: AtomicUsize,
    pub(crate) usage: Usage,
    /// What connections are held to that were made under other limits.
    pub(crate) in_force: InForce,
    /// Who waits for a connection of the service to end.
    pub(crate) room: Room,
    pub(crate) budget: Budget,
    hedges: OnceLock<Box<Hedges>>,
    /// Made when a policy wants one.
    pub(crate) gate: OnceLock<Arc<Gate>>,
    pub(crate) outage: Outage,
    pub(crate) fastest: Fastest,
    pub(crate) breaker: Breaker,
    pub(crate) admissions: Admissions,
    pub(crate) fleet: Fleet,
}

impl ClusterShared {
    /// Made when something is hedged for the first time.
    pub(crate) fn hedges(&self) -> &Hedges {
        self.hedges.get_or_init(Box::default)
    }
}

impl Cluster {
    /// The endpoints of this moment. Endpoint changes take effect here without a new snapshot.
    #[must_use]
    pub fn endpoints(&self) -> Guard<Arc<EndpointSet>> {
        self.shared.endpoints.load()
    }

    /// How the tiers of its endpoints are, the first first; none where all endpoints are called for alike.
    #[must_use]
    pub fn tiers(&self, now: Tick) -> Vec<TierState> {
        self.endpoints()
            .tiers()
            .map_or_else(Vec::new, |tiers| tiers.states(now, self.endpoint_breaker.as_ref()))
    }

    /// Whether so many endpoints are ejected that ejections are disregarded.
    #[must_use]
    pub fn panics(&self, now: Tick) -> bool {
        self.endpoints().panics(now, self.preference.panic_threshold)
    }

    /// Whether this proxy calls a part of the endpoints, which changes as some are out, or in again.
    #[must_use]
    pub fn calls_a_part(&self) -> bool {
        self.endpoints().is_part()
    }

    /// Whether its configuration is that of another, so that the other may stay in place.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        self.key == other.key
            && self.subset == other.subset
            && self.port_name == other.port_name
            && self.protocol == other.protocol
            && self.algorithm == other.algorithm
            && self.hashing == other.hashing
            && self.preference == other.preference
            && self.slow_start == other.slow_start
            && self.subset_size == other.subset_size
            && self.limits == other.limits
            && self.outlier_detection == other.outlier_detection
            && self.health_check == other.health_check
            && self.circuit_breaker == other.circuit_breaker
            && self.endpoint_breaker == other.endpoint_breaker
            && self.overload == other.overload
            && self.admission == other.admission
            && self.proxy_protocol == other.proxy_protocol
            && self.words == other.words
    }
}
