use meshwork_base::SeededRng;
use proptest::prelude::*;

use super::*;

const POLICY: CircuitBreaker = CircuitBreaker {
    mode: BreakerMode::Enforce,
    window: WindowSize::Calls(10),
    minimum_calls: 5,
    failure_percent: Some(50),
    slow_calls: Some((Duration::from_millis(100), 80)),
    open_time: Duration::from_secs(1),
    max_open_time: Duration::from_secs(8),
    trials: 3,
};

const OK: Call = Call { failed: false, took: Duration::from_millis(1) };
const FAILED: Call = Call { failed: true, ..OK };
const SLOW: Call = Call { failed: false, took: Duration::from_millis(101) };

/// A breaker whose calls follow each other.
struct World {
    policy: CircuitBreaker,
    machine: Machine,
    now: Tick,
    rng: SeededRng,
}

impl World {
    fn new(policy: CircuitBreaker) -> Self {
        let now = Tick::ZERO.after(Duration::from_secs(100));
        Self { policy, machine: Machine::new(&policy), now, rng: SeededRng::new(1) }
    }

    fn call(&mut self, call: Call) -> Admission {
        let admission = self.machine.admit(&self.policy, self.now);
        let generation = self.machine.generation();
        match admission {
            Admission::Passes => self.machine.ended(&self.policy, generation, call, self.now, &mut self.rng),
            Admission::Trial => self.tried(self.now, call),
            Admission::Refused => {}
        }
        admission
    }

    /// A trial of this state that began then has ended.
    fn tried(&mut self, began: Tick, call: Call) {
        let of = (self.machine.generation(), began);
        self.machine.tried(&self.policy, of, call, self.now, &mut self.rng);
    }

    fn admit(&mut self) -> Admission {
        self.machine.admit(&self.policy, self.now)
    }

    /// Half-open with its next call, and how long its trials have.
    fn failed(policy: CircuitBreaker) -> (Self, Duration) {
        let mut world = Self::new(policy);
        world.calls(&[FAILED; 5]);
        let time = world.until().since(world.now);
        world.now = world.until();
        (world, time)
    }

    fn calls(&mut self, calls: &[Call]) -> BreakerState {
        for &call in calls {
            self.call(call);
        }
        self.machine.state()
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    fn until(&self) -> Tick {
        match self.machine.state {
            State::Open { until, .. } => until,
            _ => panic!("{:?} is not open", self.machine),
        }
    }
}

#[test]
fn a_rate_that_is_reached_opens_it_but_not_below_the_minimum() {
    let mut world = World::new(POLICY);
    assert_eq!(world.calls(&[FAILED; 4]), BreakerState::Closed, "four calls are no rate");
    assert_eq!(world.calls(&[FAILED]), BreakerState::Open);
    assert_eq!(world.call(OK), Admission::Refused);

    let mut world = World::new(POLICY);
    assert_eq!(world.calls(&[OK, OK, OK, FAILED, FAILED]), BreakerState::Closed, "40 %");
    assert_eq!(world.calls(&[FAILED]), BreakerState::Open, "50 % are reached");
}

#[test]
fn only_the_last_calls_count() {
    let mut world = World::new(POLICY);
    assert_eq!(world.calls(&[FAILED, FAILED, OK, OK, OK]), BreakerState::Closed);
    assert_eq!(world.calls(&[OK; 10]), BreakerState::Closed);
    assert_eq!(
        world.calls(&[FAILED; 4]),
        BreakerState::Closed,
        "four of the last ten, the first two are gone"
    );
    assert_eq!(world.calls(&[FAILED]), BreakerState::Open);
}

#[test]
fn only_the_last_seconds_count() {
    let mut world =
        World::new(CircuitBreaker { window: WindowSize::Time(Duration::from_secs(10)), ..POLICY });
    assert_eq!(world.calls(&[FAILED; 4]), BreakerState::Closed);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.calls(&[FAILED; 4]), BreakerState::Closed, "those of ten seconds ago are gone");
    world.pass(Duration::from_secs(9));
    assert_eq!(world.calls(&[FAILED]), BreakerState::Open, "those of nine seconds ago are not");
}

