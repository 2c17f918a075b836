use meshwork_base::SeededRng;
use meshwork_messages::v1;
use proptest::prelude::*;

use super::*;
use crate::builder::SnapshotBuilder;
use crate::cluster::{Cluster, Wanted};
use crate::invariants;
use crate::load::Answer;
use crate::outlier::AttemptOutcome;
use crate::reasons::{Explanation, NoReasons};
use crate::tests::{build, key, policy_change, service, service_change, slice, wire_endpoint};

fn policy(unhealthy_threshold: u32, healthy_threshold: u32) -> HealthCheck {
    HealthCheck {
        probe: HealthProbe::Tcp { send: Box::default(), receive: Box::default() },
        interval: Duration::from_secs(3),
        interval_jitter: Duration::from_millis(300),
        timeout: Duration::from_secs(1),
        no_traffic_interval: Duration::from_secs(60),
        unhealthy_threshold,
        healthy_threshold,
    }
}

/// What checks say after each answer: `+` passed, `-` failed.
fn play(policy: &HealthCheck, answers: &str) -> String {
    let mut checks = Checks::default();
    let told = answers.chars().map(|answer| {
        checks.take(policy, answer == '+');
        match checks.state() {
            Checked::Unknown => '?',
            Checked::Healthy => 'h',
            Checked::Unhealthy => 'u',
        }
    });
    told.collect()
}

#[test]
fn the_first_answer_decides_and_then_it_takes_several_in_a_row() {
    let policy = policy(3, 2);
    assert_eq!(play(&policy, "+--+---"), "hhhhhhu", "a success ends the row");
    assert_eq!(play(&policy, "-+-++"), "uuuuh", "a failure ends the row");
    assert_eq!(play(&policy, "+---++---"), "hhhuuhhhu", "a change begins anew");
}

#[test]
fn who_is_resumed_needs_the_whole_row() {
    let policy = policy(2, 2);
    let mut checks = Checks::resumed(Checked::Unhealthy);
    assert_eq!(checks.take(&policy, true), None);
    assert_eq!(checks.take(&policy, true), Some(Checked::Healthy));
}

proptest! {
    #[test]
    fn a_state_is_what_the_last_row_says(
        unhealthy in 1u32..5, healthy in 1u32..5, answers in prop::collection::vec(any::<bool>(), 1..40),
    ) {
        let policy = policy(unhealthy, healthy);
        let mut checks = Checks::default();
        for (at, passed) in answers.iter().enumerate() {
            let before = checks.state();
            let told = checks.take(&policy, *passed);
            prop_assert_eq!(invariants::checks(&policy, checks.state(), checks.against), Ok(()));
            prop_assert_eq!(told, (before != checks.state()).then_some(checks.state()));
            // Told by looking back over all answers: since it was in a state, so many in a row speak against it.
            let row = answers[..=at].iter().rev().take_while(|one| *one == passed).count();
            let bound = if *passed { healthy } else { unhealthy } as usize;
            let wanted = if *passed { Checked::Healthy } else { Checked::Unhealthy };
            prop_assert!(row < bound || checks.state() == wanted, "{row} in a row");
            prop_assert!(at == 0 || row >= bound || before == checks.state(), "only {row} in a row");
        }
    }

    #[test]
    fn pauses_are_the_interval_and_some(seed: u64, called: bool) {
        let policy = policy(1, 1);
        let base = if called { policy.interval } else { policy.no_traffic_interval };
        let pause = policy.pause(called, &mut SeededRng::new(seed));
        prop_assert!(pause >= base && pause <= base + policy.interval_jitter);
    }
}

#[test]
fn pauses_are_spread() {
    let mut rng = SeededRng::new(1);
    let mut pause = || policy(1, 1).pause(true, &mut rng);
    assert_ne!(pause(), pause());
}

