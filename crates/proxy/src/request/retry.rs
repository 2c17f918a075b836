//! Whether there is another attempt: what the policy says, and what is right without one.

use std::sync::Arc;
use std::time::Duration;

use meshwork_decision::{
    AttemptFailure, Cause, Cluster, Decision, Permit, RequestFacts, RetryPolicy, StopReason, is_idempotent,
};
use meshwork_http1::{KnownName, ResponseHead};

use super::body::RequestBody;
use super::deadline::Deadlines;
use super::journey::{Journey, decide};
use super::route::Target;
use crate::downstream::connection::Conn;
use crate::error::{Failure, Retry};
use crate::upstream::Head;

/// How often a request that no endpoint has seen is sent elsewhere when no policy says otherwise.
const UNSEEN_RETRIES: u32 = 2;

/// Another attempt.
pub(crate) enum Again {
    /// At once, on a new connection: the kept one was stale, which says nothing about the endpoint.
    SameEndpoint,
    /// Best somewhere else, after this time.
    Elsewhere { after: Duration, permit: Option<Permit> },
}

/// The repeating of one request.
pub(crate) struct Repeats<'a> {
    conn: &'a Conn,
    service: Option<(&'a Arc<Cluster>, Option<&'a Arc<RetryPolicy>>)>,
    /// Made when it is needed; where the policy has a budget, at once, since every request counts for that.
    state: Option<Box<meshwork_decision::Retry>>,
    unseen: u32,
    /// The application beside us was asked on a stale connection already.
    stale_app: bool,
}

impl<'a> Repeats<'a> {
    pub(crate) fn new(conn: &'a Conn, target: Target<'a>) -> Self {
        let service = match target {
            Target::Service { cluster, policy, .. } => Some((cluster, policy.retry(Some(cluster)))),
            Target::App { .. } => None,
        };
        let mut repeats = Self { conn, service, state: None, unseen: 0, stale_app: false };
        if let Some((cluster, Some(policy))) = service
            && policy.budget.is_some()
        {
            repeats.state(cluster, Some(policy));
        }
        repeats
    }

    fn state(
        &mut self,
        cluster: &Arc<Cluster>,
        policy: Option<&Arc<RetryPolicy>>,
    ) -> &mut meshwork_decision::Retry {
        let now = self.conn.worker.now();
        self.state.get_or_insert_with(|| Box::new(meshwork_decision::Retry::begin(policy, cluster, now)))
    }

    pub(crate) fn per_try_timeout(&self) -> Option<Duration> {
        self.service.and_then(|(_, policy)| policy?.per_try_timeout)
    }

    /// The number of the next attempt, once it is a retry that other hops must know of.
    pub(crate) fn counted(&self) -> Option<u32> {
        let retries = self.unseen + self.state.as_ref().map_or(0, |state| state.retries());
        (retries > 0).then_some(retries + 1)
    }

    /// What follows a failure.
    ///
    /// # Errors
    /// Nothing: it is final.
    pub(crate) fn after_failure(
        &mut self,
        failure: Failure,
        head: &Head<'_>,
        body: &RequestBody,
        deadlines: &Deadlines,
        endpoint: Option<u64>,
        journey: &mut Journey<'_>,
    ) -> Result<Again, Failure> {
        let Some(kind) = kind(&failure) else { return Err(failure) };
        let mut facts = facts(head, body, deadlines);
        facts.sent = failure.retry != Retry::NothingSent;
        let Some((cluster, policy)) = self.service else { return self.of_app(failure, &facts) };
        match self.decide(cluster, policy, kind, &facts, endpoint, journey) {
            Decision::Again { permit: None, .. } if kind == AttemptFailure::StaleConnection => {
                Ok(Again::SameEndpoint)
            }
            Decision::Again { after, permit } => Ok(Again::Elsewhere { after, permit }),
            Decision::Stop(StopReason::NotCalledFor) if self.may_go_elsewhere(policy, kind, &facts) => {
                if let Some(told) = journey.told() {
                    told.tell(
                        "retry",
                        format!("{kind:?}"),
                        "chosen",
                        "elsewhere: no endpoint has seen the request",
                    );
                }
                Ok(Again::Elsewhere { after: Duration::ZERO, permit: None })
            }
            Decision::Stop(stop) => Err(stopped(failure, stop)),
        }
    }

    /// What no endpoint has seen is tried elsewhere, unless a policy wants no retries at all: a policy names what calls
    /// for a retry besides.
    fn may_go_elsewhere(
        &mut self,
        policy: Option<&Arc<RetryPolicy>>,
        kind: AttemptFailure,
        facts: &RequestFacts,
    ) -> bool {
        let unseen = matches!(kind, AttemptFailure::Connect | AttemptFailure::Refused);
        let wanted = policy.is_none_or(|policy| policy.attempts > 0);
        let may = unseen && wanted && facts.replayable && !facts.nested && self.unseen < UNSEEN_RETRIES;
        self.unseen += u32::from(may);
        may
    }

