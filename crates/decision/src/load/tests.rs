use proptest::prelude::*;

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn at(millis: u64) -> Tick {
    Tick::ZERO.after(MS(millis))
}

fn answered(millis: u64) -> Answer {
    Answer::new(AttemptOutcome::Success, MS(millis))
}

fn failed(millis: u64) -> Answer {
    Answer::new(AttemptOutcome::Failure, MS(millis))
}

fn latency(load: &Load, now: Tick) -> f32 {
    load.ln_latency(now).expect("it has answered").exp() / 1e6
}

#[test]
fn trouble_is_noticed_sooner_than_recovery_is_believed() {
    let (slower, faster) = (Load::default(), Load::default());
    slower.record(&answered(10), at(0));
    faster.record(&answered(100), at(0));
    for i in 1..=200 {
        slower.record(&answered(100), at(10 * i));
        faster.record(&answered(10), at(10 * i));
    }
    // After 2 s: 1 - 1/e of the way up, 1 - 1/e^0.2 of the way down, both in logarithms.
    let (up, down) = (latency(&slower, at(2_000)), latency(&faster, at(2_000)));
    assert!((up - 42.9).abs() < 0.5, "{up}");
    assert!((down - 65.9).abs() < 0.5, "{down}");
}

#[test]
fn one_request_of_another_kind_says_little() {
    let load = Load::default();
    load.record(&answered(10), at(0));
    load.record(&answered(60_000), at(50));
    assert!(latency(&load, at(50)) < 13.0);
}

#[test]
fn what_is_not_heard_of_is_forgotten() {
    let load = Load::default();
    assert_eq!(load.ln_latency(at(0)), None, "nothing is known");
    load.record(&answered(100), at(0));
    assert!((latency(&load, at(10_000)) - 36.8).abs() < 0.1, "1/e after one time");
    assert!(latency(&load, at(120_000)) < 0.01);
}

/// One that took three seconds, and loses to one that takes ten milliseconds.
struct Slow(Load);

impl Slow {
    fn new() -> Self {
        let slow = Self(Load::default());
        slow.0.record(&answered(3_000), at(0));
        slow
    }

    /// How many of so many requests, all at one moment, ask it.
    fn looks(&self, millis: u64, losses: u32) -> usize {
        (0..losses).filter(|_| self.0.looks(sample(MS(10)), at(millis))).count()
    }
}

#[test]
fn who_was_far_slower_is_asked_now_and_then() {
    let slow = Slow::new();
    assert_eq!([slow.looks(4_000, 199), slow.looks(4_000, 200)], [0, 1], "every two hundredth time");
    slow.0.record(&answered(3_000), at(7_000));
    assert_eq!(slow.looks(9_999, 2_000), 0, "but not so soon after it was heard of");
    assert_eq!(slow.looks(10_000, 1), 1, "which is over");
    slow.0.record(&answered(3_000), at(13_000));
    assert_eq!(slow.looks(312_999, 199), 0, "counted from the last look");
    let slow = Slow::new();
    assert_eq!([slow.looks(299_999, 1), slow.looks(300_000, 1)], [0, 1], "long unheard of");
}

#[test]
fn while_somebody_looks_nobody_else_does_unless_it_takes_long() {
    let slow = Slow::new();
    assert_eq!(slow.looks(4_000, 2_000), 1);
    assert_eq!(slow.looks(6_999, 2_000), 0, "it has not been answered");
    assert_eq!(slow.looks(7_000, 1), 1, "who knows if it is");
    let unheard = Slow::new();
    assert_eq!(unheard.looks(300_000, 1), 1);
    assert_eq!(unheard.looks(310_000, 199), 0, "nor because nothing was heard of it before either");
    assert_eq!(unheard.looks(310_000, 1), 1);
}

