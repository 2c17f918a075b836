//! On whose side a failure was, by its flag.

use meshwork_decision::{Cause, ForcedBy, ResponseFlag, UNTOLD};
use meshwork_messages::v1::RequestRecord;
use meshwork_telemetry::{grpc_name, is_grpc_failure};

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The caller has gone away.
    Left,
    Caller,
    Configuration,
    /// A policy answers instead of the service.
    Injected,
    /// A policy ends what lasts.
    Duration,
    Mesh,
    Service,
    /// A policy keeps the service from being called, for how it is.
    Limit,
    /// So does somebody, however it is.
    Forced,
}

/// Whose the failure by this cause is.
pub(super) fn side_of(cause: Cause, detail: &str) -> Fault {
    use ResponseFlag as Flag;
    match (cause.flag(), cause) {
        (Flag::DownstreamConnectionTermination | Flag::DownstreamRemoteReset, _) => Fault::Left,
        // It gave too little time, or came on a connection that was made for others.
        (Flag::DownstreamProtocolError | Flag::DeadlineUnreachable, _) | (_, Cause::MisdirectedRequest) => {
            Fault::Caller
        }
        // No route is wrong: its sidecar does not know what it serves.
        (_, Cause::UnknownAppPort) if detail == UNTOLD => Fault::Mesh,
        (Flag::NoRoute | Flag::Unauthorized, _) => Fault::Configuration,
        (Flag::FaultInjected, _) => Fault::Injected,
        (Flag::DurationTimeout, _) => Fault::Duration,
        (Flag::NoCluster | Flag::LocalReset, _) | (_, Cause::SvidExpired) => Fault::Mesh,
        // It is the proxy that has too little.
        (Flag::Overload, _) if is_of_memory(detail) => Fault::Mesh,
        // An instance has failed, and is not called again.
        (_, Cause::MaxRetries) => Fault::Service,
        (_, Cause::CircuitBreaker) if is_forced(detail) => Fault::Forced,
        (Flag::UpstreamOverflow | Flag::RateLimited | Flag::Overload | Flag::AdmissionControl, _) => {
            Fault::Limit
        }
        (
            Flag::NoHealthyUpstream
            | Flag::UpstreamConnectionFailure
            | Flag::UpstreamRequestTimeout
            | Flag::UpstreamRetryLimitExceeded
            | Flag::UpstreamConnectionTermination
            | Flag::UpstreamRemoteReset
            | Flag::UpstreamProtocolError
            | Flag::StreamIdleTimeout,
            _,
        ) => Fault::Service,
    }
}

/// Whether it was not the calls that have opened a circuit breaker.
fn is_forced(detail: &str) -> bool {
    [ForcedBy::POLICY, ForcedBy::OPERATOR].iter().any(|forced| detail.contains(forced))
}

/// Whether load was shed since the proxy came near the memory that it may have.
pub(super) fn is_of_memory(detail: &str) -> bool {
    detail.contains(MEMORY)
}

/// The flag that limits it, which the detail names.
pub(super) const MEMORY: &str = "--max-memory-bytes";

/// The status of gRPC by which a service has failed, as the recorder looks at it; its name too, if it is one.
pub(super) fn grpc_failure(record: &RequestRecord) -> Option<(u32, &'static str)> {
    let status = record.grpc_status?;
    let name = grpc_name(status).unwrap_or_default();
    u8::try_from(status).is_ok_and(is_grpc_failure).then_some((status, name))
}

/// gRPC's word for a time limit that is over.
pub(super) const DEADLINE_EXCEEDED: u32 = 4;
