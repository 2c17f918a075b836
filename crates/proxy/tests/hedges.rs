//! A second attempt beside the first: when there is one, which of the two answers, and what becomes of the other.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "hedges/ends.rs"]
mod ends;
#[path = "hedges/learnt.rs"]
mod learnt;
#[path = "hedges/legs.rs"]
mod legs;
mod support;
#[path = "hedges/times.rs"]
mod times;
#[path = "hedges/whether.rs"]
mod whether;
#[path = "hedges/worth.rs"]
mod worth;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use legs::{FIRST, Legs, OK, SECOND};
use meshwork_base::{Clock, ManualClock, SystemClock};
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::hedge::Delay;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_messages::v1::traffic_policy::Algorithm;
use meshwork_proxy::{Mesh, Settings, Side};
use support::h2::{collect, collect_body, fetch, get, h2_client, h2_upstream, h2_upstream_with};
use support::mesh::{Pair, TestMesh, plain_at, policy, service_at, serving};
use support::{Harness, exchange, read_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const OUTCOMES: &str = "meshwork_hedged_requests_total";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const NONE_WELL: &[u8] = b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno";
const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";

/// What an instance does with a request.
#[derive(Clone, Copy)]
enum Does {
    /// Answers with its name.
    Answers,
    /// Never.
    Hangs,
    /// Fails it at once.
    Fails,
    /// Answers after so many milliseconds, in which nothing else is to happen.
    Late(u64),
    /// Answers when it is told to.
    Told,
    /// Breaks the connection when it is told to.
    BreaksTold,
}

/// What has come to the instances of a pool.
#[derive(Default)]
struct Seen {
    asked: AtomicUsize,
    got: parking_lot::Mutex<Vec<String>>,
    /// Which instance got them.
    places: parking_lot::Mutex<Vec<usize>>,
    /// How many of them were first attempts, and second ones.
    legs: [AtomicUsize; 2],
    answered: AtomicUsize,
    /// A request was given up before it was answered.
    given_up: AtomicBool,
    /// Whoever waits to be told is.
    told: Notify,
}

/// Two instances of HTTP/1.1.
struct Pool {
    addresses: Vec<SocketAddr>,
    seen: Arc<Seen>,
}

impl std::ops::Deref for Pool {
    type Target = Seen;

    fn deref(&self) -> &Seen {
        &self.seen
    }
}

impl Pool {
    /// Waits until so many requests have come.
    async fn asked(&self, count: usize) {
        until(|| self.asked.load(Ordering::SeqCst) == count).await;
    }

    /// Waits until so many were answered, and the only worker at this address has heard it.
    async fn answered(&self, count: usize, worker: SocketAddr) {
        until(|| self.answered.load(Ordering::SeqCst) == count).await;
        caught_up(worker).await;
    }

    fn tell(&self) {
        self.told.notify_one();
    }
}

/// The only worker at this address has heard what has come before: behind that comes the first of these, and behind its answer the second.
async fn caught_up(worker: SocketAddr) {
    for _ in 0..2 {
        assert!(exchange(worker, b"GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    }
}

/// Two instances: the first request, whoever gets it, is treated so, and the second one so.
async fn pool(first: Does, second: Does) -> Pool {
    pool_of(&[first, second]).await
}

/// Two instances, and what is done with one request after the other, whoever gets it, and answers to all others.
async fn pool_of(script: &[Does]) -> Pool {
    let (script, seen): (Arc<[Does]>, Arc<Seen>) = (script.into(), Arc::default());
    let mut addresses = Vec::new();
    for instance in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                tokio::spawn(async move { serve(tcp, instance, &seen, &script).await });
            }
        });
    }
    Pool { addresses, seen }
}

