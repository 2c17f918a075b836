//! How each fault is made: the endpoint, the policy, and what the client does.

use crate::clients::Payload;
use crate::upstreams::{Frame, Step, Up};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
const LATER: &[u8] = b"HTTP/1.1 503 Busy\r\nRetry-After: 10\r\nContent-Length: 4\r\n\r\nbusy";
const BEGIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfifty bytes, or so";
const CHUNK: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
const ENDLESS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
const MUCH: &[u8] = &[b'm'; 65536];

/// What the client does.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    Send(Payload),
    /// So many requests without a body are answered before, with this status.
    After(u32, u16, Payload),
    /// Until one is answered by the gateway itself: whom it refuses is drawn.
    UntilRefused,
    /// One request is under way.
    Beside(Payload),
    /// One waits to be repeated.
    Repeating,
    /// One request is under way, and one waits.
    Behind,
    /// It does not read what comes.
    Deaf,
    /// HTTP/1.1 as it is.
    Raw(&'static [&'static [u8]]),
    Leave,
}

pub(crate) struct Setup {
    pub(crate) up: Option<Up>,
    /// So many alike.
    pub(crate) instances: usize,
    pub(crate) protocol: &'static str,
    /// The policy's spec, one line.
    pub(crate) policy: &'static str,
    pub(crate) act: Act,
}

fn plain(steps: &'static [Step], policy: &'static str) -> Setup {
    Setup {
        up: Some(Up::Http1(steps)),
        instances: 1,
        protocol: "http",
        policy,
        act: Act::Send(Payload::Nothing),
    }
}

fn acting(act: Act, steps: &'static [Step], policy: &'static str) -> Setup {
    Setup { act, ..plain(steps, policy) }
}

fn streams(frames: &'static [Frame]) -> Setup {
    Setup {
        up: Some(Up::Http2(frames)),
        instances: 1,
        protocol: "kubernetes.io/h2c",
        policy: "retry: {attempts: 0}",
        act: Act::Send(Payload::Nothing),
    }
}

/// A second attempt soon, and for every request.
macro_rules! hedge {
    () => {
        "hedge: {delay: 50ms, budgetPercent: 100}\n  "
    };
}

/// One request at once; how others wait follows.
macro_rules! one {
    () => {
        "overload: {adaptiveConcurrency: {minConcurrency: 1, maxConcurrency: 1}, queue: "
    };
}

/// All bytes of HTTP/1.1, and what they end with.
macro_rules! raw {
    ($($part:expr),* $(,)?) => {{
        const PARTS: &[&[u8]] = &[$($part),*];
        acting(Act::Raw(PARTS), &[Head, Send(OK)], "")
    }};
}

const ONCE: &str = "retry: {attempts: 0}";

