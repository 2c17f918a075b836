use meshwork_base::SeededRng;
use proptest::prelude::*;

use super::*;
use crate::breaker::{BreakerCause, BreakerChange, BreakerMode, CircuitBreaker, ForcedState, WindowSize};
use crate::limits::Limits;
use crate::load::Answer;
use crate::outlier::AttemptOutcome;
use crate::retry::Retry;
use crate::tests::{build, key, service, service_change, slice, wire_endpoint};

const FIXED: HedgePolicy =
    HedgePolicy { delay: HedgeDelay::Fixed(Duration::from_millis(50)), budget_percent: 10 };
const BY_RANK: HedgePolicy = HedgePolicy {
    delay: HedgeDelay::Percentile { percent: 95, least: Duration::from_millis(5) },
    budget_percent: 10,
};
const GET: HedgeFacts =
    HedgeFacts { idempotent: true, nested: false, in_session: false, whole: true, deadline: None };

fn at(millis: u64) -> Tick {
    Tick::ZERO.after(Duration::from_millis(1_000 + millis))
}

/// A service with so many endpoints, and a hundred requests of late.
fn cluster(endpoints: usize) -> Arc<Cluster> {
    let addresses: Vec<String> = (1..=endpoints).map(|n| format!("10.0.0.{n}")).collect();
    let all = addresses.iter().map(|address| wire_endpoint(address)).collect();
    let changes = [service_change(&service("ns/a", &[("", 80)])), slice("ns/a-1", "ns/a", ("", 8080), all)];
    let snapshot = build(&mut crate::SnapshotBuilder::new(), changes);
    let made = Arc::clone(snapshot.cluster(&key("ns/a", 80)).unwrap());
    (0..100).for_each(|_| made.count_request(at(0)));
    made
}

fn with(cluster: Arc<Cluster>, change: impl FnOnce(&mut Cluster)) -> Arc<Cluster> {
    let mut cluster = Arc::try_unwrap(cluster).unwrap_or_else(|_| panic!("nobody else holds it"));
    change(&mut cluster);
    Arc::new(cluster)
}

fn begin(policy: &HedgePolicy, cluster: &Arc<Cluster>, facts: &HedgeFacts) -> Result<Hedge, NoHedge> {
    Hedge::begin(policy, (cluster, None), facts, at(0), &mut NoReasons)
}

fn first(cluster: &Cluster) -> u64 {
    cluster.endpoints().all()[0].id
}

fn admit(hedge: &Hedge, facts: &HedgeFacts) -> Result<Hedged, NoHedge> {
    let (one, retries) = (first(&hedge.cluster), RetryBudget { percent: 20, min_per_second: 0 });
    hedge.admit(Some(one), facts, retries, at(0), &mut SeededRng::new(1), &mut NoReasons)
}

fn admitted(cluster: &Arc<Cluster>, facts: &HedgeFacts) -> Result<(), NoHedge> {
    admit(&begin(&FIXED, cluster, &GET).unwrap(), facts).map(|_| ())
}

#[test]
fn only_what_may_be_repeated_is_hedged() {
    let cluster = cluster(2);
    let no = |facts: HedgeFacts| begin(&FIXED, &cluster, &facts).err();
    assert_eq!(no(HedgeFacts { idempotent: false, ..GET }), Some(NoHedge::NotRepeatable));
    assert_eq!(no(HedgeFacts { nested: true, ..GET }), Some(NoHedge::Nested));
    assert_eq!(no(HedgeFacts { in_session: true, ..GET }), Some(NoHedge::Session));
    assert_eq!(begin(&FIXED, &cluster, &GET).unwrap().delay(), Some(Duration::from_millis(50)));
    assert_eq!(admitted(&cluster, &HedgeFacts { whole: false, ..GET }), Err(NoHedge::NotWhole));
    assert_eq!(admitted(&cluster, &HedgeFacts { deadline: Some(at(0)), ..GET }), Err(NoHedge::Deadline));
    assert_eq!(admitted(&cluster, &HedgeFacts { deadline: Some(at(1)), ..GET }), Ok(()));
}

