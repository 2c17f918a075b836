//! The HTTP API: `/v1/…`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use meshwork_api::config::{Applied, Change, Changes, Document, Edit, Version};
use meshwork_process::{Caller, parse_duration};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::canonical::differences;
use crate::error::ConfigError;
use crate::key::Key;
use crate::model::{Current, Model, Read};
use crate::service::{Inner, Premise, unknown};

/// Longest body: a change of some thousand documents, in whatever layout it is written.
const MAX_BODY: usize = 32 << 20;
/// Longest wait of a watch.
const MAX_WAIT: Duration = Duration::from_secs(600);

pub(crate) fn router(inner: Arc<Inner>) -> Router {
    let document = "/v1/documents/{namespace}/{kind}/{name}";
    Router::new()
        .route("/v1/documents", get(list))
        .route(document, get(read).put(write).delete(remove))
        .route(&format!("{document}/history"), get(history))
        .route(&format!("{document}/diff"), get(diff))
        .route(&format!("{document}/rollback"), post(rollback))
        .route("/v1/changes", post(apply))
        .route("/v1/diff", post(plan))
        .route("/v1/watch", get(watch))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_route)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(inner)
}

async fn unknown_route(method: Method, uri: Uri) -> ConfigError {
    ConfigError::unknown(format!("the config service has no {method} {}", uri.path()))
}

type Service = State<Arc<Inner>>;
type Answer = Result<Response, ConfigError>;

/// Who calls; a request of no one known is refused. Every handler takes it, readers too: documents are not public.
struct Known(Caller);

impl<S: Sync> FromRequestParts<S> for Known {
    type Rejection = ConfigError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ConfigError> {
        parts.extensions.get::<Caller>().cloned().map(Self).ok_or(ConfigError::Unauthenticated)
    }
}

/// A query of known parameters; an unknown one is refused with its name.
struct Asked<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ConfigError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ConfigError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(asked)| Self(asked)).map_err(|error| ConfigError::invalid(error.body_text()))
    }
}

/// The document that a path names.
struct Named(Key);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ConfigError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ConfigError> {
        let path = Path::<(String, String, String)>::from_request_parts(parts, state).await;
        let Path((namespace, kind, name)) = path.map_err(|error| ConfigError::invalid(error.body_text()))?;
        Key::new(&namespace, &kind, &name).map(Self)
    }
}

fn body<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, ConfigError> {
    serde_json::from_slice(bytes).map_err(|error| ConfigError::invalid(format!("{what}: {error}")))
}

fn etag(version: &Version) -> String {
    format!("\"{}\"", version.revision)
}

fn tagged(status: StatusCode, version: &Version, value: impl serde::Serialize) -> Response {
    (status, [(header::ETAG, etag(version))], Json(value)).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    namespace: Option<String>,
    kind: Option<String>,
}

impl Wanted {
    fn admits(&self, key: &Key) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| key.namespace == *namespace)
            && self.kind.as_ref().is_none_or(|kind| key.kind == *kind)
    }
}

