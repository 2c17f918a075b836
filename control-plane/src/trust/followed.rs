//! Which stores the control plane has followed last. One that is started together with a registry which has lost its store
//! has published what was in it, and does not know it any more; that it was another one it knows from here.

use std::sync::{Arc, Weak};

use meshwork_store::{Op, Outcome, Store, StoreError, Txn};

use super::{Inner, Trust};

/// A place in the control plane's store, for one source's name.
fn key(source: &str) -> String {
    format!("followed/{source}")
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
    pub(crate) async fn epoch(&self, source: &str) -> Option<String> {
        let store = self.0.upgrade()?.store.clone();
        match store.get(&key(source)).await {
            Ok(found) => Some(String::from_utf8_lossy(&found.entry?.value).into_owned()),
            Err(error) => {
                tracing::warn!(%error, source, "it is not known which store was followed before");
                None
            }
        }
    }

    /// Keeps an epoch instead.
    pub(crate) async fn keep(&self, source: &str, epoch: &str) {
        let Some(store) = self.0.upgrade().map(|inner| inner.store.clone()) else { return };
        if let Err(error) = write(&store, source, epoch).await {
            tracing::warn!(%error, source, "it is not written down which store is followed");
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
    async fn which_store_was_followed_is_known_after_a_restart() {
        let disk = tempfile::tempdir().unwrap();
        for before in [None, Some("a".to_owned())] {
            let secure = Secure { listen: ([127, 0, 0, 1], 0).into(), ..Secure::new(disk.path()) };
            let settings = Settings { folders: Vec::new(), ..Settings::folder("") };
            let clock = Arc::new(SystemClock::new());
            let plane = ControlPlane::start_secure(settings, secure, clock).await.unwrap();
            let followed = plane.trust().unwrap().followed();
            assert_eq!(followed.epoch("registry").await, before);
            followed.keep("registry", "a").await;
            assert_eq!(followed.epoch("other").await, None);
            let store = plane.trust().unwrap().inner.store.clone();
            drop(plane);
            store.close().await.unwrap();
        }
    }
}
