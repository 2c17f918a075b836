//! Whether what goes through an opaque tunnel is HTTP after all.
//!
//! The sidecar of an application tells it who calls and keeps requests within its policies. What reaches the application as
//! mere bytes has passed all of that by, so bytes that it would take for a request must not come that way, whatever the
//! caller's proxy took them for: who calls decides when it sends which byte.
//!
//! ```text
//!  caller ──▶ first line: a request's? ──▶ lines: one that says who calls? ──▶ application
//!         ◀── its first answer: HTTP's? else all that is over ◀──
//! ```
//!
//! *The first line* is that of a request as servers read it, see `first_line.rs`. Some take any line for one, so beside it *no line*
//! may begin with the field that tells who calls: nobody is anybody else by it.
//!
//! *The answer* of an application decides. HTTP's says that it was a request after all, and goes nowhere. Behind any other the
//! connection never becomes one of HTTP: a response without a status line (HTTP/0.9) lasts until its end. So whoever speaks
//! first, as mail and MySQL do, or has answered, as a database has, is looked at no more, whatever is stored in it.

use super::first_line::{FirstLine, White};

/// The words of `x-forwarded-client-cert`. Any one byte that is no letter and no digit parts them, as for
/// [`meshwork_http1::KnownName::is_mistaken_for_proxies_word`].
const NAME: [&[u8]; 4] = [b"x", b"forwarded", b"client", b"cert"];
/// What a response of HTTP/1 begins with.
const STATUS_LINE: &[u8] = b"HTTP/";
/// A frame's head of HTTP/2 has so many bytes.
const FRAME: usize = 9;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Watch {
    /// As servers part words, each in its way.
    lines: [FirstLine; 3],
    field: Field,
    answer: Answer,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            lines: [White::Space, White::Narrow, White::Wide].map(FirstLine::new),
            field: Field::default(),
            answer: Answer::default(),
        }
    }

    /// Looks at the caller's next bytes; true: with them it is HTTP.
    pub(super) fn shows_http(&mut self, bytes: &[u8]) -> bool {
        self.is_http(|line| line.shows_http(bytes), |field| field.is_in(bytes))
    }

    /// The caller says no more; true: servers take what is there for a request, as if its line had ended.
    pub(super) fn ends_as_http(&mut self) -> bool {
        self.is_http(FirstLine::ends_as_http, |_| false)
    }

    fn is_http(
        &mut self,
        by_line: impl FnMut(&mut FirstLine) -> bool,
        by_field: impl FnOnce(&mut Field) -> bool,
    ) -> bool {
        if self.answer.told != Told::Unclear {
            return false;
        }
        let is_http = self.lines.iter_mut().any(by_line) || by_field(&mut self.field);
        if is_http {
            self.answer.told = Told::Http;
        }
        is_http
    }

    /// Whether these bytes are what HTTP answers. They have not been passed on yet.
    pub(super) fn is_answer(&self, bytes: &[u8]) -> bool {
        let mut answer = self.answer;
        answer.goes_on(bytes);
        answer.told == Told::Http
    }

    /// These were passed on.
    pub(super) fn answered(&mut self, bytes: &[u8]) {
        self.answer.goes_on(bytes);
    }
}

/// What the application's first bytes say.
#[derive(Clone, Copy, Debug, Default)]
struct Answer {
    first: [u8; FRAME],
    length: usize,
    told: Told,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    /// Nothing yet, or what a server of HTTP/2 says before anybody asks.
    #[default]
    Unclear,
    Http,
    Other,
}

impl Answer {
    fn goes_on(&mut self, bytes: &[u8]) {
        if self.told != Told::Unclear || self.length == FRAME {
            return;
        }
        for byte in bytes {
            // Empty lines before a status line are not HTTP's, and clients skip them.
            if self.length == 0 && matches!(byte, b'\r' | b'\n') {
                continue;
            }
            if let Some(place) = self.first.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
        self.told = self.told();
    }

    fn told(&self) -> Told {
        let first = &self.first[..self.length];
        if first.starts_with(STATUS_LINE) {
            return Told::Http;
        }
        // SETTINGS or GOAWAY of the whole connection: who says so must go on to be watched.
        const KINDS: [u8; 2] = [4, 7];
        let is_frame = |at: usize, byte: u8| match at {
            0..3 => true,
            3 => KINDS.contains(&byte),
            _ => byte == 0,
        };
        let may_be =
            STATUS_LINE.starts_with(first) || first.iter().enumerate().all(|(at, byte)| is_frame(at, *byte));
        if may_be { Told::Unclear } else { Told::Other }
    }
}

/// Looks for a line that begins with the name of the field that says who calls, and `:`.
#[derive(Clone, Copy, Debug, Default)]
enum Field {
    /// A line begins; blanks may.
    #[default]
    Begin,
    /// So many letters of this word of the name were there.
    Name { word: usize, letters: usize },
    /// The name was there; blanks may follow.
    End,
    /// In a line that is another.
    Line,
}

impl Field {
    fn is_in(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = rest;
            *self = match (*self, byte) {
                (_, b'\r' | b'\n') => Self::Begin,
                (Self::End, b':') => return true,
                (Self::Begin | Self::End, b' ' | b'\t') => *self,
                (Self::Begin, _) => Self::Name { word: 0, letters: 0 }.and(byte),
                (Self::Name { .. }, _) => self.and(byte),
                (Self::End | Self::Line, _) => Self::Line,
            };
            if let Self::Line = self {
                let Some(end) = memchr::memchr2(b'\r', b'\n', bytes) else { return false };
                bytes = &bytes[end..];
            }
        }
        false
    }

    /// With the next byte of a name.
    fn and(self, byte: u8) -> Self {
        let Self::Name { word, letters } = self else { return self };
        match NAME[word].get(letters) {
            Some(letter) if byte.eq_ignore_ascii_case(letter) => {
                match word + 1 == NAME.len() && letters + 1 == NAME[word].len() {
                    true => Self::End,
                    false => Self::Name { word, letters: letters + 1 },
                }
            }
            None if !byte.is_ascii_alphanumeric() => Self::Name { word: word + 1, letters: 0 },
            _ => Self::Line,
        }
    }
}

#[cfg(test)]
mod tests;
