//! A finished request as spans: one of the server, one of a client for each attempt, by OpenTelemetry's semantic
//! conventions for HTTP. What they have no name for begins with `meshwork.`, then as the access log names it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::context::{SpanId, TraceContext};
use super::traced::{Attempt, Copied, Traced};
use crate::record::{Protocol, Record};

/// Methods that the conventions know; others are `_OTHER`.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "QUERY"];

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    /// Leaves out what is empty.
    fn text(&mut self, key: &'static str, text: &str) {
        if !text.is_empty() {
            self.0.push(KeyValue::new(key, text.to_owned()));
        }
    }

    fn own(&mut self, key: &'static str, text: Option<&Arc<str>>) {
        if let Some(text) = text {
            self.0.push(KeyValue::new(key, Value::from(Arc::clone(text))));
        }
    }

    /// Leaves out zero.
    fn number(&mut self, key: &'static str, number: impl TryInto<i64>) {
        let number = number.try_into().unwrap_or(i64::MAX);
        if number != 0 {
            self.0.push(KeyValue::new(key, number));
        }
    }

    fn protocol(&mut self, protocol: Protocol) {
        self.text("network.protocol.version", protocol.as_str().trim_start_matches("HTTP/"));
    }

    /// The method as the conventions have it; gives the name of the span.
    fn method(&mut self, method: &[u8]) -> String {
        let text = String::from_utf8_lossy(method);
        if METHODS.contains(&&*text) {
            self.text("http.request.method", &text);
            return text.into_owned();
        }
        self.text("http.request.method", "_OTHER");
        self.text("http.request.method_original", &text);
        "HTTP".to_owned()
    }

    fn server(&mut self, host: &[u8], https: bool) {
        let host = String::from_utf8_lossy(host);
        if host.is_empty() {
            return;
        }
        let port = host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?)));
        let (name, port) = port.unwrap_or((&host, if https { 443 } else { 80 }));
        self.text("server.address", name.trim_start_matches('[').trim_end_matches(']'));
        self.number("server.port", port);
    }

    /// What is said of every attempt; `end`: where it has none of its own.
    fn attempt(mut self, name: String, attempt: &Attempt, cause: &'static str, end: Duration) -> Part {
        self.protocol(attempt.protocol);
        if attempt.address.port() != 0 {
            self.text("network.peer.address", &attempt.address.ip().to_string());
            self.number("network.peer.port", attempt.address.port());
        }
        self.number("http.response.status_code", attempt.status);
        self.text("meshwork.cause", cause);
        let status = self.status(attempt.status, 400, cause);
        let end = attempt.end.unwrap_or(end);
        Part { kind: SpanKind::Client, name, start: attempt.start, end, attributes: self, status }
    }

    /// `error.type`, and the status that goes with it; it is left open where nothing failed. Statuses from here on are
    /// errors, and so is a response that did not come, or was cut off.
    fn status(&mut self, status: u16, errors_from: u16, cause: &'static str) -> Status {
        let cut_off = status < 400 && !cause.is_empty();
        if status < errors_from && !cut_off {
            return Status::Unset;
        }
        if cause.is_empty() {
            self.0.push(KeyValue::new("error.type", status.to_string()));
        } else {
            self.text("error.type", cause);
        }
        Status::error(cause)
    }
}

/// All spans of a request, the server's first.
pub(super) fn of(traced: &Traced, record: &Record, scope: &InstrumentationScope) -> Vec<SpanData> {
    let state: TraceState = traced.state.parse().unwrap_or_default();
    let span = |id: SpanId, parent: Option<SpanId>, part: Part| {
        part.span(&TraceContext { span_id: id, ..traced.context }, parent, state.clone(), scope)
    };
    let own = traced.context.span_id;
    let mut spans = Vec::with_capacity(1 + traced.attempts.len());
    spans.push(span(own, traced.parent, server(traced, record)));
    for (number, attempt) in (1..).zip(&traced.attempts) {
        spans.push(span(attempt.span, Some(own), client(traced, record, attempt, number)));
    }
    spans
}

/// The span of a copy.
pub(super) fn of_copy(copied: &Copied, scope: &InstrumentationScope) -> SpanData {
    let mut attributes = Attributes::default();
    let name = attributes.method(&copied.method);
    attributes.server(&copied.host, copied.https);
    attributes.own("meshwork.upstream_cluster", Some(&copied.service));
    attributes.0.push(KeyValue::new("meshwork.mirror", true));
    let part = attributes.attempt(name, &copied.attempt, copied.attempt.cause, copied.attempt.start);
    part.span(&copied.context, Some(copied.parent), copied.state.parse().unwrap_or_default(), scope)
}

