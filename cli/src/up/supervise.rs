//! Keeping processes alive: what ends is started again, at once when it had run well or was told to end, else after a pause
//! that grows while it keeps ending.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use meshwork_api::Client;
use meshwork_base::{Clock, ThreadRng};
use meshwork_xds::client::Backoff;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::UpError;
use super::pids::{self, Process};
use super::plan::Task;
use crate::private;

/// A process that ran so long has started well: it is started again without a pause, and the next pause is short again.
const RAN_WELL: Duration = Duration::from_secs(10);
/// A process that ended so often before it was ready will not be.
const HOPELESS: usize = 4;
/// How often readiness is asked for.
const PROBE: Duration = Duration::from_millis(25);

/// What becomes known of a supervised process.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) name: String,
    pub(crate) what: What,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// It answers that it is ready; its process ids are written down.
    Ready,
    /// It ended by itself.
    Ended(String),
    /// There is no process, for this reason; it says nothing itself.
    Unable(String),
}

/// A process under supervision. Dropping it leaves the process alone.
pub(crate) struct Supervised {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Supervised {
    /// Starts a process and keeps it.
    pub(crate) fn start(
        task: Task,
        data_dir: &Path,
        patience: Duration,
        clock: Arc<dyn Clock>,
        news: mpsc::Sender<News>,
    ) -> Self {
        let (stop, told) = watch::channel(false);
        let folder = data_dir.join(&task.name);
        let keeper = Keeper { task, folder, patience, clock, news, told, was_ready: AtomicBool::new(false) };
        Self { stop, task: tokio::spawn(keeper.keep()) }
    }

    /// Ends the process: it may finish what it does, for as long as its patience is; returns when it is gone.
    pub(crate) async fn stop(self) {
        // A keeper that is gone has nothing to stop.
        let _ = self.stop.send(true);
        drop(self.task.await);
    }
}

struct Keeper {
    task: Task,
    folder: PathBuf,
    patience: Duration,
    clock: Arc<dyn Clock>,
    news: mpsc::Sender<News>,
    told: watch::Receiver<bool>,
    /// Whether the process that runs, or ran last, has become ready.
    was_ready: AtomicBool,
}

/// Why a process is no more.
enum End {
    Stopped,
    Ended(ExitStatus),
    Failed(std::io::Error),
}

impl Keeper {
    async fn keep(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut rng = ThreadRng::new();
        loop {
            let began = self.clock.now();
            self.was_ready.store(false, Ordering::Relaxed);
            let (what, as_told) = match self.once().await {
                End::Stopped => return,
                End::Ended(status) => (What::Ended(format!("it ended with {status}")), status.success()),
                End::Failed(error) => (What::Unable(format!("it cannot be started: {error}")), false),
            };
            self.tell(what).await;
            if as_told && self.was_ready.load(Ordering::Relaxed) {
                // Somebody restarts it, however often: that is no failure to back off from.
                backoff.reset();
            }
            if self.clock.now().since(began) >= RAN_WELL {
                // Whoever calls it waits for it.
                backoff.reset();
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next(&mut rng)) => {}
                _ = self.told.wait_for(|told| *told) => return,
            }
        }
    }

    async fn tell(&self, what: What) {
        // Nobody listens any more when all are being stopped.
        let _ = self.news.send(News { name: self.task.name.clone(), what }).await;
    }

    async fn once(&mut self) -> End {
        let mut child = match self.place_is_free().and_then(|()| self.spawn()) {
            Ok(child) => child,
            Err(error) => return End::Failed(error),
        };
        let mut told = self.told.clone();
        let ended = tokio::select! {
            status = child.wait() => Some(status),
            () = self.watch_readiness() => unreachable!("it watches for ever"),
            _ = told.wait_for(|told| *told) => None,
        };
        let end = match ended {
            Some(Ok(status)) => End::Ended(status),
            Some(Err(error)) => End::Failed(error),
            None => {
                self.end(&mut child).await;
                End::Stopped
            }
        };
        drop(std::fs::remove_file(self.folder.join("pid")));
        end
    }

