//! What is written is read back the same, however the network cuts it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use bytes::{Bytes, BytesMut};
use http::Method;
use meshwork_http1::{
    BodyDecoder, BodyLength, ConnectionOption, Decoded, Fields, HeadScan, KnownName, Limits, ParseError,
    Parsed, RequestHead, RequestKind, ResponseHead, parse_request, parse_response, strip_hop_by_hop,
    write_chunk, write_last_chunk, write_request_head, write_response_head,
};
use proptest::prelude::*;

/// Names that the writer leaves to the caller, or that would change what the head means.
fn is_structural(name: &str) -> bool {
    let Some(known) = KnownName::find(name.as_bytes()) else { return false };
    matches!(
        known,
        KnownName::Host
            | KnownName::ContentLength
            | KnownName::TransferEncoding
            | KnownName::Connection
            | KnownName::Upgrade
            | KnownName::Te
            | KnownName::Expect
            | KnownName::Trailer
    )
}

fn field() -> impl Strategy<Value = (String, String)> {
    let name = prop_oneof![
        3 => "[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,12}",
        1 => prop::sample::select(KnownName::ALL).prop_map(|known| known.as_str().to_owned()),
    ];
    let value = prop_oneof![Just(String::new()), "[!-~]([ -~\tä]{0,20}[!-~])?"];
    (name.prop_filter("structural", |name| !is_structural(name)), value)
}

fn field_list() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(field(), 0..12)
}

fn fields_of(list: &[(String, String)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in list {
        fields.push(name, value).unwrap();
    }
    fields
}

fn without_framing(fields: &Fields) -> Fields {
    let mut fields = fields.clone();
    fields.retain(|known, _, _| !matches!(known, Some(KnownName::ContentLength)));
    strip_hop_by_hop(&mut fields);
    fields
}

fn body_length() -> impl Strategy<Value = BodyLength> {
    prop_oneof![
        Just(BodyLength::None),
        (0u64..1_000_000_000_000_000_000).prop_map(BodyLength::Known),
        Just(BodyLength::Chunked),
    ]
}

fn parse_whole(bytes: &[u8]) -> Result<RequestHead, ParseError> {
    let mut head = RequestHead::new();
    match parse_request(bytes, &Limits::default(), &mut HeadScan::default(), &mut head)? {
        Parsed::Done { consumed } => assert_eq!(consumed, bytes.len()),
        Parsed::Incomplete => panic!("incomplete: {}", String::from_utf8_lossy(bytes)),
    }
    Ok(head)
}

/// A chunked body as a peer may write it: pieces, extensions, trailers.
fn chunked_body() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, Vec<(String, String)>)> {
    let ext =
        prop_oneof![4 => Just(""), 1 => Just(";a"), 1 => Just(" ; a = \"b\\\" ;\""), 1 => Just(";a=b;c")];
    let piece = (prop::collection::vec(any::<u8>(), 1..60), ext, any::<bool>());
    (prop::collection::vec(piece, 0..8), field_list()).prop_map(|(pieces, trailers)| {
        let (mut wire, mut body) = (Vec::new(), Vec::new());
        for (data, ext, upper) in pieces {
            let size = if upper { format!("00{:X}", data.len()) } else { format!("{:x}", data.len()) };
            wire.extend_from_slice(format!("{size}{ext}\r\n").as_bytes());
            wire.extend_from_slice(&data);
            wire.extend_from_slice(b"\r\n");
            body.extend_from_slice(&data);
        }
        write_last_chunk(&mut wire, Some(&fields_of(&trailers)));
        (wire, body, trailers)
    })
}

