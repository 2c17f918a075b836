//! Which endpoint takes the next attempt.
//!
//! *Peak EWMA*, the default, draws two endpoints, each with the chance its weight gives it, and takes the one where the
//! request is likely to be answered sooner: average latency × requests ahead of it, its own included. Averages that are
//! close to each other count as equal, and then the one with fewer requests in flight per weight is taken: latency is
//! known by samples, requests in flight are known exactly. One that was far slower when it was last heard of is taken now and then,
//! to find out, whatever has been forgotten since. Endpoints that rest after a failure are passed by; see `load.rs`.
//!
//! *Least request* draws in the same way and looks at requests in flight alone.
//!
//! Both: when one endpoint has nearly all the weight, the second is drawn among the others, by weight too. A tie goes to the first
//! drawn, so that an idle fleet is loaded by weight and not by position. Two choices suffice to avoid herding on one
//! endpoint when many proxies see the same numbers.
//!
//! *Random* draws one by weight. Where nobody is wanted, all three draw by weight among those against whom the least speaks.
//!
//! *Round robin* walks the smooth weighted schedule of the set with one cursor for all workers. Skipping an endpoint
//! advances the cursor like taking one, so that its neighbour does not inherit its share. Where nobody is wanted, those
//! against whom the least speaks take turns in the same way.
//!
//! Where there are several priorities, zones or regions, all of this happens within one tier, see `balance/tiers.rs`.
//!
//! *Ring hash* and *Maglev* go by the request's hash, see `balance/consistent.rs`.
//!
//! Where slow start is asked for, a draw takes one that has just begun by a chance that grows, see
//! `balance/slow_start.rs`.
//!
//! All but those that go by a hash heed who has asked to be left alone for a while (`Retry-After`, push-back), as far as the others can
//! do its work, see `balance/wishes.rs`: what a hash leads to has its state there.
//!
//! All prefer endpoints that are neither ejected nor tried before. When there are none, a tried one is better than an
//! ejected one, and an ejected one better than none: outlier detection never leaves a service without endpoints, but an
//! update may have removed all others. Where fewer than half of all (or what the policy says) are left, ejections are
//! disregarded: so much trouble is everybody's, and those who are left could not carry it (Envoy's panic). For peak EWMA one that rests is better than one that was tried.

mod consistent;
mod hash;
mod regard;
mod slow_start;
mod tiers;
mod wishes;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meshwork_base::Rng;

use crate::endpoint::{Endpoint, EndpointSet};
use crate::load::{ALIKE, FAR_SLOWER};

#[cfg(test)]
pub(crate) use consistent::Bound;
pub(crate) use consistent::{Shape, Table, consistent};
pub(crate) use hash::{stir, xxh64};
pub(crate) use regard::{Barred, Regard, Standing};
pub use slow_start::SlowStart;
pub(crate) use slow_start::{Beginners, Begun, Shares};
pub use tiers::{Rank, TierState};
pub(crate) use tiers::{Tier, Tiers, WHOLE, roll};
pub(crate) use wishes::{Heeds, Kept, Wishes};

/// How often a draw may meet an unwanted endpoint before all are looked at.
const DRAWS: usize = 3;

/// How many turns may be left out in a row, where some have less than their weight, before all are looked at.
const SKIPPED: usize = 32;

/// The endpoint of this id, where nothing speaks against it; also beyond the part of all that this proxy calls.
pub(crate) fn persistent<'s>(regard: &Regard<'s>, id: u64) -> Option<&'s Arc<Endpoint>> {
    let mut callable = regard.set.all().iter().filter(|endpoint| endpoint.excluded.is_none());
    callable.find(|endpoint| endpoint.id == id && regard.keeps(endpoint))
}

/// The one of two drawn by weight that is likely to answer sooner.
pub(crate) fn peak_ewma<'s>(regard: &Regard<'s>, rng: &mut impl Rng) -> Option<&'s Arc<Endpoint>> {
    sooner_of_two(regard, rng, |slow, other| slow.stats.load.looks(other, regard.now))
}

/// The same, where `looks` says whether one that was far slower than another, of this latency, is asked all the same.
fn sooner_of_two<'s>(
    regard: &Regard<'s>,
    rng: &mut impl Rng,
    looks: impl Fn(&Endpoint, f32) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    two_choices(regard, rng, |e| regard.full_standing(e), |a, b| answers_sooner(regard, a, b, &looks))
}

