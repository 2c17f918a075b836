//! Repeating what failed, and not making it worse.
//!
//! *What calls for a retry.* An attempt ends as an [`AttemptFailure`], or with a status that the policy names. Connection
//! failures, resets, refusals, statuses and gRPC codes are each switched on by the policy. What is repeated where there is
//! none is repeated with any that allows a retry: an idempotent request whose connection broke before an answer, once.
//!
//! *What may be repeated.* A request of an idempotent method; any request of which nothing was sent; any request that
//! the upstream says it did not process; a gRPC call that ends with a code which the policy names, before anything of its
//! response was passed on: gRPC knows no methods but `POST`, and whoever names a code says that calls which end with it
//! may be made again (gRFC A6). Any other `POST` that was sent and answered 503 was perhaps processed, and is not
//! repeated. A request whose body is gone (`replayable` false) is never repeated: whoever refuses its stream may have read
//! what nobody else has any more.
//!
//! *How often.* At most `attempts` after the first, within the request's deadline, within the service's budget over ten
//! seconds and its limit of retries under way; budget and limit are process-wide, and there is no retry without a budget.
//! Where retries do not help there are few of them, whatever the budget is: see the text of its module `worth`.
//! Whoever carries the request may send what no endpoint has seen elsewhere without the budget; that counts among `attempts`.
//! A request that is itself a retry of the hop before (`nested`) is not repeated here, or attempts would multiply from hop
//! to hop. What an answer says about it (`PushBack`) is respected: never, or not before so long.
//!
//! *When.* After a back-off drawn evenly between zero and `base × 2^n`, capped: spread matters more than the mean. Where
//! the endpoint said how long to stay away, that time comes first; if it is longer than [`LONGEST_PUSH_BACK`], or than the
//! request has, its answer is passed on instead. What it said of itself alone holds for nobody else: whoever carries the request
//! waits for it before the back-off, and after that, only as long as [there is no other](Cluster::has_another). A
//! reused connection that the peer closed before any byte of the response says nothing about the endpoint: it is
//! repeated at once on a fresh connection, without counting as an attempt, but only once for each endpoint tried.
//!
//! *Ties.* A deadline that ends exactly when the back-off would is over: nothing could be sent any more.

mod budget;
pub(crate) mod worth;

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Rng, Tick};
use smallvec::SmallVec;

use crate::cause::Cause;
use crate::cluster::Cluster;
use crate::hedge::Hedged;
use crate::invariants;
use crate::limits::Permit;
use crate::reasons::{Outcome, Phase, Reason, Reasons};

pub use budget::RetryBudget;
pub(crate) use budget::{Budget, BudgetWindow, Refused, Taken};
pub(crate) use worth::End;

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
    /// The time of one attempt, from when the request is there until its response begins.
    pub per_try_timeout: Option<Duration>,
    /// The first back-off; zero: none.
    pub backoff_base: Duration,
    /// The longest back-off.
    pub backoff_max: Duration,
    /// How many retries there may be besides ordinary requests.
    pub budget: RetryBudget,
}

impl RetryPolicy {
    /// The longest that the back-off before the `retry`-th retry (from 1) may be.
    #[must_use]
    pub fn backoff_ceiling(&self, retry: u32) -> Duration {
        let doubled = 1u32.checked_shl(retry.saturating_sub(1)).unwrap_or(u32::MAX);
        self.backoff_base.saturating_mul(doubled).min(self.backoff_max)
    }

    fn backoff(&self, retry: u32, rng: &mut impl Rng) -> Duration {
        let ceiling = u64::try_from(self.backoff_ceiling(retry).as_nanos()).unwrap_or(u64::MAX);
        let chosen = Duration::from_nanos(rng.below(ceiling.saturating_add(1)));
        debug_assert_eq!(invariants::backoff(self, retry, chosen), Ok(()));
        chosen
    }

