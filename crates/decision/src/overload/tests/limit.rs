//! How the limit is found, by applications that take as long as they are told.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;
use crate::overload::gradient::Gradient;

/// An application that works on so many at once, each for so long, behind a gradient; whoever comes beyond the limit is
/// not there.
struct App {
    gradient: Gradient,
    service: Duration,
    /// When each worker is free.
    free: BinaryHeap<Reverse<Tick>>,
    /// When each request ends, and when it began.
    under_way: BinaryHeap<Reverse<(Tick, Tick)>>,
    rng: SeededRng,
    done: u64,
}

impl App {
    fn new(workers: usize, service: Duration) -> Self {
        Self {
            gradient: Gradient::default(),
            service,
            free: vec![Reverse(at(0)); workers].into(),
            under_way: BinaryHeap::new(),
            rng: SeededRng::new(3),
            done: 0,
        }
    }

    /// As many come as may, for this time; never more than `wanted` are under way.
    fn runs(&mut self, config: &AdaptiveConcurrency, from: Tick, time: Duration, wanted: usize) -> Tick {
        let mut now = from;
        while now < from.after(time) {
            let limit = self.gradient.limit(config) as usize;
            while self.under_way.len() < limit.min(wanted) {
                let Reverse(free) = self.free.pop().unwrap();
                let ends = free.max(now).after(self.service);
                self.free.push(Reverse(ends));
                self.under_way.push(Reverse((ends, now)));
                self.gradient.sees(u32::try_from(self.under_way.len()).unwrap(), false);
            }
            if wanted > limit {
                self.gradient.sees(u32::try_from(self.under_way.len()).unwrap(), true);
                self.gradient.sends_away();
            }
            let Reverse((ends, began)) = self.under_way.pop().unwrap();
            now = ends.max(now);
            let left = u32::try_from(self.under_way.len()).unwrap();
            self.gradient.answered(config, (began, true), left, now, &mut self.rng);
            self.done += 1;
        }
        now
    }
}

#[test]
fn under_a_load_without_end_the_limit_finds_what_the_application_can_do_and_stays_there() {
    for (workers, service) in [(1, 100), (8, 20), (64, 5), (300, 20), (8, 400)] {
        let mut app = App::new(workers, MS * service);
        let mut now = app.runs(&ADAPTIVE, at(0), Duration::from_secs(30), 10_000);
        app.done = 0;
        for _ in 0..60 {
            now = app.runs(&ADAPTIVE, now, Duration::from_secs(1), 10_000);
            let limit = app.gradient.limit(&ADAPTIVE) as usize;
            assert!(limit <= 3 * workers.max(3), "{limit} at once for {workers} workers of {service} ms");
        }
        let rate = app.done as f64 / 60.0 * f64::from(service) / 1e3 / workers as f64;
        assert!(rate > 0.95, "{workers} workers of {service} ms do {rate} of what they can");
        let base = app.gradient.base().unwrap();
        // Three are no queue by what is said, so one of one worker waits for two others.
        let longest = MS * service * if workers == 1 { 3 } else { 1 };
        assert!(base < longest * 5 / 4, "{base:?} without a queue, and it is {longest:?}");
    }
}

#[test]
fn not_even_a_measurement_goes_below_the_least_limit() {
    for (workers, min) in [(1, 3), (2, 3), (8, 6), (8, 100)] {
        let config = AdaptiveConcurrency { min_concurrency: min, ..ADAPTIVE };
        let mut app = App::new(workers, MS * 20);
        let (mut now, mut measured) = (at(0), 0);
        while now < at(120_000) {
            let before = app.gradient.descends_now();
            now = app.runs(&config, now, MS * 10, 1_000);
            measured += u32::from(!before && app.gradient.descends_now());
            let limit = app.gradient.limit(&config);
            assert!(limit >= min, "{limit} at once for {workers} workers, and {min} is the least");
        }
        assert!(measured > 1, "{workers} workers: {measured} measurements");
    }
}

