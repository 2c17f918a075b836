use std::time::Duration;

use meshwork_base::{SeededRng, Tick};

use super::*;
use crate::route::Route;
use crate::tests::{
    at_listener, backend, build, key, listener, path, prefix, regex, route, route_message, routed, rule,
    service, service_change, slice, source, wire_endpoint,
};
use crate::{Answer, AttemptOutcome, Cluster, Endpoint, Exclusion, NoReasons, OwnedRequest, Wanted};

fn to(at: &str, service: &str) -> Vec<v1::Rule> {
    vec![v1::Rule { backends: vec![backend(service, 80, 1)], ..rule(vec![path(prefix(at))]) }]
}

#[test]
fn a_bad_resource_is_rejected_alone_and_its_last_version_stays() {
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, [listener("ns/gw/web", 80, ""), route("ns/r", 1, &[], to("/old", "ns/a"))]);
    let bad = route("ns/r", 1, &[], vec![rule(vec![path(prefix("/ok")), path(regex("/a(b"))])]);
    let good = route("ns/other", 1, &[], to("/new", "ns/a"));
    let rejections = builder.apply([bad, good]);
    let [rejection] = &rejections[..] else { panic!("one is rejected: {rejections:?}") };
    assert_eq!(&*rejection.name, "HTTPRoute/ns/r");
    assert!(rejection.message.contains("rules[0].matches[1].path"), "{}", rejection.message);
    assert!(rejection.message.contains("/a(b"), "{}", rejection.message);
    let snapshot = builder.build();
    assert_eq!(routed(&snapshot, &OwnedRequest::get("h", "/old")), "ns/r#0.0");
    assert_eq!(routed(&snapshot, &OwnedRequest::get("h", "/new")), "ns/other#0.0");
}

#[test]
fn what_a_proxy_cannot_do_is_refused_with_its_place() {
    let with_filter = |filter: Option<v1::filter::Kind>, matched| {
        let filters = vec![v1::Filter { kind: filter }];
        vec![v1::Rule { filters, ..rule(vec![path(matched)]) }]
    };
    let swap = v1::PathEdit { kind: Some(v1::path_edit::Kind::Prefix("/x".into())) };
    let rewrite = v1::Rewrite { hostname: String::new(), path: Some(swap) };
    let framing = v1::FieldEdits { remove: vec!["Content-Length".into()], ..Default::default() };
    let header = |value: &str| {
        let set = vec![v1::Field { name: "x".into(), value: value.into() }];
        v1::filter::Kind::RequestHeaders(v1::FieldEdits { set, ..Default::default() })
    };
    use v1::filter::Kind;
    for (rules, place) in [
        (with_filter(None, prefix("/")), "rules[0].filters[0] is absent"),
        (with_filter(Some(Kind::Rewrite(rewrite)), regex("/a")), "PathPrefix"),
        (with_filter(Some(Kind::RequestHeaders(framing)), prefix("/")), "frames the message"),
        (with_filter(Some(header("a\r\nb: c")), prefix("/")), "control characters"),
        (
            with_filter(
                Some(Kind::Redirect(v1::Redirect { status: 200, ..Default::default() })),
                prefix("/"),
            ),
            "301",
        ),
        (vec![rule(vec![path(prefix("a"))])], "begins with `/`"),
        (vec![rule(vec![v1::Match::default()])], "matches[0].path is absent"),
        (vec![v1::Rule { backends: vec![backend("", 80, 1)], ..Default::default() }], "backends[0].service"),
    ] {
        let rejections = SnapshotBuilder::new().apply([route("ns/r", 1, &[], rules)]);
        assert!(rejections.len() == 1 && rejections[0].message.contains(place), "{place}: {rejections:?}");
    }
    let twice = service_change(&service("ns/a", &[("x", 80), ("y", 80)]));
    assert!(SnapshotBuilder::new().apply([twice])[0].message.contains("each port once"));
    let garbage = Change::Upsert {
        type_url: "type.meshwork.dev/meshwork.v1.Service".into(),
        name: "a/b".into(),
        version: "7".into(),
        body: b"\xff\xff\xff".as_slice().into(),
    };
    let unknown = Change::Upsert {
        type_url: "type.example/Else".into(),
        name: "a".into(),
        version: "8".into(),
        body: Bytes::new(),
    };
    let rejections = SnapshotBuilder::new().apply([garbage, unknown]);
    assert_eq!(rejections.iter().map(|r| &*r.version).collect::<Vec<_>>(), ["7", "8"]);
}

