//! HTTP/2 over TLS to one server, on one connection that is opened when it is needed and again when it has broken.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{CertificateError, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::client::whole;

/// Longest time that TCP and TLS may take together.
const CONNECT: Duration = Duration::from_secs(5);

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
    open: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl TlsWay {
    pub(crate) fn new(base: &str, config: Arc<ClientConfig>) -> Result<Self, String> {
        let uri: Uri = base.parse().map_err(|error| format!("it is no URL: {error}"))?;
        let (Some("https"), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else {
            return Err("the address must read https://HOST:PORT".to_owned());
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|error| format!("{host}: {error}"))?;
        Ok(Self { host, port, name, connector: TlsConnector::from(config), open: Mutex::new(None) })
    }

    pub(crate) async fn send(&self, request: Request<Bytes>) -> Result<Response<Incoming>, Failure> {
        let request = request.map(Full::new);
        let mut sender = self.sender().await?;
        match sender.try_send_request(request).await {
            Ok(response) => Ok(response),
            // The connection had ended and nothing was sent: once more, on a new one.
            Err(mut error) => match error.take_message() {
                Some(request) => {
                    *self.open.lock().await = None;
                    let mut sender = self.sender().await?;
                    sender.send_request(request).await.map_err(|error| unreachable(&error))
                }
                None => Err(unreachable(error.error())),
            },
        }
    }

    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let connecting = tokio::time::timeout(CONNECT, self.connect()).await;
        let sender = connecting
            .map_err(|_| Failure::Unreachable(format!("no connection within {} s", CONNECT.as_secs())))??;
        *open = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|e| unreachable(&e))?;
        let tls = self.connector.connect(self.name.clone(), tcp).await.map_err(|e| failure(&e))?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.map_err(|e| unreachable(&e))?;
        // Its end shows in the sender.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}
