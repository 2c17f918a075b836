//! `/v1/kv/…` and `/v1/txn`.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Answer, Call, answer, consul_headers};
use crate::error::RegistryError;
use crate::fields::Fields;
use crate::kv::{Found, MAX_VALUE, Mode, Verb};
use crate::service::Inner;

/// Operations of a transaction, as Consul has it.
const MAX_OPS: usize = 128;

pub(super) fn routes() -> Router<Arc<Inner>> {
    let key = get(read).put(write).delete(remove);
    Router::new()
        .route("/v1/kv/{*key}", key)
        .route("/v1/kv/", get(read_all).delete(remove_all))
        .route("/v1/kv", get(read_all).delete(remove_all))
        .route("/v1/txn", put(txn))
}

fn shape(found: &Found) -> Value {
    let value = (!found.pair.value.is_empty()).then(|| STANDARD.encode(&found.pair.value));
    let mut shape = json!({
        "LockIndex": found.pair.head.lock_index,
        "Key": found.key,
        "Flags": found.pair.head.flags,
        "Value": value,
        "CreateIndex": found.created,
        "ModifyIndex": found.modified,
    });
    if let Some(session) = &found.pair.head.session {
        shape["Session"] = json!(session);
    }
    shape
}

async fn read_all(call: Call) -> Answer {
    read(Path(String::new()), call).await
}

async fn read(Path(key): Path<String>, mut call: Call) -> Answer {
    let blocking = call.blocking()?;
    let (recurse, keys) = (call.query.flag("recurse"), call.query.flag("keys"));
    let (raw, separator) = (call.query.flag("raw"), call.query.text("separator"));
    let pretty = call.end()?;
    let tree = recurse || keys;
    if key.is_empty() && !tree {
        return Err(RegistryError::invalid("Missing key name"));
    }
    let quiet = call.inner.kv_wait(&key, tree, blocking.index, blocking.wait).await?;
    let index = |revision: u64| if quiet { blocking.index } else { revision.max(1) };
    if tree {
        let (cursor, found) = call.inner.kv_list(&key).await?;
        let index = index(cursor.revision.0);
        if found.is_empty() {
            return Ok(absent(index));
        }
        return Ok(if keys {
            answer(Some(index), &key_names(&found, &key, separator.as_deref().unwrap_or_default()), pretty)
        } else {
            answer(Some(index), &found.iter().map(shape).collect::<Vec<_>>(), pretty)
        });
    }
    let (cursor, found) = call.inner.kv_get(&key).await?;
    let index = index(cursor.revision.0);
    Ok(match found {
        None => absent(index),
        Some(found) if raw => raw_value(index, found),
        Some(found) => answer(Some(index), &json!([shape(&found)]), pretty),
    })
}

fn absent(index: u64) -> Response {
    let mut headers = HeaderMap::new();
    consul_headers(&mut headers, index);
    (StatusCode::NOT_FOUND, headers).into_response()
}

fn raw_value(index: u64, found: Found) -> Response {
    let mut headers = HeaderMap::new();
    consul_headers(&mut headers, index);
    // What others stored must not run as a page of ours.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    (headers, found.pair.value).into_response()
}

/// Names only, each cut behind the first separator after the prefix.
fn key_names(found: &[Found], prefix: &str, separator: &str) -> Vec<String> {
    let cut = |key: &str| {
        let at = if separator.is_empty() { None } else { key[prefix.len()..].find(separator) };
        at.map_or(key, |at| &key[..prefix.len() + at + separator.len()]).to_owned()
    };
    let mut names: Vec<String> = found.iter().map(|found| cut(&found.key)).collect();
    names.dedup();
    names
}

fn check_value(value: &[u8]) -> Result<(), RegistryError> {
    if value.len() > MAX_VALUE {
        let (size, most) = (value.len(), MAX_VALUE);
        return Err(
            meshwork_store::StoreError::Limit { what: "bytes of a value", found: size, max: most }.into()
        );
    }
    Ok(())
}

