//! The engine's readers of foreign bytes, for the fuzz targets alone.

use meshwork_telemetry::{TraceContext, TraceId};

use crate::downstream::detect::{Detected, judge};
use crate::downstream::guard;
use crate::stream::outbound::{self, Inside};

/// Whether a connection that begins with these bytes speaks HTTP/2; `None` while they do not tell.
#[must_use]
pub fn is_http2(bytes: &[u8]) -> Option<bool> {
    judge(bytes).map(|found| found == Detected::Http2)
}

/// What is inside a tunnel that begins with these bytes, HTTP/1, HTTP/2 or neither; `None` while they do not tell.
#[must_use]
pub fn inside(bytes: &[u8]) -> Option<&'static str> {
    outbound::judge(bytes).map(|found| match found {
        Inside::Http1 => "http1",
        Inside::Http2 => "http2",
        Inside::Opaque => "opaque",
    })
}

/// The normal form of a path; `None` when the path is in it.
#[must_use]
pub fn normal_path(path: &str) -> Option<String> {
    meshwork_decision::normal_path(path)
}

/// The trace id of a `traceparent`.
#[must_use]
pub fn trace_id(traceparent: &[u8]) -> Option<TraceId> {
    TraceContext::parse(traceparent).map(|context| context.trace_id)
}

/// What a caller's frames of HTTP/2 are refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameFault {
    /// How many of the bytes were passed on before.
    pub kept: usize,
    /// Its name.
    pub cause: &'static str,
}

/// Judges the bytes of a caller of HTTP/2, preface included, as they come in portions of this length, in no time.
#[must_use]
pub fn judge_frames(bytes: &[u8], portion: usize) -> Option<FrameFault> {
    guard::judge_portions(bytes, portion).map(|(kept, fault)| FrameFault { kept, cause: fault.cause })
}
