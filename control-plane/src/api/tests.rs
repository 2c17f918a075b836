use axum::body::Body;
use axum::http::{Request, header};
use futures_util::FutureExt as _;
use meshwork_xds::server::Speaker;
use tower::ServiceExt as _;

use super::*;
use crate::pipeline::tests::{Gateway, route, shop, start};

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
    let everywhere = json!({
        "revision": 1, "effective": true, "behind": [], "notConnected": [], "proxies": 1, "effectiveProxies": 1,
    });
    assert_eq!(waiting.as_mut().await.2, everywhere);
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
async fn who_is_cut_off_and_holds_a_lease_is_waited_for_and_named() {
    let (_folder, plane) = serve().await;
    let mut gateway = Gateway::join(&plane);
    gateway.commit().await;
    let ids = |ids: &[&str]| ids.iter().map(|&id| (id.to_owned(), Speaker::default())).collect();
    // As the registry says; of the second one no stream was ever seen.
    plane.hub().expect(ids(&["gateway/shop/edge/1", "shop/web-1"]));
    ok(&plane, "/v1/revision").await;
    drop(gateway);
    let mut activity = plane.hub().activity();
    while plane.hub().proxies()[0].connected {
        activity.changed().await.unwrap();
    }
    let wait = "/v1/revision?wait=effective&revision=1&timeout=";
    let (status, late) = problem(&plane, &format!("{wait}1ms")).await;
    assert_eq!((status, &late["code"]), (504, &json!("MW4105")));
    let named = json!(["gateway/shop/edge/1", "shop/web-1"]);
    assert_eq!((&late["notConnected"], &late["behind"]), (&named, &named));
    assert_eq!((&late["effectiveProxies"], &late["proxies"]), (&json!(0), &json!(2)));
    let said = "revision 1 is in effect on 0 of 2 proxies; not connected: gateway/shop/edge/1, shop/web-1";
    assert_eq!(late["detail"], said);
    let now = ok(&plane, "/v1/revision").await;
    assert_eq!((&now["effective"], &now["notConnected"]), (&json!(false), &named));

    let wait = format!("{wait}1h");
    let mut waiting = Box::pin(get_json(&plane, &wait));
    assert!(waiting.as_mut().now_or_never().is_none(), "it waits");
    plane.hub().expect(ids(&[]));
    let (status, _, everywhere) = waiting.await;
    assert_eq!((status, &everywhere["effective"]), (StatusCode::OK, &json!(true)), "their leases have ended");
}

#[tokio::test]
async fn who_forces_a_breaker_is_told_who_does_not_hear_of_it() {
    let (_folder, plane) = serve().await;
    plane.hub().expect([("shop/web-1".to_owned(), Speaker::default())].into());
    let request = Request::post("/v1/breakers/shop/web").body(Body::from(r#"{"state":"open","for":"5m"}"#));
    let response = plane.router().oneshot(request.unwrap()).await.unwrap();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let forced: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&forced["proxies"], &forced["silent"]), (&json!([]), &json!([])), "{forced}");
    assert_eq!(forced["notConnected"], json!(["shop/web-1"]));
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

fn rejected(object: &Value) -> (&Value, &Value, &str) {
    let all = object["status"]["conditions"].as_array().expect("conditions of the object itself");
    let told = all.iter().find(|told| told["type"] == "meshwork.dev/Rejected").expect("it is told");
    assert_eq!(told["status"], "True");
    (&told["reason"], &told["observedGeneration"], told["message"].as_str().unwrap())
}

#[tokio::test]
async fn an_object_whose_newest_text_is_refused_says_so_and_what_serves() {
    let (folder, plane) = serve().await;
    let file = folder.path().join("routes.yaml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replacen("rules:", "roules:", 1)).unwrap();
    plane.until(|model| !model.rejected.is_empty()).await;
    let served = ok(&plane, "/v1/resources/httproute/shop/a").await;
    let (reason, generation, message) = rejected(&served);
    assert_eq!((reason, generation), (&json!("LastValidServes"), &json!(1)));
    assert!(
        message.starts_with("routes.yaml:7:3: ") && message.contains("did you mean `rules`?"),
        "{message}"
    );
    assert!(message.ends_with("The version of routes.yaml:2:1 (generation 1) stays in force."), "{message}");
    assert_eq!(served["status"]["parents"][0]["conditions"][0]["type"], "Accepted", "and the rest is there");
    let other = ok(&plane, "/v1/resources/httproute/shop/b").await;
    assert_eq!(other["status"]["conditions"], json!(null), "the others of the file are what is written");

    std::fs::write(&file, format!("{}\napiVersion: [", route("a", "/a"))).unwrap();
    let is_told = |model: &Model| model.rejected.keys().any(|key| key.name.as_str() == "b");
    plane.until(is_told).await;
    let unclear = ok(&plane, "/v1/resources/httproute/shop/b").await;
    let (reason, _, message) = rejected(&unclear);
    assert!(message.contains("whatever else the file had stays in force"), "{message}");
    assert_eq!(reason, &json!("LastValidServes"));
    assert_eq!(ok(&plane, "/v1/resources/httproute/shop/a").await["status"]["conditions"], json!(null));

    std::fs::write(&file, &good).unwrap();
    let model = plane.until(|model| model.rejected.is_empty()).await;
    assert_eq!(model.rejections, 0);
    assert_eq!(ok(&plane, "/v1/resources/httproute/shop/a").await["status"]["conditions"], json!(null));
}

#[tokio::test]
async fn an_object_that_was_never_good_is_shown_with_why() {
    let (folder, plane) = serve().await;
    let text = "apiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\n\
                spec: {targetRefs: [{group: '', kind: Service, name: web}], retry: {atempts: 2}}\n";
    std::fs::write(folder.path().join("policy.yaml"), text).unwrap();
    plane.until(|model| !model.rejected.is_empty()).await;
    let one = ok(&plane, "/v1/resources/trafficpolicy/shop/p").await;
    assert_eq!(
        (&one["kind"], &one["metadata"]),
        (&json!("TrafficPolicy"), &json!({"name": "p", "namespace": "shop"}))
    );
    assert_eq!(one["source"], json!({"file": "policy.yaml", "line": 1, "column": 1}));
    let (reason, generation, message) = rejected(&one);
    assert_eq!((reason, generation), (&json!("NeverValid"), &json!(0)));
    assert!(message.contains("policy.yaml:4:") && message.contains("nothing of it is in force"), "{message}");
    assert_eq!(ok(&plane, "/v1/resources/trafficpolicies?namespace=shop").await, json!([one]));
    assert_eq!(ok(&plane, "/v1/resources/trafficpolicies?namespace=other").await, json!([]));

    std::fs::write(
        folder.path().join("twin.yaml"),
        std::fs::read(folder.path().join("gateway.yaml")).unwrap(),
    )
    .unwrap();
    plane.until(|model| model.rejected.len() == 2).await;
    let gateway = ok(&plane, "/v1/resources/gateway/shop/edge").await;
    let (reason, _, message) = rejected(&gateway);
    assert_eq!(reason, &json!("Duplicate"));
    assert!(message.starts_with("twin.yaml:2:1: "), "{message}");
}
