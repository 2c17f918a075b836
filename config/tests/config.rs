//! The config service by its HTTP API.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use http::{Method, StatusCode};
use meshwork_api::config::{Action, Change, Edit, Since, is_another_store};
use meshwork_api::{Answer, Client, ClientError, ConfigClient};
use meshwork_base::{Clock, ManualClock, SeededRng};
use meshwork_config::{Caller, Config};
use meshwork_store::{Store, embedded};
use serde_json::{Value, json};

struct World {
    config: Config,
    store: Store,
    clock: ManualClock,
    client: Client,
    folder: tempfile::TempDir,
}

const ROUTE: &str = "/v1/documents/shop/HTTPRoute/web";

impl World {
    async fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), ManualClock::new()).await
    }

    async fn in_folder(folder: tempfile::TempDir, clock: ManualClock) -> Self {
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let options = embedded::Options::new(Arc::clone(&shared), Box::new(SeededRng::new(5)));
        let store = embedded::open(&folder.path().join("store"), options).unwrap();
        let config = Config::start(store.clone(), shared).await.unwrap();
        let client = Client::in_memory("config", config.router().layer(Extension(Caller::Local)));
        Self { config, store, clock, client, folder }
    }

    async fn restart(self) -> Self {
        let Self { config, store, clock, folder, .. } = self;
        drop(config);
        store.close().await.unwrap();
        Self::in_folder(folder, clock).await
    }

    fn api(&self) -> ConfigClient {
        ConfigClient(self.client.clone())
    }

    /// Another replica over the same store.
    async fn replica(&self) -> (Config, ConfigClient) {
        let config = Config::start(self.store.clone(), Arc::new(self.clock.clone())).await.unwrap();
        let client = Client::in_memory("replica", config.router().layer(Extension(Caller::Local)));
        (config, ConfigClient(client))
    }

    fn as_caller(&self, caller: Caller) -> ConfigClient {
        ConfigClient(Client::in_memory("config", self.config.router().layer(Extension(caller))))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Answer, ClientError> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.client.send(method, path, headers, body.into()).await
    }

    async fn put(&self, path: &str, content: Value) -> Answer {
        self.send(Method::PUT, path, &[], &content).await.unwrap()
    }

    async fn refused(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (u16, String) {
        let error = self.send(method, path, headers, body).await.expect_err("it was not refused");
        (error.status().unwrap().as_u16(), error.to_string())
    }
}

