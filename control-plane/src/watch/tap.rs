//! Requests as they end, one line of JSON each, until the reader goes away.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use meshwork_base::{Clock, Rng as _, ThreadRng, Tick};
use meshwork_messages::v1::{Outcome, Probe, RequestFilter, request_filter::HeaderMatch};
use meshwork_process::{Problem, parse_duration};
use meshwork_xds::server::Observing;
use serde::{Deserialize, Serialize};

use crate::explain::{Hop, body_of, connected, host, probe};
use crate::{ControlPlane, codes};

/// How long a tap stays where nothing is said, and at most.
const LASTS: Duration = Duration::from_secs(3600);
const LASTS_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a reader to whom nothing else is told hears what was lost.
const TELL_LOST: Duration = Duration::from_secs(1);

/// The body of `POST /v1/tap`. What is absent takes every request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ask {
    /// The service that is called, `NAMESPACE/NAME`, or a name in any namespace.
    service: Option<String>,
    /// The namespace of the service that is called.
    namespace: Option<String>,
    /// The only proxy that looks.
    proxy: Option<String>,
    host: Option<String>,
    method: Option<String>,
    /// All paths that begin so.
    path_prefix: Option<String>,
    /// `5` or `5xx`.
    status: Option<String>,
    /// As `250ms`.
    min_duration: Option<String>,
    #[serde(default)]
    failed: bool,
    /// Fields that must be there.
    #[serde(default)]
    present: Vec<String>,
    /// Fields and their values.
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// As `30s`; absent: an hour.
    timeout: Option<String>,
}

/// One line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", untagged)]
enum Line {
    Request(Box<Hop>),
    /// So many were lost since the last line that says so: by this proxy, or on the way to the reader.
    Lost {
        lost: u64,
        proxy: Option<String>,
    },
}

pub(super) async fn tap(State(plane): State<ControlPlane>, body: Bytes) -> Result<Response, Problem> {
    let ask: Ask = body_of(&body)?;
    let lasts = time("timeout", ask.timeout.as_deref())?.unwrap_or(LASTS);
    if lasts > LASTS_MAX {
        return Err(bad("timeout", "at most a day, 24h"));
    }
    let hub = plane.hub();
    if let Some(wanted) = &ask.proxy {
        connected(hub, wanted)?;
    }
    let probe = Probe {
        id: ThreadRng::new().next_u64(),
        filter: Some(filter(&ask)?),
        lasts_ms: u32::try_from(lasts.as_millis()).expect("a day in milliseconds"),
        tap: Some(outcome(&ask)?),
        ..Probe::default()
    };
    let observing = probe::observe(hub, probe, ask.proxy)?;
    let clock = hub.clock();
    let ends = clock.now().after(lasts);
    let lines = futures_util::stream::unfold(Reading { observing, clock, ends }, next);
    Response::builder()
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(Body::from_stream(lines))
        .map_err(|error| {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "no answer").detail(error.to_string())
        })
}

struct Reading {
    observing: Observing,
    clock: Arc<dyn Clock>,
    ends: Tick,
}

/// The lines that are there; the reader's own pace is what they are asked for with.
async fn next(mut reading: Reading) -> Option<(Result<Bytes, Infallible>, Reading)> {
    loop {
        let left = reading.ends.since(reading.clock.now());
        if left.is_zero() {
            return None;
        }
        let waited = tokio::time::timeout(left.min(TELL_LOST), reading.observing.next()).await;
        let mut lines = Vec::new();
        let lost = reading.observing.lost();
        if lost > 0 {
            lines.push(Line::Lost { lost, proxy: None });
        }
        match waited {
            Ok(None) => return None,
            Ok(Some(observed)) => {
                let dropped = observed.observation.dropped;
                if dropped > 0 {
                    lines.push(Line::Lost { lost: dropped, proxy: Some(observed.proxy.node.id.clone()) });
                }
                if observed.observation.record.is_some() {
                    lines.push(Line::Request(Box::new(Hop::new(&observed, 0))));
                }
            }
            Err(_) => {}
        }
        if !lines.is_empty() {
            let mut text = Vec::new();
            for line in &lines {
                text.extend(serde_json::to_vec(line).expect("lines have text keys"));
                text.push(b'\n');
            }
            return Some((Ok(text.into()), reading));
        }
    }
}

fn time(name: &str, text: Option<&str>) -> Result<Option<Duration>, Problem> {
    text.map(parse_duration).transpose().map_err(|why| bad(name, &why))
}

fn bad(name: &str, right: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "the question cannot be understood")
        .detail(format!("{name}: {right}"))
        .code(codes::BAD_BODY)
}

fn filter(ask: &Ask) -> Result<RequestFilter, Problem> {
    if ask.path_prefix.as_deref().is_some_and(|prefix| !prefix.starts_with('/') || prefix.contains('?')) {
        return Err(bad("pathPrefix", "a path that begins with /, without a query"));
    }
    let header = |(name, value): &(String, String)| HeaderMatch { name: name.clone(), value: value.clone() };
    Ok(RequestFilter {
        method: ask.method.clone().unwrap_or_default(),
        host: host(ask.host.as_deref())?,
        path: ask.path_prefix.as_ref().map(|prefix| format!("{prefix}*")).unwrap_or_default(),
        headers: ask.headers.iter().map(header).collect(),
        present: ask.present.clone(),
        ..RequestFilter::default()
    })
}

fn outcome(ask: &Ask) -> Result<Outcome, Problem> {
    let class = match ask.status.as_deref() {
        None => 0,
        Some(text) => match text.strip_suffix("xx").unwrap_or(text).parse() {
            Ok(class @ 1..=5) => class,
            _ => return Err(bad("status", "a class, as 5xx")),
        },
    };
    let least = time("minDuration", ask.min_duration.as_deref())?.unwrap_or_default();
    Ok(Outcome {
        service: ask.service.clone().unwrap_or_default(),
        namespace: ask.namespace.clone().unwrap_or_default(),
        status_class: class,
        min_duration_ns: u64::try_from(least.as_nanos()).unwrap_or(u64::MAX),
        failed: ask.failed,
    })
}
