//! The HTTP side: Consul's API, the registry's own, and what they share.

mod agent;
mod catalog;
mod health;
mod kv;
mod native;
mod register;
mod sessions;
mod shapes;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use meshwork_api::registry::INCARNATION;
use meshwork_process::Caller;
use serde::Serialize;

use crate::error::RegistryError;
use crate::fields::{Fields, Query};
use crate::service::Inner;

/// Longest body: a transaction of Consul's size, in base64.
const MAX_BODY: usize = 2 << 20;
/// Consul's defaults for blocking queries.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(600);

pub(crate) fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .merge(agent::routes())
        .merge(catalog::routes())
        .merge(health::routes())
        .merge(kv::routes())
        .merge(sessions::routes())
        .merge(native::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_route)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(inner)
}

async fn unknown_route(method: Method, uri: Uri) -> RegistryError {
    RegistryError::unknown(format!("this registry has no {method} {}", uri.path()))
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        if self.status().is_server_error() && !matches!(self, Self::Session { .. }) {
            tracing::error!(error = %self, "the registry could not serve a request");
        }
        self.problem().into_response()
    }
}

/// What handlers answer.
type Answer = Result<Response, RegistryError>;

/// A request, with its caller proven and its parts ready to be taken.
pub(crate) struct Call {
    inner: Arc<Inner>,
    caller: Caller,
    /// Which copy of an instance calls, where it says so.
    incarnation: Option<String>,
    query: Query,
    body: Bytes,
}

impl FromRequest<Arc<Inner>> for Call {
    type Rejection = Response;

    async fn from_request(request: Request, inner: &Arc<Inner>) -> Result<Self, Response> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| RegistryError::Unauthenticated.into_response())?;
        let incarnation = request.headers().get(INCARNATION).and_then(|value| value.to_str().ok());
        let incarnation = incarnation.map(str::to_owned);
        let query = Query::parse(request.uri().query()).map_err(IntoResponse::into_response)?;
        let body = Bytes::from_request(request, inner).await.map_err(IntoResponse::into_response)?;
        Ok(Self { inner: Arc::clone(inner), caller, incarnation, query, body })
    }
}

/// What a blocking query asks for.
#[derive(Clone, Copy, Debug)]
struct Blocking {
    index: u64,
    /// With the jitter that spares the registry a thousand answers at one moment.
    wait: Duration,
}

impl Call {
    /// Takes the parameters that every endpoint of Consul's has; ends the query. There is one datacenter, one
    /// namespace and one replica, so the consistency modes are all the same here.
    fn end(&mut self) -> Result<bool, RegistryError> {
        for mode in ["stale", "consistent", "cached", "near-cache"] {
            self.query.flag(mode);
        }
        let datacenter =
            self.query.text("dc").filter(|dc| !dc.is_empty() && *dc != self.inner.options.datacenter);
        if let Some(other) = datacenter {
            let here = &self.inner.options.datacenter;
            return Err(RegistryError::invalid(format!(
                "No path to datacenter {other:?}; this one is {here:?}"
            )));
        }
        for (name, allowed) in [("ns", "default"), ("partition", "default")] {
            let other = self.query.text(name).filter(|text| !text.is_empty() && text != allowed);
            if let Some(other) = other {
                return Err(RegistryError::invalid(format!(
                    "{name} {other:?} is not supported; leave it out"
                )));
            }
        }
        let pretty = self.query.flag("pretty");
        std::mem::take(&mut self.query).finish()?;
        Ok(pretty)
    }

    fn blocking(&mut self) -> Result<Blocking, RegistryError> {
        let index = self.query.number("index")?.unwrap_or(0);
        let wait = self.query.duration("wait")?.filter(|wait| !wait.is_zero()).unwrap_or(DEFAULT_WAIT);
        let wait = wait.min(MAX_WAIT);
        let most = u64::try_from(wait.as_nanos() / 16).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(self.inner.rng.lock().below(most));
        Ok(Blocking { index, wait: wait + jitter })
    }

    fn fields(&self, what: &str) -> Result<Fields, RegistryError> {
        Fields::body(what, &self.body)
    }
}

/// An answer in JSON with Consul's headers.
fn answer(index: Option<u64>, value: &impl Serialize, pretty: bool) -> Response {
    let encode = if pretty { serde_json::to_vec_pretty } else { serde_json::to_vec };
    let body = encode(value).expect("answers have text keys and no failing serializer");
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(index) = index {
        consul_headers(&mut headers, index);
    }
    (StatusCode::OK, headers, body).into_response()
}

fn consul_headers(headers: &mut HeaderMap, index: u64) {
    headers.insert("x-consul-index", HeaderValue::from(index));
    headers.insert("x-consul-knownleader", HeaderValue::from_static("true"));
    headers.insert("x-consul-lastcontact", HeaderValue::from_static("0"));
}

/// An answer without a body, as Consul gives to what succeeded and says nothing.
fn done() -> Response {
    StatusCode::OK.into_response()
}