proptest! {
    #[test]
    fn however_an_authority_is_spelled_it_reads_as_one(
        host in "[a-zA-Z][a-z0-9._-]{0,10}|\\[::[0-9a-f]{1,4}\\]",
        port in prop::option::of(any::<u16>()),
        (https, is_absolute) in (any::<bool>(), any::<bool>()),
        (first, second) in (0..3usize, 0..3usize),
    ) {
        let (scheme, usual) = if https { ("https", 443) } else { ("http", 80) };
        // What means the same: without a port, or with the scheme's.
        let spelled = |which: usize| match (port, which) {
            (Some(port), _) => format!("{host}:{port}"),
            (None, 0) => host.clone(),
            (None, 1) => format!("{host}:"),
            (None, _) if is_absolute => format!("{host}:{usual}"),
            (None, _) => host.clone(),
        };
        let (target, named) = (spelled(first), spelled(second));
        let text = if is_absolute {
            format!("GET {scheme}://{target}/ HTTP/1.1\r\nHost: {named}\r\n\r\n")
        } else {
            format!("GET / HTTP/1.1\r\nHost: {named}\r\n\r\n")
        };
        let head = parse_whole(text.as_bytes()).unwrap();
        let counts = if is_absolute { target } else { named };
        prop_assert_eq!(head.authority(), Some(counts.trim_end_matches(':')), "{}", text);
        prop_assert_eq!(head.host(), Some(&*host), "{}", text);
        let said: Vec<&[u8]> = head.fields.known_all(KnownName::Host).collect();
        prop_assert!(said.len() == 1 && !said[0].ends_with(b":"), "{}", text);
        // Whoever reads what is passed on reads the same.
        let mut wire = BytesMut::new();
        let path = head.target.path_and_query();
        write_request_head(&mut wire, &head.method, path, &head.fields, head.body, ConnectionOption::None).unwrap();
        let passed_on = parse_whole(&wire).unwrap();
        prop_assert_eq!(passed_on.host(), Some(&*host), "{}", text);
        let another = text.replacen("Host: ", "Host: x", 1);
        let refused = is_absolute && !host.starts_with('[');
        prop_assert!(!refused || parse_whole(another.as_bytes()).err() == Some(ParseError::HostMismatch), "{}", another);
    }

    #[test]
    fn a_written_request_reads_back_the_same(
        method in "[A-Z]{1,20}".prop_filter("CONNECT has another target", |m| m != "CONNECT"),
        target in "/[a-zA-Z0-9/._~-]{0,30}(\\?[a-z=&%]{0,10})?",
        list in field_list(),
        body in body_length(),
    ) {
        let mut fields = fields_of(&list);
        fields.push("Host", "example.com:8080").unwrap();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut wire = BytesMut::new();
        write_request_head(&mut wire, &method, &target, &fields, body, ConnectionOption::None).unwrap();
        let head = parse_whole(&wire).unwrap();
        prop_assert_eq!((&head.method, head.target.path_and_query(), head.body), (&method, target.as_str(), body));
        prop_assert_eq!(without_framing(&head.fields), without_framing(&fields));

        // Cut everywhere: byte by byte with one scan, the result is the same.
        let (mut scan, mut slow) = (HeadScan::default(), RequestHead::new());
        for end in 0..wire.len() {
            let parsed = parse_request(&wire[..end], &Limits::default(), &mut scan, &mut slow);
            prop_assert_eq!(parsed, Ok(Parsed::Incomplete), "at {}", end);
        }
        let parsed = parse_request(&wire, &Limits::default(), &mut scan, &mut slow);
        prop_assert_eq!(parsed, Ok(Parsed::Done { consumed: wire.len() }));
        prop_assert_eq!(&slow, &head);

        // The same memory reads the next request; bytes behind a head are not its own.
        wire.extend_from_slice(b"GET / HTTP/1.1\r\n");
        let parsed = parse_request(&wire, &Limits::default(), &mut scan, &mut slow);
        prop_assert_eq!(parsed, Ok(Parsed::Done { consumed: wire.len() - 16 }));
        prop_assert_eq!(&slow, &head);
    }

    #[test]
    fn a_written_response_reads_back_the_same(
        status in 200u16..1000,
        reason in "[!-~]([ -~]{0,10}[!-~])?",
        list in field_list(),
        body in body_length().prop_filter("a response without any ends with the connection", |b| *b != BodyLength::None),
    ) {
        prop_assume!(status != 204 && status != 304);
        let fields = without_framing(&fields_of(&list));
        let mut wire = Vec::new();
        write_response_head(&mut wire, status, reason.as_bytes(), &fields, body, ConnectionOption::None);
        let (mut scan, mut head) = (HeadScan::default(), ResponseHead::new());
        for end in 0..wire.len() {
            let parsed = parse_response(&wire[..end], &Limits::default(), RequestKind::Other, &mut scan, &mut head);
            prop_assert_eq!(parsed, Ok(Parsed::Incomplete), "at {}", end);
        }
        let parsed = parse_response(&wire, &Limits::default(), RequestKind::Other, &mut scan, &mut head);
        prop_assert_eq!(parsed, Ok(Parsed::Done { consumed: wire.len() }));
        prop_assert_eq!((head.status, &head.reason[..], head.body), (status, reason.as_bytes(), body));
        prop_assert_eq!(without_framing(&head.fields), fields);
    }

    /// Whatever white space a field had and whichever neighbours went, the rest is forwarded unchanged.
    #[test]
    fn an_edited_head_is_forwarded_as_edited(
        list in prop::collection::vec((field(), "[ \t]{0,2}", "[ \t]{0,2}"), 0..12),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        added in field(),
    ) {
        let mut wire = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
        for ((name, value), before, after) in &list {
            wire.extend_from_slice(format!("{name}:{before}{value}{after}\r\n").as_bytes());
        }
        wire.extend_from_slice(b"\r\n");
        let mut head = parse_whole(&wire).unwrap();
        for index in removed {
            if !list.is_empty() {
                head.fields.remove(&index.get(&list).0.0);
            }
        }
        head.fields.push(&added.0, &added.1).unwrap();
        let mut again = Vec::new();
        write_request_head(&mut again, &head.method, "/", &head.fields, head.body, ConnectionOption::None).unwrap();
        prop_assert_eq!(without_framing(&parse_whole(&again).unwrap().fields), without_framing(&head.fields));
    }

    #[test]
    fn a_chunked_body_is_the_same_however_it_is_cut(
        (wire, body, trailers) in chunked_body(),
        cuts in prop::collection::vec(1usize..40, 1..20),
        next in prop::collection::vec(any::<u8>(), 0..10),
    ) {
        let limits = Limits { chunk_ext: 1 << 20, ..Limits::default() };
        let mut stream = Bytes::from([&wire[..], &next[..]].concat());
        let mut cuts = cuts.into_iter().cycle();
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let (mut buf, mut got) = (BytesMut::new(), Vec::new());
        let ended = loop {
            match decoder.decode(&mut buf, &limits).unwrap() {
                Decoded::Data(data) => {
                    prop_assert!(!data.is_empty());
                    got.extend_from_slice(&data);
                }
                Decoded::End { trailers } => break trailers,
                Decoded::NeedMore => {
                    prop_assert!(!decoder.is_done() && !stream.is_empty());
                    let piece = stream.split_to(cuts.next().unwrap().min(stream.len()));
                    buf.extend_from_slice(&piece);
                }
            }
        };
        prop_assert!(decoder.is_done() && decoder.finish_eof().is_ok());
        prop_assert_eq!(got, body);
        prop_assert_eq!(ended.unwrap_or_default(), fields_of(&trailers));
        prop_assert_eq!([&buf[..], &stream[..]].concat(), next, "what follows belongs to the next message");
    }

    /// A body that is cut short anywhere is never taken for a whole one.
    #[test]
    fn a_truncated_body_is_an_error((wire, ..) in chunked_body(), cut in any::<prop::sample::Index>()) {
        let limits = Limits { chunk_ext: 1 << 20, ..Limits::default() };
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let mut buf = BytesMut::from(&wire[..cut.index(wire.len())]);
        loop {
            match decoder.decode(&mut buf, &limits).unwrap() {
                Decoded::Data(_) => {}
                Decoded::NeedMore => break,
                Decoded::End { .. } => prop_assert!(false, "ended without its end"),
            }
        }
        prop_assert_eq!(decoder.finish_eof(), Err(ParseError::PrematureEof));
    }

    #[test]
    fn written_chunks_decode_to_the_data(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6)) {
        let mut wire = BytesMut::new();
        for piece in &pieces {
            write_chunk(&mut wire, piece);
        }
        write_last_chunk(&mut wire, None);
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let mut got = Vec::new();
        while let Decoded::Data(data) = decoder.decode(&mut wire, &Limits::default()).unwrap() {
            got.extend_from_slice(&data);
        }
        prop_assert!(decoder.is_done());
        prop_assert_eq!(got, pieces.concat());
    }

    #[test]
    fn no_bytes_make_a_parser_panic_or_read_past_the_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let limits = Limits { header_count: 5, header_bytes: 100, header_line: 50, request_line: 50, ..Limits::default() };
        let mut request = RequestHead::new();
        if let Ok(Parsed::Done { consumed }) = parse_request(&bytes, &limits, &mut HeadScan::default(), &mut request) {
            prop_assert!(consumed <= bytes.len());
        }
        let _ = format!("{request:?}");
        let mut decoder = BodyDecoder::new(BodyLength::Chunked);
        let mut buf = BytesMut::from(&bytes[..]);
        while let Ok(Decoded::Data(_)) = decoder.decode(&mut buf, &limits) {}
    }
}

