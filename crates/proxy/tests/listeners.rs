//! What becomes of connections whose listener is taken away, or moves to another port, while the proxy goes on.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::h2::{answer, collect, get, h2_client, h2_upstream};
use support::raw::{ACK, DATA, GOAWAY, PING, Raw, frame, request};
use support::{Harness, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

async fn gateway(protocol: AppProtocol, upstream: SocketAddr) -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", protocol, &[upstream]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

/// What comes until the proxy closes.
async fn rest(tcp: &mut TcpStream) -> String {
    let mut rest = String::new();
    let read = tcp.read_to_string(&mut rest);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("it is let go").unwrap();
    rest
}

/// Takes the listener away, and waits until connections have been told.
async fn take_away(harness: &mut Harness, address: SocketAddr) {
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(GET).await.unwrap();
    read_until(&mut idle, "hello").await;
    harness.change([Change::remove::<v1::Listener>("default/gw/http")]).await;
    rest(&mut idle).await;
}

#[tokio::test]
async fn who_idles_is_let_go_and_what_runs_is_answered_as_the_last() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut harness, address) = gateway(AppProtocol::Http1, listener.local_addr().unwrap()).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(GET).await.unwrap();
    let (mut up, _) = listener.accept().await.unwrap();
    read_until(&mut up, "\r\n\r\n").await;
    let others = tokio::spawn(async move {
        let (mut up, _) = listener.accept().await.unwrap();
        read_until(&mut up, "\r\n\r\n").await;
        up.write_all(OK).await.unwrap();
        up
    });
    take_away(&mut harness, address).await;
    up.write_all(OK).await.unwrap();
    let told = rest(&mut tcp).await;
    assert!(told.starts_with("HTTP/1.1 200") && told.ends_with("hello"), "{told}");
    assert!(told.to_lowercase().contains("\r\nconnection: close\r\n"), "{told}");
    drop(others.await);
}

#[tokio::test]
async fn a_listener_that_moves_to_another_port_leaves_nobody_behind() {
    let up = upstream(|got| is_head(got).then(|| OK.to_vec())).await;
    let (mut harness, address) = gateway(AppProtocol::Http1, up.address).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(GET).await.unwrap();
    read_until(&mut tcp, "hello").await;
    let moved = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    assert_ne!(moved, address);
    assert_eq!(rest(&mut tcp).await, "");
    let mut tcp = TcpStream::connect(moved).await.unwrap();
    tcp.write_all(GET).await.unwrap();
    read_until(&mut tcp, "hello").await;
    harness.apply().await;
    tcp.write_all(GET).await.unwrap();
    read_until(&mut tcp, "hello").await;
}

#[tokio::test]
async fn a_connection_of_http2_is_told_goodbye_and_its_streams_go_on() {
    let release = Arc::new(Notify::new());
    let (entered, mut begun) = mpsc::channel(8);
    let wait = Arc::clone(&release);
    let up = h2_upstream(usize::MAX, move |number, _, respond| {
        let (entered, wait) = (entered.clone(), Arc::clone(&wait));
        async move {
            if number == 0 {
                entered.send(()).await.unwrap();
                wait.notified().await;
            }
            answer(respond, b"hello");
        }
    })
    .await;
    let (mut harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let mut client = h2_client(address).await;
    let runs = client.send_request(get("/"), true).unwrap().0;
    begun.recv().await.unwrap();
    let mut raw = Raw::open(address).await;
    raw.send(&request(1, "/")).await;
    while raw.next().await.unwrap().2 != 1 {}
    take_away(&mut harness, address).await;
    let mut goodbyes = Vec::new();
    while let Ok((kind, flags, _, payload)) = raw.next().await {
        if (kind, flags & ACK) == (PING, 0) {
            raw.send(&frame(PING, ACK, 0, &payload)).await;
        }
        assert!(kind != DATA || payload == *b"hello", "no other answer");
        if kind == GOAWAY {
            goodbyes.push(payload);
        }
    }
    assert_eq!(goodbyes.len(), 2, "two steps, and the end: {goodbyes:?}");
    while client.clone().ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
    release.notify_one();
    assert_eq!(&collect(runs.await.unwrap()).await.1[..], b"hello", "what runs is finished");
}

/// What has become a tunnel is nobody's request any more; it lives as long as its two sides want.
#[tokio::test]
async fn a_websocket_lives_on() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut harness, address) = gateway(AppProtocol::Http1, app.local_addr().unwrap()).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    tcp.write_all(upgrade.as_bytes()).await.unwrap();
    let (mut up, _) = app.accept().await.unwrap();
    read_until(&mut up, "\r\n\r\n").await;
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    up.write_all(agreed.as_bytes()).await.unwrap();
    read_until(&mut tcp, "\r\n\r\n").await;
    let others = tokio::spawn(async move {
        let (mut up, _) = app.accept().await.unwrap();
        read_until(&mut up, "\r\n\r\n").await;
        up.write_all(OK).await.unwrap();
        up
    });
    take_away(&mut harness, address).await;
    drop(others.await);
    tcp.write_all(b"still").await.unwrap();
    read_until(&mut up, "still").await;
    up.write_all(b"there").await.unwrap();
    read_until(&mut tcp, "there").await;
}
