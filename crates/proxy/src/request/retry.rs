//! Whether there is another attempt: what the policy says, and what is right without one.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Clock;
use meshwork_decision::{
    AttemptFailure, AttemptOutcome, Cause, Cluster, Decision, Endpoint, Hedged, Limited, Permit, PushBack,
    RequestFacts, RetryPolicy, StopReason, Transport, Wanted, is_idempotent,
};
use meshwork_http1::{Fields, KnownName, ResponseHead};
use smallvec::SmallVec;

use super::body::RequestBody;
use super::deadline::Deadlines;
use super::journey::{Journey, decide};
use super::route::Target;
use super::{answer, kin, overload};
use crate::downstream::connection::Conn;
use crate::error::{Failure, Fault, Retry};
use crate::upstream::{Head, UNSEEN_RETRIES};

/// How often an idempotent request whose connection broke before the response began is sent again without a policy.
const RESET_RETRIES: u32 = 1;

/// Another attempt.
pub(crate) enum Again {
    /// At once: a kept connection was stale, which says nothing about its endpoint. That is called on a new one.
    SameEndpoint,
    /// Best somewhere else, after this time. `spared`: how long whoever has answered wants to be left alone besides, as long as
    /// nobody else is there; `None`: for longer than is waited.
    Elsewhere { after: Duration, spared: Option<Duration>, permit: Option<Permit> },
    /// Anywhere, after this time: nobody can be reached.
    Anywhere { after: Duration, waiting: Permit },
}

/// An attempt that a response calls for.
pub(crate) struct Called {
    /// As what, by the policy; `None`: nobody has seen the request, and none names its answer.
    kind: Option<AttemptFailure>,
    facts: RequestFacts<'static>,
    /// See [`Again::Elsewhere`].
    spared: Option<Duration>,
}

/// What an attempt that has ended was part of.
#[derive(Clone, Copy)]
pub(crate) struct Of<'e, 'b> {
    pub(crate) head: &'e Head<'e>,
    pub(crate) body: &'e RequestBody<'b>,
    pub(crate) deadlines: &'e Deadlines,
    /// Whom it went to, where one was picked.
    pub(crate) endpoint: Option<u64>,
}

impl Again {
    /// Elsewhere, after this time and no other.
    const fn elsewhere(after: Duration, permit: Option<Permit>) -> Self {
        Self::Elsewhere { after, spared: Some(Duration::ZERO), permit }
    }
}

impl Of<'_, '_> {
    /// Without who had it, which is known where it is decided.
    fn facts(&self) -> RequestFacts<'static> {
        RequestFacts {
            idempotent: is_idempotent(self.head.method.as_str()),
            sent: true,
            replayable: self.body.is_replayable(),
            nested: self.head.nested,
            deadline: self.deadlines.end(),
            push_back: None,
            tried: &[],
        }
    }
}

/// The repeating of one request.
pub(crate) struct Repeats<'a> {
    conn: &'a Conn,
    service: Option<(&'a Arc<Cluster>, Option<&'a Arc<RetryPolicy>>)>,
    /// Made when it is needed.
    state: Option<Box<meshwork_decision::Retry>>,
    unseen: u8,
    reset: u8,
    /// Pauses in which nobody could be reached.
    pauses: u32,
    /// The endpoints that this request could not reach since the last pause.
    unreached: SmallVec<[u64; 4]>,
    /// The application beside us was asked on a stale connection already.
    stale_app: bool,
}

impl<'a> Repeats<'a> {
    pub(crate) fn new(conn: &'a Conn, target: Target<'a>) -> Self {
        let service = match target {
            Target::Service { cluster, policy, .. } => Some((cluster, policy.retry(cluster))),
            Target::App { .. } => None,
        };
        if let Some((cluster, _)) = service {
            cluster.count_request(conn.worker.now());
        }
        Self {
            conn,
            service,
            state: None,
            unseen: 0,
            reset: 0,
            pauses: 0,
            unreached: SmallVec::new(),
            stale_app: false,
        }
    }

