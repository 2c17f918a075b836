//! What is told of who goes first: that it is older only where it is.

use super::compiled;

const TIME: [&str; 2] = ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"];

fn object(kind: &str, name: &str, created: Option<&str>, spec: &str) -> String {
    let group =
        if kind == "TrafficPolicy" { "meshwork.dev/v1alpha1" } else { "gateway.networking.k8s.io/v1" };
    let created = created.map(|time| format!(", creationTimestamp: '{time}'")).unwrap_or_default();
    format!(
        "---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop{created}}}\nspec: {spec}\n"
    )
}

/// Everything that is told of two objects of a kind that want the same, `a` and `z` of these ages.
fn told(kind: &str, spec: &str, a: Option<&str>, z: Option<&str>) -> Vec<String> {
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec:\n  ports: [{port: 80}]\n";
    let listeners = "[{name: h, port: 80, protocol: HTTP}, {name: t, port: 81, protocol: TCP}]".to_owned();
    let edge =
        format!("{{gatewayClassName: meshwork, addresses: [{{value: 127.0.0.9}}], listeners: {listeners}}}");
    let edge = object("Gateway", "edge", None, &edge);
    let two = [object(kind, "a", a, spec), object(kind, "z", z, spec)].concat();
    let output = compiled(&[service.to_owned(), edge, two].concat());
    output.diagnostics.iter().map(|found| found.message.clone()).collect()
}

#[test]
fn who_goes_first_is_called_older_only_where_it_is() {
    let route = "parentRefs: [{name: edge}], rules: [{backendRefs: [{name: s, port: 80}]}]";
    let cases = [
        (
            "Gateway",
            "{gatewayClassName: meshwork, listeners: [{name: h, port: 82, protocol: HTTP}]}".to_owned(),
            "Port 82 is held by listener shop/FIRST/h, which WHY.",
        ),
        (
            "HTTPRoute",
            format!("{{{route}}}"),
            "Match 0 of rule 0 is never reached: rule 0 of HTTPRoute shop/FIRST, which WHY, has the same match.",
        ),
        ("TCPRoute", format!("{{{route}}}"), "TCPRoute shop/FIRST WHY and has listener shop/edge/t."),
        (
            "TrafficPolicy",
            "{targetRefs: [{group: '', kind: Service, name: s}], timeouts: {request: 1s}}".to_owned(),
            "TrafficPolicy shop/FIRST WHY and sets `timeouts` of Service shop/s too.",
        ),
    ];
    let ages = [
        (None, None, "a", "goes first by its name"),
        (Some(TIME[0]), Some(TIME[0]), "a", "goes first by its name"),
        (Some(TIME[0]), Some(TIME[1]), "a", "is older"),
        (Some(TIME[1]), Some(TIME[0]), "z", "is older"),
        (Some(TIME[0]), None, "z", "counts as older (nobody knows when it was made)"),
    ];
    for (kind, spec, text) in cases {
        for (a, z, first, why) in ages {
            let expected = text.replace("FIRST", first).replace("WHY", why);
            assert_eq!(told(kind, &spec, a, z), [expected], "{kind} {a:?} {z:?}");
        }
    }
}
