use proptest::prelude::*;

use super::*;

fn limit(requests: u32, burst: u32, fair_share: bool) -> RateLimit {
    let spec = RateSpec { requests, per: Duration::from_secs(1), burst, fair_share, shadow: false };
    RateLimit::new(Arc::default(), spec)
}

/// A moment after the start of the clock, where nothing has happened yet.
fn at(millis: u64) -> Tick {
    Tick::from_nanos((1_000 + millis) * 1_000_000)
}

#[test]
fn a_burst_passes_at_once_and_then_the_rate() {
    let limit = limit(10, 3, false);
    let admitted = |millis| limit.ask("", at(millis)).admitted;
    assert_eq!([admitted(0), admitted(0), admitted(0), admitted(0)], [true, true, true, false]);
    assert_eq!([admitted(99), admitted(100), admitted(101)], [false, true, false]);
    // After a pause the burst is there again, and no more than it.
    let again: Vec<_> = (0..4).map(|_| admitted(10_000)).collect();
    assert_eq!(again, [true, true, true, false]);
}

#[test]
fn who_asks_is_told_what_is_left_and_when_to_come_again() {
    let limit = limit(10, 2, false);
    let told = |millis| {
        let Allowance { admitted, remaining, reset, retry_after } = limit.ask("", at(millis));
        (admitted, remaining, reset.as_millis(), retry_after.as_millis())
    };
    assert_eq!(told(0), (true, 1, 100, 0));
    assert_eq!(told(0), (true, 0, 200, 0));
    assert_eq!(told(40), (false, 0, 160, 60));
    assert_eq!(told(100), (true, 0, 200, 0), "who comes when told is let in");
}

#[test]
fn a_caller_within_its_share_is_not_refused_for_one_that_asks_for_everything() {
    let limit = limit(100, 20, true);
    let (mut modest, mut refused, mut greedy) = (0, 0, 0);
    for millis in 0..20_000 {
        // 1,000 a second against 40: the share is 50.
        greedy += u32::from(limit.ask("greedy", at(millis)).admitted);
        if millis % 25 == 0 && millis > 2_000 {
            modest += 1;
            refused += u32::from(!limit.ask("modest", at(millis)).admitted);
        }
    }
    assert_eq!(refused, 0, "of {modest}, the first one too");
    // It has what the other leaves, and no more: 100 a second for 2 s, then 60.
    assert!((1_200..=1_320).contains(&greedy), "{greedy}");
}

#[test]
fn what_others_leave_of_a_small_burst_is_lent() {
    for burst in [1, 2, 3] {
        let limit = limit(100, burst, true);
        let (mut modest, mut refused, mut greedy) = (0, 0, 0);
        for millis in 0..20_000 {
            greedy += u32::from(limit.ask("greedy", at(millis)).admitted);
            if millis % 25 == 0 && millis > 2_000 {
                modest += 1;
                refused += u32::from(!limit.ask("modest", at(millis)).admitted);
            }
        }
        // 100 a second for 2 s, then what the other does not take: 60, of a share of 50.
        assert!((1_200..=1_330).contains(&greedy) || burst == 1, "burst {burst}: {greedy}");
        assert!(greedy > 1_150, "burst {burst}: {greedy}");
        // Nothing can be kept of a burst of one.
        assert!(refused == 0 || burst == 1, "burst {burst}: {refused} of {modest}");
    }
}

#[test]
fn what_callers_are_told_is_in_whole_seconds_that_are_not_too_short() {
    let seconds = [0, 1_000, 1_001].map(|millis| whole_seconds(Duration::from_millis(millis)));
    assert_eq!(seconds, [0, 1, 2]);
    let spec = RateSpec { per: Duration::from_millis(1_500), ..limit(10, 1, false).spec };
    let text = RateLimit::new(Arc::default(), spec).text;
    assert!(text.policy.ends_with("q=13;w=2"), "as many as pass in two seconds: {}", text.policy);
}

#[test]
fn a_caller_alone_has_the_whole_limit() {
    let limit = limit(100, 10, true);
    let admitted: u32 = (0..10_000).map(|millis| u32::from(limit.ask("alone", at(millis)).admitted)).sum();
    assert!((990..=1_020).contains(&admitted), "{admitted}");
}

#[test]
fn who_has_stopped_asking_is_not_divided_with() {
    let limit = limit(100, 10, true);
    limit.ask("gone", at(0));
    let from =
        |start| (start..start + 1_000).map(|m| u32::from(limit.ask("here", at(m)).admitted)).sum::<u32>();
    from(0);
    let alone = from(2_000);
    assert!((95..=112).contains(&alone), "{alone}");
}

