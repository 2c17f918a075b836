//! What another proxy of the mesh sends to the port for tunnels: frames of HTTP/2 over mutual TLS, a CONNECT in each
//! stream, opaque bytes behind it. Two applications greet with their letter and give back what they get, so that the
//! answers tell where each tunnel went and what came through it.

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use meshwork_base::{Clock, SpiffeId, SystemClock, TrustDomain};
use meshwork_decision::{Change, SnapshotBuilder};
use meshwork_identity::{Authority, Bundle, DEFAULT_SVID_TTL, Expected, Identity, PendingSvid};
use meshwork_messages::v1;
use meshwork_proxy::{Engine, Mesh, Side};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::gateway::{self, shared};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The ports of the service, as a CONNECT names them, and how their applications greet.
const PORTS: [(u16, u8); 2] = [(80, b'A'), (81, b'B')];
/// Tunnels that one input may ask for: each costs a connection and a thread.
const MOST_TUNNELS: usize = 6;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;

struct Proxy {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    apps: [SocketAddr; 2],
}

static PROXY: LazyLock<Proxy> = LazyLock::new(start);

/// Of the first byte, the lowest bit says that the rest goes as it is; otherwise it is a list of what the caller does.
/// The next bit: the handshake names the second port, and nothing else can be had by it.
pub(crate) fn tunnels(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let second = first & 2 != 0;
    let mut caller = Caller::default();
    if first & 1 == 0 {
        caller.act(rest);
    } else {
        caller.bytes.extend_from_slice(rest);
        caller.unruly = true;
    }
    let answer = exchange(&caller, second);
    gateway::assert_no_panic();
    // Frames that somebody made up may say anything of any stream.
    if !caller.unruly {
        caller.check(&answer, second);
    }
}

/// What one caller sends, and what should come of it.
#[derive(Default)]
struct Caller {
    bytes: Vec<u8>,
    /// By stream: its method and authority, and what went into the tunnel.
    tunnels: BTreeMap<u32, Tunnel>,
    /// It sent what a regular caller does not.
    unruly: bool,
}

#[derive(Default)]
struct Tunnel {
    connect: bool,
    authority: Vec<u8>,
    sent: Vec<u8>,
    ended: bool,
    reset: bool,
}

impl Caller {
    fn act(&mut self, data: &[u8]) {
        let mut rest = data;
        while let Some((&step, mut after)) = rest.split_first() {
            match step & 7 {
                0..=2 if self.tunnels.len() < MOST_TUNNELS => self.open(step, &mut after),
                3..=5 => self.send(step, &mut after),
                6 => self.reset(&mut after),
                _ => {
                    let [kind, flags, stream] = [(); 3].map(|()| byte(&mut after));
                    let payload = part(&mut after).to_vec();
                    self.frame(kind, flags, stream.into(), &payload);
                    self.unruly = true;
                }
            }
            rest = after;
        }
        let open: Vec<u32> = self.tunnels.iter().filter(|(_, t)| !t.ended).map(|(id, _)| *id).collect();
        for id in open {
            self.frame(0, END_STREAM, id, b"");
        }
    }

    fn open(&mut self, step: u8, rest: &mut &[u8]) {
        let id = u32::try_from(self.tunnels.len()).expect("few") * 2 + 1;
        let connect = step & 64 == 0;
        let authority = part(rest).to_vec();
        let ended = step & 8 != 0;
        let mut block = Vec::new();
        field(&mut block, b":method", if connect { b"CONNECT" } else { b"GET" });
        if !connect {
            field(&mut block, b":scheme", b"http");
            field(&mut block, b":path", b"/");
        }
        field(&mut block, b":authority", &authority);
        let flags = if ended { END_STREAM } else { 0 };
        match block.split_at_checked(usize::from(step >> 4 & 3) * 8) {
            // The block goes on in a second frame.
            Some((head, tail)) if !head.is_empty() => {
                let (head, tail) = (head.to_vec(), tail.to_vec());
                self.frame(1, flags, id, &head);
                self.frame(9, 4, id, &tail);
            }
            _ => self.frame(1, flags | 4, id, &block),
        }
        self.tunnels.insert(id, Tunnel { connect, authority, ended, ..Tunnel::default() });
    }

    fn send(&mut self, step: u8, rest: &mut &[u8]) {
        let id = self.pick(rest);
        let payload = part(rest).to_vec();
        let times = if step & 64 == 0 { 1 } else { 40 };
        let payload = payload.repeat(times);
        let Some(tunnel) = self.tunnels.get_mut(&id).filter(|t| !t.ended) else { return };
        tunnel.sent.extend_from_slice(&payload);
        tunnel.ended = step & 8 != 0;
        let end = if tunnel.ended { END_STREAM } else { 0 };
        if step & 16 == 0 {
            self.frame(0, end, id, &payload);
        } else {
            let padded = [&[3], &payload[..], &[0; 3]].concat();
            self.frame(0, end | PADDED, id, &padded);
        }
    }

