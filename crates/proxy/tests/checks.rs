//! Active health checks of every kind, on every way to an endpoint.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_decision::{Change, Checked, ClusterKey, Endpoint};
use meshwork_messages::v1;
use meshwork_messages::v1::health_check::{Grpc, Http, Probe, StatusRange, Tcp};
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Settings, Side};
use support::mesh::{TestMesh, db_behind, policy, serving};
use support::{Harness, is_head, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn check(probe: Probe) -> v1::policy::Spec {
    let health_check = v1::HealthCheck {
        probe: Some(probe),
        interval_ms: 10,
        interval_jitter_ms: Some(2),
        timeout_ms: 5_000,
        no_traffic_interval_ms: 10,
        unhealthy_threshold: 2,
        healthy_threshold: 2,
    };
    v1::policy::Spec::Traffic(v1::TrafficPolicy { health_check: Some(health_check), ..Default::default() })
}

/// The same, and not again within the test.
fn once(probe: Probe) -> v1::policy::Spec {
    let mut spec = check(probe);
    if let v1::policy::Spec::Traffic(v1::TrafficPolicy { health_check: Some(check), .. }) = &mut spec {
        (check.interval_ms, check.no_traffic_interval_ms) = (3_600_000, 3_600_000);
    }
    spec
}

fn http(path: &str) -> Probe {
    Probe::Http(Http {
        method: "GET".into(),
        path: path.into(),
        host: String::new(),
        expected: vec![StatusRange { start: 200, end: 201 }],
    })
}

/// A policy on `default/web`.
fn on_web(spec: v1::policy::Spec) -> Change {
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/web".into(), section: String::new() };
    Change::upsert("default/p", "1", &v1::Policy { source: None, targets: vec![target], spec: Some(spec) })
}

/// Waits until checks say this of the only endpoint of a service; gives the reason.
async fn says(harness: &Harness, service: &str, wanted: Checked) -> String {
    let key = ClusterKey::whole(service.into(), 80);
    until(harness, &key, |called| called[0].stats.checked() == wanted).await;
    called(harness, &key)[0].stats.check_failure().map(|why| why.to_string()).unwrap_or_default()
}

/// The endpoints that this proxy calls.
fn called(harness: &Harness, key: &ClusterKey) -> Vec<Arc<Endpoint>> {
    let snapshot = harness.engine.shared().snapshot.load_full();
    snapshot.cluster(key).unwrap().endpoints().pickable().to_vec()
}

/// Waits until this is so of those that it calls.
async fn until(harness: &Harness, key: &ClusterKey, is_so: impl Fn(&[Arc<Endpoint>]) -> bool) {
    let reached = async {
        while !is_so(&called(harness, key)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), reached).await;
    let states: Vec<_> =
        called(harness, key).iter().map(|one| (one.address(), one.stats.checked())).collect();
    waited.unwrap_or_else(|_| panic!("never: {states:?}"));
}

/// Answers requests with a status that can be changed; tells the last head.
async fn web(well: &Arc<AtomicBool>) -> (SocketAddr, Arc<parking_lot::Mutex<String>>) {
    let seen = Arc::new(parking_lot::Mutex::new(String::new()));
    let (well, told) = (Arc::clone(well), Arc::clone(&seen));
    let server = upstream(move |bytes| {
        is_head(bytes).then(|| {
            *told.lock() = String::from_utf8_lossy(bytes).into_owned();
            let status = if well.load(Ordering::SeqCst) { "200 OK" } else { "500 No" };
            format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes()
        })
    })
    .await;
    (server.address, seen)
}

#[tokio::test]
async fn http_goes_out_and_in_with_what_the_page_says() {
    let well = Arc::new(AtomicBool::new(true));
    let (address, seen) = web(&well).await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[address]).await;
    harness.change([on_web(check(http("/healthz?deep=1")))]).await;
    says(&harness, "default/web", Checked::Healthy).await;
    let head = seen.lock().to_lowercase();
    assert!(head.starts_with("get /healthz?deep=1 http/1.1\r\n"), "{head}");
    assert!(
        head.contains("host: web.default\r\n") && head.contains("user-agent: meshwork health check"),
        "{head}"
    );
    well.store(false, Ordering::SeqCst);
    let why = says(&harness, "default/web", Checked::Unhealthy).await;
    assert_eq!(why, "HTTP GET /healthz?deep=1: 500 Internal Server Error");
    well.store(true, Ordering::SeqCst);
    assert_eq!(says(&harness, "default/web", Checked::Healthy).await, "");
    harness.change([Change::remove::<v1::Policy>("default/p")]).await;
    says(&harness, "default/web", Checked::Unknown).await;
}

