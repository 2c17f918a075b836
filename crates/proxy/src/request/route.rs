//! Where a request goes: the decision's answer for the head at hand, on each side of the mesh.

use std::cell::OnceCell;
use std::sync::Arc;

use meshwork_base::{Clock, SpiffeId};
use meshwork_decision::{
    AppProtocol, Authorization, Backend, Cause, Cluster, Filter, InboundPort, Matched, Mtls, OutboundPort,
    RequestView, Resumed, Routed, RulePolicy, Scheme, Timeouts, UNTOLD, split_authority,
};
use meshwork_http1::{KnownName, RequestHead};
use meshwork_identity::Identity;
use meshwork_telemetry::Protocol;

use super::affinity::Session;
use super::journey::{Journey, decide};
use crate::downstream::connection::Conn;
use crate::error::{Failure, Retry};
use crate::mesh::Place;
use crate::worker::View;

/// A head as decisions see it.
pub(crate) struct Seen<'a> {
    head: &'a RequestHead,
    /// Host and port; few policies ask for them.
    authority: OnceCell<(&'a str, Option<u16>)>,
    https: bool,
    peer: Option<&'a SpiffeId>,
}

impl<'a> Seen<'a> {
    pub(crate) fn new(conn: &'a Conn, head: &'a RequestHead) -> Self {
        Self { head, authority: OnceCell::new(), https: conn.https, peer: conn.peer_id() }
    }

    /// The same for what is about callers: on the outbound side our own application calls, as whom we prove to be.
    pub(crate) fn with_caller(conn: &'a Conn, head: &'a RequestHead, own: Option<&'a SpiffeId>) -> Self {
        let seen = Self::new(conn, head);
        Self { peer: own.or(seen.peer), ..seen }
    }

    fn authority(&self) -> (&'a str, Option<u16>) {
        *self.authority.get_or_init(|| split_authority(self.head.authority().unwrap_or_default()))
    }
}

impl RequestView for Seen<'_> {
    fn method(&self) -> &str {
        self.head.method.as_str()
    }
    fn scheme(&self) -> Scheme {
        if self.https { Scheme::Https } else { Scheme::Http }
    }
    fn host(&self) -> &str {
        self.authority().0
    }
    fn port(&self) -> Option<u16> {
        self.authority().1
    }
    fn path(&self) -> &str {
        // `*` asks about the server as a whole (RFC 9110 section 9.3.7): it goes where `/` goes.
        match self.head.target.path() {
            "*" => "/",
            path => path,
        }
    }
    fn query(&self) -> Option<&str> {
        self.head.target.query()
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.head.fields.get_all(name.as_bytes())
    }
    fn peer(&self) -> Option<&SpiffeId> {
        self.peer
    }
}

/// What takes a request.
#[derive(Clone, Copy)]
pub(crate) enum Way<'v> {
    /// A rule, of a gateway's or of a service's route.
    Rule(Matched<'v>),
    /// A port of the application beside us.
    App(&'v InboundPort),
}

impl<'v> Way<'v> {
    /// The rule's filters, in the user's order.
    pub(crate) fn filters(&self) -> &'v [Filter] {
        match self {
            Self::Rule(matched) => matched.rule().filters(),
            Self::App(_) => &[],
        }
    }

    fn authorization(&self) -> &'v Authorization {
        match self {
            Self::Rule(matched) => &matched.policy().authorization,
            Self::App(port) => &port.authorization,
        }
    }
}

/// Finds what takes the request.
///
/// # Errors
/// No listener, host, service or rule takes it, or its method is one we do not carry.
pub(crate) fn find<'v>(
    conn: &Conn,
    view: &'v View,
    head: &RequestHead,
    journey: &mut Journey<'_>,
) -> Result<Way<'v>, Failure> {
    if head.method == http::Method::CONNECT {
        return Err(
            Failure::downstream(Cause::NotImplemented).because("CONNECT is not carried by this listener")
        );
    }
    let seen = Seen::new(conn, head);
    let routed = match conn.place {
        Place::Inbound(_) | Place::Hbone(_) => {
            let port = app_port(conn, view, &seen, journey)?;
            journey.own(port);
            return Ok(Way::App(port));
        }
        Place::Outbound(_) => {
            let port = service_port(conn, view, &seen, journey)?;
            decide!(journey, |reasons| port.route(&seen, reasons))
        }
        Place::Gateway(_) => {
            let Some(binding) = view.binding(conn.place) else {
                return Err(Failure::local(Cause::NoListener).because("the listener was removed"));
            };
            decide!(journey, |reasons| binding.route(&seen, conn.sni.as_deref(), reasons))
        }
    };
    match routed {
        Routed::Matched(matched) => {
            journey.matched(&matched);
            Ok(Way::Rule(matched))
        }
        Routed::NotFound { cause, listener } => {
            journey.record.listener = listener.map(|listener| Arc::clone(&listener.name));
            Err(Failure::local(cause))
        }
    }
}

