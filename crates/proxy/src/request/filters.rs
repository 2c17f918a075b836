//! Doing what the rule's filters say: to the request before it is sent, to the response before it is passed on.

use http::{Method, StatusCode};
use meshwork_base::Rng;
use meshwork_decision::{Cause, Filter, HeaderEdit, HeaderEdits, Matched, RequestView, Rewrite};
use meshwork_http1::{
    FieldError, Fields, HopByHop, KnownName, RequestHead, ResponseHead, Version, strip_hop_by_hop,
    strip_request,
};
use meshwork_telemetry::Protocol;
use smallvec::SmallVec;

use super::journey::Journey;
use super::kin;
use super::reply;
use super::route::{Seen, Target, Way};
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::http::upgrade;
use crate::mesh::Place;
use crate::observe::MARK;
use crate::upstream::Head;

const MAX_FORWARDS: &str = "max-forwards";
/// Bytes of an id that a gateway takes of strangers: room for two UUIDs and what they are of.
const LONGEST_ID: usize = 128;

/// What the rule's filters make of a request.
pub(crate) enum Verdict {
    /// It is answered here.
    Answer { status: u16, field: (&'static str, String) },
    /// It goes on.
    Forward(Outgoing),
}

/// How the request leaves, where that differs from how it came.
pub(crate) struct Outgoing {
    path: Option<String>,
    hop: HopByHop,
    https: bool,
    nested: bool,
}

impl Outgoing {
    /// The head to send.
    pub(crate) fn head<'a>(&'a self, head: &'a RequestHead) -> Head<'a> {
        Head {
            method: &head.method,
            https: self.https,
            authority: host(head),
            path: self.path.as_deref().unwrap_or_else(|| head.target.path_and_query()),
            fields: &head.fields,
            body: head.body,
            te_trailers: self.hop.te_trailers,
            upgrade: self.hop.upgrade.as_deref(),
            nested: self.nested,
        }
    }
}

/// Host as a filter may have changed it; the target's authority was copied there.
fn host(head: &RequestHead) -> &str {
    head.fields.known(KnownName::Host).and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default()
}

fn internal(error: &FieldError) -> Failure {
    Failure::local(Cause::Internal).because(error.to_string())
}

/// Applies the rule's filters, in their order, and what every proxy does to a request.
///
/// # Errors
/// A filter wrote what no field can hold.
pub(crate) fn request(
    conn: &Conn,
    way: &Way<'_>,
    head: &mut RequestHead,
    journey: &mut Journey<'_>,
) -> Result<Verdict, Failure> {
    let mut hop = strip_request(&mut head.fields);
    // HTTP/1.0 has no Upgrade (RFC 9110 section 7.8): what looks like one is no offer.
    hop.upgrade = hop.upgrade.take().filter(|_| head.upgrade);
    // Nor has it Expect, which is to be ignored (section 10.1.1): sent on, it would be ours, of a body that comes anyway.
    if head.version == Version::Http10 {
        head.fields.remove_known(KnownName::Expect);
    }
    if hop.upgrade.is_some() {
        offer(conn, &mut hop, head, journey).map_err(|error| internal(&error))?;
    }
    let mut nested = is_nested(conn, head);
    if !nested && kin::is_of_retry(conn, &head.fields) {
        nested = true;
        head.fields.set_known(KnownName::XEnvoyAttemptCount, "2").map_err(|error| internal(&error))?;
    }
    let mut outgoing = Outgoing { path: None, hop, https: conn.https, nested };
    own_host(head).map_err(|error| internal(&error))?;
    if let Way::Rule(matched) = way
        && let Some((status, location)) = apply(conn, matched, head, &mut outgoing, journey)?
    {
        return Ok(Verdict::Answer { status, field: ("location", location) });
    }
    if let Some(status) = last_hop(head).map_err(|error| internal(&error))? {
        return Ok(Verdict::Answer { status, field: ("allow", Method::OPTIONS.to_string()) });
    }
    forwarded(conn, &mut head.fields, journey).map_err(|error| internal(&error))?;
    match conn.place {
        Place::Inbound(_) => {
            let copy = head.fields.known(KnownName::XMeshworkMirror).is_some();
            journey.calls_application(&head.fields, outgoing.nested, copy);
        }
        Place::Outbound(_) if kin::is_of_copy(conn, &head.fields) => {
            // The application beside us may not pass it on.
            head.fields.set_known(KnownName::XMeshworkMirror, "1").map_err(|error| internal(&error))?;
            journey.record.mirrored = true;
        }
        Place::Outbound(_) | Place::Gateway(_) | Place::Hbone(_) => {}
    }
    Ok(Verdict::Forward(outgoing))
}

/// Counts Max-Forwards down; the status to answer with where it may go no further (RFC 9110 section 7.6.2). Nothing is
/// reflected to a TRACE: what it came with may be nobody's to read.
fn last_hop(head: &mut RequestHead) -> Result<Option<u16>, FieldError> {
    let status = match head.method {
        Method::OPTIONS => StatusCode::OK,
        Method::TRACE => StatusCode::METHOD_NOT_ALLOWED,
        _ => return Ok(None),
    };
    let said = head.fields.get(MAX_FORWARDS).filter(|value| !value.is_empty());
    let Some(digits) = said.filter(|value| value.iter().all(u8::is_ascii_digit)) else { return Ok(None) };
    let value = |digit: &u8| u64::from(digit - b'0');
    let add = |sum: u64, digit| sum.saturating_mul(10).saturating_add(value(digit));
    match digits.iter().fold(0, add) {
        0 => Ok(Some(status.as_u16())),
        left => head.fields.set(MAX_FORWARDS, (left - 1).to_string()).map(|()| None),
    }
}

/// The next hop is offered what the caller offers, as far as that may go on. A handshake of WebSocket that came over
/// HTTP/2 has no key: it gets ours.
fn offer(
    conn: &Conn,
    hop: &mut HopByHop,
    head: &mut RequestHead,
    journey: &Journey<'_>,
) -> Result<(), FieldError> {
    hop.upgrade = hop.upgrade.take().and_then(|offer| upgrade::forwardable(&offer)).map(Into::into);
    let Some(offer) = &hop.upgrade else { return Ok(()) };
    if journey.record.protocol == Protocol::Http2 {
        upgrade::make_key(&mut head.fields, &mut *conn.worker.rng.borrow_mut())?;
    }
    head.fields.push_known(KnownName::Upgrade, offer)
}

/// Whether it is a retry of the hop before. From outside of the mesh nobody is believed.
fn is_nested(conn: &Conn, head: &RequestHead) -> bool {
    let count = match conn.place {
        Place::Gateway(_) => None,
        Place::Outbound(_) | Place::Inbound(_) | Place::Hbone(_) => {
            head.fields.known(KnownName::XEnvoyAttemptCount)
        }
    };
    count.and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()).is_some_and(|count: u32| count > 1)
}

/// Applies the rule's filters in their order; gives the redirect that answers, if one does.
fn apply(
    conn: &Conn,
    matched: &Matched<'_>,
    head: &mut RequestHead,
    outgoing: &mut Outgoing,
    journey: &mut Journey<'_>,
) -> Result<Option<(u16, String)>, Failure> {
    for filter in matched.rule().filters() {
        match filter {
            Filter::RequestHeaders(edits) => {
                if let Some(told) = journey.told() {
                    told.tell("filters", "request headers", "noted", edits.to_string());
                }
                edit(&mut head.fields, edits).map_err(|error| internal(&error))?;
            }
            Filter::ResponseHeaders(edits) => {
                if let Some(told) = journey.told() {
                    told.tell("filters", "response headers", "noted", edits.to_string());
                }
            }
            Filter::Redirect(redirect) => {
                let seen = Seen::new(conn, head);
                // A service's own routes are redirected to where the request went.
                let port =
                    matched.listener.map_or_else(|| seen.port().unwrap_or(80), |listener| listener.port);
                let location = redirect.location(&seen, port, matched.prefix());
                if let Some(told) = journey.told() {
                    let why = format!("answers {} with Location {location}", redirect.status);
                    told.tell("filters", "redirect", "chosen", why);
                }
                return Ok(Some((redirect.status, location)));
            }
            Filter::Rewrite(rewrite) => apply_rewrite(rewrite, matched, head, outgoing, journey)?,
        }
    }
    Ok(None)
}

/// An absolute target overrides Host (RFC 9112 section 3.2.2); HTTP/1.0 may come without one.
fn own_host(head: &mut RequestHead) -> Result<(), FieldError> {
    match head.target.authority() {
        Some(authority) if head.fields.known(KnownName::Host) == Some(authority.as_bytes()) => Ok(()),
        Some(authority) => head.fields.set_known(KnownName::Host, authority),
        None if head.fields.known(KnownName::Host).is_none() => head.fields.push_known(KnownName::Host, ""),
        None => Ok(()),
    }
}

fn apply_rewrite(
    rewrite: &Rewrite,
    matched: &Matched<'_>,
    head: &mut RequestHead,
    outgoing: &mut Outgoing,
    journey: &mut Journey<'_>,
) -> Result<(), Failure> {
    if let Some(edit) = &rewrite.path {
        let mut path = edit.apply(head.target.path(), matched.prefix());
        if let Some(query) = head.target.query() {
            path.push('?');
            path.push_str(query);
        }
        if let Some(told) = journey.told() {
            let why = format!("path {} becomes {path}", head.target.path_and_query());
            told.tell("filters", "rewrite", "noted", why);
        }
        outgoing.path = Some(path);
    }
    if let (Some(host), Some(told)) = (&rewrite.hostname, journey.told()) {
        told.tell("filters", "rewrite", "noted", format!("host {} becomes {host}", self::host(head)));
    }
    match &rewrite.hostname {
        Some(host) => head.fields.set_known(KnownName::Host, host.as_ref()).map_err(|error| internal(&error)),
        None => Ok(()),
    }
}

/// What the next hop learns of the caller. Where the mesh begins, what callers claim about themselves is replaced by
/// what we know; inside, only the inbound side has something to add.
fn forwarded(conn: &Conn, fields: &mut Fields, journey: &mut Journey<'_>) -> Result<(), FieldError> {
    match conn.place {
        Place::Gateway(_) => edge(conn, fields)?,
        Place::Inbound(_) | Place::Hbone(_) => client_certificate(conn, fields)?,
        Place::Outbound(_) => {}
    }
    journey.propagate(fields)?;
    if given_id(conn, fields).is_none() {
        let id = request_id(&mut *conn.worker.rng.borrow_mut());
        if fields.known(KnownName::XRequestId).is_some() {
            fields.remove_known(KnownName::XRequestId);
        }
        fields.push_known(KnownName::XRequestId, id)?;
        journey.identified(&id);
    }
    Ok(())
}

/// `X-Forwarded-For` and `X-Forwarded-Proto`; fields that only proxies of the mesh may set are removed.
fn edge(conn: &Conn, fields: &mut Fields) -> Result<(), FieldError> {
    let peer = conn.peer_text.as_bytes();
    let mut chain: SmallVec<[u8; 128]> = SmallVec::new();
    for before in fields.known_all(KnownName::XForwardedFor).filter(|before| !before.is_empty()) {
        chain.extend_from_slice(before);
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer);
    fields.set_known(KnownName::XForwardedFor, &chain)?;
    fields.set_known(KnownName::XForwardedProto, if conn.https { "https" } else { "http" })?;
    for ours in [KnownName::XForwardedClientCert, KnownName::XEnvoyAttemptCount, KnownName::XMeshworkMirror] {
        if fields.known(ours).is_some() {
            fields.remove_known(ours);
        }
    }
    Ok(())
}

/// The application learns who called from us alone (Envoy's `SANITIZE_SET`).
fn client_certificate(conn: &Conn, fields: &mut Fields) -> Result<(), FieldError> {
    match &conn.caller {
        Some(caller) => fields.set_known(KnownName::XForwardedClientCert, caller.certificate.as_bytes()),
        None => {
            fields.remove_known(KnownName::XForwardedClientCert);
            Ok(())
        }
    }
}

/// What the caller calls its request. Each hop writes it to its log and tells it to whoever asks, so a gateway takes one of a
/// stranger only where it is short and can do nothing to a terminal; what it does not take is replaced by ours.
pub(super) fn given_id<'a>(conn: &Conn, fields: &'a Fields) -> Option<&'a [u8]> {
    let mut all = fields.known_all(KnownName::XRequestId);
    let id = all.next()?;
    let is_believed = match conn.place {
        Place::Gateway(_) => {
            (1..=LONGEST_ID).contains(&id.len())
                && id.iter().all(u8::is_ascii_graphic)
                && all.next().is_none()
        }
        Place::Outbound(_) | Place::Inbound(_) | Place::Hbone(_) => true,
    };
    is_believed.then_some(id)
}

