//! A second attempt beside the first: when that takes longer than nearly all others, the request goes to another endpoint
//! too, and the first good answer is passed on (see [`meshwork_decision::Hedge`]).
//!
//! The second attempt has all that it needs to itself: a head, the body as far as it is kept, a connection. So the first
//! one goes its way as any attempt does, and whichever loses is dropped, which resets its stream or closes its connection.
//! What is told of both, to journey, balancer and breaker, is told when it is clear which of them the request's is.

mod exchange;
mod second;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use meshwork_decision::{AttemptOutcome, Cause, Hedge, HedgeFacts, Leg, Reply, Verdict, is_idempotent};
use meshwork_http1::ResponseHead;
use meshwork_telemetry::Record;

pub(super) use self::second::Second;
use super::Attempts;
use crate::downstream::Down;
use crate::error::{Failure, Fault};
use crate::recorder::Moves;
use crate::request::affinity::Affinity;
use crate::request::body::RequestBody;
use crate::request::deadline::Deadlines;
use crate::request::journey::{Journey, decide};
use crate::request::route::Target;
use crate::request::{answer, retry, transfer};
use crate::upstream::{Exchange, Head};

impl<'a> Attempts<'a> {
    /// The second attempt of the one that begins, if that may be hedged.
    pub(super) fn hedge<'h>(
        &self,
        head: &'h Head<'h>,
        body: &mut RequestBody<'_>,
        deadlines: &Deadlines,
        journey: &mut Journey<'_>,
    ) -> Option<Box<Second<'a, 'h>>> {
        let Target::Service { cluster, policy, .. } = self.target else { return None };
        let said = policy.hedge(cluster)?;
        // A request is hedged in its first attempt; what comes after is a retry.
        if journey.record.attempts > 0 || head.upgrade.is_some() {
            return None;
        }
        let (facts, now) = (facts(self, head, deadlines), self.conn.worker.now());
        let breakers = (cluster, policy.breaker());
        let hedge = decide!(journey, |reasons| Hedge::begin(said, breakers, &facts, now, reasons)).ok()?;
        Some(Box::new(Second::new(self, hedge, facts, head, body, journey)))
    }
}

/// What is known of a request before its body is.
fn facts(attempts: &Attempts<'_>, head: &Head<'_>, deadlines: &Deadlines) -> HedgeFacts {
    let with = |affinity: &Affinity| affinity.is_with(attempts.endpoint.as_ref());
    HedgeFacts {
        idempotent: is_idempotent(head.method.as_str()),
        nested: head.nested,
        in_session: attempts.affinity.is_some_and(with),
        whole: false,
        deadline: deadlines.end(),
    }
}

