use super::*;
use crate::key::endpoint_type;
use meshwork_messages::type_url;
use std::time::Duration;
use v1::rejection::Severity;

const AT: fn(u64) -> Tick = |ms| Tick::ZERO.after(Duration::from_millis(ms));

fn route_type() -> String {
    type_url::<v1::Route>()
}

fn route(name: &str) -> ResourceKey {
    ResourceKey::new(route_type(), name)
}

fn settings() -> Settings {
    let node = v1::Node { id: "test/one".into(), features: vec!["basics".into()], ..v1::Node::default() };
    Settings::new(node).all_of([route_type(), endpoint_type().to_owned()])
}

/// A control plane's pen: writes responses whose commits add up.
#[derive(Default)]
struct Pen {
    offers: Offers,
}

impl Pen {
    fn send(&mut self, client: &mut Client, type_url: &str, names: &[(&str, &str)], now: Tick) {
        let resources = names.iter().map(|(name, version)| {
            self.offers.insert(ResourceKey::new(type_url, *name), (*version).into());
            Resource { name: (*name).to_owned(), version: (*version).to_owned(), ..Resource::default() }
        });
        let resources = resources.collect();
        let response = DiscoveryResponse { type_url: type_url.to_owned(), resources, ..Default::default() };
        client.receive(response, now).unwrap();
    }

    fn commit(&mut self, revision: u64) -> DiscoveryResponse {
        let tally = self.offers.tally();
        let commit = v1::Commit { revision, count: tally.count, hash: tally.hash.to_string() };
        let resource = Resource { body: commit.encode_to_vec().into(), ..Resource::default() };
        let (type_url, nonce) = (commit_type().to_owned(), format!("commit-{revision}"));
        DiscoveryResponse { type_url, resources: vec![resource], nonce, ..Default::default() }
    }
}

fn joined() -> (Client, Pen) {
    let mut client = Client::new(settings(), None, AT(0));
    client.connected();
    while client.poll_request().is_some() {}
    (client, Pen::default())
}

fn batch(client: &mut Client) -> Option<Batch> {
    std::iter::from_fn(|| client.poll_event()).find_map(|event| match event {
        Event::Batch(batch) => Some(batch),
        Event::Answer(..) | Event::Joined | Event::Probes(_) => None,
    })
}

fn answers(client: &mut Client) -> Vec<Answer> {
    let events = std::iter::from_fn(|| client.poll_event());
    let answers = events.filter_map(|event| match event {
        Event::Answer(_, answer) => Some(answer),
        Event::Batch(_) | Event::Joined | Event::Probes(_) => None,
    });
    answers.collect()
}

fn requests(client: &mut Client) -> Vec<DiscoveryRequest> {
    std::iter::from_fn(|| client.poll_request()).collect()
}

fn names(batch: &Batch) -> Vec<&str> {
    batch.changes.iter().map(|change| &*change.key().name).collect()
}

fn error(key: ResourceKey) -> Rejection {
    Rejection { key, severity: Severity::Error, message: "bad".to_owned() }
}

fn initial(client: &mut Client, type_url: &str) -> BTreeMap<String, String> {
    client.disconnected();
    client.connected();
    let mut found = BTreeMap::new();
    for request in requests(client).into_iter().filter(|request| request.type_url == type_url) {
        found.extend(request.initial_versions);
    }
    found
}

#[test]
fn hands_configuration_over_when_its_change_is_closed() {
    let (mut client, mut pen) = joined();
    pen.send(&mut client, &route_type(), &[("a", "1")], AT(0));
    pen.send(&mut client, &route_type(), &[("b", "1")], AT(0));
    assert_eq!(batch(&mut client), None, "half a change is nothing");
    client.receive(pen.commit(7), AT(0)).unwrap();
    let whole = batch(&mut client).unwrap();
    assert_eq!((names(&whole), whole.revision), (vec!["a", "b"], Some(7)));
}

#[test]
fn endpoints_pass_at_once_but_not_ahead_of_the_change_they_belong_to() {
    let (mut client, mut pen) = joined();
    pen.send(&mut client, endpoint_type(), &[("slice", "1")], AT(0));
    let alone = batch(&mut client).unwrap();
    assert_eq!((names(&alone), alone.revision), (vec!["slice"], None));
    pen.send(&mut client, &route_type(), &[("a", "1")], AT(0));
    pen.send(&mut client, endpoint_type(), &[("slice", "2")], AT(0));
    assert_eq!(batch(&mut client), None);
    client.receive(pen.commit(1), AT(0)).unwrap();
    assert_eq!(names(&batch(&mut client).unwrap()).len(), 2);
}

