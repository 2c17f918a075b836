//! One copy on its way: once, to one endpoint, and what it is answered is read and thrown away. Nobody waits for it, so
//! everything about it has an end: its time, the bytes that it may hold, the bytes that it reads.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::{
    Answer, AttemptOutcome, Cause, Cluster, Endpoint, Limited, NoReasons, Pass, Permit, Picked, Priority,
    Ticket, Timeouts, Wanted,
};
use meshwork_http1::{KnownName, ResponseHead};
use meshwork_telemetry::{Copied, Protocol};
use tokio::time::{Instant, Sleep, sleep};

use crate::error::Failure;
use crate::http::stream::Frame;
use crate::proxy_protocol::Written;
use crate::request::answer;
use crate::request::aside::{self, OwnHead, Sending};
use crate::request::attempt::{is_of_overheard, is_refused, says_over};
use crate::request::overload;
use crate::request::reply;
use crate::request::tee::Tap;
use crate::timers::timeout;
use crate::upstream::Exchange;
use crate::upstream::behind::{Behind, Noted, Spent, held_up, in_vain};
use crate::upstream::connect::CONNECT_TIMEOUT;
use crate::upstream::open::{Destination, Speaks};
use crate::worker::{Mirroring, Worker};

/// Of a response so many bytes are read; beyond it is given up, which on HTTP/1.1 costs its connection.
const READ: usize = 1024 * 1024;
/// How long the rest of a response is waited for, once nothing is left to send.
const READ_FOR: Duration = Duration::from_secs(10);

/// A copy that is to be sent.
pub(super) struct Copy {
    pub(super) worker: Rc<Worker>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) head: OwnHead,
    /// Its body; absent: it has none.
    pub(super) tap: Option<Tap>,
    pub(super) traced: Option<Box<Copied>>,
    pub(super) is_grpc: bool,
    pub(super) hash: Option<u64>,
    /// When the original's time is over.
    pub(super) end: Option<Tick>,
    /// The endpoint hears this deadline of a caller who is not believed.
    pub(super) overheard: Option<Duration>,
    pub(super) timeouts: Timeouts,
    pub(super) announcement: Option<Box<Written>>,
    pub(super) open: Mirroring,
}

/// Why a copy was not answered.
enum Lost {
    /// A limit, the circuit breaker, or a gate against overload.
    Refused(Cause),
    Failed(Failure),
    TimedOut(Failure),
    /// Its body came faster than it was read.
    GivenUp,
    /// The original's body broke off.
    CutOff,
}

impl From<aside::Lost> for Lost {
    fn from(lost: aside::Lost) -> Self {
        match lost {
            aside::Lost::CutOff => Self::CutOff,
            aside::Lost::Overrun => Self::GivenUp,
        }
    }
}

impl Lost {
    /// As metrics name it, and why.
    fn told(&self) -> (&'static str, &'static str) {
        match self {
            Self::Refused(cause) => ("refused", cause.as_str()),
            Self::Failed(failure) => ("failed", failure.cause.as_str()),
            Self::TimedOut(failure) => ("timed_out", failure.cause.as_str()),
            Self::GivenUp => ("given_up", "mirror_given_up"),
            Self::CutOff => ("cut_off", "mirror_cut_off"),
        }
    }

    /// What it says about the endpoint.
    fn answer(&self, took: Duration) -> Option<Answer> {
        match self {
            Self::Failed(failure) | Self::TimedOut(failure) => answer::of_failure(failure, took),
            Self::Refused(_) | Self::GivenUp | Self::CutOff => None,
        }
    }
}

impl Copy {
    /// Sends it, reads what comes back, and writes down what became of it.
    pub(super) async fn run(mut self) {
        let start = self.worker.shared.clock.wall();
        if let Some(traced) = &mut self.traced {
            traced.attempt.start = start;
        }
        let done = self.once().await;
        let (outcome, cause, status) = match &done {
            Ok((status, AttemptOutcome::Failure)) => ("failed", "", *status),
            Ok((status, AttemptOutcome::Success | AttemptOutcome::Overloaded)) => ("answered", "", *status),
            Err(lost) => {
                let (outcome, cause) = lost.told();
                (outcome, cause, 0)
            }
        };
        self.worker.mirrored(&self.cluster, outcome);
        if let (Some(mut traced), Some(tracer)) = (self.traced.take(), &self.worker.shared.tracer) {
            traced.attempt.end = Some(self.worker.shared.clock.wall());
            traced.attempt.status = status;
            traced.attempt.cause = cause;
            tracer.copied(*traced);
        }
        drop(self.open);
    }

