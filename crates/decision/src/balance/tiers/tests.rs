use std::collections::BTreeMap;

use meshwork_base::SeededRng;
use meshwork_messages::v1;
use proptest::prelude::*;

use super::*;
use crate::balance::stir;
use crate::builder::SnapshotBuilder;
use crate::cluster::{Algorithm, Cluster, Wanted};
use crate::load::Answer;
use crate::outlier::AttemptOutcome;
use crate::preference::{Locality, Prefer};
use crate::reasons::{Explanation, NoReasons};
use crate::tests::{build, key, policy_change, service, service_change, slice, wire_endpoint};

/// Envoy's own table (documentation of priority levels, factor 1.4).
#[test]
fn load_spills_as_health_falls_and_comes_back() {
    let two = |one: usize, other: usize| shares(&[(one, 100), (other, 100)], 140).to_vec();
    for (health, expected) in [
        ((100, 100), [1000, 0]),
        ((72, 72), [1000, 0]),
        ((71, 71), [994, 6]),
        ((50, 50), [700, 300]),
        ((25, 100), [350, 650]),
        ((25, 25), [500, 500]),
        ((0, 100), [0, 1000]),
        ((100, 0), [1000, 0]),
        ((0, 0), [0, 0]),
    ] {
        let (one, other) = health;
        assert_eq!(two(one, other), expected, "{health:?}");
    }
    assert_eq!(shares(&[(5, 100), (0, 100), (65, 100)], 140).to_vec(), [72, 0, 928]);
    assert_eq!(shares(&[(50, 100), (50, 100)], 100).to_vec(), [500, 500], "without reserve");
    assert_eq!(shares(&[(1, 10_000), (0, 10)], 140).to_vec(), [1000, 0], "whoever is well carries something");
}

#[test]
fn a_zone_is_left_for_less_than_half_of_the_time_and_not_for_more() {
    let World { cluster, .. } = world(&[(0, "r", ""), (1, "r", "")], algorithm(Algorithm::PeakEwma));
    let now = Tick::ZERO.after(Duration::from_secs(1));
    let set = cluster.endpoints();
    let [near, far] = set.all() else { panic!("two") };
    for (endpoint, millis) in [(near, 100), (far, 40)] {
        let took = Duration::from_millis(millis);
        cluster.record(endpoint, &Answer::new(AttemptOutcome::Success, took), now);
    }
    let picked = || cluster.pick(now, &mut SeededRng::new(1), &[]).expect("somebody").id;
    assert_eq!(picked(), far.id, "40 ms are less than half of 100");
    let _one = far.begin();
    assert_eq!(picked(), near.id, "twice 40 are not");
}

#[test]
fn one_failure_is_the_balancer_s_business_and_two_in_a_row_are_the_tier_s() {
    let endpoints = [(0, "r", ""), (0, "r", ""), (1, "r", "")];
    let World { cluster, .. } = world(&endpoints, algorithm(Algorithm::PeakEwma));
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    let fails =
        |now| cluster.record(&endpoint, &Answer::new(AttemptOutcome::Failure, Duration::from_millis(1)), now);
    let well = |now| cluster.tiers(now)[0].well;
    let first = Tick::ZERO.after(Duration::from_secs(1));
    fails(first);
    assert_eq!(well(first), 2);
    let second = first.after(Duration::from_millis(50));
    fails(second);
    assert_eq!(well(second), 1, "its trial has failed too");
    assert_eq!(well(second.after(Duration::from_millis(100))), 2, "its rest is over");
}

proptest! {
    /// One more that is well never takes requests from its own tier, nor gives any to a later one.
    #[test]
    fn who_gets_well_gets_no_less(
        tiers in prop::collection::vec((0usize..20, 1usize..20), 1..5),
        which in 0usize..5,
        factor in 100u32..200,
    ) {
        let tiers: Vec<_> = tiers.into_iter().map(|(well, members)| (well.min(members), members)).collect();
        let which = which % tiers.len();
        let before = shares(&tiers, factor);
        prop_assert_eq!(crate::invariants::shares(&tiers, &before), Ok(()));
        let mut better = tiers.clone();
        better[which].0 = (better[which].0 + 1).min(better[which].1);
        let after = shares(&better, factor);
        // Two thousandths for rounding.
        prop_assert!(after[which] + 2 >= before[which], "{:?} {:?}", before, after);
        let later = |shares: &[u32]| shares[which + 1..].iter().sum::<u32>();
        prop_assert!(later(&after) <= later(&before) + 2, "{:?} {:?}", before, after);
    }
}

