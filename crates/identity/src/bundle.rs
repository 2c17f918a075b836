//! What is trusted: the roots of a trust domain and the entries that take trust away.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meshwork_base::{Code, SpiffeId, TrustDomain};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::authority::BACKDATE;
use crate::refusal::Refusal;
use crate::tls::provider;
use crate::verify::Peer;

/// Why something is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Nothing would be trusted.
    #[error("the trust bundle of {0} has no root certificate")]
    Empty(TrustDomain),
    /// A root does not parse.
    #[error("root {index} of the trust bundle of {domain} is no certificate that can vouch: {why}")]
    BadRoot {
        /// Whose bundle.
        domain: TrustDomain,
        /// Which root, from 0.
        index: usize,
        /// What is wrong.
        why: String,
    },
    /// The stored text does not parse.
    #[error("the stored trust bundle is damaged: {0}")]
    Damaged(String),
}

impl BundleError {
    /// Its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        Code::new(6020)
    }
}

/// An entry that takes trust away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Denied {
    /// SVIDs of this identity.
    Identity {
        /// Whose.
        id: SpiffeId,
        /// Only those issued before this time (since the Unix epoch); `None`: all, also future ones.
        issued_before: Option<Duration>,
        /// When that was said; entries of older versions do not have it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        made: Option<Made>,
    },
    /// The one certificate with this serial number.
    Serial {
        /// The number, big-endian.
        serial: Vec<u8>,
    },
}

/// When a deny entry was made. What claims to begin later, and was issued under an older bundle, was issued before it by a
/// clock that ran ahead: its date says nothing, also when it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    /// Since the Unix epoch.
    pub at: Duration,
    /// The first bundle that has it.
    pub sequence: u64,
}

/// Which SVIDs of an identity an entry denies.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rule {
    issued_before: Option<Duration>,
    made: Option<Made>,
}

impl Rule {
    fn denies(&self, peer: &Peer) -> bool {
        let Some(before) = self.issued_before else { return true };
        let issued = peer.not_before + BACKDATE;
        issued < before
            || self.made.is_some_and(|made| issued > made.at && peer.issued_under() < made.sequence)
    }

    /// The same of one whose time has not come, so that its date does not say when it was issued.
    fn denies_early(&self, peer: &Peer) -> bool {
        self.denies(peer) || self.made.is_none_or(|made| peer.issued_under() < made.sequence)
    }

    fn covers(&self, other: &Self) -> bool {
        self.issued_before.is_none()
            || (self.made == other.made
                && other.issued_before.is_some_and(|other| self.issued_before >= Some(other)))
    }
}

/// Whom to trust in one trust domain.
#[derive(Clone)]
pub struct Bundle {
    trust_domain: TrustDomain,
    sequence: u64,
    roots: Vec<CertificateDer<'static>>,
    identities: BTreeMap<SpiffeId, Vec<Rule>>,
    serials: BTreeSet<Vec<u8>>,
    anchors: Arc<RootCertStore>,
    client_chains: Arc<dyn ClientCertVerifier>,
}

impl Bundle {
    /// Puts a bundle together. A later bundle of the same trust domain has a higher `sequence`.
    ///
    /// # Errors
    /// [`BundleError`] when there is no root or one does not parse.
    pub fn new(
        trust_domain: TrustDomain,
        sequence: u64,
        roots: Vec<CertificateDer<'static>>,
        denied: impl IntoIterator<Item = Denied>,
    ) -> Result<Self, BundleError> {
        let mut anchors = RootCertStore::empty();
        for (index, root) in roots.iter().enumerate() {
            anchors.add(root.clone()).map_err(|error| BundleError::BadRoot {
                domain: trust_domain.clone(),
                index,
                why: error.to_string(),
            })?;
        }
        let anchors = Arc::new(anchors);
        let client_chains = WebPkiClientVerifier::builder_with_provider(anchors.clone(), provider())
            .build()
            .map_err(|_| BundleError::Empty(trust_domain.clone()))?;
        let (mut identities, mut serials) = (BTreeMap::<SpiffeId, Vec<Rule>>::new(), BTreeSet::new());
        for entry in denied {
            match entry {
                Denied::Identity { id, issued_before, made } => {
                    let (rules, rule) = (identities.entry(id).or_default(), Rule { issued_before, made });
                    // Two entries for one identity: the wider one holds.
                    if !rules.iter().any(|other| other.covers(&rule)) {
                        rules.retain(|other| !rule.covers(other));
                        rules.push(rule);
                    }
                }
                Denied::Serial { serial } => {
                    let zeros = serial.iter().take_while(|&&byte| byte == 0).count();
                    serials.insert(serial[zeros..].to_vec());
                }
            }
        }
        Ok(Self { trust_domain, sequence, roots, identities, serials, anchors, client_chains })
    }