    fn state(
        &mut self,
        cluster: &Arc<Cluster>,
        policy: Option<&Arc<RetryPolicy>>,
    ) -> &mut meshwork_decision::Retry {
        self.state.get_or_insert_with(|| Box::new(meshwork_decision::Retry::of_counted(policy, cluster)))
    }

    pub(crate) fn per_try_timeout(&self) -> Option<Duration> {
        self.service.and_then(|(_, policy)| policy?.per_try_timeout)
    }

    /// The number of the next attempt, once it is a retry that other hops must know of.
    pub(crate) fn counted(&self) -> Option<u32> {
        let retries =
            u32::from(self.unseen + self.reset) + self.state.as_ref().map_or(0, |state| state.retries());
        (retries > 0).then_some(retries + 1)
    }

    /// What follows a failure. `tried`: who had the request.
    ///
    /// # Errors
    /// Nothing: it is final.
    pub(crate) fn after_failure(
        &mut self,
        failure: Failure,
        of: &Of<'_, '_>,
        tried: &[u64],
        journey: &mut Journey<'_>,
    ) -> Result<Again, Failure> {
        let follows = self.follows(failure, of, tried, journey);
        // Its time may be over, and then no policy is asked.
        if follows.as_ref().is_err_and(|failure| answer::of_failure(failure, Duration::ZERO).is_some()) {
            self.ended(false);
        }
        follows
    }

    fn follows(
        &mut self,
        failure: Failure,
        of: &Of<'_, '_>,
        tried: &[u64],
        journey: &mut Journey<'_>,
    ) -> Result<Again, Failure> {
        let mut facts = of.facts();
        if let (Cause::NoHealthyUpstream, Some((cluster, policy))) = (failure.cause, self.service) {
            return self.wait(cluster, policy, &facts).ok_or(failure);
        }
        let Some(kind) = kind(&failure) else { return Err(failure) };
        facts.sent = failure.retry != Retry::NothingSent;
        let Some((cluster, policy)) = self.service else { return self.of_app(failure, &facts) };
        // Whoever is there and will not have us is not waited for; nor does what cannot be sent again wait.
        let is_away = facts.replayable
            && kind != AttemptFailure::InLine
            && is_away(failure.cause, cluster, of.endpoint);
        if is_away {
            self.unreached.extend(of.endpoint);
            // With nobody left to try, trying again is no retry but waiting.
            if (self.pauses > 0 || self.has_tried_all(cluster))
                && let Some(again) = self.go_on(cluster, policy, &facts)
            {
                // If it was a repetition, it has ended without help.
                self.ended(false);
                return Ok(again);
            }
        }
        if let (true, Some(state)) = (failure.is_hasty, &mut self.state) {
            state.ended_silently();
        }
        match self.decide(cluster, policy, kind, (&facts, of.endpoint, tried), journey) {
            Decision::Again { permit: None, .. } if kind == AttemptFailure::StaleConnection => {
                Ok(Again::SameEndpoint)
            }
            Decision::Again { after, permit } => Ok(Again::elsewhere(after, permit)),
            // Where nobody has seen it, a budget without a retry says nothing against another endpoint.
            Decision::Stop(stop @ (StopReason::NotCalledFor | StopReason::Budget | StopReason::InVain))
                if self.may_go_elsewhere(cluster, policy, kind, &facts) =>
            {
                self.state(cluster, policy).goes_elsewhere(stop);
                if let Some(told) = journey.told() {
                    told.tell(
                        "retry",
                        format!("{kind:?}"),
                        "chosen",
                        "elsewhere: no endpoint has seen the request",
                    );
                }
                Ok(Again::elsewhere(Duration::ZERO, None))
            }
            Decision::Stop(stop) => {
                let waits = if is_away { self.wait(cluster, policy, &facts) } else { None };
                if waits.is_none() && (stop.is_for_good() || self.counted().is_some()) {
                    kin::failed_for_good(self.conn, of.head.fields);
                }
                waits.ok_or_else(|| stopped(failure, stop, of.deadlines))
            }
        }
    }

    /// Whether a kept connection to this endpoint, or to the application, was stale for this request. Those beside it were
    /// perhaps ended by the same; of other endpoints that says nothing.
    pub(crate) fn was_stale(&self, endpoint: Option<u64>) -> bool {
        match endpoint {
            Some(id) => self.state.as_ref().is_some_and(|state| state.was_stale(id)),
            None => self.stale_app,
        }
    }

