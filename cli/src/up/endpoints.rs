//! `D/endpoints.json`: where everything is, for scripts. It is there when all is ready, and replaced whole.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::pids;
use super::plan::Plan;
use crate::private::{self, PrivateError};

/// The file's name.
pub(crate) const FILE: &str = "endpoints.json";

/// The control plane's API for this user, in the data directory.
pub(crate) const SOCKET: &str = "control-plane/api.sock";

/// The file. Keys are only ever added.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoints {
    pub(crate) gateway: Gateway,
    pub(crate) control_plane: String,
    /// The same for the user whose platform it is, as `unix:PATH`; absent where the folder's name is too long for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) control_plane_socket: Option<String>,
    pub(crate) registry: String,
    pub(crate) config: String,
    pub(crate) instances: Vec<Instance>,
}

/// The edge.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Gateway {
    pub(crate) http: String,
    pub(crate) https: String,
    pub(crate) admin: String,
    pub(crate) ready: String,
    pub(crate) metrics: String,
}

/// One instance with its sidecar.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    pub(crate) service: String,
    pub(crate) instance: String,
    pub(crate) address: IpAddr,
    pub(crate) pid: Option<u32>,
    pub(crate) app_pid: Option<u32>,
}

impl Endpoints {
    /// As things are now.
    pub(crate) fn now(plan: &Plan) -> Self {
        let at = |port| SocketAddr::new(plan.base, port);
        let url = |port| format!("http://{}", at(port));
        let running = |folder: &Path, file| {
            pids::read(&folder.join(file)).filter(|process| process.is_running()).map(|process| process.pid)
        };
        let instances = plan.instances.iter().map(|instance| {
            let folder = plan.data_dir.join(&instance.name);
            Instance {
                service: instance.service.to_owned(),
                instance: instance.name.clone(),
                address: instance.address,
                pid: running(&folder, "pid"),
                app_pid: running(&folder, "app.pid"),
            }
        });
        let socket = plan.data_dir.join(SOCKET);
        Self {
            gateway: Gateway {
                http: url(8080),
                https: format!("https://{}", at(8443)),
                admin: url(15000),
                ready: url(15021),
                metrics: url(15020),
            },
            control_plane: url(15014),
            control_plane_socket: socket.exists().then(|| format!("unix:{}", socket.display())),
            registry: url(8500),
            config: url(8888),
            instances: instances.collect(),
        }
    }

    /// Puts it in the place of what was there.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn write(&self, data_dir: &Path) -> Result<(), PrivateError> {
        let text = serde_json::to_string_pretty(self).expect("names and numbers are JSON");
        private::write(&data_dir.join(FILE), &(text + "\n"))
    }
}