#[test]
fn a_refused_version_is_reported_and_not_remembered_as_held() {
    let (mut client, mut pen) = joined();
    pen.send(&mut client, &route_type(), &[("a", "1"), ("b", "1")], AT(0));
    client.receive(pen.commit(1), AT(0)).unwrap();
    let first = batch(&mut client).unwrap();
    client.settle(first.id, Vec::new(), AT(0));
    pen.send(&mut client, &route_type(), &[("a", "2"), ("b", "2")], AT(0));
    client.receive(pen.commit(2), AT(0)).unwrap();
    let second = batch(&mut client).unwrap();
    requests(&mut client);
    let settled = client.settle(second.id, vec![error(route("a"))], AT(0));
    assert_eq!(settled.accepted.iter().map(Change::key).collect::<Vec<_>>(), [&route("b")]);
    let sent = requests(&mut client);
    let verdicts: Vec<_> = sent.iter().flat_map(|request| &request.rejected).collect();
    assert_eq!((verdicts.len(), &*verdicts[0].name, &*verdicts[0].version), (1, "a", "2"));
    let report = sent.iter().find_map(|request| request.report.clone()).unwrap();
    assert_eq!((report.valid_revision, &*report.last_error), (2, "Route a: bad"));
    let held = initial(&mut client, &route_type());
    assert_eq!(held, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]));
}

#[test]
fn going_back_to_the_version_in_effect_changes_nothing_and_heals() {
    let (mut client, mut pen) = joined();
    for (version, bad) in [("1", false), ("2", true)] {
        pen.send(&mut client, &route_type(), &[("a", version)], AT(0));
        client.receive(pen.commit(1), AT(0)).unwrap();
        let id = batch(&mut client).unwrap().id;
        client.settle(id, bad.then(|| error(route("a"))).into_iter().collect(), AT(0));
    }
    pen.send(&mut client, &route_type(), &[("a", "1")], AT(0));
    client.receive(pen.commit(2), AT(0)).unwrap();
    let back = batch(&mut client).unwrap();
    assert_eq!(back.changes, []);
    client.settle(back.id, Vec::new(), AT(0));
    assert_eq!(client.report().last_error, "");
}

#[test]
fn a_change_that_was_cut_off_is_asked_for_again() {
    let (mut client, mut pen) = joined();
    pen.send(&mut client, &route_type(), &[("a", "1")], AT(0));
    assert_eq!(initial(&mut client, &route_type()), BTreeMap::new(), "it never took effect");
    let mut pen = Pen::default();
    pen.send(&mut client, &route_type(), &[("b", "1")], AT(0));
    client.receive(pen.commit(2), AT(0)).unwrap();
    assert_eq!(names(&batch(&mut client).unwrap()), ["b"]);
}

#[test]
fn a_commit_that_does_not_add_up_makes_it_ask_for_all_and_drop_the_rest() {
    let (mut client, mut pen) = joined();
    pen.send(&mut client, &route_type(), &[("a", "1"), ("b", "1")], AT(0));
    client.receive(pen.commit(1), AT(0)).unwrap();
    let id = batch(&mut client).unwrap().id;
    client.settle(id, Vec::new(), AT(0));
    pen.offers.insert(route("lost"), "1".into());
    let fault = client.receive(pen.commit(2), AT(0)).unwrap_err();
    assert_eq!(fault, StreamFault::Diverged { revision: 2, expected: 3, received: 2 });
    assert_eq!(initial(&mut client, &route_type()), BTreeMap::new());
    let mut pen = Pen::default();
    pen.send(&mut client, &route_type(), &[("a", "1")], AT(0));
    client.receive(pen.commit(3), AT(0)).unwrap();
    let whole = batch(&mut client).unwrap();
    assert!(whole.changes.contains(&Change::Remove(route("b"))), "{whole:?}");
}

#[test]
fn one_subscription_serves_all_waiters_and_answers_when_the_consumer_has_it() {
    let (mut client, mut pen) = joined();
    let key = ResourceKey::new(type_url::<v1::Service>(), "shop/reviews");
    assert!(matches!(client.watch(&key, AT(0), AT(1000)), Watching::Waiting(_)));
    assert!(matches!(client.watch(&key, AT(1), AT(1000)), Watching::Waiting(_)));
    let asked: Vec<_> = requests(&mut client).into_iter().flat_map(|request| request.subscribe).collect();
    assert_eq!(asked, ["shop/reviews"]);
    pen.send(&mut client, &key.type_url, &[("shop/reviews", "1")], AT(2));
    client.receive(pen.commit(1), AT(2)).unwrap();
    let found = batch(&mut client).unwrap();
    assert_eq!(answers(&mut client), [], "not before the consumer holds it");
    client.settle(found.id, Vec::new(), AT(3));
    assert_eq!(answers(&mut client), [Answer::Present, Answer::Present]);
    assert_eq!(client.watch(&key, AT(4), AT(5)), Watching::Now(Answer::Present));
}

