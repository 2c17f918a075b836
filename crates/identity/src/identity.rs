//! Our identity while the process runs: SVID and bundle, exchanged under running TLS configurations.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use meshwork_base::{Clock, Code, SpiffeId};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use crate::bundle::Bundle;
use crate::refusal::Refusal;
use crate::svid::Svid;
use crate::time::ClockTime;
use crate::tls::{ClientVerifier, ServerVerifier, provider};
use crate::verify::{Peer, Shown};

/// Why an SVID or a bundle is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// SVID and bundle are of different trust domains.
    #[error("the SVID is of {id}, but the bundle is of trust domain {domain}")]
    Mismatch {
        /// The SVID's identity.
        id: SpiffeId,
        /// The bundle's trust domain.
        domain: String,
    },
    /// A bundle older than the one in use: taking it would give trust back that was withdrawn.
    #[error("bundle {offered} is older than bundle {held}, which is in use")]
    Stale {
        /// In use.
        held: u64,
        /// Offered.
        offered: u64,
    },
    /// An SVID for somebody else.
    #[error("the renewed SVID is of {offered}, but this process is {held}")]
    OtherIdentity {
        /// Who we are.
        held: SpiffeId,
        /// Offered.
        offered: SpiffeId,
    },
}

impl IdentityError {
    /// Its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        Code::new(6023)
    }
}

/// Whether a client must show an SVID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Yes: everything between proxies.
    #[default]
    Required,
    /// It may come without, to join with a token; one that it shows must be good.
    Optional,
}

/// How a server speaks TLS.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Protocols by preference (ALPN), as `h2`; empty: none is negotiated.
    pub alpn: Vec<Vec<u8>>,
    /// Whether a client must show an SVID.
    pub client_auth: ClientAuth,
    /// Let a client show an SVID that has expired, as [`crate::Shown::Lapsed`], or whose time has not come, as
    /// [`crate::Shown::Early`], to ask for the next one with it. Everything but its time must be right, and it has its key.
    pub lapsed: bool,
    /// Send the roots behind the chain, so that a client that has only a join token can check them against its pin.
    pub send_roots: bool,
}

/// Who may answer a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// One of these; the identities of the called service.
    AnyOf(Arc<[SpiffeId]>),
    /// Any workload of the trust domain.
    TrustDomain,
}

impl Expected {
    /// Exactly this one.
    #[must_use]
    pub fn one(id: SpiffeId) -> Self {
        Self::AnyOf([id].into())
    }

    pub(crate) fn check(&self, got: &SpiffeId) -> Result<(), Refusal> {
        match self {
            Self::TrustDomain => Ok(()),
            Self::AnyOf(ids) if ids.contains(got) => Ok(()),
            Self::AnyOf(ids) => {
                let expected = ids.iter().map(SpiffeId::as_str).collect::<Vec<_>>().join(" or ");
                Err(Refusal::UnexpectedIdentity { expected, got: got.clone() })
            }
        }
    }
}

/// SVID and bundle in use. Configurations made from it follow each exchange: a new handshake uses what is new, a
/// connection that exists goes on.
pub struct Identity {
    svid: ArcSwap<Svid>,
    bundle: ArcSwap<Bundle>,
    clock: Arc<dyn Clock>,
}

impl Identity {
    /// Begins with an SVID and the bundle of its trust domain.
    ///
    /// # Errors
    /// [`IdentityError::Mismatch`] when they are of different trust domains.
    pub fn new(svid: Svid, bundle: Bundle, clock: Arc<dyn Clock>) -> Result<Arc<Self>, IdentityError> {
        check_domain(svid.id(), &bundle)?;
        Ok(Arc::new(Self { svid: ArcSwap::from_pointee(svid), bundle: ArcSwap::from_pointee(bundle), clock }))
    }

    /// The SVID in use.
    #[must_use]
    pub fn svid(&self) -> Arc<Svid> {
        self.svid.load_full()
    }

    /// The bundle in use.
    #[must_use]
    pub fn bundle(&self) -> Arc<Bundle> {
        self.bundle.load_full()
    }

