//! `ListenerPolicy`: what stands before the first byte that a listener's protocol knows.

use super::target::{self, PolicyTarget};
use crate::codes;
use crate::decode::text::AddressRange;
use crate::decode::{Cx, choice, record};
use crate::kinds::{Body, first_repeated, in_spec};
use crate::object::{ObjectKind, ObjectMeta};
use crate::span::Spanned;

record! {
    /// How a gateway's listeners receive connections.
    pub struct ListenerPolicy {
        /// What it is attached to: gateways, or single listeners of them.
        pub target_refs: Vec<Spanned<PolicyTarget>> as "targetRefs" [1..=16],
        /// Whether a load balancer before us says for whom it connects.
        pub proxy_protocol: InboundProxyProtocol as "proxyProtocol",
    }
}

record! {
    /// Whether a load balancer before us says for whom it connects, by HAProxy's PROXY protocol.
    pub struct InboundProxyProtocol {
        /// The versions that are understood.
        pub versions: Vec<Spanned<ProxyProtocolVersion>> [1..=2] = both(),
        /// Whether a connection from a trusted source must begin with the header.
        pub required: bool = true,
        /// Who is believed. A connection from anywhere else is taken for its caller's own, and a header in it for data.
        pub trusted_sources: Vec<Spanned<AddressRange>> as "trustedSources" [1..=256],
    }
}

choice! {
    /// A version of the PROXY protocol.
    pub enum ProxyProtocolVersion {
        /// One line of text.
        V1 = "v1",
        /// Binary, with a checksum where the sender adds one.
        V2 = "v2",
    }
}

fn both() -> Vec<Spanned<ProxyProtocolVersion>> {
    ProxyProtocolVersion::ALL.iter().map(|version| Spanned::unwritten(*version)).collect()
}

impl Body for ListenerPolicy {
    in_spec!();

    fn validate(&self, meta: &ObjectMeta, cx: &mut Cx) {
        target::validate(&self.target_refs, &[ObjectKind::Gateway], meta, cx);
        if let Some((later, _)) = first_repeated(&self.proxy_protocol.versions, |v| Some(v.inner)) {
            let version = &self.proxy_protocol.versions[later];
            let message = format!("version `{}` stands above", version.inner);
            cx.error(version.span, codes::DUPLICATE_ENTRY, message);
        }
    }
}