    async fn once(&mut self) -> Result<(u16, AttemptOutcome), Lost> {
        let pass = self.passed()?;
        let (_permit, ticket) = self.admitted()?;
        let called = {
            let wanted = Wanted { hash: self.hash, ..Wanted::default() };
            let rng = &mut *self.worker.rng.borrow_mut();
            self.cluster.call(self.worker.now(), rng, &wanted, &mut NoReasons)
        };
        let (Picked { endpoint, trial }, own) = called.map_err(|cause| match cause {
            Cause::NoHealthyUpstream => Lost::Failed(Failure::local(cause)),
            cause => Lost::Refused(cause),
        })?;
        if let Some(own) = &own {
            self.worker.breaker_begins(own);
        }
        let ticket = own.or(ticket);
        let (began, _in_flight) = (self.worker.now(), endpoint.begin());
        let mut carried = Carried {
            sending: Sending::new(self.tap.take()),
            is_grpc: self.is_grpc,
            pass,
            ..Carried::default()
        };
        let done = match self.end.map(|end| end.since(began)) {
            None => self.exchanged(&endpoint, &mut carried).await,
            Some(rest) => {
                let done = timeout(rest, self.exchanged(&endpoint, &mut carried)).await;
                done.unwrap_or_else(|_| Err(self.too_late(&endpoint, &carried, began)))
            }
        };
        let now = self.worker.now();
        if let Some(pass) = carried.pass.take() {
            self.gives_back(pass, &done, now);
        }
        let took = carried.answered.unwrap_or(now).since(began);
        let answer = match &done {
            Ok(()) => Some(self.answer(&carried, took)),
            Err(lost) => lost.answer(took),
        };
        let is_excused = |answer: &Answer| {
            carried.was_drained
                || is_refused(Some(&endpoint), &carried.response, self.is_grpc)
                || self.is_of_overheard(&endpoint, &done, answer, (&carried, now))
        };
        if let Some(answer) = answer.filter(|answer| !is_excused(answer)) {
            if let Some(trial) = trial {
                self.worker.shifted(&self.cluster, self.cluster.tried(trial, &answer, now));
            }
            self.worker.attempted(&self.cluster, &endpoint, &answer, now);
            if let Some(ticket) = ticket {
                self.worker.breaker_ends(ticket, &answer, now);
            }
        }
        let outcome = answer.map_or(AttemptOutcome::Success, |answer| answer.outcome);
        done.map(|()| (carried.response.status, outcome))
    }

    /// Whether its endpoint has perhaps ended it for a deadline of whoever is not believed here.
    fn is_of_overheard(
        &self,
        endpoint: &Endpoint,
        done: &Result<(), Lost>,
        answer: &Answer,
        (carried, now): (&Carried, Tick),
    ) -> bool {
        let since_heard = |then: Tick| carried.heard.map_or(Duration::ZERO, |heard| then.since(heard));
        match done {
            Err(Lost::Failed(failure)) => {
                is_of_overheard(self.overheard, Some(endpoint), failure, since_heard(now))
            }
            _ if answer.status != 504 => false,
            // What only trailers say comes with the end.
            _ if answer::comes_late(&carried.response, self.is_grpc) => {
                says_over(self.overheard, since_heard(now))
            }
            _ => says_over(self.overheard, since_heard(carried.answered.unwrap_or(now))),
        }
    }

    /// Its place before a service that is kept from overload here. Nobody waits for a copy, so it does not wait either.
    fn passed(&self) -> Result<Option<Pass>, Lost> {
        let Some((gate, overload)) = self.cluster.guard() else { return Ok(None) };
        let pass = gate.enter_at_once(overload, Priority::Low, self.worker.now());
        self.worker.look_at(gate, (&self.cluster.name, self.cluster.key.port));
        pass.map(Some).map_err(|_| Lost::Refused(Cause::Overload))
    }

