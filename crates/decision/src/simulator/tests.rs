use std::time::Duration;

use super::*;
use crate::breaker::{BreakerMode, CircuitBreaker, WindowSize};
use crate::hedge::{HedgeDelay, HedgePolicy};
use crate::outlier::OutlierDetection;
use crate::overload::{AdaptiveConcurrency, Queue};

/// One proxy, one instance that works on one request at a time for 10 ms.
fn small(per_second: f64) -> Scenario {
    let instance = Instance {
        weight: 1,
        zone: 0,
        concurrency: 1,
        is_deaf: false,
        queue: 100,
        service: Duration::from_millis(10),
        spread: Spread::Constant,
        joins: Duration::ZERO,
        phases: Vec::new(),
    };
    Scenario {
        name: "small",
        duration: Duration::from_secs(20),
        warm_up: Duration::ZERO,
        clients: 1,
        arrivals: Arrivals { per_second, burst: None, loads: Vec::new(), high: 0 },
        instances: vec![instance],
        network: Duration::ZERO,
        zones: 0,
        policies: Policies::default(),
    }
}

/// The mean time in a queue with one server and constant work is known (Pollaczek and Khinchine): at load ρ the wait is
/// ρ / 2(1 - ρ) of the work.
#[test]
fn a_queue_behaves_as_theory_says() {
    let waits = (0..40).map(|seed| {
        let report = run(&small(50.0), seed);
        report.mean().as_secs_f64() - 0.010
    });
    let mean = waits.sum::<f64>() / 40.0;
    assert!((mean - 0.005).abs() < 0.0005, "half of the work at half load: {mean}");
}

/// From little to much: the last request of the time of little does not come late into that of much.
#[test]
fn what_comes_follows_its_load_from_the_moment_on() {
    let mut scenario = small(1_000.0);
    scenario.duration = Duration::from_secs(4);
    scenario.arrivals.loads = vec![(Duration::ZERO, 0.001), (Duration::from_secs(2), 1.0)];
    for seed in 0..20 {
        let came = run(&scenario, seed).requests;
        assert!((1_800..2_300).contains(&came), "{came} of some 2,002, seed {seed}");
    }
}

/// Whoever loses a race leaves the gate before its instance, also one that never answers.
#[test]
fn hedges_leave_gates_as_others_do() {
    let mut scenario = small(60.0);
    scenario.instances = vec![scenario.instances[0].clone(); 3];
    scenario.instances.iter_mut().for_each(|instance| instance.spread = Spread::Exponential);
    let delay = HedgeDelay::Fixed(Duration::from_millis(15));
    scenario.policies.hedge = Some(HedgePolicy { delay, budget_percent: 50 });
    scenario.policies.overload = Some((AdaptiveConcurrency::DEFAULT, Queue::DEFAULT));
    let mut hangs = scenario.clone();
    hangs.instances[0].phases = vec![Phase { at: Duration::from_secs(5), state: State::Hanging }];
    for (scenario, seed) in [(&scenario, 1), (&scenario, 2), (&hangs, 1), (&hangs, 2)] {
        let report = run(scenario, seed);
        assert!(report.hedges > 20, "{report}");
        assert_eq!(report.broken, None, "seed {seed}");
    }
}

#[test]
fn what_cannot_be_done_is_counted_as_failed() {
    let mut scenario = small(50.0);
    scenario.instances[0].phases = vec![Phase { at: Duration::from_secs(10), state: State::Away }];
    let report = run(&scenario, 1);
    assert!(report.failures.abs_diff(500) < 60, "half of a thousand: {report}");
    assert!((report.failed() - 0.5).abs() < 0.06, "{report}");
    assert!((5..60).contains(&report.retries), "a row of them, and a few more: {report}");
    assert_eq!(report.quantile(0.99), Duration::from_secs(5), "a failure takes all the time there was");
    assert_eq!(report.broken, None);
}