#[test]
fn a_load_that_is_no_overload_is_not_held_back() {
    let mut app = App::new(100, MS * 10);
    let mut now = at(0);
    for _ in 0..60 {
        now = app.runs(&ADAPTIVE, now, Duration::from_secs(1), 60);
        assert!(app.gradient.limit(&ADAPTIVE) >= 20);
    }
    assert!(app.gradient.limit(&ADAPTIVE) >= 120, "twice of what is wanted");
    assert!(!app.gradient.descends_now());
    assert!(app.gradient.base().unwrap().abs_diff(MS * 10) < MS);
}

#[test]
fn nothing_is_measured_where_the_load_keeps_nobody_back() {
    let config = AdaptiveConcurrency { max_concurrency: 20, ..ADAPTIVE };
    let mut app = App::new(100, MS * 10);
    let mut now = at(0);
    for _ in 0..400 {
        now = app.runs(&config, now, MS * 100, 15);
        assert!(!app.gradient.descends_now(), "more than half of the limit, and not all of it");
    }
}

#[test]
fn while_nobody_is_sent_away_and_nothing_is_known_nothing_is_measured_for_an_interval() {
    let (mut gradient, mut rng) = (Gradient::default(), SeededRng::new(1));
    let mut window = |n: u64, sent_away: bool| {
        let begins = at(1_000 * n);
        gradient.sees(40, true);
        if sent_away {
            gradient.sends_away();
        }
        (0..20)
            .for_each(|_| gradient.answered(&ADAPTIVE, (begins, true), 20, begins.after(MS * 300), &mut rng));
        (gradient.descends_now(), gradient.base())
    };
    for n in 0..16 {
        assert_eq!(window(n, false), (false, None), "at {n} s: it is a bound, and not measured");
    }
    assert_eq!(window(17, false), (true, None), "an interval later it is");
    let (mut gradient, mut rng) = (Gradient::default(), SeededRng::new(1));
    for n in 0..3 {
        gradient.sees(40, true);
        if n == 2 {
            gradient.sends_away();
        }
        let begins = at(1_000 * n);
        (0..20)
            .for_each(|_| gradient.answered(&ADAPTIVE, (begins, true), 20, begins.after(MS * 300), &mut rng));
        assert_eq!(gradient.descends_now(), n == 2, "{n}: and at once where it costs nobody anything more");
    }
}

#[test]
fn what_shows_by_itself_takes_the_place_of_a_bound_whatever_that_was() {
    let (mut gradient, mut rng) = (Gradient::default(), SeededRng::new(1));
    let mut window = |n: u64, held: bool, takes: u32| {
        let begins = at(1_000 * n);
        gradient.sees(if held { 40 } else { 1 }, held);
        (0..20).for_each(|_| {
            gradient.answered(&ADAPTIVE, (begins, true), 20, begins.after(MS * takes), &mut rng);
        });
        gradient.base()
    };
    assert_eq!([window(0, true, 300), window(1, true, 300)], [None; 2], "a bound is not measured");
    let base = window(2, false, 100).expect("half of the limit was not wanted");
    assert!(base.abs_diff(MS * 100) < MS, "{base:?}");
}

#[test]
fn where_the_limit_kept_nobody_back_what_answers_take_is_no_bound() {
    let (mut gradient, mut rng) = (Gradient::default(), SeededRng::new(1));
    let mut window = |n: u64, takes: u32| {
        let begins = at(1_000 * n);
        gradient.sees(gradient.limit(&ADAPTIVE), false);
        (0..20).for_each(|_| {
            gradient.answered(&ADAPTIVE, (begins, true), 20, begins.after(MS * takes), &mut rng);
        });
        gradient.limit(&ADAPTIVE)
    };
    let limits = [window(0, 100), window(1, 100), window(2, 300), window(3, 300)];
    assert!(limits.is_sorted() && limits[3] > limits[1], "{limits:?}");
}

