use std::collections::{BTreeMap, BTreeSet};

use meshwork_base::{InstanceId, QualifiedName, SpiffeId};
use meshwork_messages::v1;
use meshwork_messages::v1::{filter, path_edit, string_match};

use super::{HTTP, World, compiled, diagnostics, gateway, resource, route, service};
use crate::input::{CatalogInstance, CatalogPort, CatalogService, Health, Transport};
use crate::{ResourceKey, ResourceType};

#[test]
fn a_rule_is_written_out_whole() {
    let spec = "
  parentRefs: [{name: web}]
  rules:
  - matches:
    - path: {value: /a}
      method: GET
      headers: [{name: X-Version, value: v2}]
      queryParams: [{name: Lang, value: 'd.', type: RegularExpression}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: b}], add: [{name: C, value: d}], remove: [E]}}
    - {type: URLRewrite, urlRewrite: {hostname: b.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /c}}}
    backendRefs:
    - {name: reviews, port: 80}
    - {name: reviews, port: 80, weight: 0, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Server]}}]}
    timeouts: {request: 10s, backendRequest: 0s}
    retry: {codes: [503], backoff: 100ms}
  - filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]";
    let output = compiled(&[gateway(HTTP), service("shop", "reviews"), route("shop", "r", spec)].concat());
    let message = resource::<v1::Route>(&output, "HTTPRoute/shop/r").unwrap();
    let rule = &message.rules[0];
    let text = |kind| Some(v1::StringMatch { kind: Some(kind) });
    let found = &rule.matches[0];
    assert_eq!(found.path, text(string_match::Kind::Prefix("/a".to_owned())));
    assert_eq!(found.method, "GET");
    let header = v1::FieldMatch {
        name: "x-version".to_owned(),
        value: text(string_match::Kind::Exact("v2".to_owned())),
    };
    assert_eq!(found.headers, [header], "names of header fields in lower case");
    let query =
        v1::FieldMatch { name: "Lang".to_owned(), value: text(string_match::Kind::Regex("d.".to_owned())) };
    assert_eq!(found.query, [query], "names of parameters as they are");
    let Some(filter::Kind::RequestHeaders(edits)) = &rule.filters[0].kind else { panic!("edits come first") };
    assert_eq!(
        (edits.set[0].name.as_str(), edits.add[0].value.as_str(), edits.remove[0].as_str()),
        ("x-a", "d", "e")
    );
    let Some(filter::Kind::Rewrite(rewrite)) = &rule.filters[1].kind else { panic!("then the rewrite") };
    assert_eq!(rewrite.path.as_ref().unwrap().kind, Some(path_edit::Kind::Prefix("/c".to_owned())));
    assert_eq!(rule.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(rule.backends[1].filters.len(), 1);
    assert_eq!((rule.request_timeout_ms, rule.backend_request_timeout_ms), (10_000, u32::MAX));
    let retry = rule.retry.as_ref().unwrap();
    let on = retry.on.as_ref().unwrap();
    assert_eq!((retry.attempts, on.status_codes.as_slice()), (None, &[503][..]));
    assert!(on.reset && on.connect_failure && on.refused);
    assert_eq!((retry.backoff_base_ms, retry.backoff_max_ms, retry.budget), (Some(100), None, None));

    let every_path = text(string_match::Kind::Prefix("/".to_owned()));
    assert_eq!(message.rules[1].matches[0].path, every_path, "no match is written out as every path");
    let Some(filter::Kind::Redirect(redirect)) = &message.rules[1].filters[0].kind else {
        panic!("a redirect")
    };
    assert_eq!((redirect.status, redirect.port, redirect.scheme.as_str()), (302, 0, "https"));
}

