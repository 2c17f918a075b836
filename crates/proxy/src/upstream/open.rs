//! From "where to" to an open exchange: a kept connection if there is one, else a new one within the service's limits.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use meshwork_base::{SpiffeId, Tick};
use meshwork_decision::{
    Cause, Cluster, ClusterKey, ConnectionLimit, ConnectionPermit, Endpoint, PendingPermit, Transport,
    tunnel_authority,
};
use meshwork_http1::ResponseHead;

use super::behind::Behind;
use super::connect::{connect, connect_announced};
use super::h1::H1Client;
use super::h2::{H2Connection, H2Exchange};
use super::pool::{EndpointPool, Opened};
use super::shared::{self, Dials};
use super::turn::{Turn, admitted};
use super::{Head, mesh};
use crate::engine::Shared;
use crate::error::{Failure, Retry};
use crate::http::tunnel::Tunnel;
use crate::io::Io;
use crate::replay::Replayed;
use crate::timers::timeout;
use crate::worker::Worker;

/// Where an attempt goes.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    /// Whose pool: [`meshwork_decision::Endpoint::id`], or [`app_id`].
    pub(crate) pool: u64,
    pub(crate) address: SocketAddr,
    pub(crate) speaks: Speaks<'a>,
    /// Whose limits count; none for the application beside us.
    pub(crate) service: Option<(&'a Cluster, &'a Endpoint)>,
    pub(crate) connect_timeout: Duration,
    /// A kept HTTP/1 connection was stale: only a new one will do.
    pub(crate) fresh: bool,
    /// What an HTTP/1 connection begins with, which then is for one request.
    pub(crate) announcement: Option<&'a [u8]>,
}

/// What is spoken there.
#[derive(Clone, Copy)]
pub(crate) enum Speaks<'a> {
    Http1,
    Http2,
    /// HTTP/2 over mutual TLS, with a peer that must prove to be `id`.
    Mesh {
        key: &'a ClusterKey,
        id: &'a SpiffeId,
    },
}

const APP: u64 = 1 << 63;

/// The pool of a port of the application beside us. Endpoints' ids count from one and never come here.
pub(crate) const fn app_id(port: u16, http2: bool) -> u64 {
    APP | (http2 as u64) << 16 | port as u64
}

/// Whether a pool is one of the application beside us.
pub(crate) const fn is_app(pool: u64) -> bool {
    pool & APP != 0
}

const TUNNELS: u64 = 1 << 62;

/// The pool of the connections to an endpoint that carry tunnels: they go to another port than requests.
pub(crate) const fn tunnels_id(endpoint: u64) -> u64 {
    TUNNELS | endpoint
}

/// The endpoint whose pool it is.
pub(crate) const fn endpoint_of(pool: u64) -> u64 {
    pool & !TUNNELS
}

impl<'a> Destination<'a> {
    /// An endpoint of a service.
    pub(crate) fn of_endpoint(
        cluster: &'a Cluster,
        endpoint: &'a Endpoint,
        connect_timeout: Duration,
        announcement: Option<&'a [u8]>,
    ) -> Self {
        Self {
            pool: endpoint.id,
            address: endpoint.http_address(),
            speaks: match &endpoint.transport {
                Transport::Mesh { spiffe_id, .. } => Speaks::Mesh { key: &cluster.key, id: spiffe_id },
                Transport::Plaintext if cluster.protocol.is_http2() => Speaks::Http2,
                Transport::Plaintext => Speaks::Http1,
            },
            service: Some((cluster, endpoint)),
            connect_timeout,
            fresh: false,
            announcement,
        }
    }
}

impl Destination<'_> {
    fn admit_pending(&self) -> Result<Option<PendingPermit>, Cause> {
        self.service.map(|(cluster, endpoint)| cluster.admit_pending(endpoint)).transpose()
    }

    pub(super) fn admit_connection(&self) -> Result<Option<ConnectionPermit>, ConnectionLimit> {
        self.service.map(|(cluster, endpoint)| cluster.admit_connection(endpoint)).transpose()
    }

    pub(super) fn count_waiting(&self) {
        if let Some((cluster, _)) = self.service {
            cluster.connection_awaited();
        }
    }

    pub(super) fn over_limit(&self, cause: Cause) -> Failure {
        let service = self.service.map_or("", |(cluster, _)| &*cluster.key.service);
        Failure::local(cause).because(service)
    }
}

