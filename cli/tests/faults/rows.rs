//! The faults that are injected, and what each must come to: the table that `docs/guides/faults.md` shows. Those of the
//! mesh are injected in `crates/proxy/tests/faults.rs`, between proxies with identities of their own.

#![allow(unreachable_pub, unused_imports, missing_docs, reason = "two test targets use it")]

#[path = "elsewhere.rs"]
mod elsewhere;
#[path = "policies.rs"]
mod policies;
#[path = "requests.rs"]
mod requests;

pub use elsewhere::ELSEWHERE;
pub use policies::POLICIES;
pub use requests::{NO_HOST, NO_LISTENER, REQUESTS};

/// What the client sees. It is never left waiting, and never takes a part for the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// A whole response with this status.
    Status(u16),
    /// A response that begins well and visibly breaks off.
    Cut,
    /// Nothing: it has left.
    Left,
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Names its service.
    pub name: &'static str,
    /// In words.
    pub fault: &'static str,
    pub sees: Sees,
    pub flag: &'static str,
    pub cause: &'static str,
    pub phase: &'static str,
}

const fn row(
    name: &'static str,
    sees: Sees,
    flag: &'static str,
    cause: &'static str,
    phase: &'static str,
    fault: &'static str,
) -> Row {
    Row { name, fault, sees, flag, cause, phase }
}

use Sees::{Cut, Left, Status};

/// Injected into a gateway, by raw sockets behind it and clients before it.
pub const GATEWAY: &[Row] = &[
    row("refused", Status(503), "UF", "connect_failure", "connect", "the connection is refused"),
    row(
        "no-route",
        Status(503),
        "UF",
        "connect_timeout",
        "connect",
        "nobody answers to the connection within `timeouts.connect`",
    ),
    row(
        "reset-before",
        Status(503),
        "UR",
        "upstream_reset",
        "request",
        "the connection is reset before the response begins",
    ),
    row(
        "closed-before",
        Status(503),
        "UC",
        "upstream_closed",
        "request",
        "the connection is closed before the response begins",
    ),
    row(
        "head-cut",
        Status(503),
        "UC",
        "upstream_closed",
        "request",
        "the connection is closed within the response's head",
    ),
    row(
        "reset-after-head",
        Cut,
        "UR",
        "upstream_reset",
        "response",
        "the connection is reset after the response's head",
    ),
    row(
        "reset-mid-body",
        Cut,
        "UR",
        "upstream_reset",
        "response",
        "the connection is reset within the response's body",
    ),
    row(
        "truncated",
        Cut,
        "UC",
        "upstream_closed",
        "response",
        "the response is shorter than its `Content-Length`",
    ),
    row(
        "truncated-chunks",
        Cut,
        "UC",
        "upstream_closed",
        "response",
        "the response ends without its last chunk",
    ),
    row(
        "large-head",
        Status(502),
        "UPE",
        "upstream_headers_too_large",
        "request",
        "the response's fields are larger than `--max-header-bytes`",
    ),
    row("garbage", Status(502), "UPE", "upstream_protocol_error", "request", "the response is no HTTP"),
    row(
        "bad-chunk",
        Cut,
        "UPE",
        "upstream_protocol_error",
        "response",
        "a chunk of the response has no size",
    ),
    row(
        "stalled-head",
        Status(504),
        "UT",
        "request_timeout",
        "request",
        "the response does not begin within `timeouts.request`",
    ),
    row(
        "late",
        Status(504),
        "UT",
        "request_timeout",
        "request",
        "the response comes after `timeouts.request`",
    ),
    row(
        "stalled-try",
        Status(504),
        "UT",
        "per_try_timeout",
        "request",
        "the response does not begin within `retry.perTryTimeout`",
    ),
    row(
        "stalled-body",
        Cut,
        "UT",
        "request_timeout",
        "response",
        "the response's body stops, until `timeouts.request` is over",
    ),
    row(
        "slow-body",
        Cut,
        "UT",
        "request_timeout",
        "response",
        "the response's body drips, until `timeouts.request` is over",
    ),
    row(
        "idle-body",
        Cut,
        "SI",
        "stream_idle_timeout",
        "response",
        "the response's body stops for `timeouts.streamIdle`",
    ),
    row(
        "unread-request",
        Status(504),
        "UT",
        "request_timeout",
        "request",
        "the request's body is not read within `timeouts.request`",
    ),
    row(
        "unread-response",
        Cut,
        "SI",
        "stream_idle_timeout",
        "response",
        "the client does not read the response for `timeouts.streamIdle`",
    ),
    row(
        "half-head",
        Status(408),
        "DPE",
        "request_header_timeout",
        "head",
        "the client stops within the request's head (HTTP/1.1)",
    ),
    row(
        "half-body",
        Status(408),
        "DPE",
        "request_body_timeout",
        "request",
        "the client stops within the request's body",
    ),
    row(
        "h2-reset",
        Status(503),
        "UR",
        "upstream_reset",
        "request",
        "an HTTP/2 stream is reset before the response begins",
    ),
    row(
        "h2-refused",
        Status(503),
        "UR",
        "upstream_refused",
        "request",
        "an HTTP/2 stream is refused (`REFUSED_STREAM`)",
    ),
    row(
        "h2-reset-body",
        Cut,
        "UR",
        "upstream_reset",
        "response",
        "an HTTP/2 stream is reset within the response's body",
    ),
    row(
        "no-endpoints",
        Status(503),
        "UH",
        "no_healthy_upstream",
        "endpoint",
        "the service has no endpoint any more",
    ),
    row("no-service", Status(500), "NR", "invalid_backend", "backend", "the service's name is gone"),
];