#[test]
fn a_limit_that_can_be_cut_to_half_is_one_that_leaves_the_least() {
    let can_halve =
        |min, max| AdaptiveConcurrency { min_concurrency: min, max_concurrency: max, ..ADAPTIVE }.can_halve();
    assert_eq!(
        [can_halve(4, 8), can_halve(4, 7), can_halve(0, 2), can_halve(0, 1)],
        [true, false, true, false]
    );
}

/// What a limiter's limit is after windows in each of which somebody is kept from going on, and then goes away by itself, is
/// sent away (`gave_up`) or was not made to wait.
fn limits_of(gave_up: bool, at_once: bool) -> Vec<u32> {
    let mut table = Table::new(Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) });
    let mut rng = SeededRng::new(1);
    let mut window = |n: u64| {
        let (begins, ends) = (at(1_000 * n), at(1_000 * n + 300));
        let mut passed = 0;
        let ticket = loop {
            match table.enter(passed, Priority::Default, 1_000 * n) {
                Entry::Passed => passed += 1,
                Entry::Waits(ticket) => break ticket,
                Entry::Refused(why) => panic!("there is room in the line: {why:?}"),
            }
        };
        if at_once {
            let Table { config, limiter, called } = &mut table;
            assert!(!limiter.enter_at_once(config, Priority::Default, begins, called));
        }
        table.leave(ticket, gave_up, 1_000 * n + 1);
        for _ in 0..passed {
            let Table { config, limiter, called } = &mut table;
            limiter.answered(config, begins, ends, &mut rng, called);
        }
        table.limiter.view(&table.config).limit
    };
    (0..4).map(&mut window).collect()
}

#[test]
fn only_who_has_waited_and_was_sent_away_makes_a_limit_be_measured_at_once() {
    assert!(!limits_of(true, false).is_sorted(), "it is halved: {:?}", limits_of(true, false));
    for at_once in [false, true] {
        let limits = limits_of(false, at_once);
        assert!(limits.is_sorted(), "{at_once}: {limits:?}");
    }
}

#[test]
fn what_showed_by_itself_is_not_measured_soon() {
    let mut app = App::new(8, MS * 20);
    let mut now = app.runs(&ADAPTIVE, at(0), Duration::from_secs(5), 4);
    for _ in 0..140 {
        now = app.runs(&ADAPTIVE, now, MS * 100, 1_000);
        assert!(!app.gradient.descends_now(), "it has shown less than 15 s ago");
    }
    let mut descended = false;
    for _ in 0..20 {
        now = app.runs(&ADAPTIVE, now, MS * 100, 1_000);
        descended |= app.gradient.descends_now();
    }
    assert!(descended, "and now it is measured");
}

#[test]
fn one_window_never_takes_more_than_half_of_the_limit() {
    let mut app = App::new(100, MS * 10);
    let mut now = app.runs(&ADAPTIVE, at(0), Duration::from_secs(5), 1_000);
    let mut limit = app.gradient.limit(&ADAPTIVE);
    assert!(limit > 80, "{limit}");
    app.service = MS * 500;
    for _ in 0..400 {
        now = app.runs(&ADAPTIVE, now, MS * 10, 1_000);
        let next = app.gradient.limit(&ADAPTIVE);
        assert!(2 * next + 1 >= limit, "from {limit} to {next}");
        limit = next;
    }
}

#[test]
fn a_measurement_that_finds_what_is_known_goes_no_deeper() {
    let mut app = App::new(8, MS * 20);
    let mut now = app.runs(&ADAPTIVE, at(0), Duration::from_secs(10), 1_000);
    let mut lowest = u32::MAX;
    for _ in 0..5_000 {
        now = app.runs(&ADAPTIVE, now, MS * 10, 1_000);
        lowest = lowest.min(app.gradient.limit(&ADAPTIVE));
    }
    assert!((5..=8).contains(&lowest), "{lowest} at once: half of what it can do or so");
}

