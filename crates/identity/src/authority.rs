//! The certificate authority: a root that is used once in a while and an intermediate that signs SVIDs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use meshwork_base::clock::rfc3339_millis;
use meshwork_base::{Clock, Code, SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::GeneralName;

use crate::csr::{CsrError, public_key};
use crate::files::{pem, read_secret, write_secret};
use crate::token::Pin;
use crate::verify::{parse, signed_by, unix};

/// How long an SVID lives unless asked otherwise: 72 hours.
pub const DEFAULT_SVID_TTL: Duration = Duration::from_hours(72);
/// How long the intermediate lives: half a year; it is renewed when a third remains.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_hours(180 * 24);
/// How long a root of ours lives: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_hours(3650 * 24);
/// How far certificates are dated back, for peers whose clocks are behind: one minute.
pub const BACKDATE: Duration = Duration::from_mins(1);

/// The serial number of an SVID is this many bytes: one that says so, the sequence of the bundle it was issued under
/// ([`Authority::issues_under`]), and chance. Older versions had shorter ones, whose first byte was another one.
pub(crate) const SERIAL: usize = 20;
/// What its first byte says.
pub(crate) const SERIAL_MARK: u8 = 0x20;
/// What in its first byte is chance.
pub(crate) const SERIAL_NOISE: u8 = 0x1f;

const ROOT_FILE: &str = "root.pem";
const INTERMEDIATE_FILE: &str = "intermediate.pem";
const GIVEN: &str = "the given root";

/// Why the authority cannot be opened or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The disk.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// A link to what is away, as a volume that is not mounted.
    #[error("{} is a link that leads nowhere; mount or restore what it leads to", path.display())]
    Dangling {
        /// The link.
        path: PathBuf,
    },
    /// A file or a given root does not parse.
    #[error("{what} cannot be read: {why}; expected a PEM certificate with its PEM private key")]
    Malformed {
        /// Which.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A root that is none.
    #[error("{what} is no usable root: {why}")]
    Unusable {
        /// Which.
        what: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The folder holds the authority of another mesh, or another root.
    #[error("{} already holds an authority for {found}; give another folder, or remove it to begin a new mesh", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// An identity of another trust domain was asked for.
    #[error("this authority signs for trust domain {expected}, not for {id}")]
    ForeignIdentity {
        /// Ours.
        expected: TrustDomain,
        /// Asked for.
        id: SpiffeId,
    },
    /// The request is bad.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The intermediate's time is over.
    #[error("the intermediate certificate expired at {}; renew it with the root's key", rfc3339_millis(*.not_after))]
    Expired {
        /// When, since the Unix epoch.
        not_after: Duration,
    },
    /// The intermediate was made when the clock ran ahead, and no other one could be made since.
    #[error(
        "the intermediate certificate begins only at {}, by this machine's clock, and nobody would take what it signs; it is made anew once the authority's folder can be written",
        rfc3339_millis(*.not_before)
    )]
    NotYet {
        /// When, since the Unix epoch.
        not_before: Duration,
    },
    /// The cryptography library failed.
    #[error("signing failed: {0}")]
    Sign(String),
}

impl AuthorityError {
    /// Its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Csr(error) => error.code(),
            Self::Io { .. } | Self::Dangling { .. } | Self::Malformed { .. } | Self::Occupied { .. } => {
                Code::new(6030)
            }
            Self::Unusable { .. } => Code::new(6031),
            Self::ForeignIdentity { .. } | Self::Sign(_) => Code::new(6032),
            Self::Expired { .. } | Self::NotYet { .. } => Code::new(6033),
        }
    }
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Sign(error.to_string())
    }
}

/// A certificate that signs others, with its key.
struct Signer {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_before: Duration,
    not_after: Duration,
    pin: Pin,
}

/// What the authority answers to a signing request.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf and intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// Since the Unix epoch.
    pub not_before: Duration,
    /// Since the Unix epoch.
    pub not_after: Duration,
}

