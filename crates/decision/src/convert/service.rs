//! Services and slices of their endpoints.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use meshwork_base::SpiffeId;
use meshwork_messages::v1;
use smallvec::SmallVec;

use super::{ConvertError, Result, address, port, unknown, value};
use crate::cluster::{AppProtocol, ClusterKey};
use crate::endpoint::{Health, Transport};
use crate::origin::Origin;
use crate::subset::Subset;

/// What a service says by itself.
#[derive(Debug)]
pub(crate) struct ServiceSpec {
    pub(crate) name: Arc<str>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) ports: Box<[PortSpec]>,
    /// In lower case; virtual addresses are names too, as a request's host writes them.
    pub(crate) hostnames: Box<[Arc<str>]>,
    pub(crate) spiffe_ids: Box<[SpiffeId]>,
    pub(crate) subsets: Box<[Arc<Subset>]>,
}

impl ServiceSpec {
    /// Whether it has this port, and this subset if it is one.
    pub(crate) fn has(&self, key: &ClusterKey) -> bool {
        let subset = key.subset.is_empty() || self.subsets.iter().any(|subset| subset.name == key.subset);
        subset && self.ports.iter().any(|port| port.port == key.port)
    }
}

#[derive(Debug)]
pub(crate) struct PortSpec {
    pub(crate) name: Arc<str>,
    pub(crate) port: u16,
    pub(crate) protocol: AppProtocol,
}

/// Where sidecars take HTTP unless told otherwise.
const MESH_PORT: u16 = 15006;

/// Some endpoints of one service.
#[derive(Debug)]
pub(crate) struct SliceSpec {
    pub(crate) service: Arc<str>,
    /// Names of the service's ports, and where the endpoints serve them.
    pub(crate) ports: Box<[(Arc<str>, u16)]>,
    pub(crate) endpoints: Box<[EndpointSpec]>,
}

#[derive(Debug)]
pub(crate) struct EndpointSpec {
    pub(crate) addresses: SmallVec<[IpAddr; 1]>,
    pub(crate) transport: Transport,
    pub(crate) health: Health,
    pub(crate) weight: u32,
    pub(crate) instance: Arc<str>,
    pub(crate) workload: Arc<str>,
    pub(crate) version: Arc<str>,
    pub(crate) zone: Arc<str>,
    pub(crate) region: Arc<str>,
    pub(crate) for_zones: Box<[Arc<str>]>,
    pub(crate) labels: Arc<BTreeMap<String, String>>,
    /// Ports at which it is out for everybody, by name, and how many have said so.
    pub(crate) ejected: Box<[(Arc<str>, u32)]>,
}

/// Ten thousand endpoints share a handful of zones and versions: equal texts are kept once.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    texts: HashSet<Arc<str>>,
    purge_at: usize,
}

impl Interner {
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        if self.texts.len() >= self.purge_at {
            self.texts.retain(|t| Arc::strong_count(t) > 1);
            self.purge_at = (self.texts.len() * 2).max(256);
        }
        let new: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&new));
        new
    }
}

pub(super) fn identity(at: &str, text: &str) -> Result<SpiffeId> {
    SpiffeId::parse(text).map_err(|error| ConvertError::Identity { at: at.to_owned(), error })
}

pub(super) fn app_protocol(at: &str, number: i32) -> Result<AppProtocol> {
    use v1::service_port::AppProtocol as Wire;
    Ok(match Wire::try_from(number) {
        Ok(Wire::Unspecified) => AppProtocol::Detect,
        Ok(Wire::Http1) => AppProtocol::Http1,
        Ok(Wire::Http2) => AppProtocol::Http2,
        Ok(Wire::Grpc) => AppProtocol::Grpc,
        Ok(Wire::Tcp) => AppProtocol::Tcp,
        Ok(Wire::Tls) => AppProtocol::Tls,
        Ok(Wire::Websocket) => AppProtocol::WebSocket,
        Err(_) => return Err(unknown(at)),
    })
}

