//! The registry's own API: leases, suspects, owners, watch, `http_sd`.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use meshwork_api::registry::{Departed, Health, Port, Registration, Service, Since};
use meshwork_registry::Caller;
use serde_json::json;
use support::{World, spiffe};

fn registration(lease_seconds: Option<u64>) -> Registration {
    let port = |port, protocol: &str| Port { port, protocol: Some(protocol.to_owned()) };
    Registration {
        address: "10.0.0.1".into(),
        ports: BTreeMap::from([("http".into(), port(8080, "http")), ("metrics".into(), port(15020, "http"))]),
        workload: Some("reviews".into()),
        version: Some("v2".into()),
        zone: Some("a".into()),
        lease_seconds,
        ..Registration::default()
    }
}

async fn register(world: &World, service: &str, count: usize) {
    for n in 0..count {
        world
            .native()
            .register("shop", service, &format!("{service}-{n}"), &registration(Some(10)))
            .await
            .unwrap();
    }
}

/// Each instance's id and health.
async fn health(world: &World) -> Vec<(String, Health)> {
    let services = world.native().services().await.unwrap();
    services.into_iter().flat_map(|service| service.instances).map(|i| (i.id, i.health)).collect()
}

#[tokio::test]
async fn what_an_instance_weighs_while_it_warns_is_shown_where_that_is_another_weight() {
    let world = World::new().await;
    for (id, weights) in
        [("alike", "{\"Passing\":3,\"Warning\":3}"), ("less", "{\"Passing\":10,\"Warning\":0}")]
    {
        let body =
            format!(r#"{{"Name":"web","ID":"{id}","Address":"10.0.0.1","Port":80,"Weights":{weights}}}"#);
        world.consul.put("/v1/agent/service/register", &body).await;
    }
    let services = world.native().services().await.unwrap();
    let shown = services[0].instances.iter().map(|one| (&*one.id, one.weight, one.warning_weight));
    assert_eq!(shown.collect::<Vec<_>>(), [("alike", 3, None), ("less", 10, Some(0))]);
}

#[tokio::test]
async fn an_instance_is_shown_as_scripts_expect() {
    let world = World::new().await;
    register(&world, "reviews", 1).await;
    let shown = world.consul.get("/v1/meshwork/services").await.1;
    assert_eq!(
        shown,
        json!([{
            "name": "reviews", "namespace": "shop",
            "instances": [{
                "id": "reviews-0", "address": "10.0.0.1",
                "ports": {"http": {"port": 8080, "protocol": "http"}, "metrics": {"port": 15020, "protocol": "http"}},
                "workload": "reviews", "version": "v2", "zone": "a", "weight": 1, "tags": [], "metadata": {},
                "health": "passing", "leaseExpires": "1970-01-01T00:00:10.000Z", "identity": null, "node": "meshwork",
            }],
        }])
    );
    let (_, consul) = world.consul.get("/v1/catalog/services").await;
    assert_eq!(consul, json!({}), "Consul's flat names are those of the default namespace");
    let one: Service =
        serde_json::from_value(world.consul.get("/v1/meshwork/services/shop/reviews").await.1).unwrap();
    assert_eq!(one.instances.len(), 1);
    world.native().deregister("shop", "reviews", "reviews-0", None).await.unwrap();
    assert_eq!(world.native().services().await.unwrap(), []);
    let body = r#"{"address":"10.0.0.1","prots":{}}"#;
    let (status, words) = world.consul.refused(Method::PUT, "/v1/meshwork/instances/shop/a/1", body).await;
    assert!(status == 400 && words.contains("unknown field `prots`"), "{words}");
    let (status, words) = world.consul.refused(Method::PUT, "/v1/meshwork/instances/Shop/a/1", body).await;
    assert!(status == 400 && words.contains("`Shop`"), "{words}");
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_takes_its_instance_along() {
    let world = World::new().await;
    register(&world, "reviews", 3).await;
    world.pass(9).await;
    let before = world.store.cursor().await.unwrap();
    for id in ["reviews-0", "reviews-1"] {
        world.native().renew("shop", "reviews", id, None).await.unwrap();
    }
    assert_eq!(world.store.cursor().await.unwrap(), before, "renewals are not written");
    world.pass(1).await;
    let left: Vec<String> = health(&world).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, ["reviews-0", "reviews-1"]);
    let error = world.native().renew("shop", "reviews", "reviews-2", None).await.unwrap_err();
    assert_eq!(error.status().unwrap(), 404, "who was removed has to register again");
}

#[tokio::test]
async fn losing_more_than_half_at_once_by_silence_keeps_them_as_suspect() {
    let world = World::new().await;
    register(&world, "reviews", 4).await;
    world.pass(9).await;
    world.native().renew("shop", "reviews", "reviews-0", None).await.unwrap();
    world.pass(1).await;
    let suspects: Vec<_> = health(&world).await.into_iter().filter(|(_, h)| *h == Health::Suspect).collect();
    assert_eq!(suspects.len(), 3, "three of four: none is removed");
    world.native().renew("shop", "reviews", "reviews-1", None).await.unwrap();
    assert_eq!(health(&world).await[1].1, Health::Passing, "who speaks again is well");
    // Two of four are silent now: that is not more than half any more, so they go.
    world.pass(1).await;
    let left: Vec<String> = health(&world).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, ["reviews-0", "reviews-1"]);
}

