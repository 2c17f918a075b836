//! What a pick goes by, beside numbers.

use std::cell::Cell;

use meshwork_base::{Rng, Tick};

use super::consistent::below_hash;
use super::slow_start::Shares;
use super::tiers::WHOLE;
use super::wishes::{Heeds, Wishes};
use crate::breaker::CircuitBreaker;
use crate::endpoint::{Endpoint, EndpointSet, Transport};
use crate::limits::Limits;

/// What speaks against an endpoint, the worst first: barred, tried before, passed by (since it rests or wants to, or a request
/// would wait for a connection).
pub(crate) type Standing = (Barred, bool, bool);

/// Whether an endpoint may have a request, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Barred {
    #[default]
    No,
    /// As many wait for a connection to it as may: where nobody else is well one may be free even so.
    Awaited,
    /// It is at its limit: where nobody else is well the request is refused, and does not go to one that is ejected.
    Full,
    /// It should not.
    Ejected,
    /// It would not take it: its own breaker is open, or it is at its limit besides being ejected.
    Closed,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub(crate) struct Regard<'s> {
    /// From whom is picked.
    pub(crate) set: &'s EndpointSet,
    pub(crate) now: Tick,
    /// Endpoints that had this request before.
    pub(crate) tried: &'s [u64],
    /// Everybody: whether ejections are disregarded depends on all.
    whole: &'s EndpointSet,
    /// In percent.
    panic_threshold: u32,
    /// Found out where somebody ejected is met: a fleet that is well pays nothing for it.
    panics: Cell<Option<bool>>,
    /// Who has less than its weight, where somebody has.
    shares: Option<Shares>,
    /// How many requests one endpoint may have under way, and how many may wait for a connection to it.
    most: Option<u32>,
    most_pending: Option<u32>,
    /// How many retries, where it is one that is picked for, and at which endpoint that has its place.
    most_retries: Option<u32>,
    place: Option<u64>,
    /// How many connections one endpoint may have, where each carries one request at a time.
    most_connections: Option<u32>,
    /// Whether somebody here has a connection to spare: found out where somebody is met who has none.
    has_room: Cell<Option<bool>>,
    /// What each endpoint's breaker goes by.
    breaker: Option<&'s CircuitBreaker>,
    /// Whether who rests, or is on trial, is passed by.
    spares: bool,
    /// Whether who has asked to be left alone is.
    heeds: Heeds,
    /// Found out where somebody is met who has asked.
    wishes: Cell<Option<Wishes>>,
}

impl<'s> Regard<'s> {
    pub(crate) fn new(set: &'s EndpointSet, now: Tick, tried: &'s [u64], panic_threshold: u32) -> Self {
        let shares = set.shares(now);
        Self {
            set,
            now,
            tried,
            whole: set,
            panic_threshold,
            panics: Cell::new(None),
            shares,
            most: None,
            most_pending: None,
            most_retries: None,
            place: None,
            most_connections: None,
            has_room: Cell::new(None),
            breaker: None,
            spares: true,
            heeds: Heeds::default(),
            wishes: Cell::new(None),
        }
    }

    /// The same, where endpoints have limits and breakers of their own.
    /// `shares`: a connection carries many requests at a time.
    pub(crate) fn within_bounds(
        mut self,
        limits: &Limits,
        shares: bool,
        breaker: Option<&'s CircuitBreaker>,
    ) -> Self {
        self.most_connections = limits.max_connections_per_endpoint.filter(|_| !shares);
        self.most = limits.max_requests_per_endpoint;
        self.most_pending = limits.max_pending_requests_per_endpoint;
        self.broken_by(breaker)
    }

    /// The same, where endpoints have breakers of their own.
    pub(crate) fn broken_by(self, breaker: Option<&'s CircuitBreaker>) -> Self {
        Self { breaker, ..self }
    }

    /// The same for a retry, which has a place at this endpoint.
    pub(crate) fn of_retry(mut self, is_retry: bool, place: Option<u64>, limits: &Limits) -> Self {
        self.most_retries = limits.max_retries_per_endpoint.filter(|_| is_retry);
        self.place = place;
        self
    }

    /// The same where who has asked to be left alone is as `heeds` says.
    pub(crate) fn heeding(self, heeds: Heeds) -> Self {
        Self { heeds, ..self }
    }

    /// Whether its own breaker is open.
    pub(crate) fn is_tripped(&self, endpoint: &Endpoint) -> bool {
        self.breaker.is_some_and(|policy| endpoint.stats.breaker.refuses(policy, self.now))
    }

