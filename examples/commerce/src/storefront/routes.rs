//! Requests to pages.

use axum::Router;
use axum::extract::{Form, Path, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use maud::Markup;
use serde::Deserialize;

use super::pages::{self, Browse, ProductPage, ReviewForm};
use super::services::{NewReview, Posted, Services};
use super::views::{self, Frame};
use crate::client::{CallError, Propagated, escape};
use crate::problem::{FieldError, Problem};
use crate::web::Query;

/// The shop's pages load no script and nothing from elsewhere, and this says so to the browser.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";
/// Pages that can be asked for: beyond, offsets make no sense.
const LAST_PAGE: u32 = 1_000_000;
const LONGEST_SEARCH: usize = 200;

/// The service's routes.
pub fn router(services: Services) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/products", get(browse))
        .route("/search", get(search))
        .route("/products/{sku}", get(product))
        .route("/products/{sku}/reviews", post(post_review))
        .route("/assets/shop.css", get(style))
        .route("/healthz", get(async || axum::Json(serde_json::json!({"status": "ok"}))))
        .fallback(nowhere)
        .layer(middleware::from_fn(secured))
        .with_state(services)
}

async fn secured(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn style() -> Response {
    // Its address carries a digest of its content, so it never changes.
    const CACHE: &str = "public, max-age=31536000, immutable";
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, CACHE)], views::STYLE)
        .into_response()
}

/// A request that ends without its page.
enum Lost {
    Missing(String),
    BadRequest(String),
    Catalog(CallError),
}

impl From<CallError> for Lost {
    fn from(error: CallError) -> Self {
        Self::Catalog(error)
    }
}

impl From<Problem> for Lost {
    fn from(problem: Problem) -> Self {
        Self::BadRequest(problem.detail)
    }
}

impl IntoResponse for Lost {
    fn into_response(self) -> Response {
        match self {
            Self::Missing(what) => (StatusCode::NOT_FOUND, pages::missing(&what)).into_response(),
            Self::BadRequest(why) => (StatusCode::BAD_REQUEST, pages::bad_request(&why)).into_response(),
            Self::Catalog(error) => {
                tracing::error!(%error, "no page without the catalog");
                let retry = [(header::RETRY_AFTER, "5")];
                (StatusCode::SERVICE_UNAVAILABLE, retry, pages::unavailable()).into_response()
            }
        }
    }
}

async fn nowhere(uri: axum::http::Uri) -> Lost {
    Lost::Missing(format!("There is no page at {}.", uri.path()))
}

fn checked_page(page: u32) -> Result<u32, Lost> {
    if (1..=LAST_PAGE).contains(&page) {
        return Ok(page);
    }
    Err(Lost::BadRequest(format!("Pages are numbered from 1 to {LAST_PAGE}.")))
}

async fn home(State(services): State<Services>, Propagated(context): Propagated) -> Result<Markup, Lost> {
    let (categories, page) =
        tokio::join!(services.categories(&context), services.browse("", "name", 1, &context));
    let page = page?;
    let stock = services.stock(pages::skus(&page.items), &context).await;
    Ok(pages::home(&Frame { categories: &categories?, ..Frame::default() }, &page, stock.as_ref()))
}

/// Unknown parameters are let through: addresses of pages gather those of campaigns.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct PageQuery {
    q: String,
    category: String,
    sort: String,
    page: u32,
}

impl Default for PageQuery {
    fn default() -> Self {
        Self { q: String::new(), category: String::new(), sort: "name".to_owned(), page: 1 }
    }
}

async fn browse(
    State(services): State<Services>,
    Propagated(context): Propagated,
    query: Result<Query<PageQuery>, Problem>,
) -> Result<Markup, Lost> {
    let Query(PageQuery { category, sort, page, .. }) = query?;
    if !pages::SORTS.iter().any(|(key, _)| *key == sort) {
        return Err(Lost::BadRequest(format!("Products are not sorted by {sort:?}.")));
    }
    let number = checked_page(page)?;
    let (categories, page) =
        tokio::join!(services.categories(&context), services.browse(&category, &sort, number, &context));
    let (categories, page) = (categories?, page?);
    if !category.is_empty() && !categories.iter().any(|c| c.name == category) {
        return Err(Lost::Missing(format!("There is no category {category:?}.")));
    }
    if page.items.is_empty() && number > 1 {
        return Err(Lost::Missing("There are fewer pages than that.".to_owned()));
    }
    let stock = services.stock(pages::skus(&page.items), &context).await;
    let frame = Frame { categories: &categories, category: &category, ..Frame::default() };
    Ok(pages::browse(&frame, &Browse { page: &page, sort: &sort, stock: stock.as_ref() }))
}

