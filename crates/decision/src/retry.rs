//! Repeating what failed.

use std::time::Duration;

/// When and how often an attempt is repeated. Values are as the user wrote them, defaults written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub attempts: u32,
    /// Statuses that call for another attempt.
    pub status_codes: Box<[u16]>,
    /// gRPC codes that call for another attempt.
    pub grpc_codes: Box<[u16]>,
    /// The upstream reset before its response began.
    pub on_reset: bool,
    /// No connection could be made.
    pub on_connect_failure: bool,
    /// The upstream says that it processed nothing.
    pub on_refused: bool,
    /// The time of one attempt.
    pub per_try_timeout: Option<Duration>,
    /// The first back-off; zero: none.
    pub backoff_base: Duration,
    /// The longest back-off.
    pub backoff_max: Duration,
    /// How many retries there may be besides ordinary requests.
    pub budget: Option<RetryBudget>,
}

/// Bounds retries by what goes on besides them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Percent of the requests of the last ten seconds.
    pub percent: u32,
    /// Retries that are always allowed each second.
    pub min_per_second: u32,
}
