//! `ServiceSubset`: the endpoints of a service that have certain labels, for routes to name as a backend.

use std::collections::BTreeMap;

use meshwork_base::ObjectName;

use super::label_selector;
use crate::decode::{Cx, choice, record};
use crate::kinds::{Body, in_spec};
use crate::object::ObjectMeta;
use crate::span::Spanned;

record! {
    /// The endpoints of a service that have certain labels. A route names it as a backend, by its group and kind.
    pub struct ServiceSubset {
        /// The service, in the same namespace.
        pub service: Spanned<ObjectName>,
        /// Labels that an endpoint must have, all of them. `version` is also the version that an instance was registered
        /// with; of the endpoints of an `EndpointSlice` nothing else is known.
        pub match_labels: Spanned<BTreeMap<String, String>> as "matchLabels" [1..=16],
        /// Who is called while none of them may be.
        pub fallback: SubsetFallback = SubsetFallback::Nobody,
    }
}

choice! {
    /// Who is called while no endpoint of a subset may be.
    pub enum SubsetFallback {
        /// Nobody: requests fail, `no_healthy_upstream`. The default.
        Nobody = "None",
        /// All endpoints of the service.
        Any = "Any",
    }
}

impl Body for ServiceSubset {
    in_spec!();

    fn validate(&self, _: &ObjectMeta, cx: &mut Cx) {
        label_selector::named(&self.match_labels, cx);
    }
}
