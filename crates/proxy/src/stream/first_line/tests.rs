use proptest::prelude::*;

use super::*;
use crate::stream::watch::Watch;

/// With the servers that serve it, where it is not the standard's.
const HTTP: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\n",
    b"get / HTTP/1.0\r\n",
    b"\r\n\r\n \tPOST /a?b HTTP/1.1 \r\n",
    b"X-ANY\thttp://a/ http/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\n",
    b"m /admin HTTP/1.1                            \r\n", // nginx, Python
    b"m /admin HTTP/1.01\r\n",                            // nginx, Python
    b"GET /admin RTSP/1.1\r\n",                           // Node
    b"OPTIONS rtsp://a/admin RTSP/1.0\r\n",               // Node
    b"m /admin X/10.12 \t\r\n",                           // Netty
    b"\0GET /admin HTTP/1.1\r\n",                         // Netty
    b"\x16\x03\x01\0\xa5GET / HTTP/1.1\r\n",              // Netty, to which \xa5 is of the method
    b"get /x HTTP/1.1\x01\r\n",                           // Netty
    b"GET\x0b/admin\x1cHTTP/1.1\r\n",                     // Python
    b"\x85GET\xa0/admin\x1fHTTP/1.1\r\n",                 // Python
    b"GET\r/admin\rHTTP/1.1\r\n",                         // Python
    b"m /a\x01b HTTP/1.1\r\n",                            // Python
    b"G\x01T /x?\x1c HTTP/1.1\r\n",                       // Python
    b"GET\x80 * HTTP/1.0\r\n",                            // Python
    b"m\0: * HTTP/1.1\x0b\r\n",                           // Python
    b"GET /admin\r\nHost: a\r\n\r\n",                     // Node, nginx, Python
    b"POST http://a\r\n",                                 // Node
    b"CONNECT a:80\r\n",                                  // Node
    b"GET admin\r\n",                                     // Python
    b"POST a:80\r\n",                                     // waitress
    b"POSTV* HTTP/1.1\r\n",                               // waitress
    b" /admin HTTP/1.1\r\n",                              // Tomcat
    b"get /a\xa0b HTTP/1.1\r\n",                          // Go, Apache, Tornado, Twisted: \xa0 is of the path
    b"m http://a/b\x85c HTTP/1.0\r\n",                    // Go, Netty
    b"O http://a/c\xa0 HTTP/1.1\r\n",                     // nginx
    b"AB /a b HTTP/1.1\r\n",                              // old nginx: a space is
    b"get /x HTTP/\r\n",                                  // busybox
    b"m * HTTP/2\r\n",                                    // HAProxy, where told to
    b"GET a b c HTTP/1.1\r\n",                            // evhttp, libmicrohttpd
    b"GET a:80 HTTP/1.1 junk\r\n",                        // Perl
    b"GET a:80 HTTP/1.1_0\r\n",                           // gevent
    b"A /x HTTP/ 1.1\r\n",                                // cheroot
    b"M1 /x?\tb HTTP/1 .1\r\n",                           // cheroot, busybox: the space alone parts words
    b"m\ta\xa0b\tHTTP/1.1\r\n",                           // Netty
    b"\xef\xbb\xbfget x HTTP/1.1\r\n",                    // Perl
    b"m /x HT\rTP/1.0\r\n",                               // busybox: a CR is nothing
    b"\n\r\nm\tx HTTP/1.1\r\n",                           // what is skipped
    b"PROPFIND /x\r\n",                                   // Node
    b"M-SEARCH *\r\n",                                    // Node
    b"UNSUBSCRIBE /x\r\n",                                // Node, PHP
    b"PRI /\r\n",                                         // Node
    b"DESCRIBE /x\r\n",                                   // Node, aiohttp, httptools
    b"GET_PARAMETER *\r\n",                               // Node
    b"SET_PARAMETER http://a/x\r\n",                      // Node
    b"TEARDOWN /x\r\n",                                   // Node
    b"GET /",
    b"PROXY /admin HTTP/1.1\r\n",
    b"PROXY * HTTP/1.1\r\n",
    b"PROXY http://a/admin HTTP/1.1\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nm / HTTP/1.1\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nm /a\xa0b HTTP/1.1\r\n",
    b"PROXY UNKNOWN \nx\r\nGET /admin HTTP/1.1\r\n", // nginx, Envoy, Netty: its end is CR LF alone
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x01\0\x02GET /\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0m / HTTP/1.1\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0m /a\x85b HTTP/1.1\r\n",
];

