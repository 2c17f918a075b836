//! The field names that the proxy itself looks at and those that most messages have, so that finding one is a comparison
//! of integers.

use http::HeaderName;

macro_rules! known_names {
    ($($variant:ident = $text:literal,)*) => {
        /// A field name that the proxy looks at or that most messages have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "each variant is the field of that name")]
        pub enum KnownName { $($variant,)* }

        impl KnownName {
            /// Every known name.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in lower case, as HTTP/2 writes it.
            #[must_use]
            #[inline]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The name as a header map's key; nothing is allocated or checked.
            #[must_use]
            pub const fn header_name(self) -> HeaderName {
                match self { $(Self::$variant => const { HeaderName::from_static($text) },)* }
            }
        }
    };
}

known_names! {
    Te = "te",
    Via = "via",
    Age = "age",
    Host = "host",
    Date = "date",
    Etag = "etag",
    Vary = "vary",
    Allow = "allow",
    Range = "range",
    Cookie = "cookie",
    Expect = "expect",
    Accept = "accept",
    Server = "server",
    Origin = "origin",
    Pragma = "pragma",
    Trailer = "trailer",
    Upgrade = "upgrade",
    Referer = "referer",
    Baggage = "baggage",
    Expires = "expires",
    Location = "location",
    Priority = "priority",
    RateLimit = "ratelimit",
    Forwarded = "forwarded",
    XRealIp = "x-real-ip",
    Connection = "connection",
    KeepAlive = "keep-alive",
    SetCookie = "set-cookie",
    UserAgent = "user-agent",
    TraceState = "tracestate",
    RetryAfter = "retry-after",
    TraceParent = "traceparent",
    GrpcStatus = "grpc-status",
    ContentType = "content-type",
    GrpcMessage = "grpc-message",
    GrpcTimeout = "grpc-timeout",
    MaxForwards = "max-forwards",
    XRequestId = "x-request-id",
    CacheControl = "cache-control",
    Authorization = "authorization",
    IfNoneMatch = "if-none-match",
    LastModified = "last-modified",
    AcceptRanges = "accept-ranges",
    ContentRange = "content-range",
    ContentLength = "content-length",
    XForwardedFor = "x-forwarded-for",
    AcceptEncoding = "accept-encoding",
    AcceptLanguage = "accept-language",
    RateLimitPolicy = "ratelimit-policy",
    WwwAuthenticate = "www-authenticate",
    ProxyConnection = "proxy-connection",
    XForwardedHost = "x-forwarded-host",
    ContentEncoding = "content-encoding",
    ContentLanguage = "content-language",
    TransferEncoding = "transfer-encoding",
    XForwardedProto = "x-forwarded-proto",
    XMeshworkMirror = "x-meshwork-mirror",
    IfModifiedSince = "if-modified-since",
    ProxyAuthenticate = "proxy-authenticate",
    ConnectTimeoutMs = "connect-timeout-ms",
    ProxyAuthorization = "proxy-authorization",
    XEnvoyAttemptCount = "x-envoy-attempt-count",
    XForwardedClientCert = "x-forwarded-client-cert",
    XEnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms",
    StrictTransportSecurity = "strict-transport-security",
}

impl KnownName {
    /// Whether a field of this name frames or routes its message: as a trailer it is refused (RFC 9110 section 6.5.1).
    #[must_use]
    pub const fn frames_or_routes(self) -> bool {
        matches!(
            self,
            Self::ContentLength
                | Self::TransferEncoding
                | Self::Host
                | Self::Connection
                | Self::Trailer
                | Self::Te
                | Self::Upgrade
                | Self::Expect
        )
    }

    /// Whether a field of this name says who asks, by which way, or what the body is (RFC 9110 section 6.5.1). What it
    /// says behind a body nobody has looked at: policies, filters and the proxies that write such fields see heads only.
    #[must_use]
    pub const fn is_of_heads_only(self) -> bool {
        matches!(
            self,
            Self::Authorization
                | Self::ProxyAuthorization
                | Self::ProxyAuthenticate
                | Self::WwwAuthenticate
                | Self::Cookie
                | Self::SetCookie
                | Self::ContentType
                | Self::ContentEncoding
                | Self::ContentRange
                | Self::Range
                | Self::MaxForwards
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::Forwarded
                | Self::XForwardedFor
                | Self::XForwardedHost
                | Self::XForwardedProto
                | Self::XForwardedClientCert
                | Self::XRealIp
                | Self::XRequestId
                | Self::XMeshworkMirror
                | Self::XEnvoyAttemptCount
                | Self::XEnvoyExpectedRqTimeoutMs
                | Self::GrpcTimeout
                | Self::ConnectTimeoutMs
                | Self::TraceParent
                | Self::TraceState
                | Self::Location
                | Self::CacheControl
        )
    }
}

/// Slots of the table in which names are found, a power of two.
const SLOTS: usize = 512;
/// Spreads the names so that no two share a slot; found by trying.
const SEED: u32 = 0xc324_c985;
const EMPTY: u8 = u8::MAX;