/// Three instances in turn, of which one fails from the fifteenth second on; until then perhaps all do, for ten seconds. What
/// fails is counted from a second later on.
fn with_one_of_three_failing(outage: bool, per_second: f64) -> Scenario {
    let mut scenario = small(per_second);
    scenario.duration = Duration::from_secs(40);
    scenario.warm_up = Duration::from_secs(16);
    scenario.policies.algorithm = crate::cluster::Algorithm::RoundRobin;
    let fails = State::Failing(Duration::from_millis(1));
    let end = Phase { at: Duration::from_secs(15), state: State::Serving(1.0) };
    let begin = outage.then_some(Phase { at: Duration::from_secs(5), state: fails });
    let mut instance = scenario.instances[0].clone();
    instance.phases = begin.into_iter().chain([end]).collect();
    scenario.instances = vec![instance; 3];
    scenario.instances[2].phases.last_mut().unwrap().state = fails;
    scenario
}

/// A service all of whose instances failed has the whole budget a second after most of them are back.
#[test]
fn when_an_outage_ends_retries_are_what_they_were() {
    for (per_second, seeds) in [(20.0, 40), (150.0, 10)] {
        let of = |outage| {
            let scenario = with_one_of_three_failing(outage, per_second);
            let reports: Vec<_> = (0..seeds).map(|seed| run(&scenario, seed)).collect();
            assert!(reports.iter().all(|report| report.broken.is_none()));
            (
                median(reports.iter().map(Report::failed)),
                median(reports.iter().map(|r| f64::from(u32::try_from(r.retries).unwrap()))),
            )
        };
        let ((without, whole), (with, during)) = (of(false), of(true));
        assert!(without > 0.05, "a fifth of all may be repeated, a third fails: {without:.3}");
        assert!(with <= 1.1 * without, "{per_second}/s: {with:.3} fail, without an outage {without:.3}");
        assert!(during > 0.8 * whole, "{per_second}/s: {during} retries, without an outage {whole}");
    }
}

/// Opens after ten calls of which half fail, for a second at first and two later.
fn breaking(per_endpoint: bool) -> Breaking {
    let policy = CircuitBreaker {
        mode: BreakerMode::Enforce,
        window: WindowSize::Time(Duration::from_secs(2)),
        minimum_calls: 10,
        failure_percent: Some(50),
        slow_calls: None,
        open_time: Duration::from_secs(1),
        max_open_time: Duration::from_secs(2),
        trials: 3,
    };
    Breaking { policy, per_endpoint }
}

/// So many instances all of which fail for five seconds. What fails is counted from three seconds after that on.
fn all_fail_for_a_while(instances: usize) -> Scenario {
    let mut scenario = small(200.0);
    scenario.duration = Duration::from_secs(14);
    scenario.warm_up = Duration::from_secs(11);
    let phase = |at, state| Phase { at: Duration::from_secs(at), state };
    let mut instance = scenario.instances[0].clone();
    instance.concurrency = 8;
    instance.spread = Spread::Exponential;
    instance.phases = vec![phase(3, State::Failing(Duration::from_millis(1))), phase(8, State::Serving(1.0))];
    scenario.instances = vec![instance; instances];
    scenario
}

/// Whatever else is beside it: who fails is not called, and who is well again is.
#[test]
fn a_circuit_breaker_spares_who_fails_until_it_is_well_again() {
    let ejecting = OutlierDetection {
        consecutive_5xx: 3,
        base_ejection_time: Duration::from_secs(1),
        ..OutlierDetection::DEFAULT
    };
    let hedge = HedgePolicy { delay: HedgeDelay::Fixed(Duration::from_millis(15)), budget_percent: 10 };
    let beside = [(None, None), (Some(ejecting), None), (None, Some(hedge)), (Some(ejecting), Some(hedge))];
    for (per_endpoint, instances) in [(false, 3), (true, 2), (true, 3)] {
        for (outlier_detection, hedge) in beside {
            let mut scenario = all_fail_for_a_while(instances);
            (scenario.policies.outlier_detection, scenario.policies.hedge) = (outlier_detection, hedge);
            for seed in 1..3 {
                let without = run(&scenario, seed);
                let mut broken = scenario.clone();
                broken.policies.circuit_breaker = Some(breaking(per_endpoint));
                let with = run(&broken, seed);
                let what = format!("{:?}, {with}", broken.policies);
                assert_eq!((with.broken.as_ref(), without.broken.as_ref()), (None, None), "{what}");
                assert!(with.refused > 500 && without.refused == 0, "most of a thousand: {what}");
                assert!(with.attempts + 500 < without.attempts, "{} without it: {what}", without.attempts);
                assert_eq!(with.failures, 0, "it is closed again: {what}");
            }
        }
    }
}