#[test]
fn a_known_length_ends_exactly_there() {
    let mut decoder = BodyDecoder::new(BodyLength::Known(5));
    let mut buf = BytesMut::from("he");
    let limits = Limits::default();
    assert_eq!(decoder.decode(&mut buf, &limits), Ok(Decoded::Data(Bytes::from("he"))));
    assert_eq!(decoder.decode(&mut buf, &limits), Ok(Decoded::NeedMore));
    assert_eq!((decoder.remaining(), decoder.finish_eof()), (Some(3), Err(ParseError::PrematureEof)));
    buf.extend_from_slice(b"lloGET");
    assert_eq!(decoder.decode(&mut buf, &limits), Ok(Decoded::Data(Bytes::from("llo"))));
    assert_eq!(decoder.decode(&mut buf, &limits), Ok(Decoded::End { trailers: None }));
    assert_eq!(&buf[..], b"GET");
}

#[test]
fn a_body_until_close_ends_with_the_connection_only() {
    let mut decoder = BodyDecoder::new(BodyLength::UntilClose);
    let mut buf = BytesMut::from("all of it");
    assert_eq!(decoder.decode(&mut buf, &Limits::default()), Ok(Decoded::Data(Bytes::from("all of it"))));
    assert_eq!(decoder.decode(&mut buf, &Limits::default()), Ok(Decoded::NeedMore));
    assert!(!decoder.is_done());
    decoder.finish_eof().unwrap();
    assert!(decoder.is_done());
}

