//! What a cluster is called by, and what is spoken there.

use std::fmt;
use std::sync::Arc;

/// A service's name: `NAMESPACE/NAME`, and its port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterKey {
    /// `NAMESPACE/NAME`.
    pub service: Arc<str>,
    /// The service's port.
    pub port: u16,
    /// A subset of its endpoints by name; empty: all of them.
    pub subset: Arc<str>,
}

impl ClusterKey {
    /// All endpoints of a port.
    #[must_use]
    pub fn whole(service: Arc<str>, port: u16) -> Self {
        Self { service, port, subset: Arc::default() }
    }

    /// As metrics and operators call it: `NAMESPACE/SERVICE`, with the subset behind it where it is one.
    #[must_use]
    pub fn named(&self) -> Arc<str> {
        match &*self.subset {
            "" => Arc::clone(&self.service),
            subset => format!("{}/{subset}", self.service).into(),
        }
    }

    /// Whether both are the same port of one service, whatever the subset.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (&self.service, self.port) == (&other.service, other.port)
    }
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            // What a reference names that does not resolve.
            0 => f.write_str(&self.named()),
            port => write!(f, "{}:{port}", self.named()),
        }
    }
}

/// What the application speaks on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AppProtocol {
    /// Not declared.
    #[default]
    Detect,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// gRPC, which is HTTP/2.
    Grpc,
    /// Opaque TCP.
    Tcp,
    /// Opaque TLS.
    Tls,
    /// HTTP/1.1 that upgrades.
    WebSocket,
}

impl AppProtocol {
    /// Whether nobody looks into its connections.
    #[must_use]
    pub const fn is_opaque(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls)
    }

    /// Whether HTTP is declared, of whichever version.
    #[must_use]
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc | Self::WebSocket)
    }

    /// Whether it is HTTP/2.
    #[must_use]
    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}