#[test]
fn a_no_is_believed_for_five_seconds_and_then_asked_again() {
    let (mut client, _) = joined();
    let key = ResourceKey::new(type_url::<v1::Service>(), "shop/nobody");
    client.watch(&key, AT(0), AT(10_000));
    let absent = vec!["shop/nobody".to_owned()];
    let no = DiscoveryResponse { type_url: key.type_url.to_string(), absent, ..Default::default() };
    client.receive(no, AT(10)).unwrap();
    assert_eq!(answers(&mut client), [Answer::Absent]);
    requests(&mut client);
    assert_eq!(client.watch(&key, AT(5_009), AT(9_000)), Watching::Now(Answer::Absent));
    assert_eq!(requests(&mut client), []);
    assert!(matches!(client.watch(&key, AT(5_010), AT(9_000)), Watching::Waiting(_)));
    assert_eq!(requests(&mut client)[0].subscribe, ["shop/nobody"]);
}

#[test]
fn a_waiter_gives_up_at_its_deadline_and_an_unused_name_is_dropped() {
    let (mut client, _) = joined();
    let key = ResourceKey::new(type_url::<v1::Service>(), "shop/slow");
    client.watch(&key, AT(0), AT(100));
    assert_eq!(client.deadline(), Some(AT(100)));
    client.tick(AT(99));
    assert_eq!(answers(&mut client), []);
    client.tick(AT(100));
    assert_eq!(answers(&mut client), [Answer::Unavailable]);
    client.touch(&key, AT(1000));
    requests(&mut client);
    client.tick(client.deadline().unwrap());
    assert_eq!(requests(&mut client)[0].unsubscribe, ["shop/slow"]);
    assert_eq!(client.deadline(), None);
}

#[test]
fn what_is_subscribed_to_for_good_is_not_dropped_because_it_was_once_asked_for() {
    let own = ResourceKey::new(type_url::<v1::Workload>(), "shop/web-1");
    let settings = Settings { subscriptions: vec![own.clone()], ..settings() }.all_of([route_type()]);
    let mut client = Client::new(settings, None, AT(0));
    client.connected();
    let mut pen = Pen::default();
    for key in [&own, &route("a")] {
        client.watch(key, AT(0), AT(100));
        pen.send(&mut client, &key.type_url, &[(&key.name, "1")], AT(1));
    }
    client.receive(pen.commit(1), AT(1)).unwrap();
    let update = batch(&mut client).unwrap();
    client.settle(update.id, Vec::new(), AT(1));
    assert_eq!(answers(&mut client), [Answer::Present, Answer::Present]);
    requests(&mut client);
    client.tick(AT(3_600_000));
    assert!(requests(&mut client).iter().all(|request| request.unsubscribe.is_empty()));
    assert_eq!(client.deadline(), None, "nor is it looked at again");
    assert!(matches!(client.watch(&own, AT(3_600_000), AT(3_600_100)), Watching::Now(Answer::Present)));
}

fn preload() -> Preload {
    let resource = |name: &str| Resource { name: name.into(), version: "1".into(), ..Resource::default() };
    let resources = ["a", "b"].map(|name| (route(name), Arc::new(resource(name))));
    Preload { resources: resources.into(), revision: 3 }
}

#[test]
fn starts_from_the_cache_when_the_control_plane_is_away() {
    let mut client = Client::new(settings(), Some(preload()), AT(0));
    assert_eq!(batch(&mut client), None, "the control plane has a second to answer");
    client.tick(client.deadline().unwrap());
    let cached = batch(&mut client).unwrap();
    assert!(cached.from_cache && names(&cached) == ["a", "b"] && cached.revision == Some(3));
    client.settle(cached.id, vec![error(route("b"))], AT(1000));
    let told = BTreeMap::from([("a".into(), "1".into()), ("b".into(), String::new())]);
    assert_eq!(initial(&mut client, &route_type()), told, "what is refused is asked for anew");
}

