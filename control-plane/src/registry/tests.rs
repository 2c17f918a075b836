use meshwork_api::registry::{Departed, Port};

use meshwork_compile::input::CatalogPort;

use super::*;

fn instance(id: &str, identity: Option<&str>) -> Instance {
    let port = |port, protocol: &str| Port { port, protocol: Some(protocol.to_owned()) };
    let ports = [("http".to_owned(), port(41_000, "grpc")), ("metrics".to_owned(), port(15_020, "http"))];
    let metadata = [("meshwork.dev/mesh-port", "15006"), ("meshwork.dev/service-port", "80")];
    Instance {
        id: id.to_owned(),
        address: "127.0.0.9".to_owned(),
        ports: ports.into_iter().collect(),
        workload: Some("web".to_owned()),
        version: None,
        zone: None,
        weight: 1,
        warning_weight: None,
        tags: Vec::new(),
        metadata: metadata.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        health: Health::Passing,
        lease_expires: None,
        suspect: false,
        incarnation: Some("a1".to_owned()),
        identity: identity.map(str::to_owned),
        node: "n".to_owned(),
    }
}

fn service(instances: Vec<Instance>) -> Service {
    Service { name: "web".to_owned(), namespace: "shop".to_owned(), instances }
}

const ID: &str = "spiffe://mesh.local/ns/shop/sa/web";

#[test]
fn an_instance_with_a_sidecar_is_called_by_mtls_on_the_services_port() {
    let mut critical = instance("web-2", Some(ID));
    critical.health = Health::Maintenance;
    let services = [service(vec![instance("web-1", Some(ID)), critical])];
    let (catalog, doubts) = catalog_of(services.iter());
    assert_eq!(doubts, Doubts::new());
    let web = &catalog.services[&QualifiedName::new("shop", "web").unwrap()];
    let port =
        CatalogPort { name: "http".to_owned(), said: String::new(), port: 80, protocol: AppProtocol::Grpc };
    assert_eq!(web.ports, [port], "the metrics' port is no port of the service");
    assert_eq!(web.spiffe_ids, [SpiffeId::parse(ID).unwrap()]);
    let mesh = Transport::Mesh { mesh_port: 15006, hbone_port: 0, spiffe_id: SpiffeId::parse(ID).unwrap() };
    assert!(web.instances.iter().all(|instance| instance.transport == mesh));
    let health: Vec<_> = web.instances.iter().map(|instance| instance.health).collect();
    assert_eq!(health, [compile::Health::Healthy, compile::Health::Unhealthy]);

    let workloads = workload_messages(services.iter());
    assert_eq!(workloads.len(), 2, "also one that is not called yet, so that it can be");
    let body = &workloads[&ResourceKey::of::<v1::Workload>("shop/web-1")].body;
    let workload = v1::Workload::decode(body.clone()).unwrap();
    assert_eq!(workload.spiffe_id, ID);
    let served = &workload.services[0];
    assert_eq!((served.service.as_str(), served.service_port, served.app_port), ("shop/web", 80, 41_000));
    assert_eq!((workload.services.len(), served.protocol()), (1, service_port::AppProtocol::Grpc));
}

#[test]
fn an_instance_that_warns_weighs_what_it_has_registered_for_that() {
    let weighing = |id: &str, health, warning_weight| Instance {
        health,
        weight: 10,
        warning_weight,
        ..instance(id, Some(ID))
    };
    let of = |instances: Vec<Instance>| {
        let web = catalog_service(&service(instances), &mut Doubts::new());
        web.instances.iter().map(|one| (one.weight, one.health)).collect::<Vec<_>>()
    };
    let well = weighing("web-1", Health::Passing, Some(3));
    let warns = |weight| weighing("web-2", Health::Warning, weight);
    let healthy = |weight| (weight, compile::Health::Healthy);
    assert_eq!(of(vec![well.clone(), warns(Some(3))]), [healthy(10), healthy(3)]);
    assert_eq!(of(vec![well.clone(), warns(None)]), [healthy(10), healthy(10)], "no other one was told");
    let nothing = (0, compile::Health::Unhealthy);
    assert_eq!(of(vec![well.clone(), warns(Some(0))]), [healthy(10), nothing], "another one has something");
    let gone = Instance { health: Health::Critical, ..well };
    let critical = (10, compile::Health::Unhealthy);
    assert_eq!(of(vec![gone, warns(Some(0))]), [critical, healthy(0)], "nobody else is there");
    let also = weighing("web-3", Health::Warning, Some(1));
    assert_eq!(of(vec![warns(Some(0)), also]), [nothing, healthy(1)]);
}