#[test]
fn a_slice_is_bound_to_its_service_by_label_and_port_name() {
    let slice = |label: &str, ports: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: s, namespace: shop, labels: {{kubernetes.io/service-name: {label}}}}}\n\
             addressType: IPv4\nports: {ports}\nendpoints:\n\
             - {{addresses: [10.0.0.1], zone: z1, targetRef: {{kind: Pod, name: pod-1}}}}\n\
             - {{addresses: [10.0.0.2], conditions: {{ready: false}}}}\n\
             - {{addresses: [10.0.0.3], conditions: {{ready: false, serving: true, terminating: true}}}}\n"
        )
    };
    let output = compiled(&[service("shop", "reviews"), slice("reviews", "[{port: 9080}]")].concat());
    let message = resource::<v1::EndpointSlice>(&output, "shop/s").unwrap();
    assert_eq!(message.service, "shop/reviews");
    assert_eq!(message.ports, [v1::EndpointPort { name: String::new(), port: 9080 }]);
    use v1::endpoint::Health::{Draining, Healthy, Unhealthy};
    let health: Vec<_> = message.endpoints.iter().map(v1::Endpoint::health).collect();
    assert_eq!(health, [Healthy, Unhealthy, Draining]);
    assert!(message.endpoints.iter().all(|endpoint| endpoint.weight == 1));
    assert_eq!((message.endpoints[0].instance.as_str(), message.endpoints[0].zone.as_str()), ("pod-1", "z1"));
    assert_eq!(message.endpoints[1].instance, "10.0.0.2");

    let output = compiled(&[service("shop", "reviews"), slice("reviws", "[{port: 9080}]")].concat());
    assert!(resource::<v1::EndpointSlice>(&output, "shop/s").is_none());
    assert_eq!(diagnostics(&output), ["7 MW2015"]);

    let output =
        compiled(&[service("shop", "reviews"), slice("reviews", "[{name: grpc, port: 9080}]")].concat());
    assert!(resource::<v1::EndpointSlice>(&output, "shop/s").unwrap().ports.is_empty());
    assert_eq!(diagnostics(&output), ["11 MW2015"]);
}

#[test]
fn an_instance_of_the_registry_is_a_slice_of_its_own() {
    let spiffe_id = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/reviews").unwrap();
    let instance = CatalogInstance {
        id: InstanceId::new("reviews-1").unwrap(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        ports: BTreeMap::from([("http".to_owned(), 9080), ("debug".to_owned(), 6060)]),
        health: Health::Suspect,
        weight: 0,
        workload: "reviews".to_owned(),
        version: "v2".to_owned(),
        zone: "z".to_owned(),
        region: "r".to_owned(),
        transport: Transport::Mesh { mesh_port: 15006, hbone_port: 15008, spiffe_id: spiffe_id.clone() },
        labels: BTreeMap::from([("canary".to_owned(), "yes".to_owned())]),
    };
    let known = CatalogService {
        ports: vec![CatalogPort { name: "http".to_owned(), port: 80, ..CatalogPort::default() }],
        spiffe_ids: vec![spiffe_id],
        addresses: vec![],
        instances: vec![instance],
    };
    let mut world = World::default();
    world.catalog.services.insert(QualifiedName::new("shop", "reviews").unwrap(), known);
    let output = world.compile("");
    let message = resource::<v1::EndpointSlice>(&output, "registry/shop/reviews/reviews-1").unwrap();
    assert_eq!(message.ports, [v1::EndpointPort { name: "http".to_owned(), port: 9080 }]);
    let endpoint = &message.endpoints[0];
    assert_eq!(
        (endpoint.weight, endpoint.mesh_port, endpoint.health()),
        (1, 15006, v1::endpoint::Health::Suspect)
    );
    assert_eq!(endpoint.spiffe_id, "spiffe://mesh.local/ns/shop/sa/reviews");
    let service = resource::<v1::Service>(&output, "shop/reviews").unwrap();
    assert_eq!(service.hostnames[..2], ["reviews", "reviews.shop"]);
    assert_eq!(service.spiffe_ids, ["spiffe://mesh.local/ns/shop/sa/reviews"]);
}

#[test]
fn a_gateways_closure_is_what_it_needs_and_no_more() {
    let yaml = [
        gateway(HTTP),
        service("shop", "reviews"),
        service("shop", "unused"),
        route("shop", "r", "{parentRefs: [{name: web}], rules: [{backendRefs: [{name: reviews, port: 80}]}]}"),
        route("shop", "mesh", "{parentRefs: [{group: '', kind: Service, name: unused}]}"),
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nendpoints: []\nports: []\n\
         metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: reviews}}\n"
            .to_owned(),
        "---\napiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\n\
         spec: {targetRefs: [{group: '', kind: Service, name: reviews}], limits: {maxRequests: 1}}\n"
            .to_owned(),
    ];
    let output = compiled(&yaml.concat());
    let root = ResourceKey::new(ResourceType::Listener, "shop/web/http");
    let closure: BTreeSet<String> = output.closure([root]).keys().map(ToString::to_string).collect();
    let expected = [
        "EndpointSlice shop/s",
        "Listener shop/web/http",
        "Policy TrafficPolicy/shop/p",
        "Route HTTPRoute/shop/r",
        "Service shop/reviews",
    ];
    assert_eq!(closure, BTreeSet::from(expected.map(str::to_owned)));
}
