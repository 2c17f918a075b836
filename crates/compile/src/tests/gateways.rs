use std::collections::{BTreeMap, BTreeSet};

use super::{HTTP, World, compiled, conditions, diagnostics, gateway, load, resource, route, status};
use crate::Status;
use meshwork_messages::v1;

fn class(name: &str, controller: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\n\
         spec: {{controllerName: {controller}}}\n"
    )
}

#[test]
fn a_gateway_is_ours_by_its_class() {
    let named = |class: &str| {
        gateway(HTTP).replace("gatewayClassName: meshwork", &format!("gatewayClassName: {class}"))
    };
    let ours = class("edge", "meshwork.dev/gateway-controller");
    let theirs = class("theirs", "example.com/controller");

    let output = compiled(&[named("edge"), ours.clone()].concat());
    assert_eq!(
        conditions(&output, "GatewayClass edge"),
        ["Accepted=True Accepted", "SupportedVersion=True SupportedVersion"]
    );
    assert!(resource::<v1::Listener>(&output, "shop/web/http").is_some());

    let left_alone = [named("theirs"), theirs, route("shop", "r", "{parentRefs: [{name: web}]}")].concat();
    let output = compiled(&left_alone);
    assert!(output.statuses.is_empty() && output.resources.is_empty() && output.diagnostics.is_empty());

    let output = compiled(&named("meshwrok"));
    assert!(output.statuses.is_empty() && output.resources.is_empty());
    assert_eq!(diagnostics(&output), ["5 MW2012"], "nobody serves it, and that is said");

    let hijacked = [named("meshwork"), class("meshwork", "example.com/controller")].concat();
    assert!(compiled(&hijacked).resources.is_empty(), "an object with the name of the implicit class counts");
}

#[test]
fn programmed_follows_what_proxies_report() {
    let yaml =
        gateway("  - {name: a, port: 8080, protocol: HTTP}\n  - {name: b, port: 8081, protocol: HTTP}");
    let mut world = World::default();
    let told = |world: &World| {
        let told = conditions(&world.compile(&yaml), "Gateway shop/web");
        told.into_iter().filter(|line| line.contains("Programmed=")).collect::<Vec<_>>()
    };
    let waiting = ["Programmed=False Pending", "a Programmed=False Pending", "b Programmed=False Pending"];
    assert_eq!(told(&world), waiting);

    let at = |ip: &str| BTreeMap::from([("proxy-1".to_owned(), BTreeSet::from([ip.parse().unwrap()]))]);
    world.proxies.bound.insert("shop/web/a".to_owned(), at("127.0.0.1"));
    let half = ["Programmed=False Pending", "a Programmed=True Programmed", "b Programmed=False Pending"];
    assert_eq!(told(&world), half);

    world.proxies.bound.insert("shop/web/b".to_owned(), at("127.0.0.1"));
    let all = ["Programmed=True Programmed", "a Programmed=True Programmed", "b Programmed=True Programmed"];
    assert_eq!(told(&world), all);
    let output = world.compile(&yaml);
    let json = serde_json::to_value(status(&output, "Gateway shop/web")).unwrap();
    assert_eq!(json["addresses"], serde_json::json!([{"type": "IPAddress", "value": "127.0.0.1"}]));

    world.proxies.refused.insert("shop/web/b".to_owned(), "127.0.0.1:8081 is in use".to_owned());
    assert_eq!(told(&world)[0], "Programmed=False AddressNotUsable");
}

#[test]
fn addresses_are_ip_addresses() {
    let with =
        |addresses: &str| gateway(HTTP).replace("spec:\n", &format!("spec:\n  addresses: [{addresses}]\n"));
    let output = compiled(&with("{value: 127.0.0.2}, {value: '::1'}, {type: IPAddress}"));
    let listener = resource::<v1::Listener>(&output, "shop/web/http").unwrap();
    assert_eq!(
        listener.addresses,
        ["127.0.0.2", "::1"],
        "an entry without a value is the proxy's own choice"
    );

    let output = compiled(&with("{type: Hostname, value: www.example.com}"));
    let told = conditions(&output, "Gateway shop/web");
    assert_eq!(told[..2], ["Accepted=False UnsupportedAddress", "Programmed=False Invalid"]);
    assert!(output.resources.is_empty());
    assert_eq!(diagnostics(&output), ["5 MW2013"]);
}