#[test]
fn slowness_has_a_rate_of_its_own() {
    let mut world = World::new(POLICY);
    assert_eq!(world.calls(&[SLOW, SLOW, SLOW, OK, OK]), BreakerState::Closed, "60 %");
    assert_eq!(world.calls(&[SLOW; 5]), BreakerState::Open, "80 % of ten");
    let exact = Call { took: Duration::from_millis(100), ..OK };
    assert_eq!(
        World::new(POLICY).calls(&[exact; 10]),
        BreakerState::Closed,
        "as long as allowed is not slow"
    );
    let deaf = CircuitBreaker { slow_calls: None, failure_percent: None, ..POLICY };
    let bad = Call { failed: true, took: Duration::from_secs(9) };
    assert_eq!(World::new(deaf).calls(&[bad; 20]), BreakerState::Closed, "nothing is asked");
}

#[test]
fn trials_decide_once_all_have_ended() {
    let mut world = World::new(POLICY);
    world.calls(&[FAILED; 5]);
    world.now = world.until();
    assert_eq!(world.call(OK), Admission::Trial, "the end of its time is half-open");
    assert_eq!(world.calls(&[FAILED]), BreakerState::HalfOpen);
    assert_eq!(world.calls(&[OK]), BreakerState::Closed, "a third failed");
    assert_eq!(world.calls(&[FAILED; 4]), BreakerState::Closed, "it begins with no calls");

    world.calls(&[FAILED]);
    world.now = world.until();
    assert_eq!(world.calls(&[FAILED, OK, FAILED]), BreakerState::Open, "two thirds failed");
}

#[test]
fn no_more_trials_than_allowed_are_under_way_and_a_place_can_be_given_back() {
    let mut world = World::new(POLICY);
    world.calls(&[FAILED; 5]);
    world.now = world.until();
    let admit = |world: &mut World| world.machine.admit(&POLICY, world.now);
    for _ in 0..3 {
        assert_eq!(admit(&mut world), Admission::Trial);
    }
    assert_eq!(admit(&mut world), Admission::Refused);
    world.machine.give_back(world.machine.generation(), world.now);
    assert_eq!(admit(&mut world), Admission::Trial);
    assert_eq!(admit(&mut world), Admission::Refused);
    world.machine.give_back(world.machine.generation().wrapping_sub(1), world.now);
    assert_eq!(admit(&mut world), Admission::Refused, "that was another state's");
}

#[test]
fn trials_that_hang_give_their_places_to_others() {
    let (mut world, time) = World::failed(POLICY);
    let began = world.now;
    for _ in 0..3 {
        assert_eq!(world.admit(), Admission::Trial);
    }
    world.pass(time - Duration::from_nanos(1));
    assert!(world.machine.refuses(&POLICY, world.now));
    assert_eq!(world.admit(), Admission::Refused, "for as long as it was open they may be under way");
    world.pass(Duration::from_nanos(1));
    assert!(!world.machine.refuses(&POLICY, world.now), "balancers do not pass it by");
    for _ in 0..3 {
        assert_eq!(world.admit(), Admission::Trial);
    }
    assert_eq!(world.admit(), Admission::Refused, "those are as many as are allowed");
    let again = world.now;
    world.tried(again, OK);
    assert_eq!(world.admit(), Admission::Refused, "one has ended, two are under way, and three hang");
    world.machine.give_back(world.machine.generation(), again);
    assert_eq!(world.admit(), Admission::Trial);
    world.machine.give_back(world.machine.generation(), began);
    assert_eq!(world.admit(), Admission::Refused, "who hangs holds no place that it could give back");
    world.tried(again, OK);
    world.tried(again, OK);
    assert_eq!(world.machine.state(), BreakerState::Closed, "and those who do not decide");
    let closed = world.machine.generation();
    world.machine.tried(&POLICY, (closed.wrapping_sub(1), began), FAILED, world.now, &mut world.rng);
    assert_eq!(world.machine.numbers(world.now).0, Tally::default());
}

