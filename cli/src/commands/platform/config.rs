//! The config service as a process has it: in plaintext for this machine (8888, Spring Cloud Config's port).

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use meshwork_base::ThreadRng;
use meshwork_config::Config;
use meshwork_process::Readiness;
use meshwork_process::admin::process_routes;
use meshwork_store::embedded;

use super::{Process, Served, serve_local};

/// Flags of the config service.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ConfigArgs {
    /// Where documents are served to this machine [default: port 8888 of the listen address if that is loopback, else of 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", env = "MESHWORK_CONFIG_ADDRESS")]
    pub(crate) config_address: Option<SocketAddr>,
}

/// Opens the store and follows it.
pub(super) async fn start(process: &Process) -> Result<Config, Box<dyn Error>> {
    let path = process.folder("config")?.join("store.redb");
    let options = embedded::Options::new(Arc::clone(&process.clock), Box::new(ThreadRng::new()));
    Ok(Config::start(embedded::open(&path, options)?, Arc::clone(&process.clock)).await?)
}

impl ConfigArgs {
    pub(super) async fn serve(&self, process: &Process, config: &Config) -> Result<Served, Box<dyn Error>> {
        let readiness = Readiness::new();
        readiness.condition("documents").set(true);
        tokio::spawn(readiness.condition("store").follow(config.failing()));
        let routes =
            process.observed("config", config.router()).merge(process_routes(process.admin(readiness)));
        config.export(&process.metrics);
        let address = self.address(process);
        let served = serve_local("config service", "--config-address", address, routes).await?;
        tracing::info!(%address, "config service started");
        Ok(Served(vec![served]))
    }

    /// Where it listens.
    pub(super) fn address(&self, process: &Process) -> SocketAddr {
        self.config_address.unwrap_or_else(|| SocketAddr::new(process.plain_address(), 8888))
    }
}
