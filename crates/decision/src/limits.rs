//! Limits of a service: how much may be under way at once, across all workers of the process.
//!
//! A permit is taken by adding first and looking then: what is over the limit is taken back. So a limit is never
//! exceeded; two that come at the very edge together may both be refused, which errs on the side of the limit. Connections
//! are not added first: whoever waits for one is called once, and must not be refused because of one that is refused too.
//! Counting goes on where no limit is set, so that a limit that comes later starts from the truth. Whoever waits for a
//! connection is called when one ends, see `limits/room.rs`.

mod room;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::cause::Cause;
use crate::cluster::ClusterShared;
use crate::endpoint::{Endpoint, EndpointStats};
pub use room::AwaitedRoom;
pub(crate) use room::{Room, is_raised};

/// Requests that wait for a connection to a service where no policy says how many may.
const DEFAULT_PENDING: u32 = 4_096;

/// What a policy limits; absent: the default, see [`Limited::default_limit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections to all endpoints together.
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests under way.
    pub max_requests: Option<u32>,
    /// Retries under way.
    pub max_retries: Option<u32>,
    /// Connections to any one endpoint.
    pub max_connections_per_endpoint: Option<u32>,
    /// Requests that wait for a connection to any one endpoint: others are called first.
    pub max_pending_requests_per_endpoint: Option<u32>,
    /// Requests under way to any one endpoint: others are called first.
    pub max_requests_per_endpoint: Option<u32>,
    /// Retries under way to any one endpoint: others are called first.
    pub max_retries_per_endpoint: Option<u32>,
}

impl Limits {
    /// How much of this may be under way, as the policy says.
    #[must_use]
    pub fn of(&self, what: Limited) -> Option<u32> {
        match what {
            Limited::Connection => self.max_connections,
            Limited::Pending => self.max_pending_requests,
            Limited::Request => self.max_requests,
            Limited::Retry => self.max_retries,
        }
    }

    /// How much of this may be under way, also where no policy says it.
    #[must_use]
    pub fn in_force(&self, what: Limited) -> Option<u32> {
        self.of(what).or(what.default_limit())
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limited {
    /// An open connection.
    Connection,
    /// A request that waits for a connection.
    Pending,
    /// A request under way, its retries included.
    Request,
    /// A retry under way.
    Retry,
}

impl Limited {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Connection, Self::Pending, Self::Request, Self::Retry];

    /// What holds where no policy says it: a line that nobody bounds is memory that nobody bounds. Everything else is
    /// unlimited until somebody says so, as in Istio; who sets Envoy's 1,024 finds out under load.
    #[must_use]
    pub const fn default_limit(self) -> Option<u32> {
        match self {
            Self::Pending => Some(DEFAULT_PENDING),
            Self::Connection | Self::Request | Self::Retry => None,
        }
    }

    /// As policies name its limit.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "maxConnections",
            Self::Pending => "maxPendingRequests",
            Self::Request => "maxRequests",
            Self::Retry => "maxRetries",
        }
    }

    /// The cause when its limit is reached.
    #[must_use]
    pub const fn cause(self) -> Cause {
        match self {
            Self::Connection => Cause::MaxConnections,
            Self::Pending => Cause::MaxPendingRequests,
            Self::Request => Cause::MaxRequests,
            Self::Retry => Cause::MaxRetries,
        }
    }
}

/// How much is under way, how often more was refused, and how many have waited for a connection since there was a limit.
#[derive(Debug, Default)]
pub(crate) struct Usage([AtomicU32; 4], [AtomicU64; 4], AtomicU64);