/// The slot of a name in any case: its length and three of its bytes, stirred.
const fn slot(first: u8, middle: u8, last: u8, length: usize) -> usize {
    // For letters this is the lower case; other bytes are compared later.
    let lower = u32::from_le_bytes([0, first | 0x20, middle | 0x20, last | 0x20]);
    (lower | (length & 0xff) as u32).wrapping_mul(SEED) as usize >> (u32::BITS - SLOTS.trailing_zeros())
}

const SLOT_OF: [u8; SLOTS] = {
    let mut slots = [EMPTY; SLOTS];
    let mut at = 0;
    while at < KnownName::ALL.len() {
        let text = KnownName::ALL[at].as_str().as_bytes();
        let slot = slot(text[0], text[text.len() / 2], text[text.len() - 1], text.len());
        assert!(slots[slot] == EMPTY, "two names share a slot: another seed is needed");
        slots[slot] = at as u8;
        at += 1;
    }
    slots
};

/// Whether `name` is `lower` in any case; both have the same length. Eight bytes at a time.
fn is_in_any_case(name: &[u8], lower: &[u8]) -> bool {
    let (Some(name_end), Some(lower_end)) = (name.last_chunk::<8>(), lower.last_chunk::<8>()) else {
        return name.eq_ignore_ascii_case(lower);
    };
    let differs = |name: &[u8; 8], lower: &[u8; 8]| {
        let (name, lower) = (u64::from_le_bytes(*name), u64::from_le_bytes(*lower));
        // Only the bit of the case may differ, and only where a letter stands: of what is in a name, letters have 0x40.
        (name ^ lower) & !(lower >> 1 & 0x2020_2020_2020_2020)
    };
    let pairs = name.as_chunks::<8>().0.iter().zip(lower.as_chunks::<8>().0);
    // The last eight may overlap the ones before: looking twice is cheaper than a remainder.
    pairs.fold(differs(name_end, lower_end), |all, (name, lower)| all | differs(name, lower)) == 0
}

impl KnownName {
    /// The only known name that may be found in a slot.
    #[inline]
    fn at(slot: usize) -> Option<Self> {
        Self::ALL.get(usize::from(SLOT_OF[slot])).copied()
    }

    /// Finds a name, in any case.
    #[must_use]
    pub fn find(name: &[u8]) -> Option<Self> {
        let (&first, &last) = (name.first()?, name.last()?);
        let known = Self::at(slot(first, name[name.len() / 2], last, name.len()))?;
        let text = known.as_str().as_bytes();
        (text.len() == name.len() && is_in_any_case(name, text)).then_some(known)
    }

    /// Whether an application may take a field of this name, which is not a known one, for one by which proxies tell who asks and
    /// how: CGI, and what came after it (WSGI, PHP, Rack), make one variable of `-` and `_`, and some servers (lighttpd) of
    /// whatever is no letter and no digit. Of all unknown names only those that begin like one of them are looked at.
    #[must_use]
    #[inline]
    pub fn is_mistaken_for_proxies_word(name: &[u8]) -> bool {
        // `x-forwarded`, `x-envoy`, `x-meshwork`.
        matches!(name, [b'x' | b'X', _, b'e' | b'E' | b'f' | b'F' | b'm' | b'M', ..])
            && Self::makes_the_variable_of_a_proxies_word(name)
    }

    #[inline(never)]
    fn makes_the_variable_of_a_proxies_word(name: &[u8]) -> bool {
        let (&[first, .., last], middle) = (name, name[name.len() / 2]) else { return false };
        let middle = if middle.is_ascii_alphanumeric() { middle } else { b'-' };
        let Some(known) = Self::at(slot(first, middle, last, name.len())) else { return false };
        let text = known.as_str().as_bytes();
        let mut pairs = name.iter().zip(text);
        known.is_proxies_word()
            && text.len() == name.len()
            && pairs.all(|(byte, own)| match own {
                b'-' => !byte.is_ascii_alphanumeric(),
                own => byte.eq_ignore_ascii_case(own),
            })
    }

    /// Whether the proxies of a mesh write it, or take it away, so that it can be believed.
    const fn is_proxies_word(self) -> bool {
        matches!(
            self,
            Self::XForwardedClientCert
                | Self::XForwardedFor
                | Self::XForwardedProto
                | Self::XMeshworkMirror
                | Self::XEnvoyAttemptCount
                | Self::XEnvoyExpectedRqTimeoutMs
        )
    }

    /// Whether its value must not reach a log.
    #[must_use]
    pub const fn is_secret(self) -> bool {
        matches!(self, Self::Authorization | Self::ProxyAuthorization | Self::Cookie | Self::SetCookie)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Fields that the proxies of a mesh write, or take away.
    const OURS: [&str; 6] = [
        "x-envoy-attempt-count",
        "x-envoy-expected-rq-timeout-ms",
        "x-forwarded-client-cert",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-meshwork-mirror",
    ];

    /// The names of which this holds.
    fn those(holds: impl Fn(KnownName) -> bool) -> BTreeSet<&'static str> {
        KnownName::ALL.iter().filter(|known| holds(**known)).map(|known| known.as_str()).collect()
    }