/// A random UUID (version 4, RFC 9562 section 5.4).
pub(super) fn request_id(rng: &mut impl Rng) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bits = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
    let bits = bits & !(0xF << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (at, byte) in text.iter_mut().enumerate() {
        if !matches!(at, 8 | 13 | 18 | 23) {
            shift -= 4;
            *byte = DIGITS[usize::try_from(bits >> shift & 0xF).expect("four bits")];
        }
    }
    text
}

/// The chosen backend's own request filters; and the mark of a request that somebody asks about, for proxies of the mesh
/// alone.
///
/// # Errors
/// A filter wrote what no field can hold.
pub(crate) fn backend(
    target: &Target<'_>,
    head: &mut RequestHead,
    journey: &mut Journey<'_>,
) -> Result<(), Failure> {
    if let Some(mark) = journey.mark()
        && target.is_in_mesh()
    {
        head.fields.set(MARK, mark).map_err(|error| internal(&error))?;
    }
    for filter in target.filters() {
        if let Filter::RequestHeaders(edits) = filter {
            if let Some(told) = journey.told() {
                told.tell("filters", "request headers of the backend", "noted", edits.to_string());
            }
            edit(&mut head.fields, edits).map_err(|error| internal(&error))?;
        }
    }
    Ok(())
}