/// Python takes what has come when the connection ends for a line.
const AT_THE_END: &[&[u8]] = &[b"m a HTTP/1.1", b"m a HTTP/1.1\t", b"GET admin", b"POST a"];

const OTHER: &[&[u8]] = &[
    b"EHLO host.example\r\nGET / HTTP/1.1\r\n",
    b"HELLO client/1.0\r\nGET / HTTP/1.1\r\n",
    b"get /key\r\nget / HTTP/1.1\r\n",
    b"gets /a /b\r\n",
    b"delete /key\r\n",
    b"mg /key\r\n",
    b"set /key 0 0 5\r\nhello\r\n",
    b"SCAN /var/x\n",
    b"use /tube\r\n",
    b"OPTIONS sip:a SIP/2.0\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n",
    b"CONNECT {\"verbose\":false,\"lang\":\"go\",\"name\":\"a/1.2 \"}\r\n",
    b"CONNECT\nhost:a\n",
    b"SSH-2.0-OpenSSH_9.2p1 Debian/1.0\r\n",
    b"NICK one\r\n",
    b"QUIT\r\n",
    b"QUIT\n",
    b"\0QUIT\n",
    b"A / b\r\n",
    b"RECORD a\r\n",
    b"GET_PARAMETERS /a\r\n",
    // Git's second version.
    b"0033git-upload-pack /p.git\0host=a\0\0version=2\0\x30014command=ls-refs\n",
    // Logs are none, also those of requests.
    b"<134>1 2026-11-27T00:00:00Z a nginx - - - 192.0.2.1 \"GET /x HTTP/1.1\" 200\n",
    b"{\"log\":\"192.0.2.1 - - \\\"GET /x HTTP/1.1\\\" 200 \", \"stream\":\"stdout\"}\n",
    b"120 <134>1 2026-11-27T00:00:00Z a b - - - GET /x HTTP/1.1 200",
    b"{\"host\":\"a\", \"short\": GET /x HTTP/1.1\0",
    b"WARN /var/log full\n",
    b"ERROR /etc/x\n",
    b"INFO Started app/1.2\n",
    b"<14>app started x/1.0\n",
    b"\0\0\0\x2a\x03INSERT 'GET / HTTP/1.1\r\n",
    b"\0\0\0\x05GET /admin\r\n",
    b"AMQP\0\0\x09\x01\x01\0\0\0\0\0 GET / HTTP/1.1\r\n",
    b"<?xml version='1.0'?><a b='c/1.0'/>\n",
    // Whoever takes PROXY headers speaks something else behind them.
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nEHLO a\r\n",
    b"PROXY UNKNOWN\r\n\x16\x03\x01\0\x33\x01\0\0\x2f/ a/1.1\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0cGET / HTTP/1*1\r\n$4\r\nPING\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11",
    b"word",
    b"word other",
    b"m a HTTP",
    b"m a HTTPS/1.x\r\n",
    b"m X/1.1\r\n",
    b"",
];

#[test]
fn a_request_shows_itself_however_it_comes_and_nothing_else_does() {
    let texts = HTTP.iter().map(|text| (text, true)).chain(OTHER.iter().map(|text| (text, false)));
    for (text, is_http) in texts {
        for cut in 0..=text.len() {
            let mut line = Watch::of_unknown();
            let shown = [&text[..cut], &text[cut..]].map(|part| line.shows_http(part));
            assert_eq!(shown.contains(&true), is_http, "{} at {cut}", text.escape_ascii());
            assert!(!line.ends_as_http(), "{}", text.escape_ascii());
        }
        let mut line = Watch::of_unknown();
        let shown = text.chunks(1).any(|byte| line.shows_http(byte));
        assert_eq!(shown, is_http, "{}", text.escape_ascii());
    }
}

