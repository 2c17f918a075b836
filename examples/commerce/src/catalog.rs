//! The catalog service: products over REST, with full-text search.
//!
//! | request | answer |
//! |---|---|
//! | `GET /products?category=&brand=&sort=name\|price\|-price&page=&size=` | a page of products |
//! | `GET /products/{sku}` | a product, 404 |
//! | `GET /search?q=&category=&page=&size=` | a page of products by rank, with what matched |
//! | `GET /categories` | categories with their number of products |
//! | `POST /products` | creates (201) or replaces (200) a product; the same body twice changes nothing |
//! | `POST /products/batch` | `{"products": […]}`, at most 1000, all or none |
//! | `GET /healthz` | 200 when the database answers |
//!
//! A write stays in the instance that took it: to have every instance show it, start them with the same
//! `COMMERCE_IMPORT`, or give each to `commerce-import`.

mod routes;
mod search;
mod store;

pub use routes::{MAX_BATCH, MAX_PAGE_SIZE, router};
pub use store::{CatalogStore, Found, Listing, Order, Page, Saved, SearchPage, Segment};

use std::sync::Arc;

use crate::published::Imports;
use crate::service::{Host, ServiceError, Shutdown, State, listen, serve};

/// The port that the catalog listens on by default.
pub const PORT: u16 = 7101;

/// Settings of `commerce-catalog`.
#[derive(Debug, clap::Parser)]
#[command(name = "commerce-catalog", version, about = "Products over REST, with full-text search")]
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
    let store = Arc::new(CatalogStore::open(&settings.state.database("catalog")).await?);
    seed(&store, &settings.state).await?;
    let listener = listen("catalog", settings.host, settings.port).await?;
    serve(listener, router(Arc::clone(&store)), shutdown).await?;
    store.close().await;
    Ok(())
}

async fn seed(store: &CatalogStore, state: &State) -> Result<(), ServiceError> {
    let digest = crate::catalogue::digest(crate::catalogue::JSON.as_bytes());
    let own = || crate::catalogue::own().products;
    store.seed("catalogue.json", &digest, own).await?;
    // Files are read whole before anything of them is written: a bad one stops the start and leaves no half of it.
    let imports = Imports::read(state.imports())?;
    if !imports.is_empty() {
        store.seed("COMMERCE_IMPORT", &imports.digest(), || imports.products()).await?;
    }
    Ok(())
}
