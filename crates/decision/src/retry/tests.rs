use meshwork_base::SeededRng;
use proptest::prelude::*;

use super::*;
use crate::limits::Limits;
use crate::load::Answer;
use crate::outlier::AttemptOutcome;
use crate::reasons::NoReasons;
use crate::tests::{build, key, service, service_change, slice, wire_endpoint};

fn policy() -> RetryPolicy {
    RetryPolicy {
        attempts: 2,
        status_codes: [503].into(),
        grpc_codes: [14].into(),
        on_reset: true,
        on_connect_failure: true,
        on_refused: true,
        per_try_timeout: None,
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
        // Not what is tested but where it is.
        budget: RetryBudget { percent: 100, min_per_second: 1_000 },
    }
}

fn cluster(max_retries: Option<u32>) -> Arc<Cluster> {
    within(Limits { max_retries, ..Limits::default() }, &["10.0.0.1"])
}

fn within(limits: Limits, addresses: &[&str]) -> Arc<Cluster> {
    let endpoints = addresses.iter().map(|address| wire_endpoint(address)).collect();
    let changes =
        [service_change(&service("ns/a", &[("", 80)])), slice("ns/a-1", "ns/a", ("", 8080), endpoints)];
    let snapshot = build(&mut crate::SnapshotBuilder::new(), changes);
    let made = Arc::clone(snapshot.cluster(&key("ns/a", 80)).unwrap());
    drop(snapshot);
    let mut cluster = Arc::try_unwrap(made).expect("nobody else holds it");
    cluster.limits = limits;
    Arc::new(cluster)
}

const GET: RequestFacts<'_> = RequestFacts {
    idempotent: true,
    sent: true,
    replayable: true,
    nested: false,
    deadline: None,
    push_back: None,
    tried: &[],
};
const POST: RequestFacts<'_> = RequestFacts { idempotent: false, ..GET };

fn after(policy: RetryPolicy, failure: AttemptFailure, facts: &RequestFacts<'_>) -> Result<(), StopReason> {
    let mut retry = Retry::begin(Some(&Arc::new(policy)), &cluster(None), Tick::ZERO);
    match retry.after(failure, Some(1), facts, Tick::ZERO, &mut SeededRng::new(1), &mut NoReasons) {
        Decision::Again { .. } => Ok(()),
        Decision::Stop(reason) => Err(reason),
    }
}

#[test]
fn a_back_off_that_ends_with_the_deadline_is_too_long() {
    let waits = |deadline| {
        let mut retry = Retry::begin(Some(&Arc::new(policy())), &cluster(None), Tick::ZERO);
        let facts = RequestFacts { deadline, ..GET };
        let failure = AttemptFailure::Reset;
        match retry.after(failure, Some(1), &facts, Tick::ZERO, &mut SeededRng::new(1), &mut NoReasons) {
            Decision::Again { after, .. } => Ok(after),
            Decision::Stop(reason) => Err(reason),
        }
    };
    let after = waits(None).unwrap();
    assert!(after > Duration::ZERO);
    let end = Tick::ZERO.after(after);
    assert_eq!(waits(Some(end)), Err(StopReason::Deadline));
    assert_eq!(waits(Some(end.after(Duration::from_nanos(1)))), Ok(after));
}

#[test]
fn repeats_only_what_the_policy_names() {
    use AttemptFailure::{Connect, Grpc, PerTryTimeout, Refused, Reset, Status};
    let nothing = || RetryPolicy {
        status_codes: [].into(),
        grpc_codes: [].into(),
        on_reset: false,
        on_connect_failure: false,
        on_refused: false,
        ..policy()
    };
    // Of what is idempotent a reset is repeated once whatever is named.
    let once = RequestFacts { sent: false, ..POST };
    for failure in [Connect, Refused, Reset, PerTryTimeout, Status(503), Grpc(14)] {
        assert_eq!(after(policy(), failure, &once), Ok(()), "{failure:?}");
        assert_eq!(after(nothing(), failure, &once), Err(StopReason::NotCalledFor), "{failure:?}");
    }
    assert_eq!(after(policy(), Status(500), &GET), Err(StopReason::NotCalledFor));
    assert_eq!(after(RetryPolicy { on_connect_failure: true, ..nothing() }, Connect, &GET), Ok(()));
    assert_eq!(after(RetryPolicy { on_refused: true, ..nothing() }, Refused, &GET), Ok(()));
    assert_eq!(after(RetryPolicy { on_reset: true, ..nothing() }, Reset, &GET), Ok(()));
}

