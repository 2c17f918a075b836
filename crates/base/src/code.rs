//! Codes of user-facing errors: `MW1042`, each with a page that `meshwork explain MW1042` prints.

use std::fmt;

/// The number of a user-facing error. Ranges: 1xxx documents (`resources`), 2xxx references and conflicts
/// (`compile`), 3xxx traffic (`decision`, `proxy`), 4xxx planes (`xds`, control plane), 5xxx stores, registry and
/// config service, 6xxx identity, 7xxx command line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u16);

impl Code {
    /// A code; its page is `docs/errors/MW<number>.md`.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number after `MW`.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MW{:04}", self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