#[test]
fn cuts_that_make_nothing_quicker_say_that_the_application_is_slower() {
    let config = AdaptiveConcurrency { max_concurrency: 45, ..ADAPTIVE };
    let mut app = App::new(50, MS * 10);
    let now = app.runs(&config, at(0), Duration::from_secs(5), 1_000);
    assert_eq!(app.gradient.limit(&config), 45, "it could do more than it may");
    app.service = MS * 60;
    app.runs(&config, now, Duration::from_secs(5), 1_000);
    let (base, limit) = (app.gradient.base().unwrap(), app.gradient.limit(&config));
    assert!(base.abs_diff(MS * 60) < MS * 10 && limit >= 25, "{base:?}, {limit}: long before it is measured");
}

#[test]
fn another_policy_counts_during_a_measurement_too() {
    let mut app = App::new(8, MS * 20);
    let mut now = at(0);
    while !app.gradient.descends_now() {
        now = app.runs(&ADAPTIVE, now, MS * 10, 1_000);
    }
    assert_eq!(app.gradient.limit(&ADAPTIVE), 10, "half of the first one");
    let fixed = AdaptiveConcurrency { min_concurrency: 30, max_concurrency: 30, ..ADAPTIVE };
    assert_eq!(app.gradient.limit(&fixed), 30);
    let less = AdaptiveConcurrency { min_concurrency: 1, max_concurrency: 2, ..ADAPTIVE };
    assert_eq!(app.gradient.limit(&less), 2);
    let more = AdaptiveConcurrency { min_concurrency: 40, ..ADAPTIVE };
    assert_eq!(app.gradient.limit(&more), 40);
    app.runs(&more, now, Duration::from_secs(2), 1_000);
    assert!(!app.gradient.descends_now(), "and it comes to an end under that");
}

#[test]
fn an_application_that_becomes_slower_for_good_is_believed() {
    let mut app = App::new(50, MS * 10);
    let now = app.runs(&ADAPTIVE, at(0), Duration::from_secs(20), 40);
    let before = app.gradient.limit(&ADAPTIVE);
    app.service = MS * 60;
    let now = app.runs(&ADAPTIVE, now, Duration::from_secs(10), 40);
    assert!(app.gradient.limit(&ADAPTIVE) >= 40, "{} of {before}", app.gradient.limit(&ADAPTIVE));
    let base = app.gradient.base().unwrap();
    assert!(base.abs_diff(MS * 60) < MS * 15, "{base:?}");
    app.service = MS * 10;
    app.runs(&ADAPTIVE, now, Duration::from_secs(10), 40);
    assert!(app.gradient.base().unwrap().abs_diff(MS * 10) < MS * 3, "and when it is quick again, too");
}

#[test]
fn the_limit_stays_within_what_the_policy_says() {
    let config = AdaptiveConcurrency { min_concurrency: 5, max_concurrency: 10, ..ADAPTIVE };
    let mut app = App::new(100, MS * 10);
    assert_eq!(app.gradient.limit(&config), 10, "of the 20 of the beginning");
    let now = app.runs(&config, at(0), Duration::from_secs(10), 1_000);
    assert_eq!(app.gradient.limit(&config), 10);
    app.free = vec![Reverse(now)].into();
    app.runs(&config, now, Duration::from_secs(2), 1_000);
    assert_eq!(app.gradient.limit(&config), 5, "of the one that there is");
    let other = AdaptiveConcurrency { min_concurrency: 7, max_concurrency: 7, ..ADAPTIVE };
    assert_eq!(app.gradient.limit(&other), 7, "a limit that stays");
    app.runs(&other, now.after(MS * 5_000), Duration::from_secs(2), 1_000);
    assert_eq!(app.gradient.limit(&other), 7);
}