    /// The endpoints that this request could not reach since the last pause.
    pub(crate) fn unreached(&self) -> &[u64] {
        &self.unreached
    }

    fn has_tried_all(&self, cluster: &Cluster) -> bool {
        cluster.endpoints().pickable().iter().all(|endpoint| self.unreached.contains(&endpoint.id))
    }

    /// A request that has waited for somebody: the next one whom it has not tried since, or another pause.
    fn go_on(
        &mut self,
        cluster: &Arc<Cluster>,
        policy: Option<&Arc<RetryPolicy>>,
        facts: &RequestFacts<'_>,
    ) -> Option<Again> {
        if self.has_tried_all(cluster) || self.unreached.len() > UNSEEN_RETRIES as usize {
            return self.wait(cluster, policy, facts);
        }
        Some(Again::elsewhere(Duration::ZERO, None))
    }

    /// What no endpoint has seen waits for one, within bounds; see the cluster's. A policy that wants no retries at all
    /// wants no waiting either, and what is a retry of the hop before is that hop's concern.
    fn wait(
        &mut self,
        cluster: &Arc<Cluster>,
        policy: Option<&Arc<RetryPolicy>>,
        facts: &RequestFacts<'_>,
    ) -> Option<Again> {
        if facts.nested || policy.is_some_and(|policy| policy.attempts == 0) {
            return None;
        }
        let worker = &self.conn.worker;
        let rng = &mut *worker.rng.borrow_mut();
        let after = cluster.pause(self.pauses, facts.deadline, worker.now(), rng)?;
        let waiting = cluster.admit(Limited::Pending).ok()?;
        self.pauses += 1;
        self.unreached.clear();
        Some(Again::Anywhere { after, waiting })
    }

    /// Without a policy that names it, or a budget for it: what no endpoint has seen is tried elsewhere, unless a policy wants
    /// no retries at all; and where there is no policy, what may be done twice is, once, when its connection broke before an
    /// answer. Whether it may, and whether its body is still there, was asked before.
    fn may_go_elsewhere(
        &mut self,
        cluster: &Arc<Cluster>,
        policy: Option<&Arc<RetryPolicy>>,
        kind: AttemptFailure,
        facts: &RequestFacts<'_>,
    ) -> bool {
        if facts.nested {
            return false;
        }
        match kind {
            AttemptFailure::Connect | AttemptFailure::Refused
                if policy.is_none_or(|policy| policy.attempts > 0) =>
            {
                let may = u32::from(self.unseen) < UNSEEN_RETRIES;
                self.unseen += u8::from(may);
                may
            }
            // What perhaps began is work for somebody; what nobody has seen is none.
            AttemptFailure::Reset | AttemptFailure::StaleConnection if policy.is_none() => {
                let now = self.conn.worker.now();
                let may =
                    u32::from(self.reset) < RESET_RETRIES && self.state(cluster, policy).may_repeat(now);
                self.reset += u8::from(may);
                may
            }
            _ => false,
        }
    }

    /// The inbound side does not retry: its caller does. A stale connection to the application is no attempt.
    fn of_app(&mut self, mut failure: Failure, facts: &RequestFacts<'_>) -> Result<Again, Failure> {
        let may = failure.retry == Retry::Reused && facts.idempotent && facts.replayable;
        // On the first connection it may have been seen, whatever became of the second: no caller is told otherwise.
        if self.stale_app && failure.retry == Retry::NothingSent {
            failure.retry = Retry::Policy;
        }
        if may && !std::mem::replace(&mut self.stale_app, true) {
            Ok(Again::SameEndpoint)
        } else {
            Err(failure)
        }
    }

