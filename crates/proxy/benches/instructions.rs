//! The engine alone in a process, for `bench/instructions`: it prints where it listens and serves until its standard
//! input ends. Whoever sends and answers requests is another process, and no part of what is counted.
//!
//! `instructions edge|mesh UPSTREAM`: one hop with a header filter, or two with mutual TLS between.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
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
            "edge" => edge(upstream).await,
            "mesh" => mesh(upstream).await,
            other => panic!("`{other}` is neither edge nor mesh"),
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

async fn edge(upstream: SocketAddr) -> bool {
    let mut harness = Harness::start(Settings::default());
    let set = vec![v1::Field { name: "x-bench".into(), value: "1".into() }];
    let edits = v1::FieldEdits { set, ..Default::default() };
    let filter = v1::Filter { kind: Some(v1::filter::Kind::RequestHeaders(edits)) };
    let address = harness.route(vec![rule(&[("web", 1)], vec![filter])]).await;
    harness.service("web", AppProtocol::Http1, &[upstream]).await;
    serve_until_told(address);
    harness.engine.drain(PATIENCE).await
}

async fn mesh(upstream: SocketAddr) -> bool {
    let pair = Pair::start(upstream, AppProtocol::Http1).await;
    serve_until_told(pair.proxy);
    pair.outbound.engine.drain(PATIENCE).await && pair.inbound.engine.drain(PATIENCE).await
}
