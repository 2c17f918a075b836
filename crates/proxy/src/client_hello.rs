//! The server name of a TLS client's first message, read without answering it: what a connection that is passed through
//! is routed by.
//!
//! Pure, over the bytes that have come so far. The message may be cut into records as the sender likes (RFC 8446,
//! section 5.1), and the records into segments as the network does. Only the message's frame and its `server_name` are
//! looked at: whoever ends TLS judges the rest.

/// The longest message that is waited for. Hellos with hybrid key exchange have some 2 KiB; Envoy's bound is the same.
pub const MAX_MESSAGE: usize = 16 * 1024;
/// How many bytes a message of that size can take, each in a record of its own.
pub const MAX_BYTES: usize = MAX_MESSAGE * (RECORD_HEADER + 1);

const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
/// RFC 8446, section 5.1: the most that a record of plaintext holds.
const MAX_RECORD: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// The beginning of a first message.
    Incomplete,
    /// A whole one.
    Complete {
        /// What the client calls the server, in its own case; absent when it says nothing, or an address.
        server_name: Option<Box<str>>,
    },
}

/// Why bytes are no TLS client's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// They do not begin with a handshake record.
    #[error("the client does not speak TLS")]
    NotTls,
    /// A record's length is none (RFC 8446, section 5.1).
    #[error("a TLS record is empty or longer than {MAX_RECORD} bytes")]
    RecordLength,
    /// Something else than a ClientHello comes first.
    #[error("the first TLS message is no ClientHello")]
    NotHello,
    /// The message is longer than we wait for.
    #[error("the ClientHello is longer than {MAX_MESSAGE} bytes")]
    TooLong,
    /// The lengths in the message contradict each other.
    #[error("the ClientHello is malformed: {0}")]
    Malformed(&'static str),
    /// The server name is none (RFC 6066, section 3).
    #[error("the ClientHello names no host that could be one")]
    Name,
}

/// Reads the server name from the first bytes of a connection.
///
/// # Errors
/// [`HelloError`]: more bytes will not make it a first message.
pub fn parse(bytes: &[u8]) -> Result<Hello, HelloError> {
    // Most clients send the message in one record: then nothing is copied.
    let mut joined: Vec<u8> = Vec::new();
    let mut rest = bytes;
    loop {
        let record = match record(rest)? {
            Record::Cut(part) => return cut(&joined, part),
            Record::Whole { fragment, after } => {
                rest = after;
                fragment
            }
        };
        if joined.is_empty()
            && let Some(message) = whole(record)?
        {
            return hello(message);
        }
        joined.extend_from_slice(record);
        if let Some(message) = whole(&joined)? {
            return hello(message);
        }
    }
}

enum Record<'a> {
    Whole {
        fragment: &'a [u8],
        after: &'a [u8],
    },
    /// What is there of its fragment.
    Cut(&'a [u8]),
}

fn record(bytes: &[u8]) -> Result<Record<'_>, HelloError> {
    // Every version's records begin alike; 3 is the major version of all of them.
    let known = |at: usize, value: u8| bytes.get(at).is_none_or(|byte| *byte == value);
    if !known(0, HANDSHAKE) || !known(1, 3) {
        return Err(HelloError::NotTls);
    }
    let [_, _, _, high, low, fragment @ ..] = bytes else { return Ok(Record::Cut(&[])) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length == 0 || length > MAX_RECORD {
        return Err(HelloError::RecordLength);
    }
    match fragment.split_at_checked(length) {
        Some((fragment, after)) => Ok(Record::Whole { fragment, after }),
        None => Ok(Record::Cut(fragment)),
    }
}

/// More has to come; what is there may be wrong already.
fn cut(joined: &[u8], part: &[u8]) -> Result<Hello, HelloError> {
    let head: Vec<u8> = joined.iter().chain(part).take(MESSAGE_HEADER).copied().collect();
    whole(&head).map(|_| Hello::Incomplete)
}

/// The body of the message, once it is all there.
fn whole(bytes: &[u8]) -> Result<Option<&[u8]>, HelloError> {
    if bytes.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(HelloError::NotHello);
    }
    let [_, high, middle, low, body @ ..] = bytes else { return Ok(None) };
    let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    if length > MAX_MESSAGE - MESSAGE_HEADER {
        return Err(HelloError::TooLong);
    }
    Ok(body.get(..length))
}

/// Reads the message's body (RFC 8446, section 4.1.2).
fn hello(body: &[u8]) -> Result<Hello, HelloError> {
    let mut reader = Reader(body);
    reader.take(2 + 32, "version and random")?;
    let session = reader.list8("session id")?;
    let suites = reader.list16("cipher suites")?;
    let compressions = reader.list8("compression methods")?;
    if session.0.len() > 32 || suites.0.is_empty() || suites.0.len() % 2 != 0 || compressions.0.is_empty() {
        return Err(HelloError::Malformed("lengths of its lists"));
    }
    // A client of TLS 1.2 may have no extensions at all.
    if reader.0.is_empty() {
        return Ok(Hello::Complete { server_name: None });
    }
    let mut extensions = reader.list16("extensions")?;
    if !reader.0.is_empty() {
        return Err(HelloError::Malformed("bytes behind its extensions"));
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number16("extension")?;
        let content = extensions.list16("extension")?;
        if kind == SERVER_NAME && found.replace(content).is_some() {
            return Err(HelloError::Malformed("two server names"));
        }
    }
    let server_name = found.map(name).transpose()?.flatten();
    Ok(Hello::Complete { server_name })
}

/// The one host name of a `server_name` extension (RFC 6066, section 3).
fn name(mut extension: Reader<'_>) -> Result<Option<Box<str>>, HelloError> {
    let mut names = extension.list16("server names")?;
    if !extension.0.is_empty() || names.0.is_empty() {
        return Err(HelloError::Malformed("its server names"));
    }
    let mut host = None;
    while !names.0.is_empty() {
        let kind = names.take(1, "server name")?[0];
        let text = names.list16("server name")?;
        if kind == HOST_NAME && host.replace(text.0).is_some() {
            return Err(HelloError::Malformed("two host names"));
        }
    }
    let Some(host) = host else { return Ok(None) };
    let text = std::str::from_utf8(host).map_err(|_| HelloError::Name)?;
    if text.parse::<std::net::IpAddr>().is_ok() {
        // Clients must not name an address; those that do mean no host.
        return Ok(None);
    }
    if !is_host(text) {
        return Err(HelloError::Name);
    }
    Ok(Some(text.into()))
}

/// Letters, digits, `-` and `_` in labels of 1 to 63, together at most 253.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    text.len() <= 253 && text.split('.').all(label)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(HelloError::Malformed(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number16(&mut self, what: &'static str) -> Result<u16, HelloError> {
        let bytes = self.take(2, what)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn list8(&mut self, what: &'static str) -> Result<Self, HelloError> {
        let length = usize::from(self.take(1, what)?[0]);
        self.take(length, what).map(Reader)
    }

    fn list16(&mut self, what: &'static str) -> Result<Self, HelloError> {
        let length = usize::from(self.number16(what)?);
        self.take(length, what).map(Reader)
    }
}

#[cfg(test)]
mod tests;
