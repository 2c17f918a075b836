//! Consul's key-value store, sessions and transactions.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use http::Method;
use serde_json::{Value, json};
use support::{Consul, World};

async fn session(consul: &Consul, body: &str) -> String {
    consul.put("/v1/session/create", body).await["ID"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn keys_are_written_read_listed_and_removed() {
    let world = World::new().await;
    let consul = &world.consul;
    assert_eq!(consul.refused(Method::GET, "/v1/kv/a", "").await.0, 404);
    assert_eq!(consul.put("/v1/kv/a/b?flags=42", "hello").await, true);
    let (index, found) = consul.get("/v1/kv/a/b").await;
    assert_eq!(
        json!([found[0]["Key"], found[0]["Value"], found[0]["Flags"], found[0]["LockIndex"]]),
        json!(["a/b", "aGVsbG8=", 42, 0])
    );
    assert!(found[0].get("Session").is_none() && found[0]["ModifyIndex"].as_u64().unwrap() <= index);
    let raw = consul.try_send(Method::GET, "/v1/kv/a/b?raw", "").await.unwrap();
    assert_eq!(
        (&raw.body[..], &raw.headers["x-content-type-options"]),
        (&b"hello"[..], &"nosniff".parse().unwrap())
    );
    for key in ["a/c/1", "a/c/2", "ab", "leer%20zeichen", "%C3%BC"] {
        consul.put(&format!("/v1/kv/{key}"), "").await;
    }
    assert_eq!(consul.get("/v1/kv/a/?keys").await.1, json!(["a/b", "a/c/1", "a/c/2"]));
    assert_eq!(consul.get("/v1/kv/a/?keys&separator=/").await.1, json!(["a/b", "a/c/"]));
    assert_eq!(consul.get("/v1/kv/?keys&separator=/").await.1, json!(["a/", "ab", "leer zeichen", "ü"]));
    let (_, tree) = consul.get("/v1/kv/a/?recurse=1").await;
    assert_eq!(tree.as_array().unwrap().len(), 3);
    assert_eq!(tree[1]["Value"], Value::Null, "an empty value is null, as Consul has it");
    assert_eq!(consul.delete("/v1/kv/a/b").await, true);
    assert_eq!(consul.delete("/v1/kv/a/b").await, true, "removing what is gone is done");
    assert_eq!(consul.delete("/v1/kv/a?recurse").await, true);
    assert_eq!(consul.get("/v1/kv/?keys").await.1, json!(["leer zeichen", "ü"]));
}

#[tokio::test]
async fn compare_and_set_writes_only_what_was_seen() {
    let world = World::new().await;
    let consul = &world.consul;
    assert_eq!(consul.put("/v1/kv/a?cas=5", "x").await, false);
    assert_eq!(consul.put("/v1/kv/a?cas=0", "one").await, true);
    assert_eq!(consul.put("/v1/kv/a?cas=0", "two").await, false);
    let index = consul.get("/v1/kv/a").await.1[0]["ModifyIndex"].as_u64().unwrap();
    assert_eq!(consul.put(&format!("/v1/kv/a?cas={index}"), "two").await, true);
    assert_eq!(consul.put(&format!("/v1/kv/a?cas={index}"), "three").await, false);
    assert_eq!(consul.delete(&format!("/v1/kv/a?cas={index}")).await, false);
    assert_eq!(consul.delete("/v1/kv/a?cas=0").await, false);
    let index = consul.get("/v1/kv/a").await.1[0]["ModifyIndex"].as_u64().unwrap();
    assert_eq!(consul.delete(&format!("/v1/kv/a?cas={index}")).await, true);
}

#[tokio::test]
async fn a_blocking_read_sees_writes_and_removals_of_its_key_only() {
    let world = World::new().await;
    let consul = &world.consul;
    consul.put("/v1/kv/watched", "1").await;
    let (index, _) = consul.get("/v1/kv/watched").await;
    let waiter = consul.clone();
    let path = format!("/v1/kv/watched?index={index}&wait=10m");
    let waiting = tokio::spawn(async move { waiter.get(&path).await });
    tokio::task::yield_now().await;
    consul.put("/v1/kv/watched-too", "x").await;
    consul.put("/v1/kv/other", "x").await;
    assert!(!waiting.is_finished());
    consul.put("/v1/kv/watched", "2").await;
    let (after, found) = waiting.await.unwrap();
    assert!(after > index && found[0]["Value"] == "Mg==");
    let waiter = consul.clone();
    let path = format!("/v1/kv/watched?index={after}&wait=10m");
    let waiting = tokio::spawn(async move { waiter.refused(Method::GET, &path, "").await });
    tokio::task::yield_now().await;
    consul.delete("/v1/kv/watched").await;
    assert_eq!(waiting.await.unwrap().0, 404, "a removal is a change too");
}

#[tokio::test]
async fn a_lock_has_one_holder_until_it_is_released_or_its_session_ends() {
    let world = World::new().await;
    let consul = &world.consul;
    let first = session(consul, r#"{"Name":"first","TTL":"10s","LockDelay":"15s"}"#).await;
    let second = session(consul, r#"{"LockDelay":"0s"}"#).await;
    let acquire = |id: &str| format!("/v1/kv/lock?acquire={id}");
    assert_eq!(consul.put(&acquire(&first), "mine").await, true);
    assert_eq!(consul.put(&acquire(&first), "still mine").await, true);
    assert_eq!(consul.put(&acquire(&second), "theirs").await, false);
    let held = consul.get("/v1/kv/lock").await.1;
    assert_eq!((&held[0]["Session"], &held[0]["LockIndex"]), (&json!(first), &json!(1)));
    assert_eq!(consul.put(&format!("/v1/kv/lock?release={second}"), "").await, false);
    assert_eq!(consul.put(&format!("/v1/kv/lock?release={first}"), "").await, true);
    assert_eq!(consul.put(&acquire(&second), "now theirs").await, true, "a release has no delay");
    assert_eq!(consul.get("/v1/kv/lock").await.1[0]["LockIndex"], 2);
    assert_eq!(consul.put(&format!("/v1/session/destroy/{second}"), "").await, true);
    assert!(consul.get("/v1/kv/lock").await.1[0].get("Session").is_none());

    assert_eq!(consul.put(&acquire(&first), "again").await, true, "no delay was asked for");
    world.pass(9).await;
    assert_eq!(consul.put(&format!("/v1/session/renew/{first}"), "").await[0]["ID"], first.as_str());
    world.pass(9).await;
    assert_eq!(consul.get("/v1/kv/lock").await.1[0]["Session"], first.as_str());
    world.pass(1).await;
    assert!(consul.get("/v1/kv/lock").await.1[0].get("Session").is_none(), "the session ran out");
    assert_eq!(consul.get(&format!("/v1/session/info/{first}")).await.1, json!([]));
    assert_eq!(consul.refused(Method::PUT, &format!("/v1/session/renew/{first}"), "").await.0, 404);
    let (status, words) = consul.refused(Method::PUT, &acquire(&first), "").await;
    assert!(status == 500 && words.contains("invalid session"), "{words}");
    let third = session(consul, "").await;
    assert_eq!(consul.put(&acquire(&third), "").await, false, "its lock delay holds others off");
    world.pass(15).await;
    assert_eq!(consul.put(&acquire(&third), "").await, true);
    assert_eq!(consul.get("/v1/session/list").await.1[0]["ID"], third.as_str());
    assert_eq!(consul.get("/v1/session/node/meshwork").await.1[0]["LockDelay"], 15_000_000_000_u64);
}

#[tokio::test]
async fn a_session_that_deletes_takes_its_keys_along_however_many() {
    let world = World::new().await;
    let consul = &world.consul;
    let id = session(consul, r#"{"Behavior":"delete","LockDelay":"0s"}"#).await;
    for n in 0..130 {
        assert_eq!(consul.put(&format!("/v1/kv/held/{n}?acquire={id}"), "").await, true);
    }
    consul.put("/v1/kv/held/free", "").await;
    consul.put(&format!("/v1/session/destroy/{id}"), "").await;
    assert_eq!(consul.get("/v1/kv/held?keys").await.1, json!(["held/free"]));
}

#[tokio::test]
async fn a_session_ends_with_a_check_it_hangs_on() {
    let world = World::new().await;
    let consul = &world.consul;
    let hanging = r#"{"NodeChecks":["serfHealth"],"ServiceChecks":[{"ID":"c"}]}"#;
    assert_eq!(
        consul.refused(Method::PUT, "/v1/session/create", hanging).await.0,
        400,
        "there is no such check"
    );
    consul
        .put(
            "/v1/agent/service/register",
            r#"{"Name":"w","Check":{"CheckID":"c","TTL":"10s","Status":"passing"}}"#,
        )
        .await;
    let id = session(consul, hanging).await;
    assert_eq!(consul.put(&format!("/v1/kv/leader?acquire={id}"), "w").await, true);
    world.pass(10).await;
    assert!(consul.get("/v1/kv/leader").await.1[0].get("Session").is_none());
    assert_eq!(consul.get("/v1/session/list").await.1, json!([]));
}

#[tokio::test]
async fn sessions_get_their_full_time_again_after_a_restart() {
    let world = World::new().await;
    let id = session(&world.consul, r#"{"TTL":"10s"}"#).await;
    world.pass(9).await;
    let world = world.restart_after(std::time::Duration::from_secs(1000)).await;
    world.pass(9).await;
    assert_eq!(world.consul.get("/v1/session/list").await.1[0]["ID"], id.as_str());
    world.pass(1).await;
    assert_eq!(world.consul.get("/v1/session/list").await.1, json!([]));
}

#[tokio::test]
async fn of_many_who_want_a_lock_one_gets_it() {
    let world = World::new().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let consul = world.consul.clone();
        tasks.spawn(async move {
            let id = session(&consul, "").await;
            consul.put(&format!("/v1/kv/lock?acquire={id}"), &id).await == true
        });
    }
    assert_eq!(tasks.join_all().await.into_iter().filter(|&won| won).count(), 1);
}

#[tokio::test]
async fn a_transaction_happens_whole_or_names_the_operations_that_failed() {
    let world = World::new().await;
    let consul = &world.consul;
    consul.put("/v1/kv/t/a", "1").await;
    let index = consul.get("/v1/kv/t/a").await.1[0]["ModifyIndex"].as_u64().unwrap();
    let body = json!([
        {"KV": {"Verb": "check-index", "Key": "t/a", "Index": index}},
        {"KV": {"Verb": "check-not-exists", "Key": "t/b"}},
        {"KV": {"Verb": "set", "Key": "t/b", "Value": "Mg==", "Flags": 3}},
        {"KV": {"Verb": "get", "Key": "t/b"}},
        {"KV": {"Verb": "cas", "Key": "t/a", "Index": index, "Value": "Mw=="}},
        {"KV": {"Verb": "get-tree", "Key": "t/"}},
    ]);
    let done = consul.put("/v1/txn", &body.to_string()).await;
    assert_eq!(done["Errors"], Value::Null);
    let keys: Vec<_> =
        done["Results"].as_array().unwrap().iter().map(|r| r["KV"]["Key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["t/b", "t/b", "t/a", "t/a", "t/b"]);
    assert_eq!(
        (&done["Results"][0]["KV"]["Value"], &done["Results"][1]["KV"]["Value"]),
        (&Value::Null, &json!("Mg=="))
    );
    let [a, b] = ["t/a", "t/b"].map(|key| format!("/v1/kv/{key}"));
    assert_eq!(
        consul.get(&a).await.1[0]["ModifyIndex"],
        consul.get(&b).await.1[0]["ModifyIndex"],
        "at one revision"
    );

    let id = session(consul, "").await;
    let body = json!([
        {"KV": {"Verb": "set", "Key": "t/c", "Value": ""}},
        {"KV": {"Verb": "cas", "Key": "t/a", "Index": index, "Value": ""}},
        {"KV": {"Verb": "check-session", "Key": "t/a", "Session": id}},
        {"KV": {"Verb": "lock", "Key": "t/l", "Session": id}},
    ]);
    let refused = consul.try_send(Method::PUT, "/v1/txn", &body.to_string()).await.unwrap_err();
    assert_eq!(refused.status().unwrap(), 409);
    let meshwork_api::ClientError::Refused { problem, .. } = refused else { panic!() };
    let failed: Vec<_> =
        problem.more["Errors"].as_array().unwrap().iter().map(|e| e["OpIndex"].clone()).collect();
    assert_eq!(failed, [1, 2]);
    assert_eq!(consul.get("/v1/kv/t/?keys").await.1, json!(["t/a", "t/b"]), "nothing of it happened");
    let body = json!([
        {"KV": {"Verb": "lock", "Key": "t/l", "Session": id, "Value": "bG9jaw=="}},
        {"KV": {"Verb": "check-session", "Key": "t/l", "Session": id}},
        {"KV": {"Verb": "delete-tree", "Key": "t/"}},
        {"KV": {"Verb": "get-or-empty", "Key": "t/a"}},
    ]);
    consul.put("/v1/txn", &body.to_string()).await;
    assert_eq!(consul.refused(Method::GET, "/v1/kv/t/?recurse", "").await.0, 404);
}

#[tokio::test]
async fn a_value_over_consuls_limit_is_refused() {
    let world = World::new().await;
    let fits = "x".repeat(512 * 1024);
    assert_eq!(world.consul.put("/v1/kv/big", &fits).await, true);
    let (status, words) = world.consul.refused(Method::PUT, "/v1/kv/big", &(fits + "x")).await;
    assert!(status == 413 && words.contains("at most 524288"), "{words}");
}
