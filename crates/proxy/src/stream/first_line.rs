//! Whether what comes through an opaque tunnel is HTTP after all.
//!
//! The sidecar of an application tells it who calls and keeps requests within its policies. What reaches the application as
//! mere bytes has passed all of that by, so bytes that it would take for a request must not come that way, whatever the
//! caller's proxy took them for: who calls decides when it sends which byte. All that servers take for HTTP begins with a line
//! of a method, white space and more, and ends with the version; some skip empty lines or spaces before it. Nothing is held back
//! for this: until that line has ended no server acts on it.

use memchr::memchr;

/// No server reads a longer line (Go's takes 1 MiB of head).
const LONGEST: usize = 1 << 21;
/// The version, and what may stand behind it.
const TAIL: usize = 16;

/// What is known of the first line so far.
#[derive(Debug, Default)]
pub(super) struct FirstLine {
    stage: Stage,
    /// Its length until now.
    length: usize,
    /// Its last bytes, of which the newest stands last.
    tail: [u8; TAIL],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing but white space has come.
    #[default]
    Before,
    Method,
    /// Behind the method.
    Rest,
    /// It is no request, or nobody knows any more.
    Over,
}

impl FirstLine {
    /// Looks at the next bytes; true: with them a line is there that servers take for a request's.
    pub(super) fn shows_http(&mut self, mut bytes: &[u8]) -> bool {
        while let [first, rest @ ..] = bytes {
            match self.stage {
                Stage::Over => return false,
                Stage::Rest => return self.look_for_end(bytes),
                Stage::Before if first.is_ascii_whitespace() => {}
                Stage::Before | Stage::Method if is_of_method(*first) => self.stage = Stage::Method,
                Stage::Method if matches!(first, b' ' | b'\t') => self.stage = Stage::Rest,
                Stage::Before | Stage::Method => self.stage = Stage::Over,
            }
            self.length += 1;
            if self.length > LONGEST {
                self.stage = Stage::Over;
            }
            bytes = rest;
        }
        false
    }

    fn look_for_end(&mut self, bytes: &[u8]) -> bool {
        let end = memchr(b'\n', bytes);
        let line = &bytes[..end.unwrap_or(bytes.len())];
        self.length += line.len();
        if let Some(whole) = line.last_chunk::<TAIL>() {
            self.tail = *whole;
        } else {
            self.tail.rotate_left(line.len());
            self.tail[TAIL - line.len()..].copy_from_slice(line);
        }
        if end.is_none() && self.length <= LONGEST {
            return false;
        }
        self.stage = Stage::Over;
        end.is_some() && ends_with_version(&self.tail)
    }
}

/// A byte of a token (RFC 9110 section 5.6.2).
fn is_of_method(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn ends_with_version(line: &[u8]) -> bool {
    let Some([name @ .., b'/', major, b'.', minor]) = line.trim_ascii_end().last_chunk::<8>() else {
        return false;
    };
    name.eq_ignore_ascii_case(b"HTTP") && major.is_ascii_digit() && minor.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\n",
        b"get / HTTP/1.0\r\n",
        b"\r\n\r\n \tPOST /a?b HTTP/1.1 \r\n",
        b"X-ANY\thttp://a/ http/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\n",
    ];
    const OTHER: &[&[u8]] = &[
        b"EHLO host.example\r\nGET / HTTP/1.1\r\n",
        b"get /key\r\nget / HTTP/1.1\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"CONNECT {\"verbose\":false}\r\n",
        b"\x16\x03\x01\x00\xa5GET / HTTP/1.1\r\n",
        b"\0\0\0\x2a\x03INSERT 'GET / HTTP/1.1\r\n",
        b"AMQP\0\0\x09\x01GET / HTTP/1.1\r\n",
        b"GET /\r\n",
        b"GET / HTTP/1.1",
        b"",
    ];

    #[test]
    fn a_request_shows_itself_with_the_end_of_its_line_however_it_comes_and_nothing_else_does() {
        for (text, is_http) in HTTP.iter().map(|t| (t, true)).chain(OTHER.iter().map(|t| (t, false))) {
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
    fn a_line_without_an_end_is_watched_as_long_as_any_server_would_read() {
        let mut line = FirstLine::default();
        assert!(!line.shows_http(b"GET /"));
        for _ in 0..16 {
            assert!(!line.shows_http(&[b'a'; 64 * 1024]));
        }
        assert!(line.shows_http(b" HTTP/1.1\r\n"), "a mebibyte");
        let mut line = FirstLine::default();
        assert!(!line.shows_http(b"GET /"));
        for _ in 0..33 {
            assert!(!line.shows_http(&[b'a'; 64 * 1024]));
        }
        assert!(!line.shows_http(b" HTTP/1.1\r\n"));
    }
}
