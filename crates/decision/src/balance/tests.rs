use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_base::SeededRng;
use proptest::prelude::*;

use super::*;
use crate::tests::endpoint;

fn set(weights: &[u32]) -> EndpointSet {
    EndpointSet::new((1..).zip(weights).map(|(id, &w)| endpoint(id, w)).collect())
}

fn eject(endpoint: &Endpoint) {
    endpoint.stats.ejected_until.store(1_000, Ordering::Relaxed);
}

#[test]
fn round_robin_gives_each_its_weight_in_every_pass() {
    let (set, cursor) = (set(&[5, 1, 1]), AtomicUsize::new(0));
    let ids: Vec<_> = (0..14).map(|_| round_robin(&set, Tick::ZERO, &cursor, &[]).unwrap().id).collect();
    assert_eq!(ids, [1, 1, 2, 1, 3, 1, 1, 1, 1, 2, 1, 3, 1, 1]);
}

#[test]
fn the_neighbour_of_an_ejected_endpoint_does_not_inherit_its_share() {
    let (set, cursor) = (set(&[1, 1, 1, 1]), AtomicUsize::new(0));
    eject(&set.pickable()[1]);
    let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
    for _ in 0..300 {
        *counts.entry(round_robin(&set, Tick::ZERO, &cursor, &[]).unwrap().id).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from([(1, 100), (3, 100), (4, 100)]));
}

#[test]
fn least_request_follows_weights_when_idle_and_load_when_not() {
    let set = set(&[1, 3]);
    let mut rng = SeededRng::new(5);
    let mut heavy = 0;
    for _ in 0..10_000 {
        heavy += u32::from(least_request(&set, Tick::ZERO, &mut rng, &[]).unwrap().id == 2);
    }
    assert!(heavy.abs_diff(7_500) < 200, "{heavy}");
    let _busy: Vec<_> = (0..4).map(|_| set.pickable()[1].begin()).collect();
    let mut light = 0;
    for _ in 0..1_000 {
        light += u32::from(least_request(&set, Tick::ZERO, &mut rng, &[]).unwrap().id == 1);
    }
    assert!(light > 900, "two draws almost always see both: {light}");
}

#[test]
fn requests_that_stay_are_spread_by_weight() {
    let set = set(&[1, 2, 4]);
    let mut rng = SeededRng::new(9);
    let guards: Vec<_> =
        (0..700).map(|_| least_request(&set, Tick::ZERO, &mut rng, &[]).unwrap().begin()).collect();
    let in_flight: Vec<_> = set.pickable().iter().map(|e| e.stats.in_flight()).collect();
    assert_eq!(in_flight.iter().sum::<u32>(), 700);
    for (got, want) in in_flight.iter().zip([100, 200, 400]) {
        assert!(got.abs_diff(want) <= 5, "{in_flight:?}");
    }
    drop(guards);
}

proptest! {
    /// Whatever is ejected and tried: nothing unwanted is picked while something wanted is there, a tried one comes
    /// before an ejected one, and somebody is always picked.
    #[test]
    fn prefers_the_wanted(
        weights in prop::collection::vec(1u32..10, 1..6),
        ejected in prop::collection::vec(any::<bool>(), 6),
        tried in prop::collection::vec(1u64..7, 0..6),
        seed: u64,
    ) {
        let set = set(&weights);
        let now = Tick::ZERO;
        for (endpoint, _) in set.pickable().iter().zip(&ejected).filter(|(_, out)| **out) {
            eject(endpoint);
        }
        let class = |e: &Endpoint| match (e.is_ejected(now), tried.contains(&e.id)) {
            (false, false) => 0,
            (false, true) => 1,
            (true, _) => 2,
        };
        let best = set.pickable().iter().map(|e| class(e)).min().expect("not empty");
        let mut rng = SeededRng::new(seed);
        let cursor = AtomicUsize::new(seed as usize % 1000);
        for _ in 0..20 {
            let picked = least_request(&set, now, &mut rng, &tried).expect("somebody");
            prop_assert_eq!(class(picked), best, "least request");
            let picked = round_robin(&set, now, &cursor, &tried).expect("somebody");
            prop_assert_eq!(class(picked), best, "round robin");
        }
        prop_assert!(!set.pickable()[0].is_ejected(now.after(Duration::from_secs(1))));
    }
}

#[test]
fn nothing_comes_of_nothing() {
    let set = EndpointSet::default();
    assert!(least_request(&set, Tick::ZERO, &mut SeededRng::new(1), &[]).is_none());
    assert!(round_robin(&set, Tick::ZERO, &AtomicUsize::new(0), &[]).is_none());
}

#[test]
fn an_ejected_endpoint_is_better_than_one_that_cannot_be_reached() {
    let set = set(&[1, 1]);
    let (out, dead) = (&set.pickable()[0], &set.pickable()[1]);
    eject(out);
    let mut rng = SeededRng::new(1);
    assert_eq!(choose(&set, &mut rng, |e| e.id != dead.id).map(|e| e.id), Some(out.id));
    assert!(choose(&set, &mut rng, |_| false).is_none());
}