    /// What a response calls for; `None`: it is passed on. Nothing is taken for it yet. `tried`: who had the request.
    pub(crate) fn after_response(
        &mut self,
        (response, more): (&ResponseHead, bool),
        of: &Of<'_, '_>,
        tried: &[u64],
        journey: &mut Journey<'_>,
    ) -> Option<Called> {
        let (cluster, policy) = self.service?;
        let is_grpc = journey.is_grpc();
        let unseen = overload::was_sent_away((response, is_grpc), cluster, of.endpoint);
        let called = |policy: &'a Arc<RetryPolicy>| Some((policy, called_for(policy, response, is_grpc)?));
        let Some((policy, kind)) = policy.and_then(called) else {
            // Where only its end says what became of the call, that is told.
            if self.state.is_some() && !(more && answer::comes_late(response, is_grpc)) {
                let well = answer::outcome(response, is_grpc) == AttemptOutcome::Success;
                self.ended(well && !answer::comes_late(response, is_grpc));
            }
            let facts = of.facts();
            let may = unseen && self.may_go_beside(cluster, policy, of.endpoint, &facts);
            return may.then_some(Called { kind: None, facts, spared: Some(Duration::ZERO) });
        };
        let worker = &self.conn.worker;
        let now = worker.now();
        let said = answer::push_back(response, || worker.shared.clock.wall());
        let of_itself = said.filter(|said| matches!(said, PushBack::Spare(_)));
        // What is longer than it may wait counts while nobody else is there, and then there is no other attempt.
        let spared = of_itself.map_or(Some(Duration::ZERO), |said| said.wait(of.deadlines.end(), now));
        // Of whom it was said is not asked.
        let is_moot = of_itself.is_some() && cluster.has_another(&Wanted { tried, ..Wanted::default() }, now);
        let mut facts = RequestFacts { push_back: said.filter(|_| !is_moot), ..of.facts() };
        facts.idempotent |= unseen;
        let called = Called { kind: Some(kind), facts, spared };
        if self.state(cluster, Some(policy)).would_repeat(kind, &facts, now) {
            return Some(called);
        }
        // Why it is not, is told.
        let _ = self.granted(&called, response, of, tried, journey);
        None
    }

    /// The attempt has ended: if it was a repetition, the budget learns whether that helped.
    pub(crate) fn ended(&mut self, well: bool) {
        if let Some(state) = &mut self.state {
            state.ended(well);
        }
    }

    /// Something else stands in the way of what a response calls for: its attempt is the last one, here and before.
    pub(crate) fn renounce(&mut self, of: &Of<'_, '_>) {
        self.ended(false);
        kin::failed_for_good(self.conn, of.head.fields);
    }

    /// A limit or a breaker has sent an attempt away before anybody saw it, or nobody is left who could. If it was a repetition, it has
    /// cost nothing; and what it was to repeat has failed for good. `fields`: the request's.
    pub(crate) fn refused(&mut self, fields: &Fields) {
        if let Some(state) = &mut self.state {
            state.not_made();
        }
        if self.counted().is_some() {
            kin::failed_for_good(self.conn, fields);
        }
    }

    /// The same where whoever has answered is the last who is left, and wants to be left alone for too long.
    pub(crate) fn has_nobody(&mut self, fields: &Fields, response: &ResponseHead, is_grpc: bool) -> Failure {
        self.refused(fields);
        let why = detail(StopReason::PushBack, answer::told(response, is_grpc));
        Failure::local(Cause::RetriesExhausted).because(why)
    }

    /// The second attempt beside the first goes on as the request's, and only its end says what became of it.
    pub(crate) fn goes_on_as(&mut self, cluster: &Arc<Cluster>, hedged: &Hedged) {
        let policy = self.service.and_then(|(_, policy)| policy);
        self.state(cluster, policy).goes_on_as(hedged);
    }

    /// Takes what an attempt that a response calls for costs; `None`: that is not there, and the response is passed on.
    pub(crate) fn granted(
        &mut self,
        called: &Called,
        response: &ResponseHead,
        of: &Of<'_, '_>,
        tried: &[u64],
        journey: &mut Journey<'_>,
    ) -> Option<Again> {
        let (cluster, policy) = self.service?;
        let Some(kind) = called.kind else {
            let now = self.conn.worker.now();
            let may = self.state(cluster, policy).may_repeat(now);
            self.unseen += u8::from(may);
            return may.then_some(Again::elsewhere(Duration::ZERO, None));
        };
        match self.decide(cluster, policy, kind, (&called.facts, of.endpoint, tried), journey) {
            Decision::Again { after, permit } => {
                Some(Again::Elsewhere { after, spared: called.spared, permit })
            }
            Decision::Stop(stop) => {
                if stop.is_for_good() {
                    kin::failed_for_good(self.conn, of.head.fields);
                }
                // The response is the answer; that there was no other attempt, and why, goes into the record.
                if let Some(cause) = stop.cause() {
                    // It was answered: that there is no time for another attempt is no time-out.
                    let cause = if stop == StopReason::Deadline { Cause::RetriesExhausted } else { cause };
                    let detail = detail(stop, answer::told(response, journey.is_grpc()));
                    journey.failed(&Failure::local(cause).because(detail));
                }
                None
            }
        }
    }