#[test]
fn with_a_policy_that_names_something_else_a_reset_is_repeated_as_often_as_without_any() {
    let silent = |attempts| RetryPolicy { attempts, on_reset: false, ..policy() };
    assert_eq!(after(silent(0), AttemptFailure::Reset, &GET), Err(StopReason::NotCalledFor));
    assert_eq!(after(silent(2), AttemptFailure::Reset, &POST), Err(StopReason::NotRepeatable));
    let mut retry = Retry::begin(Some(&Arc::new(silent(3))), &cluster(None), Tick::ZERO);
    let mut rng = SeededRng::new(1);
    let mut fails = |failure| match retry.after(failure, Some(1), &GET, Tick::ZERO, &mut rng, &mut NoReasons)
    {
        Decision::Again { permit, .. } => Ok(permit.is_some()),
        Decision::Stop(stop) => Err(stop),
    };
    assert_eq!(fails(AttemptFailure::Reset), Ok(true), "as any retry, it counts");
    assert_eq!(fails(AttemptFailure::Status(503)), Ok(true));
    assert_eq!(fails(AttemptFailure::Reset), Err(StopReason::NotCalledFor), "once");
}

#[test]
fn repeats_only_what_may_be_repeated() {
    use AttemptFailure::{Connect, Refused, Reset, Status};
    assert_eq!(after(policy(), Reset, &POST), Err(StopReason::NotRepeatable));
    assert_eq!(after(policy(), Status(503), &POST), Err(StopReason::NotRepeatable));
    assert_eq!(after(policy(), AttemptFailure::StaleConnection, &POST), Err(StopReason::NotRepeatable));
    assert_eq!(after(policy(), Refused, &POST), Ok(()), "the upstream did not process it");
    assert_eq!(after(policy(), AttemptFailure::Grpc(14), &POST), Ok(()), "the policy names it");
    assert_eq!(after(policy(), AttemptFailure::Grpc(13), &POST), Err(StopReason::NotCalledFor));
    let unsent = RequestFacts { sent: false, ..POST };
    assert_eq!(after(policy(), Connect, &unsent), Ok(()));
    assert_eq!(after(policy(), Reset, &unsent), Ok(()));
    let gone = RequestFacts { replayable: false, ..GET };
    assert_eq!(after(policy(), Reset, &gone), Err(StopReason::NotReplayable));
    let gone_call = RequestFacts { replayable: false, ..POST };
    assert_eq!(after(policy(), AttemptFailure::Grpc(14), &gone_call), Err(StopReason::NotReplayable));
    let refused = RequestFacts { sent: false, ..gone };
    assert_eq!(after(policy(), Refused, &refused), Err(StopReason::NotReplayable), "it has read a part");
    assert_eq!(after(policy(), Reset, &RequestFacts { nested: true, ..GET }), Err(StopReason::Nested));
    assert!(
        is_idempotent("PUT") && is_idempotent("GET") && !is_idempotent("POST") && !is_idempotent("PATCH")
    );
}

#[test]
fn nothing_is_used_up_where_nothing_was_to_be_repeated() {
    let none = RetryPolicy { attempts: 0, ..policy() };
    assert_eq!(
        after(none, AttemptFailure::Reset, &GET),
        Err(StopReason::NotCalledFor),
        "the failure's own cause"
    );
}

#[test]
fn its_place_is_at_an_endpoint_that_it_was_not_tried_at() {
    let limits = Limits { max_retries_per_endpoint: Some(1), ..Limits::default() };
    let cluster = within(limits, &["10.0.0.1", "10.0.0.2"]);
    let ids: Vec<_> = cluster.endpoints().all().iter().map(|endpoint| endpoint.id).collect();
    for (failed, other) in [(ids[0], ids[1]), (ids[1], ids[0])] {
        let mut retry = Retry::begin(Some(&Arc::new(policy())), &cluster, Tick::ZERO);
        let facts = RequestFacts { tried: &[failed], ..GET };
        let rng = &mut SeededRng::new(1);
        let failure = AttemptFailure::Status(503);
        match retry.after(failure, Some(failed), &facts, Tick::ZERO, rng, &mut NoReasons) {
            Decision::Again { permit: Some(permit), .. } => assert_eq!(permit.place(), Some(other)),
            decision => panic!("{decision:?}"),
        }
    }
}

