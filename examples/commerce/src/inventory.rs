//! The inventory service: stock levels and reservations over gRPC (h2c), see `proto/commerce/inventory/v1/inventory.proto`.
//!
//! An instance speaks for its own database. Two instances agree on what is on hand because they are seeded alike; a
//! reservation is known to the instance that took it, so a caller that reserves must stay with one instance.

mod grpc;
mod health;
mod store;

pub use grpc::{Stock, router};
pub use store::{InventoryStore, Level, Line, ReserveError, SetError, Taken};

use std::sync::Arc;

use crate::published::Imports;
use crate::service::{Host, ServiceError, Shutdown, State, listen};

/// Generated from `proto/`.
pub mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::needless_pass_by_value,
        clippy::too_many_lines,
        reason = "generated; the proto files hold the documentation"
    )]

    /// `commerce.inventory.v1`.
    pub mod inventory {
        tonic::include_proto!("commerce.inventory.v1");
    }
    /// `grpc.health.v1`.
    pub mod health {
        tonic::include_proto!("grpc.health.v1");
    }
}

/// The port that the inventory listens on by default.
pub const PORT: u16 = 7102;

/// Settings of `commerce-inventory`.
#[derive(Debug, clap::Parser)]
#[command(name = "commerce-inventory", version, about = "Stock levels and reservations over gRPC")]
pub struct Settings {
    #[command(flatten)]
    host: Host,
    /// Port to listen on.
    #[arg(long, env = "PORT", default_value_t = PORT)]
    port: u16,
    #[command(flatten)]
    state: State,
}

/// Runs the service.
///
/// # Errors
/// See [`ServiceError`].
pub async fn main(settings: Settings, shutdown: Shutdown) -> Result<(), ServiceError> {
    let store = Arc::new(InventoryStore::open(&settings.state.database("inventory")).await?);
    seed(&store, &settings.state).await?;
    let listener = listen("inventory", settings.host, settings.port).await?;
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = router(Arc::clone(&store), shutdown.clone())
        .serve_with_incoming_shutdown(incoming, shutdown.clone().begun());
    shutdown.bounded(server).await.transpose()?;
    store.close().await;
    Ok(())
}

async fn seed(store: &InventoryStore, state: &State) -> Result<(), ServiceError> {
    let digest = crate::catalogue::digest(crate::catalogue::JSON.as_bytes());
    store.seed("catalogue.json", &digest, || crate::catalogue::own().stock).await?;
    let imports = Imports::read(state.imports())?;
    if !imports.is_empty() {
        store.seed("COMMERCE_IMPORT", &imports.digest(), || imports.stock()).await?;
    }
    Ok(())
}
