//! From a folder to a proxy and back, through the real watcher, compiler and stream.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{SeededRng, SystemClock};
use meshwork_compile::{
    Catalog,
    input::{CatalogPort, CatalogService},
};
use meshwork_messages::{type_url, v1};
use meshwork_resources::{ObjectKey, ObjectKind};
use meshwork_xds::client::{self, Batch, Change, Handle, Updates};
use serde_json::Value;

use crate::folder::{Changes, FileChange};
use crate::{ControlPlane, Model, Settings, check};

pub(crate) const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: meshwork
  listeners:
    - {name: http, port: 8080, protocol: HTTP}
";

pub(crate) fn route(name: &str, path: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
    - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]
      backendRefs: [{{name: web, port: 80}}]
---"
    )
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9000}]
endpoints: [{addresses: [127.0.0.1]}]
";

pub(crate) fn shop(folder: &Path) {
    fs::write(folder.join("gateway.yaml"), GATEWAY).unwrap();
    fs::write(folder.join("routes.yaml"), format!("{}{}", route("a", "/a"), route("b", "/b"))).unwrap();
    fs::write(folder.join("service.yaml"), SERVICE).unwrap();
}

pub(crate) fn start(folder: &Path) -> ControlPlane {
    ControlPlane::start(Settings::folder(folder), Arc::new(SystemClock::new())).unwrap()
}

/// A gateway that applies whatever it is told.
pub(crate) struct Gateway {
    pub(crate) handle: Handle,
    updates: Updates,
    pub(crate) held: BTreeMap<String, Arc<v1::Resource>>,
}

impl Gateway {
    pub(crate) fn join(plane: &ControlPlane) -> Self {
        let node = v1::Node {
            id: "gateway/shop/edge/1".into(),
            role: "gateway".into(),
            version: "0.1.0".into(),
            workers: 2,
            pid: 42,
            address: "127.0.0.1:15000".into(),
            ..v1::Node::default()
        };
        let types = [
            type_url::<v1::Listener>(),
            type_url::<v1::Secret>(),
            type_url::<v1::Route>(),
            type_url::<v1::Service>(),
            type_url::<v1::EndpointSlice>(),
            type_url::<v1::Policy>(),
            type_url::<v1::Bundle>(),
        ];
        let settings = client::Settings::new(node).all_of(types);
        let clock = Arc::new(SystemClock::new());
        let (handle, updates, driver) =
            client::start(settings, None, plane.connector(), clock, SeededRng::new(1));
        tokio::spawn(driver);
        Self { handle, updates, held: BTreeMap::new() }
    }

    /// Takes batches up to the next commit; gives all of them.
    pub(crate) async fn commit(&mut self) -> Vec<Batch> {
        let mut batches = Vec::new();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(30), self.updates.next()).await;
            let batch = next.expect("a change arrives").expect("the driver lives");
            for change in &batch.changes {
                match change {
                    Change::Upsert(key, resource) => {
                        drop(self.held.insert(key.to_string(), Arc::clone(resource)));
                    }
                    Change::Remove(key) => drop(self.held.remove(&key.to_string())),
                    Change::Unsupported { .. } => panic!("nothing requires anything"),
                }
            }
            self.handle.settle(batch.id, Vec::new()).await.unwrap();
            let revision = batch.revision;
            batches.push(batch);
            if let Some(revision) = revision {
                self.handle.effective(revision).await.unwrap();
                return batches;
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        self.held.keys().map(String::as_str).collect()
    }
}

fn changes(batches: &[Batch]) -> Vec<String> {
    let changes = batches.iter().flat_map(|batch| &batch.changes);
    let tell = |change: &Change| match change {
        Change::Upsert(key, _) => format!("+{key}"),
        Change::Remove(key) => format!("-{key}"),
        Change::Unsupported { key, .. } => format!("?{key}"),
    };
    changes.map(tell).collect()
}

async fn until(plane: &ControlPlane, is_it: impl FnMut(&Model) -> bool) -> Arc<Model> {
    let found = tokio::time::timeout(Duration::from_secs(30), plane.until(is_it)).await;
    found.expect("the model gets there")
}

