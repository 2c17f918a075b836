use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use meshwork_base::{SeededRng, Tick};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::authorization::AuthorizationRule;
use crate::invariants;
use crate::request::OwnedRequest;

mod answers;
mod gates;
mod limit;

const MS: Duration = Duration::from_millis(1);

fn at(millis: u64) -> Tick {
    Tick::ZERO.after(Duration::from_secs(3600)).after(MS * u32::try_from(millis).unwrap())
}

const ADAPTIVE: AdaptiveConcurrency = AdaptiveConcurrency {
    min_concurrency: 3,
    max_concurrency: 1_000,
    update_interval: Duration::from_millis(100),
    buffer: 50,
    min_rtt_interval: Duration::from_secs(15),
    jitter: 0,
};

const QUEUE: Queue = Queue {
    max_requests: 4,
    max_wait: Duration::from_millis(500),
    target: Some(Duration::from_millis(5)),
    interval: Some(Duration::from_millis(100)),
};

fn fixed(limit: u32, queue: Queue) -> Overload {
    let concurrency = AdaptiveConcurrency { min_concurrency: limit, max_concurrency: limit, ..ADAPTIVE };
    Overload { origin: Arc::default(), concurrency, queue, priorities: Box::default() }
}

/// A limiter, who comes named by numbers.
struct Table {
    config: Overload,
    limiter: Limiter<u32>,
    called: Called<u32>,
}

impl Table {
    fn new(config: Overload) -> Self {
        Self { config, limiter: Limiter::default(), called: Called::new() }
    }

    fn enter(&mut self, who: u32, priority: Priority, now: u64) -> Entry {
        self.limiter.enter(&self.config, priority, at(now), || who, &mut self.called)
    }

    /// One of the default priority.
    fn leave(&mut self, ticket: u64, gave_up: bool, now: u64) -> Option<u32> {
        self.limiter.leave(&self.config, (ticket, Priority::Default), gave_up, at(now))
    }

    fn ended(&mut self, now: u64) {
        self.limiter.ended(&self.config, at(now), &mut self.called);
    }

    /// Who was called since this was asked before.
    fn called(&mut self) -> Vec<(u32, Result<(), Shed>)> {
        std::mem::take(&mut self.called).into_vec()
    }
}

#[test]
fn as_many_as_may_go_on_and_the_others_follow_in_the_order_in_which_they_came() {
    let mut table = Table::new(fixed(2, QUEUE));
    assert_eq!(table.enter(1, Priority::Default, 0), Entry::Passed);
    assert_eq!(table.enter(2, Priority::Default, 0), Entry::Passed);
    assert!(matches!(table.enter(3, Priority::Default, 1), Entry::Waits(_)));
    assert!(matches!(table.enter(4, Priority::Default, 2), Entry::Waits(_)));
    table.ended(3);
    assert_eq!(table.called(), [(3, Ok(()))]);
    table.ended(4);
    table.ended(4);
    assert_eq!(table.called(), [(4, Ok(()))]);
    assert_eq!(table.enter(5, Priority::Default, 5), Entry::Passed);
    let view = table.limiter.view(&table.config);
    assert_eq!((view.limit, view.in_flight, view.queued), (2, 2, 0));
}

#[test]
fn the_highest_priority_goes_first_and_a_full_line_makes_room_for_it() {
    let mut table = Table::new(fixed(1, QUEUE));
    table.enter(0, Priority::Low, 0);
    for (who, priority) in
        [(1, Priority::Low), (2, Priority::Default), (3, Priority::Low), (4, Priority::Default)]
    {
        assert!(matches!(table.enter(who, priority, 0), Entry::Waits(_)));
    }
    assert_eq!(table.enter(5, Priority::Low, 0), Entry::Refused(Shed::QueueFull), "nobody below it waits");
    assert!(matches!(table.enter(6, Priority::Critical, 0), Entry::Waits(_)));
    assert_eq!(table.called(), [(3, Err(Shed::Preempted))], "of the lowest the one that came last");
    assert!(matches!(table.enter(7, Priority::High, 0), Entry::Waits(_)));
    assert_eq!(table.called(), [(1, Err(Shed::Preempted))]);
    assert_eq!(table.enter(8, Priority::Default, 0), Entry::Refused(Shed::QueueFull));
    let order: Vec<_> = (1..5)
        .flat_map(|now| {
            table.ended(now);
            table.called()
        })
        .collect();
    assert_eq!(order, [6, 7, 2, 4].map(|who| (who, Ok(()))));
    let tally = table.limiter.view(&table.config).tally;
    assert_eq!(tally.shed[Priority::Low as usize], [0, 1, 0, 2]);
    assert_eq!(tally.shed[Priority::Default as usize], [0, 1, 0, 0]);
}

