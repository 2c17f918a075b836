//! Outlier detection: an endpoint that fails where others do not is left alone for a while.
//!
//! ```text
//!        a row of failures, or a rate         its time is over: one request tries it
//!   in ─────────────────────────▶ out ────────────────────────────▶ on trial
//!    ▲                             ▲            the request failed      │
//!    │                             └────────────────────────────────────┤
//!    └──────────────────────────────────────────────────────────────────┘
//!                              the request went well
//! ```
//!
//! *Signal.* A response of status 5xx or with a gRPC status of that kind, or an attempt without a response
//! (refused, reset, timed out), is a failure; any other response is a success. Failures of our own (limits, no route) are
//! no signal. An attempt without a response is of *local origin*: we say that it failed, not the endpoint. It counts like
//! a 5xx, and like a gateway error, unless `split_external_local_origin_errors` keeps the two apart: then each has its own
//! row and its own rate, and any response, whatever its status, is a success of local origin. (Envoy's rules.)
//!
//! *Rows.* So many failures in a row: of any status from 500, of 502, 503 and 504, of local origin. A success ends them.
//!
//! *Rates.* Looked at once per `interval`, over what came in since; see `rates.rs`.
//!
//! *Ejection.* For `base_ejection_time` × the number of ejections so far, at most `max_ejection_time` or one base time.
//! Requests already under way may still fail; while an endpoint is out they change nothing.
//!
//! *Return.* Not by time alone: after its time an endpoint is picked again, by one request. That one decides: when it
//! fails, the endpoint is out again, for longer; when it goes well, the endpoint is in again, with its rows and rates
//! begun anew. One that ends without a word on the endpoint (the caller went away) gives its place to the next request.
//! At once, and with nothing held against it, when the registry had taken its instance out and says that it serves again:
//! then it is another process. Each base time in which it stays in takes one ejection off the count, noticed at the next
//! success.
//!
//! *Bounds.* At most `max_ejection_percent` of the endpoints that could be called are out, those on trial or waiting for it
//! included, but one always may be, and never the last: with all of them out, a failing service would become an absent one.
//! A proxy that calls a part of the endpoints counts all: in the place of who is out it calls another. Workers
//! decide one at a time; a worker that finds another deciding leaves the row as it is, and the next failure decides.

mod rates;
mod standing;
mod trial;
mod unheard;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use crate::endpoint::{Endpoint, EndpointSet};
use crate::invariants;
use crate::load::Answer;
use crate::verdicts::SharedEjection;
pub use rates::{FailurePercentage, SuccessRate};
pub use standing::EjectionCause;
pub(crate) use standing::Standing;
pub(crate) use trial::explained;
pub use trial::{Picked, Trial};

/// When an endpoint is ejected, and for how long. The names are Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failures in a row; 0: never by these.
    pub consecutive_5xx: u32,
    /// Gateway errors in a row; 0: never by these.
    pub consecutive_gateway_failure: u32,
    /// Failures of local origin in a row, where they are told apart; 0: never by these.
    pub consecutive_local_origin_failure: u32,
    /// Whether failures of local origin are told apart from what endpoints say.
    pub split_external_local_origin_errors: bool,
    /// How often rates are looked at.
    pub interval: Duration,
    /// An endpoint that succeeds less often than the fleet does; absent: never by this.
    pub success_rate: Option<SuccessRate>,
    /// An endpoint that fails too often, whatever the fleet does; absent: never by this.
    pub failure_percentage: Option<FailurePercentage>,
    /// The first ejection's time; the n-th takes n times as long.
    pub base_ejection_time: Duration,
    /// The longest ejection, unless the base time is longer.
    pub max_ejection_time: Duration,
    /// How many percent of the endpoints may be out at once.
    pub max_ejection_percent: u32,
    /// When ejections count for everybody; absent: never. Decided where all reports come together.
    pub shared: Option<SharedEjection>,
}

impl OutlierDetection {
    /// Envoy's defaults for what nobody says, without rates.
    pub const DEFAULT: Self = Self {
        consecutive_5xx: 5,
        consecutive_gateway_failure: 0,
        consecutive_local_origin_failure: 5,
        split_external_local_origin_errors: false,
        interval: Duration::from_secs(10),
        success_rate: None,
        failure_percentage: None,
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_percent: 10,
        shared: None,
    };
}

/// An ejection that has just begun, for log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Until when nobody tries it.
    pub until: Tick,
    /// How many base times it takes.
    pub count: u32,
    /// What it did.
    pub cause: EjectionCause,
}

/// An endpoint that is out now, or in again.
#[derive(Clone, Debug)]
pub struct Shift {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    /// Absent: a trial went well, and it is in again.
    pub ejection: Option<Ejection>,
}

/// What one attempt says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A response below 500.
    Success,
    /// The endpoint does not want so much: 429, gRPC's `RESOURCE_EXHAUSTED`. No failure to outlier detection.
    Overloaded,
    /// A response of 500 or above, none, or one that was broken off.
    Failure,
}

impl AttemptOutcome {
    /// The outcome of a response.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            429 => Self::Overloaded,
            500.. => Self::Failure,
            _ => Self::Success,
        }
    }

    /// The outcome of a gRPC status: `RESOURCE_EXHAUSTED` is what 429 is; `UNKNOWN`, `DEADLINE_EXCEEDED`, `INTERNAL`,
    /// `UNAVAILABLE` and `DATA_LOSS` are failures.
    #[must_use]
    pub const fn of_grpc(code: u16) -> Self {
        match code {
            8 => Self::Overloaded,
            2 | 4 | 13 | 14 | 15 => Self::Failure,
            _ => Self::Success,
        }
    }
}

