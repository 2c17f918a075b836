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
//! may begin with the field that tells who calls, and no HTTP/2 begin behind it: nobody is anybody else by it.
//!
//! *The answer* of an application decides. HTTP's says that it was a request after all, and goes nowhere. Behind any other the
//! connection never becomes one of HTTP, where nothing was asked that could be a request: a line of two words. Some servers begin
//! their answer with what the caller wrote. So whoever speaks first, as mail and MySQL do, or has answered such a thing, as databases
//! do, is looked at no more, whatever is stored in it.
//!
//! An application that has answered as servers of HTTP do, here or to a request, is watched no more: its port takes no further tunnels,
//! see `hbone.rs`, and one that is open takes nothing more where a request could still be one there.

use std::sync::Arc;

use meshwork_decision::Inbound;
use meshwork_http1::{HeadScan, Limits, Parsed, RequestKind, ResponseHead, parse_response};

use super::first_line::{FirstLine, Version, White};
use crate::request::answer;

/// Any one byte that is no letter and no digit may part its words, as for
/// [`meshwork_http1::KnownName::is_mistaken_for_proxies_word`].
const NAME: &[u8; 23] = b"x-forwarded-client-cert";
/// What a connection of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a response of HTTP/1 begins with.
const STATUS_LINE: &[u8] = b"HTTP/";
/// The same behind another answer. Nothing else has it just where an answer begins.
const NEXT_STATUS_LINE: &[u8] = b"HTTP/1.";
/// Netty answers with the last word of a line, in capitals, of which there may be twice as many; it reads 4 KiB unless told
/// otherwise.
const LONGEST: usize = 64 * 1024;
/// A frame's head of HTTP/2 has so many bytes.
const FRAME: usize = 9;

/// The application behind a tunnel.
#[derive(Debug)]
pub(super) struct App {
    pub(super) inbound: Arc<Inbound>,
    pub(super) port: u16,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Watch {
    app: App,
    /// As servers part words, each in its way.
    lines: [FirstLine; 3],
    field: Field,
    preface: Preface,
    asked: Asked,
    answer: Answer,
    /// The caller has said something.
    has_spoken: bool,
    /// It has since the application's last bytes.
    says_more: bool,
    met_a_server: bool,
}

impl Watch {
    pub(super) fn new(app: App) -> Self {
        Self {
            app,
            lines: [White::Space, White::Narrow, White::Wide].map(FirstLine::new),
            field: Field::default(),
            preface: Preface::default(),
            asked: Asked::Nothing,
            answer: Answer::default(),
            has_spoken: false,
            says_more: false,
            met_a_server: false,
        }
    }

    /// Looks at the caller's next bytes; true: with them it is HTTP.
    pub(super) fn shows_http(&mut self, bytes: &[u8]) -> bool {
        let is_http = self.is_http(
            |line| line.shows_http(bytes),
            |field, preface| field.is_in(bytes) || preface.is_in(bytes),
        );
        self.has_spoken |= !bytes.is_empty();
        self.says_more |= !bytes.is_empty();
        // Who writes the caller's words back has them all before it begins to: what comes behind that is not asked.
        if self.answer.length == 0 {
            self.asked.goes_on(bytes);
        }
        is_http
    }

    /// The caller says no more; true: servers take what is there for a request, as if its line had ended. Whoever has never said
    /// anything has asked for nothing, and leaves a tunnel that it did not need.
    pub(super) fn ends_as_http(&mut self) -> bool {
        self.has_spoken && self.is_http(FirstLine::ends_as_http, |_, _| false)
    }

