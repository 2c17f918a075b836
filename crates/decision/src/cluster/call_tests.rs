//! Calls, where endpoints have breakers and limits of their own.

use std::time::Duration;

use meshwork_base::SeededRng;
use meshwork_messages::v1;
use meshwork_messages::v1::traffic_policy::Algorithm;
use proptest::prelude::*;

use super::*;
use crate::breaker::{BreakerCause, BreakerState, Call, Ticket, Whose};
use crate::builder::SnapshotBuilder;
use crate::cause::Cause;
use crate::endpoint::InFlight;
use crate::limits::{Limited, Permit};
use crate::load::Answer;
use crate::outlier::{AttemptOutcome, Picked};
use crate::reasons::NoReasons;
use crate::tests::{build, key, policy_change, service, service_change, slice, wire_endpoint};

const TOOK: Duration = Duration::from_millis(1);
const ALL: [Algorithm; 6] = [
    Algorithm::PeakEwma,
    Algorithm::LeastRequest,
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::RingHash,
    Algorithm::Maglev,
];

/// So many endpoints of a service with this policy.
fn cluster(count: u32, traffic: v1::TrafficPolicy) -> Arc<Cluster> {
    let endpoints = (1..=count).map(|n| wire_endpoint(&format!("10.0.0.{n}"))).collect();
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        slice("ns/a-1", "ns/a", ("", 80), endpoints),
        policy_change(traffic),
    ];
    let snapshot = build(&mut SnapshotBuilder::new(), changes);
    Arc::clone(snapshot.cluster(&key("ns/a", 80)).expect("a cluster"))
}

fn breaking(count: u32, trials: u32) -> Arc<Cluster> {
    breaking_within(count, trials, None)
}

fn breaking_within(count: u32, trials: u32, limits: Option<v1::Limits>) -> Arc<Cluster> {
    let breaker = v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 2,
        failure_percent: 50,
        open_ms: 1_000,
        max_open_ms: 1_000,
        trials,
        per_endpoint: Some(true),
        ..Default::default()
    };
    cluster(count, v1::TrafficPolicy { circuit_breaker: Some(breaker), limits, ..Default::default() })
}

struct Caller {
    cluster: Arc<Cluster>,
    rng: SeededRng,
}

impl Caller {
    fn new(cluster: &Arc<Cluster>) -> Self {
        Self { cluster: Arc::clone(cluster), rng: SeededRng::new(3) }
    }

    fn call(&mut self, now: Tick) -> Result<(Picked, Option<Ticket>), Cause> {
        self.cluster.call(now, &mut self.rng, &Wanted::default(), &mut NoReasons)
    }

    /// Calls until the breaker of this endpoint has opened.
    fn trip(&mut self, id: u64, now: Tick) {
        for _ in 0..200 {
            let Ok((picked, ticket)) = self.call(now) else { return };
            let ticket = ticket.expect("a policy asks for it");
            assert!(matches!(ticket.whose(), Whose::Endpoint(_, of) if of.id == picked.endpoint.id));
            let failed = picked.endpoint.id == id;
            let change = ticket.ended(Call { failed, took: TOOK }, now, &mut self.rng);
            if let Some((_, change)) = change {
                assert_eq!((change.state, change.cause), (BreakerState::Open, BreakerCause::FailureRate));
                return assert!(failed);
            }
        }
        panic!("it never opened");
    }
}

fn ids(cluster: &Cluster) -> Vec<u64> {
    cluster.endpoints().all().iter().map(|endpoint| endpoint.id).collect()
}

#[test]
fn an_endpoint_whose_breaker_is_open_is_passed_by_until_its_trials_went_well() {
    let cluster = breaking(3, 2);
    let mut caller = Caller::new(&cluster);
    let (ill, now) = (ids(&cluster)[0], Tick::from_nanos(1));
    caller.trip(ill, now);
    for _ in 0..100 {
        assert_ne!(caller.call(now).unwrap().0.endpoint.id, ill);
    }
    assert_eq!(cluster.breaker(now).state, BreakerState::Closed, "the service has none");
    // Its open time is over: exactly two are tried, and they decide.
    let later = now.after(Duration::from_secs(1));
    let mut trials = Vec::new();
    for _ in 0..200 {
        let (picked, ticket) = caller.call(later).unwrap();
        if picked.endpoint.id == ill {
            trials.push(ticket.filter(Ticket::is_trial).expect("a trial"));
        }
    }
    assert_eq!(trials.len(), 2);
    // One that ends without a word gives its place to another.
    drop(trials.pop());
    let again = (0..200).filter_map(|_| caller.call(later).ok());
    let again: Vec<_> = again.filter(|(picked, _)| picked.endpoint.id == ill).collect();
    assert_eq!(again.len(), 1);
    trials.extend(again.into_iter().filter_map(|(_, ticket)| ticket));
    let ended =
        trials.into_iter().map(|t| t.ended(Call { failed: false, took: TOOK }, later, &mut caller.rng));
    let changes: Vec<_> = ended.flatten().map(|(_, change)| change.state).collect();
    assert_eq!(changes, [BreakerState::Closed]);
    assert!((0..100).any(|_| caller.call(later).unwrap().0.endpoint.id == ill));
}

