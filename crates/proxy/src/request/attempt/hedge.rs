//! A second attempt beside the first: when that takes longer than nearly all others, the request goes to another endpoint
//! too, and the first good answer is passed on (see [`meshwork_decision::Hedge`]).
//!
//! The second attempt has all that it needs to itself: a head, the body as far as it is kept, a connection. So the first
//! one goes its way as any attempt does, and whichever loses is dropped, which resets its stream or closes its connection.
//! What is told of both, to journey, balancer and breaker, is told when it is clear which of them the request's is.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::{
    Answer, AttemptOutcome, Cause, Cluster, Endpoint, Explanation, Hedge, HedgeFacts, Hedged, InFlight, Leg,
    NoHedge, Race, Reasons, Reply, RetryBudget, Verdict, is_idempotent,
};
use meshwork_http1::{KnownName, Limits, ResponseHead};
use meshwork_telemetry::{Phase, Protocol, SpanId, TraceContext};
use tokio::time::timeout;

use super::Attempts;
use crate::downstream::Down;
use crate::error::{Failure, Fault};
use crate::proxy_protocol::Written;
use crate::request::affinity::Affinity;
use crate::request::answer;
use crate::request::aside::{self, Lost, OwnHead, Sending};
use crate::request::body::RequestBody;
use crate::request::deadline::{self, Deadlines};
use crate::request::journey::{Journey, decide};
use crate::request::retry;
use crate::request::route::Target;
use crate::request::transfer;
use crate::request::tried::{HEDGE_LOST, Tried};
use crate::timers::Timer;
use crate::upstream::behind::{Behind, Noted, Spent, in_vain};
use crate::upstream::open::{Destination, Speaks};
use crate::upstream::{Exchange, Head};
use crate::worker::Worker;

/// Of a body so much is kept for a second attempt, as for a retry.
const MOST: usize = 64 * 1024;