#[test]
fn trials_that_hang_count_when_they_end() {
    let (mut world, time) = World::failed(POLICY);
    let began = world.now;
    for round in 0..3 {
        for _ in 0..3 {
            assert_eq!(world.admit(), Admission::Trial, "round {round}");
        }
        assert_eq!(world.admit(), Admission::Refused, "round {round}");
        world.pass(time);
    }
    world.tried(began, FAILED);
    world.tried(began, FAILED);
    assert_eq!(world.machine.state(), BreakerState::HalfOpen);
    world.tried(began, FAILED);
    assert_eq!(world.machine.state(), BreakerState::Open);
}

#[test]
fn trials_that_have_no_time_at_all_are_not_late_at_once() {
    let (mut world, time) =
        World::failed(CircuitBreaker { open_time: Duration::ZERO, max_open_time: Duration::ZERO, ..POLICY });
    assert_eq!(time, Duration::ZERO);
    let admitted = [(); 4].map(|()| world.admit());
    assert_eq!(admitted, [Admission::Trial, Admission::Trial, Admission::Trial, Admission::Refused]);
}

#[test]
fn it_is_open_longer_each_time_and_briefly_again_after_it_was_closed() {
    let mut world = World::new(POLICY);
    world.calls(&[FAILED; 5]);
    for longest in [1, 2, 4, 8, 8] {
        let (time, longest) = (world.until().since(world.now), Duration::from_secs(longest));
        assert!(time >= longest / 2 && time <= longest, "{time:?} of {longest:?}");
        world.now = world.until();
        world.calls(&[FAILED; 3]);
    }
    world.now = world.until();
    assert_eq!(world.calls(&[OK; 3]), BreakerState::Closed);
    assert_eq!(world.calls(&[FAILED; 5]), BreakerState::Open);
    assert!(world.until().since(world.now) <= Duration::from_secs(1));
}

#[test]
fn calls_of_another_state_say_nothing() {
    let mut world = World::new(POLICY);
    let closed = world.machine.generation();
    world.calls(&[FAILED; 5]);
    world.now = world.until();
    assert_eq!(world.machine.admit(&POLICY, world.now), Admission::Trial);
    for _ in 0..10 {
        world.machine.ended(&POLICY, closed, FAILED, world.now, &mut world.rng);
        world.machine.tried(&POLICY, (closed, world.now), FAILED, world.now, &mut world.rng);
    }
    assert_eq!(world.machine.state(), BreakerState::HalfOpen);
}

#[test]
fn fewer_trials_than_are_under_way_are_enough() {
    let mut world = World::new(POLICY);
    world.calls(&[FAILED; 5]);
    world.now = world.until();
    for _ in 0..3 {
        assert_eq!(world.machine.admit(&POLICY, world.now), Admission::Trial);
    }
    world.policy.trials = 1;
    world.tried(world.now, OK);
    assert_eq!(world.machine.state(), BreakerState::Closed);
}

#[test]
fn fewer_trials_than_have_ended_do_not_leave_it_half_open() {
    for (trials, last, then) in
        [(3, OK, BreakerState::Closed), (1, OK, BreakerState::Closed), (1, FAILED, BreakerState::Open)]
    {
        let mut world = World::new(CircuitBreaker { trials: 5, failure_percent: Some(20), ..POLICY });
        world.calls(&[FAILED; 5]);
        world.pass(Duration::from_secs(1));
        assert_eq!(world.calls(&[OK; 3]), BreakerState::HalfOpen);
        world.policy.trials = trials;
        assert!(!world.machine.refuses(&world.policy, world.now), "balancers do not pass it by");
        assert_eq!(world.call(last), Admission::Trial);
        assert_eq!(world.machine.state(), then, "{trials} trials");
    }
}

#[test]
fn trials_that_end_by_the_policy_of_before_do_not_leave_it_half_open() {
    let before = CircuitBreaker { trials: 5, ..POLICY };
    let mut world = World::new(before);
    world.calls(&[FAILED; 5]);
    world.pass(Duration::from_secs(1));
    for _ in 0..3 {
        assert_eq!(world.machine.admit(&before, world.now), Admission::Trial);
    }
    world.policy.trials = 3;
    let generation = world.machine.generation();
    for left in [2, 1, 0] {
        assert_eq!(world.call(OK), Admission::Refused, "{left} and one more are under way");
        world.machine.tried(&before, (generation, world.now), OK, world.now, &mut world.rng);
    }
    assert_eq!(world.calls(&[OK]), BreakerState::Closed);
}

