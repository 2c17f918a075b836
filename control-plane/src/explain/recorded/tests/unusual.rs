//! Of what was slow, the service that took longer than it ordinarily does.

use super::*;

/// What is known of one hop, in milliseconds: what it took, and what such ordinarily take, all of it and by itself.
#[derive(Clone, Copy)]
struct Times {
    took: u64,
    own: Option<u64>,
    usual: Option<(u64, Option<u64>)>,
}

fn slow(record: &mut RequestRecord, times: &Times) {
    let ns = |ms: u64| ms * 1_000_000;
    "slow".clone_into(&mut record.kept);
    record.duration_ns = ns(times.took);
    record.own_ns = times.own.map(ns);
    record.usual_ns = times.usual.map(|(all, _)| ns(all));
    record.usual_own_ns = times.usual.and_then(|(_, own)| own).map(ns);
}

fn caller(took: u64, usual: u64) -> Times {
    Times { took, own: None, usual: Some((usual, None)) }
}

fn called(took: u64, own: u64, usual: (u64, u64)) -> Times {
    Times { took, own: Some(own), usual: Some((usual.0, Some(usual.1))) }
}

/// edge → checkout, which calls cart and then pay, each with what is known of its times.
fn shop(edge: [Times; 2], cart: [Times; 2], pay: Option<[Times; 2]>) -> Vec<Observed> {
    let mut hops = vec![
        hop("edge", Side::Gateway, 1_000, "checkout", |is| slow(is, &edge[0])),
        hop("checkout", Side::Inbound, 1_001, "checkout", |is| slow(is, &edge[1])),
        hop("checkout", Side::Outbound, 1_010, "cart", |is| slow(is, &cart[0])),
        hop("cart", Side::Inbound, 1_011, "cart", |is| slow(is, &cart[1])),
    ];
    if let Some(pay) = pay {
        hops.push(hop("checkout", Side::Outbound, 1_300, "pay", |is| slow(is, &pay[0])));
        hops.push(hop("pay", Side::Inbound, 1_301, "pay", |is| slow(is, &pay[1])));
    }
    for (hop, by) in [(1, "edge"), (3, "checkout"), (5, "checkout")] {
        if let Some(hop) = hops.get_mut(hop) {
            from(by)(hop.observation.record.as_mut().unwrap());
        }
    }
    hops
}

/// A cart that takes 105 ms for its usual 5, below a checkout that always takes 300.
fn delayed_cart() -> Vec<Observed> {
    shop([caller(407, 307), called(406, 301, (306, 300))], [caller(105, 6), called(104, 104, (5, 5))], None)
}

fn whose(hops: Vec<Observed>) -> (String, String) {
    let (_, service, why) = blamed(hops).unwrap();
    (service.unwrap(), why)
}

#[test]
fn who_took_longer_than_usual_is_named_and_not_who_always_takes_longest() {
    let (service, why) = whose(delayed_cart());
    assert_eq!(service, "shop/cart:80");
    assert_eq!(why, "the application of shop/cart:80 took 104 ms by itself, usually 5.0 ms");
    let gathered = Gathered::of(delayed_cart());
    let blame = blame(gathered.hops(), &gathered.parents()).unwrap();
    assert_eq!((blame.took_ms, blame.usual_ms, blame.at), (Some(104.0), Some(5.0), 3));
    assert_eq!(blame.proxy, "shop/cart-1");
}

#[test]
fn the_same_without_the_usual_is_where_the_time_went() {
    let mut hops = delayed_cart();
    for hop in 0..4 {
        let is = at(&mut hops, hop);
        (is.usual_ns, is.usual_own_ns) = (None, None);
    }
    assert_eq!(whose(hops).0, "shop/checkout:80");
}

#[test]
fn where_nothing_is_unusual_it_is_where_the_time_went() {
    let hops =
        shop([caller(330, 307), called(329, 323, (306, 300))], [caller(6, 6), called(5, 5, (5, 5))], None);
    let (service, why) = whose(hops);
    assert_eq!((&*service, &*why), ("shop/checkout:80", "the application of shop/checkout:80 took 329 ms"));
}