#[test]
fn what_could_not_be_answered_in_time_is_not_asked() {
    let cluster = cluster(2);
    let endpoint = Arc::clone(&cluster.endpoints().all()[1]);
    let answer = Answer { status: 200, ..Answer::new(AttemptOutcome::Success, Duration::from_millis(30)) };
    (0..20).for_each(|_| drop(cluster.record(&endpoint, &answer, at(0))));
    assert_eq!(admitted(&cluster, &HedgeFacts { deadline: Some(at(30)), ..GET }), Err(NoHedge::Deadline));
    assert_eq!(admitted(&cluster, &HedgeFacts { deadline: Some(at(31)), ..GET }), Ok(()));
}

#[test]
fn the_time_is_that_of_nearly_all_first_attempts_and_not_below_the_least() {
    let cluster = cluster(2);
    let at_once = begin(&BY_RANK, &cluster, &GET).unwrap();
    assert_eq!(at_once.delay(), None, "nothing is known");
    let took =
        |count, ms, now| (0..count).for_each(|_| at_once.first_took(Duration::from_millis(ms), at(now)));
    let later =
        |ms| Hedge::begin(&BY_RANK, (&cluster, None), &GET, at(ms), &mut NoReasons).unwrap().delay().unwrap();
    took(94, 1, 0);
    took(6, 100, 0);
    assert!((100..=113).contains(&later(100).as_millis()), "{:?}", later(100));
    took(100, 1, 200);
    assert_eq!(later(300), Duration::from_millis(5), "the least");
    let fixed = begin(&FIXED, &cluster, &GET).unwrap();
    (0..100).for_each(|_| fixed.first_took(Duration::from_secs(9), at(300)));
    assert_eq!(later(350), Duration::from_millis(5), "a fixed time learns nothing");
    took(100, 1_000, 400);
    assert!(later(500) >= Duration::from_secs(1), "also those that were given up count");
}

#[test]
fn second_attempts_that_say_nothing_are_no_row_of_them() {
    let cluster = cluster(2);
    let hedge = begin(&FIXED, &cluster, &GET).unwrap();
    for number in 1..=9 {
        let hedged = admit(&hedge, &GET);
        hedge.second_ended_silently(&hedged.unwrap_or_else(|no| panic!("the {number}th: {no:?}")));
    }
    assert_eq!(cluster.shared.budget.sums(at(0)), (100, 9), "each was made");
}

#[test]
fn one_that_is_not_made_after_all_has_cost_nothing() {
    let cluster = cluster(2);
    let hedge = begin(&FIXED, &cluster, &GET).unwrap();
    for number in 1..=50 {
        let hedged = admit(&hedge, &GET);
        hedge.not_made(&hedged.unwrap_or_else(|no| panic!("the {number}th: {no:?}")));
    }
    assert_eq!(cluster.shared.budget.sums(at(0)), (100, 0));
    assert_eq!(cluster.shared.hedges().begun.sums(at(0)), (0, 0), "nor of the hedges' own budget");
}

#[test]
fn it_goes_to_another_endpoint_that_is_well_or_to_none() {
    assert_eq!(admitted(&cluster(1), &GET), Err(NoHedge::NoOther));
    let two = cluster(2);
    let hedged = admit(&begin(&FIXED, &two, &GET).unwrap(), &GET).unwrap();
    assert_ne!(hedged.endpoint.id, first(&two));
    let failed = Answer { status: 503, ..Answer::new(AttemptOutcome::Failure, Duration::from_millis(1)) };
    drop(two.record(&hedged.endpoint, &failed, at(0)));
    assert_eq!(admitted(&two, &GET), Err(NoHedge::NoOther), "it rests");
}

#[test]
fn it_does_not_go_to_one_that_is_ejected_also_in_panic() {
    let three = cluster(3);
    let set = three.endpoints();
    set.all()[1..].iter().for_each(|endpoint| endpoint.stats.standing.eject_until(u64::MAX));
    assert!(three.panics(at(0)), "others go there");
    assert_eq!(admitted(&three, &GET), Err(NoHedge::NoOther));
}

