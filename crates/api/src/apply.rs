//! The control plane's API for changing what is in effect: documents are checked against everything else, then written
//! into the config service as one change.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use serde::{Deserialize, Serialize};

use crate::client::{Client, ClientError, body, segment};
use crate::config::{Planned, Version};

/// Files to be applied together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Files {
    /// The files' texts (YAML or JSON, several documents each) by the names that findings are to carry.
    pub files: BTreeMap<String, String>,
    /// Why.
    #[serde(default)]
    pub message: String,
    /// Who; absent: whoever calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

/// What is to be rolled back, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollback {
    /// The revision whose content is wanted.
    pub to: u64,
    /// Why; empty: says so.
    #[serde(default)]
    pub message: String,
    /// Who; absent: whoever calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

/// Which document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DocumentName {
    /// Its namespace.
    pub namespace: String,
    /// Its kind, as people type it.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What is to go, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delete {
    /// The documents that these files define, whatever else is in them.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Documents by name.
    #[serde(default)]
    pub documents: Vec<DocumentName>,
    /// What is not there is left out, instead of refusing all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_absent: bool,
    /// Why.
    #[serde(default)]
    pub message: String,
    /// Who; absent: whoever calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

/// A change that is stored and told to proxies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// The config service's revision with the change in it.
    pub config_revision: u64,
    /// The control plane's revision with the change in it: wait for this one to be in effect.
    pub revision: u64,
    /// The documents' revisions; one whose content was already so keeps its last.
    pub versions: Vec<Version>,
    /// What is doubtful (`check -o json` prints the same).
    pub warnings: Vec<serde_json::Value>,
}

/// Where a revision is in effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reached {
    /// So many proxies there are; an earlier control plane does not tell.
    pub proxies: Option<usize>,
    /// Those of them that are not connected, and not known to be gone.
    pub not_connected: Vec<String>,
}

/// A client of these calls.
#[derive(Clone, Debug)]
pub struct ApplyClient(pub Client);

impl ApplyClient {
    /// Checks and stores documents, all or none.
    ///
    /// # Errors
    /// [`ClientError`]; status 422 with `diagnostics` when they would not work.
    pub async fn apply(&self, files: &Files) -> Result<Stored, ClientError> {
        self.0.json(Method::POST, "/v1/apply", &[], body(files)).await
    }

    /// What [`ApplyClient::apply`] would change. Secret values are not shown.
    ///
    /// # Errors
    /// As [`ApplyClient::apply`].
    pub async fn diff(&self, files: &Files) -> Result<Vec<Planned>, ClientError> {
        self.0.json(Method::POST, "/v1/diff", &[], body(files)).await
    }

    /// All revisions of a document, the last one first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn history(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
    ) -> Result<Vec<Version>, ClientError> {
        self.0.json(Method::GET, &path("history", namespace, kind, name), &[], Bytes::new()).await
    }

    /// Writes an earlier revision as a new one.
    ///
    /// # Errors
    /// As [`ApplyClient::apply`]; status 404 when there is no such revision.
    pub async fn rollback(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
        rollback: &Rollback,
    ) -> Result<Stored, ClientError> {
        self.0.json(Method::POST, &path("rollback", namespace, kind, name), &[], body(rollback)).await
    }

    /// Removes documents, all (or all that are there) or none; their histories stay, and a rollback brings them back.
    ///
    /// # Errors
    /// [`ClientError`]; status 404 when one of them is not there, 422 with `diagnostics` when others
    /// would be wrong without them.
    pub async fn delete(&self, delete: &Delete) -> Result<Stored, ClientError> {
        self.0.json(Method::POST, "/v1/delete", &[], body(delete)).await
    }

    /// Where a revision is in effect by now, without waiting.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reached(&self, revision: u64) -> Result<Reached, ClientError> {
        self.0.json(Method::GET, &format!("/v1/revision?revision={revision}"), &[], Bytes::new()).await
    }

    /// Waits until a revision is in effect on all workers of all proxies, also of those that are not connected and not known
    /// to be gone. `timeout` as in `30s`.
    ///
    /// # Errors
    /// [`ClientError`]; status 504, with the proxies that are `behind`, of them those that are `notConnected`, when time is
    /// up.
    pub async fn effective(&self, revision: u64, timeout: &str) -> Result<Reached, ClientError> {
        let path = format!("/v1/revision?wait=effective&revision={revision}&timeout={}", segment(timeout));
        self.0.json(Method::GET, &path, &[], Bytes::new()).await
    }
}

fn path(verb: &str, namespace: &str, kind: &str, name: &str) -> String {
    format!("/v1/{verb}/{}/{}/{}", segment(kind), segment(namespace), segment(name))
}
