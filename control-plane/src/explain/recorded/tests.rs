mod ended;
mod fields;
mod hedges;
mod pieces;
mod sides;
mod under_way;
mod unusual;

use meshwork_base::SpiffeId;
use meshwork_messages::v1::{
    Attempt, Node, Observation, RequestRecord, observation::Match, request_record::Side,
};
use meshwork_xds::server::{Observed, Viewer};

use super::blame::{Who, blame};
use crate::explain::live::Gathered;

fn id(workload: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh/ns/shop/sa/{workload}")).unwrap()
}

/// A hop of `workload`'s proxy, begun at `start` ms, of a request to `service`.
fn hop(
    workload: &str,
    side: Side,
    start: u64,
    service: &str,
    change: impl FnOnce(&mut RequestRecord),
) -> Observed {
    let mut record = RequestRecord {
        side: side.into(),
        start_unix_ns: start * 1_000_000,
        duration_ns: 100_000_000,
        trace_id: "t".to_owned(),
        service: format!("shop/{service}:80"),
        status: 200,
        kept: "failed".to_owned(),
        ..RequestRecord::default()
    };
    change(&mut record);
    let node = Node { id: format!("shop/{workload}-1"), ..Node::default() };
    let attempts = match side {
        Side::Inbound => Vec::new(),
        Side::Gateway | Side::Outbound => vec![Attempt {
            instance: format!("{service}-1"),
            spiffe_id: id(service).to_string(),
            ..Attempt::default()
        }],
    };
    Observed {
        proxy: Viewer { identity: Some(id(workload)), node },
        observation: Observation {
            r#match: Match::Recorded.into(),
            record: Some(record),
            attempts,
            ..Observation::default()
        },
    }
}

fn from(workload: &str) -> impl Fn(&mut RequestRecord) {
    let peer = id(workload).to_string();
    move |record| record.peer_id.clone_from(&peer)
}

fn fails(record: &mut RequestRecord, cause: &str, status: u32) {
    cause.clone_into(&mut record.cause);
    record.status = status;
}

/// edge → reviews → ratings.
fn chain() -> Vec<Observed> {
    vec![
        hop("ratings", Side::Inbound, 4, "ratings", from("reviews")),
        hop("edge", Side::Gateway, 1, "reviews", |_| {}),
        hop("reviews", Side::Outbound, 3, "ratings", |_| {}),
        hop("reviews", Side::Inbound, 2, "reviews", from("edge")),
    ]
}

fn at(hops: &mut [Observed], at: usize) -> &mut RequestRecord {
    hops[at].observation.record.as_mut().unwrap()
}

fn blamed(hops: Vec<Observed>) -> Option<(Who, Option<String>, String)> {
    let told = |hops: Vec<Observed>| {
        let gathered = Gathered::of(hops);
        blame(gathered.hops(), &gathered.parents()).map(|blame| (blame.who, blame.service, blame.why))
    };
    // Proxies tell the youngest first, and who answers first is chance.
    let backwards = told(hops.iter().rev().cloned().collect());
    let told = told(hops);
    assert_eq!(backwards, told, "the same in another order");
    told
}

#[test]
fn hops_are_put_in_the_order_of_the_way() {
    let gathered = Gathered::of(chain());
    assert_eq!(gathered.parents(), [Some(2), None, Some(3), Some(1)]);
}

#[test]
fn the_deepest_failure_is_to_blame() {
    let mut hops = chain();
    for (hop, cause, status) in [(1, "", 502), (3, "", 502), (2, "", 502), (0, "upstream_closed", 503)] {
        fails(at(&mut hops, hop), cause, status);
    }
    let (who, service, why) = blamed(hops).unwrap();
    assert_eq!((who, service.as_deref()), (Who::Service, Some("shop/ratings:80")));
    assert_eq!(why, "calling the application of shop/ratings:80 failed: upstream_closed");
}

#[test]
fn who_was_waited_for_when_the_caller_gave_up_is_to_blame() {
    for cause in ["request_timeout", "deadline_exceeded", "max_stream_duration"] {
        let mut hops = chain();
        fails(at(&mut hops, 1), cause, 504);
        for hop in [0, 2, 3] {
            fails(at(&mut hops, hop), "downstream_reset", 0);
        }
        let (_, service, why) = blamed(hops).unwrap();
        assert_eq!(service.as_deref(), Some("shop/ratings:80"));
        assert_eq!(
            why,
            "the application of shop/ratings:80 had not answered after 100 ms, when its caller gave up"
        );
        // Those below went well, only late: still it waited for them.
        let mut hops = chain();
        fails(at(&mut hops, 1), cause, 504);
        assert_eq!(blamed(hops).unwrap().1.as_deref(), Some("shop/ratings:80"), "{cause}");
    }
}

