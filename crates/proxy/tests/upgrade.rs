//! Changes of protocol: within HTTP/1.1, within HTTP/2, and across.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;

use base64::Engine as _;
use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Settings, Side};
use support::h2::{answer, collect, collect_body, h2_upstream_with};
use support::mesh::{Pair, plain_at};
use support::policy::traffic;
use support::raw::{self, Raw};
use support::{Harness, exchange, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// The key of RFC 6455 section 1.3 and its answer.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: reviews\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// The request with this field line besides.
fn with(request: &str, line: &str) -> String {
    request.replacen("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"), 1)
}

fn accept_of(key: &str) -> String {
    let hash = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    );
    base64::engine::general_purpose::STANDARD.encode(hash.as_ref())
}

/// An application that takes the handshake, echoes, and says `end` when the caller has said its last word. On `/lie` it
/// proves nothing, on `/reset` it breaks off behind the first bytes. It tells each request's head, and how it ended.
async fn app() -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, tell.clone()));
        }
    });
    (address, told)
}

async fn serve(mut tcp: TcpStream, tell: mpsc::Sender<String>) {
    let head = read_until(&mut tcp, "\r\n\r\n").await;
    let field = |name: &str| {
        let line = head.lines().find(|line| line.to_lowercase().starts_with(name)).unwrap_or_default();
        line.split_once(": ").map_or("", |(_, value)| value).to_owned()
    };
    let key = if head.contains(" /lie ") { "another".to_owned() } else { field("sec-websocket-key") };
    let agreed = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\
         Sec-WebSocket-Protocol: {}\r\n\r\n",
        accept_of(&key),
        field("sec-websocket-protocol")
    );
    let reset = head.contains(" /reset ");
    tell.send(head).await.unwrap();
    tcp.write_all(agreed.as_bytes()).await.unwrap();
    let mut chunk = vec![0; 65536];
    let ended = loop {
        match tcp.read(&mut chunk).await {
            Ok(0) => {
                tcp.write_all(b"end").await.unwrap();
                break "ended".to_owned();
            }
            Ok(_) if reset => {
                socket2::SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
                break "reset".to_owned();
            }
            Ok(count) => {
                if tcp.write_all(&chunk[..count]).await.is_err() {
                    break "broken".to_owned();
                }
            }
            Err(error) => break error.kind().to_string(),
        }
    };
    drop(tcp);
    tell.send(ended).await.unwrap();
}

/// Opens a WebSocket over HTTP/1.1; gives the connection behind the response's head, and that.
async fn open(address: SocketAddr, path: &str) -> (TcpStream, String) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(handshake(path).as_bytes()).await.unwrap();
    let head = read_until(&mut tcp, "\r\n\r\n").await;
    (tcp, head)
}

async fn refused(address: SocketAddr, request: &str, cause: &str) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut told = read_until(&mut tcp, "\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 400 "), "{request}{told}");
    tcp.read_to_string(&mut told).await.unwrap();
    assert!(told.contains(&format!(": {cause}: ")), "{request}{told}");
}