#[test]
fn where_a_proxy_has_not_kept_the_request_its_calls_tell_all_the_same() {
    let mut hops = delayed_cart();
    // The instance that was called, as its caller knows it.
    hops.remove(1);
    assert_eq!(whose(hops.clone()).0, "shop/cart:80");
    // It is called in turn by whom it has called: nobody follows from himself.
    let mut back = hop("cart", Side::Outbound, 1_012, "checkout", |is| slow(is, &caller(2, 2)));
    back.observation.record.as_mut().unwrap().kept.clear();
    hops.push(back);
    assert_eq!(whose(hops.clone()).0, "shop/cart:80");
    // What is left when they are taken off is more than what they took beyond their usual.
    at(&mut hops, 0).duration_ns = 900_000_000;
    hops.pop();
    let took = "shop/checkout:80 took 795 ms without its calls, usually 301 ms";
    assert_eq!(whose(hops), ("shop/checkout:80".to_owned(), took.to_owned()));
}

/// edge → checkout, which has kept nothing but calls: to whom, from when on, and what is known of their times.
fn beyond(edge: Times, calls: &[(&str, u64, Times)]) -> Vec<Observed> {
    let called = calls.iter().map(|(service, start, times)| {
        hop("checkout", Side::Outbound, *start, service, |is| slow(is, times))
    });
    let edge = hop("edge", Side::Gateway, 1_000, "checkout", |is| slow(is, &edge));
    std::iter::once(edge).chain(called).collect()
}

#[test]
fn nobody_has_waited_longer_for_a_call_than_for_the_request_that_was_not_kept() {
    let (service, why) = whose(beyond(caller(400, 100), &[("audit", 1_010, caller(5_000, 50))]));
    assert_eq!((&*service, &*why), ("shop/checkout:80", "shop/checkout:80 took 400 ms, usually 100 ms"));
    // Whoever gave up has waited for it until then.
    let mut hops = beyond(caller(400, 100), &[("audit", 1_010, caller(5_000, 50))]);
    fails(at(&mut hops, 0), "request_timeout", 504);
    let (_, _, why) = blamed(hops).unwrap();
    assert!(why.contains("audit"), "{why}");
}

#[test]
fn of_two_requests_of_which_one_was_kept_the_other_s_call_is_not_the_one_s() {
    let mut hops = beyond(caller(4_000, 100), &[("cart", 1_100, caller(3_800, 20))]);
    // The same caller again, and this time it was kept.
    hops.push(hop("edge", Side::Gateway, 5_100, "checkout", |is| slow(is, &caller(50, 100))));
    hops.push(hop("checkout", Side::Inbound, 5_101, "checkout", |is| {
        slow(is, &called(49, 49, (90, 70)));
        from("edge")(is);
    }));
    let (service, why) = whose(hops);
    assert_eq!((&*service, &*why), ("shop/cart:80", "shop/cart:80 took 3800 ms, usually 20 ms"));
}

#[test]
fn of_calls_at_the_same_time_the_usual_is_no_sum() {
    let calls = ["a", "b", "c", "d"].map(|service| (service, 1_200, caller(100, 100)));
    let calls = [&calls[..], &[("e", 1_200, caller(250, 100))]].concat();
    let (service, why) = whose(beyond(caller(450, 300), &calls));
    assert_eq!((&*service, &*why), ("shop/e:80", "shop/e:80 took 250 ms, usually 100 ms"));
}

#[test]
fn many_calls_at_the_same_time_are_no_long_time() {
    let unknown = |took| Times { took, own: None, usual: None };
    let calls = [("redis", 1_010, unknown(60)); 10];
    let (service, why) = whose(beyond(unknown(1_000), &calls));
    assert_eq!((&*service, &*why), ("shop/checkout:80", "shop/checkout:80 took 1000 ms"));
}

