//! `Gateway`: where traffic enters.

use std::collections::BTreeMap;
use std::net::IpAddr;

use meshwork_base::ObjectName;

use super::label_selector::LabelSelector;
use super::references::{LocalParametersReference, SecretReference, gateway_group};
use crate::codes;
use crate::decode::text::{Group, Hostname, KindRef, SectionName};
use crate::decode::{Cx, choice, record};
use crate::kinds::{Body, first_repeated, in_spec};
use crate::object::ObjectMeta;
use crate::span::{Span, Spanned};

record! {
    /// Where traffic enters: addresses and listeners.
    pub struct Gateway {
        /// Its class.
        pub gateway_class_name: Spanned<ObjectName> as "gatewayClassName",
        /// Its listeners.
        pub listeners: Vec<Spanned<Listener>> [1..=64],
        /// Where it listens; the gateway process's own address when empty.
        pub addresses: Vec<Spanned<GatewayAddress>> [0..=16],
        /// Marks for what a controller creates to run it.
        pub infrastructure: Option<GatewayInfrastructure>,
    }
    unimplemented { "allowedListeners", "tls", "defaultScope" }
}

record! {
    /// One port that the gateway listens on, perhaps for one host name only.
    pub struct Listener {
        /// Its name, unique in the gateway; routes attach to it by `sectionName`.
        pub name: Spanned<SectionName>,
        /// The host names it serves; any when absent.
        pub hostname: Option<Spanned<Hostname>>,
        /// The port.
        pub port: u16 [1..=65_535],
        /// What is spoken on it.
        pub protocol: Spanned<Protocol>,
        /// Its certificates; for `HTTPS` and `TLS` only, and there required.
        pub tls: Option<Spanned<ListenerTls>>,
        /// Which routes may attach.
        pub allowed_routes: AllowedRoutes as "allowedRoutes" = AllowedRoutes::default(),
    }
}

choice! {
    /// What a listener speaks. That Meshwork does not serve one yet is a condition of the listener
    /// (`UnsupportedProtocol`), as Gateway API specifies.
    pub enum Protocol {
        /// HTTP/1.1 and HTTP/2 in cleartext.
        Http = "HTTP",
        /// HTTP/1.1 and HTTP/2 within TLS.
        Https = "HTTPS",
        /// TLS, routed by SNI.
        Tls = "TLS",
        /// TCP.
        Tcp = "TCP",
        /// UDP.
        Udp = "UDP",
    }
}

choice! {
    /// Who ends TLS.
    pub enum TlsMode {
        /// The gateway.
        Terminate = "Terminate",
        /// The backend.
        Passthrough = "Passthrough",
    }
}

record! {
    /// TLS of a listener.
    pub struct ListenerTls {
        /// Who ends it.
        pub mode: TlsMode = TlsMode::Terminate,
        /// Certificates; the client's SNI and abilities choose among several.
        pub certificate_refs: Vec<Spanned<SecretReference>> as "certificateRefs" [0..=64],
    }
    unimplemented { "options" }
}

record! {
    /// Which routes may attach to a listener.
    #[derive(Default)]
    pub struct AllowedRoutes {
        /// From which namespaces.
        pub namespaces: RouteNamespaces = RouteNamespaces::default(),
        /// Of which kinds; those that fit the protocol when empty.
        pub kinds: Vec<Spanned<RouteGroupKind>> [0..=8],
    }
}

record! {
    /// From which namespaces routes may attach.
    pub struct RouteNamespaces {
        /// The choice.
        pub from: FromNamespaces = FromNamespaces::Same,
        /// With `from: Selector`: the labels the namespace must have.
        pub selector: Option<Spanned<LabelSelector>>,
    }
}

impl Default for RouteNamespaces {
    fn default() -> Self {
        Self { from: FromNamespaces::Same, selector: None }
    }
}

choice! {
    /// From which namespaces routes may attach.
    pub enum FromNamespaces {
        /// Any.
        All = "All",
        /// Those that the selector selects.
        Selector = "Selector",
        /// The gateway's own.
        Same = "Same",
    }
}

record! {
    /// A kind of route.
    pub struct RouteGroupKind {
        /// Its API group.
        pub group: Group = gateway_group(),
        /// Its kind.
        pub kind: KindRef,
    }
}

record! {
    /// An address to listen on.
    pub struct GatewayAddress {
        /// What `value` is.
        pub address_type: AddressType as "type" = AddressType::IPAddress,
        /// The address; any of its type when empty.
        pub value: String [0..=253] = String::new(),
    }
}

choice! {
    /// What an address is.
    pub enum AddressType {
        /// An IP address.
        IPAddress = "IPAddress",
        /// A DNS name.
        Hostname = "Hostname",
        /// A name that the controller knows.
        NamedAddress = "NamedAddress",
    }
}

record! {
    /// Marks for what a controller creates to run a gateway.
    pub struct GatewayInfrastructure {
        /// Labels.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub labels: BTreeMap<String, String> [0..=8],
        /// Annotations.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub annotations: BTreeMap<String, String> [0..=16],
        /// An object with further settings.
        pub parameters_ref: Option<Spanned<LocalParametersReference>> as "parametersRef",
    }
}