#[test]
fn answers_that_were_never_given_count_when_they_were_waited_for_for_long() {
    let config = fixed(1, QUEUE);
    let mut limiter: Limiter<u32> = Limiter::default();
    let (mut rng, mut called) = (SeededRng::new(1), Called::new());
    let adaptive = Overload { concurrency: ADAPTIVE, ..config };
    let mut turn = |millis: u64, lasts: u64, lost: bool| {
        limiter.enter(&adaptive, Priority::Default, at(millis), || 0, &mut called);
        let (began, now) = (at(millis), at(millis + lasts));
        match lost {
            true => limiter.lost(&adaptive, began, now, &mut rng, &mut called),
            false => limiter.answered(&adaptive, began, now, &mut rng, &mut called),
        }
        limiter.view(&adaptive).min_rtt
    };
    for n in 0..40 {
        turn(n * 20, 10, false);
    }
    let known = turn(800, 10, false).unwrap();
    assert!(known.abs_diff(MS * 10) < MS);
    for n in 0..100 {
        turn(1_000 + n * 20, 1, true);
    }
    assert_eq!(turn(4_000, 1, true), Some(known), "quick failures say nothing");
    for n in 0..100 {
        turn(5_000 + n * 50, 40, true);
    }
    assert_eq!(turn(20_000, 40, true), Some(known), "nobody knows how long it would have taken");
    let limit = limiter.view(&adaptive).limit;
    assert_eq!(limit, ADAPTIVE.min_concurrency, "and what was given up after long says that it is too much");
}

#[test]
fn an_application_that_fails_at_once_from_its_start_keeps_its_limit() {
    let config = Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) };
    let (mut rng, mut called) = (SeededRng::new(1), Called::new());
    let mut limiter: Limiter<u32> = Limiter::default();
    let mut ends = |millis: u64, failed: bool| {
        limiter.enter(&config, Priority::Default, at(millis), || 0, &mut called);
        match failed {
            true => limiter.failed(&config, at(millis), at(millis + 2), &mut rng, &mut called),
            false => limiter.lost(&config, at(millis), at(millis + 2), &mut rng, &mut called),
        }
        limiter.view(&config).limit
    };
    for n in 0..1_000 {
        assert_eq!(ends(n * 10, true), 20, "after {n} failures");
    }
    // Those that nobody answered are a row only where there is no answer among them.
    for n in 0..1_000 {
        assert_eq!(ends(10_000 + n * 10, n % 19 == 0), 20);
    }
    ends(20_000, true);
    let limit = (1..=20).map(|n| ends(20_000 + n * 10, false)).last();
    assert_eq!(limit, Some(10));
    let after: Vec<_> = (21..=30).map(|n| ends(20_000 + n * 10, false)).collect();
    assert_eq!((after[8], after[9]), (10, 5), "the next row begins then, and is one of ten");
}

#[test]
fn an_answer_ends_a_row_of_losses_and_where_something_is_known_there_is_none() {
    let config = Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) };
    let (mut rng, mut called) = (SeededRng::new(1), Called::new());
    let mut limiter: Limiter<u32> = Limiter::default();
    let mut ends = |n: u64, lasts: u64, lost: bool| {
        let (began, now) = (at(n * 20), at(n * 20 + lasts));
        limiter.enter(&config, Priority::Default, began, || 0, &mut called);
        match lost {
            true => limiter.lost(&config, began, now, &mut rng, &mut called),
            false => limiter.answered(&config, began, now, &mut rng, &mut called),
        }
        limiter.view(&config)
    };
    for n in 0..19 {
        ends(n, 2, true);
    }
    ends(19, 10, false);
    assert_eq!((20..39).map(|n| ends(n, 2, true).limit).last(), Some(20), "nineteen again");
    for n in 100..200 {
        ends(n, 10, false);
    }
    let known = ends(200, 10, false);
    assert!(known.min_rtt.is_some());
    let after = (300..400).map(|n| ends(n, 2, true).limit).last();
    assert_eq!(after, Some(known.limit), "those who leave at once say nothing");
}

