use meshwork_base::SeededRng;
use proptest::prelude::*;

use super::*;
use crate::tests::endpoint;

const BASE: Duration = Duration::from_secs(30);

fn config(consecutive_5xx: u32, max_ejection_percent: u32) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx,
        base_ejection_time: BASE,
        max_ejection_percent,
        ..OutlierDetection::DEFAULT
    }
}

fn set(count: u64) -> EndpointSet {
    EndpointSet::new((1..=count).map(|id| endpoint(id, 1)).collect())
}

struct World {
    config: OutlierDetection,
    set: EndpointSet,
    fleet: Fleet,
    now: Tick,
}

impl World {
    fn new(config: OutlierDetection, endpoints: u64) -> Self {
        Self { config, set: set(endpoints), fleet: Fleet::default(), now: Tick::ZERO.after(BASE) }
    }

    fn endpoint(&self, at: usize) -> &Arc<Endpoint> {
        &self.set.pickable()[at]
    }

    fn answer(&self, at: usize, status: u16) -> Vec<Shift> {
        let outcome = if status == 0 { AttemptOutcome::Failure } else { AttemptOutcome::of_status(status) };
        let answer = Answer { status, ..Answer::new(outcome, Duration::ZERO) };
        self.config.record(&self.set, &self.fleet, self.endpoint(at), &answer, self.now)
    }

    /// The ejection that follows answers of this kind, one after the other.
    fn answers(&self, at: usize, status: u16, times: u32) -> Option<Ejection> {
        (0..times).filter_map(|_| self.answer(at, status).first()?.ejection).last()
    }

    fn fail(&self, at: usize, times: u32) -> Option<Ejection> {
        self.answers(at, 500, times)
    }

    fn ejected(&self, at: usize) -> bool {
        self.endpoint(at).is_ejected(self.now)
    }

    fn trial(&self, at: usize) -> Option<Trial> {
        Trial::claim(self.endpoint(at), self.now).expect("nobody else tries it")
    }

    fn tried(&self, trial: Trial, status: u16) -> Option<Shift> {
        let outcome = AttemptOutcome::of_status(status);
        let answer = Answer { status, ..Answer::new(outcome, Duration::ZERO) };
        trial.ended(Some(&self.config), &answer, self.now)
    }

    /// Its time is over, and the request that tries it goes well.
    fn returns(&mut self, at: usize) {
        self.now = self.now.max(self.endpoint(at).stats.ejected_until());
        let trial = self.trial(at).expect("a trial is due");
        assert!(self.tried(trial, 200).is_some_and(|shift| shift.ejection.is_none()));
    }
}

#[test]
fn what_has_too_much_to_do_has_not_failed() {
    use AttemptOutcome::{Failure, Overloaded, Success};
    assert_eq!(AttemptOutcome::of_status(429), Overloaded);
    let codes = [(0, Success), (2, Failure), (4, Failure), (5, Success), (8, Overloaded), (13, Failure)];
    for (code, outcome) in codes.into_iter().chain([(14, Failure), (15, Failure)]) {
        assert_eq!(AttemptOutcome::of_grpc(code), outcome, "{code}");
    }
    let world = World::new(config(5, 50), 4);
    world.fail(0, 4);
    assert!(world.answer(0, 429).is_empty());
    assert_eq!(world.fail(0, 4), None, "it ends the row like a success");
}

#[test]
fn ejects_an_endpoint_after_five_consecutive_failures() {
    let world = World::new(config(5, 50), 4);
    assert_eq!(world.fail(0, 4), None);
    world.answer(0, 200);
    assert_eq!(world.fail(0, 4), None, "a success ends the row");
    let ejection = world.fail(0, 1).expect("the fifth in a row");
    assert_eq!((ejection.until.since(world.now), ejection.count), (BASE, 1));
    assert!(world.ejected(0) && !world.ejected(1));
    assert_eq!(AttemptOutcome::of_status(499), AttemptOutcome::Success);
    assert_eq!(AttemptOutcome::of_status(500), AttemptOutcome::Failure);
}

#[test]
fn an_endpoint_that_returns_has_its_whole_row_again() {
    let mut world = World::new(config(3, 50), 4);
    assert!(world.fail(0, 3).is_some());
    assert_eq!(world.fail(0, 2), None, "what was under way still fails");
    world.returns(0);
    assert_eq!(world.fail(0, 2), None);
    assert!(world.fail(0, 1).is_some());
}