    /// Whoever answers there must be the process that is started now: somebody else's answer would be taken for its own.
    fn place_is_free(&self) -> std::io::Result<()> {
        let taken = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::AddrInUse => std::io::Error::other(format!(
                "another process listens on {}; end it, or choose another --base-address",
                self.task.ready
            )),
            _ => error,
        };
        std::net::TcpListener::bind(self.task.ready).map(drop).map_err(taken)
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let child = command(&self.task, &self.folder)?.stdin(Stdio::null()).spawn()?;
        note(&child, &self.folder)?;
        Ok(child)
    }

    /// Tells once that the process is ready.
    async fn watch_readiness(&self) {
        let url = format!("http://{}", self.task.ready);
        if let Ok(client) = Client::http(&url) {
            until_answers(&client, "/healthz/ready").await;
            self.was_ready.store(true, Ordering::Relaxed);
            self.tell(What::Ready).await;
        }
        std::future::pending::<()>().await;
    }

    async fn end(&self, child: &mut Child) {
        let process = child.id().and_then(Process::of);
        if let Some(process) = process {
            process.signal(Signal::TERM);
        }
        if tokio::time::timeout(self.patience, child.wait()).await.is_err() {
            drop(child.kill().await);
        }
    }
}

/// What starts a process of the platform, with its folder and its log.
pub(crate) fn command(task: &Task, folder: &Path) -> std::io::Result<Command> {
    private::folder(folder).map_err(std::io::Error::other)?;
    let log = OpenOptions::new().append(true).create(true).open(folder.join("log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    // What the user has set for commands is not meant for these processes, but for where all of them send spans.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MESHWORK_") && name != "MESHWORK_OTLP_ENDPOINT" {
            command.env_remove(name);
        }
    }
    command
        .args(&task.arguments)
        .envs(task.environment.iter().map(|(name, value)| (name, value)))
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C reaches us alone: we end the others in order.
        .process_group(0);
    Ok(command)
}

/// Writes down in its folder that it runs.
pub(crate) fn note(child: &Child, folder: &Path) -> std::io::Result<()> {
    match child.id().and_then(Process::of) {
        Some(process) => pids::write(&folder.join("pid"), process).map_err(std::io::Error::other),
        None => Ok(()),
    }
}

/// Asks until the answer is good.
pub(crate) async fn until_answers(client: &Client, path: &str) {
    while client.send(http::Method::GET, path, &[], Bytes::new()).await.is_err() {
        tokio::time::sleep(PROBE).await;
    }
}

/// What a process ends with, or what it says while it does not begin.
fn tells_why(line: &str) -> bool {
    line.starts_with("error: ") || line.contains("not started: ")
}

/// The last lines of a process's log, for who asks why.
pub(crate) fn last_words(data_dir: &Path, name: &str) -> String {
    let text = std::fs::read(data_dir.join(name).join("log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let errors: Vec<&str> = text.lines().rev().take(20).filter(|line| tells_why(line)).take(1).collect();
    errors.first().map_or_else(|| "it says nothing".to_owned(), |line| (*line).to_owned())
}

/// Waits until every one of these has said that it is ready.
///
/// # Errors
/// [`UpError::NotReady`] names the first that has not, when time is up.
pub(crate) async fn all_ready(
    names: &[String],
    news: &mut mpsc::Receiver<News>,
    data_dir: &Path,
    (timeout, deadline): (Duration, tokio::time::Instant),
    mut tell: impl FnMut(&News),
) -> Result<(), UpError> {
    let mut waiting: Vec<&String> = names.iter().collect();
    // Of whom, how, and whether a process has run.
    let mut ends: Vec<(String, String, bool)> = Vec::new();
    let log = |name: &str| data_dir.join(name).join("log");
    while let Some(first) = waiting.first() {
        let Ok(Some(one)) = tokio::time::timeout_at(deadline, news.recv()).await else {
            let name = (*first).clone();
            let ended = ends.iter().rev().find(|(of, ..)| *of == name);
            let how = ended.map_or("it does not answer", |(_, how, _)| how.as_str());
            let why = reason(how, ended.is_none_or(|(_, _, has_run)| *has_run), data_dir, &name);
            return Err(UpError::NotReady { log: log(&name), name, seconds: timeout.as_secs(), why });
        };
        tell(&one);
        let (how, has_run) = match one.what {
            What::Ready => {
                waiting.retain(|name| **name != one.name);
                continue;
            }
            What::Ended(how) => (how, true),
            What::Unable(how) => (how, false),
        };
        ends.push((one.name.clone(), how.clone(), has_run));
        if ends.iter().filter(|(of, ..)| *of == one.name).count() >= HOPELESS {
            let why = reason(&how, has_run, data_dir, &one.name);
            return Err(UpError::Fails { log: log(&one.name), name: one.name, why });
        }
    }
    Ok(())
}

/// Why it is not there; its last words are an earlier process's if none has run.
fn reason(how: &str, has_run: bool, data_dir: &Path, name: &str) -> String {
    if has_run { format!("{how}, and says: {}", last_words(data_dir, name)) } else { how.to_owned() }
}
