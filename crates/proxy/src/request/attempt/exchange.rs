//! From the endpoint of an attempt to the head of its response: a connection, and the request on it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use meshwork_base::Clock;
use meshwork_decision::Cause;
use meshwork_http1::ResponseHead;
use meshwork_telemetry::{Phase, Protocol};

use super::Attempts;
use crate::downstream::Down;
use crate::error::{Failure, Retry};
use crate::recorder::Moves;
use crate::request::body::RequestBody;
use crate::request::deadline::Deadlines;
use crate::request::journey::Journey;
use crate::request::route::Target;
use crate::request::transfer;
use crate::upstream::behind::{Behind, Spent, Until, held_up, in_vain, is_time_out, unsent};
use crate::upstream::open::{self, Destination, Speaks, app_id};
use crate::upstream::pool::EndpointPool;
use crate::upstream::{Exchange, Head};

impl Attempts<'_> {
    /// From the endpoint to the head of its response.
    pub(super) async fn exchange(
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
        deadlines.attempt(self.attempt_timeout(), self.answer_timeout());
        if body.has_ended() {
            deadlines.asked();
        }
        let mut exchange = match to.speaks {
            Speaks::Http1 => self.open_h1(&to, head, down, journey, deadlines).await?,
            Speaks::Http2 | Speaks::Mesh { .. } => {
                self.open_h2(&to, (head, body.is_empty()), down, journey, deadlines).await?
            }
        };
        if let Speaks::Mesh { id, .. } = to.speaks {
            journey.record.upstream_id = Some(Arc::clone(id.shared()));
        }
        let waited = self.waited.take().then(|| self.conn.worker.now());
        journey.opened(waited, exchange.born());
        self.heard = self.conn.worker.now();
        // It is this one that may be silent from here on, whatever was waited for before.
        self.conn.entry.progress(self.heard);
        let answered = transfer::until_head(journey, &mut exchange, down, body, response, deadlines).await;
        let answered = match answered {
            Ok(()) => deadlines.unless_over(response, journey.is_grpc()),
            Err(failure) => Err(deadlines.or_over(failure)),
        };
        match answered {
            Ok(()) => {
                deadlines.answered();
                Ok(exchange)
            }
            Err(failure) => {
                // What is beside us cannot have vanished.
                if is_time_out(failure.cause) && matches!(self.target, Target::Service { .. }) {
                    exchange.ran_out(self.began, self.conn.worker.now());
                }
                let failure = self.unless_by_rule(&exchange, failure, journey.is_grpc());
                exchange.abort();
                // Who owes a part of the request keeps its endpoint waiting, and a call of gRPC need not say anything for long.
                let failure =
                    if body.is_passed_on() && !journey.is_grpc() { failure } else { silent(failure) };
                Err(held_up(failure, self.behind.get(), &self.spent()))
            }
        }
    }

    /// A failure that its endpoint's proxy, or the end of its connection's identities, has made says nothing of the endpoint. What a
    /// proxy has cancelled was silent for long, and nobody asks for the same again: the caller of a call hears what it does where
    /// we tire of it first, and nothing that it would repeat.
    fn unless_by_rule(&self, exchange: &Exchange, failure: Failure, is_grpc: bool) -> Failure {
        if !exchange.is_ended_by_rule(&failure, self.conn.worker.shared.clock.wall()) {
            return failure;
        }
        let (cause, retry) = match failure.is_cancelled {
            true if is_grpc => (Cause::StreamIdleTimeout, Retry::No),
            true => (failure.cause, Retry::No),
            false => (failure.cause, failure.retry),
        };
        Failure { is_hasty: true, cause, retry, has_ended: failure.is_cancelled, ..failure }
    }

    fn spent(&self) -> Spent {
        let now = self.conn.worker.now();
        let fastest = match self.target {
            Target::Service { cluster, .. } => cluster.fastest(now),
            Target::App { .. } => None,
        };
        Spent { began: self.began, now, fastest }
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
        journey: &Journey<'_>,
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
                let until = self.until(deadlines);
                let behind = Behind::new(&self.behind).until(until.as_ref());
                let opening = Box::pin(open::h1(worker, to, &pool, behind));
                let opened = self.unless_interrupted(opening, down, journey, deadlines).await;
                opened.map_err(|failure| self.without_connection(failure, &pool))?
            }
        };
        client.send(head, &worker.shared.settings.limits)?;
        Ok(Exchange::H1 { client, pool })
    }

    async fn open_h2(
        &self,
        to: &Destination<'_>,
        (head, end): (&Head<'_>, bool),
        down: &mut Down<'_>,
        journey: &Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        let worker = &self.conn.worker;
        let pool = worker.pools.of(to.pool);
        pool.may_idle(self.idle_ms);
        let until = self.until(deadlines);
        let behind = Behind::new(&self.behind).until(until.as_ref());
        let opening = Box::pin(open::h2(worker, to, &pool, head, end, behind));
        let opened = self.unless_interrupted(opening, down, journey, deadlines).await;
        let exchange = opened.map_err(|failure| self.without_connection(failure, &pool))?;
        Ok(Exchange::H2(Box::new(exchange)))
    }

    /// When its time is over, should it have to wait for a connection.
    fn until(&self, deadlines: &Deadlines) -> Option<Until<'_>> {
        let (end, cause) = deadlines.first_over()?;
        let service = match self.target {
            Target::Service { cluster, .. } => Some(&**cluster),
            Target::App { .. } => None,
        };
        Some(Until { end, cause, service, clock: &*self.conn.worker.shared.clock })
    }

    fn without_connection(&self, failure: Failure, pool: &EndpointPool) -> Failure {
        let failure = unsent(in_vain(silent(failure), self.behind.get(), pool, &self.spent()));
        if let (Cause::MaxConnections, Target::Service { cluster, .. }) = (failure.cause, self.target) {
            cluster.connection_refused();
        }
        failure
    }

    /// Waits, unless the request's time is over or nobody waits for it any more.
    pub(super) async fn unless_interrupted<T>(
        &self,
        mut step: Pin<Box<impl Future<Output = Result<T, Failure>>>>,
        down: &mut Down<'_>,
        journey: &Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<T, Failure> {
        let done = poll_fn(|cx| {
            if let Poll::Ready(done) = step.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            self.waited.set(true);
            transfer::poll_under_way(cx, journey, down, deadlines, |record, _| Moves::of(record)).map(Err)
        })
        .await;
        done.inspect_err(|failure| self.conn.worker.connect_failed(failure.cause))
    }
}

/// That nothing came for so long is no fault of the endpoint's.
fn silent(failure: Failure) -> Failure {
    let is_hasty = failure.is_hasty || failure.cause == Cause::StreamIdleTimeout;
    Failure { is_hasty, ..failure }
}
