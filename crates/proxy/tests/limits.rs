//! Limits of services and endpoints: who is refused, who waits, and for what.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::policy::{BUSY, GET, OK, gateway, gateway_of, holding, limits, retry, traffic};
use support::{Harness, exchange, fill_the_queue_of, is_head, read_until, rule, upstream, with_a_full_queue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Sends a request whose body comes later, and waits until the upstream holds it.
async fn hold(address: SocketAddr, held: &AtomicUsize) -> TcpStream {
    let before = held.load(Ordering::SeqCst);
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await.unwrap();
    while held.load(Ordering::SeqCst) == before {
        tokio::task::yield_now().await;
    }
    tcp
}

#[tokio::test]
async fn more_requests_than_the_limit_are_refused_at_once() {
    let (up, held, _) = holding().await;
    let policy = limits(v1::Limits { max_requests: 1, ..Default::default() });
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    let mut first = hold(address, &held).await;
    let response = exchange(address, GET).await;
    assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("max_requests\n"), "{response}");
    assert!(harness.lines(1).await[0].contains("\"UO\""));
    first.write_all(b"more").await.unwrap();
    assert!(read_until(&mut first, "hello").await.starts_with("HTTP/1.1 200"));
    let next = hold(address, &held).await;
    drop(next);
}

#[tokio::test]
async fn a_request_waits_for_a_connection_within_the_limit_but_not_in_a_crowd() {
    let (up, held, open) = holding().await;
    let policy = limits(v1::Limits { max_connections: 1, max_pending_requests: 1, ..Default::default() });
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    let mut first = hold(address, &held).await;
    let waiting = [0, 1].map(|_| tokio::spawn(async move { exchange(address, GET).await }));
    // Of two that want to wait, one may.
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("max_pending_requests"), "{line}");
    open.store(true, Ordering::SeqCst);
    first.write_all(b"more").await.unwrap();
    read_until(&mut first, "hello").await;
    let mut answers = Vec::new();
    for waiting in waiting {
        answers.push(waiting.await.unwrap());
    }
    answers.sort();
    assert!(answers[0].starts_with("HTTP/1.1 200") && answers[1].starts_with("HTTP/1.1 503"), "{answers:?}");
    assert_eq!(up.connections.load(Ordering::SeqCst), 1, "the limit held");
}

#[tokio::test]
async fn a_request_whose_caller_has_left_in_the_line_is_not_sent() {
    for body in [&b"more"[..], &[b'x'; 20_000], b""] {
        let (up, held, open) = holding().await;
        let policy = limits(v1::Limits { max_connections: 1, ..Default::default() });
        let (harness, address) = gateway(&[up.address], Some(policy)).await;
        let mut first = hold(address, &held).await;
        let mut gone = TcpStream::connect(address).await.unwrap();
        let head = format!("POST /gone HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
        gone.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        drop(gone);
        let line = harness.lines(1).await.remove(0);
        assert!(line.contains("downstream_closed") && line.contains("\"/gone\""), "{line}");
        open.store(true, Ordering::SeqCst);
        first.write_all(b"more").await.unwrap();
        read_until(&mut first, "hello").await;
        assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
        assert_eq!(held.load(Ordering::SeqCst), 1, "with a body of {} bytes it was sent", body.len());
    }
}

/// Sockets of this machine that are being connected to a port.
fn connecting_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    let is_syn_sent = |line: &str| {
        let mut columns = line.split_whitespace().skip(2);
        columns.next().is_some_and(|to| to.ends_with(&remote)) && columns.next() == Some("02")
    };
    table.lines().skip(1).filter(|line| is_syn_sent(line)).count()
}

#[tokio::test]
async fn a_crowd_waits_in_line_and_does_not_overrun_the_queue_of_an_application() {
    const CROWD: u32 = 300;
    let (socket, upstream, queued) = with_a_full_queue();
    let limit = v1::Limits { max_pending_requests: 1_000, ..Default::default() };
    let (harness, address) = gateway(&[upstream], Some(limits(limit))).await;
    let crowd: Vec<_> =
        (0..CROWD).map(|_| tokio::spawn(async move { exchange(address, GET).await })).collect();
    let pending = &["maxPendingRequests"];
    harness.wait_metric("meshwork_limit_headroom", pending, u64::from(1_000 - CROWD)).await;
    assert_eq!(connecting_to(upstream.port()), 128, "of all that wait");

    drop(queued);
    socket.listen(1_024).unwrap();
    let busy: std::net::TcpListener = socket.into();
    busy.set_nonblocking(true).unwrap();
    let busy = TcpListener::from_std(busy).unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (mut tcp, _) = busy.accept().await.unwrap();
            tokio::spawn(async move {
                loop {
                    let mut got = Vec::new();
                    while !is_head(&got) {
                        if tcp.read_buf(&mut got).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    tcp.write_all(OK).await.unwrap();
                }
            });
        }
    });
    for one in crowd {
        let answer = one.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    serving.abort();
    harness.wait_metric("meshwork_limit_headroom", pending, 1_000).await;
}

