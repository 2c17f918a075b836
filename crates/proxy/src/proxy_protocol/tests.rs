use proptest::prelude::*;

use super::*;

const BOTH: Versions = Versions { v1: true, v2: true };

fn client(source: &str, destination: &str) -> Client {
    Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn is(length: usize, client: Option<Client>) -> Result<Parsed, HeaderError> {
    Ok(Parsed::Header { length, client })
}

/// A header of version 2 with this command, family and body.
fn v2_of(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, body].concat()
}

const ADDRESSES: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0x30, 0x39, 0x01, 0xbb];

#[test]
fn the_specification_s_lines_say_who_connects() {
    let tcp4 = "PROXY TCP4 192.0.2.1 198.51.100.7 12345 443\r\n";
    let v4 = Some(client("192.0.2.1:12345", "198.51.100.7:443"));
    assert_eq!(parse(tcp4.as_bytes(), BOTH), is(tcp4.len(), v4));
    let followed = format!("{tcp4}GET / HTTP/1.1\r\n");
    assert_eq!(parse(followed.as_bytes(), BOTH), is(tcp4.len(), v4));
    // The longest of each kind, from the specification.
    for line in [
        "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
    ] {
        assert!(
            matches!(parse(line.as_bytes(), BOTH), Ok(Parsed::Header { length, client: Some(_) }) if length == line.len())
        );
    }
    let unknown = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(unknown.len(), MAX_V1);
    assert_eq!(parse(unknown.as_bytes(), BOTH), is(MAX_V1, None));
    assert_eq!(parse(b"PROXY UNKNOWN\r\n", BOTH), is(15, None));
}

#[test]
fn lines_beside_the_grammar_are_refused() {
    for line in [
        "PROXY TCP4 192.0.2.1 198.51.100.7 12345 443 1\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 12345\r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.7 12345 443\r\n",
        "PROXY TCP4 192.0.2.01 198.51.100.7 12345 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 012345 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 +1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n",
        "PROXY TCP4 ::1 ::1 1 443\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.7 1 443\r\n",
        "PROXY TCP6 ::1%lo ::1 1 443\r\n",
        "PROXY tcp4 192.0.2.1 198.51.100.7 1 443\r\n",
        "PROXY UDP4 192.0.2.1 198.51.100.7 1 443\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 1 443 \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.7 1 443\n\r\n",
    ] {
        assert!(matches!(parse(line.as_bytes(), BOTH), Err(HeaderError::Line(_))), "{line:?}");
    }
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(MAX_V1));
    assert_eq!(parse(endless.as_bytes(), BOTH), Err(HeaderError::TooLong));
    assert_eq!(parse(&endless.as_bytes()[..MAX_V1 - 1], BOTH), Ok(Parsed::Incomplete));
}

#[test]
fn what_cannot_become_a_header_is_none_and_what_can_waits() {
    for data in [
        "GET / HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
        "POST /",
        "PROPFIND / HTTP/1.1",
        "\x16\x03\x01",
        "\r\nGET",
    ] {
        assert_eq!(parse(data.as_bytes(), BOTH), Ok(Parsed::Absent), "{data:?}");
    }
    for start in ["", "P", "PR", "PROXY ", "PROXY TCP4 1", "\r\n\r\n\0\r\nQUIT"] {
        assert_eq!(parse(start.as_bytes(), BOTH), Ok(Parsed::Incomplete), "{start:?}");
    }
}

#[test]
fn a_version_that_is_not_taken_is_refused_not_passed_on() {
    let only = |v1| Versions { v1, v2: !v1 };
    assert_eq!(parse(b"PROXY UNKNOWN\r\n", only(false)), Err(HeaderError::Version(1)));
    assert_eq!(parse(&v2_of(0x20, 0, &[]), only(true)), Err(HeaderError::Version(2)));
}

#[test]
fn binary_headers_say_who_connects() {
    let v4 = Some(client("192.0.2.1:12345", "198.51.100.7:443"));
    assert_eq!(parse(&v2_of(0x21, 0x11, &ADDRESSES), BOTH), is(28, v4));
    let noop = [&ADDRESSES[..], &[4, 0, 2, 9, 9, 0x20, 0, 0]].concat();
    assert_eq!(parse(&v2_of(0x21, 0x11, &noop), BOTH), is(36, v4), "TLVs are passed over");
    let mut v6 = [0; 36];
    (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 80, 81);
    assert_eq!(parse(&v2_of(0x21, 0x21, &v6), BOTH), is(52, Some(client("[::1]:80", "[::2]:81"))));
}

