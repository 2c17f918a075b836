//! Windows of HTTP/2 over a distance: as large as a transfer needs them, and small where nobody reads. What is told is how much was
//! on the way, who asked how often, and what a peer was told: a machine that stands still makes none of that larger.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Settings, Side};
use support::distance::Distance;
use support::h2::{H2Upstream, answer, collect_body, fetch, h2_upstream};
use support::mesh::{TestMesh, db_behind, serving};
use support::raw::*;
use support::{Harness, rule};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

const EACH_WAY: Duration = Duration::from_millis(25);
/// What a stream may have on the way at first.
const SMALL: usize = 128 * 1024;
/// What it has on the way when its window has grown.
const LARGE: usize = 1024 * 1024;
/// Long for any machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Room for far more than a window of ours.
const WIDE: u32 = 1 << 25;
const PADDED: u8 = 8;
const FLOW_CONTROL_ERROR: u32 = 3;

/// Sends until it is told to stop, as far as the window allows, and counts what has gone.
async fn send(send: &mut SendStream<Bytes>, gone: &AtomicUsize, stops: impl Fn() -> bool) {
    let chunk = Bytes::from(vec![b'x'; 16 * 1024]);
    while !stops() {
        send.reserve_capacity(chunk.len());
        let Some(Ok(capacity)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
        let count = capacity.min(chunk.len());
        if send.send_data(chunk.slice(..count), false).is_err() {
            return;
        }
        gone.fetch_add(count, Ordering::SeqCst);
    }
    send.send_data(Bytes::new(), true).unwrap_or_default();
}

/// What an endpoint is told, and tells.
#[derive(Default)]
struct Told {
    gone: AtomicUsize,
    /// To those who do not read.
    unread: AtomicUsize,
    stops: AtomicBool,
}

impl Told {
    fn stop(&self) {
        self.stops.store(true, Ordering::SeqCst);
    }

    fn gone(&self) -> usize {
        self.gone.load(Ordering::SeqCst)
    }
}

/// `/endless` and `/unread` send until it is told to stop, `/upload` takes all and says how much that was.
async fn endpoint(told: &Arc<Told>) -> H2Upstream {
    let told = Arc::clone(told);
    let serve = move |_, request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
        let told = Arc::clone(&told);
        async move {
            match request.uri().path() {
                path @ ("/endless" | "/unread") => {
                    let mut body = respond.send_response(Response::new(()), false).unwrap();
                    let gone = if path == "/endless" { &told.gone } else { &told.unread };
                    send(&mut body, gone, || told.stops.load(Ordering::SeqCst)).await;
                }
                "/upload" => {
                    let mut body = request.into_body();
                    let mut count = 0;
                    while let Some(Ok(data)) = body.data().await {
                        count += data.len();
                        body.flow_control().release_capacity(data.len()).unwrap();
                    }
                    let mut said = respond.send_response(Response::new(()), false).unwrap();
                    said.send_data(count.to_string().into(), true).unwrap();
                }
                _ => answer(respond, b"hello"),
            }
        }
    };
    h2_upstream(usize::MAX, serve).await
}

async fn gateway(endpoint: SocketAddr) -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http2, &[endpoint]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

/// Two proxies with a distance between them, and where the application of the first one calls.
struct Far {
    _proxies: [Harness; 2],
    distance: Distance,
    proxy: SocketAddr,
}

/// What is called `db` is this application.
async fn far(app: SocketAddr, protocol: AppProtocol) -> Far {
    let mesh = TestMesh::new();
    let (web, db) = (mesh.identity("web"), mesh.identity("db"));
    let any = "127.0.0.1:0".parse().unwrap();
    let mut inbound = mesh.proxy(&db, None, Settings::default());
    inbound.change([mesh.bundle(1, &[]), serving(&db.id(), "db", app, protocol)]).await;
    let side = if protocol == AppProtocol::Tcp { Side::Hbone } else { Side::Inbound };
    let distance = Distance::to(inbound.engine.listen(side, any).await.unwrap(), EACH_WAY).await;
    let mut outbound = mesh.proxy(&web, None, Settings::default());
    let port = distance.address.port();
    let changes = db_behind(&db.id(), app, protocol, (port, port));
    outbound.change([mesh.bundle(1, &[])].into_iter().chain(changes)).await;
    let proxy = outbound.engine.listen(Side::Outbound, any).await.unwrap();
    Far { _proxies: [inbound, outbound], distance, proxy }
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://db{path}")).body(()).unwrap()
}

/// A client whose own windows are no bound, or are this large.
async fn client(address: SocketAddr, window: u32) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).initial_connection_window_size(window.max(1 << 16));
    let (send, connection) = builder.handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    send
}

