use std::collections::BTreeMap;

use super::*;
use crate::trace::TraceContext;
use meshwork_base::SeededRng;

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn at(millis: u64) -> Duration {
    Duration::from_millis(1_700_000_000_000 + millis)
}

fn traced() -> Traced {
    let caller = TraceContext::parse(CALLER.as_bytes()).unwrap();
    let mut traced =
        Traced::begin(&caller, Some(caller.span_id), "a=1,b=2".to_owned(), false, &mut SeededRng::new(1));
    traced.route = "/carts".to_owned();
    traced
}

fn record(method: &str) -> Record {
    let mut record = Record {
        start: at(0),
        duration: Duration::from_millis(90),
        protocol: Protocol::Http11,
        status: 200,
        peer: Some("192.0.2.7:4000".parse().unwrap()),
        route: Some("shop/carts".into()),
        service: Some("shop/cart:80".into()),
        revision: Some("7".into()),
        ..Record::default()
    };
    record.text.set(method.as_bytes(), b"/carts/4?secret=x", b"shop.example:8080", b"curl/8", b"r-1");
    record
}

fn spans(traced: &Traced, record: &Record) -> Vec<SpanData> {
    of(traced, record, &InstrumentationScope::builder("meshwork").build())
}

fn attributes(span: &SpanData) -> BTreeMap<&str, String> {
    span.attributes.iter().map(|pair| (pair.key.as_str(), pair.value.to_string())).collect()
}

