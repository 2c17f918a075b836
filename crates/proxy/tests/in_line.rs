//! Requests that wait for a connection of ours, or a stream on one: first come, first served. Those whose time is over there say
//! what stood in the way, and nothing of endpoints that nobody asked.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::hedge::Delay;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_messages::v1::timeouts::CallerDeadline;
use meshwork_proxy::{Mesh, Settings};
use support::h2::{answer, h2_upstream, h2_upstream_with};
use support::policy::{GET, OK, gateway, holding, traffic};
use support::raw::{ACK, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, Raw, SETTINGS, frame};
use support::{Harness, exchange, read_until, rule, with_a_full_queue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

const HURRIED: &[u8] =
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nx-envoy-expected-rq-timeout-ms: 200\r\n\r\n";

/// One failure ejects an endpoint and opens the breaker.
fn strict(limits: v1::Limits) -> v1::TrafficPolicy {
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: Some(1),
        base_ejection_time_ms: 60_000,
        max_ejection_time_ms: 60_000,
        max_ejection_percent: 100,
        ..crate::support::rows_off()
    });
    let circuit_breaker = Some(v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 1,
        failure_percent: 1,
        open_ms: 60_000,
        max_open_ms: 60_000,
        trials: 1,
        ..Default::default()
    });
    let timeouts =
        Some(v1::Timeouts { caller_deadline: CallerDeadline::Accept.into(), ..Default::default() });
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    v1::TrafficPolicy {
        limits: Some(limits),
        outlier_detection,
        circuit_breaker,
        timeouts,
        algorithm,
        ..Default::default()
    }
}

fn one_connection() -> v1::TrafficPolicy {
    strict(v1::Limits { max_connections_per_endpoint: 1, ..Default::default() })
}

fn retry(attempts: u32) -> Option<v1::Retry> {
    Some(v1::Retry {
        attempts: Some(attempts),
        on: Some(v1::retry::On { reset: true, ..Default::default() }),
        per_try_timeout_ms: 200,
        ..crate::support::bare_retry()
    })
}

/// Nobody has a bad name with us.
fn assert_unharmed(harness: &Harness) {
    assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &["default/web"]), 0);
    assert_eq!(harness.metric("meshwork_circuit_breaker_changes_total", &["default/web"]), 0);
}

/// Whether a line of the log names no endpoint, and nothing that one speaks.
fn is_of_nobody(line: &str) -> bool {
    !["upstream_host", "upstream_protocol", "upstream_peer_id"].iter().any(|word| line.contains(word))
}

async fn post(address: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await.unwrap();
    tcp
}

#[tokio::test]
async fn whose_time_is_over_behind_a_limit_hears_of_the_limit_and_no_endpoint_has_failed() {
    let request = v1::TrafficPolicy {
        timeouts: Some(v1::Timeouts { request_ms: 200, ..Default::default() }),
        ..one_connection()
    };
    let attempt = v1::TrafficPolicy { retry: retry(0), ..one_connection() };
    for (policy, get) in [(request, GET), (attempt, GET), (one_connection(), HURRIED)] {
        let [(one, of_one, _), (other, of_other, _)] = [holding().await, holding().await];
        let (mut harness, address) = gateway(&[one.address, other.address], Some(one_connection())).await;
        let mut held = [post(address).await, post(address).await];
        while [&of_one, &of_other].map(|held| held.load(Ordering::SeqCst)) != [1, 1] {
            tokio::task::yield_now().await;
        }
        // What is held began before there was a limit of its time.
        harness.change([traffic(policy)]).await;
        let waiting = [0; 4].map(|_| tokio::spawn(exchange(address, get)));
        for one in waiting {
            let answer = one.await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("max_connections\n"), "{answer}");
        }
        for line in harness.lines(4).await {
            for said in [r#""UO""#, r#""max_connections""#, r#""phase":"connect""#] {
                assert!(line.contains(said), "{said}: {line}");
            }
            assert!(is_of_nobody(&line), "nobody was asked: {line}");
        }
        assert_unharmed(&harness);
        for held in &mut held {
            held.write_all(b"more").await.unwrap();
            assert!(read_until(held, "hello").await.starts_with("HTTP/1.1 200"));
        }
    }
}

/// What the slow upstreams below take for each request, of which they do three at once.
const WORK: Duration = Duration::from_millis(600);

