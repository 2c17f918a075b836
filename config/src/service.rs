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
    Compare, Condition, Op, Outcome, Revision, Store, StoreError, Txn, WatchEvent, WatchSource,
};
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::canonical::{differences, hash};
use crate::error::ConfigError;
use crate::http;
use crate::key::Key;
use crate::model::{Current, Model};
use crate::schema;

/// Tries of a change that others keep overtaking.
const TRIES: usize = 64;
/// Wait before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(500);
/// Edits of one change: each is at most three writes of one transaction.
pub(crate) const MAX_EDITS: usize = 42;
/// Bytes of a content: with what stands around it, it is one value of the store.
pub(crate) const MAX_CONTENT: usize = 1_000_000;
/// Bytes of a message.
const MAX_MESSAGE: usize = 4096;

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
}

impl Config {
    /// Loads the documents and starts to follow them.
    ///
    /// # Errors
    /// [`ConfigError::Store`].
    pub async fn start(store: Store, clock: Arc<dyn Clock>) -> Result<Self, ConfigError> {
        let (model, watch) = load(&store).await?;
        let applied = watch::Sender::new(model.revision);
        let inner = Arc::new(Inner { store, clock, model: RwLock::new(model), applied });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&inner).follow(watch));
        Ok(Self { inner, _tasks: tasks })
    }

    /// The HTTP API. Whoever serves it inserts the [`Caller`] into each request's extensions; a request without one is
    /// refused.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.inner))
    }
}

/// All current documents, and a watch that goes on from there.
async fn load(store: &Store) -> Result<(Model, Box<dyn WatchSource>), StoreError> {
    let listing = store.list("d/").await?;
    let mut model =
        Model { epoch: listing.cursor.epoch, revision: listing.cursor.revision.0, ..Model::default() };
    for head in listing.entries {
        let Ok(version) = serde_json::from_slice::<Version>(&head.value) else {
            tracing::error!(key = head.key, "a stored document is not understood");
            continue;
        };
        // Revisions are never changed, so it does not matter that others may have come since.
        let key = Key::of(&version).revision(version.revision);
        let found = store.get(&key).await?.entry;
        match found.and_then(|entry| serde_json::from_slice::<Document>(&entry.value).ok()) {
            Some(document) => model.take(document, head.modified.0),
            None => tracing::error!(key, "a stored document is missing or not understood"),
        }
    }
    let watch = store.watch("v/", listing.cursor).await?;
    Ok((model, watch))
}

