//! The clients' sidecars: what goes out through them, and what they know of it.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use meshwork_decision::simulator::Scenario;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::LiveError;
use super::mesh::Mesh;
use super::process::Process;
use super::told::{CLIENT, in_zone};
use crate::up::plan::words;

/// What a client's calls go out by, and where its numbers are.
const OUTBOUND: u16 = 15001;
const METRICS: u16 = 15020;

/// A client: a sidecar, and an application that nobody calls. What it calls is the load's.
pub(super) struct Client {
    process: Process,
    address: IpAddr,
}

/// What the clients' sidecars know of a run.
#[derive(Default)]
pub(super) struct Told {
    pub(super) requests: u64,
    pub(super) attempts: u64,
    pub(super) held_back: u64,
    pub(super) refused: u64,
    pub(super) ejections: u64,
}

impl Client {
    pub(super) fn start(mesh: &Mesh, scenario: &Scenario, number: usize) -> Result<Self, LiveError> {
        let zone = number.checked_rem(scenario.zones);
        let flags = [words(&["--drain-timeout", "1s"]), in_zone(zone)].concat();
        let task = mesh.beside(number, CLIENT, number, flags)?;
        let address = task.ready.ip();
        Ok(Self { process: Process::start(&task, mesh.data_dir(), &Rc::new(Cell::new(0)))?, address })
    }

    pub(super) async fn ready(&mut self) -> Result<(), LiveError> {
        self.process.ready().await
    }

    pub(super) fn outbound(&self) -> SocketAddr {
        (self.address, OUTBOUND).into()
    }

    /// Asks it what it has counted, and tells it to end.
    async fn end(&self, told: &mut Told) -> Result<(), LiveError> {
        let metrics = ask((self.address, METRICS).into(), "/metrics").await;
        let metrics = metrics.map_err(LiveError::io("a sidecar's metrics"))?;
        told.ejections += sum(&metrics, "meshwork_endpoint_ejections_total{");
        told.held_back += sum(&metrics, "meshwork_admission_control_rejected_total{");
        told.refused += sum(&metrics, "meshwork_circuit_breaker_rejected_total{");
        self.process.end();
        Ok(())
    }

    /// Reads its log, which is whole once the process has ended.
    async fn read(&mut self, told: &mut Told) -> Result<(), LiveError> {
        self.process.gone().await?;
        let log = self.process.folder().join("access.log");
        let log = std::fs::read_to_string(log).map_err(LiveError::io("a sidecar's access log"))?;
        for line in log.lines() {
            told.requests += 1;
            told.attempts += attempts(line)?;
        }
        Ok(())
    }
}

/// What all of them know; they have ended then.
pub(super) async fn finish(clients: &mut [Client]) -> Result<Told, LiveError> {
    let mut told = Told::default();
    for client in &*clients {
        client.end(&mut told).await?;
    }
    for client in clients {
        client.read(&mut told).await?;
    }
    Ok(told)
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