/// Ten hosts with ten routes each, two listeners.
fn many() -> Vec<Change> {
    let mut changes = vec![listener("ns/gw/web", 80, ""), listener("ns/gw/other", 81, "")];
    for host in 0..10 {
        for r in 0..10 {
            let at = format!("/r{r}");
            let hosts = [format!("h{host}.example")];
            let listener = if host == 0 { "ns/gw/other" } else { "ns/gw/web" };
            let message = route_message(
                &format!("ns/h{host}-r{r}"),
                1,
                vec![at_listener(listener, &[&hosts[0]])],
                to(&at, if r == 0 { "ns/b" } else { "ns/a" }),
            );
            changes.push(Change::upsert(&format!("HTTPRoute/ns/h{host}-r{r}"), "1", &message));
        }
    }
    changes.extend(["ns/a", "ns/b"].map(|name| service_change(&service(name, &[("", 80)]))));
    changes
}

fn tables(snapshot: &Snapshot, port: u16) -> Vec<Option<Arc<crate::table::HostTable>>> {
    let binding = snapshot.bindings().iter().find(|b| b.port == port).expect("bound");
    let of = |h: usize| crate::HostPattern::parse(&format!("h{h}.example")).expect("a host");
    (0..10).map(|h| binding.listeners[0].routes.get(&of(h)).cloned()).collect()
}

#[test]
fn an_edit_of_one_route_rebuilds_only_what_it_touches() {
    let mut builder = SnapshotBuilder::new();
    let before = build(&mut builder, many());
    assert!(!builder.is_stale());
    let edit = route("ns/h3-r5", 1, &["h3.example"], to("/changed", "ns/a"));
    assert_eq!(builder.apply([edit]), []);
    assert!(builder.is_stale());
    let after = builder.build();
    for (h, (a, b)) in tables(&before, 80).iter().zip(&tables(&after, 80)).enumerate().skip(1) {
        let same = Arc::ptr_eq(a.as_ref().unwrap(), b.as_ref().unwrap());
        assert_eq!(same, h != 3, "table of h{h}");
    }
    for (name, route) in &after.routes {
        assert_eq!(Arc::ptr_eq(route, &before.routes[name]), !name.ends_with("h3-r5"), "{name}");
    }
    for (key, cluster) in &after.clusters {
        assert!(Arc::ptr_eq(cluster, &before.clusters[key]), "{key}");
    }
    let other = |s: &Snapshot| Arc::clone(s.bindings().iter().find(|b| b.port == 81).expect("bound"));
    assert!(Arc::ptr_eq(&other(&before), &other(&after)), "another port is untouched");
    assert!(Arc::ptr_eq(&after, &builder.build()), "nothing changed, nothing is built");
    let request = OwnedRequest::get("h3.example", "/changed");
    assert_eq!(routed(&after, &request), "ns/h3-r5#0.0");
    assert_eq!(routed(&before, &request), "no_rule", "the old snapshot is what it was");
}

/// Five thousand routes: each on a host of its own, or each on a path of one host.
fn five_thousand(own_hosts: bool) -> Vec<Change> {
    let named = |n: usize| {
        let (host, at) = match own_hosts {
            true => (format!("h{n}.example"), "/api".to_owned()),
            false => ("h.example".to_owned(), format!("/r{n}")),
        };
        route(&format!("ns/r{n}"), 1, &[host.as_str()], to(&at, "ns/a"))
    };
    let surroundings = [listener("ns/gw/web", 80, ""), service_change(&service("ns/a", &[("", 80)]))];
    surroundings.into_iter().chain((0..5000).map(named)).collect()
}

