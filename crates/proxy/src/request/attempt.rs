//! Attempts: an endpoint is picked, a connection found or made, the request sent, the response's head awaited; and
//! when that fails, or the response calls for it, whether it is done again.

mod hedge;
mod repeat;

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::{
    Answer, AttemptOutcome, Cause, Cluster, Endpoint, Hedge, Permit, Picked, RouteBreaker, Ticket, Trial,
    Wanted, is_idempotent,
};
use meshwork_http1::{Fields, KnownName, RequestHead, ResponseHead};
use meshwork_telemetry::{Phase, Protocol};
use smallvec::SmallVec;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::affinity::Affinity;
use super::answer;
use super::body::RequestBody;
use super::deadline::{self, Deadlines};
use super::journey::{Journey, decide};
use super::retry::{Again, Of, Repeats};
use super::route::{self, Target};
use super::transfer;
use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::proxy_protocol::{Client, Written};
use crate::upstream::behind::{Behind, Noted, Spent, held_up, in_vain, unsent};
use crate::upstream::connect::{CONNECT_TIMEOUT, announcement};
use crate::upstream::open::{self, Destination, Speaks, app_id};
use crate::upstream::pool::EndpointPool;
use crate::upstream::{Exchange, Head};

/// The attempts of one request.
pub(crate) struct Attempts<'a> {
    conn: &'a Conn,
    target: Target<'a>,
    repeats: Repeats<'a>,
    /// Milliseconds that making a connection may take.
    connect_ms: u32,
    /// Milliseconds that its connections may idle; 0: nothing is said.
    idle_ms: u32,
    /// Milliseconds that an attempt may take; 0: no limit of its own.
    attempt_ms: u32,
    tried: SmallVec<[u64; 4]>,
    affinity: Option<&'a Affinity>,
    endpoint: Option<Arc<Endpoint>>,
    /// When this attempt's endpoint was picked.
    began: Tick,
    /// Its connection was not there at once.
    waited: Cell<bool>,
    /// What it waits for, as long as that is none of its endpoint's.
    behind: Noted,
    /// The return of its endpoint hangs on this attempt.
    trial: Option<Trial>,
    /// The circuit breaker of the service, or of the endpoint, wants to know how this attempt ends.
    ticket: Option<Ticket>,
    /// So does that of the route; few have one, and all futures would be larger for it.
    by_route: Option<Box<Ticket>>,
    /// How long the head of the response took, where only its end says what became of the call.
    late: Option<Duration>,
    /// The endpoint hears a deadline of a caller who is not believed.
    overheard: bool,
    /// It is sent however few calls succeed.
    matters: bool,
    /// The attempt that begins need not ask whether it is held back.
    is_let_through: bool,
    /// The failure that this attempt repeats.
    before: Option<Box<Failure>>,
    /// Counts a retry while it is under way.
    permit: Option<Permit>,
    /// What each connection begins with, where the service wants to know for whom it is made.
    announcement: Option<Box<Written>>,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(
        conn: &'a Conn,
        target: Target<'a>,
        affinity: Option<&'a Affinity>,
        head: &RequestHead,
    ) -> Self {
        let timeouts = target.timeouts();
        let repeats = Repeats::new(conn, target);
        let attempt_timeout = match (timeouts.backend_request, repeats.per_try_timeout()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self {
            conn,
            target,
            repeats,
            connect_ms: millis(timeouts.connect.unwrap_or(CONNECT_TIMEOUT)),
            idle_ms: timeouts.idle.map_or(0, millis),
            attempt_ms: attempt_timeout.map_or(0, |limit| millis(limit).max(1)),
            tried: SmallVec::new(),
            affinity,
            endpoint: None,
            began: Tick::ZERO,
            waited: Cell::new(false),
            behind: Noted::default(),
            trial: None,
            ticket: None,
            by_route: None,
            late: None,
            overheard: false,
            matters: matters(conn, &target, head),
            is_let_through: false,
            before: None,
            permit: None,
            announcement: announcement_for(conn, target),
        }
    }

    /// Tells the next hop how long the first attempt has, if that is limited.
    ///
    /// # Errors
    /// The head has no room.
    pub(crate) fn announce(
        &mut self,
        fields: &mut Fields,
        deadlines: &Deadlines,
        journey: &Journey<'_>,
    ) -> Result<(), Failure> {
        self.overheard = deadline::is_overheard(self.conn, &self.target, fields);
        self.rest(deadlines)
            .map_or(Ok(()), |rest| deadline::tell(fields, &self.target, rest, journey.is_grpc()))
    }

    fn rest(&self, deadlines: &Deadlines) -> Option<Duration> {
        deadlines.rest(self.attempt_timeout(), self.conn.worker.now())
    }

    /// Runs attempts until a response's final head is in `response`.
    ///
    /// # Errors
    /// The last attempt's failure.
    pub(crate) async fn run(
        &mut self,
        head: &Head<'_>,
        down: &mut Down<'_>,
        body: &mut RequestBody<'_>,
        response: &mut ResponseHead,
        journey: &mut Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        let mut again: Option<Box<Fields>> = None;
        loop {
            let head = Head { fields: again.as_deref().unwrap_or(head.fields), ..*head };
            if !is_idempotent(head.method.as_str()) {
                // It will not be sent twice. So the runtime looks first which kept connections have ended: what waits for
                // its turn on this worker may have been told so already.
                yield_now().await;
            }
            let begun = self.begin(&head, deadlines, journey);
            let outcome = match begun {
                Err(failure) => Err(failure),
                Ok(None) => self.exchange(&head, down, body, response, journey, deadlines).await,
                Ok(Some(hedge)) => {
                    Box::pin(hedge::raced((self, hedge), &head, down, body, response, journey, deadlines))
                        .await
                }
            };
            journey.record.bytes_received = body.received;
            let now = self.conn.worker.now();
            journey.attempted(outcome.as_ref().map(|_| response.status), body, now);
            let more = outcome.as_ref().is_ok_and(|exchange| !exchange.is_end());
            self.observe(outcome.as_ref().map(|_| ()), response, (journey.is_grpc(), more), now);
            if outcome.as_ref().is_err_and(|failure| has_left(failure, body)) {
                self.left(now);
            }
            let repeat = {
                let endpoint = self.endpoint.as_ref().map(|endpoint| endpoint.id);
                let of = Of { head: &head, body: &*body, deadlines: &*deadlines, endpoint };
                match outcome {
                    Ok(exchange) => {
                        let Some(repeat) = self.after_response((response, more), &of, journey) else {
                            return Ok(exchange);
                        };
                        self.before = None;
                        superseded(exchange, body, journey, self.conn.worker.now());
                        repeat
                    }
                    Err(failure) => self.after_failure(failure, &of, journey)?,
                }
            };
            journey.pauses();
            self.prepare(repeat, down, deadlines).await?;
            body.rewind();
            let count = self.repeats.counted();
            let rest = self.rest(deadlines);
            if count.is_some() || rest.is_some() || journey.is_traced() {
                let mut fields = repeated(head.fields, count, journey)?;
                if let Some(rest) = rest {
                    deadline::tell(&mut fields, &self.target, rest, journey.is_grpc())?;
                }
                again = Some(Box::new(fields));
            }
        }
    }

    /// The endpoint that was called last.
    pub(crate) fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.endpoint.as_ref()
    }

    /// Gets ready for another attempt, after its back-off.
    async fn prepare(
        &mut self,
        repeat: Again,
        down: &mut Down<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<(), Failure> {
        // The time between attempts is no attempt's.
        deadlines.no_attempt();
        // Nor do others wait through it for a trial that has ended.
        self.let_go();
        match repeat {
            Again::SameEndpoint => {
                // It is the same attempt, which was let through.
                self.is_let_through = true;
                // An attempt beside it may have been noted behind it.
                let same = self.endpoint.as_ref().map(|endpoint| endpoint.id);
                self.tried.retain(|tried| Some(*tried) != same);
            }
            Again::Elsewhere { after, permit } => {
                self.permit = permit;
                self.sleep(after, down, deadlines).await?;
            }
            Again::Anywhere { after, waiting } => {
                self.permit = None;
                self.tried.clear();
                self.sleep(after, down, deadlines).await?;
                drop(waiting);
            }
        }
        Ok(())
    }

    async fn sleep(
        &self,
        time: Duration,
        down: &mut Down<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<(), Failure> {
        if time.is_zero() {
            return Ok(());
        }
        let sleeping = async move {
            sleep(time).await;
            Ok(())
        };
        self.unless_interrupted(Box::pin(sleeping), down, deadlines).await
    }

    /// Tells balancer and outlier detection, once per attempt. `more`: something follows the response's head.
    fn observe(
        &mut self,
        outcome: Result<(), &Failure>,
        response: &ResponseHead,
        (is_grpc, more): (bool, bool),
        now: Tick,
    ) {
        let worker = &self.conn.worker;
        let took = now.since(self.began);
        if let (Target::App { port, .. }, Ok(())) = (self.target, &outcome)
            && answer::outcome(response, is_grpc) == AttemptOutcome::Success
        {
            port.state.answered(took, now);
        }
        let (Target::Service { cluster, .. }, Some(_)) = (self.target, &self.endpoint) else { return };
        let answer = match outcome {
            Ok(()) => {
                cluster.served();
                if more && answer::comes_late(response, is_grpc) {
                    self.late = Some(took);
                    // Nobody else waits to try what answers, however long its stream lasts.
                    return self
                        .settle(&Answer { status: 200, ..Answer::new(AttemptOutcome::Success, took) }, now);
                }
                let to_repeat = self.repeats.names(response, is_grpc);
                let wall = || worker.shared.clock.wall();
                Answer { to_repeat, ..answer::of_response(response, is_grpc, took, wall) }
            }
            Err(failure) => match answer::of_failure(failure, took) {
                Some(answer) => answer,
                None => return,
            },
        };
        self.tell(&answer, now);
    }

    /// The response has ended: what only its trailers could say is told now. It is too late for another attempt.
    pub(crate) fn ended(&mut self, ended: Result<(), &Failure>, grpc_status: Option<u8>) {
        if let Some(took) = self.late.take() {
            let to_repeat = grpc_status.is_some_and(|code| self.repeats.names_code(code));
            let answer = Answer { to_repeat, ..answer::of_end(ended, grpc_status, took) };
            // A caller who has left says nothing of whether a repetition helped.
            if ended.is_ok() || answer.outcome != AttemptOutcome::Success {
                self.repeats.ended(answer.outcome == AttemptOutcome::Success && !to_repeat);
            }
            self.tell(&answer, self.conn.worker.now());
        }
    }

    /// The caller has left while the endpoint had the request. Of an answer that has not come nothing is known but that it
    /// takes longer than this: of callers who are less patient than a slow endpoint is slow, none would ever tell.
    fn left(&mut self, now: Tick) {
        let (Target::Service { cluster, .. }, Some(endpoint)) = (self.target, &self.endpoint) else { return };
        let took = now.since(self.began);
        if self.behind.get().is_none() {
            cluster.outlasted(endpoint, took, now);
            let slow = Answer::new(AttemptOutcome::Success, took);
            self.conclude(|ticket| ticket.takes_for_slow(took), &slow, now);
        }
    }

    fn tell(&mut self, answer: &Answer, now: Tick) {
        if self.overheard && answer.status == 504 {
            return self.let_go();
        }
        let (Target::Service { cluster, .. }, Some(endpoint)) = (self.target, &self.endpoint) else { return };
        let worker = &self.conn.worker;
        if let Some(trial) = self.trial.take() {
            worker.shifted(cluster, cluster.tried(trial, answer, now));
        }
        worker.attempted(cluster, endpoint, answer, now);
        self.conclude(|_| true, answer, now);
    }

    /// Ends the trials that hang on this attempt, of endpoint and breaker.
    fn settle(&mut self, answer: &Answer, now: Tick) {
        let Target::Service { cluster, .. } = self.target else { return };
        if let Some(trial) = self.trial.take() {
            self.conn.worker.shifted(cluster, cluster.tried(trial, answer, now));
        }
        self.conclude(Ticket::is_trial, answer, now);
    }

    /// Tells the breaker.
    fn conclude(&mut self, which: impl Fn(&Ticket) -> bool, answer: &Answer, now: Tick) {
        let worker = &self.conn.worker;
        if let Some(ticket) = self.ticket.take_if(|ticket| which(ticket)) {
            worker.breaker_ends(ticket, answer, now);
        }
        if let Some(ticket) = self.by_route.take_if(|ticket| which(ticket)) {
            worker.breaker_ends(*ticket, answer, now);
        }
    }

    /// The attempt has ended without a word on whom it went to.
    fn let_go(&mut self) {
        (self.trial, self.ticket, self.by_route) = (None, None, None);
    }

    /// Picks an endpoint; and whether the attempt may have another one beside it.
    fn begin(
        &mut self,
        head: &Head<'_>,
        deadlines: &Deadlines,
        journey: &mut Journey<'_>,
    ) -> Result<Option<Box<Hedge>>, Failure> {
        journey.enter(Phase::Endpoint);
        self.pick(journey)?;
        Ok(self.hedge(head, deadlines, journey).map(Box::new))
    }

    /// From the endpoint to the head of its response.
    async fn exchange(
        &mut self,
        head: &Head<'_>,
        down: &mut Down<'_>,
        body: &mut RequestBody<'_>,
        response: &mut ResponseHead,
        journey: &mut Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        journey.enter(Phase::Connect);
        let to = self.destination();
        let protocol = if matches!(to.speaks, Speaks::Http1) { Protocol::Http11 } else { Protocol::Http2 };
        journey.attempt(to.address, self.endpoint.as_ref(), protocol, self.began);
        deadlines.attempt(&self.conn.worker, self.attempt_timeout());
        let mut exchange = match to.speaks {
            Speaks::Http1 => self.open_h1(&to, head, down, deadlines).await?,
            Speaks::Http2 | Speaks::Mesh { .. } => {
                self.open_h2(&to, head, down, body.is_empty(), deadlines).await?
            }
        };
        if let Speaks::Mesh { id, .. } = to.speaks {
            journey.record.upstream_id = Some(Arc::clone(id.shared()));
        }
        let waited = self.waited.take().then(|| self.conn.worker.now());
        journey.opened(waited, exchange.born());
        match transfer::until_head(self.conn, &mut exchange, down, body, response, deadlines).await {
            Ok(()) => Ok(exchange),
            Err(failure) => {
                exchange.abort();
                Err(held_up(failure, self.behind.get(), &self.spent()))
            }
        }
    }

    fn spent(&self) -> Spent {
        let now = self.conn.worker.now();
        let fastest = match self.target {
            Target::Service { cluster, .. } => cluster.fastest(now),
            Target::App { .. } => None,
        };
        Spent { began: self.began, now, fastest }
    }

    fn pick(&mut self, journey: &mut Journey<'_>) -> Result<(), Failure> {
        let worker = &self.conn.worker;
        let Target::Service { cluster, policy, .. } = self.target else {
            // It is there. What the request has waited for its turn is none of its time.
            self.began = worker.now();
            return Ok(());
        };
        let now = worker.now();
        self.began = now;
        self.endpoint = None;
        self.behind.set(None);
        // What came before has ended, though perhaps without a word.
        self.let_go();
        if !std::mem::take(&mut self.is_let_through) {
            self.held_back(cluster, now, journey)
                .map_err(|cause| Failure::local(cause).because(Arc::clone(&cluster.key.service)))?;
        }
        if let Some(breaker) = policy.breaker() {
            self.by_route = self.admitted_by(breaker, now, journey)?;
        }
        self.ticket = decide!(journey, |reasons| cluster.try_call(now, reasons))
            .map_err(|cause| Failure::local(cause).because(Arc::clone(&cluster.key.service)))?;
        if let Some(ticket) = &self.ticket {
            worker.breaker_begins(ticket);
        }
        let rng = &mut *worker.rng.borrow_mut();
        let tried = &self.tried;
        let wanted = self.affinity.map_or(Wanted { tried, ..Wanted::default() }, |found| found.wanted(tried));
        let called = decide!(journey, |reasons| cluster.call(now, rng, &wanted, reasons));
        let (mut picked, mut ticket) =
            called.map_err(|cause| Failure::local(cause).because(Arc::clone(&cluster.key.service)))?;
        let unreached = self.repeats.unreached();
        if unreached.contains(&picked.endpoint.id)
            && let Some(endpoint) = cluster.pick_beside(rng, unreached)
        {
            (picked, ticket) = (Picked { endpoint, trial: None }, None);
        }
        let Picked { endpoint, trial } = picked;
        self.trial = trial;
        if let Some(ticket) = ticket {
            worker.breaker_begins(&ticket);
            self.ticket = Some(ticket);
        }
        self.tried.push(endpoint.id);
        self.endpoint = Some(endpoint);
        Ok(())
    }

    /// Whether the breaker of its route lets an attempt through.
    fn admitted_by(
        &self,
        breaker: &Arc<RouteBreaker>,
        now: Tick,
        journey: &mut Journey<'_>,
    ) -> Result<Option<Box<Ticket>>, Failure> {
        let admitted = decide!(journey, |reasons| breaker.try_call(now, reasons));
        let ticket = admitted.map_err(|cause| Failure::local(cause).because(breaker.to_string()))?;
        if let Some(ticket) = &ticket {
            self.conn.worker.breaker_begins(ticket);
        }
        Ok(ticket.map(Box::new))
    }

    fn attempt_timeout(&self) -> Option<Duration> {
        (self.attempt_ms > 0).then(|| Duration::from_millis(self.attempt_ms.into()))
    }

    fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_ms.into())
    }

    fn destination(&self) -> Destination<'_> {
        let connect_timeout = self.connect_timeout();
        let fresh = self.repeats.was_stale(self.endpoint.as_ref().map(|endpoint| endpoint.id));
        match (self.target, &self.endpoint) {
            (Target::Service { cluster, .. }, Some(endpoint)) => {
                let announcement = self.announcement.as_deref().map(|header| &header[..]);
                let to = Destination::of_endpoint(cluster, endpoint, connect_timeout, announcement);
                Destination { fresh, ..to }
            }
            (Target::App { port, http2 }, _) => Destination {
                pool: app_id(port.app_port, http2),
                address: (self.conn.worker.shared.settings.app_address, port.app_port).into(),
                speaks: if http2 { Speaks::Http2 } else { Speaks::Http1 },
                service: None,
                connect_timeout,
                fresh,
                announcement: None,
            },
            (Target::Service { .. }, None) => unreachable!("an endpoint was picked before"),
        }
    }

    async fn open_h1(
        &self,
        to: &Destination<'_>,
        head: &Head<'_>,
        down: &mut Down<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        let worker = &self.conn.worker;
        let pool = worker.pools.of(to.pool);
        pool.may_idle(self.idle_ms);
        // Whoever waits in line goes first.
        let may_keep = !to.fresh && to.announcement.is_none() && !pool.has_line();
        let kept = if may_keep { pool.take_idle() } else { None };
        let mut client = match kept {
            Some(client) => client,
            None => {
                let opening = Box::pin(open::h1(worker, to, &pool, Behind(Some(&self.behind))));
                let opened = self.unless_interrupted(opening, down, deadlines).await;
                opened.map_err(|failure| self.without_connection(failure, &pool))?
            }
        };
        client.send(head, &worker.shared.settings.limits)?;
        Ok(Exchange::H1 { client, pool })
    }

    async fn open_h2(
        &self,
        to: &Destination<'_>,
        head: &Head<'_>,
        down: &mut Down<'_>,
        end: bool,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        let worker = &self.conn.worker;
        let pool = worker.pools.of(to.pool);
        pool.may_idle(self.idle_ms);
        let opening = Box::pin(open::h2(worker, to, &pool, head, end, Behind(Some(&self.behind))));
        let opened = self.unless_interrupted(opening, down, deadlines).await;
        let exchange = opened.map_err(|failure| self.without_connection(failure, &pool))?;
        Ok(Exchange::H2(Box::new(exchange)))
    }

    fn without_connection(&self, failure: Failure, pool: &EndpointPool) -> Failure {
        unsent(in_vain(failure, self.behind.get(), pool, &self.spent()))
    }

    /// Waits, unless the request's time is over or nobody waits for it any more.
    async fn unless_interrupted<T>(
        &self,
        mut step: Pin<Box<impl Future<Output = Result<T, Failure>>>>,
        down: &mut Down<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<T, Failure> {
        let done = poll_fn(|cx| {
            if let Poll::Ready(done) = step.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            self.waited.set(true);
            transfer::poll_interrupted(cx, self.conn, down, deadlines).map(Err)
        })
        .await;
        done.inspect_err(|failure| self.conn.worker.connect_failed(failure.cause))
    }
}

