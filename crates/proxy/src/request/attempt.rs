//! Attempts: an endpoint is picked, a connection found or made, the request sent, the response's head awaited; and
//! when that fails, whether it is done again.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use meshwork_decision::{AppProtocol, Cause, Cluster, Endpoint, RulePolicy, Timeouts};
use meshwork_http1::ResponseHead;
use meshwork_telemetry::Protocol;
use smallvec::SmallVec;

use super::body::RequestBody;
use super::deadline::Deadlines;
use super::journey::Journey;
use super::transfer;
use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::{Failure, Retry};
use crate::upstream::connect::{CONNECT_TIMEOUT, connect};
use crate::upstream::h1::H1Client;
use crate::upstream::h2::H2Connection;
use crate::upstream::pool::EndpointPool;
use crate::upstream::{Exchange, Head};

/// How often a request that no endpoint has seen is sent elsewhere when no policy says otherwise.
const UNSEEN_RETRIES: u32 = 2;

/// The attempts of one request.
pub(crate) struct Attempts<'a> {
    conn: &'a Conn,
    cluster: &'a Arc<Cluster>,
    timeouts: Timeouts,
    tried: SmallVec<[u64; 4]>,
    unseen: u32,
    /// A kept connection turned out to be stale: the next one is new.
    fresh: bool,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(
        conn: &'a Conn,
        cluster: &'a Arc<Cluster>,
        _policy: &RulePolicy,
        timeouts: Timeouts,
    ) -> Self {
        Self { conn, cluster, timeouts, tried: SmallVec::new(), unseen: 0, fresh: false }
    }

    /// Runs attempts until a response's final head is in `response`.
    ///
    /// # Errors
    /// The last attempt's failure.
    pub(crate) async fn run(
        &mut self,
        head: &Head<'_>,
        down: &mut Down<'_>,
        body: &mut RequestBody,
        response: &mut ResponseHead,
        journey: &mut Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        loop {
            let failure = match self.once(head, down, body, response, journey, deadlines).await {
                Ok(exchange) => return Ok(exchange),
                Err(failure) => failure,
            };
            journey.record.bytes_received = body.received;
            if !self.again(&failure, head, body) {
                return Err(failure);
            }
            body.rewind();
        }
    }

    /// Whether another attempt follows, and to whom.
    fn again(&mut self, failure: &Failure, head: &Head<'_>, body: &RequestBody) -> bool {
        if !body.is_replayable() {
            return false;
        }
        match failure.retry {
            Retry::No | Retry::Policy => false,
            Retry::NothingSent => {
                self.unseen += 1;
                self.unseen <= UNSEEN_RETRIES
            }
            // The endpoint may have seen the request and died of it: only what may be repeated is.
            Retry::Reused => {
                self.tried.pop();
                !std::mem::replace(&mut self.fresh, true) && (head.method.is_idempotent() || body.is_empty())
            }
        }
    }

    async fn once(
        &mut self,
        head: &Head<'_>,
        down: &mut Down<'_>,
        body: &mut RequestBody,
        response: &mut ResponseHead,
        journey: &mut Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        let worker = &self.conn.worker;
        let endpoint =
            self.cluster.pick(worker.now(), &mut *worker.rng.borrow_mut(), &self.tried).ok_or_else(|| {
                Failure::local(Cause::NoHealthyUpstream).because(Arc::clone(&self.cluster.key.service))
            })?;
        self.tried.push(endpoint.id);
        let http2 = matches!(self.cluster.protocol, AppProtocol::Http2 | AppProtocol::Grpc);
        journey.attempt(&endpoint, if http2 { Protocol::Http2 } else { Protocol::Http11 });
        deadlines.attempt(self.timeouts.backend_request);
        let mut exchange = if http2 {
            self.open_h2(&endpoint, head, down, body, deadlines).await?
        } else {
            self.open_h1(&endpoint, head, down, deadlines).await?
        };
        match transfer::until_head(self.conn, &mut exchange, down, body, response, deadlines).await {
            Ok(()) => Ok(exchange),
            Err(failure) => {
                exchange.abort();
                Err(failure)
            }
        }
    }

    async fn open_h1(
        &self,
        endpoint: &Arc<Endpoint>,
        head: &Head<'_>,
        down: &mut Down<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        let worker = &self.conn.worker;
        let pool = worker.pools.of(endpoint.id);
        let kept = if self.fresh { None } else { pool.take_idle() };
        let mut client = match kept {
            Some(client) => client,
            None => {
                let dial = Box::pin(connect(endpoint.http_address(), self.connect_timeout()));
                let io = self.unless_interrupted(dial, down, deadlines).await?;
                Box::new(H1Client::new(io, worker.connected()))
            }
        };
        client.send(head, &worker.shared.settings.limits)?;
        Ok(Exchange::H1 { client, pool })
    }

    async fn open_h2(
        &self,
        endpoint: &Arc<Endpoint>,
        head: &Head<'_>,
        down: &mut Down<'_>,
        body: &RequestBody,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        let worker = &self.conn.worker;
        let pool = worker.pools.of(endpoint.id);
        let end = body.is_empty();
        let open = async {
            let connection = self.shared(endpoint, &pool).await?;
            connection.send(head, end, &*worker.shared.clock).await
        };
        let exchange = self.unless_interrupted(Box::pin(open), down, deadlines).await?;
        Ok(Exchange::H2(Box::new(exchange)))
    }

    async fn shared(
        &self,
        endpoint: &Arc<Endpoint>,
        pool: &EndpointPool,
    ) -> Result<Rc<H2Connection>, Failure> {
        let worker = &self.conn.worker;
        pool.share(|| async {
            let io = connect(endpoint.http_address(), self.connect_timeout()).await?;
            H2Connection::start(io, worker.connected(), worker.now()).await
        })
        .await
    }

    fn connect_timeout(&self) -> Duration {
        self.timeouts.connect.unwrap_or(CONNECT_TIMEOUT)
    }

    /// Waits for a connection, unless the request's time is over or nobody waits for it any more.
    async fn unless_interrupted<T>(
        &self,
        mut step: std::pin::Pin<Box<impl Future<Output = Result<T, Failure>>>>,
        down: &mut Down<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<T, Failure> {
        let done = poll_fn(|cx| {
            if let Poll::Ready(done) = step.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            transfer::poll_interrupted(cx, self.conn, down, deadlines).map(Err)
        })
        .await;
        if let Err(failure) = &done
            && matches!(failure.cause, Cause::ConnectFailure | Cause::ConnectTimeout)
        {
            self.conn.worker.connect_failed(failure.cause);
        }
        done
    }
}
