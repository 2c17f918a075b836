//! The mesh's trust anchor: the certificate authority, join tokens, revocation, and the port on which proxies prove
//! who they are.
//!
//! ```text
//! D/control-plane/ca/      root and intermediate ─▶ Authority ─issues─▶ SVIDs (72 h)
//! D/control-plane/store    the root's pin, join tokens (hashed), deny entries, the bundle's sequence, what operators have
//!                          forced, which registry's store was followed
//!
//! 15014  POST /v1/tokens, /v1/identity/deny        operators (api)
//! 15012  TLS, a client certificate is optional     proxies (issue)
//!          without one: POST /v1/identity/join       token ─▶ SVID and bundle
//!          with one:    POST /v1/identity/renew      next SVID of the same identity; alone takes one not in force
//!                       /meshwork.v1.Discovery       the stream; the SPIFFE ID decides what it shows (access)
//!
//! deny entry ─▶ store ─▶ Bundle ─┬─▶ our own handshakes, and live connections closed
//!                                └─▶ pipeline ─▶ Bundle resource ─▶ every proxy does the same
//! ```

mod access;
mod api;
mod deny;
mod followed;
mod forces;
mod issue;
mod revisions;
mod root;
#[cfg(test)]
mod tests;
mod tokens;

pub(crate) use access::is_published_gateway;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use meshwork_api::identity::CONTROL_PLANE;
use meshwork_base::{Clock, Code, Rng, SpiffeId, ThreadRng, TrustDomain};
use meshwork_identity::{
    Action, Authority, AuthorityError, Bundle, ClientAuth, DEFAULT_SVID_TTL, Identity, IdentityError,
    PendingSvid, Pin, Rotation, Svid,
};
use meshwork_messages::v1::BreakerForce;
use meshwork_store::{Store, StoreError, embedded};
use meshwork_telemetry::{MetricsRegistry, inventory};
use meshwork_xds::join::role_of;
use meshwork_xds::server::{Access, Hub};
use meshwork_xds::transport::grpc::DiscoveryService;
use meshwork_xds::transport::mtls::{Connections, Endpoints, identify, serve};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;

pub(crate) use access::MeshAccess;
use deny::Deny;
pub(crate) use followed::{Followed, surely};
use issue::Issuer;
use revisions::Revisions;
use tokens::Tokens;

use crate::Feed;
use crate::codes;
use crate::pipeline::Look;

/// The folder of the authority's keys, and the file of tokens and deny entries, in the data directory.
const CA: &str = "ca";
const STORE: &str = "store.redb";
/// The pipeline's source of the bundle.
pub(crate) const FEED: &str = "trust bundle";
/// How often it is looked at what has to be renewed or forgotten.
const UPKEEP: Duration = Duration::from_mins(1);
/// How long connections may take to end when the control plane does.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long after its end an SVID is still renewed: 30 days.
const DEFAULT_SVID_GRACE: Duration = Duration::from_hours(30 * 24);

/// A platform team's own root.
#[derive(Clone, Debug)]
pub struct RootFiles {
    /// The root's certificate, PEM (`--ca-cert`).
    pub certificate: PathBuf,
    /// Its private key, PEM (`--ca-key`).
    pub key: PathBuf,
}

/// How the mesh's trust is set up.
#[derive(Clone, Debug)]
pub struct Secure {
    /// Where keys, tokens, deny entries, what is forced, the last revision and which store was followed are kept: `D/control-plane`.
    pub data_dir: PathBuf,
    /// For whom SVIDs are issued.
    pub trust_domain: TrustDomain,
    /// Whose root signs; none makes one at the first start.
    pub root: Option<RootFiles>,
    /// Where proxies connect over mTLS: port 15012.
    pub listen: SocketAddr,
    /// How long SVIDs live.
    pub svid_ttl: Duration,
    /// How long after its end an SVID is still renewed for who has its key; zero: never.
    pub svid_grace: Duration,
}

