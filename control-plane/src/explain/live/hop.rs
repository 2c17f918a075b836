//! One hop of the answer.

use std::time::Duration;

use meshwork_base::clock::rfc3339_millis;
use meshwork_messages::v1::{self, Attempt, Reason, RequestRecord, observation::Match, request_record::Side};
use meshwork_xds::server::Observed;
use serde::Serialize;

use super::gather::record;

/// What one proxy did with the request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hop {
    /// How many hops are before it.
    depth: usize,
    proxy: String,
    role: String,
    identity: Option<String>,
    /// `gateway`, `outbound`, `inbound`.
    side: &'static str,
    /// Why it belongs here: `filter`, `mark` of the proxy before, `trace`, `recorded`.
    matched: &'static str,
    /// Why the flight recorder has it: `failed`, `slow`, `sampled`, `recent`, `related`.
    kept: Option<String>,
    /// It has not ended: all this is how it is so far.
    under_way: bool,
    revision: String,
    /// When its first byte came.
    start: String,
    duration_ms: f64,
    time_to_first_byte_ms: Option<f64>,
    /// Of an inbound side: without the calls that the application made meanwhile.
    own_ms: Option<f64>,
    /// What such requests ordinarily take, all of it and without such calls. Absent: too few are known.
    usual_ms: Option<f64>,
    usual_own_ms: Option<f64>,
    request: Seen,
    verdict: Verdict,
    listener: Option<String>,
    route: Option<String>,
    rule: Option<String>,
    service: Option<String>,
    upstream: Option<String>,
    upstream_protocol: Option<String>,
    bytes_received: u64,
    bytes_sent: u64,
    /// What it waited for before it was sent to anybody.
    held: Vec<Held>,
    attempts: Vec<Tried>,
    steps: Vec<Step>,
    omitted: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    method: String,
    host: String,
    /// With its query.
    path: String,
    protocol: String,
    user_agent: String,
    request_id: Option<String>,
    trace_id: Option<String>,
    span_id: Option<String>,
    peer: Option<String>,
    from: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    /// `answered` by the upstream or by a redirect, `failed` here, `aborted` without a status, `underWay`: not yet.
    outcome: &'static str,
    status: Option<u32>,
    grpc_status: Option<u32>,
    cause: Option<String>,
    flag: Option<String>,
    /// Where it failed, or is.
    phase: Option<String>,
    detail: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    /// `discover`, `fault`, `overload`.
    phase: String,
    ms: f64,
    /// The policy, where one says so.
    by: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tried {
    endpoint: String,
    instance: Option<String>,
    spiffe_id: Option<String>,
    protocol: String,
    start_ms: f64,
    duration_ms: f64,
    /// Until a connection was ready.
    connect_ms: Option<f64>,
    /// Absent: the connection was made for this attempt.
    connection_age_ms: Option<f64>,
    bytes_sent: u64,
    bytes_received: u64,
    status: Option<u32>,
    cause: Option<String>,
    phase: Option<String>,
    detail: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    phase: String,
    subject: String,
    outcome: String,
    why: String,
}

fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(in crate::explain) fn millis(nanos: u64) -> f64 {
    (nanos / 1000) as f64 / 1000.0
}

impl Hop {
    pub(crate) fn new(hop: &Observed, depth: usize) -> Self {
        let (is, observation, proxy) = (record(hop), &hop.observation, &hop.proxy);
        Self {
            depth,
            proxy: proxy.node.id.clone(),
            role: proxy.node.role.clone(),
            identity: proxy.identity.as_ref().map(ToString::to_string),
            side: match is.side() {
                Side::Gateway => "gateway",
                Side::Outbound => "outbound",
                Side::Inbound => "inbound",
            },
            matched: match observation.r#match() {
                Match::Filter => "filter",
                Match::Mark => "mark",
                Match::Trace => "trace",
                Match::Recorded => "recorded",
            },
            kept: said(&is.kept),
            under_way: is.under_way,
            revision: is.revision.clone(),
            start: rfc3339_millis(Duration::from_nanos(is.start_unix_ns)),
            duration_ms: millis(is.duration_ns),
            time_to_first_byte_ms: is.time_to_first_byte_ns.map(millis),
            own_ms: is.own_ns.map(millis),
            usual_ms: is.usual_ns.map(millis),
            usual_own_ms: is.usual_own_ns.map(millis),
            request: Seen::new(is),
            verdict: Verdict::new(is),
            listener: said(&is.listener),
            route: said(&is.route),
            rule: said(&is.rule),
            service: said(&is.service),
            upstream: said(&is.upstream_id),
            upstream_protocol: said(&is.upstream_protocol),
            bytes_received: is.bytes_received,
            bytes_sent: is.bytes_sent,
            held: is.held.iter().map(Held::new).collect(),
            attempts: observation.attempts.iter().map(Tried::new).collect(),
            steps: observation.reasons.iter().map(Step::new).collect(),
            omitted: observation.omitted,
        }
    }
}

impl Seen {
    fn new(is: &RequestRecord) -> Self {
        Self {
            method: is.method.clone(),
            host: is.host.clone(),
            path: is.path.clone(),
            protocol: is.protocol.clone(),
            user_agent: is.user_agent.clone(),
            request_id: said(&is.request_id),
            trace_id: said(&is.trace_id),
            span_id: said(&is.span_id),
            peer: said(&is.peer),
            from: said(&is.peer_id),
        }
    }
}

impl Verdict {
    fn new(is: &RequestRecord) -> Self {
        Self {
            outcome: match (is.status, &*is.cause) {
                _ if is.under_way => "underWay",
                (0, _) => "aborted",
                (_, "") => "answered",
                _ => "failed",
            },
            status: (is.status != 0).then_some(is.status),
            grpc_status: is.grpc_status,
            cause: said(&is.cause),
            flag: said(&is.flag),
            phase: said(&is.phase),
            detail: said(&is.cause_detail),
        }
    }
}

impl Held {
    fn new(held: &v1::Held) -> Self {
        Self { phase: held.phase.clone(), ms: millis(held.ns), by: said(&held.by) }
    }
}

impl Tried {
    fn new(attempt: &Attempt) -> Self {
        Self {
            endpoint: attempt.endpoint.clone(),
            instance: said(&attempt.instance),
            spiffe_id: said(&attempt.spiffe_id),
            protocol: attempt.protocol.clone(),
            start_ms: millis(attempt.start_ns),
            duration_ms: millis(attempt.duration_ns),
            connect_ms: attempt.connect_ns.map(millis),
            connection_age_ms: attempt.connection_age_ns.map(millis),
            bytes_sent: attempt.bytes_sent,
            bytes_received: attempt.bytes_received,
            phase: said(&attempt.phase),
            status: (attempt.status != 0).then_some(attempt.status),
            cause: said(&attempt.cause),
            detail: said(&attempt.detail),
        }
    }
}

impl Step {
    fn new(reason: &Reason) -> Self {
        let Reason { phase, subject, outcome, why } = reason.clone();
        Self { phase, subject, outcome, why }
    }
}
