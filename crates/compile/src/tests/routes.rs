use super::{
    HTTP, World, attachments, compiled, conditions, diagnostics, gateway, resource, route, service, status,
};
use crate::Settings;
use meshwork_messages::v1;

const ACCEPTED: &str = "web Accepted=True Accepted";
const RESOLVED: &str = "web ResolvedRefs=True ResolvedRefs";

#[test]
fn parents_accept_or_say_why_not() {
    let listeners = "  - {name: http, port: 8080, protocol: HTTP}
  - {name: api, port: 8081, protocol: HTTP, hostname: '*.example.com'}
  - {name: open, port: 8082, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - {name: edge, port: 8083, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {tier: edge}}}}}
  - {name: named, port: 8084, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: blog}}}}}
  - {name: tcp, port: 8085, protocol: TCP}
  - {name: grpc, port: 8086, protocol: HTTP, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}";
    let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: edge, labels: {tier: edge}}\n";
    let shop = "shop/web/";
    // namespace, parentRef, hostnames → reason, listeners
    let cases: &[(&str, &str, &str, &str, &[&str])] = &[
        ("shop", "name: web, sectionName: http", "", "Accepted", &["http"]),
        ("shop", "name: web, port: 8080", "", "Accepted", &["http"]),
        ("shop", "name: web, sectionName: http, port: 8080", "", "Accepted", &["http"]),
        ("shop", "name: web, sectionName: http, port: 8081", "", "NoMatchingParent", &[]),
        ("shop", "name: web, sectionName: htps", "", "NoMatchingParent", &[]),
        ("shop", "name: web, port: 9999", "", "NoMatchingParent", &[]),
        ("shop", "name: wep", "", "NoMatchingParent", &[]),
        ("shop", "name: web, kind: Portal", "", "NoMatchingParent", &[]),
        ("blog", "name: web", "", "NoMatchingParent", &[]),
        ("shop", "name: web, sectionName: api", "[example.com]", "NoMatchingListenerHostname", &[]),
        (
            "shop",
            "name: web, sectionName: api",
            "[example.com, a.example.com, b.c.example.com]",
            "Accepted",
            &["api: a.example.com b.c.example.com"],
        ),
        ("shop", "name: web, sectionName: api", "['*.com']", "Accepted", &["api: *.example.com"]),
        ("blog", "name: web, namespace: shop, sectionName: http", "", "NotAllowedByListeners", &[]),
        ("blog", "name: web, namespace: shop, sectionName: edge", "", "NotAllowedByListeners", &[]),
        ("edge", "name: web, namespace: shop, sectionName: edge", "", "Accepted", &["edge"]),
        ("shop", "name: web, sectionName: tcp", "", "NotAllowedByListeners", &[]),
        ("shop", "name: web, sectionName: grpc", "", "NotAllowedByListeners", &[]),
        // Of all listeners of the gateway those take it that may.
        (
            "blog",
            "name: web, namespace: shop",
            "[a.example.com]",
            "Accepted",
            &["named: a.example.com", "open: a.example.com"],
        ),
        ("shop", "name: web", "[a.org]", "Accepted", &["http: a.org", "open: a.org"]),
    ];
    for (namespace_of, parent, hostnames, reason, expected) in cases {
        let hostnames = if hostnames.is_empty() { "[]" } else { hostnames };
        let spec = format!("{{parentRefs: [{{{parent}}}], hostnames: {hostnames}}}");
        let output = compiled(&[&gateway(listeners), namespace, &route(namespace_of, "r", &spec)].concat());
        let told = conditions(&output, &format!("HTTPRoute {namespace_of}/r"));
        let holds = if *reason == "Accepted" { "True" } else { "False" };
        assert!(told[0].ends_with(&format!("Accepted={holds} {reason}")), "{parent} {hostnames}: {told:?}");
        assert!(
            told[1].ends_with("ResolvedRefs=True ResolvedRefs"),
            "said whether or not accepted: {told:?}"
        );
        let expected: Vec<String> = expected.iter().map(|listener| format!("{shop}{listener}")).collect();
        assert_eq!(
            attachments(&output, &format!("HTTPRoute/{namespace_of}/r")),
            expected,
            "{parent} {hostnames}"
        );
    }
}