#[test]
fn stops_after_its_attempts_and_remembers_endpoints() {
    let mut retry = Retry::begin(Some(&Arc::new(policy())), &cluster(None), Tick::ZERO);
    let mut rng = SeededRng::new(1);
    let mut fail = |retry: &mut Retry, id| {
        retry.after(AttemptFailure::Reset, Some(id), &GET, Tick::ZERO, &mut rng, &mut NoReasons)
    };
    assert!(matches!(fail(&mut retry, 7), Decision::Again { .. }));
    assert!(matches!(fail(&mut retry, 9), Decision::Again { .. }));
    assert!(matches!(fail(&mut retry, 7), Decision::Stop(StopReason::Attempts)));
    assert_eq!((retry.tried(), retry.retries()), (&[7, 9][..], 2));
    assert_eq!(StopReason::Attempts.cause(), Some(Cause::RetriesExhausted));
}

#[test]
fn a_stale_connection_is_repeated_at_once_and_once_also_without_policy() {
    let mut retry = Retry::begin(None, &cluster(None), Tick::ZERO);
    let mut rng = SeededRng::new(1);
    let mut stale = |id| {
        retry.after(AttemptFailure::StaleConnection, Some(id), &GET, Tick::ZERO, &mut rng, &mut NoReasons)
    };
    let Decision::Again { after: Duration::ZERO, permit: None } = stale(1) else { panic!("once") };
    assert!(
        matches!(stale(2), Decision::Stop(StopReason::NotCalledFor)),
        "it breaks them wherever it is sent"
    );
    assert!(retry.was_stale(1) && !retry.was_stale(2), "another endpoint is called as any is");
    let none = Arc::new(RetryPolicy { attempts: 0, ..policy() });
    let mut retry = Retry::begin(Some(&none), &cluster(None), Tick::ZERO);
    let only =
        retry.after(AttemptFailure::StaleConnection, Some(1), &GET, Tick::ZERO, &mut rng, &mut NoReasons);
    assert!(matches!(only, Decision::Stop(_)), "no attempt but the first is wanted");
}

#[test]
fn the_limit_of_retries_is_held_until_the_attempt_ends() {
    let cluster = cluster(Some(1));
    let policy = Arc::new(policy());
    let mut rng = SeededRng::new(1);
    let mut fail = || {
        Retry::begin(Some(&policy), &cluster, Tick::ZERO).after(
            AttemptFailure::Reset,
            Some(1),
            &GET,
            Tick::ZERO,
            &mut rng,
            &mut NoReasons,
        )
    };
    let first = fail();
    assert!(matches!(first, Decision::Again { permit: Some(_), .. }));
    assert!(matches!(fail(), Decision::Stop(StopReason::MaxRetries)));
    drop(first);
    assert!(matches!(fail(), Decision::Again { .. }));
}

#[test]
fn a_deadline_ends_retries() {
    let at = |ms: u64| Tick::ZERO.after(Duration::from_millis(ms));
    let facts = |ms| RequestFacts { deadline: Some(at(ms)), ..GET };
    let no_wait = RetryPolicy { backoff_base: Duration::ZERO, backoff_max: Duration::ZERO, ..policy() };
    assert_eq!(after(no_wait.clone(), AttemptFailure::Reset, &facts(1)), Ok(()));
    assert_eq!(after(no_wait, AttemptFailure::Reset, &facts(0)), Err(StopReason::Deadline));
    let far = RetryPolicy {
        backoff_base: Duration::from_secs(3600),
        backoff_max: Duration::from_secs(3600),
        ..policy()
    };
    assert_eq!(after(far, AttemptFailure::Reset, &facts(1)), Err(StopReason::Deadline));
}

/// Where retries help, they stay within the budget over any ten seconds, and grow with the traffic.
#[test]
fn a_failing_service_sees_no_more_retries_than_the_budget_allows() {
    let budget = RetryBudget { percent: 20, min_per_second: 1 };
    let policy = Arc::new(RetryPolicy { attempts: 5, budget, ..policy() });
    let cluster = cluster(None);
    let mut rng = SeededRng::new(1);
    let mut retries = 0u64;
    let mut budget_stops = 0;
    for n in 0..10_000u64 {
        let now = Tick::from_nanos(n * 10_000_000);
        let mut retry = Retry::begin(Some(&policy), &cluster, now);
        match retry.after(AttemptFailure::Reset, Some(1), &GET, now, &mut rng, &mut NoReasons) {
            Decision::Again { .. } => retries += 1,
            Decision::Stop(reason) => budget_stops += u32::from(reason == StopReason::Budget),
        }
        retry.ended(true);
    }
    assert!(budget_stops > 0);
    // 100 requests a second for 100 s: 20 % of them; one a second is less than that.
    assert!((1_900..=2_100).contains(&retries), "{retries}");
}