#[test]
fn gateway_errors_have_a_row_of_their_own() {
    let config = OutlierDetection { consecutive_gateway_failure: 3, ..config(5, 50) };
    let world = World::new(config, 4);
    for status in [502, 504, 500, 503] {
        assert!(world.answer(0, status).is_empty(), "a 500 is none, and ends the row");
    }
    let ejection = world.fail(0, 1).expect("the fifth failure of any kind");
    assert_eq!(ejection.cause, EjectionCause::Consecutive5xx);
    assert_eq!(world.answers(1, 503, 2), None);
    let ejection = world.answers(1, 502, 1).expect("the third gateway error");
    assert_eq!(ejection.cause, EjectionCause::ConsecutiveGatewayFailure);
    let without = World::new(OutlierDetection { consecutive_5xx: 0, ..World::new(config, 1).config }, 4);
    assert_eq!(without.answers(0, 0, 2), None, "an attempt without a response is one too");
    assert!(without.answers(0, 0, 1).is_some());
}

#[test]
fn what_is_of_local_origin_is_told_apart_where_the_policy_says_so() {
    let together = World::new(config(3, 50), 4);
    together.fail(0, 2);
    assert_eq!(together.answers(0, 0, 1).expect("a row").cause, EjectionCause::Consecutive5xx);

    let split = OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: 2,
        ..config(3, 50)
    };
    let world = World::new(split, 4);
    world.fail(0, 2);
    assert!(world.answer(0, 0).is_empty(), "the first without a response");
    assert!(world.answer(0, 200).is_empty());
    assert_eq!(world.answers(0, 0, 1), None, "a response ends that row");
    world.fail(0, 1);
    assert_eq!(world.answers(0, 0, 1), None, "a failure that was answered does too");
    let ejection = world.answers(0, 0, 1).expect("two in a row without a response");
    assert_eq!(ejection.cause, EjectionCause::ConsecutiveLocalOriginFailure);
    world.fail(1, 2);
    world.answer(1, 0);
    assert!(
        world.fail(1, 1).is_some(),
        "what is of local origin neither counts nor ends the row of the others"
    );
}

#[test]
fn each_ejection_is_longer_and_good_behaviour_is_remembered() {
    let mut world = World::new(config(1, 50), 4);
    for count in 1..=3 {
        let ejection = world.fail(0, 1).expect("it may be ejected");
        assert_eq!((ejection.count, ejection.until.since(world.now)), (count, BASE * count));
        assert_eq!(world.fail(0, 1), None, "it is out already");
        world.returns(0);
    }
    world.answer(0, 200);
    assert_eq!(world.endpoint(0).stats.ejections(), 3, "no time has passed yet");
    world.now = world.now.after(BASE);
    world.answer(0, 200);
    world.answer(0, 200);
    assert_eq!(world.endpoint(0).stats.ejections(), 2, "one base time takes one off, once");
    assert_eq!(world.fail(0, 1).expect("again").count, 3);
}

#[test]
fn time_alone_returns_nobody_and_one_request_tries_it() {
    let mut world = World::new(config(1, 50), 4);
    let ejection = world.fail(0, 1).expect("it fails");
    assert!(world.trial(0).is_none(), "its time is not over");
    world.now = ejection.until;
    assert!(!world.ejected(0) && world.endpoint(0).stats.is_out(), "it may be picked, and is not in");
    let trial = world.trial(0).expect("the first request to pick it");
    assert!(world.ejected(0), "others pass it by");
    assert!(Trial::claim(world.endpoint(0), world.now).is_err());
    drop(trial);
    assert!(!world.ejected(0), "a trial that ended without a word gives its place to the next");
    let trial = world.trial(0).expect("the next request");
    assert_eq!(world.fail(0, 5), None, "what others say counts for nothing");
    let shift = world.tried(trial, 503).expect("it fails again");
    let again = shift.ejection.expect("and is out again");
    assert_eq!((again.cause, again.count), (EjectionCause::TrialFailed, 2));
    assert_eq!(again.until.since(world.now), BASE * 2, "for longer");
    world.now = again.until;
    let trial = world.trial(0).expect("another trial");
    assert!(world.tried(trial, 200).is_some_and(|shift| shift.ejection.is_none()));
    assert!(!world.endpoint(0).stats.is_out() && world.endpoint(0).stats.ejection_cause().is_none());
}

#[test]
fn a_trial_that_others_have_too_counts_when_it_speaks_unless_somebody_was_quicker() {
    let mut world = World::new(config(2, 50), 4);
    world.now = world.fail(0, 2).expect("it fails").until;
    let mut silent: Vec<_> = (0..3)
        .map(|_| {
            let mut trial = world.trial(0).expect("nobody has it alone");
            trial.is_had_by_others_too();
            trial
        })
        .collect();
    let alone = world.trial(0).expect("and the next request");
    drop(silent.pop());
    assert!(Trial::claim(world.endpoint(0), world.now).is_err(), "what is another's is not given back");
    drop(alone);
    let shift = world.tried(silent.remove(0), 200).expect("it speaks");
    assert!(shift.ejection.is_none() && !world.endpoint(0).stats.is_out());
    assert_eq!(world.fail(0, 1), None);
    assert!(world.tried(silent.remove(0), 200).is_none(), "somebody was quicker");
    assert!(world.fail(0, 1).is_some(), "and it has not ended the row that has begun since");
}