/// Signs SVIDs for one trust domain. Keys lie in one folder, mode 0600.
pub struct Authority {
    trust_domain: TrustDomain,
    folder: PathBuf,
    root: Signer,
    intermediate: ArcSwap<Signer>,
    /// The sequence of the bundle in force.
    under: AtomicU64,
    clock: Arc<dyn Clock>,
}

impl Authority {
    /// The pin of the root in a folder, if there is one.
    ///
    /// # Errors
    /// [`AuthorityError`] when it cannot be read; also when it is a link that leads nowhere, which is not the same as none.
    pub fn kept(folder: &Path) -> Result<Option<Pin>, AuthorityError> {
        let path = folder.join(ROOT_FILE);
        let Some(text) = read(&path)? else { return Ok(None) };
        Ok(Some(Signer::from_pem(&text, &path.display().to_string())?.pin))
    }

    /// The pin of a platform team's own root.
    ///
    /// # Errors
    /// [`AuthorityError`] when it does not parse.
    pub fn pin_of(root_pem: &str) -> Result<Pin, AuthorityError> {
        Ok(Signer::from_pem(root_pem, GIVEN)?.pin)
    }

    /// Opens the authority in a folder, or begins a new one with a root of its own.
    ///
    /// # Errors
    /// [`AuthorityError`], also when the folder belongs to another trust domain.
    pub fn open_or_create(
        folder: &Path,
        trust_domain: &TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        if let Some(this) = Self::open(folder, trust_domain, Arc::clone(&clock))? {
            return Ok(this);
        }
        let root = new_root(trust_domain, clock.wall())?;
        root.save(&folder.join(ROOT_FILE))?;
        Self::with_root(folder, trust_domain, root, clock)
    }

    /// Opens the authority in a folder; none is there where that holds no root.
    ///
    /// # Errors
    /// [`AuthorityError`], also when the folder belongs to another trust domain.
    pub fn open(
        folder: &Path,
        trust_domain: &TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Self>, AuthorityError> {
        let path = folder.join(ROOT_FILE);
        let Some(text) = read(&path)? else { return Ok(None) };
        let root = Signer::from_pem(&text, &path.display().to_string())?;
        Self::with_root(folder, trust_domain, root, clock).map(Some)
    }

    /// Begins an authority under a platform team's own root: a PEM certificate and its PEM private key, in any order.
    /// Opening it again with the same root is fine.
    ///
    /// # Errors
    /// [`AuthorityError::Unusable`] says what the root lacks; [`AuthorityError::Occupied`] when the folder holds
    /// another one.
    pub fn import(
        folder: &Path,
        trust_domain: &TrustDomain,
        root_pem: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        let root = Signer::from_pem(root_pem, GIVEN)?;
        root.check_is_root(GIVEN, clock.wall())?;
        let path = folder.join(ROOT_FILE);
        match read(&path)? {
            None => {
                root.check_has_begun(GIVEN, clock.wall())?;
                root.save(&path)?;
            }
            Some(text) => {
                let held = Signer::from_pem(&text, &path.display().to_string())?;
                if held.certificate != root.certificate {
                    let found = format!("another root ({})", held.pin);
                    return Err(AuthorityError::Occupied { path: folder.to_owned(), found });
                }
            }
        }
        Self::with_root(folder, trust_domain, root, clock)
    }

    fn with_root(
        folder: &Path,
        trust_domain: &TrustDomain,
        root: Signer,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        let what = folder.join(ROOT_FILE).display().to_string();
        root.check_is_root(&what, clock.wall())?;
        // It was made when the clock ran ahead. Whoever trusts it does not look at its dates, and no other one takes its place.
        if let Err(error) = root.check_has_begun(&what, clock.wall()) {
            tracing::warn!(%error, "the mesh goes on under a root that begins later");
        }
        let path = folder.join(INTERMEDIATE_FILE);
        let intermediate = match read(&path)? {
            Some(text) => {
                let held = Signer::from_pem(&text, &path.display().to_string())?;
                let found = trust_domain_of(&held.certificate);
                if found.as_deref() != Some(trust_domain.as_str()) {
                    let found = format!("trust domain {}", found.as_deref().unwrap_or("(none)"));
                    return Err(AuthorityError::Occupied { path: folder.to_owned(), found });
                }
                match vouches(&root, &held, trust_domain, clock.wall()) {
                    Ok(()) => held,
                    // Under it nobody would be believed.
                    Err(why) => {
                        tracing::warn!(path = %path.display(), %why, "the root does not vouch for the intermediate certificate; making a new one");
                        new_intermediate(&root, trust_domain, &path, clock.wall())?
                    }
                }
            }
            None => new_intermediate(&root, trust_domain, &path, clock.wall())?,
        };
        let folder = folder.to_owned();
        let this = Self {
            trust_domain: trust_domain.clone(),
            folder,
            root,
            intermediate: ArcSwap::from_pointee(intermediate),
            under: AtomicU64::new(0),
            clock,
        };
        this.maintain()?;
        Ok(this)
    }

    /// Renews the intermediate when less than a third of its life remains, or its time has not come (it was made when the clock
    /// ran ahead); says whether it did. Call it daily, and when the clock was set.
    ///
    /// # Errors
    /// [`AuthorityError`] when signing or the disk fails.
    pub fn maintain(&self) -> Result<bool, AuthorityError> {
        let now = self.clock.wall();
        let held = self.intermediate.load();
        if held.not_before <= now && held.not_after > now + INTERMEDIATE_LIFETIME / 3 {
            return Ok(false);
        }
        if self.root.not_after <= now {
            return Err(AuthorityError::Expired { not_after: self.root.not_after });
        }
        let renewed =
            new_intermediate(&self.root, &self.trust_domain, &self.folder.join(INTERMEDIATE_FILE), now)?;
        self.intermediate.store(Arc::new(renewed));
        Ok(true)
    }

    /// The trust domain it signs for.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificate: what the bundle holds.
    #[must_use]
    pub const fn root(&self) -> &CertificateDer<'static> {
        &self.root.certificate
    }

