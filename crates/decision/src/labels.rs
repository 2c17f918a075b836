//! Labels by which endpoints of a service are told apart: by subsets, and by who goes first. They mean the same in both.

use std::collections::BTreeMap;

use crate::endpoint::Endpoint;

/// The label that is also the version which an endpoint says by itself.
const VERSION: &str = "version";

/// Whether an endpoint has all of these.
pub(crate) fn has(endpoint: &Endpoint, labels: &BTreeMap<String, String>) -> bool {
    labels.iter().all(|(name, value)| {
        let own = endpoint.labels.get(name).map(String::as_str);
        own.or_else(|| (name == VERSION).then_some(&*endpoint.version)) == Some(value)
    })
}
