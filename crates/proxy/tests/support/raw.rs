//! HTTP/2 frame by frame, good and bad (RFC 9113 section 4.1).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;
pub const PROTOCOL: u32 = 1;
pub const CALM: u32 = 11;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// `GET PATH` for `shop`.
pub fn head(path: &str) -> Vec<u8> {
    [head_to_nobody(path), literal(1, "shop")].concat()
}

/// Without an authority.
pub fn head_to_nobody(path: &str) -> Vec<u8> {
    [vec![0x82, 0x86], literal(4, path)].concat()
}

/// A field whose name is in HPACK's table.
pub fn literal(index: u8, text: &str) -> Vec<u8> {
    [&[index, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

pub fn request(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &head(path))
}

/// A connection whose frames are written by hand.
pub struct Raw(pub TcpStream);

impl Raw {
    pub async fn open(address: SocketAddr) -> Self {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        Self(tcp)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The next frame: kind, flags, stream, payload.
    pub async fn next(&mut self) -> std::io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        let [l0, l1, l2, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        self.0.read_exact(&mut payload).await?;
        Ok((kind, flags, u32::from_be_bytes(stream), payload))
    }

    /// Has a PING answered, so that all before it has been looked at. False when the connection ends instead.
    pub async fn settle(&mut self) -> bool {
        if self.0.write_all(&frame(PING, 0, 0, b"settled!")).await.is_err() {
            return false;
        }
        loop {
            match self.next().await {
                Ok((PING, ACK, ..)) => return true,
                Ok((GOAWAY, ..)) | Err(_) => return false,
                Ok(_) => {}
            }
        }
    }

    /// Sends all this and reads to the end of the connection; the code of its GOAWAY, if that was not lost.
    pub async fn flood(self, bytes: Vec<u8>) -> Option<u32> {
        let (read, mut write) = self.0.into_split();
        let sending = tokio::spawn(async move {
            // The peer may hang up in the middle: that is what this is about.
            let _ = write.write_all(&bytes).await;
            write
        });
        let mut all = Vec::new();
        let mut read = read;
        let _ = tokio::time::timeout(Duration::from_secs(20), read.read_to_end(&mut all))
            .await
            .expect("the connection ends");
        drop(sending);
        let (mut rest, mut code) = (&all[..], None);
        while let [l0, l1, l2, kind, _, _, _, _, _, after @ ..] = rest {
            let len = u32::from_be_bytes([0, *l0, *l1, *l2]) as usize;
            if *kind == GOAWAY && after.len() >= 8 {
                code = Some(u32::from_be_bytes([after[4], after[5], after[6], after[7]]));
            }
            rest = after.get(len..).unwrap_or_default();
        }
        code
    }
}

/// An endpoint that goes on sending, in small pieces, what its callers have given up. `small`: its first response is as
/// many small pieces as the window takes.
pub async fn deaf_upstream(callers: usize, mut small: bool) -> SocketAddr {
    const OK: &[u8] = &[0x88];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        let mut raw = Raw(tcp);
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        let mut resets = 0;
        while let Ok((kind, flags, stream, _)) = raw.next().await {
            match kind {
                HEADERS if std::mem::take(&mut small) => {
                    raw.send(&frame(HEADERS, END_HEADERS, stream, OK)).await;
                    raw.send(&frame(DATA, 0, stream, b"tick").repeat(60_000)).await;
                }
                SETTINGS if flags & ACK == 0 => raw.send(&frame(SETTINGS, ACK, 0, &[])).await,
                PING if flags & ACK == 0 => raw.send(&frame(PING, ACK, 0, b"settled!")).await,
                HEADERS if resets < callers => raw.send(&frame(HEADERS, END_HEADERS, stream, OK)).await,
                HEADERS => raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, OK)).await,
                RESET => {
                    resets += 1;
                    if resets == callers {
                        for stream in (1..2 * u32::try_from(callers).unwrap()).step_by(2) {
                            raw.send(&frame(DATA, 0, stream, b"still here")).await;
                        }
                    }
                }
                _ => {}
            }
        }
    });
    address
}
