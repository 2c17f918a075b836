//! References across namespaces, and those that lead nowhere.

use serde_json::Value;

use crate::support::{Curl, Gateway, Upstream, yaml};

const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: from-web, namespace: data}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: web}]
  to: [{group: '', kind: Service, name: db}]
";

/// A condition of the route's first parent: status and reason.
pub(crate) fn condition(route: &Value, kind: &str) -> (String, String) {
    let conditions = route["status"]["parents"][0]["conditions"].as_array().expect("conditions");
    let found = conditions.iter().find(|condition| condition["type"] == kind).expect(kind);
    assert_eq!(found["observedGeneration"], route["metadata"]["generation"]);
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    (text("status"), text("reason"))
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn a_backend_of_another_namespace_needs_a_grant_which_works_while_it_is_there() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("db");
    let route = yaml::route_in("web", "web", "  - backendRefs: [{name: db, namespace: data, port: 80}]");
    let service = yaml::service_in("data", "db", "http", &[upstream.address]);
    let gateway = Gateway::start(&[("all.yaml", &[yaml::EDGE, &route, &service].concat())]);
    let refused = || {
        let reply = curl.get(&[&gateway.url("/")]);
        assert_eq!(reply.failure(), (500, "invalid_backend"));
        let route = gateway.object("httproute", "web", "web");
        assert_eq!(condition(&route, "Accepted"), is("True", "Accepted"));
        assert_eq!(condition(&route, "ResolvedRefs"), is("False", "RefNotPermitted"));
    };
    refused();
    gateway.edit(|| gateway.write("grant.yaml", GRANT));
    assert_eq!(curl.get(&[&gateway.url("/")]).seen()["server"], "db");
    assert_eq!(
        condition(&gateway.object("httproute", "web", "web"), "ResolvedRefs"),
        is("True", "ResolvedRefs")
    );
    gateway.edit(|| gateway.write("grant.yaml", &GRANT.replace("name: db", "name: other")));
    refused();
    gateway.edit(|| gateway.write("grant.yaml", GRANT));
    gateway.edit(|| gateway.remove("grant.yaml"));
    refused();
}

#[test]
fn a_backend_that_is_not_there_answers_its_share_with_500() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let rules = "  - matches: [{path: {value: /absent}}]
    backendRefs: [{name: absent, port: 80}]
  - matches: [{path: {value: /port}}]
    backendRefs: [{name: web, port: 81}]
  - matches: [{path: {value: /kind}}]
    backendRefs: [{group: example.org, kind: Bucket, name: web}]
  - matches: [{path: {value: /half}}]
    backendRefs: [{name: web, port: 80}, {name: absent, port: 80}]
  - backendRefs: [{name: web, port: 80}]";
    let service = yaml::service("web", &[upstream.address]);
    let gateway =
        Gateway::start(&[("all.yaml", &[yaml::EDGE, &yaml::route("web", rules), &service].concat())]);
    for path in ["/absent", "/port", "/kind"] {
        let reply = curl.get(&[&gateway.url(path)]);
        assert_eq!(reply.failure(), (500, "invalid_backend"), "{path}");
    }
    // The other rules serve.
    assert_eq!(curl.get(&[&gateway.url("/")]).status, 200);
    let output =
        curl.command(&["--output", "/dev/null", "-w", "%{http_code}\n", &gateway.url("/half?[1-400]")]);
    let mut output = output;
    let text = crate::support::stdout(&mut output);
    let count = |status: &str| text.lines().filter(|line| *line == status).count();
    assert_eq!(count("200") + count("500"), 400);
    // Six standard deviations of 400 throws with chance 0.5.
    assert!((140..=260).contains(&count("500")), "{}", count("500"));
    let route = gateway.object("httproute", "default", "web");
    assert_eq!(condition(&route, "Accepted"), is("True", "Accepted"));
    assert_eq!(condition(&route, "ResolvedRefs").0, "False");
    gateway.edit(|| gateway.write("more.yaml", &yaml::service("absent", &[upstream.address])));
    assert_eq!(curl.get(&[&gateway.url("/absent")]).seen()["server"], "web");
}

#[test]
fn a_route_of_another_namespace_attaches_only_where_the_listener_lets_it() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let route = yaml::route_in("web", "web", "  - backendRefs: [{name: web, port: 80}]");
    let service = yaml::service_in("web", "web", "http", &[upstream.address]);
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: web, labels: {edge: open}}\n---\n";
    let from = |from: &str| yaml::EDGE.replace("{from: All}", from);
    let gateway = Gateway::start(&[
        ("edge.yaml", &from("{from: Same}")),
        ("web.yaml", &[namespace, &route, &service].concat()),
    ]);
    let refused = || {
        let route = gateway.object("httproute", "web", "web");
        assert_eq!(condition(&route, "Accepted"), is("False", "NotAllowedByListeners"));
        assert_eq!(curl.get(&[&gateway.url("/")]).status, 404);
        let edge = gateway.object("gateway", "default", "edge");
        assert_eq!(edge["status"]["listeners"][0]["attachedRoutes"], 0);
    };
    refused();
    gateway.edit(|| {
        gateway.write("edge.yaml", &from("{from: Selector, selector: {matchLabels: {edge: open}}}"));
    });
    assert_eq!(curl.get(&[&gateway.url("/")]).seen()["server"], "web");
    gateway.edit(|| {
        gateway.write("edge.yaml", &from("{from: Selector, selector: {matchLabels: {edge: shut}}}"));
    });
    refused();
}
