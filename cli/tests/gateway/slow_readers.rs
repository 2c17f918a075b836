//! Clients of HTTP/2 who ask for much and read nothing.

use std::io::Write as _;
use std::net::TcpStream;

use crate::support::process::HTTP;
use crate::support::{Gateway, Upstream, get, until, yaml};

const STREAMS: u32 = 100;
const CONNECTIONS: usize = 8;
/// What a response that nobody takes may cost: what waits in the connection, and one read of the upstream, with its
/// buffer.
const PER_STREAM: u64 = 200 * 1024;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// Asks for much more than anybody could keep, with windows of this size, and reads nothing.
fn ask(gateway: &Gateway, window: u32) -> TcpStream {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(4, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat()));
    out.extend(frame(8, 0, 0, &0x7fff_0000u32.to_be_bytes()));
    let literal = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let block =
        [&[0x82, 0x86, 0x84, 0x01][..], &literal("shop"), &[0x00], &literal("x-mebibytes"), &literal("64")];
    for number in 0..STREAMS {
        out.extend(frame(1, 5, 2 * number + 1, &block.concat()));
    }
    let mut tcp = TcpStream::connect(gateway.at(HTTP)).unwrap();
    tcp.write_all(&out).unwrap();
    tcp
}

#[test]
fn readers_who_do_not_read_cost_a_bounded_memory_and_nobody_else_notices() {
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    assert_eq!(get(gateway.at(HTTP), "/").unwrap().0, 200);
    let before = gateway.resident();
    for window in [0x7fff_ffff, 1, 0] {
        let hits = upstream.hits();
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| ask(&gateway, window)).collect();
        let wanted = CONNECTIONS * STREAMS as usize;
        until("all requests are with the upstream", || (upstream.hits() - hits == wanted).then_some(()));
        // Whoever else asks is answered, again and again, while the gateway takes of the upstream what it will take.
        for _ in 0..50 {
            assert_eq!(get(gateway.at(HTTP), "/").unwrap().0, 200);
        }
        let cost = gateway.resident().saturating_sub(before);
        let most = PER_STREAM * u64::from(STREAMS) * CONNECTIONS as u64;
        assert!(cost < most, "{} KiB for {wanted} responses of 64 MiB, window {window}", cost / 1024);
        drop(clients);
    }
}