/// Sends megabytes while it reads them, says its last word and reads to the end.
async fn talk(tcp: TcpStream) -> usize {
    let (mut read, mut write) = tcp.into_split();
    let sending = tokio::spawn(async move {
        write.write_all(&vec![7; 3 << 20]).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut got = Vec::new();
    read.read_to_end(&mut got).await.unwrap();
    sending.await.unwrap();
    assert!(got.ends_with(b"end"), "the other direction stays open until its own end");
    got.len()
}

#[tokio::test]
async fn a_websocket_crosses_the_mesh_and_each_hop_has_a_key_of_its_own() {
    let (app, mut told) = app().await;
    let pair = Pair::start(app, AppProtocol::Http1).await;
    let (tcp, head) = open(pair.proxy, "/chat?room=1").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for field in
        [&format!("sec-websocket-accept: {ACCEPT}\r\n"), "upgrade: websocket\r\n", "connection: upgrade\r\n"]
    {
        assert!(head.to_lowercase().contains(&field.to_lowercase()), "{field} is missing: {head}");
    }
    assert!(head.to_lowercase().contains("sec-websocket-protocol: chat\r\n"), "{head}");
    let seen = told.recv().await.unwrap();
    assert!(seen.starts_with("GET /chat?room=1 HTTP/1.1\r\n") && !seen.contains(KEY), "{seen}");
    assert!(seen.contains("sec-websocket-version: 13\r\n") && !seen.contains("content-length"), "{seen}");
    assert_eq!(talk(tcp).await, (3 << 20) + 3);
    assert_eq!(told.recv().await.unwrap(), "ended");
    for proxy in [&pair.outbound, &pair.inbound] {
        let line = proxy.lines(1).await.remove(0);
        let bytes = (3 << 20, (3 << 20) + 3);
        assert!(
            line.contains("\"response_code\":101") && line.contains("\"response_flags\":\"-\""),
            "{line}"
        );
        assert!(line.contains(&format!("\"bytes_received\":{}", bytes.0)), "{line}");
        assert!(line.contains(&format!("\"bytes_sent\":{}", bytes.1)), "{line}");
    }
}

#[tokio::test]
async fn a_break_passes_as_a_break_in_both_directions() {
    let (app, mut told) = app().await;
    let pair = Pair::start(app, AppProtocol::Http1).await;
    let (mut tcp, _) = open(pair.proxy, "/reset").await;
    tcp.write_all(b"x").await.unwrap();
    let error = tcp.read_to_end(&mut Vec::new()).await.expect_err("never a clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    told.recv().await.unwrap();
    assert_eq!(told.recv().await.unwrap(), "reset");

    let (mut tcp, _) = open(pair.proxy, "/").await;
    tcp.write_all(b"x").await.unwrap();
    tcp.read_exact(&mut [0]).await.unwrap();
    told.recv().await.unwrap();
    socket2::SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(tcp);
    assert_eq!(told.recv().await.unwrap(), std::io::ErrorKind::ConnectionReset.to_string());
}

async fn gateway(protocol: AppProtocol, upstream: SocketAddr) -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", protocol, &[upstream]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

/// An extended CONNECT: the response and the request's stream, still open.
async fn connect(
    address: SocketAddr,
    protocol: &'static str,
    path: &str,
) -> (Response<RecvStream>, SendStream<Bytes>) {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (mut client, mut connection) = h2::client::handshake(tcp).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    tokio::spawn(connection);
    pings.ping(h2::Ping::opaque()).await.unwrap();
    assert!(client.is_extended_connect_protocol_enabled(), "the settings say so");
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://shop{path}"))
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap();
    request.extensions_mut().insert(Protocol::from_static(protocol));
    let (response, send) = client.send_request(request, false).unwrap();
    (response.await.unwrap(), send)
}

#[tokio::test]
async fn an_extended_connect_reaches_an_http1_application() {
    let (app, mut told) = app().await;
    let (harness, address) = gateway(AppProtocol::Http1, app).await;
    let (response, mut send) = connect(address, "websocket", "/chat").await;
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("sec-websocket-accept"), "{response:?}");
    assert!(!response.headers().contains_key("upgrade"), "{response:?}");
    let head = told.recv().await.unwrap();
    assert!(head.starts_with("GET /chat HTTP/1.1\r\n") && head.contains("sec-websocket-key: "), "{head}");
    send.send_data(Bytes::from(vec![1; 200_000]), false).unwrap();
    send.send_data(Bytes::from_static(b"last"), true).unwrap();
    let (status, body, _) = collect(response).await;
    assert_eq!((status, body.len()), (200, 200_000 + 4 + 3));
    assert_eq!(told.recv().await.unwrap(), "ended");
    assert!(harness.lines(1).await[0].contains("\"response_code\":101"));

    let (response, mut send) = connect(address, "websocket", "/").await;
    told.recv().await.unwrap();
    send.send_reset(h2::Reason::CANCEL);
    drop(response);
    assert_eq!(told.recv().await.unwrap(), std::io::ErrorKind::ConnectionReset.to_string());

    let (response, _) = connect(address, "websocket", "/lie").await;
    assert_eq!(response.status(), 502, "the application has not understood the handshake");
    let (response, _) = connect(address, "connect-udp", "/").await;
    assert_eq!(response.status(), 501);
}

#[tokio::test]
async fn a_break_is_told_as_that_of_the_side_that_broke_and_is_no_end_of_a_stream() {
    let (app, mut told) = app().await;
    let (harness, address) = gateway(AppProtocol::Http1, app).await;
    let (response, mut send) = connect(address, "websocket", "/reset").await;
    send.send_data(Bytes::from_static(b"x"), false).unwrap();
    let ended = collect_body(response.into_body()).await;
    assert!(ended.is_err_and(|error| error.is_reset()), "never a clean end");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"upstream_reset\""), "{line}");
    for _ in 0..2 {
        told.recv().await.unwrap();
    }
    let (tcp, _) = open(address, "/").await;
    told.recv().await.unwrap();
    socket2::SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(tcp);
    let line = harness.lines(2).await.remove(1);
    assert!(line.contains("\"downstream_reset\"") || line.contains("\"downstream_closed\""), "{line}");
}

