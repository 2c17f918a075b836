//! HTTP/1.1 without I/O: heads of both directions and chunked bodies.

use bytes::BytesMut;
use meshwork_http1::{
    BodyDecoder, BodyLength, ConnectionOption, Decoded, Fields, HeadScan, Limits, ParseError, Parsed,
    RequestHead, RequestKind, ResponseHead, Version, parse_request, parse_response, strip_hop_by_hop,
    write_chunk, write_last_chunk, write_request_head, write_response_head,
};

fn limits() -> Limits {
    // Small, so that short inputs reach them.
    Limits {
        request_line: 200,
        header_line: 150,
        header_count: 12,
        header_bytes: 400,
        chunk_ext: 32,
        trailer_bytes: 100,
    }
}

fn check_fields(fields: &Fields) {
    for (name, value) in fields {
        assert!(!name.is_empty() && name.iter().all(|b| b.is_ascii_graphic() && *b != b':'), "{name:?}");
        assert!(value.iter().all(|&b| b >= b' ' && b != 0x7f || b == b'\t'), "{value:?}");
        assert!(!matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t']), "{value:?}");
    }
}

/// Two readers agree on where lines end: CR and LF come together or not at all.
fn check_lines(head: &[u8]) {
    assert!(head.ends_with(b"\r\n\r\n"));
    let after_cr = head.windows(2).all(|pair| (pair[0] == b'\r') == (pair[1] == b'\n'));
    assert!(after_cr && head[0] != b'\n', "{}", head.escape_ascii());
}

/// Parses with the bytes arriving one by one.
fn drip<H>(
    data: &[u8],
    head: &mut H,
    mut parse: impl FnMut(&[u8], &mut HeadScan, &mut H) -> Result<Parsed, ParseError>,
) -> Result<Parsed, ParseError> {
    let mut scan = HeadScan::default();
    for end in 0..=data.len() {
        match parse(&data[..end], &mut scan, head) {
            Ok(Parsed::Incomplete) => {}
            other => return other,
        }
    }
    Ok(Parsed::Incomplete)
}

/// A request head is the same however it arrives, holds nothing that could break out of a line, and is understood
/// the same by whoever reads what we forward of it.
pub(crate) fn request(data: &[u8]) {
    let limits = limits();
    let mut whole = RequestHead::new();
    let parsed = parse_request(data, &limits, &mut HeadScan::default(), &mut whole);
    let mut dripped = RequestHead::new();
    let slowly = drip(data, &mut dripped, |buf, scan, head| parse_request(buf, &limits, scan, head));
    check_fields(&whole.fields);
    check_fields(&dripped.fields);
    let Ok(Parsed::Done { consumed }) = parsed else {
        // Which of two faults is seen first may depend on how the bytes arrive; that there is one may not.
        assert_eq!(parsed.is_err(), slowly.is_err(), "{parsed:?} {slowly:?}");
        return;
    };
    assert_eq!((slowly, &dripped), (parsed, &whole));
    check_lines(&data[..consumed]);
    if whole.version == Version::Http10 || whole.target.path_and_query().is_empty() {
        return;
    }
    let mut fields = whole.fields.clone();
    strip_hop_by_hop(&mut fields);
    let mut wire = Vec::new();
    write_request_head(
        &mut wire,
        &whole.method,
        whole.target.path_and_query(),
        &fields,
        whole.body,
        ConnectionOption::None,
    )
    .expect("a parsed target can be written");
    let mut again = RequestHead::new();
    let reread = parse_request(&wire, &Limits::default(), &mut HeadScan::default(), &mut again);
    assert_eq!(reread, Ok(Parsed::Done { consumed: wire.len() }), "{}", String::from_utf8_lossy(&wire));
    assert_eq!((&again.method, again.body), (&whole.method, whole.body));
    assert_eq!(again.target.path_and_query(), whole.target.path_and_query());
}

/// The same for responses.
pub(crate) fn response(data: &[u8]) {
    let limits = limits();
    for kind in [RequestKind::Other, RequestKind::Head, RequestKind::Connect] {
        let mut whole = ResponseHead::new();
        let parsed = parse_response(data, &limits, kind, &mut HeadScan::default(), &mut whole);
        let mut dripped = ResponseHead::new();
        let slowly =
            drip(data, &mut dripped, |buf, scan, head| parse_response(buf, &limits, kind, scan, head));
        check_fields(&whole.fields);
        check_fields(&dripped.fields);
        let Ok(Parsed::Done { consumed }) = parsed else {
            assert_eq!(parsed.is_err(), slowly.is_err(), "{parsed:?} {slowly:?}");
            continue;
        };
        assert_eq!((slowly, &dripped), (parsed, &whole));
        check_lines(&data[..consumed]);
        assert!((100..1000).contains(&whole.status));
        if whole.tunnel {
            continue;
        }
        let mut fields = whole.fields.clone();
        strip_hop_by_hop(&mut fields);
        let mut wire = Vec::new();
        write_response_head(
            &mut wire,
            whole.status,
            &whole.reason,
            &fields,
            whole.body,
            ConnectionOption::None,
        );
        let mut again = ResponseHead::new();
        let reread = parse_response(&wire, &Limits::default(), kind, &mut HeadScan::default(), &mut again);
        assert_eq!(reread, Ok(Parsed::Done { consumed: wire.len() }), "{}", String::from_utf8_lossy(&wire));
        assert_eq!((again.status, again.body), (whole.status, whole.body));
    }
}

#[derive(Debug, PartialEq)]
struct Body {
    data: Vec<u8>,
    trailers: Option<Fields>,
    rest: Vec<u8>,
}

/// Decodes with so many bytes arriving at a time; `None` when the end did not arrive.
fn decode(data: &[u8], limits: &Limits, step: usize) -> Result<Option<Body>, ParseError> {
    let mut decoder = BodyDecoder::new(BodyLength::Chunked);
    let (mut buf, mut body) = (BytesMut::new(), Vec::new());
    let mut pieces = data.chunks(step);
    loop {
        match decoder.decode(&mut buf, limits)? {
            Decoded::Data(data) => body.extend_from_slice(&data),
            Decoded::End { trailers } => {
                let rest = [&buf[..], &pieces.collect::<Vec<_>>().concat()[..]].concat();
                return Ok(Some(Body { data: body, trailers, rest }));
            }
            Decoded::NeedMore => match pieces.next() {
                Some(piece) => buf.extend_from_slice(piece),
                None => {
                    assert_eq!(decoder.finish_eof(), Err(ParseError::PrematureEof));
                    return Ok(None);
                }
            },
        }
    }
}

/// The plainest reading of RFC 9112 section 7.1: what the data is and where the trailers begin.
fn reference(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut data = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(&rest[..end]).ok();
        let digits = rest[..end].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        assert!(
            digits == end || matches!(rest[digits], b';' | b' ' | b'\t'),
            "a size is followed by its extension: {line:?}"
        );
        let digits = std::str::from_utf8(&rest[..digits]).ok()?;
        let size = usize::try_from(u128::from_str_radix(digits, 16).ok()?).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some((data, rest));
        }
        data.extend_from_slice(rest.get(..size)?);
        rest = rest[size..].strip_prefix(b"\r\n")?;
    }
}

/// A chunked body is the same however it arrives, and reads back from what we forward of it.
pub(crate) fn chunked(data: &[u8]) {
    let whole = decode(data, &limits(), data.len().max(1));
    let dripped = decode(data, &limits(), 1);
    let Ok(Some(body)) = whole else {
        assert_eq!(whole.is_err(), dripped.is_err(), "{whole:?} {dripped:?}");
        return;
    };
    assert_eq!(
        dripped.as_ref(),
        Ok(&Some(Body { data: body.data.clone(), trailers: body.trailers.clone(), rest: body.rest.clone() }))
    );
    let (plain, behind) = reference(data).expect("what we take is a body to everybody");
    assert_eq!(plain, body.data);
    assert!(behind.ends_with(&body.rest) && behind.len() >= body.rest.len() + 2);
    let mut wire = Vec::new();
    write_chunk(&mut wire, &body.data);
    write_last_chunk(&mut wire, body.trailers.as_ref());
    wire.extend_from_slice(&body.rest);
    let again = decode(&wire, &Limits::default(), 7).expect("what we write decodes").expect("and ends");
    assert_eq!((again.data, again.rest), (body.data, body.rest));
    assert_eq!(again.trailers.unwrap_or_default(), body.trailers.unwrap_or_default());
}
