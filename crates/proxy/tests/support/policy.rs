//! A gateway before one service with a policy, and upstreams that fail as told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use parking_lot::Mutex;

use super::{Harness, Upstream, is_head, rule, upstream};

pub const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
pub const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";
pub const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
pub const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Three calls that fail open it.
pub fn breaker() -> v1::CircuitBreaker {
    v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 3,
        failure_percent: 30,
        open_ms: 60_000,
        max_open_ms: 60_000,
        trials: 1,
        ..Default::default()
    }
}

pub fn traffic(policy: v1::TrafficPolicy) -> Change {
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/web".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    Change::upsert("default/p", "1", &v1::Policy { source: None, targets: vec![target], spec })
}

pub async fn gateway(upstreams: &[SocketAddr], policy: Option<v1::TrafficPolicy>) -> (Harness, SocketAddr) {
    gateway_of(Harness::start(Settings::default()), upstreams, policy).await
}

pub async fn gateway_of(
    mut harness: Harness,
    upstreams: &[SocketAddr],
    policy: Option<v1::TrafficPolicy>,
) -> (Harness, SocketAddr) {
    harness.service("web", AppProtocol::Http1, upstreams).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change(policy.map(traffic)).await;
    (harness, address)
}

pub fn retry(attempts: u32, status_codes: &[u32]) -> v1::TrafficPolicy {
    let retry = v1::Retry {
        attempts: Some(attempts),
        on: Some(v1::retry::On {
            status_codes: status_codes.to_vec(),
            reset: true,
            connect_failure: true,
            ..Default::default()
        }),
        ..crate::support::bare_retry()
    };
    v1::TrafficPolicy { retry: Some(retry), ..Default::default() }
}

/// Answers with `first` so often, then 200; notes the attempt numbers it was told.
pub async fn recovering(first: &'static [u8], times: usize) -> (Upstream, Arc<Mutex<Vec<Option<String>>>>) {
    let counts = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&counts);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            let text = String::from_utf8_lossy(got).to_lowercase();
            let count =
                text.lines().find_map(|l| l.strip_prefix("x-envoy-attempt-count: ").map(str::to_owned));
            noted.lock().push(count);
            if noted.lock().len() <= times { first.to_vec() } else { OK.to_vec() }
        })
    })
    .await;
    (up, counts)
}

/// Two upstreams that count what they get: the first answers as told, the second well.
pub async fn pair(
    first: impl Fn() -> &'static [u8] + Send + Sync + 'static,
    second: impl Fn() -> &'static [u8] + Send + Sync + 'static,
) -> ([SocketAddr; 2], Arc<[AtomicUsize; 2]>) {
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let (of_first, of_second) = (Arc::clone(&counts), Arc::clone(&counts));
    let one = upstream(move |got| {
        is_head(got).then(|| {
            of_first[0].fetch_add(1, Ordering::SeqCst);
            first().to_vec()
        })
    });
    let other = upstream(move |got| {
        is_head(got).then(|| {
            of_second[1].fetch_add(1, Ordering::SeqCst);
            second().to_vec()
        })
    });
    ([one.await.address, other.await.address], counts)
}

/// An upstream that answers only once it is told to, and how many requests it holds.
pub async fn holding() -> (Upstream, Arc<AtomicUsize>, Arc<std::sync::atomic::AtomicBool>) {
    let (held, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let (counted, opened) = (Arc::clone(&held), Arc::clone(&open));
    let up = upstream(move |got| {
        if !is_head(got) && !got.ends_with(b"more") {
            return None;
        }
        if opened.load(Ordering::SeqCst) || got.ends_with(b"more") {
            return Some(OK.to_vec());
        }
        counted.fetch_add(1, Ordering::SeqCst);
        None
    })
    .await;
    (up, held, open)
}

pub fn limits(limits: v1::Limits) -> v1::TrafficPolicy {
    v1::TrafficPolicy { limits: Some(limits), ..Default::default() }
}
