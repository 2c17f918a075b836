//! How HTTP is served at the ports for operators, probes and the roles' local callers.
//!
//! Who may reach such a port must not be able to take this process's descriptors from its traffic, nor its memory, nor to
//! keep others out. So a port has a bound on connections, all ports together a quarter of the descriptors, and each
//! connection a bound on what is under way in it: one request at the ports for probes, which speak HTTP/1 alone, and
//! 32 at an API. Where there is no room, that which has been idle longest goes. Where none is idle, at a port for
//! probes that with the oldest request goes, so that whoever probes is heard; at an API the new one goes, since what is
//! under way there is waited for. One without a request for [`IDLE`], or with a half head, is closed, and a body that is
//! waited for as long, a second more for each 16 KiB of it, is an error to who reads it, after which it is too. A request
//! that is whole takes as long as it takes (a watch, a long poll, a tap); at the ports for probes, where none is long, [`PROBE`].
//! Its answer is under way until its last byte has gone, and is given up where its reader takes none of it for [`IDLE`], which the
//! system says of some hundreds of KiB at a time.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::body::{Answer, Asked};
use self::held::Held;
use self::open::{Open, UnderWay, Work, given_up};
use crate::descriptors::{Spare, is_out_of_descriptors};

mod body;
mod held;
mod open;

/// How long a connection may be without a whole request: what traffic ports have as `--idle-timeout`.
pub const IDLE: Duration = Duration::from_secs(75);
/// How long a request may take at a port for probes.
pub const PROBE: Duration = Duration::from_secs(30);
/// Bytes of a request's body for which a second more is waited.
const PACE: u32 = 16 << 10;
/// Bytes of answers that lie in the system; it takes the next ones when a good part of these is read, and how large that is would be its
/// own choice: over loopback one and a half MiB, of which nobody hears whether they are read.
const LIES: usize = 128 << 10;
/// How many requests may be under way in one connection of HTTP/2 to an API. What calls ours there speaks HTTP/1.
const STREAMS: u32 = 32;
/// Until descriptors are looked for again.
const PAUSE: Duration = Duration::from_millis(20);
/// How often a full port is told of at most.
const TELL: Duration = Duration::from_mins(1);

/// What a port may hold.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Connections at a time.
    connections: usize,
    /// How long a request may take, where none is meant to be long.
    request: Option<Duration>,
    /// Those of the ports that share a bound.
    among: Arc<Open>,
}

/// The APIs of this process: some have one, some four.
static APIS: LazyLock<Arc<Open>> = LazyLock::new(|| Open::new(shares(open_files()).apis));

impl Bounds {
    /// Of a port that answers probes and scrapers, for whoever reaches it.
    #[must_use]
    pub fn probes() -> Self {
        let connections = shares(open_files()).probes.min(64);
        Self { connections, request: Some(PROBE), among: Open::new(connections) }
    }

    /// Of an API, some of whose requests wait for something to happen. One alone leaves half of what is the APIs' to the
    /// others.
    #[must_use]
    pub fn api() -> Self {
        let connections = shares(open_files()).apis.div_ceil(2).min(1024);
        Self { connections, request: None, among: Arc::clone(&APIS) }
    }
}

/// How many files may be open.
fn open_files() -> usize {
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(usize::MAX)
}

/// Connections for which there are descriptors.
struct Shares {
    /// At a port for probes, of which a process has two.
    probes: usize,
    /// At all APIs together.
    apis: usize,
}

/// A quarter of the descriptors that there may be, for all of these ports.
fn shares(limit: usize) -> Shares {
    Shares { probes: (limit / 32).max(1), apis: (limit / 16 * 3).max(1) }
}

/// Where connections come from.
pub trait Accept: Send + 'static {
    /// One of them.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next one.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Io>> + Send;
    /// Whether somebody waits to be accepted. Without a descriptor accepting fails also where nobody does.
    fn is_called(&self) -> bool;
    /// What is left of one of them that has ended.
    fn descriptor(io: Self::Io) -> Option<OwnedFd>;
}

impl Accept for TcpListener {
    type Io = TcpStream;
    async fn accept(&mut self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        if let Err(error) = set_socket_send_buffer_size(&stream, LIES) {
            tracing::debug!(%error, "a connection whose reader may be heard late");
        }
        Ok(stream)
    }
    fn is_called(&self) -> bool {
        is_readable(self)
    }
    fn descriptor(io: TcpStream) -> Option<OwnedFd> {
        io.into_std().ok().map(OwnedFd::from)
    }
}

