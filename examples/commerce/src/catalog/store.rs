//! Products in SQLite, with an FTS5 index that triggers keep.

use std::path::Path;

use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, FromRow, Row, SqliteConnection};

use super::search::{Words, expression};
use crate::db::{Database, DbError, SEED_TABLE};
use crate::product::Product;

// The index holds no copy of the text. Prefix indexes for two and three letters serve what is typed half.
const SCHEMA: &str = "
CREATE TABLE product (
    id INTEGER PRIMARY KEY,
    sku TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    category TEXT NOT NULL,
    brand TEXT,
    price_pence INTEGER NOT NULL CHECK (price_pence > 0),
    attribution TEXT
) STRICT;
CREATE INDEX product_by_category ON product (category, name);
CREATE INDEX product_by_name ON product (name);
CREATE VIRTUAL TABLE product_fts USING fts5 (
    sku, name, description, category, brand,
    content = 'product', content_rowid = 'id',
    tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
);
CREATE TRIGGER product_added AFTER INSERT ON product BEGIN
    INSERT INTO product_fts (rowid, sku, name, description, category, brand)
    VALUES (new.id, new.sku, new.name, new.description, new.category, new.brand);
END;
CREATE TRIGGER product_changed AFTER UPDATE ON product BEGIN
    INSERT INTO product_fts (product_fts, rowid, sku, name, description, category, brand)
    VALUES ('delete', old.id, old.sku, old.name, old.description, old.category, old.brand);
    INSERT INTO product_fts (rowid, sku, name, description, category, brand)
    VALUES (new.id, new.sku, new.name, new.description, new.category, new.brand);
END;
";

/// Marks around a match in what SQLite returns; control characters, which no product's text holds.
const OPEN: char = '\u{2}';
const CLOSE: char = '\u{3}';

/// The order of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub enum Order {
    /// By name.
    #[default]
    #[serde(rename = "name")]
    Name,
    /// Cheapest first.
    #[serde(rename = "price")]
    Cheapest,
    /// Dearest first.
    #[serde(rename = "-price")]
    Dearest,
}

/// What a listing shows; an empty filter lets everything through.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Only this category.
    pub category: String,
    /// Only this brand.
    pub brand: String,
    /// The order.
    pub order: Order,
}

/// Part of a longer list.
#[derive(Clone, Debug, Serialize)]
pub struct Page<T> {
    /// The items of this page.
    pub items: Vec<T>,
    /// Its number, from 1.
    pub page: u32,
    /// Items on a full page.
    pub size: u32,
    /// Items in all.
    pub total: u64,
    /// Pages in all; 0 when there are no items.
    pub pages: u64,
}

impl<T> Page<T> {
    fn new(items: Vec<T>, page: u32, size: u32, total: i64) -> Self {
        let total = u64::try_from(total).unwrap_or(0);
        Self { items, page, size, total, pages: total.div_ceil(u64::from(size)) }
    }
}

/// A piece of text, and whether it is what was searched for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether it matched.
    #[serde(rename = "match")]
    pub is_match: bool,
}

/// A product found by a search.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The product.
    #[serde(flatten)]
    pub product: Product,
    /// Its name, in segments.
    #[serde(rename = "nameSegments")]
    pub name: Vec<Segment>,
    /// The part of the description that matched best, in segments.
    pub snippet: Vec<Segment>,
}

/// A page of a search.
#[derive(Clone, Debug, Serialize)]
pub struct SearchPage {
    /// The page.
    #[serde(flatten)]
    pub page: Page<Found>,
    /// False when no product had all words, and these have at least one.
    #[serde(rename = "allWords")]
    pub all_words: bool,
}

/// What saving products did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Saved {
    /// Products that are new.
    pub created: u32,
    /// Products that changed.
    pub updated: u32,
    /// Products that were just so already.
    pub unchanged: u32,
}

/// The products.
#[derive(Debug)]
pub struct CatalogStore {
    db: Database,
}

impl CatalogStore {
    /// Opens or creates the database.
    ///
    /// # Errors
    /// See [`DbError`].
    pub async fn open(path: &Path) -> Result<Self, DbError> {
        Ok(Self { db: Database::open(path, &[format!("{SEED_TABLE}{SCHEMA}")]).await? })
    }

    /// Closes the database.
    pub async fn close(&self) {
        self.db.close().await;
    }

    /// Loads `products` unless this content was loaded before. What someone changed since then stays as it is.
    ///
    /// # Errors
    /// SQLite's; nothing is loaded then.
    pub async fn seed(
        &self,
        source: &str,
        digest: &str,
        products: impl FnOnce() -> Vec<Product>,
    ) -> Result<(), DbError> {
        let mut write = self.db.write().await?;
        if write.begin_seed(source, digest).await? {
            let saved = save_all(write.conn(), &products()).await?;
            write.commit().await?;
            tracing::info!(source, created = saved.created, updated = saved.updated, "catalogue loaded");
        }
        Ok(())
    }

