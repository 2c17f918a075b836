//! The drivers over real transports: within the process, and over gRPC on a socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, ManualClock, SeededRng, SpiffeId, SystemClock};
use meshwork_messages::v1::{Node, Resource, rejection::Severity};
use meshwork_messages::{type_url, v1};
use meshwork_xds::ResourceKey;
use meshwork_xds::cache::Cache;
use meshwork_xds::client::{Answer, Change, Handle, Rejection, Settings, Updates, start};
use meshwork_xds::server::{Access, Hub, Open, Publication, Refusal, Viewer};
use meshwork_xds::transport::grpc::{self, DiscoveryService};
use meshwork_xds::transport::{Connector, StreamError, in_memory};
use parking_lot::Mutex;
use tokio::sync::Notify;

const PATIENCE: Duration = Duration::from_secs(20);

fn key(name: &str) -> ResourceKey {
    ResourceKey::new(type_url::<v1::Service>(), name)
}

fn publication(revision: u64, services: &[(&str, &str)]) -> Publication {
    let resource = |&(name, version): &(&str, &str)| {
        let resource = Resource { name: name.into(), version: version.into(), ..Resource::default() };
        (key(name), Arc::new(resource))
    };
    Publication { revision, resources: services.iter().map(resource).collect(), ..Publication::default() }
}

fn settings() -> Settings {
    Settings::new(Node { id: "test/one".into(), role: "gateway".into(), ..Node::default() })
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

type Held = Arc<Mutex<BTreeMap<String, String>>>;

/// A consumer that refuses version "bad".
async fn consume(handle: Handle, mut updates: Updates, held: Held) {
    while let Some(batch) = updates.next().await {
        let mut rejections = Vec::new();
        for change in &batch.changes {
            match change {
                Change::Upsert(key, resource) if resource.version == "bad" => {
                    let message = "it is bad".to_owned();
                    rejections.push(Rejection { key: key.clone(), severity: Severity::Error, message });
                }
                Change::Upsert(key, resource) => {
                    held.lock().insert(key.name.to_string(), resource.version.clone());
                }
                Change::Remove(key) => {
                    held.lock().remove(&*key.name);
                }
                Change::Unsupported { .. } => panic!("nothing requires anything"),
            }
        }
        handle.settle(batch.id, rejections).await.unwrap();
        if let Some(revision) = batch.revision {
            handle.effective(revision).await.unwrap();
        }
    }
}

fn run(settings: Settings, connector: Connector) -> (Handle, Held) {
    let (handle, updates, driver) = start(settings, None, connector, clock(), SeededRng::new(1));
    tokio::spawn(driver);
    let held = Held::default();
    tokio::spawn(consume(handle.clone(), updates, held.clone()));
    (handle, held)
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|&(name, version)| (name.to_owned(), version.to_owned())).collect()
}

/// What must hold over every transport.
async fn edits_arrive_and_are_reported_effective(hub: &Hub, connector: Connector) {
    let (_handle, held) = run(settings().all_of([type_url::<v1::Service>()]), connector);
    hub.publish(publication(1, &[("shop/a", "1"), ("shop/b", "1")]));
    let mut activity = hub.activity();
    while hub.proxies().is_empty() {
        activity.changed().await.unwrap();
    }
    hub.effective(1, PATIENCE).await.unwrap();
    assert_eq!(*held.lock(), map(&[("shop/a", "1"), ("shop/b", "1")]));
    hub.publish(publication(2, &[("shop/a", "bad"), ("shop/c", "1")]));
    hub.effective(2, PATIENCE).await.unwrap();
    assert_eq!(*held.lock(), map(&[("shop/a", "1"), ("shop/c", "1")]));
    let proxies = hub.proxies();
    assert_eq!((proxies.len(), proxies[0].effective_revision, proxies[0].connected), (1, 2, true));
    assert_eq!(proxies[0].last_error, "Service shop/a: it is bad");
    assert_eq!(proxies[0].rejections[0].key, key("shop/a"));
    let early = hub.effective(3, Duration::from_millis(1)).await.unwrap_err();
    assert!(early.to_string().contains("is not published"), "{early}");
}

#[tokio::test]
async fn within_one_process() {
    let hub = Hub::new(Arc::new(Open), clock());
    let near = hub.clone();
    let connector: Connector = Box::new(move || {
        let transport = near.connect_in_memory();
        Box::pin(async move { Ok(transport) })
    });
    edits_arrive_and_are_reported_effective(&hub, connector).await;
}

/// Serves a hub over gRPC on an ephemeral port; every caller is this identity.
async fn listen(hub: Hub, identity: Option<SpiffeId>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = DiscoveryService::new(hub, Arc::new(move |_| Ok(identity.clone())));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    (address, tokio::spawn(async move { server.await.unwrap() }))
}

fn over_grpc(address: String) -> Connector {
    Box::new(move || {
        let address = address.clone();
        Box::pin(async move {
            let endpoint = tonic::transport::Endpoint::from_shared(address.clone()).unwrap();
            grpc::open(endpoint.connect_lazy(), &address).await
        })
    })
}

#[tokio::test]
async fn over_grpc_on_a_socket() {
    let hub = Hub::new(Arc::new(Open), clock());
    let (address, _server) = listen(hub.clone(), None).await;
    edits_arrive_and_are_reported_effective(&hub, over_grpc(address)).await;
}

/// Only one workload may join.
struct OnlyWeb;

impl Access for OnlyWeb {
    fn admit(&self, viewer: &Viewer) -> Result<(), Refusal> {
        match &viewer.identity {
            Some(identity) if identity.workload() == "web" => Ok(()),
            other => Err(Refusal::Denied(format!("{other:?} may not join"))),
        }
    }
    fn visible(&self, _: &Viewer, _: &ResourceKey) -> bool {
        true
    }
}

