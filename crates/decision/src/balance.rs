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
//! Where there are several priorities, zones or regions, all of this happens within one tier, see `balance/tiers.rs`.
//!
//! *Ring hash* and *Maglev* go by the request's hash, see `balance/consistent.rs`.
//!
//! All prefer endpoints that are neither ejected nor tried before. When there are none, a tried one is better than an
//! ejected one, and an ejected one better than none: outlier detection never leaves a service without endpoints, but an
//! update may have removed all others. Where fewer than half of all (or what the policy says) are left, ejections are
//! disregarded: so much trouble is everybody's, and those who are left could not carry it (Envoy's panic). For peak EWMA one that rests is better than one that was tried.

mod consistent;
mod hash;
mod regard;
mod tiers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meshwork_base::{Rng, Tick};

use crate::endpoint::{Endpoint, EndpointSet};

#[cfg(test)]
pub(crate) use consistent::Bound;
pub(crate) use consistent::{Shape, Table, consistent};
pub(crate) use hash::{stir, xxh64};
pub(crate) use regard::{Regard, Standing};
pub use tiers::{Rank, TierState};
pub(crate) use tiers::{Tiers, roll};

/// How often a draw may meet an unwanted endpoint before all are looked at.
const DRAWS: usize = 3;

/// Latencies of which one is less than twice the other count as equal: logarithms differ by less than ln 2.
const ALIKE: f32 = std::f32::consts::LN_2;

/// The endpoint of this id, where nothing speaks against it.
pub(crate) fn persistent<'s>(regard: &Regard<'s>, id: u64) -> Option<&'s Arc<Endpoint>> {
    regard.set.pickable().iter().find(|endpoint| endpoint.id == id && regard.wants(endpoint))
}

/// The one of two drawn by weight that is likely to answer sooner.
pub(crate) fn peak_ewma<'s>(regard: &Regard<'s>, rng: &mut impl Rng) -> Option<&'s Arc<Endpoint>> {
    two_choices(regard.set, rng, |e| regard.full_standing(e), |a, b| answers_sooner(a, b, regard.now))
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
    difference.exp() * ahead(a) < ahead(b)
}

/// Requests that would be answered first, the one to come included, per weight.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^24 where precision matters")]
fn ahead(of: &Endpoint) -> f32 {
    of.stats.in_flight() as f32 / of.weight.max(1) as f32 + 1.0
}

/// Of the tier after this one, where it is only farther away: an endpoint that is likely to answer in less than half the
/// time that the one picked here would take.
pub(crate) fn faster_elsewhere<'s>(
    tiers: &'s Tiers,
    at: usize,
    regard: &Regard<'s>,
    picked: &Endpoint,
    rng: &mut impl Rng,
) -> Option<&'s Arc<Endpoint>> {
    let now = regard.now;
    let own = picked.stats.load.noticeable(now)?;
    let [here, next] = tiers.all().get(at..at + 2)? else { return None };
    if here.rank.priority != next.rank.priority {
        return None;
    }
    let other = peak_ewma(&regard.within(&next.set), rng).filter(|other| regard.is_clean(other))?;
    let Some(of_other) = other.stats.load.ln_latency(now) else {
        return tiers.explores(now).then_some(other);
    };
    let difference = own - of_other;
    (difference > ALIKE && difference.exp() * ahead(picked) > 2.0 * ahead(other)).then_some(other)
}

/// The less loaded of two drawn by weight.
pub(crate) fn least_request<'s>(regard: &Regard<'s>, rng: &mut impl Rng) -> Option<&'s Arc<Endpoint>> {
    two_choices(regard.set, rng, |e| regard.standing(e), load_is_less)
}

/// `a` carries less per weight than `b`.
fn load_is_less(a: &Endpoint, b: &Endpoint) -> bool {
    let load = |x: &Endpoint, y: &Endpoint| u64::from(x.stats.in_flight()) * u64::from(y.weight.max(1));
    load(a, b) < load(b, a)
}

/// One drawn by weight.
pub(crate) fn random<'s>(regard: &Regard<'s>, rng: &mut impl Rng) -> Option<&'s Arc<Endpoint>> {
    let set = regard.set;
    if set.slots() <= 1 {
        return set.pickable().first();
    }
    if let Some(drawn) = draw(set, rng, |e| regard.wants(e)) {
        return Some(drawn);
    }
    let best = best_standing(set, |e| regard.standing(e))?;
    choose(set, rng, |e| regard.standing(e) == best)
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

/// One against which nothing speaks, where the algorithm has met another: for a hash always the same.
pub(crate) fn clean<'s>(
    regard: &Regard<'s>,
    hash: Option<u64>,
    rng: &mut impl Rng,
) -> Option<&'s Arc<Endpoint>> {
    let set = regard.set;
    if !set.pickable().iter().any(|endpoint| regard.is_clean(endpoint)) {
        return None;
    }
    match hash {
        Some(hash) => consistent::first(set, hash, |endpoint| regard.is_clean(endpoint)),
        None => choose(set, rng, |endpoint| regard.is_clean(endpoint)),
    }
}

/// The next of the schedule.
pub(crate) fn round_robin<'s>(regard: &Regard<'s>, cursor: &AtomicUsize) -> Option<&'s Arc<Endpoint>> {
    let set = regard.set;
    let slots = set.slots();
    if slots <= 1 {
        return set.pickable().first();
    }
    let mut fallback: Option<&Arc<Endpoint>> = None;
    for _ in 0..slots {
        let next = set.slot(cursor.fetch_add(1, Ordering::Relaxed) % slots);
        if regard.wants(next) {
            return Some(next);
        }
        if fallback.is_none_or(|f| regard.is_out(f) && !regard.is_out(next)) {
            fallback = Some(next);
        }
    }
    fallback
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
