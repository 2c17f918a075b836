//! Crossing between HTTP/2's header maps and the proxy's own heads (RFC 9113 section 8).
//!
//! Inside the proxy a request looks as HTTP/1.1 would write it: the authority is Host, cookie crumbs are one field.
//! What HTTP/2 does not know (connection fields) was removed before; what HTTP/1.1 does not know (pseudo-fields) is
//! in the head's own members.

use bytes::Bytes;
use h2::ext::Protocol;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, StatusCode, Uri};
use meshwork_decision::Cause;
use meshwork_http1::{
    BodyLength, Fields, KnownName, Limit, Limits, ParseError, RequestHead, ResponseHead, Version,
    content_length, is_same_authority, read_authority,
};

use super::upgrade;
use crate::error::Failure;
use crate::upstream::Head;

/// The fields of a map, in its order.
///
/// # Errors
/// A name that is none.
pub(crate) fn fields_of(map: &HeaderMap) -> Result<Fields, ParseError> {
    let mut fields = Fields::new();
    fill(map, &mut fields)?;
    Ok(fields)
}

fn fill(map: &HeaderMap, fields: &mut Fields) -> Result<(), ParseError> {
    reserve(map, fields);
    map.iter().try_for_each(|(name, value)| add(fields, name, value))
}

/// HTTP/2's decoder has checked the value.
fn add(fields: &mut Fields, name: &HeaderName, value: &HeaderValue) -> Result<(), ParseError> {
    // No list that the decoder accepts is too large.
    fields.push_header(name, value).map_err(|_| ParseError::BadFieldName)
}

/// Fields that a proxy usually adds, and their bytes.
const ADDED: (usize, usize) = (4, 256);

/// Makes room for all of a map, so that the list grows once.
fn reserve(map: &HeaderMap, fields: &mut Fields) {
    // A line has ": " and CR LF besides.
    let bytes: usize = map.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    fields.reserve(map.len() + ADDED.0, bytes + ADDED.1);
}

/// The map of these fields; what HTTP/2 forbids (connection-specific fields, Host) is left out.
pub(crate) fn map_of(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.len());
    // One copy of the text, of which all values are parts.
    let text = Bytes::copy_from_slice(fields.text());
    for (known, name, value) in fields.iter_ranges() {
        if is_connection_specific(known) {
            continue;
        }
        // `h2` takes no more than 19 digits, whatever number they are.
        if known == Some(KnownName::ContentLength)
            && let zeros @ [b'0', _, ..] = &fields.text()[value.clone()]
            && let Ok(length) = content_length(zeros)
        {
            map.append(http::header::CONTENT_LENGTH, length.into());
            continue;
        }
        let name = known.map_or_else(|| HeaderName::from_bytes(name), |known| Ok(known.header_name()));
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(text.slice(value))) {
            map.append(name, value);
        }
    }
    map
}

/// RFC 9113 section 8.2.2; Host goes as `:authority`.
fn is_connection_specific(name: Option<KnownName>) -> bool {
    matches!(
        name,
        Some(
            KnownName::Connection
                | KnownName::KeepAlive
                | KnownName::ProxyConnection
                | KnownName::TransferEncoding
                | KnownName::Upgrade
                | KnownName::Te
                | KnownName::Host
        )
    )
}

/// Reads an HTTP/2 request into a head.
///
/// # Errors
/// What of the request is not HTTP (RFC 9113 section 8.3.1), or a protocol that nobody here speaks.
pub(crate) fn request_into(
    request: &Request<h2::RecvStream>,
    limits: &Limits,
    head: &mut RequestHead,
) -> Result<(), Failure> {
    let protocol = request.extensions().get::<Protocol>();
    read(request, protocol.is_some(), limits, head).map_err(Failure::refused)?;
    protocol.map_or(Ok(()), |protocol| offer(protocol, head))
}

