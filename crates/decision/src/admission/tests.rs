use std::sync::Arc;

use meshwork_base::SeededRng;
use meshwork_messages::v1;
use proptest::prelude::*;

use super::*;
use crate::tests::{build, key, policy_change, service, service_change, slice, wire_endpoint};
use crate::{Answer, Explanation, NoReasons, OwnedRequest, SnapshotBuilder};

fn policy() -> AdmissionControl {
    AdmissionControl {
        sampling_window: Duration::from_secs(10),
        success_rate_threshold: 95,
        aggression: 1_000,
        rps_threshold: 0,
        max_rejection_probability: 80,
        priorities: Box::default(),
    }
}

fn sent(calls: u32, failed: u32) -> Tally {
    Tally { calls, failed, slow: 0 }
}

fn at(millis: u64) -> Tick {
    Tick::ZERO.after(Duration::from_millis(1_000_000 + millis))
}

fn near(probability: f64, expected: f64) {
    assert!((probability - expected).abs() < 1e-3, "{probability}, not {expected}");
}

#[test]
fn the_part_that_is_refused_follows_the_rate_of_success() {
    let probability = |calls, failed| policy().probability(sent(calls, failed), 0);
    near(probability(0, 0), 0.0);
    near(probability(1_000, 0), 0.0);
    near(probability(1_000, 50), 0.0);
    near(probability(1_000, 500), 0.473);
    near(probability(1_000, 900), 0.8);
    near(probability(1, 1), 0.5);
    let all = AdmissionControl { success_rate_threshold: 100, max_rejection_probability: 100, ..policy() };
    near(all.probability(sent(1_000, 1), 0), 0.001);
    near(all.probability(sent(999, 999), 0), 0.999);
    let aggressive = AdmissionControl { aggression: 2_000, ..policy() };
    near(aggressive.probability(sent(1_000, 500), 0), 0.688);
    let timid = AdmissionControl { aggression: 1, ..policy() };
    near(timid.probability(sent(1_000, 500), 0), 0.473);
}

#[test]
fn a_few_calls_say_nothing() {
    let busy = AdmissionControl { rps_threshold: 10, ..policy() };
    near(busy.probability(sent(99, 99), 0), 0.0);
    near(busy.probability(sent(100, 100), 0), 0.8);
    near(busy.probability(sent(60, 60), 40), 0.8);
}

/// Calls by turns, of which the service takes so many each second.
struct World {
    policy: AdmissionControl,
    admissions: Admissions,
    rng: SeededRng,
}

impl World {
    fn new(policy: AdmissionControl, seed: u64) -> Self {
        Self { policy, admissions: Admissions::default(), rng: SeededRng::new(seed) }
    }

    /// One second, in which so many come evenly: how many were sent, and how many succeeded.
    fn second(&mut self, number: u64, demand: u64, capacity: u64) -> (u64, u64) {
        let (mut tried, mut done) = (0, 0);
        for call in 0..demand {
            let now = at(number * 1_000 + call * 1_000 / demand);
            if !self.admissions.lets_through(&self.policy, now, &mut self.rng) {
                continue;
            }
            tried += 1;
            let outcome = match done < capacity {
                true => AttemptOutcome::Success,
                false => AttemptOutcome::Overloaded,
            };
            done += u64::from(outcome == AttemptOutcome::Success);
            self.admissions.ended(&self.policy, outcome, now);
        }
        (tried, done)
    }
}

#[test]
fn an_overloaded_service_gets_little_more_than_it_can_do_and_all_of_it_when_it_recovers() {
    for seed in 0..20 {
        let mut world = World::new(policy(), seed);
        let calm: Vec<_> = (0..5).map(|second| world.second(second, 100, 100)).collect();
        assert!(calm.iter().all(|is| *is == (100, 100)), "nobody is refused: {calm:?}");
        let busy: Vec<_> = (5..40).map(|second| world.second(second, 300, 100)).collect();
        let (tried, done) = busy[20..].iter().fold((0, 0), |sum, is| (sum.0 + is.0, sum.1 + is.1));
        // The square root of what is wanted over what can be done.
        assert!((1_500..=3_000).contains(&tried), "seed {seed}: {tried} were sent in 15 s");
        assert!(done >= 1_400, "seed {seed}: {done} of 1,500 were done");
        let after: Vec<_> = (40..60).map(|second| world.second(second, 90, 100)).collect();
        assert_eq!(after[15], (90, 90), "seed {seed}: {after:?}");
    }
}

