//! Deny entries: they are kept, become the next bundle, close live connections and travel to every proxy.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::ContentHash;
use meshwork_identity::{Authority, Bundle, Denied, Identity};
use meshwork_messages::v1;
use meshwork_store::{Condition, Op, Store, Txn};
use meshwork_xds::ResourceKey;
use meshwork_xds::transport::mtls::Connections;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::TrustError;

pub(super) const KEY: &str = "trust";

/// One entry, by number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) denied: Denied,
    /// When it was made, since the Unix epoch.
    pub(crate) created: Duration,
}

/// All entries, with the sequence of the bundle they are in; one document, so that both change together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// Of the bundle, wherever it is given: at a join, at a renewal, in snapshots. The time of the change in
    /// milliseconds, and always above the one before: also a control plane whose data was restored from an older copy
    /// gives a change a number that no proxy has seen.
    sequence: u64,
    last_id: u64,
    entries: Vec<Entry>,
}

/// What was kept, and the bundle it makes.
pub(crate) async fn load(store: &Store, authority: &Authority) -> Result<(Record, Bundle), TrustError> {
    let record = match store.get(KEY).await?.entry {
        None => Record { sequence: 1, ..Record::default() },
        Some(entry) => serde_json::from_slice(&entry.value).map_err(|error| TrustError::Record {
            what: "list of deny entries".to_owned(),
            why: error.to_string(),
        })?,
    };
    let bundle = bundle(&record, authority)?;
    Ok((record, bundle))
}

fn bundle(record: &Record, authority: &Authority) -> Result<Bundle, TrustError> {
    let denied = record.entries.iter().map(|entry| entry.denied.clone());
    let roots = vec![authority.root().clone()];
    Bundle::new(authority.trust_domain().clone(), record.sequence, roots, denied)
        .map_err(|error| TrustError::Own(error.to_string()))
}

/// The bundle as proxies are told.
pub(crate) fn resource(bundle: &Bundle) -> (ResourceKey, Arc<v1::Resource>) {
    let denied = |denied| match denied {
        Denied::Identity { id, issued_before } => v1::bundle::Denied {
            spiffe_id: id.to_string(),
            issued_before_unix_ms: issued_before
                .map_or(0, |at: Duration| i64::try_from(at.as_millis()).unwrap_or(i64::MAX)),
            ..v1::bundle::Denied::default()
        },
        Denied::Serial { serial } => {
            v1::bundle::Denied { serial_hex: hex(&serial), ..v1::bundle::Denied::default() }
        }
    };
    let message = v1::Bundle {
        roots_der: bundle.roots().iter().map(|root| root.to_vec().into()).collect(),
        sequence: bundle.sequence(),
        denied: bundle.denied().map(denied).collect(),
    };
    let name = bundle.trust_domain().as_str();
    let body = message.encode_to_vec();
    let version = ContentHash::of(&body).to_string();
    let resource = v1::Resource { name: name.to_owned(), version, body: body.into(), requires: Vec::new() };
    (ResourceKey::of::<v1::Bundle>(name), Arc::new(resource))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// See the module.
pub(crate) struct Deny {
    store: Store,
    record: Mutex<Record>,
    authority: Arc<Authority>,
    identity: Arc<Identity>,
    connections: Connections,
    bundles: watch::Sender<Arc<Bundle>>,
}

impl Deny {
    pub(crate) fn new(
        store: Store,
        record: Record,
        authority: Arc<Authority>,
        identity: Arc<Identity>,
        connections: Connections,
    ) -> Self {
        let bundles = watch::Sender::new(identity.bundle());
        Self { store, record: Mutex::new(record), authority, identity, connections, bundles }
    }

    /// The bundle, now and after each change.
    pub(crate) fn bundles(&self) -> watch::Receiver<Arc<Bundle>> {
        self.bundles.subscribe()
    }

    pub(crate) async fn list(&self) -> Vec<Entry> {
        self.record.lock().await.entries.clone()
    }

    /// Takes trust away. When this returns it is durable, and the connections it concerns are closed. An entry that
    /// is there already is given back as it is.
    pub(crate) async fn add(&self, denied: Denied, created: Duration) -> Result<Entry, TrustError> {
        let mut record = self.record.lock().await;
        if let Some(entry) = record.entries.iter().find(|entry| entry.denied == denied) {
            return Ok(entry.clone());
        }
        let mut next = record.clone();
        next.last_id += 1;
        let entry = Entry { id: next.last_id, denied, created };
        next.entries.push(entry.clone());
        self.replace(&mut record, next, created).await?;
        Ok(entry)
    }

    /// Gives trust back; says whether there was such an entry.
    pub(crate) async fn remove(&self, id: u64, now: Duration) -> Result<bool, TrustError> {
        let mut record = self.record.lock().await;
        let mut next = record.clone();
        next.entries.retain(|entry| entry.id != id);
        if next.entries.len() == record.entries.len() {
            return Ok(false);
        }
        self.replace(&mut record, next, now).await?;
        Ok(true)
    }

    async fn replace(&self, held: &mut Record, mut next: Record, now: Duration) -> Result<(), TrustError> {
        let now = u64::try_from(now.as_millis()).unwrap_or(0);
        next.sequence = now.max(held.sequence + 1);
        let bundle = bundle(&next, &self.authority)?;
        let stored = |record| serde_json::to_vec(record).expect("names and numbers are JSON");
        let before = self.store.get(KEY).await?.entry;
        let condition = before.map_or(Condition::Absent, |entry| Condition::Modified(entry.modified));
        let txn = Txn::new().when(KEY, condition).then(Op::put(KEY, stored(&next)));
        if self.store.commit(txn).await?.done().is_none() {
            let why = "somebody else has written it at the same time".to_owned();
            return Err(TrustError::Record { what: "list of deny entries".to_owned(), why });
        }
        *held = next;
        self.identity.trust(bundle)?;
        let bundle = self.identity.bundle();
        let closed = self.connections.review(&bundle);
        self.bundles.send_replace(bundle);
        tracing::info!(
            sequence = held.sequence,
            entries = held.entries.len(),
            closed,
            "deny entries changed"
        );
        Ok(())
    }
}
