//! Bytes both ways in one task, until both sides have ended. The end of one direction is passed on at once and the other
//! goes on: a caller that has said everything may still wait for its answer.
//!
//! Between two plain sockets a direction that moves much is spliced; what is small, or meets TLS, is copied through one
//! buffer of the worker. So a quiet connection holds neither buffer nor pipe.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use meshwork_decision::Cause;
use meshwork_telemetry::Phase as Stage;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Carried;
use super::end::{End, IsHttp};
use super::journey::Journey;
use crate::connections::{Entry, Order, Phase};
use crate::error::{Failure, Retry};
use crate::io::told;
use crate::splice::{Pipe, Pipes};
use crate::worker::Worker;

/// How long nothing may move where no policy says it; Envoy's.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// The worker's buffer. A read that fills it says that much is on its way.
pub(crate) const BUFFER: usize = 64 * 1024;
/// Turns of one direction before others of the worker have theirs.
const TURNS: usize = 16;

/// Which side broke.
pub(super) enum Broken {
    From(io::Error),
    To(io::Error),
}

/// What was taken from one side and not yet given to the other.
enum Held {
    Nothing,
    Bytes(Bytes),
    Pipe(Pipe),
}

struct Direction {
    held: Held,
    /// The last read was large.
    bulk: bool,
    ended: bool,
    done: bool,
    moved: u64,
}

impl Direction {
    fn new(ahead: Bytes) -> Self {
        let held = if ahead.is_empty() { Held::Nothing } else { Held::Bytes(ahead) };
        Self { held, bulk: false, ended: false, done: false, moved: 0 }
    }

    /// Moves what there is; ready when the end has been passed on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        from: &mut End,
        to: &mut End,
    ) -> Poll<Result<(), Broken>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..TURNS {
            ready!(self.poll_give(cx, to)).map_err(Broken::To)?;
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Broken::To)?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            let taken = match (from.plain(), to.plain()) {
                (Some(socket), Some(_)) if self.bulk => self.poll_splice(cx, &worker.pipes, socket),
                _ => None,
            };
            let count = match taken {
                Some(taken) => ready!(taken).map_err(Broken::From)?,
                None => ready!(self.poll_copy(cx, worker, from, to))?,
            };
            self.ended = count == 0;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes bytes into a pipe; `None`: there is no pipe.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        pipes: &Rc<Pipes>,
        from: &tokio::net::TcpStream,
    ) -> Option<Poll<io::Result<usize>>> {
        let Some(mut pipe) = pipes.take() else {
            self.bulk = false;
            return None;
        };
        let filled = pipe.poll_fill(cx, from, usize::MAX);
        match &filled {
            Poll::Ready(Ok(count)) if *count > 0 => self.held = Held::Pipe(pipe),
            // The next is looked at first: it may be little.
            _ => self.bulk = false,
        }
        Some(filled)
    }

    /// Takes bytes into the worker's buffer and gives at once what the other side takes.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        from: &mut End,
        to: &mut End,
    ) -> Poll<Result<usize, Broken>> {
        let mut buffer = worker.buffer.borrow_mut();
        buffer.resize(BUFFER, 0);
        let mut read = ReadBuf::new(&mut buffer);
        ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(Broken::From)?;
        self.bulk = read.remaining() == 0;
        let filled = read.filled();
        let mut rest = filled;
        while !rest.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Broken::To(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(count)) => {
                    self.moved += count as u64;
                    rest = &rest[count..];
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::To(error))),
                Poll::Pending => {
                    self.held = Held::Bytes(Bytes::copy_from_slice(rest));
                    break;
                }
            }
        }
        Poll::Ready(Ok(filled.len()))
    }

    /// Gives on what is held, and what TLS may hold back.
    fn poll_give(&mut self, cx: &mut Context<'_>, to: &mut End) -> Poll<io::Result<()>> {
        loop {
            let count = match &mut self.held {
                Held::Nothing => return Pin::new(to).poll_flush(cx),
                Held::Bytes(bytes) => {
                    let count = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
                    if count == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    bytes.advance(count);
                    count
                }
                Held::Pipe(pipe) => {
                    let to = to.plain().expect("only plain sockets are spliced");
                    ready!(pipe.poll_drain(cx, to))?
                }
            };
            self.moved += count as u64;
            let empty = match &self.held {
                Held::Nothing => true,
                Held::Bytes(bytes) => bytes.is_empty(),
                Held::Pipe(pipe) => pipe.is_empty(),
            };
            if empty {
                self.held = Held::Nothing;
            }
        }
    }
}

