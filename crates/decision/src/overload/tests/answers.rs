//! Whoever waits is sent away for the time that answers take, which is learnt under whatever limit.

use super::*;
use crate::overload::answers::Answers;
use crate::overload::line::{Away, Line};

/// An application of some threads that work off what they were given, one after the other, behind a limiter. Time goes by
/// milliseconds.
struct App {
    config: Overload,
    limiter: Limiter<u32>,
    called: Called<u32>,
    rng: SeededRng,
    now: u64,
    takes: u64,
    /// When each thread is free.
    threads: Vec<u64>,
    /// When each that is under way began and will end.
    under_way: Vec<(u64, u64)>,
    /// Who waits, with a ticket, and since when.
    waiting: Vec<(u32, u64, u64)>,
    came: u32,
    served: u32,
    away: u32,
}

impl App {
    fn new(concurrency: AdaptiveConcurrency, queue: Queue, threads: usize, takes: u64) -> Self {
        Self {
            config: Overload { concurrency, ..fixed(1, queue) },
            limiter: Limiter::default(),
            called: Called::new(),
            rng: SeededRng::new(7),
            now: 0,
            takes,
            threads: vec![0; threads],
            under_way: Vec::new(),
            waiting: Vec::new(),
            came: 0,
            served: 0,
            away: 0,
        }
    }

    fn begins(&mut self) {
        let free = self.threads.iter_mut().min().unwrap();
        *free = (*free).max(self.now) + self.takes;
        self.under_way.push((self.now, *free));
    }

    fn comes(&mut self) {
        self.came += 1;
        let who = self.came;
        let entry =
            self.limiter.enter(&self.config, Priority::Default, at(self.now), || who, &mut self.called);
        match entry {
            Entry::Passed => self.begins(),
            Entry::Waits(ticket) => self.waiting.push((who, ticket, self.now)),
            Entry::Refused(_) => self.away += 1,
        }
        self.hears();
    }

    /// Whoever was called goes on, or away.
    fn hears(&mut self) {
        for (who, what) in std::mem::take(&mut self.called) {
            self.waiting.retain(|(waits, ..)| *waits != who);
            match what {
                Ok(()) => self.begins(),
                Err(_) => self.away += 1,
            }
        }
    }

    /// So many milliseconds go by; every so many (0: never) somebody comes.
    fn runs(&mut self, time: u64, every: u64) {
        for _ in 0..time {
            self.now += 1;
            let now = self.now;
            let ended: Vec<_> = self.under_way.extract_if(.., |(_, ends)| *ends <= now).collect();
            for (began, _) in ended {
                self.served += 1;
                self.limiter.answered(&self.config, at(began), at(now), &mut self.rng, &mut self.called);
                self.hears();
            }
            let max_wait = u64::try_from(self.config.queue.max_wait.as_millis()).unwrap();
            let gave_up: Vec<_> =
                self.waiting.extract_if(.., |(.., since)| *since + max_wait < now).collect();
            for (_, ticket, _) in gave_up {
                let left = self.limiter.leave(&self.config, (ticket, Priority::Default), true, at(now));
                self.away += u32::from(left.is_some());
            }
            if every > 0 && now.is_multiple_of(every) {
                self.comes();
            }
        }
    }

    /// So many at once, and time enough for all: how many were sent away.
    fn burst(&mut self, count: u32) -> u32 {
        let before = self.away;
        (0..count).for_each(|_| self.comes());
        self.runs(5 * self.takes + 1_000, 0);
        self.away - before
    }

    fn answer(&self) -> Option<Duration> {
        self.limiter.view(&self.config).min_rtt
    }
}

/// Nothing is said of queue times.
const UNSAID: Queue =
    Queue { max_requests: 20, max_wait: Duration::from_secs(2), target: None, interval: None };

const fn limit(min: u32, max: u32) -> AdaptiveConcurrency {
    AdaptiveConcurrency { min_concurrency: min, max_concurrency: max, ..ADAPTIVE }
}

/// Of the application of before, which could do more.
const THREADS: usize = 8;

