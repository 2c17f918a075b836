//! The mesh on the wire: real packets of a small platform, and who is refused at its ports.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "../support/mod.rs"]
mod support;

mod capture;
mod mesh;
mod packets;
mod refusals;
