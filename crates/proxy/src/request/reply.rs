//! What we answer ourselves: redirects, and the one place where a failure becomes a response.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::future::poll_fn;

use meshwork_base::Clock;
use meshwork_decision::{Abort, Cause, Injection, ResponseFlag};
use meshwork_http1::{BodyLength, FieldError, Fields, KnownName, RequestHead, ResponseHead};

use super::answer::{self, DEADLINE_EXCEEDED};
use super::deadline::GRACE;
use super::journey::Journey;
use super::{overload, shape};
use crate::connections::Order;
use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::{Failure, Fault, Retry};
use crate::http::stream::StreamError;

/// Whether the caller speaks gRPC and must be answered in its terms.
pub(crate) fn is_grpc(head: &RequestHead) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    head.fields.known(KnownName::ContentType).is_some_and(|value| {
        value.len() >= GRPC.len()
            && value[..GRPC.len()].eq_ignore_ascii_case(GRPC)
            && matches!(value.get(GRPC.len()), None | Some(b'+' | b';' | b' ' | b'\t'))
    })
}

/// A response that came without a date gets one here (RFC 9110 section 6.6.1).
pub(crate) fn date(conn: &Conn, fields: &mut Fields) {
    if fields.known(KnownName::Date).is_none() {
        let worker = &conn.worker;
        let pushed =
            worker.date.with(worker.shared.clock.wall(), |date| fields.push_known(KnownName::Date, date));
        pushed.expect("a date is a field value");
    }
}

/// Answers without asking anybody: with another place, or as the last whom a request may reach.
pub(crate) async fn here(
    conn: &Conn,
    down: &mut Down<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    status: u16,
    (name, value): (&str, String),
) {
    begin(conn, response, status);
    let written = response.fields.push(name, value);
    answer(conn, down, response, journey, written, b"").await;
}

/// Tells the caller, if it can still be told, and writes down what happened.
pub(crate) async fn fail(
    conn: &Conn,
    down: &mut Down<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    failure: &Failure,
) {
    let grpc = journey.is_grpc();
    journey.failed(failure);
    let Failure { cause, fault, detail, .. } = failure;
    tracing::debug!(%cause, ?fault, ?detail, listener = %conn.place, "request failed");
    if conn.caller.is_some() && hand_back(down, failure) {
        if grpc {
            // Where the caller's proxy has nobody else to ask, that is what it answers.
            journey.record.grpc_status = Some(UNAVAILABLE);
        }
        journey.finish();
        return;
    }
    // A call of gRPC may say nothing for as long as it likes, its head too: to a proxy of the mesh the end of that is a rule of ours.
    let is_silent = grpc && failure.fault == Fault::Local && failure.cause == Cause::StreamIdleTimeout;
    if conn.caller.is_some() && is_silent && !down.head_sent() {
        // What the caller's proxy answers then.
        journey.record.grpc_status = Some(DEADLINE_EXCEEDED);
        down.cancel().await;
        journey.finish();
        return;
    }
    let status = failure.status().filter(|_| !down.head_sent());
    let Some(status) = status else {
        break_off(conn, down, response, journey, failure).await;
        journey.finish();
        return;
    };
    begin(conn, response, status);
    // How a caller broke the protocol it is told; what we know of policies and upstreams it is not.
    let text = match &failure.detail {
        Some(detail) if failure.cause.flag() == ResponseFlag::DownstreamProtocolError => {
            format!("{}: {detail}\n", failure.cause)
        }
        _ => format!("{}\n", failure.cause),
    };
    let written = if grpc {
        grpc_head(response, journey, text.trim_end(), grpc_code(failure.cause, status))
    } else {
        text_head(response)
    };
    let written = written
        .and_then(|()| overload::mark(conn, failure.cause, response))
        .and_then(|()| mark_unreachable(conn, failure.cause, response));
    answer(conn, down, response, journey, written, if grpc { b"" } else { text.as_bytes() }).await;
}