/// How a row's fault is made.
#[expect(clippy::too_many_lines, reason = "a table: one arm per row")]
pub(crate) fn setup(name: &str) -> Setup {
    use Step::{Close, Drip, Flood, Gone, Hang, Head, Reset, Send, Wait};
    let send = Act::Send(Payload::Nothing);
    let without = |up| Setup { up, instances: 1, protocol: "http", policy: "", act: send };
    match name {
        "refused" => without(Some(Up::Nobody)),
        "no-route" => Setup { policy: "timeouts: {connect: 300ms}", ..without(Some(Up::Full)) },
        "no-endpoints" | "no-service" => without(None),
        "reset-before" => plain(&[Head, Reset], ONCE),
        "closed-before" => plain(&[Head, Close], ""),
        "head-cut" => plain(&[Head, Send(b"HTTP/1.1 200 OK\r\nContent-"), Close], ONCE),
        "reset-after-head" => plain(&[Head, Send(BEGIN), Wait(100), Reset], ""),
        "reset-mid-body" => plain(&[Head, Send(HALF), Wait(100), Reset], ""),
        "truncated" => plain(&[Head, Send(HALF), Wait(100), Close], ""),
        "truncated-chunks" => plain(&[Head, Send(CHUNK), Wait(100), Close], ""),
        "garbage" => plain(&[Head, Send(b"220 mail.example ESMTP\r\n\r\n"), Close], ONCE),
        "bad-chunk" => plain(&[Head, Send(CHUNK), Wait(100), Send(b"many\r\n"), Hang], ""),
        "stalled-head" => plain(&[Head, Hang], "timeouts: {request: 500ms}"),
        "late" => plain(&[Head, Gone, Send(OK)], "timeouts: {request: 300ms}"),
        "stalled-try" => plain(&[Head, Hang], "retry: {attempts: 0, perTryTimeout: 300ms}"),
        // Time enough for these to begin.
        "stalled-body" => plain(&[Head, Send(HALF), Hang], "timeouts: {request: 2s}"),
        "slow-body" => plain(&[Head, Send(ENDLESS), Drip], "timeouts: {request: 2s}"),
        "idle-body" => plain(&[Head, Send(HALF), Hang], "timeouts: {streamIdle: 2s}"),
        "unread-request" => {
            acting(Act::Send(Payload::Bytes(8 << 20)), &[Head, Hang], "timeouts: {request: 1s}")
        }
        "unread-response" => {
            acting(Act::Deaf, &[Head, Send(ENDLESS), Flood(MUCH)], "timeouts: {streamIdle: 1s}")
        }
        "large-head" => plain(&[Head, Send(b"HTTP/1.1 200 OK\r\nX-Much: "), Send(MUCH), Hang], ONCE),
        "half-head" => raw!(b"GET /half-head HTTP/1.1\r\nHost: sh"),
        "half-body" => acting(Act::Send(Payload::Stalled), &[Head, Hang], ""),
        "h2-reset" => streams(&[Frame(3, 0, &[0, 0, 0, 2])]),
        "h2-refused" => streams(&[Frame(3, 0, &[0, 0, 0, 7])]),
        "h2-reset-body" => {
            streams(&[Frame(1, 4, &[0x88]), Frame(0, 0, b"half of it"), Frame(3, 0, &[0, 0, 0, 2])])
        }
        "storm" => {
            plain(&[Head, Send(BUSY)], "retry: {attempts: 2, on: [503], backoff: {base: 5ms, max: 10ms}}")
        }
        "late-storm" => plain(&[Head, Hang], "retry: {attempts: 1, on: [reset], perTryTimeout: 200ms}"),
        "budget-spent" => plain(
            &[Head, Send(BUSY)],
            "retry: {attempts: 2, on: [503], budget: {percent: 0, minPerSecond: 0}}",
        ),
        "retries-full" => acting(
            Act::Repeating,
            &[Head, Send(LATER)],
            "retry: {attempts: 1, on: [503]}\n  limits: {maxRetries: 1}",
        ),
        "no-connection" => acting(
            Act::Beside(Payload::Nothing),
            &[Head, Hang],
            "limits: {maxConnections: 1}\n  timeouts: {connect: 300ms}",
        ),
        "no-connection-in-time" => acting(
            Act::Beside(Payload::Within(300)),
            &[Head, Hang],
            "limits: {maxConnections: 1}\n  timeouts: {callerDeadline: Accept}",
        ),
        "queue-full" => {
            acting(Act::Behind, &[Head, Hang], "limits: {maxConnections: 1, maxPendingRequests: 1}")
        }
        "busy" => acting(Act::Beside(Payload::Nothing), &[Head, Hang], "limits: {maxRequests: 1}"),
        "breaker" => acting(
            Act::After(3, 503, Payload::Nothing),
            &[Head, Send(BUSY)],
            "circuitBreaker: {minimumCalls: 2, failurePercent: 50, window: {calls: 10}, openTime: 10m}",
        ),
        "endpoint-breaker" => acting(
            Act::After(3, 503, Payload::Nothing),
            &[Head, Send(BUSY)],
            "circuitBreaker: {per: Endpoint, minimumCalls: 2, failurePercent: 50, window: {calls: 10}, openTime: 10m}",
        ),
        "route-breaker" => acting(
            Act::After(3, 503, Payload::Nothing),
            &[Head, Send(BUSY)],
            "circuitBreaker: {per: Route, minimumCalls: 2, failurePercent: 50, window: {calls: 10}, openTime: 10m}",
        ),
        "held-back" => {
            acting(Act::UntilRefused, &[Head, Send(BUSY)], "admissionControl: {maxRejectionProbability: 100}")
        }
        "hedged-reset" => Setup {
            instances: 2,
            // Time enough for the second attempt to begin.
            ..plain(&[Head, Wait(3000), Reset], concat!(hedge!(), "retry: {attempts: 0}"))
        },
        "hedged-stalled" => {
            Setup { instances: 2, ..plain(&[Head, Hang], concat!(hedge!(), "timeouts: {request: 3s}")) }
        }
        "overloaded" => {
            acting(Act::Beside(Payload::Nothing), &[Head, Hang], concat!(one!(), "{maxRequests: 0}}"))
        }
        "overload-queue" => acting(
            Act::Behind,
            &[Head, Hang],
            concat!(one!(), "{maxRequests: 1, maxWait: 60s, target: 60s}}"),
        ),
        "overload-time" => {
            acting(Act::Beside(Payload::Nothing), &[Head, Hang], concat!(one!(), "{maxWait: 300ms}}"))
        }
        "asked-too-often" => acting(
            Act::After(1, 200, Payload::Nothing),
            &[Head, Send(OK)],
            "rateLimit: {requests: 1, per: 1h}",
        ),
        "aborted" => plain(&[Head, Send(OK)], "faultInjection: {abort: {httpStatus: 503}}"),
        "too-long-a-stream" => plain(&[Head, Send(BEGIN), Drip], "timeouts: {maxStreamDuration: 500ms}"),
        "caller-is-late" => {
            acting(Act::Send(Payload::Within(300)), &[Head, Hang], "timeouts: {callerDeadline: Accept}")
        }
        // So many answers tell how fast it is.
        "caller-is-hasty" => acting(
            Act::After(20, 200, Payload::Within(5)),
            &[Head, Wait(30), Send(OK)],
            "timeouts: {callerDeadline: Accept}",
        ),
        "no-rule" => without(None),
        "denied" | "no-backends" | "no-weight" | "no-host" | "no-listener" => plain(&[Head, Send(OK)], ""),
        "broken-request" => {
            raw!(b"POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        }
        "long-line" => raw!(b"GET /", MUCH.split_at(17_000).0, b" HTTP/1.1\r\nHost: shop\r\n\r\n"),
        "large-request" => {
            raw!(b"GET / HTTP/1.1\r\nHost: shop\r\nX-Much: ", MUCH.split_at(33_000).0, b"\r\n\r\n")
        }
        "other-version" => raw!(b"GET / HTTP/2.0\r\nHost: shop\r\n\r\n"),
        "unknown-coding" => {
            raw!(b"POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: gzip\r\n\r\n")
        }
        "memory" => plain(&[Head, Send(OK)], ""),
        "left" => acting(Act::Leave, &[Head, Hang], ""),
        other => panic!("{other} is not in the table"),
    }
}
