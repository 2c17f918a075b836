//! Replays the corpus of every fuzz target. Inputs written by hand are also cut, flipped and doubled at many places;
//! those that a fuzzer found bear the hash of their bytes as a name.

#[path = "../../../fuzz/engine/mod.rs"]
mod engine;
#[path = "../../../fuzz/pure/mod.rs"]
mod pure;

use std::path::Path;

/// Each run of these costs a connection, a file, a whole snapshot, or ten thousand frames.
const COSTLY: [&str; 6] = ["downstream", "upstream", "hbone", "frames", "cache", "messages"];

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is part of the repository") {
        let entry = entry.expect("a folder can be read");
        let data = std::fs::read(entry.path()).expect("a file can be read");
        files += 1;
        check(&data);
        if entry.file_name().len() < 40 && !COSTLY.contains(&target) {
            mutate(&data, check);
        }
    }
    assert!(files >= 10, "{} holds {files} files", folder.display());
}

fn mutate(data: &[u8], check: fn(&[u8])) {
    for at in 0..data.len() {
        check(&data[..at]);
        for flip in [0x01, 0x20, 0x80, data[at] ^ b'\r', data[at] ^ b'\n', data[at] ^ b' ', data[at]] {
            let mut changed = data.to_vec();
            changed[at] ^= flip;
            check(&changed);
        }
        let mut cut = data.to_vec();
        cut.remove(at);
        check(&cut);
        let mut doubled = data.to_vec();
        doubled.extend_from_within(at..);
        check(&doubled);
        let mut grown = data.to_vec();
        grown.insert(at, data[at]);
        check(&grown);
    }
}

#[test]
fn nothing_in_the_corpus_breaks_a_parser() {
    for (target, check) in pure::TARGETS.iter().chain(engine::TARGETS) {
        replay(target, *check);
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for entry in std::fs::read_dir(folder).expect("the corpus is part of the repository") {
        let name = entry.expect("a folder can be read").file_name();
        let known = pure::TARGETS.iter().chain(engine::TARGETS).any(|(target, _)| name == *target);
        assert!(known, "{name:?} is replayed by nobody");
    }
}

/// `fuzz/planted/run` builds with these; here it is seen early when a change of the code leaves one behind.
#[test]
fn every_planted_bug_has_a_target_and_fits_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut patches = 0;
    for entry in std::fs::read_dir(root.join("fuzz/planted")).expect("the patches are part of the repository")
    {
        let path = entry.expect("a folder can be read").path();
        let Some(target) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".patch"))
        else {
            continue;
        };
        patches += 1;
        assert!(pure::TARGETS.iter().chain(engine::TARGETS).any(|(name, _)| *name == target), "{target}");
        let patch = std::fs::read_to_string(&path).expect("a patch is text");
        assert!(patch.starts_with("bug: ") && patch.contains("\nfinds: "), "{target} says what it is");
        let (_, file) = patch.split_once("+++ b/").expect("a patch of one file");
        let (file, hunks) = file.split_once('\n').expect("hunks follow");
        let code = std::fs::read_to_string(root.join(file)).expect("the file is there");
        for hunk in hunks.split("\n@@ ").map(|hunk| hunk.lines().skip(1)) {
            let before =
                hunk.filter(|line| line.starts_with([' ', '-'])).map(|line| format!("{}\n", &line[1..]));
            assert!(
                code.contains(&before.collect::<String>()),
                "{target}: {file} has changed, mend the patch"
            );
        }
    }
    assert!(patches >= 11, "{patches} bugs");
}
