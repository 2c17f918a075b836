//! A real shop's call graph, replayed: services that do nothing but take as long as those did and call whom they called,
//! and the load on the first of them. bench/harness/graph.py derives the model from published spans.

pub mod client;
pub mod load;
pub mod model;
pub mod service;
