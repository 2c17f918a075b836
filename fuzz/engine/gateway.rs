//! An engine with one listener, and services of one endpoint each behind it, for the targets that need the whole way.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use meshwork_base::SystemClock;
use meshwork_decision::{Change, Snapshot, SnapshotBuilder};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Engine, Mesh, Settings, Shared};
use meshwork_telemetry::{AccessLogSink, AccessLogTarget, MetricsRegistry, RequestLabels};

static PANICKED: AtomicBool = AtomicBool::new(false);

/// Where a panic does not end the process, as in the replay on the stable compiler, a worker's is noticed here.
pub(super) fn assert_no_panic() {
    assert!(!PANICKED.load(Ordering::Relaxed), "a thread of the engine panicked");
}

/// A service, and the prefix of the paths that lead to it.
pub(super) struct Backend {
    pub(super) path: &'static str,
    pub(super) protocol: AppProtocol,
    pub(super) endpoint: SocketAddr,
}

/// Starts the engine in a thread of its own and says where it listens.
pub(super) fn start(backends: &[Backend]) -> SocketAddr {
    let resources = resources(backends);
    watch_panics();
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut engine = Engine::start(shared(Mesh::default())).expect("workers start");
            let mut builder = SnapshotBuilder::new();
            let refused = builder.apply(resources);
            assert!(refused.is_empty(), "{refused:?}");
            let errors = engine.apply(builder.build()).await;
            assert!(errors.is_empty(), "{errors:?}");
            tell.send(*engine.bound().values().next().expect("bound")).expect("somebody waits");
            std::future::pending::<()>().await;
        });
    });
    told.recv().expect("the engine starts")
}

/// Remembers that a thread has panicked.
pub(super) fn watch_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICKED.store(true, Ordering::Relaxed);
        before(panic);
    }));
}

/// What an engine starts with, without a log.
pub(super) fn shared(mesh: Mesh) -> Arc<Shared> {
    let metrics = MetricsRegistry::default();
    let access_log = AccessLogSink::open(&AccessLogTarget::Off, &metrics).expect("no log");
    Arc::new(Shared {
        snapshot: ArcSwap::from_pointee(Snapshot::default()),
        clock: Arc::new(SystemClock::new()),
        settings: Settings { listen_address: Ipv4Addr::LOCALHOST.into(), ..Settings::default() },
        metrics,
        access_log,
        labels: RequestLabels::default(),
        mesh,
        tracer: None,
        observer: meshwork_proxy::Observer::default(),
        memory: meshwork_proxy::MemoryLevel::default(),
        learnt: meshwork_proxy::Learnt::default(),
        tls: meshwork_proxy::TlsConfigs::default(),
    })
}

fn resources(backends: &[Backend]) -> Vec<Change> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let listener = v1::Listener {
        port: port.into(),
        source: Some(source("Gateway", "gw")),
        protocol: v1::listener::Protocol::Http.into(),
        ..Default::default()
    };
    let parent = v1::route::attachment::Parent::Listener("default/gw/http".into());
    let route = v1::Route {
        source: Some(source("HTTPRoute", "r")),
        attachments: vec![v1::route::Attachment { parent: Some(parent), ..Default::default() }],
        rules: (0..).zip(backends).map(rule).collect(),
    };
    let mut changes = vec![
        Change::upsert("default/gw/http", "1", &listener),
        Change::upsert("HTTPRoute/default/r", "1", &route),
    ];
    for (number, backend) in (0..).zip(backends) {
        changes.extend(service(number, backend));
    }
    changes
}

fn source(kind: &str, name: &str) -> v1::Source {
    v1::Source { kind: kind.into(), name: name.into(), namespace: "default".into(), ..Default::default() }
}

fn rule((number, backend): (u32, &Backend)) -> v1::Rule {
    let path = v1::StringMatch { kind: Some(v1::string_match::Kind::Prefix(backend.path.into())) };
    let service = format!("default/web{number}");
    v1::Rule {
        matches: vec![v1::Match { path: Some(path), ..Default::default() }],
        backends: vec![v1::Backend { service, port: 80, weight: 1, ..Default::default() }],
        // Nobody waits for an upstream to come back.
        retry: Some(v1::Retry { attempts: Some(0), ..Default::default() }),
        ..Default::default()
    }
}

fn service(number: u32, backend: &Backend) -> [Change; 2] {
    let name = format!("default/web{number}");
    let service = v1::Service {
        ports: vec![v1::ServicePort { name: "http".into(), port: 80, protocol: backend.protocol.into() }],
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: name.clone(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: backend.endpoint.port().into() }],
        endpoints: vec![v1::Endpoint {
            addresses: vec![backend.endpoint.ip().to_string()],
            health: v1::endpoint::Health::Healthy.into(),
            weight: 1,
            instance: "i".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    [Change::upsert(&name, "1", &service), Change::upsert(&format!("{name}-0"), "1", &slice)]
}
