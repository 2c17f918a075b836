//! Targets that need the whole engine, or TLS and disk: see `fuzz/pure`.

mod downstream;
mod first_bytes;
mod frames;
mod gateway;
mod hbone;
mod identity;
mod parsers;
mod upstream;
mod xds;

/// A target and its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every target of this group.
pub(crate) const TARGETS: &[Target] = &[
    ("client_hello", first_bytes::client_hello),
    ("proxy_protocol", first_bytes::proxy_protocol),
    ("detect", parsers::detect),
    ("frames", frames::judged),
    ("path", parsers::path),
    ("traceparent", parsers::traceparent),
    ("join_token", identity::join_token),
    ("cache", xds::cache),
    ("downstream", downstream::bytes),
    ("upstream", upstream::answers),
    ("hbone", hbone::tunnels),
];