#[test]
fn an_attempt_that_kept_its_request_does_not_make_the_others_time_the_way_s() {
    let mut hops = beyond(caller(1_300, 300), &[("cart", 1_300, caller(100, 100))]);
    hops.push(hop("checkout", Side::Inbound, 1_001, "checkout", |is| {
        slow(is, &called(250, 250, (290, 190)));
        from("edge")(is);
    }));
    // The second attempt was another instance's.
    "shop/checkout-2".clone_into(&mut hops[1].proxy.node.id);
    let mut second = hops[0].observation.attempts[0].clone();
    "checkout-2".clone_into(&mut second.instance);
    hops[0].observation.attempts.push(second);
    let (service, why) = whose(hops);
    assert_eq!(service, "shop/checkout:80");
    assert!(why.contains("without its calls"), "{why}");
}

#[test]
fn a_delayed_network_is_told_from_a_slow_application() {
    let hops =
        shop([caller(407, 307), called(406, 301, (306, 300))], [caller(105, 6), called(4, 4, (5, 5))], None);
    let (service, why) = whose(hops.clone());
    assert_eq!(service, "shop/cart:80");
    assert_eq!(why, "the way to shop/cart:80 and back took 101 ms, usually 1.0 ms");
    // The called side was quick, and has kept nothing.
    let mut hops = hops;
    hops.truncate(3);
    assert_eq!(whose(hops).1, "shop/cart:80 took 105 ms, usually 6.0 ms");
}

/// A rare request calls somebody who always takes long: the caller's own part is as ever.
#[test]
fn a_call_that_is_seldom_made_is_not_its_callers_slowness() {
    let hops = shop(
        [caller(600, 60), called(599, 50, (59, 50))],
        [caller(250, 240), called(249, 249, (239, 239))],
        Some([caller(290, 100), called(289, 289, (99, 99))]),
    );
    assert_eq!(whose(hops).0, "shop/pay:80");
}

#[test]
fn an_instance_that_was_always_slow_is_unusual_for_its_caller() {
    let mut hops = delayed_cart();
    at(&mut hops, 3).usual_ns = Some(104_000_000);
    at(&mut hops, 3).usual_own_ns = Some(104_000_000);
    let (service, why) = whose(hops);
    assert_eq!(
        (&*service, &*why),
        ("shop/cart:80", "the application of shop/cart:80 took 104 ms by itself, usually 6.0 ms")
    );
}

#[test]
fn several_calls_of_a_service_count_together() {
    let hops = shop(
        [caller(400, 120), called(399, 190, (119, 100))],
        [caller(105, 6), called(104, 104, (5, 5))],
        None,
    );
    assert_eq!(whose(hops.clone()).0, "shop/cart:80", "99 ms beyond the usual, checkout 90");
    let mut hops = hops;
    slow(at(&mut hops, 2), &caller(70, 6));
    slow(at(&mut hops, 3), &called(69, 69, (5, 5)));
    assert_eq!(whose(hops.clone()).0, "shop/checkout:80", "64 ms");
    hops.push(hop("checkout", Side::Outbound, 1_200, "cart", |is| slow(is, &caller(80, 6))));
    hops.push(hop("cart", Side::Inbound, 1_201, "cart", |is| slow(is, &called(79, 79, (5, 5)))));
    from("checkout")(at(&mut hops, 5));
    let (service, why) = whose(hops);
    assert_eq!(service, "shop/cart:80");
    assert_eq!(why, "the application of shop/cart:80 took 148 ms by itself in 2 calls, usually 10 ms");
}

#[test]
fn a_service_of_which_nothing_is_known_is_not_passed_over_for_a_trifle() {
    let unknown = |took: u64| {
        let mut hops = shop(
            [caller(2_000, 307), called(took, took - 105, (306, 300))],
            [caller(105, 6), called(104, 104, (5, 5))],
            None,
        );
        slow(at(&mut hops, 0), &caller(took + 1, took + 1));
        slow(at(&mut hops, 1), &Times { took, own: Some(took - 105), usual: None });
        // The caller's usual is what it would be judged by.
        at(&mut hops, 0).usual_ns = None;
        whose(hops).0
    };
    assert_eq!(unknown(300), "shop/cart:80");
    assert_eq!(unknown(1_000), "shop/checkout:80");
}

