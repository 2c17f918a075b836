use meshwork_base::SeededRng;
use proptest::prelude::*;

use super::*;

const MINUTE: u64 = 60;

fn at(seconds: u64) -> Tick {
    Tick::ZERO.after(Duration::from_secs(seconds))
}

fn operation(path: &str) -> Operation {
    Operation::of(true, "shop/cart:80", b"GET", path.as_bytes(), false)
}

fn took(millis: u64) -> Took {
    let whole = Duration::from_millis(millis);
    Took { whole, own: Some(whole / 2) }
}

/// Chance, another one for each.
fn chance(number: u64) -> SeededRng {
    SeededRng::new(number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// So many answers per second for so long, each of that.
fn answer(usuals: &Usuals, millis: u64, from: u64, seconds: u64, per_second: u64) {
    let mut rng = chance(from);
    for second in from..from + seconds {
        (0..per_second).for_each(|_| usuals.learn(operation("/a"), took(millis), at(second), &mut rng));
    }
}

fn usual(usuals: &Usuals) -> Option<u64> {
    let usual = usuals.of(operation("/a"))?;
    let (whole, own) = (usual.whole.as_secs_f64(), usual.own.unwrap().as_secs_f64());
    assert!((own / whole - 0.5).abs() < 0.07, "{usual:?}");
    Some((whole * 1e3).round() as u64)
}

fn near(found: Option<u64>, millis: u64) -> bool {
    found.is_some_and(|found| found.abs_diff(millis) <= millis / 10)
}

#[test]
fn too_few_answers_say_nothing() {
    let usuals = Usuals::default();
    answer(&usuals, 5, 0, 19, 1);
    assert_eq!(usual(&usuals), None);
    answer(&usuals, 5, 19, 1, 1);
    assert!(near(usual(&usuals), 5), "{:?}", usual(&usuals));
    assert_eq!(usuals.of(operation("/b")), None, "another operation");
}

#[test]
fn one_slow_instance_of_three_is_not_usual() {
    let usuals = Usuals::default();
    let mut rng = chance(1);
    // In turn, at a pace at which one in a second would always be the same one's.
    for (number, millis) in [5, 250, 6].into_iter().cycle().take(3_600).enumerate() {
        let now = Tick::ZERO.after(Duration::from_millis(334 * number as u64));
        usuals.learn(operation("/a"), took(millis), now, &mut rng);
    }
    assert!(near(usual(&usuals), 6), "{:?}", usual(&usuals));
}

/// A page that calls ten of a kind at once: the first to end is the quickest of ten.
#[test]
fn of_a_group_not_always_the_first_is_learnt() {
    for pause in [300, 1_000, 3_000] {
        let usuals = Usuals::default();
        let mut rng = chance(pause);
        for page in 0..2_000 {
            // From 4 to 40 ms; those that end later have taken longer.
            for millis in (1..=10).map(|nth| 4 * nth) {
                let now = Tick::ZERO.after(Duration::from_millis(pause * page + millis));
                usuals.learn(operation("/a"), took(millis), now, &mut rng);
            }
        }
        let found = usual(&usuals).unwrap();
        assert!((15..=29).contains(&found), "every {pause} ms: {found}, the median is 20 to 24");
    }
}

/// One light call of an operation, and then two heavy ones.
#[test]
fn of_calls_in_turn_not_always_the_first_is_learnt() {
    let usuals = Usuals::default();
    let mut rng = chance(1);
    for page in 0..2_000 {
        for (millis, ends) in [(5, 5), (200, 205), (200, 405)] {
            let now = Tick::ZERO.after(Duration::from_millis(2_000 * page + ends));
            usuals.learn(operation("/a"), took(millis), now, &mut rng);
        }
    }
    assert!(near(usual(&usuals), 200), "{:?}", usual(&usuals));
}

#[test]
fn a_fault_of_minutes_does_not_become_usual_at_any_rate_of_requests() {
    for per_second in [1, 10, 1_000] {
        let usuals = Usuals::default();
        answer(&usuals, 5, 0, 10 * MINUTE, per_second);
        answer(&usuals, 250, 10 * MINUTE, 9 * MINUTE, per_second);
        assert!(near(usual(&usuals), 5), "{per_second}: {:?}", usual(&usuals));
    }
}

#[test]
fn a_change_that_stays_becomes_usual_within_the_hour() {
    let usuals = Usuals::default();
    answer(&usuals, 5, 0, 600 * MINUTE, 1);
    answer(&usuals, 50, 600 * MINUTE, 25 * MINUTE, 1);
    assert!(near(usual(&usuals), 5), "{:?}", usual(&usuals));
    answer(&usuals, 50, 625 * MINUTE, 40 * MINUTE, 1);
    assert!(near(usual(&usuals), 50), "{:?}", usual(&usuals));
}

/// Where requests are rare the old ones lose their weight too.
#[test]
fn a_change_of_a_rare_operation_becomes_usual_within_hours() {
    let usuals = Usuals::default();
    let minutely = |millis: u64, minutes: std::ops::Range<u64>| {
        minutes.for_each(|minute| {
            usuals.learn(operation("/a"), took(millis), at(minute * MINUTE), &mut chance(minute));
        });
    };
    minutely(5, 0..10_000);
    assert!(near(usual(&usuals), 5));
    minutely(50, 10_000..10_150);
    assert!(near(usual(&usuals), 50), "{:?}", usual(&usuals));
}

#[test]
fn what_was_usual_before_a_quiet_night_is_still_known() {
    let usuals = Usuals::default();
    answer(&usuals, 5, 0, 60, 1);
    usuals.learn(operation("/a"), took(250), at(10 * 3600), &mut chance(0));
    assert!(near(usual(&usuals), 5), "{:?}", usual(&usuals));
}

#[test]
fn a_crowd_of_operations_does_not_push_out_those_that_are_known() {
    let usuals = Usuals::default();
    answer(&usuals, 5, 0, 60, 1);
    for n in 0..1_000_u64 {
        let (a, b) = ((b'a' + (n % 26) as u8) as char, (b'a' + (n / 26 % 26) as u8) as char);
        let c = (b'a' + (n / 676) as u8) as char;
        usuals.learn(operation(&format!("/x{a}{b}{c}")), took(9), at(100 + n), &mut chance(n));
        assert!(usuals.0.lock().len() <= OPERATIONS);
    }
    assert!(near(usual(&usuals), 5));
    assert!(usuals.0.lock().contains_key(&operation("/xlmb")), "the newest is there");
    assert!(!usuals.0.lock().contains_key(&operation("/xaaa")), "the oldest made room");
}

#[test]
fn who_is_known_makes_room_when_nobody_calls_it_any_more() {
    let usuals = Usuals::default();
    let full = |now: u64| {
        for n in 0..OPERATIONS {
            let name: String = n.to_string().bytes().map(|digit| (digit - b'0' + b'a') as char).collect();
            (0..30).for_each(|_| usuals.learn(operation(&name), took(9), at(now), &mut chance(0)));
        }
    };
    full(0);
    usuals.learn(operation("/a"), took(5), at(60), &mut chance(0));
    assert!(!usuals.0.lock().contains_key(&operation("/a")), "all are known and called");
    usuals.learn(operation("/a"), took(5), at(2 * 3600), &mut chance(0));
    assert!(usuals.0.lock().contains_key(&operation("/a")));
    assert_eq!(usuals.0.lock().len(), OPERATIONS);
}

#[test]
fn who_is_still_called_keeps_its_place() {
    let usuals = Usuals::default();
    answer(&usuals, 5, 0, 60, 1);
    answer(&usuals, 5, 5_400, 1, 1);
    for n in 1..OPERATIONS {
        let name: String = n.to_string().bytes().map(|digit| (digit - b'0' + b'a') as char).collect();
        (0..30).for_each(|_| usuals.learn(operation(&name), took(9), at(5_400), &mut chance(0)));
    }
    usuals.learn(operation("/b"), took(5), at(3 * 3600), &mut chance(0));
    assert!(near(usual(&usuals), 5), "it was called an hour and a half ago");
    assert!(!usuals.0.lock().contains_key(&operation("/b")));
}

#[test]
fn of_one_that_is_only_just_known_an_hour_loses_nothing() {
    let usuals = Usuals::default();
    answer(&usuals, 5, 0, 25, 1);
    answer(&usuals, 5, 2 * 3600, 1, 1);
    assert!(near(usual(&usuals), 5), "{:?}", usual(&usuals));
}

#[test]
fn of_forty_half_counts_when_the_hour_is_over() {
    let usuals = Usuals::default();
    let count = |usuals: &Usuals| usuals.0.lock()[&operation("/a")].count;
    answer(&usuals, 5, 0, 1, 40);
    answer(&usuals, 5, 3_599, 1, 1);
    assert_eq!(count(&usuals), 41);
    let usuals = Usuals::default();
    answer(&usuals, 5, 0, 1, 40);
    answer(&usuals, 5, 3_600, 1, 1);
    assert_eq!(count(&usuals), 21);
}

#[test]
fn of_a_crowd_one_answer_in_a_second_or_so_is_learnt() {
    let usuals = Usuals::default();
    let mut rng = chance(1);
    for millis in 0..100_000 {
        let now = Tick::ZERO.after(Duration::from_millis(millis));
        usuals.learn(operation("/a"), took(5), now, &mut rng);
    }
    let learnt = usuals.0.lock()[&operation("/a")].count - PROMPT;
    assert!((85..=115).contains(&learnt), "{learnt} in a hundred seconds");
}

#[test]
fn behind_the_first_answers_none_is_learnt_before_its_pause_is_over() {
    let usuals = Usuals::default();
    let count = |usuals: &Usuals| usuals.0.lock()[&operation("/a")].count;
    answer(&usuals, 5, 0, 1, u64::from(PROMPT) + 5);
    assert_eq!(count(&usuals), PROMPT);
    answer(&usuals, 5, 2, 1, 5);
    assert_eq!(count(&usuals), PROMPT + 1);
}

#[test]
fn of_what_it_took_itself_nothing_is_said_while_few_tell_of_that() {
    let usuals = Usuals::default();
    let answers = |own: Option<u64>, times: u32| {
        let took = Took { whole: Duration::from_millis(50), own: own.map(Duration::from_millis) };
        (0..times).for_each(|_| usuals.learn(operation("/a"), took, at(0), &mut chance(0)));
    };
    answers(None, 20);
    answers(Some(1), 19);
    let said = usuals.of(operation("/a")).expect("enough have told what the whole took");
    assert_eq!(said.own, None, "a single one of those may be any");
    answers(Some(1), 1);
    assert!(usuals.of(operation("/a")).unwrap().own.is_some());
}

#[test]
fn what_it_took_itself_is_forgotten_where_nobody_tells_of_it_any_more() {
    let usuals = Usuals::default();
    answer(&usuals, 5, 0, 60, 1);
    assert!(usual(&usuals).is_some());
    for minute in 1..2_000 {
        let took = Took { whole: Duration::from_millis(5), own: None };
        usuals.learn(operation("/a"), took, at(minute * MINUTE), &mut chance(minute));
    }
    let said = usuals.of(operation("/a")).unwrap();
    assert_eq!(said.own, None, "what none of those took that still count");
}

#[test]
fn nobody_waits_for_another() {
    let usuals = Usuals::default();
    answer(&usuals, 5, 0, 30, 1);
    let held = usuals.0.lock();
    usuals.learn(operation("/a"), took(5), at(60), &mut chance(0));
    assert_eq!(usuals.of(operation("/a")), None);
    drop(held);
    assert!(near(usual(&usuals), 5));
}

proptest! {
    /// As many answers as there may be, of any length, at any time: it is known, within its bounds, and no less than
    /// half of them took at least as long.
    #[test]
    fn the_usual_is_a_median(millis in prop::collection::vec(1u64..60_000, 20..60)) {
        let usuals = Usuals::default();
        millis.iter().for_each(|millis| usuals.learn(operation("/a"), took(*millis), at(0), &mut chance(0)));
        let found = usuals.of(operation("/a")).unwrap().whole;
        let mut sorted = millis;
        sorted.sort_unstable();
        let exact = Duration::from_millis(sorted[sorted.len().div_ceil(2) - 1]);
        prop_assert!(found.abs_diff(exact) <= exact / 16 + Duration::from_micros(1), "{found:?} of {exact:?}");
    }
    /// Whatever is learnt, when, and whether it tells what it took itself: what is said goes by enough of the answers that count.
    #[test]
    fn what_is_usual_goes_by_enough_of_what_counts(
        steps in prop::collection::vec((0u64..5_000, 0u8..2, 1u64..60_000, any::<bool>(), 1u32..80), 1..25),
    ) {
        let usuals = Usuals::default();
        let (mut now, mut rng) = (0, chance(1));
        for (pause, which, millis, tells, times) in steps {
            now += pause;
            let took = if tells { took(millis) } else { Took { own: None, ..took(millis) } };
            let of = operation(["/a", "/b"][usize::from(which)]);
            (0..times).for_each(|second| usuals.learn(of, took, at(now + u64::from(second)), &mut rng));
            now += u64::from(times);
            for answers in usuals.0.lock().values() {
                prop_assert_eq!(answers.holds(), Ok(()));
            }
        }
    }
}
