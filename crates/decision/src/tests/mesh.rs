//! The two sides of a sidecar, and what backends lead to.

use meshwork_base::{SeededRng, SpiffeId};

use super::*;

fn with_hosts(name: &str, ports: &[(&str, u32)], hosts: &[&str]) -> Change {
    let hostnames = hosts.iter().map(|h| (*h).to_owned()).collect();
    service_change(&v1::Service { hostnames, ..service(name, ports) })
}

fn to(service: &str, port: u32) -> Vec<v1::Rule> {
    vec![v1::Rule { backends: vec![backend(service, port, 1)], ..rule(vec![path(prefix("/v2"))]) }]
}

fn mesh_route(qualified: &str, service: &str, port: u32, rules: Vec<v1::Rule>) -> Change {
    let message = route_message(qualified, 1, vec![at_service(service, port)], rules);
    Change::upsert(&format!("HTTPRoute/{qualified}"), "1", &message)
}

/// Where an outbound request goes.
fn outbound(snapshot: &Snapshot, authority: &str, target: &str) -> Result<String, Cause> {
    let request = OwnedRequest::get(authority, target);
    let service = snapshot.outbound(&request.host).ok_or(Cause::UnknownService)?;
    let port = service.port(request.port)?;
    match port.route(&request, &mut Explanation::default()) {
        Routed::Matched(m) => {
            let (_, cluster) = m.rule().choose_backend(&mut SeededRng::new(1), &mut NoReasons)?;
            Ok(cluster.key.to_string())
        }
        Routed::NotFound { cause, .. } => Err(cause),
    }
}

#[test]
fn an_outbound_request_finds_its_service_by_host_and_port() {
    let snapshot = snapshot([
        with_hosts("shop/reviews", &[("grpc", 9000), ("http", 80)], &["reviews", "Reviews.shop"]),
        with_hosts("shop/single", &[("http", 9080)], &["single"]),
    ]);
    let of = |authority| outbound(&snapshot, authority, "/");
    assert_eq!(of("reviews").unwrap(), "shop/reviews:80");
    assert_eq!(of("REVIEWS.shop:9000").unwrap(), "shop/reviews:9000");
    assert_eq!(of("single").unwrap(), "shop/single:9080");
    assert_eq!(of("single:80").unwrap_err(), Cause::UnknownService);
    assert_eq!(of("absent").unwrap_err(), Cause::UnknownService);
    let addresses = vec!["10.9.0.1".to_owned(), "FD00::1".to_owned()];
    let virtual_service = v1::Service { addresses, ..service("shop/v", &[("http", 80)]) };
    let snapshot = build(&mut SnapshotBuilder::new(), [service_change(&virtual_service)]);
    for authority in ["10.9.0.1", "[fd00::1]:80"] {
        assert_eq!(outbound(&snapshot, authority, "/").unwrap(), "shop/v:80");
    }
}

#[test]
fn routes_on_a_service_replace_its_default() {
    let mut builder = SnapshotBuilder::new();
    let services = [
        with_hosts("shop/a", &[("http", 80), ("other", 81)], &["a"]),
        with_hosts("shop/b", &[("http", 80)], &["b"]),
    ];
    let before = build(&mut builder, services);
    assert_eq!(outbound(&before, "a", "/v2").unwrap(), "shop/a:80");
    let with = build(&mut builder, [mesh_route("shop/r", "shop/a", 80, to("shop/b", 80))]);
    assert_eq!(outbound(&with, "a", "/v2").unwrap(), "shop/b:80");
    assert_eq!(outbound(&with, "a", "/v1").unwrap_err(), Cause::NoRule, "routes leave no default behind");
    assert_eq!(outbound(&with, "a:81", "/v1").unwrap(), "shop/a:81", "another port has no routes");
    assert!(Arc::ptr_eq(before.outbound("b").unwrap(), with.outbound("b").unwrap()));

    let all_ports = build(&mut builder, [mesh_route("shop/r", "shop/a", 0, to("shop/b", 80))]);
    assert_eq!(outbound(&all_ports, "a:81", "/v2").unwrap(), "shop/b:80");
    let renumbered = build(&mut builder, [with_hosts("shop/a", &[("http", 80), ("new", 82)], &["a"])]);
    assert_eq!(
        outbound(&renumbered, "a:82", "/v2").unwrap(),
        "shop/b:80",
        "a new port has the routes of all"
    );
    assert_eq!(outbound(&renumbered, "a:81", "/v2").unwrap_err(), Cause::UnknownService);

    let without = build(&mut builder, [Change::remove::<v1::Route>("HTTPRoute/shop/r")]);
    assert_eq!(outbound(&without, "a:82", "/v1").unwrap(), "shop/a:82");
}

