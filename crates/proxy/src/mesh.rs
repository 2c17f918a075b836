//! What joins the engine to a mesh: who we are, what is asked for when it is first called, and the two fixed listeners
//! beside an application.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use meshwork_decision::Kinship;
use meshwork_identity::{Bundle, BundleError, Denied, Identity, IdentityError, Made, Peer};
use rustls_pki_types::CertificateDer;

use crate::engine::BindKey;

/// What an engine in a mesh is given at its start. The default is an engine outside of any mesh.
#[derive(Clone, Default)]
pub struct Mesh {
    /// Who we are, and whom we trust. Renewing the SVID inside takes effect with the next handshake; the engine itself
    /// passes on to it the roots and deny entries of every snapshot. Absent: endpoints that ask for mTLS cannot be
    /// reached, and [`Side::Inbound`] takes plaintext only.
    pub identity: Option<Arc<Identity>>,
    /// Who is asked about hosts that no service of the snapshot has. Absent: they are unknown.
    pub on_demand: Option<Arc<dyn OnDemand>>,
    /// Doors of the outbound side that lead to one service each (its authority), for clients that speak neither HTTP nor
    /// to a proxy. [`crate::Engine::listen`] opens them, as [`Side::Outbound`] at these addresses.
    pub doors: BTreeMap<SocketAddr, Arc<str>>,
    /// What retries of both sides of an application must know of each other.
    pub kinship: Arc<Kinship>,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_demand = self.on_demand.is_some();
        let mut text = f.debug_struct("Mesh");
        text.field("identity", &self.identity)
            .field("on_demand", &on_demand)
            .field("doors", &self.doors)
            .finish()
    }
}

/// Asks the control plane for a service that an application calls for the first time.
pub trait OnDemand: Send + Sync + 'static {
    /// Asks for the service behind `host` (as called, without port), for at most `patience`. Called once per waiting
    /// request: whoever implements it lets one subscription serve them all. After [`Found::Held`] the engine itself
    /// waits until a snapshot with the service is in effect.
    fn find(&self, host: &str, patience: Duration) -> Pin<Box<dyn Future<Output = Found> + Send>>;

    /// A service (`NAMESPACE/NAME`) is in use. Called by each worker about every half minute while it is.
    fn touch(&self, service: &str);
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The service has been delivered.
    Held,
    /// The control plane says that there is none: cause `unknown_service`.
    Unknown,
    /// Nobody answered in time: cause `discovery_unavailable`.
    Unavailable,
}

/// Which side of an application a fixed listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the application calls: plaintext HTTP from this machine, services found by Host.
    Outbound,
    /// What calls the application: mTLS, and plaintext where policies permit it.
    Inbound,
    /// Opaque connections that call the application: tunnels of HTTP/2 over mTLS (HBONE), nothing else.
    Hbone,
}

/// Where a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// By a listener of the snapshot.
    Gateway(BindKey),
    Outbound(SocketAddr),
    Inbound(SocketAddr),
    Hbone(SocketAddr),
}

impl Place {
    pub(crate) fn of(side: Side, address: SocketAddr) -> Self {
        match side {
            Side::Outbound => Self::Outbound(address),
            Side::Inbound => Self::Inbound(address),
            Side::Hbone => Self::Hbone(address),
        }
    }
}

/// As the label `listener` of metrics names it.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(key) => key.fmt(f),
            Self::Outbound(_) => f.write_str("outbound"),
            Self::Inbound(_) => f.write_str("inbound"),
            Self::Hbone(_) => f.write_str("hbone"),
        }
    }
}

/// Before a peer's SVID expires, a connection takes nothing new for so long.
const RETIREMENT: Duration = Duration::from_secs(60);

/// From when on a connection with this peer takes no new requests, so that what runs on it can end before the SVID
/// does. An SVID that lives only shortly keeps nine tenths of its life.
pub(crate) fn retires_at(peer: &Peer) -> Duration {
    let life = peer.not_after.saturating_sub(peer.not_before);
    peer.not_after.saturating_sub(RETIREMENT.min(life / 10))
}

/// Why a snapshot's bundle is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Trusts what the snapshot says, and no longer what it denies.
pub(crate) fn trust(identity: &Identity, said: &meshwork_decision::Bundle) -> Result<(), TrustError> {
    let roots = said.roots_der.iter().map(|root| CertificateDer::from(root.to_vec())).collect();
    let time = |unix_ms| Duration::from_millis(u64::try_from(unix_ms).unwrap_or(0));
    let ids = said.denied_ids().iter().map(|denied| Denied::Identity {
        id: denied.id.clone(),
        issued_before: denied.issued_before_unix_ms.map(time),
        made: denied.made.map(|made| Made { at: time(made.unix_ms), sequence: made.sequence }),
    });
    let serials = said.denied_serials().map(|hex| Denied::Serial { serial: bytes_of(hex) });
    let domain = identity.bundle().trust_domain().clone();
    identity.trust(Bundle::new(domain, said.sequence, roots, ids.chain(serials))?)?;
    Ok(())
}

/// The bytes of a hexadecimal number of any length; what is no digit counts as zero, and names no serial then.
fn bytes_of(hex: &str) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok()).unwrap_or(0);
    hex.as_bytes().rchunks(2).rev().map(|pair| pair.iter().fold(0, |byte, &b| byte << 4 | digit(b))).collect()
}

#[cfg(test)]
mod tests {
    use meshwork_base::SpiffeId;

    use super::*;

    #[test]
    fn serials_of_odd_length_keep_their_value() {
        assert_eq!(bytes_of("abc"), [0x0a, 0xbc]);
        assert_eq!(bytes_of("01ff"), [0x01, 0xff]);
        assert!(bytes_of("").is_empty());
    }

    #[test]
    fn a_short_lived_svid_keeps_most_of_its_life() {
        let peer = |life: u64| Peer {
            id: SpiffeId::parse("spiffe://m/ns/a/sa/b").unwrap(),
            not_before: Duration::from_secs(1000),
            not_after: Duration::from_secs(1000 + life),
            serial: vec![1],
        };
        assert_eq!(retires_at(&peer(100)), Duration::from_secs(1090));
        assert_eq!(retires_at(&peer(3600)), Duration::from_secs(4540));
    }
}