#[test]
fn an_edit_among_five_thousand_hosts_shares_every_other_table() {
    let mut builder = SnapshotBuilder::new();
    let before = build(&mut builder, five_thousand(true));
    assert_eq!(builder.apply([route("ns/r7", 1, &["h7.example"], to("/new", "ns/a"))]), []);
    let after = builder.build();
    let hosts = |snapshot: &Snapshot| Arc::clone(&snapshot.bindings()[0].listeners[0].routes);
    let (old, new) = (hosts(&before), hosts(&after));
    assert_eq!(new.patterns().len(), 5000);
    let other =
        |pattern: &crate::HostPattern| !Arc::ptr_eq(old.get(pattern).unwrap(), new.get(pattern).unwrap());
    let rebuilt: Vec<_> =
        new.patterns().into_iter().filter(other).map(|pattern| pattern.to_string()).collect();
    assert_eq!(rebuilt, ["h7.example"]);
    let route = |(name, route): (&Arc<str>, &Arc<Route>)| {
        (!Arc::ptr_eq(route, &before.routes[name])).then(|| name.to_string())
    };
    assert_eq!(after.routes.iter().filter_map(route).collect::<Vec<_>>(), ["HTTPRoute/ns/r7"]);
    assert_eq!(routed(&after, &OwnedRequest::get("h7.example", "/new")), "ns/r7#0.0");
    assert_eq!(routed(&after, &OwnedRequest::get("h8.example", "/api")), "ns/r8#0.0");
}

#[test]
fn an_edit_among_five_thousand_paths_of_a_host_shares_every_other_bucket() {
    let mut builder = SnapshotBuilder::new();
    let before = build(&mut builder, five_thousand(false));
    assert_eq!(builder.apply([route("ns/r7", 1, &["h.example"], to("/r7/new", "ns/a"))]), []);
    let after = builder.build();
    let table = |snapshot: &Snapshot| {
        let routes = &snapshot.bindings()[0].listeners[0].routes;
        Arc::clone(routes.get(&crate::HostPattern::parse("h.example").unwrap()).unwrap())
    };
    let (old, new) = (table(&before), table(&after));
    let held: BTreeMap<_, _> = old.buckets().collect();
    let is_fresh =
        |(path, bucket): &(&str, &Arc<_>)| !held.get(path).is_some_and(|old| Arc::ptr_eq(old, bucket));
    let mut fresh = new.buckets().filter(is_fresh);
    assert_eq!(fresh.next().map(|(path, _)| path), Some("/r7/new"));
    assert!(fresh.next().is_none(), "every other bucket is the one before");
    assert_eq!(new.buckets().count(), 5000);
}

#[test]
fn a_route_that_moves_leaves_its_old_host() {
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, many());
    let moved = build(&mut builder, [route("ns/h3-r5", 1, &["h4.example"], to("/moved", "ns/a"))]);
    assert_eq!(routed(&moved, &OwnedRequest::get("h4.example", "/moved")), "ns/h3-r5#0.0");
    assert_eq!(routed(&moved, &OwnedRequest::get("h3.example", "/r5")), "no_rule");
    let gone: Vec<_> =
        (0..10).map(|r| Change::remove::<v1::Route>(&format!("HTTPRoute/ns/h7-r{r}"))).collect();
    let without = build(&mut builder, gone);
    assert_eq!(routed(&without, &OwnedRequest::get("h7.example", "/r1")), "no_host");
    assert!(tables(&without, 80)[7].is_none());
}

#[test]
fn a_service_that_comes_late_reaches_the_routes_that_wait_for_it() {
    let mut builder = SnapshotBuilder::new();
    let cluster = |s: &Snapshot| s.routes["HTTPRoute/ns/r"].rules[0].backends[0].cluster().cloned();
    let early = build(&mut builder, [listener("ns/gw/web", 80, ""), route("ns/r", 1, &[], to("/", "ns/a"))]);
    assert!(cluster(&early).is_none());
    let late = build(&mut builder, [service_change(&service("ns/a", &[("", 80)]))]);
    assert!(Arc::ptr_eq(&cluster(&late).unwrap(), late.cluster(&key("ns/a", 80)).unwrap()));
    let gone = build(&mut builder, [Change::remove::<v1::Service>("ns/a")]);
    assert!(cluster(&gone).is_none() && gone.cluster(&key("ns/a", 80)).is_none());
}

fn cluster(snapshot: &Snapshot) -> Arc<Cluster> {
    Arc::clone(snapshot.cluster(&key("ns/a", 80)).expect("delivered"))
}