pub(crate) fn service(name: &Arc<str>, message: &v1::Service) -> Result<ServiceSpec> {
    let ports = message
        .ports
        .iter()
        .map(|p| {
            Ok(PortSpec {
                name: p.name.as_str().into(),
                port: port("ports.port", p.port)?,
                protocol: app_protocol("ports.protocol", p.protocol)?,
            })
        })
        .collect::<Result<_>>()?;
    let ports: Box<[PortSpec]> = ports;
    if let Some(twice) = ports.iter().enumerate().find(|(i, p)| ports[..*i].iter().any(|q| q.port == p.port))
    {
        return value("ports.port", twice.1.port, "write each port once");
    }
    let named = message.hostnames.iter().map(|h| Ok(h.to_ascii_lowercase().into()));
    let addressed = message.addresses.iter().map(|a| {
        Ok(match address("addresses", a)? {
            IpAddr::V4(v4) => v4.to_string().into(),
            IpAddr::V6(v6) => format!("[{v6}]").into(),
        })
    });
    Ok(ServiceSpec {
        name: Arc::clone(name),
        origin: Arc::new(Origin::from_message(message.source.as_ref())),
        ports,
        hostnames: named.chain(addressed).collect::<Result<_>>()?,
        spiffe_ids: message.spiffe_ids.iter().map(|id| identity("spiffe_ids", id)).collect::<Result<_>>()?,
        subsets: message.subsets.iter().map(subset).collect::<Result<_>>()?,
    })
}

fn subset(message: &v1::service::Subset) -> Result<Arc<Subset>> {
    if message.name.is_empty() {
        return value("subsets.name", "", "write the name by which routes know it");
    }
    if message.labels.is_empty() {
        return value("subsets.labels", "", "write the labels that its endpoints have");
    }
    Ok(Arc::new(Subset {
        name: message.name.as_str().into(),
        labels: message.labels.clone(),
        any_fallback: message.any_fallback,
    }))
}

pub(crate) fn slice(message: &v1::EndpointSlice, strings: &mut Interner) -> Result<SliceSpec> {
    if message.service.is_empty() {
        return value("service", "", "write the NAMESPACE/NAME of a service");
    }
    let ports = message
        .ports
        .iter()
        .map(|p| Ok((strings.text(&p.name), port("ports.port", p.port)?)))
        .collect::<Result<_>>()?;
    let endpoints = message.endpoints.iter().enumerate();
    Ok(SliceSpec {
        service: strings.text(&message.service),
        ports,
        endpoints: endpoints
            .map(|(i, e)| endpoint(&format!("endpoints[{i}]"), e, strings))
            .collect::<Result<_>>()?,
    })
}

fn endpoint(at: &str, message: &v1::Endpoint, strings: &mut Interner) -> Result<EndpointSpec> {
    use v1::endpoint::{Health as WireHealth, Transport as WireTransport};
    let addresses: SmallVec<[IpAddr; 1]> =
        message.addresses.iter().map(|a| address(&format!("{at}.addresses"), a)).collect::<Result<_>>()?;
    let Some(&first) = addresses.first() else {
        return value(format!("{at}.addresses"), "", "write at least one IP address");
    };
    let health = match WireHealth::try_from(message.health) {
        // Nothing is known against it.
        Ok(WireHealth::Healthy | WireHealth::Unspecified) => Health::Healthy,
        Ok(WireHealth::Unhealthy) => Health::Unhealthy,
        Ok(WireHealth::Draining) => Health::Draining,
        Ok(WireHealth::Suspect) => Health::Suspect,
        Err(_) => return Err(unknown(format!("{at}.health"))),
    };
    let transport = match WireTransport::try_from(message.transport) {
        Ok(WireTransport::Plaintext) => Transport::Plaintext,
        Ok(WireTransport::Mesh) => Transport::Mesh {
            http: match message.mesh_port {
                0 => SocketAddr::new(first, MESH_PORT),
                number => SocketAddr::new(first, port(&format!("{at}.mesh_port"), number)?),
            },
            hbone: match message.hbone_port {
                0 => None,
                number => Some(SocketAddr::new(first, port(&format!("{at}.hbone_port"), number)?)),
            },
            spiffe_id: identity(&format!("{at}.spiffe_id"), &message.spiffe_id)?,
        },
        Err(_) => return Err(unknown(format!("{at}.transport"))),
    };
    Ok(EndpointSpec {
        addresses,
        transport,
        health,
        weight: message.weight.max(1),
        instance: message.instance.as_str().into(),
        workload: strings.text(&message.workload),
        version: strings.text(&message.version),
        zone: strings.text(&message.zone),
        region: strings.text(&message.region),
        for_zones: message.for_zones.iter().map(|zone| strings.text(zone)).collect(),
        labels: Arc::new(message.labels.clone()),
        ejected: message.ejected.iter().map(|(port, by)| (strings.text(port), *by)).collect(),
    })
}