/// Injected into a gateway of its own, which refuses everything.
pub const MEMORY: [Row; 1] = [row(
    "memory",
    Status(503),
    "OM",
    "overload",
    "overload",
    "the proxy is near the memory that it may have (`--max-memory-bytes`)",
)];

/// Clients that leave: what is written down depends on how they say so.
pub const LEAVING: [Row; 2] = [
    row(
        "left",
        Left,
        "DC",
        "downstream_closed",
        "request",
        "the client closes its connection while it waits (HTTP/1.1)",
    ),
    row(
        "left",
        Left,
        "DR",
        "downstream_reset",
        "request",
        "the client resets its stream while it waits (HTTP/2)",
    ),
];

/// Injected between two proxies of the mesh.
pub const MESH: &[Row] = &[
    row(
        "bad-tls",
        Status(503),
        "UF",
        "upstream_tls_failure",
        "connect",
        "what should be a TLS handshake is none",
    ),
    row("own-svid-expired", Status(503), "UF", "svid_expired", "connect", "the caller's SVID has expired"),
    row(
        "peer-svid-expired",
        Status(503),
        "UF",
        "upstream_tls_failure",
        "connect",
        "the callee's SVID has expired",
    ),
    row(
        "wrong-identity",
        Status(503),
        "UF",
        "upstream_identity_mismatch",
        "connect",
        "the callee proves another identity",
    ),
    row(
        "caller-revoked",
        Status(503),
        "UF",
        "upstream_tls_failure",
        "connect",
        "the caller's identity is revoked: it learns of a TLS alert, the callee counts `revoked`",
    ),
    row(
        "callee-revoked",
        Status(503),
        "UF",
        "upstream_tls_failure",
        "connect",
        "the callee's identity is revoked",
    ),
    row(
        "unknown-name",
        Status(404),
        "NR",
        "unknown_service",
        "discover",
        "the control plane knows no such name",
    ),
    row(
        "control-plane-away",
        Status(503),
        "NC",
        "discovery_unavailable",
        "discover",
        "the control plane is away when a service is called for the first time",
    ),
];
