//! Copies of requests: what becomes of one is held for or against its endpoint as of any request, and each has an end.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use support::mirrors::{Edge, GET, OK, OUTCOMES, Recorder, edge, mirror, mirrored, on_copy};
use support::{Upstream, exchange, is_head, upstream, with_a_full_queue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BAD: &[u8] = b"HTTP/1.1 500 Wrong\r\ncontent-length: 0\r\n\r\n";

fn to_copy() -> v1::Rule {
    mirrored(vec![mirror("copy", 100)])
}

/// One request, and its copy's end.
async fn copied(edge: &Edge, outcome: &str, count: u64) {
    assert!(exchange(edge.address, GET).await.ends_with("original"));
    edge.ended(outcome, count).await;
}

/// Says this, and closes; nothing: says nothing and stays.
async fn says(what: Option<&'static [u8]>) -> Upstream {
    upstream(move |bytes| what.filter(|_| is_head(bytes)).map(<[u8]>::to_vec)).await
}

/// Two failures in a row eject.
fn ejecting(base_ejection_time_ms: u32) -> v1::TrafficPolicy {
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: Some(2),
        base_ejection_time_ms,
        max_ejection_time_ms: 3_600_000,
        max_ejection_percent: 50,
        interval_ms: 10_000,
        ..crate::support::rows_off()
    });
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    v1::TrafficPolicy { algorithm, outlier_detection, ..Default::default() }
}

/// Copies go to one endpoint like `bad`, and to one that is well.
async fn two(bad: SocketAddr, rule: v1::Rule, policy: v1::TrafficPolicy) -> (Edge, Recorder) {
    let well = Recorder::answering(OK).await;
    let mut edge = edge(bad, rule).await;
    edge.harness.service("copy", AppProtocol::Http1, &[bad, well.upstream.address]).await;
    edge.harness.change([on_copy(policy)]).await;
    (edge, well)
}

#[tokio::test]
async fn an_endpoint_that_fails_copies_is_ejected_however_it_fails() {
    // It answers 500; it closes without an answer; it says nothing until the time is over.
    for what in [Some(BAD), Some(&b""[..]), None] {
        let bad = says(what).await;
        let rule = v1::Rule { request_timeout_ms: 1_000, ..to_copy() };
        let (edge, _well) = two(bad.address, rule, ejecting(3_600_000)).await;
        let ejections = || edge.harness.metric("meshwork_endpoint_ejections_total", &["default/copy"]);
        let sending = async {
            while ejections() == 0 {
                assert!(exchange(edge.address, GET).await.ends_with("original"));
            }
        };
        tokio::time::timeout(Duration::from_secs(10), sending).await.unwrap_or_else(|_| panic!("{what:?}"));
    }
}

#[tokio::test]
async fn an_ejected_endpoint_is_tried_by_a_copy_and_returns_where_that_goes_well() {
    let ill = Arc::new(AtomicBool::new(true));
    let answers = Arc::clone(&ill);
    let endpoint = upstream(move |bytes| {
        is_head(bytes).then(|| if answers.load(Ordering::SeqCst) { BAD.to_vec() } else { OK.to_vec() })
    })
    .await;
    let (edge, _well) = two(endpoint.address, to_copy(), ejecting(20)).await;
    let counted =
        |what: &str| edge.harness.metric(&format!("meshwork_endpoint_{what}_total"), &["default/copy"]);
    let sending = async {
        while counted("ejections") == 0 {
            assert!(exchange(edge.address, GET).await.ends_with("original"));
        }
        ill.store(false, Ordering::SeqCst);
        while counted("returns") == 0 {
            assert!(exchange(edge.address, GET).await.ends_with("original"));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), sending).await.expect("it is ejected, and returns");
}

fn breaking(breaker: v1::CircuitBreaker) -> v1::TrafficPolicy {
    let breaker = v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        open_ms: 60_000,
        max_open_ms: 60_000,
        trials: 1,
        ..breaker
    };
    v1::TrafficPolicy { circuit_breaker: Some(breaker), ..Default::default() }
}

#[tokio::test]
async fn copies_that_fail_open_their_endpoint_s_breaker() {
    let bad = says(Some(BAD)).await;
    let mut edge = edge(bad.address, to_copy()).await;
    let breaker = v1::CircuitBreaker {
        per_endpoint: Some(true),
        minimum_calls: 2,
        failure_percent: 50,
        ..Default::default()
    };
    edge.harness.change([on_copy(breaking(breaker))]).await;
    copied(&edge, "failed", 1).await;
    // A breaker misses a call that ends while somebody reads its state, as who waits for a metric does.
    let counted = |outcome: &str| edge.harness.metric(OUTCOMES, &["default/copy", outcome]);
    for sent in 2..20 {
        assert!(exchange(edge.address, GET).await.ends_with("original"));
        let ended = async {
            while counted("\"failed\"") + counted("\"refused\"") < sent {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ended).await.expect("each copy ends");
        if counted("\"refused\"") > 0 {
            return;
        }
    }
    panic!("not one of many was refused");
}

#[tokio::test]
async fn a_copy_took_as_long_as_its_head_did() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut chunk = [0; 4096];
                while tcp.read(&mut chunk).await.is_ok_and(|count| count > 0) {
                    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1_200)).await;
                    tcp.write_all(b"ok").await.unwrap();
                }
            });
        }
    });
    let mut edge = edge(address, to_copy()).await;
    let breaker =
        v1::CircuitBreaker { minimum_calls: 1, slow_percent: 1, slow_after_ms: 1_000, ..Default::default() };
    edge.harness.change([on_copy(breaking(breaker))]).await;
    copied(&edge, "answered", 1).await;
    copied(&edge, "answered", 2).await;
}

