//! What is issued, from what, and what is refused.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{HOUR, Mesh};
use meshwork_base::{Clock, ManualClock, SpiffeId, TrustDomain};
use meshwork_identity::{
    Authority, AuthorityError, BACKDATE, DEFAULT_SVID_TTL, INTERMEDIATE_LIFETIME, Peer, PendingSvid, Pin,
    ROOT_LIFETIME,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use x509_parser::prelude::*;

const DAY: Duration = Duration::from_hours(24);

#[test]
fn an_svid_has_the_profile_of_the_standard() {
    let mesh = Mesh::new("mesh.local");
    let pending = PendingSvid::generate().unwrap();
    let issued = mesh.authority.issue(pending.csr(), &mesh.id("web"), DEFAULT_SVID_TTL).unwrap();
    assert_eq!(issued.chain.len(), 2, "leaf and intermediate; the root is the bundle's");
    let now = mesh.clock.wall();
    assert_eq!((issued.not_before, issued.not_after), (now - BACKDATE, now + HOUR * 72));

    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert!(matches!(names[..], [GeneralName::URI("spiffe://mesh.local/ns/shop/sa/web")]), "{names:?}");
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(
        usage.critical && usage.value.digital_signature() && usage.value.flags == 1,
        "only digitalSignature"
    );
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(leaf.version(), X509Version::V3);
    assert!(leaf.raw_serial().len() >= 16);

    let (_, intermediate) = X509Certificate::from_der(&issued.chain[1]).unwrap();
    let constraints = intermediate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0));
    leaf.verify_signature(Some(intermediate.public_key())).unwrap();
    let (_, root) = X509Certificate::from_der(mesh.authority.root()).unwrap();
    intermediate.verify_signature(Some(root.public_key())).unwrap();
    assert_ne!(Peer::read(&issued.chain[0]).unwrap().serial, mesh.svid("web").as_peer().serial);
}

#[test]
fn a_request_decides_nothing_but_its_key() {
    let mesh = Mesh::new("mesh.local");
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["admin.mesh".to_owned()]).unwrap();
    greedy
        .subject_alt_names
        .push(rcgen::SanType::URI("spiffe://mesh.local/ns/shop/sa/admin".try_into().unwrap()));
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let csr = greedy.serialize_request(&key).unwrap();
    let issued = mesh.authority.issue(csr.der(), &mesh.id("web"), HOUR).unwrap();
    assert_eq!(Peer::read(&issued.chain[0]).unwrap().id, mesh.id("web"));
}

#[test]
fn bad_requests_are_refused() {
    let mesh = Mesh::new("mesh.local");
    let issue = |csr: &[u8]| mesh.authority.issue(csr, &mesh.id("web"), HOUR).unwrap_err().to_string();
    let good = PendingSvid::generate().unwrap().csr().to_vec();

    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(issue(&forged).contains("signature"), "{}", issue(&forged));
    // The key of another request in this one: its sender does not have that key.
    let other = PendingSvid::generate().unwrap().csr().to_vec();
    let (_, parsed) = X509CertificationRequest::from_der(&good).unwrap();
    let (_, theirs) = X509CertificationRequest::from_der(&other).unwrap();
    let (mine, their) = (
        &*parsed.certification_request_info.subject_pki.subject_public_key.data,
        &*theirs.certification_request_info.subject_pki.subject_public_key.data,
    );
    let at = good.windows(mine.len()).position(|window| window == mine).unwrap();
    let mut stolen = good.clone();
    stolen[at..at + their.len()].copy_from_slice(their);
    assert!(issue(&stolen).contains("signature"));

    for at in 0..good.len() {
        assert!(mesh.authority.issue(&good[..at], &mesh.id("web"), HOUR).is_err(), "cut at {at}");
    }
    assert!(issue(&[&good[..], b"x"].concat()).contains("bytes follow"));
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let csr = CertificateParams::default().serialize_request(&ed25519).unwrap();
    assert!(issue(csr.der()).contains("P-256"));

    let foreign = SpiffeId::parse("spiffe://other.local/ns/shop/sa/web").unwrap();
    let error = mesh.authority.issue(&good, &foreign, HOUR).unwrap_err();
    assert!(matches!(error, AuthorityError::ForeignIdentity { .. }), "{error}");
}

