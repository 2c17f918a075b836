//! Copies of requests that are sent elsewhere (Gateway API, `HTTPRequestMirrorFilter`).

use meshwork_base::{Namespace, ObjectName};

use super::references::{self, core_group, kind};
use super::shaping::Fraction;
use crate::decode::text::{Group, KindRef};
use crate::decode::{Cx, record};
use crate::span::Spanned;

record! {
    /// Where copies go, and of how many requests.
    pub struct HTTPRequestMirrorFilter {
        /// To one endpoint of this.
        pub backend_ref: Spanned<BackendObjectReference> as "backendRef",
        /// So many of a hundred; all when neither this nor `fraction` is there.
        pub percent: Option<u32> [0..=100],
        /// So many, more exactly.
        pub fraction: Option<Spanned<Fraction>>,
    }
}

record! {
    /// A backend without a share.
    pub struct BackendObjectReference {
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
    }
}

impl HTTPRequestMirrorFilter {
    pub(super) fn validate(&self, cx: &mut Cx) {
        let to = &self.backend_ref;
        cx.in_field("backendRef", |cx| {
            references::validate_port(&to.group, &to.kind, &to.name, to.port, to.span, cx);
        });
        if let Some(fraction) = &self.fraction {
            let path = cx.path().to_string();
            Fraction::validate(fraction, self.percent, &path, cx);
        }
    }
}
