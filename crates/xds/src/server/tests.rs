use std::collections::BTreeSet;

use super::*;
use crate::client::{Change, Client, Event, Settings};
use crate::key::endpoint_type;
use meshwork_messages::{type_url, v1};
use prost::Message as _;

fn key(kind: &str, name: &str) -> ResourceKey {
    ResourceKey::new(format!("type.meshwork.dev/meshwork.v1.{kind}"), name)
}

type Link<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

fn world(revision: u64, resources: &[(&str, &str, &str)], links: &[Link<'_>]) -> Publication {
    let resource = |&(kind, name, version): &(&str, &str, &str)| {
        let resource = Resource { name: name.into(), version: version.into(), ..Resource::default() };
        (key(kind, name), Arc::new(resource))
    };
    let link = |&(kind, name, to): &Link<'_>| {
        (key(kind, name), to.iter().map(|(kind, name)| key(kind, name)).collect())
    };
    Publication {
        revision,
        resources: resources.iter().map(resource).collect(),
        links: Arc::new(links.iter().map(link).collect()),
    }
}

fn join(kind: &str, names: &[&str], held: &[(&str, &str)]) -> Vec<DiscoveryRequest> {
    let first = DiscoveryRequest {
        node: Some(Node { id: "test/one".into(), ..Node::default() }),
        type_url: key(kind, "").type_url.to_string(),
        subscribe: names.iter().map(|&name| name.into()).collect(),
        initial_versions: held.iter().map(|&(name, version)| (name.into(), version.into())).collect(),
        ..DiscoveryRequest::default()
    };
    vec![first, report(0)]
}

fn report(effective_revision: u64) -> DiscoveryRequest {
    let report = v1::Report { effective_revision, ..v1::Report::default() };
    DiscoveryRequest { report: Some(report), ..DiscoveryRequest::default() }
}

fn open(server: &mut Server, requests: Vec<DiscoveryRequest>) -> StreamId {
    let id = server.connect(None);
    for request in requests {
        server.receive(id, request).unwrap();
    }
    id
}

fn sent(server: &mut Server, id: StreamId) -> Vec<String> {
    let responses = std::iter::from_fn(|| server.next_response(id));
    let text = |response: DiscoveryResponse| {
        let kind = response.type_url.rsplit('.').next().unwrap().to_owned();
        let mut lines = Vec::new();
        for resource in response.resources {
            let commit = (kind == "Commit").then(|| v1::Commit::decode(resource.body).unwrap());
            lines.push(match commit {
                Some(commit) => format!("Commit {} of {}", commit.revision, commit.count),
                None => format!("{kind} {}@{}", resource.name, resource.version),
            });
        }
        lines.extend(response.removed.iter().map(|name| format!("-{kind} {name}")));
        lines.extend(response.absent.iter().map(|name| format!("?{kind} {name}")));
        lines
    };
    responses.flat_map(text).collect()
}

fn server(publication: Publication) -> Server {
    let mut server = Server::new(Arc::new(Open));
    server.publish(publication);
    server
}

#[test]
fn answers_nobody_before_the_first_publication() {
    let mut server = Server::new(Arc::new(Open));
    let id = open(&mut server, join("Route", &["*"], &[("old", "1")]));
    assert_eq!(sent(&mut server, id), Vec::<String>::new(), "what is not known yet is not gone");
    server.publish(world(1, &[("Route", "a", "1")], &[]));
    assert_eq!(sent(&mut server, id), ["Route a@1", "-Route old", "Commit 1 of 1"]);
}

#[test]
fn answers_nobody_who_has_not_said_all_it_holds() {
    let mut server = server(world(1, &[("Route", "a", "1")], &[]));
    let mut requests = join("Route", &["*"], &[]);
    let last = requests.pop().unwrap();
    let id = open(&mut server, requests);
    assert_eq!(sent(&mut server, id), Vec::<String>::new());
    server.receive(id, last).unwrap();
    assert_eq!(sent(&mut server, id), ["Route a@1", "Commit 1 of 1"]);
}