#[test]
fn who_is_proven_and_who_is_not_are_never_mixed() {
    let mixed = [service(vec![instance("web-1", Some(ID)), instance("evil", None)])];
    let web = &catalog_service(&mixed[0], &mut Doubts::new());
    assert_eq!(web.instances.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["web-1"]);
    assert_eq!(workload_messages(mixed.iter()).len(), 1);
    let mut external = instance("outside", None);
    external.metadata.clear();
    let web = catalog_service(&service(vec![external]), &mut Doubts::new());
    assert_eq!(web.instances[0].transport, Transport::Plaintext);
    assert_eq!((web.ports[0].port, web.instances[0].ports["http"]), (41_000, 41_000));
    assert!(web.spiffe_ids.is_empty());
}

#[test]
fn an_instance_that_went_knows_what_it_serves_until_callers_have_heard_of_it() {
    let with = |ids: &[&str]| {
        let instances = ids.iter().map(|id| instance(id, Some(ID))).collect();
        workload_messages([service(instances)].iter())
    };
    let names =
        |workloads: &Workloads| workloads.all().keys().map(|key| key.name.to_string()).collect::<Vec<_>>();
    let (mut workloads, start) = (Workloads::default(), Instant::now());
    workloads.take(with(&["web-1", "web-2"]), start);
    workloads.take(with(&["web-2"]), start);
    assert_eq!((names(&workloads).len(), workloads.next_end()), (2, Some(start + LINGER)));
    workloads.take(with(&["web-2"]), start + LINGER / 2);
    assert_eq!(names(&workloads).len(), 2, "what goes on elsewhere neither shortens nor prolongs it");
    workloads.take(with(&["web-2"]), start + LINGER);
    assert_eq!((names(&workloads), workloads.next_end()), (vec!["shop/web-2".to_owned()], None));
    workloads.take(with(&[]), start + LINGER);
    workloads.take(with(&["web-2"]), start + LINGER);
    assert_eq!((names(&workloads).len(), workloads.next_end()), (1, None), "it came back");
}

#[test]
fn a_service_without_instances_is_known_for_a_while() {
    let mut empty = Empty::default();
    let now = Instant::now();
    empty.take(Some(service(vec![instance("web-1", Some(ID))])), now);
    let name = QualifiedName::new("shop", "web").unwrap();
    let mut catalog = Catalog::default();
    empty.add_to(&mut catalog);
    let web = &catalog.services[&name];
    assert!(web.instances.is_empty() && web.ports[0].port == 80, "{web:?}");
    assert_eq!(web.spiffe_ids, [SpiffeId::parse(ID).unwrap()], "nobody else may take its place");
    assert_eq!(empty.next_end(), Some(now + LINGER));
    // One that is there counts.
    let (mut catalog, _) = catalog_of([service(vec![instance("web-2", Some(ID))])].iter());
    empty.add_to(&mut catalog);
    assert_eq!(catalog.services[&name].instances.len(), 1);
    empty.forget(now + LINGER);
    assert!(empty.0.is_empty());
}

#[test]
fn a_process_of_the_platform_is_no_service_of_the_mesh() {
    let mut edge = instance("127.0.0.1:15020", Some(ID));
    edge.metadata = BTreeMap::from([(ROLE.to_owned(), "gateway".to_owned())]);
    assert!(is_platform(&service(vec![edge.clone()])));
    assert!(
        !is_platform(&service(vec![edge, instance("web-1", Some(ID))])),
        "whoever is called is a service"
    );
    assert!(!is_platform(&service(Vec::new())));
}

