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
//! connection never becomes one of HTTP, where nothing was asked that could be a request: a line of two words. Some servers begin
//! their answer with what the caller wrote. So whoever speaks first, as mail and MySQL do, or has answered such a thing, as databases
//! do, is looked at no more, whatever is stored in it.

use super::first_line::{FirstLine, White, behind_line_ends};

/// The words of `x-forwarded-client-cert`. Any one byte that is no letter and no digit parts them, as for
/// [`meshwork_http1::KnownName::is_mistaken_for_proxies_word`].
const NAME: [&[u8]; 4] = [b"x", b"forwarded", b"client", b"cert"];
/// What a response of HTTP/1 begins with.
const STATUS_LINE: &[u8] = b"HTTP/";
/// Of an answer so much is looked at: no protocol has a longer name.
const LONGEST: usize = 24;
/// A frame's head of HTTP/2 has so many bytes.
const FRAME: usize = 9;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Watch {
    /// As servers part words, each in its way.
    lines: [FirstLine; 3],
    field: Field,
    asked: Asked,
    answer: Answer,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            lines: [White::Space, White::Narrow, White::Wide].map(FirstLine::new),
            field: Field::default(),
            asked: Asked::Nothing,
            answer: Answer::default(),
        }
    }

    /// Looks at the caller's next bytes; true: with them it is HTTP.
    pub(super) fn shows_http(&mut self, bytes: &[u8]) -> bool {
        let is_http = self.is_http(|line| line.shows_http(bytes), |field| field.is_in(bytes));
        if self.answer.told == Told::Unclear {
            self.asked.goes_on(bytes);
        }
        is_http
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
        let is_over = match self.answer.told {
            Told::Unclear => false,
            Told::Http => true,
            Told::Other => self.asked != Asked::Line,
        };
        if is_over {
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

/// What the caller has said before the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    /// White space stands in the line that has begun.
    Words,
    /// A line that could be a request to somebody.
    Line,
}

impl Asked {
    fn goes_on(&mut self, bytes: &[u8]) {
        for byte in bytes {
            *self = match (*self, byte) {
                (Self::Line, _) => return,
                (Self::Words, b'\n') => Self::Line,
                (Self::Nothing, b'\n' | b'\r') => Self::Nothing,
                (Self::Nothing, byte) if White::Wide.has(*byte) => Self::Words,
                (asked, _) => asked,
            };
        }
    }
}

/// What the application's first bytes say.
#[derive(Clone, Copy, Debug, Default)]
struct Answer {
    first: [u8; LONGEST],
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
        if self.told != Told::Unclear || self.length == LONGEST {
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
        match is_status_line(first) {
            Some(true) => Told::Http,
            None if self.length < LONGEST => Told::Unclear,
            _ if is_frame(first) => Told::Unclear,
            _ => Told::Other,
        }
    }
}

/// Whether this begins like `HTTP/1.1 `, whatever the protocol: some servers answer with the one that they were asked by. `None`:
/// it may yet.
fn is_status_line(first: &[u8]) -> Option<bool> {
    let name = first.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let version = &first[name..];
    let shape: [fn(&u8) -> bool; 5] =
        [|b| *b == b'/', u8::is_ascii_digit, |b| *b == b'.', u8::is_ascii_digit, |b| *b == b' '];
    match version.iter().zip(&shape).all(|(byte, fits)| fits(byte)) && (name > 0 || version.is_empty()) {
        true if version.len() < shape.len() => None,
        fits => Some(fits),
    }
}

/// SETTINGS or GOAWAY of a whole connection of HTTP/2: who says so must go on to be watched.
fn is_frame(first: &[u8]) -> bool {
    const KINDS: [u8; 2] = [4, 7];
    first.iter().take(FRAME).enumerate().all(|(at, byte)| match at {
        1 | 2 => true,
        3 => KINDS.contains(byte),
        _ => *byte == 0,
    })
}

/// Looks for a line that begins with the name of the field that says who calls, and `:`. What is no character may stand before
/// either, as for some servers, and a CR may end a line or be nothing.
#[derive(Clone, Copy, Debug, Default)]
enum Field {
    /// A line begins; blanks may.
    #[default]
    Begin,
    /// So many letters of this word of the name were there, and then perhaps a CR.
    Name { word: usize, letters: usize, is_cut: bool },
    /// The name was there; blanks may follow.
    End { is_cut: bool },
    /// In a line that is another.
    Line,
}

impl Field {
    fn is_in(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = rest;
            *self = match (*self, byte) {
                (_, b'\n') | (Self::Begin | Self::Line, b'\r') => Self::Begin,
                (Self::Name { word, letters, .. }, b'\r') => Self::Name { word, letters, is_cut: true },
                (Self::End { .. }, b'\r') => Self::End { is_cut: true },
                (Self::End { .. }, b':') => return true,
                (Self::Begin | Self::End { .. }, _) if is_blank(byte) => *self,
                (Self::Begin | Self::End { is_cut: true }, _) => Self::begins(byte),
                (Self::Name { word, letters, is_cut }, _) => Self::goes_on((word, letters), is_cut, byte),
                (Self::End { .. } | Self::Line, _) => Self::Line,
            };
            match self {
                Self::Line => {
                    let Some(end) = memchr::memchr2(b'\r', b'\n', bytes) else { return false };
                    bytes = &bytes[end..];
                }
                Self::Begin => bytes = behind_line_ends(bytes, byte),
                Self::Name { .. } | Self::End { .. } => {}
            }
        }
        false
    }

    fn begins(byte: u8) -> Self {
        Self::goes_on((0, 0), false, byte)
    }

    /// With the next byte of a name.
    fn goes_on((word, letters): (usize, usize), is_cut: bool, byte: u8) -> Self {
        match NAME[word].get(letters) {
            Some(letter) if byte.eq_ignore_ascii_case(letter) => {
                match word + 1 == NAME.len() && letters + 1 == NAME[word].len() {
                    true => Self::End { is_cut: false },
                    false => Self::Name { word, letters: letters + 1, is_cut: false },
                }
            }
            None if !byte.is_ascii_alphanumeric() => Self::Name { word: word + 1, letters: 0, is_cut: false },
            _ if is_cut && is_blank(byte) => Self::Begin,
            _ if is_cut => Self::begins(byte),
            _ => Self::Line,
        }
    }
}

/// What is no character of ASCII.
const fn is_blank(byte: u8) -> bool {
    !byte.is_ascii_graphic()
}

#[cfg(test)]
mod tests;
