//! The storefront: the shop's pages, rendered on the server, without JavaScript.
//!
//! | request | page |
//! |---|---|
//! | `GET /` | welcome, categories, some products |
//! | `GET /products?category=&sort=&page=` | browse |
//! | `GET /search?q=&category=&page=` | search |
//! | `GET /products/{sku}?reviews=` | a product with its stock and reviews |
//! | `POST /products/{sku}/reviews` | posts a review and leads back (303); 422 shows the form with what is wrong |
//! | `GET /healthz` | 200: the storefront itself is well, whatever the services behind it are |
//!
//! Only the catalog is needed for a page. Where the inventory or the reviews do not answer in time, the page is there and
//! says what it lacks.

mod pages;
mod routes;
mod services;
mod views;

pub use routes::router;
pub use services::{Addresses, Services};

use crate::service::{Host, ServiceError, Shutdown, listen, serve};

/// The port that the storefront listens on by default.
pub const PORT: u16 = 7100;

/// Settings of `commerce-storefront`.
#[derive(Debug, clap::Parser)]
#[command(name = "commerce-storefront", version, about = "The shop's pages")]
pub struct Settings {
    #[command(flatten)]
    host: Host,
    /// Port to listen on.
    #[arg(long, env = "PORT", default_value_t = PORT)]
    port: u16,
    #[command(flatten)]
    addresses: Addresses,
}

/// Runs the service.
///
/// # Errors
/// See [`ServiceError`].
pub async fn main(settings: Settings, shutdown: Shutdown) -> Result<(), ServiceError> {
    let services = Services::new(&settings.addresses)?;
    let listener = listen("storefront", settings.host, settings.port).await?;
    serve(listener, router(services), shutdown).await
}
