//! What happens on a connection before its first request: TLS at the edge, mutual TLS in the mesh.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use meshwork_decision::{Cause, Mtls, Protocol};
use meshwork_identity::{Identity, Peer, Refusal};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

use crate::connections::{Entry, Order};
use crate::error::Failure;
use crate::io::Io;
use crate::mesh::Place;
use crate::stream::reject;
use crate::worker::Worker;

/// A connection that is ready for its first request.
pub(crate) struct Opened {
    pub(crate) io: Io,
    /// The server name of the TLS handshake.
    pub(crate) sni: Option<Arc<str>>,
    /// Whether HTTP/2 was agreed on; absent: the first bytes tell.
    pub(crate) http2: Option<bool>,
    /// TLS ended here, as callers at the edge see it.
    pub(crate) https: bool,
    pub(crate) caller: Option<Caller>,
    /// It speaks plainly where TLS is spoken: it can be told so, and nothing else.
    pub(crate) is_astray: bool,
}

/// A caller that has proven who it is.
pub(crate) struct Caller {
    pub(crate) peer: Rc<Peer>,
    /// What the application learns of it: `x-forwarded-client-cert`, in Envoy's format.
    pub(crate) certificate: Box<str>,
}

/// Why there will be no first request.
pub(crate) struct Refused {
    /// A stable name.
    pub(crate) cause: &'static str,
    pub(crate) why: String,
}

impl Refused {
    /// The same of a connection of layer 4.
    pub(crate) fn of_stream(self) -> Failure {
        let failure = match self.cause == Cause::Overload.as_str() {
            true => Failure::local(Cause::Overload),
            false => Failure::downstream(Cause::DownstreamProtocolError),
        };
        failure.because(self.why)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { cause: refusal.cause(), why: refusal.to_string() }
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Refusal::of_io(&error).into()
    }
}

impl Opened {
    pub(crate) fn plain(tcp: TcpStream) -> Self {
        Self { io: Io::Tcp(tcp), sni: None, http2: None, https: false, caller: None, is_astray: false }
    }
}

/// Ends TLS at the edge, with the certificate that SNI chooses. `None`: told to close meanwhile. Who speaks plainly is let in to be
/// sent away.
///
/// # Errors
/// The handshake failed.
pub(crate) async fn edge(
    worker: &Worker,
    place: Place,
    entry: &Entry,
    tcp: TcpStream,
) -> Result<Option<Opened>, Refused> {
    let mut first = [0];
    let Some(peeked) = unless_ordered(entry, tcp.peek(&mut first)).await? else { return Ok(None) };
    // No record of TLS begins with a letter, and each request does.
    if peeked? > 0 && first[0].is_ascii_alphabetic() {
        return Ok(Some(Opened { is_astray: true, ..Opened::plain(tcp) }));
    }
    let acceptor = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
    let Some(hello) = unless_ordered(entry, acceptor).await? else { return Ok(None) };
    let hello = hello?;
    let sni: Option<Arc<str>> = hello.client_hello().server_name().map(Into::into);
    let view = worker.view();
    let listener = view.binding(place).and_then(|binding| binding.certificates_for(sni.as_deref()));
    let Some(listener) = listener else {
        reject::unrecognized(&hello.io, Protocol::Https);
        return Err(Refused { cause: "unrecognized_name", why: unrecognized(sni.as_deref()) });
    };
    let config = worker.shared.tls.of(listener);
    drop(view);
    let Some(stream) = unless_ordered(entry, hello.into_stream(config)).await? else { return Ok(None) };
    let stream = stream?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Some(Opened {
        io: Io::TlsServer(Box::new(stream)),
        sni,
        http2: Some(http2),
        https: true,
        caller: None,
        is_astray: false,
    }))
}

fn unrecognized(sni: Option<&str>) -> String {
    match sni {
        Some(name) => format!("no listener of this port is for `{name}`"),
        None => "the client named no host, and no listener of this port is for all hosts".to_owned(),
    }
}