#[test]
fn another_window_begins_with_no_calls() {
    let mut world = World::new(POLICY);
    world.calls(&[FAILED; 4]);
    world.policy.window = WindowSize::Calls(20);
    assert_eq!(world.calls(&[FAILED; 4]), BreakerState::Closed);
    assert_eq!(world.calls(&[FAILED]), BreakerState::Open);
}

/// What happens to a breaker.
#[derive(Clone, Debug)]
enum Step {
    Begin,
    End(usize, bool, u64),
    GiveBack(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Begin),
        4 => (any::<usize>(), any::<bool>(), 0_u64..200).prop_map(|(which, failed, ms)| Step::End(which, failed, ms)),
        1 => any::<usize>().prop_map(Step::GiveBack),
        1 => (0_u64..3_000).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..300)
}

proptest! {
    /// Whatever begins and ends in whatever order: while it is open nothing passes before its time, trials are as many as
    /// allowed, and it opens only for a rate that a model of the window sees as well.
    #[test]
    fn keeps_its_promises(steps in steps(), by_time: bool, trials in 1_u32..5, minimum in 1_u32..8, seed: u64) {
        let window = if by_time { WindowSize::Time(Duration::from_secs(2)) } else { WindowSize::Calls(10) };
        let policy = CircuitBreaker { window, trials, minimum_calls: minimum, ..POLICY };
        let mut world = World::new(policy);
        world.rng = SeededRng::new(seed);
        let mut under_way: Vec<(Admission, u32, Tick)> = Vec::new();
        let mut last: Vec<Call> = Vec::new();
        for step in steps {
            let (before, generation) = (world.machine.state(), world.machine.generation());
            match step {
                Step::Pass(ms) => world.pass(Duration::from_millis(ms)),
                Step::Begin => {
                    let open_until = match world.machine.state { State::Open { until, .. } => Some(until), _ => None };
                    let admission = world.machine.admit(&policy, world.now);
                    if open_until.is_some_and(|until| world.now < until) {
                        prop_assert_eq!(admission, Admission::Refused);
                    }
                    // A state has one generation, and its trials have as long as it was open before.
                    let of_now = under_way.iter().filter(|(a, of, _)| *a == Admission::Trial && *of == generation);
                    if let (State::HalfOpen(trials), BreakerState::HalfOpen) = (&world.machine.state, before) {
                        let young = |began: Tick| world.now.since(began) < trials.time;
                        let young = of_now.filter(|(.., began)| young(*began)).count();
                        match admission {
                            Admission::Trial => prop_assert!(young < policy.trials as usize),
                            _ => prop_assert!(trials.last.after(trials.time) > world.now, "it is late, and nobody tries"),
                        }
                    }
                    if admission != Admission::Refused {
                        under_way.push((admission, world.machine.generation(), world.now));
                    }
                }
                Step::End(which, failed, ms) if !under_way.is_empty() => {
                    let (admission, of, began) = under_way.swap_remove(which % under_way.len());
                    let call = Call { failed, took: Duration::from_millis(ms) };
                    if admission == Admission::Passes {
                        if of == generation && before == BreakerState::Closed { last.push(call); }
                        world.machine.ended(&policy, of, call, world.now, &mut world.rng);
                    } else {
                        world.machine.tried(&policy, (of, began), call, world.now, &mut world.rng);
                    }
                    if before == BreakerState::Closed && world.machine.state() == BreakerState::Open {
                        prop_assert!(last.len() >= minimum as usize);
                        if !by_time {
                            let recent = &last[last.len().saturating_sub(10)..];
                            let share = |count: usize| count * 100 / recent.len();
                            let failed = share(recent.iter().filter(|call| call.failed).count());
                            let slow = share(recent.iter().filter(|call| call.took > Duration::from_millis(100)).count());
                            prop_assert!(failed >= 50 || slow >= 80, "{failed} % failed, {slow} % slow");
                        }
                    }
                }
                Step::GiveBack(which) if !under_way.is_empty() => {
                    let (admission, of, began) = under_way.swap_remove(which % under_way.len());
                    if admission == Admission::Trial {
                        world.machine.give_back(of, began);
                    }
                }
                Step::End(..) | Step::GiveBack(_) => {}
            }
            if world.machine.generation() != generation { last.clear(); }
            let now = world.machine.generation();
            let of_now = || under_way.iter().filter(|(a, of, _)| *a == Admission::Trial && *of == now);
            if let State::HalfOpen(counted) = world.machine.state {
                prop_assert_eq!(invariants::trials(counted), Ok(()));
                prop_assert_eq!(counted.begun - counted.ended.calls, u32::try_from(of_now().count()).unwrap());
                let late = of_now().filter(|(.., began)| *began < counted.anew).count();
                prop_assert_eq!(counted.late, u32::try_from(late).unwrap());
                prop_assert!(of_now().count() - late <= trials as usize);
            }
        }
    }
}