fn value(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

fn edit(kind: &str, name: &str, content: Value, if_revision: Option<u64>) -> Edit {
    Edit { namespace: "shop".into(), kind: kind.into(), name: name.into(), content, if_revision }
}

fn change(edits: Vec<Edit>) -> Change {
    Change { message: "why".into(), author: None, edits }
}

#[tokio::test]
async fn each_write_is_a_revision_that_never_changes() {
    let world = World::new().await;
    let path = format!("{ROUTE}?message=first&author=ada");
    let created = world.put(&path, json!({"a": 1})).await;
    assert_eq!((created.status, &created.headers["etag"]), (StatusCode::CREATED, &"\"1\"".parse().unwrap()));
    world.clock.advance(Duration::from_secs(60));
    let second = world.put(ROUTE, json!({"a": 2})).await;
    assert_eq!(second.status, StatusCode::OK);
    let same = world.put(ROUTE, json!({"a": 2})).await;
    assert_eq!(value(&same)["revision"], 2, "what is so already is no revision");
    world.send(Method::DELETE, &format!("{ROUTE}?message=gone"), &[], &Value::Null).await.unwrap();
    assert_eq!(world.refused(Method::GET, ROUTE, &[], &Value::Null).await.0, 404);
    world.put(ROUTE, json!({"a": 4})).await;
    let history = world.api().history("shop", "HTTPRoute", "web").await.unwrap();
    let told: Vec<_> =
        history.iter().map(|v| (v.revision, v.message.as_str(), v.author.as_str(), v.deleted)).collect();
    assert_eq!(
        told,
        [
            (4, "", "local", false),
            (3, "gone", "local", true),
            (2, "", "local", false),
            (1, "first", "local:ada", false)
        ]
    );
    assert_eq!(history[2].time, "1970-01-01T00:01:00.000Z");
    assert!(history[3].hash.as_ref().unwrap().len() == 64 && history[1].hash.is_none());
    let old = world.api().get("shop", "HTTPRoute", "web", Some(1)).await.unwrap();
    assert_eq!((old.content, old.version.message), (json!({"a": 1}), "first".to_owned()));
    let world = world.restart().await;
    assert_eq!(world.api().get("shop", "HTTPRoute", "web", None).await.unwrap().content, json!({"a": 4}));
    assert_eq!(world.api().history("shop", "HTTPRoute", "web").await.unwrap(), history);
    let refused = world.refused(Method::GET, &format!("{ROUTE}?revision=9"), &[], &Value::Null).await;
    assert!(refused.0 == 404 && refused.1.contains("has no revision 9"), "{refused:?}");
}

#[tokio::test]
async fn a_change_that_was_made_for_another_store_is_refused() {
    let world = World::new().await;
    let epoch = world.api().changes(None, Duration::ZERO).await.unwrap().epoch;
    let one = change(vec![edit("HTTPRoute", "web", json!({"a": 1}), Some(0))]);
    let of = |epoch: &str| Since { epoch: epoch.to_owned(), ..Since::default() };
    let refused = [
        world.api().apply_in(&of("0123456789abcdef"), &one).await.map(drop).unwrap_err(),
        world.api().plan_in(&of("0123456789abcdef"), &one).await.map(drop).unwrap_err(),
    ];
    for refused in refused {
        assert_eq!((refused.status(), is_another_store(&refused)), (Some(StatusCode::CONFLICT), true));
        assert!(refused.to_string().contains(&epoch), "{refused}");
    }
    assert_eq!(world.api().list(None).await.unwrap(), []);
    assert_eq!(world.api().plan_in(&of(&epoch), &one).await.unwrap()[0].action, Action::Create);
    world.api().apply_in(&of(&epoch), &one).await.unwrap();
    // That it is there already is another matter.
    let there = world.api().apply_in(&of(&epoch), &one).await.unwrap_err();
    assert_eq!((there.status(), is_another_store(&there)), (Some(StatusCode::CONFLICT), false));
}

#[tokio::test]
async fn a_conditional_write_happens_only_to_what_was_seen() {
    let world = World::new().await;
    let content = json!({"a": 1});
    let (status, words) = world.refused(Method::PUT, ROUTE, &[("if-match", "\"1\"")], &content).await;
    assert!(status == 412 && words.contains("is at revision 0, not 1"), "{words}");
    assert_eq!(world.refused(Method::PUT, ROUTE, &[("if-match", "*")], &content).await.0, 412);
    world.send(Method::PUT, ROUTE, &[("if-none-match", "*")], &content).await.unwrap();
    assert_eq!(world.refused(Method::PUT, ROUTE, &[("if-none-match", "*")], &json!({"a": 2})).await.0, 412);
    world.send(Method::PUT, ROUTE, &[("if-match", "\"1\"")], &json!({"a": 2})).await.unwrap();
    assert_eq!(world.refused(Method::PUT, ROUTE, &[("if-match", "\"1\"")], &json!({"a": 3})).await.0, 412);
    assert_eq!(world.refused(Method::DELETE, ROUTE, &[("if-match", "\"1\"")], &Value::Null).await.0, 412);
    assert_eq!(world.refused(Method::PUT, ROUTE, &[("if-match", "2")], &content).await.0, 400);
    let unchanged =
        world.send(Method::GET, ROUTE, &[("if-none-match", "\"1\", \"2\"")], &Value::Null).await.unwrap();
    assert_eq!((unchanged.status, unchanged.body.len()), (StatusCode::NOT_MODIFIED, 0));
    world.send(Method::DELETE, ROUTE, &[("if-match", "\"2\"")], &Value::Null).await.unwrap();
    world.send(Method::PUT, ROUTE, &[("if-none-match", "*")], &content).await.unwrap();
}

#[tokio::test]
async fn of_many_writers_who_saw_the_same_one_succeeds() {
    let world = World::new().await;
    let (_replica, other) = world.replica().await;
    world.put(ROUTE, json!({"n": 0})).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 1..=40 {
        let api = if n % 2 == 0 { world.api() } else { other.clone() };
        let wanted = change(vec![edit("HTTPRoute", "web", json!({"n": n}), Some(1))]);
        tasks
            .spawn(async move { api.apply(&wanted).await.map_err(|error| error.status().unwrap().as_u16()) });
    }
    let ended = tasks.join_all().await;
    assert_eq!(ended.iter().filter(|end| end.is_ok()).count(), 1);
    assert!(ended.iter().flat_map(|end| end.as_ref().err()).all(|status| *status == 409));
    // Without a condition all get through, one after the other.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 100..120 {
        let api = if n % 2 == 0 { world.api() } else { other.clone() };
        let wanted = change(vec![edit("HTTPRoute", "web", json!({"n": n}), None)]);
        tasks.spawn(async move { api.apply(&wanted).await.unwrap().versions[0].revision });
    }
    let mut revisions = tasks.join_all().await;
    revisions.sort_unstable();
    assert_eq!(revisions, (3..23).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_change_of_several_documents_happens_whole_or_not_at_all() {
    let world = World::new().await;
    let both = change(vec![edit("A", "one", json!(1), Some(0)), edit("B", "two", json!(2), None)]);
    let applied = world.api().apply(&both).await.unwrap();
    assert_eq!(applied.versions.len(), 2);
    let half = change(vec![edit("B", "two", json!(3), None), edit("A", "one", json!(3), Some(7))]);
    let error = world.api().apply(&half).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::CONFLICT));
    let ClientError::Refused { problem, .. } = error else { panic!() };
    assert_eq!((&problem.more["document"], &problem.more["current"]), (&json!("shop/A/one"), &json!(1)));
    assert_eq!(world.api().get("shop", "B", "two", None).await.unwrap().content, json!(2));
    let planned = world
        .api()
        .plan(&change(vec![
            edit("A", "one", Value::Null, None),
            edit("B", "two", json!(2), None),
            edit("C", "x", json!({}), None),
        ]))
        .await
        .unwrap();
    let actions: Vec<_> = planned.iter().map(|plan| (plan.action, plan.revision)).collect();
    assert_eq!(actions, [(Action::Delete, 1), (Action::Unchanged, 1), (Action::Create, 0)]);
    assert_eq!(world.api().list(None).await.unwrap().len(), 2, "a plan writes nothing");
    for (bad, word) in [
        (change(vec![]), "1 to 10000 edits"),
        (change(vec![edit("A", "one", json!(1), None), edit("A", "one", json!(2), None)]), "edited twice"),
        (change(vec![edit("A", "One", json!(1), None)]), "lower-case"),
        (change(vec![edit("A/B", "one", json!(1), None)]), "kind `A/B`"),
        (change((0..10_001).map(|n| edit("A", &n.to_string(), json!(1), None)).collect()), "split it"),
    ] {
        let error = world.api().apply(&bad).await.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    // More than is kept of one change; what is told is true.
    let name = |n: usize| format!("{n:05}.{0}.{0}.{0}", "n".repeat(60));
    let many = |count: usize| {
        change((0..count).map(|n| edit("Named", &name(n), json!({"n": n}), Some(0))).collect())
    };
    let error = world.api().apply(&many(4_000)).await.unwrap_err();
    let ClientError::Refused { status, problem, .. } = &error else { panic!("{error}") };
    assert_eq!((status.as_u16(), problem.code.as_deref()), (413, Some("MW5004")));
    let told = error.to_string();
    assert!(told.contains("this change is of 4000 documents") && told.contains("send it in parts"), "{told}");
    let at_once =
        told.split("parts, of ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    assert_eq!(world.api().plan(&many(at_once)).await.unwrap().len(), at_once);
    world.api().apply(&many(at_once)).await.unwrap();
    // Some thousand documents, and one change of more bytes than a transaction of the store holds.
    let many = change((0..5000).map(|n| edit("Many", &format!("n-{n}"), json!({"n": n}), Some(0))).collect());
    let applied = world.api().apply(&many).await.unwrap();
    assert_eq!(applied.versions.len(), 5000);
    let big = |n: u64| json!(format!("{n}").repeat(400_000));
    let large = change((1..=8).map(|n| edit("Large", &format!("n-{n}"), big(n), None)).collect());
    world.api().apply(&large).await.unwrap();
    let epoch = world.api().changes(None, Duration::ZERO).await.unwrap().epoch;
    let seen = Since { epoch, revision: applied.revision, ..Since::default() };
    let changes = world.api().changes(Some(&seen), Duration::ZERO).await.unwrap();
    assert_eq!(changes.documents.len(), 8, "they came at once");
    let world = world.restart().await;
    assert_eq!(world.api().get("shop", "Large", "n-8", None).await.unwrap().content, big(8));
    assert_eq!(world.api().list(Some("Many")).await.unwrap().len(), 5000);
}

#[tokio::test]
async fn a_rollback_is_a_new_revision_with_an_old_content() {
    let world = World::new().await;
    for n in 1..=3 {
        world
            .put(
                ROUTE,
                json!({"n": n, "list": [1, n], "gone": if n < 3 { json!(true) } else { Value::Null }}),
            )
            .await;
    }
    let differences = world.api().diff("shop", "HTTPRoute", "web", 1, 3).await.unwrap();
    let told: Vec<_> =
        differences.iter().map(|d| (d.path.as_str(), d.before.clone(), d.after.clone())).collect();
    assert_eq!(
        told,
        [
            ("/gone", Some(json!(true)), Some(Value::Null)),
            ("/list/1", Some(json!(1)), Some(json!(3))),
            ("/n", Some(json!(1)), Some(json!(3))),
        ]
    );
    let version = world.api().rollback("shop", "HTTPRoute", "web", 1, "").await.unwrap();
    assert_eq!((version.revision, version.message.as_str()), (4, "rolled back to revision 1"));
    assert_eq!(world.api().get("shop", "HTTPRoute", "web", None).await.unwrap().content["n"], 1);
    let history = world.api().history("shop", "HTTPRoute", "web").await.unwrap();
    assert_eq!(history[0].hash, history[3].hash);
    let back = json!({"to": 2});
    assert_eq!(
        world.refused(Method::POST, &format!("{ROUTE}/rollback"), &[("if-match", "\"3\"")], &back).await.0,
        412
    );
    let error = world.api().rollback("shop", "HTTPRoute", "web", 9, "").await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::NOT_FOUND));
}

