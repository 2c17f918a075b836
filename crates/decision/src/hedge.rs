//! Hedging: when a request takes longer than nearly all others do, it is sent a second time, to another endpoint, and
//! the first good answer counts (Dean and Barroso, "The Tail at Scale").
//!
//! *When.* After a fixed time, or after that which so many percent of the service's answers of late did not exceed. What
//! is learnt from is the first attempt of each request that could be hedged, also of one whose second attempt was faster:
//! that one counts with the time after which it was given up. Else each hedge would take the slow ones out of what is
//! learnt from, and the time would shrink.
//!
//! *What.* What may be repeated, as far as its body is kept whole; never what is a retry of the hop before. A request is
//! hedged once at most, in its first attempt.
//!
//! *Whether.* Hedges have a budget of their own, in percent of requests, and take from the budget of retries besides, so
//! that both together stay within that one; where neither helps there are few of both. And only while nothing says that there is too much already: not with an open or
//! trying circuit breaker, not at a limit, not to an endpoint that is ejected or wants to be left alone. One that is not made
//! was refused nothing: no limit and no breaker counts it.

pub(crate) mod latencies;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Rng, Tick};

use crate::breaker::{BreakerState, RouteBreaker, Ticket};
use crate::cluster::{Cluster, Wanted};
use crate::endpoint::Endpoint;
use crate::invariants;
use crate::limits::{Limited, Permit};
use crate::outlier::Picked;
use crate::reasons::{NoReasons, Outcome, Phase, Reason, Reasons};
use crate::retry::{BudgetWindow, End, Refused, RetryBudget, Taken};

use latencies::Latencies;

/// When a second attempt is made, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgePolicy {
    /// How long the first attempt is waited for.
    pub delay: HedgeDelay,
    /// So many of a hundred requests of the last ten seconds may be hedged.
    pub budget_percent: u32,
}

/// How long the first attempt is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeDelay {
    /// So long.
    Fixed(Duration),
    /// As long as so many percent of the answers of late took at most.
    Percentile {
        /// 50 to 99.
        percent: u32,
        /// But no shorter than this.
        least: Duration,
    },
}

/// What is kept of a service whose requests are hedged.
#[derive(Debug, Default)]
pub(crate) struct Hedges {
    latencies: Latencies,
    /// Its retries are hedges.
    begun: BudgetWindow,
}

/// What is known about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgeFacts {
    /// Its method is idempotent.
    pub idempotent: bool,
    /// It is a retry of the hop before.
    pub nested: bool,
    /// It is with the endpoint of its caller's session.
    pub in_session: bool,
    /// It has no body, or all of it is kept.
    pub whole: bool,
    /// When its time is over.
    pub deadline: Option<Tick>,
}

/// Why there is no second attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoHedge {
    /// Its method is not idempotent.
    NotRepeatable,
    /// The hop before repeats it already.
    Nested,
    /// It belongs to the endpoint of its caller's session.
    Session,
    /// Its body has not come yet, or is too long to be kept.
    NotWhole,
    /// Its time would be over before.
    Deadline,
    /// The circuit breaker is open, or trying.
    Breaker,
    /// Calls are held back, since too few succeed.
    HeldBack,
    /// As much is under way as a limit allows.
    Limit,
    /// No other endpoint is well.
    NoOther,
    /// As many as may be were hedged, or repeated.
    Budget,
    /// Second attempts and retries of late did not help.
    InVain,
}

impl NoHedge {
    const fn why(self) -> &'static str {
        match self {
            Self::NotRepeatable => "its method is not idempotent",
            Self::Nested => "the request is a retry of the hop before",
            Self::Session => "it belongs to the endpoint of its caller's session",
            Self::NotWhole => "its body is not kept whole",
            Self::Deadline => "the request's time would be over before",
            Self::Breaker => "the circuit breaker is not closed",
            Self::HeldBack => "calls are held back, since too few succeed",
            Self::Limit => "as much as a limit allows is under way",
            Self::NoOther => "no other endpoint is well",
            Self::Budget => "the budget is spent",
            Self::InVain => "retries and second attempts of late did not help",
        }
    }
}

/// A request that may be hedged.
#[derive(Debug)]
pub struct Hedge {
    policy: HedgePolicy,
    cluster: Arc<Cluster>,
    /// What the calls of its route go by, too.
    route: Option<Arc<RouteBreaker>>,
    delay: Option<Duration>,
}