mod shared {
    use super::*;
    use crate::tests::{build, key, policy_change, service, service_change, slice, wire_endpoint};
    use crate::{Cause, Cluster, Explanation, NoReasons, Outcome, SnapshotBuilder};
    use meshwork_messages::v1;
    use std::sync::Arc;

    fn cluster(builder: &mut SnapshotBuilder, mode: v1::circuit_breaker::Mode) -> Arc<Cluster> {
        let breaker = v1::CircuitBreaker {
            mode: mode.into(),
            window: Some(v1::circuit_breaker::Window::WindowCalls(4)),
            minimum_calls: 2,
            failure_percent: 50,
            open_ms: 1_000,
            max_open_ms: 60_000,
            trials: 1,
            ..Default::default()
        };
        let traffic = v1::TrafficPolicy { circuit_breaker: Some(breaker), ..Default::default() };
        let changes = [
            service_change(&service("ns/a", &[("", 80)])),
            slice("ns/1", "ns/a", ("", 8080), vec![wire_endpoint("10.0.0.1")]),
            policy_change(traffic),
        ];
        Arc::clone(build(builder, changes).cluster(&key("ns/a", 80)).unwrap())
    }

    fn call(cluster: &Arc<Cluster>, call: Call, now: Tick) -> Result<Option<BreakerState>, Cause> {
        let ticket = cluster.try_call(now, &mut NoReasons)?;
        Ok(ticket.and_then(|ticket| Some(ticket.ended(call, now, &mut SeededRng::new(1))?.1.state)))
    }

    #[test]
    fn a_cluster_s_breaker_goes_round_and_outlives_a_change_of_its_policy() {
        use v1::circuit_breaker::Mode;
        let mut builder = SnapshotBuilder::new();
        let enforced = cluster(&mut builder, Mode::Enforce);
        let now = Tick::ZERO.after(Duration::from_secs(1));
        assert_eq!(call(&enforced, FAILED, now), Ok(None));
        assert_eq!(call(&enforced, FAILED, now), Ok(Some(BreakerState::Open)));
        assert_eq!(call(&enforced, OK, now), Err(Cause::CircuitBreaker));
        assert_eq!(Cause::CircuitBreaker.flag().as_str(), "UO");

        let observed = cluster(&mut builder, Mode::Observe);
        assert_eq!(observed.breaker(now).state, BreakerState::Open, "it is the same one");
        assert_eq!(call(&observed, OK, now), Ok(None), "nobody is refused");
        let forced = cluster(&mut builder, Mode::ForcedOpen);
        let later = now.after(Duration::from_secs(2));
        assert_eq!(call(&forced, OK, later), Err(Cause::CircuitBreaker));
        assert_eq!(call(&cluster(&mut builder, Mode::ForcedClosed), OK, now), Ok(None));

        let enforced = cluster(&mut builder, Mode::Enforce);
        let trial = enforced.try_call(later, &mut NoReasons).unwrap();
        let change = trial.as_ref().and_then(Ticket::change).expect("half-open begins with its first trial");
        assert_eq!((change.state, change.cause), (BreakerState::HalfOpen, BreakerCause::OpenTimeOver));
        assert_eq!(enforced.breaker(later).state, BreakerState::HalfOpen);
        assert_eq!(call(&enforced, OK, later), Err(Cause::CircuitBreaker), "one trial is under way");
        drop(trial);
        assert_eq!(call(&enforced, OK, later), Ok(Some(BreakerState::Closed)), "its place was given back");
        assert_eq!(call(&enforced, OK, later), Ok(None));
    }

