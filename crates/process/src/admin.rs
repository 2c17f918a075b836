//! The ports for operators: admin, metrics, readiness, on a thread of their own so that a busy worker never hides
//! how it fares.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::thread::JoinHandle;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use meshwork_telemetry::{Format, LogHandle, MetricsRegistry};
use tokio_util::sync::CancellationToken;

use crate::giving_back::keep_small;
use crate::local::by_address;
use crate::ports::{self, Bounds};
use crate::{Problem, Readiness};

/// Where the three servers listen; port 0 takes a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminAddresses {
    /// Everything, for this machine only: 127.0.0.1:15000.
    pub admin: SocketAddr,
    /// `/metrics` alone.
    pub metrics: Option<SocketAddr>,
    /// `/healthz/ready` and `/healthz/live` alone.
    pub ready: Option<SocketAddr>,
}

impl AdminAddresses {
    /// A proxy's standard ports: admin 15000 on loopback (on `listen` itself where that is a loopback address),
    /// metrics 15020 and readiness 15021 on `listen`.
    #[must_use]
    pub const fn standard(listen: IpAddr) -> Self {
        let admin = if listen.is_loopback() { listen } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
        Self {
            admin: SocketAddr::new(admin, 15000),
            metrics: Some(SocketAddr::new(listen, 15020)),
            ready: Some(SocketAddr::new(listen, 15021)),
        }
    }
}

/// A proxy's flags for the three; they are of the process, whichever proxy it is.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct AdminArgs {
    /// Where the admin port listens [default: port 15000 of the proxy's own address if that is loopback, else of 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", env = "MESHWORK_ADMIN_ADDRESS")]
    pub admin_address: Option<SocketAddr>,

    /// Where metrics are scraped [default: port 15020 of the proxy's own address]
    #[arg(long, value_name = "ADDRESS", env = "MESHWORK_METRICS_ADDRESS")]
    pub metrics_address: Option<SocketAddr>,

    /// Where readiness is asked for [default: port 15021 of the proxy's own address]
    #[arg(long, value_name = "ADDRESS", env = "MESHWORK_READY_ADDRESS")]
    pub ready_address: Option<SocketAddr>,
}

impl AdminArgs {
    /// As the flags say, else the standard ports of a proxy that listens there.
    #[must_use]
    pub fn addresses(&self, listen: IpAddr) -> AdminAddresses {
        let standard = AdminAddresses::standard(listen);
        AdminAddresses {
            admin: self.admin_address.unwrap_or(standard.admin),
            metrics: self.metrics_address.or(standard.metrics),
            ready: self.ready_address.or(standard.ready),
        }
    }
}

/// What the servers show.
#[derive(Clone, Debug)]
pub struct AdminState {
    /// Whether the process should get work.
    pub readiness: Readiness,
    /// Its numbers.
    pub metrics: MetricsRegistry,
    /// Its log, whose level `PUT /loglevel` changes.
    pub log: Option<LogHandle>,
}

/// Why the servers cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Anybody could read and change what operators do.
    #[error(
        "the admin port would listen on {address}, where others than this machine can reach it, and it knows no callers; give it a loopback address"
    )]
    Open {
        /// Where.
        address: SocketAddr,
    },
    /// An address is taken or not ours.
    #[error(
        "the {what} port cannot listen on {address}: {source}; choose another address or stop what listens there"
    )]
    Bind {
        /// Which of the three.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The thread or its runtime could not be made.
    #[error("the admin thread cannot start: {0}; raise the limits of threads and open files")]
    Thread(io::Error),
}

