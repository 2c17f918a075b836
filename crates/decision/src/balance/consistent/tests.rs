use std::collections::BTreeMap;

use proptest::prelude::*;

use meshwork_base::Tick;

use super::*;
use crate::endpoint::{EndpointSet, InFlight};
use crate::invariants;
use crate::tests::endpoint;

const SHAPES: [Shape; 2] = [Shape::Ring, Shape::Maglev];

fn set(shape: Shape, members: impl IntoIterator<Item = (u64, u32)>) -> EndpointSet {
    let endpoints = members.into_iter().map(|(id, weight)| endpoint(id, weight)).collect();
    EndpointSet::shaped(endpoints, Some(shape))
}

fn evenly(shape: Shape, ids: impl IntoIterator<Item = u64>) -> EndpointSet {
    set(shape, ids.into_iter().map(|id| (id, 1)))
}

/// Ejections count, whatever is ejected.
fn regard<'s>(set: &'s EndpointSet, tried: &'s [u64]) -> Regard<'s> {
    Regard::new(set, Tick::ZERO, tried, 0)
}

fn key(n: u64) -> u64 {
    xxh64(&n.to_le_bytes(), 7)
}

fn pick(set: &EndpointSet, n: u64) -> u64 {
    consistent(&regard(set, &[]), key(n), None).expect("an endpoint").id
}

fn shares(set: &EndpointSet, keys: u64) -> BTreeMap<u64, u64> {
    let mut shares = BTreeMap::new();
    for n in 0..keys {
        *shares.entry(pick(set, n)).or_default() += 1;
    }
    shares
}

#[test]
fn keys_are_spread_by_weight() {
    for (shape, off) in [(Shape::Ring, 0.25), (Shape::Maglev, 0.06)] {
        let set = set(shape, [(1, 10), (2, 20), (3, 70)]);
        let shares = shares(&set, 20_000);
        for (id, weight) in [(1, 0.1), (2, 0.2), (3, 0.7)] {
            let share = shares[&id] as f64 / 20_000.0;
            assert!((share / weight - 1.0).abs() < off, "{shape:?}: {id} has {share} of the keys");
        }
    }
}

#[test]
fn who_has_no_place_in_the_table_is_found_where_nobody_else_is_wanted() {
    for shape in SHAPES {
        let light = set(shape, [(1, 1), (2, 1_000_000)]);
        let table = light.table().expect("a table");
        assert!(table.from(key(0)).any(|position| position == 0), "{shape:?}: the lightest has one");
    }
    let endpoints: Vec<_> = (1..=5).map(|id| endpoint(id, 1)).collect();
    let table = Table::Maglev(maglev(&endpoints, 3));
    let found = |id| first_of(&table, &endpoints, key(0), |endpoint| endpoint.id == id).map(|e| e.id);
    assert_eq!((1..=5).filter_map(found).collect::<Vec<_>>(), [1, 2, 3, 4, 5], "of five three have one");
}

#[test]
fn an_endpoint_that_was_left_out_gives_its_keys_to_all_others_and_gets_them_back() {
    for shape in SHAPES {
        let set = evenly(shape, 1..=10);
        let before: Vec<u64> = (0..5_000).map(|n| pick(&set, n)).collect();
        set.pickable()[3].stats.standing.eject_until(1_000);
        let meanwhile: Vec<u64> = (0..5_000).map(|n| pick(&set, n)).collect();
        let mut heirs = BTreeMap::new();
        for (&was, &is) in before.iter().zip(&meanwhile) {
            assert!(was == 4 || was == is, "{shape:?}: a key moved that had no need to");
            if was == 4 {
                *heirs.entry(is).or_insert(0) += 1;
            }
        }
        assert_eq!(heirs.len(), 9, "{shape:?}: {heirs:?}");
        set.pickable()[3].stats.forgive();
        assert!(before.iter().zip(0..).all(|(&was, n)| was == pick(&set, n)), "{shape:?}");
    }
}

#[test]
fn proxies_agree_in_whatever_order_they_hear_of_endpoints() {
    for shape in SHAPES {
        let (one, other) = (evenly(shape, 1..=9), evenly(shape, (1..=9).rev()));
        assert!((0..2_000).all(|n| pick(&one, n) == pick(&other, n)), "{shape:?}");
    }
}

