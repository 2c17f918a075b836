//! How HTTP is served at the ports for operators, probes and the roles' local callers.
//!
//! Who may reach such a port must not be able to take this process's descriptors from its traffic. So a port has a bound
//! on connections. When it is full, that which has been idle longest goes; where all have a request under way, the new
//! one does. One without a request for [`IDLE`], or with a half one, is closed. A request that is under way takes as
//! long as it takes (a watch, a long poll, a tap); at the ports for probes, where none is long, [`PROBE`].

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::descriptors::{Spare, is_out_of_descriptors};

/// How long a connection may be without a whole request: what traffic ports have as `--idle-timeout`.
pub const IDLE: Duration = Duration::from_secs(75);
/// How long a request may take at a port for probes.
pub const PROBE: Duration = Duration::from_secs(30);
/// Until descriptors are looked for again.
const PAUSE: Duration = Duration::from_millis(20);
/// How often a full port is told of at most.
const TELL: Duration = Duration::from_mins(1);

/// What a port may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at a time.
    pub connections: usize,
    /// How long a request may take, where none is meant to be long.
    pub request: Option<Duration>,
}

impl Bounds {
    /// Of a port that answers probes and scrapers, for whoever reaches it.
    #[must_use]
    pub fn probes() -> Self {
        Self { connections: at_most(64), request: Some(PROBE) }
    }

    /// Of an API, some of whose requests wait for something to happen.
    #[must_use]
    pub fn api() -> Self {
        Self { connections: at_most(1024), request: None }
    }
}

/// Never more than a quarter of the descriptors that there may be.
fn at_most(connections: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    limit.map_or(connections, |limit| connections.min((limit / 4).max(1)))
}

/// Where connections come from.
pub trait Accept: Send + 'static {
    /// One of them.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next one.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for TcpListener {
    type Io = TcpStream;
    async fn accept(&mut self) -> io::Result<TcpStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Io = UnixStream;
    async fn accept(&mut self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Serves these routes for as long as it is polled; connections that are open then live on with the runtime.
pub async fn serve<L: Accept>(mut listener: L, routes: Router, bounds: Bounds) {
    let port = Port { routes, bounds, open: Arc::default() };
    let mut spare = Spare::default();
    let (mut number, mut told) = (0, None);
    loop {
        match listener.accept().await {
            Ok(io) if port.makes_room() => {
                number += 1;
                // Who has the last descriptor gets his answer, and the next one needs it.
                port.begin(number, io, spare.keep());
            }
            // All have a request under way.
            Ok(_closed) => {
                if told.is_none_or(|at: Instant| at.elapsed() >= TELL) {
                    told = Some(Instant::now());
                    let connections = bounds.connections;
                    tracing::warn!(
                        connections,
                        "a port for operators is full of requests that are under way: closed"
                    );
                }
            }
            Err(error) if is_out_of_descriptors(&error) && spare.release() => {
                // Of a crowd that came and is gone nobody is left to be accepted.
                if let Ok(Ok(io)) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
                    number += 1;
                    port.begin(number, io, false);
                }
            }
            Err(error) => {
                if is_out_of_descriptors(&error) {
                    port.open.close_longest_idle();
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[derive(Clone)]
struct Port {
    routes: Router,
    bounds: Bounds,
    open: Arc<Open>,
}

impl Port {
    /// Whether one more may be open now.
    fn makes_room(&self) -> bool {
        self.open.0.lock().len() < self.bounds.connections || self.open.close_longest_idle()
    }

    /// `lasts`: whether it may stay for another request.
    fn begin<I>(&self, number: u64, io: I, lasts: bool)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let work = Arc::new(watch::Sender::new(Work { requests: 0, since: Instant::now() }));
        let closed = CancellationToken::new();
        let entry = Entry { work: Arc::clone(&work), closed: closed.clone() };
        self.open.0.lock().insert(number, entry);
        let port = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = port.converse(io, &work, lasts) => {}
                () = closed.cancelled() => {}
                () = given_up(work.subscribe(), port.bounds.request) => {}
            }
            port.open.0.lock().remove(&number);
        });
    }

    async fn converse<I>(&self, io: I, work: &Arc<watch::Sender<Work>>, lasts: bool)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request: Request<Incoming>| {
            let under_way = UnderWay::begin(work);
            let answer = self.routes.clone().oneshot(request.map(Body::new));
            async move { answer.await.map(|answer| answer.map(|body| Answer { body, _under_way: under_way })) }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().keep_alive(lasts);
        // That a caller went away, or spoke no HTTP, is nobody's concern here.
        drop(builder.serve_connection(TokioIo::new(io), service).await);
    }
}

/// The connections of a port.
#[derive(Default)]
struct Open(Mutex<BTreeMap<u64, Entry>>);

struct Entry {
    work: Arc<watch::Sender<Work>>,
    closed: CancellationToken,
}

impl Open {
    /// Whether there was one.
    fn close_longest_idle(&self) -> bool {
        let mut open = self.0.lock();
        let idle = open.iter().filter_map(|(number, entry)| {
            let work = *entry.work.borrow();
            (work.requests == 0).then_some((work.since, *number))
        });
        let longest = idle.min().and_then(|(_, number)| open.remove(&number));
        longest.map(|entry| entry.closed.cancel()).is_some()
    }
}

/// What a connection does.
#[derive(Clone, Copy)]
struct Work {
    /// How many are under way.
    requests: usize,
    /// Since the last one began or ended.
    since: Instant,
}

/// Ends when a connection has had no request for too long, or one for too long.
async fn given_up(mut work: watch::Receiver<Work>, request: Option<Duration>) {
    loop {
        let at_work = work.borrow_and_update().requests > 0;
        let patience = if at_work { request } else { Some(IDLE) };
        let over = async {
            match patience {
                Some(patience) => tokio::time::sleep(patience).await,
                None => pending().await,
            }
        };
        tokio::select! {
            Ok(()) = work.changed() => {}
            () = over => return,
        }
    }
}

/// A request from its head to the last byte of its answer.
struct UnderWay(Arc<watch::Sender<Work>>);

impl UnderWay {
    fn begin(work: &Arc<watch::Sender<Work>>) -> Self {
        work.send_modify(|work| *work = Work { requests: work.requests + 1, since: Instant::now() });
        Self(Arc::clone(work))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|work| *work = Work { requests: work.requests - 1, since: Instant::now() });
    }
}

/// An answer's body, which is under way for as long as there is more of it.
struct Answer {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