#[test]
fn a_port_that_comes_back_has_only_the_routes_of_today() {
    let mut builder = SnapshotBuilder::new();
    let both = || with_hosts("shop/a", &[("http", 80), ("other", 81)], &["a"]);
    let with = build(&mut builder, [both(), mesh_route("shop/r", "shop/a", 0, to("shop/a", 80))]);
    assert_eq!(outbound(&with, "a:81", "/v2").unwrap(), "shop/a:80");
    build(&mut builder, [with_hosts("shop/a", &[("http", 80)], &["a"])]);
    build(&mut builder, [Change::remove::<v1::Route>("HTTPRoute/shop/r")]);
    let back = build(&mut builder, [both()]);
    assert_eq!(outbound(&back, "a:81", "/v2").unwrap(), "shop/a:81");
}

#[test]
fn a_name_that_two_services_claim_is_the_neighbour_s() {
    let mut builder = SnapshotBuilder::new();
    let both = [
        with_hosts("aaa/reviews", &[("http", 80)], &["reviews"]),
        with_hosts("shop/reviews", &[("http", 80)], &["reviews"]),
    ];
    let stranger = build(&mut builder, both);
    assert_eq!(outbound(&stranger, "reviews", "/").unwrap(), "aaa/reviews:80");
    let workload = v1::Workload { spiffe_id: "spiffe://m/ns/shop/sa/web".into(), ..Default::default() };
    let neighbour = build(&mut builder, [Change::upsert("shop/web-1", "1", &workload)]);
    assert_eq!(outbound(&neighbour, "reviews", "/").unwrap(), "shop/reviews:80");
}

#[test]
fn backends_are_chosen_by_weight_and_bad_ones_take_their_share() {
    let invalid = v1::Backend { weight: 1, invalid: "BackendNotFound".into(), ..Default::default() };
    let rules = vec![v1::Rule {
        backends: vec![backend("ns/a", 80, 6), backend("ns/b", 80, 3), invalid, backend("ns/zero", 80, 0)],
        ..rule(vec![path(prefix("/"))])
    }];
    let snapshot = snapshot([
        listener("ns/gw/web", 80, ""),
        route("ns/r", 1, &[], rules),
        service_change(&service("ns/a", &[("", 80)])),
        service_change(&service("ns/b", &[("", 80)])),
        service_change(&service("ns/zero", &[("", 80)])),
    ]);
    let rule = &snapshot.routes().next().unwrap().rules[0];
    let mut rng = SeededRng::new(7);
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..10_000 {
        let got = match rule.choose_backend(&mut rng, &mut NoReasons) {
            Ok((backend, _)) => backend.key.service.to_string(),
            Err(cause) => cause.to_string(),
        };
        *counts.entry(got).or_insert(0u32) += 1;
    }
    assert_eq!(counts.len(), 3, "weight 0 is never chosen: {counts:?}");
    for (name, share) in [("ns/a", 6000), ("ns/b", 3000), ("invalid_backend", 1000)] {
        assert!(counts[name].abs_diff(share) < 200, "{counts:?}");
    }
}

#[test]
fn a_rule_that_leads_nowhere_says_why() {
    let of = |backends: Vec<v1::Backend>| {
        let rules = vec![v1::Rule { backends, ..rule(vec![path(prefix("/"))]) }];
        let snapshot = snapshot([listener("ns/gw/web", 80, ""), route("ns/r", 1, &[], rules)]);
        let rule = &snapshot.routes().next().unwrap().rules[0];
        rule.choose_backend(&mut SeededRng::new(1), &mut NoReasons).map(|_| ()).unwrap_err()
    };
    assert_eq!(of(vec![]), Cause::NoBackends);
    assert_eq!(of(vec![backend("ns/a", 80, 0)]), Cause::ZeroWeight);
    assert_eq!(of(vec![backend("ns/a", 80, 1)]), Cause::ClusterNotFound);
}