#[test]
fn a_trial_of_before_says_nothing_about_another_instance() {
    let mut world = World::new(config(1, 50), 4);
    world.now = world.fail(0, 1).expect("it fails").until;
    let old = world.trial(0).expect("a trial is due");
    world.endpoint(0).stats.forgive();
    assert!(world.tried(old, 500).is_none(), "the registry has taken it in");
    assert!(!world.endpoint(0).stats.is_out());
    world.now = world.fail(0, 1).expect("it fails anew").until;
    assert_eq!(world.endpoint(0).stats.ejections(), 1, "nothing is held against it");
    let trial = world.trial(0).expect("its own trial");
    assert!(trial.ended(None, &Answer::new(AttemptOutcome::Failure, BASE), world.now).is_some());
    assert!(!world.endpoint(0).stats.is_out(), "without a policy nobody keeps it out");
}

#[test]
fn another_instance_has_its_whole_row() {
    let world = World::new(config(5, 50), 4);
    assert_eq!(world.fail(0, 4), None);
    world.endpoint(0).stats.forgive();
    assert_eq!(world.fail(0, 4), None, "those of before were another's");
    assert!(world.fail(0, 1).is_some());
}

#[test]
fn a_trial_that_is_under_way_when_checks_pass_is_the_only_one_and_decides() {
    let mut world = World::new(config(1, 50), 4);
    world.now = world.fail(0, 1).expect("it fails").until;
    let trial = world.trial(0).expect("a trial is due");
    world.now = world.now.after(Duration::from_secs(1));
    world.endpoint(0).stats.standing.bring_forward(world.now);
    assert!(Trial::claim(world.endpoint(0), world.now).is_err(), "one request tries it");
    assert!(world.tried(trial, 200).is_some_and(|shift| shift.ejection.is_none()));
    assert!(!world.endpoint(0).stats.is_out());
}

#[test]
fn ejections_are_capped_in_time_and_what_is_beyond_is_not_held_against_it() {
    let longest = Duration::from_secs(300);
    assert_eq!(config(1, 50).ejection_time(1000), longest);
    let long = OutlierDetection { base_ejection_time: longest * 2, ..config(1, 50) };
    assert_eq!((long.ejection_time(1), long.ejection_time(3)), (longest * 2, longest * 2));
    let capped = OutlierDetection { max_ejection_time: BASE * 2, ..config(1, 50) };
    let mut world = World::new(capped, 4);
    for count in [1, 2, 2, 2] {
        let ejection = world.fail(0, 1).expect("it fails");
        assert_eq!((ejection.count, ejection.until.since(world.now)), (count, BASE * count));
        world.returns(0);
    }
}

#[test]
fn rates_are_looked_at_once_an_interval() {
    let rate = FailurePercentage { threshold: 50, minimum_hosts: 2, request_volume: 10 };
    let config = OutlierDetection { failure_percentage: Some(rate), ..config(0, 50) };
    let mut world = World::new(config, 4);
    let interval = |world: &World| {
        for _ in 0..5 {
            assert!((0..3).all(|at| world.answer(at, 200).is_empty()));
            assert!(world.answer(0, 500).is_empty() && world.answer(1, 200).is_empty());
        }
    };
    interval(&world);
    world.now = world.now.after(config.interval);
    let [shift] = &world.answer(3, 200)[..] else { panic!("the first answer after it judges") };
    let ejection = shift.ejection.expect("half of the calls failed");
    assert_eq!(ejection.cause, EjectionCause::FailurePercentage);
    assert!(Arc::ptr_eq(&shift.endpoint, world.endpoint(0)));
    world.returns(0);
    assert!(world.answer(3, 200).is_empty(), "nothing has come in meanwhile");
    interval(&world);
    assert!(world.answer(3, 200).is_empty(), "the next is not over");
    world.now = world.now.after(config.interval);
    assert_eq!(world.answer(3, 200).len(), 1, "now it is");
}

#[test]
fn what_came_in_before_an_interval_does_not_count_in_it() {
    let rate = FailurePercentage { threshold: 50, minimum_hosts: 1, request_volume: 10 };
    let config = OutlierDetection { failure_percentage: Some(rate), ..config(0, 50) };
    let mut world = World::new(config, 4);
    for _ in 0..3 {
        for _ in 0..6 {
            assert!(world.answer(0, 500).is_empty(), "six are too few to judge by");
        }
        world.now = world.now.after(config.interval);
    }
}