#[tokio::test]
async fn of_those_who_wait_for_an_endpoint_there_are_as_many_as_may_be() {
    let (up, held, open) = holding().await;
    let limit = v1::Limits {
        max_connections_per_endpoint: 1,
        max_pending_requests_per_endpoint: 1,
        ..Default::default()
    };
    let (harness, address) = gateway(&[up.address], Some(limits(limit))).await;
    let mut first = hold(address, &held).await;
    let second = tokio::spawn(async move { exchange(address, GET).await });
    harness.wait_metric("meshwork_limit_waited_total", &["default/web", "maxConnections"], 1).await;
    let third = exchange(address, GET).await;
    assert!(third.starts_with("HTTP/1.1 503") && third.ends_with("max_pending_requests\n"), "{third}");
    let refused = ["default/web", "maxPendingRequests"];
    assert_eq!(harness.metric("meshwork_limit_rejected_total", &refused), 1);
    open.store(true, Ordering::SeqCst);
    first.write_all(b"more").await.unwrap();
    assert!(read_until(&mut first, "hello").await.starts_with("HTTP/1.1 200"));
    assert!(second.await.unwrap().starts_with("HTTP/1.1 200"), "who waits is served");
}

#[tokio::test]
async fn whoever_waits_for_a_shared_connection_that_another_one_makes_waits_for_a_connection() {
    let (_socket, upstream, _queued) = with_a_full_queue();
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http2, &[upstream]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let limit = v1::Limits { max_pending_requests: 2, ..Default::default() };
    harness.change([traffic(limits(limit))]).await;
    let mut waiting = JoinSet::new();
    for _ in 0..3 {
        waiting.spawn(async move { exchange(address, GET).await });
    }
    let refused = waiting.join_next().await.unwrap().unwrap();
    assert!(
        refused.ends_with("max_pending_requests\n"),
        "one connection is made, and two may wait: {refused}"
    );
    harness.wait_metric("meshwork_limit_headroom", &["maxPendingRequests"], 0).await;
}

#[tokio::test]
async fn a_request_waits_for_a_connection_to_its_endpoint_and_takes_the_one_that_is_given_back() {
    let (up, held, _) = holding().await;
    let limit =
        v1::Limits { max_connections_per_endpoint: 1, max_pending_requests: 10, ..Default::default() };
    let (harness, address) = gateway(&[up.address], Some(limits(limit))).await;
    let mut first = hold(address, &held).await;
    let second = tokio::spawn(async move {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nmore").await.unwrap();
        read_until(&mut tcp, "hello").await
    });
    let waiting = &["maxPendingRequests"];
    harness.wait_metric("meshwork_limit_headroom", waiting, 9).await;
    assert!(!second.is_finished(), "one connection carries one request");
    first.write_all(b"more").await.unwrap();
    assert!(read_until(&mut first, "hello").await.starts_with("HTTP/1.1 200"));
    assert!(second.await.unwrap().starts_with("HTTP/1.1 200"));
    let of_connections = ["default/web", "maxConnections"];
    assert_eq!(harness.metric("meshwork_limit_waited_total", &of_connections), 1, "one was made to wait");
    assert_eq!(harness.metric("meshwork_limit_rejected_total", &of_connections), 0, "and nobody was refused");
}

/// How long a test waits for what is to come at once; a connection may take much longer.
const SOON: Duration = Duration::from_secs(10);

/// These limits, and so much time for a connection that nothing comes of a wait in vain.
fn patient(limits: v1::Limits) -> v1::TrafficPolicy {
    let timeouts = Some(v1::Timeouts { connect_ms: 60_000, ..Default::default() });
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    v1::TrafficPolicy { limits: Some(limits), timeouts, algorithm, ..Default::default() }
}

