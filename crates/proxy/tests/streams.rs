//! Connections of layer 4 through the engine: bytes, halves, ends; attempts; what is counted and written.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_process::Drained;
use meshwork_proxy::Settings;
use serde_json::Value;
use support::{Harness, free_port, with_a_full_queue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that does this with each connection.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    address
}

/// Answers what it got, once its caller has said everything: the length and a sum of the bytes.
async fn summing() -> SocketAddr {
    server(|mut tcp| async move {
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).await.unwrap();
        tcp.write_all(sum(&all).as_bytes()).await.unwrap();
    })
    .await
}

fn sum(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!("{} {sum:x}", bytes.len())
}

async fn echoing() -> SocketAddr {
    server(|mut tcp| async move {
        let (mut read, mut write) = tcp.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

fn any_rule(backends: &[(&str, u32)]) -> v1::Rule {
    support::rule(backends, vec![])
}

/// A gateway with one TCP listener, a route with this rule; gives the address.
async fn tcp_route(harness: &mut Harness, rule: v1::Rule) -> SocketAddr {
    let source = |kind: &str, name: &str| {
        Some(v1::Source {
            kind: kind.into(),
            name: name.into(),
            namespace: "default".into(),
            ..Default::default()
        })
    };
    let listener = v1::Listener {
        port: free_port().into(),
        source: source("Gateway", "gw"),
        protocol: v1::listener::Protocol::Tcp.into(),
        ..Default::default()
    };
    let parent = v1::route::attachment::Parent::Listener("default/gw/tcp".into());
    let route = v1::Route {
        source: source("TCPRoute", "r"),
        attachments: vec![v1::route::Attachment { parent: Some(parent), ..Default::default() }],
        rules: vec![rule],
    };
    let changes =
        [Change::upsert("default/gw/tcp", "1", &listener), Change::upsert("TCPRoute/default/r", "1", &route)];
    harness.change(changes).await;
    *harness.engine.bound().values().next().expect("bound")
}

async fn through(endpoints: &[SocketAddr]) -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("s", v1::service_port::AppProtocol::Tcp, endpoints).await;
    let address = tcp_route(&mut harness, any_rule(&[("s", 1)])).await;
    (harness, address)
}

async fn said(tcp: &mut TcpStream) -> String {
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut all)).await.expect("an end comes").unwrap();
    String::from_utf8(all).unwrap()
}

async fn line(harness: &Harness, number: usize) -> Value {
    serde_json::from_str(&harness.lines(number + 1).await[number]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_said_everything_still_gets_its_answer_and_all_is_counted() {
    let (harness, address) = through(&[summing().await]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let peer = tcp.local_addr().unwrap();
    tcp.write_all(b"hello").await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(said(&mut tcp).await, sum(b"hello"));

    let line = line(&harness, 0).await;
    assert_eq!(line["protocol"], "TCP");
    assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&5.into(), &sum(b"hello").len().into()));
    assert_eq!((&line["response_flags"], &line["response_code"]), (&"-".into(), &0.into()));
    assert_eq!((&line["listener"], &line["route_name"]), (&"default/gw/tcp".into(), &"default/r".into()));
    assert_eq!(line["downstream_remote_address"], peer.to_string());
    assert_eq!(line["attempts"], 1);

    let labels = ["request_protocol=\"tcp\"", "destination_service_name=\"s\"", "reporter=\"source\""];
    for (metric, expected) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_received_bytes_total", 5),
        ("istio_tcp_sent_bytes_total", sum(b"hello").len() as u64),
    ] {
        assert_eq!(harness.metric(metric, &labels), expected, "{metric}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_pass_both_ways_at_once_and_none_is_changed() {
    let (harness, address) = through(&[echoing().await]).await;
    let data: Vec<u8> = (0..24_000_000_u32).map(|n| (n ^ (n >> 9)).to_le_bytes()[0]).collect();
    let tcp = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = tcp.into_split();
    let sent = data.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut back = Vec::new();
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut back)).await.expect("an end comes").unwrap();
    sending.await.unwrap();
    assert!(back == data, "{} of {} bytes, or changed ones", back.len(), data.len());
    let line = line(&harness, 0).await;
    assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&data.len().into(), &data.len().into()));
}

