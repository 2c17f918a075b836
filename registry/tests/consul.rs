//! Consul's HTTP API, as its documentation describes it.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use support::World;

const WEB: &str = r#"{"name":"web","id":"web-1","address":"10.0.0.1","port":8080,"tags":["v1","blue"],
    "meta":{"team":"shop"},"check":{"ttl":"10s"}}"#;

fn ids(services: &Value) -> Vec<&str> {
    services.as_array().unwrap().iter().map(|entry| entry["Service"]["ID"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_registered_service_is_shown_in_consuls_shapes() {
    let world = World::new().await;
    world.consul.put("/v1/agent/service/register", WEB).await;
    let (index, found) = world.consul.get("/v1/health/service/web").await;
    assert!(index > 0);
    let entry = &found[0];
    assert_eq!(entry["Node"]["Node"], "meshwork");
    assert_eq!(entry["Node"]["Datacenter"], "dc1");
    let service = &entry["Service"];
    assert_eq!(
        json!([
            service["ID"],
            service["Service"],
            service["Port"],
            service["Address"],
            service["Tags"],
            service["Meta"]
        ]),
        json!(["web-1", "web", 8080, "10.0.0.1", ["v1", "blue"], {"team": "shop"}])
    );
    assert_eq!(service["Weights"], json!({"Passing": 1, "Warning": 1}));
    let checks: Vec<_> = entry["Checks"].as_array().unwrap().iter().collect();
    assert_eq!(checks[0]["CheckID"], "serfHealth");
    assert_eq!(
        json!([
            checks[1]["CheckID"],
            checks[1]["Status"],
            checks[1]["Name"],
            checks[1]["ServiceID"],
            checks[1]["Type"]
        ]),
        json!(["service:web-1", "critical", "Service 'web' check", "web-1", "ttl"])
    );
    let (_, catalog) = world.consul.get("/v1/catalog/service/web").await;
    assert_eq!(
        json!([
            catalog[0]["ServiceID"],
            catalog[0]["ServiceAddress"],
            catalog[0]["ServicePort"],
            catalog[0]["Node"]
        ]),
        json!(["web-1", "10.0.0.1", 8080, "meshwork"])
    );
    assert_eq!(world.consul.get("/v1/catalog/services").await.1, json!({"web": ["blue", "v1"]}));
    assert_eq!(world.consul.get("/v1/agent/services").await.1["web-1"]["Service"], "web");
    assert_eq!(world.consul.get("/v1/agent/checks").await.1["service:web-1"]["Status"], "critical");
    let (_, node) = world.consul.get("/v1/catalog/node/meshwork").await;
    assert_eq!(node["Services"]["web-1"]["Port"], 8080);
    assert_eq!(world.consul.get("/v1/catalog/datacenters").await.1, json!(["dc1"]));
    assert_eq!(world.consul.get("/v1/catalog/nodes").await.1[0]["Address"], "127.0.0.1");
    assert_eq!(world.consul.get("/v1/status/leader").await.1, "127.0.0.1:8300");
    assert_eq!(world.consul.get("/v1/status/peers").await.1, json!(["127.0.0.1:8300"]));
    assert_eq!(world.consul.get("/v1/agent/self").await.1["Config"]["NodeName"], "meshwork");
    let pretty = world.consul.try_send(Method::GET, "/v1/catalog/services?pretty", "").await.unwrap();
    assert!(pretty.body.contains(&b'\n'));
}

#[tokio::test]
async fn a_locality_is_told_whole_and_its_region_as_sidecars_tell_theirs() {
    let world = World::new().await;
    for (id, locality, zone, region) in [
        ("both", json!({"Zone": "z2", "Region": "r1"}), json!("z2"), json!("r1")),
        ("region", json!({"Region": "r9"}), Value::Null, json!("r9")),
        ("zone", json!({"Zone": "z3"}), json!("z3"), Value::Null),
    ] {
        let told = json!({"Name": id, "Address": "10.0.0.1", "Port": 80, "Locality": locality});
        world.consul.put("/v1/agent/service/register", &told.to_string()).await;
        let services = world.native().services().await.unwrap();
        let instance =
            services.iter().flat_map(|service| &service.instances).find(|one| one.id == id).unwrap();
        let told = json!([instance.zone, instance.metadata.get("meshwork.dev/region")]);
        assert_eq!(told, json!([zone, region]), "{id}");
    }
}

#[tokio::test]
async fn a_ttl_check_follows_its_reports_and_its_silence() {
    let world = World::new().await;
    world.consul.put("/v1/agent/service/register", WEB).await;
    let passing = "/v1/health/service/web?passing=1";
    assert_eq!(ids(&world.consul.get(passing).await.1), [""; 0]);
    world.consul.put("/v1/agent/check/pass/service%3Aweb-1?note=fine", "").await;
    assert_eq!(ids(&world.consul.get(passing).await.1), ["web-1"]);
    let (index, before) = world.consul.get("/v1/health/checks/web").await;
    assert_eq!((&before[0]["Status"], &before[0]["Output"]), (&json!("passing"), &json!("fine")));
    world.pass(9).await;
    world.consul.put("/v1/agent/check/pass/service:web-1?note=still", "").await;
    world.pass(9).await;
    let (same, after) = world.consul.get("/v1/health/checks/web").await;
    assert_eq!(after[0]["Output"], "still", "the words are new");
    assert_eq!(same, index, "but a renewal is no write");
    world.pass(2).await;
    let (_, silent) = world.consul.get("/v1/health/checks/web").await;
    assert_eq!((&silent[0]["Status"], &silent[0]["Output"]), (&json!("critical"), &json!("TTL expired")));
    world.consul.put("/v1/agent/check/warn/service:web-1", "").await;
    assert_eq!(world.consul.get("/v1/health/state/warning").await.1[0]["ServiceID"], "web-1");
    assert_eq!(ids(&world.consul.get(passing).await.1), [""; 0]);
    world.consul.put("/v1/agent/check/update/service:web-1", r#"{"Status":"passing","Output":"ok"}"#).await;
    assert_eq!(world.consul.get("/v1/agent/health/service/id/web-1").await.1["AggregatedStatus"], "passing");
    let (status, words) = world.consul.refused(Method::PUT, "/v1/agent/check/pass/other", "").await;
    assert!(status == 404 && words.contains("Unknown check ID \"other\""), "{status} {words}");
}

#[tokio::test]
async fn time_does_not_run_while_the_registry_is_down() {
    let world = World::new().await;
    world.consul.put("/v1/agent/service/register", WEB).await;
    world.consul.put("/v1/agent/check/pass/service:web-1", "").await;
    let (index, _) = world.consul.get("/v1/health/service/web").await;
    world.pass(9).await;
    let world = world.restart_after(Duration::from_secs(3600)).await;
    world.pass(9).await;
    let (again, found) = world.consul.get("/v1/health/service/web?passing").await;
    assert_eq!(ids(&found), ["web-1"]);
    assert!(again >= index, "an index never goes back, not even over a restart");
    world.pass(1).await;
    assert_eq!(ids(&world.consul.get("/v1/health/service/web?passing").await.1), [""; 0]);
}

#[tokio::test]
async fn what_stays_critical_is_removed_when_its_owner_said_so() {
    let world = World::new().await;
    let body =
        r#"{"Name":"web","Check":{"TTL":"10s","DeregisterCriticalServiceAfter":"90s","Status":"passing"}}"#;
    world.consul.put("/v1/agent/service/register", body).await;
    world.pass(10).await;
    world.pass(89).await;
    assert_eq!(ids(&world.consul.get("/v1/health/service/web").await.1), ["web"]);
    world.pass(1).await;
    assert_eq!(ids(&world.consul.get("/v1/health/service/web").await.1), [""; 0]);
    assert_eq!(world.consul.get("/v1/agent/checks").await.1, json!({}), "its checks went with it");
}

#[tokio::test]
async fn maintenance_takes_an_instance_out_and_survives_a_new_registration() {
    let world = World::new().await;
    let body = r#"{"Name":"web","Port":1}"#;
    world.consul.put("/v1/agent/service/register", body).await;
    assert_eq!(ids(&world.consul.get("/v1/health/service/web?passing").await.1), ["web"]);
    world.consul.put("/v1/agent/service/maintenance/web?enable=true&reason=patching", "").await;
    world.consul.put("/v1/agent/service/register", body).await;
    assert_eq!(ids(&world.consul.get("/v1/health/service/web?passing").await.1), [""; 0]);
    let (_, checks) = world.consul.get("/v1/health/checks/web").await;
    assert_eq!(
        (&checks[0]["CheckID"], &checks[0]["Output"]),
        (&json!("_service_maintenance:web"), &json!("patching"))
    );
    world.consul.put("/v1/agent/service/maintenance/web?enable=false", "").await;
    assert_eq!(ids(&world.consul.get("/v1/health/service/web?passing").await.1), ["web"]);
    world.consul.put("/v1/agent/maintenance?enable=true", "").await;
    assert_eq!(ids(&world.consul.get("/v1/health/service/web?passing").await.1), [""; 0]);
    world.consul.put("/v1/agent/maintenance?enable=false", "").await;
    assert_eq!(ids(&world.consul.get("/v1/health/service/web?passing").await.1), ["web"]);
}

#[tokio::test]
async fn filters_by_tag_and_by_node_and_sorts_by_nearness() {
    let world = World::new().await;
    world.consul.put("/v1/agent/service/register", r#"{"Name":"db","ID":"a","Tags":["Primary","eu"]}"#).await;
    world.consul.put("/v1/agent/service/register", r#"{"Name":"db","ID":"b","Tags":["eu"]}"#).await;
    let external = r#"{"Node":"far","Address":"10.9.9.9","NodeMeta":{"rack":"7"},"Service":{"Service":"db","ID":"c","Port":5},
        "Check":{"Name":"ping","Status":"passing","ServiceID":"c"}}"#;
    assert_eq!(world.consul.put("/v1/catalog/register", external).await, true);
    assert_eq!(ids(&world.consul.get("/v1/health/service/db?tag=primary&tag=eu").await.1), ["a"]);
    assert_eq!(ids(&world.consul.get("/v1/health/service/db?near=meshwork").await.1), ["a", "b", "c"]);
    assert_eq!(ids(&world.consul.get("/v1/health/service/db?near=far").await.1), ["c", "a", "b"]);
    assert_eq!(ids(&world.consul.get("/v1/health/service/db?node-meta=rack:7").await.1), ["c"]);
    assert_eq!(world.consul.get("/v1/health/node/far").await.1[0]["CheckID"], "ping");
    let gone = r#"{"Node":"far","ServiceID":"c"}"#;
    assert_eq!(world.consul.put("/v1/catalog/deregister", gone).await, true);
    assert_eq!(ids(&world.consul.get("/v1/health/service/db").await.1), ["a", "b"]);
    world.consul.put("/v1/catalog/deregister", r#"{"Node":"far"}"#).await;
    assert_eq!(world.consul.get("/v1/catalog/nodes").await.1.as_array().unwrap().len(), 1);
    assert_eq!(world.consul.get("/v1/catalog/node/far").await.1, Value::Null);
}

#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() {
    let world = World::new().await;
    let register = "/v1/agent/service/register";
    for (method, path, body, word) in [
        (Method::GET, "/v1/health/service/web?filter=Node%3D%3D1", "", "\"filter\""),
        (Method::GET, "/v1/health/service/web?dc=mars", "", "No path to datacenter \"mars\""),
        (Method::GET, "/v1/health/service/web?ns=team", "", "ns \"team\""),
        (Method::GET, "/v1/health/service/web?index=1&wait=soon", "", "wait must be a duration"),
        (Method::GET, "/v1/health/service/web?passing=maybe", "", "Invalid value for ?passing"),
        (Method::PUT, register, r#"{"Name":"a","Connect":{"SidecarService":{"Port":1}}}"#, "\"Connect\""),
        (Method::PUT, register, r#"{"Name":"a","Kind":"connect-proxy"}"#, "Kind \"connect-proxy\""),
        (Method::PUT, register, r#"{"Name":"a","Check":{"Args":["x"],"Interval":"1s"}}"#, "checks by Args"),
        (
            Method::PUT,
            register,
            r#"{"Name":"a","Check":{"HTTP":"https://x/","Interval":"1s"}}"#,
            "https is not supported",
        ),
        (Method::PUT, register, r#"{"Name":"a","Check":{"HTTP":"http://x/"}}"#, "Interval"),
        (
            Method::PUT,
            register,
            r#"{"Name":"a","Check":{"TTL":"1s","TCP":"a:1","Interval":"1s"}}"#,
            "only one of",
        ),
        (Method::PUT, register, r#"{"Name":"a","Port":-1}"#, "Port"),
        (Method::PUT, register, "{", "is no JSON"),
        (Method::PUT, register, r#"{"Port":1}"#, "Missing service name"),
        (Method::PUT, "/v1/txn", r#"[{"Node":{"Verb":"get"}}]"#, "\"Node\""),
        (Method::PUT, "/v1/session/create", r#"{"TTL":"1s"}"#, "Invalid Session TTL"),
        (Method::PUT, "/v1/kv/a?cas=1&acquire=x", "", "Conflicting flags"),
    ] {
        let (status, words) = world.consul.refused(method, path, body).await;
        assert!(status == 400 && words.contains(word), "{path} {body}: {status} {words}");
    }
    let (status, words) = world.consul.refused(Method::GET, "/v1/operator/raft/configuration", "").await;
    assert!(status == 404 && words.contains("has no GET /v1/operator/raft/configuration"), "{words}");
    assert_eq!(world.consul.get("/v1/catalog/services").await.1, json!({}), "nothing of it was taken over");
}

#[tokio::test]
async fn a_blocking_query_waits_for_its_own_service_and_no_other() {
    let world = World::new().await;
    world.consul.put("/v1/agent/service/register", r#"{"Name":"mine"}"#).await;
    let (index, _) = world.consul.get("/v1/health/service/mine").await;
    let consul = world.consul.clone();
    let path = format!("/v1/health/service/mine?index={index}&wait=10m");
    let mut waiting = tokio_test::task::spawn(async move { consul.get(&path).await });
    assert!(waiting.poll().is_pending());
    // Ten thousand writes to other services, to keys and to other checks.
    for lot in 0..50 {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200 {
            let consul = world.consul.clone();
            tasks.spawn(async move {
                if n % 2 == 0 {
                    consul.put(&format!("/v1/kv/mine/{lot}/{n}"), "x").await;
                } else {
                    let body = format!(r#"{{"Name":"other-{}","Port":{}}}"#, n % 20, lot * 200 + n);
                    consul.put("/v1/agent/service/register", &body).await;
                }
            });
        }
        tasks.join_all().await;
    }
    assert!(world.store.cursor().await.unwrap().revision.0 > 10_000);
    assert!(!waiting.is_woken(), "an unrelated write woke the waiter");
    world.consul.put("/v1/agent/service/register", r#"{"Name":"mine","Port":7}"#).await;
    assert!(waiting.is_woken());
    let (after, found) = waiting.await;
    assert!(after > index && found[0]["Service"]["Port"] == 7);
}

#[tokio::test]
async fn a_change_wakes_its_waiters_in_under_a_hundred_milliseconds() {
    let world = World::new().await;
    world.consul.put("/v1/agent/service/register", r#"{"Name":"mine"}"#).await;
    let mut times = Vec::new();
    for round in 0..21 {
        let (index, _) = world.consul.get("/v1/health/service/mine").await;
        let consul = world.consul.clone();
        let waiting = tokio::spawn(async move {
            consul.get(&format!("/v1/health/service/mine?index={index}&wait=1m")).await
        });
        tokio::task::yield_now().await;
        #[expect(clippy::disallowed_methods, reason = "the time of a real wake-up is what is measured")]
        let start = Instant::now();
        world
            .consul
            .put("/v1/agent/service/register", &format!(r#"{{"Name":"mine","Port":{}}}"#, round + 1))
            .await;
        let (_, found) = waiting.await.unwrap();
        times.push(start.elapsed());
        assert_eq!(found[0]["Service"]["Port"], round + 1);
    }
    times.sort();
    assert!(
        times[10] < Duration::from_millis(100),
        "the median of 21 wake-ups took {:?}, the write included",
        times[10]
    );
}

#[tokio::test]
async fn without_a_change_the_answer_comes_after_wait_and_its_jitter() {
    let world = World::new().await;
    world.consul.put("/v1/agent/service/register", r#"{"Name":"mine"}"#).await;
    world.consul.put("/v1/kv/mine", "x").await;
    for path in
        ["/v1/health/service/mine", "/v1/kv/mine", "/v1/catalog/service/absent", "/v1/kv/absent?recurse=1"]
    {
        let join = if path.contains('?') { '&' } else { '?' };
        let index = world.store.cursor().await.unwrap().revision.0;
        let (before, path) = (index, format!("{path}{join}index={index}&wait=320ms"));
        #[expect(clippy::disallowed_methods, reason = "that it really blocks is what is measured")]
        let start = Instant::now();
        let answer = world.consul.try_send(Method::GET, &path, "").await;
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(320), "{path} answered after {took:?}: it did not block");
        assert!(took < Duration::from_secs(5), "{path} answered after {took:?}");
        if let Ok(answer) = answer {
            let index: u64 = answer.headers["x-consul-index"].to_str().unwrap().parse().unwrap();
            assert!(index >= 1 && index <= before);
        }
    }
}

#[tokio::test]
async fn an_index_that_is_not_ours_is_answered_at_once() {
    let world = World::new().await;
    for path in ["/v1/health/service/a?index=99999999&wait=10m", "/v1/catalog/nodes?index=99999999&wait=10m"]
    {
        let (index, _) = world.consul.get(path).await;
        assert!((1..99_999_999).contains(&index));
    }
    let (status, _) = world.consul.refused(Method::GET, "/v1/kv/a?index=99999999&wait=10m", "").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn active_checks_ask_and_tell() {
    let world = World::new().await;
    let healthy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let answer = {
        let healthy = std::sync::Arc::clone(&healthy);
        move || async move {
            let ok = healthy.load(std::sync::atomic::Ordering::SeqCst);
            (http::StatusCode::from_u16(if ok { 200 } else { 500 }).unwrap(), "words")
        }
    };
    let app = axum::Router::new().route("/health", axum::routing::get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let body = format!(
        r#"{{"Name":"web","Checks":[
            {{"CheckID":"h","HTTP":"http://{address}/health","Interval":"100ms","Timeout":"2s","FailuresBeforeCritical":2}},
            {{"CheckID":"t","TCP":"{address}","Interval":"100ms"}},
            {{"CheckID":"g","GRPC":"{address}","Interval":"100ms"}}]}}"#
    );
    world.consul.put("/v1/agent/service/register", &body).await;
    let statuses = |checks: &Value| {
        let mut all: Vec<String> = checks
            .as_array()
            .unwrap()
            .iter()
            .map(|check| {
                format!("{} {}", check["CheckID"].as_str().unwrap(), check["Status"].as_str().unwrap())
            })
            .collect();
        all.sort();
        all.join(", ")
    };
    let until = async |wanted: &str| {
        let (mut index, mut seen) = (0, String::new());
        while seen != wanted {
            let path = format!("/v1/health/checks/web?index={index}&wait=20s");
            let waited = tokio::time::timeout(Duration::from_secs(20), world.consul.get(&path)).await;
            let (now, checks) = waited.unwrap_or_else(|_| panic!("still {seen}, not {wanted}"));
            (index, seen) = (now, statuses(&checks));
        }
    };
    until("g critical, h passing, t passing").await;
    let (_, checks) = world.consul.get("/v1/agent/checks").await;
    assert!(checks["h"]["Output"].as_str().unwrap().contains("200 OK Output: words"), "{checks}");
    healthy.store(false, std::sync::atomic::Ordering::SeqCst);
    until("g critical, h critical, t passing").await;
    server.abort();
    _ = server.await;
    until("g critical, h critical, t critical").await;
}

#[tokio::test]
async fn a_grpc_check_asks_the_standard_health_service() {
    let world = World::new().await;
    // A server of grpc.health.v1 by hand: one message, status SERVING for "up", NOT_SERVING else.
    let app = axum::Router::new().route(
        "/grpc.health.v1.Health/Check",
        axum::routing::post(|body: axum::body::Bytes| async move {
            let serving = body.ends_with(b"up");
            let message: &[u8] = if serving { &[0, 0, 0, 0, 2, 8, 1] } else { &[0, 0, 0, 0, 2, 8, 2] };
            ([("content-type", "application/grpc"), ("grpc-status", "0")], message.to_vec())
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    for (service, status) in [("up", "passing"), ("down", "critical")] {
        let opposite = if status == "passing" { "critical" } else { "passing" };
        let body = format!(
            r#"{{"Name":"{service}","Check":{{"CheckID":"{service}","GRPC":"{address}/{service}","Interval":"100ms","Status":"{opposite}"}}}}"#
        );
        world.consul.put("/v1/agent/service/register", &body).await;
        let (mut index, mut seen) = (0, String::new());
        while seen != status {
            let path = format!("/v1/health/checks/{service}?index={index}&wait=20s");
            let waited = tokio::time::timeout(Duration::from_secs(20), world.consul.get(&path)).await;
            let (now, checks) = waited.unwrap_or_else(|_| panic!("{service} is still {seen}, not {status}"));
            (index, seen) = (now, checks[0]["Status"].as_str().unwrap().to_owned());
        }
    }
}

#[tokio::test]
async fn registering_again_writes_nothing_and_keeps_what_checks_say() {
    let world = World::new().await;
    world.consul.put("/v1/agent/service/register", WEB).await;
    world.consul.put("/v1/agent/check/pass/service:web-1", "").await;
    let before = world.store.cursor().await.unwrap();
    world.consul.put("/v1/agent/service/register", WEB).await;
    assert_eq!(world.store.cursor().await.unwrap(), before);
    let without = r#"{"Name":"web","ID":"web-1","Check":{"Name":"other","CheckID":"o","TTL":"9s"}}"#;
    world.consul.put("/v1/agent/service/register?replace-existing-checks=true", without).await;
    let (_, checks) = world.consul.get("/v1/health/checks/web").await;
    assert_eq!(
        checks.as_array().unwrap().iter().map(|c| c["CheckID"].as_str().unwrap()).collect::<Vec<_>>(),
        ["o"]
    );
    world.consul.put("/v1/agent/check/register", r#"{"Name":"disk","TTL":"30s","ServiceID":"web-1"}"#).await;
    world.consul.put("/v1/agent/check/deregister/disk", "").await;
    world.consul.put("/v1/agent/service/deregister/web-1", "").await;
    assert_eq!(world.consul.get("/v1/agent/services").await.1, json!({}));
    let (status, words) = world.consul.refused(Method::PUT, "/v1/agent/service/deregister/web-1", "").await;
    assert!(status == 404 && words.contains("Unknown service ID"), "{words}");
}
