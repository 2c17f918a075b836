//! What is under way to a service, and how much of it may be.

use meshwork_base::Tick;

use super::Cluster;
use crate::cause::Cause;
use crate::endpoint::Endpoint;
use crate::limits::{ConnectionLimit, ConnectionPermit, Limited, PendingPermit, Permit};

impl Cluster {
    /// Whether anybody calls it: an endpoint has answered before, or requests have come of late.
    #[must_use]
    pub fn has_traffic(&self, now: Tick) -> bool {
        self.shared.outage.has_served() || self.shared.budget.sums(now).0 > 0
    }

    /// Whether it is called these days: requests of the last ten seconds, or connections that are open.
    #[must_use]
    pub fn is_called(&self, now: Tick) -> bool {
        self.shared.budget.sums(now).0 > 0 || self.in_use(Limited::Connection) > 0
    }

    /// A request begins: the budget of retries grows by its share.
    pub fn count_request(&self, now: Tick) {
        self.shared.budget.request(now);
    }

    /// Counts something that begins, within the service's limits.
    ///
    /// # Errors
    /// The cause when its limit is reached.
    pub fn admit(&self, what: Limited) -> Result<Permit, Cause> {
        Permit::take(&self.shared, &self.limits, what)
    }

    /// The same for what nobody misses: a refusal is not counted.
    pub(crate) fn may_admit(&self, what: Limited) -> Result<Permit, Cause> {
        Permit::free(&self.shared, &self.limits, what)
    }

    /// Counts a request that waits for a connection to an endpoint, within the limits of both.
    ///
    /// # Errors
    /// The cause when a limit is reached.
    pub fn admit_pending(&self, endpoint: &Endpoint) -> Result<PendingPermit, Cause> {
        PendingPermit::take(&self.shared, &self.limits, endpoint)
    }

    /// Counts a connection to an endpoint, within the limits of both. Whoever waits then tells once by
    /// [`Self::connection_awaited`], and whoever has none in the end by [`Self::connection_refused`].
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn admit_connection(&self, endpoint: &Endpoint) -> Result<ConnectionPermit, ConnectionLimit> {
        ConnectionPermit::take(&self.shared, endpoint)
    }

    /// A limit of connections has made something wait.
    pub fn connection_awaited(&self) {
        self.shared.usage.count_waiting();
    }

    /// How often a limit of connections has made something wait.
    #[must_use]
    pub fn awaited(&self) -> u64 {
        self.shared.usage.waited()
    }

    /// Something has no connection because of a limit.
    pub fn connection_refused(&self) {
        self.shared.usage.count_refused(Limited::Connection);
    }

    /// How often a limit has refused something.
    #[must_use]
    pub fn refused(&self, what: Limited) -> u64 {
        self.shared.usage.refused(what)
    }

    /// The service's limit as people are told of it. A default shows once somebody has met it; where endpoints have a
    /// limit of their own, that is the one that was met.
    #[must_use]
    pub fn told_limit(&self, what: Limited) -> Option<u32> {
        let of_endpoints =
            what == Limited::Pending && self.limits.max_pending_requests_per_endpoint.is_some();
        let default = || self.limits.in_force(what).filter(|_| self.refused(what) > 0 && !of_endpoints);
        self.limits.of(what).or_else(default)
    }

    /// How much is under way.
    #[must_use]
    pub fn in_use(&self, what: Limited) -> u32 {
        self.shared.usage.get(what)
    }
}
