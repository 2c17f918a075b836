//! Milestone "a folder becomes a gateway", from outside: the real binary, real clients.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod clients;
mod commands;
mod conformance;
mod counters;
mod descriptors;
mod drain;
mod edits;
mod filters;
mod grpc_retries;
mod kept;
mod layers;
mod paused;
mod protocols;
mod proxied;
mod references;
mod rejected;
mod routing;
mod status;
mod streams;
mod tls;
mod unread;