    fn calls_for(&self, failure: AttemptFailure) -> bool {
        match failure {
            AttemptFailure::Connect => self.on_connect_failure,
            AttemptFailure::Refused => self.on_refused,
            AttemptFailure::Reset | AttemptFailure::PerTryTimeout | AttemptFailure::InLine => self.on_reset,
            AttemptFailure::Status(status) => self.status_codes.contains(&status),
            AttemptFailure::Grpc(code) => self.grpc_codes.contains(&code),
            AttemptFailure::StaleConnection => true,
        }
    }
}

/// The longest that a request waits because an endpoint asked for it.
pub const LONGEST_PUSH_BACK: Duration = Duration::from_secs(10);

/// What an answer says about being asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushBack {
    /// Do not (a negative `grpc-retry-pushback-ms`, `x-envoy-overloaded`).
    Never,
    /// Not before so long, whoever is asked: it is said of the call (`grpc-retry-pushback-ms`).
    After(Duration),
    /// Not this endpoint before so long (`Retry-After`): [`Decision::Again`] leaves it to whoever carries the request to wait for
    /// that while there is no other, see [`Cluster::has_another`].
    Spare(Duration),
}

impl PushBack {
    /// How long to wait; `None`: the answer is final.
    #[must_use]
    pub fn wait(self, deadline: Option<Tick>, now: Tick) -> Option<Duration> {
        let (Self::After(time) | Self::Spare(time)) = self else { return None };
        let fits = deadline.is_none_or(|deadline| deadline > now.after(time));
        (fits && time <= LONGEST_PUSH_BACK).then_some(time)
    }
}

/// How an attempt failed, or what it answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptFailure {
    /// No connection; nothing was sent.
    Connect,
    /// The upstream says that it processed nothing (`REFUSED_STREAM`, GOAWAY below the stream).
    Refused,
    /// A reused connection was closed before any byte of the response.
    StaleConnection,
    /// Reset or closed before the response began.
    Reset,
    /// The attempt's time is over.
    PerTryTimeout,
    /// The attempt's time is over, and it still waited for one of our own connections: no endpoint was asked.
    InLine,
    /// A response of this status.
    Status(u16),
    /// A gRPC response that is only trailers, with this code.
    Grpc(u16),
}

impl AttemptFailure {
    /// No endpoint has seen the request.
    const fn is_unseen(self) -> bool {
        matches!(self, Self::Connect | Self::Refused)
    }

    /// The cause that is reported when this failure is final; `None` for a response, which is passed on.
    #[must_use]
    pub const fn cause(self) -> Option<Cause> {
        match self {
            Self::Connect => Some(Cause::ConnectFailure),
            Self::Refused => Some(Cause::UpstreamRefused),
            Self::StaleConnection => Some(Cause::UpstreamClosed),
            Self::Reset => Some(Cause::UpstreamReset),
            Self::PerTryTimeout => Some(Cause::PerTryTimeout),
            Self::InLine => Some(Cause::MaxConnections),
            Self::Status(_) | Self::Grpc(_) => None,
        }
    }
}

/// What is known about the request when an attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFacts<'t> {
    /// Its method is idempotent, see [`is_idempotent`].
    pub idempotent: bool,
    /// Some of it was handed to the upstream in this attempt.
    pub sent: bool,
    /// It can be sent again: without body, or the body is still kept.
    pub replayable: bool,
    /// It carries the attempt header of a retry of the hop before.
    pub nested: bool,
    /// When its time is over.
    pub deadline: Option<Tick>,
    /// What the answer said about being asked again.
    pub push_back: Option<PushBack>,
    /// Endpoints that had it, the one that has failed now among them: another attempt goes elsewhere, if it can.
    pub tried: &'t [u64],
}

/// Whether repeating a request of this method has no effect of its own (RFC 9110, 9.2.2).
#[must_use]
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// What follows a failed attempt.
#[derive(Debug)]
pub enum Decision {
    /// Another attempt, after this time, best on an endpoint not in [`Retry::tried`]. The permit is kept until that
    /// attempt ends.
    Again {
        /// How long to wait first.
        after: Duration,
        /// Counts the retry; absent for one that costs nothing.
        permit: Option<Permit>,
    },
    /// No more; the last response is passed on, or the last failure reported.
    Stop(StopReason),
}

