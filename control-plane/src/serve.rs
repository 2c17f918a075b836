//! The API port (15014) of a control plane that is a process of its own: the API, metrics, readiness, log level.
//!
//! Who may call: on a loopback address everybody on this machine, elsewhere only who has the token. `/healthz/*` and
//! `/metrics` answer probes and scrapers without one, as every process's do. A Unix socket beside the port is for the
//! user whose process this is: the file's mode is what keeps others out, and no token is asked for.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use meshwork_base::Code;
use meshwork_process::admin::admin_routes;
use meshwork_process::ports::{self, Bounds};
use meshwork_process::{AdminState, Observed, Problem, is_called_by_address};
use sha2::{Digest as _, Sha256};
use tokio::net::UnixListener;
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
    tasks: Vec<AbortHandle>,
    socket: Option<PathBuf>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        // Who calls afterwards learns that nobody is there, also from a file that stayed.
        drop(self.socket.take().map(std::fs::remove_file));
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
        let observed = Observed::new("control-plane", &state.metrics, plane.hub().clock());
        let routes =
            admin_routes(state, observed.routes(plane.router())).layer(from_fn_with_state(guard, admit));
        let task = tokio::spawn(ports::serve(listener, routes, Bounds::api())).abort_handle();
        Ok(Self { address, tasks: vec![task], socket: None })
    }

    /// Serves the same at a Unix socket (mode 0600) too. Where that cannot be made, as in a folder whose name is too
    /// long for one, the log says so and the port is what there is.
    #[must_use]
    pub fn with_socket(mut self, plane: &ControlPlane, state: AdminState, path: &Path) -> Self {
        match bind_socket(path) {
            Ok(listener) => {
                let observed = Observed::new("control-plane", &state.metrics, plane.hub().clock());
                let routes = admin_routes(state, observed.routes(plane.router()));
                let serving = tokio::spawn(ports::serve(listener, routes, Bounds::api()));
                self.tasks.push(serving.abort_handle());
                self.socket = Some(path.to_owned());
            }
            Err(error) => tracing::warn!(
                path = %path.display(), %error,
                "the API has no socket there and is called at its port; choose a shorter --data-dir, or one that is yours"
            ),
        }
        self
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A socket that only its owner may connect to. It comes to its name when its mode is right, in place of one that a
/// process before this has left.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let staged = path.with_file_name(name);
    match std::fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&staged)?;
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&staged, path)?;
    Ok(listener)
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
            None => is_called_by_address(request),
        }
    }
}

#[cfg(test)]
mod tests;