fn endpoints(cluster: &Cluster) -> Vec<Arc<Endpoint>> {
    cluster.endpoints().all().to_vec()
}

#[test]
fn endpoint_changes_are_in_effect_without_a_new_snapshot() {
    let mut builder = SnapshotBuilder::new();
    let snapshot = build(&mut builder, [service_change(&service("ns/a", &[("http", 80), ("admin", 81)]))]);
    let cluster = cluster(&snapshot);
    assert!(cluster.pick(Tick::ZERO, &mut SeededRng::new(1), &[]).is_none());
    let one =
        slice("ns/a-1", "ns/a", ("http", 8080), vec![wire_endpoint("10.0.0.1"), wire_endpoint("10.0.0.2")]);
    let two = slice("ns/a-2", "ns/a", ("http", 9090), vec![wire_endpoint("10.0.0.3")]);
    assert_eq!(builder.apply([one, two]), []);
    assert!(!builder.is_stale());
    let addresses: Vec<_> = endpoints(&cluster).iter().map(|e| e.address().to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:9090"], "slices are merged");
    assert!(snapshot.cluster(&key("ns/a", 81)).unwrap().endpoints().all().is_empty(), "another port");

    let before = endpoints(&cluster);
    let _running = before[1].begin();
    let draining =
        v1::Endpoint { health: v1::endpoint::Health::Draining.into(), ..wire_endpoint("10.0.0.2") };
    let suspect = v1::Endpoint { health: v1::endpoint::Health::Suspect.into(), ..wire_endpoint("10.0.0.4") };
    builder.apply([slice(
        "ns/a-1",
        "ns/a",
        ("http", 8080),
        vec![wire_endpoint("10.0.0.1"), draining, suspect],
    )]);
    let after = endpoints(&cluster);
    assert!(Arc::ptr_eq(&before[0], &after[0]), "unchanged endpoints are shared");
    assert_eq!((after[1].id, after[1].excluded), (before[1].id, Some(Exclusion::Draining)));
    assert_eq!(after[1].stats.in_flight(), 1, "counts belong to the address");
    let pickable: Vec<_> =
        cluster.endpoints().pickable().iter().map(|e| e.address().ip().to_string()).collect();
    assert_eq!(pickable, ["10.0.0.1", "10.0.0.4", "10.0.0.3"]);

    builder.apply([Change::remove::<v1::EndpointSlice>("ns/a-1")]);
    assert_eq!(endpoints(&cluster).len(), 1);
    builder.apply([slice("ns/a-2", "ns/b", ("http", 9090), vec![wire_endpoint("10.0.0.3")])]);
    assert!(endpoints(&cluster).is_empty(), "a slice that changes its service leaves the old one");
}

#[test]
fn those_that_are_leaving_and_still_serve_are_called_while_there_is_nobody_else() {
    let mut builder = SnapshotBuilder::new();
    let snapshot = build(&mut builder, [service_change(&service("ns/a", &[("http", 80)]))]);
    let cluster = cluster(&snapshot);
    let with = |health: v1::endpoint::Health, address| v1::Endpoint {
        health: health.into(),
        ..wire_endpoint(address)
    };
    let (leaving, unwell) = (v1::endpoint::Health::Draining, v1::endpoint::Health::Unhealthy);
    let suspect = v1::endpoint::Health::Suspect;
    let mut pickable = |number: &str, endpoints| {
        builder.apply([slice(&format!("ns/a-{number}"), "ns/a", ("http", 8080), endpoints)]);
        let set = cluster.endpoints();
        set.pickable().iter().map(|e| (e.address().ip().to_string(), e.id)).collect::<Vec<_>>()
    };
    let before = pickable("1", vec![wire_endpoint("10.0.0.1")]);
    let after = pickable("1", vec![with(leaving, "10.0.0.1"), with(unwell, "10.0.0.2")]);
    assert_eq!(after, before, "with the connections that it has");
    let other = pickable("2", vec![wire_endpoint("10.0.0.3")]);
    assert_eq!(other[0].0, "10.0.0.3", "another slice has one that stays");
    assert_eq!(other.len(), 1);
    let other = pickable("2", vec![with(suspect, "10.0.0.3")]);
    assert_eq!(
        (&*other[0].0, other.len()),
        ("10.0.0.3", 1),
        "and may be called, though it is not sure how it is"
    );
    assert_eq!(pickable("2", vec![with(unwell, "10.0.0.3")]), before);
    let sidecar = v1::Endpoint {
        transport: v1::endpoint::Transport::Mesh.into(),
        mesh_port: 15_006,
        spiffe_id: "spiffe://mesh.local/ns/ns/sa/a".into(),
        ..with(leaving, "10.0.0.1")
    };
    assert_eq!(pickable("1", vec![sidecar]), [], "a sidecar takes nothing new");
}

#[test]
fn those_that_are_leaving_are_called_where_others_have_other_ports_alone() {
    let mut builder = SnapshotBuilder::new();
    let leaving = v1::Endpoint { health: v1::endpoint::Health::Draining.into(), ..wire_endpoint("10.0.0.1") };
    let snapshot = build(
        &mut builder,
        [
            service_change(&service("ns/a", &[("http", 80)])),
            slice("ns/a-1", "ns/a", ("http", 8080), vec![leaving]),
            slice("ns/a-2", "ns/a", ("admin", 9090), vec![wire_endpoint("10.0.0.2")]),
        ],
    );
    assert_eq!(cluster(&snapshot).endpoints().pickable().len(), 1);
}

#[test]
fn an_instance_in_two_slices_counts_once_and_serves_if_either_says_so() {
    let mut builder = SnapshotBuilder::new();
    let unhealthy =
        v1::Endpoint { health: v1::endpoint::Health::Unhealthy.into(), ..wire_endpoint("10.0.0.1") };
    let snapshot = build(
        &mut builder,
        [
            service_change(&service("ns/a", &[("", 80)])),
            slice("ns/1", "ns/a", ("", 8080), vec![unhealthy]),
            slice("ns/2", "ns/a", ("", 8080), vec![wire_endpoint("10.0.0.1")]),
        ],
    );
    assert_eq!(
        (cluster(&snapshot).endpoints().all().len(), cluster(&snapshot).endpoints().pickable().len()),
        (1, 1)
    );
}

#[test]
fn two_sidecars_before_one_address_are_two_endpoints() {
    let behind = |mesh_port, instance: &str| v1::Endpoint {
        transport: v1::endpoint::Transport::Mesh.into(),
        mesh_port,
        spiffe_id: "spiffe://m/ns/ns/sa/a".into(),
        instance: instance.into(),
        ..wire_endpoint("127.0.0.1")
    };
    let mut builder = SnapshotBuilder::new();
    let all = |ports: &[u32]| {
        let endpoints = ports.iter().map(|&port| behind(port, &format!("a-{port}"))).collect();
        slice("ns/1", "ns/a", ("", 8080), endpoints)
    };
    let world = [service_change(&service("ns/a", &[("", 80)])), all(&[15006, 25006])];
    let snapshot = build(&mut builder, world);
    let ports = || -> Vec<u16> {
        endpoints(&cluster(&snapshot)).iter().map(|endpoint| endpoint.http_address().port()).collect()
    };
    assert_eq!(ports(), [15006, 25006]);
    let before = endpoints(&cluster(&snapshot));
    builder.apply([all(&[25006, 15006, 35006])]);
    assert_eq!(ports(), [25006, 15006, 35006]);
    let after = endpoints(&cluster(&snapshot));
    assert!(Arc::ptr_eq(&before[0], &after[1]) && Arc::ptr_eq(&before[1], &after[0]), "each stays itself");
    assert!(!Arc::ptr_eq(&after[2].stats, &after[0].stats), "nobody counts for another");
}

#[test]
fn only_the_named_identities_serve_a_service() {
    let mesh = |address: &str, id: &str| v1::Endpoint {
        transport: v1::endpoint::Transport::Mesh.into(),
        mesh_port: 15006,
        spiffe_id: id.into(),
        ..wire_endpoint(address)
    };
    let (good, bad) = ("spiffe://m/ns/ns/sa/a", "spiffe://m/ns/ns/sa/thief");
    let owned = v1::Service { spiffe_ids: vec![good.into()], ..service("ns/a", &[("", 80)]) };
    let all = vec![mesh("10.0.0.1", good), mesh("10.0.0.2", bad), wire_endpoint("10.0.0.3")];
    let mut builder = SnapshotBuilder::new();
    let snapshot = build(&mut builder, [service_change(&owned), slice("ns/1", "ns/a", ("", 8080), all)]);
    let excluded: Vec<_> = endpoints(&cluster(&snapshot)).iter().map(|e| e.excluded).collect();
    assert_eq!(excluded, [None, Some(Exclusion::WrongIdentity), Some(Exclusion::WrongIdentity)]);
    let first = endpoints(&cluster(&snapshot)).remove(0);
    assert_eq!((first.http_address().port(), first.spiffe_id().unwrap().as_str()), (15006, good));

    // Another identity at the same address: its connections must not be reused, its counts may.
    let owned = v1::Service { spiffe_ids: vec![good.into(), bad.into()], ..service("ns/a", &[("", 80)]) };
    let snapshot = build(&mut builder, [service_change(&owned)]);
    builder.apply([slice("ns/1", "ns/a", ("", 8080), vec![mesh("10.0.0.1", bad)])]);
    let replaced = endpoints(&cluster(&snapshot)).remove(0);
    assert_ne!(replaced.id, first.id);
    assert!(Arc::ptr_eq(&replaced.stats, &first.stats));

    let broken = v1::Endpoint { spiffe_id: String::new(), ..mesh("10.0.0.9", good) };
    let rejections = builder.apply([slice("ns/1", "ns/a", ("", 8080), vec![broken])]);
    assert!(rejections[0].message.contains("endpoints[0].spiffe_id"), "{rejections:?}");
    assert_eq!(endpoints(&cluster(&snapshot)).len(), 1, "the last good slice stays");
}

#[test]
fn another_protocol_means_other_connections() {
    let mut builder = SnapshotBuilder::new();
    let of = |protocol: v1::service_port::AppProtocol| {
        let mut message = service("ns/a", &[("", 80)]);
        message.ports[0].protocol = protocol.into();
        service_change(&message)
    };
    let http1 = of(v1::service_port::AppProtocol::Http1);
    let first =
        build(&mut builder, [http1, slice("ns/1", "ns/a", ("", 8080), vec![wire_endpoint("10.0.0.1")])]);
    let second = build(&mut builder, [of(v1::service_port::AppProtocol::Http2)]);
    let id = |s: &Snapshot| endpoints(&cluster(s))[0].id;
    assert_ne!(id(&first), id(&second));
    assert_eq!(endpoints(&cluster(&second)).len(), 1);
}

#[test]
fn ejections_survive_updates() {
    let mut builder = SnapshotBuilder::new();
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(2),
        base_ejection_time_ms: 30_000,
        max_ejection_percent: 50,
        ..crate::tests::rows_off()
    };
    let policy = v1::Policy {
        source: source("TrafficPolicy", "ns/p", 0),
        targets: vec![v1::policy::Target {
            kind: "Service".into(),
            name: "ns/a".into(),
            section: String::new(),
        }],
        spec: Some(v1::policy::Spec::Traffic(v1::TrafficPolicy {
            outlier_detection: Some(outlier),
            ..Default::default()
        })),
    };
    let set = |weight| {
        let heavy = v1::Endpoint { weight, ..wire_endpoint("10.0.0.1") };
        slice("ns/1", "ns/a", ("", 8080), vec![heavy, wire_endpoint("10.0.0.2")])
    };
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        set(1),
        Change::upsert("TrafficPolicy/ns/p", "1", &policy),
    ];
    let snapshot = build(&mut builder, changes);
    let cluster = cluster(&snapshot);
    let now = Tick::ZERO.after(Duration::from_secs(1));
    let first = endpoints(&cluster).remove(0);
    let failure = Answer::new(AttemptOutcome::Failure, Duration::ZERO);
    assert!(cluster.record(&first, &failure, now).is_empty());
    let shift = cluster.record(&first, &failure, now).remove(0);
    let ejection = shift.ejection.expect("the second failure ejects");
    assert_eq!((ejection.until.since(now), ejection.count), (Duration::from_secs(30), 1));
    builder.apply([set(5)]);
    let mut rng = SeededRng::new(3);
    for _ in 0..100 {
        assert_eq!(cluster.pick(now, &mut rng, &[]).unwrap().address().ip().to_string(), "10.0.0.2");
    }
    assert!(!endpoints(&cluster)[0].is_ejected(ejection.until), "by time it is tried");
    let chosen = (0..100)
        .find_map(|_| cluster.choose(ejection.until, &mut rng, &Wanted::default(), &mut NoReasons)?.trial);
    let answer = Answer { status: 200, ..Answer::new(AttemptOutcome::Success, Duration::ZERO) };
    let shift = cluster.tried(chosen.expect("one request tries it"), &answer, ejection.until);
    assert!(shift.is_some_and(|shift| shift.ejection.is_none() && !shift.endpoint.stats.is_out()));
}