#[tokio::test]
async fn a_document_is_as_old_as_its_first_revision_until_it_is_removed() {
    let mut world = World::new().await;
    let created = |world: &World, revision| {
        let api = world.api();
        async move { api.get("shop", "HTTPRoute", "web", revision).await.unwrap().created.unwrap() }
    };
    let minute = |n| format!("1970-01-01T00:0{n}:00.000Z");
    for n in 1..=2 {
        world.clock.advance(Duration::from_secs(60));
        world.put(ROUTE, json!({"n": n})).await;
        assert_eq!(created(&world, None).await, minute(1), "an edit keeps it");
    }
    world.clock.advance(Duration::from_secs(60));
    world.api().rollback("shop", "HTTPRoute", "web", 1, "").await.unwrap();
    assert_eq!(created(&world, None).await, minute(1), "so does a rollback");
    world.send(Method::DELETE, ROUTE, &[], &Value::Null).await.unwrap();
    let gone = world.api().get("shop", "HTTPRoute", "web", Some(4)).await.unwrap();
    assert!(gone.version.deleted && gone.created.is_none());
    world.clock.advance(Duration::from_secs(60));
    world.api().rollback("shop", "HTTPRoute", "web", 1, "").await.unwrap();
    for _ in 0..2 {
        assert_eq!(created(&world, None).await, minute(4), "what comes back is a new one");
        assert_eq!(created(&world, Some(2)).await, minute(1), "what it was then");
        assert_eq!(world.api().list(None).await.unwrap()[0].created, Some(minute(4)));
        let told = world.api().changes(None, Duration::ZERO).await.unwrap();
        assert_eq!(told.documents[0].created, Some(minute(4)));
        world = world.restart().await;
    }
}