#[test]
fn one_that_is_open_is_unwell_until_a_trial_is_due() {
    let cluster = breaking(2, 1);
    let mut caller = Caller::new(&cluster);
    let (ids, now) = (ids(&cluster), Tick::from_nanos(1));
    caller.trip(ids[0], now);
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    let later = now.after(Duration::from_secs(1));
    let policy = cluster.endpoint_breaker.as_ref().expect("it has one");
    let refuses = |now| endpoint.stats.breaker.refuses(policy, now);
    assert!(refuses(now) && !refuses(later), "a trial is due");
    assert!(endpoint.stats.breaker.is_tripped());
}

#[test]
fn where_the_breakers_of_all_are_open_calls_are_refused_also_in_panic() {
    let cluster = breaking(2, 1);
    let mut caller = Caller::new(&cluster);
    let now = Tick::from_nanos(1);
    for id in ids(&cluster) {
        caller.trip(id, now);
    }
    assert_eq!(caller.call(now).unwrap_err(), Cause::CircuitBreaker);
    assert_eq!(cluster.refused_by_breaker(), 1);
    let set = cluster.endpoints();
    set.all().iter().for_each(|endpoint| endpoint.stats.standing.eject_until(u64::MAX));
    assert!(cluster.panics(now));
    assert_eq!(caller.call(now).unwrap_err(), Cause::CircuitBreaker);
}

#[test]
fn another_instance_and_one_that_is_taken_in_again_begin_with_a_closed_breaker() {
    let cluster = breaking(2, 1);
    let mut caller = Caller::new(&cluster);
    let (ill, now) = (ids(&cluster)[0], Tick::from_nanos(1));
    caller.trip(ill, now);
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    endpoint.stats.forgive();
    assert!((0..100).any(|_| caller.call(now).unwrap().0.endpoint.id == ill));
    caller.trip(ill, now);
    assert!(endpoint.stats.breaker.is_tripped(), "and it opens again");
}

#[test]
fn breakers_that_no_policy_asks_for_any_more_are_forgotten() {
    for per_endpoint in [false, true] {
        let breaker = v1::CircuitBreaker {
            window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
            minimum_calls: 2,
            failure_percent: 50,
            open_ms: 1_000,
            max_open_ms: 1_000,
            trials: 1,
            per_endpoint: Some(per_endpoint),
            ..Default::default()
        };
        let with = |circuit_breaker| v1::TrafficPolicy { circuit_breaker, ..Default::default() };
        let changes = [
            service_change(&service("ns/a", &[("", 80)])),
            slice("ns/a-1", "ns/a", ("", 80), vec![wire_endpoint("10.0.0.1")]),
            policy_change(with(Some(breaker))),
        ];
        let mut builder = SnapshotBuilder::new();
        let mut built = |changes: &[crate::Change]| {
            let snapshot = build(&mut builder, changes.to_vec());
            Caller::new(snapshot.cluster(&key("ns/a", 80)).expect("a cluster"))
        };
        let may_call = |caller: &mut Caller, now| {
            let service = caller.cluster.try_call(now, &mut NoReasons)?;
            caller.call(now).map(|(_, endpoint)| endpoint.or(service))
        };
        let (mut caller, now) = (built(&changes), Tick::from_nanos(1));
        for _ in 0..2 {
            let ticket = may_call(&mut caller, now).unwrap().unwrap();
            ticket.ended(Call { failed: true, took: TOOK }, now, &mut SeededRng::new(1));
        }
        assert_eq!(may_call(&mut caller, now).unwrap_err(), Cause::CircuitBreaker);
        assert!(may_call(&mut built(&[policy_change(with(None))]), now).is_ok());
        let mut again = built(&[policy_change(with(Some(breaker)))]);
        let ticket = may_call(&mut again, now).expect("nothing is held against it");
        ticket.unwrap().ended(Call { failed: true, took: TOOK }, now, &mut SeededRng::new(1));
        assert!(may_call(&mut again, now).is_ok(), "one failure alone does not open it");
    }
}

