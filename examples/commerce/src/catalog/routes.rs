//! The catalog's REST interface.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::search::MAX_QUERY;
use super::store::{CatalogStore, Listing, Order, Page, SearchPage};
use crate::problem::{FieldError, Problem};
use crate::product::Product;
use crate::web::{self, Query};

/// Most items on a page.
pub const MAX_PAGE_SIZE: u32 = 100;
/// Most products in one batch.
pub const MAX_BATCH: usize = 1000;

type Store = State<Arc<CatalogStore>>;

/// The service's routes.
pub fn router(store: Arc<CatalogStore>) -> Router {
    Router::new()
        .route("/products", get(list).post(save))
        .route("/products/batch", post(save_batch))
        .route("/products/{sku}", get(show))
        .route("/search", get(search))
        .route("/categories", get(categories))
        .route("/healthz", get(health))
        .fallback(web::not_found)
        .method_not_allowed_fallback(web::method_not_allowed)
        .with_state(store)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListQuery {
    category: String,
    brand: String,
    sort: Order,
    page: u32,
    size: u32,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self { category: String::new(), brand: String::new(), sort: Order::Name, page: 1, size: 24 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SearchQuery {
    q: String,
    #[serde(default)]
    category: String,
    #[serde(default = "first")]
    page: u32,
    #[serde(default = "page_size")]
    size: u32,
}

fn first() -> u32 {
    1
}

fn page_size() -> u32 {
    24
}

fn check_page(page: u32, size: u32) -> Result<(), Problem> {
    if page == 0 {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "page: pages are counted from 1."));
    }
    if !(1..=MAX_PAGE_SIZE).contains(&size) {
        let detail = format!("size: must be 1 to {MAX_PAGE_SIZE}.");
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    Ok(())
}

async fn list(State(store): Store, Query(query): Query<ListQuery>) -> Result<Json<Page<Product>>, Problem> {
    check_page(query.page, query.size)?;
    let listing = Listing { category: query.category, brand: query.brand, order: query.sort };
    Ok(Json(store.list(&listing, query.page, query.size).await?))
}

async fn search(State(store): Store, Query(query): Query<SearchQuery>) -> Result<Json<SearchPage>, Problem> {
    check_page(query.page, query.size)?;
    if query.q.chars().count() > MAX_QUERY {
        let detail = format!("q: a search has at most {MAX_QUERY} characters.");
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    Ok(Json(store.search(&query.q, &query.category, query.page, query.size).await?))
}

async fn show(State(store): Store, Path(sku): Path<String>) -> Result<Json<Product>, Problem> {
    let missing =
        || Problem::new(StatusCode::NOT_FOUND, format!("There is no product with the SKU {sku:?}."));
    store.get(&sku).await?.map(Json).ok_or_else(missing)
}

async fn categories(State(store): Store) -> Result<Json<Value>, Problem> {
    let categories: Vec<Value> = store
        .categories()
        .await?
        .into_iter()
        .map(|(name, products)| json!({"name": name, "products": products}))
        .collect();
    Ok(Json(json!({ "items": categories })))
}

async fn save(State(store): Store, web::Json(body): web::Json<Value>) -> Result<Response, Problem> {
    let product = Product::from_json(body, "").map_err(Problem::invalid)?;
    let saved = store.save(std::slice::from_ref(&product)).await?;
    let status = if saved.created > 0 { StatusCode::CREATED } else { StatusCode::OK };
    let location = format!("/products/{}", product.sku);
    Ok((status, [(header::LOCATION, location)], Json(product)).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    products: Vec<Value>,
}

async fn save_batch(
    State(store): Store,
    web::Json(batch): web::Json<Batch>,
) -> Result<Json<super::Saved>, Problem> {
    if batch.products.len() > MAX_BATCH {
        let message = format!("must hold at most {MAX_BATCH} products, not {}", batch.products.len());
        return Err(Problem::invalid(vec![FieldError::new("products", message)]));
    }
    let (mut products, mut errors) = (Vec::with_capacity(batch.products.len()), Vec::new());
    for (index, value) in batch.products.into_iter().enumerate() {
        match Product::from_json(value, &format!("products[{index}].")) {
            Ok(product) => products.push(product),
            Err(found) => errors.extend(found),
        }
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    Ok(Json(store.save(&products).await?))
}

async fn health(State(store): Store) -> Result<Json<Value>, Problem> {
    let products = store.count().await.map_err(|error| {
        tracing::error!(%error, "the database does not answer");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "The database does not answer.")
    })?;
    Ok(Json(json!({"status": "ok", "products": products})))
}
