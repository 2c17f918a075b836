//! What a hop spends its time on before the attempt that is answered is not the way's, nor the application's.

use meshwork_messages::v1::Held;

use super::*;

const MS: u64 = 1_000_000;

/// An attempt by its beginning and time, in milliseconds.
fn attempt(start: u64, took: u64, cause: &str) -> Attempt {
    Attempt {
        start_ns: start * MS,
        duration_ns: took * MS,
        cause: cause.to_owned(),
        connect_ns: Some(0),
        instance: "cart-1".to_owned(),
        spiffe_id: id("cart").to_string(),
        ..Attempt::default()
    }
}

/// A call of cart that took so long for its usual 6 ms, with what else is known of it.
fn call(took: u64, attempts: Vec<Attempt>, held: &[(&str, u64, &str)]) -> Vec<Observed> {
    let mut hops = vec![hop("edge", Side::Gateway, 1_000, "cart", |is| {
        is.kept = "slow".to_owned();
        is.duration_ns = took * MS;
        is.usual_ns = Some(6 * MS);
        is.held = held
            .iter()
            .map(|(phase, ms, by)| Held { phase: (*phase).to_owned(), ns: ms * MS, by: (*by).to_owned() })
            .collect();
    })];
    hops[0].observation.attempts = attempts;
    hops
}

/// The same, and the called side, which took 4 ms of it for its usual 5.
fn answered(mut hops: Vec<Observed>, after: u64) -> Vec<Observed> {
    hops.push(hop("cart", Side::Inbound, 1_000 + after, "cart", |is| {
        is.kept = "sampled".to_owned();
        is.duration_ns = 4 * MS;
        (is.own_ns, is.usual_ns, is.usual_own_ns) = (Some(4 * MS), Some(5 * MS), Some(5 * MS));
        from("edge")(is);
    }));
    hops
}

fn without_usual(mut hops: Vec<Observed>) -> Vec<Observed> {
    at(&mut hops, 0).usual_ns = None;
    hops
}

fn who_and_why(hops: Vec<Observed>) -> (Who, String) {
    let (who, service, why) = blamed(hops).unwrap();
    assert!(who == Who::Mesh || service.as_deref() == Some("shop/cart:80"), "{service:?}");
    (who, why)
}

#[test]
fn an_injected_delay_is_the_policy_s() {
    let policy = "TrafficPolicy shop/trial (shop.yaml:7)";
    let hops = call(1_006, vec![attempt(1_000, 5, "")], &[("fault", 1_000, policy)]);
    let (who, why) = who_and_why(hops.clone());
    assert_eq!(who, Who::Configuration);
    assert_eq!(
        why,
        "calling shop/cart:80 took 1006 ms, usually 6.0 ms; 1000 ms of it injected by TrafficPolicy shop/trial (shop.yaml:7)"
    );
    assert_eq!(
        who_and_why(answered(hops.clone(), 1_001)).1,
        "calling shop/cart:80 took 1002 ms beside its answer, usually 1.0 ms; 1000 ms of it injected by TrafficPolicy shop/trial (shop.yaml:7)"
    );
    let (who, why) = who_and_why(without_usual(hops));
    assert_eq!(who, Who::Configuration);
    assert_eq!(
        why,
        "shop/cart:80 took 1006 ms, 1000 ms of it injected by TrafficPolicy shop/trial (shop.yaml:7)"
    );
}

