//! References to other objects.

use meshwork_base::{Namespace, ObjectName};

use crate::decode::record;
use crate::decode::text::{Group, KindRef, SectionName};

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
