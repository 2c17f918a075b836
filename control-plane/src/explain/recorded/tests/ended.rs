//! What a failure is called when time was over: as the log of whoever ended it says, and so does its client's answer.

use super::*;

/// The service that is named, and by which cause, as who says.
fn named(hops: Vec<Observed>) -> (Option<String>, Option<String>, String) {
    let gathered = Gathered::of(hops);
    let blame = blame(gathered.hops(), &gathered.parents()).unwrap();
    (blame.service, blame.cause, blame.proxy)
}

fn ratings(cause: &str, by: &str) -> (Option<String>, Option<String>, String) {
    (Some("shop/ratings:80".to_owned()), Some(cause.to_owned()), format!("shop/{by}-1"))
}

#[test]
fn a_hop_that_was_cut_by_the_one_before_it_is_called_by_whose_time_was_over() {
    for cause in ["request_timeout", "deadline_exceeded", "max_stream_duration", "stream_idle_timeout"] {
        for cut in ["downstream_reset", "downstream_closed"] {
            let mut hops = chain();
            fails(at(&mut hops, 1), cause, 504);
            for hop in [0, 2, 3] {
                fails(at(&mut hops, hop), cut, 0);
            }
            assert_eq!(named(hops), ratings(cause, "edge"));
        }
        let mut hops = chain();
        fails(at(&mut hops, 1), cause, 504);
        assert_eq!(named(hops), ratings(cause, "edge"), "those below went well, only late");
    }
}

#[test]
fn whoever_hears_that_its_caller_s_time_is_over_has_not_ended_it() {
    let mut hops = chain();
    fails(at(&mut hops, 1), "request_timeout", 504);
    for hop in [0, 2, 3] {
        fails(at(&mut hops, hop), "deadline_exceeded", 504);
    }
    assert_eq!(named(hops.clone()), ratings("request_timeout", "edge"));
    for hop in [0, 2] {
        at(&mut hops, hop).duration_ns = 40_000_000;
    }
    assert_eq!(named(hops), ratings("deadline_exceeded", "reviews"), "the application gave less time");
    let mut hops = chain();
    fails(at(&mut hops, 2), "request_timeout", 504);
    fails(at(&mut hops, 0), "deadline_exceeded", 504);
    fails(at(&mut hops, 3), "", 502);
    fails(at(&mut hops, 1), "", 502);
    assert_eq!(named(hops.clone()), ratings("request_timeout", "reviews"));
    assert_eq!(
        blamed(hops).unwrap().2,
        "the application of shop/ratings:80 had not answered after 100 ms, when its caller gave up"
    );
}

#[test]
fn a_client_that_left_is_told_by_the_proxy_that_it_left() {
    let mut hops = chain();
    fails(at(&mut hops, 1), "downstream_closed", 0);
    for hop in [0, 2, 3] {
        fails(at(&mut hops, hop), "downstream_reset", 0);
    }
    assert_eq!(named(hops), ratings("downstream_closed", "edge"));
}

#[test]
fn an_application_that_gave_up_a_call_by_itself_is_who_ended_it() {
    let mut hops = chain();
    fails(at(&mut hops, 1), "", 500);
    fails(at(&mut hops, 3), "", 500);
    fails(at(&mut hops, 2), "downstream_closed", 0);
    fails(at(&mut hops, 0), "downstream_reset", 0);
    assert_eq!(named(hops.clone()), ratings("downstream_closed", "reviews"));
    // It had done so long before it was given up itself.
    fails(at(&mut hops, 1), "request_timeout", 504);
    fails(at(&mut hops, 3), "downstream_reset", 0);
    for hop in [0, 2] {
        at(&mut hops, hop).duration_ns = 40_000_000;
    }
    assert_eq!(named(hops), ratings("downstream_closed", "reviews"));
}

#[test]
fn what_the_callee_s_proxy_answers_by_itself_is_told_by_its_cause() {
    for (cause, status, who) in [
        ("upstream_protocol_error", 502, Who::Service),
        ("authorization_denied", 403, Who::Configuration),
        ("unknown_app_port", 404, Who::Configuration),
    ] {
        let mut hops = chain();
        fails(at(&mut hops, 1), "", status);
        fails(at(&mut hops, 3), cause, status);
        hops = vec![hops.remove(3), hops.remove(1)];
        assert_eq!(blamed(hops.clone()).unwrap().0, who);
        let (_, named, proxy) = named(hops);
        assert_eq!((named.as_deref(), &*proxy), (Some(cause), "shop/reviews-1"));
    }
}

#[test]
fn a_call_that_was_given_up_since_another_had_failed_is_not_to_blame() {
    let mut hops = chain();
    hops.push(hop("stars", Side::Inbound, 6, "stars", from("reviews")));
    hops.push(hop("reviews", Side::Outbound, 5, "stars", |_| {}));
    for hop in [1, 3] {
        fails(at(&mut hops, hop), "", 500);
    }
    for hop in [0, 2] {
        fails(at(&mut hops, hop), "", 503);
    }
    for hop in [4, 5] {
        fails(at(&mut hops, hop), "downstream_reset", 0);
    }
    let (service, cause, _) = named(hops);
    assert_eq!((service.as_deref(), cause), (Some("shop/ratings:80"), None));
}
