//! Who calls.

use meshwork_base::SpiffeId;

/// The proven identity of a caller. Whoever serves the router puts it into each request's extensions, from the peer's
/// certificate, a token that was checked, or the fact that the listener is loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A workload, by mTLS.
    Spiffe(SpiffeId),
    /// The holder of a token, by the token's name (never its secret).
    Token(String),
    /// Someone on this machine: the operator, who may also give a name to another owner.
    Local,
}

impl Caller {
    /// How an owner is written down.
    pub(crate) fn owner(&self) -> String {
        match self {
            Self::Spiffe(id) => id.to_string(),
            Self::Token(name) => format!("token:{name}"),
            Self::Local => "local".to_owned(),
        }
    }

    /// The SPIFFE ID of instances that this caller registers.
    pub(crate) fn identity(&self) -> Option<String> {
        match self {
            Self::Spiffe(id) => Some(id.to_string()),
            Self::Token(_) | Self::Local => None,
        }
    }
}