#[tokio::test]
async fn a_copy_is_under_way_at_its_endpoint() {
    let silent = says(None).await;
    let mut edge = edge(silent.address, to_copy()).await;
    let limits = Some(v1::Limits { max_requests_per_endpoint: 1, ..Default::default() });
    edge.harness.change([on_copy(v1::TrafficPolicy { limits, ..Default::default() })]).await;
    assert!(exchange(edge.address, GET).await.ends_with("original"));
    copied(&edge, "refused", 1).await;
}

#[tokio::test]
async fn that_nobody_is_there_is_a_failure() {
    let copy = Recorder::answering(OK).await;
    let mut edge = edge(copy.upstream.address, mirrored(vec![mirror("nobody", 100)])).await;
    edge.harness.service("nobody", AppProtocol::Http1, &[]).await;
    assert!(exchange(edge.address, GET).await.ends_with("original"));
    let failed = ["default/nobody", "\"failed\""];
    edge.harness.wait_metric("meshwork_mirrored_requests_total", &failed, 1).await;
}

#[tokio::test]
async fn what_is_said_before_an_answer_is_none() {
    let early = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 Wrong\r\ncontent-length: 0\r\n\r\n";
    let edge = edge(says(Some(early)).await.address, to_copy()).await;
    copied(&edge, "failed", 1).await;
}

#[tokio::test]
async fn a_connection_is_kept_where_both_bodies_have_ended() {
    let copy = Recorder::answering(OK).await;
    let whole = edge(copy.upstream.address, to_copy()).await;
    copied(&whole, "answered", 1).await;
    copied(&whole, "answered", 2).await;
    assert_eq!(copy.upstream.connections.load(Ordering::SeqCst), 1);

    // It answers the head, and has not got the body.
    let hasty = upstream(|bytes| bytes.windows(4).any(|end| end == b"\r\n\r\n").then(|| OK.to_vec())).await;
    let part = edge(hasty.address, to_copy()).await;
    let mut tcp = TcpStream::connect(part.address).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
    part.ended("answered", 1).await;
    copied(&part, "answered", 2).await;
    assert_eq!(hasty.connections.load(Ordering::SeqCst), 2);
}

/// Answers a head, so many bytes of a body that would be longer, and nothing more.
async fn endless(bytes: usize) -> Upstream {
    upstream(move |got| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
        let answer = || [head.into_bytes(), vec![b'x'; bytes]].concat();
        got.windows(4).any(|end| end == b"\r\n\r\n").then(answer)
    })
    .await
}

#[tokio::test]
async fn of_an_answer_a_mebibyte_is_read_and_no_more() {
    let edge = edge(endless(2 * 1024 * 1024).await.address, to_copy()).await;
    let ended = copied(&edge, "answered", 1);
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the rest is not waited for");
}

#[tokio::test]
async fn an_answer_that_had_begun_is_one_though_it_does_not_end() {
    let mut edge = edge(endless(5).await.address, to_copy()).await;
    let timeouts = Some(v1::Timeouts { stream_idle_ms: 1_000, ..Default::default() });
    edge.harness.change([on_copy(v1::TrafficPolicy { timeouts, ..Default::default() })]).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
    edge.ended("answered", 1).await;
}

#[tokio::test]
async fn a_copy_has_the_connect_timeout_of_its_service() {
    let (_socket, full, _queued) = with_a_full_queue();
    let mut edge = edge(full, to_copy()).await;
    let timeouts = Some(v1::Timeouts { connect_ms: 100, ..Default::default() });
    edge.harness.change([on_copy(v1::TrafficPolicy { timeouts, ..Default::default() })]).await;
    let ended = copied(&edge, "failed", 1);
    tokio::time::timeout(Duration::from_secs(4), ended).await.expect("where nothing is said it is 5 s");
}

#[tokio::test]
async fn a_body_that_goes_on_is_waited_for() {
    let copy = Recorder::answering(OK).await;
    let mut edge = edge(copy.upstream.address, to_copy()).await;
    let timeouts = Some(v1::Timeouts { stream_idle_ms: 600, ..Default::default() });
    edge.harness.change([on_copy(v1::TrafficPolicy { timeouts, ..Default::default() })]).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\n";
    tcp.write_all(head).await.unwrap();
    // Longer than nothing may come, in all.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        tcp.write_all(b"x").await.unwrap();
    }
    edge.ended("answered", 1).await;
}