/// Why there is no other attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    /// No retry policy applies, or it does not name this failure.
    NotCalledFor,
    /// The request may have been processed and is not idempotent.
    NotRepeatable,
    /// Its body is gone.
    NotReplayable,
    /// The hop before repeats it already.
    Nested,
    /// The policy's attempts are used up.
    Attempts,
    /// The budget is spent.
    Budget,
    /// Retries of late did not help; the budget has few until one does.
    InVain,
    /// Too many retries are under way.
    MaxRetries,
    /// Its time would be over before.
    Deadline,
    /// The endpoint asked for it, or for a longer wait than there may be.
    PushBack,
}

impl StopReason {
    /// The cause to report instead of the last failure's own; `None`: the failure's own.
    #[must_use]
    pub const fn cause(self) -> Option<Cause> {
        match self {
            // An answer that wants no other attempt is the last one, as after all that the policy allows.
            Self::Attempts | Self::PushBack => Some(Cause::RetriesExhausted),
            Self::Budget | Self::InVain => Some(Cause::RetryBudget),
            Self::MaxRetries => Some(Cause::MaxRetries),
            Self::Deadline => Some(Cause::RequestTimeout),
            Self::NotCalledFor | Self::NotRepeatable | Self::NotReplayable | Self::Nested => None,
        }
    }

    /// Whether the failure is final though it was one to repeat: the hop before must not begin anew.
    #[must_use]
    pub const fn is_for_good(self) -> bool {
        match self {
            Self::Attempts
            | Self::Budget
            | Self::InVain
            | Self::MaxRetries
            | Self::Deadline
            | Self::Nested
            | Self::PushBack => true,
            Self::NotCalledFor | Self::NotRepeatable | Self::NotReplayable => false,
        }
    }

    /// For people.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::NotCalledFor => "no retry policy names this failure",
            Self::NotRepeatable => "the request may have been processed and its method is not idempotent",
            Self::NotReplayable => "the request's body is gone",
            Self::Nested => "the request is a retry of the hop before",
            Self::Attempts => "the policy's attempts are used up",
            Self::Budget => "the retry budget is spent",
            Self::InVain => "retries of late did not help, so that there are few until one does",
            Self::MaxRetries => "as many retries as the limit allows are under way",
            Self::Deadline => "the request's time would be over before",
            Self::PushBack => "the endpoint asked not to be asked again, or not for long",
        }
    }
}

/// The attempts of one request.
#[derive(Debug)]
pub struct Retry {
    policy: Option<Arc<RetryPolicy>>,
    cluster: Arc<Cluster>,
    retries: u32,
    tried: SmallVec<[u64; 4]>,
    /// The endpoint to which a kept connection was stale.
    stale: Option<u64>,
    /// What the attempt under way was taken from the budget as, which has not heard yet how it ended.
    taken: Option<Taken>,
    /// Attempts made without the budget, and why it gave none.
    unpaid: u32,
    refused: Option<StopReason>,
    /// The budget has heard that a retry of this request ended badly.
    has_failed: bool,
    /// What its policy does not name was repeated all the same.
    has_repeated_unnamed: bool,
}

impl From<Refused> for StopReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Spent => Self::Budget,
            Refused::InVain => Self::InVain,
        }
    }
}

impl Retry {
    /// Begins a request; it counts for the budget.
    #[must_use]
    pub fn begin(policy: Option<&Arc<RetryPolicy>>, cluster: &Arc<Cluster>, now: Tick) -> Self {
        cluster.count_request(now);
        Self::of_counted(policy, cluster)
    }

    /// The attempts of a request that was counted when it began.
    #[must_use]
    pub fn of_counted(policy: Option<&Arc<RetryPolicy>>, cluster: &Arc<Cluster>) -> Self {
        let cluster = Arc::clone(cluster);
        Self {
            policy: policy.cloned(),
            cluster,
            retries: 0,
            tried: SmallVec::new(),
            stale: None,
            taken: None,
            unpaid: 0,
            refused: None,
            has_failed: false,
            has_repeated_unnamed: false,
        }
    }