/// Applies the response's filters: the backend's, then the rule's.
///
/// # Errors
/// A filter wrote what no field can hold.
pub(crate) fn response(
    conn: &Conn,
    way: &Way<'_>,
    target: &Target<'_>,
    response: &mut ResponseHead,
) -> Result<(), FieldError> {
    let hop = strip_hop_by_hop(&mut response.fields);
    reply::date(conn, &mut response.fields);
    // Nobody may say 426 without the protocols that would do (RFC 9110 section 15.5.22).
    let is_wanted = response.status == StatusCode::UPGRADE_REQUIRED.as_u16();
    if let Some(protocol) = hop.upgrade.filter(|_| response.tunnel || is_wanted) {
        response.fields.push_known(KnownName::Upgrade, protocol)?;
    }
    for filter in target.filters().iter().chain(way.filters()) {
        if let Filter::ResponseHeaders(edits) = filter {
            edit(&mut response.fields, edits)?;
        }
    }
    Ok(())
}

fn edit(fields: &mut Fields, edits: &HeaderEdits) -> Result<(), FieldError> {
    for edit in edits.iter() {
        match edit {
            HeaderEdit::Remove(name) => {
                fields.remove(name);
            }
            HeaderEdit::Set(name, value) => fields.set(name, value)?,
            HeaderEdit::Add(name, value) => fields.push(name, value)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_base::SeededRng;

    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = String::from_utf8(request_id(&mut SeededRng::new(1)).to_vec()).unwrap();
        let parts: Vec<_> = id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{id}");
        assert_eq!(&id[14..15], "4", "{id}");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
        assert_ne!(request_id(&mut SeededRng::new(1)), request_id(&mut SeededRng::new(2)));
    }
}