/// Leaves it to a caller in the mesh what becomes of a request that has no answer. False: it is answered here.
fn hand_back(down: &mut Down<'_>, failure: &Failure) -> bool {
    match failure.retry {
        // What our application has not seen may be sent elsewhere.
        Retry::NothingSent => !down.head_sent() && down.refuse(),
        // What the application perhaps began it did not finish: the caller learns that its request was reset, and is not
        // told that somebody answered 503.
        Retry::Policy | Retry::Reused => down.reset(),
        Retry::No => false,
    }
}

/// Ends a response that has begun, or that nobody can be sent.
async fn break_off(
    conn: &Conn,
    down: &mut Down<'_>,
    response: &ResponseHead,
    journey: &mut Journey<'_>,
    failure: &Failure,
) {
    let is_told = journey.is_grpc() && failure.status().is_some();
    if is_told && failure.cause == Cause::DeadlineExceeded && journey.has_timer {
        journey.record.grpc_status = Some(DEADLINE_EXCEEDED);
        let mut grace = conn.worker.timers.start(GRACE);
        return Box::pin(down.run_out(&mut grace)).await;
    }
    // That a stream ends with its proxy is nobody's mistake: gRPC's callers begin it anew elsewhere when they are told so.
    let may_end =
        is_told && failure.cause == Cause::Draining && !matches!(response.body, BodyLength::Known(_));
    if may_end && down.end_early(&drain_trailers(conn.caller.is_some())).await {
        journey.record.grpc_status = Some(UNAVAILABLE);
        return;
    }
    if is_told {
        // Who is still there hears nothing but the reset of its stream, and makes this of it.
        journey.record.grpc_status = Some(INTERNAL);
    }
    if conn.caller.is_some() && is_rule_of_ours(failure, response) {
        return down.cancel().await;
    }
    down.break_off().await;
}

/// Whether a rule of ours has ended it, by which its application did nothing wrong: it may be silent where it owes no number of bytes. What
/// is none, a limit that is over above all, is held against somebody.
const fn is_rule_of_ours(failure: &Failure, response: &ResponseHead) -> bool {
    let is_rule = match failure.cause {
        Cause::StreamIdleTimeout => !matches!(response.body, BodyLength::Known(_)),
        Cause::Draining | Cause::MaxStreamDuration | Cause::PeerUnauthenticated | Cause::PeerRevoked => true,
        _ => false,
    };
    matches!(failure.fault, Fault::Local) && is_rule
}

/// Answers with what a policy injects.
pub(crate) async fn abort(
    conn: &Conn,
    down: &mut Down<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    abort: &Injection<Abort>,
) {
    let cause = Cause::FaultAbort;
    journey.failed(&Failure::local(cause).because(abort.origin.to_string()));
    let code = match abort.what {
        Abort::Status(status) => grpc_code(cause, status),
        Abort::Grpc(code) => code,
    };
    begin(conn, response, abort.what.status());
    let grpc = journey.is_grpc();
    let written = if grpc { grpc_head(response, journey, cause.as_str(), code) } else { text_head(response) };
    let text = format!("{cause}\n");
    answer(conn, down, response, journey, written, if grpc { b"" } else { text.as_bytes() }).await;
}

fn begin(conn: &Conn, response: &mut ResponseHead, status: u16) {
    response.clear();
    response.status = status;
    let fields = &mut response.fields;
    fields.push_known(KnownName::Server, "meshwork").expect("a constant is a field value");
    date(conn, fields);
}

fn text_head(response: &mut ResponseHead) -> Result<(), FieldError> {
    response.fields.push_known(KnownName::ContentType, "text/plain; charset=utf-8")
}

/// A response of trailers only (gRPC over HTTP2, "Responses"). Its code is what became of the call, for whoever writes it down.
fn grpc_head(
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    message: &str,
    code: u8,
) -> Result<(), FieldError> {
    journey.record.grpc_status = Some(code);
    response.status = 200;
    response.fields.push_known(KnownName::ContentType, "application/grpc")?;
    response.fields.push_known(KnownName::GrpcStatus, code.to_string())?;
    response.fields.push_known(KnownName::GrpcMessage, &*grpc_message(message))
}