struct World {
    builder: SnapshotBuilder,
    cluster: Arc<Cluster>,
}

/// Endpoints at 10.ZONE.0.N, zones and labels as told; the proxy runs in zone `z0` of region `r`.
fn world(endpoints: &[(usize, &str, &str)], policy: v1::TrafficPolicy) -> World {
    let mut next = BTreeMap::new();
    let endpoints = endpoints.iter().map(|(zone, region, role)| {
        let n: &mut u32 = next.entry(zone).or_default();
        *n += 1;
        v1::Endpoint {
            zone: format!("z{zone}"),
            region: (*region).to_owned(),
            labels: [("role".to_owned(), (*role).to_owned())].into(),
            ..wire_endpoint(&format!("10.{zone}.0.{n}"))
        }
    });
    let endpoints = endpoints.collect();
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        slice("ns/a-1", "ns/a", ("", 80), endpoints),
        policy_change(policy),
    ];
    let mut builder = SnapshotBuilder::new();
    builder.run_at(Locality { zone: "z0".into(), region: "r".into() });
    let snapshot = build(&mut builder, changes);
    World { cluster: Arc::clone(snapshot.cluster(&key("ns/a", 80)).expect("a cluster")), builder }
}

fn algorithm(algorithm: Algorithm) -> v1::TrafficPolicy {
    use v1::traffic_policy::Algorithm as Wire;
    let (wire, hash_policy) = match algorithm {
        Algorithm::PeakEwma => (Wire::PeakEwma, vec![]),
        Algorithm::LeastRequest => (Wire::LeastRequest, vec![]),
        Algorithm::RoundRobin => (Wire::RoundRobin, vec![]),
        Algorithm::Random => (Wire::Random, vec![]),
        Algorithm::RingHash | Algorithm::Maglev => {
            let kind = Some(v1::hash_rule::Kind::SourceAddress(true));
            let wire = if algorithm == Algorithm::Maglev { Wire::Maglev } else { Wire::RingHash };
            (wire, vec![v1::HashRule { kind, terminal: false }])
        }
    };
    let load_balancer = Some(v1::LoadBalancer { hash_policy, ..Default::default() });
    v1::TrafficPolicy { algorithm: wire.into(), load_balancer, ..Default::default() }
}

fn failover(prefer: Prefer, priorities: &[&str]) -> v1::TrafficPolicy {
    let prefer = match prefer {
        Prefer::Zone => v1::failover::Prefer::Zone,
        Prefer::Region => v1::failover::Prefer::Region,
        Prefer::Nothing => v1::failover::Prefer::Nothing,
    };
    let labels = |role: &&str| v1::Labels { labels: [("role".to_owned(), (*role).to_owned())].into() };
    let failover = v1::Failover {
        prefer: prefer.into(),
        priorities: priorities.iter().map(labels).collect(),
        overprovisioning_factor: 140,
        panic_threshold: Some(50),
    };
    let load_balancer = Some(v1::LoadBalancer { failover: Some(failover), ..Default::default() });
    v1::TrafficPolicy { load_balancer, ..Default::default() }
}

impl World {
    /// Of a thousand requests, how many went to each zone.
    fn zones(&self, now: Tick) -> BTreeMap<String, u32> {
        let mut zones = BTreeMap::new();
        for picked in self.picks(now) {
            *zones.entry(picked.zone.to_string()).or_default() += 1;
        }
        zones
    }

    /// Whom a thousand requests go to.
    fn picks(&self, now: Tick) -> Vec<Arc<Endpoint>> {
        let mut rng = SeededRng::new(11);
        let wanted = |n: u64| Wanted { hash: Some(stir(n)), ..Wanted::default() };
        let pick = |n| self.cluster.pick_explained(now, &mut rng, &wanted(n), &mut NoReasons).expect("one");
        (0..1_000).map(pick).collect()
    }

    fn share(&self, zone: &str, now: Tick) -> u32 {
        self.zones(now).get(zone).copied().unwrap_or_default()
    }

    fn endpoints(&self, zone: &str) -> Vec<Arc<Endpoint>> {
        self.cluster.endpoints().all().iter().filter(|e| *e.zone == *zone).cloned().collect()
    }
}

const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::PeakEwma,
    Algorithm::LeastRequest,
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::RingHash,
    Algorithm::Maglev,
];

