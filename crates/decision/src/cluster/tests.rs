use std::collections::BTreeSet;
use std::time::Duration;

use meshwork_base::SeededRng;
use meshwork_messages::v1;

use super::*;
use crate::Snapshot;
use crate::balance;
use crate::builder::SnapshotBuilder;
use crate::load::Answer;
use crate::outlier::{AttemptOutcome, Trial};
use crate::reasons::{NoReasons, Reason, Reasons};
use crate::tests::{build, key, policy_change, service, service_change, slice, wire_endpoint};

const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::PeakEwma,
    Algorithm::LeastRequest,
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::RingHash,
    Algorithm::Maglev,
];

fn wire(algorithm: Algorithm) -> v1::traffic_policy::Algorithm {
    use v1::traffic_policy::Algorithm as Wire;
    match algorithm {
        Algorithm::PeakEwma => Wire::PeakEwma,
        Algorithm::LeastRequest => Wire::LeastRequest,
        Algorithm::RoundRobin => Wire::RoundRobin,
        Algorithm::Random => Wire::Random,
        Algorithm::RingHash => Wire::RingHash,
        Algorithm::Maglev => Wire::Maglev,
    }
}

/// Two endpoints, where one that is ejected is panic already.
fn easily_in_panic(algorithm: Algorithm) -> Arc<Cluster> {
    fleet_in_panic_below(100, algorithm, &[1, 1])
}

/// Endpoints of these weights.
fn fleet(algorithm: Algorithm, weights: &[u32]) -> Arc<Cluster> {
    fleet_in_panic_below(50, algorithm, weights)
}

fn fleet_in_panic_below(percent: u32, algorithm: Algorithm, weights: &[u32]) -> Arc<Cluster> {
    let kind = Some(v1::hash_rule::Kind::SourceAddress(true));
    let hash_policy = match algorithm.shape() {
        Some(_) => vec![v1::HashRule { kind, terminal: false }],
        None => vec![],
    };
    let failover = v1::Failover {
        prefer: v1::failover::Prefer::Nothing.into(),
        priorities: vec![],
        overprovisioning_factor: 140,
        panic_threshold: Some(percent),
    };
    let balancer = v1::LoadBalancer { hash_policy, failover: Some(failover), ..Default::default() };
    let traffic = v1::TrafficPolicy {
        algorithm: wire(algorithm).into(),
        load_balancer: Some(balancer),
        ..Default::default()
    };
    let endpoint = |(n, weight): (usize, &u32)| v1::Endpoint {
        weight: *weight,
        ..wire_endpoint(&format!("10.0.0.{n}"))
    };
    let endpoints = (1..).zip(weights).map(endpoint).collect();
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        slice("ns/a-1", "ns/a", ("", 80), endpoints),
        policy_change(traffic),
    ];
    let snapshot: Arc<Snapshot> = build(&mut SnapshotBuilder::new(), changes);
    Arc::clone(snapshot.cluster(&key("ns/a", 80)).expect("a cluster"))
}

/// Counts picks, and has them end.
struct Turns(u32);

impl Reasons for Turns {
    fn note(&mut self, _: impl FnOnce() -> Reason) {}

    fn notes<I: IntoIterator<Item = Reason>>(&mut self, _: impl FnOnce() -> I) {
        self.0 += 1;
        assert!(self.0 < 100, "it picks for ever");
    }
}

#[test]
fn in_panic_an_endpoint_on_trial_serves_like_any_other() {
    for algorithm in ALGORITHMS {
        let cluster = easily_in_panic(algorithm);
        let set = cluster.endpoints();
        let [tried, busy] = set.pickable() else { panic!("two endpoints") };
        tried.stats.standing.eject_until(1_000);
        let now = Tick::from_nanos(1_000);
        let trial = Trial::claim(tried, now).expect("nobody else tries it");
        assert!(trial.is_some() && cluster.panics(now));
        let _load: Vec<_> = (0..10).map(|_| busy.begin()).collect();
        let mut rng = SeededRng::new(11);
        let mut served = 0;
        for hash in 0..64_u64 {
            let wanted = Wanted { hash: Some(balance::stir(hash << 32 | 7)), ..Wanted::default() };
            let picked = cluster.choose(now, &mut rng, &wanted, &mut Turns(0)).expect("somebody");
            assert!(picked.trial.is_none(), "{algorithm:?}: a trial is had by one at a time");
            served += u32::from(picked.endpoint.id == tried.id);
        }
        assert!(served > 0, "{algorithm:?}: in panic nobody is passed by");
        let wanted = Wanted { session: Some(tried.id), ..Wanted::default() };
        let picked = cluster.choose(now, &mut rng, &wanted, &mut Turns(0)).expect("somebody");
        assert_eq!(picked.endpoint.id, tried.id, "{algorithm:?}: a session stays where it is");
    }
}

