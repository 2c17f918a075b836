//! What is noted of a request that is recorded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Rng;

use super::context::{SpanId, TraceContext};
use crate::record::{Protocol, Record};

/// What is noted of a request that is recorded, beside its [`Record`](crate::Record).
#[derive(Clone, Debug)]
pub struct Traced {
    /// Our own span, in its trace.
    pub context: TraceContext,
    /// The caller's span.
    pub parent: Option<SpanId>,
    /// What `tracestate` said.
    pub state: String,
    /// The caller used TLS.
    pub https: bool,
    /// The path as the route has it that matched; empty when none did.
    pub route: String,
    /// What was tried.
    pub attempts: Vec<Attempt>,
    /// The span of the attempt that comes next.
    next: SpanId,
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its span.
    pub span: SpanId,
    /// When it began, since the Unix epoch.
    pub start: Duration,
    /// When it ended; absent: with the request.
    pub end: Option<Duration>,
    /// Where it went.
    pub address: SocketAddr,
    /// In which protocol.
    pub protocol: Protocol,
    /// The status that came back; 0: none.
    pub status: u16,
    /// Why none came back.
    pub cause: &'static str,
}

impl Traced {
    /// A request begins, in this trace.
    pub fn begin(
        trace: &TraceContext,
        parent: Option<SpanId>,
        state: String,
        https: bool,
        rng: &mut impl Rng,
    ) -> Self {
        Self {
            context: TraceContext { span_id: SpanId::random(rng), sampled: true, ..*trace },
            parent,
            state,
            https,
            route: String::new(),
            attempts: Vec::new(),
            next: SpanId::random(rng),
        }
    }

    /// What the upstream of the next attempt is told.
    #[must_use]
    pub const fn next(&self) -> TraceContext {
        TraceContext { span_id: self.next, ..self.context }
    }

    /// The next attempt is another one.
    pub fn renew(&mut self, rng: &mut impl Rng) {
        self.next = SpanId::random(rng);
    }

    /// An attempt that ran beside the last one is over.
    pub fn beside(&mut self, attempt: Attempt) {
        let at = self.attempts.len().saturating_sub(1);
        self.attempts.insert(at, attempt);
    }

    /// An attempt begins.
    pub fn attempt(&mut self, now: Duration, address: SocketAddr, protocol: Protocol) {
        let (span, cause) = (self.next, "");
        self.attempts.push(Attempt { span, start: now, end: None, address, protocol, status: 0, cause });
    }

    /// It has got a response's head, or has failed. What fails before an attempt begins changes no other one.
    pub fn attempted(&mut self, now: Duration, outcome: Result<u16, &'static str>) {
        let Some(last) = self.attempts.last_mut().filter(|last| last.end.is_none()) else { return };
        last.end = Some(now);
        match outcome {
            Ok(status) => last.status = status,
            Err(cause) => last.cause = cause,
        }
    }

    /// The response of the last attempt is the one that is passed on, so that it lasts until all is over.
    pub fn responded(&mut self) {
        if let Some(last) = self.attempts.last_mut() {
            last.end = None;
        }
    }
}

/// What is noted of a copy of a request that is recorded: it may last longer than that, and has a span of its own.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Its own span, in its trace.
    pub context: TraceContext,
    /// The span of the request.
    pub parent: SpanId,
    /// What `tracestate` said.
    pub state: String,
    /// The request's caller used TLS.
    pub https: bool,
    /// The request's method.
    pub method: Box<[u8]>,
    /// The request's host.
    pub host: Box<[u8]>,
    /// Where it goes, `namespace/name:port`.
    pub service: Arc<str>,
    /// How it went.
    pub attempt: Attempt,
}

impl Copied {
    /// A copy of this request begins.
    #[must_use]
    pub fn begin(of: &Traced, span: SpanId, record: &Record, service: Arc<str>) -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let (start, protocol) = (record.start, Protocol::default());
        Self {
            context: TraceContext { span_id: span, ..of.context },
            parent: of.context.span_id,
            state: of.state.clone(),
            https: of.https,
            method: record.text.method().into(),
            host: record.text.host().into(),
            service,
            attempt: Attempt { span, start, end: None, address: nowhere, protocol, status: 0, cause: "" },
        }
    }
}
