//! Objects as Kubernetes-shaped JSON, defaults written out.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::object::Object;

/// The object as `get -o json` prints it: `apiVersion` (the preferred one), `kind`, `metadata` and its content with
/// defaults written out. Private keys and other secret bytes are `<redacted>`.
#[must_use]
pub fn to_json(object: &Object) -> Value {
    let kind = object.kind.name();
    let mut metadata = pruned(&object.meta);
    if !kind.is_namespaced() {
        metadata.remove("namespace");
    }
    let mut json = Map::new();
    json.insert("apiVersion".to_owned(), kind.api_version().into());
    json.insert("kind".to_owned(), kind.as_str().into());
    json.insert("metadata".to_owned(), metadata.into());
    json.append(&mut object.kind.to_json());
    json.into()
}

/// A kind's content below `spec`.
pub(crate) fn spec(content: &impl Serialize) -> Map<String, Value> {
    Map::from_iter([("spec".to_owned(), Value::Object(pruned(content)))])
}

/// A kind's content at the top level.
pub(crate) fn top(content: &impl Serialize) -> Map<String, Value> {
    pruned(content)
}

fn pruned(content: &impl Serialize) -> Map<String, Value> {
    let mut json =
        serde_json::to_value(content).unwrap_or_else(|error| json!({ "error": error.to_string() }));
    prune(&mut json);
    match json {
        Value::Object(map) => map,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

/// Removes what was not written: nulls and empty lists. An empty mapping may mean something (`selector: {}`).
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(prune);
            map.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()));
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}
