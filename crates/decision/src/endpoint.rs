//! Endpoints: an instance's address in a service, what is known of it, and what is counted about it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use meshwork_base::{SpiffeId, Tick};
use smallvec::SmallVec;

use crate::balance::{Beginners, Begun, Kept, Shape, Shares, SlowStart, Table, Tiers, xxh64};
use crate::breaker::{Breaker, BreakerView, CircuitBreaker};
use crate::health_check::Checked;
use crate::limits::Room;
use crate::load::Load;
use crate::outlier::{EjectionCause, Standing};
use crate::preference::{Locality, Preference};
use crate::subsetting::{Part, Subsetting};

/// What the registry or the cluster says about an endpoint's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// It serves.
    Healthy,
    /// It fails its checks.
    Unhealthy,
    /// It is leaving: what runs may finish, nothing new begins.
    Draining,
    /// The registry lost sight of it and keeps it; it serves until more is known.
    Suspect,
}

/// How an endpoint is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Directly, in the application's own protocol.
    Plaintext,
    /// Through the sidecar beside it.
    Mesh {
        /// mTLS HTTP/2 for HTTP traffic.
        http: SocketAddr,
        /// HBONE for opaque TCP, where the instance can.
        hbone: Option<SocketAddr>,
        /// Who the peer must prove to be.
        spiffe_id: SpiffeId,
    },
}

/// Why an endpoint is in view but never picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exclusion {
    /// [`Health::Unhealthy`].
    Unhealthy,
    /// [`Health::Draining`].
    Draining,
    /// The service is served by named identities, and this endpoint has none of them.
    WrongIdentity,
}

/// One address of one instance in one cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in the process, and kept across updates as long as what a connection depends on (addresses, transport,
    /// identity, protocol) stays the same: connection pools may be keyed by it.
    pub id: u64,
    /// Where the application listens, the preferred address first; never empty.
    pub addresses: SmallVec<[SocketAddr; 1]>,
    /// How it is spoken to.
    pub transport: Transport,
    /// What is known of its health.
    pub health: Health,
    /// Why it is never picked, if so.
    pub excluded: Option<Exclusion>,
    /// Its share; at least 1.
    pub weight: u32,
    /// The instance's id.
    pub instance: Arc<str>,
    /// The workload's name.
    pub workload: Arc<str>,
    /// The workload's version.
    pub version: Arc<str>,
    /// The zone.
    pub zone: Arc<str>,
    /// The region.
    pub region: Arc<str>,
    /// Labels, for subsets.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The zones for which it is meant, where somebody said so.
    pub for_zones: Box<[Arc<str>]>,
    /// So many of those who call it have ejected it that it is out for everybody; 0: it is not.
    pub ejected_by: u32,
    /// Tells it apart from others, without saying who it is.
    pub fingerprint: u64,
    /// What is counted; belongs to the address and survives updates.
    pub stats: Arc<EndpointStats>,
}

impl Endpoint {
    /// The fingerprint of an instance at an address.
    pub(crate) fn fingerprint(instance: &str, address: SocketAddr) -> u64 {
        xxh64(address.to_string().as_bytes(), xxh64(instance.as_bytes(), 0))
    }

    /// The preferred address of the application.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where to connect for HTTP: the sidecar's port when there is one, the application's otherwise.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        match &self.transport {
            Transport::Plaintext => self.address(),
            Transport::Mesh { http, .. } => *http,
        }
    }

    /// Who the peer must prove to be, in the mesh.
    #[must_use]
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        match &self.transport {
            Transport::Plaintext => None,
            Transport::Mesh { spiffe_id, .. } => Some(spiffe_id),
        }
    }

    /// Counts a request on its way to this endpoint until the guard is dropped.
    #[must_use]
    pub fn begin(&self) -> InFlight {
        self.stats.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { stats: Arc::clone(&self.stats) }
    }

    /// Whether outlier detection or checks have taken it out for now: it is not picked as long as there are others.
    #[must_use]
    pub fn is_ejected(&self, now: Tick) -> bool {
        self.stats.is_ejected(now)
    }

    /// Retries on their way to it, beside the one that has its place at the endpoint of this id.
    pub(crate) fn retries_beside(&self, place: Option<u64>) -> u32 {
        self.stats.retries().saturating_sub(u32::from(place == Some(self.id)))
    }
}