#[test]
fn what_is_refused_counts_as_wanted() {
    let mut world = World::new(AdmissionControl { rps_threshold: 50, ..policy() }, 1);
    let tried: u64 = (0..40).map(|second| world.second(second, 100, 0).0).skip(20).sum();
    assert!(
        (300..=500).contains(&tried),
        "a fifth is sent, which alone would be too few to look at: {tried} of 2,000"
    );
}

#[test]
fn failures_are_forgotten_and_another_window_begins_with_none() {
    let mut world = World::new(AdmissionControl { max_rejection_probability: 100, ..policy() }, 1);
    for _ in 0..1_000 {
        world.admissions.ended(&world.policy, AttemptOutcome::Failure, at(0));
    }
    let passed = |world: &mut World, now| {
        (0..100).filter(|_| world.admissions.lets_through(&world.policy, now, &mut world.rng)).count()
    };
    assert!(passed(&mut world, at(1)) < 5);
    assert_eq!(passed(&mut world, at(20_000)), 100, "also where nobody was let through meanwhile");
    let holds_back = world.admissions.holds_back.load(Ordering::Relaxed);
    assert!(!holds_back, "second attempts may be made again, though none has ended");
    for _ in 0..1_000 {
        world.admissions.ended(&world.policy, AttemptOutcome::Failure, at(20_000));
    }
    world.policy.sampling_window = Duration::from_secs(30);
    world.admissions.ended(&world.policy, AttemptOutcome::Success, at(20_000));
    assert_eq!(passed(&mut world, at(20_001)), 100);
}

fn cluster(said: v1::AdmissionControl) -> Arc<Cluster> {
    let traffic = v1::TrafficPolicy { admission_control: Some(said), ..Default::default() };
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        slice("ns/1", "ns/a", ("", 8080), vec![wire_endpoint("10.0.0.1")]),
        policy_change(traffic),
    ];
    Arc::clone(build(&mut SnapshotBuilder::new(), changes).cluster(&key("ns/a", 80)).unwrap())
}

fn said() -> v1::AdmissionControl {
    v1::AdmissionControl {
        sampling_window_ms: 30_000,
        success_rate_threshold: 95,
        aggression_thousandths: 1_000_000,
        rps_threshold: Some(0),
        max_rejection_percent: Some(100),
        priorities: vec![v1::overload::PriorityRule {
            priority: v1::overload::Priority::High.into(),
            headers: vec![v1::Field { name: "X-Important".into(), value: "1".into() }],
            ..Default::default()
        }],
    }
}

#[test]
fn what_attempts_say_holds_back_calls_but_not_those_that_matter() {
    let cluster = cluster(said());
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    let mut rng = SeededRng::new(1);
    let mut call = |exempt| cluster.admit_by_success(exempt, at(0), &mut rng, &mut NoReasons);
    assert_eq!(call(false), Ok(()));
    assert!(!cluster.holds_back());
    for outcome in [AttemptOutcome::Success, AttemptOutcome::Overloaded, AttemptOutcome::Failure] {
        drop(cluster.record(&endpoint, &Answer::new(outcome, Duration::ZERO), at(0)));
    }
    assert!(cluster.holds_back());
    let view = cluster.admissions(at(0)).unwrap();
    assert_eq!((view.calls, view.failed), (3, 2), "what was refused for load did not succeed");
    let refused = (0..100).filter(|_| call(false) == Err(Cause::AdmissionControl)).count();
    assert!(refused > 90, "{refused}");
    assert_eq!(cluster.admissions(at(0)).unwrap().refused, refused as u64);
    assert!((0..100).all(|_| call(true) == Ok(())));

    let mut told = Explanation::default();
    let _ = cluster.admit_by_success(false, at(0), &mut SeededRng::new(1), &mut told);
    assert_eq!((told.0[0].phase, told.0[0].outcome), (Phase::Admission, Outcome::Refused));
    assert_eq!(told.0[0].why, "of 3 calls 2 did not succeed: 100 % are refused");

    let policy = cluster.admission.as_ref().unwrap();
    let request = |headers: &[(&str, &str)]| OwnedRequest {
        headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        ..OwnedRequest::get("a", "/")
    };
    assert!(policy.exempts(&request(&[("x-important", "1")])));
    assert!(!policy.exempts(&request(&[("x-important", "0")])));
}