#[test]
fn where_nobody_may_wait_what_is_too_much_is_sent_away_at_once() {
    let mut table = Table::new(fixed(1, Queue { max_requests: 0, ..QUEUE }));
    table.enter(1, Priority::Default, 0);
    assert_eq!(table.enter(2, Priority::Critical, 0), Entry::Refused(Shed::Concurrency));
    table.ended(1);
    assert_eq!(table.enter(3, Priority::Low, 1), Entry::Passed);
}

/// One place; somebody always waits.
fn standing(queue: Queue) -> Table {
    let mut table = Table::new(fixed(1, queue));
    table.enter(0, Priority::Default, 0);
    table.enter(1, Priority::Default, 0);
    table
}

#[test]
fn a_line_that_stands_has_no_patience_and_takes_the_newest() {
    let mut table = standing(QUEUE);
    table.enter(2, Priority::Default, 50);
    table.enter(3, Priority::Default, 98);
    table.ended(104);
    assert_eq!(
        table.called(),
        [(1, Ok(()))],
        "late for 99 ms: it does not stand yet, and the oldest goes first"
    );
    table.enter(4, Priority::Default, 105);
    assert_eq!(table.called(), [(2, Err(Shed::QueueTime))], "it stands; the last one stays");
    table.enter(5, Priority::Default, 106);
    assert_eq!(table.called(), [(3, Err(Shed::QueueTime))]);
    table.ended(107);
    assert_eq!(table.called(), [(5, Ok(()))], "the newest goes first");
    table.ended(300);
    assert_eq!(table.called(), [(4, Ok(()))], "however long it has waited");
}

#[test]
fn a_line_that_was_empty_is_patient_again() {
    let mut table = standing(QUEUE);
    table.ended(150);
    assert_eq!(table.called(), [(1, Ok(()))]);
    table.enter(2, Priority::Default, 160);
    table.enter(3, Priority::Default, 161);
    table.enter(4, Priority::Default, 250);
    assert_eq!(table.called(), [], "nobody waited at 150");
    table.ended(251);
    assert_eq!(table.called(), [(2, Ok(()))]);
}

#[test]
fn a_line_that_all_have_left_is_patient_again() {
    let mut table = standing(QUEUE);
    let Entry::Waits(second) = table.enter(2, Priority::Default, 50) else { panic!("it waits") };
    let Entry::Waits(third) = table.enter(3, Priority::Default, 106) else { panic!("it waits") };
    assert_eq!(table.called(), [(1, Err(Shed::QueueTime))], "it stands");
    for ticket in [second, third] {
        assert!(table.leave(ticket, false, 107).is_some());
    }
    for who in 4..8 {
        table.enter(who, Priority::Default, 70 + 10 * u64::from(who));
    }
    assert_eq!(table.called(), [], "nobody waited at 106");
    table.ended(151);
    assert_eq!(table.called(), [(4, Ok(()))]);
}

#[test]
fn a_line_that_moves_does_not_stand_though_it_is_never_empty() {
    let mut table = standing(QUEUE);
    table.enter(2, Priority::Default, 8);
    table.ended(10);
    assert_eq!(table.called(), [(1, Ok(()))], "late, for once");
    for who in 3..200 {
        table.enter(who, Priority::Default, u64::from(who) * 2 + 6);
        table.ended(u64::from(who) * 2 + 7);
        assert_eq!(table.called(), [(who - 1, Ok(()))], "nobody waits for longer than 5 ms");
    }
    table.enter(300, Priority::Default, 412);
    table.ended(413);
    assert_eq!(table.called(), [(199, Ok(()))], "late once more, and not since then");
}

#[test]
fn in_a_full_line_that_stands_the_newest_takes_the_place_of_the_oldest() {
    let mut table = standing(QUEUE);
    for who in 2..5 {
        table.enter(who, Priority::Default, 110);
    }
    table.called();
    table.enter(5, Priority::Default, 111);
    assert_eq!(table.called(), [], "one was sent away as it began to stand");
    table.enter(6, Priority::Default, 111);
    assert_eq!(table.called(), [(2, Err(Shed::QueueFull))]);
    assert_eq!(table.enter(7, Priority::Low, 111), Entry::Refused(Shed::QueueFull));
}

