//! Replays the fuzz corpus on stable, each file also cut, flipped and doubled at many places.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../fuzz/checks.rs"]
mod checks;

use std::path::Path;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is part of the repository") {
        let data = std::fs::read(entry.unwrap().path()).unwrap();
        files += 1;
        check(&data);
        for at in 0..data.len() {
            check(&data[..at]);
            for flip in [0x01, 0x20, 0x80, data[at] ^ b'\r', data[at] ^ b'\n', data[at] ^ b' ', data[at]] {
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
            let mut grown = data.clone();
            grown.insert(at, data[at]);
            check(&grown);
        }
    }
    assert!(files >= 10, "{} holds {files} files", folder.display());
}

#[test]
fn request_heads() {
    replay("request", checks::request);
}

#[test]
fn response_heads() {
    replay("response", checks::response);
}

#[test]
fn chunked_bodies() {
    replay("chunked", checks::chunked);
}
