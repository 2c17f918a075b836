//! A process that has no descriptor left. One test: the limit is the whole process's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use axum::Router;
use meshwork_process::descriptors::{open_files_before, raise_open_files};
use meshwork_process::{AdminAddresses, AdminServer, AdminState, Readiness};
use meshwork_telemetry::MetricsRegistry;
use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FREE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn new_call() -> OwnedFd {
    socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()
}

fn call(with: OwnedFd, address: SocketAddr) -> TcpStream {
    connect(&with, &address).unwrap();
    let stream = TcpStream::from(with);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Says what a connection that stays answers; `ends` is the end of that.
fn ask(stream: &mut TcpStream, path: &str, ends: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(ends.as_bytes()) {
        let mut bytes = [0; 512];
        match stream.read(&mut bytes).unwrap() {
            0 => break,
            read => answer.extend_from_slice(&bytes[..read]),
        }
    }
    String::from_utf8(answer).unwrap()
}

/// The whole of a connection to the port for probes that ends with its answer. Who calls keeps its end, so that no
/// descriptor comes free by that.
fn probe(stream: &mut TcpStream) {
    let answer = ask(stream, "/healthz/ready", "ready\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "another one needs its descriptor");
}

/// What traffic does where it has more callers than descriptors.
fn take_all() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[test]
fn without_descriptors_readiness_answers_and_with_more_in_the_hard_limit_they_are_had() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum }).unwrap();
    let state = AdminState { readiness: Readiness::new(), metrics: MetricsRegistry::default(), log: None };
    let addresses = AdminAddresses { admin: FREE, metrics: None, ready: Some(FREE) };
    let server = AdminServer::start(addresses, state, Router::new()).unwrap();
    let address = server.ready_address().unwrap();
    let mut calls = [(); 6].map(|()| new_call()).into_iter();
    let mut next_call = || call(calls.next().unwrap(), address);
    // One thread serves all ports: what it was to do before is done when this is answered.
    let mut operator = call(new_call(), server.admin_address());
    let mut settle = || assert!(ask(&mut operator, "/healthz/live", "live\n").ends_with("live\n"));
    // By then the port is served, with a descriptor laid aside.
    let mut first = next_call();
    assert!(ask(&mut first, "/healthz/ready", "ready\n").ends_with("ready\n"));

    let mut taken = take_all();
    assert!(taken.len() > 100);
    let mut called = Vec::new();
    for _ in 0..3 {
        let mut caller = next_call();
        probe(&mut caller);
        called.push(caller);
        // Nor does traffic get what the probe had.
        settle();
        taken.extend(take_all());
    }
    // Nobody waited in vain, so nobody had to go; now it does, by itself.
    first.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n").unwrap();
    assert_ne!(first.read_to_end(&mut Vec::new()).unwrap(), 0);
    settle();
    taken.extend(take_all());
    let (mut one, mut another) = (next_call(), next_call());
    settle();
    // The one has said nothing so far, and the other waits for a descriptor.
    probe(&mut one);
    probe(&mut another);
    drop((taken, called, one, another));

    assert_eq!(open_files_before(), None);
    raise_open_files();
    assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    assert_eq!(open_files_before(), Some(Rlimit { current: Some(256), maximum }));
    assert!(maximum.is_none_or(|most| most > 256) && File::open("/dev/null").is_ok());
}