fn key(kind: ObjectKind, name: &str) -> ObjectKey {
    let namespace = Some(meshwork_base::Namespace::new("shop").unwrap());
    ObjectKey { kind, namespace, name: meshwork_base::ObjectName::new(name).unwrap() }
}

#[tokio::test]
async fn an_edit_of_one_route_is_one_resource_and_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    shop(folder.path());
    let plane = start(folder.path());
    let mut gateway = Gateway::join(&plane);
    gateway.commit().await;
    assert_eq!(
        gateway.names(),
        [
            "EndpointSlice shop/web-1",
            "Listener shop/edge/http",
            "Route HTTPRoute/shop/a",
            "Route HTTPRoute/shop/b",
            "Service shop/web",
        ]
    );
    // The line of b changes too: where an object stands is no change of what it says.
    let edited = format!("# edited\n{}{}", route("a", "/new"), route("b", "/b"));
    fs::write(folder.path().join("routes.yaml"), edited).unwrap();
    let batches = gateway.commit().await;
    assert_eq!(changes(&batches), ["+Route HTTPRoute/shop/a"]);
    assert_eq!(batches.last().unwrap().revision, Some(2));
    plane.hub().effective(2, Duration::from_secs(30)).await.unwrap();
}

#[tokio::test]
async fn an_edit_of_one_route_among_five_thousand_is_one_message_with_one_resource() {
    let folder = tempfile::tempdir().unwrap();
    shop(folder.path());
    for file in 0..50 {
        let routes: String =
            (0..100).map(|n| route(&format!("r{file}-{n}"), &format!("/{file}/{n}"))).collect();
        fs::write(folder.path().join(format!("r{file}.yaml")), routes).unwrap();
    }
    fs::write(folder.path().join("one.yaml"), route("one", "/one")).unwrap();
    let plane = start(folder.path());
    let mut gateway = Gateway::join(&plane);
    gateway.commit().await;
    let routes = |plane: &ControlPlane| plane.hub().tally().sent[&type_url::<v1::Route>()];
    assert_eq!(routes(&plane), 5003);
    let before = plane.model();

    fs::write(folder.path().join("edited"), route("one", "/else")).unwrap();
    fs::rename(folder.path().join("edited"), folder.path().join("one.yaml")).unwrap();
    assert_eq!(changes(&gateway.commit().await), ["+Route HTTPRoute/shop/one"]);
    assert_eq!(routes(&plane), 5004);
    let after = until(&plane, |model| model.revision == 2).await;
    let others = meshwork_base::differences(&before.output.resources, &after.output.resources, Arc::ptr_eq);
    assert_eq!(others.count(), 1, "every other resource is the one before");

    fs::remove_file(folder.path().join("one.yaml")).unwrap();
    assert_eq!(changes(&gateway.commit().await), ["-Route HTTPRoute/shop/one"]);
    assert_eq!(routes(&plane), 5005);
}

#[tokio::test]
async fn a_bad_edit_keeps_what_was_and_is_told_at_its_line() {
    let folder = tempfile::tempdir().unwrap();
    shop(folder.path());
    let plane = start(folder.path());
    let mut gateway = Gateway::join(&plane);
    gateway.commit().await;
    let bad = format!("{}{}", route("a", "/new"), route("b", "/b").replace("matches", "matchez"));
    fs::write(folder.path().join("routes.yaml"), bad).unwrap();
    assert_eq!(changes(&gateway.commit().await), ["+Route HTTPRoute/shop/a"]);
    let model = until(&plane, |model| !model.diagnostics.is_empty()).await;
    let found = &model.diagnostics[0];
    assert_eq!((&*found.file, found.line, model.diagnostics.len()), ("routes.yaml", 17, 1), "{found:?}");
    assert!(found.message.contains("matchez"), "{found:?}");
    assert!(model.objects.contains_key(&key(ObjectKind::HTTPRoute, "b")));
    fs::write(folder.path().join("routes.yaml"), route("a", "/new")).unwrap();
    assert_eq!(
        changes(&gateway.commit().await),
        ["-Route HTTPRoute/shop/b"],
        "removed by the file, not by the error"
    );
    assert!(until(&plane, |model| model.diagnostics.is_empty()).await.revision > 0);
}