/// An extended CONNECT is what HTTP/1.1 writes as GET with Upgrade (RFC 8441 section 5).
fn read(
    request: &Request<h2::RecvStream>,
    extended: bool,
    limits: &Limits,
    head: &mut RequestHead,
) -> Result<(), ParseError> {
    head.clear();
    head.method = if extended { Method::GET } else { request.method().clone() };
    head.version = Version::Http11;
    head.keep_alive = true;
    let target = match request.uri().path_and_query() {
        Some(path) => path.as_str().as_bytes(),
        None if head.method == Method::CONNECT => {
            request.uri().authority().ok_or(ParseError::MissingHost)?.as_str().as_bytes()
        }
        None => return Err(ParseError::BadTarget),
    };
    if request.uri().scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(ParseError::BadTarget);
    }
    let method = head.method.clone();
    head.target.set(&method, target)?;
    let authority = authority(request)?;
    head.fields.push_known(KnownName::Host, authority).map_err(|_| ParseError::BadHost)?;
    fill_request(request.headers(), head)?;
    check_bounds(&head.fields, limits)?;
    if head.fields.known_all(KnownName::ContentLength).nth(1).is_some() {
        return Err(ParseError::RepeatedLength);
    }
    let length = head.fields.known(KnownName::ContentLength).map(content_length).transpose()?;
    head.body = match length {
        Some(length) => BodyLength::Known(length),
        None if request.body().is_end_stream() => BodyLength::None,
        None => BodyLength::Chunked,
    };
    head.expect_continue = !head.body.is_empty()
        && head.fields.known(KnownName::Expect).is_some_and(|e| e.eq_ignore_ascii_case(b"100-continue"));
    Ok(())
}

/// The one authority of a request, as everybody from here on sees it.
fn authority(request: &Request<h2::RecvStream>) -> Result<&[u8], ParseError> {
    let mut hosts = request.headers().get_all(http::header::HOST).iter().map(HeaderValue::as_bytes);
    let (host, other) = (hosts.next(), hosts.next());
    if other.is_some() {
        return Err(ParseError::RepeatedHost);
    }
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    if let (Some(authority), Some(host)) = (authority, host)
        && !is_same_authority(request.uri().scheme_str(), authority, host)?
    {
        return Err(ParseError::HostMismatch);
    }
    // What `http` takes for an authority is more than what a Host field may be (RFC 9113 section 8.3.1).
    read_authority(authority.or(host).ok_or(ParseError::MissingHost)?)
}

/// Bytes that are written around a field's name and value in HTTP/1.1.
pub(crate) const AROUND: usize = ": \r\n".len();

/// Bounds on fields as in HTTP/1.1, as they would be written there.
///
/// # Errors
/// The first bound that they exceed.
pub(crate) fn check_bounds(fields: &Fields, limits: &Limits) -> Result<(), ParseError> {
    check_bound(Limit::HeaderCount, limits.header_count, fields.len())?;
    let mut bytes = 0;
    for (name, value) in fields.iter() {
        let written = name.len() + value.len() + AROUND;
        check_bound(Limit::HeaderLine, limits.header_line, written - "\r\n".len())?;
        bytes += written;
    }
    check_bound(Limit::HeaderBytes, limits.header_bytes, bytes)
}

/// # Errors
/// It is more than `max`.
pub(crate) fn check_bound(limit: Limit, max: u32, is: usize) -> Result<(), ParseError> {
    if is > max as usize { Err(ParseError::OverLimit { limit, max }) } else { Ok(()) }
}

/// What a message may have that comes from another proxy: it was within the limits when that one took it, and has its
/// fields since.
pub(crate) const fn with_fields_of_proxies(limits: Limits) -> Limits {
    Limits {
        header_count: limits.header_count.saturating_add(16),
        header_bytes: limits.header_bytes.saturating_add(4 * 1024),
        ..limits
    }
}

/// How much `h2` may decode of a list of fields, where 32 bytes are added to each (RFC 9113 section 6.5.2). What is longer it
/// answers itself, and says nothing of limits; so that is far beyond ours.
pub(crate) const fn longest_list(limits: &Limits) -> u32 {
    limits.header_bytes.saturating_mul(2).saturating_add(limits.header_count.saturating_mul(64))
}

