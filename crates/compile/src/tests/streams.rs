//! `TCPRoute` and `TLSRoute`: listeners, statuses, conflicts; the policies of layer 4.

use super::{attachments, compiled, conditions, diagnostics, gateway, resource, service, status};
use crate::Status;
use meshwork_messages::v1;

const LISTENERS: &str = "  - {name: http, port: 8080, protocol: HTTP}
  - {name: database, port: 5432, protocol: TCP}
  - {name: pass, port: 8443, protocol: TLS, hostname: '*.example.com', tls: {mode: Passthrough}}
  - {name: any, port: 9443, protocol: TLS, tls: {mode: Passthrough}}";

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-02-01T00:00:00Z";

fn stream(kind: &str, name: &str, created: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}\nspec: {spec}\n"
    )
}

fn policy(kind: &str, target: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: meshwork.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\n\
         spec: {{targetRefs: [{target}], {spec}}}\n"
    )
}

#[test]
fn each_protocol_takes_its_kind_of_route() {
    let rules = "rules: [{backendRefs: [{name: db, port: 80}]}]";
    let hosts = "hostnames: [a.example.com, b.example.org]";
    let cases: &[(&str, &str, &str, &[&str])] = &[
        ("TCPRoute", "name: web", "Accepted", &["shop/web/database"]),
        ("TCPRoute", "name: web, sectionName: database", "Accepted", &["shop/web/database"]),
        ("TCPRoute", "name: web, port: 5432", "Accepted", &["shop/web/database"]),
        ("TCPRoute", "name: web, sectionName: http", "NotAllowedByListeners", &[]),
        ("TCPRoute", "name: web, sectionName: pass", "NotAllowedByListeners", &[]),
        ("TCPRoute", "name: web, sectionName: absent", "NoMatchingParent", &[]),
        ("TCPRoute", "group: '', kind: Service, name: db", "UnsupportedValue", &[]),
        ("TLSRoute", "name: web, sectionName: pass", "Accepted", &["shop/web/pass: a.example.com"]),
        ("TLSRoute", "name: web, port: 9443", "Accepted", &["shop/web/any: a.example.com b.example.org"]),
        ("TLSRoute", "name: web, sectionName: database", "NotAllowedByListeners", &[]),
    ];
    for (kind, parent, reason, expected) in cases {
        let hosts = if *kind == "TLSRoute" { format!("{hosts}, ") } else { String::new() };
        let spec = format!("{{parentRefs: [{{{parent}}}], {hosts}{rules}}}");
        let output =
            compiled(&[gateway(LISTENERS), service("shop", "db"), stream(kind, "r", OLD, &spec)].concat());
        let told = conditions(&output, &format!("{kind} shop/r"));
        let holds = if *reason == "Accepted" { "True" } else { "False" };
        assert!(told[0].ends_with(&format!("Accepted={holds} {reason}")), "{kind} {parent}: {told:?}");
        assert_eq!(attachments(&output, &format!("{kind}/shop/r")), *expected, "{kind} {parent}");
    }
    let spec =
        format!("{{parentRefs: [{{name: web, sectionName: pass}}], hostnames: [example.com], {rules}}}");
    let output =
        compiled(&[gateway(LISTENERS), service("shop", "db"), stream("TLSRoute", "r", OLD, &spec)].concat());
    assert!(conditions(&output, "TLSRoute shop/r")[0].ends_with("Accepted=False NoMatchingListenerHostname"));
}

#[test]
fn listeners_say_what_they_take_and_proxies_learn_who_ends_tls() {
    let spec = "{parentRefs: [{name: web}], rules: [{backendRefs: [{name: db, port: 80}]}]}";
    let output =
        compiled(&[gateway(LISTENERS), service("shop", "db"), stream("TCPRoute", "r", OLD, spec)].concat());
    let Status::Gateway { listeners, .. } = status(&output, "Gateway shop/web") else { panic!() };
    let told: Vec<_> =
        listeners.iter().map(|l| (&*l.name, l.supported_kinds[0].kind, l.attached_routes)).collect();
    let expected = [
        ("http", "HTTPRoute", 0),
        ("database", "TCPRoute", 1),
        ("pass", "TLSRoute", 0),
        ("any", "TLSRoute", 0),
    ];
    assert_eq!(told, expected);
    let of = |name: &str| resource::<v1::Listener>(&output, &format!("shop/web/{name}")).unwrap();
    assert_eq!(of("database").protocol(), v1::listener::Protocol::Tcp);
    assert_eq!(of("database").tls, None);
    assert_eq!(of("pass").protocol(), v1::listener::Protocol::Tls);
    assert!(of("pass").tls.unwrap().passthrough);

    let ends = gateway("  - {name: l, port: 8443, protocol: TLS, tls: {certificateRefs: [{name: absent}]}}");
    let output = compiled(&ends);
    assert!(resource::<v1::Listener>(&output, "shop/web/l").is_none(), "who ends TLS needs a certificate");
    assert!(
        conditions(&output, "Gateway shop/web")
            .contains(&"l ResolvedRefs=False InvalidCertificateRef".into())
    );
}

