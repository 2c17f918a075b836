use proptest::prelude::*;

use super::*;

const fn at(millis: u64) -> Tick {
    Tick::from_nanos(millis * 1_000_000)
}

/// One round: it begins, so much is given on, and the PING's answer comes.
fn round(estimate: &mut Estimate, began: u64, given: u64, round_trip: u64) -> Option<u32> {
    assert_eq!(estimate.look(0, at(began)), Next::Nothing);
    assert_eq!(estimate.look(given, at(began)), Next::Ask);
    estimate.asks(at(began));
    estimate.answered(given, at(began + round_trip))
}

#[test]
fn a_stream_that_fills_its_window_in_each_round_trip_gets_twice_as_much_up_to_the_largest() {
    let (mut estimate, mut now) = (Estimate::new(), 1_000);
    loop {
        let window = estimate.window();
        let Some(next) = round(&mut estimate, now, window.into(), 50) else { break };
        assert_eq!(next, window * 2);
        estimate.grows(next);
        now += 100;
    }
    assert_eq!(estimate.window(), LARGEST);
    assert!(estimate.is_needed(at(now)));
    assert!(!estimate.is_needed(at(now + 50 + 5_000)), "nothing has needed it for long");
}

#[test]
fn small_messages_ask_nothing() {
    let mut estimate = Estimate::new();
    for now in 0..10_000 {
        assert_ne!(estimate.look((now % 80) * 1024, at(now)), Next::Ask, "at {now} ms");
    }
}

#[test]
fn what_took_longer_than_the_way_there_and_back_needs_no_larger_window() {
    let mut estimate = Estimate::new();
    assert_eq!(estimate.look(0, at(0)), Next::Nothing);
    // 128 KiB within 900 ms, and it is 50 ms there and back.
    assert_eq!(estimate.look(SMALLEST.into(), at(900)), Next::Ask);
    estimate.asks(at(900));
    assert_eq!(estimate.answered(SMALLEST.into(), at(950)), None);
}

#[test]
fn an_answer_that_stands_behind_what_is_sent_makes_no_window_grow() {
    let mut estimate = Estimate::new();
    let next = round(&mut estimate, 0, SMALLEST.into(), 50).unwrap();
    estimate.grows(next);
    // The line has no more than 128 KiB for each 50 ms: with twice as much on the way the answer takes twice as long.
    assert_eq!(round(&mut estimate, 100, next.into(), 100), None);
    assert_eq!(estimate.window(), next);
}

#[test]
fn pings_are_far_between_where_they_lead_to_nothing() {
    let (mut estimate, mut asked) = (Estimate::new(), 0);
    for now in 0..1_000 {
        let given = u64::from(SMALLEST);
        match estimate.look(given, at(now)) {
            Next::Ask => {
                asked += 1;
                estimate.asks(at(now));
                // As good as no way at all.
                assert_eq!(estimate.look(given, at(now)), Next::Nothing, "one at a time");
                estimate.shortest = Some(Duration::from_nanos(1));
                assert_eq!(estimate.answered(given, at(now)), None);
            }
            Next::Nothing | Next::Anew => {}
        }
    }
    assert!((2..=12).contains(&asked), "{asked} in a second");
}

#[test]
fn what_was_taken_back_stays_small_for_a_while() {
    let mut estimate = Estimate::new();
    let next = round(&mut estimate, 0, SMALLEST.into(), 50).unwrap();
    estimate.grows(next);
    estimate.shrinks(SMALLEST, true, at(60));
    assert_eq!(estimate.window(), SMALLEST);
    assert_eq!(estimate.look(u64::from(SMALLEST), at(1_000)), Next::Nothing);
    assert_eq!(estimate.look(u64::from(SMALLEST), at(5_060)), Next::Ask);
}

proptest! {
    #[test]
    fn it_grows_by_what_is_given_on_alone_and_comes_back(
        steps in prop::collection::vec((0_u64..16 << 20, 0_u64..500, any::<bool>()), 1..200),
    ) {
        let (mut estimate, mut now) = (Estimate::new(), 1_000);
        for (given, pause, granted) in steps {
            now += pause;
            let before = estimate.window();
            if estimate.look(given, at(now)) == Next::Ask {
                prop_assert!(given >= most_of(before));
                estimate.asks(at(now));
            }
            now += pause;
            if let Some(next) = estimate.answered(given, at(now)) {
                prop_assert!(next > before && next <= LARGEST && next <= before * 2);
                prop_assert!(given >= most_of(before), "{} of {}", given, before);
                if granted {
                    estimate.grows(next);
                }
            }
        }
        prop_assert!((SMALLEST..=LARGEST).contains(&estimate.window()));
        prop_assert!(!estimate.is_needed(at(now + 5_000)));
        estimate.shrinks(SMALLEST, false, at(now));
        prop_assert_eq!(estimate.window(), SMALLEST);
    }
}
