//! The compact messages that the control plane sends to proxies, and nothing else: no logic, no transport.
//!
//! The `.proto` files below `proto/meshwork/v1` are the documentation. One user object is one message; children name
//! their parents; each message is a delta resource whose type URL [`type_url`] gives.
//!
//! ```text
//! user's YAML ──resources──▶ objects ──compile──▶ messages ──xds──▶ proxy ──decision──▶ snapshot
//!                                                 ^^^^^^^^ this crate
//! ```

mod layered;

use std::fmt;

pub use layered::Layered;

/// The types of `meshwork.v1`.
#[expect(missing_docs, clippy::all, reason = "generated; the .proto files carry the comments")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/meshwork.v1.rs"));
}

/// The feature of proxies that take [`v1::Probes`].
pub const OBSERVE: &str = "observe";

/// The feature of proxies that answer a [`v1::Recall`].
pub const RECORD: &str = "record";

/// The feature of proxies that tell a [`v1::Recall`] of what they have under way too.
pub const UNDER_WAY: &str = "under-way";

/// The feature of proxies that take a [`v1::BreakerForce`] and tell their [`v1::Standings`].
pub const OPERATE: &str = "operate";

/// The type URL of a message, as resources are asked for: `type.meshwork.dev/meshwork.v1.Route`.
#[must_use]
pub fn type_url<M: prost::Name>() -> String {
    M::type_url()
}

impl fmt::Debug for v1::Secret {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("source", &self.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_are_what_proxies_ask_for() {
        assert_eq!(type_url::<v1::Route>(), "type.meshwork.dev/meshwork.v1.Route");
        assert_eq!(type_url::<v1::EndpointSlice>(), "type.meshwork.dev/meshwork.v1.EndpointSlice");
    }

    #[test]
    fn a_secret_does_not_print_its_key() {
        let secret = v1::Secret { private_key_pem: b"hush".as_slice().into(), ..Default::default() };
        assert!(!format!("{secret:?}").contains("hush"));
    }
}
