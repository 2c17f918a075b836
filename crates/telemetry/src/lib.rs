//! What a process tells about itself: one [`Record`] per request, the access log written from it, the metrics
//! counted from it, and the process log.
//!
//! ```text
//!                            ┌─► AccessLogWriter (per worker) ──buffer──► one writer thread ──► stdout or file
//! proxy: Record, when the    │
//! last byte is gone ─────────┤
//!                            ├─► Tracer, of what is sampled ──queue──► one task ──OTLP──► collector
//!                            └─► RequestSeries (per worker) ──cells──► MetricsRegistry ──► text, summed at scrape
//! ```
//!
//! A worker writes only to what it alone owns: metric cells are its own and are summed when somebody scrapes, log
//! lines go into its own buffer which one thread empties. So do those of the process log, whoever has them. Every metric and every field of the access log is named
//! once, in [`inventory`].

pub mod access_log;
mod hex;
pub mod inventory;
mod lines;
pub mod logging;
pub mod metrics;
pub mod record;
mod seldom;
pub mod trace;

pub use access_log::{AccessLogError, AccessLogSink, AccessLogTarget, AccessLogWriter};
pub use logging::{LogFormat, LogHandle, LoggingError, flush_log, init_logging};
pub use metrics::{
    Counter, DEFAULT_MAX_SERIES, Durations, Format, Gauge, MetricsRegistry, RequestLabels, RequestSeries,
    Samples, ServiceTally, StreamSeries, WorkerCounter, WorkerGauge, WorkerMetrics,
};
pub use record::{Phase, Protocol, Record, RequestText, TraceId, grpc_name, is_grpc_failure};
pub use seldom::Seldom;
pub use trace::{Copied, Sampler, SpanId, TraceContext, TraceResource, Traced, Tracer};