fn settings_schema(maximum: u32) -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["limit"],
        "properties": {"limit": {"type": "integer", "maximum": maximum}},
        "additionalProperties": false,
    })
}

#[tokio::test]
async fn what_breaks_its_schema_is_not_published() {
    let world = World::new().await;
    let schema = "/v1/documents/default/JSONSchema/settings";
    let settings = "/v1/documents/shop/Settings/cart";
    world.put(schema, settings_schema(10)).await;
    world.put(settings, json!({"limit": 5})).await;
    for bad in [json!({"limit": 11}), json!({"limt": 1}), json!([])] {
        let (status, words) = world.refused(Method::PUT, settings, &[], &bad).await;
        assert!(status == 422 && words.contains("shop/Settings/cart") && words.contains("MW5043"), "{words}");
    }
    let error = world.send(Method::PUT, settings, &[], &json!({"limit": 11})).await.unwrap_err();
    let ClientError::Refused { problem, .. } = error else { panic!() };
    assert_eq!(problem.more["errors"][0]["path"], "/limit");
    // A schema that current documents break is not published, but together with the documents it is.
    let (status, words) = world.refused(Method::PUT, schema, &[], &settings_schema(4)).await;
    assert!(status == 422 && words.contains("shop/Settings/cart"), "{words}");
    let shared =
        Edit { namespace: "default".into(), ..edit("JSONSchema", "settings", settings_schema(4), None) };
    let both = change(vec![shared, edit("Settings", "cart", json!({"limit": 3}), None)]);
    world.api().apply(&both).await.unwrap();
    // A namespace's own schema counts before the shared one.
    world.put("/v1/documents/shop/JSONSchema/settings", json!({"type": "object"})).await;
    world.put(settings, json!({"anything": true})).await;
    let (status, words) =
        world.refused(Method::DELETE, "/v1/documents/shop/JSONSchema/settings", &[], &Value::Null).await;
    assert!(status == 422, "without it the shared one would count, which the document breaks: {words}");
    let (status, words) = world.refused(Method::PUT, schema, &[], &json!({"type": "nonsense"})).await;
    assert!(status == 422 && words.contains("no JSON Schema"), "{words}");
    let elsewhere = json!({"$ref": "https://example.com/schema.json"});
    assert_eq!(world.refused(Method::PUT, schema, &[], &elsewhere).await.0, 422, "nothing is fetched");
}

