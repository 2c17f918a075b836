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

/// What was told; of a stored document all revisions are one file.
#[derive(Debug, Default)]
pub(super) struct Telling(Vec<Diagnostic>);

impl Telling {
    /// Takes all that is wrong or doubtful now.
    pub(super) fn look(&mut self, all: &[Diagnostic]) -> News {
        // Most of what is compiled anew is compiled since endpoints have changed.
        if self.0 == all {
            return News::default();
        }
        let (before, now) = (by_file(&self.0), by_file(all));
        let mut news = News::default();
        for (file, found) in &now {
            news.found.extend(new_ones(before.get(file).map_or(&[][..], Vec::as_slice), found));
        }
        news.mended = before.into_keys().filter(|file| !now.contains_key(file)).map(FileName::from).collect();
        self.0 = all.to_vec();
        news
    }

    /// Whether something is wrong in one of these files.
    pub(super) fn is_wrong(&self, files: &BTreeSet<FileName>) -> bool {
        let files: BTreeSet<&str> = files.iter().map(|file| config::document_of(file)).collect();
        self.0.iter().any(|found| is_error(found) && files.contains(config::document_of(&found.file)))
    }
}

fn by_file(all: &[Diagnostic]) -> BTreeMap<&str, Vec<&Diagnostic>> {
    let mut files: BTreeMap<&str, Vec<&Diagnostic>> = BTreeMap::new();
    for found in all {
        files.entry(config::document_of(&found.file)).or_default().push(found);
    }
    files
}

/// What of `now` was not said before. What has only moved within its file was.
fn new_ones(before: &[&Diagnostic], now: &[&Diagnostic]) -> Vec<Diagnostic> {
    fn what(found: &Diagnostic) -> (u16, &str) {
        (found.code.number(), &found.message)
    }
    fn place(found: &Diagnostic) -> ((u16, &str), u32, u32) {
        (what(found), found.line, found.column)
    }
    // How often each was said, and how often at its place: a generated file may have one mistake thousands of times.
    let (mut said, mut said_there) = (BTreeMap::new(), BTreeMap::new());
    for found in before {
        *said.entry(what(found)).or_insert(0_usize) += 1;
        *said_there.entry(place(found)).or_insert(0_usize) += 1;
    }
    let mut new = now.to_vec();
    new.retain(|found| {
        let known = takes_one(&mut said_there, &place(found));
        if known {
            takes_one(&mut said, &what(found));
        }
        !known
    });
    new.retain(|found| !takes_one(&mut said, &what(found)));
    new.into_iter().cloned().collect()
}

/// Whether one was left, which is taken.
fn takes_one<K: Ord>(left: &mut BTreeMap<K, usize>, key: &K) -> bool {
    left.get_mut(key).filter(|left| **left > 0).map(|left| *left -= 1).is_some()
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
    fn of_equal_errors_those_are_told_that_stand_where_none_stood() {
        let mut telling = Telling::default();
        let mut look = |lines: &[u32]| {
            let errors: Vec<_> = lines.iter().map(|line| error("a.yaml", *line, "typo")).collect();
            told(&telling.look(&errors))
        };
        look(&[1, 5, 9]);
        assert!(look(&[2, 6, 10]).is_empty(), "a line was added above them");
        assert_eq!(look(&[2, 4, 6, 10]), ["a.yaml:4:3: typo"]);
        assert_eq!(look(&[2, 4, 7, 11, 20]), ["a.yaml:20:3: typo"], "two have moved and one has come");
        assert!(look(&[2, 20]).is_empty());
        assert_eq!(look(&[2, 20, 30]), ["a.yaml:30:3: typo"], "what was mended in between is a new one");
    }

    #[test]
    fn a_generated_file_with_a_mistake_on_each_line_is_looked_at_line_by_line() {
        let mut telling = Telling::default();
        let all = |shift: u32| -> Vec<_> {
            (0..50_000).map(|line| error("a.yaml", line + shift, "typo")).collect()
        };
        assert_eq!(telling.look(&all(1)).found.len(), 50_000);
        let mut moved = all(100_000);
        moved.push(error("a.yaml", 7, "value"));
        assert_eq!(told(&telling.look(&moved)), ["a.yaml:7:3: value"]);
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
