//! Whether the first line of what comes through an opaque tunnel is a request's.
//!
//! Servers differ in what they take for a request, so this goes by all that any common one takes, not by the standard. Each reads a
//! line of a method, white space and more, and acts on nothing before the line's end (or the connection's); most skip empty lines
//! before it, Netty every control byte. What is white space differs, the space alone or all that Python takes for it, which to others
//! is part of a word, so a line is read in each way. Some look at the version's first letters alone, some at none. A header of the PROXY protocol may come
//! first; what stands behind it is looked at too.
//!
//! ```text
//!  Lead ──▶ Method ──white──▶ Gap ◀──▶ Word ──LF, end──▶ Over
//!   ▲ │        │                        │                 └─ a version where one can be, or a common method and one word: HTTP
//!   │ │        │                        └─ a common method and a path, a URL or `*`: HTTP
//!   │ │        └─ LF: Over
//!   └─┴─ behind a PROXY header
//! ```
//!
//! Other text protocols look alike where nobody has declared them: RTSP, ICAP, Redis' inline commands. Theirs is a port that
//! declares `tcp`. Servers that take any line for a request (JDK's, uWSGI) cannot be known by it: see `watch.rs` for what remains.

/// Few servers read a longer line (Go's takes 1 MiB of head), and nothing else has one that begins with two words. A first word, and
/// what is skipped before it, have no end with some of them.
const LONGEST: usize = 1 << 21;
/// Of a word so much is kept; longer ones are none that is looked for.
const KEPT: usize = 13;
/// What the second version of the PROXY protocol begins with, before a word that is `QUIT`.
const SIGNATURE: &[u8; 7] = b"\r\n\r\n\0\r\n";
/// What is a request with one word behind it, to a server that knows HTTP/0.9 or looks for no version.
const COMMON: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PATCH"];
/// So are these where the word is a path: what else `llhttp` knows, those of RTSP among it.
const LESS_COMMON: [&[u8]; 38] = [
    b"ACL",
    b"ANNOUNCE",
    b"BIND",
    b"CHECKOUT",
    b"COPY",
    b"DESCRIBE",
    b"FLUSH",
    b"GET_PARAMETER",
    b"LINK",
    b"LOCK",
    b"M-SEARCH",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"NOTIFY",
    b"PAUSE",
    b"PLAY",
    b"PRI",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"QUERY",
    b"REBIND",
    b"RECORD",
    b"REDIRECT",
    b"REPORT",
    b"SEARCH",
    b"SETUP",
    b"SET_PARAMETER",
    b"SOURCE",
    b"SUBSCRIBE",
    b"TEARDOWN",
    b"UNBIND",
    b"UNLINK",
    b"UNLOCK",
    b"UNSUBSCRIBE",
];
/// The protocols whose version makes a request of any line; `llhttp` knows these.
const PROTOCOLS: [&[u8]; 3] = [b"HTTP/", b"RTSP/", b"ICE/"];

/// Which bytes part words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum White {
    /// The space alone; a CR is nothing (busybox).
    Space,
    /// Those of ASCII. Other control bytes are of a word, also where it is the first.
    Narrow,
    /// Those of Python's `str.split` of Latin-1. Control bytes before the first word are skipped.
    Wide,
}

/// What is known of the first line so far.
#[derive(Debug)]
pub(super) struct FirstLine {
    white: White,
    stage: Stage,
    /// Control bytes came before, which one server alone skips: to it a request says its version.
    lead_is_odd: bool,
    /// How many bytes came before, and the last of them, of which the newest stands last.
    lead: usize,
    lead_ends: [u8; SIGNATURE.len()],
    /// It is behind a header of the PROXY protocol.
    announced: bool,
    line: Line,
}

/// What is known of the line itself.
#[derive(Debug, Default)]
struct Line {
    length: usize,
    ends_in_cr: bool,
    method: Word,
    /// Words behind the method, and the last of them.
    words: usize,
    last: Word,
    /// The first word begins like a path, a URL or is `*`.
    is_path: bool,
    scheme: Scheme,
    /// One of the first two words is a version's beginning of [`PROTOCOLS`].
    has_version: bool,
    /// How far the last word ends like a version of any protocol.
    version: Version,
}

/// The beginning of a word, and its length.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    kept: [u8; KEPT],
    length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing but what servers skip has come.
    Lead,
    Method,
    /// White space behind the method.
    Gap,
    /// In a word behind that.
    Word,
    /// So much is missing of the fixed part of a binary PROXY header, of which the last two bytes say how long the rest is.
    Binary {
        fixed: u8,
        length: u16,
    },
    /// So much of its rest.
    Skip(u16),
    /// It is no request, or nobody knows any more.
    Over,
}

