use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_base::{SeededRng, SpiffeId, Tick};
use proptest::prelude::*;

use super::*;
use crate::endpoint::{Exclusion, Transport};
use crate::limits::Limits;
use crate::load::Answer;
use crate::outlier::AttemptOutcome;
use crate::tests::endpoint;

fn set(weights: &[u32]) -> EndpointSet {
    EndpointSet::new((1..).zip(weights).map(|(id, &w)| endpoint(id, w)).collect())
}

/// Ejections count, whatever is ejected.
fn regard<'s>(set: &'s EndpointSet, now: Tick, tried: &'s [u64]) -> Regard<'s> {
    Regard::new(set, now, tried, 0)
}

fn eject(endpoint: &Endpoint) {
    endpoint.stats.standing.eject_until(1_000);
}

#[test]
fn round_robin_gives_each_its_weight_in_every_pass() {
    let (set, cursor) = (set(&[5, 1, 1]), AtomicUsize::new(0));
    let ids: Vec<_> =
        (0..14).map(|_| round_robin(&regard(&set, Tick::ZERO, &[]), &cursor).unwrap().id).collect();
    assert_eq!(ids, [1, 1, 2, 1, 3, 1, 1, 1, 1, 2, 1, 3, 1, 1]);
}

#[test]
fn the_neighbour_of_an_ejected_endpoint_does_not_inherit_its_share() {
    let (set, cursor) = (set(&[1, 1, 1, 1]), AtomicUsize::new(0));
    eject(&set.pickable()[1]);
    let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
    for _ in 0..300 {
        *counts.entry(round_robin(&regard(&set, Tick::ZERO, &[]), &cursor).unwrap().id).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from([(1, 100), (3, 100), (4, 100)]));
}

#[test]
fn those_who_are_equally_bad_take_turns_by_weight() {
    let set = set(&[1, 1, 2, 1]);
    let now = Tick::ZERO;
    let counts = |tried: &[u64]| {
        let cursor = AtomicUsize::new(3);
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        for _ in 0..500 {
            *counts.entry(round_robin(&regard(&set, now, tried), &cursor).unwrap().id).or_default() += 1;
        }
        counts
    };
    assert_eq!(counts(&[1, 2, 3, 4]), [(1, 100), (2, 100), (3, 200), (4, 100)].into(), "all were tried");
    eject(&set.pickable()[1]);
    assert_eq!(
        counts(&[1, 3, 4]),
        [(1, 125), (3, 250), (4, 125)].into(),
        "nobody inherits from the ejected one"
    );
    set.pickable().iter().for_each(|endpoint| eject(endpoint));
    assert_eq!(counts(&[]), [(1, 100), (2, 100), (3, 200), (4, 100)].into(), "all are ejected");
}

/// Of four whose weights are 1, 1, 2 and 4 the last is the only one that does not fit.
#[test]
fn who_draws_goes_by_weight_also_among_those_who_are_equally_bad() {
    type Pick = for<'s> fn(&Regard<'s>, &mut SeededRng) -> Option<&'s Arc<Endpoint>>;
    let algorithms: [(&str, Pick); 4] = [
        ("random", |regard, rng| random(regard, rng)),
        ("least request", |regard, rng| least_request(regard, rng)),
        ("peak EWMA", |regard, rng| peak_ewma(regard, rng)),
        ("no matter what", |regard, rng| choose(regard.set, rng, |e| !regard.is_out(e))),
    ];
    for (name, pick) in algorithms {
        let set = set(&[1, 1, 2, 4]);
        let tried: &[u64] = if name == "no matter what" { &[] } else { &[1, 2, 3] };
        eject(&set.pickable()[3]);
        let by_weight = |rng: &mut SeededRng| pick(&regard(&set, Tick::ZERO, tried), rng).unwrap().id;
        let counts = picked(&set, 8_000, by_weight);
        for (got, want) in counts.iter().zip([2_000_u32, 2_000, 4_000, 0]) {
            assert!(got.abs_diff(want) < 200, "{name}: {counts:?}");
        }
    }
}

/// One has nearly all the weight, and nobody wants it: the others are not alike for that.
#[test]
fn the_second_of_two_is_drawn_by_weight_where_a_few_draws_do_not_find_one() {
    let set = set(&[1_000, 1, 9]);
    let _busy: Vec<_> = (0..100_000).map(|_| set.pickable()[0].begin()).collect();
    let second = |rng: &mut SeededRng| least_request(&regard(&set, Tick::ZERO, &[]), rng).unwrap().id;
    let counts = picked(&set, 8_000, second);
    assert!(counts[1].abs_diff(800) < 200 && counts[2].abs_diff(7_200) < 200, "{counts:?}");
}

