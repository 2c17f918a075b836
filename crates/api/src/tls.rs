//! HTTP/2 over TLS to one server, on one connection that is opened when it is needed and again when it has broken, or when a call on
//! it was given up before there was an answer: it may lead nowhere, of which nothing else would ever tell.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{CertificateError, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::client::whole;

/// Longest time that TCP and TLS may take together.
const CONNECT: Duration = Duration::from_secs(5);

/// While a call waits, its connection is asked so often whether it lives, and the answer may take so long.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(5);

/// Why nothing was answered.
pub(crate) enum Failure {
    /// Nobody is there, or the connection broke.
    Unreachable(String),
    /// Somebody is there whom we may not talk to; with the verifier's reason, where it is one of our own.
    Untrusted(String, Option<Arc<dyn std::error::Error + Send + Sync>>),
}

/// What TLS failed with. A verifier of our own gives its reason, which the library's text would hide.
fn failure(error: &io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(reason))) => {
            Failure::Untrusted(whole(&*reason.0), Some(Arc::clone(&reason.0)))
        }
        Some(error @ rustls::Error::InvalidCertificate(_)) => Failure::Untrusted(error.to_string(), None),
        _ => Failure::Unreachable(whole(error)),
    }
}

fn unreachable(error: &dyn std::error::Error) -> Failure {
    Failure::Unreachable(whole(error))
}

pub(crate) struct TlsWay {
    host: String,
    port: u16,
    name: ServerName<'static>,
    connector: TlsConnector,
    open: Mutex<Option<Connection>>,
    /// How many connections there have been, and the last one on which a call was given up.
    made: AtomicU64,
    doubted: AtomicU64,
}

/// One of the connections, counted from 1 on.
#[derive(Clone)]
struct Connection {
    number: u64,
    sender: SendRequest<Full<Bytes>>,
}

/// A call on a connection, which is in doubt where this is dropped first: its caller has waited long enough.
struct Waiting<'w> {
    way: &'w TlsWay,
    number: u64,
}

impl Waiting<'_> {
    /// It has an answer, or has failed by itself.
    fn ends(self) {
        std::mem::forget(self);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.way.doubted.fetch_max(self.number, Ordering::Relaxed);
    }
}

impl TlsWay {
    pub(crate) fn new(base: &str, config: Arc<ClientConfig>) -> Result<Self, String> {
        let uri: Uri = base.parse().map_err(|error| format!("it is no URL: {error}"))?;
        let (Some("https"), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else {
            return Err("the address must read https://HOST:PORT".to_owned());
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|error| format!("{host}: {error}"))?;
        let (connector, open) = (TlsConnector::from(config), Mutex::new(None));
        Ok(Self { host, port, name, connector, open, made: AtomicU64::new(0), doubted: AtomicU64::new(0) })
    }

    pub(crate) async fn send(&self, request: Request<Bytes>) -> Result<Response<Incoming>, Failure> {
        let request = request.map(Full::new);
        let Connection { number, mut sender } = self.connection().await?;
        let waiting = Waiting { way: self, number };
        let answered = sender.try_send_request(request).await;
        waiting.ends();
        match answered {
            Ok(response) => Ok(response),
            // The connection had ended and nothing was sent: once more, on a new one.
            Err(mut error) => match error.take_message() {
                Some(request) => {
                    *self.open.lock().await = None;
                    let Connection { number, mut sender } = self.connection().await?;
                    let waiting = Waiting { way: self, number };
                    let answered = sender.send_request(request).await;
                    waiting.ends();
                    answered.map_err(|error| unreachable(&error))
                }
                None => Err(unreachable(error.error())),
            },
        }
    }

    async fn connection(&self) -> Result<Connection, Failure> {
        let mut open = self.open.lock().await;
        let doubted = self.doubted.load(Ordering::Relaxed);
        let usable = |open: &&Connection| !open.sender.is_closed() && open.number > doubted;
        if let Some(connection) = open.as_ref().filter(usable) {
            return Ok(connection.clone());
        }
        let connecting = tokio::time::timeout(CONNECT, self.connect()).await;
        let sender = connecting
            .map_err(|_| Failure::Unreachable(format!("no connection within {} s", CONNECT.as_secs())))??;
        let connection = Connection { number: self.made.fetch_add(1, Ordering::Relaxed) + 1, sender };
        // Calls that still wait on the one before keep it.
        *open = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| unreachable(&e))?;
        let tls = self.connector.connect(self.name.clone(), tcp).await.map_err(|e| failure(&e))?;
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE_ANSWER);
        let (sender, connection) = http2.handshake(TokioIo::new(tls)).await.map_err(|e| unreachable(&e))?;
        // Its end shows in the sender.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}