/// A new HTTP/1.1 connection, or one that became free while a limit kept us waiting.
///
/// # Errors
/// A limit, or the connection could not be made.
pub(crate) async fn h1(
    worker: &Worker,
    to: &Destination<'_>,
    pool: &Rc<EndpointPool>,
    behind: Behind<'_>,
) -> Result<Box<H1Client>, Failure> {
    let _pending = to.admit_pending().map_err(|cause| to.over_limit(cause))?;
    let (permit, _making) = match admitted(worker, to, pool, behind).await? {
        Turn::Connect(permit, making) => (permit, making),
        Turn::Reuse(client) => return Ok(client),
    };
    let asked = worker.now();
    let tcp = connect_announced(to.address, to.connect_timeout, to.announcement).await?;
    let opened = Opened::new(pool, permit, worker.connected(), (asked, worker.now()));
    let client = H1Client::new(Io::Tcp(tcp), opened);
    Ok(Box::new(if to.announcement.is_some() { client.for_one() } else { client }))
}

/// A stream on a shared HTTP/2 connection. A connection that its peer is closing takes none; nothing was sent then, and
/// another connection is found. Where a limit allows no further connection, the stream waits for its turn.
///
/// # Errors
/// A limit, or no connection could be made that takes the request.
pub(crate) async fn h2(
    worker: &Worker,
    to: &Destination<'_>,
    pool: &Rc<EndpointPool>,
    head: &Head<'_>,
    end: bool,
    behind: Behind<'_>,
) -> Result<H2Exchange, Failure> {
    if to.announcement.is_some() && matches!(to.speaks, Speaks::Http2) {
        let why = "a PROXY header cannot be sent to a service that speaks HTTP/2";
        return Err(Failure::local(Cause::Internal).because(why));
    }
    let clock = &*worker.shared.clock;
    let dialer = Dialer { worker, to, pool, has_waited: Cell::new(false) };
    loop {
        // Whoever comes while others wait for room is not before them.
        let found = if pool.streams().is_empty() { pool.with_room(clock.wall()) } else { None };
        let connection = match found {
            Some(connection) => connection,
            None => {
                // Whoever waits for another one's connection waits as well as who makes it.
                let _pending = to.admit_pending().map_err(|cause| to.over_limit(cause))?;
                shared::connection(pool, clock, behind, &dialer).await?
            }
        };
        let reused = connection.is_reused();
        match connection.send(head, end, clock, to.connect_timeout).await {
            // It is closed and not found again, so this ends.
            Err(failure) if reused && connection.is_closed() && failure.cause == Cause::UpstreamReset => {}
            other => return other,
        }
    }
}

