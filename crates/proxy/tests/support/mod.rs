//! An engine in this process with routes made from messages, and small upstreams that show what reached them.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "a failed unwrap is a failed test")]

pub mod distance;
pub mod h2;
pub mod mesh;
pub mod mirrors;
pub mod policy;
pub mod raw;
pub mod relay;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use meshwork_base::{Clock, ManualClock, SystemClock};
use meshwork_decision::{Change, Snapshot, SnapshotBuilder};
use meshwork_messages::v1;
use meshwork_proxy::{Engine, Learnt, MemoryLevel, Mesh, Observer, Settings, Shared, TlsConfigs};
use meshwork_telemetry::{
    AccessLogSink, AccessLogTarget, Format, MetricsRegistry, RequestLabels, Sampler, TraceResource, Tracer,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub struct Harness {
    pub engine: Engine,
    pub builder: SnapshotBuilder,
    pub metrics: MetricsRegistry,
    pub log: std::path::PathBuf,
    sink: AccessLogSink,
    _dir: tempfile::TempDir,
}

/// Waits, while the proxies' time goes on in such steps, each of which leaves them a moment to do what is due.
pub async fn while_time_goes_on<T>(
    clock: &ManualClock,
    step: Duration,
    waited: impl Future<Output = T>,
) -> T {
    let passes = async {
        loop {
            clock.advance(step);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        done = waited => done,
        () = passes => unreachable!("time has no end"),
    }
}

/// A retry policy that says all: nothing is repeated by name, and nobody waits.
pub fn bare_retry() -> v1::Retry {
    v1::Retry {
        attempts: Some(0),
        on: Some(v1::retry::On::default()),
        backoff_base_ms: Some(0),
        backoff_max_ms: Some(0),
        ..v1::Retry::default()
    }
}

/// Outlier detection by no row of failures.
pub fn rows_off() -> v1::OutlierDetection {
    v1::OutlierDetection {
        consecutive_5xx: Some(0),
        consecutive_gateway_failure: Some(0),
        consecutive_local_origin_failure: Some(0),
        ..v1::OutlierDetection::default()
    }
}

/// A rule that sends everything to these services (name, weight), with filters.
pub fn rule(backends: &[(&str, u32)], filters: Vec<v1::Filter>) -> v1::Rule {
    let any = v1::Match {
        path: Some(v1::StringMatch { kind: Some(v1::string_match::Kind::Prefix("/".into())) }),
        ..Default::default()
    };
    v1::Rule {
        matches: vec![any],
        filters,
        backends: backends
            .iter()
            .map(|(service, weight)| v1::Backend {
                service: format!("default/{service}"),
                port: 80,
                weight: *weight,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

impl Harness {
    pub fn start(settings: Settings) -> Self {
        Self::join(settings, Mesh::default(), Arc::new(SystemClock::new()), "gateway")
    }

    /// An engine whose time moves when told to.
    pub fn at(clock: &ManualClock) -> Self {
        Self::join(Settings::default(), Mesh::default(), Arc::new(clock.clone()), "gateway")
    }

    /// An engine whose spans nobody takes.
    pub fn traced(settings: Settings) -> Self {
        let (sampler, resource) = (Sampler::default(), TraceResource::default());
        let nobody = format!("http://127.0.0.1:{}", free_port());
        let tracer = Tracer::start(&nobody, sampler, &resource, &MetricsRegistry::default()).unwrap();
        Self::make(settings, Mesh::default(), Arc::new(SystemClock::new()), "gateway", Some(tracer))
    }

    /// An engine in a mesh, as this workload of namespace `shop`.
    pub fn join(settings: Settings, mesh: Mesh, clock: Arc<dyn Clock>, workload: &str) -> Self {
        Self::make(settings, mesh, clock, workload, None)
    }

    fn make(
        settings: Settings,
        mesh: Mesh,
        clock: Arc<dyn Clock>,
        workload: &str,
        tracer: Option<Tracer>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("access.log");
        let metrics = MetricsRegistry::default();
        let sink = AccessLogSink::open(&AccessLogTarget::File(log.clone()), &metrics).unwrap();
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            clock,
            settings: Settings { listen_address: [127, 0, 0, 1].into(), ..settings },
            metrics: metrics.clone(),
            access_log: sink.clone(),
            tracer,
            labels: RequestLabels {
                source_workload: workload.into(),
                source_workload_namespace: "shop".into(),
                source_principal: mesh.identity.as_ref().map_or("unknown".into(), |i| i.id().as_str().into()),
                ..RequestLabels::default()
            },
            mesh,
            observer: Observer::default(),
            memory: MemoryLevel::default(),
            learnt: Learnt::default(),
            tls: TlsConfigs::default(),
        });
        let engine = Engine::start(shared).unwrap();
        Self { engine, builder: SnapshotBuilder::new(), metrics, log, sink, _dir: dir }
    }

    /// One HTTP listener on a port that was free, one route with these rules; gives the address.
    pub async fn route(&mut self, rules: Vec<v1::Rule>) -> SocketAddr {
        let listener = v1::Listener {
            port: free_port().into(),
            source: Some(v1::Source {
                kind: "Gateway".into(),
                name: "gw".into(),
                namespace: "default".into(),
                ..Default::default()
            }),
            protocol: v1::listener::Protocol::Http.into(),
            ..Default::default()
        };
        let parent = v1::route::attachment::Parent::Listener("default/gw/http".into());
        let route = v1::Route {
            source: Some(v1::Source {
                kind: "HTTPRoute".into(),
                name: "r".into(),
                namespace: "default".into(),
                ..Default::default()
            }),
            attachments: vec![v1::route::Attachment { parent: Some(parent), ..Default::default() }],
            rules,
        };
        let changes = [
            Change::upsert("default/gw/http", "1", &listener),
            Change::upsert("HTTPRoute/default/r", "1", &route),
        ];
        let rejected = self.builder.apply(changes);
        assert!(rejected.is_empty(), "{rejected:?}");
        self.apply().await;
        *self.engine.bound().values().next().expect("bound")
    }

    pub async fn service(
        &mut self,
        name: &str,
        protocol: v1::service_port::AppProtocol,
        endpoints: &[SocketAddr],
    ) {
        let service = v1::Service {
            ports: vec![v1::ServicePort { name: "http".into(), port: 80, protocol: protocol.into() }],
            ..Default::default()
        };
        let name = format!("default/{name}");
        let mut changes = vec![Change::upsert(&name, "1", &service)];
        for (index, endpoint) in endpoints.iter().enumerate() {
            let slice = v1::EndpointSlice {
                service: name.clone(),
                ports: vec![v1::EndpointPort { name: "http".into(), port: endpoint.port().into() }],
                endpoints: vec![v1::Endpoint {
                    addresses: vec![endpoint.ip().to_string()],
                    health: v1::endpoint::Health::Healthy.into(),
                    weight: 1,
                    instance: format!("i{index}"),
                    ..Default::default()
                }],
                ..Default::default()
            };
            changes.push(Change::upsert(&format!("{name}-{index}"), "1", &slice));
        }
        let rejected = self.builder.apply(changes);
        assert!(rejected.is_empty(), "{rejected:?}");
        self.apply().await;
    }

    /// Puts more resources into effect.
    pub async fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        let rejected = self.builder.apply(changes);
        assert!(rejected.is_empty(), "{rejected:?}");
        self.apply().await;
    }

    /// The value of a metric's series with these labels in its text; 0 when there is none.
    pub fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.metrics.render(Format::OpenMetrics);
        let fits = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
        let value = |line: &str| {
            let value = line.split(" # ").next().and_then(|line| line.rsplit(' ').next()).unwrap();
            value.parse::<f64>().unwrap() as u64
        };
        text.lines().filter(fits).map(value).sum()
    }

    /// Waits until a metric has this value.
    pub async fn wait_metric(&self, name: &str, labels: &[&str], expected: u64) {
        let reached = async {
            while self.metric(name, labels) != expected {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(10), reached).await;
        assert!(
            waited.is_ok(),
            "{name}{labels:?} is no {expected}:\n{}",
            self.metrics.render(Format::OpenMetrics)
        );
    }

    pub async fn apply(&mut self) {
        let snapshot = self.builder.build();
        let errors = self.engine.apply(snapshot).await;
        assert!(errors.is_empty(), "{errors:?}");
    }

    /// The access log, once it has so many lines: a line is written after its response has left.
    pub async fn lines(&self, count: usize) -> Vec<String> {
        let read = async {
            loop {
                self.sink.flush();
                let text = std::fs::read_to_string(&self.log).unwrap_or_default();
                if text.lines().count() >= count {
                    return text.lines().map(str::to_owned).collect();
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), read).await.expect("the lines are written")
    }
}

/// An upstream that answers each connection's bytes as `answer` says: it gets all bytes received so far and gives the
/// bytes to send once they are a whole request; `None` waits for more.
pub struct Upstream {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

pub async fn upstream(answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut held = Vec::new();
                let mut chunk = [0; 65536];
                loop {
                    match tcp.read(&mut chunk).await {
                        Ok(0) | Err(_) => return,
                        Ok(count) => held.extend_from_slice(&chunk[..count]),
                    }
                    if let Some(out) = answer(&held) {
                        held.clear();
                        if tcp.write_all(&out).await.is_err() {
                            return;
                        }
                        if out.is_empty() || out.ends_with(b"<close>") {
                            return;
                        }
                    }
                }
            });
        }
    });
    Upstream { address, connections }
}

