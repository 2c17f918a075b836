//! Several listeners of one port, certificates, and what a binding is.

use super::*;

fn any_rule() -> Vec<v1::Rule> {
    vec![rule(vec![path(prefix("/"))])]
}

fn on(listener: &str, qualified: &str, hosts: &[&str]) -> Change {
    let message = route_message(qualified, 1, vec![at_listener(listener, hosts)], any_rule());
    Change::upsert(&format!("HTTPRoute/{qualified}"), "1", &message)
}

/// The listeners of Gateway API's own example for isolation.
fn isolated() -> Arc<Snapshot> {
    snapshot([
        listener("ns/gw/any", 80, ""),
        listener("ns/gw/wild", 80, "*.example.com"),
        listener("ns/gw/foo-wild", 80, "*.foo.example.com"),
        listener("ns/gw/exact", 80, "abc.foo.example.com"),
        on("ns/gw/any", "a/any", &[]),
        on("ns/gw/wild", "a/wild", &["*.example.com"]),
        on("ns/gw/foo-wild", "a/foo", &["*.foo.example.com"]),
        on("ns/gw/exact", "a/exact", &["abc.foo.example.com"]),
    ])
}

#[test]
fn http_listeners_are_isolated_by_the_most_specific_hostname() {
    let snapshot = isolated();
    assert_eq!(snapshot.bindings().len(), 1);
    for (host, want) in [
        ("bar.com", "a/any#0.0"),
        ("bar.example.com", "a/wild#0.0"),
        ("bar.foo.example.com", "a/foo#0.0"),
        ("ABC.foo.example.com:8080", "a/exact#0.0"),
        ("abc.foo.example.com.", "a/exact#0.0"),
        ("example.com", "a/any#0.0"),
    ] {
        assert_eq!(routed(&snapshot, &OwnedRequest::get(host, "/")), want, "{host}");
    }
}

#[test]
fn a_request_of_a_listener_never_reaches_routes_of_another() {
    let snapshot = snapshot([
        listener("ns/gw/wild", 80, "*.example.com"),
        listener("ns/gw/exact", 80, "abc.example.com"),
        on("ns/gw/wild", "a/wild", &["*.example.com"]),
    ]);
    let of = |host| routed(&snapshot, &OwnedRequest::get(host, "/"));
    assert_eq!(of("abc.example.com"), "no_host");
    assert_eq!(of("x.example.com"), "a/wild#0.0");
    assert_eq!(of("x.org"), "no_listener");
}

#[test]
fn under_tls_a_host_of_another_listener_is_misdirected() {
    let snapshot = snapshot([
        https_listener("ns/gw/wild", 443, "*.example.com", &[]),
        https_listener("ns/gw/exact", 443, "abc.example.com", &[]),
        on("ns/gw/wild", "a/wild", &["*.example.com"]),
        on("ns/gw/exact", "a/exact", &["abc.example.com"]),
    ]);
    let of = |sni: Option<&str>, host| routed_sni(&snapshot, &OwnedRequest::get(host, "/"), sni);
    assert_eq!(of(Some("abc.example.com"), "abc.example.com"), "a/exact#0.0");
    assert_eq!(of(Some("x.example.com"), "y.example.com"), "a/wild#0.0", "both are the same listener's");
    assert_eq!(
        of(Some("x.example.com"), "abc.example.com"),
        "misdirected_request",
        "more specific elsewhere"
    );
    assert_eq!(of(Some("ABC.example.com"), "x.example.com"), "misdirected_request", "not of this listener");
    assert_eq!(of(Some("abc.example.com"), "other.org"), "no_listener", "nobody's");
    assert_eq!(of(None, "abc.example.com"), "misdirected_request");
    assert_eq!(Cause::MisdirectedRequest.status(), Some(421));
}

fn secret(name: &str, text: &'static str) -> Change {
    let pem = v1::Secret {
        source: None,
        certificate_chain_pem: text.as_bytes().into(),
        private_key_pem: b"key".as_slice().into(),
    };
    Change::upsert(name, "1", &pem)
}

