//! What is refused, with which cause and status. `docs/http.md` shows the same table to users.

mod rows;

use meshwork_http1::{
    BodyDecoder, BodyLength, Decoded, HeadScan, Limit, Limits, ParseError, Parsed, RequestHead, RequestKind,
    ResponseHead, parse_request, parse_response,
};
use rows::{ACCEPTED, CHUNKS, REQUESTS, RESPONSES, Row, limits};

fn request(bytes: &[u8]) -> Result<RequestHead, ParseError> {
    let mut head = RequestHead::new();
    match parse_request(bytes, &Limits::default(), &mut HeadScan::default(), &mut head)? {
        Parsed::Done { consumed } if consumed == bytes.len() => Ok(head),
        other => panic!("{other:?} for {:?}", String::from_utf8_lossy(bytes)),
    }
}

fn response(kind: RequestKind, bytes: &[u8]) -> Result<ResponseHead, ParseError> {
    let mut head = ResponseHead::new();
    match parse_response(bytes, &Limits::default(), kind, &mut HeadScan::default(), &mut head)? {
        Parsed::Done { consumed } if consumed == bytes.len() => Ok(head),
        other => panic!("{other:?} for {:?}", String::from_utf8_lossy(bytes)),
    }
}

fn chunked(bytes: &[u8], limits: &Limits) -> Result<Vec<u8>, ParseError> {
    let mut decoder = BodyDecoder::new(BodyLength::Chunked);
    let mut buf = bytes::BytesMut::from(bytes);
    let mut body = Vec::new();
    loop {
        match decoder.decode(&mut buf, limits)? {
            Decoded::Data(data) => body.extend_from_slice(&data),
            Decoded::NeedMore => return decoder.finish_eof().map(|()| body),
            Decoded::End { .. } => return Ok(body),
        }
    }
}

#[test]
fn refuses_each_ambiguous_request_with_its_cause() {
    for (what, bytes, cause, status) in REQUESTS {
        match request(bytes) {
            Err(error) => assert_eq!((error.cause(), error.status()), (*cause, *status), "{what}"),
            Ok(head) => panic!("{what} was accepted: {head:?}"),
        }
    }
}

#[test]
fn refuses_each_bad_chunk_with_its_cause() {
    for (what, bytes, cause, status) in CHUNKS {
        match chunked(bytes, &Limits::default()) {
            Err(error) => {
                assert_eq!(error.cause(), *cause, "{what}");
                // Whoever closed in the middle of a message is not answered.
                assert!(error.status() == *status || *cause == "premature_eof", "{what}");
            }
            Ok(body) => panic!("{what} was accepted: {body:?}"),
        }
    }
}

#[test]
fn refuses_each_bad_response_with_its_cause() {
    for (what, bytes, cause, _) in RESPONSES {
        match response(RequestKind::Other, bytes) {
            Err(error) => assert_eq!(error.cause(), *cause, "{what}"),
            Ok(head) => panic!("{what} was accepted: {head:?}"),
        }
    }
}

#[test]
fn refuses_what_goes_over_each_default_limit_and_names_the_setting() {
    for row in limits() {
        let head_end = row.bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
        let (head, body) = if row.in_body { row.bytes.split_at(head_end) } else { (&row.bytes[..], &[][..]) };
        let error = match request(head) {
            Ok(_) => chunked(body, &Limits::default()).expect_err(row.what),
            Err(error) => error,
        };
        assert_eq!((error.cause(), error.status()), (row.cause, row.status), "{}", row.what);
        assert!(error.to_string().contains(&format!("(setting {})", row.setting)), "{error}");
    }
    let shown: Vec<_> = limits().iter().map(|row| row.setting).collect();
    assert!(Limit::ALL.iter().all(|limit| shown.contains(&limit.setting())), "each limit has a row");
}

/// Bytes as a table can show them, the middle of long ones left out.
fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string().replace("\\\"", "\"").replace("\\'", "'").replace('|', "\\|");
    // A code span that holds backquotes needs more of them around it.
    if text.contains('`') { format!("`` {text} ``") } else { format!("`{text}`") }
}

fn table(title: &str, says: &str, rows: &[Row]) -> String {
    let mut out =
        format!("\n### {title}\n\n{says}\n\n| what | bytes | cause | status |\n|---|---|---|---|\n");
    for (what, bytes, cause, status) in rows {
        let status = if *status == 0 { "closed".to_owned() } else { status.to_string() };
        out.push_str(&format!("| {what} | {} | `{cause}` | {status} |\n", shown(bytes)));
    }
    out
}

