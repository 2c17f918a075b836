//! The API port (15014) of a control plane that is a process of its own: the API, metrics, readiness, log level.
//!
//! Who may call: on a loopback address everybody on this machine, elsewhere only who has the token. `/healthz/*` and
//! `/metrics` answer probes and scrapers without one, as every process's do.

use std::io;
use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use meshwork_base::Code;
use meshwork_process::admin::admin_routes;
use meshwork_process::{AdminState, Problem};
use sha2::{Digest as _, Sha256};
use tokio::task::AbortHandle;

use crate::{ControlPlane, codes};

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Anybody could make join tokens.
    #[error(
        "the API would listen on {address}, where others than this machine can reach it, without a token; give one, or listen on 127.0.0.1"
    )]
    Open {
        /// Where.
        address: SocketAddr,
    },
    /// The port.
    #[error("the API cannot listen on {address}: {error}; choose another address or stop what listens there")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

impl ApiError {
    /// Its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Open { .. } => codes::OPEN_API,
            Self::Bind { .. } => codes::TRUST_ANCHOR,
        }
    }
}

/// The running server; dropping it stops it.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a caller has to bring.
#[derive(Clone)]
struct Guard {
    /// SHA-256 of the token, so that comparing takes the same time for all lengths.
    token: Option<[u8; 32]>,
}

impl ApiServer {
    /// Serves a control plane's API with what every process has. With a token, callers must bring it
    /// (`Authorization: Bearer TOKEN`), also on loopback.
    ///
    /// # Errors
    /// [`ApiError::Open`] when the address is not loopback and there is no token; [`ApiError::Bind`].
    pub async fn start(
        plane: &ControlPlane,
        state: AdminState,
        listen: SocketAddr,
        token: Option<&str>,
    ) -> Result<Self, ApiError> {
        let token = token.map(str::trim).filter(|token| !token.is_empty());
        if token.is_none() && !listen.ip().is_loopback() {
            return Err(ApiError::Open { address: listen });
        }
        let bind = |error| ApiError::Bind { address: listen, error };
        let listener = tokio::net::TcpListener::bind(listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let guard = Guard { token: token.map(|token| <[u8; 32]>::from(Sha256::digest(token))) };
        let routes = admin_routes(state, plane.router()).layer(from_fn_with_state(guard, admit));
        // An accept error is retried inside; serving itself does not fail.
        let task = tokio::spawn(async move { drop(axum::serve(listener, routes).await) }).abort_handle();
        Ok(Self { address, task })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn admit(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_public = path.starts_with("/healthz/") || path == "/metrics";
    if is_public || guard.admits(&request) {
        return next.run(request).await;
    }
    let refused = |status, why: &str| Problem::new(status, "not for this caller").detail(why);
    match guard.token {
        Some(_) => {
            let problem =
                refused(StatusCode::UNAUTHORIZED, "bring the API's token: `Authorization: Bearer TOKEN`");
            let ask = [(header::WWW_AUTHENTICATE, "Bearer")];
            (ask, problem.code(codes::UNAUTHORIZED)).into_response()
        }
        None => {
            let why = "without a token this API is called by an IP address or as localhost, so that no page of another site can call it through a browser; give the API a token, or correct the Host header";
            refused(StatusCode::FORBIDDEN, why).code(codes::UNAUTHORIZED).into_response()
        }
    }
}

impl Guard {
    fn admits(&self, request: &Request) -> bool {
        match &self.token {
            Some(wanted) => {
                let brought =
                    request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
                let token = brought.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
                verify_slices_are_equal(&Sha256::digest(token.trim()), wanted).is_ok()
            }
            // A name that an attacker's DNS server points at this machine makes a page of theirs "same origin".
            None => host(request).is_some_and(|host| host == "localhost" || host.parse::<IpAddr>().is_ok()),
        }
    }
}

/// The host that was called, without its port.
fn host(request: &Request) -> Option<String> {
    let named = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
    let authority: Uri = named.map_or_else(|| Ok(request.uri().clone()), str::parse).ok()?;
    let host = authority.host()?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
