use meshwork_base::SeededRng;
use meshwork_messages::v1;
use proptest::prelude::*;

use super::*;
use crate::Explanation;
use crate::builder::{Change, SnapshotBuilder};
use crate::cluster::{Algorithm, Cluster, Wanted};
use crate::load::Answer;
use crate::outlier::AttemptOutcome;
use crate::reasons::NoReasons;
use crate::tests::{build, key, policy_change, service, service_change, slice, wire_endpoint};

const POLICY: SlowStart =
    SlowStart { window: Duration::from_secs(60), aggression: 1_000, min_weight_percent: 10 };

const ALGORITHMS: [(Algorithm, v1::traffic_policy::Algorithm); 4] = {
    use v1::traffic_policy::Algorithm as Wire;
    [
        (Algorithm::PeakEwma, Wire::PeakEwma),
        (Algorithm::LeastRequest, Wire::LeastRequest),
        (Algorithm::RoundRobin, Wire::RoundRobin),
        (Algorithm::Random, Wire::Random),
    ]
};

fn at(seconds: u64) -> Tick {
    Tick::ZERO.after(Duration::from_secs(seconds))
}

/// Envoy's own formula, at points that can be worked out by hand.
#[test]
fn the_share_is_envoy_s() {
    let share = |aggression, min_weight_percent, seconds| {
        SlowStart { aggression, min_weight_percent, ..POLICY }.share(Duration::from_secs(seconds))
    };
    assert_eq!(
        [0, 6, 15, 30, 59, 60, 600].map(|age| share(1_000, 10, age)),
        [100, 100, 250, 500, 983, 1000, 1000]
    );
    assert_eq!([0, 15, 30].map(|age| share(2_000, 10, age)), [100, 500, 707], "square root: fast at first");
    assert_eq!([0, 15, 30].map(|age| share(500, 10, age)), [100, 100, 250], "square: late");
    assert_eq!([0, 30].map(|age| share(1_000, 100, age)), [1000, 1000], "at least everything");
    assert_eq!(share(1_000, 0, 0), 1, "never nothing");
}

proptest! {
    #[test]
    fn a_share_never_falls(
        aggression in 1u32..10_000,
        min_weight_percent in 1u32..=100,
        window in 1u64..1_000_000,
        ages in prop::collection::vec(0u64..2_000_000, 2..20),
    ) {
        let policy = SlowStart { window: Duration::from_millis(window), aggression, min_weight_percent };
        let mut ages = ages;
        ages.sort_unstable();
        let shares: Vec<u32> = ages.iter().map(|&age| policy.share(Duration::from_millis(age))).collect();
        prop_assert!(shares.is_sorted(), "{shares:?}");
        for (&age, &share) in ages.iter().zip(&shares) {
            prop_assert_eq!(invariants::slow_start(&policy, Duration::from_millis(age), share), Ok(()));
            prop_assert!(age < window || share == WHOLE);
        }
    }
}

/// A policy that asks for slow start.
fn asked(algorithm: v1::traffic_policy::Algorithm) -> v1::TrafficPolicy {
    let slow_start = v1::SlowStart { window_ms: 60_000, aggression: 1_000, min_weight_percent: 10 };
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(1),
        base_ejection_time_ms: 1_000,
        max_ejection_time_ms: 1_000,
        max_ejection_percent: 100,
        ..crate::tests::rows_off()
    };
    v1::TrafficPolicy {
        algorithm: algorithm.into(),
        load_balancer: Some(v1::LoadBalancer { slow_start: Some(slow_start), ..Default::default() }),
        outlier_detection: Some(outlier),
        ..Default::default()
    }
}

struct World {
    builder: SnapshotBuilder,
    cluster: Arc<Cluster>,
}

impl World {
    fn new(algorithm: v1::traffic_policy::Algorithm, endpoints: Vec<v1::Endpoint>) -> Self {
        Self::of(endpoints, [policy_change(asked(algorithm))])
    }

