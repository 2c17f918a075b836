//! One request, one answer, over whichever way leads to the role.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt;

use crate::tls::{Failure, TlsWay};
use crate::unix;

/// Bytes of an answer that are read; more is an error.
const MAX_ANSWER: usize = 256 << 20;
/// Bytes of one line of an answer that is read by lines.
const MAX_LINE: usize = 16 << 20;

/// What a role says when it refuses (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProblemDetails {
    /// The kind of refusal, the same each time.
    pub title: String,
    /// What is wrong this time and what to do.
    pub detail: Option<String>,
    /// The code of its page, as `MW5021`.
    pub code: Option<String>,
    /// Members that this kind of refusal has.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl fmt::Display for ProblemDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail.as_deref().unwrap_or(&self.title))?;
        self.code.as_ref().map_or(Ok(()), |code| write!(f, " ({code})"))
    }
}

/// Why a call gave no answer of the expected kind.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The role could not be reached.
    #[error("{server} cannot be reached: {cause}; check that it runs and that the address is right")]
    Unreachable {
        /// Whom we called.
        server: String,
        /// What the system said.
        cause: String,
    },
    /// Somebody is there, who is not whom we mean.
    #[error("{server} is not whom it should be: {cause}")]
    Untrusted {
        /// Whom we called.
        server: String,
        /// Why it is not trusted.
        cause: String,
        /// The word of the verifier that the caller has brought, for who knows it.
        reason: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// It refused.
    #[error("{server} refused with {status}: {problem}")]
    Refused {
        /// Whom we called.
        server: String,
        /// Its status.
        status: StatusCode,
        /// What it said.
        problem: Box<ProblemDetails>,
    },
    /// It answered something else than its API promises.
    #[error("{server} answered what this version does not understand: {why}; compare the versions of both")]
    Unexpected {
        /// Whom we called.
        server: String,
        /// What was wrong.
        why: String,
    },
}

impl ClientError {
    /// The status of a refusal.
    #[must_use]
    pub const fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The code of a refusal, as `MW5021`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { problem, .. } => problem.code.as_deref(),
            _ => None,
        }
    }

    /// Whether the same request may succeed later: nobody answered, or who did is not able to yet.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        let passing =
            |status: StatusCode| status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        matches!(self, Self::Unreachable { .. }) || self.status().is_some_and(passing)
    }
}

/// A successful answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: Bytes,
}

#[derive(Clone)]
enum Way {
    Http(Box<Pool<HttpConnector, Full<Bytes>>>),
    Tls(Arc<TlsWay>),
    Unix(PathBuf),
    InMemory(Router),
}

/// A client of one role; shared by cloning.
#[derive(Clone)]
pub struct Client {
    server: String,
    way: Way,
    token: Option<String>,
    patience: Option<Duration>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the server that an operator names: `http://HOST[:PORT]`, or `unix:PATH` for a socket of this
    /// machine.
    ///
    /// # Errors
    /// [`ClientError::Unexpected`] when it is neither.
    pub fn of(address: &str) -> Result<Self, ClientError> {
        match address.strip_prefix("unix:") {
            Some("") => {
                let (server, why) = (address.to_owned(), "the address must read unix:PATH".to_owned());
                Err(ClientError::Unexpected { server, why })
            }
            Some(path) => {
                let way = Way::Unix(Path::new(path).to_owned());
                Ok(Self { server: address.to_owned(), way, token: None, patience: None })
            }
            None => Self::http(address),
        }
    }

    /// A client over HTTP/1.1 to a base URL such as `http://127.0.0.1:8500`.
    ///
    /// # Errors
    /// [`ClientError::Unexpected`] when the URL is not `http://HOST[:PORT]`.
    pub fn http(base: &str) -> Result<Self, ClientError> {
        let server = base.trim_end_matches('/').to_owned();
        let wrong = |why: String| ClientError::Unexpected { server: server.clone(), why };
        let uri: Uri = server.parse().map_err(|e| wrong(format!("it is no URL: {e}")))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() || uri.path() != "/" {
            return Err(wrong("the address must read http://HOST:PORT".to_owned()));
        }
        let pool = Pool::builder(TokioExecutor::new()).build_http();
        Ok(Self { server, way: Way::Http(Box::new(pool)), token: None, patience: None })
    }