#[test]
fn what_is_too_much_for_those_that_are_well_does_not_go_to_one_that_is_ejected() {
    let limits = v1::Limits { max_requests_per_endpoint: 1, ..Default::default() };
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::Maglev,
    ] {
        let policy =
            v1::TrafficPolicy { limits: Some(limits), algorithm: algorithm.into(), ..Default::default() };
        let cluster = cluster(3, policy);
        let mut caller = Caller::new(&cluster);
        let now = Tick::from_nanos(1);
        let set = cluster.endpoints();
        set.all()[0].stats.standing.eject_until(u64::MAX);
        let held: Vec<InFlight> = (0..2).map(|_| caller.call(now).unwrap().0.endpoint.begin()).collect();
        for _ in 0..20 {
            assert_eq!(caller.call(now).unwrap_err(), Cause::MaxRequests, "{algorithm:?}");
        }
        // In panic ejections are disregarded.
        set.all()[1].stats.standing.eject_until(u64::MAX);
        assert_eq!(caller.call(now).unwrap().0.endpoint.id, set.all()[0].id);
        drop(held);
    }
}

#[test]
fn who_is_waited_for_by_as_many_as_may_is_passed_by_while_another_is_not() {
    let limits = v1::Limits { max_pending_requests_per_endpoint: 1, ..Default::default() };
    let cluster = cluster(2, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
    let mut caller = Caller::new(&cluster);
    let now = Tick::from_nanos(1);
    let one = Arc::clone(&cluster.endpoints().all()[0]);
    let mut met = |times: u32| -> usize {
        (0..times).filter(|_| caller.call(now).unwrap().0.endpoint.id == one.id).count()
    };
    assert!(met(100) > 0);
    let waits = cluster.admit_pending(&one).unwrap();
    assert_eq!(met(100), 0);
    let other = Arc::clone(&cluster.endpoints().all()[1]);
    let _waits_too = cluster.admit_pending(&other).unwrap();
    assert!(met(100) > 0, "where all are, a connection may be free even so");
    assert_eq!(cluster.refused(Limited::Pending), 0);
    assert_eq!(cluster.admit_pending(&one).unwrap_err(), Cause::MaxPendingRequests);
    let told = (cluster.refused(Limited::Pending), cluster.told_limit(Limited::Pending));
    assert_eq!(told, (1, None), "the default was not what it met");
    drop(waits);
    assert_eq!(met(100), 100);
}

#[test]
fn who_is_waited_for_is_called_before_a_call_is_refused_by_one_that_is_full() {
    let limits = v1::Limits {
        max_pending_requests_per_endpoint: 1,
        max_requests_per_endpoint: 1,
        ..Default::default()
    };
    for algorithm in ALL {
        let policy =
            v1::TrafficPolicy { limits: Some(limits), algorithm: algorithm.into(), ..Default::default() };
        let cluster = cluster(2, policy);
        let mut caller = Caller::new(&cluster);
        let [full, awaited] = [0, 1].map(|index| Arc::clone(&cluster.endpoints().all()[index]));
        let _under_way = full.begin();
        let _waits = cluster.admit_pending(&awaited).unwrap();
        for _ in 0..50 {
            let called = caller.call(Tick::from_nanos(1)).map(|(picked, _)| picked.endpoint.id);
            assert_eq!(called, Ok(awaited.id), "{algorithm:?}: a connection to it may be free");
        }
    }
}

#[test]
fn who_has_no_connection_to_spare_is_passed_by_while_another_has() {
    let limits = v1::Limits { max_connections_per_endpoint: 2, ..Default::default() };
    for algorithm in [Algorithm::PeakEwma, Algorithm::RoundRobin, Algorithm::Random, Algorithm::RingHash] {
        let traffic =
            v1::TrafficPolicy { limits: Some(limits), algorithm: algorithm.into(), ..Default::default() };
        let cluster = cluster(3, traffic);
        let mut caller = Caller::new(&cluster);
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(caller.call(Tick::from_nanos(1)).unwrap().0.endpoint.begin());
        }
        let under_way = || cluster.endpoints().all().iter().map(|e| e.stats.in_flight()).collect::<Vec<_>>();
        assert_eq!(under_way(), [2, 2, 2], "{algorithm:?}");
        // All are alike then, as without the limit: nobody gets all of those who wait.
        let picks = (0..90).map(|_| caller.call(Tick::from_nanos(1)).unwrap().0.endpoint.id);
        let mut counts = std::collections::BTreeMap::new();
        picks.for_each(|id| *counts.entry(id).or_insert(0) += 1);
        assert!(counts.len() == 3 && counts.values().all(|count| *count >= 10), "{algorithm:?}: {counts:?}");
    }
}

#[test]
fn that_one_who_is_ejected_has_connections_to_spare_changes_nothing() {
    let limits = v1::Limits { max_connections_per_endpoint: 1, ..Default::default() };
    let algorithm = Algorithm::RoundRobin.into();
    let policy = v1::TrafficPolicy { limits: Some(limits), algorithm, ..Default::default() };
    let cluster = cluster(3, policy);
    let mut caller = Caller::new(&cluster);
    let set = cluster.endpoints();
    set.all()[0].stats.standing.eject_until(u64::MAX);
    let _held = [1, 2].map(|at: usize| set.all()[at].begin());
    let picks = (0..6).map(|_| caller.call(Tick::from_nanos(1)).unwrap().0.endpoint.id);
    let picks: std::collections::BTreeSet<u64> = picks.collect();
    assert_eq!(picks, [1, 2].map(|at: usize| set.all()[at].id).into(), "by turns, as without a limit");
}