    fn of(endpoints: Vec<v1::Endpoint>, policy: impl IntoIterator<Item = Change>) -> Self {
        let service = service_change(&service("ns/a", &[("", 80)]));
        let changes = [service, slice("ns/a-1", "ns/a", ("", 80), endpoints)];
        let mut builder = SnapshotBuilder::new();
        let snapshot = build(&mut builder, changes.into_iter().chain(policy));
        Self { cluster: Arc::clone(snapshot.cluster(&key("ns/a", 80)).expect("a cluster")), builder }
    }

    /// From now on slow start is asked for.
    fn asks(&mut self, algorithm: v1::traffic_policy::Algorithm) {
        let snapshot = build(&mut self.builder, [policy_change(asked(algorithm))]);
        self.cluster = Arc::clone(snapshot.cluster(&key("ns/a", 80)).expect("a cluster"));
    }

    fn now_has(&mut self, endpoints: Vec<v1::Endpoint>) {
        build(&mut self.builder, [slice("ns/a-1", "ns/a", ("", 80), endpoints)]);
    }

    /// Percent of an even load that each endpoint has, nothing being under way.
    fn loads(&self, now: Tick) -> Vec<u32> {
        let set = self.cluster.endpoints();
        let mut counts = vec![0_u32; set.all().len()];
        let mut rng = SeededRng::new(7);
        let each = 2_000;
        let times = each * u32::try_from(counts.len()).unwrap();
        for _ in 0..times {
            let picked = self.cluster.pick(now, &mut rng, &[]).expect("somebody");
            counts[set.all().iter().position(|endpoint| endpoint.id == picked.id).unwrap()] += 1;
        }
        counts.into_iter().map(|count| count * 100 / each).collect()
    }
}

fn fleet(count: u32) -> Vec<v1::Endpoint> {
    (1..=count).map(|n| wire_endpoint(&format!("10.0.0.{n}"))).collect()
}

#[test]
fn one_that_comes_when_the_policy_is_new_is_slowed_beside_those_that_were_known_before() {
    for (algorithm, wire) in ALGORITHMS {
        let mut world = World::of(fleet(9), []);
        let loads = world.loads(at(100));
        assert!(loads.iter().all(|load| load.abs_diff(100) <= 12), "{algorithm:?}: {loads:?}");
        world.asks(wire);
        let loads = world.loads(at(113));
        assert!(loads.iter().all(|load| load.abs_diff(100) <= 12), "{algorithm:?}: all are old: {loads:?}");
        world.now_has(fleet(10));
        let newcomer = world.loads(at(114)).pop().unwrap();
        assert!(newcomer.abs_diff(11) <= 7, "{algorithm:?}: a tenth of its weight: {newcomer}");
    }
}

#[test]
fn one_that_comes_gets_a_share_that_grows_to_its_weight() {
    for (algorithm, wire) in ALGORITHMS {
        let mut world = World::new(wire, fleet(9));
        let even = |loads: &[u32], percent: u32| loads.iter().all(|load| load.abs_diff(percent) <= 12);
        let loads = world.loads(at(100));
        assert!(even(&loads, 100), "{algorithm:?}: a fleet that is found together: {loads:?}");
        world.now_has(fleet(10));
        for (seconds, percent) in
            [(200, 10), (206, 10), (215, 25), (230, 50), (245, 75), (260, 100), (500, 100)]
        {
            let loads = world.loads(at(seconds));
            // Of ten the last has so much of its weight, and the others share the rest.
            let whole = 100_000 / (900 + percent);
            let (newcomer, others) = loads.split_last().unwrap();
            assert!(newcomer.abs_diff(whole * percent / 100) <= 7, "{algorithm:?} at {seconds}: {loads:?}");
            assert!(even(others, whole), "{algorithm:?} at {seconds}: {loads:?}");
        }
    }
}