impl Inner {
    async fn follow(self: Arc<Self>, mut watch: Box<dyn WatchSource>) {
        loop {
            match watch.next().await {
                Ok(WatchEvent::Changes { cursor, changes }) => {
                    self.model.write().follow(&changes, cursor);
                    self.applied.send_replace(cursor.revision.0);
                }
                Ok(WatchEvent::Compacted { .. } | WatchEvent::Reset { .. }) => watch = self.reload().await,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::error!(%error, "the config service cannot follow its store; it will try again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn reload(&self) -> Box<dyn WatchSource> {
        loop {
            match load(&self.store).await {
                Ok((model, watch)) => {
                    let revision = model.revision;
                    *self.model.write() = model;
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
        precondition: bool,
    ) -> Result<Applied, ConfigError> {
        let author = author(caller, change)?;
        let edits = keyed(change)?;
        let time = rfc3339_millis(self.clock.wall());
        for _ in 0..TRIES {
            let generations = self.generations(&edits).await?;
            let mut draft = {
                let model = self.model.read();
                check_expected(&model, change, precondition)?;
                let guards = check_schemas(&model, &edits)?;
                draft(&model, change, &edits, &author, &time, guards)
            };
            draft.txn.compares.extend(generations);
            if draft.txn.ops.is_empty() {
                return Ok(Applied { revision: self.model.read().revision, versions: draft.versions });
            }
            match self.store.commit(draft.txn).await? {
                Outcome::Done(cursor) => {
                    self.shown(cursor.revision.0).await;
                    return Ok(Applied { revision: cursor.revision.0, versions: draft.versions });
                }
                // The loser of a race looks at the winner's document: only then can it tell who was first.
                Outcome::Conflict { current, .. } => {
                    let newest = current.iter().flatten().map(|entry| entry.modified.0).max().unwrap_or(0);
                    self.shown(newest).await;
                }
            }
        }
        Err(ConfigError::Contended)
    }

    /// The conditions that no document was written of a kind whose schema is edited. The model shows all documents
    /// written until then.
    async fn generations(&self, edits: &BTreeMap<Key, Value>) -> Result<Vec<Compare>, ConfigError> {
        let mut conditions = Vec::new();
        for schema in edits.keys().filter(|key| key.kind == schema::KIND) {
            let key = Key { kind: schema.name.clone(), ..schema.clone() }.generation();
            if conditions.iter().any(|compare: &Compare| compare.key == key) {
                continue;
            }
            let entry = self.store.get(&key).await?.entry;
            let condition = entry.map_or(Condition::Absent, |entry| Condition::Modified(entry.modified));
            if let Condition::Modified(revision) = condition {
                self.shown(revision.0).await;
            }
            conditions.push(Compare { key, condition });
        }
        Ok(conditions)
    }

    /// What a change would do; all is checked, nothing is written.
    pub(crate) fn plan(&self, change: &Change) -> Result<Vec<Planned>, ConfigError> {
        let edits = keyed(change)?;
        let model = self.model.read();
        check_expected(&model, change, false)?;
        check_schemas(&model, &edits)?;
        let planned = edits.iter().map(|(key, content)| {
            let before = model.existing(key);
            let (was, null) = (before.map(|document| &document.content), Value::Null);
            let differences = differences(was.unwrap_or(&null), content);
            let action = match (was, content) {
                (None, Value::Null) => Action::Unchanged,
                (None, _) => Action::Create,
                (Some(_), Value::Null) => Action::Delete,
                (Some(_), _) if differences.is_empty() => Action::Unchanged,
                (Some(_), _) => Action::Update,
            };
            let Key { namespace, kind, name } = key.clone();
            let revision = before.map_or(0, |document| document.version.revision);
            Planned { namespace, kind, name, revision, action, differences }
        });
        Ok(planned.collect())
    }

    /// A document at a revision, from the store.
    pub(crate) async fn at(&self, key: &Key, revision: u64) -> Result<Document, ConfigError> {
        let found = self.store.get(&key.revision(revision)).await?.entry;
        let missing =
            || ConfigError::unknown(format!("{key} has no revision {revision}; its history lists all"));
        serde_json::from_slice(&found.ok_or_else(missing)?.value).map_err(|error| {
            ConfigError::invalid(format!("revision {revision} of {key} is not understood: {error}"))
        })
    }

    /// All revisions, the last one first.
    pub(crate) async fn history(&self, key: &Key) -> Result<Vec<Version>, ConfigError> {
        let entries = self.store.list(&key.revisions()).await?.entries;
        if entries.is_empty() {
            return Err(unknown(key));
        }
        let versions = entries.iter().rev().filter_map(|entry| serde_json::from_slice(&entry.value).ok());
        Ok(versions.collect())
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

/// Refuses a change after which a document breaks its schema; returns the schemas' documents that this was decided by.
fn check_schemas(model: &Model, edits: &BTreeMap<Key, Value>) -> Result<BTreeSet<Key>, ConfigError> {
    let mut guards = BTreeSet::new();
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
        let places = schema::places(key);
        guards.extend(places.iter().cloned());
        let Some(content) = model.content_after(key, edits) else { continue };
        let found = places.into_iter().find_map(|place| Some((model.content_after(&place, edits)?, place)));
        let Some((schema, place)) = found else { continue };
        if !compiled.contains_key(&place) {
            compiled.insert(place.clone(), schema::compile(&place, schema)?);
        }
        broken.extend(schema::check(&compiled[&place], key, content));
    }
    if broken.is_empty() { Ok(guards) } else { Err(ConfigError::Schema { broken }) }
}

/// A change ready to be committed.
struct Draft {
    txn: Txn,
    versions: Vec<Version>,
}

fn unchanged(model: &Model, key: &Key) -> Condition {
    model
        .documents
        .get(key)
        .map_or(Condition::Absent, |current| Condition::Modified(Revision(current.modified)))
}

fn draft(
    model: &Model,
    change: &Change,
    edits: &BTreeMap<Key, Value>,
    author: &str,
    time: &str,
    guards: BTreeSet<Key>,
) -> Draft {
    let mut draft = Draft { txn: Txn::new(), versions: Vec::new() };
    let mut touched = BTreeSet::new();
    for guard in guards.into_iter().filter(|guard| !edits.contains_key(guard)) {
        draft.txn = draft.txn.when(&guard.head(), unchanged(model, &guard));
    }
    for (key, content) in edits {
        let last = model.last(key);
        let hash = (!content.is_null()).then(|| hash(content));
        draft.txn = draft.txn.when(&key.head(), unchanged(model, key));
        if let Some(last) = last.filter(|last| last.hash == hash) {
            draft.versions.push(last.clone());
            continue;
        }
        if last.is_none() && content.is_null() {
            continue;
        }
        let version = Version {
            namespace: key.namespace.clone(),
            kind: key.kind.clone(),
            name: key.name.clone(),
            revision: last.map_or(0, |last| last.revision) + 1,
            author: author.to_owned(),
            message: change.message.clone(),
            time: time.to_owned(),
            deleted: hash.is_none(),
            hash,
        };
        let document = Document { version, content: content.clone() };
        let json = |value: serde_json::Result<Vec<u8>>| {
            value.expect("documents have text keys and no failing serializer")
        };
        draft.txn = draft.txn.then(Op::put(&key.head(), json(serde_json::to_vec(&document.version))));
        let place = key.revision(document.version.revision);
        draft.txn = draft.txn.then(Op::put(&place, json(serde_json::to_vec(&document))));
        draft.versions.push(document.version);
        touched.insert(key.generation());
    }
    draft.txn.ops.extend(touched.iter().map(|key| Op::put(key, Vec::new())));
    draft
}
