//! What has not ended when somebody asks.

use meshwork_messages::{RECORD, UNDER_WAY};
use meshwork_xds::server::Proxy;

use super::super::of_ended_alone;
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

/// Whether what is told of them is a fault.
fn is_fault(hops: &[Observed]) -> bool {
    let gathered = Gathered::of(hops.to_vec());
    blame(gathered.hops(), &gathered.parents()).unwrap().is_fault
}

#[test]
fn who_is_waited_for_is_at_fault_when_it_lasts_longer_than_it_ordinarily_does() {
    let usually = |ms: u64| {
        let mut hops = chain();
        for hop in 0..4 {
            at(&mut hops, hop).usual_ns = Some(5_000_000_000);
            lasts(&mut hops, hop, ms);
        }
        hops
    };
    for (ms, beyond) in [(3, false), (6_249, false), (6_250, true)] {
        let hops = usually(ms);
        assert_eq!(is_fault(&hops), beyond, "{ms}");
        let (_, service, why) = blamed(hops).unwrap();
        assert_eq!(service.as_deref(), Some("shop/ratings:80"), "{ms}");
        assert_eq!(why.ends_with("; such calls usually take 5000 ms"), beyond, "{why}");
    }
    // Where nothing is known to be usual it may be so.
    let mut hops = chain();
    (0..4).for_each(|hop| lasts(&mut hops, hop, 500_000));
    assert!(!is_fault(&hops));
    // Nor is it known how long a stream is to be.
    for phase in ["response", "tunnel"] {
        let mut hops = usually(500_000);
        (0..4).for_each(|hop| phase.clone_into(&mut at(&mut hops, hop).phase));
        assert!(!is_fault(&hops), "{phase}");
    }
    // What has failed has failed.
    let mut hops = usually(3);
    fails(at(&mut hops, 1), "downstream_closed", 0);
    assert!(is_fault(&hops));
}

#[test]
fn a_call_of_which_it_is_not_known_what_it_was_made_for_is_told_so_and_is_no_fault() {
    let mut hops = chain();
    lasts(&mut hops, 2, 60_000);
    lasts(&mut hops, 0, 59_998);
    let hops = vec![hops[0].clone(), hops[2].clone()];
    assert!(!is_fault(&hops));
    let why = blamed(hops).unwrap().2;
    assert!(why.ends_with("; what it was made for has ended well, or is not known"), "{why}");
}

#[test]
fn who_has_been_answered_by_all_is_waited_for_itself() {
    let mut hops = chain();
    for hop in [1, 3] {
        lasts(&mut hops, hop, 10_000);
    }
    for hop in [0, 2] {
        at(&mut hops, hop).duration_ns = 6_000_000_000;
        at(&mut hops, hop).kept = "sampled".to_owned();
    }
    let (_, service, why) = blamed(hops.clone()).unwrap();
    assert_eq!(service.as_deref(), Some("shop/reviews:80"), "{why}");
    // One that it has called since is waited for by it.
    hops.push(hop("reviews", Side::Outbound, 4_000, "stars", |_| {}));
    lasts(&mut hops, 4, 6_002);
    assert_eq!(blamed(hops).unwrap().1.as_deref(), Some("shop/stars:80"));
}

#[test]
fn the_call_that_is_named_is_one_of_its_own_and_none_that_was_made_for_that() {
    let mut hops = chain();
    for hop in [1, 3] {
        fails(at(&mut hops, hop), "", 500);
    }
    lasts(&mut hops, 2, 5_000);
    lasts(&mut hops, 0, 5_002);
    // Told a moment later than the others.
    hops.push(hop("ratings", Side::Outbound, 5, "stars", |_| {}));
    lasts(&mut hops, 4, 5_100);
    let why = blamed(hops).unwrap().2;
    assert!(why.ends_with("; its call of shop/ratings:80 has not ended after 5000 ms"), "{why}");
}

#[test]
fn between_two_attempts_it_is_said_what_the_last_came_to() {
    let told = |status: u32, cause: &str| {
        let mut hops = vec![hop("edge", Side::Gateway, 1, "reviews", |_| {})];
        lasts(&mut hops, 0, 900);
        let attempt = &mut hops[0].observation.attempts[0];
        (attempt.status, attempt.cause, attempt.duration_ns) = (status, cause.to_owned(), 100_000_000);
        blamed(hops).unwrap().2
    };
    let end = "and its caller has waited for 800 ms by now to try again: its call has not ended";
    assert_eq!(told(503, ""), format!("shop/reviews:80 answered 503, {end}"));
    assert_eq!(told(0, "connect_failure"), format!("calling shop/reviews:80 failed: connect_failure, {end}"));
    assert!(told(0, "").starts_with("shop/reviews:80 has not answered for 900 ms"), "one runs");
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
    let kept_by_its_caller = |change: fn(&mut RequestRecord)| {
        let mut hops = vec![hop("edge", Side::Gateway, 1, "reviews", |_| {})];
        lasts(&mut hops, 0, 900);
        change(at(&mut hops, 0));
        blamed(hops).unwrap()
    };
    let what = "its caller has not sent all of a request to shop/reviews:80";
    let owed = kept_by_its_caller(|is| is.owed = true);
    assert_eq!(owed, (Who::Caller, None, format!("{what} {end}")));
    let what = "its caller does not read what there is of the answer of shop/reviews:80";
    let unread = kept_by_its_caller(|is| (is.unread, is.phase) = (true, "response".to_owned()));
    assert_eq!(unread, (Who::Caller, None, format!("{what} {end}")));
    // Of a call of gRPC nobody knows whose turn it is.
    let what = "its caller may send more of a request that shop/reviews:80 has not answered";
    let (who, _, why) = kept_by_its_caller(|is| is.open = true);
    assert_eq!((who, why), (Who::Service, format!("{what} {end}")));
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

#[test]
fn whoever_keeps_what_has_ended_and_tells_of_nothing_else_is_named() {
    let proxy = |id: &str, features: &[&str], connected| Proxy {
        node: Node {
            id: id.to_owned(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            ..Node::default()
        },
        connected,
        ..Proxy::default()
    };
    let all = vec![
        proxy("new", &[RECORD, UNDER_WAY], true),
        proxy("old", &[RECORD], true),
        proxy("gone", &[RECORD], false),
        // It is named for that already.
        proxy("keeps nothing", &[], true),
    ];
    assert_eq!(of_ended_alone(all), ["old"]);
}