impl<'a> Attempts<'a> {
    /// Whether the attempt that begins is one that may be hedged.
    pub(super) fn hedge(
        &self,
        head: &Head<'_>,
        deadlines: &Deadlines,
        journey: &mut Journey<'_>,
    ) -> Option<Hedge> {
        let Target::Service { cluster, policy, .. } = self.target else { return None };
        let said = policy.hedge(cluster)?;
        // A request is hedged in its first attempt; what comes after is a retry.
        if journey.record.attempts > 0 || head.upgrade.is_some() {
            return None;
        }
        let (facts, now) = (facts(self, head, deadlines), self.conn.worker.now());
        decide!(journey, |reasons| Hedge::begin(said, (cluster, policy.breaker()), &facts, now, reasons)).ok()
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

/// Runs the first attempt, and perhaps a second one beside it.
///
/// # Errors
/// The first one's failure, if neither was answered well.
pub(super) async fn raced(
    (attempts, hedge): (&mut Attempts<'_>, Box<Hedge>),
    head: &Head<'_>,
    down: &mut Down<'_>,
    body: &mut RequestBody<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    deadlines: &mut Deadlines,
) -> Result<Exchange, Failure> {
    let mut second = Second::new(attempts, *hedge, head, body, deadlines, journey);
    let first = {
        let mut own = Box::pin(attempts.exchange(head, down, body, response, journey, deadlines));
        poll_fn(|cx| {
            if let Poll::Ready(done) = own.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            if second.poll(cx) == Poll::Ready(true) { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    };
    second.tell_reasons(journey);
    let Some(first) = first else {
        lose_first(attempts, &second, body, journey);
        return second.wins(attempts, body, response, journey);
    };
    let reply = judged(attempts, &first, response, journey.is_grpc());
    if second.race.ended(Leg::First, reply) == Verdict::Wait {
        // The first one's own time has ended with it.
        deadlines.no_attempt();
        let waited = poll_fn(|cx| {
            if let Poll::Ready(good) = second.poll(cx) {
                return Poll::Ready(Ok(good));
            }
            transfer::poll_interrupted(cx, attempts.conn, down, deadlines).map(Err)
        })
        .await;
        match waited {
            Ok(true) => {
                end_first(attempts, first, response, body, journey);
                return second.wins(attempts, body, response, journey);
            }
            Ok(false) => {}
            Err(interrupted) => {
                second.loses(attempts, journey, Some(&interrupted));
                // A response is there, or there was no endpoint whose fault it could be.
                let is_told = first.as_ref().map_or_else(Failure::is_before_any, |_| true);
                if is_told && interrupted.fault == Fault::Local {
                    return first;
                }
                // What the first one's endpoint has answered counts, whoever has left since.
                let (now, is_grpc) = (attempts.conn.worker.now(), journey.is_grpc());
                attempts.observe(first.as_ref().map(|_| ()), response, (is_grpc, false), now);
                attempts.let_go();
                attempts.endpoint = None;
                return Err(interrupted);
            }
        }
    } else if reply == Reply::Good && first.is_ok() {
        let now = attempts.conn.worker.now();
        second.first_took(attempts.behind.asked(attempts.began, now), now);
    }
    second.loses(attempts, journey, first.as_ref().err());
    first
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
    attempts.observe(first.as_ref().map(|_| ()), response, (journey.is_grpc(), false), now);
    if let Ok(exchange) = first {
        journey.superseded(now);
        exchange.abort();
    }
    attempts.let_go();
}

/// A connection with the answer of the second attempt on it.
struct Answered {
    exchange: Exchange,
    /// What is left of its body.
    sending: Sending,
    response: ResponseHead,
    opened: Tick,
}

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
    /// Civil time of its beginning, where its span is recorded, and that span.
    traced: Option<(Duration, SpanId)>,
    address: SocketAddr,
    protocol: Protocol,
}

struct Failed {
    status: u16,
    failure: Option<Failure>,
    opened: Option<(Tick, Tick)>,
    ended: Tick,
}

struct Second<'a, 'h> {
    hedge: Hedge,
    /// The request's.
    head: &'h Head<'h>,
    race: Race,
    state: State,
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    target: Target<'a>,
    /// Taken when it begins.
    parts: Option<Parts>,
    facts: HedgeFacts,
    is_grpc: bool,
    first: Option<u64>,
    retries: RetryBudget,
    connect_timeout: Duration,
    attempt_timeout: Option<Duration>,
    /// What is told to whoever asks about this request.
    reasons: Option<Explanation>,
    /// The request's own place in its trace, where its spans are recorded.
    trace: Option<TraceContext>,
}

/// What it sends besides its head.
struct Parts {
    sending: Sending,
    announcement: Option<Box<Written>>,
}

impl<'a, 'h> Second<'a, 'h> {
    fn new(
        attempts: &Attempts<'a>,
        hedge: Hedge,
        head: &'h Head<'h>,
        body: &mut RequestBody<'_>,
        deadlines: &Deadlines,
        journey: &mut Journey<'_>,
    ) -> Self {
        let Target::Service { cluster, policy, .. } = attempts.target else {
            unreachable!("only calls of services are hedged")
        };
        let due = hedge.delay().map(|delay| attempts.conn.worker.timers.start(delay));
        let parts = due.is_some().then(|| Parts {
            sending: Sending::new(if body.is_empty() { None } else { Some(body.tap()) }),
            announcement: super::announced(attempts.conn, cluster),
        });
        Self {
            race: Race::default(),
            state: State::Before(due),
            worker: Rc::clone(&attempts.conn.worker),
            cluster: Arc::clone(cluster),
            target: attempts.target,
            parts,
            facts: facts(attempts, head, deadlines),
            is_grpc: journey.is_grpc(),
            first: attempts.endpoint.as_ref().map(|endpoint| endpoint.id),
            retries: policy.retry(Some(cluster)).map_or(RetryBudget::DEFAULT, |retry| retry.budget),
            connect_timeout: attempts.connect_timeout(),
            attempt_timeout: attempts.attempt_timeout(),
            reasons: journey.told().is_some().then(Explanation::default),
            trace: journey.trace(),
            hedge,
            head,
        }
    }

    /// Ready when it has ended; true: well, so that it is passed on.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
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
            self.race.renounce();
            return self.worker.hedged(&self.cluster, "refused");
        };
        for ticket in hedged.ticket.iter().chain(&hedged.by_route) {
            self.worker.breaker_begins(ticket);
        }
        let mut head = OwnHead::of(self.head);
        let traced = match self.dress(&mut head, now) {
            Ok(traced) => traced,
            Err(failure) => {
                self.race.renounce();
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
            traced,
            hedged,
        };
        let behind = Rc::clone(&under.behind);
        let endpoint = Arc::clone(&under.hedged.endpoint);
        let exchange = exchange(
            Rc::clone(&self.worker),
            Arc::clone(&self.cluster),
            endpoint,
            (head, parts),
            self.connect_timeout,
            Rc::clone(&behind),
        );
        let attempt = self.attempt_timeout;
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
        let took = now.since(under.began);
        let wall = || self.worker.shared.clock.wall();
        let answer = match &done {
            Ok(answered) => Some(Answer {
                to_repeat: named(answered),
                ..answer::of_response(&answered.response, self.is_grpc, took, wall)
            }),
            Err(failure) => answer::of_failure(failure, took),
        };
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
        self.state = State::Failed(under, failed);
        false
    }

    /// What is learnt is how long the service takes: what waited for something of ours says nothing of that.
    fn first_took(&self, asked: Option<Duration>, now: Tick) {
        if let Some(asked) = asked {
            self.hedge.first_took(asked, now);
        }
    }

    fn tell_reasons(&mut self, journey: &mut Journey<'_>) {
        if let (Some(Explanation(reasons)), Some(told)) = (self.reasons.take(), journey.told()) {
            reasons.into_iter().for_each(|reason| told.note(|| reason));
        }
    }

    /// It is the request's attempt from now on.
    fn wins(
        mut self,
        attempts: &mut Attempts<'_>,
        body: &mut RequestBody<'_>,
        response: &mut ResponseHead,
        journey: &mut Journey<'_>,
    ) -> Result<Exchange, Failure> {
        let State::Won(under, answered) = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("it has been answered")
        };
        let (
            Under { hedged, in_flight, began, traced, address, protocol, behind: _ },
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
        attempts.tried.push(hedged.endpoint.id);
        attempts.began = began;
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
    fn loses(self, attempts: &mut Attempts<'_>, journey: &mut Journey<'_>, over: Option<&Failure>) {
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
        let ended = failed.as_ref().map_or(now, |failed| failed.ended);
        let (status, failure) =
            failed.as_ref().map_or((0, None), |failed| (failed.status, failed.failure.as_ref()));
        let opened = failed.as_ref().and_then(|failed| failed.opened);
        let cause = match (&failed, failure) {
            (None, _) => HEDGE_LOST,
            (Some(_), Some(failure)) => failure.cause.as_str(),
            (Some(_), None) => "",
        };
        let tried = Tried {
            start: under.began.since(journey.started()),
            connect: opened.map(|(opened, _)| opened.since(under.began)),
            took: ended.since(under.began),
            address: under.address,
            instance: Some(Arc::clone(&under.hedged.endpoint.instance)),
            spiffe_id: under.hedged.endpoint.spiffe_id().map(|id| Arc::clone(id.shared())),
            protocol: under.protocol,
            age: opened.filter(|(_, born)| *born < under.began).map(|(_, born)| under.began.since(born)),
            status,
            cause,
            detail: failure.and_then(|failure| failure.detail.clone()),
            phase: if cause.is_empty() { Phase::Response } else { Phase::Request },
            sent: 0,
            received: 0,
        };
        journey.beside(tried, under.traced);
    }
}

/// The second attempt's exchange, as far as the head of its response.
async fn exchange(
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    (head, parts): (OwnHead, Parts),
    connect_timeout: Duration,
    behind: Rc<Noted>,
) -> Result<Answered, Failure> {
    let Parts { mut sending, announcement } = parts;
    let announcement = announcement.as_deref().map(|header| &header[..]);
    let to = Destination::of_endpoint(&cluster, &endpoint, connect_timeout, announcement);
    let mut exchange =
        aside::open(&worker, &to, &head.head(), sending.is_done(), Behind(Some(&behind))).await?;
    let opened = worker.now();
    let limits: Limits = worker.shared.settings.limits;
    let mut response = ResponseHead::new();
    let answered = poll_fn(|cx| {
        let sent = match sending.poll(cx, &mut exchange) {
            Ok(sent) => sent,
            Err(Lost::CutOff | Lost::Overrun) => {
                return Poll::Ready(Err(Failure::local(Cause::Internal).because("its body was not kept")));
            }
        };
        loop {
            match exchange.poll_head(cx, &limits, &mut response) {
                // Those of the first attempt are passed on.
                Poll::Ready(Ok(())) if response.is_informational() => {}
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => {
                    let error = sent.err().unwrap_or(error);
                    return Poll::Ready(Err(Failure::of_upstream(&error, false, exchange.is_reused())));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    match answered {
        Ok(()) => Ok(Answered { exchange, sending, response, opened }),
        Err(failure) => {
            exchange.abort();
            Err(failure)
        }
    }
}