#[test]
fn the_proxies_that_hold_a_lease_are_there_whether_they_are_connected_or_not() {
    let holds = |id: &str| {
        let lease_expires = Some("2026-11-27T12:00:00Z".to_owned());
        Instance { lease_expires, ..instance(id, Some(ID)) }
    };
    let mut plain = holds("web-4");
    plain.metadata.clear();
    let out = Instance { health: Health::Maintenance, ..holds("web-5") };
    let web = service(vec![holds("web-1"), instance("web-3", Some(ID)), plain, out]);
    let speaker = |id: &str| Speaker { identity: SpiffeId::parse(id).ok(), incarnation: "a1".to_owned() };
    let there = proxies([web].iter());
    assert_eq!(there.keys().collect::<Vec<_>>(), ["shop/web-1", "shop/web-5"]);
    assert!(there.values().all(|who| *who == speaker(ID)), "no other copy of the name speaks for it");

    let edge = |identity: &str| {
        let mut edge = Instance { identity: Some(identity.to_owned()), ..holds("10.0.0.1:15020") };
        let metadata = [(ROLE, "gateway"), (PROXY, "gateway/shop/edge/10.0.0.1/42")];
        edge.metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        proxies([service(vec![edge])].iter())
    };
    let id = "spiffe://mesh.local/ns/shop/sa/edge";
    assert_eq!(edge(id), [("gateway/shop/edge/10.0.0.1/42".to_owned(), speaker(id))].into());
    assert_eq!(edge(ID), BTreeMap::new(), "nobody makes others wait for what is not its own");
}

#[test]
fn who_is_only_suspected_to_be_gone_is_still_waited_for() {
    let told = |health, suspect| Instance { health, suspect, ..instance("web-1", Some(ID)) };
    let counted = |one: Instance| proxies([service(vec![one])].iter()).len();
    assert_eq!(counted(told(Health::Suspect, true)), 1, "it is called, so it counts");
    assert_eq!(counted(told(Health::Critical, true)), 1, "also where a check fails besides");
    assert_eq!(counted(told(Health::Suspect, false)), 1, "as an earlier registry tells it");
    assert_eq!(counted(told(Health::Passing, false)), 0, "without a lease nobody hears whether it lives");
}

/// An instance that declares this number and protocol.
fn at(id: &str, number: u16, protocol: &str) -> Instance {
    let mut one = instance(id, Some(ID));
    one.metadata.insert(sidecar::SERVICE_PORT.to_owned(), number.to_string());
    one.ports.get_mut("http").unwrap().protocol = Some(protocol.to_owned());
    one
}

#[test]
fn an_instance_that_says_another_number_has_a_port_of_its_own_and_leaves_the_others_theirs() {
    for odd in ["a", "z"] {
        let mut instances = vec![at("b", 80, "http"), at("c", 80, "http"), at(odd, 8080, "http")];
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        let mut doubts = Doubts::new();
        let web = catalog_service(&service(instances), &mut doubts);
        let port = |name: &str, said: &str, port| {
            let (name, said) = (name.to_owned(), said.to_owned());
            CatalogPort { name, said, port, protocol: AppProtocol::Http1 }
        };
        assert_eq!(web.ports, [port("http", "", 80), port("http-8080", "http", 8080)]);
        for instance in &web.instances {
            let name = if instance.id.as_str() == odd { "http-8080" } else { "http" };
            assert_eq!(instance.ports, BTreeMap::from([(name.to_owned(), 41_000)]), "{}", instance.id);
        }
        let doubt = doubts.first().expect("it is said");
        assert!(doubt.contains("shop/web") && doubt.contains("80 (2 of them), 8080 (1 of them)"), "{doubt}");
    }
}

