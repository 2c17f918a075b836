//! What is refused, with which cause and status. `docs/http.md` shows the same table to users.

use meshwork_http1::{
    BodyDecoder, BodyLength, Decoded, HeadScan, Limit, Limits, ParseError, Parsed, RequestHead, RequestKind,
    ResponseHead, parse_request, parse_response,
};

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

/// The rows of `docs/http.md`: a request, the cause that it is refused with.
const REQUESTS: &[(&str, &[u8], &str)] = &[
    // lines
    ("line ended by LF alone", b"GET / HTTP/1.1\nHost: a\r\n\r\n", "bare_lf"),
    ("field line ended by LF alone", b"GET / HTTP/1.1\r\nHost: a\n\r\n", "bare_lf"),
    ("empty line ended by LF alone", b"GET / HTTP/1.1\r\nHost: a\r\n\n", "bare_lf"),
    ("CR inside the request line", b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", "bare_cr"),
    ("CR at the end of the request line", b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", "bare_cr"),
    ("CR inside a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n", "bare_cr"),
    ("CR inside a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\rY: b\r\n\r\n", "bare_cr"),
    ("two empty lines before the request", b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "empty_lines"),
    // request line
    ("no version", b"GET /\r\nHost: a\r\n\r\n", "bad_request_line"),
    ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "bad_request_line"),
    ("space at the front", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "bad_request_line"),
    ("space at the end", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "bad_request_line"),
    ("tab for space", b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", "bad_request_line"),
    ("space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "bad_request_line"),
    ("method is no token", b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "bad_method"),
    ("version in lower case", b"GET / http/1.1\r\nHost: a\r\n\r\n", "bad_version"),
    ("version of more digits", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", "bad_version"),
    ("HTTP/2.0 in HTTP/1 form", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "unsupported_version"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\n", "unsupported_version"),
    ("HTTP/0.9 named", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", "unsupported_version"),
    // targets
    ("target without slash", b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
    ("fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
    ("control character in the target", b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
    ("NUL in the query", b"GET /?\0 HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
    ("byte above 127 in the target", b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
    ("backslash in the path", b"GET /a\\..\\b HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
    ("broken escape in the path", b"GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
    ("scheme that is not HTTP", b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target"),
    ("user information", b"GET http://me@a/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad_host"),
    ("no host in an absolute target", b"GET http:///b HTTP/1.1\r\nHost: a\r\n\r\n", "bad_host"),
    ("`*` with GET", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", "target_form"),
    ("path with CONNECT", b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", "target_form"),
    ("CONNECT without a port", b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", "bad_host"),
    // Host
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", "missing_host"),
    ("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "repeated_host"),
    ("two Hosts in HTTP/1.0", b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", "repeated_host"),
    ("empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "bad_host"),
    ("list of Hosts", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "bad_host"),
    ("Host with a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "bad_host"),
    ("Host with user information", b"GET / HTTP/1.1\r\nHost: b@a\r\n\r\n", "bad_host"),
    ("Host with a port that is none", b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", "bad_host"),
    ("Host with a port out of range", b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", "bad_host"),
    ("Host with half a bracket", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "bad_host"),
    ("Host and target differ", b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", "host_mismatch"),
    ("Host and target differ in port", b"GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", "host_mismatch"),
    ("Host and CONNECT differ", b"CONNECT a:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", "host_mismatch"),
    // fields
    ("folded line", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "obs_fold"),
    ("white space before the first field", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "obs_fold"),
    ("space before the colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "space_before_colon"),
    (
        "tab before the colon",
        b"GET / HTTP/1.1\r\nContent-Length\t: 5\r\nHost: a\r\n\r\n",
        "space_before_colon",
    ),
    ("no colon", b"GET / HTTP/1.1\r\nHost: a\r\nabc\r\n\r\n", "missing_colon"),
    ("empty name", b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", "bad_field_name"),
    ("name is no token", b"GET / HTTP/1.1\r\nHost: a\r\nA(: b\r\n\r\n", "bad_field_name"),
    ("NUL in a name", b"GET / HTTP/1.1\r\nHost: a\r\nA\0: b\r\n\r\n", "bad_field_name"),
    ("NUL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nA: b\0\r\n\r\n", "bad_field_value"),
    ("DEL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nA: \x7f\r\n\r\n", "bad_field_value"),
    // length
    (
        "Content-Length and Transfer-Encoding",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "conflicting_length",
    ),
    (
        "Transfer-Encoding and Content-Length",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        "conflicting_length",
    ),
    (
        "two equal Content-Lengths",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "repeated_length",
    ),
    ("list of lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", "repeated_length"),
    ("signed length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", "bad_length"),
    ("negative length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", "bad_length"),
    ("length with a space", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 0\r\n\r\n", "bad_length"),
    ("hexadecimal length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", "bad_length"),
    ("empty length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", "bad_length"),
    (
        "length that overflows",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n",
        "bad_length",
    ),
    ("unknown coding", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", "unknown_coding"),
    (
        "coding before chunked",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "unknown_coding",
    ),
    ("identity", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", "unknown_coding"),
    (
        "chunked with parameter",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;a=b\r\n\r\n",
        "unknown_coding",
    ),
    (
        "chunked in quotes",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n",
        "unknown_coding",
    ),
    (
        "vertical tab before chunked",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
        "bad_field_value",
    ),
    (
        "empty Transfer-Encoding",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
        "unknown_coding",
    ),
    (
        "chunked twice",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        "repeated_coding",
    ),
    (
        "chunked on two lines",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "repeated_coding",
    ),
    (
        "chunked and a comma",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n",
        "repeated_coding",
    ),
    (
        "Transfer-Encoding in HTTP/1.0",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "coding_in_http10",
    ),
];

const CHUNKS: &[(&str, &[u8], &str)] = &[
    ("no size", b"\r\n", "bad_chunk_size"),
    ("no size, only an extension", b";a\r\n", "bad_chunk_size"),
    ("signed size", b"+5\r\nhello\r\n0\r\n\r\n", "bad_chunk_size"),
    ("negative size", b"-5\r\nhello\r\n0\r\n\r\n", "bad_chunk_size"),
    ("size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n", "bad_chunk_size"),
    ("size after a space", b" 5\r\nhello\r\n0\r\n\r\n", "bad_chunk_size"),
    ("size before a space", b"5 \r\nhello\r\n0\r\n\r\n", "bad_chunk_extension"),
    ("size that overflows", b"10000000000000005\r\nhello\r\n0\r\n\r\n", "bad_chunk_size"),
    ("size with an underscore", b"1_0\r\nhello\r\n0\r\n\r\n", "bad_chunk_size"),
    ("size line ended by LF alone", b"5\nhello\r\n0\r\n\r\n", "bare_lf"),
    ("size line with a CR", b"5\r\r\nhello\r\n0\r\n\r\n", "bare_cr"),
    ("extension line ended by LF alone", b"5;a\nhello\r\n0\r\n\r\n", "bare_lf"),
    ("extension with a CR", b"5;a\rb\r\nhello\r\n0\r\n\r\n", "bare_cr"),
    ("extension without a name", b"5;\r\nhello\r\n0\r\n\r\n", "bad_chunk_extension"),
    ("extension with a control character", b"5;a=\"\x01\"\r\nhello\r\n0\r\n\r\n", "bad_chunk_extension"),
    ("extension with an open quote", b"5;a=\"b\r\nhello\r\n0\r\n\r\n", "bad_chunk_extension"),
    ("more data than declared", b"4\r\nhello\r\n0\r\n\r\n", "bad_chunk_end"),
    ("data ended by LF alone", b"5\r\nhello\n0\r\n\r\n", "bad_chunk_end"),
    ("end without the last CRLF", b"0\r\n", "premature_eof"),
    ("end ended by LF alone", b"0\r\n\n", "bare_lf"),
    ("cut in a size", b"5", "premature_eof"),
    ("cut in data", b"5\r\nhel", "premature_eof"),
    ("cut in trailers", b"0\r\na: b\r\n", "premature_eof"),
    ("length as a trailer", b"0\r\nContent-Length: 5\r\n\r\n", "forbidden_trailer"),
    ("coding as a trailer", b"0\r\nTransfer-Encoding: chunked\r\n\r\n", "forbidden_trailer"),
    ("Host as a trailer", b"0\r\nHost: b\r\n\r\n", "forbidden_trailer"),
    ("folded trailer", b"0\r\na: b\r\n c\r\n\r\n", "obs_fold"),
];

const RESPONSES: &[(&str, &[u8], &str)] = &[
    ("no status", b"HTTP/1.1\r\n\r\n", "bad_status_line"),
    ("status of two digits", b"HTTP/1.1 20\r\n\r\n", "bad_status_line"),
    ("status of four digits", b"HTTP/1.1 2000 OK\r\n\r\n", "bad_status_line"),
    ("status below 100", b"HTTP/1.1 099 x\r\n\r\n", "bad_status_line"),
    ("two spaces", b"HTTP/1.1  200 OK\r\n\r\n", "bad_status_line"),
    ("control character in the reason", b"HTTP/1.1 200 \x01\r\n\r\n", "bad_status_line"),
    ("CR in the reason", b"HTTP/1.1 200 O\rK\r\n\r\n", "bare_cr"),
    ("empty line first", b"\r\nHTTP/1.1 200 OK\r\n\r\n", "bad_status_line"),
    ("other protocol", b"ICY 200 OK\r\n\r\n", "bad_version"),
    ("HTTP/2", b"HTTP/2.0 200 OK\r\n\r\n", "unsupported_version"),
    ("line ended by LF alone", b"HTTP/1.1 200 OK\n\r\n", "bare_lf"),
    (
        "both lengths",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "conflicting_length",
    ),
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "repeated_length"),
    ("unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: br, chunked\r\n\r\n", "unknown_coding"),
    ("coding in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "coding_in_http10"),
    (
        "coding with 204",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "coding_not_allowed",
    ),
    (
        "coding with 103",
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n",
        "coding_not_allowed",
    ),
];

#[test]
fn refuses_each_ambiguous_request_with_its_cause() {
    for (what, bytes, cause) in REQUESTS {
        match request(bytes) {
            Err(error) => assert_eq!(error.cause(), *cause, "{what}"),
            Ok(head) => panic!("{what} was accepted: {head:?}"),
        }
    }
}

#[test]
fn refuses_each_bad_chunk_with_its_cause() {
    for (what, bytes, cause) in CHUNKS {
        match chunked(bytes, &Limits::default()) {
            Err(error) => assert_eq!(error.cause(), *cause, "{what}"),
            Ok(body) => panic!("{what} was accepted: {body:?}"),
        }
    }
}

#[test]
fn refuses_each_bad_response_with_its_cause() {
    for (what, bytes, cause) in RESPONSES {
        match response(RequestKind::Other, bytes) {
            Err(error) => assert_eq!(error.cause(), *cause, "{what}"),
            Ok(head) => panic!("{what} was accepted: {head:?}"),
        }
    }
}

#[test]
fn every_refusal_has_a_row() {
    let shown: Vec<_> = [REQUESTS, CHUNKS, RESPONSES].concat().iter().map(|(_, _, cause)| *cause).collect();
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