#[test]
fn broken_backends_keep_their_weight_and_say_why() {
    let services = "---
apiVersion: v1
kind: Service
metadata: {name: mixed, namespace: shop}
spec:
  ports:
  - {name: web, port: 80}
  - {name: h2c, port: 81, appProtocol: kubernetes.io/h2c}
  - {name: ws, port: 82, appProtocol: kubernetes.io/ws}
  - {name: wss, port: 83, appProtocol: kubernetes.io/wss}
  - {name: sql, port: 84, appProtocol: postgresql}
  - {name: dns, port: 85, protocol: UDP}
";
    let cases = [
        ("name: mixed, port: 80", "", ""),
        ("name: mixed, port: 81", "", ""),
        ("name: mixed, port: 82", "", ""),
        ("name: mixed, port: 83", "UnsupportedProtocol", "MW2007"),
        ("name: mixed, port: 84", "UnsupportedProtocol", "MW2007"),
        ("name: mixed, port: 85", "UnsupportedProtocol", "MW2007"),
        ("name: mixed, port: 86", "BackendNotFound", "MW2004"),
        ("name: absent, port: 80", "BackendNotFound", "MW2004"),
        ("name: mixed, kind: Bucket", "InvalidKind", "MW2005"),
        ("name: mixed, group: example.com, port: 80", "InvalidKind", "MW2005"),
        ("name: mixed, namespace: other, port: 80", "RefNotPermitted", "MW2006"),
    ];
    for (backend, reason, code) in cases {
        let spec =
            format!("{{parentRefs: [{{name: web}}], rules: [{{backendRefs: [{{{backend}, weight: 3}}]}}]}}");
        let output = compiled(&[&gateway(HTTP), services, &route("shop", "r", &spec)].concat());
        let told = conditions(&output, "HTTPRoute shop/r");
        let message = resource::<v1::Route>(&output, "HTTPRoute/shop/r")
            .expect("a broken backend is no reason to refuse");
        let compiled_backend = &message.rules[0].backends[0];
        assert_eq!((compiled_backend.weight, compiled_backend.invalid.as_str()), (3, reason), "{backend}");
        if reason.is_empty() {
            assert_eq!(told, [ACCEPTED, RESOLVED], "{backend}");
            assert_eq!(compiled_backend.service, "shop/mixed");
            assert_eq!(diagnostics(&output), [""; 0], "{backend}");
        } else {
            assert_eq!(told, [ACCEPTED.to_owned(), format!("web ResolvedRefs=False {reason}")], "{backend}");
            let named = ["shop/mixed", "shop/absent", "other/mixed"];
            let named = named
                [if backend.contains("absent") { 1 } else { usize::from(backend.contains("other")) * 2 }];
            assert_eq!((&*compiled_backend.service, compiled_backend.port), (named, 0), "for people");
            let line = output.diagnostics[0].line;
            assert_eq!(diagnostics(&output), [format!("{line} {code}")], "{backend}");
            assert_eq!(line, 24, "the diagnostic stands at the reference");
        }
    }
}

#[test]
fn status_echoes_parent_and_generation() {
    let generation = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop, generation: 7}
spec: {parentRefs: [{name: web, sectionName: http}]}
";
    let output = compiled(&[&gateway(HTTP), generation].concat());
    let json = serde_json::to_value(status(&output, "HTTPRoute shop/r")).unwrap();
    let expected = serde_json::json!({"parents": [{
        "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "web", "sectionName": "http"},
        "controllerName": "meshwork.dev/gateway-controller",
        "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "The parent accepts the route.",
             "observedGeneration": 7, "lastTransitionTime": "1970-01-01T00:00:00Z"},
            {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs",
             "message": "Every reference is resolved.",
             "observedGeneration": 7, "lastTransitionTime": "1970-01-01T00:00:00Z"},
        ],
    }]});
    assert_eq!(json, expected);
}