#[tokio::test]
async fn a_stranger_is_told_why_it_may_not_join() {
    let hub = Hub::new(Arc::new(OnlyWeb), clock());
    hub.publish(publication(1, &[]));
    let stranger = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/evil").unwrap();
    let (address, _server) = listen(hub, Some(stranger)).await;
    let mut transport = over_grpc(address)().await.unwrap();
    let node = Some(Node { id: "shop/web-1".into(), ..Node::default() });
    transport.tx.send(v1::DiscoveryRequest { node, ..Default::default() }).await.unwrap();
    let Some(Err(StreamError::Refused(why))) = transport.rx.recv().await else { panic!("it was let in") };
    assert!(why.contains("sa/evil"), "{why}");
    assert!(transport.rx.recv().await.is_none());
}

#[tokio::test]
async fn a_control_plane_that_is_away_is_waited_for_and_joined_again() {
    let (address, server) = listen(Hub::new(Arc::new(Open), clock()), None).await;
    server.abort();
    let unreachable = over_grpc(address.clone())().await.unwrap_err();
    assert!(matches!(&unreachable, StreamError::Unreachable { target, .. } if *target == address));

    let hub = Hub::new(Arc::new(Open), clock());
    hub.publish(publication(4, &[("shop/a", "1")]));
    let (near, mut attempts) = (hub.clone(), 0);
    let connector: Connector = Box::new(move || {
        attempts += 1;
        let transport = (attempts > 2).then(|| near.connect_in_memory());
        let away = || StreamError::Unreachable { target: "test".into(), why: "it is away".into() };
        Box::pin(async move { transport.ok_or_else(away) })
    });
    let (handle, held) = run(settings(), connector);
    assert_eq!(handle.watch(key("shop/a"), PATIENCE).await, Answer::Present);
    assert_eq!(*held.lock(), map(&[("shop/a", "1")]));
    assert_eq!(handle.watch(key("shop/b"), PATIENCE).await, Answer::Absent);
}

#[tokio::test]
async fn since_when_nothing_is_heard_of_the_control_plane_is_known() {
    let (hub, time) = (Hub::new(Arc::new(Open), clock()), ManualClock::new());
    hub.publish(publication(1, &[("shop/a", "1")]));
    let (transport, server) = in_memory();
    let serving = tokio::spawn(async move { hub.serve(None, server).await });
    let (mut once, attempted) = (Some(transport), Arc::new(Notify::new()));
    let told = Arc::clone(&attempted);
    let connector: Connector = Box::new(move || {
        let transport = once.take();
        if transport.is_none() {
            told.notify_one();
        }
        let away = || StreamError::Unreachable { target: "test".into(), why: "it is away".into() };
        Box::pin(async move { transport.ok_or_else(away) })
    });
    time.advance(Duration::from_secs(5));
    let (began, driven_by) = (time.now(), Arc::new(time.clone()));
    let (handle, updates, driver) = start(settings(), None, connector, driven_by, SeededRng::new(1));
    let mut away = updates.away();
    assert_eq!(*away.borrow(), Some(began), "nothing was heard yet");
    tokio::spawn(driver);
    tokio::spawn(consume(handle, updates, Held::default()));
    let there = tokio::time::timeout(PATIENCE, away.wait_for(Option::is_none));
    drop(there.await.expect("it joins").unwrap());
    time.advance(Duration::from_secs(7));
    serving.abort();
    let lost = tokio::time::timeout(PATIENCE, away.wait_for(Option::is_some));
    assert_eq!(*lost.await.expect("it is lost").unwrap(), Some(began.after(Duration::from_secs(7))));
    time.advance(Duration::from_secs(100));
    for _ in 0..2 {
        tokio::time::timeout(PATIENCE, attempted.notified()).await.expect("it is looked for");
    }
    assert_eq!(*away.borrow(), Some(began.after(Duration::from_secs(7))), "attempts in vain change nothing");
}

#[tokio::test]
async fn starts_from_disk_what_it_had_before() {
    let directory = tempfile::tempdir().unwrap();
    let hub = Hub::new(Arc::new(Open), clock());
    hub.publish(publication(1, &[("shop/a", "1"), ("shop/b", "bad")]));
    for (round, reachable) in [(0, true), (1, false)] {
        let (cache, contents) = Cache::open(directory.path()).unwrap();
        let near = hub.clone();
        let connector: Connector = Box::new(move || {
            let transport = reachable.then(|| near.connect_in_memory());
            let away = || StreamError::Unreachable { target: "test".into(), why: "it is away".into() };
            Box::pin(async move { transport.ok_or_else(away) })
        });
        let settings = settings().all_of([type_url::<v1::Service>()]);
        let cache = Some((cache, contents.preload));
        let (handle, mut updates, driver) = start(settings, cache, connector, clock(), SeededRng::new(1));
        let driver = tokio::spawn(driver);
        let batch = updates.next().await.unwrap();
        let names: Vec<_> = batch.changes.iter().map(|change| change.key().name.to_string()).collect();
        if round == 0 {
            assert_eq!(names, ["shop/a", "shop/b"]);
            let message = "bad".to_owned();
            let rejection = Rejection { key: key("shop/b"), severity: Severity::Error, message };
            handle.settle(batch.id, vec![rejection]).await.unwrap();
        } else {
            assert!(batch.from_cache);
            assert_eq!((names, batch.revision), (vec!["shop/a".to_owned()], Some(1)), "only what was good");
        }
        drop((handle, updates));
        driver.await.unwrap();
    }
}
