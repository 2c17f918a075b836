//! Registry and config service → control plane → a proxy, all in one process, each by its API.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::IntoResponse as _;
use axum::{Extension, Router};
use http::StatusCode;
use meshwork_api::apply::{Delete, DocumentName, Files, Rollback, Stored};
use meshwork_api::config::{Action, Change as Edits, Edit};
use meshwork_api::registry::{Port, Registration, sidecar};
use meshwork_api::{ApplyClient, Client, ClientError, ConfigClient, RegistryClient};
use meshwork_base::{Clock, ManualClock, SeededRng, SpiffeId, SystemClock};
use meshwork_config::Config;
use meshwork_control_plane::{ControlPlane, Model, Settings, config, registry};
use meshwork_messages::{type_url, v1};
use meshwork_process::Caller;
use meshwork_registry::{Options, Registry};
use meshwork_resources::{Object, ObjectKind};
use meshwork_store::{Store, embedded};
use meshwork_xds::client::{self, Change, Handle, Updates};
use prost::Message as _;
use serde_json::json;

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: meshwork
  listeners:
    - {name: http, port: 8080, protocol: HTTP}
";

fn route(path: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: a, namespace: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
    - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]
      backendRefs: [{{name: web, port: 80}}]
"
    )
}

fn store(folder: &tempfile::TempDir, name: &str, clock: &Arc<dyn Clock>) -> Store {
    let options = embedded::Options::new(Arc::clone(clock), Box::new(SeededRng::new(5)));
    embedded::open(&folder.path().join(name), options).unwrap()
}

/// A role that can be away.
#[derive(Clone, Default)]
struct Away(Arc<AtomicBool>);

impl Away {
    fn client(&self, name: &str, role: Router) -> Client {
        let away = Arc::clone(&self.0);
        let layer = middleware::from_fn(move |request: Request, next: Next| {
            let away = Arc::clone(&away);
            async move {
                // Before and after: a question that waits is cut off as by a lost connection.
                if away.load(Ordering::SeqCst) {
                    return StatusCode::BAD_GATEWAY.into_response();
                }
                let answer = next.run(request).await;
                if away.load(Ordering::SeqCst) { StatusCode::BAD_GATEWAY.into_response() } else { answer }
            }
        });
        Client::in_memory(name, role.layer(layer))
    }

    fn set(&self, away: bool) {
        self.0.store(away, Ordering::SeqCst);
    }
}

struct World {
    registry: Registry,
    registry_away: Away,
    config: Config,
    config_away: Away,
    plane: ControlPlane,
    /// The config service's.
    time: ManualClock,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let folder = tempfile::tempdir().unwrap();
        let rng = Box::new(SeededRng::new(9));
        let registry =
            Registry::start(store(&folder, "registry", &clock), Arc::clone(&clock), rng, Options::default());
        let registry = registry.await.unwrap();
        let time = ManualClock::new();
        // Years after what its documents may say of themselves.
        time.advance(Duration::from_hours(24 * 365 * 50));
        let clock: Arc<dyn Clock> = Arc::new(time.clone());
        let config = Config::start(store(&folder, "config", &clock), Arc::clone(&clock)).await.unwrap();
        let (registry_away, config_away) = (Away::default(), Away::default());
        let plane = plane(&registry, &registry_away, &config, &config_away);
        Self { registry, registry_away, config, config_away, plane, time, _folder: folder }
    }

    fn registry(&self) -> RegistryClient {
        let caller = Caller::Spiffe(SpiffeId::parse(ID).unwrap());
        RegistryClient(Client::in_memory("registry", self.registry.router().layer(Extension(caller))))
    }

    async fn register(&self, id: &str, address: &str) {
        let metadata = [(sidecar::MESH_PORT, "15006"), (sidecar::SERVICE_PORT, "80")];
        let port = Port { port: 41_000, protocol: Some("http".to_owned()) };
        let registration = Registration {
            address: address.to_owned(),
            ports: [("http".to_owned(), port)].into(),
            workload: Some("web".to_owned()),
            metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..Registration::default()
        };
        self.registry().register("shop", "web", id, &registration).await.unwrap();
    }

    fn config(&self) -> ConfigClient {
        ConfigClient(Client::in_memory("config", self.config.router().layer(Extension(Caller::Local))))
    }

    fn api(&self) -> ApplyClient {
        ApplyClient(Client::in_memory("control plane", self.plane.router()))
    }

    async fn apply(&self, texts: &[&str]) -> Result<Stored, ClientError> {
        let files = texts.iter().enumerate().map(|(n, text)| (format!("{n}.yaml"), (*text).to_owned()));
        let why = "because".to_owned();
        let author = Some("ann".to_owned());
        self.api().apply(&Files { files: files.collect(), message: why, author }).await
    }

    /// Writes past the control plane's checks.
    async fn write(&self, content: serde_json::Value) {
        let (namespace, kind, name) = ("shop".to_owned(), "HTTPRoute".to_owned(), "a".to_owned());
        let edit = Edit { namespace, kind, name, content, if_revision: None };
        self.config()
            .apply(&Edits { message: String::new(), author: None, edits: vec![edit] })
            .await
            .unwrap();
    }

    async fn until(&self, is_it: impl FnMut(&Model) -> bool) -> Arc<Model> {
        until(&self.plane, is_it).await
    }
}

