//! What is told of an attempt, to balancer, outlier detection and breakers, once it is known how it ended.

use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::{Answer, AttemptOutcome, Cause, Endpoint, Ticket, Transport};
use meshwork_http1::ResponseHead;

use super::Attempts;
use crate::error::{Failure, Fault, Retry};
use crate::request::answer;
use crate::request::body::RequestBody;
use crate::request::reply;
use crate::request::route::Target;

impl Attempts<'_> {
    /// Tells balancer and outlier detection, once per attempt. `more`: something follows the response's head.
    pub(super) fn observe(
        &mut self,
        outcome: Result<(), &Failure>,
        response: &ResponseHead,
        (is_grpc, more): (bool, bool),
        body: &RequestBody<'_>,
        now: Tick,
    ) {
        let worker = &self.conn.worker;
        let ended = self.ended.take().unwrap_or(now);
        let took = self.behind.took(self.began, ended);
        let comes_late = answer::comes_late(response, is_grpc);
        if let (Target::App { port, .. }, Ok(())) = (self.target, &outcome) {
            if answer::is_of_http_server(response) {
                answer::shows_http(port);
            }
            if answer::outcome(response, is_grpc) == AttemptOutcome::Success && (more || !comes_late) {
                port.state.answered(took, now);
            }
        }
        let (Target::Service { cluster, .. }, Some(_)) = (self.target, &self.endpoint) else { return };
        let answer = match outcome {
            Ok(()) if self.is_refused(response, is_grpc) => {
                cluster.served();
                return self.let_go_refused(is_grpc, now);
            }
            Ok(()) if comes_late && !more => {
                cluster.served();
                answer::of_end(Ok(()), Some(answer::UNKNOWN), took)
            }
            Ok(()) => {
                cluster.served();
                if comes_late {
                    return self.call_begins(took, now);
                }
                let to_repeat = self.repeats.names(response, is_grpc);
                let wall = || worker.shared.clock.wall();
                let answer = Answer { to_repeat, ..answer::of_response(response, is_grpc, took, wall) };
                // What is given up for another attempt has no end, and a tunnel's is not the answer's.
                let is_whole = !more || to_repeat || response.tunnel;
                if answer.outcome == AttemptOutcome::Success && !is_whole {
                    return self.answer_begins(&answer, response, now);
                }
                answer
            }
            Err(failure) if self.is_of_overheard(failure, ended) => {
                return self.let_go_late(body, ended, now);
            }
            Err(failure) => match answer::of_failure(failure, took) {
                Some(answer) => answer,
                None => return,
            },
        };
        if self.says_over(&answer, ended) {
            return self.let_go_late(body, ended, now);
        }
        self.tell(&answer, now);
    }

    /// What its endpoint has ended for a deadline of whoever is not believed here is no failure. It took as long as it did all the same: who
    /// hangs, and goes by its own clock, would else be neither slow nor failing. But who owes a part of its request has kept it waiting.
    fn let_go_late(&mut self, body: &RequestBody<'_>, ended: Tick, now: Tick) {
        if body.is_passed_on() {
            self.left(ended, now);
        }
        self.let_go();
    }

    /// The caller has left while the endpoint had the request. Of an answer that has not come nothing is known but that it
    /// takes longer than until then: of callers who are less patient than a slow endpoint is slow, none would ever tell.
    pub(super) fn left(&mut self, then: Tick, now: Tick) {
        let (Target::Service { cluster, .. }, Some(endpoint)) = (self.target, &self.endpoint) else { return };
        if let Some(took) = self.behind.asked(self.began, then) {
            cluster.outlasted(endpoint, took, now);
            let slow = Answer::new(AttemptOutcome::Success, took);
            self.conclude(|ticket| ticket.takes_for_slow(took), &slow, now);
        }
    }

    /// Whether the proxy beside its endpoint has refused it for the time that a caller gives, or that was left. What a limit of ours
    /// allows in full is the endpoint's to keep: who is too slow for that would else never be judged by those who are refused.
    fn is_refused(&self, response: &ResponseHead, is_grpc: bool) -> bool {
        is_refused(self.endpoint.as_deref(), response, is_grpc) && !self.has_our_time(is_grpc)
    }

    /// What a proxy beside an endpoint reads of a time that a stranger gives: it knows that of gRPC alone.
    fn is_read(&self, is_grpc: bool) -> Option<Duration> {
        self.overheard.filter(|_| is_grpc)
    }

    /// Whether that was told a limit of ours, of which no more than an eighth was spent before, and no stranger's time.
    fn has_our_time(&self, is_grpc: bool) -> bool {
        let ours = self.target.timeouts().request.into_iter().chain(self.attempt_timeout()).min();
        self.is_read(is_grpc).is_none()
            && ours.zip(self.told).is_some_and(|(ours, told)| told >= ours - ours / 8)
    }

    /// So long it hears that its endpoint has.
    fn hears(&self, is_grpc: bool) -> Option<Duration> {
        self.is_read(is_grpc).into_iter().chain(self.told).min()
    }

    /// What cannot be done in time takes longer than that: who refuses at once would else look as quick as it says so.
    fn let_go_refused(&mut self, is_grpc: bool, now: Tick) {
        if let (Target::Service { cluster, .. }, Some(endpoint), Some(time)) =
            (self.target, &self.endpoint, self.hears(is_grpc))
        {
            cluster.outlasted(endpoint, time, now);
        }
        self.let_go();
    }

    /// Whether its endpoint has perhaps ended it for a deadline of whoever is not believed here. Behind the head of an answer it says so
    /// by CANCEL; and who breaks off when that time is over was told to.
    pub(super) fn is_of_overheard(&self, failure: &Failure, now: Tick) -> bool {
        is_of_overheard(self.overheard, self.endpoint.as_deref(), failure, now.since(self.heard))
    }

    /// Whether its endpoint says that time is over, and perhaps means such a deadline.
    pub(super) fn says_over(&self, answer: &Answer, now: Tick) -> bool {
        answer.status == 504 && says_over(self.overheard, now.since(self.heard))
    }

    pub(super) fn tell(&mut self, answer: &Answer, now: Tick) {
        let (Target::Service { cluster, .. }, Some(endpoint)) = (self.target, &self.endpoint) else { return };
        if let Some(trial) = self.trial.take() {
            self.conn.worker.shifted(cluster, cluster.tried(trial, answer, now));
        }
        self.conn.worker.attempted(cluster, endpoint, answer, now);
        self.conclude(|_| true, answer, now);
    }

    /// Ends the trials that hang on this attempt, of endpoint and breaker.
    pub(super) fn settle(&mut self, answer: &Answer, now: Tick) {
        self.tried(answer, now);
        self.conclude(Ticket::is_trial, answer, now);
    }

    /// Ends the trial of its endpoint.
    pub(super) fn tried(&mut self, answer: &Answer, now: Tick) {
        if let (Target::Service { cluster, .. }, Some(trial)) = (self.target, self.trial.take()) {
            self.conn.worker.shifted(cluster, cluster.tried(trial, answer, now));
        }
    }

    /// Tells the breaker.
    pub(super) fn conclude(&mut self, which: impl Fn(&Ticket) -> bool, answer: &Answer, now: Tick) {
        let worker = &self.conn.worker;
        if let Some(ticket) = self.ticket.take_if(|ticket| which(ticket)) {
            worker.breaker_ends(ticket, answer, now);
        }
        if let Some(ticket) = self.by_route.take_if(|ticket| which(ticket)) {
            worker.breaker_ends(*ticket, answer, now);
        }
    }

    /// The attempt has ended without a word on whom it went to.
    pub(super) fn let_go(&mut self) {
        (self.trial, self.ticket, self.by_route) = (None, None, None);
        self.late = None;
    }
}

