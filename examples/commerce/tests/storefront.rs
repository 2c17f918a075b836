//! The storefront as a browser sees it, with and without the services behind it.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use common::{CATALOG, INVENTORY, STOREFRONT, Service, get, post, python, reviews_script, send};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;

const FORM: &str = "application/x-www-form-urlencoded";
/// Nothing listens on the discard port of a loopback address of no one's.
const NOWHERE: &str = "http://127.99.99.99:9";

/// Stands where a sidecar's outbound side would: passes requests on by the name in their Host, and notes them.
#[derive(Clone)]
struct Outbound {
    catalog: String,
    inventory: String,
    reviews: String,
    seen: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

impl Outbound {
    async fn start(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(pass).with_state(self);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }
}

async fn pass(State(outbound): State<Outbound>, mut request: Request) -> Response {
    let authority = request.uri().authority().map(ToString::to_string);
    let host = request.headers().get("host").map(|h| h.to_str().unwrap().to_owned());
    let name = authority.or(host).unwrap();
    outbound.seen.lock().push((name.clone(), request.headers().clone()));
    let (to, h2) = match name.as_str() {
        "catalog" => (&outbound.catalog, false),
        "inventory" => (&outbound.inventory, true),
        "reviews" => (&outbound.reviews, false),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let path = request.uri().path_and_query().unwrap().clone();
    *request.uri_mut() = format!("{to}{path}").parse().unwrap();
    request.headers_mut().remove("host");
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).http2_only(h2).build_http();
    match client.request(request).await {
        Ok(response) => response.map(Body::new),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

struct Shop {
    storefront: Service,
    catalog: Service,
    inventory: Service,
    reviews: Service,
}

impl Shop {
    fn start() -> Self {
        let catalog = Service::start(CATALOG, &[]);
        let inventory = Service::start(INVENTORY, &[]);
        let reviews = Service::start(&reviews_script(), &[]);
        let storefront = Service::start(
            STOREFRONT,
            &[
                ("CATALOG_URL", &catalog.url()),
                ("INVENTORY_URL", &inventory.url()),
                ("REVIEWS_URL", &reviews.url()),
            ],
        );
        Self { storefront, catalog, inventory, reviews }
    }

    async fn get(&self, path: &str) -> common::Answer {
        get(&format!("{}{path}", self.storefront.url())).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_through_the_mesh_by_name_and_carry_the_trace() {
    if !python("calls_go_through_the_mesh_by_name_and_carry_the_trace") {
        return;
    }
    let (catalog, inventory) = (Service::start(CATALOG, &[]), Service::start(INVENTORY, &[]));
    let reviews = Service::start(&reviews_script(), &[]);
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let outbound = Outbound {
        catalog: catalog.url(),
        inventory: inventory.url(),
        reviews: reviews.url(),
        seen: Arc::clone(&seen),
    };
    let address = outbound.start().await;
    // The explicit addresses lead nowhere: the mesh comes first.
    let env = [("MESHWORK_OUTBOUND", address.as_str()), ("CATALOG_URL", NOWHERE), ("REVIEWS_URL", NOWHERE)];
    let storefront = Service::start(STOREFRONT, &env);

    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = http::Request::get(format!("{}/products/CK1005", storefront.url()))
        .header("traceparent", trace)
        .header("baggage", "cart=7")
        .header("x-request-id", "r-1")
        .header("cookie", "secret=1");
    let page = send(request.body(Full::default()).unwrap()).await;
    assert_eq!(page.status, 200);
    assert_eq!(page.text("product-name").unwrap(), "Storm Kettle 1 L");
    assert_eq!(page.text("product-price").unwrap(), "£69.00");
    assert_eq!(page.text("stock-quantity").unwrap(), "17");
    assert_eq!(page.count("review"), 2);
    assert!(page.text("reviews-summary").unwrap().starts_with("5.0 out of 5 from 2"));
    let seen = seen.lock();
    for service in ["catalog", "inventory", "reviews"] {
        let calls: Vec<&HeaderMap> =
            seen.iter().filter(|(name, _)| name == service).map(|(_, h)| h).collect();
        assert!(!calls.is_empty(), "{service} was not called by its name");
        for headers in calls {
            assert_eq!(headers["traceparent"], trace);
            assert_eq!(
                (&headers["baggage"], &headers["x-request-id"]),
                (&"cart=7".parse().unwrap(), &"r-1".parse().unwrap())
            );
            assert!(!headers.contains_key("cookie"), "a customer's cookie is nobody else's business");
        }
    }
}

#[tokio::test]
async fn browsing_pages_through_a_category() {
    if !python("browsing_pages_through_a_category") {
        return;
    }
    let shop = Shop::start();
    let home = shop.get("/").await;
    assert_eq!((home.status.as_u16(), home.count("product-card"), home.count("category-link")), (200, 8, 10));
    let first = shop.get("/products").await;
    assert_eq!(
        (first.count("product-card"), first.text("result-count").unwrap().as_str()),
        (24, "200 products")
    );
    assert!(first.has("next-page") && !first.has("prev-page"));
    let last = shop.get("/products?category=&sort=name&page=9").await;
    assert_eq!((last.count("product-card"), last.text("page-number").unwrap().as_str()), (8, "Page 9 of 9"));
    assert!(!last.has("next-page") && last.has("prev-page"));
    let tents = shop.get("/products?category=Tents%20%26%20Shelters&sort=price").await;
    assert_eq!(tents.count("product-card"), 20);
    assert_eq!(tents.text("product-price").unwrap(), "£6.90");
    assert!(tents.body.contains("data-state=\"out\"") && tents.body.contains("data-state=\"low\""));
    for (path, status) in [
        ("/products?page=10", 404),
        ("/products?page=0", 400),
        ("/products?page=x", 400),
        ("/products?sort=colour", 400),
        ("/products?category=Spaceships", 404),
        ("/products/NONE1", 404),
        ("/products/..%2Fcategories", 404),
        ("/nowhere", 404),
    ] {
        let page = shop.get(path).await;
        assert_eq!(
            (page.status.as_u16(), &page.headers["content-type"]),
            (status, &"text/html; charset=utf-8".parse().unwrap()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn searching_marks_what_matched_and_escapes_what_was_typed() {
    if !python("searching_marks_what_matched_and_escapes_what_was_typed") {
        return;
    }
    let shop = Shop::start();
    let found = shop.get("/search?q=kettle").await;
    assert!(found.count("product-card") >= 3);
    assert!(found.text("product-link").unwrap().contains("Kettle"));
    assert!(found.body.contains("<mark>Kettle</mark>"));
    let code = shop.get("/search?q=ck1007w").await;
    assert!(code.text("product-link").unwrap().contains("Enamel Mug, White"));
    let nothing = shop.get("/search?q=%3Cscript%3Ealert(1)%3C%2Fscript%3Ezzz").await;
    assert!(nothing.has("no-results") && !nothing.body.contains("<script"));
    let some = shop.get("/search?q=kettle+zeppelin").await;
    assert!(some.has("some-words") && some.count("product-card") > 0);
    let empty = shop.get("/search?q=").await;
    assert_eq!((empty.status.as_u16(), empty.count("product-card")), (200, 0));
    let policy = found.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'"));
    let style =
        found.body.split("href=\"").find(|h| h.starts_with("/assets/")).unwrap().split('"').next().unwrap();
    assert_eq!(shop.get(style).await.headers["content-type"], "text/css; charset=utf-8");
}

#[tokio::test]
async fn a_review_is_posted_corrected_and_shown() {
    if !python("a_review_is_posted_corrected_and_shown") {
        return;
    }
    let shop = Shop::start();
    let action = format!("{}/products/WN1001/reviews", shop.storefront.url());
    assert!(shop.get("/products/WN1001").await.has("no-reviews"));
    let wrong = post(&action, FORM, "author=&stars=9&title=Kept+%3Cb%3E&body=Points+north.").await;
    assert_eq!(wrong.status, 422);
    assert!(
        wrong.has("review-error-author")
            && wrong.has("review-error-stars")
            && !wrong.has("review-error-body")
    );
    assert!(wrong.body.contains("value=\"Kept &lt;b&gt;\""), "what was typed is kept");
    let good = "author=Una&stars=4&title=True&body=Points+north.%0D%0AMostly.";
    let posted = post(&action, FORM, good).await;
    assert_eq!(posted.status, 303);
    let to = posted.headers["location"].to_str().unwrap().trim_end_matches("#reviews");
    let page = shop.get(to).await;
    assert!(page.has("review-posted"));
    assert_eq!((page.count("review"), page.text("review-author").unwrap().as_str()), (1, "Una"));
    assert_eq!(page.text("review-body").unwrap(), "Points north.\nMostly.");
    // A second press of the button makes no second review.
    assert_eq!(post(&action, FORM, good).await.headers["location"], posted.headers["location"]);
    assert_eq!(shop.get("/products/WN1001").await.count("review"), 1);
    let nothing = format!("{}/products/NONE1/reviews", shop.storefront.url());
    assert_eq!(post(&nothing, FORM, good).await.status, 404);
    let foreign =
        http::Request::post(&action).header("content-type", FORM).header("sec-fetch-site", "cross-site");
    assert_eq!(send(foreign.body(Full::from(good)).unwrap()).await.status, 400);
}

#[tokio::test]
async fn pages_do_without_stock_and_reviews_but_not_without_the_catalog() {
    if !python("pages_do_without_stock_and_reviews_but_not_without_the_catalog") {
        return;
    }
    let mut shop = Shop::start();
    let whole = shop.get("/products/SL1001").await;
    assert!(whole.has("stock-quantity") && whole.has("review") && !whole.has("reviews-unavailable"));
    shop.reviews.kill().await;
    let page = shop.get("/products/SL1001").await;
    assert!(page.status == 200 && page.has("reviews-unavailable") && page.has("stock-quantity"));
    assert!(!page.has("review") && page.has("review-form"));
    let form = "author=Una&stars=4&title=True&body=My+long+text";
    let unsent = post(&format!("{}/products/SL1001/reviews", shop.storefront.url()), FORM, form).await;
    assert!(unsent.status == 503 && unsent.has("review-error") && unsent.body.contains("My long text"));
    shop.inventory.kill().await;
    let page = shop.get("/products/SL1001").await;
    assert!(page.status == 200 && page.has("stock-unavailable") && page.has("product-price"));
    assert!(shop.get("/products").await.body.contains("data-state=\"unknown\""));
    shop.catalog.kill().await;
    let page = shop.get("/products/SL1001").await;
    assert!(page.status == 503 && page.has("unavailable") && page.headers.contains_key("retry-after"));
    assert_eq!(shop.get("/healthz").await.status, 200);
}