#[test]
fn an_edit_sends_one_message_and_a_reconnect_nothing_that_is_held() {
    let mut server = server(world(1, &[("Route", "a", "1"), ("Route", "b", "1")], &[]));
    let id = open(&mut server, join("Route", &["*"], &[]));
    sent(&mut server, id);
    server.publish(world(2, &[("Route", "a", "1"), ("Route", "b", "2")], &[]));
    assert_eq!(sent(&mut server, id), ["Route b@2", "Commit 2 of 2"]);
    server.disconnect(id, Tick::ZERO);
    let id = open(&mut server, join("Route", &["*"], &[("a", "1"), ("b", "2")]));
    assert_eq!(sent(&mut server, id), ["Commit 2 of 2"]);
}

#[test]
fn configuration_comes_before_endpoints_and_the_commit_last() {
    let slice = endpoint_type().rsplit('.').next().unwrap();
    let mut server = server(world(1, &[(slice, "s", "1"), ("Route", "a", "1")], &[]));
    let mut requests = join("Route", &["*"], &[]);
    requests.insert(0, join(slice, &["*"], &[]).remove(0));
    let id = open(&mut server, requests);
    assert_eq!(sent(&mut server, id), ["Route a@1", "EndpointSlice s@1", "Commit 1 of 1"]);
}

const SHOP: &[(&str, &str, &str)] = &[
    ("Service", "shop/web", "1"),
    ("Route", "HTTPRoute/shop/web", "1"),
    ("Service", "shop/api", "1"),
    ("EndpointSlice", "shop/api-1", "1"),
    ("Service", "shop/other", "1"),
];
const SHOP_LINKS: &[Link<'_>] = &[
    ("Service", "shop/web", &[("Route", "HTTPRoute/shop/web")]),
    ("Route", "HTTPRoute/shop/web", &[("Service", "shop/api")]),
    ("Service", "shop/api", &[("EndpointSlice", "shop/api-1"), ("Service", "shop/web")]),
];

#[test]
fn a_name_comes_with_all_it_refers_to_and_leaves_with_it() {
    let mut server = server(world(1, SHOP, SHOP_LINKS));
    let id = open(&mut server, join("Service", &["shop/web", "shop/nobody"], &[]));
    let expected = [
        "Route HTTPRoute/shop/web@1",
        "Service shop/api@1",
        "Service shop/web@1",
        "EndpointSlice shop/api-1@1",
        "Commit 1 of 3",
        "?Service shop/nobody",
    ];
    assert_eq!(sent(&mut server, id), expected);
    let unsubscribe = DiscoveryRequest {
        type_url: key("Service", "").type_url.to_string(),
        unsubscribe: vec!["shop/web".into()],
        ..DiscoveryRequest::default()
    };
    server.receive(id, unsubscribe).unwrap();
    assert_eq!(sent(&mut server, id).last().unwrap(), "Commit 1 of 0");
    let mut grown = SHOP.to_vec();
    grown.push(("Service", "shop/nobody", "1"));
    server.publish(world(2, &grown, SHOP_LINKS));
    assert_eq!(sent(&mut server, id), ["Service shop/nobody@1", "Commit 2 of 1"], "it was asked for once");
}

#[test]
fn a_prefix_means_all_below() {
    let listeners = [("Listener", "shop/edge/http", "1"), ("Listener", "shop/edge2/http", "1")];
    let mut server = server(world(1, &listeners, &[]));
    let id = open(&mut server, join("Listener", &["shop/edge/*"], &[]));
    assert_eq!(sent(&mut server, id), ["Listener shop/edge/http@1", "Commit 1 of 1"]);
}

struct OwnNamespace;

impl Access for OwnNamespace {
    fn admit(&self, viewer: &Viewer) -> Result<(), Refusal> {
        let named = viewer.node.id.starts_with("test/");
        if named { Ok(()) } else { Err(Refusal::Denied(format!("{} is not of test", viewer.node.id))) }
    }
    fn visible(&self, _: &Viewer, key: &ResourceKey) -> bool {
        key.name.starts_with("test/")
    }
}

