//! Before the application beside us, or a service that has nobody beside it: it gets as much at once as it can work on, the
//! rest waits or is sent away. What decides is [`meshwork_decision::Gate`]; here is the waiting, and what callers hear.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use meshwork_decision::{AttemptOutcome, Cause, Cluster, Entered, Guard, Pass, Priority, Shed, Waiting};
use meshwork_http1::{FieldError, KnownName, RequestHead, ResponseHead};
use meshwork_telemetry::Phase;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::answer;
use super::body::RequestBody;
use super::deadline::{self, Deadlines, TooLate};
use super::journey::Journey;
use super::reply;
use super::route::{self, Seen, Target};
use super::transfer::poll_under_way;
use crate::connections::Standing;
use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::{Failure, Fault};
use crate::recorder::Moves;
use crate::upstream::behind::unsent;
use crate::worker::Worker;

/// A place that nobody gives back, since its request was lost or its caller owes a part of it, may be over while nobody comes or goes
/// who would notice. Whoever waits looks by itself, so that no request costs a timer for that.
const LOOKS: Duration = Duration::from_millis(100);

/// What Envoy's overload manager says of a request that it sends away; from a proxy of the mesh it is the proxy's own word,
/// see [`answered`].
pub(crate) const LOCAL_OVERLOADED: &str = "x-envoy-local-overloaded";

/// Whether the process has the memory for another request.
///
/// # Errors
/// It has not.
#[inline]
pub(crate) fn check_memory(conn: &Conn, journey: &mut Journey<'_>) -> Result<(), Failure> {
    if conn.worker.memory.is_full() { Err(refuse_for_memory(conn, journey)) } else { Ok(()) }
}

#[cold]
fn refuse_for_memory(conn: &Conn, journey: &mut Journey<'_>) -> Failure {
    journey.enter(Phase::Overload);
    if conn.entry.standing() < Standing::Known {
        // It would idle: who comes with every request anew must not fill what is left.
        conn.entry.finish();
    }
    conn.worker.refused_for_memory()
}

/// What keeps the target from more than it can do, where a policy says so.
#[inline]
pub(crate) fn before<'v>(target: &Target<'v>) -> Option<Guard<'v>> {
    match target {
        Target::App { port, .. } => port.guard(),
        Target::Service { cluster, .. } => cluster.guard(),
    }
}

/// Waits until the target can take the request.
///
/// # Errors
/// It is sent away, or nobody waits for it any more.
pub(crate) async fn enter(
    conn: &Conn,
    (gate, overload): Guard<'_>,
    target: &Target<'_>,
    head: &RequestHead,
    down: &mut Down<'_>,
    journey: &mut Journey<'_>,
    deadlines: &mut Deadlines,
) -> Result<Box<Pass>, Failure> {
    journey.enter(Phase::Overload);
    let own = route::own_caller(conn);
    let priority = overload.priority(&Seen::with_caller(conn, head, own.as_ref()));
    let (mut answer, mut too_late) = (None, None);
    let entered = gate.enter(overload, priority, conn.worker.now(), || {
        let (call, called) = oneshot::channel();
        answer = Some(called);
        // Who has left meanwhile drops the pass, and the next one is called.
        move |what| drop(call.send(what))
    });
    let passed = match (entered, answer) {
        (Ok(Entered::Passed(pass)), _) => Ok(pass),
        (Ok(Entered::Waits(waiting)), Some(called)) => {
            let began = conn.worker.now();
            let waited = wait(journey, (gate, overload), (waiting, called), down, deadlines).await;
            journey.held(Phase::Overload, began, || Some(overload.origin.to_string()));
            match waited? {
                Ok(pass) => in_time(conn, pass, priority, target, deadlines)?.map_err(|why| {
                    too_late = Some(why);
                    Shed::QueueTime
                }),
                shed => shed,
            }
        }
        (Ok(Entered::Waits(_)), None) => unreachable!("whoever waits can be called"),
        (Err(shed), _) => Err(shed),
    };
    tell(&conn.worker, (gate, overload), priority, passed.as_ref().err().copied(), journey);
    conn.worker.look_at(gate, target.named());
    let mut pass = passed.map_err(|shed| {
        let why = too_late.map(|why| format!(": {why}")).unwrap_or_default();
        Failure::local(Cause::Overload).because(format!(
            "{} ({}, priority {}){why}",
            overload.origin,
            shed.as_str(),
            priority.as_str()
        ))
    })?;
    pass.begins(priority, conn.worker.now());
    Ok(Box::new(pass))
}

