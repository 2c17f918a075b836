//! One request, as everything that reports on it sees it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::hex;
use crate::trace::SpanId;

/// Characters of a UUID.
const UUID_LEN: usize = 36;

/// The protocol a message came in or went out with; displayed as Envoy displays it (`HTTP/1.1`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
    /// HTTP/3.
    Http3,
    /// Bytes that are not looked into.
    Tcp,
}

impl Protocol {
    /// The protocol's name in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Http3 => "HTTP/3",
            Self::Tcp => "TCP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a request has come: where it failed, when it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its head is read.
    #[default]
    Head,
    /// A service called for the first time is asked for.
    Discover,
    /// Who takes it: listener, service, rule.
    Route,
    /// Whether it may pass.
    Authorize,
    /// Whether as many may pass.
    RateLimit,
    /// The rule's filters.
    Filters,
    /// Which service of the rule it goes to.
    Backend,
    /// What a policy injects.
    Fault,
    /// The application beside us is to take it.
    Overload,
    /// Whether and which endpoint may be called.
    Endpoint,
    /// A connection to the endpoint.
    Connect,
    /// The request is sent, the response's head awaited.
    Request,
    /// The response is passed on.
    Response,
    /// Bytes both ways.
    Tunnel,
}

impl Phase {
    /// The phase's name in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Discover => "discover",
            Self::Route => "route",
            Self::Authorize => "authorize",
            Self::RateLimit => "rate_limit",
            Self::Filters => "filters",
            Self::Backend => "backend",
            Self::Fault => "fault",
            Self::Overload => "overload",
            Self::Endpoint => "endpoint",
            Self::Connect => "connect",
            Self::Request => "request",
            Self::Response => "response",
            Self::Tunnel => "tunnel",
        }
    }
}

/// A W3C trace id (16 bytes, not all zero), displayed as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// The id of these bytes; all zero is no id (W3C Trace Context, section 3.2.2.3).
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// Reads 32 lower-case hexadecimal digits; anything else is no id.
    #[must_use]
    pub fn parse(digits: &[u8]) -> Option<Self> {
        hex::read(digits).and_then(Self::from_bytes)
    }

    /// The id's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The 32 digits.
    #[must_use]
    pub fn hex(&self) -> [u8; 32] {
        let mut out = [0; 32];
        hex::write(&mut out, &self.0);
        out
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.hex()).expect("hexadecimal digits are ASCII"))
    }
}

/// The texts of a request as they were received, in one buffer, so that a request costs one allocation at most and
/// none when the record is reused.
#[derive(Clone, Debug, Default)]
pub struct RequestText {
    buffer: Vec<u8>,
    /// Where method, path, host, user agent and request id end.
    ends: [u32; 5],
}

impl RequestText {
    /// Replaces all texts; the buffer's capacity is kept. `path` is the target as received, query included. A text
    /// that the request lacks is empty. Bytes that are not UTF-8 are kept here and replaced by U+FFFD in logs.
    pub fn set(&mut self, method: &[u8], path: &[u8], host: &[u8], user_agent: &[u8], request_id: &[u8]) {
        self.buffer.clear();
        let texts = [method, path, host, user_agent, request_id];
        // A request id may be made later: it is a UUID then.
        self.buffer.reserve(texts.iter().map(|text| text.len()).sum::<usize>() + UUID_LEN);
        for (end, text) in self.ends.iter_mut().zip(texts) {
            self.buffer.extend_from_slice(text);
            *end = u32::try_from(self.buffer.len()).expect("heads of requests are limited far below 4 GiB");
        }
    }

    /// The same, with at most so many bytes of what a caller may make long.
    #[must_use]
    pub fn shortened(&self, path: usize, other: usize) -> Self {
        let cut = |text: &[u8], to: usize| -> usize { text.len().min(to) };
        let (method, host) = (self.method(), self.host());
        let (agent, id) = (self.user_agent(), self.request_id());
        let mut short = Self::default();
        let mut ends = 0;
        short.buffer.reserve_exact(
            cut(method, other)
                + cut(self.path(), path)
                + cut(host, other)
                + cut(agent, other)
                + cut(id, other),
        );
        let texts = [(method, other), (self.path(), path), (host, other), (agent, other), (id, other)];
        for (end, (text, to)) in short.ends.iter_mut().zip(texts) {
            let len = cut(text, to);
            short.buffer.extend_from_slice(&text[..len]);
            ends += u32::try_from(len).expect("heads of requests are limited far below 4 GiB");
            *end = ends;
        }
        short
    }

    /// Bytes of memory that it holds, whatever is in it.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// Bytes of all texts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Replaces the request id alone, when it was made after the other texts were noted.
    pub fn set_request_id(&mut self, id: &[u8]) {
        self.buffer.truncate(self.ends[3] as usize);
        self.buffer.extend_from_slice(id);
        self.ends[4] =
            u32::try_from(self.buffer.len()).expect("heads of requests are limited far below 4 GiB");
    }

    fn piece(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.buffer[start..self.ends[index] as usize]
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &[u8] {
        self.piece(0)
    }

    /// The target as received, query included.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.piece(1)
    }

    /// Host or `:authority`.
    #[must_use]
    pub fn host(&self) -> &[u8] {
        self.piece(2)
    }

    /// `User-Agent`.
    #[must_use]
    pub fn user_agent(&self) -> &[u8] {
        self.piece(3)
    }

    /// `X-Request-Id`, as received or as made by us.
    #[must_use]
    pub fn request_id(&self) -> &[u8] {
        self.piece(4)
    }
}

