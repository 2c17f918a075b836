//! Requests that two readers could take for different ones. Whatever the gateway makes of each, what it passes on is one
//! thing to every reader, and is what it believes to have passed on.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::raw::{connect, rest, send};
use crate::recorder::{Reader, Recorder};
use crate::support::process::HTTP;

/// Ends whatever is open: no head, no size of a chunk, and more than any length asks for.
const END: [u8; 256] = [1; 256];

/// So many at the same time.
const CALLERS: usize = 16;

/// A few cases ask for a body of which nothing comes.
const TIMES: [&str; 4] = ["--request-header-timeout", "1s", "--request-body-timeout", "1s"];

/// Each case's request names `/c/N`; the one that may hide behind it `/s/N`.
#[test]
fn a_gateway_and_what_is_behind_it_always_count_the_same_requests() {
    let cases: Vec<Vec<u8>> = [framed(), chunked(), lines(), mutated()].concat();
    assert!(cases.len() > 3000, "{}", cases.len());
    let recorder = Recorder::start();
    let mut gateway = crate::gateway(recorder.address, &TIMES);
    let address = gateway.at(HTTP);
    std::thread::scope(|scope| {
        for first in 0..CALLERS {
            let cases = cases.iter().enumerate().skip(first).step_by(CALLERS);
            scope.spawn(move || cases.for_each(|(number, case)| call(address, number, case)));
        }
    });
    gateway.signal("TERM");
    assert!(gateway.ended().success());
    let mut believed: BTreeMap<String, usize> = BTreeMap::new();
    for line in gateway.log(0).iter().filter(|line| line["response_code"] == 200) {
        *believed
            .entry(format!("{} {}", text(&line["method"]), text(&line["path"]).to_lowercase()))
            .or_default() += 1;
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for bytes in recorder.finish() {
        let (messages, _) = Reader::STRICT.messages(&bytes);
        for reader in Reader::all() {
            let other = reader.messages(&bytes).0;
            if other != messages {
                let at = other.iter().zip(&messages).position(|(a, b)| a != b);
                panic!("{reader:?} reads something else: {:?}", at.map(|at| (&other[at], &messages[at])));
            }
        }
        for message in messages {
            *seen.entry(format!("{} {}", message.method, message.target.to_lowercase())).or_default() += 1;
        }
    }
    let differing: Vec<_> = believed
        .iter()
        .filter(|(k, v)| seen.get(*k) != Some(v))
        .chain(seen.iter().filter(|(k, v)| believed.get(*k) != Some(v)))
        .collect();
    assert!(differing.is_empty(), "{differing:?}");
    let (plain, hidden) = (count(&seen, "/c/"), count(&seen, "/s/"));
    // Enough of both kinds, or the generators have lost their teeth.
    assert!(
        plain > 200 && plain < cases.len() / 2 && hidden > 200,
        "{plain} and {hidden} of {}",
        cases.len()
    );
}

fn call(address: SocketAddr, number: usize, case: &[u8]) {
    let mut wire = connect(address);
    let mut bytes = replace(case, b"/c/N", format!("/c/{number}").as_bytes());
    bytes.extend_from_slice(format!("GET /s/{number} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    bytes.extend_from_slice(&END);
    send(&mut *wire, &bytes);
    rest(&mut *wire);
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn count(seen: &BTreeMap<String, usize>, path: &str) -> usize {
    seen.iter().filter(|(request, _)| request.contains(path)).map(|(_, count)| count).sum()
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    match bytes.windows(from.len()).position(|window| window == from) {
        Some(at) => [&bytes[..at], to, &bytes[at + from.len()..]].concat(),
        None => bytes.to_vec(),
    }
}

const CODING_NAMES: &[&str] = &[
    "Transfer-Encoding",
    "transfer-encoding",
    "Transfer-Encoding ",
    "Transfer-Encoding\t",
    " Transfer-Encoding",
    "\tTransfer-Encoding",
    "Transfer_Encoding",
    "Transfer-Encoding\0",
    "X: y\nTransfer-Encoding",
    "X: y\rTransfer-Encoding",
    "X: y\r\n Transfer-Encoding",
    "Content-Encoding",
];

const CODINGS: &[&str] = &[
    "chunked",
    "\tchunked",
    "chunked ",
    "Chunked",
    "xchunked",
    "chunked,",
    "chunked, chunked",
    "chunked, identity",
    "identity, chunked",
    "gzip, chunked",
    "\"chunked\"",
    "chunked;q=1",
    "\u{b}chunked",
    "\u{c}chunked",
    "chun\r\n ked",
    "chunked\r\nTransfer-Encoding: identity",
    "identity\r\nTransfer-Encoding: chunked",
    "chunked\0",
    "",
];

const LENGTHS: &[&str] = &[
    "",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 50\r\n",
    "Content-Length: 5\r\nContent-Length: 0\r\n",
    "Content-Length: 0\r\nContent-Length: 5\r\n",
    "Content-Length: 0, 5\r\n",
    "Content-Length: +5\r\n",
    "Content-Length: 5\u{b}\r\n",
    "Content-Length : 5\r\n",
    "Content-Length: 0x5\r\n",
    "Content_Length: 5\r\n",
    "X: y\nContent-Length: 5\r\n",
    "Connection: content-length\r\nContent-Length: 5\r\n",
    "Connection: transfer-encoding\r\n",
];

const BODIES: &[&str] = &["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "hello"];

/// Every way to say how long a body is, and ways to say it twice.
fn framed() -> Vec<Vec<u8>> {
    let mut cases = Vec::new();
    let mut add = |coding: &str, length: &str, body: &str| {
        for (first, second) in [(length, coding), (coding, length)] {
            cases.push(format!("POST /c/N HTTP/1.1\r\nHost: a\r\n{first}{second}\r\n{body}").into_bytes());
        }
    };
    for name in CODING_NAMES {
        for coding in CODINGS {
            for length in &LENGTHS[..2] {
                add(&format!("{name}: {coding}\r\n"), length, BODIES[1]);
            }
        }
    }
    for coding in
        CODINGS.iter().map(|coding| format!("Transfer-Encoding: {coding}\r\n")).chain([String::new()])
    {
        for length in LENGTHS {
            for body in BODIES {
                add(&coding, length, body);
            }
        }
    }
    cases
}

/// Chunks whose sizes, ends and trailers are almost right.
fn chunked() -> Vec<Vec<u8>> {
    let sizes = [
        "5\r\n",
        "05\r\n",
        "5 \r\n",
        " 5\r\n",
        "5;a\r\n",
        "5;a=\"\r\n\"\r\n",
        "5;a\n",
        "5\n",
        "0x5\r\n",
        "+5\r\n",
        "5\r\r\n",
        "5\t\r\n",
        "5;\r\n",
        "5;a=\"\n\"\r\n",
        "100000000000000005\r\n",
        "5\u{0}\r\n",
    ];
    let ends = ["\r\n", "\n", "\r", "", "\r\r\n", "x\r\n"];
    let lasts = [
        "0\r\n\r\n",
        "0\n\n",
        "0\r\n",
        "00\r\n\r\n",
        "0;a\r\n\r\n",
        "0\r\nX: y\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\n X\r\n\r\n",
        "-0\r\n\r\n",
    ];
    let mut cases = Vec::new();
    for size in sizes {
        for end in ends {
            for last in lasts {
                cases.push(
                    format!("POST /c/N HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{size}hello{end}{last}")
                        .into_bytes(),
                );
            }
        }
    }
    cases
}

/// Request lines and hosts that readers disagree about.
fn lines() -> Vec<Vec<u8>> {
    let targets = [
        "/c/N",
        "//c/N",
        "http://a/c/N",
        "http://b/c/N",
        "/c/N#",
        "/c/N HTTP/1.1\r\nX: y",
        "/c/N?a=\tb",
        "a/c/N",
        "*",
        "/c/N\u{0}",
        "/c/N%0d%0aX:%20y",
        "/c/N%00",
        "/c\\N",
        "http://a:80/c/N",
        "http://a@b/c/N",
    ];
    let hosts =
        ["Host: a\r\n", "", "Host: a\r\nHost: b\r\n", "Host: a\nX: y\r\n", "Host : a\r\n", "Host: a:80\r\n"];
    let versions = ["HTTP/1.1", "HTTP/1.0", "HTTP/1.1 ", "HTTP/2.0", "HTTP/1.1\r"];
    let mut cases = Vec::new();
    for target in targets {
        for host in hosts {
            for version in versions {
                cases.push(format!("GET {target} {version}\r\n{host}\r\n").into_bytes());
            }
        }
    }
    cases
}

/// Sound requests, each with a few bytes changed; always the same ones.
fn mutated() -> Vec<Vec<u8>> {
    const SPECIAL: &[u8] = b"\r\n\r\n \t:,;\0\x0b\x7f\"\xffaAcX-_/?#%";
    let sound: [&[u8]; 4] = [
        b"GET /c/N HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        b"POST /c/N HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /c/N HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n",
        b"GET /c/N HTTP/1.1\r\nHost: a\r\nX: y\r\nX-Y: z, a;q=\"b\"\r\nAccept: */*\r\n\r\n",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % bound as u64).expect("below a length")
    };
    (0..1000)
        .map(|number| {
            let mut bytes = sound[number % sound.len()].to_vec();
            for _ in 0..=next(3) {
                let at = next(bytes.len());
                // A digit more could ask for a body that never comes, and the case's own number must stay.
                if bytes[at].is_ascii_digit()
                    || bytes[at.saturating_sub(4)..bytes.len().min(at + 5)].contains(&b'N')
                {
                    continue;
                }
                match next(4) {
                    0 => bytes[at] = SPECIAL[next(SPECIAL.len())],
                    1 => bytes.insert(at, SPECIAL[next(SPECIAL.len())]),
                    2 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, bytes[at]),
                }
            }
            bytes
        })
        .collect()
}