#[test]
fn who_was_far_slower_and_is_quick_a_few_times_in_a_row_is_as_quick_as_the_other() {
    let slow = Slow::new();
    assert_eq!(slow.looks(4_000, 200), 1);
    for luck in [4_010, 4_110] {
        slow.0.record(&answered(12), at(luck));
        assert!(latency(&slow.0, at(luck)) > 2_900.0, "it may be luck");
        assert_eq!([slow.looks(luck + 1, 9), slow.looks(luck + 1, 1)], [0, 1], "somebody looks soon");
    }
    slow.0.record(&answered(19), at(4_210));
    assert!((latency(&slow.0, at(4_210)) - 10.0).abs() < 0.1);
}

#[test]
fn who_was_quick_by_luck_is_looked_at_as_seldom_as_before() {
    let ends: [fn(&Load, Tick); 3] = [
        |load, now| load.record(&answered(21), now),
        |load, now| load.record(&failed(1), now),
        |load, now| load.outlasted(MS(21), now),
    ];
    for (which, end) in ends.into_iter().enumerate() {
        let slow = Slow::new();
        assert_eq!(slow.looks(4_000, 200), 1);
        for luck in [4_010, 4_110] {
            slow.0.record(&answered(10), at(luck));
            assert_eq!(slow.looks(luck + 1, 10), 1);
        }
        end(&slow.0, at(4_210));
        assert_eq!([slow.looks(9_000, 199), slow.looks(9_000, 1)], [0, 1], "{which}");
        slow.0.record(&answered(10), at(9_010));
        assert!(latency(&slow.0, at(9_010)) > 1_000.0, "and the row begins anew: {which}");
    }
}

#[test]
fn who_was_given_up_on_soon_may_have_been_as_quick_as_the_other() {
    let slow = Slow::new();
    assert_eq!(slow.looks(4_000, 200), 1);
    slow.0.record(&answered(10), at(4_010));
    assert_eq!(slow.looks(4_011, 10), 1);
    slow.0.outlasted(MS(19), at(4_031));
    assert_eq!([slow.looks(7_011, 199), slow.looks(7_011, 1)], [0, 1], "nothing has come of it");
    slow.0.record(&answered(10), at(7_021));
    slow.looks(7_022, 10);
    slow.0.record(&answered(10), at(7_032));
    assert!(latency(&slow.0, at(7_032)) < 11.0, "what was found before counts");
}

#[test]
fn a_failure_says_nothing_about_latency() {
    let load = Load::default();
    load.record(&failed(1), at(0));
    assert_eq!(load.ln_latency(at(0)), None);
    load.record(&answered(100), at(100));
    load.record(&failed(1), at(101));
    assert!((latency(&load, at(101)) - 100.0).abs() < 0.1);
}

#[test]
fn rests_grow_with_failures_in_a_row_and_end_with_a_good_answer() {
    let load = Load::default();
    let mut now = at(1);
    for expected in [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000] {
        load.record(&failed(1), now);
        assert!(load.is_resting(now) && load.has_failed());
        let end = now.after(MS(expected));
        assert!(load.is_resting(Tick::from_nanos(end.as_nanos() - 1)) && !load.is_resting(end), "{expected}");
        now = end;
    }
    load.record(&answered(10), now);
    assert!(!load.has_failed());
    load.record(&failed(1), now);
    assert!(!load.is_resting(now.after(MS(50))), "the row begins anew");
}

#[test]
fn who_may_be_silent_behind_its_head_keeps_nobody_waiting_and_ends_no_row() {
    let load = Load::default();
    load.record(&failed(1), at(0));
    load.picked(at(100));
    assert!(load.is_tried(at(100)));
    load.lets_next();
    assert!(!load.is_passed_by(at(100)));
    load.record(&failed(1), at(100));
    assert!(load.fails(at(100)), "the second in a row");
}