async fn search(
    State(services): State<Services>,
    Propagated(context): Propagated,
    query: Result<Query<PageQuery>, Problem>,
) -> Result<Markup, Lost> {
    let Query(PageQuery { q, category, page, .. }) = query?;
    let number = checked_page(page)?;
    let q = q.trim();
    if q.chars().count() > LONGEST_SEARCH {
        return Err(Lost::BadRequest(format!("A search has at most {LONGEST_SEARCH} characters.")));
    }
    let (categories, page) =
        tokio::join!(services.categories(&context), services.search(q, &category, number, &context));
    let (categories, page) = (categories?, page?);
    let stock = services.stock(pages::skus(&page.items), &context).await;
    let frame = Frame { categories: &categories, category: &category, query: q };
    Ok(pages::search(&frame, &page, stock.as_ref()))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProductQuery {
    /// Page of reviews; 0 is the first too.
    reviews: u32,
    /// The review that was just posted.
    posted: Option<u64>,
}

async fn product(
    State(services): State<Services>,
    Propagated(context): Propagated,
    Path(sku): Path<String>,
    query: Result<Query<ProductQuery>, Problem>,
) -> Result<Markup, Lost> {
    let Query(query) = query?;
    let form = ReviewForm { posted: query.posted, ..ReviewForm::default() };
    product_page(&services, &context, &sku, query.reviews.clamp(1, LAST_PAGE), &form).await
}

async fn product_page(
    services: &Services,
    context: &axum::http::HeaderMap,
    sku: &str,
    reviews_page: u32,
    form: &ReviewForm,
) -> Result<Markup, Lost> {
    let (product, categories, stock, reviews) = tokio::join!(
        services.product(sku, context),
        services.categories(context),
        services.stock(vec![sku.to_owned()], context),
        services.reviews(sku, reviews_page, context),
    );
    let product = product?.ok_or_else(|| Lost::Missing(format!("There is no product {sku:?}.")))?;
    let categories = categories?;
    let frame = Frame { categories: &categories, category: &product.category, ..Frame::default() };
    let page = ProductPage {
        product: &product,
        stock: stock.as_ref(),
        reviews: reviews.as_ref(),
        reviews_page,
        form,
    };
    Ok(pages::product(&frame, &page))
}

#[derive(Debug, Deserialize)]
struct PostedForm {
    #[serde(default)]
    author: String,
    /// Text, because a form without a choice sends none.
    #[serde(default)]
    stars: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    body: String,
}

async fn post_review(
    State(services): State<Services>,
    Propagated(context): Propagated,
    Path(sku): Path<String>,
    headers: axum::http::HeaderMap,
    form: Result<Form<PostedForm>, axum::extract::rejection::FormRejection>,
) -> Result<Response, Lost> {
    if from_another_site(&headers) {
        return Err(Lost::BadRequest("Reviews are posted from the shop's own pages.".to_owned()));
    }
    let Form(form) = form.map_err(|e| Lost::BadRequest(e.body_text()))?;
    // A review of what is not sold is refused here, because the reviews service knows no products.
    if services.product(&sku, &context).await?.is_none() {
        return Err(Lost::Missing(format!("There is no product {sku:?}.")));
    }
    let stars = form.stars.parse().unwrap_or(0);
    let (author, title, body) = (form.author, form.title, form.body);
    let review = NewReview { sku: &sku, author: &author, stars, title: &title, body: &body };
    let (status, errors) = match services.post_review(&review, &context).await {
        Posted::Stored(id) => {
            let to = format!("/products/{}?posted={id}#reviews", escape(&sku));
            return Ok(Redirect::to(&to).into_response());
        }
        Posted::Invalid(problem) => (StatusCode::UNPROCESSABLE_ENTITY, problem.errors),
        Posted::Failed => {
            let sorry =
                "Your review could not be stored just now. Nothing is lost: send it again in a moment.";
            (StatusCode::SERVICE_UNAVAILABLE, vec![FieldError::new("", sorry)])
        }
    };
    let form = ReviewForm { posted: None, author, stars, title, body, errors };
    let page = product_page(&services, &context, &sku, 1, &form).await?;
    Ok((status, page).into_response())
}

/// Browsers say where a form was; other clients say nothing and are let through.
fn from_another_site(headers: &axum::http::HeaderMap) -> bool {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    headers.get(SITE).is_some_and(|site| site == "cross-site" || site == "same-site")
}
