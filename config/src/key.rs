//! The names of documents, and what is written to the store.
//!
//! `x/NUMBER` is a change: who, why, when, and which documents got which content. `b/HASH` is a content. Contents are
//! written first and mean nothing until a change names them; the next change's number being free is the one condition
//! on which a change is written. So a change of any size happens whole, and no two of them from the same state.

use std::fmt;

use meshwork_api::config::Version;
use meshwork_base::{Namespace, ObjectName};
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Longest name of a kind.
const MAX_KIND: usize = 63;
/// Where changes are stored.
pub(crate) const CHANGES: &str = "x/";

/// Where a change is stored; in the order of their numbers.
pub(crate) fn change(number: u64) -> String {
    format!("{CHANGES}{number:020}")
}

/// The number of the change stored there.
pub(crate) fn number(stored: &str) -> Option<u64> {
    stored.strip_prefix(CHANGES)?.parse().ok()
}

/// Where a content is stored.
pub(crate) fn content(hash: &str) -> String {
    format!("b/{hash}")
}

/// A change as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) author: String,
    pub(crate) message: String,
    pub(crate) time: String,
    pub(crate) edits: Vec<Recorded>,
}

/// One document's new revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recorded {
    #[serde(flatten)]
    pub(crate) key: Key,
    pub(crate) revision: u64,
    /// Of its content; none: it was removed.
    pub(crate) hash: Option<String>,
}

impl Record {
    /// The revisions it made.
    pub(crate) fn versions(&self) -> impl Iterator<Item = Version> {
        self.edits.iter().map(|edit| Version {
            namespace: edit.key.namespace.clone(),
            kind: edit.key.kind.clone(),
            name: edit.key.name.clone(),
            revision: edit.revision,
            author: self.author.clone(),
            message: self.message.clone(),
            time: self.time.clone(),
            hash: edit.hash.clone(),
            deleted: edit.hash.is_none(),
        })
    }
}

/// Which document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.kind, self.name)
    }
}

impl Key {
    /// Checks the three names.
    pub(crate) fn new(namespace: &str, kind: &str, name: &str) -> Result<Self, ConfigError> {
        Namespace::new(namespace).map_err(|error| ConfigError::invalid(error.to_string()))?;
        ObjectName::new(name).map_err(|error| ConfigError::invalid(error.to_string()))?;
        let mut letters = kind.chars();
        let begins = letters.next().is_some_and(|c| c.is_ascii_alphabetic());
        if !begins || !letters.all(|c| c.is_ascii_alphanumeric()) || kind.len() > MAX_KIND {
            let why =
                format!("kind `{kind}` must be 1 to {MAX_KIND} letters and digits and begin with a letter");
            return Err(ConfigError::invalid(why));
        }
        Ok(Self { namespace: namespace.to_owned(), kind: kind.to_owned(), name: name.to_owned() })
    }

    pub(crate) fn of(version: &Version) -> Self {
        let (namespace, kind, name) = (&version.namespace, &version.kind, &version.name);
        Self { namespace: namespace.clone(), kind: kind.clone(), name: name.clone() }
    }
}