/// What is counted about one address, across workers and updates. All relaxed: each number stands alone.
#[derive(Debug, Default)]
pub struct EndpointStats {
    in_flight: AtomicU32,
    /// Connections that this proxy has open.
    pub(crate) connections: AtomicU32,
    /// Requests that wait for one.
    pub(crate) pending: AtomicU32,
    /// Retries on their way to it, or with a place here during their back-off.
    pub(crate) retries: AtomicU32,
    /// Who waits for one of these to end, since there may be no more.
    pub(crate) room: Room,
    pub(crate) standing: Standing,
    pub(crate) load: Load,
    /// Why it fails its checks, where it does.
    pub(crate) check_failure: ArcSwapOption<String>,
    pub(crate) begun: Begun,
    /// Its own breaker, where a policy asks for one per endpoint.
    pub(crate) breaker: Breaker,
}

impl EndpointStats {
    /// Requests on their way to it.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Connections to it, where they count.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests that wait for a connection to it.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Retries on their way to it, or with a place here during their back-off.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.retries.load(Ordering::Relaxed)
    }

    /// What failed before says nothing of it any more: the instance behind the address has come back.
    pub(crate) fn forgive(&self) {
        self.standing.forget();
        self.load.forget();
        self.begun.anew();
        self.breaker.forget();
    }

    /// Its breaker at this moment.
    #[must_use]
    pub fn breaker(&self, policy: &CircuitBreaker, now: Tick) -> BreakerView {
        self.breaker.view(Some(policy), now)
    }

    /// The average time to the head of a response, as far as it is remembered; `None` when nothing is known.
    #[must_use]
    pub fn latency(&self, now: Tick) -> Option<Duration> {
        self.load.ln_latency(now).map(|ln| Duration::from_secs_f32(ln.exp() / 1e9))
    }

    /// Whether it rests after a failure, or has asked to be left alone.
    #[must_use]
    pub fn is_resting(&self, now: Tick) -> bool {
        self.load.is_resting(now) || self.load.wants_rest(now)
    }

    /// Failures in a row, as outlier detection counts them.
    #[must_use]
    pub fn consecutive_5xx(&self) -> u32 {
        self.standing.failures_in_a_row()
    }

    /// How often it has been ejected, less what good behaviour has taken off.
    #[must_use]
    pub fn ejections(&self) -> u32 {
        self.standing.ejections()
    }

    /// Until when nobody tries it; [`Tick::ZERO`] when it is not ejected. A time in the past: the next request that
    /// picks it is its trial, or one is under way.
    #[must_use]
    pub fn ejected_until(&self) -> Tick {
        self.standing.until()
    }

    /// Whether this proxy has an opinion of it: it has answered within this time, or is answering.
    #[must_use]
    pub fn is_called(&self, within: Duration, now: Tick) -> bool {
        self.in_flight() > 0 || self.load.has_answered(within, now)
    }

    /// What active checks say of it.
    #[must_use]
    pub fn checked(&self) -> Checked {
        self.standing.checked()
    }

    /// Why it fails its checks, where it does.
    #[must_use]
    pub fn check_failure(&self) -> Option<Arc<String>> {
        self.check_failure.load_full()
    }

    /// Whether outlier detection or checks have taken it out for now.
    #[must_use]
    pub fn is_ejected(&self, now: Tick) -> bool {
        self.standing.is_passed_by(now)
    }

    /// Whether it was ejected and no trial has gone well since.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.standing.is_out()
    }

    /// Whether it is out for everybody by what others say.
    #[must_use]
    pub fn is_out_for_all(&self) -> bool {
        self.standing.is_out_for_all()
    }

    /// Why it is out, if it is.
    #[must_use]
    pub fn ejection_cause(&self) -> Option<EjectionCause> {
        self.standing.cause()
    }
}

