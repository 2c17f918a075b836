//! A request with perhaps two attempts at the same time.

use std::sync::Arc;

use meshwork_base::{Rng, Tick};

use super::engine::AttemptId;
use crate::cluster::Cluster;
use crate::hedge::{Hedge, HedgeFacts, HedgePolicy, Hedged, Leg, Race, Reply, Verdict};
use crate::invariants;
use crate::reasons::NoReasons;
use crate::retry::{AttemptFailure, RetryBudget};

/// How an attempt ended: well, or how not, and with which endpoint.
pub(super) type End = Option<(AttemptFailure, u64)>;

/// See the module's text.
pub(super) struct Hedging {
    pub(super) hedge: Hedge,
    race: Race,
    first: AttemptId,
    pub(super) second: Option<AttemptId>,
    /// What became of the first one, while the second is waited for.
    first_end: End,
}

fn facts(deadline: Tick) -> HedgeFacts {
    HedgeFacts { idempotent: true, nested: false, in_session: false, whole: true, deadline: Some(deadline) }
}

impl Hedging {
    pub(super) fn begin(
        policy: &HedgePolicy,
        cluster: &Arc<Cluster>,
        deadline: Tick,
        first: AttemptId,
        now: Tick,
    ) -> Option<Self> {
        let hedge = Hedge::begin(policy, (cluster, None), &facts(deadline), now, &mut NoReasons).ok()?;
        Some(Self { hedge, race: Race::default(), first, second: None, first_end: None })
    }

    /// The time has come for a second attempt.
    pub(super) fn admit(
        &mut self,
        tried: u64,
        deadline: Tick,
        retries: RetryBudget,
        now: Tick,
        rng: &mut impl Rng,
    ) -> Option<Hedged> {
        if !self.race.may_begin() {
            return None;
        }
        let hedged = self.hedge.admit(Some(tried), &facts(deadline), retries, now, rng, &mut NoReasons).ok();
        if hedged.is_some() {
            self.race.begin();
        } else {
            self.race.renounce();
        }
        hedged
    }

    /// An attempt has ended; what became of the request by that, or nothing yet.
    ///
    /// # Errors
    /// What does not hold.
    pub(super) fn ended(&mut self, leg: Leg, end: End) -> Result<Option<End>, String> {
        let reply = if end.is_none() { Reply::Good } else { Reply::Bad };
        if leg == Leg::Second {
            self.hedge.second_ended(end.is_none());
        }
        if leg == Leg::First {
            self.first_end = end;
        }
        let verdict = self.race.ended(leg, reply);
        invariants::race(self.race, (leg, reply), verdict)?;
        Ok(match verdict {
            Verdict::Wait => None,
            Verdict::Wins(Leg::First) => Some(self.first_end),
            Verdict::Wins(Leg::Second) => Some(None),
        })
    }

    /// The attempt that is not this one.
    pub(super) fn other(&self, leg: Leg) -> Option<AttemptId> {
        match leg {
            Leg::First => self.second,
            Leg::Second => Some(self.first),
        }
    }
}
