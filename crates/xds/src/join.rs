//! Joining a mesh: how a process gets its SVID from the control plane, keeps it in its data directory, renews it, and
//! opens streams with it.
//!
//! ```text
//! data directory ─SVID in force──────────────────────────▶ Identity ──▶ connector (mTLS, gRPC)
//!        ├─ one that has expired ─ mTLS ─ POST /v1/identity/renew ─┐ (what is refused there goes on with a token)
//!        │ none, or damaged                                  ▲   │
//!        └─ token ─ pinned TLS ─ POST /v1/identity/join ─────┤   └─ a third of its life ─ POST /v1/identity/renew ─┐
//!             ▲                                              └──────────────────────────────────────────────────┘
//!             └─ a file, or the API of a control plane that lets us (Tokens); asked each time
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meshwork_api::identity::{CONTROL_PLANE, Der, Issued, JoinRequest, RenewRequest, TokenRequest};
use meshwork_api::{Client, ClientError, IdentityClient};
use meshwork_base::clock::rfc3339_millis;
use meshwork_base::{Clock, Namespace, ObjectName, Rng, SpiffeId, TrustDomain};
use meshwork_identity::{
    Action, Bundle, BundleError, CsrError, Expected, Identity, IdentityError, JoinToken, Loaded, PendingSvid,
    Refusal, Rotation, StoreError, Svid, SvidError, SvidStore, TokenError, pinned_client_config,
};
use rustls_pki_types::CertificateDer;

use crate::client::Backoff;
use crate::transport::{Connector, mtls};

/// A wall clock may be set: a wait for it is never longer than this.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// An SVID that begins this soon is waited for, as clocks differ.
const SOON: Duration = Duration::from_mins(5);

/// How long a token that is used at once may be used.
const TOKEN_TTL: Duration = Duration::from_mins(5);

/// Gives a client of the API that makes tokens: anew each time, since where that is may be written down only once it is up.
type Api = Arc<dyn Fn() -> Result<Client, ClientError> + Send + Sync>;

/// Where join tokens come from. They are asked for each time that one is needed, at the first start as after an outage that
/// has outlived the SVID: the one of the first start is used up by then.
#[derive(Clone, Default)]
pub enum Tokens {
    /// From nowhere.
    #[default]
    None,
    /// From a file; who puts another one there is heard.
    File(PathBuf),
    /// From the API of a control plane that lets us, as the one on this machine.
    Made {
        /// Namespace and workload of who joins.
        who: (String, String),
        /// Whom to ask.
        api: Api,
    },
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Made { who, .. } => f.debug_struct("Made").field("who", who).finish_non_exhaustive(),
        }
    }
}

impl Tokens {
    /// Asks the API that this gives, for this namespace and workload.
    #[must_use]
    pub fn made(
        (namespace, workload): (&str, &str),
        api: impl Fn() -> Result<Client, ClientError> + Send + Sync + 'static,
    ) -> Self {
        Self::Made { who: (namespace.to_owned(), workload.to_owned()), api: Arc::new(api) }
    }

    /// One token; none where there is nobody to ask.
    async fn take(&self) -> Result<Option<JoinToken>, JoinError> {
        let text = match self {
            Self::None => return Ok(None),
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|error| JoinError::TokenFile { path: path.clone(), error })?,
            Self::Made { who: (namespace, workload), api } => {
                let request = TokenRequest {
                    namespace: namespace.clone(),
                    workload: workload.clone(),
                    uses: 1,
                    ttl_seconds: TOKEN_TTL.as_secs(),
                };
                let api = IdentityClient(api().map_err(JoinError::NotMade)?);
                api.create_token(&request).await.map_err(JoinError::NotMade)?.token
            }
        };
        Ok(Some(JoinToken::parse(&text)?))
    }
}

/// What all attempts to get one SVID have in common, its request and its token: where only the answer was lost, asking again
/// takes no second use.
struct Asking {
    pending: PendingSvid,
    token: Option<JoinToken>,
}

impl Asking {
    fn new() -> Result<Self, JoinError> {
        Ok(Self { pending: PendingSvid::generate()?, token: None })
    }
}