#[test]
fn where_nobody_may_wait_the_limit_is_learnt_as_well() {
    let mut table =
        Table::new(Overload { concurrency: ADAPTIVE, ..fixed(1, Queue { max_requests: 0, ..QUEUE }) });
    let mut rng = SeededRng::new(5);
    let mut under_way = 0;
    for turn in 0..1_000 {
        while table.enter(turn, Priority::Default, u64::from(turn) * 10) == Entry::Passed {
            under_way += 1;
        }
        let (began, now) = (at(u64::from(turn) * 10), at(u64::from(turn) * 10 + 10));
        for _ in 0..std::mem::take(&mut under_way) {
            table.limiter.answered(&table.config, began, now, &mut rng, &mut table.called);
        }
    }
    assert_eq!(table.limiter.view(&table.config).min_rtt, Some(MS * 10));
}

#[test]
fn without_a_standing_line_patience_ends_too() {
    let queue = Queue { interval: Some(Duration::from_secs(60)), ..QUEUE };
    let mut table = standing(queue);
    table.enter(2, Priority::Default, 400);
    table.enter(3, Priority::Default, 500);
    assert_eq!(table.called(), [], "just so long is not too long");
    table.enter(4, Priority::Default, 501);
    assert_eq!(table.called(), [(1, Err(Shed::QueueTime))]);
}

#[test]
fn who_was_sent_away_makes_the_line_late_no_longer() {
    let mut table = standing(Queue { interval: Some(MS * 600), ..QUEUE });
    table.enter(2, Priority::Default, 499);
    table.enter(3, Priority::Default, 501);
    assert_eq!(table.called(), [(1, Err(Shed::QueueTime))]);
    table.enter(4, Priority::Default, 610);
    assert_eq!(table.called(), [], "at 501 nobody had waited for too long");
    table.enter(5, Priority::Default, 1_103);
    assert_eq!(table.called(), [(2, Err(Shed::QueueTime)), (3, Err(Shed::QueueTime))]);
}

#[test]
fn who_gave_up_makes_the_line_late_no_longer() {
    let mut table = Table::new(fixed(1, Queue { interval: Some(MS * 600), ..QUEUE }));
    table.enter(0, Priority::Default, 0);
    let Entry::Waits(first) = table.enter(1, Priority::Default, 0) else { panic!("it waits") };
    table.enter(2, Priority::Default, 499);
    assert_eq!(table.leave(first, true, 500), Some(1));
    table.enter(3, Priority::Default, 590);
    table.enter(4, Priority::Default, 610);
    assert_eq!(table.called(), [], "at 500 nobody had waited for too long");
}

#[test]
fn high_ones_are_waited_for_though_low_ones_stand_in_line() {
    let mut table = Table::new(fixed(1, Queue { max_requests: 100, ..QUEUE }));
    table.enter(0, Priority::Low, 0);
    table.enter(1, Priority::Low, 0);
    table.enter(2, Priority::High, 100);
    table.enter(3, Priority::High, 110);
    table.enter(4, Priority::Low, 150);
    assert_eq!(table.called(), [(1, Err(Shed::QueueTime))], "the low ones' line stands, theirs does not");
    table.ended(151);
    table.ended(152);
    assert_eq!(table.called(), [(2, Ok(())), (3, Ok(()))], "and so the oldest goes first");
}

#[test]
fn who_waits_behind_a_line_of_high_ones_that_stands_stands_in_it_too() {
    let mut table = Table::new(fixed(1, QUEUE));
    table.enter(0, Priority::High, 0);
    table.enter(1, Priority::High, 0);
    table.enter(2, Priority::Low, 90);
    table.enter(3, Priority::High, 110);
    assert_eq!(table.called(), [(2, Err(Shed::QueueTime))], "the lowest first");
}

#[test]
fn what_is_said_of_no_time_follows_from_the_application_s() {
    let queue = Queue { target: None, interval: None, ..QUEUE };
    let of = |answer| {
        let patience = queue.before(answer);
        (patience.target, patience.interval)
    };
    assert_eq!(of(None), (MS * 500, Duration::MAX), "nobody can say what is long");
    let said = QUEUE.before(None);
    assert_eq!((said.target, said.interval), (MS * 5, MS * 100), "but who says it");
    assert_eq!(of(Some(MS * 4)), (MS * 5, MS * 100));
    assert_eq!(of(Some(MS * 200)), (MS * 200, MS * 800));
    assert_eq!(of(Some(MS * 4_000)).0, MS * 500, "never longer than anybody waits");
    let said = QUEUE.before(Some(MS * 200));
    assert_eq!((said.target, said.interval), (MS * 5, MS * 100));
}

