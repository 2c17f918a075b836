//! `meshwork down`: the end of what `up` started, also where `up` itself was killed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::Signal;

use super::{Outcome, block_on};
use crate::up::UpError;
use crate::up::endpoints::FILE;
use crate::up::pids::{self, Found};

/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long `up` may take to end everything in its order: gateway, instances, server, each after its requests.
const UP: Duration = Duration::from_secs(110);
/// How long a process without `up` may take.
const ALONE: Duration = Duration::from_secs(35);
/// How long a killed process may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// Stop the platform that `meshwork up` started
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Folder that holds its state
    #[arg(long, value_name = "DIR", env = "MESHWORK_DATA_DIR", default_value = ".meshwork")]
    data_dir: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    block_on(end(&arguments.data_dir))??;
    Ok(ExitCode::SUCCESS)
}

async fn end(data_dir: &Path) -> Result<(), UpError> {
    let path = data_dir.join("up.pid");
    if let Some(up) = pids::read(&path).filter(|up| up.is_running()) {
        up.signal(Signal::TERM);
        if !within(UP, || !up.is_running()).await {
            up.signal(Signal::KILL);
            within(KILLED, || !up.is_running()).await;
        }
    }
    // What a killed `up` has left: those that call before those that are called.
    let order = |found: &Found| match found.name.as_str() {
        "gateway" => 0,
        "server" => 2,
        _ => 1,
    };
    for step in 0..=2 {
        let of_step = || pids::all(data_dir).into_iter().filter(|found| order(found) == step);
        // An application is its sidecar's to end.
        of_step().filter(|found| !found.is_app).for_each(|found| found.pid.signal(Signal::TERM));
        if within(ALONE, || of_step().all(|found| found.is_app)).await && of_step().next().is_none() {
            continue;
        }
        of_step().for_each(|found| {
            found.pid.signal(Signal::KILL);
            if found.is_app {
                found.pid.signal_group(Signal::KILL);
            }
        });
        within(KILLED, || of_step().next().is_none()).await;
    }
    let left = pids::all(data_dir);
    if !left.is_empty() {
        let pids = left.iter().map(|found| format!("{} ({})", found.pid.pid, found.name)).collect::<Vec<_>>();
        return Err(UpError::Undead { left: left.len(), pids: pids.join(", ") });
    }
    for file in ["up.pid", FILE] {
        let path = data_dir.join(file);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(UpError::io(&path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Looks again and again until it is so, or time is up; says which.
async fn within(time: Duration, is_so: impl Fn() -> bool) -> bool {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(time, looking).await.is_ok()
}