#[test]
fn merges_the_cache_with_what_changed_meanwhile_into_one_first_change() {
    let mut client = Client::new(settings(), Some(preload()), AT(0));
    client.connected();
    let mut pen = Pen::default();
    pen.offers.insert(route("a"), "1".into());
    pen.send(&mut client, &route_type(), &[("b", "2")], AT(5));
    client.receive(pen.commit(9), AT(5)).unwrap();
    let first = batch(&mut client).unwrap();
    assert!(!first.from_cache && first.revision == Some(9), "{first:?}");
    let versions = first.changes.iter().map(|change| match change {
        Change::Upsert(_, resource) => resource.version.as_str(),
        other => panic!("{other:?}"),
    });
    assert_eq!(versions.collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(client.deadline(), None);
}

#[test]
fn the_cached_version_stays_when_the_first_change_is_bad() {
    let mut client = Client::new(settings(), Some(preload()), AT(0));
    client.connected();
    let mut pen = Pen::default();
    pen.offers.insert(route("a"), "1".into());
    pen.send(&mut client, &route_type(), &[("b", "2")], AT(5));
    client.receive(pen.commit(9), AT(5)).unwrap();
    let first = batch(&mut client).unwrap();
    client.settle(first.id, vec![error(route("b"))], AT(5));
    let kept = batch(&mut client).unwrap();
    assert!(
        matches!(&kept.changes[..], [Change::Upsert(key, old)] if *key == route("b") && old.version == "1")
    );
    client.settle(kept.id, Vec::new(), AT(5));
    assert_eq!(client.report().last_error, "Route b: bad");
    let held = initial(&mut client, &route_type());
    assert_eq!(held, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "1".into())]));
}

#[test]
fn what_needs_a_missing_feature_is_refused_and_shown_to_the_consumer() {
    let (mut client, mut pen) = joined();
    pen.offers.insert(route("new"), "1".into());
    let requires = vec!["basics".to_owned(), "magic".to_owned()];
    let resource = Resource { name: "new".into(), version: "1".into(), requires, ..Resource::default() };
    let response =
        DiscoveryResponse { type_url: route_type(), resources: vec![resource], ..Default::default() };
    client.receive(response, AT(0)).unwrap();
    client.receive(pen.commit(1), AT(0)).unwrap();
    let whole = batch(&mut client).unwrap();
    assert!(matches!(&whole.changes[..], [Change::Unsupported { missing, .. }] if *missing == ["magic"]));
    let settled = client.settle(whole.id, Vec::new(), AT(0));
    assert_eq!((settled.accepted, settled.unsupported), (Vec::new(), whole.changes));
    assert!(client.report().last_error.contains("magic"));
}

/// A client that knows a resource for which it lacks a feature, and nothing else.
fn lacking(preload: bool) -> Client {
    let requires = vec!["magic".to_owned()];
    let resource = Resource { name: "new".into(), version: "1".into(), requires, ..Resource::default() };
    if preload {
        let resources = BTreeMap::from([(route("new"), Arc::new(resource))]);
        let mut client = Client::new(settings(), Some(Preload { resources, revision: 1 }), AT(0));
        client.connection_failed();
        return client;
    }
    let (mut client, mut pen) = joined();
    pen.offers.insert(route("new"), "1".into());
    let type_url = route_type();
    client
        .receive(DiscoveryResponse { type_url, resources: vec![resource], ..Default::default() }, AT(0))
        .unwrap();
    client.receive(pen.commit(1), AT(0)).unwrap();
    client
}

#[test]
fn what_lacks_a_feature_is_shown_from_the_cache_as_what_it_is() {
    let from_cache = batch(&mut lacking(true)).unwrap();
    assert!(matches!(&from_cache.changes[..], [Change::Unsupported { key, .. }] if *key == route("new")));
}

#[test]
fn what_was_refused_and_has_gone_while_there_was_no_stream_goes_here_too() {
    for (preload, resync) in [(false, false), (false, true), (true, false)] {
        let mut client = lacking(preload);
        let refused = batch(&mut client).unwrap();
        let told = BTreeMap::from([("new".to_owned(), String::new())]);
        assert_eq!(initial(&mut client, &route_type()), told, "under way");
        client.settle(refused.id, Vec::new(), AT(0));
        assert_eq!(initial(&mut client, &route_type()), told, "refused");
        if resync {
            let mut astray = Pen::default();
            astray.offers.insert(route("x"), "1".into());
            client.receive(astray.commit(2), AT(0)).unwrap_err();
            assert_eq!(initial(&mut client, &route_type()), BTreeMap::new());
        } else {
            let removed = vec!["new".to_owned()];
            let response = DiscoveryResponse { type_url: route_type(), removed, ..Default::default() };
            client.receive(response, AT(0)).unwrap();
        }
        client.receive(Pen::default().commit(3), AT(0)).unwrap();
        let gone = batch(&mut client).unwrap();
        assert_eq!(gone.changes, [Change::Remove(route("new"))]);
        client.settle(gone.id, Vec::new(), AT(0));
        assert_eq!(client.report().last_error, "");
        assert_eq!(initial(&mut client, &route_type()), BTreeMap::new());
    }
}

