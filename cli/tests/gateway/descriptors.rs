//! What callers meet where a process may have no more files open.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::process::{HTTP, METRICS};
use crate::support::{Gateway, Upstream, address, get, until, yaml};

/// Lets the process open `more` files beside those that it has, and none beyond.
fn leave(gateway: &Gateway, more: u64) {
    let pid = gateway.pid();
    let names = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let numbers: BTreeSet<u64> =
        names.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    // A new one has the lowest number that is free, and what has a higher one than there may be stays.
    let free = (0..).find(|number| !numbers.contains(number)).unwrap();
    let limit = free + more;
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(limit), maximum }).unwrap();
}

fn connect(address: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    tcp
}

/// Whether what was asked so far is answered; that it is not says the end of the connection, and never silence.
fn is_answered(tcp: &mut TcpStream) -> bool {
    let mut chunk = [0; 4096];
    match tcp.read(&mut chunk) {
        Ok(count) => chunk[..count].starts_with(b"HTTP/1.1 200 "),
        Err(error) => {
            let hangs = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            assert!(!hangs, "a caller hangs");
            false
        }
    }
}

fn asks(tcp: &mut TcpStream) -> bool {
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").is_ok() && is_answered(tcp)
}

#[test]
fn where_no_more_files_may_be_opened_who_waits_makes_place_and_who_finds_none_is_closed() {
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat();
    let gateway = Gateway::start_at(address(), &[("all.yaml", &files)], &["--workers", "1"]);
    gateway.ready();
    let http = gateway.at(HTTP);
    assert!(asks(&mut connect(http)));
    leave(&gateway, 16);

    // Each has the place of one that was answered before it and only waits for another request.
    let mut idle = Vec::new();
    for _ in 0..60 {
        let mut tcp = connect(http);
        assert!(asks(&mut tcp), "there is a place for it");
        idle.push(tcp);
    }
    let left = idle.iter_mut().filter_map(|tcp| asks(tcp).then_some(())).count();
    assert!((1..20).contains(&left), "{left} are left");

    // Those who are in the middle of something keep their places.
    let mut begun = Vec::new();
    until("there is no place for one more", || {
        let mut tcp = connect(http);
        drop(tcp.write_all(b"GET / HTTP/1.1\r\n"));
        begun.push(tcp);
        (!asks(&mut connect(http))).then_some(())
    });
    let closed = r#"meshwork_downstream_connections_overflow_total{lacks="descriptors"}"#;
    until("it is counted who was closed", || {
        let (_, text) = get(gateway.at(METRICS), "/metrics")?;
        text.lines().any(|line| line.starts_with(closed) && !line.ends_with(" 0")).then_some(())
    });
    assert!(gateway.stderr().contains("too few files may be open"), "{}", gateway.stderr());
    let mut first = begun.swap_remove(0);
    first.write_all(b"Host: web.example\r\nConnection: close\r\n\r\n").unwrap();
    assert!(is_answered(&mut first), "it kept its place, and there is one for the connection onwards");
    drop(begun);
    until("all is as before", || asks(&mut connect(http)).then_some(()));
}