async fn until(plane: &ControlPlane, is_it: impl FnMut(&Model) -> bool) -> Arc<Model> {
    let found = tokio::time::timeout(Duration::from_secs(30), plane.until(is_it)).await;
    found.expect("the model gets there")
}

fn plane(registry: &Registry, registry_away: &Away, config: &Config, config_away: &Away) -> ControlPlane {
    let mut feeds = registry::FEEDS.map(str::to_owned).to_vec();
    feeds.push(config::FEED.to_owned());
    let settings = Settings { folders: Vec::new(), feeds, ..Settings::folder("") };
    let plane = ControlPlane::start(settings, Arc::new(SystemClock::new())).unwrap();
    let client = registry_away.client("registry", registry.router().layer(Extension(Caller::Local)));
    tokio::spawn(registry::follow(plane.clone(), RegistryClient(client), SeededRng::new(1)));
    let client = config_away.client("config", config.router().layer(Extension(Caller::Local)));
    tokio::spawn(config::follow(&plane, ConfigClient(client), SeededRng::new(2)));
    plane
}

const ID: &str = "spiffe://mesh.local/ns/shop/sa/web";

/// A proxy that holds what it is told and puts it into effect.
struct Proxy {
    handle: Handle,
    updates: Updates,
    held: BTreeMap<String, Arc<v1::Resource>>,
}

impl Proxy {
    fn join(plane: &ControlPlane) -> Self {
        let node =
            v1::Node { id: "gateway/1".into(), role: "gateway".into(), workers: 1, ..v1::Node::default() };
        let types = [
            type_url::<v1::Listener>(),
            type_url::<v1::Route>(),
            type_url::<v1::Service>(),
            type_url::<v1::EndpointSlice>(),
            type_url::<v1::Workload>(),
        ];
        let settings = client::Settings::new(node).all_of(types);
        let clock = Arc::new(SystemClock::new());
        let (handle, updates, driver) =
            client::start(settings, None, plane.connector(), clock, SeededRng::new(1));
        tokio::spawn(driver);
        Self { handle, updates, held: BTreeMap::new() }
    }

    /// Takes batches until what is held is so; gives the names of what changed meanwhile.
    async fn until(&mut self, mut is_it: impl FnMut(&Self) -> bool) -> Vec<String> {
        let mut changed = Vec::new();
        while !is_it(self) {
            changed.extend(self.step().await);
        }
        changed
    }

    async fn step(&mut self) -> Vec<String> {
        let next = tokio::time::timeout(Duration::from_secs(30), self.updates.next()).await;
        let batch = next.expect("a change arrives").expect("the driver lives");
        let mut changed = Vec::new();
        for change in &batch.changes {
            changed.push(match change {
                Change::Upsert(key, resource) => {
                    self.held.insert(key.to_string(), Arc::clone(resource));
                    format!("+{key}")
                }
                Change::Remove(key) => {
                    self.held.remove(&key.to_string());
                    format!("-{key}")
                }
                Change::Unsupported { .. } => panic!("nothing requires anything"),
            });
        }
        self.handle.settle(batch.id, Vec::new()).await.unwrap();
        if let Some(revision) = batch.revision {
            self.handle.effective(revision).await.unwrap();
        }
        changed
    }

    /// The addresses of endpoints that may be picked.
    fn picks(&self) -> Vec<String> {
        let slices = self.held.iter().filter(|(key, _)| key.starts_with("EndpointSlice "));
        let endpoints =
            slices.flat_map(|(_, slice)| v1::EndpointSlice::decode(slice.body.clone()).unwrap().endpoints);
        let healthy = endpoints.filter(|endpoint| endpoint.health() == v1::endpoint::Health::Healthy);
        healthy.flat_map(|endpoint| endpoint.addresses).collect()
    }

