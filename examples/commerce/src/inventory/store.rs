//! Stock and reservations in SQLite.
//!
//! Every change has a revision, one higher than the last, and is told to watchers while the writer still holds its turn: who
//! reads a snapshot at revision r and then every change above r misses nothing and sees nothing twice.

use std::collections::BTreeMap;
use std::path::Path;

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row, SqliteConnection};
use tokio::sync::broadcast;

use crate::db::{Database, DbError, SEED_TABLE, Write};

const SCHEMA: &str = "
CREATE TABLE stock (
    sku TEXT PRIMARY KEY,
    on_hand INTEGER NOT NULL CHECK (on_hand BETWEEN 0 AND 4294967295),
    reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved BETWEEN 0 AND on_hand),
    revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE revision (last INTEGER NOT NULL) STRICT;
INSERT INTO revision VALUES (0);
CREATE TABLE reservation (
    key TEXT PRIMARY KEY,
    released INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE reservation_line (
    key TEXT NOT NULL REFERENCES reservation,
    sku TEXT NOT NULL REFERENCES stock,
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (key, sku)
) STRICT, WITHOUT ROWID;
";

/// Changes a slow watcher may be behind before it gets a snapshot instead.
const WATCH_BUFFER: usize = 256;

/// A SKU's stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// The SKU.
    pub sku: String,
    /// Units there, reserved ones included.
    pub on_hand: u32,
    /// Units spoken for; never more than are on hand.
    pub reserved: u32,
    /// Revision of its last change.
    pub revision: u64,
}

/// Units of a SKU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The SKU.
    pub sku: String,
    /// How many.
    pub quantity: u32,
}

/// A reservation as a call found or left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its lines, by SKU.
    pub lines: Vec<Line>,
    /// Whether it was given back.
    pub released: bool,
    /// Whether this call found the work done.
    pub replayed: bool,
}

/// Why a level cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// Less than is promised.
    #[error(
        "{sku}: on_hand {on_hand} is less than the {reserved} units reserved; release reservations first"
    )]
    BelowReserved {
        /// The SKU.
        sku: String,
        /// What was asked for.
        on_hand: u32,
        /// What is promised.
        reserved: u32,
    },
    /// The database.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// Why nothing was reserved or released.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// Not stocked.
    #[error("{0} is not stocked here")]
    Unknown(String),
    /// Too little.
    #[error("{sku}: {available} available, {wanted} wanted")]
    Short {
        /// The SKU.
        sku: String,
        /// Units left.
        available: u32,
        /// Units asked for.
        wanted: u32,
    },
    /// The key is another reservation's.
    #[error("idempotency_key {0:?} was used with other lines; a new reservation needs a new key")]
    OtherLines(String),
    /// The reservation ended.
    #[error("reservation {0:?} was released; a new reservation needs a new key")]
    Released(String),
    /// There is no such reservation.
    #[error("there is no reservation {0:?}")]
    NoReservation(String),
    /// The database.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// The stock.
#[derive(Debug)]
pub struct InventoryStore {
    db: Database,
    changes: broadcast::Sender<Vec<Level>>,
}

impl InventoryStore {
    /// Opens or creates the database.
    ///
    /// # Errors
    /// See [`DbError`].
    pub async fn open(path: &Path) -> Result<Self, DbError> {
        let db = Database::open(path, &[format!("{SEED_TABLE}{SCHEMA}")]).await?;
        Ok(Self { db, changes: broadcast::channel(WATCH_BUFFER).0 })
    }

    /// Closes the database.
    pub async fn close(&self) {
        self.db.close().await;
    }

    /// Loads levels unless this content was loaded before. A level never falls below what is reserved.
    ///
    /// # Errors
    /// SQLite's; nothing is loaded then.
    pub async fn seed(
        &self,
        source: &str,
        digest: &str,
        levels: impl FnOnce() -> BTreeMap<String, u32>,
    ) -> Result<(), DbError> {
        let mut write = self.db.write().await?;
        if write.begin_seed(source, digest).await? {
            let revision = next_revision(write.conn()).await?;
            let mut skus = 0;
            for (sku, on_hand) in levels() {
                let before = level(write.conn(), &sku).await?;
                let on_hand = before.map_or(on_hand, |l| on_hand.max(l.reserved));
                put(write.conn(), &sku, on_hand, revision).await?;
                skus += 1;
            }
            self.publish(write, Vec::new()).await?;
            tracing::info!(source, skus, "stock loaded");
        }
        Ok(())
    }