/// The first failed call opens it, and one second later it is tried.
const BRITTLE: CircuitBreaker = CircuitBreaker {
    mode: BreakerMode::Enforce,
    window: WindowSize::Calls(2),
    minimum_calls: 1,
    failure_percent: Some(1),
    slow_calls: None,
    open_time: Duration::from_secs(1),
    max_open_time: Duration::from_secs(1),
    trials: 1,
};

const HALF_OPEN: Option<BreakerChange> =
    Some(BreakerChange { state: BreakerState::HalfOpen, cause: BreakerCause::OpenTimeOver });

fn fails(ticket: Option<Ticket>) {
    let call = crate::breaker::Call { failed: true, took: Duration::ZERO };
    ticket.expect("a policy asks for it").ended(call, at(0), &mut SeededRng::new(1)).expect("it opens");
}

/// A second after [`admit`].
fn admitted_later(cluster: &Arc<Cluster>) -> Result<Hedged, NoHedge> {
    let retries = RetryBudget { percent: 20, min_per_second: 0 };
    let hedge = begin(&FIXED, cluster, &GET).unwrap();
    hedge.admit(Some(first(cluster)), &GET, retries, at(1_100), &mut SeededRng::new(1), &mut NoReasons)
}

#[test]
fn it_is_no_trial_of_a_breaker() {
    let of_service = with(cluster(2), |cluster| cluster.circuit_breaker = Some(BRITTLE));
    let hedged = admit(&begin(&FIXED, &of_service, &GET).unwrap(), &GET).unwrap();
    assert!(hedged.ticket.is_some(), "the breaker hears how it ends");
    drop(hedged);
    fails(of_service.try_call(at(0), &mut NoReasons).unwrap());
    assert_eq!(admitted_later(&of_service).err(), Some(NoHedge::Breaker), "it is to be tried");
    let ticket = of_service.try_call(at(1_100), &mut NoReasons).unwrap();
    assert!(ticket.is_some_and(|ticket| ticket.is_trial()), "by a request of its own");

    let of_endpoint = with(cluster(2), |cluster| cluster.endpoint_breaker = Some(BRITTLE));
    let one = [first(&of_endpoint)];
    let wanted = Wanted { tried: &one, ..Wanted::default() };
    let call = |now| of_endpoint.call(now, &mut SeededRng::new(1), &wanted, &mut NoReasons).unwrap().1;
    fails(call(at(0)));
    assert_eq!(admitted_later(&of_endpoint).err(), Some(NoHedge::NoOther), "the endpoint's is to be tried");
    let ticket = call(at(1_100)).filter(Ticket::is_trial).expect("by a request of its own");
    assert_eq!(ticket.change(), HALF_OPEN, "which is told of the change");
}

#[test]
fn the_breaker_of_its_endpoint_hears_how_a_hedge_ends() {
    let cluster = with(cluster(2), |cluster| cluster.endpoint_breaker = Some(BRITTLE));
    let hedged = admit(&begin(&FIXED, &cluster, &GET).unwrap(), &GET).unwrap();
    fails(hedged.ticket);
    assert_eq!(admitted(&cluster, &GET), Err(NoHedge::NoOther), "it is open");
}

#[test]
fn what_is_refused_has_changed_no_breaker() {
    let observes = CircuitBreaker { mode: BreakerMode::Observe, ..BRITTLE };
    let cluster = with(cluster(2), |cluster| cluster.circuit_breaker = Some(observes));
    fails(cluster.try_call(at(0), &mut NoReasons).unwrap());
    let hedge = begin(&FIXED, &cluster, &GET).unwrap();
    let none = RetryBudget { percent: 0, min_per_second: 0 };
    let admit = |retries| {
        hedge.admit(Some(first(&cluster)), &GET, retries, at(1_100), &mut SeededRng::new(1), &mut NoReasons)
    };
    assert_eq!(admit(none).err(), Some(NoHedge::Budget));
    let hedged = admit(RetryBudget { percent: 20, min_per_second: 0 }).expect("it only observes");
    assert_eq!(hedged.ticket.expect("it is told").change(), HALF_OPEN);
}