/// Where an identity comes from.
#[derive(Clone, Debug)]
pub struct Joining {
    /// Where the control plane serves mTLS: `HOST:PORT`.
    pub control_plane: String,
    /// Where the SVID, its key and the bundle are kept.
    pub data_dir: PathBuf,
    /// Where a join token comes from; not asked while an SVID is kept that is in force, or is renewed though it has expired.
    pub tokens: Tokens,
    /// Who we must turn out to be: namespace and workload. None takes whatever the token gives.
    pub expected: Option<(Namespace, ObjectName)>,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// What is kept cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Neither an SVID nor a token.
    #[error(
        "there is no identity in force in {}, and no join token was given; make one with `meshwork token create` and pass it with --token-file",
        data_dir.display()
    )]
    NoToken {
        /// Where an SVID would be kept.
        data_dir: PathBuf,
    },
    /// What is kept is damaged, and no token helps.
    #[error("{kept}; nor could we join again: {join}")]
    Damaged {
        /// What is damaged.
        kept: StoreError,
        /// Why a token does not help.
        join: Box<Self>,
    },
    /// An SVID that is not in force is not renewed, and no token helps.
    #[error(
        "our SVID, which is in force from {} to {}, is not renewed: {renewal}; nor could we join again: {join}",
        rfc3339_millis(*.not_before), rfc3339_millis(*.not_after)
    )]
    Lapsed {
        /// When it begins, since the Unix epoch.
        not_before: Duration,
        /// When it ends, since the Unix epoch.
        not_after: Duration,
        /// Why it is not renewed.
        renewal: Box<Self>,
        /// Why a token does not help.
        join: Box<Self>,
    },
    /// The token's file.
    #[error("token file {} cannot be read: {error}", path.display())]
    TokenFile {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The API that was to make a token.
    #[error("no join token: {0}; make one with `meshwork token create`, and pass it with --token-file")]
    NotMade(ClientError),
    /// The token's form.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No key could be made.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The control plane did not answer, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What it issued is no SVID for our key.
    #[error("the control plane issued what is no SVID: {0}")]
    Svid(#[from] SvidError),
    /// What it issued begins later than what there is.
    #[error(
        "the control plane issued an SVID that is valid from {} only, by our clock; compare the clocks of both machines",
        rfc3339_millis(*.not_before)
    )]
    Early {
        /// When, since the Unix epoch.
        not_before: Duration,
    },
    /// What it sent as bundle is none.
    #[error("the control plane sent what is no bundle: {0}")]
    Bundle(#[from] BundleError),
    /// SVID and bundle do not go together.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The identity is another workload's.
    #[error("the identity {what} is {id}, but this instance is of workload {namespace}/{workload}; {advice}")]
    Other {
        /// Where it came from.
        what: String,
        /// Whose it is.
        id: SpiffeId,
        /// Expected.
        namespace: Namespace,
        /// Expected.
        workload: ObjectName,
        /// What to do.
        advice: &'static str,
    },
}

impl JoinError {
    /// Whether the same may succeed later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Client(error) if is_of_clocks(error) => true,
            Self::Client(error) | Self::NotMade(error) => error.is_temporary(),
            Self::Damaged { join, .. } => join.is_temporary(),
            // A token that is refused stays so, whatever becomes of the renewal; one that is not there says nothing of it.
            Self::Lapsed { renewal, join, .. } => {
                let is_without = matches!(**join, Self::NoToken { .. } | Self::TokenFile { .. });
                join.is_temporary() || (is_without && renewal.is_temporary())
            }
            _ => false,
        }
    }
}

/// Whether it is our clock alone that does not trust the other side: by it, that one's SVID begins only later. Time mends that.
fn is_of_clocks(error: &ClientError) -> bool {
    let ClientError::Untrusted { reason: Some(reason), .. } = error else { return false };
    matches!(reason.downcast_ref(), Some(Refusal::SvidNotYetValid { .. }))
}

/// How the identity of a running process stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether its SVID is in force: expired the process neither calls nor answers with it, and before its time peers refuse it.
    pub in_force: bool,
    /// Why it is not renewed though it is time.
    pub trouble: Option<String>,
}

/// Waits for a control plane that is not there yet, or whose time has not come by our clock: with back-off, and told once.
#[derive(Debug)]
pub struct Waiting {
    backoff: Backoff,
    told: Option<&'static str>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self::new()
    }
}

impl Waiting {
    /// Nothing has failed yet.
    #[must_use]
    pub const fn new() -> Self {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        Self { backoff, told: None }
    }