async fn list(State(inner): Service, Known(_): Known, Asked(wanted): Asked<Wanted>) -> Answer {
    let model = inner.model.read();
    let current = model.documents.iter().filter(|(key, _)| wanted.admits(key));
    let documents: Vec<Document> = current
        .filter(|(_, current)| !current.last().deleted)
        .map(|(_, current)| current.document())
        .collect();
    Ok(Json(documents).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct At {
    revision: Option<u64>,
}

async fn read(
    State(inner): Service,
    Known(_): Known,
    Named(key): Named,
    Asked(at): Asked<At>,
    headers: HeaderMap,
) -> Answer {
    let document = match at.revision {
        Some(revision) => inner.at(&key, revision).await?,
        None => inner.model.read().existing(&key).map(Current::document).ok_or_else(|| unknown(&key))?,
    };
    let tag = etag(&document.version);
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    if known.is_some_and(|known| known == "*" || known.split(',').any(|one| one.trim() == tag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(tagged(StatusCode::OK, &document.version, document.clone()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    #[serde(default)]
    message: String,
    author: Option<String>,
}

/// What the writer saw, from `If-Match` and `If-None-Match` (RFC 9110, section 13.1).
fn expected(inner: &Inner, key: &Key, headers: &HeaderMap) -> Result<Option<u64>, ConfigError> {
    let header = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let wrong = |name: &str, value: &str| {
        ConfigError::invalid(format!("{name} must be one revision in quotes, as \"7\", or *; not {value}"))
    };
    match (header(header::IF_MATCH), header(header::IF_NONE_MATCH)) {
        (None, None) => Ok(None),
        (None, Some("*")) => Ok(Some(0)),
        (None, Some(other)) => Err(wrong("If-None-Match", other)),
        (Some(_), Some(_)) => Err(ConfigError::invalid("write only one of If-Match and If-None-Match")),
        // Any revision will do, as long as there is one: the one that is there now.
        (Some("*"), None) => match inner.model.read().existing(key) {
            Some(current) => Ok(Some(current.seen())),
            None => {
                let document = key.to_string();
                Err(ConfigError::Conflict { document, current: 0, expected: 1, precondition: true })
            }
        },
        (Some(tag), None) => {
            let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let number = number.and_then(|number| number.parse().ok()).filter(|number| *number > 0);
            number.map(Some).ok_or_else(|| wrong("If-Match", tag))
        }
    }
}

/// One edit as a change.
fn single(key: &Key, content: Value, if_revision: Option<u64>, why: Why) -> Change {
    let Key { namespace, kind, name } = key.clone();
    let edit = Edit { namespace, kind, name, content, if_revision };
    Change { message: why.message, author: why.author, edits: vec![edit] }
}

async fn write(
    State(inner): Service,
    Known(caller): Known,
    Named(key): Named,
    Asked(why): Asked<Why>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Answer {
    let content: Value = body("the document", &bytes)?;
    if content.is_null() {
        return Err(ConfigError::invalid("a document cannot be null; DELETE removes it"));
    }
    let change = single(&key, content, expected(&inner, &key, &headers)?, why);
    let existed = inner.model.read().existing(&key).is_some();
    let applied = inner.apply(&caller, &change, Premise::HEADER).await?;
    let status = if existed { StatusCode::OK } else { StatusCode::CREATED };
    written(status, applied)
}

fn written(status: StatusCode, mut applied: Applied) -> Answer {
    let version =
        applied.versions.pop().ok_or_else(|| ConfigError::unknown("the change wrote no document"))?;
    Ok(tagged(status, &version.clone(), version))
}

async fn remove(
    State(inner): Service,
    Known(caller): Known,
    Named(key): Named,
    Asked(why): Asked<Why>,
    headers: HeaderMap,
) -> Answer {
    if inner.model.read().existing(&key).is_none() {
        return Err(unknown(&key));
    }
    let change = single(&key, Value::Null, expected(&inner, &key, &headers)?, why);
    written(StatusCode::OK, inner.apply(&caller, &change, Premise::HEADER).await?)
}

async fn history(State(inner): Service, Known(_): Known, Named(key): Named) -> Answer {
    Ok(Json(inner.history(&key)?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Between {
    from: u64,
    to: u64,
}

async fn diff(
    State(inner): Service,
    Known(_): Known,
    Named(key): Named,
    Asked(between): Asked<Between>,
) -> Answer {
    let (from, to) = (inner.at(&key, between.from).await?, inner.at(&key, between.to).await?);
    Ok(Json(differences(&from.content, &to.content)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Back {
    to: u64,
    #[serde(default)]
    message: String,
    author: Option<String>,
}

async fn rollback(
    State(inner): Service,
    Known(caller): Known,
    Named(key): Named,
    headers: HeaderMap,
    bytes: Bytes,
) -> Answer {
    let back: Back = body("the rollback", &bytes)?;
    let content = inner.at(&key, back.to).await?.content;
    let message =
        if back.message.is_empty() { format!("rolled back to revision {}", back.to) } else { back.message };
    let why = Why { message, author: back.author };
    let change = single(&key, content, expected(&inner, &key, &headers)?, why);
    written(StatusCode::OK, inner.apply(&caller, &change, Premise::HEADER).await?)
}

/// What was read when a change was made. Whatever else is asked is left out, as it was before there was this.
#[derive(Deserialize)]
struct Made {
    epoch: Option<String>,
    since: Option<u64>,
    mark: Option<String>,
}

impl Made {
    fn read(&self) -> Read<'_> {
        Read { epoch: self.epoch.as_deref(), since: self.since, mark: self.mark.as_deref() }
    }
}

async fn apply(
    State(inner): Service,
    Known(caller): Known,
    Asked(made): Asked<Made>,
    bytes: Bytes,
) -> Answer {
    let change: Change = body("the change", &bytes)?;
    let premise = Premise { is_header: false, read: made.read() };
    Ok(Json(inner.apply(&caller, &change, premise).await?).into_response())
}

async fn plan(State(inner): Service, Known(_): Known, Asked(made): Asked<Made>, bytes: Bytes) -> Answer {
    let change: Change = body("the change", &bytes)?;
    Ok(Json(inner.plan(&change, made.read())?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Waiting {
    epoch: Option<String>,
    since: Option<u64>,
    mark: Option<String>,
    wait: Option<String>,
    namespace: Option<String>,
    kind: Option<String>,
}

async fn watch(State(inner): Service, Known(_): Known, Asked(asked): Asked<Waiting>) -> Answer {
    let wait =
        asked.wait.as_deref().map_or(Ok(Duration::ZERO), parse_duration).map_err(ConfigError::invalid)?;
    let wanted = Wanted { namespace: asked.namespace, kind: asked.kind };
    let mut applied = inner.applied.subscribe();
    let timeout = tokio::time::sleep(wait.min(MAX_WAIT));
    tokio::pin!(timeout);
    loop {
        let read = Read { epoch: asked.epoch.as_deref(), since: asked.since, mark: asked.mark.as_deref() };
        let told = changes(&inner.model.read(), read, &wanted);
        if told.reset || !told.documents.is_empty() || timeout.is_elapsed() {
            return Ok(Json(told).into_response());
        }
        tokio::select! {
            // The sender lives as long as the service.
            _ = applied.changed() => {}
            () = &mut timeout => {}
        }
    }
}

/// What changed since a revision, the removed documents among it; everything that exists when that cannot be told.
fn changes(model: &Model, read: Read<'_>, wanted: &Wanted) -> Changes {
    let since = read.since.filter(|_| read.epoch.is_some() && model.was_read(read));
    let admitted = model.documents.iter().filter(|(key, _)| wanted.admits(key)).map(|(_, current)| current);
    let documents = admitted.filter(|current| match since {
        Some(since) => current.modified > since,
        None => !current.last().deleted,
    });
    let documents = documents.map(Current::document).collect();
    let (epoch, revision, mark) = (model.epoch(), model.revision, model.mark(model.revision));
    Changes { epoch, revision, mark, reset: since.is_none(), documents }
}