    /// Whether it has as many requests under way as it may.
    pub(crate) fn is_full(&self, endpoint: &Endpoint) -> bool {
        self.most.is_some_and(|most| endpoint.stats.in_flight() >= most)
    }

    /// Whether it is a retry, of which it has as many as it may.
    pub(crate) fn is_full_of_retries(&self, endpoint: &Endpoint) -> bool {
        self.most_retries.is_some_and(|most| endpoint.retries_beside(self.place) >= most)
    }

    /// Whether as many wait for a connection to it as may.
    pub(crate) fn is_waited_for(&self, endpoint: &Endpoint) -> bool {
        self.most_pending.is_some_and(|most| endpoint.stats.pending() >= most)
    }

    /// Whether a request to it would wait for a connection, and one to another of them would not.
    pub(crate) fn is_crowded(&self, endpoint: &Endpoint) -> bool {
        self.would_wait(endpoint)
            && self.has_room.get().unwrap_or_else(|| {
                let has_room = |one: &Endpoint| !self.would_wait(one) && self.barred(one) == Barred::No;
                let somebody = self.set.pickable().iter().any(|one| has_room(one));
                self.has_room.set(Some(somebody));
                somebody
            })
    }

    /// Who may have so many connections has as many requests under way.
    fn would_wait(&self, endpoint: &Endpoint) -> bool {
        self.most_connections.is_some_and(|most| endpoint.stats.in_flight() >= most)
            && matches!(endpoint.transport, Transport::Plaintext)
    }

    /// The same for a part of the endpoints.
    pub(crate) fn within(&self, set: &'s EndpointSet) -> Self {
        Self { set, has_room: Cell::new(None), wishes: Cell::new(None), ..self.clone() }
    }

    /// The same where who rests is passed by only if `spares`.
    pub(crate) fn sparing(self, spares: bool) -> Self {
        Self { spares, ..self }
    }

    /// Whether everybody here who is in has failed more than once in a row, or rests or is on trial for a failure and fails much of
    /// what it gets. Who has too much to do answers well in between, and what has gone well ends a row and no rest; and of what answers
    /// nearly everything well all may rest at one moment.
    pub(crate) fn all_fail(&self) -> bool {
        self.set.pickable().iter().all(|one| self.fails(one) || self.is_out(one) || self.is_tripped(one))
    }

    /// The same of one.
    pub(crate) fn fails(&self, endpoint: &Endpoint) -> bool {
        let load = &endpoint.stats.load;
        load.has_failed_again() || load.is_passed_by(self.now) && load.fails_much()
    }

    /// Whether it is ejected, and that counts.
    pub(crate) fn is_out(&self, endpoint: &Endpoint) -> bool {
        endpoint.is_ejected(self.now) && !self.panics()
    }

    pub(crate) fn panics(&self) -> bool {
        self.panics.get().unwrap_or_else(|| {
            let panics = self.whole.panics(self.now, self.panic_threshold);
            self.panics.set(Some(panics));
            panics
        })
    }

    fn barred(&self, endpoint: &Endpoint) -> Barred {
        self.barred_where(endpoint, || self.is_full(endpoint) || self.is_full_of_retries(endpoint))
    }

    /// The same for a request of which one attempt is still counted at the endpoint of this id, as a retry if it is one.
    pub(crate) fn barred_without(&self, endpoint: &Endpoint, own: Option<(u64, bool)>) -> Barred {
        let own = own.filter(|(id, _)| *id == endpoint.id);
        let (request, retry) =
            (u32::from(own.is_some()), u32::from(own.is_some_and(|(_, is_retry)| is_retry)));
        let stats = &endpoint.stats;
        let is_full = || {
            self.most.is_some_and(|most| stats.in_flight() >= most.saturating_add(request))
                || self.most_retries.is_some_and(|most| stats.retries() >= most.saturating_add(retry))
        };
        self.barred_where(endpoint, is_full)
    }

    #[inline]
    fn barred_where(&self, endpoint: &Endpoint, is_full: impl FnOnce() -> bool) -> Barred {
        if self.is_tripped(endpoint) {
            return Barred::Closed;
        }
        match (is_full(), self.is_waited_for(endpoint), self.is_out(endpoint)) {
            (false, false, false) => Barred::No,
            (false, true, false) => Barred::Awaited,
            (true, _, false) => Barred::Full,
            (false, false, true) => Barred::Ejected,
            (_, _, true) => Barred::Closed,
        }
    }

    /// Whether it has asked to be left alone for a while, and is as long as there is another.
    pub(crate) fn is_left_alone(&self, endpoint: &Endpoint) -> bool {
        let load = &endpoint.stats.load;
        match self.heeds {
            Heeds::Nobody => false,
            Heeds::Everybody => load.wants_rest(self.now),
            Heeds::Bounded => load.is_unwell(self.now) && self.wishes().heeded,
        }
    }

