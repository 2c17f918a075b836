//! The engine's readers of foreign bytes, for the fuzz targets alone.

use meshwork_telemetry::{TraceContext, TraceId};

use crate::downstream::detect::{Detected, judge};
use crate::request::path;

/// Whether a connection that begins with these bytes speaks HTTP/2; `None` while they do not tell.
#[must_use]
pub fn is_http2(bytes: &[u8]) -> Option<bool> {
    judge(bytes).map(|found| found == Detected::Http2)
}

/// The normal form of a path; `None` when the path is in it.
#[must_use]
pub fn normal_path(path: &str) -> Option<String> {
    path::normal(path)
}

/// The trace id of a `traceparent`.
#[must_use]
pub fn trace_id(traceparent: &[u8]) -> Option<TraceId> {
    TraceContext::parse(traceparent).map(|context| context.trace_id)
}
