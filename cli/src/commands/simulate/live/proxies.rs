//! The proxies: `meshwork gateway`, a process for each client, from a folder with the scenario's fleet and policies. Where
//! these keep instances from overload, one more for each instance, which does.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use meshwork_decision::simulator::Scenario;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::LiveError;
use super::told::{calling, guarding, loads, zone_name};

/// A proxy that has not become ready by then will not.
const READY: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// See the module's text.
pub(super) struct Proxies {
    /// One for each client.
    all: Vec<Proxy>,
    /// One for each instance, or none.
    _guards: Vec<Proxy>,
    _folder: TempDir,
}

struct Proxy {
    child: Child,
    place: PathBuf,
    address: SocketAddr,
    metrics: SocketAddr,
    ready: SocketAddr,
}

/// What the proxies know of a run.
#[derive(Default)]
pub(super) struct Told {
    pub(super) requests: u64,
    pub(super) attempts: u64,
    pub(super) held_back: u64,
    pub(super) refused: u64,
    pub(super) ejections: u64,
}

impl Proxies {
    /// Starts one for each client, and waits until all are ready.
    pub(super) async fn start(scenario: &Scenario, instances: &[u16]) -> Result<Self, LiveError> {
        let folder = tempfile::tempdir().map_err(LiveError::io("a folder for the proxies"))?;
        let mut guards = Vec::new();
        if scenario.policies.overload.is_some() {
            for (number, &instance) in instances.iter().enumerate() {
                let place = folder.path().join(format!("guard-{number}"));
                let told = |address| guarding(&scenario.policies, address, instance);
                guards.push(Proxy::start(told, place, None)?);
            }
        }
        let behind = guards.iter().map(|guard| guard.address.port());
        let ports: Vec<u16> = if guards.is_empty() { instances.to_vec() } else { behind.collect() };
        let mut all = Vec::new();
        for client in 0..scenario.clients {
            let place = folder.path().join(client.to_string());
            let zone = client.checked_rem(scenario.zones);
            all.push(Proxy::start(|address| calling(scenario, address, &ports), place, zone)?);
        }
        for proxy in guards.iter().chain(&all) {
            if !proxy.ready().await {
                // What explains it stays.
                let log = log_of(&proxy.place);
                drop(folder.keep());
                return Err(LiveError::NotReady { within: READY, log });
            }
        }
        Ok(Self { all, _guards: guards, _folder: folder })
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.all.iter().map(|proxy| proxy.address).collect()
    }

    /// Asks each what it has counted, and stops it.
    pub(super) async fn finish(mut self) -> Result<Told, LiveError> {
        let mut told = Told::default();
        for proxy in &mut self.all {
            let metrics = ask(proxy.metrics, "/metrics").await.map_err(LiveError::io("a proxy's metrics"))?;
            told.ejections += sum(&metrics, "meshwork_endpoint_ejections_total{");
            told.held_back += sum(&metrics, "meshwork_admission_control_rejected_total{");
            told.refused += sum(&metrics, "meshwork_circuit_breaker_rejected_total{");
            // The log is whole once the process has ended.
            if let Some(pid) =
                proxy.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()))
            {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                    .map_err(|error| LiveError::io("a proxy's end")(error.into()))?;
            }
            proxy.child.wait().await.map_err(LiveError::io("a proxy's end"))?;
            let log = std::fs::read_to_string(proxy.place.join("access.log"))
                .map_err(LiveError::io("a proxy's access log"))?;
            for line in log.lines() {
                told.requests += 1;
                told.attempts += attempts(line)?;
            }
        }
        Ok(told)
    }
}

impl Proxy {
    /// Starts one that is told these resources for its address, in a zone.
    fn start(
        told: impl FnOnce(SocketAddr) -> Vec<Value>,
        place: PathBuf,
        zone: Option<usize>,
    ) -> Result<Self, LiveError> {
        let failed = || LiveError::io(place.display().to_string());
        let [address, metrics, ready] = free_addresses().map_err(LiveError::io("free ports"))?;
        let resources = place.join("resources");
        std::fs::create_dir_all(&resources).map_err(failed())?;
        let text: String = told(address).iter().map(|resource| format!("---\n{resource}\n")).collect();
        loads(&text)?;
        std::fs::write(resources.join("fleet.yaml"), text).map_err(failed())?;
        let log = std::fs::File::create(log_of(&place)).map_err(failed())?;
        let own = std::env::current_exe().map_err(LiveError::io("this program"))?;
        let mut command = Command::new(own);
        command.arg("gateway").arg("--resources").arg(resources);
        command.arg("--data-dir").arg(place.join("data")).arg("--access-log").arg(place.join("access.log"));
        command.args(["--workers", "1", "--admin-address", "127.0.0.1:0"]);
        command.args(["--metrics-address", &metrics.to_string(), "--ready-address", &ready.to_string()]);
        if let Some(zone) = zone {
            command.args(["--zone", &zone_name(zone)]);
        }
        let out = log.try_clone().map_err(failed())?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(log).kill_on_drop(true).spawn();
        let child = child.map_err(LiveError::io("a proxy"))?;
        Ok(Self { child, place, address, metrics, ready })
    }

    /// Whether it becomes ready in time.
    async fn ready(&self) -> bool {
        let is_ready = async {
            while !ask(self.ready, "/healthz/ready")
                .await
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
            {
                sleep(POLL).await;
            }
        };
        timeout(READY, is_ready).await.is_ok()
    }
}

fn log_of(place: &Path) -> PathBuf {
    place.join("log")
}

/// Addresses that nobody has at this moment.
fn free_addresses<const N: usize>() -> std::io::Result<[SocketAddr; N]> {
    let held = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut addresses = [(Ipv4Addr::LOCALHOST, 0).into(); N];
    for (address, held) in addresses.iter_mut().zip(held) {
        *address = held?.local_addr()?;
    }
    Ok(addresses)
}

async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut tcp = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What all series that begin so have counted.
fn sum(metrics: &str, begin: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with(begin));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn attempts(line: &str) -> Result<u64, LiveError> {
    let entry: Value =
        serde_json::from_str(line).map_err(|error| LiveError::Proxy(format!("access log: {error}")))?;
    let attempts = entry.get("attempts").and_then(Value::as_u64);
    attempts.ok_or_else(|| LiveError::Proxy(format!("access log has no attempts: {line}")))
}
