use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::extract::{Query, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Router};
use meshwork_api::apply::{Delete, DocumentName, Files, Rollback, Stored};
use meshwork_api::config::{Change, Edit};
use meshwork_api::{ApplyClient, Client};
use meshwork_base::{Clock, SeededRng, SystemClock};
use meshwork_config::Config;
use meshwork_process::{Caller, Readiness};
use meshwork_store::embedded;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use super::*;
use crate::{Model, Secure, Settings};

const PATIENCE: Duration = Duration::from_secs(30);

/// A config service of which the folder may be another one from one moment to the next.
#[derive(Clone)]
struct Service(Arc<Mutex<Role>>);

/// It ends when it is dropped.
#[derive(Clone)]
struct Role(Router, Arc<Config>);

impl Service {
    async fn new(store: &Path) -> Self {
        Self(Arc::new(Mutex::new(role(store).await)))
    }

    /// It becomes another one, and whoever waits for a change does not hear of it. Gives the one before.
    fn becomes_unseen(&self, other: &Self) -> Role {
        let new = other.0.lock().clone();
        std::mem::replace(&mut *self.0.lock(), new)
    }

    async fn becomes(&self, other: &Self) {
        let old = self.becomes_unseen(other);
        // Whoever waits for a change of the old one hears of it.
        // So it has to be one, however often this is done.
        static CHANGES: AtomicUsize = AtomicUsize::new(0);
        let change = CHANGES.fetch_add(1, Ordering::Relaxed).to_string();
        let metadata = json!({"name": "last", "labels": {"change": change}});
        let content = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        let (namespace, kind, name) = (CLUSTER.to_owned(), "Namespace".to_owned(), "last".to_owned());
        let edits = vec![Edit { namespace, kind, name, content, if_revision: None }];
        let client = ConfigClient(Client::in_memory("old", old.0.clone()));
        client.apply(&Change { message: String::new(), author: None, edits }).await.unwrap();
    }

    fn client(&self) -> ConfigClient {
        let role = Arc::clone(&self.0);
        let ask = move |request: Request| {
            let Role(router, config) = role.lock().clone();
            async move {
                let answer = router.oneshot(request).await;
                drop(config);
                answer
            }
        };
        ConfigClient(Client::in_memory("config", Router::new().fallback(ask)))
    }
}

async fn role(store: &Path) -> Role {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let rng = SeededRng::new(store.as_os_str().as_encoded_bytes().iter().map(|byte| u64::from(*byte)).sum());
    let store = embedded::open(store, embedded::Options::new(Arc::clone(&clock), Box::new(rng))).unwrap();
    let config = Config::start(store, clock).await.unwrap();
    Role(config.router().layer(Extension(Caller::Local)), Arc::new(config))
}

fn settings(start_anyway: bool) -> Settings {
    Settings { folders: Vec::new(), feeds: vec![FEED.to_owned()], start_anyway, ..Settings::folder("") }
}

/// A control plane that keeps what it follows.
async fn keeping(disk: &Path, service: &Service, start_anyway: bool) -> ControlPlane {
    let plane = started(disk, start_anyway).await;
    tokio::spawn(follow(&plane, service.client(), SeededRng::new(1)));
    plane
}

