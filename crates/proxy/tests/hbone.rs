//! Opaque connections between two proxies of a mesh: the application's CONNECT on one side, HBONE to the other.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_decision::Change;
use meshwork_identity::{Expected, Identity};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Settings, Side};
use rustls_pki_types::ServerName;
use serde_json::Value;
use support::Harness;
use support::mesh::{TestMesh, db_behind, policy, serving};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::{Receiver, channel};

const PATIENCE: Duration = Duration::from_secs(20);

/// `web` calls `db`, each with its proxy.
struct Pair {
    _mesh: TestMesh,
    web: Arc<Identity>,
    db: Arc<Identity>,
    hbone: SocketAddr,
    outbound: Harness,
    inbound: Harness,
    proxy: SocketAddr,
}

impl Pair {
    async fn start(app: SocketAddr, protocol: AppProtocol) -> Self {
        Self::start_as(app, protocol, protocol).await
    }

    /// `db` declares one thing, and `web` goes by another.
    async fn start_as(app: SocketAddr, declared: AppProtocol, taken_for: AppProtocol) -> Self {
        let mesh = TestMesh::new();
        let (web, db) = (mesh.identity("web"), mesh.identity("db"));
        let any = "127.0.0.1:0".parse().unwrap();
        let mut inbound = mesh.proxy(&db, None, Settings::default());
        inbound.change([mesh.bundle(1, &[]), serving(&db.id(), "db", app, declared)]).await;
        let hbone = inbound.engine.listen(Side::Hbone, any).await.unwrap();
        let requests = inbound.engine.listen(Side::Inbound, any).await.unwrap();
        let mut outbound = mesh.proxy(&web, None, Settings::default());
        let changes = db_behind(&db.id(), app, taken_for, (requests.port(), hbone.port()));
        outbound.change([mesh.bundle(1, &[])].into_iter().chain(changes)).await;
        let proxy = outbound.engine.listen(Side::Outbound, any).await.unwrap();
        Self { _mesh: mesh, web, db, hbone, outbound, inbound, proxy }
    }

    /// Asks for a tunnel; gives the status, and the connection behind the answer's head.
    async fn connect(&self, to: &str) -> (u16, TcpStream) {
        tunnel(self.proxy, to).await
    }
}

async fn tunnel(proxy: SocketAddr, to: &str) -> (u16, TcpStream) {
    let mut tcp = TcpStream::connect(proxy).await.unwrap();
    tcp.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), tcp)
}

/// An endpoint of `db` without a proxy.
fn plain(slice: &str, at: SocketAddr) -> Change {
    let message = v1::EndpointSlice {
        service: "shop/db".into(),
        ports: vec![v1::EndpointPort { name: "db".into(), port: at.port().into() }],
        endpoints: vec![v1::Endpoint {
            addresses: vec![at.ip().to_string()],
            weight: 1,
            ..Default::default()
        }],
        ..Default::default()
    };
    Change::upsert(&format!("shop/{slice}"), "1", &message)
}

/// Greets, then gives back what it gets, and ends after its caller.
async fn greeting() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                tcp.write_all(b"220 ready\r\n").await.unwrap();
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn all(tcp: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut all)).await.expect("an end comes").map(|_| all)
}