#[test]
fn headers_that_say_nothing_we_use_mean_the_connection_itself() {
    for (command, family, body) in [
        (0x20, 0x00, &b""[..]),
        (0x20, 0x11, &ADDRESSES[..]),
        (0x20, 0xff, b"anything"),
        (0x21, 0x00, b"anything"),
        (0x21, 0x12, &ADDRESSES),
        (0x21, 0x31, &[0; 216]),
    ] {
        let header = v2_of(command, family, body);
        assert_eq!(parse(&header, BOTH), is(header.len(), None), "{command:x} {family:x}");
    }
}

#[test]
fn undefined_fields_are_refused() {
    for (command, family, body) in [
        (0x11, 0x11, &ADDRESSES[..]),
        (0x22, 0x11, &ADDRESSES),
        (0x21, 0x13, &ADDRESSES),
        (0x21, 0x41, &ADDRESSES),
        (0x21, 0x11, &ADDRESSES[..11]),
        (0x21, 0x21, &ADDRESSES),
        (0x21, 0x11, &[&ADDRESSES[..], &[4, 0]].concat()),
        (0x21, 0x11, &[&ADDRESSES[..], &[4, 0, 2, 9]].concat()),
        (0x21, 0x11, &[&ADDRESSES[..], &[3, 0, 2, 9, 9]].concat()),
    ] {
        let header = v2_of(command, family, body);
        assert!(matches!(parse(&header, BOTH), Err(HeaderError::Field(_))), "{header:02x?}");
    }
}

/// Adds the checksum that the specification asks for.
fn checked(body: &[u8]) -> Vec<u8> {
    let mut header = v2_of(0x21, 0x11, &[body, &[3, 0, 4, 0, 0, 0, 0]].concat());
    let sum = crc32c(&header).to_be_bytes();
    let place = header.len() - 4;
    header[place..].copy_from_slice(&sum);
    header
}

#[test]
fn a_checksum_is_verified() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283, "the catalogue's check value of CRC-32C");
    let header = checked(&ADDRESSES);
    assert!(matches!(parse(&header, BOTH), Ok(Parsed::Header { client: Some(_), .. })));
    // A flipped bit in the TLV's type makes another TLV of it, and no checksum.
    for at in (V2_FIXED..header.len()).filter(|at| *at != V2_FIXED + ADDRESSES.len()) {
        let mut wrong = header.clone();
        wrong[at] ^= 1;
        assert!(parse(&wrong, BOTH).is_err(), "a flipped bit at {at}");
    }
    let twice = checked(&header[V2_FIXED..]);
    assert_eq!(parse(&twice, BOTH), Err(HeaderError::Field("it has two checksums")));
}

#[test]
fn both_families_of_a_header_are_one() {
    let mapped = client("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:2");
    assert_eq!(&write_v1(&mapped)[..], b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
    let mixed = client("192.0.2.1:1", "[2001:db8::1]:2");
    assert_eq!(&write_v1(&mixed)[..], b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n");
}

prop_compose! {
    fn any_client()(v6 in any::<bool>(), a in any::<u128>(), b in any::<u128>(), c in any::<u16>(), d in any::<u16>()) -> Client {
        let ip = |bits: u128| -> IpAddr {
            if v6 { Ipv6Addr::from(bits | 1 << 127).into() } else { Ipv4Addr::from(bits as u32).into() }
        };
        Client { source: SocketAddr::new(ip(a), c), destination: SocketAddr::new(ip(b), d) }
    }
}

proptest! {
    /// What is written is read back, whole only when it is whole, whatever follows.
    #[test]
    fn written_headers_are_read(client in any_client(), v1 in any::<bool>(), end in any::<prop::sample::Index>()) {
        let header = if v1 { write_v1(&client) } else { write_v2(&client) };
        prop_assert!(!v1 || header.len() <= MAX_V1);
        prop_assert_eq!(parse(&header, BOTH), is(header.len(), Some(client)));
        prop_assert_eq!(parse(&header[..end.index(header.len())], BOTH), Ok(Parsed::Incomplete));
        let followed = [&header[..], b"\r\nPROXY "].concat();
        prop_assert_eq!(parse(&followed, BOTH), is(header.len(), Some(client)));
    }

    /// Any bytes are judged, and a header is never longer than what came.
    #[test]
    fn any_bytes_are_judged(start in 0usize..3, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let start: &[u8] = [&b""[..], &SIGNATURE[..], V1_START][start];
        let bytes = [start, &bytes].concat();
        if let Ok(Parsed::Header { length, .. }) = parse(&bytes, BOTH) {
            prop_assert!(length <= bytes.len());
        }
    }
}