async fn started(disk: &Path, start_anyway: bool) -> ControlPlane {
    let listen = ([127, 0, 0, 1], 0).into();
    let secure = Secure { listen, ..Secure::new(disk.join("control-plane")) };
    loop {
        let clock = Arc::new(SystemClock::new());
        match ControlPlane::start_secure(settings(start_anyway), secure.clone(), clock).await {
            Ok(plane) => return plane,
            // The one before lets go of the store when its tasks have seen that it is gone.
            Err(error) if error.to_string().contains("in use") => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes past the control plane.
async fn write(service: &Service, namespace: &str, content: serde_json::Value) {
    let of = |text: &serde_json::Value| text.as_str().unwrap().to_owned();
    let (kind, name) = (of(&content["kind"]), of(&content["metadata"]["name"]));
    let edits = vec![Edit { namespace: namespace.to_owned(), kind, name, content, if_revision: None }];
    service.client().apply(&Change { message: String::new(), author: None, edits }).await.unwrap();
}

async fn apply(plane: &ControlPlane, namespaces: &[&str]) -> Stored {
    try_to_apply(plane, namespaces).await.unwrap()
}

async fn try_to_apply(
    plane: &ControlPlane,
    namespaces: &[&str],
) -> Result<Stored, meshwork_api::ClientError> {
    let text = |name: &&str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n");
    let files = [("f.yaml".to_owned(), namespaces.iter().map(text).collect())].into();
    let api = ApplyClient(Client::in_memory("control plane", plane.router()));
    api.apply(&Files { files, ..Files::default() }).await
}

async fn diff(plane: &ControlPlane) -> Result<(), meshwork_api::ClientError> {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n".to_owned();
    let files = Files { files: [("f.yaml".to_owned(), text)].into(), ..Files::default() };
    ApplyClient(Client::in_memory("control plane", plane.router())).diff(&files).await.map(drop)
}

async fn delete(plane: &ControlPlane) -> Result<(), meshwork_api::ClientError> {
    let (namespace, kind, name) = (CLUSTER.to_owned(), "Namespace".to_owned(), "a".to_owned());
    let delete = Delete { documents: vec![DocumentName { namespace, kind, name }], ..Delete::default() };
    ApplyClient(Client::in_memory("control plane", plane.router())).delete(&delete).await.map(drop)
}

async fn rollback(plane: &ControlPlane) -> Result<(), meshwork_api::ClientError> {
    let back = Rollback { to: 1, message: String::new(), author: None };
    let api = ApplyClient(Client::in_memory("control plane", plane.router()));
    api.rollback(CLUSTER, "Namespace", "a", &back).await.map(drop)
}

async fn until(plane: &ControlPlane, is_it: impl FnMut(&Model) -> bool) -> Arc<Model> {
    tokio::time::timeout(PATIENCE, plane.until(is_it)).await.expect("it comes to that")
}

fn names(model: &Model) -> BTreeSet<&str> {
    model.objects.keys().map(|key| key.name.as_str()).collect()
}

fn is_told(model: &Model) -> bool {
    model.diagnostics.iter().any(|found| found.message.contains("no resource of the mesh is in it"))
}

/// A feed whose words come through only while it is open.
struct Gate {
    feed: Feed,
    is_open: watch::Sender<bool>,
}

impl Gate {
    fn before(real: Feed) -> Self {
        let (updates, mut told) = tokio::sync::mpsc::channel(1);
        let (is_open, mut open) = watch::channel(true);
        let feed = Feed { source: real.source, updates };
        tokio::spawn(async move {
            while let Some(update) = told.recv().await {
                if open.wait_for(|open| *open).await.is_err() || real.updates.send(update).await.is_err() {
                    return;
                }
            }
        });
        Self { feed, is_open }
    }
}

#[tokio::test]
async fn what_is_in_force_stays_when_the_store_is_emptied_until_something_is_applied() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let plane = ControlPlane::start(settings(true), Arc::new(SystemClock::new())).unwrap();
    tokio::spawn(follow(&plane, service.client(), SeededRng::new(1)));
    until(&plane, |model| model.revision > 0).await;
    apply(&plane, &["a", "b"]).await;
    let before = apply(&plane, &["c"]).await;

    service.becomes(&Service::new(&disk.path().join("2")).await).await;
    let model = until(&plane, is_told).await;
    assert!(names(&model).is_superset(&["a", "b", "c"].into()), "{:?}", names(&model));

    // Whoever changes one thing as ever does not take away all others.
    let refused = try_to_apply(&plane, &["b", "d"]).await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(StatusCode::CONFLICT), Some("MW4110")));
    assert!(refused.to_string().contains("/Namespace/a"), "{refused}");
    let meshwork_api::ClientError::Refused { problem, .. } = &refused else { panic!("{refused}") };
    let left_out = problem.more["leftOut"].as_array().unwrap();
    assert!(
        left_out.contains(&json!("default/Namespace/c")) && !left_out.contains(&json!("default/Namespace/b"))
    );
    let all: Vec<&str> = names(&model).into_iter().chain(["d"]).collect();
    let stored = apply(&plane, &all).await;
    assert!(stored.config_revision < before.config_revision, "it has been read back from the new one");
    let model = plane.model();
    assert_eq!((names(&model), is_told(&model)), (all.into_iter().collect(), false));

    // What holds something is taken as it is: somebody has put it there.
    let restored = Service::new(&disk.path().join("3")).await;
    let edit = |name: &str| Edit {
        namespace: CLUSTER.to_owned(),
        kind: "Namespace".to_owned(),
        name: name.to_owned(),
        content: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        if_revision: None,
    };
    let change = Change { message: String::new(), author: None, edits: vec![edit("restored")] };
    restored.client().apply(&change).await.unwrap();
    service.becomes(&restored).await;
    let model = until(&plane, |model| !names(model).contains("b")).await;
    assert_eq!(names(&model), ["restored"].into());
}

