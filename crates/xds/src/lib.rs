//! How configuration travels from the control plane to proxies: a delta stream in the shape of Envoy's ADS.
//!
//! A proxy says what it wants (everything of a type, or single names) and what it already holds; the control plane sends
//! what differs, closes each whole change with a `Commit`, and hears back what was refused and what is in effect.
//! A resource's version is the hash of its content, so a reconnect to another replica sends nothing.
//!
//! ```text
//!   publish(resources, revision)                                     Batch{changes, commit}
//!              │                                                              ▲ │ settle(rejections)
//!              ▼                                                              │ ▼ effective(revision)
//!      server::Server ──responses──▶ transport (channels, gRPC) ──▶ client::Client ──▶ cache (disk)
//!              ▲                                                         │
//!              └───────────── requests: subscriptions, ACKs, reports ────┘
//! ```
//!
//! [`server::Server`] and [`client::Client`] are state machines without I/O: messages and the time go in, messages and
//! events come out. [`server::Hub`] and [`client::start`] drive them over a [`transport::Transport`].
//!
//! Rules that hold:
//! - Nothing is answered before the first publish: a control plane that has not synced removes nothing.
//! - Removal is explicit; an empty answer removes nothing.
//! - The consumer sees configuration as whole changes; endpoints alone pass without waiting.
//! - A bad resource is refused alone; its previous version stays, and the refused one is not remembered as held.

pub mod cache;
pub mod client;
pub mod join;
mod key;
pub mod registration;
pub mod server;
pub mod transport;

pub use key::{ResourceKey, commit_type, endpoint_type};
