//! Whether what comes through an opaque tunnel is HTTP after all.
//!
//! The sidecar of an application tells it who calls and keeps requests within its policies. What reaches the application as
//! mere bytes has passed all of that by, so bytes that it would take for a request must not come that way, whatever the
//! caller's proxy took them for: who calls decides when it sends which byte.
//!
//! Servers differ in what they take for a request, so this goes by all that any common one takes, not by the standard. Each reads a
//! line of a method, white space and more, and acts on nothing before the line's end (or the connection's); most skip empty lines
//! before it, Netty every control byte. Then either a version follows (Netty takes any protocol's, nginx and Python spaces behind
//! it, `1.01`, and Node RTSP's), or what stands behind the method is a path (HTTP/0.9, which Node, nginx, Python and others still serve,
//! header fields and all). A header of the PROXY protocol may hide the line from us, but not from its reader.
//!
//! ```text
//!  Lead ──▶ Method ──white──▶ Gap ──▶ Rest ──LF──▶ Over
//!              │               │        │
//!              │               │        └─ a version: HTTP
//!              │               └─ a method's word and a path: HTTP
//!              └─ what cannot be a method: Over; a PROXY header: refused like HTTP
//! ```
//!
//! Other text protocols look alike where nobody has declared them: RTSP, SIP. Theirs is a port that declares `tcp`.

/// No server reads a longer line (Go's takes 1 MiB of head). What is skipped before it has no end with some of them.
const LONGEST: usize = 1 << 21;
/// Of the first word so much is kept; longer ones are none that is looked for.
const WORD: usize = 8;

/// What is known of the first line so far.
#[derive(Debug, Default)]
pub(super) struct FirstLine {
    stage: Stage,
    /// Control bytes came before, which one server alone skips: to it a request says its version.
    lead_is_odd: bool,
    /// The line's length until now.
    length: usize,
    /// The beginning of its first word, its length, and whether all of it is capital letters, `-` or `_`.
    method: [u8; WORD],
    method_len: usize,
    is_capital: bool,
    /// Words behind the method, and how far the newest, or the last one, is a version or the beginning of a URL.
    words: usize,
    http: usize,
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
    /// Looks at the next bytes; true: with them something is there that servers take for a request, or for what may stand before it.
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

    fn takes(&mut self, byte: u8) -> bool {
        if self.stage != Stage::Lead {
            self.length += 1;
            if self.length > LONGEST {
                self.stage = Stage::Over;
                return false;
            }
        }
        match self.stage {
            Stage::Lead => self.lead(byte),
            Stage::Method => return self.of_method(byte),
            Stage::Gap | Stage::Rest => return self.behind(byte),
            Stage::Over => {}
        }
        false
    }

    fn lead(&mut self, byte: u8) {
        if byte == b'\n' || is_white(byte) {
            return;
        }
        if is_control(byte) {
            self.lead_is_odd = true;
            return;
        }
        self.stage = Stage::Method;
        self.is_capital = true;
        self.add(byte);
    }

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

    fn of_method(&mut self, byte: u8) -> bool {
        match byte {
            // The second version of the PROXY protocol has this in the middle of its signature.
            b'\n' => {
                self.stage = Stage::Over;
                return self.lead_is_odd && self.is_method(b"QUIT");
            }
            _ if is_white(byte) => {
                self.stage = Stage::Gap;
                return self.is_method(b"PROXY");
            }
            _ if is_control(byte) => self.stage = Stage::Over,
            _ => self.add(byte),
        }
        false
    }

    /// Behind the method and white space.
    fn behind(&mut self, byte: u8) -> bool {
        if byte == b'\n' {
            self.stage = Stage::Over;
            return self.words >= 2 && self.version == Version::Minor;
        }
        if is_white(byte) {
            // The word that has ended counts until another one begins.
            self.stage = Stage::Gap;
            return false;
        }
        let begins = std::mem::replace(&mut self.stage, Stage::Rest) == Stage::Gap;
        if begins {
            self.words += 1;
            self.version = Version::None;
        }
        self.is_target(byte, begins) || self.is_version(byte, begins)
    }

    /// Whether a version need not follow: the word behind a method is a path or a URL.
    fn is_target(&mut self, byte: u8, begins: bool) -> bool {
        if self.words != 1 || self.lead_is_odd || !self.is_capital || self.method_len < 3 {
            return false;
        }
        if begins {
            self.scheme = if byte.is_ascii_alphabetic() { Scheme::Name } else { Scheme::None };
            // Python takes any word for one.
            return matches!(byte, b'/' | b'*') || self.is_method(b"GET");
        }
        self.scheme = match (self.scheme, byte) {
            (Scheme::Name, b':') => Scheme::Colon,
            (Scheme::Name, _) if byte.is_ascii_alphanumeric() || b"+-.".contains(&byte) => Scheme::Name,
            (Scheme::Colon, b'/') => Scheme::Slash,
            (Scheme::Slash, b'/') => return true,
            _ => Scheme::None,
        };
        false
    }