    /// Endpoints that have failed this request.
    #[must_use]
    pub fn tried(&self) -> &[u64] {
        &self.tried
    }

    /// Whether a kept connection to this endpoint was stale for this request.
    #[must_use]
    pub fn was_stale(&self, endpoint: u64) -> bool {
        self.stale == Some(endpoint)
    }

    /// Retries so far, without those of stale connections, and without what the budget has not paid for.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// The time of one attempt: the policy's.
    #[must_use]
    pub fn per_try_timeout(&self) -> Option<Duration> {
        self.policy.as_ref().and_then(|p| p.per_try_timeout)
    }

    /// Takes one repetition that no policy asks for from the default budget, if it has one left.
    #[must_use]
    pub fn may_repeat(&mut self, now: Tick) -> bool {
        self.taken = self.cluster.shared.budget.retry(RetryBudget::DEFAULT, now).ok();
        self.taken.is_some()
    }

    /// A hedge goes on as the request's attempt: how it ends is told as of a repetition.
    pub fn goes_on_as(&mut self, hedged: &Hedged) {
        self.taken = Some(hedged.taken);
    }

    /// The attempt that was to come is not made: a limit or a breaker stood in its way, and nobody has seen it. It has cost
    /// nothing.
    pub fn not_made(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.cluster.shared.budget.give_back(taken);
        }
    }

    /// What no endpoint has seen is sent elsewhere, though there is no retry for it. Where that is because the budget gives
    /// nothing it counts as one of the policy's attempts, and the budget is not asked again for what no endpoint has seen.
    pub fn goes_elsewhere(&mut self, stop: StopReason) {
        if matches!(stop, StopReason::Budget | StopReason::InVain) {
            self.unpaid += 1;
            self.refused = Some(stop);
        }
    }

    /// An attempt has ended. If it was a repetition, the budget learns whether that helped: by [`Self::after`], where it
    /// was a failure. What ends without a word on the service, as when the caller leaves, is not told.
    pub fn ended(&mut self, well: bool) {
        if self.taken.take().is_none() {
            return;
        }
        let end = match well {
            true => End::Well,
            false if mem::replace(&mut self.has_failed, true) => End::BadlyAgain,
            false => End::Badly,
        };
        self.cluster.shared.budget.ended(end);
    }

    /// The attempt has ended without a word on the service.
    pub fn ended_silently(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.cluster.shared.budget.ended_silently(taken);
        }
    }

    /// Decides what follows a failure. `endpoint` is the id of the endpoint that failed, when one was picked.
    pub fn after(
        &mut self,
        failure: AttemptFailure,
        endpoint: Option<u64>,
        facts: &RequestFacts<'_>,
        now: Tick,
        rng: &mut impl Rng,
        reasons: &mut impl Reasons,
    ) -> Decision {
        // The same attempt on another connection has not ended.
        let is_stale = self.is_stale(failure, endpoint);
        if failure == AttemptFailure::InLine {
            // Our own connections say nothing about what a retry is worth.
            self.ended_silently();
        } else if !is_stale {
            self.ended(false);
        }
        let decision = match self.decide(failure, endpoint, facts, now, rng) {
            Ok((after, permit)) => Decision::Again { after, permit },
            Err(stop) => Decision::Stop(stop),
        };
        reasons.note(|| {
            let (outcome, why) = match &decision {
                Decision::Again { after, .. } => (Outcome::Chosen, format!("again after {after:?}")),
                Decision::Stop(stop) => (Outcome::Refused, stop.why().to_owned()),
            };
            Reason { phase: Phase::Retry, subject: format!("{failure:?}"), outcome, why }
        });
        decision
    }

    /// Whether the same is called again on a new connection, once for a request: one that breaks connections wherever it is
    /// sent would reach every endpoint. Not where a policy wants no attempt but the first.
    fn is_stale(&self, failure: AttemptFailure, endpoint: Option<u64>) -> bool {
        failure == AttemptFailure::StaleConnection
            && endpoint.is_some()
            && self.stale.is_none()
            && self.policy.as_ref().is_none_or(|policy| policy.attempts > 0)
    }

    fn decide(
        &mut self,
        failure: AttemptFailure,
        endpoint: Option<u64>,
        facts: &RequestFacts<'_>,
        now: Tick,
        rng: &mut impl Rng,
    ) -> Result<(Duration, Option<Permit>), StopReason> {
        repeatable(failure, facts, now)?;
        if self.is_stale(failure, endpoint) {
            self.stale = endpoint;
            return Ok((Duration::ZERO, None));
        }
        let (policy, wait) = self.called_for(failure, facts, now)?;
        let is_named = policy.calls_for(failure);
        let back_off = policy.backoff(self.retries + 1, rng);
        let in_all = back_off.saturating_add(wait);
        if facts.deadline.is_some_and(|d| d <= now.after(in_all)) {
            return Err(StopReason::Deadline);
        }
        let after = if matches!(facts.push_back, Some(PushBack::Spare(_))) { back_off } else { in_all };
        let permit =
            self.cluster.admit_retry(facts.tried, endpoint, now).map_err(|_| StopReason::MaxRetries)?;
        self.taken = match self.refused {
            Some(refused) if failure.is_unseen() => return Err(refused),
            _ => Some(self.cluster.shared.budget.retry(policy.budget, now)?),
        };
        self.has_repeated_unnamed |= !is_named;
        self.retries += 1;
        self.tried.extend(endpoint);
        Ok((after, Some(permit)))
    }

    /// Whether a failure would be repeated, if there is anything left of what that costs. Nothing is taken.
    #[must_use]
    pub fn would_repeat(&self, failure: AttemptFailure, facts: &RequestFacts<'_>, now: Tick) -> bool {
        repeatable(failure, facts, now).and_then(|()| self.called_for(failure, facts, now)).is_ok()
    }

    /// The policy that calls for a repetition, and how long the endpoint wants to be left alone before it.
    fn called_for(
        &self,
        failure: AttemptFailure,
        facts: &RequestFacts<'_>,
        now: Tick,
    ) -> Result<(&RetryPolicy, Duration), StopReason> {
        let unnamed = failure == AttemptFailure::Reset && facts.idempotent && !self.has_repeated_unnamed;
        let Some(policy) = self.policy.as_ref().filter(|p| unnamed || p.calls_for(failure)) else {
            return Err(StopReason::NotCalledFor);
        };
        if facts.nested {
            return Err(StopReason::Nested);
        }
        if policy.attempts == 0 {
            // Nothing is used up where nothing was to be repeated.
            return Err(StopReason::NotCalledFor);
        }
        if self.retries + self.unpaid >= policy.attempts {
            return Err(StopReason::Attempts);
        }
        let wait = facts.push_back.map_or(Some(Duration::ZERO), |said| said.wait(facts.deadline, now));
        Ok((policy, wait.ok_or(StopReason::PushBack)?))
    }
}

/// What its last repetition came to nobody has heard: its caller has left, or something else stood in the way.
impl Drop for Retry {
    fn drop(&mut self) {
        self.ended_silently();
    }
}

/// What of the request itself stands in the way of repeating it.
fn repeatable(failure: AttemptFailure, facts: &RequestFacts<'_>, now: Tick) -> Result<(), StopReason> {
    let whatever_the_method = failure.is_unseen() || matches!(failure, AttemptFailure::Grpc(_));
    if !(facts.idempotent || !facts.sent || whatever_the_method) {
        return Err(StopReason::NotRepeatable);
    }
    if !facts.replayable {
        return Err(StopReason::NotReplayable);
    }
    if facts.deadline.is_some_and(|d| d <= now) {
        return Err(StopReason::Deadline);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