/// A port that is ours as long as this process lives: the system gives it to nobody who asks for any. Whoever is told of it may listen
/// there, and until somebody does, whoever connects is refused.
pub fn free_port() -> u16 {
    static OURS: parking_lot::Mutex<Vec<socket2::Socket>> = parking_lot::Mutex::new(Vec::new());
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    // As both kinds of listeners do, or they would find the port taken.
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    OURS.lock().push(socket);
    port
}

/// Whether the bytes end a request without body.
pub fn is_head(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n\r\n")
}

/// Sends bytes and reads until the peer closes.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request).await.unwrap();
    let mut out = Vec::new();
    let _ = tcp.read_to_end(&mut out).await;
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads until the text contains `end`.
pub async fn read_until(tcp: &mut TcpStream, end: &str) -> String {
    let mut out = Vec::new();
    let mut chunk = [0; 4096];
    while !String::from_utf8_lossy(&out).contains(end) {
        let count = tcp.read(&mut chunk).await.unwrap();
        assert!(count > 0, "closed early: {}", String::from_utf8_lossy(&out));
        out.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A socket whose queue is full: whoever connects has to wait until it accepts, or those in the queue are gone.
pub fn with_a_full_queue() -> (socket2::Socket, SocketAddr, Vec<std::net::TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let upstream = socket.local_addr().unwrap().as_socket().unwrap();
    let queued = fill_the_queue_of(upstream);
    (socket, upstream, queued)
}

/// Connects to one that accepts nobody, until nobody can.
pub fn fill_the_queue_of(upstream: SocketAddr) -> Vec<std::net::TcpStream> {
    let mut queued = Vec::new();
    let soon = std::time::Duration::from_millis(100);
    while let Ok(tcp) = std::net::TcpStream::connect_timeout(&upstream, soon) {
        queued.push(tcp);
        assert!(queued.len() < 20, "a queue of nobody takes everybody");
    }
    queued
}