#[tokio::test]
async fn who_waits_for_a_connection_of_the_service_has_that_of_another_endpoint_as_soon_as_it_is_free() {
    for ends in [false, true] {
        let [(one, of_one, open), (other, of_other, _)] = [holding().await, holding().await];
        let limit = v1::Limits { max_connections: 2, ..Default::default() };
        let (harness, address) = gateway(&[one.address, other.address], Some(patient(limit))).await;
        // In turn: the first and the third go to the same endpoint.
        let first = hold(address, &of_one).await;
        let mut second = hold(address, &of_other).await;
        open.store(true, Ordering::SeqCst);
        let third = tokio::spawn(async move { exchange(address, GET).await });
        harness.wait_metric("meshwork_limit_waited_total", &["default/web", "maxConnections"], 1).await;
        if ends {
            drop(second);
        } else {
            second.write_all(b"more").await.unwrap();
            assert!(read_until(&mut second, "hello").await.starts_with("HTTP/1.1 200"));
        }
        let answer =
            tokio::time::timeout(SOON, third).await.expect("it has a connection of its own").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(
            [&one, &other].map(|up| up.connections.load(Ordering::SeqCst)),
            [2, 1],
            "within the limit"
        );
        harness.wait_metric("meshwork_limit_headroom", &["default/web", "maxConnections"], 0).await;
        drop(first);
    }
}