    /// What another proxy has sent away before its application saw it goes elsewhere without a policy, too: once, if there is
    /// anybody else; and within the budget, since others may have as much to do.
    fn may_go_beside(
        &self,
        cluster: &Arc<Cluster>,
        policy: Option<&Arc<RetryPolicy>>,
        endpoint: Option<u64>,
        facts: &RequestFacts<'_>,
    ) -> bool {
        let now = self.conn.worker.now();
        let wanted = facts.replayable && !facts.nested && policy.is_none_or(|policy| policy.attempts > 0);
        let in_time = facts.deadline.is_none_or(|deadline| deadline > now);
        let is_other = |other: &Arc<Endpoint>| Some(other.id) != endpoint && !other.is_ejected(now);
        wanted && in_time && self.unseen == 0 && cluster.endpoints().pickable().iter().any(is_other)
    }

    /// Whether the policy names a response as one to be repeated.
    pub(crate) fn names(&self, response: &ResponseHead, is_grpc: bool) -> bool {
        self.service
            .and_then(|(_, policy)| policy)
            .is_some_and(|policy| called_for(policy, response, is_grpc).is_some())
    }

    /// The same of a code that comes in the trailers.
    pub(crate) fn names_code(&self, code: u8) -> bool {
        self.service
            .and_then(|(_, policy)| policy)
            .is_some_and(|policy| policy.grpc_codes.contains(&code.into()))
    }

