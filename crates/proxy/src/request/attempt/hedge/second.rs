//! The second attempt: when it is due, what it has to itself, and what becomes of it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::{
    Answer, Cause, Cluster, Explanation, Hedge, HedgeFacts, Hedged, InFlight, Leg, NoHedge, Race, Reasons,
    Reply, RetryBudget, Verdict,
};
use meshwork_http1::{KnownName, ResponseHead};
use meshwork_telemetry::{Phase, Protocol, SpanId, TraceContext};

use super::super::told::{is_of_overheard, is_refused, says_over};
use super::exchange::{Answered, Parts, exchange};
use super::{Attempts, is_time_out, of_head};
use crate::error::Failure;
use crate::request::aside::{OwnHead, Sending};
use crate::request::body::RequestBody;
use crate::request::deadline::{self, Deadlines};
use crate::request::journey::Journey;
use crate::request::route::Target;
use crate::request::tried::{HEDGE_LOST, Pair, Tried};
use crate::request::{answer, attempt, retry};
use crate::timers::Timer;
use crate::timers::timeout;
use crate::upstream::behind::{Noted, Spent, in_vain};
use crate::upstream::open::{Destination, Speaks};
use crate::upstream::{Exchange, Head};
use crate::worker::Worker;

/// Of a body so much is kept for a second attempt, as for a retry.
const MOST: usize = 64 * 1024;

type Running = Pin<Box<dyn Future<Output = Result<Answered, Failure>>>>;

/// What the second attempt comes to.
enum State {
    /// It has not begun.
    Before(Option<Timer>),
    Runs(Box<Under>, Running),
    Won(Box<Under>, Box<Answered>),
    /// It was answered badly, or not at all.
    Failed(Box<Under>, Failed),
    Over,
}

/// A second attempt that has begun.
struct Under {
    hedged: Hedged,
    in_flight: InFlight,
    began: Tick,
    /// What it waits for before it has a connection.
    behind: Rc<Noted>,
    /// When its endpoint got its head.
    heard: Rc<Cell<Tick>>,
    /// Civil time of its beginning, where its span is recorded, and that span.
    traced: Option<(Duration, SpanId)>,
    address: SocketAddr,
    protocol: Protocol,
}

impl Under {
    /// What is written down of it, whose request began at `started`: as it has failed, or as it is now.
    fn tried(&self, started: Tick, failed: Option<&Failed>, now: Tick) -> Tried {
        let failure = failed.and_then(|failed| failed.failure.as_ref());
        let opened = failed.and_then(|failed| failed.opened);
        Tried {
            start: self.began.since(started),
            connect: opened.map(|(opened, _)| opened.since(self.began)),
            took: failed.map_or(now, |failed| failed.ended).since(self.began),
            address: self.address,
            instance: Some(Arc::clone(&self.hedged.endpoint.instance)),
            spiffe_id: self.hedged.endpoint.spiffe_id().map(|id| Arc::clone(id.shared())),
            protocol: self.protocol,
            age: opened.filter(|(_, born)| *born < self.began).map(|(_, born)| self.began.since(born)),
            status: failed.map_or(0, |failed| failed.status),
            cause: failure.map_or("", |failure| failure.cause.as_str()),
            detail: failure.and_then(|failure| failure.detail.clone()),
            phase: if failure.is_none() { Phase::Response } else { Phase::Request },
            sent: 0,
            received: 0,
        }
    }
}

struct Failed {
    status: u16,
    failure: Option<Failure>,
    opened: Option<(Tick, Tick)>,
    ended: Tick,
}

pub(in crate::request::attempt) struct Second<'a, 'h> {
    hedge: Hedge,
    /// The request's.
    head: &'h Head<'h>,
    pub(super) race: Race,
    state: State,
    worker: Rc<Worker>,
    pub(super) cluster: Arc<Cluster>,
    target: Target<'a>,
    /// Taken when it begins.
    parts: Option<Parts>,
    facts: HedgeFacts,
    is_grpc: bool,
    first: Option<u64>,
    retries: RetryBudget,
    connect_timeout: Duration,
    attempt_timeout: Option<Duration>,
    answer_timeout: Option<Duration>,
    /// Its endpoint hears this deadline of a caller who is not believed, too.
    overheard: Option<Duration>,
    /// What is told to whoever asks about this request.
    reasons: Option<Explanation>,
    /// The request's own place in its trace, where its spans are recorded.
    trace: Option<TraceContext>,
    /// What is told of it while it runs; its request has begun at this moment.
    pair: Rc<Pair>,
    started: Tick,
}