#[tokio::test]
async fn those_who_are_cut_off_together_run_out_one_after_the_other_and_none_is_removed() {
    let world = World::new().await;
    register(&world, "reviews", 4).await;
    world.pass(2).await;
    // Each renews at its own second of a third of the lease, until the cable is cut.
    for id in ["reviews-1", "reviews-2", "reviews-3"] {
        world.pass(1).await;
        world.native().renew("shop", "reviews", id, None).await.unwrap();
    }
    for suspects in 1..=4 {
        world
            .pass(if suspects == 1 {
                5
            } else if suspects == 2 {
                3
            } else {
                1
            })
            .await;
        let all = health(&world).await;
        assert_eq!(all.len(), 4, "{all:?}");
        assert_eq!(all.iter().filter(|(_, health)| *health == Health::Suspect).count(), suspects, "{all:?}");
    }
    // The cable is there again, and one of them is not.
    for id in ["reviews-0", "reviews-1", "reviews-2"] {
        world.native().renew("shop", "reviews", id, None).await.unwrap();
    }
    world.pass(1).await;
    let left: Vec<String> = health(&world).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, ["reviews-0", "reviews-1", "reviews-2"]);
}

#[tokio::test]
async fn the_last_instance_never_vanishes_by_silence() {
    let world = World::new().await;
    register(&world, "reviews", 1).await;
    for _ in 0..50 {
        world.pass(10).await;
    }
    assert_eq!(health(&world).await, [("reviews-0".to_owned(), Health::Suspect)]);
    assert!(Health::Suspect.usable());
    let world = world.restart_after(Duration::from_secs(60)).await;
    world.pass(100).await;
    assert_eq!(health(&world).await, [("reviews-0".to_owned(), Health::Suspect)]);
    // A service of its own does not count for another's half.
    register(&world, "other", 10).await;
    world.pass(1).await;
    assert_eq!(health(&world).await.len(), 11);
}

#[tokio::test]
async fn an_operator_removes_who_is_suspect_and_nobody_else_s() {
    let world = World::new().await;
    let path = "/v1/meshwork/instances/shop/reviews/reviews-0";
    let body = serde_json::to_string(&registration(Some(10))).unwrap();
    world.as_caller(spiffe("spiffe://mesh/ns/shop/sa/reviews")).put(path, &body).await;
    assert_eq!(world.consul.refused(Method::DELETE, path, "").await.0, 403, "its lease lives");
    world.pass(10).await;
    let shown = world.consul.get(path).await.1;
    assert_eq!((&shown["suspect"], &shown["leaseExpires"]), (&json!(true), &json!(null)));
    let other = spiffe("spiffe://mesh/ns/shop/sa/evil");
    assert_eq!(world.as_caller(other).refused(Method::DELETE, path, "").await.0, 403);
    world.consul.delete(path).await;
    assert_eq!(health(&world).await, []);
}

