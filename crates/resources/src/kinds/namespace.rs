//! Kubernetes' `Namespace`: what matters of it are its labels.

use crate::decode::{Cx, record};
use crate::kinds::{Body, at_top};
use crate::object::ObjectMeta;

record! {
    /// What Kubernetes notes beside a namespace's metadata; listeners select namespaces by their labels.
    pub struct Namespace {
        /// Kubernetes' own: what must run before the namespace is gone. Kept for output only.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub spec: Option<serde_json::Value>,
    }
}

impl Body for Namespace {
    at_top!();

    fn validate(&self, _: &ObjectMeta, _: &mut Cx) {}
}