#[test]
fn a_service_without_such_a_policy_holds_nobody_back() {
    let changes = [service_change(&service("ns/a", &[("", 80)]))];
    let snapshot = build(&mut SnapshotBuilder::new(), changes);
    let cluster = snapshot.cluster(&key("ns/a", 80)).unwrap();
    assert_eq!(cluster.admissions(at(0)), None);
    assert_eq!(cluster.admit_by_success(false, at(0), &mut SeededRng::new(1), &mut NoReasons), Ok(()));
}

#[test]
fn when_the_policy_has_gone_nothing_is_held_back_and_nothing_told() {
    let mut builder = SnapshotBuilder::new();
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        slice("ns/1", "ns/a", ("", 8080), vec![wire_endpoint("10.0.0.1")]),
        policy_change(v1::TrafficPolicy { admission_control: Some(said()), ..Default::default() }),
    ];
    let before = Arc::clone(build(&mut builder, changes).cluster(&key("ns/a", 80)).unwrap());
    let endpoint = Arc::clone(&before.endpoints().all()[0]);
    drop(before.record(&endpoint, &Answer::new(AttemptOutcome::Failure, Duration::ZERO), at(0)));
    assert!(before.holds_back());
    let changes = [policy_change(v1::TrafficPolicy::default())];
    let after = Arc::clone(build(&mut builder, changes).cluster(&key("ns/a", 80)).unwrap());
    assert!(!after.holds_back(), "second attempts may be made");
    assert_eq!(after.admission_changes().count(), 0);
    assert_eq!(before.admission_changes().count(), 1, "it was there to be told");
}

/// So many calls end at that moment; what that changes.
fn end(world: &World, outcome: AttemptOutcome, calls: u32, now: Tick) -> Vec<AdmissionChange> {
    (0..calls).for_each(|_| world.admissions.ended(&world.policy, outcome, now));
    world.admissions.changes().into_iter().flatten().collect()
}

#[test]
fn that_calls_are_held_back_is_told_once_and_that_it_is_over_when_none_was_for_a_while() {
    use AttemptOutcome::{Failure, Success};
    let mut world = World::new(policy(), 1);
    assert_eq!(end(&world, Success, 20, at(0)), []);
    assert_eq!(end(&world, Failure, 1, at(0)), [], "enough succeed");
    let [begins]: [AdmissionChange; 1] =
        end(&world, Failure, 1, at(1)).try_into().expect("two of 22 are too many");
    let view = begins.view;
    assert_eq!((begins.state, begins.cause), (AdmissionState::HoldingBack, AdmissionCause::SuccessRate));
    assert_eq!((view.calls, view.failed, view.threshold, begins.held_back), (22, 2, 95, None));
    assert_eq!((view.state, view.cause), (begins.state, Some(begins.cause)));
    // It goes and comes at the border.
    assert_eq!(end(&world, Failure, 20, at(1_000)), []);
    let mut passes = |now| world.admissions.lets_through(&world.policy, now, &mut world.rng);
    let refused = (0..100).filter(|_| !passes(at(1_000))).count() as u64;
    assert!(refused > 0);
    assert_eq!(end(&world, Success, 1_000, at(2_000)), []);
    assert!(!world.admissions.holds_back.load(Ordering::Relaxed), "nobody is held back at this moment");
    assert_eq!(end(&world, Failure, 100, at(3_000)), []);
    let state = |now| world.admissions.view(&world.policy, now).state;
    assert_eq!(state(at(12_999)), AdmissionState::HoldingBack);
    assert_eq!(state(at(13_000)), AdmissionState::Admitting, "also while nobody calls");
    let [over]: [AdmissionChange; 1] =
        end(&world, Success, 5, at(40_000)).try_into().expect("it is told with the next call");
    assert_eq!((over.state, over.cause), (AdmissionState::Admitting, AdmissionCause::SuccessRateReached));
    assert_eq!(over.held_back, Some((Duration::from_millis(2_999), refused)));
    assert_eq!(end(&world, Failure, 1, at(40_001)).len(), 1, "and then it begins anew");
    let mut passes = |now| world.admissions.lets_through(&world.policy, now, &mut world.rng);
    let again = (0..100).filter(|_| !passes(at(40_001))).count() as u64;
    let [over]: [AdmissionChange; 1] = end(&world, Success, 1, at(60_000)).try_into().expect("it is over");
    assert!(again > 0 && over.held_back == Some((Duration::ZERO, again)), "{over:?} of {again}");
}