/// A message as its field writes it: what is not printable, and the per cent sign, as `%XX` (gRPC over HTTP2, "Responses").
fn grpc_message(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'%';
    if text.bytes().all(is_plain) {
        return text.into();
    }
    text.bytes()
        .fold(String::with_capacity(text.len() + 16), |mut out, byte| {
            if is_plain(byte) {
                out.push(byte.into());
            } else {
                // Writing to a string cannot fail.
                _ = write!(out, "%{byte:02X}");
            }
            out
        })
        .into()
}

/// By this trailer a proxy of the mesh says to another one that it is the end of its drain that has ended a call of gRPC: code and message
/// may be those of an application.
const DRAINED: &str = "x-meshwork-draining";

/// How a call of gRPC ends that has begun to be answered when the drain ends. Its code is no success, so that nobody takes what came for
/// all.
fn drain_trailers(in_mesh: bool) -> Fields {
    let mut fields = Fields::default();
    fields.push_known(KnownName::GrpcStatus, UNAVAILABLE.to_string()).expect("a number is a field value");
    fields.push("grpc-message", Cause::Draining.as_str()).expect("a cause is a field value");
    if in_mesh {
        fields.push(DRAINED, "1").expect("a constant is a field value");
    }
    fields
}

/// Whether trailers say that the end of a drain has ended their call: that is no fault of who answered it. Only a proxy of the mesh is
/// believed.
pub(crate) fn is_of_drain(trailers: &Fields) -> bool {
    trailers.get(DRAINED).is_some()
}

/// Takes that word out of trailers: an application may have said it.
pub(crate) fn forget_drain(trailers: &mut Fields) {
    trailers.remove(DRAINED);
}

/// By this field a proxy of the mesh says to another one that it has refused a request, since it cannot be done in time. What else its
/// answer says an application that is a proxy itself passes on.
const UNREACHABLE: &str = "x-meshwork-deadline-unreachable";

/// Says so to a caller in the mesh.
fn mark_unreachable(conn: &Conn, cause: Cause, response: &mut ResponseHead) -> Result<(), FieldError> {
    let is_told = cause == Cause::DeadlineUnreachable && conn.caller.is_some();
    if is_told { response.fields.push(UNREACHABLE, "1") } else { Ok(()) }
}

/// Whether it is a proxy that has refused a request since it cannot be done in time. Only a proxy of the mesh is believed.
pub(crate) fn is_unreachable(response: &ResponseHead, is_grpc: bool) -> bool {
    answer::is_time_out(response, is_grpc) && response.fields.get(UNREACHABLE).is_some()
}

/// Takes that word out of an answer: an application may have said it, and who is not in the mesh has no use for it.
pub(crate) fn forget_unreachable(response: &mut ResponseHead) {
    response.fields.remove(UNREACHABLE);
}

/// What gRPC's libraries call the `INTERNAL_ERROR` by which a stream is broken off.
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;

