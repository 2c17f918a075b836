//! What `meshwork up --no-shop` starts, in a folder and at addresses of its own, so that it runs beside others of its kind.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meshwork_api::registry::{Health, Service};
use meshwork_api::{Client, ClientError};
use meshwork_base::{Clock, Rng as _, ThreadRng};
use meshwork_decision::simulator::Scenario;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::LiveError;
use super::process::READY;
use super::told::{FLEET, resources};
use crate::up::pids;
use crate::up::plan::{Beside, Plan, Task, Wanted, beside, instance_address};
use crate::up::supervise::{Supervised, all_ready};

/// A block of addresses has the platform's, and one for each of these.
pub(super) const MOST: usize = 253;
/// How often a block of addresses is drawn, if others are there.
const DRAWS: usize = 32;
/// Where the control plane's API is, beside the base address.
const API: u16 = 15014;
const LOOK: Duration = Duration::from_millis(20);
/// How long a process of the platform may take to end what it does.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module's text. Nothing of it is left when it is dropped, and nothing of what was started beside it.
pub(super) struct Mesh {
    folder: TempDir,
    base: Ipv4Addr,
    scenario: PathBuf,
    seed: u64,
    platform: Vec<Supervised>,
}

impl Mesh {
    /// Starts it with the scenario's policies, and waits until it is ready.
    pub(super) async fn start(
        scenario: &Scenario,
        text: &str,
        seed: u64,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, LiveError> {
        let told = resources(scenario)?;
        let folder = tempfile::tempdir().map_err(LiveError::io("a folder for the mesh"))?;
        let written = |path: PathBuf, text: &str| {
            std::fs::write(&path, text).map_err(LiveError::io(path.display().to_string()))
        };
        let place = folder.path().join("scenario.yaml");
        written(place.clone(), text)?;
        let resources = folder.path().join("resources");
        std::fs::create_dir(&resources).map_err(LiveError::io(resources.display().to_string()))?;
        written(resources.join("fleet.yaml"), &told)?;
        let mut mesh = Self { base: base()?, folder, scenario: place, seed, platform: Vec::new() };
        let begun = mesh.begin(&resources, clock).await;
        mesh.keeping_logs(begun)?;
        Ok(mesh)
    }

    async fn begin(&mut self, resources: &Path, clock: &Arc<dyn Clock>) -> Result<(), LiveError> {
        let plan = Plan::new(&Wanted { resources, ..self.wanted() })?;
        let (tell, mut news) = mpsc::channel(64);
        let until = (READY, Instant::now() + READY);
        for task in plan.tasks() {
            let (task, names) = (task.clone(), [task.name.clone()]);
            let (clock, tell) = (Arc::clone(clock), tell.clone());
            self.platform.push(Supervised::start(task, self.data_dir(), PATIENCE, clock, tell));
            all_ready(&names, &mut news, self.folder.path(), until, |_| ()).await?;
        }
        Ok(())
    }

    fn wanted(&self) -> Wanted<'_> {
        let base = IpAddr::V4(self.base);
        let resources = self.data_dir();
        Wanted { data_dir: self.data_dir(), base, resources, with_shop: false, workers: Some(1), root: None }
    }

    pub(super) fn data_dir(&self) -> &Path {
        self.folder.path()
    }

    /// The `index`th process beside it: the application of an instance of the scenario, beside a sidecar with these flags.
    pub(super) fn beside(
        &self,
        index: usize,
        service: &str,
        number: usize,
        flags: Vec<OsString>,
    ) -> Result<Task, LiveError> {
        let own = std::env::current_exe().map_err(LiveError::io("this program"))?;
        let mut command: Vec<OsString> = vec![own.into(), "simulate".into(), self.scenario.clone().into()];
        // Nobody calls that of a client, which is like the first instance's.
        let instance = if service == FLEET { number } else { 0 };
        command.extend(["--application".into(), instance.to_string().into()]);
        command.extend(["--seed".into(), self.seed.to_string().into()]);
        let (name, address) = (format!("{service}-{number}"), instance_address(self.base.into(), index));
        let one = Beside { service, name: &name, protocol: "http", address, flags, command };
        Ok(beside(&self.wanted(), one))
    }