/// What outlier detection distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// No failure.
    Well,
    /// A status from 500 that the endpoint has made up itself.
    ServerError,
    /// 502, 503, 504.
    GatewayError,
    /// No response, or no whole one.
    Nothing,
}

impl Heard {
    fn of(answer: &Answer) -> Self {
        match (answer.outcome, answer.status) {
            (AttemptOutcome::Success | AttemptOutcome::Overloaded, _) => Self::Well,
            (AttemptOutcome::Failure, 0) => Self::Nothing,
            (AttemptOutcome::Failure, 502..=504) => Self::GatewayError,
            (AttemptOutcome::Failure, _) => Self::ServerError,
        }
    }
}

/// What workers share about the endpoints of a cluster together.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    /// One worker at a time decides about ejections.
    deciding: AtomicBool,
    /// When rates were last looked at, in nanoseconds of the clock's [`Tick`]; 0: never.
    judged: AtomicU64,
}

impl Fleet {
    /// Whether an interval is over. The first answer of all begins the first one.
    fn is_due(&self, interval: Duration, now: Tick) -> bool {
        let judged = self.judged.load(Ordering::Relaxed);
        if judged == 0 {
            self.judged.store(now.as_nanos().max(1), Ordering::Relaxed);
            return false;
        }
        now.since(Tick::from_nanos(judged)) >= interval
    }
}

impl OutlierDetection {
    /// How long the `count`-th ejection lasts.
    #[must_use]
    pub fn ejection_time(&self, count: u32) -> Duration {
        self.base_ejection_time.saturating_mul(count).min(self.longest())
    }

    fn longest(&self) -> Duration {
        self.max_ejection_time.max(self.base_ejection_time)
    }

    /// The count of the ejection that follows so many: what is beyond the longest time is not counted, so that good
    /// behaviour shows at once.
    fn next_count(&self, before: u32) -> u32 {
        let grows = before == 0 || self.ejection_time(before) < self.longest();
        if grows { before.saturating_add(1) } else { before }
    }

    /// Whether one more of `total` endpoints may be ejected when `ejected` are.
    #[must_use]
    pub fn may_eject(&self, ejected: usize, total: usize) -> bool {
        let within = (ejected + 1) * 100 <= self.max_ejection_percent as usize * total;
        ejected + 1 < total && (ejected == 0 || within)
    }

    fn has_rates(&self) -> bool {
        self.success_rate.is_some() || self.failure_percentage.is_some()
    }

    /// An attempt has ended; what that changes is returned. Nothing is allocated when nothing does.
    pub(crate) fn record(
        &self,
        set: &EndpointSet,
        fleet: &Fleet,
        endpoint: &Arc<Endpoint>,
        answer: &Answer,
        now: Tick,
    ) -> Vec<Shift> {
        let standing = &endpoint.stats.standing;
        if standing.is_out() {
            return Vec::new();
        }
        let heard = Heard::of(answer);
        if self.has_rates() {
            standing.count(self, heard);
        }
        if heard == Heard::Well {
            self.forgive(standing, now);
        }
        let row = standing.row(self, heard);
        let judges = self.has_rates() && fleet.is_due(self.interval, now);
        if row.is_none() && !judges || fleet.deciding.swap(true, Ordering::Acquire) {
            return Vec::new();
        }
        let mut shifts = Vec::new();
        if let Some(cause) = row {
            shifts.extend(self.eject(set, endpoint, cause, now));
        }
        if judges && fleet.is_due(self.interval, now) {
            fleet.judged.store(now.as_nanos(), Ordering::Relaxed);
            for (endpoint, cause) in self.judge(set) {
                shifts.extend(self.eject(set, endpoint, cause, now));
            }
        }
        fleet.deciding.store(false, Ordering::Release);
        shifts
    }

    /// Called by one worker at a time.
    fn eject(
        &self,
        set: &EndpointSet,
        endpoint: &Arc<Endpoint>,
        cause: EjectionCause,
        now: Tick,
    ) -> Option<Shift> {
        let standing = &endpoint.stats.standing;
        // Another worker may have ejected it between our failure and our turn.
        let out = set.callable().filter(|e| e.stats.standing.is_out()).count();
        if standing.is_out()
            || !self.may_eject(out, set.callable().count())
            || !leaves_somebody(set, endpoint)
        {
            return None;
        }
        let ejection = self.ejection(standing, cause, now);
        standing.goes_out(&ejection);
        debug_assert_eq!(invariants::ejection(self, set), Ok(()));
        Some(Shift { endpoint: Arc::clone(endpoint), ejection: Some(ejection) })
    }

    /// The ejection that would begin now.
    fn ejection(&self, standing: &Standing, cause: EjectionCause, now: Tick) -> Ejection {
        let count = self.next_count(standing.ejections());
        let time = self.ejection_time(count);
        debug_assert_eq!(invariants::ejection_time(self, time), Ok(()));
        Ejection { until: now.after(time), count, cause }
    }

    /// Good behaviour takes ejections off the count. Nothing is written when there is nothing to forgive, so that healthy
    /// endpoints cost no shared write.
    fn forgive(&self, standing: &Standing, now: Tick) {
        if standing.ejections() > 0 && !self.base_ejection_time.is_zero() {
            standing.forgive_one(self.base_ejection_time, now);
        }
    }
}

/// Whether somebody is in beside this endpoint. Those who fail checks are not, though they are not ejected.
fn leaves_somebody(set: &EndpointSet, endpoint: &Arc<Endpoint>) -> bool {
    set.callable().any(|other| !Arc::ptr_eq(other, endpoint) && other.stats.standing.is_in())
}

#[cfg(test)]
mod tests;
