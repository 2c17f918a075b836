//! `POST /v1/explain/recorded`: a request by its trace or request id, from what the flight recorders of all proxies have
//! kept, and from what they have under way; whose fault it was, and what could be changed.
//!
//! ```text
//! id ──Recall──▶ proxies ──Observations, done──▶ hops ──gather.rs──▶ in order ──blame.rs──▶ service ──advice.rs──▶ what to do
//!       ▲                                         │
//!       └────────── ids that they name ───────────┘
//! ```

mod advice;
mod blame;
mod decided;
mod ended;
mod pieces;
mod side;
#[cfg(test)]
mod tests;
mod under_way;
mod unusual;
mod waits;

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use meshwork_base::clock::rfc3339_millis;
use meshwork_messages::v1::{Done, Probe, Recall};
use meshwork_process::Problem;
use meshwork_telemetry::TraceId;
use meshwork_xds::server::{Hub, Observed, Proxy};
use serde::{Deserialize, Serialize};

use super::ask::bad;
use super::live::{Gathered, Hop, record};
use super::{Explainer, body_of, probe};
use crate::codes;
use advice::Advice;
use blame::Blame;
use under_way::is_under_way;

/// How long proxies may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often ids that answers name are asked for in turn: an application passes on one of the two, seldom neither.
const ROUNDS: usize = 4;
/// Characters of an id; proxies keep fewer.
const ID: usize = 1024;

/// The body of `POST /v1/explain/recorded`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ask {
    /// A trace id, or a request id.
    id: String,
}

/// The answer: JSON in camelCase, to which keys are only ever added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Recorded {
    trace_id: Option<String>,
    request_id: Option<String>,
    /// In the order of the request's way.
    hops: Vec<Hop>,
    /// Whose fault it was, or where the time went; none of a request that went well.
    fault: Option<Blame>,
    /// For whom a request is waited that is under way, where nothing of it has failed or takes longer than it ordinarily does.
    waits: Option<Blame>,
    suggestions: Vec<Advice>,
    /// Connected proxies that have not answered.
    silent: Vec<String>,
    /// Connected proxies whose version keeps nothing.
    not_recording: Vec<String>,
    /// Those whose version keeps what has ended, and tells nothing of what has not.
    not_telling_under_way: Vec<String>,
}

pub(super) async fn explain(
    State(explainer): State<Explainer>,
    body: Bytes,
) -> Result<Json<Recorded>, Problem> {
    let ask: Ask = body_of(&body)?;
    let id = ask.id.trim();
    if id.is_empty() || id.len() > ID {
        return Err(bad("id", "a trace id (32 hexadecimal digits) or a request id"));
    }
    let heard = ask_proxies(explainer.plane.hub(), id).await?;
    if heard.hops.is_empty() {
        return Err(heard.nothing(id));
    }
    let (silent, not_recording) = (heard.silent, heard.not_recording);
    let not_telling_under_way = of_ended_alone(explainer.plane.hub().proxies());
    let gathered = Gathered::of(heard.hops);
    let found = blame::blame(gathered.hops(), &gathered.parents());
    let (fault, waits) =
        found.map_or((None, None), |is| if is.is_fault { (Some(is), None) } else { (None, Some(is)) });
    let suggestions = advice::of(&explainer, gathered.hops(), fault.as_ref());
    let (trace_id, request_id) = gathered.ids();
    let hops = gathered.into_hops();
    Ok(Json(Recorded {
        trace_id,
        request_id,
        hops,
        fault,
        waits,
        suggestions,
        silent,
        not_recording,
        not_telling_under_way,
    }))
}

/// Who of the connected proxies can be asked for what has ended, and for nothing else.
fn of_ended_alone(proxies: Vec<Proxy>) -> Vec<String> {
    let connected = proxies.into_iter().filter(|proxy| proxy.connected);
    let old = connected.filter(|proxy| probe::records(proxy) && !probe::tells_under_way(proxy));
    old.map(|proxy| proxy.node.id).collect()
}

