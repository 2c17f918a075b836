//! HAProxy's PROXY protocol, versions 1 and 2, read and written as its specification says
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>). Pure, over the bytes that have come so far.
//!
//! A header says for whom the sender connects. What says nothing that we use (version 1 `UNKNOWN`, version 2 `LOCAL`,
//! `UNSPEC`, datagrams and Unix sockets) is understood and means the connection's own addresses, as the specification
//! asks of receivers. Of the TLVs only the checksum is looked at, and verified.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smallvec::SmallVec;

/// The longest header of version 1, its line end included (section 2.1).
pub const MAX_V1: usize = 107;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_START: &[u8] = b"PROXY ";
/// Signature, version and command, family, length.
const V2_FIXED: usize = 16;
const TLV_CRC32C: u8 = 0x03;

/// Which versions are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Version 1.
    pub v1: bool,
    /// Version 2.
    pub v2: bool,
}

/// What the bytes so far are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header.
    Incomplete,
    /// No header, whatever follows.
    Absent,
    /// A whole header.
    Header {
        /// How many bytes it has; data follow.
        length: usize,
        /// For whom the sender connects; absent: for itself, or it does not say.
        client: Option<Client>,
    },
}

/// For whom a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Who connected to the sender.
    pub source: SocketAddr,
    /// To which address.
    pub destination: SocketAddr,
}

/// Why a header is none that we believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is of a version that is not to be taken here.
    #[error("the PROXY header is of version {0}, which this listener does not take")]
    Version(u8),
    /// Version 1: no line end within its bounds.
    #[error("the PROXY line is longer than {MAX_V1} bytes")]
    TooLong,
    /// Version 1: the line does not follow the grammar.
    #[error("the PROXY line is malformed: {0}")]
    Line(&'static str),
    /// Version 2: a field has no defined value.
    #[error("the PROXY header is malformed: {0}")]
    Field(&'static str),
    /// Version 2: the checksum is wrong.
    #[error("the checksum of the PROXY header is wrong")]
    Checksum,
}

/// Reads a header from the first bytes of a connection.
///
/// # Errors
/// [`HeaderError`]: they begin a header, and more bytes will not make it a good one.
pub fn parse(bytes: &[u8], versions: Versions) -> Result<Parsed, HeaderError> {
    if begins(bytes, SIGNATURE) {
        return match (bytes.len() >= SIGNATURE.len(), versions.v2) {
            (true, false) => Err(HeaderError::Version(2)),
            _ => v2(bytes),
        };
    }
    if begins(bytes, V1_START) {
        return match (bytes.len() >= V1_START.len(), versions.v1) {
            (true, false) => Err(HeaderError::Version(1)),
            _ => v1(bytes),
        };
    }
    Ok(Parsed::Absent)
}

fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let common = bytes.len().min(start.len());
    bytes[..common] == start[..common]
}

fn v1(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let window = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= MAX_V1 { Err(HeaderError::TooLong) } else { Ok(Parsed::Incomplete) };
    };
    let line = window.get(V1_START.len()..end).ok_or(HeaderError::Line("it ends too early"))?;
    let line = std::str::from_utf8(line).map_err(|_| HeaderError::Line("it is not ASCII"))?;
    let length = end + 2;
    // What follows UNKNOWN must be ignored (section 2.1).
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Ok(Parsed::Header { length, client: None });
    }
    let mut words = line.split(' ');
    let family = words.next();
    let mut address = || match family {
        Some("TCP4") => words.next()?.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Some("TCP6") => words.next()?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    let (source, destination) = (address(), address());
    let (Some(source), Some(destination)) = (source, destination) else {
        return Err(HeaderError::Line("it has no two addresses of the family TCP4 or TCP6"));
    };
    let mut port = || words.next().and_then(decimal);
    let (Some(source_port), Some(destination_port)) = (port(), port()) else {
        return Err(HeaderError::Line("it has no two ports"));
    };
    if words.next().is_some() {
        return Err(HeaderError::Line("something follows the ports"));
    }
    let client = Client {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    };
    Ok(Parsed::Header { length, client: Some(client) })
}

/// A port in canonical form: digits alone, none of them a leading zero.
fn decimal(text: &str) -> Option<u16> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| canonical)
}