impl<'a, 'h> Second<'a, 'h> {
    pub(super) fn new(
        attempts: &Attempts<'a>,
        hedge: Hedge,
        facts: HedgeFacts,
        head: &'h Head<'h>,
        body: &mut RequestBody<'_>,
        journey: &mut Journey<'_>,
    ) -> Self {
        let Target::Service { cluster, policy, .. } = attempts.target else {
            unreachable!("only calls of services are hedged")
        };
        let due = hedge.delay().map(|delay| attempts.conn.worker.timers.start(delay));
        let pair = journey.hedged();
        let parts = due.is_some().then(|| Parts {
            sending: Sending::new(if body.is_empty() { None } else { Some(body.tap()) }),
            announcement: attempt::announced(attempts.conn, cluster),
            pair: Rc::clone(&pair),
        });
        Self {
            race: Race::default(),
            state: State::Before(due),
            worker: Rc::clone(&attempts.conn.worker),
            cluster: Arc::clone(cluster),
            target: attempts.target,
            parts,
            facts,
            is_grpc: journey.is_grpc(),
            first: attempts.endpoint.as_ref().map(|endpoint| endpoint.id),
            retries: policy.retry(cluster).map_or(RetryBudget::DEFAULT, |retry| retry.budget),
            connect_timeout: attempts.connect_timeout(),
            attempt_timeout: attempts.attempt_timeout(),
            answer_timeout: attempts.answer_timeout(),
            overheard: attempts.overheard,
            reasons: journey.told().is_some().then(Explanation::default),
            trace: journey.trace(),
            pair,
            started: journey.started(),
            hedge,
            head,
        }
    }