/// Which of two were called, for what leads to either.
fn called(cluster: &Cluster, now: Tick) -> [usize; 2] {
    let set = cluster.endpoints();
    let mut rng = SeededRng::new(11);
    let picked: Vec<_> = (0..64_u64)
        .map(|n| {
            let wanted = Wanted { hash: Some(balance::stir(n)), ..Wanted::default() };
            cluster.pick_explained(now, &mut rng, &wanted, &mut NoReasons).expect("somebody").id
        })
        .collect();
    [0, 1].map(|at: usize| picked.iter().filter(|id| **id == set.all()[at].id).count())
}

#[test]
fn who_asks_to_be_left_alone_is_while_another_is_there_unless_a_hash_leads_to_it() {
    let at = |seconds| Tick::ZERO.after(Duration::from_secs(seconds));
    for algorithm in ALGORITHMS {
        let cluster = easily_in_panic(algorithm);
        let set = cluster.endpoints();
        let [one, other] = set.pickable() else { panic!("two endpoints") };
        let answer = Answer::new(AttemptOutcome::Overloaded, Duration::from_millis(1));
        let asks = Answer { status: 429, push_back: Some(Duration::from_secs(60)), ..answer };
        cluster.record(one, &asks, at(1));
        let [of_one, of_other] = called(&cluster, at(59));
        assert_eq!(of_one > 0, algorithm.shape().is_some(), "{algorithm:?}");
        assert!(of_other > 0, "{algorithm:?}");
        // Nobody would be left: they are called as if nobody had asked.
        cluster.record(other, &asks, at(2));
        assert!(called(&cluster, at(60)).iter().all(|calls| *calls > 0), "{algorithm:?}");
        // Nor is one that has failed the request another.
        let cluster = easily_in_panic(algorithm);
        let set = cluster.endpoints();
        let [one, other] = set.pickable() else { panic!("two endpoints") };
        cluster.record(one, &asks, at(1));
        let tried = Wanted { tried: &[other.id], hash: Some(7), ..Wanted::default() };
        let picked = cluster.pick_explained(at(2), &mut SeededRng::new(1), &tried, &mut NoReasons);
        assert_eq!(picked.expect("somebody").id, one.id, "{algorithm:?}");
        assert!(called(&cluster, at(62))[0] > 0, "{algorithm:?}: its time is over");
    }
}

const SHARED: [Algorithm; 4] =
    [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];

/// An answer with this status, which asks for a minute.
fn asks(status: u16) -> Answer {
    let answer = Answer::new(AttemptOutcome::Overloaded, Duration::from_millis(1));
    Answer { status, push_back: Some(Duration::from_secs(60)), ..answer }
}

fn well() -> Answer {
    Answer::new(AttemptOutcome::Success, Duration::from_millis(1))
}

/// Of a thousand first attempts, how many went to each.
fn thousand(cluster: &Cluster, now: Tick) -> Vec<usize> {
    let mut rng = SeededRng::new(11);
    let picked: Vec<_> = (0..1_000).map(|_| cluster.pick(now, &mut rng, &[]).expect("somebody").id).collect();
    let set = cluster.endpoints();
    set.all().iter().map(|one| picked.iter().filter(|id| **id == one.id).count()).collect()
}

