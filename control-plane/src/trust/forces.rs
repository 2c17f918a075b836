//! What operators have forced, kept across restarts: a proxy that joins afterwards hears of it too.

use meshwork_messages::v1::{BreakerForce, Probes};
use meshwork_store::{Op, Outcome, Store, Txn};
use meshwork_xds::server::Hub;
use prost::Message as _;
use tokio::sync::Mutex;

use super::TrustError;

const KEY: &str = "forces";

/// What was kept.
pub(super) async fn load(store: &Store) -> Result<Vec<BreakerForce>, TrustError> {
    let Some(entry) = store.get(KEY).await?.entry else { return Ok(Vec::new()) };
    let kept = Probes::decode(entry.value).map_err(|error| TrustError::Record {
        what: "list of forced states".to_owned(),
        why: error.to_string(),
    })?;
    Ok(kept.forces)
}

/// The place where they are kept.
pub(super) struct Kept(Mutex<Store>);

impl Kept {
    pub(super) fn new(store: Store) -> Self {
        Self(Mutex::new(store))
    }

    /// Keeps all that stands, instead of what was kept before.
    pub(super) async fn keep(&self, hub: &Hub) -> Result<(), TrustError> {
        // Asked for in turn: the last to write has the last word.
        let store = self.0.lock().await;
        let record = Probes { forces: hub.forces(), ..Probes::default() };
        let written = store.commit(Txn::new().then(Op::put(KEY, record.encode_to_vec()))).await?;
        debug_assert!(matches!(written, Outcome::Done(_)), "nothing is a condition of it");
        Ok(())
    }
}