/// Counts the requests that come, and closes after each answer.
async fn slow_over_http1(came: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let came = Arc::clone(&came);
            tokio::spawn(async move {
                read_until(&mut tcp, "\r\n\r\n").await;
                came.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(WORK).await;
                _ = tcp.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
            });
        }
    });
    address
}

async fn slow_over_http2(came: Arc<AtomicUsize>) -> SocketAddr {
    let up = h2_upstream_with(
        |builder| builder.max_concurrent_streams(3),
        usize::MAX,
        move |_, _, respond| {
            let came = Arc::clone(&came);
            async move {
                came.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(WORK).await;
                answer(respond, b"hello");
            }
        },
    );
    up.await.address
}

/// Thirty at once, each with half a second, before an upstream that does three at once, each for 300 ms.
#[tokio::test]
async fn who_is_called_too_late_for_an_answer_is_not_sent_and_the_next_one_is_called() {
    let ms = |time| Some(v1::Timeouts { request_ms: time, ..Default::default() });
    let per_try = Some(v1::Retry { per_try_timeout_ms: 750, ..retry(0).unwrap() });
    let hurried = String::from_utf8_lossy(HURRIED).replace(": 200", ": 750");
    for protocol in [AppProtocol::Http1, AppProtocol::Http2] {
        let came = Arc::new(AtomicUsize::new(0));
        let (address, max_connections) = match protocol {
            AppProtocol::Http1 => (slow_over_http1(Arc::clone(&came)).await, 3),
            _ => (slow_over_http2(Arc::clone(&came)).await, 1),
        };
        let limited = || strict(v1::Limits { max_connections, ..Default::default() });
        let mut harness = Harness::start(Settings { workers: 1, ..Settings::default() });
        harness.service("web", protocol, &[address]).await;
        let gateway = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
        harness.change([traffic(limited())]).await;
        let calls = |count, get: &str| {
            let get = get.as_bytes().to_vec();
            let call = move || {
                let get = get.clone();
                tokio::spawn(async move { exchange(gateway, &get).await })
            };
            std::iter::repeat_with(call).take(count).collect::<Vec<_>>()
        };
        let get = String::from_utf8_lossy(GET).into_owned();
        // So many answers say how long they take; nobody waits for any.
        let mut lines = 0;
        while lines < 21 {
            for one in calls(3, &get) {
                let answer = one.await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                lines += 1;
            }
        }
        for (policy, get) in [
            (v1::TrafficPolicy { timeouts: ms(750), ..limited() }, &get),
            (v1::TrafficPolicy { retry: per_try.clone(), ..limited() }, &get),
            (limited(), &hurried),
        ] {
            harness.change([traffic(policy)]).await;
            came.store(0, Ordering::SeqCst);
            let mut refused = 0;
            for one in calls(30, get) {
                refused += usize::from(one.await.unwrap().ends_with("max_connections\n"));
            }
            assert_eq!((came.load(Ordering::SeqCst), refused), (3, 27), "{protocol:?}");
            let all = harness.lines(lines + 30).await;
            let told = all[lines..].iter().filter(|line| line.contains("the fastest answer of late took"));
            assert!(told.clone().count() > 0, "{all:?}");
            for line in told {
                assert!(line.contains(r#""UO""#) && is_of_nobody(line), "{line}");
            }
            lines += 30;
        }
        assert_unharmed(&harness);
    }
}

#[tokio::test]
async fn an_attempt_whose_time_is_over_behind_a_limit_is_repeated_as_any() {
    let (up, _, _) = holding().await;
    let (mut harness, address) = gateway(&[up.address], Some(one_connection())).await;
    let held = post(address).await;
    harness.wait_metric("meshwork_limit_headroom", &["maxConnections"], 0).await;
    harness.change([traffic(v1::TrafficPolicy { retry: retry(1), ..one_connection() })]).await;
    let answer = exchange(address, GET).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("retries_exhausted\n"), "{answer}");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains(r#""attempts":2"#) && line.contains("max_connections: "), "{line}");
    assert!(is_of_nobody(&line), "{line}");
    assert_unharmed(&harness);
    drop(held);
}

#[tokio::test]
async fn whose_time_is_over_behind_the_only_stream_of_a_connection_hears_of_the_limit() {
    let (taken, mut is_taken) = mpsc::channel(8);
    let (go, gone) = oneshot::channel();
    let gone = std::sync::Arc::new(parking_lot::Mutex::new(Some(gone)));
    let up = h2_upstream_with(
        |builder| builder.max_concurrent_streams(1),
        usize::MAX,
        move |_, _, mut respond| {
            let (taken, gone) = (taken.clone(), gone.lock().take());
            async move {
                taken.send(()).await.unwrap();
                if let Some(gone) = gone {
                    _ = gone.await;
                }
                let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                body.send_data(bytes::Bytes::from_static(b"hello"), true).unwrap();
            }
        },
    )
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http2, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(one_connection())]).await;
    let first = tokio::spawn(exchange(address, GET));
    is_taken.recv().await.unwrap();
    let answer = exchange(address, HURRIED).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("max_connections\n"), "{answer}");
    let line = harness.lines(1).await.remove(0);
    assert!(is_of_nobody(&line) && line.contains(r#""phase":"connect""#), "{line}");
    assert_unharmed(&harness);
    go.send(()).unwrap();
    let first = first.await.unwrap();
    assert!(first.starts_with("HTTP/1.1 200") && first.contains("hello"), "{first}");
    // What was given up would come before what comes after it.
    assert!(exchange(address, GET).await.contains("hello"));
    is_taken.recv().await.unwrap();
    assert!(is_taken.try_recv().is_err(), "what was said to have been asked of nobody was");
}

#[tokio::test]
async fn whose_time_is_over_while_connections_are_made_for_others_hears_that_there_was_none_in_time() {
    for (protocol, others) in [(AppProtocol::Http1, 128), (AppProtocol::Http2, 1)] {
        let (_socket, upstream, _queued) = with_a_full_queue();
        let mut harness = Harness::start(Settings::default());
        harness.service("web", protocol, &[upstream]).await;
        let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
        let policy = strict(v1::Limits { max_pending_requests: 200, ..Default::default() });
        let timeouts = policy.timeouts.map(|timeouts| v1::Timeouts { connect_ms: 60_000, ..timeouts });
        harness.change([traffic(v1::TrafficPolicy { timeouts, ..policy })]).await;
        let others: Vec<_> = (0..others).map(|_| tokio::spawn(exchange(address, GET))).collect();
        let left = 200 - u64::try_from(others.len()).unwrap();
        harness.wait_metric("meshwork_limit_headroom", &["maxPendingRequests"], left).await;
        let answer = exchange(address, HURRIED).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("connect_timeout\n"), "{answer}");
        let line = harness.lines(1).await.remove(0);
        for said in [r#""UF""#, r#""connect_timeout""#, r#""phase":"connect""#] {
            assert!(line.contains(said), "{said}: {line}");
        }
        assert!(is_of_nobody(&line), "nobody was asked: {line}");
        assert_unharmed(&harness);
        others.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn gateway_over_http2(upstream: SocketAddr) -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings { workers: 1, ..Settings::default() });
    harness.service("web", AppProtocol::Http2, &[upstream]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let limits = v1::Limits { max_connections: 1, max_pending_requests: 100, ..Default::default() };
    harness.change([traffic(v1::TrafficPolicy { limits: Some(limits), ..Default::default() })]).await;
    (harness, address)
}

#[tokio::test]
async fn whoever_comes_while_others_wait_for_a_stream_is_served_after_them() {
    let (came, mut coming) = mpsc::channel(8);
    let lets = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let permits = std::sync::Arc::clone(&lets);
    let up = h2_upstream_with(
        |builder| builder.max_concurrent_streams(1),
        usize::MAX,
        move |_, request, respond| {
            let (came, permits) = (came.clone(), std::sync::Arc::clone(&permits));
            async move {
                came.send(request.uri().path().to_owned()).await.unwrap();
                permits.acquire().await.unwrap().forget();
                answer(respond, b"hello");
            }
        },
    )
    .await;
    let (harness, address) = gateway_over_http2(up.address).await;
    // Its second request is there when the first is answered, before anybody who waits has had a turn.
    let mut first = TcpStream::connect(address).await.unwrap();
    let two = b"GET /first HTTP/1.1\r\nHost: a\r\n\r\nGET /comes HTTP/1.1\r\nHost: a\r\n\r\n";
    first.write_all(two).await.unwrap();
    assert_eq!(coming.recv().await.unwrap(), "/first");
    let waits = b"GET /waits HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let waits = tokio::spawn(exchange(address, waits));
    harness.wait_metric("meshwork_limit_headroom", &["maxPendingRequests"], 99).await;
    lets.add_permits(3);
    assert_eq!(coming.recv().await.unwrap(), "/waits");
    assert_eq!(coming.recv().await.unwrap(), "/comes");
    assert!(waits.await.unwrap().contains("hello"));
    let made_wait = harness.metric("meshwork_limit_waited_total", &["default/web", "maxConnections"]);
    assert_eq!(made_wait, 2, "also who came behind others");
}

#[tokio::test]
async fn a_connection_that_its_peer_has_ended_makes_room_for_another_at_once() {
    let up = h2_upstream(1, |_, _, respond| async move { answer(respond, b"hello") }).await;
    let (_harness, address) = gateway_over_http2(up.address).await;
    for number in 0..10 {
        let answer = exchange(address, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "the {number}th: {answer}");
    }
    assert!(up.connections.load(Ordering::SeqCst) > 1, "each ended");
}

#[tokio::test]
async fn whoever_comes_after_the_goodbye_of_the_only_connection_waits_until_its_last_stream_has_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (harness, address) = gateway_over_http2(listener.local_addr().unwrap()).await;
    let accept = async || {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        let mut raw = Raw(tcp);
        raw.send(&[frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat()).await;
        raw
    };
    let asked = async |raw: &mut Raw| loop {
        if let (HEADERS, _, stream, _) = raw.next().await.unwrap() {
            return frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88]);
        }
    };
    let first = tokio::spawn(exchange(address, GET));
    let mut raw = accept().await;
    let last = asked(&mut raw).await;
    raw.send(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await;
    assert!(raw.settle().await, "it has heard of it");
    let waiting = [0; 2].map(|_| tokio::spawn(exchange(address, GET)));
    harness.wait_metric("meshwork_limit_headroom", &["maxPendingRequests"], 98).await;
    harness.wait_metric("meshwork_limit_waited_total", &["default/web", "maxConnections"], 2).await;
    raw.send(&last).await;
    assert!(first.await.unwrap().starts_with("HTTP/1.1 200"));
    let mut raw = accept().await;
    for _ in &waiting {
        let answer = asked(&mut raw).await;
        raw.send(&answer).await;
    }
    for one in waiting {
        let answer = one.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn who_waits_again_since_its_connection_ends_was_made_to_wait_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (harness, address) = gateway_over_http2(listener.local_addr().unwrap()).await;
    let accept = async || {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        let mut raw = Raw(tcp);
        // Two streams at once.
        raw.send(&[frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 2]), frame(SETTINGS, ACK, 0, &[])].concat()).await;
        raw
    };
    let asked = async |raw: &mut Raw| loop {
        if let (HEADERS, _, stream, _) = raw.next().await.unwrap() {
            return frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88]);
        }
    };
    let first = tokio::spawn(exchange(address, GET));
    let mut raw = accept().await;
    let mut answers = vec![asked(&mut raw).await];
    assert!(raw.settle().await, "it knows how many streams there may be");
    let second = tokio::spawn(exchange(address, GET));
    answers.push(asked(&mut raw).await);
    let waits = tokio::spawn(exchange(address, GET));
    let made_wait = ["default/web", "maxConnections"];
    harness.wait_metric("meshwork_limit_waited_total", &made_wait, 1).await;
    raw.send(&frame(GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0])).await;
    raw.send(&answers[0]).await;
    assert!(raw.settle().await, "one stream is free, and nobody may have it");
    assert!(first.await.unwrap().starts_with("HTTP/1.1 200"));
    // The only worker has done by then what there was to do.
    assert!(exchange(address, b"GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    raw.send(&answers[1]).await;
    assert!(second.await.unwrap().starts_with("HTTP/1.1 200"));
    let mut raw = accept().await;
    let answer = asked(&mut raw).await;
    raw.send(&answer).await;
    assert!(waits.await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(harness.metric("meshwork_limit_waited_total", &made_wait), 1);
}

#[tokio::test]
async fn an_endpoint_without_a_connection_gets_its_first_one_over_http2_whatever_the_limit() {
    let ups = [
        h2_upstream(usize::MAX, |_, _, respond| async move { answer(respond, b"hello") }).await,
        h2_upstream(usize::MAX, |_, _, respond| async move { answer(respond, b"hello") }).await,
    ];
    let (mut harness, address) = gateway_over_http2(ups[0].address).await;
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    let limits = Some(v1::Limits { max_connections: 1, ..Default::default() });
    harness.change([traffic(v1::TrafficPolicy { limits, algorithm, ..Default::default() })]).await;
    harness.service("web", AppProtocol::Http2, &ups.each_ref().map(|up| up.address)).await;
    for _ in 0..4 {
        let answer = tokio::time::timeout(Duration::from_secs(10), exchange(address, GET)).await;
        let answer = answer.expect("nothing else could ever serve it");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(ups.map(|up| up.connections.load(Ordering::SeqCst)), [1, 1]);
}

/// Two instances of HTTP/1.1 that do what a test says.
struct Two {
    harness: Harness,
    clock: ManualClock,
    address: SocketAddr,
    instances: [TcpListener; 2],
}

/// The instances are called in turn, one connection to each.
async fn two(delay: Delay) -> Two {
    let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let instances = [listen().await, listen().await];
    let clock = ManualClock::new();
    let settings = Settings { workers: 1, ..Settings::default() };
    let mut harness = Harness::join(settings, Mesh::default(), Arc::new(clock.clone()), "gateway");
    let addresses = [0, 1].map(|number: usize| instances[number].local_addr().unwrap());
    harness.service("web", AppProtocol::Http1, &addresses).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let limits = v1::Limits { max_connections_per_endpoint: 1, ..Default::default() };
    let budget = Some(v1::RetryBudget { percent: Some(100), min_per_second: Some(0) });
    let policy = v1::TrafficPolicy {
        limits: Some(limits),
        timeouts: Some(v1::Timeouts { connect_ms: 60_000, ..Default::default() }),
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        hedge: Some(v1::Hedge { delay: Some(delay), least_ms: Some(1), budget_percent: 100 }),
        retry: Some(v1::Retry { budget, ..crate::support::bare_retry() }),
        ..Default::default()
    };
    harness.change([traffic(policy)]).await;
    Two { harness, clock, address, instances }
}

impl Two {
    /// A connection to either instance, and to which.
    async fn accept(&self) -> (usize, TcpStream) {
        let [one, other] = &self.instances;
        tokio::select! {
            one = one.accept() => (0, one.unwrap().0),
            other = other.accept() => (1, other.unwrap().0),
        }
    }

    /// Occupies the only connection to an instance with a response that goes on; gives both its ends.
    async fn occupied(&self) -> (usize, TcpStream, TcpStream) {
        let mut caller = post(self.address).await;
        caller.write_all(b"more").await.unwrap();
        let (number, mut instance) = self.accept().await;
        read_until(&mut instance, "more").await;
        instance.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nh").await.unwrap();
        read_until(&mut caller, "\r\n\r\nh").await;
        (number, instance, caller)
    }

    async fn made_wait(&self, count: u64) {
        let labels = ["default/web", "maxConnections"];
        self.harness.wait_metric("meshwork_limit_waited_total", &labels, count).await;
    }

    /// How many of twenty requests, one after the other, go to this instance, where the quicker one is preferred.
    async fn share(&mut self, number: usize) -> usize {
        let algorithm = v1::traffic_policy::Algorithm::PeakEwma.into();
        self.harness.change([traffic(v1::TrafficPolicy { algorithm, ..Default::default() })]).await;
        let mut share = 0;
        for _ in 0..20 {
            let mut caller = TcpStream::connect(self.address).await.unwrap();
            caller.write_all(GET).await.unwrap();
            let (called, mut instance) = self.accept().await;
            read_until(&mut instance, "\r\n\r\n").await;
            instance.write_all(CLOSING).await.unwrap();
            read_until(&mut caller, "hello").await;
            share += usize::from(called == number);
        }
        share
    }
}

const CLOSING: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";

#[tokio::test]
async fn an_answer_has_not_taken_what_its_request_waited_before_a_limit() {
    let mut two = two(Delay::FixedMs(60_000)).await;
    let [(number, mut instance, caller), (_, other, other_caller)] =
        [two.occupied().await, two.occupied().await];
    let asked = tokio::spawn(exchange(two.address, GET));
    two.made_wait(1).await;
    two.clock.advance(Duration::from_secs(50));
    instance.write_all(b"ello").await.unwrap();
    read_until(&mut instance, "\r\n\r\n").await;
    instance.write_all(CLOSING).await.unwrap();
    assert!(asked.await.unwrap().ends_with("hello"));
    drop((caller, other, other_caller));
    assert!(two.share(number).await > 0, "it was asked a moment ago, and is no slower than others");
}

#[tokio::test]
async fn a_first_attempt_that_loses_to_a_hedge_has_not_taken_what_it_waited_before_a_limit() {
    let mut two = two(Delay::FixedMs(300)).await;
    let both = [two.occupied().await, two.occupied().await];
    let asked = tokio::spawn(exchange(two.address, GET));
    two.made_wait(1).await;
    // The requests of the last ten seconds are what a hedge is allowed by.
    two.clock.advance(Duration::from_secs(9));
    two.made_wait(2).await;
    let (mut hedges, mut others) = (Vec::new(), Vec::new());
    for (number, mut instance, _caller) in both {
        instance.write_all(b"ello").await.unwrap();
        let got = read_until(&mut instance, "\r\n\r\n").await;
        let is_hedge = got.contains("x-envoy-attempt-count: 2");
        if is_hedge { &mut hedges } else { &mut others }.push((number, instance));
    }
    let ((_, mut hedge), (late, _first)) = (hedges.pop().unwrap(), others.pop().unwrap());
    hedge.write_all(CLOSING).await.unwrap();
    assert!(asked.await.unwrap().ends_with("hello"));
    assert!(two.share(late).await > 0, "it was asked a moment ago, and is no slower than others");
}

#[tokio::test]
async fn a_hedge_that_wins_has_taken_its_own_time() {
    let mut two = two(Delay::FixedMs(300)).await;
    let (late, mut occupied, caller) = two.occupied().await;
    let asked = tokio::spawn(exchange(two.address, GET));
    let (slow, first) = two.accept().await;
    assert_ne!(slow, late);
    two.made_wait(1).await;
    // It waits for the other one's connection, which it has at last, and is answered at once.
    two.clock.advance(Duration::from_secs(50));
    occupied.write_all(b"ello").await.unwrap();
    read_until(&mut occupied, "\r\n\r\n").await;
    occupied.write_all(CLOSING).await.unwrap();
    assert!(asked.await.unwrap().ends_with("hello"));
    drop((first, caller));
    assert_eq!(two.share(slow).await, 0, "it alone has taken so long");
}

#[tokio::test]
async fn a_hedge_that_loses_has_not_taken_what_it_waited_before_a_limit() {
    let mut two = two(Delay::FixedMs(50)).await;
    let (late, mut occupied, caller) = two.occupied().await;
    let asked = tokio::spawn(exchange(two.address, GET));
    let (slow, mut first) = two.accept().await;
    assert_ne!(slow, late);
    read_until(&mut first, "\r\n\r\n").await;
    two.made_wait(1).await;
    two.clock.advance(Duration::from_secs(50));
    occupied.write_all(b"ello").await.unwrap();
    read_until(&mut occupied, "\r\n\r\n").await;
    first.write_all(CLOSING).await.unwrap();
    assert!(asked.await.unwrap().ends_with("hello"));
    drop(caller);
    assert_eq!(two.share(slow).await, 0, "it alone has taken so long");
}

#[tokio::test]
async fn what_waited_before_a_limit_does_not_put_hedges_off() {
    let two = two(Delay::Percentile(50)).await;
    let both = [two.occupied().await, two.occupied().await];
    let waiting = [(); 30].map(|()| tokio::spawn(exchange(two.address, GET)));
    two.made_wait(30).await;
    two.clock.advance(Duration::from_secs(3_600));
    for (_, mut instance, _caller) in both {
        instance.write_all(b"ello").await.unwrap();
        for number in 1..=15 {
            read_until(&mut instance, "\r\n\r\n").await;
            instance.write_all(if number == 15 { CLOSING } else { OK }).await.unwrap();
        }
    }
    for one in waiting {
        assert!(one.await.unwrap().ends_with("hello"));
    }
    let asked = tokio::spawn(exchange(two.address, GET));
    let (first, _hangs) = two.accept().await;
    let hedge = tokio::time::timeout(Duration::from_secs(10), two.accept()).await;
    let (second, mut hedge) = hedge.expect("nobody has taken an hour");
    assert_ne!(first, second);
    hedge.write_all(CLOSING).await.unwrap();
    assert!(asked.await.unwrap().ends_with("hello"));
}