#[test]
fn no_hedge_while_there_is_too_much_already() {
    let limits = |limits: Limits| with(cluster(2), |cluster| cluster.limits = limits);
    let none = limits(Limits { max_retries: Some(0), ..Limits::default() });
    assert_eq!(admitted(&none, &GET), Err(NoHedge::Limit));
    let one = limits(Limits { max_requests: Some(1), ..Limits::default() });
    let _under_way = one.admit(Limited::Request).unwrap();
    assert_eq!(admitted(&one, &GET), Err(NoHedge::Limit), "a hedge is one more");
    assert_eq!(admitted(&limits(Limits { max_requests: Some(1), ..Limits::default() }), &GET), Ok(()));
    assert_eq!(one.in_use(Limited::Retry), 0, "what is refused holds nothing");
    let full = limits(Limits { max_requests_per_endpoint: Some(1), ..Limits::default() });
    let _both: Vec<_> = full.endpoints().all().iter().map(|endpoint| endpoint.begin()).collect();
    assert_eq!(admitted(&full, &GET), Err(NoHedge::NoOther));
    let refused = |of: &Cluster| [Limited::Retry, Limited::Request].map(|what| of.refused(what));
    assert_eq!([&none, &one, &full].map(|of| refused(of)), [[0; 2]; 3], "nobody had asked for it");

    let open = cluster(2);
    open.force_breaker(Some((ForcedState::Open, at(10_000))));
    assert_eq!(admitted(&open, &GET), Err(NoHedge::Breaker));
    let tripped = with(cluster(2), |cluster| cluster.circuit_breaker = Some(BRITTLE));
    fails(tripped.try_call(at(0), &mut NoReasons).unwrap());
    assert_eq!(admitted(&tripped, &GET), Err(NoHedge::Breaker));
}

#[test]
fn a_hedge_asks_the_breaker_of_its_route_too() {
    let route = crate::breaker::RouteBreaker::of_test(CircuitBreaker {
        mode: BreakerMode::Enforce,
        window: WindowSize::Calls(2),
        minimum_calls: 1,
        failure_percent: Some(1),
        slow_calls: None,
        open_time: Duration::from_secs(60),
        max_open_time: Duration::from_secs(60),
        trials: 1,
    });
    let cluster = cluster(2);
    let hedge = Hedge::begin(&FIXED, (&cluster, Some(&route)), &GET, at(0), &mut NoReasons).unwrap();
    let hedged = admit(&hedge, &GET).unwrap();
    let failed = crate::breaker::Call { failed: true, took: Duration::ZERO };
    let ticket = hedged.by_route.expect("it counts there");
    ticket.ended(failed, at(0), &mut SeededRng::new(1)).expect("it opens");
    assert_eq!(admit(&hedge, &GET).err(), Some(NoHedge::Breaker));
    let later = at(60_000);
    let (rng, reasons) = (&mut SeededRng::new(1), &mut NoReasons);
    let tried = hedge.admit(Some(first(&cluster)), &GET, RetryBudget::DEFAULT, later, rng, reasons);
    assert_eq!(tried.err(), Some(NoHedge::Breaker), "a hedge is nobody's trial");
    assert!(route.try_call(later, &mut NoReasons).is_ok(), "a trial is due");
}

#[test]
fn no_hedge_while_calls_are_held_back() {
    let policy = crate::AdmissionControl {
        sampling_window: Duration::from_secs(10),
        success_rate_threshold: 95,
        aggression: 1_000,
        rps_threshold: 0,
        max_rejection_probability: 80,
        priorities: Box::default(),
    };
    let held = with(cluster(2), |cluster| cluster.admission = Some(Arc::new(policy)));
    assert_eq!(admitted(&held, &GET), Ok(()));
    let failed = Answer::new(AttemptOutcome::Failure, Duration::from_millis(1));
    let first = Arc::clone(&held.endpoints().all()[0]);
    drop(held.record(&first, &failed, at(0)));
    assert_eq!(admitted(&held, &GET), Err(NoHedge::HeldBack));
}

