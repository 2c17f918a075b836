//! What has not ended when somebody asks.

use super::*;

/// The hop has lasted so long when it is asked.
fn lasts(hops: &mut [Observed], hop: usize, ms: u64) {
    let record = at(hops, hop);
    record.duration_ns = ms * 1_000_000;
    (record.under_way, record.status, record.kept) = (true, 0, String::new());
    "request".clone_into(&mut record.phase);
}

#[test]
fn who_is_waited_for_is_named_and_not_who_waits_when_the_caller_has_left() {
    // The edge and the inbound side of reviews have ended with the client; the call goes on.
    let mut hops = chain();
    for hop in [1, 3] {
        fails(at(&mut hops, hop), "downstream_closed", 0);
    }
    lasts(&mut hops, 2, 21_034);
    lasts(&mut hops, 0, 21_030);
    let (who, service, why) = blamed(hops.clone()).unwrap();
    assert_eq!((who, service.as_deref()), (Who::Service, Some("shop/ratings:80")));
    assert_eq!(
        why,
        "the application of shop/ratings:80 has not answered for 21030 ms by now: its call has not ended"
    );
    let gathered = Gathered::of(hops.clone());
    let blame = blame(gathered.hops(), &gathered.parents()).unwrap();
    assert!(blame.under_way, "nobody is sure yet");
    assert_eq!((blame.proxy.as_str(), blame.cause.as_deref()), ("shop/edge-1", Some("downstream_closed")));
    // Where the called service has no proxy its caller tells.
    hops.remove(0);
    assert_eq!(
        blamed(hops).unwrap().2,
        "shop/ratings:80 has not answered for 21034 ms by now: its call has not ended"
    );
}

#[test]
fn a_request_of_which_nothing_has_ended_waits_for_the_last_one() {
    let mut hops = chain();
    // Each tells by its own clock, and one a moment after the other.
    for (hop, ms) in [(0, 20_002), (1, 20_000), (2, 20_005), (3, 19_998)] {
        lasts(&mut hops, hop, ms);
    }
    assert_eq!(blamed(hops.clone()).unwrap().1.as_deref(), Some("shop/ratings:80"));
    // It has begun its call just now, and worked by itself until then.
    for hop in [0, 2] {
        at(&mut hops, hop).start_unix_ns = 19_990_000_000;
        lasts(&mut hops, hop, 8);
    }
    let (_, service, why) = blamed(hops).unwrap();
    assert_eq!(service.as_deref(), Some("shop/reviews:80"));
    assert!(why.starts_with("the application of shop/reviews:80 has not answered for 19998 ms"), "{why}");
}

#[test]
fn who_has_failed_by_itself_is_told_with_the_call_that_it_may_have_failed_for() {
    let mut hops = chain();
    fails(at(&mut hops, 1), "", 500);
    fails(at(&mut hops, 3), "", 500);
    lasts(&mut hops, 2, 5_000);
    lasts(&mut hops, 0, 4_998);
    let (_, service, why) = blamed(hops).unwrap();
    assert_eq!(service.as_deref(), Some("shop/reviews:80"));
    assert_eq!(
        why,
        "the application of shop/reviews:80 answered 500; its call of shop/ratings:80 has not ended after 5000 ms"
    );
}

#[test]
fn a_call_that_goes_on_after_a_good_answer_is_nobodys_fault() {
    let mut hops = chain();
    for hop in [1, 3] {
        at(&mut hops, hop).kept = "sampled".to_owned();
    }
    lasts(&mut hops, 2, 5_000);
    lasts(&mut hops, 0, 4_998);
    assert_eq!(blamed(hops), None);
}

#[test]
fn beside_an_attempt_that_has_failed_the_one_that_is_under_way_is_waited_for() {
    let mut hops = chain();
    for (hop, ms) in [(0, 9_000), (1, 9_100), (2, 9_002), (3, 9_050)] {
        lasts(&mut hops, hop, ms);
    }
    hops.push(hop("reviews", Side::Outbound, 3, "stars", |record| {
        fails(record, "upstream_reset", 503);
        record.duration_ns = 5_000_000;
    }));
    assert_eq!(blamed(hops).unwrap().1.as_deref(), Some("shop/ratings:80"));
}

#[test]
fn what_holds_a_request_is_told_by_where_it_is() {
    let told = |phase: &str| {
        let mut hops = vec![hop("edge", Side::Gateway, 1, "reviews", |_| {})];
        lasts(&mut hops, 0, 900);
        phase.clone_into(&mut at(&mut hops, 0).phase);
        let (who, _, why) = blamed(hops).unwrap();
        (who, why)
    };
    let end = "for 900 ms by now: its call has not ended";
    let mut owed = vec![hop("edge", Side::Gateway, 1, "reviews", |_| {})];
    lasts(&mut owed, 0, 900);
    at(&mut owed, 0).owed = true;
    let (who, service, why) = blamed(owed).unwrap();
    let what = "its caller has not sent all of a request to shop/reviews:80";
    assert_eq!((who, service, why), (Who::Caller, None, format!("{what} {end}")));
    for (phase, who, what) in [
        ("request", Who::Service, "shop/reviews:80 has not answered"),
        ("response", Who::Service, "the answer of shop/reviews:80 has not ended"),
        ("connect", Who::Service, "there is no connection to shop/reviews:80"),
        ("overload", Who::Service, "a call waits in the queue of shop/reviews:80"),
        ("fault", Who::Configuration, "a policy's delay holds a call of shop/reviews:80"),
        ("tunnel", Who::Service, "a tunnel to shop/reviews:80 is open"),
    ] {
        assert_eq!(told(phase), (who, format!("{what} {end}")), "{phase}");
    }
}
