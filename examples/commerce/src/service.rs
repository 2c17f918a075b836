//! What every service's process has: settings, JSON log, address, signals, drain.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// How long requests in flight may take once the process was told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a service stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}; set HOST and PORT to a free address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The state cannot be used.
    #[error(transparent)]
    Database(#[from] crate::db::DbError),
    /// A file to start with cannot be used.
    #[error(transparent)]
    Published(#[from] crate::published::PublishedError),
    /// An address of another service cannot be understood.
    #[error(transparent)]
    Address(#[from] crate::client::AddressError),
    /// The gRPC server ended.
    #[error("the gRPC server ended: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// Anything of the system's.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where a service listens. The port's default is the service's own.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Host {
    /// Address to listen on.
    #[arg(long, env = "HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,
}

/// What a service with state starts from.
#[derive(Clone, Debug, clap::Args)]
pub struct State {
    /// Folder for the service's database; by default `.commerce/SERVICE` in the working directory.
    #[arg(long, env = "DATA_DIR")]
    pub data_dir: Option<PathBuf>,

    /// Published files to load at start, beside the shop's own catalogue; separated by ':' in the variable.
    #[arg(long = "import", env = "COMMERCE_IMPORT", value_delimiter = ':')]
    pub import: Vec<PathBuf>,
}

impl State {
    /// The database file of `service`.
    #[must_use]
    pub fn database(&self, service: &str) -> PathBuf {
        let folder = self.data_dir.clone().unwrap_or_else(|| PathBuf::from(".commerce").join(service));
        folder.join(format!("{service}.sqlite"))
    }

    /// The files to import; an empty variable means none.
    pub fn imports(&self) -> impl Iterator<Item = &PathBuf> {
        self.import.iter().filter(|path| !path.as_os_str().is_empty())
    }
}

/// Runs a service until it stops; JSON log on stderr, level by `RUST_LOG`. One thread is plenty for a shop's service and
/// keeps its memory small.
pub fn run<F>(service: &'static str, main: impl FnOnce(Shutdown) -> F) -> ExitCode
where
    F: Future<Output = Result<(), ServiceError>>,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // What cannot be written is lost. It would be told on the same stderr, and that panics.
        .log_internal_errors(false)
        .init();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServiceError::Io)
        .and_then(|runtime| runtime.block_on(async { main(Shutdown::on_signals()?).await }));
    match result {
        Ok(()) => {
            tracing::info!(service, "stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(service, %error, "cannot go on");
            ExitCode::FAILURE
        }
    }
}

/// Tells the parts of a process that it is to stop.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// A shutdown that SIGTERM and SIGINT begin; a second signal ends the process at once.
    fn on_signals() -> io::Result<Self> {
        let (begin, shutdown) = Self::manual();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            for first in [true, false] {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                if !first {
                    std::process::exit(1);
                }
                tracing::info!("stopping: requests in flight are finished, new ones refused");
                begin.send_replace(true);
            }
        });
        Ok(shutdown)
    }

    /// A shutdown that begins when `true` is sent, or when the sender is dropped.
    #[must_use]
    pub fn manual() -> (watch::Sender<bool>, Self) {
        let (begin, receiver) = watch::channel(false);
        (begin, Self(receiver))
    }

    /// Returns when it begins, at once if it has begun.
    pub async fn begun(mut self) {
        // An error means that the sender is gone, and with it whoever could have let us go on.
        let _ = self.0.wait_for(|begun| *begun).await;
    }

    /// Whether it has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Runs a server that stops by itself on this signal, but no longer than the drain timeout after it.
    pub async fn bounded<T>(self, server: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            result = server => Some(result),
            () = async { self.begun().await; tokio::time::sleep(DRAIN_TIMEOUT).await } => {
                tracing::warn!(seconds = DRAIN_TIMEOUT.as_secs(), "requests were still in flight at the drain timeout");
                None
            }
        }
    }
}

/// Binds, and says so in the log: who started us with port 0 reads the address there.
///
/// # Errors
/// [`ServiceError::Listen`].
pub async fn listen(service: &str, host: Host, port: u16) -> Result<TcpListener, ServiceError> {
    let address = SocketAddr::new(host.host, port);
    let listener =
        TcpListener::bind(address).await.map_err(|source| ServiceError::Listen { address, source })?;
    tracing::info!(service, address = %listener.local_addr()?, "listening");
    Ok(listener)
}

/// Serves HTTP/1.1 and h2c until the shutdown, then finishes what is in flight.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) -> Result<(), ServiceError> {
    let router = router.layer(axum::middleware::from_fn(crate::web::log_request));
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        // Answers are written whole; waiting for more only adds latency. A socket that refuses is slower, not wrong.
        let _ = stream.set_nodelay(true);
    });
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().begun());
    shutdown.bounded(server.into_future()).await.transpose()?;
    Ok(())
}
