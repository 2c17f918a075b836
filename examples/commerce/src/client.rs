//! How one service of the shop reaches another: by its name through the mesh, or at an address of its own.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::problem::Problem;

/// Longest answer read from another service.
const MAX_BODY: usize = 4 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The headers that carry a request's identity through the shop, so that the mesh sees one trace.
pub const PROPAGATED: [&str; 4] = ["traceparent", "tracestate", "baggage", "x-request-id"];

/// An address that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{value:?} is no address for {what}: expected http://HOST:PORT")]
pub struct AddressError {
    what: String,
    value: String,
}

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The service's name, for messages.
    pub service: String,
    /// What the request says it wants: `Host` and `:authority`.
    pub authority: Authority,
    /// Where the connection goes when that is not the authority: the outbound side of a sidecar.
    pub via: Option<Authority>,
}

impl Target {
    /// `service` by name through `outbound` where there is one, else at `explicit`.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn new(service: &str, outbound: Option<&str>, explicit: &str) -> Result<Self, AddressError> {
        let service = service.to_owned();
        if let Some(outbound) = outbound.filter(|o| !o.is_empty()) {
            let authority = Authority::from_str(&service)
                .map_err(|_| AddressError { what: "a service name".into(), value: service.clone() })?;
            return Ok(Self { service, authority, via: Some(authority_of("MESHWORK_OUTBOUND", outbound)?) });
        }
        let authority = authority_of(&service, explicit)?;
        Ok(Self { service, authority, via: None })
    }

    /// The origin as a URI, for clients that want one.
    #[must_use]
    pub fn origin(&self) -> Uri {
        self.uri("/").expect("an authority and a slash make a URI")
    }

    fn uri(&self, path: &str) -> Result<Uri, http::Error> {
        Uri::builder().scheme("http").authority(self.authority.clone()).path_and_query(path).build()
    }

    /// What opens connections to it.
    #[must_use]
    pub fn connector(&self) -> Connector {
        Connector { to: self.via.clone().unwrap_or_else(|| self.authority.clone()) }
    }
}

fn authority_of(what: &str, value: &str) -> Result<Authority, AddressError> {
    let bare = value.strip_prefix("http://").unwrap_or(value).trim_end_matches('/');
    match Authority::from_str(bare) {
        Ok(authority) if !authority.as_str().contains('@') => Ok(authority),
        _ => Err(AddressError { what: what.to_owned(), value: value.to_owned() }),
    }
}

/// Connects to one place, whatever the request's authority says: names are the mesh's business.
#[derive(Clone, Debug)]
pub struct Connector {
    to: Authority,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let to = self.to.clone();
        Box::pin(async move {
            let host = to.host().trim_start_matches('[').trim_end_matches(']');
            let connect = TcpStream::connect((host, to.port_u16().unwrap_or(80)));
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| {
                io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {to} in time"))
            })??;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// Why another service gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer at all.
    #[error("{service} cannot be reached: {cause}")]
    Unreachable {
        /// The service.
        service: String,
        /// What happened, innermost cause last.
        cause: String,
    },
    /// No answer in time.
    #[error("{service} did not answer within {} ms", limit.as_millis())]
    Late {
        /// The service.
        service: String,
        /// The time it had.
        limit: Duration,
    },
    /// An answer that refuses.
    #[error("{service} answered {status}{}", detail(problem.as_deref()))]
    Refused {
        /// The service.
        service: String,
        /// Its status.
        status: StatusCode,
        /// Its reasons, where it gave some.
        problem: Option<Box<Problem>>,
    },
    /// An answer that makes no sense.
    #[error("{service} sent an answer that cannot be read: {cause}")]
    Garbled {
        /// The service.
        service: String,
        /// Why.
        cause: String,
    },
}

fn detail(problem: Option<&Problem>) -> String {
    problem.map_or(String::new(), |p| format!(": {}", p.detail))
}

/// A JSON client of one service. Cloning shares its connections.
#[derive(Clone, Debug)]
pub struct JsonClient {
    target: Target,
    client: Client<Connector, Full<Bytes>>,
    timeout: Duration,
}

impl JsonClient {
    /// A client that gives each call `timeout`.
    #[must_use]
    pub fn new(target: Target, timeout: Duration) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(8)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .build(target.connector());
        Self { target, client, timeout }
    }

