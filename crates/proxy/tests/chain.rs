//! Services behind each other, each beside its proxy: retries of one do not multiply those of the next.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Settings, Side};
use support::mesh::{Pair, TestMesh, plain_at, policy, service_at, serving};
use support::mirrors::until;
use support::{Harness, Upstream, exchange, is_head, read_until, upstream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";

/// An application that calls the next service for each request, and fails when that fails, but for `/well`: that goes well
/// whatever becomes of it.
struct Middle {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    /// The last head.
    head: Arc<parking_lot::Mutex<String>>,
}

/// The fields by which applications say what they were asked.
type PassesOn = &'static [&'static str];

const REQUEST_ID: PassesOn = &["x-request-id"];

/// How long an application takes until it calls the next one.
type Takes = (ManualClock, Duration);

async fn middle(
    next: &'static str,
    outbound: Arc<parking_lot::Mutex<Option<SocketAddr>>>,
    passes_on: PassesOn,
    takes: Takes,
) -> Middle {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, head) = (Arc::new(AtomicUsize::new(0)), Arc::new(parking_lot::Mutex::default()));
    let (counted, noted) = (Arc::clone(&asked), Arc::clone(&head));
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (counted, noted, outbound) =
                (Arc::clone(&counted), Arc::clone(&noted), Arc::clone(&outbound));
            let (clock, time) = takes.clone();
            tokio::spawn(async move {
                let got = read_until(&mut tcp, "\r\n\r\n").await;
                counted.fetch_add(1, Ordering::SeqCst);
                clock.advance(time);
                *noted.lock() = got.to_lowercase();
                let is_passed_on = |line: &&str| {
                    passes_on.iter().any(|name| line.to_lowercase().starts_with(&format!("{name}:")))
                };
                let same: String =
                    got.lines().filter(is_passed_on).map(|line| format!("{line}\r\n")).collect();
                let call = format!("GET / HTTP/1.1\r\nHost: {next}\r\n{same}Connection: close\r\n\r\n");
                let proxy = outbound.lock().unwrap();
                let answer = exchange(proxy, call.as_bytes()).await;
                let status = match answer.lines().next().unwrap_or("HTTP/1.1 502 Broken") {
                    _ if got.starts_with("GET /well ") => "HTTP/1.1 200 OK",
                    _ if got.contains("application/grpc") => "HTTP/1.1 200 OK\r\ngrpc-status: 14",
                    status => status,
                };
                let answer = format!("{status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = tcp.write_all(answer.as_bytes()).await;
            });
        }
    });
    Middle { address, asked, head }
}

/// What every caller says about the service that it calls.
fn repeats(service: &str) -> meshwork_decision::Change {
    repeats_unless(service, None)
}

/// Unless a breaker refuses that.
fn repeats_unless(service: &str, circuit_breaker: Option<v1::CircuitBreaker>) -> meshwork_decision::Change {
    let retry = v1::Retry {
        attempts: Some(3),
        on: Some(v1::retry::On { status_codes: (500..600).collect(), reset: true, ..Default::default() }),
        ..crate::support::bare_retry()
    };
    let spec = v1::TrafficPolicy { retry: Some(retry), circuit_breaker, ..Default::default() };
    policy(&format!("TrafficPolicy/{service}"), service, v1::policy::Spec::Traffic(spec))
}

/// One failure opens it.
fn opening_at_once() -> v1::CircuitBreaker {
    v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 1,
        failure_percent: 50,
        open_ms: 600_000,
        max_open_ms: 600_000,
        trials: 1,
        ..Default::default()
    }
}

/// `web` calls `one`, which calls `two`, which calls `three`, which always fails.
struct Chain {
    one: Middle,
    two: Middle,
    three: Arc<AtomicUsize>,
    /// The last head that it got.
    head: Arc<parking_lot::Mutex<String>>,
    /// Where `web` sends what it calls.
    proxy: SocketAddr,
    _harnesses: Vec<Harness>,
    _app: Upstream,
}

async fn chain(passes_on: PassesOn) -> Chain {
    chain_to(Last { answer: BUSY, ..Last::default() }, passes_on).await
}

