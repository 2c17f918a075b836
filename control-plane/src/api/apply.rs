//! What changes documents: checked against everything else that is in effect, written into the config service as one
//! change, and answered when proxies are being told.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use meshwork_api::ClientError;
use meshwork_api::apply::{Files, Rollback, Stored};
use meshwork_api::config::{Change, Document, Edit, Planned, Version, is_another_store};
use meshwork_compile::{Input, ProxyReports};
use meshwork_process::Problem;
use meshwork_resources::{
    Diagnostic, FileName, Loaded, Object, ObjectKey, ObjectKind, Severity, Span, Timestamp, load_file,
    written,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::parse_kind;
use crate::config::{
    CLUSTER, Followed, PREFIX, Store, address_of, applied_at, bounded, file_name, is_mesh, settle,
};
use crate::pipeline::waits;
use crate::{ControlPlane, Model, codes};

/// Longest body: the config service takes a few megabytes at once.
pub(super) const MAX_BODY: usize = 8 << 20;
/// How long the config service may take for one call, and the control plane to read what it wrote there.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// The age of what is not stored yet.
const YOUNGEST: &str = "9999-12-31T23:59:59.999Z";
/// Of what a change leaves out so much is named.
const NAMED: usize = 5;
/// What a file is called that came without a name.
const BODY: &str = "request";

pub(super) fn router(plane: ControlPlane) -> Router {
    Router::new()
        .route("/v1/apply", post(apply))
        .route("/v1/diff", post(diff))
        .route("/v1/history/{kind}/{namespace}/{name}", get(history))
        .route("/v1/rollback/{kind}/{namespace}/{name}", post(rollback))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(plane)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Why {
    #[serde(default)]
    pub(super) message: String,
    pub(super) author: Option<String>,
}

/// The files of a body: JSON with `files`, else the body is one file itself.
fn files(body: &[u8], why: Why) -> Result<Files, Problem> {
    let is_json = serde_json::from_slice::<Value>(body).is_ok_and(|body| body.get("files").is_some());
    if is_json {
        return serde_json::from_slice(body).map_err(|error| bad_body(error.to_string()));
    }
    // Lossless: what is not UTF-8 is refused.
    let text = std::str::from_utf8(body).map_err(|error| bad_body(error.to_string()))?;
    let files = BTreeMap::from([(BODY.to_owned(), text.to_owned())]);
    Ok(Files { files, message: why.message, author: why.author })
}

pub(super) fn bad_body(why: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "the body cannot be read").detail(why).code(codes::BAD_BODY)
}

pub(super) fn followed(plane: &ControlPlane) -> Result<&Followed, Problem> {
    plane.config.get().map(Arc::as_ref).ok_or_else(|| {
        Problem::new(StatusCode::CONFLICT, "no config service")
            .detail("resources come from folders here, and there is no config service to write into; edit the folder: edits take effect at once")
            .code(codes::NO_CONFIG_SERVICE)
    })
}

/// What the config service refused, as it said it.
pub(super) fn of_config(error: ClientError) -> Problem {
    match error {
        ClientError::Refused { status, problem, .. } => {
            let detail = problem.detail.clone().unwrap_or_else(|| problem.title.clone());
            let mut told = Problem::new(status, problem.title).detail(detail);
            for (name, value) in problem.more {
                told = told.with(&name, value);
            }
            match problem.code {
                Some(code) => told.with("code", code),
                None => told,
            }
        }
        error => unreachable_config(error.to_string()),
    }
}

fn unreachable_config(why: String) -> Problem {
    let title = "the config service cannot be reached";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, title).detail(why).code(codes::CONFIG_UNREACHABLE)
}

pub(super) fn refused(found: &[Diagnostic]) -> Problem {
    let errors = found.iter().filter(|found| found.severity == Severity::Error);
    let first = errors.clone().next().map(ToString::to_string).unwrap_or_default();
    let detail = format!("{} errors, nothing was stored; first {first}", errors.count());
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "the documents are refused")
        .detail(detail)
        .code(codes::DOCUMENTS_REFUSED)
        .with("diagnostics", json!(found))
}

