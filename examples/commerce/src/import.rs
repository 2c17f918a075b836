//! `commerce-import`: published files into running services, or into the database files of services that are stopped.
//!
//! ```text
//! products.csv ──► catalog (each instance)   name, price, derived category, attribution
//!           └────► inventory (each instance) two weeks of sales, or what orders….csv.gz says was ordered
//! ….jsonl ───────► reviews                   only where a product of the catalog has the very name that was reviewed
//! ```
//!
//! Running it again changes nothing. All files are read and checked before anything is written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::catalog::{CatalogStore, MAX_BATCH, MAX_PAGE_SIZE, Saved};
use crate::client::{AddressError, CallError, JsonClient, Target};
use crate::db::DbError;
use crate::inventory::proto::inventory::inventory_client::InventoryClient;
use crate::inventory::proto::inventory::{SetStockRequest, set_stock_request};
use crate::inventory::{InventoryStore, Line, SetError};
use crate::product::Product;
use crate::published::{Imports, PublishedError, PublishedReview};

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Lines in one SetStock call.
const STOCK_BATCH: usize = 2000;

/// Settings of `commerce-import`.
#[derive(Debug, clap::Parser)]
#[command(name = "commerce-import", version, about = "Loads published files into the shop; safe to repeat")]
pub struct Settings {
    /// Files in their own layout: Online Retail products.csv and orders CSV (gzipped or not), reviews as JSON lines.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Address of a running catalog; give each instance.
    #[arg(long, value_name = "URL")]
    catalog: Vec<String>,
    /// Database file of a catalog that is not running.
    #[arg(long, value_name = "FILE")]
    catalog_db: Vec<PathBuf>,
    /// Address of a running inventory; give each instance.
    #[arg(long, value_name = "URL")]
    inventory: Vec<String>,
    /// Database file of an inventory that is not running.
    #[arg(long, value_name = "FILE")]
    inventory_db: Vec<PathBuf>,
    /// Address of the running reviews service; products to match come from the first catalog given.
    #[arg(long, value_name = "URL")]
    reviews: Option<String>,
}

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file.
    #[error(transparent)]
    Published(#[from] PublishedError),
    /// An address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A service.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The inventory.
    #[error("inventory {at} refuses: {} ({:?})", status.message(), status.code())]
    Inventory {
        /// Its address.
        at: String,
        /// What it said.
        status: Box<tonic::Status>,
    },
    /// A database file.
    #[error(transparent)]
    Database(#[from] DbError),
    /// A level of a database file.
    #[error(transparent)]
    Level(#[from] SetError),
    /// There is nowhere to import to.
    #[error(
        "the files hold {what}, and no target takes them: add --catalog URL, --inventory URL or --reviews URL (or a --…-db FILE)"
    )]
    NoTarget {
        /// What the files hold.
        what: &'static str,
    },
    /// Reviews without a catalog to match them against.
    #[error("reviews are matched against the products of a catalog: add --catalog URL or --catalog-db FILE")]
    NoCatalog,
}

/// Imports, and tells `say` what happened, a line for each target.
///
/// # Errors
/// See [`ImportError`]. What was written before stays; running it again completes it.
pub async fn import(settings: &Settings, say: &mut impl FnMut(&str)) -> Result<(), ImportError> {
    let imports = Imports::read(settings.files.iter())?;
    let (products, stock) = (imports.products(), imports.stock());
    let shelves = settings.catalog.len()
        + settings.catalog_db.len()
        + settings.inventory.len()
        + settings.inventory_db.len();
    if !products.is_empty() && shelves == 0 {
        return Err(ImportError::NoTarget { what: "products" });
    }
    if !imports.reviews().is_empty() && settings.reviews.is_none() {
        return Err(ImportError::NoTarget { what: "reviews" });
    }
    if !products.is_empty() {
        import_products(settings, &products, say).await?;
        import_stock(settings, &stock, say).await?;
    }
    if let Some(url) = &settings.reviews {
        import_reviews(settings, url, imports.reviews(), say).await?;
    }
    Ok(())
}

/// Always at the address given, never by name through the mesh: every instance needs the products, not one of them.
fn target(service: &str, url: &str) -> Result<Target, AddressError> {
    Target::new(service, None, url)
}

fn client(service: &str, url: &str) -> Result<JsonClient, AddressError> {
    Ok(JsonClient::new(target(service, url)?, CALL_TIMEOUT))
}

