//! `meshwork run` of the mesh, with an application whose stdin and stdout are ours.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use meshwork_api::Client;
use meshwork_decision::simulator::State;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::LiveError;
use super::application::told;
use crate::up::pids;
use crate::up::plan::Task;
use crate::up::supervise::{command, note, until_answers};

/// A process that is not ready by then will not be.
pub(super) const READY: Duration = Duration::from_secs(60);
/// How long a process may take to end what it does.
const PATIENCE: Duration = Duration::from_secs(20);

/// See the module's text. Dropping it ends it without asking, and its application with it.
pub(super) struct Process {
    task: Task,
    folder: PathBuf,
    child: Child,
    heard: ChildStdin,
}

impl Process {
    /// Starts it; what its application takes is counted.
    pub(super) fn start(task: &Task, data_dir: &Path, taken: &Rc<Cell<u64>>) -> Result<Self, LiveError> {
        let failed = || LiveError::io(format!("the process {}", task.name));
        let folder = data_dir.join(&task.name);
        let mut command = command(task, &folder).map_err(failed())?;
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = piped.spawn().map_err(failed())?;
        note(&child, &folder).map_err(failed())?;
        let (Some(heard), Some(said)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed()(std::io::ErrorKind::BrokenPipe.into()));
        };
        spawn_local(count(said, Rc::clone(taken)));
        Ok(Self { task: task.clone(), folder, child, heard })
    }

    /// Waits until it says that it is ready.
    pub(super) async fn ready(&mut self) -> Result<(), LiveError> {
        let client = Client::http(&format!("http://{}", self.task.ready))?;
        let (name, log) = (self.task.name.clone(), self.log());
        tokio::select! {
            ended = self.ended() => Err(ended),
            ready = timeout(READY, until_answers(&client, "/healthz/ready")) => {
                ready.map_err(|_| LiveError::NotReady { name, within: READY, log })
            }
        }
    }

    /// Waits for its end, which nobody has asked for.
    pub(super) async fn ended(&mut self) -> LiveError {
        let how = self.child.wait().await;
        let how = how.map_or_else(|error| error.to_string(), |status| status.to_string());
        LiveError::Ended { name: self.task.name.clone(), how, log: self.log() }
    }

    /// Tells the application how it is from now on.
    pub(super) async fn tell(&mut self, state: State) -> Result<(), LiveError> {
        let line = told(state).unwrap_or_default();
        let name = &self.task.name;
        let written = self.heard.write_all(line.as_bytes()).await;
        written.map_err(LiveError::io(format!("what the application of {name} is told")))
    }

    /// It and its application stand still: nobody is answered any more.
    pub(super) fn stop(&self) {
        let sidecar = self.child.id().and_then(pids::Process::of);
        let application = pids::read(&self.folder.join("app.pid"));
        for process in [sidecar, application].into_iter().flatten() {
            process.signal(Signal::STOP);
        }
    }

    /// It is gone with its application, and so are their connections.
    pub(super) async fn kill(mut self) -> Result<(), LiveError> {
        self.child.kill().await.map_err(LiveError::io(format!("the end of {}", self.task.name)))
    }

    /// Tells it to end in good order.
    pub(super) fn end(&self) {
        if let Some(process) = self.child.id().and_then(pids::Process::of) {
            process.signal(Signal::TERM);
        }
    }

    /// Waits until it has: its logs are whole then.
    pub(super) async fn gone(&mut self) -> Result<(), LiveError> {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let ended = ended.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        ended.map(drop).map_err(LiveError::io(format!("the end of {}", self.task.name)))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

/// A byte is a request.
async fn count(mut said: ChildStdout, taken: Rc<Cell<u64>>) {
    let mut bytes = [0; 1_024];
    while let Ok(count @ 1..) = said.read(&mut bytes).await {
        taken.set(taken.get() + count as u64);
    }
}