fn v2(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let command = match bytes.get(12) {
        None => return Ok(Parsed::Incomplete),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(byte) if byte >> 4 != 2 => return Err(HeaderError::Field("its version is not 2")),
        Some(_) => return Err(HeaderError::Field("its command is neither LOCAL nor PROXY")),
    };
    let Some(fixed) = bytes.get(..V2_FIXED) else { return Ok(Parsed::Incomplete) };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let Some(header) = bytes.get(..length) else { return Ok(Parsed::Incomplete) };
    let local = Parsed::Header { length, client: None };
    if command == Command::Local {
        // The receiver discards the rest, whatever it says (section 2.2).
        return Ok(local);
    }
    let (addresses, stream) = match fixed[13] {
        0x00 => return Ok(local),
        0x11 | 0x12 => (12, fixed[13] == 0x11),
        0x21 | 0x22 => (36, fixed[13] == 0x21),
        0x31 | 0x32 => (216, false),
        _ => return Err(HeaderError::Field("its family and transport are no defined pair")),
    };
    let body = &header[V2_FIXED..];
    let Some((addresses, tlvs)) = body.split_at_checked(addresses) else {
        return Err(HeaderError::Field("it is too short for the addresses of its family"));
    };
    verify(header, tlvs)?;
    Ok(Parsed::Header { length, client: stream.then(|| client(addresses)) })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Local,
    Proxy,
}

/// The addresses of a block of 12 bytes (IPv4) or 36 (IPv6).
fn client(block: &[u8]) -> Client {
    let wide = (block.len() - 4) / 2;
    let address = |at: usize| -> IpAddr {
        let bytes = &block[at..at + wide];
        match <[u8; 4]>::try_from(bytes) {
            Ok(v4) => Ipv4Addr::from(v4).into(),
            Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("4 or 16 bytes")).into(),
        }
    };
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    Client {
        source: SocketAddr::new(address(0), port(2 * wide)),
        destination: SocketAddr::new(address(wide), port(2 * wide + 2)),
    }
}

/// Walks the TLVs; where one is a checksum, the header must have it.
fn verify(header: &[u8], tlvs: &[u8]) -> Result<(), HeaderError> {
    let start = header.len() - tlvs.len();
    let (mut at, mut found) = (0, None);
    while at < tlvs.len() {
        let [kind, high, low, ..] = tlvs[at..] else {
            return Err(HeaderError::Field("a TLV is cut off"));
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some(value) = tlvs.get(at + 3..at + 3 + length) else {
            return Err(HeaderError::Field("a TLV is longer than the header"));
        };
        if kind == TLV_CRC32C {
            let sum: [u8; 4] =
                value.try_into().map_err(|_| HeaderError::Field("its checksum has not 4 bytes"))?;
            if found.replace((start + at + 3, u32::from_be_bytes(sum))).is_some() {
                return Err(HeaderError::Field("it has two checksums"));
            }
        }
        at += 3 + length;
    }
    let Some((place, said)) = found else { return Ok(()) };
    // Computed with zeros in the checksum's own place (section 2.2.3).
    let bytes = header[..place].iter().chain(&[0; 4]).chain(&header[place + 4..]);
    if crc32c(bytes) == said { Ok(()) } else { Err(HeaderError::Checksum) }
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), a bit at a time: few senders add it, and headers are short.
pub(crate) fn crc32c<'b>(bytes: impl IntoIterator<Item = &'b u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    };
    !bytes.into_iter().fold(!0, step)
}

/// A header in memory; version 1 with two IPv6 addresses is the longest that we write.
pub type Written = SmallVec<[u8; 112]>;

/// The line of version 1.
#[must_use]
pub fn write_v1(client: &Client) -> Written {
    let Client { source, destination } = alike(client);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    let line = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
    Written::from_slice(line.as_bytes())
}

/// The header of version 2, without TLVs.
#[must_use]
pub fn write_v2(client: &Client) -> Written {
    let Client { source, destination } = alike(client);
    let (family, length) = if source.is_ipv4() { (0x11, 12_u16) } else { (0x21, 36) };
    let mut out = Written::new();
    out.extend_from_slice(SIGNATURE);
    out.extend_from_slice(&[0x21, family]);
    out.extend_from_slice(&length.to_be_bytes());
    for address in [source.ip(), destination.ip()] {
        match address {
            IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
            IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    out
}

/// Both addresses of one family: a header has no other form. Mapped addresses are what they map; where the families
/// differ all the same, the IPv4 one is mapped.
fn alike(client: &Client) -> Client {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let wide = |address: SocketAddr| match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    let (source, destination) = (plain(client.source), plain(client.destination));
    if source.is_ipv4() == destination.is_ipv4() {
        Client { source, destination }
    } else {
        Client { source: wide(source), destination: wide(destination) }
    }
}

#[cfg(test)]
mod tests;