impl Usage {
    pub(crate) fn get(&self, what: Limited) -> u32 {
        self.0[what as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count_refused(&self, what: Limited) {
        self.1[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, what: Limited) -> u64 {
        self.1[what as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count_waiting(&self) {
        self.2.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn waited(&self) -> u64 {
        self.2.load(Ordering::Relaxed)
    }
}

/// The limits of connections in force, also for connections that were made, and for those who wait, under others. 0: none.
#[derive(Debug, Default)]
pub(crate) struct InForce {
    of_service: AtomicU32,
    of_endpoint: AtomicU32,
}

impl InForce {
    /// From now on these; true: there may be more connections than before.
    pub(crate) fn set(&self, limits: &Limits) -> bool {
        let limits = [
            (&self.of_service, limits.max_connections),
            (&self.of_endpoint, limits.max_connections_per_endpoint),
        ];
        let raised = limits.map(|(limit, new)| {
            let before = limit.swap(new.unwrap_or(0), Ordering::Relaxed);
            before != 0 && new.is_none_or(|new| new > before)
        });
        raised.contains(&true)
    }

    fn of_service(&self) -> Option<u32> {
        some(self.of_service.load(Ordering::Relaxed))
    }

    fn of_endpoint(&self) -> Option<u32> {
        some(self.of_endpoint.load(Ordering::Relaxed))
    }
}

/// A limit as it is kept where 0 stands for none.
fn some(limit: u32) -> Option<u32> {
    (limit > 0).then_some(limit)
}

/// How much more there is than a limit allows.
#[inline]
fn beyond(count: &AtomicU32, limit: &AtomicU32) -> u32 {
    match limit.load(Ordering::Relaxed) {
        0 => 0,
        limit => count.load(Ordering::Relaxed).saturating_sub(limit),
    }
}

/// Something under way; dropping it ends the count.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<ClusterShared>,
    what: Limited,
    /// The endpoint that a retry is at, or has a place at until it goes somewhere.
    at: Option<(u64, Arc<EndpointStats>)>,
}

impl Permit {
    /// # Errors
    /// The cause when the limit is reached.
    pub(crate) fn take(shared: &Arc<ClusterShared>, limits: &Limits, what: Limited) -> Result<Self, Cause> {
        Self::free(shared, limits, what).inspect_err(|_| shared.usage.count_refused(what))
    }

    /// The same, of which a refusal is not counted: whoever waits asks more than once.
    pub(crate) fn free(shared: &Arc<ClusterShared>, limits: &Limits, what: Limited) -> Result<Self, Cause> {
        let before = shared.usage.0[what as usize].fetch_add(1, Ordering::AcqRel);
        let permit = Self { shared: Arc::clone(shared), what, at: None };
        match limits.in_force(what) {
            Some(limit) if before >= limit => Err(what.cause()),
            _ => Ok(permit),
        }
    }

    /// A connection of the service, of which a refusal is not counted.
    fn connection(shared: &Arc<ClusterShared>) -> Option<Self> {
        let what = Limited::Connection;
        let is_within = add_within(&shared.usage.0[what as usize], shared.in_force.of_service());
        is_within.then(|| Self { shared: Arc::clone(shared), what, at: None })
    }

    /// The retry goes to this endpoint, and is at none that it was at before.
    pub fn goes_to(&mut self, endpoint: &Endpoint) {
        debug_assert_eq!(self.what, Limited::Retry, "nothing else is counted so");
        endpoint.stats.retries.fetch_add(1, Ordering::Relaxed);
        self.is_at(endpoint);
    }

    /// The retry has a place at this endpoint, if fewer are than may be.
    pub(crate) fn has_place_at(&mut self, endpoint: &Endpoint, most: u32) -> bool {
        let has_place = add_within(&endpoint.stats.retries, Some(most));
        if has_place {
            self.is_at(endpoint);
        }
        has_place
    }

    /// The endpoint that the retry is at, or has a place at, by its id.
    #[must_use]
    pub fn place(&self) -> Option<u64> {
        self.at.as_ref().map(|(id, _)| *id)
    }

    fn is_at(&mut self, endpoint: &Endpoint) {
        self.leaves();
        self.at = Some((endpoint.id, Arc::clone(&endpoint.stats)));
    }

    fn leaves(&mut self) {
        if let Some((_, stats)) = self.at.take() {
            let before = stats.retries.fetch_sub(1, Ordering::Relaxed);
            debug_assert!(before > 0, "a permit ends what it began");
        }
    }
}

/// Counts one more where that is within the limit. What is refused is written too, as it was: so whoever counts down after
/// that sees what was done before, see [`Room`].
fn add_within(count: &AtomicU32, limit: Option<u32>) -> bool {
    let limit = limit.unwrap_or(u32::MAX);
    let more = |count: u32| Some(count + u32::from(count < limit));
    let (Ok(before) | Err(before)) = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
    before < limit
}

/// A connection to an endpoint; dropping it ends the count, and calls one who waits for that.
#[derive(Debug)]
pub struct ConnectionPermit {
    of_service: Option<Permit>,
    endpoint: Arc<EndpointStats>,
}

/// A request that waits for a connection to an endpoint; dropping it ends the count.
#[derive(Debug)]
pub struct PendingPermit {
    _of_service: Permit,
    endpoint: Arc<EndpointStats>,
}

impl PendingPermit {
    /// # Errors
    /// The cause when the limit of either is reached.
    pub(crate) fn take(
        shared: &Arc<ClusterShared>,
        limits: &Limits,
        endpoint: &Endpoint,
    ) -> Result<Self, Cause> {
        let of_service = Permit::take(shared, limits, Limited::Pending)?;
        let before = endpoint.stats.pending.fetch_add(1, Ordering::Relaxed);
        let permit = Self { _of_service: of_service, endpoint: Arc::clone(&endpoint.stats) };
        match limits.max_pending_requests_per_endpoint {
            Some(limit) if before >= limit => {
                shared.usage.count_refused(Limited::Pending);
                Err(Limited::Pending.cause())
            }
            _ => Ok(permit),
        }
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        let before = self.endpoint.pending.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a permit ends what it began");
    }
}

/// Why a connection may not be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionLimit {
    /// The service has as many as it may: one less to another endpoint makes room.
    Service,
    /// The endpoint has as many as it may.
    Endpoint,
}

impl ConnectionPermit {
    /// By the limits of this moment: whoever waits may have come under others. A refusal is not counted.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(crate) fn take(shared: &Arc<ClusterShared>, endpoint: &Endpoint) -> Result<Self, ConnectionLimit> {
        let of_service = Permit::connection(shared).ok_or(ConnectionLimit::Service)?;
        if add_within(&endpoint.stats.connections, shared.in_force.of_endpoint()) {
            return Ok(Self { of_service: Some(of_service), endpoint: Arc::clone(&endpoint.stats) });
        }
        drop(of_service);
        // Whoever was called meanwhile, and looked just then, had no room because of this one.
        shared.room.call_one();
        Err(ConnectionLimit::Endpoint)
    }

    /// How many connections there are beyond the limits, which have fallen since they were made.
    #[inline]
    #[must_use]
    pub fn beyond(&self) -> u32 {
        let Some(Permit { shared, .. }) = &self.of_service else { return 0 };
        let in_service = &shared.usage.0[Limited::Connection as usize];
        beyond(in_service, &shared.in_force.of_service)
            .max(beyond(&self.endpoint.connections, &shared.in_force.of_endpoint))
    }

    /// Whether somebody waits for it to end.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.endpoint.room.is_awaited()
            || self.of_service.as_ref().is_some_and(|of_service| of_service.shared.room.is_awaited())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let before = self.endpoint.connections.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a permit ends what it began");
        let Some(of_service) = self.of_service.take() else { return };
        let service = Arc::clone(&of_service.shared);
        drop(of_service);
        room::is_free(&service, &self.endpoint);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.leaves();
        let before = self.shared.usage.0[self.what as usize].fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a permit ends what it began");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::invariants;

    const ALL: [Limited; 4] = [Limited::Connection, Limited::Pending, Limited::Request, Limited::Retry];

    #[test]
    fn a_line_is_bounded_also_where_nobody_says_so() {
        let shared = Arc::default();
        let take = |what| Permit::take(&shared, &Limits::default(), what);
        let waiting: Vec<Permit> = (0..DEFAULT_PENDING).map(|_| take(Limited::Pending).unwrap()).collect();
        assert_eq!(take(Limited::Pending).unwrap_err(), Cause::MaxPendingRequests);
        assert_eq!(shared.usage.refused(Limited::Pending), 1);
        drop(waiting);
        assert!(take(Limited::Pending).is_ok());
        let others = [Limited::Connection, Limited::Request, Limited::Retry];
        let many: Vec<_> = others.into_iter().flat_map(|what| std::iter::repeat_n(what, 5_000)).collect();
        let held: Result<Vec<Permit>, Cause> = many.into_iter().map(take).collect();
        assert!(held.is_ok(), "nothing else is limited");
    }

    #[test]
    fn an_endpoint_has_a_limit_of_its_own_within_the_service_s() {
        let shared: Arc<ClusterShared> = Arc::default();
        let limits =
            Limits { max_connections: Some(3), max_connections_per_endpoint: Some(2), ..Limits::default() };
        shared.in_force.set(&limits);
        let [one, other] = [1, 2].map(|id| crate::tests::endpoint(id, 1));
        let connect = |to| ConnectionPermit::take(&shared, to);
        let first = connect(&one).unwrap();
        let _second = connect(&one).unwrap();
        assert_eq!(connect(&one).unwrap_err(), ConnectionLimit::Endpoint);
        let _third = connect(&other).unwrap();
        assert_eq!(connect(&other).unwrap_err(), ConnectionLimit::Service);
        drop(first);
        assert_eq!(shared.usage.get(Limited::Connection), 2, "what was refused is not counted");
        assert!(connect(&one).is_ok());
    }

    #[test]
    fn a_connection_knows_how_many_there_are_beyond_limits_that_have_fallen() {
        let shared: Arc<ClusterShared> = Arc::default();
        let [one, other] = [1, 2].map(|id| crate::tests::endpoint(id, 1));
        let connect = |to| ConnectionPermit::take(&shared, to).unwrap();
        let (mut of_one, of_other) = (Vec::from([0; 3].map(|_| connect(&one))), connect(&other));
        let beyond = |of: &ConnectionPermit, max_connections, max_connections_per_endpoint| {
            shared.in_force.set(&Limits {
                max_connections,
                max_connections_per_endpoint,
                ..Limits::default()
            });
            of.beyond()
        };
        assert_eq!(beyond(&of_other, None, None), 0, "nothing is limited");
        assert_eq!([&of_one[0], &of_other].map(|of| beyond(of, None, Some(1))), [2, 0], "each endpoint's");
        assert_eq!([&of_one[0], &of_other].map(|of| beyond(of, Some(3), None)), [1, 1], "the service's");
        assert_eq!(beyond(&of_one[0], Some(3), Some(1)), 2, "both: the more of them");
        of_one.pop();
        assert_eq!(beyond(&of_other, Some(3), None), 0, "as many as there may be");
    }

    #[test]
    fn those_who_wait_for_an_endpoint_have_a_limit_within_the_service_s() {
        let shared = Arc::default();
        let limits = Limits {
            max_pending_requests: Some(3),
            max_pending_requests_per_endpoint: Some(2),
            ..Limits::default()
        };
        let [one, other] = [1, 2].map(|id| crate::tests::endpoint(id, 1));
        let wait = |to| PendingPermit::take(&shared, &limits, to);
        let first = wait(&one).unwrap();
        let _second = wait(&one).unwrap();
        assert_eq!(wait(&one).unwrap_err(), Cause::MaxPendingRequests);
        let _third = wait(&other).unwrap();
        assert_eq!(wait(&other).unwrap_err(), Cause::MaxPendingRequests, "the service's");
        drop(first);
        assert_eq!((one.stats.pending(), other.stats.pending()), (1, 1), "what was refused is not counted");
        assert_eq!((shared.usage.get(Limited::Pending), shared.usage.refused(Limited::Pending)), (2, 2));
        assert!(wait(&one).is_ok());
    }

    #[test]
    fn a_limit_is_reached_and_freed_again() {
        let shared = Arc::default();
        let limits = Limits { max_requests: Some(2), ..Limits::default() };
        let first = Permit::take(&shared, &limits, Limited::Request).unwrap();
        let _second = Permit::take(&shared, &limits, Limited::Request).unwrap();
        assert_eq!(Permit::take(&shared, &limits, Limited::Request).unwrap_err(), Cause::MaxRequests);
        assert!(Permit::take(&shared, &limits, Limited::Retry).is_ok(), "each is counted apart");
        drop(first);
        assert!(Permit::take(&shared, &limits, Limited::Request).is_ok());
    }

    #[test]
    fn a_connection_that_is_refused_counts_not_even_for_a_moment() {
        let shared: Arc<ClusterShared> = Arc::default();
        let one = crate::tests::endpoint(1, 1);
        for limits in [
            Limits { max_connections: Some(1), ..Limits::default() },
            Limits { max_connections_per_endpoint: Some(1), ..Limits::default() },
        ] {
            shared.in_force.set(&limits);
            let _held = ConnectionPermit::take(&shared, &one).unwrap();
            std::thread::scope(|scope| {
                let asks = scope.spawn(|| {
                    for _ in 0..100_000 {
                        assert!(ConnectionPermit::take(&shared, &one).is_err());
                    }
                });
                while !asks.is_finished() {
                    assert_eq!(one.stats.connections(), 1, "{limits:?}");
                    let of_service = shared.usage.get(Limited::Connection);
                    assert!(of_service == 1 || limits.max_connections.is_none(), "{of_service}: {limits:?}");
                }
            });
        }
    }

    proptest! {
        /// Whatever is taken and dropped in whatever order: never over the limit, and what is counted is what is held.
        #[test]
        fn never_over_the_limit(
            max in prop::option::of(0u32..5),
            steps in prop::collection::vec((0usize..4, any::<bool>(), any::<usize>()), 0..60),
        ) {
            let shared: Arc<ClusterShared> = Arc::default();
            let limits = Limits {
                max_connections: max,
                max_pending_requests: max,
                max_requests: max,
                max_retries: max,
                ..Limits::default()
            };
            let mut held: Vec<Permit> = Vec::new();
            for (what, take, which) in steps {
                let what = ALL[what];
                if take {
                    let count = shared.usage.get(what);
                    let taken = Permit::take(&shared, &limits, what);
                    prop_assert_eq!(taken.is_ok(), max.is_none_or(|m| count < m));
                    held.extend(taken);
                } else if !held.is_empty() {
                    held.swap_remove(which % held.len());
                }
                for what in ALL {
                    let count = held.iter().filter(|p| p.what == what).count();
                    let limit = limits.in_force(what);
                    prop_assert_eq!(invariants::limit(limit, shared.usage.get(what), count), Ok(()));
                }
            }
        }
    }
}