#[tokio::test]
async fn a_connection_that_idles_at_another_endpoint_makes_room_for_a_new_one() {
    let [(one, of_one, _), (other, _, open)] = [holding().await, holding().await];
    open.store(true, Ordering::SeqCst);
    let limit = v1::Limits { max_connections: 2, ..Default::default() };
    let (_harness, address) = gateway(&[one.address, other.address], Some(patient(limit))).await;
    // In turn: the first and the third go to the same endpoint, and what the second needed idles by then.
    let mut first = hold(address, &of_one).await;
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
    let third = tokio::time::timeout(SOON, hold(address, &of_one)).await;
    let mut third = third.expect("it has a connection");
    let connections = || [&one, &other].map(|up| up.connections.load(Ordering::SeqCst));
    assert_eq!(connections(), [2, 1]);
    for held in [&mut first, &mut third] {
        held.write_all(b"more").await.unwrap();
        assert!(read_until(held, "hello").await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_connection_that_idles_at_another_worker_makes_room_for_who_waits() {
    const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (up, held, open) = holding().await;
    open.store(true, Ordering::SeqCst);
    let mut harness = Harness::start(Settings { workers: 2, ..Settings::default() });
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let limit = v1::Limits { max_connections_per_endpoint: 2, ..Default::default() };
    harness.change([traffic(patient(limit))]).await;
    // Callers of both workers, if chance is not against it, of which each has a connection that idles.
    let mut callers = Vec::new();
    for _ in 0..20 {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(ASK).await.unwrap();
        read_until(&mut tcp, "hello").await;
        callers.push(tcp);
    }
    assert_eq!(up.connections.load(Ordering::SeqCst), 2, "one for each worker");
    open.store(false, Ordering::SeqCst);
    let mut holds = callers.pop().unwrap();
    holds.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await.unwrap();
    while held.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    open.store(true, Ordering::SeqCst);
    // Whoever shares the first one's worker would wait for the first one's connection.
    for mut tcp in callers {
        tcp.write_all(ASK).await.unwrap();
        let answer = tokio::time::timeout(SOON, read_until(&mut tcp, "hello")).await;
        answer.expect("the other worker's connection makes room");
    }
    holds.write_all(b"more").await.unwrap();
    read_until(&mut holds, "hello").await;
}

/// Holds two requests at a time and answers both; is asked again on either connection and, once told to, closes both, the other one
/// first; and answers on the connection that comes then.
async fn closes_both(listener: TcpListener, asked: oneshot::Sender<()>, goes_on: oneshot::Receiver<()>) {
    let (mut one, _) = listener.accept().await.unwrap();
    read_until(&mut one, "\r\n\r\n").await;
    let (mut two, _) = listener.accept().await.unwrap();
    read_until(&mut two, "\r\n\r\n").await;
    one.write_all(OK).await.unwrap();
    two.write_all(OK).await.unwrap();
    let (asks_one, asks_two) = (&mut [0; 1024], &mut [0; 1024]);
    let is_first = tokio::select! {
        _ = one.read(asks_one) => true,
        _ = two.read(asks_two) => false,
    };
    asked.send(()).unwrap();
    goes_on.await.unwrap();
    let (asked, other) = if is_first { (one, two) } else { (two, one) };
    drop(other);
    drop(asked);
    let (mut third, _) = listener.accept().await.unwrap();
    read_until(&mut third, "\r\n\r\n").await;
    third.write_all(OK).await.unwrap();
}

#[tokio::test]
async fn a_kept_connection_that_its_peer_has_closed_makes_room_for_a_new_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let ((asked, is_asked), (go_on, goes_on)) = (oneshot::channel(), oneshot::channel());
    let serving = tokio::spawn(closes_both(listener, asked, goes_on));
    let most = |max_connections_per_endpoint| {
        patient(v1::Limits { max_connections_per_endpoint, ..Default::default() })
    };
    let (mut harness, address) = gateway(&[upstream], Some(most(2))).await;
    let both = [0, 1].map(|_| tokio::spawn(async move { exchange(address, GET).await }));
    for one in both {
        assert!(one.await.unwrap().ends_with("hello"));
    }
    let asks = tokio::spawn(async move { exchange(address, GET).await });
    is_asked.await.unwrap();
    // What is kept beside it is one more than there may be now.
    harness.change([traffic(most(1))]).await;
    go_on.send(()).unwrap();
    let answer = tokio::time::timeout(SOON, asks).await.expect("there is room").unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
    let waited = harness.metric("meshwork_limit_waited_total", &["default/web", "maxConnections"]);
    assert_eq!(waited, 0, "it was not made to wait");
    serving.await.unwrap();
}

/// So many requests at a time, each held by the upstream; then all of them are answered.
async fn crowd(address: SocketAddr, held: &AtomicUsize, count: usize) {
    let mut callers = Vec::new();
    for _ in 0..count {
        callers.push(hold(address, held).await);
    }
    for caller in &mut callers {
        caller.write_all(b"more").await.unwrap();
        assert!(read_until(caller, "hello").await.starts_with("HTTP/1.1 200"));
    }
}

const ACTIVE: &str = "meshwork_upstream_connections_active";

/// Limits of two connections, of the service or of its only endpoint.
fn two_at_most() -> [v1::Limits; 2] {
    [
        v1::Limits { max_connections: 2, ..Default::default() },
        v1::Limits { max_connections_per_endpoint: 2, ..Default::default() },
    ]
}

#[tokio::test]
async fn connections_that_idle_beyond_a_limit_that_falls_carry_nothing_more() {
    for limit in two_at_most() {
        let (up, held, _) = holding().await;
        let (mut harness, address) = gateway(&[up.address], Some(patient(v1::Limits::default()))).await;
        crowd(address, &held, 6).await;
        assert_eq!(harness.metric(ACTIVE, &[]), 6);
        harness.change([traffic(patient(limit))]).await;
        let mut callers = Vec::new();
        for _ in 0..6 {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await.unwrap();
            callers.push(tcp);
        }
        harness.wait_metric("meshwork_limit_waited_total", &["default/web", "maxConnections"], 4).await;
        harness.wait_metric(ACTIVE, &[], 2).await;
        assert!(held.load(Ordering::SeqCst) <= 8, "two of them are at work: {limit:?}");
        for caller in &mut callers {
            caller.write_all(b"more").await.unwrap();
        }
        for caller in &mut callers {
            let answer = tokio::time::timeout(SOON, read_until(caller, "hello")).await;
            assert!(answer.expect("each has its turn").starts_with("HTTP/1.1 200"));
        }
        assert_eq!(up.connections.load(Ordering::SeqCst), 6, "on connections that were there: {limit:?}");
    }
}

#[tokio::test]
async fn connections_that_idle_beyond_a_limit_that_falls_end_though_nobody_asks() {
    for limit in two_at_most() {
        let (up, held, _) = holding().await;
        let (mut harness, address) = gateway(&[up.address], Some(patient(v1::Limits::default()))).await;
        crowd(address, &held, 6).await;
        harness.change([traffic(patient(limit))]).await;
        harness.wait_metric(ACTIVE, &[], 2).await;
    }
}

#[tokio::test]
async fn what_runs_beyond_a_limit_that_falls_goes_on_and_its_connection_is_not_kept() {
    for limit in two_at_most() {
        let (up, held, open) = holding().await;
        // The clock stands still, and so do those who look at what idles.
        let harness = Harness::at(&ManualClock::new());
        let none = patient(v1::Limits::default());
        let (mut harness, address) = gateway_of(harness, &[up.address], Some(none)).await;
        let mut callers = Vec::new();
        for _ in 0..4 {
            callers.push(hold(address, &held).await);
        }
        harness.change([traffic(patient(limit))]).await;
        let waits = tokio::spawn(async move { exchange(address, GET).await });
        harness.wait_metric("meshwork_limit_waited_total", &["default/web", "maxConnections"], 1).await;
        open.store(true, Ordering::SeqCst);
        for caller in &mut callers {
            caller.write_all(b"more").await.unwrap();
            assert!(read_until(caller, "hello").await.starts_with("HTTP/1.1 200"), "{limit:?}");
        }
        let answer = tokio::time::timeout(SOON, waits).await.expect("there is room").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        harness.wait_metric(ACTIVE, &[], 2).await;
        assert_eq!(up.connections.load(Ordering::SeqCst), 4);
    }
}

/// Asks, and is not answered yet.
async fn asks(address: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(GET).await.unwrap();
    tcp
}

#[tokio::test]
async fn who_waits_behind_one_that_leaves_has_the_connection_of_another_endpoint_that_ends_then() {
    let [(one, of_one, open), (other, of_other, _)] = [holding().await, holding().await];
    let limit = v1::Limits { max_connections: 2, max_pending_requests: 10, ..Default::default() };
    let (harness, address) = gateway(&[one.address, other.address], Some(patient(limit))).await;
    let waiting = &["maxPendingRequests"];
    // In turn: one of each pair goes to either endpoint.
    let held = hold(address, &of_one).await;
    let mut ends = hold(address, &of_other).await;
    let leaves = asks(address).await;
    harness.wait_metric("meshwork_limit_headroom", waiting, 9).await;
    let leaves_too = asks(address).await;
    harness.wait_metric("meshwork_limit_headroom", waiting, 8).await;
    let mut stays = asks(address).await;
    harness.wait_metric("meshwork_limit_headroom", waiting, 7).await;
    drop((leaves, leaves_too));
    harness.wait_metric("meshwork_limit_headroom", waiting, 9).await;
    open.store(true, Ordering::SeqCst);
    ends.write_all(b"more").await.unwrap();
    assert!(read_until(&mut ends, "hello").await.starts_with("HTTP/1.1 200"));
    let answer = tokio::time::timeout(SOON, read_until(&mut stays, "hello")).await;
    assert!(answer.expect("there is room").starts_with("HTTP/1.1 200"));
    drop(held);
}

#[tokio::test]
async fn whoever_waits_in_vain_because_of_the_limit_hears_of_the_limit_wherever_in_line_it_was() {
    let (up, held, _) = holding().await;
    let limit = v1::Limits { max_connections_per_endpoint: 1, ..Default::default() };
    let timeouts = Some(v1::Timeouts { connect_ms: 300, ..Default::default() });
    let policy = v1::TrafficPolicy { limits: Some(limit), timeouts, ..Default::default() };
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    let first = hold(address, &held).await;
    let waiting = [0; 4].map(|_| tokio::spawn(async move { exchange(address, GET).await }));
    for one in waiting {
        let answer = one.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("max_connections\n"), "{answer}");
    }
    for metric in ["meshwork_limit_waited_total", "meshwork_limit_rejected_total"] {
        let counted = harness.metric(metric, &["default/web", "maxConnections"]);
        assert_eq!(counted, 4, "{metric}: each was made to wait, and in vain");
    }
    drop(first);
}

/// One whose endpoints may have one retry each under way.
async fn repeating_one(up: SocketAddr) -> (Harness, SocketAddr) {
    let limits = Some(v1::Limits { max_retries_per_endpoint: 1, ..Default::default() });
    let policy = v1::TrafficPolicy { limits, ..retry(1, &[503]) };
    let (harness, address) = gateway(&[up], Some(policy)).await;
    has_headroom(&harness, 1).await;
    (harness, address)
}

async fn has_headroom(harness: &Harness, left: u64) {
    harness.wait_metric("meshwork_limit_headroom", &["perEndpoint.maxRetries"], left).await;
}

#[tokio::test]
async fn as_many_retries_are_under_way_to_an_endpoint_as_may_be() {
    let held = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&held);
    // Holds what is repeated, until more of it comes.
    let up = upstream(move |got| {
        if got.ends_with(b"more") {
            return Some(OK.to_vec());
        }
        let is_retry = String::from_utf8_lossy(got).to_lowercase().contains("x-envoy-attempt-count: 2");
        if !is_head(got) {
            return None;
        }
        if is_retry {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        (!is_retry).then(|| BUSY.to_vec())
    })
    .await;
    let (harness, address) = repeating_one(up.address).await;
    let headroom = async |left| has_headroom(&harness, left).await;
    let first = tokio::spawn(async move { exchange(address, GET).await });
    while held.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    headroom(0).await;
    let second = exchange(address, GET).await;
    assert!(second.ends_with("\r\n\r\nbusy"), "it gets what there was: {second}");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"max_retries\"") && line.contains("\"UO\""), "{line}");
    assert_eq!(harness.metric("meshwork_limit_rejected_total", &["default/web", "maxRetries"]), 1);
    first.abort();
    headroom(1).await;
}

