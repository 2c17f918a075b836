//! TLS that ends at the edge: certificates by SNI, ALPN, misdirected requests, certificates replaced while it runs.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{DownstreamTimeouts, Settings};
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
};
use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
use rustls::{ConnectionTrafficSecrets, ContentType, HandshakeKind, SupportedCipherSuite};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use support::{Harness, exchange, free_port, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// A certificate of its own for a host, and the secret with it.
fn certificate(host: &str, version: &str) -> (CertificateDer<'static>, Change) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let secret = v1::Secret {
        source: None,
        certificate_chain_pem: made.cert.pem().into_bytes().into(),
        private_key_pem: made.signing_key.serialize_pem().into_bytes().into(),
    };
    (made.cert.der().clone(), Change::upsert(&format!("default/{host}"), version, &secret))
}

fn listener(name: &str, port: u16, host: &str) -> Change {
    speaking(v1::listener::Protocol::Https, name, port, host)
}

fn speaking(protocol: v1::listener::Protocol, name: &str, port: u16, host: &str) -> Change {
    let source = v1::Source {
        kind: "Gateway".into(),
        name: "gw".into(),
        namespace: "default".into(),
        ..Default::default()
    };
    let message = v1::Listener {
        source: Some(source),
        port: port.into(),
        protocol: protocol.into(),
        hostname: host.to_owned(),
        tls: (protocol == v1::listener::Protocol::Https)
            .then(|| v1::TlsTermination { passthrough: false, secrets: vec![format!("default/{host}")] }),
        ..Default::default()
    };
    Change::upsert(&format!("default/gw/{name}"), "1", &message)
}

fn route(listeners: &[&str]) -> Change {
    let attachment = |name: &&str| v1::route::Attachment {
        parent: Some(v1::route::attachment::Parent::Listener(format!("default/gw/{name}"))),
        ..Default::default()
    };
    let source = v1::Source {
        kind: "HTTPRoute".into(),
        name: "r".into(),
        namespace: "default".into(),
        ..Default::default()
    };
    let message = v1::Route {
        source: Some(source),
        attachments: listeners.iter().map(attachment).collect(),
        rules: vec![rule(&[("web", 1)], vec![])],
    };
    Change::upsert("HTTPRoute/default/r", "1", &message)
}

struct Edge {
    harness: Harness,
    address: SocketAddr,
    certificates: [CertificateDer<'static>; 2],
}

/// So large that without TLS the kernel would move it.
const LARGE: usize = 1_000_003;

fn large() -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
    [head.as_bytes(), &vec![b'x'; LARGE]].concat()
}

/// Two listeners of one port, for `a.example` and `b.example`.
async fn edge() -> Edge {
    edge_with(Settings::default()).await
}

async fn edge_with(settings: Settings) -> Edge {
    let up = upstream(|got| {
        is_head(got).then(|| if got.starts_with(b"GET /large ") { large() } else { OK.to_vec() })
    })
    .await;
    edge_before(settings, up.address).await
}

async fn edge_before(settings: Settings, upstream: SocketAddr) -> Edge {
    let mut harness = Harness::start(settings);
    harness.service("web", AppProtocol::Http1, &[upstream]).await;
    let port = free_port();
    let ((a, secret_a), (b, secret_b)) = (certificate("a.example", "1"), certificate("b.example", "1"));
    let listeners = [listener("a", port, "a.example"), listener("b", port, "b.example"), route(&["a", "b"])];
    harness.change([secret_a, secret_b].into_iter().chain(listeners)).await;
    let address = *harness.engine.bound().values().next().expect("bound");
    Edge { harness, address, certificates: [a, b] }
}

impl Edge {
    async fn connect(&self, host: &str, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_trusting(host, alpn, &self.certificates).await
    }