/// An extended CONNECT as HTTP/1.1 writes it. What follows in the stream is no body.
fn offer(protocol: &Protocol, head: &mut RequestHead) -> Result<(), Failure> {
    if !protocol.as_str().eq_ignore_ascii_case(upgrade::WEBSOCKET) {
        let why = format!("extended CONNECT to `{}`: only websocket is carried", protocol.as_str());
        return Err(Failure::downstream(Cause::NotImplemented).because(why));
    }
    if head.fields.known(KnownName::ContentLength).is_some() {
        return Err(Failure::refused(ParseError::BadLength));
    }
    let connection = head.fields.set_known(KnownName::Connection, "upgrade");
    let upgrade = head.fields.set_known(KnownName::Upgrade, upgrade::WEBSOCKET);
    connection.and(upgrade).expect("constants are field values");
    head.upgrade = true;
    head.body = BodyLength::None;
    Ok(())
}

/// Whether white space stands around a value. RFC 9113 section 8.2.1 calls that malformed, since what HTTP/1 would trim is another value
/// there; libraries of gRPC send it all the same, where an application's text ends so.
fn is_padded(value: &HeaderValue) -> bool {
    matches!(value.as_bytes(), [b' ' | b'\t', ..] | [.., b' ' | b'\t'])
}

/// Whether a message with a padded value in this field goes on, without the white space: one that frames or routes is never guessed at.
#[cold]
fn may_be_padded(name: &HeaderName) -> bool {
    !KnownName::find(name.as_str().as_bytes()).is_some_and(KnownName::frames_or_routes)
}

/// Whether the caller speaks gRPC, of any kind.
#[cold]
fn is_grpc(map: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let value = map.get(http::header::CONTENT_TYPE).map(|value| value.as_bytes().trim_ascii());
    value.and_then(|value| value.get(..GRPC.len())).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
}

/// All but Host, which is there already.
fn fill_request(map: &HeaderMap, head: &mut RequestHead) -> Result<(), ParseError> {
    let mut cookies: Vec<u8> = Vec::new();
    reserve(map, &mut head.fields);
    for (name, value) in map {
        if is_padded(value) && !(may_be_padded(name) && is_grpc(map)) {
            return Err(ParseError::BadFieldValue);
        }
        if *name == http::header::HOST {
            continue;
        }
        if *name == http::header::COOKIE {
            // Crumbs are joined before they reach HTTP/1 (RFC 9113 section 8.2.3).
            if !cookies.is_empty() {
                cookies.extend_from_slice(b"; ");
            }
            cookies.extend_from_slice(value.as_bytes().trim_ascii());
            continue;
        }
        add(&mut head.fields, name, value)?;
    }
    if !cookies.is_empty() {
        let _ = head.fields.push_known(KnownName::Cookie, &cookies);
    }
    Ok(())
}

/// The HTTP/2 form of a request. `extended`: its Upgrade to WebSocket goes as an extended CONNECT (RFC 8441).
///
/// # Errors
/// What of it HTTP/2 cannot carry; a filter wrote it.
pub(crate) fn request(head: &Head<'_>, extended: bool) -> Result<Request<()>, String> {
    let mut request = Request::new(());
    *request.method_mut() = if extended { Method::CONNECT } else { head.method.clone() };
    let mut uri = http::uri::Parts::default();
    if head.authority.is_empty() && *head.method != Method::CONNECT {
        // HTTP/1.0 knows requests without, and `:authority` is left out of those (RFC 9113 section 8.3.1): `h2` takes such
        // a request for a relative one, of scheme `http`.
        *request.version_mut() = http::Version::HTTP_11;
    } else {
        *request.version_mut() = http::Version::HTTP_2;
        let authority = Authority::try_from(head.authority);
        uri.authority = Some(authority.map_err(|e| format!("authority `{}`: {e}", head.authority))?);
    }
    if *head.method != Method::CONNECT {
        let scheme = if head.https { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP };
        uri.scheme = uri.authority.is_some().then_some(scheme);
        let path = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(head.path.as_bytes()));
        uri.path_and_query = Some(path.map_err(|e| format!("path `{}`: {e}", head.path))?);
    }
    *request.uri_mut() = Uri::from_parts(uri).map_err(|e| format!("target `{}`: {e}", head.path))?;
    let map = request.headers_mut();
    *map = map_of(head.fields);
    if head.te_trailers {
        map.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
    if extended {
        map.remove(upgrade::KEY);
        // It has no content (RFC 9110 section 9.3.6); beside a length of 0, the tunnel's bytes were too many.
        map.remove(http::header::CONTENT_LENGTH);
        request.extensions_mut().insert(Protocol::from_static(upgrade::WEBSOCKET));
    }
    Ok(request)
}

