use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;

use super::*;

/// What rustls sends first for this server, with or without hybrid key exchange (a message of 1.5 KiB, or 0.3).
fn sent(server: &str, tls12: bool) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] =
        if tls12 { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13, &rustls::version::TLS12] };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(server.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut out = Vec::new();
    client.write_tls(&mut out).unwrap();
    out
}

/// The same message, in records of these sizes; the last size repeats.
fn recut(hello: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut rest = &hello[RECORD_HEADER..];
    let mut out = Vec::new();
    for at in 0.. {
        if rest.is_empty() {
            break;
        }
        let size = sizes[at.min(sizes.len() - 1)].min(rest.len());
        out.extend_from_slice(&[22, 3, 1]);
        out.extend_from_slice(&u16::try_from(size).unwrap().to_be_bytes());
        out.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
    }
    out
}

fn named(name: &str) -> Hello {
    Hello::Complete { server_name: Some(name.into()) }
}

/// A message with these extensions, by hand.
fn made(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 1, 1, 0]);
    if !extensions.is_empty() {
        body.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend_from_slice(extensions);
    }
    let mut message = vec![1, 0];
    message.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend_from_slice(&body);
    let mut out = vec![22, 3, 1];
    out.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&message);
    out
}

/// A `server_name` extension with these names (type, text).
fn server_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, text) in names {
        list.push(*kind);
        list.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
        list.extend_from_slice(text);
    }
    let length = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    [&[0, 0][..], &length(list.len() + 2), &length(list.len()), &list].concat()
}

#[test]
fn every_beginning_of_a_hello_waits_and_the_whole_names_the_server() {
    for tls12 in [false, true] {
        let hello = sent("Shop.example.com", tls12);
        for end in 0..hello.len() {
            assert_eq!(parse(&hello[..end]), Ok(Hello::Incomplete), "{end} of {}", hello.len());
        }
        let Ok(Hello::Complete { server_name: Some(name) }) = parse(&hello) else { panic!("no name") };
        assert!(name.eq_ignore_ascii_case("shop.example.com"), "{name}");
        let followed = [&hello[..], b"early data"].concat();
        assert_eq!(parse(&followed), parse(&hello), "what follows is not looked at");
    }
}

#[test]
fn a_hello_cut_into_records_of_any_size_is_the_same_hello() {
    let hello = sent("shop.example.com", false);
    for size in [1, 2, 3, 5, 64, 500, hello.len()] {
        let cut = recut(&hello, &[size]);
        assert_eq!(parse(&cut), parse(&hello), "records of {size}");
        assert_eq!(parse(&cut[..cut.len() - 1]), Ok(Hello::Incomplete), "records of {size}");
    }
}

#[test]
fn clients_that_name_no_host_have_none() {
    let nobody = Ok(Hello::Complete { server_name: None });
    assert_eq!(parse(&sent("127.0.0.1", false)), nobody, "rustls sends no name for an address");
    assert_eq!(parse(&made(&[])), nobody, "TLS 1.2 without extensions");
    assert_eq!(parse(&made(&[0, 5, 0, 1, 0])), nobody, "other extensions");
    assert_eq!(parse(&made(&server_names(&[(0, b"10.0.0.1")]))), nobody, "an address is no host");
    assert_eq!(parse(&made(&server_names(&[(7, b"x")]))), nobody, "names of an unknown type");
    assert_eq!(parse(&made(&server_names(&[(0, b"a.example")]))), Ok(named("a.example")));
}

#[test]
fn what_is_no_hello_is_refused_at_the_byte_that_says_so() {
    let names = |names: &[(u8, &[u8])]| made(&server_names(names));
    let twice = [server_names(&[(0, b"a.example")]), server_names(&[(0, b"b.example")])].concat();
    let mut long = names(&[(0, b"a.example")]);
    long[6] = 1;
    let mut alert = names(&[]);
    alert[5] = 2;
    let cases: &[(&[u8], HelloError)] = &[
        (b"GET / HTTP/1.1\r\n", HelloError::NotTls),
        (b"\x16\x02", HelloError::NotTls),
        (b"\x16\x03\x01\x00\x00", HelloError::RecordLength),
        (b"\x16\x03\x01\x40\x01", HelloError::RecordLength),
        (&alert, HelloError::NotHello),
        (&long, HelloError::TooLong),
        (&names(&[(0, b"")]), HelloError::Name),
        (&names(&[(0, b"a b")]), HelloError::Name),
        (&names(&[(0, b"a..b")]), HelloError::Name),
        (&names(&[(0, b"\xff")]), HelloError::Name),
        (&names(&[(0, &[b'a'; 64])]), HelloError::Name),
        (&names(&[(0, b"a.example"), (0, b"b.example")]), HelloError::Malformed("two host names")),
        (&names(&[]), HelloError::Malformed("its server names")),
        (&made(&twice), HelloError::Malformed("two server names")),
        (&made(&[0, 0, 0, 9]), HelloError::Malformed("extension")),
    ];
    for (bytes, error) in cases {
        assert_eq!(parse(bytes), Err(*error), "{bytes:02x?}");
    }
    // What is wrong in the message's frame does not wait for the rest of it.
    assert_eq!(parse(&alert[..6]), Err(HelloError::NotHello));
    assert_eq!(parse(&long[..9]), Err(HelloError::TooLong));
}

proptest! {
    /// However the message is cut, and wherever it stops, the answer is the same or "wait".
    #[test]
    fn cuts_change_nothing(
        sizes in prop::collection::vec(1usize..700, 1..6), end in any::<prop::sample::Index>(), tls12 in any::<bool>(),
    ) {
        let hello = sent("shop.example.com", tls12);
        let cut = recut(&hello, &sizes);
        prop_assert_eq!(parse(&cut), Ok(named("shop.example.com")));
        prop_assert_eq!(parse(&cut[..end.index(cut.len())]), Ok(Hello::Incomplete));
    }

    /// A changed byte is refused or read; nothing else happens.
    #[test]
    fn any_bytes_are_judged(mut hello in Just(sent("shop.example.com", true)), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let at = at.index(hello.len());
        hello[at] = byte;
        let _ = parse(&hello);
        // An answer never changes by what follows.
        if let Ok(Hello::Complete { server_name }) = parse(&hello) {
            hello.extend_from_slice(b"more");
            prop_assert_eq!(parse(&hello), Ok(Hello::Complete { server_name }));
        }
    }
}
