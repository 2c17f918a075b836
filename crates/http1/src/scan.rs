//! Finding lines and reading field lines, so that bytes that arrive one by one are each looked at once.

use crate::chars::{is_field_value, is_token_byte, trim};
use crate::error::ParseError;
use crate::fields::{Entry, Fields, narrow};
use crate::limits::{Limit, Limits};
use crate::name::KnownName;

/// Room for the fields of most messages, so that their list grows once.
const USUAL_FIELDS: usize = 16;

/// Bytes of fields that a proxy usually adds.
const ADDED: usize = 256;

/// What a call of a parser came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The head is not complete: call again with the same bytes and more behind them.
    Incomplete,
    /// The head is complete.
    Done {
        /// How many bytes it had; the body begins behind them.
        consumed: usize,
    },
}

/// How far the reading of one head got. Kept by the caller between calls; begins anew after [`Parsed::Done`].
///
/// It must see the same buffer beginning at the same byte until the head is done; after an error call
/// [`HeadScan::reset`].
#[derive(Clone, Debug, Default)]
pub struct HeadScan {
    line_start: usize,
    scanned: usize,
    fields_start: usize,
    pub(crate) phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing of this head was looked at.
    #[default]
    Fresh,
    /// In the start line.
    StartLine,
    /// In the start line, after the one empty line that may precede it.
    AfterEmptyLine,
    /// In the field lines.
    Fields,
}

impl HeadScan {
    /// Begins anew.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether bytes of a head were seen: a connection closed now is closed inside a message.
    #[must_use]
    pub const fn is_inside(&self) -> bool {
        self.scanned > 0
    }

    /// The next whole line without its CRLF, or `None` when it has not arrived.
    #[inline]
    pub(crate) fn line<'b>(
        &mut self,
        buf: &'b [u8],
        limit: Limit,
        max: u32,
    ) -> Result<Option<&'b [u8]>, ParseError> {
        let over = Err(ParseError::OverLimit { limit, max });
        let Some(at) = memchr::memchr(b'\n', &buf[self.scanned..]) else {
            self.scanned = buf.len();
            // One byte more may be the CR.
            return if buf.len() - self.line_start > max as usize + 1 { over } else { Ok(None) };
        };
        let end = self.scanned + at;
        let [line @ .., b'\r'] = &buf[self.line_start..end] else {
            return Err(ParseError::BareLf);
        };
        if line.len() > max as usize {
            return over;
        }
        self.line_start = end + 1;
        self.scanned = end + 1;
        Ok(Some(line))
    }

    /// The lines so far were the start line; what follows are fields.
    pub(crate) fn begin_fields(&mut self) {
        self.fields_start = self.line_start;
        self.phase = Phase::Fields;
    }

    /// Reads field lines until the empty one; `Some(consumed)` when that was found.
    pub(crate) fn fields(
        &mut self,
        buf: &[u8],
        limits: &Limits,
        section: (Limit, u32),
        fields: &mut Fields,
    ) -> Result<Option<usize>, ParseError> {
        if fields.entries.capacity() == 0 {
            fields.entries.reserve(USUAL_FIELDS);
        }
        let result = self.field_lines(buf, limits, section, fields);
        // In one copy for all lines of this call, also when one was refused: entries never point outside the text.
        let copied = self.fields_start + fields.text.len();
        let end = if matches!(result, Ok(Some(_))) { self.line_start - 2 } else { self.line_start };
        let lines = &buf[copied..end.max(copied)];
        if fields.text.capacity() == 0 {
            fields.text.reserve(lines.len() + ADDED);
        }
        fields.text.extend_from_slice(lines);
        if matches!(result, Ok(Some(_))) {
            self.reset();
        }
        result
    }

    fn field_lines(
        &mut self,
        buf: &[u8],
        limits: &Limits,
        (section, section_max): (Limit, u32),
        fields: &mut Fields,
    ) -> Result<Option<usize>, ParseError> {
        let over = ParseError::OverLimit { limit: section, max: section_max };
        loop {
            let start = self.line_start;
            let Some(line) = self.line(buf, Limit::HeaderLine, limits.header_line)? else {
                let held = buf.len() - self.fields_start;
                return if held > section_max as usize + 2 { Err(over) } else { Ok(None) };
            };
            if line.is_empty() {
                return Ok(Some(self.line_start));
            }
            if self.line_start - self.fields_start > section_max as usize {
                return Err(over);
            }
            if fields.entries.len() >= limits.header_count as usize {
                return Err(ParseError::OverLimit { limit: Limit::HeaderCount, max: limits.header_count });
            }
            fields.entries.push(field_line(line, start - self.fields_start)?);
        }
    }
}

/// Reads one field line that begins `at` bytes after the first of them.
#[inline]
fn field_line(line: &[u8], at: usize) -> Result<Entry, ParseError> {
    let colon = memchr::memchr(b':', line).unwrap_or(line.len());
    // A known name is a token.
    let known = KnownName::find(&line[..colon]);
    let name_len = match known {
        Some(_) => colon,
        None => line.iter().position(|&b| !is_token_byte(b)).unwrap_or(line.len()),
    };
    if name_len == 0 || line.get(name_len) != Some(&b':') {
        return Err(bad_name(line, name_len));
    }
    let short_name_len = u16::try_from(name_len).map_err(|_| ParseError::BadFieldName)?;
    let rest = &line[name_len + 1..];
    if !is_field_value(rest) {
        return Err(if rest.contains(&b'\r') { ParseError::BareCr } else { ParseError::BadFieldValue });
    }
    let value = trim(rest);
    // `trim` of nothing but spaces gives the end; its position does not matter, only that it is inside the line.
    let value_at = value.as_ptr().addr() - line.as_ptr().addr();
    Ok(Entry {
        name: narrow(at),
        value: narrow(at + value_at),
        value_len: narrow(value.len()),
        name_len: short_name_len,
        known,
    })
}

#[cold]
fn bad_name(line: &[u8], name_len: usize) -> ParseError {
    match line.get(name_len) {
        _ if line.contains(&b'\r') => ParseError::BareCr,
        Some(b' ' | b'\t') if name_len == 0 => ParseError::ObsFold,
        Some(b' ' | b'\t') if trim(&line[name_len..]).first() == Some(&b':') => ParseError::SpaceBeforeColon,
        None => ParseError::MissingColon,
        Some(_) if !line.contains(&b':') => ParseError::MissingColon,
        Some(_) => ParseError::BadFieldName,
    }
}
