use super::*;
use proptest::prelude::*;

fn key(name: &str) -> ResourceKey {
    ResourceKey::new("type.meshwork.dev/meshwork.v1.Route", name)
}

fn upsert(name: &str, version: &str, size: usize) -> Change {
    let body = vec![b'x'; size].into();
    let resource = Resource { name: name.into(), version: version.into(), body, ..Resource::default() };
    Change::Upsert(key(name), Arc::new(resource))
}

fn change(accepted: Vec<Change>, revision: u64) -> Settled {
    Settled { accepted, revision: Some(revision), ..Settled::default() }
}

fn versions(contents: &Contents) -> BTreeMap<String, String> {
    let of =
        |(key, resource): (&ResourceKey, &Arc<Resource>)| (key.name.to_string(), resource.version.clone());
    contents.preload.resources.iter().map(of).collect()
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|&(name, version)| (name.to_owned(), version.to_owned())).collect()
}

/// A cache of two changes; gives its bytes and where the first change ends.
fn two_changes(directory: &Path) -> (Vec<u8>, usize) {
    let (mut cache, _) = Cache::open(directory).unwrap();
    cache.write(&change(vec![upsert("a", "1", 9), upsert("b", "1", 9)], 1)).unwrap();
    let first = usize::try_from(cache.size).unwrap();
    cache.write(&change(vec![upsert("a", "2", 9), Change::Remove(key("b"))], 2)).unwrap();
    (std::fs::read(directory.join("resources.cache")).unwrap(), first)
}

#[test]
fn remembers_the_last_whole_change_privately() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    two_changes(directory.path());
    let (_, contents) = Cache::open(directory.path()).unwrap();
    assert_eq!((versions(&contents), contents.preload.revision), (map(&[("a", "2")]), 2));
    assert_eq!((contents.damage.len(), contents.unfinished), (0, 0));
    let mode = std::fs::metadata(directory.path().join("resources.cache")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds keys");
}

#[test]
fn a_file_cut_anywhere_gives_the_change_before() {
    let directory = tempfile::tempdir().unwrap();
    let (bytes, first) = two_changes(directory.path());
    for cut in 0..bytes.len() {
        std::fs::write(directory.path().join("resources.cache"), &bytes[..cut]).unwrap();
        let (mut cache, contents) = Cache::open(directory.path()).unwrap();
        let expected = if cut < first { map(&[]) } else { map(&[("a", "1"), ("b", "1")]) };
        assert_eq!(versions(&contents), expected, "cut at {cut}");
        let whole = if cut < first { 0 } else { first };
        assert_eq!(contents.unfinished, (cut - whole) as u64);
        cache.write(&change(vec![upsert("c", "1", 5)], 3)).unwrap();
        let (_, after) = Cache::open(directory.path()).unwrap();
        assert_eq!(
            versions(&after).get("c").map(String::as_str),
            Some("1"),
            "it goes on after a cut at {cut}"
        );
    }
}

#[test]
fn a_flipped_bit_anywhere_is_reported_and_never_read_as_content() {
    let directory = tempfile::tempdir().unwrap();
    let (bytes, _) = two_changes(directory.path());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(directory.path().join("resources.cache"), damaged).unwrap();
        let (_, contents) = Cache::open(directory.path()).unwrap();
        assert!(!contents.damage.is_empty() || contents.unfinished > 0, "unnoticed at {at}");
        for (name, version) in versions(&contents) {
            assert!(
                ["1", "2"].contains(&&*version) && ["a", "b"].contains(&&*name),
                "{name}@{version} at {at}"
            );
        }
        let (_, again) = Cache::open(directory.path()).unwrap();
        assert_eq!(versions(&again), versions(&contents), "repaired at {at}");
        assert_eq!((again.damage.len(), again.unfinished), (0, 0), "repaired at {at}");
    }
}

#[test]
fn stays_near_the_size_of_what_is_alive() {
    let directory = tempfile::tempdir().unwrap();
    let (mut cache, _) = Cache::open(directory.path()).unwrap();
    for revision in 1..500 {
        cache.write(&change(vec![upsert("a", &revision.to_string(), 10_000)], revision)).unwrap();
    }
    let size = std::fs::metadata(directory.path().join("resources.cache")).unwrap().len();
    assert!(size < COMPACT_FROM + 20_000, "{size}");
    let (_, contents) = Cache::open(directory.path()).unwrap();
    assert_eq!((versions(&contents), contents.preload.revision), (map(&[("a", "499")]), 499));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn gives_back_what_was_written(writes in proptest::collection::vec(
        (proptest::collection::btree_map("[a-e]", proptest::option::of((0..9_u8, 0..90_000_usize)), 0..4), any::<bool>()),
        0..12,
    )) {
        let directory = tempfile::tempdir().unwrap();
        let (mut cache, _) = Cache::open(directory.path()).unwrap();
        let mut expected = BTreeMap::new();
        for (revision, (changes, reopen)) in (1..).zip(writes) {
            let mut accepted = Vec::new();
            for (name, value) in changes {
                if let Some((version, size)) = value {
                    accepted.push(upsert(&name, &version.to_string(), size));
                    expected.insert(name, version.to_string());
                } else {
                    accepted.push(Change::Remove(key(&name)));
                    expected.remove(&name);
                }
            }
            cache.write(&change(accepted, revision)).unwrap();
            if reopen {
                let (again, contents) = Cache::open(directory.path()).unwrap();
                prop_assert_eq!(versions(&contents), expected.clone());
                prop_assert_eq!(contents.preload.revision, revision);
                cache = again;
            }
        }
    }
}

#[test]
fn what_lacks_a_feature_is_remembered_with_what_it_requires_until_it_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let (mut cache, _) = Cache::open(directory.path()).unwrap();
    let missing = vec!["magic".to_owned()];
    let (name, version) = ("a".to_owned(), "1".to_owned());
    let resource = Arc::new(Resource { name, version, requires: missing.clone(), ..Resource::default() });
    let unsupported = vec![Change::Unsupported { key: key("a"), missing: missing.clone(), resource }];
    cache.write(&Settled { unsupported, ..change(vec![upsert("b", "1", 9)], 1) }).unwrap();
    let (mut cache, contents) = Cache::open(directory.path()).unwrap();
    assert_eq!(versions(&contents), map(&[("a", "1"), ("b", "1")]));
    assert_eq!(contents.preload.resources[&key("a")].requires, missing);
    cache.write(&change(vec![Change::Remove(key("a"))], 2)).unwrap();
    let (_, contents) = Cache::open(directory.path()).unwrap();
    assert_eq!(versions(&contents), map(&[("b", "1")]));
}