/// Of a word that ends like `HTTP/1.1`, whatever the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Version {
    #[default]
    None,
    Name,
    Slash,
    Major,
    Dot,
    Minor,
}

/// Of a word that begins like `http://`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scheme {
    #[default]
    None,
    Name,
    Colon,
    Slash,
}

impl FirstLine {
    pub(super) fn new(white: White) -> Self {
        Self {
            white,
            stage: Stage::Lead,
            lead_is_odd: false,
            lead: 0,
            lead_ends: [0; SIGNATURE.len()],
            announced: false,
            line: Line::default(),
        }
    }

    /// Looks at the next bytes; true: with them something is there that servers take for a request's first line.
    pub(super) fn shows_http(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while let Some((byte, behind)) = rest.split_first() {
            if self.stage == Stage::Over {
                return false;
            }
            rest = behind;
            if self.takes(*byte) {
                self.stage = Stage::Over;
                return true;
            }
            // Either may be of any length, so it costs little.
            match self.stage {
                // No signature has so many.
                Stage::Lead if self.lead > SIGNATURE.len() => rest = self.behind_lead(rest),
                Stage::Method if self.line.method.length > KEPT => rest = self.behind_word(rest),
                _ => {}
            }
        }
        false
    }

    /// Nothing more comes; true: servers take what is there for a request, as if its line had ended.
    pub(super) fn ends_as_http(&mut self) -> bool {
        let is_line = matches!(self.stage, Stage::Gap | Stage::Word);
        self.stage = Stage::Over;
        is_line && self.line.is_request(self.lead_is_odd)
    }

    fn takes(&mut self, byte: u8) -> bool {
        match self.stage {
            Stage::Lead => self.before(byte),
            Stage::Method => self.of_method(byte),
            Stage::Gap | Stage::Word => return self.behind(byte),
            Stage::Binary { fixed, length } => {
                let length = length << 8 | u16::from(byte);
                match fixed {
                    0 | 1 if length == 0 => self.begins_anew(),
                    0 | 1 => self.stage = Stage::Skip(length),
                    more => self.stage = Stage::Binary { fixed: more - 1, length },
                }
            }
            Stage::Skip(0 | 1) => self.begins_anew(),
            Stage::Skip(more) => self.stage = Stage::Skip(more - 1),
            Stage::Over => {}
        }
        false
    }

    /// What is behind a header of the PROXY protocol is a connection's beginning; a second one is none.
    fn begins_anew(&mut self) {
        *self = Self { announced: true, ..Self::new(self.white) };
    }

    fn before(&mut self, byte: u8) {
        let is_white = self.white.has(byte) || byte == b'\r';
        let is_of_signature = byte == SIGNATURE.get(self.lead).copied().unwrap_or(b'\n');
        let is_skipped = is_of_signature || self.white == White::Wide && is_control(byte);
        if byte == b'\n' || is_white || is_skipped {
            self.lead_is_odd |= byte != b'\n' && !is_white;
            self.lead = self.lead.saturating_add(1);
            self.lead_ends.rotate_left(1);
            self.lead_ends[SIGNATURE.len() - 1] = byte;
            return;
        }
        self.stage = Stage::Method;
        self.line.method.add(byte);
    }

    fn of_method(&mut self, byte: u8) {
        if self.is_nothing(byte) {
            return;
        }
        if byte == b'\n' {
            let is_signature = self.lead == SIGNATURE.len() && self.lead_ends == *SIGNATURE;
            self.stage = match is_signature && self.line.method.is(b"QUIT") && !self.announced {
                true => Stage::Binary { fixed: 4, length: 0 },
                false => Stage::Over,
            };
        } else if self.white.has(byte) {
            self.stage = Stage::Gap;
            self.line.ends_in_cr = byte == b'\r';
        } else {
            self.line.method.add(byte);
        }
    }