impl Secure {
    /// The design's defaults: trust domain `mesh.local`, a root of its own, 127.0.0.1:15012, SVIDs of 72 hours that are renewed
    /// up to 30 days after their end.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            trust_domain: TrustDomain::new("mesh.local").expect("it is a trust domain"),
            root: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 15012)),
            svid_ttl: DEFAULT_SVID_TTL,
            svid_grace: DEFAULT_SVID_GRACE,
        }
    }
}

/// Why the trust anchor cannot start, or does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A file of the given root.
    #[error("the root's file {} cannot be read: {error}", path.display())]
    RootFile {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The folder of the authority holds no root, or is not there, but there is a mesh already.
    #[error(
        "{} is not there, which holds the root's certificate and its private key, but by {} there is a mesh already; mount or restore {}, or, to begin a new mesh, remove {1} and {1}.seal too",
        folder.join("root.pem").display(), store.display(), folder.display()
    )]
    RootMissing {
        /// The authority's folder.
        folder: PathBuf,
        /// The store that knows of the mesh.
        store: PathBuf,
    },
    /// The root is not the mesh's.
    #[error(
        "the root of {} (or the given one) is {pin}, but by {} that of the mesh is {known}; restore both from one backup, or give an empty data directory to begin a new mesh",
        folder.display(), store.display()
    )]
    OtherRoot {
        /// The authority's folder.
        folder: PathBuf,
        /// The pin of the root that is there.
        pin: Pin,
        /// The pin that the store has.
        known: String,
        /// The store that knows of the mesh.
        store: PathBuf,
    },
    /// Where tokens and deny entries are kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A deny entry that is in force for as long as this process lives, and longer only if the store works again before.
    #[error(
        "the deny entry is in force, but it could not be kept and may end with this process: {0}; ask for it again once the store works"
    )]
    NotKept(StoreError),
    /// A record there is not of this version.
    #[error("the stored {what} cannot be read: {why}; it was written by another version, or is damaged")]
    Record {
        /// Which.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The port.
    #[error(
        "the control plane cannot listen on {address}: {error}; choose another address or stop what listens there"
    )]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// Our own SVID.
    #[error("the control plane's own SVID cannot be made: {0}")]
    Own(String),
    /// Whom we trust.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl TrustError {
    /// Its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Authority(error) => error.code(),
            Self::Store(error) | Self::NotKept(error) => error.code(),
            Self::Identity(error) => error.code(),
            Self::RootFile { .. } | Self::RootMissing { .. } | Self::OtherRoot { .. } => Code::new(6030),
            Self::Record { .. } | Self::Bind { .. } | Self::Own(_) => codes::TRUST_ANCHOR,
        }
    }
}

/// The running trust anchor; shared by cloning, it ends with the last clone.
#[derive(Clone)]
pub struct Trust {
    inner: Arc<Inner>,
}

struct Inner {
    issuer: Arc<Issuer>,
    connections: Connections,
    deny: Arc<Deny>,
    forces: forces::Kept,
    store: Store,
    address: SocketAddr,
    _stop: DropGuard,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("identity", &self.inner.issuer.identity).finish_non_exhaustive()
    }
}

/// A trust anchor that has bound its port and not yet a hub to serve.
pub(crate) struct Opened {
    pub(crate) access: Arc<MeshAccess>,
    trust: Trust,
    listener: TcpListener,
    connections: Connections,
    /// What operators had forced when it ended.
    forces: Vec<BreakerForce>,
    revisions: Revisions,
    /// Hears of each publication.
    published: watch::Sender<u64>,
    stop: CancellationToken,
}

