//! A breaker as all workers share it.
//!
//! While it is closed, a call begins by reading two words, and nobody waits for anybody when it ends: a worker that finds
//! another one counting leaves its call uncounted. Rates hardly notice. Trials are few, and each counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::{Rng, Tick};
use parking_lot::Mutex;

use super::forced::{Forced, ForcedBy, ForcedState};
use super::route::RouteBreaker;
use super::{
    Admission, BreakerCause, BreakerChange, BreakerMode, BreakerState, Call, CircuitBreaker, Machine, Tally,
};
use crate::cause::Cause;
use crate::cluster::Cluster;
use crate::endpoint::Endpoint;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    machine: Mutex<Option<Machine>>,
    /// The generation, and 1 in the lowest bit while it is not closed.
    outside: AtomicU64,
    pub(crate) forced: Forced,
    refused: AtomicU64,
    /// Calls that it has let through alone because it only observes.
    spared: AtomicU64,
}

/// A breaker at one moment, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerView {
    /// Where the rates have brought it.
    pub state: BreakerState,
    /// What brought it there; absent: it has never changed.
    pub cause: Option<BreakerCause>,
    /// When its open time is over.
    pub until: Option<Tick>,
    /// What an operator has forced, and until when.
    pub forced: Option<(ForcedState, Tick)>,
    /// What the policy says; absent: there is none, and only an operator moves it.
    pub mode: Option<BreakerMode>,
    /// Percent of its calls that may fail, or be slow, beyond those that do, until it opens; absent: rates decide nothing, or an
    /// operator has forced it.
    pub headroom: Option<u32>,
    /// Calls in its window.
    pub calls: u32,
    /// Those of them that failed.
    pub failed: u32,
    /// Those of them that were slow.
    pub slow: u32,
    /// Calls refused since it was made.
    pub refused: u64,
    /// Calls that it would have refused if it did not only observe.
    pub spared: u64,
}

impl BreakerView {
    /// Whether a policy or an operator has said anything.
    #[must_use]
    pub const fn is_in_use(&self) -> bool {
        self.mode.is_some() || self.forced.is_some()
    }

    /// The state that a call meets.
    #[must_use]
    pub fn in_effect(&self) -> BreakerState {
        match (self.forced, self.mode) {
            (Some((forced, _)), _) => forced.state(),
            (None, Some(BreakerMode::ForcedOpen)) => BreakerState::Open,
            (None, Some(BreakerMode::ForcedClosed | BreakerMode::Observe) | None) => BreakerState::Closed,
            (None, Some(BreakerMode::Enforce)) => self.state,
        }
    }

    /// The state that calls would meet, if that is another one and the policy only observes.
    #[must_use]
    pub fn observed(&self) -> Option<BreakerState> {
        let observes = self.forced.is_none() && self.mode == Some(BreakerMode::Observe);
        (observes && self.state != BreakerState::Closed).then_some(self.state)
    }

    /// In words, as explanations say it.
    #[must_use]
    pub fn told(&self, now: Tick) -> String {
        let left = |until: Tick| format!("{:.1} s", until.since(now).as_secs_f64());
        if let Some((forced, until)) = self.forced {
            return format!("an operator has forced it {} for {} more", forced.state().as_str(), left(until));
        }
        let rates = match self.until {
            Some(until) => format!("{} for {} more", self.state.as_str(), left(until)),
            None => self.state.as_str().to_owned(),
        };
        let cause = self.cause.map_or(String::new(), |cause| format!(" ({})", cause.as_str()));
        let Self { calls, failed, slow, .. } = self;
        let rates = format!("{rates}{cause}; of {calls} calls {failed} failed, {slow} were slow");
        match self.mode {
            Some(BreakerMode::ForcedOpen) => format!("its policy forces it open; it was {rates}"),
            Some(BreakerMode::ForcedClosed) => format!("its policy forces it closed; it was {rates}"),
            Some(BreakerMode::Observe) => format!("it only observes: {rates}"),
            Some(BreakerMode::Enforce) | None => rates,
        }
    }
}

/// Whose breaker it is.
#[derive(Clone, Debug)]
pub enum Whose {
    /// A service's.
    Service(Arc<Cluster>),
    /// One endpoint's of a service.
    Endpoint(Arc<Cluster>, Arc<Endpoint>),
    /// A route's, or a rule's.
    Route(Arc<RouteBreaker>),
}

impl Whose {
    fn breaker(&self) -> &Breaker {
        match self {
            Self::Service(cluster) => &cluster.shared.breaker,
            Self::Endpoint(_, endpoint) => &endpoint.stats.breaker,
            Self::Route(route) => &route.shared,
        }
    }

    /// Whether its policy only observes: nobody is refused.
    #[must_use]
    pub fn only_observes(&self) -> bool {
        self.policy().is_some_and(|policy| policy.mode == BreakerMode::Observe)
    }