#[test]
fn a_permit_ends_with_its_hedge() {
    let cluster = with(cluster(2), |cluster| cluster.limits.max_retries = Some(1));
    let hedge = begin(&FIXED, &cluster, &GET).unwrap();
    let hedged = admit(&hedge, &GET).unwrap();
    assert_eq!(admit(&hedge, &GET).err(), Some(NoHedge::Limit));
    drop(hedged);
    let without_limit = admit(&hedge, &GET).unwrap().permits.1;
    assert!(without_limit.is_none(), "it is no request of its own where nobody limits those");
}

#[test]
fn a_hedge_counts_as_a_retry_where_it_goes() {
    let of_each = with(cluster(2), |cluster| cluster.limits.max_retries_per_endpoint = Some(1));
    let hedge = begin(&FIXED, &of_each, &GET).unwrap();
    let hedged = admit(&hedge, &GET).unwrap();
    assert_eq!(hedged.endpoint.stats.retries(), 1, "it counts as a retry where it goes");
    assert_eq!(admit(&hedge, &GET).err(), Some(NoHedge::NoOther));
    drop(hedged);
    assert!(admit(&hedge, &GET).is_ok());
}

#[test]
fn hedges_have_a_budget_and_share_that_of_retries() {
    let [alone, beside] = [cluster(2), cluster(2)];
    [&alone, &beside].into_iter().for_each(|cluster| cluster.shared.budget.succeeded());
    let count = |cluster: &Arc<Cluster>| (0..100).filter(|_| admitted(cluster, &GET).is_ok()).count();
    assert_eq!(count(&alone), 10, "ten of a hundred requests");
    let (_, repeated) = alone.shared.budget.sums(at(0));
    assert_eq!(repeated, 10, "and retries have so many less");

    let retries = RetryBudget { percent: 20, min_per_second: 0 };
    assert_eq!((0..100).filter(|_| beside.shared.budget.retry(retries, at(0)).is_ok()).count(), 20);
    assert_eq!(admitted(&beside, &GET), Err(NoHedge::Budget), "what retries have spent is spent");
}

#[test]
fn where_second_attempts_do_not_help_there_are_few_and_none_of_retries_either() {
    let cluster = cluster(2);
    let hedge = begin(&FIXED, &cluster, &GET).unwrap();
    for _ in 0..5 {
        drop(admit(&hedge, &GET).unwrap());
        hedge.second_ended(false);
    }
    assert_eq!(admit(&hedge, &GET).err(), Some(NoHedge::InVain));
    let retries = RetryBudget { percent: 20, min_per_second: 0 };
    assert_eq!(cluster.shared.budget.retry(retries, at(0)), Err(Refused::InVain));
    hedge.second_ended(true);
    assert!(admit(&hedge, &GET).is_ok(), "one that wins brings them back");
    assert!(cluster.shared.budget.retry(retries, at(0)).is_ok());
}

/// The first attempt has failed, and what follows the hedge is a retry like any other.
#[test]
fn a_hedge_that_goes_on_alone_is_told_of_as_a_repetition() {
    let cluster = cluster(2);
    cluster.shared.budget.succeeded();
    let hedge = begin(&FIXED, &cluster, &GET).unwrap();
    let goes_on = |well| {
        let hedged = admit(&hedge, &GET)?;
        let mut retry = Retry::of_counted(None, &cluster);
        retry.goes_on_as(&hedged);
        retry.ended(well);
        Ok(())
    };
    assert_eq!([(); 5].map(|()| goes_on(false)), [Ok(()); 5]);
    assert_eq!(goes_on(false), Err(NoHedge::InVain));
}

