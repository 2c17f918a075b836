use meshwork_decision::{Change, SnapshotBuilder};
use meshwork_messages::v1;
use proptest::prelude::*;

use super::*;

impl Watch {
    /// Before an application of which nothing is known.
    pub(in crate::stream) fn of_unknown() -> Self {
        Self::new(App { inbound: inbound(), port: 8080 })
    }
}

/// An application that listens at 8080.
fn inbound() -> Arc<Inbound> {
    let served = v1::workload::Served {
        service: "shop/db".to_owned(),
        service_port: 80,
        app_port: 8080,
        ..Default::default()
    };
    let spiffe_id = "spiffe://m/ns/shop/sa/db".to_owned();
    let workload = v1::Workload { spiffe_id, services: vec![served], ..Default::default() };
    let mut builder = SnapshotBuilder::new();
    assert!(builder.apply([Change::upsert("shop/db-1", "1", &workload)]).is_empty());
    Arc::clone(builder.build().inbound().expect("it is told"))
}

#[test]
fn where_the_application_has_answered_others_in_http_nothing_more_goes_that_could_be_a_request() {
    // What was said, what was answered, and whether it is known then that this tunnel carries something else.
    for (said, answered, is_other) in [
        ("", "", false),
        ("\n", "", false),
        ("m1 a:80\n", "pong\n", false),
        ("ping\n", "pong\n", true),
        ("", "220 ready\n", true),
    ] {
        let inbound = inbound();
        let mut watch = Watch::new(App { inbound: Arc::clone(&inbound), port: 8080 });
        assert!(!watch.shows_http(said.as_bytes()) && !watch.is_answer(answered.as_bytes()));
        watch.answered(answered.as_bytes());
        assert!(inbound.ports[0].state.shows_http());
        assert_eq!(watch.shows_http(b"\n"), !is_other, "{said:?}, {answered:?}");
    }
}

const SAYS_WHO_CALLS: [&[u8]; 27] = [
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
    // Netty before 4.1.42, webfs.
    b"x-forwarded-client-cert a: b",
    b"X-Forwarded-Client-Cert x\r\n",
    b"x-forwarded-client-cert\tURI=spiffe://a",
    b"x-forwarded-client-cert\x1cURI=spiffe://a",
    b"x-forwarded-client-cert\0",
    b"x-forwarded-client-cert\xa0",
    b"x-forwarded-client-cert;x",
    b"x-forwarded-client-cert=x",
    b"x-forwarded-client-cert\r;",
    b"X-Forwarded-Client-Cert\r\n URI=spiffe://a",
    b"X-Forwarded-Client-Cert\n\tURI=spiffe://a",
    b"X-Forwarded-Client-Cert\r URI=spiffe://a",
    b"X-Forwarded-Client-Cert\r\n\r\n\x0bURI=spiffe://a",
];

const SAYS_NOTHING: [&[u8]; 9] = [
    b"x-forwarded-client-cert",
    b"x-forwarded-client-certs: a",
    b"a x-forwarded-client-cert: a",
    b"x-forwarded-client--cert: a",
    b"x-forwarded-client-cert-chain: a",
    b"x-forwarded-client-cert_of: a",
    b"x1forwarded1client1cert: a",
    b"x-forwarded-client-cert\r\nhost: a",
    // A key or a field's name in what Redis is told.
    b"$23\r\nx-forwarded-client-cert\r\n$1\r\na\r\n",
];

/// In any two parts, behind a line that some server takes for a request and nobody knows.
fn breaks(text: &[u8], cut: usize) -> bool {
    let mut watch = Watch::of_unknown();
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
        let mut watch = Watch::of_unknown();
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
    let mut watch = Watch::of_unknown();
    assert!(!watch.shows_http(b"m a:80 +OK\n\n"));
    assert!(!watch.is_answer(b"+OK 200 OK\r\n\r\n"));
    watch.answered(b"+OK 200 OK\r\n\r\n");
    assert!(watch.shows_http(b"m a:80 +OK\nx-forwarded-client-cert: a\n"));
}

/// uWSGI passes over what it does not understand.
#[test]
fn a_first_line_of_redis_s_protocol_is_no_reason_to_look_away() {
    let mut watch = Watch::of_unknown();
    assert!(!watch.shows_http(b"*1\r\nGET a X\r\nHost: a\r\n\r\n"));
    watch.answered(b"X 200 OK\r\n\r\n");
    assert!(watch.shows_http(b"GET a X\r\nX-Forwarded-Client-Cert: a\r\n"));
}