#[test]
fn a_session_waits_for_its_endpoint_s_connection_and_a_retry_goes_to_another_endpoint() {
    let limits = v1::Limits { max_connections_per_endpoint: 1, ..Default::default() };
    let cluster = cluster(2, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
    let [one, other] = [0, 1].map(|at| Arc::clone(&cluster.endpoints().all()[at]));
    let _held = one.begin();
    let call = |wanted: &Wanted<'_>| {
        cluster
            .call(Tick::from_nanos(1), &mut SeededRng::new(1), wanted, &mut NoReasons)
            .unwrap()
            .0
            .endpoint
            .id
    };
    assert_eq!(call(&Wanted { session: Some(one.id), ..Wanted::default() }), one.id);
    assert_eq!(call(&Wanted { tried: &[other.id], ..Wanted::default() }), one.id);
    assert_eq!(call(&Wanted::default()), other.id);
}

#[test]
fn where_a_connection_carries_many_requests_nobody_waits_for_one() {
    let limits = v1::Limits { max_connections_per_endpoint: 1, ..Default::default() };
    let algorithm = Algorithm::Random.into();
    let policy = v1::TrafficPolicy { limits: Some(limits), algorithm, ..Default::default() };
    let mut http2 = Arc::into_inner(cluster(2, policy)).expect("nobody else holds it");
    http2.protocol = AppProtocol::Http2;
    let cluster = Arc::new(http2);
    let one = Arc::clone(&cluster.endpoints().all()[0]);
    let _held = one.begin();
    let mut caller = Caller::new(&cluster);
    assert!((0..200).any(|_| caller.call(Tick::from_nanos(1)).unwrap().0.endpoint.id == one.id));
}

