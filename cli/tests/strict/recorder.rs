//! An upstream that keeps every byte that reached it, and answers what it takes for a whole request.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

/// See the module's text. Its answer to a request is the request's target, or what [`Recorder::answering`] says.
pub struct Recorder {
    pub address: SocketAddr,
    connections: Arc<Mutex<Vec<JoinHandle<Vec<u8>>>>>,
}

type Answer = dyn Fn(&Message) -> Option<Vec<u8>> + Send + Sync;

impl Recorder {
    pub fn start() -> Self {
        Self::answering(|_| None)
    }

    /// Gives these bytes as the answer to a request and closes; `None`: the usual answer.
    pub fn answering(answer: impl Fn(&Message) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    /// The same on this socket.
    pub fn listening(
        listener: TcpListener,
        answer: impl Fn(&Message) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<JoinHandle<Vec<u8>>>>> = Arc::default();
        let opened = Arc::clone(&connections);
        let answer: Arc<Answer> = Arc::new(answer);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                let answer = Arc::clone(&answer);
                opened.lock().push(std::thread::spawn(move || serve(tcp, &*answer)));
            }
        });
        Self { address, connections }
    }

    /// Lets go of the connections so far: what they bring is nobody's business any more.
    pub fn forget(&self) {
        self.connections.lock().clear();
    }

    /// The bytes of each connection, once whoever sent them is gone and all are closed.
    pub fn finish(self) -> Vec<Vec<u8>> {
        let connections = std::mem::take(&mut *self.connections.lock());
        connections.into_iter().map(|thread| thread.join().expect("a connection is recorded")).collect()
    }
}

fn serve(mut tcp: TcpStream, answer: &Answer) -> Vec<u8> {
    drop(tcp.set_nodelay(true));
    let (mut all, mut read) = (Vec::new(), 0);
    let mut asked = false;
    let mut chunk = [0; 64 * 1024];
    loop {
        if !asked && let Some(answer) = leave(&all[read..]) {
            asked = true;
            if tcp.write_all(answer).is_err() || !answer.starts_with(b"HTTP/1.1 100") {
                return all;
            }
        }
        while let Some((message, length)) = Reader::STRICT.message(&all[read..]) {
            read += length;
            asked = false;
            let (bytes, close) = match answer(&message) {
                Some(bytes) => (bytes, true),
                None => (ok(&message), false),
            };
            if tcp.write_all(&bytes).is_err() || close {
                return all;
            }
        }
        match tcp.read(&mut chunk) {
            Ok(0) | Err(_) => return all,
            Ok(count) => all.extend_from_slice(&chunk[..count]),
        }
    }
}

/// What a caller that waits for leave to send its body is told, by the request's target.
fn leave(bytes: &[u8]) -> Option<&'static [u8]> {
    let text = String::from_utf8_lossy(bytes);
    let (head, _) = text.split_once("\r\n\r\n")?;
    if !head.to_lowercase().contains("\r\nexpect: 100-continue") {
        return None;
    }
    match head.split(' ').nth(1)? {
        "/leave" => Some(b"HTTP/1.1 100 Continue\r\n\r\n"),
        "/no" => Some(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"),
        _ => None,
    }
}

fn ok(message: &Message) -> Vec<u8> {
    let target = &message.target;
    let body = if message.method == "HEAD" { "" } else { target };
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", target.len()).into_bytes()
}

/// A request as a reader understands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub method: String,
    pub target: String,
    pub body: Vec<u8>,
}

/// How a server may read requests. Real ones differ in these; what a proxy passes on must be the same to all.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// LF alone ends a line.
    pub lenient_lines: bool,
    /// Of several lengths the last counts, with whatever stands around the digits.
    pub last_length: bool,
    /// Content-Length beats Transfer-Encoding.
    pub length_first: bool,
    /// Any coding that contains the word counts as chunked.
    pub loose_coding: bool,
    /// White space before a colon is skipped, and folded lines are joined.
    pub loose_names: bool,
}

impl Reader {
    pub const STRICT: Self = Self {
        lenient_lines: false,
        last_length: false,
        length_first: false,
        loose_coding: false,
        loose_names: false,
    };

    /// All combinations.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..32u8).map(|bits| Self {
            lenient_lines: bits & 1 != 0,
            last_length: bits & 2 != 0,
            length_first: bits & 4 != 0,
            loose_coding: bits & 8 != 0,
            loose_names: bits & 16 != 0,
        })
    }

    /// The requests in these bytes, and whether bytes are left that are none.
    pub fn messages(&self, mut bytes: &[u8]) -> (Vec<Message>, bool) {
        let mut found = Vec::new();
        while let Some((message, length)) = self.message(bytes) {
            found.push(message);
            bytes = &bytes[length..];
        }
        (found, !bytes.is_empty())
    }

    /// The request at the front and its length; `None` while it is not whole.
    pub fn message(&self, bytes: &[u8]) -> Option<(Message, usize)> {
        let (line, mut at) = self.line(bytes, 0)?;
        let mut words = line.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next().unwrap_or_default().to_owned());
        let (mut lengths, mut codings): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        loop {
            let (line, after) = self.line(bytes, at)?;
            at = after;
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            let name = if self.loose_names { name.trim() } else { name };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => lengths.push(value.trim().to_owned()),
                "transfer-encoding" => codings.push(value.trim().to_owned()),
                _ => {}
            }
        }
        let chunked = codings.iter().any(|coding| {
            let coding = coding.to_ascii_lowercase();
            if self.loose_coding { coding.contains("chunked") } else { coding == "chunked" }
        });
        let length = if self.last_length { lengths.last() } else { lengths.first() };
        let digits = |text: &String| {
            let text = if self.last_length { text.trim_matches(|c: char| !c.is_ascii_digit()) } else { text };
            text.parse::<usize>().ok()
        };
        let (body, end) = match length.and_then(digits) {
            Some(length) if !chunked || self.length_first => {
                (bytes.get(at..at + length)?.to_vec(), at + length)
            }
            _ if chunked => self.chunks(bytes, at)?,
            _ => (Vec::new(), at),
        };
        Some((Message { method, target, body }, end))
    }

    fn chunks(&self, bytes: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
        let mut body = Vec::new();
        loop {
            let (line, after) = self.line(bytes, at)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).ok()?;
            at = after;
            if size == 0 {
                break;
            }
            body.extend_from_slice(bytes.get(at..at + size)?);
            at = self.line(bytes, at + size)?.1;
        }
        loop {
            let (line, after) = self.line(bytes, at)?;
            at = after;
            if line.is_empty() {
                return Some((body, at));
            }
        }
    }

    /// The line at this place without its end, and where the next one begins.
    fn line(&self, bytes: &[u8], at: usize) -> Option<(String, usize)> {
        let rest = bytes.get(at..)?;
        let end = if self.lenient_lines {
            rest.iter().position(|b| *b == b'\n')?
        } else {
            rest.windows(2).position(|w| w == b"\r\n")? + 1
        };
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        Some((String::from_utf8_lossy(line).into_owned(), at + end + 1))
    }
}
