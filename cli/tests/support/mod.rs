//! The real binary from outside: a folder of resources, a process on a loopback address of its own, upstreams that tell
//! what reached them, and programs that nobody here wrote as clients.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, reason = "each test target uses its part")]

pub mod client;
pub mod curl;
pub mod daemon;
pub mod load;
pub mod platform;
pub mod process;
pub mod sslscan;
pub mod unread;
pub mod upstream;
pub mod yaml;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use meshwork_base::{Clock as _, SystemClock};

pub use curl::Curl;
pub use process::Gateway;
pub use upstream::Upstream;

/// Whoever waits longer than this for something that should come at once has found a bug.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub const MESHWORK: &str = env!("CARGO_BIN_EXE_meshwork");

/// A loopback address that no other test has, so that the standard ports are free on it.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id().wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let part = |divisor: u32, size: u32| u8::try_from(number / divisor % size).expect("below 250");
    Ipv4Addr::new(127, 20 + part(62_500, 100), part(250, 250), 2 + part(1, 250))
}

/// Looks again and again until there is something, or patience ends.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

/// The same with a patience of its own, for what has more to do.
pub fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let clock = SystemClock::new();
    let begin = clock.now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock.now().since(begin) < patience, "waited in vain: {what}");
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "another process does not tell when it gets there: it is asked again"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// A GET over a connection of its own: status and body. `None` when nobody listens, or the connection breaks.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let answer = exchange(address, request.as_bytes())?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, if head.contains("chunked") { unchunk(body) } else { body.to_owned() }))
}

/// Sends bytes and reads until the peer closes.
pub fn exchange(address: SocketAddr, request: &[u8]) -> Option<String> {
    let mut tcp = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    tcp.set_read_timeout(Some(PATIENCE * 2)).ok()?;
    tcp.write_all(request).ok()?;
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).ok()?;
    String::from_utf8(answer).ok()
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        if size == 0 {
            break;
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    body
}

/// Runs the binary with these arguments and nothing of our environment that would change what it does.
pub fn meshwork(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

/// The binary with these arguments.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(MESHWORK);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MESHWORK_")) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// Stdout of a program that must succeed.
pub fn stdout(command: &mut Command) -> String {
    let output = command.output().expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
