//! Targets of parsers that build on little: http1, messages. What must hold for any bytes, one function each. A new
//! target is a file here (or in `engine`) and a line in [`TARGETS`], with at least ten inputs in `fuzz/corpus/NAME`.

mod http1;
mod messages;
mod oracle;

/// A target and its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every target of this group.
pub(crate) const TARGETS: &[Target] = &[
    ("request", http1::request),
    ("response", http1::response),
    ("chunked", http1::chunked),
    ("oracle", oracle::heads),
    ("messages", messages::changes),
];
