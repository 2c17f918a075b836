//! `/v1/session/…`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::{get, put};
use serde_json::{Value, json};

use super::{Answer, Call, answer};
use crate::doc::{Behavior, Session};
use crate::error::RegistryError;
use crate::model::{Model, Stored};
use crate::service::Inner;
use crate::session::NODE_ALIVE;
use crate::topics::Topic;

/// Consul's bounds.
const DEFAULT_LOCK_DELAY: Duration = Duration::from_secs(15);
const MAX_LOCK_DELAY: Duration = Duration::from_secs(60);
const MIN_TTL: Duration = Duration::from_secs(10);
const MAX_TTL: Duration = Duration::from_secs(86_400);

pub(super) fn routes() -> Router<Arc<Inner>> {
    Router::new()
        .route("/v1/session/create", put(create))
        .route("/v1/session/destroy/{id}", put(destroy))
        .route("/v1/session/renew/{id}", put(renew))
        .route("/v1/session/info/{id}", get(info))
        .route("/v1/session/node/{*name}", get(of_node))
        .route("/v1/session/list", get(list))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn shape(id: &str, stored: &Stored<Session>) -> Value {
    let session = &stored.doc;
    let mut checks = session.node_checks.clone();
    checks.extend(session.service_checks.iter().cloned());
    json!({
        "ID": id,
        "Name": session.name,
        "Node": session.node,
        "LockDelay": session.lock_delay * 1_000_000,
        "Behavior": session.behavior,
        "TTL": session.ttl.map(|ttl| format!("{}s", ttl / 1000)).unwrap_or_default(),
        "Checks": checks,
        "NodeChecks": session.node_checks,
        "ServiceChecks": session.service_checks.iter().map(|id| json!({"ID": id, "Namespace": ""})).collect::<Vec<_>>(),
        "CreateIndex": stored.created,
        "ModifyIndex": stored.modified,
    })
}

async fn create(mut call: Call) -> Answer {
    let pretty = call.end()?;
    let mut fields = call.fields("the session")?;
    let lock_delay = match fields.value("LockDelay") {
        None => DEFAULT_LOCK_DELAY,
        // A number below a thousand is in seconds, as old clients send it.
        Some(Value::Number(number)) if number.as_u64().is_some_and(|n| n < 1000) => {
            Duration::from_secs(number.as_u64().unwrap_or(0))
        }
        Some(value) => {
            let zero = matches!(&value, Value::String(text) if text == "0s" || text == "0");
            let mut fields = crate::fields::Fields::of("the session", json!({"LockDelay": value}))?;
            let given = fields.duration("LockDelay")?;
            given.unwrap_or(if zero { Duration::ZERO } else { DEFAULT_LOCK_DELAY })
        }
    };
    if lock_delay > MAX_LOCK_DELAY {
        return Err(RegistryError::invalid(format!("LockDelay must be at most {MAX_LOCK_DELAY:?}")));
    }
    let ttl = fields.duration("TTL")?.filter(|ttl| !ttl.is_zero());
    if ttl.is_some_and(|ttl| !(MIN_TTL..=MAX_TTL).contains(&ttl)) {
        return Err(RegistryError::invalid(format!("Invalid Session TTL: write {MIN_TTL:?} to {MAX_TTL:?}")));
    }
    let behavior = match fields.text("Behavior")?.as_deref() {
        None | Some("release") => Behavior::Release,
        Some("delete") => Behavior::Delete,
        Some(other) => {
            return Err(RegistryError::invalid(format!("Behavior must be release or delete, not {other:?}")));
        }
    };
    let node = fields.text("Node")?.unwrap_or_else(|| call.inner.options.node.clone());
    let named = fields.value("NodeChecks").or_else(|| fields.value("Checks"));
    let mut node_checks = vec![NODE_ALIVE.to_owned()];
    if let Some(named) = named {
        node_checks = crate::fields::Fields::of("the session", json!({"Checks": named}))?.texts("Checks")?;
    }
    let mut service_checks = Vec::new();
    for value in fields.list("ServiceChecks")? {
        let mut check = crate::fields::Fields::of("a ServiceCheck", value)?;
        service_checks.extend(check.text("ID")?);
        check.only("Namespace", &["default"])?;
        check.finish()?;
    }
    let name = fields.text("Name")?.unwrap_or_default();
    fields.only("Datacenter", &[&call.inner.options.datacenter])?;
    fields.finish()?;
    let (lock_delay, ttl) = (millis(lock_delay), ttl.map(millis));
    let session = Session { name, node, lock_delay, behavior, ttl, node_checks, service_checks };
    let id = call.inner.create_session(&session).await?;
    Ok(answer(None, &json!({"ID": id}), pretty))
}

async fn destroy(Path(id): Path<String>, mut call: Call) -> Answer {
    let pretty = call.end()?;
    call.inner.invalidate(&id).await?;
    Ok(answer(None, &true, pretty))
}

async fn renew(Path(id): Path<String>, mut call: Call) -> Answer {
    let pretty = call.end()?;
    let gone = || RegistryError::unknown(format!("Session id {id:?} not found"));
    if !call.inner.renew_session(&id) {
        return Err(gone());
    }
    let shape = call.inner.model.read().sessions.get(&id).map(|stored| shape(&id, stored));
    Ok(answer(None, &json!([shape.ok_or_else(gone)?]), pretty))
}

/// Sessions that are wanted, as a blocking query.
async fn some(mut call: Call, wanted: impl Fn(&str, &Session) -> bool) -> Answer {
    let blocking = call.blocking()?;
    let pretty = call.end()?;
    let read = |model: &Model| {
        let found = model.sessions.iter().filter(|(id, stored)| wanted(id, &stored.doc));
        found.map(|(id, stored)| shape(id, stored)).collect::<Vec<_>>()
    };
    let (index, found) = call.inner.blocking(&Topic::Sessions, blocking.index, blocking.wait, read).await;
    Ok(answer(Some(index), &found, pretty))
}

async fn info(Path(wanted): Path<String>, call: Call) -> Answer {
    some(call, |id, _| id == wanted).await
}

async fn of_node(Path(name): Path<String>, call: Call) -> Answer {
    some(call, |_, session| session.node == name).await
}

async fn list(call: Call) -> Answer {
    some(call, |_, _| true).await
}
