//! Where an object was written, so that errors, logs and reasons can name it.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use meshwork_messages::v1;

use crate::convert::Interner;

/// The user's object behind a listener, route, service or policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `HTTPRoute`, `Gateway`, …
    pub kind: Arc<str>,
    /// `NAMESPACE/NAME`.
    pub qualified: Arc<str>,
    /// The file, or empty.
    pub file: Arc<str>,
    /// The first line of the object, from 1; 0 when unknown.
    pub line: u32,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`, in milliseconds since the Unix epoch.
    pub created_unix_ms: i64,
}

impl Origin {
    pub(crate) fn from_message(source: Option<&v1::Source>) -> Self {
        source.map_or_else(Self::default, |s| Self {
            kind: s.kind.as_str().into(),
            qualified: format!("{}/{}", s.namespace, s.name).into(),
            file: s.file.as_str().into(),
            line: s.line,
            generation: s.generation,
            created_unix_ms: s.created_unix_ms,
        })
    }

    /// The same, with the text that many share kept once.
    pub(crate) fn interned(mut self, strings: &mut Interner) -> Self {
        self.kind = strings.text(&self.kind);
        self.file = strings.text(&self.file);
        self
    }

    /// The namespace of the object.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.qualified.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name in its namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.qualified.split_once('/').map_or(&*self.qualified, |(_, name)| name)
    }

    /// Gateway API's order between objects that are otherwise equal: the older, then `namespace/name` in
    /// alphabetical order.
    #[must_use]
    pub fn precedence(&self, other: &Self) -> Ordering {
        (self.created_unix_ms, &self.qualified).cmp(&(other.created_unix_ms, &other.qualified))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.qualified)?;
        if !self.file.is_empty() {
            write!(f, " ({}:{})", self.file, self.line)?;
        }
        Ok(())
    }
}
