//! Connections between proxies and the control plane: TLS 1.3, both sides proven by SVIDs, gRPC and HTTP on top.
//!
//! A connection lives no longer than the SVID of its peer, and ends when that is revoked: see [`Connections::review`].

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use meshwork_base::Clock;
use meshwork_identity::{Bundle, ClientAuth, Expected, Identity, Peer, Refusal, ServerOptions, Shown};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Endpoint, Server};

use super::grpc::Identify;
use super::{Connector, StreamError, grpc};

const ALPN: &[u8] = b"h2";
/// A peer that does not finish its handshake in this time is not waited for.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The same where half of what is below is taken.
const HURRIED: Duration = Duration::from_secs(2);
/// Handshakes at a time. One more takes the place of that which has been silent longest; where all have begun, it waits
/// in the listener's queue.
const HANDSHAKES: usize = 256;
/// Refusals that are remembered.
const REMEMBERED: usize = 128;
/// How long a client without SVID may stay.
const JOINING: Duration = Duration::from_secs(30);
/// A wall clock may be set on, and a machine may have slept: the end of an SVID is looked for as often.
const LOOK: Duration = Duration::from_mins(1);
/// How often an idle connection is asked whether it lives, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(5);

/// The connections that are open, so that those of a revoked identity can be closed. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    live: Arc<Mutex<Live>>,
}

/// A connection that was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// When, since the Unix epoch.
    pub at: Duration,
    /// From where it came.
    pub from: SocketAddr,
    /// Why.
    pub refusal: Refusal,
}

#[derive(Debug, Default)]
struct Live {
    refused: VecDeque<Refused>,
    next: u64,
    peers: BTreeMap<u64, (Peer, oneshot::Sender<Refusal>)>,
}

impl Connections {
    /// Closes the connections of peers that this bundle denies; gives how many.
    pub fn review(&self, bundle: &Bundle) -> usize {
        let mut live = self.live.lock();
        let denied = live.peers.extract_if(.., |_, (peer, _)| bundle.check_denied(peer).is_err());
        let closed = denied.filter_map(|(_, (peer, end))| end.send(Refusal::Revoked { id: peer.id }).ok());
        closed.count()
    }

    /// The connections that were refused last, oldest first: what a client learns of it is no more than an alert.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        self.live.lock().refused.iter().cloned().collect()
    }

    fn note(&self, refused: Refused) {
        let Refused { from, refusal, .. } = &refused;
        tracing::warn!(%from, cause = refusal.cause(), %refusal, "connection refused");
        let list = &mut self.live.lock().refused;
        if list.len() == REMEMBERED {
            list.pop_front();
        }
        list.push_back(refused);
    }

    /// Closes all, because this process ends: clients then look for another one.
    pub fn close_all(&self) {
        let peers = std::mem::take(&mut self.live.lock().peers);
        for (peer, end) in peers.into_values() {
            let why = format!("this process ends; {} may connect again", peer.id);
            drop(end.send(Refusal::Handshake { why }));
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live.lock().peers.len()
    }

    fn open(&self, peer: Peer, clock: &Arc<dyn Clock>) -> End {
        let (end, ended) = oneshot::channel();
        let over = until_over(peer.not_after, Arc::clone(clock));
        let expired = Refusal::SvidExpired { id: peer.id.clone(), not_after: peer.not_after };
        let mut live = self.live.lock();
        live.next += 1;
        let id = live.next;
        live.peers.insert(id, (peer, end));
        let over = Box::pin(async move {
            tokio::select! {
                Ok(refusal) = ended => refusal,
                () = over => expired,
            }
        });
        End { connections: self.clone(), id, over }
    }
}

