//! From files to objects, one bad object never hiding the others.

mod document;
mod metadata;
mod split;
mod yaml;

use std::collections::HashMap;
use std::sync::Arc;

use crate::codes;
use crate::decode::cap;
use crate::diagnostic::{Diagnostic, Severity};
use crate::limits;
use crate::object::{Object, ObjectKey};
use crate::span::{FileName, Source, Span};

/// What files hold.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The objects without an error, in the order of the files.
    pub objects: Vec<Arc<Object>>,
    /// What is wrong, file by file, in the order of lines.
    pub diagnostics: Vec<Diagnostic>,
    /// The documents of which no object was made.
    pub refused: Vec<Refused>,
}

/// A document with an error.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Whom it is about, as far as that can be read.
    pub key: Option<ObjectKey>,
    /// Where it begins.
    pub source: Source,
    /// The first thing that is wrong in it.
    pub why: Diagnostic,
}

impl Loaded {
    /// Whether an object was refused.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|found| found.severity == Severity::Error)
    }

    /// Notes a text that cannot be read, so that nobody knows whom it is about.
    fn refuse(&mut self, file: &FileName, line: u32, why: Diagnostic) {
        let source = Source { file: Arc::clone(file), line, column: 1 };
        self.refused.push(Refused { key: None, source, why: why.clone() });
        self.diagnostics.push(why);
    }

    /// Puts files together that were loaded one by one, as after an edit of one of them. Of two objects with the same
    /// kind, namespace and name, the first stays and the second is refused.
    #[must_use]
    pub fn merge<'l>(files: impl IntoIterator<Item = &'l Self>) -> Self {
        let mut all = Self::default();
        let mut places: HashMap<ObjectKey, Source> = HashMap::new();
        for file in files {
            all.diagnostics.extend_from_slice(&file.diagnostics);
            all.refused.extend_from_slice(&file.refused);
            for object in &file.objects {
                let key = object.key();
                match places.get(&key) {
                    Some(first) => all.diagnostics.push(duplicate(object, &key, first)),
                    None => {
                        places.insert(key, object.source.clone());
                        all.objects.push(Arc::clone(object));
                    }
                }
            }
        }
        all
    }
}

/// What is told of an object that is written a second time; `first` counts.
#[must_use]
pub fn duplicate(object: &Object, key: &ObjectKey, first: &Source) -> Diagnostic {
    let span = Span { line: object.source.line, column: object.source.column, len: 0 };
    Diagnostic::error(
        &object.source.file,
        span,
        codes::DUPLICATE_OBJECT,
        format!("{key} is already written at {first}"),
    )
    .with_help("remove one of the two, or give it another name")
}

/// Reads files: YAML or JSON, several documents in one. The text need not be valid in any way.
pub fn load<N: Into<FileName>, T: AsRef<[u8]>>(files: impl IntoIterator<Item = (N, T)>) -> Loaded {
    let loaded: Vec<Loaded> =
        files.into_iter().map(|(name, bytes)| load_file(&name.into(), bytes.as_ref())).collect();
    Loaded::merge(&loaded)
}

/// Reads one file. Objects that the file defines twice are found by [`Loaded::merge`].
#[must_use]
pub fn load_file(file: &FileName, bytes: &[u8]) -> Loaded {
    let mut loaded = Loaded::default();
    match text_of(file, bytes) {
        Ok(text) => read_documents(file, text, &mut loaded),
        Err(found) => loaded.refuse(file, 1, found),
    }
    loaded.diagnostics.sort_by_key(|found| (found.line, found.column));
    loaded.diagnostics = cap(loaded.diagnostics);
    loaded
}

/// The objects of a file as JSON, each as it was written: without defaults, and with nothing hidden. Of a file that
/// [`load_file`] reads without an error they are in the order of its objects; of another, whatever can be parsed.
#[must_use]
pub fn written(file: &FileName, bytes: &[u8]) -> Vec<serde_json::Value> {
    let mut all = Vec::new();
    for part in text_of(file, bytes).into_iter().flat_map(split::documents).take(limits::DOCUMENTS) {
        if let Ok(Some(node)) = yaml::parse(file, part.text, part.line) {
            document::written(file, &node, &mut all);
        }
    }
    all
}

fn text_of<'t>(file: &FileName, bytes: &'t [u8]) -> Result<&'t str, Diagnostic> {
    if bytes.len() > limits::FILE_BYTES {
        let message = format!("the file has {} bytes; at most {} are read", bytes.len(), limits::FILE_BYTES);
        let found = Diagnostic::error(file, Span::default(), codes::LIMIT_EXCEEDED, message);
        return Err(found.with_help("split it into several files"));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let line = good.matches('\n').count() + 1;
        let column = good.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let place = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let span = Span { line: place(line), column: place(column), len: 1 };
        let message = format!("byte {:#04x} is not UTF-8 text", bytes[error.valid_up_to()]);
        Diagnostic::error(file, span, codes::NOT_TEXT, message).with_help("save the file as UTF-8")
    })
}

fn read_documents(file: &FileName, text: &str, loaded: &mut Loaded) {
    for (index, part) in split::documents(text).enumerate() {
        let start = Span { line: part.line, column: 1, len: 0 };
        if index == limits::DOCUMENTS {
            let message = format!("the file has more than {} documents", limits::DOCUMENTS);
            let found = Diagnostic::error(file, start, codes::LIMIT_EXCEEDED, message);
            loaded.refuse(file, part.line, found.with_help("split it into several files"));
            return;
        }
        if part.text.len() > limits::DOCUMENT_BYTES {
            let message = format!(
                "the document has {} bytes; at most {} are read",
                part.text.len(),
                limits::DOCUMENT_BYTES
            );
            loaded.refuse(file, part.line, Diagnostic::error(file, start, codes::LIMIT_EXCEEDED, message));
            continue;
        }
        match yaml::parse(file, part.text, part.line) {
            Ok(Some(node)) => document::read(file, &node, loaded),
            Ok(None) => {}
            Err(torn) => {
                let yaml::Torn { found, part: node } = *torn;
                let key = node.as_ref().and_then(document::key);
                let source = Source { file: Arc::clone(file), line: part.line, column: 1 };
                loaded.refused.push(Refused { key, source, why: found.clone() });
                loaded.diagnostics.push(found);
            }
        }
    }
}

#[cfg(test)]
mod tests;
