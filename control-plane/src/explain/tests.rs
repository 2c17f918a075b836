//! What is explained is what the engine decides: the same folder, the same revision, the live functions beside.

mod heads;
mod stops;

use axum::body::Body;
use axum::http::Request;
use meshwork_decision::{NoReasons, OwnedRequest, Routed, SnapshotBuilder};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::pipeline::tests::start;

const RESOURCES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: meshwork
  listeners:
  - {name: http, port: 8080, protocol: HTTP}
  - {name: api, port: 8080, protocol: HTTP, hostname: api.example}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all, namespace: shop}
spec:
  parentRefs: [{name: edge, sectionName: http}]
  hostnames: [shop.example, '*.shop.example']
  rules:
  - matches: [{path: {type: PathPrefix, value: /api}}]
    timeouts: {request: 5s}
    filters:
    - type: URLRewrite
      urlRewrite: {hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-shop, value: 'yes'}], remove: [x-drop]}
    backendRefs: [{name: web, port: 80, weight: 9}, {name: empty, port: 80, weight: 1}]
  - matches: [{path: {type: Exact, value: /api}, method: POST}, {headers: [{name: x-new, value: '1'}]}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]
  - matches: [{path: {type: PathPrefix, value: /gone}}]
    backendRefs: [{name: absent, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /down}}]
    backendRefs: [{name: empty, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mesh, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /in}}]
    backendRefs: [{name: web, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9000}]
endpoints: [{addresses: [127.0.0.1]}, {addresses: [127.0.0.2], conditions: {ready: false}}]
---
apiVersion: meshwork.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: not-thief, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: mesh}]
  action: Deny
  rules: [{from: [{spiffeIds: ['spiffe://mesh.local/ns/shop/sa/thief']}]}]
---
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: patience, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  timeouts: {request: 9s, connect: 2s}
";

async fn serve() -> (tempfile::TempDir, ControlPlane) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), RESOURCES).unwrap();
    let plane = start(folder.path());
    plane.synced().await;
    assert_eq!(plane.model().diagnostics.iter().filter(|d| !d.message.contains("absent")).count(), 0);
    (folder, plane)
}

async fn ask(plane: &ControlPlane, question: &Value) -> (StatusCode, Value) {
    let request = Request::post("/v1/explain").body(Body::from(question.to_string())).unwrap();
    let response = plane.router().oneshot(request).await.unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

/// What live traffic gets: rule and backends, or a status, or a redirect's place.
fn live(snapshot: &Snapshot, request: &OwnedRequest) -> String {
    match snapshot.bindings()[0].route(request, None, &mut NoReasons) {
        Routed::Matched(matched) => {
            let backends: Vec<_> =
                matched.rule().backends.iter().map(|b| format!("{}*{}", b.key, b.weight)).collect();
            let (route, rule, at) = (matched.route(), matched.rule_index(), matched.match_index());
            format!("{}#{rule}.{at} {}", route.name, backends.join(" "))
        }
        Routed::NotFound { cause, .. } => format!("{} {cause} {}", cause.status().unwrap(), cause.flag()),
    }
}

fn told(answer: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let route = &answer["route"];
    if route.is_null() {
        let verdict = &answer["verdict"];
        return format!("{} {} {}", verdict["status"], text(&verdict["cause"]), text(&verdict["flag"]));
    }
    let backends = answer["backends"].as_array().unwrap().iter();
    let backends: Vec<_> = backends
        .map(|b| {
            // What does not resolve has no port.
            let port = b["port"].as_u64().filter(|port| *port > 0);
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}{port}*{}", text(&b["service"]), b["weight"])
        })
        .collect();
    format!("{}#{}.{} {}", text(&route["name"]), route["rule"], route["match"], backends.join(" "))
}

#[tokio::test]
async fn every_answer_is_what_the_engine_decides() {
    let (_folder, plane) = serve().await;
    let mut held = Held { world: Arc::default(), builder: SnapshotBuilder::new() };
    let snapshot = held.follow(plane.hub().world().unwrap());
    let mut seen = std::collections::BTreeSet::new();
    for host in ["shop.example", "SHOP.example.", "a.shop.example:8080", "api.example", "other.example"] {
        for path in ["/", "/api", "/api/x?y=1", "/apix", "/old/a", "/gone", "/down"] {
            for (method, new) in [("GET", false), ("POST", false), ("GET", true)] {
                let mut request = OwnedRequest::get(host, path).method(method);
                let mut headers = vec![];
                if new {
                    request = request.with_header("x-new", "1");
                    headers.push(("X-New", "1"));
                }
                let question = json!({"host": host, "path": path, "method": method, "headers": headers});
                let (status, answer) = ask(&plane, &question).await;
                assert_eq!(status, StatusCode::OK, "{answer}");
                let live = live(&snapshot, &request);
                // A redirect is answered before backends are looked at; those of such a rule are none.
                assert_eq!(told(&answer).trim_end(), live.trim_end(), "{question}: {answer:#}");
                assert_eq!(answer["revision"], 1);
                assert!(!answer["steps"].as_array().unwrap().is_empty());
                seen.insert(live);
            }
        }
    }
    assert!(seen.len() >= 7, "the table meets every rule and both failures: {seen:?}");
}