#[test]
fn calls_are_held_back_as_long_as_they_are_refused_though_none_is_sent() {
    let thirty = Duration::from_secs(30);
    let all = AdmissionControl { max_rejection_probability: 100, sampling_window: thirty, ..policy() };
    let mut world = World::new(all, 1);
    assert_eq!(end(&world, AttemptOutcome::Failure, 1_000, at(0)).len(), 1, "it begins");
    for second in 1..=25 {
        let passes = world.admissions.lets_through(&world.policy, at(second * 1_000), &mut world.rng);
        assert!(!passes, "one in a thousand would");
        let view = world.admissions.view(&world.policy, at(second * 1_000));
        assert_eq!((view.state, view.rejection_percent), (AdmissionState::HoldingBack, 100), "{second} s");
    }
    assert_eq!(
        end(&world, AttemptOutcome::Failure, 1, at(26_000)),
        [],
        "it was not over, and does not begin anew"
    );
    let [over]: [AdmissionChange; 1] =
        end(&world, AttemptOutcome::Success, 1, at(70_000)).try_into().expect("now it is over");
    assert_eq!(over.held_back, Some((Duration::from_secs(26), 25)));
}

#[test]
fn that_calls_are_held_back_again_is_told_by_the_first_that_is_refused() {
    let thirty = Duration::from_secs(30);
    let all = AdmissionControl { max_rejection_probability: 100, sampling_window: thirty, ..policy() };
    let mut world = World::new(all, 1);
    assert_eq!(end(&world, AttemptOutcome::Failure, 1_000, at(0)).len(), 1, "it begins");
    // Nobody calls for longer than that lasts.
    assert!(!world.admissions.lets_through(&world.policy, at(15_000), &mut world.rng));
    let told: Vec<_> = world.admissions.changes().into_iter().flatten().collect();
    let states: Vec<_> = told.iter().map(|change| (change.state, change.held_back.map(|of| of.1))).collect();
    let again = [(AdmissionState::Admitting, Some(0)), (AdmissionState::HoldingBack, None)];
    assert_eq!(states, again, "the end of before, and a beginning that is of this one");
    assert_eq!(told[1].view.refused, 1, "how it stands with this one");
    let [over]: [AdmissionChange; 1] =
        end(&world, AttemptOutcome::Success, 1, at(70_000)).try_into().expect("it is over");
    assert_eq!(over.held_back, Some((Duration::ZERO, 1)), "the one that began it counts");
}