/// What proxies have told.
#[derive(Default)]
struct Heard {
    hops: Vec<Observed>,
    silent: Vec<String>,
    not_recording: Vec<String>,
    /// How many have answered, and the youngest of the times since which they have all failures.
    answered: usize,
    since: Duration,
}

impl Heard {
    fn add(&mut self, hop: Observed) {
        let key = |hop: &Observed| {
            let record = record(hop);
            (hop.proxy.node.id.clone(), record.side, record.start_unix_ns, record.request_id.clone())
        };
        let took = |hop: &Observed| record(hop).duration_ns;
        // What was under way has lasted longer when it is told again, or has ended meanwhile.
        let is_again = |known: &&mut Observed| {
            let lasts = is_under_way(known) || is_under_way(&hop);
            (lasts || took(known) == took(&hop)) && key(known) == key(&hop)
        };
        match self.hops.iter_mut().find(is_again) {
            Some(known) if is_under_way(known) => *known = hop,
            Some(_) => {}
            None => self.hops.push(hop),
        }
    }

    /// Nobody has it: what to do.
    fn nothing(&self, id: &str) -> Problem {
        let mut detail =
            format!("none of {} proxies has kept a request with trace or request id `{id}`", self.answered);
        if self.answered == 0 {
            "no proxy is connected that keeps requests".clone_into(&mut detail);
        }
        if !self.since.is_zero() {
            detail += &format!(
                "; the oldest failure that one of them still has is of {}",
                rfc3339_millis(self.since)
            );
        }
        if !self.silent.is_empty() {
            detail += &format!("; no answer came from {}", self.silent.join(", "));
        }
        detail += ". Failed and slow requests are kept, and a sample of the rest: send it again while \
                   `meshwork explain --live` waits, or see --flight-recorder-slow, -sample and -bytes of the proxies";
        Problem::new(StatusCode::NOT_FOUND, "no such request is kept")
            .detail(detail)
            .code(codes::NOT_RECORDED)
    }
}

/// Asks all proxies, and again for the ids that their answers name.
async fn ask_proxies(hub: &Hub, id: &str) -> Result<Heard, Problem> {
    let lower = id.to_ascii_lowercase();
    let trace = TraceId::parse(lower.as_bytes()).map(|_| lower).unwrap_or_default();
    let mut heard = Heard::default();
    let mut asked = BTreeSet::from([String::new(), trace.clone(), id.to_owned()]);
    let mut recall = Recall { trace_id: trace, request_id: id.to_owned(), ..Recall::default() };
    for _ in 0..ROUNDS {
        ask_once(hub, recall, &mut heard).await?;
        let new = |ids: fn(&Observed) -> &String| {
            heard.hops.iter().map(ids).find(|id| !asked.contains(*id)).cloned().unwrap_or_default()
        };
        let next = Recall {
            trace_id: new(|hop| &record(hop).trace_id),
            request_id: new(|hop| &record(hop).request_id),
            ..Recall::default()
        };
        if next == Recall::default() {
            break;
        }
        asked.extend([next.trace_id.clone(), next.request_id.clone()]);
        recall = next;
    }
    Ok(heard)
}

/// What proxies have under way of these requests, as far as they can be asked.
pub(super) async fn under_way(hub: &Hub, recall: Recall) -> Vec<Observed> {
    let mut heard = Heard::default();
    // When as many ask as may, what has ended is told without.
    let _ = ask_once(hub, recall, &mut heard).await;
    heard.hops.retain(is_under_way);
    heard.hops
}

async fn ask_once(hub: &Hub, recall: Recall, heard: &mut Heard) -> Result<(), Problem> {
    let question = Probe { recall: Some(recall), ..Probe::default() };
    let who = probe::all(hub, question, PATIENCE, probe::records, |observed| {
        let done = observed.observation.done;
        match &done {
            Some(Done { oldest_unix_ns, .. }) => {
                heard.since = heard.since.max(Duration::from_nanos(*oldest_unix_ns));
            }
            None => heard.add(observed),
        }
        done.is_some()
    })
    .await?;
    heard.answered = who.answered.len();
    heard.silent = who.silent.into_iter().collect();
    heard.not_recording = who.unable.into_iter().collect();
    Ok(())
}