/// Four in each of two zones of the own region, two elsewhere.
fn three_zones() -> Vec<(usize, &'static str, &'static str)> {
    [vec![(0, "r", ""); 4], vec![(1, "r", ""); 4], vec![(2, "s", ""); 2]].concat()
}

fn at(seconds: u64) -> Tick {
    Tick::ZERO.after(Duration::from_secs(seconds))
}

#[test]
fn the_own_zone_is_called_then_the_region_then_others_and_back() {
    for of in ALGORITHMS {
        let world = world(&three_zones(), algorithm(of));
        assert_eq!(world.share("z0", at(1)), 1_000, "{of:?}");
        let own = world.endpoints("z0");
        own[..2].iter().for_each(|e| e.stats.standing.eject_until(at(100).as_nanos()));
        let half = world.zones(at(2));
        assert!(half["z0"].abs_diff(700) < 50 && half["z1"].abs_diff(300) < 50, "{of:?}: {half:?}");
        own.iter().for_each(|e| e.stats.standing.eject_until(at(100).as_nanos()));
        assert_eq!(world.share("z1", at(3)), 1_000, "{of:?}");
        world.endpoints("z1").iter().for_each(|e| e.stats.standing.eject_until(at(10).as_nanos()));
        own.iter().for_each(|e| e.stats.forgive());
        assert_eq!(world.share("z0", at(4)), 1_000, "{of:?}: it is back");
    }
}

#[test]
fn one_that_rests_sends_nobody_out_of_its_zone() {
    for of in ALGORITHMS {
        let world = world(&three_zones(), algorithm(of));
        let resting = world.endpoints("z0").remove(0);
        let failure = Answer::new(AttemptOutcome::Failure, Duration::from_millis(1));
        world.cluster.record(&resting, &failure, at(1));
        let soon = at(1).after(Duration::from_millis(1));
        assert!(resting.stats.is_resting(soon));
        assert_eq!(world.share("z0", soon), 1_000, "{of:?}: three others are there");
        let to = |n: u64| {
            let wanted = Wanted { hash: Some(stir(n)), ..Wanted::default() };
            let mut rng = SeededRng::new(n);
            world.cluster.pick_explained(soon, &mut rng, &wanted, &mut NoReasons).expect("one").id
        };
        if of.shape().is_some() {
            assert!((0..100).all(|n| to(n) == to(n)), "{of:?}: a hash leads to one");
        }
    }
}

#[test]
fn failures_alone_move_requests_to_the_next_zone_and_back_by_single_trials() {
    for of in ALGORITHMS {
        let world = world(&three_zones(), algorithm(of));
        let failure = Answer::new(AttemptOutcome::Failure, Duration::from_millis(1));
        let own = world.endpoints("z0");
        own.iter().for_each(|e| drop(world.cluster.record(e, &failure, at(1))));
        let soon = at(1).after(Duration::from_millis(200));
        own.iter().for_each(|e| drop(world.cluster.record(e, &failure, soon)));
        assert_eq!(world.share("z0", soon), 0, "{of:?}: it fails, and nothing had to be configured");
        // After their rest each is tried by one request; nobody knows yet how that ends.
        assert!((1..=4).contains(&world.share("z0", at(3))), "{of:?}");
        let success = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
        own.iter().for_each(|e| drop(world.cluster.record(e, &success, at(4))));
        assert_eq!(world.share("z0", at(5)), 1_000, "{of:?}");
    }
}

#[test]
fn only_peak_ewma_passes_by_who_has_failed_while_another_of_the_zone_has_not() {
    let failure = Answer::new(AttemptOutcome::Failure, Duration::from_millis(1));
    for of in ALGORITHMS {
        let world = world(&three_zones(), algorithm(of));
        let failing = world.endpoints("z0").remove(0);
        for failures in 1..=4 {
            drop(world.cluster.record(&failing, &failure, at(failures)));
            let soon = at(failures).after(Duration::from_millis(1));
            assert!(failing.stats.is_resting(soon));
            let mut rng = SeededRng::new(failures);
            let picked = (0_u64..1_000).map(|n| {
                let wanted = Wanted { hash: Some(stir(n)), ..Wanted::default() };
                world.cluster.pick_explained(soon, &mut rng, &wanted, &mut NoReasons).expect("one")
            });
            let near: Vec<_> = picked.filter(|picked| *picked.zone == *"z0").collect();
            assert!(near.len() > 900, "{of:?}: three of four carry everything");
            let share = near.iter().filter(|picked| picked.id == failing.id).count() * 100 / near.len();
            let is_even = (15..=35).contains(&share);
            assert_eq!(
                (share == 0, is_even),
                (of == Algorithm::PeakEwma, of != Algorithm::PeakEwma),
                "{of:?}: {share} %"
            );
        }
    }
}