#[test]
fn services_are_parents_in_the_mesh() {
    let services = "---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
";
    let cases: &[(&str, &str, &str, &[&str])] = &[
        ("shop", "name: reviews", "Accepted", &["shop/reviews:0"]),
        ("shop", "name: reviews, port: 81", "Accepted", &["shop/reviews:81"]),
        ("shop", "name: reviews, sectionName: http", "Accepted", &["shop/reviews:80"]),
        ("shop", "name: reviews, sectionName: http, port: 81", "NoMatchingParent", &[]),
        ("shop", "name: absent", "NoMatchingParent", &[]),
        ("shop", "name: headless", "UnsupportedValue", &[]),
        // A consumer route needs no grant: it is for callers of its own namespace.
        ("blog", "name: reviews, namespace: shop", "Accepted", &["shop/reviews:0"]),
    ];
    for (namespace, parent, reason, expected) in cases {
        // Hostnames play no part below a service.
        let spec = format!("{{parentRefs: [{{group: '', kind: Service, {parent}}}], hostnames: [a.org]}}");
        let output = compiled(&[services, &route(namespace, "r", &spec)].concat());
        let told = conditions(&output, &format!("HTTPRoute {namespace}/r"));
        assert!(told[0].ends_with(reason), "{parent}: {told:?}");
        assert_eq!(attachments(&output, &format!("HTTPRoute/{namespace}/r")), *expected, "{parent}");
    }
}

#[test]
fn beside_other_controllers_only_our_parents_are_judged() {
    let settings = Settings { sole_controller: false, implicit_class: None, ..Settings::default() };
    let world = World { settings, ..World::default() };
    let yaml = [gateway(HTTP), route("shop", "r", "{parentRefs: [{name: web}, {name: elsewhere}]}")].concat();
    let output = world.compile(&yaml);
    assert!(output.statuses.is_empty(), "{:?}", output.statuses);
    assert!(output.resources.is_empty());
}

#[test]
fn a_match_that_another_hides_is_told() {
    let route_at = |name: &str, created: &str, rules: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}\n\
             spec: {{parentRefs: [{{name: web}}], hostnames: [a.org, b.org], rules: {rules}}}\n"
        )
    };
    let cart = "{path: {value: /cart}, headers: [{name: X, value: '1'}, {name: Y, value: '2'}]}";
    let same = "{path: {value: /cart}, headers: [{name: y, value: '2'}, {name: x, value: '1'}]}";
    let other = "{path: {value: /cart}, method: GET}";
    let older = route_at("z-older", "2026-01-01T00:00:00Z", &format!("[{{matches: [{cart}]}}]"));
    let younger = route_at("a-younger", "2026-01-02T00:00:00Z", &format!("[{{matches: [{other}, {same}]}}]"));
    let output = compiled(&[gateway(HTTP), younger, older].concat());
    let told = conditions(&output, "HTTPRoute shop/a-younger");
    assert_eq!(told, [ACCEPTED, RESOLVED, "web meshwork.dev/Shadowed=True SameMatch"]);
    assert_eq!(
        conditions(&output, "HTTPRoute shop/z-older"),
        [ACCEPTED, RESOLVED],
        "the older one is reached"
    );
    let found = &output.diagnostics[0];
    assert!(
        found.message.starts_with("Match 1 of rule 0 is never reached: rule 0 of HTTPRoute shop/z-older"),
        "{found}"
    );
    assert_eq!((found.line, found.code.number()), (12, 2014));

    let twice = format!("[{{matches: [{cart}]}}, {{matches: [{same}]}}]");
    let output = compiled(&[gateway(HTTP), route_at("r", "2026-01-01T00:00:00Z", &twice)].concat());
    assert!(output.diagnostics[0].message.contains("rule 0 of the route has the same match"));

    let elsewhere = route_at("other", "2026-01-02T00:00:00Z", &format!("[{{matches: [{same}]}}]"))
        .replace("b.org", "c.org");
    let older = route_at("older", "2026-01-01T00:00:00Z", &format!("[{{matches: [{cart}]}}]"));
    let output = compiled(&[gateway(HTTP), older, elsewhere].concat());
    assert_eq!(diagnostics(&output), [""; 0], "c.org still reaches it");
}

