//! A cluster: one port of one service, with what must be known to send a request there.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use meshwork_base::{Rng, Tick};

use crate::admission::{AdmissionControl, Admissions};
use crate::affinity::Hashing;
use crate::balance::{self, Regard, Shape, SlowStart, Standing, TierState};
use crate::breaker::{Breaker, BreakerView, CircuitBreaker, ForcedState, Ticket};
use crate::cause::Cause;
use crate::deadline::Fastest;
use crate::endpoint::{Endpoint, EndpointSet, Exclusion};
use crate::health_check::{self, Checked, HealthCheck};
use crate::hedge::Hedges;
use crate::limits::{
    ConnectionLimit, ConnectionPermit, InForce, Limited, Limits, PendingPermit, Permit, Room, Usage,
};
use crate::load::Answer;
use crate::outage::{self, Outage};
use crate::outlier::{self, AttemptOutcome, Fleet, OutlierDetection, Picked, Shift, Trial};
use crate::overload::{Gate, Overload};
use crate::policy::ServiceWords;
use crate::preference::Preference;
use crate::proxy_protocol::ProxyVersion;
use crate::reasons::{NoReasons, Outcome, Phase, Reason, Reasons};
use crate::retry::Budget;
use crate::subset::Subset;

/// How often a call may lose its endpoint's trial to another one before it is refused.
const RACES: usize = 3;

/// A service's name: `NAMESPACE/NAME`, and its port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterKey {
    /// `NAMESPACE/NAME`.
    pub service: Arc<str>,
    /// The service's port.
    pub port: u16,
    /// A subset of its endpoints by name; empty: all of them.
    pub subset: Arc<str>,
}

impl ClusterKey {
    /// All endpoints of a port.
    #[must_use]
    pub fn whole(service: Arc<str>, port: u16) -> Self {
        Self { service, port, subset: Arc::default() }
    }

    /// As metrics and operators call it: `NAMESPACE/SERVICE`, with the subset behind it where it is one.
    #[must_use]
    pub fn named(&self) -> Arc<str> {
        match &*self.subset {
            "" => Arc::clone(&self.service),
            subset => format!("{}/{subset}", self.service).into(),
        }
    }

    /// Whether both are the same port of one service, whatever the subset.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (&self.service, self.port) == (&other.service, other.port)
    }
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            // What a reference names that does not resolve.
            0 => f.write_str(&self.named()),
            port => write!(f, "{}:{port}", self.named()),
        }
    }
}

/// What the application speaks on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

impl AppProtocol {
    /// Whether nobody looks into its connections.
    #[must_use]
    pub const fn is_opaque(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls)
    }

    /// Whether HTTP is declared, of whichever version.
    #[must_use]
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc | Self::WebSocket)
    }

    /// Whether it is HTTP/2.
    #[must_use]
    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// The one of two random ones that is likely to answer sooner.
    #[default]
    PeakEwma,
    /// The less loaded of two random ones.
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// By chance, by weight.
    Random,
    /// Where the request's hash leads on a ring of endpoints.
    RingHash,
    /// Where the request's hash leads in a table of endpoints.
    Maglev,
}

impl Algorithm {
    /// What an endpoint set must know for it.
    pub(crate) const fn shape(self) -> Option<Shape> {
        match self {
            Self::RingHash => Some(Shape::Ring),
            Self::Maglev => Some(Shape::Maglev),
            Self::PeakEwma | Self::LeastRequest | Self::RoundRobin | Self::Random => None,
        }
    }
}

/// What is known of a request when an endpoint is picked for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Endpoints that had it before, by their ids: others are preferred.
    pub tried: &'a [u64],
    /// What tells it apart for consistent hashing; without one it goes anywhere.
    pub hash: Option<u64>,
    /// The endpoint that its caller's session is with, by its id.
    pub session: Option<u64>,
    /// It counts among the service's retries.
    pub is_retry: bool,
    /// The endpoint at which that retry has a place, by its id.
    pub place: Option<u64>,
}