#[test]
fn a_zone_all_of_which_asks_to_be_left_alone_is_by_repeats_unless_a_hash_leads_there() {
    let answer = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
    let asks = Answer { push_back: Some(Duration::from_secs(30)), ..answer };
    for of in ALGORITHMS {
        let world = world(&three_zones(), algorithm(of));
        let own = world.endpoints("z0");
        let is_repeated_here = |seconds| {
            let wanted = Wanted { tried: &[own[0].id], hash: Some(7), ..Wanted::default() };
            let mut rng = SeededRng::new(11);
            let picked = world.cluster.pick_explained(at(seconds), &mut rng, &wanted, &mut NoReasons);
            *picked.expect("one").zone == *"z0"
        };
        own[1..].iter().for_each(|one| drop(world.cluster.record(one, &asks, at(1))));
        assert_eq!(world.share("z0", at(2)), 1_000, "{of:?}: most of it ask");
        drop(world.cluster.record(&own[0], &asks, at(1)));
        assert_eq!(world.share("z0", at(2)), 1_000, "{of:?}: nobody knows how large the next one is");
        assert_eq!(is_repeated_here(2), of.shape().is_some(), "{of:?}");
        assert!(is_repeated_here(32), "{of:?}: its time is over");
    }
}

/// Nobody knows whether who has not asked can do all the work of the others.
#[test]
fn in_each_zone_as_many_are_left_alone_as_the_others_of_it_can_stand_for() {
    let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
    let asks = Answer { push_back: Some(Duration::from_secs(30)), status: 503, ..well };
    for of in ALGORITHMS.into_iter().filter(|of| of.shape().is_none()) {
        let world = world(&three_zones(), algorithm(of));
        let own = world.endpoints("z0");
        for (asking, now) in (1..=4).zip((2..).map(at)) {
            drop(world.cluster.record(&own[asking - 1], &asks, at(1)));
            let mut rng = SeededRng::new(11);
            let picked: Vec<_> =
                (0..400).map(|_| world.cluster.pick(now, &mut rng, &[]).expect("one").id).collect();
            let count = |one: &Arc<Endpoint>| picked.iter().filter(|id| **id == one.id).count();
            let to: Vec<_> = own.iter().map(count).collect();
            assert_eq!(to.iter().sum::<usize>(), 400, "{of:?}: {asking} ask");
            let asked = &to[..asking];
            assert_eq!(asked.iter().all(|calls| *calls == 0), asking <= 2, "{of:?}: {to:?}");
            assert_eq!(asked.iter().all(|calls| *calls > 0), asking > 2, "{of:?}: {to:?}");
        }
    }
}

/// Nobody's wish is told by what others of all zones have asked for.
#[test]
fn whose_wish_is_heeded_is_told_by_its_own_zone() {
    let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
    let asks = Answer { push_back: Some(Duration::from_secs(30)), status: 503, ..well };
    let world = world(&three_zones(), algorithm(Algorithm::Random));
    let (own, far) = (world.endpoints("z0"), world.endpoints("z1").remove(0));
    let told = |now| {
        let mut told = Explanation::default();
        world.cluster.pick_explained(now, &mut SeededRng::new(1), &Wanted::default(), &mut told);
        let of = |one: &Arc<Endpoint>| {
            let address = one.address().to_string();
            told.0
                .iter()
                .filter(|reason| reason.subject == address)
                .map(|reason| reason.why.clone())
                .collect::<String>()
        };
        (own.iter().map(of).collect::<Vec<_>>(), of(&far))
    };
    own[..2].iter().for_each(|one| drop(world.cluster.record(one, &asks, at(1))));
    assert!(told(at(2)).0[..2].iter().all(|why| why.contains("has asked to be left alone for a while")));
    [&own[2], &far].iter().for_each(|one| drop(world.cluster.record(one, &asks, at(2))));
    let (told, of_far) = told(at(3));
    assert!(of_far.contains("for a while"), "one of its four: {of_far}");
    let halved = told[..3].iter().filter(|why| why.contains("half of its weight")).count();
    assert!(
        halved >= 2 && !told.iter().any(|why| why.contains("for a while")),
        "of four three ask: {told:?}"
    );
}