/// The last service of a chain.
#[derive(Clone, Copy, Default)]
struct Last {
    /// Empty: it breaks the connection.
    answer: &'static [u8],
    /// Its caller's breaker opens at once.
    is_broken: bool,
    /// It has no proxy.
    is_plain: bool,
    /// So long each of those before it takes until it calls the next one.
    after: Duration,
}

async fn chain_to(last: Last, passes_on: PassesOn) -> Chain {
    let mesh = TestMesh::new();
    let (three, head) = (Arc::new(AtomicUsize::new(0)), Arc::new(parking_lot::Mutex::default()));
    let (counted, noted) = (Arc::clone(&three), Arc::clone(&head));
    let app = upstream(move |got| {
        is_head(got).then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            *noted.lock() = String::from_utf8_lossy(got).to_lowercase();
            last.answer.to_vec()
        })
    })
    .await;
    let outs: [Arc<parking_lot::Mutex<Option<SocketAddr>>>; 2] = Default::default();
    let takes = || (mesh.clock.clone(), last.after);
    let one = middle("two", Arc::clone(&outs[0]), passes_on, takes()).await;
    let two = middle("three", Arc::clone(&outs[1]), passes_on, takes()).await;
    let mut harnesses = Vec::new();
    let mut next: Option<(&str, SocketAddr)> = None;
    let local = || "127.0.0.1:0".parse().unwrap();
    for (name, address, out) in [
        ("three", app.address, None),
        ("two", two.address, Some(&outs[1])),
        ("one", one.address, Some(&outs[0])),
    ] {
        let identity = mesh.identity(name);
        let mut proxy = mesh.proxy(&identity, None, Settings::default());
        proxy.change([mesh.bundle(1, &[]), serving(&identity.id(), name, address, AppProtocol::Http1)]).await;
        if let (Some((called, peer)), Some(out)) = (next, out) {
            let is_last = called == "three";
            let service = match is_last && last.is_plain {
                true => plain_at(called, app.address),
                false => service_at(called, &mesh.id(called), peer),
            };
            let breaker = (is_last && last.is_broken).then(opening_at_once);
            proxy.change(service.into_iter().chain([repeats_unless(called, breaker)])).await;
            *out.lock() = Some(proxy.engine.listen(Side::Outbound, local()).await.unwrap());
        }
        next = Some((name, proxy.engine.listen(Side::Inbound, local()).await.unwrap()));
        harnesses.push(proxy);
    }
    let (called, peer) = next.unwrap();
    let mut web = mesh.proxy(&mesh.identity("web"), None, Settings::default());
    web.change([mesh.bundle(1, &[]), repeats(called)].into_iter().chain(service_at(
        called,
        &mesh.id(called),
        peer,
    )))
    .await;
    let proxy = web.engine.listen(Side::Outbound, local()).await.unwrap();
    harnesses.push(web);
    Chain { one, two, three, head, proxy, _harnesses: harnesses, _app: app }
}