#[test]
fn keys_lie_in_files_that_only_the_owner_reads_and_are_used_again() {
    let mesh = Mesh::new("mesh.local");
    for entry in std::fs::read_dir(mesh.folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    let domain = mesh.authority.trust_domain().clone();
    let clock = Arc::new(mesh.clock.clone());
    let again = Authority::open_or_create(mesh.folder.path(), &domain, clock.clone()).unwrap();
    assert_eq!((again.root(), again.pin()), (mesh.authority.root(), mesh.authority.pin()));

    let other = TrustDomain::new("other.local").unwrap();
    let error = Authority::open_or_create(mesh.folder.path(), &other, clock.clone()).err().unwrap();
    assert!(matches!(error, AuthorityError::Occupied { .. }), "{error}");

    let root = mesh.folder.path().join("root.pem");
    let text = std::fs::read_to_string(&root).unwrap();
    std::fs::write(&root, &text[..text.len() / 2]).unwrap();
    assert!(
        Authority::open_or_create(mesh.folder.path(), &domain, clock).is_err(),
        "damage is not replaced by a new root"
    );
}

#[test]
fn the_intermediate_is_renewed_in_time_and_what_it_signed_stays_good() {
    let mesh = Mesh::new("mesh.local");
    assert!(!mesh.authority.maintain().unwrap());
    mesh.clock.advance(INTERMEDIATE_LIFETIME * 2 / 3 - DAY);
    let before = mesh.svid("web");
    assert!(!mesh.authority.maintain().unwrap());
    mesh.clock.advance(DAY * 2);
    assert!(mesh.authority.maintain().unwrap());
    let after = mesh.svid("web");
    assert_ne!(before.chain()[1], after.chain()[1]);
    // Both chains end in the same root.
    for svid in [before, after] {
        let (_, intermediate) = X509Certificate::from_der(&svid.chain()[1]).unwrap();
        let (_, root) = X509Certificate::from_der(mesh.authority.root()).unwrap();
        intermediate.verify_signature(Some(root.public_key())).unwrap();
    }
}

#[test]
fn an_intermediate_whose_time_has_not_come_is_made_anew() {
    let mesh = Mesh::new("mesh.local");
    mesh.clock.advance(INTERMEDIATE_LIFETIME);
    assert!(mesh.authority.maintain().unwrap(), "made while the clock runs ahead");
    mesh.clock.set_back(INTERMEDIATE_LIFETIME);
    assert!(mesh.authority.maintain().unwrap());
    assert!(!mesh.authority.maintain().unwrap());
    let svid = mesh.svid("web");
    let (_, intermediate) = X509Certificate::from_der(&svid.chain()[1]).unwrap();
    let begins = u64::try_from(intermediate.validity().not_before.timestamp()).unwrap();
    assert!(Duration::from_secs(begins) <= mesh.clock.wall());
}

#[test]
fn nothing_outlives_its_issuer() {
    let mesh = Mesh::new("mesh.local");
    mesh.clock.advance(ROOT_LIFETIME - DAY);
    assert!(mesh.authority.maintain().unwrap());
    let pending = PendingSvid::generate().unwrap();
    let issued = mesh.authority.issue(pending.csr(), &mesh.id("web"), DEFAULT_SVID_TTL).unwrap();
    assert_eq!(issued.not_after - mesh.clock.wall(), DAY, "the root's last day, not 72 hours");
    mesh.clock.advance(DAY);
    let error = mesh.authority.issue(pending.csr(), &mesh.id("web"), HOUR).unwrap_err();
    assert!(matches!(error, AuthorityError::Expired { .. }), "{error}");
}

#[test]
fn a_link_that_leads_nowhere_is_an_error_and_stays_one_that_leads_somewhere() {
    let mesh = Mesh::new("mesh.local");
    let domain = mesh.authority.trust_domain().clone();
    let elsewhere = tempfile::tempdir().unwrap();
    let open = |folder: &Path| {
        Authority::open_or_create(folder, &domain, Arc::new(mesh.clock.clone())).map(|opened| opened.pin())
    };
    for file in ["root.pem", "intermediate.pem"] {
        let (link, volume) = (mesh.folder.path().join(file), elsewhere.path().join(file));
        std::fs::rename(&link, elsewhere.path().join("away")).unwrap();
        std::os::unix::fs::symlink(&volume, &link).unwrap();
        let error = open(mesh.folder.path()).unwrap_err();
        assert!(matches!(&error, AuthorityError::Dangling { path } if *path == link), "{error}");
        assert!(!volume.exists() && link.is_symlink(), "nothing is put in its place");
        std::fs::rename(elsewhere.path().join("away"), &volume).unwrap();
        assert_eq!(open(mesh.folder.path()).unwrap(), mesh.authority.pin());
    }
    // The folder itself.
    let folder = elsewhere.path().join("ca");
    std::os::unix::fs::symlink(elsewhere.path().join("none"), &folder).unwrap();
    assert!(matches!(open(&folder), Err(AuthorityError::Dangling { path }) if path == folder));

    let before = std::fs::read(elsewhere.path().join("intermediate.pem")).unwrap();
    mesh.clock.advance(INTERMEDIATE_LIFETIME);
    assert!(mesh.authority.maintain().unwrap());
    assert!(mesh.folder.path().join("intermediate.pem").is_symlink());
    assert_ne!(std::fs::read(elsewhere.path().join("intermediate.pem")).unwrap(), before);
    std::fs::remove_file(elsewhere.path().join("intermediate.pem")).unwrap();
    mesh.clock.advance(INTERMEDIATE_LIFETIME);
    assert!(matches!(mesh.authority.maintain(), Err(AuthorityError::Dangling { .. })));
}

#[test]
fn an_intermediate_that_the_root_has_not_signed_is_made_anew() {
    let (mesh, other) = (Mesh::new("mesh.local"), Mesh::new("mesh.local"));
    let file = |mesh: &Mesh| mesh.folder.path().join("intermediate.pem");
    std::fs::copy(file(&other), file(&mesh)).unwrap();
    let domain = mesh.authority.trust_domain().clone();
    let opened =
        Authority::open_or_create(mesh.folder.path(), &domain, Arc::new(mesh.clock.clone())).unwrap();
    let pending = PendingSvid::generate().unwrap();
    let issued = opened.issue(pending.csr(), &mesh.id("web"), HOUR).unwrap();
    let (_, intermediate) = X509Certificate::from_der(&issued.chain[1]).unwrap();
    let (_, root) = X509Certificate::from_der(mesh.authority.root()).unwrap();
    intermediate.verify_signature(Some(root.public_key())).unwrap();
    let kept = std::fs::read(file(&mesh)).unwrap();
    Authority::open_or_create(mesh.folder.path(), &domain, Arc::new(mesh.clock.clone())).unwrap();
    assert_eq!(std::fs::read(file(&mesh)).unwrap(), kept, "once");
}

struct Team {
    clock: ManualClock,
    folder: tempfile::TempDir,
    domain: TrustDomain,
}

impl Team {
    fn new() -> Self {
        let clock = ManualClock::new();
        clock.advance(Duration::from_secs(1_800_000_000));
        Self { clock, folder: tempfile::tempdir().unwrap(), domain: TrustDomain::new("mesh.local").unwrap() }
    }

    /// A root as a team makes it with its own tools.
    fn root(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Example Corp Root");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        (params.self_signed(&key).unwrap().pem(), key)
    }

    fn import(&self, pem: &str) -> Result<Authority, AuthorityError> {
        Authority::import(self.folder.path(), &self.domain, pem, Arc::new(self.clock.clone()))
    }
}

#[test]
fn a_teams_own_root_vouches_for_svids() {
    let team = Team::new();
    let (certificate, key) = team.root(|_| {});
    let authority = team.import(&(key.serialize_pem() + &certificate)).unwrap();
    let pending = PendingSvid::generate().unwrap();
    let id = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/web").unwrap();
    let issued = authority.issue(pending.csr(), &id, HOUR).unwrap();
    let (_, intermediate) = X509Certificate::from_der(&issued.chain[1]).unwrap();
    let (_, root) = X509Certificate::from_der(authority.root()).unwrap();
    intermediate.verify_signature(Some(root.public_key())).unwrap();
    assert!(root.subject().to_string().contains("Example Corp Root"));
    assert_eq!(authority.pin(), Pin::of(authority.root()).unwrap());
    // Again with the same root, in the other order; and from the folder alone.
    team.import(&(certificate + &key.serialize_pem())).unwrap();
    let again =
        Authority::open_or_create(team.folder.path(), &team.domain, Arc::new(team.clock.clone())).unwrap();
    assert_eq!(again.pin(), authority.pin());
    let (certificate, key) = team.root(|_| {});
    assert!(matches!(
        team.import(&(certificate + &key.serialize_pem())),
        Err(AuthorityError::Occupied { .. })
    ));
}

#[test]
fn a_root_that_cannot_serve_is_refused_with_what_it_lacks() {
    let team = Team::new();
    let refusal = |change: fn(&mut CertificateParams)| {
        let (certificate, key) = team.root(change);
        team.import(&(certificate + &key.serialize_pem())).err().unwrap().to_string()
    };
    for (change, word) in [
        ((|p| p.is_ca = IsCa::NoCa) as fn(&mut CertificateParams), "CA:TRUE"),
        (|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), "path length"),
        (|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature], "keyCertSign"),
        (|p| p.not_after = rcgen::date_time_ymd(2021, 1, 1), "expired"),
        (|p| p.not_before = rcgen::date_time_ymd(2039, 1, 1), "not valid yet"),
        (|p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning], "extended key usage"),
        (
            |p| {
                let ours = rcgen::DistinguishedName::new();
                p.name_constraints = Some(rcgen::NameConstraints {
                    permitted_subtrees: vec![],
                    excluded_subtrees: vec![rcgen::GeneralSubtree::DirectoryName(ours)],
                });
            },
            "does not verify",
        ),
    ] {
        let text = refusal(change);
        assert!(text.contains(word), "{word}: {text}");
    }
    let (certificate, _) = team.root(|_| {});
    let stranger = KeyPair::generate().unwrap().serialize_pem();
    assert!(
        team.import(&(certificate.clone() + &stranger))
            .err()
            .unwrap()
            .to_string()
            .contains("another certificate")
    );
    let said = |pem: &str| team.import(pem).err().unwrap().to_string();
    assert!(said(&certificate).contains("its private key: "), "{}", said(&certificate));
    assert!(said(&stranger).contains("its certificate: "), "{}", said(&stranger));
}

#[test]
fn a_teams_root_that_the_mesh_has_is_taken_also_while_it_begins_only_later() {
    let team = Team::new();
    let (certificate, key) = team.root(|params| params.not_before = rcgen::date_time_ymd(2027, 1, 1));
    let root = key.serialize_pem() + &certificate;
    team.import(&root).unwrap();
    team.clock.set_back(DAY * 30);
    team.import(&root).unwrap();
}