fn try_once(traced: &mut Traced, from: u64, outcome: Option<(u64, Result<u16, &'static str>)>) {
    traced.attempt(at(from), "127.0.0.9:15006".parse().unwrap(), Protocol::Http2);
    if let Some((end, outcome)) = outcome {
        traced.attempted(at(end), outcome);
    }
}

#[test]
fn a_retried_request_is_a_servers_span_with_one_of_a_client_for_each_attempt() {
    let mut traced = traced();
    try_once(&mut traced, 10, Some((30, Err("connect_failure"))));
    let first = traced.next();
    traced.renew(&mut SeededRng::new(2));
    assert_ne!(traced.next().span_id, first.span_id, "each attempt is a parent of its own");
    try_once(&mut traced, 40, Some((60, Ok(200))));
    traced.responded();
    let spans = spans(&traced, &Record { attempts: 2, ..record("POST") });
    let [server, failed, served] = &spans[..] else { panic!("{spans:?}") };

    assert_eq!(server.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(server.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert!(server.parent_span_is_remote && server.span_context.is_sampled());
    assert_eq!(server.span_context.trace_state().header(), "a=1,b=2");
    for client in [failed, served] {
        assert_eq!(client.parent_span_id, server.span_context.span_id());
        assert_eq!(client.span_context.trace_id(), server.span_context.trace_id());
        assert!(!client.parent_span_is_remote);
    }
    assert_eq!(served.span_context.span_id().to_bytes(), *traced.next().span_id.as_bytes());

    let times = |span: &SpanData| {
        [span.start_time, span.end_time]
            .map(|time| time.duration_since(SystemTime::UNIX_EPOCH + at(0)).unwrap().as_millis())
    };
    assert_eq!([times(server), times(failed), times(served)], [[0, 90], [10, 30], [40, 90]]);
    assert_eq!((server.name.as_ref(), served.name.as_ref()), ("POST /carts", "POST"));

    let said = attributes(server);
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("http.route", "/carts"),
        ("url.path", "/carts/4"),
        ("url.scheme", "http"),
        ("server.address", "shop.example"),
        ("server.port", "8080"),
        ("network.protocol.version", "1.1"),
        ("network.peer.address", "192.0.2.7"),
        ("network.peer.port", "4000"),
        ("user_agent.original", "curl/8"),
        ("meshwork.route_name", "shop/carts"),
        ("meshwork.upstream_cluster", "shop/cart:80"),
        ("meshwork.revision", "7"),
        ("meshwork.request_id", "r-1"),
        ("meshwork.attempts", "2"),
    ] {
        assert_eq!(said.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(!format!("{spans:?}").contains("secret"), "a query is told to nobody");
    assert_eq!((&server.status, said.get("error.type")), (&Status::Unset, None));

    let said = attributes(failed);
    assert_eq!(
        (&failed.status, said["error.type"].as_str()),
        (&Status::error("connect_failure"), "connect_failure")
    );
    assert_eq!(said.get("http.response.status_code"), None);
    let said = attributes(served);
    assert_eq!((&served.status, said["http.request.resend_count"].as_str()), (&Status::Unset, "1"));
    assert_eq!(
        (said["network.peer.address"].as_str(), said["network.protocol.version"].as_str()),
        ("127.0.0.9", "2")
    );
}

#[test]
fn a_callers_mistake_is_an_error_of_clients_alone_and_a_servers_of_both() {
    for (code, server, client) in
        [(302, None, None), (404, None, Some("404")), (503, Some("503"), Some("503"))]
    {
        let mut traced = traced();
        try_once(&mut traced, 10, Some((20, Ok(code))));
        traced.responded();
        let spans = spans(&traced, &Record { status: code, ..record("GET") });
        for (span, expected) in spans.iter().zip([server, client]) {
            assert_eq!(attributes(span).get("error.type").map(String::as_str), expected, "{code}");
            assert_eq!(matches!(span.status, Status::Error { .. }), expected.is_some(), "{code}");
        }
    }
}

#[test]
fn our_own_refusal_is_an_error_by_its_status_with_its_cause() {
    for (status, cause, error) in
        [(404, "no_rule", false), (403, "authorization_denied", false), (503, "max_requests", true)]
    {
        let spans = spans(&traced(), &Record { status, cause, flag: "NR", ..record("GET") });
        let [server] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(matches!(server.status, Status::Error { .. }), error, "{cause}");
        assert_eq!(attributes(server)["meshwork.cause"], cause);
        assert_eq!(attributes(server).get("error.type").map(String::as_str), error.then_some(cause));
    }
}

#[test]
fn what_is_cut_off_is_an_error_of_both_whatever_its_status() {
    for status in [0, 200] {
        let mut traced = traced();
        try_once(&mut traced, 10, (status != 0).then_some((20, Ok(status))));
        if status != 0 {
            traced.responded();
        }
        let record = Record { status, cause: "upstream_closed", flag: "UC", ..record("GET") };
        for span in &spans(&traced, &record) {
            assert_eq!(span.status, Status::error("upstream_closed"), "{status}: {span:?}");
            assert_eq!(attributes(span)["error.type"], "upstream_closed");
        }
    }
}

#[test]
fn a_failure_before_an_attempt_begins_is_not_the_last_ones() {
    let mut traced = traced();
    try_once(&mut traced, 10, Some((30, Ok(503))));
    traced.attempted(at(80), Err("no_healthy_upstream"));
    let record = Record { status: 503, cause: "no_healthy_upstream", flag: "UH", ..record("GET") };
    let spans = spans(&traced, &record);
    assert_eq!(attributes(&spans[0])["error.type"], "no_healthy_upstream");
    assert_eq!(attributes(&spans[1])["error.type"], "503");
    assert_eq!(spans[1].end_time, SystemTime::UNIX_EPOCH + at(30));
}

#[test]
fn methods_that_nobody_knows_are_other_ones_and_hosts_are_read_as_they_are_written() {
    let mut strange = record("BREW");
    strange.text.set(b"BREW", b"/", b"[2001:db8::1]:99", b"", b"");
    let mut traced = traced();
    traced.route.clear();
    traced.https = true;
    let told = spans(&traced, &strange);
    let said = attributes(&told[0]);
    assert_eq!((told[0].name.as_ref(), said["http.request.method"].as_str()), ("HTTP", "_OTHER"));
    assert_eq!(said["http.request.method_original"], "BREW");
    assert_eq!((said["server.address"].as_str(), said["server.port"].as_str()), ("2001:db8::1", "99"));
    strange.text.set(b"GET", b"/", b"shop.example", b"", b"");
    assert_eq!(attributes(&spans(&traced, &strange)[0])["server.port"], "443");
}

#[test]
fn a_copy_has_a_client_s_span_of_its_own_below_the_request_s() {
    let (traced, record) = (traced(), record("POST"));
    let span = SpanId::from_bytes([7; 8]).unwrap();
    let mut copied = Copied::begin(&traced, span, &record, "shop/cart-v2:80".into());
    copied.attempt.address = "127.0.0.3:8080".parse().unwrap();
    (copied.attempt.start, copied.attempt.end) = (at(10), Some(at(500)));
    copied.attempt.status = 503;
    let scope = InstrumentationScope::builder("meshwork").build();
    let told = of_copy(&copied, &scope);
    let server = &spans(&traced, &record)[0];
    assert_eq!(told.parent_span_id, server.span_context.span_id());
    assert_eq!(told.span_context.trace_id(), server.span_context.trace_id());
    assert_eq!(told.span_context.span_id(), span_id(span));
    assert_eq!((&*told.name, told.span_kind.clone()), ("POST", SpanKind::Client));
    assert!(told.end_time > server.end_time, "it may last longer");
    let said = attributes(&told);
    assert_eq!((&*said["meshwork.mirror"], &*said["meshwork.upstream_cluster"]), ("true", "shop/cart-v2:80"));
    assert_eq!((&*said["error.type"], &*said["network.peer.port"]), ("503", "8080"));
    let own = attributes(server);
    assert!(!own.contains_key("meshwork.mirrors") && !own.contains_key("meshwork.mirrored"));
}
