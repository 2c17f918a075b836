//! The engine's small readers: which protocol a connection speaks, one spelling of a path, the trace of a request.

use meshwork_http1::RequestHead;
use meshwork_proxy::parsers;

/// Once the bytes have told what they are, of a connection or of what a tunnel carries, more bytes do not change it; 24
/// bytes always tell.
pub(crate) fn detect(data: &[u8]) {
    let (mut known, mut known_inside) = (None, None);
    for end in 0..=data.len().min(64) {
        let (found, inside) = (parsers::is_http2(&data[..end]), parsers::inside(&data[..end]));
        assert!(known.is_none() || found == known, "{found:?} after {known:?} at {end}");
        assert!(
            known_inside.is_none() || inside == known_inside,
            "{inside:?} after {known_inside:?} at {end}"
        );
        assert!(end < 24 || found.is_some() && inside.is_some());
        assert_eq!(found == Some(true), inside == Some("http2"));
        (known, known_inside) = (found, inside);
    }
}

/// The normal form is one: it is its own normal form, and holds no dot segment and no escape that need not be one.
pub(crate) fn path(data: &[u8]) {
    // A broken escape is no target and never comes here; in a query it may be.
    let mut head = RequestHead::new();
    if head.target.set(&http::Method::GET, data).is_err() {
        return;
    }
    let text = head.target.path();
    let Some(normal) = parsers::normal_path(text) else { return };
    assert_eq!(parsers::normal_path(&normal), None, "{text:?} {normal:?}");
    assert!(normal.starts_with('/'));
    assert!(normal.split('/').all(|segment| segment != "." && segment != ".."), "{text:?} {normal:?}");
    assert!(!normal.contains('`'), "{text:?} {normal:?}");
    // A back-tick takes three bytes instead of one.
    assert!(normal.len() <= text.len() + 2 * text.matches('`').count());
}

/// What is found is 32 hexadecimal digits at the place where W3C Trace Context has them.
pub(crate) fn traceparent(data: &[u8]) {
    let Some(id) = parsers::trace_id(data) else { return };
    assert_eq!(id.hex().as_slice(), &data[3..35]);
    assert_ne!(id.hex(), [b'0'; 32]);
}