#[tokio::test]
async fn time_of_a_lease_stops_while_the_registry_is_down() {
    let world = World::new().await;
    register(&world, "reviews", 3).await;
    world.pass(9).await;
    let world = world.restart_after(Duration::from_secs(86_400)).await;
    world.pass(9).await;
    assert!(health(&world).await.iter().all(|(_, health)| *health == Health::Passing));
    world.pass(1).await;
    assert!(health(&world).await.iter().all(|(_, health)| *health == Health::Suspect));
}

#[tokio::test]
async fn what_nobody_can_reach_yet_ends_no_lease_and_has_not_begun_to_run() {
    let world = World::new().await;
    register(&world, "reviews", 3).await;
    let world = world.restart_closed().await;
    world.pass(20).await;
    world.pass(9).await;
    let runs = async || world.native().changes(None, Duration::ZERO).await.unwrap().runs_ms;
    assert_eq!(runs().await, Some(0), "whoever is alive could not tell it yet");
    assert!(health(&world).await.iter().all(|(_, health)| *health == Health::Passing));
    world.registry.open();
    world.pass(9).await;
    assert_eq!(runs().await, Some(9_000));
    assert!(health(&world).await.iter().all(|(_, health)| *health == Health::Passing));
    world.pass(1).await;
    assert!(health(&world).await.iter().all(|(_, health)| *health == Health::Suspect));
}

#[tokio::test]
async fn a_name_belongs_to_the_identity_that_registered_it_first() {
    let world = World::new().await;
    let owner = spiffe("spiffe://mesh/ns/shop/sa/reviews");
    let path = "/v1/meshwork/instances/shop/reviews/1";
    let body = serde_json::to_string(&registration(None)).unwrap();
    let mine = world.as_caller(owner);
    let shown = mine.put(path, &body).await;
    assert_eq!(shown["identity"], "spiffe://mesh/ns/shop/sa/reviews");
    for other in [spiffe("spiffe://mesh/ns/shop/sa/evil"), Caller::Token("reviews".into()), Caller::Local] {
        let theirs = world.as_caller(other);
        for (method, at, body) in [
            (Method::PUT, "/v1/meshwork/instances/shop/reviews/2", body.as_str()),
            (Method::PUT, path, body.as_str()),
            (Method::PUT, "/v1/meshwork/instances/shop/reviews/1/maintenance", ""),
            (Method::DELETE, path, ""),
        ] {
            let (status, words) = theirs.refused(method, at, body).await;
            assert!(
                status == 403 && words.contains("belongs to spiffe://mesh/ns/shop/sa/reviews"),
                "{at}: {words}"
            );
        }
    }
    // Another service's name does not lead to this one's instance.
    let (status, _) =
        world.as_caller(Caller::Local).refused(Method::DELETE, "/v1/meshwork/instances/shop/a/1", "").await;
    assert_eq!(status, 404);
    // The owner's name outlives its last instance, and a restart.
    mine.delete(path).await;
    let world = world.restart_after(Duration::ZERO).await;
    let stranger = world.as_caller(Caller::Token("ci".into()));
    assert_eq!(stranger.refused(Method::PUT, path, &body).await.0, 403);
    assert_eq!(stranger.refused(Method::DELETE, "/v1/meshwork/owners/shop/reviews", "").await.0, 403);
    world.as_caller(Caller::Local).delete("/v1/meshwork/owners/shop/reviews").await;
    stranger.put(path, &body).await;
}