#[test]
fn three_failures_of_five_are_much_and_one_of_six_never_is() {
    let is_much = |answers: &str| {
        let load = Load::default();
        for (answer, millis) in answers.chars().zip((0..).step_by(1_000)) {
            load.record(&if answer == 'F' { failed(1) } else { answered(10) }, at(millis));
        }
        load.fails_much()
    };
    assert!(is_much("FWFWF") && is_much("FWWFWWFWWFWWFW") && is_much("FFF"));
    assert!(!is_much("FWF") && !is_much(&("FWWWWW".repeat(20) + "F")));
    assert!(!is_much(&("F".repeat(20) + &"W".repeat(11))), "what was is forgotten");
}

#[test]
fn a_good_answer_ends_a_row_however_long_ago_the_failures_before_it_were() {
    let load = Load::default();
    for millis in (0..10_000).step_by(100) {
        load.record(&failed(1), at(millis));
        for well in 1..30 {
            load.record(&answered(10), at(millis + well));
            assert!(!load.has_failed());
        }
        assert!(!load.failing.is_any(), "it is forgotten");
    }
}

#[test]
fn failures_in_a_rest_count_for_what_it_fails() {
    let load = Load::default();
    (0..3).for_each(|_| load.record(&failed(1), at(0)));
    load.record(&answered(10), at(1));
    assert!(load.fails_much() && !load.has_failed());
    load.forget();
    assert!(!load.fails_much(), "another instance has not failed");
}

#[test]
fn failures_of_requests_sent_before_the_rest_change_nothing() {
    let load = Load::default();
    for i in 0..20 {
        load.record(&failed(1), at(1 + i));
    }
    assert!(!load.is_resting(at(51)), "one failure, one rest");
}

#[test]
fn what_took_long_to_fail_rests_longer() {
    assert_eq!(rest(1, MS(1)), MS(50));
    assert_eq!(rest(1, MS(1_000)), MS(4_000));
    assert_eq!(rest(2, MS(1_000)), MS(8_000));
    assert_eq!(rest(1, MS(60_000)), LONGEST_REST);
    assert_eq!(rest(u32::MAX, Duration::MAX), LONGEST_REST);
}

#[test]
fn an_endpoint_is_taken_at_its_word_but_not_for_ever() {
    let load = Load::default();
    let busy = |secs| Answer {
        outcome: AttemptOutcome::Overloaded,
        status: 429,
        took: MS(1),
        push_back: Some(Duration::from_secs(secs)),
        to_repeat: false,
    };
    load.record(&busy(3), at(0));
    assert!(load.wants_rest(at(2_999)) && !load.wants_rest(at(3_001)));
    load.record(&busy(1), at(100));
    assert!(load.wants_rest(at(2_999)), "the later of two words counts");
    load.record(&busy(86_400), at(3_000));
    assert!(load.wants_rest(at(62_999)) && !load.wants_rest(at(63_001)));
    assert!(!load.is_resting(at(62_999)), "that is no rest after a failure");
    load.record(&failed(1), at(64_000));
    assert!(load.is_resting(at(64_001)) && !load.wants_rest(at(64_001)), "nobody has asked for this one");
}

#[test]
fn what_an_endpoint_asks_for_counts_though_it_rests_for_longer() {
    let asks = |took| Answer { push_back: Some(MS(2_000)), ..failed(took) };
    let slow = Load::default();
    slow.record(&asks(600), at(0));
    assert!(slow.is_resting(at(2_399)), "four times what the failure took");
    assert!(slow.wants_rest(at(1_999)) && !slow.wants_rest(at(2_000)), "as long as it has said");
    let failing = Load::default();
    let mut millis = 0;
    for row in 1..7 {
        failing.record(&failed(1), at(millis));
        assert!(!failing.wants_rest(at(millis + 1)), "nobody has asked");
        millis += rest_of(row);
    }
    failing.record(&asks(1), at(millis));
    assert!(failing.is_resting(at(millis + 3_199)), "the seventh failure in a row");
    assert!(failing.wants_rest(at(millis + 1_999)) && !failing.wants_rest(at(millis + 2_000)));
    // Of those that were under way one more asks; its failure changes nothing.
    failing.record(&asks(1), at(millis + 500));
    assert!(!failing.is_resting(at(millis + 3_201)), "it was sent before the rest");
    assert!(failing.wants_rest(at(millis + 2_499)) && !failing.wants_rest(at(millis + 2_500)));
    failing.record(&asks(1), at(millis + 4_000));
    failing.forget();
    assert!(!failing.wants_rest(at(millis + 4_001)), "it is another instance that has asked");
}

