//! `TCPRoute`: where the connections of a port go.

use super::references::{self, ParentReference, StreamRule};
use crate::decode::{Cx, record};
use crate::kinds::{Body, in_spec};
use crate::object::ObjectMeta;
use crate::span::Spanned;

record! {
    /// Where the connections of a port go.
    pub struct TCPRoute {
        /// What it attaches to.
        pub parent_refs: Vec<Spanned<ParentReference>> as "parentRefs" [0..=32],
        /// Its one rule.
        pub rules: Vec<Spanned<StreamRule>> [1..=1],
    }
    unimplemented { "useDefaultGateways" }
}

impl Body for TCPRoute {
    in_spec!();

    fn validate(&self, _: &ObjectMeta, cx: &mut Cx) {
        cx.in_field("spec", |cx| {
            references::validate_parents(&self.parent_refs, cx);
            for (index, rule) in self.rules.iter().enumerate() {
                cx.in_field("rules", |cx| cx.in_item(index, |cx| rule.validate(cx)));
            }
        });
    }
}
