//! The counters of all proxies at one moment; rates are the difference of two answers.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
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
    overloads: Vec<Overload>,
    admissions: Vec<Admission>,
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
    /// Empty: it is a route's.
    service: String,
    port: u32,
    state: String,
    /// What that would be if its policy did not only observe; empty: the same.
    observed: String,
    /// `NAMESPACE/NAME` of an HTTPRoute, or `NAMESPACE/NAME/RULE`; empty: it is a service's, or an endpoint's.
    route: String,
    /// Of an endpoint: those that are not closed, and of the others the nearest to opening.
    address: String,
    /// Percent of its calls that may fail, or be slow, beyond those that do; absent: rates decide nothing.
    headroom_percent: Option<u32>,
}

/// Calls to a service that are held back since too few succeed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Admission {
    service: String,
    port: u32,
    /// Of the calls of this moment.
    rejection_percent: u32,
    /// Absent: its policy holds none back.
    headroom_percent: Option<u32>,
}

/// What is kept from a service, or from the application beside the proxy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Overload {
    service: String,
    port: u32,
    in_flight: u32,
    limit: u32,
    queued: u32,
    /// Requests that were sent away since the proxy started.
    shed: u64,
}

pub(super) async fn top(State(plane): State<ControlPlane>) -> Result<Json<Top>, Problem> {
    let hub = plane.hub();
    let mut proxies = Vec::new();
    let question = Probe { stats: true, ..Probe::default() };
    let who = probe::all(hub, question, PATIENCE, probe::records, |observed| {
        proxies.extend(Proxy::of(observed));
        true
    })
    .await?;
    proxies.sort_by(|one: &Proxy, other| one.id.cmp(&other.id));
    let at_ms = hub.clock().now().as_nanos() / 1_000_000;
    let silent = who.unable.into_iter().chain(who.silent).collect();
    Ok(Json(Top { at_ms, proxies, silent }))
}

impl Proxy {
    fn of(observed: Observed) -> Option<Self> {
        let v1::Stats { services, breakers, overloads, admissions, bounds_ms } = observed.observation.stats?;
        let service = |is: v1::ServiceStats| Service {
            service: is.service,
            reporter: is.reporter,
            requests: is.requests,
            failed: is.failed,
            buckets: is.buckets,
            bounds_ms: bounds_ms.clone(),
        };
        let breaker = |is: v1::BreakerState| Breaker {
            service: is.service,
            port: is.port,
            state: is.state,
            observed: is.observed,
            route: is.route,
            address: is.address,
            headroom_percent: is.headroom_percent,
        };
        let admission = |is: v1::AdmissionState| Admission {
            service: is.service,
            port: is.port,
            rejection_percent: is.rejection_percent,
            headroom_percent: is.headroom_percent,
        };
        let overload = |is: v1::OverloadState| Overload {
            service: is.service,
            port: is.port,
            in_flight: is.in_flight,
            limit: is.limit,
            queued: is.queued,
            shed: is.shed,
        };
        let node = observed.proxy.node;
        Some(Self {
            id: node.id,
            role: node.role,
            services: services.into_iter().map(service).collect(),
            breakers: breakers.into_iter().map(breaker).collect(),
            overloads: overloads.into_iter().map(overload).collect(),
            admissions: admissions.into_iter().map(admission).collect(),
        })
    }
}