    #[test]
    fn what_frames_or_routes_a_message_is_no_trailer() {
        let wanted = BTreeSet::from([
            "connection",
            "content-length",
            "expect",
            "host",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ]);
        assert_eq!(those(KnownName::frames_or_routes), wanted);
    }

    #[test]
    fn what_says_who_asks_or_what_the_body_is_stands_in_heads() {
        let credentials = [
            "authorization",
            "cookie",
            "proxy-authenticate",
            "proxy-authorization",
            "set-cookie",
            "www-authenticate",
        ];
        let of_the_body = ["content-encoding", "content-range", "content-type", "range"];
        let of_the_way =
            ["forwarded", "keep-alive", "max-forwards", "proxy-connection", "x-forwarded-host", "x-real-ip"];
        let of_calls = ["connect-timeout-ms", "grpc-timeout", "traceparent", "tracestate", "x-request-id"];
        let of_answers = ["cache-control", "location"];
        let wanted = [&credentials[..], &of_the_body, &of_the_way, &of_calls, &of_answers, &OURS].concat();
        assert_eq!(those(KnownName::is_of_heads_only), BTreeSet::from_iter(wanted));
    }

    #[test]
    fn credentials_and_what_stands_for_them_reach_no_log() {
        let wanted = ["authorization", "cookie", "proxy-authorization", "set-cookie"];
        assert_eq!(those(KnownName::is_secret), BTreeSet::from(wanted));
    }

    #[test]
    fn only_what_proxies_write_is_a_word_of_theirs() {
        for known in KnownName::ALL {
            let other = known.as_str().replace('-', "_");
            let is_ours = OURS.contains(&known.as_str());
            assert_eq!(KnownName::is_mistaken_for_proxies_word(other.as_bytes()), is_ours, "{other}");
        }
    }

    #[test]
    fn a_name_that_is_longer_by_what_the_table_does_not_see_is_another() {
        for &known in KnownName::ALL {
            let text = known.as_str().as_bytes();
            // The table sees eight bits of a length, the first byte, the middle one and the last.
            let mut name = [text, &vec![text[text.len() / 2]; 256 - text.len()], text].concat();
            assert_eq!((name.len(), name[name.len() / 2]), (text.len() + 256, text[text.len() / 2]));
            assert_eq!(KnownName::find(&name), None, "{}", name.escape_ascii());
            assert!(!KnownName::is_mistaken_for_proxies_word(&name), "{}", name.escape_ascii());
            name.make_ascii_uppercase();
            assert_eq!(KnownName::find(&name), None, "{}", name.escape_ascii());
        }
    }

    /// A variable of CGI, as lighttpd makes it of a field's name.
    fn variable(name: &[u8]) -> Vec<u8> {
        name.iter()
            .map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_uppercase() } else { b'_' })
            .collect()
    }

    #[test]
    fn whatever_name_makes_the_variable_of_a_proxies_word_is_taken_for_it() {
        for word in KnownName::ALL.iter().filter(|known| known.is_proxies_word()) {
            let word = word.as_str().as_bytes();
            for at in 0..word.len() {
                for byte in (0..=u8::MAX).filter(|byte| !byte.eq_ignore_ascii_case(&word[at])) {
                    let mut name = word.to_ascii_uppercase();
                    name[at] = byte;
                    let same = variable(&name) == variable(word);
                    assert_eq!(
                        KnownName::is_mistaken_for_proxies_word(&name),
                        same,
                        "{}",
                        name.escape_ascii()
                    );
                }
            }
            for other in b"!#$%&'*+._^|~`" {
                let name: Vec<u8> =
                    word.iter().map(|byte| if *byte == b'-' { *other } else { *byte }).collect();
                assert!(KnownName::is_mistaken_for_proxies_word(&name), "{}", name.escape_ascii());
            }
        }
    }

    #[test]
    fn every_known_name_is_found_in_any_case_and_no_other() {
        for &known in KnownName::ALL {
            let text = known.as_str();
            assert_eq!(KnownName::find(text.as_bytes()), Some(known));
            assert_eq!(KnownName::find(text.to_ascii_uppercase().as_bytes()), Some(known));
            assert_eq!(KnownName::find(format!("{text}x").as_bytes()), None);
            assert_eq!(KnownName::find(&text.as_bytes()[1..]), None, "{text}");
            assert_eq!(known.header_name().as_str(), text);
        }
        assert_eq!(KnownName::find(b""), None);
        assert_eq!(KnownName::find(&[b'a'; 500]), None);
    }

    #[test]
    fn a_name_that_differs_in_one_byte_is_another() {
        for &known in KnownName::ALL {
            for at in 0..known.as_str().len() {
                for byte in 0..=u8::MAX {
                    let mut name = known.as_str().as_bytes().to_vec();
                    name[at] = byte;
                    let same = name.eq_ignore_ascii_case(known.as_str().as_bytes());
                    assert_eq!(KnownName::find(&name) == Some(known), same, "{}", name.escape_ascii());
                }
            }
        }
    }
}