/// So many requests of which every attempt fails: how many retries there were, and why there was no other at last.
fn all_fail(cluster: &Arc<Cluster>, policy: &Arc<RetryPolicy>, requests: u32) -> (u32, Option<StopReason>) {
    let mut rng = SeededRng::new(1);
    let mut last = None;
    let retries = (0..requests).map(|_| {
        let mut retry = Retry::begin(Some(policy), cluster, Tick::ZERO);
        loop {
            let failure = AttemptFailure::Status(503);
            match retry.after(failure, Some(1), &GET, Tick::ZERO, &mut rng, &mut NoReasons) {
                Decision::Again { .. } => {}
                Decision::Stop(stop) => {
                    last = Some(stop);
                    return retry.retries();
                }
            }
        }
    });
    (retries.sum(), last)
}

#[test]
fn where_no_retry_helps_there_is_a_row_of_them_and_then_one_for_fifty_requests() {
    let (cluster, policy) = (cluster(None), Arc::new(policy()));
    let (retries, stop) = all_fail(&cluster, &policy, 1_000);
    assert!((5 + 15..=5 + 20).contains(&retries), "{retries} for a thousand requests");
    let stop = stop.unwrap();
    assert_eq!((stop, stop.cause()), (StopReason::InVain, Some(Cause::RetryBudget)));
    assert_ne!(stop.why(), StopReason::Budget.why(), "one is not the other");
    assert!(stop.is_for_good(), "the hop before does not begin anew");
}

#[test]
fn one_address_that_always_fails_takes_no_retries_from_a_crowd_whose_instance_dies() {
    let budget = RetryBudget { percent: 20, min_per_second: 3 };
    let (cluster, policy) = (cluster(None), Arc::new(RetryPolicy { attempts: 2, budget, ..policy() }));
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    all_fail(&cluster, &policy, 10);
    for _ in 0..1_000 {
        cluster.count_request(Tick::ZERO);
        let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
        drop(cluster.record(&endpoint, &well, Tick::ZERO));
    }
    let mut crowd: Vec<_> = (0..80).map(|_| Retry::begin(Some(&policy), &cluster, Tick::ZERO)).collect();
    let mut rng = SeededRng::new(1);
    let repeated = crowd.iter_mut().take(40).filter_map(|retry| {
        let decision =
            retry.after(AttemptFailure::Reset, Some(1), &GET, Tick::ZERO, &mut rng, &mut NoReasons);
        matches!(decision, Decision::Again { .. }).then_some(())
    });
    assert_eq!(repeated.count(), 40, "of a budget of some two hundred");
}

/// Three instances, of which one fails everything, and a page that fails everywhere: as often as the policy allows, one in
/// twenty requests.
#[test]
fn a_page_that_is_repeated_often_and_always_fails_takes_no_retries_from_what_another_instance_answers() {
    let (cluster, policy) = (cluster(None), Arc::new(RetryPolicy { attempts: 5, ..policy() }));
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
    let mut rng = SeededRng::new(1);
    for n in 0..400 {
        if n % 20 == 1 {
            assert_eq!(all_fail(&cluster, &policy, 1), (5, Some(StopReason::Attempts)), "request {n}");
        }
        let mut retry = Retry::begin(Some(&policy), &cluster, Tick::ZERO);
        // After each such page the bad instance gets two requests in a row.
        if [0, 1].contains(&(n % 20)) || n % 3 == 0 {
            let failure = AttemptFailure::Status(503);
            let decision = retry.after(failure, Some(1), &GET, Tick::ZERO, &mut rng, &mut NoReasons);
            assert!(matches!(decision, Decision::Again { .. }), "request {n}: {decision:?}");
            retry.ended(true);
        }
        drop(cluster.record(&endpoint, &well, Tick::ZERO));
    }
}

#[test]
fn when_all_of_a_service_that_was_well_fails_the_retries_of_five_requests_are_made() {
    let (cluster, policy) = (cluster(None), Arc::new(RetryPolicy { attempts: 3, ..policy() }));
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
    (0..100).for_each(|_| drop(cluster.record(&endpoint, &well, Tick::ZERO)));
    let (retries, stop) = all_fail(&cluster, &policy, 1_000);
    assert!((5 * 3 - 2 + 15..=5 * 3 + 20).contains(&retries), "{retries} for a thousand requests");
    assert_eq!(stop, Some(StopReason::InVain));
}

