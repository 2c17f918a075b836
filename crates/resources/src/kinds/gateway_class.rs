//! `GatewayClass`.

use meshwork_base::{Namespace, ObjectName};

use crate::decode::text::{ControllerName, Group, KindRef};
use crate::decode::{Cx, record};
use crate::kinds::{Body, in_spec};
use crate::object::ObjectMeta;
use crate::span::Spanned;

record! {
    /// Which controller runs the gateways that name this class.
    pub struct GatewayClass {
        /// The controller.
        pub controller_name: Spanned<ControllerName> as "controllerName",
        /// An object with the controller's settings.
        pub parameters_ref: Option<Spanned<ParametersReference>> as "parametersRef",
        /// For people.
        pub description: Option<String> [0..=64],
    }
}

record! {
    /// An object with a controller's settings.
    pub struct ParametersReference {
        /// The API group.
        pub group: Group,
        /// The kind.
        pub kind: KindRef,
        /// The name.
        pub name: ObjectName,
        /// The namespace, for kinds that have one.
        pub namespace: Option<Namespace>,
    }
}

impl Body for GatewayClass {
    in_spec!();

    fn validate(&self, _: &ObjectMeta, _: &mut Cx) {}
}