/// The running servers; dropping it stops them.
#[derive(Debug)]
pub struct AdminServer {
    admin: SocketAddr,
    metrics: Option<SocketAddr>,
    ready: Option<SocketAddr>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl AdminServer {
    /// Binds all addresses, then serves them from a new thread. `extra` is merged into the admin port's routes.
    ///
    /// # Errors
    /// The admin port would be open to others, an address cannot be bound, or the thread not started.
    pub fn start(addresses: AdminAddresses, state: AdminState, extra: Router) -> Result<Self, AdminError> {
        if !addresses.admin.ip().is_loopback() {
            return Err(AdminError::Open { address: addresses.admin });
        }
        let admin = bind("admin", addresses.admin)?;
        let metrics = addresses.metrics.map(|a| bind("metrics", a)).transpose()?;
        let ready = addresses.ready.map(|a| bind("readiness", a)).transpose()?;
        let address = |l: &TcpListener| l.local_addr().expect("a bound socket has an address");
        let stop = CancellationToken::new();
        let mut server = Self {
            admin: address(&admin),
            metrics: metrics.as_ref().map(address),
            ready: ready.as_ref().map(address),
            stop: stop.clone(),
            thread: None,
        };
        let readiness = state.readiness.clone();
        let mut services = vec![(admin, by_address(admin_routes(state.clone(), extra)), Bounds::api())];
        services.extend(metrics.map(|l| (l, metrics_routes(state.clone()), Bounds::probes())));
        services.extend(ready.map(|l| (l, health_routes(state), Bounds::probes())));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Thread)?;
        let thread = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || runtime.block_on(serve(services, readiness, stop)))
            .map_err(AdminError::Thread)?;
        server.thread = Some(thread);
        Ok(server)
    }

    /// Where the admin port listens.
    #[must_use]
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Where the metrics port listens.
    #[must_use]
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Where the readiness port listens.
    #[must_use]
    pub const fn ready_address(&self) -> Option<SocketAddr> {
        self.ready
    }
}

fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, AdminError> {
    let bound = TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
    bound.map_err(|source| AdminError::Bind { what, address, source })
}

async fn serve(services: Vec<(TcpListener, Router, Bounds)>, readiness: Readiness, stop: CancellationToken) {
    tokio::spawn(async move {
        readiness.wait().await;
        keep_small().await;
    });
    for (listener, routes, bounds) in services {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "an admin port cannot be served");
                continue;
            }
        };
        tokio::spawn(ports::serve(listener, routes, bounds));
    }
    // Open connections end with the runtime: nothing here outlives the process.
    stop.cancelled().await;
}

/// The routes of the admin port, for a role that serves them on a port of its own. It brings what keeps others out.
pub fn admin_routes(state: AdminState, extra: Router) -> Router {
    process_routes(state).merge(extra).fallback(not_found)
}

/// What every process has, for a role whose API answers on the same port and says itself what is not there.
pub fn process_routes(state: AdminState) -> Router {
    let log = Router::new().route("/loglevel", get(log_level).put(set_log_level)).with_state(state.clone());
    health_routes(state.clone()).merge(metrics_routes(state)).merge(log)
}

fn health_routes(state: AdminState) -> Router {
    Router::new()
        .route("/healthz/live", get(|| async { "live\n" }))
        .route("/healthz/ready", get(ready))
        .with_state(state)
}

fn metrics_routes(state: AdminState) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(state)
}

async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such path").detail(
        "this port serves /healthz/live, /healthz/ready, /metrics and /loglevel, and what its role adds",
    )
}

async fn ready(State(state): State<AdminState>) -> Response {
    if state.readiness.is_ready() {
        return "ready\n".into_response();
    }
    let unmet = state.readiness.unmet();
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not ready")
        .detail(format!("not yet true: {}", state.readiness.reasons().join(", ")))
        .with("unmet", unmet)
        .into_response()
}

async fn metrics(State(state): State<AdminState>, headers: HeaderMap) -> Response {
    let format = Format::negotiate(headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()));
    ([(header::CONTENT_TYPE, format.content_type())], state.metrics.render(format)).into_response()
}

fn no_log() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no process log")
        .detail("this process does not write a log whose level can be changed")
}

async fn log_level(State(state): State<AdminState>) -> Result<String, Problem> {
    Ok(format!("{}\n", state.log.ok_or_else(no_log)?.filter()))
}

/// PUT and not POST: a page in a browser on this machine cannot send it without being asked first (CORS preflight).
async fn set_log_level(State(state): State<AdminState>, body: String) -> Result<String, Problem> {
    let log = state.log.ok_or_else(no_log)?;
    log.set(body.trim())
        .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, "invalid log filter").detail(e.to_string()))?;
    Ok(format!("{}\n", log.filter()))
}

#[cfg(test)]
mod tests;
