use std::convert::Infallible;

use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::*;

/// Connections within this process: time that is paused goes on only when all of them wait.
struct Calls(mpsc::Receiver<DuplexStream>);

impl Accept for Calls {
    type Io = DuplexStream;
    async fn accept(&mut self) -> io::Result<DuplexStream> {
        match self.0.recv().await {
            Some(call) => Ok(call),
            None => pending().await,
        }
    }
}

struct Served(mpsc::Sender<DuplexStream>);

impl Served {
    /// `/quick` answers at once, `/stream` for ever, a byte each ten minutes.
    fn start(bounds: Bounds) -> Self {
        let stream = || async {
            Body::from_stream(futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_mins(10)).await;
                Some((Ok::<_, Infallible>("x"), ()))
            }))
        };
        let routes = Router::new().route("/quick", get(|| async { "done" })).route("/stream", get(stream));
        let (calls, called) = mpsc::channel(1);
        tokio::spawn(serve(Calls(called), routes, bounds));
        Self(calls)
    }

    async fn open(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        self.0.send(far).await.expect("the port is served");
        settle().await;
        near
    }
}

/// Lets everything happen that can without time going on.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn ask(connection: &mut DuplexStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    connection.write_all(request.as_bytes()).await.expect("it is open");
    let mut answer = [0; 1024];
    let read = connection.read(&mut answer).await.expect("it is open");
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

async fn is_open(connection: &mut DuplexStream) -> bool {
    settle().await;
    let mut byte = [0];
    match tokio::time::timeout(Duration::ZERO, connection.read(&mut byte)).await {
        Err(_) => true,
        Ok(read) => read.is_ok_and(|read| read > 0),
    }
}

fn bounds(connections: usize) -> Bounds {
    Bounds { connections, request: None }
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_whole_request_is_closed_in_time() {
    let served = Served::start(bounds(8));
    let (mut silent, mut half, mut asked) = (served.open().await, served.open().await, served.open().await);
    half.write_all(b"GET /quick HTTP/1.1\r\nho").await.unwrap();
    tokio::time::sleep(IDLE / 2).await;
    assert!(ask(&mut asked, "/quick").await.ends_with("done"));
    tokio::time::sleep(IDLE / 2 + PAUSE).await;
    assert!(!is_open(&mut silent).await && !is_open(&mut half).await);
    assert!(is_open(&mut asked).await, "it has asked since");
    tokio::time::sleep(IDLE / 2).await;
    assert!(!is_open(&mut asked).await);
}

#[tokio::test(start_paused = true)]
async fn a_full_port_closes_what_has_been_idle_longest() {
    let served = Served::start(bounds(2));
    let (mut first, mut second) = (served.open().await, served.open().await);
    tokio::time::sleep(PAUSE).await;
    assert!(ask(&mut first, "/quick").await.ends_with("done"));
    let mut third = served.open().await;
    assert!(!is_open(&mut second).await);
    assert!(ask(&mut first, "/quick").await.ends_with("done"));
    assert!(ask(&mut third, "/quick").await.ends_with("done"));
}

#[tokio::test(start_paused = true)]
async fn streams_live_on_and_are_not_closed_for_a_newcomer() {
    let served = Served::start(bounds(2));
    let (mut first, mut second) = (served.open().await, served.open().await);
    for stream in [&mut first, &mut second] {
        assert!(ask(stream, "/stream").await.starts_with("HTTP/1.1 200"));
    }
    let mut third = served.open().await;
    assert!(!is_open(&mut third).await);
    tokio::time::sleep(Duration::from_mins(11)).await;
    for stream in [&mut first, &mut second] {
        assert!(is_open(stream).await, "it has the byte of ten minutes");
    }
}

#[tokio::test(start_paused = true)]
async fn at_a_port_for_probes_no_request_is_long() {
    let served = Served::start(Bounds { connections: 1, request: Some(PROBE) });
    let mut stream = served.open().await;
    assert!(ask(&mut stream, "/stream").await.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(PROBE + PAUSE).await;
    assert!(!is_open(&mut stream).await);
}