#[tokio::test]
async fn moving_an_instance_or_reporting_a_check_needs_the_name_too() {
    let world = World::new().await;
    let mine = world.as_caller(Caller::Token("a".into()));
    let theirs = world.as_caller(Caller::Token("b".into()));
    mine.put("/v1/agent/service/register", r#"{"Name":"web","ID":"w","Check":{"CheckID":"c","TTL":"9s"}}"#)
        .await;
    for (path, body) in [
        ("/v1/agent/service/register", r#"{"Name":"mine-now","ID":"w"}"#),
        ("/v1/agent/service/register", r#"{"Name":"mine","ID":"m","Check":{"CheckID":"c","TTL":"9s"}}"#),
        ("/v1/agent/check/pass/c", ""),
        ("/v1/agent/check/register", r#"{"Name":"d","TTL":"9s","ServiceID":"w"}"#),
        ("/v1/agent/check/register", r#"{"Name":"d","ID":"c","TTL":"9s"}"#),
        ("/v1/agent/check/deregister/c", ""),
        ("/v1/agent/service/deregister/w", ""),
        ("/v1/agent/maintenance?enable=true", ""),
        ("/v1/catalog/deregister", r#"{"Node":"meshwork","ServiceID":"w"}"#),
        (
            "/v1/catalog/register",
            r#"{"Node":"meshwork","Address":"x","Check":{"Name":"c","CheckID":"c","Status":"passing"}}"#,
        ),
    ] {
        let (status, words) = theirs.refused(Method::PUT, path, body).await;
        assert_eq!(status, 403, "{path} {body}: {words}");
    }
    mine.put("/v1/agent/check/pass/c", "").await;
}

#[tokio::test]
async fn a_request_without_a_proven_caller_is_refused() {
    let world = World::new().await;
    let client = meshwork_api::Client::in_memory("registry", world.registry.router());
    let error = meshwork_api::RegistryClient(client).services().await.unwrap_err();
    assert_eq!(error.status().unwrap(), 401);
}

#[tokio::test]
async fn a_watch_tells_what_changed_and_what_vanished() {
    let world = World::new().await;
    let native = world.native();
    register(&world, "a", 1).await;
    register(&world, "b", 1).await;
    let all = native.changes(None, Duration::ZERO).await.unwrap();
    assert!(all.reset && all.services.len() == 2);
    let mut since = Since { epoch: all.epoch, revision: all.revision };
    let quiet = native.changes(Some(&since), Duration::from_millis(20)).await.unwrap();
    assert!(!quiet.reset && quiet.services.is_empty() && quiet.removed.is_empty());
    let waiting = {
        let (native, since) = (native.clone(), since.clone());
        tokio::spawn(async move { native.changes(Some(&since), Duration::from_secs(60)).await })
    };
    tokio::task::yield_now().await;
    world.consul.put("/v1/kv/unrelated", "x").await;
    assert!(!waiting.is_finished());
    native.deregister("shop", "b", "b-0", None).await.unwrap();
    let changes = waiting.await.unwrap().unwrap();
    let gone: Vec<_> =
        changes.removed.iter().map(|name| (name.namespace.as_str(), name.name.as_str())).collect();
    assert_eq!((gone, changes.services.len(), changes.reset), (vec![("shop", "b")], 0, false));
    since.revision = changes.revision;
    register(&world, "a", 2).await;
    let changes = native.changes(Some(&since), Duration::from_secs(60)).await.unwrap();
    assert_eq!(
        (changes.services.len(), changes.services[0].instances.len()),
        (1, 2),
        "a changed service comes whole"
    );
    since.epoch = "0".into();
    assert!(native.changes(Some(&since), Duration::from_secs(60)).await.unwrap().reset);
}

#[tokio::test]
async fn who_follows_is_told_how_long_the_registry_runs_and_who_wanted_to_be_gone_that_it_never_had() {
    let world = World::new().await;
    register(&world, "a", 1).await;
    world.pass(5).await;
    let told = world.native().changes(None, Duration::ZERO).await.unwrap();
    assert_eq!((told.runs_ms, told.departed), (Some(5_000), Vec::new()));
    let id = "spiffe://mesh.local/ns/shop/sa/web";
    let path = "/v1/meshwork/instances/shop/web/web-1";
    let (status, _) = world.as_caller(spiffe(id)).refused(Method::DELETE, path, "").await;
    assert_eq!(status, 404);
    world.native().deregister("shop", "a", "a-0", None).await.unwrap();
    let told = world.native().changes(None, Duration::ZERO).await.unwrap();
    let gone = Departed {
        namespace: "shop".into(),
        node: "meshwork".into(),
        id: "web-1".into(),
        identity: Some(id.into()),
    };
    assert_eq!(told.departed, [gone], "who was there is simply gone");
    let since = Since { epoch: told.epoch.clone(), revision: told.revision };
    world.pass(60).await;
    let told = world.native().changes(Some(&since), Duration::ZERO).await.unwrap();
    assert_eq!(
        (told.runs_ms, told.departed),
        (Some(65_000), Vec::new()),
        "nobody keeps anything for so long"
    );

    let mut snapshot = Vec::new();
    world.store.snapshot(&mut snapshot).await.unwrap();
    let waiting = {
        let native = world.native();
        tokio::spawn(async move { native.changes(Some(&since), Duration::from_secs(60)).await })
    };
    tokio::task::yield_now().await;
    world.store.restore(&mut &snapshot[..]).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().runs_ms, Some(0), "with this store it runs from now on");
    let world = world.restart_after(Duration::from_secs(60)).await;
    world.pass(2).await;
    assert_eq!(world.native().changes(None, Duration::ZERO).await.unwrap().runs_ms, Some(2_000));
}

#[tokio::test]
async fn nobody_fills_the_places_of_others_who_want_to_be_gone() {
    let world = World::new().await;
    let leave = async |who: &str, id: &str| {
        let path = format!("/v1/meshwork/instances/shop/web/{id}");
        let caller = spiffe(&format!("spiffe://mesh.local/ns/shop/sa/{who}"));
        assert_eq!(world.as_caller(caller).refused(Method::DELETE, &path, "").await.0, 404);
    };
    leave("evil", &"x".repeat(254)).await;
    for number in 0..300 {
        leave("evil", &format!("evil-{number}")).await;
    }
    leave("web", "web-1").await;
    let told = world.native().changes(None, Duration::ZERO).await.unwrap().departed;
    assert_eq!((told.len(), told[0].id.as_str(), told[256].id.as_str()), (257, "evil-0", "web-1"));
}

#[tokio::test]
async fn watchers_of_a_restored_store_start_over() {
    let world = World::new().await;
    register(&world, "a", 1).await;
    let mut snapshot = Vec::new();
    world.store.snapshot(&mut snapshot).await.unwrap();
    register(&world, "b", 1).await;
    let native = world.native();
    let all = native.changes(None, Duration::ZERO).await.unwrap();
    let since = Since { epoch: all.epoch, revision: all.revision };
    let waiting = {
        let native = native.clone();
        tokio::spawn(async move { native.changes(Some(&since), Duration::from_secs(60)).await })
    };
    tokio::task::yield_now().await;
    let (index, _) = world.consul.get("/v1/catalog/services").await;
    world.store.restore(&mut &snapshot[..]).await.unwrap();
    let changes = waiting.await.unwrap().unwrap();
    assert!(changes.reset && changes.revision > all.revision);
    let names: Vec<_> = changes.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["a"]);
    assert!(world.consul.get("/v1/catalog/services").await.0 > index, "an index never goes back");
}

#[tokio::test]
async fn prometheus_finds_every_instance_that_has_a_metrics_port() {
    let world = World::new().await;
    register(&world, "reviews", 1).await;
    let mut plain = registration(None);
    plain.ports.remove("metrics");
    world.native().register("shop", "plain", "p", &plain).await.unwrap();
    let mut odd = registration(None);
    odd.address = "::1".into();
    odd.metadata.insert("meshwork.dev/metrics-path".into(), "/stats".into());
    world.native().register("shop", "odd", "o", &odd).await.unwrap();
    let (_, groups) = world.consul.get("/v1/meshwork/http_sd").await;
    let targets: Vec<_> =
        groups.as_array().unwrap().iter().map(|group| group["targets"][0].as_str().unwrap()).collect();
    assert_eq!(targets, ["[::1]:15020", "10.0.0.1:15020"]);
    assert_eq!(groups[0]["labels"]["__metrics_path__"], "/stats");
    assert_eq!(groups[1]["labels"]["__meta_meshwork_service"], "reviews");
    assert_eq!(groups[1]["labels"]["__meta_meshwork_role"], json!(null), "whoever it is");
    let mut beside = registration(None);
    beside.metadata.insert("meshwork.dev/mesh-port".into(), "15006".into());
    world.native().register("shop", "odd", "o", &beside).await.unwrap();
    let mut edge = registration(None);
    edge.metadata.insert("meshwork.dev/role".into(), "gateway".into());
    world.native().register("shop", "reviews", "reviews-0", &edge).await.unwrap();
    let (_, groups) = world.consul.get("/v1/meshwork/http_sd").await;
    let role = |group: usize| groups[group]["labels"]["__meta_meshwork_role"].clone();
    assert_eq!([role(0), role(1)], ["sidecar", "gateway"]);
    let (_, groups) = world.consul.get("/v1/meshwork/http_sd?port=http").await;
    assert_eq!(groups.as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn two_copies_of_one_name_do_not_take_each_others_place() {
    let world = World::new().await;
    let native = world.native();
    let copy = |incarnation: &str, address: &str| Registration {
        address: address.into(),
        incarnation: Some(incarnation.into()),
        ..registration(Some(10))
    };
    let register = async |registration: &Registration| {
        native.register("shop", "web", "web-1", registration).await.map(|instance| instance.address)
    };
    let refused = |error: meshwork_api::ClientError| {
        assert_eq!(error.status().unwrap(), 409, "{error}");
        error.to_string()
    };
    assert_eq!(register(&copy("a", "10.0.0.1")).await.unwrap(), "10.0.0.1");

    // The other one is told who is there, and can neither keep nor take away what is not its own.
    let words = refused(register(&copy("b", "10.0.0.2")).await.unwrap_err());
    assert!(
        words.contains("10.0.0.1") && words.contains("10.0.0.2") && words.contains("--instance"),
        "{words}"
    );
    refused(native.renew("shop", "web", "web-1", Some("b")).await.unwrap_err());
    refused(native.deregister("shop", "web", "web-1", Some("b")).await.unwrap_err());
    refused(native.end_maintenance("shop", "web", "web-1", Some("b")).await.unwrap_err());
    native.end_maintenance("shop", "web", "web-1", Some("a")).await.unwrap();
    native.renew("shop", "web", "web-1", Some("a")).await.unwrap();

    // The same copy may move; one that comes back where the old one was has its place; who does not say which it is, too.
    assert_eq!(register(&copy("a", "10.0.0.3")).await.unwrap(), "10.0.0.3");
    assert_eq!(register(&copy("b", "10.0.0.3")).await.unwrap(), "10.0.0.3");
    refused(native.renew("shop", "web", "web-1", Some("a")).await.unwrap_err());
    assert_eq!(register(&registration(Some(10))).await.unwrap(), "10.0.0.1");

    // Whoever is silent for a lease has lost it; as the last one it is shown on, and no longer in the way.
    assert_eq!(register(&copy("a", "10.0.0.1")).await.unwrap(), "10.0.0.1");
    refused(register(&copy("b", "10.0.0.2")).await.unwrap_err());
    world.pass(10).await;
    assert_eq!(health(&world).await, [("web-1".to_owned(), Health::Suspect)]);
    assert_eq!(register(&copy("b", "10.0.0.2")).await.unwrap(), "10.0.0.2");
    native.deregister("shop", "web", "web-1", Some("b")).await.unwrap();
}