    fn policy(&self) -> Option<&CircuitBreaker> {
        match self {
            Self::Service(cluster) => cluster.circuit_breaker.as_ref(),
            Self::Endpoint(cluster, _) => cluster.endpoint_breaker.as_ref(),
            Self::Route(route) => Some(&route.policy),
        }
    }
}

/// A call that was let through. Dropping it says that it ended without a word on what it went to.
#[derive(Debug)]
pub struct Ticket {
    whose: Whose,
    generation: u32,
    began: Tick,
    is_trial: bool,
    is_over: bool,
    change: Option<BreakerChange>,
}

impl Breaker {
    /// What people are told of it.
    pub(crate) fn view(&self, policy: Option<&CircuitBreaker>, now: Tick) -> BreakerView {
        let machine = self.machine.lock();
        let (tally, until) =
            machine.as_ref().map_or((Tally::default(), None), |machine| machine.numbers(now));
        let state = machine.as_ref().map_or(BreakerState::Closed, Machine::state);
        let forced = self.forced.get(now);
        BreakerView {
            state,
            // What an operator forces no rate decides.
            headroom: policy.filter(|_| forced.is_none()).and_then(|policy| policy.headroom(state, tally)),
            cause: machine.as_ref().and_then(Machine::cause),
            until,
            forced,
            mode: policy.map(|policy| policy.mode),
            calls: tally.calls,
            failed: tally.failed,
            slow: tally.slow,
            refused: self.refused(),
            spared: self.spared.load(Ordering::Relaxed),
        }
    }

    /// What it knows says nothing any more: what is behind it is another one.
    pub(crate) fn forget(&self) {
        let mut machine = self.machine.lock();
        if let Some(machine) = machine.as_mut() {
            machine.begin_anew();
            self.show(machine);
        }
    }

    /// Calls refused since it was made.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Lets a call through, or not.
    ///
    /// # Errors
    /// It is open, or enough trials are under way.
    pub(crate) fn admit(cluster: &Arc<Cluster>, now: Tick) -> Result<Option<Ticket>, Cause> {
        let policy = cluster.circuit_breaker.as_ref();
        let admitted = cluster.shared.breaker.decide(policy, || Whose::Service(Arc::clone(cluster)), now);
        if admitted.is_err() {
            cluster.shared.breaker.refuse();
        }
        admitted
    }

    /// Lets a call to an endpoint through, or not.
    ///
    /// # Errors
    /// Its breaker is open, or enough trials are under way.
    pub(crate) fn admit_at(
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        now: Tick,
    ) -> Result<Option<Ticket>, Cause> {
        let Some(policy) = &cluster.endpoint_breaker else { return Ok(None) };
        let whose = || Whose::Endpoint(Arc::clone(cluster), Arc::clone(endpoint));
        endpoint.stats.breaker.decide(Some(policy), whose, now)
    }

    /// The same for a call that tries nobody: what would be a trial is refused, and changes no state.
    ///
    /// # Errors
    /// Its breaker is not closed.
    pub(crate) fn admit_at_if_well(
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        now: Tick,
    ) -> Result<Option<Ticket>, Cause> {
        let tries = |policy| endpoint.stats.breaker.would_try(policy, now);
        match cluster.endpoint_breaker.as_ref().is_some_and(tries) {
            true => Err(Cause::CircuitBreaker),
            false => Self::admit_at(cluster, endpoint, now),
        }
    }

    /// Whether a call that begins now would try what is behind it.
    fn would_try(&self, policy: &CircuitBreaker, now: Tick) -> bool {
        matches!(policy.mode, BreakerMode::Enforce | BreakerMode::Observe)
            && self.is_tripped()
            && self.machine.lock().as_ref().is_some_and(|machine| !machine.refuses(policy, now))
    }

    /// Whether it is not closed, whoever decides: a trial may be due.
    pub(crate) fn is_tripped(&self) -> bool {
        self.outside.load(Ordering::Relaxed) & 1 == 1
    }

    /// Whether a call would be refused by this policy. A closed one is read by one word.
    pub(crate) fn refuses(&self, policy: &CircuitBreaker, now: Tick) -> bool {
        match policy.mode {
            BreakerMode::ForcedOpen => true,
            BreakerMode::ForcedClosed | BreakerMode::Observe => false,
            // Who finds another one deciding goes elsewhere.
            BreakerMode::Enforce => {
                self.is_tripped()
                    && self.machine.try_lock().is_none_or(|machine| {
                        machine.as_ref().is_some_and(|machine| machine.refuses(policy, now))
                    })
            }
        }
    }

