//! Deny entries: they are kept, become the next bundle, close live connections and travel to every proxy.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};
use std::time::Duration;

use meshwork_base::ContentHash;
use meshwork_identity::{Authority, Bundle, Denied, Identity, Made};
use meshwork_messages::v1;
use meshwork_store::{Op, Outcome, Store, StoreError, Txn, limits};
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

    /// The same with one more entry, and that; refused where no store could keep so many.
    fn with(&self, mut denied: Denied, created: Duration) -> Result<(Self, Entry), StoreError> {
        let mut next = self.clone();
        next.sequence = self.next_sequence(created);
        if let Denied::Identity { issued_before: Some(_), made, .. } = &mut denied {
            *made = Some(Made { at: created, sequence: next.sequence });
        }
        next.last_id += 1;
        let entry = Entry { id: next.last_id, denied, created };
        next.entries.push(entry.clone());
        limits::check_txn(&next.written())?;
        Ok((next, entry))
    }

    /// How it is kept. Nobody else writes there, so nothing is a condition of it.
    fn written(&self) -> Txn {
        Txn::new().then(Op::put(KEY, serde_json::to_vec(self).expect("names and numbers are JSON")))
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

/// What is in force.
struct Held {
    record: Record,
    /// Whether the store is known to have it too.
    is_kept: bool,
}

/// See the module.
pub(crate) struct Deny {
    store: Store,
    held: Mutex<Held>,
    /// Whoever writes to the store: one after the other, and nobody who only puts something in force waits for it.
    writing: Mutex<()>,
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
        let held = Mutex::new(Held { record, is_kept: true });
        Self { store, held, writing: Mutex::new(()), authority, identity, connections, bundles }
    }

    /// The bundle, now and after each change.
    pub(crate) fn bundles(&self) -> watch::Receiver<Arc<Bundle>> {
        self.bundles.subscribe()
    }

    pub(crate) async fn list(&self) -> Vec<Entry> {
        self.held.lock().await.record.entries.clone()
    }

    /// Takes trust away. When this returns it is durable, and the connections it concerns are closed. An entry that
    /// is there already is given back as it is.
    ///
    /// It is in force before it is kept, and stays so where it cannot be: whoever revokes must not wait for a disk. That it is
    /// not kept is said then, so that nobody takes it for done.
    pub(crate) async fn add(&self, denied: Denied, created: Duration) -> Result<Entry, TrustError> {
        let entry = {
            let mut held = self.held.lock().await;
            let known = held.record.entries.iter().find(|entry| says(&entry.denied, &denied)).cloned();
            if let Some(entry) = known {
                entry
            } else {
                let (next, entry) = held.record.with(denied, created)?;
                self.put_in_force(&mut held, next)?;
                entry
            }
        };
        self.keep().await.map_err(TrustError::NotKept)?;
        Ok(entry)
    }

    /// Gives trust back; says whether there was such an entry. Where that cannot be kept it stays denied: it would be again
    /// after a restart.
    pub(crate) async fn remove(&self, id: u64, now: Duration) -> Result<bool, TrustError> {
        let writing = self.writing.lock().await;
        let without = |held: &Held| {
            let mut next = held.record.clone();
            next.sequence = held.record.next_sequence(now);
            next.entries.retain(|entry| entry.id != id);
            next
        };
        let next = {
            let mut held = self.held.lock().await;
            let next = without(&held);
            if next.entries.len() == held.record.entries.len() {
                return Ok(false);
            }
            // Also where nobody waits for the answer any more, or where it is not known whether it was written.
            held.is_kept = false;
            next
        };
        self.write(&next).await?;
        let mut held = self.held.lock().await;
        // What was put in force meanwhile stays so, and is kept by whoever did that.
        let now_in_force = without(&held);
        let is_kept = now_in_force.entries == next.entries;
        self.put_in_force(&mut held, if is_kept { next } else { now_in_force })?;
        held.is_kept = is_kept;
        drop((held, writing));
        Ok(true)
    }

    /// Keeps what is in force, where it is not kept.
    async fn keep(&self) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let record = {
            let held = self.held.lock().await;
            if held.is_kept {
                return Ok(());
            }
            held.record.clone()
        };
        self.write(&record).await?;
        let mut held = self.held.lock().await;
        // What came after it is kept by whoever put it in force.
        held.is_kept = held.record.sequence == record.sequence;
        Ok(())
    }

    async fn write(&self, record: &Record) -> Result<(), StoreError> {
        let written = self.store.commit(record.written()).await?;
        debug_assert!(matches!(written, Outcome::Done(_)), "nothing is a condition of it");
        Ok(())
    }

    fn put_in_force(&self, held: &mut Held, record: Record) -> Result<(), TrustError> {
        self.identity.trust(bundle(&record, &self.authority)?)?;
        // Not before: what is issued until here was not checked against it.
        self.authority.issues_under(record.sequence);
        let bundle = self.identity.bundle();
        let closed = self.connections.review(&bundle);
        self.bundles.send_replace(bundle);
        tracing::info!(
            sequence = record.sequence,
            entries = record.entries.len(),
            closed,
            "deny entries changed"
        );
        *held = Held { record, is_kept: false };
        Ok(())
    }
}

/// Keeps the entries that could not be kept, whenever the store works again, for as long as there are some.
pub(super) async fn keep_rest(deny: Weak<Deny>, mut failing: watch::Receiver<Option<String>>) {
    while failing.changed().await.is_ok() {
        let is_failing = failing.borrow_and_update().is_some();
        let Some(deny) = deny.upgrade() else { return };
        // Where it fails once more, that is the next change.
        if !is_failing && let Err(error) = deny.keep().await {
            tracing::warn!(%error, "deny entries that are in force are not kept yet");
        }
    }
}