#[test]
fn a_limit_concerns_others_until_one_of_them_is_answered_well() {
    for (status, is_unwell) in [(429, false), (503, true), (0, true)] {
        let load = Load::default();
        load.record(&Answer { status, push_back: Some(MS(2_000)), ..failed(1) }, at(0));
        assert!(load.is_unwell(at(1_999)) && !load.is_unwell(at(2_000)), "{status}");
        load.record(&answered(10), at(100));
        assert_eq!(load.is_unwell(at(1_999)), is_unwell, "{status}");
        assert!(load.wants_rest(at(1_999)), "{status}: it has asked all the same");
        load.record(&failed(1), at(200));
        assert!(load.is_unwell(at(1_999)) && !load.is_unwell(at(2_000)), "{status}");
        load.forget();
        load.record(&failed(1), at(300));
        assert!(!load.is_unwell(at(1_999)), "{status}: it is another instance that has asked");
        let limited = Answer { status: 429, push_back: Some(MS(2_000)), ..failed(1) };
        [limited, answered(10)].iter().for_each(|answer| load.record(answer, at(400)));
        assert!(!load.is_unwell(at(1_999)), "{status}: for itself too");
    }
}

/// Milliseconds that an endpoint rests after so many quick failures in a row.
fn rest_of(row: u32) -> u64 {
    rest(row, MS(1)).as_millis().try_into().expect("seconds")
}

#[test]
fn another_instance_begins_anew() {
    let load = Load::default();
    load.record(&answered(100), at(0));
    load.record(&failed(1), at(1));
    load.forget();
    assert!(!load.is_resting(at(1)) && !load.has_failed() && load.ln_latency(at(1)).is_none());
}

/// So many times it loses by its latency to one that takes ten milliseconds, after an answer so long ago: how often it is asked.
fn losses(looks: &Looks, times: u32, age: Duration, now: u64) -> usize {
    (0..times).filter(|_| looks.begins(sample(MS(10)), age, at(now))).count()
}

#[test]
fn while_a_look_takes_long_it_is_let_alone_if_it_was_heard_of_meanwhile() {
    let looks = Looks::default();
    assert_eq!(losses(&looks, 200, MS(5_000), 5_000), 1);
    assert_eq!(losses(&looks, 300, MS(2_999), 10_000), 0, "one that was given up said something");
    assert_eq!(losses(&looks, 1, MS(3_000), 10_001), 1);
}

#[test]
fn who_has_recovered_and_is_slow_again_has_its_luck_to_show_again() {
    let looks = Looks::default();
    losses(&looks, 200, MS(5_000), 5_000);
    for found in [Found::Luck, Found::Luck, Found::Recovered(sample(MS(10)))] {
        assert_eq!(looks.answered(sample(MS(11))), found);
        losses(&looks, if found == Found::Luck { 10 } else { 0 }, MS(1), 6_000);
    }
    assert_eq!(losses(&looks, 199, MS(5_000), 20_000), 0, "as before it had recovered");
    assert_eq!(losses(&looks, 1, MS(5_000), 20_000), 1);
}

