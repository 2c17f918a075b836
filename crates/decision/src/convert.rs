//! From messages to what the snapshot is made of, each message on its own. A message that says something this proxy
//! does not understand is refused whole: half of a route is another route.

mod admission;
mod health_check;
mod hedge;
mod load_balancer;
mod overload;
mod policy;
mod route;
mod service;
mod shaping;
mod workload;

use std::net::IpAddr;
use std::sync::Arc;

use meshwork_messages::v1;

use crate::binding::{Protocol, Secret};
use crate::hostname::{HostPattern, HostPatternError};
use crate::matching::PatternError;
use crate::origin::Origin;

pub(crate) use hedge::hedge;
pub(crate) use policy::{closed_policy, policy, traffic_spec};
pub(crate) use route::{retry, route, timeouts};
pub(crate) use service::{EndpointSpec, Interner, PortSpec, ServiceSpec, SliceSpec, service, slice};
pub(crate) use shaping::{fault, rate_limit};
pub(crate) use workload::{ServedSpec, WorkloadSpec, bundle, workload};

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    #[error("the message cannot be decoded: {0}; the control plane must send meshwork.v1")]
    Decode(#[from] prost::DecodeError),
    #[error("{at} is absent or of a kind this proxy does not know; update the proxy, or remove it")]
    Unknown { at: String },
    #[error("{at} is `{value}`: {want}")]
    Value { at: String, value: String, want: &'static str },
    #[error("{at}: {error}")]
    Pattern { at: String, error: PatternError },
    #[error("{at}: {error}")]
    Hostname { at: String, error: HostPatternError },
    #[error("{at}: {error}")]
    Identity { at: String, error: meshwork_base::SpiffeIdError },
    #[error(
        "trust bundle {offered} is older than {held}, which stays in use; where the control plane was restored from an older copy, deny again what was revoked since: the next change of the deny entries is taken"
    )]
    OlderBundle { held: u64, offered: u64 },
}

pub(crate) type Result<T> = std::result::Result<T, ConvertError>;

pub(crate) fn value<T>(
    at: impl Into<String>,
    value: impl std::fmt::Display,
    want: &'static str,
) -> Result<T> {
    Err(ConvertError::Value { at: at.into(), value: value.to_string(), want })
}

fn unknown(at: impl Into<String>) -> ConvertError {
    ConvertError::Unknown { at: at.into() }
}

fn port(at: &str, number: u32) -> Result<u16> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => value(at, number, "write a port from 1 to 65535"),
    }
}

fn address(at: &str, text: &str) -> Result<IpAddr> {
    text.parse().or_else(|_| value(at, text, "write an IPv4 or IPv6 address"))
}

fn hostname(at: &str, text: &str) -> Result<HostPattern> {
    HostPattern::parse(text).map_err(|error| ConvertError::Hostname { at: at.to_owned(), error })
}

/// What a listener says by itself.
#[derive(Debug)]
pub(crate) struct ListenerSpec {
    pub(crate) name: Arc<str>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) addresses: Box<[IpAddr]>,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) hostname: HostPattern,
    pub(crate) secrets: Box<[Arc<str>]>,
    pub(crate) passthrough: bool,
}

pub(crate) fn listener(name: &Arc<str>, message: &v1::Listener) -> Result<ListenerSpec> {
    use v1::listener::Protocol as Wire;
    if name.split('/').count() != 3 {
        return value("name", name, "write NAMESPACE/GATEWAY/LISTENER");
    }
    let protocol = match Wire::try_from(message.protocol) {
        Ok(Wire::Http) => Protocol::Http,
        Ok(Wire::Https) => Protocol::Https,
        Ok(Wire::Tls) => Protocol::Tls,
        Ok(Wire::Tcp) => Protocol::Tcp,
        _ => {
            let want = "this proxy carries HTTP (1), HTTPS (2), TLS (3) and TCP (4)";
            return value("protocol", message.protocol, want);
        }
    };
    let (passthrough, secrets) = match (&message.tls, protocol) {
        (Some(tls), Protocol::Https) if tls.passthrough => {
            return value(
                "tls.passthrough",
                true,
                "HTTPS ends TLS here; write protocol TLS to pass it through",
            );
        }
        (Some(tls), Protocol::Https | Protocol::Tls) => {
            (tls.passthrough, tls.secrets.iter().map(|s| s.as_str().into()).collect())
        }
        (None, Protocol::Https | Protocol::Tls) => return Err(unknown("tls")),
        (Some(_), Protocol::Http | Protocol::Tcp) => {
            return value("protocol", message.protocol, "a listener with tls has protocol HTTPS or TLS");
        }
        (None, Protocol::Http | Protocol::Tcp) => (false, Box::default()),
    };
    let hostname = hostname("hostname", &message.hostname)?;
    if protocol == Protocol::Tcp && hostname != HostPattern::Any {
        return value("hostname", hostname, "TCP names no host: leave it empty");
    }
    let addresses = message.addresses.iter().map(|a| address("addresses", a)).collect::<Result<_>>()?;
    Ok(ListenerSpec {
        name: Arc::clone(name),
        origin: Arc::new(Origin::from_message(message.source.as_ref())),
        addresses,
        port: port("port", message.port)?,
        protocol,
        hostname,
        secrets,
        passthrough,
    })
}

pub(crate) fn secret(name: &Arc<str>, message: v1::Secret) -> Result<Secret> {
    for (at, pem) in [
        ("certificate_chain_pem", &message.certificate_chain_pem),
        ("private_key_pem", &message.private_key_pem),
    ] {
        if pem.is_empty() {
            return value(at, "", "write the PEM of a certificate chain and its key");
        }
    }
    Ok(Secret {
        name: Arc::clone(name),
        certificate_chain_pem: message.certificate_chain_pem,
        private_key_pem: message.private_key_pem,
    })
}
