//! What a hedge that was answered made superfluous is nobody's fault.

use super::*;

/// edge → reviews, of which the first instance was slow and is cut off, since the second one had answered.
fn hedged(kept: &str, second: &str) -> Vec<Observed> {
    let mut caller = hop("edge", Side::Gateway, 1, "reviews", |is| is.kept = kept.to_owned());
    let to = |instance: &str, cause: &str| Attempt {
        instance: instance.to_owned(),
        spiffe_id: id("reviews").to_string(),
        cause: cause.to_owned(),
        duration_ns: 99_000_000,
        ..Attempt::default()
    };
    let won = Attempt { start_ns: 90_000_000, duration_ns: 9_000_000, ..to("reviews-2", second) };
    caller.observation.attempts = vec![to("reviews-1", "hedge_lost"), won];
    let lost = hop("reviews", Side::Inbound, 2, "reviews", |is| {
        from("edge")(is);
        fails(is, "downstream_reset", 0);
    });
    vec![caller, lost]
}

#[test]
fn a_request_that_a_hedge_has_saved_names_no_fault() {
    assert_eq!(blamed(hedged("sample", "")), None);
    let mut hops = hedged("sample", "");
    let mut deeper = hop("reviews", Side::Outbound, 3, "ratings", |_| {});
    fails(deeper.observation.record.as_mut().unwrap(), "downstream_reset", 0);
    hops.push(deeper);
    assert_eq!(blamed(hops), None, "nor is it what the lost one had called");
}

#[test]
fn a_request_that_was_slow_in_spite_of_its_hedge_tells_of_the_attempts_and_nobody_who_left() {
    let (who, service, why) = blamed(hedged("slow", "")).unwrap();
    assert_eq!((who, service.as_deref()), (Who::Service, Some("shop/reviews:80")));
    assert_eq!(why, "shop/reviews:80 took 100 ms, 90 ms of it in attempts that came to nothing");
}

#[test]
fn a_hop_that_was_cut_beside_other_failures_of_its_instance_may_be_one_of_these() {
    let mut hops = hedged("failed", "");
    fails(at(&mut hops, 0), "request_timeout", 504);
    hops[0].observation.attempts[1] = Attempt {
        instance: "reviews-1".to_owned(),
        spiffe_id: id("reviews").to_string(),
        cause: "request_timeout".to_owned(),
        ..Attempt::default()
    };
    let (_, service, why) = blamed(hops).unwrap();
    assert_eq!(service.as_deref(), Some("shop/reviews:80"));
    assert_eq!(
        why,
        "the application of shop/reviews:80 had not answered after 100 ms, when its caller gave up"
    );
}
