//! Two engines in one process: an application calls another through both, over mutual TLS.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Ending, Found, OnDemand, Settings, Side};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use support::mesh::{Pair, TestMesh, plain_at, policy, service_at, serving, two};
use support::{Harness, Upstream, exchange, is_head, read_until, upstream, while_time_goes_on};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";
const HANDSHAKES: &str = "meshwork_tls_handshake_failures_total";

/// An application that notes what it was asked.
async fn app() -> (Upstream, Arc<Mutex<String>>) {
    let seen = Arc::new(Mutex::new(String::new()));
    let note = Arc::clone(&seen);
    let app = upstream(move |got| {
        let whole = (got.starts_with(b"GET") && is_head(got)) || got.ends_with(b"the body");
        whole.then(|| {
            *note.lock() = String::from_utf8_lossy(got).into_owned();
            OK.to_vec()
        })
    })
    .await;
    (app, seen)
}

async fn pair() -> (Pair, Upstream, Arc<Mutex<String>>) {
    let (app, seen) = app().await;
    (Pair::start(app.address, AppProtocol::Http1).await, app, seen)
}

#[tokio::test]
async fn an_application_calls_another_and_each_proves_who_it_is() {
    let (pair, _app, seen) = pair().await;
    let post = b"POST http://reviews:80/p?q HTTP/1.1\r\nHost: reviews:80\r\nContent-Length: 8\r\nConnection: close\r\n\
        X-Forwarded-Client-Cert: By=forged\r\n\r\nthe body";
    for request in [GET, post] {
        let response = exchange(pair.proxy, request).await;
        assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("hello"), "{response}");
    }
    let got = seen.lock().clone();
    assert!(got.starts_with("POST /p?q HTTP/1.1\r\n") && got.ends_with("\r\n\r\nthe body"), "{got}");
    assert!(got.to_lowercase().contains("host: reviews:80\r\n"), "{got}");
    let (web, reviews) = (pair.web.id(), pair.reviews.id());
    let certificates: Vec<_> = got.lines().filter(|l| l.starts_with("x-forwarded-client-cert: ")).collect();
    let [certificate] = certificates[..] else { panic!("one certificate: {got}") };
    assert!(certificate.contains(&format!("By={reviews};Hash=")), "{certificate}");
    assert!(certificate.ends_with(&format!(";Subject=\"\";URI={web}")), "{certificate}");

    let out = pair.outbound.lines(2).await;
    assert!(out[1].contains(&format!("\"upstream_peer_id\":\"{reviews}\"")), "{}", out[1]);
    assert!(out[1].contains("\"upstream_protocol\":\"HTTP/2\""), "{}", out[1]);
    let into = pair.inbound.lines(2).await;
    assert!(into[1].contains(&format!("\"downstream_peer_id\":\"{web}\"")), "{}", into[1]);
    assert!(into[1].contains("\"upstream_cluster\":\"shop/reviews:"), "{}", into[1]);
    let both = [
        "source_workload=\"web\"",
        "destination_workload=\"reviews\"",
        "destination_service_name=\"reviews\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    for (harness, reporter) in
        [(&pair.outbound, "reporter=\"source\""), (&pair.inbound, "reporter=\"destination\"")]
    {
        let labels: Vec<&str> = both.into_iter().chain([reporter]).collect();
        assert_eq!(harness.metric("istio_requests_total", &labels), 2, "{reporter}");
    }
    assert_eq!(
        pair.inbound.metric("meshwork_downstream_connections_total", &["inbound"]),
        1,
        "one is shared"
    );
}