    /// The hash of the root's key: what join tokens carry.
    #[must_use]
    pub const fn pin(&self) -> Pin {
        self.root.pin
    }

    /// What is issued from now on is issued under the bundle of this sequence, and its serial number says so: whether a deny
    /// entry was there before is known then, wherever clocks have been. To be called when that bundle is in force.
    pub fn issues_under(&self, sequence: u64) {
        self.under.fetch_max(sequence, Ordering::AcqRel);
    }

    /// Signs an SVID: the key is the request's, everything else is decided here. It lives for `ttl`, but not longer
    /// than the intermediate.
    ///
    /// # Errors
    /// [`AuthorityError`] when the request is bad, the identity is of another trust domain, or the intermediate is not in force.
    pub fn issue(&self, csr: &[u8], id: &SpiffeId, ttl: Duration) -> Result<Issued, AuthorityError> {
        if id.trust_domain() != self.trust_domain.as_str() {
            return Err(AuthorityError::ForeignIdentity {
                expected: self.trust_domain.clone(),
                id: id.clone(),
            });
        }
        let key = public_key(csr)?;
        let signer = self.intermediate.load_full();
        let now = self.clock.wall();
        if signer.not_after <= now {
            return Err(AuthorityError::Expired { not_after: signer.not_after });
        }
        if signer.not_before > now {
            return Err(AuthorityError::NotYet { not_before: signer.not_before });
        }
        let (not_before, not_after) = (now.saturating_sub(BACKDATE), (now + ttl).min(signer.not_after));
        let mut params = base_params("Meshwork workload", not_before, not_after)?;
        params.serial_number = Some(svid_serial(self.under.load(Ordering::Acquire))?);
        params.subject_alt_names = vec![uri(id.as_str())?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &signer.issuer)?;
        Ok(Issued { chain: vec![leaf.der().clone(), signer.certificate.clone()], not_before, not_after })
    }
}

fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    let text = read_secret(path).map_err(|error| AuthorityError::Io { path: path.to_owned(), error })?;
    if text.is_none() {
        refuse_dangling(path)?;
    }
    Ok(text)
}