fn tables() -> String {
    let mut out = "\n## Every row\n".to_owned();
    out += &table("Requests", "Nothing of them is passed on; the connection is closed.", REQUESTS);
    let says =
        "After a head with `Transfer-Encoding: chunked`. What is passed on of the message never has an end.";
    out += &table("Chunked bodies", says, CHUNKS);
    let responses: Vec<Row> =
        RESPONSES.iter().map(|(what, bytes, cause, _)| (*what, *bytes, *cause, 502)).collect();
    out += &table("Responses", "The caller gets 502; the upstream's connection is closed.", &responses);
    out += "\n### Over a limit\n\n| what | cause | status | setting |\n|---|---|---|---|\n";
    for row in limits() {
        out += &format!("| {} | `{}` | {} | `{}` |\n", row.what, row.cause, row.status, row.setting);
    }
    out += "\n### Accepted\n\nWhat looks like some of the above and is as the standard has it.\n\n";
    out += "| what | bytes | passed on |\n|---|---|---|\n";
    for (what, bytes, passed) in ACCEPTED {
        out += &format!("| {what} | {} | {} |\n", shown(bytes), shown(passed));
    }
    out
}

#[test]
fn the_docs_show_every_row() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/http.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let mark = page.find("<!-- rows:").expect("the page has a place for the rows");
    let (before, after) = page.split_at(mark + page[mark..].find("-->\n").expect("a whole comment") + 4);
    let rows = tables();
    if std::env::var_os("MESHWORK_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{rows}")).unwrap();
    } else {
        assert!(
            after == rows,
            "docs/http.md is not of these rows: run with MESHWORK_WRITE_DOCS=1 and commit it"
        );
    }
}

#[test]
fn every_refusal_has_a_row() {
    let shown: Vec<_> =
        [REQUESTS, CHUNKS, RESPONSES].concat().iter().map(|(_, _, cause, _)| *cause).collect();
    for error in ParseError::ALL {
        assert!(shown.contains(&error.cause()), "no row shows {}", error.cause());
    }
}

#[test]
fn statuses_are_those_of_the_standard() {
    let of = |bytes: &[u8]| request(bytes).unwrap_err().status();
    assert_eq!(of(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
    assert_eq!(of(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"), 501);
    assert_eq!(of(b"GET / HTTP/1.1\r\n\r\n"), 400);
    let long = |n| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(n)).into_bytes();
    assert_eq!(of(&long(20_000)), 414);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(100));
    assert_eq!(of(many.as_bytes()), 431);
}

/// RFC 9110 section 8.6 and RFC 9112 section 7.1 know no bound; writers of a fixed width exist, of 20 and of 16 digits.
#[test]
fn leading_zeros_change_no_number_up_to_a_bound_that_the_refusal_names() {
    for width in [1, 16, 20, 32, 33, 100] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {:0width$}\r\n\r\n", 5);
        let body = format!("{:0width$x}\r\n0123456789\r\n{:0width$}\r\n\r\n", 10, 0);
        let read =
            (request(head.as_bytes()).map(|head| head.body), chunked(body.as_bytes(), &Limits::default()));
        if width <= 32 {
            assert_eq!(read, (Ok(BodyLength::Known(5)), Ok(b"0123456789".to_vec())), "{width}");
        } else {
            assert_eq!(read, (Err(ParseError::BadLength), Err(ParseError::BadChunkSize)), "{width}");
        }
    }
    for error in [ParseError::BadLength, ParseError::BadChunkSize] {
        assert!(error.to_string().contains("32 digits"), "{error}");
    }
}

#[test]
fn what_no_reader_can_hold_is_no_length_with_zeros_before_it_either() {
    for zeros in ["", "0", "0000000000"] {
        for (size, digits) in
            [(Ok(BodyLength::Known(10u64.pow(18) - 1)), "9"), (Err(ParseError::BadLength), "99")]
        {
            let length = format!("{zeros}{digits}{}", "9".repeat(17));
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
            assert_eq!(request(head.as_bytes()).map(|head| head.body), size, "{length}");
        }
        for (size, taken) in [("fffffffffffffff", true), ("1000000000000000", false)] {
            let line = format!("{zeros}{size}\r\n");
            let step = BodyDecoder::new(BodyLength::Chunked).step(line.as_bytes(), &Limits::default());
            assert_eq!(step.is_ok(), taken, "{line}: {step:?}");
        }
    }
}

/// Exactly at the limit passes, one above is refused, also when the rest never arrives.
#[test]
fn each_limit_holds_to_the_byte() {
    let limits = Limits {
        request_line: 20,
        header_line: 30,
        header_count: 3,
        header_bytes: 60,
        chunk_ext: 8,
        trailer_bytes: 20,
    };
    let run = |bytes: &[u8]| {
        parse_request(bytes, &limits, &mut HeadScan::default(), &mut RequestHead::new()).map_err(
            |e| match e {
                ParseError::OverLimit { limit, .. } => limit,
                other => panic!("{other}"),
            },
        )
    };
    let line = |n: usize| format!("GET /{} HTTP/1.1\r\n", "a".repeat(n - 14));
    assert!(run(format!("{}Host: a\r\n\r\n", line(20)).as_bytes()).is_ok());
    assert_eq!(run(line(21).as_bytes()), Err(Limit::RequestLine));
    assert_eq!(run(&[b'a'; 22]), Err(Limit::RequestLine));
    assert_eq!(run(&[b'a'; 21]), Ok(Parsed::Incomplete), "the CR may be in it");

    let field = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "a".repeat(n - 3));
    assert!(run(format!("{}\r\n\r\n", field(30)).as_bytes()).is_ok());
    assert_eq!(run(format!("{}\r\n", field(31)).as_bytes()), Err(Limit::HeaderLine));
    assert_eq!(run(field(32).as_bytes()), Err(Limit::HeaderLine));

    let fields = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(n - 1));
    assert!(run(fields(3).as_bytes()).is_ok());
    assert_eq!(run(fields(4).as_bytes()), Err(Limit::HeaderCount));

    let bytes =
        |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\ny: {}", "a".repeat(20), "b".repeat(n - 39));
    assert!(run(format!("{}\r\n\r\n", bytes(60)).as_bytes()).is_ok());
    assert_eq!(run(format!("{}\r\n\r\n", bytes(61)).as_bytes()), Err(Limit::HeaderBytes));
}