    #[test]
    fn a_trial_that_hangs_keeps_nobody_away_for_longer_than_it_was_open() {
        let mut builder = SnapshotBuilder::new();
        let cluster = cluster(&mut builder, v1::circuit_breaker::Mode::Enforce);
        let now = Tick::ZERO.after(Duration::from_secs(1));
        assert_eq!(call(&cluster, FAILED, now), Ok(None));
        assert_eq!(call(&cluster, FAILED, now), Ok(Some(BreakerState::Open)));
        let until = cluster.breaker(now).until.expect("it is open for a time");
        let hangs = cluster.try_call(until, &mut NoReasons).expect("its time is over");
        let late = until.after(until.since(now));
        assert_eq!(call(&cluster, OK, Tick::from_nanos(late.as_nanos() - 1)), Err(Cause::CircuitBreaker));
        let other = cluster.try_call(late, &mut NoReasons).expect("the place of the one that hangs");
        assert_eq!(call(&cluster, OK, late), Err(Cause::CircuitBreaker), "and there is one");
        drop(hangs);
        assert_eq!(call(&cluster, OK, late), Err(Cause::CircuitBreaker), "which it does not give back");
        let ended = other.and_then(|ticket| ticket.ended(OK, late, &mut SeededRng::new(1)));
        assert_eq!(ended.map(|(_, change)| change.state), Some(BreakerState::Closed));
    }

    #[test]
    fn a_trial_that_took_the_place_of_a_late_one_gives_it_back() {
        let mut builder = SnapshotBuilder::new();
        let cluster = cluster(&mut builder, v1::circuit_breaker::Mode::Enforce);
        let now = Tick::ZERO.after(Duration::from_secs(1));
        assert_eq!(call(&cluster, FAILED, now), Ok(None));
        assert_eq!(call(&cluster, FAILED, now), Ok(Some(BreakerState::Open)));
        let until = cluster.breaker(now).until.expect("it is open for a time");
        let late = until.after(until.since(now));
        let _hangs = cluster.try_call(until, &mut NoReasons).expect("its time is over");
        drop(cluster.try_call(late, &mut NoReasons).expect("the place of the one that hangs"));
        assert_eq!(call(&cluster, OK, late), Ok(Some(BreakerState::Closed)));
    }

    #[test]
    fn who_keeps_it_open_is_told_if_it_is_not_the_rates() {
        use v1::circuit_breaker::Mode;
        let mut builder = SnapshotBuilder::new();
        let now = Tick::ZERO.after(Duration::from_secs(1));
        let end = now.after(Duration::from_secs(300));
        let enforced = cluster(&mut builder, Mode::Enforce);
        assert_eq!(enforced.forced_open(now), None);
        enforced.force_breaker(Some((ForcedState::Open, end)));
        assert_eq!(enforced.forced_open(now), Some(ForcedBy::Operator(end)));
        assert_eq!(enforced.forced_open(end), None, "its time is over");
        let by_policy = cluster(&mut builder, Mode::ForcedOpen);
        assert_eq!(by_policy.forced_open(now), Some(ForcedBy::Operator(end)), "above its policy");
        by_policy.force_breaker(Some((ForcedState::Closed, end)));
        assert_eq!(by_policy.forced_open(now), None);
        assert_eq!(by_policy.forced_open(end), Some(ForcedBy::Policy));
        let each = v1::CircuitBreaker {
            mode: Mode::ForcedOpen.into(),
            per_endpoint: Some(true),
            ..Default::default()
        };
        let each = v1::TrafficPolicy { circuit_breaker: Some(each), ..Default::default() };
        let snapshot = build(&mut builder, [policy_change(each)]);
        let of_endpoints = snapshot.cluster(&key("ns/a", 80)).unwrap();
        assert_eq!(of_endpoints.forced_open(now), Some(ForcedBy::Policy), "each of its endpoints");
    }