#[test]
fn a_call_is_repeated_only_where_somebody_would_take_it_and_its_own_place_is_free() {
    let limits = v1::Limits {
        max_requests_per_endpoint: 1,
        max_pending_requests_per_endpoint: 1,
        ..Default::default()
    };
    let cluster = cluster(2, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
    let [one, other] = [0, 1].map(|at| Arc::clone(&cluster.endpoints().all()[at]));
    let now = Tick::from_nanos(1);
    let again = |own| cluster.may_call_again(own, now, &mut NoReasons);
    let _answered = one.begin();
    assert_eq!(again(Some((one.id, false))), Ok(()), "the other has room");
    let under_way = other.begin();
    assert_eq!(again(Some((one.id, false))), Ok(()), "its own place");
    assert_eq!(again(None), Err(Cause::MaxRequests));
    one.stats.standing.eject_until(u64::MAX);
    assert_eq!(
        again(Some((one.id, false))),
        Err(Cause::MaxRequests),
        "it would not go to one that is ejected"
    );
    drop(under_way);
    let _waits = cluster.admit_pending(&other).unwrap();
    assert_eq!(again(Some((one.id, false))), Err(Cause::MaxPendingRequests));
    assert_eq!(
        (cluster.refused(Limited::Request), cluster.refused(Limited::Pending)),
        (2, 1),
        "each is counted"
    );

    let cluster = breaking(2, 1);
    let mut caller = Caller::new(&cluster);
    let again = |now| cluster.may_call_again(None, now, &mut NoReasons);
    let [one, other] = [0, 1].map(|at: usize| ids(&cluster)[at]);
    caller.trip(one, now);
    assert_eq!(again(now), Ok(()));
    caller.trip(other, now);
    assert_eq!(again(now), Err(Cause::CircuitBreaker));
    assert_eq!(cluster.refused_by_breaker(), 1);
    assert_eq!(again(now.after(Duration::from_secs(1))), Ok(()), "a trial is due");
}

proptest! {
    /// Whatever begins and ends: nobody has more than its limit, and none is refused while somebody is below it.
    #[test]
    fn requests_go_where_there_is_room(
        count in 1u32..6,
        most in 1u32..4,
        steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..60),
    ) {
        let limits = v1::Limits { max_requests_per_endpoint: most, ..Default::default() };
        let cluster = cluster(count, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
        let mut caller = Caller::new(&cluster);
        let mut held: Vec<InFlight> = Vec::new();
        let mut refused = 0;
        for (begins, which) in steps {
            if !begins {
                if !held.is_empty() {
                    held.swap_remove(which.index(held.len()));
                }
                continue;
            }
            let room = held.len() < (count * most) as usize;
            match caller.call(Tick::from_nanos(1)) {
                Ok((picked, ticket)) => {
                    prop_assert!(room && ticket.is_none());
                    held.push(picked.endpoint.begin());
                }
                Err(cause) => {
                    refused += 1;
                    prop_assert_eq!((cause, room), (Cause::MaxRequests, false));
                }
            }
            prop_assert!(cluster.endpoints().all().iter().all(|e| e.stats.in_flight() <= most));
        }
        prop_assert_eq!(cluster.refused(Limited::Request), refused);
    }
}

#[test]
fn what_an_operator_forces_decides_about_repeats_too_and_a_refusal_counts() {
    let (cluster, now) = (cluster(1, v1::TrafficPolicy::default()), Tick::from_nanos(1));
    let until = now.after(Duration::from_secs(60));
    assert_eq!(cluster.may_call_again(None, now, &mut NoReasons), Ok(()));
    cluster.force_breaker(Some((crate::ForcedState::Open, until)));
    assert_eq!(cluster.may_call_again(None, now, &mut NoReasons), Err(Cause::CircuitBreaker));
    assert_eq!(cluster.refused_by_breaker(), 1);
    cluster.force_breaker(Some((crate::ForcedState::Closed, until)));
    assert_eq!(cluster.may_call_again(None, now, &mut NoReasons), Ok(()));
}

#[test]
fn what_only_one_that_is_ejected_would_take_is_repeated() {
    let cluster = breaking(2, 1);
    let now = Tick::from_nanos(1);
    let [tripped, out] = [0, 1].map(|at: usize| ids(&cluster)[at]);
    Caller::new(&cluster).trip(tripped, now);
    cluster.endpoints().all()[1].stats.standing.eject_until(u64::MAX);
    assert!(!cluster.panics(now), "half of them are left");
    assert_eq!(cluster.may_call_again(None, now, &mut NoReasons), Ok(()));
    let picked = Caller::new(&cluster).call(now).expect("its breaker is closed").0;
    assert_eq!(picked.endpoint.id, out, "as it would be called");
}

#[test]
fn a_pause_that_ends_with_the_deadline_is_too_long() {
    let cluster = cluster(1, v1::TrafficPolicy::default());
    cluster.served();
    let now = Tick::from_nanos(1);
    let pause = |deadline| cluster.pause(0, deadline, now, &mut SeededRng::new(1));
    let whole = pause(None).expect("it has been there");
    let end = now.after(whole);
    assert_eq!(pause(Some(end)), None, "nothing could be sent any more");
    assert_eq!(pause(Some(end.after(Duration::from_nanos(1)))), Some(whole));
}

/// Calls as a retry, and counts it where it goes.
fn repeats(caller: &mut Caller, now: Tick) -> Result<(Permit, u64), Cause> {
    let cluster = Arc::clone(&caller.cluster);
    let mut permit = cluster.admit_retry(&[], None, now)?;
    let wanted = Wanted::default().of_retry(Some(&permit));
    let (picked, _) = cluster.call(now, &mut caller.rng, &wanted, &mut NoReasons)?;
    permit.goes_to(&picked.endpoint);
    Ok((permit, picked.endpoint.id))
}

#[test]
fn a_retry_goes_where_fewer_are_under_way_than_may_be_and_nowhere_else() {
    let limits = v1::Limits { max_retries_per_endpoint: 1, ..Default::default() };
    let now = Tick::from_nanos(1);
    for algorithm in ALL {
        let policy =
            v1::TrafficPolicy { limits: Some(limits), algorithm: algorithm.into(), ..Default::default() };
        let cluster = cluster(3, policy);
        let mut caller = Caller::new(&cluster);
        cluster.endpoints().all()[2].stats.standing.eject_until(u64::MAX);
        let (first, one) = repeats(&mut caller, now).unwrap();
        let (_second, other) = repeats(&mut caller, now).unwrap();
        assert_ne!(one, other, "{algorithm:?}");
        for refused in 1..=20 {
            assert_eq!(repeats(&mut caller, now).unwrap_err(), Cause::MaxRetries, "{algorithm:?}");
            assert_eq!(cluster.refused(Limited::Retry), refused);
        }
        assert!((0..20).all(|_| caller.call(now).is_ok()), "{algorithm:?}: it is about nothing else");
        drop(first);
        assert_eq!(repeats(&mut caller, now).unwrap().1, one, "{algorithm:?}: it is free again");
    }
}

#[test]
fn where_all_are_ejected_a_retry_goes_to_one_of_them() {
    let limits = v1::Limits { max_retries_per_endpoint: 1, ..Default::default() };
    let failover =
        v1::Failover { overprovisioning_factor: 140, panic_threshold: Some(0), ..Default::default() };
    let balancer = v1::LoadBalancer { failover: Some(failover), ..Default::default() };
    let policy =
        v1::TrafficPolicy { limits: Some(limits), load_balancer: Some(balancer), ..Default::default() };
    let cluster = cluster(2, policy);
    let (mut caller, now) = (Caller::new(&cluster), Tick::from_nanos(1));
    let set = cluster.endpoints();
    set.all().iter().for_each(|endpoint| endpoint.stats.standing.eject_until(u64::MAX));
    assert!(!cluster.panics(now), "nobody is to be called as if he were well");
    let (_first, one) = repeats(&mut caller, now).expect("as a first attempt would");
    let (_second, other) = repeats(&mut caller, now).expect("the other has none yet");
    assert_ne!(one, other);
    assert_eq!(repeats(&mut caller, now).unwrap_err(), Cause::MaxRetries);
    assert_eq!(cluster.refused(Limited::Retry), 1);
}

#[test]
fn an_answer_is_kept_where_no_endpoint_may_have_another_retry() {
    let limits =
        v1::Limits { max_retries_per_endpoint: 1, max_requests_per_endpoint: 2, ..Default::default() };
    let cluster = cluster(2, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
    let (mut caller, now) = (Caller::new(&cluster), Tick::from_nanos(1));
    let again = |own| cluster.may_call_again(own, now, &mut NoReasons);
    let (first, one) = repeats(&mut caller, now).unwrap();
    assert_eq!(again(None), Ok(()));
    let (_second, _) = repeats(&mut caller, now).unwrap();
    assert_eq!(again(None), Err(Cause::MaxRetries));
    assert_eq!(again(Some((one, false))), Err(Cause::MaxRetries), "it is a first attempt that has answered");
    assert_eq!(again(Some((one, true))), Ok(()), "the retry that has answered makes room");
    // The one has no room for a retry, and the other for no request at all.
    drop(first);
    let set = cluster.endpoints();
    let free = set.all().iter().find(|endpoint| endpoint.id == one).unwrap();
    let _busy = [free.begin(), free.begin()];
    assert_eq!(again(None), Err(Cause::MaxRetries));
    let _all_busy: Vec<_> =
        set.all().iter().flat_map(|endpoint| [endpoint.begin(), endpoint.begin()]).collect();
    assert_eq!(again(None), Err(Cause::MaxRequests));
}

/// Of many that fail at once as many are repeated as there may be retries; the others keep what they were answered.
#[test]
fn a_retry_has_its_place_from_before_its_back_off_on() {
    let limits = v1::Limits { max_retries_per_endpoint: 2, ..Default::default() };
    let now = Tick::from_nanos(1);
    for algorithm in ALL {
        let policy =
            v1::TrafficPolicy { limits: Some(limits), algorithm: algorithm.into(), ..Default::default() };
        let cluster = cluster(3, policy);
        let mut caller = Caller::new(&cluster);
        cluster.endpoints().all()[2].stats.standing.eject_until(u64::MAX);
        let mut waiting: Vec<_> = (0..4).map(|_| cluster.admit_retry(&[], None, now).unwrap()).collect();
        for refused in 1..=3 {
            assert_eq!(cluster.admit_retry(&[], None, now).unwrap_err(), Cause::MaxRetries, "{algorithm:?}");
            assert_eq!(cluster.refused(Limited::Retry), refused);
        }
        let again = || cluster.may_call_again(None, now, &mut NoReasons);
        assert_eq!(again(), Err(Cause::MaxRetries), "what was answered is passed on");
        drop(waiting.pop());
        assert_eq!(again(), Ok(()), "a caller has left");
        waiting.push(cluster.admit_retry(&[], None, now).unwrap());
        assert_eq!(cluster.in_use(Limited::Retry), 4, "what is refused holds nothing");
        for permit in &mut waiting {
            let wanted = Wanted::default().of_retry(Some(permit));
            let (picked, _) = cluster.call(now, &mut caller.rng, &wanted, &mut NoReasons).unwrap();
            permit.goes_to(&picked.endpoint);
        }
        let counts = cluster.endpoints().all().iter().map(|one| one.stats.retries()).collect::<Vec<_>>();
        assert_eq!(counts, [2, 2, 0], "{algorithm:?}: each finds a place when its back-off is over");
        drop(waiting);
        assert!(cluster.endpoints().all().iter().all(|one| one.stats.retries() == 0));
    }
}

#[test]
fn of_retries_that_come_at_one_moment_each_that_is_let_through_has_a_place() {
    let limits = v1::Limits { max_retries_per_endpoint: 1, ..Default::default() };
    let cluster = cluster(1, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
    let one = Arc::clone(&cluster.endpoints().all()[0]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100_000 {
                    let Ok(permit) = cluster.admit_retry(&[], None, Tick::from_nanos(1)) else { continue };
                    assert_eq!((permit.place(), one.stats.retries()), (Some(one.id), 1));
                }
            });
        }
    });
}

