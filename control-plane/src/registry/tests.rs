use meshwork_api::registry::Port;

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
        tags: Vec::new(),
        metadata: metadata.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        health: Health::Passing,
        lease_expires: None,
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
    let catalog = catalog_of(services.iter());
    let web = &catalog.services[&QualifiedName::new("shop", "web").unwrap()];
    let port = CatalogPort { name: "http".to_owned(), port: 80, protocol: AppProtocol::Grpc };
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
fn who_is_proven_and_who_is_not_are_never_mixed() {
    let mixed = [service(vec![instance("web-1", Some(ID)), instance("evil", None)])];
    let web = &catalog_service(&mixed[0]);
    assert_eq!(web.instances.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["web-1"]);
    assert_eq!(workload_messages(mixed.iter()).len(), 1);
    let mut external = instance("outside", None);
    external.metadata.clear();
    let web = catalog_service(&service(vec![external]));
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
    let mut catalog = catalog_of([service(vec![instance("web-2", Some(ID))])].iter());
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
