use super::*;
use meshwork_messages::v1::{Node, Observation};
use meshwork_xds::server::Viewer;

fn id(workload: &str) -> String {
    format!("spiffe://mesh.local/ns/shop/sa/{workload}")
}

/// A hop of request `r1`: by which proxy and side, called by whom, and which instances have answered.
fn hop(node: &str, side: Side, how: Match, at: u64, (from, to): (&str, &[&str])) -> Observed {
    let workload = node.rsplit('/').next().unwrap().trim_end_matches(['-', '1', '2']);
    let attempt = |instance: &&str| Attempt {
        instance: (*instance).to_owned(),
        spiffe_id: id(instance.trim_end_matches(['-', '1', '2'])),
        status: 200,
        ..Attempt::default()
    };
    let record = RequestRecord {
        side: side.into(),
        start_unix_ns: at,
        request_id: "r1".into(),
        peer_id: if from.is_empty() { String::new() } else { id(from) },
        ..RequestRecord::default()
    };
    let observation = Observation {
        r#match: how.into(),
        record: Some(record),
        attempts: to.iter().map(attempt).collect(),
        ..Observation::default()
    };
    let proxy = Viewer {
        identity: SpiffeId::parse(&id(workload)).ok(),
        node: Node { id: node.to_owned(), ..Node::default() },
    };
    Observed { proxy, observation }
}

fn looking() -> BTreeSet<String> {
    ["edge/gateway", "shop/web-1", "shop/api-1"].map(str::to_owned).into()
}

#[test]
fn hops_come_in_any_order_and_are_told_in_that_of_the_way() {
    let mut gathered = Gathered::new(hop("shop/api-1", Side::Inbound, Match::Mark, 30, ("web", &[])));
    assert_eq!(gathered.missing(&looking()), ["the hop before shop/api-1", "the hop that matches"]);
    gathered.add(hop("shop/web-1", Side::Outbound, Match::Trace, 20, ("", &["api-1"])));
    gathered.add(hop("edge/gateway", Side::Gateway, Match::Filter, 1, ("", &["web-1"])));
    assert_eq!(gathered.missing(&looking()), ["shop/web-1", "the hop before shop/web-1"]);
    gathered.add(hop("shop/web-1", Side::Inbound, Match::Mark, 10, ("gateway", &[])));
    assert_eq!(gathered.missing(&looking()), [] as [String; 0]);
    let order = serde_json::to_value(gathered.into_hops()).unwrap();
    let order: Vec<_> =
        order.as_array().unwrap().iter().map(|h| (h["depth"].clone(), h["side"].clone())).collect();
    assert_eq!(
        order,
        [(0, "gateway"), (1, "inbound"), (2, "outbound"), (3, "inbound")]
            .map(|(depth, side)| (depth.into(), side.into()))
    );
}

#[test]
fn a_hop_of_another_request_is_left_out() {
    let mut gathered = Gathered::new(hop("edge/gateway", Side::Gateway, Match::Filter, 1, ("", &[])));
    let mut other = hop("edge/gateway", Side::Gateway, Match::Filter, 2, ("", &[]));
    other.observation.record.as_mut().unwrap().request_id = "r2".into();
    gathered.add(other);
    assert_eq!(gathered.into_hops().len(), 1);
}

#[test]
fn nobody_waits_for_a_proxy_that_does_not_look_or_an_endpoint_that_never_answered() {
    let mut first = hop("edge/gateway", Side::Gateway, Match::Filter, 1, ("", &["web-1", "old-1"]));
    assert_eq!(Gathered::new(first.clone()).missing(&looking()), ["shop/web-1"]);
    first.observation.attempts[0].status = 0;
    assert_eq!(Gathered::new(first).missing(&looking()), [] as [String; 0]);
}

#[test]
fn what_is_under_way_takes_no_place_from_what_has_ended() {
    let told = |at: usize, under_way| {
        let node = format!("shop/web-{at}");
        let mut hop = hop(&node, Side::Inbound, Match::Recorded, at as u64, ("", &[]));
        hop.observation.record.as_mut().unwrap().under_way = under_way;
        hop
    };
    let hops: Vec<_> = (0..HOPS).map(|at| told(at, true)).chain([told(HOPS, false)]).collect();
    let gathered = Gathered::of(hops);
    assert_eq!(gathered.hops().len(), HOPS);
    assert!(gathered.hops().iter().any(|hop| !record(hop).under_way));
}

/// It has lasted so long, and not ended.
fn lasts(mut hop: Observed, ns: u64) -> Observed {
    let record = hop.observation.record.as_mut().unwrap();
    (record.duration_ns, record.under_way) = (ns, true);
    hop
}

#[test]
fn what_has_ended_since_it_was_told_is_told_as_it_ended() {
    let ended = hop("edge/gateway", Side::Gateway, Match::Filter, 1, ("", &["web-1"]));
    let mut gathered = Gathered::new(lasts(ended.clone(), 100));
    assert!(!gathered.has_ended_well());
    gathered.add(ended.clone());
    gathered.add(lasts(ended.clone(), 50));
    assert_eq!(gathered.hops().len(), 1);
    assert!(gathered.has_ended_well());
    let mut left = ended;
    "downstream_closed".clone_into(&mut left.observation.record.as_mut().unwrap().cause);
    assert!(!Gathered::new(left).has_ended_well(), "whom it called may go on");
}

#[test]
fn of_what_is_known_by_its_id_alone_only_what_follows_from_the_request_is_of_it() {
    let edge = |at, how| lasts(hop("edge/gateway", Side::Gateway, how, at, ("", &["web-1"])), 100);
    let mut gathered = Gathered::new(edge(1, Match::Filter));
    let of_it = [
        // Told before what it follows from.
        lasts(hop("shop/api-1", Side::Inbound, Match::Recorded, 30, ("web", &[])), 60),
        lasts(hop("shop/web-1", Side::Outbound, Match::Recorded, 20, ("", &["api-1"])), 70),
        lasts(hop("shop/web-1", Side::Inbound, Match::Recorded, 10, ("gateway", &[])), 80),
    ];
    // A browser asks for more beside it, and has asked before.
    let others = [
        edge(3, Match::Recorded),
        lasts(hop("shop/web-1", Side::Inbound, Match::Recorded, 200, ("gateway", &[])), 10),
    ];
    gathered.join([&of_it[..], &others].concat());
    assert_eq!(gathered.hops().len(), 4, "{gathered:?}");
    assert_eq!(gathered.missing(&BTreeSet::new()), [] as [String; 0]);
    // Such a hop that is all alone was not expected, and lacks nothing.
    let mut alone = Gathered::new(edge(1, Match::Filter));
    alone.add(edge(5, Match::Recorded));
    assert_eq!(alone.missing(&BTreeSet::new()), [] as [String; 0]);
}
