//! Large responses of HTTP/1.1, which the kernel moves from socket to socket, byte for byte.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::{Harness, Upstream, is_head, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(30);
const LENGTH: usize = 2_000_003;
const HEAD: usize = 4096;

/// Of no two places near each other is the byte the same for long.
fn body(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn answer(told: usize, body: &[u8], then: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {told}\r\n\r\n");
    [head.as_bytes(), body, then].concat()
}

async fn gateway(up: &Upstream) -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

async fn ask(tcp: &mut TcpStream) {
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
}

/// Reads a response of so many bytes of body, or as far as it comes.
async fn read(tcp: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let mut chunk = vec![0; 100_000];
    let reading = async {
        loop {
            let end = got.windows(4).take(HEAD).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
            if let Some(end) = end.filter(|end| got.len() >= end + length) {
                return got.split_off(end);
            }
            match tcp.read(&mut chunk).await {
                Ok(0) | Err(_) => return end.map(|end| got.split_off(end)).unwrap_or_default(),
                Ok(count) => got.extend_from_slice(&chunk[..count]),
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the response comes or breaks off")
}

#[tokio::test]
async fn it_comes_whole_and_both_connections_go_on() {
    let sent = body(LENGTH);
    let expected = sent.clone();
    let up = upstream(move |got| is_head(got).then(|| answer(LENGTH, &sent, b""))).await;
    let (harness, address) = gateway(&up).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    for _ in 0..3 {
        ask(&mut tcp).await;
        assert!(read(&mut tcp, LENGTH).await == expected, "it is another body");
    }
    assert_eq!(up.connections.load(Ordering::SeqCst), 1, "the upstream connection is used again");
    for line in harness.lines(3).await {
        assert!(line.contains(&format!("\"bytes_sent\":{LENGTH}")), "{line}");
    }
}

#[tokio::test]
async fn it_comes_whole_to_a_reader_that_stops_now_and_then() {
    let sent = body(LENGTH);
    let expected = sent.clone();
    let up = upstream(move |got| is_head(got).then(|| answer(LENGTH, &sent, b""))).await;
    let (_harness, address) = gateway(&up).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        ask(&mut tcp).await;
        // Until it reads no further, nothing moves: the proxy has to wait for the socket's room, not for the upstream.
        tokio::time::timeout(PATIENCE, tcp.readable()).await.unwrap().unwrap();
        assert!(read(&mut tcp, LENGTH).await == expected, "it is another body");
    }
}

#[tokio::test]
async fn one_that_breaks_off_ends_the_connection_and_is_told_as_the_upstream_s() {
    let sent = body(LENGTH / 2);
    let up = upstream(move |got| is_head(got).then(|| answer(LENGTH, &sent, b"<close>"))).await;
    let (harness, address) = gateway(&up).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    ask(&mut tcp).await;
    let got = read(&mut tcp, LENGTH).await;
    assert_eq!(got.len(), LENGTH / 2 + "<close>".len());
    let line = harness.lines(1).await.remove(0);
    assert!(
        line.contains("\"upstream_closed\"") && line.contains(&format!("\"bytes_sent\":{}", got.len())),
        "{line}"
    );
}

#[tokio::test]
async fn what_its_upstream_says_behind_it_reaches_nobody() {
    let sent = body(LENGTH);
    let expected = sent.clone();
    let up =
        upstream(move |got| is_head(got).then(|| answer(LENGTH, &sent, b"HTTP/1.1 200 OK\r\n\r\n"))).await;
    let (_harness, address) = gateway(&up).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        ask(&mut tcp).await;
        assert!(read(&mut tcp, LENGTH).await == expected, "it is another body");
    }
    let more = tokio::time::timeout(Duration::from_millis(50), tcp.read_u8()).await;
    assert!(more.is_err(), "nobody asked for {more:?}");
    assert_eq!(up.connections.load(Ordering::SeqCst), 2, "a connection that says more is not used again");
}

#[tokio::test]
async fn whoever_leaves_in_the_middle_is_told_as_having_left() {
    let sent = body(8 * LENGTH);
    let up = upstream(move |got| is_head(got).then(|| answer(8 * LENGTH, &sent, b""))).await;
    let (harness, address) = gateway(&up).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    ask(&mut tcp).await;
    assert!(read(&mut tcp, LENGTH).await.len() >= LENGTH);
    drop(tcp);
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"downstream_"), "{line}");
}
