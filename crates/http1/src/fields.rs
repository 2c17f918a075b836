//! The header list of the whole proxy.

use std::fmt;
use std::ops::Range;

use http::{HeaderName, HeaderValue};

use crate::chars::{is_field_value, is_token, list, trim};
use crate::error::FieldError;
use crate::name::KnownName;

/// Where a field is in the text. 16 bytes, so that four share a cache line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) name: u32,
    pub(crate) value: u32,
    pub(crate) value_len: u32,
    pub(crate) name_len: u16,
    pub(crate) known: Option<KnownName>,
}

/// An ordered list of header or trailer fields: one buffer of text, one of positions.
///
/// Names compare without regard to case and keep the case they came in. Clearing keeps the memory, so that the next
/// message of a connection allocates nothing. The text holds each field as the line that HTTP/1 writes
/// (`name: value CR LF`), so that an unchanged run of fields is forwarded by one copy.
#[derive(Clone, Default)]
pub struct Fields {
    pub(crate) text: Vec<u8>,
    pub(crate) entries: Vec<Entry>,
}

impl Fields {
    /// An empty list that holds no memory yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { text: Vec::new(), entries: Vec::new() }
    }

    /// Removes all fields and keeps the memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.entries.clear();
    }

    /// Bytes of memory that it holds, whatever is in it.
    #[must_use]
    pub fn held(&self) -> usize {
        self.text.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    /// Makes room for so many more fields, whose lines are so many bytes together.
    pub fn reserve(&mut self, fields: usize, bytes: usize) {
        self.entries.reserve(fields);
        self.text.reserve(bytes);
    }

    /// Bytes of the lines of all fields, about: what writing them needs.
    #[must_use]
    pub fn text_len(&self) -> usize {
        self.text.len()
    }

    /// The text in which all fields stand, and where in it: for who wants to share it.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The fields as (known name, name, range of the value in the text), in order.
    pub fn iter_ranges(&self) -> impl Iterator<Item = (Option<KnownName>, &[u8], Range<usize>)> {
        let range = |entry: &Entry| entry.value as usize..entry.value as usize + entry.value_len as usize;
        self.entries.iter().map(move |entry| (entry.known, entry.name(&self.text), range(entry)))
    }

    /// How many field lines there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a field at the end; spaces around the value are dropped.
    ///
    /// # Errors
    /// [`FieldError`] when the name is no token or the value holds a control character.
    pub fn push(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
        let name = name.as_ref();
        if !is_token(name) {
            return Err(FieldError::Name(String::from_utf8_lossy(name).into_owned()));
        }
        self.push_checked_name(name, KnownName::find(name), value.as_ref())
    }

    /// Adds a field whose name is known, at the end; spaces around the value are dropped.
    ///
    /// # Errors
    /// [`FieldError`] when the value holds a control character.
    pub fn push_known(&mut self, name: KnownName, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
        self.push_checked_name(name.as_str().as_bytes(), Some(name), value.as_ref())
    }

    /// The same with a value that comes in parts, as they are: no spaces around it are dropped.
    ///
    /// # Errors
    /// [`FieldError`] when a part holds a control character; nothing is added then.
    pub fn push_known_parts(&mut self, name: KnownName, parts: &[&[u8]]) -> Result<(), FieldError> {
        let at = self.text.len();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.push_checked(name.as_str().as_bytes(), Some(name), length, |text| {
            parts.iter().for_each(|part| text.extend_from_slice(part));
        })?;
        // Together they are judged faster than one by one, as they are short.
        let added = self.entries.last().expect("push_checked added an entry");
        if is_field_value(added.value(&self.text)) {
            return Ok(());
        }
        self.entries.pop();
        self.text.truncate(at);
        Err(FieldError::Value(name.as_str().to_owned()))
    }

    /// Adds a field of a header map at the end; spaces around the value are dropped. The types say that name and value
    /// have been checked, but for `"`, which `http` takes in names and no token may hold (RFC 9110 section 5.6.2).
    ///
    /// # Errors
    /// [`FieldError`] when there is one, or the list grows beyond its offsets.
    pub fn push_header(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), FieldError> {
        let name = name.as_str().as_bytes();
        let known = KnownName::find(name);
        if known.is_none() && name.contains(&b'"') {
            return Err(FieldError::Name(String::from_utf8_lossy(name).into_owned()));
        }
        let value = trim(value.as_bytes());
        self.push_checked(name, known, value.len(), |text| text.extend_from_slice(value))
    }

    fn push_checked_name(
        &mut self,
        name: &[u8],
        known: Option<KnownName>,
        value: &[u8],
    ) -> Result<(), FieldError> {
        let value = trim(value);
        if !is_field_value(value) {
            return Err(FieldError::Value(String::from_utf8_lossy(name).into_owned()));
        }
        self.push_checked(name, known, value.len(), |text| text.extend_from_slice(value))
    }

    /// `write` adds the value, which has this length.
    #[inline]
    fn push_checked(
        &mut self,
        name: &[u8],
        known: Option<KnownName>,
        length: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), FieldError> {
        let at = self.text.len();
        let (Ok(name_len), Ok(_)) = (u16::try_from(name.len()), u32::try_from(at + name.len() + length + 4))
        else {
            return Err(FieldError::TooLarge(String::from_utf8_lossy(name).into_owned()));
        };
        self.text.reserve(name.len() + length + 4);
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(b": ");
        let value_at = self.text.len();
        write(&mut self.text);
        debug_assert_eq!(self.text.len(), value_at + length, "as long as was said");
        self.text.extend_from_slice(b"\r\n");
        self.entries.push(Entry {
            name: narrow(at),
            value: narrow(value_at),
            value_len: narrow(length),
            name_len,
            known,
        });
        Ok(())
    }

    /// Puts one field in the place of all fields of that name: at the end.
    ///
    /// # Errors
    /// [`FieldError`] when the name is no token or the value holds a control character; nothing is removed then.
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
        let name = name.as_ref();
        let before = self.entries.len();
        self.push(name, value)?;
        let added = self.entries.pop().expect("push added an entry");
        if before > 0 {
            self.remove(name);
        }
        self.entries.push(added);
        Ok(())
    }

    /// Puts one field in the place of all fields of that known name: at the end.
    ///
    /// # Errors
    /// [`FieldError`] when the value holds a control character; nothing is removed then.
    pub fn set_known(&mut self, name: KnownName, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
        self.push_known(name, value)?;
        let added = self.entries.pop().expect("push_known added an entry");
        self.remove_known(name);
        self.entries.push(added);
        Ok(())
    }

    /// Removes every field of that name and says how many there were.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) -> usize {
        let name = name.as_ref();
        match KnownName::find(name) {
            Some(known) => self.remove_known(known),
            None => self.retain(|known, this, _| known.is_some() || !this.eq_ignore_ascii_case(name)),
        }
    }

    /// Removes every field of that known name and says how many there were.
    pub fn remove_known(&mut self, name: KnownName) -> usize {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.known != Some(name));
        before - self.entries.len()
    }

    /// Keeps the fields for which `keep(known, name, value)` holds and says how many went.
    pub fn retain(&mut self, mut keep: impl FnMut(Option<KnownName>, &[u8], &[u8]) -> bool) -> usize {
        let before = self.entries.len();
        let text = &self.text;
        self.entries.retain(|entry| keep(entry.known, entry.name(text), entry.value(text)));
        before - self.entries.len()
    }

    /// The value of the first field of that name.
    #[must_use]
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        let name = name.as_ref();
        match KnownName::find(name) {
            Some(known) => self.known(known),
            None => self.unknown_all(name).next(),
        }
    }

    /// The values of all fields of that name, in order.
    pub fn get_all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let known = KnownName::find(name);
        let same = move |entry: &&Entry| match known {
            Some(_) => entry.known == known,
            None => entry.is_unknown_named(&self.text, name),
        };
        self.entries.iter().filter(same).map(|entry| entry.value(&self.text))
    }

    fn unknown_all<'a, 'n>(&'a self, name: &'n [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.entries
            .iter()
            .filter(move |entry| entry.is_unknown_named(&self.text, name))
            .map(|entry| entry.value(&self.text))
    }

    /// The value of the first field of that known name.
    #[must_use]
    pub fn known(&self, name: KnownName) -> Option<&[u8]> {
        self.known_all(name).next()
    }

    /// The values of all fields of that known name, in order.
    pub fn known_all(&self, name: KnownName) -> impl Iterator<Item = &[u8]> {
        self.entries
            .iter()
            .filter(move |entry| entry.known == Some(name))
            .map(|entry| entry.value(&self.text))
    }

    /// Whether a field of that name has this member in its comma-separated list, in any case.
    #[must_use]
    pub fn contains_token(&self, name: KnownName, token: &str) -> bool {
        self.known_all(name)
            .any(|value| list(value).any(|member| member.eq_ignore_ascii_case(token.as_bytes())))
    }

    /// The fields as (name, value), in order.
    #[must_use]
    pub fn iter(&self) -> FieldIter<'_> {
        FieldIter { fields: self, entries: self.entries.iter() }
    }

    /// The fields as (known name, name, value), in order.
    pub fn iter_known(&self) -> impl Iterator<Item = (Option<KnownName>, &[u8], &[u8])> {
        self.entries.iter().map(|entry| (entry.known, entry.name(&self.text), entry.value(&self.text)))
    }

    /// Adds all fields of another list, in order.
    ///
    /// # Errors
    /// [`FieldError::TooLarge`] when the list grows beyond its offsets.
    pub fn append(&mut self, other: &Self) -> Result<(), FieldError> {
        for (known, name, value) in other.iter_known() {
            self.push_checked_name(name, known, value)?;
        }
        Ok(())
    }
}