#[test]
fn where_all_are_new_nobody_is_slowed() {
    for (algorithm, wire) in ALGORITHMS {
        let mut world = World::new(wire, fleet(2));
        world.loads(at(100));
        // A fleet that begins bit by bit is measured by its oldest.
        world.now_has(fleet(4));
        let loads = world.loads(at(103));
        assert!(loads.iter().all(|load| load.abs_diff(100) <= 15), "{algorithm:?}: {loads:?}");
        let loads = world.loads(at(130));
        assert!(loads[3] > 80 && loads[0] < 115, "{algorithm:?}: 27 s beside 30: {loads:?}");
    }
}

/// The share of its weight that the first of two has, as explanations tell it.
fn told(world: &World, now: Tick) -> Vec<String> {
    let mut reasons = Explanation::default();
    // The first is not picked: a session is with the second.
    let second = world.cluster.endpoints().all()[1].id;
    let wanted = Wanted { session: Some(second), ..Wanted::default() };
    world.cluster.pick_explained(now, &mut SeededRng::new(1), &wanted, &mut reasons);
    let of_first = reasons.0.iter().filter(|reason| reason.subject.starts_with("10.0.0.1:"));
    of_first.map(|reason| reason.why.clone()).collect()
}

#[test]
fn one_whose_trial_went_well_begins_again() {
    let world = World::new(v1::traffic_policy::Algorithm::RoundRobin, fleet(3));
    let cluster = &world.cluster;
    world.loads(at(100));
    let first = Arc::clone(&cluster.endpoints().all()[0]);
    let took = Duration::from_millis(1);
    cluster.record(&first, &Answer::new(AttemptOutcome::Failure, took), at(200));
    assert!(first.is_ejected(at(200)));
    let mut rng = SeededRng::new(1);
    let picked =
        (0..3).map(|_| cluster.choose(at(201), &mut rng, &Wanted::default(), &mut NoReasons).unwrap());
    let trial = picked.filter_map(|picked| picked.trial).next().expect("one in three turns tries it");
    let shift = cluster.tried(trial, &Answer::new(AttemptOutcome::Success, took), at(201));
    assert!(shift.is_some_and(|shift| shift.ejection.is_none()), "it is back");
    assert_eq!(told(&world, at(201)), ["a candidate that has just begun: 10 % of its weight"]);
    assert_eq!(told(&world, at(231)), ["a candidate that has just begun: 50 % of its weight"]);
    assert_eq!(told(&world, at(261)), ["a candidate too"]);
    let loads = world.loads(at(201));
    assert!(loads[0] < 20, "{loads:?}");
}

#[test]
fn one_that_is_taken_in_again_or_is_another_instance_begins_again() {
    use v1::endpoint::Health;
    let mut world = World::new(v1::traffic_policy::Algorithm::Random, fleet(3));
    world.loads(at(100));
    let first = |change: fn(&mut v1::Endpoint)| {
        let mut endpoints = fleet(3);
        change(&mut endpoints[0]);
        endpoints
    };
    world.now_has(first(|endpoint| endpoint.health = Health::Unhealthy.into()));
    world.loads(at(200));
    world.now_has(fleet(3));
    world.loads(at(300));
    assert_eq!(told(&world, at(330)), ["a candidate that has just begun: 50 % of its weight"]);
    world.now_has(first(|endpoint| endpoint.instance = "another".into()));
    world.loads(at(400));
    assert_eq!(told(&world, at(430)), ["a candidate that has just begun: 50 % of its weight"]);
    world.now_has(first(|endpoint| (endpoint.instance, endpoint.weight) = ("another".into(), 3)));
    world.loads(at(440));
    assert_eq!(
        told(&world, at(445)),
        ["a candidate that has just begun: 75 % of its weight"],
        "it is the same"
    );
}