/// A second attempt. What it holds ends with it.
#[derive(Debug)]
pub struct Hedged {
    /// Where it goes.
    pub endpoint: Arc<Endpoint>,
    /// The circuit breaker wants to know how it ends.
    pub ticket: Option<Ticket>,
    /// So does that of its route.
    pub by_route: Option<Ticket>,
    /// Counts it among retries and requests under way.
    pub permits: (Permit, Option<Permit>),
    /// As what it was taken from the budget.
    pub(crate) taken: Taken,
}

impl Hedge {
    /// A request begins.
    ///
    /// # Errors
    /// It will not be hedged.
    pub fn begin(
        policy: &HedgePolicy,
        (cluster, route): (&Arc<Cluster>, Option<&Arc<RouteBreaker>>),
        facts: &HedgeFacts,
        now: Tick,
        reasons: &mut impl Reasons,
    ) -> Result<Self, NoHedge> {
        let may_not = match facts {
            HedgeFacts { idempotent: false, .. } => Some(NoHedge::NotRepeatable),
            HedgeFacts { nested: true, .. } => Some(NoHedge::Nested),
            HedgeFacts { in_session: true, .. } => Some(NoHedge::Session),
            HedgeFacts { .. } => None,
        };
        if let Some(no) = may_not {
            reasons.note(|| note(cluster, Outcome::Skipped, no.why().to_owned()));
            return Err(no);
        }
        let delay = match policy.delay {
            HedgeDelay::Fixed(delay) => Some(delay),
            HedgeDelay::Percentile { percent, least } => {
                let known = cluster.shared.hedges().latencies.percentile(percent, now);
                known.map(|known| known.max(least))
            }
        };
        reasons.note(|| match delay {
            Some(delay) => note(cluster, Outcome::Noted, format!("a second attempt after {delay:?}")),
            None => note(cluster, Outcome::Skipped, "too few answers of late are known".to_owned()),
        });
        Ok(Self { policy: *policy, cluster: Arc::clone(cluster), route: route.cloned(), delay })
    }

    /// How long the first attempt is waited for; `None`: it has no second one, as too little is known, and is learnt from.
    #[must_use]
    pub const fn delay(&self) -> Option<Duration> {
        self.delay
    }

    /// The time is over, and `first`, the endpoint of the first attempt, has not answered: whether there is a second one,
    /// and where. `retries` is the budget that hedges share with retries.
    ///
    /// # Errors
    /// There is none.
    pub fn admit(
        &self,
        first: Option<u64>,
        facts: &HedgeFacts,
        retries: RetryBudget,
        now: Tick,
        rng: &mut impl Rng,
        reasons: &mut impl Reasons,
    ) -> Result<Hedged, NoHedge> {
        let admitted = self.admitted(first, facts, retries, now, rng);
        reasons.note(|| match &admitted {
            Ok(hedged) => {
                let why = format!("a second attempt, at {}", hedged.endpoint.address());
                note(&self.cluster, Outcome::Chosen, why)
            }
            Err(no) => note(&self.cluster, Outcome::Refused, no.why().to_owned()),
        });
        admitted
    }

    fn admitted(
        &self,
        first: Option<u64>,
        facts: &HedgeFacts,
        retries: RetryBudget,
        now: Tick,
        rng: &mut impl Rng,
    ) -> Result<Hedged, NoHedge> {
        let cluster = &self.cluster;
        if !facts.whole {
            return Err(NoHedge::NotWhole);
        }
        let needed = cluster.fastest(now).unwrap_or_default();
        if facts.deadline.is_some_and(|deadline| deadline <= now.after(needed)) {
            return Err(NoHedge::Deadline);
        }
        let route = self.route.as_ref();
        if cluster.breaker(now).in_effect() != BreakerState::Closed
            || route.is_some_and(|route| !route.is_closed(now))
        {
            return Err(NoHedge::Breaker);
        }
        if cluster.holds_back() {
            return Err(NoHedge::HeldBack);
        }
        let tried = first.as_slice();
        let wanted = Wanted { tried, is_retry: true, ..Wanted::default() };
        let (Picked { endpoint, .. }, own) =
            cluster.may_call(now, rng, &wanted).map_err(|_| NoHedge::NoOther)?;
        let is_well = !endpoint.stats.is_out() && !endpoint.stats.is_resting(now);
        if tried.contains(&endpoint.id) || !is_well {
            return Err(NoHedge::NoOther);
        }
        let limited = |what| cluster.may_admit(what).map_err(|_| NoHedge::Limit);
        let mut repeated = limited(Limited::Retry)?;
        repeated.goes_to(&endpoint);
        let request = cluster.limits.max_requests.is_some().then(|| limited(Limited::Request)).transpose()?;
        let hedges = cluster.shared.hedges();
        let taken = cluster.shared.budget.hedge(&hedges.begun, self.policy.budget_percent, retries, now);
        let taken = taken.map_err(|refused| match refused {
            Refused::Spent => NoHedge::Budget,
            Refused::InVain => NoHedge::InVain,
        })?;
        // Last, since one that only observes may be tried by this: whoever gets the ticket tells of that.
        let tried = cluster.try_call(now, &mut NoReasons).and_then(|ticket| {
            let by_route = route.map(|route| route.try_call(now, &mut NoReasons)).transpose()?;
            Ok((ticket, by_route.flatten()))
        });
        let Ok((ticket, by_route)) = tried else {
            self.cluster.shared.budget.hedge_not_made(&hedges.begun, taken);
            return Err(NoHedge::Breaker);
        };
        let ticket = own.or(ticket);
        Ok(Hedged { endpoint, ticket, by_route, permits: (repeated, request), taken })
    }