/// One request on its way; dropping it ends the count.
#[derive(Debug)]
pub struct InFlight {
    stats: Arc<EndpointStats>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let before = self.stats.in_flight.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a guard ends what it began");
    }
}

/// All endpoints of a cluster at one moment; replaced as a whole.
#[derive(Debug, Default)]
pub struct EndpointSet {
    all: Box<[Arc<Endpoint>]>,
    pickable: Box<[Arc<Endpoint>]>,
    /// Positions in `pickable`, each as often as its weight says, evenly spread; empty when all weights are equal.
    schedule: Box<[u32]>,
    /// Where hashes lead, for algorithms that ask.
    table: Option<Table>,
    /// Where some go first; none where all are alike.
    tiers: Option<Box<Tiers>>,
    /// Who has just begun, where that counts.
    beginners: Option<Box<Beginners>>,
    /// What it is made anew from when somebody of it is ejected, where this proxy calls a part of all.
    part: Option<Box<Part>>,
    /// Those that could be called and are not, since this proxy calls a part of all.
    beyond: Beyond,
    /// What becomes of those of it who ask to be left alone.
    pub(crate) wishes: Kept,
}

/// Endpoints that could be called and are not.
#[derive(Debug, Default)]
struct Beyond {
    count: usize,
    /// Of whom nobody said that they were out when the part was made.
    left: usize,
    /// Whom this proxy had ejected itself by then. Nobody tries them here, so each is out until its time is over.
    ejected: Box<[Arc<Endpoint>]>,
}

impl Beyond {
    fn of(all: &[Arc<Endpoint>], called: &[Arc<Endpoint>]) -> Self {
        let count = |of: &[Arc<Endpoint>]| {
            let callable = of.iter().filter(|endpoint| endpoint.excluded.is_none());
            (callable.clone().count(), callable.filter(|endpoint| endpoint.stats.standing.is_in()).count())
        };
        let (of_all, of_called) = (count(all), count(called));
        let is_here = |endpoint: &Arc<Endpoint>| called.iter().any(|one| Arc::ptr_eq(one, endpoint));
        let out = all.iter().filter(|endpoint| endpoint.excluded.is_none() && endpoint.stats.is_out());
        Self {
            count: of_all.0.saturating_sub(of_called.0),
            left: of_all.1.saturating_sub(of_called.1),
            ejected: out.filter(|endpoint| !is_here(endpoint)).cloned().collect(),
        }
    }
}

/// How a proxy sees the endpoints of a cluster.
#[derive(Debug)]
pub(crate) struct Sight<'a> {
    /// From where.
    pub(crate) place: &'a Locality,
    pub(crate) preference: &'a Arc<Preference>,
    pub(crate) shape: Option<Shape>,
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) subsetting: Option<Subsetting>,
}

/// More slots than this make a schedule coarser rather than longer.
const MAX_SCHEDULE: u64 = 4096;

impl EndpointSet {
    /// A set of these endpoints.
    #[must_use]
    pub fn new(all: Vec<Arc<Endpoint>>) -> Self {
        Self::shaped(all, None)
    }

    /// A set of these endpoints, with a table of where hashes lead.
    pub(crate) fn shaped(all: Vec<Arc<Endpoint>>, shape: Option<Shape>) -> Self {
        let pickable = all.iter().filter(|e| e.excluded.is_none()).cloned().collect();
        Self::of(all, pickable, shape)
    }