    /// The trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Which version of the bundle this is.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The root certificates.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The deny entries.
    pub fn denied(&self) -> impl Iterator<Item = Denied> {
        let identities = self.identities.iter().flat_map(|(id, rules)| {
            rules.iter().map(|&Rule { issued_before, made }| Denied::Identity {
                id: id.clone(),
                issued_before,
                made,
            })
        });
        identities.chain(self.serials.iter().map(|serial| Denied::Serial { serial: serial.clone() }))
    }

    /// Whether a deny entry names this peer. Asked at each handshake, and of every live connection when the entries
    /// change: those that are refused now are closed.
    ///
    /// # Errors
    /// [`Refusal::Revoked`].
    pub fn check_denied(&self, peer: &Peer) -> Result<(), Refusal> {
        self.check(peer, Rule::denies)
    }

    /// The same of a peer whose SVID begins only later by our clock: what an entry denies that was issued before a time is
    /// denied whatever its date says, unless it was issued under a bundle that had the entry.
    ///
    /// # Errors
    /// [`Refusal::Revoked`].
    pub fn check_denied_early(&self, peer: &Peer) -> Result<(), Refusal> {
        self.check(peer, Rule::denies_early)
    }

    fn check(&self, peer: &Peer, denies: fn(&Rule, &Peer) -> bool) -> Result<(), Refusal> {
        let rules = self.identities.get(&peer.id);
        if rules.is_some_and(|rules| rules.iter().any(|rule| denies(rule, peer)))
            || self.serials.contains(&peer.serial)
        {
            return Err(Refusal::Revoked { id: peer.id.clone() });
        }
        Ok(())
    }

    pub(crate) fn anchors(&self) -> &RootCertStore {
        &self.anchors
    }

    pub(crate) fn client_chains(&self) -> &dyn ClientCertVerifier {
        &*self.client_chains
    }

    /// The bundle as it is kept on disk.
    #[must_use]
    pub fn to_json(&self) -> String {
        let stored = Stored {
            trust_domain: self.trust_domain.clone(),
            sequence: self.sequence,
            roots: self.roots.iter().map(|root| STANDARD.encode(root)).collect(),
            denied: self.denied().collect(),
        };
        serde_json::to_string_pretty(&stored).expect("strings, numbers and lists are JSON")
    }

    /// Reads what [`Bundle::to_json`] wrote.
    ///
    /// # Errors
    /// [`BundleError`] when it is damaged.
    pub fn from_json(text: &str) -> Result<Self, BundleError> {
        let stored: Stored =
            serde_json::from_str(text).map_err(|error| BundleError::Damaged(error.to_string()))?;
        let roots = stored
            .roots
            .iter()
            .map(|root| STANDARD.decode(root).map(CertificateDer::from))
            .collect::<Result<_, _>>()
            .map_err(|error| BundleError::Damaged(error.to_string()))?;
        Self::new(stored.trust_domain, stored.sequence, roots, stored.denied)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    trust_domain: TrustDomain,
    sequence: u64,
    roots: Vec<String>,
    denied: Vec<Denied>,
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("trust_domain", &self.trust_domain)
            .field("sequence", &self.sequence)
            .field("roots", &self.roots.len())
            .field("denied", &(self.identities.len() + self.serials.len()))
            .finish()
    }
}