#[tokio::test]
async fn who_is_out_and_fails_for_another_reason_is_told_with_that() {
    let moved = Arc::new(AtomicBool::new(false));
    let has_moved = Arc::clone(&moved);
    let page = upstream(move |bytes| {
        let status = if has_moved.load(Ordering::SeqCst) { "404 No" } else { "500 No" };
        is_head(bytes).then(|| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[page.address]).await;
    harness.change([on_web(check(http("/")))]).await;
    let why = says(&harness, "default/web", Checked::Unhealthy).await;
    assert_eq!(why, "HTTP GET /: 500 Internal Server Error");
    moved.store(true, Ordering::SeqCst);
    let last = |called: &[Arc<Endpoint>]| {
        called[0].stats.check_failure().is_some_and(|why| *why == "HTTP GET /: 404 Not Found")
    };
    until(&harness, &ClusterKey::whole("default/web".into(), 80), last).await;
    assert_eq!(
        harness.metric("meshwork_health_check_changes_total", &["unhealthy"]),
        1,
        "it is out as before"
    );
}

#[tokio::test]
async fn who_is_not_there_is_out_at_once() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], support::free_port()));
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[nobody]).await;
    harness.change([on_web(check(http("/")))]).await;
    let why = says(&harness, "default/web", Checked::Unhealthy).await;
    assert!(why.contains(&format!("connect to {nobody}")), "{why}");
}

#[tokio::test]
async fn whatever_the_number_of_workers_an_endpoint_is_asked_once() {
    let well = Arc::new(AtomicBool::new(true));
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let server = upstream(move |bytes| {
        is_head(bytes).then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()
        })
    })
    .await;
    drop(well);
    let mut harness = Harness::start(Settings { workers: 4, ..Settings::default() });
    harness.service("web", AppProtocol::Http1, &[server.address]).await;
    harness.change([on_web(once(http("/")))]).await;
    says(&harness, "default/web", Checked::Healthy).await;
    for _ in 0..20 {
        harness.engine.check_endpoints();
        tokio::task::yield_now().await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(harness.metric("meshwork_health_checks_total", &["success"]), 1);
    assert_eq!(harness.metric("meshwork_upstream_connections_total", &[]), 0, "it is no traffic");
}

/// `default/web` with these subsets by version, and one endpoint of version `v1`.
fn in_subsets(address: SocketAddr, subsets: &[&str]) -> [Change; 2] {
    let subset = |name: &&str| v1::service::Subset {
        name: (*name).to_owned(),
        labels: [("version".to_owned(), "v1".to_owned())].into(),
        ..Default::default()
    };
    let port = v1::ServicePort { name: "http".into(), port: 80, protocol: AppProtocol::Http1.into() };
    let service = v1::Service {
        ports: vec![port],
        subsets: subsets.iter().map(subset).collect(),
        ..Default::default()
    };
    let endpoint = v1::Endpoint {
        addresses: vec![address.ip().to_string()],
        health: v1::endpoint::Health::Healthy.into(),
        weight: 1,
        version: "v1".into(),
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: "default/web".into(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: address.port().into() }],
        endpoints: vec![endpoint],
        ..Default::default()
    };
    [Change::upsert("default/web", "1", &service), Change::upsert("default/web-1", "1", &slice)]
}

fn subset(name: &str) -> ClusterKey {
    ClusterKey { subset: name.into(), ..ClusterKey::whole("default/web".into(), 80) }
}

#[tokio::test]
async fn whatever_subsets_an_endpoint_is_in_it_is_asked_once_and_all_hear_of_it() {
    let well = Arc::new(AtomicBool::new(true));
    let (address, _) = web(&well).await;
    let mut harness = Harness::start(Settings::default());
    harness.change(in_subsets(address, &["one"])).await;
    harness.change([on_web(once(http("/")))]).await;
    for name in ["", "one"] {
        until(&harness, &subset(name), |called| called[0].stats.checked() == Checked::Healthy).await;
    }
    harness.change(in_subsets(address, &["one", "two"])).await;
    let says = |name: &str| called(&harness, &subset(name))[0].stats.checked();
    assert_eq!(says("two"), Checked::Healthy, "what is known is known at once");
    assert_eq!(harness.metric("meshwork_health_checks_total", &[]), 1);
    harness.change(in_subsets(address, &["two"])).await;
    harness.change([on_web(check(http("/")))]).await;
    well.store(false, Ordering::SeqCst);
    for name in ["", "two"] {
        let is_out = |called: &[Arc<Endpoint>]| {
            let why = called[0].stats.check_failure();
            called[0].stats.checked() == Checked::Unhealthy
                && why.is_some_and(|why| *why == "HTTP GET /: 500 Internal Server Error")
        };
        until(&harness, &subset(name), is_out).await;
    }
    assert_eq!(harness.metric("meshwork_health_check_changes_total", &["unhealthy"]), 1, "it is told once");
    harness.change([Change::remove::<v1::Policy>("default/p")]).await;
    for name in ["", "two"] {
        until(&harness, &subset(name), |called| called[0].stats.checked() == Checked::Unknown).await;
    }
}

