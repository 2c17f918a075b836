//! The question: a request as its sender would describe it.

use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use meshwork_base::SpiffeId;
use meshwork_decision::{OwnedRequest, Snapshot, split_authority};
use meshwork_process::Problem;
use serde::Deserialize;

use crate::codes;

/// The body of `POST /v1/explain`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Ask {
    /// Host, with or without a port.
    pub(super) host: String,
    /// Absent: `GET`.
    pub(super) method: Option<String>,
    /// Path with an optional query; absent: `/`.
    pub(super) path: Option<String>,
    /// Names and values, in order.
    #[serde(default)]
    pub(super) headers: Vec<(String, String)>,
    /// The port of this listener, `NAMESPACE/GATEWAY/LISTENER`.
    pub(super) listener: Option<String>,
    /// The port of a gateway.
    pub(super) port: Option<u16>,
    /// Over TLS.
    #[serde(default)]
    pub(super) https: bool,
    /// The name in the handshake; absent: the host.
    pub(super) sni: Option<String>,
    /// Who asks, from within the mesh: a SPIFFE ID, or `NAMESPACE/WORKLOAD`.
    pub(super) from: Option<String>,
}

impl Ask {
    /// Its method.
    pub(super) fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("GET")
    }

    /// Its path, with its query.
    pub(super) fn path(&self) -> &str {
        self.path.as_deref().unwrap_or("/")
    }

    /// The host as proxies read it: an empty port is none.
    pub(super) fn authority(&self) -> &str {
        self.host.strip_suffix(':').unwrap_or(&self.host)
    }

    /// The request as decisions see it.
    pub(super) fn request(&self, snapshot: &Snapshot) -> Result<OwnedRequest, Problem> {
        let (host, port) = split_authority(self.authority());
        if host.is_empty() || host.contains(['/', ' ']) {
            return Err(bad("host", "a name or address, as shop.example or shop.example:8080"));
        }
        let method = self.method();
        Method::from_bytes(method.as_bytes()).map_err(|_| bad("method", "a method, as GET"))?;
        let path = self.path();
        if !(path.starts_with('/') || path == "*") {
            return Err(bad("path", "a path that begins with /"));
        }
        let mut request = OwnedRequest::get(self.authority(), path).method(method);
        request.port = port;
        for (name, value) in &self.headers {
            let valid =
                HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
            if !valid {
                return Err(bad("headers", &format!("fields of HTTP, which `{name}: {value}` is none of")));
            }
            request = request.with_header(name, value);
        }
        request.peer = self.from.as_deref().map(|from| spiffe_id(from, snapshot)).transpose()?;
        Ok(request)
    }
}

/// Who calls, from a SPIFFE ID or `NAMESPACE/WORKLOAD`.
pub(super) fn spiffe_id(from: &str, snapshot: &Snapshot) -> Result<SpiffeId, Problem> {
    let full = match from.split_once('/') {
        _ if from.starts_with("spiffe://") => from.to_owned(),
        Some((namespace, workload)) => {
            let Some(bundle) = snapshot.bundles().next() else {
                return Err(bad("from", "a whole SPIFFE ID, since no trust domain is known here"));
            };
            format!("spiffe://{}/ns/{namespace}/sa/{workload}", bundle.trust_domain)
        }
        None => return Err(bad("from", "a SPIFFE ID, or NAMESPACE/WORKLOAD")),
    };
    SpiffeId::parse(&full).map_err(|error| bad("from", &format!("a SPIFFE ID: {error}")))
}

pub(super) fn bad(name: &str, right: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad parameter")
        .detail(format!("`{name}` must be {right}"))
        .code(codes::BAD_PARAMETER)
        .with("parameter", name)
}
