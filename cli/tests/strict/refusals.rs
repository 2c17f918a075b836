//! The rows of `docs/http.md`, sent to a listener of the binary with a recorder behind it.

use crate::raw::{Wire, response, rest, send, status};
use crate::recorder::{Message, Reader, Recorder};
use crate::rows;

/// How to open a connection to the listener.
pub type Connect<'a> = &'a dyn Fn() -> Box<dyn Wire>;

/// Fields that proxies add.
const ADDED: [&str; 4] = ["x-forwarded-for", "x-forwarded-proto", "x-request-id", "x-forwarded-client-cert"];

/// Sends every row and looks at what comes back.
pub fn send_all(connect: Connect<'_>) {
    heads(connect);
    bodies(connect);
    limits(connect);
    accepted(connect);
}

/// Looks at what was passed on of all rows, which were sent so many times. Whoever passed it on must be gone.
pub fn check_recorded(recorder: Recorder, times: usize) {
    let connections = recorder.finish();
    let mut whole = Vec::new();
    for bytes in &connections {
        let text = String::from_utf8_lossy(bytes);
        let (messages, left) = Reader::STRICT.messages(bytes);
        for reader in Reader::all() {
            assert_eq!(reader.messages(bytes).0, messages, "{reader:?} reads something else: {text}");
        }
        assert!(
            messages.iter().all(|message| message.target != "/chunk"),
            "a refused body was passed on whole: {text}"
        );
        assert!(!left || text.contains(" /chunk "), "{text}");
        whole.extend(messages.into_iter().map(|message| (message, text.clone())));
    }
    let expected: Vec<Message> =
        rows::ACCEPTED.iter().map(|(.., passed)| Reader::STRICT.message(passed).expect("a row").0).collect();
    let seen: Vec<&Message> = whole.iter().map(|(message, _)| message).collect();
    assert_eq!(seen.len(), expected.len() * times, "nothing of a refused head is passed on: {seen:?}");
    assert!(expected.iter().all(|message| seen.contains(&message)), "{seen:?}");
    for (what, _, passed) in rows::ACCEPTED {
        let found: usize = connections.iter().map(|bytes| count(&without(bytes, &ADDED), passed)).sum();
        assert_eq!(found, times, "{what}: exactly this is passed on: {:?}", String::from_utf8_lossy(passed));
    }
}

fn refused(what: &str, answer: &str, cause: &str, expected: u16) {
    if expected == 0 {
        assert_eq!(answer, "", "{what}");
        return;
    }
    assert_eq!(status(answer), expected, "{what}: {answer}");
    assert!(answer.contains("connection: close\r\n"), "{what}: {answer}");
    assert!(answer.contains(&format!(": {cause}: ")), "{what}: the answer names {cause}: {answer}");
    assert_eq!(answer.matches("server: meshwork\r\n").count(), 1, "{what}: {answer}");
}

/// Sends every head that is refused: with something behind it, and alone by a caller that then says that this was all.
pub fn heads(connect: Connect<'_>) {
    for (what, bytes, cause, expected) in rows::REQUESTS {
        let mut wire = connect();
        send(&mut *wire, bytes);
        wire.finish();
        refused(what, &rest(&mut *wire), cause, *expected);
        let mut wire = connect();
        // What comes behind a refused head is not looked at.
        send(&mut *wire, &[bytes, &b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n"[..]].concat());
        refused(what, &rest(&mut *wire), cause, *expected);
    }
}

fn bodies(connect: Connect<'_>) {
    let head = b"POST /chunk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (what, bytes, cause, expected) in rows::CHUNKS {
        let mut wire = connect();
        send(&mut *wire, &[&head[..], bytes].concat());
        if *expected == 0 {
            wire.finish();
        }
        refused(what, &rest(&mut *wire), cause, *expected);
    }
}

fn limits(connect: Connect<'_>) {
    for row in rows::limits() {
        let mut wire = connect();
        send(&mut *wire, &row.bytes);
        let answer = rest(&mut *wire);
        refused(row.what, &answer, row.cause, row.status);
        assert!(answer.contains(&format!("(setting {})", row.setting)), "{}: {answer}", row.what);
    }
}

fn accepted(connect: Connect<'_>) {
    for (what, bytes, _) in rows::ACCEPTED {
        let mut wire = connect();
        send(&mut *wire, bytes);
        let (head, body) = response(&mut *wire);
        assert_eq!(status(&head), 200, "{what}: {head}{body}");
    }
}

fn count(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).filter(|window| *window == part).count()
}

/// The bytes without the lines of these fields.
fn without(bytes: &[u8], names: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let name = line.split(|b| *b == b':').next().unwrap_or_default();
        if !names.iter().any(|n| name.eq_ignore_ascii_case(n.as_bytes())) {
            out.extend_from_slice(line);
        }
    }
    out
}