#[test]
fn a_service_of_a_backend_may_come_from_the_registry() {
    use crate::input::{CatalogPort, CatalogService};
    let mut world = World::default();
    let ports = vec![CatalogPort { port: 80, ..CatalogPort::default() }];
    let name = meshwork_base::QualifiedName::new("shop", "reviews").unwrap();
    world.catalog.services.insert(name, CatalogService { ports, ..CatalogService::default() });
    let spec = "{parentRefs: [{name: web}], rules: [{backendRefs: [{name: reviews, port: 80}]}]}";
    let yaml = [gateway(HTTP), route("shop", "r", spec)].concat();
    let output = world.compile(&yaml);
    assert_eq!(conditions(&output, "HTTPRoute shop/r"), [ACCEPTED, RESOLVED]);

    let output = world.compile(&[yaml, service("shop", "reviews")].concat());
    assert_eq!(conditions(&output, "Service shop/reviews"), ["meshwork.dev/Conflicted=True RegisteredToo"]);
    let message = resource::<v1::Service>(&output, "shop/reviews").unwrap();
    assert_eq!(message.source.unwrap().file, "shop.yaml", "what the files say is used");
}

#[test]
fn a_route_of_a_port_s_name_is_one_of_each_number_that_instances_give_it() {
    use crate::input::{CatalogPort, CatalogService};
    let mut world = World::default();
    let port = |name: &str, said: &str, port| CatalogPort {
        name: name.to_owned(),
        said: said.to_owned(),
        port,
        ..CatalogPort::default()
    };
    let ports = vec![port("http", "", 80), port("http-8080", "http", 8080), port("other", "", 81)];
    let name = meshwork_base::QualifiedName::new("shop", "reviews").unwrap();
    world.catalog.services.insert(name, CatalogService { ports, ..CatalogService::default() });
    for (at, attached) in [
        ("sectionName: http", &["shop/reviews:80", "shop/reviews:8080"][..]),
        ("sectionName: http, port: 8080", &["shop/reviews:8080"]),
        ("sectionName: http-8080", &["shop/reviews:8080"]),
        ("sectionName: other", &["shop/reviews:81"]),
        ("sectionName: other, port: 80", &[]),
    ] {
        let spec = format!(
            "{{parentRefs: [{{group: '', kind: Service, name: reviews, {at}}}], rules: [{{backendRefs: [{{name: reviews, port: 80}}]}}]}}"
        );
        let output = world.compile(&route("shop", "r", &spec));
        assert_eq!(attachments(&output, "HTTPRoute/shop/r"), attached, "{at}");
    }
}

#[test]
fn a_session_has_a_name_of_its_rule_s_own_where_nobody_gave_one() {
    use v1::session_persistence::Carrier;
    let rules = "{parentRefs: [{name: web}], rules: [
  {sessionPersistence: {}},
  {sessionPersistence: {}},
  {sessionPersistence: {sessionName: Sid, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}},
  {sessionPersistence: {type: Header, sessionName: X-Session, absoluteTimeout: 90s, idleTimeout: 1500ms}}]}";
    let output = compiled(&[gateway(HTTP), route("shop", "r", rules)].concat());
    let message = resource::<v1::Route>(&output, "HTTPRoute/shop/r").unwrap();
    let sessions: Vec<_> = message.rules.into_iter().map(|rule| rule.session.unwrap()).collect();
    assert!(sessions[0].name.starts_with("session-") && sessions[0].name.len() == 16, "{}", sessions[0].name);
    assert_ne!(sessions[0].name, sessions[1].name);
    let said: Vec<_> = sessions[1..]
        .iter()
        .map(|s| (s.carrier(), s.absolute_timeout_ms, s.idle_timeout_ms, s.name.as_str()))
        .collect();
    assert_eq!(said[0].0, Carrier::SessionCookie);
    assert_eq!(
        said[1..],
        [(Carrier::PermanentCookie, 3_600_000, 0, "Sid"), (Carrier::Header, 90_000, 1_500, "x-session")]
    );
}

#[test]
fn a_session_may_last_for_years() {
    let spec = "{parentRefs: [{name: web}], rules: [{sessionPersistence: {absoluteTimeout: 99999h}}]}";
    let output = compiled(&[gateway(HTTP), route("shop", "r", spec)].concat());
    let message = resource::<v1::Route>(&output, "HTTPRoute/shop/r").unwrap();
    let session = message.rules[0].session.as_ref().unwrap();
    assert_eq!(session.absolute_timeout_ms, 99_999 * 3_600_000);
}