    /// A client over HTTP/2 and TLS to a base URL such as `https://127.0.0.1:15012`; whom to trust and who we are is
    /// the configuration's matter, which must offer ALPN `h2`. One connection is kept while it works.
    ///
    /// # Errors
    /// [`ClientError::Unexpected`] when the URL is not `https://HOST:PORT`.
    pub fn tls(base: &str, config: Arc<rustls::ClientConfig>) -> Result<Self, ClientError> {
        let server = base.trim_end_matches('/').to_owned();
        let way = TlsWay::new(&server, config)
            .map_err(|why| ClientError::Unexpected { server: server.clone(), why })?;
        Ok(Self { server, way: Way::Tls(Arc::new(way)), token: None, patience: None })
    }

    /// A client that calls a role of the same process without a socket.
    #[must_use]
    pub fn in_memory(name: &str, role: Router) -> Self {
        Self { server: name.to_owned(), way: Way::InMemory(role), token: None, patience: None }
    }

    /// The same client, naming itself by this token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The same client, for whom nobody is there who says nothing for so long, be it the answer or its next part. What comes line
    /// by line may pause.
    #[must_use]
    pub const fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// The same client, for a call that asks to wait for so long.
    #[must_use]
    pub fn that_waits(&self, time: Duration) -> Self {
        Self { patience: self.patience.map(|patience| patience.saturating_add(time)), ..self.clone() }
    }

    /// Whom it calls.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Sends a request to a path; an answer outside 2xx and 304 is an error. A call that waits (`wait=`) takes as long
    /// as it asks for: a deadline is the caller's, see [`Self::that_waits`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let request = self.request(method, path, headers, body)?;
        self.judged(self.carry(request).await?)
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Bytes>, ClientError> {
        let uri = match self.way {
            Way::Http(_) | Way::Tls(_) => format!("{}{path}", self.server),
            Way::Unix(_) | Way::InMemory(_) => path.to_owned(),
        };
        let mut request = Request::builder().method(method).uri(uri);
        if matches!(self.way, Way::Unix(_)) {
            request = request.header(header::HOST, "localhost");
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
            .body(body)
            .map_err(|error| ClientError::Unexpected { server: self.server.clone(), why: error.to_string() })
    }

    fn judged(&self, answer: Answer) -> Result<Answer, ClientError> {
        if answer.status.is_success() || answer.status == StatusCode::NOT_MODIFIED {
            return Ok(answer);
        }
        let problem = serde_json::from_slice(&answer.body).unwrap_or_else(|_| ProblemDetails {
            title: String::from_utf8_lossy(&answer.body).trim().to_owned(),
            ..ProblemDetails::default()
        });
        Err(ClientError::Refused {
            server: self.server.clone(),
            status: answer.status,
            problem: Box::new(problem),
        })
    }

    /// Sends a request with a JSON body and reads its answer line by line, as it comes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lines(&self, method: Method, path: &str, body: Bytes) -> Result<Lines, ClientError> {
        let request = self.request(method, path, &[], body)?;
        let (head, body) = self.in_time(Box::pin(self.open(request))).await??.into_parts();
        if head.status.is_success() {
            return Ok(Lines { server: self.server.clone(), body, read: BytesMut::new() });
        }
        let body = self.whole(body).await?;
        self.judged(Answer { status: head.status, headers: head.headers, body })?;
        let why = format!("status {}", head.status);
        Err(ClientError::Unexpected { server: self.server.clone(), why })
    }