#[test]
fn chunk_extensions_must_be_paid_for_with_data() {
    let limits = Limits { chunk_ext: 8, ..Limits::default() };
    let chunk = |ext: &str, data: &str| format!("{:x}{ext}\r\n{data}\r\n", data.len());
    let over = Err(ParseError::OverLimit { limit: Limit::ChunkExt, max: 8 });
    let run = |text: String| chunked(text.as_bytes(), &limits).map(|body| body.len());
    assert_eq!(run(chunk(";1234567", "x") + "0\r\n\r\n"), Ok(1));
    assert_eq!(run(chunk(";12345678", "x")), over);
    assert_eq!(run("1;12345678901".to_owned()), over, "also before the line ends");
    assert_eq!(run(chunk(";1234", "x").repeat(2)), over, "many small ones add up");
    assert_eq!(run(chunk(";1234", "12345").repeat(9) + "0\r\n\r\n"), Ok(45));
}

#[test]
fn trailers_have_limits_of_their_own() {
    let limits = Limits { trailer_bytes: 12, header_count: 2, ..Limits::default() };
    let run = |text: &str| chunked(text.as_bytes(), &limits).map_err(|e| e.cause());
    assert!(run("0\r\na: b\r\na: b\r\n\r\n").is_ok());
    assert_eq!(run("0\r\na: b\r\na: bb\r\n\r\n"), Err("trailers_too_large"));
    assert_eq!(run("0\r\na:\r\na:\r\na:\r\n\r\n"), Err("too_many_headers"));
}