    /// The levels of those SKUs that are stocked; of all when `skus` is `None`.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn levels(&self, skus: Option<&[String]>) -> Result<Vec<Level>, sqlx::Error> {
        let Some(skus) = skus else {
            return sqlx::query_as("SELECT * FROM stock ORDER BY sku").fetch_all(self.db.pool()).await;
        };
        let mut conn = self.db.pool().acquire().await?;
        let mut levels = Vec::with_capacity(skus.len());
        for sku in skus {
            levels.extend(level(&mut conn, sku).await?);
        }
        Ok(levels)
    }

    /// Changes from now on, each with the levels of one transaction.
    pub fn changes(&self) -> broadcast::Receiver<Vec<Level>> {
        self.changes.subscribe()
    }

    /// The present levels and the revision they are of.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn snapshot(&self, skus: Option<&[String]>) -> Result<(u64, Vec<Level>), sqlx::Error> {
        // Taking the writer's turn makes revision and levels those of one moment.
        let mut write = self.db.write().await?;
        let revision: i64 = sqlx::query_scalar("SELECT last FROM revision").fetch_one(write.conn()).await?;
        let levels = self.levels(skus).await?;
        Ok((revision.unsigned_abs(), levels))
    }

    /// Sets what is on hand, all lines or none: (created, updated, unchanged).
    ///
    /// # Errors
    /// See [`SetError`].
    pub async fn set(&self, lines: &[Line]) -> Result<(u32, u32, u32), SetError> {
        let mut write = self.db.write().await?;
        let revision = next_revision(write.conn()).await?;
        let (mut created, mut updated, mut unchanged, mut changed) = (0, 0, 0, Vec::new());
        for Line { sku, quantity: on_hand } in lines {
            match level(write.conn(), sku).await? {
                Some(before) if before.on_hand == *on_hand => {
                    unchanged += 1;
                    continue;
                }
                Some(before) if before.reserved > *on_hand => {
                    let (sku, on_hand) = (sku.clone(), *on_hand);
                    return Err(SetError::BelowReserved { sku, on_hand, reserved: before.reserved });
                }
                Some(_) => updated += 1,
                None => created += 1,
            }
            put(write.conn(), sku, *on_hand, revision).await?;
            changed.push(sku.clone());
        }
        // A call that changes nothing makes no revision: the transaction is dropped.
        if !changed.is_empty() {
            self.publish(write, changed).await?;
        }
        Ok((created, updated, unchanged))
    }

    /// Holds stock, all lines or none. `lines` are sorted and name each SKU once.
    ///
    /// # Errors
    /// See [`ReserveError`].
    pub async fn reserve(&self, key: &str, lines: &[Line]) -> Result<Taken, ReserveError> {
        let mut write = self.db.write().await?;
        if let Some(found) = reservation(write.conn(), key).await? {
            return match found {
                found if found.lines != lines => Err(ReserveError::OtherLines(key.to_owned())),
                found if found.released => Err(ReserveError::Released(key.to_owned())),
                found => Ok(found),
            };
        }
        sqlx::query("INSERT INTO reservation (key) VALUES (?1)").bind(key).execute(write.conn()).await?;
        let revision = next_revision(write.conn()).await?;
        for Line { sku, quantity } in lines {
            let stock = level(write.conn(), sku).await?.ok_or_else(|| ReserveError::Unknown(sku.clone()))?;
            let available = stock.on_hand - stock.reserved;
            if available < *quantity {
                return Err(ReserveError::Short { sku: sku.clone(), available, wanted: *quantity });
            }
            shift(write.conn(), sku, i64::from(*quantity), revision).await?;
            sqlx::query("INSERT INTO reservation_line (key, sku, quantity) VALUES (?1, ?2, ?3)")
                .bind(key)
                .bind(sku)
                .bind(quantity)
                .execute(write.conn())
                .await?;
        }
        self.publish(write, lines.iter().map(|l| l.sku.clone()).collect()).await?;
        Ok(Taken { lines: lines.to_vec(), released: false, replayed: false })
    }

    /// Gives a reservation back.
    ///
    /// # Errors
    /// See [`ReserveError`].
    pub async fn release(&self, key: &str) -> Result<Taken, ReserveError> {
        let mut write = self.db.write().await?;
        let found = reservation(write.conn(), key)
            .await?
            .ok_or_else(|| ReserveError::NoReservation(key.to_owned()))?;
        if found.released {
            return Ok(found);
        }
        let revision = next_revision(write.conn()).await?;
        for Line { sku, quantity } in &found.lines {
            shift(write.conn(), sku, -i64::from(*quantity), revision).await?;
        }
        sqlx::query("UPDATE reservation SET released = 1 WHERE key = ?1")
            .bind(key)
            .execute(write.conn())
            .await?;
        self.publish(write, found.lines.iter().map(|l| l.sku.clone()).collect()).await?;
        Ok(Taken { released: true, replayed: false, ..found })
    }

    /// Commits, and tells watchers the new levels of `changed` before another writer can follow.
    async fn publish(&self, mut write: Write<'_>, changed: Vec<String>) -> Result<(), sqlx::Error> {
        let mut levels = Vec::with_capacity(changed.len());
        for sku in changed {
            levels.extend(level(write.conn(), &sku).await?);
        }
        let _turn = write.commit_in_turn().await?;
        if !levels.is_empty() {
            // An error means that nobody watches.
            let _ = self.changes.send(levels);
        }
        Ok(())
    }
}