    #[test]
    fn what_an_operator_forces_stands_above_policies_and_ends_by_itself() {
        use v1::circuit_breaker::Mode;
        let mut builder = SnapshotBuilder::new();
        let enforced = cluster(&mut builder, Mode::Enforce);
        let now = Tick::ZERO.after(Duration::from_secs(1));
        let end = now.after(Duration::from_secs(300));
        enforced.force_breaker(Some((ForcedState::Open, end)));
        assert_eq!(call(&enforced, OK, now), Err(Cause::CircuitBreaker));
        let closed_by_policy = cluster(&mut builder, Mode::ForcedClosed);
        let mut told = Explanation::default();
        assert!(closed_by_policy.try_call(now, &mut told).is_err(), "also after a change of the policy");
        assert_eq!(told.0[0].outcome, Outcome::Refused);
        assert_eq!(told.0[0].why, "an operator has forced it open for 300.0 s more");
        assert_eq!(closed_by_policy.breaker(now).refused, 2);
        assert_eq!(call(&closed_by_policy, OK, end), Ok(None), "its time is over");

        let open_by_policy = cluster(&mut builder, Mode::ForcedOpen);
        open_by_policy.force_breaker(Some((ForcedState::Closed, end)));
        assert_eq!(call(&open_by_policy, OK, now), Ok(None));
        assert_eq!(open_by_policy.breaker(now).in_effect(), BreakerState::Closed);
        open_by_policy.force_breaker(None);
        assert_eq!(call(&open_by_policy, OK, now), Err(Cause::CircuitBreaker));
    }

    #[test]
    fn what_an_operator_forces_has_no_headroom_of_the_rates() {
        let mut builder = SnapshotBuilder::new();
        let cluster = cluster(&mut builder, v1::circuit_breaker::Mode::Enforce);
        let now = Tick::ZERO.after(Duration::from_secs(1));
        let end = now.after(Duration::from_secs(300));
        let headroom = |forced: Option<ForcedState>, now: Tick| {
            cluster.force_breaker(forced.map(|forced| (forced, end)));
            cluster.breaker(now).headroom
        };
        assert!(headroom(None, now) > Some(0));
        assert_eq!(headroom(Some(ForcedState::Open), now), None);
        assert_eq!(call(&cluster, FAILED, now), Err(Cause::CircuitBreaker));
        cluster.force_breaker(None);
        assert_eq!(call(&cluster, FAILED, now), Ok(None));
        assert_eq!(call(&cluster, FAILED, now), Ok(Some(BreakerState::Open)));
        assert_eq!(headroom(None, now), Some(0));
        assert_eq!(headroom(Some(ForcedState::Closed), now), None, "no call opens it");
        assert_eq!(headroom(Some(ForcedState::Closed), end), Some(0), "its time is over");
    }

    #[test]
    fn a_breaker_tells_its_numbers_and_what_brought_it_there() {
        let mut builder = SnapshotBuilder::new();
        let cluster = cluster(&mut builder, v1::circuit_breaker::Mode::Enforce);
        let now = Tick::ZERO.after(Duration::from_secs(1));
        for outcome in [OK, OK, FAILED] {
            assert_eq!(call(&cluster, outcome, now), Ok(None));
        }
        let view = cluster.breaker(now);
        assert_eq!((view.calls, view.failed, view.cause), (3, 1, None));
        assert_eq!(call(&cluster, FAILED, now), Ok(Some(BreakerState::Open)));
        let view = cluster.breaker(now);
        assert_eq!(view.cause, Some(BreakerCause::FailureRate));
        let until = view.until.expect("it is open for a time");
        assert!(view.told(now).starts_with("open for "), "{}", view.told(now));
        assert_eq!(call(&cluster, FAILED, until), Ok(Some(BreakerState::Open)));
        assert_eq!(cluster.breaker(until).cause, Some(BreakerCause::TrialsFailed));
    }
}
