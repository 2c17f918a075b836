//! What could be changed is the field that has decided, of those that a cause can turn on.

use meshwork_decision::{Cause, SnapshotBuilder};

use super::*;
use crate::explain::ask::Ask;
use crate::explain::recorded::advice;
use crate::explain::recorded::decided::Decided;
use crate::explain::{Held, run};
use crate::pipeline::tests::start;

const SHOP: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: meshwork
  listeners: [{name: http, port: 8080, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: shop}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 80}], timeouts: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9000}]
endpoints: [{addresses: [127.0.0.1]}, {addresses: [127.0.0.2]}]
---
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: patience, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
";

/// The field that is named for a request of shop/web that ended so, with its value, and whose word it is; `times`: what the rule
/// of its route says.
async fn named(times: &str, policy: &str, cause: Cause) -> (String, Option<String>, Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let text = SHOP.replace("timeouts: {}", &format!("timeouts: {times}"));
    std::fs::write(folder.path().join("all.yaml"), format!("{text}  {policy}\n")).unwrap();
    let plane = start(folder.path());
    plane.synced().await;
    let errors: Vec<_> = plane.model().diagnostics.iter().map(|d| d.message.clone()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let mut held = Held { world: std::sync::Arc::default(), builder: SnapshotBuilder::new() };
    let snapshot = held.follow(plane.hub().world().unwrap());
    let ask = Ask { host: "shop.example".to_owned(), ..Ask::default() };
    let Ok(answer) = run::explain(&held.builder, &snapshot, &ask, |_| None) else {
        panic!("it is a question")
    };
    let is = RequestRecord {
        side: Side::Gateway.into(),
        cause: cause.as_str().to_owned(),
        service: "shop/web:80".to_owned(),
        ..RequestRecord::default()
    };
    let told = advice::one(cause, &is, Some(&Decided::Way(Box::new(answer))));
    let told = serde_json::to_value(told).unwrap();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    (text(&told["field"]).unwrap(), text(&told["value"]), text(&told["source"]["name"]))
}

#[tokio::test]
async fn of_the_two_that_bound_an_attempt_the_shorter_is_named() {
    let tries = |time: &str| format!("retry: {{attempts: 1, perTryTimeout: {time}}}");
    for (times, policy, field, value, by) in [
        ("{backendRequest: 1s}", tries("5s"), "timeouts.backendRequest", "1s", "shop/all"),
        ("{backendRequest: 5s}", tries("1s"), "retry.perTryTimeout", "1s", "shop/patience"),
        (
            "{backendRequest: 3s}",
            "timeouts: {request: 9s}".into(),
            "timeouts.backendRequest",
            "3s",
            "shop/all",
        ),
        ("{request: 9s}", tries("2s"), "retry.perTryTimeout", "2s", "shop/patience"),
    ] {
        let (named, said, source) = named(times, &policy, Cause::PerTryTimeout).await;
        let told = (&*named, said.as_deref(), source.as_deref());
        assert_eq!(told, (field, Some(value), Some(by)), "{times} and {policy}");
    }
}

#[tokio::test]
async fn a_limit_of_each_endpoint_is_told_from_that_of_all() {
    use Cause::{MaxConnections, MaxPendingRequests, MaxRequests, MaxRetries};
    for (limits, cause, field, value) in [
        ("{perEndpoint: {maxConnections: 3}}", MaxConnections, "limits.perEndpoint.maxConnections", "3"),
        (
            "{perEndpoint: {maxPendingRequests: 4}}",
            MaxPendingRequests,
            "limits.perEndpoint.maxPendingRequests",
            "4",
        ),
        ("{perEndpoint: {maxRequests: 5}}", MaxRequests, "limits.perEndpoint.maxRequests", "5"),
        ("{perEndpoint: {maxRetries: 2}}", MaxRetries, "limits.perEndpoint.maxRetries", "2"),
        ("{maxConnections: 6}", MaxConnections, "limits.maxConnections", "6"),
        // Both endpoints together may have more than all may, or fewer.
        (
            "{maxConnections: 6, perEndpoint: {maxConnections: 3}}",
            MaxConnections,
            "limits.maxConnections",
            "6",
        ),
        (
            "{maxConnections: 7, perEndpoint: {maxConnections: 3}}",
            MaxConnections,
            "limits.perEndpoint.maxConnections",
            "3",
        ),
    ] {
        let (named, said, by) = named("{request: 9s}", &format!("limits: {limits}"), cause).await;
        let told = (&*named, said.as_deref(), by.as_deref());
        assert_eq!(told, (field, Some(value), Some("shop/patience")), "{limits}");
    }
}
