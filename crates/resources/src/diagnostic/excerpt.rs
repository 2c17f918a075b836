//! The lines around a finding, as they are shown: of a long line only what is near. A minified object is one line of
//! any length, `miette` would print all of it with each finding, and it panics at a mark behind column 65,535.

use std::ops::Range;

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

use super::Diagnostic;
use crate::span::FileName;

/// How many characters of a line are shown.
const SHOWN: usize = 240;

/// How many of them stand before the place at fault.
const BEFORE: usize = 80;

/// What stands for the rest of a line.
const REST: char = '…';

/// Three lines of a file.
pub(super) struct Excerpt {
    name: FileName,
    text: String,
    /// How many lines of the file are before them.
    skipped: usize,
    /// Columns before the place at fault, in characters of the file.
    column: usize,
    /// The place at fault in these lines.
    pub(super) span: SourceSpan,
}

impl Excerpt {
    /// Around a finding, which is clamped to the text.
    pub(super) fn new(text: &str, found: &Diagnostic) -> Self {
        let nth = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let last = text.bytes().filter(|byte| *byte == b'\n').count();
        let at = nth(found.line.saturating_sub(1)).min(last);
        let column = nth(found.column.saturating_sub(1));
        let skipped = at.saturating_sub(1);
        let mut shown = String::new();
        let mut span = SourceSpan::from((0, 0));
        for (line, number) in text.split('\n').zip(0..).skip(skipped).take(at + 2 - skipped) {
            if number > skipped {
                shown.push('\n');
            }
            let start = shown.len();
            if number == at {
                let mark = push(&mut shown, line, column, nth(found.len.max(1)));
                span = (start + mark.start, mark.len()).into();
            } else {
                push(&mut shown, line, 0, 0);
            }
        }
        Self { name: FileName::clone(&found.file), text: shown, skipped, column, span }
    }
}

/// Adds what is shown of a line where `len` characters from a column on are at fault; returns where they are in that.
fn push(shown: &mut String, line: &str, column: usize, len: usize) -> Range<usize> {
    let line = line.strip_suffix('\r').unwrap_or(line);
    let count = line.chars().count();
    let column = column.min(count);
    let first = if count > SHOWN { column.saturating_sub(BEFORE).min(count - SHOWN) } else { 0 };
    let begin = shown.len();
    if first > 0 {
        shown.push(REST);
    }
    let mut part = |from: usize, to: usize| {
        shown.extend(line.chars().skip(from).take(to - from).map(visible));
        shown.len() - begin
    };
    let end = (first + SHOWN).min(count);
    let start = part(first, column);
    let to = column.saturating_add(len).min(end);
    let mark = start..part(column, to);
    part(to, end);
    if end < count {
        shown.push(REST);
    }
    mark
}

/// A control character moves the mark below, and may break the line where it is printed.
fn visible(char: char) -> char {
    if char.is_control() && char != '\t' { char::REPLACEMENT_CHARACTER } else { char }
}

impl SourceCode for Excerpt {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let read = self.text.read_span(span, lines_before, lines_after)?;
        // Asked for no lines before it, this is about where the fault itself is.
        let column = if lines_before == 0 { self.column } else { 0 };
        let contents = MietteSpanContents::new_named(
            self.name.to_string(),
            read.data(),
            *read.span(),
            self.skipped + read.line(),
            column,
            read.line_count(),
        );
        Ok(Box::new(contents.with_language("yaml")))
    }
}