async fn next_revision(conn: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("UPDATE revision SET last = last + 1 RETURNING last").fetch_one(conn).await
}

async fn level(conn: &mut SqliteConnection, sku: &str) -> Result<Option<Level>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM stock WHERE sku = ?1").bind(sku).fetch_optional(conn).await
}

async fn put(conn: &mut SqliteConnection, sku: &str, on_hand: u32, revision: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO stock (sku, on_hand, revision) VALUES (?1, ?2, ?3)
         ON CONFLICT (sku) DO UPDATE SET on_hand = excluded.on_hand, revision = excluded.revision",
    )
    .bind(sku)
    .bind(on_hand)
    .bind(revision)
    .execute(conn)
    .await
    .map(drop)
}

async fn shift(conn: &mut SqliteConnection, sku: &str, units: i64, revision: i64) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE stock SET reserved = reserved + ?2, revision = ?3 WHERE sku = ?1")
        .bind(sku)
        .bind(units)
        .bind(revision)
        .execute(conn)
        .await
        .map(drop)
}

async fn reservation(conn: &mut SqliteConnection, key: &str) -> Result<Option<Taken>, sqlx::Error> {
    let released: Option<bool> = sqlx::query_scalar("SELECT released FROM reservation WHERE key = ?1")
        .bind(key)
        .fetch_optional(&mut *conn)
        .await?;
    let Some(released) = released else { return Ok(None) };
    let lines = sqlx::query_as("SELECT sku, quantity FROM reservation_line WHERE key = ?1 ORDER BY sku")
        .bind(key)
        .fetch_all(conn)
        .await?;
    Ok(Some(Taken { lines, released, replayed: true }))
}

impl FromRow<'_, SqliteRow> for Level {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let revision: i64 = row.try_get("revision")?;
        Ok(Self {
            sku: row.try_get("sku")?,
            on_hand: row.try_get("on_hand")?,
            reserved: row.try_get("reserved")?,
            revision: revision.unsigned_abs(),
        })
    }
}

impl FromRow<'_, SqliteRow> for Line {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self { sku: row.try_get("sku")?, quantity: row.try_get("quantity")? })
    }
}