/// The first asks for five seconds before it is repeated.
#[tokio::test]
async fn a_retry_in_its_back_off_is_one_of_those_under_way() {
    let up = upstream(move |got| {
        let busy = "HTTP/1.1 503 Busy\r\nretry-after: 5\r\ncontent-length: 4\r\n\r\nbusy";
        is_head(got).then(|| busy.as_bytes().to_vec())
    })
    .await;
    let (harness, address) = repeating_one(up.address).await;
    let headroom = async |left| has_headroom(&harness, left).await;
    let first = tokio::spawn(async move { exchange(address, GET).await });
    headroom(0).await;
    let second = exchange(address, GET).await;
    assert!(second.ends_with("\r\n\r\nbusy"), "it gets what there was: {second}");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"max_retries\"") && line.contains("\"UO\""), "{line}");
    first.abort();
    headroom(1).await;
}

/// Reads a request from a kept connection, soon.
async fn is_asked(kept: &mut TcpStream, why: &str) {
    tokio::time::timeout(SOON, read_until(kept, "\r\n\r\n")).await.expect(why);
}

#[tokio::test]
async fn one_who_needs_a_new_connection_keeps_no_kept_one_from_those_behind() {
    let (socket, upstream, queued) = with_a_full_queue();
    let listener: std::net::TcpListener = socket.into();
    for _ in &queued {
        listener.accept().unwrap();
    }
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let limit = v1::Limits { max_pending_requests: 1_000, ..Default::default() };
    // No time passes: what breaks, breaks at once.
    let harness = Harness::at(&ManualClock::new());
    let (harness, address) = gateway_of(harness, &[upstream], Some(patient(limit))).await;
    let ask = || tokio::spawn(async move { exchange(address, GET).await });
    let pending = async |count: u64| {
        harness.wait_metric("meshwork_limit_headroom", &["maxPendingRequests"], 1_000 - count).await;
    };
    // Two connections are there, of which one has carried a request before.
    let served = ask();
    let (mut stale, _) = listener.accept().await.unwrap();
    is_asked(&mut stale, "a request comes").await;
    stale.write_all(OK).await.unwrap();
    assert!(served.await.unwrap().ends_with("hello"));
    let repeated = ask();
    is_asked(&mut stale, "it is kept").await;
    let served = ask();
    let (mut kept, _) = listener.accept().await.unwrap();
    is_asked(&mut kept, "a request comes").await;
    // No other can be made, and as many as may be are tried.
    let _queued = fill_the_queue_of(upstream);
    let crowd: Vec<_> = (0..128).map(|_| ask()).collect();
    pending(128).await;
    drop(stale);
    pending(129).await;
    let behind = ask();
    pending(130).await;
    kept.write_all(OK).await.unwrap();
    is_asked(&mut kept, "it is for whoever waits behind").await;
    kept.write_all(OK).await.unwrap();
    for one in [served, behind] {
        assert!(one.await.unwrap().ends_with("hello"));
    }
    let comes = ask();
    is_asked(&mut kept, "and for whoever comes").await;
    kept.write_all(OK).await.unwrap();
    assert!(comes.await.unwrap().ends_with("hello"));
    assert!(!repeated.is_finished() && crowd.iter().all(|one| !one.is_finished()), "they wait");
}