/// What this says, with so many endpoints called of all; the first failure of requests ejects one.
fn a_part(subset_size: u32, spec: v1::policy::Spec) -> v1::policy::Spec {
    let v1::policy::Spec::Traffic(traffic) = spec else { unreachable!("it is about traffic") };
    v1::policy::Spec::Traffic(v1::TrafficPolicy {
        load_balancer: Some(v1::LoadBalancer { subset_size, ..Default::default() }),
        outlier_detection: Some(v1::OutlierDetection {
            consecutive_5xx: Some(1),
            base_ejection_time_ms: 3_600_000,
            max_ejection_time_ms: 3_600_000,
            max_ejection_percent: 100,
            interval_ms: 10_000,
            ..crate::support::rows_off()
        }),
        ..traffic
    })
}

#[tokio::test]
async fn who_takes_the_place_of_one_that_fails_checks_is_asked_too() {
    let well = [(); 2].map(|()| Arc::new(AtomicBool::new(true)));
    let addresses = [web(&well[0]).await.0, web(&well[1]).await.0];
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &addresses).await;
    harness.change([on_web(a_part(1, check(http("/"))))]).await;
    let whole = subset("");
    until(&harness, &whole, |called| called.len() == 1 && called[0].stats.checked() == Checked::Healthy)
        .await;
    let first = called(&harness, &whole)[0].address();
    well[usize::from(first == addresses[1])].store(false, Ordering::SeqCst);
    let both_asked = |called: &[Arc<Endpoint>]| {
        let says = |one: &Arc<Endpoint>| {
            one.stats.checked() == if one.address() == first { Checked::Unhealthy } else { Checked::Healthy }
        };
        called.len() == 2 && called.iter().all(says)
    };
    until(&harness, &whole, both_asked).await;
}

#[tokio::test]
async fn who_takes_the_place_of_one_that_fails_requests_is_asked_too() {
    let answers = || {
        upstream(|bytes| {
            let status = if bytes.starts_with(b"GET /healthz") { "200 OK" } else { "500 No" };
            is_head(bytes).then(|| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes())
        })
    };
    let addresses = [answers().await.address, answers().await.address, answers().await.address];
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &addresses).await;
    let listener = harness.route(vec![support::rule(&[("web", 1)], vec![])]).await;
    harness.change([on_web(a_part(2, once(http("/healthz"))))]).await;
    let whole = subset("");
    let are_well = |count: usize| {
        move |called: &[Arc<Endpoint>]| {
            called.len() == count && called.iter().all(|one| one.stats.checked() == Checked::Healthy)
        }
    };
    until(&harness, &whole, are_well(2)).await;
    let answer = support::exchange(listener, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    until(&harness, &whole, are_well(3)).await;
}

/// Greets with this, once it has got that.
async fn greets(first: &'static [u8], with: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut got = vec![0; first.len()];
                if tcp.read_exact(&mut got).await.is_ok() && got == first {
                    let _ = tcp.write_all(with).await;
                }
            });
        }
    });
    address
}

fn tcp(send: &str, receive: &str) -> Probe {
    Probe::Tcp(Tcp { send: send.to_owned().into(), receive: receive.to_owned().into() })
}

#[tokio::test]
async fn tcp_wants_what_it_waits_for() {
    let address = greets(b"PING\r\n", b"+PONG\r\n").await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Tcp, &[address]).await;
    harness.change([on_web(check(tcp("PING\r\n", "PONG")))]).await;
    says(&harness, "default/web", Checked::Healthy).await;
    harness.change([on_web(check(tcp("PING\r\n", "READY")))]).await;
    let why = says(&harness, "default/web", Checked::Unhealthy).await;
    assert!(why.contains("it closed after 7 bytes"), "{why}");
}