/// `a` is likely to answer sooner than `b`.
fn answers_sooner(
    regard: &Regard<'_>,
    a: &Endpoint,
    b: &Endpoint,
    looks: impl Fn(&Endpoint, f32) -> bool,
) -> bool {
    let now = regard.now;
    let (Some(of_a), Some(of_b)) = (a.stats.load.latency(now), b.stats.load.latency(now)) else {
        return load_is_less(regard, a, b);
    };
    if (of_a.then - of_b.then).abs() < FAR_SLOWER {
        return is_sooner(regard, (a, of_a.now), (b, of_b.now));
    }
    let is_slow = of_a.then > of_b.then;
    let (slow, was, other, other_was) =
        if is_slow { (a, of_a.then, b, of_b.then) } else { (b, of_b.then, a, of_a.then) };
    // What was forgotten says nothing here.
    let goes_to_slow = is_sooner(regard, (slow, was), (other, other_was)) || looks(slow, other_was);
    goes_to_slow == is_slow
}

/// The same, where these are the logarithms of their latencies.
fn is_sooner(regard: &Regard<'_>, (a, of_a): (&Endpoint, f32), (b, of_b): (&Endpoint, f32)) -> bool {
    let difference = of_a - of_b;
    if difference.abs() < ALIKE {
        return load_is_less(regard, a, b);
    }
    difference.exp() * ahead(regard, a) < ahead(regard, b)
}

/// Requests that would be answered first, the one to come included, per weight.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^24 where precision matters")]
fn ahead(regard: &Regard<'_>, of: &Endpoint) -> f32 {
    of.stats.in_flight() as f32 / (regard.weight(of) as f32 / regard.scale()) + 1.0
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
    // Who would only be looked at is asked once it is sure that the request goes there.
    let look = Cell::new(None);
    let within = regard.within(&next.set);
    let note = |slow: &Endpoint, other: f32| {
        look.set(Some((slow.id, other)));
        false
    };
    let other = sooner_of_two(&within, rng, note).filter(|other| regard.is_clean(other))?;
    let Some(of_other) = other.stats.load.ln_latency(now) else {
        return tiers.explores(now).then_some(other);
    };
    let difference = own - of_other;
    if difference <= ALIKE || difference.exp() * ahead(regard, picked) <= 2.0 * ahead(regard, other) {
        return None;
    }
    let looked_at = look.get().and_then(|(id, other)| {
        let slow = next.set.pickable().iter().find(|endpoint| endpoint.id == id)?;
        slow.stats.load.looks(other, now).then_some(slow)
    });
    looked_at.or(Some(other))
}

/// The less loaded of two drawn by weight.
pub(crate) fn least_request<'s>(regard: &Regard<'s>, rng: &mut impl Rng) -> Option<&'s Arc<Endpoint>> {
    two_choices(regard, rng, |e| regard.standing(e), |a, b| load_is_less(regard, a, b))
}

/// `a` carries less per weight than `b`.
fn load_is_less(regard: &Regard<'_>, a: &Endpoint, b: &Endpoint) -> bool {
    let load = |x: &Endpoint, y: &Endpoint| u64::from(x.stats.in_flight()).saturating_mul(regard.weight(y));
    load(a, b) < load(b, a)
}

/// One drawn by weight.
pub(crate) fn random<'s>(regard: &Regard<'s>, rng: &mut impl Rng) -> Option<&'s Arc<Endpoint>> {
    let set = regard.set;
    if set.slots() <= 1 {
        return set.pickable().first();
    }
    if let Some(drawn) = draw(regard, rng, |e| regard.wants(e)) {
        return Some(drawn);
    }
    let best = best_standing(set, |e| regard.standing(e))?;
    among(regard, rng, |e| regard.standing(e) == best)
}

/// Two different ones of the best standing, drawn by weight where a few draws find them: the second where it is better,
/// else the first.
fn two_choices<'s, S: Ord + Default>(
    regard: &Regard<'s>,
    rng: &mut impl Rng,
    standing: impl Fn(&Endpoint) -> S,
    better: impl Fn(&Endpoint, &Endpoint) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    let set = regard.set;
    if set.slots() <= 1 {
        return set.pickable().first();
    }
    let wanted = |endpoint: &Endpoint| standing(endpoint) == S::default();
    let Some(first) = draw(regard, rng, wanted) else {
        let best = best_standing(set, &standing)?;
        let fits = |endpoint: &Endpoint| standing(endpoint) == best;
        let first = among(regard, rng, fits)?;
        let second = among(regard, rng, |e| e.id != first.id && fits(e)).filter(|e| regard.takes(e, rng));
        return second.filter(|second| better(second, first)).or(Some(first));
    };
    let other = |endpoint: &Endpoint| endpoint.id != first.id && wanted(endpoint);
    // That there is no other does not make one that begins count for more.
    let second = draw(regard, rng, other)
        .or_else(|| among(regard, rng, other).filter(|endpoint| regard.takes(endpoint, rng)));
    second.filter(|second| better(second, first)).or(Some(first))
}

