//! The fields of one mapping, taken one by one; what nobody took is unknown.

use std::ops::RangeInclusive;

use super::node::{Entry, Node, Value};
use super::{Cx, Decode};
use crate::codes;
use crate::limits;
use crate::span::Span;

/// A mapping being read.
pub(crate) struct Fields<'n> {
    entries: &'n [Entry],
    span: Span,
    known: Vec<&'static str>,
    refused: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    pub(crate) fn open(node: &'n Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::Map(entries) => {
                Some(Self { entries, span: node.span, known: Vec::new(), refused: Vec::new() })
            }
            _ => cx.wrong_type(node, "a mapping"),
        }
    }

    /// Where the mapping begins.
    pub(crate) const fn span(&self) -> Span {
        self.span
    }

    /// The value of a field, if it is there and not null: null is absent, as in Kubernetes.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<&'n Node> {
        self.known.push(name);
        self.entry(name).map(|entry| &entry.value).filter(|node| !matches!(node.value, Value::Null))
    }

    fn entry(&self, name: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|entry| entry.key == name)
    }

    /// Reads a field; an absent one is what its type says, or an error.
    pub(crate) fn field<T: Decode>(&mut self, cx: &mut Cx, name: &'static str) -> Option<T> {
        self.field_of(cx, name, 0)
    }

    /// Reads a field that holds `least` items at least.
    pub(crate) fn field_of<T: Decode>(&mut self, cx: &mut Cx, name: &'static str, least: i64) -> Option<T> {
        match self.take(name) {
            Some(node) => cx.in_field(name, |cx| T::decode(node, cx)),
            None => T::absent_of(least).or_else(|| self.missing(cx, name)),
        }
    }

    /// Reads a field that has a default.
    pub(crate) fn field_or<T: Decode>(
        &mut self,
        cx: &mut Cx,
        name: &'static str,
        default: impl FnOnce() -> T,
    ) -> Option<T> {
        match self.take(name) {
            Some(node) => cx.in_field(name, |cx| T::decode(node, cx)),
            None => Some(default()),
        }
    }

    /// Reports an absent field that is required.
    pub(crate) fn missing<T>(&self, cx: &mut Cx, name: &str) -> Option<T> {
        let span = self.entry(name).map_or(self.span, |null| null.value.span);
        let message = format!("{} has no `{name}`, which is required", in_ticks(cx.path()));
        cx.error(span, codes::MISSING_FIELD, message).help = Some(format!("add `{name}:` here"));
        None
    }

    /// Checks the bounds of a field: a list's items, a mapping's entries, a text's characters, or a number.
    pub(crate) fn bound(&self, cx: &mut Cx, name: &str, bounds: RangeInclusive<i64>) {
        let Some(entry) = self.entry(name) else { return };
        let (size, unit) = match &entry.value.value {
            Value::Seq(items) => (items.len(), " items"),
            Value::Map(entries) => (entries.len(), " entries"),
            Value::Text(text) => (text.chars().count(), " characters"),
            Value::Int(number) => return self.bound_number(cx, entry, *number, bounds),
            Value::Null | Value::Bool(_) | Value::Float(_) => return,
        };
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        if bounds.contains(&size) {
            return;
        }
        // The first item too many is where the user has to cut.
        let first_over = match &entry.value.value {
            Value::Seq(items) => usize::try_from(*bounds.end()).ok().and_then(|end| items.get(end)),
            _ => None,
        };
        let span = first_over.map_or(entry.value.span, |item| item.span);
        let message = cx.in_field(name, |cx| {
            format!("`{}` has {size}{unit}; {} allowed", cx.path(), allowed(&bounds, 0))
        });
        cx.error(span, codes::OUT_OF_RANGE, message);
    }

    fn bound_number(&self, cx: &mut Cx, entry: &Entry, number: i128, bounds: RangeInclusive<i64>) {
        if i64::try_from(number).is_ok_and(|number| bounds.contains(&number)) {
            return;
        }
        let message = cx.in_field(&entry.key, |cx| {
            format!("`{}` is {number}; {} allowed", cx.path(), allowed(&bounds, i64::MIN))
        });
        cx.error(entry.value.span, codes::OUT_OF_RANGE, message);
    }

    /// Refuses what the standard knows and Meshwork does not build yet.
    pub(crate) fn refuse_unimplemented(&mut self, cx: &mut Cx, names: &[&'static str]) {
        for name in names {
            self.refused.push(name);
            let Some(entry) = self.entry(name) else { continue };
            if matches!(entry.value.value, Value::Null) {
                continue;
            }
            let message = cx.in_field(name, |cx| {
                format!("`{}` is not implemented by this version of Meshwork", cx.path())
            });
            cx.error(entry.key_span, codes::NOT_IMPLEMENTED, message).help =
                Some(format!("remove `{name}`, if the object is right without it"));
        }
    }

    /// Ends the reading: whatever was not asked for is unknown. `None` when there was such a field.
    pub(crate) fn close(self, cx: &mut Cx) -> Option<()> {
        let is_known = |entry: &Entry| {
            let name = entry.key.as_str();
            self.known.contains(&name) || self.refused.contains(&name)
        };
        let mut unknown = self.entries.iter().filter(|entry| !is_known(entry)).peekable();
        unknown.peek().is_none().then_some(()).or_else(|| {
            // One more than is told, so that the file's list ends with saying so.
            unknown.take(limits::DIAGNOSTICS + 1).for_each(|entry| unknown_field(cx, entry, &self.known));
            None
        })
    }
}