async fn serve(mut tcp: TcpStream, instance: usize, seen: &Seen, script: &[Does]) {
    let mut chunk = vec![0; 65536];
    loop {
        let mut held = Vec::new();
        loop {
            match tcp.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(count) => held.extend_from_slice(&chunk[..count]),
            }
            let text = String::from_utf8_lossy(&held).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head
                .to_lowercase()
                .split("content-length: ")
                .nth(1)
                .map(|rest| rest.lines().next().unwrap().parse::<usize>().unwrap());
            if body.len() >= length.unwrap_or_default() {
                break;
            }
        }
        let text = String::from_utf8_lossy(&held).into_owned();
        let number = seen.comes(text, instance).await;
        let does = script.get(number).copied().unwrap_or(Does::Answers);
        let waits = async {
            match does {
                Does::Answers | Does::Fails => {}
                Does::Hangs => std::future::pending().await,
                Does::Late(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                Does::Told | Does::BreaksTold => seen.told.notified().await,
            }
        };
        tokio::select! {
            () = waits => {}
            _ = tcp.read(&mut chunk) => {
                seen.given_up.store(true, Ordering::SeqCst);
                return;
            }
        }
        let answer = match does {
            Does::Fails => BUSY.to_vec(),
            Does::BreaksTold => return,
            _ => format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}").into_bytes(),
        };
        if tcp.write_all(&answer).await.is_err() {
            return;
        }
        seen.answered.fetch_add(1, Ordering::SeqCst);
    }
}

impl Seen {
    /// The number of a request. On a busy machine a second attempt may be seen before the first one is, which it comes behind.
    async fn comes(&self, text: String, instance: usize) -> usize {
        let leg = usize::from(text.to_lowercase().contains("x-envoy-attempt-count: 2\r\n"));
        let count = |leg: usize| self.legs[leg].load(Ordering::SeqCst);
        until(|| leg == FIRST || count(SECOND) < count(FIRST)).await;
        self.legs[leg].fetch_add(1, Ordering::SeqCst);
        self.got.lock().push(text);
        self.places.lock().push(instance);
        self.asked.fetch_add(1, Ordering::SeqCst)
    }
}

async fn until(happened: impl Fn() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it happens");
}

fn hedge(delay: Delay, budget_percent: u32) -> v1::TrafficPolicy {
    v1::TrafficPolicy {
        algorithm: Algorithm::RoundRobin.into(),
        hedge: Some(v1::Hedge { delay: Some(delay), least_ms: Some(1), budget_percent }),
        // Nothing that fails is repeated.
        retry: Some(v1::Retry {
            attempts: Some(0),
            budget: Some(v1::RetryBudget { percent: Some(100), min_per_second: Some(0) }),
            ..crate::support::bare_retry()
        }),
        ..Default::default()
    }
}

fn after(ms: u32) -> v1::TrafficPolicy {
    hedge(Delay::FixedMs(ms), 100)
}

fn traffic(policy: v1::TrafficPolicy) -> Change {
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/web".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    Change::upsert("default/p", "1", &v1::Policy { source: None, targets: vec![target], spec })
}

struct Edge {
    harness: Harness,
    address: SocketAddr,
}

async fn edge(protocol: AppProtocol, endpoints: &[SocketAddr], policy: v1::TrafficPolicy) -> Edge {
    let harness = Harness::start(Settings { workers: 1, ..Settings::default() });
    edge_of(harness, protocol, endpoints, policy).await
}

async fn edge_of(
    mut harness: Harness,
    protocol: AppProtocol,
    endpoints: &[SocketAddr],
    policy: v1::TrafficPolicy,
) -> Edge {
    harness.service("web", protocol, endpoints).await;
    let address = harness.route(vec![support::rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(policy)]).await;
    Edge { harness, address }
}

impl Edge {
    async fn counted(&self, outcome: &str, count: u64) {
        self.harness.wait_metric(OUTCOMES, &["default/web", &format!("\"{outcome}\"")], count).await;
    }

    /// The access log's only line.
    async fn line(&self) -> String {
        self.harness.lines(1).await.remove(0)
    }
}

#[tokio::test]
async fn what_takes_too_long_is_sent_a_second_time_and_the_first_good_answer_counts() {
    let pool = pool(Does::Hangs, Does::Answers).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(50)).await;
    let response = exchange(edge.address, GET).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("\r\n\r\n1"), "{response}");
    edge.counted("won", 1).await;
    until(|| pool.given_up.load(Ordering::SeqCst)).await;
    let got = pool.got.lock().clone();
    assert!(
        !got[0].contains("x-envoy-attempt-count") && got[1].contains("x-envoy-attempt-count: 2"),
        "{got:?}"
    );
    let line = edge.line().await;
    assert!(line.contains("\"attempts\":2") && line.contains("\"response_flags\":\"-\""), "{line}");
    let total = edge.harness.metric("istio_requests_total", &["response_code=\"200\""]);
    assert_eq!(total, 1, "one request, with one outcome");
}