#[test]
fn what_may_not_be_seen_is_absent_and_who_may_not_join_is_told_why() {
    let mut server = Server::new(Arc::new(OwnNamespace));
    server.publish(world(1, &[("Service", "test/a", "1"), ("Service", "other/a", "1")], &[]));
    let id = open(&mut server, join("Service", &["other/a", "test/a"], &[]));
    assert_eq!(sent(&mut server, id), ["Service test/a@1", "Commit 1 of 1", "?Service other/a"]);
    let stranger = server.connect(None);
    let mut request = join("Service", &["*"], &[]).remove(0);
    request.node = Some(Node { id: "evil/one".into(), ..Node::default() });
    let refusal = server.receive(stranger, request).unwrap_err();
    assert_eq!(refusal.to_string(), "evil/one is not of test");
    let nameless = server.connect(None);
    assert_eq!(server.receive(nameless, report(0)), Err(Refusal::NoNode));
}

#[test]
fn effective_counts_only_what_is_said_on_this_stream() {
    let mut server = server(world(5, &[], &[]));
    let behind = |server: &Server, revision| server.reach(revision, Duration::ZERO, Tick::ZERO).behind.len();
    let mut requests = join("Route", &["*"], &[]);
    requests[1] = report(99);
    let id = open(&mut server, requests);
    let commit = server.next_response(id).unwrap();
    assert_eq!(behind(&server, 5), 1, "99 is of a control plane before");
    let (type_url, response_nonce) = (commit.type_url, commit.nonce);
    server.receive(id, DiscoveryRequest { type_url, response_nonce, ..Default::default() }).unwrap();
    server.receive(id, report(5)).unwrap();
    assert_eq!((behind(&server, 5), behind(&server, 6)), (0, 1));
    server.disconnect(id, Tick::ZERO);
    let absent = |after| server.reach(6, Duration::from_secs(5), seconds(after)).absent.len();
    assert_eq!((absent(4), absent(6)), (1, 0));
}

fn seconds(after: u64) -> Tick {
    Tick::ZERO.after(Duration::from_secs(after))
}

#[test]
fn who_is_cut_off_counts_for_as_long_as_it_is_known_to_be_there() {
    let mut server = server(world(1, &[], &[]));
    let ids = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect::<BTreeSet<_>>();
    let id = open(&mut server, join("Route", &["*"], &[]));
    let expected = |names: &[&str]| ids(names).into_iter().map(|id| (id, Speaker::default())).collect();
    // Of "never" no stream was seen: the control plane was started again, say.
    server.expect(expected(&["test/one", "test/never"]), Tick::ZERO);
    server.disconnect(id, seconds(1));
    let reach = |server: &Server, after| server.reach(1, Duration::from_secs(15), seconds(after));
    let cut_off = reach(&server, 7200);
    assert_eq!(
        cut_off.absent,
        ids(&["test/one", "test/never"]),
        "its stream ended hours ago, its lease did not"
    );
    assert!(!cut_off.is_everywhere());
    assert_eq!(
        cut_off.to_string(),
        "revision 1 is in effect on 0 of 2 proxies; not connected: test/never, test/one"
    );
    server.expect(expected(&["test/never"]), seconds(2));
    assert_eq!(reach(&server, 3).absent, ids(&["test/never"]), "who has left is not waited for");
    server.expect(expected(&[]), seconds(3));
    assert!(reach(&server, 3).is_everywhere());
}

#[test]
fn of_two_streams_of_one_proxy_the_younger_counts() {
    let mut server = server(world(1, &[], &[]));
    // The older one has not noticed its end.
    open(&mut server, join("Route", &["*"], &[]));
    let id = open(&mut server, join("Route", &["*"], &[]));
    catch_up(&mut server, id);
    assert!(server.reach(1, Duration::ZERO, Tick::ZERO).is_everywhere());
}

