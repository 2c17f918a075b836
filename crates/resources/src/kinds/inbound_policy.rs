//! `InboundPolicy`: how an instance's inbound side receives.

use super::target::{self, PolicyTarget};
use crate::decode::{Cx, choice, record};
use crate::kinds::{Body, in_spec};
use crate::object::{ObjectKind, ObjectMeta};
use crate::span::Spanned;

record! {
    /// How the inbound side of a service's instances receives.
    pub struct InboundPolicy {
        /// What it is attached to.
        pub target_refs: Vec<Spanned<PolicyTarget>> as "targetRefs" [1..=16],
        /// Whether callers must prove who they are.
        pub mtls: InboundMtls,
    }
}

choice! {
    /// Whether callers must prove who they are.
    pub enum InboundMtls {
        /// Only mTLS is accepted.
        Strict = "Strict",
        /// Plaintext is accepted too.
        Permissive = "Permissive",
    }
}

impl Body for InboundPolicy {
    in_spec!();

    fn validate(&self, meta: &ObjectMeta, cx: &mut Cx) {
        target::validate(&self.target_refs, &[ObjectKind::Service, ObjectKind::Namespace], meta, cx);
    }
}
