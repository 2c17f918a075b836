use std::convert::Infallible;
use std::future::pending;

use axum::body::{BodyDataStream, Bytes};
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, put};
use futures_util::StreamExt as _;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::open::YOUNG;
use super::*;

/// Connections within this process: time that is paused goes on only when all of them wait.
struct Calls(mpsc::Receiver<io::Result<DuplexStream>>);

impl Accept for Calls {
    type Io = DuplexStream;
    async fn accept(&mut self) -> io::Result<DuplexStream> {
        match self.0.recv().await {
            Some(call) => call,
            None => pending().await,
        }
    }
    fn is_called(&self) -> bool {
        true
    }
    fn descriptor(_: DuplexStream) -> Option<OwnedFd> {
        None
    }
}

/// More than a connection takes that nobody reads.
const LARGE: usize = 1 << 20;

struct Served(mpsc::Sender<io::Result<DuplexStream>>);

impl Served {
    /// `/quick` answers at once, `/large` with [`LARGE`] bytes, `/stream` for ever, a byte each ten minutes; `/put` says ten
    /// minutes later what it got, and `/length` at once how much that was.
    fn start(bounds: Bounds) -> Self {
        let stream = || async {
            Body::from_stream(futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_mins(10)).await;
                Some((Ok::<_, Infallible>("x"), ()))
            }))
        };
        let put_late = put(|body: String| async {
            tokio::time::sleep(Duration::from_mins(10)).await;
            body
        });
        let length = put(|body: Bytes| async move { body.len().to_string() });
        let routes = Router::new()
            .route("/quick", get(|| async { "done" }))
            .route("/large", get(|| async { "x".repeat(LARGE) }))
            .route("/stream", get(stream))
            .route("/put", put_late)
            .route("/length", length.layer(DefaultBodyLimit::disable()));
        let (calls, called) = mpsc::channel(4);
        tokio::spawn(serve(Calls(called), routes, bounds));
        Self(calls)
    }

    async fn open(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        self.0.send(Ok(far)).await.expect("the port is served");
        settle().await;
        near
    }

    /// As the system does where there is no descriptor for who calls.
    fn refuse(&self) {
        self.0.try_send(Err(Errno::MFILE.into())).expect("the port is served");
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
    Bounds { connections, request: None, among: Open::new(connections) }
}