#[test]
fn a_time_limit_alone_points_at_whom_it_waited_for_although_that_hop_went_well() {
    let mut hops = chain();
    fails(at(&mut hops, 1), "request_timeout", 504);
    hops.truncate(2);
    let parentless = blamed(hops).unwrap();
    assert_eq!(parentless.1.as_deref(), Some("shop/reviews:80"), "{parentless:?}");
}

#[test]
fn what_is_slow_is_where_the_time_went() {
    let mut hops = chain();
    for hop in 0..4 {
        at(&mut hops, hop).kept = "slow".to_owned();
        at(&mut hops, hop).duration_ns = 2_000_000_000;
    }
    let (_, service, why) = blamed(hops.clone()).unwrap();
    assert_eq!(
        (service.as_deref(), &*why),
        (Some("shop/ratings:80"), "the application of shop/ratings:80 took 2000 ms")
    );
    // Reviews needed most of it for itself.
    at(&mut hops, 0).duration_ns = 10_000_000;
    at(&mut hops, 2).duration_ns = 10_000_000;
    assert_eq!(blamed(hops).unwrap().1.as_deref(), Some("shop/reviews:80"));
}

#[test]
fn names_the_hop_in_which_a_slow_request_spent_its_time_though_it_was_kept_as_related() {
    for kept in ["related", "recent", "sampled"] {
        let mut hops = chain();
        for (hop, ms) in [(1, 1_050), (3, 990), (2, 200), (0, 190)] {
            at(&mut hops, hop).kept = kept.to_owned();
            at(&mut hops, hop).duration_ns = ms * 1_000_000;
        }
        at(&mut hops, 1).kept = "slow".to_owned();
        let (_, service, why) = blamed(hops).unwrap();
        assert_eq!(service.as_deref(), Some("shop/reviews:80"), "{kept}");
        assert_eq!(why, "the application of shop/reviews:80 took 990 ms");
    }
}

#[test]
fn many_calls_of_one_service_count_together() {
    let mut hops = chain();
    hops.push(hop("ratings", Side::Inbound, 501, "ratings", from("reviews")));
    hops.push(hop("reviews", Side::Outbound, 500, "ratings", |_| {}));
    for (hop, ms) in [(0, 400), (2, 400), (4, 400), (5, 400), (1, 1_000), (3, 1_000)] {
        at(&mut hops, hop).kept = "slow".to_owned();
        at(&mut hops, hop).duration_ns = ms * 1_000_000;
    }
    assert_eq!(blamed(hops.clone()).unwrap().1.as_deref(), Some("shop/ratings:80"));
    at(&mut hops, 5).start_unix_ns = 5_000_000;
    at(&mut hops, 4).start_unix_ns = 6_000_000;
    assert_eq!(blamed(hops.clone()).unwrap().1.as_deref(), Some("shop/reviews:80"), "at the same time");
    hops.truncate(4);
    assert_eq!(blamed(hops).unwrap().1.as_deref(), Some("shop/reviews:80"), "one of them is not half of it");
}

#[test]
fn a_caller_that_leaves_and_a_policy_that_refuses_are_no_service_s_fault() {
    let mut hops = vec![hop("edge", Side::Gateway, 1, "reviews", |_| {})];
    fails(at(&mut hops, 0), "downstream_closed", 0);
    assert_eq!(blamed(hops.clone()).unwrap().0, Who::Caller);
    fails(at(&mut hops, 0), "authorization_denied", 403);
    assert_eq!(blamed(hops.clone()).unwrap().0, Who::Configuration);
    fails(at(&mut hops, 0), "svid_expired", 503);
    assert_eq!(blamed(hops.clone()).unwrap().0, Who::Mesh);
    fails(at(&mut hops, 0), "circuit_breaker", 503);
    assert_eq!(blamed(hops).unwrap().2, "shop/reviews:80 is held back: circuit_breaker");
}

#[test]
fn nobody_is_to_blame_for_a_request_of_the_sample() {
    let mut hops = chain();
    (0..4).for_each(|hop| at(&mut hops, hop).kept = "sampled".to_owned());
    assert_eq!(blamed(hops), None);
}

#[test]
fn what_becomes_of_a_copy_is_nobodys_fault() {
    let mut hops = chain();
    let copy = |side, start, service| hop("ratings", side, start, service, |record| record.mirrored = true);
    hops.extend([copy(Side::Inbound, 1, "ratings"), copy(Side::Outbound, 2, "stars")]);
    for failed in [4, 5] {
        fails(at(&mut hops, failed), "upstream_reset", 503);
    }
    (0..4).for_each(|hop| at(&mut hops, hop).kept = "sampled".to_owned());
    assert_eq!(blamed(hops.clone()), None);
    fails(at(&mut hops, 3), "upstream_closed", 503);
    fails(at(&mut hops, 1), "", 503);
    assert_eq!(blamed(hops).unwrap().1.as_deref(), Some("shop/reviews:80"));
}
