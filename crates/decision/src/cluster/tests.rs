use meshwork_base::SeededRng;
use meshwork_messages::v1;

use super::*;
use crate::Snapshot;
use crate::builder::SnapshotBuilder;
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
