use super::{HTTP, compiled, conditions, gateway, route, service};

fn grant(namespace: &str, from: &str, to: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\n\
         metadata: {{name: g, namespace: {namespace}}}\nspec: {{from: [{from}], to: [{to}]}}\n"
    )
}

const FROM: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}";
const TO: &str = "{group: '', kind: Service}";

#[test]
fn a_backend_of_another_namespace_needs_a_grant_there() {
    let other = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: blog}";
    let cases = [
        (grant("data", FROM, TO), true, "to every service"),
        (grant("data", FROM, "{group: '', kind: Service, name: reviews}"), true, "to this service"),
        (
            grant("data", &format!("{other}, {FROM}"), &format!("{{group: '', kind: Secret}}, {TO}")),
            true,
            "among others",
        ),
        (grant("data", FROM, "{group: '', kind: Service, name: other}"), false, "to another service"),
        (grant("data", other, TO), false, "from another namespace"),
        (
            grant("data", "{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}", TO),
            false,
            "from another kind",
        ),
        (grant("data", "{group: '', kind: HTTPRoute, namespace: shop}", TO), false, "from another group"),
        (grant("data", FROM, "{group: '', kind: Secret}"), false, "to another kind"),
        (grant("data", FROM, "{group: example.com, kind: Service}"), false, "to another group"),
        (grant("shop", FROM, TO), false, "in the wrong namespace"),
        (String::new(), false, "none"),
    ];
    let spec =
        "{parentRefs: [{name: web}], rules: [{backendRefs: [{name: reviews, namespace: data, port: 80}]}]}";
    for (grant, permitted, what) in cases {
        let yaml = [gateway(HTTP), service("data", "reviews"), route("shop", "r", spec), grant].concat();
        let expected = if permitted { "True ResolvedRefs" } else { "False RefNotPermitted" };
        let told = conditions(&compiled(&yaml), "HTTPRoute shop/r");
        assert_eq!(told[1], format!("web ResolvedRefs={expected}"), "{what}");
    }
}

#[test]
fn without_a_grant_nobody_learns_whether_the_service_exists() {
    let spec =
        "{parentRefs: [{name: web}], rules: [{backendRefs: [{name: absent, namespace: data, port: 80}]}]}";
    let output = compiled(&[gateway(HTTP), route("shop", "r", spec)].concat());
    assert_eq!(conditions(&output, "HTTPRoute shop/r")[1], "web ResolvedRefs=False RefNotPermitted");
}