/// Opens keys and store, makes our own SVID, binds the port.
pub(crate) async fn open(
    secure: Secure,
    inside: Arc<dyn Access>,
    clock: Arc<dyn Clock>,
) -> Result<Opened, TrustError> {
    let bind = |error| TrustError::Bind { address: secure.listen, error };
    let listener = TcpListener::bind(secure.listen).map_err(bind)?;
    listener.set_nonblocking(true).map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let store = open_store(&secure, &clock)?;
    let authority = Arc::new(root::open(&secure, &store, &clock).await?);
    let connections = Connections::default();
    let (record, bundle) = deny::load(&store, &authority).await?;
    let identity = Identity::new(own_svid(&authority, secure.svid_ttl)?, bundle, Arc::clone(&clock))?;
    let deny =
        Deny::new(store.clone(), record, Arc::clone(&authority), Arc::clone(&identity), connections.clone());
    let deny = Arc::new(deny);
    let forces = forces::load(&store).await?;
    let tokens = Tokens::new(store.clone(), Arc::clone(&clock));
    let (revisions, published) = revisions::open(store.clone()).await?;
    let kept = forces::Kept::new(store.clone());
    let stop = CancellationToken::new();
    let access = Arc::new(MeshAccess::new(secure.trust_domain, inside));
    let _stop = stop.clone().drop_guard();
    let (svid_ttl, svid_grace) = (secure.svid_ttl, secure.svid_grace);
    let issued = AtomicU64::new(0);
    let issuer = Arc::new(Issuer { authority, identity, tokens, clock, svid_ttl, svid_grace, issued });
    let inner = Inner { issuer, connections: connections.clone(), deny, forces: kept, store, address, _stop };
    let trust = Trust { inner: Arc::new(inner) };
    Ok(Opened { access, trust, listener, connections, forces, revisions, published, stop })
}

fn open_store(secure: &Secure, clock: &Arc<dyn Clock>) -> Result<Store, TrustError> {
    let path = secure.data_dir.join(STORE);
    let options = embedded::Options::new(Arc::clone(clock), Box::new(ThreadRng::new()));
    Ok(embedded::open(&path, options)?)
}

/// The control plane signs for itself: nothing travels, and nothing of it is kept.
fn own_svid(authority: &Authority, ttl: Duration) -> Result<Svid, TrustError> {
    let own = |error: &dyn fmt::Display| TrustError::Own(error.to_string());
    let pending = PendingSvid::generate().map_err(|error| own(&error))?;
    let id = role_of(authority.trust_domain(), CONTROL_PLANE);
    let issued = authority.issue(pending.csr(), &id, ttl)?;
    pending.complete(issued.chain).map_err(|error| own(&error))
}

impl Opened {
    /// What is to see each publication first.
    pub(crate) fn look(&self) -> Look {
        let (access, published) = (Arc::clone(&self.access), self.published.clone());
        Arc::new(move |publication| {
            access.look(publication);
            published.send_replace(publication.revision);
        })
    }

    /// The last revision that may have been published before.
    pub(crate) const fn last_revision(&self) -> u64 {
        self.revisions.before()
    }

    /// Begins to serve proxies.
    pub(crate) fn serve(self, hub: &Hub, feed: Feed) -> Result<Trust, TrustError> {
        let Self { trust, listener, connections, forces, revisions, stop, .. } = self;
        hub.restore_forces(forces);
        tokio::spawn(revisions.run());
        let address = trust.inner.address;
        let listener = tokio::net::TcpListener::from_std(listener)
            .map_err(|error| TrustError::Bind { address, error })?;
        // What is served holds the issuer and not the trust itself, which ends it when it is dropped.
        let discovery = DiscoveryService::new(hub.clone(), identify());
        let endpoints = Endpoints {
            identity: Arc::clone(&trust.inner.issuer.identity),
            client_auth: ClientAuth::Optional,
            routes: Routes::from(issue::router(Arc::clone(&trust.inner.issuer))).add_service(discovery),
            connections: connections.clone(),
            clock: Arc::clone(&trust.inner.issuer.clock),
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            let serving = serve(listener, endpoints, stopped.clone().cancelled_owned());
            let end = async {
                stopped.cancelled().await;
                connections.close_all();
                tokio::time::sleep(FAREWELL).await;
            };
            tokio::select! {
                Err(error) = serving => tracing::error!(%error, "proxies are not served any more"),
                () = end => {}
                else => {}
            }
        });
        tokio::spawn(tell(trust.inner.deny.bundles(), feed));
        tokio::spawn(deny::keep_rest(Arc::downgrade(&trust.inner.deny), trust.failing()));
        tokio::spawn(upkeep(Arc::downgrade(&trust.inner.issuer), ThreadRng::new()));
        tracing::info!(%address, id = %trust.inner.issuer.identity.id(), "proxies are served over mTLS");
        Ok(trust)
    }
}