#[test]
fn what_is_given_up_while_nobody_looks_ends_no_luck() {
    let looks = Looks::default();
    losses(&looks, 200, MS(5_000), 5_000);
    assert_eq!(looks.answered(sample(MS(11))), Found::Luck);
    looks.outlasted(sample(MS(3_000)));
    assert_eq!(losses(&looks, 10, MS(1), 6_000), 1, "it was sent before that");
}

#[test]
fn another_instance_was_not_passed_over() {
    let slow = Slow::new();
    assert_eq!(slow.looks(4_000, 199), 0);
    slow.0.forget();
    slow.0.record(&answered(3_000), at(5_000));
    assert_eq!(slow.looks(9_000, 1), 0);
    assert_eq!(slow.looks(9_000, 199), 1);
    slow.0.forget();
    slow.0.record(&answered(10), at(9_010));
    slow.0.record(&answered(3_000), at(39_010));
    assert_eq!(slow.looks(49_010, 199), 0, "and the answer to its look was none");
}

#[test]
fn who_has_answered_well_or_badly_has_within_its_time() {
    let (well, badly) = (Load::default(), Load::default());
    well.record(&answered(1), at(1_000));
    badly.record(&failed(1), at(1_000));
    assert!(well.has_answered(MS(100), at(1_100)) && !well.has_answered(MS(100), at(1_101)));
    assert!(badly.has_answered(MS(100), at(1_150)), "its rest of 50 ms is none of that");
    assert!(!badly.has_answered(MS(100), at(1_151)));
}

#[test]
fn time_wraps_without_harm() {
    let load = Load::default();
    let wrap = Duration::from_micros(1 << 32);
    let before = Tick::ZERO.after(wrap - MS(5));
    load.record(&answered(100), before);
    let after = before.after(MS(10));
    load.record(&answered(10), after);
    assert!((99.0..100.0).contains(&latency(&load, after)), "ten milliseconds have passed, not an hour");
}

proptest! {
    /// Whatever comes: the average stays within what was seen, and a rest within its bound.
    #[test]
    fn averages_stay_among_the_samples(steps in prop::collection::vec((0u64..5_000, 1u64..10_000, 0u8..3), 1..60)) {
        let load = Load::default();
        let mut now = at(1);
        let (mut least, mut most) = (f32::MAX, 0.0_f32);
        for (pause, took, outcome) in steps {
            now = now.after(MS(pause));
            let outcome = [AttemptOutcome::Success, AttemptOutcome::Overloaded, AttemptOutcome::Failure][usize::from(outcome)];
            load.record(&Answer::new(outcome, MS(took)), now);
            if outcome == AttemptOutcome::Success {
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let sample = took.max(10) as f32;
                (least, most) = (least.min(sample), most.max(sample));
                let average = latency(&load, now);
                prop_assert!(average >= least * 0.999 && average <= most * 1.001, "{average} of {least}..{most}");
            } else {
                prop_assert!(load.is_resting(now));
            }
            prop_assert!(!load.is_resting(now.after(LONGEST_REST)));
        }
    }
}

proptest! {
    /// Whatever comes: few of many look, and one at a time.
    #[test]
    fn looks_are_few(steps in prop::collection::vec((prop_oneof![4 => 0u64..2_000, 1 => 0u64..400_000], 0u8..6, 1u32..250), 1..200)) {
        let slow = Slow::new();
        let (mut now, mut heard) = (0, 0);
        let (mut looks, mut losses, mut luck, mut unheard) = (0, 0, 0, 0);
        // Since when somebody looks.
        let mut under_way = None;
        for (pause, what, times) in steps {
            now += pause;
            match what {
                0 => slow.0.record(&answered(3_000), at(now)),
                1 => slow.0.record(&failed(1), at(now)),
                2 | 3 => slow.0.record(&answered(11), at(now)),
                _ => {
                    for _ in 0..times {
                        losses += 1;
                        if slow.0.looks(sample(MS(10)), at(now)) {
                            looks += 1;
                            unheard += u32::from(now - heard >= 300_000);
                            prop_assert!(under_way.is_none_or(|since| now - since >= 3_000), "one at a time");
                            under_way = Some(now);
                        }
                    }
                    prop_assert_eq!(invariants::looks(looks, losses, luck, unheard), Ok(()));
                    continue;
                }
            }
            heard = if what == 1 { heard } else { now };
            luck += u32::from(under_way.take().is_some() && what > 1);
        }
    }
}

