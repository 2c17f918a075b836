//! Subsets of services as backends of routes.

use std::collections::BTreeMap;

use meshwork_base::{InstanceId, QualifiedName};
use meshwork_messages::v1;

use super::{HTTP, World, conditions, diagnostics, gateway, resource, route, service, status};
use crate::input::{CatalogInstance, CatalogPort, CatalogService, Health, Transport};

/// Service `shop/registered` of the registry, with instances of these versions and tiers.
fn registered(instances: &[(&str, &str)]) -> World {
    let mut world = World::default();
    let instances = (0..).zip(instances).map(|(n, (version, tier))| CatalogInstance {
        id: InstanceId::new(&format!("registered-{n}")).unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        ports: BTreeMap::new(),
        health: Health::Healthy,
        weight: 1,
        workload: String::new(),
        version: (*version).to_owned(),
        zone: String::new(),
        region: String::new(),
        transport: Transport::Plaintext,
        labels: BTreeMap::from([("tier".to_owned(), (*tier).to_owned())]),
    });
    let ports = vec![CatalogPort { port: 80, ..CatalogPort::default() }];
    let known = CatalogService { ports, instances: instances.collect(), ..CatalogService::default() };
    world.catalog.services.insert(QualifiedName::new("shop", "registered").unwrap(), known);
    world
}

fn subset(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: meshwork.dev/v1alpha1\nkind: ServiceSubset\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// A route of this namespace to these backends.
fn to(namespace: &str, backends: &str) -> String {
    let spec =
        format!("{{parentRefs: [{{name: web, namespace: shop}}], rules: [{{backendRefs: [{backends}]}}]}}");
    route(namespace, "r", &spec)
}

const CANARY: &str = "{group: meshwork.dev, kind: ServiceSubset, name: v2, port: 80, weight: 10}, \
                      {group: meshwork.dev, kind: ServiceSubset, name: v1, port: 80, weight: 90}";

#[test]
fn a_route_names_subsets_and_the_service_says_what_they_are() {
    let world = registered(&[("v1", "main"), ("v1", "spare"), ("v2", "main")]);
    let objects = [
        &*gateway(HTTP),
        &subset("v1", "{service: registered, matchLabels: {version: v1}}"),
        &subset("v2", "{service: registered, matchLabels: {version: v2, tier: main}, fallback: Any}"),
        &to("shop", CANARY),
    ]
    .concat();
    let output = world.compile(&objects);
    assert_eq!(diagnostics(&output), [""; 0]);
    let of = |name: &str, labels: &[(&str, &str)], any_fallback| v1::service::Subset {
        name: name.to_owned(),
        labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        any_fallback,
    };
    let service = resource::<v1::Service>(&output, "shop/registered").unwrap();
    assert_eq!(
        service.subsets,
        [of("v1", &[("version", "v1")], false), of("v2", &[("tier", "main"), ("version", "v2")], true)]
    );
    let route = resource::<v1::Route>(&output, "HTTPRoute/shop/r").unwrap();
    let backends: Vec<_> = route.rules[0]
        .backends
        .iter()
        .map(|backend| (&*backend.service, backend.port, &*backend.subset, backend.weight, &*backend.invalid))
        .collect();
    let expected = [("shop/registered", 80, "v2", 10, ""), ("shop/registered", 80, "v1", 90, "")];
    assert_eq!(backends, expected);
    let told = conditions(&output, "ServiceSubset shop/v1");
    assert_eq!(told, ["Accepted=True Accepted", "HasEndpoints=True EndpointsFound"]);
    let message = status(&output, "ServiceSubset shop/v1").conditions().last().unwrap().1.message.clone();
    assert_eq!(message, "2 of 3 endpoints of Service shop/registered have the labels.");
}

#[test]
fn a_subset_without_endpoints_says_so_and_its_route_is_resolved() {
    let world = registered(&[("v1", "main")]);
    let objects = [
        &*gateway(HTTP),
        &subset("v1", "{service: registered, matchLabels: {version: v1}}"),
        &subset("v2", "{service: registered, matchLabels: {version: v2}}"),
        &to("shop", CANARY),
    ]
    .concat();
    let output = world.compile(&objects);
    let told = conditions(&output, "ServiceSubset shop/v2");
    assert_eq!(told, ["Accepted=True Accepted", "HasEndpoints=False NoEndpoints"]);
    let told = conditions(&output, "HTTPRoute shop/r");
    assert!(told.contains(&"web ResolvedRefs=True ResolvedRefs".to_owned()), "{told:?}");
}

#[test]
fn a_backend_that_leads_to_no_subset_or_no_service_answers_500() {
    let world = registered(&[("v1", "main")]);
    let backend = |name: &str, port| {
        format!("{{group: meshwork.dev, kind: ServiceSubset, name: {name}, port: {port}}}")
    };
    let lost = subset("lost", "{service: nobody, matchLabels: {version: v1}}");
    let v1 = subset("v1", "{service: registered, matchLabels: {version: v1}}");
    for (name, port) in [("absent", 80), ("lost", 80), ("v1", 81)] {
        let objects = [&*gateway(HTTP), &lost, &v1, &to("shop", &backend(name, port))].concat();
        let output = world.compile(&objects);
        let route = resource::<v1::Route>(&output, "HTTPRoute/shop/r").unwrap();
        assert_eq!(route.rules[0].backends[0].invalid, "BackendNotFound", "{name}:{port}");
        let told = conditions(&output, "HTTPRoute shop/r");
        assert!(told.contains(&"web ResolvedRefs=False BackendNotFound".to_owned()), "{name}: {told:?}");
        assert_eq!(conditions(&output, "ServiceSubset shop/lost"), ["Accepted=False TargetNotFound"]);
    }
}

#[test]
fn a_subset_of_another_namespace_needs_a_grant_for_its_kind() {
    let world = registered(&[("v1", "main")]);
    let v1 = subset("v1", "{service: registered, matchLabels: {version: v1}}");
    let grant = |group: &str, kind: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: shop}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: front}}], to: [{{group: '{group}', kind: {kind}}}]}}\n"
        )
    };
    let open = "  - {name: http, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}";
    let backend = "{group: meshwork.dev, kind: ServiceSubset, name: v1, namespace: shop, port: 80}";
    for (grant, invalid) in [
        (String::new(), "RefNotPermitted"),
        (grant("", "Service"), "RefNotPermitted"),
        (grant("meshwork.dev", "ServiceSubset"), ""),
    ] {
        let output = world.compile(&[&*gateway(open), &v1, &grant, &to("front", backend)].concat());
        let route = resource::<v1::Route>(&output, "HTTPRoute/front/r").unwrap();
        assert_eq!(route.rules[0].backends[0].invalid, invalid, "{grant}");
    }
}