/// The other side goes on, and hears of it.
#[tokio::test]
async fn a_stream_can_be_broken_behind_its_last_word() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let (tell, mut told) = mpsc::channel(1);
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let head = read_until(&mut tcp, "\r\n\r\n").await;
        let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
        let agreed = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            accept_of(key)
        );
        tcp.write_all(agreed.as_bytes()).await.unwrap();
        assert_eq!(tcp.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        tell.send(tcp).await.unwrap();
    });
    let (harness, address) = gateway(AppProtocol::Http1, app).await;
    let (_response, mut send) = connect(address, "websocket", "/").await;
    send.send_data(Bytes::new(), true).unwrap();
    let _open = told.recv().await.unwrap();
    send.send_reset(h2::Reason::CANCEL);
    let line = harness.lines(1).await.remove(0);
    // With its last stream the connection may end, too, which is seen as well.
    assert!(line.contains("\"downstream_reset\"") || line.contains("\"downstream_closed\""), "{line}");

    let up = h2_upstream_with(
        h2::server::Builder::enable_connect_protocol,
        usize::MAX,
        |_, request, mut respond| async move {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"end"), true).unwrap();
            let mut body: RecvStream = request.into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "go on");
            send.send_reset(h2::Reason::CANCEL);
        },
    )
    .await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let (response, mut send) = connect(address, "websocket", "/").await;
    let mut body = response.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "end");
    send.send_data(Bytes::from_static(b"go on"), false).unwrap();
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"upstream_reset\"") || line.contains("\"upstream_closed\""), "{line}");
}

#[tokio::test]
async fn a_refused_websocket_is_a_response_like_any_other() {
    let up = upstream(|got| {
        let page = String::from_utf8_lossy(got).starts_with("GET /page ");
        let status = if page { "200 OK" } else { "426 Upgrade Required" };
        is_head(got).then(|| format!("HTTP/1.1 {status}\r\ncontent-length: 3\r\n\r\nno!").into_bytes())
    })
    .await;
    let pair = Pair::start(up.address, AppProtocol::Http1).await;
    let (_harness, edge) = gateway(AppProtocol::Http1, up.address).await;
    for address in [pair.proxy, edge] {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        for (path, status) in [("/", "426"), ("/page", "200"), ("/", "426")] {
            tcp.write_all(handshake(path).as_bytes()).await.unwrap();
            let response = read_until(&mut tcp, "no!").await;
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
            assert!(!response.contains("x-meshwork"), "{response}");
        }
    }
    // Over HTTP/2 a 2xx would agree.
    let (response, _send) = connect(edge, "websocket", "/page").await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["x-meshwork-refused-status"], "200");
    let (response, send) = connect(edge, "websocket", "/").await;
    let (status, body, _) = collect(response).await;
    assert_eq!((status, &body[..]), (426, &b"no!"[..]));
    drop(send);
    assert!(pair.inbound.lines(2).await[0].contains("\"response_code\":426"));
}

#[tokio::test]
async fn an_http2_application_gets_an_extended_connect_if_it_takes_one() {
    for takes in [true, false] {
        let (seen, mut requests) = mpsc::channel(1);
        let settings = move |builder: &mut h2::server::Builder| {
            if takes {
                builder.enable_connect_protocol();
            }
        };
        let up = h2_upstream_with(
            move |builder| {
                settings(builder);
                builder
            },
            usize::MAX,
            move |_, request, mut respond| {
                let seen = seen.clone();
                async move {
                    let (head, mut body) = request.into_parts();
                    let protocol = head.extensions.get::<Protocol>().map(|p| p.as_str().to_owned());
                    let key = head.headers.contains_key("sec-websocket-key");
                    seen.send((head.method, protocol, key)).await.unwrap();
                    if !takes {
                        answer(respond, b"a page");
                        return;
                    }
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    while let Some(data) = body.data().await {
                        send.send_data(data.unwrap(), false).unwrap();
                    }
                    send.send_data(Bytes::from_static(b"end"), true).unwrap();
                }
            },
        )
        .await;
        let (_harness, address) = gateway(AppProtocol::Http2, up.address).await;
        if takes {
            let (mut tcp, head) = open(address, "/").await;
            assert!(head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT), "{head}");
            tcp.write_all(b"hello").await.unwrap();
            tcp.shutdown().await.unwrap();
            assert_eq!(read_until(&mut tcp, "end").await, "helloend");
            let websocket = Some("websocket".to_owned());
            assert_eq!(requests.recv().await.unwrap(), (Method::CONNECT, websocket, false));
        } else {
            let (mut tcp, mut head) = open(address, "/").await;
            if !head.contains("a page") {
                head += &read_until(&mut tcp, "a page").await;
            }
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert_eq!(requests.recv().await.unwrap(), (Method::GET, None, true));
        }
    }
}

