use proptest::prelude::*;

use super::*;

const SAYS_WHO_CALLS: [&[u8]; 9] = [
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

#[test]
fn an_answer_of_http_is_known_in_any_parts() {
    for answer in [&b"HTTP/1.1 200 OK\r\n"[..], b"HTTP/1.0", b"\r\nHTTP/1.1 400", b"FOO/1.1 200"] {
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

/// A server of HTTP/2 says its settings before anybody has asked for something.
#[test]
fn settings_of_http_2_are_no_reason_to_look_away() {
    let mut watch = Watch::new();
    let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
    assert!(!watch.is_answer(settings));
    watch.answered(settings);
    assert!(watch.shows_http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
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
        let is_plainly = |line: &[u8]| {
            let blanks = line.iter().take_while(|byte| !byte.is_ascii_graphic()).count();
            let name = &line[blanks..];
            name.iter().position(|byte| *byte == b':').is_some_and(|colon| {
                let end = name[..colon].iter().rposition(u8::is_ascii_graphic).map_or(0, |at| at + 1);
                let name = &name[..end];
                name.len() == 23
                    && name.iter().zip(b"x-forwarded-client-cert").all(|(byte, own)| match own {
                        b'-' => !byte.is_ascii_alphanumeric(),
                        own => byte.eq_ignore_ascii_case(own),
                    })
            })
        };
        let without_cr = |line: &[u8]| line.iter().copied().filter(|byte| *byte != b'\r').collect::<Vec<_>>();
        let plain = text.split(|byte| *byte == b'\n').any(|line| {
            is_plainly(&without_cr(line)) || line.split(|byte| *byte == b'\r').any(is_plainly)
        });
        let mut field = Field::default();
        let found = text.chunks(size).any(|part| field.is_in(part));
        // A CR that is nothing in one place and ends a line in another of the same line may be told as well.
        prop_assert!(found || !plain, "{}", text.escape_ascii());
        prop_assert!(!found || plain || text.contains(&b'\r'), "{}", text.escape_ascii());
    }
}
