//! Asking proxies: probes that end with whoever asks, and who can be asked.

use axum::http::StatusCode;
use meshwork_messages::v1::Probe;
use meshwork_process::Problem;
use meshwork_xds::server::{Hub, Observing, Proxy};

use crate::codes;

/// Arms a probe on all proxies, or on one, as long as the answer lives.
///
/// # Errors
/// As many are armed as may be.
pub(crate) fn observe(hub: &Hub, probe: Probe, proxy: Option<String>) -> Result<Observing, Problem> {
    hub.observe(probe, proxy).map_err(|error| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many probes")
            .detail(error.to_string())
            .code(codes::TOO_MANY_PROBES)
    })
}

/// Whether this proxy is connected.
///
/// # Errors
/// It is not.
pub(crate) fn connected(hub: &Hub, wanted: &str) -> Result<(), Problem> {
    if hub.proxies().iter().any(|proxy| proxy.connected && proxy.node.id == wanted) {
        return Ok(());
    }
    let detail = format!("no proxy `{wanted}` is connected; `meshwork proxies` lists them");
    Err(Problem::new(StatusCode::NOT_FOUND, "no such proxy").detail(detail).code(codes::NO_SUCH_PROXY))
}

/// Whether it keeps requests, and knows of taps and counters.
pub(crate) fn records(proxy: &Proxy) -> bool {
    proxy.node.features.iter().any(|feature| feature == meshwork_messages::RECORD)
}