#[test]
fn the_inbound_side_knows_its_ports_by_server_name() {
    let served = |service: &str, port, app| v1::workload::Served {
        service: service.into(),
        service_port: port,
        app_port: app,
        protocol: v1::service_port::AppProtocol::Http1.into(),
    };
    let workload = v1::Workload {
        spiffe_id: "spiffe://m/ns/shop/sa/web".into(),
        services: vec![served("shop/web", 80, 8080), served("shop/admin", 81, 8081)],
        ..Default::default()
    };
    let snapshot = snapshot([Change::upsert("shop/web-1", "1", &workload)]);
    let inbound = snapshot.inbound().unwrap();
    let web = inbound.by_sni("80.WEB.shop.mesh").unwrap();
    assert_eq!((web.app_port, &*web.key.service), (8080, "shop/web"));
    assert!(inbound.by_sni("80.admin.shop.mesh").is_none());
    assert_eq!(inbound.by_port(Some(81)).unwrap().app_port, 8081);
    assert_eq!(inbound.by_port(Some(8080)).unwrap().app_port, 8080);
    assert_eq!(inbound.by_port(None).unwrap_err(), Cause::UnknownAppPort);
    let peer = SpiffeId::parse("spiffe://m/ns/shop/sa/cart").unwrap();
    assert_eq!(web.admit(None).unwrap_err(), Cause::PeerUnauthenticated, "strict unless told otherwise");
    assert!(web.admit(Some(&peer)).is_ok());
}

#[test]
fn what_an_application_has_shown_to_speak_holds_for_its_port_until_something_else_is_declared() {
    use v1::service_port::AppProtocol;
    let serving = |protocol: AppProtocol, port| {
        let served = |service: &str, app_port| v1::workload::Served {
            service: service.into(),
            service_port: port,
            app_port,
            protocol: protocol.into(),
        };
        let workload = v1::Workload {
            spiffe_id: "spiffe://m/ns/shop/sa/web".into(),
            services: vec![served("shop/web", 8080), served("shop/too", 8080), served("shop/db", 8081)],
            ..Default::default()
        };
        Change::upsert("shop/web-1", "1", &workload)
    };
    let mut builder = SnapshotBuilder::new();
    let known = |snapshot: &Snapshot| {
        let inbound = snapshot.inbound().unwrap();
        [0, 1, 2].map(|number| inbound.speaks_http(inbound.ports[number].app_port))
    };
    let first = build(&mut builder, [serving(AppProtocol::Unspecified, 80)]);
    assert_eq!(known(&first), [false; 3]);
    let port = &first.inbound().unwrap().ports[0];
    assert!(port.state.shows_http());
    assert!(!port.state.shows_http(), "it is known");
    assert_eq!(known(&first), [true, true, false], "both services have the same application");
    let again = build(&mut builder, [serving(AppProtocol::Unspecified, 80)]);
    assert_eq!(known(&again), [true, true, false]);
    build(&mut builder, [serving(AppProtocol::Tcp, 80)]);
    let undeclared = build(&mut builder, [serving(AppProtocol::Unspecified, 80)]);
    assert_eq!(known(&undeclared), [false; 3]);
}

#[test]
fn what_an_application_has_shown_to_speak_is_known_whichever_services_come_and_go() {
    let serving = |services: &[(&str, u32)]| {
        let served = services.iter().map(|(service, app_port)| v1::workload::Served {
            service: (*service).into(),
            service_port: 80,
            app_port: *app_port,
            ..Default::default()
        });
        let workload = v1::Workload {
            spiffe_id: "spiffe://m/ns/shop/sa/web".into(),
            services: served.collect(),
            ..Default::default()
        };
        Change::upsert("shop/web-1", "1", &workload)
    };
    let mut builder = SnapshotBuilder::new();
    let known = |snapshot: &Snapshot, port| snapshot.inbound().unwrap().speaks_http(port);
    let both = build(&mut builder, [serving(&[("shop/web", 8080), ("shop/canary", 8080)])]);
    let asked = &both.inbound().unwrap().ports[0];
    assert!(asked.state.shows_http());
    let one = build(&mut builder, [serving(&[("shop/canary", 8080)])]);
    assert!(known(&one, 8080), "the service is gone by which it was asked");
    let renamed = build(&mut builder, [serving(&[("shop/new", 8080), ("shop/db", 8081)])]);
    assert!(known(&renamed, 8080) && !known(&renamed, 8081));
    let without = build(&mut builder, [Change::remove::<v1::Workload>("shop/web-1")]);
    assert!(without.inbound().is_none());
    let again = build(&mut builder, [serving(&[("shop/web", 8080), ("shop/db", 8081)])]);
    assert!(known(&again, 8080) && !known(&again, 8081));
    assert!(!again.inbound().unwrap().ports[0].state.shows_http(), "nobody has to be told once more");
}