#[test]
fn who_leaves_is_not_called_and_only_lost_patience_counts() {
    let mut table = standing(QUEUE);
    let Entry::Waits(second) = table.enter(2, Priority::Default, 1) else { panic!("it waits") };
    let Entry::Waits(third) = table.enter(3, Priority::Default, 2) else { panic!("it waits") };
    assert_eq!(table.leave(second, false, 3), Some(2));
    assert_eq!(table.leave(second, false, 3), None, "it is gone");
    assert_eq!(table.leave(third, true, 3), Some(3));
    table.ended(5);
    assert_eq!(table.called(), [(1, Ok(()))]);
    assert_eq!(table.limiter.view(&table.config).tally.shed[1], [0, 0, 1, 0]);
}

#[test]
fn a_policy_that_lets_fewer_wait_takes_effect_at_once() {
    let mut table = standing(QUEUE);
    for who in 2..5 {
        table.enter(who, Priority::Default, 0);
    }
    table.config.queue.max_requests = 2;
    assert_eq!(table.enter(5, Priority::Default, 1), Entry::Refused(Shed::QueueFull));
    assert_eq!(table.called(), [(4, Err(Shed::QueueFull)), (3, Err(Shed::QueueFull))]);
}

#[test]
fn who_comes_back_with_the_rest_of_a_body_is_load_like_any_other() {
    let adaptive = Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) };
    let (mut limiter, mut called, mut rng) = (Limiter::<u32>::default(), Called::new(), SeededRng::new(1));
    for n in 0..40 {
        limiter.enter(&adaptive, Priority::Default, at(n * 20), || 0, &mut called);
        limiter.answered(&adaptive, at(n * 20), at(n * 20 + 10), &mut rng, &mut called);
    }
    let known = limiter.view(&adaptive);
    assert!(known.min_rtt.expect("by then").abs_diff(MS * 10) < MS);
    (0..known.limit).for_each(|_| limiter.comes_back());
    // All of them together, so it says nothing of an application without a queue.
    for _ in 0..known.limit {
        limiter.answered(&adaptive, at(1_000), at(1_100), &mut rng, &mut called);
    }
    let then = limiter.view(&adaptive);
    assert!(then.limit < known.limit, "{then:?}");
    assert_eq!(then.min_rtt, known.min_rtt);
}

/// A gate that knows that answers take 10 ms.
fn learnt(config: &Arc<Overload>, rng: &mut SeededRng) -> Arc<Gate> {
    let gate = Arc::new(Gate::default());
    for answer in 0..200 {
        let mut pass = gate.enter_at_once(config, Priority::Default, at(10 * answer)).expect("there is room");
        pass.begins(Priority::Default, at(10 * answer));
        pass.answered(at(10 * (answer + 1)), rng);
    }
    assert_eq!(gate.view(Tick::ZERO).min_rtt, Some(MS * 10));
    gate
}

#[test]
fn a_slow_caller_s_time_is_not_the_application_s() {
    let config = Arc::new(Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) });
    let rng = &mut SeededRng::new(1);
    let gate = learnt(&config, rng);
    let limit = gate.view(Tick::ZERO).limit;
    for upload in 0..400 {
        let begins = 10_000 + 20 * upload;
        let mut pass = gate.enter_at_once(&config, Priority::Default, at(begins)).expect("there is room");
        pass.owes(at(begins));
        match upload % 4 {
            0 => pass.answered(at(begins + 800), rng),
            1 => pass.lost(at(begins + 800), rng),
            2 => pass.failed(at(begins + 800), rng),
            _ => {
                pass.has_paid(at(begins + 800));
                pass.answered(at(begins + 810), rng);
            }
        }
    }
    let view = gate.view(Tick::ZERO);
    assert_eq!((view.min_rtt, view.limit >= limit), (Some(MS * 10), true), "{view:?}");
}

