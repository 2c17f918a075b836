//! Which stores the control plane has followed last, and the names of what was in force from them. One that is started
//! together with a registry which has lost its store has published what was in it, and does not know it any more; that it
//! was another one it knows from here. Of a config service it knows what has to be written again.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use meshwork_base::Rng;
use meshwork_store::{Op, Outcome, Store, StoreError, Txn, limits};
use meshwork_xds::client::Backoff;

use super::{Inner, Trust};

/// A place in the control plane's store, for one source's name.
fn key(source: &str) -> String {
    format!("followed/{source}")
}

/// What the places of the names in it begin with.
fn names(source: &str) -> String {
    format!("in-force/{source}/")
}

/// What is kept of it; it does not keep the trust anchor alive.
#[derive(Clone)]
pub(crate) struct Followed(Weak<Inner>);

impl Trust {
    /// Where it is kept which stores are followed.
    pub(crate) fn followed(&self) -> Followed {
        Followed(Arc::downgrade(&self.inner))
    }
}

impl Followed {
    /// The epoch that was kept, if any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn epoch(&self, source: &str) -> Result<Option<String>, StoreError> {
        let Some(store) = self.0.upgrade().map(|inner| inner.store.clone()) else { return Ok(None) };
        let found = store.get(&key(source)).await?.entry;
        Ok(found.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()))
    }

    /// Keeps an epoch instead.
    pub(crate) async fn keep(&self, source: &str, epoch: &str) {
        let Some(store) = self.0.upgrade().map(|inner| inner.store.clone()) else { return };
        if let Err(error) = write(&store, source, epoch).await {
            tracing::warn!(%error, source, "it is not written down which store is followed");
        }
    }
}

impl Followed {
    /// The names that were kept of what is in it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn names(&self, source: &str) -> Result<BTreeSet<String>, StoreError> {
        let Some(store) = self.0.upgrade().map(|inner| inner.store.clone()) else {
            return Ok(BTreeSet::new());
        };
        let prefix = names(source);
        let found = store.list(&prefix).await?.entries;
        Ok(found.iter().filter_map(|entry| Some(entry.key.strip_prefix(&prefix)?.to_owned())).collect())
    }

    /// From now on nothing is read or written.
    #[cfg(test)]
    pub(crate) async fn close(&self) {
        self.0.upgrade().expect("it is there").store.close().await.expect("it can be closed");
    }

    /// Keeps an epoch, and these names instead of those.
    ///
    /// # Errors
    /// [`StoreError`]; some of it may be kept then.
    pub(crate) async fn keep_with(
        &self,
        source: &str,
        epoch: &str,
        before: &BTreeSet<String>,
        now: &BTreeSet<String>,
    ) -> Result<(), StoreError> {
        let Some(store) = self.0.upgrade().map(|inner| inner.store.clone()) else { return Ok(()) };
        let place = |name: &String| format!("{}{name}", names(source));
        let come = now.difference(before).map(|name| Op::put(&place(name), ""));
        let gone = before.difference(now).map(|name| Op::delete(&place(name)));
        let ops: Vec<Op> =
            std::iter::once(Op::put(&key(source), epoch.to_owned())).chain(come).chain(gone).collect();
        for ops in ops.chunks(limits::MAX_TXN_OPS) {
            let written = store.commit(ops.iter().cloned().fold(Txn::new(), Txn::then)).await?;
            debug_assert!(matches!(written, Outcome::Done(_)), "nothing is a condition of it");
        }
        Ok(())
    }
}

/// Reads until that succeeds. Who went on without would take what the source has lost for what was removed from it.
pub(crate) async fn surely<T, F: Future<Output = Result<T, StoreError>>>(
    source: &str,
    rng: &mut impl Rng,
    read: impl Fn() -> F,
) -> T {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match read().await {
            Ok(read) => return read,
            Err(error) => {
                tracing::error!(%error, source, "it cannot be read which store was followed before; until it can be, nothing is taken from this source");
                tokio::time::sleep(backoff.next(rng)).await;
            }
        }
    }
}

async fn write(store: &Store, source: &str, epoch: &str) -> Result<(), StoreError> {
    let written = store.commit(Txn::new().then(Op::put(&key(source), epoch.to_owned()))).await?;
    debug_assert!(matches!(written, Outcome::Done(_)), "nothing is a condition of it");
    Ok(())
}

#[cfg(test)]
mod tests {
    use meshwork_base::SystemClock;

    use super::*;
    use crate::trust::Secure;
    use crate::{ControlPlane, Settings};

    #[tokio::test]
    async fn more_names_than_one_transaction_takes_are_known_after_a_restart_and_those_that_went_are_not() {
        let disk = tempfile::tempdir().unwrap();
        let all: BTreeSet<String> =
            (0..3 * limits::MAX_TXN_OPS).map(|number| format!("default/Service/s{number}")).collect();
        let few: BTreeSet<String> =
            all.iter().take(2).cloned().chain(["default/Service/t".to_owned()]).collect();
        let mut before = BTreeSet::new();
        for now in [all, few.clone(), few] {
            let secure = Secure { listen: ([127, 0, 0, 1], 0).into(), ..Secure::new(disk.path()) };
            let settings = Settings { folders: Vec::new(), ..Settings::folder("") };
            let clock = Arc::new(SystemClock::new());
            let plane = ControlPlane::start_secure(settings, secure, clock).await.unwrap();
            let followed = plane.trust().unwrap().followed();
            assert_eq!(followed.names("config").await.unwrap(), before);
            followed.keep_with("config", "a", &before, &now).await.unwrap();
            assert_eq!(followed.epoch("config").await.unwrap().as_deref(), Some("a"));
            assert_eq!(followed.names("conf").await.unwrap(), BTreeSet::new());
            let store = plane.trust().unwrap().inner.store.clone();
            drop(plane);
            store.close().await.unwrap();
            before = now;
        }
    }

    #[tokio::test]
    async fn which_store_was_followed_is_known_after_a_restart() {
        let disk = tempfile::tempdir().unwrap();
        for before in [None, Some("a".to_owned())] {
            let secure = Secure { listen: ([127, 0, 0, 1], 0).into(), ..Secure::new(disk.path()) };
            let settings = Settings { folders: Vec::new(), ..Settings::folder("") };
            let clock = Arc::new(SystemClock::new());
            let plane = ControlPlane::start_secure(settings, secure, clock).await.unwrap();
            let followed = plane.trust().unwrap().followed();
            assert_eq!(followed.epoch("registry").await.unwrap(), before);
            followed.keep("registry", "a").await;
            assert_eq!(followed.epoch("other").await.unwrap(), None);
            let store = plane.trust().unwrap().inner.store.clone();
            drop(plane);
            store.close().await.unwrap();
        }
    }
}