async fn write(Path(key): Path<String>, mut call: Call) -> Answer {
    let flags = call.query.number("flags")?.unwrap_or(0);
    let mut modes: Vec<Mode> = call.query.number("cas")?.map(Mode::Cas).into_iter().collect();
    modes.extend(call.query.text("acquire").map(Mode::Acquire));
    modes.extend(call.query.text("release").map(Mode::Release));
    let pretty = call.end()?;
    if modes.len() > 1 {
        return Err(RegistryError::invalid("Conflicting flags: write only one of cas, acquire and release"));
    }
    check_value(&call.body)?;
    let mode = modes.pop().unwrap_or(Mode::Plain);
    let done = call.inner.kv_put(&key, call.body.clone(), flags, &mode).await?;
    Ok(answer(None, &done, pretty))
}

async fn remove_all(call: Call) -> Answer {
    remove(Path(String::new()), call).await
}

async fn remove(Path(key): Path<String>, mut call: Call) -> Answer {
    let recurse = call.query.flag("recurse");
    let cas = call.query.number("cas")?;
    let pretty = call.end()?;
    if recurse && cas.is_some() {
        return Err(RegistryError::invalid("Conflicting flags: write only one of cas and recurse"));
    }
    if recurse {
        call.inner.kv_delete_tree(&key).await?;
        return Ok(answer(None, &true, pretty));
    }
    if key.is_empty() {
        return Err(RegistryError::invalid("Missing key name"));
    }
    Ok(answer(None, &call.inner.kv_delete(&key, cas).await?, pretty))
}

async fn txn(mut call: Call) -> Answer {
    let pretty = call.end()?;
    let wrong = |e| RegistryError::invalid(format!("the transaction is no JSON list: {e}"));
    let ops: Vec<Value> = serde_json::from_slice(&call.body).map_err(wrong)?;
    if ops.len() > MAX_OPS {
        let why = format!("Transaction contains too many operations ({} > {MAX_OPS})", ops.len());
        return Err(RegistryError::invalid(why));
    }
    let ops = ops.into_iter().map(operation).collect::<Result<Vec<_>, _>>()?;
    match call.inner.kv_txn(&ops).await? {
        Ok(results) => {
            let results: Vec<Value> = results.iter().map(|found| json!({"KV": shape(found)})).collect();
            Ok(answer(None, &json!({"Results": results, "Errors": null}), pretty))
        }
        Err(errors) => {
            let errors: Vec<Value> =
                errors.into_iter().map(|(index, what)| json!({"OpIndex": index, "What": what})).collect();
            let body = answer(None, &json!({"Results": null, "Errors": errors}), pretty);
            Ok((StatusCode::CONFLICT, body).into_response())
        }
    }
}

fn operation(value: Value) -> Result<(String, Verb), RegistryError> {
    let mut fields = Fields::of("an operation", value)?;
    let kv = fields.value("KV");
    fields.finish()?;
    let kv = kv.ok_or_else(|| {
        RegistryError::invalid("an operation must be a KV operation; others are not supported")
    })?;
    let mut kv = Fields::of("a KV operation", kv)?;
    let verb = kv.text("Verb")?.unwrap_or_default();
    let key = kv.text("Key")?.unwrap_or_default();
    let encoded = kv.text("Value")?.unwrap_or_default();
    let value =
        STANDARD.decode(encoded).map_err(|e| RegistryError::invalid(format!("Value must be base64: {e}")))?;
    check_value(&value)?;
    let flags = kv.number("Flags")?.unwrap_or(0);
    let index = kv.number("Index")?.unwrap_or(0);
    let session = kv.text("Session")?.unwrap_or_default();
    kv.finish()?;
    let put = |mode| Verb::Put(mode, Bytes::from(value.clone()), flags);
    let verb = match verb.as_str() {
        "set" => put(Mode::Plain),
        "cas" => put(Mode::Cas(index)),
        "lock" => put(Mode::Acquire(session)),
        "unlock" => put(Mode::Release(session)),
        "get" => Verb::Get { required: true },
        "get-or-empty" => Verb::Get { required: false },
        "get-tree" => Verb::GetTree,
        "check-index" => Verb::CheckIndex(index),
        "check-session" => Verb::CheckSession(session),
        "check-not-exists" => Verb::CheckNotExists,
        "delete" => Verb::Delete,
        "delete-tree" => Verb::DeleteTree,
        "delete-cas" => Verb::DeleteCas(index),
        other => return Err(RegistryError::invalid(format!("unknown verb {other:?} of a KV operation"))),
    };
    if key.is_empty() && !matches!(verb, Verb::GetTree | Verb::DeleteTree) {
        return Err(RegistryError::invalid("a KV operation needs a Key"));
    }
    Ok((key, verb))
}
