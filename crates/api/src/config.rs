//! The config service's API (`/v1/…`): documents with a history.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{Client, ClientError, body, segment};

/// One revision of a document, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// The document's namespace.
    pub namespace: String,
    /// Its kind, such as `HTTPRoute` or `Settings`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// 1 for the first, then up; never used twice, not even after a deletion.
    pub revision: u64,
    /// Who wrote it.
    pub author: String,
    /// Why, in the author's words.
    pub message: String,
    /// When (RFC 3339).
    pub time: String,
    /// SHA-256 of the content in its canonical form, as lower-case hex; absent for a deletion.
    pub hash: Option<String>,
    /// This revision removed the document.
    #[serde(default)]
    pub deleted: bool,
}

/// A document at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// Whose and which revision.
    #[serde(flatten)]
    pub version: Version,
    /// When the document came into being (RFC 3339): an edit keeps it, and one that was removed and is written again is a
    /// new one. Absent for a deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The content; null for a deletion.
    pub content: Value,
}

/// One edit of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edit {
    /// The document's namespace.
    pub namespace: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its new content; null removes it.
    pub content: Value,
    /// Its last revision must be this one; 0: it must not exist; absent: whatever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
}

/// Several edits that happen together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Change {
    /// Why.
    #[serde(default)]
    pub message: String,
    /// Who wants it, where the caller is only known to be on this machine; else the caller's identity is the author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// The edits; each document once.
    pub edits: Vec<Edit>,
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The store's revision with the change in it.
    pub revision: u64,
    /// The documents' new revisions; one whose content was already so keeps its last.
    pub versions: Vec<Version>,
}

/// One difference between two revisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Where (JSON pointer, RFC 6901).
    pub path: String,
    /// What was there; absent when it was added.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub before: Option<Value>,
    /// What is there; absent when it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub after: Option<Value>,
}

/// A null that is there is not the same as nothing.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// What an edit would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The document is new.
    Create,
    /// It has another content.
    Update,
    /// It goes.
    Delete,
    /// It is so already.
    Unchanged,
}

/// An edit that was not made, and what it would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// The document's namespace.
    pub namespace: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its last revision; 0: there is none.
    pub revision: u64,
    /// What would happen.
    pub action: Action,
    /// In which places.
    pub differences: Vec<Difference>,
}

/// What changed since a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Which life of the service the revision belongs to.
    pub epoch: String,
    /// Where it is; ask from here next.
    pub revision: u64,
    /// Of the last change before it. Where a store went back to an older copy of itself it has another one there, or none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mark: String,
    /// `documents` is everything: forget what is not in it.
    pub reset: bool,
    /// Documents as they are now; one with `deleted` is gone.
    pub documents: Vec<Document>,
}

/// A place in the service's history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// From [`Changes::epoch`].
    pub epoch: String,
    /// From [`Changes::revision`].
    pub revision: u64,
    /// From [`Changes::mark`]; empty where the service has told none.
    pub mark: String,
}

impl Since {
    fn query(&self) -> String {
        let Self { epoch, revision, mark } = self;
        let mark = if mark.is_empty() { String::new() } else { format!("&mark={}", segment(mark)) };
        format!("epoch={}&since={revision}{mark}", segment(epoch))
    }
}

/// A client of the config service.
#[derive(Clone, Debug)]
pub struct ConfigClient(pub Client);

fn document(namespace: &str, kind: &str, name: &str) -> String {
    format!("/v1/documents/{}/{}/{}", segment(namespace), segment(kind), segment(name))
}

/// Whether a change was refused since the store is another one than its writer has read.
#[must_use]
pub fn is_another_store(error: &ClientError) -> bool {
    error.code() == Some("MW5045")
}

impl ConfigClient {
    /// All documents, of a kind if one is given.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self, kind: Option<&str>) -> Result<Vec<Document>, ClientError> {
        let path = kind.map_or_else(
            || "/v1/documents".to_owned(),
            |kind| format!("/v1/documents?kind={}", segment(kind)),
        );
        self.0.json(Method::GET, &path, &[], Bytes::new()).await
    }

    /// A document as it is now, or at a revision.
    ///
    /// # Errors
    /// [`ClientError`]; status 404 when there is none.
    pub async fn get(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
        revision: Option<u64>,
    ) -> Result<Document, ClientError> {
        let mut path = document(namespace, kind, name);
        if let Some(revision) = revision {
            path = format!("{path}?revision={revision}");
        }
        self.0.json(Method::GET, &path, &[], Bytes::new()).await
    }

    /// Carries out a change whole, or not at all.
    ///
    /// # Errors
    /// [`ClientError`]; status 409 when a document is not as expected, 422 when a schema refuses.
    pub async fn apply(&self, change: &Change) -> Result<Applied, ClientError> {
        self.0.json(Method::POST, "/v1/changes", &[], body(change)).await
    }

    /// The same, if this place is one in the history of the store. An earlier service asks for less, or for nothing.
    ///
    /// # Errors
    /// As [`ConfigClient::apply`]; [`is_another_store`] tells that it is another one.
    pub async fn apply_in(&self, read: &Since, change: &Change) -> Result<Applied, ClientError> {
        let path = format!("/v1/changes?{}", read.query());
        self.0.json(Method::POST, &path, &[], body(change)).await
    }

    /// What a change would do; nothing is written, but all is checked.
    ///
    /// # Errors
    /// As [`ConfigClient::apply`].
    pub async fn plan(&self, change: &Change) -> Result<Vec<Planned>, ClientError> {
        self.0.json(Method::POST, "/v1/diff", &[], body(change)).await
    }

    /// The same, in a store as [`ConfigClient::apply_in`] has it.
    ///
    /// # Errors
    /// As [`ConfigClient::apply_in`].
    pub async fn plan_in(&self, read: &Since, change: &Change) -> Result<Vec<Planned>, ClientError> {
        self.0.json(Method::POST, &format!("/v1/diff?{}", read.query()), &[], body(change)).await
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
        self.0.json(Method::GET, &(document(namespace, kind, name) + "/history"), &[], Bytes::new()).await
    }

    /// What differs between two revisions.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn diff(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
        from: u64,
        to: u64,
    ) -> Result<Vec<Difference>, ClientError> {
        let path = format!("{}/diff?from={from}&to={to}", document(namespace, kind, name));
        self.0.json(Method::GET, &path, &[], Bytes::new()).await
    }

    /// Writes the content of an earlier revision as a new one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rollback(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
        to: u64,
        message: &str,
    ) -> Result<Version, ClientError> {
        let path = document(namespace, kind, name) + "/rollback";
        self.0.json(Method::POST, &path, &[], body(&serde_json::json!({"to": to, "message": message}))).await
    }

    /// What changed since then; waits up to `wait` for a change. Without a place, everything.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn changes(&self, since: Option<&Since>, wait: Duration) -> Result<Changes, ClientError> {
        let path = since.map_or_else(
            || "/v1/watch".to_owned(),
            |at| format!("/v1/watch?{}&wait={}ms", at.query(), wait.as_millis()),
        );
        self.0.json(Method::GET, &path, &[], Bytes::new()).await
    }
}
