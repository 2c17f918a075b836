//! References to other objects.

use meshwork_base::{Namespace, ObjectName};

use crate::codes;
use crate::decode::text::{Group, KindRef, SectionName};
use crate::decode::{Cx, record};
use crate::span::{Span, Spanned};

pub(super) fn core_group() -> Group {
    Group::new("").expect("the core group is valid")
}

pub(super) fn gateway_group() -> Group {
    Group::new("gateway.networking.k8s.io").expect("Gateway API's group is valid")
}

pub(super) fn kind(name: &'static str) -> KindRef {
    KindRef::new(name).expect("a kind's name written here is valid")
}

record! {
    /// What a route attaches to: a `Gateway` (at the edge) or a `Service` (in the mesh).
    pub struct ParentReference {
        /// The parent's API group.
        pub group: Group = gateway_group(),
        /// The parent's kind.
        pub kind: KindRef = kind("Gateway"),
        /// The parent's namespace; the route's own when absent.
        pub namespace: Option<Namespace>,
        /// The parent's name.
        pub name: ObjectName,
        /// One listener of the gateway, or one port of the service, by name.
        pub section_name: Option<SectionName> as "sectionName",
        /// Only listeners, or the service's port, with this number.
        pub port: Option<u16> [1..=65_535],
    }
}

record! {
    /// Where a certificate is.
    pub struct SecretReference {
        /// The API group.
        pub group: Group = core_group(),
        /// The kind.
        pub kind: KindRef = kind("Secret"),
        /// The name.
        pub name: ObjectName,
        /// The namespace; the gateway's own when absent. Another one needs a `ReferenceGrant`.
        pub namespace: Option<Namespace>,
    }
}

record! {
    /// An object of the same namespace with further settings.
    pub struct LocalParametersReference {
        /// The API group.
        pub group: Group,
        /// The kind.
        pub kind: KindRef,
        /// The name.
        pub name: ObjectName,
    }
}

record! {
    /// A backend of a layer-4 route with its share.
    pub struct BackendRef {
        /// Its API group.
        pub group: Group = core_group(),
        /// Its kind.
        pub kind: KindRef = kind("Service"),
        /// Its name.
        pub name: ObjectName,
        /// Its namespace; the route's own when absent. Another one needs a `ReferenceGrant`.
        pub namespace: Option<Namespace>,
        /// Its port; required for a `Service`.
        pub port: Option<u16> [1..=65_535],
        /// Its share among the rule's backends; 0 takes it out.
        pub weight: u32 [0..=1_000_000] = 1,
    }
}

record! {
    /// Where the connections of a layer-4 route go.
    pub struct StreamRule {
        /// Its name.
        pub name: Option<Spanned<SectionName>>,
        /// Where they go, by weight.
        pub backend_refs: Vec<Spanned<BackendRef>> as "backendRefs" [1..=16],
    }
}

impl StreamRule {
    pub(super) fn validate(&self, cx: &mut Cx) {
        for (index, backend) in self.backend_refs.iter().enumerate() {
            cx.in_field("backendRefs", |cx| {
                cx.in_item(index, |cx| {
                    let (name, port) = (&backend.name, backend.port);
                    validate_port(&backend.group, &backend.kind, name, port, backend.span, cx);
                });
            });
        }
    }
}

/// A service is called at one of its ports.
pub(super) fn validate_port(
    group: &Group,
    kind: &KindRef,
    name: &ObjectName,
    port: Option<u16>,
    span: Span,
    cx: &mut Cx,
) {
    if group.is_empty() && *kind == "Service" && port.is_none() {
        let message = format!("`{}` refers to Service `{name}` without a `port`", cx.path());
        cx.error(span, codes::MISSING_FIELD, message).help =
            Some("add `port:` with one of the service's ports".to_owned());
    }
}

/// Two references to one parent must tell its sections apart, or the second would say nothing.
pub(super) fn validate_parents(parents: &[Spanned<ParentReference>], cx: &mut Cx) {
    for (index, later) in parents.iter().enumerate() {
        let same_parent = |earlier: &&Spanned<ParentReference>| {
            (&earlier.group, &earlier.kind, &earlier.namespace, &earlier.name)
                == (&later.group, &later.kind, &later.namespace, &later.name)
        };
        for earlier in parents[..index].iter().filter(same_parent) {
            let sections = |p: &ParentReference| (p.section_name.is_some(), p.port.is_some());
            if (&earlier.section_name, earlier.port) == (&later.section_name, later.port) {
                let message = format!("the route already refers to {} `{}` above", later.kind, later.name);
                cx.error(later.span, codes::DUPLICATE_ENTRY, message).help =
                    Some("remove it, or give it another `sectionName` or `port`".to_owned());
                break;
            }
            if sections(earlier) != sections(later) {
                let message = format!(
                    "of several references to {} `{}`, either all or none have `sectionName`, and likewise `port`",
                    later.kind, later.name
                );
                cx.error(later.span, codes::CONFLICTING_FIELDS, message);
                break;
            }
        }
    }
}