#[test]
fn when_an_outage_ends_the_whole_budget_is_back_after_a_few_answers() {
    let (cluster, policy) = (cluster(None), Arc::new(policy()));
    all_fail(&cluster, &policy, 1_000);
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
    (0..3).for_each(|_| drop(cluster.record(&endpoint, &well, Tick::ZERO)));
    let mut rng = SeededRng::new(1);
    let mut fails = |retry: &mut Retry| {
        let failure = AttemptFailure::Status(503);
        matches!(
            retry.after(failure, Some(1), &GET, Tick::ZERO, &mut rng, &mut NoReasons),
            Decision::Again { .. }
        )
    };
    let begin = || Retry::begin(Some(&policy), &cluster, Tick::ZERO);
    let (mut first, mut beside) = (begin(), begin());
    assert!(fails(&mut first), "three have paid for it");
    assert!(!fails(&mut beside));
    first.ended(true);
    assert!((0..200).all(|_| fails(&mut begin())), "it has helped");
}

#[test]
fn what_has_not_ended_says_nothing_where_something_has_ended_well() {
    let policy = Arc::new(RetryPolicy { budget: RetryBudget::DEFAULT, ..policy() });
    let crowd = |cluster: Arc<Cluster>, otherwise| {
        let mut rng = SeededRng::new(1);
        let mut crowd: Vec<_> = (0..300).map(|_| Retry::begin(Some(&policy), &cluster, Tick::ZERO)).collect();
        let granted = crowd.iter_mut().take(100).filter_map(|retry| {
            match retry.after(AttemptFailure::Reset, Some(1), &GET, Tick::ZERO, &mut rng, &mut NoReasons) {
                Decision::Again { .. } => Some(()),
                Decision::Stop(stop) => {
                    assert_eq!(stop, otherwise);
                    None
                }
            }
        });
        granted.count()
    };
    let answered = cluster(None);
    answered.shared.budget.succeeded();
    let granted = crowd(answered, StopReason::Budget);
    assert_eq!(granted, 60, "a third of a crowd fails: a fifth of it is repeated at once");
    let granted = crowd(cluster(None), StopReason::InVain);
    assert_eq!(granted, 5 + 1, "a row, and one for fifty that were refused");
}

#[test]
fn a_retry_that_is_not_made_has_cost_nothing() {
    let (cluster, policy) =
        (cluster(None), Arc::new(RetryPolicy { budget: RetryBudget::DEFAULT, ..policy() }));
    let mut rng = SeededRng::new(1);
    let mut fails = |retry: &mut Retry, now| {
        let failure = AttemptFailure::Status(503);
        matches!(retry.after(failure, Some(1), &GET, now, &mut rng, &mut NoReasons), Decision::Again { .. })
    };
    let (now, later) = (Tick::ZERO, Tick::ZERO.after(Duration::from_millis(1_500)));
    for _ in 0..100 {
        let mut retry = Retry::begin(Some(&policy), &cluster, now);
        assert!(fails(&mut retry, now));
        retry.not_made();
    }
    assert_eq!(cluster.shared.budget.sums(now), (100, 0));
    // It is given back to the second that it was taken from, once.
    let mut retry = Retry::begin(Some(&policy), &cluster, now);
    let mut other = Retry::begin(Some(&policy), &cluster, later);
    assert!(fails(&mut retry, now) && fails(&mut other, later));
    assert_eq!(cluster.shared.budget.sums(later).1, 2);
    retry.not_made();
    retry.not_made();
    assert_eq!(cluster.shared.budget.sums(later).1, 1);
    other.ended(false);
    other.not_made();
    assert_eq!(cluster.shared.budget.sums(later).1, 1, "it was made");
}

#[test]
fn what_is_given_back_is_what_was_taken_and_once() {
    let at = |seconds| Tick::ZERO.after(Duration::from_secs(seconds));
    let budget = Budget::default();
    (0..3).for_each(|_| budget.request(at(0)));
    let first = budget.retry(RetryBudget::DEFAULT, at(0)).expect("there is one");
    budget.give_back(first);
    budget.give_back(first);
    assert_eq!(budget.sums(at(0)), (3, 0), "no request is taken for a retry");
    let before = budget.retry(RetryBudget::DEFAULT, at(0)).expect("there is one");
    budget.retry(RetryBudget::DEFAULT, at(10)).expect("there is one");
    budget.give_back(before);
    assert_eq!(budget.sums(at(10)), (0, 1), "its second has gone by");
}

#[test]
fn what_was_given_freely_does_not_pay_when_retries_are_in_vain_by_then() {
    let budget = Budget::default();
    budget.succeeded();
    let freely = budget.retry(RetryBudget::DEFAULT, Tick::ZERO).expect("there is one");
    (0..worth::ROW).for_each(|_| budget.ended(End::Badly));
    budget.give_back(freely);
    assert_eq!(budget.retry(RetryBudget::DEFAULT, Tick::ZERO), Err(Refused::InVain));
}

