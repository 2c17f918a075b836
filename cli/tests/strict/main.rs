//! What the binary makes of bytes that no well-behaved caller sends, and of callers that take their time.

#![allow(unreachable_pub, reason = "the modules of one test")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "../support/mod.rs"]
mod support;

mod raw;
mod recorder;
mod refusals;
#[path = "../../../crates/http1/tests/rows/mod.rs"]
mod rows;
mod semantics;
mod sidecar;
mod slow;
mod slow_streams;
mod smuggling;

use std::net::SocketAddr;

use recorder::Recorder;
use support::{Gateway, process, yaml};

/// A gateway with one route, to this upstream.
fn gateway(upstream: SocketAddr, arguments: &[&str]) -> Gateway {
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream])].concat();
    Gateway::start_at(support::address(), &[("all.yaml", &files)], arguments)
}

#[test]
fn a_gateway_refuses_each_row_and_passes_on_nothing_of_it() {
    let recorder = Recorder::start();
    let gateway = gateway(recorder.address, &[]);
    let address = gateway.at(process::HTTP);
    refusals::send_all(&|| raw::connect(address));
    drop(gateway);
    refusals::check_recorded(recorder, 1);
}

#[test]
fn a_gateway_answers_502_to_each_response_that_is_refused() {
    let recorder = Recorder::answering(|message| {
        let number = message.target.strip_prefix("/row/")?;
        Some(rows::RESPONSES[number.parse::<usize>().unwrap()].1.to_vec())
    });
    let gateway = gateway(recorder.address, &[]);
    for (number, (what, _, cause, _)) in rows::RESPONSES.iter().enumerate() {
        let mut wire = raw::connect(gateway.at(process::HTTP));
        let request = format!("GET /row/{number} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        raw::send(&mut *wire, request.as_bytes());
        let answer = raw::rest(&mut *wire);
        assert_eq!(raw::status(&answer), 502, "{what}: {answer}");
        let lines = gateway.log(number + 1);
        assert_eq!(lines[number]["cause"], "upstream_protocol_error", "{what} ({cause}): {}", lines[number]);
    }
}

#[test]
fn a_gateway_keeps_to_the_standard() {
    let recorder = Recorder::answering(semantics::answer);
    let gateway = gateway(recorder.address, &[]);
    let address = gateway.at(process::HTTP);
    semantics::check(&|| raw::connect(address));
}