#[test]
fn of_a_burst_that_can_be_done_in_time_nobody_is_sent_away_under_a_limit_that_is_said_or_can_hardly_move() {
    for (min, max, takes, quiet) in [(4, 4, 200, 15), (4, 4, 150, 120), (4, 5, 150, 120), (1, 1, 400, 0)] {
        let mut app = App::new(limit(min, max), UNSAID, THREADS, takes);
        for several in (0..quiet).map(|turn| 1 + 3 * (turn % 2)) {
            (0..several).for_each(|_| app.comes());
            app.runs(2 * takes, 0);
        }
        let count = if min == 1 { 5 } else { 9 };
        let away = [0; 3].map(|_| app.burst(count));
        assert_eq!(away, [0; 3], "{min} to {max}, {takes} ms, after {quiet}");
        assert_eq!(app.answer(), Some(MS * u32::try_from(takes).unwrap()), "{min} to {max}");
    }
}

#[test]
fn before_anything_is_known_nobody_is_sent_away_sooner_than_is_said() {
    let mut app = App::new(limit(2, 2), UNSAID, THREADS, 60_000);
    (0..5).for_each(|_| app.comes());
    app.runs(2_000, 0);
    assert_eq!((app.away, app.answer()), (0, None));
    app.runs(1, 0);
    assert_eq!(app.away, 3, "as long as anybody waits");
    for queue in [Queue { max_requests: 2, ..UNSAID }, QUEUE] {
        let mut app = App::new(limit(2, 2), queue, THREADS, 60_000);
        (0..5).for_each(|_| app.comes());
        app.runs(106, 1);
        assert!(app.away > 1, "what is said holds: {queue:?}");
    }
}

/// How the limit and the waiting are by default, in a process that knows nothing: 20 at once, and for 500 ms.
#[test]
fn a_new_process_sends_nobody_of_bursts_away_that_can_be_done_in_time() {
    let mut app = App::new(AdaptiveConcurrency::DEFAULT, Queue::DEFAULT, 100, 300);
    for burst in 0..20 {
        (0..40).for_each(|_| app.comes());
        app.runs(1_300, 0);
        assert_eq!(app.away, 0, "at burst {burst}");
    }
    assert_eq!(app.answer(), Some(MS * 300));
}

#[test]
fn a_new_process_that_begins_under_overload_finds_out_at_once() {
    let mut app = App::new(AdaptiveConcurrency::DEFAULT, Queue::DEFAULT, 4, 100);
    app.runs(5_000, 8);
    assert!(app.served >= 170, "{} of 200 that could be done", app.served);
    let served = app.served;
    app.runs(30_000, 8);
    assert!(app.served - served >= 1_190, "{} of 1,200", app.served - served);
    let view = app.limiter.view(&app.config);
    assert!(view.limit <= 12 && view.min_rtt.unwrap() < MS * 110, "{view:?}");
}

#[test]
fn the_first_ten_answers_say_what_one_takes() {
    let mut app = App::new(limit(4, 4), UNSAID, THREADS, 30);
    app.runs(9 * 50 + 30, 50);
    assert_eq!(app.answer(), None, "the quick ones of a mixed lot come first");
    app.runs(50, 50);
    assert_eq!(app.answer(), Some(MS * 30));
}

#[test]
fn an_application_that_becomes_slower_or_quicker_is_followed() {
    for (min, max) in [(4, 4), (4, 5)] {
        let mut app = App::new(limit(min, max), UNSAID, THREADS, 50);
        app.runs(10_000, 25);
        assert_eq!(app.answer(), Some(MS * 50));
        app.takes = 200;
        app.runs(10_000, 70);
        assert!(app.answer().unwrap().abs_diff(MS * 200) < MS * 10, "{:?}", app.answer());
        assert_eq!(app.burst(9), 0);
        app.takes = 50;
        app.runs(4_000, 25);
        assert!(app.answer().unwrap().abs_diff(MS * 50) < MS * 5, "{:?}", app.answer());
    }
}

#[test]
fn an_application_that_becomes_quicker_is_followed_also_while_the_line_stands() {
    let mut app = App::new(limit(4, 4), UNSAID, THREADS, 200);
    app.runs(20_000, 100);
    app.takes = 20;
    app.runs(10_000, 2);
    assert!(app.away > 2_000, "it has more to do than it can");
    assert!(app.answer().unwrap() < MS * 30, "{:?}", app.answer());
}

/// The limit is too high: all that the application cannot do stands in a line inside of it.
#[test]
fn an_overload_lifts_the_time_of_an_answer_once_and_not_without_end() {
    let mut app = App::new(limit(100, 100), UNSAID, 4, 100);
    app.runs(10_000, 100);
    assert_eq!(app.answer(), Some(MS * 100));
    app.runs(10_000, 8);
    let lifted = app.answer().unwrap();
    assert!(lifted < MS * 2_500 / 2, "{lifted:?}, and with a hundred at once it is 2.5 s");
    app.takes = 1_000;
    let served = app.served;
    app.runs(120_000, 8);
    assert!(app.answer().unwrap() <= lifted, "{:?}", app.answer());
    assert!(app.served - served >= 4 * 119, "whoever is sent away is not missed: {}", app.served - served);
    app.takes = 100;
    app.runs(60_000, 100);
    assert!(app.answer().unwrap().abs_diff(MS * 100) < MS * 10, "{:?}", app.answer());
}