/// The best standing that some endpoint has.
fn best_standing<S: Ord>(set: &EndpointSet, standing: impl Fn(&Endpoint) -> S) -> Option<S> {
    set.pickable().iter().map(|endpoint| standing(endpoint)).min()
}

/// One that fits, by weight; `None` when a few draws did not find one.
fn draw<'s>(
    regard: &Regard<'s>,
    rng: &mut impl Rng,
    fits: impl Fn(&Endpoint) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    let set = regard.set;
    (0..DRAWS).find_map(|_| {
        let drawn = set.slot(below(rng, set.slots()));
        (fits(drawn) && regard.takes(drawn, rng)).then_some(drawn)
    })
}

/// One of all that fit, by weight and share.
pub(crate) fn among<'s>(
    regard: &Regard<'s>,
    rng: &mut impl Rng,
    fits: impl Fn(&Endpoint) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    by_share(regard, rng.next_u64(), fits)
}

/// The one of all that fit to whom a random number leads, by weight and share.
fn by_share<'s>(
    regard: &Regard<'s>,
    number: u64,
    fits: impl Fn(&Endpoint) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    led_to(regard.set, number, fits, |endpoint| regard.weight(endpoint))
}

fn led_to(
    set: &EndpointSet,
    number: u64,
    fits: impl Fn(&Endpoint) -> bool,
    weight: impl Fn(&Endpoint) -> u64,
) -> Option<&Arc<Endpoint>> {
    let fitting = || set.pickable().iter().filter(|endpoint| fits(endpoint));
    let total: u128 = fitting().map(|endpoint| u128::from(weight(endpoint))).sum();
    let mut at = (u128::from(number) * total) >> 64;
    fitting().find(|endpoint| {
        let weight = u128::from(weight(endpoint));
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
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
        None => among(regard, rng, |endpoint| regard.is_clean(endpoint)),
    }
}

/// The next of the schedule.
pub(crate) fn round_robin<'s>(regard: &Regard<'s>, cursor: &AtomicUsize) -> Option<&'s Arc<Endpoint>> {
    let set = regard.set;
    let slots = set.slots();
    if slots <= 1 {
        return set.pickable().first();
    }
    if regard.slows() {
        return in_turn_by_share(regard, cursor);
    }
    let number = || cursor.fetch_add(1, Ordering::Relaxed);
    let turn = || set.slot(number() % slots);
    let wanted = (0..slots).find_map(|_| {
        let number = number();
        let next = set.slot(number % slots);
        (regard.wants(next) && regard.has_turn(next, number)).then_some(next)
    });
    if wanted.is_some() {
        return wanted;
    }
    // A whole pass has left the cursor where it was: those who are bad alike take turns from there.
    let best = best_standing(set, |endpoint| regard.standing(endpoint))?;
    let fits = |endpoint: &&Arc<Endpoint>| regard.standing(endpoint) == best;
    // Others move the cursor too, and what was the best may be so no longer.
    (0..slots)
        .map(|_| turn())
        .find(fits)
        .or_else(|| set.pickable().iter().find(fits))
        .or(set.pickable().first())
}

/// The next of the schedule that is taken by its share: by a chance of the turn's own, so that one that begins is left out
/// evenly.
fn in_turn_by_share<'s>(regard: &Regard<'s>, cursor: &AtomicUsize) -> Option<&'s Arc<Endpoint>> {
    let set = regard.set;
    let turn = || cursor.fetch_add(1, Ordering::Relaxed);
    for _ in 0..SKIPPED {
        let turn = turn();
        let next = set.slot(turn % set.slots());
        if regard.wants(next) && regard.has_turn(next, turn) {
            return Some(next);
        }
    }
    let best = best_standing(set, |endpoint| regard.standing(endpoint))?;
    by_share(regard, stir(turn() as u64), |endpoint| regard.standing(endpoint) == best)
}

/// One of those that fit, by weight alone.
pub(crate) fn choose<'s>(
    set: &'s EndpointSet,
    rng: &mut impl Rng,
    fits: impl Fn(&Endpoint) -> bool,
) -> Option<&'s Arc<Endpoint>> {
    led_to(set, rng.next_u64(), fits, |endpoint| endpoint.weight.max(1).into())
}

fn below(rng: &mut impl Rng, bound: usize) -> usize {
    usize::try_from(rng.below(bound as u64)).expect("below a length")
}

#[cfg(test)]
mod tests;
