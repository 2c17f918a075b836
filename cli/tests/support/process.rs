//! A gateway as a process of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{address, command, get, meshwork, until};

pub const HTTP: u16 = 8080;
pub const ADMIN: u16 = 15000;
pub const METRICS: u16 = 15020;
pub const READY: u16 = 15021;

/// A running gateway with a folder of its own; killed and reaped when dropped.
pub struct Gateway {
    child: Child,
    pub address: Ipv4Addr,
    directory: TempDir,
}

impl Gateway {
    /// Starts one from these files (name, text) and waits until it is ready.
    pub fn start(files: &[(&str, &str)]) -> Self {
        Self::start_at(address(), files, &[])
    }

    /// The same at an address, with more arguments.
    pub fn start_at(address: Ipv4Addr, files: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut gateway = Self::spawn_at(address, files, arguments);
        until("the gateway is ready", || {
            if let Some(status) = gateway.child.try_wait().expect("a child can be asked") {
                panic!("the gateway ended with {status}: {}", gateway.stderr());
            }
            get(gateway.at(READY), "/healthz/ready").filter(|(status, _)| *status == 200)
        });
        gateway
    }

    /// The same without waiting.
    pub fn spawn_at(address: Ipv4Addr, files: &[(&str, &str)], arguments: &[&str]) -> Self {
        let directory = folder(files);
        let child = run_in(directory.path(), address, arguments);
        Self { child, address, directory }
    }

    /// The same, with its process log to this file.
    pub fn spawn_saying(files: &[(&str, &str)], arguments: &[&str], log: fs::File) -> Self {
        let (directory, address) = (folder(files), address());
        let child = run_saying(directory.path(), address, arguments, log);
        Self { child, address, directory }
    }

    /// Ends it, does something to its folder meanwhile, and starts it again there, without waiting.
    pub fn restart(&mut self, meanwhile: impl FnOnce(&Self), arguments: &[&str]) {
        self.signal("TERM");
        assert!(self.ended().success(), "{}", self.stderr());
        meanwhile(self);
        self.child = run_in(self.directory.path(), self.address, arguments);
    }

    /// Waits until it says that it is ready.
    pub fn ready(&self) {
        until("the gateway is ready", || {
            get(self.at(READY), "/healthz/ready").filter(|(status, _)| *status == 200)
        });
    }

    /// Waits until it says that it is not ready since its resources are not as they must be; gives what it says.
    pub fn held(&self) -> String {
        let lacking = |(status, body): &(u16, String)| *status == 503 && body.contains("no good version");
        until("the gateway says what it waits for", || get(self.at(READY), "/healthz/ready").filter(lacking))
            .1
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// A URL of its HTTP listener.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at(HTTP))
    }

    pub fn server(&self) -> String {
        format!("http://{}", self.at(ADMIN))
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("resources").join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }

    /// Replaces a file at once, as editors and deployments do.
    pub fn write(&self, name: &str, text: &str) {
        let fresh = self.directory.path().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, self.file(name)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    /// Asks the admin port; panics on anything but 200.
    pub fn api(&self, path: &str) -> Value {
        let (status, body) = get(self.at(ADMIN), path).expect("the admin port answers");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    pub fn revision(&self) -> u64 {
        self.api("/v1/revision")["revision"].as_u64().expect("a revision is published")
    }

    /// Does something to the folder that makes one new revision, and waits until that is in effect.
    pub fn edit(&self, change: impl FnOnce()) {
        let wanted = self.revision() + 1;
        change();
        self.effective(wanted);
    }

    pub fn effective(&self, revision: u64) {
        let answer = self.api(&format!("/v1/revision?wait=effective&revision={revision}&timeout=30s"));
        assert_eq!(answer["effective"], true, "{answer}");
    }

    /// An object as `get -o json` prints it.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let output =
            meshwork(&["get", kind, name, "-n", namespace, "-o", "json", "--server", &self.server()]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Findings in a file.
    pub fn findings(&self, file: &str) -> Vec<Value> {
        let Value::Array(all) = self.api("/v1/diagnostics") else { panic!("an array") };
        all.into_iter().filter(|found| found["file"] == file).collect()
    }

    /// A command that asks this gateway.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        meshwork(&[arguments, &["--server", &self.server()]].concat())
    }

    /// The access log, once it has so many lines: a line is written after its response has left.
    pub fn log(&self, count: usize) -> Vec<Value> {
        let text = until("the access log has its lines", || {
            let text = fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
            (text.ends_with('\n') && text.lines().count() >= count).then_some(text)
        });
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.pid());
        assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// How it ended, once it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        until("the gateway ends", || self.child.try_wait().expect("a child can be asked"))
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

/// A directory with a folder of these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("resources")).unwrap();
    for (name, text) in files {
        fs::write(directory.path().join("resources").join(name), text).unwrap();
    }
    directory
}

/// A gateway's process in this directory.
fn run_in(directory: &Path, address: Ipv4Addr, arguments: &[&str]) -> Child {
    run_saying(directory, address, arguments, fs::File::create(directory.join("stderr")).unwrap())
}

fn run_saying(directory: &Path, address: Ipv4Addr, arguments: &[&str], log: fs::File) -> Child {
    let listen = address.to_string();
    let defaults = [["--workers", "1"], ["--access-log", "access.log"], ["--listen-address", &listen]];
    let defaults = defaults.iter().filter(|[flag, _]| !arguments.contains(flag));
    command(&["gateway", "--resources", "resources"])
        .args(defaults.flatten())
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(fs::File::create(directory.join("stdout")).unwrap())
        .stderr(log)
        .spawn()
        .expect("the gateway starts")
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            // What the process said is half of the explanation.
            let said = format!("the gateway's log:\n{}\n", self.stderr());
            drop(std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()));
        }
    }
}