#[test]
fn a_port_s_name_goes_with_the_majority_of_its_instances() {
    let names = |numbers: &[u16]| {
        let instances: Vec<Instance> = numbers
            .iter()
            .enumerate()
            .map(|(id, number)| at(&format!("web-{id}"), *number, "http"))
            .collect();
        let web = catalog_service(&service(instances), &mut Doubts::new());
        web.ports.into_iter().map(|port| (port.port, port.name)).collect::<BTreeMap<_, _>>()
    };
    let of = |known: &[(u16, &str)]| known.iter().map(|(port, name)| (*port, (*name).to_owned())).collect();
    assert_eq!(names(&[8080, 80, 80]), of(&[(80, "http"), (8080, "http-8080")]));
    assert_eq!(names(&[8080, 80]), of(&[(80, "http"), (8080, "http-8080")]));
    assert_eq!(names(&[8080, 8080, 80]), of(&[(80, "http-80"), (8080, "http")]));
    assert_eq!(names(&[8080, 8080]), of(&[(8080, "http")]));
}

#[test]
fn what_most_instances_speak_at_a_port_is_its_protocol() {
    let protocol = |words: &[&str]| {
        let instances: Vec<Instance> =
            words.iter().enumerate().map(|(id, word)| at(&format!("web-{id}"), 80, word)).collect();
        let mut doubts = Doubts::new();
        let web = catalog_service(&service(instances), &mut doubts);
        assert_eq!(web.ports.len(), 1);
        (web.ports[0].protocol, doubts.len())
    };
    assert_eq!(protocol(&["tcp", "http", "http"]), (AppProtocol::Http1, 1));
    assert_eq!(protocol(&["http", "tcp", "tcp"]), (AppProtocol::Tcp, 1));
    assert_eq!(
        protocol(&["htpp", "http"]),
        (AppProtocol::Http1, 1),
        "a word that is not known is no reason to lose routes"
    );
    assert_eq!(protocol(&["", "grpc", ""]), (AppProtocol::Grpc, 0));
    assert_eq!(protocol(&["", ""]), (AppProtocol::Detect, 0));
}

#[test]
fn who_declares_no_number_joins_the_port_of_its_name() {
    let mut of_consul = instance("a-consul", None);
    of_consul.metadata.clear();
    of_consul.ports.get_mut("http").unwrap().port = 31_000;
    let mut other = of_consul.clone();
    (other.id, other.ports.get_mut("http").unwrap().port) = ("b-consul".to_owned(), 32_000);
    let web = catalog_service(&service(vec![of_consul.clone(), other]), &mut Doubts::new());
    assert_eq!(
        (web.ports.len(), web.ports[0].port),
        (1, 31_000),
        "ports that are given anew for each are one"
    );
    let ports: Vec<_> = web.instances.iter().map(|instance| instance.ports["http"]).collect();
    assert_eq!(ports, [31_000, 32_000]);
    let mut declaring = at("c", 80, "http");
    declaring.identity = None;
    let web = catalog_service(&service(vec![of_consul, declaring]), &mut Doubts::new());
    assert_eq!((web.ports.len(), web.ports[0].port, web.instances.len()), (1, 80, 2));
}

/// An instance of Consul's kind, which says ports by name: name, number, protocol.
fn plain(id: &str, ports: &[(&str, u16, &str)]) -> Instance {
    let said = ports.iter().map(|(name, port, protocol)| {
        ((*name).to_owned(), Port { port: *port, protocol: Some((*protocol).to_owned()) })
    });
    Instance { ports: said.collect(), metadata: BTreeMap::new(), ..instance(id, None) }
}

#[test]
fn a_word_for_a_protocol_is_read_as_consul_s_users_and_kubernetes_write_it_and_told_so() {
    use AppProtocol::{Detect, Grpc, Http1, Http2, Tcp, Tls, WebSocket};
    let mut ids = 0..;
    for (word, protocol, told) in [
        ("http", Http1, "http"),
        ("http1", Http1, "http"),
        ("HTTP/1.1", Http1, "http"),
        ("http2", Http2, "http2"),
        ("h2c", Http2, "http2"),
        ("h2", Http2, "http2"),
        ("gRPC", Grpc, "grpc"),
        ("tls", Tls, "tls"),
        ("https", Tls, "tls"),
        ("ws", WebSocket, "websocket"),
        ("WebSocket", WebSocket, "websocket"),
        ("tcp", Tcp, "tcp"),
        ("htpp", Tcp, "tcp"),
        ("", Detect, ""),
    ] {
        let mut one = |word: &str| at(&format!("web-{}", ids.next().unwrap()), 80, word);
        let web = catalog_service(&service(vec![one(word)]), &mut Doubts::new());
        assert_eq!(web.ports[0].protocol, protocol, "{word}");
        if protocol == Detect {
            continue;
        }
        let other = if protocol == Grpc { "http" } else { "grpc" };
        let (several, mut doubts) = (vec![one(word), one(word), one(other)], Doubts::new());
        let web = catalog_service(&service(several), &mut doubts);
        assert_eq!(web.ports[0].protocol, protocol, "{word}");
        let doubt = doubts.first().unwrap();
        let said =
            format!("at port 80: {told} (2 of them), {other} (1 of them); callers take it for {told}:");
        assert!(doubt.contains(&said), "{doubt}");
    }
}

