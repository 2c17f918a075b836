//! The three services behind the pages, and what the storefront needs of their answers.

use std::collections::HashMap;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::client::{AddressError, CallError, JsonClient, Target, escape};
use crate::inventory::proto::inventory as pb;
use crate::inventory::proto::inventory::inventory_client::InventoryClient;
use crate::problem::Problem;

/// A page is nothing without its products, so the catalog gets time.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(5);
/// Stock and reviews are worth a short wait only.
const EXTRA_TIMEOUT: Duration = Duration::from_millis(1500);
/// Posting a review is what its author waits for.
const POST_TIMEOUT: Duration = Duration::from_secs(5);

/// Products on a page.
pub(super) const PAGE_SIZE: u32 = 24;
/// Reviews on a page.
pub(super) const REVIEWS_SIZE: u32 = 10;

/// Where the services are.
#[derive(Clone, Debug, clap::Args)]
pub struct Addresses {
    /// Outbound side of the sidecar; calls go there with the service's name as host. Without it the addresses below count.
    #[arg(long, env = "MESHWORK_OUTBOUND", value_name = "URL")]
    outbound: Option<String>,
    /// The catalog, where there is no sidecar.
    #[arg(long, env = "CATALOG_URL", default_value = "http://127.0.0.1:7101", value_name = "URL")]
    catalog_url: String,
    /// The inventory, where there is no sidecar.
    #[arg(long, env = "INVENTORY_URL", default_value = "http://127.0.0.1:7102", value_name = "URL")]
    inventory_url: String,
    /// The reviews, where there is no sidecar.
    #[arg(long, env = "REVIEWS_URL", default_value = "http://127.0.0.1:7103", value_name = "URL")]
    reviews_url: String,
}

/// Clients of the services; cloning shares their connections.
#[derive(Clone, Debug)]
pub struct Services {
    catalog: JsonClient,
    reviews: JsonClient,
    post_review: JsonClient,
    inventory: InventoryClient<Channel>,
}

