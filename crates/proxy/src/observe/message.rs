//! Records and attempts as they are sent to the control plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1::{self, request_record::Side};
use meshwork_telemetry::Record;

use crate::mesh::Place;
use crate::request::tried::{Held, Tried};
use crate::usual::Timing;

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The record as it is sent.
pub(crate) fn record(place: Place, record: &Record) -> v1::RequestRecord {
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
        span_id: record.span_id.map(|id| id.to_string()).unwrap_or_default(),
        protocol: record.protocol.as_str().to_owned(),
        upstream_protocol: record.upstream_protocol.map(|is| is.as_str().to_owned()).unwrap_or_default(),
        status: record.status.into(),
        grpc_status: record.grpc_status.map(u32::from),
        flag: record.flag.to_owned(),
        cause: record.cause.to_owned(),
        cause_detail: name(&record.cause_detail),
        phase: if record.cause.is_empty() { String::new() } else { record.phase.as_str().to_owned() },
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
        kept: String::new(),
        mirrored: record.mirrored,
        mirrors: record.mirrors.into(),
        own_ns: None,
        usual_ns: None,
        usual_own_ns: None,
        held: Vec::new(),
        under_way: false,
        owed: false,
        unread: false,
        open: false,
    }
}

/// Adds what the request has waited for before it was sent to anybody.
pub(crate) fn held(held: &[Held], record: &mut v1::RequestRecord) {
    let told = |held: &Held| v1::Held {
        phase: held.phase.as_str().to_owned(),
        ns: nanos(held.took),
        by: held.by.as_deref().unwrap_or_default().to_owned(),
    };
    record.held = held.iter().map(told).collect();
}

/// Adds what a request took of its application alone, and what such requests take, as far as that is known.
pub(crate) fn timing(timing: &Timing, record: &mut v1::RequestRecord) {
    record.own_ns = timing.own.map(nanos);
    record.usual_ns = timing.usual.map(|usual| nanos(usual.whole));
    record.usual_own_ns = timing.usual.and_then(|usual| usual.own).map(nanos);
}

/// An attempt as it is sent.
pub(crate) fn attempt(tried: &Tried) -> v1::Attempt {
    v1::Attempt {
        start_ns: nanos(tried.start),
        duration_ns: nanos(tried.took),
        endpoint: tried.address.to_string(),
        instance: tried.instance.as_deref().unwrap_or_default().to_owned(),
        spiffe_id: tried.spiffe_id.as_deref().unwrap_or_default().to_owned(),
        protocol: tried.protocol.as_str().to_owned(),
        status: tried.status.into(),
        cause: tried.cause.to_owned(),
        detail: tried.detail.as_deref().unwrap_or_default().to_owned(),
        connect_ns: tried.connect.map(nanos),
        connection_age_ns: tried.age.map(nanos),
        phase: if tried.cause.is_empty() { String::new() } else { tried.phase.as_str().to_owned() },
        bytes_sent: tried.sent,
        bytes_received: tried.received,
    }
}
