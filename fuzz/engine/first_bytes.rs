//! What a connection begins with before any request: a TLS client's first message, a PROXY header.

use std::fmt::Debug;

use meshwork_proxy::client_hello::{self, Hello};
use meshwork_proxy::proxy_protocol::{self, Parsed, Versions};

/// However the bytes arrive: what is judged once stays so, whatever follows.
fn drip<T: Debug + PartialEq>(data: &[u8], parse: impl Fn(&[u8]) -> T, waits: impl Fn(&T) -> bool) -> T {
    // Every length of what is short, and fewer of what is long: reading all of them is quadratic.
    let step = (data.len() / 256).max(1);
    let mut judged: Option<(usize, T)> = None;
    for end in (0..data.len()).step_by(step).chain([data.len()]) {
        let told = parse(&data[..end]);
        match &judged {
            Some((at, known)) => assert_eq!(&told, known, "judged at {at}, and otherwise at {end}"),
            None if !waits(&told) => judged = Some((end, told)),
            None => {}
        }
    }
    parse(data)
}

/// A server name is one, and stands in the bytes behind its length.
pub(crate) fn client_hello(data: &[u8]) {
    let told = drip(data, client_hello::parse, |told| *told == Ok(Hello::Incomplete));
    match told {
        Ok(Hello::Complete { server_name: Some(name) }) => {
            assert!((1..=253).contains(&name.len()));
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{name}");
            assert!(name.split('.').all(|label| (1..=63).contains(&label.len())), "{name}");
        }
        // Nobody waits for ever.
        Ok(Hello::Incomplete) => assert!(data.len() < client_hello::MAX_BYTES),
        Ok(Hello::Complete { server_name: None }) | Err(_) => {}
    }
}

/// A header is as long as it says, and what it says can be said again in both versions.
pub(crate) fn proxy_protocol(data: &[u8]) {
    for versions in [(true, true), (true, false), (false, true)] {
        let versions = Versions { v1: versions.0, v2: versions.1 };
        let told =
            drip(data, |data| proxy_protocol::parse(data, versions), |told| *told == Ok(Parsed::Incomplete));
        let Ok(Parsed::Header { length, client }) = told else { continue };
        assert!(length <= data.len());
        assert_eq!(length, plain_length(data), "where the data of the connection begin");
        let Some(client) = client else { continue };
        let both = Versions { v1: true, v2: true };
        let canonical = |client: proxy_protocol::Client| {
            let plain = |a: std::net::SocketAddr| (a.ip().to_canonical(), a.port());
            (plain(client.source), plain(client.destination))
        };
        for written in [proxy_protocol::write_v1(&client), proxy_protocol::write_v2(&client)] {
            let Ok(Parsed::Header { length, client: Some(again) }) = proxy_protocol::parse(&written, both)
            else {
                panic!("{written:02x?}")
            };
            assert_eq!((length, canonical(again)), (written.len(), canonical(client)));
        }
    }
}

/// The plainest reading of a header's length: up to the line end, or as bytes 15 and 16 say.
fn plain_length(data: &[u8]) -> usize {
    if data.starts_with(b"PROXY ") {
        return data.windows(2).position(|pair| pair == b"\r\n").expect("a line has an end") + 2;
    }
    16 + usize::from(data[14]) * 256 + usize::from(data[15])
}