fn step<'a>(answer: &'a Value, phase: &str, outcome: &str) -> Vec<&'a str> {
    let steps = answer["steps"].as_array().unwrap().iter();
    steps
        .filter(|step| step["phase"] == phase && step["outcome"] == outcome)
        .map(|step| step["why"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn tells_filters_shares_endpoints_and_who_set_the_times() {
    let (_folder, plane) = serve().await;
    let question = json!({"host": "shop.example", "path": "/api/x", "headers": [["x-drop", "1"]]});
    let (_, answer) = ask(&plane, &question).await;
    let forwarded = &answer["forwarded"];
    assert_eq!((&forwarded["path"], &forwarded["host"]), (&json!("/v1/x"), &json!("inner.example")));
    assert_eq!(forwarded["headers"], json!([["x-shop", "yes"]]));
    // One request of ten goes to a service without endpoints.
    assert_eq!(
        (&answer["verdict"]["outcome"], &answer["verdict"]["failingPercent"]),
        (&json!("forwarded"), &json!(10))
    );
    let [web, empty] = &answer["backends"].as_array().unwrap()[..] else { panic!("{answer}") };
    assert_eq!((&empty["verdict"]["status"], &empty["verdict"]["flag"]), (&json!(503), &json!("UH")));
    assert_eq!(web["endpoints"][0]["candidate"], true);
    assert_eq!(
        (&web["endpoints"][1]["candidate"], &web["endpoints"][1]["excluded"]),
        (&json!(false), &json!("unhealthy"))
    );
    // The route's own word wins over the policy's; what it does not say comes from there.
    let times = &web["timeouts"];
    assert_eq!(
        (&times["request"]["value"], &times["request"]["source"]["kind"]),
        (&json!("5s"), &json!("HTTPRoute"))
    );
    assert_eq!(
        (&times["connect"]["value"], &times["connect"]["source"]["name"]),
        (&json!("2s"), &json!("shop/patience"))
    );
    let who = "2s, as TrafficPolicy shop/patience (all.yaml:69) says";
    let told = step(&answer, "timeouts", "noted");
    assert!(told.contains(&who), "{told:?}");
    assert!(step(&answer, "route", "skipped").iter().any(|why| why.contains("/old")), "{answer:#}");
    assert!(step(&answer, "listener", "skipped")[0].contains("api.example"), "{answer:#}");
    let (_, moved) = ask(&plane, &json!({"host": "shop.example", "path": "/old/a?b=c"})).await;
    assert_eq!(moved["verdict"]["status"], 301);
    assert_eq!(moved["verdict"]["location"], "https://shop.example/old/a?b=c");
    let (_, gone) = ask(&plane, &json!({"host": "shop.example", "path": "/gone"})).await;
    assert_eq!(
        (&gone["verdict"]["status"], &gone["verdict"]["cause"]),
        (&json!(500), &json!("invalid_backend"))
    );
}

#[tokio::test]
async fn from_within_the_mesh_the_service_s_own_routes_count() {
    let (_folder, plane) = serve().await;
    let from = "spiffe://mesh.local/ns/shop/sa/cart";
    let (_, answer) = ask(&plane, &json!({"host": "web", "path": "/in", "from": from})).await;
    assert_eq!(
        (&answer["side"], &answer["verdict"]["outcome"]),
        (&json!("mesh"), &json!("forwarded")),
        "{answer:#}"
    );
    assert_eq!(answer["route"]["source"]["name"], "shop/mesh");
    assert_eq!(answer["service"]["name"], "shop/web");
    let (_, refused) = ask(&plane, &json!({"host": "web", "path": "/out", "from": from})).await;
    assert_eq!(
        (&refused["verdict"]["status"], &refused["verdict"]["cause"]),
        (&json!(404), &json!("no_rule"))
    );
    let thief = "spiffe://mesh.local/ns/shop/sa/thief";
    let (_, denied) = ask(&plane, &json!({"host": "web", "path": "/in", "from": thief})).await;
    assert_eq!(
        (&denied["verdict"]["cause"], denied["verdict"]["policy"].as_str().map(|p| p.contains("not-thief"))),
        (&json!("authorization_denied"), Some(true)),
        "{denied:#}"
    );
    let (_, unknown) = ask(&plane, &json!({"host": "nobody", "from": from})).await;
    assert_eq!(unknown["verdict"]["cause"], "unknown_service");
}

#[tokio::test]
async fn follows_the_folder_and_refuses_what_is_no_question() {
    let (folder, plane) = serve().await;
    assert_eq!(
        ask(&plane, &json!({"host": "shop.example", "path": "/down"})).await.1["verdict"]["status"],
        503
    );
    let text = RESOURCES.replace("value: /down", "value: /up");
    std::fs::write(folder.path().join("all.yaml"), text).unwrap();
    plane.until(|model| model.revision == 2).await;
    let (_, answer) = ask(&plane, &json!({"host": "shop.example", "path": "/down"})).await;
    assert_eq!((&answer["revision"], &answer["verdict"]["cause"]), (&json!(2), &json!("no_rule")));
    let (_, closed) = ask(&plane, &json!({"host": "shop.example", "port": 81})).await;
    assert_eq!(closed["verdict"]["outcome"], "notListening");
    for (question, says) in [
        (json!({"host": ""}), "host"),
        (json!({"host": "a", "path": "x"}), "path"),
        (json!({"host": "a", "listener": "shop/edge/none"}), "shop/edge/http"),
        (json!({"host": "a", "from": "cart"}), "SPIFFE"),
        (json!({"host": "a", "pth": "/"}), "pth"),
    ] {
        let (status, problem) = ask(&plane, &question).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{question}");
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
}

/// Policies of the namespace, the gateway, the service and the route, each with a part of what holds.
const LAYERS: &str = "
---
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: wide, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Namespace, name: shop}]
  retry: {attempts: 4, on: ['500'], budget: {percent: 7}}
  circuitBreaker: {mode: ForcedOpen, window: {calls: 10}}
---
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: edge, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  retry: {perTryTimeout: 1s, budget: {percent: 8, minPerSecond: 9}}
  rateLimit: {requests: 9, burst: 3}
---
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: breaks, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  circuitBreaker: {trials: 2}
---
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: narrow, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: all}]
  retry: {on: ['503']}
  rateLimit: {requests: 5}