#[tokio::test]
async fn what_never_was_valid_need_not_be_written_again() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let plane = keeping(disk.path(), &service, false).await;
    until(&plane, |model| model.revision > 0).await;
    apply(&plane, &["a"]).await;
    // Past the control plane, which would not take it.
    let content = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bad"}, "spek": 1});
    let (namespace, kind, name) = (CLUSTER.to_owned(), "Namespace".to_owned(), "bad".to_owned());
    let edits = vec![Edit { namespace, kind, name, content, if_revision: None }];
    service.client().apply(&Change { message: String::new(), author: None, edits }).await.unwrap();
    until(&plane, |model| model.rejections == 1).await;

    service.becomes(&Service::new(&disk.path().join("2")).await).await;
    let model = until(&plane, is_told).await;
    let all: Vec<&str> = names(&model).into_iter().collect();
    apply(&plane, &all).await;
    assert_eq!(names(&plane.model()), all.into_iter().collect());
}

#[tokio::test]
async fn a_change_does_not_reach_a_store_that_was_emptied_and_has_not_been_read_yet() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let plane = ControlPlane::start(settings(true), Arc::new(SystemClock::new())).unwrap();
    tokio::spawn(follow(&plane, service.client(), SeededRng::new(1)));
    until(&plane, |model| model.revision > 0).await;
    apply(&plane, &["a", "b"]).await;

    let emptied = Service::new(&disk.path().join("2")).await;
    let _old = service.becomes_unseen(&emptied);
    let refused = try_to_apply(&plane, &["c"]).await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(StatusCode::CONFLICT), Some("MW4110")));
    assert!(refused.to_string().contains("/Namespace/a"), "{refused}");
    assert_eq!(emptied.client().list(None).await.unwrap(), [], "nothing was written");
    assert_eq!(names(&plane.model()), ["a", "b"].into());

    // One that holds something else has to be looked at first.
    let restored = Service::new(&disk.path().join("3")).await;
    let content = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "r"}});
    let (namespace, kind, name) = (CLUSTER.to_owned(), "Namespace".to_owned(), "r".to_owned());
    let edits = vec![Edit { namespace, kind, name, content, if_revision: None }];
    restored.client().apply(&Change { message: String::new(), author: None, edits }).await.unwrap();
    apply(&plane, &["a", "b"]).await;
    let _old = service.becomes_unseen(&restored);
    let refused = try_to_apply(&plane, &["c"]).await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(StatusCode::CONFLICT), Some("MW5045")));
    apply(&plane, &["c"]).await;
    assert_eq!(names(&plane.model()), ["c", "r"].into());
}

#[tokio::test]
async fn a_change_in_another_store_is_acknowledged_when_it_is_read_from_that_one() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let plane = ControlPlane::start(settings(true), Arc::new(SystemClock::new())).unwrap();
    let gate = Gate::before(plane.feed(FEED).unwrap());
    let feed = Some(gate.feed.clone());
    tokio::spawn(follow_into(&plane, feed, service.client(), SeededRng::new(1)));
    until(&plane, |model| model.revision > 0).await;
    for name in ["a", "b", "d", "e"] {
        apply(&plane, &[name]).await;
    }

    // An older backup: its revisions are small.
    let restored = Service::new(&disk.path().join("2")).await;
    let content = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "r"}});
    let (namespace, kind, name) = (CLUSTER.to_owned(), "Namespace".to_owned(), "r".to_owned());
    let edits = vec![Edit { namespace, kind, name, content, if_revision: None }];
    restored.client().apply(&Change { message: String::new(), author: None, edits }).await.unwrap();
    gate.is_open.send_replace(false);
    let _old = service.becomes_unseen(&restored);
    let writing = async {
        loop {
            match try_to_apply(&plane, &["c"]).await {
                Err(refused) if refused.code() == Some("MW5045") => {}
                applied => return (applied, plane.model()),
            }
        }
    };
    let mut writing = std::pin::pin!(writing);
    let early = tokio::time::timeout(Duration::from_millis(500), &mut writing).await;
    assert!(early.is_err(), "nothing is read from it yet: {:?}", early.unwrap().0);
    gate.is_open.send_replace(true);
    let (applied, model) = writing.await;
    assert_eq!((applied.unwrap().config_revision, names(&model)), (2, ["c", "r"].into()));
}

