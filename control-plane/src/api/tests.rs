use axum::body::Body;
use axum::http::{Request, header};
use futures_util::FutureExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::pipeline::tests::{Gateway, shop, start};

async fn get_json(plane: &ControlPlane, path: &str) -> (StatusCode, String, Value) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = plane.router().oneshot(request).await.unwrap();
    let status = response.status();
    let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, kind, serde_json::from_slice(&body).unwrap())
}

async fn ok(plane: &ControlPlane, path: &str) -> Value {
    let (status, kind, body) = get_json(plane, path).await;
    assert_eq!((status, &*kind), (StatusCode::OK, "application/json"), "{body}");
    body
}

async fn problem(plane: &ControlPlane, path: &str) -> (u16, Value) {
    let (status, kind, body) = get_json(plane, path).await;
    assert_eq!(kind, "application/problem+json");
    assert_eq!(body["status"], status.as_u16());
    (status.as_u16(), body)
}

async fn serve() -> (tempfile::TempDir, ControlPlane) {
    let folder = tempfile::tempdir().unwrap();
    shop(folder.path());
    let plane = start(folder.path());
    plane.synced().await;
    (folder, plane)
}

#[tokio::test]
async fn objects_carry_generation_status_and_source() {
    let (_folder, plane) = serve().await;
    let route = ok(&plane, "/v1/resources/httproute/shop/b").await;
    assert_eq!((&route["kind"], &route["metadata"]["name"]), (&json!("HTTPRoute"), &json!("b")));
    assert_eq!(route["metadata"]["generation"], 1);
    assert_eq!((&route["source"]["file"], &route["source"]["line"]), (&json!("routes.yaml"), &json!(11)));
    assert_eq!(route["status"]["parents"][0]["conditions"][0]["observedGeneration"], 1);
    for kind in ["HTTPRoutes", "httproute", "route"] {
        let all = ok(&plane, &format!("/v1/resources/{kind}")).await;
        assert_eq!(all.as_array().unwrap().len(), 2);
    }
    assert_eq!(ok(&plane, "/v1/resources/gw/shop").await[0]["metadata"]["name"], "edge");
    assert_eq!(ok(&plane, "/v1/resources/gw?namespace=other").await, json!([]));
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_that_says_what_is() {
    let (_folder, plane) = serve().await;
    let (status, unknown) = problem(&plane, "/v1/resources/gatewayz").await;
    assert_eq!((status, &unknown["code"]), (404, &json!("MW4102")));
    assert!(unknown["detail"].as_str().unwrap().contains("HTTPRoute"), "{unknown}");
    let (status, absent) = problem(&plane, "/v1/resources/httproute/shop/c").await;
    assert_eq!((status, &absent["code"]), (404, &json!("MW4103")));
    assert!(absent["detail"].as_str().unwrap().contains("HTTPRoute shop/c"), "{absent}");
    assert_eq!(problem(&plane, "/v1/revision?wait=forever").await.0, 400);
    assert_eq!(problem(&plane, "/v1/revision?wait=effective&timeout=1").await.0, 400);
    assert_eq!(problem(&plane, "/v1/revision?revision=x").await.0, 400);
}

#[tokio::test]
async fn tells_proxies_and_waits_until_all_use_a_revision() {
    let (_folder, plane) = serve().await;
    let mut gateway = Gateway::join(&plane);
    let mut waiting = Box::pin(get_json(&plane, "/v1/revision?wait=effective&revision=1&timeout=1m"));
    gateway.commit().await;
    assert_eq!(waiting.as_mut().await.2, json!({"revision": 1, "effective": true, "behind": []}));
    let proxies = ok(&plane, "/v1/proxies").await;
    let expected = [
        ("id", json!("gateway/shop/edge/1")),
        ("role", json!("gateway")),
        ("identity", json!(null)),
        ("address", json!("127.0.0.1:15000")),
        ("pid", json!(42)),
        ("connected", json!(true)),
        ("modelRevision", json!(1)),
        ("effectiveRevision", json!(1)),
        ("workers", json!(2)),
        ("lastError", json!("")),
    ];
    for (name, value) in expected {
        assert_eq!(proxies[0][name], value, "{name}");
    }
    let (status, late) = problem(&plane, "/v1/revision?wait=effective&revision=2&timeout=1ms").await;
    assert_eq!((status, &late["code"]), (504, &json!("MW4105")));
    assert!(get_json(&plane, "/v1/revision?wait=effective&revision=2").now_or_never().is_none(), "it waits");
}

#[tokio::test]
async fn diagnostics_are_what_check_prints() {
    let (folder, plane) = serve().await;
    assert_eq!(ok(&plane, "/v1/diagnostics").await, json!([]));
    std::fs::write(folder.path().join("bad.yaml"), "apiVersion: v1\nkind: Servise\nmetadata: {name: x}\n")
        .unwrap();
    plane.until(|model| !model.diagnostics.is_empty()).await;
    let found = ok(&plane, "/v1/diagnostics").await;
    assert_eq!((&found[0]["file"], &found[0]["line"]), (&json!("bad.yaml"), &json!(2)));
    assert_eq!((&found[0]["severity"], &found[0]["code"]), (&json!("error"), &json!("MW1007")));
}
