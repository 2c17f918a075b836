//! Where in the user's text something stands.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;

/// The name of a file as diagnostics print it: its path below the folder, or a document's address.
pub type FileName = Arc<str>;

/// A place in a file. Lines and columns count from 1, columns and lengths in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The line, from 1; 0 for what was not written (a default).
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
    /// How many characters on this line belong to it; 0 when it spans more than one line.
    pub len: u32,
}

/// Where an object begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Source {
    /// The file.
    #[serde(serialize_with = "as_text")]
    pub file: FileName,
    /// Its first line, from 1.
    pub line: u32,
    /// Its first column, from 1.
    pub column: u32,
}

pub(crate) fn as_text<S: serde::Serializer>(
    text: &impl fmt::Display,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(text)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value that remembers where it was written. Two are equal when their values are: an object that only moved in its
/// file has not changed.
#[derive(Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Spanned<T> {
    /// What was written.
    pub inner: T,
    /// Where.
    #[serde(skip)]
    pub span: Span,
}

impl<T> Spanned<T> {
    /// A value at a place.
    pub const fn new(value: T, span: Span) -> Self {
        Self { inner: value, span }
    }

    /// A value that nobody wrote: a default.
    pub const fn unwritten(value: T) -> Self {
        Self { inner: value, span: Span { line: 0, column: 0, len: 0 } }
    }
}

impl<T> Deref for Spanned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl<T: Eq> Eq for Spanned<T> {}

impl<T: fmt::Debug> fmt::Debug for Spanned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
