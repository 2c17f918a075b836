//! What an eavesdropper between the processes sees.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::capture::{Capture, Traffic, Way, contains, number};
use crate::mesh::{APP, Mesh};
use crate::support::Curl;

/// Record types and handshake messages of TLS 1.3 (RFC 8446, sections 5.1 and 4).
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const SUPPORTED_VERSIONS: u16 = 43;
const TLS13: u16 = 0x0304;

/// Mutual TLS is spoken there: sidecars, control plane, registry.
const MESH: [u16; 3] = [15006, 15012, 8501];

#[test]
fn between_proxies_and_to_the_control_plane_there_is_nothing_but_tls_1_3() {
    let Some(curl) = Curl::find() else { return };
    let mut capture = None;
    let mesh = Mesh::start(|platform| capture = Capture::start(platform.base));
    let (Some(mesh), Some(capture)) = (mesh, capture) else { return };
    let marker = "marker-4f1d0c6b9e";
    let url = format!("http://{}/{marker}", mesh.platform.at(8080));
    for _ in 0..3 {
        let (header, body) = (format!("x-marker: {marker}"), format!("body {marker}"));
        let reply = curl.get(&["-H", &header, "--data", &body, &url]);
        assert_eq!((reply.status, reply.body.as_str()), (200, body.as_str()));
        assert_eq!(reply.header("x-marker"), Some(marker));
    }
    let traffic = capture.end(mesh.platform.at(15021));

    // Where it must be readable, which proves that the capture sees what it would have to see; and nowhere else.
    let front = mesh.front();
    let readable =
        [mesh.platform.at(8080), (front, APP).into(), (front, 15001).into(), (mesh.back(), APP).into()];
    assert_eq!(servers(&traffic, |bytes| contains(bytes, marker.as_bytes())), BTreeSet::from(readable));

    let encrypted: Vec<Way> =
        traffic.opened.iter().copied().filter(|way| MESH.contains(&way.to.port())).collect();
    for server in
        [(front, 15006).into(), (mesh.back(), 15006).into(), mesh.platform.at(15012), mesh.platform.at(8501)]
    {
        assert!(encrypted.iter().any(|way| way.to == server), "nobody called {server}: {encrypted:?}");
    }
    for Way { from, to } in encrypted {
        let bytes = |from, to| traffic.sent.get(&Way { from, to }).map(Vec::as_slice).unwrap_or_default();
        let (asked, answered) = (bytes(from, to), bytes(to, from));
        // Whoever only looks whether a port is open says nothing.
        if asked.is_empty() && answered.is_empty() {
            continue;
        }
        let hellos = all_tls(asked);
        assert!(hellos.iter().all(|hello| hello[0] == CLIENT_HELLO) && !hellos.is_empty(), "{from} to {to}");
        let hellos = all_tls(answered);
        assert!(!hellos.is_empty(), "{to} to {from} has not answered");
        for hello in hellos {
            assert_eq!((hello[0], version(hello)), (SERVER_HELLO, Some(TLS13)), "{to} to {from}");
        }
    }
}

/// The places that were called over a connection with such bytes.
fn servers(traffic: &Traffic, matches: impl Fn(&[u8]) -> bool) -> BTreeSet<SocketAddr> {
    let is_such = |way: &&Way| {
        let back = Way { from: way.to, to: way.from };
        [**way, back].iter().any(|way| traffic.sent.get(way).is_some_and(|bytes| matches(bytes)))
    };
    traffic.opened.iter().filter(is_such).map(|way| way.to).collect()
}

/// Checks that all bytes are records of TLS; gives the handshake messages that can be read. In TLS 1.3 these are the
/// two sides' hellos, since certificates are sent encrypted.
fn all_tls(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut hellos = Vec::new();
    while bytes.len() >= 5 {
        let (kind, length) = (bytes[0], usize::from(number(&bytes[3..5])));
        assert!(
            (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind),
            "no record begins with {:?}",
            &bytes[..5]
        );
        assert!(matches!(bytes[1..3], [3, 1 | 3]) && length <= 16384 + 256, "{:?}", &bytes[..5]);
        let record = &bytes[5..bytes.len().min(5 + length)];
        match kind {
            HANDSHAKE => hellos.push(record),
            // Before there are keys; later ones are application data from outside.
            ALERT => assert_eq!(length, 2),
            CHANGE_CIPHER_SPEC => assert_eq!(record, [1]),
            _ => {}
        }
        bytes = &bytes[5 + record.len()..];
    }
    hellos
}

/// The version that a `ServerHello` chose in its extension (RFC 8446, section 4.2.1); none in those of older versions.
fn version(hello: &[u8]) -> Option<u16> {
    // Type, length, legacy version, random; session id; cipher suite and compression.
    let session = usize::from(hello[38]);
    let mut extensions = &hello[39 + session + 3 + 2..];
    while extensions.len() >= 4 {
        let (kind, length) = (number(extensions), usize::from(number(&extensions[2..])));
        if kind == SUPPORTED_VERSIONS {
            return Some(number(&extensions[4..]));
        }
        extensions = &extensions[4 + length..];
    }
    None
}

#[test]
#[should_panic(expected = "no record begins with")]
fn plaintext_is_told_from_tls() {
    all_tls(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

#[test]
fn an_older_version_is_told_from_tls_1_3() {
    // A `ServerHello` of TLS 1.2: no session id, one suite, `renegotiation_info` as the only extension.
    let hello =
        [&[SERVER_HELLO, 0, 0, 45, 3, 3][..], &[7; 32], &[0, 0xc0, 0x2b, 0, 0, 5, 0xff, 1, 0, 1, 0]].concat();
    assert_eq!(version(&hello), None);
}
