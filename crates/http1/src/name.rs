//! The field names that the proxy itself looks at, so that finding one is a comparison of integers.

macro_rules! known_names {
    ($($variant:ident = $text:literal,)*) => {
        /// A field name that the proxy looks at.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "each variant is the field of that name")]
        pub enum KnownName { $($variant,)* }

        impl KnownName {
            /// Every known name, shortest first.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in lower case, as HTTP/2 writes it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

// Ordered by length: `find` takes the candidates of one length as a slice (a test holds the order).
known_names! {
    Te = "te",
    Via = "via",
    Host = "host",
    Date = "date",
    Allow = "allow",
    Cookie = "cookie",
    Expect = "expect",
    Accept = "accept",
    Server = "server",
    Origin = "origin",
    Trailer = "trailer",
    Upgrade = "upgrade",
    Referer = "referer",
    Baggage = "baggage",
    Location = "location",
    Priority = "priority",
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
    ContentLength = "content-length",
    XForwardedFor = "x-forwarded-for",
    WwwAuthenticate = "www-authenticate",
    ProxyConnection = "proxy-connection",
    XForwardedHost = "x-forwarded-host",
    TransferEncoding = "transfer-encoding",
    XForwardedProto = "x-forwarded-proto",
    ProxyAuthenticate = "proxy-authenticate",
    ProxyAuthorization = "proxy-authorization",
    XEnvoyAttemptCount = "x-envoy-attempt-count",
    XForwardedClientCert = "x-forwarded-client-cert",
}

const LONGEST: usize = 32;

/// `STARTS[n]` is where the names of `n` bytes begin in [`KnownName::ALL`].
const STARTS: [u8; LONGEST + 2] = {
    let mut starts = [0; LONGEST + 2];
    let mut length = 0;
    while length < LONGEST + 2 {
        let mut at = 0;
        while at < KnownName::ALL.len() && KnownName::ALL[at].as_str().len() < length {
            at += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the enum is one byte wide")]
        {
            starts[length] = at as u8;
        }
        length += 1;
    }
    starts
};

impl KnownName {
    /// Finds a name, in any case.
    #[must_use]
    pub fn find(name: &[u8]) -> Option<Self> {
        let (&first, length) = (name.first()?, name.len());
        if length > LONGEST {
            return None;
        }
        let candidates = &Self::ALL[STARTS[length].into()..STARTS[length + 1].into()];
        candidates.iter().copied().find(|known| {
            let text = known.as_str().as_bytes();
            // Most candidates differ in their first byte; the call to compare the rest is saved.
            text[0] == first | 0x20 && text.eq_ignore_ascii_case(name)
        })
    }

    /// Whether its value must not reach a log.
    #[must_use]
    pub const fn is_secret(self) -> bool {
        matches!(self, Self::Authorization | Self::ProxyAuthorization | Self::Cookie | Self::SetCookie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_in_any_case_and_no_other() {
        assert!(KnownName::ALL.is_sorted_by_key(|name| name.as_str().len()), "shortest first");
        for &known in KnownName::ALL {
            let text = known.as_str();
            assert!(text.len() <= LONGEST);
            assert_eq!(KnownName::find(text.as_bytes()), Some(known));
            assert_eq!(KnownName::find(text.to_ascii_uppercase().as_bytes()), Some(known));
            assert_eq!(KnownName::find(format!("{text}x").as_bytes()), None);
            assert_eq!(KnownName::find(&text.as_bytes()[1..]), None, "{text}");
        }
        assert_eq!(KnownName::find(b""), None);
        assert_eq!(KnownName::find(&[b'a'; 500]), None);
    }
}