#[test]
fn callers_without_patience_do_not_keep_the_limit_from_being_found() {
    let config = Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) };
    let (mut limiter, mut called, mut rng) = (Limiter::<u64>::default(), Called::new(), SeededRng::new(1));
    // Four threads of 100 ms that work off whatever they were given; each caller waits for 400 ms.
    let mut threads = [0; 4];
    let mut under_way: Vec<(u64, u64)> = vec![];
    let mut answered = 0;
    for now in 0..20_000 {
        let (ended, go_on): (Vec<_>, Vec<_>) = under_way.into_iter().partition(|(_, ends)| *ends <= now);
        under_way = go_on;
        let mut begins = vec![];
        for (began, ends) in ended {
            if ends < began + 400 {
                answered += u32::from(now >= 5_000);
                limiter.answered(&config, at(began), at(now), &mut rng, &mut called);
            } else {
                limiter.lost(&config, at(began), at(now), &mut rng, &mut called);
            }
        }
        // 125 a second come, three times of what is possible.
        if now % 8 == 0
            && limiter.enter(&config, Priority::Default, at(now), || now, &mut called) == Entry::Passed
        {
            begins.push(now);
        }
        begins.extend(called.drain(..).filter(|(_, what)| what.is_ok()).map(|_| now));
        for began in begins {
            let thread = threads.iter_mut().min().expect("four");
            *thread = (*thread).max(began) + 100;
            under_way.push((began, (*thread).min(began + 400)));
        }
    }
    assert!(answered >= 15 * 40 * 3 / 4, "{answered} of 600");
}

#[test]
fn a_failure_that_took_just_as_long_as_an_answer_says_nothing() {
    let config = Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) };
    let (mut rng, mut called) = (SeededRng::new(1), Called::new());
    let mut limit_after = |lasts: Duration| {
        let mut limiter: Limiter<u32> = Limiter::default();
        for n in 0..100 {
            limiter.enter(&config, Priority::Default, at(n * 20), || 0, &mut called);
            limiter.answered(&config, at(n * 20), at(n * 20 + 10), &mut rng, &mut called);
        }
        let known = limiter.view(&config);
        assert_eq!(known.min_rtt, Some(MS * 10));
        // So many at once that a window of them would say that more may be.
        for round in 0..20 {
            let begins = at(10_000 + round * 100);
            (0..known.limit).for_each(|_| {
                limiter.enter(&config, Priority::Default, begins, || 0, &mut called);
            });
            (0..known.limit).for_each(|_| {
                limiter.failed(&config, begins, begins.after(lasts), &mut rng, &mut called);
            });
        }
        limiter.view(&config).limit.cmp(&known.limit)
    };
    assert_eq!(limit_after(MS * 10), std::cmp::Ordering::Equal);
    assert_eq!(limit_after(MS * 11), std::cmp::Ordering::Greater);
}

#[test]
fn what_began_before_a_cut_tells_of_the_limit_of_before() {
    let (mut gradient, mut rng) = (Gradient::default(), SeededRng::new(1));
    gradient.sees(40, true);
    (0..20).for_each(|_| gradient.lost(&ADAPTIVE, at(0), at(1_000)));
    assert_eq!(gradient.limit(&ADAPTIVE), 10);
    (0..20).for_each(|_| gradient.answered(&ADAPTIVE, (at(900), true), 20, at(1_400), &mut rng));
    assert_eq!(gradient.limit(&ADAPTIVE), 10, "they were among those of whom there were too many");
    (0..20).for_each(|_| gradient.answered(&ADAPTIVE, (at(1_500), true), 0, at(1_900), &mut rng));
    assert!(gradient.base().is_some(), "and these were not");
}

/// Whoever waits in vain waits for as long as he will, which is not how long answers take.
#[test]
fn what_was_waited_for_in_vain_makes_the_limit_lower_and_the_time_without_a_queue_no_longer() {
    let (mut gradient, mut rng) = (Gradient::default(), SeededRng::new(1));
    gradient.sees(1, false);
    (0..20).for_each(|_| gradient.answered(&ADAPTIVE, (at(0), true), 0, at(300), &mut rng));
    let base = gradient.base().expect("it had no queue");
    let mut limits = Vec::new();
    for n in 1..60 {
        gradient.sees(20, true);
        gradient.sends_away();
        // One of five is answered just in time, so that no row of them is in vain.
        for which in 0..40 {
            let said = (at(3_000 * n), which % 5 == 0);
            gradient.answered(&ADAPTIVE, said, 0, at(3_000 * n + 1_000), &mut rng);
        }
        limits.push(gradient.limit(&ADAPTIVE));
    }
    assert_eq!(gradient.base(), Some(base));
    assert_eq!(limits.last(), Some(&ADAPTIVE.min_concurrency), "{limits:?}");
    assert!(limits[..8].contains(&ADAPTIVE.min_concurrency), "{limits:?}");
}

