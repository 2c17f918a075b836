//! Windows of HTTP/2 over a distance: as large as a transfer needs them, and small where nobody reads.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::{Request, Response};
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::distance::Distance;
use support::h2::{H2Upstream, answer, collect_body, fetch, get, h2_upstream};
use support::raw::{HEADERS, Raw, SETTINGS, frame, request};
use support::{Harness, exchange, rule};
use tokio::time::Instant;

const EACH_WAY: Duration = Duration::from_millis(40);
const LENGTH: usize = 16 * 1024 * 1024;
/// What a stream may have on the way at first.
const SMALL: usize = 128 * 1024;

/// In so many round trips less than a third of [`LENGTH`] comes through the small window.
fn a_third() -> Duration {
    2 * EACH_WAY * u32::try_from(LENGTH / SMALL / 3).unwrap()
}

async fn gateway(endpoint: SocketAddr) -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http2, &[endpoint]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

/// Sends so much, as far as the window allows, and counts what has gone.
async fn send(send: &mut SendStream<Bytes>, length: usize, gone: &AtomicUsize) -> Result<(), h2::Error> {
    let mut left = length;
    while left > 0 {
        send.reserve_capacity(left.min(64 * 1024));
        let Some(capacity) = poll_fn(|cx| send.poll_capacity(cx)).await else { return Ok(()) };
        let count = capacity?.min(left);
        left -= count;
        send.send_data(Bytes::from(vec![b'x'; count]), left == 0)?;
        gone.fetch_add(count, Ordering::SeqCst);
    }
    Ok(())
}

/// `/large` has such a length, `/unread` counts what has gone of it.
async fn endpoint(unread: &Arc<AtomicUsize>) -> H2Upstream {
    let unread = Arc::clone(unread);
    h2_upstream(usize::MAX, move |_, request: Request<h2::RecvStream>, respond: SendResponse<Bytes>| {
        let unread = Arc::clone(&unread);
        async move {
            let mut respond = respond;
            let mut body = || respond.send_response(Response::new(()), false).unwrap();
            match request.uri().path() {
                "/large" => send(&mut body(), LENGTH, &AtomicUsize::new(0)).await.unwrap(),
                "/unread" => drop(send(&mut body(), LENGTH, &unread).await),
                "/upload" => {
                    let (got, _) = collect_body(request.into_body()).await.unwrap();
                    answer(respond, if got.len() == LENGTH { b"all" } else { b"less" });
                }
                _ => answer(respond, b"hello"),
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_large_answer_from_afar_does_not_wait_for_a_small_window_each_round_trip() {
    let far = endpoint(&Arc::default()).await;
    let distance = Distance::to(far.address, EACH_WAY).await;
    let (_harness, address) = gateway(distance.address).await;
    let mut client = wide_client(address).await;
    let began = Instant::now();
    let (status, body, _) = fetch(&mut client, get("/large")).await;
    assert_eq!((status, body.len()), (200, LENGTH));
    assert!(began.elapsed() < a_third(), "{:?}", began.elapsed());
    assert!((1..200).contains(&distance.pings()), "{} PINGs", distance.pings());
}

#[tokio::test]
async fn a_large_request_from_afar_does_not_wait_for_a_small_window_each_round_trip() {
    let near = endpoint(&Arc::default()).await;
    let (_harness, address) = gateway(near.address).await;
    let distance = Distance::to(address, EACH_WAY).await;
    let mut client = wide_client(distance.address).await;
    let began = Instant::now();
    let post = Request::post("http://shop/upload").body(()).unwrap();
    let (response, mut body) = client.send_request(post, false).unwrap();
    send(&mut body, LENGTH, &AtomicUsize::new(0)).await.unwrap();
    let (got, _) = collect_body(response.await.unwrap().into_body()).await.unwrap();
    assert_eq!(got, "all");
    assert!(began.elapsed() < a_third(), "{:?}", began.elapsed());
    assert!((1..200).contains(&distance.pings()), "{} PINGs", distance.pings());
}

#[tokio::test]
async fn small_messages_send_no_ping() {
    let far = endpoint(&Arc::default()).await;
    let distance = Distance::to(far.address, Duration::from_millis(1)).await;
    let (_harness, address) = gateway(distance.address).await;
    for _ in 0..50 {
        let hello = exchange(address, b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
        assert!(hello.contains("hello"), "{hello}");
    }
    assert_eq!(distance.pings(), 0);
}

/// Where several do not read, no transfer beside them makes room for more of theirs.
#[tokio::test]
async fn callers_who_do_not_read_hold_no_more_than_small_windows_whatever_flows_beside_them() {
    const CALLERS: usize = 4;
    let unread = Arc::default();
    let far = endpoint(&unread).await;
    let distance = Distance::to(far.address, Duration::from_millis(10)).await;
    let (_harness, address) = gateway(distance.address).await;
    let hello = exchange(address, b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
    assert!(hello.contains("hello"), "{hello}");
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let mut deaf = Raw::open(address).await;
        let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        deaf.send(&[no_window, request(1, "/unread")].concat()).await;
        while deaf.next().await.unwrap().0 != HEADERS {}
        callers.push(deaf);
    }
    while unread.load(Ordering::SeqCst) < CALLERS * SMALL {
        tokio::task::yield_now().await;
    }
    let mut client = wide_client(address).await;
    let (status, body, _) = fetch(&mut client, get("/large")).await;
    assert_eq!((status, body.len()), (200, LENGTH));
    // Beside the window one read is on its way to each.
    let gone = unread.load(Ordering::SeqCst);
    assert!(gone <= CALLERS * (SMALL + 32 * 1024), "{gone} bytes");
}

/// A client whose own window is no bound.
async fn wide_client(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 24).initial_connection_window_size(1 << 25);
    let (send, connection) = builder.handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    send
}
