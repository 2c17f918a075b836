//! One attempt's exchange with an endpoint, whatever version of HTTP the endpoint speaks.
//!
//! ```text
//! send head ──▶ queue/end/flush body ──▶ poll_head (1xx …, then the final one) ──▶ poll_frame … End ──▶ finish
//! ```

mod alive;
pub(crate) mod behind;
pub(crate) mod connect;
mod counted;
pub(crate) mod h1;
pub(crate) mod h2;
mod line;
pub(crate) mod mesh;
pub(crate) mod open;
mod pings;
pub(crate) mod pool;
mod shared;
mod task;
mod turn;

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use meshwork_base::Tick;
use meshwork_http1::{BodyLength, Fields, Limits, ResponseHead};

use crate::error::{Failure, Fault};
use crate::http::stream::{Frame, StreamError};
use h1::H1Client;
use h2::H2Exchange;
use pool::EndpointPool;

/// How often what no endpoint has seen is sent elsewhere when no policy says otherwise; a request waits then.
pub(crate) const UNSEEN_RETRIES: u32 = 2;

/// So long after a request was sent, and the way there and back besides, the end of its connection may be one that was on the
/// way to us meanwhile: through a peer that is slow to be woken.
const CROSSING: Duration = Duration::from_millis(100);
/// What took longer to connect was lost and sent again after a second, and says nothing of the way.
const LONGEST_WAY: Duration = Duration::from_millis(900);

/// A request's head as it leaves: what routing and filters made of the one that came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    pub(crate) method: &'a Method,
    pub(crate) https: bool,
    pub(crate) authority: &'a str,
    /// Path and query, or `*`.
    pub(crate) path: &'a str,
    /// Without connection-specific fields; Host may be among them and is written from `authority`.
    pub(crate) fields: &'a Fields,
    pub(crate) body: BodyLength,
    /// The caller takes trailers.
    pub(crate) te_trailers: bool,
    /// The protocol that the caller offers to change to.
    pub(crate) upgrade: Option<&'a [u8]>,
    /// It is a retry of the hop before, which therefore is not repeated here.
    pub(crate) nested: bool,
}

/// One attempt under way.
pub(crate) enum Exchange {
    /// On an HTTP/1.1 connection that is ours alone until the exchange is done.
    H1 { client: Box<H1Client>, pool: Rc<EndpointPool> },
    /// On a stream of a shared HTTP/2 connection.
    H2(Box<H2Exchange>),
}

impl Exchange {
    /// Whether the connection, when it breaks, had perhaps been closed by the peer before the request came that was sent then
    /// (`None`: the peer has spoken since). Whoever has had it for longer has begun it, and perhaps broken by it.
    pub(crate) fn is_stale(&self, sent: Option<Tick>, now: Tick) -> bool {
        let (is_kept, round_trip) = match self {
            Self::H1 { client, .. } => (client.is_reused() && !client.has_begun(), client.round_trip()),
            Self::H2(exchange) => (exchange.reused, exchange.round_trip()),
        };
        let crossing = CROSSING + round_trip.min(LONGEST_WAY);
        is_kept && sent.is_some_and(|sent| now.since(sent) <= crossing)
    }

    /// When the connection was made.
    pub(crate) fn born(&self) -> Tick {
        match self {
            Self::H1 { client, .. } => client.born(),
            Self::H2(exchange) => exchange.born(),
        }
    }

    /// Whether its break says nothing of its endpoint: in the mesh a proxy that ends an answer by a rule of its own says CANCEL, and a
    /// connection does not outlast the identities that it began with. `wall`: since the Unix epoch.
    pub(crate) fn is_ended_by_rule(&self, broken: &Failure, wall: Duration) -> bool {
        match self {
            Self::H2(exchange) if broken.fault == Fault::Upstream => {
                broken.is_cancelled && exchange.is_in_mesh() || exchange.has_run_out(wall)
            }
            Self::H1 { .. } | Self::H2(_) => false,
        }
    }

    /// It is with a proxy of the mesh.
    pub(crate) fn is_in_mesh(&self) -> bool {
        matches!(self, Self::H2(exchange) if exchange.is_in_mesh())
    }

    /// The time of its request was over, and nothing of a response has come since this moment. Perhaps its connection leads
    /// nowhere any more, and those that have been idle since before it do neither: what comes next goes another way.
    pub(crate) fn ran_out(&self, began: Tick, now: Tick) {
        match self {
            Self::H1 { client, pool } if client.is_reused() && !client.has_begun() => pool.doubt_idle(began),
            Self::H1 { .. } => {}
            Self::H2(exchange) => exchange.ran_out(now),
        }
    }

    /// The next head of the response, informational ones included.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        limits: &Limits,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), StreamError>> {
        match self {
            Self::H1 { client, .. } => client.poll_head(cx, limits, head),
            Self::H2(exchange) => exchange.poll_head(cx, limits, head),
        }
    }

    /// The response goes to one stream of several.
    pub(crate) fn share(&mut self) {
        if let Self::H1 { client, .. } = self {
            client.wire.share();
        }
    }

    /// The next frame of the response's body.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, StreamError>> {
        match self {
            Self::H1 { client, .. } => client.poll_frame(cx),
            Self::H2(exchange) => exchange.poll_frame(cx),
        }
    }

    /// The response has no body behind its head.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::H1 { client, .. } => client.is_end(),
            Self::H2(exchange) => exchange.is_end(),
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        match self {
            Self::H1 { client, .. } => client.wire.has_room(),
            Self::H2(exchange) => exchange.sink.has_room(),
        }
    }

    pub(crate) fn queue(&mut self, data: Bytes) {
        match self {
            Self::H1 { client, .. } => client.queue(data),
            Self::H2(exchange) => exchange.sink.queue(data),
        }
    }

    pub(crate) fn end(&mut self, trailers: Option<Box<Fields>>) {
        match self {
            Self::H1 { client, .. } => client.end(trailers.as_deref()),
            Self::H2(exchange) => exchange.end(trailers),
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self {
            Self::H1 { client, .. } => client.wire.poll_flush(cx).map_err(StreamError::from),
            Self::H2(exchange) => exchange.sink.poll_room(cx),
        }
    }

    /// Both directions are completely done: the connection may carry another request.
    pub(crate) fn finish(self, now: Tick) {
        match self {
            Self::H1 { client, pool } if client.may_be_kept() => pool.give_back(client, now),
            Self::H1 { .. } | Self::H2(_) => {}
        }
    }

    /// The request will not be completed: the endpoint must not take it for whole.
    pub(crate) fn abort(self) {
        if let Self::H2(mut exchange) = self {
            exchange.sink.reset(::h2::Reason::CANCEL);
        }
    }
}