    async fn whole(&self, mut body: Opened) -> Result<Bytes, ClientError> {
        let mut read = BytesMut::new();
        while let Some(piece) = self.in_time(body.piece()).await? {
            let piece = piece.map_err(|cause| self.unreachable(cause))?;
            if read.len() + piece.len() > MAX_ANSWER {
                return Err(self.unreachable(format!("an answer longer than {MAX_ANSWER} bytes")));
            }
            read.extend_from_slice(&piece);
        }
        Ok(read.freeze())
    }

    fn unreachable(&self, cause: String) -> ClientError {
        ClientError::Unreachable { server: self.server.clone(), cause }
    }

    /// Does one step of an answer, for which it has patience. A large one is boxed: it is kept twice here.
    async fn in_time<T>(&self, step: impl Future<Output = T>) -> Result<T, ClientError> {
        let Some(patience) = self.patience else { return Ok(step.await) };
        tokio::time::timeout(patience, step).await.map_err(|_| {
            self.unreachable(format!(
                "nothing has come from it for {patience:?}, it hangs or has too much to do"
            ))
        })
    }

    async fn carry(&self, request: Request<Bytes>) -> Result<Answer, ClientError> {
        let (head, body) = self.in_time(Box::pin(self.open(request))).await??.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body: self.whole(body).await? })
    }

    async fn open(&self, request: Request<Bytes>) -> Result<http::Response<Opened>, ClientError> {
        let unreachable = |cause: String| self.unreachable(cause);
        let incoming = match &self.way {
            Way::Http(pool) => {
                pool.request(request.map(Full::new)).await.map_err(|error| unreachable(whole(&error)))?
            }
            // Boxed: a handshake's state is large, and most calls of most clients never need it.
            Way::Tls(way) => Box::pin(way.send(request)).await.map_err(|failure| match failure {
                Failure::Unreachable(cause) => unreachable(cause),
                Failure::Untrusted(cause, reason) => {
                    ClientError::Untrusted { server: self.server.clone(), cause, reason }
                }
            })?,
            Way::Unix(path) => unix::send(path, request).await.map_err(unreachable)?,
            Way::InMemory(role) => {
                let response = match role.clone().oneshot(request.map(Body::from)).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                return Ok(response.map(Opened::Local));
            }
        };
        Ok(incoming.map(Opened::Remote))
    }

    /// Sends a request and reads the answer as JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<T, ClientError> {
        let answer = self.send(method, path, headers, body).await?;
        serde_json::from_slice(&answer.body)
            .map_err(|error| ClientError::Unexpected { server: self.server.clone(), why: error.to_string() })
    }
}

/// A body that is read as it comes.
enum Opened {
    Remote(Incoming),
    Local(Body),
}

impl Opened {
    /// The next piece of data; empty for what is none.
    async fn piece(&mut self) -> Option<Result<Bytes, String>> {
        let data = |frame: hyper::body::Frame<Bytes>| frame.into_data().unwrap_or_default();
        Some(match self {
            Self::Remote(body) => body.frame().await?.map(data).map_err(|error| error.to_string()),
            Self::Local(body) => body.frame().await?.map(data).map_err(|error| error.to_string()),
        })
    }
}

/// An answer that comes line by line.
pub struct Lines {
    server: String,
    body: Opened,
    read: BytesMut,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Lines {
    /// The next line without its end; none at the answer's.
    ///
    /// # Errors
    /// [`ClientError`]: the connection broke, or a line has no end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end).freeze();
                self.read.advance(1);
                return Ok(Some(line));
            }
            if self.read.len() > MAX_LINE {
                let why = format!("a line longer than {MAX_LINE} bytes");
                return Err(ClientError::Unexpected { server: self.server.clone(), why });
            }
            match self.body.piece().await {
                Some(Ok(data)) => self.read.extend_from_slice(&data),
                Some(Err(cause)) => {
                    return Err(ClientError::Unreachable { server: self.server.clone(), cause });
                }
                None => return Ok((!self.read.is_empty()).then(|| self.read.split().freeze())),
            }
        }
    }
}