#[test]
fn a_certificate_that_cannot_be_used_closes_its_listener() {
    let cases = [
        ("{name: absent}", "InvalidCertificateRef", "MW2009"),
        ("{name: broken}", "InvalidCertificateRef", "MW2009"),
        ("{name: broken, kind: Vault}", "InvalidCertificateRef", "MW2005"),
        ("{name: broken, group: example.com}", "InvalidCertificateRef", "MW2005"),
        ("{name: broken, namespace: certs}", "RefNotPermitted", "MW2006"),
    ];
    let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: broken, namespace: shop}\n\
                  stringData: {tls.crt: Hello world}\n";
    for (reference, reason, code) in cases {
        let https = format!(
            "  - {{name: https, port: 8443, protocol: HTTPS, tls: {{certificateRefs: [{reference}]}}}}"
        );
        let yaml = [&gateway(&https), secret, &route("shop", "r", "{parentRefs: [{name: web}]}")].concat();
        let output = compiled(&yaml);
        assert_eq!(
            conditions(&output, "Gateway shop/web")[2..],
            [
                "https Accepted=True Accepted".to_owned(),
                "https Conflicted=False NoConflicts".to_owned(),
                format!("https ResolvedRefs=False {reason}"),
                "https Programmed=False Invalid".to_owned(),
            ],
            "{reference}"
        );
        assert_eq!(diagnostics(&output), [format!("7 {code}")], "{reference}");
        assert!(resource::<v1::Listener>(&output, "shop/web/https").is_none());
        assert!(resource::<v1::Secret>(&output, "shop/broken").is_none(), "a broken secret reaches no proxy");
        let Status::Gateway { listeners, .. } = status(&output, "Gateway shop/web") else { panic!() };
        assert_eq!(listeners[0].attached_routes, 1, "routes are counted whatever the listener's own state");
    }
}

#[test]
fn supported_kinds_are_those_that_were_asked_for_and_can_be_had() {
    let cases = [
        ("[]", 1, "True ResolvedRefs"),
        ("[{kind: HTTPRoute}]", 1, "True ResolvedRefs"),
        ("[{kind: HTTPRoute}, {kind: TLSRoute}]", 1, "False InvalidRouteKinds"),
        ("[{kind: Rubbish}]", 0, "False InvalidRouteKinds"),
        ("[{group: example.com, kind: HTTPRoute}]", 0, "False InvalidRouteKinds"),
    ];
    for (kinds, supported, resolved) in cases {
        let listener =
            format!("  - {{name: http, port: 8080, protocol: HTTP, allowedRoutes: {{kinds: {kinds}}}}}");
        let output = compiled(&gateway(&listener));
        let Status::Gateway { listeners, .. } = status(&output, "Gateway shop/web") else { panic!() };
        assert_eq!(listeners[0].supported_kinds.len(), supported, "{kinds}");
        assert!(
            conditions(&output, "Gateway shop/web").contains(&format!("http ResolvedRefs={resolved}")),
            "{kinds}"
        );
        let open = resource::<v1::Listener>(&output, "shop/web/http").is_some();
        assert_eq!(open, supported > 0, "{kinds}");
    }
}

#[test]
fn a_gateway_without_any_good_listener_is_not_accepted() {
    let output = compiled(&gateway("  - {name: dns, port: 53, protocol: UDP}"));
    let told = conditions(&output, "Gateway shop/web");
    assert_eq!(
        told[..3],
        [
            "Accepted=False ListenersNotValid",
            "Programmed=False Invalid",
            "dns Accepted=False UnsupportedProtocol"
        ]
    );
    let Status::Gateway { listeners, .. } = status(&output, "Gateway shop/web") else { panic!() };
    assert!(listeners[0].supported_kinds.is_empty());
}

#[test]
fn attached_routes_are_those_accepted_by_the_listener() {
    let yaml = [
        gateway(
            "  - {name: a, port: 8080, protocol: HTTP, hostname: a.org}\n  - {name: any, port: 8081, protocol: HTTP}",
        ),
        route("shop", "one", "{parentRefs: [{name: web}], hostnames: [a.org]}"),
        route("shop", "two", "{parentRefs: [{name: web}], hostnames: [b.org]}"),
        route("shop", "twice", "{parentRefs: [{name: web, sectionName: a}, {name: web, sectionName: any}]}"),
        route("shop", "none", "{parentRefs: [{name: web, sectionName: a}], hostnames: [c.org]}"),
    ];
    let output = compiled(&yaml.concat());
    let Status::Gateway { listeners, .. } = status(&output, "Gateway shop/web") else { panic!() };
    let counts: Vec<_> = listeners.iter().map(|l| (l.name.as_str(), l.attached_routes)).collect();
    assert_eq!(counts, [("a", 2), ("any", 3)]);
}

#[test]
fn a_condition_keeps_its_time_until_it_changes() {
    let world = World::default();
    let good = load(&gateway(HTTP)).objects;
    let bad = load(&gateway("  - {name: http, port: 8080, protocol: UDP}")).objects;
    let time = |output: &crate::Output, kind: &str| {
        let status = status(output, "Gateway shop/web");
        let found = status.conditions().find(|(about, condition)| about.is_empty() && condition.kind == kind);
        found.unwrap().1.last_transition_time.0
    };
    let first = world.compile_at(&good, None, 100);
    let second = world.compile_at(&good, Some(&first), 200);
    assert_eq!(first, second, "nothing changed, not even a time");
    let third = world.compile_at(&bad, Some(&second), 300);
    assert_eq!(
        (time(&third, "Accepted"), time(&third, "Programmed")),
        (300, 100),
        "Programmed was False before"
    );
    let fourth = world.compile_at(&good, Some(&third), 400);
    assert_eq!(time(&fourth, "Accepted"), 400);
}
