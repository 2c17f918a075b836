//! A gateway that copies requests to another service, and what both services got.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use parking_lot::Mutex;

use super::{Harness, Upstream, rule, upstream};

pub const OUTCOMES: &str = "meshwork_mirrored_requests_total";
pub const GET: &[u8] = b"GET /a?b=c HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";
pub const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\noriginal";

/// An upstream that keeps what it got, request by request, and answers all alike.
pub struct Recorder {
    pub upstream: Upstream,
    pub got: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    pub async fn answering(response: &'static [u8]) -> Self {
        let got: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&got);
        let upstream = upstream(move |bytes| {
            is_whole(bytes).then(|| {
                seen.lock().push(String::from_utf8_lossy(bytes).into_owned());
                response.to_vec()
            })
        })
        .await;
        Self { upstream, got }
    }

    /// Waits until it has got so many requests, and gives them.
    pub async fn has(&self, count: usize) -> Vec<String> {
        until(|| self.got.lock().len() >= count).await;
        self.got.lock().clone()
    }
}

/// Whether the bytes are a whole request.
pub fn is_whole(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let (head, body) = (String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase(), &bytes[end + 4..]);
    match head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse::<usize>().ok()) {
        Some(length) => body.len() >= length,
        // Trailers may follow the last chunk.
        None if head.contains("transfer-encoding: chunked") => {
            body.windows(5).any(|window| window == b"\r\n0\r\n") && body.ends_with(b"\r\n\r\n")
        }
        None => true,
    }
}

pub async fn until(happened: impl Fn() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it happens");
}

pub fn mirror(service: &str, numerator: u32) -> v1::Mirror {
    let share = Some(v1::Share { numerator, denominator: 100 });
    v1::Mirror { service: format!("default/{service}"), port: 80, share, subset: String::new() }
}

pub fn mirrored(mirrors: Vec<v1::Mirror>) -> v1::Rule {
    v1::Rule { mirrors, ..rule(&[("web", 1)], vec![]) }
}

/// A gateway that sends everything to `web`, with copies to `copy`.
pub struct Edge {
    pub harness: Harness,
    pub address: SocketAddr,
    pub web: Recorder,
}

pub async fn edge(copy: SocketAddr, rule: v1::Rule) -> Edge {
    edge_of(AppProtocol::Http1, copy, rule).await
}

pub async fn edge_of(protocol: AppProtocol, copy: SocketAddr, rule: v1::Rule) -> Edge {
    edge_at(Harness::start(Settings { workers: 1, ..Settings::default() }), protocol, copy, rule).await
}

pub async fn edge_at(mut harness: Harness, protocol: AppProtocol, copy: SocketAddr, rule: v1::Rule) -> Edge {
    let web = Recorder::answering(OK).await;
    harness.service("web", AppProtocol::Http1, &[web.upstream.address]).await;
    harness.service("copy", protocol, &[copy]).await;
    let address = harness.route(vec![rule]).await;
    Edge { harness, address, web }
}

/// A policy on `default/copy`.
pub fn on_copy(spec: v1::TrafficPolicy) -> Change {
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/copy".into(), section: String::new() };
    let policy = v1::Policy {
        targets: vec![target],
        spec: Some(v1::policy::Spec::Traffic(spec)),
        ..Default::default()
    };
    Change::upsert("default/p", "1", &policy)
}

impl Edge {
    pub async fn ended(&self, outcome: &str, count: u64) {
        self.harness.wait_metric(OUTCOMES, &["default/copy", &format!("\"{outcome}\"")], count).await;
    }
}
