use proptest::prelude::*;

use super::*;

const SAYS_WHO_CALLS: [&[u8]; 14] = [
    b"X\rq-Forwarded-Client-Cert:",
    b"a\r!X-Forwarded-Client-Cert:",
    b"X\n-Forwarded-Client\r\n-Cert\n:",
    b"X-Forwarded\r\nClient-C\nert:",
    b"x\r x-forwarded-client-cert:",
    b"\x0bx-forwarded-client-cert:",
    b"x-forwarded-client-cert\x0c:",
    b"X-Forw\rarded-Client-Cert\r:",
    b"x-fo\rx-forwarded-client-cert:",
    b"x-forwarded-client-cert:",
    b"X-Forwarded-Client-Cert: URI=spiffe://a",
    b"X_FORWARDED.CLIENT~CERT \t:",
    b" \tx-forwarded-client-cert:",
    b"\rx-forwarded-client-cert:",
];

const SAYS_NOTHING: [&[u8]; 6] = [
    b"x-forwarded-client-cert",
    b"x-forwarded-client-certs: a",
    b"a x-forwarded-client-cert: a",
    b"x-forwarded-client--cert: a",
    b"x-forwarded-client-cert a: b",
    b"x1forwarded1client1cert: a",
];

/// In any two parts, behind a line that some server takes for a request and nobody knows.
fn breaks(text: &[u8], cut: usize) -> bool {
    let mut watch = Watch::new();
    assert!(!watch.shows_http(b"M1 a:80\r\nhost: a\n"));
    let (one, other) = text.split_at(cut);
    watch.shows_http(one) || watch.shows_http(other)
}

#[test]
fn no_line_says_who_calls_however_it_comes() {
    for (texts, is_known) in [(&SAYS_WHO_CALLS[..], true), (&SAYS_NOTHING[..], false)] {
        for text in texts {
            for cut in 0..=text.len() {
                assert_eq!(breaks(text, cut), is_known, "{} at {cut}", text.escape_ascii());
            }
        }
    }
}

#[test]
fn whoever_has_answered_as_http_does_not_is_looked_at_no_more() {
    let answers =
        [&b"220 ready\r\n"[..], b"+OK\r\n", b"J\0\0\0\x0a8.0", b"HTTQ ", b"\0\0\0\x04\0\0\x01", b"\x05\0"];
    for answer in answers {
        let mut watch = Watch::new();
        assert!(!watch.shows_http(b"*1\r\n$4\r\nPING\r\n"));
        for byte in answer {
            assert!(!watch.is_answer(&[*byte]));
            watch.answered(&[*byte]);
        }
        assert!(
            !watch.shows_http(b"GET / HTTP/1.1\r\nx-forwarded-client-cert:"),
            "{}",
            answer.escape_ascii()
        );
        assert!(!watch.ends_as_http());
    }
}

/// Some servers write what the caller wants into their answers.
#[test]
fn who_could_have_asked_for_something_chooses_no_answer() {
    let mut watch = Watch::new();
    assert!(!watch.shows_http(b"m a:80 +OK\n\n"));
    assert!(!watch.is_answer(b"+OK 200 OK\r\n\r\n"));
    watch.answered(b"+OK 200 OK\r\n\r\n");
    assert!(watch.shows_http(b"m a:80 +OK\nx-forwarded-client-cert: a\n"));
}

/// uWSGI passes over what it does not understand.
#[test]
fn a_first_line_of_redis_s_protocol_is_no_reason_to_look_away() {
    let mut watch = Watch::new();
    assert!(!watch.shows_http(b"*1\r\nGET a X\r\nHost: a\r\n\r\n"));
    watch.answered(b"X 200 OK\r\n\r\n");
    assert!(watch.shows_http(b"GET a X\r\nX-Forwarded-Client-Cert: a\r\n"));
}

#[test]
fn an_answer_of_http_is_known_in_any_parts() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\n"[..],
        b"HTTP/1.0",
        b"\r\nHTTP/1.1 400",
        b"FOO/1.1 200",
        b"/HTTP/1.1 200",
        b"A-LONG-NAME-OF-A-PROTOCOL/10.12 200",
    ] {
        for cut in 0..answer.len() {
            let mut watch = Watch::new();
            let (one, other) = answer.split_at(cut);
            let first = watch.is_answer(one);
            if !first {
                watch.answered(one);
            }
            assert!(first || watch.is_answer(other), "{} at {cut}", answer.escape_ascii());
        }
    }
}

/// Netty's does, when it is asked in HTTP/1 to change.
#[test]
fn http_2_begins_nowhere() {
    let text = b"GET a:80 ICY/1.1\r\nUpgrade: h2c\r\n\r\nPPRI PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for cut in 0..text.len() {
        let mut watch = Watch::new();
        let (one, other) = text.split_at(cut);
        assert!(!watch.shows_http(one) && watch.shows_http(other), "at {cut}");
    }
    // Logs have that line.
    assert!(!Watch::new().shows_http(b"192.0.2.1 \"PRI * HTTP/2.0\" 400\r\n\r\nPRI * HTTP/2.0\r\n\r\n"));
}

/// A server of HTTP/2 says its settings before anybody has asked for something.
#[test]
fn settings_of_http_2_are_no_reason_to_look_away() {
    let mut watch = Watch::new();
    let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
    assert!(!watch.is_answer(settings));
    watch.answered(settings);
    assert!(watch.shows_http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
}

/// Whether the text begins with what is left of the name, perhaps over a line's end, and a colon.
fn is_name(name: &[u8], text: &[u8]) -> bool {
    let Some((byte, text)) = text.split_first() else { return false };
    let is_end = matches!(byte, b'\r' | b'\n') && name.len() < NAME.len();
    // A CR may take a byte with it.
    let is_cut = is_end && *byte == b'\r' && text.split_first().is_some_and(|(_, text)| is_name(name, text));
    let goes_on = match name.split_first() {
        None => *byte == b':' || !byte.is_ascii_graphic() && is_name(name, text),
        Some((b'-', names)) => !byte.is_ascii_alphanumeric() && is_name(names, text),
        Some((own, names)) => byte.eq_ignore_ascii_case(own) && is_name(names, text),
    };
    goes_on || is_end && is_name(name, text) || is_cut
}

proptest! {
    /// As a plain reading has it: a line that begins so, in any parts.
    #[test]
    fn lines_are_read_as_plainly(
        lines in prop::collection::vec(
            prop_oneof![
                prop::sample::select(SAYS_WHO_CALLS.map(<[u8]>::to_vec).to_vec()),
                prop::sample::select(SAYS_NOTHING.map(<[u8]>::to_vec).to_vec()),
                prop::collection::vec(any::<u8>(), 0..12),
            ],
            0..6,
        ),
        size in 1_usize..40,
    ) {
        let text = lines.join(&b'\n');
        let plain = (0..text.len()).any(|at| {
            let begins = matches!(&text[..at], [] | [.., b'\r' | b'\n'] | [.., b'\r', _]);
            begins && (at..text.len()).any(|name| {
                text[at..name].iter().all(|byte| !byte.is_ascii_graphic()) && is_name(&NAME[..], &text[name..])
            })
        });
        let mut field = Field::default();
        let found = text.chunks(size).any(|part| field.is_in(part));
        prop_assert_eq!(found, plain, "{}", text.escape_ascii());
    }
}