#[test]
fn what_was_given_up_after_long_says_under_a_fixed_limit_too_that_it_takes_long() {
    let (config, mut limiter) = (fixed(4, UNSAID), Limiter::<u32>::default());
    let (mut rng, mut called) = (SeededRng::new(1), Called::new());
    let mut ends = |begins: u64, takes: u64, how: u64| {
        limiter.enter(&config, Priority::Default, at(begins), || 0, &mut called);
        let (began, now) = (at(begins), at(begins + takes));
        match how {
            0 => limiter.answered(&config, began, now, &mut rng, &mut called),
            1 => limiter.lost(&config, began, now, &mut rng, &mut called),
            _ => limiter.failed(&config, began, now, &mut rng, &mut called),
        }
        limiter.view(&config).min_rtt
    };
    assert_eq!((0..40).map(|n| ends(100 * n, 50, 1)).last(), Some(None), "none was an answer");
    assert_eq!((40..80).map(|n| ends(100 * n, 10, 0)).last(), Some(Some(MS * 10)));
    for how in [1, 2] {
        assert_eq!((100..180).map(|n| ends(100 * n, 9, how)).last(), Some(Some(MS * 10)), "{how}");
    }
    let long = (200..400).map(|n| ends(100 * n, 80, n % 2 + 1)).last().flatten().unwrap();
    assert!(long.abs_diff(MS * 80) < MS * 5, "{long:?}");
}

#[test]
fn one_pause_is_no_more_than_one_window() {
    let mut answers = Answers::default();
    let hear = |answers: &mut Answers, began: u64, now: u64| answers.hears(at(began), None, at(now));
    for n in 0..1_000 {
        hear(&mut answers, n, n + 2);
    }
    // Three hundred of them wait until it is over.
    for n in 0..300 {
        hear(&mut answers, 1_000 + n, 1_300);
    }
    for n in 1_300..2_500 {
        hear(&mut answers, n, n + 2);
        assert!(answers.time().unwrap() < MS * 12, "{:?}, half of the way to the average", answers.time());
    }
    assert!(answers.time().unwrap() < MS * 3, "{:?}", answers.time());
}

/// After how many answers that took so long and came so often (ms) the first window is over: what comes then says nothing yet.
fn first_window(takes: u64, every: u64) -> u64 {
    let after = |count: u64| {
        let mut answers = Answers::default();
        (0..count).for_each(|n| answers.hears(at(every * n), None, at(every * n + takes)));
        let before = answers.time();
        let now = every * count + 100 * takes;
        answers.hears(at(every * count), None, at(now));
        answers.time() == before
    };
    (10..1_000).find(|&count| after(count)).expect("it ends")
}

#[test]
fn a_window_lasts_for_twenty_answers_and_the_time_of_two_and_a_tenth_of_a_second() {
    assert_eq!(first_window(1, 50), 20);
    assert_eq!(first_window(1, 4), 26, "the last of them comes 100 ms after the first");
    assert_eq!(first_window(200, 7), 59, "two take 400 ms");
}

/// What an answer takes is known: 10 ms.
fn known() -> Answers {
    let mut answers = Answers::default();
    (0..20).for_each(|n| answers.hears(at(10 * n), None, at(10 * n + 10)));
    assert_eq!(answers.time(), Some(MS * 10));
    answers
}

#[test]
fn who_came_out_of_a_line_that_stood_for_no_longer_than_an_answer_says_that_it_takes_more() {
    let after = |began: u64| {
        let mut answers = known();
        (0..200).for_each(|n| answers.hears(at(began), Some(at(1_000)), at(1_050 + 5 * n)));
        answers.time().unwrap()
    };
    assert!(after(1_005) > MS * 30, "{:?}", after(1_005));
    assert_eq!(after(1_015), MS * 10);
}

#[test]
fn a_few_who_had_no_line_before_them_do_not_speak_for_the_others() {
    let mut answers = known();
    (0..9).for_each(|n| answers.hears(at(1_000 + n), None, at(2_000 + n)));
    for n in 0..40 {
        answers.hears(at(2_000 + 10 * n), Some(at(500)), at(2_010 + 10 * n));
        assert_eq!(answers.time(), Some(MS * 10));
    }
}