/// gRPC's health service: it knows `shop.Reviews`, which serves when it is told so.
async fn grpc_health(serving: &Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = Arc::clone(serving);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let serving = Arc::clone(&serving);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let serving = Arc::clone(&serving);
                    tokio::spawn(async move {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        let body = request.into_body().data().await.unwrap().unwrap();
                        let known = body.ends_with(b"shop.Reviews");
                        let head = http::Response::builder().header("content-type", "application/grpc");
                        let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                        let state = if serving.load(Ordering::SeqCst) { 1 } else { 2 };
                        if known {
                            stream
                                .send_data(bytes::Bytes::from(vec![0, 0, 0, 0, 2, 8, state]), false)
                                .unwrap();
                        }
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", if known { "0" } else { "5" }.parse().unwrap());
                        stream.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

fn grpc(service: &str) -> Probe {
    Probe::Grpc(Grpc { service: service.into() })
}

#[tokio::test]
async fn grpc_asks_the_health_service() {
    let serving = Arc::new(AtomicBool::new(true));
    let address = grpc_health(&serving).await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Grpc, &[address]).await;
    harness.change([on_web(check(grpc("shop.Reviews")))]).await;
    says(&harness, "default/web", Checked::Healthy).await;
    serving.store(false, Ordering::SeqCst);
    let why = says(&harness, "default/web", Checked::Unhealthy).await;
    assert!(why.contains("status 2, not SERVING"), "{why}");
    serving.store(true, Ordering::SeqCst);
    says(&harness, "default/web", Checked::Healthy).await;
    harness.change([on_web(check(grpc("shop.Unknown")))]).await;
    let why = says(&harness, "default/web", Checked::Unhealthy).await;
    assert!(why.contains("gRPC status 5"), "{why}");
}

/// A proxy beside an application at `app`, and one that calls it; both kinds of ports are open.
async fn behind_sidecar(app: SocketAddr, protocol: AppProtocol) -> (TestMesh, Harness, Harness) {
    let mesh = TestMesh::new();
    let (web, db) = (mesh.identity("web"), mesh.identity("db"));
    let any = "127.0.0.1:0".parse().unwrap();
    let mut inbound = mesh.proxy(&db, None, Settings::default());
    inbound.change([mesh.bundle(1, &[]), serving(&db.id(), "db", app, protocol)]).await;
    let requests = inbound.engine.listen(Side::Inbound, any).await.unwrap();
    let hbone = inbound.engine.listen(Side::Hbone, any).await.unwrap();
    let mut outbound = mesh.proxy(&web, None, Settings::default());
    let changes = db_behind(&db.id(), app, protocol, (requests.port(), hbone.port()));
    outbound.change([mesh.bundle(1, &[])].into_iter().chain(changes)).await;
    (mesh, outbound, inbound)
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_mesh_http_reaches_the_application_and_not_only_its_proxy() {
    let well = Arc::new(AtomicBool::new(true));
    let (app, seen) = web(&well).await;
    let (_mesh, mut outbound, inbound) = behind_sidecar(app, AppProtocol::Http1).await;
    outbound.change([policy("p", "db", check(http("/healthz")))]).await;
    says(&outbound, "shop/db", Checked::Healthy).await;
    assert!(seen.lock().to_lowercase().contains("host: db.shop\r\n"), "{}", seen.lock());
    well.store(false, Ordering::SeqCst);
    let why = says(&outbound, "shop/db", Checked::Unhealthy).await;
    assert_eq!(why, "HTTP GET /healthz: 500 Internal Server Error");
    assert_eq!(outbound.metric("istio_requests_total", &[]), 0, "it is no traffic of the one that asks");
    drop(inbound);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_mesh_tcp_goes_through_a_tunnel_to_the_application() {
    let app = greets(b"PING\r\n", b"+PONG\r\n").await;
    let (_mesh, mut outbound, _inbound) = behind_sidecar(app, AppProtocol::Tcp).await;
    outbound.change([policy("p", "db", check(tcp("PING\r\n", "PONG")))]).await;
    says(&outbound, "shop/db", Checked::Healthy).await;
    outbound.change([policy("p", "db", check(tcp("PING\r\n", "READY")))]).await;
    let why = says(&outbound, "shop/db", Checked::Unhealthy).await;
    assert!(why.contains("without those that are waited for"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_mesh_an_application_that_is_gone_is_seen_behind_its_proxy() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], support::free_port()));
    let (_mesh, mut outbound, _inbound) = behind_sidecar(nobody, AppProtocol::Tcp).await;
    outbound.change([policy("p", "db", check(tcp("", "")))]).await;
    let why = says(&outbound, "shop/db", Checked::Unhealthy).await;
    assert!(why.contains("the tunnel was refused with 503"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_mesh_grpc_asks_the_application() {
    let serving = Arc::new(AtomicBool::new(true));
    let app = grpc_health(&serving).await;
    let (_mesh, mut outbound, _inbound) = behind_sidecar(app, AppProtocol::Grpc).await;
    outbound.change([policy("p", "db", check(grpc("shop.Reviews")))]).await;
    says(&outbound, "shop/db", Checked::Healthy).await;
    serving.store(false, Ordering::SeqCst);
    says(&outbound, "shop/db", Checked::Unhealthy).await;
}
