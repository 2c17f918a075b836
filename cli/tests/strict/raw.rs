//! A caller that writes what it likes and reads what comes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::support::PATIENCE;

/// A connection, plain or encrypted.
pub trait Wire: Read + Write {
    /// Says that nothing more will come.
    fn finish(&mut self);
}

impl Wire for TcpStream {
    fn finish(&mut self) {
        // The peer may be gone already.
        drop(self.shutdown(Shutdown::Write));
    }
}

impl Wire for rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    fn finish(&mut self) {
        self.conn.send_close_notify();
        drop(self.flush());
        drop(self.sock.shutdown(Shutdown::Write));
    }
}

/// A plain connection.
pub fn connect(address: SocketAddr) -> Box<dyn Wire> {
    Box::new(tcp(address))
}

pub fn tcp(address: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// Sends bytes; whoever refuses them may close meanwhile.
pub fn send(wire: &mut dyn Wire, bytes: &[u8]) {
    drop(wire.write_all(bytes).and_then(|()| wire.flush()));
}

/// Reads until the peer closes, which it must.
pub fn rest(wire: &mut dyn Wire) -> String {
    let mut all = Vec::new();
    if let Err(error) = wire.read_to_end(&mut all) {
        use std::io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
        let text = String::from_utf8_lossy(&all);
        assert!(!matches!(error.kind(), TimedOut | WouldBlock), "the peer does not close: {text}");
        // TLS that ends without its last word is an end all the same.
        assert!(
            matches!(error.kind(), UnexpectedEof | std::io::ErrorKind::ConnectionReset),
            "{error}: {text}"
        );
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads one response whose length is given; its head and its body.
pub fn response(wire: &mut dyn Wire) -> (String, String) {
    let mut all = Vec::new();
    let mut byte = [0];
    while !all.ends_with(b"\r\n\r\n") {
        assert_eq!(wire.read(&mut byte).unwrap(), 1, "closed early: {}", String::from_utf8_lossy(&all));
        all.push(byte[0]);
    }
    let head = String::from_utf8(all).unwrap();
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    wire.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// The status of a response.
pub fn status(response: &str) -> u16 {
    let status = response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no response: {response:?}"))
}