/// Returns when the wall clock says that an SVID is over.
async fn until_over(not_after: Duration, clock: Arc<dyn Clock>) {
    loop {
        let left = not_after.saturating_sub(clock.wall());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

/// When a connection of a client without SVID in force must end: it came for one, which takes no time.
fn end_of_joining(connections: &Connections) -> End {
    let over = Box::pin(async {
        tokio::time::sleep(JOINING).await;
        Refusal::NoCertificate
    });
    End { connections: connections.clone(), id: 0, over }
}

/// When a connection must end.
struct End {
    connections: Connections,
    id: u64,
    over: Pin<Box<dyn Future<Output = Refusal> + Send>>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.connections.live.lock().peers.remove(&self.id);
    }
}

/// A stream with its peer, which fails when the peer's right to it ends.
struct Proven<S> {
    stream: S,
    shown: Shown,
    end: Option<End>,
    refused: Option<Refusal>,
}

impl<S> Proven<S> {
    fn new(stream: S, shown: Shown, connections: &Connections, clock: &Arc<dyn Clock>) -> Self {
        let end = Some(match &shown {
            Shown::InForce(peer) => connections.open(peer.clone(), clock),
            Shown::Nothing | Shown::Lapsed(_) | Shown::Early(_) => end_of_joining(connections),
        });
        Self { stream, shown, end, refused: None }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(end) = &mut self.end
            && let Poll::Ready(refusal) = end.over.as_mut().poll(cx)
        {
            tracing::info!(%refusal, "connection closed");
            self.refused = Some(refusal);
            self.end = None;
        }
        match &self.refused {
            Some(refusal) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, refusal.to_string())),
            None => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Proven<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Proven<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Who is at the other end, in the extensions of every request of a connection; nobody, for all purposes but one, is a
/// client that came without an SVID to join, or with one that is not in force to have it renewed.
#[derive(Clone, Debug)]
pub struct Caller(pub Shown);

impl<S> Connected for Proven<S> {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        Caller(self.shown.clone())
    }
}

/// For [`super::grpc::DiscoveryService`]: the SPIFFE ID of the connection; without one there is no stream.
#[must_use]
pub fn identify() -> Identify {
    Arc::new(|extensions| match extensions.get::<Caller>() {
        Some(Caller(Shown::InForce(peer))) => Ok(Some(peer.id.clone())),
        Some(Caller(shown)) => {
            let refusal = shown.clone().in_force().err().unwrap_or(Refusal::NoCertificate);
            Err(Status::unauthenticated(refusal.to_string()))
        }
        None => Err(Status::unauthenticated(Refusal::NoCertificate.to_string())),
    })
}

/// What serves on the control plane's port.
#[derive(Clone)]
pub struct Endpoints {
    /// Our SVID and whom we trust.
    pub identity: Arc<Identity>,
    /// Whether a client may come without an SVID to join with a token, or with one that is not in force to have it renewed.
    pub client_auth: ClientAuth,
    /// What is served there: gRPC services, and an `axum` router beside them ([`Routes`] is made from both).
    pub routes: Routes,
    /// The connections that are open.
    pub connections: Connections,
    /// For the ends of SVIDs.
    pub clock: Arc<dyn Clock>,
}

/// Serves until `stop`, then lets requests under way finish.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    endpoints: Endpoints,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (proven, incoming) = mpsc::channel(HANDSHAKES);
    let accepting = tokio::spawn(accept(listener, endpoints.clone(), proven));
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_ANSWER))
        .add_routes(endpoints.routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async {
            stop.await;
            accepting.abort();
        });
    server.await
}

type Accepted = Result<Proven<tokio_rustls::server::TlsStream<TcpStream>>, io::Error>;

async fn accept(listener: TcpListener, endpoints: Endpoints, proven: mpsc::Sender<Accepted>) {
    let Endpoints { identity, client_auth, connections, clock, .. } = endpoints;
    let is_open = client_auth == ClientAuth::Optional;
    let options =
        ServerOptions { alpn: vec![ALPN.to_vec()], client_auth, lapsed: is_open, send_roots: is_open };
    let acceptor = TlsAcceptor::from(identity.server_config(options));
    let (room, silent) = (Arc::new(Semaphore::new(HANDSHAKES)), Silent::default());
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                // Mostly too many open files: without a pause this loop would spin until one is closed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if room.available_permits() == 0 {
            silent.close_oldest();
        }
        let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
        let (identity, acceptor, proven) = (Arc::clone(&identity), acceptor.clone(), proven.clone());
        let (connections, clock) = (connections.clone(), Arc::clone(&clock));
        let (room, heard) = (Arc::clone(&room), silent.begin());
        tokio::spawn(async move {
            drop(tcp.set_nodelay(true));
            let done = async {
                let hello = heard.within(meshwork_identity::hello(tcp)).await?;
                let crowded = room.available_permits() < HANDSHAKES / 2;
                let answer = meshwork_identity::answer(&identity, &acceptor, hello);
                in_time(if crowded { HURRIED } else { HANDSHAKE }, answer).await
            };
            match done.await {
                Ok((stream, shown)) => {
                    let admitted = Proven::new(stream, shown, &connections, &clock);
                    // For a deny entry that came between the handshake's look at the bundle and this line.
                    connections.review(&identity.bundle());
                    drop(proven.send(Ok(admitted)).await);
                }
                Err(refusal) => connections.note(Refused { at: clock.wall(), from, refusal }),
            }
            drop(permit);
        });
    }
}