#[test]
fn accepts_what_the_standard_and_browsers_send() {
    for (bytes, path, query, authority) in [
        (&b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], "/", None, "a"),
        (
            b"GET /a%20b;c=[d]{|}?q=100%&\\^` HTTP/1.1\r\nHost: a:80\r\n\r\n",
            "/a%20b;c=[d]{|}",
            Some("q=100%&\\^`"),
            "a:80",
        ),
        (b"GET //b HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "//b", None, "[::1]:80"),
        (b"GET HTTP://A/b?c HTTP/1.1\r\nHost: a:80\r\n\r\n", "/b", Some("c"), "A"),
        (b"GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n", "/", Some("b"), "a"),
        (b"GET https://a:443/ HTTP/1.1\r\nHost: a\r\n\r\n", "/", None, "a:443"),
        (b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", "/", None, "a"),
        (b"GET / HTTP/1.1\r\nHost: [::1]:\r\n\r\n", "/", None, "[::1]"),
        (b"GET http://a:/?b HTTP/1.1\r\nHost: a:80\r\n\r\n", "/", Some("b"), "a"),
        (b"GET http://a: HTTP/1.1\r\nHost: a:\r\n\r\n", "/", None, "a"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "*", None, "a"),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", "", None, "a:443"),
        (b"BREW / HTTP/1.7\r\nhost:a\t \r\n\r\n", "/", None, "a"),
    ] {
        let head = request(bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)));
        assert_eq!(
            (head.target.path(), head.target.query(), head.authority()),
            (path, query, Some(authority))
        );
    }
    let head = request(b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!((head.target.path(), head.target.path_and_query()), ("/", "*"), "RFC 9112 section 3.2.4");
    assert_eq!(request(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n").unwrap().host(), Some("[::1]"));
    assert_eq!(request(b"GET / HTTP/1.1\r\nHost: [::1]:8\r\n\r\n").unwrap().host(), Some("[::1]"));
    assert_eq!(request(b"GET / HTTP/1.1\r\nHost: a:8\r\n\r\n").unwrap().host(), Some("a"));
    assert_eq!(request(b"GET / HTTP/1.0\r\n\r\n").unwrap().host(), None);
}

#[test]
fn connection_and_expectation_follow_the_version() {
    let head = |rest: &str| request(format!("POST / HTTP/{rest}\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
    assert!(head("1.1").keep_alive);
    assert!(!head("1.1\r\nConnection: x, Close").keep_alive);
    assert!(!head("1.0").keep_alive);
    assert!(head("1.0\r\nConnection: Keep-Alive").keep_alive);
    assert!(!head("1.0\r\nConnection: keep-alive, close").keep_alive);
    assert!(head("1.1\r\nExpect: 100-Continue\r\nContent-Length: 5").expect_continue);
    assert!(!head("1.1\r\nExpect: 100-continue\r\nContent-Length: 0").expect_continue, "nothing to wait for");
    assert!(!head("1.0\r\nExpect: 100-continue\r\nContent-Length: 5").expect_continue);
    assert!(head("1.1\r\nConnection: upgrade\r\nUpgrade: websocket").upgrade);
    assert!(!head("1.1\r\nUpgrade: websocket").upgrade);
    assert!(!head("1.0\r\nConnection: upgrade\r\nUpgrade: websocket").upgrade);
}

#[test]
fn a_response_ends_where_rfc_9112_section_6_3_says() {
    use BodyLength::{Chunked, Known, None, UntilClose};
    use RequestKind::{Connect, Head, Other};
    for (kind, status, fields, body, keep_alive, tunnel) in [
        (Other, 200, "Content-Length: 5", Known(5), true, false),
        (Other, 200, "Transfer-Encoding: Chunked", Chunked, true, false),
        (Other, 200, "", UntilClose, false, false),
        (Other, 200, "Content-Length: 0\r\nConnection: close", Known(0), false, false),
        (Head, 200, "Content-Length: 5", None, true, false),
        (Head, 200, "Transfer-Encoding: chunked", None, true, false),
        (Head, 200, "", None, true, false),
        (Other, 304, "Content-Length: 5", None, true, false),
        (Other, 204, "", None, true, false),
        (Other, 204, "Content-Length: 5", None, false, false),
        (Other, 100, "", None, true, false),
        (Other, 101, "Upgrade: websocket\r\nConnection: upgrade", None, false, true),
        (Connect, 200, "Content-Length: 5\r\nTransfer-Encoding: chunked", None, false, true),
        (Connect, 407, "Content-Length: 5", Known(5), true, false),
        (Other, 999, "Content-Length: 5", Known(5), true, false),
    ] {
        let fields = if fields.is_empty() { String::new() } else { format!("{fields}\r\n") };
        let text = format!("HTTP/1.1 {status} x\r\n{fields}\r\n");
        let head = response(kind, text.as_bytes()).unwrap();
        assert_eq!(
            (head.status, head.body, head.keep_alive, head.tunnel),
            (status, body, keep_alive, tunnel),
            "{text}"
        );
    }
    assert_eq!(response(Other, b"HTTP/1.1 200\r\n\r\n").unwrap().reason, b"");
    assert_eq!(response(Other, b"HTTP/1.1 200 \r\n\r\n").unwrap().reason, b"");
    assert_eq!(response(Other, b"HTTP/1.0 200 Sch\xf6n\tda\r\n\r\n").unwrap().reason, b"Sch\xf6n\tda");
}

#[test]
fn a_refused_head_shows_what_was_read_before() {
    let mut head = RequestHead::new();
    let bytes = b"GET /a HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\nbad line\r\n\r\n";
    let error = parse_request(bytes, &Limits::default(), &mut HeadScan::default(), &mut head).unwrap_err();
    assert_eq!((error, head.target.path()), (ParseError::MissingColon, "/a"));
    assert_eq!(head.fields.get("user-agent"), Some(&b"b"[..]));
}
