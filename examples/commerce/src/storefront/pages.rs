//! The pages.

use maud::{Markup, html};

use super::services::{Page, Product, REVIEWS_SIZE, Review, Reviews, Stock};
use super::views::{Frame, badge, grid, layout, pagination, stars, tile};
use crate::client::escape;
use crate::problem::FieldError;
use crate::product::pounds;

/// How products can be sorted: the catalog's key, and the words for it.
pub(super) const SORTS: [(&str, &str); 3] =
    [("name", "Name"), ("price", "Price, low to high"), ("-price", "Price, high to low")];

/// Products on the welcome page.
const WELCOME: usize = 8;

pub(super) fn skus(products: &[Product]) -> Vec<String> {
    products.iter().map(|p| p.sku.clone()).collect()
}

pub(super) fn home(frame: &Frame<'_>, page: &Page, stock: Option<&Stock>) -> Markup {
    let shown = &page.items[..page.items.len().min(WELCOME)];
    let main = html! {
        section.hero {
            h1 { "Made for weather, and for coming home" }
            p { "Tents, lamps, kettles and blankets: " (page.total) " things for the hill and the hearth." }
            a.button href="/products" data-testid="browse-all" { "Browse everything" }
        }
        section aria-labelledby="by-category" {
            h2 #by-category { "By category" }
            ul.shelves data-testid="category-list" {
                @for category in frame.categories {
                    li {
                        a href={ "/products?category=" (escape(&category.name)) } {
                            strong { (category.name) }
                            span { (count(category.products, "product")) }
                        }
                    }
                }
            }
        }
        section aria-labelledby="to-begin" {
            h2 #to-begin { "To begin with" }
            (grid(shown, stock))
        }
    };
    layout("Welcome", frame, &main)
}

fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// What a page of products shows.
pub(super) struct Browse<'a> {
    pub(super) page: &'a Page,
    pub(super) sort: &'a str,
    pub(super) stock: Option<&'a Stock>,
}

pub(super) fn browse(frame: &Frame<'_>, browse: &Browse<'_>) -> Markup {
    let Browse { page, sort, stock } = browse;
    let title = if frame.category.is_empty() { "All products" } else { frame.category };
    let path = format!("/products?category={}&sort={}&page=", escape(frame.category), escape(sort));
    let main = html! {
        div.heading {
            h1 { (title) }
            p data-testid="result-count" { (count(page.total, "product")) }
            form.sort action="/products" method="get" data-testid="sort-form" {
                @if !frame.category.is_empty() { input type="hidden" name="category" value=(frame.category); }
                label for="sort" { "Sort by" }
                select #sort name="sort" {
                    @for (key, words) in SORTS { option value=(key) selected[key == *sort] { (words) } }
                }
                button type="submit" { "Sort" }
            }
        }
        @if page.items.is_empty() { p.empty data-testid="no-results" { "There is nothing here yet." } }
        (grid(&page.items, *stock))
        (pagination("Pages of products", &path, "", page.page, page.pages))
    };
    layout(title, frame, &main)
}

pub(super) fn search(frame: &Frame<'_>, page: &Page, stock: Option<&Stock>) -> Markup {
    let path = format!("/search?q={}&category={}&page=", escape(frame.query), escape(frame.category));
    let main = html! {
        div.heading {
            h1 { "Search" }
            @if frame.query.is_empty() {
                p { "Type a word, a part of one, or a stock code." }
            } @else {
                p role="status" data-testid="result-count" { (count(page.total, "result")) " for “" (frame.query) "”" }
            }
        }
        @if !page.all_words {
            p.notice data-testid="some-words" { "No product has all of these words; these have some of them." }
        }
        @if page.total == 0 && !frame.query.is_empty() {
            p.empty data-testid="no-results" {
                "Nothing matches. Try fewer letters, or " a href="/products" { "browse everything" } "."
            }
        }
        (grid(&page.items, stock))
        (pagination("Pages of results", &path, "", page.page, page.pages))
    };
    layout("Search", frame, &main)
}

/// What a product's page shows; `None` is what a service did not say.
pub(super) struct ProductPage<'a> {
    pub(super) product: &'a Product,
    pub(super) stock: Option<&'a Stock>,
    pub(super) reviews: Option<&'a Reviews>,
    pub(super) reviews_page: u32,
    pub(super) form: &'a ReviewForm,
}

/// The form as it was sent, and what became of it.
#[derive(Debug, Default)]
pub(super) struct ReviewForm {
    pub(super) posted: Option<u64>,
    pub(super) author: String,
    pub(super) stars: u8,
    pub(super) title: String,
    pub(super) body: String,
    pub(super) errors: Vec<FieldError>,
}

pub(super) fn product(frame: &Frame<'_>, page: &ProductPage<'_>) -> Markup {
    let product = page.product;
    let main = html! {
        nav.crumbs aria-label="Breadcrumb" {
            a href="/products" { "All products" } " / "
            a href={ "/products?category=" (escape(&product.category)) } { (product.category) }
        }
        article.product data-testid="product" data-sku=(product.sku) {
            (tile(product))
            div {
                h1 data-testid="product-name" { (product.name) }
                p.by {
                    @if let Some(brand) = &product.brand { (brand) " · " }
                    "Stock code " code data-testid="product-sku" { (product.sku) }
                }
                p.price data-testid="product-price" { (pounds(product.price_pence)) }
                (stock_line(product, page.stock))
                div.description data-testid="product-description" {
                    @for paragraph in product.description.split("\n\n") { p { (paragraph) } }
                }
                @if let Some(credit) = &product.attribution {
                    p.credit data-testid="product-attribution" { (credit) }
                }
            }
        }
        (reviews_section(page))
    };
    layout(&product.name, frame, &main)
}