#[test]
fn who_came_out_of_a_line_says_that_it_takes_less_where_it_is_a_fifth_less() {
    let after = |takes: u64| {
        let mut answers = known();
        (0..25).for_each(|n| answers.hears(at(1_000 + 10 * n), Some(at(500)), at(1_000 + 10 * n + takes)));
        answers.time().unwrap()
    };
    assert_eq!(after(9), MS * 10);
    assert!(after(7).abs_diff(MS * 837 / 100) < MS / 10, "{:?}, half of the way", after(7));
}

#[test]
fn a_line_stands_since_somebody_came_when_nobody_waited() {
    let patience = QUEUE.before(None);
    let (mut line, mut away) = (Line::default(), Away::new());
    assert_eq!(line.since(), None);
    let mut joins = |line: &mut Line<u32>, now: u64| {
        line.join(&patience, Priority::Default, at(now), || 1, &mut away).expect("there is room")
    };
    let (first, second) = (joins(&mut line, 5), joins(&mut line, 7));
    for ticket in [first, second] {
        assert_eq!(line.since(), Some(at(5)));
        line.leave(&patience, ticket, Priority::Default, at(8));
    }
    assert_eq!(line.since(), None);
    joins(&mut line, 9);
    assert_eq!(line.since(), Some(at(9)));
}

#[test]
fn the_last_who_come_out_of_a_line_lift_nothing_though_nobody_waits_any_more_when_they_are_answered() {
    let mut answers = Answers::default();
    for n in 0..20 {
        answers.hears(at(10 * n), None, at(10 * n + 10));
    }
    assert_eq!(answers.time(), Some(MS * 10));
    // Answers to some who all began then, one after the other.
    let hear = |answers: &mut Answers, began: u64, line: Option<u64>| {
        for n in 0..400 {
            answers.hears(at(began), line.map(at), at(began + 500 + 20 * n));
        }
        answers.time()
    };
    // It stands from 200 to 2,000.
    answers.sees(Some(at(200)), at(2_000));
    assert_eq!(hear(&mut answers, 2_000, None), Some(MS * 10), "they came out of it");
    assert_eq!(
        hear(&mut answers, 2_000, Some(2_300)),
        Some(MS * 10),
        "and not out of another one, which is short"
    );
    let calm = hear(&mut answers, 20_000, None);
    assert!(calm > Some(MS * 50), "{calm:?}: who came later did not");
}

proptest! {
    /// Whatever the limit and however long an answer takes: a burst of which the last has waited for four answers, and for
    /// no longer than may be, loses nobody, after however many answers.
    #[test]
    fn a_burst_that_can_be_done_in_time_loses_nobody(
        at_once in 1u32..6,
        takes in 1u64..500,
        rounds in 1u64..5,
        more in 0u32..6,
        before in prop::collection::vec(1u32..6, 0..30),
    ) {
        let rounds = rounds.min(2_000 / takes).max(1);
        let queue = Queue { max_requests: 100, ..UNSAID };
        let mut app = App::new(limit(at_once, at_once), queue, 6, takes);
        for several in before {
            (0..several).for_each(|_| app.comes());
            app.runs(6 * takes, 0);
        }
        prop_assert_eq!(app.away, 0);
        let count = at_once * u32::try_from(rounds).unwrap() + more.min(at_once);
        prop_assert_eq!(app.burst(count), 0, "{} at once, {} ms, {} of them", at_once, takes, count);
    }

    /// Whoever comes out of a line that has stood for longer than an answer takes lifts that no more.
    #[test]
    fn a_line_that_stands_lifts_nothing(
        calm in prop::collection::vec(1u64..100, 10..100),
        then in prop::collection::vec((1u64..50, 1u64..100_000), 1..400),
    ) {
        let (mut answers, mut now) = (Answers::default(), 0);
        for takes in &calm {
            now += takes;
            answers.hears(at(now - takes), None, at(now));
        }
        // An average is not more than the longest.
        let (longest, since) = (calm.iter().max().unwrap(), now);
        let bound = MS * u32::try_from(longest + 1).unwrap();
        let mut began = since + longest + 1;
        for (later, takes) in then {
            began += later;
            answers.hears(at(began), Some(at(since)), at(began + takes));
            prop_assert!(answers.time().unwrap() <= bound, "{:?} and {:?}", answers.time(), bound);
        }
    }
}