impl Wanted<'_> {
    /// The same for a retry, if it is one.
    #[must_use]
    pub fn of_retry(self, retry: Option<&Permit>) -> Self {
        Self { is_retry: retry.is_some(), place: retry.and_then(Permit::place), ..self }
    }
}

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

    /// Picks an endpoint, preferring ones whose id is not in `tried`; `None` when there is nothing to pick from
    /// (cause `no_healthy_upstream`).
    pub fn pick(&self, now: Tick, rng: &mut impl Rng, tried: &[u64]) -> Option<Arc<Endpoint>> {
        self.pick_explained(now, rng, &Wanted { tried, ..Wanted::default() }, &mut NoReasons)
    }

    /// [`Self::pick`], with the reasons.
    pub fn pick_explained(
        &self,
        now: Tick,
        rng: &mut impl Rng,
        wanted: &Wanted<'_>,
        reasons: &mut impl Reasons,
    ) -> Option<Arc<Endpoint>> {
        let set = self.endpoints();
        let regard = Regard::new(&set, now, wanted.tried, self.preference.panic_threshold).within_bounds(
            &self.limits,
            self.protocol.is_http2(),
            self.endpoint_breaker.as_ref(),
        );
        let regard = regard
            .of_retry(wanted.is_retry, wanted.place, &self.limits)
            // What a hash leads to stays there, as long as it may be called.
            .heeding(self.algorithm.shape().is_none());
        let persistent = wanted.session.and_then(|id| balance::persistent(&regard, id));
        let picked = persistent.or_else(|| self.balanced(&regard, wanted.hash, rng));
        if let Some(picked) = picked
            && (self.algorithm == Algorithm::PeakEwma || set.tiers().is_some())
        {
            picked.stats.load.picked(now);
        }
        reasons.notes(|| self.standings(&regard, (picked, persistent.is_some())));
        picked.cloned()
    }

    /// Picks an endpoint for an attempt. One whose ejection is over comes with its trial, which exactly one attempt has:
    /// others find somebody else as long as there is somebody.
    pub fn choose(
        &self,
        now: Tick,
        rng: &mut impl Rng,
        wanted: &Wanted<'_>,
        reasons: &mut impl Reasons,
    ) -> Option<Picked> {
        for _ in 0..self.endpoints().pickable().len() {
            let endpoint = self.pick_explained(now, rng, wanted, reasons)?;
            match Trial::claim(&endpoint, now) {
                Ok(trial) => return Some(Picked { endpoint, trial }),
                Err(_) if self.passes_nobody_by(now) => return Some(Picked { endpoint, trial: None }),
                // Somebody was quicker; now it is passed by.
                Err(_) => {}
            }
        }
        // Others were quicker each time: it serves like any other.
        let endpoint = self.pick_explained(now, rng, wanted, reasons)?;
        let trial = Trial::claim(&endpoint, now).unwrap_or_default();
        Some(Picked { endpoint, trial })
    }

    /// [`Self::choose`], where the endpoint takes the call: its breaker lets it through, and it is not at its limit. Both are
    /// passed by as long as somebody else is there; workers that come at the same moment may exceed the limit by one each.
    ///
    /// # Errors
    /// The cause: nobody is there, all are at their limit, or the breakers of all are open.
    pub fn call(
        self: &Arc<Self>,
        now: Tick,
        rng: &mut impl Rng,
        wanted: &Wanted<'_>,
        reasons: &mut impl Reasons,
    ) -> Result<(Picked, Option<Ticket>), Cause> {
        self.called(now, rng, wanted, Breaker::admit_at, reasons)
            .inspect_err(|cause| self.count_refused(*cause))
    }

    /// The same for what nobody misses: a refusal is not counted, and no breaker is tried by it.
    pub(crate) fn may_call(
        self: &Arc<Self>,
        now: Tick,
        rng: &mut impl Rng,
        wanted: &Wanted<'_>,
    ) -> Result<(Picked, Option<Ticket>), Cause> {
        self.called(now, rng, wanted, Breaker::admit_at_if_well, &mut NoReasons)
    }

    fn called(
        self: &Arc<Self>,
        now: Tick,
        rng: &mut impl Rng,
        wanted: &Wanted<'_>,
        admit: impl Fn(&Arc<Self>, &Arc<Endpoint>, Tick) -> Result<Option<Ticket>, Cause>,
        reasons: &mut impl Reasons,
    ) -> Result<(Picked, Option<Ticket>), Cause> {
        for _ in 0..RACES {
            let picked = self.choose(now, rng, wanted, reasons).ok_or(Cause::NoHealthyUpstream)?;
            let (limits, endpoint) = (&self.limits, &picked.endpoint);
            if limits.max_requests_per_endpoint.is_some_and(|most| endpoint.stats.in_flight() >= most) {
                return Err(Cause::MaxRequests);
            }
            let is_full = |most| endpoint.retries_beside(wanted.place) >= most;
            if wanted.is_retry && limits.max_retries_per_endpoint.is_some_and(is_full) {
                return Err(Cause::MaxRetries);
            }
            // Else a session leads there, or another worker was quicker: now it is passed by.
            if let Ok(ticket) = admit(self, &picked.endpoint, now) {
                return Ok((picked, ticket));
            }
        }
        Err(Cause::CircuitBreaker)
    }

    /// Whether endpoints serve though they are ejected: in panic, and where nobody else is in. A trial then goes its way
    /// beside other requests.
    fn passes_nobody_by(&self, now: Tick) -> bool {
        self.panics(now) || self.endpoints().pickable().iter().all(|endpoint| endpoint.is_ejected(now))
    }

    /// The balancer's choice; within the tier whose turn it is, where there are tiers.
    fn balanced<'s>(
        &self,
        regard: &Regard<'s>,
        hash: Option<u64>,
        rng: &mut impl Rng,
    ) -> Option<&'s Arc<Endpoint>> {
        let hash = self.algorithm.shape().map(|_| hash.unwrap_or_else(|| rng.next_u64()));
        let Some(tiers) = regard.set.tiers() else {
            return self.within(regard, &self.shared.cursor, hash, rng);
        };
        let first =
            tiers.at(balance::roll(hash, rng), regard.now, self.endpoint_breaker.as_ref()).unwrap_or(0);
        let by_latency = self.algorithm == Algorithm::PeakEwma;
        let mut best: Option<(Standing, &Arc<Endpoint>)> = None;
        for (at, tier) in tiers.beginning_with(first) {
            let within = regard.within(&tier.set);
            // For the others a failure is no reason to pass anybody by, and only that nobody here answers sends requests elsewhere.
            let spares = by_latency || within.all_fail();
            let within = within.sparing(spares);
            let Some(picked) = self.within(&within, &tier.cursor, hash, rng) else { continue };
            // One that rests sends nobody away as long as another here does not.
            let here =
                if within.is_clean(picked) { Some(picked) } else { balance::clean(&within, hash, rng) };
            if let Some(picked) = here {
                let faster = by_latency.then(|| balance::faster_elsewhere(tiers, at, regard, picked, rng));
                return faster.flatten().or(Some(picked));
            }
            let standing = regard.full_standing(picked);
            if best.is_none_or(|(least, _)| standing < least) {
                best = Some((standing, picked));
            }
        }
        best.map(|(_, picked)| picked)
    }

    fn within<'s>(
        &self,
        regard: &Regard<'s>,
        cursor: &AtomicUsize,
        hash: Option<u64>,
        rng: &mut impl Rng,
    ) -> Option<&'s Arc<Endpoint>> {
        match self.algorithm {
            Algorithm::PeakEwma => balance::peak_ewma(regard, rng),
            Algorithm::LeastRequest => balance::least_request(regard, rng),
            Algorithm::Random => balance::random(regard, rng),
            Algorithm::RoundRobin => balance::round_robin(regard, cursor),
            Algorithm::RingHash | Algorithm::Maglev => {
                let factor = self.hashing.as_ref().and_then(|hashing| hashing.balance_factor);
                balance::consistent(regard, hash.unwrap_or_default(), factor)
            }
        }
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

    /// Any endpoint that may be picked and is none of these, ejected or not: one that failed before is a better choice
    /// than those that cannot be reached right now.
    pub fn pick_beside(&self, rng: &mut impl Rng, unreached: &[u64]) -> Option<Arc<Endpoint>> {
        let set = self.endpoints();
        balance::choose(&set, rng, |endpoint| !unreached.contains(&endpoint.id)).cloned()
    }

    /// An endpoint has answered, whatever it said.
    pub fn served(&self) {
        self.shared.outage.served();
    }

    /// A request that no endpoint has seen found nobody, after so many pauses: how long it pauses before it looks again.
    /// `None` when it is not to wait: its deadline would be over, or the service has been away for too long.
    pub fn pause(
        &self,
        pauses: u32,
        deadline: Option<Tick>,
        now: Tick,
        rng: &mut impl Rng,
    ) -> Option<Duration> {
        let pause = outage::pause(pauses, rng);
        let in_time = deadline.is_none_or(|deadline| now.after(pause) < deadline);
        (in_time && self.shared.outage.may_wait(now)).then_some(pause)
    }

    /// Why the one that is picked is.
    const fn way(&self, is_persistent: bool) -> &'static str {
        match self.algorithm {
            _ if is_persistent => "picked: the caller's session is with it",
            Algorithm::PeakEwma => "picked: of two drawn by weight the one likely to answer sooner",
            Algorithm::LeastRequest => "picked: the less loaded of two drawn by weight",
            Algorithm::Random => "picked: drawn by weight",
            Algorithm::RoundRobin => "picked: the next in turn",
            Algorithm::RingHash | Algorithm::Maglev => "picked: where the request's hash leads",
        }
    }

    /// What speaks for and against one that may be picked and was not.
    fn candidacy(&self, regard: &Regard<'_>, endpoint: &Arc<Endpoint>) -> (Outcome, Cow<'static, str>) {
        let skipped = |why: &'static str| (Outcome::Skipped, why.into());
        if regard.is_tripped(endpoint) {
            skipped("its circuit breaker is open")
        } else if regard.is_full(endpoint) {
            skipped("as many requests as one endpoint may have are under way to it")
        } else if regard.is_full_of_retries(endpoint) {
            skipped("as many retries as one endpoint may have are under way to it")
        } else if regard.is_waited_for(endpoint) {
            skipped("as many requests as may wait for a connection to it")
        } else if regard.is_crowded(endpoint) {
            skipped("a request would wait for a connection to it, and not for one to another")
        } else if regard.set.is_beyond(endpoint) {
            skipped("this proxy calls a part of the endpoints, of which it is none")
        } else if regard.tried.contains(&endpoint.id) {
            skipped("it was tried before")
        } else if regard.wants_rest(endpoint) {
            skipped("it has asked to be left alone for a while")
        } else if self.algorithm == Algorithm::PeakEwma && endpoint.stats.is_resting(regard.now) {
            skipped("it rests after a failure")
        } else if regard.share(endpoint) < balance::WHOLE {
            let percent = regard.share(endpoint).div_ceil(10);
            (Outcome::Noted, format!("a candidate that has just begun: {percent} % of its weight").into())
        } else {
            (Outcome::Noted, "a candidate too".into())
        }
    }

    /// What speaks for and against each endpoint in view.
    fn standings(
        &self,
        regard: &Regard<'_>,
        (picked, is_persistent): (Option<&Arc<Endpoint>>, bool),
    ) -> Vec<Reason> {
        let (set, now) = (regard.set, regard.now);
        let reason = |subject, outcome, why: &str| Reason {
            phase: Phase::Endpoint,
            subject,
            outcome,
            why: why.to_owned(),
        };
        let how = self.way(is_persistent);
        let standing = |endpoint: &Arc<Endpoint>| {
            let out = || {
                let checks = health_check::explained(endpoint, picked);
                checks.or_else(|| outlier::explained(endpoint, picked, now))
            };
            if endpoint.excluded.is_none()
                && let Some((outcome, why)) = out()
            {
                return reason(endpoint.address().to_string(), outcome, &why);
            }
            let (outcome, why) = match endpoint.excluded {
                _ if picked.is_some_and(|picked| Arc::ptr_eq(picked, endpoint)) => (Outcome::Chosen, how),
                Some(Exclusion::Unhealthy) => (Outcome::Skipped, "it fails its health checks"),
                Some(Exclusion::Draining) => (Outcome::Skipped, "it is draining"),
                Some(Exclusion::WrongIdentity) => {
                    (Outcome::Skipped, "its identity is none that may serve this service")
                }
                None => {
                    let (outcome, why) = self.candidacy(regard, endpoint);
                    return reason(endpoint.address().to_string(), outcome, &why);
                }
            };
            reason(endpoint.address().to_string(), outcome, why)
        };
        let tiers = self.tiers(now).into_iter().map(|tier| tier.told());
        let panic = regard.panics().then(|| {
            let why = "so many are ejected that ejections are disregarded";
            reason(self.key.to_string(), Outcome::Noted, why)
        });
        let mut reasons: Vec<_> = tiers.chain(panic).chain(set.all().iter().map(standing)).collect();
        if picked.is_none() {
            let why = if set.all().is_empty() {
                "it has no endpoints"
            } else {
                "none of its endpoints may be picked"
            };
            reasons.push(reason(self.key.to_string(), Outcome::Refused, why));
        }
        reasons
    }

    /// Asks the circuit breaker whether a call may begin. The ticket says how it ended; there is none where nobody wants
    /// to know.
    ///
    /// # Errors
    /// It may not.
    pub fn try_call(
        self: &Arc<Self>,
        now: Tick,
        reasons: &mut impl Reasons,
    ) -> Result<Option<Ticket>, Cause> {
        let admitted = Breaker::admit(self, now);
        reasons.notes(|| {
            let view = self.breaker(now);
            let is_there = view.is_in_use();
            is_there.then(|| Reason {
                phase: Phase::Breaker,
                subject: self.key.to_string(),
                outcome: if admitted.is_ok() { Outcome::Noted } else { Outcome::Refused },
                why: view.told(now),
            })
        });
        admitted
    }

    /// The circuit breaker at this moment.
    #[must_use]
    pub fn breaker(&self, now: Tick) -> BreakerView {
        self.shared.breaker.view(self.circuit_breaker.as_ref(), now)
    }

    /// Calls that the circuit breaker has refused.
    #[must_use]
    pub fn refused_by_breaker(&self) -> u64 {
        self.shared.breaker.refused()
    }

    /// An operator forces states of the circuit breaker, each until its time, whatever policy and rates say: what goes first
    /// is first; none: no longer.
    pub fn force_breaker(&self, forced: impl IntoIterator<Item = (ForcedState, Tick)>) {
        self.shared.breaker.forced.set(forced);
    }

    /// A policy has gone that broke the service, or its endpoints: when one comes back, what was before says nothing.
    pub(crate) fn forget_breakers(&self, of_service: bool, of_endpoints: bool) {
        if of_service && self.circuit_breaker.is_some() {
            self.shared.breaker.forget();
        }
        if of_endpoints && self.endpoint_breaker.is_some() {
            self.endpoints().all().iter().for_each(|endpoint| endpoint.stats.breaker.forget());
        }
    }

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

    /// The fastest answer of late, if enough are known.
    #[must_use]
    pub fn fastest(&self, now: Tick) -> Option<Duration> {
        self.shared.fastest.of_late(now)
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

    /// Counts a retry from before its back-off on, within the service's limit, and at an endpoint that may have one more: which
    /// it goes to is picked later. `tried`: who had its request.
    ///
    /// # Errors
    /// The cause when a limit is reached.
    pub fn admit_retry(&self, tried: &[u64], now: Tick) -> Result<Permit, Cause> {
        let mut permit = self.admit(Limited::Retry)?;
        self.keep_place(&mut permit, tried, now).inspect_err(|cause| self.count_refused(*cause))?;
        Ok(permit)
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

    /// Tells the balancer and outlier detection what became of an attempt; ejections that this causes are returned for
    /// log and metric.
    pub fn record(&self, endpoint: &Arc<Endpoint>, answer: &Answer, now: Tick) -> Vec<Shift> {
        endpoint.stats.load.record(answer, now);
        if answer.outcome == AttemptOutcome::Success {
            self.shared.fastest.answered(answer.took, now);
            if !answer.to_repeat {
                self.shared.budget.succeeded();
            }
        }
        if let Some(policy) = &self.admission {
            self.shared.admissions.ended(policy, answer.outcome, now);
        }
        let Some(config) = &self.outlier_detection else { return Vec::new() };
        let shifts = config.record(&self.endpoints(), &self.shared.fleet, endpoint, answer, now);
        if !shifts.is_empty() {
            self.regroup();
        }
        shifts
    }

    /// An attempt was given up after this time, since another one of its request had answered. It was neither well nor
    /// badly; that it took so long the balancer learns.
    pub fn outlasted(&self, endpoint: &Endpoint, waited: Duration, now: Tick) {
        endpoint.stats.load.outlasted(waited, now);
    }

    /// The trial of an ejected endpoint has ended; what that changes is returned for log and metric. To be told before
    /// the attempt is recorded, which then counts where the endpoint is in again.
    pub fn tried(&self, trial: Trial, answer: &Answer, now: Tick) -> Option<Shift> {
        let shift = trial.ended(self.outlier_detection.as_ref(), answer, now)?;
        if shift.ejection.is_none() {
            self.endpoints().begins(&shift.endpoint, now);
            self.regroup();
        }
        Some(shift)
    }

    /// Checks have changed their mind about an endpoint that they knew.
    pub fn checked(&self, endpoint: &Endpoint, says: Checked, now: Tick) {
        if says == Checked::Healthy {
            self.endpoints().begins(endpoint, now);
        }
        self.regroup();
    }

    /// Whether this proxy calls a part of the endpoints, which changes as some are out, or in again.
    #[must_use]
    pub fn calls_a_part(&self) -> bool {
        self.endpoints().is_part()
    }

    /// Somebody is out, or in again: where this proxy calls a part of the endpoints, another takes the place, or leaves it.
    pub(crate) fn regroup(&self) {
        if self.calls_a_part() {
            self.shared.endpoints.rcu(|set| set.again().map_or_else(|| Arc::clone(set), Arc::new));
        }
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

mod again;
#[cfg(test)]
mod call_tests;
#[cfg(test)]
mod tests;