#[tokio::test]
async fn no_race_leaves_a_document_that_breaks_its_schema() {
    let world = World::new().await;
    let (_replica, other) = world.replica().await;
    let schema = |maximum| change(vec![edit("JSONSchema", "settings", settings_schema(maximum), None)]);
    for round in 0..20 {
        world.api().apply(&schema(1000)).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..10 {
            let (api, strict) = (if n % 2 == 0 { world.api() } else { other.clone() }, schema(10));
            let name = format!("s-{round}-{n}");
            tasks.spawn(async move {
                if n == 5 {
                    _ = api.apply(&strict).await;
                } else {
                    _ = api.apply(&change(vec![edit("Settings", &name, json!({"limit": 500}), None)])).await;
                }
            });
        }
        tasks.join_all().await;
        let strict = world.api().get("shop", "JSONSchema", "settings", None).await.unwrap();
        let settings = world.api().list(Some("Settings")).await.unwrap();
        if strict.content["properties"]["limit"]["maximum"] == 10 {
            assert!(settings.is_empty(), "round {round}: {} documents break the schema", settings.len());
        }
        for document in settings {
            let name = document.version.name;
            world.api().apply(&change(vec![edit("Settings", &name, Value::Null, None)])).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_watch_tells_changes_and_removals_of_what_was_asked_for() {
    let world = World::new().await;
    let api = world.api();
    world.put(ROUTE, json!({"a": 1})).await;
    let all = api.changes(None, Duration::ZERO).await.unwrap();
    assert!(all.reset && all.documents.len() == 1);
    let since = Since { epoch: all.epoch.clone(), revision: all.revision, mark: all.mark.clone() };
    let waiting = {
        let (api, since) = (api.clone(), since.clone());
        tokio::spawn(async move { api.changes(Some(&since), Duration::from_secs(60)).await })
    };
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    world.send(Method::DELETE, ROUTE, &[], &Value::Null).await.unwrap();
    let changes = waiting.await.unwrap().unwrap();
    assert!(!changes.reset && changes.documents.len() == 1 && changes.documents[0].version.deleted);
    let path = format!("/v1/watch?epoch={}&since={}&wait=30ms&kind=Other", since.epoch, since.revision);
    let quiet = value(&world.send(Method::GET, &path, &[], &Value::Null).await.unwrap());
    assert_eq!(
        (&quiet["documents"], &quiet["reset"]),
        (&json!([]), &json!(false)),
        "another kind was asked for"
    );
    // A restart forgets nothing; a restore does, and says so.
    let mut snapshot = Vec::new();
    world.store.snapshot(&mut snapshot).await.unwrap();
    let world = world.restart().await;
    let again = world.api().changes(Some(&since), Duration::from_secs(60)).await.unwrap();
    assert!(!again.reset && again.documents.len() == 1);
    let before = Since { epoch: again.epoch, revision: again.revision, mark: again.mark };
    let waiting = {
        let api = world.api();
        tokio::spawn(async move { api.changes(Some(&before), Duration::from_secs(60)).await })
    };
    tokio::task::yield_now().await;
    world.store.restore(&mut &snapshot[..]).await.unwrap();
    assert!(waiting.await.unwrap().unwrap().reset);
    let (status, words) = world.refused(Method::GET, "/v1/watch?sinse=1", &[], &Value::Null).await;
    assert!(status == 400 && words.contains("sinse"), "{words}");
}

/// A copy has the epoch of the store that it was made of, and counts on from where that was.
#[tokio::test]
async fn a_store_that_went_back_to_an_older_copy_is_read_anew_and_takes_no_change_that_was_made_for_the_later_one()
 {
    let world = World::new().await;
    let place = async |world: &World| {
        let all = world.api().changes(None, Duration::ZERO).await.unwrap();
        Since { epoch: all.epoch, revision: all.revision, mark: all.mark }
    };
    world.put(ROUTE, json!({"a": 1})).await;
    let before = place(&world).await;
    let copy = tempfile::tempdir().unwrap();
    for file in ["store", "store.seal"] {
        std::fs::copy(world.folder.path().join(file), copy.path().join(file)).unwrap();
    }
    world.put(ROUTE, json!({"a": 2})).await;
    let after = place(&world).await;
    assert_eq!((&after.epoch, after.revision), (&before.epoch, before.revision + 1));

    let world = World::in_folder(copy, ManualClock::new()).await;
    let one = change(vec![edit("HTTPRoute", "other", json!({"a": 3}), None)]);
    for revision in [before.revision, after.revision, after.revision + 1] {
        let told = place(&world).await;
        assert_eq!((&told.epoch, told.revision), (&before.epoch, revision));
        let known = world.api().changes(Some(&before), Duration::ZERO).await.unwrap();
        assert!(!known.reset, "what was read before the copy was made is in it");
        assert!(world.api().changes(Some(&after), Duration::ZERO).await.unwrap().reset, "at {revision}");
        let refused = world.api().apply_in(&after, &one).await.map(drop).unwrap_err();
        assert!(is_another_store(&refused), "at {revision}: {refused}");
        world.put(ROUTE, json!({"b": revision})).await;
    }
    world.api().apply_in(&before, &one).await.unwrap();
}

#[tokio::test]
async fn the_author_is_who_calls() {
    let world = World::new().await;
    let ci = world.as_caller(Caller::Token("ci".into()));
    ci.apply(&change(vec![edit("A", "a", json!(1), None)])).await.unwrap();
    let forged = Change { author: Some("ada".into()), ..change(vec![edit("A", "a", json!(2), None)]) };
    assert_eq!(ci.apply(&forged).await.unwrap_err().status(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(world.api().history("shop", "A", "a").await.unwrap()[0].author, "token:ci");
    let nobody = ConfigClient(Client::in_memory("config", world.config.router()));
    assert_eq!(nobody.list(None).await.unwrap_err().status(), Some(StatusCode::UNAUTHORIZED));
    assert_eq!(nobody.apply(&forged).await.unwrap_err().status(), Some(StatusCode::UNAUTHORIZED));
}

#[tokio::test]
async fn what_is_too_large_or_no_document_is_refused() {
    let world = World::new().await;
    let fits = json!("x".repeat(999_990));
    world.put(ROUTE, fits).await;
    let (status, words) = world.refused(Method::PUT, ROUTE, &[], &json!("x".repeat(1_000_000))).await;
    assert!(status == 413 && words.contains("at most 1000000"), "{words}");
    let error = world.client.send(Method::PUT, ROUTE, &[], "{".into()).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::BAD_REQUEST));
    let error = world.client.send(Method::PUT, ROUTE, &[], "null".into()).await.unwrap_err();
    assert!(error.to_string().contains("DELETE removes it"), "{error}");
    let (status, words) =
        world.refused(Method::POST, "/v1/changes", &[], &json!({"edits": [], "msg": ""})).await;
    assert!(status == 400 && words.contains("unknown field `msg`"), "{words}");
    let (status, words) = world.refused(Method::GET, "/v1/nothing", &[], &Value::Null).await;
    assert!(status == 404 && words.contains("has no GET /v1/nothing"), "{words}");
}
