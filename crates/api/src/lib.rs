//! The roles' HTTP APIs as types, and clients that speak them. Roles know each other by these alone: over a socket
//! when they are processes of their own, over a direct call when they share one ([`Client::in_memory`]).
//!
//! Field names are camelCase in JSON; keys are only ever added.

pub mod apply;
mod client;
pub mod config;
pub mod identity;
pub mod registry;
mod tls;
mod unix;

pub use apply::ApplyClient;
pub use client::{Answer, Client, ClientError, ProblemDetails};
pub use config::ConfigClient;
pub use identity::IdentityClient;
pub use registry::RegistryClient;
