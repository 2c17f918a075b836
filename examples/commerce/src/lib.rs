//! The reference shop that runs on Meshwork, and would run without it: none of its services knows a mesh exists.
//!
//! ```text
//!             browser
//!                │ HTML
//!          ┌─────▼──────┐
//!          │ storefront │  server-rendered pages
//!          └┬─────┬────┬┘
//!      REST │ gRPC│    │ REST
//!   ┌───────▼┐ ┌──▼────────┐ ┌▼────────┐
//!   │catalog │ │ inventory │ │ reviews │
//!   └───┬────┘ └────┬──────┘ └───┬─────┘     each with an SQLite file of its own,
//!    SQLite      SQLite        SQLite        all seeded from `catalogue.json`
//! ```
//!
//! A service takes its port from `PORT`, keeps its state in `DATA_DIR`, says whether it is well (`/healthz`, or
//! `grpc.health.v1`), and finishes the requests it has when it is told to stop. The storefront calls the others by name
//! through the address in `MESHWORK_OUTBOUND`, where there is one. [`catalog`], [`inventory`] and [`storefront`] are the
//! services, [`import`] loads published files into them, and `reviews/server.py` is the fourth service, in Python.

pub mod catalog;
pub mod catalogue;
pub mod client;
pub mod db;
pub mod import;
pub mod inventory;
pub mod problem;
pub mod product;
pub mod published;
pub mod service;
pub mod storefront;
pub mod web;