/// The port of the service that the application calls.
fn service_port<'v>(
    conn: &Conn,
    view: &'v View,
    seen: &Seen<'_>,
    journey: &mut Journey<'_>,
) -> Result<&'v OutboundPort, Failure> {
    let Some(service) = view.snapshot.outbound(seen.host()) else {
        if let Some(told) = journey.told() {
            told.tell("service", seen.host(), "refused", "no service is known by this host");
        }
        return Err(Failure::local(Cause::UnknownService).because(seen.host()));
    };
    conn.worker.uses(&service.name);
    let port = service.port(seen.port()).map_err(|cause| {
        let port = seen.port().unwrap_or(80);
        Failure::local(cause).because(format!("{} has no port {port}", service.name))
    });
    if let Some(told) = journey.told() {
        let subject = service.origin.to_string();
        match &port {
            Ok(port) => {
                let why = format!("known by host {}; port {}", seen.host(), port.cluster.key.port);
                told.tell("service", subject, "chosen", why);
            }
            Err(failure) => {
                told.tell("service", subject, "refused", failure.detail.as_deref().unwrap_or_default());
            }
        }
    }
    port
}

/// The port of the application that is called: by the name of the TLS handshake, which callers in the mesh set; for
/// others by the authority. Whoever comes without identity must be allowed to.
fn app_port<'v>(
    conn: &Conn,
    view: &'v View,
    seen: &Seen<'_>,
    journey: &mut Journey<'_>,
) -> Result<&'v InboundPort, Failure> {
    let Some(inbound) = view.snapshot.inbound() else {
        return Err(not_served(UNTOLD));
    };
    let of_mesh = conn.sni.as_deref().filter(|sni| sni.ends_with(".mesh"));
    let port = match of_mesh {
        Some(sni) => inbound.by_sni(sni).ok_or_else(|| not_served(sni)),
        None => inbound.by_port(seen.port()).map_err(|_| not_served(seen.host())),
    }?;
    let admitted = port.admit(seen.peer);
    if let Some(told) = journey.told() {
        let who = seen.peer.map_or("a caller without identity", SpiffeId::as_str);
        match admitted {
            Ok(()) => {
                let mtls = if port.mtls == Mtls::Strict { "strict" } else { "permissive" };
                told.tell("inbound", &*port.sni, "chosen", format!("{mtls} mTLS; called by {who}"));
            }
            Err(_) => {
                told.tell("inbound", &*port.sni, "refused", format!("strict mTLS, and {who} proves nothing"));
            }
        }
    }
    admitted.map_err(|cause| Failure::downstream(cause).because(&*port.sni))?;
    Ok(port)
}

/// Nothing has seen the request, and another instance may serve what is wanted: a caller in the mesh asks that.
fn not_served(what: &str) -> Failure {
    Failure { retry: Retry::NothingSent, ..Failure::local(Cause::UnknownAppPort).because(what) }
}

/// Who we are, where our own application calls.
pub(crate) fn own_caller(conn: &Conn) -> Option<SpiffeId> {
    let Place::Outbound(_) = conn.place else { return None };
    conn.worker.shared.mesh.identity.as_deref().map(Identity::id)
}

/// Whether the request may pass.
///
/// # Errors
/// A policy refuses it; the failure names the policy.
pub(crate) fn authorize(
    conn: &Conn,
    way: &Way<'_>,
    head: &RequestHead,
    journey: &mut Journey<'_>,
) -> Result<(), Failure> {
    let authorization = way.authorization();
    if authorization.is_empty() {
        return Ok(());
    }
    let own = own_caller(conn);
    let seen = Seen::with_caller(conn, head, own.as_ref());
    for policy in authorization.audits(&seen) {
        let peer = seen.peer.map_or("nobody", SpiffeId::as_str);
        tracing::info!(policy = %policy.origin, peer, host = seen.host(), path = seen.path(), "audited");
        if let Some(told) = journey.told() {
            told.tell("authorize", policy.origin.to_string(), "noted", "an Audit rule matches");
        }
    }
    decide!(journey, |reasons| authorization.check(&seen, reasons)).map_err(|denied| {
        let peer = seen.peer.map_or("an unproven peer", SpiffeId::as_str);
        Failure::downstream(denied.cause).because(format!("{} for {peer}", denied.policy.origin))
    })
}

