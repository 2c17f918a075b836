//! Consistent hashing: one key leads to one endpoint, in every proxy, and a change of the endpoints moves few keys.
//!
//! *Ring hash* gives each endpoint points on a circle, in proportion to its weight; a key belongs to the next point. An
//! endpoint's points depend on itself alone, so one that comes takes keys from others and moves none between them.
//!
//! *Maglev* (Eisenbud et al., 2016) fills a table of a prime size, in which every endpoint has its share of the slots
//! almost exactly; a lookup is one access. One that comes moves a few keys between others too.
//!
//! Both are made when the endpoints change, off the data path, and belong to the endpoint set that all workers share.
//! What is ejected keeps its place: its keys go to what follows, and come back.
//!
//! *Bounded load* (Mirrokni, Thorup and Zadimoghaddam, 2018; Envoy's `hash_balance_factor`): nobody gets more than its
//! share of the requests under way times a factor. Where a key's endpoint is full, others are looked at in an order that
//! the key fixes (as Envoy does), and not the neighbour, which would be full next.

use std::sync::Arc;

use super::hash::{stir, xxh64};
use super::regard::Regard;
use crate::endpoint::{Endpoint, EndpointSet};

/// Points on the ring of an endpoint with the least weight, at least; less than twice as many at most.
const POINTS: u64 = 256;
/// So many points of all endpoints at most; beyond, each has fewer.
const MOST_POINTS: u64 = 1 << 20;
/// Envoy's table size: a prime, and hundreds of slots for each of a hundred endpoints.
const SLOTS: usize = 65_537;
/// So many of a key's other endpoints are looked at before all of them are.
const JUMPS: u64 = 8;

/// How a table is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    Ring,
    Maglev,
}

/// Where hashes lead. Positions are those of [`EndpointSet::pickable`].
#[derive(Debug)]
pub(crate) enum Table {
    /// Points in order, and whose they are.
    Ring(Box<[(u64, u32)]>),
    Maglev(Box<[u32]>),
}

impl Table {
    pub(crate) fn new(shape: Shape, endpoints: &[Arc<Endpoint>]) -> Self {
        match shape {
            Shape::Ring => Self::Ring(ring(endpoints)),
            Shape::Maglev => Self::Maglev(maglev(endpoints, SLOTS)),
        }
    }

    /// Positions from where the hash leads, around once. Each comes up at least once, whatever its weight; of more
    /// endpoints than a Maglev table has slots, some do not.
    fn from(&self, hash: u64) -> impl Iterator<Item = usize> {
        let (start, length) = match self {
            Self::Ring(points) => (points.partition_point(|(point, _)| *point < hash), points.len()),
            Self::Maglev(slots) => (below(hash, slots.len()), slots.len()),
        };
        (start..start + length).map(move |at| {
            let at = if at < length { at } else { at - length };
            match self {
                Self::Ring(points) => points[at].1 as usize,
                Self::Maglev(slots) => slots[at] as usize,
            }
        })
    }
}

/// What distinguishes an endpoint: where its connections go. Two behind sidecars may share the application's address.
fn name(endpoint: &Endpoint) -> u64 {
    xxh64(endpoint.http_address().to_string().as_bytes(), 0)
}

/// Weights in units that are a power of two and change only when the least weight doubles or halves: an endpoint's points
/// are its own business as long as that holds.
fn ring(endpoints: &[Arc<Endpoint>]) -> Box<[(u64, u32)]> {
    let weights = || endpoints.iter().map(|endpoint| u64::from(endpoint.weight.max(1)));
    let least = weights().min().unwrap_or(1);
    let mut unit = 1_u64 << least.ilog2();
    while weights().map(|weight| points(weight, unit)).sum::<u64>() > MOST_POINTS && unit < 1 << 40 {
        unit *= 2;
    }
    let mut ring: Vec<(u64, u32)> = Vec::new();
    for (position, endpoint) in (0_u32..).zip(endpoints) {
        let name = name(endpoint);
        let count = points(u64::from(endpoint.weight.max(1)), unit);
        ring.extend((0..count).map(|point| (xxh64(&point.to_le_bytes(), name), position)));
    }
    ring.sort_unstable();
    ring.into()
}

fn points(weight: u64, unit: u64) -> u64 {
    (POINTS * weight / unit).max(1)
}