    fn is_http(
        &mut self,
        by_line: impl FnMut(&mut FirstLine) -> bool,
        by_rest: impl FnOnce(&mut Field, &mut Preface) -> bool,
    ) -> bool {
        let is_over = match self.answer.told {
            Told::Unclear => false,
            Told::Http => true,
            Told::Other => self.asked != Asked::Line,
        };
        if is_over {
            return false;
        }
        // Nobody knew that when this tunnel was opened, or it was opened for that.
        let is_http = self.app.inbound.speaks_http(self.app.port)
            || self.lines.iter_mut().any(by_line)
            || by_rest(&mut self.field, &mut self.preface);
        if is_http {
            self.answer.told = Told::Http;
        }
        is_http
    }

    /// Whether these bytes are what HTTP answers. They have not been passed on yet.
    pub(super) fn is_answer(&mut self, bytes: &[u8]) -> bool {
        let is_http = match self.answer.told {
            // A server that took the first line for a request in its own way begins the next answer as it should.
            Told::Other => self.asked == Asked::Line && self.says_more && bytes.starts_with(NEXT_STATUS_LINE),
            Told::Unclear | Told::Http => {
                let mut answer = self.answer;
                answer.goes_on(bytes);
                answer.told == Told::Http
            }
        };
        self.met_a_server |= is_http && is_of_http_server(bytes);
        is_http
    }

    /// Whether the application has answered as a server of HTTP does.
    pub(super) fn has_met_a_server(&self) -> bool {
        self.met_a_server
    }

    /// These were passed on.
    pub(super) fn answered(&mut self, bytes: &[u8]) {
        self.answer.goes_on(bytes);
        self.says_more &= bytes.is_empty();
    }
}

/// Whether a server of HTTP alone answers so; whose head does not come whole is not known for one.
fn is_of_http_server(bytes: &[u8]) -> bool {
    let mut head = ResponseHead::new();
    let parsed =
        parse_response(bytes, &Limits::default(), RequestKind::Other, &mut HeadScan::default(), &mut head);
    matches!(parsed, Ok(Parsed::Done { .. })) && answer::is_of_http_server(&head)
}

/// What the caller has said before the application. No first line is an exception, not even that of Redis' protocol: uWSGI passes over
/// what it does not understand, and serves what follows.
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
#[derive(Clone, Copy, Debug)]
struct Answer {
    first: [u8; FRAME],
    length: usize,
    /// How far the first word ends like a version.
    version: Version,
    told: Told,
}

impl Default for Answer {
    fn default() -> Self {
        // A protocol's name may be empty, or begin with a slash.
        Self { first: [0; FRAME], length: 0, version: Version::Name, told: Told::Unclear }
    }
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
        for byte in bytes {
            if self.told != Told::Unclear || self.length >= FRAME && is_frame(&self.first) {
                return;
            }
            // Empty lines before a status line are not HTTP's, and clients skip them.
            if self.length > 0 || !matches!(byte, b'\r' | b'\n') {
                self.told = self.with(*byte);
            }
        }
    }