#[test]
fn what_a_caller_has_left_says_nothing_of_what_retries_are_worth() {
    let (cluster, policy) = (cluster(None), Arc::new(policy()));
    for _ in 0..20 {
        let mut retry = Retry::begin(Some(&policy), &cluster, Tick::ZERO);
        let rng = &mut SeededRng::new(1);
        let decision =
            retry.after(AttemptFailure::Status(503), Some(1), &GET, Tick::ZERO, rng, &mut NoReasons);
        assert!(matches!(decision, Decision::Again { .. }), "none of them has ended: {decision:?}");
    }
}

#[test]
fn what_waited_in_vain_for_a_connection_of_ours_is_repeated_and_says_nothing_of_what_that_is_worth() {
    let (cluster, policy) = (cluster(None), Arc::new(RetryPolicy { attempts: 1, ..policy() }));
    let unsent = RequestFacts { sent: false, ..POST };
    let mut rng = SeededRng::new(1);
    for _ in 0..100 {
        let mut retry = Retry::begin(Some(&policy), &cluster, Tick::ZERO);
        let mut waited =
            || retry.after(AttemptFailure::InLine, Some(1), &unsent, Tick::ZERO, &mut rng, &mut NoReasons);
        assert!(matches!(waited(), Decision::Again { .. }));
        assert!(matches!(waited(), Decision::Stop(StopReason::Attempts)));
    }
    let unnamed = RetryPolicy { on_reset: false, ..(*policy).clone() };
    assert_eq!(after(unnamed, AttemptFailure::InLine, &unsent), Err(StopReason::NotCalledFor));
}

#[test]
fn an_attempt_goes_on_over_another_connection_and_only_its_end_counts() {
    let (cluster, policy) = (cluster(None), Arc::new(RetryPolicy { attempts: 1, ..policy() }));
    let mut rng = SeededRng::new(1);
    for _ in 0..100 {
        let mut retry = Retry::begin(Some(&policy), &cluster, Tick::ZERO);
        for failure in [AttemptFailure::Status(503), AttemptFailure::StaleConnection] {
            let decision = retry.after(failure, Some(1), &GET, Tick::ZERO, &mut rng, &mut NoReasons);
            assert!(matches!(decision, Decision::Again { .. }), "{decision:?}");
        }
        retry.ended(true);
        (0..10).for_each(|_| retry.ended(false));
    }
}

#[test]
fn after_a_pause_all_that_ten_seconds_are_allowed_may_come_at_once() {
    let cluster = cluster(None);
    let budget = &cluster.shared.budget;
    budget.succeeded();
    let least = RetryBudget { percent: 20, min_per_second: 5 };
    let granted = |seconds: u64| {
        let retry = || budget.retry(least, Tick::from_nanos(seconds * 1_000_000_000));
        let helped = |_: &_| budget.ended(End::Well);
        std::iter::from_fn(|| retry().ok()).inspect(helped).take(1_000).count()
    };
    assert_eq!((granted(100), granted(101), granted(109), granted(110)), (50, 0, 0, 50));
}

#[test]
fn what_the_budget_refuses_costs_nothing_of_what_was_paid() {
    let cluster = cluster(None);
    let budget = &cluster.shared.budget;
    budget.succeeded();
    (0..5).for_each(|_| budget.ended(End::Badly));
    (0..3).for_each(|_| budget.succeeded());
    let none = RetryBudget { percent: 0, min_per_second: 0 };
    assert_eq!(budget.retry(none, Tick::ZERO), Err(Refused::Spent));
    assert!(budget.retry(RetryBudget::DEFAULT, Tick::ZERO).is_ok());
    assert_eq!(budget.retry(RetryBudget::DEFAULT, Tick::ZERO), Err(Refused::InVain));
}

/// One request that nobody can take, sent elsewhere as often as it may be: attempts after the first, and what ended them.
fn nobody_takes(cluster: &Arc<Cluster>, policy: &Arc<RetryPolicy>) -> (u32, StopReason) {
    let mut retry = Retry::begin(Some(policy), cluster, Tick::ZERO);
    let (mut rng, mut elsewhere) = (SeededRng::new(1), 0);
    loop {
        let failure = AttemptFailure::Connect;
        match retry.after(failure, Some(1), &GET, Tick::ZERO, &mut rng, &mut NoReasons) {
            Decision::Again { .. } => {}
            Decision::Stop(stop) if stop == StopReason::Attempts || elsewhere == 5 => {
                return (retry.retries() + elsewhere, stop);
            }
            Decision::Stop(stop) => {
                retry.goes_elsewhere(stop);
                elsewhere += 1;
            }
        }
    }
}