/// Its epoch is the same, and revisions that are counted there anew have been read from the later one.
#[tokio::test]
async fn a_change_in_an_older_copy_of_the_store_is_acknowledged_when_it_is_read_from_that() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let plane = ControlPlane::start(settings(true), Arc::new(SystemClock::new())).unwrap();
    tokio::spawn(follow(&plane, service.client(), SeededRng::new(1)));
    until(&plane, |model| model.revision > 0).await;
    apply(&plane, &["a"]).await;
    for end in ["", ".seal"] {
        let file = |name: &str| disk.path().join(format!("{name}{end}"));
        std::fs::copy(file("1"), file("copy")).unwrap();
    }
    apply(&plane, &["b"]).await;
    apply(&plane, &["c"]).await;

    let _old = service.becomes_unseen(&Service::new(&disk.path().join("copy")).await);
    let refused = try_to_apply(&plane, &["d"]).await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(StatusCode::CONFLICT), Some("MW5045")), "{refused}");
    assert_eq!(names(&plane.model()), ["a"].into(), "it has been read by now");
    assert_eq!(plane.config.get().unwrap().found().back, 1, "and is known for what it is");
    let applied = apply(&plane, &["d"]).await;
    assert_eq!((applied.config_revision, names(&plane.model())), (2, ["a", "d"].into()));
}

/// What could be asked of what is new.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct BeforeMarks {
    #[serde(rename = "epoch")]
    _epoch: Option<String>,
    #[serde(rename = "since")]
    _since: Option<u64>,
    #[serde(rename = "wait")]
    _wait: Option<String>,
    #[serde(rename = "namespace")]
    _namespace: Option<String>,
    #[serde(rename = "kind")]
    _kind: Option<String>,
}

fn refusal(why: &str) -> Response {
    (
        StatusCode::BAD_REQUEST,
        axum::Json(json!({"title": "a question that is not understood", "detail": why})),
    )
        .into_response()
}

/// It tells no marks, and refuses a question that has something which it does not know.
fn before_marks(role: Role) -> Role {
    let Role(router, config) = role;
    let ask = move |request: Request| {
        let router = router.clone();
        async move {
            let asks_what_is_new = request.uri().path() == "/v1/watch";
            if asks_what_is_new && let Err(unknown) = Query::<BeforeMarks>::try_from_uri(request.uri()) {
                return Ok(refusal(&unknown.body_text()));
            }
            let answer = router.oneshot(request).await?;
            if !asks_what_is_new {
                return Ok(answer);
            }
            let told = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            let mut told: serde_json::Value = serde_json::from_slice(&told).unwrap();
            told.as_object_mut().unwrap().remove("mark");
            Ok::<_, std::convert::Infallible>(axum::Json(told).into_response())
        }
    };
    Role(Router::new().fallback(ask), config)
}

#[tokio::test]
async fn a_service_that_is_put_back_to_a_version_before_marks_is_followed_on() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let plane = ControlPlane::start(settings(true), Arc::new(SystemClock::new())).unwrap();
    tokio::spawn(follow(&plane, service.client(), SeededRng::new(1)));
    until(&plane, |model| model.revision > 0).await;
    apply(&plane, &["a"]).await;
    assert_ne!(plane.config.get().unwrap().found().read.mark, "", "the newer one has told one");

    let newer = service.0.lock().clone();
    *service.0.lock() = before_marks(newer.clone());
    for name in ["b", "c"] {
        let content = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        write(&service, CLUSTER, content).await;
    }
    until(&plane, |model| names(model).contains("c")).await;
    apply(&plane, &["d"]).await;
    assert_eq!(names(&plane.model()), ["a", "b", "c", "d"].into());
    // And the newer one tells marks again, once it is asked.
    *service.0.lock() = newer;
    apply(&plane, &["e"]).await;
    apply(&plane, &["f"]).await;
    assert_ne!(plane.config.get().unwrap().found().read.mark, "");
}