#[test]
fn nobody_has_more_than_twice_its_share_since_others_ask_to_be_left_alone() {
    let at = |seconds| Tick::ZERO.after(Duration::from_secs(seconds));
    for algorithm in SHARED {
        let cluster = fleet(algorithm, &[1; 10]);
        let set = cluster.endpoints();
        for (asking, now) in (1..=10).zip((3..).map(at)) {
            // Other requests are answered well: nothing but the wish speaks against it.
            [asks(503), well()]
                .iter()
                .for_each(|answer| drop(cluster.record(&set.all()[asking - 1], answer, at(1))));
            let to = thousand(&cluster, now);
            let told = format!("{algorithm:?}, {asking} ask: {to:?}");
            let (asked, others) = to.split_at(asking);
            assert!(others.iter().all(|calls| *calls < 240), "{told}");
            assert_eq!(asked.iter().all(|calls| *calls == 0), asking <= 5, "{told}");
            if asking > 5 {
                assert!(asked.iter().all(|calls| *calls > 30), "{told}");
                // Half of their weight, as long as somebody has not asked.
                let all: usize = asked.iter().sum();
                let expected = if asking == 10 { 1_000 } else { 1_000 * asking / (20 - asking) };
                assert!(all.abs_diff(expected) < 80, "{told}");
            }
        }
    }
}

#[test]
fn one_that_has_most_of_the_weight_is_not_left_alone_by_the_others() {
    let at = |seconds| Tick::ZERO.after(Duration::from_secs(seconds));
    for algorithm in SHARED {
        let cluster = fleet(algorithm, &[1, 1, 8]);
        let set = cluster.endpoints();
        [asks(503), well()].iter().for_each(|answer| drop(cluster.record(&set.all()[2], answer, at(1))));
        let to = thousand(&cluster, at(3));
        assert!(to[2] > 500 && to[2] < 760, "{algorithm:?}: four of six, {to:?}");
        // The two have a fifth of the weight.
        drop(cluster.record(&set.all()[2], &well(), at(62)));
        set.all()[..2].iter().for_each(|one| {
            [asks(503), well()].iter().for_each(|answer| drop(cluster.record(one, answer, at(62))));
        });
        assert_eq!(thousand(&cluster, at(64)), [0, 0, 1_000], "{algorithm:?}");
    }
}

#[test]
fn a_limit_that_others_do_not_meet_takes_no_more_than_half_of_an_endpoint_s_weight() {
    let at = |seconds| Tick::ZERO.after(Duration::from_secs(seconds));
    for algorithm in SHARED {
        for (status, then, least, most) in
            [(429, &[][..], 0, 0), (429, &[well()], 180, 420), (503, &[well()], 0, 0)]
        {
            let cluster = fleet(algorithm, &[1, 1]);
            let set = cluster.endpoints();
            [&[asks(status)], then]
                .concat()
                .iter()
                .for_each(|answer| drop(cluster.record(&set.all()[0], answer, at(1))));
            let to = thousand(&cluster, at(3));
            assert!((least..=most).contains(&to[0]), "{algorithm:?}, {status}, {then:?}: {to:?}");
            assert!(thousand(&cluster, at(62))[0] > 0, "{algorithm:?}: its time is over");
        }
    }
}

#[test]
fn a_repeat_goes_to_the_one_of_ten_that_has_not_asked_to_be_left_alone() {
    let now = Tick::ZERO.after(Duration::from_secs(3));
    for algorithm in SHARED {
        for status in [429, 503] {
            let cluster = fleet(algorithm, &[1; 10]);
            let set = cluster.endpoints();
            for one in &set.all()[1..] {
                [asks(status), well()].iter().for_each(|answer| drop(cluster.record(one, answer, now)));
            }
            let mut rng = SeededRng::new(11);
            let tried = [set.all()[1].id];
            let picked = (0..100).map(|_| cluster.pick(now, &mut rng, &tried).expect("somebody").id);
            assert!(picked.eq([set.all()[0].id; 100]), "{algorithm:?}, {status}");
        }
    }
}

#[test]
fn who_is_out_cannot_stand_for_those_who_ask() {
    let at = |seconds| Tick::ZERO.after(Duration::from_secs(seconds));
    for algorithm in SHARED {
        let cluster = fleet_in_panic_below(50, algorithm, &[1; 4]);
        let set = cluster.endpoints();
        for one in &set.all()[..2] {
            [asks(503), well()].iter().for_each(|answer| drop(cluster.record(one, answer, at(1))));
        }
        assert_eq!(thousand(&cluster, at(3))[..2], [0; 2], "{algorithm:?}: two of four are left");
        set.all()[3].stats.standing.eject_until(at(100).as_nanos());
        let to = thousand(&cluster, at(4));
        assert!(to[0] > 0 && to[1] > 0 && to[3] == 0, "{algorithm:?}: one of three is, {to:?}");
    }
}