#[test]
fn an_instance_with_several_ports_is_called_on_each_by_its_own_number() {
    let mut one = plain("web-1", &[("web", 8080, "http"), ("admin", 9000, "grpc")]);
    one.metadata.insert(sidecar::SERVICE_PORT.to_owned(), "80".to_owned());
    let web = catalog_service(&service(vec![one]), &mut Doubts::new());
    let ports: Vec<_> = web.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
    assert_eq!(ports, [("admin", 9000), ("web", 8080)]);
}

#[test]
fn ports_are_in_the_order_of_their_names() {
    let mut declared = at("b", 80, "http");
    declared.identity = None;
    let several = vec![plain("a", &[("api", 9000, "grpc")]), declared];
    let web = catalog_service(&service(several), &mut Doubts::new());
    let ports: Vec<_> = web.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
    assert_eq!(ports, [("api", 9000), ("http", 80)]);
}

#[test]
fn who_declares_no_number_has_a_word_on_the_protocol_of_the_port_that_it_joins() {
    let mut declared = at("c", 80, "");
    declared.identity = None;
    let others = [plain("a", &[("http", 31_000, "grpc")]), plain("b", &[("http", 32_000, "grpc")])];
    let mut doubts = Doubts::new();
    let web = catalog_service(&service([&others[..], &[declared.clone()]].concat()), &mut doubts);
    assert_eq!((web.ports.len(), web.ports[0].protocol, doubts.len()), (1, AppProtocol::Grpc, 0));
    let of_http = plain("b", &[("http", 32_000, "http")]);
    let web = catalog_service(&service(vec![others[0].clone(), of_http, declared]), &mut doubts);
    assert_eq!((web.ports.len(), web.ports[0].port), (1, 80));
    let told = "at port 80: none (1 of them), grpc (1 of them), http (1 of them); callers take it for grpc:";
    assert!(doubts.first().unwrap().contains(told), "{doubts:?}");
}

#[test]
fn who_declares_a_number_has_no_port_besides() {
    let mut doubts = Doubts::new();
    let web = catalog_service(&service(vec![at("a", 80, "http"), at("b", 80, "grpc")]), &mut doubts);
    assert_eq!(web.ports.len(), 1);
    let counted = "http (1 of them), grpc (1 of them)";
    assert!(doubts.first().unwrap().contains(counted), "{doubts:?}");
}

#[test]
fn instances_that_declare_no_number_and_speak_different_protocols_are_told_too() {
    let several = vec![plain("a", &[("http", 9000, "http")]), plain("b", &[("http", 9000, "grpc")])];
    let mut doubts = Doubts::new();
    catalog_service(&service(several), &mut doubts);
    assert!(
        doubts.first().is_some_and(|doubt| doubt.contains("at port 9000: http (1 of them), grpc")),
        "{doubts:?}"
    );
}

/// What a registry says that has run for so long.
fn told(epoch: &str, runs: Duration, services: Vec<Service>) -> Changes {
    Changes {
        epoch: epoch.to_owned(),
        revision: 7,
        reset: true,
        services,
        removed: Vec::new(),
        runs_ms: Some(u64::try_from(runs.as_millis()).unwrap()),
        departed: Vec::new(),
    }
}