    fn reset(&mut self, rest: &mut &[u8]) {
        let id = self.pick(rest);
        let Some(tunnel) = self.tunnels.get_mut(&id).filter(|t| !t.ended) else { return };
        (tunnel.ended, tunnel.reset) = (true, true);
        self.frame(3, 0, id, &[0, 0, 0, 8]);
    }

    fn pick(&self, rest: &mut &[u8]) -> u32 {
        let count = self.tunnels.len().max(1);
        u32::try_from(usize::from(byte(rest)) % count).expect("few") * 2 + 1
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short");
        self.bytes.extend_from_slice(&length.to_be_bytes()[1..]);
        self.bytes.extend_from_slice(&[kind, flags]);
        self.bytes.extend_from_slice(&stream.to_be_bytes());
        self.bytes.extend_from_slice(payload);
    }

    /// Every tunnel got what its application says to what was sent, and nothing else.
    fn check(&self, answer: &[u8], second: bool) {
        let answers = read(answer);
        for (id, tunnel) in &self.tunnels {
            let Some(got) = answers.get(id) else { continue };
            let app = named(&tunnel.authority).filter(|app| tunnel.connect && (!second || *app == 1));
            let Some(app) = app else {
                assert!(got.data.is_empty(), "a tunnel to nowhere answers: {:?}", got.data.escape_ascii());
                continue;
            };
            let mut parts = tunnel.authority.splitn(2, |b| *b == b':');
            let plain = parts.all(|part| !part.is_empty() && part.iter().all(u8::is_ascii_alphanumeric));
            assert!(!(plain && got.refused && !tunnel.reset), "a good tunnel is refused");
            let whole = [&[PORTS[app].1], &tunnel.sent[..]].concat();
            let text = got.data.escape_ascii();
            assert!(whole.starts_with(&got.data), "{text} is no beginning of {}", whole.escape_ascii());
            if got.ended && !got.refused && !tunnel.reset {
                assert_eq!(got.data.len(), whole.len(), "a tunnel ends regularly and early: {text}");
            }
        }
    }
}

/// Which application an authority means, read plainly.
fn named(authority: &[u8]) -> Option<usize> {
    let digits = authority.rsplit(|b| *b == b':').next().filter(|d| d.len() < authority.len())?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port: u16 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let host = std::str::from_utf8(&authority[..authority.len() - digits.len() - 1]).ok()?.to_lowercase();
    let is_address = host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
    let is_service = host == "db" || host == "db.shop" || host.starts_with("db.shop.");
    if !is_address && !is_service {
        return None;
    }
    let by_service = PORTS.iter().position(|(of_service, _)| *of_service == port);
    by_service.or_else(|| PROXY.apps.iter().position(|app| app.port() == port))
}

fn byte(rest: &mut &[u8]) -> u8 {
    rest.split_off_first().copied().unwrap_or(0)
}

/// As many bytes as the first one says.
fn part<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = usize::from(byte(rest)).min(rest.len());
    rest.split_off(..length).expect("no more than there are")
}

/// A literal field that no table takes (RFC 7541, section 6.2.3).
fn field(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0x10);
    for text in [name, value] {
        match u8::try_from(text.len()) {
            Ok(length @ ..127) => block.push(length),
            // A length from 127 on: the rest of it in portions of seven bits.
            _ => {
                let more = text.len() - 127;
                block.push(127);
                if more < 128 {
                    block.push(u8::try_from(more).expect("seven bits"));
                } else {
                    block.extend([u8::try_from(more % 128).expect("seven bits") | 128, 1]);
                }
            }
        }
        block.extend_from_slice(text);
    }
}

#[derive(Default)]
struct Answer {
    data: Vec<u8>,
    ended: bool,
    /// Its first head had no status 200 (`:status` 200 is the eighth of HPACK's static fields), or it was reset.
    refused: bool,
}

