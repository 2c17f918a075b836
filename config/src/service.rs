//! The config service's life, and what changes documents.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use meshwork_api::config::{Action, Applied, Change, Document, Edit, Planned, Version};
use meshwork_base::Clock;
use meshwork_base::clock::rfc3339_millis;
use meshwork_process::Caller;
use meshwork_store::{
    Condition, Cursor, Op, Outcome, Revision, Store, StoreError, Txn, WatchEvent, WatchSource, limits,
};
use meshwork_telemetry::{MetricsRegistry, Samples, inventory};
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::canonical::{differences, hash};
use crate::error::ConfigError;
use crate::http;
use crate::key::{self, Key, Record, Recorded};
use crate::model::{Current, Last, Model, Read, Step, read_content};
use crate::schema;

/// Tries of a change that others keep overtaking.
const TRIES: usize = 64;
/// Wait before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(500);
/// Edits of one change: what names them is one value of the store.
pub(crate) const MAX_EDITS: usize = 10_000;
/// Bytes of a content: it is one value of the store.
pub(crate) const MAX_CONTENT: usize = 1_000_000;
/// Bytes of a message.
const MAX_MESSAGE: usize = 4096;
/// Bytes of contents that are written together.
const LOT_BYTES: usize = limits::MAX_TXN_BYTES - 200_000;
/// Contents that are written together, with room for the change itself.
const LOT: usize = limits::MAX_TXN_OPS - 1;

/// What must be so for a change to happen, beside what its edits say.
#[derive(Clone, Copy)]
pub(crate) struct Premise<'c> {
    /// What the edits say came as a header (RFC 9110, section 13).
    pub(crate) is_header: bool,
    /// This is a place in the store's history.
    pub(crate) read: Read<'c>,
}

impl Premise<'_> {
    /// Nothing but headers.
    pub(crate) const HEADER: Self =
        Self { is_header: true, read: Read { epoch: None, since: None, mark: None } };
}

/// A running config service. Its task ends when it is dropped.
pub struct Config {
    inner: Arc<Inner>,
    _tasks: JoinSet<()>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) model: RwLock<Model>,
    /// The store's revision that the model shows.
    pub(crate) applied: watch::Sender<u64>,
    /// Changes of this replica go one after the other: all start from the state before, so one of several would win.
    writing: tokio::sync::Mutex<()>,
}

impl Config {
    /// Loads the documents and starts to follow them.
    ///
    /// # Errors
    /// [`ConfigError::Store`].
    pub async fn start(store: Store, clock: Arc<dyn Clock>) -> Result<Self, ConfigError> {
        let model = Model::load(&store).await?;
        let watch = store.watch(key::CHANGES, place(&model)).await?;
        let applied = watch::Sender::new(model.revision);
        let writing = tokio::sync::Mutex::new(());
        let inner = Arc::new(Inner { store, clock, model: RwLock::new(model), applied, writing });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&inner).follow(watch));
        Ok(Self { inner, _tasks: tasks })
    }

    /// The HTTP API. Whoever serves it inserts the [`Caller`] into each request's extensions; a request without one is
    /// refused.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.inner))
    }

    /// Why nothing is kept now, if so; for readiness.
    #[must_use]
    pub fn failing(&self) -> watch::Receiver<Option<String>> {
        self.inner.store.failing()
    }
}

impl Config {
    /// Tells how many documents there are at each scrape, for as long as this service lives.
    pub fn export(&self, metrics: &MetricsRegistry) {
        let inner = Arc::downgrade(&self.inner);
        metrics.ask(move |samples| {
            if let Some(inner) = inner.upgrade() {
                inner.tell(samples);
            }
        });
    }
}

/// Where to follow the store from.
fn place(model: &Model) -> Cursor {
    Cursor { epoch: model.epoch, revision: Revision(model.revision) }
}

impl Inner {
    fn tell(&self, samples: &mut Samples) {
        let model = self.model.read();
        let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (key, current) in &model.documents {
            let there = u64::from(!current.last().deleted);
            *counts.entry((&key.namespace, &key.kind)).or_default() += there;
        }
        for ((namespace, kind), count) in counts {
            samples.tell(&inventory::DOCUMENTS, &[namespace, kind], count);
        }
        for (kind, count) in &model.published {
            samples.tell(&inventory::DOCUMENT_REVISIONS, &[kind], *count);
        }
        samples.tell(&inventory::DOCUMENT_WATCHERS, &[], self.applied.receiver_count() as u64);
    }

