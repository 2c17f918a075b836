//! A request that a probe found, on its way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Endpoint, Reason, Reasons};
use meshwork_messages::v1::{self, observation::Match, request_record::Side};
use meshwork_telemetry::{Protocol, Record};

use super::Armed;
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::mesh::Place;

/// So many roads not taken are told: a gateway may have thousands of routes.
const SKIPPED: usize = 50;
/// Reasons of one request in all.
const REASONS: usize = 500;

/// See the module's text.
pub(crate) struct Sighting {
    probe: Arc<Armed>,
    how: Match,
    began: Tick,
    told: Told,
    attempts: Vec<v1::Attempt>,
    attempt: Option<Tick>,
}

/// The reasons that decisions give, as they are sent.
#[derive(Default)]
pub(crate) struct Told {
    reasons: Vec<v1::Reason>,
    skipped: usize,
    omitted: u32,
}

impl Told {
    /// One step that a phase itself takes.
    pub(crate) fn tell(
        &mut self,
        phase: &str,
        subject: impl Into<String>,
        outcome: &str,
        why: impl Into<String>,
    ) {
        self.skipped += usize::from(outcome == "skipped");
        if self.reasons.len() >= REASONS || (outcome == "skipped" && self.skipped > SKIPPED) {
            self.omitted += 1;
            return;
        }
        self.reasons.push(v1::Reason {
            phase: phase.to_owned(),
            subject: subject.into(),
            outcome: outcome.to_owned(),
            why: why.into(),
        });
    }
}

impl Reasons for Told {
    fn note(&mut self, reason: impl FnOnce() -> Reason) {
        let Reason { phase, subject, outcome, why } = reason();
        self.tell(phase.as_str(), subject, outcome.as_str(), why);
    }

    fn notes<I: IntoIterator<Item = Reason>>(&mut self, reasons: impl FnOnce() -> I) {
        for reason in reasons() {
            self.note(|| reason);
        }
    }
}

impl Sighting {
    pub(super) fn new(probe: Arc<Armed>, how: Match, began: Tick) -> Self {
        Self { probe, how, began, told: Told::default(), attempts: Vec::new(), attempt: None }
    }

    /// Who takes the reasons, where the probe wants them.
    pub(crate) fn told(&mut self) -> Option<&mut Told> {
        self.probe.reasons.then_some(&mut self.told)
    }

    /// What the next proxy of the mesh is told.
    pub(crate) fn mark(&self) -> String {
        format!("{:016x}", self.probe.id)
    }

    /// An attempt begins.
    pub(crate) fn attempt(
        &mut self,
        address: SocketAddr,
        endpoint: Option<&Arc<Endpoint>>,
        protocol: Protocol,
        now: Tick,
    ) {
        self.attempt = Some(now);
        self.attempts.push(v1::Attempt {
            start_ns: nanos(now.since(self.began)),
            endpoint: address.to_string(),
            instance: endpoint.map(|endpoint| endpoint.instance.to_string()).unwrap_or_default(),
            spiffe_id: endpoint
                .and_then(|endpoint| endpoint.spiffe_id())
                .map(ToString::to_string)
                .unwrap_or_default(),
            protocol: protocol.as_str().to_owned(),
            ..v1::Attempt::default()
        });
    }

    /// The attempt that runs, if one does, has got a response's head, or has failed.
    pub(crate) fn attempted(&mut self, outcome: Result<u16, &Failure>, now: Tick) {
        let (Some(began), Some(attempt)) = (self.attempt.take(), self.attempts.last_mut()) else { return };
        attempt.duration_ns = nanos(now.since(began));
        match outcome {
            Ok(status) => attempt.status = status.into(),
            Err(failure) => {
                attempt.cause = failure.cause.as_str().to_owned();
                attempt.detail = failure.detail.as_deref().unwrap_or_default().to_owned();
            }
        }
    }

    /// The request has ended.
    #[cold]
    pub(crate) fn report(self, conn: &Conn, record: &Record) {
        let observer = &conn.worker.shared.observer;
        observer.send(v1::Observation {
            probe: self.probe.id,
            r#match: self.how.into(),
            record: Some(message(conn.place, record)),
            reasons: self.told.reasons,
            omitted: self.told.omitted,
            attempts: self.attempts,
            dropped: 0,
        });
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The record as it is sent.
fn message(place: Place, record: &Record) -> v1::RequestRecord {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = |name: &Option<Arc<str>>| name.as_deref().unwrap_or_default().to_owned();
    let address = |address: Option<SocketAddr>| address.map(|is| is.to_string()).unwrap_or_default();
    let side = match place {
        Place::Gateway(_) => Side::Gateway,
        Place::Outbound(_) => Side::Outbound,
        Place::Inbound(_) | Place::Hbone(_) => Side::Inbound,
    };
    v1::RequestRecord {
        side: side.into(),
        start_unix_ns: nanos(record.start),
        duration_ns: nanos(record.duration),
        time_to_first_byte_ns: record.time_to_first_byte.map(nanos),
        method: text(record.text.method()),
        path: text(record.text.path()),
        host: text(record.text.host()),
        user_agent: text(record.text.user_agent()),
        request_id: text(record.text.request_id()),
        trace_id: record.trace_id.map(|id| id.to_string()).unwrap_or_default(),
        protocol: record.protocol.as_str().to_owned(),
        upstream_protocol: record.upstream_protocol.map(|is| is.as_str().to_owned()).unwrap_or_default(),
        status: record.status.into(),
        grpc_status: record.grpc_status.map(u32::from),
        flag: record.flag.to_owned(),
        cause: record.cause.to_owned(),
        cause_detail: name(&record.cause_detail),
        listener: name(&record.listener),
        route: name(&record.route),
        rule: name(&record.rule),
        service: name(&record.service),
        endpoint: address(record.endpoint),
        attempts: record.attempts,
        bytes_received: record.bytes_received,
        bytes_sent: record.bytes_sent,
        peer: address(record.peer),
        peer_id: name(&record.peer_id),
        upstream_id: name(&record.upstream_id),
        revision: name(&record.revision),
    }
}
