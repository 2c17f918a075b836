//! What an attempt says about its endpoint, for balancer and outlier detection.

use std::time::Duration;

use meshwork_decision::{Answer, AppProtocol, AttemptOutcome, Cause, InboundPort, PushBack, http_status};
use meshwork_http1::{KnownName, ResponseHead, Version};
use meshwork_telemetry::grpc_name;

use super::kin::OVERLOADED;
use super::overload::LOCAL_OVERLOADED;
use crate::error::{Failure, Fault, Retry};

/// gRPC's push-back (gRFC A6), in milliseconds; a negative one, or one that is no number, is a word on retries and not
/// on when to come again.
pub(crate) const PUSH_BACK: &str = "grpc-retry-pushback-ms";

/// What a response's head says. `wall` is the time since the Unix epoch, asked for when a date is to be understood.
pub(crate) fn of_response(
    response: &ResponseHead,
    is_grpc: bool,
    took: Duration,
    wall: impl FnOnce() -> Duration,
) -> Answer {
    let grpc = grpc_status(response, is_grpc);
    let outcome = outcome(response, is_grpc);
    let push_back = match outcome {
        AttemptOutcome::Success => None,
        AttemptOutcome::Overloaded | AttemptOutcome::Failure => match push_back(response, wall) {
            Some(PushBack::After(time) | PushBack::Spare(time)) => Some(time),
            Some(PushBack::Never) | None => None,
        },
    };
    let status = grpc.map_or(response.status, status_of_grpc);
    Answer { status, push_back, ..Answer::new(outcome, took) }
}

/// The status of HTTP that stands for one of gRPC, as far as failures are told apart by it.
const fn status_of_grpc(code: u16) -> u16 {
    match AttemptOutcome::of_grpc(code) {
        AttemptOutcome::Success => 200,
        AttemptOutcome::Overloaded | AttemptOutcome::Failure => http_status(code),
    }
}

/// What a response's head says of its endpoint.
pub(crate) fn outcome(response: &ResponseHead, is_grpc: bool) -> AttemptOutcome {
    let outcome = match grpc_status(response, is_grpc) {
        None => AttemptOutcome::of_status(response.status),
        Some(code) => AttemptOutcome::of_grpc(code),
    };
    // What a proxy before it has sent away says no more about it than its own 429.
    match outcome {
        AttemptOutcome::Failure if response.fields.get(LOCAL_OVERLOADED).is_some() => {
            AttemptOutcome::Overloaded
        }
        outcome => outcome,
    }
}

/// Whether a server of HTTP alone answers so: in HTTP/1.1 or HTTP/2, and it would take another request. What speaks something
/// else may know one that has gone astray, and says so before it closes: in HTTP/1.0 the ports for binary clients of MongoDB,
/// `ClickHouse` and Elasticsearch, in any version servers of TLS. Their tunnels must not end by that.
pub(crate) fn is_of_http_server(response: &ResponseHead) -> bool {
    response.version == Version::Http11 && (response.keep_alive || response.tunnel)
}

/// The application beside us has answered like this on a connection of its port: see [`is_of_http_server`].
pub(crate) fn shows_http(port: &InboundPort) {
    if port.state.shows_http() && port.protocol == AppProtocol::Detect {
        tracing::info!(
            port = &*port.label,
            "the application speaks HTTP: its port takes requests, and opaque connections only if it declares tcp"
        );
    }
}

fn grpc_status(response: &ResponseHead, is_grpc: bool) -> Option<u16> {
    if is_grpc { response.fields.known(KnownName::GrpcStatus).and_then(number) } else { None }
}

/// For people, as far as it is what calls for a retry: the code of a call of gRPC, whose status says nothing.
pub(crate) fn told(response: &ResponseHead, is_grpc: bool) -> String {
    match grpc_status(response, is_grpc).filter(|_| response.status == 200) {
        None => format!("status {}", response.status),
        Some(code) => match grpc_name(code.into()) {
            None => format!("grpc-status {code}"),
            Some(name) => format!("grpc-status {code} ({name})"),
        },
    }
}

/// Whether it says that time was over, as a proxy does.
pub(crate) fn is_time_out(response: &ResponseHead, is_grpc: bool) -> bool {
    match grpc_status(response, is_grpc) {
        None => response.status == 504,
        Some(code) => code == u16::from(DEADLINE_EXCEEDED),
    }
}