    /// The same where it was not answered.
    fn gives_back(&self, pass: Pass, done: &Result<(), Lost>, now: Tick) {
        let rng = &mut *self.worker.rng.borrow_mut();
        match done {
            // Nobody had it.
            Err(Lost::Refused(_)) => drop(pass),
            Err(Lost::Failed(failure)) if overload::was_unheard(failure) => drop(pass),
            Err(Lost::Failed(failure)) if overload::was_ended(failure) => pass.failed(now, rng),
            Ok(()) | Err(Lost::Failed(_) | Lost::TimedOut(_) | Lost::GivenUp | Lost::CutOff) => {
                pass.lost(now, rng);
            }
        }
    }

    /// It counts among the requests of its service.
    fn admitted(&self) -> Result<(Option<Permit>, Option<Ticket>), Lost> {
        let limited = self.cluster.limits.max_requests.is_some();
        let permit =
            limited.then(|| self.cluster.admit(Limited::Request)).transpose().map_err(Lost::Refused)?;
        let held_back = {
            let rng = &mut *self.worker.rng.borrow_mut();
            self.cluster.admit_by_success(false, self.worker.now(), rng, &mut NoReasons)
        };
        // Where nearly all are refused, it may be long until an attempt ends that would tell.
        held_back.map_err(Lost::Refused).inspect_err(|_| self.worker.look_at_admission(&self.cluster))?;
        let ticket = self.cluster.try_call(self.worker.now(), &mut NoReasons).map_err(Lost::Refused)?;
        if let Some(ticket) = &ticket {
            self.worker.breaker_begins(ticket);
        }
        Ok((permit, ticket))
    }

    fn answer(&self, carried: &Carried, took: Duration) -> Answer {
        if answer::comes_late(&carried.response, self.is_grpc) {
            // Of one that is long the end is not read.
            return answer::of_end(Ok(()), Some(carried.grpc_status.unwrap_or_default()), took);
        }
        let wall = || self.worker.shared.clock.wall();
        answer::of_response(&carried.response, self.is_grpc, took, wall)
    }

    /// Its time is over. Where that was spent before a limit of ours, no endpoint has failed.
    fn too_late(&self, endpoint: &Endpoint, carried: &Carried, began: Tick) -> Lost {
        let now = self.worker.now();
        let spent = Spent { began, now, fastest: self.cluster.fastest(now) };
        let (over, noted) = (Failure::local(Cause::RequestTimeout), carried.behind.get());
        if carried.has_connection {
            return Lost::TimedOut(held_up(over, noted, &spent));
        }
        let failure = in_vain(over, noted, &self.worker.pools.of(endpoint.id), &spent);
        if failure.is_before_any() { Lost::Refused(failure.cause) } else { Lost::TimedOut(failure) }
    }

    async fn exchanged(&mut self, endpoint: &Endpoint, carried: &mut Carried) -> Result<(), Lost> {
        let to = Destination::of_endpoint(
            &self.cluster,
            endpoint,
            self.timeouts.connect.unwrap_or(CONNECT_TIMEOUT),
            self.announcement.as_deref().map(|header| &header[..]),
        );
        if let Some(traced) = &mut self.traced {
            let http1 = matches!(to.speaks, Speaks::Http1);
            traced.attempt.address = to.address;
            traced.attempt.protocol = if http1 { Protocol::Http11 } else { Protocol::Http2 };
        }
        let worker = &self.worker;
        let idle = self.timeouts.stream_idle.unwrap_or(worker.shared.settings.timeouts.stream_idle);
        let (began, head) = (worker.now(), self.head.head());
        let opening =
            aside::open(worker, &to, &head, carried.sending.is_done(), Behind::new(&carried.behind));
        let mut exchange = match timeout(idle, opening).await {
            Ok(opened) => opened.map_err(Lost::Failed)?,
            Err(_) => return Err(self.too_late(endpoint, carried, began)),
        };
        carried.has_connection = true;
        (carried.sent, carried.heard) = (Some(worker.now()), Some(worker.now()));
        let mut patience = Patience { idle, sleep: Box::pin(sleep(idle)), last: false };
        let done = poll_fn(|cx| {
            let moved = carried.moved();
            if let Poll::Ready(done) = carried.poll(cx, worker, &mut exchange) {
                return Poll::Ready(done);
            }
            let over = patience.poll(cx, moved != carried.moved(), carried);
            over.map(|()| Err(Lost::TimedOut(Failure::local(Cause::RequestTimeout))))
        })
        .await;
        match done {
            Ok(()) if carried.sending.is_done() && exchange.is_end() => exchange.finish(worker.now()),
            Ok(()) | Err(_) => exchange.abort(),
        }
        // A response that had begun is one, however it ended.
        if carried.answered.is_some() && matches!(done, Err(Lost::TimedOut(_))) { Ok(()) } else { done }
    }
}