/// A change that was not checked yet.
#[derive(Default)]
pub(super) struct Draft {
    /// The objects as they are to be.
    objects: Vec<Arc<Object>>,
    /// Those that are to go.
    pub(super) removed: Vec<ObjectKey>,
    pub(super) edits: Vec<Edit>,
    diagnostics: Vec<Diagnostic>,
}

impl Draft {
    /// Reads files; an error in one of them refuses all.
    pub(super) fn read(files: &BTreeMap<String, String>) -> Result<Self, Problem> {
        let mut contents = Vec::new();
        let mut loaded = Vec::new();
        for (name, text) in files {
            let name: FileName = name.as_str().into();
            loaded.push(load_file(&name, text.as_bytes()));
            contents.extend(written(&name, text.as_bytes()));
        }
        let Loaded { objects, diagnostics, .. } = Loaded::merge(&loaded);
        if diagnostics.iter().any(|found| found.severity == Severity::Error) {
            return Err(refused(&diagnostics));
        }
        if objects.is_empty() {
            return Err(bad_body("there is no document in it; send YAML or JSON resources".to_owned()));
        }
        // Without an error each document is an object, in the same order.
        let edits = objects.iter().zip(contents).map(|(object, content)| edit(object, content)).collect();
        Ok(Self { objects, removed: Vec::new(), edits, diagnostics })
    }

    /// Compiles what would be; gives what is doubtful about it.
    fn check(&self, plane: &ControlPlane, model: &Model) -> Result<Vec<Diagnostic>, Problem> {
        let elsewhere = |object: &&Arc<Object>| {
            let there = model.objects.get(&object.key())?;
            (!there.source.file.starts_with(PREFIX)).then(|| defined_elsewhere(object, there))
        };
        let mut found: Vec<Diagnostic> = self.objects.iter().filter_map(|o| elsewhere(&o)).collect();
        let mut objects = Arc::clone(&model.objects);
        let edited = Arc::make_mut(&mut objects);
        for gone in &self.removed {
            edited.remove(gone);
        }
        edited.extend(self.objects.iter().map(|object| (object.key(), aged(object, model))));
        let output = plane.checker.lock().compile(&Input {
            objects: &objects,
            catalog: &model.catalog,
            settings: &plane.compile,
            proxies: &ProxyReports::default(),
            previous: Some(&model.output),
            now: Duration::ZERO,
        });
        let ours: BTreeSet<&FileName> = self.objects.iter().map(|object| &object.source.file).collect();
        // What is wrong already is not this change's fault.
        let is_new =
            |found: &Diagnostic| ours.contains(&found.file) || !model.output.diagnostics.contains(found);
        found.extend(output.diagnostics.iter().filter(|found| is_new(found)).cloned());
        if found.iter().any(|found| found.severity == Severity::Error) {
            return Err(refused(&found));
        }
        found.extend_from_slice(&self.diagnostics);
        Ok(found)
    }
}

/// An object as old as it will be: as the one that it takes the place of, else younger than all there are. What it says
/// itself does not count.
fn aged(object: &Object, model: &Model) -> Arc<Object> {
    let mut object = object.clone();
    object.meta.creation_timestamp = match model.objects.get(&object.key()) {
        Some(there) => there.meta.creation_timestamp.clone(),
        None => Timestamp::parse(YOUNGEST).ok(),
    };
    Arc::new(object)
}

fn defined_elsewhere(object: &Object, there: &Object) -> Diagnostic {
    let span = Span { line: object.source.line, column: object.source.column, len: 0 };
    let message = format!("{} is already written at {}", object.key(), there.source);
    Diagnostic::error(&object.source.file, span, meshwork_resources::codes::DUPLICATE_OBJECT, message)
        .with_help("edit it there, or remove it there first")
}

/// An object as a document: as it was written, without what only a store says of it.
fn edit(object: &Object, mut content: Value) -> Edit {
    let kind = object.kind.name();
    let namespace = if kind.is_namespaced() { object.meta.namespace.as_str() } else { CLUSTER };
    if let Some(fields) = content.as_object_mut() {
        fields.remove("status");
        if let Some(meta) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            for of_a_store in ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"] {
                meta.remove(of_a_store);
            }
            if kind.is_namespaced() {
                meta.insert("namespace".to_owned(), namespace.into());
            }
        }
    }
    Edit {
        namespace: namespace.to_owned(),
        kind: kind.as_str().to_owned(),
        name: object.meta.name.as_str().to_owned(),
        content,
        if_revision: None,
    }
}

