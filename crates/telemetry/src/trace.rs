//! Traces: which one a request belongs to, which of them are recorded, and the way of spans to a collector.

mod context;
mod export;
mod sampler;
mod spans;
mod state;
mod traced;

pub use context::{SpanId, TraceContext};
pub use export::{TraceError, TraceResource, Tracer};
pub use sampler::{Sampler, SamplerError};
pub use state::trace_state;
pub use traced::{Attempt, Copied, Traced};