/// What is known of one request when its last byte is gone. Metrics and access log are written from it and from nothing
/// else; spans also need the ids and the attempts of a traced request, which travel beside it.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When the first byte came, since the Unix epoch.
    pub start: Duration,
    /// From the first byte of the request to the last byte of the response.
    pub duration: Duration,
    /// From the first byte of the request to the first byte of the upstream's response.
    pub time_to_first_byte: Option<Duration>,
    /// Method, path, host, user agent and request id as received.
    pub text: RequestText,
    /// The trace this request belongs to.
    pub trace_id: Option<TraceId>,
    /// Our span in it; where we make none, the caller's.
    pub span_id: Option<SpanId>,
    /// How the request came in.
    pub protocol: Protocol,
    /// How it went out, where it did.
    pub upstream_protocol: Option<Protocol>,
    /// The status sent downstream; 0 when none was.
    pub status: u16,
    /// `grpc-status`, for a gRPC call that got one.
    pub grpc_status: Option<u8>,
    /// Envoy's response flag (`UF`, `NR`, `DC`, …); empty when nothing failed on our side.
    pub flag: &'static str,
    /// Which of our decisions or observations made the outcome (`no_route`, `connect_timeout`, …); empty when none.
    pub cause: &'static str,
    /// What the cause names: a policy, a limit, an address.
    pub cause_detail: Option<Arc<str>>,
    /// How far it came; of one that failed, where that was.
    pub phase: Phase,
    /// The listener.
    pub listener: Option<Arc<str>>,
    /// The route, `namespace/name`.
    pub route: Option<Arc<str>>,
    /// The rule in the route: its name, or its index.
    pub rule: Option<Arc<str>>,
    /// The upstream service, `namespace/name:port`.
    pub service: Option<Arc<str>>,
    /// The endpoint of the last attempt.
    pub endpoint: Option<SocketAddr>,
    /// Attempts that were begun; 0 when the answer is our own.
    pub attempts: u32,
    /// Copies of it that were sent elsewhere.
    pub mirrors: u16,
    /// It is a copy itself, or made for the sake of one.
    pub mirrored: bool,
    /// Bytes of the request's body that came in.
    pub bytes_received: u64,
    /// Bytes of the response's body that went out.
    pub bytes_sent: u64,
    /// Who connected to us.
    pub peer: Option<SocketAddr>,
    /// The SPIFFE ID the downstream peer proved.
    pub peer_id: Option<Arc<str>>,
    /// The SPIFFE ID the upstream proved.
    pub upstream_id: Option<Arc<str>>,
    /// The revision of the configuration that decided.
    pub revision: Option<Arc<str>>,
}

impl Record {
    /// Makes this the empty record again, keeping the text buffer's capacity for the next request.
    pub fn reset(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        text.set(b"", b"", b"", b"", b"");
        *self = Self { text, ..Self::default() };
    }
}

/// Whether a status of gRPC is a failure that is no fault of the caller.
#[must_use]
pub const fn is_grpc_failure(status: u8) -> bool {
    const UNKNOWN: u8 = 2;
    const DEADLINE_EXCEEDED: u8 = 4;
    const RESOURCE_EXHAUSTED: u8 = 8;
    const INTERNAL: u8 = 13;
    const UNAVAILABLE: u8 = 14;
    const DATA_LOSS: u8 = 15;
    matches!(status, UNKNOWN | DEADLINE_EXCEEDED | RESOURCE_EXHAUSTED | INTERNAL | UNAVAILABLE | DATA_LOSS)
}

/// What gRPC calls one of its statuses; `None`: it has no such.
#[must_use]
pub fn grpc_name(status: u32) -> Option<&'static str> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(usize::try_from(status).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_they_were_set() {
        let mut text = RequestText::default();
        assert_eq!(text.request_id(), b"");
        text.set(b"GET", b"/a?b=c", b"shop.example", b"", b"id-1");
        assert_eq!(
            [text.method(), text.path(), text.host(), text.user_agent(), text.request_id()],
            [&b"GET"[..], b"/a?b=c", b"shop.example", b"", b"id-1"]
        );
        text.set(b"PUT", b"/", b"", b"x", b"");
        assert_eq!(
            [text.method(), text.path(), text.host(), text.user_agent()],
            [&b"PUT"[..], b"/", b"", b"x"]
        );
    }

    #[test]
    fn trace_ids_are_exactly_32_lower_case_digits_and_not_zero() {
        let id = TraceId::parse(b"4bf92f3577b34da6a3ce929d0e0e4736").expect("the standard's own example");
        assert_eq!(id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        for bad in [
            "",
            "4bf92f3577b34da6a3ce929d0e0e473",
            "4BF92F3577B34DA6A3CE929D0E0E4736",
            &"0".repeat(32),
            &"g".repeat(32),
        ] {
            assert_eq!(TraceId::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_reset_record_remembers_nothing() {
        let mut record = Record { status: 503, flag: "UF", attempts: 2, ..Record::default() };
        record.text.set(b"GET", b"/secret", b"h", b"u", b"r");
        record.reset();
        assert_eq!(format!("{record:?}"), {
            let mut fresh = Record::default();
            fresh.text.set(b"", b"", b"", b"", b"");
            format!("{fresh:?}")
        });
    }

    #[test]
    fn each_status_of_grpc_has_the_name_of_its_number() {
        let some =
            [(0, "OK"), (5, "NOT_FOUND"), (10, "ABORTED"), (14, "UNAVAILABLE"), (16, "UNAUTHENTICATED")];
        assert!(some.iter().all(|(status, name)| grpc_name(*status) == Some(name)));
        assert_eq!((grpc_name(17), grpc_name(u32::MAX)), (None, None));
    }

    #[test]
    fn a_record_stays_small() {
        assert!(size_of::<Record>() <= 416, "a record is {} bytes", size_of::<Record>());
    }
}
