//! What an upstream answers, of HTTP/1.1 or HTTP/2, through the whole engine to a caller of HTTP/1.1. A panic of a worker
//! ends the run.
//!
//! The first byte of an input says which protocol the upstream speaks and what is asked, the rest is what it answers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use meshwork_messages::v1::service_port::AppProtocol;

use super::gateway::{self, Backend};

static GATEWAY: LazyLock<SocketAddr> = LazyLock::new(start);
static ANSWER: LazyLock<ArcSwap<Vec<u8>>> = LazyLock::new(ArcSwap::default);

const HTTP2: u8 = 1;
const HEAD: u8 = 2;
const HTTP10: u8 = 4;

/// Whatever an upstream sends, the caller gets one response that reads as HTTP/1.1, then the end of the connection; a
/// body that says its length or its end has it, or the connection ends early.
pub(crate) fn answers(data: &[u8]) {
    let Some((&how, answer)) = data.split_first() else { return };
    ANSWER.store(Arc::new(answer.to_vec()));
    let mut tcp = TcpStream::connect(*GATEWAY).expect("the engine listens");
    tcp.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout is set");
    let method = if how & HEAD == 0 { "GET" } else { "HEAD" };
    let path = if how & HTTP2 == 0 { "/1" } else { "/2" };
    let version = if how & HTTP10 == 0 { "HTTP/1.1" } else { "HTTP/1.0" };
    let request = format!("{method} {path} {version}\r\nhost: a\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).expect("the engine reads");
    let mut got = Vec::new();
    if let Err(error) = tcp.read_to_end(&mut got) {
        let kind = error.kind();
        assert!(
            kind != std::io::ErrorKind::WouldBlock,
            "the connection does not end: {}",
            got.escape_ascii()
        );
    }
    gateway::assert_no_panic();
    judge(&got, how);
}

fn judge(mut got: &[u8], how: u8) {
    loop {
        let Some(end) = got.windows(4).position(|w| w == b"\r\n\r\n") else {
            assert!(got.is_empty(), "a head without an end: {}", got.escape_ascii());
            return;
        };
        let (head, body) = got.split_at(end + 4);
        let paired = head.windows(2).all(|w| (w[0] == b'\r') == (w[1] == b'\n'));
        assert!(paired && head[0] != b'\n', "a bare CR or LF passed: {}", head.escape_ascii());
        let mut storage = [httparse::EMPTY_HEADER; 256];
        let mut response = httparse::Response::new(&mut storage);
        let read = response.parse(head);
        assert!(read.is_ok_and(|read| read.is_complete()), "{}", head.escape_ascii());
        let status = response.code.expect("it was read whole");
        if (100..200).contains(&status) {
            assert!(how & HTTP10 == 0 && status != 101, "{status}");
            got = body;
            continue;
        }
        return judge_body(&response, body, how & HEAD != 0 || matches!(status, 204 | 304));
    }
}

fn judge_body(response: &httparse::Response<'_, '_>, body: &[u8], none: bool) {
    let all = |name: &str| {
        let fits = |h: &&httparse::Header<'_>| h.name.eq_ignore_ascii_case(name);
        response.headers.iter().filter(fits).map(|h| h.value).collect::<Vec<_>>()
    };
    assert!(response.headers.iter().all(|h| !h.name.starts_with(':')));
    let (length, coding) = (all("content-length"), all("transfer-encoding"));
    assert!(length.len() + coding.len() <= 1, "ambiguous framing passed: {length:?} {coding:?}");
    if none {
        return assert!(body.is_empty(), "a body where none can be: {}", body.escape_ascii());
    }
    if let [length] = length[..] {
        let length: Option<usize> = std::str::from_utf8(length).ok().and_then(|l| l.parse().ok());
        assert!(length.is_some_and(|length| body.len() <= length), "longer than it says");
    }
    if let [coding] = coding[..] {
        assert_eq!(coding, b"chunked");
        assert!(is_chunked(body), "{}", body.escape_ascii());
    }
}

/// Whether these are chunks, perhaps cut.
fn is_chunked(mut body: &[u8]) -> bool {
    while let Some(end) = body.windows(2).position(|w| w == b"\r\n") {
        let size =
            std::str::from_utf8(&body[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(size) = size else { return false };
        body = &body[end + 2..];
        if size == 0 {
            return body.is_empty() || body.ends_with(b"\r\n");
        }
        if body.len() < size + 2 {
            return true;
        }
        if &body[size..size + 2] != b"\r\n" {
            return false;
        }
        body = &body[size + 2..];
    }
    body.iter().all(u8::is_ascii_hexdigit) || body.ends_with(b"\r")
}

fn start() -> SocketAddr {
    let backend = |path, protocol, serve: fn(TcpStream)| {
        let upstream = TcpListener::bind("127.0.0.1:0").expect("a port for the upstream");
        let endpoint = upstream.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            for tcp in upstream.incoming().flatten() {
                std::thread::spawn(move || serve(tcp));
            }
        });
        Backend { path, protocol, endpoint }
    };
    gateway::start(&[
        backend("/1", AppProtocol::Http1, |tcp| serve(tcp, |asked| asked.ends_with(b"\r\n\r\n"))),
        backend("/2", AppProtocol::Http2, |tcp| serve(tcp, is_asked)),
    ])
}

/// Whether a stream has been opened: an answer before that would be to nothing.
fn is_asked(mut bytes: &[u8]) -> bool {
    bytes = bytes.get(24..).unwrap_or_default();
    while let Some((&[a, b, c, kind, ..], rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if kind == 1 {
            return rest.len() >= length;
        }
        bytes = rest.get(length..).unwrap_or_default();
    }
    false
}

/// Answers whoever has asked, then says no more.
fn serve(mut tcp: TcpStream, asked: fn(&[u8]) -> bool) {
    let (mut held, mut chunk) = (Vec::new(), [0; 4096]);
    while !asked(&held) {
        match tcp.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => held.extend_from_slice(&chunk[..count]),
        }
    }
    let _ = tcp.write_all(&ANSWER.load_full());
    let _ = tcp.shutdown(std::net::Shutdown::Write);
    while tcp.read(&mut chunk).is_ok_and(|count| count > 0) {}
}
