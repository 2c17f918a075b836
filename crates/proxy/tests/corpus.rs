//! Replays the fuzz corpus on stable, each file also cut, flipped and doubled at many places.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../fuzz/checks.rs"]
mod checks;

use std::path::Path;

/// Places of a file that are changed; the beginnings, where the lengths are, all of them.
const PLACES: usize = 160;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is part of the repository") {
        let data = std::fs::read(entry.unwrap().path()).unwrap();
        files += 1;
        check(&data);
        for at in 0..data.len().min(PLACES) {
            check(&data[..at]);
            for flip in [0x01, 0x10, 0x80, 0xff] {
                let mut changed = data.clone();
                changed[at] ^= flip;
                check(&changed);
            }
            let mut cut = data.clone();
            cut.remove(at);
            check(&cut);
            let mut doubled = data.clone();
            doubled.extend_from_within(at..);
            check(&doubled);
        }
    }
    assert!(files >= 10, "{} holds {files} files", folder.display());
}

#[test]
fn client_hellos() {
    replay("client_hello", checks::client_hello);
}

#[test]
fn proxy_headers() {
    replay("proxy_protocol", checks::proxy_protocol);
}