/// What came back, by stream.
fn read(mut bytes: &[u8]) -> BTreeMap<u32, Answer> {
    let mut answers: BTreeMap<u32, Answer> = BTreeMap::new();
    while let Some((&[a, b, c, kind, flags, s0, s1, s2, s3], rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        // The connection may have ended in the middle.
        let (payload, rest) = rest.split_at(length.min(rest.len()));
        bytes = rest;
        let answer = answers.entry(u32::from_be_bytes([s0, s1, s2, s3])).or_default();
        match kind {
            0 => answer.data.extend_from_slice(payload),
            1 => answer.refused |= payload.first() != Some(&0x88),
            3 => answer.refused = true,
            _ => continue,
        }
        answer.ended |= kind == 3 || flags & END_STREAM != 0;
    }
    answers
}

/// Sends what the caller has to say, and gives what comes back: until every tunnel has its end where the caller behaves,
/// else until the connection ends, which must come once we have closed it.
fn exchange(caller: &Caller, second: bool) -> Vec<u8> {
    let tcp = TcpStream::connect(PROXY.address).expect("the proxy listens");
    tcp.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout is set");
    tcp.set_nodelay(true).expect("it is a socket");
    let name = if second { "81.db.shop.mesh" } else { "peer.example" };
    let name = name.try_into().expect("a name");
    let session = ClientConnection::new(Arc::clone(&PROXY.config), name).expect("a client");
    let mut tls = StreamOwned::new(session, tcp);
    // The proxy may have closed already.
    let _ = tls.write_all(&[PREFACE, &caller.bytes].concat());
    let mut answer = Vec::new();
    if !caller.unruly {
        receive(&mut tls, &mut answer, |answer| {
            let answers = read(answer);
            caller.tunnels.iter().all(|(id, t)| t.reset || answers.get(id).is_some_and(|a| a.ended))
        });
    }
    tls.conn.send_close_notify();
    let _ = tls.flush();
    let _ = tls.sock.shutdown(Shutdown::Write);
    receive(&mut tls, &mut answer, |_| false);
    answer
}

fn receive(tls: &mut impl Read, answer: &mut Vec<u8>, done: impl Fn(&[u8]) -> bool) {
    let mut chunk = [0; 16 * 1024];
    while !done(answer) {
        match tls.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) => {
                let late = error.kind() == std::io::ErrorKind::WouldBlock;
                assert!(!late, "no end comes: {}", answer.escape_ascii());
                return;
            }
        }
    }
}

fn start() -> Proxy {
    gateway::watch_panics();
    let folder = tempfile::tempdir().expect("a folder for the authority");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let domain = TrustDomain::new("mesh.local").expect("a domain");
    let authority = Authority::open_or_create(folder.path(), &domain, Arc::clone(&clock)).expect("a root");
    let identity = |workload: &str| {
        let id = SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{workload}")).expect("an id");
        let pending = PendingSvid::generate().expect("a key");
        let issued = authority.issue(pending.csr(), &id, DEFAULT_SVID_TTL).expect("a certificate");
        let svid = pending.complete(issued.chain).expect("they belong together");
        let bundle = Bundle::new(domain.clone(), 1, vec![authority.root().clone()], []).expect("a bundle");
        Identity::new(svid, bundle, Arc::clone(&clock)).expect("of one domain")
    };
    let (web, db) = (identity("web"), identity("db"));
    let config = web.client_config(vec![b"h2".to_vec()], Expected::one(db.id()));
    let apps = PORTS.map(|(_, letter)| application(letter));
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mesh = Mesh { identity: Some(Arc::clone(&db)), ..Mesh::default() };
            let mut engine = Engine::start(shared(mesh)).expect("workers start");
            let mut builder = SnapshotBuilder::new();
            let refused = builder.apply([serving(&db.id(), apps)]);
            assert!(refused.is_empty(), "{refused:?}");
            engine.apply(builder.build()).await;
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            tell.send(engine.listen(Side::Hbone, any).await.expect("a port")).expect("somebody waits");
            std::future::pending::<()>().await;
        });
    });
    Proxy { address: told.recv().expect("the engine starts"), config, apps }
}

fn serving(id: &SpiffeId, apps: [SocketAddr; 2]) -> Change {
    let served = |((port, _), app): ((u16, u8), SocketAddr)| v1::workload::Served {
        service: "shop/db".to_owned(),
        service_port: port.into(),
        app_port: app.port().into(),
        protocol: v1::service_port::AppProtocol::Tcp.into(),
    };
    let services = PORTS.into_iter().zip(apps).map(served).collect();
    let workload = v1::Workload { spiffe_id: id.as_str().to_owned(), services, ..Default::default() };
    Change::upsert("shop/db-1", "1", &workload)
}

/// Greets with its letter, gives back what it gets, and ends behind its caller.
fn application(letter: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port for the application");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for mut tcp in listener.incoming().flatten() {
            std::thread::spawn(move || {
                // Else each echo waits for the greeting's acknowledgement.
                tcp.set_nodelay(true)?;
                let mut from = tcp.try_clone()?;
                tcp.write_all(&[letter])?;
                std::io::copy(&mut from, &mut tcp)
            });
        }
    });
    address
}
