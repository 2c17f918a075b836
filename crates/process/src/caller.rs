//! Who calls an API.

use meshwork_base::SpiffeId;

/// The proven identity of a caller. Whoever serves a role's router puts it into each request's extensions, from the
/// peer's certificate, a token that was checked, or the fact that the listener is loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A workload, by mTLS.
    Spiffe(SpiffeId),
    /// The holder of a token, by the token's name (never its secret).
    Token(String),
    /// Someone on this machine: the operator.
    Local,
}

impl Caller {
    /// How it is written down, as the owner of a name or the author of a change.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Spiffe(id) => id.to_string(),
            Self::Token(name) => format!("token:{name}"),
            Self::Local => "local".to_owned(),
        }
    }
}