impl Body for Gateway {
    in_spec!();

    fn validate(&self, _: &ObjectMeta, cx: &mut Cx) {
        for listener in &self.listeners {
            listener.validate(listener.span, cx);
        }
        self.validate_distinct(cx);
        for address in &self.addresses {
            address.validate(address.span, cx);
        }
    }
}

impl Gateway {
    fn validate_distinct(&self, cx: &mut Cx) {
        if let Some((later, _)) =
            first_repeated(&self.listeners, |listener| Some(listener.name.inner.clone()))
        {
            let name = &self.listeners[later].name;
            cx.error(
                name.span,
                codes::DUPLICATE_ENTRY,
                format!("a listener named `{}` stands above", name.inner),
            );
        }
        let place =
            |l: &Spanned<Listener>| Some((l.port, *l.protocol, l.hostname.as_ref().map(|h| h.inner.clone())));
        if let Some((later, earlier)) = first_repeated(&self.listeners, place) {
            let message = format!(
                "listeners `{}` and `{}` have the same port, protocol and hostname",
                self.listeners[earlier].name.inner, self.listeners[later].name.inner
            );
            cx.error(self.listeners[later].span, codes::DUPLICATE_ENTRY, message).help =
                Some("give one of them another `port` or `hostname`".to_owned());
        }
        let written =
            |a: &Spanned<GatewayAddress>| (!a.value.is_empty()).then(|| (a.address_type, a.value.clone()));
        if let Some((later, _)) = first_repeated(&self.addresses, written) {
            let address = &self.addresses[later];
            let message = format!("address `{}` stands above", address.value);
            cx.error(address.span, codes::DUPLICATE_ENTRY, message);
        }
    }
}

impl Listener {
    fn validate(&self, span: Span, cx: &mut Cx) {
        let protocol = *self.protocol;
        let encrypted = matches!(protocol, Protocol::Https | Protocol::Tls);
        match &self.tls {
            Some(tls) if !encrypted => {
                let message = format!("listener `{}` speaks {protocol}, which has no `tls`", self.name.inner);
                let help = if protocol == Protocol::Http {
                    "write `protocol: HTTPS`, or remove `tls`"
                } else {
                    "remove `tls`"
                };
                cx.error(tls.span, codes::CONFLICTING_FIELDS, message).help = Some(help.to_owned());
            }
            Some(tls) => tls.validate(protocol, tls.span, cx),
            None if encrypted => {
                let message = format!("listener `{}` speaks {protocol} and has no `tls`", self.name.inner);
                cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                    Some("add `tls: {certificateRefs: [{name: …}]}`".to_owned());
            }
            None => {}
        }
        if let (Protocol::Tcp | Protocol::Udp, Some(hostname)) = (protocol, &self.hostname) {
            let message =
                format!("listener `{}` speaks {protocol}, which has no `hostname`", self.name.inner);
            cx.error(hostname.span, codes::CONFLICTING_FIELDS, message);
        }
        self.allowed_routes.namespaces.validate(span, cx);
    }
}

impl ListenerTls {
    fn validate(&self, protocol: Protocol, span: Span, cx: &mut Cx) {
        match self.mode {
            TlsMode::Passthrough if protocol == Protocol::Https => {
                let message = "a listener that speaks HTTPS ends TLS itself: its `tls.mode` is `Terminate`";
                cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                    Some("for pass-through write `protocol: TLS`".to_owned());
            }
            TlsMode::Terminate if self.certificate_refs.is_empty() => {
                let message = "`tls.mode: Terminate` needs a certificate";
                cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                    Some("add `certificateRefs: [{name: …}]`".to_owned());
            }
            TlsMode::Passthrough | TlsMode::Terminate => {}
        }
    }
}

impl RouteNamespaces {
    fn validate(&self, listener: Span, cx: &mut Cx) {
        match (&self.selector, self.from) {
            (Some(selector), FromNamespaces::Selector) => selector.validate(cx),
            (None, FromNamespaces::Selector) => {
                let message = "`namespaces.from: Selector` needs a `selector`";
                cx.error(listener, codes::CONFLICTING_FIELDS, message);
            }
            (Some(selector), FromNamespaces::All | FromNamespaces::Same) => {
                let message = format!("`selector` has no effect with `from: {}`", self.from);
                cx.error(selector.span, codes::CONFLICTING_FIELDS, message).help =
                    Some("write `from: Selector`, or remove `selector`".to_owned());
            }
            (None, FromNamespaces::All | FromNamespaces::Same) => {}
        }
    }
}

impl GatewayAddress {
    fn validate(&self, span: Span, cx: &mut Cx) {
        let ok = match self.address_type {
            AddressType::IPAddress => self.value.is_empty() || self.value.parse::<IpAddr>().is_ok(),
            AddressType::Hostname => self.value.is_empty() || Hostname::new(&self.value).is_ok(),
            AddressType::NamedAddress => true,
        };
        if !ok {
            let message = format!("`{}` is no address of type {}", self.value, self.address_type);
            cx.error(span, codes::INVALID_VALUE, message);
        }
    }
}
