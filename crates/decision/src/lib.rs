//! What a proxy decides, as pure functions over an immutable snapshot: which listener and rule take a request, what
//! their filters make of it, which backend and endpoint it goes to, whether a failed attempt is repeated. No I/O, no
//! async, no globals; time and chance are given.
//!
//! ```text
//! messages ─▶ SnapshotBuilder ─▶ Arc<Snapshot>
//!                                   │ bindings()                   one per address and port
//!                                   ▼
//!   request ─▶ Binding::route ─▶ Matched{listener, route, rule, policy}
//!                                   │ rule().filters()             edits, redirect, rewrite: data and pure functions
//!                                   │ rule().choose_backend(rng)   by weight
//!                                   ▼
//!                                Cluster::pick(now, rng, tried) ─▶ Arc<Endpoint>
//! ```
//!
//! The same functions serve live traffic and `explain`: [`Reasons`] is a parameter, and [`NoReasons`] compiles to
//! nothing. Every local failure is a [`Cause`], which one table maps to Envoy's flag and a status.

mod admission;
mod affinity;
mod authorization;
mod balance;
mod binding;
mod breaker;
mod builder;
mod cause;
mod cluster;
mod convert;
mod deadline;
mod endpoint;
mod episode;
mod fault;
mod filter;
mod health_check;
mod hedge;
mod hostname;
mod inbound;
pub mod invariants;
mod kinship;
mod labels;
mod limits;
mod load;
mod matching;
mod mirror;
mod origin;
mod outage;
mod outbound;
mod outlier;
mod overload;
mod path;
mod policy;
mod preference;
mod proxy_protocol;
mod rate_limit;
mod reasons;
mod request;
mod retry;
mod route;
mod session;
pub mod simulator;
mod sizes;
mod snapshot;
mod stream;
mod subset;
mod subsetting;
mod table;
mod trust;
mod usual;
pub mod verdicts;

pub use admission::{AdmissionCause, AdmissionChange, AdmissionControl, AdmissionState, AdmissionView};
pub use affinity::{HashKey, HashRule, HashSource, Hashing, NewCookie};
pub use authorization::{Action, Authorization, AuthorizationPolicy, Denied};
pub use balance::{Rank, SlowStart, TierState};
pub use binding::{Binding, Listener, Matched, Protocol, Routed, Secret};
pub use breaker::{
    BreakerCause, BreakerChange, BreakerMode, BreakerState, BreakerView, Call, CircuitBreaker, ForcedBy,
    ForcedState, RouteBreaker, Ticket, Whose, WindowSize,
};
pub use builder::{Change, Rejection, Severity, SnapshotBuilder, Sources};
pub use cause::{Cause, ResponseFlag};
pub use cluster::{Algorithm, AppProtocol, Cluster, ClusterKey, Wanted};
pub use deadline::{read_grpc_timeout, read_millis, write_grpc_timeout};
pub use endpoint::{Endpoint, EndpointSet, EndpointStats, Exclusion, Health, InFlight, Transport};
pub use fault::{Abort, FaultInjection, Injected, Injection, Share, http_status};
pub use filter::{Filter, HeaderEdit, HeaderEdits, PathEdit, Redirect, Rewrite};
pub use health_check::{Checked, Checks, HealthCheck, HealthProbe};
pub use hedge::{Hedge, HedgeDelay, HedgeFacts, HedgePolicy, Hedged, Leg, NoHedge, Race, Reply, Verdict};
pub use hostname::{HostPattern, HostPatternError};
pub use inbound::{AppState, Inbound, InboundPort, Mtls, UNTOLD, mesh_sni, tunnel_authority};
pub use kinship::{Allotted, Family, Kin, Kinship};
pub use limits::{AwaitedRoom, ConnectionLimit, ConnectionPermit, Limited, Limits, PendingPermit, Permit};
pub use load::Answer;
pub use matching::{FieldMatch, PathMatch, Pattern, PatternError, RouteMatch, ValueMatch};
pub use mirror::Mirror;
pub use origin::Origin;
pub use outbound::{OutboundPort, OutboundService};
pub use outlier::{
    AttemptOutcome, Ejection, EjectionCause, FailurePercentage, OutlierDetection, Picked, Shift, SuccessRate,
    Trial,
};
pub use overload::{
    AdaptiveConcurrency, Entered, Gate, GateChange, GateView, Guard, Overload, Pass, Priority, Queue, Shed,
    Tally, Waiting,
};
pub use path::normal_path;
pub use policy::{RulePolicy, Timeouts};
pub use preference::{Distance, Locality, Prefer, Preference};
pub use proxy_protocol::{ProxyProtocol, ProxyVersion};
pub use rate_limit::{Allowance, Caller, LimitText, RateLimit, RateSpec, whole_seconds};
pub use reasons::{Explanation, NoReasons, Outcome, Phase, Reason, Reasons};
pub use request::{OwnedRequest, RequestView, Scheme, split_authority};
pub use retry::{
    AttemptFailure, Decision, LONGEST_PUSH_BACK, PushBack, RequestFacts, Retry, RetryBudget, RetryPolicy,
    StopReason, is_idempotent,
};
pub use route::{Backend, Route, Rule, Target};
pub use session::{Carrier, NewSession, Renewal, Resumed, SessionPersistence};
pub use snapshot::Snapshot;
pub use stream::Stream;
pub use trust::Bundle;
pub use usual::{AppCalls, Operation, Took, Usuals};

#[cfg(test)]
mod tests;