/// It took the first line for a request, and answered it with the caller's own word.
#[test]
fn a_later_answer_of_http_says_that_there_are_requests_after_all() {
    let mut watch = Watch::of_unknown();
    assert!(!watch.shows_http(b"GET a X\r\nHost: a\r\n\r\n"));
    watch.answered(b"X 200 OK\r\n\r\n");
    // What it answered with may be anything.
    assert!(!watch.is_answer(b"HTTP/1.1 is what this page is about"));
    assert!(!watch.shows_http(b"DELETE /admin HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert!(!watch.is_answer(b"see HTTP/1.1 "));
    assert!(watch.is_answer(b"HTTP/1.1 200 OK\r\n\r\n"));
}

/// What was told to be kept, and is read later, may be an answer of somebody else.
#[test]
fn whoever_was_asked_nothing_like_a_request_answers_what_it_likes() {
    let mut watch = Watch::of_unknown();
    assert!(!watch.shows_http(b"*1\r\n$4\r\nPING\r\n"));
    watch.answered(b"+PONG\r\n");
    assert!(!watch.shows_http(b"get a b\n"));
    assert!(!watch.is_answer(b"HTTP/1.1 200 OK\r\n\r\n"));
}

/// PostgreSQL asks for a password after it has begun, of which the length is a line's end.
#[test]
fn what_the_caller_says_to_an_answer_that_has_begun_is_not_asked() {
    let mut watch = Watch::of_unknown();
    assert!(!watch.shows_http(b"\0\0\0\x29\0\x03\0\0user\0a\0application_name\0a b\0\0"));
    watch.answered(b"R\0\0\0\x08\0\0\0\x03");
    assert!(!watch.shows_http(b"p\0\0\0\x0aabcde\0"));
    watch.answered(b"R\0\0\0\x08\0\0\0\0S\0\0\0\x16application_name\0a b\0");
    assert!(!watch.shows_http(b"Q\0\0\0\x40select '\nx-forwarded-client-cert: By=x\n'\0"));
}

#[test]
fn an_answer_of_http_is_known_in_any_parts() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\n"[..],
        b"HTTP/1.0",
        b"\r\nHTTP/1.1 400",
        b"FOO/1.1 200",
        b"/HTTP/1.1 200",
        b"\x7fX/1.1 200",
        b"\x7f/1.1 200",
        b"\x7f/\x7f/1.1 200",
        b"A-LONG-NAME-OF-A-PROTOCOL/10.12 200",
    ] {
        for cut in 0..answer.len() {
            let mut watch = Watch::of_unknown();
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
        let mut watch = Watch::of_unknown();
        let (one, other) = text.split_at(cut);
        assert!(!watch.shows_http(one) && watch.shows_http(other), "at {cut}");
    }
    // Logs have that line.
    assert!(
        !Watch::of_unknown().shows_http(b"192.0.2.1 \"PRI * HTTP/2.0\" 400\r\n\r\nPRI * HTTP/2.0\r\n\r\n")
    );
}

/// A server of HTTP/2 says its settings before anybody has asked for something.
#[test]
fn settings_of_http_2_are_no_reason_to_look_away() {
    let mut watch = Watch::of_unknown();
    let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
    assert!(!watch.is_answer(settings));
    watch.answered(settings);
    assert!(watch.shows_http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
}

/// Whether the text begins with what is left of the name, perhaps over a line's end, and what ends it.
fn is_name(name: &[u8], text: &[u8]) -> bool {
    let Some((byte, text)) = text.split_first() else { return false };
    let Some((own, names)) = name.split_first() else {
        return match byte {
            b'\n' => goes_on_late(text),
            // A CR may take a byte with it.
            b'\r' => {
                is_name(b"", text)
                    || text.split_first().is_some_and(|(cut, text)| match cut {
                        b'\n' => goes_on_late(text),
                        _ => is_name(b"", text),
                    })
            }
            _ => !byte.is_ascii_alphanumeric() && !b"-_".contains(byte),
        };
    };
    let is_end = matches!(byte, b'\r' | b'\n');
    let is_cut = *byte == b'\r' && text.split_first().is_some_and(|(_, text)| is_name(name, text));
    let goes_on = match own {
        b'-' => !byte.is_ascii_alphanumeric() && is_name(names, text),
        own => byte.eq_ignore_ascii_case(own) && is_name(names, text),
    };
    goes_on || is_end && is_name(name, text) || is_cut
}

/// Whether what begins here goes on with the line that was the name.
fn goes_on_late(text: &[u8]) -> bool {
    let Some((byte, text)) = text.split_first() else { return false };
    match byte {
        b'\n' => goes_on_late(text),
        b'\r' => goes_on_late(text) || text.split_first().is_some_and(|(_, text)| goes_on_late(text)),
        _ => *byte == b':' || !byte.is_ascii_graphic(),
    }
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
