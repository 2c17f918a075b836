//! A breaker for the calls by one route, or by one of its rules, whichever services they go to.
//!
//! It stands beside the breakers of services and endpoints and asks none of them: a call by its route needs all their
//! words. What another breaker, a limit or the balancer refuses says nothing here, since nobody was called; so a service
//! that is held back does not hold back a route that has other backends too.
//!
//! What is attached to a route counts all calls by it together; what is attached to a rule of it, those by that rule, and
//! takes the place of the route's there.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshwork_base::Tick;

use super::forced::{ForcedBy, ForcedState};
use super::shared::{Breaker, BreakerView, Ticket, Whose};
use super::{BreakerState, CircuitBreaker};
use crate::cause::Cause;
use crate::origin::Origin;
use crate::reasons::{Outcome, Phase, Reason, Reasons};

/// The breaker of a route, or of one of its rules. What it counts outlives changes of its policy.
#[derive(Debug)]
pub struct RouteBreaker {
    /// `NAMESPACE/NAME` of an HTTPRoute, with `/RULE` behind it where it is that of a rule.
    pub name: Arc<str>,
    /// The policy that says it.
    pub origin: Arc<Origin>,
    /// When it opens, and for how long.
    pub policy: CircuitBreaker,
    pub(super) shared: Arc<Breaker>,
}

/// Two are the same only if they count together.
impl PartialEq for RouteBreaker {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
            && (&self.name, &self.origin, &self.policy) == (&other.name, &other.origin, &other.policy)
    }
}

impl Eq for RouteBreaker {}

impl RouteBreaker {
    /// Lets a call through, or not. The ticket says how it ended; there is none where nobody wants to know.
    ///
    /// # Errors
    /// It is open, or enough trials are under way.
    pub fn try_call(
        self: &Arc<Self>,
        now: Tick,
        reasons: &mut impl Reasons,
    ) -> Result<Option<Ticket>, Cause> {
        let admitted = self.shared.decide(Some(&self.policy), || Whose::Route(Arc::clone(self)), now);
        if admitted.is_err() {
            self.shared.refuse();
        }
        reasons.note(|| Reason {
            phase: Phase::Breaker,
            subject: self.to_string(),
            outcome: if admitted.is_ok() { Outcome::Noted } else { Outcome::Refused },
            why: self.view(now).told(now),
        });
        admitted
    }

    /// Whether a call that was answered may be repeated; no trial begins.
    ///
    /// # Errors
    /// It may not: what was answered is passed on.
    pub fn may_repeat(&self, now: Tick, reasons: &mut impl Reasons) -> Result<(), Cause> {
        let may = self.shared.would_admit(Some(&self.policy), now);
        reasons.notes(|| {
            may.is_err().then(|| Reason {
                phase: Phase::Breaker,
                subject: self.to_string(),
                outcome: Outcome::Refused,
                why: self.view(now).told(now),
            })
        });
        may
    }

    /// One that no policy says.
    #[cfg(test)]
    pub(crate) fn of_test(policy: CircuitBreaker) -> Arc<Self> {
        let origin = Arc::new(Origin::from_message(None));
        Arc::new(Self { name: "ns/r".into(), origin, policy, shared: Arc::default() })
    }

    /// How it stands at this moment.
    #[must_use]
    pub fn view(&self, now: Tick) -> BreakerView {
        self.shared.view(Some(&self.policy), now)
    }

    /// Whether it lets every call through.
    #[must_use]
    pub fn is_closed(&self, now: Tick) -> bool {
        self.view(now).in_effect() == BreakerState::Closed
    }

    /// Who keeps it open now, if it is not the rates that do.
    #[must_use]
    pub fn forced_open(&self, now: Tick) -> Option<ForcedBy> {
        self.shared.forced_open(Some(&self.policy), now)
    }

    /// An operator forces states, each until its time, whatever policy and rates say: what goes first is first; none: no
    /// longer.
    pub fn force(&self, forced: impl IntoIterator<Item = (ForcedState, Tick)>) {
        self.shared.forced.set(forced);
    }
}

impl std::fmt::Display for RouteBreaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HTTPRoute {}", self.name)
    }
}

/// All breakers of routes and rules, by name.
#[derive(Debug, Default)]
pub(crate) struct RouteBreakers(BTreeMap<Arc<str>, Arc<RouteBreaker>>);

impl RouteBreakers {
    /// Those that policies say, with what the same ones counted before: route, rule (empty: the route's own), who says
    /// it, and what.
    pub(crate) fn new<'p>(
        said: impl Iterator<Item = (&'p str, &'p str, &'p Arc<Origin>, CircuitBreaker)>,
        before: &Self,
    ) -> Self {
        let made = said.map(|(route, rule, origin, policy)| {
            let name = named(route, rule);
            let shared = before.0.get(&name).map(|known| Arc::clone(&known.shared)).unwrap_or_default();
            let breaker =
                RouteBreaker { name: Arc::clone(&name), origin: Arc::clone(origin), policy, shared };
            (name, Arc::new(breaker))
        });
        Self(made.collect())
    }

    /// That of a rule.
    pub(crate) fn of(&self, route: &str, rule: &str) -> Option<&Arc<RouteBreaker>> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&named(route, rule)).or_else(|| self.0.get(route))
    }

    pub(crate) fn all(&self) -> Box<[Arc<RouteBreaker>]> {
        self.0.values().cloned().collect()
    }
}

/// A rule's name cannot be mistaken for another route's: names of objects have no slash.
fn named(route: &str, rule: &str) -> Arc<str> {
    if rule.is_empty() { route.into() } else { format!("{route}/{rule}").into() }
}

#[cfg(test)]
mod tests;