";

#[tokio::test]
async fn of_what_several_policies_say_each_field_names_its_own() {
    let (folder, plane) = serve().await;
    let before = plane.model().revision;
    std::fs::write(folder.path().join("layers.yaml"), LAYERS).unwrap();
    let model = plane.until(|model| model.revision > before).await;
    assert!(model.diagnostics.iter().all(|found| &*found.file != "layers.yaml"), "{:?}", model.diagnostics);
    let (_, answer) = ask(&plane, &json!({"host": "shop.example", "path": "/api/x"})).await;
    let web = &answer["backends"][0];
    let who = |part: &Value| {
        let sources = part["sources"].as_object().unwrap().iter();
        let told =
            sources.map(|(field, source)| (field.clone(), source["name"].as_str().unwrap().to_owned()));
        told.collect::<Vec<_>>()
    };
    let named = |fields: &[(&str, &str)]| {
        fields.iter().map(|(field, name)| ((*field).to_owned(), format!("shop/{name}"))).collect::<Vec<_>>()
    };
    let retry = &web["retry"];
    let fields = [
        ("attempts", "wide"),
        ("budget.minPerSecond", "edge"),
        ("budget.percent", "edge"),
        ("on", "narrow"),
        ("perTryTimeout", "edge"),
    ];
    assert_eq!(who(retry), named(&fields), "{retry:#}");
    assert_eq!(
        (&retry["attempts"], &retry["statusCodes"], &retry["budgetPercent"]),
        (&json!(4), &json!([503]), &json!(8))
    );
    assert_eq!(retry["source"]["name"], "shop/narrow", "the narrowest");
    let told = step(&answer, "retry", "noted");
    let authors = "as TrafficPolicy shop/narrow (layers.yaml:26), TrafficPolicy shop/edge (layers.yaml:11) and \
                   TrafficPolicy shop/wide (layers.yaml:3) say";
    assert!(told.iter().any(|why| why.ends_with(authors)), "{told:?}");
    let breaker = &web["circuitBreaker"];
    assert_eq!((&breaker["mode"], &breaker["minimumCalls"]), (&json!("ForcedOpen"), &json!(10)));
    let fields = [("mode", "wide"), ("trials", "breaks"), ("window.calls", "wide")];
    assert_eq!(who(breaker), named(&fields), "{breaker:#}");
    let limit = &answer["route"]["rateLimit"];
    assert_eq!(who(limit), named(&[("burst", "edge"), ("requests", "narrow")]), "{limit:#}");
}

#[tokio::test]
async fn a_gateway_of_two_addresses_is_one_way_in() {
    let folder = tempfile::tempdir().unwrap();
    let both =
        "  addresses: [{type: IPAddress, value: 127.0.0.1}, {type: IPAddress, value: '::1'}]\n  listeners:";
    std::fs::write(folder.path().join("all.yaml"), RESOURCES.replacen("  listeners:", both, 1)).unwrap();
    let plane = start(folder.path());
    plane.synced().await;
    let mut held = Held { world: Arc::default(), builder: SnapshotBuilder::new() };
    assert_eq!(held.follow(plane.hub().world().unwrap()).bindings().len(), 2, "a socket at each");
    for more in [json!({}), json!({"port": 8080}), json!({"listener": "shop/edge/http"})] {
        let mut question = json!({"host": "shop.example", "path": "/api"});
        question.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = ask(&plane, &question).await;
        assert_eq!(
            (status, &answer["verdict"]["outcome"]),
            (StatusCode::OK, &json!("forwarded")),
            "{answer}"
        );
    }
}
