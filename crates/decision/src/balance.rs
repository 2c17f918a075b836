//! Which endpoint takes the next attempt.
//!
//! *Peak EWMA*, the default, draws two endpoints, each with the chance its weight gives it, and takes the one where the
//! request is likely to be answered sooner: average latency × requests ahead of it, its own included. Averages that are
//! close to each other count as equal, and then the one with fewer requests in flight per weight is taken: latency is
//! known by samples, requests in flight are known exactly. Endpoints that rest after a failure, or because they asked for
//! it, are passed by; see `load.rs`.
//!
//! *Least request* draws in the same way and looks at requests in flight alone.
//!
//! Both: when one endpoint has nearly all the weight, the second is drawn among the others. A tie goes to the first
//! drawn, so that an idle fleet is loaded by weight and not by position. Two choices suffice to avoid herding on one
//! endpoint when many proxies see the same numbers.
//!
//! *Random* draws one by weight.
//!
//! *Round robin* walks the smooth weighted schedule of the set with one cursor for all workers. Skipping an endpoint
//! advances the cursor like taking one, so that its neighbour does not inherit its share.
//!
//! *Ring hash* and *Maglev* go by the request's hash, see `balance/consistent.rs`.
//!
//! All prefer endpoints that are neither ejected nor tried before. When there are none, a tried one is better than an
//! ejected one, and an ejected one better than none: outlier detection never leaves a service without endpoints, but an
//! update may have removed all others. For peak EWMA one that rests is better than one that was tried.

mod consistent;
mod hash;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meshwork_base::{Rng, Tick};

use crate::endpoint::{Endpoint, EndpointSet};

#[cfg(test)]
pub(crate) use consistent::Bound;
pub(crate) use consistent::{Shape, Table, consistent};
pub(crate) use hash::{stir, xxh64};

/// How often a draw may meet an unwanted endpoint before all are looked at.
const DRAWS: usize = 3;

/// Latencies of which one is less than twice the other count as equal: logarithms differ by less than ln 2.
const ALIKE: f32 = std::f32::consts::LN_2;

/// The endpoint of this id, where nothing speaks against it.
pub(crate) fn persistent<'s>(
    set: &'s EndpointSet,
    now: Tick,
    id: u64,
    tried: &[u64],
) -> Option<&'s Arc<Endpoint>> {
    set.pickable().iter().find(|endpoint| endpoint.id == id && wanted(endpoint, now, tried))
}

/// The one of two drawn by weight that is likely to answer sooner.
pub(crate) fn peak_ewma<'s>(
    set: &'s EndpointSet,
    now: Tick,
    rng: &mut impl Rng,
    tried: &[u64],
) -> Option<&'s Arc<Endpoint>> {
    let standing = |endpoint: &Endpoint| {
        let load = &endpoint.stats.load;
        let passed_by = load.is_resting(now) || load.is_tried(now);
        (endpoint.is_ejected(now), tried.contains(&endpoint.id), passed_by)
    };
    let picked = two_choices(set, rng, standing, |a, b| answers_sooner(a, b, now))?;
    picked.stats.load.picked(now);
    Some(picked)
}

/// `a` is likely to answer sooner than `b`.
fn answers_sooner(a: &Endpoint, b: &Endpoint, now: Tick) -> bool {
    let (Some(of_a), Some(of_b)) = (a.stats.load.ln_latency(now), b.stats.load.ln_latency(now)) else {
        return load_is_less(a, b);
    };
    let difference = of_a - of_b;
    if difference.abs() < ALIKE {
        return load_is_less(a, b);
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^24 where precision matters")]
    let ahead = |of: &Endpoint| of.stats.in_flight() as f32 / of.weight.max(1) as f32 + 1.0;
    difference.exp() * ahead(a) < ahead(b)
}

/// The less loaded of two drawn by weight.
pub(crate) fn least_request<'s>(
    set: &'s EndpointSet,
    now: Tick,
    rng: &mut impl Rng,
    tried: &[u64],
) -> Option<&'s Arc<Endpoint>> {
    two_choices(set, rng, standing(now, tried), load_is_less)
}

/// `a` carries less per weight than `b`.
fn load_is_less(a: &Endpoint, b: &Endpoint) -> bool {
    let load = |x: &Endpoint, y: &Endpoint| u64::from(x.stats.in_flight()) * u64::from(y.weight.max(1));
    load(a, b) < load(b, a)
}

/// One drawn by weight.
pub(crate) fn random<'s>(
    set: &'s EndpointSet,
    now: Tick,
    rng: &mut impl Rng,
    tried: &[u64],
) -> Option<&'s Arc<Endpoint>> {
    if set.slots() <= 1 {
        return set.pickable().first();
    }
    let standing = standing(now, tried);
    if let Some(drawn) = draw(set, rng, |e| standing(e) == (false, false)) {
        return Some(drawn);
    }
    let best = best_standing(set, &standing)?;
    choose(set, rng, |e| standing(e) == best)
}

/// What speaks against an endpoint; the least is the best, and nothing is what is wanted.
fn standing(now: Tick, tried: &[u64]) -> impl Fn(&Endpoint) -> (bool, bool) {
    move |endpoint| (endpoint.is_ejected(now), tried.contains(&endpoint.id))
}

/// Two different ones of the best standing, drawn by weight where a few draws find them: the second where it is better,
/// else the first.
fn two_choices<'s, S: Ord + Default>(
    set: &'s EndpointSet,
    rng: &mut impl Rng,
    standing: impl Fn(&Endpoint) -> S,
    better: impl Fn(&Endpoint, &Endpoint) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    if set.slots() <= 1 {
        return set.pickable().first();
    }
    let wanted = |endpoint: &Endpoint| standing(endpoint) == S::default();
    let Some(first) = draw(set, rng, wanted) else {
        let best = best_standing(set, &standing)?;
        let fits = |endpoint: &Endpoint| standing(endpoint) == best;
        let first = choose(set, rng, fits)?;
        let second = choose(set, rng, |e| e.id != first.id && fits(e));
        return second.filter(|second| better(second, first)).or(Some(first));
    };
    let other = |endpoint: &Endpoint| endpoint.id != first.id && wanted(endpoint);
    let second = draw(set, rng, other).or_else(|| choose(set, rng, other));
    second.filter(|second| better(second, first)).or(Some(first))
}

/// The best standing that some endpoint has.
fn best_standing<S: Ord>(set: &EndpointSet, standing: impl Fn(&Endpoint) -> S) -> Option<S> {
    set.pickable().iter().map(|endpoint| standing(endpoint)).min()
}

/// One that fits, by weight; `None` when a few draws did not find one.
fn draw<'s>(
    set: &'s EndpointSet,
    rng: &mut impl Rng,
    fits: impl Fn(&Endpoint) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    (0..DRAWS).find_map(|_| {
        let drawn = set.slot(below(rng, set.slots()));
        fits(drawn).then_some(drawn)
    })
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
