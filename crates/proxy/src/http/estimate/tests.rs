use proptest::prelude::*;

use super::*;

const fn at(millis: u64) -> Tick {
    Tick::from_nanos(millis * 1_000_000)
}

/// One round: there is enough, a PING is sent, and at its answer so much has been given on.
fn round(estimate: &mut Estimate, asked: u64, given: u64, round_trip: u64) -> Option<u32> {
    assert!(estimate.is_enough(u64::from(estimate.window())) && estimate.may_ask(at(asked)));
    estimate.asks(at(asked));
    estimate.answered(given, at(asked + round_trip))
}

#[test]
fn a_stream_that_fills_its_window_in_each_round_trip_gets_twice_as_much_up_to_the_largest() {
    let (mut estimate, mut now) = (Estimate::new(), 1_000);
    while estimate.window() < LARGEST {
        let window = estimate.window();
        assert_eq!(round(&mut estimate, now, window.into(), 50), Some(window * 2));
        estimate.grows(window * 2);
        now += 50;
    }
    assert!(!estimate.is_enough(u64::MAX), "nothing is asked that would lead to nothing");
}

#[test]
fn a_window_that_is_not_filled_in_a_round_trip_is_large_enough() {
    let mut estimate = Estimate::new();
    assert!(!estimate.is_enough(u64::from(SMALLEST) / 2), "nobody asks");
    assert_eq!(round(&mut estimate, 0, u64::from(SMALLEST) / 2, 50), None);
    assert_eq!(round(&mut estimate, 1_000, u64::from(SMALLEST), 50), Some(SMALLEST * 2));
}

#[test]
fn where_a_larger_window_moves_no_more_it_is_large_enough() {
    let mut estimate = Estimate::new();
    let next = round(&mut estimate, 0, SMALLEST.into(), 50).unwrap();
    estimate.grows(next);
    // The line has no more than 128 KiB for each 50 ms: with twice as much on the way the answer takes twice as long.
    assert_eq!(round(&mut estimate, 100, next.into(), 100), None);
    // Nor is it faster because what lay here was given on at once.
    assert_eq!(round(&mut estimate, 1_000, u64::from(next) * 4, 100), None);
    assert_eq!(round(&mut estimate, 2_000, next.into(), 50), Some(next * 2), "the line has become another");
}

#[test]
fn where_pings_lead_to_nothing_or_growth_is_refused_they_are_far_between() {
    let given = u64::from(SMALLEST);
    for (leads_to, given_on) in [(None, 0), (Some(SMALLEST * 2), given)] {
        let (mut estimate, mut asked) = (Estimate::new(), 0);
        for now in 0..10_000 {
            if estimate.is_enough(given) && estimate.may_ask(at(now)) {
                asked += 1;
                estimate.asks(at(now));
                assert!(!estimate.is_enough(given), "one at a time");
                assert_eq!(estimate.answered(given_on, at(now + 1)), leads_to);
            }
        }
        // 640 ms apart, and at first some that are less.
        assert!((16..=22).contains(&asked), "{asked} in ten seconds");
    }
}

#[test]
fn a_window_that_grows_is_asked_about_at_once() {
    let mut estimate = Estimate::new();
    for now in [0, 1_000, 2_000] {
        assert_eq!(round(&mut estimate, now, 0, 50), None);
    }
    assert!(!estimate.may_ask(at(2_060)));
    let next = round(&mut estimate, 3_000, SMALLEST.into(), 50).unwrap();
    estimate.grows(next);
    assert!(estimate.may_ask(at(3_050)));
    assert_eq!(round(&mut estimate, 3_050, 0, 50), None);
    assert!(estimate.may_ask(at(3_110)), "and soon again");
}

#[test]
fn an_answer_to_what_somebody_else_has_asked_says_nothing() {
    let mut estimate = Estimate::new();
    assert_eq!(estimate.answered(u64::from(LARGEST), at(10)), None);
    assert!(estimate.may_ask(at(10)));
}

fn check(estimate: &Estimate) {
    assert!((SMALLEST..=LARGEST).contains(&estimate.window));
    assert!(estimate.window.is_power_of_two());
    assert!((PAUSE..=LONGEST_PAUSE).contains(&estimate.pause));
    assert!(estimate.window == SMALLEST || estimate.rate > 0);
}

proptest! {
    #[test]
    fn it_grows_by_what_is_given_on_alone_and_step_by_step(
        steps in prop::collection::vec((0_u64..16 << 20, 0_u64..500, any::<bool>()), 1..200),
    ) {
        let (mut estimate, mut now) = (Estimate::new(), 1_000);
        for (given, pause, granted) in steps {
            now += pause;
            let before = estimate.window();
            let asks = estimate.is_enough(given) && estimate.may_ask(at(now));
            if asks {
                prop_assert!(given >= most_of(before));
                estimate.asks(at(now));
            }
            now += pause;
            if let Some(next) = estimate.answered(given, at(now)) {
                prop_assert!(asks && next == before * 2 && given >= most_of(before), "{} of {}", given, before);
                if granted {
                    estimate.grows(next);
                }
            }
            prop_assert!(estimate.window() >= before, "nothing shrinks");
            check(&estimate);
        }
    }
}

/// Each of them has a small part of the connection's window, which a step of theirs makes larger as well.
#[test]
fn what_many_give_on_together_counts_as_long_as_it_becomes_more() {
    let (mut estimate, mut now) = (Estimate::new(), 0);
    let mut together = |estimate: &mut Estimate, all: u64| {
        now += 1_000;
        estimate.asks(at(now));
        now += 50;
        estimate.answered(Given { one: 0, all, shared: estimate.window().into() }, at(now))
    };
    assert_eq!(together(&mut estimate, 1 << 20), Some(2 * SMALLEST));
    estimate.grows(2 * SMALLEST);
    assert_eq!(together(&mut estimate, 1 << 20), None, "the line is full");
    assert_eq!(together(&mut estimate, 5 << 18), Some(4 * SMALLEST));
    estimate.grows(4 * SMALLEST);
    assert_eq!(together(&mut estimate, FAST / 10), None, "it is enough however near they are");
}
