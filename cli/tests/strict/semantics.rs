//! What the standard asks of whoever carries HTTP/1.1, from a raw socket.

use std::io::Write as _;

use crate::raw::{Wire, response, rest, send, status};
use crate::recorder::Message;
use crate::refusals::Connect;

/// What the recorder behind the listener answers instead of the target.
pub fn answer(message: &Message) -> Option<Vec<u8>> {
    match message.target.as_str() {
        "/chunks" => Some(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n"
                .to_vec(),
        ),
        "/switch" => Some(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x-test\r\n\r\nfrom the other side"
                .to_vec(),
        ),
        "/hint" => Some(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(),
        ),
        _ => None,
    }
}

/// All of it, over connections of one listener.
pub fn check(connect: Connect<'_>) {
    pipelined_requests_are_answered_in_order(connect);
    leave_to_send_a_body_comes_from_the_upstream(connect);
    a_refused_expectation_ends_the_connection(connect);
    a_body_nobody_wanted_does_not_become_a_request(connect);
    connect_is_refused_with_all_that_follows(connect);
    an_upgrade_becomes_a_tunnel(connect);
    http_1_0_gets_no_chunks_and_keeps_its_connection_only_when_asked(connect);
    interim_responses_and_trailers_pass(connect);
}

fn ask(connect: Connect<'_>, request: &str) -> Box<dyn Wire> {
    let mut wire = connect();
    send(&mut *wire, request.as_bytes());
    wire
}

fn pipelined_requests_are_answered_in_order(connect: Connect<'_>) {
    let post = |n: u8| format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    let get = |n: u8| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut wire = ask(connect, &[get(1), post(2), get(3), post(4), get(5)].concat());
    for n in 1..=5u8 {
        assert_eq!(response(&mut *wire).1, format!("/{n}"));
    }
}

fn leave_to_send_a_body_comes_from_the_upstream(connect: Connect<'_>) {
    let head = "POST /leave HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let mut wire = ask(connect, head);
    assert_eq!(status(&response(&mut *wire).0), 100);
    wire.write_all(b"hello").unwrap();
    wire.flush().unwrap();
    let (head, body) = response(&mut *wire);
    assert_eq!((status(&head), body.as_str()), (200, "/leave"));
    // One that does not wait is served as well.
    let mut wire = ask(
        connect,
        "POST /at-once HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    );
    assert_eq!(response(&mut *wire).1, "/at-once");
}

fn a_refused_expectation_ends_the_connection(connect: Connect<'_>) {
    let head = "POST /no HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let mut wire = ask(connect, head);
    let (head, _) = response(&mut *wire);
    assert_eq!(status(&head), 401);
    // Whether the body will come is unknown; what comes next must not be taken for it.
    assert!(head.contains("connection: close\r\n"), "{head}");
    wire.finish();
    assert_eq!(rest(&mut *wire), "");
}

fn a_body_nobody_wanted_does_not_become_a_request(connect: Connect<'_>) {
    let inner = "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n";
    let outer = format!("POST /denied HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}", inner.len());
    let mut wire = ask(connect, &format!("{outer}GET /next HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!(response(&mut *wire).1, "/denied");
    assert_eq!(response(&mut *wire).1, "/next");
}

fn connect_is_refused_with_all_that_follows(connect: Connect<'_>) {
    let request = "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\nGET /tunnel HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut wire = ask(connect, request);
    let answer = rest(&mut *wire);
    assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), (501, 1), "{answer}");
}

fn an_upgrade_becomes_a_tunnel(connect: Connect<'_>) {
    let request = "GET /switch HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x-test\r\n\r\n";
    let mut wire = ask(connect, request);
    let answer = rest(&mut *wire);
    assert_eq!(status(&answer), 101);
    assert!(answer.to_lowercase().contains("upgrade: x-test\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nfrom the other side"), "{answer}");
}

fn http_1_0_gets_no_chunks_and_keeps_its_connection_only_when_asked(connect: Connect<'_>) {
    let answer = rest(&mut *ask(connect, "GET /chunks HTTP/1.0\r\nHost: a\r\n\r\n"));
    assert!(answer.ends_with("\r\n\r\nhi") && !answer.contains("chunked"), "{answer}");
    let answer = rest(&mut *ask(connect, "GET /plain HTTP/1.0\r\nHost: a\r\n\r\nGET /more HTTP/1.0\r\n\r\n"));
    assert!(answer.ends_with("\r\n\r\n/plain"), "{answer}");
    let mut wire = ask(connect, "GET /kept HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    let (head, body) = response(&mut *wire);
    assert!(head.contains("connection: keep-alive\r\n") && body == "/kept", "{head}{body}");
    send(&mut *wire, b"GET /last HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(rest(&mut *wire).ends_with("\r\n\r\n/last"));
    // HTTP/1.0 may come without Host.
    assert!(rest(&mut *ask(connect, "GET /nobody HTTP/1.0\r\n\r\n")).ends_with("\r\n\r\n/nobody"));
}

fn interim_responses_and_trailers_pass(connect: Connect<'_>) {
    let mut wire = ask(connect, "GET /hint HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let answer = rest(&mut *wire);
    assert!(answer.starts_with("HTTP/1.1 103 ") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let mut wire = ask(connect, "GET /hint HTTP/1.0\r\nHost: a\r\n\r\n");
    let answer = rest(&mut *wire);
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok"),
        "1.0 knows none: {answer}"
    );
    let mut wire = ask(connect, "GET /chunks HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let answer = rest(&mut *wire);
    assert!(answer.ends_with("2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n"), "{answer}");
}
