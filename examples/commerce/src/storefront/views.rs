//! The frame around every page, and the pieces that several pages show.

use maud::{DOCTYPE, Markup, html};

use super::services::{Category, Product, Segment, Stock};
use crate::client::escape;
use crate::product::pounds;

/// The style sheet.
pub(super) const STYLE: &str = include_str!("shop.css");

/// What surrounds a page.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frame<'a> {
    /// Every category; empty when the catalog does not answer.
    pub(super) categories: &'a [Category],
    /// The category shown.
    pub(super) category: &'a str,
    /// The search shown.
    pub(super) query: &'a str,
}

/// A whole page.
pub(super) fn layout(title: &str, frame: &Frame<'_>, main: &Markup) -> Markup {
    let style = format!("/assets/shop.css?v={}", &crate::catalogue::digest(STYLE.as_bytes())[..12]);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Fell & Hearth" }
                link rel="stylesheet" href=(style);
                link rel="icon" href="data:,";
            }
            body {
                a.skip href="#main" { "Skip to content" }
                header.top {
                    a.brand href="/" data-testid="home-link" {
                        svg viewBox="0 0 32 32" aria-hidden="true" { path d="M3 26 12 9l5 8 3-5 9 14z" {} }
                        span { "Fell & Hearth" }
                    }
                    form.search role="search" action="/search" method="get" data-testid="search-form" {
                        label.unseen for="q" { "Search products" }
                        input #q type="search" name="q" value=(frame.query) maxlength="200" autocomplete="off"
                            placeholder="Search tents, mugs, stock codes…" data-testid="search-input";
                        button type="submit" data-testid="search-submit" { "Search" }
                    }
                }
                @if !frame.categories.is_empty() { (category_nav(frame)) }
                main #main tabindex="-1" { (main) }
                footer {
                    p { "Fell & Hearth is the reference shop of Meshwork. Nothing here is for sale." }
                }
            }
        }
    }
}

fn category_nav(frame: &Frame<'_>) -> Markup {
    html! {
        nav.categories aria-label="Categories" data-testid="category-nav" {
            ul {
                li { a href="/products" aria-current=[(frame.category.is_empty() && frame.query.is_empty()).then_some("true")] { "All" } }
                @for category in frame.categories {
                    li {
                        a href={ "/products?category=" (escape(&category.name)) } data-testid="category-link"
                            aria-current=[(category.name == frame.category).then_some("true")] {
                            (category.name) " " span.count { (category.products) }
                        }
                    }
                }
            }
        }
    }
}

/// Products as cards.
pub(super) fn grid(products: &[Product], stock: Option<&Stock>) -> Markup {
    html! {
        ul.grid data-testid="product-grid" {
            @for product in products {
                li.card data-testid="product-card" data-sku=(product.sku) {
                    (tile(product))
                    div.text {
                        h3 {
                            a href={ "/products/" (escape(&product.sku)) } data-testid="product-link" {
                                @if product.name_segments.is_empty() { (product.name) }
                                @else { (marked(&product.name_segments)) }
                            }
                        }
                        @if product.snippet.iter().any(|s| s.is_match) {
                            p.snippet { (marked(&product.snippet)) }
                        } @else if let Some(brand) = &product.brand {
                            p.by { (brand) }
                        }
                        p.line {
                            span.price data-testid="product-price" { (pounds(product.price_pence)) }
                            (badge(&product.sku, stock))
                        }
                    }
                }
            }
        }
    }
}

/// A coloured field with initials stands for a picture: the shop has none, and asks nobody for them.
pub(super) fn tile(product: &Product) -> Markup {
    // Multiplying by the golden ratio and keeping the top three bits spreads names that differ little.
    let sum = product.category.bytes().fold(0_u32, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(b)));
    let hue = sum.wrapping_mul(0x9E37_79B1) >> 29;
    let initials: String = product
        .name
        .split_whitespace()
        .filter_map(|word| word.chars().find(|c| c.is_alphanumeric()))
        .take(2)
        .flat_map(char::to_uppercase)
        .collect();
    html! { div class={ "tile hue" (hue) } aria-hidden="true" { (initials) } }
}

/// How many are there, in words.
pub(super) fn badge(sku: &str, stock: Option<&Stock>) -> Markup {
    let (state, text) = match stock.map(|stock| stock.get(sku).copied()) {
        None => ("unknown", "Stock unknown".to_owned()),
        Some(None | Some(0)) => ("out", "Sold out".to_owned()),
        Some(Some(few @ 1..=5)) => ("low", format!("Only {few} left")),
        Some(Some(_)) => ("in", "In stock".to_owned()),
    };
    html! { span class={ "stock " (state) } data-testid="stock" data-state=(state) { (text) } }
}

fn marked(segments: &[Segment]) -> Markup {
    html! {
        @for segment in segments {
            @if segment.is_match { mark { (segment.text) } } @else { (segment.text) }
        }
    }
}

/// Links between pages; `path` ends where the page's number follows.
pub(super) fn pagination(label: &str, path: &str, anchor: &str, page: u32, pages: u64) -> Markup {
    if pages <= 1 {
        return html! {};
    }
    html! {
        nav.pages aria-label=(label) data-testid="pagination" {
            @if page > 1 {
                a rel="prev" href={ (path) (page - 1) (anchor) } data-testid="prev-page" { "← Previous" }
            }
            span data-testid="page-number" { "Page " (page) " of " (pages) }
            @if u64::from(page) < pages {
                a rel="next" href={ (path) (page + 1) (anchor) } data-testid="next-page" { "Next →" }
            }
        }
    }
}

/// Stars as text that is read out once.
pub(super) fn stars(stars: u8) -> Markup {
    let full = usize::from(stars.min(5));
    html! {
        span.stars role="img" aria-label={ (full) " out of 5 stars" } {
            (format!("{}{}", "★".repeat(full), "☆".repeat(5 - full)))
        }
    }
}