#[test]
fn a_connection_s_end_is_a_line_s_end() {
    for text in AT_THE_END {
        let mut line = Watch::of_unknown();
        assert!(!line.shows_http(text), "{}", text.escape_ascii());
        assert!(line.ends_as_http(), "{}", text.escape_ascii());
        assert!(!line.ends_as_http(), "it has ended");
    }
}

#[test]
fn it_shows_itself_with_the_end_of_its_line_at_the_latest() {
    for text in HTTP.iter().filter(|text| !text.starts_with(b"PROXY") && !text.contains(&b'Q')) {
        let begin = text.iter().position(u8::is_ascii_graphic).unwrap_or_default();
        let end =
            begin + text[begin..].iter().position(|byte| *byte == b'\n').unwrap_or(text.len() - begin - 1);
        let mut line = Watch::of_unknown();
        assert!(line.shows_http(&text[..=end]), "{}", text.escape_ascii());
    }
}

#[test]
fn what_servers_skip_before_a_line_has_no_end() {
    for skipped in [&b"\r\n"[..], b" \r\n", b"\0\x01\x7f\n"] {
        let mut line = Watch::of_unknown();
        for _ in 0..2 {
            assert!(!line.shows_http(&skipped.repeat(LONGEST / skipped.len() + 1)));
        }
        assert!(line.shows_http(b"GET /admin HTTP/1.1\r\n"), "{}", skipped.escape_ascii());
    }
}

#[test]
fn a_line_without_an_end_is_watched_as_long_as_any_server_would_read() {
    let long = |mebibytes: usize, end: &[u8]| {
        let mut line = Watch::of_unknown();
        assert!(!line.shows_http(b"m "));
        (0..mebibytes * 16).any(|_| line.shows_http(&[b'a'; 64 * 1024])) || line.shows_http(end)
    };
    assert!(long(1, b" HTTP/1.1\r\n") && !long(1, b"\r\n"));
    assert!(long(3, b"\r\n"), "and nobody knows what it ends with");
}

/// Lengths may be any byte, and what follows is chance: no connection in a hundred of somebody's may break.
#[test]
fn handshakes_of_tls_are_no_requests_whatever_their_lengths() {
    for length in 0..=0x4000_u16 {
        let [high, low] = length.to_be_bytes();
        let [inner_high, inner_low] = length.saturating_sub(4).to_be_bytes();
        let mut hello = vec![0x16, 3, 1, high, low, 1, 0, inner_high, inner_low, 3, 3];
        hello.extend_from_slice(b"/* GET / HTTPS \x20\x20/1.1\x20 and so on\0\0");
        let mut line = Watch::of_unknown();
        assert!(!line.shows_http(&hello) && !line.ends_as_http(), "{length:#x}");
    }
}

/// Parts of headers of the PROXY protocol.
const PROXIED: &[&[u8]] = &[b"PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r\n", SIGNATURE, b"QUIT\n!\x11\0\x02ab"];

proptest! {
    /// What may be long is passed over where it comes in one part.
    #[test]
    fn bytes_that_come_one_by_one_say_the_same(
        pieces in prop::collection::vec(
            prop_oneof![
                "[\r\n]{0,12}".prop_map(String::into_bytes),
                "[a-zA-Z]{0,30}".prop_map(String::into_bytes),
                prop::sample::select(HTTP).prop_map(<[u8]>::to_vec),
                prop::sample::select(PROXIED).prop_map(<[u8]>::to_vec),
                prop::collection::vec(any::<u8>(), 0..4),
            ],
            0..6,
        ),
    ) {
        let bytes = pieces.concat();
        for white in [White::Space, White::Narrow, White::Wide] {
            let (mut whole, mut parts) = (FirstLine::new(white), FirstLine::new(white));
            let by_one = bytes.iter().any(|byte| parts.shows_http(&[*byte]));
            prop_assert_eq!(whole.shows_http(&bytes), by_one, "{:?} {}", white, bytes.escape_ascii());
            prop_assert_eq!(whole.ends_as_http(), parts.ends_as_http(), "{:?} {}", white, bytes.escape_ascii());
        }
    }
}