    fn of(all: Vec<Arc<Endpoint>>, pickable: Box<[Arc<Endpoint>]>, shape: Option<Shape>) -> Self {
        let weights: Vec<u32> = pickable.iter().map(|e| e.weight.max(1)).collect();
        let table = shape.map(|shape| Table::new(shape, &pickable));
        Self { all: all.into(), schedule: schedule(&weights), pickable, table, ..Self::default() }
    }

    /// A set of these endpoints as a proxy sees them.
    pub(crate) fn seen(all: Vec<Arc<Endpoint>>, sight: &Sight<'_>) -> Self {
        // A hash leads to the same endpoint from every proxy, so all must be there.
        let subsetting = sight.subsetting.filter(|_| sight.shape.is_none());
        let tiers = Tiers::new(&all, sight, subsetting).map(Box::new);
        // Hashes lead within tiers, where there are some; and where they lead does not hang on who has just begun.
        let shape = sight.shape.filter(|_| tiers.is_none());
        let slow_start = sight.slow_start.filter(|_| sight.shape.is_none());
        let beginners = slow_start.map(|policy| Box::new(Beginners::new(policy)));
        let Some(subsetting) = subsetting else {
            return Self { tiers, beginners, ..Self::shaped(all, shape) };
        };
        let called: Box<[_]> = match &tiers {
            Some(tiers) => tiers.all().iter().flat_map(|tier| tier.set.pickable()).cloned().collect(),
            None => subsetting.of(all.iter().filter(|e| e.excluded.is_none())).into_iter().cloned().collect(),
        };
        let part = Some(Box::new(Part::new(sight, subsetting)));
        let beyond = Beyond::of(&all, &called);
        Self { tiers, beginners, part, beyond, ..Self::of(all, called, shape) }
    }

    /// The same endpoints, with the part of them that this proxy calls now; none where it calls all.
    pub(crate) fn again(&self) -> Option<Self> {
        Some(Self::seen(self.all.to_vec(), &self.part.as_ref()?.sight()))
    }

    /// Whether this proxy calls a part of the endpoints.
    pub(crate) fn is_part(&self) -> bool {
        self.part.is_some()
    }

    /// Whether an endpoint may be called and this proxy calls others: it calls a part of all.
    pub(crate) fn is_beyond(&self, endpoint: &Arc<Endpoint>) -> bool {
        let here = || self.pickable.iter().any(|one| Arc::ptr_eq(one, endpoint));
        self.part.is_some() && endpoint.excluded.is_none() && !here()
    }

    /// How much of its weight each has, where somebody has less.
    pub(crate) fn shares(&self, now: Tick) -> Option<Shares> {
        self.beginners.as_ref()?.at(&self.all, now)
    }

    /// Where nobody has asked for slow start so far, those that could be called began before it is asked for.
    pub(crate) fn begun_long_ago(&self) {
        if self.beginners.is_none() {
            self.all.iter().filter(|e| e.excluded.is_none()).for_each(|e| e.stats.begun.long_ago());
        }
    }

    /// One of the endpoints is back: where that counts, it begins like a new one.
    pub(crate) fn begins(&self, endpoint: &Endpoint, now: Tick) {
        if let Some(beginners) = &self.beginners {
            beginners.begins(endpoint, now);
        }
    }

    /// Who goes first, where some do.
    pub(crate) fn tiers(&self) -> Option<&Tiers> {
        self.tiers.as_deref()
    }

    /// Whether so many are ejected that ejections are disregarded: fewer than this percentage are left, and they cannot
    /// carry everything. Of a part of the endpoints somebody is always left as long as there are others beyond it; those are
    /// counted when the part is made, which it is anew when somebody is out, or in again.
    pub(crate) fn panics(&self, now: Tick, threshold: u32) -> bool {
        let Beyond { count: mut total, mut left, ref ejected } = self.beyond;
        left += ejected.iter().filter(|endpoint| !endpoint.is_ejected(now)).count();
        for endpoint in self.pickable() {
            total += 1;
            left += usize::from(!endpoint.is_ejected(now));
        }
        100 * left < threshold as usize * total && !self.tiers().is_some_and(|tiers| tiers.can_carry(now))
    }

