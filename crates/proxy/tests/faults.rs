//! Faults between two proxies of a mesh: each has one flag and one cause, the same in access log, metric and flight
//! recorder, and its client sees a clean error. The rows are those of `docs/guides/faults.md`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../../../cli/tests/faults/rows.rs"]
#[expect(dead_code, reason = "the rows of gateways are injected into the binary")]
mod rows;
mod support;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Found, OnDemand, Settings, Side};
use rows::{MESH, Row, Sees};
use serde_json::Value;
use support::h2::{fetch, get, h2_client};
use support::mesh::{Pair, TestMesh, service_at};
use support::{Harness, exchange, is_head, upstream};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn row(name: &str) -> &'static Row {
    MESH.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("{name} is no row"))
}

/// The status that a client of each version gets, with a whole body.
async fn statuses(proxy: SocketAddr, host: &str, id: &str) -> [u16; 2] {
    let request =
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Request-Id: {id}-1\r\nConnection: close\r\n\r\n");
    let answer = exchange(proxy, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    assert_eq!(length, Some(body.len()), "whole: {answer}");
    let one = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut request = get("/");
    *request.uri_mut() = format!("http://{host}/").parse().unwrap();
    request.headers_mut().insert("x-request-id", format!("{id}-2").parse().unwrap());
    let (two, ..) = fetch(&mut h2_client(proxy).await, request).await;
    [one, two]
}

/// Calls twice, and compares what everybody says with the row.
async fn met(name: &str, outbound: &Harness, proxy: SocketAddr, host: &str) {
    let row = row(name);
    let Sees::Status(status) = row.sees else { panic!("{name}: a status") };
    let before = outbound.metric("istio_requests_total", &[&format!("response_flags=\"{}\"", row.flag)]);
    let called = tokio::time::timeout(Duration::from_secs(30), statuses(proxy, host, name)).await;
    assert_eq!(called.expect("nobody is left waiting"), [status; 2], "{name}");
    for version in [1, 2] {
        let id = format!("{name}-{version}");
        let lines = async {
            loop {
                let lines = outbound.lines(1).await;
                let of_id =
                    lines.into_iter().filter(|line| line.contains(&format!("\"request_id\":\"{id}\"")));
                let of_id: Vec<String> = of_id.collect();
                if !of_id.is_empty() {
                    return of_id;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let lines = tokio::time::timeout(Duration::from_secs(10), lines).await.expect("a line");
        let [line] = &lines[..] else { panic!("{name}: one line: {lines:?}") };
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            [&line["response_flags"], &line["cause"], &line["phase"]],
            [row.flag, row.cause, row.phase],
            "{name}: {line}"
        );
        let recall = v1::Recall { request_id: id, ..v1::Recall::default() };
        let kept = outbound.engine.recall(0, &recall).await.await;
        let [one, done] = &kept[..] else { panic!("{name}: one request: {kept:?}") };
        let record = one.record.as_ref().unwrap();
        assert_eq!([&*record.flag, &record.cause, &record.phase], [row.flag, row.cause, row.phase], "{name}");
        assert_eq!((&*record.kept, done.done.is_some()), ("failed", true));
    }
    let flag = format!("response_flags=\"{}\"", row.flag);
    outbound.wait_metric("istio_requests_total", &[&flag], before + 2).await;
}

async fn pair() -> Pair {
    let app = upstream(|got| is_head(got).then(|| OK.to_vec())).await;
    Pair::start(app.address, AppProtocol::Http1).await
}

#[tokio::test]
async fn who_cannot_prove_to_be_the_one_that_is_called_is_called_by_its_cause() {
    let mut pair = pair().await;
    let garbage = upstream(|_| Some(b"220 mail.example ESMTP\r\n".to_vec())).await;
    pair.outbound.change(service_at("reviews", &pair.reviews.id(), garbage.address)).await;
    met("bad-tls", &pair.outbound, pair.proxy, "reviews").await;
    pair.outbound.change(service_at("reviews", &pair.mesh.id("ratings"), pair.peer)).await;
    met("wrong-identity", &pair.outbound, pair.proxy, "reviews").await;
}

#[tokio::test]
async fn expired_identities_fail_closed_on_either_side() {
    let pair = pair().await;
    pair.mesh.clock.advance(Duration::from_hours(73));
    met("own-svid-expired", &pair.outbound, pair.proxy, "reviews").await;
    pair.web.renew(pair.mesh.svid("web")).unwrap();
    met("peer-svid-expired", &pair.outbound, pair.proxy, "reviews").await;
    pair.inbound
        .wait_metric("meshwork_tls_handshake_failures_total", &["cause=\"own_svid_expired\""], 6)
        .await;
}

#[tokio::test]
async fn revoked_identities_are_refused_on_either_side() {
    let mut pair = pair().await;
    pair.inbound.change([pair.mesh.bundle(2, &["web"])]).await;
    met("caller-revoked", &pair.outbound, pair.proxy, "reviews").await;
    pair.inbound.wait_metric("meshwork_tls_handshake_failures_total", &["cause=\"revoked\""], 6).await;
    pair.inbound.change([pair.mesh.bundle(3, &[])]).await;
    pair.outbound.change([pair.mesh.bundle(2, &["reviews"])]).await;
    met("callee-revoked", &pair.outbound, pair.proxy, "reviews").await;
}

/// Answers all questions alike.
struct Oracle(Found);

impl OnDemand for Oracle {
    fn find(&self, _: &str, _: Duration) -> Pin<Box<dyn Future<Output = Found> + Send>> {
        let found = self.0;
        Box::pin(async move { found })
    }

    fn touch(&self, _: &str) {}
}

#[tokio::test]
async fn a_name_that_is_gone_is_told_from_a_control_plane_that_is_away() {
    for (name, found) in [("unknown-name", Found::Unknown), ("control-plane-away", Found::Unavailable)] {
        let mesh = TestMesh::new();
        let web = mesh.identity("web");
        let mut outbound = mesh.proxy(&web, Some(Arc::new(Oracle(found))), Settings::default());
        outbound.change([mesh.bundle(1, &[])]).await;
        let proxy = outbound.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        met(name, &outbound, proxy, "nowhere").await;
    }
}

#[test]
fn every_row_is_injected() {
    let source = include_str!("faults.rs");
    for row in MESH {
        assert!(source.contains(&format!("\"{}\"", row.name)), "{} is not injected", row.name);
    }
}

/// Whoever asks it breaks down.
struct Broken;

impl OnDemand for Broken {
    fn find(&self, _: &str, _: Duration) -> Pin<Box<dyn Future<Output = Found> + Send>> {
        Box::pin(async { panic!("asking breaks down, as the test wants it") })
    }

    fn touch(&self, _: &str) {}
}

#[tokio::test]
async fn a_request_that_is_dropped_before_it_is_answered_is_written_once_and_as_no_success() {
    let mesh = TestMesh::new();
    let mut proxy = mesh.proxy(&mesh.identity("web"), Some(Arc::new(Broken)), Settings::default());
    let address = proxy.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let answer = exchange(address, b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer, "");
    let lines = proxy.lines(1).await;
    let [line] = &lines[..] else { panic!("one line: {lines:?}") };
    assert!(line.contains("\"response_code\":0,") && line.contains("\"cause\":\"draining\""), "{line}");
}