/// A service of which one instance is in the mesh and fails, and the other is not and has proven nothing.
#[tokio::test]
async fn an_instance_outside_the_mesh_is_not_told_by_what_the_one_has_proven_that_failed_before() {
    let busy =
        upstream(|got| is_head(got).then(|| b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_vec()))
            .await;
    let (plain, _) = app().await;
    let mut pair = Pair::start(busy.address, AppProtocol::Http1).await;
    let [_, Change::Upsert { type_url, version, body, .. }] = plain_at("reviews", plain.address) else {
        panic!("it comes")
    };
    let outside = Change::Upsert { type_url, name: "shop/reviews-2".into(), version, body };
    let retry = v1::Retry {
        attempts: Some(1),
        on: Some(v1::retry::On { status_codes: vec![503], ..Default::default() }),
        ..support::bare_retry()
    };
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    let traffic = v1::TrafficPolicy { retry: Some(retry), algorithm, ..Default::default() };
    pair.outbound.change([outside, policy("again", "reviews", v1::policy::Spec::Traffic(traffic))]).await;
    // By turns, so one of them at least is sent to the other instance first.
    for _ in 0..2 {
        let response = exchange(pair.proxy, GET).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    let lines = pair.outbound.lines(2).await;
    assert!(lines.iter().any(|line| line.contains("\"attempts\":2")), "{lines:?}");
    for line in lines {
        assert!(line.contains(&format!("\"upstream_host\":\"{}\"", plain.address)), "{line}");
        assert!(line.contains("\"upstream_protocol\":\"HTTP/1.1\""), "{line}");
        assert!(!line.contains("upstream_peer_id"), "{line}");
    }
}

/// Calls `reviews` directly, as a client with this TLS configuration, and gives what it reads.
async fn call(pair: &Pair, config: Arc<rustls::ClientConfig>) -> std::io::Result<Vec<u8>> {
    let tcp = TcpStream::connect(pair.peer).await?;
    let name = ServerName::try_from("80.reviews.shop.mesh").unwrap();
    let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
    tls.write_all(GET).await?;
    let mut out = Vec::new();
    tls.read_to_end(&mut out).await?;
    Ok(out)
}

fn http1() -> Vec<Vec<u8>> {
    vec![b"http/1.1".to_vec()]
}

/// Believes every server, so that only the server's judgement of the client is tested.
#[derive(Debug)]
struct Believer;

impl rustls::client::danger::ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        meshwork_identity::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client that shows this SVID, or none.
fn believer(svid: Option<&meshwork_identity::Svid>) -> Arc<rustls::ClientConfig> {
    use rustls_pki_types::pem::PemObject;
    let builder = rustls::ClientConfig::builder_with_provider(meshwork_identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer));
    let mut config = match svid {
        None => builder.with_no_client_auth(),
        Some(svid) => {
            let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(svid.to_pem().as_bytes()).unwrap();
            builder.with_client_auth_cert(svid.chain().to_vec(), key).unwrap()
        }
    };
    config.alpn_protocols = http1();
    Arc::new(config)
}

#[tokio::test]
async fn whoever_cannot_prove_to_be_of_the_mesh_is_refused_and_the_reason_is_counted() {
    let (mut pair, app, _) = pair().await;
    let other = TestMesh::of("other.local", pair.mesh.clock.clone());
    let forger = TestMesh::of("mesh.local", pair.mesh.clock.clone());
    pair.inbound.change([pair.mesh.bundle(2, &["mallory"])]).await;
    let clients = [
        ("no_certificate", believer(None)),
        ("wrong_trust_domain", believer(Some(&other.svid("web")))),
        ("untrusted_issuer", believer(Some(&forger.svid("web")))),
        ("revoked", believer(Some(&pair.mesh.svid("mallory")))),
    ];
    for (cause, config) in clients {
        assert!(call(&pair, config).await.is_err(), "{cause}");
        pair.inbound
            .wait_metric(HANDSHAKES, &["listener=\"inbound\"", &format!("cause=\"{cause}\"")], 1)
            .await;
    }
    assert_eq!(exchange(pair.peer, GET).await, "", "plaintext is closed without an answer");
    pair.inbound.wait_metric(HANDSHAKES, &["cause=\"peer_unauthenticated\""], 1).await;
    assert_eq!(app.connections.load(Ordering::SeqCst), 0, "nothing reached the application");
    let good = call(&pair, believer(Some(&pair.mesh.svid("web")))).await.unwrap();
    assert!(good.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&good));
}

fn allow(from: &str) -> v1::policy::Spec {
    let peer = v1::authorization_rule::Peer { spiffe_ids: vec![from.to_owned()], namespaces: vec![] };
    v1::policy::Spec::Authorization(v1::AuthorizationPolicy {
        action: v1::authorization_policy::Action::Allow.into(),
        rules: vec![v1::AuthorizationRule { from: vec![peer], to: vec![] }],
    })
}

