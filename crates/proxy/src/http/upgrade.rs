//! A change of protocol as each version says it: HTTP/1.1 with Upgrade and 101 (RFC 9110 section 7.8), HTTP/2 with an
//! extended CONNECT and 200 (RFC 8441). Inside the proxy it looks as HTTP/1.1 writes it.
//!
//! Of all protocols only `websocket` crosses versions. Its handshake proves to each side of one hop that the other has
//! understood it (RFC 6455 section 1.3); HTTP/2 needs no such proof, so the key and its answer are made, and checked,
//! where a request comes from HTTP/2 or goes to it.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{Response, StatusCode};
use meshwork_base::Rng;
use meshwork_http1::{FieldError, Fields, KnownName, ResponseHead};

/// The one protocol that has a form in HTTP/2.
pub(crate) const WEBSOCKET: &str = "websocket";

/// The handshake's field of a request, over HTTP/1.1 only.
pub(crate) const KEY: &str = "sec-websocket-key";
/// The handshake's field of a response, over HTTP/1.1 only.
pub(crate) const ACCEPT: &str = "sec-websocket-accept";
/// Between proxies: the status of a refusal that cannot be said over HTTP/2.
const REFUSED: &str = "x-meshwork-refused-status";
/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

fn tokens(upgrade: &[u8]) -> impl Iterator<Item = &[u8]> {
    upgrade.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Whether an Upgrade offers this alone.
pub(crate) fn is_websocket(upgrade: &[u8]) -> bool {
    upgrade.trim_ascii().eq_ignore_ascii_case(WEBSOCKET.as_bytes())
}

/// What of an offer may go on. `h2c`, `HTTP/…` and `TLS/…` would let a caller speak HTTP to the endpoint past every rule
/// and policy, so they end here; `None`: nothing is left.
pub(crate) fn forwardable(upgrade: &[u8]) -> Option<Vec<u8>> {
    let harmless = |token: &&[u8]| {
        let name = token.split(|&byte| byte == b'/').next().unwrap_or_default();
        ![&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|bad| name.eq_ignore_ascii_case(bad))
    };
    let kept = tokens(upgrade).filter(harmless).collect::<Vec<_>>().join(&b", "[..]);
    (!kept.is_empty()).then_some(kept)
}

/// Whether an answer agrees to what was offered.
pub(crate) fn agrees(response: &Fields, offered: &[u8]) -> bool {
    let agreed = response.known(KnownName::Upgrade).unwrap_or_default();
    tokens(agreed).next().is_some()
        && tokens(agreed).all(|token| tokens(offered).any(|offer| offer.eq_ignore_ascii_case(token)))
}

/// The handshake's key, if it is one that a server takes (RFC 6455 section 4.2.1).
pub(crate) fn key(request: &Fields) -> Option<&[u8]> {
    let key = request.get(KEY)?;
    (BASE64.decode(key).ok()?.len() == 16).then_some(key)
}

/// Completes a handshake that came over HTTP/2 with a key of our own.
///
/// # Errors
/// Never in fact: a key is a field value.
pub(crate) fn make_key(request: &mut Fields, rng: &mut impl Rng) -> Result<(), FieldError> {
    let random = [rng.next_u64(), rng.next_u64()].map(u64::to_be_bytes);
    request.set(KEY, BASE64.encode(random.as_flattened()))
}

/// What a server that has understood the handshake answers to this key.
pub(crate) fn accept_of(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    BASE64.encode(hash.finish().as_ref())
}

/// Whether the answer proves that the handshake with this key was understood.
pub(crate) fn is_accepted(response: &Fields, key: &[u8]) -> bool {
    response.get(ACCEPT) == Some(accept_of(key).as_bytes())
}

/// Makes of HTTP/2's 200 the answer that HTTP/1.1 would give to a handshake with this key.
///
/// # Errors
/// Never in fact: these are field values.
pub(crate) fn switched(response: &mut ResponseHead, key: &[u8]) -> Result<(), FieldError> {
    response.status = 101;
    response.tunnel = true;
    response.fields.set_known(KnownName::Connection, "upgrade")?;
    response.fields.set_known(KnownName::Upgrade, WEBSOCKET)?;
    response.fields.set(ACCEPT, accept_of(key))
}

/// Says 502 where an application answered a handshake like any request, with a 2xx: over HTTP/2 that would agree. The next
/// proxy gets to know what it was.
pub(crate) fn refuse(response: &mut Response<()>) {
    let status = response.status();
    if status.is_success() {
        response.headers_mut().insert(REFUSED, status.as_u16().into());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
    }
}

/// The other way: what the application answered.
pub(crate) fn refused(response: &mut ResponseHead) {
    let status = response.fields.get(REFUSED).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    if let Some(status @ 200..=299) = status {
        response.status = status;
        response.fields.remove(REFUSED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_base::SeededRng;

    #[test]
    fn a_key_gets_the_answer_of_the_standard() {
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_made_key_is_one_and_no_two_are_the_same() {
        let mut rng = SeededRng::new(7);
        let (mut one, mut other) = (Fields::new(), Fields::new());
        make_key(&mut one, &mut rng).unwrap();
        make_key(&mut other, &mut rng).unwrap();
        assert!(key(&one).is_some() && key(&one) != key(&other));
    }

    #[test]
    fn no_offer_leads_past_the_rules() {
        assert_eq!(forwardable(b"websocket").as_deref(), Some(&b"websocket"[..]));
        assert_eq!(forwardable(b"H2C, foo/2 ,HTTP/2.0, TLS/1.0").as_deref(), Some(&b"foo/2"[..]));
        assert_eq!(forwardable(b"h2c"), None);
        assert_eq!(forwardable(b" , "), None);
    }

    #[test]
    fn an_answer_agrees_only_to_what_was_offered() {
        let answer = |value: &str| {
            let mut fields = Fields::new();
            fields.push_known(KnownName::Upgrade, value).unwrap();
            fields
        };
        assert!(agrees(&answer("WebSocket"), b"websocket"));
        assert!(!agrees(&answer("h2c"), b"websocket"));
        assert!(!agrees(&answer(""), b"websocket") && !agrees(&Fields::new(), b"websocket"));
    }

    #[test]
    fn a_key_of_another_length_is_none() {
        for bad in ["", "AAAA", "not base64 at all!", "dGhlIHNhbXBsZSBub25jZQ"] {
            let mut fields = Fields::new();
            fields.push(KEY, bad).unwrap();
            assert_eq!(key(&fields), None, "{bad}");
        }
    }
}
