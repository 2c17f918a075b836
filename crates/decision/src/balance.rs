//! Which endpoint takes the next attempt.
//!
//! *Least request* draws two endpoints, each with the chance its weight gives it, and takes the one with fewer requests
//! in flight per weight; when one has nearly all the weight, the second is drawn among the others. A tie goes to the first drawn, so that an idle fleet is loaded by weight and not by position.
//! Two choices suffice to avoid herding on one endpoint when many proxies see the same numbers.
//!
//! *Round robin* walks the smooth weighted schedule of the set with one cursor for all workers. Skipping an endpoint
//! advances the cursor like taking one, so that its neighbour does not inherit its share.
//!
//! Both prefer endpoints that are neither ejected nor tried before. When there are none, a tried one is better than an
//! ejected one, and an ejected one better than none: outlier detection never leaves a service without endpoints, but an
//! update may have removed all others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meshwork_base::{Rng, Tick};

use crate::endpoint::{Endpoint, EndpointSet};

/// How often a draw may meet an unwanted endpoint before all are looked at.
const DRAWS: usize = 3;

/// The less loaded of two drawn by weight.
pub(crate) fn least_request<'s>(
    set: &'s EndpointSet,
    now: Tick,
    rng: &mut impl Rng,
    tried: &[u64],
) -> Option<&'s Arc<Endpoint>> {
    let slots = set.slots();
    if slots <= 1 {
        return set.pickable().first();
    }
    let Some(first) = draw(set, now, rng, tried, None) else { return any_wanted(set, now, rng, tried) };
    let second = draw(set, now, rng, tried, Some(first.id))
        .or_else(|| choose(set, rng, |e| e.id != first.id && wanted(e, now, tried)));
    let Some(second) = second else { return Some(first) };
    Some(if load_is_less(second, first) { second } else { first })
}

/// A wanted endpoint other than `not`, by weight; `None` when a few draws did not find one.
fn draw<'s>(
    set: &'s EndpointSet,
    now: Tick,
    rng: &mut impl Rng,
    tried: &[u64],
    not: Option<u64>,
) -> Option<&'s Arc<Endpoint>> {
    (0..DRAWS).find_map(|_| {
        let drawn = set.slot(below(rng, set.slots()));
        (Some(drawn.id) != not && wanted(drawn, now, tried)).then_some(drawn)
    })
}

/// `a` carries less per weight than `b`.
fn load_is_less(a: &Endpoint, b: &Endpoint) -> bool {
    let load = |x: &Endpoint, y: &Endpoint| u64::from(x.stats.in_flight()) * u64::from(y.weight.max(1));
    load(a, b) < load(b, a)
}

/// The next of the schedule.
pub(crate) fn round_robin<'s>(
    set: &'s EndpointSet,
    now: Tick,
    cursor: &AtomicUsize,
    tried: &[u64],
) -> Option<&'s Arc<Endpoint>> {
    let slots = set.slots();
    if slots <= 1 {
        return set.pickable().first();
    }
    let mut fallback: Option<&Arc<Endpoint>> = None;
    for _ in 0..slots {
        let next = set.slot(cursor.fetch_add(1, Ordering::Relaxed) % slots);
        if wanted(next, now, tried) {
            return Some(next);
        }
        if fallback.is_none_or(|f| f.is_ejected(now) && !next.is_ejected(now)) {
            fallback = Some(next);
        }
    }
    fallback
}

fn wanted(endpoint: &Endpoint, now: Tick, tried: &[u64]) -> bool {
    !endpoint.is_ejected(now) && !tried.contains(&endpoint.id)
}

/// A uniform choice from the best class that has members: wanted, then tried but not ejected, then any.
fn any_wanted<'s>(
    set: &'s EndpointSet,
    now: Tick,
    rng: &mut impl Rng,
    tried: &[u64],
) -> Option<&'s Arc<Endpoint>> {
    choose(set, rng, |e| wanted(e, now, tried))
        .or_else(|| choose(set, rng, |e| !e.is_ejected(now)))
        .or_else(|| choose(set, rng, |_| true))
}

/// A uniform choice among those that fit.
pub(crate) fn choose<'s>(
    set: &'s EndpointSet,
    rng: &mut impl Rng,
    fits: impl Fn(&Endpoint) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    let count = set.pickable().iter().filter(|e| fits(e)).count();
    let nth = below(rng, count);
    set.pickable().iter().filter(|e| fits(e)).nth(nth)
}

fn below(rng: &mut impl Rng, bound: usize) -> usize {
    usize::try_from(rng.below(bound as u64)).expect("below a length")
}

#[cfg(test)]
mod tests;
