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
    let kind = Some(v1::hash_rule::Kind::SourceAddress(true));
    let hash_policy = match algorithm.shape() {
        Some(_) => vec![v1::HashRule { kind, terminal: false }],
        None => vec![],
    };
    let failover = v1::Failover {
        prefer: v1::failover::Prefer::Nothing.into(),
        priorities: vec![],
        overprovisioning_factor: 140,
        panic_threshold: Some(100),
    };
    let balancer = v1::LoadBalancer { hash_policy, failover: Some(failover), ..Default::default() };
    let traffic = v1::TrafficPolicy {
        algorithm: wire(algorithm).into(),
        load_balancer: Some(balancer),
        ..Default::default()
    };
    let endpoints = vec![wire_endpoint("10.0.0.1"), wire_endpoint("10.0.0.2")];
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
        let [of_one, of_other] = called(&cluster, at(60));
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