/// gRPC's table of HTTP statuses, sharpened where we know more.
fn grpc_code(cause: Cause, status: u16) -> u8 {
    const PERMISSION_DENIED: u8 = 7;
    const RESOURCE_EXHAUSTED: u8 = 8;
    const UNIMPLEMENTED: u8 = 12;
    const UNAUTHENTICATED: u8 = 16;
    const UNKNOWN: u8 = 2;
    match (cause, status) {
        // Every cause of which the status is a time-out.
        (_, 504) => DEADLINE_EXCEEDED,
        (Cause::RateLimited, _) | (_, 431) => RESOURCE_EXHAUSTED,
        (_, 400) => INTERNAL,
        (_, 401) => UNAUTHENTICATED,
        (_, 403) => PERMISSION_DENIED,
        (_, 404) => UNIMPLEMENTED,
        (_, 429 | 502 | 503) => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// Sends a response of our own, if its head could be written, with what policies tell; and that is the request's end.
async fn answer(
    conn: &Conn,
    down: &mut Down<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    written: Result<(), FieldError>,
    text: &[u8],
) {
    let sent = match written.and_then(|()| shape::tell(journey, response)) {
        Ok(()) => send(conn, down, response, journey, text).await,
        Err(_) => Err(StreamError::Closed),
    };
    end(journey, sent);
}

/// Sends a response of our own. Its bytes count as sent, as an upstream's would.
async fn send(
    conn: &Conn,
    down: &mut Down<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    text: &[u8],
) -> Result<(), StreamError> {
    journey.record.status = response.status;
    response.body = BodyLength::Known(text.len() as u64);
    response.keep_alive = true;
    conn.say_whether_last(down);
    down.send_head(response, text.is_empty())?;
    if !text.is_empty() && journey.record.text.method() != b"HEAD" {
        journey.record.bytes_sent = text.len() as u64;
        down.queue(bytes::Bytes::copy_from_slice(text));
    }
    down.end(None);
    poll_fn(|cx| {
        if let std::task::Poll::Ready(done) = down.poll_flush(cx) {
            return std::task::Poll::Ready(done);
        }
        if matches!(conn.entry.order(), Some(Order::Close(_) | Order::TimedOut(_) | Order::Shed)) {
            return std::task::Poll::Ready(Err(StreamError::Closed));
        }
        conn.entry.watch(cx);
        std::task::Poll::Pending
    })
    .await
}

fn end(journey: &mut Journey<'_>, sent: Result<(), StreamError>) {
    if let Err(error) = sent
        && journey.record.cause.is_empty()
    {
        journey.failed(&Failure::of_downstream(&error));
    }
    journey.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_grpc_is_written_so_that_it_is_a_field_value() {
        for (text, written) in [
            ("max_requests", "max_requests"),
            ("over 100 (setting --max-header-count)", "over 100 (setting --max-header-count)"),
            ("100 %", "100 %25"),
            ("a\r\nb\0", "a%0D%0Ab%00"),
            ("käse\u{7f}", "k%C3%A4se%7F"),
        ] {
            assert_eq!(grpc_message(text), written);
        }
    }

    #[test]
    fn a_limit_that_is_over_is_no_rule_of_ours_and_neither_is_what_somebody_has_broken() {
        let rules = |body| {
            let mut response = ResponseHead::new();
            response.body = body;
            let causes = Cause::ALL.iter().copied();
            causes.filter(|cause| is_rule_of_ours(&Failure::local(*cause), &response)).collect::<Vec<_>>()
        };
        let ends =
            [Cause::MaxStreamDuration, Cause::PeerUnauthenticated, Cause::PeerRevoked, Cause::Draining];
        assert_eq!(rules(BodyLength::Known(100)), ends);
        assert_eq!(rules(BodyLength::Chunked).len(), ends.len() + 1, "silence, too");
        let response = ResponseHead::new();
        assert!(!is_rule_of_ours(&Failure::upstream(Cause::Draining, Retry::No), &response));
    }

    #[test]
    fn a_call_of_grpc_is_told_by_its_content_type() {
        let is = |value: &str| {
            let mut head = RequestHead::new();
            head.fields.push("content-type", value).unwrap();
            is_grpc(&head)
        };
        let calls = ["grpc", "grpc+proto", "grpc+json", "grpc;x=y", "grpc ;x=y", "grpc\t;x=y", "GRPC"];
        for call in calls {
            assert!(is(&format!("application/{call}")), "{call}");
        }
        for other in ["grpc-web", "grpc-web+proto", "grpcs", "grp", "json"] {
            assert!(!is(&format!("application/{other}")), "{other}");
        }
        assert!(!is_grpc(&RequestHead::new()));
    }
}