/// What a link leads to that leads nowhere is away, and not missing: nothing is begun in its place.
fn refuse_dangling(path: &Path) -> Result<(), AuthorityError> {
    let leads_nowhere =
        |place: &&Path| place.symlink_metadata().is_ok_and(|found| found.is_symlink()) && !place.exists();
    match [Some(path), path.parent()].into_iter().flatten().find(leads_nowhere) {
        Some(link) => Err(AuthorityError::Dangling { path: link.to_owned() }),
        None => Ok(()),
    }
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(text.try_into()?))
}

/// What all our certificates have in common.
fn base_params(name: &str, from: Duration, to: Duration) -> Result<CertificateParams, AuthorityError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Meshwork");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = epoch + Duration::from_secs(from.as_secs());
    params.not_after = epoch + Duration::from_secs(to.as_secs());
    params.use_authority_key_identifier_extension = true;
    let mut serial = [0u8; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| AuthorityError::Sign("no randomness".to_owned()))?;
    // Positive, and never shorter: RFC 5280 section 4.1.2.2.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn svid_serial(under: u64) -> Result<SerialNumber, AuthorityError> {
    let mut serial = [0u8; SERIAL];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| AuthorityError::Sign("no randomness".to_owned()))?;
    serial[0] = serial[0] & SERIAL_NOISE | SERIAL_MARK;
    serial[1..9].copy_from_slice(&under.to_be_bytes());
    Ok(SerialNumber::from_slice(&serial))
}

fn ca_params(
    name: &str,
    trust_domain: &TrustDomain,
    path_len: u8,
    from: Duration,
    to: Duration,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = base_params(name, from, to)?;
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn new_root(trust_domain: &TrustDomain, now: Duration) -> Result<Signer, AuthorityError> {
    let key = KeyPair::generate()?;
    let (from, to) = (now.saturating_sub(BACKDATE), now + ROOT_LIFETIME);
    let params = ca_params(&format!("{trust_domain} root"), trust_domain, 1, from, to)?;
    let certificate = params.self_signed(&key)?.der().clone();
    Signer::new(certificate, key, "the new root")
}

fn new_intermediate(
    root: &Signer,
    trust_domain: &TrustDomain,
    path: &Path,
    now: Duration,
) -> Result<Signer, AuthorityError> {
    let key = KeyPair::generate()?;
    let (from, to) = (now.saturating_sub(BACKDATE), (now + INTERMEDIATE_LIFETIME).min(root.not_after));
    let params = ca_params(&format!("{trust_domain} intermediate"), trust_domain, 0, from, to)?;
    let certificate = params.signed_by(&key, &root.issuer)?.der().clone();
    let signer = Signer::new(certificate, key, "the new intermediate")?;
    // A root made elsewhere may have a name or constraints that our chain does not satisfy: better now than later.
    vouches(root, &signer, trust_domain, now)
        .map_err(|why| AuthorityError::Unusable { what: "the root".to_owned(), why })?;
    signer.save(path)?;
    Ok(signer)
}

/// Signs a throw-away leaf and verifies it up to the root.
fn vouches(root: &Signer, signer: &Signer, trust_domain: &TrustDomain, now: Duration) -> Result<(), String> {
    let mut anchors = rustls::RootCertStore::empty();
    anchors.add(root.certificate.clone()).map_err(|error| error.to_string())?;
    let text = |error: AuthorityError| error.to_string();
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut params = base_params("probe", now.saturating_sub(BACKDATE), now + BACKDATE).map_err(text)?;
    params.subject_alt_names =
        vec![uri(&format!("spiffe://{trust_domain}/ns/probe/sa/probe")).map_err(text)?];
    let leaf = params.signed_by(&key, &signer.issuer).map_err(|error| error.to_string())?;
    signed_by(
        &anchors,
        leaf.der(),
        std::slice::from_ref(&signer.certificate),
        UnixTime::since_unix_epoch(now),
    )
    .map_err(|error| format!("a certificate issued under it does not verify: {error}"))
}

/// The trust domain that an intermediate of ours is for.
fn trust_domain_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = parse(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://").map(str::to_owned),
        _ => None,
    })
}