#[test]
fn places_of_retries_are_kept_where_the_fewest_are() {
    let limits = v1::Limits { max_retries_per_endpoint: 3, ..Default::default() };
    let cluster = cluster(3, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
    let held: Vec<_> = (0..6).map(|_| cluster.admit_retry(&[], None, Tick::from_nanos(1)).unwrap()).collect();
    let counts = cluster.endpoints().all().iter().map(|one| one.stats.retries()).collect::<Vec<_>>();
    assert_eq!(counts, [2, 2, 2]);
    drop(held);
}

/// Two that have failed at the same endpoint: one finds the other endpoint, and has its place there until it does.
#[test]
fn a_retry_has_its_place_where_it_was_not_tried() {
    let limits = v1::Limits { max_retries_per_endpoint: 1, ..Default::default() };
    let failover =
        v1::Failover { overprovisioning_factor: 140, panic_threshold: Some(0), ..Default::default() };
    let balancer = v1::LoadBalancer { failover: Some(failover), ..Default::default() };
    let now = Tick::from_nanos(1);
    // How many are ejected: nobody, who has failed, and both.
    let cases = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)];
    for (algorithm, (failing, ejected)) in ALL.into_iter().flat_map(|one| cases.map(|case| (one, case))) {
        let case = format!("{algorithm:?}, {failing} fails, {ejected} are ejected");
        let policy = v1::TrafficPolicy {
            limits: Some(limits),
            load_balancer: Some(balancer.clone()),
            algorithm: algorithm.into(),
            ..Default::default()
        };
        let cluster = cluster(2, policy);
        let mut caller = Caller::new(&cluster);
        let set = cluster.endpoints();
        let [bad, good] = [failing, 1 - failing].map(|at: usize| &set.all()[at]);
        if ejected == 2 {
            good.stats.standing.eject_until(u64::MAX);
            bad.stats.standing.eject_until(u64::MAX);
        }
        let tried = [bad.id];
        let mut goes = |permit: &mut Permit| {
            let wanted = Wanted { tried: &tried, ..Wanted::default() }.of_retry(Some(permit));
            let (picked, _) = cluster.call(now, &mut caller.rng, &wanted, &mut NoReasons).expect(&case);
            permit.goes_to(&picked.endpoint);
            picked.endpoint.id
        };
        let mut first = cluster.admit_retry(&tried, None, now).unwrap();
        let mut second = cluster.admit_retry(&tried, None, now).unwrap();
        assert_eq!(cluster.admit_retry(&tried, None, now).unwrap_err(), Cause::MaxRetries, "{case}");
        // During the back-off.
        if ejected == 1 {
            bad.stats.standing.eject_until(u64::MAX);
        }
        assert_eq!(goes(&mut first), good.id, "{case}");
        drop(first);
        assert_eq!(goes(&mut second), good.id, "{case}: there is room now");
    }
}