    async fn follow(self: Arc<Self>, mut watch: Box<dyn WatchSource>) {
        loop {
            let failed = match watch.next().await {
                Ok(WatchEvent::Changes { changes, .. }) => self.take(&changes).await.err(),
                Ok(WatchEvent::Compacted { .. } | WatchEvent::Reset { .. }) => {
                    watch = self.reload().await;
                    None
                }
                Err(error) => Some(error),
            };
            match failed {
                None => {}
                Some(StoreError::Closed) => return,
                Some(error) => {
                    tracing::error!(%error, "the config service cannot follow its store; it loads it anew");
                    tokio::time::sleep(RETRY).await;
                    watch = self.reload().await;
                }
            }
        }
    }

    /// Takes over changes; what was taken over before is not again.
    async fn take(&self, changes: &[meshwork_store::Change]) -> Result<(), StoreError> {
        for change in changes {
            let Some(entry) = &change.entry else { continue };
            let step = Step::read(&self.store, &entry.key, &entry.value, entry.modified.0, true).await?;
            let mut model = self.model.write();
            if step.last.number > model.last.number {
                model.take(step);
            }
            drop(model);
            self.applied.send_replace(entry.modified.0);
        }
        Ok(())
    }

    /// Loads everything anew, until that succeeds.
    async fn reload(&self) -> Box<dyn WatchSource> {
        loop {
            let loaded: Result<_, StoreError> = async {
                let model = Model::load(&self.store).await?;
                let watch = self.store.watch(key::CHANGES, place(&model)).await?;
                Ok((model, watch))
            }
            .await;
            match loaded {
                Ok((model, watch)) => {
                    let revision = model.revision;
                    let mut shown = self.model.write();
                    let published = std::mem::take(&mut shown.published);
                    *shown = Model { published, ..model };
                    drop(shown);
                    self.applied.send_replace(revision);
                    return watch;
                }
                Err(error) => {
                    tracing::error!(%error, "the config service cannot load its store; it will try again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Waits until the model shows a revision of the store.
    async fn shown(&self, revision: u64) {
        // The sender lives as long as this does.
        _ = self.applied.subscribe().wait_for(|&applied| applied >= revision).await;
    }

    /// Carries out a change whole, or not at all.
    pub(crate) async fn apply(
        &self,
        caller: &Caller,
        change: &Change,
        Premise { is_header, read }: Premise<'_>,
    ) -> Result<Applied, ConfigError> {
        let author = author(caller, change)?;
        let edits = keyed(change)?;
        let time = rfc3339_millis(self.clock.wall());
        let _turn = self.writing.lock().await;
        for _ in 0..TRIES {
            let draft = {
                let model = self.model.read();
                check_store(&model, read)?;
                check_expected(&model, change, is_header)?;
                check_schemas(&model, &edits)?;
                let record = Record {
                    author: author.clone(),
                    message: change.message.clone(),
                    time: time.clone(),
                    edits: Vec::new(),
                };
                draft(&model, &edits, record)
            };
            if draft.record.edits.is_empty() {
                return Ok(Applied { revision: self.model.read().revision, versions: draft.versions });
            }
            let Draft { record, contents, after, versions } = draft;
            match self.write(&record, contents, after).await? {
                Outcome::Done(cursor) => {
                    self.shown(cursor.revision.0).await;
                    return Ok(Applied { revision: cursor.revision.0, versions });
                }
                // Another replica was first: what was checked has to be checked again with its change in it.
                Outcome::Conflict { current, .. } => {
                    let newest = current.iter().flatten().map(|entry| entry.modified.0).max().unwrap_or(0);
                    self.shown(newest).await;
                }
            }
        }
        Err(ConfigError::Contended)
    }

    /// Writes contents and the change that names them: contents first, in lots, the last lot with the change.
    async fn write(
        &self,
        record: &Record,
        contents: Vec<(String, Vec<u8>)>,
        after: Last,
    ) -> Result<Outcome, ConfigError> {
        let stored = serde_json::to_vec(record).expect("changes have text keys and no failing serializer");
        if stored.len() > limits::MAX_VALUE_BYTES {
            return Err(ConfigError::too_large(record.edits.len(), stored.len()));
        }
        let mut txn = Txn::new();
        let mut bytes = 0;
        for (place, content) in contents {
            if txn.ops.len() == LOT || bytes + content.len() > LOT_BYTES {
                self.write_contents(std::mem::take(&mut txn)).await?;
                bytes = 0;
            }
            bytes += content.len() + place.len();
            txn = txn.then(Op::put(&place, content));
        }
        if bytes + stored.len() > LOT_BYTES {
            self.write_contents(std::mem::take(&mut txn)).await?;
        }
        let place = key::change(after.number + 1);
        let mut txn = txn.when(&place, Condition::Absent).then(Op::put(&place, stored));
        if after.number > 0 {
            // A store that was restored meanwhile may lack the change before: this one was not made from its state.
            txn = txn.when(&key::change(after.number), Condition::Modified(Revision(after.modified)));
        }
        Ok(self.store.commit(txn).await?)
    }

    /// Writes contents that no change names yet. Another may have written the same: it is the same.
    async fn write_contents(&self, txn: Txn) -> Result<(), ConfigError> {
        match self.store.commit(txn).await? {
            Outcome::Done(_) => Ok(()),
            Outcome::Conflict { .. } => Err(ConfigError::Contended),
        }
    }

    /// What a change would do; all is checked, nothing is written.
    pub(crate) fn plan(&self, change: &Change, read: Read<'_>) -> Result<Vec<Planned>, ConfigError> {
        let edits = keyed(change)?;
        let model = self.model.read();
        check_store(&model, read)?;
        check_expected(&model, change, false)?;
        check_schemas(&model, &edits)?;
        let planned = edits.iter().map(|(key, content)| {
            let before = model.existing(key);
            let (was, null) = (before.map(|current| &current.content), Value::Null);
            let differences = differences(was.unwrap_or(&null), content);
            let action = match (was, content) {
                (None, Value::Null) => Action::Unchanged,
                (None, _) => Action::Create,
                (Some(_), Value::Null) => Action::Delete,
                (Some(_), _) if differences.is_empty() => Action::Unchanged,
                (Some(_), _) => Action::Update,
            };
            let Key { namespace, kind, name } = key.clone();
            let revision = before.map_or(0, Current::seen);
            Planned { namespace, kind, name, revision, action, differences }
        });
        Ok(planned.collect())
    }

    /// A document at a revision.
    pub(crate) async fn at(&self, key: &Key, revision: u64) -> Result<Document, ConfigError> {
        let found = self.model.read().documents.get(key).and_then(|current| current.at(revision));
        let missing =
            || ConfigError::unknown(format!("{key} has no revision {revision}; its history lists all"));
        let (version, created) = found.ok_or_else(missing)?;
        let content = match &version.hash {
            Some(hash) => read_content(&self.store, hash).await?,
            None => Value::Null,
        };
        Ok(Document { version, created, content })
    }

    /// All revisions, the last one first.
    pub(crate) fn history(&self, key: &Key) -> Result<Vec<Version>, ConfigError> {
        let model = self.model.read();
        let current = model.documents.get(key).ok_or_else(|| unknown(key))?;
        Ok(current.versions.iter().rev().cloned().collect())
    }
}

/// The error of a document that does not exist.
pub(crate) fn unknown(key: &Key) -> ConfigError {
    ConfigError::unknown(format!("there is no {key}; GET /v1/documents lists all"))
}

fn author(caller: &Caller, change: &Change) -> Result<String, ConfigError> {
    if change.message.len() > MAX_MESSAGE {
        let why = format!("the message has {} bytes; at most {MAX_MESSAGE} are kept", change.message.len());
        return Err(ConfigError::invalid(why));
    }
    match (&change.author, caller) {
        (None, caller) => Ok(caller.text()),
        (Some(name), Caller::Local) if name.len() <= 253 && !name.chars().any(char::is_control) => {
            Ok(format!("local:{name}"))
        }
        (Some(_), Caller::Local) => Err(ConfigError::invalid("author must have at most 253 printable bytes")),
        (Some(name), caller) if *name == caller.text() => Ok(caller.text()),
        (Some(name), caller) => Err(ConfigError::invalid(format!(
            "author `{name}` is not who calls, `{}`; leave it out",
            caller.text()
        ))),
    }
}

/// The edits by document; each document once.
fn keyed(change: &Change) -> Result<BTreeMap<Key, Value>, ConfigError> {
    if change.edits.is_empty() || change.edits.len() > MAX_EDITS {
        let why =
            format!("a change has 1 to {MAX_EDITS} edits, this one has {}; split it", change.edits.len());
        return Err(ConfigError::invalid(why));
    }
    let mut edits = BTreeMap::new();
    for edit in &change.edits {
        let key = Key::new(&edit.namespace, &edit.kind, &edit.name)?;
        let bytes = edit.content.to_string().len();
        if bytes > MAX_CONTENT {
            let (what, max) = ("bytes of a document's content", MAX_CONTENT);
            return Err(StoreError::Limit { what, found: bytes, max }.into());
        }
        if edits.insert(key.clone(), edit.content.clone()).is_some() {
            return Err(ConfigError::invalid(format!("{key} is edited twice in one change")));
        }
    }
    Ok(edits)
}

/// Refuses a change whose writer saw another store.
fn check_store(model: &Model, read: Read<'_>) -> Result<(), ConfigError> {
    if model.was_read(read) {
        return Ok(());
    }
    let own = model.epoch();
    Err(ConfigError::AnotherStore { expected: read.epoch.unwrap_or(&own).to_owned(), own })
}

/// Refuses a change whose writer saw other documents than there are.
fn check_expected(model: &Model, change: &Change, precondition: bool) -> Result<(), ConfigError> {
    for edit in &change.edits {
        let Edit { namespace, kind, name, if_revision, .. } = edit;
        let key = Key { namespace: namespace.clone(), kind: kind.clone(), name: name.clone() };
        let current = model.documents.get(&key).map_or(0, Current::seen);
        if let Some(expected) = if_revision.filter(|expected| *expected != current) {
            return Err(ConfigError::Conflict { document: key.to_string(), current, expected, precondition });
        }
    }
    Ok(())
}

/// Refuses a change after which a document breaks its schema.
fn check_schemas(model: &Model, edits: &BTreeMap<Key, Value>) -> Result<(), ConfigError> {
    let mut concerned: BTreeSet<&Key> = edits.keys().collect();
    for (key, content) in edits.iter().filter(|(key, _)| key.kind == schema::KIND) {
        if !content.is_null() {
            schema::compile(key, content)?;
        }
        // The schema that counts for a current document may be another one after this change.
        concerned.extend(model.documents.keys().filter(|document| schema::concerns(key, document)));
    }
    let mut broken = Vec::new();
    let mut compiled = BTreeMap::new();
    for key in concerned {
        let Some(content) = model.content_after(key, edits) else { continue };
        let mut places = schema::places(key).into_iter();
        let found = places.find_map(|place| Some((model.content_after(&place, edits)?, place)));
        let Some((schema, place)) = found else { continue };
        if !compiled.contains_key(&place) {
            compiled.insert(place.clone(), schema::compile(&place, schema)?);
        }
        broken.extend(schema::check(&compiled[&place], key, content));
    }
    if broken.is_empty() { Ok(()) } else { Err(ConfigError::Schema { broken }) }
}

/// A change ready to be written.
struct Draft {
    record: Record,
    /// Where each content that is not stored yet goes.
    contents: Vec<(String, Vec<u8>)>,
    /// The change whose state it was made from.
    after: Last,
    /// The revisions after it, of documents that are so already too.
    versions: Vec<Version>,
}

fn draft(model: &Model, edits: &BTreeMap<Key, Value>, record: Record) -> Draft {
    let mut draft = Draft { record, contents: Vec::new(), after: model.last, versions: Vec::new() };
    let mut places = BTreeSet::new();
    for (key, content) in edits {
        let last = model.documents.get(key).map(Current::last);
        let hash = (!content.is_null()).then(|| hash(content));
        if let Some(last) = last.filter(|last| last.hash == hash) {
            draft.versions.push(last.clone());
            continue;
        }
        if last.is_none() && content.is_null() {
            continue;
        }
        if let Some(place) = hash.as_deref().map(key::content).filter(|place| places.insert(place.clone())) {
            draft.contents.push((place, content.to_string().into_bytes()));
        }
        let revision = last.map_or(0, |last| last.revision) + 1;
        draft.record.edits.push(Recorded { key: key.clone(), revision, hash });
    }
    draft.versions.extend(draft.record.versions());
    draft
}