#[test]
fn a_row_that_waits_in_vain_halves_the_limit_also_where_the_time_without_a_queue_is_known() {
    let (mut gradient, mut rng) = (Gradient::default(), SeededRng::new(1));
    gradient.sees(1, false);
    (0..20).for_each(|_| gradient.answered(&ADAPTIVE, (at(0), true), 0, at(300), &mut rng));
    let limit = gradient.limit(&ADAPTIVE);
    (0..limit).for_each(|_| gradient.answered(&ADAPTIVE, (at(1_000), false), 0, at(2_000), &mut rng));
    assert_eq!(gradient.limit(&ADAPTIVE), limit / 2);
}

/// One stall is one row, however many were under way.
#[test]
fn those_who_were_under_way_when_the_limit_was_cut_for_a_row_make_no_other() {
    let (mut gradient, mut rng) = (Gradient::default(), SeededRng::new(1));
    gradient.sees(1, false);
    (0..20).for_each(|_| gradient.answered(&ADAPTIVE, (at(0), true), 0, at(300), &mut rng));
    let limit = gradient.limit(&ADAPTIVE);
    let mut lost = |began, count| {
        (0..count).for_each(|_| gradient.answered(&ADAPTIVE, (at(began), false), 0, at(2_000), &mut rng));
        gradient.limit(&ADAPTIVE)
    };
    assert_eq!(lost(1_000, 2 * limit), limit / 2);
    assert_eq!(lost(2_000, limit / 2 - 1), limit / 2);
    assert_eq!(lost(2_000, 1), limit / 4, "these were sent under the lower limit");
}

/// Callers whose patience is little longer than an answer takes: what they waited is no sign that there is room.
#[test]
fn a_window_of_which_many_were_in_vain_does_not_make_the_limit_higher() {
    let (mut gradient, mut rng) = (Gradient::default(), SeededRng::new(1));
    gradient.sees(1, false);
    (0..20).for_each(|_| gradient.answered(&ADAPTIVE, (at(0), true), 0, at(300), &mut rng));
    let limit = gradient.limit(&ADAPTIVE);
    let mut window = |n: u64, of_which_in_vain: u64| {
        gradient.sees(limit, false);
        for which in 0..20 {
            let said = (at(2_000 * n), which >= of_which_in_vain);
            gradient.answered(&ADAPTIVE, said, 0, at(2_000 * n + 400), &mut rng);
        }
        gradient.limit(&ADAPTIVE)
    };
    // The first one began with the one before.
    window(1, 0);
    let before = window(2, 0);
    assert_eq!(window(3, 3), before);
    assert!(window(4, 2) > before);
}

/// Few applications notice that whoever has asked does not wait any more.
#[test]
fn whom_nobody_waits_for_any_more_keeps_its_place_for_a_while() {
    let mut table = Table::new(Overload { concurrency: ADAPTIVE, ..fixed(1, QUEUE) });
    let mut rng = SeededRng::new(1);
    let Table { config, limiter, called } = &mut table;
    for n in 0..20 {
        assert_eq!(limiter.enter(config, Priority::Default, at(400 * n), || 0, called), Entry::Passed);
        limiter.answered(config, at(400 * n), at(400 * n + 100), &mut rng, called);
    }
    assert!(limiter.min_rtt().is_some_and(|base| base.abs_diff(MS * 100) < MS));
    // For how long it was waited for, and until when it counts: an answer's time, as long again, and no more than four times.
    for (n, (waited, until)) in [(20, 100), (150, 300), (1_000, 1_400)].into_iter().enumerate() {
        let begins = 10_000 + 5_000 * n as u64;
        assert_eq!(limiter.enter(config, Priority::Default, at(begins), || 0, called), Entry::Passed);
        limiter.lost(config, at(begins), at(begins + waited), &mut rng, called);
        assert_eq!(limiter.view(config).in_flight, 1, "{waited} ms");
        let mut counts = |now: u64| {
            assert!(limiter.enter_at_once(config, Priority::Default, at(now), called));
            let count = limiter.view(config).in_flight;
            limiter.ended(config, at(now), called);
            count
        };
        assert_eq!([counts(begins + until - 1), counts(begins + until + 1)], [2, 1], "{waited} ms");
    }
}

