//! Schemas: what a document must look like before it is published.

use jsonschema::Validator;
use serde_json::Value;

use crate::error::{Broken, ConfigError};
use crate::key::Key;

/// The kind of a schema's document.
pub(crate) const KIND: &str = "JSONSchema";
/// The namespace whose schemas count where a document's own has none.
pub(crate) const SHARED: &str = "default";
/// Places that are told; more would not help.
const MAX_TOLD: usize = 20;

/// The documents that may hold the schema of a document, the one that counts first. Schemas have none.
pub(crate) fn places(key: &Key) -> Vec<Key> {
    if key.kind == KIND {
        return Vec::new();
    }
    let name = key.kind.to_ascii_lowercase();
    let place =
        |namespace: &str| Key { namespace: namespace.to_owned(), kind: KIND.to_owned(), name: name.clone() };
    let mut places = vec![place(&key.namespace)];
    if key.namespace != SHARED {
        places.push(place(SHARED));
    }
    places
}

/// Whether a schema's document may be about a document.
pub(crate) fn concerns(schema: &Key, document: &Key) -> bool {
    document.kind != KIND
        && schema.name == document.kind.to_ascii_lowercase()
        && (schema.namespace == document.namespace || schema.namespace == SHARED)
}

/// Reads a schema. One that refers to other files or hosts is refused: nothing is fetched.
pub(crate) fn compile(key: &Key, content: &Value) -> Result<Validator, ConfigError> {
    jsonschema::validator_for(content).map_err(|error| {
        let broken = Broken {
            document: key.to_string(),
            path: error.instance_path().to_string(),
            message: format!("it is no JSON Schema: {error}"),
        };
        ConfigError::Schema { broken: vec![broken] }
    })
}

/// Where a content breaks a schema.
pub(crate) fn check(validator: &Validator, key: &Key, content: &Value) -> Vec<Broken> {
    let told = validator.iter_errors(content).take(MAX_TOLD);
    told.map(|error| Broken {
        document: key.to_string(),
        path: error.instance_path().to_string(),
        message: error.to_string(),
    })
    .collect()
}
