//! What must hold for any bytes. Used by the fuzz targets and by the replay of their corpus on stable.

#![allow(dead_code, reason = "each fuzz target uses one of the functions")]

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

/// A TLS client's first message.
pub(crate) fn client_hello(data: &[u8]) {
    let told = drip(data, client_hello::parse, |told| *told == Ok(Hello::Incomplete));
    match told {
        Ok(Hello::Complete { server_name: Some(name) }) => {
            assert!((1..=253).contains(&name.len()));
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{name}");
        }
        // Nobody waits for ever.
        Ok(Hello::Incomplete) => assert!(data.len() < client_hello::MAX_BYTES),
        Ok(Hello::Complete { server_name: None }) | Err(_) => {}
    }
}

/// A PROXY header.
pub(crate) fn proxy_protocol(data: &[u8]) {
    for versions in [(true, true), (true, false), (false, true)] {
        let versions = Versions { v1: versions.0, v2: versions.1 };
        let told =
            drip(data, |data| proxy_protocol::parse(data, versions), |told| *told == Ok(Parsed::Incomplete));
        let Ok(Parsed::Header { length, client }) = told else { continue };
        assert!(length <= data.len());
        let Some(client) = client else { continue };
        // What it says can be said again, in both versions, and means the same.
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