fn source(before: Option<&str>) -> Source {
    let registry = RegistryClient(meshwork_api::Client::in_memory("nobody", axum::Router::new()));
    Source::new(registry, before.map(str::to_owned))
}

/// One that follows a registry with these instances.
fn following(instances: Vec<Instance>) -> (Source, Instant) {
    let (mut source, now) = (source(None), Instant::now());
    assert!(source.take(told("a", LEASE * 9, vec![service(instances)]), now));
    assert!(source.kept.is_none() && source.hold.is_none(), "of a first store nothing is missed");
    (source, now)
}

/// The addresses of a service's instances that may be called, and the names of all workloads.
fn published(source: &mut Source, now: Instant) -> (Vec<String>, Vec<String>) {
    source.forget(now);
    let all = source.all().into_owned();
    let (catalog, _) = catalog_of(called(&all));
    let instances = catalog.services.values().flat_map(|service| &service.instances);
    let used = instances.filter(|one| one.health == compile::Health::Healthy);
    let used = used.map(|one| one.addresses[0].to_string()).collect();
    let workloads = workload_messages(called(&all)).keys().map(|key| key.name.to_string()).collect();
    (used, workloads)
}

fn standing_at(id: &str, address: &str) -> Instance {
    Instance { address: address.to_owned(), ..instance(id, Some(ID)) }
}

#[test]
fn a_registry_that_has_lost_its_store_takes_nobody_away_for_a_lease() {
    let (mut source, now) =
        following(vec![standing_at("web-1", "10.0.0.1"), standing_at("web-2", "10.0.0.2")]);
    source.take(told("b", Duration::from_secs(1), Vec::new()), now);
    let end = now + LEASE - Duration::from_secs(1);
    assert_eq!(source.next_end(), Some(end), "who is alive has told it again by then");
    let both = (
        vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
        vec!["shop/web-1".to_owned(), "shop/web-2".to_owned()],
    );
    assert_eq!(published(&mut source, now), both);
    // Lost once more.
    let later = now + Duration::from_secs(5);
    source.take(told("c", Duration::ZERO, vec![service(vec![standing_at("web-1", "10.0.0.1")])]), later);
    assert_eq!(published(&mut source, end), both);
    let (used, workloads) = published(&mut source, later + LEASE);
    assert_eq!((used, workloads), (vec!["10.0.0.1".to_owned()], vec!["shop/web-1".to_owned()]));
}

#[test]
fn time_in_which_nobody_can_register_does_not_count() {
    let young = Duration::from_millis(300);
    // It is started a second time, and its store is the same as the first time.
    let again = |runs: Option<Duration>| {
        let runs_ms = runs.map(|runs| u64::try_from(runs.as_millis()).unwrap());
        Changes { reset: false, runs_ms, ..told("b", young, Vec::new()) }
    };
    let (mut follows, now) = following(vec![standing_at("web-1", "10.0.0.1")]);
    follows.take(told("b", Duration::from_secs(1), Vec::new()), now);
    let later = now + LEASE * 2;
    follows.take(again(Some(young)), later);
    assert_eq!(published(&mut follows, later).0, ["10.0.0.1"]);
    assert_eq!(follows.next_end(), Some(later + LEASE - young));
    follows.take(again(Some(LEASE)), later + LEASE);
    assert_eq!(published(&mut follows, later + LEASE).0, Vec::<String>::new());

    let (mut begun, now) = (source(Some("a")), Instant::now());
    begun.take(told("b", Duration::ZERO, Vec::new()), now);
    let later = now + LEASE;
    begun.take(again(Some(Duration::ZERO)), later);
    begun.forget(later);
    assert_eq!(begun.hold, Some(later + LEASE), "it waits for the control plane: nobody reaches it");
    begun.take(again(None), later + LEASE);
    begun.forget(later + LEASE);
    assert_eq!(begun.hold, None, "an earlier registry does not say since when it runs");
}

#[test]
fn an_older_copy_of_a_store_has_lost_something_too() {
    let (mut source, now) = following(vec![standing_at("web-1", "10.0.0.1")]);
    let older = Changes { revision: 6, ..told("a", Duration::ZERO, Vec::new()) };
    source.take(older, now);
    assert_eq!(published(&mut source, now).0, ["10.0.0.1"]);
}