/// What a request is sent to.
#[derive(Clone, Copy)]
pub(crate) enum Target<'v> {
    /// An endpoint of a service.
    Service { backend: &'v Backend, cluster: &'v Arc<Cluster>, policy: &'v RulePolicy },
    /// The application beside us.
    App { port: &'v InboundPort, http2: bool },
}

impl<'v> Target<'v> {
    /// The service and its port, as metrics name them.
    pub(crate) fn named(&self) -> (&'v str, u16) {
        match self {
            Self::Service { cluster, .. } => (&cluster.name, cluster.key.port),
            Self::App { port, .. } => (&port.key.service, port.key.port),
        }
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        match self {
            Self::Service { cluster, policy, .. } => policy.timeouts(Some(cluster)),
            Self::App { .. } => Timeouts::default(),
        }
    }

    /// Whether other proxies of the mesh stand before its endpoints.
    pub(crate) fn is_in_mesh(&self) -> bool {
        match self {
            Self::Service { cluster, .. } => cluster.is_in_mesh(),
            Self::App { .. } => false,
        }
    }

    /// The backend's own filters.
    pub(crate) fn filters(&self) -> &'v [Filter] {
        match self {
            Self::Service { backend, .. } => &backend.filters,
            Self::App { .. } => &[],
        }
    }
}

/// Chooses a backend by weight, or the application; or where the caller's session leads.
///
/// # Errors
/// There is none, or the chosen one leads nowhere.
pub(crate) fn target<'v>(
    conn: &Conn,
    way: &Way<'v>,
    head: &RequestHead,
    journey: &mut Journey<'_>,
) -> Result<(Target<'v>, Option<Session>), Failure> {
    let matched = match way {
        Way::Rule(matched) => matched,
        Way::App(port) => {
            return Ok((Target::App { port, http2: speaks_http2(port.protocol, conn, head, journey) }, None));
        }
    };
    if matched.rule().session_persistence().is_some()
        && let Some(resumed) = resumed(conn, matched, head, journey)
    {
        journey.cluster(resumed.cluster)?;
        let Resumed { backend, cluster, endpoint, renewal } = resumed;
        let session = Session { endpoint, renewal };
        return Ok((Target::Service { backend, cluster, policy: matched.policy() }, Some(session)));
    }
    let rng = &mut *conn.worker.rng.borrow_mut();
    let chosen = decide!(journey, |reasons| matched.rule().choose_backend(rng, reasons));
    let (backend, cluster) = chosen.map_err(|cause| {
        Failure::local(cause).because(format!("{} rule {}", matched.route().name, matched.rule_index()))
    })?;
    journey.cluster(cluster)?;
    Ok((Target::Service { backend, cluster, policy: matched.policy() }, None))
}

/// Where the caller's session leads, if it has one that still holds.
fn resumed<'v>(
    conn: &Conn,
    matched: &Matched<'v>,
    head: &RequestHead,
    journey: &mut Journey<'_>,
) -> Option<Resumed<'v>> {
    let worker = &conn.worker;
    let resumed = matched.rule().resume(&Seen::new(conn, head), worker.shared.clock.wall(), worker.now());
    if let Some(told) = journey.told() {
        match &resumed {
            Some(resumed) => {
                let subject = resumed.cluster.key.to_string();
                told.tell("backend", subject, "chosen", "the caller's session is with one of its endpoints");
            }
            None => told.tell("backend", "session", "skipped", "the caller brings none that holds"),
        }
    }
    resumed
}

/// The application gets what it declared. Where it declared nothing: between proxies everything is HTTP/2, so only
/// gRPC tells that the application speaks it; a plaintext caller is passed on in its own version.
fn speaks_http2(declared: AppProtocol, conn: &Conn, head: &RequestHead, journey: &Journey<'_>) -> bool {
    match declared {
        AppProtocol::Http2 | AppProtocol::Grpc => true,
        AppProtocol::Http1 | AppProtocol::WebSocket => false,
        AppProtocol::Detect | AppProtocol::Tcp | AppProtocol::Tls => {
            let direct = conn.caller.is_none() && journey.record.protocol == Protocol::Http2;
            // Few applications take a WebSocket over HTTP/2, and none takes it there alone.
            (direct || super::reply::is_grpc(head)) && head.fields.known(KnownName::Upgrade).is_none()
        }
    }
}
