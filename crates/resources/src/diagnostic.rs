//! What is wrong in a user's text, and what would be right.

mod excerpt;

use std::fmt;
use std::sync::Arc;

use meshwork_base::Code;
use serde::Serialize;

use crate::span::{FileName, Span, as_text};
use excerpt::Excerpt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Accepted, but likely not what was meant.
    Warning,
    /// The object is refused.
    Error,
}

/// One finding. Serialises to what `check -o json` prints:
/// `{file, line, column, code, severity, message, help}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct Diagnostic {
    /// The file.
    #[serde(serialize_with = "as_text")]
    pub file: FileName,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1, in characters.
    pub column: u32,
    /// How many characters are at fault; 0 when more than one line is.
    #[serde(skip)]
    pub len: u32,
    /// Its code; `meshwork explain CODE` prints its page.
    #[serde(serialize_with = "as_text")]
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, with the words at fault.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at a place.
    #[must_use]
    pub fn error(file: &FileName, span: Span, code: Code, message: impl Into<String>) -> Self {
        Self {
            file: Arc::clone(file),
            line: span.line.max(1),
            column: span.column.max(1),
            len: span.len,
            code,
            severity: Severity::Error,
            message: message.into(),
            help: None,
        }
    }

    /// The same, as a warning.
    #[must_use]
    pub fn as_warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// With advice.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// With the text of its file, so that `miette` prints the lines around it: the one before and the one after, and
    /// of long ones a part.
    #[must_use]
    pub fn with_source(self, text: &str) -> Snippet {
        let excerpt = Excerpt::new(text, &self);
        Snippet { diagnostic: self, excerpt }
    }
}

/// A [`Diagnostic`] with the lines around it: an error that `miette` renders with a snippet.
pub struct Snippet {
    diagnostic: Diagnostic,
    excerpt: Excerpt,
}

impl Snippet {
    /// The finding itself.
    #[must_use]
    pub const fn diagnostic(&self) -> &Diagnostic {
        &self.diagnostic
    }
}

impl fmt::Debug for Snippet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The source may hold a private key; it is no part of a debug text.
        fmt::Debug::fmt(&self.diagnostic, f)
    }
}

impl fmt::Display for Snippet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diagnostic.message)
    }
}

impl std::error::Error for Snippet {}

impl miette::Diagnostic for Snippet {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.diagnostic.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.diagnostic.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.diagnostic.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.excerpt)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(miette::LabeledSpan::new_primary_with_span(
            Some("here".to_owned()),
            self.excerpt.span,
        ))))
    }
}