/// `SETTINGS_ENABLE_CONNECT_PROTOCOL` of 1 (RFC 8441 section 3).
const TAKES_CONNECT: [u8; 6] = [0, 8, 0, 0, 0, 1];

/// An endpoint that says these settings and answers no PING; where a request comes, it agrees and tells the stream's number.
async fn without_pongs(settings: &'static [u8]) -> (SocketAddr, mpsc::Receiver<u32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, asked) = mpsc::channel(16);
    let serve = async move |mut tcp: TcpStream, tell: mpsc::Sender<u32>| {
        tcp.read_exact(&mut [0; raw::PREFACE.len()]).await.unwrap();
        let mut raw = Raw(tcp);
        raw.send(&raw::frame(raw::SETTINGS, 0, 0, settings)).await;
        while let Ok((kind, flags, stream, _)) = raw.next().await {
            match kind {
                raw::SETTINGS if flags & raw::ACK == 0 => {
                    raw.send(&raw::frame(raw::SETTINGS, raw::ACK, 0, &[])).await;
                }
                raw::HEADERS => {
                    raw.send(&raw::frame(raw::HEADERS, raw::END_HEADERS, stream, &[0x88])).await;
                    tell.send(stream).await.unwrap();
                }
                _ => {}
            }
        }
    };
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, tell.clone()));
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_websocket_is_sent_once_its_endpoint_has_said_that_it_takes_one() {
    let (up, mut asked) = without_pongs(&TAKES_CONNECT).await;
    let (_harness, address) = gateway(AppProtocol::Http2, up).await;
    let (_tcp, head) = open(address, "/").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(asked.recv().await, Some(1));
}

#[tokio::test]
async fn an_endpoint_that_does_not_say_whether_it_takes_a_websocket_has_the_time_of_a_connection() {
    let (up, mut asked) = without_pongs(&[]).await;
    let (mut harness, address) = gateway(AppProtocol::Http2, up).await;
    let timeouts = Some(v1::Timeouts { connect_ms: 60, ..Default::default() });
    harness.change([traffic(v1::TrafficPolicy { timeouts, ..Default::default() })]).await;
    let answer = exchange(address, handshake("/").replace("keep-alive", "close").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("connect_timeout\n"), "{answer}");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"phase\":\"connect\""), "{line}");
    assert!(asked.try_recv().is_err(), "nothing was sent");
}

/// An extended CONNECT has no Content-Length, and whoever reads one holds every byte of the tunnel against it.
#[tokio::test]
async fn a_handshake_that_says_it_has_no_content_crosses_from_proxy_to_proxy() {
    let (app, mut told) = app().await;
    let pair = Pair::start(app, AppProtocol::Http1).await;
    let (_inner, inner) = gateway(AppProtocol::Http1, app).await;
    let (_outer, outer) = gateway(AppProtocol::Http2, inner).await;
    for address in [pair.proxy, outer] {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let request = with(&handshake("/"), "Content-Length: 0");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let head = read_until(&mut tcp, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT), "{head}");
        told.recv().await.unwrap();
        assert_eq!(talk(tcp).await, (3 << 20) + 3);
        assert_eq!(told.recv().await.unwrap(), "ended");
    }
}

