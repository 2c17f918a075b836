//! The file truncated and bit-flipped at every offset of the last write: everything acknowledged is shown, or damage
//! is reported; nothing in between.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use bytes::Bytes;
use meshwork_store::{Entry, Op, Store, StoreError, Txn};
use support::{Image, TestDisk, runtime};

async fn put(store: &Store, n: u32) {
    let txn =
        Txn::new().then(Op::put(&format!("key/{:02}", n % 10), format!("value {n} {}", "y".repeat(300))));
    assert!(store.commit(txn).await.unwrap().done().is_some());
}

async fn shown(store: &Store) -> Vec<Entry> {
    store.list("").await.unwrap().entries
}

/// Images before and after the last write, and what the store showed after it.
async fn last_write(clean: bool) -> (Image, Image, Vec<Entry>) {
    let disk = TestDisk::new();
    let store = disk.open().unwrap();
    for n in 0..40 {
        put(&store, n).await;
    }
    let before = disk.killed();
    put(&store, 40).await;
    let entries = shown(&store).await;
    if clean {
        store.close().await.unwrap();
    }
    (before, disk.killed(), entries)
}

/// Every byte that the last write changed, and its neighbours to the end of their 64 bytes: checksums, padding and
/// bytes that happened to stay the same are among them.
fn region(before: &[u8], after: &[u8]) -> Vec<usize> {
    let differs = |at: usize| before.get(at) != after.get(at);
    let block = |at: usize| (at / 64 * 64..at / 64 * 64 + 64).any(differs);
    (0..after.len()).filter(|&at| block(at)).collect()
}

/// Opens the image; `Ok(false)` when damage was reported, `Ok(true)` when all is shown, else what is wrong.
async fn verdict(image: Image, expected: &[Entry]) -> Result<bool, String> {
    let disk = TestDisk::from_image(image, false);
    match disk.open() {
        Err(StoreError::Damaged { .. } | StoreError::Format { .. }) => Ok(false),
        Err(other) => Err(format!("reported as something else: {other}")),
        Ok(store) => {
            let listing = store.list("").await;
            store.close().await.map_err(|e| e.to_string())?;
            match listing {
                Err(StoreError::Damaged { .. }) => Ok(false),
                Err(other) => Err(format!("reported as something else: {other}")),
                Ok(listing) if listing.entries == expected => Ok(true),
                Ok(_) => Err("opens and silently shows something else".to_owned()),
            }
        }
    }
}

async fn flip_all(clean: bool) {
    let (before, after, expected) = last_write(clean).await;
    let region = region(&before.data, &after.data);
    assert!(region.len() > 1000, "the last write touched only {} bytes", region.len());
    let mut reported = 0;
    for at in region {
        // The header says which of two states is the last one: every bit of it. Elsewhere a checksum does not care.
        let bits = if at < 320 { 0..8 } else { at % 8..at % 8 + 1 };
        for bit in bits {
            let mut image = after.clone();
            image.data[at] ^= 1 << bit;
            match verdict(image, &expected).await {
                Ok(shown) => reported += u32::from(!shown),
                Err(wrong) => panic!("byte {at}, bit {bit}: {wrong}"),
            }
        }
    }
    assert!(reported > 500, "only {reported} flips were noticed: is anything checked?");
}

#[test]
fn a_flipped_bit_anywhere_in_the_last_write_of_a_killed_process_is_harmless_or_reported() {
    runtime().block_on(flip_all(false));
}

#[test]
fn a_flipped_bit_anywhere_in_a_closed_file_is_harmless_or_reported() {
    runtime().block_on(flip_all(true));
}

#[test]
fn a_truncated_file_is_reported_at_every_length() {
    runtime().block_on(async {
        for clean in [false, true] {
            let (before, after, expected) = last_write(clean).await;
            let mut ends = region(&before.data, &after.data);
            // Whole pages are what a file system loses, so each page's end is cut at too.
            ends.extend((0..after.data.len()).step_by(4096));
            for end in ends {
                let image = Image { data: after.data[..end].to_vec(), seal: after.seal.clone() };
                if let Err(wrong) = verdict(image, &expected).await {
                    panic!("cut to {end} bytes of {}: {wrong}", after.data.len());
                }
            }
        }
    });
}

#[test]
fn a_damaged_seal_neither_hides_nor_spoils_data() {
    runtime().block_on(async {
        let (_, after, expected) = last_write(false).await;
        for at in 0..after.seal.len() {
            let mut image = after.clone();
            image.seal[at] ^= 1 << (at % 8);
            let outcome = verdict(image, &expected).await;
            assert_eq!(outcome, Ok(true), "byte {at} of the seal");
        }
    });
}

#[test]
fn an_old_copy_put_in_place_of_the_file_is_reported() {
    runtime().block_on(async {
        let (before, after, expected) = last_write(false).await;
        let image = Image { data: before.data, seal: after.seal };
        assert_eq!(verdict(image.clone(), &expected).await, Ok(false));
        let error = TestDisk::from_image(image, false).open().err().unwrap().to_string();
        assert!(error.contains("last revision is 40, but revision 41 was acknowledged"), "{error}");
    });
}

#[test]
fn a_record_that_rots_while_the_store_is_open_is_reported_when_it_is_read() {
    // Page checksums are verified at opening only: the record's own is what guards a running process. Its page is
    // found by its text and must leave redb's cache first, hence the tiny one.
    runtime().block_on(async {
        let disk = TestDisk::new();
        let store = disk.open_with(|options| options.cache_bytes = 0).unwrap();
        store
            .commit(Txn::new().then(Op::put("secret", Bytes::from_static(b"precious-value"))))
            .await
            .unwrap()
            .done()
            .unwrap();
        disk.flip_in_place(b"precious-value");
        let answer = store.get("secret").await;
        assert!(
            matches!(&answer, Err(StoreError::Damaged { what, .. }) if what.contains("secret")),
            "{answer:?}"
        );
    });
}