impl Signer {
    fn new(certificate: CertificateDer<'static>, key: KeyPair, what: &str) -> Result<Self, AuthorityError> {
        let malformed = |why: String| AuthorityError::Malformed { what: what.to_owned(), why };
        let (not_before, not_after) = {
            let parsed = parse(&certificate).map_err(|error| malformed(error.to_string()))?;
            if *parsed.public_key().subject_public_key.data != *key.der_bytes() {
                let why = "its private key belongs to another certificate".to_owned();
                return Err(AuthorityError::Unusable { what: what.to_owned(), why });
            }
            let validity = parsed.validity();
            (unix(validity.not_before.timestamp()), unix(validity.not_after.timestamp()))
        };
        let pin = Pin::of(&certificate).map_err(|error| malformed(error.to_string()))?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|error| malformed(error.to_string()))?;
        Ok(Self { certificate, issuer, not_before, not_after, pin })
    }

    fn from_pem(text: &str, what: &str) -> Result<Self, AuthorityError> {
        let malformed = |why: String| AuthorityError::Malformed { what: what.to_owned(), why };
        let bytes = text.as_bytes();
        let certificate = CertificateDer::from_pem_slice(bytes)
            .map_err(|error| malformed(format!("its certificate: {error}")))?;
        let no_key = |error: &dyn std::fmt::Display| malformed(format!("its private key: {error}"));
        let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| no_key(&error))?;
        let key = KeyPair::try_from(&key).map_err(|error| no_key(&error))?;
        Self::new(certificate, key, what)
    }

    fn save(&self, path: &Path) -> Result<(), AuthorityError> {
        let text =
            pem("PRIVATE KEY", self.issuer.key().serialized_der()) + &pem("CERTIFICATE", &self.certificate);
        refuse_dangling(path)?;
        // A link stays one: what it leads to is replaced.
        let target = match std::fs::canonicalize(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path.to_owned()),
            found => found,
        };
        target
            .and_then(|target| write_secret(&target, text.as_bytes()))
            .map_err(|error| AuthorityError::Io { path: path.to_owned(), error })
    }

    fn check_is_root(&self, what: &str, now: Duration) -> Result<(), AuthorityError> {
        let unusable =
            |why: &str| Err(AuthorityError::Unusable { what: what.to_owned(), why: why.to_owned() });
        let malformed = |why: String| AuthorityError::Malformed { what: what.to_owned(), why };
        let parsed = parse(&self.certificate).map_err(|error| malformed(error.to_string()))?;
        let constraints = parsed.basic_constraints().map_err(|error| malformed(error.to_string()))?;
        let Some(constraints) = constraints.filter(|found| found.value.ca) else {
            return unusable("it is not marked as a certificate authority (basicConstraints CA:TRUE)");
        };
        if constraints.value.path_len_constraint == Some(0) {
            return unusable(
                "its path length is 0, but an intermediate stands between it and the workloads; give 1 or more",
            );
        }
        let usage = parsed.key_usage().map_err(|error| malformed(error.to_string()))?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return unusable("its key usage does not allow to sign certificates (keyCertSign)");
        }
        let extended = parsed.extended_key_usage().map_err(|error| malformed(error.to_string()))?;
        if extended
            .is_some_and(|found| !(found.value.any || found.value.server_auth && found.value.client_auth))
        {
            return unusable("its extended key usage does not allow TLS servers and clients; leave it out");
        }
        if self.not_after <= now {
            return unusable("it has expired; make a new one");
        }
        Ok(())
    }

    fn check_has_begun(&self, what: &str, now: Duration) -> Result<(), AuthorityError> {
        if self.not_before <= now {
            return Ok(());
        }
        let begins = rfc3339_millis(self.not_before);
        let why = format!("it is not valid yet, but from {begins} on; compare the machine's clock");
        Err(AuthorityError::Unusable { what: what.to_owned(), why })
    }
}
