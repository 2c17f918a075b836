//! The application's life: it gets a port, is started when its sidecar is ready, is told to stop before its sidecar
//! ends, and never outlives it.
//!
//! The application leads a process group of its own, so that a signal reaches whatever it has started. When the sidecar
//! is killed, the kernel kills the application (`PR_SET_PDEATHSIG`).

use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use meshwork_process::descriptors::open_files_before;
use rustix::process::{Pid, Resource, Signal, kill_process_group, setrlimit};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// How often a port that does not accept yet is tried.
const PROBE: Duration = Duration::from_millis(20);
/// After how long the log says that an application still does not accept.
const SLOW_START: Duration = Duration::from_secs(10);

/// Why an application has no port, or cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// There is no command.
    #[error("no command was given; write it behind `--`, as in `-- node server.js`")]
    NoCommand,
    /// The system refuses to run it.
    #[error("`{command}` cannot be started: {error}; check that it is installed, executable and in PATH")]
    Start {
        /// As given.
        command: String,
        /// What the system said.
        error: io::Error,
    },
    /// No port is free, or the one that was asked for is not.
    #[error("the application's port {address} cannot be used: {error}; choose another --port or --address")]
    Port {
        /// Where it would listen.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The file that remembers the port.
    #[error("{} cannot be written: {error}; check that the data directory is writable and not full", path.display())]
    Remember {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The system lost track of the process.
    #[error("the application's end cannot be waited for: {0}")]
    Wait(io::Error),
}

/// How an application ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(ExitStatus);

impl Exit {
    /// What we exit with on its behalf: its own code, or 128 and the signal's number, as shells do.
    #[must_use]
    pub fn code(self) -> u8 {
        let code = self.0.code().or_else(|| self.0.signal().map(|signal| 128 + signal));
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is to be run, and what it is told.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program and its arguments; `{port}` in them becomes the port.
    pub command: Vec<OsString>,
    /// Where it is to listen.
    pub address: SocketAddr,
    /// The outbound side of the sidecar, for its calls.
    pub outbound: SocketAddr,
}

/// The port that an application listens on: the one asked for; else the one it had before, so that what others have
/// remembered of it stays true; else a free one, which is remembered.
///
/// # Errors
/// [`AppError`] when the port is taken or the directory not writable.
pub fn assign_port(data_dir: &Path, host: IpAddr, asked: Option<u16>) -> Result<SocketAddr, AppError> {
    let free = |port: u16| {
        let address = SocketAddr::new(host, port);
        let bound = TcpListener::bind(address).and_then(|listener| listener.local_addr());
        bound.map_err(|error| AppError::Port { address, error })
    };
    if let Some(port) = asked {
        return free(port);
    }
    let path = data_dir.join("app-port");
    let before = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    if let Some(Ok(address)) = before.map(free) {
        return Ok(address);
    }
    let address = free(0)?;
    std::fs::write(&path, format!("{}\n", address.port()))
        .map_err(|error| AppError::Remember { path, error })?;
    Ok(address)
}

/// A running application. Dropping it kills it.
#[derive(Debug)]
pub struct App {
    child: Child,
    group: Pid,
    address: SocketAddr,
}

impl App {
    /// Starts it. The calling thread must live as long as the sidecar: the kernel kills the application when the
    /// *thread* that started it ends.
    ///
    /// # Errors
    /// [`AppError::NoCommand`] or [`AppError::Start`].
    pub fn start(spec: &Spec) -> Result<Self, AppError> {
        let (program, arguments) = spec.command.split_first().ok_or(AppError::NoCommand)?;
        let failed = |error| AppError::Start { command: program.to_string_lossy().into_owned(), error };
        let port = spec.address.port().to_string();
        let mut command = Command::new(program);
        command
            .args(arguments.iter().map(|argument| with_port(argument, &port)))
            .env("PORT", &port)
            .env("HOST", spec.address.ip().to_string())
            .env("MESHWORK_OUTBOUND", format!("http://{}", spec.outbound))
            .env("HTTP_PROXY", format!("http://{}", spec.outbound))
            .env("http_proxy", format!("http://{}", spec.outbound))
            .process_group(0)
            .kill_on_drop(true);
        if io::stdin().is_terminal() {
            // A group in the background that reads from a terminal is stopped by the kernel.
            command.stdin(Stdio::null());
        }
        prepare(&mut command);
        let child = command.spawn().map_err(failed)?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let group = pid.ok_or_else(|| failed(io::Error::other("it has no process id")))?;
        Ok(Self { child, group, address: spec.address })
    }

    /// Its process id, which is also its group's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.group.as_raw_nonzero().get().cast_unsigned()
    }

    /// Waits until its port accepts connections; gives its end when that comes first.
    ///
    /// # Errors
    /// [`AppError::Wait`].
    pub async fn accepts(&mut self) -> Result<Option<Exit>, AppError> {
        let address = self.address;
        let probing = async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(PROBE).await;
            }
        };
        let warning = async {
            loop {
                tokio::time::sleep(SLOW_START).await;
                tracing::warn!(%address, "the application does not accept connections yet; it must listen on HOST and PORT");
            }
        };
        tokio::select! {
            exit = self.child.wait() => Ok(Some(self.ended(exit)?)),
            () = probing => Ok(None),
            () = warning => unreachable!("it warns for ever"),
        }
    }

    /// Waits for its end. What it has started ends with it. Cancelling this loses nothing.
    ///
    /// # Errors
    /// [`AppError::Wait`].
    pub async fn wait(&mut self) -> Result<Exit, AppError> {
        let exit = self.child.wait().await;
        self.ended(exit)
    }

    fn ended(&self, exit: io::Result<ExitStatus>) -> Result<Exit, AppError> {
        self.signal(Signal::KILL);
        exit.map(Exit).map_err(AppError::Wait)
    }

    /// Sends a signal to it and to what it has started.
    pub fn signal(&self, signal: Signal) {
        // Without members the group is gone, and there is nobody to tell.
        let _ = kill_process_group(self.group, signal);
    }

    /// Asks it to end, and after `patience` ends it.
    ///
    /// # Errors
    /// [`AppError::Wait`].
    pub async fn stop(
        &mut self,
        signal: Signal,
        patience: impl Future<Output = ()>,
    ) -> Result<Exit, AppError> {
        self.signal(signal);
        tokio::select! {
            exit = self.wait() => return exit,
            () = patience => {}
        }
        tracing::warn!(pid = self.pid(), "the application did not end in time: killed");
        self.signal(Signal::KILL);
        self.wait().await
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if self.child.id().is_some() {
            self.signal(Signal::KILL);
        }
    }
}

fn with_port(argument: &OsString, port: &str) -> OsString {
    match argument.to_str() {
        Some(text) if text.contains("{port}") => text.replace("{port}", port).into(),
        _ => argument.clone(),
    }
}

/// It dies with us, and may open as many files as we were let: more than it expects may break it.
#[expect(
    unsafe_code,
    reason = "what a child does between fork and exec can be said in no other way; app/tests.rs kills a parent"
)]
fn prepare(command: &mut Command) {
    let parent = rustix::process::getpid();
    let open_files = open_files_before();
    let between = move || {
        if let Some(limit) = open_files {
            setrlimit(Resource::Nofile, limit)?;
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before that line.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotConnected.into())
        }
    };
    // SAFETY: the closure makes three system calls and touches neither memory nor locks of the parent.
    unsafe {
        command.pre_exec(between);
    }
}

#[cfg(test)]
mod tests;