#[test]
fn good_behaviour_counts_from_the_return_on() {
    let mut world = World::new(config(1, 50), 4);
    world.fail(0, 1);
    world.returns(0);
    let ejection = world.fail(0, 1).expect("it fails again");
    world.now = ejection.until.after(BASE * 10);
    for _ in 0..3 {
        assert!(world.answer(0, 200).is_empty(), "requests of before its ejection end late");
    }
    assert_eq!(world.endpoint(0).stats.ejections(), 2);
    world.returns(0);
    world.answer(0, 200);
    assert_eq!(world.endpoint(0).stats.ejections(), 2, "it has been in for no time");
}

#[test]
fn never_the_last_and_no_more_than_the_percentage_but_one_always() {
    let world = World::new(config(1, 100), 3);
    assert!(world.fail(0, 1).is_some() && world.fail(1, 1).is_some());
    assert_eq!(world.fail(2, 10), None, "the last one stays");
    let world = World::new(config(1, 1), 5);
    assert!(world.fail(0, 1).is_some(), "one of five, though that is more than 1 %");
    assert_eq!(world.fail(1, 10), None);
    let single = World::new(config(1, 100), 1);
    assert_eq!(single.fail(0, 10), None);
    let half = World::new(config(1, 50), 4);
    assert!(half.fail(0, 1).is_some() && half.fail(1, 1).is_some());
    assert_eq!(half.fail(2, 1), None);
}

#[test]
fn zero_switches_it_off_and_a_busy_decision_is_left_to_the_next_failure() {
    assert_eq!(World::new(config(0, 100), 3).fail(0, 100), None);
    let world = World::new(config(2, 100), 3);
    world.fleet.deciding.store(true, Ordering::Relaxed);
    assert_eq!(world.fail(0, 3), None);
    world.fleet.deciding.store(false, Ordering::Relaxed);
    assert!(world.fail(0, 1).is_some());
}

proptest! {
    /// Whatever fails, is tried and ends without a word: the bounds hold, a trial is had by one at a time, and nothing
    /// but a trial that went well takes an endpoint in.
    #[test]
    fn the_bounds_hold_whatever_happens(
        endpoints in 1u64..8,
        consecutive in 1u32..4,
        percent in 0u32..=100,
        split: bool,
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4, 0u64..40), 0..200),
    ) {
        let rate = FailurePercentage { threshold: 30, minimum_hosts: 1, request_volume: 3 };
        let config = OutlierDetection {
            split_external_local_origin_errors: split,
            failure_percentage: Some(rate),
            ..config(consecutive, percent)
        };
        let mut world = World::new(config, endpoints);
        let mut rng = SeededRng::new(7);
        let mut trials: Vec<(usize, Trial)> = Vec::new();
        for (at, step, seconds) in steps {
            world.now = world.now.after(Duration::from_secs(seconds));
            let at = at.index(world.set.pickable().len());
            let was_out = world.endpoint(at).stats.is_out();
            let due = was_out && !world.ejected(at);
            match Trial::claim(world.endpoint(at), world.now) {
                Ok(Some(trial)) => {
                    prop_assert!(due && trials.iter().all(|(other, _)| *other != at), "one at a time");
                    trials.push((at, trial));
                    prop_assert!(world.ejected(at));
                }
                Ok(None) => prop_assert!(!due),
                Err(_) => prop_assert!(trials.iter().any(|(other, _)| *other == at)),
            }
            let status = [200, 500, 503, 0][step];
            let shifts = world.answer(at, status);
            if was_out {
                prop_assert!(shifts.is_empty() && world.endpoint(at).stats.is_out(), "only its trial counts");
            }
            for ejection in shifts.iter().filter_map(|shift| shift.ejection) {
                prop_assert_eq!(ejection.until, world.now.after(config.ejection_time(ejection.count)));
            }
            if !trials.is_empty() && meshwork_base::Rng::below(&mut rng, 3) == 0 {
                let (of, trial) = trials.swap_remove(0);
                if step == 3 {
                    drop(trial);
                    prop_assert!(world.endpoint(of).stats.is_out(), "nobody has said a word");
                } else {
                    let shift = world.tried(trial, status).expect("it was out");
                    prop_assert_eq!(shift.ejection.is_none(), status == 200);
                    prop_assert_eq!(world.endpoint(of).stats.is_out(), status != 200);
                }
            }
            prop_assert_eq!(invariants::ejection(&world.config, &world.set), Ok(()));
            prop_assert_eq!(world.endpoint(at).stats.standing.holds(), Ok(()));
            if status == 200 && !was_out {
                prop_assert_eq!(world.endpoint(at).stats.consecutive_5xx(), 0);
            }
        }
    }
}
