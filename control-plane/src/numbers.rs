//! What the control plane knows as metrics, worked out when somebody scrapes.

use std::collections::BTreeMap;

use meshwork_resources::Severity;
use meshwork_telemetry::{MetricsRegistry, inventory as inv};
use meshwork_xds::server::Hub;

use crate::pipeline::Shared;

/// Roles that are told also when no proxy of theirs is connected.
const ROLES: [&str; 2] = ["gateway", "sidecar"];

pub(crate) fn export(metrics: &MetricsRegistry, hub: &Hub, shared: &Shared) {
    let (hub, model) = (hub.clone(), shared.model.clone());
    metrics.ask(move |samples| {
        let mut proxies: BTreeMap<String, u64> = ROLES.map(|role| (role.to_owned(), 0)).into();
        for proxy in hub.proxies().into_iter().filter(|proxy| proxy.connected) {
            *proxies.entry(proxy.node.role).or_default() += 1;
        }
        for (role, count) in proxies {
            samples.tell(&inv::CONTROL_PLANE_PROXIES, &[&role], count);
        }
        let tally = hub.tally();
        for (def, counts) in
            [(&inv::CONTROL_PLANE_PUSHES, tally.sent), (&inv::CONTROL_PLANE_REJECTIONS, tally.refused)]
        {
            for (type_url, count) in counts {
                samples.tell(def, &[type_url.rsplit('.').next().unwrap_or_default()], count);
            }
        }
        let model = model.load();
        samples.tell(&inv::CONTROL_PLANE_REVISION, &[], model.revision);
        for (service, count) in &model.ejected {
            samples.tell(&inv::CONTROL_PLANE_EJECTED, &[service], *count as u64);
        }
        for (severity, text) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
            let count = model.diagnostics.iter().filter(|found| found.severity == severity).count();
            samples.tell(&inv::CONTROL_PLANE_DIAGNOSTICS, &[text], count as u64);
        }
        samples.tell(&inv::CONTROL_PLANE_REJECTED, &[], model.rejections);
    });
}