/// The first attempt, and with it the second one, if there is one. Ready with the first one's end, or with nothing when the
/// second one has ended well before.
#[inline]
pub(super) fn poll_both(
    first: Pin<&mut impl Future<Output = Result<Exchange, Failure>>>,
    second: Option<&mut Second<'_, '_>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Exchange, Failure>>> {
    if let Poll::Ready(done) = first.poll(cx) {
        return Poll::Ready(Some(done));
    }
    match second.map(|second| second.poll(cx)) {
        Some(Poll::Ready(true)) => Poll::Ready(None),
        _ => Poll::Pending,
    }
}

/// The first attempt has ended; true: the request's end is the second one's.
fn first_ended(
    attempts: &Attempts<'_>,
    second: &mut Second<'_, '_>,
    first: &Result<Exchange, Failure>,
    response: &ResponseHead,
    is_grpc: bool,
) -> bool {
    let reply = judged(attempts, first, response, is_grpc);
    if second.race.ended(Leg::First, reply) == Verdict::Wait {
        return true;
    }
    if reply == Reply::Good && first.is_ok() {
        let now = attempts.conn.worker.now();
        second.first_took(attempts.behind.asked(attempts.began, now), now);
    }
    false
}

/// What a request comes to whose first attempt had, or could have had, a second one beside it.
///
/// # Errors
/// The first one's failure, if neither was answered well.
pub(super) async fn decided(
    (attempts, mut second): (&mut Attempts<'_>, Box<Second<'_, '_>>),
    first: Option<Result<Exchange, Failure>>,
    down: &mut Down<'_>,
    body: &mut RequestBody<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    deadlines: &mut Deadlines,
) -> Result<Exchange, Failure> {
    second.tell_reasons(journey);
    let Some(first) = first else {
        lose_first(attempts, &second, body, journey);
        return second.wins(attempts, body, response, journey, deadlines);
    };
    if !first_ended(attempts, &mut second, &first, response, journey.is_grpc()) {
        second.loses(attempts, journey, first.as_ref().err());
        return first;
    }
    attempts.ended = Some(attempts.conn.worker.now());
    // Few requests come here: the future of all others has no room for it.
    Box::pin(awaited((attempts, second), first, down, body, response, journey, deadlines)).await
}

/// The first attempt has ended badly, and the second one is waited for.
async fn awaited(
    (attempts, mut second): (&mut Attempts<'_>, Box<Second<'_, '_>>),
    first: Result<Exchange, Failure>,
    down: &mut Down<'_>,
    body: &mut RequestBody<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    deadlines: &mut Deadlines,
) -> Result<Exchange, Failure> {
    // The first one's own time has ended with it.
    deadlines.no_attempt();
    journey.pends(first.as_ref().map(|_| response.status), body, attempts.conn.worker.now());
    let waited = poll_fn(|cx| {
        if let Poll::Ready(good) = second.poll(cx) {
            return Poll::Ready(Ok(good));
        }
        let moves = |record: &Record, _: &Down<'_>| Moves { received: body.received, ..Moves::of(record) };
        transfer::poll_under_way(cx, journey, down, deadlines, moves).map(Err)
    })
    .await;
    match waited {
        Ok(true) => {
            end_first(attempts, first, response, body, journey);
            second.wins(attempts, body, response, journey, deadlines)
        }
        Ok(false) => {
            second.loses(attempts, journey, first.as_ref().err());
            first
        }
        Err(interrupted) => {
            second.loses(attempts, journey, Some(&interrupted));
            // A response is there, or there was no endpoint whose fault it could be.
            let is_told = first.as_ref().map_or_else(Failure::is_before_any, |_| true);
            if is_told && interrupted.fault == Fault::Local {
                return first;
            }
            // What the first one's endpoint has answered counts, whoever has left since.
            let (now, is_grpc) = (attempts.conn.worker.now(), journey.is_grpc());
            attempts.observe(first.as_ref().map(|_| ()), response, (is_grpc, false), body, now);
            attempts.let_go();
            attempts.endpoint = None;
            Err(interrupted)
        }
    }
}

/// What the first attempt's end is worth while another one runs.
fn judged(
    attempts: &Attempts<'_>,
    first: &Result<Exchange, Failure>,
    response: &ResponseHead,
    is_grpc: bool,
) -> Reply {
    match first {
        Ok(_) if retry::names(attempts.target, response, is_grpc) => Reply::Bad,
        Ok(_) => of_head(response, is_grpc),
        Err(Failure { fault: Fault::Upstream, .. } | Failure { cause: Cause::PerTryTimeout, .. }) => {
            Reply::Bad
        }
        // Its endpoint alone may have reached a limit.
        Err(failure) if failure.is_before_any() => Reply::Bad,
        // Who called has left, or its time is over: nobody waits for the other either.
        Err(_) => Reply::Good,
    }
}

/// Whether the time of its request was over: a second attempt that ran until then has not helped.
fn is_time_out(failure: &Failure) -> bool {
    answer::of_failure(failure, Duration::ZERO).is_some()
}

fn of_head(response: &ResponseHead, is_grpc: bool) -> Reply {
    match answer::outcome(response, is_grpc) {
        AttemptOutcome::Success => Reply::Good,
        AttemptOutcome::Overloaded | AttemptOutcome::Failure => Reply::Bad,
    }
}

/// The first attempt is given up for the second one's sake. Its endpoint has neither failed nor done well; that it took
/// longer than this is learnt.
fn lose_first(
    attempts: &mut Attempts<'_>,
    second: &Second<'_, '_>,
    body: &RequestBody<'_>,
    journey: &mut Journey<'_>,
) {
    let now = attempts.conn.worker.now();
    let asked = attempts.behind.asked(attempts.began, now);
    second.first_took(asked, now);
    if let (Some(endpoint), Some(asked)) = (&attempts.endpoint, asked) {
        second.cluster.outlasted(endpoint, asked, now);
    }
    attempts.let_go();
    journey.lost(body, now);
}

/// The first attempt has ended badly, and the second one well.
fn end_first(
    attempts: &mut Attempts<'_>,
    first: Result<Exchange, Failure>,
    response: &ResponseHead,
    body: &RequestBody<'_>,
    journey: &mut Journey<'_>,
) {
    let now = attempts.conn.worker.now();
    journey.attempted(first.as_ref().map(|_| response.status), body, now);
    attempts.observe(first.as_ref().map(|_| ()), response, (journey.is_grpc(), false), body, now);
    if let Ok(exchange) = first {
        journey.superseded(now);
        exchange.abort();
    }
    attempts.let_go();
}