proptest! {
    /// Whoever is let through its back-off is called after it; none is where as many are as may be, whatever they wait for; and
    /// what is counted at endpoints is what is held.
    #[test]
    fn retries_keep_within_the_limit_of_each_endpoint(
        (count, most) in (1u32..4, 1u32..4),
        steps in prop::collection::vec((0u8..3, any::<usize>()), 1..60),
    ) {
        let limits = v1::Limits { max_retries_per_endpoint: most, ..Default::default() };
        let cluster = cluster(count, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
        let (mut caller, now) = (Caller::new(&cluster), Tick::from_nanos(1));
        let mut held: Vec<Permit> = Vec::new();
        for (step, which) in steps {
            match step {
                0 => {
                    let admitted = cluster.admit_retry(&[], None, now);
                    prop_assert_eq!(admitted.is_ok(), held.len() < (count * most) as usize);
                    held.extend(admitted);
                }
                1 if !held.is_empty() => {
                    let at = which % held.len();
                    let wanted = Wanted::default().of_retry(Some(&held[at]));
                    let called = cluster.call(now, &mut caller.rng, &wanted, &mut NoReasons);
                    let (picked, _) = called.expect("it has a place");
                    held[at].goes_to(&picked.endpoint);
                }
                2 if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                _ => {}
            }
            let counts = cluster.endpoints().all().iter().map(|one| one.stats.retries()).collect::<Vec<_>>();
            for (endpoint, counted) in cluster.endpoints().all().iter().zip(counts) {
                let at = held.iter().filter(|permit| permit.place() == Some(endpoint.id)).count();
                prop_assert_eq!(crate::invariants::limit(Some(most), counted, at), Ok(()));
            }
        }
    }
}

#[test]
fn a_retry_counts_at_the_endpoint_that_it_is_at() {
    let cluster = cluster(2, v1::TrafficPolicy::default());
    let set = cluster.endpoints();
    let counts = || [0, 1].map(|at: usize| set.all()[at].stats.retries());
    let mut permit = cluster.admit_retry(&[], None, Tick::ZERO).unwrap();
    assert_eq!(counts(), [0, 0], "without a limit it needs no place before it goes anywhere");
    permit.goes_to(&set.all()[0]);
    assert_eq!(counts(), [1, 0]);
    permit.goes_to(&set.all()[1]);
    assert_eq!(counts(), [0, 1]);
    drop(permit);
    assert_eq!(counts(), [0, 0]);
}

#[test]
fn a_retry_finds_another_where_one_takes_it_and_has_not_asked_to_be_left_alone() {
    let limits = v1::Limits { max_requests_per_endpoint: 1, ..Default::default() };
    let cluster = cluster(3, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
    let set = cluster.endpoints();
    let [first, second, third] = [0, 1, 2].map(|at: usize| &set.all()[at]);
    let now = Tick::ZERO.after(Duration::from_secs(1));
    let has_another = |tried: &[u64], now| cluster.has_another(&Wanted { tried, ..Wanted::default() }, now);
    assert!(has_another(&[first.id], now));
    let busy = second.begin();
    let bare = Answer::new(AttemptOutcome::Failure, TOOK);
    cluster.record(third, &bare, now);
    assert!(has_another(&[first.id], now), "it has failed another request, and asked for nothing");
    let asks = Answer { push_back: Some(Duration::from_secs(5)), ..bare };
    cluster.record(third, &asks, now);
    assert!(!has_another(&[first.id], now), "one is at its limit, one wants to be left alone");
    assert!(has_another(&[first.id], now.after(Duration::from_secs(6))), "its time is over");
    drop(busy);
    assert!(has_another(&[first.id], now));
    assert!(!has_another(&[first.id, second.id], now), "both have failed it");
}

/// The other has as many retries as it may, one of which asks.
#[test]
fn a_retry_finds_another_where_its_own_place_is() {
    let limits = v1::Limits { max_retries_per_endpoint: 1, ..Default::default() };
    let cluster = cluster(2, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
    let tried = [cluster.endpoints().all()[0].id];
    let now = Tick::from_nanos(1);
    let permit = cluster.admit_retry(&tried, None, now).unwrap();
    let wanted = Wanted { tried: &tried, ..Wanted::default() };
    assert!(!cluster.has_another(&wanted, now), "another retry has the place");
    assert!(cluster.has_another(&wanted.of_retry(Some(&permit)), now));
}

/// Of two the breaker of one is open. As many retries are let through to their back-off as the other takes.
#[test]
fn no_retry_has_its_place_where_the_breaker_is_open() {
    let limits = v1::Limits { max_retries_per_endpoint: 1, ..Default::default() };
    for tripped in [0, 1] {
        let cluster = breaking_within(2, 1, Some(limits));
        let (mut caller, now) = (Caller::new(&cluster), Tick::from_nanos(1));
        caller.trip(ids(&cluster)[tripped], now);
        let first = cluster.admit_retry(&[], None, now).unwrap();
        assert_eq!(first.place(), Some(ids(&cluster)[1 - tripped]));
        assert_eq!(
            cluster.admit_retry(&[], None, now).unwrap_err(),
            Cause::MaxRetries,
            "what was answered is kept"
        );
        let wanted = Wanted::default().of_retry(Some(&first));
        assert!(cluster.call(now, &mut caller.rng, &wanted, &mut NoReasons).is_ok());
        drop(first);
        caller.trip(ids(&cluster)[1 - tripped], now);
        assert!(cluster.admit_retry(&[], None, now).is_ok(), "no limit is what stands in its way");
    }
}

/// The attempt that is to be repeated is still counted where it was.
#[test]
fn a_retry_has_its_place_where_there_is_room_for_a_request_too() {
    let limits =
        v1::Limits { max_requests_per_endpoint: 1, max_retries_per_endpoint: 1, ..Default::default() };
    let now = Tick::ZERO;
    let cluster = cluster(3, v1::TrafficPolicy { limits: Some(limits), ..Default::default() });
    let set = cluster.endpoints();
    for full in 0..3 {
        let [tried, free] = [1, 2].map(|on| &set.all()[(full + on) % 3]);
        let (own, busy) = (tried.begin(), set.all()[full].begin());
        let admit = || cluster.admit_retry(&[tried.id], Some(tried.id), now);
        let first = admit().unwrap();
        assert_eq!(first.place(), Some(free.id));
        let also_free = free.begin();
        let second = admit().unwrap();
        assert_eq!(second.place(), Some(tried.id), "its own attempt has ended by then");
        drop((first, second));
        let other_own = tried.begin();
        assert_ne!(admit().unwrap().place(), Some(tried.id), "all are full for now");
        drop((own, busy, also_free, other_own));
    }
}