fn traffic(policy: v1::TrafficPolicy) -> Change {
    let target = v1::policy::Target { kind: "Service".into(), name: "ns/a".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    Change::upsert(
        "TrafficPolicy/ns/p",
        "1",
        &v1::Policy { source: source("TrafficPolicy", "ns/p", 0), targets: vec![target], spec },
    )
}

#[test]
fn a_namespace_s_admission_control_is_none_of_services_into_which_nobody_looks() {
    use v1::service_port::AppProtocol;
    let target = v1::policy::Target { kind: "Namespace".into(), name: "ns".into(), section: String::new() };
    let admission = v1::AdmissionControl {
        sampling_window_ms: 30_000,
        success_rate_threshold: 95,
        aggression_thousandths: 1_000,
        ..Default::default()
    };
    let spec = v1::policy::Spec::Traffic(v1::TrafficPolicy {
        admission_control: Some(admission),
        ..Default::default()
    });
    let source = source("TrafficPolicy", "ns/p", 0);
    let policy = Change::upsert(
        "TrafficPolicy/ns/p",
        "1",
        &v1::Policy { source, targets: vec![target], spec: Some(spec) },
    );
    let mut builder = SnapshotBuilder::new();
    build(&mut builder, [policy]);
    for (protocol, expected) in [
        (AppProtocol::Http1, true),
        (AppProtocol::Unspecified, true),
        (AppProtocol::Tcp, false),
        (AppProtocol::Tls, false),
    ] {
        let mut message = service("ns/a", &[("", 80)]);
        message.ports[0].protocol = protocol.into();
        let snapshot = build(&mut builder, [service_change(&message)]);
        let is_told = cluster(&snapshot).admissions(Tick::ZERO).is_some();
        assert_eq!(is_told, expected, "{protocol:?}");
    }
}

#[test]
fn a_policy_that_comes_again_as_it_was_changes_nothing() {
    let mut builder = SnapshotBuilder::new();
    let limited = |requests| {
        let limit = v1::RateLimit { requests, per_ms: 1_000, burst: 1, ..Default::default() };
        traffic(v1::TrafficPolicy { rate_limit: Some(limit), ..Default::default() })
    };
    let before = build(&mut builder, [service_change(&service("ns/a", &[("", 80)])), limited(1)]);
    builder.apply([limited(1)]);
    assert!(!builder.is_stale(), "what it has counted goes on");
    assert!(Arc::ptr_eq(&cluster(&before), &cluster(&builder.build())));
    builder.apply([limited(2)]);
    assert!(builder.is_stale());
    let other = builder.build();
    builder.apply([Change::remove::<v1::Policy>("TrafficPolicy/ns/p")]);
    builder.build();
    builder.apply([limited(2)]);
    assert!(builder.is_stale(), "one that was gone is new");
    assert!(!Arc::ptr_eq(&cluster(&other), &cluster(&builder.build())));
}

#[test]
fn ejections_end_with_the_policy_that_made_them() {
    let mut builder = SnapshotBuilder::new();
    let outlier = |percent| {
        let outlier = v1::OutlierDetection {
            consecutive_5xx: Some(1),
            base_ejection_time_ms: 30_000,
            max_ejection_percent: percent,
            ..crate::tests::rows_off()
        };
        traffic(v1::TrafficPolicy { outlier_detection: Some(outlier), ..Default::default() })
    };
    let set = slice("ns/1", "ns/a", ("", 8080), ["10.0.0.1", "10.0.0.2"].map(wire_endpoint).to_vec());
    let snapshot = build(&mut builder, [service_change(&service("ns/a", &[("", 80)])), set, outlier(50)]);
    let now = Tick::ZERO.after(Duration::from_secs(1));
    let first = endpoints(&cluster(&snapshot)).remove(0);
    let failure = Answer::new(AttemptOutcome::Failure, Duration::ZERO);
    assert_eq!(cluster(&snapshot).record(&first, &failure, now).len(), 1);
    let changed = build(&mut builder, [outlier(60)]);
    assert!(endpoints(&cluster(&changed))[0].is_ejected(now), "another one knows how to take it in");
    let none = build(&mut builder, [Change::remove::<v1::Policy>("TrafficPolicy/ns/p")]);
    assert!(!endpoints(&cluster(&none))[0].is_ejected(now));
}

#[test]
fn a_commit_names_the_revision() {
    let mut builder = SnapshotBuilder::new();
    let commit = v1::Commit { revision: 42, count: 0, hash: String::new() };
    assert_eq!(build(&mut builder, [Change::upsert("commit", "1", &commit)]).revision(), 42);
}

#[test]
fn an_instance_that_was_taken_out_comes_back_with_nothing_held_against_it() {
    let mut builder = SnapshotBuilder::new();
    let one = |health: v1::endpoint::Health| {
        let endpoint = v1::Endpoint { health: health.into(), ..wire_endpoint("10.0.0.1") };
        slice("ns/1", "ns/a", ("", 8080), vec![endpoint])
    };
    let (well, ill) = (v1::endpoint::Health::Healthy, v1::endpoint::Health::Unhealthy);
    let snapshot = build(&mut builder, [service_change(&service("ns/a", &[("", 80)])), one(well)]);
    let is_ejected = || endpoints(&cluster(&snapshot))[0].is_ejected(Tick::ZERO);
    let until = Tick::ZERO.after(Duration::from_secs(5)).as_nanos();
    endpoints(&cluster(&snapshot))[0].stats.standing.eject_until(until);
    builder.apply([one(ill)]);
    assert!(is_ejected(), "nothing good is known of it yet");
    builder.apply([one(well)]);
    assert!(!is_ejected());
}

fn copying(service: &str, share: Option<v1::Share>) -> Change {
    let mirror = v1::Mirror { service: service.into(), port: 80, share, subset: String::new() };
    let mut rules = to("/", "ns/a");
    rules[0].mirrors.push(mirror.clone());
    rules[0].backends[0].mirrors.push(mirror);
    route("ns/r", 1, &[], rules)
}

#[test]
fn where_copies_go_is_resolved_when_it_comes_and_again_when_it_goes() {
    let half = Some(v1::Share { numerator: 1, denominator: 2 });
    let mut builder = SnapshotBuilder::new();
    let cluster = |snapshot: &Snapshot| {
        let rule = &snapshot.routes["HTTPRoute/ns/r"].rules[0];
        let of = |mirror: &crate::Mirror| mirror.cluster.as_ref().map(|cluster| cluster.key.to_string());
        assert_eq!(of(&rule.mirrors[0]), of(&rule.backends[0].mirrors[0]));
        assert_eq!(rule.mirrors[0].share, crate::Share { numerator: 1, denominator: 2 });
        of(&rule.mirrors[0])
    };
    let begin = [listener("ns/gw/web", 80, ""), copying("ns/b", half)];
    assert_eq!(cluster(&build(&mut builder, begin)), None);
    let snapshot = build(&mut builder, [service_change(&service("ns/b", &[("", 80)]))]);
    assert_eq!(cluster(&snapshot).as_deref(), Some("ns/b:80"));
    let gone = Change::remove::<v1::Service>("ns/b");
    assert_eq!(cluster(&build(&mut builder, [gone])), None);
}

#[test]
fn copies_that_go_nowhere_or_have_no_share_are_refused() {
    for (service, share, place) in [
        ("", Some(v1::Share { numerator: 1, denominator: 1 }), "mirrors[0].service"),
        ("ns/b", None, "mirrors[0].share"),
        ("ns/b", Some(v1::Share { numerator: 1, denominator: 0 }), "denominator above 0"),
    ] {
        let rejections = SnapshotBuilder::new().apply([copying(service, share)]);
        assert!(rejections.len() == 1 && rejections[0].message.contains(place), "{place}: {rejections:?}");
    }
}
