//! Which processes are ours: their numbers, with the moment at which each started, because numbers are used again.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::private::{self, PrivateError};

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// In ticks since the machine started (`/proc/PID/stat`, field 22).
    started: u64,
}

/// A process that a file names, and which runs.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The folder's name, or that of the file.
    pub(crate) name: String,
    pub(crate) pid: Process,
    /// It leads a group that is to end with it.
    pub(crate) is_app: bool,
}

/// State and start of a process; none when it is gone.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        stat(pid).map(|(_, started)| Self { pid, started })
    }

    /// Whether it is still this one, and no zombie.
    pub(crate) fn is_running(self) -> bool {
        stat(self.pid).is_some_and(|(state, started)| started == self.started && !matches!(state, 'Z' | 'X'))
    }

    /// Sends it a signal, if it is still this one.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_running()
            && let Some(pid) = Pid::from_raw(self.pid.cast_signed())
        {
            // It may have ended between these two lines.
            let _ = kill_process(pid, signal);
        }
    }

    /// The same for its group.
    pub(crate) fn signal_group(self, signal: Signal) {
        if self.is_running()
            && let Some(pid) = Pid::from_raw(self.pid.cast_signed())
        {
            let _ = kill_process_group(pid, signal);
        }
    }
}

/// Writes down a process.
///
/// # Errors
/// The disk.
pub(crate) fn write(path: &Path, process: Process) -> Result<(), PrivateError> {
    private::write(path, &format!("{} {}\n", process.pid, process.started))
}

/// Reads what was written down, whether it runs or not.
pub(crate) fn read(path: &Path) -> Option<Process> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut words = text.split_ascii_whitespace();
    Some(Process { pid: words.next()?.parse().ok()?, started: words.next()?.parse().ok()? })
}

/// Every process that files below the directory name and that runs, without `up` itself.
pub(crate) fn all(data_dir: &Path) -> Vec<Found> {
    let folders = std::fs::read_dir(data_dir).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    let found = |folder: &PathBuf, file: &str| {
        let pid = read(&folder.join(file)).filter(|process| process.is_running())?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Some(Found { name, pid, is_app: file == "app.pid" })
    };
    folders.iter().flat_map(|folder| ["pid", "app.pid"].map(|file| found(folder, file))).flatten().collect()
}

/// Ends all of them, without asking.
pub(crate) fn kill_all(data_dir: &Path) {
    for found in all(data_dir) {
        found.pid.signal(Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_was_used_again_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web-1/pid");
        std::fs::create_dir(folder.path().join("web-1")).unwrap();
        let own = Process::of(std::process::id()).unwrap();
        write(&path, own).unwrap();
        assert_eq!(read(&path), Some(own));
        assert_eq!(all(folder.path()).iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["web-1"]);
        write(&path, Process { started: own.started + 1, ..own }).unwrap();
        assert!(all(folder.path()).is_empty());
        assert!(!read(&path).unwrap().is_running());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::of(child.id());
        child.wait().unwrap();
        assert!(process.is_none_or(|process| !process.is_running()));
    }
}