/// The stream has the first revision in effect.
fn catch_up(server: &mut Server, id: StreamId) {
    let commit = server.next_response(id).unwrap();
    let (type_url, response_nonce) = (commit.type_url, commit.nonce);
    server.receive(id, DiscoveryRequest { type_url, response_nonce, ..Default::default() }).unwrap();
    server.receive(id, report(1)).unwrap();
}

#[test]
fn a_second_copy_of_a_name_does_not_speak_for_the_first() {
    let joining = |incarnation: &str| {
        let mut requests = join("Route", &["*"], &[]);
        requests[0].node.as_mut().unwrap().incarnation = incarnation.to_owned();
        requests
    };
    let one: BTreeSet<String> = ["test/one".to_owned()].into();
    let reach = |server: &Server| server.reach(1, Duration::ZERO, Tick::ZERO);
    let mut server = server(world(1, &[], &[]));
    let first = open(&mut server, joining("a"));
    let second = open(&mut server, joining("b"));
    catch_up(&mut server, second);
    assert_eq!((reach(&server).behind, reach(&server).effective), (one.clone(), BTreeSet::new()));
    assert_eq!(server.proxies().len(), 2, "who looks sees both");

    // The registry has the first, which is cut off.
    let expected = Speaker { identity: None, incarnation: "a".to_owned() };
    server.expect([("test/one".to_owned(), expected.clone())].into(), Tick::ZERO);
    server.disconnect(first, Tick::ZERO);
    assert_eq!((reach(&server).absent, reach(&server).effective), (one.clone(), BTreeSet::new()));
    assert_eq!(reach(&server).proxies(), 1, "it is one name");
    let first = open(&mut server, joining("a"));
    catch_up(&mut server, first);
    assert!(reach(&server).is_everywhere());

    // And nobody else of the namespace speaks for it.
    let mesh = |workload: &str| SpiffeId::parse(&format!("spiffe://test/ns/test/sa/{workload}")).unwrap();
    let of_web = Speaker { identity: Some(mesh("web")), ..expected };
    server.expect([("test/one".to_owned(), of_web)].into(), Tick::ZERO);
    server.disconnect(first, Tick::ZERO);
    let other = server.connect(Some(mesh("other")));
    joining("a").into_iter().for_each(|request| server.receive(other, request).unwrap());
    catch_up(&mut server, other);
    assert_eq!(reach(&server).absent, one);
}

#[test]
fn remembers_what_a_proxy_refused_until_another_version_is_sent() {
    let mut server = server(world(1, &[("Route", "a", "1")], &[]));
    let id = open(&mut server, join("Route", &["*"], &[]));
    sent(&mut server, id);
    let rejection = |version: &str| v1::Rejection {
        type_url: type_url::<v1::Route>(),
        name: "a".into(),
        version: version.into(),
        message: "no".into(),
        ..v1::Rejection::default()
    };
    let rejected = vec![rejection("1"), rejection("0")];
    let type_url = crate::commit_type().to_owned();
    server.receive(id, DiscoveryRequest { type_url, rejected, ..DiscoveryRequest::default() }).unwrap();
    let proxies = server.proxies();
    assert_eq!(proxies[0].rejections.len(), 1);
    assert_eq!((&*proxies[0].rejections[0].version, &*proxies[0].rejections[0].message), ("1", "no"));
    assert_eq!(sent(&mut server, id), Vec::<String>::new(), "a refused version is not sent again");
    server.publish(world(2, &[("Route", "a", "2")], &[]));
    assert_eq!(sent(&mut server, id), ["Route a@2", "Commit 2 of 1"]);
    assert_eq!(server.proxies()[0].rejections, []);
}