    /// Saves products, all or none.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn save(&self, products: &[Product]) -> Result<Saved, sqlx::Error> {
        let mut write = self.db.write().await?;
        let saved = save_all(write.conn(), products).await?;
        write.commit().await?;
        Ok(saved)
    }

    /// The product with this SKU, in this case of letters.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn get(&self, sku: &str) -> Result<Option<Product>, sqlx::Error> {
        sqlx::query_as("SELECT * FROM product WHERE sku = ?1").bind(sku).fetch_optional(self.db.pool()).await
    }

    /// Products in all.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn count(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT count(*) FROM product").fetch_one(self.db.pool()).await
    }

    /// Every category with its number of products.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn categories(&self) -> Result<Vec<(String, i64)>, sqlx::Error> {
        sqlx::query_as("SELECT category, count(*) FROM product GROUP BY category ORDER BY category")
            .fetch_all(self.db.pool())
            .await
    }

    /// A page of products.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn list(&self, listing: &Listing, page: u32, size: u32) -> Result<Page<Product>, sqlx::Error> {
        const WHERE: &str = "FROM product WHERE (?1 = '' OR category = ?1) AND (?2 = '' OR brand = ?2)";
        let order = match listing.order {
            Order::Name => "name, sku",
            Order::Cheapest => "price_pence, name, sku",
            Order::Dearest => "price_pence DESC, name, sku",
        };
        let total = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) {WHERE}")))
            .bind(&listing.category)
            .bind(&listing.brand)
            .fetch_one(self.db.pool())
            .await?;
        let items =
            sqlx::query_as(AssertSqlSafe(format!("SELECT * {WHERE} ORDER BY {order} LIMIT ?3 OFFSET ?4")))
                .bind(&listing.category)
                .bind(&listing.brand)
                .bind(size)
                .bind(offset(page, size))
                .fetch_all(self.db.pool())
                .await?;
        Ok(Page::new(items, page, size, total))
    }

    /// A page of what matches `query`, best first; of what matches any of its words when nothing matches all.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn search(
        &self,
        query: &str,
        category: &str,
        page: u32,
        size: u32,
    ) -> Result<SearchPage, sqlx::Error> {
        for words in [Words::All, Words::Any] {
            let Some(expression) = expression(query, words) else { break };
            let total = self.matches(&expression, category).await?;
            if total > 0 {
                let items = self.ranked(&expression, query, category, page, size).await?;
                let page = Page::new(items, page, size, total);
                return Ok(SearchPage { page, all_words: words == Words::All });
            }
        }
        Ok(SearchPage { page: Page::new(Vec::new(), page, size, 0), all_words: true })
    }

    async fn matches(&self, expression: &str, category: &str) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT count(*) FROM product_fts JOIN product p ON p.id = product_fts.rowid
             WHERE product_fts MATCH ?1 AND (?2 = '' OR p.category = ?2)",
        )
        .bind(expression)
        .bind(category)
        .fetch_one(self.db.pool())
        .await
    }

    async fn ranked(
        &self,
        expression: &str,
        query: &str,
        category: &str,
        page: u32,
        size: u32,
    ) -> Result<Vec<Found>, sqlx::Error> {
        // A stock code typed whole is what its customer wants. Then by BM25: a word in the name says more than in the
        // description.
        sqlx::query_as(
            "SELECT p.*, highlight(product_fts, 1, char(2), char(3)) AS name_marked,
                    snippet(product_fts, 2, char(2), char(3), '…', 24) AS snippet_marked
             FROM product_fts JOIN product p ON p.id = product_fts.rowid
             WHERE product_fts MATCH ?1 AND (?2 = '' OR p.category = ?2)
             ORDER BY p.sku = ?3 DESC, p.sku = ?3 COLLATE NOCASE DESC,
                      bm25(product_fts, 10.0, 8.0, 1.0, 3.0, 3.0), p.name, p.sku
             LIMIT ?4 OFFSET ?5",
        )
        .bind(expression)
        .bind(category)
        .bind(query.trim())
        .bind(size)
        .bind(offset(page, size))
        .fetch_all(self.db.pool())
        .await
    }
}

fn offset(page: u32, size: u32) -> i64 {
    i64::from(page.saturating_sub(1)) * i64::from(size)
}

async fn save_all(conn: &mut SqliteConnection, products: &[Product]) -> Result<Saved, sqlx::Error> {
    let mut saved = Saved::default();
    for product in products {
        let before: Option<Product> = sqlx::query_as("SELECT * FROM product WHERE sku = ?1")
            .bind(&product.sku)
            .fetch_optional(&mut *conn)
            .await?;
        match before {
            Some(before) if before == *product => {
                saved.unchanged += 1;
                continue;
            }
            Some(_) => saved.updated += 1,
            None => saved.created += 1,
        }
        sqlx::query(
            "INSERT INTO product (sku, name, description, category, brand, price_pence, attribution)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (sku) DO UPDATE SET name = excluded.name, description = excluded.description,
                 category = excluded.category, brand = excluded.brand, price_pence = excluded.price_pence,
                 attribution = excluded.attribution",
        )
        .bind(&product.sku)
        .bind(&product.name)
        .bind(&product.description)
        .bind(&product.category)
        .bind(&product.brand)
        .bind(product.price_pence)
        .bind(&product.attribution)
        .execute(&mut *conn)
        .await?;
    }
    Ok(saved)
}

impl FromRow<'_, SqliteRow> for Product {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            sku: row.try_get("sku")?,
            name: row.try_get("name")?,
            description: row.try_get("description")?,
            category: row.try_get("category")?,
            brand: row.try_get("brand")?,
            price_pence: row.try_get("price_pence")?,
            attribution: row.try_get("attribution")?,
        })
    }
}

impl FromRow<'_, SqliteRow> for Found {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            product: Product::from_row(row)?,
            name: segments(row.try_get("name_marked")?),
            snippet: segments(row.try_get("snippet_marked")?),
        })
    }
}

fn segments(marked: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut is_match = false;
    for piece in marked.split_inclusive([OPEN, CLOSE]) {
        let text = piece.trim_end_matches([OPEN, CLOSE]);
        if !text.is_empty() {
            segments.push(Segment { text: text.to_owned(), is_match });
        }
        is_match = piece.ends_with(OPEN);
    }
    segments
}

#[cfg(test)]
mod tests;
