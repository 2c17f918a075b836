//! What the HTTP services share: extractors that answer with problem documents, the request log.

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// The query string as `T`; what cannot be read is a 400 with the reason.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|e: QueryRejection| Problem::new(StatusCode::BAD_REQUEST, e.body_text()))
    }
}

/// The JSON body as `T`; what cannot be read keeps axum's status (400, 413, 415, 422) and says the reason.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        axum::Json::from_request(request, state)
            .await
            .map(|axum::Json(value)| Self(value))
            .map_err(|e: JsonRejection| Problem::new(e.status(), e.body_text()))
    }
}

/// One line per request when its answer begins.
pub async fn log_request(request: Request, next: Next) -> Response {
    let began = tokio::time::Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let request_id = text(request.headers(), "x-request-id");
    let traceparent = text(request.headers(), "traceparent");
    let response = next.run(request).await;
    let (status, micros) = (response.status().as_u16(), began.elapsed().as_micros());
    if path == "/healthz" {
        tracing::debug!(%method, path, status, micros, "request");
    } else {
        tracing::info!(%method, path, status, micros, request_id, traceparent, "request");
    }
    response
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Answer to a path that leads nowhere.
pub async fn not_found(uri: axum::http::Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("There is nothing at {}.", uri.path()))
}

/// Answer to a method that the path does not have.
pub async fn method_not_allowed(method: axum::http::Method, uri: axum::http::Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}.", uri.path()))
}