/// The model, once it is one.
pub(super) fn synced(plane: &ControlPlane) -> Result<Arc<Model>, Problem> {
    let model = plane.model();
    if model.revision > 0 {
        return Ok(model);
    }
    let why = match model.lacking.split_first() {
        Some((first, more)) => waits(first, more.len()),
        None => "the control plane has not read all of its sources yet; try again in a moment".to_owned(),
    };
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not yet synced").detail(why).code(codes::NOT_SYNCED))
}

/// The model that a change is checked against. While all waits for an emptied store, what is written into it ends that.
fn checkable(plane: &ControlPlane, followed: &Followed) -> Result<Arc<Model>, Problem> {
    synced(plane).or_else(|problem| if followed.is_emptied() { Ok(plane.model()) } else { Err(problem) })
}

/// What is written into an emptied store takes the place of all that was in it, so it has to be about all of that.
pub(super) fn covers(followed: &Followed, edits: &[Edit]) -> Result<(), Problem> {
    let store = followed.store.borrow();
    let Some(held) = &store.emptied else { return Ok(()) };
    let written: HashSet<_> = edits
        .iter()
        .filter(|edit| !edit.content.is_null())
        .map(|edit| applied_at(&address_of(&edit.namespace, &edit.kind, &edit.name)))
        .collect();
    let lost: Vec<_> = held.iter().map(|one| applied_at(one)).filter(|one| !written.contains(one)).collect();
    if lost.is_empty() {
        return Ok(());
    }
    let why = format!(
        "the config service has lost its store, and what is in force stays until all of it is written again at once, or the folder is restored; of {} objects this change leaves out {}: {}{}",
        held.len(),
        lost.len(),
        lost[..lost.len().min(NAMED)].join(", "),
        if lost.len() > NAMED { ", …" } else { "" },
    );
    Err(Problem::new(StatusCode::CONFLICT, "the store was emptied")
        .detail(why)
        .code(codes::NOT_SYNCED)
        .with("leftOut", lost))
}

/// Why a change was not made in a store. Where that is another one by now, what was in it decides.
pub(super) async fn not_in(
    followed: &Followed,
    store: &Store,
    edits: &[Edit],
    error: ClientError,
) -> Problem {
    if is_another_store(&error) {
        followed.finds_another(store, PATIENCE).await;
        if let Err(emptied) = covers(followed, edits) {
            return emptied;
        }
    }
    of_config(error)
}

async fn apply(
    State(plane): State<ControlPlane>,
    Query(why): Query<Why>,
    body: Bytes,
) -> Result<Json<Stored>, Problem> {
    let followed = followed(&plane)?;
    let Files { files, message, author } = files(&body, why)?;
    let draft = Draft::read(&files)?;
    store(&plane, followed, draft, Why { message, author }).await
}

/// Checks a change against what is in effect, writes it, and waits until it is read back.
pub(super) async fn store(
    plane: &ControlPlane,
    followed: &Followed,
    draft: Draft,
    why: Why,
) -> Result<Json<Stored>, Problem> {
    let _alone = followed.writing.lock().await;
    let store = followed.found();
    let warnings = draft.check(plane, &*checkable(plane, followed)?)?;
    covers(followed, &draft.edits)?;
    let change = Change { message: why.message, author: why.author, edits: draft.edits };
    let client = &followed.client;
    let applied = match bounded(client, PATIENCE, client.apply_in(&store.read, &change)).await {
        Ok(applied) => applied,
        Err(error) => return Err(not_in(followed, &store, &change.edits, error).await),
    };
    let mut read = followed.read.subscribe();
    // A revision of a store that has come in between is none of this change.
    let is_read = |(revision, _): &(u64, u64)| *revision >= applied.revision && followed.has(&store);
    let until = read.wait_for(is_read);
    let revision = match tokio::time::timeout(PATIENCE, until).await {
        // The sender lives as long as the control plane.
        Ok(Ok(read)) => read.1,
        _ => {
            let why = format!(
                "stored as revision {} of the config service, but the control plane has not read it back yet; it takes effect when it has",
                applied.revision
            );
            return Err(unreachable_config(why).with("configRevision", applied.revision));
        }
    };
    let warnings = warnings.iter().map(|found| json!(found)).collect();
    Ok(Json(Stored { config_revision: applied.revision, revision, versions: applied.versions, warnings }))
}

