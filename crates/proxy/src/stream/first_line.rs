//! Whether what comes through an opaque tunnel is HTTP after all.
//!
//! The sidecar of an application tells it who calls and keeps requests within its policies. What reaches the application as
//! mere bytes has passed all of that by, so bytes that it would take for a request must not come that way, whatever the
//! caller's proxy took them for: who calls decides when it sends which byte.
//!
//! Servers differ in what they take for a request, so this goes by all that any common one takes, not by the standard. Each reads a
//! line of a method, white space and more, and acts on nothing before the line's end (or the connection's); most skip empty lines
//! before it, Netty every control byte. Then either two words stand behind the method of which the second is a version (Netty takes
//! any protocol's, nginx and Python spaces behind it and `1.01`, Node RTSP's), or what stands there is a path (HTTP/0.9, which Node,
//! nginx, Python and Tomcat still serve, most of them with header fields). A header of the PROXY protocol may come first; what
//! stands behind it is looked at instead.
//!
//! ```text
//!  Lead ──▶ Method ──white──▶ Gap ──▶ Rest ──LF, end──▶ Over
//!   ▲ │        │               │        │                └─ two words, of which the last is a version, or one path: HTTP
//!   │ │        │               │        └─ a method in capitals and `scheme://`: HTTP
//!   │ │        │               └─ a method in capitals and `/` or `*`: HTTP
//!   │ │        └─ what cannot be a method: Over
//!   └─┴─ behind a PROXY header
//! ```
//!
//! Other text protocols look alike where nobody has declared them: RTSP, SIP, Livestatus. Theirs is a port that declares `tcp`.

/// No server reads a longer line (Go's takes 1 MiB of head). What is skipped before it has no end with some of them.
const LONGEST: usize = 1 << 21;
/// Of the first word so much is kept; longer ones are none that is looked for.
const WORD: usize = 8;
/// What the second version of the PROXY protocol begins with, before a word that is `QUIT`.
const SIGNATURE: &[u8; 7] = b"\r\n\r\n\0\r\n";

/// What is known of the first line so far.
#[derive(Debug, Default)]
pub(super) struct FirstLine {
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
    /// The beginning of its first word, its length, and whether all of it is capital letters, `-` or `_`.
    method: [u8; WORD],
    method_len: usize,
    is_capital: bool,
    /// Words behind the method, whether the first of them begins like a path, and how far the last one is a version, or the first
    /// one the beginning of a URL.
    words: usize,
    is_path: bool,
    version: Version,
    scheme: Scheme,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing but what servers skip has come.
    #[default]
    Lead,
    Method,
    /// White space behind the method.
    Gap,
    /// Behind that.
    Rest,
    /// The text of a PROXY header, up to its line's end.
    Announcement,
    /// So much is missing of the fixed part of a binary one, of which the last two bytes say how long the rest is.
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
enum Version {
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
    /// Looks at the next bytes; true: with them something is there that servers take for a request's first line.
    pub(super) fn shows_http(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if self.stage == Stage::Over {
                return false;
            }
            if self.takes(*byte) {
                self.stage = Stage::Over;
                return true;
            }
        }
        false
    }

    /// Nothing more comes; true: servers take what is there for a request, as if its line had ended.
    pub(super) fn ends_as_http(&mut self) -> bool {
        let is_line = matches!(self.stage, Stage::Gap | Stage::Rest);
        self.stage = Stage::Over;
        is_line && self.line.is_request(self.lead_is_odd)
    }