#[test]
fn why_calls_are_held_back_no_longer_is_told() {
    use AttemptOutcome::Failure;
    let over = |then: AdmissionControl| {
        let mut world = World::new(AdmissionControl { rps_threshold: 10, ..policy() }, 1);
        assert_eq!(end(&world, Failure, 99, at(0)), [], "fewer calls than it decides by");
        assert_eq!(end(&world, Failure, 10, at(0)).len(), 1);
        world.policy = then;
        end(&world, Failure, 1, at(30_000))
            .iter()
            .map(|change| (change.state, change.cause))
            .collect::<Vec<_>>()
    };
    let few = AdmissionControl { rps_threshold: 10, ..policy() };
    assert_eq!(over(few), [(AdmissionState::Admitting, AdmissionCause::FewCalls)]);
    let harmless = AdmissionControl { max_rejection_probability: 0, ..policy() };
    assert_eq!(over(harmless), [(AdmissionState::Admitting, AdmissionCause::Policy)]);
    let other = AdmissionControl { sampling_window: Duration::from_secs(5), ..policy() };
    let again = [
        (AdmissionState::Admitting, AdmissionCause::FewCalls),
        (AdmissionState::HoldingBack, AdmissionCause::SuccessRate),
    ];
    assert_eq!(over(other), again, "what was told outlives another window");
}

#[test]
fn in_a_short_window_too_it_is_over_after_a_second_and_not_before() {
    use AttemptOutcome::Failure;
    let world = World::new(AdmissionControl { sampling_window: Duration::from_millis(100), ..policy() }, 1);
    assert_eq!(end(&world, Failure, 10, at(0)).len(), 1);
    let view = |millis| world.admissions.view(&world.policy, at(millis));
    assert_eq!((view(999).state, view(999).holds_back), (AdmissionState::HoldingBack, false));
    assert_eq!(view(1_000).state, AdmissionState::Admitting);
    assert_eq!(view(1_000).cause, Some(AdmissionCause::SuccessRate), "the last that was told");
}

#[test]
fn headroom_is_told_where_anybody_could_be_held_back_and_by_as_many_calls_as_decide() {
    let headroom = |policy: AdmissionControl, calls, failed| policy.headroom(sent(calls, failed), 0);
    assert_eq!(headroom(policy(), 0, 0), Some(5));
    assert_eq!(headroom(policy(), 100, 3), Some(2));
    assert_eq!(headroom(policy(), 1_000, 1), Some(5), "it is rounded up");
    assert_eq!(headroom(policy(), 100, 50), Some(0));
    let busy = || AdmissionControl { rps_threshold: 10, ..policy() };
    assert_eq!(headroom(busy(), 99, 99), Some(5), "so few decide nothing");
    assert_eq!(headroom(busy(), 100, 99), Some(0));
    assert_eq!(busy().headroom(sent(60, 60), 40), Some(0), "those that were held back are wanted ones");
    let harmless = AdmissionControl { max_rejection_probability: 0, ..policy() };
    assert_eq!(headroom(harmless, 100, 50), None, "it holds nobody back");
}

proptest! {
    /// Whatever was sent: a probability within its bound, none where the rate is reached, and more failures never lower it.
    #[test]
    fn keeps_its_promises(
        calls in 0u32..10_000,
        failed in 0u32..10_000,
        refused in 0u32..10_000,
        threshold in 1u32..=100,
        aggression in 1_000u32..1_000_000,
        most in 0u32..=100,
        rps in 0u32..100,
    ) {
        let policy = AdmissionControl {
            success_rate_threshold: threshold,
            aggression,
            max_rejection_probability: most,
            rps_threshold: rps,
            ..policy()
        };
        let failed = failed.min(calls);
        let probability = policy.probability(sent(calls, failed), refused);
        prop_assert_eq!(invariants::rejection(&policy, sent(calls, failed), probability), Ok(()));
        let headroom = policy.headroom(sent(calls, failed), refused);
        prop_assert_eq!(
            invariants::admission_headroom(&policy, sent(calls, failed), refused, headroom),
            Ok(())
        );
        if failed < calls {
            let worse = policy.probability(sent(calls, failed + 1), refused);
            prop_assert!(worse >= probability, "{worse} after {probability}");
        }
        if probability > 0.0 {
            prop_assert!(calls + refused >= rps * 10);
        }
    }
}