#[test]
fn a_failure_tells_more_than_what_was_unusual() {
    let mut hops = delayed_cart();
    hops.push(hop("checkout", Side::Outbound, 1_200, "pay", |_| {}));
    fails(at(&mut hops, 4), "connect_failure", 503);
    fails(at(&mut hops, 1), "", 502);
    assert_eq!(whose(hops).0, "shop/pay:80");
}

/// The gateway gave up while checkout, which always takes long, was at work: cart had used up the time.
#[test]
fn who_used_up_the_time_is_named_when_the_caller_gave_up() {
    let mut hops = delayed_cart();
    fails(at(&mut hops, 0), "request_timeout", 504);
    fails(at(&mut hops, 1), "downstream_reset", 0);
    at(&mut hops, 0).duration_ns = 350_000_000;
    at(&mut hops, 1).duration_ns = 350_000_000;
    assert_eq!(whose(hops.clone()).0, "shop/cart:80");
    // It was still being waited for.
    fails(at(&mut hops, 2), "downstream_reset", 0);
    fails(at(&mut hops, 3), "downstream_reset", 0);
    let (service, why) = whose(hops);
    assert_eq!(service, "shop/cart:80");
    assert_eq!(
        why,
        "the application of shop/cart:80 had not answered after 104 ms, when its caller gave up, usually 5.0 ms"
    );
}

#[test]
fn what_was_not_slow_is_nobodys_fault() {
    let mut hops = delayed_cart();
    (0..4).for_each(|hop| at(&mut hops, hop).kept = "sampled".to_owned());
    assert_eq!(blamed(hops), None);
}

#[test]
fn copies_are_in_nobodys_way() {
    let mut hops = delayed_cart();
    hops.push(hop("checkout", Side::Outbound, 1_010, "pay", |is| {
        slow(is, &caller(390, 1));
        is.mirrored = true;
    }));
    assert_eq!(whose(hops).0, "shop/cart:80");
}

/// Its time scatters by more than what the fault costs, but not by a quarter of what it always takes.
#[test]
fn who_scatters_a_little_does_not_hide_who_is_far_beyond() {
    let hops = shop(
        [caller(1_702, 1_208), called(1_701, 1_450, (1_207, 1_200))],
        [caller(246, 6), called(245, 245, (5, 5))],
        None,
    );
    assert_eq!(whose(hops).0, "shop/cart:80");
}

#[test]
fn calls_at_the_same_time_count_as_long_as_they_were_waited_for() {
    // Ten at once, each of 40 ms for its usual 10; front itself took 250 ms for its usual 50.
    let mut hops =
        shop([caller(292, 62), called(291, 250, (61, 50))], [caller(41, 11), called(40, 40, (10, 10))], None);
    for n in 0..9 {
        hops.push(hop("checkout", Side::Outbound, 1_010, "cart", |is| {
            slow(is, &caller(40, 11));
            is.start_unix_ns += n * 100_000;
        }));
    }
    let (service, why) = whose(hops);
    assert_eq!(service, "shop/checkout:80");
    assert_eq!(why, "the application of shop/checkout:80 took 250 ms by itself, usually 50 ms");
}

#[test]
fn nobody_was_slow_for_whoever_waited_longer_for_another() {
    // Cart and pay at the same time; pay always takes 300 ms, and so long it was waited for.
    let at_once = |cart: u64| {
        let mut hops = shop(
            [caller(420, 320), called(419, 100, (319, 15))],
            [caller(cart, 6), called(cart - 1, cart - 1, (5, 5))],
            Some([caller(301, 301), called(300, 300, (300, 300))]),
        );
        at(&mut hops, 4).start_unix_ns = 1_010_000_000;
        at(&mut hops, 5).start_unix_ns = 1_011_000_000;
        whose(hops).0
    };
    assert_eq!(at_once(105), "shop/checkout:80");
    assert_eq!(at_once(305), "shop/checkout:80", "it cost five milliseconds");
    assert_eq!(at_once(405), "shop/cart:80", "it cost more than a hundred");
}