/// A tunnel through the proxy beside an endpoint to the port of its application.
///
/// # Errors
/// No connection could be made, or the proxy opens no tunnel. Nothing of the caller was sent.
pub(crate) async fn tunnel(
    worker: &Worker,
    to: &Destination<'_>,
    key: &ClusterKey,
) -> Result<Tunnel, Failure> {
    let clock = &*worker.shared.clock;
    let pool = worker.pools.of(to.pool);
    let authority = http::uri::Authority::try_from(tunnel_authority(key))
        .map_err(|error| Failure::local(Cause::Internal).because(error.to_string()))?;
    let mut exchange = loop {
        let dialer = Dialer { worker, to, pool: &pool, has_waited: Cell::new(false) };
        let connection = pool.share(clock.wall(), Behind::default(), || dialer.dial(None)).await?;
        let reused = connection.is_reused();
        match connection.connect(authority.clone(), clock).await {
            // It is closed and not found again, so this ends.
            Err(failure) if reused && connection.is_closed() && failure.cause == Cause::UpstreamReset => {}
            other => break other?,
        }
    };
    let mut head = ResponseHead::new();
    let failed = |cause, why: String| Failure::upstream(cause, Retry::NothingSent).because(why);
    let limits = worker.shared.settings.limits;
    loop {
        let read = poll_fn(|cx| exchange.poll_head(cx, &limits, &mut head));
        let answered = timeout(to.connect_timeout, read).await;
        match answered {
            Err(_) => {
                exchange.ran_out(worker.now());
                return Err(failed(Cause::ConnectTimeout, format!("{}: no tunnel in time", to.address)));
            }
            Ok(Err(error)) => return Err(failed(Cause::ConnectFailure, format!("{}: {error}", to.address))),
            Ok(Ok(())) if head.is_informational() => {}
            Ok(Ok(())) => break,
        }
    }
    match head.status {
        200 => Ok(exchange.into_tunnel()),
        // No other endpoint will think otherwise.
        403 => {
            Err(Failure::local(Cause::AuthorizationDenied).because(format!("by the proxy at {}", to.address)))
        }
        // Nor is that the endpoint's fault: it serves requests.
        400 => Err(Failure::downstream(Cause::DownstreamProtocolError)
            .because(format!("the proxy at {} takes no tunnel to this port", to.address))),
        status => {
            Err(failed(Cause::ConnectFailure, format!("the proxy at {} answered {status}", to.address)))
        }
    }
}

/// Makes shared connections.
struct Dialer<'a> {
    worker: &'a Worker,
    to: &'a Destination<'a>,
    pool: &'a Rc<EndpointPool>,
    /// A limit has made its request wait, and is told so once.
    has_waited: Cell<bool>,
}

impl Dialer<'_> {
    fn permit(&self) -> Result<Option<ConnectionPermit>, Failure> {
        match self.to.admit_connection() {
            Err(_) if self.pool.open() == 0 => Ok(None),
            admitted => admitted.map_err(|_| self.to.over_limit(Cause::MaxConnections)),
        }
    }
}

impl Dials for Dialer<'_> {
    /// None where no limit counts them.
    type Permit = Option<ConnectionPermit>;

    fn admit(&self) -> Option<Self::Permit> {
        self.to.admit_connection().ok()
    }

    async fn dial(&self, permit: Option<Self::Permit>) -> Result<Rc<H2Connection>, Failure> {
        let permit = match permit {
            Some(permit) => permit,
            None => self.permit()?,
        };
        dial(self.worker, self.to, self.pool, permit).await
    }

    fn count_waiting(&self) {
        if !self.has_waited.replace(true) {
            self.to.count_waiting();
        }
    }

    fn now(&self) -> Tick {
        self.worker.now()
    }
}

async fn dial(
    worker: &Worker,
    to: &Destination<'_>,
    pool: &Rc<EndpointPool>,
    permit: Option<ConnectionPermit>,
) -> Result<Rc<H2Connection>, Failure> {
    let asked = worker.now();
    let tcp = connect(to.address, to.connect_timeout).await?;
    // The handshake is what it is for who computes it, not for the way there.
    let stood = worker.now();
    let (io, svid) = match to.speaks {
        Speaks::Mesh { key, id } => {
            let securing = mesh::secure(worker.shared.mesh.identity.as_ref(), key, id, tcp);
            let secured = timeout(to.connect_timeout, securing).await;
            let secured = secured.unwrap_or_else(|_| Err(mesh::too_slow(to.connect_timeout)));
            let mesh::Secured { io, svid } = secured.map_err(|failure| failure.at(to.address))?;
            (io, Some(svid))
        }
        Speaks::Http1 | Speaks::Http2 => (Replayed::new(bytes::BytesMut::new(), Io::Tcp(tcp)), None),
    };
    let opened = Opened::new(pool, permit, worker.connected(), (asked, stood));
    let Shared { settings, memory, .. } = &*worker.shared;
    // Of the application beside us it is not.
    let may_be_far = svid.is_some() || to.service.is_some();
    H2Connection::start(io, &settings.limits, opened, worker.now(), svid, memory.windows(), may_be_far).await
}