/// Whether its caller has left while the whole request was its endpoint's. Who owes a part of it has kept the endpoint waiting.
fn has_left(failure: &Failure, body: &RequestBody<'_>) -> bool {
    matches!(failure.cause, Cause::DownstreamClosed | Cause::DownstreamReset) && body.is_passed_on()
}

/// A response is given up for another attempt.
fn superseded(exchange: Exchange, body: &RequestBody<'_>, journey: &mut Journey<'_>, now: Tick) {
    journey.superseded(now);
    if exchange.is_end() && body.is_sent() {
        exchange.finish(now);
    } else {
        exchange.abort();
    }
}

/// As the policies that say it write it; a time that they cannot is none that anybody waits for.
fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Whether a policy that holds calls back lets this request pass whatever happens.
fn matters(conn: &Conn, target: &Target<'_>, head: &RequestHead) -> bool {
    let Target::Service { cluster, .. } = target else { return false };
    let Some(admission) = &cluster.admission else { return false };
    let own = route::own_caller(conn);
    admission.exempts(&route::Seen::with_caller(conn, head, own.as_ref()))
}

fn announcement_for(conn: &Conn, target: Target<'_>) -> Option<Box<Written>> {
    let Target::Service { cluster, .. } = target else { return None };
    announced(conn, cluster)
}

/// What connections to this service begin with, where it wants to know for whom they are made.
pub(crate) fn announced(conn: &Conn, cluster: &Cluster) -> Option<Box<Written>> {
    let client = Client { source: conn.peer, destination: conn.local };
    cluster.proxy_protocol.map(|version| Box::new(announcement(version, &client)))
}

/// A retry says so: the next hop does not retry what is one already. In a trace each attempt has a span of its own.
fn repeated(fields: &Fields, count: Option<u32>, journey: &mut Journey<'_>) -> Result<Fields, Failure> {
    let mut fields = fields.clone();
    let numbered = count
        .map_or(Ok(()), |count| fields.set_known(KnownName::XEnvoyAttemptCount, count.to_string()))
        .and_then(|()| journey.propagate_again(&mut fields));
    match numbered {
        Ok(()) => Ok(fields),
        Err(error) => Err(Failure::local(Cause::Internal).because(error.to_string())),
    }
}