#[test]
fn a_call_that_outlasts_its_request_counts_for_nobody() {
    // The application took 2 s by itself, while a call of three seconds went on that it did not wait for.
    let outlasting = |audit: u64, usual: u64| {
        let mut hops = shop(
            [caller(2_003, 53), called(2_002, 1_995, (52, 45))],
            [caller(audit, usual), called(audit - 1, audit - 1, (usual, usual))],
            None,
        );
        hops[2].observation.record.as_mut().unwrap().usual_ns = (usual > 0).then_some(usual * 1_000_000);
        hops
    };
    for (audit, usual) in [(3_000, 3_000), (10_000, 50), (600_000, 0)] {
        let (service, why) = whose(outlasting(audit, usual));
        assert_eq!(service, "shop/checkout:80", "{audit}, usually {usual}");
        assert_eq!(why, "the application of shop/checkout:80 took 1995 ms by itself, usually 45 ms");
        // Nor where nothing is known of the usual.
        let mut hops = outlasting(audit, 0);
        for hop in 0..4 {
            (at(&mut hops, hop).usual_ns, at(&mut hops, hop).usual_own_ns) = (None, None);
        }
        assert_eq!(whose(hops).0, "shop/checkout:80");
    }
    // A request that was given up did wait for what its proxy saw end only later.
    let mut hops = outlasting(3_000, 50);
    fails(at(&mut hops, 0), "request_timeout", 504);
    fails(at(&mut hops, 1), "downstream_reset", 0);
    at(&mut hops, 1).own_ns = Some(9_000_000);
    assert_eq!(whose(hops).0, "shop/cart:80");
}

/// front calls product twice at the same time, on one instance, and each time that calls stock, which is slow.
#[test]
fn two_requests_of_a_trace_at_one_sidecar_do_not_take_each_others_waiting() {
    let mut hops = vec![hop("edge", Side::Gateway, 1_000, "front", |is| slow(is, &caller(190, 110)))];
    let mut add = |by: &str, to: &str, start: u64, caller: Times, called: Times| {
        hops.push(hop(by, Side::Outbound, start, to, |is| slow(is, &caller)));
        hops.push(hop(to, Side::Inbound, start, to, |is| slow(is, &called)));
        from(by)(hops.last_mut().unwrap().observation.record.as_mut().unwrap());
    };
    let unknown = |took: u64| Times { own: None, ..called(took, 0, (108, 4)) };
    // The first of them was let in at 1_002 ms, and ended after the other one.
    add("front", "product", 1_002, caller(185, 109), unknown(185));
    add("front", "product", 1_003, caller(183, 109), unknown(183));
    add("product", "stock", 1_004, caller(180, 101), called(179, 179, (100, 100)));
    add("product", "stock", 1_005, caller(180, 101), called(179, 179, (100, 100)));
    hops.push(hop("front", Side::Inbound, 1_001, "front", |is| slow(is, &called(188, 3, (109, 3)))));
    from("edge")(hops.last_mut().unwrap().observation.record.as_mut().unwrap());
    let (service, why) = whose(hops);
    assert_eq!(service, "shop/stock:80");
    assert_eq!(why, "the application of shop/stock:80 took 179 ms by itself, usually 100 ms");
}

/// Quick calls are not kept, and whose they were is not known: that it worked so long by itself is not said.
#[test]
fn what_is_not_known_to_be_an_application_s_own_is_not_called_so() {
    let mut hops =
        shop([caller(1_002, 20), called(1_001, 1, (19, 10))], [caller(2, 2), called(1, 1, (1, 1))], None);
    at(&mut hops, 1).own_ns = None;
    assert_eq!(whose(hops).1, "the application of shop/checkout:80 took 1001 ms");
}

#[test]
fn what_a_caller_takes_to_read_is_not_by_itself() {
    let mut hops =
        shop([caller(50_002, 42), called(50_001, 39, (41, 40))], [caller(2, 2), called(1, 1, (1, 1))], None);
    hops.truncate(2);
    let read = |hops: &mut Vec<Observed>, bytes: u64| {
        for hop in 0..2 {
            at(hops, hop).bytes_sent = bytes;
            at(hops, hop).time_to_first_byte_ns = Some(40_000_000);
        }
    };
    read(&mut hops, 50 << 20);
    assert_eq!(
        whose(hops.clone()).1,
        "the application of shop/checkout:80 took 50001 ms, 49961 ms of it until all was read"
    );
    // An answer that waits in sockets waits for no reader.
    read(&mut hops, 1_000);
    at(&mut hops, 1).own_ns = Some(50_001_000_000);
    assert_eq!(whose(hops).1, "the application of shop/checkout:80 took 50001 ms by itself, usually 40 ms");
}

