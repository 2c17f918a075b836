//! What removes documents: one change of the config service, whose histories stay. The check is that of `apply`: what
//! would be an error without them refuses the change, what is only doubtful is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use meshwork_api::apply::{Delete, DocumentName, Stored};
use meshwork_api::config::{Action, Change, Edit, Planned};
use meshwork_process::Problem;
use meshwork_resources::Object;
use serde_json::Value;

use super::apply::{
    Draft, MAX_BODY, PATIENCE, Why, bad_body, covers, followed, not_in, store, stored_kind, synced,
};
use super::parse_kind;
use crate::config::{CLUSTER, Followed, PREFIX, bounded};
use crate::{ControlPlane, Model, codes};

pub(super) fn router(plane: ControlPlane) -> Router {
    Router::new().route("/v1/delete", post(delete)).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(plane)
}

async fn delete(State(plane): State<ControlPlane>, body: Bytes) -> Result<Json<Stored>, Problem> {
    let followed = followed(&plane)?;
    let Delete { files, documents, ignore_absent, message, author } =
        serde_json::from_slice(&body).map_err(|error| bad_body(error.to_string()))?;
    let mut names: BTreeSet<DocumentName> = documents.into_iter().map(stored).collect();
    if !files.is_empty() {
        names.extend(Draft::read(&files)?.edits.into_iter().map(|edit| {
            let Edit { namespace, kind, name, .. } = edit;
            DocumentName { namespace, kind, name }
        }));
    }
    if names.is_empty() {
        return Err(bad_body("it names no document; send `files` or `documents`".to_owned()));
    }
    // In a store that was emptied nothing is there to be removed, and what is in force stays.
    covers(followed, &[])?;
    let mut draft = without(&*synced(&plane)?, names)?;
    let absent = absent(followed, &draft).await?;
    if !ignore_absent {
        all_there(&absent, draft.edits.len())?;
    }
    draft.edits.retain(|Edit { namespace, kind, name, .. }| {
        !absent.iter().any(|gone| (&gone.namespace, &gone.kind, &gone.name) == (namespace, kind, name))
    });
    if draft.edits.is_empty() {
        let (config_revision, revision) = *followed.read.borrow();
        return Ok(Json(Stored { config_revision, revision, versions: Vec::new(), warnings: Vec::new() }));
    }
    store(&plane, followed, draft, Why { message, author }).await
}

/// The name under which the document is stored.
fn stored(DocumentName { namespace, kind, name }: DocumentName) -> DocumentName {
    let is_namespaced = parse_kind(&kind).is_none_or(|kind| kind.is_namespaced());
    let namespace = if is_namespaced { namespace } else { CLUSTER.to_owned() };
    DocumentName { namespace, kind: stored_kind(kind), name }
}

/// The change that leaves these out. What was read from a folder is removed there.
fn without(model: &Model, names: BTreeSet<DocumentName>) -> Result<Draft, Problem> {
    let mut draft = Draft::default();
    for wanted in names {
        if let Some(object) = model.objects.values().find(|object| is_it(object, &wanted)) {
            if !object.source.file.starts_with(PREFIX) {
                return Err(in_a_folder(object));
            }
            draft.removed.push(object.key());
        }
        let DocumentName { namespace, kind, name } = wanted;
        draft.edits.push(Edit { namespace, kind, name, content: Value::Null, if_revision: None });
    }
    Ok(draft)
}

fn is_it(object: &Arc<Object>, wanted: &DocumentName) -> bool {
    let key = object.key();
    key.kind.as_str() == wanted.kind
        && key.name.as_str() == wanted.name
        && key.namespace.as_ref().is_none_or(|namespace| namespace.as_str() == wanted.namespace)
}

fn in_a_folder(object: &Object) -> Problem {
    let detail = format!("{} is written at {}; remove it there", object.key(), object.source);
    Problem::new(StatusCode::CONFLICT, "the object is not in the config service")
        .detail(detail)
        .code(codes::NO_SUCH_OBJECT)
}

/// Those that are not there.
async fn absent(followed: &Followed, draft: &Draft) -> Result<Vec<Planned>, Problem> {
    let change = Change { message: String::new(), author: None, edits: draft.edits.clone() };
    let (client, store) = (&followed.client, followed.found());
    let mut planned = match bounded(client, PATIENCE, client.plan_in(&store.read, &change)).await {
        Ok(planned) => planned,
        Err(error) => return Err(not_in(followed, &store, &change.edits, error).await),
    };
    planned.retain(|planned| planned.action != Action::Delete);
    Ok(planned)
}

/// Nothing is removed where one of them is not there, unless that is said: a name is misspelt more often than removed twice.
fn all_there(absent: &[Planned], wanted: usize) -> Result<(), Problem> {
    if absent.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = absent
        .iter()
        .map(|planned| format!("{} {}/{}", planned.kind, planned.namespace, planned.name))
        .collect();
    let others = if names.len() < wanted { "; `--ignore-not-found` removes the others" } else { "" };
    let detail = format!("there is no {}; nothing was removed{others}", names.join(", no "));
    Err(Problem::new(StatusCode::NOT_FOUND, "no such object")
        .detail(detail)
        .code(codes::NO_SUCH_OBJECT)
        .with("absent", names))
}
