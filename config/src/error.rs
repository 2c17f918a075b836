//! What the config service refuses, and why.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use meshwork_base::Code;
use meshwork_process::Problem;
use meshwork_store::{StoreError, limits};
use serde::Serialize;

/// A place where a document breaks its schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// `NAMESPACE/KIND/NAME`.
    pub document: String,
    /// Where in it (JSON pointer).
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

/// Why the config service did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A value that has no meaning.
    #[error("{what}")]
    Invalid {
        /// What is wrong and what would be right.
        what: String,
    },
    /// A change of so many documents that what is noted of it has no room.
    #[error(
        "this change is of {documents} documents, whose names and revisions take {bytes} bytes; the store keeps at most {max} of one change: send it in parts, of {at_once} documents or less"
    )]
    TooLarge {
        /// How many it has.
        documents: usize,
        /// What is noted of it, without their contents.
        bytes: usize,
        /// How much that may be.
        max: usize,
        /// So many have room if they are like these.
        at_once: usize,
    },
    /// Nothing has this name.
    #[error("{what}")]
    Unknown {
        /// Which name, and how to find the right one.
        what: String,
    },
    /// A document is not as the writer saw it.
    #[error("{document} is at revision {current}, not {expected}; read it again and decide")]
    Conflict {
        /// `NAMESPACE/KIND/NAME`.
        document: String,
        /// Its last revision; 0: it does not exist.
        current: u64,
        /// The revision the writer saw.
        expected: u64,
        /// The condition came as a header (RFC 9110, section 13).
        precondition: bool,
    },
    /// Documents break their schema.
    #[error("{} of the documents do not fit their schema, first {}: {}", .broken.len(), .broken[0].document, .broken[0].message)]
    Schema {
        /// Where; at least one.
        broken: Vec<Broken>,
    },
    /// Others kept changing the same documents.
    #[error("others changed the same documents again and again while this change was tried; try again")]
    Contended,
    /// The change was made for another store than this one.
    #[error(
        "the store is another one than the one that the change was made for, or an older copy of it ({expected}, and this one is {own}): what is in it may be something else, or nothing; read it again and decide"
    )]
    AnotherStore {
        /// The epoch of the store that the writer has read.
        expected: String,
        /// The epoch of this one.
        own: String,
    },
    /// No identity was proven.
    #[error("the caller is not known; call with a SPIFFE certificate or a token")]
    Unauthenticated,
}

impl ConfigError {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    pub(crate) fn too_large(documents: usize, bytes: usize) -> Self {
        let max = limits::MAX_VALUE_BYTES;
        // They are not all of one length.
        let fits = documents * max / bytes.max(1) * 9 / 10;
        let at_once = if fits > 100 { fits / 100 * 100 } else { fits.max(1) };
        Self::TooLarge { documents, bytes, max, at_once }
    }

    pub(crate) fn unknown(what: impl Into<String>) -> Self {
        Self::Unknown { what: what.into() }
    }

    /// The code of its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Store(error) => error.code(),
            Self::TooLarge { .. } => Code::new(5004),
            Self::Invalid { .. } => Code::new(5040),
            Self::Unknown { .. } => Code::new(5041),
            Self::Conflict { .. } => Code::new(5042),
            Self::Schema { .. } => Code::new(5043),
            Self::Contended => Code::new(5044),
            Self::AnotherStore { .. } => Code::new(5045),
            Self::Unauthenticated => Code::new(5025),
        }
    }

    /// The HTTP status of its answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Store(error) => {
                StatusCode::from_u16(error.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Unknown { .. } => StatusCode::NOT_FOUND,
            Self::Conflict { precondition: true, .. } => StatusCode::PRECONDITION_FAILED,
            Self::Conflict { .. } | Self::Contended | Self::AnotherStore { .. } => StatusCode::CONFLICT,
            Self::Schema { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }
}

impl IntoResponse for ConfigError {
    fn into_response(self) -> Response {
        if self.status().is_server_error() {
            tracing::error!(error = %self, "the config service could not serve a request");
        }
        let title = match &self {
            Self::Store(StoreError::Limit { .. }) | Self::TooLarge { .. } => "more than the store takes",
            Self::Store(_) => "the config service's store failed",
            Self::Invalid { .. } => "the request is not valid",
            Self::Unknown { .. } => "nothing has this name",
            Self::Conflict { .. } => "a document is not as expected",
            Self::Schema { .. } => "a document does not fit its schema",
            Self::Contended => "too much contention",
            Self::AnotherStore { .. } => "another store",
            Self::Unauthenticated => "the caller is not known",
        };
        let mut problem = Problem::new(self.status(), title).detail(self.to_string()).code(self.code());
        match &self {
            Self::Conflict { document, current, expected, .. } => {
                problem = problem.with("document", document.as_str()).with("current", *current);
                problem = problem.with("expected", *expected);
            }
            Self::Schema { broken } => problem = problem.with("errors", serde_json::json!(broken)),
            _ => {}
        }
        problem.into_response()
    }
}