#[test]
fn what_is_open_for_many_times_an_answer_is_a_stream_and_holds_no_place() {
    let config = Arc::new(Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) });
    let rng = &mut SeededRng::new(1);
    let gate = learnt(&config, rng);
    let limit = gate.view(Tick::ZERO).limit;
    let comes = |now| gate.enter_at_once(&config, Priority::Default, at(now));
    let streams: Vec<_> = (0..limit).map(|_| comes(10_000).expect("there is room")).collect();
    assert_eq!(comes(14_999).err(), Some(Shed::Concurrency));
    let one = comes(15_000).expect("they are none of those who are answered");
    assert_eq!(gate.view(Tick::ZERO).in_flight, 1);
    streams.into_iter().for_each(|stream| stream.answered(at(60_000), rng));
    let view = gate.view(Tick::ZERO);
    assert_eq!((view.min_rtt, view.limit, view.in_flight), (Some(MS * 10), limit, 0), "{view:?}");
    drop(one);
    assert_eq!(gate.view(Tick::ZERO).in_flight, 0);
}

/// Where answers take 100 ms a stream is what lasts for ten seconds, and where nothing is known what lasts for a minute.
#[test]
fn what_may_be_a_slow_answer_keeps_its_place_for_longer() {
    let config = Arc::new(Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) });
    let rng = &mut SeededRng::new(1);
    let slow = Arc::new(Gate::default());
    for answer in 0..200 {
        let pass = slow.enter_at_once(&config, Priority::Default, at(100 * answer)).expect("there is room");
        pass.answered(at(100 * (answer + 1)), rng);
    }
    assert_eq!(slow.view(Tick::ZERO).min_rtt, Some(MS * 100));
    for (gate, begins, lasts) in [(slow, 30_000, 10_000), (Arc::new(Gate::default()), 0, 60_000)] {
        let comes = |now| gate.enter_at_once(&config, Priority::Default, at(now)).expect("there is room");
        let _stream = comes(begins);
        drop(comes(begins + lasts - 1));
        assert_eq!(gate.view(Tick::ZERO).in_flight, 1, "it may be an answer");
        let _other = comes(begins + lasts);
        assert_eq!(gate.view(Tick::ZERO).in_flight, 1, "it is none");
    }
}

#[test]
fn a_stream_whose_caller_owes_something_late_holds_its_place_no_longer_for_that() {
    let config = Arc::new(Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) });
    let gate = learnt(&config, &mut SeededRng::new(1));
    let comes = |now| gate.enter_at_once(&config, Priority::Default, at(now)).expect("there is room");
    let mut stream = comes(10_000);
    stream.owes(at(14_500));
    let _other = comes(15_000);
    assert_eq!(gate.view(Tick::ZERO).in_flight, 1, "its five seconds are over");
}

#[test]
fn a_limit_that_was_said_counts_whatever_is_under_way() {
    let (gate, config) = (Arc::new(Gate::default()), Arc::new(fixed(1, QUEUE)));
    let _work = gate.enter_at_once(&config, Priority::Default, at(0)).expect("there is room");
    let other = gate.enter_at_once(&config, Priority::Default, at(3_600_000));
    assert_eq!(other.err(), Some(Shed::Concurrency), "it may take an hour");
}

#[test]
fn who_does_not_wait_goes_on_at_once_or_not_at_all() {
    let (gate, config) = (Arc::new(Gate::default()), Arc::new(fixed(1, QUEUE)));
    let first = gate.enter_at_once(&config, Priority::Low, at(0)).expect("there is room");
    assert_eq!(gate.enter_at_once(&config, Priority::Low, at(1)).err(), Some(Shed::Concurrency));
    let tally = gate.view(Tick::ZERO).tally;
    let of_low = Priority::Low as usize;
    assert_eq!((tally.passed[of_low], tally.shed[of_low]), (1, [1, 0, 0, 0]));
    let waits = gate.enter(&config, Priority::Low, at(2), || |_: Result<Pass, Shed>| ());
    assert!(matches!(waits, Ok(Entered::Waits(_))), "{waits:?}");
    assert_eq!((gate.view(Tick::ZERO).in_flight, gate.view(Tick::ZERO).queued), (1, 1));
    drop(waits);
    first.answered(at(3), &mut SeededRng::new(1));
    assert!(gate.enter_at_once(&config, Priority::Low, at(4)).is_ok(), "an answer makes room");
}