/// Whether only the trailers will say what became of a call: with a message gRPC's status comes behind it.
pub(crate) fn comes_late(response: &ResponseHead, is_grpc: bool) -> bool {
    is_grpc && response.status == 200 && response.fields.known(KnownName::GrpcStatus).is_none()
}

/// What callers make of a call that ends without a status.
pub(crate) const UNKNOWN: u8 = 2;
/// gRPC's word for time that was over.
pub(crate) const DEADLINE_EXCEEDED: u8 = 4;

/// A call of gRPC was answered to its end, and neither head nor trailers say what became of it.
pub(crate) fn without_status() -> Failure {
    Failure::upstream(Cause::UpstreamProtocolError, Retry::No).because("the answer ended without grpc-status")
}

/// What became of a call whose status came late. A caller who left has heard enough.
pub(crate) fn of_end(ended: Result<(), &Failure>, grpc_status: Option<u8>, took: Duration) -> Answer {
    let code = u16::from(grpc_status.unwrap_or(UNKNOWN));
    // A stream of gRPC may have nothing to say for long.
    let said = |failure: &Failure| {
        Some(failure)
            .filter(|one| one.cause != Cause::StreamIdleTimeout)
            .and_then(|one| of_failure(one, took))
    };
    match ended.map_err(said) {
        Err(Some(answer)) => answer,
        Err(None) => Answer { status: 200, ..Answer::new(AttemptOutcome::Success, took) },
        Ok(()) => Answer { status: status_of_grpc(code), ..Answer::new(AttemptOutcome::of_grpc(code), took) },
    }
}

/// What a failed response says about being asked again.
pub(crate) fn push_back(response: &ResponseHead, wall: impl FnOnce() -> Duration) -> Option<PushBack> {
    if response.fields.get(OVERLOADED).is_some() {
        return Some(PushBack::Never);
    }
    if let Some(grpc) = response.fields.get(PUSH_BACK) {
        return Some(number(grpc).map_or(PushBack::Never, |ms| PushBack::After(Duration::from_millis(ms))));
    }
    retry_after(response.fields.known(KnownName::RetryAfter)?, wall).map(PushBack::Spare)
}

/// What a failure says; `None`: nothing about the endpoint. That is so for a stale connection, and for what is our own
/// or the caller's fault.
pub(crate) fn of_failure(failure: &Failure, took: Duration) -> Option<Answer> {
    let of_endpoint = match failure {
        Failure { retry: Retry::Reused, .. } | Failure { is_hasty: true, .. } => false,
        Failure { fault: Fault::Upstream, .. } => true,
        Failure { cause, .. } => matches!(
            cause,
            Cause::PerTryTimeout | Cause::RequestTimeout | Cause::DeadlineExceeded | Cause::StreamIdleTimeout
        ),
    };
    of_endpoint.then(|| Answer::new(AttemptOutcome::Failure, took))
}

/// What a failure says that has broken off an answer whose head was good; `None`: nothing. `took`: the time to the head, and to
/// this. Who stands still until a time of ours is over has cost all of that time.
pub(crate) fn of_break(failure: &Failure, (took, whole): (Duration, Duration)) -> Option<Answer> {
    match failure.fault {
        Fault::Local => of_failure(failure, whole),
        Fault::Upstream | Fault::Downstream => of_failure(failure, took),
    }
}

/// Whether nobody knows when more of an answer comes: that nothing does says nothing.
pub(crate) fn may_be_silent(response: &ResponseHead) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let kind = response.fields.known(KnownName::ContentType);
    kind.and_then(|kind| kind.get(..EVENTS.len())).is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS))
}

/// Seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(value: &[u8], wall: impl FnOnce() -> Duration) -> Option<Duration> {
    let value = value.trim_ascii();
    if !value.is_empty() && value.iter().all(u8::is_ascii_digit) {
        // There is no greatest number: what does not fit is long.
        return Some(Duration::from_secs(number(value).unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()?;
    Some(date.duration_since(std::time::UNIX_EPOCH).ok()?.saturating_sub(wall()))
}

fn number<N: std::str::FromStr>(value: &[u8]) -> Option<N> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_http1::Version;

    fn answer(status: u16, fields: &[(&str, &str)]) -> Answer {
        let mut head = ResponseHead { status, ..ResponseHead::default() };
        head.version = Version::Http11;
        for (name, value) in fields {
            head.fields.push(name, value).unwrap();
        }
        let is_grpc = fields.iter().any(|(name, _)| name.starts_with("grpc"));
        let noon = || httpdate::parse_http_date("Sun, 06 Nov 1994 12:00:00 GMT").unwrap();
        let wall = || noon().duration_since(std::time::UNIX_EPOCH).unwrap();
        of_response(&head, is_grpc, Duration::ZERO, wall)
    }

    #[test]
    fn statuses_and_grpc_codes_are_told_apart() {
        use AttemptOutcome::{Failure, Overloaded, Success};
        for (status, outcome) in
            [(200, Success), (404, Success), (429, Overloaded), (500, Failure), (503, Failure)]
        {
            assert_eq!(answer(status, &[]).outcome, outcome, "{status}");
        }
        for (code, outcome) in
            [("0", Success), ("5", Success), ("8", Overloaded), ("13", Failure), ("14", Failure)]
        {
            assert_eq!(answer(200, &[("grpc-status", code)]).outcome, outcome, "{code}");
        }
        assert_eq!(answer(503, &[("grpc-status", "nonsense")]).outcome, Failure);
        let told_apart = [("13", 500), ("14", 503), ("4", 504)];
        for (code, status) in told_apart {
            assert_eq!(answer(200, &[("grpc-status", code)]).status, status, "{code}");
        }
        for shed in [&[(LOCAL_OVERLOADED, "true")][..], &[("grpc-status", "14"), (LOCAL_OVERLOADED, "true")]]
        {
            assert_eq!(answer(503, shed).outcome, Overloaded, "a proxy has sent it away");
        }
        assert_eq!(answer(200, &[(LOCAL_OVERLOADED, "true")]).outcome, Success);
        assert_eq!(answer(502, &[]).status, 502);
        assert_eq!(Answer::new(Failure, Duration::ZERO).status, 0, "of local origin");
    }

    #[test]
    fn the_endpoint_is_taken_at_its_word() {
        let word = |status, name, value| answer(status, &[(name, value)]).push_back;
        assert_eq!(word(429, "retry-after", "3"), Some(Duration::from_secs(3)));
        assert_eq!(word(503, "retry-after", "Sun, 06 Nov 1994 12:00:07 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(
            word(503, "retry-after", "Sun, 06 Nov 1994 11:00:00 GMT"),
            Some(Duration::ZERO),
            "it is over"
        );
        assert_eq!(
            word(503, "retry-after", "99999999999999999999"),
            Some(Duration::from_secs(u64::MAX)),
            "it is long, however many digits it has"
        );
        for none in ["soon", "+1", "-1", "1.5", ""] {
            assert_eq!(word(503, "retry-after", none), None, "{none:?}");
        }
        assert_eq!(word(301, "retry-after", "3"), None, "a redirect says nothing about load");
        let grpc = |value| answer(200, &[("grpc-status", "8"), ("grpc-retry-pushback-ms", value)]).push_back;
        assert_eq!(grpc("250"), Some(Duration::from_millis(250)));
        assert_eq!(grpc("-1"), None);
    }

    #[test]
    fn an_answer_says_whether_and_when_to_ask_again() {
        let word = |name: &str, value: &str| {
            let mut head = ResponseHead { status: 503, ..ResponseHead::default() };
            head.fields.push(name, value).unwrap();
            push_back(&head, || Duration::ZERO)
        };
        assert_eq!(word("Grpc-Retry-Pushback-Ms", "250"), Some(PushBack::After(Duration::from_millis(250))));
        assert_eq!(word("grpc-retry-pushback-ms", "-1"), Some(PushBack::Never));
        assert_eq!(word("grpc-retry-pushback-ms", "soon"), Some(PushBack::Never), "gRFC A6");
        assert_eq!(word("x-envoy-overloaded", "true"), Some(PushBack::Never));
        assert_eq!(word("retry-after", "2"), Some(PushBack::Spare(Duration::from_secs(2))));
        assert_eq!(word("retry-after", "soon"), None);
        assert_eq!(word("server", "x"), None);
    }

    #[test]
    fn only_a_call_of_grpc_whose_head_says_nothing_is_known_by_its_end_and_told_by_its_code() {
        let head = |status, code: Option<&str>| {
            let mut head = ResponseHead { status, ..ResponseHead::default() };
            code.iter().for_each(|code| head.fields.push("grpc-status", code).unwrap());
            head
        };
        assert!(comes_late(&head(200, None), true));
        assert!(!comes_late(&head(200, None), false) && !comes_late(&head(503, None), true));
        assert!(!comes_late(&head(200, Some("0")), true));
        let told = |status, code, is_grpc| told(&head(status, code), is_grpc);
        assert_eq!(told(200, Some("14"), true), "grpc-status 14 (UNAVAILABLE)");
        assert_eq!(
            (told(503, Some("14"), true), told(200, Some("14"), false)),
            ("status 503".into(), "status 200".into())
        );
    }

    #[test]
    fn what_trailers_say_counts_and_a_caller_who_left_says_nothing() {
        let of = |ended: Result<(), &Failure>, code| of_end(ended, code, Duration::ZERO).outcome;
        assert_eq!(of(Ok(()), Some(14)), AttemptOutcome::Failure);
        assert_eq!(of(Ok(()), Some(8)), AttemptOutcome::Overloaded);
        assert_eq!(
            (of(Ok(()), Some(0)), of(Ok(()), None)),
            (AttemptOutcome::Success, AttemptOutcome::Failure)
        );
        let broken = Failure::upstream(Cause::UpstreamReset, Retry::No);
        assert_eq!(of(Err(&broken), None), AttemptOutcome::Failure);
        assert_eq!(of(Err(&Failure::downstream(Cause::DownstreamReset)), None), AttemptOutcome::Success);
        let silent = Failure::local(Cause::StreamIdleTimeout);
        assert_eq!(of(Err(&silent), None), AttemptOutcome::Success, "it may have nothing to say");
    }

    #[test]
    fn an_answer_that_its_endpoint_breaks_off_or_lets_stand_is_a_failure_of_local_origin() {
        let (took, whole) = (Duration::from_millis(3), Duration::from_secs(5));
        let of = |failure: Failure| of_break(&failure, (took, whole));
        let failed = |took| Some(Answer::new(AttemptOutcome::Failure, took));
        assert_eq!(of(Failure::upstream(Cause::UpstreamReset, Retry::No)), failed(took));
        for time_out in [Cause::RequestTimeout, Cause::DeadlineExceeded, Cause::StreamIdleTimeout] {
            assert_eq!(of(Failure::local(time_out)), failed(whole), "{time_out}");
            assert_eq!(of(Failure { is_hasty: true, ..Failure::local(time_out) }), None, "{time_out}");
        }
        let ours = [Cause::MaxStreamDuration, Cause::Draining, Cause::Internal];
        assert!(ours.into_iter().all(|cause| of(Failure::local(cause)).is_none()));
        assert_eq!(of(Failure::downstream(Cause::DownstreamReset)), None);
        let excused = Failure { is_hasty: true, ..Failure::upstream(Cause::UpstreamReset, Retry::No) };
        assert_eq!(of(excused), None);
    }

    #[test]
    fn only_what_is_the_endpoint_s_fault_is_held_against_it() {
        let of = |failure: Failure| of_failure(&failure, Duration::ZERO).is_some();
        assert!(of(Failure::upstream(Cause::ConnectFailure, Retry::NothingSent)));
        let time_outs =
            [Cause::PerTryTimeout, Cause::RequestTimeout, Cause::DeadlineExceeded, Cause::StreamIdleTimeout];
        for time_out in time_outs {
            assert!(of(Failure::local(time_out)), "{time_out}");
        }
        assert!(!of(Failure::upstream(Cause::UpstreamClosed, Retry::Reused)), "a stale connection");
        assert!(!of(Failure { is_hasty: true, ..Failure::local(Cause::RequestTimeout) }), "ours");
        assert!(!of(Failure::downstream(Cause::DownstreamClosed)));
        assert!(!of(Failure::local(Cause::MaxRequests)));
    }
}