    /// Waits before the next attempt, since the last one ended so.
    async fn after(&mut self, error: &JoinError, rng: &mut impl Rng) {
        let what = match error {
            JoinError::Client(error) if is_of_clocks(error) => {
                "this machine's clock is behind the control plane's; waiting until it fits: set it, and we go on within seconds"
            }
            _ => "the control plane does not answer yet; waiting for it",
        };
        if self.told.replace(what) == Some(what) {
            tracing::debug!(%error, "{what}");
        } else {
            tracing::warn!(%error, "{what}");
        }
        tokio::time::sleep(self.backoff.next(rng)).await;
    }
}

impl Joining {
    /// The identity that is kept, or one that a token gives. While the control plane is away it is asked again, for as
    /// long as the caller waits.
    ///
    /// # Errors
    /// [`JoinError`] when waiting does not help.
    pub async fn identity(
        &self,
        clock: Arc<dyn Clock>,
        rng: &mut impl Rng,
    ) -> Result<Arc<Identity>, JoinError> {
        let store = SvidStore::new(&self.data_dir);
        let (kept, damaged) = match store.load(clock.wall()) {
            Err(kept) if kept.damaged().is_some() => {
                tracing::warn!(error = %kept, "the identity kept from before is damaged; asking for another one");
                (Loaded::Missing, Some(kept))
            }
            kept => (kept?, None),
        };
        let lapsed = match kept {
            Loaded::Valid(svid, bundle) => {
                let advice = "give each workload a data directory of its own";
                self.check(svid.id(), format!("kept in {}", self.data_dir.display()), advice)?;
                tracing::info!(id = %svid.id(), "identity kept from before");
                return Ok(Identity::new(*svid, *bundle, clock)?);
            }
            Loaded::Expired(svid, bundle) if self.check(svid.id(), String::new(), "").is_ok() => {
                tracing::info!(id = %svid.id(), "the identity kept from before has expired; asking for the next one");
                Some(Identity::new(*svid, *bundle, Arc::clone(&clock))?)
            }
            // That of another workload is no reason to be that one.
            Loaded::Missing | Loaded::Expired(..) => None,
        };
        let (mut asking, mut waiting) = (Asking::new()?, Waiting::new());
        let issued = loop {
            match self.ask(lapsed.as_ref(), &mut asking, &clock).await {
                Ok(issued) => break issued,
                Err(error) if error.is_temporary() => waiting.after(&error, rng).await,
                Err(error) => {
                    return Err(match damaged {
                        // Who finds that out is told first what it comes from.
                        Some(kept) => JoinError::Damaged { kept, join: Box::new(error) },
                        None => error,
                    });
                }
            }
        };
        let Asking { pending, token } = asking;
        let (svid, bundle) = complete(pending, issued)?;
        if let Some(identity) = lapsed.filter(|_| token.is_none()) {
            self.take(&identity, svid, bundle)?;
            tracing::info!(id = %identity.id(), "identity kept from before and renewed");
            return Ok(identity);
        }
        self.check(svid.id(), "that the token gives".to_owned(), "give it a token of its own")?;
        if let Some(path) = damaged.as_ref().and_then(StoreError::damaged) {
            set_aside(path);
        }
        // The bundle first: an SVID without one counts as none, and the token may have been used up.
        store.save_bundle(&bundle)?;
        store.save_svid(&svid)?;
        tracing::info!(id = %svid.id(), "joined");
        Ok(Identity::new(svid, bundle, clock)?)
    }

    fn check(&self, id: &SpiffeId, what: String, advice: &'static str) -> Result<(), JoinError> {
        match &self.expected {
            Some((namespace, workload))
                if (id.namespace(), id.workload()) != (namespace.as_str(), workload.as_str()) =>
            {
                let (namespace, workload) = (namespace.clone(), workload.clone());
                Err(JoinError::Other { what, id: id.clone(), namespace, workload, advice })
            }
            _ => Ok(()),
        }
    }

    /// Asks for an SVID: for the next one, where there is one, and with a token, where there is none or the control plane does
    /// not take it any more.
    async fn ask(
        &self,
        held: Option<&Arc<Identity>>,
        asking: &mut Asking,
        clock: &Arc<dyn Clock>,
    ) -> Result<Issued, JoinError> {
        let Some(identity) = held else { return self.join(asking, clock).await };
        let renewal = match self.ask_next(identity, &asking.pending).await {
            // One whose time has not come is worth no more: who was revoked would be down until it has.
            Err(error) if !identity.is_in_force() => Box::new(error),
            answered => return answered,
        };
        let svid = identity.svid();
        let (not_before, not_after) = (svid.not_before(), svid.not_after());
        let joined = self.join(asking, clock).await;
        joined.map_err(|join| JoinError::Lapsed { not_before, not_after, renewal, join: Box::new(join) })
    }

