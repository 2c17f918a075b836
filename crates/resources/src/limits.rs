//! How much one file may ask of us. A breach is [`crate::codes::LIMIT_EXCEEDED`] and names the limit.

/// Bytes of one file. A folder of any size is fine; one file of this size holds some 5,000 routes.
pub const FILE_BYTES: usize = 8 << 20;

/// Documents in one file.
pub const DOCUMENTS: usize = 20_000;

/// Bytes of one document: an object in Kubernetes' store has at most 1.5 MiB; a `List` may be larger.
pub const DOCUMENT_BYTES: usize = 4 << 20;

/// Nested mappings and sequences in one document.
pub const DEPTH: usize = 64;

/// Values of one document after its aliases are expanded.
pub const NODES: usize = 400_000;

/// Aliases (`*name`) in one document.
pub const ALIASES: usize = 1_000;

/// Values that aliases may add to one document.
pub const ALIASED_NODES: usize = 20_000;

/// Diagnostics per file; a last one says that there are more.
pub const DIAGNOSTICS: usize = 200;
