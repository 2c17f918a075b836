//! The shop's own catalogue, `catalogue.json`: products, stock levels and a few reviews, written for this project and
//! carried in the binaries, so that every instance starts with the same shelves.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::product::Product;

/// The file itself. `reviews/server.py` reads its `reviews` from the same file.
pub const JSON: &str = include_str!("../catalogue.json");

/// The catalogue.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// Who wrote it, and how it may be used.
    pub about: String,
    /// What the shop sells.
    pub products: Vec<Product>,
    /// Units on hand by SKU.
    pub stock: BTreeMap<String, u32>,
    /// Reviews to begin with.
    pub reviews: Vec<SeedReview>,
}

/// A review of the catalogue.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedReview {
    /// The product.
    pub sku: String,
    /// Name shown.
    pub author: String,
    /// 1 to 5.
    pub stars: u8,
    /// Headline.
    pub title: String,
    /// The review.
    pub body: String,
}

/// Parses the catalogue that the binary carries.
#[must_use]
pub fn own() -> Catalogue {
    serde_json::from_str(JSON).expect("catalogue.json is checked by this crate's tests")
}

/// A name for content: the same bytes give the same digest on every instance.
#[must_use]
pub fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn own_catalogue_is_whole() {
        let catalogue = own();
        assert!(catalogue.products.len() >= 200, "{} products", catalogue.products.len());
        let skus: BTreeSet<&String> = catalogue.products.iter().map(|p| &p.sku).collect();
        assert_eq!(skus.len(), catalogue.products.len(), "a SKU is used twice");
        let names: BTreeSet<&String> = catalogue.products.iter().map(|p| &p.name).collect();
        assert_eq!(names.len(), catalogue.products.len(), "a name is used twice");
        for product in &catalogue.products {
            assert_eq!(product.validate(""), [], "{}", product.sku);
            assert!(product.description.len() >= 40, "{} is hardly described", product.sku);
            // UCI stock codes begin with five digits; ours must never collide with them.
            assert!(product.sku.starts_with(|c: char| c.is_ascii_alphabetic()), "{}", product.sku);
        }
        assert_eq!(catalogue.stock.keys().collect::<BTreeSet<_>>(), skus, "stock and products differ");
        assert!(catalogue.stock.values().any(|&n| n == 0), "something should be sold out");
        assert!(catalogue.reviews.len() >= 36, "{} reviews", catalogue.reviews.len());
        for review in &catalogue.reviews {
            assert!(skus.contains(&review.sku) && (1..=5).contains(&review.stars), "{review:?}");
        }
    }
}