#[tokio::test]
async fn a_request_of_a_session_is_sent_to_its_endpoint_alone() {
    let pool = pool_of(&[Does::Answers, Does::Late(300), Does::Hangs]).await;
    let mut harness = Harness::start(Settings { workers: 1, ..Settings::default() });
    harness.service("web", AppProtocol::Http1, &pool.addresses).await;
    let session = v1::SessionPersistence { name: "sid".into(), ..Default::default() };
    let rule = v1::Rule { session: Some(session), ..support::rule(&[("web", 1)], vec![]) };
    let address = harness.route(vec![rule]).await;
    let begins = exchange(address, GET).await;
    harness.change([traffic(after(50))]).await;
    let cookie = begins.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap();
    let again = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n");
    let again = exchange(address, again.as_bytes()).await;
    assert!(again.ends_with("\r\n\r\n1") && !again.contains("set-cookie"), "{again}");
    let places = pool.places.lock().clone();
    assert_eq!(places, [places[0]; 2]);
    let another = exchange(address, GET).await;
    assert!(another.ends_with("\r\n\r\n3"), "what has no session yet is hedged: {another}");
}

#[tokio::test]
async fn what_is_answered_in_time_is_sent_once() {
    let pool = pool(Does::Answers, Does::Answers).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(2_000)).await;
    assert!(exchange(edge.address, GET).await.ends_with("\r\n\r\n0"));
    assert!(edge.line().await.contains("\"attempts\":1"));
    assert_eq!(pool.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_first_one_may_still_win_and_the_second_is_given_up() {
    let pool = pool(Does::Told, Does::Hangs).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(50)).await;
    let both_run = async {
        pool.asked(2).await;
        pool.tell();
    };
    let (answer, ()) = tokio::join!(exchange(edge.address, GET), both_run);
    assert!(answer.ends_with("\r\n\r\n0"), "{answer}");
    edge.counted("lost", 1).await;
    until(|| pool.given_up.load(Ordering::SeqCst)).await;
    assert!(edge.line().await.contains("\"attempts\":2"));
}

#[tokio::test]
async fn a_second_one_that_fails_changes_nothing() {
    let pool = pool(Does::Told, Does::Fails).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(50)).await;
    let has_failed = async {
        edge.counted("failed", 1).await;
        pool.tell();
    };
    let (answer, ()) = tokio::join!(exchange(edge.address, GET), has_failed);
    assert!(answer.ends_with("\r\n\r\n0"), "{answer}");
    assert!(edge.line().await.contains("\"attempts\":2"));
}

#[tokio::test]
async fn a_first_one_that_fails_meanwhile_waits_for_the_second() {
    let legs = Legs::of(2).await;
    let edge = edge(AppProtocol::Http1, &legs.addresses, after(50)).await;
    let ends = async {
        legs.both_asked().await;
        legs.say_heard(FIRST, BUSY, edge.address).await;
        legs.say(SECOND, OK);
    };
    let (answer, ()) = tokio::join!(exchange(edge.address, GET), ends);
    assert!(answer.ends_with("well"), "{answer}");
    edge.counted("won", 1).await;
}

#[tokio::test]
async fn a_first_one_that_gets_no_connection_waits_for_the_second() {
    let pool = pool_of(&[Does::Hangs, Does::Told, Does::Told]).await;
    // Time enough for the second one to get the connection that becomes free.
    let connect = Duration::from_millis(1_500);
    let policy = v1::TrafficPolicy {
        limits: Some(v1::Limits { max_connections_per_endpoint: 1, ..Default::default() }),
        timeouts: Some(v1::Timeouts { connect_ms: 1_500, ..Default::default() }),
        ..after(50)
    };
    let edge = edge(AppProtocol::Http1, &pool.addresses, policy).await;
    // What is not repeated keeps the only connection to one of them, and that to the other until the first one waits.
    let mut kept = Vec::new();
    for asked in 1..=2 {
        let mut tcp = TcpStream::connect(edge.address).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        kept.push(tcp);
        pool.asked(asked).await;
    }
    let refused = async {
        until(|| edge.harness.metric("meshwork_limit_waited_total", &[]) > 0).await;
        pool.tell();
        pool.asked(3).await;
        // Whatever is first, the outcome is the same; the end of the first one should be.
        tokio::time::sleep(connect + Duration::from_millis(100)).await;
        pool.tell();
    };
    let (answer, ()) = tokio::join!(exchange(edge.address, GET), refused);
    assert!(answer.ends_with("\r\n\r\n2"), "{answer}");
    edge.counted("won", 1).await;
}