#[tokio::test]
async fn a_deleted_file_is_an_explicit_removal() {
    let folder = tempfile::tempdir().unwrap();
    shop(folder.path());
    let plane = start(folder.path());
    let mut gateway = Gateway::join(&plane);
    gateway.commit().await;
    fs::remove_file(folder.path().join("routes.yaml")).unwrap();
    assert_eq!(changes(&gateway.commit().await), ["-Route HTTPRoute/shop/a", "-Route HTTPRoute/shop/b"]);
}

fn condition<'s>(status: &'s Value, kind: &str) -> &'s str {
    let conditions = status["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} in {status}"))["status"].as_str().unwrap()
}

#[tokio::test]
async fn a_gateway_is_programmed_when_its_listeners_are_bound() {
    let folder = tempfile::tempdir().unwrap();
    shop(folder.path());
    let plane = start(folder.path());
    plane.synced().await;
    let edge = key(ObjectKind::Gateway, "edge");
    let status = plane.model().status(&edge).unwrap();
    assert_eq!(condition(&status, "Accepted"), "True");
    assert_ne!(condition(&status, "Programmed"), "True");
    assert_eq!(status["listeners"][0]["attachedRoutes"], 2);
    let mut gateway = Gateway::join(&plane);
    gateway.commit().await;
    let listener = BTreeMap::from([("shop/edge/http".to_owned(), [127, 0, 0, 9].into())]);
    gateway.handle.bound(listener, BTreeMap::new()).await.unwrap();
    let programmed = |model: &Model| condition(&model.status(&edge).unwrap(), "Programmed") == "True";
    let model = until(&plane, programmed).await;
    assert_eq!(model.revision, 1, "a status is nothing proxies need to know");
    let address = &model.status(&edge).unwrap()["addresses"];
    assert_eq!(*address, serde_json::json!([{"type": "IPAddress", "value": "127.0.0.9"}]));
    drop(gateway);
    until(&plane, |model| condition(&model.status(&edge).unwrap(), "Programmed") != "True").await;
}

#[tokio::test]
async fn what_a_proxy_refuses_is_told_at_the_objects_line() {
    let folder = tempfile::tempdir().unwrap();
    shop(folder.path());
    let plane = start(folder.path());
    let mut gateway = Gateway::join(&plane);
    let batch = gateway.updates.next().await.unwrap();
    let refused = client::Rejection {
        key: meshwork_xds::ResourceKey::new(type_url::<v1::Route>(), "HTTPRoute/shop/b"),
        severity: v1::rejection::Severity::Error,
        message: "not for me".into(),
    };
    gateway.handle.settle(batch.id, vec![refused]).await.unwrap();
    let model = until(&plane, |model| !model.diagnostics.is_empty()).await;
    let found = &model.diagnostics[0];
    assert_eq!((&*found.file, found.line), ("routes.yaml", 11));
    assert!(found.message.contains("gateway/shop/edge/1: not for me"), "{found:?}");
}

#[test]
fn check_reads_folders_and_files_and_names_them_as_given() {
    let folder = tempfile::tempdir().unwrap();
    shop(folder.path());
    let clean = check(&[folder.path()]).unwrap();
    assert_eq!((clean.diagnostics.len(), clean.objects), (0, 5), "{:?}", clean.diagnostics);
    let alone = folder.path().join("routes.yaml");
    let found = check(&[&alone]).unwrap();
    assert!(!found.diagnostics.is_empty(), "a gateway that is not there");
    assert_eq!(*found.diagnostics[0].file, *alone.to_string_lossy());
    assert!(found.texts.values().all(|text| text.contains("HTTPRoute")));
    assert!(check(&[folder.path().join("nothing")]).is_err());
}

