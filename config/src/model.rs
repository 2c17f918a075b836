//! The current documents in memory: what the store holds, following it.

use std::collections::BTreeMap;

use meshwork_api::config::{Document, Version};
use meshwork_store::{Change, Cursor};
use serde_json::Value;

use crate::key::Key;

/// A document as it is now. A removed one stays as such: its revisions go on from where they were.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    pub(crate) document: Document,
    /// The store's revision that wrote it.
    pub(crate) modified: u64,
}

impl Current {
    /// Its last revision as writers see it: 0 when it does not exist.
    pub(crate) fn seen(&self) -> u64 {
        if self.document.version.deleted { 0 } else { self.document.version.revision }
    }
}

/// All current documents.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) epoch: u64,
    pub(crate) revision: u64,
    pub(crate) documents: BTreeMap<Key, Current>,
}

impl Model {
    /// Takes over changes of the store. A head and the revision it names are written together, so both are in them.
    pub(crate) fn follow(&mut self, changes: &[Change], cursor: Cursor) {
        for change in changes {
            let Some(entry) = change.entry.as_ref().filter(|entry| entry.key.starts_with("v/")) else {
                continue;
            };
            match serde_json::from_slice::<Document>(&entry.value) {
                Ok(document) => self.take(document, change.revision.0),
                Err(error) => tracing::error!(key = entry.key, %error, "a stored document is not understood"),
            }
        }
        (self.epoch, self.revision) = (cursor.epoch, cursor.revision.0);
    }

    pub(crate) fn take(&mut self, document: Document, modified: u64) {
        self.documents.insert(Key::of(&document.version), Current { document, modified });
    }

    /// A document that exists.
    pub(crate) fn existing(&self, key: &Key) -> Option<&Document> {
        self.documents.get(key).map(|current| &current.document).filter(|document| !document.version.deleted)
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
            None => self.existing(key).map(|document| &document.content),
        }
    }

    /// The last revision of a document, the removed ones counted; 0 when it never was.
    pub(crate) fn last(&self, key: &Key) -> Option<&Version> {
        self.documents.get(key).map(|current| &current.document.version)
    }
}