/// Where little comes, nobody else notices that a place is over which nobody gives back.
#[test]
fn who_waits_for_such_a_place_is_called_when_it_is_over_though_nobody_comes() {
    let mut table = Table::new(fixed(1, Queue { max_wait: Duration::from_secs(60), ..QUEUE }));
    let mut rng = SeededRng::new(1);
    let Table { config, limiter, called } = &mut table;
    for n in 0..20 {
        assert_eq!(limiter.enter(config, Priority::Default, at(400 * n), || 0, called), Entry::Passed);
        limiter.answered(config, at(400 * n), at(400 * n + 100), &mut rng, called);
    }
    assert_eq!(limiter.next_over(), None);
    assert_eq!(limiter.enter(config, Priority::Default, at(10_000), || 1, called), Entry::Passed);
    limiter.lost(config, at(10_000), at(10_300), &mut rng, called);
    assert!(matches!(limiter.enter(config, Priority::Default, at(10_310), || 2, called), Entry::Waits(_)));
    let over = limiter.next_over().expect("it is at work still");
    assert!(over.since(at(10_600)) < MS && over >= at(10_600), "as long again as it was waited for");
    limiter.goes_by(config, at(10_599), called);
    assert!(called.is_empty());
    limiter.goes_by(config, over, called);
    assert_eq!(called.as_slice(), [(2, Ok(()))]);
}

/// Where a measurement lets through just less than what comes, all of it waits until it is too late.
#[test]
fn a_measurement_in_which_nobody_is_answered_is_given_up() {
    let config = AdaptiveConcurrency { min_concurrency: 1, ..ADAPTIVE };
    let mut app = App::new(8, MS * 20);
    let mut now = at(0);
    while !app.gradient.descends_now() {
        now = app.runs(&config, now, MS * 10, 1_000);
    }
    let known = app.gradient.base();
    app.gradient.goes_by(&config, now.after(Duration::from_secs(4)));
    assert!(app.gradient.descends_now());
    let later = now.after(Duration::from_secs(6));
    app.gradient.goes_by(&config, later);
    assert!(!app.gradient.descends_now());
    assert_eq!(app.gradient.base(), known);
    // And not at once again.
    let now = app.runs(&config, later, Duration::from_secs(10), 1_000);
    assert!(!app.gradient.descends_now());
    let mut now = now.after(Duration::from_secs(4));
    while !app.gradient.descends_now() && now < at(300_000) {
        now = app.runs(&config, now, MS * 10, 1_000);
    }
    assert!(app.gradient.descends_now(), "but later");
}

/// One at a time of what takes a second: ten answers take ten.
#[test]
fn a_measurement_at_the_least_limit_has_the_time_that_its_answers_take() {
    let config = AdaptiveConcurrency { min_concurrency: 1, ..ADAPTIVE };
    let mut app = App::new(2, MS * 1_000);
    let mut now = at(0);
    while now < at(120_000) {
        now = app.runs(&config, now, MS * 100, 1_000);
        app.gradient.goes_by(&config, now);
    }
    let base = app.gradient.base().expect("it was measured");
    assert!(base < MS * 1_100, "{base:?}");
    assert!(app.gradient.limit(&config) <= 6, "{}", app.gradient.limit(&config));
}