/// It refuses the next question about what is new, for something else than its mark, and tells the one behind it.
fn refusing_one(role: Role, next: mpsc::Sender<String>) -> Role {
    let Role(router, config) = role;
    let refused = Arc::new(AtomicBool::new(false));
    let ask = move |request: Request| {
        let (router, next, refused) = (router.clone(), next.clone(), Arc::clone(&refused));
        async move {
            if request.uri().path() == "/v1/watch" {
                if !refused.swap(true, Ordering::Relaxed) {
                    let why =
                        "unknown field `later`, expected one of `epoch`, `since`, `mark`, `wait`, `kind`";
                    return Ok(refusal(why));
                }
                drop(next.try_send(request.uri().query().unwrap_or_default().to_owned()));
            }
            router.oneshot(request).await
        }
    };
    Role(Router::new().fallback(ask), config)
}

#[tokio::test]
async fn who_is_refused_for_something_else_asks_with_the_mark_again() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let plane = ControlPlane::start(settings(true), Arc::new(SystemClock::new())).unwrap();
    tokio::spawn(follow(&plane, service.client(), SeededRng::new(1)));
    until(&plane, |model| model.revision > 0).await;
    apply(&plane, &["a"]).await;
    let (next, mut asked) = mpsc::channel(8);
    let role = refusing_one(service.0.lock().clone(), next);
    *service.0.lock() = role;
    // The question that waits is answered by this.
    write(&service, CLUSTER, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}))
        .await;
    let asked = asked.recv().await.unwrap();
    assert!(asked.contains("mark="), "{asked}");
}

#[tokio::test]
async fn of_an_emptied_store_diff_delete_and_rollback_say_what_apply_says() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let plane = ControlPlane::start(settings(true), Arc::new(SystemClock::new())).unwrap();
    tokio::spawn(follow(&plane, service.client(), SeededRng::new(1)));
    until(&plane, |model| model.revision > 0).await;
    // Each of the first two is the first that finds it so.
    for number in [0, 1] {
        apply(&plane, &["a", "b"]).await;
        let _old =
            service.becomes_unseen(&Service::new(&disk.path().join(format!("emptied {number}"))).await);
        let first = if number == 0 { diff(&plane).await } else { delete(&plane).await };
        for refused in [first, diff(&plane).await, delete(&plane).await, rollback(&plane).await] {
            let refused = refused.unwrap_err();
            let told = (refused.status(), refused.code());
            assert_eq!(told, (Some(StatusCode::CONFLICT), Some("MW4110")), "{refused}");
            assert!(refused.to_string().contains("the config service has lost its store"), "{refused}");
        }
        assert_eq!(names(&plane.model()), ["a", "b"].into());
    }
}

#[tokio::test]
async fn a_control_plane_that_finds_the_store_emptied_tells_proxies_nothing_until_something_is_applied() {
    let disk = tempfile::tempdir().unwrap();
    let store = |name: &str| disk.path().join(name);
    let service = Service::new(&store("1")).await;
    let plane = keeping(disk.path(), &service, false).await;
    until(&plane, |model| model.revision > 0).await;
    apply(&plane, &["a"]).await;
    drop(plane);

    let service = Service::new(&store("2")).await;
    let plane = keeping(disk.path(), &service, false).await;
    let model = until(&plane, |model| !model.lacking.is_empty()).await;
    assert!(is_told(&model) && model.lacking[0].contains("restore its folder"), "{:?}", model.lacking);
    assert_eq!((model.revision, plane.hub().revision()), (0, None), "proxies go on with what they have");
    let readiness = Readiness::new();
    let (waiting, synced) = (plane.clone(), readiness.condition("synced"));
    let telling = tokio::spawn(async move { waiting.tell_synced(synced).await });
    let said = async {
        while !readiness.reasons().concat().contains("no resource of the mesh") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, said).await.expect("readiness says why");
    // It has not what was in force, but knows of it.
    let refused = try_to_apply(&plane, &["b"]).await.unwrap_err();
    assert_eq!((refused.status(), refused.code()), (Some(StatusCode::CONFLICT), Some("MW4110")));
    assert!(
        refused.to_string().contains("of 1 objects this change leaves out 1: default/Namespace/a"),
        "{refused}"
    );
    apply(&plane, &["a", "b"]).await;
    telling.await.unwrap();
    assert_eq!((names(&plane.model()), readiness.is_ready()), (["a", "b"].into(), true));
    drop(plane);

    // Who wants it so has it so; and where there was nothing, nothing is lost.
    let service = Service::new(&store("3")).await;
    let plane = keeping(disk.path(), &service, true).await;
    let model = until(&plane, |model| model.revision > 0).await;
    assert_eq!(names(&model), BTreeSet::new());
    drop(plane);
    let service = Service::new(&store("4")).await;
    let plane = keeping(disk.path(), &service, false).await;
    let model = until(&plane, |model| model.revision > 0).await;
    assert_eq!(names(&model), BTreeSet::new());
}