#[test]
fn who_was_forgotten_and_is_given_up_on_is_remembered_as_far_as_that_took() {
    let load = Load::default();
    load.record(&answered(3_000), at(0));
    let known = |now| {
        let known = load.latency(now).expect("it has answered");
        (known.then.exp() / 1e6, known.now.exp() / 1e6)
    };
    let is = |(then, now): (f32, f32), expected: (f32, f32)| {
        assert!(
            (then - expected.0).abs() < 1.0 && (now - expected.1).abs() < 1.0,
            "{then} {now}, {expected:?}"
        );
    };
    is(known(at(30_000)), (3_000.0, 149.4));
    load.outlasted(MS(140), at(30_000));
    is(known(at(30_000)), (3_000.0, 149.4));
    load.outlasted(MS(400), at(30_000));
    is(known(at(30_000)), (3_000.0, 400.0));
    is(known(at(40_000)), (3_000.0, 147.2));
    load.outlasted(MS(3_000), at(40_000));
    is(known(at(40_000)), (3_000.0, 3_000.0));
}

proptest! {
    /// Whatever was known, whenever, and however long it was waited for.
    #[test]
    fn nobody_is_quicker_for_being_given_up_on(
        steps in prop::collection::vec((0u64..200_000, 1u64..10_000, any::<bool>()), 1..40),
    ) {
        let load = Load::default();
        let mut now = 1;
        for (pause, millis, is_given_up) in steps {
            now += pause;
            let before = load.latency(at(now));
            if !is_given_up {
                load.record(&answered(millis), at(now));
                continue;
            }
            load.outlasted(MS(millis), at(now));
            let after = load.latency(at(now)).expect("it is known to take longer");
            if let Some(before) = before {
                prop_assert!(after.then >= before.then && after.now >= before.now - 1e-3, "{before:?} {after:?}");
                prop_assert!(after.now >= sample(MS(millis)).min(before.then) - 1e-3, "{millis} ms: {after:?}");
            }
        }
    }
}

/// Of two idle endpoints the one whose first answer took a connection longer would else be left alone for half a minute.
#[test]
fn quick_answers_are_alike() {
    let (first, other) = (Load::default(), Load::default());
    first.record(&answered(9), at(0));
    other.record(&answered(1), at(0));
    assert_eq!(first.ln_latency(at(5)), other.ln_latency(at(5)));
    first.record(&answered(500), at(10));
    assert!(first.ln_latency(at(10)) > other.ln_latency(at(10)));
}

#[test]
fn what_was_given_up_says_that_it_takes_longer_and_never_that_it_is_quick() {
    let load = Load::default();
    load.outlasted(Duration::from_millis(500), at(0));
    let known = load.ln_latency(at(0)).expect("something is known");
    load.outlasted(Duration::from_millis(20), at(1_000));
    assert!(load.ln_latency(at(1_000)).unwrap() >= known - 0.11, "no quicker for being given up sooner");
    load.outlasted(Duration::from_secs(5), at(2_000));
    assert!(load.ln_latency(at(2_000)).unwrap() > known, "slower for being waited for longer");
    assert!(!load.is_passed_by(at(2_000)) && !load.fails(at(2_000)), "it has not failed");
    let failed = Load::default();
    failed.record(&Answer::new(AttemptOutcome::Failure, Duration::ZERO), at(0));
    failed.outlasted(Duration::from_secs(1), at(10));
    assert!(failed.is_passed_by(at(10)), "nor is it well now");
}
