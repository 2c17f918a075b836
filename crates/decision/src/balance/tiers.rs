//! Who is called first: priorities, then nearness. A tier is the endpoints that are called for alike.
//!
//! *Spill in proportion* (Envoy's priority levels). A tier can carry its share as long as enough of it is well: with an
//! overprovisioning factor of 1.4, down to five of seven. Below that it gets `1.4 × well / all` of the requests, the next
//! tier what is left, as far as that is well, and so on. Where all together cannot carry everything, each gets its part of
//! what there is. When a tier is well again its requests come back in the same way. Nothing has to be switched on for it.
//!
//! *Well* is who may be picked, is not ejected, whose own breaker is not open, and who does not rest after failures in a row. One failure alone moves
//! nothing: that is the balancer's business within the tier.
//!
//! *Nobody is left alone*: where a tier has nobody for a request that is well and untried, the other tiers are asked in
//! their order. A rest counts for that only in a tier in which everybody has failed more than once in a row, or rests and fails much of what
//! it gets. Else peak EWMA, which passes by whoever rests, calls one there that does not fail if all rest; and the other algorithms pass
//! nobody by, so that with them a failure changes nothing within a tier, with localities or without. In one that is left an endpoint that comes back from a rest gets one request, and its tier no
//! more before that has gone well. Rows alone would not do: a tier with too much to do fails most of what it gets, and answers well in
//! between. Nor would rests: those who fail one in two hundred by a time-out all rest for much of the time.
//!
//! *Slow is not unwell, and counts too.* Peak EWMA leaves its tier for the next one where an answer there is likely to take
//! less than half of the time. What the next tier's answers take it knows from what went there; where it has heard nothing
//! for a while, one request in [`EXPLORED`] goes to find out, and only while its own answers take long enough to matter.
//!
//! Shares are worked out anew after [`FRESH`]: they are proportions, and no decision about one request depends on them
//! being of this very moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::{Rng, Tick};
use smallvec::SmallVec;

use crate::breaker::CircuitBreaker;
use crate::endpoint::{Endpoint, EndpointSet, Exclusion, Sight};
use crate::preference::Distance;
use crate::reasons::{Outcome, Phase, Reason};
use crate::subsetting::Subsetting;

/// How long shares are taken for true.
const FRESH: Duration = Duration::from_millis(10);
/// So often one request at most goes to a tier of which nothing is known.
const EXPLORED: Duration = Duration::from_secs(1);
/// All of the requests, in the unit of shares.
pub(crate) const WHOLE: u32 = 1_000;

/// Which tier an endpoint belongs to: the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    /// As the policy's `priorities` say.
    pub priority: usize,
    /// How far away it is.
    pub distance: Distance,
}

/// A number below [`WHOLE`]: of a hash always the same, so that what is alike stays in one tier while shares last.
pub(crate) fn roll(hash: Option<u64>, rng: &mut impl Rng) -> u32 {
    match hash {
        Some(hash) => super::consistent::below_hash(hash, WHOLE),
        None => u32::try_from(rng.below(WHOLE.into())).expect("below a thousand"),
    }
}

/// Endpoints that are called for alike.
#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) rank: Rank,
    pub(crate) set: EndpointSet,
    /// Those who fail their checks included: they would have to be carried.
    members: usize,
    /// Where round robin stands.
    pub(crate) cursor: AtomicUsize,
}

/// How a tier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierState {
    /// Which it is.
    pub rank: Rank,
    /// Endpoints that are well.
    pub well: usize,
    /// All of its endpoints.
    pub members: usize,
    /// Its share of the requests, in thousandths.
    pub share: u32,
}

impl TierState {
    /// For people.
    pub(crate) fn told(&self) -> Reason {
        let Self { rank: Rank { priority, distance }, well, members, share } = *self;
        Reason {
            phase: Phase::Endpoint,
            subject: format!("priority {priority}, {}", distance.as_str()),
            outcome: Outcome::Noted,
            why: format!("{well} of {members} are well; {}.{} % of the requests", share / 10, share % 10),
        }
    }
}

/// All tiers, the first first; two at least.
#[derive(Debug)]
pub(crate) struct Tiers {
    tiers: Box<[Tier]>,
    factor: u32,
    /// Until when the shares hold, in nanoseconds of the clock.
    fresh_until: AtomicU64,
    /// Shares of each tier and all before it.
    up_to: Box<[AtomicU16]>,
    /// When a request was last sent to find out about a slower tier.
    explored: AtomicU64,
}

impl Tiers {
    /// None where there is but one.
    pub(crate) fn new(
        all: &[Arc<Endpoint>],
        sight: &Sight<'_>,
        subsetting: Option<Subsetting>,
    ) -> Option<Self> {
        let Sight { place, preference, shape, .. } = sight;
        let rank = |endpoint: &Endpoint| preference.rank(endpoint, place);
        let counts = |e: &&Arc<Endpoint>| matches!(e.excluded, None | Some(Exclusion::Unhealthy));
        let mut ranks: Vec<Rank> =
            all.iter().filter(|e| e.excluded.is_none()).map(|endpoint| rank(endpoint)).collect();
        ranks.sort_unstable();
        ranks.dedup();
        if ranks.len() < 2 {
            return None;
        }
        let tier = |of: &Rank| {
            let members: Vec<_> = all.iter().filter(counts).filter(|e| rank(e) == *of).cloned().collect();
            let (count, members) = match subsetting {
                Some(subsetting) => subsetting.of_tier(&members),
                None => (members.len(), members),
            };
            let set = EndpointSet::shaped(members, *shape);
            Tier { rank: *of, set, members: count, cursor: AtomicUsize::new(0) }
        };
        Some(Self {
            tiers: ranks.iter().map(tier).collect(),
            factor: preference.overprovisioning_factor,
            fresh_until: AtomicU64::new(0),
            up_to: ranks.iter().map(|_| AtomicU16::new(0)).collect(),
            explored: AtomicU64::new(0),
        })
    }

