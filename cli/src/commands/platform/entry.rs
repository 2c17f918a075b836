//! A server's own entry in the registry, by which Prometheus finds it.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use meshwork_api::RegistryClient;
use meshwork_api::identity::REGISTRY;
use meshwork_base::ThreadRng;
use meshwork_xds::registration::Registrar;

use super::Process;

/// Runs until a signal asks for the end, entered in the registry as what it is, with the port where its metrics are.
pub(super) async fn until_told(
    process: &Process,
    registry: Option<RegistryClient>,
    metrics: SocketAddr,
) -> Result<(), Box<dyn Error>> {
    let Some(registry) = registry else {
        process.until_told().await;
        return Ok(());
    };
    // The registry is asked for targets on this machine, where a port of all addresses is reached by this one too.
    let any = metrics.ip().is_unspecified();
    let address = if any { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { metrics.ip() };
    let metrics = SocketAddr::new(address, metrics.port());
    let registrar = Registrar::of_process(registry, (REGISTRY.0, process.role), process.role, metrics);
    let usable = || std::future::ready(());
    // Whoever is at its address has its place, so nobody else's copy is in the way.
    let keeping = tokio::spawn(registrar.clone().keep(usable, |_| {}, ThreadRng::new()));
    process.until_told().await;
    keeping.abort();
    registrar.deregister().await;
    Ok(())
}