#[test]
fn what_goes_elsewhere_without_the_budget_counts_among_the_attempts() {
    let made = |attempts, percent| {
        let budget = RetryBudget { percent, min_per_second: 0 };
        nobody_takes(&cluster(None), &Arc::new(RetryPolicy { attempts, budget, ..policy() }))
    };
    assert_eq!(made(1, 0), (1, StopReason::Attempts));
    assert_eq!(made(3, 0), (3, StopReason::Attempts));
    assert_eq!(made(3, 100), (3, StopReason::Attempts), "one from the budget, two without");
    assert_eq!(made(9, 0), (5, StopReason::Budget));
    // What the policy does not name is no retry of its own.
    let mut retry = Retry::begin(Some(&Arc::new(policy())), &cluster(None), Tick::ZERO);
    (0..5).for_each(|_| retry.goes_elsewhere(StopReason::NotCalledFor));
    let (failure, rng) = (AttemptFailure::Status(503), &mut SeededRng::new(1));
    let decision = retry.after(failure, Some(1), &GET, Tick::ZERO, rng, &mut NoReasons);
    assert!(matches!(decision, Decision::Again { .. }), "{decision:?}");
}

#[test]
fn a_request_is_refused_once_however_often_it_goes_elsewhere() {
    let (cluster, policy) = (cluster(None), Arc::new(RetryPolicy { attempts: 9, ..policy() }));
    let in_vain =
        |requests| (0..requests).all(|_| nobody_takes(&cluster, &policy) == (5, StopReason::InVain));
    cluster.shared.budget.succeeded();
    (0..5).for_each(|_| cluster.shared.budget.ended(End::Badly));
    assert!(in_vain(50), "fifty that are refused pay for one");
    assert_eq!(nobody_takes(&cluster, &policy), (6, StopReason::InVain));
    assert!(in_vain(49));
}

#[test]
fn what_an_endpoint_has_seen_asks_the_budget_again() {
    let (cluster, policy) = (cluster(None), Arc::new(policy()));
    let mut retry = Retry::begin(Some(&policy), &cluster, Tick::ZERO);
    retry.goes_elsewhere(StopReason::Budget);
    let mut after = |failure| {
        let rng = &mut SeededRng::new(1);
        retry.after(failure, Some(1), &GET, Tick::ZERO, rng, &mut NoReasons)
    };
    assert!(matches!(after(AttemptFailure::Refused), Decision::Stop(StopReason::Budget)));
    assert!(matches!(after(AttemptFailure::Status(503)), Decision::Again { .. }));
}

#[test]
fn a_push_back_delays_the_retry_and_a_refusal_ends_it() {
    let at = |ms: u64| Tick::ZERO.after(Duration::from_millis(ms));
    let after = |push_back, deadline: Option<u64>| {
        let facts = RequestFacts { push_back, deadline: deadline.map(at), ..GET };
        let mut retry = Retry::begin(Some(&Arc::new(policy())), &cluster(None), Tick::ZERO);
        let rng = &mut SeededRng::new(1);
        match retry.after(AttemptFailure::Status(503), Some(1), &facts, Tick::ZERO, rng, &mut NoReasons) {
            Decision::Again { after, .. } => Ok(after),
            Decision::Stop(reason) => Err(reason),
        }
    };
    let told = |push_back, deadline| after(Some(push_back), deadline);
    let second = PushBack::After(Duration::from_secs(1));
    let back_off = after(None, None).unwrap();
    assert!(back_off > Duration::ZERO);
    assert_eq!(told(second, None), Ok(Duration::from_secs(1) + back_off), "the back-off begins after it");
    let of_itself = PushBack::Spare(Duration::from_secs(1));
    assert_eq!(told(of_itself, None), Ok(back_off), "it is waited for while there is no other");
    assert_eq!(told(of_itself, Some(1000)), Err(StopReason::PushBack));
    assert_eq!(told(of_itself, Some(1001)), Err(StopReason::Deadline), "the back-off is what is too long");
    assert_eq!(told(PushBack::Never, None), Err(StopReason::PushBack));
    assert_eq!(told(second, Some(1000)), Err(StopReason::PushBack), "its answer is better than a time-out");
    assert!(told(second, Some(1026)).is_ok());
    assert!(told(PushBack::After(LONGEST_PUSH_BACK), None).is_ok());
    let long = PushBack::After(LONGEST_PUSH_BACK + Duration::from_millis(1));
    assert_eq!(told(long, None), Err(StopReason::PushBack), "nobody waits for so long");
    assert_eq!(StopReason::PushBack.cause(), Some(Cause::RetriesExhausted), "its answer is the last one");
}

