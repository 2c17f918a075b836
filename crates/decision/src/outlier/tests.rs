use proptest::prelude::*;

use super::*;
use crate::tests::endpoint;

const BASE: Duration = Duration::from_secs(30);

fn config(consecutive_5xx: u32, max_ejection_percent: u32) -> OutlierDetection {
    OutlierDetection { consecutive_5xx, base_ejection_time: BASE, max_ejection_percent }
}

fn set(count: u64) -> EndpointSet {
    EndpointSet::new((1..=count).map(|id| endpoint(id, 1)).collect())
}

struct World {
    config: OutlierDetection,
    set: EndpointSet,
    deciding: AtomicBool,
    now: Tick,
}

impl World {
    fn new(config: OutlierDetection, endpoints: u64) -> Self {
        Self { config, set: set(endpoints), deciding: AtomicBool::new(false), now: Tick::ZERO.after(BASE) }
    }

    fn record(&self, at: usize, outcome: AttemptOutcome) -> Option<Ejection> {
        self.config.record(&self.set, &self.deciding, &self.set.pickable()[at], outcome, self.now)
    }

    fn fail(&self, at: usize, times: u32) -> Option<Ejection> {
        (0..times).map(|_| self.record(at, AttemptOutcome::Failure)).last().flatten()
    }

    fn ejected(&self, at: usize) -> bool {
        self.set.pickable()[at].is_ejected(self.now)
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
    assert_eq!(world.record(0, Overloaded), None);
    assert_eq!(world.fail(0, 4), None, "it ends the row like a success");
}

#[test]
fn ejects_an_endpoint_after_five_consecutive_failures() {
    let world = World::new(config(5, 50), 4);
    assert_eq!(world.fail(0, 4), None);
    world.record(0, AttemptOutcome::Success);
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
    let ejection = world.fail(0, 3).expect("the third in a row");
    assert_eq!(world.fail(0, 2), None, "what was under way still fails");
    world.now = ejection.until;
    assert_eq!(world.fail(0, 2), None);
    assert!(world.fail(0, 1).is_some());
}

#[test]
fn each_ejection_is_longer_and_good_behaviour_is_remembered() {
    let mut world = World::new(config(1, 50), 4);
    for count in 1..=3 {
        let ejection = world.fail(0, 1).expect("it may be ejected");
        assert_eq!((ejection.count, ejection.until.since(world.now)), (count, BASE * count));
        assert_eq!(world.fail(0, 1), None, "it is out already");
        world.now = ejection.until;
    }
    world.record(0, AttemptOutcome::Success);
    assert_eq!(world.set.pickable()[0].stats.ejections(), 3, "no time has passed yet");
    world.now = world.now.after(BASE);
    world.record(0, AttemptOutcome::Success);
    world.record(0, AttemptOutcome::Success);
    assert_eq!(world.set.pickable()[0].stats.ejections(), 2, "one base time takes one off, once");
    assert_eq!(world.fail(0, 1).expect("again").count, 3);
}

#[test]
fn ejections_are_capped_in_time() {
    assert_eq!(config(1, 50).ejection_time(1000), MAX_EJECTION_TIME);
    let long = OutlierDetection { base_ejection_time: MAX_EJECTION_TIME * 2, ..config(1, 50) };
    assert_eq!(long.ejection_time(3), MAX_EJECTION_TIME * 2);
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
    world.deciding.store(true, Ordering::Relaxed);
    assert_eq!(world.fail(0, 3), None);
    world.deciding.store(false, Ordering::Relaxed);
    assert!(world.fail(0, 1).is_some());
}

proptest! {
    #[test]
    fn the_bounds_hold_whatever_happens(
        endpoints in 1u64..8,
        consecutive in 1u32..4,
        percent in 0u32..=100,
        steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0u64..40), 0..200),
    ) {
        let mut world = World::new(config(consecutive, percent), endpoints);
        for (at, failed, seconds) in steps {
            world.now = world.now.after(Duration::from_secs(seconds));
            let at = at.index(world.set.pickable().len());
            let was = world.ejected(at);
            let row = world.set.pickable()[at].stats.consecutive_5xx();
            let outcome = if failed { AttemptOutcome::Failure } else { AttemptOutcome::Success };
            let ejection = world.record(at, outcome);
            prop_assert_eq!(invariants::ejection(&world.config, &world.set, world.now), Ok(()));
            if let Some(ejection) = ejection {
                prop_assert!(failed && !was && row + 1 >= consecutive);
                prop_assert_eq!(ejection.until, world.now.after(world.config.ejection_time(ejection.count)));
                prop_assert!(world.ejected(at));
            } else {
                prop_assert_eq!(world.ejected(at), was, "only an ejection ejects, only time returns");
            }
            if !failed {
                prop_assert_eq!(world.set.pickable()[at].stats.consecutive_5xx(), 0);
            }
        }
    }
}