#[test]
fn a_large_set_is_cut_into_messages_and_still_one_change() {
    let names: Vec<String> = (0..3000).map(|n| format!("r{n:04}")).collect();
    let body = |name: &str| Resource {
        name: name.into(),
        version: "1".into(),
        body: vec![0; 1000].into(),
        ..Resource::default()
    };
    let resources = names.iter().map(|name| (key("Route", name), Arc::new(body(name)))).collect();
    let mut server = server(Publication { revision: 1, resources, ..Publication::default() });
    let settings = Settings::new(Node { id: "test/one".into(), ..Node::default() });
    let mut client = Client::new(settings.all_of([type_url::<v1::Route>()]), None, Tick::ZERO);
    let id = server.connect(None);
    client.connected();
    while let Some(request) = client.poll_request() {
        server.receive(id, request).unwrap();
    }
    let mut messages = 0;
    while let Some(response) = server.next_response(id) {
        assert!(response.encoded_len() < 1024 * 1024);
        messages += 1;
        client.receive(response, Tick::ZERO).unwrap();
    }
    assert!(messages > 5, "{messages}");
    let Some(Event::Batch(batch)) = client.poll_event() else { panic!("one batch") };
    assert_eq!(batch.changes.len(), 3000);
    assert!(batch.changes.iter().all(|change| matches!(change, Change::Upsert(..))));
}

fn observing() -> Vec<DiscoveryRequest> {
    let mut requests = join("Route", &["*"], &[]);
    requests[0].node.as_mut().unwrap().features = vec![meshwork_messages::OBSERVE.to_owned()];
    requests
}

/// The probes that a stream is told of next.
fn told(server: &mut Server, id: StreamId) -> Option<Vec<u64>> {
    let mut responses = std::iter::from_fn(|| server.next_response(id));
    let probes = responses.find_map(|response| response.probes)?;
    Some(probes.probes.iter().map(|probe| probe.id).collect())
}

#[test]
fn probes_reach_who_can_look_now_and_later_and_are_taken_back() {
    let mut server = server(world(1, &[], &[]));
    let can = open(&mut server, observing());
    let cannot = open(&mut server, join("Route", &["*"], &[]));
    assert_eq!(told(&mut server, can), None, "nothing is armed");
    let probe = |id| v1::Probe { id, ..v1::Probe::default() };
    let (subscription, mut found) = Subscription::new(probe(7), None);
    server.observe(subscription).unwrap();
    let (other, _receiver) = Subscription::new(probe(8), Some("test/other".into()));
    server.observe(other).unwrap();
    assert_eq!((told(&mut server, can), told(&mut server, cannot)), (Some(vec![7]), None));
    let later = open(&mut server, observing());
    assert_eq!(told(&mut server, later), Some(vec![7]), "one that joins later is told too");

    let observation = |probe| v1::Observation { probe, ..v1::Observation::default() };
    let observations = vec![observation(7), observation(8), observation(9)];
    server.receive(can, DiscoveryRequest { observations, ..DiscoveryRequest::default() }).unwrap();
    let observed = found.try_recv().unwrap();
    assert_eq!((&*observed.proxy.node.id, observed.observation.probe), ("test/one", 7));
    assert!(found.try_recv().is_err(), "it was not asked to look for 8 and 9");
    server.forget(7);
    assert_eq!(told(&mut server, can), Some(vec![]));
}

