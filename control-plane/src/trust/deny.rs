//! Deny entries: they are kept, become the next bundle, close live connections and travel to every proxy.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::ContentHash;
use meshwork_identity::{Authority, Bundle, Denied, Identity, Made};
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

/// Whether an entry says already what is asked for. One of an older version says less of what was issued before a time.
fn says(kept: &Denied, asked: &Denied) -> bool {
    match (kept, asked) {
        (
            Denied::Identity { id, issued_before, made },
            Denied::Identity { id: asked, issued_before: before, .. },
        ) => id == asked && issued_before == before && (before.is_none() || made.is_some()),
        _ => kept == asked,
    }
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

impl Record {
    /// Of the bundle after the next change.
    fn next_sequence(&self, now: Duration) -> u64 {
        u64::try_from(now.as_millis()).unwrap_or(0).max(self.sequence + 1)
    }
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
    authority.issues_under(record.sequence);
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
        Denied::Identity { id, issued_before, made } => v1::bundle::Denied {
            spiffe_id: id.to_string(),
            issued_before_unix_ms: issued_before.map_or(0, unix_ms),
            made_unix_ms: made.map_or(0, |made: Made| unix_ms(made.at)),
            made_sequence: made.map_or(0, |made| made.sequence),
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

fn unix_ms(at: Duration) -> i64 {
    i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
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
    pub(crate) async fn add(&self, mut denied: Denied, created: Duration) -> Result<Entry, TrustError> {
        let mut record = self.record.lock().await;
        if let Some(entry) = record.entries.iter().find(|entry| says(&entry.denied, &denied)) {
            return Ok(entry.clone());
        }
        let mut next = record.clone();
        next.sequence = record.next_sequence(created);
        if let Denied::Identity { issued_before: Some(_), made, .. } = &mut denied {
            *made = Some(Made { at: created, sequence: next.sequence });
        }
        next.last_id += 1;
        let entry = Entry { id: next.last_id, denied, created };
        next.entries.push(entry.clone());
        self.replace(&mut record, next).await?;
        Ok(entry)
    }

    /// Gives trust back; says whether there was such an entry.
    pub(crate) async fn remove(&self, id: u64, now: Duration) -> Result<bool, TrustError> {
        let mut record = self.record.lock().await;
        let mut next = record.clone();
        next.sequence = record.next_sequence(now);
        next.entries.retain(|entry| entry.id != id);
        if next.entries.len() == record.entries.len() {
            return Ok(false);
        }
        self.replace(&mut record, next).await?;
        Ok(true)
    }

    async fn replace(&self, held: &mut Record, next: Record) -> Result<(), TrustError> {
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
        // Not before: what is issued until here was not checked against it.
        self.authority.issues_under(held.sequence);
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