/// Every endpoint has an order of preference over all slots, and they take turns in choosing; by weight, as Envoy does it:
/// whoever has had less than its share of the turns so far.
fn maglev(endpoints: &[Arc<Endpoint>], slots: usize) -> Box<[u32]> {
    const EMPTY: u32 = u32::MAX;
    struct Turn {
        /// Slots taken, times the greatest weight, over its own.
        target: u64,
        weight: u64,
        at: usize,
        skip: usize,
    }
    let greatest = endpoints.iter().map(|e| u64::from(e.weight.max(1))).max().unwrap_or(1);
    let mut turns: Vec<Turn> = endpoints
        .iter()
        .map(|endpoint| {
            let name = name(endpoint);
            Turn {
                target: 0,
                weight: u64::from(endpoint.weight.max(1)),
                at: below(name, slots),
                skip: below(stir(name), slots - 1) + 1,
            }
        })
        .collect();
    // The order of turns must not depend on who else is there, nor on how they are listed.
    let mut order: Vec<usize> = (0..endpoints.len()).collect();
    order.sort_unstable_by_key(|&position| name(&endpoints[position]));
    let mut table = vec![EMPTY; slots];
    let (mut filled, mut round) = (0, 0_u64);
    while filled < slots && !order.is_empty() {
        round += 1;
        for &position in &order {
            let turn = &mut turns[position];
            // One of the greatest weight has a turn in each round.
            if turn.weight * round < turn.target {
                continue;
            }
            turn.target += greatest;
            while table[turn.at] != EMPTY {
                turn.at = (turn.at + turn.skip) % slots;
            }
            table[turn.at] = u32::try_from(position).expect("fewer than 2^32 endpoints");
            filled += 1;
            if filled == slots {
                break;
            }
        }
    }
    table.into()
}

/// A number below a bound, evenly, for the choice of a tier: not the one that leads on within it.
pub(super) fn below_hash(hash: u64, bound: u32) -> u32 {
    u32::try_from(below(stir(hash.wrapping_add(u64::from(bound))), bound as usize))
        .expect("below a 32-bit bound")
}

/// A number below a bound, evenly.
fn below(hash: u64, bound: usize) -> usize {
    usize::try_from((u128::from(hash) * bound as u128) >> 64).expect("below a length")
}

/// The first that fits from where a hash leads. Who has no place in the table is found all the same.
pub(super) fn first(
    set: &EndpointSet,
    hash: u64,
    fits: impl Fn(&Endpoint) -> bool,
) -> Option<&Arc<Endpoint>> {
    first_of(set.table()?, set.pickable(), hash, fits)
}

fn first_of<'s>(
    table: &Table,
    endpoints: &'s [Arc<Endpoint>],
    hash: u64,
    fits: impl Fn(&Endpoint) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    let mut walk = table.from(hash).map(|position| &endpoints[position]);
    let others = || endpoints.iter().find(|endpoint| fits(endpoint));
    walk.find(|endpoint| fits(endpoint)).or_else(others)
}

/// The endpoint that a hash leads to, or the next of its endpoints that is wanted and has room. The factor is in percent.
pub(crate) fn consistent<'s>(
    regard: &Regard<'s>,
    hash: u64,
    factor: Option<u32>,
) -> Option<&'s Arc<Endpoint>> {
    let set = regard.set;
    let endpoints = set.pickable();
    if set.table().is_none() || endpoints.len() < 2 {
        return endpoints.first();
    }
    let wanted = |endpoint: &Endpoint| regard.wants(endpoint);
    let Some(home) = first(set, hash, wanted) else {
        let best = super::best_standing(set, |e| regard.standing(e))?;
        return first(set, hash, |endpoint| regard.standing(endpoint) == best);
    };
    let Some(factor) = factor else { return Some(home) };
    let bound = Bound::new(regard, factor);
    if bound.has_room(home) {
        return Some(home);
    }
    let jump = |n: u64| &endpoints[below(stir(hash.wrapping_add(n)), endpoints.len())];
    let room = |endpoint: &&Arc<Endpoint>| wanted(endpoint) && bound.has_room(endpoint);
    (1..=JUMPS).map(jump).find(room).or_else(|| {
        let start = below(stir(hash), endpoints.len());
        let around = endpoints[start..].iter().chain(&endpoints[..start]);
        around.clone().find(room).or_else(|| {
            // Only those that were tried have room: the one with the least load then.
            around
                .filter(|endpoint| wanted(endpoint))
                .min_by(|a, b| bound.fullness(a).total_cmp(&bound.fullness(b)))
        })
    })
}

/// How many requests each endpoint may have under way, the one to come included.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Of all endpoints together, times the factor.
    requests: u64,
    /// Of those that are not ejected.
    weights: u64,
}

impl Bound {
    fn new(regard: &Regard<'_>, factor: u32) -> Self {
        let endpoints = regard.set.pickable();
        let under_way: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.stats.in_flight())).sum();
        let here = endpoints.iter().filter(|endpoint| !regard.is_out(endpoint));
        let weights = here.map(|endpoint| u64::from(endpoint.weight.max(1))).sum();
        Self { requests: ((under_way + 1) * u64::from(factor)).div_ceil(100), weights }
    }

    fn of(&self, endpoint: &Endpoint) -> u64 {
        let weight = u64::from(endpoint.weight.max(1));
        (self.requests * weight).div_ceil(self.weights.max(weight)).max(1)
    }

    /// Whether it may have one more.
    pub(crate) fn has_room(&self, endpoint: &Endpoint) -> bool {
        u64::from(endpoint.stats.in_flight()) < self.of(endpoint)
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
    fn fullness(&self, endpoint: &Endpoint) -> f64 {
        f64::from(endpoint.stats.in_flight()) / self.of(endpoint) as f64
    }
}

#[cfg(test)]
mod tests;