    /// Ready when it has ended; true: well, so that it is passed on.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if let State::Before(due) = &mut self.state {
            let Some(due) = due else { return Poll::Pending };
            if due.poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.begin();
        }
        let State::Runs(_, running) = &mut self.state else { return Poll::Pending };
        let Poll::Ready(done) = running.as_mut().poll(cx) else { return Poll::Pending };
        let State::Runs(under, _) = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("it ran a moment ago")
        };
        Poll::Ready(self.ended(under, done))
    }

    /// The time has come.
    fn begin(&mut self) {
        self.state = State::Over;
        let Some(parts) = self.parts.take() else { return };
        let now = self.worker.now();
        let Ok(hedged) = self.admit(parts.sending.is_whole(MOST), now) else {
            return self.worker.hedged(&self.cluster, "refused");
        };
        for ticket in hedged.ticket.iter().chain(&hedged.by_route) {
            self.worker.breaker_begins(ticket);
        }
        let mut head = OwnHead::of(self.head);
        let traced = match self.dress(&mut head, now) {
            Ok(traced) => traced,
            Err(failure) => {
                self.hedge.not_made(&hedged);
                tracing::debug!(?failure, "a second attempt cannot be sent");
                return;
            }
        };
        self.race.begin();
        let to = Destination::of_endpoint(&self.cluster, &hedged.endpoint, self.connect_timeout, None);
        let http1 = matches!(to.speaks, Speaks::Http1);
        let pool = self.worker.pools.of(to.pool);
        let under = Under {
            address: to.address,
            protocol: if http1 { Protocol::Http11 } else { Protocol::Http2 },
            in_flight: hedged.endpoint.begin(),
            began: now,
            behind: Rc::default(),
            heard: Rc::new(Cell::new(now)),
            traced,
            hedged,
        };
        self.pair.second(under.tried(self.started, None, now));
        let (behind, heard) = (Rc::clone(&under.behind), Rc::clone(&under.heard));
        let endpoint = Arc::clone(&under.hedged.endpoint);
        let exchange = exchange(
            Rc::clone(&self.worker),
            Arc::clone(&self.cluster),
            endpoint,
            (head, parts),
            self.connect_timeout,
            (Rc::clone(&behind), heard),
        );
        let attempt = self.attempt_timeout.into_iter().chain(self.answer_timeout).min();
        let (worker, cluster) = (Rc::clone(&self.worker), Arc::clone(&self.cluster));
        let spent = move || {
            let ended = worker.now();
            Spent { began: now, now: ended, fastest: cluster.fastest(ended) }
        };
        let running = async move {
            match attempt {
                None => exchange.await,
                Some(limit) => timeout(limit, exchange).await.unwrap_or_else(|_| {
                    Err(in_vain(Failure::local(Cause::PerTryTimeout), behind.get(), &pool, &spent()))
                }),
            }
        };
        self.state = State::Runs(Box::new(under), Box::pin(running));
    }

    /// `whole`: the request's body is there.
    fn admit(&mut self, whole: bool, now: Tick) -> Result<Hedged, NoHedge> {
        let facts = HedgeFacts { whole, ..self.facts };
        let rng = &mut *self.worker.rng.borrow_mut();
        match &mut self.reasons {
            Some(reasons) => self.hedge.admit(self.first, &facts, self.retries, now, rng, reasons),
            None => {
                let reasons = &mut meshwork_decision::NoReasons;
                self.hedge.admit(self.first, &facts, self.retries, now, rng, reasons)
            }
        }
    }

    /// Says that it is a repetition, how long it has, and where it stands in the trace.
    fn dress(&self, head: &mut OwnHead, now: Tick) -> Result<Option<(Duration, SpanId)>, Failure> {
        let internal =
            |error: meshwork_http1::FieldError| Failure::local(Cause::Internal).because(error.to_string());
        head.fields.set_known(KnownName::XEnvoyAttemptCount, "2").map_err(internal)?;
        let rest = self.facts.deadline.map(|end| end.since(now));
        if let Some(rest) = rest.into_iter().chain(self.attempt_timeout).min() {
            deadline::tell(&mut head.fields, &self.target, rest, self.is_grpc)?;
        }
        let Some(trace) = self.trace else { return Ok(None) };
        let span_id = SpanId::random(&mut *self.worker.rng.borrow_mut());
        let own = TraceContext { span_id, ..trace };
        head.fields.set_known(KnownName::TraceParent, own.traceparent()).map_err(internal)?;
        Ok(Some((self.worker.shared.clock.wall(), span_id)))
    }

    /// It has ended; true: well.
    fn ended(&mut self, under: Box<Under>, done: Result<Answered, Failure>) -> bool {
        let now = self.worker.now();
        let named = |answered: &Answered| retry::names(self.target, &answered.response, self.is_grpc);
        let reply = match &done {
            Ok(answered) if named(answered) => Reply::Bad,
            Ok(answered) => of_head(&answered.response, self.is_grpc),
            Err(_) => Reply::Bad,
        };
        if self.race.ended(Leg::Second, reply) == Verdict::Wins(Leg::Second) {
            let answered = Box::new(done.unwrap_or_else(|_| unreachable!("what failed is not good")));
            self.state = State::Won(under, answered);
            return true;
        }
        let took = under.behind.took(under.began, now);
        let wall = || self.worker.shared.clock.wall();
        let is_late = self.is_late(&under, &done, now);
        let refused =
            |answered: &Answered| is_refused(Some(&under.hedged.endpoint), &answered.response, self.is_grpc);
        let answer = match &done {
            _ if is_late => None,
            Ok(answered) if refused(answered) => None,
            Ok(answered) => Some(Answer {
                to_repeat: named(answered),
                ..answer::of_response(&answered.response, self.is_grpc, took, wall)
            }),
            Err(failure) => answer::of_failure(failure, took),
        };
        if is_late && let Some(asked) = under.behind.asked(under.began, now) {
            self.cluster.outlasted(&under.hedged.endpoint, asked, now);
        }
        let mut under = under;
        if let Some(answer) = answer {
            self.worker.attempted(&self.cluster, &under.hedged.endpoint, &answer, now);
            for ticket in [under.hedged.ticket.take(), under.hedged.by_route.take()].into_iter().flatten() {
                self.worker.breaker_ends(ticket, &answer, now);
            }
            self.hedge.second_ended(false);
        } else {
            // What is our own, as a limit, says nothing of whether second attempts help.
            self.hedge.second_ended_silently(&under.hedged);
        }
        self.worker.hedged(&self.cluster, "failed");
        let failed = match done {
            Ok(Answered { exchange, response, opened, .. }) => {
                let born = exchange.born();
                exchange.abort();
                Failed { status: response.status, failure: None, opened: Some((opened, born)), ended: now }
            }
            Err(failure) => Failed { status: 0, failure: Some(failure), opened: None, ended: now },
        };
        self.pair.second(under.tried(self.started, Some(&failed), now));
        self.state = State::Failed(under, failed);
        false
    }

    /// Whether its endpoint has perhaps ended it for a deadline of whoever is not believed here.
    fn is_late(&self, under: &Under, done: &Result<Answered, Failure>, now: Tick) -> bool {
        let time = now.since(under.heard.get());
        match done {
            Ok(answered) => {
                says_over(self.overheard, time) && answer::is_time_out(&answered.response, self.is_grpc)
            }
            Err(failure) => is_of_overheard(self.overheard, Some(&under.hedged.endpoint), failure, time),
        }
    }

    /// What is learnt is how long the service takes: what waited for something of ours says nothing of that.
    pub(super) fn first_took(&self, asked: Option<Duration>, now: Tick) {
        if let Some(asked) = asked {
            self.hedge.first_took(asked, now);
        }
    }

    pub(super) fn tell_reasons(&mut self, journey: &mut Journey<'_>) {
        if let (Some(Explanation(reasons)), Some(told)) = (self.reasons.take(), journey.told()) {
            reasons.into_iter().for_each(|reason| told.note(|| reason));
        }
    }

    /// It is the request's attempt from now on.
    pub(super) fn wins(
        mut self,
        attempts: &mut Attempts<'_>,
        body: &mut RequestBody<'_>,
        response: &mut ResponseHead,
        journey: &mut Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        let State::Won(under, answered) = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("it has been answered")
        };
        let (
            Under { hedged, in_flight, began, traced, address, protocol, behind, .. },
            Answered { exchange, sending, response: head, opened },
        ) = (*under, *answered);
        self.worker.hedged(&self.cluster, "won");
        if answer::comes_late(&head, self.is_grpc) && !exchange.is_end() {
            attempts.repeats.goes_on_as(&self.cluster, &hedged);
        } else {
            self.hedge.second_ended(true);
        }
        *response = head;
        body.goes_on(sending);
        (attempts.began, attempts.heard) = (began, opened);
        deadlines.goes_on(&self.worker, self.attempt_timeout, began);
        attempts.behind.set(behind.get());
        (attempts.ticket, attempts.by_route) = (hedged.ticket, hedged.by_route.map(Box::new));
        attempts.permit = Some(hedged.permits.0);
        journey.goes_on(Arc::clone(&hedged.endpoint), in_flight, (address, protocol), began, traced);
        journey.opened(Some(opened), exchange.born());
        if let Some(id) = hedged.endpoint.spiffe_id() {
            journey.record.upstream_id = Some(Arc::clone(id.shared()));
        }
        attempts.endpoint = Some(hedged.endpoint);
        Ok(exchange)
    }

    /// It is not: what became of it is written down beside. `over`: the failure with which its request ends.
    pub(super) fn loses(
        self,
        attempts: &mut Attempts<'_>,
        journey: &mut Journey<'_>,
        over: Option<&Failure>,
    ) {
        let now = self.worker.now();
        let (under, failed) = match self.state {
            State::Before(_) | State::Over => return,
            // Dropping it resets its stream.
            State::Runs(under, _) => (under, None),
            State::Won(under, answered) => {
                answered.exchange.abort();
                (under, None)
            }
            State::Failed(under, failed) => (under, Some(failed)),
        };
        attempts.tried.push(under.hedged.endpoint.id);
        if failed.is_none() {
            let asked = under.behind.asked(under.began, now);
            if let Some(asked) = asked {
                self.cluster.outlasted(&under.hedged.endpoint, asked, now);
            }
            if asked.is_some() && over.is_some_and(is_time_out) {
                self.hedge.second_ended(false);
            } else {
                // Whom nobody waits for any more might have helped.
                self.hedge.second_ended_silently(&under.hedged);
            }
            self.worker.hedged(&self.cluster, "lost");
        }
        let mut tried = under.tried(self.started, failed.as_ref(), now);
        if failed.is_none() {
            (tried.cause, tried.phase) = (HEDGE_LOST, Phase::Request);
        }
        journey.beside(tried, under.traced);
    }
}