proptest! {
    /// Whoever asks, however: no more than the burst and the rate.
    #[test]
    fn no_more_than_burst_and_rate_pass(
        requests in 1..500_u32,
        burst in 1..50_u32,
        fair_share: bool,
        asks in prop::collection::vec((0..200_u64, 0..5_u8), 1..400),
    ) {
        let limit = limit(requests, burst, fair_share);
        let (mut now, mut admitted) = (0, 0_u64);
        let mut first = None;
        for (pause, caller) in asks {
            now += pause;
            if limit.ask(caller.to_string().as_str(), at(now)).admitted {
                admitted += 1;
                first.get_or_insert(now);
            }
            let since = now - first.unwrap_or(now);
            let bound = u64::from(burst) + since * u64::from(requests) / 1_000 + 1;
            prop_assert!(admitted <= bound, "{admitted} of {bound} after {since} ms");
        }
    }

    /// Who comes when told to, alone, is let in.
    #[test]
    fn retry_after_is_true(requests in 1..500_u32, burst in 1..10_u32, asks in 1..60_u32, fair_share: bool) {
        let limit = limit(requests, burst, fair_share);
        let mut now = at(0);
        for _ in 0..asks {
            let told = limit.ask("", now);
            if !told.admitted {
                now = now.after(told.retry_after);
                prop_assert!(limit.ask("", now).admitted);
            }
        }
    }
}

/// So many requests of a caller at one moment: how many are admitted, and what the first that is not is told.
fn at_once(limit: &RateLimit, caller: &str, times: u32, millis: u64) -> (u32, Option<Allowance>) {
    let told: Vec<_> = (0..times).map(|_| limit.ask(caller, at(millis))).collect();
    let admitted = told.iter().filter(|told| told.admitted).count();
    (u32::try_from(admitted).unwrap(), told.into_iter().find(|told| !told.admitted))
}

#[test]
fn who_is_beyond_its_share_leaves_half_of_the_burst_and_hears_of_nothing_that_it_could_have() {
    let limit = limit(100, 20, true);
    assert!(limit.ask("modest", at(0)).admitted);
    let (greedy, refused) = at_once(&limit, "greedy", 100, 0);
    assert_eq!(greedy, 10, "its half, and none of what was left");
    let refused = refused.expect("ninety were");
    assert_eq!((refused.remaining, refused.retry_after), (0, Duration::from_millis(10)));
    assert_eq!(at_once(&limit, "modest", 100, 0).0, 9, "with the first one half of the burst");
}

#[test]
fn whoever_comes_anew_finds_one_that_those_have_left_who_ask_for_more_than_there_is() {
    for greedy in [1, 2, 5] {
        let limit = limit(20, 20, true);
        let mut admitted = 0;
        for millis in 0..4_000 {
            for caller in 0..greedy {
                admitted += u32::from(limit.ask(format!("greedy {caller}").as_str(), at(millis)).admitted);
            }
            if millis == 1_000 {
                assert!(limit.ask("passes by", at(millis)).admitted, "beside {greedy}");
            }
            if millis == 3_000 {
                assert!(limit.ask("later", at(millis)).admitted, "one is there again, beside {greedy}");
            }
        }
        // The burst and four seconds, but for what a newcomer's share is as long as it might ask for more.
        assert!((80..=98).contains(&admitted), "{admitted} beside {greedy}");
    }
}

#[test]
fn who_asked_for_too_much_once_has_the_whole_burst_again_after_a_pause() {
    let limit = limit(10, 3, true);
    let (admitted, refused) = at_once(&limit, "alone", 4, 0);
    let refused = refused.expect("one was");
    assert_eq!((admitted, refused.retry_after), (3, Duration::from_millis(200)), "one is left for others");
    assert!(limit.ask("alone", at(200)).admitted);
    assert_eq!(at_once(&limit, "alone", 4, 10_000).0, 3);
}

#[test]
fn what_a_caller_leaves_for_others_is_not_told_as_left_for_itself() {
    let limit = limit(10, 3, true);
    assert_eq!(limit.ask("alone", at(0)).remaining, 2, "so far it leaves nothing");
    at_once(&limit, "alone", 3, 0);
    let told = limit.ask("alone", at(200));
    assert_eq!((told.admitted, told.remaining), (true, 0), "one is there, for whoever else comes");
    assert!(!limit.ask("alone", at(200)).admitted, "it has been told so");
    assert!(limit.ask("another", at(200)).admitted);
}

#[test]
fn with_more_callers_than_the_burst_has_requests_each_has_one_within_its_share() {
    let limit = limit(10, 2, true);
    let at_first = ["one", "two", "three"].map(|caller| limit.ask(caller, at(0)).admitted);
    assert_eq!(at_first, [true, true, false]);
    assert!(limit.ask("one", at(900)).admitted, "nobody else has taken it");
    assert!(limit.ask("two", at(900)).admitted, "the last one of the burst is for who is within its share");
    assert!(!limit.ask("three", at(900)).admitted);
}