#[test]
fn heads_are_written_to_the_letter() {
    let mut fields = Fields::new();
    fields.push("Host", "a").unwrap();
    fields.push("content-length", "99").unwrap();
    fields.push("Transfer-Encoding", "gzip").unwrap();
    fields.push("X-Y", "z").unwrap();
    let request = |body, connection| {
        let mut out = Vec::new();
        write_request_head(&mut out, &Method::POST, "/a?b", &fields, body, connection).unwrap();
        String::from_utf8(out).unwrap()
    };
    let start = "POST /a?b HTTP/1.1\r\nHost: a\r\nX-Y: z\r\n";
    assert_eq!(request(BodyLength::None, ConnectionOption::None), format!("{start}\r\n"));
    assert_eq!(
        request(BodyLength::Known(0), ConnectionOption::Close),
        format!("{start}content-length: 0\r\nconnection: close\r\n\r\n")
    );
    assert_eq!(
        request(BodyLength::Chunked, ConnectionOption::KeepAlive),
        format!("{start}transfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n")
    );
    for target in ["", "/a b", "/a\r\nX: y", "/ä"] {
        let mut out = Vec::new();
        let written = write_request_head(
            &mut out,
            &Method::GET,
            target,
            &fields,
            BodyLength::None,
            ConnectionOption::None,
        );
        assert_eq!((written, out.len()), (Err(ParseError::BadTarget), 0));
    }

    let response = |status, reason: &str, body| {
        let mut out = Vec::new();
        write_response_head(&mut out, status, reason.as_bytes(), &fields, body, ConnectionOption::None);
        String::from_utf8(out).unwrap()
    };
    let rest = "Host: a\r\nX-Y: z\r\n";
    assert_eq!(response(200, "", BodyLength::UntilClose), format!("HTTP/1.1 200 OK\r\n{rest}\r\n"));
    assert_eq!(
        response(404, "a\r\nb", BodyLength::Known(7)),
        format!("HTTP/1.1 404 Not Found\r\n{rest}content-length: 7\r\n\r\n")
    );
    assert_eq!(
        response(599, "", BodyLength::Chunked),
        format!("HTTP/1.1 599 \r\n{rest}transfer-encoding: chunked\r\n\r\n")
    );
    // A response without body to HEAD keeps the length that GET would have; 204 may not have one.
    assert!(response(200, "", BodyLength::None).contains("content-length: 99"));
    assert!(!response(204, "", BodyLength::None).contains("content-length"));
}