/// Two endpoints of `shop/s`, of this version.
fn slice(name: &str, version: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, \
         labels: {{kubernetes.io/service-name: s, app.kubernetes.io/version: {version}}}}}\naddressType: IPv4\n\
         ports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.0.0.1]}}, {{addresses: [10.0.0.2]}}]\n"
    )
}

#[test]
fn endpoints_of_files_are_known_by_their_slice_s_version_alone() {
    let objects = [
        &*service("shop", "s"),
        &slice("one", "v1"),
        &slice("two", "v2"),
        &subset("v2", "{service: s, matchLabels: {version: v2}}"),
        &subset("main", "{service: s, matchLabels: {tier: main}}"),
    ]
    .concat();
    let output = World::default().compile(&objects);
    let message = status(&output, "ServiceSubset shop/v2").conditions().last().unwrap().1.message.clone();
    assert_eq!(message, "2 of 4 endpoints of Service shop/s have the labels.");
    assert_eq!(conditions(&output, "ServiceSubset shop/main"), ["Accepted=False Invalid"]);
    assert!(diagnostics(&output).concat().contains("MW2023"));
}

#[test]
fn a_priority_that_no_endpoint_has_is_told_while_there_are_endpoints() {
    let priorities = |target: &str, labels: &[&str]| {
        let priorities: Vec<_> =
            labels.iter().map(|labels| format!("      - matchLabels: {labels}\n")).collect();
        format!(
            "---\napiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  \
             targetRefs: [{{group: '', {target}}}]\n  loadBalancer:\n    failover:\n      priorities:\n{}",
            priorities.concat()
        )
    };
    let said = ["{version: v1}", "{version: v1, tier: main}", "{version: v3}", "{tier: spare, version: v1}"];
    let known = registered(&[("v1", "main"), ("v2", "spare")]);
    let told = |world: &World, objects: &[&str]| diagnostics(&world.compile(&objects.concat()));
    let at_service = priorities("kind: Service, name: registered", &said);
    assert_eq!(told(&known, &[&at_service]), ["12 MW2023", "13 MW2023"]);
    assert_eq!(told(&registered(&[]), &[&at_service]), [""; 0], "who will come is not known");
    let output = known.compile(&at_service);
    assert_eq!(conditions(&output, "TrafficPolicy shop/p").concat(), "registered Accepted=True Accepted");
    let files = [&*service("shop", "s"), &slice("one", "v1")].concat();
    let at_files = priorities("kind: Service, name: s", &["{version: v1}", "{version: v3}"]);
    let before = files.lines().count();
    assert_eq!(told(&World::default(), &[&files, &at_files]), [format!("{} MW2023", before + 11)]);
    let at_all =
        priorities("kind: Namespace, name: shop", &["{tier: main}", "{version: v2}", "{tier: none}"]);
    assert_eq!(told(&known, &[&files, &at_all]), [format!("{} MW2023", before + 12)]);
}