/// A service with so many endpoints, checked, and with these words of a policy beside.
fn cluster(endpoints: u8, traffic: v1::TrafficPolicy) -> Arc<Cluster> {
    let health_check = Some(v1::HealthCheck {
        probe: Some(v1::health_check::Probe::Tcp(v1::health_check::Tcp::default())),
        interval_ms: 1_000,
        interval_jitter_ms: Some(0),
        timeout_ms: 1_000,
        no_traffic_interval_ms: 1_000,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
    });
    let endpoints = (1..=endpoints).map(|n| wire_endpoint(&format!("10.0.0.{n}"))).collect();
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        slice("ns/a-1", "ns/a", ("", 80), endpoints),
        policy_change(v1::TrafficPolicy { health_check, ..traffic }),
    ];
    let snapshot = build(&mut SnapshotBuilder::new(), changes);
    Arc::clone(snapshot.cluster(&key("ns/a", 80)).expect("a cluster"))
}

fn ejecting(max_ejection_percent: u32) -> v1::TrafficPolicy {
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: Some(1),
        base_ejection_time_ms: 30_000,
        max_ejection_time_ms: 300_000,
        max_ejection_percent,
        interval_ms: 10_000,
        ..crate::tests::rows_off()
    });
    v1::TrafficPolicy { outlier_detection, ..Default::default() }
}

fn at(seconds: u64) -> Tick {
    Tick::ZERO.after(Duration::from_secs(seconds))
}

fn fails(cluster: &Cluster, endpoint: &Arc<Endpoint>, now: Tick) {
    let answer = Answer { status: 500, ..Answer::new(AttemptOutcome::Failure, Duration::ZERO) };
    cluster.record(endpoint, &answer, now);
}

