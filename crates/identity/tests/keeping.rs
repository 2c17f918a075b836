//! What survives a restart, and tokens.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use common::{HOUR, Mesh};
use meshwork_base::Clock;
use meshwork_identity::{Bundle, Denied, Identity, JoinToken, Loaded, Pin, SvidStore, TokenError};
use proptest::prelude::*;

#[test]
fn a_restart_uses_the_same_identity_while_it_is_valid() {
    let mesh = Mesh::new("mesh.local");
    let folder = tempfile::tempdir().unwrap();
    let store = SvidStore::new(&folder.path().join("web-1"));
    assert!(matches!(store.load(mesh.clock.wall()).unwrap(), Loaded::Missing));
    let svid = mesh.svid("web");
    store.save_svid(&svid).unwrap();
    assert!(matches!(store.load(mesh.clock.wall()).unwrap(), Loaded::Missing), "half an identity is none");
    let denied = [
        Denied::Identity { id: mesh.id("a"), issued_before: None, made: None },
        Denied::Identity { id: mesh.id("b"), issued_before: Some(HOUR), made: None },
        Denied::Serial { serial: vec![1, 2] },
    ];
    store.save_bundle(&mesh.bundle(7, denied.clone())).unwrap();
    for file in ["svid.pem", "bundle.json"] {
        let mode = std::fs::metadata(folder.path().join("web-1").join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }

    let Loaded::Valid(again, bundle) = store.load(mesh.clock.wall()).unwrap() else { panic!("it is valid") };
    assert_eq!((again.as_peer(), again.chain()), (svid.as_peer(), svid.chain()));
    assert_eq!((bundle.sequence(), bundle.denied().collect::<Vec<_>>()), (7, denied.to_vec()));
    assert_eq!(bundle.roots(), [mesh.authority.root().clone()]);
    Identity::new(*again, *bundle, Arc::new(mesh.clock.clone())).unwrap();

    mesh.clock.advance(HOUR * 73);
    assert!(
        matches!(store.load(mesh.clock.wall()).unwrap(), Loaded::Expired(svid, _) if *svid.id() == mesh.id("web"))
    );
    store.save_svid(&mesh.svid("web")).unwrap();
    assert!(matches!(store.load(mesh.clock.wall()).unwrap(), Loaded::Valid(..)));
}

#[test]
fn a_damaged_identity_is_an_error_and_never_half_read() {
    let mesh = Mesh::new("mesh.local");
    let folder = tempfile::tempdir().unwrap();
    let store = SvidStore::new(folder.path());
    store.save_svid(&mesh.svid("web")).unwrap();
    store.save_bundle(&mesh.bundle(1, [])).unwrap();
    let path = folder.path().join("svid.pem");
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len() - 1).step_by(7) {
        std::fs::write(&path, &whole[..at]).unwrap();
        match store.load(mesh.clock.wall()) {
            Err(error) => assert!(error.to_string().contains("svid.pem"), "{error}"),
            // Cut behind the leaf: an SVID whose chain lacks the intermediate is read, and no peer believes it.
            Ok(Loaded::Valid(svid, _)) => assert_eq!(svid.chain().len(), 1, "cut at {at}"),
            Ok(other) => panic!("{other:?}"),
        }
    }
    // The key of another SVID.
    let other = mesh.svid("web").to_pem();
    let split = |text: &str| text.find("-----BEGIN CERTIFICATE").unwrap();
    let mixed = other[..split(&other)].to_owned() + &String::from_utf8(whole).unwrap()[split(&other)..];
    std::fs::write(&path, mixed).unwrap();
    assert!(store.load(mesh.clock.wall()).unwrap_err().to_string().contains("key"));
}

