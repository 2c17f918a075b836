//! Why we failed a request ourselves: one cause, one flag of Envoy's, one status, in one table.
//!
//! Every locally made failure is reported through [`Cause`]. Its name goes into log, metric, record and `explain`
//! unchanged, so names are never renamed once released.

use std::fmt;

use meshwork_http1::ParseError;

macro_rules! flags {
    ($($(#[$doc:meta])* $variant:ident => $text:literal,)*) => {
        /// Envoy's response flags, as `%RESPONSE_FLAGS%` prints them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ResponseFlag {
            $($(#[$doc])* $variant,)*
        }

        impl ResponseFlag {
            /// The short text of logs and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// All flags that we use.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }
    };
}

flags! {
    /// No healthy upstream.
    NoHealthyUpstream => "UH",
    /// Upstream connection failure.
    UpstreamConnectionFailure => "UF",
    /// Upstream overflow: a limit was reached.
    UpstreamOverflow => "UO",
    /// Upstream request timeout.
    UpstreamRequestTimeout => "UT",
    /// Upstream retry limit exceeded.
    UpstreamRetryLimitExceeded => "URX",
    /// Upstream connection termination.
    UpstreamConnectionTermination => "UC",
    /// Upstream remote reset.
    UpstreamRemoteReset => "UR",
    /// Upstream protocol error.
    UpstreamProtocolError => "UPE",
    /// No route found.
    NoRoute => "NR",
    /// No cluster found.
    NoCluster => "NC",
    /// Downstream connection termination.
    DownstreamConnectionTermination => "DC",
    /// Downstream protocol error.
    DownstreamProtocolError => "DPE",
    /// Downstream remote reset.
    DownstreamRemoteReset => "DR",
    /// Local reset: we gave up ourselves.
    LocalReset => "LR",
    /// Rate limited.
    RateLimited => "RL",
    /// Unauthorized.
    Unauthorized => "UAEX",
    /// Duration timeout.
    DurationTimeout => "DT",
    /// Not Envoy's: the request could not be answered within its deadline, and was not begun.
    DeadlineUnreachable => "DU",
    /// Not Envoy's: the caller holds back, since too few calls succeed. (Envoy has the filter, and no flag for it.)
    AdmissionControl => "AC",
    /// Stream idle timeout.
    StreamIdleTimeout => "SI",
    /// Overload manager.
    Overload => "OM",
    /// Fault injected.
    FaultInjected => "FI",
}

impl fmt::Display for ResponseFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, $flag:ident, $status:expr;)*) => {
        /// Why a request failed here. The proxy adds the name of the policy, limit or endpoint from its context.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause {
            $($(#[$doc])* $variant,)*
        }

        impl Cause {
            /// The stable name, in `snake_case`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The flag of logs and metrics.
            #[must_use]
            pub const fn flag(self) -> ResponseFlag {
                match self { $(Self::$variant => ResponseFlag::$flag,)* }
            }

            /// The status to answer with when no response has begun; `None` when nobody is left to be answered.
            #[must_use]
            pub const fn status(self) -> Option<u16> {
                match self { $(Self::$variant => $status,)* }
            }

            /// All causes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }
    };
}

causes! {
    /// No listener of the port takes this host.
    NoListener, "no_listener", NoRoute, Some(404);
    /// No route of the listener takes this host.
    NoHost, "no_host", NoRoute, Some(404);
    /// Routes take the host, but none of their rules the request.
    NoRule, "no_rule", NoRoute, Some(404);
    /// The TLS connection was made for one listener, the host belongs to another (RFC 9110, 15.5.20).
    MisdirectedRequest, "misdirected_request", NoRoute, Some(421);
    /// Outbound: the mesh knows no service of this name.
    UnknownService, "unknown_service", NoRoute, Some(404);
    /// The rule has neither backends nor a filter that answers.
    NoBackends, "no_backends", NoRoute, Some(500);
    /// All backends of the rule have weight 0.
    ZeroWeight, "zero_weight", NoRoute, Some(500);
    /// The chosen backend does not resolve (`ResolvedRefs=False` on the route).
    InvalidBackend, "invalid_backend", NoRoute, Some(500);
    /// The backend's service has not been delivered to this proxy.
    ClusterNotFound, "cluster_not_found", NoCluster, Some(503);
    /// The control plane could not be asked in time about a name.
    DiscoveryUnavailable, "discovery_unavailable", NoCluster, Some(503);
    /// The service has no endpoint that may be picked.
    NoHealthyUpstream, "no_healthy_upstream", NoHealthyUpstream, Some(503);
    /// The connection was refused or could not be routed.
    ConnectFailure, "connect_failure", UpstreamConnectionFailure, Some(503);
    /// No connection within the connect timeout.
    ConnectTimeout, "connect_timeout", UpstreamConnectionFailure, Some(503);
    /// The TLS handshake with the upstream failed.
    UpstreamTlsFailure, "upstream_tls_failure", UpstreamConnectionFailure, Some(503);
    /// The upstream proved an identity other than the one that serves this service.
    UpstreamIdentityMismatch, "upstream_identity_mismatch", UpstreamConnectionFailure, Some(503);
    /// Our own SVID has expired.
    SvidExpired, "svid_expired", UpstreamConnectionFailure, Some(503);
    /// The upstream reset the stream or connection before its response began.
    UpstreamReset, "upstream_reset", UpstreamRemoteReset, Some(503);
    /// The upstream refused the stream and says that it processed nothing.
    UpstreamRefused, "upstream_refused", UpstreamRemoteReset, Some(503);
    /// The upstream closed the connection before its response was complete.
    UpstreamClosed, "upstream_closed", UpstreamConnectionTermination, Some(503);
    /// The upstream's response breaks its protocol.
    UpstreamProtocolError, "upstream_protocol_error", UpstreamProtocolError, Some(502);
    /// The upstream's response head exceeds the limit.
    UpstreamHeadersTooLarge, "upstream_headers_too_large", UpstreamProtocolError, Some(502);
    /// Limit `maxConnections` of the service.
    MaxConnections, "max_connections", UpstreamOverflow, Some(503);
    /// Limit `maxPendingRequests` of the service.
    MaxPendingRequests, "max_pending_requests", UpstreamOverflow, Some(503);
    /// Limit `maxRequests` of the service.
    MaxRequests, "max_requests", UpstreamOverflow, Some(503);
    /// The service's circuit breaker is open.
    CircuitBreaker, "circuit_breaker", UpstreamOverflow, Some(503);
    /// Too few of the calls to the service succeed: this is one of those that are held back (`admissionControl`).
    AdmissionControl, "admission_control", AdmissionControl, Some(503);
    /// Limit `maxRetries` of the service; the last attempt's failure is what the client sees.
    MaxRetries, "max_retries", UpstreamOverflow, Some(503);
    /// All attempts that the policy allows have failed.
    RetriesExhausted, "retries_exhausted", UpstreamRetryLimitExceeded, Some(503);
    /// The retry budget is spent, or has no more retries since they do not help.
    RetryBudget, "retry_budget", UpstreamRetryLimitExceeded, Some(503);
    /// The request's time is over.
    RequestTimeout, "request_timeout", UpstreamRequestTimeout, Some(504);
    /// The last attempt's time is over.
    PerTryTimeout, "per_try_timeout", UpstreamRequestTimeout, Some(504);
    /// The time that the caller gave the request is over.
    DeadlineExceeded, "deadline_exceeded", UpstreamRequestTimeout, Some(504);
    /// The caller gave the request less time than the fastest answer takes: it was not begun.
    DeadlineUnreachable, "deadline_unreachable", DeadlineUnreachable, Some(504);
    /// The stream has lasted as long as it may.
    MaxStreamDuration, "max_stream_duration", DurationTimeout, Some(504);
    /// Nothing moved on the stream for the idle timeout.
    StreamIdleTimeout, "stream_idle_timeout", StreamIdleTimeout, Some(504);
    /// The client did not send its request head in time.
    RequestHeaderTimeout, "request_header_timeout", DownstreamProtocolError, Some(408);
    /// The client did not send its request body in time.
    RequestBodyTimeout, "request_body_timeout", DownstreamProtocolError, Some(408);
    /// The client closed its connection.
    DownstreamClosed, "downstream_closed", DownstreamConnectionTermination, None;
    /// The client reset its stream.
    DownstreamReset, "downstream_reset", DownstreamRemoteReset, None;
    /// The client's request breaks its protocol.
    DownstreamProtocolError, "downstream_protocol_error", DownstreamProtocolError, Some(400);
    /// The request line exceeds the limit.
    UriTooLong, "uri_too_long", DownstreamProtocolError, Some(414);
    /// The request's fields exceed the limit.
    RequestHeadersTooLarge, "request_headers_too_large", DownstreamProtocolError, Some(431);
    /// The request is in a version of HTTP that does not go in this form (RFC 9110 section 15.6.6).
    UnsupportedVersion, "unsupported_version", DownstreamProtocolError, Some(505);
    /// A method or upgrade that we do not carry.
    NotImplemented, "not_implemented", DownstreamProtocolError, Some(501);
    /// A `Deny` policy matched, or an `Allow` is attached and none matched.
    AuthorizationDenied, "authorization_denied", Unauthorized, Some(403);
    /// An authorization policy that this proxy cannot evaluate: it fails closed.
    AuthorizationUnknown, "authorization_unknown", Unauthorized, Some(403);
    /// Strict mTLS, and the peer came without a certificate.
    PeerUnauthenticated, "peer_unauthenticated", Unauthorized, Some(403);
    /// The peer's SVID is revoked.
    PeerRevoked, "peer_revoked", Unauthorized, Some(403);
    /// A rate limit.
    RateLimited, "rate_limited", RateLimited, Some(429);
    /// A policy injects this answer.
    FaultAbort, "fault_abort", FaultInjected, Some(503);
    /// We shed load.
    Overload, "overload", Overload, Some(503);
    /// We are stopping and the drain time is over.
    Draining, "draining", LocalReset, Some(503);
    /// The inbound side knows no application port for this request.
    UnknownAppPort, "unknown_app_port", NoRoute, Some(404);
    /// The filter chain produced something that cannot be sent.
    Internal, "internal", LocalReset, Some(500);
}

impl Cause {
    /// Whether it says that no connection to an upstream could be made: nothing of the request was sent.
    #[must_use]
    pub const fn is_connecting(self) -> bool {
        matches!(
            self,
            Self::ConnectFailure
                | Self::ConnectTimeout
                | Self::UpstreamTlsFailure
                | Self::UpstreamIdentityMismatch
                | Self::SvidExpired
        )
    }
}

/// Of a request whose head is refused; its status follows from the cause.
impl From<ParseError> for Cause {
    fn from(error: ParseError) -> Self {
        match error.status() {
            414 => Self::UriTooLong,
            431 => Self::RequestHeadersTooLarge,
            501 => Self::NotImplemented,
            505 => Self::UnsupportedVersion,
            _ => Self::DownstreamProtocolError,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_refused_request_is_answered_as_its_parser_says() {
        for error in ParseError::ALL {
            assert_eq!(Cause::from(*error).status(), Some(error.status()), "{error}");
        }
    }

    #[test]
    fn names_and_flags_are_unique_and_well_formed() {
        let names: BTreeSet<_> = Cause::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        let flags: BTreeSet<_> = ResponseFlag::ALL.iter().map(|f| f.as_str()).collect();
        assert_eq!(flags.len(), ResponseFlag::ALL.len());
    }

    #[test]
    fn only_a_departed_client_gets_no_status() {
        for cause in Cause::ALL {
            let gone = matches!(
                cause.flag(),
                ResponseFlag::DownstreamConnectionTermination | ResponseFlag::DownstreamRemoteReset
            );
            assert_eq!(cause.status().is_none(), gone, "{cause}");
            assert!(cause.status().is_none_or(|s| (400..600).contains(&s)), "{cause}");
        }
    }
}
