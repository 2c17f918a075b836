//! Bytes of a caller against a listener of the engine: which protocol they are, HTTP/1.1 and HTTP/2 with all that
//! becomes of a request, towards an upstream that insists on what it may get. A panic of a worker ends the run.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use meshwork_messages::v1::service_port::AppProtocol;

use super::gateway::{self, Backend};

static LISTENER: LazyLock<SocketAddr> = LazyLock::new(start);

/// How long a caller of HTTP/2 waits for an answer before it closes: its close ends what runs.
const WAIT: Duration = Duration::from_millis(10);

/// Sends the bytes, closes, and reads what comes back until the end, which must come.
pub(crate) fn bytes(data: &[u8]) {
    let mut tcp = TcpStream::connect(*LISTENER).expect("the engine listens");
    // The engine may have closed already.
    let _ = tcp.write_all(data);
    let mut answer = Vec::new();
    if data.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") {
        tcp.set_read_timeout(Some(WAIT)).expect("a timeout is set");
        while !is_answer(&answer) && fill(&mut tcp, &mut answer) {}
    }
    tcp.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout is set");
    let _ = tcp.shutdown(Shutdown::Write);
    if let Err(error) = tcp.read_to_end(&mut answer) {
        let kind = error.kind();
        assert!(kind != std::io::ErrorKind::WouldBlock, "the connection does not end: {answer:?}");
    }
    gateway::assert_no_panic();
}

/// Whether a stream has ended, or the connection is about to.
fn is_answer(mut bytes: &[u8]) -> bool {
    while let Some((&[a, b, c, kind, flags, ..], rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if matches!((kind, flags & 1), (0 | 1, 1) | (3 | 7, _)) {
            return true;
        }
        bytes = rest.get(length..).unwrap_or_default();
    }
    false
}

fn start() -> SocketAddr {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a port for the upstream");
    let endpoint = upstream.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for tcp in upstream.incoming().flatten() {
            std::thread::spawn(move || answer(tcp));
        }
    });
    gateway::start(&[Backend { path: "/", protocol: AppProtocol::Http1, endpoint }])
}

/// Reads requests one after the other; whoever sends it anything that is not canonical ends the process.
fn answer(mut tcp: TcpStream) {
    let mut held = Vec::new();
    while let Some(head) = read_until(&mut tcp, &mut held, b"\r\n\r\n") {
        let framing = Framing::of(&head);
        match framing {
            Framing::Length(length) => {
                if !read_length(&mut tcp, &mut held, length) {
                    return;
                }
            }
            Framing::Chunked => loop {
                let Some(size) = read_until(&mut tcp, &mut held, b"\r\n") else { return };
                let text = std::str::from_utf8(&size[..size.len() - 2]).expect("a size is text");
                let size = usize::from_str_radix(text, 16).expect("a size and nothing else");
                if size == 0 {
                    break;
                }
                if !read_length(&mut tcp, &mut held, size + 2) {
                    return;
                }
            },
        }
        if matches!(framing, Framing::Chunked) && !read_trailers(&mut tcp, &mut held) {
            return;
        }
        if tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
            return;
        }
    }
    let rest = String::from_utf8_lossy(&held);
    assert!(held.is_empty() || rest.contains(' '), "bytes that begin no request: {rest}");
}

enum Framing {
    Length(usize),
    Chunked,
}

impl Framing {
    fn of(head: &[u8]) -> Self {
        let paired = head.windows(2).all(|w| (w[0] == b'\r') == (w[1] == b'\n'));
        assert!(paired && head[0] != b'\n', "a bare CR or LF passed: {}", head.escape_ascii());
        let mut storage = [httparse::EMPTY_HEADER; 256];
        let mut request = httparse::Request::new(&mut storage);
        let read = request.parse(head);
        assert!(read.is_ok_and(|read| read.is_complete()), "{}", String::from_utf8_lossy(head));
        let all = |name: &str| {
            let fits = |h: &&httparse::Header<'_>| h.name.eq_ignore_ascii_case(name);
            request.headers.iter().filter(fits).map(|h| h.value).collect::<Vec<_>>()
        };
        assert_eq!(all("host").len(), 1, "{}", String::from_utf8_lossy(head));
        match (&all("content-length")[..], &all("transfer-encoding")[..]) {
            ([], []) => Self::Length(0),
            ([length], []) => {
                assert!(length.iter().all(u8::is_ascii_digit), "{}", length.escape_ascii());
                Self::Length(std::str::from_utf8(length).ok().and_then(|l| l.parse().ok()).expect("a number"))
            }
            ([], [b"chunked"]) => Self::Chunked,
            other => panic!("ambiguous framing passed: {other:?}"),
        }
    }
}

fn read_trailers(tcp: &mut TcpStream, held: &mut Vec<u8>) -> bool {
    loop {
        match read_until(tcp, held, b"\r\n") {
            Some(line) if line == b"\r\n" => return true,
            Some(line) => assert!(line.contains(&b':'), "{line:?}"),
            None => return false,
        }
    }
}

fn read_until(tcp: &mut TcpStream, held: &mut Vec<u8>, end: &[u8]) -> Option<Vec<u8>> {
    loop {
        if let Some(at) = held.windows(end.len()).position(|w| w == end) {
            return Some(held.drain(..at + end.len()).collect());
        }
        if !fill(tcp, held) {
            return None;
        }
    }
}

fn read_length(tcp: &mut TcpStream, held: &mut Vec<u8>, length: usize) -> bool {
    while held.len() < length {
        if !fill(tcp, held) {
            held.clear();
            return false;
        }
    }
    held.drain(..length);
    true
}

fn fill(tcp: &mut TcpStream, held: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 16 * 1024];
    match tcp.read(&mut chunk) {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            held.extend_from_slice(&chunk[..count]);
            true
        }
    }
}