/// An error with its causes: the pool's own says only that it failed.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A path segment with what must not stand in one percent-encoded.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A JSON body.
pub(crate) fn body(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).expect("the API's types have text keys and no failing serializer").into()
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::*;
    use axum::response::IntoResponse;
    use axum::routing::get;

    fn role() -> Router {
        Router::new()
            .route("/ok", get(|| async { axum::Json(7) }))
            .route(
                "/no",
                get(|| async {
                    let body = r#"{"title":"taken","status":409,"detail":"it is taken; ask its owner","code":"MW5021","owner":"a"}"#;
                    (StatusCode::CONFLICT, body).into_response()
                }),
            )
            .route("/text", get(|| async { (StatusCode::BAD_REQUEST, "plain words\n") }))
    }

    async fn same_answers(client: Client) {
        assert_eq!(client.json::<u32>(Method::GET, "/ok", &[], Bytes::new()).await.unwrap(), 7);
        let error = client.send(Method::GET, "/no", &[], Bytes::new()).await.unwrap_err();
        assert_eq!((error.status(), error.code()), (Some(StatusCode::CONFLICT), Some("MW5021")));
        assert!(error.to_string().ends_with("409 Conflict: it is taken; ask its owner (MW5021)"), "{error}");
        let error = client.send(Method::GET, "/text", &[], Bytes::new()).await.unwrap_err();
        assert!(error.to_string().ends_with("plain words"), "{error}");
        let error = client.json::<String>(Method::GET, "/ok", &[], Bytes::new()).await.unwrap_err();
        assert!(matches!(error, ClientError::Unexpected { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_socket_and_a_direct_call_give_the_same_answers() {
        same_answers(Client::in_memory("role", role())).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, role()).await });
        same_answers(Client::http(&base).unwrap()).await;
        server.abort();
        _ = server.await;
        let error =
            Client::http(&base).unwrap().send(Method::GET, "/ok", &[], Bytes::new()).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert!(Client::http("https://x").is_err() && Client::http("x:1").is_err());
        assert!(Client::of("unix:").is_err() && Client::of("x:1").is_err() && Client::of(&base).is_ok());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, role()).await });
        same_answers(Client::of(&format!("unix:{}", path.display())).unwrap()).await;
        server.abort();
    }

    /// An answer that has begun and does not go on.
    struct Begins(bool);

    impl hyper::body::Body for Begins {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            if std::mem::replace(&mut self.0, true) {
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(hyper::body::Frame::data(Bytes::from_static(b"one\n")))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_accepts_and_says_nothing_is_not_waited_for_longer_than_there_is_patience() {
        let (patience, hour) = (Duration::from_secs(30), Duration::from_secs(3_600));
        let silent = Router::new()
            .route("/", get(std::future::pending::<()>))
            .route("/begins", get(|| async { Body::new(Begins(false)) }));
        let client = Client::in_memory("role", silent).with_patience(patience);
        for (client, seconds) in [(client.clone(), 30), (client.that_waits(Duration::from_secs(600)), 630)] {
            for path in ["/", "/begins"] {
                let began = tokio::time::Instant::now();
                let sent = client.send(Method::GET, path, &[], Bytes::new());
                let error = tokio::time::timeout(hour, sent).await.expect("it gives up").unwrap_err();
                assert!(began.elapsed().as_secs().abs_diff(seconds) <= 1, "{path}: {:?}", began.elapsed());
                let told = error.to_string();
                assert!(told.contains(&format!("nothing has come from it for {seconds}s")), "{told}");
                assert!(error.is_temporary());
            }
        }
        let error = client.lines(Method::GET, "/", Bytes::new()).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        let mut lines = client.lines(Method::GET, "/begins", Bytes::new()).await.unwrap();
        assert_eq!(lines.next().await.unwrap().as_deref(), Some(&b"one"[..]));
        let later = tokio::time::timeout(hour, lines.next()).await;
        assert!(later.is_err(), "what comes line by line may pause");
    }

    #[test]
    fn a_segment_cannot_leave_its_place() {
        assert_eq!(segment("a/b?c#d%é"), "a%2Fb%3Fc%23d%25%C3%A9");
    }
}
