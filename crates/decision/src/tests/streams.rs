//! Connections of layer 4: which route has them, what policies say of them.

use super::*;

fn stream_listener(name: &str, port: u32, hostname: &str, protocol: v1::listener::Protocol) -> Change {
    let tls = v1::TlsTermination { passthrough: true, secrets: vec![] };
    let message = v1::Listener {
        source: source("Gateway", name.rsplit_once('/').expect("gateway/listener").0, 0),
        port,
        protocol: protocol.into(),
        hostname: hostname.into(),
        tls: (protocol == v1::listener::Protocol::Tls).then_some(tls),
        ..Default::default()
    };
    Change::upsert(name, "1", &message)
}

fn on(kind: &str, listener: &str, qualified: &str, hosts: &[&str]) -> Change {
    let rules = vec![rule(vec![path(prefix("/"))])];
    let message = route_message(qualified, 1, vec![at_listener(listener, hosts)], rules);
    Change::upsert(&format!("{kind}/{qualified}"), "1", &message)
}

fn to(snapshot: &Snapshot, server_name: Option<&str>) -> String {
    let stream = Stream { server_name, peer: None };
    match snapshot.bindings()[0].route_stream(&stream, &mut NoReasons) {
        Routed::Matched(matched) => matched.route().name.to_string(),
        Routed::NotFound { cause, .. } => cause.to_string(),
    }
}

#[test]
fn a_tcp_port_has_one_route() {
    let tcp = v1::listener::Protocol::Tcp;
    let empty = snapshot([stream_listener("ns/gw/db", 5432, "", tcp)]);
    assert_eq!(to(&empty, None), "no_host", "nothing is attached");
    let one = snapshot([stream_listener("ns/gw/db", 5432, "", tcp), on("TCPRoute", "ns/gw/db", "a/db", &[])]);
    assert_eq!(to(&one, None), "TCPRoute/a/db");
}

#[test]
fn a_tls_port_routes_by_server_name_and_never_past_the_most_specific_listener() {
    let tls = v1::listener::Protocol::Tls;
    let snapshot = snapshot([
        stream_listener("ns/gw/any", 443, "", tls),
        stream_listener("ns/gw/wild", 443, "*.example.com", tls),
        on("TLSRoute", "ns/gw/any", "a/org", &["*.org"]),
        on("TLSRoute", "ns/gw/wild", "a/exact", &["db.example.com"]),
        on("TLSRoute", "ns/gw/wild", "a/wild", &["*.b.example.com"]),
    ]);
    for (name, expected) in [
        (Some("DB.example.com"), "TLSRoute/a/exact"),
        (Some("x.b.example.com"), "TLSRoute/a/wild"),
        (Some("x.org"), "TLSRoute/a/org"),
        (Some("other.example.com"), "no_host"),
        (Some("x.net"), "no_host"),
        (None, "no_host"),
    ] {
        assert_eq!(to(&snapshot, name), expected, "{name:?}");
    }
    let named_only = super::snapshot([stream_listener("ns/gw/wild", 443, "*.example.com", tls)]);
    assert_eq!(to(&named_only, None), "no_listener", "who names no host needs a listener for any");
    assert_eq!(to(&named_only, Some("x.org")), "no_listener");
}

fn authorization(action: v1::authorization_policy::Action, rules: Vec<v1::AuthorizationRule>) -> Change {
    let spec = v1::AuthorizationPolicy { action: action.into(), rules };
    let message = v1::Policy {
        source: source("AuthorizationPolicy", "ns/p", 0),
        targets: vec![v1::policy::Target {
            kind: "Gateway".into(),
            name: "ns/gw".into(),
            section: String::new(),
        }],
        spec: Some(v1::policy::Spec::Authorization(spec)),
    };
    Change::upsert("AuthorizationPolicy/ns/p", "1", &message)
}

#[test]
fn what_a_rule_says_of_requests_counts_against_a_connection() {
    use v1::authorization_policy::Action;
    use v1::authorization_rule::{Operation, Peer};
    let spiffe = "spiffe://mesh.local/ns/shop/sa/web";
    let from = |id: &str| vec![Peer { spiffe_ids: vec![id.to_owned()], ..Default::default() }];
    let get = || vec![Operation { methods: vec!["GET".to_owned()], ..Default::default() }];
    let caller = meshwork_base::SpiffeId::parse(spiffe).unwrap();
    let cases = [
        (Action::Allow, from(spiffe), vec![], true, "the caller is named"),
        (Action::Allow, from(spiffe), get(), false, "what cannot be seen grants nothing"),
        (Action::Allow, from("spiffe://mesh.local/ns/shop/sa/other"), vec![], false, "another is named"),
        (Action::Deny, from(spiffe), vec![], false, "the caller is refused"),
        (Action::Deny, from(spiffe), get(), false, "what cannot be seen may be meant"),
        (Action::Deny, from("spiffe://mesh.local/ns/shop/sa/other"), get(), true, "another is refused"),
    ];
    for (action, from, to, passes, why) in cases {
        let snapshot = snapshot([
            stream_listener("ns/gw/db", 5432, "", v1::listener::Protocol::Tcp),
            on("TCPRoute", "ns/gw/db", "a/db", &[]),
            authorization(action, vec![v1::AuthorizationRule { from, to }]),
        ]);
        let stream = Stream { server_name: None, peer: Some(&caller) };
        let Routed::Matched(matched) = snapshot.bindings()[0].route_stream(&stream, &mut NoReasons) else {
            panic!("a route")
        };
        let checked = matched.policy().authorization.check_opaque(stream.peer, &mut NoReasons);
        assert_eq!(checked.is_ok(), passes, "{action:?}: {why}");
    }
}

#[test]
fn how_a_port_receives_connections_follows_its_policy() {
    let policy = |section: &str, v2: bool| {
        let proxy_protocol = v1::listener_policy::ProxyProtocol {
            v1: true,
            v2,
            required: true,
            trusted_sources: vec!["127.0.0.1".to_owned(), "10.0.0.0/8".to_owned()],
        };
        let target =
            v1::policy::Target { kind: "Gateway".into(), name: "ns/gw".into(), section: section.into() };
        let spec = v1::ListenerPolicy { proxy_protocol: Some(proxy_protocol) };
        let message = v1::Policy {
            source: source("ListenerPolicy", "ns/p", 0),
            targets: vec![target],
            spec: Some(v1::policy::Spec::Listener(spec)),
        };
        Change::upsert(&format!("ListenerPolicy/ns/{section}p"), "1", &message)
    };
    let mut builder = SnapshotBuilder::new();
    assert!(builder.apply([listener("ns/gw/a", 80, ""), listener("ns/gw/b", 81, "")]).is_empty());
    let of = |builder: &mut SnapshotBuilder| {
        let snapshot = builder.build();
        let told = snapshot.bindings().iter().map(|b| b.proxy_protocol.as_ref().map(|p| p.v2));
        told.collect::<Vec<_>>()
    };
    assert_eq!(of(&mut builder), [None, None]);
    assert!(builder.apply([policy("", true)]).is_empty());
    assert_eq!(of(&mut builder), [Some(true), Some(true)], "bindings follow at once");
    assert!(builder.apply([policy("b", false)]).is_empty());
    assert_eq!(of(&mut builder), [Some(true), Some(false)], "the listener's own wins");
    builder.apply([Change::remove::<v1::Policy>("ListenerPolicy/ns/p")]);
    assert_eq!(of(&mut builder), [None, Some(false)]);
}
