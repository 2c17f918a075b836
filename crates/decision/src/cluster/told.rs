//! Why an endpoint is picked, and the others are not: for people.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Algorithm, Cluster};
use crate::balance::{self, Regard, Tier, Tiers};
use crate::endpoint::{Endpoint, Exclusion};
use crate::health_check;
use crate::outlier;
use crate::reasons::{Outcome, Phase, Reason};

/// A regard for each tier, made once for all endpoints.
struct OfTiers<'s> {
    regards: Vec<Regard<'s>>,
    /// To which of them an endpoint belongs, by its id.
    places: BTreeMap<u64, usize>,
}

impl<'s> OfTiers<'s> {
    fn new(regard: &Regard<'s>) -> Self {
        let tiers = regard.set.tiers().map_or(&[][..], Tiers::all);
        let of = |(at, tier): (usize, &Tier)| {
            let ids: Vec<_> = tier.set.pickable().iter().map(|one| (one.id, at)).collect();
            ids
        };
        Self {
            regards: tiers.iter().map(|tier| regard.within(&tier.set)).collect(),
            places: tiers.iter().enumerate().flat_map(of).collect(),
        }
    }

    /// None where all are called for alike.
    fn of(&self, endpoint: &Endpoint) -> Option<&Regard<'s>> {
        self.places.get(&endpoint.id).map(|at| &self.regards[*at])
    }
}

impl Cluster {
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

    /// What speaks for and against one that may be picked and was not. `own`: the same of those that are called for alike with it.
    fn candidacy(
        &self,
        regard: &Regard<'_>,
        own: &Regard<'_>,
        endpoint: &Arc<Endpoint>,
    ) -> (Outcome, Cow<'static, str>) {
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
        } else if own.is_left_alone(endpoint) {
            skipped("it has asked to be left alone for a while")
        } else if self.algorithm == Algorithm::PeakEwma && endpoint.stats.load.is_resting(regard.now) {
            skipped("it rests after a failure")
        } else if regard.begun(endpoint) < balance::WHOLE {
            let percent = regard.begun(endpoint).div_ceil(10);
            (Outcome::Noted, format!("a candidate that has just begun: {percent} % of its weight").into())
        } else if own.is_halved(endpoint) {
            let why = "a candidate for half of its weight: it has asked to be left alone, and the others cannot do all its work";
            (Outcome::Noted, why.into())
        } else {
            (Outcome::Noted, "a candidate too".into())
        }
    }

    /// What speaks for and against each endpoint in view.
    pub(super) fn standings(
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
        let own = OfTiers::new(regard);
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
                    let (outcome, why) = self.candidacy(regard, own.of(endpoint).unwrap_or(regard), endpoint);
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
}
