//! The names of documents, and under which keys they are stored: `d/NAMESPACE/KIND/NAME` holds what the last revision
//! is, `v/NAMESPACE/KIND/NAME/REVISION` each revision whole, `g/KIND` (in lower case) is touched by every write of a kind.

use std::fmt;

use meshwork_api::config::Version;
use meshwork_base::{Namespace, ObjectName};

use crate::error::ConfigError;

/// Longest name of a kind.
const MAX_KIND: usize = 63;

/// Which document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

    /// Where what the last revision is is stored.
    pub(crate) fn head(&self) -> String {
        format!("d/{self}")
    }

    /// Where a revision is stored; in the order of revisions.
    pub(crate) fn revision(&self, revision: u64) -> String {
        format!("v/{self}/{revision:020}")
    }

    /// What every write of the kind touches: a schema is published only if no document of its kind was written since
    /// the documents were checked against it.
    pub(crate) fn generation(&self) -> String {
        format!("g/{}", self.kind.to_ascii_lowercase())
    }

    /// Where all revisions are stored.
    pub(crate) fn revisions(&self) -> String {
        format!("v/{self}/")
    }
}