#[test]
fn the_first_rule_that_matches_says_the_priority() {
    let rule = |priority, name: &str, value: &str| PriorityRule {
        priority,
        headers: [(name.into(), value.into())].into(),
        who: AuthorizationRule { from: Box::default(), to: Box::default() },
    };
    let priorities =
        [rule(Priority::High, "x-priority", "high"), rule(Priority::Low, "x-kind", "batch")].into();
    let overload = Overload { priorities, ..fixed(1, QUEUE) };
    let of = |fields: &[(&str, &str)]| {
        let mut request = OwnedRequest::get("shop", "/");
        request.headers.extend(fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
        overload.priority(&request)
    };
    assert_eq!(of(&[]), Priority::Default);
    assert_eq!(of(&[("x-priority", "high"), ("x-kind", "batch")]), Priority::High);
    assert_eq!(of(&[("x-priority", "other"), ("x-kind", "batch")]), Priority::Low);
}

#[derive(Clone, Debug)]
enum Step {
    Comes(Priority),
    Answers,
    Loses,
    Fails,
    Ends,
    Leaves(usize),
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        6 => (0usize..4).prop_map(|at| Step::Comes(Priority::ALL[at])),
        3 => Just(Step::Answers),
        1 => Just(Step::Loses),
        1 => Just(Step::Fails),
        1 => Just(Step::Ends),
        1 => (0usize..8).prop_map(Step::Leaves),
    ];
    prop::collection::vec((0u64..60, step), 1..400)
}

proptest! {
    /// Whatever happens: who comes is called exactly once or refused or leaves; nobody waits while there is room; nobody
    /// goes on before a higher one; no more are under way than were let on.
    #[test]
    fn the_bounds_hold_whatever_happens(
        steps in steps(),
        (min, more, line) in (1u32..6, 0u32..30, 0u32..6),
        says in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let concurrency = AdaptiveConcurrency { min_concurrency: min, max_concurrency: min + more, ..ADAPTIVE };
        let queue = Queue { max_requests: line, ..QUEUE };
        let queue = if says { queue } else { Queue { target: None, interval: None, ..queue } };
        let config = Overload { concurrency, ..fixed(1, queue) };
        let mut limiter: Limiter<usize> = Limiter::default();
        let mut rng = SeededRng::new(seed);
        let mut now = 0;
        let mut waiting: Vec<(u64, Priority, usize, u64)> = Vec::new();
        let mut under_way: Vec<Tick> = Vec::new();
        let mut came = 0;
        for (later, step) in steps {
            now += later;
            let mut called = Called::new();
            let answer = limiter.view(&config).min_rtt;
            match step {
                Step::Comes(priority) => {
                    came += 1;
                    match limiter.enter(&config, priority, at(now), || came, &mut called) {
                        Entry::Passed => under_way.push(at(now)),
                        Entry::Waits(ticket) => waiting.push((ticket, priority, came, now)),
                        Entry::Refused(_) => {}
                    }
                }
                Step::Leaves(which) if !waiting.is_empty() => {
                    let (ticket, priority, who, _) = waiting.remove(which % waiting.len());
                    prop_assert_eq!(limiter.leave(&config, (ticket, priority), false, at(now)), Some(who));
                }
                Step::Answers | Step::Loses | Step::Fails | Step::Ends if !under_way.is_empty() => {
                    let began = under_way.remove(0);
                    match step {
                        Step::Answers => limiter.answered(&config, began, at(now), &mut rng, &mut called),
                        Step::Loses => limiter.lost(&config, began, at(now), &mut rng, &mut called),
                        Step::Fails => limiter.failed(&config, began, at(now), &mut rng, &mut called),
                        _ => limiter.ended(&config, at(now), &mut called),
                    }
                }
                _ => {}
            }
            for (who, what) in called {
                let place = waiting.iter().position(|(_, _, waits, _)| *waits == who);
                prop_assert!(place.is_some(), "{} was called twice, or never waited", who);
                let (.., since) = waiting.remove(place.unwrap());
                if what == Err(Shed::QueueTime) {
                    // The answer that is told of in this step may be the first.
                    let least = [answer, limiter.view(&config).min_rtt].into_iter().flatten().min();
                    prop_assert_eq!(invariants::queue_time(&config.queue, least, MS * u32::try_from(now - since).unwrap()), Ok(()));
                }
                if what.is_ok() {
                    under_way.push(at(now));
                }
            }
            let view = limiter.view(&config);
            prop_assert_eq!(invariants::gate(&view, &config.queue), Ok(()));
            prop_assert_eq!(view.in_flight as usize, under_way.len() + limiter.at_work());
            prop_assert_eq!(view.queued as usize, waiting.len());
            prop_assert_eq!(invariants::concurrency(&config.concurrency, view.limit), Ok(()));
        }
    }
}
