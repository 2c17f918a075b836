//! Targets that need the whole engine, or TLS and disk: see `fuzz/pure`.

mod downstream;
mod identity;
mod parsers;
mod xds;

/// A target and its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every target of this group.
pub(crate) const TARGETS: &[Target] = &[
    ("detect", parsers::detect),
    ("path", parsers::path),
    ("traceparent", parsers::traceparent),
    ("join_token", identity::join_token),
    ("cache", xds::cache),
    ("downstream", downstream::bytes),
];
