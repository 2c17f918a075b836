//! The engine alone in a process, for `bench/instructions`: it prints where it listens and serves until its standard
//! input ends. Whoever sends and answers requests is another process, and no part of what is counted.
//!
//! `instructions edge|policies|mesh UPSTREAM`: one hop with a header filter, the same with policies of resilience at work, or
//! two hops with mutual TLS between.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_process::Drained;
use meshwork_proxy::Settings;
use support::mesh::Pair;
use support::{Harness, rule};

/// As in the binary: what a request allocates is part of what it costs.
#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    // `cargo bench` and `cargo test --benches` start every target with arguments of their own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let [way, upstream] = &arguments[..] else { return };
    let upstream: SocketAddr = upstream.parse().expect("the upstream's address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let finished = match way.as_str() {
            "edge" => edge(upstream, vec![]).await,
            "policies" => edge(upstream, policies()).await,
            "mesh" => mesh(upstream).await,
            other => panic!("`{other}` is neither edge, policies nor mesh"),
        };
        assert!(finished, "requests were still running");
    });
}

fn serve_until_told(address: SocketAddr) {
    let mut out = std::io::stdout();
    writeln!(out, "{address}").and_then(|()| out.flush()).expect("somebody reads where we listen");
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).expect("standard input ends");
}

async fn edge(upstream: SocketAddr, policies: Vec<Change>) -> bool {
    let mut harness = Harness::start(Settings::default());
    let set = vec![v1::Field { name: "x-bench".into(), value: "1".into() }];
    let edits = v1::FieldEdits { set, ..Default::default() };
    let filter = v1::Filter { kind: Some(v1::filter::Kind::RequestHeaders(edits)) };
    let address = harness.route(vec![rule(&[("web", 1)], vec![filter])]).await;
    harness.service("web", AppProtocol::Http1, &[upstream]).await;
    harness.change(policies).await;
    serve_until_told(address);
    harness.engine.drain(PATIENCE).await == Drained::Clean
}

/// What `bench/meshwork/policies.yaml` says, in the form in which it comes to a proxy.
fn policies() -> Vec<Change> {
    let resilience = v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::PeakEwma.into(),
        limits: Some(v1::Limits {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 32,
            max_connections_per_endpoint: 512,
            max_requests_per_endpoint: 512,
            ..Default::default()
        }),
        outlier_detection: Some(ejection()),
        circuit_breaker: Some(v1::CircuitBreaker {
            slow_after_ms: 1_000,
            slow_percent: 50,
            ..Default::default()
        }),
        retry: Some(v1::Retry {
            attempts: Some(2),
            on: Some(v1::retry::On {
                status_codes: vec![429, 502, 503, 504],
                reset: true,
                connect_failure: true,
                refused: true,
                ..Default::default()
            }),
            per_try_timeout_ms: 2_000,
            backoff_base_ms: Some(25),
            backoff_max_ms: Some(250),
            budget: Some(v1::RetryBudget { percent: Some(20), ..Default::default() }),
        }),
        hedge: Some(v1::Hedge { delay: Some(v1::hedge::Delay::FixedMs(5_000)), ..Default::default() }),
        timeouts: Some(v1::Timeouts {
            request_ms: 10_000,
            connect_ms: 1_000,
            stream_idle_ms: 10_000,
            max_stream_ms: 60_000,
            ..Default::default()
        }),
        fault_injection: Some(v1::FaultInjection {
            headers: vec![v1::Field { name: "x-fault".into(), value: "delay".into() }],
            delay: Some(v1::fault_injection::Delay { time_ms: 100, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let limit = v1::RateLimit { requests: 1_000_000, ..Default::default() };
    let rate = v1::TrafficPolicy { rate_limit: Some(limit), ..Default::default() };
    vec![attached("Service", "default/web", resilience), attached("HTTPRoute", "default/r", rate)]
}

fn ejection() -> v1::OutlierDetection {
    v1::OutlierDetection {
        consecutive_5xx: Some(5),
        consecutive_gateway_failure: Some(5),
        split_external_local_origin_errors: Some(true),
        interval_ms: 5_000,
        success_rate: Some(v1::outlier_detection::SuccessRate { minimum_hosts: 3, ..Default::default() }),
        failure_percentage: Some(v1::outlier_detection::FailurePercentage {
            minimum_hosts: 3,
            ..Default::default()
        }),
        max_ejection_percent: 50,
        ..Default::default()
    }
}

fn attached(kind: &str, name: &str, policy: v1::TrafficPolicy) -> Change {
    let target = v1::policy::Target { kind: kind.into(), name: name.into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(policy));
    Change::upsert(&format!("default/{kind}"), "1", &v1::Policy { source: None, targets: vec![target], spec })
}

async fn mesh(upstream: SocketAddr) -> bool {
    let pair = Pair::start(upstream, AppProtocol::Http1).await;
    serve_until_told(pair.proxy);
    let drained = (pair.outbound.engine.drain(PATIENCE).await, pair.inbound.engine.drain(PATIENCE).await);
    drained == (Drained::Clean, Drained::Clean)
}