#[test]
fn what_one_that_asks_has_under_way_weighs_twice() {
    let at = |seconds| Tick::ZERO.after(Duration::from_secs(seconds));
    let cluster = fleet(Algorithm::LeastRequest, &[1; 3]);
    let set = cluster.endpoints();
    for one in &set.all()[1..] {
        [asks(503), well()].iter().for_each(|answer| drop(cluster.record(one, answer, at(1))));
    }
    let _three: Vec<_> = (0..3).map(|_| set.all()[0].begin()).collect();
    let _two: Vec<_> = (0..2).map(|_| set.all()[1].begin()).collect();
    let _four: Vec<_> = (0..4).map(|_| set.all()[2].begin()).collect();
    let to = thousand(&cluster, at(3));
    // Whoever meets it has less to do, although two are fewer than three.
    assert!(to[0] > 600 && to[1] > 0 && to[2] < 50, "{to:?}");
    assert!(thousand(&cluster, at(62))[0] < 400, "without wishes it beats the third alone");
}

/// So many endpoints behind a gate of their own, since nobody else has one.
fn gated(algorithm: Algorithm, endpoints: usize) -> Arc<Cluster> {
    let overload = v1::Overload {
        adaptive_concurrency: Some(v1::overload::AdaptiveConcurrency {
            min_concurrency: 1,
            max_concurrency: 1,
            ..Default::default()
        }),
        queue: Some(v1::overload::Queue { max_requests: Some(0), ..Default::default() }),
        ..Default::default()
    };
    let traffic = v1::TrafficPolicy {
        algorithm: wire(algorithm).into(),
        overload: Some(overload),
        ..Default::default()
    };
    let endpoints = (1..=endpoints).map(|n| wire_endpoint(&format!("10.0.0.{n}")));
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        slice("ns/a-1", "ns/a", ("", 80), endpoints.collect()),
        policy_change(traffic),
    ];
    Arc::clone(build(&mut SnapshotBuilder::new(), changes).cluster(&key("ns/a", 80)).expect("a cluster"))
}

/// So many come to its gate while there is no room.
fn sent_away(cluster: &Cluster, count: usize, now: Tick) {
    use crate::overload::{Entered, Priority};

    let (gate, overload) = cluster.guard().expect("it has one");
    let enter = || gate.enter(overload, Priority::Default, now, || |_| {});
    let Ok(Entered::Passed(pass)) = enter() else { panic!("the first goes on") };
    assert!((0..count).all(|_| enter().is_err()));
    drop(pass);
}

#[test]
fn who_rests_is_asked_once_in_a_while_where_the_others_send_requests_away() {
    let at = |millis| Tick::ZERO.after(Duration::from_millis(millis));
    let cluster = gated(Algorithm::PeakEwma, 2);
    let set = cluster.endpoints();
    let hung = &set.all()[0];
    // It rests for four seconds.
    drop(cluster.record(hung, &Answer::new(AttemptOutcome::Failure, Duration::from_secs(1)), at(1_000)));
    let asked = |now| thousand(&cluster, now)[0];
    assert_eq!(asked(at(1_100)), 0);
    sent_away(&cluster, 19, at(1_100));
    assert_eq!(asked(at(1_100)), 0, "too few to pay for it");
    sent_away(&cluster, 1, at(1_100));
    assert_eq!(asked(at(1_100)), 1);
    sent_away(&cluster, 40, at(1_200));
    assert_eq!(asked(at(2_099)), 0, "a second ago");
    assert_eq!(asked(at(2_100)), 1);
    assert_eq!(asked(at(3_200)), 0, "nobody was sent away since");
    // What was under way says nothing, and neither does it make its rest longer that one more fails.
    let answer = |took| Answer::new(AttemptOutcome::Success, Duration::from_millis(took));
    drop(cluster.record(hung, &answer(2_000), at(3_300)));
    drop(cluster.record(hung, &Answer::new(AttemptOutcome::Failure, Duration::from_secs(1)), at(3_300)));
    assert!(hung.stats.is_resting(at(4_999)) && !hung.stats.is_resting(at(5_000)));
    drop(cluster.record(hung, &answer(50), at(3_400)));
    assert!(!hung.stats.is_resting(at(3_400)), "it is well again");
    assert!(asked(at(3_500)) > 300);
}

