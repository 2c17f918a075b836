//! An X.509-SVID with its private key.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Code, SpiffeId};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::files::pem;
use crate::refusal::Refusal;
use crate::tls::provider;
use crate::verify::Peer;

/// Why a chain and a key are no SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// The leaf is none.
    #[error(transparent)]
    Leaf(#[from] Refusal),
    /// There is no certificate.
    #[error("the certificate chain is empty")]
    Empty,
    /// Key and certificate are not of one pair.
    #[error("the private key does not go with the certificate: {0}")]
    Key(String),
    /// The stored text does not parse.
    #[error("the stored SVID is damaged: {0}")]
    Damaged(String),
}

impl SvidError {
    /// Its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        Code::new(6022)
    }
}

/// Who we are, and the proof.
pub struct Svid {
    peer: Peer,
    key: PrivateKeyDer<'static>,
    certified: Arc<CertifiedKey>,
}

impl Svid {
    /// Joins a chain (leaf first, without the root) and the leaf's key.
    ///
    /// # Errors
    /// [`SvidError`] when they do not go together. The chain's signatures are the business of who verifies it.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, SvidError> {
        let peer = Peer::read(chain.first().ok_or(SvidError::Empty)?)?;
        let certified = CertifiedKey::from_der(chain, key.clone_key(), &provider())
            .map_err(|error| SvidError::Key(error.to_string()))?;
        Ok(Self { peer, key, certified: Arc::new(certified) })
    }

    /// The identity.
    #[must_use]
    pub const fn id(&self) -> &SpiffeId {
        &self.peer.id
    }

    /// What others read in the leaf.
    #[must_use]
    pub const fn as_peer(&self) -> &Peer {
        &self.peer
    }

    /// When it became valid, since the Unix epoch.
    #[must_use]
    pub const fn not_before(&self) -> Duration {
        self.peer.not_before
    }

    /// When it expires, since the Unix epoch.
    #[must_use]
    pub const fn not_after(&self) -> Duration {
        self.peer.not_after
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_expired(&self, wall: Duration) -> bool {
        wall > self.peer.not_after
    }

    /// Whether its time has come and is not over.
    #[must_use]
    pub fn is_in_force(&self, wall: Duration) -> bool {
        wall >= self.peer.not_before && !self.is_expired(wall)
    }

    /// The certificates, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// Key and chain as they are kept on disk.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let label = match self.key {
            PrivateKeyDer::Pkcs8(_) => "PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "RSA PRIVATE KEY",
        };
        let mut text = pem(label, self.key.secret_der());
        text.extend(self.chain().iter().map(|certificate| pem("CERTIFICATE", certificate)));
        text
    }

    /// Reads what [`Svid::to_pem`] wrote.
    ///
    /// # Errors
    /// [`SvidError`] when it is damaged.
    pub fn from_pem(text: &str) -> Result<Self, SvidError> {
        let damaged = |error: rustls_pki_types::pem::Error| SvidError::Damaged(error.to_string());
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(damaged)?;
        let chain =
            CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(damaged)?;
        Self::new(chain, key)
    }
}

/// The key stays out of every log.
impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("peer", &self.peer).finish_non_exhaustive()
    }
}
