//! Targets that need the whole engine, or TLS and disk: see `fuzz/pure`.

mod downstream;
mod identity;
mod parsers;
mod xds;

/// Every target of this group by name.
pub(crate) const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("detect", parsers::detect),
    ("path", parsers::path),
    ("traceparent", parsers::traceparent),
    ("join_token", identity::join_token),
    ("cache", xds::cache),
    ("downstream", downstream::bytes),
];