/// The pass of somebody who has waited; or why it is of no use, where it has come too late for an answer. The next one has the
/// place then.
///
/// # Errors
/// The time of the request was over while it waited.
fn in_time(
    conn: &Conn,
    pass: Pass,
    priority: Priority,
    target: &Target<'_>,
    deadlines: &Deadlines,
) -> Result<Result<Pass, String>, Failure> {
    match deadline::check_waited(conn, target, deadlines) {
        Ok(()) => Ok(Ok(pass)),
        Err(TooLate::Over(cause)) => Err(unsent(Failure::local(cause))),
        Err(TooLate::Unreachable(why)) => {
            pass.came_too_late(priority, conn.worker.now());
            Ok(Err(why))
        }
    }
}

async fn wait(
    journey: &Journey<'_>,
    (gate, overload): Guard<'_>,
    (waiting, mut called): (Waiting, oneshot::Receiver<Result<Pass, Shed>>),
    down: &mut Down<'_>,
    deadlines: &mut Deadlines,
) -> Result<Result<Pass, Shed>, Failure> {
    let conn = journey.conn();
    let patience = overload.queue.max_wait;
    let end = Instant::now() + patience;
    let mut sleeping = Box::pin(sleep(LOOKS.min(patience)));
    let mut waiting = Some(waiting);
    conn.entry.pause(patience, conn.worker.now());
    let waited = poll_fn(|cx| {
        if let Poll::Ready(what) = Pin::new(&mut called).poll(cx) {
            return Poll::Ready(Ok(what.expect("whoever waits is called, or leaves by itself")));
        }
        while waiting.is_some() && sleeping.as_mut().poll(cx).is_ready() {
            gate.goes_by(conn.worker.now());
            if let Poll::Ready(what) = Pin::new(&mut called).poll(cx) {
                return Poll::Ready(Ok(what.expect("whoever waits is called, or leaves by itself")));
            }
            let left = end.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                sleeping.set(sleep(LOOKS.min(left)));
                continue;
            }
            let gave_up = waiting.take().is_some_and(|waiting| waiting.gave_up(conn.worker.now()));
            if gave_up {
                return Poll::Ready(Ok(Err(Shed::QueueTime)));
            }
            // It has been called just now, by another thread perhaps that is about to say so.
        }
        poll_under_way(cx, journey, down, deadlines, |record, _| Moves::of(record)).map(Err)
    })
    .await;
    conn.entry.go_on(conn.worker.now());
    waited.map_err(unsent)
}

fn tell(
    worker: &Worker,
    (gate, overload): Guard<'_>,
    priority: Priority,
    shed: Option<Shed>,
    journey: &mut Journey<'_>,
) {
    let Some(told) = journey.told() else { return };
    let view = gate.view(worker.now());
    let (limit, in_flight, queued, priority) = (view.limit, view.in_flight, view.queued, priority.as_str());
    let (outcome, what) = match shed {
        None => ("noted", "goes on"),
        Some(shed) => ("refused", shed.as_str()),
    };
    let why = format!("priority {priority}: {what}; {in_flight} of {limit} are under way, {queued} wait");
    told.tell("overload", overload.origin.to_string(), outcome, why);
}

/// The target has answered: its place is free. That it was the proxy who sent a request away only the proxy says, and not
/// the application beside it.
pub(crate) fn answered(
    conn: &Conn,
    target: &Target<'_>,
    response: &mut ResponseHead,
    body: &mut RequestBody<'_>,
    is_grpc: bool,
) {
    if response.status >= 500 || is_grpc {
        // An upstream in the mesh has no caller there, to whom this would go on.
        reply::forget_unreachable(response);
        if matches!(target, Target::App { .. }) {
            response.fields.remove(LOCAL_OVERLOADED);
        }
    }
    if let Some(pass) = body.pass.take() {
        ended(&conn.worker, *pass, response, is_grpc);
    }
}

/// What the head of a response says of how long answers take.
pub(crate) fn ended(worker: &Worker, pass: Pass, response: &ResponseHead, is_grpc: bool) {
    let (now, rng) = (worker.now(), &mut *worker.rng.borrow_mut());
    match answer::outcome(response, is_grpc) {
        AttemptOutcome::Success => pass.answered(now, rng),
        // What was not done says nothing about how long it takes, unless it took long.
        AttemptOutcome::Overloaded | AttemptOutcome::Failure => pass.failed(now, rng),
    }
}

/// A request has failed. Where nobody had it, that says nothing of how long answers take, nor that callers have less patience
/// than that: its place is free, and that is all. Who has ended it works on nothing any more either.
#[cold]
pub(crate) fn failed(worker: &Worker, failure: Failure, body: &mut RequestBody<'_>) -> Failure {
    if was_unheard(&failure) {
        drop(body.pass.take());
    } else if was_ended(&failure)
        && let Some(pass) = body.pass.take()
    {
        pass.failed(worker.now(), &mut *worker.rng.borrow_mut());
    }
    failure
}