    /// The second attempt is not made after all: nobody has seen it, and it has cost nothing.
    pub fn not_made(&self, hedged: &Hedged) {
        let shared = &self.cluster.shared;
        shared.budget.hedge_not_made(&shared.hedges().begun, hedged.taken);
    }

    /// The second attempt has ended, and was not given up: the budget learns whether it helped.
    pub fn second_ended(&self, well: bool) {
        self.cluster.shared.budget.ended(if well { End::Well } else { End::Badly });
    }

    /// It has ended without a word on the service, as when a limit of ours stood in its way: it was a second attempt, and says
    /// nothing of what such are worth.
    pub fn second_ended_silently(&self, hedged: &Hedged) {
        self.cluster.shared.budget.ended_silently(hedged.taken);
    }

    /// The first attempt has answered after this time, or was given up after it for the second one's sake.
    pub fn first_took(&self, took: Duration, now: Tick) {
        if matches!(self.policy.delay, HedgeDelay::Percentile { .. }) {
            self.cluster.shared.hedges().latencies.add(took, now);
        }
    }

    /// What must hold whenever nobody is at it.
    pub(crate) fn holds(&self, now: Tick) -> Result<(), String> {
        match self.policy.delay {
            HedgeDelay::Fixed(_) => Ok(()),
            HedgeDelay::Percentile { percent, .. } => {
                self.cluster.shared.hedges().latencies.holds(percent, now)
            }
        }
    }
}

fn note(cluster: &Cluster, outcome: Outcome, why: String) -> Reason {
    Reason { phase: Phase::Hedge, subject: cluster.key.to_string(), outcome, why }
}

/// One of two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// The one that began first.
    First,
    /// The hedge.
    Second,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// An answer to be passed on.
    Good,
    /// A failure, or an answer that says that its endpoint failed or has too much to do.
    Bad,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The other one is waited for.
    Wait,
    /// What became of this one became of the request; the other, if it runs, is given up.
    Wins(Leg),
}

/// Two attempts of one request at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Race {
    first_ended: bool,
    second: Second,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Second {
    #[default]
    NotBegun,
    Running,
    Ended,
}

impl Race {
    /// Whether a second attempt may begin: once, and while the first one runs.
    #[must_use]
    pub fn may_begin(&self) -> bool {
        !self.first_ended && self.second == Second::NotBegun
    }

    /// It does.
    pub fn begin(&mut self) {
        debug_assert!(self.may_begin(), "a request is hedged once, while its first attempt runs");
        self.second = Second::Running;
    }

    /// There will be none.
    pub fn renounce(&mut self) {
        if self.second == Second::NotBegun {
            self.second = Second::Ended;
        }
    }

    /// Whether two attempts run.
    #[must_use]
    pub fn both_run(&self) -> bool {
        self.runs(Leg::First) && self.runs(Leg::Second)
    }

    pub(crate) fn runs(self, leg: Leg) -> bool {
        match leg {
            Leg::First => !self.first_ended,
            Leg::Second => self.second == Second::Running,
        }
    }

    /// One of them has ended. Of two that ended badly it is the first one's end that counts.
    pub fn ended(&mut self, leg: Leg, reply: Reply) -> Verdict {
        debug_assert!(self.runs(leg), "an attempt ends once, after it began");
        let other = match leg {
            Leg::First => {
                self.first_ended = true;
                Leg::Second
            }
            Leg::Second => {
                self.second = Second::Ended;
                Leg::First
            }
        };
        let verdict = match reply {
            Reply::Good => Verdict::Wins(leg),
            Reply::Bad if self.runs(other) => Verdict::Wait,
            Reply::Bad => Verdict::Wins(Leg::First),
        };
        debug_assert_eq!(invariants::race(*self, (leg, reply), verdict), Ok(()));
        verdict
    }
}
