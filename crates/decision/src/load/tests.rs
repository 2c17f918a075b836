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

#[test]
fn who_was_far_slower_is_asked_now_and_then() {
    let load = Load::default();
    load.record(&answered(3_000), at(0));
    let looks = |from: u64, picks: usize| (0..picks).filter(|_| load.looks(at(from))).count();
    assert_eq!(looks(60_000, 199), 0);
    assert_eq!(looks(60_000, 201), 2, "every two hundredth time");
    assert_eq!(looks(299_999, 1), 0);
    assert_eq!(looks(300_000, 1), 1, "long unheard of");
    load.record(&answered(3_000), at(300_001));
    assert_eq!(looks(300_001, 199), 0, "counted from the last look");
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
    assert!(load.is_resting(at(2_999)) && !load.is_resting(at(3_001)));
    load.record(&busy(1), at(100));
    assert!(load.is_resting(at(2_999)), "the later of two words counts");
    load.record(&busy(86_400), at(3_000));
    assert!(load.is_resting(at(62_999)) && !load.is_resting(at(63_001)));
    assert!(load.wants_rest(at(62_999)) && !load.wants_rest(at(63_001)));
    load.record(&failed(1), at(64_000));
    assert!(load.is_resting(at(64_001)) && !load.wants_rest(at(64_001)), "nobody has asked for this one");
}

#[test]
fn another_instance_begins_anew() {
    let load = Load::default();
    load.record(&answered(100), at(0));
    load.record(&failed(1), at(1));
    load.forget();
    assert!(!load.is_resting(at(1)) && !load.has_failed() && load.ln_latency(at(1)).is_none());
}

#[test]
fn another_instance_was_not_passed_over() {
    let load = Load::default();
    load.record(&answered(3_000), at(0));
    assert!((0..199).all(|_| !load.looks(at(1))));
    load.forget();
    load.record(&answered(3_000), at(2));
    assert!(!load.looks(at(3)));
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