async fn line(harness: &Harness, number: usize) -> Value {
    serde_json::from_str(&harness.lines(number + 1).await[number]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opaque_connection_passes_two_proxies_and_both_know_with_whom() {
    let pair = Pair::start(greeting().await, AppProtocol::Tcp).await;
    let (status, mut tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 7)).to_le_bytes()[0]).collect();
    let (mut read, mut write) = tcp.split();
    let send = async {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let receive = async { read.read_to_end(&mut back).await.unwrap() };
    tokio::time::timeout(PATIENCE, async { tokio::join!(send, receive) }).await.expect("both ends come");
    assert!(back.starts_with(b"220 ready\r\n") && back[11..] == data, "{} bytes", back.len());

    let (out, inside) = (line(&pair.outbound, 0).await, line(&pair.inbound, 0).await);
    for line in [&out, &inside] {
        assert_eq!((&line["protocol"], &line["response_flags"]), (&"TCP".into(), &"-".into()), "{line}");
        assert_eq!(line["bytes_received"], data.len());
        assert_eq!(line["bytes_sent"], data.len() + 11);
        assert_eq!(line["upstream_cluster"], "shop/db:80");
    }
    assert_eq!(inside["downstream_peer_id"], pair.web.id().as_str());
    assert_eq!(out["upstream_peer_id"], "spiffe://mesh.local/ns/shop/sa/db");
    let secured = [
        "connection_security_policy=\"mutual_tls\"",
        "source_workload=\"web\"",
        "destination_workload=\"db\"",
    ];
    for (harness, reporter) in
        [(&pair.outbound, "reporter=\"source\""), (&pair.inbound, "reporter=\"destination\"")]
    {
        let labels: Vec<&str> = secured.into_iter().chain([reporter]).collect();
        harness.wait_metric("istio_tcp_connections_closed_total", &labels, 1).await;
        harness.wait_metric("istio_tcp_received_bytes_total", &labels, data.len() as u64).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_tunnel_that_breaks_both_proxies_say_which_side_broke_and_by_which_code() {
    const RESET: &str = "Connection reset by peer (os error 104)";
    const PASSED_ON: &str = "HTTP/2: the stream was reset by the peer: CONNECT_ERROR";
    let abort = |tcp: &TcpStream| socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = Pair::start(listener.local_addr().unwrap(), AppProtocol::Tcp).await;
    for (number, (by_app, out, inside)) in [
        (true, ("endpoint", PASSED_ON), ("endpoint", RESET)),
        (false, ("caller", RESET), ("caller", PASSED_ON)),
    ]
    .into_iter()
    .enumerate()
    {
        let (_, mut caller) = pair.connect("db:80").await;
        let (mut app, _) = listener.accept().await.unwrap();
        caller.write_all(b"ask?").await.unwrap();
        app.read_exact(&mut [0; 4]).await.unwrap();
        let (breaks, mut other) = if by_app { (app, caller) } else { (caller, app) };
        abort(&breaks);
        drop(breaks);
        assert_eq!(all(&mut other).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        for (harness, (side, what)) in [(&pair.outbound, out), (&pair.inbound, inside)] {
            let line = line(harness, number).await;
            assert_eq!(line["cause_detail"], format!("reading from the {side}: {what}"), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_call_is_refused_and_what_cannot_be_seen_grants_nothing() {
    use v1::authorization_policy::Action;
    use v1::authorization_rule::{Operation, Peer};
    let mut pair = Pair::start(greeting().await, AppProtocol::Tcp).await;
    let web = vec![Peer { spiffe_ids: vec![pair.web.id().as_str().to_owned()], ..Default::default() }];
    let get = vec![Operation { methods: vec!["GET".to_owned()], ..Default::default() }];
    let cases = [
        (Action::Allow, web.clone(), vec![], 200),
        (Action::Allow, web.clone(), get.clone(), 403),
        (Action::Deny, web.clone(), get, 403),
        (Action::Deny, web, vec![], 403),
    ];
    for (number, (action, from, to, expected)) in cases.into_iter().enumerate() {
        let rules = vec![v1::AuthorizationRule { from, to }];
        let spec = v1::policy::Spec::Authorization(v1::AuthorizationPolicy { action: action.into(), rules });
        pair.inbound.change([policy("who", "db", spec)]).await;
        let (status, tcp) = pair.connect("db:80").await;
        assert_eq!(status, expected, "{action:?} {number}");
        drop(tcp);
        let told = line(&pair.inbound, number).await;
        let cause = if expected == 200 { Value::Null } else { "authorization_denied".into() };
        assert!(expected == 200 || told["cause"] == cause, "{told}");
    }
}

/// Asks the proxy beside `db` for tunnels as another one would, over one connection; the statuses. `sni`: the name in the
/// handshake, as proxies of ours have it; without it as those of others.
async fn tunnels(pair: &Pair, sni: Option<&str>, authorities: &[&str]) -> Vec<u16> {
    let mut config = pair.web.client_config(vec![b"h2".to_vec()], Expected::one(pair.db.id()));
    Arc::make_mut(&mut config).enable_sni = sni.is_some();
    let name = ServerName::try_from(sni.unwrap_or("db").to_owned()).unwrap();
    let tcp = TcpStream::connect(pair.hbone).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
    let (mut client, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let mut statuses = Vec::new();
    for authority in authorities {
        let request = http::Request::connect(*authority).body(()).unwrap();
        let (response, _sends) = client.send_request(request, false).unwrap();
        statuses.push(response.await.unwrap().status().as_u16());
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_to_something_else_than_what_is_here_is_refused() {
    let app = greeting().await;
    let pair = Pair::start(app, AppProtocol::Tcp).await;
    let own = format!("10.9.8.7:{}", app.port());
    let good = ["db.shop:80", "db:80", &own];
    let bad = ["web.shop:80", "db.shop:81", "127.0.0.1:15000", "10.9.8.7:15008"];
    for sni in [Some("80.db.shop.mesh"), None] {
        assert_eq!(tunnels(&pair, sni, &good).await, [200; 3], "{sni:?}");
        assert_eq!(tunnels(&pair, sni, &bad).await, [404; 4], "{sni:?}");
    }
    let lines = pair.inbound.lines(14).await;
    for authority in bad {
        let told = format!("\"cause_detail\":\"{authority}\"");
        let refused =
            lines.iter().filter(|line| line.contains("\"unknown_app_port\"") && line.contains(&told));
        assert_eq!(refused.count(), 2, "{authority}: {lines:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_identity_gets_into_a_tunnel() {
    let app = greeting().await;
    let pair = Pair::start(app, AppProtocol::Tcp).await;
    let spec =
        v1::policy::Spec::Inbound(v1::InboundPolicy { mtls: v1::inbound_policy::Mtls::Permissive.into() });
    let mut inbound = pair.inbound;
    inbound.change([policy("open", "db", spec)]).await;
    let hbone = inbound.engine.listen(Side::Hbone, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut tcp = TcpStream::connect(hbone).await.unwrap();
    tcp.write_all(b"CONNECT db:80 HTTP/1.1\r\nHost: db:80\r\n\r\n").await.unwrap();
    let answer = all(&mut tcp).await.unwrap_or_default();
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    inbound
        .wait_metric("meshwork_tls_handshake_failures_total", &["cause=\"peer_unauthenticated\""], 1)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_declares_nothing_is_found_out_and_http_rules_are_not_passed_by() {
    let mut pair = Pair::start(greeting().await, AppProtocol::Unspecified).await;
    // The server speaks first: the caller is silent, and what comes is opaque.
    let (status, mut tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    let mut greeted = [0; 11];
    tokio::time::timeout(PATIENCE, tcp.read_exact(&mut greeted)).await.expect("a greeting").unwrap();
    assert_eq!(&greeted, b"220 ready\r\n");
    drop(tcp);

    pair.outbound.change([route_of_db()]).await;
    let (status, mut tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    tcp.write_all(b"PING\r\n").await.unwrap();
    assert!(all(&mut tcp).await.is_err(), "opaque, it would pass the rules by");
    // HTTP inside goes the way of requests: the rule has no backend.
    let (_, mut tcp) = pair.connect("db:80").await;
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: db:80\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(all(&mut tcp).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 500") && answer.ends_with("no_backends\n"), "{answer}");
}

/// An application that answers in HTTP/1.1.
async fn web() -> support::Upstream {
    support::upstream(|got| {
        support::is_head(got).then(|| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())
    })
    .await
}

/// Clients open tunnels ahead, and have busy moments: 50 ms of silence are not the word that this is no HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_at_first_may_speak_http_yet() {
    let app = web().await;
    let pair = Pair::start(app.address, AppProtocol::Unspecified).await;
    // The second time its proxy knows the application for HTTP, and takes no tunnel to it.
    for known in [false, true] {
        let (status, mut tcp) = pair.connect("db:80").await;
        assert_eq!(status, 200);
        // So long that it is taken for one whose server speaks first.
        tokio::time::sleep(Duration::from_millis(400)).await;
        tcp.write_all(b"GET / HT").await.unwrap();
        tcp.write_all(b"TP/1.1\r\nHost: db:80\r\nConnection: close\r\n\r\n").await.unwrap();
        let answer = String::from_utf8(all(&mut tcp).await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "known: {known}: {answer}");
    }
    for number in 0..2 {
        let line = line(&pair.outbound, number).await;
        assert_eq!((&line["method"], &line["protocol"]), (&"GET".into(), &"HTTP/1.1".into()), "{line}");
    }
    let lines = pair.inbound.lines(4).await;
    let tunnels: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let flags: Vec<_> =
        tunnels.iter().filter(|line| line["protocol"] == "TCP").map(|line| &line["response_flags"]).collect();
    assert!(
        flags.contains(&&"-".into()),
        "of the first one nothing was wanted, and it has not failed: {lines:?}"
    );
}

/// Of several that were opened ahead the first to speak makes the application known.
#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_is_not_needed_is_no_failure_where_its_application_is_known_by_then() {
    let app = web().await;
    let pair = Pair::start(app.address, AppProtocol::Unspecified).await;
    let (mut first, mut second) = (pair.connect("db:80").await.1, pair.connect("db:80").await.1);
    pair.inbound.wait_metric("istio_tcp_connections_opened_total", &[], 2).await;
    for tcp in [&mut first, &mut second] {
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: db:80\r\nConnection: close\r\n\r\n").await.unwrap();
        let answer = String::from_utf8(all(tcp).await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let lines: Vec<Value> =
        pair.inbound.lines(4).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tunnels: Vec<_> = lines.iter().filter(|line| line["protocol"] == "TCP").collect();
    assert_eq!(tunnels.len(), 2, "{lines:?}");
    assert!(tunnels.iter().all(|line| line["response_flags"] == "-"), "{tunnels:?}");
}

/// Servers close connections on which nobody asks, and some say so first (HAProxy).
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_caller_is_not_cut_off_by_an_application_that_waits_no_longer() {
    const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = Pair::start(listener.local_addr().unwrap(), AppProtocol::Unspecified).await;
    let (status, mut tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    let (mut served, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.expect("a tunnel").unwrap();
    pair.inbound.wait_metric("istio_tcp_connections_opened_total", &[], 1).await;
    served.write_all(LATE).await.unwrap();
    drop(served);
    // Nothing has gone either way: it may as well have another one.
    let _idle = tokio::time::timeout(PATIENCE, listener.accept()).await.expect("another tunnel").unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: db:80\r\nConnection: close\r\n\r\n").await.unwrap();
    let (mut served, _) =
        tokio::time::timeout(PATIENCE, listener.accept()).await.expect("a request").unwrap();
    support::read_until(&mut served, "\r\n\r\n").await;
    served.write_all(OK).await.unwrap();
    let answer = String::from_utf8(all(&mut tcp).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
}

fn route_of_db() -> Change {
    let parent = v1::route::attachment::Parent::Service("shop/db".into());
    let route = v1::Route {
        source: Some(v1::Source {
            kind: "HTTPRoute".into(),
            name: "r".into(),
            namespace: "shop".into(),
            ..Default::default()
        }),
        attachments: vec![v1::route::Attachment { parent: Some(parent), ..Default::default() }],
        rules: vec![support::rule(&[], vec![])],
    };
    Change::upsert("HTTPRoute/shop/r", "1", &route)
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_come_while_a_caller_is_silent_are_not_passed_by_either() {
    let (app, mut got) = recording(b"").await;
    let mut pair = Pair::start(app, AppProtocol::Unspecified).await;
    let (status, mut tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    // So long that it is taken for one whose server speaks first.
    tokio::time::sleep(Duration::from_millis(400)).await;
    pair.outbound.change([route_of_db()]).await;
    tcp.write_all(b"PING\r\n").await.unwrap();
    assert!(all(&mut tcp).await.is_err(), "opaque, it would pass the rules by");
    assert_eq!(line(&pair.outbound, 0).await["cause"], "downstream_protocol_error");
    assert!(got.try_recv().is_err(), "and nothing has come through");
}

/// A connection that was not needed says nothing about who answers requests.
#[tokio::test(flavor = "multi_thread")]
async fn an_unused_tunnel_is_no_success_between_two_failures() {
    // By this answer nobody knows it for a server of HTTP.
    const FAILED: &[u8] = b"HTTP/1.1 500 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n<close>";
    let app = support::upstream(|got| support::is_head(got).then(|| FAILED.to_vec())).await;
    let mut pair = Pair::start(app.address, AppProtocol::Unspecified).await;
    let circuit_breaker = Some(v1::CircuitBreaker {
        minimum_calls: 2,
        failure_percent: 100,
        open_ms: 60_000,
        ..Default::default()
    });
    let spec = v1::TrafficPolicy { circuit_breaker, ..Default::default() };
    pair.outbound.change([policy("breaker", "db", v1::policy::Spec::Traffic(spec))]).await;
    for silence in [0, 400] {
        let (status, mut tcp) = pair.connect("db:80").await;
        assert_eq!(status, 200);
        tokio::time::sleep(Duration::from_millis(silence)).await;
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: db:80\r\nConnection: close\r\n\r\n").await.unwrap();
        let answer = String::from_utf8(all(&mut tcp).await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    }
    pair.outbound.wait_metric("meshwork_circuit_breaker_changes_total", &["shop/db", "\"open\""], 1).await;
}

/// A client that opens connections ahead may say the first word in an hour.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_keeps_nobody_from_an_endpoint_that_is_to_be_tried_again() {
    let (mesh, any) = (TestMesh::new(), SocketAddr::from(([127, 0, 0, 1], 0)));
    let (refuses, serves) = (TcpSocket::new_v4().unwrap(), TcpListener::bind(any).await.unwrap());
    refuses.bind(any).unwrap();
    let one = plain("db-1", refuses.local_addr().unwrap());
    let other = plain("db-2", serves.local_addr().unwrap());
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: Some(1),
        base_ejection_time_ms: 30_000,
        max_ejection_percent: 50,
        ..support::rows_off()
    });
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    let traffic = v1::TrafficPolicy { outlier_detection, algorithm, ..Default::default() };
    let policy = policy("out", "db", v1::policy::Spec::Traffic(traffic));
    let mut web = mesh.proxy(&mesh.identity("web"), None, Settings::default());
    let [service, _] = db_behind(&mesh.id("db"), any, AppProtocol::Unspecified, (1, 1));
    web.change([mesh.bundle(1, &[]), service, one, other, policy]).await;
    let proxy = web.engine.listen(Side::Outbound, any).await.unwrap();
    while web.metric("meshwork_endpoint_ejections_total", &[]) == 0 {
        let (_, mut tcp) = tunnel(proxy, "db:80").await;
        tcp.write_all(b"\0").await.unwrap();
        serves.accept().await.unwrap();
    }
    mesh.clock.advance(Duration::from_secs(30));
    let tried = refuses.listen(8).unwrap();
    let (mut silent, mut trials, mut served) = (Vec::new(), Vec::new(), Vec::new());
    while trials.len() < 2 {
        assert!(silent.len() < 8, "nobody else tries it: {trials:?}");
        silent.push(tunnel(proxy, "db:80").await.1);
        tokio::select! {
            accepted = tried.accept() => trials.push(accepted.unwrap()),
            accepted = serves.accept() => served.push(accepted.unwrap()),
        }
    }
    assert_eq!(web.metric("meshwork_endpoint_returns_total", &[]), 0, "nobody has said a word");
    for tcp in &mut silent {
        tcp.write_all(b"\0").await.unwrap();
    }
    web.wait_metric("meshwork_endpoint_returns_total", &["service=\"shop/db\""], 1).await;
}

/// What may yet become a method is passed on all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_word_in_capitals_that_waits_for_its_answer_is_not_kept() {
    let (app, mut got) = recording(b"WORLD").await;
    let pair = Pair::start(app, AppProtocol::Unspecified).await;
    let (status, mut tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    tcp.write_all(b"HELLO").await.unwrap();
    assert_eq!(reach(&mut got, 5).await, b"HELLO");
    let mut answer = [0; 5];
    tokio::time::timeout(PATIENCE, tcp.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(&answer, b"WORLD");
}

/// Each would be served within the one before, without end.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_connect_there_is_no_other() {
    let app = web().await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    let (status, mut tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    tcp.write_all(b"CONNECT db:80 HTTP/1.1\r\nHost: db:80\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(all(&mut tcp).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_a_connect_the_version_is_the_callers_whatever_the_port_declares() {
    let app = web().await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    let (status, tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    let (client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://db:80/").body(()).unwrap();
    let (response, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, response).await.expect("an answer").unwrap().status(), 200);

    let app = support::h2::h2_upstream(usize::MAX, |_, _, respond| {
        support::h2::answer(respond, b"ok");
        std::future::ready(())
    })
    .await;
    let pair = Pair::start(app.address, AppProtocol::Http2).await;
    let (status, mut tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: db:80\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(all(&mut tcp).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("ok"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_service_or_port_and_a_dead_application_are_answered() {
    let dead: SocketAddr = ([127, 0, 0, 1], support::free_port()).into();
    let pair = Pair::start(dead, AppProtocol::Tcp).await;
    assert_eq!(pair.connect("nobody:80").await.0, 404);
    assert_eq!(pair.connect("db:81").await.0, 404);
    assert_eq!(pair.connect("db:80").await.0, 503);
    assert_eq!(line(&pair.inbound, 0).await["cause"], "connect_failure");
}

/// An application that says what it gets, and answers each time.
async fn recording(answer: &'static [u8]) -> (SocketAddr, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (got, all) = channel(64);
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let got = got.clone();
            tokio::spawn(async move {
                let mut part = [0; 4096];
                while let Ok(count @ 1..) = tcp.read(&mut part).await {
                    let _ = got.send(part[..count].to_vec()).await;
                    let _ = tcp.write_all(answer).await;
                }
            });
        }
    });
    (address, all)
}

/// The next so many bytes that reach the application.
async fn reach(got: &mut Receiver<Vec<u8>>, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        bytes.extend(tokio::time::timeout(PATIENCE, got.recv()).await.expect("bytes").expect("it goes on"));
    }
    bytes
}

/// Sends these in turn through a tunnel of its own, the next when all before have reached the application; then the
/// tunnel has broken, and of the last nothing has come.
async fn breaks(pair: &Pair, got: &mut Receiver<Vec<u8>>, parts: &[&[u8]], number: usize) {
    let (status, mut tcp) = pair.connect("db:80").await;
    assert_eq!(status, 200);
    let (last, before) = parts.split_last().unwrap();
    for part in before {
        tcp.write_all(part).await.unwrap();
        assert_eq!(reach(got, part.len()).await, *part);
    }
    tcp.write_all(last).await.unwrap();
    let after = all(&mut tcp).await;
    assert!(after.as_ref().map_or(true, Vec::is_empty), "{}: {after:?}", last.escape_ascii());
    let inside = line(&pair.inbound, number).await;
    assert_eq!(inside["cause"], "downstream_protocol_error", "{inside}");
    assert!(got.try_recv().is_err(), "{} came through", last.escape_ascii());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_do_not_reach_an_application_as_bytes_of_a_tunnel_whenever_they_come() {
    let (app, mut got) = recording(b"").await;
    let pair = Pair::start(app, AppProtocol::Unspecified).await;
    let request = b"\r\nget / HTTP/1.1\r\nhost: db\r\n\r\n";
    for (number, cut) in [0, 2, 10, 17].into_iter().enumerate() {
        let (before, after) = request.split_at(cut);
        let parts = if cut == 0 { &[after][..] } else { &[before, after] };
        breaks(&pair, &mut got, parts, number).await;
    }
    let (_, mut tcp) = pair.connect("db:80").await;
    let other = b"get / of what is no request\r\nHTTP/1.1\r\n";
    tcp.write_all(other).await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(reach(&mut got, other.len()).await, other);
    assert!(all(&mut tcp).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_do_those_that_only_some_servers_take_for_one() {
    let (app, mut got) = recording(b"").await;
    let pair = Pair::start(app, AppProtocol::Unspecified).await;
    // An empty line before it is opaque to the caller's proxy at once.
    let lines: [&[u8]; 8] = [
        b"\r\nGET /admin\r\n",
        b"m /admin HTTP/1.1                 \r\n",
        b"\0m /admin HTTP/1.1\r\n",
        b"\r\nPOST /admin RTSP/1.1\r\n",
        b"m /a\xa0b HTTP/1.1\r\n",
        b"m\x01 /admin HTTP/2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nm / HTTP/1.1\r\n",
        b"PROXY a:80 HTTP/1.1\r\n",
    ];
    for (number, request) in lines.into_iter().enumerate() {
        breaks(&pair, &mut got, &[request], number).await;
    }
    // What had come before the end may be there; the end is not.
    let (_, mut tcp) = pair.connect("db:80").await;
    tcp.write_all(b"m /admin HTTP/1.1").await.unwrap();
    reach(&mut got, 17).await;
    tcp.shutdown().await.unwrap();
    let end = all(&mut tcp).await;
    let inside = line(&pair.inbound, lines.len()).await;
    assert_eq!(inside["cause"], "downstream_protocol_error", "{end:?}, {inside}");
    let (_, mut tcp) = pair.connect("db:80").await;
    let hello = b"\x16\x03\x01\x00\x33\x01\x00\x00\x2f\x03\x03/* GET / and what else there may be\n";
    tcp.write_all(hello).await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(reach(&mut got, hello.len()).await, hello);
    assert!(all(&mut tcp).await.unwrap().is_empty());
}

/// To some servers any line is a request's.
#[tokio::test(flavor = "multi_thread")]
async fn no_line_of_a_tunnel_says_who_calls() {
    let (app, mut got) = recording(b"").await;
    let pair = Pair::start(app, AppProtocol::Unspecified).await;
    let field = b"X_Forwarded-Client-Cert: URI=spiffe://mesh.local/ns/shop/sa/admin\r\n\r\n";
    breaks(&pair, &mut got, &[b"m1 a:80\r\nhost: a\r\n", field], 0).await;
    breaks(&pair, &mut got, &[b"m1 a:80\n", b"x-forwarded-", b"client-cert:"], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_http_says_that_a_tunnel_carries_requests() {
    let (app, mut got) = recording(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let pair = Pair::start(app, AppProtocol::Unspecified).await;
    let (_, mut tcp) = pair.connect("db:80").await;
    tcp.write_all(b"m1 a:80\r\n\r\n").await.unwrap();
    reach(&mut got, 11).await;
    let answer = all(&mut tcp).await;
    assert!(answer.as_ref().map_or(true, Vec::is_empty), "{answer:?}");
    assert_eq!(line(&pair.inbound, 0).await["cause"], "downstream_protocol_error");
}

/// Answers requests so, and whatever else there is with something that is no HTTP.
async fn answering(answer: &'static str) -> SocketAddr {
    let app = support::upstream(move |held| {
        let is_request = held.starts_with(b"GET / HTTP/1.1\r\n");
        let ends = held.ends_with(if is_request { b"\r\n\r\n" } else { b"\n" });
        let answer = if is_request { answer } else { "pong\r\n" };
        ends.then(|| answer.as_bytes().to_vec())
    });
    app.await.address
}

/// Says a line that nobody knows through a tunnel of its own; false: the tunnel broke.
async fn is_answered(tcp: &mut TcpStream) -> bool {
    answers(tcp, b"m1 a:80\n").await
}

async fn answers(tcp: &mut TcpStream, line: &[u8]) -> bool {
    tcp.write_all(line).await.unwrap();
    let answer =
        tokio::time::timeout(PATIENCE, tcp.read_exact(&mut [0; 6])).await.expect("an answer or an end");
    answer.is_ok()
}

const REQUEST: &[u8] = b"GET http://db/ HTTP/1.1\r\nHost: db\r\nConnection: close\r\n\r\n";
const ANSWERED: &str = "its application has answered in HTTP, or another service declares that it does: it takes requests, and no tunnels unless its port declares tcp";

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_has_answered_in_http_takes_no_tunnels_any_more() {
    let pair = Pair::start(
        answering("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await,
        AppProtocol::Unspecified,
    )
    .await;
    let (_, mut before) = pair.connect("db:80").await;
    assert!(answers(&mut before, b"ping\n").await);
    let (_, mut ahead) = pair.connect("db:80").await;
    assert!(is_answered(&mut ahead).await);
    let answer = support::exchange(pair.proxy, REQUEST).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert_eq!(line(&pair.inbound, 0).await["response_code"], 404);

    let (_, mut tcp) = pair.connect("db:80").await;
    assert!(!is_answered(&mut tcp).await);
    let refused = line(&pair.inbound, 1).await;
    assert_eq!(
        (&refused["cause"], &refused["cause_detail"]),
        (&"downstream_protocol_error".into(), &ANSWERED.into()),
        "{refused}"
    );
    // To who asked it is no failure of the endpoint, which would be passed by for requests too.
    let told = line(&pair.outbound, 1).await;
    assert_eq!(
        (&told["cause"], &told["response_flags"]),
        (&"downstream_protocol_error".into(), &"DPE".into()),
        "{told}"
    );
    // What is open goes on where it is known to be something else, and so do requests.
    assert!(is_answered(&mut before).await && !is_answered(&mut ahead).await);
    assert!(support::exchange(pair.proxy, REQUEST).await.starts_with("HTTP/1.1 404"));
}

/// Ports of databases and of TLS know a request that has gone astray.
#[tokio::test(flavor = "multi_thread")]
async fn tunnels_stay_where_an_answer_says_no_more_than_that_this_is_no_http_or_the_port_declares_tcp() {
    for (answer, declared) in [
        ("HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nnot here<close>", AppProtocol::Unspecified),
        ("HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\nnot here", AppProtocol::Unspecified),
        ("HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", AppProtocol::Unspecified),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", AppProtocol::Tcp),
    ] {
        let pair = Pair::start_as(answering(answer).await, declared, AppProtocol::Unspecified).await;
        let answered = support::exchange(pair.proxy, REQUEST).await;
        assert_eq!(answered.get(9..12), answer.get(9..12), "{answered}");
        let (_, mut tcp) = pair.connect("db:80").await;
        assert!(is_answered(&mut tcp).await, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_http_in_a_tunnel_is_the_last_one_that_a_tunnel_gets() {
    let closing = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let staying = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for (answer, is_known) in [(staying, true), (closing, false), ("HTTP/1.0 200 OK\r\n\r\n", false)] {
        let (app, _got) = recording(answer.as_bytes()).await;
        let pair = Pair::start(app, AppProtocol::Unspecified).await;
        for number in [0, 1] {
            let (_, mut tcp) = pair.connect("db:80").await;
            assert!(!is_answered(&mut tcp).await, "{answer}");
            let inside = line(&pair.inbound, number).await;
            assert_eq!(inside["cause"], "downstream_protocol_error", "{inside}");
            let is_refused = inside["cause_detail"] == ANSWERED;
            assert_eq!(is_refused, is_known && number == 1, "{inside}");
        }
    }
}

/// The first answer is the caller's own word, as uWSGI and Netty give it.
#[tokio::test(flavor = "multi_thread")]
async fn requests_behind_an_answer_that_looks_like_none_break_the_tunnel_with_theirs() {
    let app = support::upstream(|held| {
        let answer = if held.starts_with(b"GET a X") { "X 200 OK" } else { "HTTP/1.1 200 OK" };
        held.ends_with(b"\r\n\r\n").then(|| format!("{answer}\r\ncontent-length: 0\r\n\r\n").into_bytes())
    });
    let pair = Pair::start(app.await.address, AppProtocol::Unspecified).await;
    let (_, mut tcp) = pair.connect("db:80").await;
    tcp.write_all(b"GET a X\r\nHost: a\r\n\r\n").await.unwrap();
    support::read_until(&mut tcp, "\r\n\r\n").await;
    tcp.write_all(b"DELETE /admin HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let answer = all(&mut tcp).await;
    assert!(answer.as_ref().map_or(true, Vec::is_empty), "{answer:?}");
    assert_eq!(line(&pair.inbound, 0).await["cause"], "downstream_protocol_error");
}

/// What is stored in a database is nobody's request.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_another_answer_is_opaque_whatever_it_is() {
    let (app, mut got) = recording(b"+OK\r\n").await;
    let pair = Pair::start(app, AppProtocol::Unspecified).await;
    let (_, mut tcp) = pair.connect("db:80").await;
    tcp.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    tcp.read_exact(&mut [0; 5]).await.unwrap();
    reach(&mut got, 14).await;
    let stored = b"$60\r\nGET / HTTP/1.1\r\nx-forwarded-client-cert: a\r\n";
    tcp.write_all(stored).await.unwrap();
    assert_eq!(reach(&mut got, stored.len()).await, stored);

    // Who speaks first is none that is asked.
    let pair = Pair::start(greeting().await, AppProtocol::Unspecified).await;
    let (_, mut tcp) = pair.connect("db:80").await;
    tcp.read_exact(&mut [0; 11]).await.unwrap();
    tcp.write_all(b"add /music HTTP/1.1\r\n").await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(all(&mut tcp).await.unwrap(), b"add /music HTTP/1.1\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_declares_http_takes_requests_and_no_tunnels() {
    for declared in [AppProtocol::Http1, AppProtocol::Http2, AppProtocol::Grpc, AppProtocol::Websocket] {
        let pair = Pair::start_as(greeting().await, declared, AppProtocol::Tcp).await;
        let (status, _tcp) = pair.connect("db:80").await;
        assert!(status >= 400, "{declared:?}: {status}");
        let inside = line(&pair.inbound, 0).await;
        assert_eq!(inside["cause"], "downstream_protocol_error", "{inside}");
    }
}