async fn in_time<T>(limit: Duration, step: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let late = || Refusal::Handshake { why: format!("it took over {} s", limit.as_secs()) };
    tokio::time::timeout(limit, step).await.unwrap_or_else(|_| Err(late()))
}

/// The connections whose peers have not said enough to be answered, by age: who has nothing to say, and needs no
/// certificate for that, does not keep others out.
#[derive(Clone, Default)]
struct Silent(Arc<Mutex<SilentOnes>>);

#[derive(Default)]
struct SilentOnes {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Silent {
    fn begin(&self) -> Heard {
        let (close, closed) = oneshot::channel();
        let mut silent = self.0.lock();
        silent.next += 1;
        let id = silent.next;
        silent.waiting.insert(id, close);
        Heard { silent: self.clone(), id, closed }
    }

    fn close_oldest(&self) {
        self.0.lock().waiting.pop_first();
    }
}

/// One of them.
struct Heard {
    silent: Silent,
    id: u64,
    closed: oneshot::Receiver<()>,
}

impl Heard {
    /// What it says, if it does before it has to make place.
    async fn within<T>(mut self, hello: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let result = tokio::select! {
            result = in_time(HANDSHAKE, hello) => result,
            _ = &mut self.closed => {
                let why = "it had not begun when there was no more place".to_owned();
                Err(Refusal::Handshake { why })
            }
        };
        self.silent.0.lock().waiting.remove(&self.id);
        result
    }
}

/// Opens streams to the control plane at `HOST:PORT`, each over a connection of its own.
#[must_use]
pub fn connector(
    target: String,
    identity: Arc<Identity>,
    expected: Expected,
    clock: Arc<dyn Clock>,
) -> Connector {
    let tls = TlsConnector::from(identity.client_config(vec![ALPN.to_vec()], expected));
    let connections = Connections::default();
    Box::new(move || {
        let (target, identity, tls) = (target.clone(), Arc::clone(&identity), tls.clone());
        let (connections, clock) = (connections.clone(), Arc::clone(&clock));
        Box::pin(async move {
            let unreachable = |why: String| StreamError::Unreachable { target: target.clone(), why };
            let opened = tokio::time::timeout(HANDSHAKE, connect(&target, &identity, &tls));
            let (stream, peer) =
                opened.await.map_err(|_| unreachable("no answer within 10 s".to_owned()))??;
            let proven = Proven::new(stream, Shown::InForce(peer), &connections, &clock);
            let mut once = Some(TokioIo::new(proven));
            let again = || io::Error::from(io::ErrorKind::NotConnected);
            let dial = tower::service_fn(move |_| std::future::ready(once.take().ok_or_else(again)));
            let channel = Endpoint::from_static("http://control-plane.mesh")
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_ANSWER)
                .keep_alive_while_idle(true)
                .connect_with_connector(dial)
                .await
                .map_err(|error| unreachable(grpc::whole(&error)))?;
            grpc::open(channel, &target).await
        })
    })
}

async fn connect(
    target: &str,
    identity: &Identity,
    tls: &TlsConnector,
) -> Result<(tokio_rustls::client::TlsStream<TcpStream>, Peer), StreamError> {
    let unreachable = |error: io::Error| {
        let why = error.to_string();
        StreamError::Unreachable { target: target.to_owned(), why }
    };
    let tcp = TcpStream::connect(target).await.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    // Peers are told apart by their SPIFFE IDs; the name only has to be one.
    let name = ServerName::try_from("control-plane.mesh").expect("it is a DNS name");
    let connected = meshwork_identity::connect(identity, tls, name, tcp).await;
    connected.map_err(|refusal| StreamError::Refused(refusal.to_string()))
}

#[cfg(test)]
mod tests {
    use meshwork_base::ManualClock;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_svid_that_ends_as_the_clock_is_set_on_ends_its_connection_within_a_minute() {
        let clock = ManualClock::new();
        let (began, hour) = (Instant::now(), Duration::from_hours(1));
        let over = tokio::spawn(until_over(hour, Arc::new(clock.clone())));
        tokio::task::yield_now().await;
        clock.advance(hour);
        over.await.expect("it ends");
        assert!(began.elapsed() <= LOOK);
    }
}
