//! The registry: who is where, and how well.
//!
//! A service team's process (or its sidecar) registers an instance of a service; callers, the control plane and
//! Prometheus ask where the instances are and are told when that changes. Clients speak Consul's HTTP API or the
//! registry's own (`/v1/meshwork/…`); both show the same catalog.
//!
//! ```text
//!   HTTP ──► Registry::register, check, session, kv … ── compare-and-set ──► store
//!                                                                              │ watch
//!   HTTP ◄── blocking queries ◄── Topics ◄── Model (in memory, follows the store) ◄──┘
//!                                              ▲
//!   Keeper: TTLs and leases, in memory ────────┤ transitions only are written
//!   Prober: HTTP, TCP, gRPC checks ────────────┘
//! ```
//!
//! What holds: a name belongs to the identity that registered it first ([`Caller`]); renewals are never written; the
//! time of a lease does not run while the registry is down; a service of which more than half is silent loses nobody: whose lease
//! runs out meanwhile is kept as *suspect*. Who follows it is told for how long it has run with its store, and who
//! wanted to be removed that it never had: so a store that was lost is told from one in which nobody is.

mod departed;
mod doc;
mod error;
mod fields;
mod http;
mod keeper;
mod kv;
mod model;
mod numbers;
mod ops;
mod probe;
mod service;
mod session;
mod topics;

pub use error::RegistryError;
pub use meshwork_process::Caller;
pub use service::{Options, Registry};
