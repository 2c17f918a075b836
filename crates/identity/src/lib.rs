//! Who a workload is, how it proves that, and whom it believes.
//!
//! Every proxy and every role has an identity, a SPIFFE ID, proven by a short-lived certificate (X.509-SVID) that
//! the mesh's own [`Authority`] issued. Keys are made where they are used and never cross the network: what travels
//! is a signing request. Two peers speak TLS 1.3, both show an SVID, and both check the other's against the
//! [`Bundle`]: chain, time, trust domain, deny entries, and on the calling side the expected identity. Each refusal
//! is a [`Refusal`] with a stable cause and a page.
//!
//! ```text
//!  first contact   JoinToken (id.secret.pin) ──▶ pinned TLS ──▶ CSR ──▶ Authority::issue ──▶ Svid + Bundle
//!                                                                                              │
//!  disk            SvidStore (0600, by rename) ◀───────────────────────────────────────────────┤
//!                                                                                              ▼
//!  every handshake server_config / client_config ◀── Identity (SVID and bundle swapped under running configurations)
//!                                                                                              ▲
//!  from a third of the lifetime on   Rotation says when ──▶ CSR over the existing identity ────┘
//! ```
//!
//! There is no HTTP here and no clock but the one that is given.

mod authority;
mod bundle;
mod csr;
mod files;
mod identity;
mod refusal;
mod rotation;
mod store;
mod svid;
mod time;
mod tls;
mod token;
mod verify;

pub use authority::{
    Authority, AuthorityError, BACKDATE, DEFAULT_SVID_TTL, INTERMEDIATE_LIFETIME, Issued, ROOT_LIFETIME,
};
pub use bundle::{Bundle, BundleError, Denied, Made};
pub use csr::{CsrError, PendingSvid};
pub use identity::{ClientAuth, Expected, Identity, IdentityError, ServerOptions};
pub use refusal::Refusal;
pub use rotation::{Action, Rotation};
pub use store::{Loaded, StoreError, SvidStore};
pub use svid::{Svid, SvidError};
pub use time::ClockTime;
pub use tls::{accept, answer, connect, hello, pinned_client_config, provider};
pub use token::{JoinToken, Pin, TokenError, TokenRecord};
pub use verify::{Peer, Shown};
