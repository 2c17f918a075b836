//! What is refused, and what looks like it and is not: the one table that the parser's tests, the tests of the binary
//! and `docs/http.md` are made of.
#![allow(dead_code, unreachable_pub, reason = "each test target uses its part")]

/// What is sent, the bytes, the cause that they are refused with, and the status that a caller gets: 0 where the
/// connection is closed without an answer. A refused response has none of its own: the caller gets 502.
pub type Row = (&'static str, &'static [u8], &'static str, u16);

/// Heads of requests.
pub const REQUESTS: &[Row] = &[
    // lines
    ("line ended by LF alone", b"GET / HTTP/1.1\nHost: a\r\n\r\n", "bare_lf", 400),
    ("field line ended by LF alone", b"GET / HTTP/1.1\r\nHost: a\n\r\n", "bare_lf", 400),
    ("empty line ended by LF alone", b"GET / HTTP/1.1\r\nHost: a\r\n\n", "bare_lf", 400),
    ("CR inside the request line", b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", "bare_cr", 400),
    ("CR at the end of the request line", b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", "bare_cr", 400),
    ("CR inside a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n", "bare_cr", 400),
    ("CR inside a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\rY: b\r\n\r\n", "bare_cr", 400),
    ("two empty lines before the request", b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "empty_lines", 400),
    // request line
    ("no version", b"GET /\r\nHost: a\r\n\r\n", "bad_request_line", 400),
    ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "bad_request_line", 400),
    ("space at the front", b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "bad_request_line", 400),
    ("space at the end", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "bad_request_line", 400),
    ("tab for space", b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", "bad_request_line", 400),
    ("space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "bad_request_line", 400),
    ("method is no token", b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", "bad_method", 400),
    ("version in lower case", b"GET / http/1.1\r\nHost: a\r\n\r\n", "bad_version", 400),
    ("version of more digits", b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", "bad_version", 400),
    ("HTTP/2.0 in HTTP/1 form", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "unsupported_version", 505),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\n", "unsupported_version", 505),
    ("HTTP/0.9 named", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", "unsupported_version", 505),
    // targets
    ("target without slash", b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target", 400),
    ("fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target", 400),
    ("control character in the target", b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target", 400),
    ("NUL in the query", b"GET /?\0 HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target", 400),
    ("byte above 127 in the target", b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target", 400),
    ("backslash in the path", b"GET /a\\..\\b HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target", 400),
    ("broken escape in the path", b"GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target", 400),
    ("scheme that is not HTTP", b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad_target", 400),
    ("user information", b"GET http://me@a/ HTTP/1.1\r\nHost: a\r\n\r\n", "bad_host", 400),
    ("no host in an absolute target", b"GET http:///b HTTP/1.1\r\nHost: a\r\n\r\n", "bad_host", 400),
    ("`*` with GET", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", "target_form", 400),
    ("path with CONNECT", b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", "target_form", 400),
    ("CONNECT without a port", b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", "bad_host", 400),
    ("CONNECT with an empty port", b"CONNECT a: HTTP/1.1\r\nHost: a\r\n\r\n", "bad_host", 400),
    // Host
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", "missing_host", 400),
    ("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "repeated_host", 400),
    ("two Hosts in HTTP/1.0", b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", "repeated_host", 400),
    ("empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "bad_host", 400),
    ("list of Hosts", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "bad_host", 400),
    ("Host with a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "bad_host", 400),
    ("Host with user information", b"GET / HTTP/1.1\r\nHost: b@a\r\n\r\n", "bad_host", 400),
    ("Host with a port that is none", b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", "bad_host", 400),
    ("Host with a port out of range", b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", "bad_host", 400),
    ("Host with two colons", b"GET / HTTP/1.1\r\nHost: a::\r\n\r\n", "bad_host", 400),
    ("Host with a port alone", b"GET / HTTP/1.1\r\nHost: :\r\n\r\n", "bad_host", 400),
    ("Host with half a bracket", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "bad_host", 400),
    ("Host and target differ", b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", "host_mismatch", 400),
    ("Host and target differ in port", b"GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", "host_mismatch", 400),
    ("Host and CONNECT differ", b"CONNECT a:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", "host_mismatch", 400),
    // fields
    ("folded line", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "obs_fold", 400),
    ("white space before the first field", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "obs_fold", 400),
    ("space before the colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "space_before_colon", 400),
    (
        "tab before the colon",
        b"GET / HTTP/1.1\r\nContent-Length\t: 5\r\nHost: a\r\n\r\n",
        "space_before_colon",
        400,
    ),
    ("no colon", b"GET / HTTP/1.1\r\nHost: a\r\nabc\r\n\r\n", "missing_colon", 400),
    ("empty name", b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", "bad_field_name", 400),
    ("name is no token", b"GET / HTTP/1.1\r\nHost: a\r\nA(: b\r\n\r\n", "bad_field_name", 400),
    ("NUL in a name", b"GET / HTTP/1.1\r\nHost: a\r\nA\0: b\r\n\r\n", "bad_field_name", 400),
    ("NUL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nA: b\0\r\n\r\n", "bad_field_value", 400),
    ("DEL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nA: \x7f\r\n\r\n", "bad_field_value", 400),
    // length
    (
        "Content-Length and Transfer-Encoding",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "conflicting_length",
        400,
    ),
    (
        "Transfer-Encoding and Content-Length",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        "conflicting_length",
        400,
    ),
    (
        "two equal Content-Lengths",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "repeated_length",
        400,
    ),
    (
        "list of lengths",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n",
        "repeated_length",
        400,
    ),
    ("signed length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", "bad_length", 400),
    ("negative length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", "bad_length", 400),
    ("length with a space", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 0\r\n\r\n", "bad_length", 400),
    ("hexadecimal length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", "bad_length", 400),
    ("empty length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", "bad_length", 400),
    (
        "length that overflows",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n",
        "bad_length",
        400,
    ),
    (
        "length of more than 32 digits",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 000000000000000000000000000000005\r\n\r\n",
        "bad_length",
        400,
    ),
    (
        "length of 10^18",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 01000000000000000000\r\n\r\n",
        "bad_length",
        400,
    ),
    (
        "unknown coding",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "unknown_coding",
        501,
    ),
    (
        "coding before chunked",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "unknown_coding",
        501,
    ),
    ("identity", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", "unknown_coding", 501),
    (
        "chunked with parameter",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;a=b\r\n\r\n",
        "unknown_coding",
        501,
    ),
    (
        "chunked in quotes",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n",
        "unknown_coding",
        501,
    ),
    (
        "vertical tab before chunked",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
        "bad_field_value",
        400,
    ),
    (
        "empty Transfer-Encoding",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
        "unknown_coding",
        501,
    ),
    (
        "chunked twice",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        "repeated_coding",
        400,
    ),
    (
        "chunked on two lines",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "repeated_coding",
        400,
    ),
    (
        "chunked and a comma",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n",
        "repeated_coding",
        400,
    ),
    (
        "Transfer-Encoding in HTTP/1.0",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "coding_in_http10",
        400,
    ),
    (
        "WebSocket handshake with content",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nContent-Length: 5\r\n\r\n",
        "handshake_with_content",
        400,
    ),
    (
        "WebSocket handshake in chunks",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: b, websocket\r\nTransfer-Encoding: chunked\r\n\r\n",
        "handshake_with_content",
        400,
    ),
    (
        "WebSocket handshake with two keys",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Key: a\r\n\r\n",
        "repeated_key",
        400,
    ),
];

/// Chunked bodies of requests.
pub const CHUNKS: &[Row] = &[
    ("no size", b"\r\n", "bad_chunk_size", 400),
    ("no size, only an extension", b";a\r\n", "bad_chunk_size", 400),
    ("signed size", b"+5\r\nhello\r\n0\r\n\r\n", "bad_chunk_size", 400),
    ("negative size", b"-5\r\nhello\r\n0\r\n\r\n", "bad_chunk_size", 400),
    ("size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n", "bad_chunk_size", 400),
    ("size after a space", b" 5\r\nhello\r\n0\r\n\r\n", "bad_chunk_size", 400),
    ("size before a space", b"5 \r\nhello\r\n0\r\n\r\n", "bad_chunk_extension", 400),
    ("size that overflows", b"10000000000000005\r\nhello\r\n0\r\n\r\n", "bad_chunk_size", 400),
    ("size of 2^60", b"01000000000000000\r\nhello\r\n0\r\n\r\n", "bad_chunk_size", 400),
    (
        "size of more than 32 digits",
        b"000000000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
        "bad_chunk_size",
        400,
    ),
    ("size with an underscore", b"1_0\r\nhello\r\n0\r\n\r\n", "bad_chunk_size", 400),
    ("size line ended by LF alone", b"5\nhello\r\n0\r\n\r\n", "bare_lf", 400),
    ("size line with a CR", b"5\r\r\nhello\r\n0\r\n\r\n", "bare_cr", 400),
    ("extension line ended by LF alone", b"5;a\nhello\r\n0\r\n\r\n", "bare_lf", 400),
    ("extension with a CR", b"5;a\rb\r\nhello\r\n0\r\n\r\n", "bare_cr", 400),
    ("extension without a name", b"5;\r\nhello\r\n0\r\n\r\n", "bad_chunk_extension", 400),
    ("extension with a control character", b"5;a=\"\x01\"\r\nhello\r\n0\r\n\r\n", "bad_chunk_extension", 400),
    ("extension with an open quote", b"5;a=\"b\r\nhello\r\n0\r\n\r\n", "bad_chunk_extension", 400),
    ("more data than declared", b"4\r\nhello\r\n0\r\n\r\n", "bad_chunk_end", 400),
    ("data ended by LF alone", b"5\r\nhello\n0\r\n\r\n", "bad_chunk_end", 400),
    ("end without the last CRLF", b"0\r\n", "premature_eof", 0),
    ("end ended by LF alone", b"0\r\n\n", "bare_lf", 400),
    ("cut in a size", b"5", "premature_eof", 0),
    ("cut in data", b"5\r\nhel", "premature_eof", 0),
    ("cut in trailers", b"0\r\na: b\r\n", "premature_eof", 0),
    ("length as a trailer", b"0\r\nContent-Length: 5\r\n\r\n", "forbidden_trailer", 400),
    ("coding as a trailer", b"0\r\nTransfer-Encoding: chunked\r\n\r\n", "forbidden_trailer", 400),
    ("Host as a trailer", b"0\r\nHost: b\r\n\r\n", "forbidden_trailer", 400),
    ("folded trailer", b"0\r\na: b\r\n c\r\n\r\n", "obs_fold", 400),
];

/// Heads of responses.
pub const RESPONSES: &[Row] = &[
    ("no status", b"HTTP/1.1\r\n\r\n", "bad_status_line", 400),
    ("status of two digits", b"HTTP/1.1 20\r\n\r\n", "bad_status_line", 400),
    ("status of four digits", b"HTTP/1.1 2000 OK\r\n\r\n", "bad_status_line", 400),
    ("status below 100", b"HTTP/1.1 099 x\r\n\r\n", "bad_status_line", 400),
    ("two spaces", b"HTTP/1.1  200 OK\r\n\r\n", "bad_status_line", 400),
    ("control character in the reason", b"HTTP/1.1 200 \x01\r\n\r\n", "bad_status_line", 400),
    ("CR in the reason", b"HTTP/1.1 200 O\rK\r\n\r\n", "bare_cr", 400),
    ("empty line first", b"\r\nHTTP/1.1 200 OK\r\n\r\n", "bad_status_line", 400),
    ("other protocol", b"ICY 200 OK\r\n\r\n", "bad_version", 400),
    ("HTTP/2", b"HTTP/2.0 200 OK\r\n\r\n", "unsupported_version", 505),
    ("line ended by LF alone", b"HTTP/1.1 200 OK\n\r\n", "bare_lf", 400),
    (
        "both lengths",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "conflicting_length",
        400,
    ),
    (
        "two lengths",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "repeated_length",
        400,
    ),
    ("unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: br, chunked\r\n\r\n", "unknown_coding", 501),
    ("coding in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "coding_in_http10", 400),
    (
        "coding with 204",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "coding_not_allowed",
        400,
    ),
    (
        "coding with 103",
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n",
        "coding_not_allowed",
        400,
    ),
];

/// What goes over a limit, with the flag that moves it.
pub struct LimitRow {
    /// What is sent.
    pub what: &'static str,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The cause that they are refused with.
    pub cause: &'static str,
    /// The status that a caller gets.
    pub status: u16,
    /// The flag.
    pub setting: &'static str,
    /// Whether the head is passed on before the bound is met.
    pub in_body: bool,
}

/// One byte, or one field, above each default.
#[expect(clippy::too_many_lines, reason = "a table is read as one")]
pub fn limits() -> Vec<LimitRow> {
    let get =
        |line: &str, fields: &str| format!("GET {line} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes();
    let chunked = |body: String| {
        format!("POST /chunk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}").into_bytes()
    };
    let row = |what, bytes, cause, status, setting, in_body| LimitRow {
        what,
        bytes,
        cause,
        status,
        setting,
        in_body,
    };
    vec![
        row(
            "request line of more than 16 KiB",
            get(&format!("/{}", "a".repeat(16 * 1024 - 13)), ""),
            "request_line_too_long",
            414,
            "--max-request-line-bytes",
            false,
        ),
        row(
            "field line of more than 32 KiB",
            get("/", &format!("x: {}\r\n", "a".repeat(32 * 1024 - 2))),
            "header_line_too_long",
            431,
            "--max-header-line-bytes",
            false,
        ),
        row(
            "more than 100 field lines",
            get("/", &"x: y\r\n".repeat(100)),
            "too_many_headers",
            431,
            "--max-header-count",
            false,
        ),
        row(
            "field lines of more than 60 KiB together",
            get("/", &format!("x: {}\r\n", "a".repeat(1019)).repeat(60)),
            "headers_too_large",
            431,
            "--max-header-bytes",
            false,
        ),
        row(
            "trailers of more than 16 KiB together",
            chunked(format!("0\r\n{}\r\n", format!("x: {}\r\n", "a".repeat(1020)).repeat(16))),
            "trailers_too_large",
            431,
            "--max-trailer-bytes",
            true,
        ),
        row(
            "chunk extensions of more than 4 KiB beyond the data",
            chunked(format!("1;{}\r\n", "a".repeat(4 * 1024 + 1))),
            "chunk_extensions_too_large",
            400,
            "--max-chunk-extension-bytes",
            true,
        ),
    ]
}

/// What looks like something refused and is as the standard has it: what is sent, and exactly what is passed on, but for
/// the fields that every proxy adds (`x-forwarded-*`, `x-request-id`).
pub const ACCEPTED: &[(&str, &[u8], &[u8])] = &[
    (
        "one empty line before the request",
        b"\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "spaces and tabs around a value",
        b"GET /2 HTTP/1.1\r\nHost:\ta \t\r\nX:y\r\n\r\n",
        b"GET /2 HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n",
    ),
    (
        "length with a leading zero",
        b"POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 05\r\n\r\nhello",
        b"POST /3 HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\n\r\nhello",
    ),
    (
        "coding in capitals",
        b"POST /4 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST /4 HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk size with zeros, capitals and an extension",
        b"POST /5 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n000A;a=\"b;c\"\r\n0123456789\r\n0\r\n\r\n",
        b"POST /5 HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n",
    ),
    (
        "a trailer",
        b"POST /6 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
        b"POST /6 HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
    ),
    (
        "absolute target",
        b"GET http://a/7?b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /7?b HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "`*` with OPTIONS",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "dot segments and needless escapes",
        b"GET /8/../%61/./b%2fc HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a/b%2Fc HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "Connection that names Host and the length",
        b"POST /9 HTTP/1.1\r\nHost: a\r\nConnection: host, content-length, x\r\nX: y\r\nContent-Length: 1\r\n\r\na",
        b"POST /9 HTTP/1.1\r\nHost: a\r\ncontent-length: 1\r\n\r\na",
    ),
    (
        "fields of the connection",
        b"GET /10 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nTE: gzip\r\nProxy-Connection: close\r\n\r\n",
        b"GET /10 HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "offer of HTTP/2",
        b"GET /11 HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        b"GET /11 HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "HTTP/1.0",
        b"GET /12 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        b"GET /12 HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    (
        "bytes above 127 in a value",
        b"GET /13 HTTP/1.1\r\nHost: a\r\nX: \xc3\xa4\r\n\r\n",
        b"GET /13 HTTP/1.1\r\nHost: a\r\nX: \xc3\xa4\r\n\r\n",
    ),
    (
        "length of 32 digits",
        b"POST /14 HTTP/1.1\r\nHost: a\r\nContent-Length: 00000000000000000000000000000005\r\n\r\nhello",
        b"POST /14 HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\n\r\nhello",
    ),
    (
        "chunk sizes of 16 and 32 digits",
        b"POST /15 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n000000000000000A\r\n0123456789\r\n00000000000000000000000000000000\r\n\r\n",
        b"POST /15 HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n",
    ),
    (
        "a port that is empty",
        b"GET /16 HTTP/1.1\r\nHost: a:\r\n\r\n",
        b"GET /16 HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    (
        "an absolute target whose port is empty, and Host with that of its scheme",
        b"GET http://a:/17 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        b"GET /17 HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    (
        "a minor version above 1",
        b"GET /18 HTTP/1.9\r\nHost: a\r\n\r\n",
        b"GET /18 HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
];