#[test]
fn one_that_begins_is_better_than_one_that_is_ejected() {
    for (algorithm, wire) in ALGORITHMS {
        let mut world = World::new(wire, fleet(1));
        world.loads(at(100));
        world.now_has(fleet(2));
        world.cluster.endpoints().all()[0].stats.standing.eject_until(at(300).as_nanos());
        let set = world.cluster.endpoints();
        // Ejections count, whatever is ejected.
        let mut rng = SeededRng::new(3);
        let regard = super::super::Regard::new(&set, at(200), &[], 0);
        for _ in 0..50 {
            let picked = match algorithm {
                Algorithm::PeakEwma => super::super::peak_ewma(&regard, &mut rng),
                Algorithm::LeastRequest => super::super::least_request(&regard, &mut rng),
                Algorithm::RoundRobin => super::super::round_robin(&regard, &world.cluster.shared.cursor),
                _ => super::super::random(&regard, &mut rng),
            };
            assert_eq!(picked.unwrap().id, set.all()[1].id, "{algorithm:?}");
        }
    }
}

#[test]
fn what_one_that_begins_has_under_way_weighs_more() {
    for (algorithm, wire) in &ALGORITHMS[..2] {
        let mut world = World::new(*wire, fleet(2));
        world.loads(at(100));
        world.now_has(fleet(3));
        world.loads(at(200));
        let set = world.cluster.endpoints();
        let [one, other, newcomer] = set.all() else { panic!("three") };
        let busy: Vec<_> = (0..5).flat_map(|_| [one.begin(), other.begin()]).collect();
        let with_none = world.loads(at(200))[2];
        let _one = newcomer.begin();
        let with_one = world.loads(at(200))[2];
        assert!(with_none > 20, "{algorithm:?}: it is free, and the others are not: {with_none}");
        assert!(with_one < with_none / 2, "{algorithm:?}: one is as much as ten: {with_one} of {with_none}");
        drop(busy);
    }
}

#[test]
fn where_a_hash_leads_does_not_hang_on_who_began() {
    let endpoints: Vec<_> = (1..=3).map(|id| crate::tests::endpoint(id, 1)).collect();
    let sight = crate::endpoint::Sight {
        place: &crate::preference::Locality::default(),
        preference: &Arc::default(),
        shape: Some(super::super::Shape::Maglev),
        slow_start: Some(POLICY),
        subsetting: None,
    };
    let set = crate::endpoint::EndpointSet::seen(endpoints, &sight);
    set.all()[0].stats.begun.at(at(50));
    assert!(set.shares(at(60)).is_none());
}

#[test]
fn of_two_the_one_that_begins_is_not_forced_upon_requests() {
    for (algorithm, wire) in &ALGORITHMS[..2] {
        let mut world = World::new(*wire, fleet(1));
        world.loads(at(100));
        world.now_has(fleet(2));
        let _busy = world.cluster.endpoints().all()[0].begin();
        let newcomer = world.loads(at(200))[1];
        assert!((20..100).contains(&newcomer), "{algorithm:?}: it is free, and begins: {newcomer}");
    }
}

#[test]
fn where_all_are_young_requests_under_way_weigh_as_ever() {
    let mut world = World::new(v1::traffic_policy::Algorithm::PeakEwma, fleet(1));
    world.loads(at(100));
    world.now_has(fleet(2));
    let now = at(102);
    world.loads(now);
    let set = world.cluster.endpoints();
    let [fast, slow] = set.all() else { panic!("two") };
    for (endpoint, millis) in [(fast, 10), (slow, 50)] {
        let took = Duration::from_millis(millis);
        endpoint.stats.load.record(&Answer::new(AttemptOutcome::Success, took), now);
    }
    let _two = [fast.begin(), fast.begin()];
    assert_eq!(world.loads(now), [200, 0], "three times 10 ms are less than 50");
}

#[test]
fn who_is_no_longer_out_for_everybody_begins_again() {
    let mut world = World::new(v1::traffic_policy::Algorithm::RoundRobin, fleet(4));
    let now = Tick::from_nanos(1);
    world.loads(now);
    let mut marked = fleet(4);
    marked[1].ejected = [(String::new(), 2)].into();
    world.now_has(marked);
    let later = now.after(Duration::from_secs(120));
    assert_eq!(world.loads(later)[1], 0);
    world.now_has(fleet(4));
    let loads = world.loads(later);
    assert!(loads[1] < 40 && loads[0] > 100, "{loads:?}");
}