/// Reads an HTTP/2 response head. `end`: no body follows.
///
/// # Errors
/// It says its length twice, or what is no length (RFC 9110 section 8.6): whoever reads it next could take the other one. Or
/// white space stands around a value that frames, or a name is none.
pub(crate) fn response_into(
    response: &Response<()>,
    end: bool,
    head: &mut ResponseHead,
) -> Result<(), ParseError> {
    head.clear();
    head.status = response.status().as_u16();
    head.version = Version::Http11;
    head.keep_alive = true;
    if response.headers().iter().any(|(name, value)| is_padded(value) && !may_be_padded(name)) {
        return Err(ParseError::BadFieldValue);
    }
    fill(response.headers(), &mut head.fields)?;
    let mut lengths = head.fields.known_all(KnownName::ContentLength);
    let declared = match (lengths.next(), lengths.next()) {
        (None, _) => None,
        (Some(_), Some(_)) => return Err(ParseError::RepeatedLength),
        (Some(said), None) => Some(content_length(said)?),
    };
    head.body = match declared {
        _ if end => BodyLength::None,
        Some(length) => BodyLength::Known(length),
        None => BodyLength::Chunked,
    };
    Ok(())
}

/// The HTTP/2 form of a response.
///
/// A change of protocol, 101 in HTTP/1.1, is 200 here.
pub(crate) fn response(head: &ResponseHead) -> Response<()> {
    let mut response = Response::new(());
    *response.version_mut() = http::Version::HTTP_2;
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let map = response.headers_mut();
    *map = map_of(&head.fields);
    if head.tunnel {
        map.remove(upgrade::ACCEPT);
        map.remove(http::header::CONTENT_LENGTH);
        *response.status_mut() = StatusCode::OK;
        return response;
    }
    // RFC 9110 section 8.6.
    if head.status / 100 == 1 || head.status == 204 {
        map.remove(http::header::CONTENT_LENGTH);
        return response;
    }
    // Of what came from an upstream, the length is among the fields; of our own answers it is known.
    if let BodyLength::Known(length @ 1..) = head.body
        && !map.contains_key(http::header::CONTENT_LENGTH)
    {
        map.insert(http::header::CONTENT_LENGTH, length.into());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_fields_do_not_cross_into_http2() {
        let mut fields = Fields::new();
        for (name, value) in
            [("Host", "a"), ("Connection", "x"), ("TE", "gzip"), ("X-Kept", "1"), ("x-kept", "2")]
        {
            fields.push(name, value).unwrap();
        }
        let map = map_of(&fields);
        assert_eq!(map.len(), 2);
        assert_eq!(map.get_all("x-kept").iter().collect::<Vec<_>>(), ["1", "2"]);
    }

    /// `http` takes it for a name, and no reader of HTTP/1.1 does.
    #[test]
    fn a_name_that_is_no_token_crosses_nowhere() {
        let mut response = Response::new(());
        let name = HeaderName::from_lowercase(b"x\"a").unwrap();
        response.headers_mut().insert(name, HeaderValue::from_static("1"));
        let read = response_into(&response, true, &mut ResponseHead::new());
        assert_eq!(read, Err(ParseError::BadFieldName));
        assert_eq!(fields_of(response.headers()), Err(ParseError::BadFieldName));
        let mut head = RequestHead::new();
        assert_eq!(fill_request(response.headers(), &mut head), Err(ParseError::BadFieldName));
    }

    #[test]
    fn a_response_keeps_status_and_fields_both_ways() {
        let mut head = ResponseHead::new();
        head.status = 418;
        head.fields.push("X-A", "1").unwrap();
        let mut back = ResponseHead::new();
        response_into(&response(&head), true, &mut back).unwrap();
        assert_eq!((back.status, back.fields.get("x-a")), (418, Some(&b"1"[..])));
    }
}
