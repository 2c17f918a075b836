//! `ReferenceGrant`.

use meshwork_base::{Namespace, ObjectName};

use crate::decode::text::{Group, KindRef};
use crate::decode::{Cx, record};
use crate::kinds::{Body, in_spec};
use crate::object::ObjectMeta;

record! {
    /// Who of another namespace may refer to what is in this one. Every `from` may refer to every `to`.
    pub struct ReferenceGrant {
        /// Who.
        pub from: Vec<ReferenceGrantFrom> [1..=16],
        /// To what.
        pub to: Vec<ReferenceGrantTo> [1..=16],
    }
}

record! {
    /// Objects of one kind in one namespace.
    pub struct ReferenceGrantFrom {
        /// Their API group.
        pub group: Group,
        /// Their kind.
        pub kind: KindRef,
        /// Their namespace.
        pub namespace: Namespace,
    }
}

record! {
    /// Objects of one kind in the grant's namespace.
    pub struct ReferenceGrantTo {
        /// Their API group.
        pub group: Group,
        /// Their kind.
        pub kind: KindRef,
        /// One of them only.
        pub name: Option<ObjectName>,
    }
}

impl Body for ReferenceGrant {
    in_spec!();

    fn validate(&self, _: &ObjectMeta, _: &mut Cx) {}
}