    async fn ask_next(&self, identity: &Arc<Identity>, pending: &PendingSvid) -> Result<Issued, JoinError> {
        let config = identity.renewal_config(h2(), control_plane_of(identity));
        let client = IdentityClient(Client::tls(&self.url(), config)?);
        Ok(client.renew(&RenewRequest { csr: Der(pending.csr().to_vec()) }).await?)
    }

    /// Joins with a token that was had before, or another one.
    async fn join(&self, asking: &mut Asking, clock: &Arc<dyn Clock>) -> Result<Issued, JoinError> {
        let Asking { pending, token: held } = asking;
        if let Some(token) = &*held {
            match self.join_with(token, pending, clock).await {
                // Its time may have passed while nobody answered.
                Err(error) if !error.is_temporary() && !matches!(error, JoinError::Store(_)) => {}
                joined => return joined,
            }
        }
        // Where what one gives cannot be kept none is made in vain.
        SvidStore::new(&self.data_dir).try_write()?;
        let none = || JoinError::NoToken { data_dir: self.data_dir.clone() };
        let token = held.insert(self.tokens.take().await?.ok_or_else(none)?);
        self.join_with(token, pending, clock).await
    }

    async fn join_with(
        &self,
        token: &JoinToken,
        pending: &PendingSvid,
        clock: &Arc<dyn Clock>,
    ) -> Result<Issued, JoinError> {
        // A token that is used up for what cannot be kept is lost, and the disk may have become full since one began to ask.
        SvidStore::new(&self.data_dir).try_write()?;
        let server = (namespace(CONTROL_PLANE.0), workload(CONTROL_PLANE.1));
        let config = pinned_client_config(token.pin(), server, h2(), Arc::clone(clock));
        let client = IdentityClient(Client::tls(&self.url(), config)?);
        let csr = Der(pending.csr().to_vec());
        Ok(client.join(&JoinRequest { token: token.to_string(), csr }).await?)
    }

    fn url(&self) -> String {
        format!("https://{}", self.control_plane)
    }

    /// Renews the SVID for as long as it is polled, and keeps what is renewed. How it stands is told once a minute at
    /// least, whether it has changed or not.
    pub async fn keep(
        self,
        identity: Arc<Identity>,
        clock: Arc<dyn Clock>,
        mut rng: impl Rng,
        mut told: impl FnMut(&Standing),
    ) {
        let svid = identity.svid();
        let mut rotation = Rotation::new(svid.not_before(), svid.not_after(), &mut rng);
        let (mut trouble, mut later) = (None, None::<(Svid, Bundle)>);
        loop {
            let now = clock.wall();
            told(&Standing { in_force: identity.is_in_force(), trouble: trouble.clone() });
            let held = identity.svid();
            let look = |until| until_next_look(until, (held.not_before(), held.not_after()), now);
            let renewed = match later.take_if(|(next, _)| !is_later(&held, next, now)) {
                Some((next, bundle)) => self.take(&identity, next, bundle).map(|()| None),
                None => {
                    let begins = later.as_ref().map(|(next, _)| next.not_before());
                    if let Action::Wait { until } = meanwhile(begins, rotation.action(now), now) {
                        tokio::time::sleep(look(until)).await;
                        continue;
                    }
                    self.renew(&identity, &clock).await
                }
            };
            let ends = rfc3339_millis(held.not_after());
            match renewed {
                Ok(None) => {
                    let svid = identity.svid();
                    tracing::info!(id = %svid.id(), "SVID renewed");
                    (trouble, later) = (None, None);
                    rotation.renewed(svid.not_before(), svid.not_after(), &mut rng);
                }
                Ok(Some(next)) => {
                    // Of two the one that is in force first.
                    let next = later
                        .take()
                        .filter(|first| first.0.not_before() <= next.0.not_before())
                        .unwrap_or(next);
                    let early = JoinError::Early { not_before: next.0.not_before() };
                    tracing::warn!(%early, "the next SVID takes the place of ours when it begins");
                    trouble = Some(format!("the SVID, which ends at {ends}, is not renewed yet: {early}"));
                    later = Some(next);
                    rotation.failed(clock.wall(), &mut rng);
                }
                Err(error) => {
                    let remaining_seconds = identity.remaining().as_secs();
                    tracing::warn!(%error, remaining_seconds, "SVID not renewed; asking again");
                    trouble = Some(format!("the SVID, which ends at {ends}, is not renewed: {error}"));
                    rotation.failed(clock.wall(), &mut rng);
                }
            }
        }
    }