/// Of the time that a stranger gives so much may be left, or an eighth, when its endpoint says that it is over.
const EARLY: Duration = Duration::from_millis(20);

fn early(given: Duration) -> Duration {
    (given / 8).max(EARLY).min(given / 2)
}

/// Whether an endpoint that says that time is over may mean the deadline of whoever is not believed here. `time`: since it has heard it.
pub(in crate::request) fn says_over(overheard: Option<Duration>, time: Duration) -> bool {
    overheard.is_some_and(|given| time >= given.saturating_sub(early(given)))
}

/// Whether the proxy beside an endpoint has refused it, since it cannot be done in the time that it was told: that it says at once.
pub(in crate::request) fn is_refused(
    endpoint: Option<&Endpoint>,
    response: &ResponseHead,
    is_grpc: bool,
) -> bool {
    is_in_mesh(endpoint) && reply::is_unreachable(response, is_grpc)
}

fn is_in_mesh(endpoint: Option<&Endpoint>) -> bool {
    endpoint.is_some_and(|endpoint| matches!(endpoint.transport, Transport::Mesh { .. }))
}

/// See [`Attempts::is_of_overheard`]. `time`: since its endpoint has heard it.
pub(in crate::request) fn is_of_overheard(
    overheard: Option<Duration>,
    endpoint: Option<&Endpoint>,
    failure: &Failure,
    time: Duration,
) -> bool {
    let Some(given) = overheard else { return false };
    let has_heard = failure.fault == Fault::Upstream && failure.retry != Retry::NothingSent;
    // CANCEL is the word for it, which comes a little early from who keeps some of the time for its way back. Sooner it is no more
    // than any reset: who cancels each call at once would never be judged. Whatever the word is by which an application takes its
    // answer back, the proxy beside it says INTERNAL_ERROR.
    let is_early = failure.is_cancelled || is_in_mesh(endpoint);
    let early = if is_early { early(given) } else { Duration::ZERO };
    has_heard && time >= given.saturating_sub(early)
}

/// Whether its caller has left while the whole request was its endpoint's. Who owes a part of it has kept the endpoint waiting.
pub(super) fn has_left(failure: &Failure, body: &RequestBody<'_>) -> bool {
    matches!(failure.cause, Cause::DownstreamClosed | Cause::DownstreamReset) && body.is_passed_on()
}