/// One hop more: `by` calls `to` (`caller`), and it comes in there (`called`).
fn call(hops: &mut Vec<Observed>, by: &str, to: &str, start: u64, caller: Times, called: Times) {
    hops.push(hop(by, Side::Outbound, start, to, |is| slow(is, &caller)));
    hops.push(hop(to, Side::Inbound, start + 1, to, |is| slow(is, &called)));
    from(by)(hops.last_mut().unwrap().observation.record.as_mut().unwrap());
}

/// A front that was called by the edge for so long, and has calls to make.
fn front(took: u64, own: u64) -> Vec<Observed> {
    let mut hops = vec![
        hop("edge", Side::Gateway, 1_000, "front", |is| slow(is, &caller(took + 2, 60))),
        hop("front", Side::Inbound, 1_001, "front", |is| slow(is, &called(took, own, (59, 5)))),
    ];
    from("edge")(at(&mut hops, 1));
    hops
}

/// The first of two calls in turn is slow for another's sake, the second one by itself.
#[test]
fn a_service_that_is_called_twice_is_not_blamed_for_whom_it_has_called_once() {
    let mut hops = front(1_370, 5);
    call(&mut hops, "front", "product", 1_010, caller(1_007, 43), called(1_005, 4, (42, 40)));
    call(&mut hops, "product", "stock", 1_013, caller(1_001, 2), called(1_000, 1_000, (1, 1)));
    call(&mut hops, "front", "product", 2_020, caller(352, 43), called(350, 350, (42, 40)));
    let gathered = Gathered::of(hops.clone());
    assert_eq!(gathered.parents(), [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(1), Some(6)]);
    let (service, why) = whose(hops);
    assert_eq!(service, "shop/stock:80");
    assert_eq!(why, "the application of shop/stock:80 took 1000 ms by itself, usually 1.0 ms");
}

/// The same service twice at once, and below each a slow one.
#[test]
fn two_calls_at_once_have_each_its_own_below() {
    let mut hops = front(1_020, 5);
    let unknown = |took: u64| Times { own: None, ..called(took, 0, (12, 4)) };
    call(&mut hops, "front", "product", 1_005, caller(1_010, 13), unknown(1_008));
    call(&mut hops, "front", "product", 1_005, caller(1_013, 13), unknown(1_011));
    call(&mut hops, "product", "stock", 1_008, caller(1_003, 4), called(1_001, 1_001, (2, 2)));
    call(&mut hops, "product", "stock", 1_009, caller(1_004, 4), called(1_002, 1_002, (2, 2)));
    let gathered = Gathered::of(hops.clone());
    let parents = gathered.parents();
    assert_eq!((parents[3], parents[5], parents[7], parents[9]), (Some(2), Some(4), Some(6), Some(8)));
    let (service, why) = whose(hops);
    assert_eq!(service, "shop/stock:80");
    assert_eq!(why, "the application of shop/stock:80 took 1002 ms by itself, usually 2.0 ms");
}

/// One of three was quick, and nobody has kept how it came in.
#[test]
fn what_was_not_kept_leaves_the_others_where_they_belong() {
    let mut hops = front(700, 5);
    call(&mut hops, "front", "product", 1_010, caller(302, 43), called(300, 300, (42, 40)));
    call(&mut hops, "front", "product", 1_320, caller(12, 43), called(10, 10, (42, 40)));
    call(&mut hops, "front", "product", 1_340, caller(352, 43), called(350, 350, (42, 40)));
    hops.remove(5);
    assert_eq!(Gathered::of(hops).parents(), [None, Some(0), Some(1), Some(2), Some(1), Some(1), Some(5)]);
}