/// Reads until there is enough, or to the end; how much that was.
async fn read(body: &mut RecvStream, is_enough: impl Fn(usize) -> bool) -> usize {
    let mut count = 0;
    let reading = async {
        while !is_enough(count)
            && let Some(data) = body.data().await
        {
            let data = data.unwrap();
            count += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
    };
    timeout(PATIENCE, reading).await.expect("it goes on");
    count
}

async fn endless(client: &mut SendRequest<Bytes>, path: &str) -> RecvStream {
    let (response, _) = client.send_request(get(path), true).unwrap();
    response.await.unwrap().into_body()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_from_afar_has_more_than_a_small_window_on_the_way_and_goes_on_after_a_pause() {
    let told = Arc::default();
    let app = endpoint(&told).await;
    let Far { _proxies, distance, proxy } = far(app.address, AppProtocol::Http2).await;
    let mut client = client(proxy, WIDE).await;
    let mut body = endless(&mut client, "/endless").await;
    let mut got = read(&mut body, |_| distance.most_back() >= LARGE).await;
    // Whoever is to have a smaller window after a while would not hear of room in it any more.
    sleep(Duration::from_secs(6)).await;
    got += read(&mut body, |count| count >= 16 * LARGE).await;
    told.stop();
    got += read(&mut body, |_| false).await;
    assert_eq!(got, told.gone());
    assert_eq!(fetch(&mut client, get("/")).await.1, "hello");
}

/// They would fill the connection between the proxies: each has earned a large window, and that of the connection is far from that of all.
#[tokio::test(flavor = "multi_thread")]
async fn answers_from_afar_that_are_not_read_any_more_leave_room_for_those_beside_them() {
    const IDLE: usize = 32;
    let told = Arc::default();
    let app = endpoint(&told).await;
    let Far { _proxies, distance, proxy } = far(app.address, AppProtocol::Http2).await;
    let mut reader = client(proxy, WIDE).await;
    let mut body = endless(&mut reader, "/endless").await;
    read(&mut body, |_| distance.most_back() >= LARGE).await;
    let (mut unread, mut got) = (Vec::with_capacity(IDLE), 0);
    for _ in 0..IDLE {
        let mut idle = client(proxy, 1 << 16).await;
        let mut body = endless(&mut idle, "/unread").await;
        got += read(&mut body, |count| count >= LARGE).await;
        unread.push((body, idle));
    }
    // More than a connection has for all of its streams: 16 MiB, and what two of them may have grown by.
    read(&mut body, |_| told.unread.load(Ordering::SeqCst) >= got + 26 * LARGE).await;
    read(&mut body, |count| count >= 64 * LARGE).await;
    let hello = timeout(PATIENCE, fetch(&mut reader, get("/"))).await.expect("others are answered");
    assert_eq!(hello.1, "hello");
    told.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_from_afar_has_more_than_a_small_window_on_the_way() {
    let app = endpoint(&Arc::default()).await;
    let Far { _proxies, distance, proxy } = far(app.address, AppProtocol::Http2).await;
    let mut client = client(proxy, WIDE).await;
    let post = Request::post("http://db/upload").body(()).unwrap();
    let (response, mut body) = client.send_request(post, false).unwrap();
    let gone = AtomicUsize::new(0);
    let sending = send(&mut body, &gone, || distance.most_there() >= LARGE);
    timeout(PATIENCE, sending).await.expect("windows grow");
    let (got, _) = collect_body(response.await.unwrap().into_body()).await.unwrap();
    assert_eq!(got, gone.load(Ordering::SeqCst).to_string());
}

/// Sends without an end until its peer closes.
async fn pouring() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (mut read, mut write) = tcp.into_split();
            tokio::spawn(async move { while write.write_all(&[b'x'; 16 * 1024]).await.is_ok() {} });
            tokio::spawn(async move {
                let mut chunk = vec![0; 64 * 1024];
                while read.read(&mut chunk).await.is_ok_and(|count| count > 0) {}
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_between_proxies_has_more_than_a_small_window_on_the_way_in_both_directions() {
    let app = pouring().await;
    let Far { _proxies, distance, proxy } = far(app, AppProtocol::Tcp).await;

    let mut tcp = TcpStream::connect(proxy).await.unwrap();
    tcp.write_all(b"CONNECT db:80 HTTP/1.1\r\nHost: db:80\r\n\r\n").await.unwrap();
    let (mut read, mut write) = tcp.split();
    let is_large = || distance.most_back() >= LARGE && distance.most_there() >= LARGE;
    let reading = async {
        let mut chunk = vec![0; 64 * 1024];
        while !is_large() {
            assert!(read.read(&mut chunk).await.unwrap() > 0);
        }
    };
    let writing = async { while write.write_all(&[b'y'; 16 * 1024]).await.is_ok() {} };
    tokio::select! {
        () = reading => {}
        () = writing => panic!("the tunnel stays open"),
        () = sleep(PATIENCE) => panic!("{} there, {} back", distance.most_there(), distance.most_back()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_no_proxy_of_ours_has_more_than_a_small_window_on_the_way_as_well() {
    let told = Arc::<Told>::default();
    let app = endpoint(&told).await;
    let distance = Distance::to(app.address, EACH_WAY).await;
    let (_harness, address) = gateway(distance.address).await;
    let mut client = client(address, WIDE).await;
    let mut body = endless(&mut client, "/endless").await;
    let got = read(&mut body, |_| distance.most_back() >= LARGE).await;
    told.stop();
    assert_eq!(got + read(&mut body, |_| false).await, told.gone());
    assert_eq!(fetch(&mut client, get("/")).await.1, "hello");
}

/// It is a sidecar's own, and nothing of it is far away.
#[tokio::test]
async fn the_application_beside_a_sidecar_is_told_of_one_window_and_asked_nothing() {
    let told = Arc::<Told>::default();
    let app = endpoint(&told).await;
    let distance = Distance::to(app.address, Duration::from_millis(1)).await;
    let Far { _proxies, proxy, .. } = far(distance.address, AppProtocol::Http2).await;
    let mut client = client(proxy, WIDE).await;
    let mut body = endless(&mut client, "/endless").await;
    let got = read(&mut body, |count| count >= 16 * LARGE).await;
    told.stop();
    assert_eq!(got + read(&mut body, |_| false).await, told.gone());
    assert_eq!(distance.pings(), 0);
    assert!(distance.most_back() < LARGE / 2, "{} on the way", distance.most_back());
}

/// One that was never read has not earned more than it began with.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_from_afar_that_nobody_reads_has_a_small_window_however_large_those_beside_it_are() {
    let told = Arc::<Told>::default();
    let app = endpoint(&told).await;
    let Far { _proxies, distance, proxy } = far(app.address, AppProtocol::Http2).await;
    let mut reader = client(proxy, WIDE).await;
    let mut body = endless(&mut reader, "/endless").await;
    read(&mut body, |_| distance.most_back() >= LARGE).await;
    let mut idle = client(proxy, 1 << 16).await;
    let _unread = endless(&mut idle, "/unread").await;
    read(&mut body, |count| count >= 64 * LARGE).await;
    // Both proxies and the application hold some of it each.
    let unread = told.unread.load(Ordering::SeqCst);
    assert!((SMALL..=8 * SMALL).contains(&unread), "{unread}");
    told.stop();
}

/// A caller that uploads frame by frame, before it has heard anything. Once its stream stands still it goes on by a WINDOW_UPDATE of
/// that stream alone, as the JDK's client and curl before 8.2 do.
struct Caller {
    raw: Raw,
    holds: bool,
    /// It acknowledges SETTINGS.
    answers: bool,
    /// What it may send: on its stream, and in all.
    windows: [usize; 2],
    /// Windows that it was told by SETTINGS.
    told: Vec<u32>,
    settled: bool,
    sent: usize,
}

impl Caller {
    async fn at(address: SocketAddr, path: &str) -> Self {
        let mut raw = Raw::open(address).await;
        let head = [vec![0x83, 0x86], literal(4, path), literal(1, "shop")].concat();
        raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        let windows = [0xffff; 2];
        Self { raw, holds: false, answers: true, windows, told: Vec::new(), settled: false, sent: 0 }
    }

    /// Takes one frame of the proxy; false: that was its answer's last.
    async fn takes(&mut self) -> bool {
        let next = timeout(PATIENCE, self.raw.next()).await.expect("something comes");
        let (kind, flags, stream, payload) = next.unwrap();
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        match kind {
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks(6).filter(|setting| setting[..2] == [0, 4]) {
                    let before = self.told.last().copied().unwrap_or(0xffff);
                    self.told.push(number(&setting[2..]));
                    self.windows[0] += (number(&setting[2..]) - before) as usize;
                }
                if self.answers {
                    self.raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
                }
            }
            PING if flags & ACK == 0 => self.raw.send(&frame(PING, ACK, 0, &payload)).await,
            PING => self.settled = true,
            WINDOW_UPDATE => {
                self.holds &= stream == 0;
                self.windows[usize::from(stream == 0)] += number(&payload) as usize;
            }
            GOAWAY | RESET => panic!("{kind}: {payload:?}"),
            DATA => return flags & END_STREAM == 0,
            _ => {}
        }
        true
    }

    /// What it may send at once.
    fn room(&self) -> usize {
        if self.holds { 0 } else { self.windows[0].min(self.windows[1]).min(16 * 1024) }
    }

    /// Sends as much as it may, until there is enough; between two frames it takes what has come.
    async fn sends(&mut self, is_enough: impl Fn(usize) -> bool) {
        while !is_enough(self.sent) {
            let room = self.room();
            if room == 0 {
                self.takes().await;
                continue;
            }
            self.raw.send(&frame(DATA, 0, 1, &vec![b'x'; room])).await;
            self.sent += room;
            self.windows = self.windows.map(|window| window - room);
            self.holds = self.windows[0] == 0;
        }
    }

    /// Takes what has come until now.
    async fn settles(&mut self) {
        self.raw.send(&frame(PING, 0, 0, b"settled!")).await;
        self.settled = false;
        while !self.settled {
            self.takes().await;
        }
    }

    async fn ends(mut self) {
        self.raw.send(&frame(DATA, END_STREAM, 1, &[])).await;
        while self.takes().await {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_no_proxy_of_ours_has_more_than_a_small_window_on_the_way_and_hears_of_one_by_settings()
 {
    let near = endpoint(&Arc::default()).await;
    let (harness, address) = gateway(near.address).await;
    let distance = Distance::to(address, EACH_WAY).await;
    let mut caller = Caller::at(distance.address, "/upload").await;
    let enough = |_| distance.most_there() >= LARGE;
    timeout(PATIENCE, caller.sends(enough)).await.expect("it goes on");
    caller.settles().await;
    assert_eq!(caller.told, [u32::try_from(SMALL).unwrap()]);
    caller.ends().await;
    drop(harness);
}

#[tokio::test(flavor = "multi_thread")]
async fn padding_uses_no_window_up() {
    let near = endpoint(&Arc::default()).await;
    let (_harness, address) = gateway(near.address).await;
    let mut caller = Caller::at(address, "/upload").await;
    const FRAME: usize = 300;
    let padded = frame(DATA, PADDED, 1, &[&[255][..], &[b'x'; FRAME - 256], &[0; 255]].concat());
    let sending = async {
        while caller.sent < 8 * SMALL {
            if caller.windows.iter().any(|window| *window < FRAME) {
                caller.takes().await;
                continue;
            }
            caller.raw.send(&padded).await;
            caller.windows = caller.windows.map(|window| window - FRAME);
            caller.sent += FRAME;
        }
    };
    timeout(PATIENCE, sending).await.expect("it goes on");
    caller.ends().await;
}

#[tokio::test]
async fn a_caller_that_sends_what_its_stream_has_no_room_for_is_told_so() {
    let near = endpoint(&Arc::default()).await;
    let (_harness, address) = gateway(near.address).await;
    let mut raw = Raw::open(address).await;
    raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
    let head = [vec![0x83, 0x86], literal(4, "/endless"), literal(1, "shop")].concat();
    raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    assert!(raw.settle().await);
    let bytes = frame(DATA, 0, 1, &[b'x'; 16 * 1024]).repeat(5 * SMALL / (16 * 1024));
    assert_eq!(raw.flood(bytes).await, Some(FLOW_CONTROL_ERROR));
}

/// As Jetty's client does.
#[tokio::test]
async fn a_caller_that_goes_by_our_settings_before_it_acknowledges_them_is_read_on() {
    let near = endpoint(&Arc::default()).await;
    let (_harness, address) = gateway(near.address).await;
    let mut caller = Caller { answers: false, ..Caller::at(address, "/upload").await };
    timeout(PATIENCE, caller.sends(|sent| sent >= 64 * SMALL)).await.expect("it goes on");
    caller.raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
    caller.settles().await;
    caller.ends().await;
}

/// They share the window of their connection, and none of them fills its own.
#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_from_afar_make_the_window_of_their_connection_grow() {
    const MANY: usize = 100;
    let near = endpoint(&Arc::default()).await;
    let (_harness, address) = gateway(near.address).await;
    let distance = Distance::to(address, EACH_WAY).await;
    let mut client = client(distance.address, WIDE).await;
    let gone = Arc::new(AtomicUsize::new(0));
    let mut answers = Vec::with_capacity(MANY);
    let (stop, stops) = tokio::sync::watch::channel(false);
    for _ in 0..MANY {
        let post = Request::post("http://db/upload").body(()).unwrap();
        let (response, mut body) = client.send_request(post, false).unwrap();
        let (gone, stops) = (Arc::clone(&gone), stops.clone());
        tokio::spawn(async move { send(&mut body, &gone, || *stops.borrow()).await });
        answers.push(response);
    }
    let grows = async {
        while distance.most_there() < 2 * LARGE {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, grows).await.expect("the window grows");
    stop.send(true).unwrap();
    for answer in answers {
        timeout(PATIENCE, answer).await.expect("it goes on").unwrap();
    }
}
