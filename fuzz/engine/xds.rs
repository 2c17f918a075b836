//! The cache of last good resources, as a disk may give it back.

use std::cell::RefCell;

use meshwork_xds::cache::Cache;
use sha2::{Digest as _, Sha256};

thread_local! {
    static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder for the cache");
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Gives every record its right checksum, so that what lies behind it is reached.
fn mend(data: &[u8], out: &mut Vec<u8>) {
    const HEAD: usize = 9;
    out.clear();
    out.extend_from_slice(data);
    let mut at = 0;
    while let Some(found) = out.get(at..).and_then(|rest| rest.windows(4).position(|w| w == b"MWR1")) {
        let start = at + found;
        at = start + 4;
        let Some(length) = out.get(start + 5..start + HEAD) else { return };
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        let end = start + HEAD + length;
        // An odd first byte of the input leaves the sums as they are: damage is an input, too.
        if data.first().is_some_and(|byte| byte % 2 == 1) || end > out.len() {
            continue;
        }
        let sum = Sha256::digest(&out[start..end]);
        out.truncate(out.len().max(end + 32));
        if out.len() < end + 32 {
            out.resize(end + 32, 0);
        }
        out[end..end + 32].copy_from_slice(&sum);
        at = end + 32;
    }
}

/// Whatever the file holds, it opens; opened again, it is whole and holds the same.
pub(crate) fn cache(data: &[u8]) {
    FOLDER.with(|folder| {
        BYTES.with_borrow_mut(|bytes| {
            mend(data, bytes);
            std::fs::write(folder.path().join("resources.cache"), &bytes).expect("the file is written");
        });
        let (_, first) = Cache::open(folder.path()).expect("any content opens");
        let (_, again) = Cache::open(folder.path()).expect("and opens again");
        assert_eq!((again.damage.len(), again.unfinished), (0, 0), "it was mended");
        assert_eq!(format!("{:?}", first.preload), format!("{:?}", again.preload));
    });
}
