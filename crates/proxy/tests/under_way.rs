//! Requests that are under way when somebody asks for them: each tells where it is, without having been noted before.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::fault_injection::Delay;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::h2::{get, h2_client};
use support::{Harness, exchange, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Any but that by which nobody asks.
const PROBE: u64 = 7;

/// Bytes, more than all sockets on the way hold.
const LARGE: usize = 32 * 1024 * 1024;

fn of(id: &str) -> v1::Recall {
    v1::Recall { request_id: id.to_owned(), ..v1::Recall::default() }
}

/// What is told of a request, without the last word.
async fn told(harness: &Harness, probe: u64, recall: &v1::Recall) -> Vec<v1::Observation> {
    let mut told = harness.engine.recall(probe, recall).await.await;
    assert!(told.pop().is_some_and(|last| last.done.is_some()), "it is said to be all");
    told
}

/// The same, once it has come to this phase.
async fn in_phase(harness: &Harness, id: &str, phase: &str) -> v1::Observation {
    come_to(harness, id, |record| record.phase == phase).await
}

/// The same, once this is so.
async fn come_to(harness: &Harness, id: &str, is: impl Fn(&v1::RequestRecord) -> bool) -> v1::Observation {
    let mut last = None;
    let comes = async {
        loop {
            let mut found = told(harness, PROBE, &of(id)).await;
            assert!(found.len() <= 1, "it is told once: {found:?}");
            last = found.pop();
            if last.as_ref().is_some_and(|found| is(found.record.as_ref().unwrap())) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let comes = tokio::time::timeout(Duration::from_secs(10), comes).await;
    assert!(comes.is_ok(), "{id} does not come so far: {last:?}");
    last.unwrap()
}

async fn send(to: SocketAddr, id: &str, more: &str) -> TcpStream {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    let head = format!("GET /{id} HTTP/1.1\r\nHost: shop\r\nX-Request-Id: {id}\r\n{more}\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp
}

/// An edge before an upstream that does what paths say.
async fn edge() -> (Harness, SocketAddr, SocketAddr) {
    let web = upstream(|got| {
        let path = String::from_utf8_lossy(got).split(' ').nth(1).unwrap_or_default().to_owned();
        let answer: &[u8] = match &*path {
            _ if !is_head(got) => return None,
            "/part" => b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
            "/large" => {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
                return Some([head.into_bytes(), vec![b'x'; LARGE]].concat());
            }
            "/tunnel" => b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: custom/1\r\n\r\n",
            "/whole" => b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n",
            _ => return None,
        };
        Some(answer.to_vec())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[web.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address, web.address)
}

#[tokio::test]
async fn a_request_tells_where_it_is_and_for_whom_it_waits() {
    let (harness, edge, web) = edge().await;
    let _silent = send(edge, "silent", "").await;
    let found = in_phase(&harness, "silent", "request").await;
    let record = found.record.unwrap();
    assert!(record.under_way && record.duration_ns > 0, "{record:?}");
    assert_eq!((record.status, &*record.service, &*record.kept), (0, "default/web:80", ""));
    let [attempt] = &found.attempts[..] else { panic!("one is under way: {:?}", found.attempts) };
    assert_eq!((&attempt.endpoint, &*attempt.cause), (&web.to_string(), ""));
    assert!(attempt.connect_ns.is_some() && attempt.duration_ns > 0, "{attempt:?}");

    assert!(!record.owed);

    let _owes = send(edge, "owes", "Content-Length: 5\r\n").await;
    assert!(in_phase(&harness, "owes", "request").await.record.unwrap().owed);

    let _part = send(edge, "part", "").await;
    let record = in_phase(&harness, "part", "response").await.record.unwrap();
    assert_eq!((record.under_way, record.status, record.bytes_sent), (true, 200, 4));

    let mut tunnel = send(edge, "tunnel", "Connection: upgrade\r\nUpgrade: custom/1\r\n").await;
    read_until(&mut tunnel, "\r\n\r\n").await;
    assert!(in_phase(&harness, "tunnel", "tunnel").await.record.unwrap().under_way);

    // A stream of HTTP/2 beside others of its connection.
    let mut client = h2_client(edge).await;
    let streams: Vec<_> = (0..3)
        .map(|number| {
            let mut request = get("/silent");
            request.headers_mut().insert("x-request-id", format!("h2-{number}").parse().unwrap());
            client.send_request(request, true).unwrap()
        })
        .collect();
    assert!(in_phase(&harness, "h2-1", "request").await.record.unwrap().under_way);
    drop(streams);
}

#[tokio::test]
async fn bytes_are_told_as_they_go_and_whether_it_is_the_caller_who_is_waited_for() {
    let (harness, edge, _) = edge().await;
    let mut owes = send(edge, "owes", "Content-Length: 5\r\n").await;
    owes.write_all(b"abc").await.unwrap();
    let found = come_to(&harness, "owes", |is| is.bytes_received > 0).await;
    assert_eq!(found.record.unwrap().bytes_received, 3);
    assert_eq!(found.attempts[0].bytes_sent, 3);
    owes.write_all(b"de").await.unwrap();
    let found = come_to(&harness, "owes", |is| is.bytes_received == 5).await.record.unwrap();
    assert!(!found.owed, "it is the service that has not answered: {found:?}");

    let _call = send(edge, "call", "Content-Type: application/grpc\r\nContent-Length: 5\r\n").await;
    let found = in_phase(&harness, "call", "request").await.record.unwrap();
    assert_eq!((found.owed, found.open), (false, true), "a call may be answered before it has ended");
    let _asks = send(edge, "asks", "Expect: 100-continue\r\nContent-Length: 5\r\n").await;
    let found = in_phase(&harness, "asks", "request").await.record.unwrap();
    assert_eq!((found.owed, found.open), (false, false), "it waits for leave");

    let mut tunnel = send(edge, "tunnel", "Connection: upgrade\r\nUpgrade: custom/1\r\n").await;
    read_until(&mut tunnel, "\r\n\r\n").await;
    tunnel.write_all(b"ping").await.unwrap();
    let found = come_to(&harness, "tunnel", |is| is.bytes_received == 4).await;
    assert_eq!(found.attempts[0].bytes_sent, 4);
}

#[tokio::test]
async fn who_does_not_read_an_answer_is_told_to_be_waited_for() {
    let (harness, edge, _) = edge().await;
    let _part = send(edge, "part", "").await;
    assert!(!come_to(&harness, "part", |is| is.bytes_sent == 4).await.record.unwrap().unread, "all is read");
    let mut large = send(edge, "large", "").await;
    come_to(&harness, "large", |is| is.unread).await;
    // Read, it goes on and ends.
    let mut left = read_until(&mut large, "\r\n\r\n").await.split("\r\n\r\n").nth(1).unwrap().len();
    let mut chunk = vec![0; 1024 * 1024];
    while left < LARGE {
        left += large.read(&mut chunk).await.unwrap();
    }
    harness.lines(1).await;
}

#[tokio::test]
async fn a_request_that_a_policy_holds_back_tells_so() {
    let (mut harness, edge, _) = edge().await;
    let share = Some(v1::Share { numerator: 100, denominator: 100 });
    let delay = Some(Delay { share, time_ms: 3_600_000 });
    let spec = Some(v1::policy::Spec::Traffic(v1::TrafficPolicy {
        fault_injection: Some(v1::FaultInjection { delay, ..Default::default() }),
        ..Default::default()
    }));
    let target =
        v1::policy::Target { kind: "HTTPRoute".into(), name: "default/r".into(), section: String::new() };
    let source = v1::Source {
        kind: "TrafficPolicy".into(),
        namespace: "default".into(),
        name: "p".into(),
        ..Default::default()
    };
    let policy = v1::Policy { source: Some(source), targets: vec![target], spec };
    harness.change([Change::upsert("default/p", "1", &policy)]).await;
    let _held = send(edge, "held", "").await;
    let found = in_phase(&harness, "held", "fault").await;
    assert!(found.attempts.is_empty() && found.record.unwrap().under_way, "it is not sent yet");
}

#[tokio::test]
async fn only_what_is_asked_for_is_told_and_what_has_ended_as_it_ended() {
    let (harness, edge, _) = edge().await;
    let silent = send(edge, "silent", "").await;
    in_phase(&harness, "silent", "request").await;
    assert_eq!(told(&harness, PROBE, &of("other")).await, []);
    assert_eq!(told(&harness, 0, &of("silent")).await, [], "a proxy that looks for what has failed");
    drop(silent);
    harness.lines(1).await;
    let found = told(&harness, PROBE, &of("silent")).await;
    let [record] = &found.iter().map(|found| found.record.as_ref().unwrap()).collect::<Vec<_>>()[..] else {
        panic!("it is told once: {found:?}")
    };
    assert_eq!((record.under_way, &*record.cause), (false, "downstream_closed"));
    // One that was asked for in vain goes on as it was.
    let whole = exchange(
        edge,
        b"GET /whole HTTP/1.1\r\nHost: shop\r\nX-Request-Id: whole\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(whole.starts_with("HTTP/1.1 503"), "{whole}");
    harness.lines(2).await;
    assert!(!told(&harness, PROBE, &of("whole")).await[0].record.as_ref().unwrap().under_way);
}