/// A position in the text; every growth of the text is checked against 32 bits before.
pub(crate) fn narrow(at: usize) -> u32 {
    u32::try_from(at).expect("the text of a field list is bounded to 4 GiB")
}

impl Entry {
    fn is_unknown_named(&self, text: &[u8], name: &[u8]) -> bool {
        self.known.is_none()
            && usize::from(self.name_len) == name.len()
            && self.name(text).eq_ignore_ascii_case(name)
    }

    pub(crate) fn name<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        &text[self.name as usize..self.name as usize + usize::from(self.name_len)]
    }

    pub(crate) fn value<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        &text[self.value as usize..self.value as usize + self.value_len as usize]
    }
}

/// Iterates over (name, value).
#[derive(Clone)]
pub struct FieldIter<'a> {
    fields: &'a Fields,
    entries: std::slice::Iter<'a, Entry>,
}

impl<'a> Iterator for FieldIter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entries.next()?;
        Some((entry.name(&self.fields.text), entry.value(&self.fields.text)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.entries.size_hint()
    }
}

impl ExactSizeIterator for FieldIter<'_> {}

impl<'a> IntoIterator for &'a Fields {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = FieldIter<'a>;

    fn into_iter(self) -> FieldIter<'a> {
        self.iter()
    }
}

/// Equal when the same fields are in the same order, names in any case.
impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.iter().zip(other).all(|(a, b)| a.0.eq_ignore_ascii_case(b.0) && a.1 == b.1)
    }
}

impl Eq for Fields {}

/// Values of credentials are left out: this text ends in logs.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (known, name, value) in self.iter_known() {
            let secret = known.is_some_and(KnownName::is_secret);
            let value = if secret { "…".into() } else { String::from_utf8_lossy(value) };
            map.entry(&String::from_utf8_lossy(name), &value);
        }
        map.finish()
    }
}

#[cfg(test)]
#[path = "fields/tests.rs"]
mod tests;