    async fn connect_trusting(
        &self,
        host: &str,
        alpn: &[&[u8]],
        trusted: &[CertificateDer<'static>],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_by(trusting(trusted, alpn), host).await
    }

    async fn connect_by(
        &self,
        config: rustls::ClientConfig,
        host: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address).await?;
        // What is said in two pieces arrives at once, too.
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(host.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }
}

fn trusting(trusted: &[CertificateDer<'static>], alpn: &[&[u8]]) -> rustls::ClientConfig {
    trusting_by(rustls::DEFAULT_VERSIONS, trusted, alpn)
}

fn trusting_by(
    versions: &[&'static rustls::SupportedProtocolVersion],
    trusted: &[CertificateDer<'static>],
    alpn: &[&[u8]],
) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    trusted.iter().for_each(|certificate| roots.add(certificate.clone()).unwrap());
    let mut config = rustls::ClientConfig::builder_with_provider(meshwork_identity::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config
}

fn shown(tls: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

async fn ask(tls: &mut TlsStream<TcpStream>, host: &str) -> String {
    tls.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let mut out = [0; 4096];
    let count = tls.read(&mut out).await.unwrap();
    String::from_utf8_lossy(&out[..count]).into_owned()
}

#[tokio::test]
async fn sni_chooses_the_certificate_and_alpn_the_version() {
    let edge = edge().await;
    for (index, host) in ["a.example", "b.example"].into_iter().enumerate() {
        let mut tls = edge.connect(host, &[b"http/1.1"]).await.unwrap();
        assert_eq!(shown(&tls), edge.certificates[index]);
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert!(ask(&mut tls, host).await.starts_with("HTTP/1.1 200"));
    }
    let tls = edge.connect("a.example", &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("https://a.example/").body(()).unwrap();
    assert_eq!(support::h2::fetch(&mut client, request).await.0, 200);
}

#[tokio::test]
async fn a_large_response_comes_whole_through_tls_too() {
    let edge = edge().await;
    let mut tls = edge.connect("a.example", &[b"http/1.1"]).await.unwrap();
    tls.write_all(b"GET /large HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut got = Vec::new();
    tls.read_to_end(&mut got).await.unwrap();
    assert!(got.ends_with(&[b'x'; LARGE]), "{} bytes", got.len());
}

#[tokio::test]
async fn a_request_for_another_listener_s_host_is_misdirected() {
    let edge = edge().await;
    let mut tls = edge.connect("a.example", &[]).await.unwrap();
    let response = ask(&mut tls, "b.example").await;
    assert!(
        response.starts_with("HTTP/1.1 421") && response.ends_with("misdirected_request\n"),
        "{response}"
    );
    assert!(ask(&mut tls, "a.example").await.starts_with("HTTP/1.1 200"), "the connection goes on");
}

#[tokio::test]
async fn a_handshake_that_fails_is_counted_with_its_reason() {
    let edge = edge().await;
    // A client that connects by address names no host.
    for name in ["c.example", "127.0.0.1"] {
        let error = edge.connect(name, &[]).await.unwrap_err();
        let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        let told = rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName);
        assert_eq!(error, Some(&told), "{name}");
    }
    let of = |cause| ["meshwork_tls_handshake_failures_total", cause];
    let [name, cause] = of("cause=\"unrecognized_name\"");
    edge.harness.wait_metric(name, &[cause], 2).await;
    // A client that does not believe the certificate says so.
    assert!(edge.connect_trusting("a.example", &[], &edge.certificates[1..]).await.is_err());
    let [name, cause] = of("cause=\"refused_by_peer\"");
    edge.harness.wait_metric(name, &[cause], 1).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    tcp.write_all(b"\0 is no record of TLS").await.unwrap();
    let _ = tcp.read_to_end(&mut Vec::new()).await;
    let [name, cause] = of("cause=\"tls_handshake_failed\"");
    edge.harness.wait_metric(name, &[cause], 1).await;
}

/// What was meant for another port is answered, and never passed on.
#[tokio::test]
async fn plain_http_on_a_port_of_tls_is_told_so() {
    let edge = edge().await;
    let upload =
        [&b"POST /up HTTP/1.1\r\nHost: a.example\r\nContent-Length: 200000\r\n\r\n"[..], &[b'x'; 200_000]]
            .concat();
    for (number, (asked, status)) in [
        (GET, "HTTP/1.1 400 "),
        (b"HEAD / HTTP/1.0\r\n\r\n", "HTTP/1.1 400 "),
        (&upload, "HTTP/1.1 400 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 505 "),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 400 "),
    ]
    .into_iter()
    .enumerate()
    {
        let told = exchange(edge.address, asked).await;
        assert!(told.starts_with(status) && told.contains("\r\nconnection: close\r\n"), "{told}");
        let line: Value = serde_json::from_str(&edge.harness.lines(number + 1).await[number]).unwrap();
        assert_eq!(
            (&line["response_flags"], &line["upstream_host"]),
            (&"DPE".into(), &Value::Null),
            "{line}"
        );
        if number < 3 {
            let why = "plain_http: this port speaks HTTPS";
            assert!(line["cause_detail"].as_str().unwrap().starts_with(why), "{line}");
            assert_eq!(line["cause"], "downstream_protocol_error", "{line}");
            assert_eq!(told.contains(why), number != 1, "{told}");
        }
        let counted = u64::try_from(number + 1).unwrap();
        edge.harness.wait_metric(HANDSHAKES, &["cause=\"plain_http\""], counted).await;
    }
    let mut tls = edge.connect("a.example", &[]).await.unwrap();
    assert!(ask(&mut tls, "a.example").await.starts_with("HTTP/1.1 200"));
}

/// Half a head is waited for as long as one of plain HTTP is where that is spoken.
#[tokio::test]
async fn half_a_plain_request_on_a_port_of_tls_has_its_time() {
    let head = Duration::from_millis(50);
    let timeouts = DownstreamTimeouts { head, ..DownstreamTimeouts::default() };
    let edge = edge_with(Settings { timeouts, ..Settings::default() }).await;
    let told = exchange(edge.address, b"GET / HTTP/1.1\r\nHost").await;
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
}

/// RFC 5246 section 7.2.2: a renegotiation that is not wanted is answered, not left without a word.
#[tokio::test]
async fn who_wants_to_negotiate_anew_is_told_no_and_goes_on() {
    let edge = edge().await;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = vec![TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(edge.certificates[0].clone()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    let config = Arc::new(config);
    let name = ServerName::try_from("a.example").unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::clone(&config), name.clone()).unwrap().write_tls(&mut hello).unwrap();
    let tcp = TcpStream::connect(edge.address).await.unwrap();
    let (mut tcp, session) = TlsConnector::from(config).connect(name, tcp).await.unwrap().into_inner();
    let (sequence, ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) =
        session.dangerous_extract_secrets().unwrap().tx
    else {
        panic!("the suite is the only one")
    };
    let SupportedCipherSuite::Tls12(suite) = TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 else {
        panic!("it is one of TLS 1.2")
    };
    let mut encrypter = suite.aead_alg.encrypter(key, iv.as_ref(), &[]);
    let mut record = |typ, payload, number| {
        let version = rustls::ProtocolVersion::TLSv1_2;
        let plain = OutboundPlainMessage { typ, version, payload: OutboundChunks::Single(payload) };
        encrypter.encrypt(plain, number).unwrap().encode()
    };
    let [again, get] = [(ContentType::Handshake, &hello[5..]), (ContentType::ApplicationData, GET)];
    let (again, get) = (record(again.0, again.1, sequence), record(get.0, get.1, sequence + 1));
    for (sent, answer) in [(again, ContentType::Alert), (get, ContentType::ApplicationData)] {
        tcp.write_all(&sent).await.unwrap();
        let mut head = [0; 5];
        let read = tokio::time::timeout(Duration::from_secs(10), tcp.read_exact(&mut head)).await;
        read.expect("there is an answer").unwrap();
        assert_eq!(ContentType::from(head[0]), answer);
        let mut rest = vec![0; u16::from_be_bytes([head[3], head[4]]).into()];
        tcp.read_exact(&mut rest).await.unwrap();
    }
}

const HANDSHAKES: &str = "meshwork_tls_handshake_failures_total";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// Says that nothing more will be said: one direction of TLS ends, and none of TCP.
async fn end_side(tls: &mut TlsStream<TcpStream>) {
    tls.get_mut().1.send_close_notify();
    tls.flush().await.unwrap();
}

/// Waits until the proxy's only worker has seen what has been sent: it answers who came behind that.
async fn caught_up(edge: &Edge) {
    let mut other = edge.connect("a.example", &[]).await.unwrap();
    assert!(ask(&mut other, "b.example").await.starts_with("HTTP/1.1 421"));
}

/// RFC 8446 section 6.1.
#[tokio::test]
async fn whoever_says_no_more_behind_a_whole_request_is_answered() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge = edge_before(Settings::default(), app.local_addr().unwrap()).await;
    let post = b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc";
    let two = GET.repeat(2);
    for (asked, answers) in [(GET, 1), (&post[..], 1), (&two, 2)] {
        let mut tls = edge.connect("a.example", &[]).await.unwrap();
        tls.write_all(asked).await.unwrap();
        end_side(&mut tls).await;
        let (mut served, _) = app.accept().await.unwrap();
        for _ in 0..answers {
            let whole = if asked == post { "abc" } else { "\r\n\r\n" };
            read_until(&mut served, whole).await;
            caught_up(&edge).await;
            served.write_all(OK).await.unwrap();
        }
        let mut got = Vec::new();
        tls.read_to_end(&mut got).await.unwrap();
        let got = String::from_utf8(got).unwrap();
        assert_eq!(got.matches("HTTP/1.1 200 OK").count(), answers, "{got}");
        assert_eq!(got.matches("connection: close").count(), 1, "and the last says that it is: {got}");
        assert!(got.ends_with("hello"), "{got}");
    }
    // Who has nothing more to ask hears the same word, and no broken connection.
    let mut tls = edge.connect("a.example", &[]).await.unwrap();
    assert!(ask(&mut tls, "b.example").await.starts_with("HTTP/1.1 421"));
    end_side(&mut tls).await;
    assert_eq!(tls.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn whoever_has_left_is_worked_for_no_longer_whatever_it_has_said_before() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge = edge_before(Settings::default(), app.local_addr().unwrap()).await;
    let (mut lines, mut kept) = (0, vec![]);
    for (says_so, resets) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut tls = edge.connect("a.example", &[]).await.unwrap();
        tls.write_all(GET).await.unwrap();
        let (mut served, _) = app.accept().await.unwrap();
        read_until(&mut served, "\r\n\r\n").await;
        if says_so {
            end_side(&mut tls).await;
            caught_up(&edge).await;
            lines += 1;
        }
        let (mut tcp, _) = tls.into_inner();
        if resets {
            tcp.set_zero_linger().unwrap();
            drop(tcp);
        } else {
            tcp.shutdown().await.unwrap();
            kept.push(tcp);
        }
        let left = tokio::time::timeout(Duration::from_secs(10), served.read(&mut [0])).await;
        assert_eq!(left.expect("the endpoint hears of it").unwrap(), 0, "{says_so}, {resets}");
        lines += 1;
        let line: Value = serde_json::from_str(edge.harness.lines(lines).await.last().unwrap()).unwrap();
        assert_eq!(line["cause"], "downstream_closed", "{line}");
    }
}

/// RFC 5246 section 7.2.1. Who shuts TLS 1.2 down in both directions waits for our last word, and for nothing else.
#[tokio::test]
async fn whoever_says_no_more_in_tls_1_2_has_left() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge = edge_before(Settings::default(), app.local_addr().unwrap()).await;
    let config = trusting_by(&[&rustls::version::TLS12], &edge.certificates, &[]);
    let mut tls = edge.connect_by(config, "a.example").await.unwrap();
    tls.write_all(GET).await.unwrap();
    let (mut served, _) = app.accept().await.unwrap();
    read_until(&mut served, "\r\n\r\n").await;
    end_side(&mut tls).await;
    let limit = Duration::from_secs(10);
    let left = tokio::time::timeout(limit, served.read(&mut [0])).await;
    assert_eq!(left.expect("the endpoint hears of it").unwrap(), 0);
    let told = tokio::time::timeout(limit, tls.read(&mut [0])).await;
    assert_eq!(told.expect("and the caller is answered").unwrap(), 0, "by our last word");
    let line: Value = serde_json::from_str(&edge.harness.lines(1).await[0]).unwrap();
    assert_eq!(line["cause"], "downstream_closed", "{line}");
}

#[tokio::test]
async fn whoever_goes_on_sending_behind_its_last_word_has_left() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge = edge_before(Settings::default(), app.local_addr().unwrap()).await;
    for (more, leaves) in [(1_000, false), (100 * 1024, true)] {
        let mut tls = edge.connect("a.example", &[]).await.unwrap();
        tls.write_all(GET).await.unwrap();
        let (mut served, _) = app.accept().await.unwrap();
        read_until(&mut served, "\r\n\r\n").await;
        end_side(&mut tls).await;
        // Who has left need not take all of it.
        let _ = tls.get_mut().0.write_all(&vec![0; more]).await;
        caught_up(&edge).await;
        if leaves {
            let left = tokio::time::timeout(Duration::from_secs(10), served.read(&mut [0])).await;
            assert_eq!(left.expect("the endpoint hears of it").unwrap(), 0);
            continue;
        }
        served.write_all(OK).await.unwrap();
        let mut got = String::new();
        tls.read_to_string(&mut got).await.unwrap();
        assert!(got.ends_with("hello"), "{got}");
    }
}

/// The system gives each connection to whichever worker it likes.
#[tokio::test]
async fn a_session_is_resumed_by_whichever_worker_gets_the_connection() {
    let edge = edge_with(Settings { workers: 3, ..Settings::default() }).await;
    let connector = TlsConnector::from(Arc::new(trusting(&edge.certificates, &[])));
    let mut kinds = vec![];
    for _ in 0..13 {
        let tcp = TcpStream::connect(edge.address).await.unwrap();
        let name = ServerName::try_from("a.example").unwrap();
        let mut tls = connector.connect(name, tcp).await.unwrap();
        // Tickets come with the first answer at the latest.
        assert!(ask(&mut tls, "a.example").await.starts_with("HTTP/1.1 200"));
        kinds.push(tls.get_ref().1.handshake_kind().unwrap());
    }
    assert!(matches!(kinds[0], HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest), "{kinds:?}");
    assert!(kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed), "{kinds:?}");
}

/// RFC 8446 section 4.1.1: whoever has nothing in common hears `handshake_failure`.
#[tokio::test]
async fn whoever_has_no_signature_in_common_is_not_told_that_access_is_denied() {
    let edge = edge().await;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = vec![TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256];
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let tcp = TcpStream::connect(edge.address).await.unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let error = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap_err();
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let told = rustls::Error::AlertReceived(rustls::AlertDescription::HandshakeFailure);
    assert_eq!(error, Some(&told), "the edge's keys are of another kind");
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let mut edge = edge().await;
    let mut before = edge.connect("a.example", &[]).await.unwrap();
    let (renewed, secret) = certificate("a.example", "2");
    edge.harness.change([secret]).await;
    let after = edge.connect_trusting("a.example", &[], std::slice::from_ref(&renewed)).await.unwrap();
    assert_eq!(shown(&after), renewed);
    assert!(ask(&mut before, "a.example").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn connections_of_a_listener_that_is_taken_from_its_port_end_and_the_others_go_on() {
    let mut edge = edge().await;
    let (mut a, mut b) =
        (edge.connect("a.example", &[]).await.unwrap(), edge.connect("b.example", &[]).await.unwrap());
    assert!(ask(&mut a, "a.example").await.starts_with("HTTP/1.1 200"));
    assert!(ask(&mut b, "b.example").await.starts_with("HTTP/1.1 200"));
    edge.harness.change([Change::remove::<v1::Listener>("default/gw/a")]).await;
    let_go(&mut a).await;
    assert!(ask(&mut b, "b.example").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_port_that_is_https_no_more_keeps_no_connection_of_it() {
    let mut edge = edge().await;
    let mut tls = edge.connect("a.example", &[]).await.unwrap();
    assert!(ask(&mut tls, "a.example").await.starts_with("HTTP/1.1 200"));
    let plain = |name, host| speaking(v1::listener::Protocol::Http, name, edge.address.port(), host);
    let changes = [plain("a", "a.example"), plain("b", "b.example")];
    edge.harness.change(changes).await;
    let_go(&mut tls).await;
}

async fn let_go(tls: &mut TlsStream<TcpStream>) {
    let mut rest = Vec::new();
    let read = tls.read_to_end(&mut rest);
    // An idle connection ends without the last word of TLS.
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect("it is let go");
    assert!(rest.is_empty());
}
