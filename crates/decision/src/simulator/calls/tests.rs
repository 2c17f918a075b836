use std::time::Duration;

use meshwork_base::SeededRng;

use super::*;
use crate::breaker::{Breaker, CircuitBreaker, WindowSize};
use crate::outlier::OutlierDetection;
use crate::simulator::client::Client;
use crate::simulator::{Breaking, fleets};

const NOW: Tick = Tick::ZERO;
const ANY: Caller = Caller { is_exempt: false, is_let_through: false };

/// What a proxy knows of two instances, with a breaker that opens after ten calls.
fn cluster(per_endpoint: bool) -> Arc<Cluster> {
    let mut scenario = fleets::even();
    scenario.instances.truncate(2);
    let policy = CircuitBreaker {
        mode: BreakerMode::Enforce,
        window: WindowSize::Calls(10),
        minimum_calls: 10,
        failure_percent: Some(50),
        slow_calls: None,
        open_time: Duration::from_secs(5),
        max_open_time: Duration::from_secs(5),
        trials: 1,
    };
    scenario.policies.circuit_breaker = Some(Breaking { policy, per_endpoint });
    scenario.policies.outlier_detection =
        Some(OutlierDetection { consecutive_5xx: 3, ..OutlierDetection::DEFAULT });
    Client::new(&scenario, 0).cluster
}

fn failure() -> Answer {
    Answer::new(AttemptOutcome::Failure, Duration::from_millis(1))
}

/// Calls that fail until one is refused: how many there were, and who was called.
fn fail_all(cluster: &Arc<Cluster>) -> Vec<Picked> {
    let mut rng = SeededRng::new(1);
    let mut called = Vec::new();
    loop {
        match begin(cluster, ANY, &Wanted::default(), NOW, &mut rng) {
            Ok((picked, tickets)) => {
                check_call(cluster, &picked.endpoint, NOW).unwrap();
                tickets.ended(&failure(), NOW, &mut rng);
                called.push(picked);
            }
            Err(cause) => {
                assert_eq!(cause, Cause::CircuitBreaker);
                return called;
            }
        }
        assert!(called.len() < 100, "a breaker opens");
    }
}

#[test]
fn a_call_past_an_open_breaker_does_not_hold() {
    for (per_endpoint, calls) in [(false, 10), (true, 20)] {
        let cluster = cluster(per_endpoint);
        let called = fail_all(&cluster);
        assert_eq!(called.len(), calls, "per endpoint: {per_endpoint}");
        let why = check_call(&cluster, &called[0].endpoint, NOW).unwrap_err();
        assert!(why.contains("circuit breaker is open"), "{why}");
    }
}

#[test]
fn a_refusal_without_an_open_breaker_does_not_hold_and_each_is_counted() {
    for per_endpoint in [false, true] {
        let cluster = cluster(per_endpoint);
        let refusal = |cause| check_refusal(&cluster, cause, ANY, NOW);
        assert!(refusal(Cause::CircuitBreaker).unwrap_err().contains("though it is closed"));
        fail_all(&cluster);
        refusal(Cause::CircuitBreaker).unwrap();
        assert!(refusal(Cause::MaxRequests).unwrap_err().contains("no"));
        let counts = |refused| check_counts(std::iter::once(&cluster), 0, refused, NOW);
        counts(1).unwrap();
        for other in [0, 2] {
            assert!(counts(other).unwrap_err().contains("counted are (0, 1)"));
        }
    }
}

/// It is called as long as nobody else could be: who is not ejected either, but whose breaker is open, could not.
#[test]
fn a_call_to_who_is_ejected_holds_only_where_nobody_else_could_be_called() {
    let cluster = cluster(true);
    let (ejected, other) = match cluster.endpoints().pickable() {
        [one, other] => (Arc::clone(one), Arc::clone(other)),
        others => panic!("two, and not {others:?}"),
    };
    let picked = Picked { endpoint: Arc::clone(&ejected), trial: None };
    check_ejection(&cluster, &picked, NOW).unwrap();
    for _ in 0..3 {
        cluster.record(&ejected, &failure(), NOW);
    }
    assert!(ejected.is_ejected(NOW));
    assert!(check_ejection(&cluster, &picked, NOW).unwrap_err().contains("is ejected and was picked"));
    let mut rng = SeededRng::new(1);
    for _ in 0..10 {
        let ticket = Breaker::admit_at(&cluster, &other, NOW).unwrap().expect("somebody wants to know");
        ticket.ended(Call { failed: true, took: Duration::from_millis(1) }, NOW, &mut rng);
    }
    check_ejection(&cluster, &picked, NOW).unwrap();
}