    fn path(&self) -> Option<String> {
        let route = self.held.get("Route HTTPRoute/shop/a")?;
        let text = String::from_utf8_lossy(&route.body).into_owned();
        ["/one", "/two", "/three"].into_iter().find(|path| text.contains(path)).map(str::to_owned)
    }
}

#[tokio::test]
async fn an_instance_that_comes_or_goes_is_one_endpoint_slice_and_one_workload() {
    let world = World::new().await;
    world.register("web-1", "127.0.0.2").await;
    let mut proxy = Proxy::join(&world.plane);
    proxy.until(|proxy| proxy.picks() == ["127.0.0.2"]).await;
    assert!(proxy.held.contains_key("Workload shop/web-1"), "{:?}", proxy.held.keys());
    world.register("web-2", "127.0.0.3").await;
    let mut changed = proxy.until(|proxy| proxy.picks() == ["127.0.0.2", "127.0.0.3"]).await;
    changed.sort();
    assert_eq!(changed, ["+EndpointSlice registry/shop/web/web-2", "+Workload shop/web-2"]);
    world.registry().deregister("shop", "web", "web-1", None).await.unwrap();
    let changed = proxy.until(|proxy| proxy.picks() == ["127.0.0.3"]).await;
    // Who was told of it before it went may still call it.
    assert_eq!(changed, ["-EndpointSlice registry/shop/web/web-1"]);
}

#[tokio::test]
async fn nothing_changes_while_registry_and_config_service_are_away() {
    let world = World::new().await;
    world.register("web-1", "127.0.0.2").await;
    world.apply_when_synced(&[GATEWAY, &route("/one")]).await;
    let mut proxy = Proxy::join(&world.plane);
    proxy.until(|proxy| proxy.picks() == ["127.0.0.2"] && proxy.path().is_some()).await;
    world.registry_away.set(true);
    world.config_away.set(true);
    // Changes that the control plane cannot see; they also end its open questions, so that it fails and tries again.
    world.register("web-2", "127.0.0.3").await;
    world.write(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "spec": {}})).await;
    let error = world.apply(&[&route("/two")]).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::BAD_GATEWAY), "{error}");
    let model = world.plane.model();
    assert!(model.objects.keys().any(|key| key.to_string() == "HTTPRoute shop/a"));
    assert_eq!(proxy.picks(), ["127.0.0.2"]);
    world.registry_away.set(false);
    proxy.until(|proxy| proxy.picks() == ["127.0.0.2", "127.0.0.3"]).await;
    assert_eq!(proxy.path().as_deref(), Some("/one"));
    world.config_away.set(false);
    proxy.until(|proxy| proxy.path().is_none()).await;
}

impl World {
    async fn apply_when_synced(&self, texts: &[&str]) -> Stored {
        self.plane.synced().await;
        self.apply(texts).await.unwrap()
    }
}

#[tokio::test]
async fn nothing_is_published_before_both_were_read_once() {
    let world = World::new().await;
    let away = Away::default();
    away.set(true);
    let plane = plane(&world.registry, &Away::default(), &world.config, &away);
    let api = ApplyClient(Client::in_memory("control plane", plane.router()));
    let files = [("a.yaml".to_owned(), GATEWAY.to_owned())].into();
    let error = api.apply(&Files { files, ..Files::default() }).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::SERVICE_UNAVAILABLE), "{error}");
    assert_eq!(plane.model().revision, 0);
    away.set(false);
    until(&plane, |model| model.revision > 0).await;
}