    /// It begins like `HTTP/1.1 `, whatever the protocol: some servers answer with the one that they were asked by.
    fn with(&mut self, byte: u8) -> Told {
        if let Some(place) = self.first.get_mut(self.length) {
            *place = byte;
        }
        self.length += 1;
        let first = &self.first[..self.length.min(FRAME)];
        if first.starts_with(STATUS_LINE) || byte == b' ' && self.version == Version::Minor {
            return Told::Http;
        }
        self.version = self.version.with(byte);
        if is_frame(first) {
            return Told::Unclear;
        }
        // No server has a word that is longer from its caller, or begins with what Java trims; others may be of it.
        let is_word = !byte.is_ascii_whitespace() && self.length <= LONGEST;
        if is_word && first[0] >= b' ' { Told::Unclear } else { Told::Other }
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

/// Looks for a line that begins with the name of the field that says who calls, as the most lenient of servers read lines. What
/// is no character may stand before it. Behind it stands whatever cannot belong to a longer name: to some that is its end, and
/// the colon comes later (Netty before 4.1.42) or never (webfs); so it is where the value is on the next line. A CR
/// ends a line, alone or with any one byte (PHP), or is nothing (busybox), and a line's end within a name may be nothing, too (PHP).
///
/// Each bit is a place where the reading may be.
#[derive(Clone, Copy, Debug)]
struct Field(u32);

/// A line begins; blanks may.
const BEGIN: u32 = 1;
/// The whole name was there.
const END: u32 = BEGIN << NAME.len();
/// And then the line has ended.
const LATE: u32 = END << 1;
/// The byte before was a CR.
const CUT: u32 = LATE << 1;
const OF_NAME: [u32; 256] = places(NAME, true);
const OF_PREFACE: [u32; 256] = places(PREFACE, false);

/// At which places of a text each byte may stand. `lenient`: letters are of either case, and anything else for a hyphen.
const fn places(text: &[u8], lenient: bool) -> [u32; 256] {
    let mut places = [0; 256];
    let mut byte = 0_u8;
    loop {
        let mut at = 0;
        while at < text.len() {
            let fits = match text[at] {
                b'-' if lenient => !byte.is_ascii_alphanumeric(),
                letter if lenient => byte.eq_ignore_ascii_case(&letter),
                own => byte == own,
            };
            if fits {
                places[byte as usize] |= BEGIN << at;
            }
            at += 1;
        }
        if byte == u8::MAX {
            return places;
        }
        byte += 1;
    }
}

impl Default for Field {
    fn default() -> Self {
        Self(BEGIN)
    }
}

impl Field {
    fn is_in(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = rest;
            if self.ends(byte) {
                return true;
            }
            self.goes_on(byte);
            if self.0 == 0 {
                let Some(end) = memchr::memchr2(b'\r', b'\n', bytes) else { return false };
                bytes = &bytes[end..];
            }
        }
        false
    }

    /// Whether the name was there, and is no longer one with this byte.
    fn ends(&self, byte: u8) -> bool {
        let is_end = matches!(byte, b'\r' | b'\n');
        let goes_on = is_end || byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        // Of what begins a line only a blank goes on with the one before. Lists of names have other lines, Redis' keys for one.
        let is_late = byte == b':' || is_blank(byte) && !is_end;
        self.0 & END != 0 && !goes_on || self.0 & LATE != 0 && is_late
    }

    fn goes_on(&mut self, byte: u8) {
        let at = self.0 & !CUT;
        let stays = match byte {
            b'\r' | b'\n' => at | BEGIN,
            _ if is_blank(byte) => at & BEGIN,
            _ => 0,
        };
        // Behind a CR any one byte may belong to the line's end, also within the name.
        let is_cut = if self.0 & CUT == 0 { 0 } else { at };
        let cuts = if byte == b'\r' { CUT } else { 0 };
        self.0 = (at & OF_NAME[usize::from(byte)]) << 1 | stays | is_cut | cuts;
        if byte == b'\n' && self.0 & END != 0 {
            self.0 = self.0 & !END | LATE;
        }
    }
}

/// Looks for [`PREFACE`] wherever it is: a server that was asked to change to HTTP/2 (`Upgrade: h2c`) takes it before it has
/// answered, and no line says who calls then. Each bit is a length that has come.
#[derive(Clone, Copy, Debug, Default)]
struct Preface(u32);

impl Preface {
    fn is_in(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            if self.0 == 0 {
                let Some(begin) = memchr::memchr(PREFACE[0], bytes) else { return false };
                bytes = &bytes[begin..];
            }
            let Some((&byte, rest)) = bytes.split_first() else { return false };
            bytes = rest;
            self.0 = (self.0 << 1 | BEGIN) & OF_PREFACE[usize::from(byte)];
            if self.0 & BEGIN << (PREFACE.len() - 1) != 0 {
                return true;
            }
        }
    }
}

/// What is no character of ASCII.
const fn is_blank(byte: u8) -> bool {
    !byte.is_ascii_graphic()
}

#[cfg(test)]
mod tests;
