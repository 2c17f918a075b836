//! The counters of all proxies at one moment; rates are the difference of two answers.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use meshwork_base::{Rng as _, ThreadRng};
use meshwork_messages::v1::{self, Probe};
use meshwork_process::Problem;
use meshwork_xds::server::Observed;
use serde::Serialize;

use crate::ControlPlane;
use crate::explain::probe;

/// How long proxies may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The answer: JSON in camelCase, to which keys are only ever added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Top {
    /// Milliseconds on a clock that goes on evenly.
    at_ms: u64,
    proxies: Vec<Proxy>,
    /// Connected proxies that have not answered, or cannot.
    silent: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Proxy {
    id: String,
    role: String,
    services: Vec<Service>,
    breakers: Vec<Breaker>,
}

/// Requests to a service since the proxy started.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    /// `NAMESPACE/NAME`.
    service: String,
    /// `source`: as callers have seen it; `destination`: as its own side has.
    reporter: String,
    requests: u64,
    failed: u64,
    /// How many took up to each of `boundsMs`, and longer than the last.
    buckets: Vec<u64>,
    bounds_ms: Vec<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Breaker {
    service: String,
    port: u32,
    state: String,
}

pub(super) async fn top(State(plane): State<ControlPlane>) -> Result<Json<Top>, Problem> {
    let hub = plane.hub();
    let connected: Vec<_> = hub.proxies().into_iter().filter(|proxy| proxy.connected).collect();
    let mut awaited: BTreeSet<String> =
        connected.iter().filter(|proxy| probe::records(proxy)).map(|proxy| proxy.node.id.clone()).collect();
    let unable = connected.iter().filter(|proxy| !probe::records(proxy)).map(|proxy| proxy.node.id.clone());
    let mut silent: Vec<String> = unable.collect();
    let wanted = Probe {
        id: ThreadRng::new().next_u64(),
        lasts_ms: u32::try_from(PATIENCE.as_millis()).expect("a second"),
        stats: true,
        ..Probe::default()
    };
    let mut observing = probe::observe(hub, wanted, None)?;
    let mut proxies = Vec::new();
    let all = async {
        while !awaited.is_empty() {
            let Some(observed) = observing.next().await else { return };
            awaited.remove(&observed.proxy.node.id);
            proxies.extend(Proxy::of(observed));
        }
    };
    // Who does not answer in time is named.
    let _ = tokio::time::timeout(PATIENCE, all).await;
    silent.extend(awaited);
    proxies.sort_by(|one: &Proxy, other| one.id.cmp(&other.id));
    let at_ms = hub.clock().now().as_nanos() / 1_000_000;
    Ok(Json(Top { at_ms, proxies, silent }))
}

impl Proxy {
    fn of(observed: Observed) -> Option<Self> {
        let v1::Stats { services, breakers, bounds_ms } = observed.observation.stats?;
        let service = |is: v1::ServiceStats| Service {
            service: is.service,
            reporter: is.reporter,
            requests: is.requests,
            failed: is.failed,
            buckets: is.buckets,
            bounds_ms: bounds_ms.clone(),
        };
        let breaker = |is: v1::BreakerState| Breaker { service: is.service, port: is.port, state: is.state };
        let node = observed.proxy.node;
        Some(Self {
            id: node.id,
            role: node.role,
            services: services.into_iter().map(service).collect(),
            breakers: breakers.into_iter().map(breaker).collect(),
        })
    }
}