fn probes(connections: usize) -> Bounds {
    Bounds { connections, request: Some(PROBE), among: Open::new(connections) }
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
async fn a_body_of_which_no_more_comes_is_not_waited_for() {
    let served = Served::start(bounds(2));
    let (mut half, mut slow) = (served.open().await, served.open().await);
    for put in [&mut half, &mut slow] {
        put.write_all(b"PUT /put HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nh").await.unwrap();
    }
    let mut refused = tokio::spawn(async move {
        let began = Instant::now();
        let mut answer = String::new();
        half.read_to_string(&mut answer).await.expect("it is told and closed");
        (answer, began.elapsed())
    });
    for byte in [b"a", b"l", b"f"] {
        tokio::time::sleep(IDLE / 4).await;
        slow.write_all(byte).await.unwrap();
    }
    let refused = tokio::time::timeout(IDLE, &mut refused).await.expect("it ends in time").unwrap();
    assert!(refused.0.starts_with("HTTP/1.1 400") && refused.1 < IDLE + PAUSE, "{refused:?}");
    // From where it is whole it takes as long as it takes.
    let mut answer = [0; 1024];
    let read = slow.read(&mut answer).await.unwrap();
    assert!(answer[..read].ends_with(b"half"), "{}", String::from_utf8_lossy(&answer[..read]));
}

#[tokio::test(start_paused = true)]
async fn a_body_has_more_time_for_more_of_it_and_not_for_each_byte() {
    // A byte in half of the time that there is, and as much as is worth that time.
    let enough = usize::try_from(IDLE.as_secs() * u64::from(PACE) / 2).unwrap();
    for (bytes, arrives) in [(1, false), (enough, true)] {
        let served = Served::start(bounds(2));
        let mut put = served.open().await;
        let length = 4 * bytes;
        let head = format!("PUT /length HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
        put.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..4 {
            tokio::time::sleep(IDLE / 2).await;
            // One that is refused is closed.
            _ = put.write_all(&b"x".repeat(bytes)).await;
        }
        let mut answer = [0; 1024];
        let read = put.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        if arrives {
            assert!(answer.ends_with(&length.to_string()), "{answer}");
        } else {
            assert!(
                answer.starts_with("HTTP/1.1 400") && answer.contains("a second more for each"),
                "{answer}"
            );
        }
    }
}

/// Reads an answer of which the head and a part came already.
async fn read_slowly(connection: &mut DuplexStream, pause: Duration) -> usize {
    let (mut read, mut buffer) = (0, vec![0; LARGE / 4]);
    loop {
        tokio::time::sleep(pause).await;
        match tokio::time::timeout(pause, connection.read(&mut buffer)).await {
            Ok(Ok(more)) if more > 0 => read += more,
            _ => return read,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_read_slowly_is_under_way_until_it_has_gone() {
    for (bounds, is_probes) in [(probes(2), true), (bounds(2), false)] {
        let served = Served::start(bounds);
        let (mut slow, mut quick) = (served.open().await, served.open().await);
        assert!(ask(&mut slow, "/large").await.starts_with("HTTP/1.1 200"));
        tokio::time::sleep(PAUSE).await;
        assert!(ask(&mut quick, "/quick").await.ends_with("done"));
        let mut third = served.open().await;
        assert!(!is_open(&mut quick).await, "it is idle, though for less long");
        assert!(ask(&mut third, "/quick").await.ends_with("done"));
        // A few reads take all of it, and longer than a connection may be idle.
        let read = read_slowly(&mut slow, IDLE / 4).await;
        assert!(read > LARGE - 1024, "{read} came, at a port for probes: {is_probes}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_which_nothing_is_read_is_given_up() {
    let served = Served::start(probes(1));
    let mut deaf = served.open().await;
    assert!(ask(&mut deaf, "/large").await.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(IDLE + PAUSE).await;
    let read = read_slowly(&mut deaf, PAUSE).await;
    assert!(read < LARGE / 2, "{read}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_has_gone_is_no_longer_under_way() {
    let served = Served::start(bounds(1));
    let mut first = served.open().await;
    assert!(ask(&mut first, "/large").await.starts_with("HTTP/1.1 200"));
    let mut second = served.open().await;
    assert!(!is_open(&mut second).await, "there is no room beside what is under way");
    assert!(read_slowly(&mut first, PAUSE).await > LARGE - 1024);
    let mut third = served.open().await;
    assert!(ask(&mut third, "/quick").await.ends_with("done"));
}

#[tokio::test(start_paused = true)]
async fn a_full_port_closes_what_has_been_idle_longest() {
    let served = Served::start(bounds(2));
    let (mut first, mut second) = (served.open().await, served.open().await);
    tokio::time::sleep(YOUNG).await;
    assert!(ask(&mut first, "/quick").await.ends_with("done"));
    let mut third = served.open().await;
    assert!(!is_open(&mut second).await);
    assert!(ask(&mut first, "/quick").await.ends_with("done"));
    assert!(ask(&mut third, "/quick").await.ends_with("done"));
}

#[tokio::test(start_paused = true)]
async fn ports_that_share_a_bound_close_what_has_been_idle_longest_at_either() {
    let together = Open::new(3);
    let port = || Served::start(Bounds { connections: 2, request: None, among: Arc::clone(&together) });
    let (one, other) = (port(), port());
    let (mut first, mut second, mut third) = (one.open().await, one.open().await, other.open().await);
    for connection in [&mut first, &mut second, &mut third] {
        assert!(ask(connection, "/quick").await.ends_with("done"));
        tokio::time::sleep(PAUSE).await;
    }
    let mut fourth = other.open().await;
    assert!(ask(&mut fourth, "/quick").await.ends_with("done"));
    assert!(!is_open(&mut first).await && is_open(&mut second).await && is_open(&mut third).await);
    let mut fifth = other.open().await;
    assert!(ask(&mut fifth, "/quick").await.ends_with("done"));
    assert!(!is_open(&mut third).await && is_open(&mut second).await, "this port is full by itself");
}

#[test]
fn all_ports_of_a_process_have_a_quarter_of_its_descriptors() {
    for limit in [64, 256, 1024, 4096, 1 << 20] {
        let Shares { probes, apis } = shares(limit);
        assert!(2 * probes + apis <= limit / 4 && 2 * probes + apis > limit / 8, "{limit}");
    }
    assert!(Arc::ptr_eq(&Bounds::api().among, &Bounds::api().among), "APIs share theirs");
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
async fn who_has_just_called_is_not_the_first_to_go() {
    let served = Served::start(bounds(2));
    let (mut idle, mut called) = (served.open().await, served.open().await);
    tokio::time::sleep(YOUNG / 2).await;
    assert!(ask(&mut idle, "/quick").await.ends_with("done"));
    let mut third = served.open().await;
    assert!(!is_open(&mut idle).await, "it has had its answer");
    assert!(ask(&mut called, "/quick").await.ends_with("done"));
    assert!(ask(&mut third, "/quick").await.ends_with("done"));
}

#[tokio::test(start_paused = true)]
async fn of_those_that_have_just_called_the_first_goes_and_the_new_one_is_heard() {
    for probes in [probes(2), bounds(2)] {
        let served = Served::start(probes);
        let mut first = served.open().await;
        tokio::time::sleep(PAUSE).await;
        let (mut second, mut third) = (served.open().await, served.open().await);
        assert!(!is_open(&mut first).await && is_open(&mut second).await);
        assert!(ask(&mut third, "/quick").await.ends_with("done"));
    }
}

#[tokio::test(start_paused = true)]
async fn who_calls_where_no_descriptor_is_left_has_the_one_laid_aside() {
    let served = Served::start(probes(2));
    let mut idle = served.open().await;
    assert!(ask(&mut idle, "/quick").await.ends_with("done"));
    served.refuse();
    let mut called = served.open().await;
    assert!(ask(&mut called, "/quick").await.ends_with("done"));
    assert!(is_open(&mut idle).await, "nobody had to go for that");
}

#[tokio::test(start_paused = true)]
async fn where_descriptors_are_free_again_one_is_laid_aside_again() {
    let served = Served::start(probes(8));
    for _ in 0..3 {
        // The crowd is gone when the descriptor is there for it.
        served.refuse();
        settle().await;
        served.refuse();
        let mut called = served.open().await;
        let asked = Instant::now();
        assert!(ask(&mut called, "/quick").await.ends_with("done"));
        assert_eq!(Instant::now(), asked, "it did not have to wait for a descriptor");
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_for_probes_that_is_full_of_requests_closes_the_oldest_for_the_new_one() {
    let served = Served::start(probes(2));
    let (mut second, mut first) = (served.open().await, served.open().await);
    for stream in [&mut first, &mut second] {
        assert!(ask(stream, "/stream").await.starts_with("HTTP/1.1 200"));
        tokio::time::sleep(YOUNG).await;
    }
    let mut third = served.open().await;
    assert!(ask(&mut third, "/quick").await.ends_with("done"));
    assert!(!is_open(&mut first).await, "its request is the oldest");
    assert!(is_open(&mut second).await);
}

#[tokio::test(start_paused = true)]
async fn a_port_for_probes_speaks_http_1_alone() {
    let served = Served::start(probes(2));
    let mut connection = served.open().await;
    connection.write_all(PREFACE).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    assert!(streams(&answer).is_none(), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_in_a_connection_of_http_2_has_a_bound() {
    let served = Served::start(bounds(2));
    let mut connection = served.open().await;
    connection.write_all(PREFACE).await.unwrap();
    let mut answer = vec![0; 1024];
    let read = connection.read(&mut answer).await.unwrap();
    assert_eq!(streams(&answer[..read]), Some(STREAMS));
}

/// HTTP/2 begins so, with settings that say nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How many streams at a time the settings allow that an answer of HTTP/2 begins with.
fn streams(answer: &[u8]) -> Option<u32> {
    let (head, rest) = answer.split_at_checked(9)?;
    let length = usize::from(head[1]) << 8 | usize::from(head[2]);
    let mut settings = rest.get(..length).filter(|_| head[3] == 4)?.chunks_exact(6);
    let value = settings.find(|setting| setting.starts_with(&[0, 3]))?;
    Some(u32::from_be_bytes(value[2..].try_into().ok()?))
}

/// A connection of HTTP/2 whose caller has room for so much of an answer, and of all of them, before it is read.
async fn http_2(served: &Served, window: u32) -> SendRequest<Body> {
    http_2_with(served, window, window.max(65_535)).await
}

/// The same with so much room for all of them together. The caller asks now and then whether anybody is there.
async fn http_2_with(served: &Served, window: u32, of_all: u32) -> SendRequest<Body> {
    let near = TokioIo::new(served.open().await);
    let mut client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    client.initial_stream_window_size(window).initial_connection_window_size(of_all);
    client.timer(TokioTimer::new()).keep_alive_interval(IDLE / 5).keep_alive_timeout(IDLE);
    let (requests, connection) = client.handshake(near).await.unwrap();
    tokio::spawn(connection);
    requests
}

/// How long a caller needs for so much who reads slowly, in however many frames it comes.
fn reading(bytes: usize) -> Duration {
    IDLE * u32::try_from(bytes).unwrap() / (64 * 1024)
}

async fn begins(requests: &mut SendRequest<Body>, path: &str) -> BodyDataStream {
    let request = Request::get(format!("http://a{path}")).body(Body::empty()).unwrap();
    requests.send_request(request).await.unwrap().map(Body::new).into_body().into_data_stream()
}

#[tokio::test(start_paused = true)]
async fn over_http_2_an_answer_of_which_nothing_is_read_is_given_up_whatever_is_under_way() {
    for (path, beside) in [("/quick", None), ("/large", None), ("/large", Some("/stream"))] {
        let served = Served::start(bounds(2));
        let mut requests = http_2(&served, 0).await;
        let beside = match beside {
            Some(path) => Some(begins(&mut requests, path).await),
            None => None,
        };
        let unread = begins(&mut requests, path).await;
        tokio::time::sleep(IDLE - PAUSE).await;
        assert!(!requests.is_closed());
        tokio::time::sleep(2 * PAUSE).await;
        settle().await;
        assert!(requests.is_closed(), "{path} beside {}", beside.is_some());
        drop(unread);
    }
}

#[tokio::test(start_paused = true)]
async fn over_http_2_an_answer_of_which_nothing_is_read_is_given_up_whatever_is_read_beside_it() {
    let served = Served::start(bounds(2));
    let mut requests = http_2_with(&served, 16 * 1024, 2 << 20).await;
    let unread = begins(&mut requests, "/large").await;
    let began = Instant::now();
    while began.elapsed() < IDLE - PAUSE {
        let mut quick = begins(&mut requests, "/quick").await;
        assert!(quick.next().await.is_some_and(|data| data.is_ok_and(|data| data == "done")));
        tokio::time::sleep(PAUSE).await;
    }
    assert!(!requests.is_closed());
    tokio::time::sleep(2 * PAUSE).await;
    settle().await;
    assert!(requests.is_closed());
    drop(unread);
}

#[tokio::test(start_paused = true)]
async fn over_http_2_a_stream_lives_on_beside_an_answer_that_is_read_slowly_and_after_it() {
    let served = Served::start(bounds(2));
    let mut requests = http_2(&served, 64 * 1024).await;
    let mut stream = begins(&mut requests, "/stream").await;
    let (mut large, mut read) = (begins(&mut requests, "/large").await, 0);
    while let Some(Ok(data)) = large.next().await {
        read += data.len();
        tokio::time::sleep(reading(data.len())).await;
    }
    assert_eq!(read, LARGE);
    for _ in 0..3 {
        assert!(stream.next().await.is_some_and(|data| data.is_ok()), "a byte each ten minutes");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_read_slowly_over_http_2_is_under_way_until_it_has_gone() {
    let served = Served::start(bounds(2));
    // A small part of the answer.
    let mut requests = http_2(&served, 64 * 1024).await;
    let mut answer = begins(&mut requests, "/large").await;
    tokio::time::sleep(PAUSE).await;
    let mut quick = served.open().await;
    assert!(ask(&mut quick, "/quick").await.ends_with("done"));
    let mut third = served.open().await;
    assert!(!is_open(&mut quick).await, "it is idle, though for less long");
    assert!(ask(&mut third, "/quick").await.ends_with("done"));
    let mut read = 0;
    while let Some(Ok(data)) = answer.next().await {
        read += data.len();
        tokio::time::sleep(reading(data.len())).await;
    }
    assert_eq!(read, LARGE);
    // It is idle now, and since it has gone.
    tokio::time::sleep(IDLE + PAUSE).await;
    settle().await;
    assert!(requests.is_closed());
}

#[tokio::test(start_paused = true)]
async fn at_a_port_for_probes_no_request_is_long() {
    let served = Served::start(probes(1));
    let mut stream = served.open().await;
    assert!(ask(&mut stream, "/stream").await.starts_with("HTTP/1.1 200"));
    tokio::time::sleep(PROBE + PAUSE).await;
    assert!(!is_open(&mut stream).await);
}

#[tokio::test]
async fn who_has_read_half_a_mebibyte_is_heard_to_read() {
    use std::io::{Read as _, Write as _};

    let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut caller = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let io = Accept::accept(&mut listener).await.unwrap().into_std().unwrap();
    let fill = || while (&io).write(&[0; 16 << 10]).is_ok() {};
    let takes_more = |within: Timespec| {
        let mut fds = [PollFd::new(&io, PollFlags::OUT)];
        poll(&mut fds, Some(&within)).unwrap() > 0
    };
    let mut chunk = vec![0; 512 << 10];
    // The system gives more room to who has read fast.
    for _ in 0..100 {
        fill();
        let count = caller.read(&mut chunk).unwrap();
        assert!(count > 0);
    }
    while takes_more(Timespec { tv_sec: 0, tv_nsec: 200_000_000 }) {
        fill();
    }
    caller.read_exact(&mut chunk).unwrap();
    assert!(takes_more(Timespec { tv_sec: 10, tv_nsec: 0 }), "half a MiB is read");
}
