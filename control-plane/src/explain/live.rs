//! `POST /v1/explain/live`: the next request that matches, on its way through the proxies, with the reasons of the very
//! decisions that were made for it.
//!
//! ```text
//! question ──Probe──▶ proxies ──Observation per hop──▶ gather.rs (hops of one request) ──▶ Live
//! ```

mod gather;
mod hop;

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use meshwork_base::{Rng as _, ThreadRng};
use meshwork_decision::split_authority;
use meshwork_messages::v1::{Probe, Recall, RequestFilter, request_filter::HeaderMatch};
use meshwork_process::{Problem, parse_duration};
use meshwork_xds::server::{Observed, Observing};
use serde::{Deserialize, Serialize};

use super::ask::{bad, spiffe_id};
use super::{Explainer, body_of, probe, recorded};
use crate::codes;
pub(super) use gather::{Gathered, node_of, record};
pub(crate) use hop::Hop;
pub(super) use hop::millis;

/// How long the request is waited for where nothing is said, and at most.
const TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// How long the other hops of a request are waited for after one has come.
const GRACE: Duration = Duration::from_secs(2);
/// How much longer than the question a probe stays armed in a proxy that hears nothing more of us.
const SLACK: Duration = Duration::from_secs(5);

/// The body of `POST /v1/explain/live`. What is absent takes every request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ask {
    /// Host; `*.DOMAIN` takes all below.
    host: Option<String>,
    method: Option<String>,
    /// Path, with the query where that matters; with `*` at its end all that begins so.
    path: Option<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// Who calls: a SPIFFE ID, or `NAMESPACE/WORKLOAD`.
    from: Option<String>,
    /// The only proxy that looks.
    proxy: Option<String>,
    /// As `30s`.
    timeout: Option<String>,
}

/// The answer: JSON in camelCase, to which keys are only ever added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Live {
    trace_id: Option<String>,
    request_id: Option<String>,
    /// In the order of the request's way.
    hops: Vec<Hop>,
    /// Hops that were expected and not told.
    missing: Vec<String>,
    /// Connected proxies whose version cannot look at requests.
    not_observing: Vec<String>,
}

pub(super) async fn explain(State(explainer): State<Explainer>, body: Bytes) -> Result<Json<Live>, Problem> {
    let ask: Ask = body_of(&body)?;
    let patience = match ask.timeout.as_deref().map(parse_duration).transpose() {
        Ok(Some(timeout)) if timeout > TIMEOUT_MAX => {
            return Err(bad("timeout", "at most ten minutes, 10m"));
        }
        Ok(timeout) => timeout.unwrap_or(TIMEOUT),
        Err(why) => return Err(bad("timeout", &why)),
    };
    let hub = explainer.plane.hub();
    if let Some(wanted) = &ask.proxy {
        probe::connected(hub, wanted)?;
    }
    let lasts = (patience + GRACE + SLACK).as_millis();
    let wanted = Probe {
        id: ThreadRng::new().next_u64(),
        filter: Some(filter(&ask, &explainer)?),
        limit: 1,
        lasts_ms: u32::try_from(lasts).expect("ten minutes in milliseconds"),
        reasons: true,
        ..Probe::default()
    };
    let observing = probe::observe(hub, wanted, ask.proxy.clone())?;
    wait(&explainer, observing, (patience, ask.proxy)).await.map(Json)
}

/// The host that requests are looked for by: proxies compare it without its port.
///
/// # Errors
/// It is no host.
pub(crate) fn host(text: Option<&str>) -> Result<String, Problem> {
    let host = split_authority(text.unwrap_or_default()).0;
    // A star elsewhere is a character that no host has.
    if host.contains(['/', ' ']) || host.strip_prefix("*.").unwrap_or(host).contains('*') {
        return Err(bad("host", "a name or address, as shop.example or *.shop.example"));
    }
    Ok(host.to_owned())
}

fn filter(ask: &Ask, explainer: &Explainer) -> Result<RequestFilter, Problem> {
    let (path, query) = match ask.path.as_deref().unwrap_or_default().split_once('?') {
        Some((path, query)) => (path, query),
        None => (ask.path.as_deref().unwrap_or_default(), ""),
    };
    if !(path.is_empty() || path.starts_with('/') || path == "*") {
        return Err(bad("path", "a path that begins with /; with * at its end all that begins so"));
    }
    let host = host(ask.host.as_deref())?;
    let headers = ask.headers.iter().cloned();
    let from = match &ask.from {
        Some(from) => {
            let snapshot = explainer.snapshot()?;
            spiffe_id(from, &snapshot)?.to_string()
        }
        None => String::new(),
    };
    Ok(RequestFilter {
        method: ask.method.clone().unwrap_or_default(),
        host,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers.map(|(name, value)| HeaderMatch { name, value }).collect(),
        from,
        present: Vec::new(),
    })
}

/// Waits for one hop of a request, then for the others, of all proxies or of one `only`. What has not ended by then is told as far as
/// it has come.
async fn wait(
    explainer: &Explainer,
    mut observing: Observing,
    (patience, only): (Duration, Option<String>),
) -> Result<Live, Problem> {
    let hub = explainer.plane.hub();
    let probe = observing.probe();
    let looking = || {
        let proxies = hub.proxies().into_iter();
        proxies.filter(|proxy| proxy.connected && proxy.probes.contains(&probe)).map(|proxy| proxy.node.id)
    };
    let first: Option<Observed> = tokio::time::timeout(patience, observing.next()).await.ok().flatten();
    let mut under_way = Vec::new();
    if first.is_none() {
        under_way = recorded::under_way(hub, Recall { probe, ..Recall::default() }).await;
    }
    let Some(first) = first.or_else(|| under_way.pop()) else {
        let detail =
            format!("none came within {patience:?} that matches; {} proxies looked", looking().count());
        return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "no such request")
            .detail(detail)
            .code(codes::NO_REQUEST_IN_TIME));
    };
    let mut gathered = Gathered::new(first);
    under_way.into_iter().for_each(|hop| gathered.add(hop));
    let rest = async {
        while !gathered.missing(&looking().collect()).is_empty() {
            match observing.next().await {
                Some(observed) => gathered.add(observed),
                None => return,
            }
        }
    };
    // A hop may be lost with its proxy: the others are told without it.
    let _ = tokio::time::timeout(GRACE, rest).await;
    // Of what has ended well nobody is asked once more, who might keep the answer waiting.
    if !gathered.has_ended_well() || !gathered.missing(&looking().collect()).is_empty() {
        let (trace, request) = gathered.ids();
        let of_it =
            Recall { trace_id: trace.unwrap_or_default(), request_id: request.unwrap_or_default(), probe };
        let mut under_way = recorded::under_way(hub, of_it).await;
        under_way.retain(|hop| only.as_ref().is_none_or(|only| hop.proxy.node.id == *only));
        gathered.join(under_way);
    }
    // What has ended since the proxies were asked.
    while let Ok(Some(observed)) = tokio::time::timeout(Duration::ZERO, observing.next()).await {
        gathered.add(observed);
    }
    let missing = gathered.missing(&looking().collect());
    let silent = hub.proxies().into_iter().filter(|proxy| {
        proxy.connected && !proxy.node.features.iter().any(|is| is == meshwork_messages::OBSERVE)
    });
    let (trace_id, request_id) = gathered.ids();
    Ok(Live {
        trace_id,
        request_id,
        missing,
        not_observing: silent.map(|proxy| proxy.node.id).collect(),
        hops: gathered.into_hops(),
    })
}