#[test]
fn an_answer_that_the_policy_repeats_pays_for_no_retry() {
    let (cluster, policy) = (cluster(None), Arc::new(policy()));
    all_fail(&cluster, &policy, 10);
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
    let answers = |to_repeat| {
        (0..3).for_each(|_| drop(cluster.record(&endpoint, &Answer { to_repeat, ..well }, Tick::ZERO)));
        let mut retry = Retry::begin(Some(&policy), &cluster, Tick::ZERO);
        let (failure, rng) = (AttemptFailure::Status(503), &mut SeededRng::new(1));
        let decision = retry.after(failure, Some(1), &GET, Tick::ZERO, rng, &mut NoReasons);
        matches!(decision, Decision::Again { .. })
    };
    assert!(!answers(true), "retries would pay for themselves");
    assert!(answers(false), "three have paid for it");
}

#[test]
fn without_a_policy_too_there_is_a_budget() {
    let cluster = cluster(None);
    cluster.shared.budget.succeeded();
    let may = || Retry::of_counted(None, &cluster).may_repeat(Tick::ZERO);
    let granted = (0..100).filter(|_| may()).count();
    assert_eq!(granted, 30, "three a second for ten seconds, with no requests at all");
    (0..1000).for_each(|_| cluster.count_request(Tick::ZERO));
    let granted = (0..1000).filter(|_| may()).count();
    assert_eq!(granted, 170, "a fifth of a thousand in all");
}

#[test]
fn without_a_policy_too_repetitions_in_vain_end() {
    let cluster = cluster(None);
    (0..1000).for_each(|_| cluster.count_request(Tick::ZERO));
    let fail = |_: &u32| {
        let mut retry = Retry::of_counted(None, &cluster);
        let may = retry.may_repeat(Tick::ZERO);
        let rng = &mut SeededRng::new(1);
        let stop = retry.after(AttemptFailure::Reset, Some(1), &GET, Tick::ZERO, rng, &mut NoReasons);
        assert!(matches!(stop, Decision::Stop(StopReason::NotCalledFor)));
        may
    };
    assert_eq!((0..50).filter(fail).count(), 5);
}

proptest! {
    #[test]
    fn backoff_grows_is_capped_and_jittered(seed: u64, base in 0u64..1000, max in 0u64..5000, retry in 1u32..80) {
        let policy = RetryPolicy {
            backoff_base: Duration::from_millis(base),
            backoff_max: Duration::from_millis(max.max(base)),
            ..policy()
        };
        let chosen = policy.backoff(retry, &mut SeededRng::new(seed));
        prop_assert_eq!(invariants::backoff(&policy, retry, chosen), Ok(()));
        prop_assert!(policy.backoff_ceiling(retry) <= policy.backoff_ceiling(retry + 1));
    }

    /// The window counts like a list of moments does.
    #[test]
    fn the_window_counts_the_last_ten_seconds(
        steps in prop::collection::vec((0u64..3_000, any::<bool>()), 0..200),
    ) {
        let window = Budget::default();
        window.succeeded();
        let unlimited = RetryBudget { percent: 100, min_per_second: 1_000 };
        let mut now = Tick::ZERO;
        let mut events: Vec<(u64, bool)> = Vec::new();
        for (ms, is_retry) in steps {
            now = now.after(Duration::from_millis(ms));
            let second = now.as_nanos() / 1_000_000_000;
            if is_retry {
                prop_assert!(window.retry(unlimited, now).is_ok());
            } else {
                window.request(now);
            }
            events.push((second, is_retry));
            let recent = |kind| events.iter().filter(|(s, r)| *r == kind && second - s < 10).count() as u64;
            prop_assert_eq!(window.sums(now), (recent(false), recent(true)));
        }
    }

    /// At the moment of every grant, the budget holds.
    #[test]
    fn every_grant_is_within_the_budget(
        percent in 0u32..100,
        min_per_second in 0u32..3,
        steps in prop::collection::vec((0u64..2_000, any::<bool>()), 0..200),
    ) {
        let window = Budget::default();
        window.succeeded();
        let budget = RetryBudget { percent, min_per_second };
        let mut now = Tick::ZERO;
        for (ms, is_retry) in steps {
            now = now.after(Duration::from_millis(ms));
            if !is_retry {
                window.request(now);
                continue;
            }
            let (requests, before) = window.sums(now);
            let granted = window.retry(budget, now).is_ok();
            prop_assert_eq!(granted, before < budget.allowed(requests));
            if granted {
                let (requests, retries) = window.sums(now);
                prop_assert_eq!(invariants::retry_budget(budget, requests, retries), Ok(()));
            }
        }
    }
}