#[test]
fn probes_end_with_the_stream_and_what_waits_is_bounded() {
    let (mut client, _) = joined();
    let probes = |client: &mut Client| {
        std::iter::from_fn(|| client.poll_event()).find_map(|event| match event {
            Event::Probes(probes) => Some(probes.probes.len()),
            Event::Batch(_) | Event::Answer(..) | Event::Joined => None,
        })
    };
    let armed =
        v1::Probes { probes: vec![v1::Probe { id: 7, ..v1::Probe::default() }], ..v1::Probes::default() };
    client.receive(DiscoveryResponse { probes: Some(armed), ..Default::default() }, AT(0)).unwrap();
    assert_eq!(probes(&mut client), Some(1));
    client.armed(vec![7]);
    let report = client.poll_request().unwrap();
    assert_eq!(report.report.unwrap().probes, [7]);
    for _ in 0..OBSERVATIONS + 2 {
        client.observed(Observation { probe: 7, ..Observation::default() });
    }
    let sent = client.poll_request().unwrap();
    assert_eq!((sent.observations.len(), sent.type_url.as_str()), (OBSERVATIONS, ""));
    assert_eq!(sent.observations.last().unwrap().dropped, 1);
    assert_eq!(sent.observations.iter().map(|o| o.dropped).sum::<u64>(), 2);
    for _ in 0..OBSERVATIONS + 2 {
        client.observed(Observation { probe: 7, ..Observation::default() });
    }
    while client.poll_request().is_some() {}
    for probe in [8].into_iter().cycle().take(OBSERVATIONS).chain([9]) {
        client.observed(Observation { probe, ..Observation::default() });
    }
    client.armed(vec![9]);
    assert_eq!(client.lost.len(), 0, "nobody will ask what was lost of the others");
    client.disconnected();
    assert_eq!(probes(&mut client), Some(0));
    client.observed(Observation::default());
    client.connected();
    let requests = std::iter::from_fn(|| client.poll_request());
    assert!(requests.into_iter().all(|request| request.observations.is_empty()), "nobody asks any more");
}

#[test]
fn without_a_stream_one_waits_for_it_and_the_others_are_told_at_once() {
    let (mut client, _) = joined();
    client.disconnected();
    let service = ResourceKey::of::<v1::Service>("shop/reviews");
    client.watch(&service, AT(0), AT(2000));
    client.tick(AT(1999));
    assert_eq!(answers(&mut client), [], "the stream may come back");
    client.tick(AT(2000));
    assert_eq!(answers(&mut client), [Answer::Unavailable]);
    client.watch(&service, AT(2001), AT(4001));
    assert_eq!(client.deadline(), Some(AT(2001)));
    client.tick(AT(2001));
    assert_eq!(answers(&mut client), [Answer::Unavailable], "nobody else waits in vain");

    client.connected();
    let asked = requests(&mut client).into_iter().flat_map(|request| request.subscribe);
    assert!(asked.into_iter().any(|name| name == "shop/reviews"), "it is wanted all the same");
    client.watch(&service, AT(3000), AT(5000));
    client.tick(AT(3001));
    assert_eq!(answers(&mut client), [], "there is somebody to ask now");
}

#[test]
fn trouble_with_the_identity_is_the_last_error_until_it_is_over() {
    let (mut client, _) = joined();
    client.bound(BTreeMap::new(), BTreeMap::from([("edge/http".to_owned(), "port 80 is taken".to_owned())]));
    client.troubled(Some("the SVID is not renewed".to_owned()));
    assert_eq!(client.report().last_error, "the SVID is not renewed");
    assert!(client.has_request(), "and it is said");
    while client.poll_request().is_some() {}
    client.troubled(Some("the SVID is not renewed".to_owned()));
    assert!(!client.has_request(), "once");
    client.troubled(None);
    assert_eq!(client.report().last_error, "edge/http: port 80 is taken");
}
