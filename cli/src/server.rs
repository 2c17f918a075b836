//! Which server a command asks: `--server`, `MESHWORK_SERVER`, the platform that runs here (by its socket, where it has
//! one), or the default address.

use std::path::{Path, PathBuf};
use std::time::Duration;

use meshwork_api::{Client, ClientError};
use serde::Deserialize;

const DEFAULT: &str = "http://127.0.0.1:15014";

/// How long a command waits for a server that says nothing: who runs it in a pipeline is to hear of one that hangs. A change may take
/// a minute until it is stored and read, and is not to be called lost before.
const PATIENCE: Duration = Duration::from_secs(90);

/// Flags of every command that asks a server.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) api: ApiArgs,

    /// Folder of the platform that `meshwork up` started
    #[arg(long, value_name = "DIR", env = "MESHWORK_DATA_DIR", default_value = ".meshwork")]
    pub(crate) data_dir: PathBuf,
}

/// Flags of every process that asks a server now and then.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ApiArgs {
    /// The control plane's API as http://HOST:PORT or unix:PATH, or the admin port of a gateway that runs from a folder [default: what `meshwork up` started here, else http://127.0.0.1:15014]
    #[arg(long, value_name = "URL", env = "MESHWORK_SERVER")]
    pub(crate) server: Option<String>,

    /// A token, where the server wants one
    #[arg(long, value_name = "TOKEN", env = "MESHWORK_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
}

/// The part of `endpoints.json` that commands need.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoints {
    control_plane: String,
    control_plane_socket: Option<String>,
}

impl ServerArgs {
    /// A client for the server, which gives up where nothing comes for [`PATIENCE`].
    ///
    /// # Errors
    /// The address is none.
    pub(crate) fn client(&self) -> Result<Client, ClientError> {
        Ok(self.api.client_of(&self.data_dir)?.with_patience(PATIENCE))
    }
}

impl ApiArgs {
    /// A client for the server that was named, or that runs in this folder, or at the default address.
    ///
    /// # Errors
    /// The address is none.
    pub(crate) fn client_of(&self, data_dir: &Path) -> Result<Client, ClientError> {
        let server = self.server.clone().or_else(|| running(data_dir)).unwrap_or_else(|| DEFAULT.to_owned());
        let client = Client::of(&server)?;
        Ok(match &self.token {
            Some(token) => client.with_token(token),
            None => client,
        })
    }
}

fn running(data_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data_dir.join("endpoints.json")).ok()?;
    let endpoints: Endpoints = serde_json::from_str(&text).ok()?;
    let address = endpoints.control_plane_socket.unwrap_or(endpoints.control_plane);
    Some(if address.starts_with("unix:") || address.contains("://") {
        address
    } else {
        format!("http://{address}")
    })
}