/// A product, as far as pages show it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Product {
    pub(super) sku: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: String,
    pub(super) category: String,
    pub(super) brand: Option<String>,
    pub(super) price_pence: u32,
    pub(super) attribution: Option<String>,
    /// Empty but in a search.
    #[serde(default)]
    pub(super) name_segments: Vec<Segment>,
    /// Empty but in a search.
    #[serde(default)]
    pub(super) snippet: Vec<Segment>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Segment {
    pub(super) text: String,
    #[serde(rename = "match")]
    pub(super) is_match: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page {
    pub(super) items: Vec<Product>,
    pub(super) page: u32,
    pub(super) total: u64,
    pub(super) pages: u64,
    /// False in a search that found only some of the words.
    #[serde(default = "yes")]
    pub(super) all_words: bool,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Category {
    pub(super) name: String,
    pub(super) products: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Categories {
    items: Vec<Category>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Reviews {
    pub(super) count: u64,
    pub(super) average: Option<f64>,
    pub(super) items: Vec<Review>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Review {
    pub(super) id: u64,
    pub(super) author: String,
    pub(super) stars: u8,
    pub(super) title: String,
    pub(super) body: String,
    pub(super) created_at: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct NewReview<'a> {
    pub(super) sku: &'a str,
    pub(super) author: &'a str,
    pub(super) stars: u8,
    pub(super) title: &'a str,
    pub(super) body: &'a str,
}

/// What became of a review that was posted.
#[derive(Debug)]
pub(super) enum Posted {
    Stored(u64),
    Invalid(Problem),
    Failed,
}

/// Units a customer can buy by SKU. A SKU that is not in it is not stocked.
pub(super) type Stock = HashMap<String, u32>;

impl Services {
    /// Clients for the services; nothing is connected yet.
    ///
    /// # Errors
    /// An address that is none.
    pub fn new(addresses: &Addresses) -> Result<Self, AddressError> {
        let target = |service: &str, url: &str| Target::new(service, addresses.outbound.as_deref(), url);
        let inventory = target("inventory", &addresses.inventory_url)?;
        let reviews = target("reviews", &addresses.reviews_url)?;
        let channel = tonic::transport::Endpoint::from(inventory.origin())
            .connect_with_connector_lazy(inventory.connector());
        Ok(Self {
            catalog: JsonClient::new(target("catalog", &addresses.catalog_url)?, CATALOG_TIMEOUT),
            reviews: JsonClient::new(reviews.clone(), EXTRA_TIMEOUT),
            post_review: JsonClient::new(reviews, POST_TIMEOUT),
            inventory: InventoryClient::new(channel),
        })
    }

    pub(super) async fn categories(&self, context: &HeaderMap) -> Result<Vec<Category>, CallError> {
        self.catalog.get("/categories", context).await.map(|c: Categories| c.items)
    }

    pub(super) async fn browse(
        &self,
        category: &str,
        sort: &str,
        page: u32,
        context: &HeaderMap,
    ) -> Result<Page, CallError> {
        let (category, sort) = (escape(category), escape(sort));
        let path = format!("/products?category={category}&sort={sort}&page={page}&size={PAGE_SIZE}");
        self.catalog.get(&path, context).await
    }

    pub(super) async fn search(
        &self,
        query: &str,
        category: &str,
        page: u32,
        context: &HeaderMap,
    ) -> Result<Page, CallError> {
        let (query, category) = (escape(query), escape(category));
        let path = format!("/search?q={query}&category={category}&page={page}&size={PAGE_SIZE}");
        self.catalog.get(&path, context).await
    }

    /// The product, or `None` when there is none.
    pub(super) async fn product(&self, sku: &str, context: &HeaderMap) -> Result<Option<Product>, CallError> {
        match self.catalog.get(&format!("/products/{}", escape(sku)), context).await {
            Ok(product) => Ok(Some(product)),
            Err(CallError::Refused { status: StatusCode::NOT_FOUND, problem: Some(_), .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stock of these products, or `None` when the inventory does not say.
    pub(super) async fn stock(&self, skus: Vec<String>, context: &HeaderMap) -> Option<Stock> {
        if skus.is_empty() {
            return Some(Stock::new());
        }
        let message = pb::BatchGetStockRequest { skus };
        let metadata = MetadataMap::from_headers(context.clone());
        let mut request = tonic::Request::from_parts(metadata, tonic::Extensions::default(), message);
        request.set_timeout(EXTRA_TIMEOUT);
        let mut inventory = self.inventory.clone();
        let answer = tokio::time::timeout(EXTRA_TIMEOUT, inventory.batch_get_stock(request)).await;
        let levels = match answer {
            Ok(Ok(response)) => response.into_inner().levels,
            Ok(Err(status)) => {
                tracing::warn!(code = ?status.code(), message = status.message(), "page without stock");
                return None;
            }
            Err(_) => {
                tracing::warn!(limit_ms = EXTRA_TIMEOUT.as_millis(), "page without stock: no answer in time");
                return None;
            }
        };
        Some(levels.into_iter().map(|level| (level.sku, level.available)).collect())
    }

    /// Reviews of a product, or `None` when the service does not answer.
    pub(super) async fn reviews(&self, sku: &str, page: u32, context: &HeaderMap) -> Option<Reviews> {
        let offset = u64::from(page.saturating_sub(1)) * u64::from(REVIEWS_SIZE);
        let path = format!("/reviews?sku={}&limit={REVIEWS_SIZE}&offset={offset}", escape(sku));
        match self.reviews.get(&path, context).await {
            Ok(reviews) => Some(reviews),
            Err(error) => {
                tracing::warn!(%error, "page without reviews");
                None
            }
        }
    }

    pub(super) async fn post_review(&self, review: &NewReview<'_>, context: &HeaderMap) -> Posted {
        #[derive(Deserialize)]
        struct Stored {
            id: u64,
        }
        match self.post_review.post("/reviews", review, context).await {
            Ok(Stored { id }) => Posted::Stored(id),
            Err(CallError::Refused {
                status: StatusCode::UNPROCESSABLE_ENTITY,
                problem: Some(problem),
                ..
            }) => Posted::Invalid(*problem),
            Err(error) => {
                tracing::warn!(%error, "review not stored");
                Posted::Failed
            }
        }
    }
}