/// How long nothing may move; and when nothing is left to send, how long all the rest may take.
struct Patience {
    idle: Duration,
    sleep: Pin<Box<Sleep>>,
    last: bool,
}

impl Patience {
    fn poll(&mut self, cx: &mut Context<'_>, moved: bool, carried: &Carried) -> Poll<()> {
        if !self.last && carried.sending.is_done() && carried.answered.is_some() {
            self.last = true;
            self.sleep.as_mut().reset(Instant::now() + READ_FOR);
        } else if moved && !self.last {
            self.sleep.as_mut().reset(Instant::now() + self.idle);
        }
        self.sleep.as_mut().poll(cx)
    }
}

/// What has passed so far.
#[derive(Default)]
struct Carried {
    sending: Sending,
    /// What it waits for, as long as that is none of its endpoint's.
    behind: Noted,
    has_connection: bool,
    /// When, as long as its endpoint has said nothing.
    sent: Option<Tick>,
    /// When its endpoint got its head.
    heard: Option<Tick>,
    is_grpc: bool,
    response: ResponseHead,
    /// It counts among what the service works on until then.
    pass: Option<Pass>,
    /// When the response's head was there.
    answered: Option<Tick>,
    read: usize,
    grpc_status: Option<u8>,
    /// The end of a drain has ended it.
    was_drained: bool,
}

impl Carried {
    fn moved(&self) -> (usize, usize, bool) {
        (self.sending.bytes(), self.read, self.answered.is_some())
    }

    /// Ready when the response has ended, or as much of it was read as will be.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        exchange: &mut Exchange,
    ) -> Poll<Result<(), Lost>> {
        let sending = self.sending.poll(cx, exchange)?;
        if let Some(pass) = &mut self.pass {
            match self.sending.is_done() {
                true => pass.has_paid(worker.now()),
                false => pass.owes(worker.now()),
            }
        }
        while self.answered.is_none() {
            match exchange.poll_head(cx, &worker.shared.settings.limits, &mut self.response) {
                Poll::Ready(Ok(())) if self.response.is_informational() => self.sent = None,
                Poll::Ready(Ok(())) => {
                    self.answered = Some(worker.now());
                    if let Some(pass) = self.pass.take() {
                        overload::ended(worker, pass, &self.response, self.is_grpc);
                    }
                }
                Poll::Ready(Err(error)) => {
                    // An upstream may answer and close without reading: so it is the response that is asked.
                    let error = sending.err().unwrap_or(error);
                    let stale = exchange.is_stale(self.sent, worker.now());
                    let mut failure = Failure::of_upstream(&error, false, stale);
                    failure.is_hasty = exchange.is_ended_by_rule(&failure, worker.shared.clock.wall());
                    return Poll::Ready(Err(Lost::Failed(failure)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        while !exchange.is_end() && self.read < READ {
            match exchange.poll_frame(cx) {
                Poll::Ready(Ok(Frame::Data(data))) => self.read += data.len(),
                Poll::Ready(Ok(Frame::End(trailers))) => {
                    let status = trailers.as_ref().and_then(|fields| fields.known(KnownName::GrpcStatus));
                    self.grpc_status = status.and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
                    self.was_drained =
                        exchange.is_in_mesh() && trailers.as_deref().is_some_and(reply::is_of_drain);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => {
                    let mut failure = Failure::of_upstream(&error, true, false);
                    failure.is_hasty = exchange.is_ended_by_rule(&failure, worker.shared.clock.wall());
                    return Poll::Ready(Err(Lost::Failed(failure)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