    /// The inbound side does not retry: its caller does. A stale connection to the application is no attempt.
    fn of_app(&mut self, failure: Failure, facts: &RequestFacts) -> Result<Again, Failure> {
        let may = failure.retry == Retry::Reused && facts.idempotent && facts.replayable;
        if may && !std::mem::replace(&mut self.stale_app, true) {
            Ok(Again::SameEndpoint)
        } else {
            Err(failure)
        }
    }

    /// What follows a response; `None`: it is passed on.
    pub(crate) fn after_response(
        &mut self,
        response: &ResponseHead,
        head: &Head<'_>,
        body: &RequestBody,
        deadlines: &Deadlines,
        endpoint: Option<u64>,
        journey: &mut Journey<'_>,
    ) -> Option<Again> {
        let (cluster, Some(policy)) = self.service? else { return None };
        let kind = called_for(policy, response)?;
        match self.decide(cluster, Some(policy), kind, &facts(head, body, deadlines), endpoint, journey) {
            Decision::Again { after, permit } => Some(Again::Elsewhere { after, permit }),
            Decision::Stop(stop) => {
                // The response is the answer; that there was no other attempt, and why, goes into the record.
                if let Some(cause) = stop.cause() {
                    journey.failed(&Failure::local(cause).because(format!("status {}", response.status)));
                }
                None
            }
        }
    }

    fn decide(
        &mut self,
        cluster: &Arc<Cluster>,
        policy: Option<&Arc<RetryPolicy>>,
        kind: AttemptFailure,
        facts: &RequestFacts,
        endpoint: Option<u64>,
        journey: &mut Journey<'_>,
    ) -> Decision {
        let worker = &self.conn.worker;
        let (now, rng) = (worker.now(), &mut *worker.rng.borrow_mut());
        let state = self.state(cluster, policy);
        decide!(journey, |reasons| state.after(kind, endpoint, facts, now, rng, reasons))
    }
}

/// What a failure is to a retry policy; `None`: final, whatever the policy.
fn kind(failure: &Failure) -> Option<AttemptFailure> {
    Some(match (failure.retry, failure.cause) {
        (_, Cause::PerTryTimeout) => AttemptFailure::PerTryTimeout,
        (Retry::No, _) => return None,
        (_, Cause::UpstreamRefused) => AttemptFailure::Refused,
        (Retry::NothingSent, _) => AttemptFailure::Connect,
        (Retry::Reused, _) => AttemptFailure::StaleConnection,
        (Retry::Policy, _) => AttemptFailure::Reset,
    })
}

/// Whether a response is one that the policy names.
fn called_for(policy: &RetryPolicy, response: &ResponseHead) -> Option<AttemptFailure> {
    if policy.status_codes.contains(&response.status) {
        return Some(AttemptFailure::Status(response.status));
    }
    if policy.grpc_codes.is_empty() {
        return None;
    }
    let code = std::str::from_utf8(response.fields.known(KnownName::GrpcStatus)?).ok()?.parse().ok()?;
    policy.grpc_codes.contains(&code).then_some(AttemptFailure::Grpc(code))
}

fn facts(head: &Head<'_>, body: &RequestBody, deadlines: &Deadlines) -> RequestFacts {
    RequestFacts {
        idempotent: is_idempotent(head.method.as_str()),
        sent: true,
        replayable: body.is_replayable(),
        nested: head.nested,
        deadline: deadlines.end(),
    }
}

/// The failure as it is reported when a bound of the retries stood in the way of another attempt.
fn stopped(failure: Failure, stop: StopReason) -> Failure {
    let Some(cause) = stop.cause() else { return failure };
    let detail = failure.detail.as_deref().unwrap_or_default();
    let detail = format!("{}: {detail}", failure.cause);
    Failure { cause, ..failure }.because(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_is_what_a_policy_calls_it() {
        let of = |cause, retry| kind(&Failure::upstream(cause, retry));
        assert_eq!(of(Cause::ConnectFailure, Retry::NothingSent), Some(AttemptFailure::Connect));
        assert_eq!(of(Cause::UpstreamRefused, Retry::NothingSent), Some(AttemptFailure::Refused));
        assert_eq!(of(Cause::UpstreamReset, Retry::Reused), Some(AttemptFailure::StaleConnection));
        assert_eq!(of(Cause::UpstreamReset, Retry::Policy), Some(AttemptFailure::Reset));
        assert_eq!(of(Cause::UpstreamProtocolError, Retry::No), None);
        assert_eq!(kind(&Failure::local(Cause::PerTryTimeout)), Some(AttemptFailure::PerTryTimeout));
        assert_eq!(kind(&Failure::downstream(Cause::DownstreamClosed)), None);
    }

    #[test]
    fn a_spent_bound_is_reported_with_the_failure_behind_it() {
        let failure =
            Failure::upstream(Cause::ConnectFailure, Retry::NothingSent).because("10.0.0.1:80: refused");
        let stopped = stopped(failure, StopReason::Attempts);
        assert_eq!(stopped.cause, Cause::RetriesExhausted);
        assert_eq!(stopped.detail.as_deref(), Some("connect_failure: 10.0.0.1:80: refused"));
    }
}
