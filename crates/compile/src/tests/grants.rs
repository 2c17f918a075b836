use meshwork_messages::v1;

use super::{HTTP, compiled, conditions, gateway, resource, route, service};

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

#[test]
fn copies_need_a_grant_like_any_backend_and_are_left_out_without() {
    let to = |rest: &str| format!("{{type: RequestMirror, requestMirror: {{backendRef: {{{rest}}}}}}}");
    let rule = |filter: &str| {
        let backend = format!("{{name: web, port: 80, filters: [{filter}]}}");
        let own = "{name: web, port: 80}";
        [(filter, own.to_owned()), ("", backend)].map(|(filters, backend)| {
            format!(
                "{{parentRefs: [{{name: web}}], rules: [{{filters: [{filters}], backendRefs: [{backend}]}}]}}"
            )
        })
    };
    let other = to("name: reviews, namespace: data, port: 80");
    let cases = [
        (to("name: reviews, port: 80"), String::new(), "True ResolvedRefs", Some("shop/reviews")),
        (to("name: absent, port: 80"), String::new(), "False BackendNotFound", None),
        (to("name: reviews, port: 81"), String::new(), "False BackendNotFound", None),
        (to("name: reviews, port: 80, kind: Else"), String::new(), "False InvalidKind", None),
        (other.clone(), String::new(), "False RefNotPermitted", None),
        (other, grant("data", FROM, TO), "True ResolvedRefs", Some("data/reviews")),
    ];
    for (filter, grant, expected, leads) in cases {
        for spec in rule(&filter) {
            let services = ["web", "reviews"].map(|name| service("shop", name)).concat();
            let yaml = [
                gateway(HTTP),
                services,
                service("data", "reviews"),
                route("shop", "r", &spec),
                grant.clone(),
            ];
            let output = compiled(&yaml.concat());
            let told = conditions(&output, "HTTPRoute shop/r");
            assert_eq!(told[1], format!("web ResolvedRefs={expected}"), "{spec}");
            let message = resource::<v1::Route>(&output, "HTTPRoute/shop/r").unwrap();
            let rule = &message.rules[0];
            let mirrors: Vec<_> = rule.mirrors.iter().chain(&rule.backends[0].mirrors).collect();
            assert_eq!(mirrors.first().map(|mirror| &*mirror.service), leads, "{spec}");
            assert!(rule.backends[0].invalid.is_empty(), "the rule itself goes on");
            let key = crate::ResourceKey::new(crate::ResourceType::Route, "HTTPRoute/shop/r");
            let needs: Vec<_> =
                output.resources[&key].needs.iter().map(|need| need.name.to_string()).collect();
            assert!(needs.contains(&leads.unwrap_or("shop/web").to_owned()), "{needs:?}");
        }
    }
}