    /// Has the SVID renewed; gives the next one where it is to be taken only later.
    async fn renew(
        &self,
        identity: &Arc<Identity>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<(Svid, Bundle)>, JoinError> {
        let mut asking = Asking::new()?;
        let issued = self.ask(Some(identity), &mut asking, clock).await?;
        let (svid, bundle) = complete(asking.pending, issued)?;
        if is_later(&identity.svid(), &svid, clock.wall()) {
            return Ok(Some((svid, bundle)));
        }
        self.take(identity, svid, bundle)?;
        Ok(None)
    }

    /// Puts what was issued in the place of what there is, and keeps it.
    fn take(&self, identity: &Identity, svid: Svid, bundle: Bundle) -> Result<(), JoinError> {
        match identity.trust(bundle) {
            // A newer one came over the stream meanwhile.
            Ok(()) | Err(IdentityError::Stale { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // In use before it is kept: it is ours, and a full disk is no reason to go on without.
        identity.renew(svid)?;
        let store = SvidStore::new(&self.data_dir);
        store.save_bundle(&identity.bundle())?;
        store.save_svid(&identity.svid())?;
        Ok(())
    }

    /// Opens streams to the control plane, proven on both sides.
    #[must_use]
    pub fn connector(&self, identity: &Arc<Identity>, clock: Arc<dyn Clock>) -> Connector {
        let expected = control_plane_of(identity);
        mtls::connector(self.control_plane.clone(), Arc::clone(identity), expected, clock)
    }
}

/// Keeps a damaged file for whoever wants to know what has happened to it: its name is needed.
fn set_aside(path: &Path) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    if let Err(error) = std::fs::rename(path, &aside) {
        tracing::warn!(path = %path.display(), %error, "the damaged file is not kept");
    }
}

/// Where a role of the mesh with this well-known identity may be called over mTLS, by whoever has joined.
///
/// # Errors
/// [`ClientError::Unexpected`] when the address is none.
pub fn role_client(
    address: &str,
    identity: &Arc<Identity>,
    role: (&'static str, &'static str),
) -> Result<Client, ClientError> {
    let config = identity.client_config(h2(), Expected::one(role_of(identity.bundle().trust_domain(), role)));
    Client::tls(&format!("https://{address}"), config)
}

/// The SPIFFE ID of a role, from its well-known namespace and workload.
#[must_use]
pub fn role_of(domain: &TrustDomain, role: (&'static str, &'static str)) -> SpiffeId {
    SpiffeId::new(domain, &namespace(role.0), &workload(role.1))
}

fn control_plane_of(identity: &Identity) -> Expected {
    Expected::one(role_of(identity.bundle().trust_domain(), CONTROL_PLANE))
}

fn namespace(text: &'static str) -> Namespace {
    Namespace::new(text).expect("the well-known namespace is a name")
}

fn workload(text: &'static str) -> ObjectName {
    ObjectName::new(text).expect("the well-known workload is a name")
}

/// Whether an SVID begins only later, because the control plane's clock is ahead of ours, and there is one that is good before
/// that: it is kept beside that one until then. Refused, it would be asked for until the held one is over, and be late then.
fn is_later(held: &Svid, next: &Svid, now: Duration) -> bool {
    next.not_before() > now && next.not_before() > held.not_before() && !held.is_expired(now)
}

/// What to do while the next SVID is there, if it is, and begins only then. One that begins soon is waited for. Beside one that
/// is further away others are asked for: the control plane's clock may be right again, and what it issues in force at once.
fn meanwhile(begins: Option<Duration>, action: Action, now: Duration) -> Action {
    match (begins, action) {
        (Some(begins), _) if begins <= now + SOON => Action::Wait { until: begins },
        (Some(begins), Action::Wait { until }) => Action::Wait { until: until.min(begins) },
        (_, action) => action,
    }
}

/// How long it is until an SVID is looked at again. Its begin and its end are told when they come, and not a minute later.
fn until_next_look(
    until: Duration,
    (not_before, not_after): (Duration, Duration),
    now: Duration,
) -> Duration {
    let changes = [not_before, not_after + Duration::from_secs(1)];
    let next = changes.into_iter().filter(|change| *change > now).fold(until, Duration::min);
    next.saturating_sub(now).min(LONGEST_WAIT)
}

fn h2() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec()]
}

fn complete(pending: PendingSvid, issued: Issued) -> Result<(Svid, Bundle), JoinError> {
    let chain = issued.chain.into_iter().map(|der| CertificateDer::from(der.0)).collect();
    Ok((pending.complete(chain)?, Bundle::from_json(&issued.bundle.to_string())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> JoinError {
        let server = "127.0.0.1:15012".to_owned();
        JoinError::Client(ClientError::Unreachable { server, cause: "connection refused".to_owned() })
    }

    fn refused() -> JoinError {
        let server = "127.0.0.1:15012".to_owned();
        JoinError::Client(ClientError::Untrusted { server, cause: "another root".to_owned(), reason: None })
    }

    fn no_token() -> JoinError {
        JoinError::NoToken { data_dir: PathBuf::new() }
    }

    #[test]
    fn who_is_away_is_waited_for_and_a_refusal_is_final() {
        assert!(away().is_temporary() && !refused().is_temporary() && !no_token().is_temporary());
        let JoinError::Client(unreachable) = away() else { unreachable!("it is of a client") };
        assert!(JoinError::NotMade(unreachable).is_temporary(), "the API may come too");
        let lapsed = |renewal, join| {
            let (renewal, join) = (Box::new(renewal), Box::new(join));
            JoinError::Lapsed { not_before: Duration::ZERO, not_after: Duration::ZERO, renewal, join }
                .is_temporary()
        };
        assert!(lapsed(refused(), away()), "a token may help");
        assert!(lapsed(away(), no_token()), "without a token the renewal may");
        assert!(!lapsed(refused(), no_token()));
        assert!(!lapsed(away(), refused()), "a token that is refused stays so");
    }

    #[test]
    fn an_svid_is_looked_at_when_it_is_time_when_it_ends_and_once_a_minute() {
        let next = |until, not_after, now| {
            let of = |seconds| Duration::from_secs(seconds);
            until_next_look(of(until), (of(90), of(not_after)), of(now)).as_secs()
        };
        assert_eq!(next(130, 500, 100), 30, "it is to be renewed then");
        assert_eq!(next(5_000, 5_000, 100), 60, "a clock may be set");
        assert_eq!(next(150, 119, 100), 20, "it is over a second after its last one");
        assert_eq!(next(150, 80, 100), 50, "that it is over has been told");
        assert_eq!(next(90, 500, 100), 0);
        assert_eq!(next(5_000, 5_000, 80), 10, "its time comes then");
    }

    #[test]
    fn one_that_begins_soon_is_waited_for_and_beside_one_that_is_far_away_others_are_asked_for() {
        let of = |seconds| Duration::from_secs(seconds);
        let wait = |until| Action::Wait { until: of(until) };
        let next = |begins: Option<u64>, action| meanwhile(begins.map(of), action, of(1_000));
        assert_eq!(next(None, Action::Renew), Action::Renew);
        assert_eq!(next(None, wait(1_500)), wait(1_500));
        assert_eq!(next(Some(1_300), Action::Renew), wait(1_300));
        assert_eq!(next(Some(1_301), Action::Renew), Action::Renew);
        assert_eq!(next(Some(1_301), wait(1_100)), wait(1_100), "a pause lies between two questions");
        assert_eq!(next(Some(1_301), wait(2_000)), wait(1_301), "its time comes before that");
    }

    #[test]
    fn an_identity_is_somebody_s_by_namespace_and_workload() {
        let of = |namespace, workload| Joining {
            control_plane: String::new(),
            data_dir: PathBuf::new(),
            tokens: Tokens::None,
            expected: Some((Namespace::new(namespace).unwrap(), ObjectName::new(workload).unwrap())),
        };
        let id = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/web").unwrap();
        let is_ours = |joining: Joining| joining.check(&id, String::new(), "").is_ok();
        assert!(is_ours(of("shop", "web")));
        assert!(!is_ours(of("shop", "api")) && !is_ours(of("test", "web")));
        assert!(is_ours(Joining { expected: None, ..of("shop", "api") }), "whatever the token gives");
    }
}