async fn import_products(
    settings: &Settings,
    products: &[Product],
    say: &mut impl FnMut(&str),
) -> Result<(), ImportError> {
    let mut report = |at: &str, saved: Saved| {
        let Saved { created, updated, unchanged } = saved;
        say(&format!("catalog {at}: {created} products created, {updated} updated, {unchanged} unchanged"));
    };
    for url in &settings.catalog {
        let client = client("catalog", url)?;
        let mut total = Saved::default();
        for batch in products.chunks(MAX_BATCH) {
            let saved: Saved =
                client.post("/products/batch", &json!({ "products": batch }), &HeaderMap::new()).await?;
            total.created += saved.created;
            total.updated += saved.updated;
            total.unchanged += saved.unchanged;
        }
        report(url, total);
    }
    for path in &settings.catalog_db {
        let store = CatalogStore::open(path).await?;
        let saved = store.save(products).await.map_err(DbError::Sql)?;
        store.close().await;
        report(&path.display().to_string(), saved);
    }
    Ok(())
}

async fn import_stock(
    settings: &Settings,
    stock: &BTreeMap<String, u32>,
    say: &mut impl FnMut(&str),
) -> Result<(), ImportError> {
    let mut report = |at: &str, (created, updated, unchanged): (u32, u32, u32)| {
        say(&format!("inventory {at}: {created} levels created, {updated} updated, {unchanged} unchanged"));
    };
    let lines: Vec<Line> = stock.iter().map(|(sku, &quantity)| Line { sku: sku.clone(), quantity }).collect();
    for url in &settings.inventory {
        let target = target("inventory", url)?;
        let endpoint = tonic::transport::Endpoint::from(target.origin()).timeout(CALL_TIMEOUT);
        let mut client = InventoryClient::new(endpoint.connect_with_connector_lazy(target.connector()));
        let mut total = (0, 0, 0);
        for batch in lines.chunks(STOCK_BATCH) {
            let line = |l: &Line| set_stock_request::Line { sku: l.sku.clone(), on_hand: l.quantity };
            let request = SetStockRequest { lines: batch.iter().map(line).collect() };
            let set = client
                .set_stock(request)
                .await
                .map_err(|status| ImportError::Inventory { at: url.clone(), status: Box::new(status) })?
                .into_inner();
            total = (total.0 + set.created, total.1 + set.updated, total.2 + set.unchanged);
        }
        report(url, total);
    }
    for path in &settings.inventory_db {
        let store = InventoryStore::open(path).await?;
        let set = store.set(&lines).await?;
        store.close().await;
        report(&path.display().to_string(), set);
    }
    Ok(())
}

#[derive(Serialize)]
struct NewReview<'a> {
    sku: &'a str,
    author: &'a str,
    stars: u8,
    title: &'a str,
    body: &'a str,
}

async fn import_reviews(
    settings: &Settings,
    url: &str,
    reviews: &[PublishedReview],
    say: &mut impl FnMut(&str),
) -> Result<(), ImportError> {
    let catalog = all_products(settings).await?;
    let reviews_client = client("reviews", url)?;
    let (mut sent, mut unmatched) = (0, 0);
    for review in reviews {
        let Some((sku, _)) = catalog.iter().find(|(_, name)| review.is_about(name)) else {
            unmatched += 1;
            continue;
        };
        // The service knows a review by its words, so one that is there already is not made twice.
        let title = shortened(&review.title, 120);
        let body = shortened(&review.body, 4000);
        let new = NewReview {
            sku,
            author: "Hu & Liu review data, CC BY 4.0",
            stars: review.stars,
            title: if title.is_empty() { "Review" } else { title },
            body: if body.is_empty() { title } else { body },
        };
        let _: Value = reviews_client.post("/reviews", &new, &HeaderMap::new()).await?;
        sent += 1;
    }
    say(&format!("reviews {url}: {sent} about products of the catalog, {unmatched} about others left out"));
    Ok(())
}

fn shortened(text: &str, max: usize) -> &str {
    let end = text.char_indices().nth(max).map_or(text.len(), |(index, _)| index);
    text[..end].trim()
}

/// SKU and name of every product of the first catalog given.
async fn all_products(settings: &Settings) -> Result<Vec<(String, String)>, ImportError> {
    #[derive(Deserialize)]
    struct Item {
        sku: String,
        name: String,
    }
    #[derive(Deserialize)]
    struct Listed {
        items: Vec<Item>,
        pages: u64,
    }
    let mut all = Vec::new();
    if let Some(url) = settings.catalog.first() {
        let client = client("catalog", url)?;
        let (mut number, mut pages) = (1, 1);
        while number <= pages {
            let path = format!("/products?size={MAX_PAGE_SIZE}&page={number}");
            let page: Listed = client.get(&path, &HeaderMap::new()).await?;
            pages = page.pages;
            number += 1;
            all.extend(page.items.into_iter().map(|item| (item.sku, item.name)));
        }
    } else {
        let path = settings.catalog_db.first().ok_or(ImportError::NoCatalog)?;
        let store = CatalogStore::open(path).await?;
        let page =
            store.list(&crate::catalog::Listing::default(), 1, u32::MAX).await.map_err(DbError::Sql)?;
        store.close().await;
        all.extend(page.items.into_iter().map(|p| (p.sku, p.name)));
    }
    Ok(all)
}