/// Nearly every first attempt goes to an instance that hangs, and nobody gives it up before all has come: only of hedges,
/// which fail, can the breaker have heard.
#[test]
fn a_circuit_breaker_hears_of_hedges_too() {
    let mut scenario = small(100.0);
    scenario.duration = Duration::from_secs(1);
    scenario.instances = vec![scenario.instances[0].clone(); 2];
    scenario.instances[0].weight = 1_000;
    let always = |state| vec![Phase { at: Duration::ZERO, state }];
    scenario.instances[0].phases = always(State::Hanging);
    scenario.instances[1].phases = always(State::Failing(Duration::from_millis(1)));
    scenario.policies.algorithm = crate::cluster::Algorithm::RoundRobin;
    scenario.policies.retry.attempts = 0;
    scenario.policies.retry.per_try_timeout = None;
    let delay = HedgeDelay::Fixed(Duration::from_millis(15));
    scenario.policies.hedge = Some(HedgePolicy { delay, budget_percent: 50 });
    let mut breaking = breaking(false);
    breaking.policy.minimum_calls = 5;
    scenario.policies.circuit_breaker = Some(breaking);
    for seed in 1..5 {
        let report = run(&scenario, seed);
        assert!(report.refused > 10, "{} hedges: {report}", report.hedges);
        assert_eq!(report.broken, None);
    }
}

#[test]
fn a_queue_that_is_full_answers_at_once() {
    let mut scenario = small(300.0);
    scenario.instances[0].queue = 10;
    let report = run(&scenario, 1);
    assert!(
        report.quantile(0.3) <= Duration::from_millis(250),
        "ten wait, and two back-offs at most: {report}"
    );
    assert!(report.failures > report.requests / 2, "a third can be done: {report}");
}

#[test]
fn what_was_lost_with_its_host_is_heard_of_by_time_out_only() {
    let mut scenario = small(50.0);
    scenario.policies.retry.attempts = 0;
    scenario.policies.retry.per_try_timeout = None;
    scenario.instances[0].phases = vec![
        Phase { at: Duration::from_secs(10), state: State::Lost },
        Phase { at: Duration::from_secs(11), state: State::Serving(1.0) },
    ];
    let report = run(&scenario, 3);
    assert!(report.failures.abs_diff(50) < 30, "one second's: {report}");
    assert_eq!(report.broken, None);
}

#[test]
fn bursts_are_more_of_the_same() {
    let mut scenario = small(20.0);
    let every = Duration::from_secs(1);
    scenario.arrivals.burst = Some(Burst { every, lasts: every, times: 3.0 });
    let requests =
        median((0..21).map(|seed| f64::from(u32::try_from(run(&scenario, seed).requests).unwrap())));
    assert!((requests - 800.0).abs() < 80.0, "half of the time three times as much: {requests}");
}

#[test]
fn spreads_have_mean_one() {
    let mut rng = meshwork_base::SeededRng::new(1);
    for spread in [Spread::Constant, Spread::Exponential, Spread::LogNormal(1.0)] {
        let mean = (0..100_000).map(|_| spread.draw(&mut rng)).sum::<f64>() / 100_000.0;
        assert!((mean - 1.0).abs() < 0.03, "{spread:?}: {mean}");
    }
}

#[test]
fn imbalance_is_relative_to_weight() {
    let mut report = Report::new(1, 2);
    report.loads = vec![100, 200];
    assert!(report.imbalance(&[1, 2]).abs() < 1e-9);
    assert!((report.imbalance(&[1, 1]) - 1.0 / 3.0).abs() < 1e-9);
}
