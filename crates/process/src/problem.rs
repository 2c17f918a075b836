//! API errors as RFC 9457 asks: `application/problem+json`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use meshwork_base::Code;
use serde_json::{Map, Value, json};

/// An error of an HTTP API. All roles answer with it.
///
/// ```
/// use axum::http::StatusCode;
/// use meshwork_base::Code;
/// use meshwork_process::Problem;
///
/// let problem = Problem::new(StatusCode::NOT_FOUND, "no such service")
///     .detail("service default/reviews is not registered")
///     .code(Code::new(5001))
///     .with("service", "default/reviews");
/// assert_eq!(problem.to_json()["status"], 404);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    title: String,
    detail: Option<String>,
    code: Option<Code>,
    extensions: Map<String, Value>,
}

impl Problem {
    /// A problem; `title` is the same for every occurrence of its kind.
    #[must_use]
    pub fn new(status: StatusCode, title: impl Into<String>) -> Self {
        Self { status, title: title.into(), detail: None, code: None, extensions: Map::new() }
    }

    /// What is wrong this time and what to do.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The code whose page explains it; becomes the member `type`, and `code`.
    #[must_use]
    pub const fn code(mut self, code: Code) -> Self {
        self.code = Some(code);
        self
    }

    /// One more member (RFC 9457, section 3.2). The standard's own members cannot be replaced by it.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extensions.insert(name.to_owned(), value.into());
        self
    }

    /// The status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The body.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut body = self.extensions.clone();
        let kind = self
            .code
            .map_or_else(|| "about:blank".to_owned(), |c| format!("https://meshwork.dev/errors/{c}"));
        body.insert("type".to_owned(), json!(kind));
        body.insert("title".to_owned(), json!(self.title));
        body.insert("status".to_owned(), json!(self.status.as_u16()));
        if let Some(detail) = &self.detail {
            body.insert("detail".to_owned(), json!(detail));
        }
        if let Some(code) = self.code {
            body.insert("code".to_owned(), json!(code.to_string()));
        }
        Value::Object(body)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let kind = HeaderValue::from_static("application/problem+json");
        (self.status, [(header::CONTENT_TYPE, kind)], self.to_json().to_string()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_the_members_of_the_standard() {
        let problem = Problem::new(StatusCode::CONFLICT, "name is taken")
            .with("status", "mine")
            .with("owner", "team-a");
        assert_eq!(
            problem.to_json(),
            json!({"type": "about:blank", "title": "name is taken", "status": 409, "owner": "team-a"})
        );
        let coded = problem.code(Code::new(42)).detail("x").to_json();
        assert_eq!(coded["type"], "https://meshwork.dev/errors/MW0042");
        assert_eq!((&coded["code"], &coded["detail"]), (&json!("MW0042"), &json!("x")));
    }

    #[test]
    fn is_sent_with_its_status_and_media_type() {
        let response = Problem::new(StatusCode::NOT_FOUND, "gone").into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
}