impl Accept for UnixListener {
    type Io = UnixStream;
    async fn accept(&mut self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
    fn is_called(&self) -> bool {
        is_readable(self)
    }
    fn descriptor(io: UnixStream) -> Option<OwnedFd> {
        io.into_std().ok().map(OwnedFd::from)
    }
}

fn is_readable(listener: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

/// Serves these routes for as long as it is polled; connections that are open then live on with the runtime.
pub async fn serve<L: Accept>(mut listener: L, routes: Router, bounds: Bounds) {
    let port = Port { number: bounds.among.number(), routes, bounds, spare: Arc::default() };
    let mut told = None;
    loop {
        let accepted = match listener.accept().await {
            Err(error) if is_out_of_descriptors(&error) => port.accept_by_spare(&mut listener).await,
            accepted => accepted.map(Some),
        };
        let io = match accepted {
            Ok(Some(io)) => Held::<L>::new(io, &port.spare),
            Ok(None) => continue,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if port.makes_room() {
            // Who has the last descriptor gets his answer, and the next one needs it.
            let lasts = port.spare.lock().keep();
            port.begin(io, lasts);
        } else if told.is_none_or(|at: Instant| at.elapsed() >= TELL) {
            // All have a request under way, and each may wait for something.
            told = Some(Instant::now());
            let connections = port.bounds.connections;
            tracing::warn!(
                connections,
                "a port for operators is full of requests that are under way: closed"
            );
        }
    }
}

#[derive(Clone)]
struct Port {
    number: u64,
    routes: Router,
    bounds: Bounds,
    spare: Arc<Mutex<Spare>>,
}

impl Port {
    /// Accepts one with the descriptor that was laid aside; none where nobody is left of a crowd that came. Where there
    /// is none any more, a connection that nobody needs gives its own for the next time.
    async fn accept_by_spare<L: Accept>(&self, listener: &mut L) -> io::Result<Option<L::Io>> {
        let none = Err(Errno::MFILE.into());
        if !listener.is_called() {
            return none;
        }
        // Others may have been quicker the last time; it does not stay without one for that.
        if !self.spare.lock().keep() {
            self.bounds.among.close_idle(Some(self.number));
            return none;
        }
        self.spare.lock().release();
        let accepted = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
        if !matches!(accepted, Ok(Ok(_))) {
            self.spare.lock().keep();
        }
        accepted.map_or(Ok(None), |accepted| accepted.map(Some))
    }

    /// Whether one more may be open now.
    fn makes_room(&self) -> bool {
        let Bounds { connections, request, among } = &self.bounds;
        among.makes_room(self.number, *connections, request.is_some())
    }

    /// `lasts`: whether it may stay for another request.
    fn begin<L: Accept>(&self, io: Held<L>, lasts: bool) {
        let (work, closed) = (Arc::clone(io.work()), CancellationToken::new());
        let number = self.bounds.among.insert(self.number, Arc::clone(&work), closed.clone());
        let port = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = port.converse(io, &work, lasts) => {}
                () = closed.cancelled() => {}
                () = given_up(work.subscribe(), port.bounds.request) => {}
            }
            port.bounds.among.remove(number);
        });
    }

    async fn converse<L: Accept>(&self, io: Held<L>, work: &Arc<watch::Sender<Work>>, lasts: bool) {
        let service = service_fn(|request: Request<Incoming>| {
            let under_way = UnderWay::begin(work);
            let answer = self.routes.clone().oneshot(request.map(|body| Body::new(Asked::new(body))));
            async move { answer.await.map(|answer| answer.map(|body| Answer::new(body, under_way))) }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        if self.bounds.request.is_some() {
            // What probes and scrapes needs no more, and each request of HTTP/2 would hold an answer.
            builder = builder.http1_only();
        }
        builder.http2().max_concurrent_streams(STREAMS);
        builder.http1().keep_alive(lasts);
        // That a caller went away, or spoke no HTTP, is nobody's concern here.
        drop(builder.serve_connection(TokioIo::new(io), service).await);
    }
}

#[cfg(test)]
mod tests;