/// Each time-out makes an endpoint rest for four seconds, whatever comes after it.
#[test]
fn a_zone_with_too_much_to_do_is_left_though_it_answers_well_in_between() {
    for of in ALGORITHMS {
        let world = world(&three_zones(), algorithm(of));
        let timed_out = Answer::new(AttemptOutcome::Failure, Duration::from_secs(1));
        let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(900));
        let own = world.endpoints("z0");
        let fails = |one: &Arc<Endpoint>, now| {
            let answers = [timed_out, well, timed_out, well, timed_out, well];
            answers.iter().for_each(|answer| drop(world.cluster.record(one, answer, now)));
        };
        own[1..].iter().for_each(|one| fails(one, at(1)));
        assert_eq!(world.share("z0", at(2)), 1_000, "{of:?}: one has not failed");
        fails(&own[0], at(2));
        assert_eq!(world.share("z0", at(3)), 0, "{of:?}");
        assert!(world.share("z0", at(6)) > 900, "{of:?}: their rest is over");
    }
}

/// A time-out in two hundred answers makes each of few endpoints rest for much of the time, so that all do now and then.
#[test]
fn a_zone_that_answers_nearly_everything_well_is_not_left_though_all_of_it_rest() {
    for of in ALGORITHMS {
        let world = world(&three_zones(), algorithm(of));
        let own = world.endpoints("z0");
        let timed_out = Answer::new(AttemptOutcome::Failure, Duration::from_secs(2));
        let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(5));
        for second in [1, 10, 20] {
            for one in &own {
                (0..200).for_each(|_| drop(world.cluster.record(one, &well, at(second))));
                drop(world.cluster.record(one, &timed_out, at(second)));
                drop(world.cluster.record(one, &well, at(second)));
                assert!(one.stats.is_resting(at(second + 1)));
            }
            assert_eq!(world.share("z0", at(second + 1)), 1_000, "{of:?}");
        }
    }
}

/// It may have nothing under way, and be the quickest to answer for that.
#[test]
fn a_zone_that_is_kept_for_one_that_rests_gives_nothing_to_one_that_does_fail() {
    let world = world(&three_zones(), algorithm(Algorithm::PeakEwma));
    let own = world.endpoints("z0");
    let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(5));
    let failed = Answer::new(AttemptOutcome::Failure, Duration::from_millis(1));
    for one in &own {
        (0..200).for_each(|_| drop(world.cluster.record(one, &well, at(1))));
        drop(world.cluster.record(one, &Answer::new(AttemptOutcome::Failure, Duration::from_secs(2)), at(1)));
    }
    (0..3).for_each(|_| drop(world.cluster.record(&own[0], &failed, at(1))));
    assert!(own.iter().all(|one| one.stats.is_resting(at(2))));
    let dead = own[0].address();
    let picks = world.picks(at(2));
    assert_eq!(picks.iter().filter(|one| one.address() == dead).count(), 0);
    assert_eq!(
        picks.iter().filter(|one| own.iter().any(|own| own.address() == one.address())).count(),
        1_000
    );
}

/// One caller over its limit is no reason for others to go elsewhere.
#[test]
fn a_zone_that_refuses_every_other_request_by_a_limit_is_not_left() {
    let refused = Answer { status: 429, ..Answer::new(AttemptOutcome::Overloaded, Duration::from_secs(1)) };
    let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(5));
    for of in ALGORITHMS {
        let world = world(&three_zones(), algorithm(of));
        for second in [1, 10, 20] {
            for one in &world.endpoints("z0") {
                for answer in [refused, well].iter().cycle().take(20).chain([&refused, &refused]) {
                    drop(world.cluster.record(one, answer, at(second)));
                }
                assert!(one.stats.is_resting(at(second + 1)));
            }
            assert_eq!(world.share("z0", at(second + 1)), 1_000, "{of:?}");
        }
    }
}

#[test]
fn one_failure_moves_nothing() {
    let world = world(&three_zones(), algorithm(Algorithm::RoundRobin));
    let failure = Answer::new(AttemptOutcome::Failure, Duration::from_millis(1));
    drop(world.cluster.record(&world.endpoints("z0")[0], &failure, at(1)));
    assert_eq!(world.cluster.tiers(at(1))[0].share, WHOLE);
}

