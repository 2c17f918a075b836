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
use meshwork_base::{Clock, Tick};
use meshwork_identity::{Bundle, ClientAuth, Expected, Identity, Peer, Refusal, ServerOptions, Shown};
use meshwork_telemetry::Seldom;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
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
/// Handshakes at a time. One more takes the place of that which has been silent longest, where that is too long; else it waits
/// in the listener's queue.
const HANDSHAKES: usize = 256;
/// Who has been silent for so long has nothing to say: a hello follows its connection at once, and is read here when its
/// turn comes, also where many come together.
const SILENCE: Duration = Duration::from_millis(250);
/// Who has to make place is gone in this time, or had something to say after all.
const GOING: Duration = Duration::from_millis(10);
/// Refusals that are remembered.
const REMEMBERED: usize = 128;
/// How long a client without SVID may stay.
const JOINING: Duration = Duration::from_secs(30);
/// How many of those are here at a time, whom nobody has to know: enough for all that a mesh starts together, each of which is
/// gone in a moment. One more takes the place of the first, beside whoever has an SVID.
const JOINERS: usize = 512;
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
    /// By cause: strangers choose how many are refused.
    logged: BTreeMap<&'static str, Seldom>,
    next: u64,
    peers: BTreeMap<u64, (Peer, oneshot::Sender<Refusal>)>,
    /// Who came without an SVID in force, in the order in which they came.
    joiners: BTreeMap<u64, oneshot::Sender<Refusal>>,
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

    fn note(&self, refused: Refused, now: Tick) {
        let (from, refusal) = (refused.from, refused.refusal.clone());
        let cause = refusal.cause();
        let mut live = self.live.lock();
        if live.refused.len() == REMEMBERED {
            live.refused.pop_front();
        }
        live.refused.push_back(refused);
        let logged = live.logged.entry(cause).or_default().clone();
        drop(live);
        logged.happened(now, move |times| {
            tracing::warn!(%from, cause, %refusal, times, "connection refused; the control plane lists the last ones at GET /v1/identity/refused");
        });
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

    /// For a client without SVID in force. It must end soon: it came for one, which takes no time; or at once, where so many
    /// came since that there is no place.
    fn join(&self) -> End {
        let (end, ended) = oneshot::channel();
        let mut live = self.live.lock();
        live.next += 1;
        let id = live.next;
        live.joiners.insert(id, end);
        let first = if live.joiners.len() > JOINERS { live.joiners.pop_first() } else { None };
        drop(live);
        if let Some((_, end)) = first {
            let why = format!("{JOINERS} more came without an SVID");
            drop(end.send(Refusal::Handshake { why }));
        }
        let over = Box::pin(async {
            tokio::select! {
                Ok(refusal) = ended => refusal,
                () = tokio::time::sleep(JOINING) => Refusal::NoCertificate,
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

/// When a connection must end.
struct End {
    connections: Connections,
    id: u64,
    over: Pin<Box<dyn Future<Output = Refusal> + Send>>,
}

impl Drop for End {
    fn drop(&mut self) {
        let mut live = self.connections.live.lock();
        live.peers.remove(&self.id);
        live.joiners.remove(&self.id);
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
            Shown::Nothing | Shown::Lapsed(_) | Shown::Early(_) => connections.join(),
        });
        Self { stream, shown, end, refused: None }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(end) = &mut self.end
            && let Poll::Ready(refusal) = end.over.as_mut().poll(cx)
        {
            // Of those who came for an SVID strangers choose how many there are.
            match self.shown {
                Shown::InForce(_) => tracing::info!(%refusal, "connection closed"),
                _ => tracing::debug!(%refusal, "connection closed"),
            }
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
    // Whoever drops this future has ended that too: who is accepted and not served would wait.
    let mut accepting = JoinSet::new();
    accepting.spawn(accept(listener, endpoints.clone(), proven, HANDSHAKES));
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_ANSWER))
        .add_routes(endpoints.routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
            stop.await;
            drop(accepting);
        });
    server.await
}

type Accepted = Result<Proven<tokio_rustls::server::TlsStream<TcpStream>>, io::Error>;

async fn accept(
    listener: TcpListener,
    endpoints: Endpoints,
    proven: mpsc::Sender<Accepted>,
    handshakes: usize,
) {
    let Endpoints { identity, client_auth, connections, clock, .. } = endpoints;
    let is_open = client_auth == ClientAuth::Optional;
    let options =
        ServerOptions { alpn: vec![ALPN.to_vec()], client_auth, lapsed: is_open, send_roots: is_open };
    let acceptor = TlsAcceptor::from(identity.server_config(options));
    let (room, silent, failed) = (Arc::new(Semaphore::new(handshakes)), Silent::default(), Seldom::default());
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                failed.happened(clock.now(), move |times| {
                    tracing::warn!(%error, times, "a connection was not accepted");
                });
                // Mostly too many open files: without a pause this loop would spin until one is closed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let permit = silent.place(&room).await;
        let (identity, acceptor, proven) = (Arc::clone(&identity), acceptor.clone(), proven.clone());
        let (connections, clock) = (connections.clone(), Arc::clone(&clock));
        let (room, silent) = (Arc::clone(&room), silent.clone());
        tokio::spawn(async move {
            drop(tcp.set_nodelay(true));
            let done = async {
                let hello = silent.hear(meshwork_identity::hello(tcp)).await?;
                let crowded = room.available_permits() < handshakes / 2;
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
                Err(refusal) => connections.note(Refused { at: clock.wall(), from, refusal }, clock.now()),
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
    /// Since when, and what tells it to go.
    waiting: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
}

impl Silent {
    /// A place that is free, or becomes so: somebody has done its handshake, or has been silent for too long.
    async fn place(&self, room: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        let mut free = std::pin::pin!(Arc::clone(room).acquire_owned());
        loop {
            tokio::select! {
                biased;
                permit = &mut free => return permit.expect("the semaphore is never closed"),
                () = async { tokio::time::sleep(self.close_oldest()).await } => {}
            }
        }
    }

    /// Tells who has been silent longest to go, where that is too long; gives when to look again.
    fn close_oldest(&self) -> Duration {
        let mut silent = self.0.lock();
        let Some(oldest) = silent.waiting.first_entry() else { return SILENCE };
        let left = SILENCE.saturating_sub(oldest.get().0.elapsed());
        if left.is_zero() {
            drop(oldest.remove());
            return GOING;
        }
        left
    }

    /// What one says, if it does before it has to make place. It is silent only from when it is listened to.
    async fn hear<T>(&self, hello: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let (close, closed) = oneshot::channel();
        let id = {
            let mut silent = self.0.lock();
            silent.next += 1;
            let id = silent.next;
            silent.waiting.insert(id, (Instant::now(), close));
            id
        };
        let result = tokio::select! {
            // What has been said by now counts.
            biased;
            result = in_time(HANDSHAKE, hello) => result,
            _ = closed => {
                let why = "it had not begun when there was no more place".to_owned();
                Err(Refusal::Handshake { why })
            }
        };
        self.0.lock().waiting.remove(&id);
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use meshwork_base::{ManualClock, SpiffeId, SystemClock, TrustDomain};
    use meshwork_identity::{Authority, DEFAULT_SVID_TTL, PendingSvid};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A workload, which serves and calls itself.
    struct OneMesh {
        identity: Arc<Identity>,
        connections: Connections,
        clock: Arc<dyn Clock>,
        _folder: tempfile::TempDir,
    }

    impl OneMesh {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            let domain = TrustDomain::new("mesh.local").expect("a trust domain");
            let authority =
                Authority::open_or_create(folder.path(), &domain, Arc::clone(&clock)).expect("an authority");
            let pending = PendingSvid::generate().expect("a key");
            let id = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/web").expect("an ID");
            let issued = authority.issue(pending.csr(), &id, DEFAULT_SVID_TTL).expect("an SVID");
            let bundle = Bundle::new(domain, 1, vec![authority.root().clone()], []).expect("a bundle");
            let svid = pending.complete(issued.chain).expect("its key");
            let identity = Identity::new(svid, bundle, Arc::clone(&clock)).expect("an identity");
            Self { identity, connections: Connections::default(), clock, _folder: folder }
        }

        fn endpoints(&self) -> Endpoints {
            Endpoints {
                identity: Arc::clone(&self.identity),
                client_auth: ClientAuth::Required,
                routes: Routes::default(),
                connections: self.connections.clone(),
                clock: Arc::clone(&self.clock),
            }
        }
    }

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its number").to_string();
        (listener, address)
    }

    #[tokio::test]
    async fn all_who_come_together_and_speak_are_served_though_there_are_more_than_places() {
        const MANY: usize = 300;
        let mesh = OneMesh::new();
        let (listener, address) = listener().await;
        let (proven, mut incoming) = mpsc::channel(MANY);
        tokio::spawn(accept(listener, mesh.endpoints(), proven, 8));

        let identity = &mesh.identity;
        let tls = TlsConnector::from(identity.client_config(vec![ALPN.to_vec()], Expected::TrustDomain));
        let mut callers = JoinSet::new();
        for _ in 0..MANY {
            let (address, identity, tls) = (address.clone(), Arc::clone(identity), tls.clone());
            callers.spawn(async move { connect(&address, &identity, &tls).await });
        }
        let mut served = Vec::new();
        while served.len() < MANY {
            let next = tokio::time::timeout(Duration::from_secs(30), incoming.recv()).await;
            served.push(next.unwrap_or_else(|_| panic!("{} served", served.len())));
        }
        assert_eq!(mesh.connections.refused().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_something_to_say_when_it_is_to_go_stays_and_the_next_one_goes() {
        let (silent, room) = (Silent::default(), Arc::new(Semaphore::new(2)));
        let enter = |says: bool, permit| {
            let silent = silent.clone();
            tokio::spawn(async move {
                let mut looked = false;
                // It is there by the second look, and nothing has told of it.
                let hello = std::future::poll_fn(|_| {
                    let is_there = std::mem::replace(&mut looked, true) && says;
                    if is_there { Poll::Ready(Ok(())) } else { Poll::Pending }
                });
                (silent.hear(hello).await, says.then_some(permit))
            })
        };
        let speaks = enter(true, silent.place(&room).await);
        let is_silent = enter(false, silent.place(&room).await);
        let began = Instant::now();
        let third = silent.place(&room).await;
        assert!(
            began.elapsed() >= SILENCE && began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(
            is_silent.await.expect("it ends").0.map_err(|refusal| refusal.cause()),
            Err("tls_handshake_failed")
        );
        assert_eq!(speaks.await.expect("it ends").0, Ok(()));
        drop(third);
    }

    async fn is_open<S: AsyncRead + Unpin>(connection: &mut Proven<S>) -> bool {
        tokio::time::timeout(Duration::ZERO, connection.read_u8()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_who_come_without_an_svid_only_so_many_stay_and_they_take_the_place_of_no_other() {
        let mesh = OneMesh::new();
        let shown = |shown| {
            let (near, far) = tokio::io::duplex(1);
            (Proven::new(near, shown, &mesh.connections, &mesh.clock), far)
        };
        let mut peer = shown(Shown::InForce(mesh.identity.svid().as_peer().clone()));
        let mut joiners: VecDeque<_> = (0..JOINERS).map(|_| shown(Shown::Nothing)).collect();
        assert!(is_open(&mut joiners[0].0).await, "there is a place for each");
        joiners.push_back(shown(Shown::Nothing));
        let mut first = joiners.pop_front().expect("it was the first");
        assert!(!is_open(&mut first.0).await);
        // Who has what he came for makes room, also where it is not yet the turn of him.
        drop((first, joiners.pop_back()));
        joiners.push_back(shown(Shown::Nothing));
        for (joiner, _) in &mut joiners {
            assert!(is_open(joiner).await);
        }
        tokio::time::sleep(JOINING).await;
        assert!(!is_open(&mut joiners[0].0).await, "whoever comes for that needs no longer");
        assert!(is_open(&mut peer.0).await && mesh.connections.count() == 1);
    }

    /// Counts what is logged.
    struct Lines(Arc<AtomicUsize>);

    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let is_ours = event.metadata().target().ends_with("mtls");
            self.0.fetch_add(usize::from(is_ours), Ordering::SeqCst);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_logged_now_and_then_and_the_last_ones_are_kept() {
        let lines = Arc::new(AtomicUsize::new(0));
        let _subscriber = tracing::subscriber::set_default(Lines(Arc::clone(&lines)));
        let (connections, clock) = (Connections::default(), ManualClock::new());
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        let note = |at, refusal| {
            connections.note(Refused { at: Duration::from_secs(at), from, refusal }, clock.now());
        };
        (0..1000).for_each(|at| note(at, Refusal::NoCertificate));
        assert_eq!(lines.load(Ordering::SeqCst), 1, "what is left is told of later");
        note(1000, Refusal::Handshake { why: "it is none".to_owned() });
        assert_eq!(lines.load(Ordering::SeqCst), 2, "another cause has its own line");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(lines.load(Ordering::SeqCst), 3, "and the others one more");
        let kept = connections.refused();
        assert_eq!((kept.len(), kept[0].at), (REMEMBERED, Duration::from_secs(1001 - 128)));
    }

    #[tokio::test]
    async fn who_does_not_serve_any_more_accepts_nobody() {
        let mesh = OneMesh::new();
        let (listener, address) = listener().await;
        let served = tokio::spawn(serve(listener, mesh.endpoints(), std::future::pending()));
        TcpStream::connect(&address).await.expect("it is served");
        served.abort();
        let refused = async {
            while TcpStream::connect(&address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), refused).await.expect("its port is free");
    }

    /// Whoever says hello and then nothing has less time where many do.
    #[tokio::test]
    async fn where_half_of_the_places_are_taken_handshakes_have_less_time() {
        let mesh = OneMesh::new();
        let (listener, address) = listener().await;
        let (proven, _incoming) = mpsc::channel(1);
        tokio::spawn(accept(listener, mesh.endpoints(), proven, 4));
        let config = mesh.identity.client_config(vec![ALPN.to_vec()], Expected::TrustDomain);
        let name = ServerName::try_from("control-plane.mesh").expect("it is a DNS name");
        let mut stalled = Vec::new();
        for _ in 0..3 {
            let mut session = tokio_rustls::rustls::ClientConnection::new(Arc::clone(&config), name.clone())
                .expect("a client");
            let mut hello = Vec::new();
            session.write_tls(&mut hello).expect("memory is there");
            let mut tcp = TcpStream::connect(&address).await.expect("a connection");
            tcp.write_all(&hello).await.expect("it is taken");
            stalled.push(tcp);
        }
        let first = async {
            loop {
                if let Some(first) = mesh.connections.refused().into_iter().next() {
                    return first.refusal.to_string();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let why = tokio::time::timeout(Duration::from_secs(30), first).await.expect("it is not waited for");
        assert!(why.contains("it took over 2 s"), "{why}");
    }

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
