//! A process that has no descriptor left. One test: the limit is the whole process's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use axum::Router;
use meshwork_process::descriptors::{open_files_before, raise_open_files};
use meshwork_process::{AdminAddresses, AdminServer, AdminState, Readiness};
use meshwork_telemetry::MetricsRegistry;
use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FREE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Who calls keeps its end, so that no descriptor comes free by that.
fn ask(call: OwnedFd, address: SocketAddr) -> (String, TcpStream) {
    connect(&call, &address).unwrap();
    let mut stream = TcpStream::from(call);
    stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ready\n") {
        let mut bytes = [0; 512];
        match stream.read(&mut bytes).unwrap() {
            0 => break,
            read => answer.extend_from_slice(&bytes[..read]),
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    (answer, stream)
}

#[test]
fn without_descriptors_readiness_answers_and_with_more_in_the_hard_limit_they_are_had() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum }).unwrap();
    let state = AdminState { readiness: Readiness::new(), metrics: MetricsRegistry::default(), log: None };
    let addresses = AdminAddresses { admin: FREE, metrics: None, ready: Some(FREE) };
    let server = AdminServer::start(addresses, state, Router::new()).unwrap();
    let address = server.ready_address().unwrap();
    let calls: Vec<_> =
        (0..3).map(|_| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()).collect();
    let first = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    // By then the port is served, with a descriptor laid aside.
    connect(&first, &address).unwrap();
    let mut first = TcpStream::from(first);
    first.write_all(b"GET /healthz/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert_ne!(first.read(&mut [0; 512]).unwrap(), 0);

    let taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(taken.len() > 100);
    let mut called = Vec::new();
    for call in calls {
        let (answer, stream) = ask(call, address);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        called.push(stream);
    }
    drop(called);

    assert_eq!(open_files_before(), None);
    raise_open_files();
    assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    assert_eq!(open_files_before(), Some(Rlimit { current: Some(256), maximum }));
    assert!(maximum.is_none_or(|most| most > 256) && File::open("/dev/null").is_ok());
}
