//! SQLite as the services use it: few connections, write-ahead log, one writer at a time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection, Transaction};
use tokio::sync::{Mutex, MutexGuard};

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The folder for it cannot be made.
    #[error(
        "cannot create the data directory {path}: {source}; set DATA_DIR to a folder that can be written"
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// SQLite refuses the file.
    #[error("cannot open the database {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// The file was written by a later release.
    #[error(
        "{path} has schema version {found}, this release knows up to {known}: start the newer release, or another DATA_DIR"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The latest version known here.
        known: usize,
    },
    /// A statement failed.
    #[error("database request failed: {0}")]
    Sql(#[from] sqlx::Error),
}

/// Part of every service's first migration: which seed files a database already holds.
pub const SEED_TABLE: &str =
    "CREATE TABLE seed (source TEXT PRIMARY KEY, digest TEXT NOT NULL) STRICT, WITHOUT ROWID;";

/// An open database.
#[derive(Debug)]
pub struct Database {
    pool: SqlitePool,
    // SQLite has one writer; waiting here is fair and wakes at once, its own busy handler polls.
    turn: Mutex<()>,
}

impl Database {
    /// Opens or creates the file and brings its schema up to date. `migrations[n]` leads from schema version n to n + 1.
    ///
    /// # Errors
    /// See [`DbError`].
    pub async fn open(path: &Path, migrations: &[String]) -> Result<Self, DbError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|source| DbError::Folder { path: folder.to_owned(), source })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // With a write-ahead log this loses nothing when the process is killed; only a power cut can take the last
            // transactions, and it leaves the file whole.
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5))
            .statement_cache_capacity(32)
            .pragma("cache_size", "-1024");
        let pool = SqlitePoolOptions::new()
            .max_connections(3)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options)
            .await
            .map_err(|source| DbError::Open { path: path.to_owned(), source })?;
        let database = Self { pool, turn: Mutex::new(()) };
        database.migrate(path, migrations).await?;
        Ok(database)
    }

    async fn migrate(&self, path: &Path, migrations: &[String]) -> Result<(), DbError> {
        let mut write = self.write().await?;
        let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(write.conn()).await?;
        let newer = || DbError::Newer { path: path.to_owned(), found, known: migrations.len() };
        let done = usize::try_from(found).map_err(|_| newer())?;
        for migration in migrations.get(done..).ok_or_else(newer)? {
            sqlx::raw_sql(AssertSqlSafe(migration.as_str())).execute(write.conn()).await?;
        }
        let version = format!("PRAGMA user_version = {}", migrations.len());
        sqlx::raw_sql(AssertSqlSafe(version)).execute(write.conn()).await?;
        write.commit().await?;
        Ok(())
    }

    /// Where reads go.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Begins a write; waits for its turn.
    ///
    /// # Errors
    /// SQLite's, among them busy for five seconds because of another process.
    pub async fn write(&self) -> Result<Write<'_>, sqlx::Error> {
        let turn = self.turn.lock().await;
        Ok(Write { tx: self.pool.begin_with("BEGIN IMMEDIATE").await?, turn })
    }

    /// Closes every connection, which folds the write-ahead log into the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A write transaction; dropped without [`commit`](Write::commit) it is rolled back.
#[derive(Debug)]
pub struct Write<'a> {
    tx: Transaction<'static, Sqlite>,
    turn: MutexGuard<'a, ()>,
}

impl<'a> Write<'a> {
    /// The connection that the transaction runs on.
    pub fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.tx
    }

    /// Commits.
    ///
    /// # Errors
    /// SQLite's; nothing is written then.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.commit_in_turn().await.map(drop)
    }

    /// Commits and keeps the turn: who holds it can tell others of the change before the next one happens.
    ///
    /// # Errors
    /// SQLite's; nothing is written then.
    pub async fn commit_in_turn(self) -> Result<MutexGuard<'a, ()>, sqlx::Error> {
        self.tx.commit().await?;
        Ok(self.turn)
    }

    /// Notes that `source` with this content is being loaded; false when the database holds just that already.
    ///
    /// # Errors
    /// SQLite's.
    pub async fn begin_seed(&mut self, source: &str, digest: &str) -> Result<bool, sqlx::Error> {
        let changed = sqlx::query(
            "INSERT INTO seed (source, digest) VALUES (?1, ?2)
             ON CONFLICT (source) DO UPDATE SET digest = excluded.digest WHERE digest <> excluded.digest",
        )
        .bind(source)
        .bind(digest)
        .execute(self.conn())
        .await?;
        Ok(changed.rows_affected() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refuses_a_file_of_a_later_release_and_runs_each_migration_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/x.sqlite");
        let one = vec!["CREATE TABLE a (x INTEGER) STRICT;".to_owned()];
        let two = vec![one[0].clone(), "CREATE TABLE b (x INTEGER) STRICT;".to_owned()];
        Database::open(&path, &one).await.unwrap().close().await;
        Database::open(&path, &two).await.unwrap().close().await;
        Database::open(&path, &two).await.unwrap().close().await;
        let error = Database::open(&path, &one).await.unwrap_err();
        assert!(matches!(error, DbError::Newer { found: 2, known: 1, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_seed_counts_once_per_content_and_only_when_committed() {
        let folder = tempfile::tempdir().unwrap();
        let db = Database::open(&folder.path().join("x.sqlite"), &[SEED_TABLE.to_owned()]).await.unwrap();
        let mut dropped = db.write().await.unwrap();
        assert!(dropped.begin_seed("catalogue.json", "1").await.unwrap());
        drop(dropped);
        for (digest, fresh) in [("1", true), ("1", false), ("2", true)] {
            let mut write = db.write().await.unwrap();
            assert_eq!(write.begin_seed("catalogue.json", digest).await.unwrap(), fresh);
            write.commit().await.unwrap();
        }
    }
}
