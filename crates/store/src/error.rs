//! What can go wrong with a store.

use std::io;

use meshwork_base::Code;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error(
        "store {path} is in use by another process; stop that one first (`meshwork down` for `meshwork up`), or give this one a data directory of its own"
    )]
    InUse {
        /// The store's file.
        path: String,
    },
    /// The file is not what was acknowledged.
    #[error(
        "store {path} is damaged: {what}; move it and {path}.seal aside and restore the last snapshot into a new store"
    )]
    Damaged {
        /// The store's file.
        path: String,
        /// What was found.
        what: String,
    },
    /// The file was written by a newer version.
    #[error("store {path} has format {found}, this version reads {supported}; start the newer version again")]
    Format {
        /// The store's file.
        path: String,
        /// Format in the file.
        found: u32,
        /// Newest format read.
        supported: u32,
    },
    /// More than every engine can hold.
    #[error("{found} {what} are more than the store takes; at most {max}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// How many came.
        found: usize,
        /// How many may come.
        max: usize,
    },
    /// A request that has no meaning.
    #[error("the store refuses the request: {why}")]
    Invalid {
        /// What is wrong with it.
        why: String,
    },
    /// Reading or opening failed; nothing was written.
    #[error("store {path}: {doing} failed: {source}; check the disk's space, health and permissions")]
    Io {
        /// The store's file.
        path: String,
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A write failed so late that it may or may not be kept.
    #[error(
        "store {path}: the disk failed while committing ({cause}); the write may or may not be kept: read before you retry"
    )]
    Uncertain {
        /// The store's file.
        path: String,
        /// The system's answer.
        cause: String,
    },
    /// Its files were removed, replaced or moved away under the process that has them open.
    #[error(
        "store {path}: its files were removed or replaced, or moved away, while this process has them open; nothing is kept any more: move them back, or put {path} and {path}.seal of one copy in their place (or remove both to begin with an empty store), then restart this process"
    )]
    Removed {
        /// The store's file.
        path: String,
    },
    /// The store was closed.
    #[error("the store is closed; its process is stopping")]
    Closed,
    /// A lease that is not there (any more).
    #[error("lease {lease} does not exist or has run out; grant a new one")]
    UnknownLease {
        /// Its number.
        lease: u64,
    },
    /// A snapshot that cannot be used.
    #[error("the snapshot cannot be used: {why}; nothing was changed")]
    Snapshot {
        /// What is wrong with it.
        why: String,
    },
}

impl StoreError {
    /// The HTTP status of an answer that says so: what the caller can mend is its mistake, all else may pass.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Limit { .. } => 413,
            Self::Invalid { .. } => 400,
            _ => 503,
        }
    }

    /// The code of its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        Code::new(match self {
            Self::InUse { .. } => 5001,
            Self::Damaged { .. } => 5002,
            Self::Format { .. } => 5003,
            Self::Limit { .. } => 5004,
            Self::Invalid { .. } => 5005,
            Self::Io { .. } => 5006,
            Self::Uncertain { .. } => 5007,
            Self::Closed => 5008,
            Self::UnknownLease { .. } => 5009,
            Self::Snapshot { .. } => 5010,
            Self::Removed { .. } => 5011,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_can_mend_is_its_mistake_and_all_else_may_pass() {
        let path = || "a".to_owned();
        assert_eq!(StoreError::Limit { what: "bytes", found: 2, max: 1 }.status(), 413);
        assert_eq!(StoreError::Invalid { why: path() }.status(), 400);
        let full = io::ErrorKind::StorageFull.into();
        assert_eq!(StoreError::Io { path: path(), doing: "writing", source: full }.status(), 503);
        assert_eq!(StoreError::Uncertain { path: path(), cause: path() }.status(), 503);
        assert_eq!(StoreError::Removed { path: path() }.status(), 503);
    }
}