    /// Who we are.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        self.svid.load().id().clone()
    }

    /// How long our SVID still lives; zero when it has expired.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.svid.load().not_after().saturating_sub(self.clock.wall())
    }

    /// Takes a renewed SVID.
    ///
    /// # Errors
    /// [`IdentityError::OtherIdentity`] when it is not ours.
    pub fn renew(&self, svid: Svid) -> Result<(), IdentityError> {
        let held = self.id();
        if *svid.id() != held {
            return Err(IdentityError::OtherIdentity { held, offered: svid.id().clone() });
        }
        self.svid.store(Arc::new(svid));
        Ok(())
    }

    /// Takes a newer bundle. Afterwards ask [`Bundle::check_denied`] of the live connections.
    ///
    /// # Errors
    /// [`IdentityError`] when it is of another trust domain or older than the one in use.
    pub fn trust(&self, bundle: Bundle) -> Result<(), IdentityError> {
        check_domain(self.svid.load().id(), &bundle)?;
        let (bundle, mut stale) = (Arc::new(bundle), None);
        self.bundle.rcu(|held| {
            stale = (bundle.sequence() < held.sequence()).then(|| held.sequence());
            if stale.is_some() { held.clone() } else { bundle.clone() }
        });
        match stale {
            None => Ok(()),
            Some(held) => Err(IdentityError::Stale { held, offered: bundle.sequence() }),
        }
    }

    /// Fails closed: with an expired SVID we neither call nor answer.
    ///
    /// # Errors
    /// [`Refusal::OwnSvidExpired`].
    pub fn check_own(&self) -> Result<(), Refusal> {
        let svid = self.svid.load();
        if svid.is_expired(self.clock.wall()) {
            return Err(Refusal::OwnSvidExpired { not_after: svid.not_after() });
        }
        Ok(())
    }

    /// Whether our SVID is in force by our own clock. Before its time we still show it, for it may be our clock that is wrong:
    /// the peer's decides. But whose clock is right is refused everywhere, so that who has such a one is not ready.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        self.svid.load().is_in_force(self.clock.wall())
    }

    /// What a peer has shown, by our clock.
    pub(crate) fn shown(&self, peer: Peer) -> Shown {
        let now = self.clock.wall();
        if now > peer.not_after {
            Shown::Lapsed(peer)
        } else if now < peer.not_before {
            Shown::Early(peer)
        } else {
            Shown::InForce(peer)
        }
    }

    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.check_own().ok().map(|()| self.svid.load().certified())
    }

    /// TLS 1.3 with our SVID and a check of the client's. Nothing is resumed: a session that goes on without its
    /// certificate would outlive a revocation.
    #[must_use]
    pub fn server_config(self: &Arc<Self>, options: ServerOptions) -> Arc<ServerConfig> {
        let verifier =
            ClientVerifier { identity: self.clone(), auth: options.client_auth, lapsed: options.lapsed };
        let resolver = ServerResolver { identity: self.clone(), send_roots: options.send_roots };
        let mut config =
            ServerConfig::builder_with_details(provider(), Arc::new(ClockTime(self.clock.clone())))
                .with_protocol_versions(&[&TLS13])
                .expect("the provider has TLS 1.3 suites")
                .with_client_cert_verifier(Arc::new(verifier))
                .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = options.alpn;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// TLS 1.3 with our SVID; the server must be one of `expected`.
    #[must_use]
    pub fn client_config(self: &Arc<Self>, alpn: Vec<Vec<u8>>, expected: Expected) -> Arc<ClientConfig> {
        self.calling(alpn, expected, ClientResolver { identity: self.clone(), lapsed: false })
    }

    /// The same for asking the authority for the next SVID: ours is shown also when it has expired, which nobody but the
    /// authority takes ([`ServerOptions::lapsed`]).
    #[must_use]
    pub fn renewal_config(self: &Arc<Self>, alpn: Vec<Vec<u8>>, authority: Expected) -> Arc<ClientConfig> {
        self.calling(alpn, authority, ClientResolver { identity: self.clone(), lapsed: true })
    }

    fn calling(
        self: &Arc<Self>,
        alpn: Vec<Vec<u8>>,
        expected: Expected,
        resolver: ClientResolver,
    ) -> Arc<ClientConfig> {
        let verifier = ServerVerifier { identity: self.clone(), expected };
        let mut config =
            ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(self.clock.clone())))
                .with_protocol_versions(&[&TLS13])
                .expect("the provider has TLS 1.3 suites")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = alpn;
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }
}

fn check_domain(id: &SpiffeId, bundle: &Bundle) -> Result<(), IdentityError> {
    if id.trust_domain() == bundle.trust_domain().as_str() {
        return Ok(());
    }
    Err(IdentityError::Mismatch { id: id.clone(), domain: bundle.trust_domain().to_string() })
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("svid", &self.svid.load())
            .field("bundle", &self.bundle.load())
            .finish()
    }
}

#[derive(Debug)]
struct ServerResolver {
    identity: Arc<Identity>,
    send_roots: bool,
}

impl ResolvesServerCert for ServerResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certified = self.identity.certified()?;
        if !self.send_roots {
            return Some(certified);
        }
        let mut chain = certified.cert.clone();
        chain.extend_from_slice(self.identity.bundle.load().roots());
        Some(Arc::new(CertifiedKey::new(chain, certified.key.clone())))
    }
}

#[derive(Debug)]
struct ClientResolver {
    identity: Arc<Identity>,
    /// Whether an expired SVID is shown too.
    lapsed: bool,
}

impl ResolvesClientCert for ClientResolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        if self.lapsed { Some(self.identity.svid.load().certified()) } else { self.identity.certified() }
    }

    fn has_certs(&self) -> bool {
        true
    }
}