#[test]
fn certificates_follow_server_names() {
    let mut builder = SnapshotBuilder::new();
    let first = build(
        &mut builder,
        [
            https_listener("ns/gw/a", 443, "a.example", &["ns/one", "ns/two"]),
            https_listener("ns/gw/wild", 443, "*.example", &["ns/two", "ns/absent"]),
            secret("ns/one", "1"),
            secret("ns/two", "2"),
        ],
    );
    let names = |snapshot: &Snapshot, sni| {
        let listener = snapshot.bindings()[0].certificates_for(sni)?;
        Some(listener.secrets.iter().map(|s| s.name.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(names(&first, Some("A.example")).unwrap(), ["ns/one", "ns/two"]);
    assert_eq!(names(&first, Some("b.example")).unwrap(), ["ns/two"]);
    assert_eq!(names(&first, Some("other.org")), None);
    assert_eq!(names(&first, None), None, "no listener serves clients without SNI");

    let second = build(&mut builder, [secret("ns/two", "changed"), secret("ns/one", "1")]);
    let of = |s: &Snapshot| s.bindings()[0].certificates_for(Some("a.example")).unwrap().secrets.clone();
    assert!(Arc::ptr_eq(&of(&first)[0], &of(&second)[0]), "an unchanged secret is the same");
    assert_eq!(&*of(&second)[1].certificate_chain_pem, b"changed");
}

#[test]
fn each_address_and_port_is_bound_once() {
    let with_addresses = |name: &str, port, addresses: &[&str]| {
        let message = v1::Listener {
            addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
            port,
            protocol: v1::listener::Protocol::Http.into(),
            ..Default::default()
        };
        Change::upsert(name, "1", &message)
    };
    let snapshot = snapshot([
        with_addresses("ns/a/l", 80, &["127.0.0.1", "::1"]),
        with_addresses("ns/b/l", 80, &["127.0.0.1"]),
        with_addresses("ns/c/l", 80, &[]),
    ]);
    let shape: Vec<_> = snapshot
        .bindings()
        .iter()
        .map(|b| (b.address.map(|a| a.to_string()), b.listeners.iter().map(|l| &*l.name).collect::<Vec<_>>()))
        .collect();
    assert_eq!(
        shape,
        [
            (None, vec!["ns/c/l"]),
            (Some("127.0.0.1".to_owned()), vec!["ns/a/l", "ns/b/l"]),
            (Some("::1".to_owned()), vec!["ns/a/l"]),
        ]
    );
}

#[test]
fn gateways_that_share_port_and_hostname_are_asked_in_turn() {
    let only = |listener: &str, qualified: &str, at: &str| {
        let rules = vec![rule(vec![path(prefix(at))])];
        let message = route_message(qualified, 1, vec![at_listener(listener, &[])], rules);
        Change::upsert(&format!("HTTPRoute/{qualified}"), "1", &message)
    };
    let snapshot = snapshot([
        listener("ns/a/l", 80, ""),
        listener("ns/b/l", 80, ""),
        only("ns/a/l", "r/a", "/a"),
        only("ns/b/l", "r/b", "/b"),
    ]);
    let of = |target| routed(&snapshot, &OwnedRequest::get("h", target));
    assert_eq!((of("/a"), of("/b"), of("/c")), ("r/a#0.0".into(), "r/b#0.0".into(), "no_rule".into()));
}

#[test]
fn a_port_speaks_what_its_oldest_listener_says() {
    let snapshot = snapshot([listener("ns/a/l", 80, ""), https_listener("ns/b/l", 80, "", &[])]);
    assert_eq!(snapshot.bindings()[0].protocol, Protocol::Http);
    let [(left_out, why)] = snapshot.unbound() else { panic!("one is left out") };
    assert_eq!(&*left_out.name, "ns/b/l");
    assert!(why.contains("ns/a/l"), "{why}");
}