fn in_ticks(path: &str) -> String {
    if path == "the object" { path.to_owned() } else { format!("`{path}`") }
}

/// The bounds in words; the lower one goes without saying when it is the least there can be.
fn allowed(bounds: &RangeInclusive<i64>, least: i64) -> String {
    match (*bounds.start(), *bounds.end()) {
        (start, i64::MAX) => format!("at least {start} is"),
        (start, end) if start == least => format!("at most {end} is"),
        (start, end) => format!("{start} to {end} is"),
    }
}

fn unknown_field(cx: &mut Cx, entry: &Entry, known: &[&'static str]) {
    let message = format!("{} has no field `{}`", in_ticks(cx.path()), shorten(&entry.key));
    let help = match nearest(&entry.key, known) {
        Some(name) => format!("did you mean `{name}`?"),
        None if known.is_empty() => "it has no fields".to_owned(),
        None => format!("its fields are {}", list(known)),
    };
    cx.error(entry.key_span, codes::UNKNOWN_FIELD, message).help = Some(help);
}

/// The words as a list for people.
pub(crate) fn list(words: &[impl AsRef<str>]) -> String {
    words.iter().map(|word| format!("`{}`", word.as_ref())).collect::<Vec<_>>().join(", ")
}

/// A text short enough for a message.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut short: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    short
}

/// The word that was probably meant: a third of its letters may be wrong; case and separators do not count.
pub(crate) fn nearest<'w>(written: &str, known: &[&'w str]) -> Option<&'w str> {
    const LONGEST: usize = 64;
    const TELLING: usize = 4;
    if written.len() > LONGEST {
        return None;
    }
    let plain = |text: &str| -> Vec<char> {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let written = plain(written);
    known
        .iter()
        .map(|word| (distance(&written, &plain(word)), *word))
        .filter(|(distance, word)| *distance <= word.len().max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
        .or_else(|| {
            // `Prefix` for `PathPrefix`: a part of exactly one word.
            let part: String = written.iter().collect();
            let mut holders = known.iter().filter(|word| word.to_lowercase().contains(&part));
            holders.next().filter(|_| part.len() >= TELLING && holders.next().is_none()).copied()
        })
}

/// Edits between two words where swapping neighbours counts once (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i];
        for j in 1..=b.len() {
            let change = row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_word_that_was_meant() {
        let known = ["backendRefs", "matches", "filters", "name", "timeouts"];
        for (written, meant) in [
            ("backendRef", Some("backendRefs")),
            ("backend_refs", Some("backendRefs")),
            ("BackendRefs", Some("backendRefs")),
            ("bakcendRefs", Some("backendRefs")),
            ("match", Some("matches")),
            ("nmae", Some("name")),
            ("refs", Some("backendRefs")),
            ("zebra", None),
        ] {
            assert_eq!(nearest(written, &known), meant, "{written}");
        }
    }
}