/// Takes a caller in the mesh: with TLS it must prove who it is, without only where a policy permits plaintext.
/// `None`: told to close meanwhile, or the caller said nothing.
///
/// # Errors
/// The caller is refused.
pub(crate) async fn mesh(worker: &Worker, entry: &Entry, tcp: TcpStream) -> Result<Option<Opened>, Refused> {
    const HANDSHAKE_RECORD: u8 = 22;
    let mut first = [0];
    let Some(peeked) = unless_ordered(entry, tcp.peek(&mut first)).await? else { return Ok(None) };
    if peeked? == 0 {
        return Ok(None);
    }
    if first[0] != HANDSHAKE_RECORD {
        let view = worker.view();
        let permitted =
            view.snapshot.inbound().is_some_and(|i| i.ports.iter().any(|p| p.mtls == Mtls::Permissive));
        let why = "plaintext, and every port of this workload is strict: only workloads of the mesh may connect here";
        return match permitted {
            true => Ok(Some(Opened::plain(tcp))),
            false => Err(Refused { cause: "peer_unauthenticated", why: why.to_owned() }),
        };
    }
    let (Some(identity), Some(acceptor)) = (&worker.shared.mesh.identity, &worker.acceptor) else {
        return Err(Refused {
            cause: "no_identity",
            why: "this proxy has no SVID to answer with".to_owned(),
        });
    };
    let accepting = meshwork_identity::accept(identity, acceptor, tcp);
    let Some(accepted) = unless_ordered(entry, accepting).await? else { return Ok(None) };
    let (stream, shown) = accepted?;
    let peer = Rc::new(shown.in_force()?.ok_or(Refusal::NoCertificate)?);
    entry.is_with(&peer);
    // Trust may have been taken away between the check in the handshake and the entry in the list of connections.
    identity.bundle().check_denied(&peer)?;
    let session = stream.get_ref().1;
    let sni = session.server_name().map(Into::into);
    let http2 = match session.alpn_protocol() {
        Some(b"h2") => Some(true),
        Some(_) => Some(false),
        None => None,
    };
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let certificate = forwarded_certificate(identity, &peer, leaf.map_or(&[], |leaf| leaf.as_ref()));
    let caller = Some(Caller { peer, certificate });
    let io = Io::TlsServer(Box::new(stream));
    Ok(Some(Opened { io, sni, http2, https: false, caller, is_astray: false }))
}

/// Takes a caller that brings tunnels: it must prove who it is and speak HTTP/2, whatever policies say of plaintext.
/// `None`: as [`mesh`].
///
/// # Errors
/// The caller is refused.
pub(crate) async fn hbone(worker: &Worker, entry: &Entry, tcp: TcpStream) -> Result<Option<Opened>, Refused> {
    let Some(opened) = mesh(worker, entry, tcp).await? else { return Ok(None) };
    let refused = |cause, why: &str| Err(Refused { cause, why: why.to_owned() });
    match (&opened.caller, opened.http2) {
        (None, _) => refused("peer_unauthenticated", "this port takes mutual TLS only"),
        (Some(_), Some(true)) => Ok(Some(opened)),
        (Some(_), _) => refused("protocol", "this port takes HTTP/2 only (ALPN h2)"),
    }
}

/// Envoy's `x-forwarded-client-cert` with `By`, `Hash`, `Subject` and `URI`.
fn forwarded_certificate(identity: &Identity, peer: &Peer, leaf: &[u8]) -> Box<str> {
    use std::fmt::Write as _;
    let mut text = format!("By={};Hash=", identity.id());
    for byte in Sha256::digest(leaf) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    let _ = write!(text, ";Subject=\"\";URI={}", peer.id);
    text.into()
}

/// Runs a step unless the process stops; its time limit is the connection's.
///
/// # Errors
/// The time is over.
pub(crate) async fn unless_ordered<F: Future>(entry: &Entry, step: F) -> Result<Option<F::Output>, Refused> {
    let mut step = std::pin::pin!(step);
    poll_fn(|cx| {
        if let Poll::Ready(done) = step.as_mut().poll(cx) {
            return Poll::Ready(Ok(Some(done)));
        }
        match entry.order() {
            Some(Order::TimedOut(_)) => {
                let why = "the client did not finish its handshake in time".to_owned();
                return Poll::Ready(Err(Refused { cause: "handshake_timeout", why }));
            }
            Some(Order::Shed) => {
                let why = "there is no memory for it (setting --max-memory-bytes)".to_owned();
                return Poll::Ready(Err(Refused { cause: Cause::Overload.as_str(), why }));
            }
            _ if entry.leaves() => return Poll::Ready(Ok(None)),
            _ => {}
        }
        entry.watch(cx);
        Poll::Pending
    })
    .await
}