/// Whether a request failed before anybody had it. Who has not even taken its connection in time may have too much to do.
pub(crate) const fn was_unheard(failure: &Failure) -> bool {
    match last(failure) {
        Cause::ConnectTimeout => matches!(failure.fault, Fault::Local),
        Cause::NoHealthyUpstream
        | Cause::CircuitBreaker
        | Cause::AdmissionControl
        | Cause::MaxConnections
        | Cause::MaxPendingRequests => true,
        cause => cause.is_connecting(),
    }
}

/// Whether whoever was asked has ended it by itself.
pub(crate) const fn was_ended(failure: &Failure) -> bool {
    let by_cause = matches!(
        last(failure),
        Cause::UpstreamReset
            | Cause::UpstreamRefused
            | Cause::UpstreamClosed
            | Cause::UpstreamProtocolError
            | Cause::UpstreamHeadersTooLarge
    );
    failure.has_ended || by_cause
}

/// Why the last attempt failed.
const fn last(failure: &Failure) -> Cause {
    match failure.last {
        Some(last) => last,
        None => failure.cause,
    }
}

/// Whether another proxy of the mesh has sent the request away, before its application saw anything of it. Whoever is not in
/// the mesh may say so too, and is not believed: the field may be that of somebody further on.
pub(crate) fn was_sent_away(
    (response, is_grpc): (&ResponseHead, bool),
    cluster: &Cluster,
    endpoint: Option<u64>,
) -> bool {
    // gRPC's failures have status 200.
    (response.status == 503 || is_grpc && response.fields.known(KnownName::GrpcStatus).is_some())
        && response.fields.get(LOCAL_OVERLOADED).is_some()
        && cluster.endpoints().all().iter().any(|e| Some(e.id) == endpoint && e.spiffe_id().is_some())
}

/// Tells a caller that it was the load, so that it is not held against the application.
///
/// # Errors
/// The head has no room.
pub(crate) fn mark(conn: &Conn, cause: Cause, response: &mut ResponseHead) -> Result<(), FieldError> {
    if cause != Cause::Overload {
        return Ok(());
    }
    if conn.worker.memory.is_full() {
        // It is looked at twice in a second, or more often.
        response.fields.set_known(KnownName::RetryAfter, "1")?;
    }
    response.fields.push(LOCAL_OVERLOADED, "true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Retry;

    #[test]
    fn only_what_somebody_had_says_how_long_answers_take() {
        let of_endpoint = |cause| was_unheard(&Failure::upstream(cause, Retry::Policy));
        assert!(of_endpoint(Cause::ConnectFailure));
        assert!(!of_endpoint(Cause::ConnectTimeout), "its queue of connections is full, perhaps");
        assert!(!of_endpoint(Cause::UpstreamClosed) && !of_endpoint(Cause::UpstreamRefused));
        let ours = |cause| was_unheard(&Failure::local(cause));
        assert!(ours(Cause::MaxConnections) && ours(Cause::CircuitBreaker) && ours(Cause::ConnectTimeout));
        assert!(!ours(Cause::RequestTimeout) && !ours(Cause::PerTryTimeout));
        assert!(!was_unheard(&Failure::downstream(Cause::DownstreamClosed)));
        let last = |last| Failure { last: Some(last), ..Failure::local(Cause::RetriesExhausted) };
        assert!(was_unheard(&last(Cause::ConnectFailure)) && !was_unheard(&last(Cause::PerTryTimeout)));
    }

    #[test]
    fn who_ends_a_request_works_on_it_no_more_and_who_is_given_up_may() {
        let retry = Retry::Policy;
        let last = |last| Failure { last: Some(last), ..Failure::local(Cause::RetriesExhausted) };
        for cause in [Cause::UpstreamReset, Cause::UpstreamRefused, Cause::UpstreamClosed] {
            assert!(was_ended(&Failure::upstream(cause, retry)) && was_ended(&last(cause)));
        }
        for cause in [Cause::RequestTimeout, Cause::PerTryTimeout, Cause::DownstreamClosed] {
            assert!(!was_ended(&Failure::local(cause)) && !was_ended(&last(cause)));
            let too_late = Failure { has_ended: true, ..Failure::local(cause) };
            assert!(was_ended(&too_late), "its end was there when ours was seen");
        }
        assert!(!was_ended(&Failure::upstream(Cause::ConnectTimeout, retry)), "its queue is full, perhaps");
    }
}
