use super::{World, compiled, conditions, diagnostics, gateway, resource};
use crate::Settings;
use meshwork_messages::v1;

/// What is said of the listeners, without what is said of the gateway.
fn of_listeners(told: &[String], kind: &str) -> Vec<String> {
    let wanted = told.iter().skip(2).filter(|line| line.contains(&format!(" {kind}=")));
    wanted.map(|line| line.replace(&format!(" {kind}="), " ")).collect()
}

#[test]
fn of_listeners_that_cannot_be_told_apart_none_is_opened() {
    let tls = "tls: {certificateRefs: [{name: absent}]}";
    let yaml = gateway(&format!(
        "  - {{name: a, port: 8080, protocol: HTTP}}
  - {{name: b, port: 8080, protocol: HTTPS, {tls}}}
  - {{name: c, port: 8081, protocol: HTTP, hostname: a.org}}
  - {{name: d, port: 8081, protocol: HTTP, hostname: '*.org'}}
  - {{name: e, port: 8081, protocol: HTTP}}
  - {{name: f, port: 8080, protocol: UDP}}"
    ));
    let output = compiled(&yaml);
    let told = conditions(&output, "Gateway shop/web");
    assert_eq!(told[0], "Accepted=True ListenersNotValid");
    let conflicted = ["a True ProtocolConflict", "b True ProtocolConflict", "c False NoConflicts"];
    assert_eq!(of_listeners(&told, "Conflicted")[..3], conflicted);
    let accepted = of_listeners(&told, "Accepted");
    assert_eq!(accepted[..3], ["a False ProtocolConflict", "b False ProtocolConflict", "c True Accepted"]);
    assert_eq!(accepted[5], "f False UnsupportedProtocol", "what is not served conflicts with nothing");
    assert!(resource::<v1::Listener>(&output, "shop/web/a").is_none());
    for open in ["c", "d", "e"] {
        assert!(resource::<v1::Listener>(&output, &format!("shop/web/{open}")).is_some(), "{open}");
    }
}

fn two_gateways(first: &str, second: &str) -> String {
    let at = |name: &str, created: &str, listener: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}\n\
             spec: {{gatewayClassName: meshwork, {listener}}}\n"
        )
    };
    [at("young", "2026-01-02T00:00:00Z", second), at("old", "2026-01-01T00:00:00Z", first)].concat()
}

#[test]
fn between_gateways_of_one_process_the_older_keeps_the_port() {
    let plain = "listeners: [{name: l, port: 8080, protocol: HTTP}]";
    let host = "listeners: [{name: l, port: 8080, protocol: HTTP, hostname: a.org}]";
    let at = |ip: &str| format!("addresses: [{{value: {ip}}}], {plain}");
    let cases = [
        (plain.to_owned(), plain.to_owned(), "False PortUnavailable"),
        (plain.to_owned(), host.to_owned(), "True Accepted"),
        (at("127.0.0.1"), at("127.0.0.2"), "True Accepted"),
        (at("127.0.0.1"), at("127.0.0.1"), "False PortUnavailable"),
        (at("127.0.0.1"), plain.to_owned(), "True Accepted"),
    ];
    for (first, second, expected) in cases {
        let yaml = two_gateways(&first, &second);
        let output = compiled(&yaml);
        let accepted = |gateway: &str| of_listeners(&conditions(&output, gateway), "Accepted").concat();
        assert_eq!(accepted("Gateway shop/old"), "l True Accepted", "{first} {second}");
        assert_eq!(accepted("Gateway shop/young"), format!("l {expected}"), "{first} {second}");

        let settings = Settings { gateways_share_addresses: false, ..Settings::default() };
        let apart = World { settings, ..World::default() }.compile(&yaml);
        let told = of_listeners(&conditions(&apart, "Gateway shop/young"), "Accepted").concat();
        assert_eq!(told, "l True Accepted", "gateways with processes of their own do not meet");
    }
}

#[test]
fn nested_hostnames_of_tls_listeners_are_told() {
    let made = rcgen::generate_simple_self_signed(["a.org".to_owned()]).unwrap();
    let indent = |pem: String| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let secret = format!(
        "---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: c, namespace: shop}}\n\
         stringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indent(made.cert.pem()),
        indent(made.signing_key.serialize_pem())
    );
    let tls = "protocol: HTTPS, tls: {certificateRefs: [{name: c}]}";
    let yaml = gateway(&format!(
        "  - {{name: a, port: 8443, {tls}, hostname: foo.example.com}}
  - {{name: b, port: 8443, {tls}, hostname: foo.example.org}}
  - {{name: c, port: 8443, {tls}, hostname: '*.example.com'}}
  - {{name: d, port: 8444, {tls}, hostname: '*.com'}}"
    ));
    let output = compiled(&[yaml, secret].concat());
    let told = conditions(&output, "Gateway shop/web");
    assert_eq!(
        of_listeners(&told, "OverlappingTLSConfig"),
        ["a True OverlappingHostnames", "c True OverlappingHostnames"]
    );
    assert_eq!(told[0], "Accepted=True Accepted", "an overlap is no fault");
    assert_eq!(diagnostics(&output), ["7 MW2019", "9 MW2019"]);
    let listener = resource::<v1::Listener>(&output, "shop/web/a").unwrap();
    assert_eq!(listener.tls.unwrap().secrets, ["shop/c"]);
    assert!(resource::<v1::Secret>(&output, "shop/c").is_some());
}
