//! The config service: documents with a history.
//!
//! A document is known by namespace, kind and name; mesh resources (an `HTTPRoute`) and the settings of an application
//! live in it alike. Each write makes a new revision that is never changed again, with author, message, time and hash.
//! Writes can be tied to what the writer saw (compare and set), several happen together or not at all, and where a
//! schema is published for a kind, nothing that breaks it is.
//!
//! ```text
//!   PUT, DELETE, POST /v1/changes ──► Config::apply ── schema, contents, one change ──► store
//!                                                                                       │ watch
//!   GET, GET /v1/watch ◄────────────────── Model (current documents) ◄─────────────────┘
//!   GET …/history, ?revision=N, …/diff ◄── contents by hash, read from the store
//! ```
//!
//! A schema is itself a document: kind `JSONSchema`, named like the kind in lower case. The one in a document's own
//! namespace counts, else the one in `default`. Every current document fits its schema at all times: a schema that
//! current documents break is not published.

mod canonical;
mod error;
mod http;
mod key;
mod model;
mod schema;
mod service;

pub use error::{Broken, ConfigError};
pub use meshwork_process::Caller;
pub use service::Config;