#[test]
fn the_older_route_has_the_listener_and_the_other_says_so() {
    let to = |parent: &str| {
        format!("{{parentRefs: [{{{parent}}}], rules: [{{backendRefs: [{{name: db, port: 80}}]}}]}}")
    };
    let yaml = |first: &str| {
        let two =
            "  - {name: database, port: 5432, protocol: TCP}\n  - {name: other, port: 5433, protocol: TCP}";
        [
            gateway(two),
            service("shop", "db"),
            stream("TCPRoute", "young", NEW, &to("name: web")),
            stream("TCPRoute", "old", OLD, &to(first)),
        ]
        .concat()
    };
    let output = compiled(&yaml("name: web"));
    assert!(conditions(&output, "TCPRoute shop/old")[0].ends_with("Accepted=True Accepted"));
    assert!(conditions(&output, "TCPRoute shop/young")[0].ends_with("Accepted=False Conflicted"));
    assert!(diagnostics(&output).iter().any(|told| told.ends_with("MW2021")));
    assert!(resource::<v1::Route>(&output, "TCPRoute/shop/young").is_none());

    // What the older one leaves is the younger one's.
    let output = compiled(&yaml("name: web, sectionName: database"));
    assert!(conditions(&output, "TCPRoute shop/young")[0].ends_with("Accepted=True Accepted"));
    assert_eq!(attachments(&output, "TCPRoute/shop/young"), ["shop/web/other"]);
}

#[test]
fn a_server_name_of_a_listener_is_one_route_s() {
    let to = |hosts: &str| {
        format!(
            "{{parentRefs: [{{name: web}}], hostnames: {hosts}, rules: [{{backendRefs: [{{name: db, port: 80}}]}}]}}"
        )
    };
    let yaml = [
        gateway("  - {name: tls, port: 8443, protocol: TLS, tls: {mode: Passthrough}}"),
        service("shop", "db"),
        stream("TLSRoute", "old", OLD, &to("[a.example, b.example]")),
        stream("TLSRoute", "young", NEW, &to("[b.example, c.example, '*.example']")),
        stream("TLSRoute", "youngest", NEW, &to("[a.example]")),
    ];
    let output = compiled(&yaml.concat());
    assert_eq!(attachments(&output, "TLSRoute/shop/old"), ["shop/web/tls: a.example b.example"]);
    assert_eq!(attachments(&output, "TLSRoute/shop/young"), ["shop/web/tls: c.example *.example"]);
    assert!(conditions(&output, "TLSRoute shop/youngest")[0].ends_with("Accepted=False Conflicted"));
}

#[test]
fn a_stream_s_backend_may_speak_anything_over_tcp_and_a_broken_one_keeps_its_share() {
    let spec = "{parentRefs: [{name: web, sectionName: database}], rules: [{backendRefs: [
      {name: s, port: 5432, weight: 7}, {name: s, port: 53}, {name: absent, port: 1, weight: 3}]}]}";
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec:\n  \
                   ports: [{name: a, port: 5432, appProtocol: postgresql}, {name: b, port: 53, protocol: UDP}]\n";
    let output = compiled(&[&gateway(LISTENERS), service, &stream("TCPRoute", "r", OLD, spec)].concat());
    let route = resource::<v1::Route>(&output, "TCPRoute/shop/r").unwrap();
    let told: Vec<_> = route.rules[0].backends.iter().map(|b| (b.weight, b.invalid.as_str())).collect();
    assert_eq!(told, [(7, ""), (1, "UnsupportedProtocol"), (3, "BackendNotFound")]);
    assert!(conditions(&output, "TCPRoute shop/r")[1].ends_with("ResolvedRefs=False UnsupportedProtocol"));
}

#[test]
fn a_grant_names_the_kind_of_route_it_permits() {
    let spec = "{parentRefs: [{name: web, sectionName: database}], rules: [{backendRefs: [
      {name: db, namespace: data, port: 80}]}]}";
    for (kind, expected) in [("TCPRoute", "True ResolvedRefs"), ("HTTPRoute", "False RefNotPermitted")] {
        let grant = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: data}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: shop}}], to: [{{group: '', kind: Service}}]}}\n"
        );
        let yaml =
            [gateway(LISTENERS), service("data", "db"), stream("TCPRoute", "r", OLD, spec), grant].concat();
        let told = conditions(&compiled(&yaml), "TCPRoute shop/r");
        assert_eq!(told[1], format!("web ResolvedRefs={expected}"), "a grant for {kind}");
    }
}

#[test]
fn whom_to_believe_reaches_proxies_with_the_listener() {
    let edge = "{group: gateway.networking.k8s.io, kind: Gateway, name: web, sectionName: http}";
    let spec = "proxyProtocol: {versions: [v2], trustedSources: [10.0.0.0/8]}";
    let output = compiled(&[gateway(LISTENERS), policy("ListenerPolicy", edge, spec)].concat());
    assert_eq!(conditions(&output, "ListenerPolicy shop/p"), ["web Accepted=True Accepted"]);
    let message = resource::<v1::Policy>(&output, "ListenerPolicy/shop/p").unwrap();
    let Some(v1::policy::Spec::Listener(listener)) = message.spec else { panic!("another spec") };
    let said = listener.proxy_protocol.unwrap();
    assert_eq!((said.v1, said.v2, said.required), (false, true, true));
    assert_eq!(said.trusted_sources, ["10.0.0.0/8"]);
}

#[test]
fn no_proxy_header_is_sent_where_connections_are_shared() {
    let target = "{group: '', kind: Service, name: s}";
    for (protocol, expected) in
        [("http", "True Accepted"), ("grpc", "False Invalid"), ("postgresql", "True Accepted")]
    {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: shop}}\n\
             spec: {{ports: [{{port: 80, appProtocol: {protocol}}}]}}\n"
        );
        let output = compiled(&[service, policy("TrafficPolicy", target, "proxyProtocol: v1")].concat());
        assert_eq!(
            conditions(&output, "TrafficPolicy shop/p"),
            [format!("s Accepted={expected}")],
            "{protocol}"
        );
    }
}