#[test]
fn a_first_attempt_that_hung_is_not_the_way_to_the_second_one() {
    let attempts = vec![attempt(0, 1_000, "per_try_timeout"), attempt(1_001, 4, "")];
    let (who, why) = who_and_why(answered(call(1_006, attempts.clone(), &[]), 1_002));
    assert_eq!(who, Who::Service);
    assert_eq!(
        why,
        "calling shop/cart:80 took 1002 ms beside its answer, usually 1.0 ms; 1000 ms of it in attempts that came to nothing"
    );
    // So does the first of two that ran beside each other, until the second began.
    let attempts = vec![attempt(0, 1_005, "hedge_lost"), attempt(900, 100, "")];
    assert!(
        who_and_why(call(1_006, attempts, &[])).1.ends_with("900 ms of it in attempts that came to nothing")
    );
    // A second one that lost cost nothing.
    let attempts = vec![attempt(0, 1_005, ""), attempt(900, 105, "hedge_lost")];
    assert_eq!(who_and_why(call(1_006, attempts, &[])).1, "shop/cart:80 took 1006 ms, usually 6.0 ms");
    // Nor did one that failed while the first was waited for.
    for cause in ["connect_failure", ""] {
        let attempts = vec![attempt(0, 1_005, ""), attempt(900, 5, cause)];
        assert_eq!(who_and_why(call(1_006, attempts, &[])).1, "shop/cart:80 took 1006 ms, usually 6.0 ms");
    }
}

#[test]
fn back_off_is_told_from_the_attempts_around_it() {
    let attempts = vec![attempt(0, 2, ""), attempt(600, 2, ""), attempt(1_000, 5, "")];
    let (who, why) = who_and_why(call(1_006, attempts, &[]));
    assert_eq!(who, Who::Service);
    assert_eq!(why, "calling shop/cart:80 took 1006 ms, usually 6.0 ms; 996 ms of it between attempts");
}

#[test]
fn waiting_for_a_connection_is_told_from_waiting_for_the_answer() {
    let connected = |ms: u64| {
        let mut attempt = attempt(0, 1_005, "");
        attempt.connect_ns = Some(ms * MS);
        who_and_why(call(1_006, vec![attempt], &[])).1
    };
    assert_eq!(
        connected(950),
        "calling shop/cart:80 took 1006 ms, usually 6.0 ms; 950 ms of it until there was a connection"
    );
    assert_eq!(connected(100), "shop/cart:80 took 1006 ms, usually 6.0 ms", "it was not the most");
}

#[test]
fn a_queue_and_the_control_plane_are_told_from_the_service() {
    let of =
        |phase: &str, by: &str| who_and_why(call(1_006, vec![attempt(1_000, 5, "")], &[(phase, 1_000, by)]));
    let (who, why) = of("overload", "TrafficPolicy shop/gate");
    assert_eq!(
        (who, why.ends_with("; 1000 ms of it in the queue of TrafficPolicy shop/gate")),
        (Who::Service, true)
    );
    let (who, why) = of("discover", "");
    assert_eq!(
        (who, why.ends_with("; 1000 ms of it until the control plane had told of it")),
        (Who::Mesh, true)
    );
}

#[test]
fn what_several_calls_waited_for_counts_together() {
    let calls = |n: u64| {
        let mut hops = vec![hop("edge", Side::Gateway, 1_000, "front", |is| {
            is.kept = "slow".to_owned();
            (is.duration_ns, is.usual_ns) = (n * 300 * MS, Some(20 * MS));
        })];
        hops.push(hop("front", Side::Inbound, 1_000, "front", |is| {
            is.kept = "slow".to_owned();
            (is.duration_ns, is.own_ns) = (n * 300 * MS, Some(MS));
            (is.usual_ns, is.usual_own_ns) = (Some(20 * MS), Some(MS));
            from("edge")(is);
        }));
        hops[0].observation.attempts[0].instance = "front-1".to_owned();
        for call_ in 0..n {
            let mut one =
                call(290, vec![attempt(280, 5, "")], &[("fault", 280, "TrafficPolicy shop/trial")]).remove(0);
            let is = one.observation.record.as_mut().unwrap();
            is.side = Side::Outbound.into();
            is.start_unix_ns = (1_001 + call_ * 295) * MS;
            one.proxy = hops[1].proxy.clone();
            hops.push(one);
        }
        who_and_why(hops).1
    };
    assert_eq!(
        calls(3),
        "calling shop/cart:80 took 870 ms in 3 calls, usually 18 ms; 840 ms of it injected by TrafficPolicy shop/trial"
    );
}