async fn diff(
    State(plane): State<ControlPlane>,
    Query(why): Query<Why>,
    body: Bytes,
) -> Result<Json<Vec<Planned>>, Problem> {
    let followed = followed(&plane)?;
    let draft = Draft::read(&files(&body, why)?.files)?;
    let store = followed.found();
    draft.check(&plane, &*checkable(&plane, followed)?)?;
    covers(followed, &draft.edits)?;
    let change = Change { message: String::new(), author: None, edits: draft.edits };
    let client = &followed.client;
    let mut planned = match bounded(client, PATIENCE, client.plan_in(&store.read, &change)).await {
        Ok(planned) => planned,
        Err(error) => return Err(not_in(followed, &store, &change.edits, error).await),
    };
    for secret in planned.iter_mut().filter(|planned| planned.kind == ObjectKind::Secret.as_str()) {
        secret.differences.iter_mut().filter(|found| !found.path.starts_with("/metadata")).for_each(
            |found| {
                for value in [&mut found.before, &mut found.after].into_iter().flatten() {
                    *value = "<redacted>".into();
                }
            },
        );
    }
    Ok(Json(planned))
}

/// The kind as documents are stored: a mesh resource's own name in any of its forms, else as it was given.
pub(super) fn stored_kind(kind: String) -> String {
    parse_kind(&kind).map_or(kind, |kind| kind.as_str().to_owned())
}

async fn history(
    State(plane): State<ControlPlane>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
) -> Result<Json<Vec<Version>>, Problem> {
    let client = &followed(&plane)?.client;
    let kind = stored_kind(kind);
    let history = client.history(&namespace, &kind, &name);
    bounded(client, PATIENCE, history).await.map(Json).map_err(of_config)
}

async fn rollback(
    State(plane): State<ControlPlane>,
    Path((kind, namespace, name)): Path<(String, String, String)>,
    body: Bytes,
) -> Result<Json<Stored>, Problem> {
    let followed = followed(&plane)?;
    let Rollback { to, message, author } =
        serde_json::from_slice(&body).map_err(|error| bad_body(error.to_string()))?;
    // There is no history to go back in either.
    covers(followed, &[])?;
    let kind = stored_kind(kind);
    let client = &followed.client;
    let get = client.get(&namespace, &kind, &name, Some(to));
    let document = bounded(client, PATIENCE, get).await.map_err(of_config)?;
    let mut draft = Draft::default();
    if is_mesh(&kind) {
        draft = earlier(&plane, document.clone())?;
    }
    draft.edits = vec![Edit { namespace, kind, name, content: document.content, if_revision: None }];
    let message = if message.is_empty() { format!("rolled back to revision {to}") } else { message };
    store(&plane, followed, draft, Why { message, author }).await
}

/// The content of an earlier revision as what is to be.
fn earlier(plane: &ControlPlane, document: Document) -> Result<Draft, Problem> {
    let Document { version, created, mut content } = document;
    let file = file_name(&version);
    if content.is_null() {
        // That revision removed it.
        let now = plane.model();
        let is_it = |object: &&Arc<Object>| is_of(&object.source.file, &file);
        let removed = now.objects.values().find(is_it).map(|object| object.key());
        return Ok(Draft { removed: removed.into_iter().collect(), ..Draft::default() });
    }
    settle(&mut content, &version, created.as_deref()).map_err(bad_body)?;
    let text = serde_json::to_string_pretty(&content).expect("JSON can be written");
    Draft::read(&BTreeMap::from([(file.to_string(), text)]))
}

/// Whether two files are revisions of one document.
fn is_of(one: &str, other: &str) -> bool {
    let address = |file: &str| file.rsplit_once('@').map(|(address, _)| address.to_owned());
    address(one).is_some() && address(one) == address(other)
}
