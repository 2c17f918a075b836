//! What a policy is attached to (`targetRefs` of Gateway API's policy attachment).

use meshwork_base::ObjectName;

use crate::codes;
use crate::decode::fields::list;
use crate::decode::text::{Group, KindRef, SectionName};
use crate::decode::{Cx, record};
use crate::object::{ObjectKind, ObjectMeta};
use crate::span::Spanned;

record! {
    /// An object of the policy's own namespace, or that namespace itself.
    pub struct PolicyTarget {
        /// Its API group; empty for `Service` and `Namespace`.
        pub group: Group,
        /// Its kind.
        pub kind: KindRef,
        /// Its name.
        pub name: ObjectName,
        /// One listener of a `Gateway`, rule of an `HTTPRoute` or port of a `Service`, by name.
        pub section_name: Option<SectionName> as "sectionName",
    }
}

impl PolicyTarget {
    /// Its kind, once it has been validated.
    #[must_use]
    pub fn object_kind(&self) -> Option<ObjectKind> {
        ObjectKind::parse(&self.kind).filter(|kind| self.group == kind.group())
    }
}

pub(super) fn validate(
    targets: &[Spanned<PolicyTarget>],
    allowed: &[ObjectKind],
    meta: &ObjectMeta,
    cx: &mut Cx,
) {
    for (index, target) in targets.iter().enumerate() {
        if targets[..index].contains(target) {
            let message = format!("target {} `{}` stands above", target.kind, target.name);
            cx.error(target.span, codes::DUPLICATE_ENTRY, message);
        }
        let Some(kind) = allowed.iter().find(|kind| target.kind == kind.as_str()) else {
            let names: Vec<&str> = allowed.iter().map(|kind| kind.as_str()).collect();
            let message = format!("the policy cannot be attached to a `{}`", target.kind);
            cx.error(target.span, codes::UNKNOWN_VALUE, message).help =
                Some(format!("it attaches to {}", list(&names)));
            continue;
        };
        if target.group != kind.group() {
            let message = format!("`{kind}` is not of the group `{}`", target.group);
            cx.error(target.span, codes::INVALID_VALUE, message).help =
                Some(format!("write `group: \"{}\"`", kind.group()));
        }
        if *kind == ObjectKind::Namespace {
            validate_namespace(target, meta, cx);
        }
    }
}

fn validate_namespace(target: &Spanned<PolicyTarget>, meta: &ObjectMeta, cx: &mut Cx) {
    if target.name.as_str() != meta.namespace.as_str() {
        let message = format!(
            "a policy of namespace `{}` cannot be attached to namespace `{}`",
            meta.namespace, target.name
        );
        cx.error(target.span, codes::INVALID_VALUE, message).help =
            Some(format!("write `name: {}`, or put the policy into the other namespace", meta.namespace));
    }
    if target.section_name.is_some() {
        let message = "a namespace has no sections: remove `sectionName`";
        cx.error(target.span, codes::CONFLICTING_FIELDS, message);
    }
}
