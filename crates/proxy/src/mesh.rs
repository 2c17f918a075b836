//! What joins the engine to a mesh: who we are, what is asked for when it is first called, and the two fixed listeners
//! beside an application.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use meshwork_identity::Identity;

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
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_demand = self.on_demand.is_some();
        f.debug_struct("Mesh").field("identity", &self.identity).field("on_demand", &on_demand).finish()
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
}

/// Where a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// By a listener of the snapshot.
    Gateway(BindKey),
    Outbound(SocketAddr),
    Inbound(SocketAddr),
}

impl Place {
    pub(crate) fn of(side: Side, address: SocketAddr) -> Self {
        match side {
            Side::Outbound => Self::Outbound(address),
            Side::Inbound => Self::Inbound(address),
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
        }
    }
}