#[test]
fn a_zone_that_answers_slowly_is_left_for_one_that_does_not() {
    let world = world(&three_zones(), algorithm(Algorithm::PeakEwma));
    let answers = |zone: &str, millis, now| {
        let answer = Answer::new(AttemptOutcome::Success, Duration::from_millis(millis));
        world.endpoints(zone).iter().for_each(|e| drop(world.cluster.record(e, &answer, now)));
    };
    answers("z0", 15, at(1));
    assert_eq!(world.share("z0", at(1)), 1_000, "half of that would make no difference");
    for second in 2..20 {
        answers("z0", 200, at(second));
    }
    let explored = world.zones(at(20));
    assert_eq!(explored["z1"], 1, "one request finds out: {explored:?}");
    answers("z1", 150, at(20));
    assert_eq!(world.share("z0", at(20)), 1_000, "alike");
    answers("z1", 20, at(21));
    answers("z1", 20, at(31));
    answers("z0", 200, at(31));
    assert_eq!(world.share("z1", at(31)), 1_000);
    let strict =
        self::world(&[(0, "r", "first"), (1, "r", "second")], failover(Prefer::Zone, &["first", "second"]));
    let slow = Answer::new(AttemptOutcome::Success, Duration::from_secs(1));
    drop(strict.cluster.record(&strict.endpoints("z0")[0], &slow, at(1)));
    assert_eq!(strict.share("z0", at(1)), 1_000, "a second priority waits for the first to be unwell");
}

/// A near one, and in the next zone one that is quick and one that was far slower.
fn beside_a_slow_one(near_millis: u64) -> World {
    let endpoints = [(0, "r", ""), (1, "r", ""), (1, "r", "")];
    let world = world(&endpoints, algorithm(Algorithm::PeakEwma));
    for (endpoint, millis) in world.cluster.endpoints().all().iter().zip([near_millis, 60, 3_000]) {
        let answer = Answer::new(AttemptOutcome::Success, Duration::from_millis(millis));
        drop(world.cluster.record(endpoint, &answer, at(1)));
    }
    world
}

#[test]
fn a_request_that_stays_looks_at_nobody_in_the_next_zone() {
    let world = beside_a_slow_one(100);
    assert_eq!(world.share("z0", at(5)), 1_000, "60 ms are not less than half of 100");
    world.endpoints("z0")[0].stats.standing.eject_until(at(100).as_nanos());
    let slow = world.endpoints("z1")[1].id;
    let mut rng = SeededRng::new(11);
    // Shares are fresh again.
    let now = at(5).after(Duration::from_millis(20));
    let looks = (0..400).filter(|_| world.cluster.pick(now, &mut rng, &[]).expect("one").id == slow);
    assert_eq!(looks.count(), 1, "nobody looks at it yet");
}

#[test]
fn of_requests_that_go_to_the_next_zone_one_in_hundreds_looks_there() {
    let world = beside_a_slow_one(1_000);
    let slow = world.endpoints("z1")[1].id;
    let mut rng = SeededRng::new(11);
    let picked: Vec<_> = (0..400).map(|_| world.cluster.pick(at(5), &mut rng, &[]).expect("one")).collect();
    assert!(picked.iter().all(|one| *one.zone == *"z1"), "it takes less than half of the time there");
    assert_eq!(picked.iter().filter(|one| one.id == slow).count(), 1);
}

#[test]
fn a_priority_by_version_is_of_those_that_were_registered_with_it() {
    let labels = |version: &str| [("version".to_owned(), version.to_owned())].into();
    let mut policy = failover(Prefer::Zone, &[]);
    let said = policy.load_balancer.as_mut().and_then(|said| said.failover.as_mut()).unwrap();
    said.priorities = ["v1", "v2"].map(|version| v1::Labels { labels: labels(version) }).into();
    let World { mut builder, cluster } = world(&[], policy);
    let versioned = |n: u32, version: &str| v1::Endpoint {
        version: version.to_owned(),
        ..wire_endpoint(&format!("10.0.0.{n}"))
    };
    let labelled = v1::Endpoint { labels: labels("v2"), ..versioned(3, "v1") };
    let endpoints = vec![versioned(1, "v2"), versioned(2, "v1"), labelled, versioned(4, "")];
    build(&mut builder, [slice("ns/a-1", "ns/a", ("", 80), endpoints)]);
    let told: Vec<_> = cluster.tiers(at(1)).iter().map(|tier| (tier.rank.priority, tier.members)).collect();
    assert_eq!(told, [(0, 1), (1, 2), (2, 1)], "a label goes before what was registered as version");
    let mut rng = SeededRng::new(1);
    let picked = cluster.pick(at(1), &mut rng, &[]).unwrap();
    assert_eq!(picked.address().ip().to_string(), "10.0.0.2");
}

