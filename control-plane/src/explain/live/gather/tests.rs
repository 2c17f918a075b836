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