#[test]
fn least_request_follows_weights_when_idle_and_load_when_not() {
    let set = set(&[1, 3]);
    let mut rng = SeededRng::new(5);
    let mut heavy = 0;
    for _ in 0..10_000 {
        heavy += u32::from(least_request(&regard(&set, Tick::ZERO, &[]), &mut rng).unwrap().id == 2);
    }
    assert!(heavy.abs_diff(7_500) < 200, "{heavy}");
    let _busy: Vec<_> = (0..4).map(|_| set.pickable()[1].begin()).collect();
    let mut light = 0;
    for _ in 0..1_000 {
        light += u32::from(least_request(&regard(&set, Tick::ZERO, &[]), &mut rng).unwrap().id == 1);
    }
    assert!(light > 900, "two draws almost always see both: {light}");
}

#[test]
fn requests_that_stay_are_spread_by_weight() {
    let set = set(&[1, 2, 4]);
    let mut rng = SeededRng::new(9);
    let guards: Vec<_> =
        (0..700).map(|_| least_request(&regard(&set, Tick::ZERO, &[]), &mut rng).unwrap().begin()).collect();
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
            let picked = least_request(&regard(&set, now, &tried), &mut rng).expect("somebody");
            prop_assert_eq!(class(picked), best, "least request");
            let picked = round_robin(&regard(&set, now, &tried), &cursor).expect("somebody");
            prop_assert_eq!(class(picked), best, "round robin");
            let picked = random(&regard(&set, now, &tried), &mut rng).expect("somebody");
            prop_assert_eq!(class(picked), best, "random");
            let picked = peak_ewma(&regard(&set, now, &tried), &mut rng).expect("somebody");
            prop_assert_eq!(class(picked), best, "peak EWMA");
        }
        prop_assert!(!set.pickable()[0].is_ejected(now.after(Duration::from_secs(1))));
    }
}