    /// GETs a path with its query.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str, context: &HeaderMap) -> Result<T, CallError> {
        self.call(Method::GET, path, Bytes::new(), context).await
    }

    /// POSTs `body` as JSON.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        context: &HeaderMap,
    ) -> Result<T, CallError> {
        let body = serde_json::to_vec(body).map_err(|e| self.garbled(&e))?;
        self.call(Method::POST, path, body.into(), context).await
    }

    fn garbled(&self, cause: &impl ToString) -> CallError {
        CallError::Garbled { service: self.target.service.clone(), cause: cause.to_string() }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        context: &HeaderMap,
    ) -> Result<T, CallError> {
        let mut request = Request::new(Full::new(body));
        *request.uri_mut() = self.target.uri(path).map_err(|e| self.garbled(&e))?;
        let headers = request.headers_mut();
        headers.clone_from(context);
        headers.insert(header::ACCEPT, header::HeaderValue::from_static("application/json"));
        if method == Method::POST {
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        }
        *request.method_mut() = method;
        let (status, body) = tokio::time::timeout(self.timeout, self.exchange(request))
            .await
            .map_err(|_| CallError::Late { service: self.target.service.clone(), limit: self.timeout })??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| self.garbled(&e));
        }
        let problem = serde_json::from_slice(&body).ok().map(Box::new);
        Err(CallError::Refused { service: self.target.service.clone(), status, problem })
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), CallError> {
        let response = self
            .client
            .request(request)
            .await
            .map_err(|e| CallError::Unreachable { service: self.target.service.clone(), cause: chain(&e) })?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|e| self.garbled(&e))?;
        Ok((status, body.to_bytes()))
    }
}

/// An error with its causes: the outermost alone mostly says nothing.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |e| e.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The headers of `incoming` that calls made on its behalf must carry.
#[must_use]
pub fn propagated(incoming: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in PROPAGATED {
        for value in incoming.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    headers
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Propagated {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(propagated(&parts.headers)))
    }
}

/// [`propagated`], as an extractor.
#[derive(Clone, Debug)]
pub struct Propagated(pub HeaderMap);

/// Escapes `text` for a path segment or a query value (RFC 3986: all but the unreserved characters).
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_comes_first_and_the_service_keeps_its_name() {
        let meshed = Target::new("catalog", Some("http://127.0.0.5:15001"), "http://127.0.0.1:7101").unwrap();
        assert_eq!(meshed.origin().to_string(), "http://catalog/");
        assert_eq!(meshed.connector().to.as_str(), "127.0.0.5:15001");
        let alone = Target::new("catalog", Some(""), "http://127.0.0.1:7101/").unwrap();
        assert_eq!(alone.origin().to_string(), "http://127.0.0.1:7101/");
        assert_eq!(alone.connector().to.as_str(), "127.0.0.1:7101");
    }

    #[test]
    fn refuses_addresses_that_are_none() {
        for bad in ["https://x:1", "http://a b", "http://x/path", "http://u@x", ""] {
            assert!(Target::new("catalog", None, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn carries_the_trace_and_nothing_else() {
        let mut incoming = HeaderMap::new();
        for name in ["traceparent", "baggage", "x-request-id", "cookie", "authorization"] {
            incoming.insert(name, header::HeaderValue::from_static("v"));
        }
        let mut names: Vec<String> = propagated(&incoming).keys().map(ToString::to_string).collect();
        names.sort();
        assert_eq!(names, ["baggage", "traceparent", "x-request-id"]);
    }

    #[test]
    fn escapes_what_a_query_value_cannot_hold() {
        assert_eq!(escape("Tents & £5/ä~"), "Tents%20%26%20%C2%A35%2F%C3%A4~");
    }
}