#[tokio::test]
async fn what_is_applied_is_in_effect_and_can_be_rolled_back() {
    let world = World::new().await;
    world.plane.synced().await;
    let mut proxy = Proxy::join(&world.plane);
    let first = world.apply(&[GATEWAY, &route("/one")]).await.unwrap();
    proxy.until(|proxy| proxy.path().as_deref() == Some("/one")).await;
    let second = world.apply(&[&route("/two")]).await.unwrap();
    assert!(second.revision > first.revision && second.config_revision > first.config_revision);
    assert_eq!(second.versions[0].revision, 2);
    let api = world.api();
    let (waited, changed) = tokio::join!(
        api.effective(second.revision, "30s"),
        proxy.until(|proxy| proxy.path().as_deref() == Some("/two"))
    );
    waited.unwrap();
    assert_eq!(changed, ["+Route HTTPRoute/shop/a"], "one small message");
    let model = world.plane.model();
    let object = model.objects.values().find(|object| object.meta.name.as_str() == "a").unwrap();
    assert_eq!(&*object.source.file, "config:shop/HTTPRoute/a@2");
    assert_eq!(object.meta.generation, Some(2));

    let back = Rollback { to: 1, message: String::new(), author: Some("bob".to_owned()) };
    let third = api.rollback("shop", "route", "a", &back).await.unwrap();
    let (waited, _) = tokio::join!(
        api.effective(third.revision, "30s"),
        proxy.until(|proxy| proxy.path().as_deref() == Some("/one"))
    );
    waited.unwrap();
    let history = api.history("shop", "HTTPRoute", "a").await.unwrap();
    let told: Vec<_> = history.iter().map(|v| (v.revision, &*v.author, &*v.message)).collect();
    let expected = [
        (3, "local:bob", "rolled back to revision 1"),
        (2, "local:ann", "because"),
        (1, "local:ann", "because"),
    ];
    assert_eq!(told, expected);
    let again = world.apply(&[&route("/one")]).await.unwrap();
    assert_eq!((again.versions[0].revision, again.revision), (3, third.revision), "nothing new");
    let missing = Rollback { to: 9, message: String::new(), author: None };
    let error = api.rollback("shop", "route", "a", &missing).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::NOT_FOUND), "{error}");
}

/// The ages of the routes in effect, by name, as `get` shows them.
fn ages(model: &Model) -> BTreeMap<String, String> {
    let routes = model.objects.values().filter(|object| object.kind.name() == ObjectKind::HTTPRoute);
    let ages = routes.map(|object| {
        let shown = model.to_json(object);
        let text = |field: &str| shown["metadata"][field].as_str().unwrap_or_default().to_owned();
        (text("name"), text("creationTimestamp"))
    });
    ages.collect()
}

#[tokio::test]
async fn a_document_is_as_old_as_the_config_service_says_and_not_as_it_says_itself() {
    let world = World::new().await;
    let first = route("/old").replace("name: a,", "name: z,");
    let applied = world.apply_when_synced(&[GATEWAY, &first]).await;
    let model = world.until(|model| model.revision >= applied.revision).await;
    let z = ages(&model)["z"].clone();
    assert_eq!(z, applied.versions[1].time, "{applied:?}");
    // Who is younger has nothing of it, whatever it says, and is told before it is stored.
    let younger = route("/old").replace("shop}", "shop, creationTimestamp: '1970-01-01T00:00:00Z'}");
    world.time.advance(Duration::from_secs(1));
    let applied = world.apply(&[&younger]).await.unwrap();
    let shadowed = |found: &serde_json::Value| found["code"] == "MW2014";
    let warned = applied.warnings.iter().find(|found| shadowed(found)).unwrap();
    let warned = warned["message"].as_str().unwrap();
    assert!(warned.contains("rule 0 of HTTPRoute shop/z, which is older, has the same match"), "{warned}");
    let model = world.until(|model| model.revision >= applied.revision).await;
    let of_both = ages(&model);
    assert!(of_both["z"] == z && of_both["a"] > z, "{of_both:?}");
    let stored = world.config().get("shop", "HTTPRoute", "a", None).await.unwrap();
    assert_eq!(stored.content["metadata"]["creationTimestamp"], serde_json::Value::Null);
    // Nor is it believed where it was written into the config service itself; an edit keeps the age.
    let meta = json!({"name": "z", "namespace": "shop", "creationTimestamp": "2099-01-01T00:00:00Z"});
    let mut edited = world.config().get("shop", "HTTPRoute", "z", None).await.unwrap();
    edited.content["metadata"] = meta;
    let edit = Edit {
        namespace: "shop".into(),
        kind: "HTTPRoute".into(),
        name: "z".into(),
        content: edited.content,
        if_revision: None,
    };
    let change = Edits { message: String::new(), author: None, edits: vec![edit] };
    world.config().apply(&change).await.unwrap();
    let is_edited = |object: &Arc<Object>| {
        object.meta.name.as_str() == "z" && object.source.file.ends_with("HTTPRoute/z@2")
    };
    let model = world.until(|model| model.objects.values().any(is_edited)).await;
    assert_eq!(ages(&model), of_both);
    // An edit by `apply` is checked with the age that it has.
    let applied = world.apply(&[&first.replace("port: 80", "port: 81")]).await.unwrap();
    assert!(!applied.warnings.iter().any(shadowed), "{:?}", applied.warnings);
}

