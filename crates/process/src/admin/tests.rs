use std::io::{Read, Write};
use std::net::TcpStream;

use axum::routing::get;
use meshwork_telemetry::{LogFormat, init_logging};

use super::*;

const FREE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// One request over a fresh connection: the whole answer as text.
fn ask(address: SocketAddr, request: &str, accept: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let length = body.len();
    write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    answer
}

fn get_text(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path}"), "*/*", "")
}

fn state() -> AdminState {
    AdminState { readiness: Readiness::new(), metrics: MetricsRegistry::default(), log: None }
}

fn start(state: &AdminState) -> AdminServer {
    let addresses = AdminAddresses { admin: FREE, metrics: Some(FREE), ready: Some(FREE) };
    let extra = Router::new().route("/config", get(|| async { "of the role" }));
    AdminServer::start(addresses, state.clone(), extra).expect("free ports can be bound")
}

#[test]
fn readiness_follows_its_conditions_on_both_ports() {
    let state = state();
    let server = start(&state);
    let condition = state.readiness.condition("listeners bound");
    for address in [server.admin_address(), server.ready_address().expect("asked for")] {
        condition.set(false);
        let answer = get_text(address, "/healthz/ready");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("listeners bound"), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(get_text(address, "/healthz/live").starts_with("HTTP/1.1 200"));
        condition.set(true);
        assert!(get_text(address, "/healthz/ready").starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn metrics_are_served_in_the_format_asked_for() {
    let server = start(&state());
    for address in [server.admin_address(), server.metrics_address().expect("asked for")] {
        let plain = get_text(address, "/metrics");
        assert!(
            plain.contains("content-type: text/plain; version=0.0.4") && plain.contains("process_open_fds"),
            "{plain}"
        );
        let open = ask(address, "GET /metrics", "application/openmetrics-text", "");
        assert!(
            open.contains("application/openmetrics-text; version=1.0.0") && open.ends_with("# EOF\n"),
            "{open}"
        );
    }
}

#[test]
fn each_port_serves_only_its_own() {
    let server = start(&state());
    let (metrics, ready) =
        (server.metrics_address().expect("asked for"), server.ready_address().expect("asked for"));
    assert!(get_text(server.admin_address(), "/config").ends_with("of the role"));
    for (address, path) in
        [(metrics, "/healthz/ready"), (metrics, "/loglevel"), (ready, "/metrics"), (ready, "/config")]
    {
        assert!(get_text(address, path).starts_with("HTTP/1.1 404"), "{path}");
    }
    let missing = get_text(server.admin_address(), "/nothing");
    assert!(missing.starts_with("HTTP/1.1 404") && missing.contains("application/problem+json"), "{missing}");
}

#[test]
fn the_log_level_changes_by_put_alone() {
    let log = init_logging(LogFormat::Text, "warn", &MetricsRegistry::default())
        .expect("the only test here that sets up the log");
    let server = start(&AdminState { log: Some(log), ..state() });
    let admin = server.admin_address();
    assert!(get_text(admin, "/loglevel").ends_with("warn\n"));
    assert!(ask(admin, "POST /loglevel", "*/*", "debug").starts_with("HTTP/1.1 405"));
    let refused = ask(admin, "PUT /loglevel", "*/*", "x=loud");
    assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("x=loud"), "{refused}");
    assert!(ask(admin, "PUT /loglevel", "*/*", "debug\n").ends_with("debug\n"));
    assert!(get_text(admin, "/loglevel").ends_with("debug\n"));
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let server = start(&state());
    let taken = AdminAddresses { admin: server.admin_address(), metrics: None, ready: None };
    let error = AdminServer::start(taken, state(), Router::new()).expect_err("taken").to_string();
    assert!(error.contains(&server.admin_address().to_string()), "{error}");
}

#[test]
fn a_dropped_server_frees_its_ports() {
    let server = start(&state());
    let address = server.admin_address();
    drop(server);
    TcpListener::bind(address).expect("the port is free again");
}

#[test]
fn admin_stays_on_this_machine_wherever_the_rest_listens() {
    let open = AdminAddresses::standard(IpAddr::from([0, 0, 0, 0]));
    assert_eq!(open.admin.to_string(), "127.0.0.1:15000");
    assert_eq!(open.metrics.map(|a| a.to_string()).as_deref(), Some("0.0.0.0:15020"));
    let instance = AdminAddresses::standard(IpAddr::from([127, 1, 2, 3]));
    assert_eq!(instance.admin.to_string(), "127.1.2.3:15000");
}
