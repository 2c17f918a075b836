//! A whole platform as processes of their own, on loopback addresses that no other test has.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use super::{MESHWORK, command, exchange};

/// A loopback address with fifteen more behind it that no other test has.
pub fn base() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id().wrapping_mul(7).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let [.., high, low] = (number % 60_000).to_be_bytes();
    Ipv4Addr::new(127, 130 + (low >> 4), high, (low & 0x0f) << 4 | 1)
}

/// Whether a process is there and no zombie.
pub fn is_alive(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

pub fn signal(name: &str, pid: u64) {
    assert!(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap().success());
}

/// A platform in a folder of its own; taken down when dropped.
pub struct Platform {
    pub base: Ipv4Addr,
    pub data: TempDir,
}

impl Platform {
    pub fn new() -> Self {
        Self { base: base(), data: tempfile::tempdir().unwrap() }
    }

    pub fn command(&self, arguments: &[&str]) -> Output {
        let data = self.data.path().to_str().unwrap();
        command(arguments).stdin(Stdio::null()).args(["--data-dir", data]).output().unwrap()
    }

    pub fn up(&self, more: &[&str]) -> Output {
        self.up_with(more, &[])
    }

    /// The same, with these variables in the environment.
    pub fn up_with(&self, more: &[&str], environment: &[(&str, &str)]) -> Output {
        command(&["up", "--detach", "--base-address", &self.base.to_string(), "--workers", "1"])
            .args(more)
            .arg("--data-dir")
            .arg(self.data.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    pub fn endpoints(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.data.path().join("endpoints.json")).unwrap())
            .unwrap()
    }

    pub fn instance(&self, name: &str) -> Value {
        let endpoints = self.endpoints();
        endpoints["instances"].as_array().unwrap().iter().find(|i| i["instance"] == name).unwrap().clone()
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        (self.base, port).into()
    }

    /// A file of an instance, of the gateway or of the server.
    pub fn file(&self, of: &str, name: &str) -> PathBuf {
        self.data.path().join(of).join(name)
    }

    /// Every process that `D` names.
    pub fn pids(&self) -> Vec<u64> {
        let folders = std::fs::read_dir(self.data.path()).unwrap().map(|entry| entry.unwrap().path());
        let files = folders.flat_map(|folder| [folder.join("pid"), folder.join("app.pid")]);
        let pid = |path: std::path::PathBuf| pid_in(&path);
        files.filter_map(pid).collect()
    }

    /// `meshwork run` beside the platform.
    pub fn run(&self, service: &str, address: Ipv4Addr, more: &[&str], app: &[&str]) -> Spawned {
        let at = |port| self.at(port).to_string();
        let mut command = command(&["run", "--service", service, "--address", &address.to_string()]);
        command.args(["--control-plane", &at(15012), "--registry", &at(8501), "--workers", "1"]);
        command.arg("--data-dir").arg(self.data.path()).args(more).arg("--").args(app);
        Spawned::start(&mut command)
    }
}

/// A process that is killed and reaped when dropped; an application dies with its sidecar.
pub struct Spawned(Child);

impl Spawned {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// The same, with its process log in a file.
    pub fn logging(command: &mut Command, log: std::fs::File) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// The same, with what it says in another.
    pub fn telling(command: &mut Command, said: std::fs::File, log: std::fs::File) -> Self {
        Self(command.stdin(Stdio::null()).stdout(said).stderr(log).spawn().unwrap())
    }

    pub fn id(&self) -> u64 {
        self.0.id().into()
    }

    /// How it ended, once it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Waits for its end, and gives its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The process that a file names.
pub fn pid_in(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

impl Drop for Platform {
    fn drop(&mut self) {
        drop(self.command(&["down"]));
    }
}

pub fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// The address so many places behind.
pub fn next(address: Ipv4Addr, by: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) + by)
}

/// Whether the shop's programs are beside the binary under test.
pub fn shop_is_built() -> bool {
    let built = Path::new(MESHWORK).with_file_name("commerce-storefront").is_file();
    if !built {
        meshwork_testkit::skip("the shop is not built (cargo build -p commerce)");
    }
    built
}

/// The status with which a call through an instance's sidecar is answered.
pub fn call(instance: &Value, host: &str) -> u16 {
    let address = format!("{}:15001", instance["address"].as_str().unwrap()).parse().unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = exchange(address, request.as_bytes()).expect("the sidecar answers");
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}
