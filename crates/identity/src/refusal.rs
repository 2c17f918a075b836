//! Why a connection is refused.

use std::time::Duration;

use meshwork_base::clock::rfc3339_millis;
use meshwork_base::{Code, SpiffeId, TrustDomain};
use rustls::{CertificateError, Error, OtherError};

/// Why a peer, or we ourselves, may not speak on a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate; only workloads of the mesh may connect here")]
    NoCertificate,
    /// A certificate that does not parse, or a signature that does not hold.
    #[error("the peer's certificate is broken: {why}")]
    BadCertificate {
        /// What is wrong.
        why: String,
    },
    /// A certificate that is no X.509-SVID of the mesh.
    #[error("the peer's certificate is no SVID: {why}")]
    NotAnSvid {
        /// Which rule of the X.509-SVID standard it breaks.
        why: &'static str,
    },
    /// The ID is of another trust domain.
    #[error("the peer is {got}, but only trust domain {expected} is trusted here")]
    WrongTrustDomain {
        /// Ours.
        expected: TrustDomain,
        /// Who the peer claims to be.
        got: SpiffeId,
    },
    /// No root of the bundle vouches for it.
    #[error("no root of the trust bundle vouches for {id}")]
    UntrustedIssuer {
        /// Who the peer claims to be.
        id: SpiffeId,
    },
    /// The SVID's time is over.
    #[error("the SVID of {id} expired at {}", rfc3339_millis(*.not_after))]
    SvidExpired {
        /// Whose.
        id: SpiffeId,
        /// When, since the Unix epoch.
        not_after: Duration,
    },
    /// The SVID's time has not begun: one of the two clocks is wrong.
    #[error("the SVID of {id} is valid from {} only; compare the clocks of both machines", rfc3339_millis(*.not_before))]
    SvidNotYetValid {
        /// Whose.
        id: SpiffeId,
        /// When, since the Unix epoch.
        not_before: Duration,
    },
    /// A deny entry names it.
    #[error("the identity {id} is revoked")]
    Revoked {
        /// Who.
        id: SpiffeId,
    },
    /// A workload of the mesh, but not the one that was called.
    #[error("expected {expected}, but the peer is {got}")]
    UnexpectedIdentity {
        /// Who may answer.
        expected: String,
        /// Who answered.
        got: SpiffeId,
    },
    /// The server's chain does not end in the root whose hash the join token carries.
    #[error(
        "the server's root is not the one that the join token names; the token or the address is of another mesh"
    )]
    PinMismatch,
    /// Our own SVID's time is over: we fail closed.
    #[error("our own SVID expired at {} and is not renewed yet; this process's log says why", rfc3339_millis(*.not_after))]
    OwnSvidExpired {
        /// When, since the Unix epoch.
        not_after: Duration,
    },
    /// The peer ended the handshake with an alert; its log has the reason.
    #[error("the peer refused the handshake ({alert}); its log names the reason")]
    RefusedByPeer {
        /// The alert's name.
        alert: String,
    },
    /// The handshake failed below identity: no TLS, other version, connection lost.
    #[error("the TLS handshake failed: {why}")]
    Handshake {
        /// What the TLS library or the network says.
        why: String,
    },
}

impl Refusal {
    /// A stable name for logs, metrics and `explain`.
    #[must_use]
    pub const fn cause(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate { .. } => "bad_certificate",
            Self::NotAnSvid { .. } => "not_an_svid",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::UntrustedIssuer { .. } => "untrusted_issuer",
            Self::SvidExpired { .. } => "svid_expired",
            Self::SvidNotYetValid { .. } => "svid_not_yet_valid",
            Self::Revoked { .. } => "revoked",
            Self::UnexpectedIdentity { .. } => "unexpected_identity",
            Self::PinMismatch => "pin_mismatch",
            Self::OwnSvidExpired { .. } => "own_svid_expired",
            Self::RefusedByPeer { .. } => "refused_by_peer",
            Self::Handshake { .. } => "tls_handshake_failed",
        }
    }

    /// Its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        Code::new(match self {
            Self::NoCertificate => 6001,
            Self::BadCertificate { .. } => 6002,
            Self::NotAnSvid { .. } => 6003,
            Self::WrongTrustDomain { .. } => 6004,
            Self::UntrustedIssuer { .. } => 6005,
            Self::SvidExpired { .. } => 6006,
            Self::SvidNotYetValid { .. } => 6007,
            Self::Revoked { .. } => 6008,
            Self::UnexpectedIdentity { .. } => 6009,
            Self::PinMismatch => 6010,
            Self::OwnSvidExpired { .. } => 6011,
            Self::RefusedByPeer { .. } => 6012,
            Self::Handshake { .. } => 6013,
        })
    }

    /// Carries the refusal through `rustls`.
    pub(crate) fn into_rustls(self) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(std::sync::Arc::new(self))))
    }

    /// Finds the reason in what a handshake failed with.
    #[must_use]
    pub fn of_tls(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(CertificateError::Other(other)) | Error::Other(other) => other
                .0
                .downcast_ref::<Self>()
                .cloned()
                .unwrap_or_else(|| Self::Handshake { why: error.to_string() }),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(why) => Self::BadCertificate { why: why.to_string() },
            Error::AlertReceived(alert) => Self::RefusedByPeer { alert: format!("{alert:?}") },
            other => Self::Handshake { why: other.to_string() },
        }
    }

    /// Finds the reason in what a stream over TLS failed with. In TLS 1.3 a client learns that it was refused only
    /// with its first read.
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::of_tls(error),
            None => Self::Handshake { why: error.to_string() },
        }
    }
}