#[test]
fn the_ring_stays_small_whatever_the_weights() {
    let Table::Ring(points) = Table::new(Shape::Ring, &[endpoint(1, 1), endpoint(2, u32::MAX)]) else {
        panic!("a ring");
    };
    assert!(points.len() as u64 <= MOST_POINTS && points.iter().any(|(_, position)| *position == 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// An endpoint that comes takes its share and no more; on the ring nothing moves between the others, in Maglev's
    /// table little does. The same the other way round is an endpoint that goes.
    #[test]
    fn a_change_of_endpoints_moves_few_keys(
        count in 2u64..24,
        weight in 1u32..200,
        ring: bool,
    ) {
        let shape = if ring { Shape::Ring } else { Shape::Maglev };
        let few = set(shape, (1..=count).map(|id| (id, weight)));
        let more = set(shape, (1..=count + 1).map(|id| (id, weight)));
        let keys = 4_000;
        let (mut taken, mut between) = (0, 0);
        for n in 0..keys {
            let (before, after) = (pick(&few, n), pick(&more, n));
            taken += u64::from(after == count + 1);
            between += u64::from(after != count + 1 && after != before);
        }
        let share = keys as f64 / (count + 1) as f64;
        prop_assert!(taken as f64 <= 1.4 * share + 20.0, "{taken} of {keys} moved to one of {}", count + 1);
        prop_assert!(taken as f64 >= 0.6 * share - 20.0, "{taken} of {keys} moved to one of {}", count + 1);
        let may_move = if ring { 0 } else { keys / 20 };
        prop_assert!(between <= may_move, "{between} of {keys} moved between others");
    }

    /// Whatever is under way, ejected and tried, and whoever asks: nobody has more than its bound while somebody has
    /// room, and nothing unwanted is picked while something wanted is there.
    #[test]
    fn load_stays_within_its_bound(
        weights in prop::collection::vec(1u32..5, 2..10),
        ejected in 0usize..10,
        tried in 0u64..10,
        factor in 100u32..300,
        keys in prop::collection::vec(0u64..6, 1..200),
        ring: bool,
    ) {
        let shape = if ring { Shape::Ring } else { Shape::Maglev };
        let set = set(shape, (1..).zip(weights.iter().copied()));
        if let Some(endpoint) = set.pickable().get(ejected) {
            endpoint.stats.standing.eject_until(1_000);
        }
        let mut under_way: Vec<InFlight> = Vec::new();
        for &n in &keys {
            let tried = [tried];
            let bound = Bound::new(&regard(&set, &tried), factor);
            let wanted = |e: &Endpoint| !e.is_ejected(Tick::ZERO) && !tried.contains(&e.id);
            let picked = consistent(&regard(&set, &tried), key(n), Some(factor)).unwrap();
            let checked = invariants::bounded_load(&bound, set.pickable(), picked, wanted);
            prop_assert_eq!(checked, Ok(()));
            if set.pickable().iter().any(|e| wanted(e)) {
                prop_assert!(wanted(picked), "{} was not wanted", picked.id);
            }
            under_way.push(picked.begin());
        }
    }
}

#[test]
fn a_hot_key_overflows_to_the_same_others_in_turn() {
    for shape in SHAPES {
        let set = evenly(shape, 1..=10);
        let bounded = || consistent(&regard(&set, &[]), key(1), Some(125)).unwrap();
        let home = bounded().id;
        let mut guards = Vec::new();
        let mut others = Vec::new();
        for _ in 0..80 {
            let picked = bounded();
            if picked.id != home && !others.contains(&picked.id) {
                others.push(picked.id);
            }
            guards.push(picked.begin());
        }
        let of_home = set.pickable().iter().find(|e| e.id == home).unwrap().stats.in_flight();
        assert!((8..=10).contains(&of_home), "{shape:?}: 125 % of an even load is ten: {of_home}");
        assert!(others.len() >= 7, "{shape:?}: {others:?}");
        assert_eq!(consistent(&regard(&set, &[]), key(1), None).unwrap().id, home, "without a bound");
    }
}

#[test]
fn the_bound_is_an_even_load_of_those_that_are_not_ejected() {
    let endpoints: Vec<_> = (1..=3).map(|id| endpoint(id, 1)).collect();
    let set = EndpointSet::shaped(endpoints, Some(Shape::Ring));
    let [one, other, out] = set.pickable() else { panic!("three") };
    out.stats.standing.eject_until(1_000);
    let _busy: Vec<_> = (0..5).flat_map(|_| [one.begin(), other.begin()]).collect();
    // Eleven with the one to come: six for each of two, and not four for each of three.
    let bound = Bound::new(&regard(&set, &[]), 100);
    assert!(bound.has_room(one) && bound.has_room(other));
}

#[test]
fn where_only_those_who_have_failed_the_request_have_room_the_least_loaded_of_the_others_takes_it() {
    for shape in SHAPES {
        let set = evenly(shape, 1..=3);
        let [most, least, tried] = set.pickable() else { panic!("three") };
        let _busy: Vec<_> = (0..5).map(|n| if n < 3 { most.begin() } else { least.begin() }).collect();
        let ids = [tried.id];
        let regard = regard(&set, &ids);
        let bound = Bound::new(&regard, 100);
        assert!(!bound.has_room(most) && !bound.has_room(least) && bound.has_room(tried));
        for n in 0..100 {
            assert_eq!(consistent(&regard, key(n), Some(100)).unwrap().id, least.id, "{shape:?}");
        }
    }
}