    fn decide(
        &mut self,
        cluster: &Arc<Cluster>,
        policy: Option<&Arc<RetryPolicy>>,
        kind: AttemptFailure,
        (facts, endpoint, tried): (&RequestFacts<'_>, Option<u64>, &[u64]),
        journey: &mut Journey<'_>,
    ) -> Decision {
        let worker = &self.conn.worker;
        let (now, rng) = (worker.now(), &mut *worker.rng.borrow_mut());
        let state = self.state(cluster, policy);
        let facts = &RequestFacts { tried, ..*facts };
        decide!(journey, |reasons| state.after(kind, endpoint, facts, now, rng, reasons))
    }
}

/// Whether an attempt found nobody: no connection, or a sidecar whose application is gone. An endpoint without one that refuses
/// is there.
fn is_away(cause: Cause, cluster: &Cluster, endpoint: Option<u64>) -> bool {
    let has_sidecar = |one: &Arc<Endpoint>| matches!(one.transport, Transport::Mesh { .. });
    match cause {
        Cause::ConnectFailure | Cause::ConnectTimeout => true,
        Cause::UpstreamRefused => {
            let endpoints = cluster.endpoints();
            endpoints.all().iter().find(|one| Some(one.id) == endpoint).is_none_or(has_sidecar)
        }
        _ => false,
    }
}

/// What a failure is to a retry policy; `None`: final, whatever the policy.
fn kind(failure: &Failure) -> Option<AttemptFailure> {
    Some(match (failure.retry, failure.cause) {
        (_, Cause::PerTryTimeout) => AttemptFailure::PerTryTimeout,
        (Retry::No, _) => return None,
        (Retry::NothingSent, _) if failure.fault == Fault::Local => AttemptFailure::InLine,
        (_, Cause::UpstreamRefused) => AttemptFailure::Refused,
        (Retry::NothingSent, _) => AttemptFailure::Connect,
        (Retry::Reused, _) => AttemptFailure::StaleConnection,
        (Retry::Policy, _) => AttemptFailure::Reset,
    })
}

/// Whether a response is one that the policy names; by a code of gRPC only what answers a call of it.
fn called_for(policy: &RetryPolicy, response: &ResponseHead, is_grpc: bool) -> Option<AttemptFailure> {
    // A policy can name no other statuses, and nearly all answers have one of those.
    let may_be = response.status >= 400;
    if may_be && policy.status_codes.contains(&response.status) {
        return Some(AttemptFailure::Status(response.status));
    }
    if !is_grpc || policy.grpc_codes.is_empty() {
        return None;
    }
    let code = std::str::from_utf8(response.fields.known(KnownName::GrpcStatus)?).ok()?.parse().ok()?;
    policy.grpc_codes.contains(&code).then_some(AttemptFailure::Grpc(code))
}

/// Whether a retry policy names this response as one to be repeated.
pub(crate) fn names(target: Target<'_>, response: &ResponseHead, is_grpc: bool) -> bool {
    let Target::Service { cluster, policy, .. } = target else { return false };
    policy.retry(cluster).is_some_and(|policy| called_for(policy, response, is_grpc).is_some())
}

/// Whose deadline it is that leaves no time, the request's limit knows.
fn cause_of(stop: StopReason, deadlines: &Deadlines) -> Option<Cause> {
    stop.cause().map(|cause| if stop == StopReason::Deadline { deadlines.cause() } else { cause })
}

/// What is said besides the cause, which several reasons have in common.
fn detail(stop: StopReason, of_attempt: String) -> String {
    match stop {
        StopReason::InVain | StopReason::Deadline | StopReason::PushBack => {
            format!("{}: {of_attempt}", stop.why())
        }
        _ => of_attempt,
    }
}

/// The failure as it is reported when a bound of the retries stood in the way of another attempt.
fn stopped(failure: Failure, stop: StopReason, deadlines: &Deadlines) -> Failure {
    let Some(cause) = cause_of(stop, deadlines) else { return failure };
    let detail = detail(stop, failure.told());
    // That the request's own time would be over before is a time-out itself.
    let last = (stop != StopReason::Deadline).then_some(failure.cause);
    let has_ended = overload::was_ended(&failure);
    Failure { cause, last, has_ended, ..failure }.because(detail)
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
        let in_line = Failure { retry: Retry::NothingSent, ..Failure::local(Cause::MaxConnections) };
        assert_eq!(kind(&in_line), Some(AttemptFailure::InLine));
        assert_eq!(kind(&Failure::local(Cause::MaxConnections)), None);
        assert_eq!(kind(&Failure::downstream(Cause::DownstreamClosed)), None);
    }

    #[test]
    fn a_spent_bound_is_reported_with_the_failure_behind_it() {
        let failure =
            Failure::upstream(Cause::ConnectFailure, Retry::NothingSent).because("10.0.0.1:80: refused");
        let stopped = stopped(failure, StopReason::Attempts, &Deadlines::default());
        assert_eq!(stopped.cause, Cause::RetriesExhausted);
        assert_eq!(stopped.detail.as_deref(), Some("connect_failure: 10.0.0.1:80: refused"));
        assert_eq!(stopped.status(), Some(503));
        let bare = Failure::local(Cause::PerTryTimeout);
        let stopped = super::stopped(bare, StopReason::Attempts, &Deadlines::default());
        assert_eq!(stopped.detail.as_deref(), Some("per_try_timeout"), "nothing more is known of it");
    }

    #[test]
    fn whoever_waited_for_the_last_attempt_in_vain_hears_of_a_time_out() {
        let status =
            |stop| stopped(Failure::local(Cause::PerTryTimeout), stop, &Deadlines::default()).status();
        for spent in [StopReason::Attempts, StopReason::Budget, StopReason::InVain, StopReason::MaxRetries] {
            assert_eq!(status(spent), Some(504), "{spent:?}");
        }
        let failed = Failure::upstream(Cause::UpstreamReset, Retry::Policy);
        let stopped = stopped(failed, StopReason::Deadline, &Deadlines::default());
        assert_eq!(stopped.status(), Some(504));
        assert!(overload::was_ended(&stopped), "nobody works on it any more");
    }
}