#[tokio::test]
async fn what_is_deleted_is_gone_from_effect_and_stays_in_history() {
    let world = World::new().await;
    world.plane.synced().await;
    let mut proxy = Proxy::join(&world.plane);
    world.apply(&[GATEWAY, &route("/one")]).await.unwrap();
    proxy.until(|proxy| proxy.path().as_deref() == Some("/one")).await;
    let api = world.api();
    let name = |kind: &str, name: &str| DocumentName {
        namespace: "shop".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    // A name that is not there: nothing is removed, the other one neither.
    let documents = vec![name("route", "a"), name("route", "typo")];
    let error = api.delete(&Delete { documents, ..Delete::default() }).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::NOT_FOUND), "{error}");
    assert!(error.to_string().contains("HTTPRoute shop/typo") && !error.to_string().contains("shop/a"));
    assert!(error.to_string().contains("--ignore-not-found"), "there are others: {error}");
    assert_eq!(api.history("shop", "route", "a").await.unwrap().len(), 1);
    let error = api.delete(&Delete { documents: vec![name("route", "typo")], ..Delete::default() }).await;
    let error = error.unwrap_err();
    assert!(!error.to_string().contains("--ignore-not-found"), "there is nothing else: {error}");
    let error = api.delete(&Delete::default()).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::BAD_REQUEST), "{error}");

    let delete = Delete {
        documents: vec![name("route", "a")],
        message: "not needed".to_owned(),
        author: Some("ann".to_owned()),
        ..Delete::default()
    };
    let gone = api.delete(&delete).await.unwrap();
    assert!(gone.versions[0].deleted && gone.versions[0].revision == 2, "{:?}", gone.versions);
    proxy.until(|proxy| proxy.path().is_none()).await;
    let history = api.history("shop", "route", "a").await.unwrap();
    assert_eq!((&*history[0].author, &*history[0].message, history.len()), ("local:ann", "not needed", 2));
    let back = Rollback { to: 1, message: String::new(), author: None };
    api.rollback("shop", "route", "a", &back).await.unwrap();
    proxy.until(|proxy| proxy.path().as_deref() == Some("/one")).await;

    // By what a file defines, whatever its content is by now.
    let files = [("a.yaml".to_owned(), route("/other"))].into();
    let gone = api.delete(&Delete { files, ..Delete::default() }).await.unwrap();
    assert_eq!((gone.versions.len(), gone.versions[0].revision), (1, 4));
    proxy.until(|proxy| proxy.path().is_none()).await;
    assert_eq!(world.config().list(None).await.unwrap().len(), 1, "the gateway stays");
}

#[tokio::test]
async fn what_is_not_there_holds_nothing_up_where_that_is_said() {
    let world = World::new().await;
    world.plane.synced().await;
    world.apply(&[GATEWAY, &route("/one")]).await.unwrap();
    let api = world.api();
    let typo =
        DocumentName { namespace: "shop".to_owned(), kind: "route".to_owned(), name: "typo".to_owned() };
    let delete = Delete {
        files: [("a.yaml".to_owned(), route("/other"))].into(),
        documents: vec![typo],
        ignore_absent: true,
        ..Delete::default()
    };
    let gone = api.delete(&delete).await.unwrap();
    assert_eq!((gone.versions.len(), &*gone.versions[0].name, gone.versions[0].deleted), (1, "a", true));
    // All of them are gone by now.
    let again = api.delete(&delete).await.unwrap();
    assert_eq!(
        (again.versions.len(), again.config_revision, again.revision),
        (0, gone.config_revision, gone.revision)
    );
}

#[tokio::test]
async fn a_deletion_tells_who_still_needs_what_is_gone() {
    let world = World::new().await;
    world.plane.synced().await;
    let backend = "apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n";
    let needs = route("/one").replace("name: web", "name: own");
    let applied = world.apply(&[GATEWAY, &needs, backend]).await.unwrap();
    assert!(applied.warnings.is_empty(), "{:?}", applied.warnings);
    let delete = Delete { files: [("b".to_owned(), backend.to_owned())].into(), ..Delete::default() };
    let gone = world.api().delete(&delete).await.unwrap();
    let told = &gone.warnings[0];
    assert_eq!((&told["code"], &told["severity"]), (&json!("MW2004"), &json!("warning")), "{told}");
    assert!(told["file"].as_str().unwrap().contains("HTTPRoute/a@1"), "{told}");
}