#[test]
fn a_key_that_others_may_read_is_closed_to_them() {
    let mesh = Mesh::new("mesh.local");
    let folder = tempfile::tempdir().unwrap();
    let store = SvidStore::new(folder.path());
    store.save_svid(&mesh.svid("web")).unwrap();
    store.save_bundle(&mesh.bundle(1, [])).unwrap();
    let path = folder.path().join("svid.pem");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    store.load(mesh.clock.wall()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_wider_of_two_deny_entries_holds() {
    let mesh = Mesh::new("mesh.local");
    let entry = |hours: Option<u32>| Denied::Identity {
        id: mesh.id("a"),
        issued_before: hours.map(|h| HOUR * h),
        made: None,
    };
    for (two, wider) in [
        ([Some(1), Some(2)], Some(2)),
        ([Some(2), Some(1)], Some(2)),
        ([None, Some(1)], None),
        ([Some(1), None], None),
    ] {
        let bundle = mesh.bundle(1, two.map(entry));
        assert_eq!(bundle.denied().collect::<Vec<_>>(), [entry(wider)]);
    }
}

#[test]
fn a_bundle_without_roots_or_with_a_broken_one_is_refused() {
    let mesh = Mesh::new("mesh.local");
    let domain = mesh.authority.trust_domain().clone();
    assert!(Bundle::new(domain.clone(), 1, vec![], []).is_err());
    let broken = Bundle::new(domain, 1, vec![mesh.authority.root().clone(), vec![1, 2, 3].into()], []);
    assert!(broken.unwrap_err().to_string().contains("root 1"));
    assert!(Bundle::from_json("{}").is_err());
}

#[test]
fn a_token_is_good_for_its_uses_and_its_time() {
    let mesh = Mesh::new("mesh.local");
    let now = mesh.clock.wall();
    let (token, mut record) = JoinToken::create(mesh.id("web"), 2, HOUR, mesh.authority.pin(), now).unwrap();
    let text = token.to_string();
    let read = JoinToken::parse(&format!("{text}\n")).unwrap();
    assert_eq!((read.clone(), read.pin()), (token, Pin::of(mesh.authority.root()).unwrap()));

    assert_eq!(record.clone().redeem(&read, now + HOUR), Err(TokenError::Expired));
    assert_eq!(record.redeem(&read, now), Ok(mesh.id("web")));
    assert_eq!(record.redeem(&read, now + HOUR / 2), Ok(mesh.id("web")));
    assert!(record.is_over(now));
    assert_eq!(record.redeem(&read, now), Err(TokenError::UsedUp));
}

#[test]
fn a_wrong_secret_learns_nothing_and_takes_no_use() {
    let mesh = Mesh::new("mesh.local");
    let now = mesh.clock.wall();
    let (token, mut record) = JoinToken::create(mesh.id("web"), 1, HOUR, mesh.authority.pin(), now).unwrap();
    let (other, _) = JoinToken::create(mesh.id("web"), 1, HOUR, mesh.authority.pin(), now).unwrap();
    let (text, others) = (token.to_string(), other.to_string());
    let parts = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (mine, theirs) = (parts(&text), parts(&others));
    let mixed = JoinToken::parse(&format!("{}.{}.{}", mine[0], theirs[1], mine[2])).unwrap();
    for late in [now, now + HOUR * 2] {
        assert_eq!(record.redeem(&mixed, late), Err(TokenError::Unknown), "also when the token is over");
        assert_eq!(record.redeem(&other, late), Err(TokenError::Unknown));
    }
    assert_eq!(record.uses_left, 1);
    // What is kept or logged does not show the secret.
    let kept = serde_json::to_string(&record).unwrap();
    assert!(!kept.contains(&mine[1]) && !format!("{record:?} {token:?}").contains(&mine[1]));
    assert_eq!(serde_json::from_str::<meshwork_identity::TokenRecord>(&kept).unwrap(), record);
}

#[test]
fn every_code_has_its_page() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut codes = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(sources).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u16>().ok());
        codes.extend(numbers.filter(|number| (6001..7000).contains(number)));
    }
    assert!(codes.len() > 20);
    for code in codes {
        let page = std::fs::read_to_string(folder.join(format!("MW{code}.md"))).unwrap_or_default();
        assert!(page.starts_with(&format!("# MW{code}: ")), "MW{code} has no page");
    }
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in "\\PC{0,200}", pem in "(-----BEGIN (CERTIFICATE|PRIVATE KEY)-----\n[A-Za-z0-9+/=\n]{0,80}\n-----END CERTIFICATE-----\n){0,3}") {
        prop_assert!(JoinToken::parse(&text).is_err());
        let _ = Bundle::from_json(&text);
        prop_assert!(meshwork_identity::Svid::from_pem(&pem).is_err());
    }

    #[test]
    fn no_bytes_make_the_certificate_reader_panic(seed in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        thread_local! { static LEAF: Vec<u8> = Mesh::new("mesh.local").svid("web").chain()[0].to_vec(); }
        let mut der = LEAF.with(Clone::clone);
        for (at, byte) in seed {
            let at = at.index(der.len());
            der[at] = byte;
        }
        let _ = meshwork_identity::Peer::read(&der.into());
    }
}