    /// Whether the word is one of HTTP's versions; of another protocol's only the line's end tells.
    fn is_version(&mut self, byte: u8, begins: bool) -> bool {
        const HTTP: &[u8] = b"HTTP/";
        let http = if begins { 0 } else { self.http };
        if http == HTTP.len() && byte.is_ascii_digit() {
            return true;
        }
        let goes_on = HTTP.get(http).is_some_and(|wanted| byte.eq_ignore_ascii_case(wanted));
        self.http = if goes_on { http + 1 } else { HTTP.len() + 1 };
        self.version = match (self.version, byte) {
            (Version::None, b'/') => Version::None,
            (_, b'/') => Version::Slash,
            (Version::Slash | Version::Major, b'0'..=b'9') => Version::Major,
            (Version::Major, b'.') => Version::Dot,
            (Version::Dot | Version::Minor, b'0'..=b'9') => Version::Minor,
            _ => Version::Name,
        };
        false
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
mod tests {
    use super::*;

    /// With the servers that serve it, where it is not the standard's.
    const HTTP: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\n",
        b"get / HTTP/1.0\r\n",
        b"\r\n\r\n \tPOST /a?b HTTP/1.1 \r\n",
        b"X-ANY\thttp://a/ http/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\n",
        b"m a HTTP/1.1", // Python, at the end of the connection
        b"m /admin HTTP/1.1                            \r\n", // nginx, Python
        b"m /admin HTTP/1.01\r\n", // nginx, Python
        b"GET /admin RTSP/1.1\r\n", // Node
        b"OPTIONS rtsp://a/admin RTSP/1.0\r\n", // Node
        b"m admin X/1.1\r\n", // Netty
        b"m a b/c/X/10.12 \t\r\n", // no server known
        b"\0GET /admin HTTP/1.1\r\n", // Netty
        b"\x16\x03\x01\0\xa5GET / HTTP/1.1\r\n", // Netty, to which \xa5 is of the method
        b"GET\x0b/admin\x1cHTTP/1.1\r\n", // Python
        b"\x85GET\xa0/admin\x1fHTTP/1.1\r\n", // Python
        b"GET\r/admin\rHTTP/1.1\r\n", // Python
        b"GET /admin\r\nHost: a\r\n\r\n", // Node, nginx, Python
        b"M-SEARCH *\r\n", // Node
        b"POST http://a\r\n", // Node
        b"GET admin\r\n", // Python
        b"GET /",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nm / HTTP/1.1\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
    ];
    const OTHER: &[&[u8]] = &[
        b"EHLO host.example\r\nGET / HTTP/1.1\r\n",
        b"HELLO client/1.0\r\nGET / HTTP/1.1\r\n",
        b"get /key\r\nget / HTTP/1.1\r\n",
        b"set /key 0 0 5\r\nhello\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"CONNECT {\"verbose\":false,\"lang\":\"go\",\"name\":\"a/1.2 \"}\r\n",
        b"CONNECT\nhost:a\n",
        b"SSH-2.0-OpenSSH_9.2p1 Debian/1.0\r\n",
        b"QUIT\r\n",
        b"QUIT\n",
        b"A / b\r\n",
        b"\0\0\0\x2a\x03INSERT 'GET / HTTP/1.1\r\n",
        b"\0\0\0\x05GET /admin\r\n",
        b"AMQP\0\0\x09\x01GET / HTTP/1.1\r\n",
        b"<?xml version='1.0'?><a b='c/1.0'/>\n",
        b"word",
        b"word other",
        b"m a HTTP/",
        b"m a HTTPS/1.x\r\n",
        b"m X/1.1\r\n",
        b"",
    ];

    #[test]
    fn a_request_shows_itself_however_it_comes_and_nothing_else_does() {
        let texts = HTTP.iter().map(|text| (text, true)).chain(OTHER.iter().map(|text| (text, false)));
        for (text, is_http) in texts {
            for cut in 0..=text.len() {
                let mut line = FirstLine::default();
                let shown = [&text[..cut], &text[cut..]].map(|part| line.shows_http(part));
                assert_eq!(shown.contains(&true), is_http, "{} at {cut}", text.escape_ascii());
            }
            let mut line = FirstLine::default();
            let shown = text.chunks(1).filter(|byte| line.shows_http(byte)).count();
            assert_eq!(shown, usize::from(is_http), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn it_shows_itself_before_the_end_of_its_line() {
        for text in HTTP.iter().filter(|text| text.contains(&b'/')) {
            let begin = text.iter().position(u8::is_ascii_graphic).unwrap_or_default();
            let end = begin
                + text[begin..].iter().position(|byte| *byte == b'\n').unwrap_or(text.len() - begin - 1);
            let mut line = FirstLine::default();
            assert!(line.shows_http(&text[..=end]), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn what_servers_skip_before_a_line_has_no_end() {
        for skipped in [&b"\r\n"[..], b" \r\n", b"\0\x01\x7f\n"] {
            let mut line = FirstLine::default();
            for _ in 0..2 {
                assert!(!line.shows_http(&skipped.repeat(LONGEST / skipped.len() + 1)));
            }
            assert!(line.shows_http(b"GET /admin HTTP/1.1\r\n"), "{}", skipped.escape_ascii());
        }
    }

    #[test]
    fn a_line_without_an_end_is_watched_as_long_as_any_server_would_read() {
        let long = |mebibytes: usize| {
            let mut line = FirstLine::default();
            assert!(!line.shows_http(b"m "));
            for _ in 0..mebibytes * 16 {
                assert!(!line.shows_http(&[b'a'; 64 * 1024]));
            }
            line.shows_http(b" HTTP/1.1\r\n")
        };
        assert!(long(1));
        assert!(!long(2));
    }

    /// TLS, and whatever begins with chance: what would break it breaks one connection in so many of somebody's.
    #[test]
    fn handshakes_of_tls_are_no_requests_whatever_their_lengths() {
        for length in 0..=0x4000_u16 {
            let [high, low] = length.to_be_bytes();
            let [inner_high, inner_low] = length.saturating_sub(4).to_be_bytes();
            let mut hello = vec![0x16, 3, 1, high, low, 1, 0, inner_high, inner_low, 3, 3];
            hello.extend_from_slice(b"/* GET / HTTPS \x20\x20/1.1\x20 and so on\0\0");
            assert!(!FirstLine::default().shows_http(&hello), "{length:#x}");
        }
    }
}
