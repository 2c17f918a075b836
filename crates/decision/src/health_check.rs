//! Active health checks: endpoints are asked whether they serve, whether or not anybody calls them.
//!
//! ```text
//!                         the first answer of all
//!              passed   ┌────────── unknown ─────────┐   failed
//!                       ▼                            ▼
//!                    healthy ── n failures in a row ──▶ unhealthy
//!                       ▲                            │
//!                       └─── m successes in a row ───┘
//! ```
//!
//! *Unknown* is in: what nobody has asked yet serves. *Unhealthy* is out as an ejected endpoint is: passed by as long as
//! another is in, disregarded in panic, tried by nobody, since the next answer says more than a request would.
//!
//! *Beside outlier detection.* Both must be content: who fails checks is out whatever requests said, and who was ejected
//! by requests stays out though checks pass, since a health page may be well where the rest is not. (Envoy lets an active
//! success un-eject; we ask for a real request.) But a check that passes again after it failed brings that trial forward
//! to now: what had ended the endpoint is over. Endpoints that fail checks do not count towards `max_ejection_percent`,
//! but outlier detection leaves the last one that is in.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Rng, Tick};

use crate::endpoint::Endpoint;
use crate::invariants;
use crate::reasons::Outcome;

/// How endpoints are asked, and what follows. The names are Envoy's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: HealthProbe,
    /// From one answer to the next question.
    pub interval: Duration,
    /// Up to so much longer.
    pub interval_jitter: Duration,
    /// How long an answer may take, the connection included.
    pub timeout: Duration,
    /// The interval as long as nobody calls the service.
    pub no_traffic_interval: Duration,
    /// Failures in a row that take an endpoint out; at least 1.
    pub unhealthy_threshold: u32,
    /// Successes in a row that take it in again; at least 1.
    pub healthy_threshold: u32,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthProbe {
    /// A request.
    Http {
        /// Its method.
        method: Arc<str>,
        /// Path and query.
        path: Arc<str>,
        /// Absent: NAME.NAMESPACE of the service.
        host: Option<Arc<str>>,
        /// The statuses that say that it serves.
        expected: Box<[Range<u16>]>,
    },
    /// A connection, and bytes on it.
    Tcp {
        /// What is sent; may be empty.
        send: Box<[u8]>,
        /// What must come; may be empty.
        receive: Box<[u8]>,
    },
    /// gRPC's health service.
    Grpc {
        /// The service that is asked about; empty: the whole server.
        service: Arc<str>,
    },
}

/// What checks say of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Checked {
    /// None has been answered yet, or nobody asks.
    #[default]
    Unknown,
    /// It serves.
    Healthy,
    /// It does not.
    Unhealthy,
}

impl Checked {
    /// As metrics and logs call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The checks of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    state: Checked,
    /// Answers in a row that speak against the state.
    against: u32,
}

impl Checks {
    /// The checks of an endpoint of which this is known from before.
    #[must_use]
    pub const fn resumed(state: Checked) -> Self {
        Self { state, against: 0 }
    }

    /// What they say.
    #[must_use]
    pub const fn state(&self) -> Checked {
        self.state
    }

    /// One more has been answered, or not. Returns what they say now, if that is something else.
    pub fn take(&mut self, policy: &HealthCheck, passed: bool) -> Option<Checked> {
        let threshold = match (self.state, passed) {
            (Checked::Unknown, _) => 1,
            (Checked::Healthy, false) => policy.unhealthy_threshold,
            (Checked::Unhealthy, true) => policy.healthy_threshold,
            (Checked::Healthy, true) | (Checked::Unhealthy, false) => {
                self.against = 0;
                return None;
            }
        };
        self.against = self.against.saturating_add(1);
        let changes = self.against >= threshold;
        if changes {
            self.state = if passed { Checked::Healthy } else { Checked::Unhealthy };
            self.against = 0;
        }
        debug_assert_eq!(invariants::checks(policy, self.state, self.against), Ok(()));
        changes.then_some(self.state)
    }
}

impl HealthCheck {
    /// The pause before the next question.
    #[must_use]
    pub fn pause(&self, has_traffic: bool, rng: &mut impl Rng) -> Duration {
        let interval = if has_traffic { self.interval } else { self.no_traffic_interval };
        interval + self.interval_jitter.mul_f64(rng.unit())
    }

    /// Whether a status says that the endpoint serves; only requests have one.
    #[must_use]
    pub fn expects(&self, status: u16) -> bool {
        match &self.probe {
            HealthProbe::Http { expected, .. } => expected.iter().any(|range| range.contains(&status)),
            HealthProbe::Tcp { .. } | HealthProbe::Grpc { .. } => false,
        }
    }
}

/// What an explanation says of an endpoint that fails its checks.
pub(crate) fn explained(
    endpoint: &Arc<Endpoint>,
    picked: Option<&Arc<Endpoint>>,
) -> Option<(Outcome, String)> {
    if endpoint.stats.checked() != Checked::Unhealthy {
        return None;
    }
    let why = endpoint.stats.check_failure();
    let why = format!("it fails this proxy's health checks: {}", why.as_deref().map_or("", String::as_str));
    let is_picked = picked.is_some_and(|picked| Arc::ptr_eq(picked, endpoint));
    Some(match is_picked {
        true => (Outcome::Chosen, format!("picked, since no other is there; {why}")),
        false => (Outcome::Skipped, why),
    })
}

impl Endpoint {
    /// What checks say of it now. A failure comes with its reason; nothing else does.
    pub fn check(&self, says: Checked, failure: Option<Arc<String>>, now: Tick) {
        self.stats.check_failure.store(failure);
        let before = self.stats.checked();
        self.stats.standing.check(says);
        if before == Checked::Unhealthy && says == Checked::Healthy {
            self.stats.standing.bring_forward(now);
        }
    }
}

#[cfg(test)]
mod tests;
