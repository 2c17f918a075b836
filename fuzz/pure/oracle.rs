//! Another parser reads the same bytes: where it takes a head that we take, both must have read the same, and it must
//! never take less than we do.

use meshwork_http1::{
    HeadScan, Limits, Parsed, RequestHead, RequestKind, ResponseHead, parse_request, parse_response,
};

/// A request's head and a response's.
pub(crate) fn heads(data: &[u8]) {
    request(data);
    response(data);
}

fn request(data: &[u8]) {
    let mut ours = RequestHead::new();
    let Ok(Parsed::Done { consumed }) =
        parse_request(data, &Limits::default(), &mut HeadScan::default(), &mut ours)
    else {
        return;
    };
    let mut storage = [httparse::EMPTY_HEADER; 128];
    let mut theirs = httparse::Request::new(&mut storage);
    let read = theirs.parse(data);
    if read == Err(httparse::Error::Version) {
        // RFC 9110 section 2.5: a later minor version is read like 1.1; it knows 1.0 and 1.1 only.
        return;
    }
    assert_eq!(read, Ok(httparse::Status::Complete(consumed)), "{}", String::from_utf8_lossy(data));
    assert_eq!(Some(ours.method.as_str()), theirs.method);
    assert_eq!(ours.version == meshwork_http1::Version::Http11, theirs.version == Some(1));
    assert!(ours.fields.iter().eq(theirs.headers.iter().map(|h| (h.name.as_bytes(), h.value))));
}

fn response(data: &[u8]) {
    let mut ours = ResponseHead::new();
    let read =
        parse_response(data, &Limits::default(), RequestKind::Other, &mut HeadScan::default(), &mut ours);
    let Ok(Parsed::Done { consumed }) = read else { return };
    let mut storage = [httparse::EMPTY_HEADER; 128];
    let mut theirs = httparse::Response::new(&mut storage);
    let read = theirs.parse(data);
    if read == Err(httparse::Error::Version) {
        // RFC 9110 section 2.5: a later minor version is read like 1.1; it knows 1.0 and 1.1 only.
        return;
    }
    assert_eq!(read, Ok(httparse::Status::Complete(consumed)), "{}", String::from_utf8_lossy(data));
    assert_eq!(Some(ours.status), theirs.code);
    assert!(ours.fields.iter().eq(theirs.headers.iter().map(|h| (h.name.as_bytes(), h.value))));
}