/// A caller that does not read must not make us take more than fits.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_read_holds_its_server_back() {
    const MUCH: usize = 256 << 20;
    let (given, seen) = tokio::sync::watch::channel(0);
    let endless = server(move |mut tcp| {
        let given = given.clone();
        async move {
            let chunk = vec![7; 1 << 16];
            for _ in 0..MUCH >> 16 {
                if tcp.write_all(&chunk).await.is_err() {
                    return;
                }
                given.send_modify(|sum| *sum += chunk.len());
            }
        }
    })
    .await;
    let (_harness, address) = through(&[endless]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.read_exact(&mut [0; 1]).await.unwrap();
    // It stops by itself: nothing has come for a while.
    let mut watched = seen.clone();
    while tokio::time::timeout(Duration::from_millis(500), watched.changed()).await.is_ok() {}
    let held = *seen.borrow();
    assert!(held < MUCH / 4, "{held} bytes were taken for a caller that took one");
    let mut some = vec![0; held];
    tokio::time::timeout(PATIENCE, tcp.read_exact(&mut some))
        .await
        .expect("it goes on when the caller reads")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_never_passed_on_as_a_regular_end() {
    let breaking = server(|mut tcp| async move {
        let mut chunk = [0; 4];
        tcp.read_exact(&mut chunk).await.unwrap();
        tcp.write_all(b"half an ans").await.unwrap();
        socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let (harness, address) = through(&[breaking]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"ask?").await.unwrap();
    let mut all = Vec::new();
    let end = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut all)).await.expect("an end comes");
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let line = line(&harness, 0).await;
    assert_eq!((&line["response_flags"], &line["cause"]), (&"UR".into(), &"upstream_reset".into()));
    assert_eq!(line["cause_detail"], "reading from the endpoint: Connection reset by peer (os error 104)");
    assert_eq!(line["phase"], "tunnel");
    assert_eq!(harness.metric("istio_tcp_connections_closed_total", &["response_flags=\"UR\""]), 1);
}

/// A port that refuses.
fn dead() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_is_passed_over_and_ejected() {
    let (mut harness, address) = through(&[dead(), echoing().await]).await;
    let policy = v1::TrafficPolicy {
        outlier_detection: Some(v1::OutlierDetection {
            consecutive_5xx: Some(1),
            base_ejection_time_ms: 600_000,
            max_ejection_percent: 50,
            ..crate::support::rows_off()
        }),
        ..Default::default()
    };
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/s".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    let message = v1::Policy { source: None, targets: vec![target], spec };
    harness.change([Change::upsert("TrafficPolicy/default/p", "1", &message)]).await;
    for _ in 0..20 {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"ping").await.unwrap();
        tcp.shutdown().await.unwrap();
        assert_eq!(said(&mut tcp).await, "ping");
    }
    let lines = harness.lines(20).await;
    let attempts = |line: &String| serde_json::from_str::<Value>(line).unwrap()["attempts"].as_u64().unwrap();
    let twice = lines.iter().filter(|line| attempts(line) == 2).count();
    assert_eq!(twice, 1, "after its ejection nobody meets it again: {lines:#?}");
    assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), 1);
    assert_eq!(harness.metric("meshwork_upstream_connect_failures_total", &[]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_can_take_a_connection_it_is_reset_and_the_cause_told() {
    async fn refused(address: SocketAddr) {
        // The reset may come before the connection is reported.
        let read = async { TcpStream::connect(address).await?.read_to_end(&mut Vec::new()).await };
        let end = tokio::time::timeout(PATIENCE, read).await.expect("an end comes");
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    let (harness, address) = through(&[dead()]).await;
    refused(address).await;
    let told = line(&harness, 0).await;
    assert_eq!((&told["response_flags"], &told["cause"]), (&"UF".into(), &"connect_failure".into()));
    assert_eq!(told["phase"], "connect");
    assert_eq!(harness.metric("istio_tcp_connections_closed_total", &["response_flags=\"UF\""]), 1);

    let (harness, address) = through(&[]).await;
    refused(address).await;
    let told = line(&harness, 0).await;
    assert_eq!((&told["cause"], &told["phase"]), (&"no_healthy_upstream".into(), &"endpoint".into()));

    let mut harness = Harness::start(Settings::default());
    let mut rule = any_rule(&[("absent", 1)]);
    rule.backends[0].invalid = "BackendNotFound".into();
    let address = tcp_route(&mut harness, rule).await;
    refused(address).await;
    let told = line(&harness, 0).await;
    assert_eq!((&told["cause"], &told["phase"]), (&"invalid_backend".into(), &"backend".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_share_connections() {
    let mut harness = Harness::start(Settings::default());
    for (name, word) in [("a", "a"), ("b", "b")] {
        let telling =
            server(move |mut tcp| async move { tcp.write_all(word.as_bytes()).await.unwrap() }).await;
        harness.service(name, v1::service_port::AppProtocol::Tcp, &[telling]).await;
    }
    let address = tcp_route(&mut harness, any_rule(&[("a", 1), ("b", 3)])).await;
    let mut count = 0;
    for _ in 0..200 {
        count += usize::from(said(&mut TcpStream::connect(address).await.unwrap()).await == "b");
    }
    // 150 expected; ten standard deviations.
    assert!((89..=199).contains(&count), "{count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_count_connections_and_silence_ends_them() {
    let (mut harness, address) = through(&[echoing().await]).await;
    let policy = v1::TrafficPolicy {
        limits: Some(v1::Limits { max_connections: 1, ..Default::default() }),
        timeouts: Some(v1::Timeouts { idle_ms: 1500, ..Default::default() }),
        ..Default::default()
    };
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/s".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    let message = v1::Policy { source: None, targets: vec![target], spec };
    harness.change([Change::upsert("TrafficPolicy/default/p", "1", &message)]).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"x").await.unwrap();
    first.read_exact(&mut [0; 1]).await.unwrap();
    let second = async { TcpStream::connect(address).await?.read_to_end(&mut Vec::new()).await };
    assert!(second.await.is_err(), "one is the limit");
    assert_eq!(line(&harness, 0).await["cause"], "max_connections");
    let end =
        tokio::time::timeout(PATIENCE, first.read_to_end(&mut Vec::new())).await.expect("silence ends it");
    assert!(end.is_err(), "and not as if everything had been said");
    assert_eq!(line(&harness, 1).await["cause"], "stream_idle_timeout");
    let mut third = TcpStream::connect(address).await.unwrap();
    third.write_all(b"y").await.unwrap();
    third.read_exact(&mut [0; 1]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_when_the_process_drains_may_finish_until_its_time_is_over() {
    let (harness, address) = through(&[echoing().await]).await;
    let mut ends = TcpStream::connect(address).await.unwrap();
    let mut stays = TcpStream::connect(address).await.unwrap();
    for tcp in [&mut ends, &mut stays] {
        tcp.write_all(b"1").await.unwrap();
        tcp.read_exact(&mut [0; 1]).await.unwrap();
    }
    let Harness { engine, .. } = harness;
    let draining = tokio::spawn(engine.drain(Duration::from_secs(2)));
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("nothing new is taken");
    ends.write_all(b"2").await.unwrap();
    ends.read_exact(&mut [0; 1]).await.expect("what runs goes on");
    ends.shutdown().await.unwrap();
    assert_eq!(said(&mut ends).await, "");
    assert_eq!(draining.await.unwrap(), Drained::CutOff { left: 1 }, "one did not end by itself");
    assert!(stays.read_exact(&mut [0; 1]).await.is_err(), "it is cut");
}

/// Nothing was sent, so that nobody has more to do by another endpoint: a budget that has no retry does not make it worse than
/// no policy at all.
#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_is_tried_also_where_the_budget_has_no_retry() {
    let dead = || SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (mut harness, address) = through(&[dead(), dead(), summing().await]).await;
    let budget = Some(v1::RetryBudget { percent: Some(0), min_per_second: Some(0) });
    repeat_connections(&mut harness, v1::Retry { budget, ..connecting_again() }).await;
    for number in 0..10 {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"1").await.unwrap();
        tcp.shutdown().await.unwrap();
        assert_eq!(said(&mut tcp).await, sum(b"1"), "connection {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_endpoints_are_tried_without_the_budget_than_there_may_be_attempts() {
    let nobody = [(); 4].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
    let (mut harness, address) = through(&nobody).await;
    let budget = Some(v1::RetryBudget { percent: Some(0), min_per_second: Some(0) });
    repeat_connections(&mut harness, v1::Retry { attempts: Some(1), budget, ..connecting_again() }).await;
    // It is reset, perhaps before this has seen that it stands.
    let _tcp = TcpStream::connect(address).await;
    assert_eq!(line(&harness, 0).await["attempts"], 2);
}

fn connecting_again() -> v1::Retry {
    v1::Retry {
        attempts: Some(2),
        on: Some(v1::retry::On { connect_failure: true, ..Default::default() }),
        ..crate::support::bare_retry()
    }
}

async fn repeat_connections(harness: &mut Harness, retry: v1::Retry) {
    let policy = v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        retry: Some(retry),
        ..Default::default()
    };
    repeat_by(harness, policy).await;
}

async fn repeat_by(harness: &mut Harness, policy: v1::TrafficPolicy) {
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/s".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    let policy = v1::Policy { source: None, targets: vec![target], spec };
    harness.change([Change::upsert("default/p", "1", &policy)]).await;
}

/// Two of three endpoints refuse connections, and each has its turn: the first retry of every connection is in vain, the
/// second helps.
#[tokio::test(flavor = "multi_thread")]
async fn connections_are_made_again_as_long_as_that_helps() {
    let dead = || SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (mut harness, address) = through(&[dead(), dead(), summing().await]).await;
    let policy = v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        retry: Some(connecting_again()),
        // One that is over makes room for the next.
        limits: Some(v1::Limits { max_retries: 1, ..Default::default() }),
        ..Default::default()
    };
    repeat_by(&mut harness, policy).await;
    for number in 0..10 {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"1").await.unwrap();
        tcp.shutdown().await.unwrap();
        assert_eq!(said(&mut tcp).await, sum(b"1"), "connection {number}");
    }
}

/// A retry lasts until its connection stands, not only until it is made: the next one is refused meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_counts_as_long_as_it_makes_its_connection() {
    let (_socket, full, _queued) = with_a_full_queue();
    let (mut harness, address) = through(&[dead(), full]).await;
    let budget = Some(v1::RetryBudget { percent: Some(100), min_per_second: Some(100) });
    let policy = v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        retry: Some(v1::Retry { budget, ..connecting_again() }),
        limits: Some(v1::Limits { max_retries: 1, ..Default::default() }),
        timeouts: Some(v1::Timeouts { connect_ms: 60_000, ..Default::default() }),
        ..Default::default()
    };
    repeat_by(&mut harness, policy).await;
    let refused = || harness.metric("meshwork_limit_rejected_total", &["default/s", "maxRetries"]);
    let mut callers = Vec::new();
    let met = async {
        // Each second one calls the endpoint that is dead first. Whoever is refused is reset, perhaps before this has seen that it stands.
        while refused() == 0 {
            callers.extend(TcpStream::connect(address).await.ok());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), met).await.expect("one retry is the limit");
    assert_eq!(harness.metric("meshwork_limit_headroom", &["default/s", "maxRetries"]), 0);
}