#[tokio::test]
async fn a_control_plane_that_cannot_read_what_was_in_force_takes_nothing_for_removed() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let plane = keeping(disk.path(), &service, false).await;
    until(&plane, |model| model.revision > 0).await;
    apply(&plane, &["a"]).await;
    drop(plane);

    let emptied = Service::new(&disk.path().join("2")).await;
    let plane = started(disk.path(), false).await;
    plane.trust().unwrap().followed().close().await;
    tokio::spawn(follow(&plane, emptied.client(), SeededRng::new(1)));
    let published = plane.until(|model| model.revision > 0);
    assert!(tokio::time::timeout(Duration::from_millis(500), published).await.is_err());
}

#[tokio::test]
async fn a_store_that_could_not_be_read_to_its_end_is_not_the_one_before_an_emptied_one() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let bad = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bad"}, "spek": 1});
    write(&service, CLUSTER, bad).await;
    {
        let mut role = service.0.lock();
        let Role(router, config) = role.clone();
        let ask = move |request: Request| {
            let router = router.clone();
            async move {
                if request.uri().path().contains("history") {
                    return Ok(axum::response::IntoResponse::into_response(StatusCode::SERVICE_UNAVAILABLE));
                }
                router.oneshot(request).await
            }
        };
        *role = Role(Router::new().fallback(ask), config);
    }
    let mut source = Source::new(service.client(), false);
    source.before =
        Some(Before { epoch: "what was followed by the process before".to_owned(), is_empty: false });
    assert!(source.step().await.is_err(), "there is no history");
    let _old = service.becomes_unseen(&Service::new(&disk.path().join("2")).await);
    assert!(matches!(source.step().await, Ok(Step::Emptied { .. })));
}

#[tokio::test]
async fn what_could_not_be_written_down_is_written_with_the_next_answer() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let mut source = Source::new(service.client(), false);
    assert!(matches!(source.step().await, Ok(Step::Changes(_))));
    let plane = started(disk.path(), false).await;
    let stores = plane.trust().unwrap().followed();
    // As by a failure between two transactions.
    let half = ["default/Namespace/gone".to_owned()].into();
    stores.keep_with(FEED, "the one before", &BTreeSet::new(), &half).await.unwrap();
    stores.close().await;
    source.remember(Some(&stores)).await;
    drop((plane, stores));

    let plane = started(disk.path(), false).await;
    let stores = plane.trust().unwrap().followed();
    source.remember(Some(&stores)).await;
    let now = source.before.clone().unwrap().written();
    assert_eq!(stores.epoch(FEED).await.unwrap(), Some(now));
    assert_eq!(stores.names(FEED).await.unwrap(), BTreeSet::new());
}

#[tokio::test]
async fn what_was_stored_where_apply_does_not_store_it_can_be_applied_again() {
    let disk = tempfile::tempdir().unwrap();
    let service = Service::new(&disk.path().join("1")).await;
    let content = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    write(&service, "prod", content).await;
    let plane = ControlPlane::start(settings(true), Arc::new(SystemClock::new())).unwrap();
    tokio::spawn(follow(&plane, service.client(), SeededRng::new(1)));
    until(&plane, |model| names(model).contains("a")).await;

    let _old = service.becomes_unseen(&Service::new(&disk.path().join("2")).await);
    let refused = try_to_apply(&plane, &["b"]).await.unwrap_err();
    assert!(refused.to_string().contains("default/Namespace/a"), "{refused}");
    apply(&plane, &["a", "b"]).await;
    assert_eq!(names(&plane.model()), ["a", "b"].into());
}

#[test]
fn a_store_that_was_written_down_without_more_had_something_in_it() {
    for (text, epoch, is_empty) in [("1f", "1f", false), ("1f empty", "1f", true)] {
        let before = Before::parse(text);
        assert_eq!(
            (before.epoch.as_str(), before.is_empty, before.written().as_str()),
            (epoch, is_empty, text)
        );
    }
}
