//! To whom an attempt goes.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use meshwork_base::{Rng, Tick};

use super::Cluster;
use crate::balance::{self, Heeds, Regard, Shape, Standing};
use crate::breaker::{Breaker, Ticket};
use crate::cause::Cause;
use crate::endpoint::Endpoint;
use crate::limits::Permit;
use crate::outlier::{Picked, Trial};
use crate::reasons::{NoReasons, Reasons};

/// How often a call may lose its endpoint's trial to another one before it is refused.
pub(super) const RACES: usize = 3;

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

impl Cluster {
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
        let regard = regard.of_retry(wanted.is_retry, wanted.place, &self.limits).heeding(self.heeds(wanted));
        let persistent = wanted.session.and_then(|id| balance::persistent(&regard, id));
        let picked = persistent
            .or_else(|| self.finds_out(&regard, rng))
            .or_else(|| self.balanced(&regard, wanted.hash, rng));
        if let Some(picked) = picked
            && (self.algorithm == Algorithm::PeakEwma || set.tiers().is_some())
        {
            picked.stats.load.picked(now);
        }
        reasons.notes(|| self.standings(&regard, (picked, persistent.is_some())));
        picked.cloned()
    }

    const fn heeds(&self, wanted: &Wanted<'_>) -> Heeds {
        match self.algorithm.shape() {
            // What a hash leads to stays there, as long as it may be called.
            Some(_) => Heeds::Nobody,
            None if wanted.tried.is_empty() => Heeds::Bounded,
            // Repeats are few, and somebody has had it who perhaps asked for just this.
            None => Heeds::Everybody,
        }
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

    /// One that rests, now and then while requests are sent away before the service: nobody who goes on would be asked to go there
    /// as long as the others have no more to do than they may.
    fn finds_out<'s>(&self, regard: &Regard<'s>, rng: &mut impl Rng) -> Option<&'s Arc<Endpoint>> {
        let gate = self.shared.gate.get().filter(|_| {
            self.algorithm == Algorithm::PeakEwma && self.overload.is_some() && regard.tried.is_empty()
        })?;
        let payment = gate.purse().opens(regard.now)?;
        let set = regard.set.tiers().map_or(regard.set, |tiers| &tiers.all()[0].set);
        let rests = |one: &Endpoint| {
            let load = &one.stats.load;
            load.is_resting(regard.now) && !load.wants_rest(regard.now) && regard.keeps(one)
        };
        let from = |one: &Endpoint| one.stats.load.probed_from();
        let found = balance::choose(set, rng, |one| rests(one) && from(one) <= regard.now);
        let soonest = || set.pickable().iter().filter(|one| rests(one)).map(|one| from(one)).min();
        if found.is_none()
            && let Some(soonest) = soonest()
        {
            payment.waits(soonest);
            return None;
        }
        // Where nobody rests too: who begins to has not been sent away for.
        payment.pays().then_some(found).flatten().inspect(|one| one.stats.load.probes(regard.now))
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
            let here = here.or_else(|| {
                if !by_latency || within.all_fail() {
                    return None;
                }
                // Of those that nearly always answer well all may rest at one moment, and who comes then is sent nowhere else for it: to
                // one of them, and to none that does fail.
                let within = within.clone().sparing(false);
                let keeps = |one: &Endpoint| within.is_clean(one) && !within.fails(one);
                if keeps(picked) { Some(picked) } else { balance::among(&within, rng, keeps) }
            });
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

    /// Any endpoint that may be picked and is none of these, ejected or not: one that failed before is a better choice
    /// than those that cannot be reached right now.
    pub fn pick_beside(&self, rng: &mut impl Rng, unreached: &[u64]) -> Option<Arc<Endpoint>> {
        let set = self.endpoints();
        balance::choose(&set, rng, |endpoint| !unreached.contains(&endpoint.id)).cloned()
    }
}
