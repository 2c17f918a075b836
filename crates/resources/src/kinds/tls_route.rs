//! `TLSRoute`: where TLS connections go, by the server name that the client sends.

use super::references::{self, ParentReference, StreamRule};
use crate::codes;
use crate::decode::text::Hostname;
use crate::decode::{Cx, record};
use crate::kinds::{Body, first_repeated, in_spec};
use crate::object::ObjectMeta;
use crate::span::Spanned;

record! {
    /// Where TLS connections go, by the server name that the client sends (SNI).
    pub struct TLSRoute {
        /// What it attaches to.
        pub parent_refs: Vec<Spanned<ParentReference>> as "parentRefs" [0..=32],
        /// The server names it serves.
        pub hostnames: Vec<Spanned<Hostname>> [1..=1024],
        /// Its one rule.
        pub rules: Vec<Spanned<StreamRule>> [1..=1],
    }
    unimplemented { "useDefaultGateways" }
}

impl Body for TLSRoute {
    in_spec!();

    fn validate(&self, _: &ObjectMeta, cx: &mut Cx) {
        cx.in_field("spec", |cx| {
            references::validate_parents(&self.parent_refs, cx);
            if let Some((later, _)) = first_repeated(&self.hostnames, |hostname| Some(hostname.inner.clone()))
            {
                let hostname = &self.hostnames[later];
                let message = format!("hostname `{}` stands above", hostname.inner);
                cx.error(hostname.span, codes::DUPLICATE_ENTRY, message);
            }
            for (index, rule) in self.rules.iter().enumerate() {
                cx.in_field("rules", |cx| cx.in_item(index, |cx| rule.validate(cx)));
            }
        });
    }
}