/// Carries the connection to its end. `ahead` was read from the caller, and from the endpoint, already. A connection that does not end regularly
/// is reset on both sides.
///
/// # Errors
/// A side broke, nothing moved for too long, or the process stops.
pub(super) async fn run(
    carried: &Carried<'_>,
    idle: Option<Duration>,
    (down, up): (&mut End, &mut End),
    ahead: (Bytes, Bytes),
    journey: &mut Journey,
) -> Result<(), Failure> {
    let Carried { worker, entry, .. } = carried;
    entry.enter(Phase::Exchange, worker.now());
    entry.be_patient(Some(idle.unwrap_or(IDLE_TIMEOUT)));
    let (mut requests, mut responses) = (Direction::new(ahead.0), Direction::new(ahead.1));
    journey.established();
    journey.enter(Stage::Tunnel);
    let moved = poll_fn(|cx| {
        let before = (requests.moved, responses.moved);
        let there = requests.poll(cx, worker, down, up);
        let back = responses.poll(cx, worker, up, down);
        if before != (requests.moved, responses.moved) {
            entry.progress(worker.now());
            journey.moved(requests.moved - before.0, responses.moved - before.1);
        }
        match (there, back) {
            (Poll::Ready(Err(broken)), _) => return Poll::Ready(Err(failure(broken, true))),
            (_, Poll::Ready(Err(broken))) => return Poll::Ready(Err(failure(broken, false))),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            _ => {}
        }
        if let Some(failure) = over(entry) {
            return Poll::Ready(Err(failure));
        }
        entry.watch(cx);
        Poll::Pending
    })
    .await;
    match &moved {
        Ok(()) => journey.finished(),
        // Whoever waits for more must not take what it has for everything.
        Err(_) => {
            down.reset();
            up.reset();
        }
    }
    moved
}

/// Why a connection is to end now.
pub(super) fn over(entry: &Entry) -> Option<Failure> {
    match entry.order() {
        Some(Order::TimedOut(Phase::Exchange)) => Some(Failure::local(Cause::StreamIdleTimeout)),
        Some(Order::Close(cause)) => Some(Failure::local(cause)),
        // What runs when the process drains may go on until the drain's time is over.
        Some(Order::Drain | Order::TimedOut(_) | Order::Shed) | None => None,
    }
}

/// `requests`: the direction goes from the caller to the endpoint.
pub(super) fn failure(broken: Broken, requests: bool) -> Failure {
    let (doing, error, downstream) = match broken {
        Broken::From(error) => ("reading from", error, requests),
        Broken::To(error) => ("writing to", error, !requests),
    };
    let side = if downstream { "caller" } else { "endpoint" };
    let why = format!("{doing} the {side}: {}", told(&error));
    if error.get_ref().is_some_and(|inner| inner.is::<IsHttp>()) {
        return Failure::downstream(Cause::DownstreamProtocolError).because(IsHttp.to_string());
    }
    if downstream {
        let reset = error.kind() == io::ErrorKind::ConnectionReset;
        let cause = if reset { Cause::DownstreamReset } else { Cause::DownstreamClosed };
        Failure::downstream(cause).because(why)
    } else {
        Failure::upstream(Cause::UpstreamReset, Retry::No).because(why)
    }
}