    /// The tier that a number below [`WHOLE`] falls to; none where nobody is well.
    pub(crate) fn at(&self, roll: u32, now: Tick, breaker: Option<&CircuitBreaker>) -> Option<usize> {
        if self.fresh_until.load(Ordering::Relaxed) <= now.as_nanos() {
            // Workers that do this at the same time come to the same result.
            let mut up_to = 0;
            for (at, share) in self.shares(now, breaker).into_iter().enumerate() {
                up_to += share;
                self.up_to[at].store(u16::try_from(up_to).unwrap_or(u16::MAX), Ordering::Relaxed);
            }
            self.fresh_until.store(now.after(FRESH).as_nanos(), Ordering::Relaxed);
        }
        self.up_to.iter().position(|up_to| roll < u32::from(up_to.load(Ordering::Relaxed)))
    }

    pub(crate) fn all(&self) -> &[Tier] {
        &self.tiers
    }

    /// A tier, then all others in their order.
    pub(crate) fn beginning_with(&self, first: usize) -> impl Iterator<Item = (usize, &Tier)> {
        let others = self.tiers.iter().enumerate().filter(move |(at, _)| *at != first);
        std::iter::once((first, &self.tiers[first])).chain(others)
    }

    fn shares(&self, now: Tick, breaker: Option<&CircuitBreaker>) -> SmallVec<[u32; 4]> {
        let health: SmallVec<[_; 4]> =
            self.tiers.iter().map(|tier| (tier.well(now, breaker), tier.members)).collect();
        shares(&health, self.factor)
    }

    /// For people and metrics.
    pub(crate) fn states(&self, now: Tick, breaker: Option<&CircuitBreaker>) -> Vec<TierState> {
        let of = |(tier, share): (&Tier, u32)| TierState {
            rank: tier.rank,
            well: tier.well(now, breaker),
            members: tier.members,
            share,
        };
        self.tiers.iter().zip(self.shares(now, breaker)).map(of).collect()
    }

    /// Whether everything can be carried by who is not ejected, whatever else is known.
    pub(crate) fn can_carry(&self, now: Tick) -> bool {
        let is_here = |endpoint: &&Arc<Endpoint>| !endpoint.is_ejected(now);
        // Who stands in another's place in a part of all counts too: more than all of a tier carry no more than everything.
        let here = |tier: &Tier| tier.set.pickable().iter().filter(is_here).count();
        let health = self.tiers.iter().map(|tier| health(here(tier), tier.members, self.factor));
        health.sum::<u32>() >= WHOLE
    }

    /// Whether this request shall go and find out about another tier. Says so once in a while.
    pub(crate) fn explores(&self, now: Tick) -> bool {
        let last = self.explored.load(Ordering::Relaxed);
        let next = Tick::from_nanos(last).after(EXPLORED);
        (last == 0 || next <= now)
            && self
                .explored
                .compare_exchange(last, now.as_nanos().max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Tier {
    fn well(&self, now: Tick, breaker: Option<&CircuitBreaker>) -> usize {
        // Who is due for its trial is well, and so is who stands in its place in a part of all.
        self.set
            .pickable()
            .iter()
            .filter(|endpoint| is_well(endpoint, now, breaker))
            .count()
            .min(self.members)
    }
}

/// `breaker`: what each endpoint's goes by. One that only observes moves nobody.
fn is_well(endpoint: &Endpoint, now: Tick, breaker: Option<&CircuitBreaker>) -> bool {
    let refuses = |policy| endpoint.stats.breaker.refuses(policy, now);
    !endpoint.is_ejected(now) && !endpoint.stats.load.fails(now) && !breaker.is_some_and(refuses)
}

/// How much a tier can carry, in thousandths; the factor is in percent.
fn health(well: usize, members: usize, factor: u32) -> u32 {
    let carried = well * factor as usize * (WHOLE as usize / 100) / members.max(1);
    // Whoever is well carries something.
    u32::try_from(carried).unwrap_or(WHOLE).clamp(u32::from(well > 0), WHOLE)
}

/// Who carries how much, in thousandths, given who is well of how many, the first tier first.
pub(crate) fn shares(tiers: &[(usize, usize)], factor: u32) -> SmallVec<[u32; 4]> {
    let healths: SmallVec<[u32; 4]> =
        tiers.iter().map(|&(well, members)| health(well, members, factor)).collect();
    let total = healths.iter().sum::<u32>().min(WHOLE);
    let mut left = WHOLE;
    let mut shares: SmallVec<[u32; 4]> = healths
        .iter()
        .map(|&health| {
            let share = (health * WHOLE).checked_div(total).unwrap_or(0).min(left);
            left -= share;
            share
        })
        .collect();
    // What rounding leaves goes to the first that carries something.
    if let Some(first) = shares.iter_mut().find(|share| **share > 0) {
        *first += left;
    }
    debug_assert_eq!(crate::invariants::shares(tiers, &shares), Ok(()));
    shares
}

#[cfg(test)]
mod tests;
