//! Published files, read in their own layout: UCI *Online Retail* products and order lines, customer reviews as JSON lines.
//!
//! ```text
//! products.csv         stock_code,description,unit_price_gbp,order_lines,units_sold,first_sold,last_sold
//! orders….csv[.gz]     InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country
//! ….jsonl              {"product": …, "title": …, "body": …, "stars": …, "id": …}
//! ```
//!
//! Which of them a file is, its first line says. A file is taken whole or not at all.

mod retail;
mod reviews;

pub use retail::{RetailProduct, stock_levels};
pub use reviews::PublishedReview;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::product::Product;

/// Why a published file is refused.
#[derive(Debug, thiserror::Error)]
pub enum PublishedError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its first line is that of no known layout.
    #[error(
        "{path} is in no known layout: its first line must be that of Online Retail's products \
         ({}) or order lines ({}), or a JSON object with product, title and body", retail::PRODUCTS.join(","), retail::ORDERS.join(",")
    )]
    Layout {
        /// The file.
        path: PathBuf,
    },
    /// A line is not as its layout says.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
}

/// Net units ordered by stock code: cancellations and returns are taken off.
pub type Demand = BTreeMap<String, i64>;

/// What a file holds.
#[derive(Clone, Debug)]
pub enum Published {
    /// Products with their sales.
    Products(Vec<RetailProduct>),
    /// Units ordered.
    Orders(Demand),
    /// Reviews.
    Reviews(Vec<PublishedReview>),
}

impl Published {
    /// Reads a file, gzipped or not.
    ///
    /// # Errors
    /// See [`PublishedError`].
    pub fn read(path: &Path) -> Result<Self, PublishedError> {
        Self::parse(path, &bytes(path)?)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, PublishedError> {
        let line = |(line, reason)| PublishedError::Line { path: path.to_owned(), line, reason };
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let first = text.split(|&b| b == b'\n').next().unwrap_or_default().trim_ascii();
        if first == retail::PRODUCTS.join(",").as_bytes() {
            retail::products(text).map(Self::Products).map_err(line)
        } else if first == retail::ORDERS.join(",").as_bytes() {
            retail::orders(text).map(Self::Orders).map_err(line)
        } else if first.starts_with(b"{") {
            reviews::reviews(text).map(Self::Reviews).map_err(line)
        } else {
            Err(PublishedError::Layout { path: path.to_owned() })
        }
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, PublishedError> {
    let failed = |source| PublishedError::Read { path: path.to_owned(), source };
    let raw = std::fs::read(path).map_err(failed)?;
    if !raw.starts_with(&[0x1f, 0x8b]) {
        return Ok(raw);
    }
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(raw.as_slice()).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

/// Several published files together, as `COMMERCE_IMPORT` names them.
#[derive(Clone, Debug, Default)]
pub struct Imports {
    products: Vec<RetailProduct>,
    demand: Option<Demand>,
    reviews: Vec<PublishedReview>,
    contents: Vec<String>,
}

impl Imports {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`PublishedError`]; the first bad file ends it.
    pub fn read<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Result<Self, PublishedError> {
        let mut imports = Self::default();
        for path in paths {
            let text = bytes(path)?;
            match Published::parse(path, &text)? {
                Published::Products(products) => imports.products.extend(products),
                Published::Reviews(reviews) => imports.reviews.extend(reviews),
                Published::Orders(demand) => {
                    let total = imports.demand.get_or_insert_default();
                    for (sku, units) in demand {
                        *total.entry(sku).or_default() += units;
                    }
                }
            }
            imports.contents.push(crate::catalogue::digest(&text));
        }
        Ok(imports)
    }

    /// Whether there is nothing to import.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }

    /// A name for the contents, in their order.
    #[must_use]
    pub fn digest(&self) -> String {
        crate::catalogue::digest(self.contents.concat().as_bytes())
    }

    /// The products as the shop sells them.
    #[must_use]
    pub fn products(&self) -> Vec<Product> {
        self.products.iter().map(RetailProduct::to_product).collect()
    }

    /// Units on hand, see [`stock_levels`].
    #[must_use]
    pub fn stock(&self) -> BTreeMap<String, u32> {
        stock_levels(&self.products, self.demand.as_ref())
    }

    /// The reviews.
    #[must_use]
    pub fn reviews(&self) -> &[PublishedReview] {
        &self.reviews
    }
}

#[cfg(test)]
mod tests;