/// Its endpoint is called again on a new connection, and not the one that was called beside it.
#[tokio::test]
async fn a_stale_connection_is_replaced_also_where_another_attempt_ran_beside() {
    let pool = pool_of(&[Does::Answers, Does::Answers, Does::BreaksTold, Does::Fails]).await;
    let mut policy = after(500);
    policy.retry.as_mut().unwrap().attempts = Some(1);
    // No time passes: what breaks, breaks at once.
    let clock = Arc::new(ManualClock::new());
    let settings = Settings { workers: 1, ..Settings::default() };
    let harness = Harness::join(settings, Mesh::default(), clock, "gateway");
    let edge = edge_of(harness, AppProtocol::Http1, &pool.addresses, policy).await;
    for _ in 0..2 {
        exchange(edge.address, GET).await;
    }
    let breaks = async {
        pool.answered(3, edge.address).await;
        pool.tell();
    };
    let (answer, ()) = tokio::join!(exchange(edge.address, GET), breaks);
    assert!(answer.ends_with("\r\n\r\n4"), "{answer}");
    let places = pool.places.lock().clone();
    assert!(places[2] != places[3] && places[4] == places[2], "{places:?}");
}

#[tokio::test]
async fn of_two_failures_the_first_one_is_passed_on() {
    let legs = Legs::of(2).await;
    let edge = edge(AppProtocol::Http1, &legs.addresses, after(50)).await;
    let fail = async {
        legs.both_asked().await;
        legs.say(FIRST, BUSY);
        legs.say(SECOND, NONE_WELL);
    };
    let (answer, ()) = tokio::join!(exchange(edge.address, GET), fail);
    assert!(answer.ends_with("\r\n\r\nbusy"), "{answer}");
    edge.counted("failed", 1).await;
    let line = edge.line().await;
    assert!(line.contains("\"attempts\":2") && line.contains("\"response_code\":503"), "{line}");
}

#[tokio::test]
async fn what_may_not_be_repeated_is_sent_once() {
    let pool = pool(Does::Late(300), Does::Answers).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(50)).await;
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    assert!(exchange(edge.address, post).await.ends_with("\r\n\r\n0"));
    assert!(edge.line().await.contains("\"attempts\":1"));
    assert_eq!(pool.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_body_that_is_kept_goes_with_it() {
    let pool = pool(Does::Hangs, Does::Answers).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(50)).await;
    let put = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    assert!(exchange(edge.address, put).await.ends_with("\r\n\r\n1"));
    assert!(pool.got.lock().iter().all(|got| got.ends_with("hello")));
}

#[tokio::test]
async fn a_body_that_is_still_coming_or_too_long_is_not_sent_twice() {
    let pool = pool(Does::Told, Does::Answers).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(50)).await;
    let long = "x".repeat(70 * 1024);
    let put = format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{long}",
        long.len()
    );
    let refused = async {
        edge.counted("refused", 1).await;
        pool.tell();
    };
    let (answer, ()) = tokio::join!(exchange(edge.address, put.as_bytes()), refused);
    assert!(answer.ends_with("\r\n\r\n0"), "{answer}");
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    tcp.write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nha").await.unwrap();
    edge.counted("refused", 2).await;
    tcp.write_all(b"lf").await.unwrap();
    read_until(&mut tcp, "\r\n\r\n1").await;
}

#[tokio::test]
async fn the_time_is_learnt_from_what_nearly_all_took() {
    let pool = pool(Does::Answers, Does::Answers).await;
    let mut edge = edge(AppProtocol::Http1, &pool.addresses, hedge(Delay::Percentile(50), 100)).await;
    let slow = self::pool(Does::Hangs, Does::Answers).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    for _ in 0..30 {
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_until(&mut tcp, "\r\n\r\n").await;
        let mut body = [0];
        let _ = tcp.try_read(&mut body);
    }
    // On a busy machine some of them took longer than half of them too.
    edge.harness.lines(30).await;
    let won = edge.harness.metric(OUTCOMES, &["\"won\""]);
    edge.harness.service("web", AppProtocol::Http1, &slow.addresses).await;
    assert!(exchange(edge.address, GET).await.ends_with("\r\n\r\n1"));
    edge.counted("won", won + 1).await;
}