    fn takes(&mut self, byte: u8) -> bool {
        match self.stage {
            Stage::Lead => self.before(byte),
            Stage::Method => self.of_method(byte),
            Stage::Gap | Stage::Rest => return self.behind(byte),
            Stage::Announcement => {
                if byte == b'\n' {
                    self.begins_anew();
                }
            }
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
        *self = Self { announced: true, ..Self::default() };
    }

    fn before(&mut self, byte: u8) {
        if byte == b'\n' || is_white(byte) || is_control(byte) {
            self.lead_is_odd |= byte != b'\n' && !is_white(byte);
            self.lead = self.lead.saturating_add(1);
            self.lead_ends.rotate_left(1);
            self.lead_ends[SIGNATURE.len() - 1] = byte;
            return;
        }
        self.stage = Stage::Method;
        self.line.is_capital = true;
        self.line.add(byte);
    }

    fn of_method(&mut self, byte: u8) {
        let line = &mut self.line;
        self.stage = match byte {
            b'\n' => {
                let is_signature = self.lead == SIGNATURE.len() && self.lead_ends == *SIGNATURE;
                match is_signature && line.is_method(b"QUIT") && !self.announced {
                    true => Stage::Binary { fixed: 4, length: 0 },
                    false => Stage::Over,
                }
            }
            _ if is_white(byte) => match self.lead == 0 && line.is_method(b"PROXY") && !self.announced {
                true => Stage::Announcement,
                false => Stage::Gap,
            },
            _ if is_control(byte) => Stage::Over,
            _ => {
                line.add(byte);
                match line.method_len > LONGEST {
                    true => Stage::Over,
                    false => Stage::Method,
                }
            }
        };
    }

    /// Behind the method and white space.
    fn behind(&mut self, byte: u8) -> bool {
        let line = &mut self.line;
        line.length += 1;
        if byte == b'\n' {
            self.stage = Stage::Over;
            return line.is_request(self.lead_is_odd);
        }
        if is_white(byte) {
            self.stage = Stage::Gap;
        } else if line.goes_on(byte, self.stage == Stage::Gap) && !self.lead_is_odd {
            return true;
        } else {
            self.stage = Stage::Rest;
        }
        if line.length > LONGEST {
            self.stage = Stage::Over;
        }
        false
    }
}

impl Line {
    fn add(&mut self, byte: u8) {
        if let Some(place) = self.method.get_mut(self.method_len) {
            *place = byte;
        }
        self.method_len += 1;
        self.is_capital &= byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_');
    }

    fn is_method(&self, word: &[u8]) -> bool {
        self.method.get(..self.method_len) == Some(word)
    }

    /// The next byte of a word behind the method; true: whatever follows, this is a request to some server.
    fn goes_on(&mut self, byte: u8, begins: bool) -> bool {
        if begins {
            self.words += 1;
            self.version = Version::None;
        }
        self.version = match (self.version, byte) {
            (Version::None, b'/') => Version::None,
            (_, b'/') => Version::Slash,
            (Version::Slash | Version::Major, b'0'..=b'9') => Version::Major,
            (Version::Major, b'.') => Version::Dot,
            (Version::Dot | Version::Minor, b'0'..=b'9') => Version::Minor,
            _ => Version::Name,
        };
        if self.words != 1 {
            return false;
        }
        if begins {
            self.is_path = matches!(byte, b'/' | b'*');
            self.scheme = if byte.is_ascii_alphabetic() { Scheme::Name } else { Scheme::None };
        } else {
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
        self.is_path && self.is_capital && self.method_len >= 3
    }

    /// Whether the line that ends here is one. `versioned`: only with a version.
    fn is_request(&self, versioned: bool) -> bool {
        match self.words {
            2 => self.version == Version::Minor,
            // Python takes any word for a path, and Tomcat any method; memcached's keys may look like one.
            1 if !versioned => {
                self.is_method(b"GET") || self.is_path && !self.is_method(b"get") && !self.is_method(b"gets")
            }
            _ => false,
        }
    }
}

/// What some server takes for white space in a line: Python's `str.split` of Latin-1 the most.
fn is_white(byte: u8) -> bool {
    matches!(byte, b'\t' | 0x0b | 0x0c | b'\r' | 0x1c..=0x1f | b' ' | 0x85 | 0xa0)
}

/// The control characters of Latin-1.
fn is_control(byte: u8) -> bool {
    matches!(byte, 0..=0x1f | 0x7f..=0x9f)
}

#[cfg(test)]
mod tests;