/// However many rest, no more requests are risked than those that were sent away are worth.
#[test]
fn twenty_that_are_sent_away_pay_for_one_of_all_who_rest() {
    let at = |millis| Tick::ZERO.after(Duration::from_millis(millis));
    let cluster = gated(Algorithm::PeakEwma, 10);
    let set = cluster.endpoints();
    let hung = &set.all()[..8];
    for one in hung {
        drop(cluster.record(one, &Answer::new(AttemptOutcome::Failure, Duration::from_secs(2)), at(1_000)));
    }
    let risked = |seed, now| {
        let mut rng = SeededRng::new(seed);
        let picked = (0..100).map(|_| cluster.pick(now, &mut rng, &[]).expect("somebody").id);
        picked.filter(|id| hung.iter().any(|one| one.id == *id)).collect::<Vec<_>>()
    };
    let mut asked = BTreeSet::new();
    for (n, now) in (0..30).map(|n| (n, at(1_100 + 200 * n))) {
        sent_away(&cluster, 20, now);
        let risked = risked(n, now);
        assert_eq!(risked.len(), 1, "{n}");
        asked.extend(risked);
    }
    assert_eq!(asked.len(), hung.len(), "each has its turn");
    sent_away(&cluster, 200, at(8_000));
    assert_eq!(risked(30, at(8_000)).len(), 1, "nothing is saved up");
}

#[test]
fn who_was_sent_away_before_a_rest_pays_for_nobody_in_it() {
    let at = |millis| Tick::ZERO.after(Duration::from_millis(millis));
    let cluster = gated(Algorithm::PeakEwma, 2);
    let set = cluster.endpoints();
    sent_away(&cluster, 1_000, at(1_000));
    assert!(thousand(&cluster, at(1_000))[0] > 300);
    drop(cluster.record(
        &set.all()[0],
        &Answer::new(AttemptOutcome::Failure, Duration::from_secs(1)),
        at(2_000),
    ));
    sent_away(&cluster, 19, at(2_100));
    assert_eq!(thousand(&cluster, at(2_100))[0], 0);
}

#[test]
fn a_repeat_does_not_find_out_who_rests_nor_does_who_has_asked_to_be_left_alone() {
    let now = Tick::ZERO.after(Duration::from_secs(1));
    let cluster = gated(Algorithm::PeakEwma, 2);
    let set = cluster.endpoints();
    let failure = Answer::new(AttemptOutcome::Failure, Duration::from_secs(1));
    drop(cluster.record(&set.all()[0], &failure, now));
    sent_away(&cluster, 20, now);
    let picked = cluster.pick(now, &mut SeededRng::new(1), &[7]).expect("somebody");
    assert_eq!(picked.id, set.all()[1].id);
    drop(cluster.record(&set.all()[0], &asks(503), now));
    assert_eq!(thousand(&cluster, now)[0], 0);
}

/// A failure that comes after it begins another rest, of which nobody has found anything out.
#[test]
fn what_was_sent_in_one_rest_does_not_end_the_next() {
    let at = |millis| Tick::ZERO.after(Duration::from_millis(millis));
    let cluster = gated(Algorithm::PeakEwma, 2);
    let set = cluster.endpoints();
    let hung = &set.all()[0];
    let failure = Answer::new(AttemptOutcome::Failure, Duration::from_secs(1));
    drop(cluster.record(hung, &failure, at(1_000)));
    sent_away(&cluster, 20, at(1_000));
    assert_eq!(thousand(&cluster, at(1_000))[0], 1);
    drop(cluster.record(hung, &failure, at(6_000)));
    let late = Answer::new(AttemptOutcome::Success, Duration::from_millis(4_900));
    drop(cluster.record(hung, &late, at(6_100)));
    assert!(hung.stats.is_resting(at(6_200)));
}