/// Its content would be the first bytes of a tunnel to one reader and a body to another.
#[tokio::test]
async fn a_handshake_with_content_is_refused_whatever_its_endpoint_speaks() {
    let (app, mut told) = app().await;
    let (_plain, plain) = gateway(AppProtocol::Http1, app).await;
    let (_crossing, crossing) = gateway(AppProtocol::Http2, plain).await;
    for address in [plain, crossing] {
        for (field, body) in
            [("Content-Length: 3", "xyz"), ("Transfer-Encoding: chunked", "3\r\nxyz\r\n0\r\n\r\n")]
        {
            let request = with(&handshake("/"), field) + body;
            refused(address, &request, "handshake_with_content").await;
            assert!(told.try_recv().is_err(), "{field}: nothing is sent");
        }
    }
}

/// RFC 6455 section 11.3.1. Towards HTTP/2 the answer is ours, and could prove one of them only.
#[tokio::test]
async fn a_handshake_with_two_keys_is_refused_whatever_its_endpoint_speaks() {
    let (app, mut told) = app().await;
    let (_plain, plain) = gateway(AppProtocol::Http1, app).await;
    let (_crossing, crossing) = gateway(AppProtocol::Http2, plain).await;
    for address in [plain, crossing] {
        let request = with(&handshake("/"), "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==");
        refused(address, &request, "repeated_key").await;
        assert!(told.try_recv().is_err(), "nothing is sent");
    }
}

/// What could be sent once the protocol has changed is not waited for before it has.
#[tokio::test]
async fn a_websocket_begins_also_where_its_endpoint_takes_no_bytes_yet() {
    let up = h2_upstream_with(
        |builder| builder.enable_connect_protocol().initial_window_size(0),
        usize::MAX,
        |_, _request, mut respond| async move {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"end"), false).unwrap();
            std::future::pending::<()>().await;
        },
    )
    .await;
    let (_harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let (mut tcp, mut head) = open(address, "/").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    if !head.contains("end") {
        head += &read_until(&mut tcp, "end").await;
    }
    assert!(head.ends_with("end"), "{head}");
}

#[tokio::test]
async fn what_would_lead_past_the_rules_is_not_offered_and_what_was_not_offered_is_not_taken() {
    let up = upstream(|got| {
        let text = String::from_utf8_lossy(got).to_lowercase();
        is_head(got).then(|| {
            if text.contains("/unasked") {
                return b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_vec();
            }
            let offered = text.lines().find(|line| line.starts_with("upgrade:")).unwrap_or("none").to_owned();
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{offered}", offered.len()).into_bytes()
        })
    })
    .await;
    let (_harness, address) = gateway(AppProtocol::Http1, up.address).await;
    let ask = |path: &'static str, upgrade: &'static str| async move {
        let connection = if upgrade.is_empty() { "close" } else { "close, upgrade, http2-settings" };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\nUpgrade: {upgrade}\r\n\
             HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        );
        exchange(address, request.as_bytes()).await
    };
    assert!(ask("/", "h2c").await.ends_with("\r\n\r\nnone"));
    assert!(ask("/", "h2c, custom/1").await.ends_with("upgrade: custom/1"));
    assert!(ask("/unasked", "").await.starts_with("HTTP/1.1 502 "));
    assert!(ask("/unasked", "custom/1").await.starts_with("HTTP/1.1 502 "));
}

/// It passes on what it was told with the handshake, which says how long that may take.
#[tokio::test]
async fn what_an_application_calls_for_a_websocket_has_its_own_time_and_not_what_the_handshake_had() {
    let (address, mut told) = app().await;
    let mut pair = Pair::start(address, AppProtocol::Http1).await;
    let next = upstream(|got| is_head(got).then(|| b"HTTP/1.1 204 Well\r\n\r\n".to_vec())).await;
    pair.inbound.change(plain_at("next", next.address)).await;
    let outbound = pair.inbound.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let hurried = with(&with(&handshake("/"), "X-Request-Id: a"), "X-Envoy-Expected-Rq-Timeout-Ms: 2000");
    let mut caller = TcpStream::connect(pair.proxy).await.unwrap();
    caller.write_all(hurried.as_bytes()).await.unwrap();
    assert!(read_until(&mut caller, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    let head = told.recv().await.unwrap().to_lowercase();
    let passed_on = ["x-request-id: a\r\n", "x-envoy-expected-rq-timeout-ms: 2000\r\n"];
    assert!(passed_on.iter().all(|line| head.contains(line)), "{head}");
    let call = format!("GET / HTTP/1.1\r\nHost: next\r\n{}Connection: close\r\n\r\n", passed_on.concat());
    // The handshake would be over by now.
    pair.mesh.clock.advance(std::time::Duration::from_secs(3));
    let answer = exchange(outbound, call.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    drop(caller);
}
