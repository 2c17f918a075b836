//! Policies of a namespace and of a service in it, as requests feel them.

use std::net::{SocketAddr, TcpListener};

use crate::support::process::HTTP;
use crate::support::{Gateway, Upstream, get, yaml};

fn policy(name: &str, target: &str, said: &str) -> String {
    format!(
        "---
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}}}
spec: {{targetRefs: [{{group: \"\", kind: {target}}}], {said}}}
"
    )
}

/// A gateway before one service, with a policy of the namespace and one of the service.
fn gateway(upstream: SocketAddr, wide: &str, narrow: &str) -> Gateway {
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let policies =
        [policy("wide", "Namespace, name: default", wide), policy("narrow", "Service, name: web", narrow)];
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream]), &policies.concat()].concat();
    Gateway::start(&[("all.yaml", &files)])
}

fn status(gateway: &Gateway) -> u16 {
    get(gateway.at(HTTP), "/").expect("the gateway answers").0
}

#[test]
fn what_a_service_says_of_its_breaker_does_not_lift_what_its_namespace_forces() {
    let upstream = Upstream::start("web");
    let forced = "circuitBreaker: {mode: ForcedOpen}";
    let open = gateway(upstream.address, forced, "circuitBreaker: {trials: 2}");
    assert_eq!(status(&open), 503);
    drop(open);
    let closed = gateway(upstream.address, forced, "circuitBreaker: {mode: ForcedClosed}");
    assert_eq!(status(&closed), 200, "its own word does");
}

#[test]
fn what_a_service_says_of_a_budget_leaves_its_namespace_s_attempts() {
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let repeating =
        gateway(gone, "retry: {attempts: 3, backoff: {base: 1ms}}", "retry: {budget: {percent: 100}}");
    assert_eq!(status(&repeating), 503);
    assert_eq!(repeating.log(1)[0]["attempts"], 4);
}

#[test]
fn two_policies_that_do_not_fit_together_are_told_and_serve() {
    let upstream = Upstream::start("web");
    let gateway = gateway(
        upstream.address,
        "circuitBreaker: {window: {calls: 10}}",
        "circuitBreaker: {minimumCalls: 20}",
    );
    assert_eq!(status(&gateway), 200);
    let shown = gateway.ask(&["get", "trafficpolicies"]);
    let table = String::from_utf8_lossy(&shown.stdout);
    assert!(table.contains("Conflicted=True (Contradiction)"), "{table}");
    let told = gateway.stderr();
    assert!(told.contains("configuration doubtful") && told.contains("MW2024"), "{told}");
    assert!(told.contains("together with TrafficPolicy default/wide (all.yaml:"), "{told}");
}
