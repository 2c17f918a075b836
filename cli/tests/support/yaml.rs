//! Resources as text.

use std::net::SocketAddr;

/// The gateway `default/edge` with one listener on 8080 that takes routes of every namespace.
pub const EDGE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: meshwork
  listeners:
  - {name: http, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
---
";

/// `HTTPRoute default/NAME` of `edge` with these rules (a block sequence at two blanks).
pub fn route(name: &str, rules: &str) -> String {
    route_in("default", name, rules)
}

pub fn route_in(namespace: &str, name: &str, rules: &str) -> String {
    let rules = rules.trim_matches('\n');
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  parentRefs: [{{name: edge, namespace: default}}]
  rules:
{rules}
---
"
    )
}

/// A service in `default` with port 80, spoken as the endpoints like it, and its endpoints.
pub fn service(name: &str, endpoints: &[SocketAddr]) -> String {
    service_in("default", name, "http", endpoints)
}

pub fn service_in(namespace: &str, name: &str, protocol: &str, endpoints: &[SocketAddr]) -> String {
    let mut text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{ports: [{{name: http, port: 80, appProtocol: {protocol}}}]}}
---
"
    );
    for (number, endpoint) in endpoints.iter().enumerate() {
        let (ip, port) = (endpoint.ip(), endpoint.port());
        text.push_str(&format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{number}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: [{ip}]}}]
---
"
        ));
    }
    text
}