#[tokio::test]
async fn waits_for_every_feed_and_then_compiles_all_together() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("gateway.yaml"), GATEWAY).unwrap();
    let feeds = vec!["registry".to_owned(), "config".to_owned(), "ca".to_owned()];
    let settings = Settings { feeds, ..Settings::folder(folder.path()) };
    let plane = ControlPlane::start(settings, Arc::new(SystemClock::new())).unwrap();
    let mut gateway = Gateway::join(&plane);
    let feed = |name: &str| plane.feed(name).unwrap();
    let port = CatalogPort { port: 80, ..CatalogPort::default() };
    let service = CatalogService { ports: vec![port], ..CatalogService::default() };
    let name = meshwork_base::QualifiedName::parse("shop/web").unwrap();
    feed("registry").catalog(Catalog { services: [(name, service)].into() }).await.unwrap();
    let content = FileChange::Content(route("a", "/a").into_bytes());
    let files = [("shop/HTTPRoute/a".into(), content)].into();
    feed("config").documents(Changes { files, folder: None }).await.unwrap();
    assert_eq!((plane.model().revision, plane.feed("other").is_none()), (0, true), "one has not spoken");
    let bundle = |version: &str| {
        let resource =
            v1::Resource { name: "mesh.local".into(), version: version.into(), ..v1::Resource::default() };
        [(meshwork_xds::ResourceKey::new(type_url::<v1::Bundle>(), "mesh.local"), Arc::new(resource))].into()
    };
    feed("ca").messages(bundle("1")).await.unwrap();
    gateway.commit().await;
    let names =
        ["Bundle mesh.local", "Listener shop/edge/http", "Route HTTPRoute/shop/a", "Service shop/web"];
    assert_eq!(gateway.names(), names);
    feed("ca").messages(bundle("2")).await.unwrap();
    assert_eq!(changes(&gateway.commit().await), ["+Bundle mesh.local"]);
}

#[tokio::test]
async fn what_lies_behind_a_mount_that_is_not_there_at_the_start_stays() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let started = || {
        let settings = Settings {
            kept: Some(disk.path().to_owned()),
            ..Settings::folder(folder.path().join("resources"))
        };
        ControlPlane::start(settings, Arc::new(SystemClock::new())).unwrap()
    };
    let mount = folder.path().join("mount");
    fs::create_dir_all(folder.path().join("resources")).unwrap();
    fs::create_dir(&mount).unwrap();
    shop(&folder.path().join("resources"));
    fs::write(mount.join("more.yaml"), route("c", "/c")).unwrap();
    std::os::unix::fs::symlink("../mount", folder.path().join("resources/more")).unwrap();
    drop(started_and_synced(started()).await);
    fs::rename(&mount, folder.path().join("away")).unwrap();
    let plane = started_and_synced(started()).await;
    let model = plane.model();
    assert!(
        model.objects.keys().any(|key| key.to_string() == "HTTPRoute shop/c"),
        "{:?}",
        model.objects.keys()
    );
    assert!(model.diagnostics.iter().any(|found| found.message.contains("the link more")));
}

async fn started_and_synced(plane: ControlPlane) -> ControlPlane {
    plane.synced().await;
    plane
}

#[tokio::test]
async fn nothing_is_published_before_the_folders_are_good_and_from_then_on_a_restart_goes_on() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let started = || {
        let kept = Some(disk.path().to_owned());
        let settings = Settings { kept, ..Settings::folder(folder.path()) };
        ControlPlane::start(settings, Arc::new(SystemClock::new())).unwrap()
    };
    shop(folder.path());
    let (good, bad) = (route("a", "/a"), route("a", "/a").replace("rules", "rulez"));
    fs::write(folder.path().join("routes.yaml"), &bad).unwrap();
    let plane = started();
    let model = plane.until(|model| !model.lacking.is_empty()).await;
    assert!(model.lacking[0].starts_with("HTTPRoute shop/a is refused: routes.yaml:"), "{:?}", model.lacking);
    assert_eq!((model.revision, plane.hub().revision()), (0, None), "proxies keep what they have");
    assert!(!model.objects.is_empty() && !model.rejected.is_empty(), "who asks is told");
    fs::write(folder.path().join("routes.yaml"), &good).unwrap();
    plane.synced().await;
    assert!(plane.model().lacking.is_empty());
    drop(plane);
    fs::write(folder.path().join("routes.yaml"), &bad).unwrap();
    let plane = started();
    plane.synced().await;
    let route = ObjectKind::parse("HTTPRoute").unwrap();
    assert!(plane.model().objects.keys().any(|key| key.kind == route), "the last good version is in force");
}
