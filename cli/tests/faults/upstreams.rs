//! Endpoints that do one thing wrong, byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What is done on a connection, one after the other, and again from the beginning.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    /// A request's head is read.
    Head,
    Send(&'static [u8]),
    /// The same, again and again.
    Flood(&'static [u8]),
    /// One byte now and then.
    Drip,
    /// So many milliseconds.
    Wait(u64),
    /// Until the gateway has closed the connection, behind the request.
    Gone,
    /// The connection stays, and nothing more comes.
    Hang,
    Close,
    Reset,
}

/// An HTTP/2 frame without its length and stream.
#[derive(Clone, Copy)]
pub(crate) struct Frame(pub(crate) u8, pub(crate) u8, pub(crate) &'static [u8]);

#[derive(Clone, Copy)]
pub(crate) enum Up {
    /// Nobody listens.
    Nobody,
    /// Somebody listens who takes no connection.
    Full,
    Http1(&'static [Step]),
    /// Each request is answered with these frames.
    Http2(&'static [Frame]),
}

/// One that runs; kept as long as it shall.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    /// Told with each request whose head has come.
    pub(crate) arrived: Arc<Notify>,
    _kept: Vec<socket2::Socket>,
}

impl Up {
    pub(crate) async fn start(self) -> Running {
        let arrived = Arc::new(Notify::new());
        let (address, kept) = match self {
            Self::Nobody => {
                let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
                (gone.local_addr().unwrap(), Vec::new())
            }
            Self::Full => full(),
            Self::Http1(steps) => {
                let told = Arc::clone(&arrived);
                let serve = move |tcp| drop(tokio::spawn(http1(tcp, steps, Arc::clone(&told))));
                (listen(serve).await, Vec::new())
            }
            Self::Http2(frames) => {
                let told = Arc::clone(&arrived);
                let serve = move |tcp| drop(tokio::spawn(http2(tcp, frames, Arc::clone(&told))));
                (listen(serve).await, Vec::new())
            }
        };
        Running { address, arrived, _kept: kept }
    }
}

async fn listen(serve: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            serve(tcp);
        }
    });
    address
}

/// A listener whose queue of connections is full: the system answers nobody else.
fn full() -> (SocketAddr, Vec<socket2::Socket>) {
    let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut kept = vec![listener];
    for _ in 0..8 {
        let waiting = socket();
        waiting.set_nonblocking(true).unwrap();
        // It is under way, or in the queue.
        let _ = waiting.connect(&address);
        kept.push(waiting);
    }
    (address.as_socket().unwrap(), kept)
}

async fn http1(mut tcp: TcpStream, steps: &'static [Step], arrived: Arc<Notify>) {
    tcp.set_nodelay(true).unwrap();
    loop {
        for step in steps {
            let done = match step {
                Step::Head => read_head(&mut tcp).await.map(|()| arrived.notify_one()),
                Step::Send(bytes) => tcp.write_all(bytes).await.ok(),
                Step::Flood(bytes) => {
                    while tcp.write_all(bytes).await.is_ok() {}
                    None
                }
                Step::Drip => {
                    while tcp.write_all(b"x").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    None
                }
                Step::Wait(time) => {
                    tokio::time::sleep(Duration::from_millis(*time)).await;
                    Some(())
                }
                Step::Gone => {
                    while tcp.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
                    Some(())
                }
                Step::Hang => std::future::pending().await,
                Step::Close => None,
                Step::Reset => {
                    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
                    None
                }
            };
            if done.is_none() {
                return;
            }
        }
    }
}

async fn read_head(tcp: &mut TcpStream) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.ok()?);
    }
    Some(())
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn http2(mut tcp: TcpStream, frames: &'static [Frame], arrived: Arc<Notify>) -> Option<()> {
    tcp.read_exact(&mut [0; 24]).await.ok()?;
    tcp.write_all(&frame(SETTINGS, 0, 0, b"")).await.ok()?;
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await.ok()?;
        let [l0, l1, l2, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        tcp.read_exact(&mut payload).await.ok()?;
        match kind {
            SETTINGS if flags & 1 == 0 => tcp.write_all(&frame(SETTINGS, 1, 0, b"")).await.ok()?,
            HEADERS => {
                arrived.notify_one();
                for Frame(kind, flags, payload) in frames {
                    let bytes = frame(*kind, *flags, u32::from_be_bytes(stream), payload);
                    tcp.write_all(&bytes).await.ok()?;
                }
            }
            _ => {}
        }
    }
}