impl Chain {
    /// So many requests, eight at a time. The clock stands still, so all of them are of one budget.
    async fn ask(&self, requests: usize) {
        const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: one\r\nConnection: close\r\n\r\n";
        let proxy = self.proxy;
        let callers = (0..8).map(|_| {
            tokio::spawn(async move {
                for _ in 0..requests / 8 {
                    let answer = exchange(proxy, GET).await;
                    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
    }

    fn asked(&self) -> [usize; 3] {
        [&self.one.asked, &self.two.asked, &self.three].map(|count| count.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn three_services_deep_the_last_gets_at_most_a_fifth_more_than_the_first() {
    let chain = chain(REQUEST_ID).await;
    chain.ask(400).await;
    let [one, two, three] = chain.asked();
    assert_eq!((one, two), (400, 400), "what was repeated below is not repeated above");
    assert!((405..=480).contains(&three), "the last hop tries, and nobody else: {three}");
}

#[tokio::test]
async fn so_it_is_where_applications_pass_on_no_id() {
    let chain = chain(&[]).await;
    chain.ask(400).await;
    let [one, two, three] = chain.asked();
    assert!(one > 400 && two > one && three > two, "every hop tries: {one}, {two}, {three}");
    assert!(three <= 480, "and learns that it does not help: {one}, {two}, {three}");
}

#[tokio::test]
async fn what_the_caller_repeats_is_not_repeated_beyond_it() {
    let chain = chain(REQUEST_ID).await;
    let told = b"GET / HTTP/1.1\r\nHost: one\r\nX-Envoy-Attempt-Count: 2\r\nConnection: close\r\n\r\n";
    assert!(exchange(chain.proxy, told).await.starts_with("HTTP/1.1 503"));
    assert_eq!(chain.asked(), [1, 1, 1]);
    chain.ask(8).await;
    let [one, two, three] = chain.asked();
    assert_eq!((one, two), (9, 9));
    assert!(three > 9, "another family is repeated as ever: {three}");
}

/// A repeat that a breaker refuses is one that was called for: the failure is final, and the hops before do not begin anew.
#[tokio::test]
async fn where_a_repeat_is_refused_nothing_is_repeated_further_up_either() {
    for (answer, is_plain) in [(BUSY, false), (&b""[..], true)] {
        let chain = chain_to(Last { answer, is_plain, is_broken: true, ..Last::default() }, REQUEST_ID).await;
        let answer = exchange(chain.proxy, b"GET / HTTP/1.1\r\nHost: one\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert_eq!(chain.asked(), [1, 1, 1], "a plain one: {is_plain}");
    }
}

#[tokio::test]
async fn a_trace_says_too_what_belongs_together() {
    let chain = chain(&["traceparent"]).await;
    let told = "GET / HTTP/1.1\r\nHost: one\r\nX-Envoy-Attempt-Count: 2\r\n\
                Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nConnection: close\r\n\r\n";
    assert!(exchange(chain.proxy, told.as_bytes()).await.starts_with("HTTP/1.1 503"));
    assert_eq!(chain.asked(), [1, 1, 1]);
}

#[tokio::test]
async fn when_a_retry_is_answered_what_belongs_to_it_is_repeated_as_ever() {
    let chain = chain(REQUEST_ID).await;
    let request = |more: &str| {
        format!("GET / HTTP/1.1\r\nHost: one\r\nX-Request-Id: same\r\n{more}Connection: close\r\n\r\n")
    };
    exchange(chain.proxy, request("X-Envoy-Attempt-Count: 2\r\n").as_bytes()).await;
    assert_eq!(chain.asked(), [1, 1, 1]);
    // A proxy may have answered and not yet have forgotten.
    let repeated = async {
        let [mut one, _, mut three] = chain.asked();
        while one == three {
            exchange(chain.proxy, request("").as_bytes()).await;
            [one, _, three] = chain.asked();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), repeated).await.expect("no time passes in the mesh");
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const EXPECTED: &str = "x-envoy-expected-rq-timeout-ms";

/// Asks with so many milliseconds, and with what each application was told then.
async fn told(chain: &Chain, given: &str) -> (String, [Option<u64>; 3]) {
    let call = format!(
        "GET / HTTP/1.1\r\nHost: one\r\nX-Request-Id: a\r\n{EXPECTED}: {given}\r\n\
         Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nConnection: close\r\n\r\n"
    );
    let answer = exchange(chain.proxy, call.as_bytes()).await;
    let heads = [&chain.one.head, &chain.two.head, &chain.head];
    let told = heads.map(|head| {
        let prefix = format!("{EXPECTED}: ");
        head.lock().lines().find_map(|line| line.strip_prefix(&prefix)).map(|told| told.parse().unwrap())
    });
    (answer, told)
}

#[tokio::test]
async fn what_applications_take_themselves_is_off_the_deadline_though_they_pass_it_on_as_it_came() {
    let last = Last { answer: OK, after: Duration::from_millis(300), ..Last::default() };
    for passes_on in [&["x-request-id", EXPECTED][..], &["traceparent", EXPECTED]] {
        let chain = chain_to(last, passes_on).await;
        for _ in 0..2 {
            let (answer, told) = told(&chain, "20000").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert_eq!(told, [20_000, 19_700, 19_400].map(Some), "{passes_on:?}");
        }
    }
    let chain = chain_to(last, &[EXPECTED]).await;
    let (_, unknown) = told(&chain, "20000").await;
    assert_eq!(unknown, [Some(20_000); 3], "nothing says for which request they call");
}

#[tokio::test]
async fn what_an_application_calls_when_its_own_time_is_over_is_not_begun() {
    let last = Last { answer: OK, after: Duration::from_secs(15), ..Last::default() };
    let chain = chain_to(last, &["x-request-id", EXPECTED]).await;
    let (answer, told) = told(&chain, "20000").await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert_eq!(told, [Some(20_000), Some(5_000), None]);
    assert_eq!(chain.asked(), [1, 1, 0]);
}

const NOT_AGAIN: &str = "x-envoy-overloaded: true\r\n";

#[tokio::test]
async fn an_answer_that_is_good_in_spite_of_a_call_that_failed_says_nothing_of_that() {
    let chain = chain(REQUEST_ID).await;
    let well = exchange(chain.proxy, b"GET /well HTTP/1.1\r\nHost: one\r\nConnection: close\r\n\r\n").await;
    assert!(well.starts_with("HTTP/1.1 200") && !well.contains(NOT_AGAIN), "{well}");
    assert!(chain.asked()[2] > 1, "it was repeated below");
    let bad = exchange(chain.proxy, b"GET / HTTP/1.1\r\nHost: one\r\nConnection: close\r\n\r\n").await;
    assert!(bad.starts_with("HTTP/1.1 503") && bad.contains(NOT_AGAIN), "{bad}");
}

#[tokio::test]
async fn callers_of_grpc_hear_in_their_terms_that_it_was_repeated_below() {
    let chain = chain(REQUEST_ID).await;
    let call = b"POST / HTTP/1.1\r\nHost: one\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\
                Connection: close\r\n\r\n";
    let answer = exchange(chain.proxy, call).await;
    assert!(answer.contains("grpc-status: 14\r\n") && answer.contains(NOT_AGAIN), "{answer}");
    assert!(answer.contains("grpc-retry-pushback-ms: -1\r\n"), "{answer}");
}

/// `web` calls an application that answers so.
async fn called_by_web(app: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) -> (Pair, Upstream) {
    let app = upstream(app).await;
    let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
    pair.outbound.change([repeats("reviews")]).await;
    (pair, app)
}

#[tokio::test]
async fn an_application_is_not_told_by_its_own_proxy_what_the_next_hop_has_to_know() {
    let (pair, _app) = called_by_web(|got| is_head(got).then(|| BUSY.to_vec())).await;
    let answer = exchange(pair.proxy, b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && !answer.contains(NOT_AGAIN), "{answer}");
    let line = pair.outbound.lines(1).await.remove(0);
    assert!(line.contains("\"attempts\":4"), "it has failed for good: {line}");
}

#[tokio::test]
async fn what_comes_beside_a_retry_is_none_itself() {
    let (heads, seen) = (Arc::new(parking_lot::Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let (noted, counted) = (Arc::clone(&heads), Arc::clone(&seen));
    let (pair, _app) = called_by_web(move |got| {
        if !is_head(got) {
            return None;
        }
        noted.lock().push(String::from_utf8_lossy(got).to_lowercase());
        // The first one is never answered.
        (counted.fetch_add(1, Ordering::SeqCst) > 0).then(|| b"HTTP/1.1 204 Well\r\n\r\n".to_vec())
    })
    .await;
    let request = |more: &str| {
        format!("GET / HTTP/1.1\r\nHost: reviews\r\nX-Request-Id: a\r\n{more}Connection: close\r\n\r\n")
    };
    let (proxy, retry) = (pair.proxy, request("X-Envoy-Attempt-Count: 2\r\n"));
    let _waits = tokio::spawn(async move { exchange(proxy, retry.as_bytes()).await });
    until(|| seen.load(Ordering::SeqCst) == 1).await;
    assert!(exchange(proxy, request("").as_bytes()).await.starts_with("HTTP/1.1 204"));
    let heads = heads.lock().clone();
    let says: Vec<_> = heads.iter().map(|head| head.contains("x-envoy-attempt-count: 2\r\n")).collect();
    assert_eq!(says, [true, false], "{heads:?}");
}