    /// Waits until so many instances of the fleet are in use.
    pub(super) async fn uses(&self, count: usize) -> Result<(), LiveError> {
        let client = Client::http(&format!("http://{}", SocketAddr::new(self.base.into(), API)))?;
        let mut failed = None;
        let used = timeout(READY, until_used(&client, count, &mut failed)).await;
        used.map_err(|_| match failed {
            Some(error) => error.into(),
            None => LiveError::Unused { count, within: READY, folder: self.data_dir().to_owned() },
        })
    }

    /// What explains an error stays.
    pub(super) fn keeping_logs<T>(&mut self, result: Result<T, LiveError>) -> Result<T, LiveError> {
        if result.as_ref().is_err_and(LiveError::names_a_log) {
            self.folder.disable_cleanup(true);
        }
        result
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let running = pids::all(self.data_dir());
        // Nobody runs here meanwhile who could start them again.
        pids::kill_all(self.data_dir());
        // What still writes into the folder would keep it from being removed. An application ends with its sidecar.
        for found in running.iter().filter(|found| !found.is_app) {
            if let Some(pid) = Pid::from_raw(found.pid.pid.cast_signed()) {
                // Who is no child of ours any more is gone.
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            }
        }
    }
}

/// Waits until so many instances of the fleet are in use. A machine that has just started everybody may keep the control plane from
/// answering, which is no answer; why it last has not is noted.
async fn until_used(client: &Client, count: usize, failed: &mut Option<ClientError>) {
    loop {
        match client.json::<Vec<Service>>(http::Method::GET, "/v1/services", &[], Bytes::new()).await {
            Ok(services) => {
                let fleet = services.iter().filter(|service| service.name == FLEET);
                let used = fleet.flat_map(|service| &service.instances);
                if used.filter(|instance| instance.health == Health::Passing).count() >= count {
                    return;
                }
                *failed = None;
            }
            Err(error) => *failed = Some(error),
        }
        sleep(LOOK).await;
    }
}

/// The first of 254 addresses, where nobody has it.
fn base() -> Result<Ipv4Addr, LiveError> {
    let mut rng = ThreadRng::new();
    let mut free = || {
        let [high, low] = u16::try_from(rng.below(0x3c00)).unwrap_or_default().to_be_bytes();
        let base = Ipv4Addr::new(127, 170 + high, low, 1);
        TcpListener::bind((base, API)).map(|_| base)
    };
    let found = (1..DRAWS).find_map(|_| free().ok());
    found.map_or_else(free, Ok).map_err(LiveError::io("an address of 127.0.0.0/8 for the platform"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_control_plane_that_does_not_answer_yet_is_asked_again() {
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        let answer = move || {
            let nth = counted.fetch_add(1, Ordering::Relaxed);
            std::future::ready(if nth < 2 { busy() } else { fleet(nth == 3) })
        };
        let role = Router::new().route("/v1/services", axum::routing::get(answer));
        let (client, mut failed) = (Client::in_memory("control plane", role), None);
        let used = until_used(&client, 1, &mut failed);
        timeout(READY, used).await.expect("it answers at last");
        assert_eq!(asked.load(Ordering::Relaxed), 4, "twice it fails, once its instance is not in use");
        assert!(failed.is_none(), "it has answered since");
    }

    fn busy() -> Response {
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }

    fn fleet(is_in_use: bool) -> Response {
        let health = if is_in_use { "passing" } else { "critical" };
        let instance = json!({"id": "a", "address": "a", "node": "a", "ports": {}, "weight": 1, "tags": [], "metadata": {}, "health": health});
        axum::Json(json!([{"name": FLEET, "namespace": "default", "instances": [instance]}])).into_response()
    }
}