#[test]
fn priorities_go_before_nearness_and_nearness_can_be_left_aside() {
    let endpoints = [(1, "r", "main"), (0, "r", "spare"), (0, "r", ""), (2, "s", "main")];
    let world = world(&endpoints, failover(Prefer::Zone, &["main", "spare"]));
    let told: Vec<_> = world.cluster.tiers(at(1)).iter().map(|tier| tier.told().subject).collect();
    let expected = ["priority 0, region", "priority 0, elsewhere", "priority 1, zone", "priority 2, zone"];
    assert_eq!(told, expected);
    assert_eq!(world.share("z1", at(1)), 1_000);
    let regional = self::world(&three_zones(), failover(Prefer::Region, &[]));
    let zones = regional.zones(at(1));
    assert!(zones["z0"].abs_diff(500) < 60 && zones["z1"].abs_diff(500) < 60, "{zones:?}");
    let anywhere = self::world(&three_zones(), failover(Prefer::Nothing, &[]));
    assert!(anywhere.cluster.tiers(at(1)).is_empty());
    assert!(anywhere.share("z2", at(1)) > 100);
}

#[test]
fn a_proxy_that_moves_or_hints_that_change_are_seen_at_once() {
    let mut world = world(&three_zones(), algorithm(Algorithm::PeakEwma));
    world.builder.run_at(Locality { zone: "z2".into(), region: "s".into() });
    assert_eq!(world.share("z2", at(1)), 1_000);
    let hinted =
        v1::Endpoint { for_zones: vec!["z2".into()], zone: "z9".into(), ..wire_endpoint("10.9.0.1") };
    world.builder.apply([slice("ns/a-2", "ns/a", ("", 80), vec![hinted])]);
    let zones = world.zones(at(2));
    assert!(zones["z9"] > 200 && zones["z9"] + zones["z2"] == 1_000, "{zones:?}");
    world.builder.run_at(Locality::default());
    assert!(world.cluster.tiers(at(3)).is_empty(), "nobody knows where it is");
}

#[test]
fn where_too_many_are_ejected_ejections_are_disregarded() {
    let world = world(&[(0, "r", ""); 10], algorithm(Algorithm::RoundRobin));
    let all = world.endpoints("z0");
    let hit = |now| {
        let mut rng = SeededRng::new(1);
        (0..100).filter(|_| world.cluster.pick(now, &mut rng, &[]).is_some_and(|e| e.is_ejected(now))).count()
    };
    all[..5].iter().for_each(|e| e.stats.standing.eject_until(at(100).as_nanos()));
    assert_eq!((hit(at(1)), world.cluster.panics(at(1))), (0, false), "half are left");
    all[..6].iter().for_each(|e| e.stats.standing.eject_until(at(100).as_nanos()));
    assert!(world.cluster.panics(at(1)));
    assert_eq!(hit(at(1)), 60, "everybody has its share");
    let mut told = Explanation::default();
    world.cluster.pick_explained(at(1), &mut SeededRng::new(1), &Wanted::default(), &mut told);
    assert!(told.0.iter().any(|reason| reason.why.contains("disregarded")), "{told:?}");
}

#[test]
fn nobody_panics_while_another_tier_can_carry_everything() {
    let world = world(&[vec![(0, "r", ""); 8], vec![(1, "r", ""); 3]].concat(), algorithm(Algorithm::Random));
    world.endpoints("z0").iter().for_each(|e| e.stats.standing.eject_until(at(100).as_nanos()));
    assert!(!world.cluster.panics(at(1)));
    assert_eq!(world.share("z1", at(1)), 1_000);
    world.endpoints("z1")[1..].iter().for_each(|e| e.stats.standing.eject_until(at(100).as_nanos()));
    assert!(world.cluster.panics(at(1)), "one of three cannot");
}

