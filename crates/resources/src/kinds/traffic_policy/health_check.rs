//! Whether endpoints answer when nobody calls them.

use crate::codes;
use crate::decode::duration::GatewayDuration;
use crate::decode::overlay::{layered, words};
use crate::decode::text::PreciseHostname;
use crate::decode::{Cx, record};
use crate::kinds::http_match::HTTPMethod;
use crate::span::Spanned;

layered! {
    /// How endpoints are asked whether they serve: one of `http`, `tcp` and `grpc`. Every proxy that calls the service asks
    /// each of its endpoints, at once when it hears of it and then at intervals. The names are Envoy's.
    pub struct HealthCheck {
        /// By a request.
        pub http: Option<Spanned<HttpHealthCheck>>,
        /// By a connection, and bytes on it.
        pub tcp: Option<Spanned<TcpHealthCheck>>,
        /// By gRPC's health service (`grpc.health.v1.Health`).
        pub grpc: Option<Spanned<GrpcHealthCheck>>,
        /// From one answer to the next question; 3 s when absent.
        pub interval: Option<Spanned<GatewayDuration>>,
        /// Up to so much longer, by chance; a tenth of the interval when absent.
        pub interval_jitter: Option<GatewayDuration> as "intervalJitter",
        /// How long an answer may take, the connection included; 1 s when absent.
        pub timeout: Option<Spanned<GatewayDuration>>,
        /// After so many failures in a row it is left out; 3 when absent. The first answer of all decides at once.
        pub unhealthy_threshold: Option<u32> as "unhealthyThreshold" [1..=1_000],
        /// After so many successes in a row it is in again; 1 when absent.
        pub healthy_threshold: Option<u32> as "healthyThreshold" [1..=1_000],
        /// The interval until the service is called for the first time; `interval` when absent.
        pub no_traffic_interval: Option<Spanned<GatewayDuration>> as "noTrafficInterval",
    }
    one_of { [http] [tcp] [grpc] }
}

layered! {
    /// A request.
    pub struct HttpHealthCheck {
        /// Path and query.
        pub path: Spanned<String>,
        /// The host that is asked for; NAME.NAMESPACE of the service when absent.
        pub host: Option<PreciseHostname>,
        /// The method; `GET` when absent.
        pub method: Option<Spanned<HTTPMethod>>,
        /// The statuses that say that it serves; 200 alone when empty.
        pub expected_statuses: Vec<Spanned<StatusRange>> as "expectedStatuses" [0..=16],
    }
}

record! {
    /// Statuses from one to below another.
    pub struct StatusRange {
        /// The first.
        pub start: u32 [100..=599],
        /// Behind the last.
        pub end: u32 [101..=600],
    }
}

layered! {
    /// A connection. Where nothing else is said, that it can be made is all.
    pub struct TcpHealthCheck {
        /// What is sent.
        pub send: Option<String>,
        /// What must come, among the first 4096 bytes.
        pub receive: Option<String>,
    }
}

layered! {
    /// A question to gRPC's health service.
    pub struct GrpcHealthCheck {
        /// The service that is asked about; the whole server when absent.
        pub service: Option<String>,
    }
}

words!(PreciseHostname, HTTPMethod);

pub(super) fn validate(check: &Spanned<HealthCheck>, cx: &mut Cx) {
    let kinds = [check.http.is_some(), check.tcp.is_some(), check.grpc.is_some()];
    let wrong = match kinds.into_iter().filter(|is_there| *is_there).count() {
        0 => Some(("has none of `http`, `tcp` and `grpc`", "add one of them (`http: {path: /healthz}`)")),
        1 => None,
        _ => Some(("has more than one of `http`, `tcp` and `grpc`", "keep the one that says most")),
    };
    if let Some((what, help)) = wrong {
        cx.error(check.span, codes::CONFLICTING_FIELDS, format!("`healthCheck` {what}")).help =
            Some(help.to_owned());
    }
    let times = [
        ("interval", &check.interval, "3s"),
        ("timeout", &check.timeout, "1s"),
        ("noTrafficInterval", &check.no_traffic_interval, "`interval`"),
    ];
    for (field, time, default) in times {
        let Some(time) = time.as_ref().filter(|time| time.is_zero()) else { continue };
        cx.error(time.span, codes::CONFLICTING_FIELDS, format!("`healthCheck.{field}` is 0s")).help =
            Some(format!("write a time longer than none, or leave it out for {default}"));
    }
    if let Some(http) = &check.http {
        validate_http(http, cx);
    }
}

fn validate_http(http: &HttpHealthCheck, cx: &mut Cx) {
    let path = &http.path;
    if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == b'#' || b >= 0x7f) {
        let message = format!("`healthCheck.http.path` cannot be `{}`", path.inner);
        cx.error(path.span, codes::INVALID_VALUE, message).help =
            Some("a path begins with `/` and has no spaces, no `#`, and no letters beyond ASCII".to_owned());
    }
    if let Some(method) = http.method.as_ref().filter(|method| method.inner == HTTPMethod::Connect) {
        let message = "`healthCheck.http.method` cannot be CONNECT".to_owned();
        cx.error(method.span, codes::CONFLICTING_FIELDS, message).help =
            Some("write `tcp: {}` to see whether there is a connection".to_owned());
    }
    for range in http.expected_statuses.iter().filter(|range| range.start >= range.end) {
        let message = format!(
            "`healthCheck.http.expectedStatuses` from {} to below {} has none",
            range.start, range.end
        );
        cx.error(range.span, codes::CONFLICTING_FIELDS, message).help =
            Some("`end` is behind the last: write `{start: 200, end: 300}` for 200 to 299".to_owned());
    }
}