/// The slow one loses its requests without failing; the balancer learns from that all the same.
#[tokio::test]
async fn who_loses_is_passed_by_and_is_not_ejected() {
    let slow = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stuck, asked) = (slow.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (counted, clock) = (Arc::clone(&asked), ManualClock::new());
    let time = clock.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = slow.accept().await {
            let (counted, time) = (Arc::clone(&counted), time.clone());
            tokio::spawn(async move {
                let head = read_until(&mut tcp, "\r\n\r\n").await;
                // On a busy machine the other one is late as well, and this one is asked beside it.
                if !head.contains("x-envoy-attempt-count") {
                    counted.fetch_add(1, Ordering::SeqCst);
                    time.advance(Duration::from_millis(60));
                }
                let _ = tcp.read(&mut [0]).await;
            });
        }
    });
    let well = support::upstream(|got| {
        support::is_head(got).then(|| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())
    })
    .await;
    let policy = v1::TrafficPolicy {
        algorithm: Algorithm::PeakEwma.into(),
        outlier_detection: Some(v1::OutlierDetection {
            consecutive_5xx: Some(1),
            base_ejection_time_ms: 30_000,
            max_ejection_percent: 100,
            interval_ms: 10_000,
            max_ejection_time_ms: 30_000,
            ..crate::support::rows_off()
        }),
        ..after(60)
    };
    let settings = Settings { workers: 1, ..Settings::default() };
    let harness = Harness::join(settings, Mesh::default(), Arc::new(clock), "gateway");
    let edge = edge_of(harness, AppProtocol::Http1, &[stuck, well.address], policy).await;
    for _ in 0..40 {
        assert!(exchange(edge.address, GET).await.ends_with("ok"));
    }
    let asked = asked.load(Ordering::SeqCst);
    assert!((1..8).contains(&asked), "{asked} of 40 waited for the slow one");
    assert_eq!(edge.harness.metric("meshwork_endpoint_ejections_total", &[]), 0);
    assert_eq!(edge.harness.metric("meshwork_endpoints_ejected", &[]), 0);
}

#[tokio::test]
async fn a_body_that_the_second_one_takes_behind_its_response_s_head_reaches_it_whole() {
    // So much is queued as one piece with its end; and of so much most is still to be taken from what was kept.
    tokio::join!(taken_late(3 * 1024, 1_000), taken_late(60 * 1024, 16 * 1024));
}

/// A body of so many bytes, of which a stream takes so many at a time.
async fn taken_late(length: usize, window: u32) {
    let (asked, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let (count, begun) = (Arc::clone(&asked), Arc::clone(&begun));
        let serve =
            move |_, request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
                let (count, begun) = (Arc::clone(&count), Arc::clone(&begun));
                async move {
                    match count.fetch_add(1, Ordering::SeqCst) {
                        // Both connections know their peer's window before it matters.
                        0 | 1 => return support::h2::answer(respond, b""),
                        2 => {
                            collect_body(request.into_body()).await.unwrap();
                            return std::future::pending().await;
                        }
                        _ => {}
                    }
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    begun.notified().await;
                    let (body, _) = collect_body(request.into_body()).await.unwrap();
                    send.send_data(body, true).unwrap();
                }
            };
        let up = h2_upstream_with(|server| server.initial_window_size(window), usize::MAX, serve).await;
        addresses.push(up.address);
    }
    // All of it has come by then.
    let edge = edge(AppProtocol::Http2, &addresses, after(700)).await;
    let mut client = h2_client(edge.address).await;
    for _ in 0..2 {
        assert_eq!(fetch(&mut client, get("/")).await.0, 200);
    }
    let request = Request::put("http://shop/").body(()).unwrap();
    let (response, mut send) = client.send_request(request, false).unwrap();
    let sent: Bytes = (0..length).map(|at| b'a' + u8::try_from(at % 23).unwrap()).collect();
    send.send_data(sent.clone(), true).unwrap();
    let response = response.await.unwrap();
    begun.notify_one();
    let (status, body, _) = tokio::time::timeout(Duration::from_secs(10), collect(response)).await.unwrap();
    assert!(status == 200 && body == sent, "{status}: {} of {length}", body.len());
    edge.counted("won", 1).await;
}