#[test]
fn those_who_fail_their_checks_are_missing_to_their_zone() {
    let mut world = world(&[(0, "r", ""), (1, "r", "")], algorithm(Algorithm::PeakEwma));
    let ill = v1::Endpoint {
        health: v1::endpoint::Health::Unhealthy.into(),
        zone: "z0".into(),
        ..wire_endpoint("10.0.0.9")
    };
    let leaving = v1::Endpoint { health: v1::endpoint::Health::Draining.into(), ..ill.clone() };
    world.builder.apply([slice("ns/a-2", "ns/a", ("", 80), vec![ill])]);
    assert_eq!(world.cluster.tiers(at(1))[0].share, 700, "one of two");
    world.builder.apply([slice("ns/a-2", "ns/a", ("", 80), vec![leaving])]);
    assert_eq!(world.cluster.tiers(at(1))[0].share, WHOLE, "who leaves has been replaced");
}

#[test]
fn a_breaker_that_only_observes_moves_nobody_to_another_tier() {
    use v1::circuit_breaker::Mode;
    for (mode, stays) in [(Mode::Observe, true), (Mode::Enforce, false)] {
        let breaker = v1::CircuitBreaker {
            mode: mode.into(),
            per_endpoint: Some(true),
            window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
            minimum_calls: 1,
            failure_percent: 50,
            open_ms: 60_000,
            max_open_ms: 60_000,
            trials: 1,
            ..Default::default()
        };
        let policy = v1::TrafficPolicy { circuit_breaker: Some(breaker), ..Default::default() };
        let World { cluster, .. } = world(&[(0, "r", ""), (1, "r", "")], policy);
        let near = Arc::clone(&cluster.endpoints().tiers().expect("two").all()[0].set.pickable()[0]);
        let call = crate::breaker::Call { failed: true, took: Duration::from_millis(1) };
        let ticket = crate::breaker::Breaker::admit_at(&cluster, &near, at(1))
            .expect("it is closed")
            .expect("it counts");
        ticket.ended(call, at(1), &mut SeededRng::new(1));
        assert!(near.stats.breaker.is_tripped());
        assert_eq!(cluster.tiers(at(1))[0].share == WHOLE, stays, "{mode:?}");
    }
}

/// The own zone's only endpoint and the next zone's have answered like this of late.
fn near_and_far(near: u64, far: u64, now: Tick) -> (Arc<Cluster>, [Arc<Endpoint>; 2]) {
    let World { cluster, .. } = world(&[(0, "r", ""), (1, "r", "")], algorithm(Algorithm::PeakEwma));
    let both = [0, 1].map(|at| Arc::clone(&cluster.endpoints().all()[at]));
    for (endpoint, millis) in both.iter().zip([near, far]) {
        let took = Duration::from_millis(millis);
        cluster.record(endpoint, &Answer::new(AttemptOutcome::Success, took), now);
    }
    (cluster, both)
}

#[test]
fn a_zone_that_is_as_quick_as_the_next_one_is_not_left_however_much_it_has_to_do() {
    let picked = |far| {
        let (cluster, [near, _]) = near_and_far(100, far, at(1));
        let _busy: Vec<_> = (0..10).map(|_| near.begin()).collect();
        cluster.pick(at(1), &mut SeededRng::new(1), &[]).expect("somebody").zone.to_string()
    };
    assert_eq!(picked(99), "z0");
    assert_eq!(picked(49), "z1");
}

#[test]
fn nobody_leaves_a_slow_zone_for_one_that_has_failed_the_request_rests_or_is_ejected() {
    let (cluster, [near, far]) = near_and_far(100, 10, at(1));
    let picked = |tried: &[u64], now| cluster.pick(now, &mut SeededRng::new(1), tried).expect("somebody").id;
    assert_eq!(picked(&[], at(1)), far.id);
    assert_eq!(picked(&[far.id], at(1)), near.id, "it has failed this request");
    far.stats.standing.eject_until(at(2).as_nanos());
    assert_eq!(picked(&[], at(1)), near.id, "it is ejected");
    assert_eq!(picked(&[], at(2)), far.id);
    cluster.record(&far, &Answer::new(AttemptOutcome::Failure, Duration::from_millis(1)), at(2));
    assert_eq!(picked(&[], at(2)), near.id, "it rests");
}

#[test]
fn the_first_request_to_a_slow_zone_finds_out_about_the_next_one_also_when_the_clock_has_just_begun() {
    let world = world(&[(0, "r", ""), (1, "r", "")], algorithm(Algorithm::PeakEwma));
    let now = Tick::from_nanos(1_000_000);
    let slow = Answer::new(AttemptOutcome::Success, Duration::from_secs(1));
    drop(world.cluster.record(&world.endpoints("z0")[0], &slow, now));
    assert_eq!(world.share("z1", now), 1, "and it alone, for a second");
}