fn span_id(id: SpanId) -> opentelemetry::SpanId {
    opentelemetry::SpanId::from_bytes(*id.as_bytes())
}

impl Part {
    fn span(
        self,
        own: &TraceContext,
        parent: Option<SpanId>,
        state: TraceState,
        scope: &InstrumentationScope,
    ) -> SpanData {
        let trace = opentelemetry::TraceId::from_bytes(*own.trace_id.as_bytes());
        SpanData {
            span_context: SpanContext::new(trace, span_id(own.span_id), TraceFlags::SAMPLED, false, state),
            parent_span_id: parent.map_or(opentelemetry::SpanId::INVALID, span_id),
            parent_span_is_remote: parent.is_some() && self.kind == SpanKind::Server,
            span_kind: self.kind,
            name: self.name.into(),
            start_time: SystemTime::UNIX_EPOCH + self.start,
            end_time: SystemTime::UNIX_EPOCH + self.end.max(self.start),
            attributes: self.attributes.0,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: self.status,
            instrumentation_scope: scope.clone(),
        }
    }
}

struct Part {
    kind: SpanKind,
    name: String,
    start: Duration,
    end: Duration,
    attributes: Attributes,
    status: Status,
}

fn server(traced: &Traced, record: &Record) -> Part {
    let mut attributes = Attributes::default();
    let text = &record.text;
    let mut name = attributes.method(text.method());
    if !traced.route.is_empty() {
        name = format!("{name} {}", traced.route);
        attributes.text("http.route", &traced.route);
    }
    let path = String::from_utf8_lossy(text.path());
    // The query may hold what is nobody else's business.
    attributes.text("url.path", path.split('?').next().unwrap_or_default());
    attributes.text("url.scheme", if traced.https { "https" } else { "http" });
    attributes.server(text.host(), traced.https);
    attributes.protocol(record.protocol);
    attributes.text("user_agent.original", &String::from_utf8_lossy(text.user_agent()));
    if let Some(peer) = record.peer {
        attributes.text("network.peer.address", &peer.ip().to_string());
        attributes.number("network.peer.port", peer.port());
    }
    attributes.number("http.request.body.size", record.bytes_received);
    attributes.number("http.response.body.size", record.bytes_sent);
    attributes.number("http.response.status_code", record.status);
    attributes.text("meshwork.response_flags", record.flag);
    attributes.text("meshwork.cause", record.cause);
    attributes.own("meshwork.cause_detail", record.cause_detail.as_ref());
    attributes.own("meshwork.listener", record.listener.as_ref());
    attributes.own("meshwork.route_name", record.route.as_ref());
    attributes.own("meshwork.rule", record.rule.as_ref());
    attributes.own("meshwork.upstream_cluster", record.service.as_ref());
    attributes.own("meshwork.downstream_peer_id", record.peer_id.as_ref());
    attributes.own("meshwork.revision", record.revision.as_ref());
    attributes.text("meshwork.request_id", &String::from_utf8_lossy(text.request_id()));
    attributes.number("meshwork.attempts", record.attempts);
    attributes.number("meshwork.mirrors", record.mirrors);
    if record.mirrored {
        attributes.0.push(KeyValue::new("meshwork.mirrored", true));
    }
    // To a server the caller's mistake is none of its own.
    let status = attributes.status(record.status, 500, record.cause);
    let end = record.start + record.duration;
    Part { kind: SpanKind::Server, name, start: record.start, end, attributes, status }
}

fn client(traced: &Traced, record: &Record, attempt: &Attempt, number: u32) -> Part {
    let mut attributes = Attributes::default();
    let name = attributes.method(record.text.method());
    attributes.server(record.text.host(), traced.https);
    attributes.number("http.request.resend_count", number - 1);
    attributes.number("meshwork.attempt", number);
    attributes.own("meshwork.upstream_cluster", record.service.as_ref());
    // What went wrong while an attempt lasted went wrong with it, too.
    let cause = if attempt.end.is_none() { record.cause } else { attempt.cause };
    attributes.attempt(name, attempt, cause, record.start + record.duration)
}

#[cfg(test)]
mod tests;