#[test]
fn the_first_good_answer_counts() {
    use Leg::{First, Second};
    use Reply::{Bad, Good};
    let race = |begun: bool, ends: &[(Leg, Reply)]| {
        let mut race = Race::default();
        if begun {
            race.begin();
        }
        ends.iter().map(|(leg, reply)| race.ended(*leg, *reply)).collect::<Vec<_>>()
    };
    assert_eq!(race(false, &[(First, Good)]), [Verdict::Wins(First)]);
    assert_eq!(race(false, &[(First, Bad)]), [Verdict::Wins(First)]);
    assert_eq!(race(true, &[(Second, Good)]), [Verdict::Wins(Second)]);
    assert_eq!(race(true, &[(Second, Bad), (First, Good)]), [Verdict::Wait, Verdict::Wins(First)]);
    assert_eq!(race(true, &[(First, Bad), (Second, Good)]), [Verdict::Wait, Verdict::Wins(Second)]);
    assert_eq!(race(true, &[(First, Bad), (Second, Bad)]), [Verdict::Wait, Verdict::Wins(First)]);
    assert_eq!(race(true, &[(Second, Bad), (First, Bad)]), [Verdict::Wait, Verdict::Wins(First)]);
}

#[test]
fn a_request_is_hedged_once_and_while_its_first_attempt_runs() {
    let mut race = Race::default();
    assert!(race.may_begin() && !race.both_run());
    race.begin();
    assert!(!race.may_begin() && race.both_run());
    race.ended(Leg::Second, Reply::Bad);
    assert!(!race.may_begin() && !race.both_run());
    let mut alone = Race::default();
    alone.begin();
    alone.ended(Leg::First, Reply::Bad);
    assert!(!alone.both_run(), "the second one runs alone");
    let mut over = Race::default();
    over.ended(Leg::First, Reply::Bad);
    assert!(!over.may_begin(), "what follows is a retry");
    let mut renounced = Race::default();
    renounced.renounce();
    assert!(!renounced.may_begin());
    assert_eq!(renounced.ended(Leg::First, Reply::Bad), Verdict::Wins(Leg::First));
}

proptest! {
    /// However a race goes: one attempt's outcome becomes the request's, it had ended by then, and a good one goes first.
    #[test]
    fn a_race_has_one_winner(
        begins in any::<bool>(),
        second_first in any::<bool>(),
        first_good in any::<bool>(),
        second_good in any::<bool>(),
        renounces in any::<bool>(),
    ) {
        let mut race = Race::default();
        if begins {
            race.begin();
        }
        if renounces {
            race.renounce();
        }
        prop_assert_eq!((race.may_begin(), race.both_run()), (!begins && !renounces, begins));
        let reply = |good| if good { Reply::Good } else { Reply::Bad };
        let mut ends = vec![(Leg::First, reply(first_good))];
        if begins {
            ends.insert(usize::from(!second_first), (Leg::Second, reply(second_good)));
        }
        let mut winner = None;
        for (leg, reply) in ends.clone() {
            let verdict = race.ended(leg, reply);
            prop_assert_eq!(invariants::race(race, (leg, reply), verdict), Ok(()));
            if let Verdict::Wins(leg) = verdict {
                winner = Some(leg);
                break;
            }
        }
        let winner = winner.expect("somebody wins in the end");
        let good = ends.iter().find(|(_, reply)| *reply == Reply::Good).map(|(leg, _)| *leg);
        prop_assert_eq!(winner, good.unwrap_or(Leg::First), "the first good one, else the first");
    }

    /// Hedges and retries together stay within the budget, and hedges within theirs, whatever comes when.
    #[test]
    fn budgets_hold_whatever_happens(steps in prop::collection::vec((0u8..3, 0u64..800), 0..400)) {
        let cluster = cluster(3);
        let (hedge, retries) = (begin(&FIXED, &cluster, &GET).unwrap(), RetryBudget { percent: 20, min_per_second: 0 });
        let mut now = 0;
        for (what, later) in steps {
            now += later;
            match what {
                0 => cluster.count_request(at(now)),
                1 => drop(cluster.shared.budget.retry(retries, at(now))),
                _ => {
                    let (before, repeated) = cluster.shared.budget.sums(at(now));
                    let (_, begun) = cluster.shared.hedges().begun.sums(at(now));
                    let rng = &mut SeededRng::new(now);
                    if hedge.admit(Some(first(&cluster)), &GET, retries, at(now), rng, &mut NoReasons).is_ok() {
                        prop_assert!(begun < before * 10 / 100 && repeated < retries.allowed(before));
                    }
                }
            }
        }
    }
}