#[test]
fn nothing_comes_of_nothing() {
    let set = EndpointSet::default();
    assert!(least_request(&regard(&set, Tick::ZERO, &[]), &mut SeededRng::new(1)).is_none());
    assert!(round_robin(&regard(&set, Tick::ZERO, &[]), &AtomicUsize::new(0)).is_none());
    assert!(random(&regard(&set, Tick::ZERO, &[]), &mut SeededRng::new(1)).is_none());
    assert!(peak_ewma(&regard(&set, Tick::ZERO, &[]), &mut SeededRng::new(1)).is_none());
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

/// How often each endpoint is picked in so many picks, nothing being under way.
fn picked(set: &EndpointSet, times: u32, pick: impl Fn(&mut SeededRng) -> u64) -> Vec<u32> {
    let mut rng = SeededRng::new(11);
    let mut counts = vec![0; set.pickable().len()];
    for _ in 0..times {
        counts[usize::try_from(pick(&mut rng)).unwrap() - 1] += 1;
    }
    counts
}

fn answers(endpoint: &Endpoint, millis: u64, now: Tick) {
    endpoint.stats.load.record(&Answer::new(AttemptOutcome::Success, Duration::from_millis(millis)), now);
}

fn fails(endpoint: &Endpoint, now: Tick) {
    endpoint.stats.load.record(&Answer::new(AttemptOutcome::Failure, Duration::from_millis(1)), now);
}

fn ewma(set: &EndpointSet, now: Tick) -> impl Fn(&mut SeededRng) -> u64 {
    // As a cluster does it: a request is on its way.
    move |rng| {
        let picked = peak_ewma(&regard(set, now, &[]), rng).unwrap();
        picked.stats.load.picked(now);
        picked.id
    }
}

#[test]
fn an_idle_fleet_is_loaded_by_weight_whatever_small_differences_there_are() {
    let set = set(&[1, 1, 2]);
    for (endpoint, millis) in set.pickable().iter().zip([10, 15, 19]) {
        answers(endpoint, millis, Tick::ZERO);
    }
    let by_chance = |rng: &mut SeededRng| random(&regard(&set, Tick::ZERO, &[]), rng).unwrap().id;
    for counts in [picked(&set, 8_000, ewma(&set, Tick::ZERO)), picked(&set, 8_000, by_chance)] {
        for (got, want) in counts.iter().zip([2_000_u32, 2_000, 4_000]) {
            assert!(got.abs_diff(want) < 200, "{counts:?}");
        }
    }
}

#[test]
fn a_slow_endpoint_is_asked_when_the_others_have_so_much_to_do_that_it_would_be_sooner() {
    let set = set(&[1, 1]);
    let [fast, slow] = [&set.pickable()[0], &set.pickable()[1]];
    answers(fast, 10, Tick::ZERO);
    answers(slow, 50, Tick::ZERO);
    let mut busy = Vec::new();
    for _ in 0..4 {
        assert_eq!(picked(&set, 50, ewma(&set, Tick::ZERO)), [50, 0], "{} in flight", busy.len());
        busy.push(fast.begin());
    }
    busy.push(fast.begin());
    assert_eq!(picked(&set, 50, ewma(&set, Tick::ZERO)), [0, 50], "six times 10 ms are more than 50");
}

/// Requests that come one each 10 ms, and which of them an endpoint gets. It takes so many milliseconds, the others ten, and who
/// is asked has answered before the next one comes.
fn asked(set: &EndpointSet, from: Tick, requests: u64, who: &Endpoint, takes: u64) -> Vec<u64> {
    let mut rng = SeededRng::new(7);
    let gets = |request: &u64| {
        let comes = from.after(Duration::from_millis(10 * request));
        let id = ewma(set, comes)(&mut rng);
        let endpoint = set.pickable().iter().find(|one| one.id == id).expect("it was picked");
        answers(endpoint, if id == who.id { takes } else { 10 }, comes);
        id == who.id
    };
    (0..requests).filter(gets).collect()
}

/// What was 3 s is remembered as 1 ms then, and the others are at 10.
#[test]
fn one_that_was_far_slower_is_asked_by_one_request_in_hundreds() {
    let set = set(&[1, 1, 1]);
    let slow = &set.pickable()[0];
    let later = Tick::ZERO.after(Duration::from_secs(80));
    answers(slow, 3_000, Tick::ZERO);
    set.pickable()[1..].iter().for_each(|endpoint| answers(endpoint, 10, later));
    let looks = asked(&set, later, 6_000, slow, 3_000).len();
    assert!(looks.abs_diff(20) <= 1, "two of three pairs hold it, and every 200th of them asks it: {looks}");
    // So much before each of the others that what it was would be sooner.
    let _busy: Vec<_> = (0..800).map(|n| set.pickable()[1 + n % 2].begin()).collect();
    let counts = picked(&set, 3_000, ewma(&set, later));
    assert!(counts[0].abs_diff(2_000) < 150, "all pairs that hold it: {counts:?}");
}

#[test]
fn one_that_was_far_slower_and_has_recovered_has_its_share_again_within_seconds() {
    let set = set(&[1, 1, 1]);
    let slow = &set.pickable()[0];
    set.pickable()[1..].iter().for_each(|endpoint| answers(endpoint, 10, Tick::ZERO));
    for slower in [50, 200, 60_000] {
        slow.stats.load.forget();
        let begun = Tick::ZERO.after(Duration::from_secs(slower));
        answers(slow, slower, begun);
        assert!(asked(&set, begun, 1_000, slow, slower).len() <= 4, "{slower} ms");
        let recovers = begun.after(Duration::from_secs(10));
        let asked = asked(&set, recovers, 1_000, slow, 10);
        let after = asked.iter().filter(|request| **request >= 500).count();
        assert!(after >= 140, "of 500 after five seconds: {after}, where it took {slower} ms");
    }
}

#[test]
fn one_that_was_a_little_slower_is_asked_as_soon_as_that_is_forgotten() {
    let set = set(&[1, 1, 1]);
    let later = Tick::ZERO.after(Duration::from_secs(20));
    answers(&set.pickable()[0], 39, Tick::ZERO);
    set.pickable()[1..].iter().for_each(|endpoint| answers(endpoint, 10, later));
    let counts = picked(&set, 3_000, ewma(&set, later));
    assert!(counts[0] >= 1_000, "{counts:?}");
    answers(&set.pickable()[0], 3_000, Tick::ZERO);
    let at_last = later.after(Duration::from_secs(300));
    set.pickable()[1..].iter().for_each(|endpoint| answers(endpoint, 10, at_last));
    let counts = picked(&set, 300, ewma(&set, at_last));
    assert!(counts[0] > 50, "nothing was heard of it for long: {counts:?}");
}

#[test]
fn weight_counts_where_latency_does() {
    let set = set(&[1, 9]);
    let [small, large] = [&set.pickable()[0], &set.pickable()[1]];
    answers(small, 30, Tick::ZERO);
    answers(large, 10, Tick::ZERO);
    let _one = small.begin();
    let _nine: Vec<_> = (0..9).map(|_| large.begin()).collect();
    assert_eq!(picked(&set, 50, ewma(&set, Tick::ZERO)), [0, 50], "per weight both have one in flight");
}

#[test]
fn one_of_which_nothing_is_known_is_judged_by_what_it_has_to_do() {
    let set = set(&[1, 1]);
    answers(&set.pickable()[0], 100, Tick::ZERO);
    let counts = picked(&set, 2_000, ewma(&set, Tick::ZERO));
    assert!(counts[0].abs_diff(1_000) < 150, "a newcomer is neither flooded nor shunned: {counts:?}");
    let _busy = set.pickable()[1].begin();
    assert_eq!(picked(&set, 50, ewma(&set, Tick::ZERO)), [50, 0]);
}

#[test]
fn one_that_rests_is_passed_by_and_then_tried_with_one_request_at_a_time() {
    let set = set(&[1, 1]);
    let [ill, well] = [&set.pickable()[0], &set.pickable()[1]];
    let now = Tick::ZERO.after(Duration::from_secs(1));
    fails(ill, now);
    assert_eq!(picked(&set, 50, ewma(&set, now)), [0, 50], "a failure in a millisecond is no virtue");
    let _stream = ill.begin();
    let _more = [well.begin(), well.begin(), well.begin()];
    let later = now.after(Duration::from_millis(50));
    assert_eq!(picked(&set, 50, ewma(&set, later)), [1, 49], "its rest is over; then its trial is under way");
    fails(ill, later);
    let again = later.after(Duration::from_millis(100));
    assert_eq!(picked(&set, 50, ewma(&set, again)), [1, 49], "the trial has ended, and its rest too");
    let much_later = again.after(Duration::from_secs(2));
    assert_eq!(
        picked(&set, 50, ewma(&set, much_later)),
        [1, 49],
        "nobody has heard of the end of the last one"
    );
    answers(ill, 10, much_later);
    assert_eq!(picked(&set, 50, ewma(&set, much_later)), [50, 0], "it has answered well");
}

#[test]
fn when_all_rest_the_one_with_less_to_do_is_taken() {
    let set = set(&[1, 1, 1]);
    let now = Tick::ZERO.after(Duration::from_secs(1));
    set.pickable().iter().for_each(|endpoint| fails(endpoint, now));
    let _busy = [set.pickable()[0].begin(), set.pickable()[1].begin()];
    let counts = picked(&set, 3_000, ewma(&set, now));
    assert!(counts[2] > 1_700, "two of three pairs hold it: {counts:?}");
}

#[test]
fn one_that_rests_is_better_than_one_that_has_failed_this_request() {
    let set = set(&[1, 1, 1]);
    let now = Tick::ZERO.after(Duration::from_secs(1));
    fails(&set.pickable()[0], now);
    let beside = |rng: &mut SeededRng| peak_ewma(&regard(&set, now, &[2, 3]), rng).unwrap().id;
    assert_eq!(picked(&set, 50, beside), [50, 0, 0]);
}

/// An endpoint that is something else too.
fn endpoint_that(id: u64, is: impl FnOnce(&mut Endpoint)) -> Arc<Endpoint> {
    let mut endpoint = Arc::into_inner(endpoint(id, 1)).expect("nobody else holds it");
    is(&mut endpoint);
    Arc::new(endpoint)
}

#[test]
fn a_session_goes_on_with_who_is_there_and_well_and_has_not_failed_this_request() {
    let leaving = endpoint_that(3, |endpoint| endpoint.excluded = Some(Exclusion::Draining));
    let set = EndpointSet::new(vec![endpoint(1, 1), endpoint(2, 1), leaving]);
    let goes_on = |id, tried: &[u64]| persistent(&regard(&set, Tick::ZERO, tried), id).is_some();
    assert!(goes_on(1, &[2]));
    assert!(!goes_on(1, &[2, 1]), "it has failed this request");
    assert!(!goes_on(3, &[]), "it is leaving");
    assert!(!goes_on(4, &[]), "it is gone");
    eject(&set.pickable()[0]);
    assert!(!goes_on(1, &[]), "it is ejected");
    let most = Limits { max_requests_per_endpoint: Some(1), ..Limits::default() };
    let _one = set.pickable()[1].begin();
    let bounded = regard(&set, Tick::ZERO, &[]).within_bounds(&most, false, None);
    assert!(goes_on(2, &[]) && persistent(&bounded, 2).is_none(), "it is at its limit");
}

#[test]
fn of_those_who_are_ejected_one_that_has_room_is_called() {
    let set = set(&[1, 1, 1]);
    set.pickable().iter().for_each(|endpoint| eject(endpoint));
    let _one = set.pickable()[0].begin();
    let most = Limits { max_requests_per_endpoint: Some(1), ..Limits::default() };
    let bounded = || regard(&set, Tick::ZERO, &[]).within_bounds(&most, false, None);
    let by_chance = picked(&set, 200, |rng| random(&bounded(), rng).unwrap().id);
    assert!(by_chance[0] == 0 && by_chance[1] > 0 && by_chance[2] > 0, "{by_chance:?}");
    let cursor = AtomicUsize::new(0);
    assert_eq!(picked(&set, 200, |_| round_robin(&bounded(), &cursor).unwrap().id), [0, 100, 100]);
}

/// Through a sidecar one connection carries many requests.
#[test]
fn nobody_waits_for_a_connection_through_sidecars() {
    let behind_sidecar = |id| {
        endpoint_that(id, |endpoint| {
            let spiffe_id = SpiffeId::parse("spiffe://m/ns/shop/sa/web").unwrap();
            endpoint.transport = Transport::Mesh { http: endpoint.address(), hbone: None, spiffe_id };
        })
    };
    let most = Limits { max_connections_per_endpoint: Some(1), ..Limits::default() };
    for (set, is_passed_by) in [
        (EndpointSet::new(vec![endpoint(1, 1), endpoint(2, 1)]), true),
        (EndpointSet::new(vec![behind_sidecar(1), behind_sidecar(2)]), false),
    ] {
        let _one = set.pickable()[0].begin();
        let bounded = || regard(&set, Tick::ZERO, &[]).within_bounds(&most, false, None);
        let counts = picked(&set, 200, |rng| random(&bounded(), rng).unwrap().id);
        assert_eq!(counts[0] == 0, is_passed_by, "{counts:?}");
    }
}

/// Where nobody of a part has a connection to spare, all of it are alike, whoever has one elsewhere.
#[test]
fn of_each_part_it_is_asked_whether_somebody_has_a_connection_to_spare() {
    let all: Vec<_> = (1..=3).map(|id| endpoint(id, 1)).collect();
    let part = EndpointSet::new(all[..2].to_vec());
    let set = EndpointSet::new(all);
    let _busy = [set.pickable()[0].begin(), set.pickable()[1].begin()];
    let most = Limits { max_connections_per_endpoint: Some(1), ..Limits::default() };
    let of_all = regard(&set, Tick::ZERO, &[]).within_bounds(&most, false, None);
    assert!(of_all.is_crowded(&set.pickable()[0]), "the third has");
    let of_part = of_all.within(&part);
    assert!(part.pickable().iter().all(|one| !of_part.is_crowded(one)));
}

#[test]
fn a_hash_leads_to_the_same_of_those_against_whom_nothing_speaks() {
    let endpoints = (1..=10).map(|id| endpoint(id, 1)).collect();
    let set = EndpointSet::shaped(endpoints, Some(Shape::Ring));
    let now = Tick::ZERO.after(Duration::from_secs(1));
    fails(&set.pickable()[0], now);
    let mut rng = SeededRng::new(1);
    let mut led_to =
        |hash| clean(&regard(&set, now, &[2]), Some(stir(hash)), &mut rng).expect("eight are").id;
    let first: Vec<_> = (0..50).map(&mut led_to).collect();
    assert_eq!((0..50).map(&mut led_to).collect::<Vec<_>>(), first);
    assert!(first.iter().all(|id| *id > 2), "one rests, and one has failed this request: {first:?}");
    assert!(first.iter().any(|id| *id != first[0]), "and hashes are spread: {first:?}");
}
