//! The documents in memory: the current ones whole, of the others what is known of each revision. It changes only by
//! following the store's changes.

use std::collections::BTreeMap;

use meshwork_api::config::{Document, Version};
use meshwork_base::ContentHash;
use meshwork_store::{Store, StoreError};
use serde_json::Value;

use crate::key::{self, Key, Record};

/// A document as it is now. A removed one stays as such: its revisions go on from where they were.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    /// All its revisions, the first one first.
    pub(crate) versions: Vec<Version>,
    /// When it came into being; of one that was removed and written again, the last time.
    pub(crate) created: String,
    /// What the last one holds.
    pub(crate) content: Value,
    /// The store's revision that wrote it.
    pub(crate) modified: u64,
}

impl Current {
    /// Its last revision.
    pub(crate) fn last(&self) -> &Version {
        self.versions.last().expect("a document has at least the revision that made it")
    }

    /// Its last revision as writers see it: 0 when it does not exist.
    pub(crate) fn seen(&self) -> u64 {
        if self.last().deleted { 0 } else { self.last().revision }
    }

    /// Its last revision, whole.
    pub(crate) fn document(&self) -> Document {
        let version = self.last().clone();
        let created = (!version.deleted).then(|| self.created.clone());
        Document { version, created, content: self.content.clone() }
    }

    /// One of its revisions, and when the document that it was then came into being.
    pub(crate) fn at(&self, revision: u64) -> Option<(Version, Option<String>)> {
        let at = self.versions.iter().position(|version| version.revision == revision)?;
        let life = self.versions[..=at].iter().rev().take_while(|version| !version.deleted);
        Some((self.versions[at].clone(), life.last().map(|first| first.time.clone())))
    }
}

/// Which change was the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Last {
    /// Its number; 0: there is none.
    pub(crate) number: u64,
    /// The store's revision that wrote it.
    pub(crate) modified: u64,
}

/// All documents.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) epoch: u64,
    /// The store's revision of the last change, or of loading.
    pub(crate) revision: u64,
    /// The last change.
    pub(crate) last: Last,
    pub(crate) documents: BTreeMap<Key, Current>,
    /// By the store's revision of each change, what tells it from another one there.
    pub(crate) marks: BTreeMap<u64, ContentHash>,
    /// Revisions by kind, since the process started.
    pub(crate) published: BTreeMap<String, u64>,
}

/// What a caller has read, as far as it says so.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Read<'c> {
    /// Which store it was.
    pub(crate) epoch: Option<&'c str>,
    /// Up to which revision.
    pub(crate) since: Option<u64>,
    /// Of the last change up to there.
    pub(crate) mark: Option<&'c str>,
}

/// A stored change, ready to be taken over: the contents it names were read.
pub(crate) struct Step {
    pub(crate) last: Last,
    mark: ContentHash,
    versions: Vec<(Version, Value)>,
}

impl Step {
    /// Reads a change and, if they are wanted, the contents it names.
    pub(crate) async fn read(
        store: &Store,
        stored: &str,
        bytes: &[u8],
        modified: u64,
        contents: bool,
    ) -> Result<Self, StoreError> {
        let damaged = |what: String| StoreError::Damaged { path: "of the config service".to_owned(), what };
        let not_understood = || damaged(format!("the change {stored} is not understood"));
        let number = key::number(stored).ok_or_else(not_understood)?;
        let record: Record = serde_json::from_slice(bytes).map_err(|_| not_understood())?;
        let mut versions = Vec::with_capacity(record.edits.len());
        for version in record.versions() {
            let content = match &version.hash {
                Some(hash) if contents => read_content(store, hash).await?,
                _ => Value::Null,
            };
            versions.push((version, content));
        }
        Ok(Self { last: Last { number, modified }, mark: ContentHash::of(bytes), versions })
    }
}

/// Reads a content by its hash.
pub(crate) async fn read_content(store: &Store, hash: &str) -> Result<Value, StoreError> {
    let found = store.get(&key::content(hash)).await?.entry;
    let value = found.and_then(|entry| serde_json::from_slice(&entry.value).ok());
    value.ok_or_else(|| {
        let what = format!("the content {hash} is missing or not understood");
        StoreError::Damaged { path: "of the config service".to_owned(), what }
    })
}

impl Model {
    /// Reads all documents.
    pub(crate) async fn load(store: &Store) -> Result<Self, StoreError> {
        let listing = store.list(key::CHANGES).await?;
        let mut model = Self { epoch: listing.cursor.epoch, ..Self::default() };
        for entry in listing.entries {
            // Only the last content of a document is held: the others are read when asked for.
            model.take(Step::read(store, &entry.key, &entry.value, entry.modified.0, false).await?);
        }
        for current in model.documents.values_mut() {
            if let Some(hash) = current.last().hash.clone() {
                current.content = read_content(store, &hash).await?;
            }
        }
        model.revision = listing.cursor.revision.0;
        // What is loaded was published before.
        model.published.clear();
        Ok(model)
    }

    /// The epoch as callers see it.
    pub(crate) fn epoch(&self) -> String {
        format!("{:016x}", self.epoch)
    }

    /// Of the last change up to a revision: that it is the same says that all before it is. None where there was none.
    pub(crate) fn mark(&self, revision: u64) -> String {
        self.marks.range(..=revision).next_back().map_or_else(String::new, |(_, mark)| mark.to_string())
    }

    /// Whether what a caller has read is in this history, as far as it says. A copy of a store, put in its place later, has the
    /// same epoch and counts on from where it was made.
    pub(crate) fn was_read(&self, Read { epoch, since, mark }: Read<'_>) -> bool {
        let is_there = |since| {
            since <= self.revision && mark.is_none_or(|mark| mark.is_empty() || mark == self.mark(since))
        };
        epoch.is_none_or(|epoch| epoch == self.epoch()) && since.is_none_or(is_there)
    }

    /// Takes over a change.
    pub(crate) fn take(&mut self, step: Step) {
        self.marks.insert(step.last.modified, step.mark);
        for (version, content) in step.versions {
            *self.published.entry(version.kind.clone()).or_default() += 1;
            let current = self.documents.entry(Key::of(&version)).or_insert_with(|| Current {
                versions: Vec::new(),
                created: version.time.clone(),
                content: Value::Null,
                modified: 0,
            });
            // What is written again after it was removed is another document: others may have taken its place.
            if current.versions.last().is_some_and(|last| last.deleted) {
                current.created.clone_from(&version.time);
            }
            current.versions.push(version);
            (current.content, current.modified) = (content, step.last.modified);
        }
        (self.last, self.revision) = (step.last, step.last.modified);
    }

    /// A document that exists.
    pub(crate) fn existing(&self, key: &Key) -> Option<&Current> {
        self.documents.get(key).filter(|current| !current.last().deleted)
    }

    /// The content a change would leave: the change's own, else the current one.
    pub(crate) fn content_after<'a>(
        &'a self,
        key: &Key,
        edits: &'a BTreeMap<Key, Value>,
    ) -> Option<&'a Value> {
        match edits.get(key) {
            Some(Value::Null) => None,
            Some(content) => Some(content),
            None => self.existing(key).map(|current| &current.content),
        }
    }
}
