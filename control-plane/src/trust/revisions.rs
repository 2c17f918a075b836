//! From which number on revisions are counted. None is used twice, also not by the process that comes after this one: what a
//! proxy had before a restart, and what access logs say, can be compared with what there is now.
//!
//! Numbers are taken in blocks, before they are used; whoever begins again begins with the next block. So nothing is written
//! when something is published.

use meshwork_store::{Op, Outcome, Store, StoreError, Txn};
use tokio::sync::watch;

use super::TrustError;

pub(super) const KEY: &str = "revisions";
/// How many are taken at once.
const BLOCK: u64 = 1_000;

/// Numbers of which some are taken.
pub(super) struct Revisions {
    store: Store,
    /// The last number that is taken.
    taken: u64,
    /// The last one that those before us may have used.
    before: u64,
    published: watch::Receiver<u64>,
}

/// Takes the first block. What is published is to be said to the sender.
pub(super) async fn open(store: Store) -> Result<(Revisions, watch::Sender<u64>), TrustError> {
    let before = match store.get(KEY).await?.entry {
        None => 0,
        Some(entry) => read(&entry.value)?,
    };
    let (sender, published) = watch::channel(before);
    let mut revisions = Revisions { store, taken: before, before, published };
    revisions.take(before + BLOCK).await;
    Ok((revisions, sender))
}

fn read(value: &[u8]) -> Result<u64, TrustError> {
    let text = String::from_utf8_lossy(value);
    text.parse().map_err(|why| TrustError::Record {
        what: "last revision".to_owned(),
        why: format!("`{}`: {why}", text.escape_debug()),
    })
}

impl Revisions {
    /// Revisions are greater.
    pub(super) const fn before(&self) -> u64 {
        self.before
    }

    /// Takes a further block whenever half of one is left, for as long as somebody publishes.
    pub(super) async fn run(mut self) {
        while self.published.changed().await.is_ok() {
            let published = *self.published.borrow_and_update();
            if published + BLOCK / 2 > self.taken {
                self.take((published + BLOCK).next_multiple_of(BLOCK)).await;
            }
        }
    }

    /// What cannot be written down is no reason to tell proxies nothing.
    async fn take(&mut self, last: u64) {
        match self.write(last).await {
            Ok(()) => self.taken = last,
            Err(error) => tracing::warn!(
                %error,
                "the last revision is not written down; after a restart revisions may be used again"
            ),
        }
    }

    async fn write(&self, last: u64) -> Result<(), StoreError> {
        let written = self.store.commit(Txn::new().then(Op::put(KEY, last.to_string()))).await?;
        debug_assert!(matches!(written, Outcome::Done(_)), "nothing is a condition of it");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meshwork_base::{ManualClock, SeededRng};
    use meshwork_store::embedded;

    use super::*;

    #[tokio::test]
    async fn no_revision_is_used_twice_however_many_a_process_publishes() {
        let disk = tempfile::tempdir().unwrap();
        let options = embedded::Options::new(Arc::new(ManualClock::new()), Box::new(SeededRng::new(1)));
        let store = embedded::open(&disk.path().join("store"), options).unwrap();
        let mut last = 0;
        for publications in [1, 499, 501, 5_000, 0, 3] {
            let (revisions, published) = open(store.clone()).await.unwrap();
            assert!(revisions.before() >= last, "{last} was published");
            last = revisions.before() + publications;
            published.send_replace(last);
            drop(published);
            revisions.run().await;
        }
        store.commit(Txn::new().then(Op::put(KEY, "many"))).await.unwrap().done().unwrap();
        let why = open(store).await.map(drop).unwrap_err().to_string();
        assert!(why.contains("the stored last revision cannot be read: `many`"), "{why}");
    }
}