fn picked(cluster: &Cluster, now: Tick) -> Vec<u64> {
    let mut rng = SeededRng::new(7);
    let mut ids: Vec<u64> = (0..100).filter_map(|_| Some(cluster.pick(now, &mut rng, &[])?.id)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[test]
fn who_fails_checks_gets_nothing_while_another_is_there_and_in_panic_something() {
    let cluster = cluster(3, v1::TrafficPolicy::default());
    let endpoints = cluster.endpoints().pickable().to_vec();
    let fail = |at: usize| {
        endpoints[at].check(Checked::Unhealthy, Some(Arc::new("HTTP 503".to_owned())), Tick::ZERO);
    };
    assert_eq!(picked(&cluster, at(1)).len(), 3);
    fail(0);
    assert_eq!(picked(&cluster, at(1)), [endpoints[1].id, endpoints[2].id]);
    let mut told = Explanation::default();
    cluster.pick_explained(at(1), &mut SeededRng::new(1), &Wanted::default(), &mut told);
    let told = told.0.iter().find(|reason| reason.subject == "10.0.0.1:80").expect("a reason");
    assert_eq!(told.outcome, Outcome::Skipped);
    assert_eq!(told.why, "it fails this proxy's health checks: HTTP 503");
    fail(1);
    assert_eq!(picked(&cluster, at(1)).len(), 3, "two of three are too many to be believed");
    endpoints[1].check(Checked::Healthy, None, at(2));
    assert_eq!(picked(&cluster, at(2)), [endpoints[1].id, endpoints[2].id]);
    endpoints[0].check(Checked::Unknown, None, at(2));
    assert_eq!(picked(&cluster, at(2)).len(), 3, "nobody asks any more");
    assert_eq!(endpoints[0].stats.check_failure(), None);
}

#[test]
fn checks_that_pass_do_not_take_in_what_requests_have_ejected() {
    let cluster = cluster(3, ejecting(50));
    let endpoints = cluster.endpoints().pickable().to_vec();
    fails(&cluster, &endpoints[0], at(1));
    endpoints[0].check(Checked::Healthy, None, at(2));
    assert!(endpoints[0].is_ejected(at(2)), "its health page is well, its requests are not");
    assert_eq!(endpoints[0].stats.ejected_until(), at(31));
}

#[test]
fn checks_that_pass_again_bring_the_trial_forward() {
    let cluster = cluster(3, ejecting(50));
    let endpoints = cluster.endpoints().pickable().to_vec();
    fails(&cluster, &endpoints[0], at(1));
    endpoints[0].check(Checked::Unhealthy, None, at(2));
    assert!(endpoints[0].is_ejected(at(40)), "its time is over, and it still fails checks");
    let wanted = Wanted { session: Some(endpoints[0].id), ..Wanted::default() };
    for _ in 0..50 {
        let picked = cluster.choose(at(40), &mut SeededRng::new(3), &wanted, &mut NoReasons);
        assert_ne!(picked.expect("two are there").endpoint.id, endpoints[0].id);
    }
    fails(&cluster, &endpoints[0], at(40));
    endpoints[0].check(Checked::Healthy, None, at(41));
    assert!(endpoints[0].stats.is_out(), "one request still has to try it");
    let picked = cluster.choose(at(41), &mut SeededRng::new(3), &wanted, &mut NoReasons).expect("a pick");
    assert_eq!((picked.endpoint.id, picked.trial.is_some()), (endpoints[0].id, true));

    let later = cluster_with_a_later_end();
    assert_eq!(later.stats.ejected_until(), at(5), "its time was not over");
}

/// An endpoint that was ejected until 31, failed checks, and passes them again at 5.
fn cluster_with_a_later_end() -> Arc<Endpoint> {
    let cluster = cluster(3, ejecting(50));
    let endpoint = Arc::clone(&cluster.endpoints().pickable()[0]);
    fails(&cluster, &endpoint, at(1));
    endpoint.check(Checked::Unhealthy, None, at(2));
    endpoint.check(Checked::Healthy, None, at(5));
    endpoint
}

#[test]
fn who_fails_checks_serves_in_panic_and_nothing_hangs_on_it() {
    let cluster = cluster(3, ejecting(50));
    let endpoints = cluster.endpoints().pickable().to_vec();
    fails(&cluster, &endpoints[0], at(1));
    endpoints[0].check(Checked::Unhealthy, None, at(2));
    endpoints[1].check(Checked::Unhealthy, None, at(2));
    let wanted = Wanted { session: Some(endpoints[0].id), ..Wanted::default() };
    let picked = cluster.choose(at(40), &mut SeededRng::new(3), &wanted, &mut NoReasons).expect("a pick");
    assert_eq!(picked.endpoint.id, endpoints[0].id, "too many are out");
    assert!(picked.trial.is_none(), "it is not asked to return");
}

#[test]
fn outlier_detection_leaves_the_last_that_passes_checks() {
    let cluster = cluster(3, ejecting(100));
    let endpoints = cluster.endpoints().pickable().to_vec();
    endpoints[0].check(Checked::Unhealthy, None, at(1));
    fails(&cluster, &endpoints[1], at(1));
    assert!(endpoints[1].stats.is_out());
    fails(&cluster, &endpoints[2], at(1));
    assert!(!endpoints[2].stats.is_out(), "nobody else is in");
    endpoints[0].check(Checked::Healthy, None, at(2));
    fails(&cluster, &endpoints[2], at(2));
    assert!(endpoints[2].stats.is_out());
}

#[test]
fn who_fails_checks_takes_no_place_from_outlier_detection() {
    let cluster = cluster(10, ejecting(10));
    let endpoints = cluster.endpoints().pickable().to_vec();
    endpoints[0].check(Checked::Unhealthy, None, at(1));
    fails(&cluster, &endpoints[1], at(1));
    assert!(endpoints[1].stats.is_out());
}

#[test]
fn a_service_has_traffic_when_it_is_asked_or_has_answered() {
    let cluster = cluster(1, v1::TrafficPolicy::default());
    assert!(!cluster.has_traffic(at(1)));
    cluster.count_request(at(1));
    assert!(cluster.has_traffic(at(2)) && !cluster.has_traffic(at(60)));
    cluster.served();
    assert!(cluster.has_traffic(at(600)));
}

#[test]
fn statuses_are_those_of_a_range_without_its_end() {
    let probe = HealthProbe::Http {
        method: "GET".into(),
        path: "/".into(),
        host: None,
        expected: Box::new([200..300, 404..405]),
    };
    let check = HealthCheck { probe, ..policy(1, 1) };
    for (status, expected) in
        [(199, false), (200, true), (299, true), (300, false), (404, true), (405, false)]
    {
        assert_eq!(check.expects(status), expected, "{status}");
    }
}