    /// Every endpoint in view, also those that are never picked.
    #[must_use]
    pub fn all(&self) -> &[Arc<Endpoint>] {
        &self.all
    }

    /// Those that could be called, ejected ones included, whether or not this proxy calls a part of them. What may be ejected
    /// is a share of these.
    pub(crate) fn callable(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.all.iter().filter(|endpoint| endpoint.excluded.is_none())
    }

    /// Those that may be picked, ejected ones included; a part of all that could be, where this proxy calls a part.
    #[must_use]
    pub fn pickable(&self) -> &[Arc<Endpoint>] {
        &self.pickable
    }

    /// Where hashes lead, if somebody asks.
    pub(crate) fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }

    /// The number of slots over which a picker walks or draws.
    pub(crate) fn slots(&self) -> usize {
        if self.schedule.is_empty() { self.pickable.len() } else { self.schedule.len() }
    }

    /// The endpoint of a slot below [`Self::slots`].
    pub(crate) fn slot(&self, slot: usize) -> &Arc<Endpoint> {
        match self.schedule.get(slot) {
            Some(&position) => &self.pickable[position as usize],
            None => &self.pickable[slot],
        }
    }
}

/// Smooth weighted round robin, unrolled: over one pass each position comes up as often as its weight, never bunched.
/// Equal weights need no schedule.
fn schedule(weights: &[u32]) -> Box<[u32]> {
    let Some(&first) = weights.first() else { return Box::default() };
    if weights.iter().all(|&w| w == first) {
        return Box::default();
    }
    let divisor = weights.iter().fold(0, |a, &b| gcd(a, u64::from(b)));
    let total: u64 = weights.iter().map(|&w| u64::from(w) / divisor).sum();
    let shares: Vec<i64> = weights
        .iter()
        .map(|&w| {
            let share = u64::from(w) / divisor;
            // Coarser beyond the bound, but nobody with a weight falls out.
            let share = if total > MAX_SCHEDULE { (share * MAX_SCHEDULE / total).max(1) } else { share };
            i64::try_from(share).expect("a share is at most a 32-bit weight")
        })
        .collect();
    let total: i64 = shares.iter().sum();
    let mut current = vec![0i64; shares.len()];
    (0..total)
        .map(|_| {
            let mut best = 0;
            for (i, share) in shares.iter().enumerate() {
                current[i] += share;
                if current[i] > current[best] {
                    best = i;
                }
            }
            current[best] -= total;
            u32::try_from(best).expect("fewer than 2^32 endpoints")
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_schedule_is_nginx_s_smooth_order() {
        assert_eq!(&*schedule(&[5, 1, 1]), &[0, 0, 1, 0, 2, 0, 0]);
        assert!(schedule(&[3, 3, 3]).is_empty(), "equal weights need none");
        assert!(schedule(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn every_weight_gets_its_share(weights in prop::collection::vec(1u32..2000, 2..12)) {
            let schedule = schedule(&weights);
            prop_assume!(!schedule.is_empty());
            let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            for (i, &w) in weights.iter().enumerate() {
                let got = schedule.iter().filter(|&&p| p as usize == i).count();
                let want = f64::from(w) / total * schedule.len() as f64;
                prop_assert!(got >= 1);
                prop_assert!((got as f64 - want).abs() <= 1.0 + want * 0.01, "{got} for {want}");
            }
        }
    }

    #[test]
    fn a_guard_counts_until_it_is_dropped() {
        let endpoint = crate::tests::endpoint(1, 1);
        let (a, b) = (endpoint.begin(), endpoint.begin());
        assert_eq!(endpoint.stats.in_flight(), 2);
        drop(a);
        drop(b);
        assert_eq!(endpoint.stats.in_flight(), 0);
    }
}
