//! The rest of a large response between two plain HTTP/1.1 connections: the kernel moves it, from socket to socket. What
//! is small, not of known length, slowed by a policy, or meets TLS or HTTP/2 is copied (`transfer.rs`).

use std::task::{Context, Poll};

use super::journey::Journey;
use super::shape;
use crate::downstream::Down;
use crate::downstream::h1::H1Server;
use crate::error::Failure;
use crate::http::stream::StreamError;
use crate::splice::Pipe;
use crate::upstream::Exchange;
use crate::upstream::h1::H1Client;

/// Below this a copy costs less than a pipe.
const LEAST: u64 = 96 * 1024;
/// Turns of one response before other tasks of the worker have theirs.
const TURNS: usize = 16;

/// One response's pipe, while there is something to move.
#[derive(Default)]
pub(super) struct Bulk {
    pipe: Option<Pipe>,
}

/// How far it came.
pub(super) enum Moved {
    /// To its end: nothing of it is here any more.
    All,
    /// As far as one side lets it; the task is woken when there is more to do.
    Some,
}

impl Bulk {
    /// Whether what comes next of the response is not to be read, since it goes this way.
    #[inline]
    pub(super) fn takes_over(
        &mut self,
        exchange: &Exchange,
        down: &Down<'_>,
        journey: &mut Journey<'_>,
    ) -> bool {
        self.pipe.is_some() || (is_worth_it(exchange, down) && self.begin(journey))
    }

    /// Without a pipe, since too many are in use, it is copied like any other.
    fn begin(&mut self, journey: &mut Journey<'_>) -> bool {
        if shape::is_slowed(journey) {
            return false;
        }
        self.pipe = journey.conn().worker.pipes.take();
        self.pipe.is_some()
    }

    /// Something of the response is on its way.
    pub(super) fn is_under_way(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| !pipe.is_empty())
    }

    /// Whoever only waits holds no pipe.
    pub(super) fn rest(&mut self) {
        if !self.is_under_way() {
            self.pipe = None;
        }
    }

    /// Moves on what there is. Whatever was queued before has been written.
    ///
    /// # Errors
    /// Either side broke.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange,
        down: &mut Down<'_>,
        journey: &mut Journey<'_>,
    ) -> Result<Moved, Failure> {
        let (client, server) =
            both(exchange, down).expect("only what is HTTP/1.1 on both sides is taken over");
        debug_assert!(!server.wire.has_output(), "what was queued leaves before what is in the pipe");
        let pipe = self.pipe.as_mut().expect("it has taken over");
        for _ in 0..TURNS {
            while !pipe.is_empty() {
                match pipe.poll_drain(cx, server.wire.io.tcp()) {
                    Poll::Ready(Ok(count)) => {
                        server.has_passed(count);
                        journey.record.bytes_sent += count as u64;
                    }
                    Poll::Ready(Err(error)) => return Err(Failure::of_downstream(&error.into())),
                    Poll::Pending => return Ok(Moved::Some),
                }
            }
            let most = usize::try_from(client.to_come()).unwrap_or(usize::MAX);
            if most == 0 {
                self.pipe = None;
                return Ok(Moved::All);
            }
            match pipe.poll_fill(cx, client.wire.io.tcp(), most) {
                Poll::Ready(Ok(0)) => return Err(Failure::of_upstream(&StreamError::Closed, true, false)),
                Poll::Ready(Ok(count)) => client.has_passed(count),
                Poll::Ready(Err(error)) => return Err(Failure::of_upstream(&error.into(), true, false)),
                Poll::Pending => {
                    self.pipe = None;
                    return Ok(Moved::Some);
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(Moved::Some)
    }
}

fn is_worth_it(exchange: &Exchange, down: &Down<'_>) -> bool {
    let (Exchange::H1 { client, .. }, Down::H1(server)) = (exchange, down) else { return false };
    client.to_come() >= LEAST
        && client.wire.is_bare()
        && server.wire.io.is_plain()
        && server.is_of_known_length()
}

fn both<'e>(
    exchange: &'e mut Exchange,
    down: &'e mut Down<'_>,
) -> Option<(&'e mut H1Client, &'e mut H1Server)> {
    match (exchange, down) {
        (Exchange::H1 { client, .. }, Down::H1(server)) => Some((client, server)),
        _ => None,
    }
}