#[test]
fn a_store_that_is_the_same_or_has_run_for_a_lease_is_believed_at_once() {
    let all = vec![standing_at("web-1", "10.0.0.1")];
    let (mut source, now) = following(all.clone());
    source.take(Changes { revision: 8, ..told("a", Duration::ZERO, Vec::new()) }, now);
    assert_eq!(
        published(&mut source, now).0,
        Vec::<String>::new(),
        "it says who was removed while we were away"
    );
    let (mut source, now) = following(all);
    source.take(told("b", LEASE, Vec::new()), now);
    assert_eq!(published(&mut source, now).0, Vec::<String>::new(), "who is alive would have told it again");
}

#[test]
fn who_registers_again_replaces_its_old_self_once_it_is_in_use_or_stands_elsewhere() {
    let (mut source, now) =
        following(vec![standing_at("web-1", "10.0.0.1"), standing_at("web-2", "10.0.0.2")]);
    source.take(told("b", Duration::ZERO, Vec::new()), now);
    let mut say = |instances: Vec<Instance>| {
        source.take(Changes { reset: false, ..told("b", Duration::ZERO, vec![service(instances)]) }, now);
        published(&mut source, now).0
    };
    let becoming = |one: Instance| Instance { health: Health::Maintenance, ..one };
    let first = standing_at("web-1", "10.0.0.1");
    assert_eq!(
        say(vec![becoming(first.clone())]),
        ["10.0.0.1", "10.0.0.2"],
        "its sidecar is about to be used"
    );
    assert_eq!(say(vec![first.clone()]), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(say(vec![becoming(first.clone())]), ["10.0.0.2"], "now its owner has taken it out");
    let moved = standing_at("web-2", "10.0.0.9");
    assert_eq!(
        say(vec![first.clone(), becoming(moved.clone())]),
        ["10.0.0.1"],
        "nobody is at its old address"
    );
    assert_eq!(say(vec![first.clone(), moved]), ["10.0.0.1", "10.0.0.9"]);
    assert_eq!(say(vec![first]), ["10.0.0.1"], "what the new store had and has no more is gone");
}

#[test]
fn who_deregisters_from_a_store_that_never_had_it_is_gone_at_once() {
    let (mut source, now) =
        following(vec![standing_at("web-1", "10.0.0.1"), standing_at("web-2", "10.0.0.2")]);
    source.take(told("b", Duration::ZERO, Vec::new()), now);
    let departed = |id: &str, identity: &str| Departed {
        namespace: "shop".to_owned(),
        node: "n".to_owned(),
        id: id.to_owned(),
        identity: Some(identity.to_owned()),
    };
    let said = vec![departed("web-1", ID), departed("web-2", "spiffe://mesh.local/ns/shop/sa/evil")];
    let quiet = Changes { reset: false, departed: said, ..told("b", Duration::ZERO, Vec::new()) };
    assert!(source.take(quiet.clone(), now), "that is something new");
    assert_eq!(published(&mut source, now).0, ["10.0.0.2"], "nobody sends others away");
    assert!(!source.take(quiet, now));
}

#[test]
fn a_control_plane_that_begins_with_another_store_than_before_tells_nothing_for_a_lease() {
    let (mut begun, now) = (source(Some("a")), Instant::now());
    begun.take(told("b", Duration::from_secs(2), Vec::new()), now);
    let end = now + LEASE - Duration::from_secs(2);
    assert_eq!((begun.hold, begun.next_end()), (Some(end), Some(end)));
    begun.forget(end);
    assert_eq!(begun.hold, None);
    for (before, epoch, runs) in
        [(Some("a"), "a", Duration::ZERO), (None, "b", Duration::ZERO), (Some("a"), "b", LEASE)]
    {
        let mut begun = source(before);
        begun.take(told(epoch, runs, Vec::new()), now);
        assert_eq!(begun.hold, None, "{before:?} {epoch} {runs:?}");
    }
}