    /// Whether it has asked for that, and gets less instead.
    pub(crate) fn is_halved(&self, endpoint: &Endpoint) -> bool {
        self.heeds == Heeds::Bounded
            && endpoint.stats.load.wants_rest(self.now)
            && self.wishes().halved
            && !self.is_left_alone(endpoint)
    }

    fn wishes(&self) -> Wishes {
        self.wishes.get().unwrap_or_else(|| {
            let wishes = self.set.wishes.at(self.now, || self.weighs_wishes());
            self.wishes.set(Some(wishes));
            wishes
        })
    }

    /// One look at each: others change meanwhile what they go by.
    fn weighs_wishes(&self) -> Wishes {
        let (mut all, mut unwell, mut asking) = (0, 0, 0);
        for one in self.set.pickable().iter().filter(|one| self.barred(one) == Barred::No) {
            let (weight, load) = (self.own_weight(one), &one.stats.load);
            all += weight;
            if load.wants_rest(self.now) {
                asking += weight;
                unwell += if load.is_unwell(self.now) { weight } else { 0 };
            }
        }
        Wishes::of(all, unwell, asking)
    }

    /// What speaks against an endpoint; the least is the best, and nothing is what is wanted.
    pub(crate) fn standing(&self, endpoint: &Endpoint) -> Standing {
        let is_passed_by = self.is_left_alone(endpoint) || self.is_crowded(endpoint);
        (self.barred(endpoint), self.tried.contains(&endpoint.id), is_passed_by)
    }

    /// The same, with what the balancer knows itself.
    pub(crate) fn full_standing(&self, endpoint: &Endpoint) -> Standing {
        let (barred, was_tried, is_passed_by) = self.standing(endpoint);
        (barred, was_tried, is_passed_by || self.spares && endpoint.stats.load.is_passed_by(self.now))
    }

    pub(crate) fn wants(&self, endpoint: &Endpoint) -> bool {
        self.standing(endpoint) == Standing::default()
    }

    /// The same where a request may wait for a connection, as one does to whom its session is with.
    pub(crate) fn keeps(&self, endpoint: &Endpoint) -> bool {
        self.barred(endpoint) == Barred::No && !self.tried.contains(&endpoint.id)
    }

    /// Thousandths of its weight that one that has begun has now.
    pub(crate) fn begun(&self, endpoint: &Endpoint) -> u32 {
        self.shares.as_ref().map_or(WHOLE, |shares| shares.of(endpoint))
    }

    /// Thousandths of its weight that an endpoint has now.
    pub(crate) fn share(&self, endpoint: &Endpoint) -> u32 {
        let begun = self.begun(endpoint);
        if self.is_halved(endpoint) { begun.div_ceil(2) } else { begun }
    }

    /// Whether somebody has less than its weight since it has begun.
    pub(crate) const fn slows(&self) -> bool {
        self.shares.is_some()
    }

    /// Whether an endpoint that was met by its weight is taken, by its share.
    pub(crate) fn takes(&self, endpoint: &Endpoint, rng: &mut impl Rng) -> bool {
        let share = self.share(endpoint);
        (share == WHOLE && !self.slows()) || rng.below(WHOLE.into()) < share.into()
    }

    /// The same by the number of a turn, so that whoever has less is left out evenly.
    pub(crate) fn has_turn(&self, endpoint: &Endpoint, turn: usize) -> bool {
        let share = self.share(endpoint);
        share == WHOLE || below_hash(turn as u64, WHOLE) < share
    }

    /// What its load is measured by: so many times [`Self::scale`] as its weight is.
    pub(crate) fn weight(&self, endpoint: &Endpoint) -> u64 {
        self.own_weight(endpoint) * if self.is_halved(endpoint) { 1 } else { 2 }
    }

    /// What an endpoint of weight 1 has.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    pub(crate) const fn scale(&self) -> f32 {
        (if self.slows() { 2 * WHOLE } else { 2 }) as f32
    }

    /// The same whatever it asks for.
    fn own_weight(&self, endpoint: &Endpoint) -> u64 {
        let weight = u64::from(endpoint.weight.max(1));
        self.shares.map_or(weight, |shares| weight * u64::from(shares.of(endpoint)))
    }

    /// Nothing at all speaks against it.
    pub(crate) fn is_clean(&self, endpoint: &Endpoint) -> bool {
        self.full_standing(endpoint) == (Barred::No, false, false)
    }
}
