//! Mutual TLS to a peer in the mesh.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use meshwork_base::SpiffeId;
use meshwork_decision::{Cause, ClusterKey, mesh_sni};
use meshwork_identity::{Expected, Identity, Peer, Refusal};
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::{Failure, Retry};
use crate::io::Io;
use crate::mesh::retires_at;
use crate::replay::Replayed;

/// A connection whose peer has proven who it is, and has taken us.
pub(crate) struct Secured {
    pub(crate) io: Replayed,
    pub(crate) svid: Validity,
}

/// Whom a connection is with, and how long it may be used: as long as both SVIDs of its handshake.
pub(crate) struct Validity {
    pub(crate) peer: Peer,
    /// From then on it takes no more requests, since the Unix epoch.
    pub(crate) retires: Duration,
    /// Then it ends, since the Unix epoch.
    pub(crate) ends: Duration,
}

/// Proves to each other who we are.
///
/// # Errors
/// Either side refuses the other. Nothing of a request was sent.
pub(crate) async fn secure(
    identity: Option<&Arc<Identity>>,
    key: &ClusterKey,
    id: &SpiffeId,
    tcp: TcpStream,
) -> Result<Secured, Failure> {
    let Some(identity) = identity else {
        let why = "the endpoint asks for mTLS, and this proxy has no identity: join it to the mesh";
        return Err(Failure::local(Cause::UpstreamTlsFailure).because(why));
    };
    let ours = identity.svid();
    let config = identity.client_config(vec![b"h2".to_vec()], Expected::one(id.clone()));
    let name = ServerName::try_from(mesh_sni(key))
        .map_err(|error| Failure::local(Cause::Internal).because(format!("{key}: {error}")))?;
    let connector = TlsConnector::from(config);
    let connecting = meshwork_identity::connect(identity, &connector, name, tcp);
    let (mut tls, peer) = connecting.await.map_err(|refusal| refused(&refusal))?;
    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(failure(
            Cause::UpstreamTlsFailure,
            "the peer does not speak HTTP/2 (ALPN h2)".to_owned(),
        ));
    }
    // In TLS 1.3 the peer judges us after our side of the handshake is done. A server's first frame (its settings, RFC
    // 9113 section 3.4) says that it took us; so no request is ever sent to a peer that will not have it.
    let mut first = BytesMut::with_capacity(512);
    match tls.read_buf(&mut first).await {
        Ok(0) => {
            return Err(failure(Cause::UpstreamTlsFailure, "the peer closed after the handshake".to_owned()));
        }
        Ok(_) => {}
        Err(error) => return Err(refused(&Refusal::of_io(&error))),
    }
    let svid = Validity {
        retires: retires_at(&peer).min(retires_at(ours.as_peer())),
        ends: peer.not_after.min(ours.not_after()),
        peer,
    };
    Ok(Secured { io: Replayed::new(first, Io::TlsClient(Box::new(tls))), svid })
}

fn failure(cause: Cause, why: String) -> Failure {
    Failure::upstream(cause, Retry::NothingSent).because(why)
}

/// The handshake took longer than a connection may.
pub(crate) fn too_slow(limit: Duration) -> Failure {
    failure(Cause::ConnectTimeout, format!("no TLS handshake within {limit:?}"))
}

fn refused(refusal: &Refusal) -> Failure {
    let why = format!("{}: {refusal}", refusal.cause());
    match refusal {
        // No other endpoint can help.
        Refusal::OwnSvidExpired { .. } => Failure::local(Cause::SvidExpired).because(why),
        Refusal::UnexpectedIdentity { .. } | Refusal::WrongTrustDomain { .. } => {
            failure(Cause::UpstreamIdentityMismatch, why)
        }
        _ => failure(Cause::UpstreamTlsFailure, why),
    }
}