fn stock_line(product: &Product, stock: Option<&Stock>) -> Markup {
    html! {
        p.availability {
            (badge(&product.sku, stock))
            @match stock.map(|stock| stock.get(&product.sku).copied().unwrap_or(0)) {
                None => { " " span data-testid="stock-unavailable" { "We cannot say just now how many are left." } }
                Some(0) => {}
                Some(units) => {
                    " " span { span data-testid="stock-quantity" { (units) } " available" }
                }
            }
        }
    }
}

fn reviews_section(page: &ProductPage<'_>) -> Markup {
    html! {
        section.reviews #reviews aria-labelledby="reviews-title" data-testid="reviews" {
            h2 #reviews-title { "Reviews" }
            @if page.form.posted.is_some() {
                p.notice.good role="status" data-testid="review-posted" { "Thank you, your review is below." }
            }
            @match page.reviews {
                None => {
                    p.notice data-testid="reviews-unavailable" {
                        "Reviews cannot be shown just now. The product is as good as before."
                    }
                }
                Some(reviews) => { (review_list(page, reviews)) }
            }
            (review_form(page.product, page.form))
        }
    }
}

fn review_list(page: &ProductPage<'_>, reviews: &Reviews) -> Markup {
    let path = format!("/products/{}?reviews=", escape(&page.product.sku));
    let pages = reviews.count.div_ceil(u64::from(REVIEWS_SIZE));
    html! {
        @if let Some(average) = reviews.average {
            p.summary data-testid="reviews-summary" {
                strong { (format!("{average:.1}")) } " out of 5 from "
                span data-testid="reviews-count" { (reviews.count) }
                @if reviews.count == 1 { " review" } @else { " reviews" }
            }
        } @else {
            p data-testid="no-reviews" { "Nobody has reviewed this yet." }
        }
        ol.list data-testid="review-list" {
            @for review in &reviews.items { (one_review(review, page.form.posted)) }
        }
        (pagination("Pages of reviews", &path, "#reviews", page.reviews_page, pages))
    }
}

fn one_review(review: &Review, posted: Option<u64>) -> Markup {
    let day = review.created_at.get(..10).unwrap_or(&review.created_at);
    html! {
        li.review id={ "review-" (review.id) } .new[posted == Some(review.id)] data-testid="review" {
            h3 { (stars(review.stars)) " " span data-testid="review-title" { (review.title) } }
            p data-testid="review-body" { (review.body) }
            p.by { span data-testid="review-author" { (review.author) } ", " time datetime=(review.created_at) { (day) } }
        }
    }
}

fn review_form(product: &Product, form: &ReviewForm) -> Markup {
    let error = |field: &str| form.errors.iter().find(|e| e.field == field).map(|e| e.message.as_str());
    let text = |field: &str, label: &str, value: &str, max: u32| {
        html! {
            label for=(field) { (label) }
            input id=(field) name=(field) value=(value) maxlength=(max) required data-testid={ "review-input-" (field) }
                aria-invalid=[error(field).map(|_| "true")]
                aria-describedby=[error(field).map(|_| format!("{field}-error"))];
            (field_error(field, error(field)))
        }
    };
    html! {
        form.review-form #review-form method="post" data-testid="review-form"
            action={ "/products/" (escape(&product.sku)) "/reviews#review-form" } {
            h3 { "Write a review" }
            @if let Some(first) = form.errors.first() {
                p.notice.bad role="alert" data-testid="review-error" {
                    @if first.field.is_empty() { (first.message) }
                    @else { "Your review was not stored yet: please correct what is marked." }
                }
            }
            (text("author", "Your name", &form.author, 60))
            fieldset {
                legend { "Stars" }
                @for number in 1..=5_u8 {
                    label.star {
                        input type="radio" name="stars" value=(number) required checked[form.stars == number]
                            data-testid={ "review-stars-" (number) };
                        " " (number)
                    }
                }
                (field_error("stars", error("stars")))
            }
            (text("title", "Headline", &form.title, 120))
            label for="body" { "Review" }
            textarea #body name="body" rows="5" maxlength="4000" required data-testid="review-input-body"
                aria-invalid=[error("body").map(|_| "true")]
                aria-describedby=[error("body").map(|_| "body-error")] { (form.body) }
            (field_error("body", error("body")))
            button.button type="submit" data-testid="review-submit" { "Post review" }
        }
    }
}

fn field_error(field: &str, error: Option<&str>) -> Markup {
    html! {
        @if let Some(error) = error {
            p.field-error id={ (field) "-error" } data-testid={ "review-error-" (field) } { "This " (error) "." }
        }
    }
}

pub(super) fn missing(what: &str) -> Markup {
    plain("Not found", "not-found", "This path ends here", what)
}

pub(super) fn bad_request(why: &str) -> Markup {
    plain("Bad request", "bad-request", "That cannot be shown", why)
}

pub(super) fn unavailable() -> Markup {
    let why = "The shelves cannot be reached just now. Please try again in a few seconds.";
    plain("Back in a moment", "unavailable", "Back in a moment", why)
}

fn plain(title: &str, id: &str, heading: &str, text: &str) -> Markup {
    let main = html! {
        section.plain data-testid=(id) {
            h1 { (heading) }
            p { (text) }
            p { a.button href="/" { "To the front door" } }
        }
    };
    layout(title, &Frame::default(), &main)
}