    /// What comes behind what is skipped before a line.
    fn behind_lead<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let is_plain = |byte: u8| matches!(byte, b'\r' | b'\n') || self.white.has(byte);
        let is_odd = |byte: u8| self.white == White::Wide && is_control(byte);
        let count = bytes.iter().take_while(|byte| is_plain(**byte) || is_odd(**byte)).count();
        let (skipped, rest) = bytes.split_at(count);
        self.lead_is_odd |= skipped.iter().any(|byte| !is_plain(*byte));
        rest
    }

    /// What comes behind the rest of a word.
    fn behind_word<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let ends = |byte: &u8| matches!(byte, b'\r' | b'\n') || self.white.has(*byte);
        &bytes[bytes.iter().position(ends).unwrap_or(bytes.len())..]
    }

    /// A CR, where it is.
    fn is_nothing(&mut self, byte: u8) -> bool {
        let is_nothing = self.white == White::Space && byte == b'\r';
        self.line.ends_in_cr |= is_nothing;
        is_nothing
    }

    /// Behind the method and white space.
    fn behind(&mut self, byte: u8) -> bool {
        if self.is_nothing(byte) {
            return false;
        }
        let line = &mut self.line;
        line.length += 1;
        if byte == b'\n' {
            return self.ends_line();
        }
        line.ends_in_cr = byte == b'\r';
        if self.white.has(byte) {
            self.stage = Stage::Gap;
        } else {
            line.goes_on(byte, self.stage == Stage::Gap);
            self.stage = Stage::Word;
            if !self.lead_is_odd && line.words == 1 && line.is_path && line.method.is_common() {
                return true;
            }
        }
        // Some servers read on, and nobody knows what it ends with.
        line.length > LONGEST
    }

    fn ends_line(&mut self) -> bool {
        if self.line.is_request(self.lead_is_odd) {
            return true;
        }
        if self.lead == 0 && self.line.method.is(b"PROXY") && !self.announced {
            // To some its end is CR LF alone, and what we took for the next line is of the header.
            let is_cut = !self.line.ends_in_cr;
            self.begins_anew();
            return is_cut;
        }
        self.stage = Stage::Over;
        false
    }
}

impl Line {
    /// The next byte of a word behind the method.
    fn goes_on(&mut self, byte: u8, begins: bool) {
        if begins {
            self.words += 1;
            self.last = Word::default();
            self.version = Version::None;
        }
        self.last.add(byte);
        self.has_version |= self.words <= 2 && self.last.begins_a_version();
        self.version = self.version.with(byte);
        if self.words != 1 {
            return;
        }
        if begins {
            self.is_path = matches!(byte, b'/' | b'*');
            self.scheme = if byte.is_ascii_alphabetic() { Scheme::Name } else { Scheme::None };
            return;
        }
        self.scheme = match (self.scheme, byte) {
            (Scheme::Name, b':') => Scheme::Colon,
            (Scheme::Name, _) if byte.is_ascii_alphanumeric() || b"+-.".contains(&byte) => Scheme::Name,
            (Scheme::Colon, b'/') => Scheme::Slash,
            (Scheme::Slash, b'/') => {
                self.is_path = true;
                Scheme::None
            }
            _ => Scheme::None,
        };
    }

    /// Whether the line that ends here is one. `versioned`: only with a version.
    fn is_request(&self, versioned: bool) -> bool {
        // Old nginx takes spaces for a part of the path, and Netty any protocol.
        let says_version = self.has_version
            || self.method.is_common() && self.last.begins_a_version()
            || self.is_path
                && (self.last.begins_a_version() || self.words == 2 && self.version == Version::Minor);
        let may_say_none = self.method.is_common()
            || self.is_path && LESS_COMMON.iter().any(|method| self.method.is(method));
        says_version || !versioned && self.words == 1 && may_say_none
    }
}

impl Version {
    /// With the word's next byte.
    pub(super) fn with(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::None, b'/') => Self::None,
            (_, b'/') => Self::Slash,
            (Self::Slash | Self::Major, b'0'..=b'9') => Self::Major,
            (Self::Major, b'.') => Self::Dot,
            (Self::Dot | Self::Minor, b'0'..=b'9') => Self::Minor,
            _ => Self::Name,
        }
    }
}

impl Word {
    fn add(&mut self, byte: u8) {
        if let Some(place) = self.kept.get_mut(self.length) {
            *place = byte;
        }
        self.length += 1;
    }

    fn is(&self, word: &[u8]) -> bool {
        self.kept.get(..self.length) == Some(word)
    }

    fn is_common(&self) -> bool {
        COMMON.iter().any(|method| self.is(method))
    }

    fn begins_a_version(&self) -> bool {
        let kept = &self.kept[..self.length.min(KEPT)];
        PROTOCOLS
            .iter()
            .any(|name| kept.get(..name.len()).is_some_and(|kept| kept.eq_ignore_ascii_case(name)))
    }
}

impl White {
    /// Whether it parts words.
    pub(super) fn has(self, byte: u8) -> bool {
        match byte {
            b' ' => true,
            b'\t' | 0x0b | 0x0c | b'\r' => self != Self::Space,
            0x1c..=0x1f | 0x85 | 0xa0 => self == Self::Wide,
            _ => false,
        }
    }
}

/// The control characters of Latin-1.
fn is_control(byte: u8) -> bool {
    matches!(byte, 0..=0x1f | 0x7f..=0x9f)
}

#[cfg(test)]
mod tests;
