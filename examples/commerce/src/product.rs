//! What the shop sells: the one shape of a product that catalogue file, API and importer share.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::problem::FieldError;

/// Dearest price accepted, in pence: ten thousand pounds. A dearer one is far more likely a slip of units.
pub const MAX_PRICE_PENCE: u32 = 1_000_000;

/// A product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Product {
    /// Stock keeping unit. Case matters: published lists hold both `15056BL` and `15056bl`, and they are two products.
    pub sku: String,
    /// Name shown to customers.
    pub name: String,
    /// One or more sentences.
    #[serde(default)]
    pub description: String,
    /// The one category it is browsed under.
    pub category: String,
    /// Maker, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brand: Option<String>,
    /// Price in pence, VAT included.
    pub price_pence: u32,
    /// Credit that a licence asks for, where the data is someone else's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribution: Option<String>,
}

impl Product {
    const FIELDS: [&'static str; 7] =
        ["sku", "name", "description", "category", "brand", "pricePence", "attribution"];

    /// Reads a product that a caller sent. Unlike serde's derive it refuses members that a product does not have, so that
    /// a misspelt one is not lost in silence.
    ///
    /// # Errors
    /// Every field at fault, each prefixed with `at` (empty, or a path such as `products[3].`).
    pub fn from_json(value: Value, at: &str) -> Result<Self, Vec<FieldError>> {
        let Value::Object(members) = &value else {
            return Err(vec![FieldError::new(at.trim_end_matches('.'), "must be a JSON object")]);
        };
        let unknown: Vec<FieldError> = members
            .keys()
            .filter(|key| !Self::FIELDS.contains(&key.as_str()))
            .map(|key| {
                let known = Self::FIELDS.join(", ");
                FieldError::new(format!("{at}{key}"), format!("is no field of a product; known are {known}"))
            })
            .collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        let product: Self = serde_json::from_value(value)
            .map_err(|e| vec![FieldError::new(at.trim_end_matches('.'), e.to_string())])?;
        let errors = product.validate(at);
        if errors.is_empty() { Ok(product) } else { Err(errors) }
    }

    /// The fields that are not as they must be; none for a good product.
    #[must_use]
    pub fn validate(&self, at: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut check = |ok: bool, field: &str, message: &str| {
            if !ok {
                errors.push(FieldError::new(format!("{at}{field}"), message));
            }
        };
        check(valid_sku(&self.sku), "sku", "must be 1 to 32 letters, digits, '-', '_' or '.'");
        check(text(&self.name, 1, 200), "name", "must be 1 to 200 characters, without control characters");
        let described = self.description.chars().count() <= 10_000
            && !self.description.chars().any(|c| c.is_control() && c != '\n');
        check(described, "description", "must be at most 10000 characters, without control characters");
        check(text(&self.category, 1, 60), "category", "must be 1 to 60 characters");
        check(
            self.brand.as_ref().is_none_or(|b| text(b, 1, 60)),
            "brand",
            "must be 1 to 60 characters, or absent",
        );
        check((1..=MAX_PRICE_PENCE).contains(&self.price_pence), "pricePence", "must be 1 to 1000000 pence");
        check(
            self.attribution.as_ref().is_none_or(|a| text(a, 1, 500)),
            "attribution",
            "must be 1 to 500 characters, or absent",
        );
        errors
    }
}

fn text(value: &str, min: usize, max: usize) -> bool {
    let trimmed = value.trim();
    trimmed.len() == value.len()
        && (min..=max).contains(&value.chars().count())
        && !value.chars().any(char::is_control)
}

/// Whether `sku` can be one: it travels in URLs, so it needs no escaping there.
#[must_use]
pub fn valid_sku(sku: &str) -> bool {
    (1..=32).contains(&sku.len())
        && sku.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && sku.bytes().any(|b| b.is_ascii_alphanumeric())
}

/// `1234` as `£12.34`.
#[must_use]
pub fn pounds(pence: u32) -> String {
    format!("£{}.{:02}", pence / 100, pence % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn accepts_stock_codes_with_letters_and_keeps_their_case() {
        let sent = json!({"sku": "10123C", "name": "HEARTS WRAPPING TAPE", "category": "Giftware", "pricePence": 65});
        let product = Product::from_json(sent, "").unwrap();
        assert_eq!((product.sku.as_str(), product.price_pence), ("10123C", 65));
        assert!(!valid_sku("10123 C") && !valid_sku("../x") && !valid_sku("") && !valid_sku(".."));
    }

    #[test]
    fn names_every_field_at_fault_and_refuses_unknown_ones() {
        let sent = json!({"sku": "A/1", "name": " ", "category": "Garden", "pricePence": 0});
        let fields: Vec<String> =
            Product::from_json(sent, "products[2].").unwrap_err().into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["products[2].sku", "products[2].name", "products[2].pricePence"]);
        let misspelt =
            json!({"sku": "A1", "name": "Rake", "category": "Garden", "pricePence": 1, "colour": "red"});
        assert_eq!(Product::from_json(misspelt, "").unwrap_err()[0].field, "colour");
    }

    #[test]
    fn writes_pence_as_pounds() {
        assert_eq!((pounds(5).as_str(), pounds(123_450).as_str()), ("£0.05", "£1234.50"));
    }
}
