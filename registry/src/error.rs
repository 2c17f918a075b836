//! What a registry refuses, and why.

use axum::http::StatusCode;
use meshwork_base::Code;
use meshwork_process::Problem;
use meshwork_store::StoreError;

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The name belongs to someone else.
    #[error(
        "{what} belongs to {owner}, you are {caller}; call with the owner's identity, or have an operator on the registry's machine release the name (DELETE /v1/meshwork/owners/NAMESPACE/NAME)"
    )]
    Owned {
        /// Which name.
        what: String,
        /// Whose it is.
        owner: String,
        /// Who asked.
        caller: String,
    },
    /// A value that has no meaning, or that this registry does not have.
    #[error("{what}")]
    Invalid {
        /// What is wrong and what would be right.
        what: String,
    },
    /// Nothing has this name.
    #[error("{what}")]
    Unknown {
        /// Which name, and how to find the right one.
        what: String,
    },
    /// The name of an instance is another living copy's.
    #[error(
        "instance {id:?} runs at {address} already, and this copy ({given}) is another one; give one of them another name (--instance), or stop the other: its place is free once it has left, or has not renewed its lease"
    )]
    Taken {
        /// Which instance.
        id: String,
        /// Where it is.
        address: String,
        /// Where this one is; or what it is, where that is not told.
        given: String,
    },
    /// Others kept changing the same thing.
    #[error("{what} was changed by others again and again while this change was tried; try again")]
    Contended {
        /// What was contended.
        what: String,
    },
    /// A session that is not there.
    #[error("invalid session {id:?}: it was destroyed, ran out, or never was; create a new one")]
    Session {
        /// Its id.
        id: String,
    },
    /// No identity was proven.
    #[error("the caller is not known; call with a SPIFFE certificate or a token")]
    Unauthenticated,
}

impl RegistryError {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    pub(crate) fn unknown(what: impl Into<String>) -> Self {
        Self::Unknown { what: what.into() }
    }

    /// The code of its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Store(error) => error.code(),
            Self::Owned { .. } => Code::new(5020),
            Self::Invalid { .. } => Code::new(5021),
            Self::Unknown { .. } => Code::new(5022),
            Self::Contended { .. } => Code::new(5023),
            Self::Session { .. } => Code::new(5024),
            Self::Unauthenticated => Code::new(5025),
            Self::Taken { .. } => Code::new(5026),
        }
    }

    /// The HTTP status of its answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Store(error) => {
                StatusCode::from_u16(error.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Owned { .. } => StatusCode::FORBIDDEN,
            Self::Unknown { .. } => StatusCode::NOT_FOUND,
            Self::Contended { .. } | Self::Taken { .. } => StatusCode::CONFLICT,
            // As Consul answers, which clients match on.
            Self::Session { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }

    pub(crate) fn problem(&self) -> Problem {
        let title = match self {
            Self::Store(_) => "the registry's store failed",
            Self::Owned { .. } => "the name belongs to someone else",
            Self::Invalid { .. } => "the request is not valid",
            Self::Unknown { .. } => "nothing has this name",
            Self::Contended { .. } => "too much contention",
            Self::Taken { .. } => "another copy has this name",
            Self::Session { .. } => "the session is gone",
            Self::Unauthenticated => "the caller is not known",
        };
        Problem::new(self.status(), title).detail(self.to_string()).code(self.code())
    }
}