/// Tells the pipeline each bundle, for as long as there are new ones.
async fn tell(mut bundles: watch::Receiver<Arc<Bundle>>, feed: Feed) {
    loop {
        let message = deny::resource(&bundles.borrow_and_update());
        let told = feed.messages([message].into()).await;
        if told.is_err() || bundles.changed().await.is_err() {
            return;
        }
    }
}

/// Renews our own SVID and the intermediate, forgets tokens that are over, for as long as the trust lives.
async fn upkeep(issuer: Weak<Issuer>, mut rng: impl Rng) {
    let Some(mut rotation) = issuer.upgrade().map(|issuer| {
        let svid = issuer.identity.svid();
        Rotation::new(svid.not_before(), svid.not_after(), &mut rng)
    }) else {
        return;
    };
    loop {
        let Some(held) = issuer.upgrade() else { return };
        let now = held.clock.wall();
        let is_under_another = held.authority.maintain().unwrap_or_else(|error| {
            tracing::error!(%error, "the intermediate certificate is not renewed; trying again");
            false
        });
        if is_under_another {
            tracing::info!("the intermediate certificate is renewed");
        }
        if let Err(error) = held.tokens.sweep().await {
            tracing::warn!(%error, "join tokens that are over are not removed yet");
        }
        let wait = match rotation.action(now) {
            // Ours may be under one that could not be replaced before.
            Action::Wait { until } if !is_under_another => until.saturating_sub(now),
            Action::Wait { .. } | Action::Renew => {
                held.renew_own(&mut rotation, &mut rng);
                Duration::from_secs(1)
            }
        };
        drop(held);
        tokio::time::sleep(wait.min(UPKEEP)).await;
    }
}

impl Issuer {
    fn renew_own(&self, rotation: &mut Rotation, rng: &mut impl Rng) {
        let renewed = own_svid(&self.authority, self.svid_ttl)
            .and_then(|svid| Ok(self.identity.renew(svid)?))
            .map(|()| self.identity.svid());
        match renewed {
            Ok(svid) => rotation.renewed(svid.not_before(), svid.not_after(), rng),
            Err(error) => {
                tracing::error!(%error, "the control plane's own SVID is not renewed; trying again");
                rotation.failed(self.clock.wall(), rng);
            }
        }
    }
}

impl Trust {
    /// Where proxies connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Why nothing is kept now, if so; for readiness.
    #[must_use]
    pub fn failing(&self) -> watch::Receiver<Option<String>> {
        self.inner.store.failing()
    }

    /// Whom the mesh trusts now.
    #[must_use]
    pub fn bundle(&self) -> Arc<Bundle> {
        self.inner.issuer.identity.bundle()
    }

    /// Keeps what operators force, for after a restart.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) async fn keep_forces(&self, hub: &Hub) -> Result<(), TrustError> {
        self.inner.forces.keep(hub).await
    }

    /// Tells how many SVIDs were issued and how long our own still lives, for as long as this lives.
    pub(crate) fn export(&self, metrics: &MetricsRegistry) {
        let issuer = Arc::downgrade(&self.inner.issuer);
        metrics.ask(move |samples| {
            if let Some(issuer) = issuer.upgrade() {
                let issued = issuer.issued.load(Ordering::Relaxed);
                samples.tell(&inventory::CONTROL_PLANE_SVIDS, &[], issued);
                let (id, left) = (issuer.identity.id(), issuer.identity.remaining().as_secs());
                samples.tell(&inventory::SVID_REMAINING, &[id.as_str()], left);
            }
        });
    }

    /// Our own identity.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        self.inner.issuer.identity.id()
    }

    /// The endpoints for operators: tokens and deny entries.
    pub(crate) fn router(&self) -> axum::Router {
        api::router(self.clone())
    }
}