#[tokio::test]
async fn a_workload_that_no_policy_allows_is_refused_by_the_policy_s_name() {
    let (mut pair, app, _) = pair().await;
    pair.inbound.change([policy("only-cart", "reviews", allow(pair.mesh.id("cart").as_str()))]).await;
    let response = exchange(pair.proxy, GET).await;
    assert!(
        response.starts_with("HTTP/1.1 403") && response.ends_with("authorization_denied\n"),
        "{response}"
    );
    let line = pair.inbound.lines(1).await.remove(0);
    assert!(line.contains("\"cause\":\"authorization_denied\"") && line.contains("\"UAEX\""), "{line}");
    assert!(line.contains("Policy shop/only-cart") && line.contains(pair.web.id().as_str()), "{line}");
    assert_eq!(app.connections.load(Ordering::SeqCst), 0, "nothing reached the application");
    pair.inbound.change([policy("only-web", "reviews", allow(pair.web.id().as_str()))]).await;
    assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_peer_that_is_not_the_called_workload_gets_no_request() {
    let (mut pair, app, _) = pair().await;
    pair.outbound.change(service_at("reviews", &pair.mesh.id("ratings"), pair.peer)).await;
    let response = exchange(pair.proxy, GET).await;
    assert!(
        response.starts_with("HTTP/1.1 503") && response.ends_with("upstream_identity_mismatch\n"),
        "{response}"
    );
    let line = pair.outbound.lines(1).await.remove(0);
    assert!(line.contains("unexpected_identity") && line.contains("sa/ratings"), "{line}");
    assert!(!line.contains("upstream_peer_id"), "nobody has proven anything: {line}");
    assert_eq!(app.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_expired_identity_neither_calls_nor_answers() {
    let (pair, _app, _) = pair().await;
    assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"));
    pair.mesh.clock.advance(Duration::from_hours(73));
    let response = exchange(pair.proxy, GET).await;
    assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("svid_expired\n"), "{response}");
    // The caller renews; the callee is still expired.
    pair.web.renew(pair.mesh.svid("web")).unwrap();
    let response = exchange(pair.proxy, GET).await;
    assert!(
        response.starts_with("HTTP/1.1 503") && response.ends_with("upstream_tls_failure\n"),
        "{response}"
    );
    pair.inbound.wait_metric(HANDSHAKES, &["cause=\"own_svid_expired\""], 3).await;
    pair.reviews.renew(pair.mesh.svid("reviews")).unwrap();
    assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn revocation_closes_live_connections_on_both_sides() {
    let (mut pair, _app, _) = pair().await;
    assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"));
    let open = ["listener=\"inbound\""];
    pair.inbound.wait_metric("meshwork_downstream_connections_active", &open, 1).await;
    pair.inbound.change([pair.mesh.bundle(2, &["web"])]).await;
    pair.inbound.wait_metric("meshwork_downstream_connections_active", &open, 0).await;
    let response = exchange(pair.proxy, GET).await;
    assert!(
        response.starts_with("HTTP/1.1 503") && response.ends_with("upstream_tls_failure\n"),
        "{response}"
    );
    pair.inbound.wait_metric(HANDSHAKES, &["cause=\"revoked\""], 3).await;

    pair.inbound.change([pair.mesh.bundle(3, &[])]).await;
    assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"), "trusted again");
    pair.outbound.change([pair.mesh.bundle(2, &["reviews"])]).await;
    pair.outbound.wait_metric("meshwork_upstream_connections_active", &[], 0).await;
    let response = exchange(pair.proxy, GET).await;
    assert!(response.ends_with("upstream_tls_failure\n"), "{response}");
    assert!(pair.outbound.lines(4).await[3].contains("revoked"));
}

#[tokio::test]
async fn a_renewed_identity_drops_no_connection_and_an_old_one_is_replaced_in_time() {
    let (pair, _app, _) = pair().await;
    let connections = || pair.inbound.metric("meshwork_downstream_connections_total", &["inbound"]);
    let mut caller = TcpStream::connect(pair.proxy).await.unwrap();
    let mut request = async |count: usize| {
        for _ in 0..count {
            caller.write_all(b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n").await.unwrap();
            assert!(read_until(&mut caller, "hello").await.starts_with("HTTP/1.1 200"));
        }
    };
    request(20).await;
    // A third of the lifetime is over: both renew.
    pair.mesh.clock.advance(Duration::from_hours(24));
    pair.web.renew(pair.mesh.svid("web")).unwrap();
    pair.reviews.renew(pair.mesh.svid("reviews")).unwrap();
    request(20).await;
    assert_eq!(connections(), 1, "the connection goes on");
    // Shortly before the first SVIDs expire the connection made with them takes nothing more, and then ends.
    pair.mesh.clock.advance(Duration::from_hours(48) - Duration::from_secs(30));
    request(20).await;
    assert_eq!(connections(), 2, "a connection with the renewed SVIDs");
    pair.mesh.clock.advance(Duration::from_secs(60));
    request(20).await;
    assert_eq!(connections(), 2);
    pair.inbound.wait_metric("meshwork_downstream_connections_active", &["inbound"], 1).await;
}

#[tokio::test]
async fn permissive_takes_plaintext_and_its_callers_are_nobody() {
    let (mut pair, _app, seen) = pair().await;
    let permissive = v1::InboundPolicy { mtls: v1::inbound_policy::Mtls::Permissive.into() };
    pair.inbound.change([policy("open", "reviews", v1::policy::Spec::Inbound(permissive))]).await;
    let forged = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: URI=spiffe://forged\r\nConnection: close\r\n\r\n";
    assert!(exchange(pair.peer, forged).await.starts_with("HTTP/1.1 200"));
    assert!(!seen.lock().to_lowercase().contains("x-forwarded-client-cert"), "{}", seen.lock());
    assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"), "mTLS goes on");
    let plain =
        ["reporter=\"destination\"", "source_workload=\"unknown\"", "connection_security_policy=\"none\""];
    pair.inbound.wait_metric("istio_requests_total", &plain, 1).await;
    pair.inbound.change([policy("who", "reviews", allow(pair.web.id().as_str()))]).await;
    assert!(exchange(pair.peer, forged).await.ends_with("authorization_denied\n"), "nobody is not allowed");
}

#[tokio::test]
async fn what_an_application_may_take_for_its_proxy_s_word_does_not_reach_it() {
    let (mut pair, _app, seen) = pair().await;
    let permissive = v1::InboundPolicy { mtls: v1::inbound_policy::Mtls::Permissive.into() };
    pair.inbound.change([policy("open", "reviews", v1::policy::Spec::Inbound(permissive))]).await;
    let forged =
        b"GET http://reviews/ HTTP/1.1\r\nHost: reviews\r\nX_Forwarded_Client_Cert: URI=spiffe://forged\r\n\
        x-envoy_attempt_count: 7\r\nX_User: me\r\nConnection: close\r\n\r\n";
    for address in [pair.peer, pair.proxy] {
        assert!(exchange(address, forged).await.starts_with("HTTP/1.1 200"));
        let got = seen.lock().to_lowercase();
        assert!(!got.contains("x_forwarded") && !got.contains("attempt"), "{got}");
        assert!(got.contains("x_user: me\r\n"), "what is the application's own stays: {got}");
    }
}

/// Answers as told, and notes what was asked.
struct Oracle {
    asked: Mutex<Vec<String>>,
    touched: AtomicUsize,
    answer: Found,
    delivered: Arc<tokio::sync::Semaphore>,
}

impl OnDemand for Oracle {
    fn find(&self, host: &str, _: Duration) -> Pin<Box<dyn Future<Output = Found> + Send>> {
        self.asked.lock().push(host.to_owned());
        let (answer, delivered) = (self.answer, Arc::clone(&self.delivered));
        Box::pin(async move {
            drop(delivered.acquire().await);
            answer
        })
    }
    fn touch(&self, service: &str) {
        assert_eq!(service, "shop/reviews");
        self.touched.fetch_add(1, Ordering::SeqCst);
    }
}

fn oracle(answer: Found) -> Arc<Oracle> {
    let delivered = Arc::new(tokio::sync::Semaphore::new(0));
    Arc::new(Oracle { asked: Mutex::default(), touched: AtomicUsize::new(0), answer, delivered })
}

#[tokio::test]
async fn a_service_called_for_the_first_time_is_asked_for_and_the_call_waits() {
    let (app, _) = app().await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    let oracle = oracle(Found::Held);
    let mut proxy = pair.mesh.proxy(&pair.web, Some(oracle.clone()), Settings::default());
    let address = proxy.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let calls: Vec<_> = (0..5).map(|_| tokio::spawn(async move { exchange(address, GET).await })).collect();
    // The control plane answers before the snapshot is in effect: the calls wait for that, too.
    oracle.delivered.add_permits(5);
    while oracle.asked.lock().len() < 5 {
        tokio::task::yield_now().await;
    }
    proxy.change(service_at("reviews", &pair.reviews.id(), pair.peer)).await;
    for call in calls {
        let response = call.await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    assert!(oracle.asked.lock().iter().all(|host| host == "reviews"));
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
    assert_eq!(oracle.asked.lock().len(), 5, "who is known is not asked for");
    assert_eq!(oracle.touched.load(Ordering::SeqCst), 1, "once in a while, not per request");
}

#[tokio::test]
async fn a_call_that_waits_for_its_service_is_not_idle_and_what_it_waited_is_not_held_against_it() {
    let mesh = TestMesh::new();
    let oracle = oracle(Found::Held);
    let settings =
        Settings { workers: 1, discovery_timeout: Duration::from_secs(1_000), ..Settings::default() };
    let mut proxy = mesh.proxy(&mesh.identity("web"), Some(oracle.clone()), settings);
    let address = proxy.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let passes = async |proxy: &Harness, time| {
        let mut idle = TcpStream::connect(address).await.unwrap();
        proxy.wait_metric("meshwork_downstream_connections_active", &["outbound"], 2).await;
        mesh.clock.advance(time);
        // When it is let go of, the only worker has looked at all who wait for something.
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
    };
    let mut call = tokio::spawn(async move { exchange(address, GET).await });
    while oracle.asked.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    passes(&proxy, Duration::from_secs(400)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let held = plain_at("reviews", listener.local_addr().unwrap());
    oracle.delivered.add_permits(1);
    proxy.change(held).await;
    let (mut app, _) = tokio::select! {
        accepted = listener.accept() => accepted.unwrap(),
        ended = &mut call => panic!("it may wait for longer than a stream may idle: {}", ended.unwrap()),
    };
    read_until(&mut app, "\r\n\r\n").await;
    passes(&proxy, Duration::from_secs(100)).await;
    app.write_all(OK).await.unwrap();
    let response = call.await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    // Its time goes on from there.
    let call = tokio::spawn(async move { exchange(address, GET).await });
    read_until(&mut app, "\r\n\r\n").await;
    passes(&proxy, Duration::from_secs(400)).await;
    let response = call.await.unwrap();
    assert!(response.ends_with("stream_idle_timeout\n"), "{response}");
}

#[tokio::test]
async fn what_nobody_knows_and_nobody_answers_have_causes_of_their_own() {
    for (answer, patience, status, cause) in [
        (Found::Unknown, Duration::from_secs(5), "404", "unknown_service"),
        (Found::Unavailable, Duration::from_secs(5), "503", "discovery_unavailable"),
        // Held, but no snapshot comes.
        (Found::Held, Duration::from_millis(50), "503", "discovery_unavailable"),
    ] {
        let mesh = TestMesh::new();
        let oracle = oracle(answer);
        oracle.delivered.add_permits(1);
        let settings = Settings { discovery_timeout: patience, ..Settings::default() };
        let mut proxy = mesh.proxy(&mesh.identity("web"), Some(oracle), settings);
        let address = proxy.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let response = exchange(address, GET).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
        assert!(response.ends_with(&format!("{cause}\n")), "{response}");
    }
}

#[tokio::test]
async fn what_the_application_has_not_seen_goes_to_another_instance() {
    let (app, _) = app().await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    // A second instance whose application has died, its proxy not.
    let mut dead = pair.mesh.proxy(&pair.reviews, None, Settings::default());
    dead.change([serving(&pair.reviews.id(), "reviews", gone, AppProtocol::Http1)]).await;
    let second = dead.engine.listen(Side::Inbound, "127.0.0.2:0".parse().unwrap()).await.unwrap();
    let [_, slice] = service_at("reviews", &pair.reviews.id(), second);
    let Change::Upsert { type_url, version, body, .. } = slice else { panic!("an upsert") };
    pair.outbound.change([Change::Upsert { type_url, name: "shop/reviews-2".into(), version, body }]).await;
    let post = b"POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 8\r\nConnection: close\r\n\r\nthe body";
    for _ in 0..20 {
        let response = exchange(pair.proxy, post).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    let lines = dead.lines(1).await;
    assert!(lines[0].contains("\"cause\":\"connect_failure\""), "{}", lines[0]);
}

#[tokio::test]
async fn only_one_hop_retries() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let app = upstream(move |got| {
        counted.fetch_add(1, Ordering::SeqCst);
        is_head(got).then(|| b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy".to_vec())
    })
    .await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    let retry = v1::Retry {
        attempts: Some(2),
        on: Some(v1::retry::On { status_codes: vec![503], ..Default::default() }),
        ..crate::support::bare_retry()
    };
    let traffic = v1::TrafficPolicy { retry: Some(retry), ..Default::default() };
    let again = policy("again", "reviews", v1::policy::Spec::Traffic(traffic));
    pair.inbound.change([again.clone()]).await;
    pair.outbound.change([again]).await;
    assert!(exchange(pair.proxy, GET).await.ends_with("busy"));
    assert_eq!(
        asked.swap(0, Ordering::SeqCst),
        3,
        "the caller's side tries three times, the callee's never again"
    );
    // An application passes on that it answers a retry: the hop before repeats it already.
    let nested = b"GET / HTTP/1.1\r\nHost: reviews\r\nX-Envoy-Attempt-Count: 2\r\nConnection: close\r\n\r\n";
    assert!(exchange(pair.proxy, nested).await.ends_with("busy"));
    assert_eq!(asked.swap(0, Ordering::SeqCst), 1);
    let first = b"GET / HTTP/1.1\r\nHost: reviews\r\nX-Envoy-Attempt-Count: 1\r\nConnection: close\r\n\r\n";
    assert!(exchange(pair.proxy, first).await.ends_with("busy"));
    assert_eq!(asked.load(Ordering::SeqCst), 3, "a first attempt is no retry");
}

#[tokio::test]
async fn an_application_that_speaks_http2_calls_one_that_does() {
    let up = support::h2::h2_upstream(usize::MAX, |_, request, respond| async move {
        assert_eq!(request.uri().authority().map(|a| a.as_str()), Some("reviews.shop"));
        support::h2::answer(respond, b"two");
    })
    .await;
    let pair = Pair::start(up.address, AppProtocol::Grpc).await;
    let mut client = support::h2::h2_client(pair.proxy).await;
    for _ in 0..3 {
        let request = http::Request::get("http://reviews.shop/").body(()).unwrap();
        let (status, body, _) = support::h2::fetch(&mut client, request).await;
        assert_eq!((status, &body[..]), (200, &b"two"[..]));
    }
    assert!(pair.inbound.lines(3).await[2].contains("\"upstream_protocol\":\"HTTP/2\""));
    assert_eq!(up.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_thousand_snapshots_under_load_fail_no_request() {
    let (mut pair, _app, _) = pair().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let proxy = pair.proxy;
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let mut caller = TcpStream::connect(proxy).await.unwrap();
                while !stop.load(Ordering::SeqCst) {
                    caller.write_all(b"GET / HTTP/1.1\r\nHost: reviews\r\n\r\n").await.unwrap();
                    assert!(read_until(&mut caller, "hello").await.starts_with("HTTP/1.1 200"));
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for revision in 0..1000 {
        let timeouts = v1::Timeouts { request_ms: 10_000 + revision, ..Default::default() };
        let traffic = v1::TrafficPolicy { timeouts: Some(timeouts), ..Default::default() };
        pair.outbound.change([policy("times", "reviews", v1::policy::Spec::Traffic(traffic))]).await;
        pair.inbound.change([policy("who", "reviews", allow("spiffe://mesh.local/*"))]).await;
        // The load goes on between the snapshots.
        let before = done.load(Ordering::SeqCst);
        while done.load(Ordering::SeqCst) == before && !load.iter().any(tokio::task::JoinHandle::is_finished)
        {
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    for load in load {
        load.await.unwrap();
    }
    let total = done.load(Ordering::SeqCst) as u64;
    assert!(total >= 1000, "{total}");
    pair.outbound.wait_metric("istio_requests_total", &["response_code=\"200\""], total).await;
    assert_eq!(pair.outbound.metric("istio_requests_total", &[]), total, "each request is counted once");
    pair.inbound.wait_metric("istio_requests_total", &["response_code=\"200\""], total).await;
}

#[tokio::test]
async fn what_an_application_calls_goes_on_while_calls_of_it_are_drained() {
    let (mut pair, _reviews, _) = pair().await;
    let (app, _) = app().await;
    let any = "127.0.0.1:0".parse().unwrap();
    pair.outbound.change([serving(&pair.web.id(), "web", app.address, AppProtocol::Http1)]).await;
    let web = pair.outbound.engine.listen(Side::Inbound, any).await.unwrap();
    pair.inbound.change(service_at("web", &pair.web.id(), web)).await;
    let proxy = pair.inbound.engine.listen(Side::Outbound, any).await.unwrap();
    let mut caller = TcpStream::connect(proxy).await.unwrap();
    caller.write_all(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 8\r\n\r\n").await.unwrap();
    while app.connections.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let finished = pair.outbound.engine.drain_inbound(Ending::Finished).await;
    while TcpStream::connect(web).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // What is on its way when the goodbye comes is still taken, and nothing after it.
    let calls = async {
        let get = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        loop {
            let response = exchange(proxy, get).await;
            if !response.starts_with("HTTP/1.1 200") {
                break response;
            }
        }
    };
    // Who has been answered once waits for the service to come back, as long as this clock says.
    let refused = while_time_goes_on(&pair.mesh.clock, Duration::from_millis(200), calls);
    let refused = tokio::time::timeout(Duration::from_secs(10), refused).await.expect("nothing new is taken");
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    // What is in flight may need a connection that nobody has made yet.
    assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"));
    let mut finished = std::pin::pin!(finished);
    assert!(tokio::time::timeout(Duration::ZERO, finished.as_mut()).await.is_err(), "a call is in flight");
    caller.write_all(b"the body").await.unwrap();
    assert!(read_until(&mut caller, "hello").await.starts_with("HTTP/1.1 200"));
    tokio::time::timeout(Duration::from_secs(10), finished).await.expect("nothing is in flight");
    assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"));
}

/// An application that reads so many requests and breaks off; then it answers.
async fn breaking(times: usize) -> Upstream {
    let broken = AtomicUsize::new(0);
    upstream(move |got| {
        let whole = (got.starts_with(b"GET") && is_head(got)) || got.ends_with(b"the body");
        let breaks = || broken.fetch_add(1, Ordering::SeqCst) < times;
        // An empty answer closes the connection.
        whole.then(|| if breaks() { Vec::new() } else { OK.to_vec() })
    })
    .await
}

#[tokio::test]
async fn the_caller_of_an_application_that_breaks_off_repeats_what_may_be_done_twice_and_nothing_else() {
    let post = b"POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 8\r\nConnection: close\r\n\r\nthe body";
    let app = breaking(1).await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"));
    assert!(pair.outbound.lines(1).await[0].contains("\"attempts\":2"));
    let app = breaking(1).await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    let response = exchange(pair.proxy, post).await;
    assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("upstream_reset\n"), "{response}");
    assert!(pair.outbound.lines(1).await[0].contains("\"attempts\":1"));
    assert_eq!(app.connections.load(Ordering::SeqCst), 1);
}

/// An application that answers what is asked with GET, and closes its connection when it has all of anything else.
#[tokio::test]
async fn a_stale_connection_to_the_application_lets_nothing_be_done_twice_that_may_not_be() {
    const LENGTH: usize = 64 * 1024 + 1;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let app = upstream(move |got| {
        if got.starts_with(b"GET") {
            return is_head(got).then(|| OK.to_vec());
        }
        got.ends_with(b"the end").then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            Vec::new()
        })
    })
    .await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    let of = |method: &str, body: String| {
        format!(
            "{method} / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    // What is not idempotent; and of what is, more than is kept.
    let requests = [of("POST", "the end".into()), of("PUT", "x".repeat(LENGTH) + "the end")];
    for (request, lines) in requests.into_iter().zip([2, 4]) {
        assert!(exchange(pair.proxy, GET).await.starts_with("HTTP/1.1 200"), "a connection is kept");
        let before = asked.load(Ordering::SeqCst);
        let answer = exchange(pair.proxy, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert_eq!(asked.load(Ordering::SeqCst), before + 1);
        let line = pair.inbound.lines(lines).await.remove(lines - 1);
        assert!(line.contains("\"upstream_closed\"") && line.contains("\"attempts\":1"), "{line}");
    }
}

/// Answers one request, and dies of the next one.
async fn dying() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        for answers in [true, false] {
            let mut got = Vec::new();
            while !is_head(&got) {
                assert_ne!(tcp.read_buf(&mut got).await.unwrap(), 0, "a request was to come");
            }
            if answers {
                tcp.write_all(OK).await.unwrap();
            }
        }
        drop((listener, tcp));
    });
    address
}

#[tokio::test]
async fn what_the_caller_repeats_is_neither_repeated_nor_waited_for_without_a_policy() {
    let repeat = b"GET / HTTP/1.1\r\nHost: reviews\r\nX-Envoy-Attempt-Count: 2\r\nConnection: close\r\n\r\n";
    let app = breaking(1).await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    assert!(exchange(pair.proxy, repeat).await.starts_with("HTTP/1.1 503"));
    assert!(pair.outbound.lines(1).await[0].contains("\"attempts\":1"));
    assert!(exchange(pair.proxy, repeat).await.starts_with("HTTP/1.1 200"));
    // Of an application that was there and is not, the same.
    let pair = Pair::start(dying().await, AppProtocol::Http1).await;
    assert!(exchange(pair.proxy, GET).await.ends_with("hello"));
    assert!(exchange(pair.proxy, repeat).await.starts_with("HTTP/1.1 503"));
    let gone = exchange(pair.proxy, repeat).await;
    assert!(gone.ends_with("upstream_refused\n"), "{gone}");
    let lines = pair.outbound.lines(3).await;
    assert!(lines.iter().all(|line| line.contains("\"attempts\":1")), "{lines:?}");
}

#[tokio::test]
async fn no_caller_is_told_that_an_application_has_not_seen_what_it_died_of() {
    let mut pair = Pair::start(dying().await, AppProtocol::Http1).await;
    let retry = Some(v1::Retry { attempts: Some(0), ..crate::support::bare_retry() });
    let never = v1::TrafficPolicy { retry, ..Default::default() };
    pair.outbound.change([policy("never", "reviews", v1::policy::Spec::Traffic(never))]).await;
    assert!(exchange(pair.proxy, GET).await.ends_with("hello"));
    let told = exchange(pair.proxy, GET).await;
    assert!(told.ends_with("upstream_reset\n"), "a refusal would say that nothing began: {told}");
    let line = pair.inbound.lines(2).await.remove(1);
    assert!(line.contains("\"attempts\":2"), "it was called once more, and was gone: {line}");
}

/// Its proxy has not been told, or no longer, what it serves; or callers know another port.
#[tokio::test]
async fn what_an_instance_does_not_serve_is_asked_of_another_one_whatever_its_method() {
    let post = b"POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 8\r\nConnection: close\r\n\r\nthe body";
    let apps = [app().await.0, app().await.0];
    for served in [None, Some("others")] {
        let mut two = two([apps[0].address, apps[1].address], []).await;
        let id = two.instances[0].engine.shared().mesh.identity.as_ref().unwrap().id();
        let change = match served {
            None => Change::remove::<v1::Workload>("shop/reviews-1"),
            Some(service) => serving(&id, service, apps[0].address, AppProtocol::Http1),
        };
        two.instances[0].change([change]).await;
        for _ in 0..2 {
            let answer = exchange(two.proxy, post).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{served:?}: {answer}");
        }
        let line = two.instances[0].lines(1).await.remove(0);
        assert!(line.contains("\"unknown_app_port\"") && line.contains("\"response_code\":0"), "{line}");
        let lines = two.outbound.lines(2).await;
        assert!(lines.iter().any(|line| line.contains("\"attempts\":2")), "{lines:?}");
    }
}