#[tokio::test]
async fn a_change_with_an_error_stores_nothing_and_says_where() {
    let world = World::new().await;
    world.plane.synced().await;
    let bad = route("/two").replace("matches", "matchez");
    let error = world.apply(&[GATEWAY, &bad]).await.unwrap_err();
    let ClientError::Refused { status, problem, .. } = error else { panic!("{error}") };
    assert_eq!((status.as_u16(), problem.code.as_deref()), (422, Some("MW4109")));
    let found = &problem.more["diagnostics"][0];
    assert_eq!((&found["file"], &found["line"]), (&json!("1.yaml"), &json!(8)), "{found}");
    assert!(world.config().list(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_diff_tells_what_would_change_and_hides_secrets() {
    let world = World::new().await;
    world.plane.synced().await;
    world.apply(&[GATEWAY, &route("/one")]).await.unwrap();
    let secret =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: shop}\nstringData: {key: hush}\n";
    let files = [
        ("a".to_owned(), route("/two")),
        ("b".to_owned(), GATEWAY.to_owned()),
        ("c".to_owned(), secret.to_owned()),
    ];
    let planned = world.api().diff(&Files { files: files.into(), ..Files::default() }).await.unwrap();
    let mut actions: Vec<_> = planned.iter().map(|p| (p.kind.as_str(), p.action)).collect();
    actions.sort_by_key(|(kind, _)| kind.to_owned());
    let expected =
        [("Gateway", Action::Unchanged), ("HTTPRoute", Action::Update), ("Secret", Action::Create)];
    assert_eq!(actions, expected);
    let route = planned.iter().find(|planned| planned.kind == "HTTPRoute").unwrap();
    assert_eq!(route.differences[0].path, "/spec/rules/0/matches/0/path/value");
    assert!(!serde_json::to_string(&planned).unwrap().contains("hush"));
    assert_eq!(world.config().list(None).await.unwrap().len(), 2, "nothing was written");
}

#[tokio::test]
async fn a_bad_revision_leaves_the_last_good_one_also_after_a_restart() {
    let world = World::new().await;
    world.plane.synced().await;
    world.apply(&[GATEWAY, &route("/one")]).await.unwrap();
    let content =
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "spec": {"rulez": []}});
    world.write(content).await;
    let stays = |model: &Model| {
        let told = model.diagnostics.iter().any(|found| &*found.file == "config:shop/HTTPRoute/a@2");
        let good =
            |object: &Arc<meshwork_resources::Object>| &*object.source.file == "config:shop/HTTPRoute/a@1";
        let serves =
            model.rejected.values().any(|rejected| &*rejected.source.file == "config:shop/HTTPRoute/a@2");
        told && model.objects.values().any(good) && serves
    };
    world.until(stays).await;
    let restarted = plane(&world.registry, &Away::default(), &world.config, &Away::default());
    until(&restarted, stays).await;
    // It says that it is another document than the one it is stored as.
    let named =
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "b"}});
    world.write(named).await;
    let told =
        |model: &Model| model.diagnostics.iter().any(|found| &*found.file == "config:shop/HTTPRoute/a@3");
    let model = world.until(told).await;
    let (key, rejected) = model.rejected.first_key_value().unwrap();
    assert_eq!(
        (key.to_string().as_str(), &*rejected.source.file),
        ("HTTPRoute shop/a", "config:shop/HTTPRoute/a@3")
    );
    assert_eq!((model.rejected.len(), model.objects.contains_key(key)), (1, true));
    world.write(serde_json::Value::Null).await;
    let model = world.until(|model| model.objects.len() == 1 && model.diagnostics.is_empty()).await;
    assert!(model.rejected.is_empty());
}

#[tokio::test]
async fn a_folder_is_not_written_into() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("gateway.yaml"), GATEWAY).unwrap();
    let plane = ControlPlane::start(Settings::folder(folder.path()), Arc::new(SystemClock::new())).unwrap();
    plane.synced().await;
    let api = ApplyClient(Client::in_memory("gateway", plane.router()));
    let files = [("a".to_owned(), route("/one"))].into();
    let error = api.apply(&Files { files, ..Files::default() }).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::CONFLICT));
    assert!(error.to_string().contains("edit the folder"), "{error}");
}