#[test]
fn what_an_application_shows_by_another_declaration_is_known_to_what_was_opened_before() {
    use v1::service_port::AppProtocol;
    let serving = |services: &[(&str, AppProtocol)]| {
        let served = services.iter().map(|(service, protocol)| v1::workload::Served {
            service: (*service).into(),
            service_port: 80,
            app_port: 8080,
            protocol: (*protocol).into(),
        });
        let workload = v1::Workload {
            spiffe_id: "spiffe://m/ns/shop/sa/web".into(),
            services: served.collect(),
            ..Default::default()
        };
        Change::upsert("shop/web-1", "1", &workload)
    };
    let undeclared = ("shop/web", AppProtocol::Unspecified);
    let open = || {
        let mut builder = SnapshotBuilder::new();
        let opened = build(&mut builder, [serving(&[undeclared])]);
        assert!(!opened.inbound().unwrap().speaks_http(8080));
        (builder, opened)
    };

    let (mut builder, opened) = open();
    let both = build(&mut builder, [serving(&[undeclared, ("shop/late", AppProtocol::Tcp)])]);
    assert!(!opened.inbound().unwrap().speaks_http(8080));
    assert!(both.inbound().unwrap().ports[1].state.shows_http());
    assert!(opened.inbound().unwrap().speaks_http(8080), "it has answered a service that came later");

    for declared in [AppProtocol::Http1, AppProtocol::Http2, AppProtocol::Grpc, AppProtocol::Websocket] {
        let (mut builder, opened) = open();
        build(&mut builder, [serving(&[undeclared, ("shop/late", declared)])]);
        assert!(opened.inbound().unwrap().speaks_http(8080), "{declared:?} of a service that came later");
        build(&mut builder, [Change::remove::<v1::Workload>("shop/web-1")]);
        assert!(opened.inbound().unwrap().speaks_http(8080), "nobody has taken it back");
        build(&mut builder, [serving(&[undeclared])]);
        assert!(!opened.inbound().unwrap().speaks_http(8080), "{declared:?} is taken back");

        let (mut builder, opened) = open();
        build(&mut builder, [serving(&[("shop/web", declared)])]);
        assert!(opened.inbound().unwrap().speaks_http(8080), "{declared:?} of its own service");
        let again = build(&mut builder, [serving(&[undeclared])]);
        for snapshot in [&again, &opened] {
            assert!(!snapshot.inbound().unwrap().speaks_http(8080), "{declared:?} is taken back");
        }
        build(&mut builder, [serving(&[undeclared, ("shop/late", declared)])]);
        assert!(!again.inbound().unwrap().ports[0].state.shows_http(), "nobody has to be told once more");
        let gone = build(&mut builder, [serving(&[undeclared])]);
        assert!(gone.inbound().unwrap().speaks_http(8080), "it has answered meanwhile");
        let [first, second] = [(); 2].map(|()| gone.inbound().unwrap().ports[0].state.shows_http());
        assert!(first && !second, "nobody could know it any more, and it is told once");
        let opaque = build(&mut builder, [serving(&[("shop/web", AppProtocol::Tls)])]);
        assert!(!opaque.inbound().unwrap().speaks_http(8080), "it is another application");
    }
}

#[test]
fn a_bundle_older_than_the_one_held_is_refused_so_that_nothing_revoked_comes_back() {
    let mut builder = SnapshotBuilder::new();
    let bundle = |sequence| v1::Bundle { sequence, ..v1::Bundle::default() };
    let mut offer = |sequence: u64| {
        let refused = builder.apply([Change::upsert("m", &sequence.to_string(), &bundle(sequence))]);
        let told = refused.first().map(|refused| (refused.severity, refused.message.clone()));
        (told, builder.build().bundle("m").map(|held| held.sequence))
    };
    assert_eq!(offer(7), (None, Some(7)));
    let (told, held) = offer(5);
    let (severity, message) = told.unwrap();
    assert!(severity == Severity::Error && message.contains("5 is older than 7"), "{message}");
    assert_eq!(held, Some(7));
    assert_eq!(offer(7), (None, Some(7)), "the same once more, as after joining again");
    assert_eq!(offer(8), (None, Some(8)));
}

#[test]
fn a_backend_that_does_not_resolve_is_told_by_its_name_alone() {
    let broken = v1::Backend {
        service: "ns/gone".into(),
        weight: 1,
        invalid: "BackendNotFound".into(),
        ..Default::default()
    };
    let rules = vec![v1::Rule { backends: vec![broken], ..rule(vec![path(prefix("/"))]) }];
    let snapshot = snapshot([listener("ns/gw/web", 80, ""), route("ns/r", 1, &[], rules)]);
    let mut told = crate::Explanation::default();
    let chosen = snapshot.routes().next().unwrap().rules[0].choose_backend(&mut SeededRng::new(1), &mut told);
    assert_eq!(chosen.map(|_| ()).unwrap_err(), Cause::InvalidBackend);
    let subjects: Vec<_> = told.0.iter().map(|reason| &*reason.subject).collect();
    assert_eq!(subjects, ["ns/gone"]);
}