#[tokio::test]
async fn over_http2_the_loser_s_stream_is_reset() {
    let reset = Arc::new(AtomicBool::new(false));
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let seen = Arc::clone(&reset);
        let up = h2_upstream(usize::MAX, move |_, request, mut respond| {
            let seen = Arc::clone(&seen);
            async move {
                if !request.headers().contains_key("x-envoy-attempt-count") {
                    let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
                    seen.store(reason == h2::Reason::CANCEL, Ordering::SeqCst);
                    return;
                }
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(Bytes::from_static(b"second"), false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("x-end", "1".parse().unwrap());
                send.send_trailers(trailers).unwrap();
            }
        })
        .await;
        addresses.push(up.address);
    }
    let edge = edge(AppProtocol::Http2, &addresses, after(50)).await;
    let mut client = h2_client(edge.address).await;
    let request = Request::get("http://shop/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let (status, body, trailers) = collect(response.await.unwrap()).await;
    assert_eq!((status, &body[..]), (200, &b"second"[..]));
    assert_eq!(trailers.unwrap()["x-end"], "1", "all of it is passed on");
    until(|| reset.load(Ordering::SeqCst)).await;
}

/// Two instances of `reviews` beside sidecars of their own, and before them the proxy of `web`; `said` of the service.
async fn before_sidecars(apps: &[SocketAddr], said: v1::TrafficPolicy) -> (TestMesh, [Harness; 2], Harness) {
    let mesh = TestMesh::new();
    let reviews = mesh.identity("reviews");
    let (mut beside, mut peers) = (Vec::new(), Vec::new());
    for app in apps {
        let mut inbound = mesh.proxy(&reviews, None, Settings::default());
        inbound
            .change([mesh.bundle(1, &[]), serving(&reviews.id(), "reviews", *app, AppProtocol::Http1)])
            .await;
        peers.push(inbound.engine.listen(Side::Inbound, "127.0.0.1:0".parse().unwrap()).await.unwrap());
        beside.push(inbound);
    }
    let mut outbound = mesh.proxy(&mesh.identity("web"), None, Settings::default());
    let [service, one] = service_at("reviews", &reviews.id(), peers[0]);
    let [_, other] = service_at("reviews", &reviews.id(), peers[1]);
    let Change::Upsert { type_url, version, body, .. } = other else { panic!("it comes") };
    let other = Change::Upsert { type_url, name: "shop/reviews-2".into(), version, body };
    let said = policy("p", "reviews", v1::policy::Spec::Traffic(said));
    outbound.change([mesh.bundle(1, &[]), service, one, other, said]).await;
    let Ok(beside) = beside.try_into() else { panic!("there are two") };
    (mesh, beside, outbound)
}

#[tokio::test]
async fn through_sidecars_a_retry_of_the_hop_before_is_not_hedged() {
    let pool = pool_of(&[Does::Hangs, Does::Answers, Does::Late(400)]).await;
    let (mesh, _beside, mut outbound) = before_sidecars(&pool.addresses, after(80)).await;
    let proxy = outbound.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let call = b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";
    assert!(exchange(proxy, call).await.ends_with("\r\n\r\n1"));
    outbound.wait_metric(OUTCOMES, &["shop/reviews", "won"], 1).await;
    until(|| pool.given_up.load(Ordering::SeqCst)).await;
    let retry = b"GET / HTTP/1.1\r\nHost: reviews\r\nX-Envoy-Attempt-Count: 3\r\nConnection: close\r\n\r\n";
    assert!(exchange(proxy, retry).await.ends_with("\r\n\r\n2"));
    let lines = outbound.lines(2).await;
    assert!(lines[0].contains("\"attempts\":2") && lines[1].contains("\"attempts\":1"), "{lines:?}");
    assert_eq!(outbound.metric(OUTCOMES, &[]), 1, "nor was another one refused");
    let proven = format!("\"upstream_peer_id\":\"{}\"", mesh.id("reviews"));
    assert!(lines[0].contains(&proven), "whose answer it was is said: {}", lines[0]);
}

/// One instance is in the mesh, the other is not: whoever answers is told by its own address, protocol and identity.
#[tokio::test]
async fn who_has_won_is_told_as_what_it_is_and_not_as_who_was_asked_first() {
    let legs = Legs::of(2).await;
    legs.say(SECOND, OK);
    let mut pair = Pair::start(legs.addresses[0], AppProtocol::Http1).await;
    let [_, outside] = plain_at("reviews", legs.addresses[1]);
    let Change::Upsert { type_url, version, body, .. } = outside else { panic!("it comes") };
    let outside = Change::Upsert { type_url, name: "shop/reviews-2".into(), version, body };
    pair.outbound.change([outside, policy("p", "reviews", v1::policy::Spec::Traffic(after(50)))]).await;
    let proven = format!("destination_principal=\"{}\"", pair.reviews.id());
    // By turns: with one that is sent once, since it may not be repeated, between two that are sent twice, each of them wins once.
    for (asked, method) in (1..).zip(["GET", "POST", "GET"]) {
        if method == "GET" {
            legs.hold(FIRST);
        } else {
            legs.say(FIRST, OK);
        }
        let call =
            format!("{method} / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        assert!(exchange(pair.proxy, call.as_bytes()).await.ends_with("well"));
        let lines = pair.outbound.lines(asked).await;
        let of_mesh = lines.iter().filter(|line| line.contains("\"upstream_peer_id\"")).count() as u64;
        pair.outbound.wait_metric("istio_requests_total", &["reporter=\"source\""], asked as u64).await;
        assert_eq!(pair.outbound.metric("istio_requests_total", &[&proven]), of_mesh, "{lines:?}");
    }
    let field = |name: &str, value: &dyn std::fmt::Display| format!("\"{name}\":\"{value}\"");
    let mesh = [
        field("upstream_host", &pair.peer),
        field("upstream_protocol", &"HTTP/2"),
        field("upstream_peer_id", &pair.reviews.id()),
    ];
    let plain = [field("upstream_host", &legs.addresses[1]), field("upstream_protocol", &"HTTP/1.1")];
    let mut lines = pair.outbound.lines(3).await;
    lines.retain(|line| line.contains("\"attempts\":2"));
    let is_all = |line: &str, said: &[String]| said.iter().all(|said| line.contains(said));
    let of_mesh: Vec<_> = lines.iter().filter(|line| is_all(line, &mesh)).collect();
    let of_plain: Vec<_> = lines.iter().filter(|line| is_all(line, &plain)).collect();
    assert_eq!((of_mesh.len(), of_plain.len()), (1, 1), "{lines:?}");
    assert!(!of_plain[0].contains("upstream_peer_id"), "it has proven nothing: {lines:?}");
}

/// Two instances: who is asked first never answers, or fails it when the other one has been asked; that one begins an answer and
/// never ends it.
async fn endless(fails: bool) -> [SocketAddr; 2] {
    let asked = Arc::new(AtomicUsize::new(0));
    let both = Arc::new(tokio::sync::Notify::new());
    let instance = async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, both) = (Arc::clone(&asked), Arc::clone(&both));
        tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            read_until(&mut tcp, "\r\n\r\n").await;
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                both.notified().await;
                if fails {
                    tcp.write_all(BUSY).await.unwrap();
                }
            } else {
                both.notify_one();
                // Whatever is first, the outcome is the same; the other one should be.
                tokio::time::sleep(Duration::from_millis(20)).await;
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
            }
            let _ = tcp.read(&mut [0; 1]).await;
        });
        address
    };
    [instance().await, instance().await]
}

#[tokio::test]
async fn the_second_one_has_the_whole_time_of_an_attempt_whatever_the_first_had() {
    const DELAY: u32 = 150;
    // Enough for its answer to begin.
    const TIME: u32 = 1_500;
    for fails in [false, true] {
        let endpoints = endless(fails).await;
        let mut harness = Harness::start(Settings { workers: 1, ..Settings::default() });
        harness.service("web", AppProtocol::Http1, &endpoints).await;
        let rule = v1::Rule { backend_request_timeout_ms: TIME, ..support::rule(&[("web", 1)], vec![]) };
        let address = harness.route(vec![rule]).await;
        harness.change([traffic(after(DELAY))]).await;
        let clock = SystemClock::new();
        let began = clock.now();
        let asking = exchange(address, GET);
        let got =
            tokio::time::timeout(Duration::from_secs(10), asking).await.expect("its time is over some time");
        let (took, least) = (clock.now().since(began), Duration::from_millis(u64::from(DELAY + TIME)));
        assert!(got.ends_with("half") && took >= least, "{took:?}: {got}");
        let line = harness.lines(1).await.remove(0);
        assert!(line.contains("\"UT\"") && line.contains("per_try_timeout"), "{line}");
    }
}
