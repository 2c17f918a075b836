//! What comes of the request itself, at a gateway.

use super::Row;
use super::Sees::Status;
use super::row;

pub const REQUESTS: &[Row] = &[
    row("no-rule", Status(404), "NR", "no_rule", "route", "no rule takes the request"),
    row("no-backends", Status(500), "NR", "no_backends", "backend", "the rule has no backend"),
    row("no-weight", Status(500), "NR", "zero_weight", "backend", "all backends of the rule have weight 0"),
    row(
        "caller-is-late",
        Status(504),
        "UT",
        "deadline_exceeded",
        "request",
        "the response does not begin within the time that the caller gave (`callerDeadline: Accept`)",
    ),
    row(
        "caller-is-hasty",
        Status(504),
        "DU",
        "deadline_unreachable",
        "backend",
        "the caller gives less time than any answer of late took",
    ),
    row(
        "broken-request",
        Status(400),
        "DPE",
        "downstream_protocol_error",
        "head",
        "the request breaks HTTP: it has two lengths",
    ),
    row(
        "long-line",
        Status(414),
        "DPE",
        "uri_too_long",
        "head",
        "the request line is longer than `--max-request-line-bytes`",
    ),
    row(
        "large-request",
        Status(431),
        "DPE",
        "request_headers_too_large",
        "head",
        "the request's fields are larger than `--max-header-bytes`",
    ),
    row(
        "other-version",
        Status(505),
        "DPE",
        "unsupported_version",
        "head",
        "the request is of a version of HTTP that goes in another form",
    ),
    row(
        "unknown-coding",
        Status(501),
        "DPE",
        "not_implemented",
        "head",
        "the request's body has an unknown transfer coding",
    ),
];

/// Injected into a gateway whose routes are for other hosts.
pub const NO_HOST: [Row; 1] =
    [row("no-host", Status(404), "NR", "no_host", "route", "no route of the listener takes the host")];

/// Injected into a gateway whose listener is for another host.
pub const NO_LISTENER: [Row; 1] =
    [row("no-listener", Status(404), "NR", "no_listener", "route", "no listener takes the host")];
