//! What is told in the log of what is wrong or doubtful: each once, and that nothing is any more.

use std::collections::{BTreeMap, BTreeSet};

use meshwork_resources::{Diagnostic, FileName, Severity};

use crate::{codes, config};

/// Lines of one change; the rest is counted.
const LINES: usize = 20;
/// The first code of what is wrong in objects that could be read.
const FIRST_OF_READ: u16 = 2_000;

/// What has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// What was not there before.
    pub(super) found: Vec<Diagnostic>,
    /// Files in which something was wrong or doubtful and nothing is any more.
    pub(super) mended: Vec<FileName>,
}

/// What was told, by file; of a stored document all revisions are one.
#[derive(Debug, Default)]
pub(super) struct Telling(BTreeMap<FileName, Vec<Diagnostic>>);

impl Telling {
    /// Takes all that is wrong or doubtful now.
    pub(super) fn look<'d>(&mut self, all: impl IntoIterator<Item = &'d Diagnostic>) -> News {
        let mut now: BTreeMap<FileName, Vec<Diagnostic>> = BTreeMap::new();
        for found in all {
            now.entry(config::document_of(&found.file).into()).or_default().push(found.clone());
        }
        let mut news = News::default();
        for (file, found) in &now {
            news.found.extend(new_ones(self.0.get(file).map_or(&[][..], Vec::as_slice), found));
        }
        let before = std::mem::replace(&mut self.0, now);
        news.mended = before.into_keys().filter(|file| !self.0.contains_key(file)).collect();
        news
    }

    /// Whether something is wrong in one of these files.
    pub(super) fn is_wrong(&self, files: &BTreeSet<FileName>) -> bool {
        let found = files.iter().filter_map(|file| self.0.get(config::document_of(file))).flatten();
        found.into_iter().any(is_error)
    }
}

/// What of `now` was not said before. What has only moved within its file was.
fn new_ones(before: &[Diagnostic], now: &[Diagnostic]) -> Vec<Diagnostic> {
    let mut said: Vec<&Diagnostic> = before.iter().collect();
    let mut new: Vec<&Diagnostic> = now.iter().collect();
    let same_place = |a: &Diagnostic, b: &Diagnostic| a == b;
    let moved = |a: &Diagnostic, b: &Diagnostic| (a.code, &a.message) == (b.code, &b.message);
    for is_same in [same_place, moved] {
        new.retain(|error| match said.iter().position(|known| is_same(known, error)) {
            Some(at) => {
                said.swap_remove(at);
                false
            }
            None => true,
        });
    }
    new.into_iter().cloned().collect()
}

fn is_error(found: &Diagnostic) -> bool {
    found.severity == Severity::Error
}

impl News {
    /// Whether something is wrong that was not.
    pub(super) fn is_bad(&self) -> bool {
        self.found.iter().any(is_error)
    }

    /// Writes it into the log.
    pub(super) fn log(&self) {
        for found in self.found.iter().take(LINES) {
            let Diagnostic { file, line, column, code, severity, message, help, .. } = found;
            let at = format!("{file}:{line}:{column}");
            // What cannot be read changes nothing; what can be and does not fit is in force as far as it goes.
            if *severity == Severity::Warning {
                tracing::warn!(at, %code, help, "configuration doubtful: {message}");
            } else if code.number() < FIRST_OF_READ || *code == codes::SOURCE_UNREADABLE {
                tracing::warn!(
                    at,
                    %code,
                    help,
                    "configuration refused: {message}; its last good version, where there was one, stays in force"
                );
            } else {
                tracing::warn!(at, %code, help, "configuration error: {message}");
            }
        }
        if let Some(more) = self.found.len().checked_sub(LINES).filter(|more| *more > 0) {
            tracing::warn!(more, "more is wrong in the configuration, which /v1/diagnostics lists");
        }
        for file in self.mended.iter().take(LINES) {
            tracing::info!(%file, "configuration mended: nothing is wrong with it any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use meshwork_resources::{Span, codes::UNKNOWN_FIELD};

    use super::*;

    fn error(file: &str, line: u32, message: &str) -> Diagnostic {
        Diagnostic::error(&file.into(), Span { line, column: 3, len: 1 }, UNKNOWN_FIELD, message)
    }

    fn told(news: &News) -> Vec<String> {
        let found = news.found.iter().map(ToString::to_string);
        found.chain(news.mended.iter().map(|file| format!("{file} is mended"))).collect()
    }

    #[test]
    fn what_is_wrong_is_told_once_and_that_nothing_in_its_file_is_any_more() {
        let mut telling = Telling::default();
        let mut look = |errors: &[Diagnostic]| told(&telling.look(errors));
        let (typo, value) = (error("a.yaml", 7, "typo"), error("a.yaml", 9, "value"));
        assert_eq!(look(std::slice::from_ref(&typo)), ["a.yaml:7:3: typo"]);
        assert!(look(std::slice::from_ref(&typo)).is_empty(), "nothing has changed");
        assert!(look(&[error("a.yaml", 8, "typo")]).is_empty(), "a line was added above it");
        assert_eq!(look(&[error("a.yaml", 8, "typo"), value.clone()]), ["a.yaml:9:3: value"]);
        assert!(look(std::slice::from_ref(&value)).is_empty(), "one of two is mended");
        let elsewhere = error("b.yaml", 1, "value");
        assert_eq!(look(std::slice::from_ref(&elsewhere)), ["b.yaml:1:3: value", "a.yaml is mended"]);
        assert_eq!(look(&[elsewhere, typo]), ["a.yaml:7:3: typo"], "an error that comes back is a new one");
    }

    #[test]
    fn an_error_that_stands_twice_is_told_twice() {
        let mut telling = Telling::default();
        let mut look = |errors: &[Diagnostic]| told(&telling.look(errors));
        assert_eq!(look(&[error("a.yaml", 1, "typo")]).len(), 1);
        let both = [error("a.yaml", 1, "typo"), error("a.yaml", 5, "typo")];
        assert_eq!(look(&both), ["a.yaml:5:3: typo"]);
    }

    #[test]
    fn the_revisions_of_a_stored_document_are_one_file() {
        let mut telling = Telling::default();
        let mut look = |errors: &[Diagnostic]| told(&telling.look(errors));
        let at = |revision| error(&format!("config:shop/HTTPRoute/a@{revision}"), 4, "typo");
        assert_eq!(look(&[at(3)]).len(), 1);
        assert!(look(&[at(4)]).is_empty(), "a revision that is as wrong is no news");
        assert_eq!(look(&[]), ["config:shop/HTTPRoute/a is mended"]);
        look(&[at(5)]);
        let next = ["config:shop/HTTPRoute/a@6".into()].into();
        assert!(telling.is_wrong(&next));
        telling.look(&[at(6).as_warning()]);
        assert!(!telling.is_wrong(&next), "what is doubtful is not wrong");
    }
}