#[test]
fn who_was_called_is_told_what_to_keep_and_nobody_else() {
    let mut server = server(world(1, &[], &[]));
    let recording = |id: &str| {
        let mut requests = observing();
        let node = requests[0].node.as_mut().unwrap();
        id.clone_into(&mut node.id);
        node.features.push(meshwork_messages::RECORD.to_owned());
        requests
    };
    let caller = open(&mut server, recording("shop/front-1"));
    let called = open(&mut server, recording("shop/cart-1"));
    let other = open(&mut server, recording("shop/cart-2"));
    let kept = |server: &mut Server, id| {
        let mut responses = std::iter::from_fn(|| server.next_response(id));
        let probes = responses.find_map(|response| response.probes)?;
        Some(probes.keep.into_iter().map(|recall| recall.trace_id).collect::<Vec<_>>())
    };
    let follow = |server: &mut Server, trace: &str| {
        let recall = Some(v1::Recall { trace_id: trace.to_owned(), ..v1::Recall::default() });
        let follow = Some(v1::Follow { recall, instances: vec!["shop/cart-1".to_owned()] });
        let observations = vec![v1::Observation { follow, ..v1::Observation::default() }];
        server.receive(caller, DiscoveryRequest { observations, ..DiscoveryRequest::default() }).unwrap();
        assert!(server.follow(Tick::from_nanos(1)), "others are to be told");
    };
    assert!(!server.follow(Tick::from_nanos(1)), "nothing was said");
    follow(&mut server, "a");
    follow(&mut server, "b");
    assert_eq!(kept(&mut server, called), Some(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!((kept(&mut server, other), kept(&mut server, caller)), (None, None));
    // A probe of somebody else says it again, and takes nothing back.
    let (subscription, _found) = Subscription::new(v1::Probe { id: 7, ..v1::Probe::default() }, None);
    server.observe(subscription).unwrap();
    assert_eq!(kept(&mut server, called).map(|kept| kept.len()), Some(2));
    // Another caller, or another request, tells of the same trace: it was told, and takes no second place.
    follow(&mut server, "a");
    assert_eq!(kept(&mut server, called), None);
    follow(&mut server, "c");
    assert_eq!(kept(&mut server, called), Some(["a", "b", "c"].map(str::to_owned).to_vec()));
    follow(&mut server, &"long".repeat(1_000));
    (0..50).for_each(|n| follow(&mut server, &n.to_string()));
    let kept = kept(&mut server, called).unwrap();
    assert_eq!((kept.len(), kept.last().map(String::as_str)), (16, Some("49")));
}

#[test]
fn a_bounded_number_of_probes_is_armed() {
    let mut server = server(world(1, &[], &[]));
    let arm = |server: &mut Server, id| {
        let probe = v1::Probe { id, ..v1::Probe::default() };
        server.observe(Subscription::new(probe, None).0)
    };
    for id in 0..8 {
        arm(&mut server, id).unwrap();
    }
    assert_eq!(arm(&mut server, 8), Err(TooManyProbes));
    server.forget(3);
    arm(&mut server, 8).unwrap();
}

#[test]
fn a_proxy_is_heard_about_services_that_it_was_told_of() {
    let mut server = server(world(1, &[("Service", "shop/a", "1"), ("Service", "shop/b", "1")], &[]));
    let id = open(&mut server, join("Service", &["shop/a"], &[]));
    let view = |service: &str| v1::ServiceView { service: service.into(), port: 80, ..Default::default() };
    let said = |services: &[&str]| {
        let services = services.iter().map(|service| view(service)).collect();
        DiscoveryRequest { views: Some(v1::Views { services }), ..DiscoveryRequest::default() }
    };
    server.receive(id, said(&["shop/a"])).unwrap();
    assert_eq!(server.take_views()[0].1.services, [], "it has not been told of anything yet");
    sent(&mut server, id);
    server.receive(id, said(&[])).unwrap();
    server.receive(id, said(&["shop/a", "shop/b", "shop/none"])).unwrap();
    let views = server.take_views();
    assert_eq!(views.len(), 1, "its last words count");
    assert_eq!((views[0].0.node.id.as_str(), &views[0].1.services), ("test/one", &vec![view("shop/a")]));
    assert_eq!(server.take_views(), []);
}

#[test]
fn what_a_client_sees_is_said_once_and_again_on_a_new_stream() {
    let settings = Settings::new(Node { id: "test/one".into(), ..Node::default() });
    let mut client = Client::new(settings, None, Tick::ZERO);
    let views = v1::Views {
        services: vec![v1::ServiceView { service: "shop/a".into(), port: 80, ..Default::default() }],
    };
    let said = |client: &mut Client| {
        let requests = std::iter::from_fn(|| client.poll_request());
        requests.filter_map(|request| request.views).collect::<Vec<_>>()
    };
    client.viewed(v1::Views::default());
    client.viewed(views.clone());
    assert!(!client.has_request());
    client.connected();
    assert_eq!(said(&mut client), std::slice::from_ref(&views));
    assert!(!client.has_request() && said(&mut client).is_empty());
    client.disconnected();
    client.connected();
    assert_eq!(said(&mut client), [views]);
}
