//! The instance beside a sidecar, and whom to trust.

use std::sync::Arc;

use meshwork_base::SpiffeId;
use meshwork_messages::v1;

use super::service::{app_protocol, identity};
use super::{Result, port, value};
use crate::cluster::{AppProtocol, ClusterKey};
use crate::trust::{Bundle, DeniedId, Deny, Made};

/// What a workload says by itself.
#[derive(Debug)]
pub(crate) struct WorkloadSpec {
    pub(crate) name: Arc<str>,
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) served: Box<[ServedSpec]>,
}

#[derive(Debug)]
pub(crate) struct ServedSpec {
    pub(crate) key: ClusterKey,
    pub(crate) app_port: u16,
    pub(crate) protocol: AppProtocol,
}

pub(crate) fn workload(name: &Arc<str>, message: &v1::Workload) -> Result<WorkloadSpec> {
    let served = message
        .services
        .iter()
        .map(|s| {
            Ok(ServedSpec {
                key: ClusterKey::whole(
                    s.service.as_str().into(),
                    port("services.service_port", s.service_port)?,
                ),
                app_port: port("services.app_port", s.app_port)?,
                protocol: app_protocol("services.protocol", s.protocol)?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(WorkloadSpec { name: Arc::clone(name), spiffe_id: identity("spiffe_id", &message.spiffe_id)?, served })
}

pub(crate) fn bundle(name: &Arc<str>, message: v1::Bundle) -> Result<Bundle> {
    let denied = message
        .denied
        .iter()
        .map(|d| match (d.spiffe_id.as_str(), d.serial_hex.as_str()) {
            ("", "") => value("denied", "", "write a spiffe_id or a serial_hex"),
            ("", serial) => Ok(Deny::Serial(serial.into())),
            (id, "") => Ok(Deny::Id(DeniedId {
                id: identity("denied.spiffe_id", id)?,
                issued_before_unix_ms: (d.issued_before_unix_ms != 0).then_some(d.issued_before_unix_ms),
                made: (d.made_sequence != 0)
                    .then_some(Made { unix_ms: d.made_unix_ms, sequence: d.made_sequence }),
            })),
            (_, serial) => value("denied.serial_hex", serial, "write either spiffe_id or serial_hex"),
        })
        .collect::<Result<_>>()?;
    Ok(Bundle::new(Arc::clone(name), message.roots_der.into(), message.sequence, denied))
}
