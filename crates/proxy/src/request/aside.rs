//! An exchange beside the request's own, as copies and second attempts have one: with a head of its own, and the body
//! through a tap.

use std::task::{Context, Poll};

use http::Method;
use meshwork_http1::{BodyLength, Fields};

use super::tee::{Next, Tap};
use crate::error::Failure;
use crate::http::stream::StreamError;
use crate::upstream::behind::Behind;
use crate::upstream::open::{self, Destination, Speaks};
use crate::upstream::{Exchange, Head};
use crate::worker::Worker;

/// A head of its own.
pub(crate) struct OwnHead {
    method: Method,
    https: bool,
    authority: Box<str>,
    path: Box<str>,
    pub(crate) fields: Fields,
    body: BodyLength,
    te_trailers: bool,
}

impl OwnHead {
    pub(crate) fn of(head: &Head<'_>) -> Self {
        Self {
            method: head.method.clone(),
            https: head.https,
            authority: head.authority.into(),
            path: head.path.into(),
            fields: head.fields.clone(),
            body: head.body,
            te_trailers: head.te_trailers,
        }
    }

    pub(crate) fn head(&self) -> Head<'_> {
        Head {
            method: &self.method,
            https: self.https,
            authority: &self.authority,
            path: &self.path,
            fields: &self.fields,
            body: self.body,
            te_trailers: self.te_trailers,
            upgrade: None,
            nested: false,
        }
    }
}

/// A kept connection or a new one, and the head on it.
///
/// # Errors
/// A limit, or no connection could be made that takes the request.
pub(crate) async fn open(
    worker: &Worker,
    to: &Destination<'_>,
    head: &Head<'_>,
    end: bool,
    behind: Behind<'_>,
) -> Result<Exchange, Failure> {
    opened(worker, to, head, end, behind).await.inspect_err(|failure| worker.connect_failed(failure.cause))
}

async fn opened(
    worker: &Worker,
    to: &Destination<'_>,
    head: &Head<'_>,
    end: bool,
    behind: Behind<'_>,
) -> Result<Exchange, Failure> {
    let pool = worker.pools.of(to.pool);
    match to.speaks {
        Speaks::Http1 => {
            let may_keep = to.announcement.is_none() && !pool.has_line();
            let mut client = match if may_keep { pool.take_idle() } else { None } {
                Some(client) => client,
                None => Box::pin(open::h1(worker, to, &pool, behind)).await?,
            };
            client.send(head, &worker.shared.settings.limits)?;
            Ok(Exchange::H1 { client, pool })
        }
        Speaks::Http2 | Speaks::Mesh { .. } => {
            Ok(Exchange::H2(Box::new(Box::pin(open::h2(worker, to, &pool, head, end, behind)).await?)))
        }
    }
}

/// Why the rest of a body is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The original's body broke off.
    CutOff,
    /// It came faster than it was read.
    Overrun,
}

/// A body on its second way.
#[derive(Default)]
pub(crate) struct Sending {
    /// Absent: there is none.
    tap: Option<Tap>,
    /// The end has been queued.
    ended: bool,
    /// And written out.
    done: bool,
    bytes: usize,
    /// The endpoint takes no more.
    broken: bool,
}

impl Sending {
    pub(crate) fn new(tap: Option<Tap>) -> Self {
        let none = tap.is_none();
        Self { ended: none, done: none, tap, ..Self::default() }
    }

    /// The endpoint has got all of it: nothing waits to be written.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// What it has got so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether all of it is here, and is no more than this.
    pub(crate) fn is_whole(&self, most: usize) -> bool {
        self.tap.as_ref().is_none_or(|tap| tap.is_whole(most))
    }

    /// Moves what there is of the body and what there is room for. The inner error is the upstream's: its response
    /// counts, if there is one.
    ///
    /// # Errors
    /// The rest will not come.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange,
    ) -> Result<Result<(), StreamError>, Lost> {
        if self.broken {
            return Ok(Ok(()));
        }
        let sending = self.pump(cx, exchange)?;
        self.broken = sending.is_err();
        Ok(sending)
    }

    fn pump(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange,
    ) -> Result<Result<(), StreamError>, Lost> {
        while let (false, Some(tap)) = (self.ended, &self.tap) {
            if !exchange.has_room() {
                match exchange.poll_flush(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Ok(Err(error)),
                    Poll::Pending => {
                        return match tap.poll_lost(cx) {
                            Poll::Ready(Next::Overrun) => Err(Lost::Overrun),
                            Poll::Ready(_) => Err(Lost::CutOff),
                            Poll::Pending => Ok(Ok(())),
                        };
                    }
                }
            }
            match tap.poll_next(cx) {
                Poll::Ready(Next::Data(data)) => {
                    self.bytes += data.len();
                    exchange.queue(data);
                }
                Poll::Ready(Next::End(trailers)) => {
                    exchange.end(trailers);
                    self.ended = true;
                }
                Poll::Ready(Next::CutOff) => return Err(Lost::CutOff),
                Poll::Ready(Next::Overrun) => return Err(Lost::Overrun),
                Poll::Pending => break,
            }
        }
        match exchange.poll_flush(cx) {
            Poll::Ready(Err(error)) => Ok(Err(error)),
            Poll::Ready(Ok(())) => {
                self.done = self.ended;
                Ok(Ok(()))
            }
            Poll::Pending => Ok(Ok(())),
        }
    }
}