    /// Lets a call through, or not; a refusal is not counted.
    pub(super) fn decide(
        &self,
        policy: Option<&CircuitBreaker>,
        whose: impl FnOnce() -> Whose,
        now: Tick,
    ) -> Result<Option<Ticket>, Cause> {
        match self.forced.get(now) {
            Some((ForcedState::Open, _)) => return Err(Cause::CircuitBreaker),
            Some((ForcedState::Closed, _)) => return Ok(None),
            None => {}
        }
        let Some(policy) = policy else { return Ok(None) };
        match policy.mode {
            BreakerMode::ForcedOpen => return Err(Cause::CircuitBreaker),
            BreakerMode::ForcedClosed => return Ok(None),
            BreakerMode::Enforce | BreakerMode::Observe => {}
        }
        let outside = self.outside.load(Ordering::Relaxed);
        let ticket = |generation, is_trial, change| Ticket {
            whose: whose(),
            generation,
            began: now,
            is_trial,
            is_over: false,
            change,
        };
        if outside & 1 == 0 {
            let generation = u32::try_from(outside >> 1).expect("a generation of 32 bits");
            return Ok(Some(ticket(generation, false, None)));
        }
        let mut machine = self.machine.lock();
        let machine = machine.get_or_insert_with(|| Machine::new(policy));
        let before = machine.generation();
        let admission = machine.admit(policy, now);
        self.show(machine);
        let change = machine.change_since(before);
        match admission {
            Admission::Passes => Ok(Some(ticket(machine.generation(), false, change))),
            Admission::Trial => Ok(Some(ticket(machine.generation(), true, change))),
            // Nobody is refused; what it would have done goes on without these calls.
            Admission::Refused if policy.mode == BreakerMode::Observe => {
                self.spared.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            Admission::Refused => Err(Cause::CircuitBreaker),
        }
    }

    /// Whether another call would be let through; no trial begins. A refusal is counted.
    ///
    /// # Errors
    /// It would not.
    pub(crate) fn would_admit(&self, policy: Option<&CircuitBreaker>, now: Tick) -> Result<(), Cause> {
        let refuses = match self.forced.get(now) {
            Some((forced, _)) => forced == ForcedState::Open,
            None => policy.is_some_and(|policy| self.refuses(policy, now)),
        };
        if refuses {
            self.refuse();
            return Err(Cause::CircuitBreaker);
        }
        Ok(())
    }

    /// Who keeps it open now, if it is not the rates that do.
    pub(crate) fn forced_open(&self, policy: Option<&CircuitBreaker>, now: Tick) -> Option<ForcedBy> {
        match self.forced.get(now) {
            Some((ForcedState::Open, until)) => Some(ForcedBy::Operator(until)),
            Some((ForcedState::Closed, _)) => None,
            None => policy.is_some_and(CircuitBreaker::is_forced_open).then_some(ForcedBy::Policy),
        }
    }

    /// A call was refused.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn show(&self, machine: &Machine) {
        let open = u64::from(machine.state() != BreakerState::Closed);
        self.outside.store(u64::from(machine.generation()) << 1 | open, Ordering::Relaxed);
    }
}

impl Ticket {
    /// Whether what becomes of the breaker hangs on this call, so that others wait for its end.
    #[must_use]
    pub const fn is_trial(&self) -> bool {
        self.is_trial
    }

    /// Whether a call that takes longer than this counts as a slow one, however it ends.
    #[must_use]
    pub fn takes_for_slow(&self, took: Duration) -> bool {
        self.whose.policy().is_some_and(|policy| policy.is_slow_after(took))
    }

    /// Whose breaker it is.
    #[must_use]
    pub const fn whose(&self) -> &Whose {
        &self.whose
    }

    /// The change that letting this call through was, for log and metric: the first trial begins another state.
    #[must_use]
    pub const fn change(&self) -> Option<BreakerChange> {
        self.change
    }

    /// The call has ended; a state that this changes is returned for log and metric.
    pub fn ended(mut self, call: Call, now: Tick, rng: &mut impl Rng) -> Option<(Whose, BreakerChange)> {
        self.is_over = true;
        let policy = self.whose.policy()?;
        let breaker = self.whose.breaker();
        let mut machine = match self.is_trial {
            true => breaker.machine.lock(),
            false => breaker.machine.try_lock()?,
        };
        let machine = machine.get_or_insert_with(|| Machine::new(policy));
        let before = machine.generation();
        match self.is_trial {
            true => machine.tried(policy, (self.generation, self.began), call, now, rng),
            false => machine.ended(policy, self.generation, call, now, rng),
        }
        breaker.show(machine);
        let change = machine.change_since(before)?;
        if let (Whose::Endpoint(cluster, endpoint), BreakerState::Closed) = (&self.whose, change.state) {
            cluster.endpoints().begins(endpoint, now);
        }
        Some((self.whose.clone(), change))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_over
            && self.is_trial
            && let Some(machine) = self.whose.breaker().machine.lock().as_mut()
        {
            machine.give_back(self.generation, self.began);
        }
    }
}
